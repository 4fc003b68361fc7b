// SPDX-License-Identifier: GPL-2.0

//! Coprocessor accesses of AArch32 code at EL0, as the registers that AArch64 has for them.
//!
//! Arm ARM (DDI 0487), G7.3 and G8.1. Only what EL0 can be given is here: counters, timers, the debug channel. All
//! else is undefined at EL0 and does not come to EL2.

use super::super::esr::{CpAccess, CpPairAccess};
use super::super::sysreg::Sysreg;

/// What stands behind an AArch32 register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// The register of AArch64; of a 32-bit access its lower half.
    Register(Sysreg),
    /// The register's upper half.
    Upper(Sysreg),
    /// Reads as zero, writes are ignored.
    RazWi,
    /// DBGDIDR: see [`dbgdidr`].
    Dbgdidr,
    /// Nothing: undefined.
    Undefined,
}

use Mapped::{RazWi, Register, Undefined, Upper};

/// MCR and MRC of coprocessor 15.
pub const fn cp15(a: &CpAccess) -> Mapped {
    // EL0's counters and timers have the same numbers in AArch64, but for op0 and op1.
    let same = Register(Sysreg::new(3, 3, a.crn, a.crm, a.op2));
    match (a.op1, a.crn, a.crm, a.op2) {
        (0, 9, 12, _) | (0, 9, 13, 0..=2) | (0, 9, 14, 0 | 3) => same,
        // PMCEID2 and PMCEID3
        (0, 9, 14, 4) => Upper(Sysreg::PMCEID0_EL0),
        (0, 9, 14, 5) => Upper(Sysreg::PMCEID1_EL0),
        // PMEVCNTR, PMEVTYPER: 31 of each, and PMCCFILTR
        (0, 14, 8..=10 | 12..=15, _) | (0, 14, 11, 0..=6) => same,
        // CNTP_TVAL, CNTP_CTL, CNTV_TVAL, CNTV_CTL
        (0, 14, 2 | 3, 0 | 1) => same,
        _ => Undefined,
    }
}

/// MCRR and MRRC of coprocessor 15.
pub const fn cp15_pair(a: &CpPairAccess) -> Mapped {
    match (a.op1, a.crm) {
        (0, 9) => Register(Sysreg::PMCCNTR_EL0),
        (0, 14) => Register(Sysreg::CNTPCT_EL0),
        (1, 14) => Register(Sysreg::CNTVCT_EL0),
        (2, 14) => Register(Sysreg::CNTP_CVAL_EL0),
        (3, 14) => Register(Sysreg::CNTV_CVAL_EL0),
        (8, 14) => Register(Sysreg::CNTPCTSS_EL0),
        (9, 14) => Register(Sysreg::CNTVCTSS_EL0),
        _ => Undefined,
    }
}

/// MCR and MRC of coprocessor 14.
pub const fn cp14(a: &CpAccess) -> Mapped {
    match (a.op1, a.crn, a.crm, a.op2) {
        (0, 0, 0, 0) => Mapped::Dbgdidr,
        // DBGDSCRint, DBGDTRTXint and RXint, DBGDRAR, DBGDSAR
        (0, 0, 1, 0) | (0, 0, 5, 0) | (0, 1, 0, 0) | (0, 2, 0, 0) => RazWi,
        _ => Undefined,
    }
}

/// MRRC of coprocessor 14: DBGDRAR and DBGDSAR.
pub const fn cp14_pair(a: &CpPairAccess) -> Mapped {
    match (a.op1, a.crm) {
        (0, 1 | 2) => RazWi,
        _ => Undefined,
    }
}

/// DBGDIDR (G8.3) of a guest with these ID_AA64DFR0_EL1 and ID_AA64PFR0_EL1.
pub fn dbgdidr(dfr0: u64, pfr0: u64) -> u32 {
    let field = |v: u64, shift: u32| (v >> shift & 15) as u32;
    let el3 = u32::from(field(pfr0, 12) != 0);
    field(dfr0, 20) << 28
        | field(dfr0, 12) << 24
        | field(dfr0, 28) << 20
        | field(dfr0, 0) << 16
        | 1 << 15
        | el3 << 14
        | el3 << 12
}
