// SPDX-License-Identifier: GPL-2.0

//! The firmware's pseudo registers: services that user space can take away, and what the host does against
//! speculation (Linux `Documentation/virt/kvm/arm/fw-pseudo-registers.rst`).

use super::super::onereg::Firmware;
use super::{code, fid};

/// Services, a bitmap of each owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    standard: u64,
    standard_hyp: u64,
    vendor_hyp: u64,
    vendor_hyp_2: u64,
}

/// A value that a register does not take: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidValue;

/// KVM_REG_ARM_STD_BIT_TRNG_V1_0
const TRNG: u64 = 1 << 0;
/// KVM_REG_ARM_STD_HYP_BIT_PV_TIME
const PV_TIME: u64 = 1 << 0;
/// KVM_REG_ARM_VENDOR_HYP_BIT_FUNC_FEAT
const FUNC_FEAT: u64 = 1 << 0;
/// KVM_REG_ARM_VENDOR_HYP_BIT_PTP
const PTP: u64 = 1 << 1;
/// KVM_REG_ARM_VENDOR_HYP_BIT_DISCOVER_IMPL_VER and CPUS: user space serves these, so they are off at first.
const DISCOVER: u64 = 3;

impl Default for Services {
    fn default() -> Self {
        Services {
            standard: TRNG,
            standard_hyp: PV_TIME,
            vendor_hyp: FUNC_FEAT | PTP,
            vendor_hyp_2: 0,
        }
    }
}

impl Services {
    /// A register's bitmap; `None` for one that is none.
    pub const fn get(&self, r: Firmware) -> Option<u64> {
        Some(match r {
            Firmware::Standard => self.standard,
            Firmware::StandardHyp => self.standard_hyp,
            Firmware::VendorHyp => self.vendor_hyp,
            Firmware::VendorHyp2 => self.vendor_hyp_2,
            _ => return None,
        })
    }

    /// Sets a register's bitmap. The caller has seen to it that no vCPU has run yet (else EBUSY, for another
    /// value).
    ///
    /// # Errors
    /// A service that does not exist, or a register without a bitmap.
    pub fn set(&mut self, r: Firmware, value: u64) -> Result<(), InvalidValue> {
        let (bitmap, all) = match r {
            Firmware::Standard => (&mut self.standard, TRNG),
            Firmware::StandardHyp => (&mut self.standard_hyp, PV_TIME),
            Firmware::VendorHyp => (&mut self.vendor_hyp, FUNC_FEAT | PTP),
            Firmware::VendorHyp2 => (&mut self.vendor_hyp_2, DISCOVER),
            _ => return Err(InvalidValue),
        };
        if value & !all != 0 {
            return Err(InvalidValue);
        }
        *bitmap = value;
        Ok(())
    }

    pub(super) const fn vendor_hyp(&self) -> u64 {
        self.vendor_hyp
    }

    pub(super) const fn vendor_hyp_2(&self) -> u64 {
        self.vendor_hyp_2
    }

    /// The guest has the function, by its bitmap.
    pub(super) const fn has(&self, f: u32) -> bool {
        let bit = match f {
            fid::TRNG_VERSION | fid::TRNG_FEATURES | fid::TRNG_GET_UUID => self.standard & TRNG,
            fid::TRNG_RND32 | fid::TRNG_RND64 => self.standard & TRNG,
            fid::PV_TIME_FEATURES | fid::PV_TIME_ST => self.standard_hyp & PV_TIME,
            fid::KVM_FEATURES | fid::CALL_UID => self.vendor_hyp & FUNC_FEAT,
            fid::KVM_PTP => self.vendor_hyp & PTP,
            _ => 0,
        };
        bit != 0
    }
}

/// How the host stands to a kind of speculation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mitigation {
    /// Nothing helps.
    #[default]
    Vulnerable,
    /// Something is done.
    Mitigated,
    /// Nothing is needed.
    Unaffected,
}

/// What the host does, for SMCCC_ARCH_WORKAROUND_1 to 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mitigations {
    /// Branch predictor (Spectre v2).
    pub branch_predictor: Mitigation,
    /// Store bypass (Spectre v4).
    pub store_bypass: Mitigation,
    /// Branch history (Spectre-BHB).
    pub branch_history: Mitigation,
    /// The guest has PSTATE.SSBS, and sees to store bypass itself.
    pub ssbs: bool,
}

impl Mitigations {
    /// The answer of SMCCC_ARCH_FEATURES about a workaround's function.
    pub(super) const fn answer(&self, f: u32) -> u64 {
        /// SMCCC_ARCH_WORKAROUND_RET_UNAFFECTED
        const UNAFFECTED: u64 = 1;
        match f {
            fid::WORKAROUND_2 => match self.store_bypass {
                Mitigation::Vulnerable => code::NOT_SUPPORTED,
                Mitigation::Mitigated if self.ssbs => code::NOT_SUPPORTED,
                // Always on for a guest that cannot rule it.
                Mitigation::Mitigated | Mitigation::Unaffected => code::NOT_REQUIRED,
            },
            fid::WORKAROUND_1 | fid::WORKAROUND_3 => {
                let m = match f {
                    fid::WORKAROUND_1 => self.branch_predictor,
                    _ => self.branch_history,
                };
                match m {
                    Mitigation::Vulnerable => code::NOT_SUPPORTED,
                    Mitigation::Mitigated => code::SUCCESS,
                    Mitigation::Unaffected => UNAFFECTED,
                }
            }
            _ => code::NOT_SUPPORTED,
        }
    }

    /// A workaround's level, as the pseudo register has it: the higher the better. 0 is "not available". `None`
    /// for another register.
    pub const fn level(&self, r: Firmware) -> Option<u64> {
        let m = match r {
            Firmware::Workaround1 => self.branch_predictor,
            Firmware::Workaround3 => self.branch_history,
            Firmware::Workaround2 => {
                return Some(match self.answer(fid::WORKAROUND_2) {
                    code::NOT_SUPPORTED => 0,
                    _ => 3,
                })
            }
            _ => return None,
        };
        Some(match m {
            Mitigation::Vulnerable => 0,
            Mitigation::Mitigated => 1,
            Mitigation::Unaffected => 2,
        })
    }

    /// User space sets the register: a guest that comes from elsewhere must not find less than it had.
    ///
    /// # Errors
    /// This host has less, or the value means nothing.
    pub const fn check(&self, r: Firmware, value: u64) -> Result<(), InvalidValue> {
        let Some(level) = self.level(r) else {
            return Err(InvalidValue);
        };
        const LEVEL: u64 = 0xf;
        const ENABLED: u64 = 1 << 4;
        let needed = match r {
            Firmware::Workaround2 => match value {
                // Not available, unknown.
                0 | 1 => 0,
                // Available (enabled or not), not required: this host knows but "not required".
                2 | 3 => 3,
                _ if value == 2 | ENABLED => 3,
                _ => return Err(InvalidValue),
            },
            _ if value & !LEVEL != 0 => return Err(InvalidValue),
            _ => value,
        };
        if needed > level {
            return Err(InvalidValue);
        }
        Ok(())
    }
}
