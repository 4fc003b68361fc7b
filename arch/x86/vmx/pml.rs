// SPDX-License-Identifier: GPL-2.0

//! The page-modification log: where the processor writes which pages' dirty bits it sets.
//!
//! Intel SDM vol. 3C 30.3.6. Pure.

/// The index of the entry that is written first; it counts down, and wraps when there is no more room.
pub(crate) const FIRST: u16 = 511;

/// The log: 512 guest-physical addresses.
pub(crate) type Page = [u8; 4096];

/// The addresses that the processor has logged, whose next entry is `index`, by page.
pub(crate) fn logged(page: &Page, index: u16) -> impl Iterator<Item = u64> + '_ {
    let first = if index > FIRST {
        0
    } else {
        usize::from(index) + 1
    };
    let entries = page.chunks_exact(8).skip(first);
    // Bits 11:0 are 0, says the manual.
    entries
        .filter_map(|e| e.first_chunk())
        .map(|e| u64::from_le_bytes(*e) & !0xfff)
}
