// SPDX-License-Identifier: GPL-2.0

//! The parts that MSRs are made of: MTRRs, machine checks, the user-space filter, and the
//! permission maps.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::msr::filter::{allowed, bitmap_bytes, flags_valid, Range};
use rkvm_unit::arch::x86::model::msr::mce::{Event, Injected, MCG_CMCI_P};
use rkvm_unit::arch::x86::model::msr::Origin::{Guest, Host};
use rkvm_unit::arch::x86::model::msr::{mce, permission, Mce};
use rkvm_unit::arch::x86::model::mtrr::{self, Mtrr};
use std::collections::HashSet;

#[test]
fn mtrr_registers_are_different() {
    // They are all different registers.
    let all: Vec<u32> = (0x200..0x210)
        .chain([0x250, 0x258, 0x259])
        .chain(0x268..0x270)
        .collect();
    let mut t = Mtrr::default();
    for (n, &i) in (0u64..).zip(&all) {
        let v = if i < 0x210 {
            n << 12
        } else {
            (0x0101_0101 << (n & 7)) & 0x0101_0101 | (n % 2)
        };
        assert!(t.write(i, v, 0), "{i:#x}");
        assert_eq!(t.read(i), Some(v), "{i:#x}");
    }
    for (n, &i) in (0u64..).zip(&all) {
        let v = if i < 0x210 {
            n << 12
        } else {
            (0x0101_0101 << (n & 7)) & 0x0101_0101 | (n % 2)
        };
        assert_eq!(t.read(i), Some(v), "{i:#x} afterwards");
    }
    for i in [
        0x1ff, 0x210, 0x24f, 0x251, 0x257, 0x25a, 0x267, 0x270, 0x2fe, 0x300,
    ] {
        assert_eq!((t.read(i), t.write(i, 0, 0)), (None, false), "{i:#x}");
    }
    assert_eq!(mtrr::CAP, 0x508);
}

#[test]
fn machine_check_registers() {
    let mut m = Mce::default();
    for bad in [0, 33, 0xff, 10 | 1 << 9, 10 | MCG_CMCI_P, 10 | 1 << 27] {
        assert!(!m.setup(bad), "{bad:#x}");
    }
    assert_eq!(m, Mce::default());
    let cap = 10 | mce::SUPPORTED;
    assert!(m.setup(cap));
    let rd = |m: &Mce, i| m.read(i, Guest);
    assert_eq!(rd(&m, 0x179), Some(cap));
    assert_eq!(rd(&m, 0x17b), Some(u64::MAX));
    for bank in 0..32u32 {
        let exists = bank < 10;
        assert_eq!(
            rd(&m, 0x400 + 4 * bank),
            exists.then_some(u64::MAX),
            "bank {bank}"
        );
        for reg in 1..4 {
            assert_eq!(rd(&m, 0x400 + 4 * bank + reg), exists.then_some(0));
        }
        assert_eq!(m.write(0x402 + 4 * bank, 0x1234, Guest, false), exists);
        // No CMCI: only user space sees CTL2, as zero.
        assert_eq!(rd(&m, 0x280 + bank), None);
        assert_eq!(m.read(0x280 + bank, Host), exists.then_some(0));
        assert_eq!(m.write(0x280 + bank, 0, Host, false), exists);
        assert!(!m.write(0x280 + bank, 1, Host, false));
    }
    for (v, ok) in [
        (0, true),
        (u64::MAX, true),
        (!1, true),
        (!0x400, true),
        (1, false),
        (!2, false),
    ] {
        assert_eq!(m.write(0x404, v, Guest, false), ok, "CTL {v:#x}");
    }
    assert!(m.write(0x405, 0, Guest, false));
    assert!(!m.write(0x405, 1, Guest, false));
    assert!(m.write(0x405, 1, Guest, true) && m.write(0x405, 2, Host, false));
    assert_eq!(rd(&m, 0x405), Some(2));
    assert!(m.write(0x17a, 7, Guest, false));
    assert_eq!(rd(&m, 0x17a), Some(7));
    assert!(!m.write(0x17b, 1, Guest, false));
    assert!(m.write(0x17b, 0, Guest, false));
    assert_eq!(m.read(0x480, Host), None);
    assert_eq!(m.read(0, Host), None);
}

#[test]
fn machine_check_injection() {
    let mut m = Mce::default();
    assert!(m.setup(4 | mce::SUPPORTED));
    let corrected = Event {
        status: mce::STATUS_VAL | 5,
        addr: 0x1000,
        misc: 1,
        bank: 2,
        mcg_status: 0,
    };
    let fatal = Event {
        status: mce::STATUS_VAL | mce::STATUS_UC,
        mcg_status: 5,
        ..corrected
    };
    assert_eq!(
        m.inject(
            &Event {
                bank: 4,
                ..corrected
            },
            true
        ),
        None
    );
    assert_eq!(
        m.inject(
            &Event {
                status: 5,
                ..corrected
            },
            true
        ),
        None
    );
    assert_eq!(m.inject(&corrected, true), Some(Injected::Quiet));
    assert_eq!(
        [1, 2, 3].map(|r| m.read(0x408 + r, Guest).unwrap()),
        [corrected.status, 0x1000, 1]
    );
    assert_eq!(
        m.inject(&fatal, false),
        Some(Injected::Shutdown),
        "CR4.MCE is clear"
    );
    assert_eq!(m.inject(&fatal, true), Some(Injected::Exception));
    assert_eq!(m.read(0x17a, Guest), Some(5));
    assert_eq!(m.read(0x409, Guest), Some(fatal.status | mce::STATUS_OVER));
    // A corrected one does not overwrite it.
    assert_eq!(
        m.inject(
            &Event {
                addr: 0x2000,
                ..corrected
            },
            true
        ),
        Some(Injected::Quiet)
    );
    assert_eq!(m.read(0x40a, Guest), Some(0x1000));
    assert_eq!(
        m.inject(&fatal, true),
        Some(Injected::Shutdown),
        "one is in progress"
    );
    // A bank that is off does not report.
    assert!(m.write(0x17a, 0, Guest, false) && m.write(0x408, 0, Guest, false));
    assert_eq!(m.inject(&fatal, true), Some(Injected::Quiet));
}

#[test]
fn filter_arguments() {
    assert_eq!(bitmap_bytes(0, 0), Ok(0));
    assert_eq!(
        bitmap_bytes(99, 0),
        Ok(0),
        "an unused range is not looked at"
    );
    assert_eq!(bitmap_bytes(3, 1), Ok(1));
    assert_eq!(bitmap_bytes(1, 9), Ok(2));
    assert_eq!(bitmap_bytes(2, 0x3000), Ok(0x600));
    assert!(bitmap_bytes(2, 0x3001).is_err());
    assert!(bitmap_bytes(2, u32::MAX).is_err());
    assert!(bitmap_bytes(0, 1).is_err() && bitmap_bytes(4, 1).is_err());
    assert!(flags_valid(0, 0) && flags_valid(1, 1) && !flags_valid(1, 0) && !flags_valid(2, 1));
}

#[test]
fn permission_map_places() {
    // APM vol. 2 15.11: the second vector starts at byte 0x800, the third at 0x1000.
    assert_eq!(permission::svm_read_bit(0), Some(0));
    assert_eq!(permission::svm_read_bit(0x174), Some(0x5d * 8));
    assert_eq!(permission::svm_read_bit(0x1fff), Some(0x7ff * 8 + 6));
    assert_eq!(permission::svm_read_bit(0xc000_0000), Some(0x800 * 8));
    assert_eq!(permission::svm_read_bit(0xc000_0082), Some(0x820 * 8 + 4));
    assert_eq!(permission::svm_read_bit(0xc001_0000), Some(0x1000 * 8));
    assert_eq!(permission::svm_read_bit(0xc001_1fff), Some(0x17ff * 8 + 6));
    // SDM vol. 3C 25.6.9: read low, read high, write low, write high.
    assert_eq!(permission::vmx_bits(0), Some((0, 2048 * 8)));
    assert_eq!(
        permission::vmx_bits(0x1fff),
        Some((0x1fff, 2048 * 8 + 0x1fff))
    );
    assert_eq!(
        permission::vmx_bits(0xc000_0080),
        Some((1024 * 8 + 0x80, 3072 * 8 + 0x80))
    );
    for i in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
        assert_eq!(
            (permission::svm_read_bit(i), permission::vmx_bits(i)),
            (None, None),
            "{i:#x}"
        );
    }
    assert_eq!(permission::vmx_bits(0xc001_0000), None);
    let mut map = vec![0xffu8; permission::SVM_BYTES];
    assert!(permission::svm_set(&mut map, 0xc000_0082, false, true));
    assert_eq!(map[0x820], 0xef);
    assert!(permission::svm_set(&mut map, 0xc000_0082, false, false));
    assert_eq!(map[0x820], 0xcf);
    assert!(permission::svm_set(&mut map, 0xc000_0082, true, true));
    assert!(map.iter().all(|&b| b == 0xff));
    assert!(!permission::svm_set(&mut map, 0x2000, false, false));
    let mut map = vec![0xffu8; permission::VMX_BYTES];
    assert!(permission::vmx_set(&mut map, 0xc000_0082, false, true));
    assert_eq!((map[1024 + 16], map[3072 + 16]), (0xfb, 0xff));
    assert!(permission::vmx_set(&mut map, 0xc000_0082, true, false));
    assert_eq!((map[1024 + 16], map[3072 + 16]), (0xff, 0xfb));
    assert!(!permission::vmx_set(&mut map, 0xc001_0000, false, false));
}

/// The bits of a map that an MSR owns belong to it alone, and are in the map.
#[test]
fn permission_bits_are_unique() {
    let all = || {
        (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .chain(0xc001_0000..0xc001_2000)
    };
    let mut seen = HashSet::new();
    for i in all() {
        let r = permission::svm_read_bit(i).unwrap();
        assert!(seen.insert(r) && seen.insert(r + 1) && r + 1 < permission::SVM_BYTES * 8);
    }
    let mut seen = HashSet::new();
    for i in all().filter(|i| i >> 16 != 0xc001) {
        let (r, w) = permission::vmx_bits(i).unwrap();
        assert!(seen.insert(r) && seen.insert(w) && w < permission::VMX_BYTES * 8);
    }
    assert_eq!(seen.len(), permission::VMX_BYTES * 8);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The filter, against a map from (MSR, kind) to what the first range says.
    #[test]
    fn filter_like_the_documentation(
        ranges in proptest::collection::vec(
            (1u32..4, 0x7f8u32..0x910, 1u32..40, proptest::collection::vec(any::<u8>(), 5)), 0..4),
        far in any::<bool>(),
        default_deny in any::<bool>(),
        index in 0x7f0u32..0x920,
        write in any::<bool>(),
    ) {
        // Also around the end of the numbers.
        let at = |i: u32| if far { i.wrapping_add(0xffff_ffff - 0x850) } else { i };
        let rs: Vec<Range<&[u8]>> = ranges
            .iter()
            .map(|(flags, base, count, bits)| Range {
                flags: *flags, base: at(*base), count: *count, bitmap: &bits[..],
            })
            .collect();
        let index = at(index);
        let mut want = !default_deny;
        for (flags, base, count, bits) in ranges.iter().rev() {
            for n in 0..*count {
                let kind = if write { flags & 2 != 0 } else { flags & 1 != 0 };
                if kind && at(*base).wrapping_add(n) == index {
                    want = bits[n as usize / 8] >> (n % 8) & 1 == 1;
                }
            }
        }
        if (0x800..0x900).contains(&index) {
            want = true;
        }
        prop_assert_eq!(allowed(&rs, default_deny, index, write), want);
    }
}
