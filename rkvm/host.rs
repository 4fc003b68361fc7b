// SPDX-License-Identifier: GPL-2.0

//! The only rooms that call the kernel's C functions: safe wrappers, one facility a file.

pub(crate) mod eventfd;
pub(crate) mod fd;
pub(crate) mod grow_vec;
pub(crate) mod hw_page;
pub(crate) mod kick;
pub(crate) mod mm;
pub(crate) mod percpu;
#[allow(dead_code, reason = "not all families ask")]
pub(crate) mod perf;
pub(crate) mod power;
pub(crate) mod rcu_slot;
pub(crate) mod run_page;
pub(crate) mod rwlock;
pub(crate) mod section;
pub(crate) mod srcu_cell;
pub(crate) mod table_page;
pub(crate) mod trace;
pub(crate) mod uapi;
pub(crate) mod vcpu_lock;
pub(crate) mod work;
pub(crate) mod workqueue;
