// SPDX-License-Identifier: GPL-2.0

//! When interrupts are delivered and end, by rkvm or by the processor itself (virtual-interrupt delivery).

use super::lapic::{await_count, delay, x2apic_on};
use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use rkvm_l1::kit;
use rkvm_l1::ram::Ram;
use rkvm_l1::{skip, Machine, Mode, Outcome};

tests![
    comes_with_the_next_entry,
    comes_over_a_fault,
    held_while_interrupts_are_off,
    held_when_the_priority_falls,
    comes_and_goes_with_the_mode,
    sub_class_of_the_priority,
    ends_without_exits,
];

/// The processor delivers, and rkvm lets it.
pub fn by_the_processor() -> bool {
    std::fs::read_to_string("/sys/module/rkvm/parameters/apicv").is_ok_and(|v| v.trim() == "Y")
}

fn comes_with_the_next_entry() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.sti()?;
        a.nop()?;
        for _ in 0..3 {
            kit::wrmsr(a, 0x83f, 0x45)?;
            kit::count(a, 0x45)?;
        }
        kit::done_after(a)
    })?;
    assert_eq!(m.cpu().results(), [1, 2, 3]);
    Ok(())
}

/// Onto a stack that stage 2 does not map yet, and then one that it does.
fn comes_over_a_fault() -> Outcome {
    const STACK: u64 = 0x1000_0000;
    let ram = Ram::aligned(STACK, 0x4000, 0x1000);
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.mov(rsp, STACK + 0x1800)?;
        a.sti()?;
        a.nop()?;
        for _ in 0..2 {
            kit::wrmsr(a, 0x83f, 0x45)?;
            a.nop()?;
            a.nop()?;
            kit::count(a, 0x45)?;
        }
        delay(a, 1000)?;
        kit::count(a, 0x45)?;
        kit::rdmsr(a, 0x812)?;
        kit::rdmsr(a, 0x822)?;
        kit::done_after(a)
    })?;
    // Single pages, as their dirty bits are logged.
    m.region(1, KVM_MEM_LOG_DIRTY_PAGES, STACK, 0x4000, ram.addr())
        .expect("slot");
    let r = m.cpu().results();
    assert_eq!((&r[..3], r[3], r[5]), (&[1, 2, 2][..], 0, 0));
    Ok(())
}

/// An interrupt that comes with interrupts off, or becomes deliverable (`falls`), waits until they are on, also when
/// the host is interrupted meanwhile, a hundred times.
fn held(falls: bool) -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        for i in 1..=3 {
            if falls {
                kit::wrmsr(a, 0x808, 0x90)?;
                kit::wrmsr(a, 0x83f, 0x45)?;
                a.sti()?;
                delay(a, 100)?;
                a.cli()?;
                kit::wrmsr(a, 0x808, 0)?;
            } else {
                a.cli()?;
                kit::wrmsr(a, 0x83f, 0x45)?;
            }
            delay(a, 15_000_000)?;
            kit::count(a, 0x45)?;
            a.sti()?;
            await_count(a, 0x45, i)?;
        }
        kit::done_after(a)
    })?;
    assert_eq!(m.cpu().results(), [0, 1, 2]);
    Ok(())
}

fn held_while_interrupts_are_off() -> Outcome {
    held(false)
}

fn held_when_the_priority_falls() -> Outcome {
    held(true)
}

/// Interrupts that were requested stay it when the APIC's mode changes.
fn comes_and_goes_with_the_mode() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x83f, 0x45)?;
        kit::wrmsr(a, 0x83f, 0x96)?;
        // Off and, by way of xAPIC mode, on again.
        for base in [0xfee0_0000u64, 0xfee0_0800, 0xfee0_0c00] {
            kit::wrmsr(a, 0x1b, base)?;
        }
        kit::rdmsr(a, 0x822)?;
        kit::rdmsr(a, 0x824)?;
        a.sti()?;
        await_count(a, 0x45, 1)?;
        kit::done_after(a)
    })?;
    let r = m.cpu().results();
    assert_eq!((r[0], r[2]), (1 << 5, 1 << 22));
    assert_eq!(m.log(), [0x96, 0x45]);
    Ok(())
}

/// The task priority has eight bits in its MSR, of which CR8 shows four.
fn sub_class_of_the_priority() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        kit::wrmsr(a, 0x808, 0x5a)?;
        kit::rdmsr(a, 0x808)?;
        kit::rdmsr(a, 0x80a)?;
        a.mov(rax, cr8)?;
        kit::result(a)?;
        a.mov(eax, 3)?;
        a.mov(cr8, rax)?;
        kit::rdmsr(a, 0x808)?;
        kit::done_after(a)
    })?;
    let r = m.cpu().results();
    assert_eq!((r[0], r[2], r[4], r[5]), (0x5a, 0x5a, 5, 0x30));
    let page = m.cpu().fd.get_lapic()?;
    assert_eq!(page.regs[0x80], 0x30);
    Ok(())
}

fn ends_without_exits() -> Outcome {
    const TIMES: u32 = 200;
    if !by_the_processor() {
        return skip("the processor does not deliver interrupts");
    }
    let mut m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        x2apic_on(a)?;
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.mov(edi, TIMES as i32)?;
        a.set_label(&mut again)?;
        kit::wrmsr(a, 0x80b, 0)?;
        kit::wrmsr(a, 0x808, 0x10)?;
        a.dec(edi)?;
        a.jnz(again)?;
        a.rdtsc()?;
        a.sub(eax, esi)?;
        kit::result(a)?;
        kit::done_after(a)
    })?;
    let cycles = m.cpu().results()[0] / TIMES;
    assert!(cycles < 400, "{cycles} cycles");
    Ok(())
}
