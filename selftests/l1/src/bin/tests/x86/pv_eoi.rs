// SPDX-License-Identifier: GPL-2.0

//! Interrupts that the guest ends in its memory (MSR_KVM_PV_EOI_EN).

use super::delivery::by_the_processor;
use super::lapic::{await_count, delay, x2apic_on};
use super::memory::memfd;
use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit;
use rkvm_l1::ram::Ram;
use rkvm_l1::{skip, sys, Exit, Machine, Mode, Outcome, Stop};
use std::sync::atomic::{AtomicBool, Ordering};

tests![
    ends_in_memory,
    user_space_finds_it_settled,
    not_while_another_waits,
    taken_back_when_another_comes,
    not_for_level_triggered,
    off_while_armed,
    not_without_memory,
    the_page_comes_and_goes,
    bad_values,
    gone_after_init,
];

const MSR: u32 = 0x4b56_4d04;
const VECTOR: u8 = 0x60;
/// Where the guest's byte is.
const BYTE: u64 = kit::DATA;
/// What the handlers found in it, a byte each.
const SEEN: u64 = kit::DATA + 0x800;
/// How many there are.
const LOOKS: u64 = kit::DATA + 0xf00;
/// How often the handlers wrote the EOI register.
const EOIS: u64 = kit::DATA + 0xf08;
const HANDLER: u64 = 0x1_8000;

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A guest whose handlers look at the byte, do `inside`, and end the interrupt in memory if they may.
fn guest(byte: u64, main: Code<'_>, inside: Code<'_>) -> Result<Machine, Stop> {
    if by_the_processor() {
        return skip("the processor ends interrupts by itself");
    }
    let m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        kit::wrmsr(a, MSR, byte | 1)?;
        a.sti()?;
        main(a)?;
        kit::done_after(a)
    })?;
    for (vector, at) in [(VECTOR, HANDLER), (0x50, HANDLER + 0x1000)] {
        m.code(at, 64, |a| {
            let mut ended = a.create_label();
            a.push(rax)?;
            a.push(rcx)?;
            a.push(rdx)?;
            a.mov(al, byte_ptr(byte))?;
            a.mov(ecx, dword_ptr(LOOKS))?;
            a.mov(byte_ptr(rcx + SEEN), al)?;
            a.inc(dword_ptr(LOOKS))?;
            inside(a)?;
            a.lock().btr(dword_ptr(byte), 0)?;
            a.jc(ended)?;
            a.inc(dword_ptr(EOIS))?;
            kit::wrmsr(a, 0x80b, 0)?;
            a.set_label(&mut ended)?;
            a.lock()
                .inc(dword_ptr(kit::COUNTS + 4 * u64::from(vector)))?;
            a.pop(rdx)?;
            a.pop(rcx)?;
            a.pop(rax)?;
            a.iretq()
        })?;
        m.ram.put(
            kit::IDT + 16 * u64::from(vector),
            &kit::gate(at, kit::SEL_CODE64, 0x8e, true),
        );
    }
    if byte == BYTE {
        // Its memory is there: that it need not be, others show.
        m.ram.put(BYTE, &[0u8]);
    }
    Ok(m)
}

/// Sends itself the vector `n` times, and tells what is in service after each.
fn ipis(a: &mut CodeAssembler, n: i32) -> Result<(), IcedError> {
    for i in 0..n {
        kit::wrmsr(a, 0x83f, u64::from(VECTOR))?;
        await_count(a, VECTOR, i + 1)?;
        in_service(a)?;
    }
    Ok(())
}

/// ISR bits of vectors 0x60 to 0x7f, as a result.
fn in_service(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 0x813)?;
    a.rdmsr()?;
    kit::result(a)
}

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

fn seen(m: &Machine) -> (Vec<u8>, u32) {
    let n = m.ram.u32(LOOKS) as usize;
    (m.ram.get(SEEN, n), m.ram.u32(EOIS))
}

fn ends_in_memory() -> Outcome {
    let mut m = guest(BYTE, &|a| ipis(a, 3), &nothing)?;
    assert_eq!(m.cpu().results(), [0, 0, 0], "in service");
    assert_eq!(
        seen(&m),
        (vec![1, 1, 1], 0),
        "the byte, and writes of the EOI register"
    );
    assert_eq!(m.ram.u8(BYTE), 0);
    Ok(())
}

fn user_space_finds_it_settled() -> Outcome {
    let mut m = guest(BYTE, &|a| ipis(a, 2), &|a| {
        a.out(0x50, al)?;
        a.mov(al, byte_ptr(BYTE))?;
        a.out(0x51, al)
    })?;
    let ram = m.ram.at(BYTE as usize).cast::<u8>();
    let mut exits = Vec::new();
    let r = m.cpu().run_with(|c, e| {
        // SAFETY: within the guest's memory, which outlives the run.
        let byte = unsafe { ram.read_volatile() };
        let lapic = c.fd.get_lapic().expect("KVM_GET_LAPIC");
        if let Exit::Out { port, data, .. } = e {
            exits.push((*port, byte, data[0], lapic.regs[0x130] & 1));
        }
        true
    });
    assert_eq!(r, [0, 0], "in service");
    assert_eq!(
        exits,
        [
            (0x50, 0, 1, 1),
            (0x51, 0, 1, 1),
            (0x50, 0, 1, 1),
            (0x51, 0, 1, 1)
        ],
        "port, the byte, what the guest found, in service"
    );
    assert_eq!(seen(&m).1, 0, "writes of the EOI register");
    Ok(())
}

fn not_while_another_waits() -> Outcome {
    let mut m = guest(
        BYTE,
        &|a| {
            a.cli()?;
            kit::wrmsr(a, 0x83f, 0x50)?;
            kit::wrmsr(a, 0x83f, u64::from(VECTOR))?;
            a.sti()?;
            await_count(a, 0x50, 1)?;
            in_service(a)
        },
        &nothing,
    )?;
    assert_eq!(m.cpu().results(), [0]);
    assert_eq!(seen(&m), (vec![0, 1], 1), "the byte, and EOIs");
    Ok(())
}

fn taken_back_when_another_comes() -> Outcome {
    let mut m = guest(
        BYTE,
        &|a| {
            kit::wrmsr(a, 0x83f, u64::from(VECTOR))?;
            await_count(a, 0x50, 1)?;
            in_service(a)
        },
        &|a| {
            let mut once = a.create_label();
            a.cmp(dword_ptr(LOOKS), 1)?;
            a.jne(once)?;
            kit::wrmsr(a, 0x83f, 0x50)?;
            a.mov(al, byte_ptr(BYTE))?;
            a.mov(byte_ptr(SEEN + 1), al)?;
            a.inc(dword_ptr(LOOKS))?;
            a.set_label(&mut once)?;
            a.nop()
        },
    )?;
    assert_eq!(m.cpu().results(), [0]);
    assert_eq!(
        seen(&m),
        (vec![1, 0, 1], 1),
        "the byte before, after, and in the second handler; EOIs"
    );
    Ok(())
}

fn not_for_level_triggered() -> Outcome {
    let mut m = guest(
        BYTE,
        &|a| {
            a.out(0x50, al)?;
            await_count(a, VECTOR, 1)?;
            in_service(a)
        },
        &nothing,
    )?;
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x50, .. })));
    let mut level = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0xc000 | u32::from(VECTOR),
        ..Default::default()
    };
    assert_eq!(sys::with(m.raw(), sys::SIGNAL_MSI, &mut level), Ok(1));
    assert_eq!(m.cpu().results(), [0]);
    assert_eq!(seen(&m), (vec![0], 1), "the byte, and EOIs");
    Ok(())
}

fn off_while_armed() -> Outcome {
    let mut m = guest(BYTE, &|a| ipis(a, 2), &|a| {
        kit::wrmsr(a, MSR, BYTE)?;
        a.mov(al, byte_ptr(BYTE))?;
        a.out(0x50, al)
    })?;
    let (r, exits) = m.cpu().results_io();
    assert_eq!(r, [0, 0]);
    assert!(
        exits
            .iter()
            .all(|e| matches!(e, Exit::Out { data, .. } if data[0] == 0)),
        "{exits:x?}"
    );
    assert_eq!(seen(&m), (vec![1, 0], 2), "the byte, and EOIs");
    Ok(())
}

/// An address that no slot has: nothing comes of it (in-tree KVM raises #GP).
fn not_without_memory() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut on = a.create_label();
        x2apic_on(a)?;
        kit::expect64(a, on)?;
        kit::wrmsr(a, MSR, kit::MMIO | 1)?;
        a.set_label(&mut on)?;
        a.sti()?;
        ipis(a, 2)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [0, 0]);
    Ok(())
}

/// The page's mapping goes away all the time; its contents stay. No end of an interrupt is lost.
fn the_page_comes_and_goes() -> Outcome {
    const ELSEWHERE: u64 = 0x1000_0000;
    const TIMES: i32 = 200;
    let mut m = guest(
        ELSEWHERE,
        &|a| {
            let mut again = a.create_label();
            a.xor(esi, esi)?;
            a.set_label(&mut again)?;
            a.inc(esi)?;
            kit::wrmsr(a, 0x83f, u64::from(VECTOR))?;
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(kit::COUNTS + 4 * u64::from(VECTOR)), esi)?;
            a.jb(wait)?;
            a.mov(dword_ptr(LOOKS), 0)?;
            // It has been ended, and nobody knows yet.
            delay(a, 3000)?;
            a.cmp(esi, TIMES)?;
            a.jb(again)?;
            in_service(a)
        },
        &|a| {
            // Exits while it may be armed.
            for _ in 0..5 {
                a.xor(eax, eax)?;
                a.cpuid()?;
            }
            Ok(())
        },
    )?;
    let fd = memfd(0x1000);
    let page = Ram::map(ELSEWHERE, 0x1000, libc::MAP_SHARED, fd)?;
    m.slot(1, &page, 0).expect("slot 1");
    let stop = AtomicBool::new(false);
    let r = std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: pages of ours, which a memfd backs.
                unsafe { libc::madvise(page.at(0), 0x1000, libc::MADV_DONTNEED) };
            }
        });
        let r = m.cpu().results();
        stop.store(true, Ordering::Relaxed);
        r
    });
    assert_eq!(r, [0], "in service");
    assert_eq!(page.u8(ELSEWHERE), 0);
    // SAFETY: ours.
    unsafe { libc::close(fd) };
    Ok(())
}

fn bad_values() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut l = a.create_label();
        kit::expect64(a, l)?;
        kit::wrmsr(a, MSR, BYTE | 3)?;
        a.set_label(&mut l)?;
        kit::count(a, 13)?;
        kit::rdmsr(a, MSR)?;
        kit::wrmsr(a, MSR, BYTE | 1)?;
        kit::rdmsr(a, MSR)?;
        kit::done(a)
    })?;
    assert_eq!(
        m.cpu().results(),
        [1, 0, 0, BYTE as u32 | 1, 0],
        "#GP, and the MSR"
    );
    assert_eq!(m.cpu().msr(MSR), Some(BYTE | 1));
    assert!(!m.cpu().set_msr(MSR, BYTE | 2));
    assert!(m.cpu().set_msr(MSR, 0));
    Ok(())
}

fn gone_after_init() -> Outcome {
    let mut m = guest(BYTE, &|a| ipis(a, 1), &|a| {
        // INIT to itself.
        kit::wrmsr(a, 0x830, 0x4500)?;
        a.nop()
    })?;
    // The bootstrap processor starts over at the reset vector, where this guest has no memory.
    let _ = m.cpu().run();
    assert_eq!(m.cpu().msr(MSR), Some(0));
    assert_eq!(m.ram.u8(BYTE), 0);
    let lapic = m.cpu().fd.get_lapic().expect("KVM_GET_LAPIC");
    assert_eq!(lapic.regs[0x130], 0, "in service");
    Ok(())
}
