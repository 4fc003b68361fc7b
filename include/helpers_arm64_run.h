/* SPDX-License-Identifier: GPL-2.0 */
/* What arm64's entry code needs for one run, shared by assembly, C and (through bindgen) Rust. */
#ifndef RKVM_ARM64_RUN_H
#define RKVM_ARM64_RUN_H

/* Offsets in struct rkvm_arm64_run. */
#define RKVM_ARM64_X(n) (8 * (n))
#define RKVM_ARM64_SP_EL0 248
#define RKVM_ARM64_PC 256
#define RKVM_ARM64_PSTATE 264
#define RKVM_ARM64_ESR 272
#define RKVM_ARM64_FAR 280
#define RKVM_ARM64_HPFAR 288
#define RKVM_ARM64_FLAGS 296
#define RKVM_ARM64_GUEST_KEYS 304
#define RKVM_ARM64_HOST_KEYS 384

/* The guest has pointer authentication: its keys are switched. */
#define RKVM_ARM64_PAUTH_BIT 0

/* Vectors for exits of a guest, by what they do against its training of predictors (model/harden.rs). */
#define RKVM_ARM64_VECTORS_SMC1 2
#define RKVM_ARM64_VECTORS_SMC3 3
#define RKVM_ARM64_VECTORS 10
#define RKVM_ARM64_VECTORS_BYTES 2048

/* How a run ended: which vector of the lower exception level was taken. */
#define RKVM_ARM64_SYNC 0
#define RKVM_ARM64_IRQ 1
#define RKVM_ARM64_FIQ 2
#define RKVM_ARM64_SERROR 3

#ifndef __ASSEMBLY__
#include <linux/types.h>

struct rkvm_arm64_run {
	u64 x[31];
	u64 sp_el0;
	u64 pc;
	u64 pstate;
	u64 esr;	/* of the exit */
	u64 far;
	u64 hpfar;
	u64 flags;
	u64 guest_keys[10];
	u64 host_keys[10];
};

struct rkvm_arm64_fp {
	u64 v[64];
	u64 fpsr;
	u64 fpcr;
};
#endif

#endif
