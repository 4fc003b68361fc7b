// SPDX-License-Identifier: GPL-2.0

//! The dirty log against what was written: in rounds, by two vCPUs, more pages than a processor's own log
//! (Intel's page-modification log: 512) has room for.

use super::lapic::x2apic_on;
use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use libc::EINVAL;
use rkvm_l1::kit;
use rkvm_l1::machine::enable;
use rkvm_l1::ram::Ram;
use rkvm_l1::{skip, sys, Cpu, Exit, Irqchip, Machine, Mode, Outcome};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

tests![
    dirty_in_rounds,
    dirty_with_manual_protection,
    dirty_read_then_written,
    dirty_in_two_slots,
    dirty_slot_comes_and_goes,
    dirty_cleared_under_writers,
    dirty_full_at_an_interrupt,
    dirty_again_without_faults,
];

const BASE: u64 = 0x1000_0000;
/// More than twice 512, and no whole number of words.
const PAGES: usize = 1100;
const BYTES: usize = PAGES * 0x1000;

/// What a vCPU writes: `count` pages from `first`, every `stride`th.
#[derive(Clone, Copy)]
struct Task {
    first: usize,
    stride: usize,
    count: usize,
}

const fn task(first: usize, stride: usize, count: usize) -> Task {
    Task {
        first,
        stride,
        count,
    }
}

impl Task {
    fn pages(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |i| self.first + i * self.stride)
    }
}

/// Two vCPUs that write as they are told, on memory of `PAGES` pages that is logged in slot 1.
fn writers() -> (Machine, Ram) {
    let r = Ram::aligned(BASE, 0x60_0000, 0x20_0000);
    let m = Machine::with(Mode::Long, Irqchip::Split, 2);
    m.code(kit::CODE, 64, |a| {
        let (mut again, mut next, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.out(0x50, al)?;
        // R8: the address; R9: the stride; R10: how many.
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.set_label(&mut next)?;
        a.test(r10, r10)?;
        a.jz(over)?;
        a.lock().inc(dword_ptr(r8))?;
        a.add(r8, r9)?;
        a.dec(r10)?;
        a.jmp(next)?;
        a.set_label(&mut over)?;
        a.rdtsc()?;
        a.sub(eax, esi)?;
        kit::result(a)?;
        a.jmp(again)
    })
    .expect("code");
    m.region(1, KVM_MEM_LOG_DIRTY_PAGES, BASE, BYTES as u64, r.addr())
        .expect("slot");
    (m, r)
}

/// Runs a task; returns its cycles.
fn write(c: &mut Cpu, t: Task) -> u32 {
    loop {
        match c.run() {
            Ok(Exit::Out { port: 0x50, .. }) => break,
            Ok(Exit::Out { .. }) => {}
            e => panic!("{e:x?}"),
        }
    }
    c.regs(|r| {
        r.r8 = BASE + 0x1000 * t.first as u64;
        r.r9 = 0x1000 * t.stride as u64;
        r.r10 = t.count as u64;
    });
    match c.run() {
        Ok(Exit::Out { data, .. }) => u32::from_le_bytes(data[..4].try_into().expect("4 bytes")),
        e => panic!("{e:x?}"),
    }
}

/// Both at once, each its own.
fn write_all(m: &mut Machine, tasks: [Task; 2]) -> BTreeSet<usize> {
    std::thread::scope(|s| {
        for (c, t) in m.cpus.iter_mut().zip(tasks) {
            s.spawn(move || write(c, t));
        }
    });
    tasks.into_iter().flat_map(Task::pages).collect()
}

/// KVM_GET_DIRTY_LOG
fn words(m: &Machine, slot: u32, pages: usize) -> Vec<u64> {
    let words =
        m.vm.get_dirty_log(slot, pages * 4096)
            .expect("KVM_GET_DIRTY_LOG");
    // Nothing behind the slot's end.
    assert!(pages_of(&words).last().is_none_or(|p| *p < pages));
    words
}

fn pages_of(words: &[u64]) -> BTreeSet<usize> {
    (0..words.len() * 64)
        .filter(|i| words[i / 64] >> (i % 64) & 1 == 1)
        .collect()
}

fn logged(m: &Machine) -> BTreeSet<usize> {
    pages_of(&words(m, 1, PAGES))
}

/// KVM_CLEAR_DIRTY_LOG of slot 1.
fn clear(m: &Machine, first: usize, pages: usize, bits: &[u64]) -> Result<i32, i32> {
    let mut c = kvm_clear_dirty_log {
        slot: 1,
        num_pages: pages as u32,
        first_page: first as u64,
        ..Default::default()
    };
    c.__bindgen_anon_1.dirty_bitmap = bits.as_ptr().cast_mut().cast();
    sys::with(m.raw(), sys::CLEAR_DIRTY_LOG, &mut c)
}

#[track_caller]
fn same(got: &BTreeSet<usize>, want: &BTreeSet<usize>) {
    let missing: Vec<_> = want.difference(got).collect();
    let added: Vec<_> = got.difference(want).collect();
    assert!(
        missing.is_empty() && added.is_empty(),
        "missing {missing:?}, added {added:?}"
    );
}

fn dirty_in_rounds() -> Outcome {
    let (mut m, _ram) = writers();
    let rounds = [
        // All pages, each by one of the two.
        [task(0, 2, PAGES / 2), task(1, 2, PAGES / 2)],
        // Some again.
        [task(0, 3, 200), task(900, 1, 200)],
        // The same.
        [task(0, 3, 200), task(900, 1, 200)],
        // The same pages by both.
        [task(0, 1, 700), task(0, 1, 700)],
        // By the other one.
        [task(700, 1, 400), task(0, 1, 700)],
        // The ends.
        [task(0, 1, 1), task(PAGES - 1, 1, 1)],
        [task(0, 1, 0), task(0, 1, 0)],
        [task(63, 1, 2), task(511, 1, 2)],
    ];
    for tasks in rounds.into_iter().chain(rounds.into_iter().rev()) {
        let want = write_all(&mut m, tasks);
        same(&logged(&m), &want);
        same(&logged(&m), &BTreeSet::new());
    }
    // Several rounds, one log.
    let mut want = BTreeSet::new();
    for tasks in rounds.into_iter().skip(1).take(3) {
        want.extend(write_all(&mut m, tasks));
    }
    same(&logged(&m), &want);
    Ok(())
}

fn dirty_with_manual_protection() -> Outcome {
    let (mut m, _ram) = writers();
    enable(m.raw(), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1).expect("manual protection");
    let mut want = write_all(&mut m, [task(0, 2, 500), task(1, 2, 520)]);
    same(&logged(&m), &want);
    // It stays.
    same(&logged(&m), &want);
    // Written while it is there: once.
    write_all(&mut m, [task(0, 2, 100), task(1, 2, 100)]);
    same(&logged(&m), &want);
    // Of two words, some bits.
    let bits = [0xffff_0000_ffff_0000, 0x8000_0000_0000_0001];
    assert_eq!(clear(&m, 64, 128, &bits), Ok(0));
    let cleared: BTreeSet<usize> = pages_of(&bits).into_iter().map(|p| p + 64).collect();
    want.retain(|p| !cleared.contains(p));
    same(&logged(&m), &want);
    // Pages that were not in the log are cleared for nothing; the end of the slot is no whole word.
    assert_eq!(clear(&m, 1088, 12, &[u64::MAX]), Ok(0));
    want.retain(|p| *p < 1088);
    same(&logged(&m), &want);
    for (first, pages) in [(1, 64), (64, 1), (1088, 64), (0, 1101)] {
        assert_eq!(
            clear(&m, first, pages, &[0; 18]),
            Err(EINVAL),
            "{first}, {pages}"
        );
    }
    // What was cleared is logged again, what was not stays.
    want.extend(write_all(&mut m, [task(64, 1, 40), task(1090, 1, 10)]));
    same(&logged(&m), &want);
    // All of it, by what the log says; then again.
    for _ in 0..2 {
        let words = words(&m, 1, PAGES);
        assert_eq!(clear(&m, 0, PAGES, &words), Ok(0));
        same(&logged(&m), &BTreeSet::new());
        let want = write_all(&mut m, [task(0, 1, 600), task(550, 1, 550)]);
        same(&logged(&m), &want);
    }
    Ok(())
}

/// Pages that the guest has only read are writable where the processor notes what it writes, and in no log.
fn dirty_read_then_written() -> Outcome {
    let (mut m, ram) = writers();
    // Present in the host.
    for p in 0..PAGES as u64 {
        ram.set32(BASE + 0x1000 * p, 0);
    }
    m.code(kit::CODE + 0x1000, 64, |a| {
        let mut next = a.create_label();
        a.mov(r8d, BASE as u32)?;
        a.mov(ecx, PAGES as u32)?;
        a.set_label(&mut next)?;
        a.mov(eax, dword_ptr(r8))?;
        a.add(r8, 0x1000)?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.jmp(kit::CODE)
    })?;
    m.cpus[0].regs(|r| r.rip = kit::CODE + 0x1000);
    assert!(matches!(m.cpus[0].run(), Ok(Exit::Out { port: 0x50, .. })));
    same(&logged(&m), &BTreeSet::new());
    m.cpus[0].regs(|r| r.rip = kit::CODE);
    let want = write_all(&mut m, [task(1, 5, 200), task(0, 7, 100)]);
    same(&logged(&m), &want);
    Ok(())
}

/// Each slot has its own log, and one that is not logged none.
fn dirty_in_two_slots() -> Outcome {
    let (mut m, ram) = writers();
    let more = ram.len() - BYTES;
    let at = BASE + BYTES as u64;
    let hva = ram.addr() + BYTES as u64;
    m.region(2, 0, at, more as u64, hva).expect("slot 2");
    let all = [task(1000, 1, 200), task(0, 1, 300)];
    let first = |want: &BTreeSet<usize>| want.iter().copied().filter(|p| *p < PAGES).collect();
    let want = write_all(&mut m, all);
    same(&logged(&m), &first(&want));
    m.region(2, KVM_MEM_LOG_DIRTY_PAGES, at, more as u64, hva)
        .expect("logged");
    let second = |m: &Machine| {
        let words = words(m, 2, more / 0x1000);
        pages_of(&words).into_iter().map(|p| p + PAGES).collect()
    };
    same(&second(&m), &BTreeSet::new());
    let want = write_all(&mut m, all);
    same(&logged(&m), &first(&want));
    same(
        &second(&m),
        &want.iter().copied().filter(|p| *p >= PAGES).collect(),
    );
    // The first one's ends; the other's goes on.
    m.region(1, 0, BASE, BYTES as u64, ram.addr())
        .expect("not logged");
    let want = write_all(&mut m, all);
    same(
        &second(&m),
        &want.into_iter().filter(|p| *p >= PAGES).collect(),
    );
    Ok(())
}

/// Logging on and off, and the slot deleted and made again, with pages still mapped and noted.
fn dirty_slot_comes_and_goes() -> Outcome {
    let (mut m, ram) = writers();
    for round in 0..3 {
        write_all(&mut m, [task(0, 1, 600), task(500, 1, 600)]);
        if round == 1 {
            m.region(1, 0, BASE, 0, ram.addr()).expect("deleted");
        }
        m.region(1, 0, BASE, BYTES as u64, ram.addr())
            .expect("not logged");
        // By large pages, where they fit.
        write_all(&mut m, [task(0, 1, 600), task(500, 1, 600)]);
        m.region(1, KVM_MEM_LOG_DIRTY_PAGES, BASE, BYTES as u64, ram.addr())
            .expect("logged");
        same(&logged(&m), &BTreeSet::new());
        for tasks in [
            [task(3, 4, 150), task(5, 6, 150)],
            [task(0, 1, 400), task(400, 1, 700)],
            [task(3, 4, 150), task(5, 6, 150)],
        ] {
            let want = write_all(&mut m, tasks);
            same(&logged(&m), &want);
        }
    }
    // Read-only: the guest's writes are a device's.
    m.region(1, 0, BASE, 0, ram.addr()).expect("deleted");
    let flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
    m.region(1, flags, BASE, BYTES as u64, ram.addr())
        .expect("read-only");
    let c = &mut m.cpus[0];
    while !matches!(c.run(), Ok(Exit::Out { port: 0x50, .. })) {}
    c.regs(|r| (r.r8, r.r9, r.r10) = (BASE, 0x1000, 1));
    assert!(matches!(c.run(), Ok(Exit::Write { .. })));
    same(&logged(&m), &BTreeSet::new());
    Ok(())
}

/// A thread reads and clears the log while both write more pages than a processor's log has room for: no write
/// is in neither the page as it was copied nor a later log.
fn dirty_cleared_under_writers() -> Outcome {
    let (mut m, ram) = writers();
    enable(m.raw(), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1).expect("manual protection");
    const TASKS: [Task; 4] = [
        task(0, 1, 1100),
        task(7, 9, 120),
        task(1099, 1, 1),
        task(20, 1, 700),
    ];
    let fd = m.raw();
    let left = AtomicUsize::new(m.cpus.len());
    let content = |p: usize| ram.u32(BASE + 0x1000 * p as u64);
    let mut copied = vec![0u32; PAGES];
    let mut rounds = 0;
    let (vm, cpus) = (&m.vm, &mut m.cpus);
    std::thread::scope(|s| {
        for (i, c) in cpus.iter_mut().enumerate() {
            let left = &left;
            s.spawn(move || {
                for round in 0..60 {
                    write(c, TASKS[(i + round) % TASKS.len()]);
                }
                left.fetch_sub(1, Ordering::AcqRel);
            });
        }
        loop {
            let over = left.load(Ordering::Acquire) == 0;
            let words = vm.get_dirty_log(1, BYTES).expect("KVM_GET_DIRTY_LOG");
            let mut c = kvm_clear_dirty_log {
                slot: 1,
                num_pages: PAGES as u32,
                ..Default::default()
            };
            c.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
            assert_eq!(sys::with(fd, sys::CLEAR_DIRTY_LOG, &mut c), Ok(0));
            for p in pages_of(&words) {
                copied[p] = content(p);
            }
            rounds += 1;
            if over {
                break;
            }
        }
    });
    for (p, copied) in copied.into_iter().enumerate() {
        assert_eq!(content(p), copied, "page {p}: a write that no log shows");
    }
    let total: usize = (0..PAGES).map(|p| content(p) as usize).sum();
    assert_eq!(total, 30 * TASKS.iter().map(|t| t.count).sum::<usize>());
    assert!(rounds > 1);
    Ok(())
}

/// The processor's log has just become full when it writes an interrupt's frame: the interrupt is not lost.
fn dirty_full_at_an_interrupt() -> Outcome {
    const STACK: usize = 1090;
    let (mut m, _ram) = writers();
    m.code(kit::CODE, 64, |a| {
        let (mut again, mut next) = (a.create_label(), a.create_label());
        x2apic_on(a)?;
        a.mov(rsp, BASE + 0x1000 * STACK as u64 + 0x800)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.out(0x50, al)?;
        a.mov(r8d, BASE as u32)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(r8))?;
        a.add(r8, 0x1000)?;
        a.dec(r10)?;
        a.jnz(next)?;
        // To itself: it comes with the next entry.
        kit::wrmsr(a, 0x83f, 0x45)?;
        a.nop()?;
        kit::count(a, 0x45)?;
        a.jmp(again)
    })?;
    let turn = |m: &mut Machine, pages: u64| {
        while !matches!(m.cpu().run(), Ok(Exit::Out { port: 0x50, .. })) {}
        m.cpu().regs(|r| r.r10 = pages);
        match m.cpu().run() {
            Ok(Exit::Out { data, .. }) => data[0],
            e => panic!("{e:x?}"),
        }
    };
    for (came, pages) in (1..).zip((505..520).chain(505..520)) {
        assert_eq!(turn(&mut m, pages), came, "with {pages} pages");
        let want = (0..pages as usize).chain([STACK]).collect();
        same(&logged(&m), &want);
    }
    Ok(())
}

/// Where the processor notes what it writes, a page that was taken from the log is written again without an exit.
fn dirty_again_without_faults() -> Outcome {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let has = |flag: &str| info.split_whitespace().any(|f| f == flag);
    if !(has("pml") && has("ept_ad")) {
        return skip("the processor has no page-modification log");
    }
    let (mut m, _ram) = writers();
    // Not as many as to fill the log.
    let t = task(0, 2, 400);
    write(m.cpu(), t);
    let mut least = [u32::MAX; 2];
    for _ in 0..5 {
        // As they are, and taken from the log.
        for (at, take) in [false, true].into_iter().enumerate() {
            if take {
                same(&logged(&m), &t.pages().collect());
            }
            least[at] = least[at].min(write(m.cpu(), t));
        }
    }
    let more = least[1].saturating_sub(least[0]) / t.count as u32;
    assert!(more < 300, "{more} cycles more for a page: {least:?}");
    Ok(())
}
