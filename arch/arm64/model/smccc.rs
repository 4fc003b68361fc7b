// SPDX-License-Identifier: GPL-2.0

//! Hypercalls by the SMC Calling Convention: which are served, which are user space's, and their answers.
//!
//! Arm DEN 0028 (SMCCC), DEN 0098 (TRNG), DEN 0057 (stolen time); Linux `Documentation/virt/kvm/arm/hypercalls.rst`,
//! `fw-pseudo-registers.rst`, `ptp_kvm.rst` and `pvtime.rst`.

use super::psci::{self, Version};

mod filter;
mod firmware;

pub use filter::{Filter, FilterAction, FilterError, MAX_RANGES};
pub use firmware::{InvalidValue, Mitigation, Mitigations, Services};

/// Return codes (DEN 0028, 7).
pub mod code {
    /// SUCCESS
    pub const SUCCESS: u64 = 0;
    /// NOT_SUPPORTED
    pub const NOT_SUPPORTED: u64 = u64::MAX;
    /// NOT_REQUIRED; of TRNG: INVALID_PARAMETERS
    pub const NOT_REQUIRED: u64 = u64::MAX - 1;
}

/// Function ids.
pub mod fid {
    /// SMCCC_VERSION
    pub const VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES
    pub const ARCH_FEATURES: u32 = 0x8000_0001;
    /// SMCCC_ARCH_SOC_ID: not supported; the answer would be the host's
    pub const ARCH_SOC_ID: u32 = 0x8000_0002;
    /// SMCCC_ARCH_WORKAROUND_1
    pub const WORKAROUND_1: u32 = 0x8000_8000;
    /// SMCCC_ARCH_WORKAROUND_2
    pub const WORKAROUND_2: u32 = 0x8000_7fff;
    /// SMCCC_ARCH_WORKAROUND_3
    pub const WORKAROUND_3: u32 = 0x8000_3fff;
    /// TRNG_VERSION
    pub const TRNG_VERSION: u32 = 0x8400_0050;
    /// TRNG_FEATURES
    pub const TRNG_FEATURES: u32 = 0x8400_0051;
    /// TRNG_GET_UUID
    pub const TRNG_GET_UUID: u32 = 0x8400_0052;
    /// TRNG_RND, 32-bit convention
    pub const TRNG_RND32: u32 = 0x8400_0053;
    /// TRNG_RND, 64-bit convention
    pub const TRNG_RND64: u32 = 0xc400_0053;
    /// PV_TIME_FEATURES
    pub const PV_TIME_FEATURES: u32 = 0xc500_0020;
    /// PV_TIME_ST
    pub const PV_TIME_ST: u32 = 0xc500_0021;
    /// ARM_SMCCC_VENDOR_HYP_KVM_FEATURES
    pub const KVM_FEATURES: u32 = 0x8600_0000;
    /// ARM_SMCCC_VENDOR_HYP_KVM_PTP
    pub const KVM_PTP: u32 = 0x8600_0001;
    /// ARM_SMCCC_VENDOR_HYP_CALL_UID
    pub const CALL_UID: u32 = 0x8600_ff01;
}

/// A call: X0 to X3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Function id: the lower half of X0.
    pub fid: u32,
    /// X1 to X3.
    pub args: [u64; 3],
}

impl Call {
    /// From X0 to X3.
    pub fn new(x: [u64; 4]) -> Call {
        let [x0, x1, x2, x3] = x;
        Call {
            fid: u32::try_from(x0 & 0xffff_ffff).unwrap_or(0),
            args: [x1, x2, x3],
        }
    }

    /// The function's arguments have 64 bits.
    pub const fn is_wide(&self) -> bool {
        self.fid & 1 << 30 != 0
    }

    /// The first argument of a function that takes 32 bits.
    fn first(&self) -> u32 {
        u32::try_from(self.args[0] & 0xffff_ffff).unwrap_or(0)
    }
}

/// What decides about calls, of a VM and of the vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// PSCI
    pub version: Version,
    /// Services that user space lets the guest have.
    pub services: &'a Services,
    /// User space's filter.
    pub filter: &'a Filter,
    /// What the host does against speculation.
    pub mitigations: Mitigations,
    /// KVM_CAP_ARM_SYSTEM_SUSPEND
    pub system_suspend: bool,
    /// Where the vCPU's stolen time is (KVM_ARM_VCPU_PVTIME_IPA).
    pub stolen_time: Option<u64>,
}

/// X0 to X3 of an answer.
pub type Answer = [u64; 4];

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This answer.
    Return(Answer),
    /// KVM_EXIT_HYPERCALL: user space answers.
    Forward,
    /// Power.
    Psci(psci::Action),
    /// Random bits: three words of them for [`Random::answer`].
    Random(Random),
    /// The stolen-time structure at this address is to be initialised; the answer is the address.
    StolenTime(u64),
    /// Host time with the count of the physical counter, or of the virtual one, for [`ptp_answer`].
    Ptp {
        /// The guest asks for the physical counter.
        physical: bool,
    },
}

const fn one(x0: u64) -> Outcome {
    Outcome::Return([x0, 0, 0, 0])
}

const NOT_SUPPORTED: Outcome = one(code::NOT_SUPPORTED);

/// The bytes of a UUID as four registers, each little-endian (DEN 0028, 6.2).
const fn uuid(b: [u8; 16]) -> Answer {
    const fn word(a: u8, b: u8, c: u8, d: u8) -> u64 {
        u32::from_le_bytes([a, b, c, d]) as u64
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = b;
    [
        word(a, b, c, d),
        word(e, f, g, h),
        word(i, j, k, l),
        word(m, n, o, p),
    ]
}

/// 28b46fb6-2ec5-11e9-a9ca-4b564d003a74: KVM's hypercalls are here.
const KVM_UID: [u8; 16] = [
    0x28, 0xb4, 0x6f, 0xb6, 0x2e, 0xc5, 0x11, 0xe9, 0xa9, 0xca, 0x4b, 0x56, 0x4d, 0x00, 0x3a, 0x74,
];
/// 0d21e000-4384-11eb-8070-5244554e5a4c: the source that KVM's entropy comes from.
const TRNG_UUID: [u8; 16] = [
    0x0d, 0x21, 0xe0, 0x00, 0x43, 0x84, 0x11, 0xeb, 0x80, 0x70, 0x52, 0x44, 0x55, 0x4e, 0x5a, 0x4c,
];

/// A request for random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    bits: u32,
    wide: bool,
}

impl Random {
    fn request(bits: u32, wide: bool) -> Outcome {
        // Three registers of either width (DEN 0098, 2.5).
        let max = if wide { 192 } else { 96 };
        if bits > max {
            return one(code::NOT_REQUIRED);
        }
        Outcome::Random(Random { bits, wide })
    }

    /// The answer with bits of `random`: those asked for, from the lowest of X3 up, and zeros.
    pub const fn answer(&self, random: [u64; 3]) -> Answer {
        const fn masked(word: u64, bits: u32) -> u64 {
            match bits {
                0 => 0,
                1..=63 => word & ((1 << bits) - 1),
                _ => word,
            }
        }
        let [a, b, c] = random;
        if self.wide {
            [
                code::SUCCESS,
                masked(a, self.bits.saturating_sub(128)),
                masked(b, self.bits.saturating_sub(64)),
                masked(c, self.bits),
            ]
        } else {
            const HALF: u64 = 0xffff_ffff;
            [
                code::SUCCESS,
                masked(a, self.bits.saturating_sub(64)) & HALF,
                masked(b, self.bits.saturating_sub(32)) & HALF,
                masked(c, self.bits) & HALF,
            ]
        }
    }
}

/// KVM's answer to PTP: nanoseconds since the epoch and the counter, upper and lower half of each. `None` if the
/// host's clock does not run by the counter.
pub const fn ptp_answer(time: Option<(u64, u64)>) -> Answer {
    match time {
        Some((ns, count)) => [ns >> 32, ns & 0xffff_ffff, count >> 32, count & 0xffff_ffff],
        None => [code::NOT_SUPPORTED, 0, 0, 0],
    }
}

/// True if no bitmap of services decides about the function.
const fn always(f: u32) -> bool {
    match f {
        fid::VERSION | fid::ARCH_FEATURES => true,
        fid::WORKAROUND_1 | fid::WORKAROUND_2 | fid::WORKAROUND_3 => true,
        // PSCI 0.1
        0x95c1_ba5e..=0x95c1_ba61 => true,
        // PSCI: standard services (owner 4), numbers to 0x1f
        _ => f >> 24 & 0x3f == 4 && f & 0xffff <= 0x1f,
    }
}

/// Decides a call.
pub fn decide(call: &Call, c: &Context<'_>) -> Outcome {
    match c.filter.action(call.fid) {
        FilterAction::Deny => return NOT_SUPPORTED,
        FilterAction::Forward => return Outcome::Forward,
        FilterAction::Handle => {}
    }
    if !always(call.fid) && !c.services.has(call.fid) {
        return NOT_SUPPORTED;
    }
    match call.fid {
        // 1.1: that from which on features can be asked for.
        fid::VERSION => one(0x1_0001),
        fid::ARCH_FEATURES => one(arch_features(call.first(), c)),
        // The way here and back is what they ask for.
        f @ (fid::WORKAROUND_1 | fid::WORKAROUND_2 | fid::WORKAROUND_3) => {
            match c.mitigations.answer(f) {
                code::NOT_SUPPORTED => NOT_SUPPORTED,
                _ => one(code::SUCCESS),
            }
        }
        fid::TRNG_VERSION => one(0x1_0000),
        fid::TRNG_FEATURES => match call.first() {
            fid::TRNG_VERSION..=fid::TRNG_RND32 | fid::TRNG_RND64 => one(code::SUCCESS),
            _ => NOT_SUPPORTED,
        },
        fid::TRNG_GET_UUID => Outcome::Return(uuid(TRNG_UUID)),
        fid::TRNG_RND32 => Random::request(call.first(), false),
        fid::TRNG_RND64 => Random::request(call.first(), true),
        fid::PV_TIME_FEATURES => match call.first() {
            fid::PV_TIME_FEATURES | fid::PV_TIME_ST if c.stolen_time.is_some() => {
                one(code::SUCCESS)
            }
            _ => NOT_SUPPORTED,
        },
        fid::PV_TIME_ST => c.stolen_time.map_or(NOT_SUPPORTED, Outcome::StolenTime),
        fid::CALL_UID => Outcome::Return(uuid(KVM_UID)),
        fid::KVM_FEATURES => {
            Outcome::Return([c.services.vendor_hyp(), 0, c.services.vendor_hyp_2(), 0])
        }
        fid::KVM_PTP => match call.first() {
            0 => Outcome::Ptp { physical: false },
            1 => Outcome::Ptp { physical: true },
            _ => NOT_SUPPORTED,
        },
        _ => Outcome::Psci(psci::call(c.version, call.fid, call.args, c.system_suspend)),
    }
}

fn arch_features(asked: u32, c: &Context<'_>) -> u64 {
    match asked {
        fid::WORKAROUND_1 | fid::WORKAROUND_2 | fid::WORKAROUND_3 => c.mitigations.answer(asked),
        fid::PV_TIME_FEATURES if c.services.has(asked) => code::SUCCESS,
        _ => code::NOT_SUPPORTED,
    }
}
