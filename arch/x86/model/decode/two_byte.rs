// SPDX-License-Identifier: GPL-2.0

//! The 0F opcode map, integer and system instructions (APM vol. 3 appendix A.1). What stands here
//! as [`BAD`] is looked for in the SIMD tables next.

use super::entry::*;
use super::groups::*;
use super::mnemonic::Mnemonic::*;
use super::types::Opnd::*;

/// The map.
pub(super) static TWO_BYTE: [Entry; 256] = build();

const fn fill(t: &mut [Entry; 256], from: usize, n: usize, e: Entry) {
    let mut i = 0;
    while i < n {
        t[from + i] = e;
        i += 1;
    }
}

const fn build() -> [Entry; 256] {
    let mut t = [BAD; 256];
    t[0x00] = special(MODRM);
    t[0x01] = special(MODRM);
    t[0x02] = e2(Lar, Gv, Ew);
    t[0x03] = e2(Lsl, Gv, Ew);
    t[0x05] = e0(Syscall);
    t[0x06] = e0(Clts);
    t[0x07] = e0(Sysret);
    t[0x08] = e0(Invd);
    t[0x09] = e0(Wbinvd);
    t[0x0b] = e0(Ud);
    t[0x0d] = special(MODRM); // PREFETCH, PREFETCHW
    fill(&mut t, 0x18, 8, e0(Nop).f(MODRM)); // PREFETCHh, ENDBR, NOP Ev and their like
    t[0x20] = e2(MovFromCr, Rr, Cd).f(NATIVE);
    t[0x21] = e2(MovFromDr, Rr, Dd).f(NATIVE);
    t[0x22] = e2(MovToCr, Cd, Rr).f(NATIVE);
    t[0x23] = e2(MovToDr, Dd, Rr).f(NATIVE);
    t[0x30] = e0(Wrmsr);
    t[0x31] = e0(Rdtsc);
    t[0x32] = e0(Rdmsr);
    t[0x33] = e0(Rdpmc);
    t[0x34] = e0(Sysenter);
    t[0x35] = e0(Sysexit);
    fill(&mut t, 0x40, 16, e2(Cmov, Gv, Ev));
    fill(&mut t, 0x80, 16, e1(Jcc, Jz).f(F64));
    fill(&mut t, 0x90, 16, e1(Set, Eb));
    t[0xa0] = e1(PushSeg, Zs).f(D64);
    t[0xa1] = e1(PopSeg, Zs).f(D64);
    t[0xa2] = e0(Cpuid);
    t[0xa3] = e2(Bt, Ev, Gv);
    t[0xa4] = e3(Shld, Ev, Gv, Ib);
    t[0xa5] = e3(Shld, Ev, Gv, Cl);
    t[0xa8] = e1(PushSeg, Zs).f(D64);
    t[0xa9] = e1(PopSeg, Zs).f(D64);
    t[0xaa] = e0(Rsm);
    t[0xab] = e2(Bts, Ev, Gv).f(LOCK);
    t[0xac] = e3(Shrd, Ev, Gv, Ib);
    t[0xad] = e3(Shrd, Ev, Gv, Cl);
    t[0xae] = special(MODRM);
    t[0xaf] = e2(Imul, Gv, Ev);
    t[0xb0] = e2(Cmpxchg, Eb, Gb).f(LOCK);
    t[0xb1] = e2(Cmpxchg, Ev, Gv).f(LOCK);
    t[0xb2] = e2(Lss, Gv, Mp);
    t[0xb3] = e2(Btr, Ev, Gv).f(LOCK);
    t[0xb4] = e2(Lfs, Gv, Mp);
    t[0xb5] = e2(Lgs, Gv, Mp);
    t[0xb6] = e2(Movzx, Gv, Eb);
    t[0xb7] = e2(Movzx, Gv, Ew);
    t[0xb8] = bypp(P_B8);
    t[0xb9] = e0(Ud).f(MODRM);
    t[0xba] = grp(G8, Ev, Ib);
    t[0xbb] = e2(Btc, Ev, Gv).f(LOCK);
    t[0xbc] = bypp(P_BC);
    t[0xbd] = bypp(P_BD);
    t[0xbe] = e2(Movsx, Gv, Eb);
    t[0xbf] = e2(Movsx, Gv, Ew);
    t[0xc0] = e2(Xadd, Eb, Gb).f(LOCK);
    t[0xc1] = e2(Xadd, Ev, Gv).f(LOCK);
    t[0xc3] = bypp(P_C3);
    t[0xc7] = special(MODRM);
    fill(&mut t, 0xc8, 8, e1(Bswap, Zv));
    t[0xff] = special(0); // UD0
    t
}
