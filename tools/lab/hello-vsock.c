// SPDX-License-Identifier: GPL-2.0
// hello-vsock listen PORT | CID PORT: one line each way over a socket between a guest and its host.
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm at = { .svm_family = AF_VSOCK };
	char line[64] = "";
	int s = socket(AF_VSOCK, SOCK_STREAM, 0), c;
	ssize_t n;

	if (s < 0)
		return fail("socket");
	if (argc != 3)
		return 2;
	at.svm_port = atoi(argv[2]);
	if (strcmp(argv[1], "listen")) {
		at.svm_cid = atoi(argv[1]);
		if (connect(s, (struct sockaddr *)&at, sizeof(at)))
			return fail("connect");
		if (write(s, "from the guest\n", 15) != 15)
			return fail("write");
		n = read(s, line, sizeof(line) - 1);
		return n > 0 ? printf("vsock: %s", line) < 0 : fail("read");
	}
	at.svm_cid = VMADDR_CID_ANY;
	if (bind(s, (struct sockaddr *)&at, sizeof(at)) || listen(s, 1))
		return fail("listen");
	c = accept(s, NULL, NULL);
	if (c < 0)
		return fail("accept");
	n = read(c, line, sizeof(line) - 1);
	if (n <= 0)
		return fail("read");
	printf("vsock: %s", line);
	fflush(stdout);
	return write(c, "from the host\n", 14) == 14 ? 0 : fail("write");
}
