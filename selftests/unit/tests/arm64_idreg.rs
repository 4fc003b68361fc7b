// SPDX-License-Identifier: GPL-2.0

//! arm64: what guests see in ID registers, and what user space may make of it.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::idreg::{
    check_write, guest_value, index, without_gic, writable_mask, Config, InvalidValue, Rule, Show,
    Write, COUNT, TABLE,
};
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;

const R: [Sysreg; 13] = [
    Sysreg::ID_AA64PFR0_EL1,
    Sysreg::ID_AA64PFR1_EL1,
    Sysreg::ID_AA64PFR2_EL1,
    Sysreg::ID_AA64ZFR0_EL1,
    Sysreg::ID_AA64DFR0_EL1,
    Sysreg::ID_AA64ISAR0_EL1,
    Sysreg::ID_AA64ISAR1_EL1,
    Sysreg::ID_AA64ISAR2_EL1,
    Sysreg::ID_AA64ISAR3_EL1,
    Sysreg::ID_AA64MMFR0_EL1,
    Sysreg::ID_AA64MMFR1_EL1,
    Sysreg::ID_AA64MMFR2_EL1,
    Sysreg::ID_AA64MMFR3_EL1,
];

fn full() -> Config {
    Config {
        pmu: Some(6),
        sve: true,
        pauth: true,
        gic: true,
        csv2: true,
        csv3: true,
        aarch32_el0: true,
        wfxt: true,
        ras_frac: true,
        poe: true,
    }
}

#[test]
fn table_is_in_order() {
    assert!(TABLE.windows(2).all(|w| w[0].reg < w[1].reg));
    for r in TABLE {
        let mut next = 0;
        for f in r.fields {
            assert!(f.shift >= next, "{:?}[{}]", r.reg, f.shift);
            assert!(matches!(f.width, 1 | 2 | 4));
            assert!(u32::from(f.max) < 1 << f.width, "{:?}[{}]", r.reg, f.shift);
            assert!(u32::from(f.min) < 1 << f.width);
            next = f.shift + f.width;
        }
        assert!(next <= 64);
        let aarch32 = r.reg < Sysreg::ID_AA64PFR0_EL1;
        assert!(!aarch32 || next <= 32);
    }
}

#[test]
fn places() {
    let mut n = 0;
    for bits in 0..=u16::MAX {
        let r = Sysreg::from_bits(bits);
        if let Some(i) = index(r) {
            assert_eq!((i, TABLE[i].reg), (n, r));
            n += 1;
        }
    }
    assert_eq!(n, COUNT);
    assert_eq!(
        without_gic(Sysreg::ID_AA64PFR0_EL1, 0x1101_0000_1111_1112),
        0x1101_0000_1011_1112
    );
    assert_eq!(without_gic(Sysreg::ID_PFR1_EL1, 0x1001_1011), 0x0001_1011);
    assert_eq!(without_gic(Sysreg::ID_AA64PFR1_EL1, u64::MAX), u64::MAX);
}

/// Nothing of the host's: what a guest has of its own.
#[test]
fn shown_of_nothing() {
    let c = full();
    for r in TABLE {
        let want = match r.reg {
            Sysreg::ID_AA64PFR0_EL1 => 1 << 60 | 1 << 56 | 1 << 24,
            Sysreg::ID_AA64DFR0_EL1 => 6 << 8,
            Sysreg::ID_DFR0_EL1 => 6 << 24,
            Sysreg::CTR_EL0 => 1 << 31,
            _ => 0,
        };
        assert_eq!(guest_value(r.reg, 0, &c), want, "{:?}", r.reg);
        if r.reg != Sysreg::CTR_EL0 {
            assert_eq!(guest_value(r.reg, 0, &Config::default()), 0, "{:?}", r.reg);
        }
    }
}

/// Of a host with every field at 7, which no unsigned maximum of a hidden field lets through.
#[test]
fn hidden() {
    let c = full();
    let sevens = 0x7777_7777_7777_7777;
    let get = |r, shift: u32| guest_value(r, sevens, &c) >> shift & 0xf;
    for (r, shifts) in [
        // MPAM, AMU, RME
        (Sysreg::ID_AA64PFR0_EL1, &[40_u32, 44, 52][..]),
        // MTE, MPAM_frac, SME, RNDR_trap, CSV2_frac, NMI, MTE_frac, GCS, THE, MTEX, PFAR
        (
            Sysreg::ID_AA64PFR1_EL1,
            &[8, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 60],
        ),
        // MTEPERM, MTESTOREONLY, MTEFAR, GCIE, UINJ
        (Sysreg::ID_AA64PFR2_EL1, &[0, 4, 8, 12, 16]),
        // TraceVer, PMSS, SEBEP, PMSVer, TraceFilt, TraceBuffer, MTPMU, BRBE, ExtTrcBuff, HPMN0
        (
            Sysreg::ID_AA64DFR0_EL1,
            &[4, 16, 24, 32, 40, 44, 48, 52, 56, 60],
        ),
        // TME, LS64
        (Sysreg::ID_AA64ISAR0_EL1, &[0, 24]),
        (Sysreg::ID_AA64ISAR1_EL1, &[60]),
        // PAC_frac, SYSREG_128, SYSINSTR_128, PRFMSLC, PCDPHINT
        (Sysreg::ID_AA64ISAR2_EL1, &[24, 32, 36, 40, 44]),
        // CPA, TLBIW, PACM, OCCMO
        (Sysreg::ID_AA64ISAR3_EL1, &[0, 8, 12, 20]),
        // nTLBPA, CMOW
        (Sysreg::ID_AA64MMFR1_EL1, &[48, 56]),
        // CCIDX, NV, and one that is not allocated
        (Sysreg::ID_AA64MMFR2_EL1, &[20, 24, 44]),
        // All but TCRX, SCTLRX, S1PIE, S1POE
        (
            Sysreg::ID_AA64MMFR3_EL1,
            &[12, 20, 24, 28, 32, 36, 40, 44, 52, 56, 60],
        ),
        (Sysreg::ID_AA64MMFR4_EL1, &[0, 4, 8, 12, 16, 20, 28, 32, 60]),
    ] {
        for &s in shifts {
            assert_eq!(get(r, s), 0, "{r:?}[{s}]");
        }
    }
    for r in [
        Sysreg::ID_AA64SMFR0_EL1,
        Sysreg::ID_AA64DFR1_EL1,
        Sysreg::ID_AA64AFR0_EL1,
        Sysreg::ID_AFR0_EL1,
        Sysreg::ID_DFR1_EL1,
        Sysreg::new(3, 0, 0, 4, 3),
        Sysreg::new(3, 0, 0, 7, 7),
        Sysreg::MIDR_EL1,
    ] {
        assert_eq!(guest_value(r, u64::MAX, &c), 0, "{r:?}");
    }
}

/// A Neoverse N1's registers, as its manual has them, and what a guest sees of them.
#[test]
fn a_processor() {
    let c = Config {
        gic: true,
        csv2: true,
        csv3: true,
        ..Config::default()
    };
    for (r, host, guest) in [
        // CSV3, CSV2, DIT, AMU, RAS, GIC, FP16, EL3 to EL0 with AArch32 at EL0
        (
            Sysreg::ID_AA64PFR0_EL1,
            0x1101_1000_1111_1112,
            0x1101_0000_1111_1112,
        ),
        (Sysreg::ID_AA64PFR1_EL1, 0x20, 0x20),
        // Armv8.2 debug, PMUv3 for 8.1, 6 breakpoints, 4 watchpoints, SPE
        (
            Sysreg::ID_AA64DFR0_EL1,
            0x0000_0001_1030_5408,
            0x0000_0000_1030_5008,
        ),
        (
            Sysreg::ID_AA64ISAR0_EL1,
            0x0000_1000_1021_1120,
            0x0000_1000_1021_1120,
        ),
        (
            Sysreg::ID_AA64ISAR1_EL1,
            0x0000_0000_0010_0001,
            0x0000_0000_0010_0001,
        ),
        (
            Sysreg::ID_AA64MMFR0_EL1,
            0x0000_0000_0010_1125,
            0x0000_0000_0010_1125,
        ),
        (
            Sysreg::ID_AA64MMFR1_EL1,
            0x0000_0000_1021_2122,
            0x0000_0000_1021_2122,
        ),
        (
            Sysreg::ID_AA64MMFR2_EL1,
            0x0000_0000_0000_1011,
            0x0000_0000_0000_1011,
        ),
        (Sysreg::CTR_EL0, 0x9444_c004, 0x9444_c004),
        (Sysreg::ID_PFR0_EL1, 0x1001_0131, 0),
    ] {
        assert_eq!(guest_value(r, host, &c), guest, "{r:?}");
    }
}

#[test]
fn by_features() {
    let none = Config::default();
    let get = |r, host, c: &Config| guest_value(r, host, c);
    let pfr0 = Sysreg::ID_AA64PFR0_EL1;
    assert_eq!(get(pfr0, 1 << 32, &none), 0);
    assert_eq!(get(pfr0, 1 << 32, &Config { sve: true, ..none }), 1 << 32);
    assert_eq!(get(pfr0, 3 << 24, &none), 0);
    assert_eq!(get(pfr0, 0, &Config { gic: true, ..none }), 1 << 24);
    assert_eq!(get(pfr0, 2 << 56 | 1 << 60, &none), 2 << 56 | 1 << 60);
    assert_eq!(get(pfr0, 2 << 56, &Config { csv2: true, ..none }), 1 << 56);
    assert_eq!(get(pfr0, 0, &Config { csv3: true, ..none }), 1 << 60);
    let zfr0 = Sysreg::ID_AA64ZFR0_EL1;
    assert_eq!(get(zfr0, 0x11, &none), 0);
    assert_eq!(get(zfr0, 0x11, &Config { sve: true, ..none }), 0x11);
    let isar1 = Sysreg::ID_AA64ISAR1_EL1;
    let pac = 1 << 28 | 1 << 24 | 5 << 8 | 5 << 4;
    assert_eq!(get(isar1, pac | 2, &none), 2);
    assert_eq!(
        get(
            isar1,
            pac | 2,
            &Config {
                pauth: true,
                ..none
            }
        ),
        pac | 2
    );
    let isar2 = Sysreg::ID_AA64ISAR2_EL1;
    assert_eq!(get(isar2, 0x5102, &none), 0);
    assert_eq!(
        get(
            isar2,
            0x5102,
            &Config {
                pauth: true,
                ..none
            }
        ),
        0x5100
    );
    assert_eq!(get(isar2, 0x5102, &Config { wfxt: true, ..none }), 2);
    let pfr1 = Sysreg::ID_AA64PFR1_EL1;
    assert_eq!(get(pfr1, 1 << 12, &none), 0);
    assert_eq!(
        get(
            pfr1,
            1 << 12,
            &Config {
                ras_frac: true,
                ..none
            }
        ),
        1 << 12
    );
    let mmfr3 = Sysreg::ID_AA64MMFR3_EL1;
    assert_eq!(get(mmfr3, 0x1_0111, &none), 0x111);
    assert_eq!(
        get(mmfr3, 0x1_0111, &Config { poe: true, ..none }),
        0x1_0111
    );
    let pmu = |v| Config {
        pmu: v,
        aarch32_el0: true,
        ..none
    };
    for (limit, ver, mon) in [
        (None, 0, 0),
        (Some(0), 0, 0),
        (Some(1), 1, 3),
        (Some(2), 1, 3),
        (Some(3), 1, 3),
        (Some(4), 4, 4),
        (Some(8), 8, 8),
        (Some(15), 0, 0),
    ] {
        let v = get(Sysreg::ID_AA64DFR0_EL1, 6 | 15 << 8, &pmu(limit));
        assert_eq!(v, 6 | ver << 8);
        let m = get(Sysreg::ID_DFR0_EL1, 6 | 15 << 24, &pmu(limit));
        assert_eq!(m, 6 | mon << 24);
    }
    // AArch32 is not there if the processors have none.
    for r in TABLE.iter().filter(|r| r.reg < Sysreg::ID_AA64PFR0_EL1) {
        assert_eq!(get(r.reg, u64::MAX, &none), 0);
        assert_eq!(
            check_write(r.reg, u64::MAX, 0x1234, &none),
            Ok(Write::Ignore)
        );
        assert_eq!(writable_mask(r.reg, false), 0);
    }
    assert_eq!(
        check_write(Sysreg::ID_AFR0_EL1, 5, 5, &none),
        Ok(Write::Ignore)
    );
    assert_eq!(
        check_write(Sysreg::ID_AFR0_EL1, 5, 5, &full()),
        Err(InvalidValue)
    );
}

/// Debug of Armv8.9 (0b1011) is offered as that of 8.8; numbers of breakpoints stay.
#[test]
fn maxima() {
    let c = full();
    assert_eq!(guest_value(Sysreg::ID_AA64DFR0_EL1, 0xb, &c) & 0xf, 0xa);
    assert_eq!(guest_value(Sysreg::ID_DFR0_EL1, 0xb, &c) & 0xf, 0xa);
    assert_eq!(
        guest_value(Sysreg::ID_AA64PFR0_EL1, 3 << 28, &c) >> 28 & 0xf,
        2
    );
    assert_eq!(guest_value(Sysreg::ID_AA64MMFR1_EL1, 4, &c), 3);
    // 15 is less than zero in signed fields, and more than all in others.
    assert_eq!(
        guest_value(Sysreg::ID_AA64PFR0_EL1, 0xff << 16, &c) >> 16 & 0xff,
        0xff
    );
    assert_eq!(
        guest_value(Sysreg::ID_AA64MMFR0_EL1, 0xf << 28, &c),
        0xf << 28
    );
    assert_eq!(
        guest_value(Sysreg::ID_AA64ISAR0_EL1, 0xf << 20, &c),
        3 << 20
    );
}

fn set(r: Sysreg, host: u64, value: u64) -> Result<Write, InvalidValue> {
    check_write(r, host, value, &full())
}

fn ok(r: Sysreg, host: u64, value: u64) {
    assert_eq!(
        set(r, host, value),
        Ok(Write::Set(value)),
        "{r:?} {value:#x}"
    );
}

fn bad(r: Sysreg, host: u64, value: u64) {
    assert_eq!(set(r, host, value), Err(InvalidValue), "{r:?} {value:#x}");
}

#[test]
fn lower_safe() {
    let r = Sysreg::ID_AA64ISAR0_EL1;
    let host = 2 << 20 | 1 << 16;
    ok(r, host, host);
    ok(r, host, 1 << 20 | 1 << 16);
    ok(r, host, 0);
    bad(r, host, host | 1 << 4);
    bad(r, host, 3 << 20);
    bad(r, host, host | 1);
    bad(r, host, host | 1 << 24);
}

#[test]
fn other_rules() {
    let mmfr1 = Sysreg::ID_AA64MMFR1_EL1;
    // SpecSEI: the higher is safe.
    ok(mmfr1, 0, 1 << 24);
    bad(mmfr1, 1 << 24, 0);
    // VMIDBits, VH, XNX stay.
    let host = 2 << 4 | 1 << 8 | 1 << 28;
    ok(mmfr1, host, host);
    bad(mmfr1, host, host & !(2 << 4));
    bad(mmfr1, host, host & !(1 << 8));
    bad(mmfr1, host, host & !(1 << 28));
    let mmfr0 = Sysreg::ID_AA64MMFR0_EL1;
    // TGran4 and TGran64: 15 is none. TGran4_2: 1 is none.
    ok(mmfr0, 0, 0xf << 28);
    ok(mmfr0, 0, 0xf << 24);
    ok(mmfr0, 1 << 28, 0);
    bad(mmfr0, 0, 1 << 28);
    bad(mmfr0, 0xf << 28, 0);
    bad(mmfr0, 0, 0xe << 28);
    ok(mmfr0, 2 << 40, 1 << 40);
    ok(mmfr0, 2 << 40, 2 << 40);
    bad(mmfr0, 2 << 40, 0);
    bad(mmfr0, 1 << 40, 2 << 40);
    bad(mmfr0, 2 << 4, 0);
    let ctr = Sysreg::CTR_EL0;
    let host = 0xb444_c004;
    ok(ctr, host, host);
    ok(ctr, host, host & !(1 << 28));
    ok(ctr, host, host & !(1 << 29));
    bad(ctr, host & !(1 << 29), host);
    ok(ctr, host, host & !0xf | 3);
    bad(ctr, host, host & !0xf | 5);
    ok(ctr, host, host & !(3 << 14) | 2 << 14);
    bad(ctr, host, host & !(3 << 14));
    bad(ctr, host, host & !(3 << 14) | 1 << 14);
    bad(ctr, host & !(1 << 14), host);
    // CWG and ERG stay; so does RES1.
    bad(ctr, host, host & !(4 << 24));
    bad(ctr, host, host | 1 << 24);
    bad(ctr, host, host & !(1 << 31));
    // FP8's flags: all or none of each.
    let fp = Sysreg::ID_AA64FPFR0_EL1;
    ok(fp, 1 << 31 | 3, 1 << 31);
    bad(fp, 1 << 31, 1 << 30);
}

#[test]
fn minima() {
    let pfr0 = Sysreg::ID_AA64PFR0_EL1;
    let base = 0x1100_0000_0100_0000;
    let host = base | 0x1112;
    ok(pfr0, host, host);
    ok(pfr0, host, base | 0x1111);
    ok(pfr0, host, base | 0x0011);
    bad(pfr0, host, base | 0x1110);
    bad(pfr0, host, base | 0x1102);
    bad(pfr0, host, base | 0x1122);
    // GICv3, CSV2, CSV3 can be taken away, FP not.
    ok(pfr0, host, 0x0000_0000_0000_1112);
    bad(pfr0, host, host | 0xff << 16);
    bad(pfr0, 0xff << 16 | host, host);
    // SVE follows the vCPU's feature.
    bad(pfr0, host | 1 << 32, host);
    let dfr0 = Sysreg::ID_AA64DFR0_EL1;
    let host = 8 | 15 << 36 | 5 << 12 | 3 << 20;
    let all = host | 6 << 8;
    ok(dfr0, host, all);
    ok(dfr0, host, all & !0xf | 6);
    bad(dfr0, host, all & !0xf | 5);
    bad(dfr0, host, all & !0xf | 9);
    ok(dfr0, host, all & !(0xf << 8) | 4 << 8);
    ok(dfr0, host, host);
    bad(dfr0, host, all & !(0xf << 8) | 7 << 8);
    // What is not Arm's PMU is none.
    assert_eq!(set(dfr0, host, all | 0xf << 8), Ok(Write::Set(host)));
    ok(dfr0, host, all & !(3 << 20));
    bad(dfr0, host, all & !(1 << 12));
    bad(dfr0, host | 1 << 28, all);
    ok(dfr0, host | 1 << 28, all | 1 << 28);
    // DoubleLock: 15 is none.
    bad(dfr0, host, all & !(0xf << 36));
    ok(dfr0, host & !(0xf << 36), all);
    let r = Sysreg::ID_DFR0_EL1;
    ok(r, 6, 6 | 6 << 24);
    ok(r, 6, 6 | 3 << 24);
    ok(r, 6, 6);
    bad(r, 6, 6 | 2 << 24);
    bad(r, 6, 6 | 1 << 24);
    bad(r, 6, 5);
    assert_eq!(set(r, 6, 6 | 15 << 24), Ok(Write::Set(6)));
}

/// Fields that guests once saw are taken as the host has them, and dropped.
#[test]
fn tolerated() {
    for (r, shift, base) in [
        (Sysreg::ID_AA64PFR0_EL1, 40, 0x1100_0000_0100_0011),
        (Sysreg::ID_AA64PFR1_EL1, 16, 0),
        (Sysreg::ID_AA64MMFR2_EL1, 24, 0),
    ] {
        let host = base | 1 << shift;
        assert_eq!(set(r, host, host), Ok(Write::Set(base)));
        ok(r, host, base);
        bad(r, base, host);
        bad(r, host, base | 2 << shift);
    }
}

fn registers() -> impl Strategy<Value = Sysreg> {
    prop_oneof![
        (0..TABLE.len()).prop_map(|i| TABLE[i].reg),
        (0..R.len()).prop_map(|i| R[i]),
    ]
}

fn configs() -> impl Strategy<Value = Config> {
    any::<([bool; 9], Option<u8>)>().prop_map(
        |([sve, pauth, gic, csv2, csv3, a, wfxt, r, poe], pmu)| Config {
            pmu: pmu.map(|v| v & 15),
            sve,
            pauth,
            gic,
            csv2,
            csv3,
            aarch32_el0: a,
            wfxt,
            ras_frac: r,
            poe,
        },
    )
}

proptest! {
    #[test]
    fn what_is_shown_can_be_set(r in registers(), host: u64, c in configs()) {
        let v = guest_value(r, host, &c);
        let got = check_write(r, host, v, &c);
        prop_assert!(got == Ok(Write::Set(v)) || got == Ok(Write::Ignore), "{:?} {:#x} {:?}", r, v, got);
    }

    /// What may be set differs from what is shown in writable fields only, and never holds a bit of a field
    /// that is hidden.
    #[test]
    fn what_is_set_is_within(r in registers(), host: u64, value: u64, i in 0_usize..16, c in configs()) {
        let limit = guest_value(r, host, &c);
        // A value that differs in one field.
        let row = TABLE.iter().find(|t| t.reg == r).expect("a row");
        let f = &row.fields[i % row.fields.len()];
        let mask = ((1 << f.width) - 1) << f.shift;
        let v = limit & !mask | value & mask;
        if let Ok(Write::Set(set)) = check_write(r, host, v, &c) {
            prop_assert_eq!((set ^ limit) & !writable_mask(r, c.aarch32_el0), 0);
            let (old, new) = (limit >> f.shift & 15, set >> f.shift & 15);
            match (f.rule, f.signed) {
                (Rule::Lower, false) => prop_assert!(new <= old),
                (Rule::Higher, _) => prop_assert!(new >= old),
                _ => {}
            }
            if f.show == Show::Zero {
                prop_assert_eq!(new, 0);
            }
        }
    }

    #[test]
    fn no_bit_from_nowhere(r in registers(), host: u64, bit in 0_u32..64, c in configs()) {
        let limit = guest_value(r, host, &c);
        let row = TABLE.iter().find(|t| t.reg == r).expect("a row");
        let in_field = row.fields.iter().any(|f| (f.shift.into()..u32::from(f.shift + f.width)).contains(&bit));
        if !in_field {
            prop_assert_eq!(limit >> bit & 1, row.res1 >> bit & 1);
            if let Ok(Write::Set(set)) = check_write(r, host, limit ^ 1 << bit, &c) {
                // Of the fields that are dropped.
                prop_assert_eq!(set, limit);
            }
        }
    }
}
