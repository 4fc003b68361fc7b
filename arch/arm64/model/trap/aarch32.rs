// SPDX-License-Identifier: GPL-2.0

//! Coprocessor accesses of AArch32 code, as the registers that AArch64 has for them, which are those of the table.
//!
//! Arm ARM (DDI 0487), G8 (each register's "architecturally mapped to", and its encoding). Code at EL0 has of
//! these what AArch64 code has at EL0, and all else is undefined for it ([`at_el0`]).

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
    /// DBGDSCRint: see [`dscr_int`].
    DscrInt,
    /// Nothing: undefined.
    Undefined,
}

use Mapped::{RazWi, Register, Undefined, Upper};

/// MCR and MRC of coprocessor 15.
pub const fn cp15(a: &CpAccess) -> Mapped {
    let CpAccess {
        op1, crn, crm, op2, ..
    } = *a;
    // Most have the same numbers in AArch64, but for op0, and op1 3 where EL0 may have them.
    let same = Register(Sysreg::new(3, op1, crn, crm, op2));
    let of_el0 = Register(Sysreg::new(3, 3, crn, crm, op2));
    match (op1, crn, crm, op2) {
        // MIDR and its aliases; CTR; TCMTR and TLBTR, of which the guest has neither; REVIDR.
        (0, 0, 0, 0 | 4 | 7) => Register(Sysreg::MIDR_EL1),
        (0, 0, 0, 1) => Register(Sysreg::CTR_EL0),
        (0, 0, 0, 2 | 3) => RazWi,
        (0, 0, 0, 6) => Register(Sysreg::REVIDR_EL1),
        // AArch64 has MVFR<n> where AArch32 has nothing, and its own ID registers behind CRm 3.
        (0, 0, 3, 0..=2) | (0, 0, 4..=7, _) => RazWi,
        (0, 0, 1..=3, _) => same,
        // CCSIDR, CLIDR, AIDR; CSSELR
        (1, 0, 0, 0 | 1 | 7) | (2, 0, 0, 0) => same,
        // SCTLR, ACTLR, CPACR; ACTLR2
        (0, 1, 0, 0..=2) => same,
        (0, 1, 0, 3) => Upper(Sysreg::ACTLR_EL1),
        // TTBR0, TTBR1, TTBCR; TTBCR2
        (0, 2, 0, 0..=2) => same,
        (0, 2, 0, 3) => Upper(Sysreg::TCR_EL1),
        (0, 3, 0, 0) => Register(Sysreg::DACR32_EL2),
        // ICC_PMR
        (0, 4, 6, 0) => same,
        // DFSR, IFSR; ADFSR, AIFSR
        (0, 5, 0, 0) => Register(Sysreg::ESR_EL1),
        (0, 5, 0, 1) => Register(Sysreg::IFSR32_EL2),
        (0, 5, 1, 0 | 1) => same,
        // ERRIDR, ERRSELR; ERXFR, ERXCTLR, ERXSTATUS, ERXADDR, the upper halves of three of them, ERXMISC<n>
        (0, 5, 3, 0 | 1) | (0, 5, 4, 0..=3) => same,
        (0, 5, 4, 4 | 5 | 7) => Upper(Sysreg::new(3, 0, 5, 4, op2 - 4)),
        (0, 5, 5, _) => Register(Sysreg::ERXMISC0_EL1),
        // DFAR, IFAR
        (0, 6, 0, 0) => same,
        (0, 6, 0, 2) => Upper(Sysreg::FAR_EL1),
        (0, 7, 4, 0) => same,
        // DCISW, DCCSW, DCCISW
        (0, 7, 6 | 10 | 14, 2) => Register(Sysreg::new(1, 0, 7, crm, 2)),
        // The PMU: what EL0 may have, PMINTENSET and PMINTENCLR, PMCEID2 and PMCEID3, PMMIR
        (0, 9, 12, _) | (0, 9, 13, 0..=2) | (0, 9, 14, 0 | 3) => of_el0,
        (0, 9, 14, 1 | 2 | 6) => same,
        (0, 9, 14, 4) => Upper(Sysreg::PMCEID0_EL0),
        (0, 9, 14, 5) => Upper(Sysreg::PMCEID1_EL0),
        // PRRR and NMRR, which are MAIR0 and MAIR1; AMAIR0 and AMAIR1
        (0, 10, 2 | 3, 0) => same,
        (0, 10, 2, 1) => Upper(Sysreg::MAIR_EL1),
        (0, 10, 3, 1) => Upper(Sysreg::AMAIR_EL1),
        // ICC_*; those with two halves are written by MCRR.
        (0, 12, 8 | 9 | 12, _) | (0, 12, 11, 1 | 3) => same,
        (0, 13, 0, 1) => same,
        // PMEVCNTR, PMEVTYPER: 31 of each, and PMCCFILTR
        (0, 14, 8..=10 | 12..=15, _) | (0, 14, 11, 0..=6) => of_el0,
        // CNTP_TVAL, CNTP_CTL, CNTV_TVAL, CNTV_CTL
        (0, 14, 2 | 3, 0 | 1) => of_el0,
        _ => Undefined,
    }
}

/// MCRR and MRRC of coprocessor 15.
pub const fn cp15_pair(a: &CpPairAccess) -> Mapped {
    match (a.op1, a.crm) {
        (0, 2) => Register(Sysreg::TTBR0_EL1),
        (1, 2) => Register(Sysreg::TTBR1_EL1),
        (0, 7) => Register(Sysreg::PAR_EL1),
        (0, 9) => Register(Sysreg::PMCCNTR_EL0),
        (0, 12) => Register(Sysreg::ICC_SGI1R_EL1),
        (1, 12) => Register(Sysreg::ICC_ASGI1R_EL1),
        (2, 12) => Register(Sysreg::ICC_SGI0R_EL1),
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
    let CpAccess {
        op1, crn, crm, op2, ..
    } = *a;
    let same = Register(Sysreg::new(2, 0, crn, crm, op2));
    match (op1, crn, crm, op2) {
        (0, 0, 0, 0) => Mapped::Dbgdidr,
        (0, 0, 1, 0) => Mapped::DscrInt,
        // DBGDTRTXint and RXint, DBGWFAR, DBGDSAR, DBGDEVID2 to DBGDEVID
        (0, 0, 5 | 6, 0) | (0, 2, 0, 0) | (0, 7, 0..=2, 7) => RazWi,
        // DBGDTRRXext, DBGDTRTXext, DBGOSECCR; DBGDCCINT; DBGDSCRext
        (0, 0, 0 | 3 | 6, 2) | (0, 0, 2, 0 | 2) => same,
        (0, 0, 7, 0) => Register(Sysreg::DBGVCR32_EL2),
        // DBGBVR, DBGBCR, DBGWVR, DBGWCR; DBGBXVR
        (0, 0, _, 4..=7) => same,
        (0, 1, _, 1) => Upper(Sysreg::new(2, 0, 0, crm, 4)),
        // DBGDRAR, which a reader may also have at EL0
        (0, 1, 0, 0) => RazWi,
        // DBGOSLAR, DBGOSLSR, DBGOSDLR, DBGPRCR; DBGCLAIMSET, DBGCLAIMCLR, DBGAUTHSTATUS
        (0, 1, 0 | 1 | 3 | 4, 4) | (0, 7, 8 | 9 | 14, 6) => same,
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

/// VMRS of an ID register: MVFR0, MVFR1 and MVFR2 by their number.
pub const fn vmrs(a: &CpAccess) -> Mapped {
    match a.crn {
        7 => Register(Sysreg::MVFR0_EL1),
        6 => Register(Sysreg::MVFR1_EL1),
        5 => Register(Sysreg::MVFR2_EL1),
        _ => Undefined,
    }
}

/// What is left of it at EL0: registers that AArch64 gives to EL0, and what is of no consequence.
pub const fn at_el0(m: Mapped) -> Mapped {
    match m {
        Register(r) | Upper(r) if r.op1() != 3 => Undefined,
        other => other,
    }
}

/// A register after a 32-bit access has written one half.
pub const fn with_half(old: u64, upper: bool, new: u64) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    if upper {
        old & LOW | new << 32
    } else {
        old & !LOW | new & LOW
    }
}

/// OSLAR_EL1 for a write of DBGOSLAR: a key closes the lock, all else opens it.
pub const fn os_lock_key(v: u64) -> u64 {
    (v == 0xc5ac_ce55) as u64
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

/// DBGDSCRint: of MDSCR_EL1 it shows MDBGen and UDCCdis; the channel to a debugger is never full.
pub const fn dscr_int(mdscr: u64) -> u64 {
    mdscr & (1 << 15 | 1 << 12)
}
