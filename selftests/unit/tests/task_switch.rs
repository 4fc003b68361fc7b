// SPDX-License-Identifier: GPL-2.0

//! Task switches (SDM vol. 3A chapter 9): which state is saved and loaded, and whose a fault is.

mod common;

use common::env::{attr, flat, TestEnv};
use rkvm_unit::arch::x86::model::emulate::{
    switch_task, Access, Arrival, Env, Regs, Stop, TaskCause, TaskSwitch,
};
use rkvm_unit::arch::x86::model::regs::{
    cr0, rflags, vector, DescTable, Exception, Gpr, Seg, SegAttr, Segment,
};

const GDT: u64 = 0x100;
const OLD: u64 = 0x1000;
const NEW: u64 = 0x2000;
const LDT: u64 = 0x300;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_CODE: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const TR: u16 = 0x28;
const TO: u16 = 0x30;
const TO_LDT: u16 = 0x38;
/// Not there.
const ABSENT: u16 = 0x40;
const CONFORMING: u16 = 0x48;
const GDT_LIMIT: u16 = 0x4f;

const NT: u64 = 1 << 14;
const NEXT: u64 = 0x1234_5678;

/// Offsets in a TSS of 16 and of 32 bits.
struct Offsets {
    ip: u64,
    flags: u64,
    gprs: u64,
    segments: u64,
    ldtr: u64,
    width: u64,
}
const OF16: Offsets = Offsets {
    ip: 0x0e,
    flags: 0x10,
    gprs: 0x12,
    segments: 0x22,
    ldtr: 0x2a,
    width: 2,
};
const OF32: Offsets = Offsets {
    ip: 0x20,
    flags: 0x24,
    gprs: 0x28,
    segments: 0x48,
    ldtr: 0x60,
    width: 4,
};
const CR3: u64 = 0x1c;
const TRAP: u64 = 0x64;
const ES: u64 = 0x48;
const CS: u64 = 0x4c;
const SS: u64 = 0x50;
const DS: u64 = 0x54;
const GS: u64 = 0x5c;

const CAUSES: [TaskCause; 5] = [
    TaskCause::Call,
    TaskCause::Jump,
    TaskCause::Iret,
    TaskCause::SoftEvent,
    TaskCause::Event,
];

fn nests(cause: TaskCause) -> bool {
    !matches!(cause, TaskCause::Jump | TaskCause::Iret)
}

fn put(e: &mut TestEnv, la: u64, v: u64, len: u64) {
    e.poke(la, &v.to_le_bytes()[..len as usize]);
}

fn get(e: &TestEnv, la: u64, len: u64) -> u64 {
    let b: [u8; 8] = e.peek(la);
    u64::from_le_bytes(b) & if len == 4 { 0xffff_ffff } else { 0xffff }
}

fn describe(e: &mut TestEnv, selector: u16, base: u64, limit: u64, access: u64, flags: u64) {
    let d = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56;
    put(e, GDT + u64::from(selector & !7), d, 8);
}

/// A descriptor's type.
fn typ(e: &TestEnv, selector: u16) -> u8 {
    e.peek::<1>(GDT + u64::from(selector & !7) + 5)[0] & 0xf
}

/// The old task is at ring 0 with flat segments; the new one would be so, too. `old`, `new`: they have TSSs of 32 bits.
fn machine(old: bool, new: bool, cause: TaskCause) -> (TestEnv, Regs) {
    let mut e = TestEnv::prot32(0, 0x1_0000);
    e.gdtr = DescTable {
        base: GDT,
        limit: GDT_LIMIT,
    };
    for s in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        e.segs[s as usize].selector = DATA;
    }
    describe(&mut e, CODE, 0, 0xf_ffff, 0x9a, 0xc);
    describe(&mut e, DATA, 0, 0xf_ffff, 0x92, 0xc);
    describe(&mut e, USER_CODE, 0, 0xf_ffff, 0xfa, 0xc);
    describe(&mut e, USER_DATA, 0, 0xf_ffff, 0xf2, 0xc);
    describe(&mut e, TO_LDT, LDT, 0xf, 0x82, 0);
    describe(&mut e, ABSENT, 0, 0xf_ffff, 0x12, 0xc);
    describe(&mut e, CONFORMING, 0, 0xf_ffff, 0x9e, 0xc);
    let (limit, access) = if old { (0x67, 0x8b) } else { (0x2b, 0x83) };
    describe(&mut e, TR, OLD, limit, access, 0);
    e.tr = Segment {
        selector: TR,
        attr: SegAttr(access as u32),
        limit: limit as u32,
        base: OLD,
    };
    let (limit, access) = if new { (0x67, 0x89) } else { (0x2b, 0x81) };
    let busy = if cause == TaskCause::Iret { 2 } else { 0 };
    describe(&mut e, TO, NEW, limit, access | busy, 0);

    let o = if new { &OF32 } else { &OF16 };
    put(&mut e, NEW + o.ip, 0x8765_4321, o.width);
    put(&mut e, NEW + o.flags, 0xffff_7fff & !rflags::VM, o.width);
    for n in 0..8 {
        put(&mut e, NEW + o.gprs + n * o.width, 0x2222_4440 + n, o.width);
    }
    put(&mut e, NEW + o.gprs + 4 * o.width, 0x8000, o.width);
    for (n, s) in [DATA, CODE, DATA, DATA, DATA, DATA].iter().enumerate() {
        if new || n < 4 {
            let at = NEW + o.segments + n as u64 * o.width;
            put(&mut e, at, u64::from(*s), 2);
        }
    }
    put(&mut e, NEW + o.ldtr, u64::from(TO_LDT), 2);
    if new {
        put(&mut e, NEW + CR3, 0x7_7000, 4);
        put(&mut e, NEW + TRAP, 0, 2);
    }

    let mut r = Regs {
        rip: 0x1111_0000,
        rflags: rflags::FIXED | NT | 1,
        ..Regs::default()
    };
    for (n, g) in (0..).zip(Gpr::ALL) {
        r.gprs.set(g, 0x3333_5550 + n);
    }
    (e, r)
}

fn task(cause: TaskCause) -> TaskSwitch {
    TaskSwitch {
        selector: TO,
        cause,
        next: NEXT,
        error: None,
    }
}

/// The registers as they are after the switch.
fn switch(e: &mut TestEnv, r: &Regs, t: &TaskSwitch) -> Result<(Arrival, Regs), Stop> {
    let mut own = *r;
    switch_task(e, t, &mut own).map(|a| {
        let committed = e.committed.take().expect("a commit");
        assert_eq!(own, committed);
        (a, own)
    })
}

/// The fault that the new task begins with.
fn arrival_fault(e: &mut TestEnv, r: &Regs, t: &TaskSwitch) -> Exception {
    let (a, _) = switch(e, r, t).expect("a switch");
    assert!(!a.trap);
    assert_eq!((e.tr.selector, e.switched), (TO, 1));
    a.fault.expect("a fault")
}

fn ts(selector: u16) -> Exception {
    Exception::with_error(vector::TS, u32::from(selector))
}

#[test]
fn state_is_saved_and_loaded() {
    for (old, new) in [(false, false), (false, true), (true, false), (true, true)] {
        for cause in CAUSES {
            let (mut e, r) = machine(old, new, cause);
            let (a, now) = switch(&mut e, &r, &task(cause)).expect("a switch");
            assert_eq!(a, Arrival::default(), "{old} {new} {cause:?}");

            // Saved.
            let o = if old { &OF32 } else { &OF16 };
            let cut = |v: u64| if old { v } else { v & 0xffff };
            assert_eq!(get(&e, OLD + o.ip, o.width), cut(NEXT));
            let nt = if cause == TaskCause::Iret { 0 } else { NT };
            assert_eq!(get(&e, OLD + o.flags, o.width), 3 | nt, "{cause:?}");
            for n in 0..8 {
                let at = OLD + o.gprs + n * o.width;
                assert_eq!(get(&e, at, o.width), cut(0x3333_5550 + n));
            }
            for n in 0..if old { 6 } else { 4 } {
                let want = if n == 1 { CODE } else { DATA };
                let at = OLD + o.segments + n * o.width;
                assert_eq!(get(&e, at, 2), u64::from(want));
            }
            // What the processor does not save stays as it was.
            assert_eq!(get(&e, OLD, 2), 0);
            assert_eq!(get(&e, OLD + o.ldtr, 2), 0);

            // Loaded.
            let cut = |v: u64| if new { v } else { v & 0xffff };
            assert_eq!(now.rip, cut(0x8765_4321));
            // Reserved bits are as they have to be.
            let nt = if nests(cause) { NT } else { 0 };
            let flags = if new { 0x3d_7fd7 } else { 0x7fd7 };
            assert_eq!(now.rflags, flags | nt);
            for (n, g) in (0..8).zip(Gpr::ALL) {
                let want = if n == 4 { 0x8000 } else { 0x2222_4440 + n };
                assert_eq!(now.gprs.get(g), cut(want), "{g:?}");
            }
            for s in [Seg::Es, Seg::Ss, Seg::Ds] {
                assert_eq!(e.segs[s as usize], flat(DATA, attr(3, 0, true, false)));
            }
            let cs = flat(CODE, attr(11, 0, true, false));
            assert_eq!(e.segs[Seg::Cs as usize], cs);
            let fs = e.segs[Seg::Fs as usize];
            assert_eq!((fs.attr.unusable(), fs.selector == 0), (!new, !new));
            assert_eq!((e.ldtr.selector, e.ldtr.base), (TO_LDT, LDT));
            assert_eq!(e.cr3, if new { 0x7_7000 } else { 0 });
            assert_eq!((e.tr.selector, e.tr.base), (TO, NEW));
            assert_eq!(e.tr.attr.typ(), if new { 11 } else { 3 });
            assert_eq!((e.switched, e.cr0 & cr0::TS), (1, cr0::TS));

            // SDM vol. 3A table 9-2.
            let busy = if nests(cause) { 2 } else { 0 };
            assert_eq!(typ(&e, TR), if old { 9 } else { 1 } | busy, "{cause:?}");
            assert_eq!(typ(&e, TO), if new { 11 } else { 3 }, "{cause:?}");
            let link = if nests(cause) { TR } else { 0 };
            assert_eq!(get(&e, NEW, 2), u64::from(link), "{cause:?}");
        }
    }
}

#[test]
fn an_error_code_is_pushed_as_wide_as_the_tss() {
    for (new, width) in [(false, 2), (true, 4)] {
        let (mut e, r) = machine(true, new, TaskCause::Event);
        put(&mut e, 0x7ff8, u64::MAX, 8);
        let t = TaskSwitch {
            error: Some(0x1_0018),
            ..task(TaskCause::Event)
        };
        let (a, now) = switch(&mut e, &r, &t).expect("a switch");
        assert_eq!(a, Arrival::default());
        assert_eq!(now.gprs.get(Gpr::Rsp), 0x8000 - width);
        let want = if new { 0x1_0018 } else { 0x18 };
        assert_eq!(get(&e, 0x8000 - width, width), want);
        assert_eq!(e.peek::<1>(0x7fff - width), [0xff]);
    }
    // Onto a stack that does not take it: the new task's, and with EXT.
    let (mut e, r) = machine(true, true, TaskCause::Event);
    e.read_only = 0x7000;
    let t = TaskSwitch {
        error: Some(0),
        ..task(TaskCause::Event)
    };
    let f = arrival_fault(&mut e, &r, &t);
    assert_eq!((f.vector, f.payload), (vector::PF, Some(0x7ffc)));
    let (mut e, r) = machine(true, true, TaskCause::Event);
    describe(&mut e, DATA, 0, 0xfff, 0x92, 4);
    assert_eq!(
        arrival_fault(&mut e, &r, &t),
        Exception::with_error(vector::SS, 1)
    );
}

#[test]
fn what_is_wrong_with_the_tss_is_the_old_task_s() {
    type Break = fn(&mut TestEnv);
    let gp = |s| Exception::with_error(vector::GP, u32::from(s));
    let np = |s| Exception::with_error(vector::NP, u32::from(s));
    let cases: &[(u16, Break, fn(u16) -> Exception, fn(u16) -> Exception)] = &[
        (0, |_| {}, gp, ts),
        (TO | 4, |_| {}, gp, ts),
        (GDT_LIMIT + 1, |_| {}, gp, ts),
        (DATA, |_| {}, gp, ts),
        // Busy, or not.
        (TO, |e| e.ram[GDT as usize + 0x35] ^= 2, gp, ts),
        (TO, |e| e.ram[GDT as usize + 0x35] &= !0x80, np, np),
        (TO, |e| e.ram[GDT as usize + 0x30] = 0x66, ts, ts),
        (TR, |e| e.tr.limit = 0x5e, |_| ts(TR), |_| ts(TR)),
    ];
    for (selector, spoil, want, of_iret) in cases {
        for cause in CAUSES {
            let (mut e, r) = machine(true, true, cause);
            spoil(&mut e);
            let selector = if *selector == TR { TO } else { *selector };
            let before = (e.ram.clone(), e.segs, e.tr, e.ldtr, e.cr3);
            let t = TaskSwitch {
                selector,
                ..task(cause)
            };
            let mut fault = if cause == TaskCause::Iret {
                of_iret(selector)
            } else {
                want(selector)
            };
            if cause == TaskCause::Event {
                fault.error = fault.error.map(|e| e | 1);
            }
            assert_eq!(
                switch(&mut e, &r, &t),
                Err(Stop::Fault(fault)),
                "{selector:#x} {cause:?}"
            );
            assert_eq!((e.ram, e.segs, e.tr, e.ldtr, e.cr3), before);
            assert_eq!((e.switched, e.committed), (0, None));
        }
    }
}

#[test]
fn page_faults_of_the_tss_are_the_old_task_s() {
    // Everything is looked at before anything is written: the pages that cannot be read or written are moved over all.
    for cause in CAUSES {
        let mut faults = 0;
        for end in [0x1010, 0x1040, 0x2001, 0x2010, 0x2030, 0x2064] {
            let (mut e, r) = machine(true, true, cause);
            e.ram.truncate(end);
            let before = e.ram.clone();
            match switch(&mut e, &r, &task(cause)) {
                Err(Stop::Fault(f)) => {
                    assert_eq!(f.vector, vector::PF);
                    // No EXT in a page fault's error code.
                    assert_eq!(f.error.map(|e| e & 1), Some(0));
                }
                s => panic!("{cause:?} {end:#x} {s:?}"),
            }
            assert_eq!(e.ram, before, "{cause:?} {end:#x}");
            assert_eq!((e.tr.selector, e.switched, e.committed), (TR, 0, None));
        }
        for from in (0..0x2100).step_by(8) {
            let (mut e, r) = machine(true, true, cause);
            e.read_only = from;
            let before = e.ram.clone();
            match switch(&mut e, &r, &task(cause)) {
                Err(Stop::Fault(f)) => {
                    assert_eq!(f.vector, vector::PF);
                    assert_eq!(e.ram, before, "{cause:?} {from:#x}");
                    assert_eq!((e.tr.selector, e.switched), (TR, 0));
                    faults += 1;
                }
                r => {
                    r.expect("a switch");
                }
            }
        }
        assert!(faults > 0x1000 / 8, "{cause:?} {faults}");

        // A GDT in which nothing can be marked.
        let (mut e, r) = machine(true, true, cause);
        let gdt: [u8; GDT_LIMIT as usize + 1] = e.peek(GDT);
        e.gdtr.base = 0x3000;
        e.read_only = 0x3000;
        e.poke(0x3000, &gdt);
        let before = e.ram.clone();
        match switch(&mut e, &r, &task(cause)) {
            Err(Stop::Fault(f)) => assert_eq!(f.vector, vector::PF),
            s => panic!("{cause:?} {s:?}"),
        }
        assert_eq!(e.ram, before, "{cause:?}");
    }
}

#[test]
fn what_is_wrong_with_a_segment_is_the_new_task_s() {
    for (field, selector, v) in [
        (ES, CODE, None),
        (GS, ABSENT, Some(vector::NP)),
        (GS, TR, Some(vector::TS)),
        (DS, GDT_LIMIT + 1, Some(vector::TS)),
        (SS, ABSENT, Some(vector::SS)),
        (SS, 0, Some(vector::TS)),
        (SS, CODE, Some(vector::TS)),
        (SS, USER_DATA, Some(vector::TS)),
        (CS, 0, Some(vector::TS)),
        (CS, DATA, Some(vector::TS)),
        (CS, CONFORMING, None),
        (OF32.ldtr, 0, None),
        (OF32.ldtr, DATA, Some(vector::TS)),
        (OF32.ldtr, TO_LDT | 4, Some(vector::TS)),
        (OF32.ldtr, GDT_LIMIT + 1, Some(vector::TS)),
    ] {
        for cause in CAUSES {
            let (mut e, r) = machine(true, true, cause);
            put(&mut e, NEW + field, u64::from(selector), 2);
            let (a, now) = switch(&mut e, &r, &task(cause)).expect("a switch");
            let ext = u32::from(cause == TaskCause::Event);
            let want = v.map(|v| Exception::with_error(v, u32::from(selector & !3) | ext));
            assert_eq!(a.fault, want, "{field:#x} {selector:#x} {cause:?}");
            // All the rest is there.
            assert_eq!((now.rip, e.tr.selector), (0x8765_4321, TO));
            assert_eq!(e.segs[Seg::Fs as usize].selector, DATA);
            assert!(!e.segs[Seg::Fs as usize].attr.unusable());
            // It has the selector that it cannot use.
            let n = (field - ES) / 4;
            if let Some(s) = e.segs.get(n as usize) {
                assert_eq!(s.selector, selector);
                // There is no CS that cannot be used.
                assert_eq!(s.attr.unusable(), v.is_some() && field != CS);
            }
        }
    }
}

#[test]
fn the_first_fault_counts() {
    let (mut e, r) = machine(true, true, TaskCause::Jump);
    put(&mut e, NEW + SS, u64::from(ABSENT), 2);
    put(&mut e, NEW + GS, u64::from(ABSENT), 2);
    put(&mut e, NEW + TRAP, 1, 2);
    let f = arrival_fault(&mut e, &r, &task(TaskCause::Jump));
    assert_eq!(f, Exception::with_error(vector::SS, u32::from(ABSENT)));
}

#[test]
fn a_cr3_that_is_refused() {
    let (mut e, r) = machine(true, true, TaskCause::Call);
    e.cr3 = 0x1000;
    e.cr3_reserved = 0x4_0000;
    assert_eq!(arrival_fault(&mut e, &r, &task(TaskCause::Call)), ts(TO));
    assert_eq!(e.cr3, 0x1000);
    // Without paging nobody asks for it.
    let (mut e, r) = machine(true, true, TaskCause::Call);
    e.cr0 &= !cr0::PG;
    e.cr3_reserved = u64::MAX;
    let (a, _) = switch(&mut e, &r, &task(TaskCause::Call)).expect("a switch");
    assert_eq!((a, e.cr3), (Arrival::default(), 0));
}

#[test]
fn the_trap_flag() {
    for (bits, trap) in [(0, false), (1, true), (0xfffe, false), (0xffff, true)] {
        let (mut e, r) = machine(true, true, TaskCause::Jump);
        put(&mut e, NEW + TRAP, bits, 2);
        let (a, _) = switch(&mut e, &r, &task(TaskCause::Jump)).expect("a switch");
        assert_eq!(a, Arrival { fault: None, trap });
    }
}

#[test]
fn into_and_out_of_virtual_8086_mode() {
    let (mut e, r) = machine(true, true, TaskCause::Call);
    put(&mut e, NEW + OF32.flags, rflags::VM | 2, 4);
    put(&mut e, NEW + CS, 0xf000, 2);
    put(&mut e, NEW + SS, 0x1234, 2);
    // No descriptor is read for any of them.
    put(&mut e, NEW + DS, u64::from(ABSENT), 2);
    let (a, now) = switch(&mut e, &r, &task(TaskCause::Call)).expect("a switch");
    assert_eq!(a, Arrival::default());
    assert_eq!(now.rflags, rflags::VM | NT | 2);
    for (seg, selector) in [(Seg::Cs, 0xf000), (Seg::Ss, 0x1234), (Seg::Ds, ABSENT)] {
        let s = e.segs[seg as usize];
        assert_eq!((s.selector, s.limit), (selector, 0xffff));
        assert_eq!((s.base, s.attr.0), (u64::from(selector) << 4, 0xf3));
    }

    // Back: an interrupt in that task. TSSs are the system's, whatever CPL says.
    let (e2, _) = machine(true, true, TaskCause::Event);
    e.ram = e2.ram;
    describe(&mut e, TR, OLD, 0x67, 0x89, 0);
    describe(&mut e, TO, NEW, 0x67, 0x8b, 0);
    for n in 0..6 {
        let s = if n == 1 { CODE } else { DATA };
        put(&mut e, OLD + ES + 4 * n, u64::from(s), 2);
    }
    e.cpl = 3;
    let t = TaskSwitch {
        selector: TR,
        ..task(TaskCause::Event)
    };
    let (a, now) = switch(&mut e, &now, &t).expect("a switch");
    assert_eq!(a, Arrival::default());
    assert_eq!(now.rflags & rflags::VM, 0);
    assert_eq!(get(&e, NEW + OF32.flags, 4) & rflags::VM, rflags::VM);
    assert_eq!(get(&e, NEW + CS, 2), 0xf000);
    assert_eq!(e.segs[Seg::Ss as usize].attr.dpl(), 0);
}

#[test]
fn to_ring_3() {
    let (mut e, r) = machine(true, true, TaskCause::Iret);
    for n in 0..6 {
        let s = if n == 1 { USER_CODE } else { USER_DATA };
        put(&mut e, NEW + ES + 4 * n, u64::from(s), 2);
    }
    let (a, _) = switch(&mut e, &r, &task(TaskCause::Iret)).expect("a switch");
    assert_eq!(a, Arrival::default());
    for s in [Seg::Cs, Seg::Ss] {
        assert_eq!(e.segs[s as usize].attr.dpl(), 3);
    }
    // The error code is pushed with the new task's rights.
    let (mut e, r) = machine(true, true, TaskCause::Event);
    for n in 0..6 {
        let s = if n == 1 { USER_CODE } else { USER_DATA };
        put(&mut e, NEW + ES + 4 * n, u64::from(s), 2);
    }
    e.logging = true;
    let t = TaskSwitch {
        error: Some(0),
        ..task(TaskCause::Event)
    };
    switch(&mut e, &r, &t).expect("a switch");
    let pushes: Vec<_> = e.log.iter().filter(|(_, la, ..)| *la == 0x7ffc).collect();
    assert!(matches!(
        pushes[..],
        [("write", _, 4, Access { user: true, .. })]
    ));
}

#[test]
fn who_loses_a_race_for_the_tss() {
    // Another processor has taken it: the instruction, or the event, comes again.
    for cause in CAUSES {
        let (mut e, r) = machine(true, true, cause);
        e.races = 1;
        let result = switch(&mut e, &r, &task(cause));
        if cause == TaskCause::Iret {
            // It marks nothing; who takes the mark away tries until it is done.
            result.expect("a switch");
            assert_eq!(typ(&e, TR), 9);
            continue;
        }
        assert_eq!(result, Err(Stop::Again), "{cause:?}");
        assert_eq!((e.tr.selector, e.switched, e.committed), (TR, 0, None));
        assert_eq!((typ(&e, TR), typ(&e, TO)), (11, 9));
    }
    // Nobody waits for ever.
    let (mut e, r) = machine(true, true, TaskCause::Iret);
    e.races = u32::MAX;
    assert_eq!(
        switch(&mut e, &r, &task(TaskCause::Iret)),
        Err(Stop::Unhandleable)
    );
}

#[test]
fn segments_that_change_meanwhile_are_read_again() {
    // SS, CS and the old TSS are marked; three of these CMPXCHGs are lost.
    let (mut e, r) = machine(true, true, TaskCause::Iret);
    describe(&mut e, TR, OLD, 0x67, 0x89, 0);
    e.races = 3;
    let (a, _) = switch(&mut e, &r, &task(TaskCause::Iret)).expect("a switch");
    assert_eq!(a, Arrival::default());
    assert_eq!((typ(&e, DATA), typ(&e, CODE)), (3, 11));
}

#[test]
fn a_task_that_returns_to_itself() {
    let (mut e, r) = machine(true, true, TaskCause::Iret);
    for (n, s) in (0..).zip([DATA, CODE, DATA, DATA, DATA, DATA]) {
        put(&mut e, OLD + ES + 4 * n, u64::from(s), 2);
    }
    let t = TaskSwitch {
        selector: TR,
        ..task(TaskCause::Iret)
    };
    let (a, now) = switch(&mut e, &r, &t).expect("a switch");
    assert_eq!(a, Arrival::default());
    // What it loads is what it has saved.
    assert_eq!((now.rip, now.rflags), (NEXT, 3));
    assert_eq!(now.gprs.get(Gpr::Rax), r.gprs.get(Gpr::Rax));
}

#[test]
fn tables_wrap_at_4_gib() {
    // The new TSS begins below 4 GiB and ends above 0.
    let (mut e, r) = machine(true, true, TaskCause::Jump);
    describe(&mut e, TO, 0xffff_ffe0, 0x67, 0x89, 0);
    let image: [u8; 0x48] = e.peek(NEW + 0x20);
    e.poke(0, &image);
    // Its CR3 is there, where nothing is.
    assert!(matches!(
        switch(&mut e, &r, &task(TaskCause::Jump)),
        Err(Stop::Fault(Exception {
            vector: vector::PF,
            ..
        }))
    ));
    e.cr0 &= !cr0::PG;
    let (_, now) = switch(&mut e, &r, &task(TaskCause::Jump)).expect("a switch");
    assert_eq!(now.rip, 0x8765_4321);
}

#[test]
fn no_task_switches_elsewhere() {
    for cause in CAUSES {
        for mut e in [TestEnv::real(0, 0x1000), TestEnv::long64(0, 0x1000)] {
            let r = Regs::default();
            assert_eq!(switch(&mut e, &r, &task(cause)), Err(Stop::Unhandleable));
            assert_eq!(e.switched, 0);
        }
    }
    // A TSS in a device's memory.
    let (mut e, r) = machine(true, true, TaskCause::Call);
    e.mmio = NEW..NEW + 0x1000;
    assert_eq!(
        switch(&mut e, &r, &task(TaskCause::Call)),
        Err(Stop::NeedUser)
    );
    assert_eq!((e.switched, e.posted.len()), (0, 0));
    assert_eq!(e.cr(3), 0);
}
