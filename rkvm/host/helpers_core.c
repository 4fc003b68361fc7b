// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/: thin wrappers of kernel macros and inlines, no logic of their own. */

#include <linux/anon_inodes.h>
#include <linux/context_tracking.h>
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/entry-virt.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcuwait.h>
#include <linux/rseq.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>

#include "helpers_core.h"

unsigned long rkvm_page_address(struct page *page)
{
	return (unsigned long)page_address(page);
}

struct file *rkvm_anon_file(const char *name, const struct file_operations *fops, void *priv,
			    int flags)
{
	return anon_inode_getfile(name, fops, priv, flags);
}

/* Guest sections */

void rkvm_section_enter(void)
{
	preempt_disable();
	local_irq_disable();
	xfer_to_guest_mode_prepare();
	guest_timing_enter_irqoff();
}

void rkvm_section_leave(void)
{
	/*
	 * A tick that is pending belongs to the guest's time: take it before the accounting is
	 * switched back. x86 takes none before the instruction after STI is done, which would be CLI.
	 */
	local_irq_enable();
	(void)READ_ONCE(current->flags);
	local_irq_disable();
	guest_timing_exit_irqoff();
	local_irq_enable();
	preempt_enable();
}

u32 rkvm_cpu(void)
{
	return smp_processor_id();
}

/*
 * Once in a guest section, before its first entry: without context tracking a run of the guest is
 * told to RCU as a context switch. Once is enough, as any interrupt ends the section.
 */
void rkvm_section_quiescent(void)
{
	if (!context_tracking_enabled_this_cpu())
		rcu_virt_note_context_switch();
}

bool rkvm_work_pending(void)
{
	return xfer_to_guest_mode_work_pending();
}

/* Work and signals */

bool rkvm_work_pending_racy(void)
{
	return __xfer_to_guest_mode_work_pending();
}

int rkvm_handle_work(void)
{
	if (!__xfer_to_guest_mode_work_pending())
		return 0;
	return xfer_to_guest_mode_handle_work();
}

/* Where TIF_NOTIFY_RESUME is rseq's too, the work above has cleared it, and done nothing for rseq. */
void rkvm_to_user_space(void)
{
	rseq_virt_userspace_exit();
}

void rkvm_yield(void)
{
	cond_resched();
}

bool rkvm_killed(void)
{
	return fatal_signal_pending(current);
}

u32 rkvm_cpu_hint(void)
{
	return raw_smp_processor_id();
}

u32 rkvm_online_cpus(void)
{
	return num_online_cpus();
}

void rkvm_sigmask_set(u64 bits)
{
	sigset_t set;

	siginitset(&set, 0);
	BUILD_BUG_ON(sizeof(set) < sizeof(bits));
	set.sig[0] = bits;
	sigdelsetmask(&set, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &set, &current->real_blocked);
}

void rkvm_sigmask_restore(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}

/* Bells */

struct bell {
	struct rcuwait wait;
	call_single_data_t csd;
};

static_assert(sizeof(struct bell) <= sizeof(struct rkvm_bell));
static_assert(__alignof__(struct bell) <= __alignof__(struct rkvm_bell));

static struct bell *bell_of(struct rkvm_bell *b)
{
	return (struct bell *)b;
}

static void nothing(void *unused)
{
}

void rkvm_bell_init(struct rkvm_bell *b)
{
	rcuwait_init(&bell_of(b)->wait);
	INIT_CSD(&bell_of(b)->csd, nothing, NULL);
}

void rkvm_bell_ipi(struct rkvm_bell *b, u32 cpu)
{
	preempt_disable();
	/* -EBUSY: an interrupt is on its way already. */
	if (cpu != smp_processor_id() && cpu_online(cpu))
		smp_call_function_single_async(cpu, &bell_of(b)->csd);
	preempt_enable();
}

void rkvm_bell_wake(struct rkvm_bell *b)
{
	rcuwait_wake_up(&bell_of(b)->wait);
}

void rkvm_bell_wait_begin(struct rkvm_bell *b)
{
	prepare_to_rcuwait(&bell_of(b)->wait);
}

void rkvm_bell_wait_prepare(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
}

void rkvm_bell_wait_end(struct rkvm_bell *b)
{
	finish_rcuwait(&bell_of(b)->wait);
}

void rkvm_bell_quiesce(struct rkvm_bell *b)
{
	while (READ_ONCE(bell_of(b)->csd.node.u_flags) & CSD_FLAG_LOCK)
		cpu_relax();
}

void rkvm_cpu_sync(u32 cpu)
{
	preempt_disable();
	if (cpu != smp_processor_id() && cpu_online(cpu))
		smp_call_function_single(cpu, nothing, NULL, 1);
	preempt_enable();
}

/* Turning the virtualization hardware on and off with the CPUs */

static int (*power_cpu_on)(void);
static void (*power_cpu_off)(void);
static int power_state;

static int power_online(unsigned int cpu)
{
	unsigned long flags;
	int ret;

	local_irq_save(flags);
	ret = power_cpu_on();
	local_irq_restore(flags);
	return ret;
}

static int power_offline(unsigned int cpu)
{
	unsigned long flags;

	local_irq_save(flags);
	power_cpu_off();
	local_irq_restore(flags);
	return 0;
}

static int power_suspend(void *data)
{
	power_cpu_off();
	return 0;
}

static void power_resume(void *data)
{
	power_cpu_on();
}

static void power_off_one(void *unused)
{
	power_cpu_off();
}

static void power_shutdown(void *data)
{
	on_each_cpu(power_off_one, NULL, 1);
}

static const struct syscore_ops power_syscore_ops = {
	.suspend = power_suspend,
	.resume = power_resume,
	.shutdown = power_shutdown,
};

static struct syscore power_syscore = {
	.ops = &power_syscore_ops,
};

int rkvm_power_register(int (*cpu_on)(void), void (*cpu_off)(void))
{
	int ret;

	power_cpu_on = cpu_on;
	power_cpu_off = cpu_off;
	ret = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "virt/rkvm:online", power_online,
				power_offline);
	if (ret < 0)
		return ret;
	power_state = ret;
	register_syscore(&power_syscore);
	return 0;
}

void rkvm_power_unregister(void)
{
	unregister_syscore(&power_syscore);
	cpuhp_remove_state(power_state);
}

/* The vCPU's lock */

static_assert(sizeof(struct mutex) <= sizeof(struct rkvm_lock));

void rkvm_lock_init(struct rkvm_lock *lock)
{
	mutex_init((struct mutex *)lock);
}

int rkvm_lock_killable(struct rkvm_lock *lock)
{
	return mutex_lock_killable((struct mutex *)lock);
}

bool rkvm_lock_try(struct rkvm_lock *lock)
{
	return mutex_trylock((struct mutex *)lock);
}

void rkvm_lock_release(struct rkvm_lock *lock)
{
	mutex_unlock((struct mutex *)lock);
}
