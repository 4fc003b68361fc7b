// SPDX-License-Identifier: GPL-2.0

//! arm64's kinds of exit.

use crate::N;
use kvm_bindings::*;
use rkvm_l1::kit::{DATA, DONE, GICD, MMIO, VECTORS};
use rkvm_l1::machine::{x, Exit, Machine};
use rkvm_l1::ram::Ram;
use rkvm_l1::{gic_on, guest, sys};

/// A write here signals an eventfd.
const EVENT: u64 = MMIO + 0x1000;
/// Fresh memory for stage-2 faults starts here.
const FRESH: u64 = 0x8000_0000;

/// A kind of exit.
pub struct Kind {
    pub name: &'static str,
    code: fn() -> &'static [u8],
    /// Each is an interrupt that the guest takes.
    interrupts: bool,
}

/// The guest: x22 counts a round's exits, x23 sums ticks; the sum is left at DATA. x12 counts interrupts. `before` is not
/// counted, `what` is.
macro_rules! measured {
    ([$($before:expr),* $(,)?], [$($what:expr),* $(,)?]) => {
        || guest![
            gic_on!(),
            "mov x12, #0",
            "msr daifclr, #2",
            "10: mov x22, #64",
            "mov x23, #0",
            "11:",
            $($before,)*
            "isb",
            "mrs x24, cntvct_el0",
            $($what,)*
            "isb",
            "mrs x9, cntvct_el0",
            "sub x9, x9, x24",
            "add x23, x23, x9",
            "subs x22, x22, #1",
            "b.ne 11b",
            "str x23, [x27]",
            "str xzr, [x28, #8]",
            "b 10b",
        ]
    };
}

/// SGI 1 to this vCPU.
macro_rules! self_ipi {
    () => {
        "mov x9, #1
         movk x9, #0x0100, lsl #16
         msr icc_sgi1r_el1, x9
         isb"
    };
}

/// Waits until an interrupt has come since x13 was noted.
macro_rules! taken {
    () => {
        "1: cmp x12, x13
         b.eq 1b"
    };
}

const fn kind(name: &'static str, code: fn() -> &'static [u8]) -> Kind {
    Kind {
        name,
        code,
        interrupts: false,
    }
}

const fn interrupt(name: &'static str, code: fn() -> &'static [u8]) -> Kind {
    Kind {
        name,
        code,
        interrupts: true,
    }
}

/// All; the first is what measuring costs by itself.
pub const KINDS: &[Kind] = &[
    kind("nothing", measured!([], [])),
    // SMCCC_VERSION
    kind("hvc", measured!(["mov x0, #0x80000000"], ["hvc #0"])),
    // Shown to the guest otherwise than it is, by both.
    kind("sysreg", measured!([], ["mrs x9, id_aa64pfr0_el1"])),
    // GICD_TYPER
    kind("mmio-gic", measured!([], ["ldr w9, [x18, #4]"])),
    kind("mmio-ioeventfd", measured!([], ["str wzr, [x21]"])),
    kind("mmio-write", measured!([], ["str wzr, [x19]"])),
    kind("mmio-read", measured!([], ["ldr w9, [x19]"])),
    interrupt(
        "self-ipi",
        measured!(["mov x13, x12"], [self_ipi!(), taken!()]),
    ),
    // Due at once.
    interrupt(
        "timer",
        measured!(
            ["mov x13, x12", "mov x10, #1"],
            ["msr cntv_tval_el0, xzr", "msr cntv_ctl_el0, x10", taken!(),]
        ),
    ),
    kind(
        "stage2-fault",
        measured!([], ["str wzr, [x20]", "add x20, x20, #4096"]),
    ),
];

/// What an interrupt leads to: it is ended, the timer turned off. Its x11 is nobody's.
fn handler() -> &'static [u8] {
    guest![
        "mrs x11, icc_iar1_el1",
        "msr cntv_ctl_el0, xzr",
        "isb",
        "msr icc_eoir1_el1, x11",
        "add x12, x12, #1",
        "eret",
    ]
}

/// The frequency of the counter that guests have.
fn frequency() -> u64 {
    let hz: u64;
    // SAFETY: reads a register that user space may read.
    unsafe { core::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack)) };
    hz.max(1)
}

/// Nanoseconds of each round, for one exit.
pub fn measure(k: &Kind, rounds: usize) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let mut m = Machine::new((k.code)());
    // From EL1 with its own stack pointer, IRQ.
    m.code(VECTORS + 0x280, handler());
    for (n, v) in [(18, GICD), (19, MMIO), (20, FRESH), (21, EVENT)] {
        m.cpus[0]
            .set(x(n), v)
            .map_err(std::io::Error::from_raw_os_error)?;
    }
    let event = sys::Event::new();
    let mut io = kvm_ioeventfd {
        addr: EVENT,
        len: 4,
        fd: event.0,
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
    let hz = frequency();
    let mut all = Vec::new();
    for _ in 0..=rounds {
        run_round(&mut m)?;
        all.push(m.ram.u64(DATA) * (1_000_000_000 / hz) / u64::from(N));
    }
    let came = m.cpus[0].reg(x(12));
    if k.interrupts && came != u64::from(N) * (rounds as u64 + 1) {
        return Err(format!("{}: {came} interrupts were taken", k.name).into());
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
        let (reason, gpa) =
            unsafe { ((*page).exit_reason, (*page).__bindgen_anon_1.mmio.phys_addr) };
        match reason {
            KVM_EXIT_MMIO if gpa == DONE => return Ok(()),
            KVM_EXIT_MMIO if gpa == MMIO => {}
            _ => {
                let e: Exit = cpu.exit();
                return Err(format!("unexpected exit {e:x?}"));
            }
        }
    }
}
