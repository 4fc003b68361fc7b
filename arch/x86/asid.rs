// SPDX-License-Identifier: GPL-2.0

//! Address-space identifiers: each CPU hands out its own, in generations.
//!
//! A CPU counts ASIDs up from 1 (0 is the host's). When they run out, a new generation begins and
//! the whole TLB is flushed once; ASIDs of older generations are void. A vCPU keeps its ASID while it
//! stays on its CPU and the generation lasts. AMD APM vol. 2, 15.16; VPIDs of Intel's are the same thing
//! (SDM vol. 3C 30.1). Pure; the owner serializes access (it runs on the CPU in question, IRQs off).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A vCPU's ASID, and what it is valid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asid {
    /// The value, 1 or more once allocated.
    pub(crate) value: u32,
    /// Generation it belongs to; 0: none.
    pub(crate) generation: u64,
    /// CPU it belongs to.
    pub(crate) cpu: u32,
}

/// What an allocation asks for before the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing: no entry of this ASID can be in the TLB.
    None,
    /// All ASIDs: a new generation began.
    All,
}

/// One CPU's allocator.
pub(crate) struct Allocator {
    generation: AtomicU64,
    next: AtomicU32,
    max: AtomicU32,
}

impl Allocator {
    /// Without ASIDs until [`Allocator::restart`] says how many there are.
    pub(crate) const fn new() -> Self {
        Self {
            generation: AtomicU64::new(1),
            next: AtomicU32::new(1),
            max: AtomicU32::new(0),
        }
    }

    /// The hardware was turned on (again) here: `max` is the highest ASID. Every ASID handed out before is
    /// void, and the first one to come flushes the TLB.
    pub(crate) fn restart(&self, max: u32) {
        self.max.store(max, Relaxed);
        self.next.store(max.saturating_add(1), Relaxed);
    }

    /// The generation that is current.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Whether `a`, which `cpu` is asked about, can still be used on it.
    #[inline]
    pub(crate) fn valid(&self, a: &Asid, cpu: u32) -> bool {
        a.generation == self.generation() && a.cpu == cpu
    }

    /// A new ASID for this CPU, which is number `cpu`.
    pub(crate) fn allocate(&self, cpu: u32) -> (Asid, Flush) {
        let mut value = self.next.load(Relaxed);
        let mut flush = Flush::None;
        if value > self.max.load(Relaxed) {
            self.generation
                .store(self.generation().wrapping_add(1), Relaxed);
            value = 1;
            flush = Flush::All;
        }
        self.next.store(value.saturating_add(1), Relaxed);
        (
            Asid {
                value,
                generation: self.generation(),
                cpu,
            },
            flush,
        )
    }
}
