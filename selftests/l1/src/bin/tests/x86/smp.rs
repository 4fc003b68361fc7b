// SPDX-License-Identifier: GPL-2.0

//! Several vCPUs: start-up, IPIs, halting, atomic accesses.

use super::lapic::{await_count, delay, x2apic_on, xapic_on};
use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE, DATA, TRAMPOLINE};
use rkvm_l1::sys;
use rkvm_l1::{Cpu, Irqchip, Machine, Mode, Outcome};
use std::sync::atomic::{AtomicBool, Ordering};

tests![
    init_sipi_starts,
    sipi_without_init,
    second_sipi_is_ignored,
    init_resets,
    init_stops_a_running_cpu,
    fixed_ipi,
    fixed_ipi_wakes_hlt,
    broadcast_ipi,
    nmi_ipi,
    lowest_priority_ipi,
    logical_destination,
    ipi_ping_pong,
    atomic_increments,
    shoot_down,
    tlb_after_slot_change,
];

/// CPU 1's code in these tests.
const SECOND: u64 = CODE + 0x2000;

/// Runs all CPUs, each on a thread of its own, until CPU 0 is done; the others are stopped then by a signal. Returns CPU 0's results.
fn together(m: &mut Machine) -> Vec<u32> {
    sys::catch(libc::SIGUSR1);
    let over = AtomicBool::new(false);
    let (first, rest) = m.cpus.split_at_mut(1);
    std::thread::scope(|s| {
        let others: Vec<_> = rest
            .iter_mut()
            .map(|c| {
                let over = &over;
                let (tell, told) = std::sync::mpsc::channel();
                let t = s.spawn(move || {
                    tell.send(sys::tid()).expect("a listener");
                    while !over.load(Ordering::Acquire) {
                        match c.run() {
                            Ok(rkvm_l1::Exit::Out {
                                port: kit::PORT_DONE,
                                ..
                            }) => break,
                            Ok(rkvm_l1::Exit::Out {
                                port: kit::PORT_FAULT,
                                data,
                                ..
                            }) => panic!("exception {data:?} on another CPU"),
                            Ok(_) | Err(libc::EINTR | libc::EAGAIN) => {}
                            Err(e) => panic!("KVM_RUN: errno {e}"),
                        }
                    }
                });
                (t, told.recv().expect("a thread id"))
            })
            .collect();
        let r = first[0].results();
        over.store(true, Ordering::Release);
        for (t, tid) in others {
            while !t.is_finished() {
                sys::kick(tid, libc::SIGUSR1);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            t.join().expect("vCPU thread");
        }
        r
    })
}

/// Spins until the word at `at` is `v`.
fn await_word(a: &mut CodeAssembler, at: u64, v: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(at), v)?;
    a.jne(again)
}

/// Makes CPU 1 wait for INIT, in real mode, and its start-up code say so at DATA.
fn with_trampoline(
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Machine, IcedError> {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    m.code(CODE, 64, code)?;
    m.mode = Mode::Real;
    m.add_cpu(1);
    m.mode = Mode::Long;
    m.code(TRAMPOLINE, 16, |a| {
        let mut forever = a.create_label();
        a.mov(ax, (DATA >> 4) as u32 as i32)?;
        a.mov(ds, ax)?;
        a.lock().inc(dword_ptr(0))?;
        a.mov(word_ptr(4), cs)?;
        a.set_label(&mut forever)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(forever)
    })?;
    Ok(m)
}

fn icr(a: &mut CodeAssembler, destination: u64, low: u64) -> Result<(), IcedError> {
    kit::wrmsr(a, 0x830, destination << 32 | low)
}

fn init_sipi_starts() -> Outcome {
    let mut m = with_trampoline(|a| {
        x2apic_on(a)?;
        icr(a, 1, 0x4500)?;
        delay(a, 10_000)?;
        icr(a, 1, 0x4605)?;
        await_word(a, DATA, 1)?;
        a.movzx(eax, word_ptr(DATA + 4))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(together(&mut m), [0x500], "CS is the vector");
    let r = m.cpus[1].fd.get_sregs()?;
    assert_eq!((r.cs.base, r.cr0 & 1), (0x5000, 0));
    Ok(())
}

fn sipi_without_init() -> Outcome {
    let mut m = with_trampoline(|a| {
        x2apic_on(a)?;
        icr(a, 1, 0x4605)?;
        delay(a, 1_000_000)?;
        a.mov(eax, dword_ptr(DATA))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    // In the state after INIT it would start; it has had none.
    let r = together(&mut m);
    assert_eq!(r, [0]);
    Ok(())
}

fn second_sipi_is_ignored() -> Outcome {
    let mut m = with_trampoline(|a| {
        x2apic_on(a)?;
        icr(a, 1, 0x4500)?;
        icr(a, 1, 0x4605)?;
        await_word(a, DATA, 1)?;
        icr(a, 1, 0x4605)?;
        delay(a, 1_000_000)?;
        a.mov(eax, dword_ptr(DATA))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(together(&mut m), [1]);
    Ok(())
}

fn init_resets() -> Outcome {
    // INIT and SIPI again: the CPU starts over, with registers reset but for what INIT keeps.
    let mut m = with_trampoline(|a| {
        x2apic_on(a)?;
        for i in 1..=3 {
            icr(a, 1, 0x4500)?;
            delay(a, 10_000)?;
            icr(a, 1, 0x4605)?;
            await_word(a, DATA, i)?;
        }
        kit::done(a)
    })?;
    m.cpus[1].regs(|r| (r.rbx, r.r15) = (0x1234, 0x5678));
    together(&mut m);
    let r = m.cpus[1].fd.get_regs()?;
    assert_eq!((r.rbx, r.r15), (0, 0));
    assert!(r.rdx >> 8 & 0xff != 0, "the CPU's signature is in EDX");
    Ok(())
}

fn init_stops_a_running_cpu() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(SECOND, 64, |a| {
        let mut again = a.create_label();
        kit::spins(a)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(DATA))?;
        a.jmp(again)
    })?;
    m.code(CODE, 64, |a| {
        let mut wait = a.create_label();
        x2apic_on(a)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(DATA), 1000)?;
        a.jb(wait)?;
        icr(a, 1, 0x4500)?;
        kit::done(a)
    })?;
    m.cpus[1].regs(|r| r.rip = SECOND);
    sys::catch(libc::SIGUSR1);
    let over = AtomicBool::new(false);
    let ram = &m.ram;
    let (a, b) = m.cpus.split_at_mut(1);
    let r = std::thread::scope(|s| {
        let (tell, told) = std::sync::mpsc::channel();
        let (c, over) = (&mut b[0], &over);
        let t = s.spawn(move || {
            tell.send(sys::tid()).expect("a listener");
            while !over.load(Ordering::Acquire) {
                let r = c.run();
                assert!(matches!(r, Err(libc::EINTR | libc::EAGAIN)), "{r:x?}");
            }
        });
        let tid = told.recv().expect("a thread id");
        let r = a[0].results_io().0;
        // Soon it counts no more; how soon is the host's affair, whose processor may be elsewhere.
        let (mut count, mut same) = (ram.u32(DATA), 0);
        for _ in 0..250 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let now = ram.u32(DATA);
            same = if now == count { same + 1 } else { 0 };
            count = now;
            if same == 5 {
                break;
            }
        }
        over.store(true, Ordering::Release);
        while !t.is_finished() {
            sys::kick(tid, libc::SIGUSR1);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        (r, same)
    });
    assert_eq!(r, (vec![], 5));
    assert_eq!(
        m.cpus[1].fd.get_mp_state()?.mp_state,
        KVM_MP_STATE_INIT_RECEIVED
    );
    Ok(())
}

/// CPU 1 takes interrupts until it is stopped; `hlt`: asleep meanwhile. It says that it is there at DATA.
fn receiver(m: &Machine, x2apic: bool, hlt: bool) -> Result<(), IcedError> {
    m.code(SECOND, 64, |a| {
        let mut again = a.create_label();
        if x2apic {
            x2apic_on(a)?;
        } else {
            xapic_on(a)?;
            // LDR: CPU n is bit n.
            a.mov(ecx, dword_ptr(r15 + 0x20))?;
            a.shr(ecx, 24)?;
            a.mov(eax, 0x100_0000)?;
            a.shl(eax, cl)?;
            a.mov(dword_ptr(r15 + 0xd0), eax)?;
        }
        a.lock().inc(dword_ptr(DATA))?;
        a.set_label(&mut again)?;
        a.sti()?;
        if hlt {
            a.hlt()?;
        } else {
            a.pause()?;
        }
        a.jmp(again)
    })?;
    for c in &m.cpus[1..] {
        c.regs(|r| r.rip = SECOND);
    }
    Ok(())
}

fn ipi(
    cpus: usize,
    x2apic: bool,
    hlt: bool,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(Machine, Vec<u32>), IcedError> {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, cpus);
    receiver(&m, x2apic, hlt)?;
    m.code(CODE, 64, |a| {
        if x2apic {
            x2apic_on(a)?;
        } else {
            xapic_on(a)?;
            a.mov(dword_ptr(r15 + 0xd0), 0x100_0000)?;
        }
        await_word(a, DATA, cpus as i32 - 1)?;
        code(a)?;
        kit::done_after(a)
    })?;
    let r = together(&mut m);
    Ok((m, r))
}

fn fixed_ipi() -> Outcome {
    let (m, _) = ipi(2, true, false, |a| {
        for i in 1..=50 {
            icr(a, 1, 0x4051)?;
            await_count(a, 0x51, i)?;
        }
        Ok(())
    })?;
    assert_eq!(m.count(0x51), 50);
    let (m, _) = ipi(2, false, false, |a| {
        for i in 1..=20 {
            a.mov(dword_ptr(r15 + 0x310), 0x100_0000)?;
            a.mov(dword_ptr(r15 + 0x300), 0x4052)?;
            await_count(a, 0x52, i)?;
        }
        Ok(())
    })?;
    assert_eq!(m.count(0x52), 20);
    Ok(())
}

fn fixed_ipi_wakes_hlt() -> Outcome {
    let (m, _) = ipi(2, true, true, |a| {
        for i in 1..=100 {
            icr(a, 1, 0x4051)?;
            await_count(a, 0x51, i)?;
        }
        Ok(())
    })?;
    assert_eq!(m.count(0x51), 100);
    Ok(())
}

fn broadcast_ipi() -> Outcome {
    let (m, _) = ipi(4, true, true, |a| {
        // All but self; all (interrupts of CPU 0 are off until the end); physical broadcast.
        icr(a, 0, 0xc_4051)?;
        await_count(a, 0x51, 3)?;
        icr(a, 0, 0x8_4052)?;
        await_count(a, 0x52, 3)?;
        icr(a, 0xffff_ffff, 0x4053)?;
        await_count(a, 0x53, 3)?;
        a.sti()?;
        await_count(a, 0x52, 4)?;
        await_count(a, 0x53, 4)
    })?;
    assert_eq!([m.count(0x51), m.count(0x52), m.count(0x53)], [3, 4, 4]);
    Ok(())
}

fn nmi_ipi() -> Outcome {
    let (m, _) = ipi(2, true, true, |a| {
        for i in 1..=10 {
            icr(a, 1, 0x4400)?;
            await_count(a, 2, i)?;
        }
        Ok(())
    })?;
    assert_eq!(m.count(2), 10);
    Ok(())
}

fn lowest_priority_ipi() -> Outcome {
    let (m, _) = ipi(3, false, true, |a| {
        for i in 1..=20 {
            a.mov(dword_ptr(r15 + 0x310), 0x600_0000)?;
            a.mov(dword_ptr(r15 + 0x300), 0x4954)?;
            await_count(a, 0x54, i)?;
        }
        Ok(())
    })?;
    assert_eq!(m.count(0x54), 20, "one of them each time");
    Ok(())
}

fn logical_destination() -> Outcome {
    let (m, _) = ipi(4, false, true, |a| {
        a.mov(dword_ptr(r15 + 0x310), 0xa00_0000u32 as i32)?;
        a.mov(dword_ptr(r15 + 0x300), 0x4855)?;
        await_count(a, 0x55, 2)?;
        delay(a, 200_000)?;
        // x2APIC clusters are tested with one CPU; here: nobody has bit 7.
        a.mov(dword_ptr(r15 + 0x310), 0x8000_0000u32 as i32)?;
        a.mov(dword_ptr(r15 + 0x300), 0x4856)?;
        delay(a, 200_000)
    })?;
    assert_eq!((m.count(0x55), m.count(0x56)), (2, 0));
    // x2APIC: cluster 0, bits 1 and 2.
    let (m, _) = ipi(4, true, true, |a| {
        icr(a, 6, 0x4857)?;
        await_count(a, 0x57, 2)?;
        delay(a, 200_000)
    })?;
    assert_eq!(m.count(0x57), 2);
    Ok(())
}

fn ipi_ping_pong() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    // Each sends when it has received.
    for (i, at) in [CODE, SECOND].iter().enumerate() {
        m.code(*at, 64, |a| {
            let (mut again, mut wait) = (a.create_label(), a.create_label());
            x2apic_on(a)?;
            a.lock().inc(dword_ptr(DATA))?;
            await_word(a, DATA, 2)?;
            a.mov(ebx, 0)?;
            if i == 0 {
                icr(a, 1, 0x4061)?;
            }
            a.sti()?;
            a.set_label(&mut again)?;
            a.nop()?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(
                dword_ptr(kit::COUNTS + 4 * if i == 0 { 0x62 } else { 0x61 }),
                ebx,
            )?;
            a.jbe(wait)?;
            a.inc(ebx)?;
            if i == 0 {
                icr(a, 1, 0x4061)?;
            } else {
                icr(a, 0, 0x4062)?;
            }
            a.cmp(ebx, 300)?;
            a.jb(again)?;
            kit::done(a)
        })?;
    }
    m.cpus[1].regs(|r| r.rip = SECOND);
    together(&mut m);
    assert!(m.count(0x62) >= 300 && m.count(0x61) >= 300);
    Ok(())
}

fn atomic_increments() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 4);
    m.code(CODE, 64, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 100_000)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        kit::done(a)
    })?;
    std::thread::scope(|s| {
        for c in &mut m.cpus {
            s.spawn(|| c.results());
        }
    });
    assert_eq!(m.ram.u64(DATA), 400_000);
    Ok(())
}

/// A guest's own TLB shoot-down: CPU 0 changes a page-table entry and tells CPU 1, which must see it after INVLPG.
fn shoot_down() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    // 2 MiB at virtual 16 MiB go to the physical 0 or 0xd0000000's neighbour; both are in memory: page 0 holds the tables, so use 4 KiB of DATA.
    let (pt, at) = (0x3_0000u64, 0x100_0000u64);
    m.ram.set64(kit::PDS + 8 * (at >> 21), pt | 7);
    m.ram.set64(pt, 0x3_1000 | 7);
    m.ram.set32(0x3_1000, 111);
    m.ram.set32(0x3_2000, 222);
    m.code(SECOND, 64, |a| {
        let mut again = a.create_label();
        kit::spins(a)?;
        a.mov(ebx, at as u32)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.mov(ecx, dword_ptr(DATA))?;
        a.invlpg(byte_ptr(rbx))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.mov(dword_ptr(DATA + 4), ecx)?;
        a.jmp(again)
    })?;
    m.code(CODE, 64, |a| {
        for i in 1..=20 {
            let (page, value) = if i % 2 == 0 {
                (0x3_1000, 111)
            } else {
                (0x3_2000, 222)
            };
            a.mov(dword_ptr(pt), page | 7)?;
            a.mov(dword_ptr(DATA), i)?;
            await_word(a, DATA + 4, i)?;
            a.mov(eax, dword_ptr(DATA + 8))?;
            a.sub(eax, value)?;
            kit::result(a)?;
        }
        kit::done(a)
    })?;
    m.cpus[1].regs(|r| r.rip = SECOND);
    assert_eq!(together(&mut m), [0; 20]);
    Ok(())
}

/// A slot's memory is exchanged while another CPU reads it: after the ioctl it sees the new one only.
fn tlb_after_slot_change() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let at = 0x1000_0000u64;
    let rams = [
        rkvm_l1::ram::Ram::anon(at, 0x1000),
        rkvm_l1::ram::Ram::anon(at, 0x1000),
    ];
    rams[0].set32(at, 1);
    rams[1].set32(at, 2);
    m.code(CODE, 64, |a| {
        let (mut again, mut out) = (a.create_label(), a.create_label());
        kit::spins(a)?;
        a.mov(ebx, at as u32)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(DATA), eax)?;
        a.inc(dword_ptr(DATA + 4))?;
        a.cmp(dword_ptr(DATA + 8), 1)?;
        a.je(out)?;
        a.jmp(again)?;
        a.set_label(&mut out)?;
        a.nop()?;
        kit::done(a)
    })?;
    m.slot(1, &rams[0], 0).expect("slot");
    let cpus: &mut Vec<Cpu> = &mut m.cpus;
    let (ram, fd) = (&m.ram, std::os::fd::AsRawFd::as_raw_fd(&m.vm));
    std::thread::scope(|s| {
        let t = s.spawn(|| {
            cpus[0].run_with(|c, e| {
                c.answer(&[0xff; 4]);
                matches!(e, rkvm_l1::Exit::Read { .. })
            })
        });
        for i in 0..50 {
            let r = &rams[(i + 1) % 2];
            for len in [0, 0x1000] {
                let mut s = kvm_userspace_memory_region {
                    slot: 1,
                    flags: 0,
                    guest_phys_addr: at,
                    memory_size: len,
                    userspace_addr: r.addr(),
                };
                assert_eq!(sys::with(fd, sys::SET_USER_MEMORY_REGION, &mut s), Ok(0));
            }
            // Two turns of the loop later, what it has read was read after the change.
            let turns = ram.u32(DATA + 4);
            while ram.u32(DATA + 4).wrapping_sub(turns) < 3 && !t.is_finished() {
                std::thread::yield_now();
            }
            assert_eq!(ram.u32(DATA), r.u32(at), "round {i}");
        }
        ram.set32(DATA + 8, 1);
    });
    Ok(())
}
