// SPDX-License-Identifier: GPL-2.0

//! Nested page tables: the format of their entries, for the generic stage-2 engine.
//!
//! AMD APM vol. 2, 15.25 and 5.3 (the same format as long-mode page tables; nested accesses count
//! as user accesses, so U/S is set everywhere). Pure.

use crate::memory::stage2::{Entry, Leaf, MemoryType};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of an entry (5.4.1).
mod bit {
    /// Present
    pub(super) const P: u64 = 1 << 0;
    /// Writable
    pub(super) const RW: u64 = 1 << 1;
    /// User
    pub(super) const US: u64 = 1 << 2;
    /// Write-through; low bit of the index into the host's PAT
    pub(super) const PWT: u64 = 1 << 3;
    /// Cache disable; second bit of that index
    pub(super) const PCD: u64 = 1 << 4;
    /// Accessed
    pub(super) const A: u64 = 1 << 5;
    /// Dirty
    pub(super) const D: u64 = 1 << 6;
    /// Page size: a leaf above level 0
    pub(super) const PS: u64 = 1 << 7;
    /// Free for software: the host lets us write here
    pub(super) const HOST_WRITE: u64 = 1 << 9;
    /// No execute
    pub(super) const NX: u64 = 1 << 63;
    /// Bits 51:12
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The memory-encryption bit of host addresses; 0 without SME. Set once, before the first table.
static ENCRYPTION: AtomicU64 = AtomicU64::new(0);

/// Says which address bit marks encrypted memory of the host (APM vol. 2, 7.10).
pub(crate) fn set_encryption_mask(mask: u64) {
    ENCRYPTION.store(mask & bit::ADDRESS, Relaxed);
}

fn encryption() -> u64 {
    ENCRYPTION.load(Relaxed)
}

/// The host's PAT as Linux programs it: entry 0 write-back, 1 write-combining, 3 uncached.
const fn pat_index(m: MemoryType) -> u64 {
    match m {
        MemoryType::Normal => 0,
        MemoryType::WriteCombining => bit::PWT,
        MemoryType::Device => bit::PCD | bit::PWT,
    }
}

/// The format.
pub(crate) struct Npt;

impl Entry for Npt {
    #[inline]
    fn index_bits(_level: u32) -> u32 {
        9
    }

    #[inline]
    fn is_present(entry: u64, _level: u32) -> bool {
        entry & bit::P != 0
    }

    #[inline]
    fn is_table(entry: u64, level: u32) -> bool {
        level > 0 && entry & bit::PS == 0
    }

    #[inline]
    fn table(phys: u64, _level: u32) -> u64 {
        phys & bit::ADDRESS | encryption() | bit::P | bit::RW | bit::US | bit::A
    }

    #[inline]
    fn table_phys(entry: u64, _level: u32) -> u64 {
        entry & bit::ADDRESS & !encryption()
    }

    fn leaf(l: &Leaf, level: u32) -> u64 {
        let flag = |on: bool, b: u64| if on { b } else { 0 };
        l.pfn << 12 & bit::ADDRESS
            | encryption()
            | bit::P
            | bit::US
            | flag(l.write, bit::RW)
            | flag(!l.exec, bit::NX)
            | flag(l.host_write, bit::HOST_WRITE)
            | flag(l.accessed, bit::A)
            | flag(l.dirty, bit::D)
            | flag(level > 0, bit::PS)
            | pat_index(l.memory)
    }

    fn decode(entry: u64, _level: u32) -> Leaf {
        let has = |b: u64| entry & b != 0;
        Leaf {
            pfn: (entry & bit::ADDRESS & !encryption()) >> 12,
            write: has(bit::RW),
            exec: !has(bit::NX),
            host_write: has(bit::HOST_WRITE),
            memory: match (has(bit::PCD), has(bit::PWT)) {
                (false, false) => MemoryType::Normal,
                (false, true) => MemoryType::WriteCombining,
                (true, _) => MemoryType::Device,
            },
            accessed: has(bit::A),
            dirty: has(bit::D),
        }
    }
}
