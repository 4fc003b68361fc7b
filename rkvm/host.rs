// SPDX-License-Identifier: GPL-2.0

//! The only rooms that call the kernel's C functions: safe wrappers, one facility a file.

pub(crate) mod hw_page;
pub(crate) mod percpu;
pub(crate) mod rcu_slot;
