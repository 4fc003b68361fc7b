/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events of rkvm (events/rkvm/ in tracefs): why something was refused or went wrong. The
 * hot path has none that costs anything while it is off.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rkvm

#if !defined(RKVM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define RKVM_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(rkvm_refused,
	TP_PROTO(int error, const char *why),
	TP_ARGS(error, why),
	TP_STRUCT__entry(
		__field(int, error)
		__string(why, why)
	),
	TP_fast_assign(
		__entry->error = error;
		__assign_str(why);
	),
	TP_printk("error=%d: %s", __entry->error, __get_str(why))
);

TRACE_EVENT(rkvm_guest_error,
	TP_PROTO(const char *why, u64 a, u64 b),
	TP_ARGS(why, a, b),
	TP_STRUCT__entry(
		__string(why, why)
		__field(u64, a)
		__field(u64, b)
	),
	TP_fast_assign(
		__assign_str(why);
		__entry->a = a;
		__entry->b = b;
	),
	TP_printk("%s: %#llx %#llx", __get_str(why), __entry->a, __entry->b)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE rkvm
#include <trace/define_trace.h>
