// SPDX-License-Identifier: GPL-2.0

//! `KVM_SET_GUEST_DEBUG`: what a debugger in user space sees, and what the guest does not.

use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use libc::{EBUSY, EINVAL};
use rkvm_l1::kit::{self, CODE, DATA, MMIO};
use rkvm_l1::machine::assemble;
use rkvm_l1::{env, sys, Cpu, Exit, Irqchip, Machine, Mode, Outcome};

tests![
    capabilities,
    bad_arguments,
    steps_plain,
    steps_emulated,
    steps_own_devices,
    steps_string,
    steps_port_string,
    steps_over_halt,
    steps_faults,
    steps_shadows,
    steps_over_an_interrupt,
    steps_with_events_blocked,
    step_goes_on_elsewhere,
    step_hides_the_flag,
    step_keeps_the_guests_flag,
    step_leaves_events_alone,
    int3_exits,
    int3_is_the_guests,
    int_n_beside_int3,
    int3_in_real_mode,
    code_breakpoints,
    data_breakpoints,
    guest_keeps_its_registers,
    guests_breakpoint_while_stepping,
    general_detect,
    inject_db,
    inject_bp,
    inject_is_busy,
    off_restores,
];

const ENABLE: u32 = 1;
const STEP: u32 = 2;
const SW: u32 = 0x1_0000;
const HW: u32 = 0x2_0000;
const INJECT_DB: u32 = 0x4_0000;
const INJECT_BP: u32 = 0x8_0000;
const BLOCK: u32 = 0x10_0000;

const TF: u64 = 0x100;
const IF: u64 = 0x200;
/// DR6 as it is when nothing has happened, and its bits for an access to a debug register and a step.
const DR6: u64 = 0xffff_0ff0;
const BD: u64 = 0x2000;
const BS: u64 = 0x4000;

const MODES: [Mode; 3] = [Mode::Real, Mode::Protected, Mode::Long];

type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn control(c: &Cpu, control: u32, dr: [u64; 4], dr7_value: u64) -> Result<i32, i32> {
    let mut d = kvm_guest_debug {
        control,
        ..Default::default()
    };
    d.arch.debugreg[..4].copy_from_slice(&dr);
    d.arch.debugreg[7] = dr7_value;
    sys::with(c.raw(), sys::SET_GUEST_DEBUG, &mut d)
}

/// The double word that a register points to, by its name in long mode and elsewhere.
fn pointee(a: &CodeAssembler, long: AsmRegister64, other: AsmRegister32) -> AsmMemoryOperand {
    if a.bitness() == 64 {
        dword_ptr(long)
    } else {
        dword_ptr(other)
    }
}

/// The guest runs into one of the kit's handlers, which tells.
#[track_caller]
fn faults(c: &mut Cpu) {
    let e = c.run();
    assert!(
        matches!(
            e,
            Ok(Exit::Out {
                port: kit::PORT_FAULT,
                ..
            })
        ),
        "{e:x?} {:x?}",
        c.fd.get_regs()
    );
}

#[track_caller]
fn set(c: &Cpu, flags: u32) {
    assert_eq!(control(c, flags, [0; 4], 0x400), Ok(0), "flags {flags:#x}");
}

/// A machine that runs `code` one after the other, and the linear address behind each of them.
fn listing(mode: Mode, irqchip: Irqchip, code: &[Emit]) -> (Machine, Vec<u64>) {
    let m = Machine::with(mode, irqchip, 1);
    let (mut at, mut ends) = (CODE, Vec::new());
    for f in code {
        let bytes = assemble(mode.bits(), 0, f).expect("code");
        m.ram.put(at, &bytes);
        at += bytes.len() as u64;
        ends.push(at);
    }
    m.ram
        .put(at, &assemble(mode.bits(), 0, kit::done).expect("code"));
    (m, ends)
}

/// The processor is QEMU's emulated one.
fn on_tcg() -> bool {
    // SAFETY: every 64-bit processor has CPUID.
    let r = unsafe { std::arch::x86_64::__cpuid(0x4000_0000) };
    let name = [r.ebx, r.ecx, r.edx].map(u32::to_le_bytes).concat();
    name == *b"TCGTCGTCGTCG"
}

/// The exit after a step, at this linear address.
#[track_caller]
fn stepped(c: &mut Cpu, pc: u64) {
    let e = c.run();
    let want = Exit::Debug {
        exception: 1,
        pc,
        dr6: DR6 | BS,
    };
    assert_eq!(e, Ok(want), "{:x?}", c.fd.get_regs());
    let r = c.fd.get_regs().expect("KVM_GET_REGS");
    assert_eq!(r.rflags & TF, 0, "the flag that steps is seen");
}

fn capabilities() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    for (cap, want) in [
        (KVM_CAP_SET_GUEST_DEBUG, 1),
        (KVM_CAP_SET_GUEST_DEBUG2, 0x1f_0003),
    ] {
        assert_eq!(m.kvm.check_extension_raw(cap.into()), want, "{cap}");
        assert_eq!(m.vm.check_extension_raw(cap.into()), want, "{cap}");
    }
    Ok(())
}

fn bad_arguments() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    let c = &m.cpus[0];
    assert_eq!(
        control(c, 0x1f_0003 & !INJECT_BP & !INJECT_DB, [0; 4], 0x400),
        Ok(0)
    );
    assert_eq!(control(c, 0, [0; 4], 0), Ok(0));
    if !env().rkvm {
        // It takes any bits, and would fail to enter with DR7.
        return Ok(());
    }
    for bit in (2..16).chain(21..32) {
        assert_eq!(
            control(c, ENABLE | 1 << bit, [0; 4], 0),
            Err(EINVAL),
            "{bit}"
        );
        assert_eq!(control(c, 1 << bit, [0; 4], 0), Err(EINVAL), "{bit}");
    }
    assert_eq!(control(c, ENABLE | HW, [0; 4], 1 << 32), Err(EINVAL));
    // Not looked at.
    assert_eq!(control(c, ENABLE, [0; 4], 1 << 32), Ok(0));
    assert_eq!(control(c, HW, [0; 4], 1 << 32), Ok(0));
    Ok(())
}

fn steps_plain() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.nop(),
                |a| a.mov(eax, 0x1234_5678),
                |a| a.mov(edi, DATA as i32 & 0x7fff),
                |a| a.pushf(),
                |a| a.inc(eax),
                |a| a.popf(),
                |a| a.xor(eax, 0x0f0f_0f0f),
                kit::result,
            ],
        );
        let c = m.cpu();
        for pc in &ends[..7] {
            // As debuggers do it: anew for each step.
            set(c, ENABLE | STEP);
            stepped(c, *pc);
        }
        set(c, 0);
        assert_eq!(c.results(), [0x1234_5679 ^ 0x0f0f_0f0f], "{mode:?}");
        // And once for all.
        c.start(mode, CODE, 0);
        set(c, ENABLE | STEP);
        for pc in &ends[..6] {
            stepped(c, *pc);
        }
        set(c, 0);
        assert_eq!(c.results(), [0x1234_5679 ^ 0x0f0f_0f0f], "{mode:?}");
    }
    Ok(())
}

fn steps_emulated() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.xor(eax, eax),
                |a| a.cpuid(),
                |a| a.mov(ecx, 0x10),
                |a| a.rdmsr(),
                |a| a.mov(ecx, 0x277),
                |a| a.rdmsr(),
                |a| a.wrmsr(),
                |a| {
                    if a.bitness() == 64 {
                        a.mov(rax, cr0)
                    } else {
                        a.mov(eax, cr0)
                    }
                },
                |a| {
                    if a.bitness() == 64 {
                        a.mov(cr0, rax)
                    } else {
                        a.mov(cr0, eax)
                    }
                },
                |a| a.wbinvd(),
                |a| a.pause(),
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        for pc in &ends {
            set(c, ENABLE | STEP);
            stepped(c, *pc);
        }
        set(c, 0);
        c.results();
    }
    Ok(())
}

/// Instructions that user space takes part in.
fn steps_own_devices() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.nop(),
                |a| a.in_(al, 0x50),
                |a| a.out(0x51, al),
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP);
        stepped(c, ends[0]);
        assert!(matches!(c.run(), Ok(Exit::In { port: 0x50, .. })));
        c.answer(&[7]);
        stepped(c, ends[1]);
        assert_eq!(c.fd.get_regs()?.rax & 0xff, 7);
        assert!(matches!(c.run(), Ok(Exit::Out { port: 0x51, .. })));
        stepped(c, ends[2]);
        stepped(c, ends[3]);
        set(c, 0);
        c.results();
    }
    for mode in [Mode::Protected, Mode::Long] {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.mov(edx, MMIO as u32),
                |a| {
                    let m = pointee(a, rdx, edx);
                    a.mov(eax, m)
                },
                |a| {
                    let m = pointee(a, rdx, edx);
                    a.mov(m, eax)
                },
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP);
        stepped(c, ends[0]);
        assert!(matches!(c.run(), Ok(Exit::Read { gpa: MMIO, .. })));
        c.answer(&[1, 2, 3, 4]);
        stepped(c, ends[1]);
        assert_eq!(c.fd.get_regs()?.rax, 0x0403_0201);
        assert!(matches!(c.run(), Ok(Exit::Write { gpa: MMIO, .. })));
        if env().rkvm {
            // In-tree KVM forgets to step from here on.
            stepped(c, ends[2]);
            stepped(c, ends[3]);
        }
        set(c, 0);
        c.results();
    }
    Ok(())
}

/// Each iteration is a step.
fn steps_string() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.mov(ecx, 3),
                |a| a.mov(esi, 0x3000),
                |a| a.mov(edi, 0x3100),
                |a| a.rep().movsb(),
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP);
        for pc in &ends[..3] {
            stepped(c, *pc);
        }
        stepped(c, ends[2]);
        assert_eq!(c.fd.get_regs()?.rcx, 2, "{mode:?}");
        stepped(c, ends[2]);
        // The last iteration may count as one more, with nothing left to do.
        let mut e = c.run();
        if matches!(e, Ok(Exit::Debug { pc, .. }) if pc == ends[2]) {
            e = c.run();
        }
        assert!(
            matches!(e, Ok(Exit::Debug { pc, .. }) if pc == ends[3]),
            "{mode:?}: {e:x?}"
        );
        assert_eq!(c.fd.get_regs()?.rcx, 0);
        stepped(c, ends[4]);
        set(c, 0);
        c.results();
    }
    Ok(())
}

/// INS and OUTS: user space hears of each item, and of each step sooner or later.
fn steps_port_string() -> Outcome {
    if !env().rkvm {
        return rkvm_l1::skip("in-tree KVM, which forgets to step here");
    }
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.mov(ecx, 3),
                |a| a.mov(edi, 0x3100),
                |a| a.mov(edx, 0x60),
                |a| a.rep().insb(),
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP);
        for pc in &ends[..3] {
            stepped(c, *pc);
        }
        let (mut items, mut steps) = (0, Vec::new());
        while steps.last() != Some(&ends[4]) {
            match c.run() {
                Ok(Exit::In { count, .. }) => {
                    items += count;
                    c.answer(&[9; 3][..count.min(3)]);
                }
                Ok(Exit::Debug { pc, .. }) => steps.push(pc),
                e => panic!("{e:x?}"),
            }
            assert!(steps.len() < 10, "{steps:x?}");
        }
        println!("{mode:?}: {items} items, {steps:x?} of {ends:x?}");
        assert!(
            steps.len() >= 2 && steps[steps.len() - 2] == ends[3],
            "{steps:x?}"
        );
        set(c, 0);
        c.results();
        assert_eq!(m.ram.get(0x3100, 4), [9, 9, 9, 0]);
    }
    Ok(())
}

/// The exit comes first, then the halt.
fn steps_over_halt() -> Outcome {
    let (mut m, ends) = listing(
        Mode::Long,
        Irqchip::Split,
        &[|a| a.nop(), |a| a.hlt(), |a| a.nop()],
    );
    let c = m.cpu();
    set(c, ENABLE | STEP);
    stepped(c, ends[0]);
    stepped(c, ends[1]);
    assert_eq!(c.fd.get_mp_state()?.mp_state, KVM_MP_STATE_HALTED);
    set(c, 0);
    c.fd.nmi()?;
    c.results();
    assert_eq!(m.count(2), 1);
    Ok(())
}

/// The handler runs; the first instruction behind it is stepped.
fn steps_faults() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        // In-tree KVM forgets to step where it raises the exception itself.
        let vectors = if env().rkvm {
            &[6u8, 13, 14][..]
        } else {
            &[14]
        };
        for &vector in vectors {
            let mut after = 0;
            let mut m = Machine::new(mode, |a| {
                let mut l = a.create_label();
                if mode == Mode::Long {
                    kit::expect64(a, l)?;
                } else {
                    kit::expect32(a, l)?;
                }
                a.mov(ecx, 0x1234_5678)?;
                match vector {
                    6 => a.ud2()?,
                    13 => a.rdmsr()?,
                    _ if mode == Mode::Long => {
                        a.mov(rax, 0x80_0000_0000u64)?;
                        a.mov(eax, dword_ptr(rax))?;
                    }
                    // No paging: another one that only the processor sees.
                    _ => {
                        a.mov(eax, 0xfff8)?;
                        a.mov(fs, eax)?;
                    }
                }
                a.ud2()?;
                a.set_label(&mut l)?;
                a.nop()?;
                a.nop()?;
                kit::done_after(a)
            })?;
            // Where the second NOP is: behind the last UD2.
            for at in CODE..CODE + 0x60 {
                if m.ram.get(at, 4) == [0x0f, 0x0b, 0x90, 0x90] {
                    after = at + 3;
                }
            }
            assert_ne!(after, 0);
            let c = m.cpu();
            set(c, ENABLE | STEP);
            let mut steps = Vec::new();
            while steps.last() != Some(&after) {
                match c.run() {
                    Ok(Exit::Debug { pc, .. }) => steps.push(pc),
                    e => panic!("{mode:?} {vector}: {e:x?} after {steps:x?}"),
                }
                assert!(steps.len() < 20, "{mode:?} {vector}: {steps:x?}");
            }
            assert!(
                steps.iter().all(|s| (CODE..CODE + 0x100).contains(s)),
                "{mode:?} {vector}: no steps in the handler: {steps:x?}"
            );
            set(c, 0);
            c.results();
            let v = if mode == Mode::Protected && vector == 14 {
                13
            } else {
                vector
            };
            assert_eq!(m.count(v), 1, "{mode:?} {vector}");
        }
    }
    Ok(())
}

/// No step is lost for long after MOV SS and STI.
fn steps_shadows() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.mov(eax, ss),
                |a| a.mov(ss, eax),
                |a| a.nop(),
                |a| a.nop(),
                |a| a.sti(),
                |a| a.nop(),
                |a| a.cli(),
                |a| a.mov(ss, eax),
                |a| a.cpuid(),
                |a| a.sti(),
                |a| a.cpuid(),
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP | BLOCK);
        let mut steps = Vec::new();
        while steps.last() != ends.last() {
            match c.run() {
                Ok(Exit::Debug { pc, .. }) => steps.push(pc),
                e => panic!("{mode:?}: {e:x?} after {steps:x?}"),
            }
        }
        // The trap after a load of SS is lost; processors may lose that of STI, too.
        let may_miss = [ends[1], ends[4], ends[7], ends[9]];
        let want: Vec<u64> = ends
            .iter()
            .copied()
            .filter(|e| steps.contains(e) || !may_miss.contains(e))
            .collect();
        println!(
            "{mode:?}: {:?}",
            ends.iter().map(|e| steps.contains(e)).collect::<Vec<_>>()
        );
        assert_eq!(steps, want, "{mode:?}");
        set(c, 0);
        c.results();
    }
    Ok(())
}

fn nops() -> [Emit; 5] {
    [|a| a.nop(); 5]
}

/// An interrupt is taken before the instruction; its handler is not stepped, as on a processor.
fn steps_over_an_interrupt() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        let (mut m, ends) = listing(mode, Irqchip::None, &nops());
        let c = m.cpu();
        c.regs(|r| r.rflags |= IF);
        set(c, ENABLE | STEP);
        stepped(c, ends[0]);
        sys::with(c.raw(), sys::INTERRUPT, &mut kvm_interrupt { irq: 0x40 })
            .expect("KVM_INTERRUPT");
        stepped(c, ends[1]);
        assert_eq!(m.count(0x40), 1);
        let c = m.cpu();
        c.fd.nmi()?;
        stepped(c, ends[2]);
        assert_eq!(m.count(2), 1);
        let c = m.cpu();
        stepped(c, ends[3]);
        set(c, 0);
        c.results();
    }
    Ok(())
}

fn steps_with_events_blocked() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        let (mut m, ends) = listing(mode, Irqchip::None, &nops());
        let c = m.cpu();
        c.regs(|r| r.rflags |= IF);
        set(c, ENABLE | STEP | BLOCK);
        stepped(c, ends[0]);
        if env().rkvm {
            // In-tree KVM does not hold back what user space has acknowledged.
            sys::with(c.raw(), sys::INTERRUPT, &mut kvm_interrupt { irq: 0x40 })
                .expect("KVM_INTERRUPT");
        }
        c.fd.nmi()?;
        stepped(c, ends[1]);
        stepped(c, ends[2]);
        assert_eq!((m.count(0x40), m.count(2)), (0, 0));
        let c = m.cpu();
        // Without a step, too.
        set(c, ENABLE | BLOCK);
        assert!(matches!(
            c.run(),
            Ok(Exit::Out {
                port: kit::PORT_DONE,
                ..
            })
        ));
        assert_eq!((m.count(0x40), m.count(2)), (0, 0));
        let c = m.cpu();
        set(c, 0);
        c.results();
        c.results();
        assert_eq!((m.count(0x40), m.count(2)), (u32::from(env().rkvm), 1));
    }
    Ok(())
}

/// The debugger moves the guest after it has asked for the step.
fn step_goes_on_elsewhere() -> Outcome {
    if !env().rkvm {
        return rkvm_l1::skip("in-tree KVM, which takes its flag back then");
    }
    let (mut m, ends) = listing(Mode::Long, Irqchip::Split, &nops());
    let c = m.cpu();
    set(c, ENABLE | STEP);
    c.regs(|r| r.rip = ends[2]);
    stepped(c, ends[3]);
    c.regs(|r| r.rip = ends[0]);
    stepped(c, ends[1]);
    set(c, 0);
    c.results();
    Ok(())
}

/// What PUSHF stores while a debugger steps is what the processor has: documented, and as in-tree
/// KVM. Nothing is left of it after.
fn step_hides_the_flag() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.nop(),
                |a| a.nop(),
                |a| a.pushf(),
                |a| {
                    if a.bitness() == 16 {
                        a.pop(ax)
                    } else if a.bitness() == 32 {
                        a.pop(eax)
                    } else {
                        a.pop(rax)
                    }
                },
                kit::result,
            ],
        );
        let c = m.cpu();
        set(c, ENABLE | STEP);
        stepped(c, ends[0]);
        stepped(c, ends[1]);
        set(c, 0);
        assert_eq!(c.fd.get_regs()?.rflags & TF, 0);
        let r = c.results();
        assert_eq!(u64::from(r[0]) & TF, 0, "{mode:?}: {r:x?}");
    }
    Ok(())
}

/// A guest that steps itself still does when the debugger has gone.
fn step_keeps_the_guests_flag() -> Outcome {
    if !env().rkvm {
        return rkvm_l1::skip("in-tree KVM, which takes the guest's flag away");
    }
    let (mut m, ends) = listing(Mode::Long, Irqchip::Split, &nops());
    let c = m.cpu();
    c.regs(|r| r.rflags |= TF);
    set(c, ENABLE | STEP);
    for pc in &ends[..2] {
        assert!(matches!(c.run(), Ok(Exit::Debug { pc: p, .. }) if p == *pc));
        assert_ne!(c.fd.get_regs()?.rflags & TF, 0);
    }
    set(c, 0);
    assert_ne!(c.fd.get_regs()?.rflags & TF, 0);
    // The trap after the next instruction is the guest's.
    faults(c);
    assert_eq!((m.frame()[0], m.frame()[2]), (1, ends[2]));
    Ok(())
}

/// A step over an emulated instruction is no exception of the guest's.
fn step_leaves_events_alone() -> Outcome {
    let (mut m, ends) = listing(
        Mode::Long,
        Irqchip::Split,
        &[|a| a.out(0x51, al), |a| a.nop(), |a| a.nop()],
    );
    let c = m.cpu();
    let before = c.fd.get_debug_regs()?;
    set(c, ENABLE | STEP);
    assert!(matches!(c.run(), Ok(Exit::Out { port: 0x51, .. })));
    let e = c.fd.get_vcpu_events()?;
    assert_eq!((e.exception.injected, e.exception.pending), (0, 0));
    // The debugger has gone before it heard of it.
    set(c, 0);
    set(c, ENABLE | STEP);
    stepped(c, if env().rkvm { ends[1] } else { ends[0] });
    let now = c.fd.get_debug_regs()?;
    assert_eq!(
        (before.dr6, before.dr7, before.db),
        (now.dr6, now.dr7, now.db)
    );
    set(c, 0);
    c.results();
    assert_eq!(m.count(1), 0);
    Ok(())
}

fn int3_exits() -> Outcome {
    if !env().rkvm && on_tcg() {
        return rkvm_l1::skip("in-tree KVM on QEMU's TCG: INT3 does not exit there");
    }
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[|a| a.nop(), |a| a.int3(), |a| a.nop()],
        );
        let c = m.cpu();
        set(c, ENABLE | SW);
        for _ in 0..2 {
            let e = c.run();
            assert!(
                matches!(e, Ok(Exit::Debug { exception: 3, pc, .. }) if pc == ends[0]),
                "{mode:?}: {e:x?}"
            );
        }
        c.regs(|r| r.rip += 1);
        c.results();
        // A step onto it, then the breakpoint itself.
        c.start(mode, CODE, 0);
        set(c, ENABLE | SW | STEP);
        stepped(c, ends[0]);
        assert!(matches!(c.run(), Ok(Exit::Debug { exception: 3, pc, .. }) if pc == ends[0]));
        c.regs(|r| r.rip += 1);
        set(c, ENABLE | SW | STEP);
        stepped(c, ends[2]);
        set(c, 0);
        c.results();
    }
    Ok(())
}

/// INT n goes its way beside the debugger's INT3, stepped or not.
fn int_n_beside_int3() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        for flags in [0, ENABLE | SW, ENABLE | SW | STEP] {
            let (mut m, ends) = listing(
                mode,
                Irqchip::None,
                &[|a| a.nop(), |a| a.int(0x40), |a| a.int(0x41), |a| a.nop()],
            );
            let c = m.cpu();
            c.regs(|r| r.rflags |= IF);
            set(c, flags);
            c.run_with(|_, e| matches!(e, Exit::Debug { exception: 1, .. }));
            assert_eq!(
                (m.count(0x40), m.count(0x41)),
                (1, 1),
                "{mode:?} {flags:#x}"
            );
            assert_eq!(m.frame()[2], ends[2], "{mode:?} {flags:#x}");
        }
    }
    Ok(())
}

fn int3_is_the_guests() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        for flags in [0, ENABLE, SW, ENABLE | HW] {
            let mut m = Machine::new(mode, |a| {
                let mut l = a.create_label();
                if mode == Mode::Long {
                    kit::expect64(a, l)?;
                } else {
                    kit::expect32(a, l)?;
                }
                a.int3()?;
                a.ud2()?;
                a.set_label(&mut l)?;
                kit::done_after(a)
            })?;
            set(m.cpu(), flags);
            m.cpu().results();
            assert_eq!((m.count(3), m.count(6)), (1, 0), "{mode:?} {flags:#x}");
        }
    }
    Ok(())
}

/// Through the vector table, with the debugger there and not.
fn int3_in_real_mode() -> Outcome {
    if !env().rkvm && on_tcg() {
        return rkvm_l1::skip("in-tree KVM on QEMU's TCG: INT3 does not exit there");
    }
    for (code, vector) in [(&[0xccu8][..], 3), (&[0xcd, 3], 3), (&[0xcd, 0x40], 0x40)] {
        for flags in [0, ENABLE, ENABLE | SW] {
            let m = &mut Machine::with(Mode::Real, Irqchip::Split, 1);
            m.ram.put(CODE, code);
            m.ram
                .put(CODE + code.len() as u64, &assemble(16, 0, kit::done)?);
            m.ram.put(
                0x9000,
                &assemble(16, 0, |a| {
                    a.inc(ebx)?;
                    a.iret()
                })?,
            );
            m.ram.set32(4 * vector, 0x9000);
            set(m.cpu(), flags);
            if flags & SW != 0 && code == [0xcc] {
                let e = m.cpu().run();
                assert!(
                    matches!(
                        e,
                        Ok(Exit::Debug {
                            exception: 3,
                            pc: CODE,
                            ..
                        })
                    ),
                    "{e:x?}"
                );
                set(m.cpu(), 0);
            }
            m.cpu().results();
            assert_eq!(m.cpu().fd.get_regs()?.rbx, 1, "{code:x?} {flags:#x}");
        }
    }
    Ok(())
}

fn code_breakpoints() -> Outcome {
    if on_tcg() {
        // One alone does what it should.
        return rkvm_l1::skip("QEMU's TCG, which crashes at a guest's second breakpoint");
    }
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[|a| a.nop(), |a| a.xor(eax, eax), |a| a.cpuid(), |a| a.nop()],
        );
        let c = m.cpu();
        for i in 0..4 {
            for at in [ends[0], ends[1], ends[2]] {
                c.start(mode, CODE, 0);
                let mut dr = [0; 4];
                dr[i] = at;
                assert_eq!(control(c, ENABLE | HW, dr, 0x400 | 2 << (2 * i)), Ok(0));
                let want = Exit::Debug {
                    exception: 1,
                    pc: at,
                    dr6: DR6 | 1 << i,
                };
                assert_eq!(c.run(), Ok(want.clone()), "{mode:?} DR{i}");
                // Still there: nothing has been executed.
                assert_eq!(c.run(), Ok(want), "{mode:?} DR{i}");
            }
        }
        set(c, 0);
        c.results();
    }
    Ok(())
}

fn data_breakpoints() -> Outcome {
    for mode in MODES {
        let (mut m, ends) = listing(
            mode,
            Irqchip::Split,
            &[
                |a| a.mov(bx, 0x3100),
                |a| a.movzx(ebx, bx),
                |a| {
                    let m = pointee(a, rbx, ebx);
                    a.mov(ecx, m)
                },
                |a| {
                    let m = pointee(a, rbx, ebx);
                    a.mov(m, ebx)
                },
                |a| a.nop(),
            ],
        );
        let c = m.cpu();
        for i in 0..4 {
            let mut dr = [0; 4];
            dr[i] = 0x3100;
            for (kind, behind) in [(0xd, 3), (0xf, 2)] {
                c.start(mode, CODE, 0);
                let enabled = 0x400 | 2 << (2 * i) | kind << (16 + 4 * i);
                assert_eq!(control(c, ENABLE | HW, dr, enabled), Ok(0));
                let want = Exit::Debug {
                    exception: 1,
                    pc: ends[behind],
                    dr6: DR6 | 1 << i,
                };
                assert_eq!(c.run(), Ok(want), "{mode:?} DR{i} {kind:x}");
            }
        }
        set(c, 0);
        c.results();
    }
    Ok(())
}

/// The guest's reads and writes are of its own registers, whatever the debugger has put in.
fn guest_keeps_its_registers() -> Outcome {
    for flags in [
        ENABLE | HW,
        ENABLE | HW | STEP,
        ENABLE | STEP,
        ENABLE | SW,
        0,
    ] {
        let mut m = Machine::new(Mode::Long, |a| {
            for value in [0x1111u32, 0x2222] {
                a.mov(eax, value)?;
                a.mov(dr0, rax)?;
                a.mov(dr3, rax)?;
                a.mov(rax, dr0)?;
                kit::result(a)?;
                a.mov(rax, dr1)?;
                kit::result(a)?;
                a.mov(rax, dr3)?;
                kit::result(a)?;
                a.mov(rax, dr6)?;
                kit::result(a)?;
                a.mov(rax, dr7)?;
                kit::result(a)?;
                a.mov(eax, 0x700)?;
                a.mov(dr7, rax)?;
                a.mov(eax, 0xffff_4ff0u32)?;
                a.mov(dr6, rax)?;
            }
            kit::done(a)
        })?;
        let c = m.cpu();
        let d = kvm_debugregs {
            db: [1, 0x5151, 3, 4],
            dr6: 0xffff_0ff2,
            dr7: 0x400,
            ..Default::default()
        };
        c.fd.set_debug_regs(&d)?;
        assert_eq!(
            control(c, flags, [0x7_0000, 0x7_1000, 0x7_2000, 0x7_3000], 0x4aa),
            Ok(0)
        );
        let r = c.run_with(|_, e| matches!(e, Exit::Debug { .. }));
        let want = [
            0x1111,
            0x5151,
            0x1111,
            0xffff_0ff2,
            0x400,
            0x2222,
            0x5151,
            0x2222,
            0xffff_4ff0,
            0x700,
        ];
        assert_eq!(r, want, "flags {flags:#x}");
        for _ in 0..2 {
            let g = c.fd.get_debug_regs()?;
            assert_eq!(g.db, [0x2222, 0x5151, 3, 0x2222], "flags {flags:#x}");
            assert_eq!((g.dr6, g.dr7), (0xffff_4ff0, 0x700), "flags {flags:#x}");
            // And after the debugger has gone.
            set(c, 0);
        }
    }
    Ok(())
}

/// Where the debugger sets none, the guest's own are in force; every #DB is the debugger's.
fn guests_breakpoint_while_stepping() -> Outcome {
    let (mut m, ends) = listing(
        Mode::Long,
        Irqchip::Split,
        &[
            |a| a.mov(rbx, DATA),
            |a| a.mov(dword_ptr(rbx), ebx),
            |a| a.mov(dword_ptr(rbx), ebx),
            |a| a.nop(),
        ],
    );
    let c = m.cpu();
    let d = kvm_debugregs {
        db: [DATA, 0, 0, 0],
        dr6: DR6,
        dr7: 0xd_0402,
        ..Default::default()
    };
    c.fd.set_debug_regs(&d)?;
    set(c, ENABLE | STEP);
    stepped(c, ends[0]);
    let want = Exit::Debug {
        exception: 1,
        pc: ends[1],
        dr6: DR6 | BS | 1,
    };
    assert_eq!(c.run(), Ok(want));
    assert_eq!(c.fd.get_debug_regs()?.dr6, DR6);
    set(c, 0);
    // Its own again.
    faults(c);
    assert_eq!((m.frame()[0], m.frame()[2]), (1, ends[2]));
    assert_eq!(m.cpu().fd.get_debug_regs()?.dr6, DR6 | 1);
    Ok(())
}

fn general_detect() -> Outcome {
    for mode in MODES {
        for write in [false, true] {
            let f: Emit = match (mode, write) {
                (Mode::Long, false) => |a| a.mov(rax, dr0),
                (Mode::Long, true) => |a| a.mov(dr0, rax),
                (_, false) => |a| a.mov(eax, dr0),
                (_, true) => |a| a.mov(dr0, eax),
            };
            let (mut m, ends) = listing(mode, Irqchip::Split, &[|a| a.nop(), f, |a| a.nop()]);
            let c = m.cpu();
            for _ in 0..2 {
                assert_eq!(control(c, ENABLE | HW, [0; 4], 0x2400), Ok(0));
                let want = Exit::Debug {
                    exception: 1,
                    pc: ends[0],
                    dr6: DR6 | BD,
                };
                assert_eq!(c.run(), Ok(want), "{mode:?} {write}");
            }
            set(c, 0);
            c.results();
        }
    }
    Ok(())
}

fn inject_db() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        for flags in [0, ENABLE, ENABLE | HW | SW] {
            let (mut m, _) = listing(mode, Irqchip::Split, &nops());
            let c = m.cpu();
            set(c, flags | INJECT_DB);
            faults(c);
            assert_eq!((m.count(1), m.frame()[2]), (1, CODE), "{mode:?} {flags:#x}");
            assert_eq!(m.cpu().fd.get_debug_regs()?.dr6, DR6);
        }
    }
    Ok(())
}

/// The return address is behind the INT3 that the debugger does not want.
fn inject_bp() -> Outcome {
    if !env().rkvm && on_tcg() {
        return rkvm_l1::skip("in-tree KVM on QEMU's TCG: INT3 does not exit there");
    }
    for mode in [Mode::Protected, Mode::Long] {
        for (int3, len) in [(true, 1), (false, 0)] {
            let f: Emit = if int3 {
                |a| a.int3()
            } else {
                |a| a.add(eax, ebx)
            };
            let (mut m, _) = listing(mode, Irqchip::Split, &[f, |a| a.nop()]);
            let c = m.cpu();
            set(c, ENABLE | SW);
            if int3 {
                assert!(matches!(
                    c.run(),
                    Ok(Exit::Debug {
                        exception: 3,
                        pc: CODE,
                        ..
                    })
                ));
            }
            set(c, ENABLE | SW | INJECT_BP);
            faults(c);
            let at = m.frame()[2];
            println!("{mode:?} {int3}: {at:x}");
            assert_eq!(m.count(3), 1);
            if int3 || env().rkvm {
                assert_eq!(at, CODE + len, "{mode:?} {int3}");
            }
        }
    }
    Ok(())
}

fn inject_is_busy() -> Outcome {
    for inject in [INJECT_DB, INJECT_BP] {
        let (mut m, _) = listing(Mode::Long, Irqchip::Split, &nops());
        let c = m.cpu();
        let mut e = c.fd.get_vcpu_events()?;
        e.exception.injected = 1;
        e.exception.nr = 6;
        c.fd.set_vcpu_events(&e)?;
        assert_eq!(control(c, ENABLE | STEP | inject, [0; 4], 0), Err(EBUSY));
        // Nothing has changed: the guest is not stepped.
        faults(c);
        assert_eq!((m.count(6), m.count(1), m.count(3)), (1, 0, 0));
        let c = m.cpu();
        c.start(Mode::Long, CODE, 0);
        set(c, inject);
        assert_eq!(control(c, inject, [0; 4], 0), Err(EBUSY));
    }
    Ok(())
}

/// A debugger that goes leaves nothing.
fn off_restores() -> Outcome {
    for mode in [Mode::Protected, Mode::Long] {
        let mut m = Machine::new(mode, |a| {
            a.nop()?;
            a.nop()?;
            a.mov(dword_ptr(DATA), 1)?;
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.mov(eax, 5)?;
            kit::result(a)?;
            kit::done(a)
        })?;
        let c = m.cpu();
        let all = [DATA, CODE + 1, CODE + 1, CODE + 1];
        assert_eq!(
            control(c, ENABLE | STEP | HW | SW | BLOCK, all, 0xd_04aa),
            Ok(0)
        );
        assert!(matches!(c.run(), Ok(Exit::Debug { exception: 1, .. })));
        set(c, 0);
        assert_eq!(c.results(), [5], "{mode:?}");
        assert_eq!((m.count(1), m.count(3)), (0, 0));
        let c = m.cpu();
        c.start(mode, CODE, 0);
        set(c, ENABLE);
        assert_eq!(c.results(), [5], "{mode:?}");
    }
    Ok(())
}
