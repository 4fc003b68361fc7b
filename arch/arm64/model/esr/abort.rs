// SPDX-License-Identifier: GPL-2.0

//! Instruction and data aborts.

use super::{Esr, Gpr};

/// What failed: IFSC or DFSC. Levels are the manual's, from -1 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An address beyond the size that is configured.
    AddressSize(i8),
    /// No translation.
    Translation(i8),
    /// The access flag is clear.
    AccessFlag(i8),
    /// Not permitted.
    Permission(i8),
    /// External abort of the access itself.
    External,
    /// External abort of a walk, at the level.
    ExternalOnWalk(i8),
    /// Parity or ECC error of the access itself.
    Parity,
    /// Parity or ECC error of a walk, at the level.
    ParityOnWalk(i8),
    /// Tag check.
    TagCheck,
    /// Alignment.
    Alignment,
    /// Granule protection, of a walk at the level.
    GranuleOnWalk(i8),
    /// Granule protection.
    Granule,
    /// TLB conflict.
    TlbConflict,
    /// Hardware's update of a descriptor is not possible in that memory.
    UnsupportedUpdate,
    /// An exclusive or atomic access is not possible in that memory.
    UnsupportedExclusive,
    /// Any other.
    Other(u8),
}

impl Fault {
    /// By the status code (ESR_EL2, ISS encodings of aborts, "DFSC").
    pub const fn of(fsc: u8) -> Fault {
        let fsc = fsc & 0x3f;
        let level = (fsc & 3) as i8;
        match fsc {
            0x00..=0x03 => Fault::AddressSize(level),
            0x04..=0x07 => Fault::Translation(level),
            0x08..=0x0b => Fault::AccessFlag(level),
            0x0c..=0x0f => Fault::Permission(level),
            0x10 => Fault::External,
            0x11 => Fault::TagCheck,
            0x12 => Fault::ExternalOnWalk(-2),
            0x13 => Fault::ExternalOnWalk(-1),
            0x14..=0x17 => Fault::ExternalOnWalk(level),
            0x18 => Fault::Parity,
            0x1b => Fault::ParityOnWalk(-1),
            0x1c..=0x1f => Fault::ParityOnWalk(level),
            0x21 => Fault::Alignment,
            0x22 => Fault::GranuleOnWalk(-2),
            0x23 => Fault::GranuleOnWalk(-1),
            0x24..=0x27 => Fault::GranuleOnWalk(level),
            0x28 => Fault::Granule,
            0x29 => Fault::AddressSize(-1),
            0x2a => Fault::Translation(-2),
            0x2b => Fault::Translation(-1),
            0x2c => Fault::AddressSize(-2),
            0x30 => Fault::TlbConflict,
            0x31 => Fault::UnsupportedUpdate,
            0x35 => Fault::UnsupportedExclusive,
            _ => Fault::Other(fsc),
        }
    }

    /// An error of memory or of a bus, not of a translation: the host's to handle, then perhaps the guest's.
    pub const fn is_external(self) -> bool {
        matches!(
            self,
            Fault::External | Fault::ExternalOnWalk(_) | Fault::Parity | Fault::ParityOnWalk(_)
        )
    }
}

/// An abort from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// What failed.
    pub fault: Fault,
    /// S1PTW: stage 2 failed for a walk of the guest's own tables, not for the access.
    pub on_walk: bool,
    /// FAR_EL2 is valid. It can be invalid only for external aborts that are not of a walk.
    pub address_valid: bool,
}

impl Abort {
    pub(super) const fn of(esr: Esr) -> Abort {
        let fault = Fault::of(esr.field(0, 6));
        Abort {
            fault,
            on_walk: esr.bit(7),
            // FnV has a meaning for this one code.
            address_valid: !(matches!(fault, Fault::External) && esr.bit(10)),
        }
    }

    /// HPFAR_EL2 is valid. For other faults the address is that of FAR_EL2 translated by the guest's own tables
    /// ([`par_address`]), if it matters.
    pub const fn ipa_valid(&self) -> bool {
        match self.fault {
            Fault::Translation(_) | Fault::AccessFlag(_) | Fault::AddressSize(_) => true,
            Fault::Permission(_) | Fault::Granule | Fault::GranuleOnWalk(_) => self.on_walk,
            _ => false,
        }
    }
}

/// What the instruction does, when the syndrome says so (ISV).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// log2 of the number of bytes: 0 to 3.
    pub size: u8,
    /// A load extends the sign.
    pub sign_extend: bool,
    /// Which register.
    pub rt: Gpr,
    /// A load fills all 64 bits of the register, not 32.
    pub wide: bool,
    /// With acquire or release.
    pub ordered: bool,
}

impl Access {
    /// Number of bytes.
    pub const fn bytes(&self) -> usize {
        1 << (self.size & 3)
    }
}

/// A data abort from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// What it shares with instruction aborts.
    pub abort: Abort,
    /// WnR: a write, or cache maintenance.
    pub wnr: bool,
    /// CM: cache maintenance (but not DC ZVA) or address translation.
    pub cache: bool,
    /// What the instruction does; `None` without a syndrome: pairs, vectors, write-back, and others.
    pub access: Option<Access>,
    /// LST: LD64B or one of ST64B (bits 12:11, only for faults of translation, access flag and permission).
    pub ls64: bool,
}

impl DataAbort {
    pub(super) const fn of(esr: Esr) -> DataAbort {
        let abort = Abort::of(esr);
        let access = if esr.bit(24) && !abort.on_walk {
            Some(Access {
                size: esr.field(22, 2),
                sign_extend: esr.bit(21),
                rt: esr.field(16, 5),
                wide: esr.bit(15),
                ordered: esr.bit(14),
            })
        } else {
            None
        };
        let lst_defined = matches!(
            abort.fault,
            Fault::Translation(-2..=3) | Fault::AccessFlag(_) | Fault::Permission(_)
        );
        DataAbort {
            abort,
            wnr: esr.bit(6),
            cache: esr.bit(8),
            access,
            ls64: lst_defined && esr.field(11, 2) != 0,
        }
    }

    /// The page must be writable for the guest to go on. A walk of its tables reads them, except that hardware may
    /// set a descriptor's flags: that alone ends in a permission fault, as reading is always permitted. Cache
    /// maintenance may need it too (DC IVAC), and does not fault again where it does not.
    pub const fn needs_write(&self) -> bool {
        if self.abort.on_walk {
            matches!(self.abort.fault, Fault::Permission(_))
        } else {
            self.wnr
        }
    }
}

/// The guest-physical address of a fault: HPFAR_EL2.FIPA (bits 47:4 for 55:12) and the offset of FAR_EL2. That
/// of a walk is the address of a descriptor, whose offset is not reported.
pub const fn fault_address(hpfar: u64, far: u64, on_walk: bool) -> u64 {
    let page = (hpfar & 0x0000_ffff_ffff_fff0) << 8;
    if on_walk {
        page
    } else {
        page | far & 0xfff
    }
}

/// The same from PAR_EL1 (64-bit format), after AT S1E1R of FAR_EL2; `None` if that translation failed: the guest
/// has changed its tables since, and will come again.
pub const fn par_address(par: u64, far: u64) -> Option<u64> {
    if par & 1 != 0 {
        return None;
    }
    Some(par & 0x000f_ffff_ffff_f000 | far & 0xfff)
}
