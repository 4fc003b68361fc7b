/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into an SVM guest and back.
 *
 * AMD APM vol. 2, 15.5 (VMRUN), 15.17 (GIF), 15.21.1 (V_INTR_MASKING). An ordinary function for
 * objtool and the unwinder.
 */
#include <linux/linkage.h>
#include <asm/asm.h>

#include "helpers_svm_run.h"

	.section .noinstr.text, "ax"

/*
 * int rkvm_svm_vmrun(struct rkvm_svm_run *run, u64 *gprs)
 *
 * Runs the guest until its next exit. IRQs are off. RAX and RSP are in the control block, the
 * other fourteen registers in gprs. Returns 0, or 1 when SVM is off: nothing has happened then.
 *
 * GIF is 0 from CLGI to STGI, so no interrupt, NMI or SMI finds the guest's GS, TR, SPEC_CTRL or
 * return predictions. IF is 1 until VMRUN is done, for host interrupts to end the guest's run.
 * From VMLOAD of the guest to VMLOAD of the host there are no per-CPU variables (GS is the guest's).
 */
SYM_FUNC_START(rkvm_svm_vmrun)
	PUSH_HOST_REGS

.Lclgi:
	clgi
	/* Here, so that VMRUN is out of its shadow, which an exit during an injection saves as the guest's. */
	sti

	SPEC_CTRL_FOR_GUEST
	mov	RKVM_SVM_RUN_VMCB(%rdi), %rax
	vmload	%rax

	LOAD_GUEST_REGS
	CLEAR_CPU_BUFFERS_FOR_GUEST

	vmrun	%rax
	cli

	/* RAX and RSP are the host's again, all else is the guest's. */
	mov	8(%rsp), %rax
	SAVE_GUEST_REGS

	pop	%rdi			/* run */
	mov	RKVM_SVM_RUN_VMCB(%rdi), %rax
	vmsave	%rax
	mov	RKVM_SVM_RUN_HOST(%rdi), %rax
	vmload	%rax

	/* Return predictions are the guest's until here: no RET before. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT

	SPEC_CTRL_FOR_HOST

#if defined(CONFIG_MITIGATION_RETHUNK) || defined(CONFIG_MITIGATION_IBPB_ENTRY)
	/* What UNTRAIN_RET_VM does, with the barrier written out. */
	VALIDATE_UNRET_END
	CALL_UNTRAIN_RET
	ALTERNATIVE "jmp .Libpb_done", "", X86_FEATURE_IBPB_ON_VMEXIT
	mov	$MSR_IA32_PRED_CMD, %ecx
	mov	$PRED_CMD_IBPB, %eax
	xor	%edx, %edx
	wrmsr
.Libpb_done:
#endif

	xor	%eax, %eax
	stgi

	CLEAR_GUEST_REGS
.Lout:
	POP_HOST_REGS
	RET

	/* SVM was turned off under us (reboot, crash): nothing is changed yet but the stack. */
.Loff:
	mov	$1, %eax
	pop	%rdi
	jmp	.Lout
	_ASM_EXTABLE(.Lclgi, .Loff)
SYM_FUNC_END(rkvm_svm_vmrun)

/*
 * int rkvm_svm_save_host(u64 pa)
 *
 * Saves what VMLOAD will bring back (FS, GS, TR, LDTR with their hidden parts, the SYSCALL and
 * SYSENTER MSRs) at pa. Returns 0, or 1 when SVM is off.
 */
SYM_FUNC_START(rkvm_svm_save_host)
	mov	%rdi, %rax
.Lvmsave_host:
	vmsave	%rax
	xor	%eax, %eax
	RET
.Lsave_off:
	mov	$1, %eax
	RET
	_ASM_EXTABLE(.Lvmsave_host, .Lsave_off)
SYM_FUNC_END(rkvm_svm_save_host)
