// SPDX-License-Identifier: GPL-2.0

//! Opcodes that no table of one level describes: those where mode, ModRM and mandatory prefix
//! together name the instruction.

use super::entry::*;
use super::groups::{
    G11B,
    G11V,
    GROUPS, //
};
use super::mnemonic::Mnemonic::*;
use super::types::{
    DecodeError,
    Insn,
    Mode,
    Opnd,
    Opnd::*,
    Rep,
    Vendor, //
};

/// The entry of a group that ModRM.reg chooses, with operands.
pub(super) fn group(insn: &Insn, e: Entry) -> Entry {
    // XABORT and XBEGIN live in the last entry of the MOV groups.
    match (e.group, insn.modrm) {
        (G11B, 0xf8) => return e1(Other, Ib).f(MODRM),
        (G11V, 0xf8) => return e1(Other, Jz).f(MODRM),
        _ => {}
    }
    let mut g = GROUPS
        .get(usize::from(e.group))
        .map_or(BAD, |t| t[usize::from(insn.modrm >> 3 & 7)]);
    if g.ops[0] == Opnd::None {
        g.ops = e.ops;
    }
    g.flags |= e.flags & !GROUP;
    g
}

/// The entry of an opcode marked [`SPECIAL`]; `insn.modrm` is set when it has one.
pub(super) fn lookup(insn: &Insn, mode: Mode) -> Result<Entry, DecodeError> {
    let e = match insn.opcode {
        0x62 => e2(Bound, Gv, Mv),
        0x63 if mode.is_64() => e2(Movsxd, Gv, Ed),
        0x63 => e1(Arpl, Ew),
        // With REX.B, F3 or not: AMD exchanges registers, Intel lets F3 make it PAUSE.
        0x90 if insn.prefixes.rex & 1 != 0
            && (insn.prefixes.rep != Rep::Rep || mode.vendor == Vendor::Amd) =>
        {
            e2(Xchg, Ax, Zv)
        }
        0x90 if insn.prefixes.rep == Rep::Rep => e0(Pause),
        0x90 => e0(Nop),
        0xd8..=0xdf => x87(insn),
        // UD0: whether a ModRM byte follows is the vendors' own.
        0xff if mode.vendor == Vendor::Amd => return Ok(e0(Ud)),
        0xff => e0(Ud).f(MODRM),
        // The prefetches have no register form; Intel made it a NOP.
        0x0d if insn.modrm >= 0xc0 && mode.vendor == Vendor::Amd => BAD,
        0x0d => e0(Nop).f(MODRM),
        0x00 => group6(insn, mode),
        0x01 => group7(insn, mode),
        0xae => group15(insn, mode),
        0xc7 => group9(insn, mode),
        _ => BAD,
    };
    if e.mnemonic == Invalid {
        Err(DecodeError::Invalid)
    } else {
        Ok(e)
    }
}

/// 0F 00: LDT, TR and segment checks.
fn group6(insn: &Insn, mode: Mode) -> Entry {
    let e = match insn.modrm >> 3 & 7 {
        0 => e1(Sldt, Evw),
        1 => e1(Str, Evw),
        2 => e1(Lldt, Ew),
        3 => e1(Ltr, Ew),
        4 => e1(Verr, Ew),
        5 => e1(Verw, Ew),
        6 if insn.prefixes.pp() == 3 && mode.is_64() => e0(Other), // LKGS
        _ => BAD,
    };
    e.f(MODRM)
}

/// 0F 01: system instructions; those with a register form use all of ModRM as opcode.
fn group7(insn: &Insn, mode: Mode) -> Entry {
    let m = insn.modrm;
    let pp = insn.prefixes.pp();
    let e = if m < 0xc0 {
        match (m >> 3 & 7, pp) {
            (0, _) => e1(Sgdt, Ms),
            (1, _) => e1(Sidt, Ms),
            (2, _) => e1(Lgdt, Ms),
            (3, _) => e1(Lidt, Ms),
            (4, _) => e1(Smsw, Evw),
            (5, 2) => e0(Other), // RSTORSSP
            (6, _) => e1(Lmsw, Ew),
            (7, _) => e1(Invlpg, M),
            _ => BAD,
        }
    } else {
        match (m, pp) {
            (0xc1, 0) => e0(Vmcall),
            (0xc0 | 0xc2..=0xc5, 0) => e0(Other), // ENCLV, VMLAUNCH, VMRESUME, VMXOFF, PCONFIG
            (0xc6, 0) => e0(Other),               // WRMSRNS
            (0xc6, 2 | 3) if mode.is_64() => e0(Other), // WRMSRLIST, RDMSRLIST
            (0xc8, 0) => e0(Monitor),
            (0xc9, 0) => e0(Mwait),
            (0xc7, 0) if mode.is_64() => e0(Other), // PBNDKB
            (0xca, 2 | 3) if mode.is_64() => e0(Other), // ERETU, ERETS
            (0xca, 0) => e0(Clac),
            (0xcb, 0) => e0(Stac),
            (0xcf, 0) => e0(Other), // ENCLS
            (0xd0, 0) => e0(Xgetbv),
            (0xd1, 0) => e0(Xsetbv),
            (0xd4..=0xd7, 0) => e0(Other), // VMFUNC, XEND, XTEST, ENCLU
            (0xd8, _) => e0(Vmrun),
            (0xd9, _) => e0(Vmmcall),
            (0xda, _) => e0(Vmload),
            (0xdb, _) => e0(Vmsave),
            (0xdc, _) => e0(Stgi),
            (0xdd, _) => e0(Clgi),
            (0xde, _) => e0(Skinit),
            (0xdf, _) => e0(Invlpga),
            (0xe0..=0xe7, _) => e1(Smsw, Evw),
            (0xe8, 0 | 2 | 3) => e0(Other), // SERIALIZE, SETSSBSY, XSUSLDTRK
            (0xe9, 3) => e0(Other),         // XRESLDTRK
            (0xea, 2) => e0(Other),         // SAVEPREVSSP
            (0xec..=0xef, 2) if mode.is_64() => e0(Other), // user interrupts
            (0xee | 0xef, 0) => e0(Other),  // RDPKRU, WRPKRU
            (0xf0..=0xf7, _) => e1(Lmsw, Ew),
            (0xf8, _) if mode.is_64() => e0(Swapgs),
            (0xf9, _) => e0(Rdtscp),
            (0xfc, _) => e0(Other),                      // CLZERO
            (0xfa | 0xfb | 0xfd..=0xff, 0) => e0(Other), // MONITORX, MWAITX, RDPRU, INVLPGB, TLBSYNC
            (0xfa, 2) | (0xff, 3) => e0(Other),          // MCOMMIT, PVALIDATE
            (0xfd..=0xff, 2) | (0xfe, 3) if mode.is_64() => e0(Other), // RMPQUERY and kin
            _ => BAD,
        }
    };
    e.f(MODRM)
}

/// 0F AE: state save and restore, fences, cache lines, FS and GS bases.
fn group15(insn: &Insn, mode: Mode) -> Entry {
    let reg = insn.modrm >> 3 & 7;
    let pp = insn.prefixes.pp();
    let e = match (insn.modrm < 0xc0, reg, pp) {
        (true, 0, 0) => e0(Fxsave),
        (true, 1, 0) => e0(Fxrstor),
        (true, 2, 0) => e1(Ldmxcsr, M),
        (true, 3, 0) => e1(Stmxcsr, M),
        (true, 4..=6, 0) => e0(Xsave),
        (true, 7, 0) | (true, 6 | 7, 1) => e1(Clflush, M),
        (true, 4, 2) if !insn.prefixes.opsize => e0(Other), // PTWRITE
        (true, 6, 2) => e0(Other),                          // CLRSSBSY
        (false, 5..=7, 0) => e0(Fence),
        (false, 0, 2) if mode.is_64() => e1(Rdfsbase, Ey),
        (false, 1, 2) if mode.is_64() => e1(Rdgsbase, Ey),
        (false, 2, 2) if mode.is_64() => e1(Wrfsbase, Ey),
        (false, 3, 2) if mode.is_64() => e1(Wrgsbase, Ey),
        (false, 4, 2) if !insn.prefixes.opsize => e0(Other), // PTWRITE
        (false, 5 | 6, 2) => e0(Other),                      // INCSSP, UMONITOR
        (false, 6, 1 | 3) => e0(Other),                      // TPAUSE, UMWAIT
        _ => BAD,
    };
    e.f(MODRM)
}

/// 0F C7: CMPXCHG8B, random numbers, and state save with compaction.
fn group9(insn: &Insn, mode: Mode) -> Entry {
    let reg = insn.modrm >> 3 & 7;
    let pp = insn.prefixes.pp();
    let e = match (insn.modrm < 0xc0, reg, pp) {
        (true, 1, _) => e1(Cmpxchg8b, M).f(LOCK),
        (true, 3..=5, 0) => e0(Xsave),
        (true, 6, 0..=2) => e0(Other), // VMPTRLD, VMCLEAR, VMXON
        (true, 7, 0) => e0(Other),     // VMPTRST
        (false, 6, 0 | 1) => e1(Rdrand, Ev),
        (false, 7, 0 | 1) => e1(Rdseed, Ev),
        (false, 6, 2) if mode.is_64() => e0(Other), // SENDUIPI
        (false, 7, 2) => e1(Rdpid, R),
        _ => BAD,
    };
    e.f(MODRM)
}

/// x87 memory forms that do not exist, by opcode D8 to DF: a bit for each ModRM.reg.
const X87_NO_MEM: [u8; 8] = [0, 1 << 1, 0, 1 << 4 | 1 << 6, 0, 1 << 5, 0, 0];

/// x87 register forms that do not exist: for each opcode, a bit for each ModRM from C0 on.
const X87_NO_REG: [u64; 8] = [
    0,
    0xfe << 16 | 0xcc << 32 | 0x80 << 40,
    0xff << 32 | 0xfd << 40 | 0xff << 48 | 0xff << 56,
    0xe0 << 32 | 0xff << 56,
    0,
    0xff << 48 | 0xff << 56,
    0xfd << 24,
    0xfe << 32 | 0xff << 56,
];

fn x87(insn: &Insn) -> Entry {
    let i = usize::from(insn.opcode & 7);
    let missing = if insn.modrm < 0xc0 {
        X87_NO_MEM[i] >> (insn.modrm >> 3 & 7) & 1 != 0
    } else {
        X87_NO_REG[i] >> (insn.modrm & 0x3f) & 1 != 0
    };
    if missing {
        BAD
    } else {
        e0(Other).f(MODRM)
    }
}
