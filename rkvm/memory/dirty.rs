// SPDX-License-Identifier: GPL-2.0

//! The dirty log: which pages the guest has written since it was asked last.
//!
//! A word of the bitmap is taken and the next writes to its pages are made to be noticed (by
//! write-protecting them, as a rule) in one hold of the write lock, so that a fault, which makes a page
//! writable and marks it under the read lock, comes wholly before or wholly after. User space gets the
//! word only after processors have flushed: what the guest writes then is noticed anew, and what it
//! has written before user space can copy the page.
//!
//! Some processors note by themselves which pages they write ([`super::stage2::Config::logs_writes`]),
//! when they set a leaf's dirty flag. Then pages stay writable, and it is that flag which is taken
//! away. What a processor has noted reaches the bitmap when its guest section ends. So a dirty leaf
//! of a logged slot has its page in the bitmap or on the way there, and none is made clean but one
//! whose bit is taken. A page that both rkvm and the processor have noted may be told twice. What
//! processors have noted until user space asks, it gets: they are made to leave their sections first.

use core::{ops::Range, sync::atomic::Ordering};
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

use super::{bitmap::Bitmap, slots::Refused, stage2::Entry, Memory, Remote, Shadow, Slot};

/// Words that are taken before processors are made to flush and user space gets them.
const BATCH: usize = 4096;
/// Words that are taken in one hold of the lock.
const HOLD: usize = 128;

/// Size of a word in user space, in bytes.
const WORD: usize = 8;

impl<E: Entry, R: Remote> Memory<E, R> {
    /// Copies a slot's dirty bitmap to user space: a bit for each page, counted as little-endian
    /// words of 64 are, rounded up to whole words. `KVM_GET_DIRTY_LOG` (api.rst, 4.8).
    ///
    /// With `take`, the log starts anew; without (`KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`), it stays
    /// as it is until [`Memory::clear_dirty_log`].
    ///
    /// `EINVAL`: no slot can have this id. `ENOENT`: no such slot, or it has no log. `ENOMEM`. `EFAULT`:
    /// what was taken by then is lost. Sleeps; the caller holds no [`super::View`].
    pub(crate) fn dirty_log(&self, id: u32, to: UserPtr, take: bool) -> Result {
        // Excludes other takers, and changes of the slot.
        let _writer = self.writer.lock();
        let (slot, words) = self.logged(id)?;
        self.shadow.collect();
        let mut batch = KVVec::with_capacity(words.min(BATCH), GFP_KERNEL_ACCOUNT)?;
        for first in (0..words).step_by(BATCH) {
            let range = first..words.min(first + BATCH);
            batch.clear();
            batch.extend_with(range.len(), u64::MAX, GFP_KERNEL_ACCOUNT)?;
            if take {
                self.shadow.take_dirty(&slot, range.clone(), &mut batch);
            } else if let Some(bitmap) = &slot.dirty {
                for (at, word) in range.clone().zip(batch.iter_mut()) {
                    *word = bitmap.peek(at);
                }
            }
            let to = to.wrapping_byte_add(first * WORD);
            let mut out = UserSlice::new(to, range.len() * WORD).writer();
            for word in &batch {
                out.write(&word.to_le())?;
            }
        }
        Ok(())
    }

    /// Starts the log anew for those of `pages` pages from `first` of a slot whose bit is set in the
    /// bitmap at `from`: `KVM_CLEAR_DIRTY_LOG` (api.rst, 4.117).
    ///
    /// `EINVAL`: no slot can have this id, `first` or (but at the slot's end) `pages` is no multiple of
    /// 64, or the range is not in the slot. `ENOENT`: no such slot, or it has no log. `ENOMEM`, `EFAULT`.
    pub(crate) fn clear_dirty_log(&self, id: u32, first: u64, pages: u64, from: UserPtr) -> Result {
        let _writer = self.writer.lock();
        let (slot, _) = self.logged(id)?;
        let Range { start: base, end } = slot.words_of(first, pages)?;
        self.shadow.collect();
        let words = end - base;
        let mut batch = KVVec::with_capacity(words.min(BATCH), GFP_KERNEL_ACCOUNT)?;
        for at in (0..words).step_by(BATCH) {
            let len = BATCH.min(words - at);
            let mut from = UserSlice::new(from.wrapping_byte_add(at * WORD), len * WORD).reader();
            batch.clear();
            for _ in 0..len {
                let word = u64::from_le(from.read()?);
                batch.push(word, GFP_KERNEL_ACCOUNT)?;
            }
            self.shadow
                .take_dirty(&slot, base + at..base + at + len, &mut batch);
        }
        Ok(())
    }

    /// A slot with a log, and the number of the log's words.
    fn logged(&self, id: u32) -> Result<(Slot, usize)> {
        let slots = self.shadow.slots.read();
        let slot = slots.named(id)?;
        let words = slot.dirty.as_deref().map(Bitmap::words);
        let words = words.ok_or(Refused::Absent(c"the slot has no dirty log"))?;
        Ok((slot.clone(), words))
    }
}

impl<E: Entry, R: Remote> Shadow<E, R> {
    /// Has processors log what they write, where they can. The writer's lock is held, and the set is
    /// replaced next: whose section began before this has a view of the old one, and has left it when no
    /// such view is left. So all log when the first leaf that is not dirty can be written.
    pub(super) fn log_writes(&self) {
        if self.config.logs_writes {
            self.logging.store(true, Ordering::SeqCst);
        }
    }

    /// No slot is logged any more: what processors still tell is of no use. The writer's lock is held.
    pub(super) fn log_no_writes(&self) {
        self.logging.store(false, Ordering::SeqCst);
    }

    /// Returns when the bitmaps have all that processors have noted.
    fn collect(&self) {
        if self.logging.load(Ordering::Relaxed) {
            self.remote.leave_guests();
        }
    }

    /// Takes from each of the words in `range` the bits that `masks` has for it, puts what was set
    /// into `masks`, and returns when what the guest writes to those pages is noticed.
    fn take_dirty(&self, slot: &Slot, range: Range<usize>, masks: &mut [u64]) {
        let Some(bitmap) = &slot.dirty else {
            return;
        };
        let mut last = 0;
        for (part, masks) in range.step_by(HOLD).zip(masks.chunks_mut(HOLD)) {
            let mut mmu = self.mmu.write();
            let mut changed = false;
            for (at, mask) in (part..).zip(masks) {
                *mask = bitmap.take(at, *mask);
                if *mask != 0 {
                    changed |= mmu.tree.watch(slot.base_gfn + at as u64 * 64, *mask);
                }
            }
            last = mmu.changed(changed);
        }
        self.settle(last);
    }
}
