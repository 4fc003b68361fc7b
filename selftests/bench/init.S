# SPDX-License-Identifier: GPL-2.0
# The guest's first process: says so on QEMU's isa-debug-exit port, which ends QEMU.
	.globl _start
_start:
	mov $172, %eax		# iopl(3)
	mov $3, %edi
	syscall
	mov $0x501, %edx
	mov $1, %eax
	out %eax, %dx
1:	jmp 1b
