// SPDX-License-Identifier: GPL-2.0
/* The trace events, and what Rust calls to hit them. */

#include <linux/ratelimit.h>

#include "helpers_trace.h"

#define CREATE_TRACE_POINTS
#include "trace/rkvm.h"

void rkvm_trace_refused(int error, const char *why)
{
	trace_rkvm_refused(error, why);
}

bool rkvm_may_log(void)
{
	static DEFINE_RATELIMIT_STATE(limit, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&limit);
}

void rkvm_trace_guest_error(const char *why, u64 a, u64 b)
{
	trace_rkvm_guest_error(why, a, b);
}
