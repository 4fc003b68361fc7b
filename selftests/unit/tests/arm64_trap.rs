// SPDX-License-Identifier: GPL-2.0

//! arm64: the table of system registers.

use rkvm_unit::arch::arm64::model::esr::{CpAccess, CpPairAccess, SysregAccess};
use rkvm_unit::arch::arm64::model::sysreg::{Sysreg, NAMES};
use rkvm_unit::arch::arm64::model::trap::{
    aarch32::{cp14, cp14_pair, cp15, cp15_pair, dbgdidr, Mapped},
    decide, find, kept, mpidr, os_lock, oslsr_valid, reset_value, slot, Action, Class, Features,
    Gate, Keep, Timer, TimerReg, Way, SLOTS, TABLE,
};

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

fn access(reg: Sysreg, write: bool, f: &Features) -> Action {
    decide(&SysregAccess { reg, rt: 0, write }, f)
}

fn read(reg: Sysreg, f: &Features) -> Action {
    access(reg, false, f)
}

fn write(reg: Sysreg, f: &Features) -> Action {
    access(reg, true, f)
}

#[test]
fn table_is_in_order() {
    let regs: Vec<Sysreg> = TABLE.iter().flat_map(|r| r.registers()).collect();
    assert!(regs.windows(2).all(|w| w[0] < w[1]));
    for row in TABLE {
        assert!(row.count > 0);
        // A row does not reach into the next op1 or CRn.
        let last = row.registers().last().expect("some");
        assert_eq!(last.bits() >> 7, row.first.bits() >> 7, "{:?}", row.first);
        assert!(
            row.first.name().is_some() || row.count == 4,
            "{:?}",
            row.first
        );
        for r in row.registers() {
            assert_eq!(find(r).map(|f| f.first), Some(row.first));
        }
    }
}

/// All that has a name is in the table, but for what no hypervisor sees.
#[test]
fn names_are_in_the_table() {
    let not = [
        "DBGDTRRX_EL0",
        "ELR_EL1",
        "SPSR_EL1",
        "NZCV",
        "FPCR",
        "FPSR",
        "CNTFRQ_EL0",
    ];
    for &(r, name) in NAMES {
        assert_eq!(find(r).is_none(), not.contains(&name), "{name}");
    }
}

#[test]
fn slots_are_dense() {
    let mut seen = [false; SLOTS];
    let mut n = 0;
    for bits in 0..=u16::MAX {
        let r = Sysreg::from_bits(bits);
        if let Some(s) = slot(r) {
            assert_eq!(kept(r, &all()), Some(Keep::Slot), "{r:?}");
            assert!(!std::mem::replace(&mut seen[s], true), "{r:?}");
            n += 1;
        }
    }
    assert_eq!(n, SLOTS);
    assert_eq!(slot(Sysreg::DBGBVR0_EL1), Some(0));
    assert_eq!(slot(Sysreg::DBGWCR0_EL1.plus(8)), Some(7));
    assert_eq!(slot(Sysreg::ID_AA64PFR0_EL1), None);
    assert_eq!(slot(Sysreg::CNTV_CVAL_EL0), None);
    assert!(slot(Sysreg::TTBR1_EL1).is_some() && slot(Sysreg::ICC_PMR_EL1).is_none());
}

#[test]
fn what_guests_get() {
    let none = Features::default();
    use Action::{RazWi, Serve, Undefined};
    for (r, rd, wr) in [
        (Sysreg::ID_AA64PFR0_EL1, Serve(Class::Id), Undefined),
        (Sysreg::new(3, 0, 0, 7, 7), Serve(Class::Id), Undefined),
        (Sysreg::new(3, 0, 0, 3, 3), Serve(Class::Id), Undefined),
        (Sysreg::new(3, 0, 0, 8, 0), Undefined, Undefined),
        (Sysreg::new(3, 0, 0, 0, 1), Undefined, Undefined),
        (Sysreg::MIDR_EL1, Serve(Class::Implementation), Undefined),
        (Sysreg::AIDR_EL1, Serve(Class::Implementation), Undefined),
        (Sysreg::CTR_EL0, Serve(Class::Id), Undefined),
        (Sysreg::CLIDR_EL1, Serve(Class::Clidr), Undefined),
        (Sysreg::CCSIDR_EL1, Serve(Class::Ccsidr), Undefined),
        (
            Sysreg::CSSELR_EL1,
            Serve(Class::Csselr),
            Serve(Class::Csselr),
        ),
        (Sysreg::SCTLR_EL1, Serve(Class::Vm), Serve(Class::Vm)),
        (Sysreg::TTBR1_EL1, Serve(Class::Vm), Serve(Class::Vm)),
        (Sysreg::ACTLR_EL1, Serve(Class::Actlr), Serve(Class::Actlr)),
        (Sysreg::MDSCR_EL1, Serve(Class::Debug), Serve(Class::Debug)),
        (
            Sysreg::DBGWCR0_EL1.plus(120),
            Serve(Class::Debug),
            Serve(Class::Debug),
        ),
        (Sysreg::OSLAR_EL1, Undefined, Serve(Class::OsLock)),
        (Sysreg::OSLSR_EL1, Serve(Class::OsLockStatus), Undefined),
        (Sysreg::OSDLR_EL1, RazWi, RazWi),
        (Sysreg::DBGCLAIMSET_EL1, RazWi, RazWi),
        (
            Sysreg::DBGAUTHSTATUS_EL1,
            Serve(Class::DebugAuth),
            Undefined,
        ),
        (Sysreg::MDCCSR_EL0, RazWi, Undefined),
        (Sysreg::DC_CISW, Undefined, Serve(Class::SetWay)),
        (Sysreg::DC_CIGSW, Undefined, Undefined),
        (Sysreg::PMSCR_EL1, Undefined, Undefined),
        (Sysreg::TRBLIMITR_EL1, Undefined, Undefined),
        (Sysreg::AMEVCNTR10_EL0.plus(15), Undefined, Undefined),
        (Sysreg::MPAM1_EL1, Undefined, Undefined),
        (Sysreg::SVCR, Undefined, Undefined),
        (Sysreg::DACR32_EL2, Undefined, Undefined),
        (Sysreg::VBAR_EL1, Undefined, Undefined),
        (
            Sysreg::CNTPCT_EL0,
            Serve(Class::Timer(Timer::Physical, TimerReg::Count)),
            Undefined,
        ),
        (
            Sysreg::CNTP_TVAL_EL0,
            Serve(Class::Timer(Timer::Physical, TimerReg::Countdown)),
            Serve(Class::Timer(Timer::Physical, TimerReg::Countdown)),
        ),
        (
            Sysreg::CNTV_CVAL_EL0,
            Serve(Class::Timer(Timer::Virtual, TimerReg::Compare)),
            Serve(Class::Timer(Timer::Virtual, TimerReg::Compare)),
        ),
        (
            Sysreg::CNTP_CTL_EL0,
            Serve(Class::Timer(Timer::Physical, TimerReg::Control)),
            Serve(Class::Timer(Timer::Physical, TimerReg::Control)),
        ),
        // EL2's own.
        (Sysreg::new(3, 4, 1, 1, 0), Undefined, Undefined),
        (Sysreg::new(2, 1, 8, 0, 0), Undefined, Undefined),
    ] {
        assert_eq!((read(r, &none), write(r, &none)), (rd, wr), "{r:?}");
    }
}

#[test]
fn what_features_give() {
    use Action::{RazWi, Serve, Undefined};
    let none = Features::default();
    type Set = fn(&mut Features);
    let cases: [(Set, &[(Sysreg, Action, Action)]); 7] = [
        (
            |f| f.pmu = true,
            &[
                (Sysreg::PMCR_EL0, Serve(Class::Pmu), Serve(Class::Pmu)),
                (Sysreg::PMSWINC_EL0, Undefined, Serve(Class::Pmu)),
                (Sysreg::PMCEID1_EL0, Serve(Class::Pmu), Undefined),
                (
                    Sysreg::PMEVCNTR0_EL0.plus(30),
                    Serve(Class::Pmu),
                    Serve(Class::Pmu),
                ),
                (Sysreg::PMMIR_EL1, Serve(Class::Pmu), Undefined),
            ],
        ),
        (
            |f| f.gic = true,
            &[
                (Sysreg::ICC_SGI1R_EL1, Undefined, Serve(Class::Gic)),
                (Sysreg::ICC_SGI0R_EL1, Undefined, Serve(Class::Gic)),
                (Sysreg::ICC_SRE_EL1, Serve(Class::Gic), Serve(Class::Gic)),
                (
                    Sysreg::ICC_IGRPEN1_EL1,
                    Serve(Class::Gic),
                    Serve(Class::Gic),
                ),
                (Sysreg::ICC_IAR1_EL1, Serve(Class::Gic), Undefined),
                (Sysreg::ICC_EOIR0_EL1, Undefined, Serve(Class::Gic)),
                (Sysreg::ICC_DIR_EL1, Undefined, Serve(Class::Gic)),
                (Sysreg::ICC_AP1R3_EL1, Serve(Class::Gic), Serve(Class::Gic)),
            ],
        ),
        (
            |f| f.ras = true,
            &[
                (Sysreg::ERRSELR_EL1, RazWi, RazWi),
                (Sysreg::ERRIDR_EL1, RazWi, Undefined),
                (Sysreg::ERXMISC1_EL1, RazWi, RazWi),
            ],
        ),
        (
            |f| f.ras1p1 = true,
            &[
                (Sysreg::ERXPFGCDN_EL1, RazWi, RazWi),
                (Sysreg::ERXMISC3_EL1, RazWi, RazWi),
            ],
        ),
        (
            |f| f.lor = true,
            &[
                (Sysreg::LORC_EL1, RazWi, RazWi),
                (Sysreg::LORID_EL1, RazWi, Undefined),
            ],
        ),
        (
            |f| f.tcr2 = true,
            &[(Sysreg::TCR2_EL1, Serve(Class::Vm), Serve(Class::Vm))],
        ),
        (
            |f| f.mte = true,
            &[(Sysreg::DC_CIGDSW, Undefined, Serve(Class::SetWay))],
        ),
    ];
    for (set, rows) in cases {
        let mut f = none;
        set(&mut f);
        for &(r, rd, wr) in rows {
            assert_eq!((read(r, &f), write(r, &f)), (rd, wr), "{r:?}");
            assert_eq!(
                (read(r, &none), write(r, &none)),
                (Undefined, Undefined),
                "{r:?}"
            );
        }
    }
    // MPAMIDR lies between registers of another feature.
    assert_eq!(read(Sysreg::MPAMIDR_EL1, &all()), Undefined);
}

/// What must not be served without a feature is not, whichever the register.
#[test]
fn nothing_without_its_feature() {
    let none = Features::default();
    for row in TABLE.iter().filter(|r| r.gate != Gate::Always) {
        for r in row.registers() {
            assert_eq!(read(r, &none), Action::Undefined);
            assert_eq!(write(r, &none), Action::Undefined);
            assert_eq!(kept(r, &none), None);
        }
    }
    for row in TABLE.iter().filter(|r| r.way != Way::Rw) {
        assert_eq!(
            access(row.first, row.way == Way::Ro, &all()),
            Action::Undefined
        );
    }
}

#[test]
fn values() {
    assert_eq!(reset_value(Sysreg::SCTLR_EL1), 0xc5_0078);
    assert_eq!(reset_value(Sysreg::TTBR0_EL1), 0);
    assert_eq!(reset_value(Sysreg::OSLSR_EL1), 8);
    assert!(oslsr_valid(8) && oslsr_valid(10) && !oslsr_valid(0) && !oslsr_valid(12));
    assert_eq!(
        (os_lock(8, 1), os_lock(10, 0), os_lock(8, 0xfe)),
        (10, 8, 8)
    );
    assert_eq!(mpidr(0), 0x8000_0000);
    assert_eq!(mpidr(15), 0x8000_000f);
    assert_eq!(mpidr(16), 0x8000_0100);
    assert_eq!(mpidr(511), 0x8000_1f0f);
    assert_eq!(mpidr(0x12345), 0x8012_3405);
}

#[test]
fn aarch32() {
    use Mapped::{RazWi, Register as Reg, Undefined, Upper};
    let a = |op1, crn, crm, op2| CpAccess {
        op1,
        crn,
        crm,
        op2,
        rt: 0,
        write: false,
    };
    for ((op1, crn, crm, op2), want) in [
        ((0, 9, 12, 0), Reg(Sysreg::PMCR_EL0)),
        ((0, 9, 12, 7), Reg(Sysreg::PMCEID1_EL0)),
        ((0, 9, 13, 0), Reg(Sysreg::PMCCNTR_EL0)),
        ((0, 9, 13, 2), Reg(Sysreg::PMXEVCNTR_EL0)),
        ((0, 9, 13, 3), Undefined),
        ((0, 9, 14, 0), Reg(Sysreg::PMUSERENR_EL0)),
        ((0, 9, 14, 1), Reg(Sysreg::PMINTENSET_EL1)),
        ((0, 9, 14, 3), Reg(Sysreg::PMOVSSET_EL0)),
        ((0, 9, 14, 4), Upper(Sysreg::PMCEID0_EL0)),
        ((0, 9, 14, 5), Upper(Sysreg::PMCEID1_EL0)),
        ((0, 14, 8, 0), Reg(Sysreg::PMEVCNTR0_EL0)),
        ((0, 14, 11, 6), Reg(Sysreg::PMEVCNTR0_EL0.plus(30))),
        ((0, 14, 11, 7), Undefined),
        ((0, 14, 15, 7), Reg(Sysreg::PMCCFILTR_EL0)),
        ((0, 14, 2, 0), Reg(Sysreg::CNTP_TVAL_EL0)),
        ((0, 14, 3, 1), Reg(Sysreg::CNTV_CTL_EL0)),
        ((0, 14, 2, 2), Undefined),
        ((1, 9, 12, 0), Undefined),
    ] {
        assert_eq!(
            cp15(&a(op1, crn, crm, op2)),
            want,
            "{op1} {crn} {crm} {op2}"
        );
    }
    let p = |op1, crm| CpPairAccess {
        op1,
        crm,
        rt: 0,
        rt2: 1,
        write: false,
    };
    for ((op1, crm), want) in [
        ((0, 9), Reg(Sysreg::PMCCNTR_EL0)),
        ((0, 14), Reg(Sysreg::CNTPCT_EL0)),
        ((1, 14), Reg(Sysreg::CNTVCT_EL0)),
        ((2, 14), Reg(Sysreg::CNTP_CVAL_EL0)),
        ((3, 14), Reg(Sysreg::CNTV_CVAL_EL0)),
        ((8, 14), Reg(Sysreg::CNTPCTSS_EL0)),
        ((9, 14), Reg(Sysreg::CNTVCTSS_EL0)),
        ((4, 14), Undefined),
        ((6, 14), Undefined),
    ] {
        assert_eq!(cp15_pair(&p(op1, crm)), want, "{op1} {crm}");
    }
    assert_eq!(cp14(&a(0, 0, 0, 0)), Mapped::Dbgdidr);
    assert_eq!(cp14(&a(0, 0, 1, 0)), Mapped::DscrInt);
    assert_eq!(cp14(&a(0, 0, 5, 0)), RazWi);
    assert_eq!(cp14(&a(6, 0, 0, 0)), Undefined);
    assert_eq!(
        (cp14_pair(&p(0, 1)), cp14_pair(&p(0, 3))),
        (RazWi, Undefined)
    );
    // WRPs 3, BRPs 5, CTX_CMPs 1, DebugVer 6.
    let dfr0 = 1 << 28 | 3 << 20 | 5 << 12 | 6;
    assert_eq!(dbgdidr(dfr0, 0x1111), 0x3516_d000);
    assert_eq!(dbgdidr(dfr0, 0x0111), 0x3516_8000);
}

#[test]
fn identification_that_is_not_there() {
    use rkvm_unit::arch::arm64::model::trap::reported_as_trap;
    const IDS: u64 = 2 << 36;
    // CCSIDR2_EL1, SMIDR_EL1, GMID_EL1
    for (op1, op2) in [(1, 2), (1, 6), (1, 4)] {
        let r = Sysreg::new(3, op1, 0, 0, op2);
        assert!(reported_as_trap(r, IDS));
        assert!(!reported_as_trap(r, 0));
    }
    for r in [Sysreg::ZCR_EL1, Sysreg::OSLAR_EL1, Sysreg::TPIDR2_EL0] {
        assert!(!reported_as_trap(r, IDS));
    }
    assert!(!reported_as_trap(Sysreg::new(3, 4, 0, 0, 0), IDS));
}
