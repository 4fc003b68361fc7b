// SPDX-License-Identifier: GPL-2.0
/*
 * C helpers of arch/x86: the guest-entry glue that must not be instrumented, and instructions that
 * need an exception-table entry.
 */

#include <linux/cpu.h>
#include <linux/cpufeature.h>
#include <linux/kvm_host.h>
#include <linux/mem_encrypt.h>
#include <linux/smp.h>
#include <linux/stddef.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/mce.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/tsc.h>

#include "guest_entry.h"
#include "helpers_x86.h"

static_assert(offsetof(struct rkvm_spec_ctrl, guest) == RKVM_SPEC_CTRL_GUEST);
static_assert(offsetof(struct rkvm_spec_ctrl, host) == RKVM_SPEC_CTRL_HOST);
static_assert(offsetof(struct rkvm_spec_ctrl, flags) == RKVM_SPEC_CTRL_FLAGS);
static_assert(sizeof(struct rkvm_spec_ctrl) == RKVM_SPEC_CTRL_SIZE);
static_assert(offsetof(struct rkvm_svm_run, spec) == 0);
static_assert(offsetof(struct rkvm_svm_run, vmcb) == RKVM_SVM_RUN_VMCB);
static_assert(offsetof(struct rkvm_svm_run, host) == RKVM_SVM_RUN_HOST);

noinstr int rkvm_svm_enter(struct rkvm_svm_run *run, u64 *gprs)
{
	int ret;

	rkvm_guest_begins();
	ret = rkvm_svm_vmrun(run, gprs);
	rkvm_guest_ends();
	return ret;
}

/* A pending interrupt for this CPU: the next VMRUN delivers what is injected, then exits. */
void rkvm_kick_self(void)
{
	arch_smp_send_reschedule(smp_processor_id());
}

int rkvm_rdmsr(u32 msr, u64 *value)
{
	return rdmsrq_safe(msr, value);
}

int rkvm_wrmsr(u32 msr, u64 value)
{
	return wrmsrq_safe(msr, value);
}

int rkvm_xsetbv(u32 index, u64 value)
{
	int err = 0;

	asm volatile("1: xsetbv\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err)
		     : "a" ((u32)value), "d" ((u32)(value >> 32)), "c" (index)
		     : "memory");
	return err;
}

int rkvm_xrstor(const void *area, u64 mask)
{
	int err = 0;

	asm volatile("1: xrstor64 (%[area])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err)
		     : [area] "D" (area), "a" ((u32)mask), "d" ((u32)(mask >> 32))
		     : "memory");
	return err;
}

void rkvm_xsave(void *area, u64 mask)
{
	asm volatile("xsave64 (%0)"
		     : : "D" (area), "a" ((u32)mask), "d" ((u32)(mask >> 32)) : "memory");
}

int rkvm_fxrstor(const void *area)
{
	int err = 0;

	asm volatile("1: fxrstor64 (%[area])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err)
		     : [area] "D" (area)
		     : "memory");
	return err;
}

void rkvm_fxsave(void *area)
{
	asm volatile("fxsave64 (%0)" : : "D" (area) : "memory");
}

/* IRQs are off, and stay off until rkvm_fpu_end(). */
void rkvm_fpu_begin(void)
{
	kernel_fpu_begin_mask(0);
}

void rkvm_fpu_end(void)
{
	kernel_fpu_end();
}

/* The value that this CPU runs the host with. */
u64 rkvm_host_spec_ctrl(void)
{
	return this_cpu_read(x86_spec_ctrl_current);
}

bool rkvm_has_spec_ctrl(void)
{
	return boot_cpu_has(X86_FEATURE_MSR_SPEC_CTRL);
}

/* A machine check hit while the guest ran. Which ring the guest was in says nothing to the host. */
void rkvm_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = { .cs = 3, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

bool rkvm_wants_barriers(void)
{
	return boot_cpu_has(X86_FEATURE_IBPB) && !cpu_mitigations_off();
}

/* The flag makes the exit to user mode do a prediction barrier, where the CPU needs one (VMSCAPE). */
void rkvm_guest_has_run(void)
{
	if (boot_cpu_has(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
}

/* DR7 as the host's breakpoints want it on this CPU. */
u64 rkvm_host_dr7(void)
{
	return this_cpu_read(cpu_dr7);
}

/* The address bit of encrypted memory, 0 without. */
u64 rkvm_encryption_mask(void)
{
	return __sme_set(0ULL);
}

bool rkvm_osxsave(void)
{
	return boot_cpu_has(X86_FEATURE_OSXSAVE);
}

bool rkvm_ospke(void)
{
	return boot_cpu_has(X86_FEATURE_OSPKE);
}

u32 rkvm_tsc_khz(void)
{
	return tsc_khz;
}
