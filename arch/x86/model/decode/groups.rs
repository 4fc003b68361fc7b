// SPDX-License-Identifier: GPL-2.0

//! Opcodes that ModRM.reg, or the mandatory prefix, tells apart (APM vol. 3 appendix A.2).

use super::entry::*;
use super::mnemonic::Mnemonic::{self, *};
use super::types::Opnd::{self, *};

pub(super) const G1: u8 = 0;
pub(super) const G1A: u8 = 1;
pub(super) const G2: u8 = 2;
pub(super) const G3B: u8 = 3;
pub(super) const G3V: u8 = 4;
pub(super) const G4: u8 = 5;
pub(super) const G5: u8 = 6;
pub(super) const G8: u8 = 7;
pub(super) const G11B: u8 = 8;
pub(super) const G11V: u8 = 9;

const fn m(mnemonic: Mnemonic) -> Entry {
    e0(mnemonic)
}

/// Chosen by ModRM.reg. Entries without operands take those of the opcode.
pub(super) static GROUPS: [[Entry; 8]; 10] = [
    // G1: 80-83
    [
        m(Add).f(LOCK),
        m(Or).f(LOCK),
        m(Adc).f(LOCK),
        m(Sbb).f(LOCK),
        m(And).f(LOCK),
        m(Sub).f(LOCK),
        m(Xor).f(LOCK),
        m(Cmp),
    ],
    // G1A: 8F (others were XOP)
    [m(Pop).f(D64), BAD, BAD, BAD, BAD, BAD, BAD, BAD],
    // G2: C0, C1, D0-D3
    [
        m(Rol),
        m(Ror),
        m(Rcl),
        m(Rcr),
        m(Shl),
        m(Shr),
        m(Shl),
        m(Sar),
    ],
    // G3B: F6
    [
        e2(Test, Eb, Ib),
        e2(Test, Eb, Ib),
        m(Not).f(LOCK),
        m(Neg).f(LOCK),
        m(Mul),
        m(Imul1),
        m(Div),
        m(Idiv),
    ],
    // G3V: F7
    [
        e2(Test, Ev, Iz),
        e2(Test, Ev, Iz),
        m(Not).f(LOCK),
        m(Neg).f(LOCK),
        m(Mul),
        m(Imul1),
        m(Div),
        m(Idiv),
    ],
    // G4: FE
    [m(Inc).f(LOCK), m(Dec).f(LOCK), BAD, BAD, BAD, BAD, BAD, BAD],
    // G5: FF
    [
        m(Inc).f(LOCK),
        m(Dec).f(LOCK),
        m(CallNear).f(F64),
        e1(CallFar, Mp),
        m(JmpNear).f(F64),
        e1(JmpFar, Mp),
        m(Push).f(D64),
        BAD,
    ],
    // G8: 0F BA
    [
        BAD,
        BAD,
        BAD,
        BAD,
        m(Bt),
        m(Bts).f(LOCK),
        m(Btr).f(LOCK),
        m(Btc).f(LOCK),
    ],
    // G11B: C6 (C6 F8 is XABORT, taken before)
    [m(Mov), BAD, BAD, BAD, BAD, BAD, BAD, BAD],
    // G11V: C7 (C7 F8 is XBEGIN, taken before)
    [m(Mov), BAD, BAD, BAD, BAD, BAD, BAD, BAD],
];

pub(super) const P_B8: u8 = 0;
pub(super) const P_BC: u8 = 1;
pub(super) const P_BD: u8 = 2;
pub(super) const P_38F0: u8 = 3;
pub(super) const P_38F1: u8 = 4;
pub(super) const P_38F6: u8 = 5;
pub(super) const P_3882: u8 = 6;
pub(super) const P_C3: u8 = 7;

/// CRC32 has no use for its operands here, but its ModRM byte counts.
const CRC32: Entry = e0(Other).f(MODRM);

/// Chosen by the mandatory prefix: none, 66, F3, F2.
pub(super) static BY_PREFIX: [[Entry; 4]; 8] = [
    // 0F B8: JMPE without F3, which only Itanium had
    [BAD, BAD, e2(Popcnt, Gv, Ev), BAD],
    // 0F BC
    [
        e2(Bsf, Gv, Ev),
        e2(Bsf, Gv, Ev),
        e2(Tzcnt, Gv, Ev),
        e2(Bsf, Gv, Ev),
    ],
    // 0F BD
    [
        e2(Bsr, Gv, Ev),
        e2(Bsr, Gv, Ev),
        e2(Lzcnt, Gv, Ev),
        e2(Bsr, Gv, Ev),
    ],
    // 0F38 F0
    [e2(Movbe, Gv, Mv), e2(Movbe, Gv, Mv), BAD, CRC32],
    // 0F38 F1
    [e2(Movbe, Mv, Gv), e2(Movbe, Mv, Gv), BAD, CRC32],
    // 0F38 F6: WRSS, ADCX, ADOX
    [
        e0(Other).f(MEM | MODRM),
        e2(Adcx, Gy, Ey),
        e2(Adox, Gy, Ey),
        BAD,
    ],
    // 0F38 82
    [BAD, e2(Invpcid, Opnd::Gv, M).f(NATIVE), BAD, BAD],
    // 0F C3
    [e2(Movnti, My, Gy), BAD, BAD, BAD],
];
