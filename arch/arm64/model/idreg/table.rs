// SPDX-License-Identifier: GPL-2.0

//! The table. Fields that are not here (GCS, MTE, NMI, SME, AMU, BRBE, MPAM, RME, SPE, TRBE, trace, and what the
//! manual does not know yet) read as zero; so do all ID registers that are not here.

use super::super::sysreg::Sysreg;
use super::{Field, IdReg, Rule, Show};

/// Lower is safe; user space may lower it.
const fn low(shift: u8, max: u8) -> Field {
    Field {
        shift,
        width: 4,
        signed: false,
        rule: Rule::Lower,
        max,
        min: 0,
        writable: true,
        show: Show::Host,
    }
}

impl Field {
    /// User space may not change it.
    const fn fixed(self) -> Field {
        Field {
            writable: false,
            ..self
        }
    }

    const fn signed(self) -> Field {
        Field {
            signed: true,
            ..self
        }
    }

    const fn bits(self, width: u8) -> Field {
        Field { width, ..self }
    }

    const fn rule(self, rule: Rule) -> Field {
        Field { rule, ..self }
    }

    const fn at_least(self, min: u8) -> Field {
        Field { min, ..self }
    }

    const fn show(self, show: Show) -> Field {
        Field { show, ..self }
    }
}

const fn reg(reg: Sysreg, fields: &'static [Field]) -> IdReg {
    IdReg {
        reg,
        res1: 0,
        fields,
    }
}

/// Four-bit fields in all of the lower half.
const EIGHT: &[Field] = &[
    low(0, 15),
    low(4, 15),
    low(8, 15),
    low(12, 15),
    low(16, 15),
    low(20, 15),
    low(24, 15),
    low(28, 15),
];

/// Registers by encoding, fields by shift. Comments name the fields in that order.
#[rustfmt::skip]
pub static TABLE: &[IdReg] = &[
    // State0 to State3, CSV2, DIT
    reg(Sysreg::ID_PFR0_EL1, &[low(0, 15), low(4, 15), low(8, 15), low(12, 15), low(16, 15), low(24, 1)]),
    // ProgMod, Security, MProgMod, Virtualization, GenTimer, Sec_frac, Virt_frac, GIC
    reg(Sysreg::ID_PFR1_EL1, &[
        low(0, 15), low(4, 15), low(8, 15), low(12, 15), low(16, 15), low(20, 15), low(24, 15),
        low(28, 3).show(Show::GicHost),
    ]),
    // CopDbg (Armv8.8 at most), CopSDbg, MMapDbg, CopTrc, MMapTrc, MProfDbg, PerfMon
    reg(Sysreg::ID_DFR0_EL1, &[
        low(0, 10).at_least(6), low(4, 15), low(8, 15), low(12, 15), low(16, 15), low(20, 15),
        low(24, 9).show(Show::PerfMon),
    ]),
    // VMSA, PMSA, OuterShr, ShareLvl, TCM, AuxReg, FCSE, InnerShr
    reg(Sysreg::ID_MMFR0_EL1, &[
        low(0, 15), low(4, 15), share(8), low(12, 15), low(16, 15), low(20, 15), low(24, 15),
        share(28),
    ]),
    reg(Sysreg::ID_MMFR1_EL1, EIGHT),
    reg(Sysreg::ID_MMFR2_EL1, EIGHT),
    reg(Sysreg::ID_MMFR3_EL1, EIGHT),
    // Swap, BitCount, BitField, CmpBranch, Coproc, Debug, Divide
    reg(Sysreg::ID_ISAR0_EL1, &[
        low(0, 15), low(4, 15), low(8, 15), low(12, 15), low(16, 15), low(20, 15), low(24, 15),
    ]),
    reg(Sysreg::ID_ISAR1_EL1, EIGHT),
    reg(Sysreg::ID_ISAR2_EL1, EIGHT),
    reg(Sysreg::ID_ISAR3_EL1, EIGHT),
    reg(Sysreg::ID_ISAR4_EL1, EIGHT),
    // SEVL, AES, SHA1, SHA2, CRC32, RDM
    reg(Sysreg::ID_ISAR5_EL1, &[low(0, 1), low(4, 2), low(8, 1), low(12, 1), low(16, 1), low(24, 1)]),
    // SpecSEI, AC2, XNX, CnP, HPDS, LSM, EVT
    reg(Sysreg::ID_MMFR4_EL1, &[
        low(0, 1).rule(Rule::Higher), low(4, 1), low(8, 1), low(12, 1), low(16, 2), low(20, 1), low(28, 2),
    ]),
    // JSCVT, DP, FHM, SB, SPECRES, BF16, I8MM
    reg(Sysreg::ID_ISAR6_EL1, &[
        low(0, 1), low(4, 1), low(8, 1), low(12, 1), low(16, 1), low(20, 1), low(24, 1),
    ]),
    reg(Sysreg::MVFR0_EL1, EIGHT),
    reg(Sysreg::MVFR1_EL1, EIGHT),
    // SIMDMisc, FPMisc
    reg(Sysreg::MVFR2_EL1, &[low(0, 3), low(4, 4)]),
    // CSV3, SSBS
    reg(Sysreg::ID_PFR2_EL1, &[low(0, 1), low(4, 1)]),
    // ETS
    reg(Sysreg::ID_MMFR5_EL1, &[low(0, 1)]),

    // EL0 to EL3 (AArch64 at EL0 and EL1 cannot be taken away), FP, AdvSIMD, GIC, RAS, SVE, SEL2, DIT, CSV2, CSV3
    reg(Sysreg::ID_AA64PFR0_EL1, &[
        low(0, 2).at_least(1), low(4, 2).at_least(1), low(8, 2), low(12, 2),
        low(16, 1).signed().fixed(), low(20, 1).signed().fixed(),
        low(24, 1).show(Show::Gic), low(28, 2), low(32, 1).show(Show::Sve).fixed(),
        low(36, 1), low(48, 1), low(56, 3).show(Show::Csv2), low(60, 1).show(Show::Csv3),
    ]),
    // BT, SSBS, RAS_frac, CSV2_frac, DF2
    reg(Sysreg::ID_AA64PFR1_EL1, &[
        low(0, 1), low(4, 2), low(12, 1).show(Show::RasFrac), low(32, 2).show(Show::Zero), low(56, 1),
    ]),
    // MTESTOREONLY, MTEFAR, GCIE, FPMR
    reg(Sysreg::ID_AA64PFR2_EL1, &[
        low(4, 1).show(Show::Zero), low(8, 1).show(Show::Zero), low(12, 1).show(Show::Zero), low(32, 1),
    ]),
    // SVEver, AES, EltPerm, BitPerm, BF16, B16B16, SHA3, SM4, I8MM, F16MM, F32MM, F64MM
    reg(Sysreg::ID_AA64ZFR0_EL1, &[
        low(0, 4), low(4, 3), low(12, 1), low(16, 1), low(20, 2), low(24, 3), low(32, 1), low(40, 1), low(44, 1),
        low(48, 1), low(52, 1), low(56, 1),
    ]),
    // F8E5M2, F8E4M3, F16MM2, F8MM4, F8MM8, F8DP2, F8DP4, F8FMA, F8CVT
    reg(Sysreg::ID_AA64FPFR0_EL1, &[
        flag(0), flag(1), flag(15), flag(26), flag(27), flag(28), flag(29), flag(30), flag(31),
    ]),
    // DebugVer (Armv8.8 at most), PMUVer (PMUv3p9 at most), BRPs, WRPs, CTX_CMPs, DoubleLock. The highest
    // breakpoints are those that see contexts, so their numbers cannot change without trapping them all.
    reg(Sysreg::ID_AA64DFR0_EL1, &[
        low(0, 10).at_least(6), low(8, 9).show(Show::PmuVer), low(12, 15).fixed(), low(20, 15),
        low(28, 15).fixed(), low(36, 0).signed().at_least(15),
    ]),
    // AES, SHA1, SHA2, CRC32, ATOMIC, RDM, SHA3, SM3, SM4, DP, FHM, TS, TLB, RNDR
    reg(Sysreg::ID_AA64ISAR0_EL1, &[
        low(4, 2), low(8, 1), low(12, 2), low(16, 1), low(20, 3), low(28, 1), low(32, 1), low(36, 1), low(40, 1),
        low(44, 1), low(48, 3), low(52, 2), low(56, 2), low(60, 1),
    ]),
    // DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS, SB, SPECRES, BF16, DGH, I8MM, XS, LS64
    reg(Sysreg::ID_AA64ISAR1_EL1, &[
        low(0, 2), pauth(4, 6), pauth(8, 6), low(12, 1), low(16, 1), low(20, 3), pauth(24, 1), pauth(28, 1),
        low(32, 1), low(36, 1), low(40, 2), low(44, 2), low(48, 1), low(52, 1), low(56, 1),
        low(60, 4).show(Show::Zero),
    ]),
    // WFxT, RPRES, GPA3, APA3, MOPS, BC, CLRBHB, RPRFM, CSSC, LUT, ATS1A
    reg(Sysreg::ID_AA64ISAR2_EL1, &[
        low(0, 2).show(Show::WfxT), low(4, 1), pauth(8, 1), pauth(12, 6), low(16, 1), low(20, 1), low(28, 1),
        low(48, 1), low(52, 2), low(56, 2), low(60, 1),
    ]),
    // FAMINMAX, LSFE, LSUI, FPRCVT
    reg(Sysreg::ID_AA64ISAR3_EL1, &[low(4, 1), low(16, 1), low(24, 1), low(28, 1)]),
    // PARange, ASIDBits, BigEnd, SNSMem, BigEndEL0, TGran16, TGran64, TGran4, TGran16_2, TGran64_2, TGran4_2,
    // ExS, FGT, ECV
    reg(Sysreg::ID_AA64MMFR0_EL1, &[
        low(0, 7), low(4, 2).fixed(), low(8, 1), low(12, 1), low(16, 1), low(20, 2),
        low(24, 1).signed().at_least(15), low(28, 1).signed().at_least(15),
        granule2(32), granule2(36), granule2(40), low(44, 1), low(56, 2), low(60, 2),
    ]),
    // HAFDBS, VMIDBits, VH, HPDS, LO, PAN, SpecSEI, XNX, TWED, ETS, HCX, AFP, TIDCP1, ECBHB
    reg(Sysreg::ID_AA64MMFR1_EL1, &[
        low(0, 3), low(4, 2).fixed(), low(8, 1).fixed(), low(12, 2), low(16, 1), low(20, 3),
        low(24, 1).rule(Rule::Higher), low(28, 1).fixed(), low(32, 1), low(36, 3), low(40, 1), low(44, 1),
        low(52, 1), low(60, 1),
    ]),
    // CnP, UAO, LSM, IESB, VARange, ST, AT, IDS, FWB, TTL, BBM, EVT, E0PD
    reg(Sysreg::ID_AA64MMFR2_EL1, &[
        low(0, 1), low(4, 1), low(8, 1), low(12, 1), low(16, 1), low(28, 1), low(32, 1), low(36, 2).fixed(),
        low(40, 1).fixed(), low(48, 1), low(52, 3), low(56, 2).fixed(), low(60, 1),
    ]),
    // TCRX, SCTLRX, S1PIE, S1POE
    reg(Sysreg::ID_AA64MMFR3_EL1, &[low(0, 1), low(4, 1), low(8, 1), low(16, 1).show(Show::Poe)]),
    // NV_frac, E2H0
    reg(Sysreg::ID_AA64MMFR4_EL1, &[low(20, 3).show(Show::Zero), low(24, 0).signed().fixed()]),

    // IminLine, L1Ip (VIPT where there could be PIPT), DminLine, ERG, CWG, IDC, DIC
    IdReg {
        reg: Sysreg::CTR_EL0,
        res1: 1 << 31,
        fields: &[
            low(0, 15), low(14, 3).bits(2).rule(Rule::Exact(2)), low(16, 15),
            low(20, 15).rule(Rule::HigherOrZero).fixed(), low(24, 15).rule(Rule::HigherOrZero).fixed(),
            low(28, 1).bits(1), low(29, 1).bits(1),
        ],
    },
];

/// Shareability: 15, less than zero, is "ignored".
const fn share(shift: u8) -> Field {
    low(shift, 1).signed().at_least(15)
}

/// One bit, of which clear is safe.
const fn flag(shift: u8) -> Field {
    low(shift, 1).bits(1).rule(Rule::Exact(0))
}

const fn pauth(shift: u8, max: u8) -> Field {
    low(shift, max).show(Show::Pauth).fixed()
}

/// A granule of stage 2: 1 is "none", 0 "as for stage 1".
const fn granule2(shift: u8) -> Field {
    low(shift, 3).rule(Rule::Exact(1))
}
