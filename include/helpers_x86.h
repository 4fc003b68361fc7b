/* SPDX-License-Identifier: GPL-2.0 */
/* C and assembly helpers of arch/x86. */
#ifndef RKVM_HELPERS_X86_H
#define RKVM_HELPERS_X86_H

#include <linux/types.h>

#include "helpers_svm_run.h"
#include "helpers_vmx_run.h"

/* VMX operation is had by references that the kernel counts (and else beside kvm_intel). */
#ifdef CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS
#define RKVM_VIRT_REFS 1
#endif

/* arch/x86/svm/vmrun.S */
int rkvm_svm_vmrun(struct rkvm_svm_run *run, u64 *gprs);
int rkvm_svm_save_host(u64 pa);

/* arch/x86/vmx/vmenter.S */
int rkvm_vmx_vmenter(struct rkvm_vmx_run *run, u64 *gprs);

/* arch/x86/vmx/helpers.c */
int rkvm_vmx_enter(struct rkvm_vmx_run *run, u64 *gprs);
int rkvm_vmx_load(u64 pa, u64 *before);
void rkvm_vmx_unload(u64 pa, u64 before);
int rkvm_vmx_clear(u64 pa);
int rkvm_vmx_invept(u64 type, u64 eptp);
int rkvm_vmx_invvpid(u64 type, u16 vpid, u64 address);
int rkvm_vmx_hold(void);
void rkvm_vmx_release(void);
bool rkvm_vmx_own(void);
int rkvm_vmx_on(void);
void rkvm_vmx_off(void);
bool rkvm_vmx_usable(void);
void rkvm_vmx_host_constant(struct rkvm_vmx_host *h);
void rkvm_vmx_host_cpu(struct rkvm_vmx_host *h);
void rkvm_vmx_host_task(struct rkvm_vmx_host *h);
void rkvm_vmx_host_restore(const struct rkvm_vmx_host *h);
void rkvm_vmx_host_syscall(struct rkvm_vmx_syscall *s);
void rkvm_vmx_set_syscall(const struct rkvm_vmx_syscall *s, const struct rkvm_vmx_syscall *now);
u64 rkvm_vmx_get_kernel_gs(void);
void rkvm_vmx_set_kernel_gs(u64 v);
u64 rkvm_vmx_get_dr6(void);
void rkvm_vmx_set_dr6(u64 v);
bool rkvm_vmx_apicv(bool possible);
bool rkvm_vmx_wants_l1d_flush(void);
u64 rkvm_vmx_task_events(void);
bool rkvm_vmx_interrupted_since_flush(void);
void rkvm_vmx_flush_l1d(const void *fill, size_t len);

/* arch/x86/helpers.c */
int rkvm_svm_enter(struct rkvm_svm_run *run, u64 *gprs);
void rkvm_kick_self(void);

int rkvm_rdmsr(u32 msr, u64 *value);
int rkvm_wrmsr(u32 msr, u64 value);
int rkvm_xsetbv(u32 index, u64 value);
int rkvm_xrstor(const void *area, u64 mask);
void rkvm_xsave(void *area, u64 mask);
int rkvm_fxrstor(const void *area);
void rkvm_fxsave(void *area);
void rkvm_fpu_begin(void);
void rkvm_fpu_end(void);

u32 rkvm_tsc_khz(void);
u64 rkvm_host_spec_ctrl(void);
bool rkvm_has_spec_ctrl(void);
void rkvm_machine_check(void);
bool rkvm_wants_barriers(void);
void rkvm_guest_has_run(void);
u64 rkvm_host_dr7(void);
u64 rkvm_encryption_mask(void);
bool rkvm_osxsave(void);
bool rkvm_ospke(void);

#endif
