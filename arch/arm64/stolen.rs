// SPDX-License-Identifier: GPL-2.0

//! Stolen time: the guest reads in its memory how long its vCPU wanted to run and could not
//! (Arm DEN 0057; Documentation/virt/kvm/arm/pvtime.rst).

use super::insn;
use crate::{host::trace, memory::View};
use kernel::prelude::*;

/// The structure in guest memory: revision and attributes, both 0, then the time in ns; the rest is
/// reserved.
const SIZE: usize = 64;
/// Where the time is.
const TIME: u64 = 8;

/// A vCPU's, under its lock.
#[derive(Default)]
pub(crate) struct Stolen {
    base: Option<u64>,
    /// How long this thread had waited when it was last looked at, in ns.
    seen: Option<u64>,
}

impl Stolen {
    /// Where the structure is.
    pub(crate) fn base(&self) -> Option<u64> {
        self.base
    }

    /// `KVM_ARM_VCPU_PVTIME_IPA`
    ///
    /// # Errors
    /// `EINVAL`: not aligned, or no memory. `EEXIST`: it has a place.
    pub(crate) fn place(&mut self, view: &View<'_>, base: u64) -> Result {
        if base % SIZE as u64 != 0 {
            return Err(trace::invalid(c"stolen time is aligned to 64 bytes"));
        }
        if self.base.is_some() {
            return Err(trace::refuse(EEXIST, c"stolen time has a place"));
        }
        if view.read(base, &mut [0; SIZE]).is_err() {
            return Err(trace::invalid(c"no memory for stolen time"));
        }
        self.base = Some(base);
        Ok(())
    }

    /// PV_TIME_ST: the guest is going to look. May sleep.
    pub(crate) fn begin(&mut self, view: &View<'_>, base: u64) {
        self.seen = Some(insn::run_delay());
        // Without memory there the guest finds out by itself.
        let _ = view.write(base, &[0; SIZE]);
    }

    /// Something is to be told: the vCPU has waited since it was.
    pub(crate) fn due(&self) -> bool {
        self.base.is_some() && self.seen != Some(insn::run_delay())
    }

    /// Before the guest runs: adds what has come since. What was told before stands in its memory, and
    /// may be from another host. May sleep.
    pub(crate) fn tell(&mut self, view: &View<'_>) {
        let Some(base) = self.base else {
            return;
        };
        let now = insn::run_delay();
        // Less than before: another thread runs the vCPU.
        let waited = self.seen.map_or(0, |seen| now.saturating_sub(seen));
        self.seen = Some(now);
        let mut told = [0; 8];
        if waited == 0 || view.read(base + TIME, &mut told).is_err() {
            return;
        }
        let told = u64::from_le_bytes(told).wrapping_add(waited);
        let _ = view.write(base + TIME, &told.to_le_bytes());
    }
}
