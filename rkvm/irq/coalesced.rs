// SPDX-License-Identifier: GPL-2.0

//! The ring of coalesced writes: one page that the kernel fills and user space empties.
//!
//! Layout (`struct kvm_coalesced_mmio_ring`): a word `first` that user space advances, a word `last`
//! that the kernel advances, then entries of 24 bytes. User space can write all of it at any time, so
//! nothing here looks at the page: the shell copies the two words, and writes what it is told.

/// Offset of `first`.
pub const FIRST: usize = 0;
/// Offset of `last`.
pub const LAST: usize = 4;

const HEADER: usize = 8;
/// Size of `struct kvm_coalesced_mmio`.
pub const ENTRY: usize = 24;

/// Arithmetic of a ring in a page of a given size.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    entries: u32,
}

/// A free entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its offset in the page.
    pub offset: usize,
    /// `last`, once it is filled.
    pub next: u32,
}

impl Slot {
    /// Offsets of the words that [`entry`] gives.
    pub fn words(&self) -> core::iter::StepBy<core::ops::Range<usize>> {
        (self.offset..self.offset.saturating_add(ENTRY)).step_by(size_of::<u64>())
    }
}

impl Ring {
    /// A ring in a page of `page_size` bytes.
    pub const fn new(page_size: usize) -> Self {
        let entries = page_size.saturating_sub(HEADER) / ENTRY;
        // Lossless: pages of any processor have fewer than 2^32 entries.
        Self {
            entries: (entries & 0xffff_ffff) as u32,
        }
    }

    /// The entry to fill next, or `None` if the ring is full or user space has broken `last`. One
    /// entry stays free, so that a full ring and an empty one differ.
    pub fn next(&self, first: u32, last: u32) -> Option<Slot> {
        if last >= self.entries {
            return None;
        }
        let next = match last.wrapping_add(1) {
            n if n == self.entries => 0,
            n => n,
        };
        if next == first {
            return None;
        }
        let offset = usize::try_from(last)
            .ok()?
            .checked_mul(ENTRY)?
            .checked_add(HEADER)?;
        Some(Slot { offset, next })
    }
}

/// An entry for a write of `data` to `addr`: `phys_addr`; `len` and `pio`; `data`. `None` if the write
/// has more bytes than an entry holds.
pub fn entry(pio: bool, addr: u64, data: &[u8]) -> Option<[u64; 3]> {
    let mut bytes = [0; 8];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    let [a, b, c, d] = u32::try_from(data.len()).ok()?.to_ne_bytes();
    let [e, f, g, h] = u32::from(pio).to_ne_bytes();
    Some([
        addr,
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes(bytes),
    ])
}
