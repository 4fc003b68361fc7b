// SPDX-License-Identifier: GPL-2.0

//! arm64: the level at which a walk of stage 1 has met an abort.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::walk::Tables;
use std::collections::HashMap;

/// 48 bits of addresses, 4 KiB: tables at 1000h, 2000h, 3000h, and a fourth that is where there is no memory.
fn memory() -> HashMap<u64, u64> {
    HashMap::from([
        (0x1000 + 8, 0x2003),
        (0x2000 + 2 * 8, 0x3000 | 3 | 1 << 63),
        (0x3000 + 3 * 8, 0xffff_ffff_f003 & !0xfff | 3),
    ])
}

const VA: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 5 << 12;

#[test]
fn each_level() {
    let m = memory();
    let t = Tables {
        tcr: 16,
        ttbr0: 0x1000 | 7 << 48,
        ..Tables::default()
    };
    let read = |at: u64| m.get(&at).map(|v| v.to_le_bytes());
    assert_eq!(t.level_of(VA, 0x1000, read), Some(0));
    assert_eq!(t.level_of(VA, 0x2000, read), Some(1));
    assert_eq!(t.level_of(VA, 0x3abc, read), Some(2));
    assert_eq!(t.level_of(VA, 0xffff_ffff_f000, read), Some(3));
    assert_eq!(t.level_of(VA, 0x4000, read), None);
    // Another address leads to nothing.
    assert_eq!(t.level_of(0, 0x3000, read), None);
    // The upper half has its own registers.
    assert_eq!(t.level_of(VA | 0xffff << 48, 0x1000, read), None);
    let upper = Tables {
        tcr: 16 << 16 | 2 << 30,
        ttbr1: 0x1000,
        ..Tables::default()
    };
    assert_eq!(upper.level_of(VA | 0xffff << 48, 0x3000, read), Some(2));
    // Big-endian descriptors.
    let t = Tables {
        big_endian: true,
        ..t
    };
    let read = |at: u64| m.get(&at).map(|v| v.to_be_bytes());
    assert_eq!(t.level_of(VA, 0x3000, read), Some(2));
}

#[test]
fn granules() {
    let m = HashMap::from([(0x10000_u64, 0x20003_u64), (0x10000 + 8, 0x20001)]);
    let read = |at: u64| m.get(&at).map(|v| v.to_le_bytes());
    // 64 KiB, 42 bits: levels 2 and 3.
    let t = Tables {
        tcr: 22 | 1 << 14,
        ttbr0: 0x10000,
        ..Tables::default()
    };
    assert_eq!(t.level_of(0, 0x10000, read), Some(2));
    assert_eq!(t.level_of(0, 0x20000, read), Some(3));
    // A block leads nowhere.
    assert_eq!(t.level_of(1 << 29, 0x20000, read), None);
    // 16 KiB, 47 bits: levels 1 to 3.
    let t = Tables {
        tcr: 17 | 2 << 14,
        ttbr0: 0x10000,
        ..Tables::default()
    };
    assert_eq!(t.level_of(0, 0x10000, read), Some(1));
    assert_eq!(t.level_of(0, 0x20000, read), Some(2));
    // 4 KiB, 32 bits: level 1, four entries, not at the start of a page.
    let t = Tables {
        tcr: 32,
        ttbr0: 0x10fe0,
        ..Tables::default()
    };
    assert_eq!(t.level_of(3 << 30, 0x10000, read), Some(1));
}

proptest! {
    #[test]
    fn ends(tcr: u64, ttbr: u64, va: u64, page: u64, seed: u64, big_endian: bool) {
        let t = Tables { tcr, ttbr0: ttbr, ttbr1: ttbr, big_endian };
        let mut reads = 0;
        let level = t.level_of(va, page, |at| {
            reads += 1;
            Some((seed.wrapping_mul(at | 1) | 3).to_le_bytes())
        });
        prop_assert!(reads <= 4);
        prop_assert!(level.is_none_or(|l| (0..=3).contains(&l)));
    }
}
