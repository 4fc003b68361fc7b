// SPDX-License-Identifier: GPL-2.0

//! Writes that end in an eventfd, or in the coalesced ring, instead of in user space.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EEXIST, EINVAL, ENOENT};
use rkvm_l1::kit::{self, MMIO};
use rkvm_l1::sys::{self, Event};
use rkvm_l1::{Exit, Machine, Mode, Outcome};

tests![
    arguments,
    collisions,
    pio_sizes_and_datamatch,
    mmio_sizes_and_datamatch,
    mmio_without_length,
    deassign,
    closed_eventfd,
    reads_go_to_user_space,
    string_output,
    as_many_as_one_likes,
    coalesced_arguments,
    coalesced_limit,
    coalesced_mmio,
    coalesced_pio,
    coalesced_ring_full,
];

const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const DATAMATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;

fn set(
    m: &Machine,
    e: &Event,
    addr: u64,
    len: u32,
    flags: u32,
    datamatch: u64,
) -> Result<i32, i32> {
    let mut io = kvm_ioeventfd {
        datamatch,
        addr,
        len,
        fd: e.0,
        flags,
        ..Default::default()
    };
    sys::with(m.raw(), sys::IOEVENTFD, &mut io)
}

fn arguments() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    let e = Event::new();
    for len in [3, 5, 7, 9, 16, u32::MAX] {
        assert_eq!(set(&m, &e, MMIO, len, 0, 0), Err(EINVAL), "length {len}");
    }
    assert_eq!(set(&m, &e, u64::MAX - 1, 4, 0, 0), Err(EINVAL), "wraps");
    assert_eq!(set(&m, &e, MMIO, 4, 1 << 10, 0), Err(EINVAL), "flags");
    assert_eq!(
        set(&m, &e, MMIO, 0, DATAMATCH, 0),
        Err(EINVAL),
        "what is to match has a length"
    );
    let mut io = kvm_ioeventfd {
        addr: MMIO,
        len: 4,
        fd: m.raw(),
        ..Default::default()
    };
    assert_eq!(
        sys::with(m.raw(), sys::IOEVENTFD, &mut io),
        Err(EINVAL),
        "no eventfd"
    );
    io.fd = -1;
    assert_eq!(
        sys::with(m.raw(), sys::IOEVENTFD, &mut io),
        Err(libc::EBADF)
    );
    assert_eq!(set(&m, &e, MMIO, 4, DEASSIGN, 0), Err(ENOENT));
    for len in [1, 2, 4, 8, 0] {
        assert_eq!(
            set(&m, &e, MMIO + 16 * u64::from(len), len, 0, 0),
            Ok(0),
            "length {len}"
        );
    }
    Ok(())
}

fn collisions() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    let (e, f) = (Event::new(), Event::new());
    assert_eq!(set(&m, &e, MMIO, 4, DATAMATCH, 1), Ok(0));
    assert_eq!(set(&m, &f, MMIO, 4, DATAMATCH, 1), Err(EEXIST));
    assert_eq!(set(&m, &f, MMIO, 4, DATAMATCH, 2), Ok(0));
    assert_eq!(set(&m, &f, MMIO, 4, 0, 0), Err(EEXIST), "any value");
    assert_eq!(set(&m, &f, MMIO, 2, 0, 0), Ok(0), "another length");
    assert_eq!(
        set(&m, &f, MMIO, 4, PIO, 0),
        Ok(0),
        "a port is another place"
    );
    Ok(())
}

/// What the guest's writes gave: counts of the eventfds, and the exits.
fn writes(m: &mut Machine, events: &[&Event]) -> (Vec<u64>, Vec<Exit>) {
    let (_, exits) = m.cpu().results_io();
    (events.iter().map(|e| e.take()).collect(), exits)
}

fn pio_sizes_and_datamatch() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(eax, 0x0707_0707)?;
        a.mov(dx, 0x60)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(eax, 5)?;
        a.mov(dx, 0x70)?;
        a.out(dx, ax)?;
        a.mov(eax, 6)?;
        a.out(dx, ax)?;
        a.out(dx, al)?;
        kit::done(a)
    })?;
    let (e, f, g) = (Event::new(), Event::new(), Event::new());
    set(&m, &e, 0x60, 2, PIO, 0).expect("ioeventfd");
    set(&m, &f, 0x70, 2, PIO | DATAMATCH, 5).expect("ioeventfd");
    set(&m, &g, 0x70, 1, PIO | DATAMATCH, 6).expect("ioeventfd");
    let (counts, exits) = writes(&mut m, &[&e, &f, &g]);
    assert_eq!(counts, [1, 1, 1]);
    let out = |port, data: &[u8]| Exit::Out {
        port,
        size: data.len(),
        data: data.to_vec(),
    };
    assert_eq!(
        exits,
        [out(0x60, &[7]), out(0x60, &[7; 4]), out(0x70, &[6, 0])]
    );
    Ok(())
}

fn mmio_sizes_and_datamatch() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(rax, 0x0102_0304_0506_0708u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx), ax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(dword_ptr(rbx + 0x10), 0x22)?;
        a.mov(dword_ptr(rbx + 0x10), 0x23)?;
        kit::done(a)
    })?;
    let events: Vec<Event> = (0..4).map(|_| Event::new()).collect();
    set(&m, &events[0], MMIO, 4, 0, 0).expect("ioeventfd");
    set(&m, &events[1], MMIO, 8, DATAMATCH, 0x0102_0304_0506_0708).expect("ioeventfd");
    set(&m, &events[2], MMIO + 8, 8, DATAMATCH, 1).expect("ioeventfd");
    set(&m, &events[3], MMIO + 0x10, 4, DATAMATCH, 0x23).expect("ioeventfd");
    let all: Vec<&Event> = events.iter().collect();
    let (counts, exits) = writes(&mut m, &all);
    assert_eq!(counts, [1, 1, 0, 1]);
    let places: Vec<_> = exits
        .iter()
        .map(|e| {
            if let Exit::Write { gpa, data } = e {
                (gpa - MMIO, data.len())
            } else {
                (99, 0)
            }
        })
        .collect();
    assert_eq!(places, [(0, 1), (0, 2), (8, 8), (0x10, 4)]);
    Ok(())
}

fn mmio_without_length() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx), ax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(dword_ptr(rbx + 1), eax)?;
        kit::done(a)
    })?;
    let e = Event::new();
    set(&m, &e, MMIO, 0, 0, 0).expect("ioeventfd");
    let (counts, exits) = writes(&mut m, &[&e]);
    assert_eq!(counts, [4]);
    assert_eq!(exits.len(), 1);
    Ok(())
}

fn deassign() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        for _ in 0..3 {
            a.out(0x60, al)?;
            a.out(0x50, al)?;
        }
        kit::done(a)
    })?;
    let e = Event::new();
    set(&m, &e, 0x60, 1, PIO, 0).expect("ioeventfd");
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x50, .. })));
    assert_eq!(
        set(&m, &e, 0x60, 2, PIO | DEASSIGN, 0),
        Err(ENOENT),
        "another length"
    );
    set(&m, &e, 0x60, 1, PIO | DEASSIGN, 0).expect("deassign");
    assert_eq!(set(&m, &e, 0x60, 1, PIO | DEASSIGN, 0), Err(ENOENT));
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x60, .. })));
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x50, .. })));
    set(&m, &e, 0x60, 1, PIO, 0).expect("again");
    m.cpu().results_io();
    assert_eq!(e.take(), 2);
    Ok(())
}

fn closed_eventfd() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.out(0x60, al)?;
        kit::done(a)
    })?;
    let e = Event::new();
    set(&m, &e, 0x60, 1, PIO, 0).expect("ioeventfd");
    drop(e);
    // The VM still holds it.
    m.cpu().results();
    Ok(())
}

fn reads_go_to_user_space() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.in_(al, 0x60)?;
        a.mov(rbx, MMIO)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::done(a)
    })?;
    let e = Event::new();
    set(&m, &e, 0x60, 1, PIO, 0).expect("ioeventfd");
    set(&m, &e, MMIO, 4, 0, 0).expect("ioeventfd");
    let (counts, exits) = writes(&mut m, &[&e]);
    assert_eq!((counts, exits.len()), (vec![0], 2));
    Ok(())
}

fn string_output() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(esi, kit::DATA as u32)?;
        a.mov(ecx, 5)?;
        a.mov(dx, 0x60)?;
        a.rep().outsb()?;
        kit::done(a)
    })?;
    let e = Event::new();
    set(&m, &e, 0x60, 1, PIO, 0).expect("ioeventfd");
    let (counts, exits) = writes(&mut m, &[&e]);
    assert_eq!((counts, exits), (vec![5], vec![]));
    Ok(())
}

fn zone(m: &Machine, addr: u64, size: u32, pio: u32) -> Result<i32, i32> {
    let mut z = kvm_coalesced_mmio_zone {
        addr,
        size,
        ..Default::default()
    };
    z.__bindgen_anon_1.pio = pio;
    sys::with(m.raw(), sys::REGISTER_COALESCED_MMIO, &mut z)
}

fn unzone(m: &Machine, addr: u64, size: u32, pio: u32) -> Result<i32, i32> {
    let mut z = kvm_coalesced_mmio_zone {
        addr,
        size,
        ..Default::default()
    };
    z.__bindgen_anon_1.pio = pio;
    sys::with(m.raw(), sys::UNREGISTER_COALESCED_MMIO, &mut z)
}

fn as_many_as_one_likes() -> Outcome {
    // Devices of a bus are limited to 1000; ioeventfds do not count.
    let m = Machine::new(Mode::Long, kit::done)?;
    let e = Event::new();
    for i in 0..1200 {
        assert_eq!(set(&m, &e, MMIO + 8 * i, 4, 0, 0), Ok(0), "{i}");
    }
    for i in 0..1200 {
        assert_eq!(set(&m, &e, MMIO + 8 * i, 4, DEASSIGN, 0), Ok(0), "{i}");
    }
    Ok(())
}

fn coalesced_limit() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    // An event is not in the way of a zone.
    assert_eq!(set(&m, &Event::new(), MMIO, 4, 0, 0), Ok(0));
    for i in 0..1000 {
        assert_eq!(zone(&m, MMIO + 16 * i, 16, 0), Ok(0), "{i}");
    }
    assert_eq!(zone(&m, MMIO - 16, 16, 0), Err(libc::ENOSPC));
    assert_eq!(zone(&m, 0x100, 16, 1), Ok(0), "ports are another bus");
    assert_eq!(unzone(&m, MMIO + 160, 16, 0), Ok(0));
    assert_eq!(zone(&m, MMIO - 16, 16, 0), Ok(0));
    Ok(())
}

fn coalesced_arguments() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    assert_eq!(
        zone(&m, MMIO, 0x1000, 2),
        Err(EINVAL),
        "neither MMIO nor port"
    );
    assert_eq!(unzone(&m, MMIO, 0x1000, 2), Err(EINVAL));
    assert_eq!(unzone(&m, MMIO, 0x1000, 0), Ok(0), "none is no error");
    assert_eq!(zone(&m, MMIO, 0x1000, 0), Ok(0));
    assert_eq!(unzone(&m, MMIO, 0x1000, 0), Ok(0));
    Ok(())
}

/// The ring, as user space sees it.
fn ring(m: &Machine) -> *mut kvm_coalesced_mmio_ring {
    let page = m.kvm.check_extension_raw(KVM_CAP_COALESCED_MMIO.into()) as usize;
    // SAFETY: the vCPU's mapping reaches that far.
    unsafe { m.cpus[0].page_ptr().cast::<u8>().add(4096 * page).cast() }
}

fn drain(m: &Machine) -> Vec<(u64, Vec<u8>, u32)> {
    let r = ring(m);
    let max = (4096 - 8) / size_of::<kvm_coalesced_mmio>() as u32;
    let mut v = Vec::new();
    // SAFETY: the ring is mapped; indexes are kept below its length.
    unsafe {
        while (*r).first != (*r).last {
            let first = (*r).first;
            assert!(first < max && (*r).last < max);
            let e = (*r).coalesced_mmio.as_ptr().add(first as usize).read();
            v.push((
                e.phys_addr,
                e.data[..e.len as usize].to_vec(),
                e.__bindgen_anon_1.pio,
            ));
            (*r).first = (first + 1) % max;
        }
    }
    v
}

fn coalesced_mmio() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(dword_ptr(rbx), 0x0403_0201)?;
        a.mov(byte_ptr(rbx + 0xfff), 9)?;
        a.mov(word_ptr(rbx + 0x1000), 8)?;
        a.mov(dword_ptr(rbx + 0xffe), 8)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::done(a)
    })?;
    zone(&m, MMIO, 0x1000, 0).expect("zone");
    let (_, exits) = m.cpu().results_io();
    assert_eq!(
        drain(&m),
        [(MMIO, vec![1, 2, 3, 4], 0), (MMIO + 0xfff, vec![9], 0)]
            .into_iter()
            .chain(
                // A write over the zone's end is cut at the page: its first half may be in the ring.
                if exits.len() == 3 {
                    vec![(MMIO + 0xffe, vec![8, 0], 0)]
                } else {
                    vec![]
                }
            )
            .collect::<Vec<_>>()
    );
    assert!(
        exits.contains(&Exit::Read { gpa: MMIO, len: 4 }),
        "a read exits"
    );
    assert!(
        exits.contains(&Exit::Write {
            gpa: MMIO + 0x1000,
            data: vec![8, 0]
        }),
        "and what is outside"
    );
    Ok(())
}

fn coalesced_pio() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(eax, 0x1234)?;
        a.out(0x72, ax)?;
        a.out(0x70, al)?;
        a.out(0x74, al)?;
        kit::done(a)
    })?;
    zone(&m, 0x70, 4, 1).expect("zone");
    let (_, exits) = m.cpu().results_io();
    assert_eq!(
        drain(&m),
        [(0x72, vec![0x34, 0x12], 1), (0x70, vec![0x34], 1)]
    );
    assert_eq!(
        exits,
        [Exit::Out {
            port: 0x74,
            size: 1,
            data: vec![0x34]
        }]
    );
    Ok(())
}

fn coalesced_ring_full() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(rbx, MMIO)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.inc(ecx)?;
        a.cmp(ecx, 1000)?;
        a.jb(again)?;
        kit::done(a)
    })?;
    zone(&m, MMIO, 0x1000, 0).expect("zone");
    // When it is full the write exits; nothing is lost, nothing twice, and the order stays.
    let mut all = Vec::new();
    loop {
        let e = m.cpu().run().expect("run");
        all.extend(drain(&m).into_iter().map(|(_, d, _)| d));
        match e {
            Exit::Write { data, .. } => all.push(data),
            Exit::Out {
                port: kit::PORT_DONE,
                ..
            } => break,
            e => panic!("{e:x?}"),
        }
    }
    let want: Vec<Vec<u8>> = (0..1000u32).map(|i| i.to_le_bytes().to_vec()).collect();
    assert_eq!(all, want);
    // Nonsense in the indexes does not lead the kernel astray.
    // SAFETY: the ring is mapped.
    unsafe { ((*ring(&m)).first, (*ring(&m)).last) = (7, u32::MAX) };
    m.cpu().start(Mode::Long, kit::CODE, 0);
    for _ in 0..10 {
        m.cpu().run().expect("run");
    }
    Ok(())
}
