// SPDX-License-Identifier: GPL-2.0

//! The registers of the PMU: who may reach them, and what reading and writing them does (Arm ARM D24.5).

use super::{evtype, pmcr, Pmu, Shape, COUNTERS, CYCLE, USER};
use crate::arch::arm64::model::sysreg::Sysreg;

/// What a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// PMCR_EL0
    Control,
    /// PMCNTENSET_EL0 (true), PMCNTENCLR_EL0
    Enable(bool),
    /// PMINTENSET_EL1 (true), PMINTENCLR_EL1
    Interrupt(bool),
    /// PMOVSSET_EL0 (true), PMOVSCLR_EL0
    Overflow(bool),
    /// PMSWINC_EL0
    Increment,
    /// PMSELR_EL0
    Select,
    /// PMCEID0_EL0, PMCEID1_EL0
    Events(u8),
    /// PMEVCNTR_EL0, PMCCNTR_EL0
    Counter(u8),
    /// PMEVTYPER_EL0, PMCCFILTR_EL0
    Type(u8),
    /// PMXEVCNTR_EL0
    SelectedCounter,
    /// PMXEVTYPER_EL0
    SelectedType,
    /// PMUSERENR_EL0
    User,
    /// PMMIR_EL1
    Machine,
}

impl Reg {
    /// By its encoding.
    pub fn of(r: Sysreg) -> Option<Reg> {
        Some(match r {
            Sysreg::PMCR_EL0 => Reg::Control,
            Sysreg::PMCNTENSET_EL0 => Reg::Enable(true),
            Sysreg::PMCNTENCLR_EL0 => Reg::Enable(false),
            Sysreg::PMINTENSET_EL1 => Reg::Interrupt(true),
            Sysreg::PMINTENCLR_EL1 => Reg::Interrupt(false),
            Sysreg::PMOVSSET_EL0 => Reg::Overflow(true),
            Sysreg::PMOVSCLR_EL0 => Reg::Overflow(false),
            Sysreg::PMSWINC_EL0 => Reg::Increment,
            Sysreg::PMSELR_EL0 => Reg::Select,
            Sysreg::PMCEID0_EL0 => Reg::Events(0),
            Sysreg::PMCEID1_EL0 => Reg::Events(1),
            Sysreg::PMCCNTR_EL0 => Reg::Counter(CYCLE),
            Sysreg::PMXEVTYPER_EL0 => Reg::SelectedType,
            Sysreg::PMXEVCNTR_EL0 => Reg::SelectedCounter,
            Sysreg::PMUSERENR_EL0 => Reg::User,
            Sysreg::PMMIR_EL1 => Reg::Machine,
            _ => {
                let file = |first: Sysreg, count: u16| {
                    let n = r.bits().checked_sub(first.bits())?;
                    u8::try_from(n).ok().filter(|_| n < count)
                };
                // PMCCFILTR_EL0 is where PMEVTYPER31_EL0 would be.
                match file(Sysreg::PMEVCNTR0_EL0, 31) {
                    Some(n) => Reg::Counter(n),
                    None => Reg::Type(file(Sysreg::PMEVTYPER0_EL0, 32)?),
                }
            }
        })
    }

    /// EL0 may read or write it, with this PMUSERENR_EL0. Else the access is trapped to EL1.
    pub const fn open_to_el0(self, write: bool, user: u64) -> bool {
        const EN: u64 = 1 << 0;
        const SW: u64 = 1 << 1;
        const CR: u64 = 1 << 2;
        const ER: u64 = 1 << 3;
        let enough = match (self, write) {
            (Reg::Increment, true) => EN | SW,
            (Reg::Counter(CYCLE), false) => EN | CR,
            (Reg::Counter(_) | Reg::SelectedCounter, false) | (Reg::Select, _) => EN | ER,
            (Reg::User, false) => return true,
            (Reg::User, true) | (Reg::Interrupt(_) | Reg::Machine, _) => return false,
            _ => EN,
        };
        user & enough != 0
    }

    /// Reading or writing it is possible without asking the host for counts or counting otherwise.
    pub const fn is_quiet(self, write: bool) -> bool {
        match self {
            Reg::Select | Reg::Interrupt(_) | Reg::Overflow(_) | Reg::Increment => true,
            Reg::User | Reg::Control | Reg::Enable(_) | Reg::Type(_) | Reg::SelectedType => !write,
            _ => false,
        }
    }
}

/// What of a register's value is not the vCPU's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// PMCEID0_EL0, PMCEID1_EL0
    pub events: [u64; 2],
    /// PMMIR_EL1
    pub pmmir: u64,
}

/// There is no such counter: undefined for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCounter;

/// Sets or clears bits.
const fn change(old: u64, bits: u64, set: bool) -> u64 {
    if set {
        old | bits
    } else {
        old & !bits
    }
}

impl Pmu {
    /// The register that an access through PMSELR_EL0 reaches.
    pub const fn resolve(&self, reg: Reg) -> Reg {
        match reg {
            Reg::SelectedCounter => Reg::Counter(self.select),
            Reg::SelectedType => Reg::Type(self.select),
            r => r,
        }
    }

    fn exists(reg: Reg, shape: &Shape) -> Result<Reg, NoCounter> {
        match reg {
            Reg::Counter(n) | Reg::Type(n) if !shape.has(n) => Err(NoCounter),
            r => Ok(r),
        }
    }

    /// The guest reads a register. Counts have been brought up to date.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn read(&self, reg: Reg, shape: &Shape, given: &Given) -> Result<u64, NoCounter> {
        Ok(match Self::exists(self.resolve(reg), shape)? {
            Reg::Increment | Reg::SelectedCounter | Reg::SelectedType => 0,
            r => self.value(r, shape, given),
        })
    }

    fn value(&self, reg: Reg, shape: &Shape, given: &Given) -> u64 {
        let mask = shape.implemented();
        match reg {
            Reg::Control => self.control(shape),
            Reg::Enable(_) => self.enabled & mask,
            Reg::Interrupt(_) => self.interrupts & mask,
            Reg::Overflow(_) => self.overflows & mask,
            Reg::Select => self.select.into(),
            Reg::Events(n) => given.events.get(usize::from(n)).copied().unwrap_or(0),
            Reg::Counter(n) => self.counter(n),
            Reg::Type(n) => self.typer(n, shape),
            Reg::User => self.user(),
            Reg::Machine => given.pmmir,
            Reg::Increment | Reg::SelectedCounter | Reg::SelectedType => 0,
        }
    }

    /// The guest writes a register. Counts have been brought up to date. Returns the counters that may have to count
    /// otherwise, or from elsewhere. `low`: AArch32's 32-bit access, which leaves a counter's upper half as it is.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn write(
        &mut self,
        reg: Reg,
        value: u64,
        low: bool,
        shape: &Shape,
    ) -> Result<u64, NoCounter> {
        const UPPER: u64 = !0xffff_ffff;
        let mask = shape.implemented();
        match Self::exists(self.resolve(reg), shape)? {
            Reg::Control => {
                let before = self.control(shape);
                self.set_pmcr(value, shape);
                let mut changed = 0;
                if (before ^ self.control(shape)) & (pmcr::E | pmcr::LC | pmcr::LP) != 0 {
                    changed = mask;
                }
                for n in 0..CYCLE {
                    if value & pmcr::P != 0 && shape.has(n) {
                        self.set_counter(n, 0, shape);
                        changed |= 1 << n;
                    }
                }
                if value & pmcr::C != 0 {
                    self.set_counter(CYCLE, 0, shape);
                    changed |= 1 << CYCLE;
                }
                return Ok(changed);
            }
            Reg::Enable(set) => {
                let before = self.enabled;
                self.enabled = change(before, value & mask, set);
                return Ok(before ^ self.enabled);
            }
            Reg::Interrupt(set) => self.interrupts = change(self.interrupts, value & mask, set),
            Reg::Overflow(set) => self.overflows = change(self.overflows, value & mask, set),
            Reg::Increment => self.increment(value & mask, shape),
            Reg::Select => self.select = Self::selected(value),
            Reg::Counter(n) => {
                let upper = if low {
                    self.counter(n) & UPPER
                } else {
                    value & UPPER
                };
                self.set_counter(n, upper | value & !UPPER, shape);
                return Ok(1 << n);
            }
            Reg::Type(n) => {
                let new = value & shape.type_mask(n == CYCLE);
                if let Some(t) = self.types.get_mut(usize::from(n)) {
                    *t = new;
                }
                return Ok(1 << n);
            }
            Reg::User => self.user = value & USER,
            Reg::Events(_) | Reg::Machine | Reg::SelectedCounter | Reg::SelectedType => {}
        }
        Ok(0)
    }

    fn selected(value: u64) -> u8 {
        u8::try_from(value & 0x1f).unwrap_or(0)
    }

    fn set_counter(&mut self, n: u8, value: u64, shape: &Shape) {
        let wide = Self::is_wide(n, shape);
        if let Some(c) = self.counters.get_mut(usize::from(n)) {
            *c = if wide { value } else { value & 0xffff_ffff };
        }
    }

    /// KVM_GET_ONE_REG. Counters that there are not have a value all the same.
    pub fn user_read(&self, reg: Reg, shape: &Shape, given: &Given) -> u64 {
        match reg {
            // What was set, though the version of the guest's PMU may change yet.
            Reg::Type(n) => self.types.get(usize::from(n)).copied().unwrap_or(0),
            Reg::Control => self.control(shape) | self.pmcr,
            r => self.value(r, shape, given),
        }
    }

    /// KVM_SET_ONE_REG: sets what the register shows, whichever of the two for setting and clearing it is. Returns the
    /// counters that may have to count otherwise. N of PMCR_EL0 and PMMIR_EL1 are the VM's.
    pub fn user_write(&mut self, reg: Reg, value: u64, shape: &Shape) -> u64 {
        let mask = shape.implemented();
        match reg {
            Reg::Control => self.set_pmcr(value, shape),
            Reg::Enable(_) => self.enabled = value & mask,
            Reg::Interrupt(_) => self.interrupts = value & mask,
            Reg::Overflow(_) => self.overflows = value & mask,
            Reg::Select => self.select = Self::selected(value),
            Reg::User => self.user = value & USER,
            Reg::Counter(n) => {
                if let Some(c) = self.counters.get_mut(usize::from(n)) {
                    *c = value;
                }
                return 1 << n;
            }
            Reg::Type(n) => {
                if let Some(t) = self.types.get_mut(usize::from(n)) {
                    *t = value & evtype::ALL;
                }
                return 1 << n;
            }
            _ => return 0,
        }
        mask
    }

    /// The VM has another number of counters, or another version: what there is not has no bits left.
    pub fn fit(&mut self, shape: &Shape) {
        let mask = shape.implemented();
        self.enabled &= mask;
        self.interrupts &= mask;
        self.overflows &= mask;
        for n in 0..CYCLE {
            let c = self.counter(n);
            self.set_counter(n, c, shape);
        }
    }
}

const _: () = assert!(COUNTERS == CYCLE as usize + 1);
