// SPDX-License-Identifier: GPL-2.0

//! Guests whose EL1 is AArch32 (HCR_EL2.RW is 0): their modes, where AArch64 has the registers that each mode banks,
//! and what it is to take an exception in the processor's place.
//!
//! Arm ARM (DDI 0487), D1, "Mapping of the general-purpose registers between the Execution states"; G1 (modes and
//! banked registers, exceptions); J1.2: AArch32.EnterMode(); G8.2: SCTLR, VBAR, TTBCR, DFSR, IFSR.

use super::esr::Gpr;
use super::pstate::bit;

/// A mode, by M\[3:0\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// EL0
    User,
    /// FIQ
    Fiq,
    /// IRQ
    Irq,
    /// Supervisor
    Supervisor,
    /// Abort
    Abort,
    /// Undefined
    Undefined,
    /// System: privileged, with User's registers
    System,
}

impl Mode {
    /// Of this process state; `None`: AArch64, or a mode that EL1 and EL0 do not have (Monitor, Hyp).
    pub const fn of(pstate: u64) -> Option<Mode> {
        Some(match pstate & bit::MODE {
            0x10 => Mode::User,
            0x11 => Mode::Fiq,
            0x12 => Mode::Irq,
            0x13 => Mode::Supervisor,
            0x17 => Mode::Abort,
            0x1b => Mode::Undefined,
            0x1f => Mode::System,
            _ => return None,
        })
    }

    /// M\[4:0\]
    pub const fn bits(self) -> u64 {
        match self {
            Mode::User => 0x10,
            Mode::Fiq => 0x11,
            Mode::Irq => 0x12,
            Mode::Supervisor => 0x13,
            Mode::Abort => 0x17,
            Mode::Undefined => 0x1b,
            Mode::System => 0x1f,
        }
    }

    /// Where AArch64 has register `n` of this mode, 0 to 14. Any other number stays: that is how syndromes name
    /// registers already, and no number that they give is one of those that this changes. QEMU's emulated processors
    /// give the number as the instruction has it for data aborts.
    pub const fn view(self, n: Gpr) -> Gpr {
        match (self, n) {
            (Mode::Fiq, 8..=14) => n + 16,
            (Mode::Irq, 13) => 17,
            (Mode::Irq, 14) => 16,
            (Mode::Supervisor, 13) => 19,
            (Mode::Supervisor, 14) => 18,
            (Mode::Abort, 13) => 21,
            (Mode::Abort, 14) => 20,
            (Mode::Undefined, 13) => 23,
            (Mode::Undefined, 14) => 22,
            _ => n,
        }
    }
}

/// Where AArch64 has the register that a syndrome names, whatever the execution state.
#[inline]
pub const fn view(pstate: u64, n: Gpr) -> Gpr {
    if pstate & bit::AARCH32 == 0 {
        return n;
    }
    match Mode::of(pstate) {
        Some(mode) => mode.view(n),
        None => n,
    }
}

/// Bits of CPSR, where they differ from [`bit`] or are not there.
mod psr {
    /// T32 instructions
    pub(super) const T: u64 = 1 << 5;
    /// Big-endian data
    pub(super) const E: u64 = 1 << 9;
    /// Of SPSR_\<mode\>: data-independent timing. SPSR_EL2 has it in bit 24, and software step here.
    pub(super) const DIT: u64 = 1 << 21;
    /// Q
    pub(super) const Q: u64 = 1 << 27;
    /// GE
    pub(super) const GE: u64 = 0xf << 16;
    /// Speculative store bypass safe
    pub(super) const SSBS: u64 = 1 << 23;
}

/// SCTLR
mod sctlr {
    /// Vectors at 0xffff0000
    pub(super) const V: u64 = 1 << 13;
    /// PAN stays as it is
    pub(super) const SPAN: u64 = 1 << 23;
    /// Exceptions are big-endian
    pub(super) const EE: u64 = 1 << 25;
    /// Exceptions are taken in T32
    pub(super) const TE: u64 = 1 << 30;
    /// SSBS on entry
    pub(super) const DSSBS: u64 = 1 << 31;
}

/// TTBCR.EAE: long descriptors, and fault status registers in their format.
const EAE: u64 = 1 << 31;
/// DFSR and IFSR: LPAE
const LPAE: u64 = 1 << 9;
const WORD: u64 = 0xffff_ffff;

/// PSTATE after a reset: Supervisor, A32, interrupts masked.
pub const RESET: u64 = Mode::Supervisor.bits() | bit::A | bit::I | bit::F;

/// PC and PSTATE of a processor that CPU_ON starts at `entry`: bit 0 asks for T32 (DEN 0022, 6.4).
pub const fn start(entry: u64, big_endian: bool) -> (u64, u64) {
    let endian = if big_endian { psr::E } else { 0 };
    if entry & 1 != 0 {
        (entry & WORD & !1, RESET | psr::T | endian)
    } else {
        (entry & WORD, RESET | endian)
    }
}

/// Process state as SPSR_EL2 has it, in the layout of SPSR_\<mode\>.
pub const fn spsr(pstate: u64) -> u64 {
    let dit = if pstate & bit::DIT != 0 { psr::DIT } else { 0 };
    pstate & WORD & !(bit::DIT | bit::SS) | dit
}

/// What is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// An undefined instruction.
    Undefined,
    /// A synchronous external abort of a fetch from `far`, or of a walk at that level.
    PrefetchAbort {
        /// For IFAR.
        far: u64,
        /// Of the walk.
        walk: Option<i8>,
    },
    /// The same of an access to `far`.
    DataAbort {
        /// For DFAR.
        far: u64,
        /// Of the walk.
        walk: Option<i8>,
    },
}

/// What of the guest's state decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// PC
    pub pc: u64,
    /// PSTATE
    pub pstate: u64,
    /// VBAR
    pub vbar: u64,
    /// SCTLR
    pub sctlr: u64,
    /// TTBCR: the lower half of TCR_EL1
    pub ttbcr: u64,
    /// FAR_EL1: DFAR below, IFAR above
    pub far: u64,
}

/// The state afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// PC
    pub pc: u64,
    /// PSTATE
    pub pstate: u64,
    /// Which register is the new mode's LR, and its value.
    pub lr: (Gpr, u64),
    /// The new mode, whose SPSR this is.
    pub spsr: (Mode, u64),
    /// DFSR, which is ESR_EL1.
    pub dfsr: Option<u64>,
    /// IFSR
    pub ifsr: Option<u64>,
    /// FAR_EL1
    pub far: u64,
}

/// DFSR or IFSR of a synchronous external abort.
const fn status(ttbcr: u64, walk: Option<i8>) -> u64 {
    if ttbcr & EAE != 0 {
        return LPAE
            | match walk {
                None => 0x10,
                Some(1) => 0x15,
                Some(2) => 0x16,
                Some(_) => 0x17,
            };
    }
    match walk {
        None => 0x08,
        Some(1) => 0x0c,
        Some(_) => 0x0e,
    }
}

impl Context {
    /// Takes `e` to EL1.
    pub const fn take(&self, e: &Exception) -> Taken {
        let thumb = self.pstate & psr::T != 0;
        // G1, "Processor state on exception entry": the offsets of vectors and of link registers.
        let (mode, vector, offset) = match e {
            Exception::Undefined => (Mode::Undefined, 0x04, if thumb { 2 } else { 4 }),
            Exception::PrefetchAbort { .. } => (Mode::Abort, 0x0c, 4),
            Exception::DataAbort { .. } => (Mode::Abort, 0x10, 8),
        };
        let base = if self.sctlr & sctlr::V != 0 {
            0xffff_0000
        } else {
            self.vbar & WORD & !0x1f
        };
        const KEPT: u64 =
            bit::NZCV | psr::Q | psr::GE | bit::DIT | bit::PAN | bit::A | bit::I | bit::F;
        let mut pstate = self.pstate & KEPT | mode.bits() | bit::I;
        if matches!(mode, Mode::Abort) {
            pstate |= bit::A;
        }
        if self.sctlr & sctlr::TE != 0 {
            pstate |= psr::T;
        }
        if self.sctlr & sctlr::EE != 0 {
            pstate |= psr::E;
        }
        if self.sctlr & sctlr::SPAN == 0 {
            pstate |= bit::PAN;
        }
        if self.sctlr & sctlr::DSSBS != 0 {
            pstate |= psr::SSBS;
        }
        let (mut dfsr, mut ifsr, mut all) = (None, None, self.far);
        match *e {
            Exception::Undefined => {}
            Exception::PrefetchAbort { far, walk } => {
                ifsr = Some(status(self.ttbcr, walk));
                all = all & WORD | (far & WORD) << 32;
            }
            Exception::DataAbort { far, walk } => {
                dfsr = Some(status(self.ttbcr, walk));
                all = all & !WORD | far & WORD;
            }
        }
        Taken {
            pc: base + vector,
            pstate,
            lr: (mode.view(14), self.pc.wrapping_add(offset) & WORD),
            spsr: (mode, spsr(self.pstate)),
            dfsr,
            ifsr,
            far: all,
        }
    }
}
