// SPDX-License-Identifier: GPL-2.0

//! The x86 instruction decoder: from bytes to an [`Insn`].
//!
//! Driven by tables over the opcode maps. It knows the length and the validity of every
//! instruction of the legacy, SSE and VEX encodings, and the operands of those that the emulator
//! executes; the rest decodes to [`Mnemonic::Other`]. Instructions that processors dropped (3DNow!,
//! XOP, FMA4, MPX as such) are invalid, as they are on what runs this module.
//!
//! Sources: AMD APM vol. 3 (24594) chapter 1 and appendix A; Intel SDM vol. 2A chapter 2, vol. 2D
//! appendix A.

mod cursor;
mod entry;
mod groups;
mod length;
mod mnemonic;
mod one_byte;
mod simd;
mod special;
mod two_byte;
mod types;
mod vecmov;
mod vex;
mod vex_forms;

pub use length::length_of;
pub use mnemonic::{
    Mnemonic,
    VecMove, //
};
pub use types::{
    DecodeError,
    Insn,
    MemRef,
    Mode,
    Opnd,
    Prefixes,
    Rep,
    Vendor,
    Vex,
    Width,
    MAX_LEN, //
};

use super::regs::{
    Gpr,
    Seg, //
};
use cursor::Cursor;
use entry::*;
use simd::Map;

/// Decodes the instruction at the start of `bytes`.
///
/// `bytes` may hold more than the instruction; bytes past the 15th are never looked at.
///
/// # Errors
///
/// See [`DecodeError`]. An instruction that is known to be invalid from its first bytes gives
/// `Invalid` though later bytes are missing.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    let mut c = Cursor::new(bytes);
    let (prefixes, opcode) = prefixes(&mut c, mode)?;
    let mut d = Decoder {
        c,
        mode,
        insn: blank(prefixes, opcode, mode),
    };
    d.run()?;
    d.insn.len = d.c.len();
    Ok(d.insn)
}

/// The state of one decoding.
struct Decoder<'a> {
    c: Cursor<'a>,
    mode: Mode,
    insn: Insn,
}

fn blank(prefixes: Prefixes, opcode: u8, mode: Mode) -> Insn {
    let (opsize, addrsize) = match mode.width {
        Width::Bits16 => (
            if prefixes.opsize { 4 } else { 2 },
            if prefixes.addrsize { 4 } else { 2 },
        ),
        Width::Bits32 => (
            if prefixes.opsize { 2 } else { 4 },
            if prefixes.addrsize { 2 } else { 4 },
        ),
        Width::Bits64 => (
            match (prefixes.w(), prefixes.opsize) {
                (true, _) => 8,
                (false, true) => 2,
                (false, false) => 4,
            },
            if prefixes.addrsize { 4 } else { 8 },
        ),
    };
    Insn {
        mnemonic: Mnemonic::Other,
        len: 0,
        opsize,
        addrsize,
        prefixes,
        opcode,
        modrm: 0,
        ops: [Opnd::None; 3],
        mem: None,
        imm: 0,
        imm2: 0,
        vex: None,
        vec: None,
    }
}

/// Takes prefixes and the first opcode byte.
fn prefixes(c: &mut Cursor<'_>, mode: Mode) -> Result<(Prefixes, u8), DecodeError> {
    let mut p = Prefixes::NONE;
    loop {
        let b = c.u8()?;
        let is_64 = mode.is_64();
        let rex = p.rex;
        p.rex = 0;
        match b {
            0x66 => p.opsize = true,
            0x67 => p.addrsize = true,
            0xf0 => p.lock = true,
            0xf2 => p.rep = Rep::Repne,
            0xf3 => p.rep = Rep::Rep,
            0x26 | 0x2e | 0x36 | 0x3e if is_64 => {}
            0x26 => p.seg = Some(Seg::Es),
            0x2e => p.seg = Some(Seg::Cs),
            0x36 => p.seg = Some(Seg::Ss),
            0x3e => p.seg = Some(Seg::Ds),
            0x64 => p.seg = Some(Seg::Fs),
            0x65 => p.seg = Some(Seg::Gs),
            0x40..=0x4f if is_64 => p.rex = b,
            _ => {
                p.rex = rex;
                return Ok((p, b));
            }
        }
    }
}

impl Decoder<'_> {
    fn run(&mut self) -> Result<(), DecodeError> {
        match self.insn.opcode {
            0x0f => self.escape(),
            0xc4 | 0xc5 if self.is_vex()? => vex::decode_vex(self),
            0x62 if self.is_vex()? => vex::decode_evex(self),
            op => self.entry(one_byte::ONE_BYTE[usize::from(op)]),
        }
    }

    /// Outside 64-bit mode C4, C5 and 62 are VEX and EVEX only where the old instruction would
    /// have a register operand, which it cannot have.
    fn is_vex(&self) -> Result<bool, DecodeError> {
        Ok(self.mode.is_64() || self.c.peek()? >= 0xc0)
    }

    fn escape(&mut self) -> Result<(), DecodeError> {
        let op = self.c.u8()?;
        self.insn.opcode = op;
        match op {
            0x38 => self.map_0f38(),
            0x3a => self.map_0f3a(),
            _ => {
                let e = two_byte::TWO_BYTE[usize::from(op)];
                if e.mnemonic == Mnemonic::Invalid && e.flags == 0 {
                    self.simd(Map::M0f)
                } else {
                    self.entry(e)
                }
            }
        }
    }

    fn map_0f38(&mut self) -> Result<(), DecodeError> {
        let op = self.c.u8()?;
        self.insn.opcode = op;
        match op {
            0x82 => self.entry(bypp(groups::P_3882)),
            0xf0 => self.entry(bypp(groups::P_38F0)),
            0xf1 => self.entry(bypp(groups::P_38F1)),
            0xf6 => self.entry(bypp(groups::P_38F6)),
            _ => self.simd(Map::M0f38),
        }
    }

    fn map_0f3a(&mut self) -> Result<(), DecodeError> {
        self.insn.opcode = self.c.u8()?;
        self.simd(Map::M0f3a)
    }

    /// An opcode of the SIMD tables.
    fn simd(&mut self, map: Map) -> Result<(), DecodeError> {
        let op = self.insn.opcode;
        let pp = self.insn.prefixes.pp();
        let (mem, reg) = simd::forms(map, op, pp);
        if !mem && !reg || self.insn.prefixes.lock {
            return Err(DecodeError::Invalid);
        }
        if simd::no_modrm(map, op) {
            return Ok(());
        }
        self.modrm()?;
        let is_mem = self.insn.mem.is_some();
        if (is_mem && !mem) || (!is_mem && !reg) {
            return Err(DecodeError::Invalid);
        }
        if map == Map::M0f && matches!(op, 0x71..=0x73) {
            let regs = simd::shift_group(op, pp);
            if regs >> (self.insn.modrm >> 3 & 7) & 1 == 0 {
                return Err(DecodeError::Invalid);
            }
        }
        // EXTRQ and the AES instructions on wide registers extend their opcode by ModRM.reg.
        let reg = self.insn.modrm >> 3 & 7;
        if (map == Map::M0f && op == 0x78 && pp == 1 && reg != 0)
            || (map == Map::M0f38 && op == 0xd8 && reg > 3)
        {
            return Err(DecodeError::Invalid);
        }
        if let Some((v, ops)) = vecmov::find(map, op, pp, self.insn.prefixes.w(), None, is_mem) {
            self.insn.mnemonic = Mnemonic::VecMov;
            self.insn.ops = ops;
            self.insn.vec = Some(v);
        }
        self.c.skip(simd::imm_bytes(map, op, pp))
    }

    /// An opcode of the integer tables.
    fn entry(&mut self, e: Entry) -> Result<(), DecodeError> {
        let e = if e.flags & BYPP != 0 {
            let pp = usize::from(self.insn.prefixes.pp());
            groups::BY_PREFIX[usize::from(e.group & 7)][pp & 3]
        } else {
            e
        };
        let mut have_modrm = false;
        if e.flags & SPECIAL != 0 {
            if e.flags & MODRM != 0 {
                // Which instruction it is hangs on ModRM, which only the memory form goes beyond.
                self.insn.modrm = self.c.peek()?;
            }
            let e = special::lookup(&self.insn, self.mode)?;
            return self.finish(e, have_modrm);
        }
        let e = if e.flags & GROUP != 0 {
            have_modrm = true;
            self.insn.modrm = self.c.peek()?;
            special::group(&self.insn, e)
        } else {
            e
        };
        if e.mnemonic == Mnemonic::Invalid {
            return Err(DecodeError::Invalid);
        }
        self.finish(e, have_modrm)
    }

    /// Takes ModRM, displacement and immediates as `e` says.
    fn finish(&mut self, e: Entry, have_modrm: bool) -> Result<(), DecodeError> {
        if e.mnemonic == Mnemonic::Invalid || (e.flags & NO64 != 0 && self.mode.is_64()) {
            return Err(DecodeError::Invalid);
        }
        self.insn.mnemonic = e.mnemonic;
        self.insn.ops = e.ops;
        self.operand_size(e.flags);
        if have_modrm || e.has_modrm() {
            if e.ops[0] == Opnd::Rr || e.ops[1] == Opnd::Rr {
                self.insn.modrm = self.c.u8()?;
            } else {
                self.modrm()?;
            }
            let is_mem = self.insn.mem.is_some();
            if (e.memory_only() && !is_mem) || (e.flags & REG != 0 && is_mem) {
                return Err(DecodeError::Invalid);
            }
            self.check_reg()?;
        }
        if self.insn.prefixes.lock && !(e.flags & LOCK != 0 && self.insn.mem.is_some()) {
            self.lock_without_memory()?;
        }
        for op in e.ops {
            self.immediate(op)?;
        }
        if e.flags & IMM8 != 0 {
            self.c.skip(1)?;
        }
        Ok(())
    }

    fn operand_size(&mut self, flags: u16) {
        let p = self.insn.prefixes;
        let is_64 = self.mode.is_64();
        if flags & NATIVE != 0 {
            self.insn.opsize = if is_64 { 8 } else { 4 };
        } else if flags & NO66 != 0 && p.opsize && !p.w() {
            self.insn.opsize = match self.mode.width {
                Width::Bits16 => 2,
                _ => 4,
            };
        } else if is_64 && flags & (D64 | F64) != 0 {
            let ignored = flags & F64 != 0 && self.mode.vendor == Vendor::Intel;
            self.insn.opsize = if p.opsize && !p.w() && !ignored { 2 } else { 8 };
        }
    }

    /// LOCK where it is not allowed: #UD, but AMD made it a way to name CR8 outside 64-bit mode.
    fn lock_without_memory(&mut self) -> Result<(), DecodeError> {
        match self.insn.mnemonic {
            Mnemonic::MovFromCr | Mnemonic::MovToCr
                if self.mode.vendor == Vendor::Amd && self.insn.reg() == 0 =>
            {
                // REX.R is what numbers it 8.
                self.insn.prefixes.rex |= 4;
                Ok(())
            }
            _ => Err(DecodeError::Invalid),
        }
    }

    /// Registers that ModRM.reg can name but that do not exist.
    fn check_reg(&self) -> Result<(), DecodeError> {
        let reg = self.insn.reg();
        let ok = match self.insn.mnemonic {
            Mnemonic::MovFromCr | Mnemonic::MovToCr => matches!(reg, 0 | 2 | 3 | 4 | 8),
            Mnemonic::MovFromDr | Mnemonic::MovToDr => reg < 8,
            Mnemonic::MovFromSeg => reg & 7 < 6,
            Mnemonic::MovToSeg => reg & 7 < 6 && reg & 7 != 1,
            _ => true,
        };
        if ok {
            Ok(())
        } else {
            Err(DecodeError::Invalid)
        }
    }

    fn immediate(&mut self, op: Opnd) -> Result<(), DecodeError> {
        if op == Opnd::None || op.in_modrm() {
            return Ok(());
        }
        let opsize = self.insn.opsize;
        match op {
            Opnd::Ib if self.insn.mnemonic == Mnemonic::Enter => {
                self.insn.imm2 = u16::from(self.c.u8()?);
            }
            Opnd::Ib => self.insn.imm = i64::from(self.c.u8()?),
            Opnd::Ibs | Opnd::Jb => self.insn.imm = self.c.i8()?,
            Opnd::Iw => self.insn.imm = i64::from(self.c.u16()?),
            Opnd::Iz | Opnd::Jz if opsize == 2 => self.insn.imm = self.c.i16()?,
            Opnd::Iz | Opnd::Jz => self.insn.imm = self.c.i32()?,
            Opnd::Iv => {
                self.insn.imm = match opsize {
                    2 => self.c.i16()?,
                    4 => self.c.i32()?,
                    _ => self.c.i64()?,
                }
            }
            Opnd::Ap => {
                self.insn.imm = if opsize == 2 {
                    i64::from(self.c.u16()?)
                } else {
                    i64::from(self.c.u32()?)
                };
                self.insn.imm2 = self.c.u16()?;
            }
            Opnd::Ob | Opnd::Ov => {
                let disp = match self.insn.addrsize {
                    2 => i64::from(self.c.u16()?),
                    4 => i64::from(self.c.u32()?),
                    _ => self.c.i64()?,
                };
                self.insn.mem = Some(MemRef {
                    seg: self.insn.prefixes.seg.unwrap_or(Seg::Ds),
                    base: None,
                    index: None,
                    scale: 0,
                    rip_relative: false,
                    disp,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes ModRM, and SIB and displacement when ModRM.rm is memory.
    fn modrm(&mut self) -> Result<(), DecodeError> {
        let m = self.c.u8()?;
        self.insn.modrm = m;
        if m >= 0xc0 {
            return Ok(());
        }
        let mut r = if self.insn.addrsize == 2 {
            self.mem16(m)?
        } else {
            self.mem32(m)?
        };
        if let Some(seg) = self.insn.prefixes.seg {
            r.seg = seg;
        }
        self.insn.mem = Some(r);
        Ok(())
    }

    fn mem16(&mut self, m: u8) -> Result<MemRef, DecodeError> {
        use Gpr::{Rbp, Rbx, Rdi, Rsi};
        let (mut base, index) = match m & 7 {
            0 => (Some(Rbx), Some(Rsi)),
            1 => (Some(Rbx), Some(Rdi)),
            2 => (Some(Rbp), Some(Rsi)),
            3 => (Some(Rbp), Some(Rdi)),
            4 => (Some(Rsi), None),
            5 => (Some(Rdi), None),
            6 => (Some(Rbp), None),
            _ => (Some(Rbx), None),
        };
        let disp = match m >> 6 {
            0 if m & 7 == 6 => {
                base = None;
                self.c.i16()?
            }
            0 => 0,
            1 => self.c.i8()?,
            _ => self.c.i16()?,
        };
        Ok(MemRef {
            seg: if base == Some(Rbp) { Seg::Ss } else { Seg::Ds },
            base,
            index,
            scale: 0,
            rip_relative: false,
            disp,
        })
    }

    fn mem32(&mut self, m: u8) -> Result<MemRef, DecodeError> {
        let rex = self.insn.prefixes.rex;
        let md = m >> 6;
        let mut r = MemRef {
            seg: Seg::Ds,
            base: None,
            index: None,
            scale: 0,
            rip_relative: false,
            disp: 0,
        };
        let mut low = m & 7;
        if low == 4 {
            let sib = self.c.u8()?;
            low = sib & 7;
            let index = (sib >> 3 & 7) | (rex & 2) << 2;
            if index != 4 {
                r.index = Some(Gpr::from_low4(index));
            }
            r.scale = sib >> 6;
        } else if low == 5 && md == 0 && self.mode.is_64() {
            r.rip_relative = true;
        }
        if low == 5 && md == 0 {
            r.disp = self.c.i32()?;
            return Ok(r);
        }
        let base = Gpr::from_low4(low | (rex & 1) << 3);
        if matches!(base, Gpr::Rsp | Gpr::Rbp) {
            r.seg = Seg::Ss;
        }
        r.base = Some(base);
        r.disp = match md {
            0 => 0,
            1 => self.c.i8()?,
            _ => self.c.i32()?,
        };
        Ok(r)
    }
}
