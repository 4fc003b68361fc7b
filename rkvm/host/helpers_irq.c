// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/ for interrupts and I/O: what the kernel has only as macros and inlines. */

#include <linux/build_bug.h>
#include <linux/poll.h>

#include "helpers_irq.h"

struct listen {
	poll_table table;
	struct wait_queue_entry *entry;
	int ret;
};

void rkvm_wait_entry_init(struct wait_queue_entry *entry, wait_queue_func_t func)
{
	init_waitqueue_func_entry(entry, func);
	INIT_LIST_HEAD(&entry->entry);
}

static void listen_queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct listen *listen = container_of(table, struct listen, table);

	listen->ret = add_wait_queue_priority_exclusive(head, listen->entry);
}

/*
 * Makes entry the one listener of an eventfd. Returns 1 if the eventfd had been signalled before,
 * 0 if not, or -EBUSY if it has such a listener.
 */
int rkvm_eventfd_listen(struct file *file, struct wait_queue_entry *entry)
{
	struct listen listen = { .entry = entry, .ret = -EINVAL };
	__poll_t events;

	BUILD_BUG_ON((__force int)EPOLLIN != RKVM_WAKE_IN);
	BUILD_BUG_ON((__force int)EPOLLHUP != RKVM_WAKE_HUP);

	init_poll_funcptr(&listen.table, listen_queue);
	events = vfs_poll(file, &listen.table);
	if (listen.ret)
		return listen.ret;
	return !!(events & EPOLLIN);
}
