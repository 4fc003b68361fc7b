// SPDX-License-Identifier: GPL-2.0

//! The emulator against the processor that the test runs on: random instructions with random
//! operands in 16-, 32- and 64-bit user code; registers, defined flags, memory and faults must be
//! the same.

mod common;

use std::sync::OnceLock;

use common::env::{attr, flat, TestEnv};
use common::native::{Ldt, Native, Stopped, CODE, DATA, DATA_LEN};
use common::{undefined, Rng};
use rkvm_unit::arch::x86::model::decode::{Insn, Mnemonic, Rep, Vendor, Width};
use rkvm_unit::arch::x86::model::emulate::{Feature, Outcome, Regs, Stop};
use rkvm_unit::arch::x86::model::regs::{
    cr0, rflags, vector, DescTable, Gpr, Gprs, Seg, SegAttr, Segment,
};

/// The LDT of the child: selectors 7, 0xf, 0x17, ...
const LDT: [Ldt; 7] = {
    let base = Ldt {
        base: DATA as u32,
        limit: 0xffff,
        code: false,
        expand_down: false,
        read_only: false,
        big: false,
        pages: false,
    };
    [
        Ldt {
            base: CODE as u32,
            code: true,
            ..base
        }, // 16-bit code
        base, // 16-bit data, 64 KiB
        Ldt {
            limit: 0x7fff,
            big: true,
            ..base
        }, // half of it
        Ldt {
            limit: 0x7fff,
            expand_down: true,
            ..base
        }, // the other half
        Ldt {
            read_only: true,
            ..base
        },
        Ldt {
            limit: 0x1f,
            pages: true,
            big: true,
            expand_down: true,
            ..base
        },
        Ldt {
            base: 0,
            limit: 0xf_ffff,
            pages: true,
            big: true,
            ..base
        }, // flat
    ]
};
const CODE16: u16 = 7;
const DATA16: u16 = 0xf;
const FLAT_LDT: u16 = 0x37;
const USER_CS32: u16 = 0x23;
const USER_DS: u16 = 0x2b;
const USER_CS64: u16 = 0x33;

/// Where the model's descriptor tables stand.
const TABLES: u64 = 0xffff_9000_0000_0000;

fn raw_to_segment(selector: u16, raw: u64) -> Segment {
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    let attr = SegAttr((raw >> 40 & 0xf0ff) as u32);
    Segment {
        selector,
        attr,
        limit: if attr.granularity() {
            limit << 12 | 0xfff
        } else {
            limit
        },
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
    }
}

fn segment(selector: u16) -> Segment {
    match selector {
        0..=3 => Segment {
            selector,
            attr: SegAttr::new(0, false, 0, false, false, false, false, false, true),
            limit: 0,
            base: 0,
        },
        USER_CS32 => flat(selector, attr(11, 3, true, false)),
        USER_DS => flat(selector, attr(3, 3, true, false)),
        USER_CS64 => flat(selector, attr(11, 3, false, true)),
        s => raw_to_segment(s, LDT[usize::from(s >> 3)].raw()),
    }
}

/// Instructions that a single step of user code can show. System calls are not among them.
fn testable(i: &Insn) -> bool {
    use Mnemonic::*;
    matches!(
        i.mnemonic,
        Aaa | Aad
            | Aam
            | Aas
            | Adc
            | Adcx
            | Add
            | Adox
            | And
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bound
            | Bsf
            | Bsr
            | Bswap
            | Bt
            | Btc
            | Btr
            | Bts
            | Bzhi
            | CallNear
            | CallRel
            | Cbw
            | Clc
            | Cld
            | Clflush
            | Cli
            | Cmc
            | Cmov
            | Cmp
            | Cmps
            | Cmpxchg
            | Cmpxchg8b
            | Cwd
            | Daa
            | Das
            | Dec
            | Div
            | Enter
            | Fence
            | Hlt
            | Idiv
            | Imul
            | Imul1
            | In
            | Inc
            | Ins
            | Jcc
            | Jcxz
            | JmpNear
            | JmpRel
            | Lahf
            | Ldmxcsr
            | Lea
            | Leave
            | Lods
            | Loop
            | Loope
            | Loopne
            | Lzcnt
            | Mov
            | Movbe
            | MovFromSeg
            | Movnti
            | Movs
            | Movsx
            | Movsxd
            | Movzx
            | Mul
            | Mulx
            | Neg
            | Nop
            | Not
            | Or
            | Out
            | Outs
            | Pause
            | Pdep
            | Pext
            | Pop
            | Popa
            | Popcnt
            | Popf
            | Push
            | Pusha
            | PushSeg
            | Pushf
            | Rcl
            | Rcr
            | RetNear
            | Rol
            | Ror
            | Rorx
            | Sahf
            | Salc
            | Sar
            | Sarx
            | Sbb
            | Scas
            | Set
            | Shl
            | Shld
            | Shlx
            | Shr
            | Shrd
            | Shrx
            | Sti
            | Stmxcsr
            | Stos
            | Sub
            | Test
            | Tzcnt
            | Ud
            | VecMov
            | Xadd
            | Xchg
            | Xlat
            | Xor
            | Lmsw
            | Clts
            | Invd
            | Wbinvd
            | Rdmsr
            | Wrmsr
            | MovFromCr
            | MovToCr
            | MovFromDr
            | MovToDr
            | Lgdt
            | Lidt
            | Lldt
            | Ltr
            | Swapgs
            | Lar
            | Lsl
            | Verr
            | Verw
            | Arpl
            | MovToSeg
            | PopSeg
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | JmpFar
            | JmpFarImm
            | CallFar
            | CallFarImm
            | RetFar
    )
}

/// A random instruction: prefixes, a map, an opcode, and the rest random.
fn code(r: &mut Rng, is_64: bool) -> [u8; 15] {
    let mut b = [0u8; 15];
    for x in &mut b {
        *x = r.u8();
    }
    let mut at = 0;
    for _ in 0..r.pick(&[0, 0, 0, 0, 1, 1, 2]) {
        b[at] = r.pick(&[
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
        ]);
        at += 1;
    }
    if is_64 && r.one_in(2) {
        b[at] = 0x40 | r.u8() & 15;
        at += 1;
    }
    match r.below(12) {
        0..=6 => {}
        7..=9 => b[at] = 0x0f,
        10 => {
            (b[at], b[at + 1]) = (0x0f, 0x38);
            b[at + 2] = 0xf0 | r.u8() & 7;
        }
        _ => {
            b[at] = 0xc4;
            b[at + 1] = r.u8() & 0xe0 | r.pick(&[1, 2, 2, 3]);
            if !is_64 {
                b[at + 1] |= 0xc0;
            }
            let pp = r.u8() & 3;
            b[at + 2] = b[at + 2] & 0xf8 | pp;
            b[at + 3] = match b[at + 1] & 3 {
                1 => r.pick(&[
                    0x10, 0x11, 0x28, 0x29, 0x6e, 0x6f, 0x7e, 0x7f, 0xd6, 0x12, 0x16,
                ]),
                2 => r.pick(&[0xf2, 0xf3, 0xf5, 0xf6, 0xf7]),
                _ => 0xf0,
            };
        }
    }
    b
}

struct Case {
    env: TestEnv,
    regs: Regs,
    bytes: [u8; 15],
    insn: Insn,
    was_64: bool,
}

/// Makes the memory operand hit the data, mostly, by turning a register.
fn aim(r: &mut Rng, env: &TestEnv, insn: &Insn, regs: &mut Regs) {
    let Some(m) = insn.mem else { return };
    if r.one_in(12) {
        return;
    }
    let mask = match insn.addrsize {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    let index = m.index.map_or(0, |i| regs.gprs.get(i) << m.scale);
    let base = m.base.map_or(0, |b| regs.gprs.get(b));
    let ea = base.wrapping_add(index).wrapping_add(m.disp as u64) & mask;
    let align = if r.one_in(3) { !0u64 } else { !31 };
    let mut want = DATA + (r.below(DATA_LEN as u64 - 64) & align);
    if r.one_in(16) {
        want = DATA + DATA_LEN as u64 - r.below(20);
    }
    want = want.wrapping_sub(env.segs[m.seg as usize].base) & mask;
    let delta = want.wrapping_sub(ea);
    match (m.base, m.index) {
        (Some(b), i) if i != Some(b) => {
            let v = regs.gprs.get(b).wrapping_add(delta);
            regs.gprs.set(b, v);
        }
        (None, Some(i)) if m.scale == 0 => {
            let v = regs.gprs.get(i).wrapping_add(delta);
            regs.gprs.set(i, v);
        }
        _ => {}
    }
}

/// A data segment selector.
fn selector(r: &mut Rng) -> u16 {
    r.pick(&[
        USER_DS, USER_DS, DATA16, 0x17, 0x1f, 0x27, 0x2f, FLAT_LDT, 0,
    ])
}

fn new_case(r: &mut Rng, width: Width, ram: &[u8]) -> Option<Case> {
    let is_64 = width == Width::Bits64;
    let mut bytes = code(r, is_64);
    let mut env = TestEnv::long64(DATA, 0);
    env.vendor = vendor();
    env.missing = missing();
    env.cpl = 3;
    env.cr0 |= cr0::AM;
    env.gdtr = DescTable {
        base: TABLES,
        limit: 0x7f,
    };
    env.ldtr = Segment {
        selector: 0x50,
        attr: SegAttr(0x82),
        limit: LDT.len() as u32 * 8 - 1,
        base: TABLES + 0x1000,
    };
    let cs = match width {
        Width::Bits16 => CODE16,
        Width::Bits32 => USER_CS32,
        Width::Bits64 => USER_CS64,
    };
    env.segs[Seg::Cs as usize] = segment(cs);
    for s in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs, Seg::Ss] {
        let chosen = match width {
            Width::Bits16 if s == Seg::Ss || !r.one_in(4) => DATA16,
            Width::Bits64 => match s {
                Seg::Ss => USER_DS,
                _ => 0,
            },
            Width::Bits32 if s == Seg::Ss => r.pick(&[USER_DS, DATA16, FLAT_LDT]),
            _ => selector(r),
        };
        env.segs[s as usize] = segment(chosen);
    }
    if is_64 {
        env.segs[Seg::Fs as usize].base = r.pick(&[0, DATA, 0x1000]);
        env.segs[Seg::Gs as usize].base = r.pick(&[0, DATA, 0x1000]);
    }
    let mut regs = Regs {
        gprs: Gprs::default(),
        rip: CODE + 0x800,
        rflags: 0x202,
    };
    regs.rip -= env.segs[Seg::Cs as usize].base;
    for g in Gpr::ALL {
        let v = r.value();
        regs.gprs.set(g, if is_64 { v } else { v & 0xffff_ffff });
    }
    let flags = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;
    regs.rflags |= r.u64() & (flags | if r.one_in(4) { rflags::DF } else { 0 });
    if r.one_in(6) {
        regs.rflags |= rflags::AC;
    }
    let insn = env.decode(&bytes, &regs).ok()?;
    // A Zen 4 lets F2 and F3 turn the condition of LOOPcc, which no manual says.
    let loops = matches!(insn.mnemonic, Mnemonic::Loope | Mnemonic::Loopne);
    if !testable(&insn) || (loops && insn.prefixes.rep != Rep::None) {
        return None;
    }
    // Strings and the stack have their own registers.
    let at = |r: &mut Rng, seg: Seg, env: &TestEnv| {
        let off = (r.below(DATA_LEN as u64 - 128) + 64) & if r.one_in(2) { !7 } else { !0 };
        (DATA + off).wrapping_sub(env.segs[seg as usize].base)
    };
    if !r.one_in(12) {
        for (g, s) in [
            (Gpr::Rsi, insn.prefixes.seg.unwrap_or(Seg::Ds)),
            (Gpr::Rdi, Seg::Es),
            (Gpr::Rbp, Seg::Ss),
            (Gpr::Rbx, insn.prefixes.seg.unwrap_or(Seg::Ds)),
            (Gpr::Rsp, Seg::Ss),
        ] {
            if r.one_in(3) || g == Gpr::Rsp || insn.mem.is_none() {
                let v = at(r, s, &env);
                regs.gprs.set(g, v);
            }
        }
    }
    if insn.prefixes.rep != Rep::None {
        regs.gprs.set(Gpr::Rcx, r.below(4));
    }
    let jumps = matches!(insn.mnemonic, Mnemonic::JmpNear | Mnemonic::CallNear);
    if jumps && insn.mem.is_none() {
        let to = CODE + r.below(4096) - env.segs[Seg::Cs as usize].base;
        regs.gprs.set(Gpr::from_low4(insn.rm()), to);
    }
    aim(r, &env, &insn, &mut regs);
    if !is_64 {
        for g in Gpr::ALL {
            let v = regs.gprs.get(g) & 0xffff_ffff;
            regs.gprs.set(g, v);
        }
    }
    env.ram = ram.to_vec();
    select(r, &mut env, &insn, &mut regs);
    if matches!(
        insn.mnemonic,
        Mnemonic::MovToSeg | Mnemonic::PopSeg | Mnemonic::Lss
    ) {
        bytes[usize::from(insn.len)..].fill(0x90);
    }
    Some(Case {
        env,
        regs,
        bytes,
        insn,
        was_64: is_64,
    })
}

/// Gives instructions that take a selector one that exists, mostly, where they look for it.
fn select(r: &mut Rng, env: &mut TestEnv, insn: &Insn, regs: &mut Regs) {
    use Mnemonic::*;
    let size = u64::from(insn.opsize);
    let any = r.pick(&[
        USER_DS, USER_CS32, USER_CS64, CODE16, DATA16, 0x17, 0x1f, 0x27, 0x2f, FLAT_LDT, 0, 3,
        0x10, 0x18, 0x3f,
    ]);
    if r.one_in(10) {
        return;
    }
    let mask = |n: u8| if n == 8 { u64::MAX } else { (1 << (8 * n)) - 1 };
    let put = |env: &mut TestEnv, la: u64, bytes: &[u8]| {
        if la >= DATA && la - DATA + 8 < DATA_LEN as u64 {
            env.poke(la, bytes);
        }
    };
    let stack = env.segs[Seg::Ss as usize].base.wrapping_add(
        regs.gprs.get(Gpr::Rsp)
            & mask(if insn.addrsize == 8 {
                8
            } else {
                2 + 2 * u8::from(env.segs[Seg::Ss as usize].attr.db())
            }),
    );
    match insn.mnemonic {
        RetFar => {
            // A smaller RPL is a fault that comes after reads of what cannot be there.
            put(env, stack.wrapping_add(size), &(any | 3).to_le_bytes());
            let target = r.below(0x2000);
            put(env, stack, &target.to_le_bytes()[..insn.opsize.into()]);
        }
        PopSeg => put(env, stack, &any.to_le_bytes()),
        Lar | Lsl | Verr | Verw | Arpl | MovToSeg | Lds | Les | Lfs | Lgs | Lss | JmpFar
        | CallFar => {
            let Some(m) = insn.mem else {
                regs.gprs.set(Gpr::from_low4(insn.rm()), u64::from(any));
                return;
            };
            let base = m.base.map_or(0, |b| regs.gprs.get(b));
            let index = m.index.map_or(0, |i| regs.gprs.get(i) << m.scale);
            let ea = base.wrapping_add(index).wrapping_add(m.disp as u64) & mask(insn.addrsize);
            let la = env.segs[m.seg as usize].base.wrapping_add(ea);
            let offset = match insn.mnemonic {
                Lds | Les | Lfs | Lgs | Lss | JmpFar | CallFar
                    if size == 8 && vendor() == Vendor::Amd =>
                {
                    4
                }
                Lds | Les | Lfs | Lgs | Lss | JmpFar | CallFar => size,
                _ => 0,
            };
            put(env, la.wrapping_add(offset), &any.to_le_bytes());
            if matches!(insn.mnemonic, JmpFar | CallFar) {
                put(env, la, &r.below(0x2000).to_le_bytes()[..offset as usize]);
            }
        }
        _ => {}
    }
}

/// What this processor lacks.
fn missing() -> Vec<Feature> {
    [
        (is_x86_feature_detected!("adx"), Feature::Adx),
        (is_x86_feature_detected!("avx"), Feature::Avx),
        (is_x86_feature_detected!("bmi1"), Feature::Bmi1),
        (is_x86_feature_detected!("bmi2"), Feature::Bmi2),
        (is_x86_feature_detected!("cmpxchg16b"), Feature::Cx16),
        (is_x86_feature_detected!("lzcnt"), Feature::Lzcnt),
        (is_x86_feature_detected!("movbe"), Feature::Movbe),
        (is_x86_feature_detected!("popcnt"), Feature::Popcnt),
    ]
    .into_iter()
    .filter_map(|(has, f)| (!has).then_some(f))
    .collect()
}

fn vendor() -> Vendor {
    static VENDOR: OnceLock<Vendor> = OnceLock::new();
    *VENDOR.get_or_init(|| {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if info.contains("AuthenticAMD") || info.contains("HygonGenuine") {
            Vendor::Amd
        } else {
            Vendor::Intel
        }
    })
}

/// The model's GDT and LDT.
fn tables() -> Vec<u8> {
    let mut t = vec![0u8; 0x2000];
    let gdt: [u64; 7] = [
        0,
        0x00cf_9b00_0000_ffff, // kernel code, 32-bit
        0x00af_9b00_0000_ffff, // kernel code
        0x00cf_9300_0000_ffff, // kernel data
        0x00cf_fb00_0000_ffff, // user code, 32-bit
        0x00cf_f300_0000_ffff, // user data
        0x00af_fb00_0000_ffff, // user code
    ];
    for (i, d) in gdt.iter().enumerate() {
        t[i * 8..i * 8 + 8].copy_from_slice(&d.to_le_bytes());
    }
    for (i, d) in LDT.iter().enumerate() {
        t[0x1000 + i * 8..0x1008 + i * 8].copy_from_slice(&d.raw().to_le_bytes());
    }
    t
}

/// The vector whose signal this is, as near as signals tell.
fn signal_vector(signal: i32, code: i32) -> &'static [u8] {
    match (signal, code) {
        (libc::SIGILL, _) => &[vector::UD],
        (libc::SIGFPE, _) => &[vector::DE],
        (libc::SIGBUS, 1) => &[vector::AC],
        (libc::SIGBUS, _) => &[vector::SS, vector::NP],
        (libc::SIGSEGV, 1 | 2) => &[vector::PF],
        (libc::SIGSEGV, _) => &[vector::GP, vector::BR],
        _ => &[],
    }
}

fn load(n: &mut Native, c: &mut Case) -> bool {
    n.poke(c.regs.rip + c.env.segs[Seg::Cs as usize].base, &c.bytes);
    let s = |s: Seg| u64::from(c.env.segs[s as usize].selector);
    let mut u = n.regs();
    // This one cannot be set.
    c.regs.rflags = c.regs.rflags & !rflags::ID | u.eflags & rflags::ID;
    let g = |r: Gpr| c.regs.gprs.get(r);
    (u.rax, u.rcx, u.rdx, u.rbx) = (g(Gpr::Rax), g(Gpr::Rcx), g(Gpr::Rdx), g(Gpr::Rbx));
    (u.rsp, u.rbp, u.rsi, u.rdi) = (g(Gpr::Rsp), g(Gpr::Rbp), g(Gpr::Rsi), g(Gpr::Rdi));
    (u.r8, u.r9, u.r10, u.r11) = (g(Gpr::R8), g(Gpr::R9), g(Gpr::R10), g(Gpr::R11));
    (u.r12, u.r13, u.r14, u.r15) = (g(Gpr::R12), g(Gpr::R13), g(Gpr::R14), g(Gpr::R15));
    (u.rip, u.eflags, u.orig_rax) = (c.regs.rip, c.regs.rflags, u64::MAX);
    (u.cs, u.ss, u.ds) = (s(Seg::Cs), s(Seg::Ss), s(Seg::Ds));
    (u.es, u.fs, u.gs) = (s(Seg::Es), s(Seg::Fs), s(Seg::Gs));
    u.fs_base = c.env.segs[Seg::Fs as usize].base;
    u.gs_base = c.env.segs[Seg::Gs as usize].base;
    n.set_regs(&u)
}

/// Flags that are compared: those of arithmetic, direction, alignment checks. (A debugger cannot set the
/// rest.)
const COMPARED: u64 = rflags::CF
    | rflags::PF
    | rflags::AF
    | rflags::ZF
    | rflags::SF
    | rflags::OF
    | rflags::DF
    | rflags::AC;

fn compare(
    n: &Native,
    c: &Case,
    after: &Regs,
    stopped: Stopped,
    ours: Result<Outcome, Stop>,
) -> Option<String> {
    let u = n.regs();
    match (stopped, ours) {
        (
            Stopped::Stepped,
            Ok(Outcome::Done { trap: true, .. } | Outcome::Partial { trap: true }),
        ) => {}
        (
            Stopped::Stepped,
            Ok(Outcome::Done {
                shadow: Some(_), ..
            }),
        ) => {}
        (Stopped::Signal(s, code, addr), Err(Stop::Fault(e))) => {
            if !signal_vector(s, code).contains(&e.vector) {
                return Some(format!("signal {s} code {code} at {addr:x}, ours {e:x?}"));
            }
            if e.vector == vector::PF && e.payload != Some(addr) {
                return Some(format!("page fault at {addr:x}, ours {e:x?}"));
            }
        }
        (s, o) => return Some(format!("{s:?}, ours {o:?}")),
    }
    // A far transfer may change the mode; the upper halves mean something in neither then.
    let is_64 = c.was_64 && c.env.segs[Seg::Cs as usize].attr.long();
    let theirs = [
        u.rax, u.rcx, u.rdx, u.rbx, u.rsp, u.rbp, u.rsi, u.rdi, u.r8, u.r9, u.r10, u.r11, u.r12,
        u.r13, u.r14, u.r15,
    ];
    let count = if is_64 { 16 } else { 8 };
    for (i, r) in Gpr::ALL.into_iter().enumerate().take(count) {
        let mask = if is_64 { u64::MAX } else { 0xffff_ffff };
        let (t, o) = (theirs[i] & mask, after.gprs.get(r) & mask);
        if t != o {
            return Some(format!("{r:?} {t:x}, ours {o:x}"));
        }
    }
    // After a load of SS the processor goes on for one instruction, a NOP.
    let shadow = matches!(
        ours,
        Ok(Outcome::Done {
            shadow: Some(_),
            ..
        })
    );
    if u.rip != after.rip + u64::from(shadow) {
        return Some(format!("rip {:x}, ours {:x}", u.rip, after.rip));
    }
    let mask = COMPARED & !undefined(&c.insn, &c.regs)?;
    if (u.eflags ^ after.rflags) & mask != 0 {
        return Some(format!(
            "flags {:x}, ours {:x}",
            u.eflags & mask,
            after.rflags & mask
        ));
    }
    let selectors = [u.es, u.cs, u.ss, u.ds, u.fs, u.gs];
    for (i, s) in selectors.into_iter().enumerate() {
        if s != u64::from(c.env.segs[i].selector) {
            return Some(format!(
                "segment {i} {s:x}, ours {:x}",
                c.env.segs[i].selector
            ));
        }
    }
    None
}

fn describe(c: &Case, why: &str) -> String {
    let hex: Vec<String> = c.bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{:?} {why}\n  {} len {}\n  before {:x?}\n  segs {:x?}\n  {:?}",
        c.insn.mnemonic,
        hex.join(" "),
        c.insn.len,
        c.regs,
        c.env.segs.map(|s| (s.selector, s.base)),
        c.insn,
    )
}

fn run(native: &mut Native, width: Width, salt: u64, wanted: u64) {
    let mut r = Rng::new(salt);
    let mut ram: Vec<u8> = (0..DATA_LEN).map(|_| r.u8()).collect();
    native.poke(DATA, &ram);
    let mut xmm = [[0u8; 32]; 16];
    let mut theirs = vec![0; DATA_LEN];
    let mut done = 0u64;
    let mut failures = std::collections::BTreeMap::<String, (u64, String)>::new();
    let mut seen = std::collections::BTreeMap::<String, (u64, u64)>::new();
    while done < wanted {
        let Some(mut c) = new_case(&mut r, width, &ram) else {
            continue;
        };
        let wide = c.insn.vex.is_some_and(|v| v.l);
        if c.insn.mnemonic == Mnemonic::VecMov && wide {
            continue; // the upper halves cannot be seen
        }
        c.env.tables_at = TABLES;
        c.env.tables = tables();
        let vector = c.insn.vec.is_some()
            || matches!(c.insn.mnemonic, Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr);
        if vector {
            let mut f = native.fpregs();
            for (i, x) in xmm.iter_mut().enumerate() {
                let v: [u32; 4] = std::array::from_fn(|_| r.u64() as u32);
                for (k, d) in v.iter().enumerate() {
                    f.xmm_space[i * 4 + k] = *d;
                    x[k * 4..k * 4 + 4].copy_from_slice(&d.to_le_bytes());
                }
            }
            f.mxcsr = 0x1f80;
            native.set_fpregs(&f);
            c.env.xmm = xmm;
        }
        if c.env.ram != ram {
            native.poke(DATA, &c.env.ram);
        }
        if !load(native, &mut c) {
            continue;
        }
        let stopped = native.step();
        if matches!(stopped, Stopped::Signal(libc::SIGSTOP, ..)) {
            native.poke(DATA, &ram);
            continue; // the child ran on: a far call to where the kernel loops
        }
        let mut after = c.regs;
        after.rflags |= rflags::TF;
        let ours = {
            let bytes = c.bytes;
            c.env.run(&bytes, &mut after)
        };
        let slot = seen.entry(format!("{:?}", c.insn.mnemonic)).or_default();
        slot.0 += 1;
        slot.1 += u64::from(ours.is_ok());
        let mut why = match ours {
            // The kernel's segment that numbers the processor is not in the model's GDT.
            Err(Stop::Fault(e)) if e.error == Some(0x78) => {
                native.poke(DATA, &ram);
                continue;
            }
            // The child's code is not the model's.
            Err(Stop::Fault(e)) if e.payload.is_some_and(|a| a.wrapping_sub(CODE) < 4096) => {
                native.poke(DATA, &ram);
                continue;
            }
            // We do not ask whether the line is mapped.
            Ok(_) if c.insn.mnemonic == Mnemonic::Clflush => None,
            Err(Stop::Unhandleable) => Some("unhandleable".into()),
            ours => {
                if undefined(&c.insn, &c.regs).is_some() {
                    compare(native, &c, &after, stopped, ours)
                } else {
                    None
                }
            }
        };
        done += 1;
        native.peek(DATA, &mut theirs);
        // The processor has written some slots when a later one faults.
        let partial = matches!(c.insn.mnemonic, Mnemonic::Enter | Mnemonic::Pusha) && ours.is_err();
        // Which of several faults comes first is not said: that of which frame of ENTER, of which
        // operand of CMPS; RETF to an inner level looks at the outer stack before it minds.
        let choice = match c.insn.mnemonic {
            Mnemonic::Enter | Mnemonic::Cmps => ours.is_err(),
            // Alignment, or the segment's limit.
            Mnemonic::VecMov => c.insn.vec.is_some_and(|v| v.aligned) && ours.is_err(),
            Mnemonic::CallFar => matches!(ours, Err(Stop::Fault(e)) if e.vector == vector::SS),
            Mnemonic::RetFar => {
                matches!(ours, Err(Stop::Fault(e)) if e.vector == vector::GP)
            }
            _ => false,
        };
        if choice && stopped != Stopped::Stepped {
            why = None;
        }
        if why.is_none() && !partial && undefined(&c.insn, &c.regs).is_some() && theirs != c.env.ram
        {
            let at = theirs
                .iter()
                .zip(&c.env.ram)
                .position(|(a, b)| a != b)
                .unwrap();
            why = Some(format!(
                "memory at {:x}: {:02x?}, ours {:02x?}",
                DATA + at as u64,
                &theirs[at..(at + 8).min(DATA_LEN)],
                &c.env.ram[at..(at + 8).min(DATA_LEN)]
            ));
        }
        if why.is_none() && vector {
            let f = native.fpregs();
            for (i, x) in c.env.xmm.iter().enumerate() {
                let t: Vec<u8> = f.xmm_space[i * 4..i * 4 + 4]
                    .iter()
                    .flat_map(|d| d.to_le_bytes())
                    .collect();
                if t != x[..16] {
                    why = Some(format!("xmm{i} {t:02x?}, ours {:02x?}", &x[..16]));
                }
            }
            if f.mxcsr != c.env.mxcsr {
                why = Some(format!("mxcsr {:x}, ours {:x}", f.mxcsr, c.env.mxcsr));
            }
        }
        if let Some(why) = why {
            let kind: String = format!(
                "{:?} {}",
                c.insn.mnemonic,
                why.split([' ', '(']).next().unwrap()
            );
            failures
                .entry(kind)
                .or_insert_with(|| (0, describe(&c, &why)))
                .0 += 1;
        }
        std::mem::swap(&mut ram, &mut theirs);
    }
    if std::env::var("RKVM_VERBOSE").is_ok() {
        println!("{width:?}: {seen:?}");
    }
    for (k, (n, d)) in &failures {
        println!("{n} x {k}: {d}");
    }
    println!("{width:?}: {done} instructions, {} kinds", seen.len());
    assert!(failures.is_empty(), "{} kinds of failures", failures.len());
}

#[test]
fn same_as_the_processor() {
    let mut native = Native::new(&LDT);
    run(&mut native, Width::Bits64, 64, 60_000);
    run(&mut native, Width::Bits32, 32, 60_000);
    run(&mut native, Width::Bits16, 16, 60_000);
}
