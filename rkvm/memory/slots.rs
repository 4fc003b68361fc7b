// SPDX-License-Identifier: GPL-2.0

//! Memory slots: which guest frames are backed by which user addresses.
//!
//! Pure: no kernel, tested on the host against a plain list. Units: `gfn` and `pages` in guest pages
//! of [`PAGE_SHIFT`], `hva` in bytes of user address space.

use core::{ffi::CStr, ops::Range};

use crate::host::grow_vec::{GrowVec, NoMemory};

/// log2 of the page size in which slots are counted.
pub const PAGE_SHIFT: u32 = 12;
/// Number of slots of a VM (`KVM_CAP_NR_MEMSLOTS`): the same as in-tree KVM has on x86.
pub const MAX_SLOTS: u32 = 32764;
/// Largest slot, in pages: the dirty log's ABI counts in `int`.
const MAX_PAGES: u64 = (1 << 31) - 1;

/// `KVM_MEM_LOG_DIRTY_PAGES`.
pub const LOG_DIRTY: u32 = 1 << 0;
/// `KVM_MEM_READONLY`.
pub const READONLY: u32 = 1 << 1;

/// `struct kvm_userspace_memory_region`, copied in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Address space in the upper half (must be 0), slot id in the lower.
    pub slot: u32,
    /// [`LOG_DIRTY`], [`READONLY`].
    pub flags: u32,
    /// Guest physical address, in bytes.
    pub guest_phys_addr: u64,
    /// Size in bytes; 0 deletes.
    pub memory_size: u64,
    /// User address.
    pub userspace_addr: u64,
}

/// A slot. `D` is what the dirty log hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot<D> {
    /// Its number, below [`MAX_SLOTS`].
    pub id: u32,
    /// [`LOG_DIRTY`], [`READONLY`].
    pub flags: u32,
    /// First guest frame.
    pub base_gfn: u64,
    /// Number of guest frames, not 0.
    pub pages: u64,
    /// User address of the first.
    pub hva: u64,
    /// The dirty log.
    pub dirty: D,
}

/// No slot can have the number.
const NO_SUCH_ID: &CStr = c"slot numbers are below 32764, in address space 0";

impl<D> Slot<D> {
    /// The words of the slot's dirty bitmap for `pages` pages from `first`, as
    /// `KVM_CLEAR_DIRTY_LOG` (Documentation/virt/kvm/api.rst, 4.117) may name them.
    ///
    /// # Errors
    /// [`Refused::Invalid`]: not in the slot, `first` is no multiple of 64, or `pages` is none and
    /// does not end with the slot.
    pub fn words_of(&self, first: u64, pages: u64) -> Result<Range<usize>, Refused> {
        let left = self
            .pages
            .checked_sub(first)
            .filter(|left| pages <= *left)
            .ok_or(Refused::Invalid(c"the pages to clear are not in the slot"))?;
        if first % 64 != 0 || (pages < left && pages % 64 != 0) {
            return Err(Refused::Invalid(
                c"the pages to clear start and end at multiples of 64, or at the slot's end",
            ));
        }
        let word = |n| usize::try_from(n).map_err(|_| Refused::NoMemory);
        Ok(word(first / 64)?..word(first / 64 + pages.div_ceil(64))?)
    }

    /// The guest frames.
    #[inline]
    pub fn gfns(&self) -> Range<u64> {
        self.base_gfn..self.base_gfn + self.pages
    }

    /// Whether the guest may only read.
    #[inline]
    pub fn readonly(&self) -> bool {
        self.flags & READONLY != 0
    }

    /// Whether the guest's writes are logged.
    #[inline]
    pub fn logging(&self) -> bool {
        self.flags & LOG_DIRTY != 0
    }

    /// Whether `gfn` lies in the slot.
    #[inline]
    pub fn contains(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base_gfn) < self.pages
    }

    /// The user address of `gfn`, which lies in the slot.
    #[inline]
    pub fn hva_of(&self, gfn: u64) -> u64 {
        self.hva
            .wrapping_add(gfn.wrapping_sub(self.base_gfn) << PAGE_SHIFT)
    }

    /// The slot's guest frames that `hva` backs, with pages touched in part.
    pub fn gfns_of(&self, hva: &Range<u64>) -> Range<u64> {
        let size = self.pages << PAGE_SHIFT;
        let from = hva.start.saturating_sub(self.hva).min(size);
        let to = hva.end.saturating_sub(self.hva).min(size);
        if from >= to {
            return self.base_gfn..self.base_gfn;
        }
        self.base_gfn + (from >> PAGE_SHIFT)..self.base_gfn + to.div_ceil(1 << PAGE_SHIFT)
    }
}

/// Why a region is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `EINVAL`: what is asked makes no sense, and why.
    Invalid(&'static CStr),
    /// `EEXIST`: another slot has some of these guest frames.
    Exists,
    /// `ENOENT`: there is no such slot, or none with a log; which of the two.
    Absent(&'static CStr),
    /// `ENOMEM`.
    NoMemory,
}

impl From<NoMemory> for Refused {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What setting a region amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing changes.
    Nothing,
    /// A new slot.
    Create,
    /// The slot goes.
    Delete,
    /// The slot appears at other guest frames.
    Move,
    /// Dirty logging is switched.
    Flags,
}

/// A slot's user addresses, for the way back from there.
#[derive(Clone, Copy)]
struct Back {
    start: u64,
    end: u64,
    /// Largest `end` of this and all before.
    reach: u64,
    gfn: u64,
}

/// The set of slots.
///
/// # Invariants
///
/// `by_gfn` is sorted by first guest frame and its slots do not overlap; `by_id` has the same slots
/// sorted by id; `by_hva` the same sorted by user address (these may overlap).
pub struct Slots<D> {
    by_gfn: GrowVec<Slot<D>>,
    by_id: GrowVec<(u32, u64)>,
    by_hva: GrowVec<Back>,
}

impl<D: Clone> Slots<D> {
    /// No slots.
    pub fn new() -> Self {
        Self {
            by_gfn: GrowVec::new(),
            by_id: GrowVec::new(),
            by_hva: GrowVec::new(),
        }
    }

    /// The same slots once more.
    pub fn try_clone(&self) -> Result<Self, NoMemory> {
        let mut clone = Self::new();
        for slot in self.iter() {
            clone.insert(slot)?;
        }
        Ok(clone)
    }

    /// All slots, by guest frame.
    pub fn iter(&self) -> impl Iterator<Item = &Slot<D>> {
        self.by_gfn.iter()
    }

    /// Where in `by_gfn` the slot with `gfn` is.
    #[inline]
    fn position(&self, gfn: u64) -> Option<usize> {
        let at = self
            .by_gfn
            .partition_point(|slot| slot.base_gfn <= gfn)
            .checked_sub(1)?;
        self.by_gfn.get(at)?.contains(gfn).then_some(at)
    }

    /// The slot with `gfn`.
    #[inline]
    pub fn find(&self, gfn: u64) -> Option<&Slot<D>> {
        self.by_gfn.get(self.position(gfn)?)
    }

    /// The slot with `gfn`, tried first at `hint`, which is set to where it was found. Any hint will do.
    #[inline]
    pub fn find_near(&self, gfn: u64, hint: &mut u32) -> Option<&Slot<D>> {
        if let Some(slot) = self.by_gfn.get(*hint as usize) {
            if slot.contains(gfn) {
                return Some(slot);
            }
        }
        let at = self.position(gfn)?;
        *hint = at as u32;
        self.by_gfn.get(at)
    }

    /// The slot with this id.
    pub fn by_id(&self, id: u32) -> Option<&Slot<D>> {
        let at = self.by_id.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        let &(_, gfn) = self.by_id.get(at)?;
        self.find(gfn)
    }

    /// The slot that a dirty log's request names.
    ///
    /// # Errors
    /// [`Refused::Invalid`]: no slot can have this id. [`Refused::Absent`]: no slot has.
    pub fn named(&self, id: u32) -> Result<&Slot<D>, Refused> {
        if id >= MAX_SLOTS {
            return Err(Refused::Invalid(NO_SUCH_ID));
        }
        self.by_id(id).ok_or(Refused::Absent(c"no such slot"))
    }

    /// The slots that some of `hva` backs.
    pub fn by_hva(&self, hva: Range<u64>) -> ByHva<'_, D> {
        ByHva {
            slots: self,
            next: self.by_hva.partition_point(|back| back.reach <= hva.start),
            hva,
        }
    }

    /// Whether a slot other than `but` has some of `gfns`.
    fn overlaps(&self, gfns: &Range<u64>, but: u32) -> bool {
        // The slots do not overlap each other, so their ends are sorted as well.
        let first = self
            .by_gfn
            .partition_point(|slot| slot.gfns().end <= gfns.start);
        self.by_gfn
            .get(first..)
            .unwrap_or(&[])
            .iter()
            .take_while(|slot| slot.base_gfn < gfns.end)
            .any(|slot| slot.id != but)
    }

    /// Checks a region, as `KVM_SET_USER_MEMORY_REGION` (Documentation/virt/kvm/api.rst, 4.35) defines.
    ///
    /// `end_gfn` is the first guest frame that the VM cannot have. That the user addresses are
    /// user space's is for the caller to check.
    pub fn check(&self, region: &Region, end_gfn: u64) -> Result<Change, Refused> {
        let invalid = |why| Err(Refused::Invalid(why));
        let offsets = region.memory_size | region.guest_phys_addr | region.userspace_addr;
        let pages = region.memory_size >> PAGE_SHIFT;
        if region.flags & !(LOG_DIRTY | READONLY) != 0 {
            return invalid(c"unknown flag of a memory slot");
        }
        if region.slot >= MAX_SLOTS {
            return invalid(NO_SUCH_ID);
        }
        if offsets & ((1 << PAGE_SHIFT) - 1) != 0 {
            return invalid(c"addresses and size of a slot are multiples of 4096");
        }
        if region
            .userspace_addr
            .checked_add(region.memory_size)
            .is_none()
        {
            return invalid(c"the slot's user addresses wrap around");
        }
        if pages > MAX_PAGES {
            return invalid(c"a slot has less than 2^31 pages");
        }
        let old = self.by_id(region.slot);
        if pages == 0 {
            return match old {
                Some(_) => Ok(Change::Delete),
                None => invalid(c"there is no such slot to delete"),
            };
        }
        let base_gfn = region.guest_phys_addr >> PAGE_SHIFT;
        let change = match old {
            None => Change::Create,
            Some(old) if old.hva != region.userspace_addr || old.pages != pages => {
                return invalid(c"a slot keeps its size and user address until it is deleted")
            }
            Some(old) if (old.flags ^ region.flags) & READONLY != 0 => {
                return invalid(c"a slot stays read-only or not until it is deleted")
            }
            Some(old) if old.base_gfn != base_gfn => Change::Move,
            Some(old) if old.flags != region.flags => return Ok(Change::Flags),
            Some(_) => return Ok(Change::Nothing),
        };
        // Frame numbers are far from the end of their type, so this also refuses what wraps around.
        let gfns = base_gfn..base_gfn + pages;
        if gfns.end > end_gfn {
            return invalid(c"the slot lies beyond the VM's physical addresses");
        }
        if self.overlaps(&gfns, region.slot) {
            return Err(Refused::Exists);
        }
        Ok(change)
    }

    /// Makes room for one more slot, so that the next [`Slots::insert`] cannot fail.
    pub fn reserve(&mut self) -> Result<(), NoMemory> {
        self.by_gfn.reserve_one()?;
        self.by_id.reserve_one()?;
        self.by_hva.reserve_one()
    }

    /// Adds a slot, which [`Slots::check`] has allowed; fails without [`Slots::reserve`].
    pub fn insert(&mut self, slot: &Slot<D>) -> Result<(), NoMemory> {
        // All or nothing.
        self.reserve()?;
        let at = self
            .by_gfn
            .partition_point(|other| other.base_gfn < slot.base_gfn);
        self.by_gfn.insert(at, slot.clone())?;
        let at = self.by_id.partition_point(|&(id, _)| id < slot.id);
        self.by_id.insert(at, (slot.id, slot.base_gfn))?;
        let at = self.by_hva.partition_point(|back| back.start < slot.hva);
        let end = slot.hva + (slot.pages << PAGE_SHIFT);
        self.by_hva.insert(
            at,
            Back {
                start: slot.hva,
                end,
                reach: end,
                gfn: slot.base_gfn,
            },
        )?;
        self.reach_from(at);
        Ok(())
    }

    /// Removes a slot.
    pub fn remove(&mut self, id: u32) -> Option<Slot<D>> {
        let at = self.by_id.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        let (_, gfn) = self.by_id.remove(at)?;
        let at = self.position(gfn)?;
        let slot = self.by_gfn.remove(at)?;
        let at = self.by_hva.iter().position(|back| back.gfn == gfn)?;
        self.by_hva.remove(at)?;
        self.reach_from(at);
        Some(slot)
    }

    /// Restores `reach` from an index on.
    fn reach_from(&mut self, at: usize) {
        let mut reach = at
            .checked_sub(1)
            .and_then(|before| self.by_hva.get(before))
            .map_or(0, |back| back.reach);
        for back in self.by_hva.iter_mut().skip(at) {
            reach = reach.max(back.end);
            back.reach = reach;
        }
    }
}

/// See [`Slots::by_hva`].
pub struct ByHva<'a, D> {
    slots: &'a Slots<D>,
    next: usize,
    hva: Range<u64>,
}

impl<'a, D: Clone> Iterator for ByHva<'a, D> {
    type Item = &'a Slot<D>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let back = self.slots.by_hva.get(self.next)?;
            if back.start >= self.hva.end {
                return None;
            }
            self.next += 1;
            if back.end > self.hva.start {
                return self.slots.find(back.gfn);
            }
        }
    }
}

impl<D: Clone> Default for Slots<D> {
    fn default() -> Self {
        Self::new()
    }
}
