// SPDX-License-Identifier: GPL-2.0

//! The CPU interface: its saved registers, and how user space names them
//! (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS).

use super::{low, LrConfig, RegError};

/// ICH_VMCR_EL2 (IHI 0069, 12.4.11): what the guest's CPU interface is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vmcr(pub u32);

impl Vmcr {
    /// VENG0: group 0 is enabled.
    pub const GROUP0: u32 = 1 << 0;
    /// VENG1: group 1 is enabled.
    pub const GROUP1: u32 = 1 << 1;
    /// VFIQEn: one, as group 0 always is FIQs with the system register interface
    pub const FIQ: u32 = 1 << 3;
    /// VCBPR: group 1 uses the binary point of group 0.
    pub const CBPR: u32 = 1 << 4;
    /// VEOIM: the end of an interrupt only drops the priority, ICC_DIR_EL1 deactivates it.
    pub const EOI_SPLIT: u32 = 1 << 9;
    const BPR1_SHIFT: u32 = 18;
    const BPR0_SHIFT: u32 = 21;
    const BPR_MASK: u32 = 7;
    const PMR_SHIFT: u32 = 24;

    /// VPMR: only interrupts of a lower value are signalled.
    pub const fn pmr(self) -> u8 {
        (self.0 >> Self::PMR_SHIFT) as u8
    }

    /// VENG0, VENG1
    pub const fn group(self, group1: bool) -> bool {
        let bit = if group1 { Self::GROUP1 } else { Self::GROUP0 };
        self.0 & bit != 0
    }

    /// VEOIM
    pub const fn eoi_split(self) -> bool {
        self.0 & Self::EOI_SPLIT != 0
    }

    const fn field(self, shift: u32, mask: u32) -> u64 {
        (self.0 >> shift & mask) as u64
    }

    fn set_field(&mut self, shift: u32, mask: u32, value: u64) {
        self.0 = self.0 & !(mask << shift) | (low(value) & mask) << shift;
    }

    fn set_flag(&mut self, flag: u32, value: bool) {
        self.0 = self.0 & !flag | if value { flag } else { 0 };
    }
}

/// The registers of a vCPU's CPU interface: the shell loads them before an entry and saves them
/// after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuIf {
    /// ICH_VMCR_EL2
    pub vmcr: Vmcr,
    /// ICH_AP0R<n>_EL2: the active priorities of group 0
    pub ap0r: [u32; 4],
    /// ICH_AP1R<n>_EL2: the active priorities of group 1
    pub ap1r: [u32; 4],
    /// The guest's bits of a priority: the hardware's, or fewer if user space restored so
    pri_bits: u8,
    id_bits: u8,
}

/// The system register that a CPU_SYSREGS attribute names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reg {
    Pmr,
    Bpr0,
    Bpr1,
    Ap0r(usize),
    Ap1r(usize),
    Ctlr,
    Sre,
    Igrpen0,
    Igrpen1,
}

/// The attribute's field `instr`: Op0, Op1, CRn, CRm, Op2.
const fn instr(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// By IHI 0069, 12.2.
const REGS: [(u16, Reg); 15] = [
    (instr(3, 0, 4, 6, 0), Reg::Pmr),
    (instr(3, 0, 12, 8, 3), Reg::Bpr0),
    (instr(3, 0, 12, 8, 4), Reg::Ap0r(0)),
    (instr(3, 0, 12, 8, 5), Reg::Ap0r(1)),
    (instr(3, 0, 12, 8, 6), Reg::Ap0r(2)),
    (instr(3, 0, 12, 8, 7), Reg::Ap0r(3)),
    (instr(3, 0, 12, 9, 0), Reg::Ap1r(0)),
    (instr(3, 0, 12, 9, 1), Reg::Ap1r(1)),
    (instr(3, 0, 12, 9, 2), Reg::Ap1r(2)),
    (instr(3, 0, 12, 9, 3), Reg::Ap1r(3)),
    (instr(3, 0, 12, 12, 3), Reg::Bpr1),
    (instr(3, 0, 12, 12, 4), Reg::Ctlr),
    (instr(3, 0, 12, 12, 5), Reg::Sre),
    (instr(3, 0, 12, 12, 6), Reg::Igrpen0),
    (instr(3, 0, 12, 12, 7), Reg::Igrpen1),
];

/// ICC_SRE_EL1: the system register interface, and no bypass of it
const SRE: u64 = 7;

/// ICC_CTLR_EL1 (IHI 0069, 12.2.6).
mod ctlr {
    pub(super) const CBPR: u64 = 1 << 0;
    pub(super) const EOI_MODE: u64 = 1 << 1;
    pub(super) const PRI_BITS_SHIFT: u32 = 8;
    pub(super) const ID_BITS_SHIFT: u32 = 11;
    pub(super) const SEIS: u64 = 1 << 14;
    pub(super) const A3V: u64 = 1 << 15;
}

impl CpuIf {
    /// After a reset.
    pub const fn new(hw: &LrConfig) -> Self {
        Self {
            vmcr: Vmcr(Vmcr::FIQ),
            ap0r: [0; 4],
            ap1r: [0; 4],
            pri_bits: hw.pri_bits,
            id_bits: hw.id_bits,
        }
    }

    /// Whether user space can name this register.
    pub fn has_sysreg(instr: u16) -> bool {
        find(instr).is_ok()
    }

    /// Reads the register that `instr`, the low half of the attribute, names.
    pub fn sysreg(&self, instr: u16, hw: &LrConfig) -> Result<u64, RegError> {
        let vmcr = self.vmcr;
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        Ok(match find(instr)? {
            Reg::Pmr => vmcr.pmr().into(),
            Reg::Bpr0 => vmcr.field(Vmcr::BPR0_SHIFT, Vmcr::BPR_MASK),
            Reg::Bpr1 if vmcr.0 & Vmcr::CBPR != 0 => {
                7.min(vmcr.field(Vmcr::BPR0_SHIFT, Vmcr::BPR_MASK) + 1)
            }
            Reg::Bpr1 => vmcr.field(Vmcr::BPR1_SHIFT, Vmcr::BPR_MASK),
            Reg::Ap0r(n) => u64::from(*self.ap0r.get(self.apr(n)?).ok_or(RegError::Invalid)?),
            Reg::Ap1r(n) => u64::from(*self.ap1r.get(self.apr(n)?).ok_or(RegError::Invalid)?),
            Reg::Ctlr => {
                flag(vmcr.0 & Vmcr::CBPR != 0, ctlr::CBPR)
                    | flag(vmcr.eoi_split(), ctlr::EOI_MODE)
                    | u64::from(self.pri_bits.saturating_sub(1)) << ctlr::PRI_BITS_SHIFT
                    | u64::from(self.id_bits) << ctlr::ID_BITS_SHIFT
                    | flag(hw.seis, ctlr::SEIS)
                    | flag(hw.a3v, ctlr::A3V)
            }
            Reg::Sre => SRE,
            Reg::Igrpen0 => vmcr.group(false).into(),
            Reg::Igrpen1 => vmcr.group(true).into(),
        })
    }

    /// Writes the register that `instr`, the low half of the attribute, names. What does not fit
    /// the hardware is refused.
    pub fn set_sysreg(&mut self, instr: u16, value: u64, hw: &LrConfig) -> Result<(), RegError> {
        match find(instr)? {
            Reg::Pmr => self.vmcr.set_field(Vmcr::PMR_SHIFT, 0xff, value),
            Reg::Bpr0 => (self.vmcr).set_field(Vmcr::BPR0_SHIFT, Vmcr::BPR_MASK, value),
            // It has no value of its own then.
            Reg::Bpr1 if self.vmcr.0 & Vmcr::CBPR != 0 => {}
            Reg::Bpr1 => (self.vmcr).set_field(Vmcr::BPR1_SHIFT, Vmcr::BPR_MASK, value),
            Reg::Ap0r(n) => {
                let n = self.apr(n)?;
                *self.ap0r.get_mut(n).ok_or(RegError::Invalid)? = low(value);
            }
            Reg::Ap1r(n) => {
                let n = self.apr(n)?;
                *self.ap1r.get_mut(n).ok_or(RegError::Invalid)? = low(value);
            }
            Reg::Ctlr => {
                // Three bits each.
                let pri_bits = (value >> ctlr::PRI_BITS_SHIFT & 7) as u8 + 1;
                let id_bits = (value >> ctlr::ID_BITS_SHIFT & 7) as u8;
                if pri_bits > self.pri_bits
                    || id_bits > self.id_bits
                    || (value & ctlr::SEIS != 0) != hw.seis
                    || (value & ctlr::A3V != 0) != hw.a3v
                {
                    return Err(RegError::Invalid);
                }
                self.pri_bits = pri_bits;
                self.id_bits = id_bits;
                self.vmcr.set_flag(Vmcr::CBPR, value & ctlr::CBPR != 0);
                self.vmcr
                    .set_flag(Vmcr::EOI_SPLIT, value & ctlr::EOI_MODE != 0);
            }
            Reg::Sre if value & 1 == 0 => return Err(RegError::Invalid),
            Reg::Sre => {}
            Reg::Igrpen0 => self.vmcr.set_flag(Vmcr::GROUP0, value & 1 != 0),
            Reg::Igrpen1 => self.vmcr.set_flag(Vmcr::GROUP1, value & 1 != 0),
        }
        Ok(())
    }

    /// ICC_RPR_EL1: the priority of the active interrupt of the highest; 0xff if there is none (IHI 0069,
    /// 12.2.19).
    pub fn running(&self, hw: &LrConfig) -> u64 {
        const IDLE: u64 = 0xff;
        // A bit for each group priority, from the highest on: of 7 bits at the most.
        let shift = 8 - u32::from(hw.pri_bits.clamp(5, 7));
        let mut first = 0;
        for (a, b) in self.ap0r.iter().zip(&self.ap1r) {
            match a | b {
                0 => first += 32,
                bits => return u64::from(first + bits.trailing_zeros()) << shift,
            }
        }
        IDLE
    }

    /// A guest writes ICC_PMR_EL1 or ICC_CTLR_EL1, which have trapped. True if `instr` is one of them.
    pub fn write(&mut self, instr: u16, value: u64) -> bool {
        match find(instr) {
            Ok(Reg::Pmr) => self.vmcr.set_field(Vmcr::PMR_SHIFT, 0xff, value),
            Ok(Reg::Ctlr) => {
                self.vmcr.set_flag(Vmcr::CBPR, value & ctlr::CBPR != 0);
                self.vmcr
                    .set_flag(Vmcr::EOI_SPLIT, value & ctlr::EOI_MODE != 0);
            }
            _ => return false,
        }
        true
    }

    /// `n`, if there is an active priorities register of that number: one with up to 5 bits of a
    /// priority, two with 6, else four.
    fn apr(&self, n: usize) -> Result<usize, RegError> {
        let count = match self.pri_bits {
            0..=5 => 1,
            6 => 2,
            _ => 4,
        };
        if n < count {
            Ok(n)
        } else {
            Err(RegError::Invalid)
        }
    }
}

fn find(instr: u16) -> Result<Reg, RegError> {
    REGS.iter()
        .find(|(name, _)| *name == instr)
        .map(|&(_, reg)| reg)
        .ok_or(RegError::Unknown)
}
