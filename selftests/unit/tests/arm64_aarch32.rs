// SPDX-License-Identifier: GPL-2.0

//! arm64: guests whose EL1 is AArch32. Tables are copied by hand from DDI 0487: D1 ("Mapping of the general-purpose registers
//! between the Execution states"), G1 (vectors, link registers), G8.2 (DFSR, IFSR, SCTLR), ESR_EL2's ISS encodings.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::aarch32::{
    spsr, start, view, Context, Exception, Mode, Taken, RESET,
};
use rkvm_unit::arch::arm64::model::esr::{CpAccess, CpPairAccess, Esr, Syndrome, SysregAccess};
use rkvm_unit::arch::arm64::model::mmio::{decide as mmio, Mmio};
use rkvm_unit::arch::arm64::model::pstate::{big_endian, step_over};
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;
use rkvm_unit::arch::arm64::model::trap::{
    aarch32::{at_el0, cp14, cp15, cp15_pair, dscr_int, os_lock_key, vmrs, with_half, Mapped},
    decide, decide32, Action, Class, Features,
};

const USR: u64 = 0x10;
const FIQ: u64 = 0x11;
const IRQ: u64 = 0x12;
const SVC: u64 = 0x13;
const ABT: u64 = 0x17;
const UND: u64 = 0x1b;
const SYS: u64 = 0x1f;

#[test]
fn banked_registers() {
    // R8 to R14 of each mode.
    for (mode, regs) in [
        (USR, [8, 9, 10, 11, 12, 13, 14]),
        (SYS, [8, 9, 10, 11, 12, 13, 14]),
        (FIQ, [24, 25, 26, 27, 28, 29, 30]),
        (IRQ, [8, 9, 10, 11, 12, 17, 16]),
        (SVC, [8, 9, 10, 11, 12, 19, 18]),
        (ABT, [8, 9, 10, 11, 12, 21, 20]),
        (UND, [8, 9, 10, 11, 12, 23, 22]),
    ] {
        assert_eq!(Mode::of(mode).map(Mode::bits), Some(mode));
        for n in 0..8 {
            assert_eq!(view(mode, n), n);
        }
        for (n, want) in (8..).zip(regs) {
            assert_eq!(view(mode | 0x6000_01e0, n), want, "{mode:#x} r{n}");
            // What is AArch64's number already stays.
            assert_eq!(view(mode, want), want);
        }
        assert_eq!(view(mode, 31), 31);
    }
    // AArch64, and modes that are not EL1's.
    for other in [0, 4, 5, 0x16, 0x1a] {
        assert_eq!(view(other, 13), 13);
        assert_eq!(Mode::of(other), None);
    }
}

fn ctx(pstate: u64) -> Context {
    Context {
        pc: 0x8000_1000,
        pstate,
        vbar: 0xc000_0020,
        sctlr: 1 << 23,
        ttbcr: 0,
        far: 0x1111_2222_3333_4444,
    }
}

#[test]
fn undefined() {
    // N and C, GE 5, Q, DIT (24), PAN (22); SS (21), IL (20), IT, E and SSBS (23) go. From Supervisor, A32.
    let p = 0xa000_0000 | 1 << 27 | 0x5_0000 | 1 << 24 | 1 << 22;
    let t = ctx(p | 1 << 21 | 1 << 20 | 1 << 23 | 1 << 9 | SVC).take(&Exception::Undefined);
    assert_eq!(
        t,
        Taken {
            pc: 0xc000_0024,
            pstate: p | 0x80 | UND,
            lr: (22, 0x8000_1004),
            spsr: (
                Mode::Undefined,
                0xa000_0000
                    | 1 << 27
                    | 0x5_0000
                    | 1 << 22
                    | 1 << 20
                    | 1 << 23
                    | 1 << 9
                    | 1 << 21
                    | SVC
            ),
            dfsr: None,
            ifsr: None,
            far: 0x1111_2222_3333_4444,
        }
    );
    // T32 from User, within an IT block: LR is two on, A and F are as they were.
    let t = ctx(0x0600_fc30 | 0x140).take(&Exception::Undefined);
    assert_eq!((t.lr, t.pstate), ((22, 0x8000_1002), 0x1c0 | UND));
    assert_eq!(t.spsr.1, 0x0600_fc30 | 0x140);
}

#[test]
fn control_of_exceptions() {
    let with = |sctlr| Context { sctlr, ..ctx(SVC) }.take(&Exception::Undefined);
    // V; SPAN clear; EE; TE; DSSBS.
    assert_eq!(with(1 << 23 | 1 << 13).pc, 0xffff_0004);
    assert_eq!(with(0).pstate, 1 << 22 | 0x80 | UND);
    assert_eq!(with(1 << 23 | 1 << 25).pstate, 0x280 | UND);
    assert_eq!(with(1 << 23 | 1 << 30).pstate, 0xa0 | UND);
    assert_eq!(with(1 << 23 | 1 << 31).pstate, 1 << 23 | 0x80 | UND);
    // VBAR's lower five bits are none.
    let c = Context {
        vbar: 0xffff_ffff_c000_003f,
        ..ctx(SVC)
    };
    assert_eq!(c.take(&Exception::Undefined).pc, 0xc000_0024);
}

#[test]
fn aborts() {
    let far = 0xffff_ffff_dead_beef;
    let data = |walk| Exception::DataAbort { far, walk };
    let fetch = |walk| Exception::PrefetchAbort { far, walk };
    for (thumb, mode) in [(0, SVC), (0x20, USR)] {
        let t = ctx(mode | thumb).take(&data(None));
        // A and I are masked; eight on from the instruction in either set; SPSR_abt, LR_abt.
        assert_eq!((t.pc, t.pstate), (0xc000_0030, 0x180 | ABT));
        assert_eq!(t.lr, (20, 0x8000_1008));
        assert_eq!(t.spsr, (Mode::Abort, mode | thumb));
        assert_eq!((t.dfsr, t.ifsr), (Some(0x08), None));
        assert_eq!(t.far, 0x1111_2222_dead_beef);
        let t = ctx(mode | thumb).take(&fetch(None));
        assert_eq!((t.pc, t.pstate), (0xc000_002c, 0x180 | ABT));
        assert_eq!(t.lr, (20, 0x8000_1004));
        assert_eq!((t.dfsr, t.ifsr), (None, Some(0x08)));
        assert_eq!(t.far, 0xdead_beef_3333_4444);
    }
    // Short descriptors: 0b01100 and 0b01110 for a walk of the first and second level. Long ones: LPAE (bit 9), 0b010000, and
    // 0b0101LL for a walk.
    for (ttbcr, walk, status) in [
        (0, Some(1), 0x0c),
        (0, Some(2), 0x0e),
        (1 << 31, None, 0x210),
        (1 << 31, Some(1), 0x215),
        (1 << 31, Some(2), 0x216),
        (1 << 31, Some(3), 0x217),
    ] {
        let c = Context { ttbcr, ..ctx(SVC) };
        assert_eq!(c.take(&data(walk)).dfsr, Some(status));
        assert_eq!(c.take(&fetch(walk)).ifsr, Some(status));
    }
}

#[test]
fn states() {
    // SPSR_<mode> has DIT where SPSR_EL2 has SS.
    assert_eq!(spsr(1 << 24 | 1 << 21 | USR), 1 << 21 | USR);
    assert_eq!(spsr(1 << 21 | USR), USR);
    assert_eq!(RESET, 0x1d3);
    assert_eq!(start(0x4000_1000, false), (0x4000_1000, 0x1d3));
    assert_eq!(start(0x4000_1001, false), (0x4000_1000, 0x1f3));
    assert_eq!(start(0x1_4000_1001, true), (0x4000_1000, 0x3f3));
    // E decides in every mode of AArch32, whatever SCTLR says.
    for m in [USR, FIQ, IRQ, SVC, ABT, UND, SYS] {
        assert!(big_endian(m | 1 << 9, 0) && !big_endian(m, 3 << 24));
    }
    // A trapped instruction of 16 bits in Supervisor.
    assert_eq!(step_over(0x1000, SVC | 0x20, false), (0x1002, SVC | 0x20));
}

/// By EC: bit 24 is CV, 23:20 the condition; of SMC (0x13) they count if bit 19 is set.
#[test]
fn conditions() {
    let z = 1 << 30;
    let holds = |ec: u64, iss: u64, p: u64| Esr(ec << 26 | iss).condition_holds(p);
    for ec in [0x01, 0x03, 0x04, 0x05, 0x06, 0x08, 0x0c] {
        assert!(!holds(ec, 1 << 24, SVC) && holds(ec, 1 << 24, SVC | z));
        // T32 in an IT block (NE, the last): PSTATE has the condition.
        let it = SVC | 0x20 | (0x18 & 0xfc) << 8;
        assert!(holds(ec, 0, it) && !holds(ec, 0, it | z));
    }
    assert!(holds(0x13, 1 << 24, SVC));
    assert!(!holds(0x13, 1 << 24 | 1 << 19, SVC) && holds(0x13, 1 << 24 | 1 << 19, SVC | z));
    assert!(holds(0x12, 1 << 24, SVC), "HVC has no condition");
}

#[test]
fn devices() {
    // A data abort with a syndrome: STR of R13 in Supervisor, as QEMU has it and as processors have it.
    for (mode, srt, rt) in [
        (SVC, 13, 19),
        (SVC, 19, 19),
        (FIQ, 8, 24),
        (USR, 14, 14),
        (5, 14, 14),
    ] {
        let esr = Esr(0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | srt << 16 | 1 << 6 | 7);
        let Syndrome::DataAbort(d) = esr.decode() else {
            panic!("no data abort");
        };
        match mmio(esr, &d, 0x900_0000, false, (mode, 0), false) {
            Mmio::Device(r) => {
                assert_eq!(r.rt(), rt);
                assert_eq!(
                    r.store(0x1122_3344_5566_7788)[..4],
                    [0x88, 0x77, 0x66, 0x55]
                );
                // A load fills the lower half and clears the other.
                assert_eq!(r.load([1, 2, 3, 0xff, 5, 6, 7, 8]), 0xff03_0201);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn cp(op1: u8, crn: u8, crm: u8, op2: u8) -> CpAccess {
    CpAccess {
        op1,
        crn,
        crm,
        op2,
        rt: 0,
        write: false,
    }
}

/// G8's "architecturally mapped to", for what traps.
#[test]
fn coprocessor_15() {
    use Mapped::{RazWi, Register as Reg, Undefined, Upper};
    for ((op1, crn, crm, op2), want) in [
        ((0, 0, 0, 0), Reg(Sysreg::MIDR_EL1)),
        ((0, 0, 0, 1), Reg(Sysreg::CTR_EL0)),
        ((0, 0, 0, 2), RazWi),
        ((0, 0, 0, 3), RazWi),
        ((0, 0, 0, 6), Reg(Sysreg::REVIDR_EL1)),
        ((0, 0, 1, 0), Reg(Sysreg::ID_PFR0_EL1)),
        ((0, 0, 2, 7), Reg(Sysreg::ID_ISAR6_EL1)),
        ((0, 0, 3, 0), RazWi),
        ((0, 0, 3, 4), Reg(Sysreg::ID_PFR2_EL1)),
        ((0, 0, 4, 0), RazWi),
        ((0, 0, 7, 7), RazWi),
        ((0, 0, 8, 0), Undefined),
        ((1, 0, 0, 0), Reg(Sysreg::CCSIDR_EL1)),
        ((1, 0, 0, 1), Reg(Sysreg::CLIDR_EL1)),
        ((1, 0, 0, 2), Undefined),
        ((1, 0, 0, 7), Reg(Sysreg::AIDR_EL1)),
        ((2, 0, 0, 0), Reg(Sysreg::CSSELR_EL1)),
        ((0, 1, 0, 0), Reg(Sysreg::SCTLR_EL1)),
        ((0, 1, 0, 1), Reg(Sysreg::ACTLR_EL1)),
        ((0, 1, 0, 3), Upper(Sysreg::ACTLR_EL1)),
        ((0, 2, 0, 1), Reg(Sysreg::TTBR1_EL1)),
        ((0, 2, 0, 2), Reg(Sysreg::TCR_EL1)),
        ((0, 2, 0, 3), Upper(Sysreg::TCR_EL1)),
        ((0, 3, 0, 0), Reg(Sysreg::DACR32_EL2)),
        ((0, 4, 6, 0), Reg(Sysreg::ICC_PMR_EL1)),
        ((0, 5, 0, 0), Reg(Sysreg::ESR_EL1)),
        ((0, 5, 0, 1), Reg(Sysreg::IFSR32_EL2)),
        ((0, 5, 1, 1), Reg(Sysreg::AFSR1_EL1)),
        ((0, 5, 3, 1), Reg(Sysreg::ERRSELR_EL1)),
        ((0, 5, 4, 1), Reg(Sysreg::ERXCTLR_EL1)),
        ((0, 5, 4, 5), Upper(Sysreg::ERXCTLR_EL1)),
        ((0, 6, 0, 0), Reg(Sysreg::FAR_EL1)),
        ((0, 6, 0, 2), Upper(Sysreg::FAR_EL1)),
        ((0, 7, 6, 2), Reg(Sysreg::DC_ISW)),
        ((0, 7, 10, 2), Reg(Sysreg::DC_CSW)),
        ((0, 7, 14, 2), Reg(Sysreg::DC_CISW)),
        ((0, 10, 2, 0), Reg(Sysreg::MAIR_EL1)),
        ((0, 10, 2, 1), Upper(Sysreg::MAIR_EL1)),
        ((0, 10, 3, 1), Upper(Sysreg::AMAIR_EL1)),
        ((0, 12, 8, 0), Reg(Sysreg::ICC_IAR0_EL1)),
        ((0, 12, 9, 1), Reg(Sysreg::ICC_AP1R1_EL1)),
        ((0, 12, 11, 1), Reg(Sysreg::ICC_DIR_EL1)),
        ((0, 12, 11, 5), Undefined),
        ((0, 12, 12, 7), Reg(Sysreg::ICC_IGRPEN1_EL1)),
        ((6, 12, 12, 4), Undefined),
        ((0, 13, 0, 1), Reg(Sysreg::CONTEXTIDR_EL1)),
        ((0, 9, 14, 6), Reg(Sysreg::PMMIR_EL1)),
        ((0, 15, 0, 0), Undefined),
        ((0, 11, 0, 0), Undefined),
    ] {
        assert_eq!(
            cp15(&cp(op1, crn, crm, op2)),
            want,
            "{op1} {crn} {crm} {op2}"
        );
    }
    let pair = |op1, crm| {
        cp15_pair(&CpPairAccess {
            op1,
            crm,
            rt: 0,
            rt2: 1,
            write: true,
        })
    };
    assert_eq!(pair(0, 12), Reg(Sysreg::ICC_SGI1R_EL1));
    assert_eq!(pair(1, 12), Reg(Sysreg::ICC_ASGI1R_EL1));
    assert_eq!(pair(2, 12), Reg(Sysreg::ICC_SGI0R_EL1));
    assert_eq!(pair(1, 2), Reg(Sysreg::TTBR1_EL1));
    assert_eq!(pair(0, 7), Reg(Sysreg::PAR_EL1));
    // What EL0 has of it.
    assert_eq!(at_el0(Reg(Sysreg::SCTLR_EL1)), Undefined);
    assert_eq!(at_el0(Upper(Sysreg::FAR_EL1)), Undefined);
    assert_eq!(at_el0(pair(0, 12)), Undefined);
    assert_eq!(at_el0(Reg(Sysreg::CNTP_CTL_EL0)), Reg(Sysreg::CNTP_CTL_EL0));
    // VMRS: the register's number in CRn.
    assert_eq!(vmrs(&cp(7, 7, 0, 0)), Reg(Sysreg::MVFR0_EL1));
    assert_eq!(vmrs(&cp(7, 6, 0, 0)), Reg(Sysreg::MVFR1_EL1));
    assert_eq!(vmrs(&cp(7, 5, 0, 0)), Reg(Sysreg::MVFR2_EL1));
    assert_eq!(vmrs(&cp(7, 0, 0, 0)), Undefined);
}

#[test]
fn coprocessor_14() {
    use Mapped::{DscrInt, RazWi, Register as Reg, Undefined, Upper};
    let bvr = |n| Sysreg::new(2, 0, 0, n, 4);
    for ((op1, crn, crm, op2), want) in [
        ((0, 0, 1, 0), DscrInt),
        ((0, 0, 2, 0), Reg(Sysreg::MDCCINT_EL1)),
        ((0, 0, 2, 2), Reg(Sysreg::MDSCR_EL1)),
        ((0, 0, 0, 2), Reg(Sysreg::OSDTRRX_EL1)),
        ((0, 0, 3, 2), Reg(Sysreg::OSDTRTX_EL1)),
        ((0, 0, 6, 2), Reg(Sysreg::OSECCR_EL1)),
        ((0, 0, 7, 0), Reg(Sysreg::DBGVCR32_EL2)),
        ((0, 0, 15, 4), Reg(bvr(15))),
        ((0, 0, 0, 5), Reg(Sysreg::DBGBCR0_EL1)),
        ((0, 0, 0, 7), Reg(Sysreg::DBGWCR0_EL1)),
        ((0, 1, 3, 1), Upper(bvr(3))),
        ((0, 1, 0, 4), Reg(Sysreg::OSLAR_EL1)),
        ((0, 1, 1, 4), Reg(Sysreg::OSLSR_EL1)),
        ((0, 1, 3, 4), Reg(Sysreg::OSDLR_EL1)),
        ((0, 1, 4, 4), Reg(Sysreg::DBGPRCR_EL1)),
        ((0, 7, 8, 6), Reg(Sysreg::DBGCLAIMSET_EL1)),
        ((0, 7, 14, 6), Reg(Sysreg::DBGAUTHSTATUS_EL1)),
        ((0, 7, 2, 7), RazWi),
        ((0, 0, 6, 0), RazWi),
        ((0, 0, 4, 0), Undefined),
        ((0, 1, 2, 4), Undefined),
        ((7, 0, 0, 0), Undefined),
    ] {
        assert_eq!(
            cp14(&cp(op1, crn, crm, op2)),
            want,
            "{op1} {crn} {crm} {op2}"
        );
    }
    assert_eq!((os_lock_key(0xc5ac_ce55), os_lock_key(1)), (1, 0));
    // MDBGen and UDCCdis.
    assert_eq!(dscr_int(u64::MAX), 0x9000);
    assert_eq!(
        with_half(0x1111_2222_3333_4444, false, 0x5555_6666),
        0x1111_2222_5555_6666
    );
    assert_eq!(
        with_half(0x1111_2222_3333_4444, true, 0x5555_6666),
        0x5555_6666_3333_4444
    );
    // What AArch64 has only for EL2 is AArch32's own.
    let f = Features::default();
    let a = |reg, write| SysregAccess { reg, rt: 0, write };
    for reg in [Sysreg::DACR32_EL2, Sysreg::IFSR32_EL2, Sysreg::DBGVCR32_EL2] {
        assert_eq!(decide(&a(reg, true), &f), Action::Undefined);
        assert_eq!(decide32(&a(reg, true), &f), Action::Serve(Class::Aarch32));
    }
    assert_eq!(
        decide32(&a(Sysreg::ID_PFR0_EL1, true), &f),
        Action::Undefined
    );
    assert_eq!(
        decide32(&a(Sysreg::ID_PFR0_EL1, false), &f),
        Action::Serve(Class::Id)
    );
}

proptest! {
    /// Whatever the state, the new one is one that EL1 has, and the mappings name registers that are there or none.
    #[test]
    fn never_illegal(pc: u64, pstate: u64, vbar: u64, sctlr: u64, ttbcr: u64, far: u64, walk: Option<i8>, which in 0..3) {
        let e = match which {
            0 => Exception::Undefined,
            1 => Exception::PrefetchAbort { far, walk },
            _ => Exception::DataAbort { far, walk },
        };
        let t = Context { pc, pstate, vbar, sctlr, ttbcr, far }.take(&e);
        prop_assert!(matches!(Mode::of(t.pstate), Some(Mode::Undefined | Mode::Abort)));
        // IT, SS and IL are clear, and nothing is beyond 32 bits.
        prop_assert_eq!(t.pstate & 0xffff_ffff_0630_fc00, 0);
        prop_assert_eq!((t.pc | t.lr.1 | t.spsr.1) >> 32, 0);
        prop_assert!(t.lr.0 < 31);
    }
}
