/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the entry code of the x86 backends shares: SPEC_CTRL, the general registers, and what guards the
 * host against the guest's speculation. Symbols that the kernel keeps for KVM (write_ibpb,
 * x86_verw_sel, clear_bhb_loop) are not used: the same instructions are written out.
 */
#ifndef RKVM_GUEST_RUN_X86_H
#define RKVM_GUEST_RUN_X86_H

/* Offsets in struct rkvm_spec_ctrl, with which the parameters of a run begin. */
#define RKVM_SPEC_CTRL_GUEST 0
#define RKVM_SPEC_CTRL_HOST 8
#define RKVM_SPEC_CTRL_FLAGS 16
#define RKVM_SPEC_CTRL_SIZE 24

/* The guest's SPEC_CTRL is switched by us, not by hardware. */
#define RKVM_SPEC_CTRL_SWITCH 1
/* The guest can write SPEC_CTRL without an exit: read it back. */
#define RKVM_SPEC_CTRL_DIRECT 2

#ifdef __ASSEMBLY__
#include <asm/alternative.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>

/* Offsets of the general registers in the caller's array: 8 times their number. */
#define GPR_RAX 0
#define GPR_RCX 8
#define GPR_RDX 16
#define GPR_RBX 24
#define GPR_RBP 40
#define GPR_RSI 48
#define GPR_RDI 56
#define GPR_R8	64
#define GPR_R9	72
#define GPR_R10 80
#define GPR_R11 88
#define GPR_R12 96
#define GPR_R13 104
#define GPR_R14 112
#define GPR_R15 120

/* The host's registers, and then the function's arguments: 8(%rsp) is gprs, 0(%rsp) run. */
.macro PUSH_HOST_REGS
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rsi
	push	%rdi
.endm

/* Run has been popped. */
.macro POP_HOST_REGS
	pop	%rbx			/* gprs */
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
.endm

/* The guest's registers from gprs in RSI, but for RAX and RSP. Leaves the flags. */
.macro LOAD_GUEST_REGS
	mov	GPR_RCX(%rsi), %rcx
	mov	GPR_RDX(%rsi), %rdx
	mov	GPR_RBX(%rsi), %rbx
	mov	GPR_RBP(%rsi), %rbp
	mov	GPR_RDI(%rsi), %rdi
	mov	GPR_R8(%rsi), %r8
	mov	GPR_R9(%rsi), %r9
	mov	GPR_R10(%rsi), %r10
	mov	GPR_R11(%rsi), %r11
	mov	GPR_R12(%rsi), %r12
	mov	GPR_R13(%rsi), %r13
	mov	GPR_R14(%rsi), %r14
	mov	GPR_R15(%rsi), %r15
	mov	GPR_RSI(%rsi), %rsi
.endm

/* The same back to gprs in RAX. */
.macro SAVE_GUEST_REGS
	mov	%rcx, GPR_RCX(%rax)
	mov	%rdx, GPR_RDX(%rax)
	mov	%rbx, GPR_RBX(%rax)
	mov	%rbp, GPR_RBP(%rax)
	mov	%rsi, GPR_RSI(%rax)
	mov	%rdi, GPR_RDI(%rax)
	mov	%r8, GPR_R8(%rax)
	mov	%r9, GPR_R9(%rax)
	mov	%r10, GPR_R10(%rax)
	mov	%r11, GPR_R11(%rax)
	mov	%r12, GPR_R12(%rax)
	mov	%r13, GPR_R13(%rax)
	mov	%r14, GPR_R14(%rax)
	mov	%r15, GPR_R15(%rax)
.endm

/* The guest's values must not steer what the host speculates on. RAX is the host's already, others are popped. */
.macro CLEAR_GUEST_REGS
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
.endm

/* Processor buffers may hold the host's data. Leaves the flags but ZF. */
.macro CLEAR_CPU_BUFFERS_FOR_GUEST
	.pushsection .rodata
	.balign 2
.Lverw_selector_\@:
	.word	__KERNEL_DS
	.popsection
	ALTERNATIVE "", "verw .Lverw_selector_\@(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM
.endm

/* SPEC_CTRL for the guest, run in RDI. RAX, RCX and RDX are lost. */
.macro SPEC_CTRL_FOR_GUEST
	testl	$RKVM_SPEC_CTRL_SWITCH, RKVM_SPEC_CTRL_FLAGS(%rdi)
	jz	.Lspec_guest_\@
	mov	RKVM_SPEC_CTRL_GUEST(%rdi), %rax
	cmp	RKVM_SPEC_CTRL_HOST(%rdi), %rax
	je	.Lspec_guest_\@
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lspec_guest_\@:
.endm

/*
 * The host's SPEC_CTRL again, run in RDI. RAX, RCX and RDX are lost. Where it has to be written for the
 * barrier that it is, it is, whatever its value.
 */
.macro SPEC_CTRL_FOR_HOST
	testl	$RKVM_SPEC_CTRL_SWITCH, RKVM_SPEC_CTRL_FLAGS(%rdi)
	jz	.Lspec_host_\@
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	testl	$RKVM_SPEC_CTRL_DIRECT, RKVM_SPEC_CTRL_FLAGS(%rdi)
	jz	.Lspec_known_\@
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, RKVM_SPEC_CTRL_GUEST(%rdi)
.Lspec_known_\@:
	mov	RKVM_SPEC_CTRL_HOST(%rdi), %rax
	ALTERNATIVE "", "jmp .Lspec_write_\@", X86_FEATURE_KERNEL_IBRS
	cmp	RKVM_SPEC_CTRL_GUEST(%rdi), %rax
	je	.Lspec_host_\@
.Lspec_write_\@:
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
.Lspec_host_\@:
.endm

#else
#include <linux/types.h>

struct rkvm_spec_ctrl {
	u64 guest;
	u64 host;
	u32 flags;	/* RKVM_SPEC_CTRL_* */
	u32 unused;
};
#endif

#endif
