// SPDX-License-Identifier: GPL-2.0

//! The shape of the opcode tables.

use super::mnemonic::Mnemonic;
use super::types::Opnd;

/// Not in 64-bit mode.
pub(super) const NO64: u16 = 1 << 0;
/// Operand size in 64-bit mode is 64 bits, or 16 with an operand-size prefix.
pub(super) const D64: u16 = 1 << 1;
/// A near branch: as [`D64`] on AMD; on Intel 64 bits whatever the prefix says.
pub(super) const F64: u16 = 1 << 2;
/// LOCK is allowed when ModRM.rm is memory.
pub(super) const LOCK: u16 = 1 << 3;
/// A ModRM byte follows although no operand names it.
pub(super) const MODRM: u16 = 1 << 4;
/// An immediate byte follows although no operand names it.
pub(super) const IMM8: u16 = 1 << 5;
/// Memory form only (ModRM.mod is not 3).
pub(super) const MEM: u16 = 1 << 6;
/// Register form only (ModRM.mod is 3).
pub(super) const REG: u16 = 1 << 7;
/// `group` numbers a table of eight entries, chosen by ModRM.reg.
pub(super) const GROUP: u16 = 1 << 8;
/// `group` numbers a table of four entries, chosen by the last of 66, F3, F2 (F3 and F2 win).
pub(super) const BYPP: u16 = 1 << 9;
/// Handled by code: `special` in the decoder.
pub(super) const SPECIAL: u16 = 1 << 10;
/// Operand size is 64 bits in 64-bit mode, whatever the prefixes say, and else 32.
pub(super) const NATIVE: u16 = 1 << 11;
/// A mandatory 66 chose the entry: it is no operand-size prefix.
pub(super) const NO66: u16 = 1 << 12;

/// One opcode.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) mnemonic: Mnemonic,
    pub(super) ops: [Opnd; 3],
    pub(super) flags: u16,
    pub(super) group: u8,
}

impl Entry {
    /// Adds flags.
    pub(super) const fn f(mut self, flags: u16) -> Entry {
        self.flags |= flags;
        self
    }

    /// Whether a ModRM byte follows.
    pub(super) const fn has_modrm(&self) -> bool {
        self.flags & (MODRM | GROUP) != 0
            || self.ops[0].in_modrm()
            || self.ops[1].in_modrm()
            || self.ops[2].in_modrm()
    }

    /// Whether only the memory form exists.
    pub(super) const fn memory_only(&self) -> bool {
        self.flags & MEM != 0
            || self.ops[0].memory_only()
            || self.ops[1].memory_only()
            || self.ops[2].memory_only()
    }
}

/// No such opcode.
pub(super) const BAD: Entry = e0(Mnemonic::Invalid);

/// An entry without operands.
pub(super) const fn e0(mnemonic: Mnemonic) -> Entry {
    e3(mnemonic, Opnd::None, Opnd::None, Opnd::None)
}

/// An entry with one operand.
pub(super) const fn e1(mnemonic: Mnemonic, a: Opnd) -> Entry {
    e3(mnemonic, a, Opnd::None, Opnd::None)
}

/// An entry with two operands.
pub(super) const fn e2(mnemonic: Mnemonic, a: Opnd, b: Opnd) -> Entry {
    e3(mnemonic, a, b, Opnd::None)
}

/// An entry with three operands.
pub(super) const fn e3(mnemonic: Mnemonic, a: Opnd, b: Opnd, c: Opnd) -> Entry {
    Entry {
        mnemonic,
        ops: [a, b, c],
        flags: 0,
        group: 0,
    }
}

/// An opcode whose ModRM.reg chooses the instruction; entries of the group without operands of
/// their own take these.
pub(super) const fn grp(group: u8, a: Opnd, b: Opnd) -> Entry {
    Entry {
        mnemonic: Mnemonic::Invalid,
        ops: [a, b, Opnd::None],
        flags: GROUP,
        group,
    }
}

/// An opcode whose mandatory prefix chooses the instruction.
pub(super) const fn bypp(group: u8) -> Entry {
    Entry {
        mnemonic: Mnemonic::Invalid,
        ops: [Opnd::None; 3],
        flags: BYPP,
        group,
    }
}

/// An opcode that code decodes.
pub(super) const fn special(flags: u16) -> Entry {
    Entry {
        mnemonic: Mnemonic::Invalid,
        ops: [Opnd::None; 3],
        flags: SPECIAL | flags,
        group: 0,
    }
}
