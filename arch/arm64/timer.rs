// SPDX-License-Identifier: GPL-2.0

//! EL1's two timers (Arm ARM D13.2.4). The virtual one is the guest's own while it runs; the
//! physical one traps, and so is kept here.

use super::{host::Host, insn::Timer, vcpu::Vcpu, vm::VmState};
use crate::arch::arm64::gic;

/// The virtual timer's PPI, unless user space chooses another.
pub(crate) const VIRTUAL_PPI: u32 = 27;
/// The physical timer's.
pub(crate) const PHYSICAL_PPI: u32 = 30;

/// CNTx_CTL
mod ctl {
    pub(super) const ENABLE: u64 = 1;
    pub(super) const IMASK: u64 = 2;
    pub(super) const ISTATUS: u64 = 4;
}

impl Timer {
    /// Its line is high at this count.
    pub(crate) fn line(&self, count: u64) -> bool {
        self.ctl & (ctl::ENABLE | ctl::IMASK) == ctl::ENABLE && self.cval <= count
    }

    /// What the guest reads of its control register.
    pub(crate) fn control(&self, count: u64) -> u64 {
        let due = self.ctl & ctl::ENABLE != 0 && self.cval <= count;
        self.ctl & (ctl::ENABLE | ctl::IMASK) | if due { ctl::ISTATUS } else { 0 }
    }

    /// Counts until its line rises; `None` if it does not, or is high.
    #[inline]
    fn until(&self, count: impl Fn() -> u64) -> Option<u64> {
        if self.ctl & (ctl::ENABLE | ctl::IMASK) != ctl::ENABLE {
            return None;
        }
        self.cval.checked_sub(count()).filter(|n| *n != 0)
    }
}

/// Counts as ns.
fn to_ns(host: &Host, counts: u64) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    let (whole, rest) = (counts / host.counter_hz, counts % host.counter_hz);
    whole
        .saturating_mul(SECOND)
        .saturating_add(rest.saturating_mul(SECOND) / host.counter_hz)
}

impl Vcpu {
    /// The PPIs and levels of both lines, the virtual timer's first. Outside of a section, or when it begins.
    #[inline]
    pub(crate) fn timer_lines(&self, vm: &VmState) -> [(u32, bool); 2] {
        let count = super::insn::counter();
        let virt = self.timer.line(vm.virtual_count(count));
        let phys = self.physical.line(vm.physical_count_at(count));
        [(vm.virtual_ppi(), virt), (vm.physical_ppi(), phys)]
    }

    /// Tells the interrupt controller these. Outside of a section.
    pub(crate) fn update_timers(&self, vm: &VmState, gic: &gic::Gic, cpu: &gic::Cpu) {
        gic.set_lines(cpu, self.timer_lines(vm));
    }

    /// The vCPU is going to wait, or leaves the physical timer alone for a while: has the bell rung
    /// when a line rises. `all`: the virtual timer's too, which no hardware watches then. What has risen
    /// by now is seen when the section begins, or before the vCPU sleeps.
    #[inline]
    pub(crate) fn set_alarm(&mut self, vm: &VmState, all: bool) {
        let virt = all.then(|| self.timer.until(|| vm.counter())).flatten();
        let phys = self.physical.until(|| vm.physical_count());
        match virt.into_iter().chain(phys).min() {
            Some(counts) => self.alarm.set(to_ns(vm.host, counts)),
            None => self.alarm.clear(),
        }
    }
}
