// SPDX-License-Identifier: GPL-2.0

//! Interrupts from outside: MSIs, GSI routes, irqfds, resampling, EOIs for an IOAPIC in user space.

use super::lapic::{await_count, x2apic_on};
use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use libc::{EBADF, EBUSY, EINVAL};
use rkvm_l1::kit;
use rkvm_l1::machine::split;
use rkvm_l1::sys::{self, Event};
use rkvm_l1::{Exit, Irqchip, Machine, Mode, Outcome};

tests![
    signal_msi,
    msi_to_nobody,
    msi_destinations,
    msi_lowest_priority,
    msi_nmi_and_init,
    routing_arguments,
    routing_and_irq_line,
    irqfd_arguments,
    irqfd_injects,
    irqfd_wakes_hlt,
    irqfd_signalled_before_route,
    irqfd_deassign,
    irqfd_closed,
    routes_need_an_irqchip,
    eoi_exit,
    many_irqfds,
];

/// A guest that takes interrupts until `vector` came `n` times.
fn waiter(vector: u8, n: i32, hlt: bool) -> Result<Machine, IcedError> {
    Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.out(0x50, al)?;
        a.sti()?;
        if hlt {
            for _ in 0..n {
                a.hlt()?;
            }
        }
        await_count(a, vector, n)?;
        kit::done(a)
    })
}

fn msi(m: &Machine, address: u32, data: u32) -> Result<i32, i32> {
    let mut s = kvm_msi {
        address_lo: address,
        data,
        ..Default::default()
    };
    sys::with(m.raw(), sys::SIGNAL_MSI, &mut s)
}

/// A route of `gsi` to an MSI.
pub fn route(gsi: u32, data: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    e.u.msi = kvm_irq_routing_msi {
        address_lo: 0xfee0_0000,
        data,
        ..Default::default()
    };
    e
}

/// Replaces all routes.
pub fn routes(m: &Machine, entries: &[kvm_irq_routing_entry]) -> Result<i32, i32> {
    let r = KvmIrqRouting::from_entries(entries).expect("few entries");
    m.vm.set_gsi_routing(&r).map(|()| 0).map_err(|e| e.errno())
}

fn irqfd(
    m: &Machine,
    e: &Event,
    gsi: u32,
    flags: u32,
    resample: Option<&Event>,
) -> Result<i32, i32> {
    let mut i = kvm_irqfd {
        fd: e.0 as u32,
        gsi,
        flags,
        resamplefd: resample.map_or(0, |r| r.0 as u32),
        ..Default::default()
    };
    sys::with(m.raw(), sys::IRQFD, &mut i)
}

fn signal_msi() -> Outcome {
    let mut m = waiter(0x61, 1, false)?;
    m.cpu().run().expect("run");
    assert_eq!(msi(&m, 0xfee0_0000, 0x61), Ok(1));
    m.cpu().results();
    assert_eq!(m.log(), [0x61]);
    let mut s = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x61,
        flags: 1 << 5,
        ..Default::default()
    };
    assert_eq!(
        sys::with(m.raw(), sys::SIGNAL_MSI, &mut s),
        Err(EINVAL),
        "flags"
    );
    Ok(())
}

fn msi_to_nobody() -> Outcome {
    let mut m = waiter(0x61, 1, false)?;
    // To an APIC that is not there.
    m.cpu().run().expect("run");
    let r = msi(&m, 0xfee0_5000, 0x61);
    assert!(matches!(r, Ok(0 | -1) | Err(_)), "{r:?}");
    assert_eq!(m.count(0x61), 0);
    Ok(())
}

fn msi_destinations() -> Outcome {
    // Three CPUs that wait; physical by id, logical by mask, broadcast.
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 3);
    m.code(kit::CODE, 64, |a| {
        super::lapic::xapic_on(a)?;
        // LDR: one bit each, flat model.
        a.mov(eax, dword_ptr(r15 + 0x20))?;
        a.shr(eax, 24)?;
        a.mov(ecx, eax)?;
        a.mov(eax, 0x100_0000)?;
        a.shl(eax, cl)?;
        a.mov(dword_ptr(r15 + 0xd0), eax)?;
        a.out(0x50, al)?;
        a.sti()?;
        a.nop()?;
        a.out(0x51, al)?;
        kit::done(a)
    })?;
    for c in &mut m.cpus {
        c.run().expect("run");
    }
    assert_eq!(msi(&m, 0xfee0_1000, 0x41), Ok(1), "physical, CPU 1");
    assert_eq!(msi(&m, 0xfee0_5004, 0x42), Ok(2), "logical, CPUs 0 and 2");
    assert_eq!(msi(&m, 0xfeef_f000, 0x43), Ok(3), "all");
    let mut took = Vec::new();
    for c in &mut m.cpus {
        let l = c.fd.get_lapic()?;
        took.push(
            [0x41u32, 0x42, 0x43].map(|v| {
                l.regs[(0x200 + (v / 32) * 16 + v % 32 / 8) as usize] as u8 >> (v % 8) & 1
            }),
        );
    }
    assert_eq!(took, [[0, 1, 1], [1, 0, 1], [0, 1, 1]]);
    for c in &mut m.cpus {
        c.results_io();
    }
    assert_eq!([m.count(0x41), m.count(0x42), m.count(0x43)], [1, 2, 3]);
    Ok(())
}

fn msi_lowest_priority() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(kit::CODE, 64, |a| {
        super::lapic::xapic_on(a)?;
        a.mov(eax, dword_ptr(r15 + 0x20))?;
        a.shr(eax, 24)?;
        a.mov(ecx, eax)?;
        a.mov(eax, 0x100_0000)?;
        a.shl(eax, cl)?;
        a.mov(dword_ptr(r15 + 0xd0), eax)?;
        a.out(0x50, al)?;
        a.sti()?;
        a.nop()?;
        a.out(0x51, al)?;
        kit::done(a)
    })?;
    for c in &mut m.cpus {
        c.run().expect("run");
    }
    // To either, once.
    assert_eq!(msi(&m, 0xfee0_300c, 0x144), Ok(1));
    for c in &mut m.cpus {
        c.results_io();
    }
    assert_eq!(m.count(0x44), 1);
    Ok(())
}

fn msi_nmi_and_init() -> Outcome {
    let mut m = waiter(2, 1, false)?;
    m.cpu().run().expect("run");
    assert_eq!(msi(&m, 0xfee0_0000, 0x400), Ok(1));
    m.cpu().results();
    assert_eq!(m.log(), [2]);
    Ok(())
}

fn routing_arguments() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    assert_eq!(routes(&m, &[]), Ok(0));
    assert_eq!(routes(&m, &[route(5, 0x41), route(6, 0x42)]), Ok(0));
    let mut e = route(5, 0x41);
    e.type_ = 99;
    assert_eq!(routes(&m, &[e]), Err(EINVAL), "no such type");
    assert_eq!(
        routes(&m, &[route(4096, 0x41)]),
        Err(EINVAL),
        "GSIs end at 4095"
    );
    assert_eq!(routes(&m, &[route(4095, 0x41)]), Ok(0));
    assert_eq!(
        routes(&m, &[route(5, 0x41), route(5, 0x42)]),
        Err(EINVAL),
        "two MSIs of one GSI"
    );
    let mut e = route(5, 0x41);
    e.flags = 1 << 9;
    assert_eq!(routes(&m, &[e]), Err(EINVAL), "flags");
    let mut head = kvm_irq_routing {
        nr: 4097,
        flags: 0,
        ..Default::default()
    };
    assert_eq!(
        sys::with(m.raw(), sys::SET_GSI_ROUTING, &mut head),
        Err(EINVAL),
        "too many"
    );
    head.nr = 0;
    head.flags = 1;
    assert_eq!(
        sys::with(m.raw(), sys::SET_GSI_ROUTING, &mut head),
        Err(EINVAL),
        "flags"
    );
    Ok(())
}

fn routing_and_irq_line() -> Outcome {
    let mut m = waiter(0x71, 2, false)?;
    m.cpu().run().expect("run");
    routes(&m, &[route(9, 0x70), route(10, 0x71)]).expect("routes");
    let fd = m.raw();
    let line = |gsi, level| {
        let mut l = kvm_irq_level {
            level,
            ..Default::default()
        };
        l.__bindgen_anon_1.irq = gsi;
        sys::with(fd, sys::IRQ_LINE, &mut l)
    };
    // KVM_IRQ_LINE in split mode: an MSI's route takes a rising line.
    assert_eq!(line(10, 1), Ok(0));
    assert_eq!(line(10, 0), Ok(0));
    m.cpu().page().immediate_exit = 1;
    assert_eq!(m.cpu().run(), Err(libc::EINTR));
    m.cpu().page().immediate_exit = 0;
    // The route changes: the same GSI is another vector.
    routes(&m, &[route(9, 0x71)]).expect("routes");
    let deadline = sys::now() + 5_000_000_000;
    std::thread::scope(|s| {
        let cpus = &mut m.cpus;
        let t = s.spawn(move || cpus[0].results());
        let mut sent = 0;
        while !t.is_finished() && sys::now() < deadline {
            let mut l = kvm_irq_level {
                level: 1,
                ..Default::default()
            };
            l.__bindgen_anon_1.irq = 9;
            sent += sys::with(fd, sys::IRQ_LINE, &mut l).map_or(0, |_| 1);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(sent > 0 && t.is_finished());
    });
    assert_eq!(m.count(0x70), 0);
    Ok(())
}

fn irqfd_arguments() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    let (e, r) = (Event::new(), Event::new());
    assert_eq!(irqfd(&m, &e, 4, 1 << 7, None), Err(EINVAL), "flags");
    let mut bad = kvm_irqfd {
        fd: u32::MAX,
        gsi: 4,
        ..Default::default()
    };
    assert_eq!(sys::with(m.raw(), sys::IRQFD, &mut bad), Err(EBADF));
    bad.fd = m.raw() as u32;
    assert_eq!(
        sys::with(m.raw(), sys::IRQFD, &mut bad),
        Err(EINVAL),
        "no eventfd"
    );
    assert_eq!(irqfd(&m, &e, 4, 0, None), Ok(0));
    assert_eq!(irqfd(&m, &e, 5, 0, None), Err(EBUSY), "one GSI an eventfd");
    assert_eq!(irqfd(&m, &e, 4, KVM_IRQFD_FLAG_DEASSIGN, None), Ok(0));
    assert_eq!(
        irqfd(&m, &e, 4, KVM_IRQFD_FLAG_DEASSIGN, None),
        Ok(0),
        "none is no error"
    );
    // Resampling is for level-triggered pins of an IOAPIC in the kernel, of which there is none.
    for flags in [KVM_IRQFD_FLAG_RESAMPLE, KVM_IRQFD_FLAG_RESAMPLE | 1 << 4] {
        assert_eq!(irqfd(&m, &e, 4, flags, Some(&r)), Err(EINVAL));
    }
    assert_eq!(irqfd(&m, &e, 4, 0, None), Ok(0), "nothing was left behind");
    Ok(())
}

fn irqfd_injects() -> Outcome {
    let mut m = waiter(0x62, 5, false)?;
    let e = Event::new();
    routes(&m, &[route(7, 0x62)]).expect("routes");
    irqfd(&m, &e, 7, 0, None).expect("irqfd");
    m.cpu().run().expect("run");
    std::thread::scope(|s| {
        let t = s.spawn(|| m.cpus[0].results());
        while !t.is_finished() {
            e.signal();
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    });
    assert!(m.log().iter().all(|v| *v == 0x62));
    assert_eq!(e.take(), 0, "the kernel has taken it");
    Ok(())
}

fn irqfd_wakes_hlt() -> Outcome {
    let mut m = waiter(0x62, 3, true)?;
    let e = Event::new();
    routes(&m, &[route(7, 0x62)]).expect("routes");
    irqfd(&m, &e, 7, 0, None).expect("irqfd");
    m.cpu().run().expect("run");
    std::thread::scope(|s| {
        let t = s.spawn(|| m.cpus[0].results());
        while !t.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(10));
            e.signal();
        }
    });
    Ok(())
}

fn irqfd_signalled_before_route() -> Outcome {
    // An eventfd that is signalled already when it is assigned injects at once.
    let mut m = waiter(0x62, 1, false)?;
    let e = Event::new();
    m.cpu().run().expect("run");
    routes(&m, &[route(7, 0x62)]).expect("routes");
    e.signal();
    irqfd(&m, &e, 7, 0, None).expect("irqfd");
    m.cpu().results();
    assert_eq!(m.log(), [0x62]);
    Ok(())
}

fn irqfd_deassign() -> Outcome {
    let mut m = waiter(0x63, 1, false)?;
    let e = Event::new();
    routes(&m, &[route(7, 0x62), route(8, 0x63)]).expect("routes");
    irqfd(&m, &e, 7, 0, None).expect("irqfd");
    irqfd(&m, &e, 7, KVM_IRQFD_FLAG_DEASSIGN, None).expect("deassign");
    m.cpu().run().expect("run");
    e.signal();
    assert_eq!(e.take(), 1, "nobody took it");
    irqfd(&m, &e, 8, 0, None).expect("irqfd");
    e.signal();
    m.cpu().results();
    assert_eq!(m.log(), [0x63]);
    Ok(())
}

fn irqfd_closed() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    routes(&m, &[route(7, 0x62)]).expect("routes");
    for _ in 0..50 {
        // The last reference goes while it is assigned; the GSI is free again soon.
        let e = Event::new();
        irqfd(&m, &e, 7, 0, None).expect("irqfd");
        e.signal();
        drop(e);
    }
    Ok(())
}

/// A level-triggered route to the IOAPIC in user space is what EOI exits are for.
fn ioapic_route(gsi: u32, data: u32) -> kvm_irq_routing_entry {
    route(gsi, data | 1 << 15 | 1 << 14)
}

fn routes_need_an_irqchip() -> Outcome {
    // (api.rst 4.52 has KVM_CREATE_IRQCHIP or its split kind come first.)
    let m = Machine::with(Mode::Long, Irqchip::None, 0);
    assert_eq!(routes(&m, &[route(7, 0x62)]), Err(EINVAL));
    assert_eq!(routes(&m, &[]), Err(EINVAL));
    assert_eq!(split(&m.vm), Ok(0));
    assert_eq!(routes(&m, &[route(7, 0x62)]), Ok(0));
    Ok(())
}

fn eoi_exit() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.out(0x50, al)?;
        a.sti()?;
        await_count(a, 0x64, 1)?;
        await_count(a, 0x65, 1)?;
        kit::done(a)
    })?;
    // GSI 3 is a pin of the IOAPIC, level-triggered; GSI 30 is none of its 24 pins.
    routes(&m, &[ioapic_route(3, 0x64), route(30, 0x65)]).expect("routes");
    m.cpu().run().expect("run");
    assert_eq!(msi(&m, 0xfee0_0000, 0x64 | 1 << 15 | 1 << 14), Ok(1));
    assert_eq!(msi(&m, 0xfee0_0000, 0x65), Ok(1));
    let mut eois = Vec::new();
    m.cpu().run_with(|_, e| {
        if let Exit::Eoi { vector } = e {
            eois.push(*vector);
        }
        matches!(e, Exit::Eoi { .. })
    });
    assert_eq!(eois, [0x64], "one, for the level-triggered vector alone");
    Ok(())
}

fn many_irqfds() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        x2apic_on(a)?;
        a.out(0x50, al)?;
        a.sti()?;
        await_count(a, 0x9f, 1)?;
        kit::done(a)
    })?;
    let events: Vec<Event> = (0..48).map(|_| Event::new()).collect();
    let table: Vec<_> = (0..48).map(|i| route(100 + i, 0x70 + i)).collect();
    routes(&m, &table).expect("routes");
    for (i, e) in events.iter().enumerate() {
        irqfd(&m, e, 100 + i as u32, 0, None).expect("irqfd");
    }
    m.cpu().run().expect("run");
    for e in &events {
        e.signal();
    }
    m.cpu().results();
    // All were pending: the highest came first.
    assert_eq!(m.log()[0], 0x9f);
    Ok(())
}
