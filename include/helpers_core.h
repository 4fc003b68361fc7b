/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/: what the kernel offers only as macros or inline functions. */
#ifndef RKVM_HELPERS_CORE_H
#define RKVM_HELPERS_CORE_H

#include <linux/compiler.h>
#include <linux/types.h>

struct page;
struct file;
struct file_operations;
struct mutex;

/* rkvm/host/run_page.rs */
unsigned long rkvm_page_address(struct page *page);

/* rkvm/host/fd.rs */
struct file *rkvm_anon_file(const char *name, const struct file_operations *fops, void *priv,
			    int flags);

/* rkvm/host/section.rs */
void rkvm_section_enter(void);
void rkvm_section_leave(void);
u32 rkvm_cpu(void);
bool rkvm_work_pending(void);
void rkvm_section_quiescent(void);

/* rkvm/host/work.rs */
bool rkvm_work_pending_racy(void);
int rkvm_handle_work(void);
void rkvm_to_user_space(void);
void rkvm_yield(void);
bool rkvm_killed(void);
u32 rkvm_cpu_hint(void);
u32 rkvm_online_cpus(void);
void rkvm_sigmask_set(u64 set);
void rkvm_sigmask_restore(void);

/* rkvm/host/kick.rs: a waiter and a cross-call of one vCPU; opaque to Rust */
struct rkvm_bell {
	u64 opaque[16];
} __aligned(64);

void rkvm_bell_init(struct rkvm_bell *bell);
void rkvm_bell_ipi(struct rkvm_bell *bell, u32 cpu);
void rkvm_bell_wake(struct rkvm_bell *bell);
void rkvm_bell_wait_begin(struct rkvm_bell *bell);
void rkvm_bell_wait_prepare(void);
void rkvm_bell_wait_end(struct rkvm_bell *bell);
void rkvm_bell_quiesce(struct rkvm_bell *bell);
void rkvm_cpu_sync(u32 cpu);

/* rkvm/host/power.rs */
int rkvm_power_register(int (*cpu_on)(void), void (*cpu_off)(void));
void rkvm_power_unregister(void);

/* rkvm/host/vcpu_lock.rs */
struct rkvm_lock {
	u64 opaque[32];
};

void rkvm_lock_init(struct rkvm_lock *lock);
int rkvm_lock_killable(struct rkvm_lock *lock);
bool rkvm_lock_try(struct rkvm_lock *lock);
void rkvm_lock_release(struct rkvm_lock *lock);

#endif
