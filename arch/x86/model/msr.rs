// SPDX-License-Identifier: GPL-2.0

//! Model-specific registers: one table of all that guests and user space can reach
//! ([`TABLE`]), the ones kept here ([`MsrState`]), and the decision about every RDMSR and WRMSR.
//!
//! A decision is a value, or says which part of the shell serves the access. Nothing here knows how
//! a backend keeps its fields.

use super::cpuid::{Feature, FeatureSet, GuestFeatures, Vendor};
use super::mtrr::{self, Mtrr};
use super::walk;

pub mod filter;
pub mod mce;
pub mod permission;
mod table;

pub use mce::Mce;
pub use table::{
    find, Class, Field, Gate, Msr, Rule, Service, Slot, FEATURE, SAVED, SLOTS, TABLE, WRITE_ONLY,
};

/// Who accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The guest, by RDMSR or WRMSR.
    Guest,
    /// User space, by KVM_GET_MSRS or KVM_SET_MSRS.
    Host,
}

/// What the host offers in MSRs, read once when the module loads.
#[derive(Clone, Copy, Debug, Default)]
pub struct MsrHost {
    /// Features that guests can be offered.
    pub features: FeatureSet,
    /// Paravirtual features that guests can be offered.
    pub pv: u32,
    /// The host's vendor.
    pub vendor: Vendor,
    /// Bits of DE_CFG that guests may set: LFENCE serialising (bit 1) if the host has it so.
    pub de_cfg: u64,
    /// The host's microcode revision as its MSR 0x8b reads.
    pub ucode_rev: u64,
    /// ARCH_CAPABILITIES for guests; 0 if not offered.
    pub arch_capabilities: u64,
    /// CPUID faulting is provided: PLATFORM_INFO bit 31.
    pub cpuid_faulting: bool,
}

/// PLATFORM_INFO: CPUID faulting exists.
const PLATFORM_INFO_CPUID_FAULT: u64 = 1 << 31;
/// MISC_ENABLE: BTS and PEBS unavailable (read-only).
const MISC_ENABLE_PMU: u64 = 1 << 11 | 1 << 12;
/// MISC_ENABLE: performance monitoring available (writes ignored).
const MISC_ENABLE_EMON: u64 = 1 << 7;
/// MISC_ENABLE: MONITOR/MWAIT.
const MISC_ENABLE_MWAIT: u64 = 1 << 18;
/// HWCR: bits that do nothing here (TLB cache disable, flush filter disable, IGNNE emulation).
const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;
/// HWCR: McStatusWrEn.
const HWCR_MC_STATUS_WR_EN: u64 = 1 << 18;
/// HWCR: TscFreqSel.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR: CpuidUserDis.
const HWCR_CPUID_USER_DIS: u64 = 1 << 35;
/// FEATURE_CONTROL: lock.
const FEAT_CTL_LOCKED: u64 = 1 << 0;
/// PAT after reset.
pub const PAT_INIT: u64 = 0x0007_0406_0007_0406;

impl MsrHost {
    /// Value of a feature MSR (system-level KVM_GET_MSRS); `None` if there is no such one here.
    pub fn feature_msr(&self, index: u32) -> Option<u64> {
        let m = find(index).filter(|m| m.lists & FEATURE != 0)?;
        match m.class {
            Class::Stored(Slot::UcodeRev) => Some(self.ucode_rev),
            Class::Stored(Slot::PlatformInfo) => Some(if self.cpuid_faulting {
                PLATFORM_INFO_CPUID_FAULT
            } else {
                0
            }),
            Class::Stored(Slot::ArchCapabilities) => self
                .features
                .has(Feature::ArchCapabilities)
                .then_some(self.arch_capabilities),
            Class::Stored(Slot::DeCfg) => (self.vendor == Vendor::Amd).then_some(self.de_cfg),
            _ => None,
        }
    }

    /// The MSRs of KVM_GET_MSR_FEATURE_INDEX_LIST.
    pub fn feature_list(&self) -> impl Iterator<Item = u32> + '_ {
        TABLE
            .iter()
            .map(|m| m.first)
            .filter(|&i| self.feature_msr(i).is_some())
    }

    /// The MSRs of KVM_GET_MSR_INDEX_LIST: what has to be saved on a host that offers this.
    pub fn index_list(&self) -> impl Iterator<Item = u32> + '_ {
        TABLE
            .iter()
            .filter(|m| m.lists & SAVED != 0 && self.offers(m))
            .map(|m| m.first)
    }

    /// Some guest can have the MSR.
    fn offers(&self, m: &Msr) -> bool {
        match m.gate {
            Gate::Always | Gate::PlatformInfo => true,
            Gate::Any(fs) => self.features.has_any(fs),
            Gate::Pv(bit) => self.pv & bit != 0,
            Gate::Vendor(v) => self.vendor == v,
        }
    }
}

/// The circumstances of an access.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// What the guest has.
    pub guest: &'a GuestFeatures,
    /// What the host offers.
    pub host: &'a MsrHost,
    /// Who accesses.
    pub origin: Origin,
    /// Paravirtual MSRs exist only with their CPUID bit (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
    pub enforce_pv: bool,
    /// The guest may read PLATFORM_INFO (KVM_CAP_MSR_PLATFORM_INFO; on by default).
    pub platform_info: bool,
    /// MISC_ENABLE's MWAIT bit decides over MONITOR in CPUID (the quirk
    /// KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT is off).
    pub mwait_by_misc_enable: bool,
}

/// An access that does not happen: #GP(0) for a guest, or an exit to user space for the reason
/// (KVM_CAP_X86_USER_SPACE_MSR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No such MSR in this guest (KVM_MSR_EXIT_REASON_UNKNOWN).
    Unknown,
    /// The MSR does not take the value, or cannot be accessed so (KVM_MSR_EXIT_REASON_INVAL).
    Invalid,
}

/// How to serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value.
    Value(u64),
    /// It is in the backend.
    Backend(Field),
    /// The shell has it.
    Shell(Service),
}

/// How to serve a write. Values are checked, and cut where hardware cuts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is done.
    Done,
    /// It is done, and CPUID shows something else now.
    DoneCpuid,
    /// The backend keeps the value.
    Backend(Field, u64),
    /// The shell serves it. With [`Rule::Elsewhere`] the value is still unchecked.
    Shell(Service, u64),
}

/// The MSRs of one vCPU that are kept here.
#[derive(Clone, Copy, Debug)]
pub struct MsrState {
    slots: [u64; SLOTS],
    /// Memory type ranges.
    pub mtrr: Mtrr,
    /// Machine checks.
    pub mce: Mce,
}

impl MsrState {
    /// A new vCPU's. `stuff_feature_msrs` is the quirk KVM_X86_QUIRK_STUFF_FEATURE_MSRS: feature
    /// MSRs start with all that the host offers, not with zero.
    pub fn new(host: &MsrHost, stuff_feature_msrs: bool) -> MsrState {
        let mut s = MsrState {
            slots: [0; SLOTS],
            mtrr: Mtrr::default(),
            mce: Mce::default(),
        };
        if stuff_feature_msrs {
            s.put(Slot::PlatformInfo, host.feature_msr(0xce).unwrap_or(0));
            s.put(Slot::ArchCapabilities, host.feature_msr(0x10a).unwrap_or(0));
            // Any revision that a guest takes for new; not the host's, which changes at migration.
            let rev = if host.vendor == Vendor::Amd {
                0x0100_0065
            } else {
                1 << 32
            };
            s.put(Slot::UcodeRev, rev);
        }
        s.put(Slot::MiscEnable, MISC_ENABLE_PMU);
        s.put(Slot::PollControl, 1);
        s
    }

    /// INIT keeps machine-check banks, MTRRs, and what firmware sets; MISC_FEATURES_ENABLES is
    /// cleared.
    pub fn init(&mut self) {
        self.put(Slot::MiscFeatures, 0);
    }

    /// A slot's value.
    #[inline]
    pub fn get(&self, slot: Slot) -> u64 {
        self.slots.get(slot as usize).copied().unwrap_or(0)
    }

    fn put(&mut self, slot: Slot, v: u64) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            *s = v;
        }
    }

    /// CPUID faults in user mode, or part of it.
    #[inline]
    pub fn cpuid_may_fault(&self) -> bool {
        self.get(Slot::MiscFeatures) & 1 != 0 || self.get(Slot::Hwcr) & HWCR_CPUID_USER_DIS != 0
    }

    /// CPUID faults with #GP at CPL > 0 (Intel's switch) or at CPL 3 (AMD's).
    #[inline]
    pub fn cpuid_faults(&self, cpl: u8) -> bool {
        let intel = self.get(Slot::MiscFeatures) & 1 != 0;
        let amd = self.get(Slot::Hwcr) & HWCR_CPUID_USER_DIS != 0;
        cpl > 0 && (intel || (amd && cpl == 3))
    }

    /// MISC_ENABLE's MONITOR/MWAIT bit.
    #[inline]
    pub fn mwait_enabled(&self) -> bool {
        self.get(Slot::MiscEnable) & MISC_ENABLE_MWAIT != 0
    }

    /// Decides about a read of MSR `index`.
    ///
    /// # Errors
    /// [`Refused`] with the reason.
    pub fn read(&self, index: u32, ctx: &Ctx<'_>) -> Result<Read, Refused> {
        // The hot ones that exit: LAPIC registers, without a look at the table.
        if let 0x800..=0x8ff = index {
            return Ok(Read::Shell(Service::X2Apic((index & 0xff) as u8)));
        }
        let m = find(index).ok_or(Refused::Unknown)?;
        if !admitted(m, ctx) {
            // User space may save what the list told it to, though this guest lacks it.
            return match (ctx.origin, m.class) {
                (Origin::Host, Class::Backend(_) | Class::Shell(_)) if advertised(m, ctx) => {
                    Ok(Read::Value(0))
                }
                _ => Err(Refused::Unknown),
            };
        }
        if m.lists & WRITE_ONLY != 0 {
            return match ctx.origin {
                Origin::Guest => Err(Refused::Unknown),
                Origin::Host => Ok(Read::Value(0)),
            };
        }
        match m.class {
            Class::Backend(f) => Ok(Read::Backend(f)),
            Class::Shell(s) => Ok(Read::Shell(s)),
            Class::Stored(s) => Ok(Read::Value(self.get(s))),
            Class::IcCfg => Ok(Read::Value(ic_cfg(ctx.guest))),
            Class::Const(v) => Ok(Read::Value(v)),
            Class::Mtrr => self
                .mtrr
                .read(index)
                .map(Read::Value)
                .ok_or(Refused::Invalid),
            Class::Mce => self
                .mce
                .read(index, ctx.origin)
                .map(Read::Value)
                .ok_or(Refused::Invalid),
        }
    }

    /// Decides about a write of `value` to MSR `index`, and does it if the MSR is kept here.
    ///
    /// # Errors
    /// [`Refused`] with the reason; nothing has changed then.
    pub fn write(&mut self, index: u32, value: u64, ctx: &Ctx<'_>) -> Result<Write, Refused> {
        match index {
            0x800..=0x8ff => return Ok(Write::Shell(Service::X2Apic((index & 0xff) as u8), value)),
            // A timer interrupt in the guest ends with this write.
            0x6e0 if ctx.guest.has(Feature::TscDeadline) => {
                return Ok(Write::Shell(Service::TscDeadline, value))
            }
            _ => {}
        }
        let m = find(index).ok_or(Refused::Unknown)?;
        if !admitted(m, ctx) {
            return match (ctx.origin, value) {
                (Origin::Host, 0) if advertised(m, ctx) => Ok(Write::Done),
                _ => Err(Refused::Unknown),
            };
        }
        let value = self.check(m, value, ctx)?;
        if m.rule == Rule::ReadOnly {
            return Ok(Write::Done);
        }
        match m.class {
            Class::Backend(f) => Ok(Write::Backend(f, value)),
            Class::Shell(s) => Ok(Write::Shell(s, value)),
            Class::Const(_) | Class::IcCfg => Ok(Write::Done),
            Class::Stored(s) => {
                if m.rule == Rule::IgnoredFromGuest && ctx.origin == Origin::Guest {
                    return Ok(Write::Done);
                }
                let changed = self.get(s) ^ value;
                self.put(s, value);
                let mwait = s == Slot::MiscEnable
                    && ctx.mwait_by_misc_enable
                    && changed & MISC_ENABLE_MWAIT != 0;
                Ok(if mwait { Write::DoneCpuid } else { Write::Done })
            }
            Class::Mtrr => self
                .mtrr
                .write(index, value, ctx.guest.reserved_gpa_bits())
                .then_some(Write::Done)
                .ok_or(Refused::Invalid),
            Class::Mce => {
                let status_writable =
                    self.get(Slot::Hwcr) & HWCR_MC_STATUS_WR_EN != 0 && ctx.guest.is_amd();
                self.mce
                    .write(index, value, ctx.origin, status_writable)
                    .then_some(Write::Done)
                    .ok_or(Refused::Invalid)
            }
        }
    }

    /// The value that `m` takes when `value` is written.
    fn check(&self, m: &Msr, value: u64, ctx: &Ctx<'_>) -> Result<u64, Refused> {
        let g = ctx.guest;
        let guest = ctx.origin == Origin::Guest;
        let within = |mask: u64| {
            if value & !mask == 0 {
                Ok(value)
            } else {
                Err(Refused::Invalid)
            }
        };
        let require = |ok: bool| if ok { Ok(value) } else { Err(Refused::Invalid) };
        let canonical = walk::canonical(value, g.linear_bits);
        match m.rule {
            Rule::Any | Rule::Ignored | Rule::IgnoredFromGuest | Rule::Elsewhere => Ok(value),
            Rule::Mask(mask) => within(mask),
            Rule::Canonical => require(canonical),
            Rule::CanonicalAligned4 => require(canonical && value & 3 == 0),
            Rule::Low32OrCanonical if g.is_amd() => Ok(value & 0xffff_ffff),
            Rule::Low32OrCanonical => require(canonical),
            Rule::Low32 if g.is_amd() => Ok(value & 0xffff_ffff),
            Rule::Low32 => within(0xffff_ffff),
            Rule::Pat => require(pat_valid(value)),
            Rule::HostOnly => require(!guest),
            // User space may write back what it has read.
            Rule::ReadOnly => match m.class {
                Class::Const(v) if !guest && v == value => Ok(value),
                _ if m.class == Class::Mtrr && !guest && value == mtrr::CAP => Ok(value),
                _ => Err(Refused::Unknown),
            },
            Rule::Zero => within(0),
            Rule::SpecCtrl => within(spec_ctrl_mask(if guest {
                &g.set
            } else {
                &ctx.host.features
            })),
            Rule::PredCmd => within(pred_cmd_mask(if guest {
                &g.set
            } else {
                &ctx.host.features
            })),
            Rule::MiscEnable => {
                let old = self.get(Slot::MiscEnable);
                if ctx.mwait_by_misc_enable
                    && (old ^ value) & MISC_ENABLE_MWAIT != 0
                    && !g.has(Feature::Sse3)
                {
                    return Err(Refused::Invalid);
                }
                if !guest {
                    return Ok(value);
                }
                require((old ^ value) & MISC_ENABLE_PMU == 0)?;
                Ok((value & !MISC_ENABLE_EMON) | (old & MISC_ENABLE_EMON))
            }
            Rule::MiscFeatures => {
                let offered = self.get(Slot::PlatformInfo) & PLATFORM_INFO_CPUID_FAULT != 0;
                within(u64::from(offered))
            }
            Rule::Hwcr => {
                let mut valid = HWCR_MC_STATUS_WR_EN | HWCR_TSC_FREQ_SEL;
                if g.has(Feature::GpOnUserCpuid) {
                    valid |= HWCR_CPUID_USER_DIS;
                }
                require(value & !(valid | HWCR_IGNORED) == 0)?;
                Ok(value & !HWCR_IGNORED)
            }
            Rule::DeCfg => within(ctx.host.de_cfg),
            Rule::FeatureControl => {
                let locked = self.get(Slot::FeatureControl) & FEAT_CTL_LOCKED != 0;
                require(!(guest && locked))?;
                within(FEAT_CTL_LOCKED)
            }
            Rule::Xss => within(g.xss),
            Rule::Cet => {
                let mut mask = 0;
                if g.has(Feature::Shstk) {
                    // SH_STK_EN, WR_SHSTK_EN
                    mask |= 0x3;
                }
                if g.has(Feature::Ibt) {
                    // ENDBR_EN, LEG_IW_EN, NO_TRACK_EN, SUPPRESS_DIS, SUPPRESS, TRACKER, bitmap
                    mask |= !0x3c3;
                }
                // Suppression and waiting for ENDBRANCH exclude each other.
                require(value & 0xc00 != 0xc00 && canonical)?;
                within(mask)
            }
        }
    }
}

/// The origin may access the MSR in this guest.
fn admitted(m: &Msr, ctx: &Ctx<'_>) -> bool {
    let host = ctx.origin == Origin::Host;
    match m.gate {
        Gate::Always => true,
        // User space sets MSRs before or after CPUID; what the host offers, it may set.
        Gate::Any(fs) => ctx.guest.set.has_any(fs) || (host && ctx.host.features.has_any(fs)),
        Gate::Pv(bit) => ctx.host.pv & bit != 0 && (ctx.guest.pv & bit != 0 || !ctx.enforce_pv),
        Gate::Vendor(v) => host || ctx.guest.vendor == v,
        Gate::PlatformInfo => host || ctx.platform_info,
    }
}

/// The MSR is in the list that user space saves.
fn advertised(m: &Msr, ctx: &Ctx<'_>) -> bool {
    m.lists & SAVED != 0 && ctx.host.offers(m)
}

/// Every byte is a memory type that PAT knows: UC, WC, WT, WP, WB, UC-.
pub fn pat_valid(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|&t| matches!(t, 0 | 1 | 4..=7))
}

/// SPEC_CTRL bits by feature.
fn spec_ctrl_mask(f: &FeatureSet) -> u64 {
    use Feature::{
        AmdIbrs, AmdPsfd, AmdSsbd, AmdStibp, BhiCtrl, DdpdU, IntelPsfd, IntelStibp, IpredCtrl,
        RrsbaCtrl, SpecCtrl, SpecCtrlSsbd,
    };
    let rows: [(u64, &[Feature]); 7] = [
        (1 << 0, &[SpecCtrl, AmdIbrs]),
        (1 << 1, &[IntelStibp, AmdStibp]),
        (1 << 2, &[SpecCtrlSsbd, AmdSsbd]),
        (1 << 3 | 1 << 4, &[IpredCtrl]),
        (1 << 5 | 1 << 6, &[RrsbaCtrl]),
        (1 << 7, &[IntelPsfd, AmdPsfd]),
        (1 << 8 | 1 << 10, &[DdpdU, BhiCtrl]),
    ];
    let mut mask = rows
        .iter()
        .filter(|(_, fs)| f.has_any(fs))
        .fold(0, |m, (bits, _)| m | bits);
    if !f.has(DdpdU) {
        mask &= !(1 << 8);
    }
    if !f.has(BhiCtrl) {
        mask &= !(1 << 10);
    }
    mask
}

/// PRED_CMD bits by feature: IBPB, SBPB.
fn pred_cmd_mask(f: &FeatureSet) -> u64 {
    let ibpb = f.has_any(&[Feature::SpecCtrl, Feature::AmdIbpb]);
    u64::from(ibpb) | u64::from(f.has(Feature::Sbpb)) << 7
}

/// IC_CFG of family 15h models 2h-1fh reads as if the erratum's workaround were in place.
fn ic_cfg(g: &GuestFeatures) -> u64 {
    if g.family == 0x15 && (2..0x20).contains(&g.model) {
        0x1e
    } else {
        0
    }
}
