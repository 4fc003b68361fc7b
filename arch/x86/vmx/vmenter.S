/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into a VMX guest and back.
 *
 * Intel SDM vol. 3C, chapters 28 (entries) and 29 (exits). Symbols that the kernel keeps for KVM
 * (write_ibpb, x86_verw_sel, clear_bhb_loop) are not used: the same instructions are written out.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>

#include "helpers_vmx_run.h"

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

/* The field of the host's stack pointer. */
#define HOST_RSP 0x6c14

	.section .rodata
	.balign 2
SYM_DATA_LOCAL(rkvm_vmx_verw_selector, .word __KERNEL_DS)

	.section .noinstr.text, "ax"

/*
 * int rkvm_vmx_vmenter(struct rkvm_vmx_run *run, u64 *gprs)
 *
 * Runs the guest of the current VMCS until its next exit. IRQs are off. RSP is in the VMCS, the other
 * fifteen registers in gprs. Returns 0, or 1 if the processor did not begin to enter (VMfail, or VMX
 * is off): nothing has happened then.
 */
SYM_FUNC_START(rkvm_vmx_vmenter)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rsi			/*  8(%rsp): gprs */
	push	%rdi			/*  0(%rsp): run */

	/* An exit comes back to this frame. */
	cmp	%rsp, RKVM_VMX_RUN_HOST_RSP(%rdi)
	je	.Lstack_known
	mov	%rsp, RKVM_VMX_RUN_HOST_RSP(%rdi)
	mov	$HOST_RSP, %eax
	vmwrite	%rsp, %rax
.Lstack_known:

	/* SPEC_CTRL for the guest. */
	testl	$RKVM_VMX_SPEC_SWITCH, RKVM_VMX_RUN_FLAGS(%rdi)
	jz	.Lspec_guest_done
	mov	RKVM_VMX_RUN_SPEC_GUEST(%rdi), %rax
	cmp	RKVM_VMX_RUN_SPEC_HOST(%rdi), %rax
	je	.Lspec_guest_done
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lspec_guest_done:

	/* Writing CR2 is slow. */
	mov	RKVM_VMX_RUN_CR2(%rdi), %rax
	mov	%cr2, %rcx
	cmp	%rax, %rcx
	je	.Lcr2_done
	mov	%rax, %cr2
.Lcr2_done:

	/* CF: VMRESUME. Neither MOV nor VERW changes it. */
	btl	$0, RKVM_VMX_RUN_FLAGS(%rdi)

	mov	GPR_RAX(%rsi), %rax
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

	/* Processor buffers may hold the host's data. */
	ALTERNATIVE "", __stringify(verw rkvm_vmx_verw_selector(%rip)), X86_FEATURE_CLEAR_CPU_BUF_VM

	/* Exits come back with the stack as it is here. */
	UNWIND_HINT_SAVE
	jnc	.Llaunch
.Lresume:
	vmresume
	jmp	.Lnot_entered
.Llaunch:
	vmlaunch
	jmp	.Lnot_entered

SYM_INNER_LABEL_ALIGN(rkvm_vmx_exit, SYM_L_GLOBAL)
	UNWIND_HINT_RESTORE
	ENDBR

	/* RSP is the host's again, all else is the guest's. */
	push	%rax
	mov	16(%rsp), %rax
	pop	GPR_RAX(%rax)
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
	xor	%ebx, %ebx		/* what is returned */

.Lexited:
	pop	%rdi			/* run */
	mov	%cr2, %rax
	mov	%rax, RKVM_VMX_RUN_CR2(%rdi)

	/* Return predictions are the guest's until here: no RET before. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE

	testl	$RKVM_VMX_SPEC_SWITCH, RKVM_VMX_RUN_FLAGS(%rdi)
	jz	.Lspec_host_done
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	testl	$RKVM_VMX_SPEC_DIRECT, RKVM_VMX_RUN_FLAGS(%rdi)
	jz	.Lspec_known
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, RKVM_VMX_RUN_SPEC_GUEST(%rdi)
.Lspec_known:
	/* Where SPEC_CTRL has to be written for the barrier that it is, it is whatever its value. */
	mov	RKVM_VMX_RUN_SPEC_HOST(%rdi), %rax
	ALTERNATIVE "", "jmp .Lspec_write", X86_FEATURE_KERNEL_IBRS
	cmp	RKVM_VMX_RUN_SPEC_GUEST(%rdi), %rax
	je	.Lspec_host_done
.Lspec_write:
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
.Lspec_host_done:
	/* No return may be speculated on before that is done. */
	ALTERNATIVE "", "lfence", X86_FEATURE_MSR_SPEC_CTRL

	/* Branch history is the guest's: Intel's sequence for processors that want it in software. */
	ALTERNATIVE "jmp .Lbhb_done", "", X86_FEATURE_CLEAR_BHB_VMEXIT
	call	rkvm_vmx_clear_bhb
	lfence
.Lbhb_done:

	mov	%ebx, %eax

	/* The guest's values must not steer what the host speculates on. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	pop	%rbx			/* gprs */
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

.Lnot_entered:
	mov	$1, %ebx
	jmp	.Lexited
	_ASM_EXTABLE(.Lresume, .Lnot_entered)
	_ASM_EXTABLE(.Llaunch, .Lnot_entered)
SYM_FUNC_END(rkvm_vmx_vmenter)

/* Takes some 60 branches, which fill the longest branch history (Intel's guidance on BHI asks for 5 times 5). */
SYM_FUNC_START_LOCAL(rkvm_vmx_clear_bhb)
	mov	$6, %ecx
	jmp	.Lbhb_outer
	.balign 64
.Lbhb_outer:
	mov	$5, %eax
	jmp	.Lbhb_inner
	nop
.Lbhb_inner:
	sub	$1, %eax
	jnz	.Lbhb_back
	sub	$1, %ecx
	jnz	.Lbhb_outer
	RET
.Lbhb_back:
	jmp	.Lbhb_inner
SYM_FUNC_END(rkvm_vmx_clear_bhb)
