// SPDX-License-Identifier: GPL-2.0

//! The LPIs that are pending at one redistributor.
//!
//! LPIs are edges by messages, and have no active state (IHI 0069, 5.1). Which there are, and
//! their configuration, is in the guest's tables: the ITS reads these, and says priority and
//! enable with each LPI.

use super::{END_OF_LPIS, FIRST_LPI, PRIORITY_MASK};
use crate::host::grow_vec::{GrowVec, NoMemory};

/// Why an LPI was not made pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LpiError {
    /// Not the INTID of an LPI
    NoSuchInterrupt,
    /// All slots are taken: give more with `Private::set_lpi_slots`.
    NoRoom,
}

/// What taking an LPI away from a redistributor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was not pending.
    Idle,
    /// It was pending here, and no longer is.
    Pending,
    /// It is in a list register: have the vCPU fold, then ask again.
    InListRegister,
}

/// Pending, not in a list register
const PENDING: u8 = 1 << 0;
/// Enabled by its configuration
const ENABLED: u8 = 1 << 1;
/// In a list register
const IN_LR: u8 = 1 << 2;
/// The list register's pending state counts.
const LENT: u8 = 1 << 3;

#[derive(Clone, Copy, Debug, Default)]
struct Lpi {
    intid: u32,
    priority: u8,
    flags: u8,
}

impl Lpi {
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Room for pending LPIs. It is made where memory can be waited for, and given to a vCPU under
/// its lock.
pub struct LpiSlots(GrowVec<Lpi>);

impl LpiSlots {
    /// Room for as many as `count` pending LPIs; never more than there are INTIDs.
    pub fn new(count: usize) -> Result<Self, NoMemory> {
        let most = (END_OF_LPIS - FIRST_LPI) as usize;
        Ok(Self(GrowVec::filled(count.min(most), Lpi::default)?))
    }

    /// So many LPIs can be pending.
    pub fn capacity(&self) -> usize {
        self.0.len()
    }
}

/// The pending LPIs, and those in list registers, sorted by INTID.
///
/// # Invariants
///
/// `len` is at most the number of slots.
pub(super) struct LpiSet {
    slots: LpiSlots,
    len: usize,
}

impl LpiSet {
    pub(super) fn new() -> Self {
        Self {
            slots: LpiSlots(GrowVec::new()),
            len: 0,
        }
    }

    fn used(&self) -> &[Lpi] {
        self.slots.0.get(..self.len).unwrap_or_default()
    }

    fn find(&self, intid: u32) -> Result<usize, usize> {
        self.used().binary_search_by_key(&intid, |lpi| lpi.intid)
    }

    fn get_mut(&mut self, intid: u32) -> Option<&mut Lpi> {
        let at = self.find(intid).ok()?;
        self.slots.0.get_mut(at)
    }

    fn remove(&mut self, at: usize) {
        if let Some(tail) = self.slots.0.get_mut(at..self.len) {
            if !tail.is_empty() {
                tail.rotate_left(1);
                self.len -= 1;
            }
        }
    }

    /// Replaces the slots; gives back those that are free now. If the new ones are too few, they
    /// are given back.
    pub(super) fn set_slots(&mut self, mut new: LpiSlots) -> LpiSlots {
        let used = self.used();
        if let Some(room) = new.0.get_mut(..used.len()) {
            room.copy_from_slice(used);
            core::mem::swap(&mut self.slots, &mut new);
        }
        new
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// `intid` becomes pending. True if the vCPU should know.
    pub(super) fn pend(
        &mut self,
        intid: u32,
        priority: u8,
        enabled: bool,
    ) -> Result<bool, LpiError> {
        if !(FIRST_LPI..END_OF_LPIS).contains(&intid) {
            return Err(LpiError::NoSuchInterrupt);
        }
        let at = match self.find(intid) {
            Ok(at) => at,
            Err(at) => {
                let tail = self.slots.0.get_mut(at..=self.len);
                let tail = tail.ok_or(LpiError::NoRoom)?;
                tail.rotate_right(1);
                if let Some(slot) = tail.first_mut() {
                    *slot = Lpi {
                        intid,
                        ..Lpi::default()
                    };
                }
                // INVARIANT: there was a slot at `len`.
                self.len += 1;
                at
            }
        };
        let Some(lpi) = self.slots.0.get_mut(at) else {
            return Err(LpiError::NoRoom);
        };
        let known = lpi.has(PENDING) && lpi.has(ENABLED);
        lpi.flags |= PENDING;
        configure(lpi, priority, enabled);
        Ok(enabled && !known)
    }

    /// The configuration of `intid` has changed. True if the vCPU should know.
    pub(super) fn configure(&mut self, intid: u32, priority: u8, enabled: bool) -> bool {
        self.get_mut(intid).is_some_and(|lpi| {
            configure(lpi, priority, enabled);
            lpi.has(IN_LR) || lpi.has(ENABLED)
        })
    }

    /// `intid` is no longer pending. True if the vCPU should know.
    pub(super) fn clear(&mut self, intid: u32) -> bool {
        let Ok(at) = self.find(intid) else {
            return false;
        };
        match self.slots.0.get_mut(at) {
            Some(lpi) if lpi.has(IN_LR) => {
                lpi.flags &= !(PENDING | LENT);
                true
            }
            _ => {
                self.remove(at);
                false
            }
        }
    }

    /// Takes `intid` away, to make it pending elsewhere.
    pub(super) fn take(&mut self, intid: u32) -> Taken {
        match self.get_mut(intid) {
            None => Taken::Idle,
            Some(lpi) if lpi.has(IN_LR) => Taken::InListRegister,
            Some(_) => {
                self.clear(intid);
                Taken::Pending
            }
        }
    }

    /// None is pending any more. True if the vCPU should know.
    pub(super) fn clear_all(&mut self) -> bool {
        let mut kept = 0;
        for at in 0..self.len {
            let Some(&(mut lpi)) = self.slots.0.get(at) else {
                break;
            };
            if lpi.has(IN_LR) {
                lpi.flags &= !(PENDING | LENT);
                if let Some(slot) = self.slots.0.get_mut(kept) {
                    *slot = lpi;
                    kept += 1;
                }
            }
        }
        // INVARIANT: it does not grow.
        self.len = kept;
        kept != 0
    }

    /// As after a reset, list registers and all.
    pub(super) fn reset(&mut self) {
        self.len = 0;
    }

    /// The pending ones, ascending.
    pub(super) fn pending(&self) -> impl Iterator<Item = u32> + '_ {
        let pending = |lpi: &&Lpi| lpi.has(PENDING) || lpi.has(LENT);
        self.used().iter().filter(pending).map(|lpi| lpi.intid)
    }

    pub(super) fn is_pending(&self, intid: u32) -> bool {
        let at = self.find(intid).ok();
        let lpi = at.and_then(|at| self.used().get(at));
        lpi.is_some_and(|lpi| lpi.has(PENDING) || lpi.has(LENT))
    }

    /// INTID and priority of those that a vCPU could take.
    #[inline]
    pub(super) fn ready(&self) -> impl Iterator<Item = (u32, u8)> + '_ {
        let wanted = PENDING | ENABLED;
        (self.used().iter())
            .filter(move |lpi| lpi.flags & (wanted | IN_LR) == wanted)
            .map(|lpi| (lpi.intid, lpi.priority))
    }

    /// Puts `intid` into a list register. Its priority.
    pub(super) fn lend(&mut self, intid: u32) -> Option<u8> {
        let lpi = self.get_mut(intid)?;
        lpi.flags = lpi.flags & !PENDING | IN_LR | LENT;
        Some(lpi.priority)
    }

    /// Takes `intid` back from a list register.
    pub(super) fn reclaim(&mut self, intid: u32, pending: bool) {
        let Ok(at) = self.find(intid) else {
            return;
        };
        let Some(lpi) = self.slots.0.get_mut(at).filter(|lpi| lpi.has(IN_LR)) else {
            return;
        };
        if pending && lpi.has(LENT) {
            lpi.flags |= PENDING;
        }
        lpi.flags &= !(IN_LR | LENT);
        if !lpi.has(PENDING) {
            self.remove(at);
        }
    }
}

fn configure(lpi: &mut Lpi, priority: u8, enabled: bool) {
    lpi.priority = priority & PRIORITY_MASK;
    lpi.flags = lpi.flags & !ENABLED | if enabled { ENABLED } else { 0 };
}
