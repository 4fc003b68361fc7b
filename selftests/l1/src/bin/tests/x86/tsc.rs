// SPDX-License-Identifier: GPL-2.0

//! Guests whose TSC has another frequency than the host's.

use super::lapic::x2apic_on;
use crate::harness::tests;
use core::arch::x86_64::_rdtsc;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::EINVAL;
use rkvm_l1::kit::{self, COUNTS, DATA};
use rkvm_l1::{skip, sys, Cpu, Exit, Irqchip, Machine, Mode, Outcome, Stop};
use std::os::fd::AsRawFd;
use std::time::Duration;

tests![
    scaled_tsc,
    scaled_tsc_of_a_vm,
    scaled_tsc_goes_on,
    scaled_tsc_registers,
    scaled_tsc_offset,
    scaled_tsc_clock,
    scaled_tsc_of_one_vcpu,
    scaled_tsc_deadline,
    scaled_tsc_bounds,
];

/// The ratios that are tried.
const RATIOS: [(u64, u64); 2] = [(1, 2), (3, 2)];

fn require() -> Outcome {
    let k = rkvm_l1::kvm();
    let caps =
        [KVM_CAP_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL].map(|c| k.check_extension_raw(c.into()));
    match caps {
        [0, 0] => skip("the processor cannot scale TSCs (KVM_CAP_TSC_CONTROL is 0)"),
        [1, 1] => Ok(()),
        _ => Err(Stop::Fail(format!("capabilities {caps:?}"))),
    }
}

/// The host's TSC.
fn host() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { _rdtsc() }
}

fn khz(c: &Cpu) -> u64 {
    sys::call(c.raw(), sys::GET_TSC_KHZ, 0).expect("GET_TSC_KHZ") as u64
}

fn set_khz(c: &Cpu, khz: u64) {
    assert_eq!(sys::call(c.raw(), sys::SET_TSC_KHZ, khz), Ok(0), "{khz}");
}

/// A guest that tells its TSC each time it is run.
fn teller(m: &Machine) -> Result<(), Stop> {
    m.code(kit::CODE, 64, super::time::tell)?;
    Ok(())
}

/// The guest's TSC, and the host's before and after.
fn tell(m: &mut Machine, i: usize) -> (u64, u64, u64) {
    let before = host();
    assert!(matches!(m.cpus[i].run(), Ok(Exit::Out { .. })));
    let after = host();
    (before, m.ram.u64(DATA), after)
}

/// The guest's TSC has advanced by the ratio times what the host's has.
fn advances(m: &mut Machine, i: usize, (num, den): (u64, u64)) {
    let (h0, g0, h1) = tell(m, i);
    std::thread::sleep(Duration::from_millis(50));
    let (h2, g1, h3) = tell(m, i);
    let (least, most) = ((h2 - h1) * num / den, (h3 - h0) * num / den);
    let d = g1.wrapping_sub(g0);
    assert!(
        (least - 2..=most + 2).contains(&d),
        "{num}/{den}: {d}, not {least} to {most}"
    );
}

fn scaled_tsc() -> Outcome {
    require()?;
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    teller(&m)?;
    let own = khz(m.cpu());
    advances(&mut m, 0, (1, 1));
    for (num, den) in RATIOS {
        set_khz(m.cpu(), own * num / den);
        assert_eq!(khz(m.cpu()), own * num / den);
        advances(&mut m, 0, (num, den));
    }
    // 0 is the host's.
    set_khz(m.cpu(), 0);
    assert_eq!(khz(m.cpu()), own);
    advances(&mut m, 0, (1, 1));
    Ok(())
}

fn scaled_tsc_of_a_vm() -> Outcome {
    require()?;
    for (num, den) in RATIOS {
        let mut m = Machine::with(Mode::Long, Irqchip::Split, 0);
        let own = sys::call(m.raw(), sys::GET_TSC_KHZ, 0).expect("GET_TSC_KHZ") as u64;
        let asked = own * num / den;
        assert_eq!(sys::call(m.raw(), sys::SET_TSC_KHZ, asked), Ok(0));
        assert_eq!(sys::call(m.raw(), sys::GET_TSC_KHZ, 0), Ok(asked as i32));
        m.add_cpu(0);
        m.add_cpu(1);
        teller(&m)?;
        let late = sys::call(m.vm.as_raw_fd(), sys::SET_TSC_KHZ, asked);
        assert_eq!(late, Err(EINVAL), "there are vCPUs");
        // By turns: each reading is later than the other's before.
        let mut last = 0;
        for turn in 0..20 {
            let now = tell(&mut m, turn % 2).1;
            assert!(now > last, "turn {turn}: {now} after {last}");
            last = now;
        }
        for i in 0..2 {
            assert_eq!(khz(&m.cpus[i]), asked);
            advances(&mut m, i, (num, den));
        }
    }
    Ok(())
}

/// The guest sees no jump, and vCPUs that are changed one after the other stay in step.
fn scaled_tsc_goes_on() -> Outcome {
    require()?;
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    teller(&m)?;
    let own = khz(m.cpu());
    std::thread::sleep(Duration::from_millis(20));
    for (num, den) in RATIOS {
        let before = tell(&mut m, 0);
        for c in &m.cpus {
            set_khz(c, own * num / den);
        }
        let after = tell(&mut m, 0);
        let most = (after.2 - before.0) * 2;
        let d = after.1.wrapping_sub(before.1);
        assert!(d <= most, "{num}/{den}: jumped by {d}, of {most}");
        let mut last = 0;
        for turn in 0..20 {
            let now = tell(&mut m, turn % 2).1;
            assert!(now > last, "turn {turn}: {now} after {last}");
            last = now;
        }
    }
    Ok(())
}

/// IA32_TSC and IA32_TSC_ADJUST, by the guest and by ioctl.
fn scaled_tsc_registers() -> Outcome {
    require()?;
    for ratio @ (num, den) in RATIOS {
        let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
        teller(&m)?;
        set_khz(&m.cpus[0], khz(&m.cpus[0]) * num / den);
        let written = 1 << 50;
        let h0 = host();
        assert!(m.cpu().set_msr(0x10, written));
        let (_, g, h1) = tell(&mut m, 0);
        let most = written + (h1 - h0) * num / den + 2;
        assert!((written..=most).contains(&g), "{g:#x}, at most {most:#x}");
        let (h2, read) = (host(), m.cpu().msr(0x10).expect("IA32_TSC"));
        let least = written + (h2 - h1) * num / den - 2;
        assert!(read >= least && read > g, "{read:#x}, at least {least:#x}");
        advances(&mut m, 0, ratio);

        // The guest's own write shows in IA32_TSC_ADJUST; that register moves the TSC.
        m.code(kit::CODE, 64, |a| {
            kit::wrmsr(a, 0x10, 1 << 51)?;
            kit::rdmsr(a, 0x10)?;
            kit::rdmsr(a, 0x3b)?;
            kit::wrmsr(a, 0x3b, 0x77)?;
            kit::rdmsr(a, 0x3b)?;
            kit::rdmsr(a, 0x10)?;
            kit::done(a)
        })?;
        m.cpu().regs(|r| r.rip = kit::CODE);
        let h3 = host();
        let r = m.cpu().results();
        let h4 = host();
        let word = |i: usize| u64::from(r[2 * i]) | u64::from(r[2 * i + 1]) << 32;
        let passed = (h4 - h1) * num / den + 4;
        let [tsc, adjust, seventy, later] = [0, 1, 2, 3].map(word);
        let tolerated = (h4 - h3) * num / den + 4;
        assert!((1 << 51..=(1 << 51) + tolerated).contains(&tsc), "{tsc:#x}");
        // What the TSC would be now, had nobody written it.
        let alone = tsc.wrapping_sub(adjust);
        assert!((read - 4..=read + passed).contains(&alone), "{alone:#x}");
        assert_eq!(seventy, 0x77);
        let alone = later.wrapping_sub(0x77);
        assert!((read - 4..=read + passed).contains(&alone), "{alone:#x}");
    }
    Ok(())
}

/// The guest's TSC is the host's, scaled, plus KVM_VCPU_TSC_OFFSET.
fn scaled_tsc_offset() -> Outcome {
    require()?;
    for (num, den) in RATIOS {
        let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
        teller(&m)?;
        set_khz(&m.cpus[0], khz(&m.cpus[0]) * num / den);
        let mut offset = 0u64;
        let attr = |m: &Machine, code, offset: &mut u64| {
            let mut a = kvm_device_attr {
                group: KVM_VCPU_TSC_CTRL,
                attr: u64::from(KVM_VCPU_TSC_OFFSET),
                addr: (&raw mut *offset) as u64,
                ..Default::default()
            };
            assert_eq!(sys::with(m.cpus[0].raw(), code, &mut a), Ok(0));
        };
        let check = |m: &mut Machine, offset: u64| {
            let (h0, g, h1) = tell(m, 0);
            let scaled = |h: u64| (u128::from(h) * u128::from(num) / u128::from(den)) as u64;
            // The ratio's last bits, over all that the host has counted.
            let slack = 4 + (h1 >> 40);
            let (least, most) = (scaled(h0) - slack, scaled(h1) + slack);
            let g = g.wrapping_sub(offset);
            assert!((least..=most).contains(&g), "{g}, not {least} to {most}");
        };
        attr(&m, sys::GET_DEVICE_ATTR, &mut offset);
        check(&mut m, offset);
        offset = 0x1234_5678_9abc;
        attr(&m, sys::SET_DEVICE_ATTR, &mut offset);
        check(&mut m, offset);
    }
    Ok(())
}

/// kvmclock reads the VM's clock at any frequency.
fn scaled_tsc_clock() -> Outcome {
    require()?;
    let gpa = DATA + 0x1000;
    let mut m = super::time::reader(gpa);
    let own = khz(m.cpu());
    for (num, den) in [(1, 1), (1, 2), (3, 2), (1, 1)] {
        set_khz(m.cpu(), own * num / den);
        for _ in 0..3 {
            let before = m.vm.get_clock()?.clock;
            tell(&mut m, 0);
            let after = m.vm.get_clock()?.clock;
            let p = super::time::page(&m, gpa);
            let now = super::time::at(&p, m.ram.u64(DATA));
            // Rounded up to some cycles.
            let slack = 100;
            assert!(
                (before - slack..=after + slack).contains(&now),
                "{num}/{den}: {now}, not {before} to {after}: {p:?}"
            );
            assert_eq!(p.flags & 1, 1, "there is one frequency");
            std::thread::sleep(Duration::from_millis(30));
        }
        // Moving the TSC does not move the clock.
        assert!(m.cpu().set_msr(0x10, 1 << 45));
    }
    Ok(())
}

/// Whether all vCPUs tell the same time is in each one's page, and in KVM_GET_CLOCK.
fn scaled_tsc_of_one_vcpu() -> Outcome {
    require()?;
    let gpa = DATA + 0x1000;
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    for i in 0..2 {
        let code = kit::CODE + 0x1000 * i;
        m.code(code, 64, |a| {
            let mut again = a.create_label();
            kit::wrmsr(a, 0x4b56_4d01, (gpa + 64 * i) | 1)?;
            a.set_label(&mut again)?;
            a.out(0x50, al)?;
            a.jmp(again)
        })?;
        m.cpus[i as usize].regs(|r| r.rip = code);
    }
    let own = khz(&m.cpus[0]);
    for (num, den, stable) in [(1, 1, true), (1, 2, false), (1, 1, true)] {
        set_khz(&m.cpus[1], own * num / den);
        for i in 0..2 {
            m.cpus[i].run().expect("run");
            let p = super::time::page(&m, gpa + 64 * i as u64);
            assert_eq!(p.flags & 1 == 1, stable, "{num}/{den}, vCPU {i}: {p:?}");
        }
        let flags = m.vm.get_clock()?.flags;
        assert_eq!(flags & KVM_CLOCK_TSC_STABLE != 0, stable, "{flags:#x}");
    }
    Ok(())
}

fn scaled_tsc_deadline() -> Outcome {
    require()?;
    const AHEAD: u64 = 5_000_000;
    for (num, den) in RATIOS {
        let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
        m.code(kit::CODE, 64, |a| {
            let (mut wait, mut over) = (a.create_label(), a.create_label());
            x2apic_on(a)?;
            kit::wrmsr(a, 0x832, 0x4_0045)?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.add(rax, AHEAD as i32)?;
            a.mov(qword_ptr(DATA), rax)?;
            a.mov(rdx, rax)?;
            a.shr(rdx, 32)?;
            a.mov(ecx, 0x6e0)?;
            a.wrmsr()?;
            // HLT, with interrupts only there.
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(COUNTS + 4 * 0x45), 1)?;
            a.jae(over)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.jmp(wait)?;
            a.set_label(&mut over)?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.mov(qword_ptr(DATA + 8), rax)?;
            kit::done(a)
        })?;
        set_khz(&m.cpus[0], khz(&m.cpus[0]) * num / den);
        let h0 = host();
        m.cpu().results();
        let passed = host() - h0;
        let (deadline, at) = (m.ram.u64(DATA), m.ram.u64(DATA + 8));
        assert!(at >= deadline, "{} cycles too early", deadline - at);
        assert!(
            passed * num / den + 4 >= AHEAD,
            "after {passed} of the host's"
        );
        // In the guest's cycles: a host that takes them for its own is off by half of it.
        assert!(
            at - deadline < AHEAD / 4,
            "{num}/{den}: {} cycles too late",
            at - deadline
        );
    }
    Ok(())
}

fn scaled_tsc_bounds() -> Outcome {
    require()?;
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let own = khz(&m.cpus[0]);
    for bad in [1 << 31, 0xffff_ffff, 1 << 32, u64::MAX] {
        let r = sys::call(m.cpus[0].raw(), sys::SET_TSC_KHZ, bad);
        assert_eq!(r, Err(EINVAL), "{bad:#x} kHz");
        assert_eq!(khz(&m.cpus[0]), own);
    }
    // What is the host's within the precision of clocks is the host's.
    set_khz(&m.cpus[0], own + own / 5000);
    assert_eq!(khz(&m.cpus[0]), own);
    Ok(())
}
