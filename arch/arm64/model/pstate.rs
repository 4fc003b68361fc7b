// SPDX-License-Identifier: GPL-2.0

//! Process state, in the layout that SPSR_ELx and user space have it.
//!
//! Arm ARM (DDI 0487), D24.2: SPSR_EL2 (its two layouts), D1.4 (process state).

use super::aarch32;

/// Bits of the layout for AArch64.
pub mod bit {
    /// N, Z, C and V; the same place in both layouts
    pub const NZCV: u64 = 0xf << 28;
    /// Tag check override
    pub const TCO: u64 = 1 << 25;
    /// Data-independent timing; the same place in both layouts
    pub const DIT: u64 = 1 << 24;
    /// User access override
    pub const UAO: u64 = 1 << 23;
    /// Privileged access never; the same place in both layouts
    pub const PAN: u64 = 1 << 22;
    /// Software step; the same place in both layouts
    pub const SS: u64 = 1 << 21;
    /// Illegal execution state; the same place in both layouts
    pub const IL: u64 = 1 << 20;
    /// All interrupts masked
    pub const ALLINT: u64 = 1 << 13;
    /// Speculative store bypass safe
    pub const SSBS: u64 = 1 << 12;
    /// Branch type
    pub const BTYPE: u64 = 3 << 10;
    /// Debug exceptions masked
    pub const D: u64 = 1 << 9;
    /// SError masked; the same place in both layouts
    pub const A: u64 = 1 << 8;
    /// IRQ masked; the same place in both layouts
    pub const I: u64 = 1 << 7;
    /// FIQ masked; the same place in both layouts
    pub const F: u64 = 1 << 6;
    /// AArch32: the layout is the other one
    pub const AARCH32: u64 = 1 << 4;
    /// M\[4:0\]
    pub const MODE: u64 = 0x1f;
}

/// Bits of the layout for AArch32 that matter here.
mod bit32 {
    /// T32 instructions
    pub(super) const T: u64 = 1 << 5;
    /// Big-endian data
    pub(super) const E: u64 = 1 << 9;
    /// IT\[7:2\] in 15:10, IT\[1:0\] in 26:25
    pub(super) const IT: u64 = 0x3f << 10 | 3 << 25;
}

/// SCTLR_EL1.EE: data is big-endian at EL1.
pub const SCTLR_EE: u64 = 1 << 25;

/// PSTATE after a reset: EL1h, all masked.
pub const RESET: u64 = bit::D | bit::A | bit::I | bit::F | 5;

/// Where a guest runs whose EL1 is AArch64; [`aarch32::Mode`] has the others. There is no EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// EL0
    El0,
    /// EL1 on EL0's stack pointer
    El1t,
    /// EL1 on its own stack pointer
    El1h,
    /// EL0 in AArch32
    User32,
}

impl Mode {
    /// By M\[4:0\]; `None` for one that guests do not have.
    pub const fn of(pstate: u64) -> Option<Mode> {
        match pstate & bit::MODE {
            0b0_0000 => Some(Mode::El0),
            0b0_0100 => Some(Mode::El1t),
            0b0_0101 => Some(Mode::El1h),
            0b1_0000 => Some(Mode::User32),
            _ => None,
        }
    }

    /// EL0 of either kind.
    pub const fn is_el0(self) -> bool {
        matches!(self, Mode::El0 | Mode::User32)
    }
}

/// User space may set it: a mode that this guest has. `aarch32_el0`: the processors run AArch32 at EL0;
/// `aarch32_el1`: this guest's EL1 is AArch32.
pub const fn valid(pstate: u64, aarch32_el0: bool, aarch32_el1: bool) -> bool {
    match (Mode::of(pstate), aarch32::Mode::of(pstate)) {
        (Some(Mode::User32), _) => aarch32_el0,
        (Some(_), _) => !aarch32_el1,
        (None, Some(_)) => aarch32_el1,
        (None, None) => false,
    }
}

/// BigEndian(): data is big-endian, by PSTATE.E in AArch32, else by SCTLR_EL1.E0E or EE.
pub const fn big_endian(pstate: u64, sctlr: u64) -> bool {
    const E0E: u64 = 1 << 24;
    if pstate & bit::AARCH32 != 0 {
        return pstate & bit32::E != 0;
    }
    match Mode::of(pstate) {
        Some(Mode::El0) => sctlr & E0E != 0,
        _ => sctlr & SCTLR_EE != 0,
    }
}

/// Steps over an instruction that was emulated: the new PC and PSTATE. `long` is ESR_ELx.IL. A pending software
/// step is done with it.
pub const fn step_over(pc: u64, pstate: u64, long: bool) -> (u64, u64) {
    if pstate & bit::AARCH32 == 0 {
        return (pc.wrapping_add(4), pstate & !(bit::BTYPE | bit::SS));
    }
    let size = if pstate & bit32::T != 0 && !long {
        2
    } else {
        4
    };
    let pc = pc.wrapping_add(size) & 0xffff_ffff;
    (pc, it_advance(pstate) & !bit::SS)
}

/// AArch32.ITAdvance(): within an IT block, the state of the next instruction.
const fn it_advance(pstate: u64) -> u64 {
    let it = pstate >> 8 & 0xfc | pstate >> 25 & 3;
    let next = if it & 7 == 0 {
        0
    } else {
        it & 0xe0 | it << 1 & 0x1f
    };
    pstate & !bit32::IT | (next & 0xfc) << 8 | (next & 3) << 25
}
