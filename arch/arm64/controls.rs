// SPDX-License-Identifier: GPL-2.0

//! EL2's controls for a vCPU (Arm ARM D24.2): what traps, and what the guest may use.

use super::{
    errata,
    host::Host,
    ids::{has, Values},
    insn::GuestControls,
    model::{self, idreg, sysreg::Sysreg},
};
use crate::{bindings as rb, memory::stage2};

/// HCR_EL2
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const VSE: u64 = 1 << 8;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_INNER: u64 = 1 << 10;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TID1: u64 = 1 << 16;
    pub(super) const TID2: u64 = 1 << 17;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const TVM: u64 = 1 << 26;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const E2H: u64 = 1 << 34;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const TEA: u64 = 1 << 37;
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;
    pub(super) const FWB: u64 = 1 << 46;
    pub(super) const TID4: u64 = 1 << 49;
    pub(super) const TTLBOS: u64 = 1 << 55;
    pub(super) const TID5: u64 = 1 << 58;

    /// What every guest has.
    pub(super) const ALWAYS: u64 = VM
        | SWIO
        | FMO
        | IMO
        | AMO
        | FB
        | BSU_INNER
        | TWI
        | TID1
        | TID3
        | TSC
        | TIDCP
        | TACR
        | TSW
        | RW
        | E2H
        | TLOR;
}

/// HCRX_EL2
mod hcrx {
    pub(super) const MSCEN: u64 = 1 << 11;
    pub(super) const TCR2EN: u64 = 1 << 14;
    pub(super) const SCTLR2EN: u64 = 1 << 15;
    pub(super) const ENFPM: u64 = 1 << 23;
}

/// HFGRTR_EL2 and HFGWTR_EL2: PIRE0_EL1 and PIR_EL1 do not trap. What guests must not have (TPIDR2_EL0,
/// SMPRI_EL1, POR_EL0 and others that came later) traps while its bit is clear.
const FINE_PIE: u64 = 3 << 57;

/// CPTR_EL2 with E2H: FP and SIMD are the guest's; SME, trace and activity monitors trap.
const CPTR: u64 = 3 << 20 | 1 << 28 | 1 << 30;
/// ZEN: so is SVE.
const CPTR_SVE: u64 = 3 << 16;
/// MDCR_EL2: the PMU, the debug registers of the OS lock and of the ROM table, trace and profiling trap;
/// HPMN (bits 4:0) stays the host's, and [`model::debug`] adds to it.
const MDCR: u64 = 1 << 5 | 1 << 6 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19;
/// TDCC (FEAT_FGT): so does the channel to an external debugger.
const MDCR_TDCC: u64 = 1 << 27;
/// CNTHCTL_EL2 with E2H: EL1PCTEN, so that the physical counter can be read; its timer traps.
const EL1PCTEN: u64 = 1 << 10;
/// VTCR_EL2: write-back, inner shareable walks, RES1.
const VTCR: u64 = 1 << 31 | 3 << 12 | 1 << 10 | 1 << 8;
/// HSTR_EL2: AArch32's c15, which is the implementation's.
const HSTR: u64 = 1 << 15;

/// Of a vCPU that is not initialized yet.
pub(crate) fn new(host: &Host, config: &stage2::Config) -> GuestControls {
    let vtcr = VTCR
        | model::stage2::vtcr_shape(config)
        | host.pa_range << 16
        | u64::from(host.wide_vmid) << 19
        | u64::from(host.access_flags) << 21;
    GuestControls {
        hcr: hcr::ALWAYS,
        vtcr,
        cptr: CPTR,
        mdcr: mdcr(host),
        cnthctl: EL1PCTEN,
        hstr: HSTR,
        hcrx: host.hcrx.then_some(0),
        fine: host.fgt.then_some(0),
        ..GuestControls::default()
    }
}

/// MDCR_EL2 without what depends on who debugs.
pub(crate) fn mdcr(host: &Host) -> u64 {
    MDCR | if host.fgt { MDCR_TDCC } else { 0 }
}

/// An SError is pending for the guest (HCR_EL2.VSE).
pub(crate) const SERROR: u64 = hcr::VSE;

/// What a vCPU's features and ID registers change.
pub(crate) fn apply(c: &mut GuestControls, host: &Host, features: u32, ids: &Values) {
    let pauth = has(features, rb::KVM_ARM_VCPU_PTRAUTH_ADDRESS);
    let ctr = idreg::guest_value(
        Sysreg::CTR_EL0,
        super::insn::ftr(Sysreg::CTR_EL0),
        &idreg::Config::default(),
    );
    let tlb = ids.get(Sysreg::ID_AA64ISAR0_EL1) >> 56 & 0xf;
    let own_ctr = ids.get(Sysreg::CTR_EL0) != ctr;
    let when = |on: bool, bits: u64| if on { bits } else { 0 };
    let always = if has(features, rb::KVM_ARM_VCPU_EL1_32BIT) {
        hcr::ALWAYS & !hcr::RW
    } else {
        hcr::ALWAYS
    };
    c.hcr = always
        | when(host.ras, hcr::TERR | hcr::TEA)
        | when(model::stage2::is_forced(), hcr::FWB)
        | when(pauth, hcr::API | hcr::APK)
        | when(errata::trap_translation(), hcr::TVM)
        // GMID_EL1, which no guest has
        | when(host.tid5, hcr::TID5)
        // TLBI to the outer shareable domain, if it is hidden
        | when(host.ttlbos && tlb == 0, hcr::TTLBOS)
        // Caches; CTR_EL0 only where it must be, as user space reads it often.
        | if host.tid4 && !own_ctr {
            hcr::TID4
        } else {
            hcr::TID2
        };
    c.cptr = CPTR | when(has(features, rb::KVM_ARM_VCPU_SVE), CPTR_SVE);
    let mops = ids.get(Sysreg::ID_AA64ISAR2_EL1) >> 16 & 0xf != 0;
    c.hcrx = host.hcrx.then_some(
        when(mops, hcrx::MSCEN)
            | when(ids.features.tcr2, hcrx::TCR2EN)
            | when(ids.features.sctlr2, hcrx::SCTLR2EN)
            | when(ids.features.fpmr, hcrx::ENFPM),
    );
    c.fine = host.fgt.then_some(when(ids.features.s1pie, FINE_PIE));
    c.vpidr = ids.midr;
}

/// CNTHCTL_EL2; a physical counter that was moved cannot be read directly.
pub(super) const fn cnthctl(moved: bool) -> u64 {
    if moved {
        0
    } else {
        EL1PCTEN
    }
}
