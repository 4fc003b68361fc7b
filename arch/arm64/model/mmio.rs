// SPDX-License-Identifier: GPL-2.0

//! Accesses to where there is no memory: what the syndrome of a data abort says a device has to do, and what to do
//! when it does not say.
//!
//! Arm ARM (DDI 0487), D24.2: ESR_EL2, ISS encoding of data aborts; Linux `Documentation/virt/kvm/api.rst`:
//! KVM_EXIT_MMIO, KVM_EXIT_ARM_NISV, KVM_EXIT_ARM_LDST64B.

use super::aarch32;
use super::esr::{Access, DataAbort, Esr, Gpr};
use super::pstate;

/// An access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub len: usize,
    /// Which way.
    pub write: bool,
    access: Access,
    big_endian: bool,
}

/// What becomes of a data abort where there is no memory, or where it is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mmio {
    /// A device's.
    Device(Request),
    /// Nothing: step over the instruction. Cache maintenance of what cannot be cached.
    Skip,
    /// An external abort for the guest: its translation tables are there.
    Abort,
    /// KVM_EXIT_ARM_LDST64B with this `esr_iss`: user space emulates the 64-byte access.
    Ls64 {
        /// For `arm_nisv.esr_iss`.
        esr_iss: u64,
    },
    /// KVM_EXIT_ARM_NISV with this `esr_iss`: user space decodes the instruction.
    NoSyndrome {
        /// For `arm_nisv.esr_iss`.
        esr_iss: u64,
    },
    /// KVM_RUN fails with ENOSYS: user space did not ask to be told (KVM_CAP_ARM_NISV_TO_USER).
    Unsupported,
}

/// Decides it. `esr` is ESR_EL2, whose data abort `d` is; `gpa` the address with its offset; `slot` tells that
/// there is memory which is read-only; `pstate` and `sctlr` (SCTLR_EL1) tell how the guest sees data now.
#[inline]
pub const fn decide(
    esr: Esr,
    d: &DataAbort,
    gpa: u64,
    slot: bool,
    (pstate, sctlr): (u64, u64),
    nisv_to_user: bool,
) -> Mmio {
    const FSC: u64 = 0x3f;
    const WNR: u64 = 1 << 6;
    const CM: u64 = 1 << 8;
    if d.abort.on_walk {
        return Mmio::Abort;
    }
    if d.cache && !slot {
        return Mmio::Skip;
    }
    let Some(access) = d.access else {
        return if nisv_to_user {
            Mmio::NoSyndrome {
                esr_iss: esr.0 & (FSC | WNR | CM),
            }
        } else {
            Mmio::Unsupported
        };
    };
    if d.ls64 {
        return Mmio::Ls64 {
            esr_iss: esr.0 & !FSC,
        };
    }
    Mmio::Device(Request {
        gpa,
        len: access.bytes(),
        write: d.wnr,
        access: Access {
            rt: aarch32::view(pstate, access.rt),
            ..access
        },
        big_endian: pstate::big_endian(pstate, sctlr),
    })
}

impl Request {
    /// The register that is stored or loaded; 31 is the zero register.
    pub const fn rt(&self) -> Gpr {
        self.access.rt
    }

    /// The bytes that a store of the register's value puts on the bus; the first `len` count.
    pub const fn store(&self, value: u64) -> [u8; 8] {
        let unused = 64 - (8 << (self.access.size & 3));
        if self.big_endian {
            (value << unused).to_be_bytes()
        } else {
            (value << unused >> unused).to_le_bytes()
        }
    }

    /// The register's value after a load of `bytes`, of which the first `len` count.
    pub const fn load(&self, bytes: [u8; 8]) -> u64 {
        let unused = 64 - (8 << (self.access.size & 3));
        // The value in the upper part, so that a shift extends it by zeros or by its sign.
        let top = if self.big_endian {
            u64::from_be_bytes(bytes) >> unused << unused
        } else {
            u64::from_le_bytes(bytes) << unused
        };
        let value = if self.access.sign_extend {
            let signed = i64::from_ne_bytes(top.to_ne_bytes()) >> unused;
            u64::from_ne_bytes(signed.to_ne_bytes())
        } else {
            top >> unused
        };
        if self.access.wide {
            value
        } else {
            value & 0xffff_ffff
        }
    }
}
