// SPDX-License-Identifier: GPL-2.0

//! What the decoder speaks of: modes, prefixes, operand kinds, memory references, and the decoded
//! instruction itself.

use super::super::regs::{
    Gpr,
    Seg, //
};
use super::mnemonic::{
    Mnemonic,
    VecMove, //
};

/// The longest instruction that a processor accepts, in bytes (APM vol. 3 1.1; SDM vol. 2A 2.3.11).
pub const MAX_LEN: usize = 15;

/// Default width of code: CS.D and CS.L with EFER.LMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16-bit code: real mode, virtual-8086 mode, CS.D = 0.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// Whose rules hold where the two manuals differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD (and Hygon): an operand-size prefix makes near branches 16-bit in 64-bit mode.
    Amd,
    /// Intel (and Zhaoxin): near branches are 64-bit there, whatever the prefixes.
    Intel,
}

/// In what surroundings bytes are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Default width of code.
    pub width: Width,
    /// Whose rules hold.
    pub vendor: Vendor,
}

impl Mode {
    /// A mode of `width` by the rules of `vendor`.
    pub const fn new(width: Width, vendor: Vendor) -> Mode {
        Mode { width, vendor }
    }

    /// Whether this is 64-bit code.
    #[inline]
    pub const fn is_64(self) -> bool {
        matches!(self.width, Width::Bits64)
    }
}

/// Why bytes have no decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the instruction does: fetch more and decode again.
    NeedMore,
    /// No such instruction: #UD.
    Invalid,
    /// Longer than [`MAX_LEN`]: #GP(0).
    TooLong,
    /// An encoding space that this decoder does not know.
    Unsupported,
}

/// The last of F2 and F3 that stands before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "the prefixes' own names")]
pub enum Rep {
    /// Neither.
    None,
    /// F3: REP, REPE.
    Rep,
    /// F2: REPNE.
    Repne,
}

/// The prefixes that stand before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// F0.
    pub lock: bool,
    /// The last of F2 and F3.
    pub rep: Rep,
    /// 66.
    pub opsize: bool,
    /// 67.
    pub addrsize: bool,
    /// The segment override in force; in 64-bit mode only FS and GS count.
    pub seg: Option<Seg>,
    /// REX, 0x40 to 0x4f, or 0 when there is none.
    pub rex: u8,
}

impl Prefixes {
    pub(super) const NONE: Prefixes = Prefixes {
        lock: false,
        rep: Rep::None,
        opsize: false,
        addrsize: false,
        seg: None,
        rex: 0,
    };

    /// REX.W.
    #[inline]
    pub const fn w(self) -> bool {
        self.rex & 8 != 0
    }

    /// The mandatory-prefix column of SIMD tables: none 0, 66 1, F3 2, F2 3.
    #[inline]
    pub(super) const fn pp(self) -> u8 {
        match self.rep {
            Rep::Rep => 2,
            Rep::Repne => 3,
            Rep::None => self.opsize as u8,
        }
    }
}

/// VEX fields (APM vol. 3 1.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vex {
    /// VEX.L: 256-bit.
    pub l: bool,
    /// VEX.W.
    pub w: bool,
    /// The extra source register, already complemented (0 when unused).
    pub vvvv: u8,
}

/// Kinds of operands, by the letters of the manuals' opcode maps where these have one (APM vol. 3
/// appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opnd {
    /// No operand.
    None,
    /// ModRM.rm, 8 bits.
    Eb,
    /// ModRM.rm, 16 bits.
    Ew,
    /// ModRM.rm, 32 bits.
    Ed,
    /// ModRM.rm, operand size.
    Ev,
    /// ModRM.rm, 64 bits with REX.W and else 32.
    Ey,
    /// ModRM.rm: a register of operand size, or 16 bits of memory (SLDT, MOV Ev,Sw).
    Evw,
    /// ModRM.rm, memory only, no size of its own.
    M,
    /// ModRM.rm, memory only, operand size.
    Mv,
    /// ModRM.rm, memory only, 64 bits with REX.W and else 32.
    My,
    /// ModRM.rm, memory only, a far pointer of operand size.
    Mp,
    /// ModRM.rm, memory only, the image of a descriptor-table register.
    Ms,
    /// ModRM.rm as a general register whatever ModRM.mod says, 64 bits in 64-bit mode and else 32.
    Rr,
    /// ModRM.rm, register only.
    R,
    /// ModRM.reg, 8 bits.
    Gb,
    /// ModRM.reg, operand size.
    Gv,
    /// ModRM.reg, 64 bits with REX.W and else 32.
    Gy,
    /// VEX.vvvv, 64 bits with VEX.W and else 32.
    By,
    /// ModRM.reg as a segment register.
    Sw,
    /// ModRM.reg as a control register.
    Cd,
    /// ModRM.reg as a debug register.
    Dd,
    /// Opcode bits 2:0 with REX.B, 8 bits.
    Zb,
    /// Opcode bits 2:0 with REX.B, operand size.
    Zv,
    /// AL.
    Al,
    /// AX, EAX or RAX by operand size.
    Ax,
    /// CL.
    Cl,
    /// DX.
    Dx,
    /// The constant 1.
    One,
    /// Opcode bits 5:3 as a segment register.
    Zs,
    /// An immediate byte, zero extended.
    Ib,
    /// An immediate byte, sign extended.
    Ibs,
    /// An immediate word.
    Iw,
    /// An immediate of operand size, at most 32 bits, sign extended.
    Iz,
    /// An immediate of operand size, up to 64 bits.
    Iv,
    /// A branch displacement of a byte.
    Jb,
    /// A branch displacement of operand size, at most 32 bits.
    Jz,
    /// A far pointer in the instruction.
    Ap,
    /// A byte at an absolute offset.
    Ob,
    /// An operand of operand size at an absolute offset.
    Ov,
    /// ModRM.reg as a vector register.
    Vx,
    /// ModRM.rm as a vector register, or memory of the move's size.
    Wx,
}

impl Opnd {
    /// Whether the operand stands in a ModRM byte.
    pub(super) const fn in_modrm(self) -> bool {
        matches!(
            self,
            Opnd::Eb
                | Opnd::Ew
                | Opnd::Ed
                | Opnd::Ev
                | Opnd::Ey
                | Opnd::Evw
                | Opnd::M
                | Opnd::Mv
                | Opnd::My
                | Opnd::Mp
                | Opnd::Ms
                | Opnd::Rr
                | Opnd::R
                | Opnd::Gb
                | Opnd::Gv
                | Opnd::Gy
                | Opnd::Sw
                | Opnd::Cd
                | Opnd::Dd
                | Opnd::Vx
                | Opnd::Wx
        )
    }

    /// Whether the operand must be memory.
    pub(super) const fn memory_only(self) -> bool {
        matches!(self, Opnd::M | Opnd::Mv | Opnd::My | Opnd::Mp | Opnd::Ms)
    }

    /// Whether the operand is ModRM.rm, which may be memory.
    pub const fn is_rm(self) -> bool {
        matches!(
            self,
            Opnd::Eb
                | Opnd::Ew
                | Opnd::Ed
                | Opnd::Ev
                | Opnd::Ey
                | Opnd::Evw
                | Opnd::M
                | Opnd::Mv
                | Opnd::My
                | Opnd::Mp
                | Opnd::Ms
                | Opnd::R
                | Opnd::Wx
        )
    }
}

/// A memory operand: `seg:[base + (index << scale) + disp]`, cut to the address size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRef {
    /// The segment in force: the override, else the default of the base register.
    pub seg: Seg,
    /// The base register.
    pub base: Option<Gpr>,
    /// The index register.
    pub index: Option<Gpr>,
    /// Left shift of the index, 0 to 3.
    pub scale: u8,
    /// The base is the address of the next instruction (64-bit mode).
    pub rip_relative: bool,
    /// The displacement, sign extended; for absolute offsets (MOV with Ob, Ov) the offset.
    pub disp: i64,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// What it does.
    pub mnemonic: Mnemonic,
    /// Its length in bytes, 1 to 15.
    pub len: u8,
    /// Operand size in bytes: 2, 4 or 8. 8-bit forms have 8-bit operand kinds.
    pub opsize: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub addrsize: u8,
    /// The prefixes before it.
    pub prefixes: Prefixes,
    /// The last opcode byte (its low bits are the condition of Jcc, SETcc, CMOVcc).
    pub opcode: u8,
    /// The ModRM byte, or 0 when there is none.
    pub modrm: u8,
    /// The operands, destination first.
    pub ops: [Opnd; 3],
    /// The memory operand, when there is one.
    pub mem: Option<MemRef>,
    /// The immediate, extended as its kind says; for branches the displacement; for a far pointer
    /// the offset.
    pub imm: i64,
    /// The second immediate: the level of ENTER, the selector of a far pointer.
    pub imm2: u16,
    /// VEX fields, when the encoding is VEX.
    pub vex: Option<Vex>,
    /// What the move is, for [`Mnemonic::VecMov`].
    pub vec: Option<VecMove>,
}

impl Insn {
    /// ModRM.reg with REX.R or VEX.R.
    #[inline]
    pub const fn reg(&self) -> u8 {
        (self.modrm >> 3 & 7) | (self.prefixes.rex & 4) << 1
    }

    /// ModRM.rm with REX.B or VEX.B, for register operands.
    #[inline]
    pub const fn rm(&self) -> u8 {
        (self.modrm & 7) | (self.prefixes.rex & 1) << 3
    }

    /// Opcode bits 2:0 with REX.B.
    #[inline]
    pub const fn opreg(&self) -> u8 {
        (self.opcode & 7) | (self.prefixes.rex & 1) << 3
    }

    /// Opcode bits 3:0: the condition of Jcc, SETcc, CMOVcc.
    #[inline]
    pub const fn cond(&self) -> u8 {
        self.opcode & 15
    }

    /// Whether all that it does to memory is to access its memory operand, once or to read it and
    /// write it back. False may be said of one that does no more either.
    pub const fn has_one_access(&self) -> bool {
        use Mnemonic::*;
        self.mem.is_some()
            && matches!(
                self.mnemonic,
                Adc | Add
                    | And
                    | Bt
                    | Btc
                    | Btr
                    | Bts
                    | Cmov
                    | Cmp
                    | Cmpxchg
                    | Dec
                    | Inc
                    | Mov
                    | Movbe
                    | Movnti
                    | Movsx
                    | Movsxd
                    | Movzx
                    | Neg
                    | Not
                    | Or
                    | Sbb
                    | Set
                    | Sub
                    | Test
                    | VecMov
                    | Xadd
                    | Xchg
                    | Xor
            )
    }

    /// Size in bytes of an operand, 0 when its kind has none.
    #[inline]
    pub const fn size(&self, op: Opnd) -> u8 {
        match op {
            Opnd::Eb
            | Opnd::Gb
            | Opnd::Zb
            | Opnd::Al
            | Opnd::Cl
            | Opnd::Ib
            | Opnd::Ob
            | Opnd::One => 1,
            Opnd::Ew | Opnd::Iw | Opnd::Sw | Opnd::Zs | Opnd::Dx => 2,
            Opnd::Ed => 4,
            Opnd::Ev
            | Opnd::Mv
            | Opnd::Gv
            | Opnd::Zv
            | Opnd::Ax
            | Opnd::Ibs
            | Opnd::Iz
            | Opnd::Iv
            | Opnd::Ov
            | Opnd::Jb
            | Opnd::Jz => self.opsize,
            Opnd::Evw => {
                if self.mem.is_some() {
                    2
                } else {
                    self.opsize
                }
            }
            Opnd::Ey | Opnd::My | Opnd::Gy | Opnd::By => {
                if self.prefixes.w() {
                    8
                } else {
                    4
                }
            }
            _ => 0,
        }
    }
}
