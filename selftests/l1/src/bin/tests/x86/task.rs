// SPDX-License-Identifier: GPL-2.0

//! Hardware task switches: by JMP, CALL, IRET and through task gates, in 32-bit guests.
//!
//! QEMU's TCG does not intercept them: with it as the processor these tests say what a processor does,
//! and nothing of the hypervisor.

use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::{kvm_guest_debug, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP};
use rkvm_l1::kit::{self, CODE, DATA, FIXUP, GDT, IDT, SEL_CODE16, SEL_CODE32, SEL_DATA, SEL_TSS};
use rkvm_l1::sys;
use rkvm_l1::{Exit, Irqchip, Machine, Mode, Outcome};

tests![
    jump_and_back,
    call_and_iret,
    gate_in_the_gdt,
    state_is_saved_and_loaded,
    sixteen_bits,
    local_descriptors,
    address_spaces,
    interrupt_through_gate,
    int_n_through_gate,
    int3_through_gate,
    exception_with_error_code,
    faults_save_rf,
    page_fault_through_gate,
    double_fault_through_gate,
    nmi_through_gate,
    nested_gates,
    refused_before,
    refused_after,
    bad_stack_is_a_task_s,
    refused_event,
    link_of_iret,
    fault_of_a_fault_s_task,
    debug_trap_flag,
    step_into_a_task,
    registers_afterwards,
    virtual_8086,
    user_tasks,
];

/// The modes that have task switches.
const MODES: [Mode; 3] = [Mode::Protected, Mode::Paged, Mode::Pae];

const SEL_B: u16 = 0x60;
const SEL_C: u16 = 0x68;
const SEL_16: u16 = 0x70;
const SEL_GATE: u16 = 0x78;
const SEL_LDT: u16 = 0x80;
/// A data segment that is not there.
const SEL_ABSENT: u16 = 0x88;
/// A TSS that is too short.
const SEL_SHORT: u16 = 0x90;
/// A TSS that is not there.
const SEL_GONE: u16 = 0x98;
/// A stack of 16 bits.
const SEL_STACK16: u16 = 0xa0;
const GDT_LIMIT: u16 = 0xa7;

const TSS_B: u64 = DATA + 0x1000;
const TSS_C: u64 = DATA + 0x1100;
const TSS_16: u64 = DATA + 0x1200;
const LDT: u64 = DATA + 0x1300;
const CODE_B: u64 = CODE + 0x4000;
const CODE_C: u64 = CODE + 0x8000;
/// In reach of a 16-bit instruction pointer.
const CODE_16: u64 = kit::TRAMPOLINE;
const STACK_B: u32 = 0x2_4000;
const STACK_C: u32 = 0x2_5000;
const STACK_16: u32 = 0xd000;

/// Offsets in a 32-bit TSS.
const CR3: u64 = 0x1c;
const EIP: u64 = 0x20;
const EFLAGS: u64 = 0x24;
const EAX: u64 = 0x28;
const ESP: u64 = 0x38;
const ES: u64 = 0x48;
const CS: u64 = 0x4c;
const SS: u64 = 0x50;
const DS: u64 = 0x54;
const FS: u64 = 0x58;
const GS: u64 = 0x5c;
const LDTR: u64 = 0x60;
const TRAP: u64 = 0x64;

/// In CR0.
const TS: u32 = 1 << 3;

const NT: u32 = 1 << 14;
const RF: u32 = 1 << 16;
const VM: u32 = 1 << 17;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A descriptor of a system segment.
fn system(base: u64, limit: u64, access: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56
}

fn task_gate(selector: u16) -> u64 {
    u64::from(selector) << 16 | 0xe5 << 40
}

/// Sets an entry of the GDT.
fn describe(m: &Machine, selector: u16, d: u64) {
    m.ram.set64(GDT + u64::from(selector & !7), d);
}

/// The type of an entry in the GDT, without "accessed" of code and data.
fn typ(m: &Machine, selector: u16) -> u8 {
    m.ram.u8(GDT + u64::from(selector & !7) + 5) & 0xf
}

fn idt_gate(m: &Machine, vector: u64, selector: u16) {
    m.ram.set64(IDT + 8 * vector, task_gate(selector));
}

fn far(a: &mut CodeAssembler, opcode: u8, selector: u16) -> Result<(), IcedError> {
    let [lo, hi] = selector.to_le_bytes();
    if a.bitness() == 16 {
        return a.db(&[opcode, 0, 0, lo, hi]);
    }
    a.db(&[opcode, 0, 0, 0, 0, lo, hi])
}

fn jump(a: &mut CodeAssembler, selector: u16) -> Result<(), IcedError> {
    far(a, 0xea, selector)
}

fn call(a: &mut CodeAssembler, selector: u16) -> Result<(), IcedError> {
    far(a, 0x9a, selector)
}

/// All of the guest's memory gets into stage 2: TCG does not begin a task switch again in which stage 2 faulted.
fn touch_all(m: &mut Machine) {
    m.code(CODE, 32, |a| {
        let mut again = a.create_label();
        a.xor(esi, esi)?;
        a.set_label(&mut again)?;
        a.lock().or(byte_ptr(esi), 0)?;
        a.add(esi, 0x1000)?;
        a.cmp(esi, kit::RAM as i32)?;
        a.jb(again)?;
        kit::done(a)
    })
    .expect("code");
    let mode = m.mode;
    m.cpu().results();
    m.cpu().start(mode, CODE, 0);
}

/// The first task is the one of the kit's TSS; two more are ready, in ring 0 with flat segments.
fn machine(mode: Mode, irqchip: Irqchip, a: Code, b: Code, c: Code) -> Machine {
    let mut m = Machine::with(mode, irqchip, 1);
    touch_all(&mut m);
    for (at, code) in [(CODE, a), (CODE_B, b), (CODE_C, c)] {
        m.code(at, 32, code).expect("code");
    }
    let cpu = &m.cpus[0];
    cpu.sregs(|s| s.gdt.limit = GDT_LIMIT);
    let root = cpu.fd.get_sregs().expect("sregs").cr3 as u32;
    for (at, start, top) in [
        (TSS_B, CODE_B, STACK_B),
        (TSS_C, CODE_C, STACK_C),
        (kit::TSS, 0, 0),
    ] {
        m.ram.set32(at + 4, 0xe000);
        m.ram.set32(at + 8, u32::from(SEL_DATA));
        m.ram.set32(at + CR3, root);
        m.ram.set32(at + EIP, start as u32);
        m.ram.set32(at + EFLAGS, 2);
        m.ram.set32(at + ESP, top);
        for s in [ES, SS, DS, FS, GS] {
            m.ram.set32(at + s, u32::from(SEL_DATA));
        }
        m.ram.set32(at + CS, u32::from(SEL_CODE32));
        m.ram.set32(at + TRAP, 0x68 << 16);
    }
    describe(&m, SEL_B, system(TSS_B, 0x67, 0x89));
    describe(&m, SEL_C, system(TSS_C, 0x67, 0x89));
    describe(&m, SEL_16, system(TSS_16, 0x2b, 0x81));
    describe(&m, SEL_GATE, task_gate(SEL_B));
    describe(&m, SEL_LDT, system(LDT, 0xf, 0x82));
    describe(&m, SEL_ABSENT, 0x00cf_1300_0000_ffff);
    describe(&m, SEL_SHORT, system(TSS_B, 0x66, 0x89));
    describe(&m, SEL_STACK16, 0x000f_9300_0000_ffff);
    describe(&m, SEL_GONE, system(TSS_B, 0x67, 0x09));
    m
}

fn with(mode: Mode, a: Code, b: Code) -> Machine {
    machine(mode, Irqchip::Split, a, b, kit::done)
}

/// Writes the value of a register as a result; EAX is lost.
fn show(a: &mut CodeAssembler, r: AsmRegister32) -> Result<(), IcedError> {
    a.mov(eax, r)?;
    kit::result(a)
}

/// EFLAGS as a result; EAX is lost.
fn show_flags(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pushfd()?;
    a.pop(eax)?;
    kit::result(a)
}

/// TR as a result; EAX is lost.
fn show_tr(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.str(ax)?;
    kit::result(a)
}

fn jump_and_back() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                jump(a, SEL_B)?;
                show_flags(a)?;
                show_tr(a)?;
                kit::done(a)
            },
            |a| {
                show_flags(a)?;
                show_tr(a)?;
                a.mov(eax, cr0)?;
                kit::result(a)?;
                jump(a, SEL_TSS)
            },
        );
        let r = m.cpu().results();
        assert_eq!([r[0], r[1]], [2, SEL_B.into()], "{mode:?}");
        assert_eq!(r[2] & TS, TS, "{mode:?}");
        assert_eq!(r[3..], [2, SEL_TSS.into()], "{mode:?}");
        assert_eq!((typ(&m, SEL_TSS), typ(&m, SEL_B)), (11, 9), "{mode:?}");
        // A jump does not tell where it came from.
        assert_eq!(m.ram.u32(TSS_B), 0, "{mode:?}");
        assert_eq!(m.ram.u32(kit::TSS + EIP), CODE as u32 + 7, "{mode:?}");
    }
    Ok(())
}

fn call_and_iret() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                for _ in 0..3 {
                    call(a, SEL_B)?;
                    show_flags(a)?;
                }
                kit::done(a)
            },
            |a| {
                // A task goes on behind its IRET.
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.inc(ebx)?;
                show(a, ebx)?;
                show_flags(a)?;
                a.mov(eax, dword_ptr(GDT + u64::from(SEL_TSS) + 4))?;
                kit::result(a)?;
                a.iretd()?;
                a.jmp(again)
            },
        );
        let r = m.cpu().results();
        for (n, r) in r.chunks(4).enumerate() {
            assert_eq!(r[0], n as u32 + 1, "{mode:?}");
            assert_eq!(r[1] & NT, NT, "{mode:?}");
            // The caller stays busy.
            assert_eq!(r[2] >> 8 & 0xf, 11, "{mode:?}");
            assert_eq!(r[3] & NT, 0, "{mode:?}");
        }
        assert_eq!(r.len(), 12, "{mode:?}");
        assert_eq!(m.ram.u32(TSS_B), u32::from(SEL_TSS), "{mode:?}");
        assert_eq!((typ(&m, SEL_TSS), typ(&m, SEL_B)), (11, 9), "{mode:?}");
        // What IRET has saved.
        assert_eq!(m.ram.u32(TSS_B + EFLAGS) & NT, 0, "{mode:?}");
    }
    Ok(())
}

fn gate_in_the_gdt() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            call(a, SEL_GATE)?;
            jump(a, SEL_GATE)?;
            show_tr(a)?;
            kit::done(a)
        },
        |a| {
            show_tr(a)?;
            a.iretd()?;
            show_flags(a)?;
            jump(a, SEL_TSS)
        },
    );
    let r = m.cpu().results();
    // XOR has left ZF and PF; NT is gone.
    assert_eq!(r, [SEL_B.into(), 0x46, SEL_TSS.into()]);
    Ok(())
}

fn state_is_saved_and_loaded() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, 0x1111_0001)?;
                a.mov(ecx, 0x1111_0002)?;
                a.mov(edx, 0x1111_0003)?;
                a.mov(ebx, 0x1111_0004)?;
                a.mov(ebp, 0x1111_0006)?;
                a.mov(esi, 0x1111_0007)?;
                a.mov(edi, 0x1111_0008)?;
                a.stc()?;
                jump(a, SEL_B)?;
                kit::done(a)
            },
            |a| {
                for r in [ecx, edx, ebx, esp, ebp, esi, edi] {
                    show(a, r)?;
                }
                for s in [es, cs, ss, ds, fs, gs] {
                    a.mov(eax, s)?;
                    kit::result(a)?;
                }
                kit::done(a)
            },
        );
        for n in 0..8 {
            m.ram.set32(TSS_B + EAX + 4 * n, 0x2222_0001 + n as u32);
        }
        m.ram.set32(TSS_B + FS, 0);
        m.ram.set32(TSS_B + GS, u32::from(kit::SEL_SMALL));
        // What is reserved stays as it is.
        m.ram.set32(kit::TSS + ES, 0xaaaa_0000);
        let r = m.cpu().results();
        let want: Vec<u32> = (2..=8).map(|n| 0x2222_0000 + n).collect();
        assert_eq!(r[..7], want, "{mode:?}");
        let flat = u32::from(SEL_DATA);
        let want = [
            flat,
            SEL_CODE32.into(),
            flat,
            flat,
            0,
            kit::SEL_SMALL.into(),
        ];
        assert_eq!(r[7..], want, "{mode:?}");
        let saved = |at| m.ram.u32(kit::TSS + at);
        for n in [0, 1, 2, 3, 5, 6, 7] {
            assert_eq!(saved(EAX + 4 * n), 0x1111_0001 + n as u32, "{mode:?}");
        }
        assert_eq!(saved(ESP), kit::STACK as u32, "{mode:?}");
        assert_eq!(saved(EFLAGS), 3, "{mode:?}");
        for s in [SS, DS, FS, GS] {
            assert_eq!(saved(s) & 0xffff, flat, "{mode:?}");
        }
        assert_eq!(saved(ES) & 0xffff, flat, "{mode:?}");
        assert_eq!(saved(CS) & 0xffff, u32::from(SEL_CODE32), "{mode:?}");
    }
    Ok(())
}

fn sixteen_bits() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, 0x1234_5678)?;
                call(a, SEL_16)?;
                show(a, eax)?;
                kit::done(a)
            },
            kit::done,
        );
        m.ram.put(
            CODE_16,
            &rkvm_l1::machine::assemble(16, CODE_16, |a| {
                a.movzx(eax, bx)?;
                kit::result(a)?;
                a.movzx(eax, sp)?;
                kit::result(a)?;
                a.mov(ax, fs)?;
                a.movzx(eax, ax)?;
                kit::result(a)?;
                a.pushf()?;
                a.pop(ax)?;
                a.movzx(eax, ax)?;
                kit::result(a)?;
                a.mov(ax, 0x4321)?;
                a.iret()
            })?,
        );
        let words = [
            0,
            0xe000,
            SEL_DATA,
            0,
            0,
            0,
            0,
            CODE_16 as u16,
            2,
            1,
            2,
            3,
            4,
            STACK_16 as u16,
            6,
            7,
            8,
            SEL_DATA,
            SEL_CODE16,
            SEL_STACK16,
            SEL_DATA,
            0,
        ];
        for (n, w) in words.iter().enumerate() {
            m.ram.put(TSS_16 + 2 * n as u64, &w.to_le_bytes());
        }
        let r = m.cpu().results();
        let want = [4, STACK_16, 0, NT | 2, 0x1234_5678];
        assert_eq!(r, want, "{mode:?}");
        assert_eq!(m.ram.u32(TSS_16) & 0xffff, u32::from(SEL_TSS), "{mode:?}");
        assert_eq!(m.ram.u32(TSS_16 + 0x12) & 0xffff, 0x4321, "{mode:?}");
        assert_eq!(typ(&m, SEL_16), 1, "{mode:?}");
    }
    Ok(())
}

fn local_descriptors() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            call(a, SEL_B)?;
            a.xor(eax, eax)?;
            a.sldt(ax)?;
            kit::result(a)?;
            kit::done(a)
        },
        |a| {
            a.mov(eax, dword_ptr(0x10).gs())?;
            kit::result(a)?;
            a.xor(eax, eax)?;
            a.sldt(ax)?;
            kit::result(a)?;
            a.iretd()
        },
    );
    // The second entry, data from DATA on.
    m.ram.set64(LDT + 8, kit::GDT_ENTRIES[10]);
    m.ram.set32(DATA + 0x10, 0xfeed);
    m.ram.set32(TSS_B + LDTR, u32::from(SEL_LDT));
    m.ram.set32(TSS_B + GS, 8 | 4);
    assert_eq!(m.cpu().results(), [0xfeed, u32::from(SEL_LDT), 0]);
    Ok(())
}

fn address_spaces() -> Outcome {
    // Each task has its own view of the second 2 or 4 MiB: as it is, or the first again.
    const THERE: u64 = 0x40_0000;
    const DIRECTORY: u64 = DATA + 0x8000;
    for mode in [Mode::Paged, Mode::Pae] {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, dword_ptr(DATA))?;
                kit::result(a)?;
                call(a, SEL_B)?;
                a.mov(eax, dword_ptr(DATA))?;
                kit::result(a)?;
                call(a, SEL_B)?;
                kit::done(a)
            },
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.mov(eax, dword_ptr(THERE + DATA))?;
                kit::result(a)?;
                a.iretd()?;
                a.jmp(again)
            },
        );
        m.ram.set32(DATA, 0x1234);
        if mode == Mode::Paged {
            m.ram.set32(DIRECTORY, 0xe7);
            m.ram.set32(DIRECTORY + 4, 0xe7);
            m.ram.set32(TSS_B + CR3, DIRECTORY as u32);
        } else {
            m.ram.set64(DIRECTORY, DIRECTORY + 0x1000 | 1);
            m.ram.set64(DIRECTORY + 0x1000, 0xe7);
            m.ram.set64(DIRECTORY + 0x1010, 0xe7);
            m.ram.set32(TSS_B + CR3, DIRECTORY as u32);
        }
        assert_eq!(m.cpu().results(), [0x1234; 4], "{mode:?}");
    }
    Ok(())
}

fn interrupt_through_gate() -> Outcome {
    for mode in MODES {
        let mut m = machine(
            mode,
            Irqchip::None,
            |a| {
                for _ in 0..3 {
                    a.cli()?;
                    a.out(0x50, al)?;
                    a.sti()?;
                    a.nop()?;
                    a.nop()?;
                    show_flags(a)?;
                }
                kit::done(a)
            },
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.inc(ebx)?;
                show(a, ebx)?;
                show(a, esp)?;
                show_flags(a)?;
                a.iretd()?;
                a.jmp(again)
            },
            kit::done,
        );
        idt_gate(&m, 0x21, SEL_B);
        let vm = m.cpus[0].raw();
        let r = m.cpu().run_with(|_, e| {
            matches!(e, Exit::Out { port: 0x50, .. })
                && sys::with(vm, sys::INTERRUPT, &mut 0x21u32) == Ok(0)
        });
        assert_eq!(r.len(), 12, "{mode:?} {r:x?}");
        for (n, r) in r.chunks(4).enumerate() {
            assert_eq!(r[0], n as u32 + 1, "{mode:?}");
            // No error code; the task's own flags.
            assert_eq!(r[1], STACK_B, "{mode:?}");
            assert_eq!(r[2] & (NT | 0x200), NT, "{mode:?}");
            assert_eq!(r[3] & (NT | 0x200), 0x200, "{mode:?}");
        }
        assert_eq!((typ(&m, SEL_TSS), typ(&m, SEL_B)), (11, 9), "{mode:?}");
    }
    Ok(())
}

fn int_n_through_gate() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.int(0x80)?;
                a.int(0x80)?;
                show(a, esp)?;
                kit::done(a)
            },
            |a| {
                let mut again = a.create_label();
                let mut enough = a.create_label();
                a.set_label(&mut again)?;
                a.mov(eax, dword_ptr(kit::TSS + EIP))?;
                kit::result(a)?;
                show(a, esp)?;
                a.inc(ebx)?;
                a.cmp(ebx, 4)?;
                a.je(enough)?;
                a.iretd()?;
                a.jmp(again)?;
                a.set_label(&mut enough)?;
                kit::done_after(a)
            },
        );
        idt_gate(&m, 0x80, SEL_B);
        let at = CODE as u32;
        let want = [at + 2, STACK_B, at + 4, STACK_B, kit::STACK as u32];
        assert_eq!(m.cpu().results(), want, "{mode:?}");
    }
    Ok(())
}

fn int3_through_gate() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.int3()?;
                a.xor(eax, eax)?;
                a.inc(eax)?;
                kit::result(a)?;
                kit::done(a)
            },
            |a| {
                a.mov(eax, dword_ptr(kit::TSS + EIP))?;
                kit::result(a)?;
                a.iretd()
            },
        );
        idt_gate(&m, 3, SEL_B);
        assert_eq!(m.cpu().results(), [CODE as u32 + 1, 1], "{mode:?}");
    }
    Ok(())
}

/// A handler that shows its stack pointer, the error code, and EIP of the task before; and lets that go on `over` bytes later.
fn handler(a: &mut CodeAssembler, over: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    show(a, esp)?;
    a.pop(eax)?;
    kit::result(a)?;
    a.mov(eax, dword_ptr(kit::TSS + EIP))?;
    kit::result(a)?;
    a.add(dword_ptr(kit::TSS + EIP), over)?;
    a.iretd()?;
    a.jmp(again)
}

fn exception_with_error_code() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, 0xf8)?;
                a.mov(ds, eax)?;
                a.mov(ds, eax)?;
                kit::done(a)
            },
            |a| handler(a, 2),
        );
        idt_gate(&m, 13, SEL_B);
        let r = m.cpu().results();
        let at = CODE as u32 + 5;
        let want = |at| [STACK_B - 4, 0xf8, at];
        assert_eq!(r, [want(at), want(at + 2)].concat(), "{mode:?}");
    }
    Ok(())
}

/// A fault's instruction is resumed without its breakpoint; a trap's is done.
fn faults_save_rf() -> Outcome {
    let code: [(u64, u32, Code); 3] = [
        (6, RF, |a| {
            a.ud2()?;
            kit::done(a)
        }),
        (3, 0, |a| {
            a.int3()?;
            kit::done(a)
        }),
        (0x80, 0, |a| {
            a.int(0x80)?;
            kit::done(a)
        }),
    ];
    for (vector, want, a) in code {
        let mut m = with(Mode::Paged, a, |a| {
            a.mov(eax, dword_ptr(kit::TSS + EFLAGS))?;
            kit::result(a)?;
            kit::done(a)
        });
        idt_gate(&m, vector, SEL_B);
        assert_eq!(m.cpu().results(), [2 | want], "{vector}");
    }
    Ok(())
}

fn page_fault_through_gate() -> Outcome {
    for mode in [Mode::Paged, Mode::Pae] {
        let mut m = with(
            mode,
            |a| {
                a.mov(ebx, 0x80_1234)?;
                a.mov(dword_ptr(ebx), eax)?;
                kit::done(a)
            },
            |a| {
                a.mov(eax, cr2)?;
                kit::result(a)?;
                handler(a, 2)
            },
        );
        idt_gate(&m, 14, SEL_B);
        if mode == Mode::Paged {
            m.ram.set32(kit::TABLES + 4 * 2, 0);
        } else {
            m.ram.set64(kit::PDS + 8 * 4, 0);
        }
        let want = [0x80_1234, STACK_B - 4, 2, CODE as u32 + 5];
        assert_eq!(m.cpu().results(), want, "{mode:?}");
    }
    Ok(())
}

fn double_fault_through_gate() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, 0xf8)?;
                a.mov(ds, eax)?;
                kit::done(a)
            },
            |a| handler(a, 2),
        );
        // #GP's gate is not present.
        m.ram.set64(IDT + 8 * 13, task_gate(SEL_C) & !(0x80 << 40));
        idt_gate(&m, 8, SEL_B);
        let want = [STACK_B - 4, 0, CODE as u32 + 5];
        assert_eq!(m.cpu().results(), want, "{mode:?}");
    }
    Ok(())
}

fn nmi_through_gate() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.out(0x50, al)?;
                a.nop()?;
                a.nop()?;
                kit::done(a)
            },
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.inc(ebx)?;
                show(a, ebx)?;
                // The next one comes when this one is done.
                a.out(0x51, al)?;
                a.nop()?;
                a.nop()?;
                show(a, ebx)?;
                a.iretd()?;
                a.jmp(again)
            },
        );
        idt_gate(&m, 2, SEL_B);
        let mut left = 2;
        let r = m.cpu().run_with(|c, e| {
            if left > 0
                && matches!(
                    e,
                    Exit::Out {
                        port: 0x50 | 0x51,
                        ..
                    }
                )
            {
                left -= 1;
                c.fd.nmi().expect("KVM_NMI");
            }
            matches!(e, Exit::Out { .. })
        });
        assert_eq!(r, [1, 1, 2, 2], "{mode:?}");
        let events = m.cpu().fd.get_vcpu_events()?;
        assert_eq!((events.nmi.masked, events.nmi.injected), (0, 0), "{mode:?}");
    }
    Ok(())
}

/// A task that an INT has called calls another one; both go back.
fn nested_gates() -> Outcome {
    let mut m = machine(
        Mode::Paged,
        Irqchip::Split,
        |a| {
            a.int(0x80)?;
            show_tr(a)?;
            kit::done(a)
        },
        |a| {
            show_tr(a)?;
            a.int(0x81)?;
            show_tr(a)?;
            show_flags(a)?;
            a.iretd()
        },
        |a| {
            show_tr(a)?;
            a.mov(eax, dword_ptr(TSS_C))?;
            kit::result(a)?;
            a.iretd()
        },
    );
    idt_gate(&m, 0x80, SEL_B);
    idt_gate(&m, 0x81, SEL_C);
    let [a, b, c] = [SEL_TSS, SEL_B, SEL_C].map(u32::from);
    let r = m.cpu().results();
    assert_eq!(r[..4], [b, c, b, b]);
    assert_eq!(r[4] & NT, NT);
    assert_eq!(r[5], a);
    assert_eq!([SEL_TSS, SEL_B, SEL_C].map(|s| typ(&m, s)), [11, 9, 9]);
    Ok(())
}

/// What is found before the switch is the old task's.
fn refused_before() -> Outcome {
    for (selector, vector, error) in [
        (SEL_TSS, 13, SEL_TSS),
        (SEL_SHORT, 10, SEL_SHORT),
        (SEL_GONE, 11, SEL_GONE),
        (SEL_B | 4, 13, SEL_B | 4),
        (0xf0, 13, 0xf0),
    ] {
        for opcode in [0xea, 0x9a] {
            let mut m = with(Mode::Paged, kit::done, kit::done);
            m.code(CODE, 32, |a| {
                let mut on = a.create_label();
                kit::expect32(a, on)?;
                far(a, opcode, selector)?;
                a.set_label(&mut on)?;
                a.nop()?;
                kit::done(a)
            })?;
            m.cpu().results();
            let f = m.frame().map(|v| v as u32);
            assert_eq!(f[..2], [vector, u32::from(error)], "{selector:#x}");
            assert_eq!(typ(&m, SEL_TSS), 11, "{selector:#x}");
            assert_eq!(typ(&m, SEL_B), 9, "{selector:#x}");
        }
    }
    Ok(())
}

/// What is found after the switch is the new task's, at its first instruction.
fn refused_after() -> Outcome {
    for (field, selector, vector, error) in [
        (GS, SEL_ABSENT, 11, SEL_ABSENT),
        (FS, 0xf0, 10, 0xf0),
        (GS, SEL_TSS, 10, SEL_TSS),
        (LDTR, SEL_DATA, 10, SEL_DATA),
        (LDTR, 0xf4, 10, 0xf4),
    ] {
        let mut m = with(
            Mode::Paged,
            |a| {
                jump(a, SEL_B)?;
                kit::done(a)
            },
            |a| {
                a.nop()?;
                show_tr(a)?;
                kit::done(a)
            },
        );
        m.ram.set32(TSS_B + field, u32::from(selector));
        m.ram.set32(FIXUP, CODE_B as u32 + 1);
        assert_eq!(m.cpu().results(), [u32::from(SEL_B)], "{field:#x}");
        let f = m.frame().map(|v| v as u32);
        let want = [
            vector,
            u32::from(error),
            CODE_B as u32,
            u32::from(SEL_CODE32),
        ];
        assert_eq!(f[..4], want, "{field:#x}");
        assert_eq!((typ(&m, SEL_TSS), typ(&m, SEL_B)), (9, 11), "{field:#x}");
    }
    Ok(())
}

/// A task without a stack: its fault needs one of another task.
fn bad_stack_is_a_task_s() -> Outcome {
    for (selector, vector, error) in [(SEL_ABSENT, 12, SEL_ABSENT), (SEL_CODE32, 10, SEL_CODE32)] {
        let mut m = machine(
            Mode::Paged,
            Irqchip::Split,
            |a| {
                jump(a, SEL_B)?;
                kit::done(a)
            },
            kit::done,
            |a| {
                show_tr(a)?;
                a.pop(eax)?;
                kit::result(a)?;
                a.mov(eax, dword_ptr(TSS_C))?;
                kit::result(a)?;
                a.mov(eax, dword_ptr(TSS_B + EIP))?;
                kit::result(a)?;
                kit::done(a)
            },
        );
        m.ram.set32(TSS_B + SS, u32::from(selector));
        idt_gate(&m, vector, SEL_C);
        let want = [SEL_C, error, SEL_B].map(u32::from);
        let r = m.cpu().results();
        assert_eq!(r[..3], want, "{selector:#x}");
        assert_eq!(r[3], CODE_B as u32, "{selector:#x}");
    }
    Ok(())
}

/// Through a gate whose task cannot be had: the error code says that it was no instruction's fault (EXT), but for INT n.
fn refused_event() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            let mut on = a.create_label();
            kit::expect32(a, on)?;
            a.int(0x80)?;
            a.set_label(&mut on)?;
            a.mov(eax, dword_ptr(kit::FRAME))?;
            kit::result(a)?;
            a.mov(eax, dword_ptr(kit::FRAME + 8))?;
            kit::result(a)?;
            let mut on = a.create_label();
            kit::expect32(a, on)?;
            a.ud2()?;
            a.set_label(&mut on)?;
            a.mov(eax, dword_ptr(kit::FRAME))?;
            kit::result(a)?;
            a.mov(eax, dword_ptr(kit::FRAME + 8))?;
            kit::result(a)?;
            kit::done(a)
        },
        kit::done,
    );
    idt_gate(&m, 0x80, SEL_SHORT);
    idt_gate(&m, 6, SEL_GONE);
    let r = m.cpu().results();
    let [short, gone] = [SEL_SHORT, SEL_GONE].map(u32::from);
    assert_eq!(r, [10, short, 11, gone | 1]);
    Ok(())
}

/// IRET with a link to what is no busy TSS.
fn link_of_iret() -> Outcome {
    for (link, vector) in [(SEL_B, 10), (SEL_DATA, 10), (0xf0, 10)] {
        let mut m = with(
            Mode::Paged,
            |a| {
                let mut on = a.create_label();
                kit::expect32(a, on)?;
                a.pushfd()?;
                a.or(dword_ptr(esp), NT as i32)?;
                a.popfd()?;
                a.iretd()?;
                a.set_label(&mut on)?;
                a.nop()?;
                kit::done(a)
            },
            kit::done,
        );
        m.ram.set32(kit::TSS, u32::from(link));
        // The handler's own IRET is not to be nested: what it returns to has NT in its flags, not the handler.
        m.cpu().results();
        let f = m.frame().map(|v| v as u32);
        assert_eq!(f[..2], [vector, u32::from(link)], "{link:#x}");
        assert_eq!(f[4] & NT, NT, "{link:#x}");
    }
    Ok(())
}

/// What faults in the task of a fault is a double fault, at its first instruction.
fn fault_of_a_fault_s_task() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            a.mov(eax, 0xf8)?;
            a.mov(ds, eax)?;
            kit::done(a)
        },
        kit::done,
    );
    m.ram.set32(TSS_B + FS, 0xf0);
    m.ram.set32(FIXUP, CODE_B as u32);
    idt_gate(&m, 13, SEL_B);
    assert_eq!(m.cpu().results(), []);
    let f = m.frame().map(|v| v as u32);
    assert_eq!(f[..3], [8, 0, CODE_B as u32]);
    Ok(())
}

fn debug_trap_flag() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                a.mov(eax, 0x3ff)?;
                a.mov(dr7, eax)?;
                jump(a, SEL_B)?;
                kit::done(a)
            },
            |a| {
                a.nop()?;
                a.mov(eax, dr6)?;
                kit::result(a)?;
                a.mov(eax, dr7)?;
                kit::result(a)?;
                kit::done(a)
            },
        );
        m.ram.set32(TSS_B + TRAP, 0x68 << 16 | 1);
        m.ram.set32(FIXUP, CODE_B as u32 + 1);
        let r = m.cpu().results();
        assert_eq!(r[0] & 0xe00f, 0x8000, "{mode:?}");
        // L0 to L3 are the task's.
        assert_eq!(r[1] & 0xff, 0xaa, "{mode:?}");
        let f = m.frame().map(|v| v as u32);
        assert_eq!([f[0], f[2]], [1, CODE_B as u32], "{mode:?}");
    }
    Ok(())
}

/// A debugger's step over the jump ends at the new task's first instruction.
fn step_into_a_task() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            jump(a, SEL_B)?;
            kit::done(a)
        },
        |a| {
            a.nop()?;
            jump(a, SEL_TSS)
        },
    );
    let cpu = m.cpu();
    cpu.fd.set_guest_debug(&kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    })?;
    let mut pcs = Vec::new();
    for _ in 0..3 {
        match cpu.run() {
            Ok(Exit::Debug { pc, .. }) => pcs.push(pc),
            e => panic!("{e:?}, {pcs:x?}"),
        }
    }
    assert_eq!(pcs, [CODE_B, CODE_B + 1, CODE + 7]);
    // The TF that steps is not the task's.
    assert_eq!(m.ram.u32(kit::TSS + EFLAGS), 2);
    assert_eq!(m.ram.u32(TSS_B + EFLAGS), 2);
    Ok(())
}

fn registers_afterwards() -> Outcome {
    let mut m = with(
        Mode::Paged,
        |a| {
            call(a, SEL_B)?;
            kit::done(a)
        },
        kit::done,
    );
    m.ram.set32(TSS_B + LDTR, u32::from(SEL_LDT));
    m.ram.set32(TSS_B + CS, u32::from(kit::SEL_USER32));
    m.ram.set32(TSS_B + EFLAGS, 0x3002);
    for s in [ES, SS, DS, FS, GS] {
        m.ram.set32(TSS_B + s, u32::from(kit::SEL_UDATA));
    }
    m.ram.set32(TSS_B + GS, 0);
    let root = m.ram.u32(TSS_B + CR3);
    m.ram.set32(TSS_B + CR3, root | 8);
    m.cpu().results();
    let s = m.cpu().fd.get_sregs()?;
    assert_eq!((s.tr.selector, s.tr.base), (SEL_B, TSS_B));
    assert_eq!((s.tr.limit, s.tr.type_, s.tr.present), (0x67, 11, 1));
    assert_eq!((s.ldt.selector, s.ldt.base), (SEL_LDT, LDT));
    assert_eq!((s.ldt.limit, s.ldt.type_, s.ldt.unusable), (0xf, 2, 0));
    assert_eq!((s.cr3, s.cr0 & u64::from(TS)), (u64::from(root | 8), 8));
    assert_eq!((s.cs.selector, s.cs.dpl), (kit::SEL_USER32, 3));
    assert_eq!((s.ss.selector, s.ss.dpl), (kit::SEL_UDATA, 3));
    assert_eq!((s.gs.selector, s.gs.unusable), (0, 1));
    let r = m.cpu().fd.get_regs()?;
    assert_eq!(r.rflags, u64::from(NT) | 0x3002);
    Ok(())
}

/// A task in virtual-8086 mode, whose exceptions are another task's.
fn virtual_8086() -> Outcome {
    for mode in MODES {
        let mut m = machine(
            mode,
            Irqchip::Split,
            |a| {
                call(a, SEL_B)?;
                kit::done(a)
            },
            kit::done,
            |a| {
                a.pop(eax)?;
                kit::result(a)?;
                for at in [EIP, EFLAGS, EAX, CS, SS, DS] {
                    a.mov(eax, dword_ptr(TSS_B + at))?;
                    kit::result(a)?;
                }
                kit::done(a)
            },
        );
        m.ram.put(
            CODE_B,
            &rkvm_l1::machine::assemble(16, 0, |a| {
                a.mov(ax, ds)?;
                a.push(ax)?;
                a.hlt()
            })?,
        );
        m.ram.set32(TSS_B + EFLAGS, VM | 0x3002);
        m.ram.set32(TSS_B + EIP, 0);
        m.ram.set32(TSS_B + ESP, 0x100);
        m.ram.set32(TSS_B + CS, CODE_B as u32 >> 4);
        m.ram.set32(TSS_B + SS, 0x2300);
        m.ram.set32(TSS_B + DS, 0x1357);
        idt_gate(&m, 13, SEL_C);
        let r = m.cpu().results();
        assert_eq!(r[..2], [0, 3], "{mode:?}");
        assert_eq!(r[2] & (VM | NT | 0x3000), VM | NT | 0x3000, "{mode:?}");
        assert_eq!(r[3] & 0xffff, 0x1357, "{mode:?}");
        assert_eq!(r[4], CODE_B as u32 >> 4, "{mode:?}");
        assert_eq!(r[5..], [0x2300, 0x1357], "{mode:?}");
        assert_eq!(m.ram.u32(0x2_3000 + 0xfe) & 0xffff, 0x1357, "{mode:?}");
    }
    Ok(())
}

/// From ring 3 through a gate to ring 0, and back.
fn user_tasks() -> Outcome {
    for mode in MODES {
        let mut m = with(
            mode,
            |a| {
                call(a, SEL_B)?;
                show_tr(a)?;
                kit::done(a)
            },
            |a| {
                a.push(0)?;
                a.int(0x80)?;
                a.int(0x81)
            },
        );
        m.code(CODE_C, 32, |a| {
            a.xor(eax, eax)?;
            a.mov(ax, cs)?;
            kit::result(a)?;
            a.mov(eax, dword_ptr(TSS_B + CS))?;
            kit::result(a)?;
            a.mov(eax, dword_ptr(TSS_B + ESP))?;
            kit::result(a)?;
            a.iretd()?;
            // The second time, to the first task.
            a.mov(word_ptr(TSS_C), i32::from(SEL_TSS))?;
            a.iretd()
        })?;
        m.ram.set32(TSS_B + CS, u32::from(kit::SEL_USER32));
        for s in [ES, SS, DS, FS, GS] {
            m.ram.set32(TSS_B + s, u32::from(kit::SEL_UDATA));
        }
        idt_gate(&m, 0x80, SEL_C);
        idt_gate(&m, 0x81, SEL_C);
        let r = m.cpu().results();
        let want = [SEL_CODE32, kit::SEL_USER32].map(u32::from);
        assert_eq!(r[..2], want, "{mode:?}");
        assert_eq!(r[2], STACK_B - 4, "{mode:?}");
        assert_eq!(r[3], u32::from(SEL_TSS), "{mode:?}");
    }
    Ok(())
}
