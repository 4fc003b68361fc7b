// SPDX-License-Identifier: GPL-2.0

//! The table.

use super::super::sysreg::Sysreg as R;
use super::Class::{
    Aarch32, Actlr, Ccsidr, Clidr, Csselr, Debug, DebugAuth, Direct, Id, Implementation, OsLock,
    OsLockStatus, RazWi, SetWay, Undefined, Vm,
};
use super::Gate::{Always, Fpmr, Lor, Mte, Pauth, Ras, Ras1p1, S1pie, S1poe, Sctlr2, Sve, Tcr2};
use super::Keep::{Model, No, Slot};
use super::Timer::{Physical, Virtual};
use super::TimerReg::{Compare, Control, Count, Countdown};
use super::Way::{Ro, Rw, Wo};
use super::{Class, Gate, Keep, Row, Timer, TimerReg, Way};

const fn row(first: R, count: u16, class: Class, way: Way, gate: Gate, keep: Keep) -> Row {
    Row {
        first,
        count,
        class,
        way,
        gate,
        keep,
    }
}

const fn gic(first: R, count: u16, way: Way) -> Row {
    row(first, count, Class::Gic, way, Gate::Gic, No)
}

const fn pmu(first: R, count: u16, way: Way, keep: Keep) -> Row {
    row(first, count, Class::Pmu, way, Gate::Pmu, keep)
}

const fn timer(first: R, t: Timer, reg: TimerReg, way: Way, keep: Keep) -> Row {
    row(first, 1, Class::Timer(t, reg), way, Always, keep)
}

/// Nobody's, whatever the processor has: a feature that guests are not given.
const fn hidden(first: R, count: u16) -> Row {
    row(first, count, Undefined, Rw, Always, No)
}

/// DBGBVR, DBGBCR, DBGWVR, DBGWCR of number `n`.
const fn breakpoint(n: u16) -> Row {
    row(R::DBGBVR0_EL1.plus(8 * n), 4, Debug, Rw, Always, Slot)
}

/// Every register known, by encoding. Rows do not overlap.
#[rustfmt::skip]
pub static TABLE: &[Row] = &[
    row(R::DC_ISW, 1, SetWay, Wo, Always, No),
    row(R::DC_IGSW, 1, SetWay, Wo, Mte, No),
    row(R::DC_IGDSW, 1, SetWay, Wo, Mte, No),
    row(R::DC_CSW, 1, SetWay, Wo, Always, No),
    row(R::DC_CGSW, 1, SetWay, Wo, Mte, No),
    row(R::DC_CGDSW, 1, SetWay, Wo, Mte, No),
    row(R::DC_CISW, 1, SetWay, Wo, Always, No),
    row(R::DC_CIGSW, 1, SetWay, Wo, Mte, No),
    row(R::DC_CIGDSW, 1, SetWay, Wo, Mte, No),

    // Debug. The channel to an external debugger is never connected.
    row(R::OSDTRRX_EL1, 1, RazWi, Rw, Always, No),
    breakpoint(0),
    breakpoint(1),
    row(R::MDCCINT_EL1, 1, Debug, Rw, Always, Slot),
    row(R::MDSCR_EL1, 1, Debug, Rw, Always, Slot),
    breakpoint(2),
    row(R::OSDTRTX_EL1, 1, RazWi, Rw, Always, No),
    breakpoint(3),
    breakpoint(4),
    breakpoint(5),
    row(R::OSECCR_EL1, 1, RazWi, Rw, Always, No),
    breakpoint(6),
    breakpoint(7),
    breakpoint(8),
    breakpoint(9),
    breakpoint(10),
    breakpoint(11),
    breakpoint(12),
    breakpoint(13),
    breakpoint(14),
    breakpoint(15),
    row(R::MDRAR_EL1, 1, RazWi, Ro, Always, No),
    row(R::OSLAR_EL1, 1, OsLock, Wo, Always, No),
    row(R::OSLSR_EL1, 1, OsLockStatus, Ro, Always, Slot),
    row(R::OSDLR_EL1, 1, RazWi, Rw, Always, No),
    row(R::DBGPRCR_EL1, 1, RazWi, Rw, Always, No),
    row(R::DBGCLAIMSET_EL1, 1, RazWi, Rw, Always, No),
    row(R::DBGCLAIMCLR_EL1, 1, RazWi, Rw, Always, No),
    row(R::DBGAUTHSTATUS_EL1, 1, DebugAuth, Ro, Always, No),
    row(R::MDCCSR_EL0, 1, RazWi, Ro, Always, No),
    row(R::DBGDTR_EL0, 1, RazWi, Rw, Always, No),
    // DBGDTRRX is the same, read.
    row(R::DBGDTRTX_EL0, 1, RazWi, Rw, Always, No),
    row(R::DBGVCR32_EL2, 1, Aarch32, Rw, Always, Slot),

    // Identification. What is not allocated of the feature registers reads as zero, and is listed.
    row(R::MIDR_EL1, 1, Implementation, Ro, Always, Model),
    row(R::MPIDR_EL1, 1, Direct, Ro, Always, Slot),
    row(R::REVIDR_EL1, 1, Implementation, Ro, Always, Model),
    row(R::ID_PFR0_EL1, 7 * 8, Id, Ro, Always, Model),

    row(R::SCTLR_EL1, 1, Vm, Rw, Always, Slot),
    row(R::ACTLR_EL1, 1, Actlr, Rw, Always, Slot),
    row(R::CPACR_EL1, 1, Direct, Rw, Always, Slot),
    row(R::SCTLR2_EL1, 1, Vm, Rw, Sctlr2, Slot),
    row(R::RGSR_EL1, 2, Direct, Rw, Mte, Slot),
    row(R::ZCR_EL1, 1, Direct, Rw, Sve, Slot),
    hidden(R::TRFCR_EL1, 1),
    hidden(R::SMPRI_EL1, 1),
    hidden(R::SMCR_EL1, 1),
    row(R::TTBR0_EL1, 2, Vm, Rw, Always, Slot),
    row(R::TCR_EL1, 1, Vm, Rw, Always, Slot),
    row(R::TCR2_EL1, 1, Vm, Rw, Tcr2, Slot),
    row(R::APIAKEYLO_EL1, 4, Direct, Rw, Pauth, Slot),
    row(R::APDAKEYLO_EL1, 4, Direct, Rw, Pauth, Slot),
    row(R::APGAKEYLO_EL1, 2, Direct, Rw, Pauth, Slot),
    gic(R::ICC_PMR_EL1, 1, Rw),
    row(R::AFSR0_EL1, 2, Vm, Rw, Always, Slot),
    row(R::ESR_EL1, 1, Vm, Rw, Always, Slot),

    // Error records: there are none.
    row(R::ERRIDR_EL1, 1, RazWi, Ro, Ras, No),
    row(R::ERRSELR_EL1, 1, RazWi, Rw, Ras, No),
    row(R::ERXFR_EL1, 1, RazWi, Ro, Ras, No),
    row(R::ERXCTLR_EL1, 3, RazWi, Rw, Ras, No),
    row(R::ERXPFGF_EL1, 1, RazWi, Ro, Ras1p1, No),
    row(R::ERXPFGCTL_EL1, 2, RazWi, Rw, Ras1p1, No),
    row(R::ERXMISC0_EL1, 2, RazWi, Rw, Ras, No),
    row(R::ERXMISC2_EL1, 2, RazWi, Rw, Ras1p1, No),

    row(R::TFSR_EL1, 2, Direct, Rw, Mte, Slot),
    row(R::FAR_EL1, 1, Vm, Rw, Always, Slot),
    row(R::PAR_EL1, 1, Direct, Rw, Always, Slot),

    // Statistical profiling, trace buffer.
    hidden(R::PMSCR_EL1, 8),
    hidden(R::PMBLIMITR_EL1, 2),
    hidden(R::PMBSR_EL1, 2),
    hidden(R::PMBIDR_EL1, 1),
    hidden(R::TRBLIMITR_EL1, 8),

    pmu(R::PMINTENSET_EL1, 2, Rw, Model),
    pmu(R::PMMIR_EL1, 1, Ro, Model),
    row(R::MAIR_EL1, 1, Vm, Rw, Always, Slot),
    row(R::PIRE0_EL1, 2, Direct, Rw, S1pie, Slot),
    row(R::POR_EL1, 1, Direct, Rw, S1poe, Slot),
    row(R::AMAIR_EL1, 1, Vm, Rw, Always, Slot),
    // Limited ordering: no regions.
    row(R::LORSA_EL1, 4, RazWi, Rw, Lor, No),
    hidden(R::MPAMIDR_EL1, 1),
    row(R::LORID_EL1, 1, RazWi, Ro, Lor, No),
    hidden(R::MPAM1_EL1, 2),
    hidden(R::MPAMSM_EL1, 1),
    row(R::VBAR_EL1, 1, Direct, Rw, Always, Slot),
    row(R::DISR_EL1, 1, Direct, Rw, Always, Slot),

    gic(R::ICC_IAR0_EL1, 1, Ro),
    gic(R::ICC_EOIR0_EL1, 1, Wo),
    gic(R::ICC_HPPIR0_EL1, 1, Ro),
    gic(R::ICC_BPR0_EL1, 1, Rw),
    gic(R::ICC_AP0R0_EL1, 4, Rw),
    gic(R::ICC_AP1R0_EL1, 4, Rw),
    gic(R::ICC_DIR_EL1, 1, Wo),
    gic(R::ICC_RPR_EL1, 1, Ro),
    gic(R::ICC_SGI1R_EL1, 3, Wo),
    gic(R::ICC_IAR1_EL1, 1, Ro),
    gic(R::ICC_EOIR1_EL1, 1, Wo),
    gic(R::ICC_HPPIR1_EL1, 1, Ro),
    gic(R::ICC_BPR1_EL1, 5, Rw),

    row(R::CONTEXTIDR_EL1, 1, Vm, Rw, Always, Slot),
    row(R::TPIDR_EL1, 1, Direct, Rw, Always, Slot),
    hidden(R::ACCDATA_EL1, 1),
    hidden(R::SCXTNUM_EL1, 1),
    row(R::CNTKCTL_EL1, 1, Direct, Rw, Always, Slot),

    row(R::CCSIDR_EL1, 1, Ccsidr, Ro, Always, No),
    row(R::CLIDR_EL1, 1, Clidr, Ro, Always, Slot),
    row(R::AIDR_EL1, 1, Implementation, Ro, Always, Model),
    row(R::CSSELR_EL1, 1, Csselr, Rw, Always, Slot),
    row(R::CTR_EL0, 1, Id, Ro, Always, Model),
    hidden(R::SVCR, 1),
    row(R::FPMR, 1, Direct, Rw, Fpmr, Slot),

    // PMCR, PMCNTENSET, PMCNTENCLR, PMOVSCLR
    pmu(R::PMCR_EL0, 4, Rw, Model),
    pmu(R::PMSWINC_EL0, 1, Wo, Model),
    pmu(R::PMSELR_EL0, 1, Rw, Model),
    pmu(R::PMCEID0_EL0, 2, Ro, No),
    pmu(R::PMCCNTR_EL0, 1, Rw, Model),
    // PMXEVTYPER, PMXEVCNTR
    pmu(R::PMXEVTYPER_EL0, 2, Rw, No),
    pmu(R::PMUSERENR_EL0, 1, Rw, Model),
    pmu(R::PMOVSSET_EL0, 1, Rw, Model),

    row(R::POR_EL0, 1, Direct, Rw, S1poe, Slot),
    row(R::TPIDR_EL0, 2, Direct, Rw, Always, Slot),
    hidden(R::TPIDR2_EL0, 1),
    hidden(R::SCXTNUM_EL0, 1),

    // Activity monitors.
    hidden(R::AMCR_EL0, 8),
    hidden(R::AMCNTENCLR1_EL0, 2),
    hidden(R::AMEVCNTR00_EL0, 16),
    hidden(R::AMEVTYPER00_EL0, 16),
    hidden(R::AMEVCNTR10_EL0, 16),
    hidden(R::AMEVTYPER10_EL0, 16),

    timer(R::CNTPCT_EL0, Physical, Count, Ro, Model),
    timer(R::CNTVCT_EL0, Virtual, Count, Ro, Model),
    timer(R::CNTPCTSS_EL0, Physical, Count, Ro, No),
    timer(R::CNTVCTSS_EL0, Virtual, Count, Ro, No),
    timer(R::CNTP_TVAL_EL0, Physical, Countdown, Rw, No),
    timer(R::CNTP_CTL_EL0, Physical, Control, Rw, Model),
    timer(R::CNTP_CVAL_EL0, Physical, Compare, Rw, Model),
    timer(R::CNTV_TVAL_EL0, Virtual, Countdown, Rw, No),
    timer(R::CNTV_CTL_EL0, Virtual, Control, Rw, Model),
    timer(R::CNTV_CVAL_EL0, Virtual, Compare, Rw, Model),

    pmu(R::PMEVCNTR0_EL0, 31, Rw, Model),
    pmu(R::PMEVTYPER0_EL0, 31, Rw, Model),
    pmu(R::PMCCFILTR_EL0, 1, Rw, Model),

    // What AArch32 at EL1 needs. User space saves it in any case.
    row(R::DACR32_EL2, 1, Aarch32, Rw, Always, Slot),
    row(R::IFSR32_EL2, 1, Aarch32, Rw, Always, Slot),
    row(R::FPEXC32_EL2, 1, Aarch32, Rw, Always, Slot),
];
