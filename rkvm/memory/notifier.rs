// SPDX-License-Identifier: GPL-2.0

//! What the host's news about its page tables do to the guest's.

use core::{ops::Range, sync::atomic::Ordering};

use super::{stage2::Entry, Mmu, Remote, Shadow, SlotSet};
use crate::host::{mm::NotifierOps, table_page::FreeList};

/// User addresses as the slots count them.
fn hvas(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

impl<E: Entry> Mmu<E> {
    /// The guest frames that `hva` backs, in slots of the set and in one on its way out of it.
    fn backed<'a>(
        slots: &'a SlotSet,
        leaving: &'a Option<super::Slot>,
        hva: &'a Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        slots
            .by_hva(hva)
            .chain(leaving.iter())
            .map(|slot| slot.gfns_of(hva))
            .filter(|gfns| !gfns.is_empty())
    }
}

impl<E: Entry, R: Remote> NotifierOps for Shadow<E, R> {
    fn invalidate_start(&self, range: Range<usize>) {
        let hva = hvas(&range);
        let mut freed = FreeList::new();
        let change = {
            let mut guard = self.mmu.write();
            let mmu = &mut *guard;
            mmu.invalidations.begin(&range);
            // Read after the lock was taken: a fault that used a newer set than this one takes
            // the lock later, and sees the invalidation.
            let slots = self.slots.read();
            let mut changed = false;
            for gfns in Mmu::<E>::backed(&slots, &mmu.leaving, &hva) {
                changed |= mmu.tree.zap(gfns, &mut |page| freed.push(page));
            }
            mmu.changed(changed)
        };
        self.settle(change);
    }

    fn invalidate_end(&self, range: Range<usize>) {
        let mut mmu = self.mmu.write();
        mmu.invalidations.end(&range);
        self.ends.fetch_add(1, Ordering::Release);
    }

    fn age(&self, range: Range<usize>, clear: bool) -> bool {
        let hva = hvas(&range);
        let mmu = self.mmu.read();
        let slots = self.slots.read();
        // No flush: a processor may go on with a cached translation and not set the flag again for
        // a while. That only makes a page look older than it is, as with the host's own.
        let mut young = false;
        for gfns in Mmu::<E>::backed(&slots, &mmu.leaving, &hva) {
            young |= mmu.tree.age(gfns, clear);
        }
        young
    }

    fn release(&self) {
        self.unmap(0..self.end_gfn());
    }
}
