// SPDX-License-Identifier: GPL-2.0

//! One slot for each possible CPU.

use super::work;
use kernel::{cpu::nr_cpu_ids, prelude::*};

/// A slot in cache lines of its own.
#[repr(align(128))]
struct Line<T>(T);

/// `T` for each possible CPU. Slots are shared: what changes in them is atomic or locked.
pub(crate) struct PerCpu<T>(KVVec<Line<T>>);

impl<T> PerCpu<T> {
    /// Makes the slots, each by `make(cpu)`. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`, and what `make` fails with.
    pub(crate) fn new(mut make: impl FnMut(u32) -> Result<T>) -> Result<Self> {
        let n = nr_cpu_ids();
        let mut slots = KVVec::with_capacity(usize::try_from(n)?, GFP_KERNEL)?;
        for cpu in 0..n {
            slots.push(Line(make(cpu)?), GFP_KERNEL)?;
        }
        Ok(Self(slots))
    }

    /// The slot of a CPU; `None` if there can be no such CPU.
    #[inline]
    pub(crate) fn get(&self, cpu: u32) -> Option<&T> {
        self.0.get(usize::try_from(cpu).ok()?).map(|l| &l.0)
    }

    /// The number and slot of the CPU that this runs on; meaningful while it cannot migrate.
    #[inline]
    pub(crate) fn current(&self) -> Option<(u32, &T)> {
        let cpu = work::cpu_hint();
        self.get(cpu).map(|t| (cpu, t))
    }
}
