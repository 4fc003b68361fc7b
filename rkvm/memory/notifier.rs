// SPDX-License-Identifier: GPL-2.0

//! What the host's news about its page tables do to the guest's.

use core::{ops::Range, sync::atomic::Ordering};

use super::{stage2::Entry, Mmu, Remote, Shadow, Slot, SlotSet};
use crate::host::{mm::NotifierOps, table_page::FreeList};

/// User addresses as the slots count them.
fn hvas(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

/// Calls `visit` with the guest frames that `hva` backs, in slots of the set and in one on its way
/// out of it.
fn each_backed(
    slots: &SlotSet,
    leaving: Option<&Slot>,
    hva: Range<u64>,
    mut visit: impl FnMut(Range<u64>),
) {
    if let Some(slot) = leaving {
        visit(slot.gfns_of(&hva));
    }
    for slot in slots.by_hva(hva.clone()) {
        visit(slot.gfns_of(&hva));
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
            let Mmu { tree, leaving, .. } = mmu;
            each_backed(&slots, leaving.as_ref(), hva, |gfns| {
                changed |= tree.zap(gfns, &mut |page| freed.push(page));
            });
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
        each_backed(&slots, mmu.leaving.as_ref(), hva, |gfns| {
            young |= mmu.tree.age(gfns, clear);
        });
        young
    }

    fn release(&self) {
        self.unmap_all();
    }
}
