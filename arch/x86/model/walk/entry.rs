// SPDX-License-Identifier: GPL-2.0

//! Layout of page-table entries by mode and level (APM vol. 2 5.2-5.3, SDM vol. 3A 4.3-4.5).
//!
//! Levels count from 1 (page table) up to 5 (PML5), whatever the mode.

use super::super::regs::{cr4, efer};
use super::Paging;

/// P: present
pub(super) const PRESENT: u64 = 1 << 0;
/// R/W: writable
pub(super) const WRITE: u64 = 1 << 1;
/// U/S: user
pub(super) const USER: u64 = 1 << 2;
/// A: accessed
pub(super) const ACCESSED: u64 = 1 << 5;
/// D: dirty (leaf)
pub(super) const DIRTY: u64 = 1 << 6;
/// PS: page size (levels 2 and 3)
const LARGE: u64 = 1 << 7;
/// G: global (leaf)
pub(super) const GLOBAL: u64 = 1 << 8;
/// NX: no execute (8-byte entries)
pub(super) const NX: u64 = 1 << 63;

/// Width of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySize {
    /// 4 bytes: 32-bit paging without PAE.
    Dword,
    /// 8 bytes: all others.
    Qword,
}

impl EntrySize {
    /// In bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            EntrySize::Dword => 4,
            EntrySize::Qword => 8,
        }
    }
}

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG clear: linear is physical.
    None,
    /// Two levels of 4-byte entries.
    Legacy,
    /// Three levels, the top one of four entries.
    Pae,
    /// Four levels (48-bit addresses).
    Level4,
    /// Five levels (57-bit addresses).
    Level5,
}

/// Everything about entries that does not change during one walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// The level that CR3 points to.
    pub(super) top: u8,
    /// Width of entries.
    pub(super) size: EntrySize,
    /// Long mode: addresses of 48 or 57 bits.
    pub(super) long: bool,
    /// PAE with its short top table.
    pae: bool,
    /// Index bits per level: 9 or 10.
    index_bits: u8,
    /// 4-byte entries have large pages (CR4.PSE).
    pse: bool,
    /// 1 GiB pages.
    gbpages: bool,
    maxphyaddr: u8,
    /// Reserved in every entry but PAE's top one.
    high_reserved: u64,
    /// Bit 8, where it is reserved in the entries of levels 4 and 5.
    bit8: u64,
}

/// Bits `hi:lo`, none if `hi < lo`.
#[inline]
const fn bits(hi: u32, lo: u32) -> u64 {
    if hi < lo || lo > 63 {
        return 0;
    }
    let hi = if hi > 63 { 63 } else { hi };
    (u64::MAX >> (63 - hi)) & (u64::MAX << lo)
}

/// Reserved in a present PDPTE of PAE paging: bits 2:1 and 8:5, and all above MAXPHYADDR.
pub(super) const fn pdpte_reserved(maxphyaddr: u8) -> u64 {
    bits(2, 1) | bits(8, 5) | bits(63, maxphyaddr as u32)
}

impl Format {
    /// The format in force for `mode`, which is not [`Mode::None`].
    pub(super) fn new(p: &Paging, mode: Mode) -> Format {
        // Fewer than 32 bits cannot be; the architecture ends at 52.
        let maxphyaddr = p.maxphyaddr.clamp(32, 52);
        let nx = if p.efer & efer::NXE == 0 { NX } else { 0 };
        let high = bits(51, u32::from(maxphyaddr));
        let long = |top| Format {
            top,
            size: EntrySize::Qword,
            long: true,
            pae: false,
            index_bits: 9,
            pse: true,
            gbpages: p.gbpages,
            maxphyaddr,
            high_reserved: high | nx,
            bit8: if p.nonleaf_bit8_reserved { 1 << 8 } else { 0 },
        };
        match mode {
            Mode::Level5 => long(5),
            Mode::Level4 => long(4),
            Mode::Pae => Format {
                top: 3,
                long: false,
                pae: true,
                gbpages: false,
                high_reserved: high | nx | bits(62, 52),
                bit8: 0,
                ..long(3)
            },
            Mode::Legacy | Mode::None => Format {
                top: 2,
                size: EntrySize::Dword,
                long: false,
                pae: false,
                index_bits: 10,
                pse: p.cr4 & cr4::PSE != 0,
                gbpages: false,
                maxphyaddr,
                high_reserved: 0,
                bit8: 0,
            },
        }
    }

    /// Physical address of the top table.
    #[inline]
    pub(super) fn root(&self, cr3: u64) -> u64 {
        if self.pae {
            cr3 & 0xffff_ffe0
        } else if self.long {
            cr3 & bits(u32::from(self.maxphyaddr).wrapping_sub(1), 12)
        } else {
            cr3 & 0xffff_f000
        }
    }

    /// Position in bits of the index of `level`, and log2 of what one of its entries maps.
    #[inline]
    pub(super) fn page_shift(&self, level: u8) -> u8 {
        12u8.saturating_add(self.index_bits.saturating_mul(level.saturating_sub(1)))
    }

    /// Index of `addr` in its table at `level`.
    #[inline]
    pub(super) fn index(&self, addr: u64, level: u8) -> u64 {
        (addr >> (self.page_shift(level) & 63)) & ((1 << self.index_bits) - 1)
    }

    /// The entry maps a page.
    #[inline]
    pub(super) fn is_leaf(&self, entry: u64, level: u8) -> bool {
        match level {
            1 => true,
            2 => self.pse && entry & LARGE != 0,
            3 => self.gbpages && entry & LARGE != 0,
            _ => false,
        }
    }

    /// The bits that must be zero in a present entry.
    #[inline]
    pub(super) fn reserved(&self, level: u8, leaf: bool) -> u64 {
        if self.size == EntrySize::Dword {
            // Only a 4 MiB page has any: bit 21, and the part of bits 20:13 (physical 39:32) that
            // is above MAXPHYADDR.
            return if level == 2 && leaf {
                (1 << 21) | bits(20, u32::from(self.maxphyaddr.clamp(32, 40)) - 32 + 13)
            } else {
                0
            };
        }
        if self.pae && level == 3 {
            // Bits 8:5 are not looked at in a walk: processors that read these entries at each walk
            // may have set the accessed bit (5) in them, as emulated ones do.
            return pdpte_reserved(self.maxphyaddr) & !bits(8, 5);
        }
        let own = match (level, leaf) {
            // Offset bits of large pages above PAT (bit 12).
            (2, true) => bits(20, 13),
            (3, true) => bits(29, 13),
            // PS where no page of that size exists.
            (3, false) if !self.gbpages => LARGE,
            (4 | 5, false) => LARGE | self.bit8,
            _ => 0,
        };
        self.high_reserved | own
    }

    /// Physical address of the table that a non-leaf entry points to.
    #[inline]
    pub(super) fn next_table(&self, entry: u64) -> u64 {
        match self.size {
            EntrySize::Dword => entry & 0xffff_f000,
            EntrySize::Qword => entry & bits(51, 12),
        }
    }

    /// Physical address of the page that a leaf maps.
    #[inline]
    pub(super) fn frame(&self, entry: u64, level: u8) -> u64 {
        match (self.size, level) {
            // PSE-36: entry bits 20:13 are address bits 39:32.
            (EntrySize::Dword, 2) => (entry & 0xffc0_0000) | ((entry & bits(20, 13)) << 19),
            (EntrySize::Dword, _) => entry & 0xffff_f000,
            (EntrySize::Qword, _) => entry & bits(51, u32::from(self.page_shift(level))),
        }
    }
}
