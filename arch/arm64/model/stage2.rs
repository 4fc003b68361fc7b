// SPDX-License-Identifier: GPL-2.0

//! Stage-2 tables: the format of their entries, for the generic engine, and their geometry.
//!
//! Arm ARM (DDI 0487), D8.3 (VMSAv8-64 descriptors), D8.2.3 (concatenated tables) and D24.2
//! (VTCR_EL2). 4 KiB granule, addresses of 48 bits (without LPA2). Pure.

use crate::memory::stage2::{Config, Entry, Leaf, MemoryType};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Bits of a descriptor (D8.3.1).
mod bit {
    /// Valid
    pub(super) const VALID: u64 = 1 << 0;
    /// A table; at level 0 of the engine (level 3 of the manual): a page
    pub(super) const TABLE: u64 = 1 << 1;
    /// MemAttr[3:0]
    pub(super) const MEM_ATTR: u64 = 0xf << 2;
    /// S2AP: reads are allowed
    pub(super) const READ: u64 = 1 << 6;
    /// S2AP: writes are allowed
    pub(super) const WRITE: u64 = 1 << 7;
    /// SH: inner shareable
    pub(super) const INNER: u64 = 3 << 8;
    /// Access flag
    pub(super) const AF: u64 = 1 << 10;
    /// Bits 47:12
    pub(super) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    /// XN[1]: no execution, at EL0 nor EL1 (XN[0] is 0)
    pub(super) const XN: u64 = 1 << 54;
    /// Free for software: the host lets us write here
    pub(super) const HOST_WRITE: u64 = 1 << 55;
}

/// MemAttr[3:0] (D8.6.5), which also tells the three kinds apart.
mod attr {
    /// Normal memory, write-back, whatever stage 1 says (HCR_EL2.FWB = 1)
    pub(super) const NORMAL_FORCED: u64 = 0b0110 << 2;
    /// Normal memory, write-back, as far as stage 1 does not say less (HCR_EL2.FWB = 0)
    pub(super) const NORMAL: u64 = 0b1111 << 2;
    /// Normal memory, not cacheable, with and without FWB
    pub(super) const NON_CACHEABLE: u64 = 0b0101 << 2;
    /// Device-nGnRE, with and without FWB
    pub(super) const DEVICE: u64 = 0b0001 << 2;
}

/// log2 of the number of entries of a table.
const INDEX_BITS: u32 = 9;
/// So many bits of an address may choose among root tables side by side.
const CONCATENATED_BITS: u32 = 4;
/// Two would do for the smallest guests, at the price of a case that nothing else has.
const MIN_LEVELS: u32 = 3;
/// `KVM_CREATE_VM` of type 0.
pub const DEFAULT_IPA_BITS: u32 = 40;
/// The smallest that can be asked for (`KVM_CAP_ARM_VM_IPA_SIZE`).
pub const MIN_IPA_BITS: u32 = 32;
/// The largest without LPA2.
pub const MAX_IPA_BITS: u32 = 48;

/// HCR_EL2.FWB is set: stage 2 forces write-back. Set once, before the first table.
static FORCED: AtomicBool = AtomicBool::new(false);
/// VTCR_EL2.HA is set: hardware sets access flags.
static ACCESS_FLAGS: AtomicBool = AtomicBool::new(false);

/// Says what the processor has: FEAT_S2FWB, and FEAT_HAFDBS's access flags.
pub fn set_format(forced: bool, access_flags: bool) {
    FORCED.store(forced, Relaxed);
    ACCESS_FLAGS.store(access_flags, Relaxed);
}

/// The guest's memory is coherent with the host's caches, whatever the guest does.
pub fn is_forced() -> bool {
    FORCED.load(Relaxed)
}

/// The format.
pub struct Stage2;

impl Entry for Stage2 {
    #[inline]
    fn index_bits(_level: u32) -> u32 {
        INDEX_BITS
    }

    #[inline]
    fn is_present(entry: u64, _level: u32) -> bool {
        entry & bit::VALID != 0
    }

    #[inline]
    fn is_table(entry: u64, level: u32) -> bool {
        level > 0 && entry & bit::TABLE != 0
    }

    #[inline]
    fn table(phys: u64, _level: u32) -> u64 {
        phys & bit::ADDRESS | bit::TABLE | bit::VALID
    }

    #[inline]
    fn table_phys(entry: u64, _level: u32) -> u64 {
        entry & bit::ADDRESS
    }

    fn leaf(l: &Leaf, level: u32) -> u64 {
        let flag = |on: bool, b: u64| if on { b } else { 0 };
        l.pfn << 12 & bit::ADDRESS
            | bit::VALID
            | bit::READ
            | bit::INNER
            | flag(level == 0, bit::TABLE)
            | flag(l.write, bit::WRITE)
            | flag(!l.exec, bit::XN)
            | flag(l.host_write, bit::HOST_WRITE)
            // Without hardware's help an access would fault, and nobody sets the flag then.
            | flag(l.accessed || !ACCESS_FLAGS.load(Relaxed), bit::AF)
            | match l.memory {
                MemoryType::Normal if is_forced() => attr::NORMAL_FORCED,
                MemoryType::Normal => attr::NORMAL,
                MemoryType::WriteCombining => attr::NON_CACHEABLE,
                MemoryType::Device => attr::DEVICE,
            }
    }

    fn decode(entry: u64, _level: u32) -> Leaf {
        let has = |b: u64| entry & b != 0;
        Leaf {
            pfn: (entry & bit::ADDRESS) >> 12,
            write: has(bit::WRITE),
            exec: !has(bit::XN),
            host_write: has(bit::HOST_WRITE),
            memory: match entry & bit::MEM_ATTR {
                attr::NON_CACHEABLE => MemoryType::WriteCombining,
                attr::DEVICE => MemoryType::Device,
                _ => MemoryType::Normal,
            },
            accessed: has(bit::AF),
            // Hardware's management of it (VTCR_EL2.HD) is not used.
            dirty: has(bit::WRITE),
        }
    }
}

/// The shape of the tables for guest-physical addresses of `ipa_bits`, with as few levels as concatenated
/// root tables allow; `None` if the processor, whose physical addresses have `pa_bits`, cannot do it.
pub fn config(ipa_bits: u32, pa_bits: u32) -> Option<Config> {
    if !(MIN_IPA_BITS..=pa_bits.min(MAX_IPA_BITS)).contains(&ipa_bits) {
        return None;
    }
    let levels = (ipa_bits - 12 - CONCATENATED_BITS)
        .div_ceil(INDEX_BITS)
        .max(MIN_LEVELS);
    Some(Config {
        levels,
        gpa_bits: ipa_bits,
        // 1 GiB
        max_leaf_level: 2,
        logs_writes: false,
    })
}

/// VTCR_EL2's fields that follow from the tables' shape: T0SZ and SL0.
pub fn vtcr_shape(c: &Config) -> u64 {
    // 4 KiB granule: SL0 0 starts at level 2 of the manual (two levels), 1 at level 1, 2 at level 0.
    let sl0 = u64::from(c.levels.saturating_sub(2));
    let t0sz = u64::from(64 - c.gpa_bits.min(64));
    sl0 << 6 | t0sz
}
