// SPDX-License-Identifier: GPL-2.0

//! A vCPU's performance monitors: registers, what counts, and what an overflow does.
//!
//! Arm ARM (DDI 0487), D13 (the Performance Monitors Extension), D24.5 (its registers). Version 3.5 at the most.
//! The counting itself is the host's: [`Pmu::wanted`] says what a counter is to count, and what the host has counted
//! since it was last asked is told with [`Pmu::add`].

pub mod events;
pub mod regs;

use events::Events;

/// The cycle counter: bit 31 of the registers with a bit for each counter.
pub const CYCLE: u8 = 31;
/// Event counters and the cycle counter.
pub const COUNTERS: usize = 32;

/// PMCR_EL0
pub mod pmcr {
    /// Counters count.
    pub const E: u64 = 1 << 0;
    /// Event counters are set to zero.
    pub const P: u64 = 1 << 1;
    /// The cycle counter is.
    pub const C: u64 = 1 << 2;
    /// The cycle counter overflows at 64 bits.
    pub const LC: u64 = 1 << 6;
    /// Event counters do (FEAT_PMUv3p5).
    pub const LP: u64 = 1 << 7;
    /// What is kept of a write: E, D, X, DP, LC, LP. D, X and DP have no effect.
    pub const KEPT: u64 = 0xf9;
    /// Where N, the number of event counters, is.
    pub const N_SHIFT: u32 = 11;
    /// N
    pub const N: u64 = 0x1f << N_SHIFT;
}

/// PMEVTYPER_EL0 and PMCCFILTR_EL0: filters. The lower half of the first is the event.
mod evtype {
    /// Not at EL1
    pub(super) const P: u64 = 1 << 31;
    /// Not at EL0
    pub(super) const U: u64 = 1 << 30;
    /// With EL3: at EL1 if it equals P
    pub(super) const NSK: u64 = 1 << 29;
    /// With EL3: at EL0 if it equals U
    pub(super) const NSU: u64 = 1 << 28;
    /// With EL3: at EL3
    pub(super) const M: u64 = 1 << 26;
    /// All that a guest can have.
    pub(super) const ALL: u64 = P | U | NSK | NSU | M | 0xffff;
}

/// Events that are no hardware's.
pub mod event {
    /// SW_INCR: writes of PMSWINC_EL0
    pub const SW_INCR: u16 = 0;
    /// CPU_CYCLES
    pub const CPU_CYCLES: u16 = 0x11;
    /// CHAIN: overflows of the counter below
    pub const CHAIN: u16 = 0x1e;
}

/// PMUSERENR_EL0, as far as a guest has it: EN, SW, CR, ER.
pub const USER: u64 = 0xf;

/// ID_AA64DFR0_EL1.PMUVer of FEAT_PMUv3p1: events have 16 bits.
pub const V3P1: u8 = 4;
/// Of FEAT_PMUv3p5: event counters have 64 bits. The most that guests have.
pub const V3P5: u8 = 6;

/// What a guest's PMU is, as its VM has been set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// ID_AA64DFR0_EL1.PMUVer
    pub version: u8,
    /// PMCR_EL0.N: event counters, at most 31.
    pub counters: u8,
    /// ID_AA64PFR0_EL1.EL3 is not 0: filters have more bits.
    pub el3: bool,
    /// EL0 runs AArch32: PMCR_EL0.LC can be cleared.
    pub aarch32: bool,
}

impl Shape {
    /// Event counters have 64 bits.
    pub const fn long(&self) -> bool {
        self.version >= V3P5
    }

    /// A bit for each counter that there is.
    pub const fn implemented(&self) -> u64 {
        let n = if self.counters > 31 {
            31
        } else {
            self.counters
        };
        (1 << n) - 1 | 1 << CYCLE
    }

    /// There is such a counter.
    pub const fn has(&self, n: u8) -> bool {
        n < 32 && self.implemented() >> n & 1 != 0
    }

    /// The highest event.
    pub const fn last_event(&self) -> u16 {
        if self.version >= V3P1 {
            0xffff
        } else {
            0x3ff
        }
    }

    /// Bits of PMEVTYPER_EL0 (of PMCCFILTR_EL0, with `cycle`) that can be set.
    const fn type_mask(&self, cycle: bool) -> u64 {
        let event = if cycle { 0 } else { self.last_event() as u64 };
        let el3 = if self.el3 {
            evtype::NSK | evtype::NSU | evtype::M
        } else {
            0
        };
        evtype::P | evtype::U | el3 | event
    }
}

/// What the host is to count for a counter, in the guest alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The event.
    pub event: u16,
    /// At EL0
    pub el0: bool,
    /// At EL1
    pub el1: bool,
    /// The guest's counter has 64 bits.
    pub wide: bool,
}

/// A vCPU's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pmu {
    /// PMCR_EL0 without N
    pmcr: u64,
    /// PMCNTENSET_EL0
    enabled: u64,
    /// PMINTENSET_EL1
    interrupts: u64,
    /// PMOVSSET_EL0
    overflows: u64,
    /// PMSELR_EL0.SEL
    select: u8,
    /// PMUSERENR_EL0
    user: u64,
    /// PMEVCNTR_EL0, PMCCNTR_EL0
    counters: [u64; COUNTERS],
    /// PMEVTYPER_EL0, PMCCFILTR_EL0
    types: [u64; COUNTERS],
}

impl Pmu {
    /// After a reset. What is unknown then is zero.
    pub fn reset(&mut self, shape: &Shape) {
        *self = Pmu::default();
        self.set_pmcr(0, shape);
    }

    fn set_pmcr(&mut self, value: u64, shape: &Shape) {
        let always = if shape.aarch32 { 0 } else { pmcr::LC };
        self.pmcr = value & pmcr::KEPT | always;
    }

    /// PMCR_EL0, as it is read.
    fn control(&self, shape: &Shape) -> u64 {
        let kept = if shape.long() {
            self.pmcr
        } else {
            self.pmcr & !pmcr::LP
        };
        kept & pmcr::KEPT | u64::from(shape.counters) << pmcr::N_SHIFT & pmcr::N
    }

    /// PMUSERENR_EL0
    pub const fn user(&self) -> u64 {
        self.user & USER
    }

    fn counter(&self, n: u8) -> u64 {
        self.counters.get(usize::from(n)).copied().unwrap_or(0)
    }

    fn typer(&self, n: u8, shape: &Shape) -> u64 {
        let t = self.types.get(usize::from(n)).copied().unwrap_or(0);
        t & shape.type_mask(n == CYCLE)
    }

    fn event(&self, n: u8, shape: &Shape) -> u16 {
        if n == CYCLE {
            return event::CPU_CYCLES;
        }
        u16::try_from(self.typer(n, shape) & 0xffff).unwrap_or(0)
    }

    fn is_wide(n: u8, shape: &Shape) -> bool {
        n == CYCLE || shape.long()
    }

    /// A counter overflows at 64 bits, not at 32.
    fn overflows_late(&self, n: u8, shape: &Shape) -> bool {
        let bit = if n == CYCLE { pmcr::LC } else { pmcr::LP };
        self.control(shape) & bit != 0
    }

    /// It counts, if there is something to count.
    fn is_on(&self, n: u8, shape: &Shape) -> bool {
        self.pmcr & pmcr::E != 0 && shape.has(n) && self.enabled >> n & 1 != 0
    }

    /// Counters that are on.
    pub fn on(&self, shape: &Shape) -> u64 {
        if self.pmcr & pmcr::E != 0 {
            self.enabled & shape.implemented()
        } else {
            0
        }
    }

    /// The overflow interrupt is asserted (D13.3).
    pub fn line(&self, shape: &Shape) -> bool {
        self.pmcr & pmcr::E != 0 && self.overflows & self.interrupts & shape.implemented() != 0
    }

    /// What the host is to count for counter `n` now; `None`: nothing.
    pub fn wanted(&self, n: u8, shape: &Shape, events: &Events<'_>) -> Option<Wanted> {
        if !self.is_on(n, shape) {
            return None;
        }
        let event = self.event(n, shape);
        if n != CYCLE && matches!(event, event::SW_INCR | event::CHAIN) || !events.allows(event) {
            return None;
        }
        let t = self.typer(n, shape);
        let (p, nsk) = (t & evtype::P != 0, t & evtype::NSK != 0);
        let (u, nsu) = (t & evtype::U != 0, t & evtype::NSU != 0);
        let w = Wanted {
            event,
            el0: u == nsu,
            el1: p == nsk,
            wide: Self::is_wide(n, shape),
        };
        (w.el0 || w.el1).then_some(w)
    }

    /// How many events it takes counter `n` to overflow; `None`: 2 to the 64th.
    pub fn period(&self, n: u8, shape: &Shape) -> Option<u64> {
        let c = self.counter(n);
        if self.overflows_late(n, shape) {
            return (c != 0).then(|| c.wrapping_neg());
        }
        Some((1 << 32) - (c & 0xffff_ffff))
    }

    /// Counter `n` has counted `events` more. True if it has overflowed. An overflow is noted, and is an event for
    /// the next counter if that counts them.
    pub fn add(&mut self, n: u8, events: u64, shape: &Shape) -> bool {
        const LOW: u64 = 0xffff_ffff;
        let late = self.overflows_late(n, shape);
        let wide = Self::is_wide(n, shape);
        let Some(c) = self.counters.get_mut(usize::from(n)) else {
            return false;
        };
        let old = *c;
        let sum = u128::from(if late { old } else { old & LOW }) + u128::from(events);
        let times = u64::try_from(sum >> if late { 64 } else { 32 }).unwrap_or(u64::MAX);
        *c = old.wrapping_add(events) & if wide { u64::MAX } else { LOW };
        if times == 0 {
            return false;
        }
        self.overflows |= 1 << n;
        // An even counter, and the one above it.
        let above = n | 1;
        if n & 1 == 0
            && above < CYCLE
            && !late
            && self.is_on(above, shape)
            && self.event(above, shape) == event::CHAIN
        {
            self.add(above, times, shape);
        }
        true
    }

    /// PMSWINC_EL0 is written.
    fn increment(&mut self, counters: u64, shape: &Shape) {
        for n in 0..CYCLE {
            if counters >> n & 1 != 0
                && self.is_on(n, shape)
                && self.event(n, shape) == event::SW_INCR
            {
                self.add(n, 1, shape);
            }
        }
    }
}
