// SPDX-License-Identifier: GPL-2.0

//! Registers as user space names them: KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST.
//!
//! Linux `Documentation/virt/kvm/api.rst` 4.68, "arm64 registers", and `virt/kvm/arm/fw-pseudo-registers.rst`.

use core::iter;

use super::sysreg::{Sysreg, KVM_REG_ARM64, KVM_REG_SIZE_U64};
use super::trap::{self, Features};

/// KVM_REG_SIZE_MASK, and the sizes.
mod size {
    pub(super) const MASK: u64 = 0x00f0_0000_0000_0000;
    pub(super) const U32: u64 = 0x0020_0000_0000_0000;
    pub(super) const U64: u64 = super::KVM_REG_SIZE_U64;
    pub(super) const U128: u64 = 0x0040_0000_0000_0000;
    pub(super) const U256: u64 = 0x0050_0000_0000_0000;
    pub(super) const U512: u64 = 0x0060_0000_0000_0000;
    pub(super) const U2048: u64 = 0x0080_0000_0000_0000;
}

/// KVM_REG_ARM_COPROC_MASK, and the groups.
mod group {
    pub(super) const MASK: u64 = 0xfff << 16;
    pub(super) const CORE: u64 = 0x10 << 16;
    pub(super) const DEMUX: u64 = 0x11 << 16;
    pub(super) const FW: u64 = 0x14 << 16;
    pub(super) const SVE: u64 = 0x15 << 16;
    pub(super) const FW_FEAT_BMAP: u64 = 0x16 << 16;
}

/// Caches that CCSIDR_EL1 can describe (CSSELR_EL1's values): seven levels, data and instructions.
pub const CACHES: u8 = 14;

/// A register of `struct kvm_regs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// X0 to X30
    X(u8),
    /// SP_EL0
    SpEl0,
    /// PC
    Pc,
    /// PSTATE
    Pstate,
    /// SP_EL1
    SpEl1,
    /// ELR_EL1
    ElrEl1,
    /// SPSR_EL1, then SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq
    Spsr(u8),
    /// V0 to V31
    V(u8),
    /// FPSR
    Fpsr,
    /// FPCR
    Fpcr,
}

/// A file of registers in `struct kvm_regs`: offset of the first, words of each, how many.
type File = (u64, u64, u64);

/// Offsets are in 32-bit words.
mod word {
    use super::File;
    pub(super) const X: File = (0, 2, 31);
    pub(super) const SP_EL0: u64 = 62;
    pub(super) const PC: u64 = 64;
    pub(super) const PSTATE: u64 = 66;
    pub(super) const SP_EL1: u64 = 68;
    pub(super) const ELR_EL1: u64 = 70;
    pub(super) const SPSR: File = (72, 2, 5);
    /// Vectors are aligned to 16 bytes.
    pub(super) const V: File = (84, 4, 32);
    pub(super) const FPSR: u64 = 212;
    pub(super) const FPCR: u64 = 213;
    /// Two words are reserved.
    pub(super) const END: u64 = 216;
}

/// Which of a file stands at the word.
fn index_in(at: u64, (first, words, count): File) -> Option<u8> {
    let offset = at.checked_sub(first)?;
    if offset % words != 0 || offset / words >= count {
        return None;
    }
    u8::try_from(offset / words).ok()
}

impl Core {
    fn at(at: u64) -> Option<Core> {
        Some(match at {
            word::SP_EL0 => Core::SpEl0,
            word::PC => Core::Pc,
            word::PSTATE => Core::Pstate,
            word::SP_EL1 => Core::SpEl1,
            word::ELR_EL1 => Core::ElrEl1,
            word::FPSR => Core::Fpsr,
            word::FPCR => Core::Fpcr,
            _ => index_in(at, word::X)
                .map(Core::X)
                .or_else(|| index_in(at, word::SPSR).map(Core::Spsr))
                .or_else(|| index_in(at, word::V).map(Core::V))?,
        })
    }

    const fn size(self) -> u64 {
        match self {
            Core::V(_) => size::U128,
            Core::Fpsr | Core::Fpcr => size::U32,
            _ => size::U64,
        }
    }

    /// Bytes of its value.
    pub const fn bytes(self) -> usize {
        1 << (self.size() >> 52)
    }
}

/// A register of SVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sve {
    /// The vector lengths that the vCPU has, one bit for each (KVM_REG_ARM64_SVE_VLS).
    Lengths,
    /// Z0 to Z31, its first 2048 bits.
    Z(u8),
    /// P0 to P15, its first 256 bits.
    P(u8),
    /// FFR
    Ffr,
}

/// A pseudo register of the firmware that KVM stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// KVM_REG_ARM_PSCI_VERSION
    PsciVersion,
    /// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1
    Workaround1,
    /// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2
    Workaround2,
    /// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3
    Workaround3,
    /// KVM_REG_ARM_STD_BMAP
    Standard,
    /// KVM_REG_ARM_STD_HYP_BMAP
    StandardHyp,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP
    VendorHyp,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP_2
    VendorHyp2,
}

/// The firmware's registers, in the order of the list, with group and number.
const FIRMWARE: [(Firmware, u64); 8] = [
    (Firmware::PsciVersion, group::FW),
    (Firmware::Workaround1, group::FW | 1),
    (Firmware::Workaround2, group::FW | 2),
    (Firmware::Workaround3, group::FW | 3),
    (Firmware::Standard, group::FW_FEAT_BMAP),
    (Firmware::StandardHyp, group::FW_FEAT_BMAP | 1),
    (Firmware::VendorHyp, group::FW_FEAT_BMAP | 2),
    (Firmware::VendorHyp2, group::FW_FEAT_BMAP | 3),
];

/// A register that user space names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Of `struct kvm_regs`.
    Core(Core),
    /// Of SVE. All but [`Sve::Lengths`] only after KVM_ARM_VCPU_FINALIZE (else EPERM), that one only before.
    Sve(Sve),
    /// Of the firmware.
    Firmware(Firmware),
    /// A system register.
    Sysreg(Sysreg),
    /// CCSIDR_EL1 for this CSSELR_EL1; 32 bits.
    Ccsidr(u8),
}

/// Why an id names no register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// ENOENT
    NoEntry,
    /// EINVAL
    Invalid,
}

/// Registers of SVE: numbers in the group are 32 slices of each, of which the first exists.
mod sve {
    pub(super) const P: u64 = 0x400;
    pub(super) const FFR: u64 = 0x600;
    pub(super) const LENGTHS: u64 = 0xffff;
}

impl Sve {
    /// Size, and number in the group.
    fn number(self) -> (u64, u64) {
        match self {
            Sve::Lengths => (size::U512, sve::LENGTHS),
            Sve::Z(n) => (size::U2048, u64::from(n) << 5),
            Sve::P(n) => (size::U256, sve::P | u64::from(n) << 5),
            Sve::Ffr => (size::U256, sve::FFR),
        }
    }

    fn parse(id: u64) -> Result<Sve, NotFound> {
        let number = id & 0xffff;
        // Two bits of the index would be a third kind's.
        let reg = |n: u64| u8::try_from(n >> 5 & 31).map_err(|_| NotFound::Invalid);
        let (found, first) = match number {
            sve::LENGTHS => (Sve::Lengths, sve::LENGTHS),
            0..sve::P => (Sve::Z(reg(number)?), number & !31),
            sve::P..sve::FFR => (Sve::P(reg(number)? & 15), number & !31),
            0x600..0x620 => (Sve::Ffr, sve::FFR),
            _ => return Err(NotFound::Invalid),
        };
        if id & !0xffff != KVM_REG_ARM64 | found.number().0 | group::SVE {
            return Err(NotFound::Invalid);
        }
        if number != first {
            return Err(NotFound::NoEntry);
        }
        Ok(found)
    }

    /// Bytes of its value.
    pub fn bytes(self) -> usize {
        1 << (self.number().0 >> 52)
    }
}

impl Register {
    /// The register of this id, in a guest with these features.
    ///
    /// # Errors
    /// The guest has none such.
    pub fn parse(id: u64, features: &Features) -> Result<Register, NotFound> {
        if (id & !size::MASK) >> 32 != KVM_REG_ARM64 >> 32 {
            return Err(NotFound::Invalid);
        }
        match id & group::MASK {
            group::CORE => Self::parse_core(id, features),
            group::FW | group::FW_FEAT_BMAP => FIRMWARE
                .iter()
                .find(|&&(_, number)| id == KVM_REG_ARM64 | size::U64 | number)
                .map(|&(f, _)| Register::Firmware(f))
                .ok_or(NotFound::NoEntry),
            group::SVE => {
                let r = Sve::parse(id)?;
                if features.sve {
                    Ok(Register::Sve(r))
                } else {
                    Err(NotFound::NoEntry)
                }
            }
            group::DEMUX => {
                let n = u8::try_from(id & 0xffff).map_err(|_| NotFound::NoEntry)?;
                if id & !0xff == KVM_REG_ARM64 | size::U32 | group::DEMUX && n < CACHES {
                    Ok(Register::Ccsidr(n))
                } else {
                    Err(NotFound::NoEntry)
                }
            }
            _ => Sysreg::from_id(id)
                .filter(|&r| trap::kept(r, features).is_some())
                .map(Register::Sysreg)
                .ok_or(NotFound::NoEntry),
        }
    }

    fn parse_core(id: u64, features: &Features) -> Result<Register, NotFound> {
        let at = id & 0xffff_ffff & !group::CORE;
        // The structure's end, and what a register of this size would reach.
        let words = 1_u64.checked_shl(u32::try_from(id >> 52 & 15).unwrap_or(15));
        let words = words.unwrap_or(u64::MAX) / 4;
        if at >= word::END || at + words >= word::END {
            return Err(NotFound::NoEntry);
        }
        match Core::at(at) {
            // With SVE they are the Z registers' lower parts, and there only.
            Some(Core::V(_)) if features.sve => Err(NotFound::Invalid),
            Some(c) if id & size::MASK == c.size() => Ok(Register::Core(c)),
            _ => Err(NotFound::Invalid),
        }
    }

    /// Bytes of its value.
    pub fn bytes(self) -> usize {
        match self {
            Register::Core(c) => c.bytes(),
            Register::Sve(s) => s.bytes(),
            Register::Firmware(_) | Register::Sysreg(_) => 8,
            Register::Ccsidr(_) => 4,
        }
    }
}

fn core_ids(features: &Features) -> impl Iterator<Item = u64> {
    let sve = features.sve;
    (0..word::END).filter_map(move |at| match Core::at(at)? {
        Core::V(_) if sve => None,
        c => Some(KVM_REG_ARM64 | c.size() | group::CORE | at),
    })
}

fn sve_ids(features: &Features) -> impl Iterator<Item = u64> {
    iter::once(Sve::Lengths)
        .chain((0..32).map(Sve::Z))
        .chain((0..16).map(Sve::P))
        .chain(iter::once(Sve::Ffr))
        .take(if features.sve { usize::MAX } else { 0 })
        .map(|r| {
            let (size, number) = r.number();
            KVM_REG_ARM64 | size | group::SVE | number
        })
}

/// The ids of KVM_GET_REG_LIST, in KVM's order.
pub fn list(features: &Features) -> impl Iterator<Item = u64> + '_ {
    core_ids(features)
        .chain(sve_ids(features))
        .chain(
            FIRMWARE
                .into_iter()
                .map(|(_, number)| KVM_REG_ARM64 | size::U64 | number),
        )
        .chain(trap::listed(features).map(Sysreg::id))
        .chain((0..CACHES).map(|n| KVM_REG_ARM64 | size::U32 | group::DEMUX | u64::from(n)))
}
