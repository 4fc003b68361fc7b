// SPDX-License-Identifier: GPL-2.0

//! Faults of the second stage: a guest frame is accessed that the tree does not allow yet.

use core::sync::atomic::Ordering;
use kernel::prelude::*;

use super::{
    slots::PAGE_SHIFT,
    stage2::{self, Access, Allow, Entry, Leaf, MapError, MemoryType},
    Memory, Remote, Shadow, Slot, TableCache, View,
};
use crate::host::{
    mm::{self, UserFrame, UserPage},
    table_page::FreeList,
};

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The access is allowed now: enter the guest again.
    Mapped,
    /// Nothing was done: a signal is pending (a broken page has sent one), or the host is
    /// changing the page. Handle signals and enter the guest again; it will fault again.
    Retry,
    /// No slot has this frame: the access is one to a device.
    NoSlot,
    /// A write to a read-only slot, which is one to a device.
    ReadOnly,
}

/// What backs a guest frame.
struct Backing {
    pfn: u64,
    /// The host allows writes.
    write: bool,
    memory: MemoryType,
    /// Keeps the page until the translation is in the tree; from then on the notifier does.
    page: Option<UserPage>,
}

/// Why there is none.
enum NoBacking {
    Retry,
    Error(Error),
}

/// Why a translation was not put into the tree.
enum NotInstalled {
    /// The host is changing the page.
    Changing,
    /// The host has changed pages since it was asked.
    Ended,
    /// The tree does not take it.
    Tree(MapError),
}

/// How often a fault asks the host before it gives the vCPU a chance to see signals.
const TRIES: u32 = 4;

impl<E: Entry, R: Remote> Memory<E, R> {
    /// Resolves a fault of `access` at `gpa`. Sleeps; the VM's address space is the current one.
    ///
    /// `EFAULT`: the slot's user address has no memory, or not with that permission: for user
    /// space to see (`KVM_EXIT_MEMORY_FAULT`). `ENOMEM`.
    pub(crate) fn fault(
        &self,
        view: &View<'_>,
        gpa: u64,
        access: Access,
        cache: &mut TableCache,
    ) -> Result<Outcome> {
        let shadow = &*self.shadow;
        let gfn = gpa >> PAGE_SHIFT;
        let write = access == Access::Write;
        let Some(slot) = view.slot(gfn) else {
            return Ok(Outcome::NoSlot);
        };
        if write && slot.readonly() {
            return Ok(Outcome::ReadOnly);
        }
        // The host's own work for this fault, such as breaking copy-on-write, is a change that ends
        // while we ask: ask again at once.
        for _ in 0..TRIES {
            shadow.top_up(cache)?;
            let ends = shadow.ends.load(Ordering::Acquire);
            let hva = slot.hva_of(gfn);
            let backing = match Backing::find(hva as usize, write, !slot.readonly()) {
                Ok(backing) => backing,
                Err(NoBacking::Retry) => return Ok(Outcome::Retry),
                Err(NoBacking::Error(error)) => return Err(error),
            };
            let level = shadow.leaf_level(slot, gfn, backing.pfn);
            if backing.memory == MemoryType::Normal {
                let pages = stage2::pages::<E>(level);
                let first = backing.pfn & !(pages - 1);
                shadow
                    .remote
                    .prepare_memory(first << PAGE_SHIFT, pages << PAGE_SHIFT);
            }
            match shadow.install(slot, gfn, write, ends, level, &backing, cache) {
                Ok(()) => return Ok(Outcome::Mapped),
                Err(NotInstalled::Ended) => {}
                Err(NotInstalled::Changing) => break,
                Err(NotInstalled::Tree(MapError::InTheWay)) => shadow.make_room(gfn, level),
                Err(NotInstalled::Tree(MapError::Busy | MapError::NeedTable(_))) => {}
                Err(NotInstalled::Tree(MapError::Invalid)) => return Err(EFAULT),
            }
        }
        Ok(Outcome::Retry)
    }

    /// Resolves a fault if the tree has all that it takes. May be called with interrupts off; `false`
    /// means that it takes [`Memory::fault`].
    #[inline]
    pub(crate) fn fault_fast(&self, view: &View<'_>, gpa: u64, access: Access) -> bool {
        let gfn = gpa >> PAGE_SHIFT;
        let Some(slot) = view.slot(gfn) else {
            return false;
        };
        // No spinning: the lock's holder may be waiting for this CPU.
        let Some(mmu) = self.shadow.mmu.try_read() else {
            return false;
        };
        match mmu.tree.allow(gfn, access) {
            Allow::Allowed => true,
            Allow::MadeWritable => {
                // Under the lock, so that the dirty log sees both or none.
                slot.mark_dirty(gfn);
                true
            }
            Allow::Denied => false,
        }
    }
}

impl<E: Entry, R: Remote> Shadow<E, R> {
    /// The largest level at which the host and the slot allow a leaf for `gfn`.
    fn leaf_level(&self, slot: &Slot, gfn: u64, pfn: u64) -> u32 {
        if self.config.max_leaf_level == 0 || slot.logging() {
            return 0;
        }
        let hva = slot.hva_of(gfn);
        let host_shift = mm::mapping_shift(hva as usize);
        (1..=self.config.max_leaf_level)
            .rev()
            .find(|&level| {
                let pages = stage2::pages::<E>(level);
                let first = gfn & !(pages - 1);
                let unlike = (gfn ^ pfn) | (gfn ^ (hva >> PAGE_SHIFT));
                host_shift >= PAGE_SHIFT + stage2::page_order::<E>(level)
                    && unlike & (pages - 1) == 0
                    && slot.base_gfn <= first
                    && first + pages <= slot.gfns().end
            })
            .unwrap_or(0)
    }

    /// Puts a translation into the tree, unless the host has changed its mind.
    #[expect(clippy::too_many_arguments, reason = "all that a fault has found out")]
    fn install(
        &self,
        slot: &Slot,
        gfn: u64,
        write: bool,
        ends: u64,
        level: u32,
        backing: &Backing,
        cache: &mut TableCache,
    ) -> Result<(), NotInstalled> {
        let pages = stage2::pages::<E>(level);
        let hva = slot.hva_of(gfn & !(pages - 1)) as usize;
        let host_write = backing.write && !slot.readonly();
        let (may_write, dirty) = self.config.may_write(host_write, write, slot.logging());
        let leaf = Leaf {
            pfn: backing.pfn & !(pages - 1),
            write: may_write,
            exec: true,
            host_write,
            memory: backing.memory,
            accessed: true,
            dirty,
        };
        let mmu = self.mmu.read();
        let bytes = (pages as usize) << PAGE_SHIFT;
        if mmu.invalidations.meets(&(hva..hva.saturating_add(bytes))) {
            return Err(NotInstalled::Changing);
        }
        if self.ends.load(Ordering::Acquire) != ends {
            return Err(NotInstalled::Ended);
        }
        mmu.tree
            .map(gfn, level, &leaf, cache)
            .map_err(NotInstalled::Tree)?;
        if write {
            slot.mark_dirty(gfn);
        }
        if let Some(page) = &backing.page {
            // Before the notifier can take the page away again.
            if host_write {
                page.set_dirty();
            }
            page.set_accessed();
        }
        Ok(())
    }

    /// Unmaps all that stands where a leaf of `level` for `gfn` should go.
    fn make_room(&self, gfn: u64, level: u32) {
        let pages = stage2::pages::<E>(level);
        let first = gfn & !(pages - 1);
        let mut freed = FreeList::new();
        let change = {
            let mut mmu = self.mmu.write();
            let changed = mmu
                .tree
                .zap(first..first + pages, &mut |page| freed.push(page));
            mmu.changed(changed)
        };
        self.settle(change);
    }
}

impl Backing {
    /// What backs the user address `hva`, brought in if need be. `may_write`: with the permission
    /// to write if it can be had for nothing.
    fn find(hva: usize, write: bool, may_write: bool) -> Result<Self, NoBacking> {
        let of_page = |page: UserPage, write| Self {
            pfn: page.pfn(),
            write,
            memory: MemoryType::Normal,
            page: Some(page),
        };
        if may_write {
            if let Some(page) = UserPage::get_fast(hva, true) {
                return Ok(of_page(page, true));
            }
        }
        let error = match UserPage::get(hva, write, true) {
            Ok(page) => {
                if !write && may_write {
                    // The fault may have made it writable; if another page is there by now, take that.
                    if let Some(writable) = UserPage::get_fast(hva, true) {
                        return Ok(of_page(writable, true));
                    }
                }
                return Ok(of_page(page, write));
            }
            Err(error) => error,
        };
        if error == EINTR || error == EAGAIN {
            return Err(NoBacking::Retry);
        }
        if error == EHWPOISON {
            mm::signal_hwpoison(hva);
            return Err(NoBacking::Retry);
        }
        match UserFrame::of_current(hva, write) {
            Ok(frame) => Ok(Self {
                pfn: frame.pfn,
                write: frame.write,
                memory: frame.memory,
                page: None,
            }),
            Err(error) if error == EAGAIN => Err(NoBacking::Retry),
            Err(error) if error == ENOMEM => Err(NoBacking::Error(ENOMEM)),
            Err(_) => Err(NoBacking::Error(EFAULT)),
        }
    }
}
