// SPDX-License-Identifier: GPL-2.0

//! Memory slots, and faults of stage 2.

use crate::harness::tests;
use kvm_bindings::*;
use libc::{EEXIST, EINVAL, ENOENT};
use rkvm_l1::machine::{x, Machine};
use rkvm_l1::ram::Ram;
use rkvm_l1::sys;
use rkvm_l1::{done, guest, kit, mmu_on, result, Exit, Outcome};

tests![
    slot_arguments,
    slots_come_and_go,
    a_slot_moves,
    read_only_slot,
    code_in_a_read_only_slot,
    fresh_pages,
    huge_pages,
    no_memory_behind_a_slot,
    memory_that_may_not_be_written,
    dirty_log,
    a_write_at_an_odd_address,
    a_write_across_two_pages,
    dirty_log_arguments,
    pages_that_come_back,
];

/// More memory, for a second slot.
const MORE: u64 = 0x8000_0000;

fn slot_arguments() -> Outcome {
    let m = Machine::bare();
    let r = Ram::anon(MORE, 0x10000);
    let set = |slot: u32, flags: u32, gpa: u64, size: u64, addr: u64| {
        m.region(slot, flags, gpa, size, addr)
    };
    let a = r.addr();
    for (flags, gpa, size, addr) in [
        (0, MORE + 1, 0x1000, a),
        (0, MORE, 0x1001, a),
        (0, MORE, 0x1000, a + 1),
        (0, MORE, 0x1000, 0xffff_8000_0000_0000),
        (0x80, MORE, 0x1000, a),
        (0, u64::MAX - 0xfff, 0x2000, a),
        (0, 1 << 53, 0x1000, a),
        (0, MORE, 1 << 52, a),
    ] {
        let r = set(1, flags, gpa, size, addr);
        assert_eq!(r, Err(EINVAL), "{flags:#x} {gpa:#x} {size:#x} {addr:#x}");
    }
    let limit = m.vm.check_extension_raw(KVM_CAP_NR_MEMSLOTS.into()) as u32;
    assert_eq!(set(limit, 0, MORE, 0x1000, a), Err(EINVAL));
    assert_eq!(set(1, 0, MORE, 0x1000, a), Ok(0));
    // Overlap; another size; a different address in this process.
    assert_eq!(set(2, 0, MORE, 0x1000, a), Err(EEXIST));
    assert_eq!(set(2, 0, kit::BASE + 0x1000, 0x1000, a), Err(EEXIST));
    assert_eq!(set(1, 0, MORE, 0x2000, a), Err(EINVAL));
    assert_eq!(set(1, 0, MORE, 0x1000, a + 0x1000), Err(EINVAL));
    assert_eq!(set(1, 0, MORE, 0, 0), Ok(0));
    // Nothing is left to be deleted.
    assert_eq!(set(1, 0, MORE, 0, 0), Err(EINVAL));
    Ok(())
}

fn slots_come_and_go() -> Outcome {
    let mut m = Machine::new(guest!["1: ldr x1, [x19]", result!("x1"), "b 1b"]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x1000);
    r.set64(MORE, 77);
    for _ in 0..20 {
        assert_eq!(m.slot(1, &r, 0), Ok(0));
        let e = m.cpu().run();
        assert!(
            matches!(&e, Ok(Exit::Write { gpa: kit::RESULT, data }) if data[0] == 77),
            "{e:x?}"
        );
        assert_eq!(m.region(1, 0, MORE, 0, 0), Ok(0));
        assert_eq!(m.cpu().run(), Ok(Exit::Read { gpa: MORE, len: 8 }));
        m.cpu().answer(&[5]);
        let e = m.cpu().run();
        assert!(
            matches!(&e, Ok(Exit::Write { gpa: kit::RESULT, data }) if data[0] == 5),
            "{e:x?}"
        );
    }
    Ok(())
}

fn a_slot_moves() -> Outcome {
    let mut m = Machine::new(guest![
        "1: ldr x1, [x19]",
        result!("x1"),
        "ldr x1, [x20]",
        result!("x1"),
        done!(),
    ]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    m.cpus[0].set(x(20), MORE + 0x10_0000).expect("x20");
    let r = Ram::anon(MORE, 0x1000);
    r.set64(MORE, 77);
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    assert!(matches!(m.cpu().run(), Ok(Exit::Write { .. })));
    assert_eq!(m.region(1, 0, MORE + 0x10_0000, 0x1000, r.addr()), Ok(0));
    let got = m.cpu().results();
    assert_eq!(got, [77]);
    Ok(())
}

fn read_only_slot() -> Outcome {
    let mut m = Machine::new(guest![
        "ldr x1, [x19]",
        result!("x1"),
        "str x1, [x19]",
        "strb w1, [x19, #3]",
        "ldr x1, [x19]",
        result!("x1"),
        done!(),
    ]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x1000);
    r.set64(MORE, 0x99);
    assert_eq!(m.slot(1, &r, KVM_MEM_READONLY), Ok(0));
    let mut seen = Vec::new();
    let got = m.cpu().run_with(|_, e| {
        seen.push(e.clone());
        true
    });
    assert_eq!(got, [0x99, 0x99]);
    assert_eq!(
        seen,
        [
            Exit::Write {
                gpa: MORE,
                data: 0x99u64.to_le_bytes().to_vec()
            },
            Exit::Write {
                gpa: MORE + 3,
                data: vec![0x99]
            }
        ]
    );
    Ok(())
}

fn code_in_a_read_only_slot() -> Outcome {
    let mut m = Machine::new(guest!["br x19"]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x1000);
    r.put(MORE, guest!["mov x1, #9", result!("x1"), done!()]);
    assert_eq!(m.slot(1, &r, KVM_MEM_READONLY), Ok(0));
    assert_eq!(m.cpu().results(), [9]);
    Ok(())
}

fn fresh_pages() -> Outcome {
    const BYTES: usize = 0x80_0000;
    let mut m = Machine::new(guest![
        "1: ldr x1, [x19]",
        "cbnz x1, 2f",
        "str x19, [x19]",
        "add x19, x19, #4096",
        "cmp x19, x20",
        "b.ne 1b",
        "2:",
        result!("x1"),
        done!(),
    ]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    m.cpus[0].set(x(20), MORE + BYTES as u64).expect("x20");
    let r = Ram::anon(MORE, BYTES);
    // SAFETY: our own mapping.
    unsafe { libc::madvise(r.at(0), BYTES, libc::MADV_NOHUGEPAGE) };
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    assert_eq!(m.cpu().results(), [0]);
    for gpa in (MORE..MORE + BYTES as u64).step_by(4096) {
        assert_eq!(r.u64(gpa), gpa);
    }
    Ok(())
}

fn huge_pages() -> Outcome {
    const BYTES: usize = 0x100_0000;
    let mut m = Machine::new(guest![
        "1: str x19, [x19]",
        "add x19, x19, #4096",
        "cmp x19, x20",
        "b.ne 1b",
        result!("x22"),
        done!(),
    ]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    m.cpus[0].set(x(20), MORE + BYTES as u64).expect("x20");
    let r = Ram::aligned(MORE, BYTES, 0x20_0000);
    // SAFETY: our own mapping.
    unsafe { libc::madvise(r.at(0), BYTES, libc::MADV_HUGEPAGE) };
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    // In the middle of it all a page becomes another.
    m.cpu().results();
    for gpa in (MORE..MORE + BYTES as u64).step_by(4096) {
        assert_eq!(r.u64(gpa), gpa);
    }
    Ok(())
}

fn no_memory_behind_a_slot() -> Outcome {
    let mut m = Machine::new(guest!["ldr x1, [x19]", result!("x1"), done!()]);
    m.cpus[0].set(x(19), MORE + 0x1008).expect("x19");
    let r = Ram::anon(MORE, 0x3000);
    r.set64(MORE + 0x1008, 3);
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    // SAFETY: our own mapping; its end unmaps it once more, which does no harm.
    unsafe { libc::munmap(r.at(0x1000), 0x1000) };
    let before = m.cpus[0].reg(rkvm_l1::machine::PC);
    match m.cpu().run() {
        Ok(Exit::MemoryFault { gpa, size, .. }) => {
            assert_eq!((gpa & !0xfff, size), (MORE + 0x1000, 0x1000));
        }
        e => assert_eq!(e, Err(libc::EFAULT)),
    }
    // Once there is memory, the guest goes on where it was.
    assert_eq!(m.cpus[0].reg(rkvm_l1::machine::PC), before);
    // SAFETY: the hole just made.
    let p = unsafe {
        libc::mmap(
            r.at(0x1000),
            0x1000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_eq!(p, r.at(0x1000));
    r.set64(MORE + 0x1008, 4);
    assert_eq!(m.cpu().results(), [4]);
    Ok(())
}

fn memory_that_may_not_be_written() -> Outcome {
    let mut m = Machine::new(guest![
        "ldr x1, [x19]",
        result!("x1"),
        "str x1, [x19]",
        done!(),
    ]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x1000);
    r.set64(MORE, 6);
    // SAFETY: our own mapping.
    unsafe { libc::mprotect(r.at(0), 0x1000, libc::PROT_READ) };
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    assert!(matches!(
        m.cpu().run(),
        Ok(Exit::Write {
            gpa: kit::RESULT,
            ..
        })
    ));
    match m.cpu().run() {
        Ok(Exit::MemoryFault { gpa, .. }) => assert_eq!(gpa & !0xfff, MORE),
        e => assert_eq!(e, Err(libc::EFAULT)),
    }
    // SAFETY: our own mapping.
    unsafe { libc::mprotect(r.at(0), 0x1000, libc::PROT_READ | libc::PROT_WRITE) };
    assert_eq!(m.cpu().results(), []);
    Ok(())
}

/// KVM_GET_DIRTY_LOG of 64 pages at the most.
fn log(m: &Machine, slot: u32) -> Result<u64, i32> {
    let mut bits = 0u64;
    let mut l = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: (&raw mut bits).cast(),
        },
    };
    sys::with(m.raw(), sys::GET_DIRTY_LOG, &mut l).map(|_| bits)
}

/// A second slot of 16 pages with a dirty log.
fn logged() -> (Machine, Ram) {
    let m = Machine::with(1);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x10000);
    assert_eq!(m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES), Ok(0));
    (m, r)
}

fn dirty_log() -> Outcome {
    let (mut m, r) = logged();
    m.code(
        kit::CODE,
        guest![
            "ldr x1, [x19]",
            "str x1, [x19, #0x1000]",
            "str x1, [x19, #0x3000]",
            result!("x1"),
            "str x1, [x19, #0x3000]",
            result!("x1"),
            result!("x1"),
            done!(),
        ],
    );
    let step = |m: &mut Machine| assert!(matches!(m.cpu().run(), Ok(Exit::Write { .. })));
    step(&mut m);
    assert_eq!(log(&m, 1), Ok(0b1010));
    assert_eq!(log(&m, 1), Ok(0));
    step(&mut m);
    assert_eq!(log(&m, 1), Ok(0b1000));
    step(&mut m);
    assert_eq!(log(&m, 1), Ok(0));
    drop(r);
    Ok(())
}

/// A page that is there, but may only be read, is written at an odd address: bit 0 of an address stands where a failed
/// translation has its flag.
fn a_write_at_an_odd_address() -> Outcome {
    for with_mmu in [false, true] {
        let (mut m, r) = logged();
        m.code(
            kit::CODE,
            if with_mmu {
                guest![
                    mmu_on!(),
                    "ldr x1, [x19]",
                    result!("x1"),
                    "mov w2, #0x77",
                    "strb w2, [x19, #1]",
                    "sturh w2, [x19, #5]",
                    "stur x2, [x19, #15]",
                    done!(),
                ]
            } else {
                guest![
                    "ldr x1, [x19]",
                    result!("x1"),
                    "mov w2, #0x77",
                    "strb w2, [x19, #1]",
                    "strb w2, [x19, #0xfff]",
                    done!(),
                ]
            },
        );
        // There before: what is faulted on by the write is the permission.
        assert!(matches!(
            m.cpu().run(),
            Ok(Exit::Write {
                gpa: kit::RESULT,
                ..
            })
        ));
        assert_eq!(log(&m, 1), Ok(0));
        assert_eq!(m.cpu().results(), []);
        assert_eq!((log(&m, 1), r.u8(MORE + 1)), (Ok(1), 0x77));
        if with_mmu {
            assert_eq!((r.u8(MORE + 5), r.u8(MORE + 15)), (0x77, 0x77));
        }
    }
    Ok(())
}

fn a_write_across_two_pages() -> Outcome {
    let (mut m, r) = logged();
    m.code(
        kit::CODE,
        guest![
            mmu_on!(),
            "ldr x1, [x19]",
            "ldr x1, [x19, #0x1000]",
            result!("x1"),
            "add x3, x19, #0xffb",
            "mov x2, #-1",
            "str x2, [x3]",
            done!(),
        ],
    );
    assert!(matches!(
        m.cpu().run(),
        Ok(Exit::Write {
            gpa: kit::RESULT,
            ..
        })
    ));
    assert_eq!(log(&m, 1), Ok(0));
    assert_eq!(m.cpu().results(), []);
    assert_eq!(log(&m, 1), Ok(3));
    assert_eq!((r.u64(MORE + 0xffb), r.u8(MORE + 0xffa)), (u64::MAX, 0));
    Ok(())
}

fn dirty_log_arguments() -> Outcome {
    let (m, _r) = logged();
    // No log; no slot.
    assert_eq!(log(&m, 0), Err(ENOENT));
    assert_eq!(log(&m, 5), Err(ENOENT));
    assert_eq!(log(&m, 40000), Err(EINVAL));
    let mut l = kvm_dirty_log {
        slot: 1,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: sys::UNMAPPED as *mut _,
        },
    };
    let r = sys::with(m.raw(), sys::GET_DIRTY_LOG, &mut l);
    assert_eq!(r, Err(libc::EFAULT));
    Ok(())
}

fn pages_that_come_back() -> Outcome {
    let mut m = Machine::new(guest!["1: ldr x1, [x19]", result!("x1"), "b 1b"]);
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 0x1000);
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    for n in 1..50u64 {
        r.set64(MORE, n);
        let e = m.cpu().run();
        assert!(
            matches!(&e, Ok(Exit::Write { data, .. }) if rkvm_l1::machine::value(data) == n),
            "{e:x?}"
        );
        // SAFETY: our own mapping: the page goes, and a fresh one comes.
        unsafe { libc::madvise(r.at(0), 0x1000, libc::MADV_DONTNEED) };
        let e = m.cpu().run();
        assert!(
            matches!(&e, Ok(Exit::Write { data, .. }) if rkvm_l1::machine::value(data) == 0),
            "{e:x?}"
        );
    }
    Ok(())
}
