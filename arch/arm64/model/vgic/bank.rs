// SPDX-License-Identifier: GPL-2.0

//! The state of 32 interrupts with consecutive INTIDs, one bit each: SGIs and PPIs, or SPIs.

use super::{lr::Lr, regs::Field, Bits, PRIORITY_MASK};

/// The state of 32 interrupts (IHI 0069, 4.1 and 4.5).
///
/// While an interrupt is in a list register (`in_lr`), the register decides whether it is active.
/// Of its pending state the register has what was latched when it was filled in (`lent`); what is
/// latched later stays here, and is another interrupt.
///
/// # Invariants
///
/// `lent` and `kept` are subsets of `in_lr`.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    /// Group 1
    pub(super) group: u32,
    /// Enabled
    pub(super) enabled: u32,
    /// Pending by an edge, a message, or a write to ISPENDR
    pub(super) latch: u32,
    /// The level of the line
    pub(super) line: u32,
    /// Active
    pub(super) active: u32,
    /// Edge-triggered
    pub(super) edge: u32,
    /// In a list register of a vCPU
    pub(super) in_lr: u32,
    /// Its latch is in the list register.
    lent: u32,
    /// `active` was written meanwhile: it counts, not the list register.
    kept: u32,
    priority: [u8; 32],
}

/// What became of an interrupt that was in a list register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reclaimed {
    /// The guest has ended it.
    pub(super) ended: bool,
}

impl Bank {
    /// After a reset: group 1, as KVM has it; disabled, at the highest priority.
    pub(super) const fn new(edge: u32, enabled: u32) -> Self {
        Self {
            group: !0,
            enabled,
            latch: 0,
            line: 0,
            active: 0,
            edge,
            in_lr: 0,
            lent: 0,
            kept: 0,
            priority: [0; 32],
        }
    }

    /// Pending: latched, or, if level-triggered, with the line high.
    #[inline]
    pub(super) const fn pending(&self) -> u32 {
        self.latch | self.lent | self.line & !self.edge
    }

    /// A vCPU could take these, if their group is forwarded.
    #[inline]
    pub(super) const fn ready(&self) -> u32 {
        self.pending() & self.enabled & !self.active & !self.in_lr
    }

    #[inline]
    pub(super) fn priority(&self, b: usize) -> u8 {
        self.priority.get(b).copied().unwrap_or(0)
    }

    /// The line of `b` becomes `level`. Returns those of which a vCPU should know; `eoi` says
    /// that the end of a level-triggered interrupt in a list register makes an exit, after which
    /// the line is looked at anyway.
    pub(super) fn set_line(&mut self, b: usize, level: bool, eoi: bool) -> u32 {
        let bit = 1 << b;
        let was = self.line & bit != 0;
        self.line = self.line & !bit | if level { bit } else { 0 };
        if self.edge & bit != 0 {
            // Every call with a high level is an edge, as KVM has it: not all callers lower it.
            let new = if level { bit & !self.latch } else { 0 };
            self.latch |= new;
            new
        } else if was == level {
            0
        } else if level {
            bit & if eoi { !self.in_lr } else { !0 }
        } else {
            // Once active, it is no longer pending in the list register.
            bit & !(self.in_lr & self.active)
        }
    }

    /// The line of `b` was high for a moment. The interrupt is pending until it is taken, whether it is
    /// edge- or level-triggered: nobody is there to lower the line when the guest has served the device.
    pub(super) fn pulse(&mut self, b: usize) -> u32 {
        let new = 1 << b & !self.latch & !(self.line & !self.edge);
        self.latch |= new;
        new
    }

    /// A register as the guest reads it, or as user space does. `first` is the bank's interrupt
    /// with which the access begins; `len` bytes, for priorities.
    pub(super) fn read(&self, field: Field, first: usize, len: u8, user: bool) -> u64 {
        match field {
            Field::Group => self.group.into(),
            Field::SetEnable | Field::ClearEnable => self.enabled.into(),
            Field::SetPending if user => (self.latch | self.lent).into(),
            Field::ClearPending if user => 0,
            Field::SetPending | Field::ClearPending => self.pending().into(),
            Field::SetActive | Field::ClearActive => self.active.into(),
            Field::Priority => (self.priority.iter().skip(first).take(usize::from(len)))
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
            Field::Config => {
                let edge = self.edge >> (first & 16);
                (0..16).fold(0, |value, i| {
                    value | u64::from(edge >> i & 1) << (2 * i + 1)
                })
            }
            Field::Zero => 0,
        }
    }

    /// Writes a register; only the interrupts in `valid` are there. Returns those whose state
    /// has changed.
    pub(super) fn write(
        &mut self,
        field: Field,
        first: usize,
        len: u8,
        value: u64,
        user: bool,
        valid: u32,
    ) -> u32 {
        let bits = super::low(value) & valid;
        match field {
            Field::Group => {
                let changed = (self.group ^ bits) & valid;
                self.group ^= changed;
                changed
            }
            Field::SetEnable => {
                let changed = bits & !self.enabled;
                self.enabled |= bits;
                changed
            }
            Field::ClearEnable => {
                let changed = bits & self.enabled;
                self.enabled &= !bits;
                changed
            }
            Field::SetPending if user => {
                let changed = ((self.latch | self.lent) ^ bits) & valid;
                self.latch = self.latch & !valid | bits;
                self.lent &= !valid;
                changed
            }
            Field::ClearPending if user => 0,
            Field::SetPending => {
                let changed = bits & !self.latch;
                self.latch |= bits;
                changed
            }
            Field::ClearPending => {
                let changed = bits & (self.latch | self.lent);
                self.latch &= !bits;
                self.lent &= !bits;
                changed
            }
            Field::SetActive => {
                let changed = bits & (!self.active | self.in_lr);
                self.active |= bits;
                // INVARIANT: only what is in a list register
                self.kept |= bits & self.in_lr;
                changed
            }
            Field::ClearActive => {
                let changed = bits & (self.active | self.in_lr);
                self.active &= !bits;
                // INVARIANT: as above
                self.kept |= bits & self.in_lr;
                changed
            }
            Field::Priority => self.write_priority(first, len, value, valid),
            Field::Config => {
                let half = first & 16;
                let edge = (0..16).fold(0, |edge, i| {
                    edge | (super::low(value) >> (2 * i + 1) & 1) << i
                });
                let mask = 0xffff << half & valid;
                let changed = (self.edge ^ edge << half) & mask;
                self.edge ^= changed;
                changed
            }
            Field::Zero => 0,
        }
    }

    fn write_priority(&mut self, first: usize, len: u8, value: u64, valid: u32) -> u32 {
        let mut changed = 0;
        let bytes = value.to_le_bytes();
        let slots = self.priority.iter_mut().enumerate().skip(first);
        for ((b, slot), byte) in slots.zip(bytes).take(usize::from(len)) {
            let priority = byte & PRIORITY_MASK;
            if valid & 1 << b != 0 && *slot != priority {
                *slot = priority;
                changed |= 1 << b;
            }
        }
        changed
    }

    /// Puts `b` into a list register: its active state, and, if the vCPU may take it
    /// (`deliver`), its pending state.
    pub(super) fn lend(&mut self, b: usize, intid: u32, deliver: bool, pintid: Option<u16>) -> Lr {
        let bit = 1 << b;
        let active = self.active & bit != 0;
        let level = self.edge & bit == 0;
        // When it ends, what is latched behind it comes next: an exit has to say so. The line of a
        // physical interrupt says so by itself.
        let pintid = pintid.filter(|_| !active || self.latch & bit == 0);
        // A level-triggered interrupt is looked at again when it ends; of one with a physical
        // interrupt behind it, the register cannot hold both states (IHI 0069, 12.4.9).
        let both = !level && pintid.is_none();
        let pending = deliver && self.pending() & self.enabled & bit != 0 && (both || !active);
        self.in_lr |= bit;
        // INVARIANT: `bit` is in `in_lr`.
        self.kept &= !bit;
        if pending {
            self.lent |= self.latch & bit;
            self.latch &= !bit;
        }
        let lr = Lr::new(intid, self.priority(b), self.group & bit != 0).state(pending, active);
        match pintid {
            Some(pintid) => lr.backed(pintid),
            None if level => lr.ask_eoi(),
            None => lr,
        }
    }

    /// Takes `b` back from a list register.
    pub(super) fn reclaim(&mut self, b: usize, lr: Lr) -> Reclaimed {
        let bit = 1 << b;
        // A latch that the guest has not taken is a latch again, unless it was cleared here.
        if lr.is_pending() {
            self.latch |= self.lent & bit;
        }
        if self.kept & bit == 0 {
            self.active = self.active & !bit | if lr.is_active() { bit } else { 0 };
        }
        // INVARIANT: `bit` leaves all three.
        self.in_lr &= !bit;
        self.lent &= !bit;
        self.kept &= !bit;
        Reclaimed {
            ended: !lr.is_pending() && self.active & bit == 0,
        }
    }

    /// Ends `b`, which is active, and not in the list registers of the vCPU that ends it. True if
    /// it was in no list register, so that it is over.
    pub(super) fn deactivate(&mut self, b: usize) -> bool {
        let bit = 1 << b;
        self.active &= !bit;
        // INVARIANT: only what is in a list register
        self.kept |= bit & self.in_lr;
        self.in_lr & bit == 0
    }

    /// The active interrupt of the highest priority among `of` that is in no list register.
    pub(super) fn first_active(&self, of: u32) -> Option<(u8, usize)> {
        Bits(of & self.active & !self.in_lr)
            .map(|b| (self.priority(b), b))
            .min()
    }
}
