// SPDX-License-Identifier: GPL-2.0

//! The TSC and the paravirtual clock.

use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit::{self, DATA};
use rkvm_l1::sys;
use rkvm_l1::{Irqchip, Machine, Mode, Outcome};

tests![
    tsc_never_goes_back,
    tsc_is_one_for_all_vcpus,
    tsc_by_ioctl,
    clock_page,
    clock_page_follows_set_clock,
    clock_page_of_two_vcpus,
    wall_clock,
    clock_off,
    clock_advances_with_the_host,
];

fn tsc_never_goes_back() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let (mut again, mut bad, mut ok) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.mov(esi, 2000)?;
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, rbx)?;
        a.jbe(bad)?;
        a.mov(rbx, rax)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.out(0x50, al)?;
        // CPUID has taken EBX.
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rbx, rax)?;
        a.dec(esi)?;
        a.jnz(again)?;
        a.jmp(ok)?;
        a.set_label(&mut bad)?;
        a.mov(eax, 0xbad)?;
        kit::result(a)?;
        a.set_label(&mut ok)?;
        kit::done_after(a)
    })?;
    assert!(m.cpu().results_io().0.is_empty());
    Ok(())
}

fn tsc_is_one_for_all_vcpus() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(kit::CODE, 64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        kit::result(a)?;
        a.mov(eax, edx)?;
        kit::result(a)?;
        a.jmp(again)
    })?;
    // By turns: each reading is later than the other's before.
    let mut last = 0;
    for i in 0..60 {
        let c = &mut m.cpus[i % 2];
        let mut half = || match c.run() {
            Ok(rkvm_l1::Exit::Out { data, .. }) => {
                u64::from(u32::from_le_bytes(data[..4].try_into().expect("4 bytes")))
            }
            e => panic!("{e:x?}"),
        };
        let now = half() | half() << 32;
        assert!(now > last, "turn {i}: {now} after {last}");
        last = now;
    }
    Ok(())
}

fn tsc_by_ioctl() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.rdtsc()?;
        kit::result(a)?;
        a.mov(eax, edx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let t = 1u64 << 50;
    assert!(m.cpu().set_msr(0x10, t));
    let r = m.cpu().results();
    let guest = u64::from(r[0]) | u64::from(r[1]) << 32;
    let after = m.cpu().msr(0x10).expect("the TSC");
    // A few seconds of it at the most.
    assert!(
        (t..t + (1 << 36)).contains(&guest) && (guest..t + (1 << 36)).contains(&after),
        "{guest:x} {after:x}"
    );
    Ok(())
}

/// The pvclock structure at `gpa`.
#[derive(Debug)]
pub(super) struct Page {
    version: u32,
    tsc: u64,
    system: u64,
    mul: u32,
    shift: i8,
    pub(super) flags: u8,
}

pub(super) fn page(m: &Machine, gpa: u64) -> Page {
    Page {
        version: m.ram.u32(gpa),
        tsc: m.ram.u64(gpa + 8),
        system: m.ram.u64(gpa + 16),
        mul: m.ram.u32(gpa + 24),
        shift: m.ram.u8(gpa + 28) as i8,
        flags: m.ram.u8(gpa + 29),
    }
}

/// Nanoseconds at `tsc`.
pub(super) fn at(p: &Page, tsc: u64) -> u64 {
    // Modulo 2^64: the clock may have begun before this vCPU's TSC was 0.
    let d = tsc.wrapping_sub(p.tsc);
    assert!(d < 1 << 62, "the TSC is {tsc:#x}, before {p:x?}");
    let d = u128::from(d);
    let d = if p.shift < 0 {
        d >> -p.shift
    } else {
        d << p.shift
    };
    p.system + (d * u128::from(p.mul) >> 32) as u64
}

/// Reads the TSC each time it is run: at DATA.
pub fn tell(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(qword_ptr(DATA), rax)?;
    a.out(0x50, al)?;
    a.jmp(again)
}

/// A guest that has its kvmclock page at `gpa`, and then does that.
pub fn reader(gpa: u64) -> Machine {
    Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x4b56_4d01, gpa | 1)?;
        tell(a)
    })
    .expect("code")
}

fn clock_page() -> Outcome {
    let gpa = DATA + 0x1000;
    let mut m = reader(gpa);
    m.cpu().run().expect("run");
    let p = page(&m, gpa);
    assert!(p.version % 2 == 0 && p.version > 0 && p.mul > 0, "{p:?}");
    // Guest time and KVM_GET_CLOCK are one clock.
    let before = m.vm.get_clock()?.clock;
    m.cpu().run().expect("run");
    let after = m.vm.get_clock()?.clock;
    let p = page(&m, gpa);
    let now = at(&p, m.ram.u64(DATA));
    let slack = 2_000_000;
    assert!(
        before <= now + slack && now <= after + slack,
        "{before} {now} {after}"
    );
    Ok(())
}

fn clock_page_follows_set_clock() -> Outcome {
    let gpa = DATA + 0x1000;
    let mut m = reader(gpa);
    m.cpu().run().expect("run");
    let t = 7_000_000_000_000;
    m.vm.set_clock(&kvm_clock_data {
        clock: t,
        ..Default::default()
    })?;
    m.cpu().run().expect("run");
    let p = page(&m, gpa);
    let now = at(&p, m.ram.u64(DATA));
    assert!((t..t + 5_000_000_000).contains(&now), "{now}, {p:?}");
    Ok(())
}

fn clock_page_of_two_vcpus() -> Outcome {
    let gpa = DATA + 0x1000;
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    for i in 0..2u64 {
        m.code(kit::CODE + 0x1000 * i, 64, |a| {
            let mut again = a.create_label();
            kit::wrmsr(a, 0x4b56_4d01, (gpa + 64 * i) | 1)?;
            a.set_label(&mut again)?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.mov(qword_ptr(DATA), rax)?;
            a.out(0x50, al)?;
            a.jmp(again)
        })?;
        m.cpus[i as usize].regs(|r| r.rip = kit::CODE + 0x1000 * i);
    }
    let mut last = 0;
    for turn in 0..40usize {
        m.cpus[turn % 2].run().expect("run");
        let p = page(&m, gpa + 64 * (turn % 2) as u64);
        let now = at(&p, m.ram.u64(DATA));
        assert!(now >= last, "turn {turn}: {now} after {last}");
        last = now;
    }
    Ok(())
}

fn wall_clock() -> Outcome {
    let (wall, system) = (DATA + 0x2000, DATA + 0x1000);
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x4b56_4d01, system | 1)?;
        kit::wrmsr(a, 0x4b56_4d00, wall)?;
        kit::done(a)
    })?;
    m.cpu().results();
    let (version, sec) = (m.ram.u32(wall), u64::from(m.ram.u32(wall + 4)));
    assert!(version % 2 == 0 && version > 0);
    // The wall clock is the time of day at which system time was 0.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let up = m.vm.get_clock()?.clock / 1_000_000_000;
    assert!(
        (sec + up).abs_diff(now) <= 3,
        "{sec} + {up}, and it is {now}"
    );
    Ok(())
}

fn clock_off() -> Outcome {
    let gpa = DATA + 0x1000;
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x4b56_4d01, gpa | 1)?;
        a.out(0x50, al)?;
        kit::wrmsr(a, 0x4b56_4d01, 0)?;
        a.out(0x50, al)?;
        kit::done(a)
    })?;
    m.cpu().run().expect("run");
    m.cpu().run().expect("run");
    m.ram.set64(gpa, 0x1234);
    m.vm.set_clock(&kvm_clock_data::default())?;
    m.cpu().results();
    assert_eq!(m.ram.u64(gpa), 0x1234, "written no more");
    Ok(())
}

fn clock_advances_with_the_host() -> Outcome {
    let gpa = DATA + 0x1000;
    let mut m = reader(gpa);
    m.cpu().run().expect("run");
    let (host, guest) = (sys::now(), at(&page(&m, gpa), m.ram.u64(DATA)));
    std::thread::sleep(std::time::Duration::from_millis(300));
    m.cpu().run().expect("run");
    let (host2, guest2) = (sys::now(), at(&page(&m, gpa), m.ram.u64(DATA)));
    let (h, g) = (host2 - host, guest2 - guest);
    assert!(
        g.abs_diff(h) < h / 10 + 20_000_000,
        "host {h} ns, guest {g} ns"
    );
    Ok(())
}
