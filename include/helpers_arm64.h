/* SPDX-License-Identifier: GPL-2.0 */
/* C and assembly helpers of arch/arm64. */
#ifndef RKVM_HELPERS_ARM64_H
#define RKVM_HELPERS_ARM64_H

#include <linux/types.h>

#include "helpers_arm64_run.h"

/* arch/arm64/entry.S */
int rkvm_arm64_vcpu_run(struct rkvm_arm64_run *run, unsigned long vectors);
void rkvm_arm64_fp_load(const struct rkvm_arm64_fp *fp);
void rkvm_arm64_fp_save(struct rkvm_arm64_fp *fp);
void rkvm_arm64_sve_load(const void *sve, const struct rkvm_arm64_fp *fp);
void rkvm_arm64_sve_save(void *sve, struct rkvm_arm64_fp *fp);
u64 rkvm_arm64_rdvl(void);

/* arch/arm64/helpers.c */
int rkvm_arm64_enter(struct rkvm_arm64_run *run);
void rkvm_arm64_fpu_begin(void);
void rkvm_arm64_fpu_end(void);
bool rkvm_arm64_in_hyp(void);
u64 rkvm_arm64_ftr(u32 sysreg);
u16 rkvm_arm64_sve_lengths(void);
void rkvm_arm64_random(u64 *words, size_t n);
u64 rkvm_arm64_run_delay(void);
bool rkvm_arm64_clock(u64 *ns, u64 *count);
void rkvm_arm64_clean_poc(u64 pa, u64 size);
int rkvm_arm64_set_vectors(u32 n);
bool rkvm_arm64_firmware(u32 function, s32 *x0);
bool rkvm_arm64_mitigations_off(void);
int rkvm_arm64_vectors_wanted(void);
void rkvm_arm64_sync_icache(u64 pa, u64 size);

/* The interrupts that virtualization needs of the host. Numbers are Linux's; 0: none. */
struct rkvm_arm64_irqs {
	u32 vtimer;
	u32 maintenance;
	u32 vtimer_intid;
	u32 gic_v3;	/* 1: the host's interrupt controller is a GICv3 */
};

int rkvm_arm64_find_irqs(struct rkvm_arm64_irqs *irqs);
int rkvm_arm64_request_irqs(const struct rkvm_arm64_irqs *irqs);
void rkvm_arm64_free_irqs(void);
void rkvm_arm64_irqs_on(void);
void rkvm_arm64_irqs_off(void);
int rkvm_arm64_vtimer_active(bool active);

/* A PMU of the host's CPUs. */
struct rkvm_arm64_pmu {
	u64 pmceid[2];	/* PMCEID0_EL0, PMCEID1_EL0 */
	u32 type;	/* its number in the kernel */
	u32 version;	/* ID_AA64DFR0_EL1.PMUVer */
	u32 counters;	/* event counters */
	u32 slots;	/* PMMIR_EL1.SLOTS */
};

/* That of a CPU; -ENODEV: it is not known, or no PMUv3. May sleep. */
int rkvm_arm64_find_pmu(u32 cpu, struct rkvm_arm64_pmu *pmu);

#endif
