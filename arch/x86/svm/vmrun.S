/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into an SVM guest and back.
 *
 * AMD APM vol. 2, 15.5 (VMRUN), 15.17 (GIF), 15.21.1 (V_INTR_MASKING). An ordinary function for
 * objtool and the unwinder. Symbols that the kernel keeps for KVM (write_ibpb, x86_verw_sel) are
 * not used: the same instructions are written out.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>

#include "helpers_svm_run.h"

/* Offsets of the general registers in the caller's array: 8 times their number. */
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

	.section .rodata
	.balign 2
SYM_DATA_LOCAL(rkvm_verw_selector, .word __KERNEL_DS)

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
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rsi			/*  8(%rsp): gprs */
	push	%rdi			/*  0(%rsp): run */

.Lclgi:
	clgi
	/* Here, so that VMRUN is out of its shadow, which an exit during an injection saves as the guest's. */
	sti

	/* SPEC_CTRL for the guest, where hardware does not switch it. */
	testl	$RKVM_SVM_SPEC_SWITCH, RKVM_SVM_RUN_FLAGS(%rdi)
	jz	.Lspec_guest_done
	mov	RKVM_SVM_RUN_SPEC_GUEST(%rdi), %rax
	cmp	RKVM_SVM_RUN_SPEC_HOST(%rdi), %rax
	je	.Lspec_guest_done
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lspec_guest_done:

	mov	RKVM_SVM_RUN_VMCB(%rdi), %rax
	vmload	%rax

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
	ALTERNATIVE "", __stringify(verw rkvm_verw_selector(%rip)), X86_FEATURE_CLEAR_CPU_BUF_VM

	vmrun	%rax
	cli

	/* RAX and RSP are the host's again, all else is the guest's. */
	mov	8(%rsp), %rax
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

	pop	%rdi			/* run */
	mov	RKVM_SVM_RUN_VMCB(%rdi), %rax
	vmsave	%rax
	mov	RKVM_SVM_RUN_HOST(%rdi), %rax
	vmload	%rax

	/* Return predictions are the guest's until here: no RET before. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT

	testl	$RKVM_SVM_SPEC_SWITCH, RKVM_SVM_RUN_FLAGS(%rdi)
	jz	.Lspec_host_done
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	testl	$RKVM_SVM_SPEC_DIRECT, RKVM_SVM_RUN_FLAGS(%rdi)
	jz	.Lspec_known
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, RKVM_SVM_RUN_SPEC_GUEST(%rdi)
.Lspec_known:
	mov	RKVM_SVM_RUN_SPEC_HOST(%rdi), %rax
	cmp	RKVM_SVM_RUN_SPEC_GUEST(%rdi), %rax
	je	.Lspec_host_done
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
.Lspec_host_done:

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

	/* The guest's values must not steer what the host speculates on. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
.Lout:
	pop	%rbx			/* gprs */
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
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
