// SPDX-License-Identifier: GPL-2.0

//! The name of a system register: its five-part encoding, as instructions, syndromes and user space
//! give it.
//!
//! Arm ARM (DDI 0487), C5.1.2 (encoding space of System instructions), D24.1.2 (encodings by op0), and
//! Linux `Documentation/virt/kvm/api.rst` 4.68 (KVM_SET_ONE_REG, "ARM 64-bit" register ids).

use core::fmt;

mod names;

pub use names::NAMES;

/// op0, op1, CRn, CRm and op2, from the top: KVM's own packing. Values order as the architecture's lists do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sysreg(u16);

/// KVM_REG_ARM64: the architecture's part of a register id.
pub const KVM_REG_ARM64: u64 = 0x6000_0000_0000_0000;
/// KVM_REG_SIZE_U64
pub const KVM_REG_SIZE_U64: u64 = 0x0030_0000_0000_0000;
/// KVM_REG_ARM64_SYSREG: the group of system registers.
const GROUP: u64 = 0x0013 << 16;

/// The encodings that KVM_REG_ARM_TIMER_CVAL and KVM_REG_ARM_TIMER_CNT stand for are each other's: an old
/// mistake that is now ABI.
const fn swap_timer(r: Sysreg) -> Sysreg {
    match r {
        Sysreg::CNTV_CVAL_EL0 => Sysreg::CNTVCT_EL0,
        Sysreg::CNTVCT_EL0 => Sysreg::CNTV_CVAL_EL0,
        other => other,
    }
}

impl Sysreg {
    /// By the parts of its encoding; bits beyond a part's width are not looked at.
    #[inline]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Sysreg(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | op2 as u16 & 7,
        )
    }

    /// By KVM's packing of the parts.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Sysreg(bits)
    }

    /// KVM's packing of the parts.
    #[inline]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// op0: 1 for instructions, 2 for debug and trace, 3 for all else.
    #[inline]
    pub const fn op0(self) -> u8 {
        (self.0 >> 14) as u8
    }

    /// op1
    #[inline]
    pub const fn op1(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// CRn
    #[inline]
    pub const fn crn(self) -> u8 {
        (self.0 >> 7 & 15) as u8
    }

    /// CRm
    #[inline]
    pub const fn crm(self) -> u8 {
        (self.0 >> 3 & 15) as u8
    }

    /// op2
    #[inline]
    pub const fn op2(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// From the ISS of a trapped MSR, MRS or System instruction (ESR_ELx, EC 0x18).
    #[inline]
    pub const fn from_iss(iss: u64) -> Self {
        Sysreg::new(
            (iss >> 20 & 3) as u8,
            (iss >> 14 & 7) as u8,
            (iss >> 10 & 15) as u8,
            (iss >> 1 & 15) as u8,
            (iss >> 17 & 7) as u8,
        )
    }

    /// The register's id for KVM_GET_ONE_REG, with the virtual timer's two in the wrong order that the ABI has.
    #[inline]
    pub const fn id(self) -> u64 {
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | GROUP | swap_timer(self).0 as u64
    }

    /// The register that an id stands for; `None` if it stands for no 64-bit system register.
    #[inline]
    pub const fn from_id(id: u64) -> Option<Self> {
        if id & !0xffff != KVM_REG_ARM64 | KVM_REG_SIZE_U64 | GROUP {
            return None;
        }
        Some(swap_timer(Sysreg((id & 0xffff) as u16)))
    }

    /// The one that follows in order of encodings, `n` places on. Register files (DBGBVR, PMEVCNTR, AMEVCNTR)
    /// are laid out so.
    #[inline]
    pub const fn plus(self, n: u16) -> Self {
        Sysreg(self.0.wrapping_add(n))
    }

    /// Its name, if it has one here. For messages.
    pub fn name(self) -> Option<&'static str> {
        let i = NAMES.binary_search_by_key(&self, |&(r, _)| r).ok()?;
        NAMES.get(i).map(|&(_, name)| name)
    }

    /// In the space of feature ID registers: op0 3, op1 0, CRn 0, CRm 1 to 7 (D24.1.4). What is unallocated in it
    /// reads as zero.
    #[inline]
    pub const fn is_feature_id(self) -> bool {
        self.0 >> 7 == Sysreg::ID_PFR0_EL1.0 >> 7 && matches!(self.crm(), 1..=7)
    }
}

impl fmt::Debug for Sysreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(
                f,
                "S{}_{}_C{}_C{}_{}",
                self.op0(),
                self.op1(),
                self.crn(),
                self.crm(),
                self.op2()
            ),
        }
    }
}

impl fmt::Display for Sysreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
