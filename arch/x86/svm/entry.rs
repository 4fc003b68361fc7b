// SPDX-License-Identifier: GPL-2.0

//! Entry code: the only unsafe part of the SVM backend, around vmrun.S.

use super::msrpm::{Iopm, Msrpm};
use super::vmcb::Vmcb;
use crate::arch::x86::{model::regs::Gprs, spec_ctrl::SpecCtrl};
use crate::bindings;
use crate::host::hw_page::{HwLayout, HwPage};
use kernel::prelude::*;

// SAFETY: Integers only, without padding (checked with its offsets); hardware writes it in VMRUN.
unsafe impl HwLayout for Vmcb {}
// SAFETY: Plain bytes.
unsafe impl HwLayout for Msrpm {}
// SAFETY: Plain bytes.
unsafe impl HwLayout for Iopm {}

/// The parameters of an entry, kept from one to the next.
pub(super) struct Run(bindings::rkvm_svm_run);

impl Run {
    /// For this control block, which must live as long.
    pub(super) fn new(vmcb: &HwPage<Vmcb>, encryption: u64) -> Self {
        Self(bindings::rkvm_svm_run {
            spec: SpecCtrl::default(),
            vmcb: vmcb.phys() | encryption,
            host: 0,
        })
    }

    /// A section begins: saves the host's state of this CPU in `page`.
    ///
    /// # Errors
    /// `EIO`: SVM is off here.
    pub(super) fn save_host(&mut self, page: &HwPage<Vmcb>, encryption: u64) -> Result {
        self.0.host = 0;
        let pa = page.phys() | encryption;
        // SAFETY: The page is this CPU's own, and as large as VMSAVE needs.
        if unsafe { bindings::rkvm_svm_save_host(pa) } != 0 {
            return Err(EIO);
        }
        self.0.host = pa;
        Ok(())
    }

    /// The section ends: no entry until the next [`Run::save_host`].
    pub(super) fn forget_host(&mut self) {
        self.0.host = 0;
    }

    /// How SPEC_CTRL is switched.
    pub(super) fn spec_ctrl(&mut self) -> &mut SpecCtrl {
        &mut self.0.spec
    }

    /// The guest's SPEC_CTRL, when the entry code switches it.
    pub(super) fn spec_guest(&self) -> u64 {
        self.0.spec.guest
    }

    /// Runs the guest until its next exit.
    ///
    /// # Errors
    /// `EIO`: not in a section, or SVM has been turned off under us (reboot, crash).
    #[inline]
    pub(super) fn enter(&mut self, vmcb: &mut HwPage<Vmcb>, gprs: &mut Gprs) -> Result {
        if self.0.host == 0 {
            return Err(EIO);
        }
        // Exclusive: hardware writes it.
        let _ = vmcb;
        // SAFETY: The control block is `vmcb`'s (by `new`); the backend lets it refer only to its own
        // maps and the VM's stage-2 tables, so the guest reaches nothing else. The host's state was
        // saved on this CPU in this section. IRQs are off, as they are in a section.
        match unsafe { bindings::rkvm_svm_enter(&mut self.0, gprs.0.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(EIO),
        }
    }
}
