// SPDX-License-Identifier: GPL-2.0
// The guest's first process: reboots at once, which ends QEMU (-no-reboot).
	.globl _start
_start:
	ldr	x0, =0xfee1dead		// reboot(…, LINUX_REBOOT_CMD_RESTART)
	ldr	x1, =672274793
	ldr	x2, =0x1234567
	mov	x8, #142
	svc	#0
	udf	#0
