// SPDX-License-Identifier: GPL-2.0

//! VMIDs of VMs, for as long as a generation of them lasts: see [`model`].

use super::{
    insn,
    model::vmid::{self as model, Tagged, IDLE},
};
use crate::host::percpu::PerCpu;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::{new_spinlock_irq, prelude::*, sync::SpinLockIrq};

/// A VM's.
#[derive(Default)]
pub(crate) struct Vmid(AtomicU64);

/// The host's. By [`Self::words`] a CPU says what it has loaded; only it writes there, but for 0, which
/// a change of generation leaves.
#[pin_data]
pub(crate) struct Vmids {
    /// As the table's, for who has no lock.
    generation: AtomicU64,
    words: PerCpu<AtomicU64>,
    #[pin]
    table: SpinLockIrq<model::Vmids<KVVec<u64>, KVVec<Tagged>>>,
}

impl Vmids {
    /// Of hardware that has so many.
    ///
    /// # Errors
    /// `ENOMEM`; `ENODEV`: the host has as many CPUs as VMIDs.
    pub(crate) fn new(count: usize) -> Result<Pin<KBox<Self>>> {
        let cpus = usize::try_from(kernel::cpu::nr_cpu_ids())?;
        if cpus + 1 >= count {
            pr_err!("as many CPUs as VMIDs\n");
            return Err(ENODEV);
        }
        let used = KVVec::from_elem(0, count / 64, GFP_KERNEL)?;
        let held = KVVec::from_elem(Tagged::default(), cpus, GFP_KERNEL)?;
        let table = model::Vmids::new(used, held);
        KBox::try_pin_init(
            try_pin_init!(Self {
                generation: AtomicU64::new(table.generation()),
                words: PerCpu::new(|_| Ok(AtomicU64::new(0)))?,
                table <- new_spinlock_irq!(table, "rkvm::Vmids"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The VM's VMID on this CPU, from now on. IRQs are off until [`Self::leave`].
    #[inline]
    pub(crate) fn enter(&self, vm: &Vmid) -> u64 {
        let Some((_, word)) = self.words.current() else {
            return 0;
        };
        let mine = vm.0.load(Ordering::Relaxed);
        let had = word.load(Ordering::SeqCst);
        // A change of generation leaves 0, which no exchange can miss, or finds `mine`.
        if had != 0
            && Tagged::of(mine).generation() == self.generation.load(Ordering::SeqCst)
            && word
                .compare_exchange(had, mine, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            return u64::from(Tagged::of(mine).id());
        }
        self.renew(vm, word)
    }

    #[cold]
    fn renew(&self, vm: &Vmid, word: &AtomicU64) -> u64 {
        let mut table = self.table.lock();
        let next = table.generation() + 1;
        let old = Tagged::of(vm.0.load(Ordering::Relaxed));
        let renewed = table.renew(old, |cpu| {
            self.generation.store(next, Ordering::SeqCst);
            let word = u32::try_from(cpu).ok().and_then(|c| self.words.get(c));
            word.map_or(0, |w| w.swap(0, Ordering::SeqCst))
        });
        // There are more than CPUs.
        let Some(r) = renewed else {
            return 0;
        };
        if r.flush {
            insn::flush_all_vmids();
        }
        vm.0.store(r.vmid.word(), Ordering::Relaxed);
        word.store(r.vmid.word(), Ordering::SeqCst);
        u64::from(r.vmid.id())
    }

    /// This CPU has it no more.
    #[inline]
    pub(crate) fn leave(&self, vm: &Vmid) {
        if let Some((_, word)) = self.words.current() {
            let mine = vm.0.load(Ordering::Relaxed);
            // Fails if the generation has changed, which has left 0.
            let _ = word.compare_exchange(mine, IDLE, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}
