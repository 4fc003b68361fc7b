// SPDX-License-Identifier: GPL-2.0

//! arm64: the ids by which user space names registers. Lists are written by hand from the kernel's uapi header and
//! `get-reg-list` selftest.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::onereg::{list, Core, Firmware, NotFound, Register, Sve};
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;
use rkvm_unit::arch::arm64::model::trap::{listed, Features};
use std::collections::HashSet;

fn all() -> Features {
    Features {
        pmu: true,
        sve: true,
        pauth: true,
        mte: true,
        ras: true,
        ras1p1: true,
        lor: true,
        gic: true,
        sctlr2: true,
        tcr2: true,
        s1pie: true,
        s1poe: true,
        fpmr: true,
    }
}

fn reg(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> u64 {
    Sysreg::new(op0, op1, crn, crm, op2).id()
}

/// base_regs of the selftest (less what needs a feature of the processor), in order of encodings.
fn base_sysregs() -> Vec<u64> {
    let mut v = Vec::new();
    for n in 0..16 {
        if n == 2 {
            v.extend([reg(2, 0, 0, 2, 0), reg(2, 0, 0, 2, 2)]);
        }
        v.extend((4..8).map(|op2| reg(2, 0, 0, n, op2)));
    }
    v.extend([reg(2, 0, 1, 1, 4), reg(2, 4, 0, 7, 0)]);
    v.extend([reg(3, 0, 0, 0, 0), reg(3, 0, 0, 0, 5), reg(3, 0, 0, 0, 6)]);
    for crm in 1..8 {
        v.extend((0..8).map(|op2| reg(3, 0, 0, crm, op2)));
    }
    for (crn, crm, op2) in [
        (1, 0, 0),
        (1, 0, 1),
        (1, 0, 2),
        (2, 0, 0),
        (2, 0, 1),
        (2, 0, 2),
        (5, 1, 0),
        (5, 1, 1),
        (5, 2, 0),
        (6, 0, 0),
        (7, 4, 0),
        (10, 2, 0),
        (10, 3, 0),
        (12, 0, 0),
        (12, 1, 1),
        (13, 0, 1),
        (13, 0, 4),
        (14, 1, 0),
    ] {
        v.push(reg(3, 0, crn, crm, op2));
    }
    v.extend([
        reg(3, 1, 0, 0, 1),
        reg(3, 1, 0, 0, 7),
        reg(3, 2, 0, 0, 0),
        reg(3, 3, 0, 0, 1),
        reg(3, 3, 13, 0, 2),
        reg(3, 3, 13, 0, 3),
        reg(3, 3, 14, 0, 1),
        // KVM_REG_ARM_TIMER_CNT
        0x6030_0000_0013_df1a,
        reg(3, 3, 14, 2, 1),
        reg(3, 3, 14, 2, 2),
        reg(3, 3, 14, 3, 1),
        // KVM_REG_ARM_TIMER_CVAL
        0x6030_0000_0013_df02,
        reg(3, 4, 3, 0, 0),
        reg(3, 4, 5, 0, 1),
        reg(3, 4, 5, 3, 0),
    ]);
    v
}

fn ids(f: &Features) -> Vec<u64> {
    list(f).collect()
}

#[test]
fn list_of_a_plain_guest() {
    let f = Features {
        gic: true,
        ras: true,
        lor: true,
        ..Features::default()
    };
    let mut want: Vec<u64> = Vec::new();
    // X0 to X30, SP, PC, PSTATE, SP_EL1, ELR_EL1, five SPSRs: one every two words.
    want.extend((0..41).map(|n| 0x6030_0000_0010_0000 + 2 * n));
    want.extend((0..32).map(|n| 0x6040_0000_0010_0054 + 4 * n));
    want.extend([0x6020_0000_0010_00d4, 0x6020_0000_0010_00d5]);
    want.extend((0..4).map(|n| 0x6030_0000_0014_0000 + n));
    want.extend((0..4).map(|n| 0x6030_0000_0016_0000 + n));
    want.extend(base_sysregs());
    want.extend((0..14).map(|n| 0x6020_0000_0011_0000 + n));
    assert_eq!(ids(&f), want);
    // None of these features brings or takes a register of user space's.
    assert_eq!(ids(&Features::default()), want);
}

#[test]
fn list_by_features() {
    let base: HashSet<u64> = ids(&Features::default()).into_iter().collect();
    let new = |f: Features| -> Vec<u64> {
        ids(&f)
            .into_iter()
            .filter(|id| !base.contains(id))
            .collect()
    };
    let none = Features::default();
    assert_eq!(
        new(Features {
            sctlr2: true,
            ..none
        }),
        [reg(3, 0, 1, 0, 3)]
    );
    assert_eq!(new(Features { tcr2: true, ..none }), [reg(3, 0, 2, 0, 3)]);
    assert_eq!(
        new(Features {
            s1pie: true,
            ..none
        }),
        [reg(3, 0, 10, 2, 2), reg(3, 0, 10, 2, 3)]
    );
    assert_eq!(
        new(Features {
            s1poe: true,
            ..none
        }),
        [reg(3, 0, 10, 2, 4), reg(3, 3, 10, 2, 4)]
    );
    assert_eq!(new(Features { fpmr: true, ..none }), [reg(3, 3, 4, 4, 2)]);
    let keys: Vec<u64> = (0..10).map(|n| reg(3, 0, 2, 1 + n / 4, n % 4)).collect();
    assert_eq!(
        new(Features {
            pauth: true,
            ..none
        }),
        keys
    );
    let mut pmu = vec![
        reg(3, 0, 9, 14, 1),
        reg(3, 0, 9, 14, 2),
        reg(3, 0, 9, 14, 6),
    ];
    pmu.extend((0..6).map(|op2| reg(3, 3, 9, 12, op2)));
    pmu.extend([
        reg(3, 3, 9, 13, 0),
        reg(3, 3, 9, 14, 0),
        reg(3, 3, 9, 14, 3),
    ]);
    pmu.extend((0..31).map(|n| reg(3, 3, 14, 8 + n / 8, n % 8)));
    pmu.extend((0..32).map(|n| reg(3, 3, 14, 12 + n / 8, n % 8)));
    assert_eq!(new(Features { pmu: true, ..none }), pmu);
    // SVE: V0 to V31 go, and Z, P, FFR come before the firmware's.
    let sve = ids(&Features { sve: true, ..none });
    assert!(!sve.iter().any(|id| id >> 48 == 0x6040));
    let mut want = vec![0x6060_0000_0015_ffff];
    want.extend((0..32).map(|n| 0x6080_0000_0015_0000 + 32 * n));
    want.extend((0..16).map(|n| 0x6050_0000_0015_0400 + 32 * n));
    want.push(0x6050_0000_0015_0600);
    assert_eq!(sve[43..43 + 50], want);
    assert_eq!(sve[93], 0x6030_0000_0014_0000);
    assert!(sve.contains(&reg(3, 0, 1, 2, 0)), "ZCR_EL1");
}

#[test]
fn all_that_is_listed_can_be_named() {
    for f in [Features::default(), all()] {
        let mut seen = HashSet::new();
        for id in ids(&f) {
            assert!(seen.insert(id), "{id:#x} twice");
            let r = Register::parse(id, &f).unwrap_or_else(|e| panic!("{id:#x}: {e:?}"));
            assert_eq!(r.bytes(), 1 << (id >> 52 & 15), "{id:#x}");
        }
    }
    for r in listed(&all()) {
        assert!(Register::parse(r.id(), &all()).is_ok());
    }
}

#[test]
fn names_of_registers() {
    let f = Features {
        sve: true,
        ..Features::default()
    };
    let plain = Features::default();
    use NotFound::{Invalid, NoEntry};
    let parse = Register::parse;
    for (id, want) in [
        (0x6030_0000_0010_0000, Ok(Register::Core(Core::X(0)))),
        (0x6030_0000_0010_003c, Ok(Register::Core(Core::X(30)))),
        (0x6030_0000_0010_003e, Ok(Register::Core(Core::SpEl0))),
        (0x6030_0000_0010_0040, Ok(Register::Core(Core::Pc))),
        (0x6030_0000_0010_0042, Ok(Register::Core(Core::Pstate))),
        (0x6030_0000_0010_0044, Ok(Register::Core(Core::SpEl1))),
        (0x6030_0000_0010_0046, Ok(Register::Core(Core::ElrEl1))),
        (0x6030_0000_0010_0048, Ok(Register::Core(Core::Spsr(0)))),
        (0x6030_0000_0010_0050, Ok(Register::Core(Core::Spsr(4)))),
        (0x6040_0000_0010_0054, Ok(Register::Core(Core::V(0)))),
        (0x6040_0000_0010_00d0, Ok(Register::Core(Core::V(31)))),
        (0x6020_0000_0010_00d4, Ok(Register::Core(Core::Fpsr))),
        (0x6020_0000_0010_00d5, Ok(Register::Core(Core::Fpcr))),
        // Odd words, holes, other sizes, beyond the end.
        (0x6030_0000_0010_0001, Err(Invalid)),
        (0x6030_0000_0010_0052, Err(Invalid)),
        (0x6020_0000_0010_0000, Err(Invalid)),
        (0x6030_0000_0010_00d4, Err(Invalid)),
        (0x6040_0000_0010_0056, Err(Invalid)),
        (0x6020_0000_0010_00d6, Err(Invalid)),
        (0x6020_0000_0010_00d7, Err(NoEntry)),
        (0x6020_0000_0010_00d8, Err(NoEntry)),
        (0x6080_0000_0010_00d0, Err(NoEntry)),
        (0x60f0_0000_0010_0000, Err(NoEntry)),
        (0x6030_0000_1010_0000, Err(NoEntry)),
        // Other architectures, and bits that mean nothing.
        (0x4030_0000_0010_0000, Err(Invalid)),
        (0x6030_0001_0010_0000, Err(Invalid)),
        (
            0x6030_0000_0014_0000,
            Ok(Register::Firmware(Firmware::PsciVersion)),
        ),
        (
            0x6030_0000_0014_0003,
            Ok(Register::Firmware(Firmware::Workaround3)),
        ),
        (0x6030_0000_0014_0004, Err(NoEntry)),
        (0x6020_0000_0014_0000, Err(NoEntry)),
        (
            0x6030_0000_0016_0003,
            Ok(Register::Firmware(Firmware::VendorHyp2)),
        ),
        (0x6030_0000_0016_0004, Err(NoEntry)),
        (0x6020_0000_0011_000d, Ok(Register::Ccsidr(13))),
        (0x6020_0000_0011_000e, Err(NoEntry)),
        (0x6020_0000_0011_0100, Err(NoEntry)),
        (0x6030_0000_0011_0000, Err(NoEntry)),
        (
            0x6030_0000_0013_df02,
            Ok(Register::Sysreg(Sysreg::CNTV_CVAL_EL0)),
        ),
        (0x6030_0000_0013_c001, Err(NoEntry)),
        (0x6020_0000_0013_c000, Err(NoEntry)),
        (0x6030_0000_0012_c000, Err(NoEntry)),
        // No SVE.
        (0x6060_0000_0015_ffff, Err(NoEntry)),
        (0x6080_0000_0015_0000, Err(NoEntry)),
        (0x6050_0000_0015_0000, Err(Invalid)),
    ] {
        assert_eq!(parse(id, &plain), want, "{id:#x}");
    }
    for (id, want) in [
        (0x6060_0000_0015_ffff, Ok(Register::Sve(Sve::Lengths))),
        (0x6080_0000_0015_0000, Ok(Register::Sve(Sve::Z(0)))),
        (0x6080_0000_0015_03e0, Ok(Register::Sve(Sve::Z(31)))),
        (0x6050_0000_0015_0400, Ok(Register::Sve(Sve::P(0)))),
        (0x6050_0000_0015_05e0, Ok(Register::Sve(Sve::P(15)))),
        (0x6050_0000_0015_0600, Ok(Register::Sve(Sve::Ffr))),
        // Second slices, other sizes, other numbers.
        (0x6080_0000_0015_0001, Err(NoEntry)),
        (0x6050_0000_0015_0601, Err(NoEntry)),
        (0x6050_0000_0015_0620, Err(Invalid)),
        (0x6080_0000_0015_0400, Err(Invalid)),
        (0x6080_0000_0015_ffff, Err(Invalid)),
        (0x6080_0000_1015_0000, Err(Invalid)),
        // The vectors are Z's lower parts.
        (0x6040_0000_0010_0054, Err(Invalid)),
        (0x6020_0000_0010_00d4, Ok(Register::Core(Core::Fpsr))),
    ] {
        assert_eq!(parse(id, &f), want, "{id:#x}");
    }
}

proptest! {
    #[test]
    fn no_id_is_unspeakable(low: u32, size in 0_u64..16) {
        let id = 0x6000_0000_0000_0000 | size << 52 | u64::from(low);
        for f in [Features::default(), all()] {
            let named = Register::parse(id, &f).is_ok();
            prop_assert_eq!(named, list(&f).any(|i| i == id), "{:#x}", id);
        }
    }

    #[test]
    fn near_what_exists(i in 0_usize..400, flip in 0_u32..64) {
        let f = all();
        let v = ids(&f);
        let id = v[i % v.len()] ^ 1 << flip;
        prop_assert_eq!(Register::parse(id, &f).is_ok(), v.contains(&id), "{:#x}", id);
    }
}
