// SPDX-License-Identifier: GPL-2.0

//! x86's kinds of exit.

use crate::N;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE, DATA, IDT, MMIO, SEL_CODE64};
use rkvm_l1::machine::{Exit, Irqchip, Machine, Mode};
use rkvm_l1::ram::Ram;
use rkvm_l1::sys;

const PORT: i32 = 0x50;
const PORT_EVENT: u16 = 0x60;
const VECTOR: u8 = 0x40;
const HANDLER: u64 = 0x1_8000;
/// Fresh memory for stage-2 faults starts here.
const FRESH: u64 = 0x4000_0000;

type Piece = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A kind of exit: `before` is not counted, `what` is.
pub struct Kind {
    pub name: &'static str,
    before: Piece,
    what: Piece,
}

fn none(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

fn self_ipi(a: &mut CodeAssembler) -> Result<(), IcedError> {
    kit::wrmsr(a, 0x83f, VECTOR.into())
}

/// All; the first is what measuring costs by itself.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "nothing",
        before: none,
        what: none,
    },
    Kind {
        name: "cpuid",
        before: none,
        what: |a| {
            a.xor(eax, eax)?;
            a.cpuid()
        },
    },
    // TSC_ADJUST is emulated by both.
    Kind {
        name: "rdmsr",
        before: none,
        what: |a| {
            a.mov(ecx, 0x3b)?;
            a.rdmsr()
        },
    },
    Kind {
        name: "wrmsr",
        before: none,
        what: |a| kit::wrmsr(a, 0x3b, 0),
    },
    Kind {
        name: "pio-write",
        before: none,
        what: |a| a.out(PORT, eax),
    },
    Kind {
        name: "pio-read",
        before: none,
        what: |a| a.in_(eax, PORT),
    },
    Kind {
        name: "mmio-write",
        before: none,
        what: |a| a.mov(dword_ptr(rbx), eax),
    },
    Kind {
        name: "mmio-read",
        before: none,
        what: |a| a.mov(eax, dword_ptr(rbx)),
    },
    Kind {
        name: "pio-ioeventfd",
        before: none,
        what: |a| a.out(i32::from(PORT_EVENT), eax),
    },
    Kind {
        name: "self-ipi",
        before: |a| a.sti(),
        what: self_ipi,
    },
    Kind {
        name: "hlt-pending",
        before: |a| {
            a.cli()?;
            self_ipi(a)
        },
        what: |a| {
            a.sti()?;
            a.hlt()
        },
    },
    Kind {
        name: "tsc-deadline",
        before: |a| kit::wrmsr(a, 0x832, 0x4_00ec),
        what: |a| {
            // RAX is the TSC. Each deadline is replaced before it comes.
            a.add(rax, 400_000)?;
            a.mov(rdx, rax)?;
            a.shr(rdx, 32)?;
            a.mov(ecx, 0x6e0)?;
            a.wrmsr()
        },
    },
    Kind {
        name: "stage2-fault",
        before: none,
        what: |a| {
            a.mov(dword_ptr(rbp), eax)?;
            a.add(rbp, 4096)
        },
    },
];

/// The guest: R8 counts rounds' exits, R9 sums ticks; the sum is left at DATA.
fn guest(a: &mut CodeAssembler, k: &Kind) -> Result<(), IcedError> {
    let (mut round, mut again) = (a.create_label(), a.create_label());
    // x2APIC on, software-enabled.
    kit::wrmsr(a, 0x1b, 0xfee0_0d00)?;
    kit::wrmsr(a, 0x80f, 0x1ff)?;
    a.mov(rbx, MMIO)?;
    a.mov(rbp, FRESH)?;
    a.set_label(&mut round)?;
    a.mov(r8d, N)?;
    a.xor(r9d, r9d)?;
    a.set_label(&mut again)?;
    (k.before)(a)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(r10, rax)?;
    (k.what)(a)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.sub(rax, r10)?;
    a.add(r9, rax)?;
    a.dec(r8d)?;
    a.jnz(again)?;
    a.mov(qword_ptr(DATA), r9)?;
    a.out(i32::from(kit::PORT_DONE), al)?;
    a.jmp(round)
}

fn handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(r12)?;
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    kit::wrmsr(a, 0x80b, 0)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.iretq()
}

/// Ticks of each round.
pub fn measure(k: &Kind, rounds: usize) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    m.code(CODE, 64, |a| guest(a, k))?;
    m.code(HANDLER, 64, handler)?;
    m.ram.put(
        IDT + 16 * u64::from(VECTOR),
        &kit::gate(HANDLER, SEL_CODE64, 0x8e, true),
    );
    let event = sys::Event::new();
    let mut io = kvm_ioeventfd {
        addr: PORT_EVENT.into(),
        len: 4,
        fd: event.0,
        flags: 1 << kvm_ioeventfd_flag_nr_pio,
        ..Default::default()
    };
    sys::with(m.raw(), sys::IOEVENTFD, &mut io).map_err(std::io::Error::from_raw_os_error)?;
    // 4 KiB pages, all there already: what is measured is the hypervisor's part alone.
    let bytes = (rounds + 1) * N as usize * 4096;
    let fresh = Ram::anon(FRESH, bytes);
    // SAFETY: our own mapping.
    unsafe { libc::madvise(fresh.at(0), bytes, libc::MADV_NOHUGEPAGE) };
    for off in (0..bytes as u64).step_by(4096) {
        fresh.put(FRESH + off, &[1]);
    }
    m.slot(1, &fresh, 0)
        .map_err(std::io::Error::from_raw_os_error)?;
    let mut all = Vec::new();
    for _ in 0..=rounds {
        run_round(&mut m)?;
        all.push(m.ram.u64(DATA) / u64::from(N));
    }
    if k.name == "self-ipi" || k.name == "hlt-pending" {
        let taken = m.cpus[0].fd.get_regs()?.r12;
        if taken != u64::from(N) * (rounds as u64 + 1) {
            return Err(format!("{}: {taken} interrupts were taken", k.name).into());
        }
    }
    Ok(all)
}

/// One round. The loop is as short as a VMM's can be, so that its part in the figure is small.
fn run_round(m: &mut Machine) -> Result<(), String> {
    let cpu = &mut m.cpus[0];
    let (fd, page) = (cpu.raw(), cpu.page_ptr());
    loop {
        if let Err(e) = sys::call(fd, sys::RUN, 0) {
            return Err(format!("KVM_RUN: errno {e}"));
        }
        // SAFETY: the page lives as long as the vCPU, which is stopped.
        let (reason, port) = unsafe { ((*page).exit_reason, (*page).__bindgen_anon_1.io.port) };
        match reason {
            KVM_EXIT_IO if port == kit::PORT_DONE => return Ok(()),
            KVM_EXIT_IO if i32::from(port) == PORT => {}
            KVM_EXIT_MMIO => {}
            _ => {
                let e: Exit = cpu.exit();
                return Err(format!("unexpected exit {e:x?}"));
            }
        }
    }
}
