// SPDX-License-Identifier: GPL-2.0

//! Memory slots, the dirty log, and what happens to guests when their memory changes under them.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::{EEXIST, EINVAL};
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::ram::Ram;
use rkvm_l1::sys;
use rkvm_l1::{skip, Cpu, Exit, Irqchip, Machine, Mode, Outcome, Stop};
use std::os::fd::AsRawFd;

tests![
    slot_arguments,
    slot_region2,
    slot_overlap,
    slot_count,
    slot_delete_and_move,
    slot_flags_change,
    slot_aliases,
    read_only_slot,
    dirty_log_is_exact,
    dirty_log_of_the_hypervisor,
    dirty_log_under_writers,
    dirty_log_switched_on_again,
    munmap_faults,
    mprotect_faults,
    madvise_dontneed,
    mremap_under_guest,
    new_mapping_at_same_address,
    file_shared,
    file_truncated,
    transparent_huge_pages,
    huge_pages,
    same_page_merging,
    page_out,
    swap,
    userfaultfd,
    fork_copies,
    invalidate_while_running,
];

/// A guest that reads EBX's memory forever: each time [`kit::PORT_RESULT`] is written, with the value there; then it
/// takes EBX, ECX (1: write EDX, 0: read) anew.
fn probe() -> Machine {
    Machine::new(Mode::Long, |a| {
        let (mut again, mut read) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.out(0x50, al)?;
        a.test(ecx, ecx)?;
        a.jz(read)?;
        a.mov(dword_ptr(rbx), edx)?;
        a.set_label(&mut read)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        a.jmp(again)
    })
    .expect("code")
}

/// What came of one access.
fn access(c: &mut Cpu, gpa: u64, write: Option<u32>) -> Result<Exit, i32> {
    // To the place where it takes its orders.
    loop {
        match c.run()? {
            Exit::Out { port: 0x50, .. } => break,
            Exit::Out { .. } => {}
            e => return Ok(e),
        }
    }
    c.regs(|r| {
        r.rbx = gpa;
        r.rcx = u64::from(write.is_some());
        r.rdx = u64::from(write.unwrap_or(0));
    });
    c.run()
}

fn value(e: Result<Exit, i32>) -> u32 {
    match e {
        Ok(Exit::Out { data, .. }) => u32::from_le_bytes(data[..4].try_into().expect("4 bytes")),
        e => panic!("{e:x?}"),
    }
}

fn read(c: &mut Cpu, gpa: u64) -> u32 {
    value(access(c, gpa, None))
}

fn write(c: &mut Cpu, gpa: u64, v: u32) {
    assert_eq!(value(access(c, gpa, Some(v))), v);
}

/// Whether it is what an access to memory that cannot be had gives: EFAULT, with the place where KVM tells it.
fn faulted(e: &Result<Exit, i32>, at: u64) -> bool {
    match e {
        Err(libc::EFAULT) => true,
        Ok(Exit::MemoryFault { gpa, size, .. }) => (*gpa..*gpa + *size).contains(&at),
        _ => false,
    }
}

fn slot_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 0);
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    let (gpa, len, hva) = (r.gpa, r.len() as u64, r.addr());
    let bad = [
        ("size is no page", m.region(1, 0, gpa, 0x1800, hva)),
        ("address is no page", m.region(1, 0, gpa + 8, len, hva)),
        ("host address is no page", m.region(1, 0, gpa, len, hva + 8)),
        ("wraps", m.region(1, 0, u64::MAX - 0xfff, 0x2000, hva)),
        (
            "host address is the kernel's",
            m.region(1, 0, gpa, len, 0xffff_8880_0000_0000),
        ),
        ("flags", m.region(1, 4, gpa, len, hva)),
        ("flags", m.region(1, 1 << 31, gpa, len, hva)),
        ("slot number", m.region(32764, 0, gpa, len, hva)),
        ("address space", m.region(2 << 16 | 1, 0, gpa, len, hva)),
        ("nothing to delete", m.region(1, 0, gpa, 0, hva)),
    ];
    for (what, r) in bad {
        assert_eq!(r, Err(EINVAL), "{what}");
    }
    assert_eq!(m.region(1, 0, gpa, len, hva), Ok(0));
    assert_eq!(
        m.region(1, 0, gpa, len / 2, hva),
        Err(EINVAL),
        "a slot does not change its size"
    );
    assert_eq!(
        m.region(1, 0, gpa, len, hva + 0x1000),
        Err(EINVAL),
        "nor its host address"
    );
    assert_eq!(
        m.region(1, KVM_MEM_READONLY, gpa, len, hva),
        Err(EINVAL),
        "nor whether it is read-only"
    );
    assert_eq!(m.region(1, 0, gpa, 0, hva), Ok(0));
    assert_eq!(m.region(1, 0, gpa, 0, hva), Err(EINVAL), "it is gone");
    assert_eq!(m.region(32763, 0, gpa, len, hva), Ok(0), "the last slot");
    Ok(())
}

fn slot_region2() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 0);
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    let mut s = kvm_userspace_memory_region2 {
        slot: 1,
        flags: 0,
        guest_phys_addr: r.gpa,
        memory_size: r.len() as u64,
        userspace_addr: r.addr(),
        ..Default::default()
    };
    assert_eq!(
        sys::with(m.raw(), sys::SET_USER_MEMORY_REGION2, &mut s),
        Ok(0)
    );
    if m.vm.check_extension_raw(KVM_CAP_GUEST_MEMFD.into()) == 0 {
        s.slot = 2;
        s.guest_phys_addr += 0x100_0000;
        s.flags = 4;
        s.guest_memfd = m.raw() as u32;
        assert_eq!(
            sys::with(m.raw(), sys::SET_USER_MEMORY_REGION2, &mut s),
            Err(EINVAL),
            "no guest_memfd"
        );
    }
    Ok(())
}

fn slot_overlap() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 0);
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    let (gpa, hva) = (r.gpa, r.addr());
    assert_eq!(m.region(1, 0, gpa, 0x4000, hva), Ok(0));
    for (at, len) in [
        (gpa, 0x4000u64),
        (gpa + 0x3000, 0x1000),
        (gpa - 0x1000, 0x2000),
        (gpa + 0x1000, 0x1000),
        (gpa - 0x1000, 0x8000),
    ] {
        assert_eq!(m.region(2, 0, at, len, hva), Err(EEXIST), "{at:x} {len:x}");
    }
    assert_eq!(
        m.region(2, 0, gpa + 0x4000, 0x1000, hva),
        Ok(0),
        "side by side"
    );
    assert_eq!(m.region(3, 0, gpa - 0x1000, 0x1000, hva), Ok(0));
    assert_eq!(
        m.region(2, 0, gpa + 0x3000, 0x1000, hva),
        Err(EEXIST),
        "moved onto another"
    );
    // A slot may move onto itself.
    assert_eq!(m.region(2, 0, gpa + 0x8000, 0x1000, hva), Ok(0));
    assert_eq!(m.region(1, 0, gpa + 0x1000, 0x4000, hva), Ok(0));
    Ok(())
}

fn slot_count() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 0);
    let r = Ram::anon(0x1000_0000, 0x1000);
    let n = 400;
    for i in 0..n {
        assert_eq!(
            m.region(1 + i, 0, r.gpa + 0x2000 * u64::from(i), 0x1000, r.addr()),
            Ok(0),
            "{i}"
        );
    }
    for i in (0..n).step_by(3) {
        assert_eq!(m.region(1 + i, 0, 0, 0, 0), Ok(0), "{i}");
    }
    Ok(())
}

fn slot_delete_and_move() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x4000);
    m.slot(1, &r, 0).expect("slot");
    r.set32(r.gpa, 0x1111);
    let c = &mut m.cpus[0];
    assert_eq!(read(c, r.gpa), 0x1111);
    let (gpa, hva) = (r.gpa, r.addr());
    let region = |slot, at, len| {
        let mut s = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: at,
            memory_size: len,
            userspace_addr: hva,
        };
        sys::with(m.vm.as_raw_fd(), sys::SET_USER_MEMORY_REGION, &mut s)
    };
    assert_eq!(region(1, gpa, 0), Ok(0));
    assert_eq!(
        access(c, gpa, None),
        Ok(Exit::Read { gpa, len: 4 }),
        "deleted"
    );
    c.answer(&[1, 2, 3, 4]);
    assert_eq!(value(c.run()), 0x0403_0201);
    assert_eq!(region(1, gpa, 0x4000), Ok(0));
    assert_eq!(read(c, gpa), 0x1111, "there again");
    assert_eq!(region(1, gpa + 0x10_0000, 0x4000), Ok(0));
    assert_eq!(read(c, gpa + 0x10_0000), 0x1111, "moved");
    assert!(
        matches!(access(c, gpa, None), Ok(Exit::Read { .. })),
        "and not where it was"
    );
    Ok(())
}

fn slot_flags_change() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x4000);
    for flags in [
        0,
        KVM_MEM_LOG_DIRTY_PAGES,
        0,
        KVM_MEM_LOG_DIRTY_PAGES,
        KVM_MEM_LOG_DIRTY_PAGES,
    ] {
        assert_eq!(m.slot(1, &r, flags), Ok(0));
        write(m.cpu(), r.gpa, flags + 7);
        assert_eq!(r.u32(r.gpa), flags + 7);
    }
    Ok(())
}

/// The same memory twice.
fn slot_aliases() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x4000);
    m.slot(1, &r, 0).expect("slot");
    m.region(2, 0, 0x2000_0000, 0x4000, r.addr()).expect("slot");
    write(m.cpu(), 0x1000_0010, 5);
    assert_eq!(read(m.cpu(), 0x2000_0010), 5);
    // Page by page in the opposite order.
    for i in 0..4 {
        m.region(
            3 + i,
            0,
            0x3000_0000 + 0x1000 * u64::from(i),
            0x1000,
            r.addr() + 0x1000 * u64::from(3 - i),
        )
        .expect("slot");
    }
    write(m.cpu(), 0x3000_3010, 6);
    assert_eq!(read(m.cpu(), 0x1000_0010), 6);
    Ok(())
}

fn read_only_slot() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x4000);
    m.slot(1, &r, KVM_MEM_READONLY).expect("slot");
    let gpa = r.gpa + 0x1000;
    r.set32(gpa, 0x77);
    assert_eq!(read(m.cpu(), gpa), 0x77);
    for _ in 0..2 {
        assert_eq!(
            access(m.cpu(), gpa, Some(0x1234)),
            Ok(Exit::Write {
                gpa,
                data: vec![0x34, 0x12, 0, 0]
            })
        );
        assert_eq!(value(m.cpu().run()), 0x77, "it is as it was");
    }
    // Written first, before any read.
    assert!(matches!(
        access(m.cpu(), gpa + 0x1000, Some(1)),
        Ok(Exit::Write { .. })
    ));
    m.cpu().run().expect("run");
    assert_eq!(r.u32(gpa + 0x1000), 0);
    // Memory that this process cannot write is good enough.
    let ro = Ram::anon(0x2000_0000, 0x1000);
    ro.set32(ro.gpa, 9);
    // SAFETY: our own mapping.
    unsafe { libc::mprotect(ro.at(0), 0x1000, libc::PROT_READ) };
    m.slot(2, &ro, KVM_MEM_READONLY).expect("slot");
    assert_eq!(read(m.cpu(), ro.gpa), 9);
    assert!(matches!(
        access(m.cpu(), ro.gpa, Some(1)),
        Ok(Exit::Write { .. })
    ));
    Ok(())
}

fn dirty(m: &Machine, slot: u32, pages: usize) -> Vec<usize> {
    let bits =
        m.vm.get_dirty_log(slot, pages * 4096)
            .expect("KVM_GET_DIRTY_LOG");
    (0..pages)
        .filter(|i| bits[i / 64] >> (i % 64) & 1 == 1)
        .collect()
}

fn dirty_log_is_exact() -> Outcome {
    let mut m = probe();
    let r = Ram::aligned(0x1000_0000, 0x40_0000, 0x20_0000);
    m.slot(1, &r, 0).expect("slot");
    let page = |i: u64| r.gpa + 0x1000 * i;
    // Mapped before logging, perhaps by a large page.
    write(m.cpu(), page(3), 1);
    write(m.cpu(), page(700), 1);
    m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
    assert!(dirty(&m, 1, 1024).is_empty(), "nothing was written since");
    for i in [0, 3, 63, 64, 511, 512, 1023] {
        write(m.cpu(), page(i), 2);
    }
    read(m.cpu(), page(5));
    read(m.cpu(), page(900));
    assert_eq!(dirty(&m, 1, 1024), [0, 3, 63, 64, 511, 512, 1023]);
    assert!(dirty(&m, 1, 1024).is_empty(), "once");
    write(m.cpu(), page(3), 3);
    write(m.cpu(), page(3) + 0x800, 3);
    write(m.cpu(), page(5), 3);
    assert_eq!(dirty(&m, 1, 1024), [3, 5]);
    // What user space writes is no business of the log.
    r.set32(page(9), 9);
    assert!(dirty(&m, 1, 1024).is_empty());
    Ok(())
}

/// Pages that the hypervisor writes for the guest are dirty, too.
fn dirty_log_of_the_hypervisor() -> Outcome {
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    let mut m = Machine::new(Mode::Long, |a| {
        a.out(0x50, al)?;
        // INS writes memory; so does the emulator when it moves from MMIO.
        a.mov(edi, 0x1000_3000)?;
        a.mov(dx, 0x51)?;
        a.insd()?;
        a.mov(esi, kit::MMIO as u32)?;
        a.mov(edi, 0x1000_5000)?;
        a.movsd()?;
        // kvmclock.
        kit::wrmsr(a, 0x4b56_4d01, 0x1000_7001)?;
        kit::done(a)
    })?;
    m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
    m.cpu().results_io();
    assert_eq!(dirty(&m, 1, 256), [3, 5, 7]);
    Ok(())
}

fn dirty_log_under_writers() -> Outcome {
    // Two vCPUs write pages at random, each with a number that grows; a thread collects. A page whose content is newer than
    // when it was last seen dirty must be in the next log.
    const PAGES: u64 = 64;
    let r = Ram::aligned(0x1000_0000, 0x20_0000, 0x20_0000);
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(CODE, 64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // EBX: the generator's state; R8: what to multiply with; R9: ours of each page's two words.
        a.imul_3(ebx, ebx, 1_103_515_245)?;
        a.add(ebx, 12345)?;
        a.mov(eax, ebx)?;
        a.shr(eax, 16)?;
        a.and(eax, PAGES as i32 - 1)?;
        a.shl(eax, 12)?;
        a.add(eax, 0x1000_0000)?;
        a.inc(dword_ptr(rax + r9))?;
        a.dec(r10)?;
        a.jnz(again)?;
        kit::done(a)
    })?;
    m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
    for (i, c) in m.cpus.iter().enumerate() {
        c.regs(|g| {
            g.rbx = 77 + i as u64;
            g.r9 = 8 * i as u64;
            g.r10 = 100_000;
        });
    }
    let (vm, cpus) = (&m.vm, &mut m.cpus);
    let left = std::sync::atomic::AtomicUsize::new(cpus.len());
    let mut seen = [[0u32; 2]; PAGES as usize];
    let snapshot = |p: u64| [r.u32(r.gpa + 0x1000 * p), r.u32(r.gpa + 0x1000 * p + 8)];
    let mut rounds = 0;
    std::thread::scope(|s| {
        for c in cpus.iter_mut() {
            let left = &left;
            s.spawn(move || {
                c.results();
                left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
            });
        }
        loop {
            let over = left.load(std::sync::atomic::Ordering::Acquire) == 0;
            let bits = vm.get_dirty_log(1, 0x20_0000).expect("KVM_GET_DIRTY_LOG")[0];
            for p in 0..PAGES {
                if bits >> p & 1 == 1 {
                    // As of now at the earliest: what is written later is for the next log.
                    seen[p as usize] = snapshot(p);
                } else if over {
                    assert_eq!(
                        snapshot(p),
                        seen[p as usize],
                        "page {p}: a write that no log shows"
                    );
                }
            }
            rounds += 1;
            if over {
                break;
            }
        }
    });
    let total: u32 = (0..PAGES).map(|p| snapshot(p).iter().sum::<u32>()).sum();
    assert_eq!(total, 200_000, "writes");
    assert!(rounds > 1);
    Ok(())
}

fn dirty_log_switched_on_again() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x4_0000);
    m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
    write(m.cpu(), r.gpa, 1);
    m.slot(1, &r, 0).expect("slot");
    write(m.cpu(), r.gpa + 0x1000, 1);
    assert_eq!(
        m.vm.get_dirty_log(1, 0x4_0000).map_err(|e| e.errno()),
        Err(libc::ENOENT)
    );
    m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
    assert!(dirty(&m, 1, 64).is_empty());
    write(m.cpu(), r.gpa + 0x2000, 1);
    assert_eq!(dirty(&m, 1, 64), [2]);
    // A moved slot keeps its log's length and starts anew.
    m.region(
        1,
        KVM_MEM_LOG_DIRTY_PAGES,
        r.gpa + 0x10_0000,
        0x4_0000,
        r.addr(),
    )
    .expect("move");
    write(m.cpu(), r.gpa + 0x10_3000, 1);
    assert!(dirty(&m, 1, 64).contains(&3));
    Ok(())
}

fn munmap_faults() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    m.slot(1, &r, 0).expect("slot");
    let at = r.gpa + 0x5000;
    write(m.cpu(), at, 1);
    // SAFETY: a page of our own mapping, which only the guest uses.
    unsafe { libc::munmap(r.at(0x5000), 0x1000) };
    for w in [None, Some(2)] {
        let e = access(m.cpu(), at, w);
        assert!(faulted(&e, at), "{e:x?}");
        // It stays at that instruction.
        let e = m.cpu().run();
        assert!(faulted(&e, at), "{e:x?}");
        // SAFETY: as above, mapped anew.
        unsafe { remap(&r, 0x5000) };
        assert_eq!(
            value(m.cpu().run()),
            w.unwrap_or(0),
            "there is memory again"
        );
        // SAFETY: as above.
        unsafe { libc::munmap(r.at(0x5000), 0x1000) };
    }
    Ok(())
}

/// Maps a page of fresh memory at `off`.
///
/// # Safety
/// Only the guest may use that page.
unsafe fn remap(r: &Ram, off: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the caller's promise.
    let p = unsafe {
        libc::mmap(
            r.at(off),
            0x1000,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_eq!(p, r.at(off));
}

fn mprotect_faults() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    m.slot(1, &r, 0).expect("slot");
    let at = r.gpa + 0x5000;
    write(m.cpu(), at, 0x55);
    // SAFETY: our own mapping.
    let protect = |p| unsafe { assert_eq!(libc::mprotect(r.at(0x5000), 0x1000, p), 0) };
    protect(libc::PROT_READ);
    assert_eq!(read(m.cpu(), at), 0x55);
    let e = access(m.cpu(), at, Some(1));
    assert!(faulted(&e, at), "{e:x?}");
    protect(libc::PROT_READ | libc::PROT_WRITE);
    assert_eq!(value(m.cpu().run()), 1);
    protect(libc::PROT_NONE);
    let e = access(m.cpu(), at, None);
    assert!(faulted(&e, at), "{e:x?}");
    protect(libc::PROT_READ);
    assert_eq!(value(m.cpu().run()), 1);
    Ok(())
}

fn madvise_dontneed() -> Outcome {
    let mut m = probe();
    let r = Ram::aligned(0x1000_0000, 0x40_0000, 0x20_0000);
    m.slot(1, &r, 0).expect("slot");
    for i in 0..50 {
        write(m.cpu(), r.gpa + 0x1000 * i, 1 + i as u32);
        // SAFETY: our own mapping.
        unsafe { libc::madvise(r.at(0), r.len(), libc::MADV_DONTNEED) };
        assert_eq!(
            read(m.cpu(), r.gpa + 0x1000 * i),
            0,
            "the page is a new one"
        );
        r.set32(r.gpa + 0x1000 * i, 77);
        assert_eq!(read(m.cpu(), r.gpa + 0x1000 * i), 77);
    }
    Ok(())
}

fn mremap_under_guest() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    let other = Ram::anon(0, 0x1000);
    m.slot(1, &r, 0).expect("slot");
    let at = r.gpa + 0x5000;
    write(m.cpu(), at, 0x11);
    // The page goes elsewhere; another takes its place.
    // SAFETY: pages of our own mappings.
    unsafe {
        let p = libc::mremap(
            r.at(0x5000),
            0x1000,
            0x1000,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            other.at(0),
        );
        assert_eq!(p, other.at(0));
        remap(&r, 0x5000);
    }
    r.set32(at, 0x22);
    assert_eq!(read(m.cpu(), at), 0x22);
    write(m.cpu(), at, 0x33);
    assert_eq!((other.u32(0), r.u32(at)), (0x11, 0x33));
    Ok(())
}

fn new_mapping_at_same_address() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    m.slot(1, &r, 0).expect("slot");
    for i in 0..20 {
        write(m.cpu(), r.gpa + 0x7000, i + 1);
        // SAFETY: a page that only the guest uses.
        unsafe { remap(&r, 0x7000) };
        assert_eq!(read(m.cpu(), r.gpa + 0x7000), 0);
    }
    Ok(())
}

/// A file of `len` bytes that is nothing but memory.
pub fn memfd(len: i64) -> i32 {
    // SAFETY: a name with its zero byte.
    let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), 0) };
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::ftruncate(fd, len) }, 0);
    fd
}

fn file_shared() -> Outcome {
    let mut m = probe();
    let fd = memfd(0x10_0000);
    let r = Ram::map(0x1000_0000, 0x10_0000, libc::MAP_SHARED, fd)?;
    let other = Ram::map(0, 0x10_0000, libc::MAP_SHARED, fd)?;
    m.slot(1, &r, 0).expect("slot");
    other.set32(0x3000, 0x44);
    assert_eq!(read(m.cpu(), r.gpa + 0x3000), 0x44);
    write(m.cpu(), r.gpa + 0x3004, 0x55);
    assert_eq!(other.u32(0x3004), 0x55);
    // A hole punched in the file is zeroes for the guest.
    // SAFETY: no pointers.
    let e = unsafe {
        libc::fallocate(
            fd,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            0x3000,
            0x1000,
        )
    };
    assert_eq!(e, 0);
    assert_eq!(read(m.cpu(), r.gpa + 0x3004), 0);
    Ok(())
}

fn file_truncated() -> Outcome {
    let mut m = probe();
    let fd = memfd(0x10_0000);
    let r = Ram::map(0x1000_0000, 0x10_0000, libc::MAP_SHARED, fd)?;
    m.slot(1, &r, 0).expect("slot");
    let at = r.gpa + 0x8000;
    write(m.cpu(), at, 1);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::ftruncate(fd, 0x4000) }, 0);
    let e = access(m.cpu(), at, None);
    assert!(faulted(&e, at), "{e:x?}");
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::ftruncate(fd, 0x10_0000) }, 0);
    assert_eq!(value(m.cpu().run()), 0);
    Ok(())
}

/// Writes and reads over 8 MiB in a pattern.
fn sweep(m: &mut Machine, r: &Ram) {
    for i in (0..r.len() as u64).step_by(0x3_5000) {
        write(m.cpu(), r.gpa + i, i as u32 | 1);
    }
    for i in (0..r.len() as u64).step_by(0x3_5000) {
        assert_eq!(r.u32(r.gpa + i), i as u32 | 1);
        assert_eq!(read(m.cpu(), r.gpa + i), i as u32 | 1);
    }
}

fn transparent_huge_pages() -> Outcome {
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE] {
        let mut m = probe();
        let r = Ram::aligned(0x4000_0000, 0x80_0000, 0x20_0000);
        // SAFETY: our own mapping.
        if unsafe { libc::madvise(r.at(0), r.len(), advice) } != 0 {
            return skip("transparent huge pages");
        }
        m.slot(1, &r, 0).expect("slot");
        sweep(&mut m, &r);
        // Split by taking a page out of the middle; the rest stays.
        // SAFETY: a page that only the guest uses.
        unsafe { remap(&r, 0x10_0000) };
        assert_eq!(read(m.cpu(), r.gpa + 0x10_0000), 0);
        sweep(&mut m, &r);
        // Logging splits it in the guest's tables; ending it may join them again.
        m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES).expect("slot");
        write(m.cpu(), r.gpa + 0x20_1000, 5);
        assert_eq!(dirty(&m, 1, 2048), [0x201]);
        m.slot(1, &r, 0).expect("slot");
        sweep(&mut m, &r);
    }
    // Not congruent: guest and host address differ within 2 MiB.
    let mut m = probe();
    let r = Ram::aligned(0x4000_3000, 0x80_0000, 0x20_0000);
    // SAFETY: our own mapping.
    unsafe { libc::madvise(r.at(0), r.len(), libc::MADV_HUGEPAGE) };
    m.slot(1, &r, 0).expect("slot");
    sweep(&mut m, &r);
    Ok(())
}

fn huge_pages() -> Outcome {
    let path = "/proc/sys/vm/nr_hugepages";
    if std::fs::write(path, "8").is_err() {
        return skip("hugetlbfs");
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let Ok(r) = Ram::map(0x4000_0000, 0x80_0000, flags, -1) else {
        return skip("huge pages");
    };
    let mut m = probe();
    m.slot(1, &r, 0).expect("slot");
    sweep(&mut m, &r);
    drop(m);
    drop(r);
    std::fs::write(path, "0")?;
    Ok(())
}

fn same_page_merging() -> Outcome {
    let ksm = "/sys/kernel/mm/ksm/";
    if std::fs::write(format!("{ksm}pages_to_scan"), "2000").is_err() {
        return skip("KSM");
    }
    std::fs::write(format!("{ksm}sleep_millisecs"), "10")?;
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    // SAFETY: our own mapping.
    if unsafe { libc::madvise(r.at(0), r.len(), libc::MADV_MERGEABLE) } != 0 {
        return skip("KSM");
    }
    m.slot(1, &r, 0).expect("slot");
    for i in 0..256 {
        r.put(r.gpa + 0x1000 * i, &[0x5a; 4096]);
        read(m.cpu(), r.gpa + 0x1000 * i);
    }
    std::fs::write(format!("{ksm}run"), "1")?;
    let shared = || {
        std::fs::read_to_string(format!("{ksm}pages_sharing"))
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    for _ in 0..400 {
        if shared().is_some_and(|n| n > 100) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    let n = shared();
    std::fs::write(format!("{ksm}run"), "0")?;
    assert!(n.is_some_and(|n| n > 100), "{n:?} pages were merged");
    // A write parts one from the others, for the guest and for us.
    write(m.cpu(), r.gpa + 0x5000, 1);
    assert_eq!(
        (r.u32(r.gpa + 0x5000), r.u32(r.gpa + 0x6000)),
        (1, 0x5a5a_5a5a)
    );
    assert_eq!(read(m.cpu(), r.gpa + 0x6000), 0x5a5a_5a5a);
    Ok(())
}

fn page_out() -> Outcome {
    // Pages of a file can always be taken out.
    let mut m = probe();
    let fd = memfd(0x40_0000);
    let r = Ram::map(0x1000_0000, 0x40_0000, libc::MAP_SHARED, fd)?;
    m.slot(1, &r, 0).expect("slot");
    for round in 0..5 {
        for i in 0..64 {
            write(m.cpu(), r.gpa + 0x1000 * i, round * 100 + i as u32);
        }
        // SAFETY: our own mapping.
        unsafe {
            libc::madvise(r.at(0), r.len(), libc::MADV_COLD);
            libc::madvise(r.at(0), r.len(), libc::MADV_PAGEOUT);
        }
        for i in 0..64 {
            assert_eq!(read(m.cpu(), r.gpa + 0x1000 * i), round * 100 + i as u32);
        }
    }
    Ok(())
}

fn swap() -> Outcome {
    if std::fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        return skip("swap");
    }
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x40_0000);
    m.slot(1, &r, 0).expect("slot");
    for i in 0..1024 {
        write(m.cpu(), r.gpa + 0x1000 * i, i as u32 + 1);
    }
    // (`mincore` calls what is in the swap cache still resident.)
    let mut out = 0u32;
    for _ in 0..40 {
        // SAFETY: our own mapping.
        unsafe { libc::madvise(r.at(0), r.len(), libc::MADV_PAGEOUT) };
        out = std::fs::read_to_string("/proc/self/status")?
            .lines()
            .find_map(|l| {
                l.strip_prefix("VmSwap:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        if out > 2000 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for i in 0..1024 {
        assert_eq!(read(m.cpu(), r.gpa + 0x1000 * i), i as u32 + 1);
    }
    assert!(out > 2000, "{out} KiB of 4096 were swapped out");
    Ok(())
}

fn userfaultfd() -> Outcome {
    #[repr(C)]
    struct Api(u64, u64, u64);
    #[repr(C)]
    struct Register(u64, u64, u64, u64);
    #[repr(C)]
    struct Copy(u64, u64, u64, u64, i64);
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    if fd < 0 {
        return skip("userfaultfd");
    }
    assert!(
        sys::with(fd, 0xc018_aa3f, &mut Api(0xaa, 0, 0)).is_ok(),
        "UFFDIO_API"
    );
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    assert!(
        sys::with(
            fd,
            0xc020_aa00,
            &mut Register(r.addr(), r.len() as u64, 1, 0)
        )
        .is_ok(),
        "UFFDIO_REGISTER"
    );
    m.slot(1, &r, 0).expect("slot");
    let (addr, len) = (r.addr(), r.len() as u64);
    let server = std::thread::spawn(move || {
        for n in 0..20u32 {
            let mut msg = [0u64; 4];
            // SAFETY: 32 bytes of ours.
            assert_eq!(unsafe { libc::read(fd, msg.as_mut_ptr().cast(), 32) }, 32);
            let at = msg[2] & !0xfff;
            assert!((addr..addr + len).contains(&at));
            let page = [n + 1; 1024];
            let mut copy = Copy(at, page.as_ptr() as u64, 4096, 0, 0);
            assert!(sys::with(fd, 0xc028_aa03, &mut copy).is_ok(), "UFFDIO_COPY");
        }
    });
    for i in 0..20u32 {
        let at = r.gpa + 0x1000 * u64::from(i * 3);
        if i % 2 == 0 {
            assert_eq!(read(m.cpu(), at), i + 1);
        } else {
            write(m.cpu(), at, 7);
            assert_eq!(read(m.cpu(), at + 4), i + 1);
        }
    }
    server
        .join()
        .map_err(|_| Stop::Fail("the server failed".into()))
}

/// After fork both have the page; the guest's writes go to its own process's copy.
fn fork_copies() -> Outcome {
    let mut m = probe();
    let r = Ram::anon(0x1000_0000, 0x10_0000);
    m.slot(1, &r, 0).expect("slot");
    write(m.cpu(), r.gpa, 1);
    let mut pipe = [0; 2];
    // SAFETY: two descriptors of ours.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child waits for a byte, looks at the memory, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut b = 0u8;
        // SAFETY: one byte of ours.
        unsafe { libc::read(pipe[0], (&raw mut b).cast(), 1) };
        let same = r.u32(r.gpa) == 1;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!same)) };
    }
    write(m.cpu(), r.gpa, 2);
    assert_eq!(r.u32(r.gpa), 2, "we see what the guest wrote");
    let mut status = 0;
    // SAFETY: one byte, and our own child.
    unsafe {
        libc::write(pipe[1], c"x".as_ptr().cast(), 1);
        libc::waitpid(pid, &mut status, 0);
    }
    assert_eq!(status, 0, "the child's copy is as it was");
    Ok(())
}

/// The guest counts in many pages while they are dropped, protected and replaced all the time: it may only ever see zero or what
/// it wrote, and never another's page.
fn invalidate_while_running() -> Outcome {
    let r = Ram::aligned(0x1000_0000, 0x40_0000, 0x20_0000);
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(CODE, 64, |a| {
        let (mut again, mut bad, mut next) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.imul_3(ebx, ebx, 1_103_515_245)?;
        a.add(ebx, 12345)?;
        a.mov(eax, ebx)?;
        a.shr(eax, 16)?;
        a.and(eax, 0x3ff)?;
        a.shl(eax, 12)?;
        a.add(eax, 0x1000_0000)?;
        // The page's own address, or nothing.
        a.mov(ecx, dword_ptr(rax + r9))?;
        a.test(ecx, ecx)?;
        a.jz(next)?;
        a.cmp(ecx, eax)?;
        a.jne(bad)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(rax + r9), eax)?;
        a.dec(r10)?;
        a.jnz(again)?;
        a.xor(eax, eax)?;
        kit::result(a)?;
        kit::done(a)?;
        a.set_label(&mut bad)?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    m.slot(1, &r, 0).expect("slot");
    for (i, c) in m.cpus.iter().enumerate() {
        c.regs(|g| (g.rbx, g.r9, g.r10) = (5 + i as u64, 16 * i as u64, 2_000));
    }
    let left = std::sync::atomic::AtomicUsize::new(2);
    let results = std::thread::scope(|s| {
        let workers: Vec<_> = m
            .cpus
            .iter_mut()
            .map(|c| {
                let left = &left;
                s.spawn(move || {
                    let v = c.results();
                    left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
                    v
                })
            })
            .collect();
        let mut seed = 1u64;
        while left.load(std::sync::atomic::Ordering::Acquire) > 0
            && !workers.iter().all(|w| w.is_finished())
        {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (seed >> 33) as usize % 1000;
            let n = 1 + (seed >> 50) as usize % 24;
            std::thread::sleep(std::time::Duration::from_millis(2));
            // SAFETY: pages that only the guest uses; there always is something mapped for it to write to.
            unsafe {
                match seed >> 60 {
                    0..=7 => drop(libc::madvise(
                        r.at(page * 4096),
                        n * 4096,
                        libc::MADV_DONTNEED,
                    )),
                    8..=11 => remap(&r, page * 4096),
                    12 => drop(libc::madvise(r.at(0), r.len(), libc::MADV_HUGEPAGE)),
                    13 => drop(libc::madvise(r.at(0), r.len(), libc::MADV_NOHUGEPAGE)),
                    _ => drop(libc::madvise(
                        r.at(page * 4096),
                        n * 4096,
                        libc::MADV_PAGEOUT,
                    )),
                }
            }
        }
        workers
            .into_iter()
            .map(|w| w.join().expect("vCPU"))
            .collect::<Vec<_>>()
    });
    assert_eq!(results, [[0], [0]], "a page that is not its own");
    Ok(())
}
