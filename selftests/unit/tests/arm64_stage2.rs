// SPDX-License-Identifier: GPL-2.0

//! arm64's stage-2 descriptors and the shape of its tables.

use proptest::prelude::*;
use rkvm_unit::{
    arch::arm64::model::stage2::{config, set_format, vtcr_shape, Stage2},
    memory::stage2::{Entry, Leaf, MemoryType},
};
use std::sync::Mutex;

fn leaves() -> impl Strategy<Value = (Leaf, u32)> {
    let memory = prop_oneof![
        Just(MemoryType::Normal),
        Just(MemoryType::WriteCombining),
        Just(MemoryType::Device),
    ];
    (0_u64..1 << 18, any::<[bool; 4]>(), memory, 0_u32..3).prop_map(
        |(frame, [write, exec, host_write, accessed], memory, level)| {
            let leaf = Leaf {
                pfn: frame << (9 * level),
                write,
                exec,
                host_write,
                memory,
                accessed,
                dirty: write,
            };
            (leaf, level)
        },
    )
}

/// The format is one for all.
static FORMAT: Mutex<()> = Mutex::new(());

fn both_ways<E: Entry>(l: &Leaf, level: u32) {
    let e = E::leaf(l, level);
    assert!(E::is_present(e, level));
    assert!(!E::is_table(e, level));
    assert_eq!(E::decode(e, level), *l);
    assert_eq!(E::leaf(&E::decode(e, level), level), e);
}

proptest! {
    #[test]
    fn every_leaf_both_ways((l, level) in leaves()) {
        let _format = FORMAT.lock().expect("no test has failed under it");
        for forced in [true, false] {
            set_format(forced, true);
            both_ways::<Stage2>(&l, level);
        }
    }

    #[test]
    fn every_table_both_ways(frame in 0_u64..1 << 36, level in 1_u32..4) {
        let e = Stage2::table(frame << 12, level);
        prop_assert!(Stage2::is_present(e, level) && Stage2::is_table(e, level));
        prop_assert_eq!(Stage2::table_phys(e, level), frame << 12);
    }
}

/// Figures worked out by hand from DDI 0487, D8.3.1.
#[test]
fn what_the_manual_says() {
    let _format = FORMAT.lock().expect("no test has failed under it");
    let l = Leaf {
        pfn: 0x12345,
        write: true,
        exec: true,
        host_write: false,
        memory: MemoryType::Normal,
        accessed: true,
        dirty: true,
    };
    // AF, inner shareable, read and write, MemAttr 0110 (forced) or 1111, page.
    set_format(true, true);
    assert_eq!(Stage2::leaf(&l, 0), 0x1234_5000 | 0x7db);
    set_format(false, true);
    assert_eq!(Stage2::leaf(&l, 0), 0x1234_5000 | 0x7ff);
    let block = Leaf {
        pfn: 0x200,
        write: false,
        exec: false,
        memory: MemoryType::Device,
        ..l
    };
    // Without bit 1; XN; MemAttr 0001; read only.
    assert_eq!(Stage2::leaf(&block, 1), 1 << 54 | 0x20_0000 | 0x745);
    assert!(!Stage2::is_present(Stage2::empty(0), 0));
}

/// Without hardware that sets the flag, an entry without it would fault for ever.
#[test]
fn access_flag_without_hardware() {
    let _format = FORMAT.lock().expect("no test has failed under it");
    let l = Leaf {
        pfn: 1,
        write: false,
        exec: false,
        host_write: false,
        memory: MemoryType::Normal,
        accessed: false,
        dirty: false,
    };
    set_format(true, true);
    assert!(!Stage2::decode(Stage2::leaf(&l, 0), 0).accessed);
    set_format(true, false);
    assert!(Stage2::decode(Stage2::leaf(&l, 0), 0).accessed);
}

/// Levels for each width of address: D8.2.3, table of the initial lookup level with 4 KiB granules.
#[test]
fn shapes() {
    for ipa in 32..=48 {
        let c = config(ipa, 48).expect("a shape");
        let levels = if ipa <= 43 { 3 } else { 4 };
        assert_eq!(
            (c.levels, c.gpa_bits, c.max_leaf_level),
            (levels, ipa, 2),
            "{ipa} bits"
        );
        // T0SZ, and SL0: 1 is level 1, 2 is level 0.
        assert_eq!(
            vtcr_shape(&c),
            u64::from(levels - 2) << 6 | u64::from(64 - ipa)
        );
    }
    assert!(config(31, 48).is_none());
    assert!(config(49, 52).is_none());
    assert!(config(41, 40).is_none());
    assert!(config(40, 40).is_some());
}
