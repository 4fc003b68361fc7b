// SPDX-License-Identifier: GPL-2.0

//! What a thread owes the kernel before it runs a guest: signals, rescheduling, task work.

use crate::bindings as rb;
use kernel::{error::to_result, prelude::*};

/// Does pending work. May sleep.
///
/// # Errors
/// `EINTR` when a signal waits for user space to take it.
pub(crate) fn handle() -> Result {
    // SAFETY: Called in task context of the vCPU's thread, with interrupts on and no locks held
    // that may not be held while sleeping.
    to_result(unsafe { rb::rkvm_handle_work() })
}

/// Work or a signal is pending; a quick, racy look.
#[inline]
pub(crate) fn pending() -> bool {
    // SAFETY: Reads the current thread's flags.
    unsafe { rb::rkvm_work_pending_racy() }
}

/// The thread returns to user space after a run of a guest, for which it may have done [`handle`]'s work.
#[inline]
pub(crate) fn to_user_space() {
    // SAFETY: Sets a flag of the current thread.
    unsafe { rb::rkvm_to_user_space() };
}

/// Lets other threads run, if any wants to.
pub(crate) fn yield_now() {
    // SAFETY: Task context, no locks held.
    unsafe { rb::rkvm_yield() };
}

/// The thread is being killed: what takes long ends early.
#[allow(dead_code, reason = "not all families ask")]
pub(crate) fn killed() -> bool {
    // SAFETY: No requirement.
    unsafe { rb::rkvm_killed() }
}

/// The CPU that this thread ran on a moment ago.
pub(crate) fn cpu_hint() -> u32 {
    // SAFETY: No requirement.
    unsafe { rb::rkvm_cpu_hint() }
}

/// How many CPUs are online.
pub(crate) fn online_cpus() -> i32 {
    // SAFETY: No requirement.
    i32::try_from(unsafe { rb::rkvm_online_cpus() }).unwrap_or(i32::MAX)
}

/// A signal set, as `KVM_SET_SIGNAL_MASK` takes it.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(u64);

impl SignalSet {
    /// From the 64 bits that user space passes.
    pub(crate) fn new(bits: u64) -> Self {
        Self(bits)
    }
}

/// The thread's signal mask is replaced as long as this exists.
pub(crate) struct Masked(());

impl Masked {
    /// Blocks exactly the signals of `set` (SIGKILL and SIGSTOP never).
    pub(crate) fn new(set: SignalSet) -> Self {
        // SAFETY: Acts on the current thread; undone by `drop`, in the same ioctl.
        unsafe { rb::rkvm_sigmask_set(set.0) };
        Self(())
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: `new` saved the mask of this thread; nothing in between returned to user space.
        unsafe { rb::rkvm_sigmask_restore() };
    }
}
