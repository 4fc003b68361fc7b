// SPDX-License-Identifier: GPL-2.0

//! The decoder against iced-x86: same validity, same length, same memory operand.

mod common;

use common::Rng;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use rkvm_unit::arch::x86::model::decode::{decode, Insn, Mnemonic, Mode, Opnd, Vendor, Width};
use rkvm_unit::arch::x86::model::regs::{Gpr, Seg};

/// What iced decodes and we call invalid, and why.
fn only_iced(i: &Instruction) -> Option<&'static str> {
    let name = format!("{:?}", i.code());
    let table: &[(&[&str], &str)] = &[
        (
            &["Xstore", "Xsha", "Xcrypt", "Via_undoc", "Ccs_", "Montmul"],
            "VIA and Zhaoxin PadLock: no processor that this module runs on",
        ),
        (
            &["Femms"],
            "3DNow!, which no processor with SVM and nested paging kept",
        ),
        (
            &["VEX_Vpermil2", "VEX_Vfm", "VEX_Vfnm"],
            "FMA4, dropped with Zen",
        ),
        (
            &[
                "VEX_Ldtilecfg",
                "VEX_Sttilecfg",
                "VEX_Tile",
                "VEX_Td",
                "VEX_Tc",
                "VEX_T",
            ],
            "AMX",
        ),
        (
            &[
                "Reservednop_rm16_r16_0F0D",
                "Reservednop_rm32_r32_0F0D",
                "Reservednop_rm64_r64_0F0D",
            ],
            "register forms of PREFETCH: #UD on AMD, measured on a Zen 4",
        ),
        (
            &["Hreset", "Seamcall", "Seamret", "Seamops", "Tdcall"],
            "TDX modules and HRESET",
        ),
        (&["VEX_KNC"], "Knights Corner"),
    ];
    table
        .iter()
        .find(|(p, _)| p.iter().any(|p| name.starts_with(p)))
        .map(|&(_, why)| why)
}

fn iced(bytes: &[u8], mode: Mode) -> Option<Instruction> {
    let bits = match mode.width {
        Width::Bits16 => 16,
        Width::Bits32 => 32,
        Width::Bits64 => 64,
    };
    let options = match mode.vendor {
        Vendor::Amd => DecoderOptions::AMD,
        Vendor::Intel => DecoderOptions::NONE,
    };
    let i = Decoder::new(bits, bytes, options).decode();
    (!i.is_invalid()).then_some(i)
}

fn describe(bytes: &[u8], mode: Mode) -> String {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{mode:?} {}", hex.join(" "))
}

/// EVEX: we take its length and do not ask whether the instruction exists, since none is emulated.
fn evex(o: &Insn, bytes: &[u8]) -> bool {
    let prefixes = bytes
        .iter()
        .take_while(|b| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0x40..=0x4f));
    o.mnemonic == Mnemonic::Other && bytes[prefixes.count()] == 0x62
}

/// How the decoded parts differ, if they do: name, memory operand, immediate.
fn differs(o: &Insn, i: &Instruction, is_64: bool) -> Option<String> {
    if o.mnemonic == Mnemonic::Other {
        return None;
    }
    if !same_name(o, i) {
        return Some(format!("name {:?}", o.mnemonic));
    }
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                let Some(m) = o.mem else {
                    return match o.mnemonic {
                        Mnemonic::Nop | Mnemonic::Ud | Mnemonic::Xlat => None,
                        _ => Some("no memory operand".into()),
                    };
                };
                if o.mnemonic == Mnemonic::Ud {
                    return None;
                }
                let base = reg(i.memory_base());
                let rip = matches!(i.memory_base(), Register::RIP | Register::EIP);
                let disp = if rip {
                    i.memory_displacement64().wrapping_sub(i.len() as u64)
                } else {
                    i.memory_displacement64()
                };
                let mask = match o.addrsize {
                    2 => 0xffff,
                    4 => 0xffff_ffff,
                    _ => u64::MAX,
                };
                let index = reg(i.memory_index());
                if m.rip_relative != rip
                    || m.base != base
                    || m.index != index
                    || (index.is_some() && 1 << m.scale != i.memory_index_scale())
                    || (m.disp as u64 ^ disp) & mask != 0
                    || wrong_segment(m.seg, i.memory_segment(), is_64)
                {
                    return Some("memory operand".into());
                }
            }
            OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64 => {
                let want = i.immediate(n);
                let one = o.ops.contains(&Opnd::One);
                let mask = match o.opsize {
                    _ if o.ops.contains(&Opnd::Ib) => 0xff,
                    _ if o.ops.contains(&Opnd::Iw) => 0xffff,
                    2 => 0xffff,
                    4 => 0xffff_ffff,
                    _ => u64::MAX,
                };
                if !one && o.mnemonic != Mnemonic::Enter && (o.imm as u64 ^ want) & mask != 0 {
                    return Some("immediate".into());
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                let want = i.near_branch_target();
                let mask = match o.opsize {
                    2 => 0xffff,
                    4 => 0xffff_ffff,
                    _ => u64::MAX,
                };
                let target = (o.imm as u64).wrapping_add(u64::from(o.len));
                if (target ^ want) & mask != 0 {
                    return Some("branch target".into());
                }
            }
            OpKind::Register => {
                let want = i.op_register(n);
                if want.is_gpr() {
                    // Which number names it: reg, rm, opcode, vvvv or fixed.
                    let num = want.full_register().number() as u8;
                    let v = o.vex.map_or(0, |v| v.vvvv);
                    let ours = [o.reg(), o.rm(), o.opreg(), v, 0, 1, 2];
                    let high8 = want.is_gpr8() && o.prefixes.rex == 0;
                    if !high8 && !ours.contains(&num) {
                        return Some(format!("register {want:?}"));
                    }
                }
            }
            _ => {}
        }
    }
    None
}

fn reg(r: Register) -> Option<Gpr> {
    match r {
        Register::None | Register::RIP | Register::EIP => None,
        r => Some(Gpr::from_low4(r.number() as u8)),
    }
}

/// In 64-bit mode iced keeps overrides that mean nothing there.
fn wrong_segment(ours: Seg, theirs: Register, is_64: bool) -> bool {
    let theirs = seg(theirs);
    if is_64 && !matches!(theirs, Seg::Fs | Seg::Gs) {
        matches!(ours, Seg::Fs | Seg::Gs)
    } else {
        ours != theirs
    }
}

fn seg(r: Register) -> Seg {
    match r {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => Seg::Ds,
    }
}

/// Our names for what iced names finer.
fn same_name(o: &Insn, i: &Instruction) -> bool {
    use Mnemonic as M;
    let theirs = format!("{:?}", i.mnemonic()).to_lowercase();
    let ours = format!("{:?}", o.mnemonic).to_lowercase();
    let among = |names: &[&str]| names.contains(&theirs.as_str());
    match o.mnemonic {
        M::CallFar | M::CallFarImm | M::CallNear | M::CallRel => theirs == "call",
        M::JmpFar | M::JmpFarImm | M::JmpNear | M::JmpRel => theirs == "jmp",
        M::RetFar => theirs == "retf",
        M::RetNear => theirs == "ret",
        M::Cbw => among(&["cbw", "cwde", "cdqe"]),
        M::Cwd => among(&["cwd", "cdq", "cqo"]),
        M::Clflush => among(&["clflush", "clflushopt", "clwb"]),
        M::Cmov => theirs.starts_with("cmov"),
        M::Set => theirs.starts_with("set"),
        M::Jcc => theirs.starts_with('j') && !theirs.contains("cxz") && theirs != "jmp",
        M::Jcxz => among(&["jcxz", "jecxz", "jrcxz"]),
        M::Cmpxchg8b => among(&["cmpxchg8b", "cmpxchg16b"]),
        M::Fence => theirs.ends_with("fence"),
        M::Fwait => theirs == "wait",
        M::Fxsave | M::Fxrstor => theirs.starts_with(&ours),
        M::Imul1 => theirs == "imul",
        M::MovFromCr | M::MovToCr | M::MovFromDr | M::MovToDr | M::MovFromSeg | M::MovToSeg => {
            theirs == "mov"
        }
        M::PushSeg => theirs == "push",
        M::PopSeg => theirs == "pop",
        M::Shl => among(&["shl", "sal"]),
        M::Ud => among(&["ud0", "ud1", "ud2"]),
        M::Xsave => theirs.starts_with("xsave") || theirs.starts_with("xrstor"),
        M::Xlat => theirs == "xlatb",
        M::Nop => {
            theirs.starts_with("prefetch")
                || theirs.starts_with("endbr")
                || theirs.starts_with("bnd")
                || among(&["nop", "reservednop", "cldemote", "rdsspd", "rdsspq"])
        }
        M::Wbinvd => among(&["wbinvd", "wbnoinvd"]),
        M::Vmcall => theirs == "vmcall",
        // With F2 or F3, VMGEXIT; outside encrypted guests it is VMMCALL all the same.
        M::Vmmcall => among(&["vmmcall", "vmgexit"]),
        M::Ldmxcsr | M::Stmxcsr => theirs.ends_with(&ours),
        M::VecMov => theirs.contains("mov") || theirs == "lddqu" || theirs == "vlddqu",
        M::Movs
        | M::Cmps
        | M::Scas
        | M::Lods
        | M::Stos
        | M::Ins
        | M::Outs
        | M::Iret
        | M::Pushf
        | M::Popf
        | M::Pusha
        | M::Popa
        | M::Sysexit
        | M::Sysret
        | M::Loop
        | M::Loope
        | M::Loopne
        | M::Vmrun
        | M::Vmload
        | M::Vmsave
        | M::Invlpga
        | M::Monitor => theirs.starts_with(&ours),
        // F3 REX.B 90: measured on a Zen 4, the registers are exchanged.
        M::Xchg if theirs == "pause" => o.prefixes.rex & 1 != 0,
        _ => theirs == ours,
    }
}

/// Gathers, which iced refuses when two of their registers are the same one.
fn gather(o: &Insn) -> bool {
    o.mnemonic == Mnemonic::Other && o.vex.is_some() && matches!(o.opcode, 0x90..=0x93)
}

#[derive(Default)]
struct Tally {
    compared: u64,
    valid: u64,
    excepted: u64,
    failures: Vec<String>,
    kinds: std::collections::BTreeMap<String, u64>,
}

fn compare(t: &mut Tally, bytes: &[u8], mode: Mode) {
    t.compared += 1;
    let ours = decode(bytes, mode);
    let theirs = iced(bytes, mode);
    let (kind, msg) = match (&ours, &theirs) {
        (Ok(o), Some(i)) => {
            t.valid += 1;
            if usize::from(o.len) != i.len() {
                (
                    format!("len {:?}", i.code()),
                    format!("{} != {}", o.len, i.len()),
                )
            } else if let Some(why) = differs(o, i, mode.is_64()) {
                (format!("{:?} {why}", i.code()), format!("{o:?}"))
            } else {
                return;
            }
        }
        (Err(_), None) => return,
        (Ok(o), None) if evex(o, bytes) || gather(o) => {
            t.excepted += 1;
            return;
        }
        (Ok(o), None) => (
            format!(
                "only ours {} op {:02x} {:?} pp{:?} modrm {:02x}",
                if o.vex.is_some() { "VEX" } else { "legacy" },
                o.opcode,
                o.mnemonic,
                o.prefixes.rep,
                o.modrm & 0xf8
            ),
            String::new(),
        ),
        (Err(e), Some(i)) => {
            if only_iced(i).is_some() {
                t.excepted += 1;
                return;
            }
            (format!("only iced {:?} {e:?}", i.code()), String::new())
        }
    };
    let n = t.kinds.entry(kind.clone()).or_default();
    *n += 1;
    if *n == 1 {
        t.failures
            .push(format!("{kind} {msg}: {}", describe(bytes, mode)));
    }
}

/// Bytes: any, or prefixes and an opcode of a map and then any.
fn bytes(r: &mut Rng) -> [u8; 15] {
    let mut b = [0u8; 15];
    for x in &mut b {
        *x = r.u8();
    }
    if r.one_in(5) {
        return b;
    }
    let mut at = 0;
    for _ in 0..r.pick(&[0, 0, 0, 1, 1, 2, 3]) {
        b[at] = r.pick(&[
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
        ]);
        at += 1;
    }
    if r.one_in(3) {
        b[at] = 0x40 | r.u8() & 15;
        at += 1;
    }
    match r.below(8) {
        0..=2 => {}
        3 | 4 => b[at] = 0x0f,
        5 => (b[at], b[at + 1]) = (0x0f, 0x38),
        6 => (b[at], b[at + 1]) = (0x0f, 0x3a),
        _ => {
            b[at] = r.pick(&[0xc4, 0xc5]);
            if r.one_in(2) {
                b[at + 1] = (b[at + 1] & 0xe0) | (1 + r.u8() % 3);
            }
        }
    }
    b
}

#[test]
fn agrees_with_iced() {
    let mut r = Rng::new(1);
    let mut t = Tally::default();
    let modes: Vec<Mode> = [Width::Bits16, Width::Bits32, Width::Bits64]
        .into_iter()
        .flat_map(|w| [Mode::new(w, Vendor::Amd), Mode::new(w, Vendor::Intel)])
        .collect();
    for _ in 0..1_000_000u64 {
        let b = bytes(&mut r);
        for &m in &modes {
            compare(&mut t, &b, m);
        }
    }
    println!(
        "{} compared, {} valid, {} excepted",
        t.compared, t.valid, t.excepted
    );
    for f in &t.failures {
        let _ = &f;
        println!("{f}");
    }
    assert!(t.failures.is_empty());
}
