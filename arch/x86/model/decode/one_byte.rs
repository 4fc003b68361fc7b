// SPDX-License-Identifier: GPL-2.0

//! The one-byte opcode map (APM vol. 3 appendix A.1). Prefix bytes are taken before the table is
//! asked and stand here as [`BAD`].

use super::entry::*;
use super::groups::*;
use super::mnemonic::Mnemonic::{self, *};
use super::types::Opnd::{self, *};

/// The map.
pub(super) static ONE_BYTE: [Entry; 256] = build();

/// The six forms of an arithmetic instruction from `base` on. Only those that write memory may be
/// locked, which CMP does not.
const fn alu(t: &mut [Entry; 256], base: usize, m: Mnemonic, lock: u16) {
    t[base] = e2(m, Eb, Gb).f(lock);
    t[base + 1] = e2(m, Ev, Gv).f(lock);
    t[base + 2] = e2(m, Gb, Eb);
    t[base + 3] = e2(m, Gv, Ev);
    t[base + 4] = e2(m, Al, Ib);
    t[base + 5] = e2(m, Ax, Iz);
}

const fn fill(t: &mut [Entry; 256], from: usize, n: usize, e: Entry) {
    let mut i = 0;
    while i < n {
        t[from + i] = e;
        i += 1;
    }
}

const fn build() -> [Entry; 256] {
    let mut t = [BAD; 256];
    alu(&mut t, 0x00, Add, LOCK);
    alu(&mut t, 0x08, Or, LOCK);
    alu(&mut t, 0x10, Adc, LOCK);
    alu(&mut t, 0x18, Sbb, LOCK);
    alu(&mut t, 0x20, And, LOCK);
    alu(&mut t, 0x28, Sub, LOCK);
    alu(&mut t, 0x30, Xor, LOCK);
    alu(&mut t, 0x38, Cmp, 0);
    t[0x06] = e1(PushSeg, Zs).f(NO64);
    t[0x07] = e1(PopSeg, Zs).f(NO64);
    t[0x0e] = e1(PushSeg, Zs).f(NO64);
    t[0x16] = e1(PushSeg, Zs).f(NO64);
    t[0x17] = e1(PopSeg, Zs).f(NO64);
    t[0x1e] = e1(PushSeg, Zs).f(NO64);
    t[0x1f] = e1(PopSeg, Zs).f(NO64);
    t[0x27] = e0(Daa).f(NO64);
    t[0x2f] = e0(Das).f(NO64);
    t[0x37] = e0(Aaa).f(NO64);
    t[0x3f] = e0(Aas).f(NO64);
    fill(&mut t, 0x40, 8, e1(Inc, Zv)); // REX in 64-bit mode
    fill(&mut t, 0x48, 8, e1(Dec, Zv));
    fill(&mut t, 0x50, 8, e1(Push, Zv).f(D64));
    fill(&mut t, 0x58, 8, e1(Pop, Zv).f(D64));
    t[0x60] = e0(Pusha).f(NO64);
    t[0x61] = e0(Popa).f(NO64);
    t[0x62] = special(MODRM); // BOUND or EVEX
    t[0x63] = special(MODRM); // ARPL or MOVSXD
    t[0x68] = e1(Push, Iz).f(D64);
    t[0x69] = e3(Imul, Gv, Ev, Iz);
    t[0x6a] = e1(Push, Ibs).f(D64);
    t[0x6b] = e3(Imul, Gv, Ev, Ibs);
    t[0x6c] = e1(Ins, Al);
    t[0x6d] = e1(Ins, Ax);
    t[0x6e] = e1(Outs, Al);
    t[0x6f] = e1(Outs, Ax);
    fill(&mut t, 0x70, 16, e1(Jcc, Jb).f(F64));
    t[0x80] = grp(G1, Eb, Ib);
    t[0x81] = grp(G1, Ev, Iz);
    t[0x82] = grp(G1, Eb, Ib).f(NO64);
    t[0x83] = grp(G1, Ev, Ibs);
    t[0x84] = e2(Test, Eb, Gb);
    t[0x85] = e2(Test, Ev, Gv);
    t[0x86] = e2(Xchg, Eb, Gb).f(LOCK);
    t[0x87] = e2(Xchg, Ev, Gv).f(LOCK);
    t[0x88] = e2(Mov, Eb, Gb);
    t[0x89] = e2(Mov, Ev, Gv);
    t[0x8a] = e2(Mov, Gb, Eb);
    t[0x8b] = e2(Mov, Gv, Ev);
    t[0x8c] = e2(MovFromSeg, Evw, Sw);
    t[0x8d] = e2(Lea, Gv, M);
    t[0x8e] = e2(MovToSeg, Sw, Ew);
    t[0x8f] = grp(G1A, Ev, Opnd::None);
    fill(&mut t, 0x90, 8, e2(Xchg, Ax, Zv));
    t[0x90] = special(0); // NOP, PAUSE, XCHG with R8
    t[0x98] = e0(Cbw);
    t[0x99] = e0(Cwd);
    t[0x9a] = e1(CallFarImm, Ap).f(NO64);
    t[0x9b] = e0(Fwait);
    t[0x9c] = e0(Pushf).f(D64);
    t[0x9d] = e0(Popf).f(D64);
    t[0x9e] = e0(Sahf);
    t[0x9f] = e0(Lahf);
    t[0xa0] = e2(Mov, Al, Ob);
    t[0xa1] = e2(Mov, Ax, Ov);
    t[0xa2] = e2(Mov, Ob, Al);
    t[0xa3] = e2(Mov, Ov, Ax);
    t[0xa4] = e1(Movs, Al);
    t[0xa5] = e1(Movs, Ax);
    t[0xa6] = e1(Cmps, Al);
    t[0xa7] = e1(Cmps, Ax);
    t[0xa8] = e2(Test, Al, Ib);
    t[0xa9] = e2(Test, Ax, Iz);
    t[0xaa] = e1(Stos, Al);
    t[0xab] = e1(Stos, Ax);
    t[0xac] = e1(Lods, Al);
    t[0xad] = e1(Lods, Ax);
    t[0xae] = e1(Scas, Al);
    t[0xaf] = e1(Scas, Ax);
    fill(&mut t, 0xb0, 8, e2(Mov, Zb, Ib));
    fill(&mut t, 0xb8, 8, e2(Mov, Zv, Iv));
    t[0xc0] = grp(G2, Eb, Ib);
    t[0xc1] = grp(G2, Ev, Ib);
    t[0xc2] = e1(RetNear, Iw).f(F64);
    t[0xc3] = e0(RetNear).f(F64);
    t[0xc4] = e2(Les, Gv, Mp).f(NO64); // VEX is taken before
    t[0xc5] = e2(Lds, Gv, Mp).f(NO64);
    t[0xc6] = grp(G11B, Eb, Ib);
    t[0xc7] = grp(G11V, Ev, Iz);
    t[0xc8] = e2(Enter, Iw, Ib).f(D64);
    t[0xc9] = e0(Leave).f(D64);
    t[0xca] = e1(RetFar, Iw);
    t[0xcb] = e0(RetFar);
    t[0xcc] = e0(Int3);
    t[0xcd] = e1(Int, Ib);
    t[0xce] = e0(Into).f(NO64);
    t[0xcf] = e0(Iret);
    t[0xd0] = grp(G2, Eb, One);
    t[0xd1] = grp(G2, Ev, One);
    t[0xd2] = grp(G2, Eb, Cl);
    t[0xd3] = grp(G2, Ev, Cl);
    t[0xd4] = e1(Aam, Ib).f(NO64);
    t[0xd5] = e1(Aad, Ib).f(NO64);
    t[0xd6] = e0(Salc).f(NO64);
    t[0xd7] = e0(Xlat);
    fill(&mut t, 0xd8, 8, special(MODRM)); // x87
    t[0xe0] = e1(Loopne, Jb).f(F64);
    t[0xe1] = e1(Loope, Jb).f(F64);
    t[0xe2] = e1(Loop, Jb).f(F64);
    t[0xe3] = e1(Jcxz, Jb).f(F64);
    t[0xe4] = e2(In, Al, Ib);
    t[0xe5] = e2(In, Ax, Ib);
    t[0xe6] = e2(Out, Ib, Al);
    t[0xe7] = e2(Out, Ib, Ax);
    t[0xe8] = e1(CallRel, Jz).f(F64);
    t[0xe9] = e1(JmpRel, Jz).f(F64);
    t[0xea] = e1(JmpFarImm, Ap).f(NO64);
    t[0xeb] = e1(JmpRel, Jb).f(F64);
    t[0xec] = e2(In, Al, Dx);
    t[0xed] = e2(In, Ax, Dx);
    t[0xee] = e2(Out, Dx, Al);
    t[0xef] = e2(Out, Dx, Ax);
    t[0xf1] = e0(Int1);
    t[0xf4] = e0(Hlt);
    t[0xf5] = e0(Cmc);
    t[0xf6] = grp(G3B, Eb, Opnd::None);
    t[0xf7] = grp(G3V, Ev, Opnd::None);
    t[0xf8] = e0(Clc);
    t[0xf9] = e0(Stc);
    t[0xfa] = e0(Cli);
    t[0xfb] = e0(Sti);
    t[0xfc] = e0(Cld);
    t[0xfd] = e0(Std);
    t[0xfe] = grp(G4, Eb, Opnd::None);
    t[0xff] = grp(G5, Ev, Opnd::None);
    t
}
