/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Around a family's entry code: guest_state_enter_irqoff() and guest_state_exit_irqoff(), less RCU's
 * context switch, which rkvm_section_quiescent() is for. Nothing in between may be instrumented.
 */
#ifndef RKVM_GUEST_ENTRY_H
#define RKVM_GUEST_ENTRY_H

#include <linux/context_tracking.h>
#include <linux/instrumentation.h>
#include <linux/irqflags.h>

static __always_inline void rkvm_guest_begins(void)
{
	instrumentation_begin();
	trace_hardirqs_on_prepare();
	lockdep_hardirqs_on_prepare();
	instrumentation_end();

	context_tracking_guest_enter();
	lockdep_hardirqs_on(CALLER_ADDR0);
}

static __always_inline void rkvm_guest_ends(void)
{
	lockdep_hardirqs_off(CALLER_ADDR0);
	context_tracking_guest_exit();

	instrumentation_begin();
	trace_hardirqs_off_finish();
	instrumentation_end();
}

#endif
