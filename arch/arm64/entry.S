/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into a guest at EL1 and back to EL2 (VHE).
 *
 * Arm ARM (DDI 0487) D1.3 (exceptions), D13.1 (VHE's redirection of register names). An ordinary
 * function between C and the guest: what the callee has to keep waits on the stack, with what only
 * this code changes (DAIF, VBAR, SP_EL0, which is the host's current task).
 */
#include <linux/linkage.h>
#include <linux/arm-smccc.h>
#include <asm/alternative.h>
#include <asm/assembler.h>
#include <asm/sysreg.h>

#include "helpers_arm64_run.h"

	.section .noinstr.text, "ax"

	/* The five keys of pointer authentication, to or from memory at \base. */
	.macro	keys_save base, offset
	mrs_s	x9, SYS_APIAKEYLO_EL1
	mrs_s	x10, SYS_APIAKEYHI_EL1
	stp	x9, x10, [\base, #\offset]
	mrs_s	x9, SYS_APIBKEYLO_EL1
	mrs_s	x10, SYS_APIBKEYHI_EL1
	stp	x9, x10, [\base, #(\offset + 16)]
	mrs_s	x9, SYS_APDAKEYLO_EL1
	mrs_s	x10, SYS_APDAKEYHI_EL1
	stp	x9, x10, [\base, #(\offset + 32)]
	mrs_s	x9, SYS_APDBKEYLO_EL1
	mrs_s	x10, SYS_APDBKEYHI_EL1
	stp	x9, x10, [\base, #(\offset + 48)]
	mrs_s	x9, SYS_APGAKEYLO_EL1
	mrs_s	x10, SYS_APGAKEYHI_EL1
	stp	x9, x10, [\base, #(\offset + 64)]
	.endm

	.macro	keys_load base, offset
	ldp	x9, x10, [\base, #\offset]
	msr_s	SYS_APIAKEYLO_EL1, x9
	msr_s	SYS_APIAKEYHI_EL1, x10
	ldp	x9, x10, [\base, #(\offset + 16)]
	msr_s	SYS_APIBKEYLO_EL1, x9
	msr_s	SYS_APIBKEYHI_EL1, x10
	ldp	x9, x10, [\base, #(\offset + 32)]
	msr_s	SYS_APDAKEYLO_EL1, x9
	msr_s	SYS_APDAKEYHI_EL1, x10
	ldp	x9, x10, [\base, #(\offset + 48)]
	msr_s	SYS_APDBKEYLO_EL1, x9
	msr_s	SYS_APDBKEYHI_EL1, x10
	ldp	x9, x10, [\base, #(\offset + 64)]
	msr_s	SYS_APGAKEYLO_EL1, x9
	msr_s	SYS_APGAKEYHI_EL1, x10
	.endm

/*
 * int rkvm_arm64_vcpu_run(struct rkvm_arm64_run *run, unsigned long vectors)
 *
 * Runs the guest until an exception to EL2 by these vectors; says which (RKVM_ARM64_*). IRQs are off; EL1's
 * registers, stage 2 and HCR_EL2 are the guest's already.
 */
SYM_FUNC_START(rkvm_arm64_vcpu_run)
	stp	x29, x30, [sp, #-16]!
	mov	x29, sp
	stp	x27, x28, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x19, x20, [sp, #-16]!
	mrs	x4, daif
	msr	daifset, #0xf
	mrs	x2, vbar_el1
	stp	x4, x2, [sp, #-16]!
	mrs	x3, sp_el0
	stp	x0, x3, [sp, #-16]!		/* the exit finds this */

	msr	vbar_el1, x1
	ldp	x5, x6, [x0, #RKVM_ARM64_PC]
	msr	elr_el1, x5
	msr	spsr_el1, x6
	ldr	x7, [x0, #RKVM_ARM64_SP_EL0]
	msr	sp_el0, x7

	ldr	x8, [x0, #RKVM_ARM64_FLAGS]
	tbz	x8, #RKVM_ARM64_PAUTH_BIT, 1f
	keys_save x0, RKVM_ARM64_HOST_KEYS
	keys_load x0, RKVM_ARM64_GUEST_KEYS
1:
	ldp	x2, x3, [x0, #RKVM_ARM64_X(2)]
	ldp	x4, x5, [x0, #RKVM_ARM64_X(4)]
	ldp	x6, x7, [x0, #RKVM_ARM64_X(6)]
	ldp	x8, x9, [x0, #RKVM_ARM64_X(8)]
	ldp	x10, x11, [x0, #RKVM_ARM64_X(10)]
	ldp	x12, x13, [x0, #RKVM_ARM64_X(12)]
	ldp	x14, x15, [x0, #RKVM_ARM64_X(14)]
	ldp	x16, x17, [x0, #RKVM_ARM64_X(16)]
	ldp	x18, x19, [x0, #RKVM_ARM64_X(18)]
	ldp	x20, x21, [x0, #RKVM_ARM64_X(20)]
	ldp	x22, x23, [x0, #RKVM_ARM64_X(22)]
	ldp	x24, x25, [x0, #RKVM_ARM64_X(24)]
	ldp	x26, x27, [x0, #RKVM_ARM64_X(26)]
	ldp	x28, x29, [x0, #RKVM_ARM64_X(28)]
	ldr	x30, [x0, #RKVM_ARM64_X(30)]
	ldp	x0, x1, [x0, #RKVM_ARM64_X(0)]
	eret
	dsb	nsh
	isb
SYM_FUNC_END(rkvm_arm64_vcpu_run)

/* The guest has stopped: its x0 and x1 are on the stack, x1 says why. Ends rkvm_arm64_vcpu_run. */
SYM_CODE_START_LOCAL(guest_exit)
	ldr	x0, [sp, #16]
	stp	x2, x3, [x0, #RKVM_ARM64_X(2)]
	stp	x4, x5, [x0, #RKVM_ARM64_X(4)]
	stp	x6, x7, [x0, #RKVM_ARM64_X(6)]
	stp	x8, x9, [x0, #RKVM_ARM64_X(8)]
	stp	x10, x11, [x0, #RKVM_ARM64_X(10)]
	stp	x12, x13, [x0, #RKVM_ARM64_X(12)]
	stp	x14, x15, [x0, #RKVM_ARM64_X(14)]
	stp	x16, x17, [x0, #RKVM_ARM64_X(16)]
	stp	x18, x19, [x0, #RKVM_ARM64_X(18)]
	stp	x20, x21, [x0, #RKVM_ARM64_X(20)]
	stp	x22, x23, [x0, #RKVM_ARM64_X(22)]
	stp	x24, x25, [x0, #RKVM_ARM64_X(24)]
	stp	x26, x27, [x0, #RKVM_ARM64_X(26)]
	stp	x28, x29, [x0, #RKVM_ARM64_X(28)]
	str	x30, [x0, #RKVM_ARM64_X(30)]
	ldp	x2, x3, [sp], #16
	stp	x2, x3, [x0, #RKVM_ARM64_X(0)]

	mrs	x2, elr_el1
	mrs	x3, spsr_el1
	stp	x2, x3, [x0, #RKVM_ARM64_PC]
	mrs	x4, sp_el0
	str	x4, [x0, #RKVM_ARM64_SP_EL0]
	mrs	x5, esr_el1
	mrs	x6, far_el1
	stp	x5, x6, [x0, #RKVM_ARM64_ESR]
	mrs_s	x7, SYS_HPFAR_EL2
	str	x7, [x0, #RKVM_ARM64_HPFAR]

	ldr	x8, [x0, #RKVM_ARM64_FLAGS]
	tbz	x8, #RKVM_ARM64_PAUTH_BIT, 1f
	keys_save x0, RKVM_ARM64_GUEST_KEYS
	keys_load x0, RKVM_ARM64_HOST_KEYS
1:
	ldp	x0, x3, [sp], #16
	msr	sp_el0, x3
	ldp	x4, x5, [sp], #16
	msr	vbar_el1, x5
	isb
	ALTERNATIVE(nop, SET_PSTATE_PAN(1), ARM64_HAS_PAN)
	msr	daif, x4
	ldp	x19, x20, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x29, x30, [sp], #16
	mov	w0, w1
	ret
SYM_CODE_END(guest_exit)

	/*
	 * Against what a guest has taught the predictors, before any branch that could be predicted by it. x0 and x1
	 * are saved.
	 */
	.macro	harden_plain
	.endm

	/* CLRBHB (Arm ARM C6.2), a hint to the assembler. */
	.macro	harden_clear
	hint	#22
	isb
	.endm

	/* Arm's "Spectre-BHB": so many taken branches push the guest's history out. */
	.macro	harden_loop count
	mov	x0, #\count
.Lback\@:
	b	.Lnext\@
.Lnext\@:
	subs	x0, x0, #1
	b.ne	.Lback\@
	dsb	nsh
	isb
	.endm

	/* The firmware does it; x4 and up are kept (DEN 0028, 2.6). */
	.macro	harden_smc function
	stp	x2, x3, [sp, #-16]!
	mov	w0, #\function
	smc	#0
	ldp	x2, x3, [sp], #16
	.endm

	/* From the guest: both execution states end alike. */
	.macro	from_guest why, harden:vararg
	.align	7
	stp	x0, x1, [sp, #-16]!
	\harden
	mov	x1, #\why
	b	guest_exit
	.endm

	/* From this code itself, which raises nothing: tell, with the host's own vectors back. */
	.macro	from_here
	.align	7
	adr_l	x0, rkvm_arm64_host_vbar
	ldr	x0, [x0]
	msr	vbar_el1, x0
	isb
	bl	rkvm_arm64_unexpected
	.endm

	.macro	vectors harden:vararg
	.align	11
	.rept	8
	from_here
	.endr
	.rept	2
	from_guest RKVM_ARM64_SYNC, \harden
	from_guest RKVM_ARM64_IRQ, \harden
	from_guest RKVM_ARM64_FIQ, \harden
	from_guest RKVM_ARM64_SERROR, \harden
	.endr
	.endm

	/* In the order of model/harden.rs. */
	.align	11
SYM_CODE_START(rkvm_arm64_vectors)
	vectors	harden_plain
	vectors	harden_clear
	vectors	harden_smc ARM_SMCCC_ARCH_WORKAROUND_1
	vectors	harden_smc ARM_SMCCC_ARCH_WORKAROUND_3
	.irp	count, 8, 11, 24, 32, 38, 132
	vectors	harden_loop \count
	.endr
	.org	rkvm_arm64_vectors + RKVM_ARM64_VECTORS * RKVM_ARM64_VECTORS_BYTES	/* no more than that */
SYM_CODE_END(rkvm_arm64_vectors)

	.arch_extension fp
	.arch_extension simd

	.macro	for_all_v insn
	\insn	q0, q1, [x0, #0]
	\insn	q2, q3, [x0, #32]
	\insn	q4, q5, [x0, #64]
	\insn	q6, q7, [x0, #96]
	\insn	q8, q9, [x0, #128]
	\insn	q10, q11, [x0, #160]
	\insn	q12, q13, [x0, #192]
	\insn	q14, q15, [x0, #224]
	\insn	q16, q17, [x0, #256]
	\insn	q18, q19, [x0, #288]
	\insn	q20, q21, [x0, #320]
	\insn	q22, q23, [x0, #352]
	\insn	q24, q25, [x0, #384]
	\insn	q26, q27, [x0, #416]
	\insn	q28, q29, [x0, #448]
	\insn	q30, q31, [x0, #480]
	.endm

/* void rkvm_arm64_fp_load(const struct rkvm_arm64_fp *fp): between kernel_neon_begin and _end. */
SYM_FUNC_START(rkvm_arm64_fp_load)
	for_all_v ldp
	ldr	x1, [x0, #512]
	msr	fpsr, x1
	ldr	x1, [x0, #520]
	msr	fpcr, x1
	ret
SYM_FUNC_END(rkvm_arm64_fp_load)

/* void rkvm_arm64_fp_save(struct rkvm_arm64_fp *fp): likewise. */
SYM_FUNC_START(rkvm_arm64_fp_save)
	for_all_v stp
	mrs	x1, fpsr
	str	x1, [x0, #512]
	mrs	x1, fpcr
	str	x1, [x0, #520]
	ret
SYM_FUNC_END(rkvm_arm64_fp_save)

	.arch_extension sve

	.macro	for_all_z insn
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	\insn	z\n, [x0, #\n, mul vl]
	.endr
	.endm

	.macro	for_all_p insn
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	\insn	p\n, [x2, #\n, mul vl]
	.endr
	.endm

/*
 * void rkvm_arm64_sve_load(const void *sve, const struct rkvm_arm64_fp *fp): Z0 to Z31, P0 to P15
 * and FFR, one behind the other, as long as ZCR_EL2 makes them; FPSR and FPCR of fp.
 */
SYM_FUNC_START(rkvm_arm64_sve_load)
	for_all_z ldr
	addvl	x2, x0, #16
	addvl	x2, x2, #16
	ldr	p0, [x2, #16, mul vl]
	wrffr	p0.b
	for_all_p ldr
	ldr	x2, [x1, #512]
	msr	fpsr, x2
	ldr	x2, [x1, #520]
	msr	fpcr, x2
	ret
SYM_FUNC_END(rkvm_arm64_sve_load)

/* void rkvm_arm64_sve_save(void *sve, struct rkvm_arm64_fp *fp): likewise. */
SYM_FUNC_START(rkvm_arm64_sve_save)
	for_all_z str
	addvl	x2, x0, #16
	addvl	x2, x2, #16
	for_all_p str
	rdffr	p0.b
	str	p0, [x2, #16, mul vl]
	mrs	x2, fpsr
	str	x2, [x1, #512]
	mrs	x2, fpcr
	str	x2, [x1, #520]
	ret
SYM_FUNC_END(rkvm_arm64_sve_save)

/* u64 rkvm_arm64_rdvl(void): quadwords of a vector. */
SYM_FUNC_START(rkvm_arm64_rdvl)
	rdvl	x0, #1
	lsr	x0, x0, #4
	ret
SYM_FUNC_END(rkvm_arm64_rdvl)
