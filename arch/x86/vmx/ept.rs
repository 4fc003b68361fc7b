// SPDX-License-Identifier: GPL-2.0

//! Extended page tables: the format of their entries, for the generic stage-2 engine.
//!
//! Intel SDM vol. 3C 30.3.2 (tables 30-1 to 30-7). Pure.

use crate::memory::stage2::{Entry, Leaf, MemoryType};

/// Bits of an entry.
mod bit {
    /// Read
    pub(super) const R: u64 = 1 << 0;
    /// Write
    pub(super) const W: u64 = 1 << 1;
    /// Execute
    pub(super) const X: u64 = 1 << 2;
    /// Memory type, three bits
    pub(super) const TYPE: u32 = 3;
    /// The guest's PAT is ignored
    pub(super) const IPAT: u64 = 1 << 6;
    /// A leaf above level 0
    pub(super) const LARGE: u64 = 1 << 7;
    /// Accessed, where the EPT pointer enables it
    pub(super) const A: u64 = 1 << 8;
    /// Dirty, likewise
    pub(super) const D: u64 = 1 << 9;
    /// Ignored by hardware: the host lets us write here
    pub(super) const HOST_WRITE: u64 = 1 << 11;
    /// Bits 51:12
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The types of memory (SDM vol. 3A 13.3).
const UC: u64 = 0;
const WC: u64 = 1;
const WB: u64 = 6;

/// The format.
pub(crate) struct Ept;

/// The EPT pointer for a root of `levels` levels (26.6.11). `track`: the processor keeps accessed and
/// dirty bits.
pub(crate) const fn pointer(root: u64, levels: u8, track: bool) -> u64 {
    let levels = (levels as u64).saturating_sub(1) & 7;
    root & bit::ADDRESS | WB | levels << 3 | (track as u64) << 6
}

/// Memory is cached as the host has it, whatever the guest's PAT says: aliases of unlike types would
/// let a guest see what is not there.
const fn memory(m: MemoryType) -> u64 {
    match m {
        MemoryType::Normal => WB << bit::TYPE | bit::IPAT,
        MemoryType::WriteCombining => WC << bit::TYPE | bit::IPAT,
        MemoryType::Device => UC << bit::TYPE,
    }
}

impl Entry for Ept {
    #[inline]
    fn index_bits(_level: u32) -> u32 {
        9
    }

    #[inline]
    fn is_present(entry: u64, _level: u32) -> bool {
        entry & (bit::R | bit::W | bit::X) != 0
    }

    #[inline]
    fn is_table(entry: u64, level: u32) -> bool {
        level > 0 && entry & bit::LARGE == 0
    }

    #[inline]
    fn table(phys: u64, _level: u32) -> u64 {
        phys & bit::ADDRESS | bit::R | bit::W | bit::X | bit::A
    }

    #[inline]
    fn table_phys(entry: u64, _level: u32) -> u64 {
        entry & bit::ADDRESS
    }

    fn leaf(l: &Leaf, level: u32) -> u64 {
        let flag = |on: bool, b: u64| if on { b } else { 0 };
        l.pfn << 12 & bit::ADDRESS
            | bit::R
            | flag(l.write, bit::W)
            | flag(l.exec, bit::X)
            | flag(l.host_write, bit::HOST_WRITE)
            | flag(l.accessed, bit::A)
            | flag(l.dirty, bit::D)
            | flag(level > 0, bit::LARGE)
            | memory(l.memory)
    }

    fn decode(entry: u64, _level: u32) -> Leaf {
        let has = |b: u64| entry & b != 0;
        Leaf {
            pfn: (entry & bit::ADDRESS) >> 12,
            write: has(bit::W),
            exec: has(bit::X),
            host_write: has(bit::HOST_WRITE),
            memory: match entry >> bit::TYPE & 7 {
                WB => MemoryType::Normal,
                WC => MemoryType::WriteCombining,
                _ => MemoryType::Device,
            },
            accessed: has(bit::A),
            dirty: has(bit::D),
        }
    }
}
