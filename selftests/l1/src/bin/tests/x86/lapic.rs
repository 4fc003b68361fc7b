// SPDX-License-Identifier: GPL-2.0

//! The local APIC of one vCPU: registers, priorities, timers, self-IPIs.

use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit::{self, COUNTS};
use rkvm_l1::{Exit, Irqchip, Machine, Mode, Outcome};

tests![
    xapic_registers,
    x2apic_registers,
    x2apic_faults,
    apic_base_transitions,
    disabled_apic_has_no_page,
    moved_apic_page,
    self_ipi_both_modes,
    self_ipi_by_icr,
    priority_order,
    tpr_holds_back,
    cr8_lets_through,
    cr8_moves_while_an_interrupt_waits,
    nested_priority,
    timer_one_shot,
    timer_periodic,
    timer_deadline,
    timer_deadline_in_the_past,
    timer_deadline_is_kept,
    timer_deadline_wakes_hlt,
    timer_deadline_over_user_space,
    timer_masked,
    timer_stops,
    timer_wakes_hlt,
    spurious_disable,
    lint0_extint_and_fixed,
    lint1_nmi,
    state_is_kept,
    pending_interrupt_is_kept,
];

/// Turns the APIC on in x2APIC mode, with EOI by the kit's handlers.
pub fn x2apic_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    kit::wrmsr(a, 0x1b, 0xfee0_0c00)?;
    kit::wrmsr(a, 0x80f, 0x1ff)?;
    a.mov(dword_ptr(kit::EOI_MODE), 2)
}

/// The same in xAPIC mode. R15 is the page's address.
pub fn xapic_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r15d, 0xfee0_0000u32)?;
    a.mov(dword_ptr(r15 + 0xf0), 0x1ff)?;
    a.mov(dword_ptr(kit::EOI_MODE), 1)
}

/// Spins until `vector` was taken `n` times.
pub fn await_count(a: &mut CodeAssembler, vector: u8, n: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(COUNTS + 4 * u64::from(vector)), n)?;
    a.jb(again)
}

/// Spins for a while.
pub fn delay(a: &mut CodeAssembler, n: u32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, n)?;
    a.set_label(&mut again)?;
    a.dec(ecx)?;
    a.jnz(again)
}

fn run(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Machine, Vec<u32>) {
    let mut m = Machine::new(Mode::Long, |a| {
        code(a)?;
        kit::done_after(a)
    })
    .expect("code");
    let r = m.cpu().results();
    (m, r)
}

fn xapic_registers() -> Outcome {
    let (_, r) = run(|a| {
        xapic_on(a)?;
        for reg in [
            0x20, 0x30, 0x80, 0xd0, 0xe0, 0xf0, 0x320, 0x350, 0x360, 0x370,
        ] {
            a.mov(eax, dword_ptr(r15 + reg))?;
            kit::result(a)?;
        }
        // Written and read back, with reserved bits.
        for (reg, v) in [
            (0x80, 0x1_2345u32),
            (0xd0, 0x1200_0034),
            (0xe0, 0x1fff_ffff),
            (0x320, 0xffff_ffff),
            (0x3e0, 0xffff_ffff),
            (0x310, 0xab00_0000),
        ] {
            a.mov(dword_ptr(r15 + reg), v as i32)?;
            a.mov(eax, dword_ptr(r15 + reg))?;
            kit::result(a)?;
        }
        Ok(())
    });
    assert_eq!((r[0], r[1] & 0xff), (0, 0x14), "id, version");
    assert_eq!(
        r[2..7],
        [0, 0, 0xffff_ffff, 0x1ff, 0x1_0000],
        "TPR, LDR, DFR, SVR, LVTT"
    );
    // (With V_TPR only the class of TPR is sure to be kept.)
    assert_eq!(
        (r[10] | 5, r[11], r[12]),
        (0x45, 0x1200_0000, 0x1fff_ffff),
        "TPR, LDR, DFR"
    );
    assert_eq!(r[13] & !0x7_10ff, 0, "LVTT's reserved bits {:x}", r[13]);
    assert_eq!((r[14], r[15]), (0xb, 0xab00_0000), "TDCR, ICR2");
    Ok(())
}

fn x2apic_registers() -> Outcome {
    let (_, r) = run(|a| {
        x2apic_on(a)?;
        for msr in [0x802, 0x803, 0x808, 0x80d, 0x80f, 0x832] {
            kit::rdmsr(a, msr)?;
        }
        kit::wrmsr(a, 0x830, 0x0000_0000_000c_4040)?;
        kit::rdmsr(a, 0x830)
    });
    assert_eq!((r[0], r[2] & 0xff, r[4]), (0, 0x14, 0), "id, version, TPR");
    assert_eq!((r[6], r[8], r[10]), (1, 0x1ff, 0x1_0000), "LDR, SVR, LVTT");
    assert_eq!(r[13], 0, "ICR's destination");
    Ok(())
}

fn x2apic_faults() -> Outcome {
    let cases: [(&str, u32, Option<u64>); 5] = [
        ("the id cannot be written", 0x802, Some(1)),
        ("no DFR", 0x80e, None),
        ("no ICR2", 0x831, None),
        ("self-IPI cannot be read", 0x83f, None),
        ("reserved in SVR's upper half", 0x80f, Some(1 << 32)),
    ];
    for (name, msr, write) in cases {
        let (m, _) = run(|a| {
            let mut after = a.create_label();
            x2apic_on(a)?;
            kit::expect64(a, after)?;
            match write {
                Some(v) => kit::wrmsr(a, msr, v)?,
                None => {
                    a.mov(ecx, msr)?;
                    a.rdmsr()?;
                }
            }
            a.set_label(&mut after)?;
            a.nop()
        });
        assert_eq!((m.count(13), m.frame()[1]), (1, 0), "{name}");
    }
    // In xAPIC mode there are no such MSRs.
    let (m, _) = run(|a| {
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.set_label(&mut after)?;
        a.nop()
    });
    assert_eq!(m.count(13), 1);
    Ok(())
}

fn apic_base_transitions() -> Outcome {
    // x2APIC to xAPIC is not allowed, nor disabled to x2APIC, nor reserved bits.
    for (first, second, faults) in [
        (0xfee0_0d00u64, 0xfee0_0900u64, true),
        (0xfee0_0100, 0xfee0_0d00, true),
        (0xfee0_0900, 0xfee0_0500, true),
        (0xfee0_0900, 0xfee0_0901, true),
        (0xfee0_0d00, 0xfee0_0100, false),
        (0xfee0_0100, 0xfee0_0900, false),
    ] {
        let (m, _) = run(|a| {
            let mut after = a.create_label();
            kit::wrmsr(a, 0x1b, first)?;
            kit::expect64(a, after)?;
            kit::wrmsr(a, 0x1b, second)?;
            a.set_label(&mut after)?;
            a.nop()
        });
        assert_eq!(m.count(13), u32::from(faults), "{first:x} {second:x}");
    }
    Ok(())
}

fn disabled_apic_has_no_page() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x1b, 0xfee0_0100)?;
        a.mov(ebx, 0xfee0_0020u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| {
        seen.push(e.clone());
        c.answer(&[1, 2, 3, 4]);
        matches!(e, Exit::Read { .. })
    });
    // User space serves it; or, as in-tree KVM's quirk has it, there is a hole.
    let served =
        seen == [Exit::Read {
            gpa: 0xfee0_0020,
            len: 4,
        }] && r == [0x0403_0201];
    assert!(
        served || (seen.is_empty() && r == [u32::MAX]),
        "{seen:x?} {r:x?}"
    );
    Ok(())
}

fn moved_apic_page() -> Outcome {
    // The base may be elsewhere: then the page is there. (In-tree KVM moves the emulated page with it.)
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x1b, 0xfed0_0900)?;
        a.mov(ebx, 0xfed0_0030u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results()[0] & 0xff, 0x14);
    Ok(())
}

fn self_ipi_both_modes() -> Outcome {
    let (m, _) = run(|a| {
        x2apic_on(a)?;
        a.sti()?;
        for v in [0x40, 0x55, 0xff] {
            kit::wrmsr(a, 0x83f, v)?;
            await_count(a, v as u8, 1)?;
        }
        Ok(())
    });
    assert_eq!(m.log(), [0x40, 0x55, 0xff]);
    let (m, _) = run(|a| {
        xapic_on(a)?;
        a.sti()?;
        for v in [0x41, 0x56] {
            a.mov(dword_ptr(r15 + 0x300), 0x4_0000 | v)?;
            await_count(a, v as u8, 1)?;
        }
        Ok(())
    });
    assert_eq!(m.log(), [0x41, 0x56]);
    Ok(())
}

fn self_ipi_by_icr() -> Outcome {
    // To itself by id, by shorthand "all", physical and logical.
    let (m, _) = run(|a| {
        x2apic_on(a)?;
        a.sti()?;
        for (i, icr) in [0x4050u64, 0x8_4051, 0x4_4052, 0x1_0000_4853]
            .iter()
            .enumerate()
        {
            kit::wrmsr(a, 0x830, *icr)?;
            await_count(a, 0x50 + i as u8, 1)?;
        }
        // "All but self" is nobody.
        kit::wrmsr(a, 0x830, 0xc_4060)?;
        delay(a, 10_000)
    });
    assert_eq!(m.log(), [0x50, 0x51, 0x52, 0x53]);
    Ok(())
}

fn priority_order() -> Outcome {
    // All pending while interrupts are off: the highest vector comes first, each once.
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        for v in [0x31, 0xe0, 0x55, 0x54, 0x31, 0xe0] {
            kit::wrmsr(a, 0x83f, v)?;
        }
        // IRR says so: bits 0x31, 0x54, 0x55, 0xe0.
        kit::rdmsr(a, 0x821)?;
        kit::rdmsr(a, 0x822)?;
        kit::rdmsr(a, 0x827)?;
        a.sti()?;
        a.nop()?;
        await_count(a, 0x31, 1)?;
        a.cli()?;
        kit::rdmsr(a, 0x821)?;
        kit::rdmsr(a, 0x811)
    });
    assert_eq!((r[0], r[2], r[4]), (1 << 17, 1 << 20 | 1 << 21, 1));
    assert_eq!((r[6], r[8]), (0, 0), "IRR and ISR are empty again");
    assert_eq!(m.log(), [0xe0, 0x55, 0x54, 0x31]);
    Ok(())
}

fn tpr_holds_back() -> Outcome {
    let (m, r) = run(|a| {
        xapic_on(a)?;
        a.mov(dword_ptr(r15 + 0x80), 0x50)?;
        a.sti()?;
        a.mov(dword_ptr(r15 + 0x300), 0x4_005f)?;
        a.mov(dword_ptr(r15 + 0x300), 0x4_0060)?;
        await_count(a, 0x60, 1)?;
        kit::count(a, 0x5f)?;
        a.mov(eax, dword_ptr(r15 + 0xa0))?;
        kit::result(a)?;
        a.mov(dword_ptr(r15 + 0x80), 0x4f)?;
        await_count(a, 0x5f, 1)?;
        kit::count(a, 0x5f)
    });
    assert_eq!(r, [0, 0x50, 1]);
    assert_eq!(m.log(), [0x60, 0x5f]);
    Ok(())
}

fn cr8_lets_through() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.sti()?;
        kit::wrmsr(a, 0x83f, 0x90)?;
        delay(a, 1000)?;
        kit::count(a, 0x90)?;
        a.mov(eax, 8)?;
        a.mov(cr8, rax)?;
        await_count(a, 0x90, 1)?;
        kit::count(a, 0x90)
    });
    assert_eq!(r, [0, 1]);
    assert_eq!(m.log(), [0x90]);
    Ok(())
}

/// As handlers of interrupts do at their end, while the next one is pending.
fn cr8_moves_while_an_interrupt_waits() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83f, 0x40)?;
        kit::wrmsr(a, 0x83f, 0x90)?;
        a.mov(rax, cr8)?;
        a.mov(cr8, rax)?;
        a.mov(eax, 4)?;
        a.mov(cr8, rax)?;
        a.mov(rax, cr8)?;
        kit::result(a)?;
        a.sti()?;
        await_count(a, 0x90, 1)?;
        delay(a, 1000)?;
        kit::count(a, 0x40)?;
        a.xor(eax, eax)?;
        a.mov(cr8, rax)?;
        await_count(a, 0x40, 1)
    });
    assert_eq!(r, [4, 0]);
    assert_eq!(m.log(), [0x90, 0x40]);
    Ok(())
}

/// Within a handler only higher classes come through.
fn nested_priority() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.sti()?;
        kit::wrmsr(a, 0x83f, 0x60)?;
        await_count(a, 0x65, 1)?;
        kit::done(a)
    })?;
    let handler = 0x1_8000;
    m.code(handler, 64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.sti()?;
        // The same class must wait, a higher one comes at once.
        kit::wrmsr(a, 0x83f, 0x65)?;
        kit::wrmsr(a, 0x83f, 0x71)?;
        delay(a, 1000)?;
        kit::count(a, 0x65)?;
        kit::count(a, 0x71)?;
        kit::rdmsr(a, 0x80a)?;
        a.cli()?;
        kit::wrmsr(a, 0x80b, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    })?;
    m.ram.put(
        kit::IDT + 16 * 0x60,
        &kit::gate(handler, kit::SEL_CODE64, 0x8e, true),
    );
    assert_eq!(m.cpu().results(), [0, 1, 0x60, 0], "0x65, 0x71, PPR");
    assert_eq!(m.log(), [0x71, 0x65]);
    Ok(())
}

fn timer_one_shot() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x45)?;
        a.sti()?;
        kit::wrmsr(a, 0x838, 100_000)?;
        kit::rdmsr(a, 0x839)?;
        await_count(a, 0x45, 1)?;
        // It has stopped.
        kit::rdmsr(a, 0x839)?;
        delay(a, 1_000_000)?;
        kit::count(a, 0x45)
    });
    assert!(r[0] <= 100_000, "the current count {}", r[0]);
    assert_eq!((r[2], r[4]), (0, 1));
    assert_eq!(m.log(), [0x45]);
    Ok(())
}

fn timer_periodic() -> Outcome {
    let (_, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x2_0045)?;
        a.sti()?;
        // 2 ms at 1 GHz, the APIC's frequency.
        kit::wrmsr(a, 0x838, 2_000_000)?;
        await_count(a, 0x45, 10)?;
        kit::wrmsr(a, 0x838, 0)?;
        a.mov(ebx, dword_ptr(COUNTS + 4 * 0x45))?;
        delay(a, 3_000_000)?;
        a.mov(eax, dword_ptr(COUNTS + 4 * 0x45))?;
        a.sub(eax, ebx)?;
        kit::result(a)
    });
    assert!(r[0] <= 1, "{} after it was stopped", r[0]);
    Ok(())
}

/// Writes TSC + `ahead` to the deadline.
fn deadline(a: &mut CodeAssembler, ahead: u32) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.add(rax, ahead as i32)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, 0x6e0)?;
    a.wrmsr()
}

fn timer_deadline() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        a.sti()?;
        for i in 1..=5 {
            deadline(a, 3_000_000)?;
            a.mov(rsi, rax)?;
            await_count(a, 0x45, i)?;
            // Not before its time, and disarmed then.
            a.rdtsc()?;
            kit::rdmsr(a, 0x6e0)?;
        }
        Ok(())
    });
    assert!(
        r.iter().all(|v| *v == 0),
        "IA32_TSC_DEADLINE is 0 when it has fired: {r:x?}"
    );
    assert_eq!(m.log().len(), 5);
    Ok(())
}

/// The guest runs without exits: the interrupt is not early, and soon after its time.
fn timer_deadline_is_kept() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        a.sti()?;
        for i in 1..=5 {
            // RBX: the deadline.
            deadline(a, 700_000)?;
            a.shl(rdx, 32)?;
            a.mov(ebx, eax)?;
            a.or(rbx, rdx)?;
            await_count(a, 0x45, i)?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.sub(rax, rbx)?;
            kit::result(a)?;
        }
        Ok(())
    });
    assert_eq!(m.log().len(), 5);
    assert!(r.iter().all(|late| *late < 1 << 31), "early: {r:x?}");
    // Sometimes the host is busy.
    assert!(r.iter().any(|late| *late < 1_000_000), "{r:?}");
    Ok(())
}

/// A halted vCPU's deadline: the first wakes it, one that is taken back does not, another interrupt comes in
/// time.
fn timer_deadline_wakes_hlt() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        for i in 1..=3 {
            a.cli()?;
            deadline(a, 3_000_000)?;
            a.sti()?;
            a.hlt()?;
            kit::count(a, 0x45)?;
            // To be woken by something else, long before.
            a.cli()?;
            deadline(a, 2_000_000_000)?;
            kit::wrmsr(a, 0x83f, 0x60)?;
            a.sti()?;
            a.hlt()?;
            await_count(a, 0x60, i)?;
            kit::wrmsr(a, 0x6e0, 0)?;
        }
        delay(a, 1_000_000)
    });
    assert_eq!(r, [1, 2, 3]);
    assert_eq!(m.log(), [0x45, 0x60, 0x45, 0x60, 0x45, 0x60]);
    Ok(())
}

/// It passes while user space is at work: the interrupt comes with the next KVM_RUN.
fn timer_deadline_over_user_space() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        a.sti()?;
        for i in 1..=3 {
            deadline(a, 1_000_000)?;
            a.out(0x50, al)?;
            a.nop()?;
            kit::count(a, 0x45)?;
            await_count(a, 0x45, i)?;
            kit::rdmsr(a, 0x6e0)?;
        }
        kit::done_after(a)
    })?;
    let mut exits = 0;
    let r = m.cpu().run_with(|_, e| {
        if matches!(e, Exit::Out { port: 0x50, .. }) {
            exits += 1;
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        true
    });
    assert_eq!((exits, r), (3, vec![1, 0, 0, 2, 0, 0, 3, 0, 0]));
    Ok(())
}

fn timer_deadline_in_the_past() -> Outcome {
    let (m, _) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        a.sti()?;
        kit::wrmsr(a, 0x6e0, 1)?;
        await_count(a, 0x45, 1)?;
        // Zero disarms.
        deadline(a, 30_000_000)?;
        kit::wrmsr(a, 0x6e0, 0)?;
        delay(a, 200_000)
    });
    assert_eq!(m.log(), [0x45]);
    Ok(())
}

fn timer_masked() -> Outcome {
    let (m, r) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x1_0045)?;
        a.sti()?;
        kit::wrmsr(a, 0x838, 50_000)?;
        // Counts down, and brings nothing.
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(ecx, 0x839)?;
        a.rdmsr()?;
        a.test(eax, eax)?;
        a.jnz(again)?;
        delay(a, 10_000)?;
        kit::count(a, 0x45)
    });
    assert_eq!(r, [0]);
    assert!(m.log().is_empty());
    Ok(())
}

fn timer_stops() -> Outcome {
    // Changing between TSC-deadline and the other modes disarms.
    let (m, _) = run(|a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x45)?;
        a.sti()?;
        kit::wrmsr(a, 0x838, 50_000_000)?;
        kit::wrmsr(a, 0x832, 0x4_0045)?;
        kit::rdmsr(a, 0x839)?;
        kit::wrmsr(a, 0x832, 0x45)?;
        delay(a, 100_000)
    });
    assert!(m.log().is_empty());
    Ok(())
}

fn timer_wakes_hlt() -> Outcome {
    for periodic in [0, 0x2_0000] {
        let (m, _) = run(|a| {
            x2apic_on(a)?;
            kit::wrmsr(a, 0x83e, 0xb)?;
            kit::wrmsr(a, 0x832, 0x45 | periodic)?;
            for _ in 0..3 {
                a.cli()?;
                if periodic == 0 {
                    kit::wrmsr(a, 0x838, 5_000_000)?;
                } else {
                    a.nop()?;
                }
                if periodic != 0 {
                    kit::wrmsr(a, 0x838, 5_000_000)?;
                }
                a.sti()?;
                a.hlt()?;
            }
            Ok(())
        });
        assert!(
            m.log().len() >= 3 && m.log().iter().all(|v| *v == 0x45),
            "{:?}",
            m.log()
        );
    }
    Ok(())
}

fn spurious_disable() -> Outcome {
    // Disabled by software: LVT entries are masked, and no interrupt is taken.
    let (m, r) = run(|a| {
        xapic_on(a)?;
        a.mov(dword_ptr(r15 + 0x320), 0x45)?;
        a.mov(dword_ptr(r15 + 0xf0), 0xff)?;
        a.mov(eax, dword_ptr(r15 + 0x320))?;
        kit::result(a)?;
        a.mov(dword_ptr(r15 + 0x320), 0x45)?;
        a.mov(eax, dword_ptr(r15 + 0x320))?;
        kit::result(a)?;
        a.sti()?;
        a.mov(dword_ptr(r15 + 0x300), 0x4_0050)?;
        delay(a, 10_000)
    });
    assert_eq!(r, [0x1_0045, 0x1_0045]);
    assert!(m.log().is_empty());
    Ok(())
}

fn lint0_extint_and_fixed() -> Outcome {
    // ExtINT at LINT0: user space's PIC may inject when the LVT lets it.
    let mut m = Machine::new(Mode::Long, |a| {
        xapic_on(a)?;
        a.mov(dword_ptr(r15 + 0x350), 0x1_0700)?;
        a.mov(dword_ptr(kit::EOI_MODE), 0)?;
        a.sti()?;
        a.nop()?;
        a.out(0x50, al)?;
        a.mov(dword_ptr(r15 + 0x350), 0x700)?;
        a.out(0x50, al)?;
        await_count(a, 0x33, 1)?;
        kit::count(a, 0x33)?;
        kit::done(a)
    })?;
    m.cpu().run().expect("run");
    assert_eq!(
        m.cpu().page().ready_for_interrupt_injection,
        0,
        "LINT0 is masked"
    );
    m.cpu().run().expect("run");
    assert_eq!(
        (
            m.cpu().page().ready_for_interrupt_injection,
            m.cpu().page().if_flag
        ),
        (1, 1)
    );
    let mut v = 0x33u32;
    assert_eq!(
        rkvm_l1::sys::with(m.cpu().raw(), rkvm_l1::sys::INTERRUPT, &mut v),
        Ok(0)
    );
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}

fn lint1_nmi() -> Outcome {
    // KVM_NMI comes by LINT1: as its LVT entry says.
    let mut m = Machine::new(Mode::Long, |a| {
        xapic_on(a)?;
        a.out(0x50, al)?;
        delay(a, 1000)?;
        kit::count(a, 2)?;
        a.mov(dword_ptr(r15 + 0x360), 0x400)?;
        a.out(0x50, al)?;
        await_count(a, 2, 1)?;
        kit::count(a, 2)?;
        kit::done(a)
    })?;
    let nmi = |m: &Machine| rkvm_l1::sys::call(m.cpus[0].raw(), rkvm_l1::sys::NMI, 0);
    m.cpu().run().expect("run");
    assert_eq!(nmi(&m), Ok(0));
    let r = m.cpu().run().expect("run");
    // In split mode the ioctl is the NMI itself; what the LVT says is user space's business.
    let first = if let Exit::Out {
        port: kit::PORT_RESULT,
        data,
        ..
    } = r
    {
        data[0]
    } else {
        panic!("{r:x?}")
    };
    assert!(first <= 1);
    if first == 0 {
        m.cpu().run().expect("run");
        assert_eq!(nmi(&m), Ok(0));
    }
    m.cpu()
        .run_with(|_, e| matches!(e, Exit::Out { port: 0x50, .. }));
    assert!(m.count(2) >= 1);
    Ok(())
}

fn state_is_kept() -> Outcome {
    // A timer that runs goes on in another VM that gets the state.
    let code = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x2_0045)?;
        kit::wrmsr(a, 0x838, 3_000_000)?;
        a.out(0x50, al)?;
        a.sti()?;
        await_count(a, 0x45, 3)?;
        kit::done(a)
    };
    let mut m = Machine::new(Mode::Long, code)?;
    m.cpu().run().expect("run");
    // The instruction that exited ends with the next entry.
    m.cpu().page().immediate_exit = 1;
    assert_eq!(m.cpu().run(), Err(libc::EINTR));
    let mut n = Machine::new(Mode::Long, code)?;
    n.ram.set32(kit::EOI_MODE, 2);
    let (from, to) = (&m.cpus[0].fd, &n.cpus[0].fd);
    to.set_sregs(&from.get_sregs()?)?;
    to.set_regs(&from.get_regs()?)?;
    to.set_lapic(&from.get_lapic()?)?;
    n.cpu().results();
    assert!(n.count(0x45) >= 3);
    Ok(())
}

fn pending_interrupt_is_kept() -> Outcome {
    let code = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83f, 0x61)?;
        a.out(0x50, al)?;
        a.sti()?;
        await_count(a, 0x61, 1)?;
        kit::done(a)
    };
    let mut m = Machine::new(Mode::Long, code)?;
    m.cpu().run().expect("run");
    m.cpu().page().immediate_exit = 1;
    assert_eq!(m.cpu().run(), Err(libc::EINTR));
    let l = m.cpu().fd.get_lapic()?;
    assert_eq!(l.regs[0x230] as u8 & 2, 2, "IRR");
    let mut n = Machine::with(Mode::Long, Irqchip::Split, 1);
    n.code(kit::CODE, 64, code)?;
    n.ram.set32(kit::EOI_MODE, 2);
    n.cpu().fd.set_sregs(&m.cpu().fd.get_sregs()?)?;
    n.cpu().fd.set_regs(&m.cpu().fd.get_regs()?)?;
    n.cpu().fd.set_lapic(&l)?;
    n.cpu().fd.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    n.cpu().results();
    assert_eq!(n.log(), [0x61]);
    Ok(())
}
