/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into a VMX guest and back.
 *
 * Intel SDM vol. 3C, chapters 28 (entries) and 29 (exits).
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/unwind_hints.h>

#include "helpers_vmx_run.h"

/* The field of the host's stack pointer. */
#define HOST_RSP 0x6c14

	.section .noinstr.text, "ax"

/*
 * int rkvm_vmx_vmenter(struct rkvm_vmx_run *run, u64 *gprs)
 *
 * Runs the guest of the current VMCS until its next exit. IRQs are off. RSP is in the VMCS, the other
 * fifteen registers in gprs. Returns 0, or 1 if the processor did not begin to enter (VMfail, or VMX
 * is off): nothing has happened then.
 */
SYM_FUNC_START(rkvm_vmx_vmenter)
	PUSH_HOST_REGS

	/* An exit comes back to this frame. */
	cmp	%rsp, RKVM_VMX_RUN_HOST_RSP(%rdi)
	je	.Lstack_known
	mov	%rsp, RKVM_VMX_RUN_HOST_RSP(%rdi)
	mov	$HOST_RSP, %eax
	vmwrite	%rsp, %rax
.Lstack_known:

	SPEC_CTRL_FOR_GUEST

	/* Writing CR2 is slow. */
	mov	RKVM_VMX_RUN_CR2(%rdi), %rax
	mov	%cr2, %rcx
	cmp	%rax, %rcx
	je	.Lcr2_done
	mov	%rax, %cr2
.Lcr2_done:

	/* CF: VMRESUME. Neither MOV nor VERW changes it. */
	btl	$0, RKVM_VMX_RUN_LAUNCHED(%rdi)

	mov	GPR_RAX(%rsi), %rax
	LOAD_GUEST_REGS
	CLEAR_CPU_BUFFERS_FOR_GUEST

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
	SAVE_GUEST_REGS
	xor	%ebx, %ebx		/* what is returned */

.Lexited:
	pop	%rdi			/* run */
	mov	%cr2, %rax
	mov	%rax, RKVM_VMX_RUN_CR2(%rdi)

	/* Return predictions are the guest's until here: no RET before. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE

	SPEC_CTRL_FOR_HOST
	/* No return may be speculated on before that is done. */
	ALTERNATIVE "", "lfence", X86_FEATURE_MSR_SPEC_CTRL

	/* Branch history is the guest's: Intel's sequence for processors that want it in software. */
	ALTERNATIVE "jmp .Lbhb_done", "", X86_FEATURE_CLEAR_BHB_VMEXIT
	call	rkvm_vmx_clear_bhb
	lfence
.Lbhb_done:

	mov	%ebx, %eax

	CLEAR_GUEST_REGS
	POP_HOST_REGS
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
