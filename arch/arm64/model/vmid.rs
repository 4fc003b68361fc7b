// SPDX-License-Identifier: GPL-2.0

//! VMIDs, by which processors tell VMs' translations apart. There are fewer than there can be VMs, so a VM has one for
//! a generation: when none is left, a new generation begins, in which all are free but those that processors use
//! right then; all translations are dropped with it.
//!
//! Arm ARM (DDI 0487), D8.16 (VMID). VMID 0 is never given: it stands in VTTBR_EL2 while no guest is loaded.

use core::ops::DerefMut;

/// A VMID and its generation; 0 has never been given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tagged(u64);

const ID_BITS: u32 = 16;

impl Tagged {
    /// As one word, never 0 if it was given. [`IDLE`] is no word of any.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// From a word.
    pub const fn of(word: u64) -> Tagged {
        Tagged(word)
    }

    /// The VMID.
    pub const fn id(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The generation.
    pub const fn generation(self) -> u64 {
        self.0 >> ID_BITS
    }

    const fn new(generation: u64, id: u16) -> Tagged {
        Tagged(generation << ID_BITS | id as u64)
    }
}

/// What a processor's word says when no guest is loaded, in the generation that goes on. At a change of generation
/// each processor's word becomes 0.
pub const IDLE: u64 = u64::MAX;

/// The VMIDs of a host.
pub struct Vmids<M, R> {
    /// A bit for each VMID that this generation has given.
    used: M,
    /// By processor: what it had when the generation changed, as long as it may have it still.
    held: R,
    generation: u64,
    /// Where the search begins.
    next: usize,
    count: usize,
}

/// What [`Vmids::renew`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The VM's from now on.
    pub vmid: Tagged,
    /// A new generation has begun: all translations of all VMIDs, on all processors, are to be dropped before it is
    /// used.
    pub flush: bool,
}

impl<M: DerefMut<Target = [u64]>, R: DerefMut<Target = [Tagged]>> Vmids<M, R> {
    /// `used` has a bit for each VMID that the hardware has, `held` an entry for each processor; all are zero.
    pub fn new(used: M, held: R) -> Self {
        let count = used.len().saturating_mul(64).min(1 << ID_BITS);
        Vmids {
            used,
            held,
            generation: 1,
            next: 1,
            count,
        }
    }

    /// The generation that goes on. Who reads it without a lock must look at its processor's word too.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    fn is_used(&self, id: usize) -> bool {
        let word = self.used.get(id / 64);
        word.is_none_or(|w| *w >> (id % 64) & 1 != 0)
    }

    fn mark(&mut self, id: usize) {
        if let Some(w) = self.used.get_mut(id / 64) {
            *w |= 1 << (id % 64);
        }
    }

    fn find(&mut self) -> Option<u16> {
        let (next, count) = (self.next.max(1), self.count);
        let found = (next..count)
            .chain(1..next.min(count))
            .find(|&id| !self.is_used(id))?;
        self.next = found + 1;
        u16::try_from(found).ok()
    }

    /// A VMID for a VM whose own, `old`, is of an earlier generation, or 0 if it has had none. `take` empties a
    /// processor's word, and gives what it was: called for each if the generation changes.
    ///
    /// `None` only if there are as many processors as VMIDs, which no hardware has.
    pub fn renew(&mut self, old: Tagged, take: impl FnMut(usize) -> u64) -> Option<Renewed> {
        if old.0 != 0 {
            if old.generation() == self.generation {
                return Some(Renewed {
                    vmid: old,
                    flush: false,
                });
            }
            // Where a processor holds it, the VM keeps it: translations are dropped by VMID, for all processors.
            let kept = Tagged::new(self.generation, old.id());
            let mut is_held = false;
            for h in self.held.iter_mut().filter(|h| **h == old) {
                *h = kept;
                is_held = true;
            }
            // Or nobody else has taken it.
            if is_held || old.id() != 0 && !self.is_used(usize::from(old.id())) {
                self.mark(usize::from(old.id()));
                return Some(Renewed {
                    vmid: kept,
                    flush: false,
                });
            }
        }
        if let Some(id) = self.find() {
            self.mark(usize::from(id));
            return Some(Renewed {
                vmid: Tagged::new(self.generation, id),
                flush: false,
            });
        }
        self.roll_over(take);
        let id = self.find()?;
        self.mark(usize::from(id));
        Some(Renewed {
            vmid: Tagged::new(self.generation, id),
            flush: true,
        })
    }

    fn roll_over(&mut self, mut take: impl FnMut(usize) -> u64) {
        self.generation += 1;
        self.next = 1;
        self.used.fill(0);
        for cpu in 0..self.held.len() {
            let has = match take(cpu) {
                // It has not looked since the last change: what it had then it may have still.
                0 => self.held.get(cpu).copied().unwrap_or_default(),
                IDLE => Tagged(0),
                word => Tagged(word),
            };
            if let Some(h) = self.held.get_mut(cpu) {
                *h = has;
            }
            if has.0 != 0 {
                self.mark(usize::from(has.id()));
            }
        }
    }
}
