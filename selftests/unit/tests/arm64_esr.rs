// SPDX-License-Identifier: GPL-2.0

//! arm64: names of system registers, syndromes of guests' exceptions, syndromes that guests are given. Figures
//! are worked out by hand from DDI 0487, D24.2 (ESR_ELx) and C5.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::esr::{
    at_el1, condition_holds, external_abort, fault_address, par_address, serror, undefined,
    with_fault, Abort, Access, Class, CpAccess, CpPairAccess, DataAbort, Debug, Esr, Fault,
    Syndrome, SysregAccess, Wait, CLASSES,
};
use rkvm_unit::arch::arm64::model::sysreg::{Sysreg, NAMES};

const IL: u64 = 1 << 25;

fn decode(ec: u64, iss: u64) -> Syndrome {
    Esr(ec << 26 | IL | iss).decode()
}

#[test]
fn encodings() {
    let of = |r: Sysreg| (r.op0(), r.op1(), r.crn(), r.crm(), r.op2());
    for (r, parts, name) in [
        (Sysreg::DC_CISW, (1, 0, 7, 14, 2), "DC_CISW"),
        (Sysreg::DBGBVR0_EL1, (2, 0, 0, 0, 4), "DBGBVR0_EL1"),
        (Sysreg::MDSCR_EL1, (2, 0, 0, 2, 2), "MDSCR_EL1"),
        (Sysreg::OSLAR_EL1, (2, 0, 1, 0, 4), "OSLAR_EL1"),
        (Sysreg::MIDR_EL1, (3, 0, 0, 0, 0), "MIDR_EL1"),
        (Sysreg::MPIDR_EL1, (3, 0, 0, 0, 5), "MPIDR_EL1"),
        (Sysreg::ID_PFR0_EL1, (3, 0, 0, 1, 0), "ID_PFR0_EL1"),
        (Sysreg::ID_AA64PFR0_EL1, (3, 0, 0, 4, 0), "ID_AA64PFR0_EL1"),
        (Sysreg::ID_AA64ZFR0_EL1, (3, 0, 0, 4, 4), "ID_AA64ZFR0_EL1"),
        (
            Sysreg::ID_AA64MMFR2_EL1,
            (3, 0, 0, 7, 2),
            "ID_AA64MMFR2_EL1",
        ),
        (Sysreg::SCTLR_EL1, (3, 0, 1, 0, 0), "SCTLR_EL1"),
        (Sysreg::TTBR1_EL1, (3, 0, 2, 0, 1), "TTBR1_EL1"),
        (Sysreg::APGAKEYHI_EL1, (3, 0, 2, 3, 1), "APGAKEYHI_EL1"),
        (Sysreg::ICC_PMR_EL1, (3, 0, 4, 6, 0), "ICC_PMR_EL1"),
        (Sysreg::ESR_EL1, (3, 0, 5, 2, 0), "ESR_EL1"),
        (Sysreg::FAR_EL1, (3, 0, 6, 0, 0), "FAR_EL1"),
        (Sysreg::PAR_EL1, (3, 0, 7, 4, 0), "PAR_EL1"),
        (Sysreg::MAIR_EL1, (3, 0, 10, 2, 0), "MAIR_EL1"),
        (Sysreg::VBAR_EL1, (3, 0, 12, 0, 0), "VBAR_EL1"),
        (Sysreg::ICC_SGI1R_EL1, (3, 0, 12, 11, 5), "ICC_SGI1R_EL1"),
        (Sysreg::ICC_SRE_EL1, (3, 0, 12, 12, 5), "ICC_SRE_EL1"),
        (Sysreg::CONTEXTIDR_EL1, (3, 0, 13, 0, 1), "CONTEXTIDR_EL1"),
        (Sysreg::CCSIDR_EL1, (3, 1, 0, 0, 0), "CCSIDR_EL1"),
        (Sysreg::CSSELR_EL1, (3, 2, 0, 0, 0), "CSSELR_EL1"),
        (Sysreg::CTR_EL0, (3, 3, 0, 0, 1), "CTR_EL0"),
        (Sysreg::PMCR_EL0, (3, 3, 9, 12, 0), "PMCR_EL0"),
        (Sysreg::TPIDR_EL0, (3, 3, 13, 0, 2), "TPIDR_EL0"),
        (Sysreg::CNTVCT_EL0, (3, 3, 14, 0, 2), "CNTVCT_EL0"),
        (Sysreg::CNTP_CVAL_EL0, (3, 3, 14, 2, 2), "CNTP_CVAL_EL0"),
        (Sysreg::CNTV_CVAL_EL0, (3, 3, 14, 3, 2), "CNTV_CVAL_EL0"),
        (Sysreg::PMCCFILTR_EL0, (3, 3, 14, 15, 7), "PMCCFILTR_EL0"),
        (Sysreg::DACR32_EL2, (3, 4, 3, 0, 0), "DACR32_EL2"),
    ] {
        assert_eq!(of(r), parts, "{name}");
        assert_eq!(r.name(), Some(name));
    }
    assert_eq!(Sysreg::MIDR_EL1.bits(), 0xc000);
    assert_eq!(Sysreg::MIDR_EL1.id(), 0x6030_0000_0013_c000);
    // PMEVTYPER30 is the last of its file, just before PMCCFILTR.
    assert_eq!(Sysreg::PMEVTYPER0_EL0.plus(31), Sysreg::PMCCFILTR_EL0);
    assert_eq!(Sysreg::PMEVCNTR0_EL0.plus(30), Sysreg::new(3, 3, 14, 11, 6));
    assert_eq!(
        Sysreg::DBGWCR0_EL1.plus(15 * 8),
        Sysreg::new(2, 0, 0, 15, 7)
    );
    assert_eq!(
        format!("{:?}", Sysreg::new(3, 5, 15, 2, 7)),
        "S3_5_C15_C2_7"
    );
    assert_eq!(Sysreg::FAR_EL1.to_string(), "FAR_EL1");
}

#[test]
fn names_are_in_order() {
    assert!(NAMES.windows(2).all(|w| w[0].0 < w[1].0));
    let mut names: Vec<_> = NAMES.iter().map(|&(_, n)| n).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), NAMES.len());
}

/// `uapi/asm/kvm.h`: KVM_REG_ARM_TIMER_CVAL is ARM64_SYS_REG(3, 3, 14, 0, 2), KVM_REG_ARM_TIMER_CNT is
/// ARM64_SYS_REG(3, 3, 14, 3, 2); KVM_REG_ARM_TIMER_CTL and those of the physical timer are in order.
#[test]
fn timers_are_swapped() {
    assert_eq!(Sysreg::CNTV_CVAL_EL0.id(), 0x6030_0000_0013_df02);
    assert_eq!(Sysreg::CNTVCT_EL0.id(), 0x6030_0000_0013_df1a);
    assert_eq!(Sysreg::CNTV_CTL_EL0.id(), 0x6030_0000_0013_df19);
    assert_eq!(Sysreg::CNTP_CVAL_EL0.id(), 0x6030_0000_0013_df12);
    assert_eq!(Sysreg::CNTPCT_EL0.id(), 0x6030_0000_0013_df01);
}

#[test]
fn feature_ids() {
    for op1 in 0..8 {
        for crn in 0..16 {
            for crm in 0..16 {
                for op2 in 0..8 {
                    assert_eq!(
                        Sysreg::new(3, op1, crn, crm, op2).is_feature_id(),
                        op1 == 0 && crn == 0 && (1..8).contains(&crm)
                    );
                    assert!(!Sysreg::new(2, op1, crn, crm, op2).is_feature_id());
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn parts_both_ways(bits: u16, rt in 0_u64..32, write: bool) {
        let r = Sysreg::from_bits(bits);
        prop_assert_eq!(Sysreg::new(r.op0(), r.op1(), r.crn(), r.crm(), r.op2()), r);
        prop_assert_eq!(Sysreg::from_id(r.id()), Some(r));
        let iss = u64::from(r.op0()) << 20 | u64::from(r.op2()) << 17 | u64::from(r.op1()) << 14
            | u64::from(r.crn()) << 10 | rt << 5 | u64::from(r.crm()) << 1 | u64::from(!write);
        prop_assert_eq!(
            decode(0x18, iss),
            Syndrome::Sysreg(SysregAccess { reg: r, rt: rt as u8, write })
        );
    }

    #[test]
    fn only_ids_of_system_registers(id: u64) {
        prop_assert_eq!(Sysreg::from_id(id).is_some(), id >> 16 == 0x6030_0000_0013);
    }

    #[test]
    fn no_syndrome_is_unspeakable(esr: u64, pstate: u64) {
        let e = Esr(esr);
        let _ = (e.decode(), e.condition_holds(pstate), at_el1(esr, pstate & 1 != 0));
        prop_assert_eq!(u64::from(e.ec()), esr >> 26 & 0x3f);
        prop_assert_eq!(e.iss() | u64::from(e.long()) << 25, esr & 0x3ff_ffff);
        prop_assert_eq!(e.iss2(), esr >> 32 & 0xff_ffff);
    }
}

#[test]
fn other_register_groups_are_none() {
    for id in [
        0x6020_0000_0013_c000,
        0x6030_0000_0010_0000,
        0x6030_0000_0113_c000,
        0x4030_0000_0013_c000,
        0x6030_0001_0013_c000,
    ] {
        assert_eq!(Sysreg::from_id(id), None, "{id:#x}");
    }
}

#[test]
fn classes() {
    assert_eq!(CLASSES.len(), 44);
    for &c in CLASSES {
        assert_eq!(Class::of(c as u8), Some(c));
    }
    for ec in [
        0x02, 0x0b, 0x0f, 0x10, 0x14, 0x1b, 0x23, 0x29, 0x2e, 0x36, 0x39, 0x3f, 0x40,
    ] {
        assert_eq!(Class::of(ec), None, "{ec:#x}");
    }
    // What cannot come from a guest at EL1 or EL0, or never comes to EL2 here.
    for ec in [0x00, 0x02, 0x0d, 0x11, 0x15, 0x21, 0x25, 0x31, 0x33, 0x35] {
        assert_eq!(decode(ec, 0x155_5555), Syndrome::Unexpected(ec as u8));
    }
}

#[test]
fn simple_ones() {
    assert_eq!(decode(0x16, 0xffff), Syndrome::Hvc(0xffff));
    assert_eq!(decode(0x16, 0x1ff_0000), Syndrome::Hvc(0));
    assert_eq!(decode(0x17, 0x1234), Syndrome::Smc(0x1234));
    assert_eq!(decode(0x12, 0x1234), Syndrome::Hvc32(0x1234));
    assert_eq!(decode(0x13, 0x8_1234), Syndrome::Smc32);
    assert_eq!(decode(0x07, 0x1e0_0000), Syndrome::Fp);
    assert_eq!(decode(0x19, 0), Syndrome::Sve);
    assert_eq!(decode(0x1d, 2), Syndrome::Sme);
    assert_eq!(decode(0x09, 0), Syndrome::Pauth);
    assert_eq!(decode(0x0a, 3), Syndrome::Other(3));
    assert_eq!(decode(0x0e, 0), Syndrome::IllegalState);
    assert_eq!(decode(0x1a, 0), Syndrome::Eret);
    assert_eq!(decode(0x2f, 0x100_0011), Syndrome::SError(0x100_0011));
    assert_eq!(decode(0x3c, 0x404), Syndrome::Debug(Debug::Brk(0x404)));
    assert_eq!(decode(0x38, 7), Syndrome::Debug(Debug::Bkpt32(7)));
    assert_eq!(decode(0x30, 0x22), Syndrome::Debug(Debug::Breakpoint));
    assert_eq!(decode(0x32, 0x22), Syndrome::Debug(Debug::Step));
    let watch = |iss| match decode(0x34, iss) {
        Syndrome::Debug(Debug::Watchpoint {
            write,
            cache,
            address,
        }) => (write, cache, address),
        other => panic!("{other:?}"),
    };
    assert_eq!(watch(0x22), (false, false, true));
    assert_eq!(watch(0x22 | 1 << 6), (true, false, true));
    assert_eq!(watch(0x22 | 1 << 8), (false, true, true));
    assert_eq!(watch(0x22 | 1 << 10), (false, false, false));
}

#[test]
fn waits() {
    for (iss, w) in [
        (0x1e0_0000, Wait::Interrupt),
        (0x1e0_0001, Wait::Event),
        (0x1e0_0002, Wait::InterruptUntil(None)),
        (0x1e0_0006 | 17 << 5, Wait::InterruptUntil(Some(17))),
        (0x1e0_0007 | 31 << 5, Wait::EventUntil(Some(31))),
        (0x1e0_0003 | 31 << 5, Wait::EventUntil(None)),
    ] {
        assert_eq!(decode(0x01, iss), Syndrome::Wait(w));
    }
}

#[test]
fn coprocessors() {
    // MRC p15, 0, r3, c9, c13, 2 (PMXEVCNTR): opc2 2, opc1 0, CRn 9, Rt 3, CRm 13, read.
    let mrc = CpAccess {
        op1: 0,
        crn: 9,
        crm: 13,
        op2: 2,
        rt: 3,
        write: false,
    };
    let iss = 1 << 24 | 0xe << 20 | 2 << 17 | 9 << 10 | 3 << 5 | 13 << 1 | 1;
    assert_eq!(decode(0x03, iss), Syndrome::Cp15(mrc));
    assert_eq!(decode(0x05, iss), Syndrome::Cp14(mrc));
    assert_eq!(decode(0x08, iss), Syndrome::VmrsId(mrc));
    assert_eq!(
        decode(0x03, iss & !1),
        Syndrome::Cp15(CpAccess { write: true, ..mrc })
    );
    // MRRC p15, 1, r4, r5, c14 (CNTVCT).
    let mrrc = CpPairAccess {
        op1: 1,
        crm: 14,
        rt: 4,
        rt2: 5,
        write: false,
    };
    let iss = 1 << 24 | 0xe << 20 | 1 << 16 | 5 << 10 | 4 << 5 | 14 << 1 | 1;
    assert_eq!(decode(0x04, iss), Syndrome::Cp15Pair(mrrc));
    assert_eq!(decode(0x0c, iss), Syndrome::Cp14Pair(mrrc));
    assert_eq!(
        decode(0x04, iss | 8 << 16),
        Syndrome::Cp15Pair(CpPairAccess { op1: 9, ..mrrc })
    );
    assert_eq!(decode(0x06, 0), Syndrome::Cp14Memory);
}

#[test]
fn conditions() {
    let (n, z, c, v) = (1 << 31, 1 << 30, 1 << 29, 1 << 28);
    // By hand from C1.2.4, as sets of flags for which each condition holds.
    let tables: [(u8, &[u64], &[u64]); 8] = [
        (0, &[z, z | c], &[0, n | c | v]),
        (2, &[c, c | z], &[0, n | z | v]),
        (4, &[n, n | v], &[0, z | c | v]),
        (6, &[v, v | n], &[0, n | z | c]),
        (8, &[c, c | n | v], &[0, z, c | z]),
        (10, &[0, n | v, z | c], &[n, v, n | z]),
        (12, &[0, n | v, c], &[z, n, v, n | v | z]),
        (14, &[0, n | z | c | v], &[]),
    ];
    for (cond, yes, no) in tables {
        for f in yes {
            assert!(condition_holds(cond, *f), "{cond} {f:#x}");
        }
        for f in no {
            assert!(!condition_holds(cond, *f), "{cond} {f:#x}");
        }
        if cond < 14 {
            for f in (0..16).map(|f| f << 28) {
                assert_ne!(condition_holds(cond, f), condition_holds(cond + 1, f));
            }
        }
    }
    let aarch32 = 0x10;
    let esr = |cond: u64| Esr(3 << 26 | IL | 1 << 24 | cond << 20);
    assert!(!esr(0).condition_holds(aarch32) && esr(0).condition_holds(aarch32 | z));
    assert!(esr(14).condition_holds(aarch32) && esr(15).condition_holds(aarch32));
    assert!(
        esr(0).condition_holds(0),
        "AArch64 has no conditional instructions"
    );
    assert!(
        Esr(0x24 << 26 | 1 << 24).condition_holds(aarch32),
        "not of this class"
    );
    // Without COND: IT[7:4] = 0001 (NE), IT[3:0] = 1000: one instruction, IF-THEN.
    let thumb = aarch32 | 1 << 5;
    let plain = Esr(3 << 26);
    let it = |it: u64| thumb | (it & 0xfc) << 8 | (it & 3) << 25;
    assert!(plain.condition_holds(thumb));
    assert!(plain.condition_holds(it(0x18)) && !plain.condition_holds(it(0x18) | z));
    assert!(!plain.condition_holds(it(0x01)) && plain.condition_holds(it(0x01) | z));
    assert!(!plain.condition_holds(it(0x04)), "EQ, in a longer block");
    assert!(!plain.condition_holds(it(0x88)) && plain.condition_holds(it(0x88) | c));
}

#[test]
fn faults() {
    for l in 0..4 {
        assert_eq!(Fault::of(l), Fault::AddressSize(l as i8));
        assert_eq!(Fault::of(4 + l), Fault::Translation(l as i8));
        assert_eq!(Fault::of(8 + l), Fault::AccessFlag(l as i8));
        assert_eq!(Fault::of(12 + l), Fault::Permission(l as i8));
        assert_eq!(Fault::of(0x14 + l), Fault::ExternalOnWalk(l as i8));
        assert_eq!(Fault::of(0x1c + l), Fault::ParityOnWalk(l as i8));
        assert_eq!(Fault::of(0x24 + l), Fault::GranuleOnWalk(l as i8));
    }
    for (code, f) in [
        (0x10, Fault::External),
        (0x11, Fault::TagCheck),
        (0x13, Fault::ExternalOnWalk(-1)),
        (0x18, Fault::Parity),
        (0x1b, Fault::ParityOnWalk(-1)),
        (0x21, Fault::Alignment),
        (0x28, Fault::Granule),
        (0x29, Fault::AddressSize(-1)),
        (0x2b, Fault::Translation(-1)),
        (0x30, Fault::TlbConflict),
        (0x31, Fault::UnsupportedUpdate),
        (0x35, Fault::UnsupportedExclusive),
        (0x3f, Fault::Other(0x3f)),
        (0x19, Fault::Other(0x19)),
    ] {
        assert_eq!(Fault::of(code), f, "{code:#x}");
    }
    let external: Vec<u8> = (0..64).filter(|&c| Fault::of(c).is_external()).collect();
    assert_eq!(
        external,
        [0x10, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f]
    );
}

fn data(iss: u64) -> DataAbort {
    match decode(0x24, iss) {
        Syndrome::DataAbort(d) => d,
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_aborts() {
    // LDRSH W7, [..]: ISV, SAS 01, SSE, SRT 7, SF 0; read, translation fault at level 3.
    let d = data(1 << 24 | 1 << 22 | 1 << 21 | 7 << 16 | 7);
    assert_eq!(
        d,
        DataAbort {
            abort: Abort {
                fault: Fault::Translation(3),
                on_walk: false,
                address_valid: true
            },
            wnr: false,
            cache: false,
            access: Some(Access {
                size: 1,
                sign_extend: true,
                rt: 7,
                wide: false,
                ordered: false
            }),
            ls64: false,
        }
    );
    assert_eq!(d.access.map(|a| a.bytes()), Some(2));
    // STLR X30: SAS 11, SF, AR, write, permission fault at level 2.
    let d = data(1 << 24 | 3 << 22 | 30 << 16 | 1 << 15 | 1 << 14 | 1 << 6 | 0xe);
    assert_eq!(
        d.access,
        Some(Access {
            size: 3,
            sign_extend: false,
            rt: 30,
            wide: true,
            ordered: true
        })
    );
    assert!(d.wnr && d.needs_write() && d.abort.fault == Fault::Permission(2));
    assert!(!d.abort.ipa_valid());
    // STP: no syndrome.
    assert_eq!(data(1 << 6 | 7).access, None);
    // A walk: reads, unless the descriptor's flags were to be set.
    let walk = data(1 << 7 | 1 << 6 | 7);
    assert!(walk.abort.on_walk && !walk.needs_write() && walk.abort.ipa_valid());
    let update = data(1 << 7 | 0xf);
    assert!(update.needs_write() && update.abort.ipa_valid());
    // DC CIVAC
    assert!(data(1 << 8 | 1 << 6 | 7).cache);
    // FnV is of synchronous external aborts only.
    assert!(!data(1 << 10 | 0x10).abort.address_valid);
    assert!(data(0x10).abort.address_valid && data(1 << 10 | 0x14).abort.address_valid);
    assert!(data(1 << 10 | 7).abort.address_valid);
    // LST: ST64BV is 1, LD64B 2; not for external aborts, where the bits are SET.
    assert!(data(1 << 11 | 7).ls64 && data(2 << 11 | 0xf).ls64 && data(1 << 11 | 0x2b).ls64);
    assert!(!data(7).ls64 && !data(3 << 11 | 0x10).ls64 && !data(1 << 11).ls64);
    for (code, valid) in [
        (0, true),
        (7, true),
        (0xb, true),
        (0xf, false),
        (0x10, false),
        (0x21, false),
    ] {
        assert_eq!(data(code).abort.ipa_valid(), valid, "{code:#x}");
    }
}

#[test]
fn instruction_aborts() {
    assert_eq!(
        decode(0x20, 0x86),
        Syndrome::InstructionAbort(Abort {
            fault: Fault::Translation(2),
            on_walk: true,
            address_valid: true
        })
    );
}

#[test]
fn addresses() {
    // FIPA is in bits 47:4 and stands for 55:12; bit 63 is NS.
    assert_eq!(
        fault_address(0x80_0000, 0xffff_8000_1234_5678, false),
        0x8000_0678
    );
    assert_eq!(
        fault_address(0x80_0000, 0xffff_8000_1234_5678, true),
        0x8000_0000
    );
    assert_eq!(
        fault_address(u64::MAX, u64::MAX, false),
        0x00ff_ffff_ffff_ffff
    );
    assert_eq!(fault_address(0xf, 0xfff, false), 0xfff);
    assert_eq!(
        par_address(0xff00_0000_4000_0b80, 0x1234),
        Some(0x4000_0234)
    );
    assert_eq!(par_address(0x80f, 0), None);
}

#[test]
fn injected() {
    assert_eq!(undefined(), 0x0200_0000);
    assert_eq!(external_abort(false, true, None), 0x9200_0010);
    assert_eq!(external_abort(false, false, None), 0x9600_0010);
    assert_eq!(external_abort(true, true, None), 0x8200_0010);
    assert_eq!(external_abort(true, false, None), 0x8600_0010);
    for (level, code) in [(-1, 0x13), (0, 0x14), (1, 0x15), (2, 0x16), (3, 0x17)] {
        assert_eq!(
            external_abort(false, false, Some(level)),
            0x9600_0000 | code
        );
        assert_eq!(Fault::of(code as u8), Fault::ExternalOnWalk(level));
    }
    assert_eq!(
        with_fault(external_abort(false, true, None), 0),
        0x9200_0000
    );
    assert_eq!(
        with_fault(external_abort(false, false, Some(3)), 0x35),
        0x9600_0035
    );
    assert_eq!(serror(0), 0xbe00_0000);
    assert_eq!(serror(0x101_0001 | 1 << 40), 0xbf01_0001);
    // Same level: 0x20 becomes 0x21 and so on; others, and what comes from EL0, stay.
    for ec in [0x20_u64, 0x24, 0x30, 0x32, 0x34] {
        let e = ec << 26 | IL | 0x155;
        assert_eq!(at_el1(e, true), e);
        assert_eq!(at_el1(e, false), e + (1 << 26));
    }
    for ec in [0x00_u64, 0x3c, 0x18, 0x0e, 0x3f] {
        assert_eq!(at_el1(ec << 26 | 5, false), ec << 26 | 5);
    }
}
