// SPDX-License-Identifier: GPL-2.0

//! Paravirtual pages: kvmclock, the wall clock, and the end of an interrupt without an exit
//! (Documentation/virt/kvm/x86/msr.rst).

use super::{
    backend::Backend,
    mem::Phys,
    model::{
        clock::{next_versions, wall_clock, TimeInfo},
        lapic::Lapic,
    },
    vcpu::Vcpu,
    vm::VmState,
};
use crate::memory::{GuestAccess, View};

/// The MSR enables the page.
const ENABLED: u64 = 1;

/// The address is misaligned, or the feature is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalid;

/// What a vCPU's paravirtual MSRs say, and what is to be written to the guest's pages.
#[derive(Default)]
pub(crate) struct Pv {
    /// Paravirtual features work only with their CPUID bit (`KVM_CAP_ENFORCE_PV_FEATURE_CPUID`).
    pub(crate) enforce: bool,
    /// MSR_KVM_SYSTEM_TIME(_NEW)
    pub(crate) system_time: u64,
    /// MSR_KVM_STEAL_TIME
    pub(crate) steal_time: u64,
    /// MSR_KVM_PV_EOI_EN
    pub(crate) eoi: Eoi,
    clock_due: bool,
    /// `KVM_KVMCLOCK_CTRL`: the guest was stopped.
    stopped: bool,
    wall_clock_due: Option<u64>,
}

impl Pv {
    /// A page has to be written before the guest goes on.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.clock_due || self.wall_clock_due.is_some()
    }

    /// The clock changed: the page is written anew before the next entry.
    pub(crate) fn refresh_clock(&mut self) {
        self.clock_due = self.system_time & ENABLED != 0;
    }

    /// The guest was stopped by its host; false if it has no clock page.
    pub(crate) fn note_stopped(&mut self) -> bool {
        if self.system_time & ENABLED == 0 {
            return false;
        }
        self.stopped = true;
        self.clock_due = true;
        true
    }

    /// MSR_KVM_SYSTEM_TIME(_NEW) is written.
    pub(crate) fn write_system_time(&mut self, v: u64, _old: bool) -> Result<(), Invalid> {
        self.system_time = v;
        self.refresh_clock();
        Ok(())
    }

    /// MSR_KVM_WALL_CLOCK(_NEW) is written.
    pub(crate) fn write_wall_clock(&mut self, vm: &VmState, gpa: u64) {
        vm.set_wall_clock_msr(gpa);
        if gpa != 0 {
            self.wall_clock_due = Some(gpa);
        }
    }

    /// MSR_KVM_STEAL_TIME: not offered; only off can be written.
    pub(crate) fn write_steal_time(&mut self, v: u64) -> Result<(), Invalid> {
        if v == 0 {
            Ok(())
        } else {
            Err(Invalid)
        }
    }
}

/// The end of an interrupt without an exit: while an interrupt is in service whose end nobody waits
/// for, a byte of the guest is 1. The guest ends the interrupt by clearing it.
///
/// Outside of `KVM_RUN` the byte is 0, so that what user space saves says all.
#[derive(Default)]
pub(crate) struct Eoi {
    /// MSR_KVM_PV_EOI_EN
    msr: u64,
    /// Where the byte is that the guest last found to be 1.
    armed: Option<u64>,
}

impl Eoi {
    /// MSR_KVM_PV_EOI_EN.
    pub(crate) fn msr(&self) -> u64 {
        self.msr
    }

    /// MSR_KVM_PV_EOI_EN is written: bit 0 enables, the rest is the address of four aligned bytes.
    pub(crate) fn write_msr(&mut self, v: u64) -> Result<(), Invalid> {
        if v & 2 != 0 {
            return Err(Invalid);
        }
        self.msr = v;
        Ok(())
    }

    /// The guest may have ended its interrupt: to be [settled](Self::settle), or looked after by
    /// [`Self::follow`].
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// The next end of an interrupt has to exit: there is one to deliver after it, or the guest does
    /// not want this any more.
    #[inline]
    pub(crate) fn is_over(&self, lapic: &Lapic) -> bool {
        self.armed
            .is_some_and(|at| at | ENABLED != self.msr || lapic.highest_request().is_some())
    }

    /// Lets the guest end the interrupt in service by itself, if that is possible. Its memory may be
    /// absent: then the end exits.
    #[inline]
    pub(crate) fn arm(&mut self, lapic: &Lapic, view: &View<'_>) {
        if self.msr & ENABLED != 0 && self.armed.is_none() && lapic.end_may_wait() {
            let at = self.msr & !ENABLED;
            self.armed = view.write_nofault(at, &[1]).is_ok().then_some(at);
        }
    }

    /// After an exit: ends the interrupt if the guest did.
    ///
    /// # Errors
    /// The byte is not to be read (now).
    #[inline]
    pub(crate) fn follow(&mut self, lapic: &mut Lapic, view: &View<'_>) -> Result<(), GuestAccess> {
        let Some(at) = self.armed else { return Ok(()) };
        let mut byte = [0];
        view.read_nofault(at, &mut byte)?;
        self.take(lapic, byte);
        Ok(())
    }

    /// Ends the interrupt if the guest did; else takes the permission back.
    ///
    /// # Errors
    /// The byte is not to be reached (now): nothing has changed.
    pub(crate) fn settle(
        &mut self,
        lapic: &mut Lapic,
        phys: &Phys<'_, '_>,
    ) -> Result<(), GuestAccess> {
        let Some(at) = self.armed else { return Ok(()) };
        let mut byte = [0];
        phys.read(at, &mut byte)?;
        if byte != [0] {
            phys.write(at, &[0])?;
        }
        self.take(lapic, byte);
        self.armed = None;
        Ok(())
    }

    /// As [`Self::settle`]; a guest whose byte user space has taken away gets no answer. May sleep.
    pub(crate) fn settle_now(&mut self, lapic: &mut Lapic, view: &View<'_>) {
        if self.settle(lapic, &Phys::sleeping(view)).is_err() {
            self.armed = None;
        }
    }

    /// The byte is this.
    #[inline]
    fn take(&mut self, lapic: &mut Lapic, byte: [u8; 1]) {
        if byte == [0] {
            self.armed = None;
            // Nobody else waits for this end: see `Lapic::end_may_wait`.
            let _ = lapic.eoi();
        }
    }

    /// The processor starts over.
    pub(crate) fn reset(&mut self) {
        self.msr = 0;
    }
}

fn version_at(view: &View<'_>, gpa: u64) -> Option<u32> {
    let mut b = [0; 4];
    view.read(gpa, &mut b).ok()?;
    Some(u32::from_le_bytes(b))
}

/// Writes what is due. A guest that names an address without memory gets nothing, as with KVM.
/// `stable`: all vCPUs tell the same time.
pub(crate) fn write_pages<B: Backend>(
    v: &mut Vcpu<B>,
    vm: &VmState,
    view: &View<'_>,
    stable: bool,
) {
    if core::mem::take(&mut v.pv.clock_due) {
        write_clock(v, vm, view, stable);
    }
    if let Some(gpa) = v.pv.wall_clock_due.take() {
        write_wall_clock(vm, view, gpa);
    }
}

fn write_clock<B: Backend>(
    v: &mut Vcpu<B>,
    vm: &VmState,
    view: &View<'_>,
    stable: bool,
) -> Option<()> {
    let gpa = v.pv.system_time & !ENABLED;
    let mut page = [0; TimeInfo::SIZE];
    view.read(gpa, &mut page).ok()?;
    let mut info = vm.time.info(&v.tsc, stable);
    info.stopped = core::mem::take(&mut v.pv.stopped) || TimeInfo::was_stopped(&page);
    let (during, after) = next_versions(version_at(view, gpa)?);
    // The version is odd as long as the rest changes.
    view.write(gpa, &during.to_le_bytes()).ok()?;
    view.write(gpa.wrapping_add(4), info.to_bytes(during).get(4..)?)
        .ok()?;
    view.write(gpa, &after.to_le_bytes()).ok()
}

fn write_wall_clock(vm: &VmState, view: &View<'_>, gpa: u64) -> Option<()> {
    let (during, after) = next_versions(version_at(view, gpa)?);
    let (clock, _, realtime) = vm.time.read();
    view.write(gpa, &during.to_le_bytes()).ok()?;
    view.write(
        gpa.wrapping_add(4),
        wall_clock(after, realtime, clock).get(4..)?,
    )
    .ok()?;
    view.write(gpa, &after.to_le_bytes()).ok()
}
