// SPDX-License-Identifier: GPL-2.0

//! Which events a guest may count (KVM_ARM_VCPU_PMU_V3_FILTER), and which it is told of (PMCEID).

use super::{event, Shape};

/// Words of a filter: a bit for each of 65536 events.
pub const WORDS: usize = 1024;

/// The events of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    filter: Option<&'a [u64]>,
}

/// What is done with events: KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They may be counted.
    Allow,
    /// They count nothing.
    Deny,
}

/// A range of events that cannot be, or no such action: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRange;

/// A range of user space's: `base` and `count` that fit among the events up to `last`, the host's last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u32,
    end: u32,
    action: Action,
}

impl Range {
    /// As user space says it.
    ///
    /// # Errors
    /// It goes beyond `last`; there is no such action.
    pub fn new(base: u16, count: u16, action: u8, last: u16) -> Result<Range, InvalidRange> {
        let action = match action {
            0 => Action::Allow,
            1 => Action::Deny,
            _ => return Err(InvalidRange),
        };
        let base = u32::from(base);
        let end = base + u32::from(count);
        if end > u32::from(last) + 1 {
            return Err(InvalidRange);
        }
        Ok(Range { base, end, action })
    }

    /// Makes the filter of which this is the first range: all other events go the other way.
    pub fn begin(&self, filter: &mut [u64]) {
        let all = match self.action {
            Action::Allow => 0,
            Action::Deny => u64::MAX,
        };
        filter.fill(all);
    }

    /// Puts it over what the filter has.
    pub fn apply(&self, filter: &mut [u64]) {
        for (word, w) in (0u32..).zip(filter) {
            let first = word * 64;
            let (from, to) = (self.base.max(first), self.end.min(first + 64));
            if from >= to {
                continue;
            }
            let bits = u64::MAX >> (64 - (to - from)) << (from - first);
            match self.action {
                Action::Allow => *w |= bits,
                Action::Deny => *w &= !bits,
            }
        }
    }
}

impl<'a> Events<'a> {
    /// All.
    pub const ALL: Events<'static> = Events { filter: None };

    /// Those of a VM with this filter; an empty one allows all.
    pub fn new(filter: &'a [u64]) -> Self {
        Events {
            filter: (!filter.is_empty()).then_some(filter),
        }
    }

    /// It may be counted.
    pub fn allows(&self, event: u16) -> bool {
        let Some(filter) = self.filter else {
            return true;
        };
        let word = filter.get(usize::from(event / 64)).copied().unwrap_or(0);
        word >> (event % 64) & 1 != 0
    }

    /// PMCEID0_EL0 and PMCEID1_EL0, where the host has `host`: bits 31:0 are common events 0 to 31 (32 to 63), the
    /// upper ones those from 0x4000 on. SW_INCR and CHAIN are always there. `slots`: the guest can see PMMIR_EL1.SLOTS,
    /// without which STALL_SLOT, STALL_SLOT_FRONTEND and STALL_SLOT_BACKEND (0x3d to 0x3f) have no meaning.
    pub fn pmceid(&self, host: [u64; 2], shape: &Shape, slots: bool) -> [u64; 2] {
        let mut all = host;
        let [first, second] = &mut all;
        *first |= 1 << event::SW_INCR | 1 << event::CHAIN;
        if !slots {
            *second &= !(7 << (0x3d - 32));
        }
        let mut base = 0u16;
        for v in &mut all {
            for bit in 0..64u16 {
                let event = match bit {
                    0..=31 => base + bit,
                    _ => 0x4000 + base + bit - 32,
                };
                if event > shape.last_event() || !self.allows(event) {
                    *v &= !(1 << bit);
                }
            }
            base = 32;
        }
        all
    }
}
