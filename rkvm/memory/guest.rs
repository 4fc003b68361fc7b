// SPDX-License-Identifier: GPL-2.0

//! Access to guest memory by the host, through the user addresses that back it.

use core::{cell::Cell, ops::Deref};
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

use super::{slots::PAGE_SHIFT, Slot, SlotSet, SlotsRef};
use crate::host::mm::{self, UserPage};

const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Why guest memory could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestAccess {
    /// No slot has (all of) it.
    NoSlot,
    /// A write to a read-only slot.
    ReadOnly,
    /// The user address has no memory, or (without sleeping) not at once.
    Fault,
}

impl From<GuestAccess> for Error {
    fn from(_: GuestAccess) -> Self {
        EFAULT
    }
}

/// A read section of the slot set, with the accesses that it allows.
///
/// All accesses go through the current address space, which must be the VM's. Writes that
/// succeed are in the dirty log; a write that fails may have been done in part.
pub(crate) struct View<'a> {
    slots: SlotsRef<'a>,
    /// Where the last slot was found.
    near: Cell<u32>,
}

impl Deref for View<'_> {
    type Target = SlotSet;

    fn deref(&self) -> &SlotSet {
        &self.slots
    }
}

impl Slot {
    /// Notes that `gfn`, which lies in the slot, has been written.
    #[inline]
    pub(crate) fn mark_dirty(&self, gfn: u64) {
        if let Some(dirty) = &self.dirty {
            dirty.set(gfn.wrapping_sub(self.base_gfn));
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn new(slots: SlotsRef<'a>) -> Self {
        Self {
            slots,
            near: Cell::new(0),
        }
    }

    /// The slot with `gfn`.
    #[inline]
    pub(crate) fn slot(&self, gfn: u64) -> Option<&Slot> {
        let mut near = self.near.get();
        let slot = self.slots.find_near(gfn, &mut near);
        self.near.set(near);
        slot
    }

    /// The processor has told that the guest wrote at `gpa`. Any address: where there is no slot (any
    /// more), nobody asks.
    #[inline]
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn written(&self, gpa: u64) {
        let gfn = gpa >> PAGE_SHIFT;
        if let Some(slot) = self.slot(gfn) {
            slot.mark_dirty(gfn);
        }
    }

    /// The slot with `gpa` and the user address of that, if `len` bytes from there are in one page.
    #[inline]
    fn spot(&self, gpa: u64, len: usize) -> Result<Option<(&Slot, usize)>, GuestAccess> {
        let offset = gpa & (PAGE_SIZE - 1);
        if len as u64 > PAGE_SIZE - offset {
            return Ok(None);
        }
        let gfn = gpa >> PAGE_SHIFT;
        let slot = self.slot(gfn).ok_or(GuestAccess::NoSlot)?;
        Ok(Some((slot, (slot.hva_of(gfn) | offset) as usize)))
    }

    /// The slot with `gpa`, the user address of that, and how many of `len` bytes follow in the slot.
    #[inline]
    fn span(&self, gpa: u64, len: usize) -> Result<(&Slot, usize, usize), GuestAccess> {
        let gfn = gpa >> PAGE_SHIFT;
        let slot = self.slot(gfn).ok_or(GuestAccess::NoSlot)?;
        let left = (slot.gfns().end << PAGE_SHIFT) - gpa;
        let hva = slot.hva_of(gfn) + (gpa & (PAGE_SIZE - 1));
        Ok((slot, hva as usize, left.min(len as u64) as usize))
    }

    #[inline]
    fn read_with(
        &self,
        mut gpa: u64,
        mut to: &mut [u8],
        copy: impl Fn(&mut [u8], usize) -> Result,
    ) -> Result<(), GuestAccess> {
        if let Some((_, hva)) = self.spot(gpa, to.len())? {
            return copy(to, hva).map_err(|_| GuestAccess::Fault);
        }
        while !to.is_empty() {
            let (_, hva, len) = self.span(gpa, to.len())?;
            let (now, rest) = to.split_at_mut_checked(len).ok_or(GuestAccess::Fault)?;
            copy(now, hva).map_err(|_| GuestAccess::Fault)?;
            to = rest;
            gpa += len as u64;
        }
        Ok(())
    }

    #[inline]
    fn write_with(
        &self,
        mut gpa: u64,
        mut from: &[u8],
        copy: impl Fn(usize, &[u8]) -> Result,
    ) -> Result<(), GuestAccess> {
        if let Some((slot, hva)) = self.spot(gpa, from.len())? {
            if slot.readonly() {
                return Err(GuestAccess::ReadOnly);
            }
            let done = copy(hva, from);
            // Also after a failure, which may have come in the middle.
            slot.mark_dirty(gpa >> PAGE_SHIFT);
            return done.map_err(|_| GuestAccess::Fault);
        }
        while !from.is_empty() {
            let (slot, hva, len) = self.span(gpa, from.len())?;
            if slot.readonly() {
                return Err(GuestAccess::ReadOnly);
            }
            let (now, rest) = from.split_at_checked(len).ok_or(GuestAccess::Fault)?;
            let done = copy(hva, now);
            if slot.dirty.is_some() {
                let last = (gpa + (len as u64 - 1)) >> PAGE_SHIFT;
                for gfn in gpa >> PAGE_SHIFT..=last {
                    slot.mark_dirty(gfn);
                }
            }
            done.map_err(|_| GuestAccess::Fault)?;
            from = rest;
            gpa += len as u64;
        }
        Ok(())
    }

    /// Reads guest memory. May sleep.
    pub(crate) fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), GuestAccess> {
        self.read_with(gpa, to, |to, hva| {
            // Mostly it is there, and then this is quicker.
            if mm::read_nofault(to, hva).is_ok() {
                return Ok(());
            }
            UserSlice::new(UserPtr::from_addr(hva), to.len())
                .reader()
                .read_slice(to)
        })
    }

    /// Writes guest memory. May sleep.
    pub(crate) fn write(&self, gpa: u64, from: &[u8]) -> Result<(), GuestAccess> {
        self.write_with(gpa, from, |hva, from| {
            UserSlice::new(UserPtr::from_addr(hva), from.len())
                .writer()
                .write_slice(from)
        })
    }

    /// Reads guest memory that is there at once. Any context with the VM's address space.
    #[inline]
    pub(crate) fn read_nofault(&self, gpa: u64, to: &mut [u8]) -> Result<(), GuestAccess> {
        self.read_with(gpa, to, mm::read_nofault)
    }

    /// Writes guest memory that is there at once. Any context with the VM's address space.
    #[inline]
    pub(crate) fn write_nofault(&self, gpa: u64, from: &[u8]) -> Result<(), GuestAccess> {
        self.write_with(gpa, from, mm::write_nofault)
    }

    /// Replaces the `size` (1, 2, 4 or 8) bytes at `gpa`, a multiple of `size`, by `new` if they are
    /// `old`, in one step to the guest. Returns what was there. May sleep.
    pub(crate) fn compare_exchange(
        &self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<u64, GuestAccess> {
        let (slot, hva, _) = self.span(gpa, size)?;
        if slot.readonly() {
            return Err(GuestAccess::ReadOnly);
        }
        let page = UserPage::get(hva, true, false).map_err(|_| GuestAccess::Fault)?;
        let offset = (gpa & (PAGE_SIZE - 1)) as usize;
        let was = page
            .compare_exchange(offset, size, old, new)
            .map_err(|_| GuestAccess::Fault)?;
        if was == old {
            page.set_dirty();
            slot.mark_dirty(gpa >> PAGE_SHIFT);
        }
        Ok(was)
    }
}
