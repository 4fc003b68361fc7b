// SPDX-License-Identifier: GPL-2.0

//! The vector moves that guests use on device memory, in their SSE and AVX encodings (APM vol. 4).

use super::mnemonic::VecMove;
use super::simd::Map;
use super::types::{
    Opnd, //
    Opnd::{
        Vx,
        Wx, //
    },
};

/// The whole vector register: 16 bytes, or 32 with VEX.L.
const FULL: u8 = 0;
/// 4 bytes, or 8 with REX.W or VEX.W.
const BY_W: u8 = 1;

/// Aligned.
const A: u8 = 1 << 0;
/// Store.
const S: u8 = 1 << 1;
/// High half.
const H: u8 = 1 << 2;
/// Zeroes the rest.
const Z: u8 = 1 << 3;
/// General register instead of a vector register in ModRM.rm.
const G: u8 = 1 << 4;
/// Memory form only; the register form is another instruction.
const MO: u8 = 1 << 5;
/// Has no VEX encoding.
const SSE: u8 = 1 << 6;
/// VEX.vvvv names a second source, whose bytes fill the rest of the destination.
const V: u8 = 1 << 7;

/// Map, opcode, mandatory prefix (none 0, 66 1, F3 2, F2 3), size, flags.
const ROWS: &[(Map, u8, u8, u8, u8)] = &[
    (Map::M0f, 0x10, 0, FULL, 0),          // MOVUPS
    (Map::M0f, 0x10, 1, FULL, 0),          // MOVUPD
    (Map::M0f, 0x10, 2, 4, Z | MO),        // MOVSS
    (Map::M0f, 0x10, 3, 8, Z | MO),        // MOVSD
    (Map::M0f, 0x11, 0, FULL, S),          // MOVUPS
    (Map::M0f, 0x11, 1, FULL, S),          // MOVUPD
    (Map::M0f, 0x11, 2, 4, S | MO),        // MOVSS
    (Map::M0f, 0x11, 3, 8, S | MO),        // MOVSD
    (Map::M0f, 0x12, 0, 8, MO | V),        // MOVLPS
    (Map::M0f, 0x12, 1, 8, MO | V),        // MOVLPD
    (Map::M0f, 0x13, 0, 8, S | MO),        // MOVLPS
    (Map::M0f, 0x13, 1, 8, S | MO),        // MOVLPD
    (Map::M0f, 0x16, 0, 8, H | MO | V),    // MOVHPS
    (Map::M0f, 0x16, 1, 8, H | MO | V),    // MOVHPD
    (Map::M0f, 0x17, 0, 8, S | H | MO),    // MOVHPS
    (Map::M0f, 0x17, 1, 8, S | H | MO),    // MOVHPD
    (Map::M0f, 0x28, 0, FULL, A),          // MOVAPS
    (Map::M0f, 0x28, 1, FULL, A),          // MOVAPD
    (Map::M0f, 0x29, 0, FULL, A | S),      // MOVAPS
    (Map::M0f, 0x29, 1, FULL, A | S),      // MOVAPD
    (Map::M0f, 0x2b, 0, FULL, A | S | MO), // MOVNTPS
    (Map::M0f, 0x2b, 1, FULL, A | S | MO), // MOVNTPD
    (Map::M0f, 0x2b, 2, 4, S | MO | SSE),  // MOVNTSS
    (Map::M0f, 0x2b, 3, 8, S | MO | SSE),  // MOVNTSD
    (Map::M0f, 0x6e, 1, BY_W, G | Z),      // MOVD, MOVQ
    (Map::M0f, 0x6f, 1, FULL, A),          // MOVDQA
    (Map::M0f, 0x6f, 2, FULL, 0),          // MOVDQU
    (Map::M0f, 0x7e, 1, BY_W, G | S),      // MOVD, MOVQ
    (Map::M0f, 0x7e, 2, 8, Z),             // MOVQ
    (Map::M0f, 0x7f, 1, FULL, A | S),      // MOVDQA
    (Map::M0f, 0x7f, 2, FULL, S),          // MOVDQU
    (Map::M0f, 0xd6, 1, 8, S | Z),         // MOVQ
    (Map::M0f, 0xe7, 1, FULL, A | S | MO), // MOVNTDQ
    (Map::M0f, 0xf0, 3, FULL, MO),         // LDDQU
    (Map::M0f38, 0x2a, 1, FULL, A | MO),   // MOVNTDQA
];

/// The vector move that an encoding is, with its operands; `w` is REX.W or VEX.W, `vex` VEX.L and
/// VEX.vvvv (complemented) of a VEX encoding, `memory` whether ModRM.rm is memory.
pub(super) fn find(
    map: Map,
    opcode: u8,
    pp: u8,
    w: bool,
    vex: Option<(bool, u8)>,
    memory: bool,
) -> Option<(VecMove, [Opnd; 3])> {
    let &(.., size, f) = ROWS
        .iter()
        .find(|r| r.0 == map && r.1 == opcode && r.2 == pp)?;
    if f & MO != 0 && !memory {
        return None;
    }
    let mut size = match size {
        FULL => 16,
        BY_W if w => 8,
        BY_W => 4,
        n => n,
    };
    if let Some((l, vvvv)) = vex {
        // Which values of VEX.L and VEX.vvvv exist was seen to before.
        if f & SSE != 0 || (f & V == 0 && vvvv != 0) {
            return None;
        }
        if l && size == 16 {
            size = 32;
        }
    }
    let m = VecMove {
        size,
        aligned: f & A != 0,
        store: f & S != 0,
        high: f & H != 0,
        zero: f & Z != 0,
        gpr: f & G != 0,
    };
    let ops = if m.store {
        [Wx, Vx, Opnd::None]
    } else {
        [Vx, Wx, Opnd::None]
    };
    Some((m, ops))
}
