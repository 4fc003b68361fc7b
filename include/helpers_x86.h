/* SPDX-License-Identifier: GPL-2.0 */
/* C and assembly helpers of arch/x86. */
#ifndef RKVM_HELPERS_X86_H
#define RKVM_HELPERS_X86_H

#include <linux/types.h>

#include "helpers_svm_run.h"

/* arch/x86/svm/vmrun.S */
int rkvm_svm_vmrun(struct rkvm_svm_run *run, u64 *gprs);
int rkvm_svm_save_host(u64 pa);

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
