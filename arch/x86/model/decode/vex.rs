// SPDX-License-Identifier: GPL-2.0

//! VEX and EVEX encodings (APM vol. 3 1.2.7 to 1.2.8; SDM vol. 2A 2.3, 2.7).

use super::mnemonic::Mnemonic::{
    self,
    *, //
};
use super::simd::{
    self,
    Map, //
};
use super::types::{
    DecodeError,
    Opnd::{
        self,
        By,
        Ey,
        Gy,
        Ib,
        M, //
    },
    Rep,
    Vex, //
};
use super::vex_forms::{
    exists,
    Form, //
};
use super::{
    vecmov,
    Decoder, //
};

/// The integer instructions with VEX encoding: map, opcode, mandatory prefix (none 0, 66 1, F3 2,
/// F2 3), ModRM.reg where it extends the opcode, operands. `By` is the register in VEX.vvvv.
type Row = (Map, u8, u8, Option<u8>, Mnemonic, [Opnd; 3]);

const INTEGER: &[Row] = &[
    (Map::M0f38, 0xf2, 0, None, Andn, [Gy, By, Ey]),
    (Map::M0f38, 0xf3, 0, Some(1), Blsr, [By, Ey, Opnd::None]),
    (Map::M0f38, 0xf3, 0, Some(2), Blsmsk, [By, Ey, Opnd::None]),
    (Map::M0f38, 0xf3, 0, Some(3), Blsi, [By, Ey, Opnd::None]),
    (Map::M0f38, 0xf5, 0, None, Bzhi, [Gy, Ey, By]),
    (Map::M0f38, 0xf5, 2, None, Pext, [Gy, By, Ey]),
    (Map::M0f38, 0xf5, 3, None, Pdep, [Gy, By, Ey]),
    (Map::M0f38, 0xf6, 3, None, Mulx, [Gy, By, Ey]),
    (Map::M0f38, 0xf7, 0, None, Bextr, [Gy, Ey, By]),
    (Map::M0f38, 0xf7, 1, None, Shlx, [Gy, Ey, By]),
    (Map::M0f38, 0xf7, 2, None, Sarx, [Gy, Ey, By]),
    (Map::M0f38, 0xf7, 3, None, Shrx, [Gy, Ey, By]),
    (Map::M0f3a, 0xf0, 3, None, Rorx, [Gy, Ey, Ib]),
    (
        Map::M0f,
        0xae,
        0,
        Some(2),
        Ldmxcsr,
        [M, Opnd::None, Opnd::None],
    ),
    (
        Map::M0f,
        0xae,
        0,
        Some(3),
        Stmxcsr,
        [M, Opnd::None, Opnd::None],
    ),
];

/// After C4 or C5.
pub(super) fn decode_vex(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let three = d.insn.opcode == 0xc4;
    let p = d.insn.prefixes;
    if p.lock || p.opsize || p.rep != Rep::None || p.rex != 0 {
        return Err(DecodeError::Invalid);
    }
    let b1 = d.c.u8()?;
    let (map, b2) = if three {
        (b1 & 0x1f, d.c.u8()?)
    } else {
        (1, b1)
    };
    let w = three && b2 & 0x80 != 0;
    let vvvv = (b2 >> 3 & 15) ^ 15;
    if d.mode.is_64() {
        // R, X, B and vvvv stand complemented.
        let xb = if three { (b1 >> 5 & 3) ^ 3 } else { 0 };
        let r = if b1 & 0x80 == 0 { 4 } else { 0 };
        d.insn.prefixes.rex = 0x40 | r | xb | if w { 8 } else { 0 };
    }
    let l = b2 & 4 != 0;
    let pp = b2 & 3;
    let map = match map {
        1 => Map::M0f,
        2 => Map::M0f38,
        3 => Map::M0f3a,
        _ => return Err(DecodeError::Invalid),
    };
    let opcode = d.c.u8()?;
    d.insn.opcode = opcode;
    d.insn.vex = Some(Vex { l, w, vvvv });
    if map == Map::M0f && opcode == 0x77 && pp == 0 {
        // VZEROUPPER, VZEROALL
        return if vvvv == 0 {
            Ok(())
        } else {
            Err(DecodeError::Invalid)
        };
    }
    let modrm = d.c.peek()?;
    let is_64 = d.mode.is_64();
    let r = d.insn.prefixes.rex & 4 != 0;
    if !exists(&Form {
        map,
        opcode,
        pp,
        modrm,
        l,
        w,
        vvvv,
        r,
        is_64,
        short_address: d.insn.addrsize == 2,
    }) {
        return Err(DecodeError::Invalid);
    }
    if !is_64 {
        // Eight registers: the field's high bit is not looked at where it names one.
        d.insn.vex = Some(Vex {
            l,
            w,
            vvvv: vvvv & 7,
        });
    }
    d.modrm()?;
    let is_mem = d.insn.mem.is_some();
    // VEX.W widens a general register in 64-bit mode only.
    let wide = d.insn.prefixes.w();
    if let Some((v, ops)) = vecmov::find(map, opcode, pp, wide, Some((l, vvvv)), is_mem) {
        d.insn.mnemonic = VecMov;
        d.insn.ops = ops;
        d.insn.vec = Some(v);
    }
    if let Some(&(.., mnemonic, ops)) = INTEGER.iter().find(|r| {
        r.0 == map && r.1 == opcode && r.2 == pp && r.3.is_none_or(|reg| reg == modrm >> 3 & 7)
    }) {
        d.insn.mnemonic = mnemonic;
        d.insn.ops = ops;
        if mnemonic == Rorx {
            d.insn.imm = i64::from(d.c.u8()?);
            return Ok(());
        }
    }
    d.c.skip(simd::imm_bytes(map, opcode, 0))
}

/// After 62: the length; whether the instruction exists is not looked at.
pub(super) fn decode_evex(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    let p = d.insn.prefixes;
    if p.lock || p.opsize || p.rep != Rep::None || p.rex != 0 {
        return Err(DecodeError::Invalid);
    }
    let (p0, p1, _) = (d.c.u8()?, d.c.u8()?, d.c.u8()?);
    if p0 & 8 != 0 || p1 & 4 == 0 {
        return Err(DecodeError::Invalid);
    }
    let opcode = d.c.u8()?;
    d.insn.opcode = opcode;
    d.modrm()?;
    match p0 & 7 {
        1 => d.c.skip(simd::imm_bytes(Map::M0f, opcode, 0)),
        3 => d.c.skip(1),
        2 | 5 | 6 => Ok(()),
        _ => Err(DecodeError::Invalid),
    }
}
