/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/perf.rs. */
#ifndef RKVM_HELPERS_PERF_H
#define RKVM_HELPERS_PERF_H

#include <linux/types.h>

/* A performance event of the kernel. */
struct rkvm_perf;

/* What is not counted. */
#define RKVM_PERF_NO_USER 1
#define RKVM_PERF_NO_KERNEL 2

struct rkvm_perf_attr {
	u32 type;
	u32 exclude;	/* RKVM_PERF_NO_* */
	u64 config;
	u64 config1;
	u64 period;
};

/*
 * A running counter of the current thread's guests, in which the host's own work does not count. overflow is called with
 * context in interrupts, NMIs too.
 */
int rkvm_perf_create(const struct rkvm_perf_attr *attr, void (*overflow)(void *context, bool nmi),
		     void *context, struct rkvm_perf **perf);
void rkvm_perf_release(struct rkvm_perf *perf);
bool rkvm_perf_is_current(struct rkvm_perf *perf);
u64 rkvm_perf_read(struct rkvm_perf *perf);
/* The same without sleeping, for the thread that the counter belongs to; false: for others. */
bool rkvm_perf_read_local(struct rkvm_perf *perf, u64 *count);
void rkvm_perf_enable(struct rkvm_perf *perf);
void rkvm_perf_disable(struct rkvm_perf *perf);
int rkvm_perf_period(struct rkvm_perf *perf, u64 period);
/* Its number among this CPU's hardware counters, or -1. Interrupts are off. */
int rkvm_perf_hw_index(struct rkvm_perf *perf);

#endif
