// SPDX-License-Identifier: GPL-2.0

//! Which user addresses the host is changing right now. Pure; tested on the host.

use core::ops::Range;

/// Changes in progress that are told apart; more are merged into one range.
const SEPARATE: usize = 8;

/// The ranges between a notifier's `invalidate_start` and `invalidate_end`.
///
/// Says "in progress" of every address that is, and with more than [`SEPARATE`] changes at a time
/// perhaps of some between that are not.
pub struct Invalidations {
    separate: [Option<(usize, usize)>; SEPARATE],
    merged: usize,
    merged_range: (usize, usize),
}

impl Invalidations {
    /// Nothing in progress.
    pub const fn new() -> Self {
        Self {
            separate: [None; SEPARATE],
            merged: 0,
            merged_range: (usize::MAX, 0),
        }
    }

    /// A change of `range` begins.
    pub fn begin(&mut self, range: &Range<usize>) {
        if let Some(free) = self.separate.iter_mut().find(|slot| slot.is_none()) {
            *free = Some((range.start, range.end));
            return;
        }
        self.merged += 1;
        let (start, end) = self.merged_range;
        self.merged_range = (start.min(range.start), end.max(range.end));
    }

    /// A change of `range`, announced by `begin`, is over.
    pub fn end(&mut self, range: &Range<usize>) {
        // Equal ranges stand for each other.
        let this = Some((range.start, range.end));
        if let Some(slot) = self.separate.iter_mut().find(|slot| **slot == this) {
            *slot = None;
            return;
        }
        self.merged = self.merged.saturating_sub(1);
        if self.merged == 0 {
            self.merged_range = (usize::MAX, 0);
        }
    }

    /// Whether any of `range` may be changing.
    #[inline]
    pub fn meets(&self, range: &Range<usize>) -> bool {
        let meets = |(start, end): (usize, usize)| start < range.end && range.start < end;
        self.separate.iter().flatten().any(|&r| meets(r)) || meets(self.merged_range)
    }
}

impl Default for Invalidations {
    fn default() -> Self {
        Self::new()
    }
}
