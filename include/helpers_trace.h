/* SPDX-License-Identifier: GPL-2.0 */
#ifndef RKVM_HELPERS_TRACE_H
#define RKVM_HELPERS_TRACE_H

#include <linux/types.h>

/* rkvm/host/trace.rs */
void rkvm_trace_refused(int error, const char *why);
bool rkvm_may_log(void);
void rkvm_trace_guest_error(const char *why, u64 a, u64 b);

#endif
