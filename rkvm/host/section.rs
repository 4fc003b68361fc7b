// SPDX-License-Identifier: GPL-2.0

//! The guest section: the stretch between leaving and taking back the host's scheduling.
//!
//! Preemption and interrupts are off from [`GuestSection::enter`] to the drop; the time is accounted
//! as guest time. Inside it the guest may be entered many times.

use crate::bindings as rb;
use kernel::{interrupt::LocalInterruptDisabled, types::NotThreadSafe};

/// Preemption and interrupts are off, and guest time runs, as long as this exists.
pub(crate) struct GuestSection(NotThreadSafe);

impl GuestSection {
    /// Begins a section on this CPU.
    #[inline]
    pub(crate) fn enter() -> Self {
        // SAFETY: Called from task context with preemption and interrupts on; undone by `drop`.
        unsafe { rb::rkvm_section_enter() };
        Self(NotThreadSafe)
    }

    /// The CPU that the section runs on.
    #[inline]
    pub(crate) fn cpu(&self) -> u32 {
        // SAFETY: Preemption is off, so the answer stays true.
        unsafe { rb::rkvm_cpu() }
    }

    /// Interrupts are off: locks that see to it themselves need not.
    #[inline]
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn irqs_off(&self) -> &LocalInterruptDisabled {
        // SAFETY: They are as long as `self` exists, which what is returned borrows.
        unsafe { LocalInterruptDisabled::assume_disabled() }
    }

    /// Signals, rescheduling or other work ask to leave before the guest is entered.
    #[inline]
    pub(crate) fn work_pending(&self) -> bool {
        // SAFETY: Interrupts are off, as the check requires.
        unsafe { rb::rkvm_work_pending() }
    }

    /// The first entry follows: RCU need not wait for this CPU.
    #[inline]
    pub(crate) fn quiescent(&self) {
        // SAFETY: Tells RCU what a context switch would; no RCU reader is active when a section begins.
        unsafe { rb::rkvm_section_quiescent() };
    }
}

impl Drop for GuestSection {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `enter` ran on this CPU; no one else can end the section.
        unsafe { rb::rkvm_section_leave() };
    }
}
