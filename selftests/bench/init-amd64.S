# SPDX-License-Identifier: GPL-2.0
# The guest's first process: reboots at once, which ends QEMU (-no-reboot).
	.globl _start
_start:
	mov $169, %eax			# reboot(…, LINUX_REBOOT_CMD_RESTART)
	mov $0xfee1dead, %edi
	mov $672274793, %esi
	mov $0x1234567, %edx
	syscall
	ud2
