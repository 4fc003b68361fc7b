// SPDX-License-Identifier: GPL-2.0

//! A VM's capabilities, clock and TSC.

use super::{
    super::model::clock::{NoRate, TscRate, TscScaling},
    Why,
};
use crate::bindings as rb;

/// The quirks that can be switched off (`KVM_CAP_DISABLE_QUIRKS2`).
pub const QUIRKS: u64 = rb::KVM_X86_QUIRK_LINT0_REENABLED as u64
    | rb::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT as u64
    | rb::KVM_X86_QUIRK_STUFF_FEATURE_MSRS as u64;

/// `KVM_X2APIC_API_USE_32BIT_IDS`
const WIDE_IDS: u64 = 1 << 0;
/// `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`
const NO_BROADCAST_QUIRK: u64 = 1 << 1;

/// What `KVM_ENABLE_CAP` enables on a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enable {
    /// Local APICs in the kernel, with this many pins of I/O APICs in user space.
    SplitIrqchip(u32),
    /// `KVM_CAP_X2APIC_API`
    X2apicApi {
        /// Ids of 32 bits.
        wide_ids: bool,
        /// 0xff is no broadcast.
        no_broadcast_quirk: bool,
    },
    /// `KVM_CAP_DISABLE_QUIRKS`, and 2: of [`QUIRKS`].
    DisableQuirks(u64),
    /// `KVM_CAP_MSR_PLATFORM_INFO`
    PlatformInfo(bool),
    /// `KVM_CAP_EXCEPTION_PAYLOAD`
    ExceptionPayload(bool),
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT`
    TripleFaultEvent(bool),
    /// `KVM_CAP_X86_USER_SPACE_MSR`: `KVM_MSR_EXIT_REASON_*`
    MsrExits(u32),
}

impl Enable {
    /// Decodes `struct kvm_enable_cap`; whether the VM's state allows it is for the caller.
    ///
    /// # Errors
    /// No such capability, flags, or an argument that is not defined for it.
    pub fn decode(cap: u32, flags: u32, args: &[u64; 4]) -> Result<Self, Why> {
        if flags != 0 {
            return Err(c"KVM_ENABLE_CAP has no flags");
        }
        let [a, ..] = *args;
        Ok(match cap {
            rb::KVM_CAP_SPLIT_IRQCHIP => match u32::try_from(a) {
                Ok(pins @ 0..=240) => Self::SplitIrqchip(pins),
                _ => return Err(c"at most 240 pins of I/O APICs"),
            },
            rb::KVM_CAP_X2APIC_API => {
                if a & !(WIDE_IDS | NO_BROADCAST_QUIRK) != 0 {
                    return Err(c"flags of KVM_CAP_X2APIC_API that are not there");
                }
                Self::X2apicApi {
                    wide_ids: a & WIDE_IDS != 0,
                    no_broadcast_quirk: a & NO_BROADCAST_QUIRK != 0,
                }
            }
            // The first takes what it does not know.
            rb::KVM_CAP_DISABLE_QUIRKS => Self::DisableQuirks(a & QUIRKS),
            rb::KVM_CAP_DISABLE_QUIRKS2 if a & !QUIRKS != 0 => return Err(c"no such quirks"),
            rb::KVM_CAP_DISABLE_QUIRKS2 => Self::DisableQuirks(a),
            rb::KVM_CAP_MSR_PLATFORM_INFO => Self::PlatformInfo(a != 0),
            rb::KVM_CAP_EXCEPTION_PAYLOAD => Self::ExceptionPayload(a != 0),
            rb::KVM_CAP_X86_TRIPLE_FAULT_EVENT => Self::TripleFaultEvent(a != 0),
            rb::KVM_CAP_X86_USER_SPACE_MSR => match u32::try_from(a) {
                Ok(r) if r & !rb::KVM_MSR_EXIT_REASON_VALID_MASK == 0 => Self::MsrExits(r),
                _ => return Err(c"no such reasons for MSR exits"),
            },
            _ => return Err(c"the capability cannot be enabled on a VM"),
        })
    }
}

/// `KVM_SET_CLOCK`: the clock, and the real time that goes with it.
///
/// # Errors
/// Flags that are not defined.
pub fn clock(c: &rb::kvm_clock_data) -> Result<(u64, Option<u64>), Why> {
    // TSC_STABLE and HOST_TSC are only told; they may be handed back.
    let known = rb::KVM_CLOCK_TSC_STABLE | rb::KVM_CLOCK_REALTIME | rb::KVM_CLOCK_HOST_TSC;
    if c.flags & !known != 0 {
        return Err(c"flags of KVM_SET_CLOCK that are not defined");
    }
    let realtime = (c.flags & rb::KVM_CLOCK_REALTIME != 0).then_some(c.realtime);
    Ok((c.clock, realtime))
}

/// `KVM_SET_TSC_KHZ`: 0 is the host's.
///
/// # Errors
/// Without scaling, only the host's own frequency can be had.
pub fn tsc_khz(host_khz: u32, khz: u64, scaling: Option<TscScaling>) -> Result<TscRate, Why> {
    TscRate::new(khz, host_khz, scaling).map_err(|no| match no {
        NoRate::Unscaled => c"the TSC's frequency is the host's: it cannot be scaled",
        NoRate::TooFar => c"the TSC cannot be scaled that far",
    })
}
