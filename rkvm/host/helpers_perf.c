// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/perf.rs: fields of struct perf_event, and inlines. */

#include <linux/err.h>
#include <linux/perf_event.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "helpers_perf.h"

struct rkvm_perf {
	struct perf_event *event;
	void (*overflow)(void *context, bool nmi);
	void *context;
};

static void overflowed(struct perf_event *event, struct perf_sample_data *data,
		       struct pt_regs *regs)
{
	const struct rkvm_perf *perf = event->overflow_handler_context;

	perf->overflow(perf->context, in_nmi());
}

int rkvm_perf_create(const struct rkvm_perf_attr *a, void (*overflow)(void *context, bool nmi),
		     void *context, struct rkvm_perf **out)
{
	struct perf_event_attr attr = {
		.type = a->type,
		.size = sizeof(attr),
		.config = a->config,
		.config1 = a->config1,
		.sample_period = a->period,
		.pinned = 1,
		.exclude_user = !!(a->exclude & RKVM_PERF_NO_USER),
		.exclude_kernel = !!(a->exclude & RKVM_PERF_NO_KERNEL),
		.exclude_hv = 1,
		.exclude_host = 1,
	};
	struct rkvm_perf *perf = kmalloc(sizeof(*perf), GFP_KERNEL_ACCOUNT);
	int ret;

	if (!perf)
		return -ENOMEM;
	perf->overflow = overflow;
	perf->context = context;
	perf->event = perf_event_create_kernel_counter(&attr, -1, current, overflowed, perf);
	if (IS_ERR(perf->event)) {
		ret = PTR_ERR(perf->event);
		kfree(perf);
		return ret;
	}
	*out = perf;
	return 0;
}

void rkvm_perf_release(struct rkvm_perf *perf)
{
	/* Takes it off its CPU, if it is on one: no overflow is told from then on. */
	perf_event_release_kernel(perf->event);
	kfree(perf);
}

bool rkvm_perf_is_current(struct rkvm_perf *perf)
{
	struct perf_event_context *ctx;
	bool is;

	rcu_read_lock();
	ctx = READ_ONCE(perf->event->ctx);
	is = ctx && READ_ONCE(ctx->task) == current;
	rcu_read_unlock();
	return is;
}

u64 rkvm_perf_read(struct rkvm_perf *perf)
{
	u64 enabled, running;

	return perf_event_read_value(perf->event, &enabled, &running);
}

/* While its thread is here, no other CPU can have the event. */
bool rkvm_perf_read_local(struct rkvm_perf *perf, u64 *count)
{
	struct perf_event *event = perf->event;
	unsigned long flags;
	bool mine;

	local_irq_save(flags);
	mine = rkvm_perf_is_current(perf);
	if (mine) {
		if (event->state == PERF_EVENT_STATE_ACTIVE && event->oncpu == smp_processor_id())
			event->pmu->read(event);
		*count = local64_read(&event->count);
	}
	local_irq_restore(flags);
	return mine;
}

void rkvm_perf_enable(struct rkvm_perf *perf)
{
	perf_event_enable(perf->event);
}

void rkvm_perf_disable(struct rkvm_perf *perf)
{
	perf_event_disable(perf->event);
}

int rkvm_perf_period(struct rkvm_perf *perf, u64 period)
{
	return perf_event_period(perf->event, period);
}

int rkvm_perf_hw_index(struct rkvm_perf *perf)
{
	const struct perf_event *event = perf->event;

	if (event->state != PERF_EVENT_STATE_ACTIVE || event->oncpu != smp_processor_id())
		return -1;
	return event->hw.idx;
}
