// SPDX-License-Identifier: GPL-2.0

//! Changing the slot set.

use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};

use super::{
    bitmap::Bitmap,
    chunks,
    slots::{Change, Refused, Region, LOG_DIRTY, PAGE_SHIFT},
    stage2::Entry,
    Memory, Remote, Shadow, Slot, SlotSet,
};
use crate::host::{grow_vec::NoMemory, mm, trace};

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(why) => trace::invalid(why),
            Refused::Exists => trace::refuse(EEXIST, c"the slot overlaps another"),
            Refused::Absent(why) => trace::refuse(ENOENT, why),
            Refused::NoMemory => ENOMEM,
        }
    }
}

/// The slot that a region, checked already, describes.
fn slot(region: &Region, old: Option<&Slot>) -> Result<Slot> {
    let pages = region.memory_size >> PAGE_SHIFT;
    let dirty = if region.flags & LOG_DIRTY == 0 {
        None
    } else if let Some(dirty) = old.and_then(|old| old.dirty.as_ref()) {
        Some(dirty.clone())
    } else {
        Some(Arc::new(Bitmap::new(pages)?, GFP_KERNEL_ACCOUNT)?)
    };
    Ok(Slot {
        id: region.slot,
        flags: region.flags,
        base_gfn: region.guest_phys_addr >> PAGE_SHIFT,
        pages,
        hva: region.userspace_addr,
        dirty,
    })
}

/// Takes `old` out of a set and puts `new` in.
fn apply(set: &mut SlotSet, old: Option<&Slot>, new: Option<&Slot>) -> Result<(), NoMemory> {
    if new.is_some() {
        set.reserve()?;
    }
    if let Some(old) = old {
        set.remove(old.id);
    }
    if let Some(new) = new {
        set.insert(new)?;
    }
    Ok(())
}

impl<E: Entry, R: Remote> Memory<E, R> {
    /// Creates, deletes, moves a slot or switches its dirty log: `KVM_SET_USER_MEMORY_REGION`
    /// (Documentation/virt/kvm/api.rst, 4.35). Sleeps; the caller holds no [`super::View`].
    ///
    /// `EINVAL`: not aligned, out of bounds, unknown flags, unknown slot to delete, or another size,
    /// user address or `READONLY` than the slot has. `EEXIST`: overlaps another slot. `ENOMEM`.
    pub(crate) fn set_region(&self, region: &Region) -> Result {
        let hva = usize::try_from(region.userspace_addr)?;
        let size = usize::try_from(region.memory_size)?;
        if mm::untagged(hva) != hva || !mm::access_ok(hva, size) {
            return Err(trace::invalid(
                c"the slot's user addresses are not user space's",
            ));
        }
        let shadow = &*self.shadow;
        let mut writer = self.writer.lock();
        let mut next = match writer.spare.take() {
            Some(spare) => spare,
            None => KBox::new(shadow.slots.read().try_clone()?, GFP_KERNEL_ACCOUNT)?,
        };
        let change = match next.check(region, shadow.end_gfn()) {
            Ok(change) => change,
            Err(refused) => {
                writer.spare = Some(next);
                return Err(refused.into());
            }
        };
        let old = match change {
            Change::Create => None,
            _ => next.by_id(region.slot).cloned(),
        };
        let new = match change {
            Change::Nothing => {
                writer.spare = Some(next);
                return Ok(());
            }
            Change::Delete => None,
            _ => Some(slot(region, old.as_ref())?),
        };
        apply(&mut next, old.as_ref(), new.as_ref())?;
        if new.as_ref().is_some_and(Slot::logging) {
            shadow.log_writes();
        }

        if matches!(change, Change::Delete | Change::Move) {
            // From here to the end of `unmap` the host's news concern it as well.
            shadow.mmu.write().leaving = old.clone();
        }
        // Returns when all faults with the old set are over.
        let mut published = shadow.slots.replace(next);
        if let Some(old) = &old {
            match change {
                Change::Delete | Change::Move => {
                    shadow.unmap(old.gfns());
                    let left = shadow.mmu.write().leaving.take();
                    drop(left);
                }
                // Every page is to be seen at its next write, one by one.
                _ if region.flags & LOG_DIRTY != 0 => shadow.start_logging(old),
                // Small leaves go, so that blocks can come.
                _ if shadow.config.max_leaf_level > 0 => shadow.unmap(old.gfns()),
                _ => {}
            }
        }
        if shadow.logging.load(Ordering::Relaxed) && !shadow.slots.read().iter().any(Slot::logging)
        {
            shadow.log_no_writes();
        }
        // Without memory the next change makes a copy.
        if apply(&mut published, old.as_ref(), new.as_ref()).is_ok() {
            writer.spare = Some(published);
        }
        Ok(())
    }
}

impl<E: Entry, R: Remote> Shadow<E, R> {
    /// Takes blocks from a slot, and what keeps writes to its pages from being noticed.
    fn start_logging(&self, slot: &Slot) {
        let mut last = 0;
        for chunk in chunks(slot.gfns()) {
            let mut mmu = self.mmu.write();
            let blocks = mmu.tree.zap_blocks(chunk.clone());
            let pages = mmu.tree.watch_range(chunk);
            last = mmu.changed(blocks || pages);
        }
        self.settle(last);
    }
}
