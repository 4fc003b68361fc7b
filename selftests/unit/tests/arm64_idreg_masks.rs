// SPDX-License-Identifier: GPL-2.0

//! arm64: which bits of ID registers user space may set, what else of a guest follows from them, and caches.

use rkvm_unit::arch::arm64::model::idreg::cache::{
    ccsidr, check_ccsidr, check_clidr, clidr, selected, CLIDR_FIELDS,
};
use rkvm_unit::arch::arm64::model::idreg::{
    features, implementation_mask, mask_register, writable_mask, Config, InvalidValue, MASKS, TABLE,
};
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;
use rkvm_unit::arch::arm64::model::trap::Features;

/// As `set_id_regs` of the kernel's selftests asks: each of these fields is writable.
#[test]
fn masks() {
    // By hand from that test's tables: shifts of four-bit fields.
    for (r, shifts) in [
        (Sysreg::ID_AA64DFR0_EL1, &[36, 20, 8, 0][..]),
        (Sysreg::ID_DFR0_EL1, &[24, 0]),
        (
            Sysreg::ID_AA64ISAR0_EL1,
            &[60, 56, 52, 48, 44, 40, 36, 32, 28, 20, 16, 12, 8, 4],
        ),
        (
            Sysreg::ID_AA64ISAR1_EL1,
            &[60, 56, 52, 48, 44, 40, 36, 32, 20, 16, 12, 0],
        ),
        (Sysreg::ID_AA64ISAR2_EL1, &[20, 4, 0]),
        (Sysreg::ID_AA64ISAR3_EL1, &[28, 24, 16, 4]),
        (Sysreg::ID_AA64PFR0_EL1, &[60, 56, 48, 36, 24, 12, 8, 4, 0]),
        (Sysreg::ID_AA64PFR1_EL1, &[56, 32, 4, 0]),
        (
            Sysreg::ID_AA64MMFR0_EL1,
            &[60, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 0],
        ),
        (
            Sysreg::ID_AA64MMFR1_EL1,
            &[52, 44, 40, 36, 32, 24, 20, 16, 12, 0],
        ),
        (
            Sysreg::ID_AA64MMFR2_EL1,
            &[60, 52, 48, 32, 28, 16, 12, 8, 4, 0],
        ),
        (Sysreg::ID_AA64MMFR3_EL1, &[16, 8, 4, 0]),
        (Sysreg::ID_AA64ZFR0_EL1, &[56, 52, 44, 40, 32, 20, 16, 4, 0]),
    ] {
        let mask = writable_mask(r, true);
        for &s in shifts {
            assert_eq!(mask >> s & 0xf, 0xf, "{r:?}[{s}]");
        }
    }
    assert_eq!(writable_mask(Sysreg::CTR_EL0, false), 0x300f_c00f);
    assert_eq!(writable_mask(Sysreg::CLIDR_EL1, false), 0x7fff_ffff_ffff);
    assert_eq!(writable_mask(Sysreg::MIDR_EL1, false), 0xffff_ffff);
    assert_eq!(writable_mask(Sysreg::AIDR_EL1, false), u64::MAX);
    assert_eq!(writable_mask(Sysreg::MPIDR_EL1, false), 0);
    assert_eq!(writable_mask(Sysreg::ID_AA64DFR1_EL1, false), 0);
    assert_eq!(implementation_mask(Sysreg::MPIDR_EL1), None);
    // Places in the array: op1, CRm and op2.
    assert_eq!(mask_register(0), Some(Sysreg::MIDR_EL1));
    assert_eq!(mask_register(0o40), Some(Sysreg::ID_AA64PFR0_EL1));
    assert_eq!(mask_register(0o101), Some(Sysreg::CLIDR_EL1));
    assert_eq!(mask_register(0o107), Some(Sysreg::AIDR_EL1));
    assert_eq!(mask_register(0o201), Some(Sysreg::CTR_EL0));
    assert_eq!(mask_register(MASKS), None);
    let n = (0..MASKS)
        .filter_map(mask_register)
        .filter(|&r| writable_mask(r, true) != 0)
        .count();
    // All of the table, with CLIDR and three of the implementation.
    assert_eq!(n, TABLE.len() + 4);
}

#[test]
fn what_follows() {
    let c = Config {
        pmu: Some(4),
        sve: true,
        pauth: true,
        gic: true,
        ..Config::default()
    };
    let none = features(|_| 0, &Config::default());
    assert_eq!(none, Features::default());
    let f = features(
        |r| match r {
            Sysreg::ID_AA64PFR0_EL1 => 1 << 28 | 1 << 24,
            Sysreg::ID_AA64PFR1_EL1 => 1 << 12 | 1 << 8,
            Sysreg::ID_AA64PFR2_EL1 => 1 << 32,
            Sysreg::ID_AA64MMFR1_EL1 => 1 << 16,
            Sysreg::ID_AA64MMFR3_EL1 => 0x10111,
            _ => 0,
        },
        &c,
    );
    let want = Features {
        pmu: true,
        sve: true,
        pauth: true,
        mte: false,
        ras: true,
        ras1p1: true,
        lor: true,
        gic: true,
        sctlr2: true,
        tcr2: true,
        s1pie: true,
        s1poe: true,
        fpmr: true,
    };
    assert_eq!(f, want);
    let one = |r, v| features(move |q| if q == r { v } else { 0 }, &c);
    assert!(one(Sysreg::ID_AA64MMFR3_EL1, 1).tcr2 && !one(Sysreg::ID_AA64MMFR3_EL1, 1).sctlr2);
    assert!(one(Sysreg::ID_AA64MMFR3_EL1, 0x10).sctlr2);
    assert!(one(Sysreg::ID_AA64MMFR3_EL1, 0x100).s1pie);
    assert!(one(Sysreg::ID_AA64MMFR3_EL1, 0x1_0000).s1poe);
    assert!(!one(Sysreg::ID_AA64PFR0_EL1, 1 << 28).ras1p1);
    assert!(one(Sysreg::ID_AA64PFR0_EL1, 2 << 28).ras1p1);
    assert!(!one(Sysreg::ID_AA64PFR1_EL1, 1 << 12).ras);
    assert!(!features(|_| u64::MAX, &Config::default()).gic);
}

#[test]
fn caches() {
    let (dic, idc) = (1 << 29, 1 << 28);
    // Ctype1 separate; LoUIS, LoC, LoUU 1.
    assert_eq!(clidr(0), 3 | 1 << 21 | 1 << 24 | 1 << 27);
    assert_eq!(clidr(dic), 2 | 1 << 21 | 1 << 24 | 1 << 27);
    // Instructions at level 1, unified at level 2, LoC 2.
    assert_eq!(clidr(idc), 1 | 4 << 3 | 2 << 24);
    assert_eq!(clidr(idc | dic), 4 | 1 << 24);
    for ctr in [0, dic, idc, idc | dic] {
        assert_eq!(check_clidr(ctr, clidr(ctr)), Ok(()));
        // More maintenance than needed can be asked for, less not.
        assert_eq!(check_clidr(ctr, clidr(0)), Ok(()));
        let less = if ctr & idc != 0 {
            Ok(())
        } else {
            Err(InvalidValue)
        };
        assert_eq!(check_clidr(ctr, clidr(idc)), less);
        assert_eq!(check_clidr(ctr, 0), less);
        assert_eq!(check_clidr(ctr, clidr(0) | 1 << 47), Err(InvalidValue));
    }
    assert_eq!(check_clidr(0, CLIDR_FIELDS), Ok(()));
    // LoC, with one of LoUU and LoUIS, or none.
    assert_eq!(check_clidr(0, 1 << 24 | 1 << 27), Ok(()));
    assert_eq!(check_clidr(0, 1 << 24 | 1 << 21), Ok(()));
    assert_eq!(check_clidr(0, 1 << 24), Err(InvalidValue));
    assert_eq!(check_clidr(0, 1 << 27 | 1 << 21), Err(InvalidValue));
    // Lines of 64 bytes are 4 (16 words) in CTR, and 2 in CCSIDR.
    let ctr = 4 << 16 | 5;
    assert_eq!((ccsidr(ctr, 0), ccsidr(ctr, 1), ccsidr(ctr, 2)), (2, 3, 2));
    assert_eq!(check_ccsidr(ctr, 0, 0x701f_e01a), Ok(()));
    assert_eq!(check_ccsidr(ctr, 0, 1), Err(InvalidValue));
    assert_eq!(check_ccsidr(ctr, 1, 2), Err(InvalidValue));
    assert_eq!((ccsidr(0, 0), ccsidr(0xf, 1)), (0, 5));
    let s: Vec<_> = (0..18).map(selected).collect();
    assert_eq!(s[13], Some(13));
    assert_eq!((s[14], s[15], s[16]), (None, None, Some(0)));
}

#[test]
fn authentication_of_both_kinds() {
    use rkvm_unit::arch::arm64::model::idreg::has_pauth;
    // QARMA5, QARMA3, the implementation's own.
    assert!(has_pauth(1 << 4 | 1 << 24, 0));
    assert!(has_pauth(0, 5 << 12 | 1 << 8));
    assert!(has_pauth(3 << 8 | 1 << 28, 0));
    // One kind only, or by unlike algorithms.
    for (isar1, isar2) in [
        (0, 0),
        (5 << 4, 0),
        (1 << 24, 0),
        (1 << 4 | 1 << 28, 0),
        (1 << 4, 1 << 8),
        (1 << 28, 1 << 12),
    ] {
        assert!(!has_pauth(isar1, isar2));
    }
}
