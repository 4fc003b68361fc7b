// SPDX-License-Identifier: GPL-2.0

//! The table of MSRs.
//!
//! A row says which MSR, who keeps it, which guests have it, which values it takes, and in which of
//! KVM's lists it stands. Sources: SDM vol. 4, APM vol. 2 appendix A, Linux
//! `Documentation/virt/kvm/x86/msr.rst` for 0x4b564d00 and up.

use super::super::cpuid::{Feature, Vendor};
use super::super::pv;

/// A register that the backend keeps in its control block, or swaps with the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// SYSENTER_CS
    SysenterCs,
    /// SYSENTER_ESP
    SysenterEsp,
    /// SYSENTER_EIP
    SysenterEip,
    /// STAR
    Star,
    /// LSTAR
    Lstar,
    /// CSTAR
    Cstar,
    /// SFMASK
    Sfmask,
    /// FS.base
    FsBase,
    /// GS.base
    GsBase,
    /// KERNEL_GS_BASE
    KernelGsBase,
    /// TSC_AUX
    TscAux,
    /// PAT
    Pat,
    /// SPEC_CTRL
    SpecCtrl,
    /// UMWAIT_CONTROL
    UmwaitControl,
    /// U_CET
    UCet,
    /// S_CET
    SCet,
    /// PL0_SSP
    Pl0Ssp,
    /// PL1_SSP
    Pl1Ssp,
    /// PL2_SSP
    Pl2Ssp,
    /// PL3_SSP
    Pl3Ssp,
    /// INTERRUPT_SSP_TABLE_ADDR
    SspTable,
}

/// An MSR that the shell serves together with other models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// APIC_BASE: LAPIC model. Guest values are checked there (see `sregs::apic_base_write`).
    ApicBase,
    /// An x2APIC register, by its number (MSR minus 0x800): LAPIC model.
    X2Apic(u8),
    /// TSC_DEADLINE: LAPIC model.
    TscDeadline,
    /// TSC
    Tsc,
    /// TSC_ADJUST
    TscAdjust,
    /// EFER: `sregs::Control::write_efer`.
    Efer,
    /// IA32_XSS, already checked. CPUID shows it.
    Xss,
    /// PRED_CMD: issue the barriers that the value names (0 is none), already checked.
    PredCmd,
    /// FLUSH_CMD: flush L1D if bit 0.
    FlushCmd,
    /// Write the VM's wall clock to the address.
    WallClock,
    /// The vCPU's kvmclock; `old` for MSR 0x12, whose guests know no stable flag.
    SystemTime {
        /// By the old MSR number.
        old: bool,
    },
    /// Asynchronous page faults: address and enable.
    AsyncPf,
    /// Asynchronous page faults: vector.
    AsyncPfInt,
    /// Asynchronous page faults: the guest has taken the last page-ready event.
    AsyncPfAck,
    /// Steal time: address and enable.
    StealTime,
    /// Paravirtual EOI: address and enable. LAPIC model.
    PvEoi,
}

macro_rules! slots {
    ($( $(#[$doc:meta])* $id:ident, )*) => {
        /// An MSR kept in [`MsrState`](super::MsrState).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Slot { $( $(#[$doc])* $id, )* }

        /// How many slots there are.
        pub const SLOTS: usize = [ $( Slot::$id, )* ].len();
    };
}

slots! {
    /// MISC_ENABLE
    MiscEnable,
    /// PLATFORM_INFO
    PlatformInfo,
    /// MISC_FEATURES_ENABLES
    MiscFeatures,
    /// BIOS_SIGN_ID / PATCH_LEVEL
    UcodeRev,
    /// ARCH_CAPABILITIES
    ArchCapabilities,
    /// FEATURE_CONTROL
    FeatureControl,
    /// POWER_CTL
    PowerCtl,
    /// SMI_COUNT
    SmiCount,
    /// HWCR
    Hwcr,
    /// DE_CFG
    DeCfg,
    /// OSVW_ID_LENGTH
    OsvwLength,
    /// OSVW_STATUS
    OsvwStatus,
    /// KVM's halt-poll control
    PollControl,
}

/// Who keeps an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The backend.
    Backend(Field),
    /// The shell, with another model.
    Shell(Service),
    /// `MsrState`, in a slot.
    Stored(Slot),
    /// Nobody: reads give this value.
    Const(u64),
    /// Nobody: reads show an erratum's workaround as in place, by the guest's family and model.
    IcCfg,
    /// `MsrState`, in its MTRRs.
    Mtrr,
    /// `MsrState`, in its machine-check banks.
    Mce,
}

/// Which guests have an MSR. User space reaches it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// All.
    Always,
    /// Those with one of these features.
    Any(&'static [Feature]),
    /// Those with the paravirtual feature bit.
    Pv(u32),
    /// Those of a vendor.
    Vendor(Vendor),
    /// Those that user space lets read it (KVM_CAP_MSR_PLATFORM_INFO).
    PlatformInfo,
}

/// Which values an MSR takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All.
    Any,
    /// Those within the mask.
    Mask(u64),
    /// Canonical addresses (by the processor's width, not by CR4.LA57).
    Canonical,
    /// Canonical and 4-byte aligned addresses.
    CanonicalAligned4,
    /// On AMD the lower half is taken; on Intel it must be canonical.
    Low32OrCanonical,
    /// On AMD the lower half is taken; on Intel the upper half must be zero.
    Low32,
    /// Eight memory types.
    Pat,
    /// None by the guest; user space may set it.
    HostOnly,
    /// None by the guest and none by user space: it is no MSR to write.
    ReadOnly,
    /// All, and they have no effect.
    Ignored,
    /// All by user space; those of the guest have no effect.
    IgnoredFromGuest,
    /// Zero only.
    Zero,
    /// SPEC_CTRL bits that features give.
    SpecCtrl,
    /// PRED_CMD bits that features give.
    PredCmd,
    /// MISC_ENABLE: read-only PMU bits.
    MiscEnable,
    /// MISC_FEATURES_ENABLES: CPUID faulting if PLATFORM_INFO has it.
    MiscFeatures,
    /// HWCR: a few bits, a few ignored ones.
    Hwcr,
    /// DE_CFG: within what the host gives.
    DeCfg,
    /// FEATURE_CONTROL: nothing once locked.
    FeatureControl,
    /// IA32_XSS: components that the guest has.
    Xss,
    /// U_CET and S_CET.
    Cet,
    /// The model checks it that serves the MSR.
    Elsewhere,
}

/// Stands in KVM_GET_MSR_INDEX_LIST: saved and restored at migration.
pub const SAVED: u8 = 1;
/// Stands in KVM_GET_MSR_FEATURE_INDEX_LIST.
pub const FEATURE: u8 = 2;
/// Only a write has a meaning; the guest cannot read it, user space reads zero.
pub const WRITE_ONLY: u8 = 4;

/// A row: `count` MSRs from `first` on.
#[derive(Clone, Copy, Debug)]
pub struct Msr {
    /// The first (or only) MSR's number.
    pub first: u32,
    /// How many follow each other under the same rule.
    pub count: u32,
    /// Name, as in Linux's `msr-index.h` without the prefix.
    pub name: &'static str,
    /// Who keeps it.
    pub class: Class,
    /// Which guests have it.
    pub gate: Gate,
    /// Which values it takes.
    pub rule: Rule,
    /// [`SAVED`] and [`FEATURE`].
    pub lists: u8,
}

const fn row(
    first: u32,
    count: u32,
    name: &'static str,
    class: Class,
    gate: Gate,
    rule: Rule,
    lists: u8,
) -> Msr {
    Msr {
        first,
        count,
        name,
        class,
        gate,
        rule,
        lists,
    }
}

use Class::{Backend, Const, Mce, Mtrr, Shell, Stored};
use Gate::{Always, Any as IfAny, PlatformInfo, Pv, Vendor as Of};
use Rule::{
    Any, Canonical, CanonicalAligned4, Elsewhere, HostOnly, Ignored, IgnoredFromGuest, Low32,
    Low32OrCanonical, Mask, ReadOnly, Zero,
};

const LM: Gate = IfAny(&[Feature::Lm]);
const CET: Gate = IfAny(&[Feature::Shstk, Feature::Ibt]);
const SHSTK: Gate = IfAny(&[Feature::Shstk]);
const OSVW: Gate = IfAny(&[Feature::Osvw]);
const SPEC_CTRL: Gate = IfAny(&[
    Feature::SpecCtrl,
    Feature::AmdIbrs,
    Feature::AmdStibp,
    Feature::AmdSsbd,
]);
const PRED_CMD: Gate = IfAny(&[Feature::SpecCtrl, Feature::AmdIbpb, Feature::Sbpb]);
const TSC_AUX: Gate = IfAny(&[Feature::Rdtscp, Feature::Rdpid]);

/// Every MSR known, by number. Ranges do not overlap.
#[rustfmt::skip]
pub static TABLE: &[Msr] = &[
    row(0x0, 1, "IA32_P5_MC_ADDR", Const(0), Always, ReadOnly, 0),
    row(0x1, 1, "IA32_P5_MC_TYPE", Const(0), Always, ReadOnly, 0),
    row(0x10, 1, "IA32_TSC", Shell(Service::Tsc), Always, Any, SAVED),
    row(0x11, 1, "KVM_WALL_CLOCK", Shell(Service::WallClock), Pv(pv::CLOCKSOURCE), Any, SAVED),
    row(0x12, 1, "KVM_SYSTEM_TIME", Shell(Service::SystemTime { old: true }), Pv(pv::CLOCKSOURCE), Any, SAVED),
    row(0x17, 1, "IA32_PLATFORM_ID", Const(0), Always, ReadOnly, 0),
    row(0x1b, 1, "IA32_APICBASE", Shell(Service::ApicBase), Always, Elsewhere, 0),
    row(0x2a, 1, "IA32_EBL_CR_POWERON", Const(0), Always, ReadOnly, 0),
    // Bus ratio 1, 100 MHz: guests divide by it.
    row(0x2c, 1, "EBC_FREQUENCY_ID", Const(1 << 24), Always, ReadOnly, 0),
    row(0x34, 1, "SMI_COUNT", Stored(Slot::SmiCount), Always, HostOnly, SAVED),
    row(0x3a, 1, "IA32_FEAT_CTL", Stored(Slot::FeatureControl), Of(Vendor::Intel), Rule::FeatureControl, SAVED),
    row(0x3b, 1, "IA32_TSC_ADJUST", Shell(Service::TscAdjust), IfAny(&[Feature::TscAdjust]), Any, SAVED),
    row(0x48, 1, "IA32_SPEC_CTRL", Backend(Field::SpecCtrl), SPEC_CTRL, Rule::SpecCtrl, SAVED),
    row(0x49, 1, "IA32_PRED_CMD", Shell(Service::PredCmd), PRED_CMD, Rule::PredCmd, WRITE_ONLY),
    row(0x79, 1, "IA32_UCODE_WRITE", Const(0), Always, Ignored, WRITE_ONLY),
    // On AMD the patch level, on Intel the microcode's signature.
    row(0x8b, 1, "IA32_UCODE_REV", Stored(Slot::UcodeRev), Always, IgnoredFromGuest, SAVED | FEATURE),
    row(0xc1, 2, "P6_PERFCTR", Const(0), Always, Ignored, 0),
    row(0xcd, 1, "FSB_FREQ", Const(3), Always, ReadOnly, 0),
    row(0xce, 1, "PLATFORM_INFO", Stored(Slot::PlatformInfo), PlatformInfo, HostOnly, SAVED | FEATURE),
    row(0xe1, 1, "IA32_UMWAIT_CONTROL", Backend(Field::UmwaitControl), IfAny(&[Feature::Waitpkg]), Mask(0xffff_fffd), SAVED),
    row(0xfe, 1, "MTRRcap", Mtrr, Always, ReadOnly, 0),
    row(0x10a, 1, "IA32_ARCH_CAPABILITIES", Stored(Slot::ArchCapabilities), IfAny(&[Feature::ArchCapabilities]), HostOnly, SAVED | FEATURE),
    row(0x10b, 1, "IA32_FLUSH_CMD", Shell(Service::FlushCmd), IfAny(&[Feature::FlushL1d]), Mask(1), WRITE_ONLY),
    row(0x11e, 1, "IA32_BBL_CR_CTL3", Const(0xbe70_2111), Always, Ignored, 0),
    row(0x140, 1, "MISC_FEATURES_ENABLES", Stored(Slot::MiscFeatures), Always, Rule::MiscFeatures, SAVED),
    row(0x174, 1, "IA32_SYSENTER_CS", Backend(Field::SysenterCs), Always, Any, SAVED),
    row(0x175, 1, "IA32_SYSENTER_ESP", Backend(Field::SysenterEsp), Always, Low32OrCanonical, SAVED),
    row(0x176, 1, "IA32_SYSENTER_EIP", Backend(Field::SysenterEip), Always, Low32OrCanonical, SAVED),
    row(0x179, 1, "IA32_MCG_CAP", Mce, Always, ReadOnly, 0),
    row(0x17a, 1, "IA32_MCG_STATUS", Mce, Always, Elsewhere, SAVED),
    row(0x17b, 1, "IA32_MCG_CTL", Mce, Always, Elsewhere, SAVED),
    row(0x186, 2, "P6_EVNTSEL", Const(0), Always, Ignored, 0),
    // Multiplier 4, so that guests do not divide by zero.
    row(0x198, 1, "IA32_PERF_STATUS", Const(1000 | 4 << 40), Always, ReadOnly, 0),
    row(0x199, 1, "IA32_PERF_CTL", Const(0), Always, ReadOnly, 0),
    row(0x1a0, 1, "IA32_MISC_ENABLE", Stored(Slot::MiscEnable), Always, Rule::MiscEnable, SAVED),
    // No branch records: DEBUGCTL reads zero.
    row(0x1d9, 1, "IA32_DEBUGCTLMSR", Const(0), Always, Ignored, SAVED),
    row(0x1db, 1, "IA32_LASTBRANCHFROMIP", Const(0), Always, ReadOnly, 0),
    row(0x1dc, 1, "IA32_LASTBRANCHTOIP", Const(0), Always, ReadOnly, 0),
    row(0x1dd, 1, "IA32_LASTINTFROMIP", Const(0), Always, ReadOnly, 0),
    row(0x1de, 1, "IA32_LASTINTTOIP", Const(0), Always, ReadOnly, 0),
    row(0x1fc, 1, "IA32_POWER_CTL", Stored(Slot::PowerCtl), Always, Any, SAVED),
    row(0x200, 16, "MTRRphys", Mtrr, Always, Elsewhere, 0),
    row(0x250, 1, "MTRRfix64K", Mtrr, Always, Elsewhere, 0),
    row(0x258, 2, "MTRRfix16K", Mtrr, Always, Elsewhere, 0),
    row(0x268, 8, "MTRRfix4K", Mtrr, Always, Elsewhere, 0),
    row(0x277, 1, "IA32_CR_PAT", Backend(Field::Pat), Always, Rule::Pat, SAVED),
    row(0x280, 32, "IA32_MCx_CTL2", Mce, Always, Elsewhere, 0),
    row(0x2ff, 1, "MTRRdefType", Mtrr, Always, Elsewhere, 0),
    row(0x400, 128, "IA32_MCx", Mce, Always, Elsewhere, 0),
    // Power meters: nothing of the host's is shown.
    row(0x606, 1, "RAPL_POWER_UNIT", Const(0), Always, ReadOnly, 0),
    row(0x611, 1, "PKG_ENERGY_STATUS", Const(0), Always, ReadOnly, 0),
    row(0x619, 1, "DRAM_ENERGY_STATUS", Const(0), Always, ReadOnly, 0),
    row(0x639, 1, "PP0_ENERGY_STATUS", Const(0), Always, ReadOnly, 0),
    row(0x641, 1, "PP1_ENERGY_STATUS", Const(0), Always, ReadOnly, 0),
    row(0x6a0, 1, "IA32_U_CET", Backend(Field::UCet), CET, Rule::Cet, SAVED),
    row(0x6a2, 1, "IA32_S_CET", Backend(Field::SCet), CET, Rule::Cet, SAVED),
    row(0x6a4, 1, "IA32_PL0_SSP", Backend(Field::Pl0Ssp), SHSTK, CanonicalAligned4, SAVED),
    row(0x6a5, 1, "IA32_PL1_SSP", Backend(Field::Pl1Ssp), SHSTK, CanonicalAligned4, SAVED),
    row(0x6a6, 1, "IA32_PL2_SSP", Backend(Field::Pl2Ssp), SHSTK, CanonicalAligned4, SAVED),
    row(0x6a7, 1, "IA32_PL3_SSP", Backend(Field::Pl3Ssp), SHSTK, CanonicalAligned4, SAVED),
    row(0x6a8, 1, "IA32_INT_SSP_TAB", Backend(Field::SspTable), SHSTK, Canonical, SAVED),
    row(0x6e0, 1, "IA32_TSC_DEADLINE", Shell(Service::TscDeadline), IfAny(&[Feature::TscDeadline]), Any, SAVED),
    row(0x800, 256, "X2APIC", Shell(Service::X2Apic(0)), Always, Elsewhere, 0),
    row(0xda0, 1, "IA32_XSS", Shell(Service::Xss), IfAny(&[Feature::Xsaves]), Rule::Xss, SAVED),
    row(0x4b56_4d00, 1, "KVM_WALL_CLOCK_NEW", Shell(Service::WallClock), Pv(pv::CLOCKSOURCE2), Any, SAVED),
    row(0x4b56_4d01, 1, "KVM_SYSTEM_TIME_NEW", Shell(Service::SystemTime { old: false }), Pv(pv::CLOCKSOURCE2), Any, SAVED),
    row(0x4b56_4d02, 1, "KVM_ASYNC_PF_EN", Shell(Service::AsyncPf), Pv(pv::ASYNC_PF), Elsewhere, SAVED),
    // Address with 64-byte alignment, and the enable bit.
    row(0x4b56_4d03, 1, "KVM_STEAL_TIME", Shell(Service::StealTime), Pv(pv::STEAL_TIME), Mask(!0x3e), SAVED),
    row(0x4b56_4d04, 1, "KVM_PV_EOI_EN", Shell(Service::PvEoi), Pv(pv::PV_EOI), Elsewhere, SAVED),
    row(0x4b56_4d05, 1, "KVM_POLL_CONTROL", Stored(Slot::PollControl), Pv(pv::POLL_CONTROL), Mask(1), SAVED),
    row(0x4b56_4d06, 1, "KVM_ASYNC_PF_INT", Shell(Service::AsyncPfInt), Pv(pv::ASYNC_PF_INT), Elsewhere, SAVED),
    row(0x4b56_4d07, 1, "KVM_ASYNC_PF_ACK", Shell(Service::AsyncPfAck), Pv(pv::ASYNC_PF_INT), Any, SAVED),
    row(0xc000_0080, 1, "EFER", Shell(Service::Efer), Always, Elsewhere, 0),
    row(0xc000_0081, 1, "STAR", Backend(Field::Star), Always, Any, SAVED),
    row(0xc000_0082, 1, "LSTAR", Backend(Field::Lstar), LM, Canonical, SAVED),
    row(0xc000_0083, 1, "CSTAR", Backend(Field::Cstar), LM, Canonical, SAVED),
    row(0xc000_0084, 1, "SYSCALL_MASK", Backend(Field::Sfmask), LM, Mask(0xffff_ffff), SAVED),
    // User space has these bases in its segment registers.
    row(0xc000_0100, 1, "FS_BASE", Backend(Field::FsBase), LM, Canonical, 0),
    row(0xc000_0101, 1, "GS_BASE", Backend(Field::GsBase), LM, Canonical, 0),
    row(0xc000_0102, 1, "KERNEL_GS_BASE", Backend(Field::KernelGsBase), LM, Canonical, SAVED),
    row(0xc000_0103, 1, "TSC_AUX", Backend(Field::TscAux), TSC_AUX, Low32, SAVED),
    // Counters that old kernels probe without asking CPUID.
    row(0xc001_0000, 4, "K7_EVNTSEL", Const(0), Always, Ignored, 0),
    row(0xc001_0004, 4, "K7_PERFCTR", Const(0), Always, Ignored, 0),
    row(0xc001_0010, 1, "AMD64_SYSCFG", Const(0), Always, ReadOnly, 0),
    row(0xc001_0015, 1, "K7_HWCR", Stored(Slot::Hwcr), Always, Rule::Hwcr, SAVED),
    row(0xc001_001b, 1, "K7_CLK_CTL", Const(0x2000_0000), Always, Ignored, 0),
    row(0xc001_001f, 1, "AMD64_NB_CFG", Const(0), Always, Ignored, 0),
    row(0xc001_0020, 1, "AMD64_PATCH_LOADER", Const(0), Always, Ignored, WRITE_ONLY),
    row(0xc001_0055, 1, "K8_INT_PENDING_MSG", Const(0), Always, ReadOnly, 0),
    row(0xc001_0058, 1, "FAM10H_MMIO_CONF_BASE", Const(0), Always, Zero, 0),
    row(0xc001_0112, 1, "K8_TSEG_ADDR", Const(0), Always, ReadOnly, 0),
    row(0xc001_0113, 1, "K8_TSEG_MASK", Const(0), Always, ReadOnly, 0),
    row(0xc001_0140, 1, "AMD64_OSVW_ID_LENGTH", Stored(Slot::OsvwLength), OSVW, Any, 0),
    row(0xc001_0141, 1, "AMD64_OSVW_STATUS", Stored(Slot::OsvwStatus), OSVW, Any, 0),
    row(0xc001_1021, 1, "F15H_IC_CFG", Class::IcCfg, Always, ReadOnly, 0),
    // Errata switches of older families: writes without effect.
    row(0xc001_1022, 1, "AMD64_DC_CFG", Const(0), Always, Ignored, 0),
    row(0xc001_1023, 1, "AMD64_TW_CFG", Const(0), Always, Ignored, 0),
    row(0xc001_1029, 1, "AMD64_DE_CFG", Stored(Slot::DeCfg), Of(Vendor::Amd), Rule::DeCfg, FEATURE),
    row(0xc001_102a, 1, "AMD64_BU_CFG2", Const(0), Always, Ignored, 0),
    row(0xc001_102c, 1, "F15H_EX_CFG", Const(0), Always, Ignored, 0),
];

/// The row of an MSR.
#[inline]
pub fn find(index: u32) -> Option<&'static Msr> {
    let after = TABLE.partition_point(|m| m.first <= index);
    let m = TABLE.get(after.checked_sub(1)?)?;
    (index.wrapping_sub(m.first) < m.count).then_some(m)
}
