// SPDX-License-Identifier: GPL-2.0

//! A slot's dirty bitmap.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::host::grow_vec::{GrowVec, NoMemory};

/// One bit for each page of a slot, set by whoever writes, taken by the dirty log.
pub struct Bitmap {
    words: GrowVec<AtomicU64>,
}

impl Bitmap {
    /// A bitmap for `pages` pages, none dirty.
    pub fn new(pages: u64) -> Result<Self, NoMemory> {
        let words = usize::try_from(pages.div_ceil(64)).map_err(|_| NoMemory)?;
        Ok(Self {
            words: GrowVec::filled(words, || AtomicU64::new(0))?,
        })
    }

    /// Marks a page, counted from the slot's first. To be called after the write.
    #[inline]
    pub fn set(&self, page: u64) {
        if let Some(word) = self.words.get((page >> 6) as usize) {
            // Release: who takes the bit sees the write.
            word.fetch_or(1 << (page & 63), Ordering::AcqRel);
        }
    }

    /// Number of 64-page words.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// The pages of word `at`, left as they are.
    pub fn peek(&self, at: usize) -> u64 {
        self.words
            .get(at)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Takes those of `mask` from word `at`; returns what was set.
    pub fn take(&self, at: usize, mask: u64) -> u64 {
        match self.words.get(at) {
            Some(word) if word.load(Ordering::Acquire) & mask != 0 => {
                word.fetch_and(!mask, Ordering::AcqRel) & mask
            }
            _ => 0,
        }
    }
}
