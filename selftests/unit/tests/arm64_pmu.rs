// SPDX-License-Identifier: GPL-2.0

//! arm64's performance monitors: registers, who reaches them, counting, overflows, and which events there are.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::pmu::events::{Events, InvalidRange, Range, WORDS};
use rkvm_unit::arch::arm64::model::pmu::regs::{Given, NoCounter, Reg};
use rkvm_unit::arch::arm64::model::pmu::{pmcr, Pmu, Shape, Wanted, CYCLE, V3P1, V3P5};
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;

const ALL: Events<'static> = Events::ALL;
const P: u64 = 1 << 31;
const U: u64 = 1 << 30;
const CHAIN: u64 = 0x1e;
const CYCLES: u64 = 0x11;

fn shape(version: u8, counters: u8) -> Shape {
    Shape {
        version,
        counters,
        aarch32: true,
        ..Shape::default()
    }
}

fn new(s: &Shape) -> Pmu {
    let mut p = Pmu::default();
    p.reset(s);
    p
}

fn read(p: &Pmu, r: Reg, s: &Shape) -> u64 {
    p.read(r, s, &Given::default()).expect("it is there")
}

fn write(p: &mut Pmu, r: Reg, v: u64, s: &Shape) -> u64 {
    p.write(r, v, false, s).expect("it is there")
}

/// All counters on, and the PMU.
fn on(s: &Shape, lp: u64) -> Pmu {
    let mut p = new(s);
    write(&mut p, Reg::Enable(true), u64::MAX, s);
    write(&mut p, Reg::Control, pmcr::E | lp, s);
    p
}

#[test]
fn names() {
    for (r, reg) in [
        (Sysreg::PMCR_EL0, Reg::Control),
        (Sysreg::PMCNTENSET_EL0, Reg::Enable(true)),
        (Sysreg::PMCNTENCLR_EL0, Reg::Enable(false)),
        (Sysreg::PMINTENSET_EL1, Reg::Interrupt(true)),
        (Sysreg::PMINTENCLR_EL1, Reg::Interrupt(false)),
        (Sysreg::PMOVSSET_EL0, Reg::Overflow(true)),
        (Sysreg::PMOVSCLR_EL0, Reg::Overflow(false)),
        (Sysreg::PMSWINC_EL0, Reg::Increment),
        (Sysreg::PMSELR_EL0, Reg::Select),
        (Sysreg::PMCEID0_EL0, Reg::Events(0)),
        (Sysreg::PMCEID1_EL0, Reg::Events(1)),
        (Sysreg::PMCCNTR_EL0, Reg::Counter(31)),
        (Sysreg::PMXEVTYPER_EL0, Reg::SelectedType),
        (Sysreg::PMXEVCNTR_EL0, Reg::SelectedCounter),
        (Sysreg::PMUSERENR_EL0, Reg::User),
        (Sysreg::PMMIR_EL1, Reg::Machine),
        (Sysreg::PMEVCNTR0_EL0, Reg::Counter(0)),
        // PMEVCNTR30_EL0, PMEVTYPER30_EL0
        (Sysreg::new(3, 3, 14, 11, 6), Reg::Counter(30)),
        (Sysreg::new(3, 3, 14, 15, 6), Reg::Type(30)),
        (Sysreg::PMEVTYPER0_EL0, Reg::Type(0)),
        (Sysreg::PMCCFILTR_EL0, Reg::Type(31)),
    ] {
        assert_eq!(Reg::of(r), Some(reg), "{r}");
    }
    assert_eq!(Reg::of(Sysreg::new(3, 3, 14, 11, 7)), None);
    assert_eq!(Reg::of(Sysreg::PMSCR_EL1), None);
    assert_eq!(Reg::of(Sysreg::SCTLR_EL1), None);
}

#[test]
fn el0() {
    let all = [
        Reg::Control,
        Reg::Enable(true),
        Reg::Overflow(false),
        Reg::Select,
        Reg::Events(0),
        Reg::Counter(3),
        Reg::Counter(CYCLE),
        Reg::Type(3),
        Reg::SelectedCounter,
        Reg::SelectedType,
        Reg::Increment,
    ];
    for r in all {
        for write in [false, true] {
            assert!(!r.open_to_el0(write, 0), "{r:?}");
            assert!(r.open_to_el0(write, 1), "{r:?}");
        }
    }
    // SW, CR, ER alone.
    let opened = |user: u64| -> Vec<(Reg, bool)> {
        all.iter()
            .flat_map(|r| [(*r, false), (*r, true)])
            .filter(|(r, w)| r.open_to_el0(*w, user))
            .collect()
    };
    assert_eq!(opened(2), [(Reg::Increment, true)]);
    assert_eq!(opened(4), [(Reg::Counter(CYCLE), false)]);
    assert_eq!(
        opened(8),
        [
            (Reg::Select, false),
            (Reg::Select, true),
            (Reg::Counter(3), false),
            (Reg::SelectedCounter, false)
        ]
    );
    // PMUSERENR_EL0 can be read; the rest is EL1's.
    assert!(Reg::User.open_to_el0(false, 0));
    for r in [Reg::User, Reg::Interrupt(true), Reg::Machine] {
        assert!(!r.open_to_el0(true, 0xf), "{r:?}");
    }
    assert!(!Reg::Interrupt(false).open_to_el0(false, 0xf));
}

#[test]
fn control() {
    let s = shape(V3P5, 6);
    let mut p = new(&s);
    assert_eq!(read(&p, Reg::Control, &s), 6 << 11);
    let changed = write(&mut p, Reg::Control, u64::MAX, &s);
    assert_eq!(changed, s.implemented());
    // P and C read as zero; N cannot be written.
    assert_eq!(read(&p, Reg::Control, &s), 0xf9 | 6 << 11);
    // LP is only where counters have 64 bits.
    let old = shape(V3P1, 6);
    assert_eq!(read(&p, Reg::Control, &old), 0x79 | 6 << 11);
    // Without AArch32, LC is always set.
    let s = Shape {
        aarch32: false,
        ..s
    };
    let mut p = new(&s);
    assert_eq!(read(&p, Reg::Control, &s), 0x40 | 6 << 11);
    write(&mut p, Reg::Control, 0, &s);
    assert_eq!(read(&p, Reg::Control, &s), 0x40 | 6 << 11);
    // What changes nothing that counts has nobody count otherwise.
    assert_eq!(write(&mut p, Reg::Control, 8, &s), 0);
    assert_eq!(write(&mut p, Reg::Control, 1, &s), s.implemented());
}

#[test]
fn resets_of_counters() {
    let s = shape(V3P5, 3);
    let mut p = new(&s);
    for n in [0, 1, 2, CYCLE] {
        write(&mut p, Reg::Counter(n), 77, &s);
    }
    assert_eq!(write(&mut p, Reg::Control, pmcr::P, &s), 7);
    assert_eq!(
        [0, 1, 2, 31].map(|n| read(&p, Reg::Counter(n), &s)),
        [0, 0, 0, 77]
    );
    write(&mut p, Reg::Counter(1), 5, &s);
    assert_eq!(write(&mut p, Reg::Control, pmcr::C, &s), 1 << 31);
    assert_eq!(
        [0, 1, 2, 31].map(|n| read(&p, Reg::Counter(n), &s)),
        [0, 5, 0, 0]
    );
}

#[test]
fn bits_of_counters() {
    for n in [0, 1, 6, 31] {
        let s = shape(V3P5, n);
        let mask = s.implemented();
        assert_eq!(mask, 1 << 31 | (1 << n) - 1);
        for (set, clear) in [
            (Reg::Enable(true), Reg::Enable(false)),
            (Reg::Interrupt(true), Reg::Interrupt(false)),
            (Reg::Overflow(true), Reg::Overflow(false)),
        ] {
            let mut p = new(&s);
            write(&mut p, set, u64::MAX, &s);
            assert_eq!((read(&p, set, &s), read(&p, clear, &s)), (mask, mask));
            write(&mut p, clear, 1 << 31, &s);
            assert_eq!(read(&p, set, &s), mask & !(1 << 31));
            write(&mut p, set, 0, &s);
            assert_eq!(read(&p, clear, &s), mask & !(1 << 31));
            // User space sets the value by either.
            p.user_write(clear, u64::MAX, &s);
            assert_eq!(read(&p, set, &s), mask);
            p.user_write(clear, 0, &s);
            assert_eq!(read(&p, set, &s), 0);
        }
    }
}

#[test]
fn counters_that_are_not_there() {
    let s = shape(V3P5, 2);
    let mut p = new(&s);
    for n in 2..31 {
        for r in [Reg::Counter(n), Reg::Type(n)] {
            assert_eq!(p.read(r, &s, &Given::default()), Err(NoCounter));
            assert_eq!(p.write(r, 0, false, &s), Err(NoCounter));
        }
        write(&mut p, Reg::Select, n.into(), &s);
        assert_eq!(read(&p, Reg::Select, &s), n.into());
        for r in [Reg::SelectedCounter, Reg::SelectedType] {
            assert_eq!(p.read(r, &s, &Given::default()), Err(NoCounter));
            assert_eq!(p.write(r, 0, false, &s), Err(NoCounter));
        }
        // User space has them all.
        p.user_write(Reg::Counter(n), 9, &s);
        assert_eq!(p.user_read(Reg::Counter(n), &s, &Given::default()), 9);
    }
    write(&mut p, Reg::Select, 1, &s);
    write(&mut p, Reg::SelectedType, P | 8, &s);
    write(&mut p, Reg::SelectedCounter, 12, &s);
    assert_eq!(read(&p, Reg::Type(1), &s), P | 8);
    assert_eq!(read(&p, Reg::Counter(1), &s), 12);
    // PMCCFILTR_EL0
    write(&mut p, Reg::Select, 31, &s);
    write(&mut p, Reg::SelectedType, u64::MAX, &s);
    assert_eq!(read(&p, Reg::Type(31), &s), P | U);
}

#[test]
fn widths() {
    let (long, short) = (shape(V3P5, 2), shape(V3P1, 2));
    let v = 0x1234_5678_9abc_def0;
    let mut p = new(&long);
    write(&mut p, Reg::Counter(0), v, &long);
    write(&mut p, Reg::Counter(CYCLE), v, &long);
    assert_eq!(read(&p, Reg::Counter(0), &long), v);
    // AArch32 leaves the upper half.
    p.write(Reg::Counter(0), u64::MAX, true, &long)
        .expect("there");
    assert_eq!(read(&p, Reg::Counter(0), &long), 0x1234_5678_ffff_ffff);
    let mut p = new(&short);
    write(&mut p, Reg::Counter(0), v, &short);
    write(&mut p, Reg::Counter(CYCLE), v, &short);
    assert_eq!(read(&p, Reg::Counter(0), &short), 0x9abc_def0);
    assert_eq!(read(&p, Reg::Counter(CYCLE), &short), v);
    // 10 bits of an event, then 16.
    write(&mut p, Reg::Type(0), 0xffff, &shape(1, 2));
    assert_eq!(read(&p, Reg::Type(0), &shape(1, 2)), 0x3ff);
    write(&mut p, Reg::Type(0), u64::MAX, &short);
    assert_eq!(read(&p, Reg::Type(0), &short), P | U | 0xffff);
}

#[test]
fn what_is_wanted() {
    let s = shape(V3P1, 2);
    let mut p = new(&s);
    write(&mut p, Reg::Type(0), 8, &s);
    assert_eq!(p.wanted(0, &s, &ALL), None);
    write(&mut p, Reg::Enable(true), 1 | 1 << 31, &s);
    assert_eq!(p.wanted(0, &s, &ALL), None);
    write(&mut p, Reg::Control, 1, &s);
    let w = Wanted {
        event: 8,
        el0: true,
        el1: true,
        wide: false,
    };
    assert_eq!(p.wanted(0, &s, &ALL), Some(w));
    assert_eq!(p.wanted(1, &s, &ALL), None);
    assert_eq!(
        p.wanted(0, &shape(V3P5, 2), &ALL).map(|w| w.wide),
        Some(true)
    );
    let cycles = p.wanted(CYCLE, &s, &ALL).expect("on");
    assert_eq!((cycles.event, cycles.wide), (0x11, true));
    for (t, el0, el1) in [(P, true, false), (U, false, true)] {
        assert_eq!(write(&mut p, Reg::Type(0), t | 8, &s), 1);
        assert_eq!(p.wanted(0, &s, &ALL), Some(Wanted { el0, el1, ..w }));
        write(&mut p, Reg::Type(31), t, &s);
        let c = p.wanted(CYCLE, &s, &ALL).map(|c| (c.el0, c.el1));
        assert_eq!(c, Some((el0, el1)));
    }
    write(&mut p, Reg::Type(0), P | U | 8, &s);
    assert_eq!(p.wanted(0, &s, &ALL), None);
    // With EL3, NSK and NSU turn P and U round.
    let el3 = Shape { el3: true, ..s };
    write(&mut p, Reg::Type(0), P | 1 << 29 | 1 << 28 | 8, &el3);
    let both = p.wanted(0, &el3, &ALL).map(|c| (c.el0, c.el1));
    assert_eq!(both, Some((false, true)));
    // No event of the hardware.
    for e in [0, CHAIN] {
        write(&mut p, Reg::Type(0), e, &s);
        assert_eq!(p.wanted(0, &s, &ALL), None);
    }
    // A counter that the VM has no more.
    write(&mut p, Reg::Type(0), 8, &s);
    assert_eq!(p.wanted(0, &shape(V3P1, 0), &ALL), None);
}

#[test]
fn overflows() {
    // (version, PMCR bits, counter, start, events, value then, overflow)
    let low = 0xffff_ffff;
    for (version, bits, n, start, events, value, over) in [
        (V3P1, 0, 0, low, 0, low, false),
        (V3P1, 0, 0, low, 1, 0, true),
        (V3P1, 0, 0, 5, low, 4, true),
        (V3P1, 0, 0, 5, low - 5, low, false),
        // LP is nothing there.
        (V3P1, pmcr::LP, 0, low, 1, 0, true),
        (V3P5, 0, 0, low, 1, low + 1, true),
        (V3P5, 0, 0, low << 32 | low, 1, 0, true),
        (V3P5, pmcr::LP, 0, low, 1, low + 1, false),
        (V3P5, pmcr::LP, 0, u64::MAX, 1, 0, true),
        (V3P5, pmcr::LP, 0, u64::MAX, u64::MAX, u64::MAX - 1, true),
        (V3P1, 0, CYCLE, low, 1, low + 1, true),
        (V3P1, pmcr::LC, CYCLE, low, 1, low + 1, false),
        (V3P1, pmcr::LC, CYCLE, u64::MAX - 1, 3, 1, true),
    ] {
        let s = shape(version, 2);
        let mut p = on(&s, bits);
        write(&mut p, Reg::Counter(n), start, &s);
        assert_eq!(p.add(n, events, &s), over, "{version} {n} {start:#x}");
        assert_eq!(read(&p, Reg::Counter(n), &s), value);
        assert_eq!(read(&p, Reg::Overflow(false), &s), u64::from(over) << n);
    }
}

#[test]
fn periods() {
    let s = shape(V3P5, 2);
    let mut p = on(&s, 0);
    for (start, period) in [
        (0, 1 << 32),
        (1, 0xffff_ffff),
        (0xffff_ffff, 1),
        (1 << 32, 1 << 32),
    ] {
        write(&mut p, Reg::Counter(0), start, &s);
        assert_eq!(p.period(0, &s), Some(period));
    }
    let mut p = on(&s, pmcr::LP | pmcr::LC);
    for n in [0, CYCLE] {
        assert_eq!(p.period(n, &s), None);
        write(&mut p, Reg::Counter(n), u64::MAX - 9, &s);
        assert_eq!(p.period(n, &s), Some(10));
    }
}

#[test]
fn chains() {
    let s = shape(V3P5, 4);
    let mut p = on(&s, 0);
    write(&mut p, Reg::Type(1), CHAIN, &s);
    write(&mut p, Reg::Counter(0), 0xffff_fff0, &s);
    write(&mut p, Reg::Counter(1), 0xffff_ffff, &s);
    p.add(0, 16, &s);
    assert_eq!(read(&p, Reg::Counter(1), &s), 1 << 32);
    assert_eq!(read(&p, Reg::Overflow(true), &s), 3);
    // Twice at once
    p.add(0, 2 << 32, &s);
    assert_eq!(read(&p, Reg::Counter(1), &s), (1 << 32) + 2);
    // Neither an odd counter, nor one that counts something else, nor one that is off.
    let before = p.clone();
    p.add(1, 1 << 32, &s);
    assert_eq!(read(&p, Reg::Counter(2), &s), 0);
    p = before;
    p.add(2, 1 << 32, &s);
    assert_eq!(read(&p, Reg::Counter(3), &s), 0);
    write(&mut p, Reg::Enable(false), 2, &s);
    p.add(0, 1 << 32, &s);
    assert_eq!(read(&p, Reg::Counter(1), &s), (1 << 32) + 2);
    // Nor with overflows at 64 bits, nor the cycle counter above 30.
    let mut p = on(&s, pmcr::LP);
    write(&mut p, Reg::Type(1), CHAIN, &s);
    write(&mut p, Reg::Counter(0), u64::MAX, &s);
    p.add(0, 1, &s);
    assert_eq!(read(&p, Reg::Counter(1), &s), 0);
    let s = shape(V3P1, 31);
    let mut p = on(&s, 0);
    p.add(30, 1 << 32, &s);
    assert_eq!(read(&p, Reg::Counter(CYCLE), &s), 0);
}

#[test]
fn software_increments() {
    let s = shape(V3P1, 3);
    let mut p = on(&s, 0);
    write(&mut p, Reg::Type(1), CYCLES, &s);
    write(&mut p, Reg::Counter(0), 0xffff_ffff, &s);
    assert_eq!(write(&mut p, Reg::Increment, u64::MAX, &s), 0);
    assert_eq!(
        [0, 1, 2, 31].map(|n| read(&p, Reg::Counter(n), &s)),
        [0, 0, 1, 0]
    );
    assert_eq!(read(&p, Reg::Overflow(true), &s), 1);
    write(&mut p, Reg::Enable(false), 4, &s);
    write(&mut p, Reg::Increment, 4, &s);
    assert_eq!(read(&p, Reg::Counter(2), &s), 1);
    write(&mut p, Reg::Control, 0, &s);
    write(&mut p, Reg::Increment, 1, &s);
    assert_eq!(read(&p, Reg::Counter(0), &s), 0);
    assert_eq!(read(&p, Reg::Increment, &s), 0);
}

#[test]
fn the_line() {
    let s = shape(V3P1, 2);
    let mut p = on(&s, 0);
    write(&mut p, Reg::Overflow(true), 1, &s);
    assert!(!p.line(&s));
    write(&mut p, Reg::Interrupt(true), 2, &s);
    assert!(!p.line(&s));
    write(&mut p, Reg::Interrupt(true), 1, &s);
    assert!(p.line(&s));
    write(&mut p, Reg::Control, 0, &s);
    assert!(!p.line(&s));
    write(&mut p, Reg::Control, 1, &s);
    write(&mut p, Reg::Overflow(false), 1, &s);
    assert!(!p.line(&s));
}

#[test]
fn fewer_counters_later() {
    let (six, one) = (shape(V3P5, 6), shape(V3P1, 1));
    let mut p = on(&six, pmcr::LP);
    write(&mut p, Reg::Interrupt(true), u64::MAX, &six);
    p.user_write(Reg::Counter(0), u64::MAX, &six);
    p.fit(&one);
    for r in [Reg::Enable(true), Reg::Interrupt(true)] {
        assert_eq!(p.user_read(r, &six, &Given::default()), one.implemented());
    }
    assert_eq!(read(&p, Reg::Counter(0), &one), 0xffff_ffff);
}

#[test]
fn filters() {
    let mut f = vec![0; WORDS];
    // An allowance first: all else is denied.
    let allow = Range::new(0x10, 0x70, 0, 0xffff).expect("a range");
    allow.begin(&mut f);
    allow.apply(&mut f);
    for (e, ok) in [(0xf, false), (0x10, true), (0x7f, true), (0x80, false)] {
        assert_eq!(Events::new(&f).allows(e), ok, "{e:#x}");
    }
    let deny = Range::new(0x10, 0x70, 1, 0xffff).expect("a range");
    deny.apply(&mut f);
    assert!((0..=u16::MAX).all(|e| !Events::new(&f).allows(e)));
    deny.begin(&mut f);
    deny.apply(&mut f);
    let denied = (0..=u16::MAX).filter(|e| !Events::new(&f).allows(*e));
    assert!(denied.eq(0x10..0x80));
    // None at all, and the very last.
    Range::new(0, 0, 1, 0xffff).expect("empty").apply(&mut f);
    assert!(Events::new(&f).allows(0));
    Range::new(0xffff, 1, 1, 0xffff)
        .expect("the last")
        .apply(&mut f);
    assert!(!Events::new(&f).allows(0xffff));
    assert_eq!(Range::new(0xffff, 2, 0, 0xffff), Err(InvalidRange));
    assert_eq!(Range::new(0x3ff, 2, 0, 0x3ff), Err(InvalidRange));
    assert_eq!(Range::new(0, 1, 2, 0x3ff), Err(InvalidRange));
    assert!(Events::new(&[]).allows(5));
}

#[test]
fn filtered_events_count_nothing() {
    let s = shape(V3P1, 2);
    let mut f = vec![0; WORDS];
    let deny = Range::new(0x11, 1, 1, 0xffff).expect("a range");
    deny.begin(&mut f);
    deny.apply(&mut f);
    let mut p = on(&s, 0);
    write(&mut p, Reg::Type(0), CYCLES, &s);
    write(&mut p, Reg::Type(1), 8, &s);
    let e = Events::new(&f);
    assert_eq!(p.wanted(0, &s, &e), None);
    assert_eq!(p.wanted(CYCLE, &s, &e), None);
    assert!(p.wanted(1, &s, &e).is_some());
}

#[test]
fn events_that_are_told() {
    let s = shape(V3P1, 2);
    let told = |host, s: &Shape, f: &[u64], slots| Events::new(f).pmceid(host, s, slots);
    let always = 1 | 1 << CHAIN;
    assert_eq!(told([0, 0], &s, &[], false), [always, 0]);
    assert_eq!(told([u64::MAX; 2], &s, &[], true), [u64::MAX; 2]);
    let slots = 7 << 29;
    assert_eq!(told([u64::MAX; 2], &s, &[], false), [u64::MAX, !slots]);
    // Events from 0x4000 on are not among 1024.
    assert_eq!(
        told([u64::MAX; 2], &shape(1, 2), &[], true),
        [0xffff_ffff; 2]
    );
    let mut f = vec![0; WORDS];
    for (base, bit, which) in [
        (0x11u16, 17, 0),
        (0x23, 3, 1),
        (0x4004, 36, 0),
        (0x4025, 37, 1),
    ] {
        let deny = Range::new(base, 1, 1, 0xffff).expect("a range");
        deny.begin(&mut f);
        deny.apply(&mut f);
        let mut all = [u64::MAX; 2];
        all[which] &= !(1 << bit);
        assert_eq!(told([u64::MAX; 2], &s, &f, true), all, "{base:#x}");
    }
}

proptest! {
    /// However the host's counts come in, the sum is the same: value, overflow, and what the chain has.
    #[test]
    fn counts_add_up(
        version in prop::sample::select(vec![1u8, V3P1, V3P5]),
        lp in prop::bool::ANY,
        start in any::<u64>(),
        parts in prop::collection::vec(0u64..1 << 33, 0..20),
    ) {
        let s = shape(version, 2);
        let lp = if lp { pmcr::LP } else { 0 };
        let prepare = || {
            let mut p = on(&s, lp);
            write(&mut p, Reg::Type(1), CHAIN, &s);
            write(&mut p, Reg::Counter(0), start, &s);
            p
        };
        let (mut one, mut many) = (prepare(), prepare());
        one.add(0, parts.iter().sum(), &s);
        for part in &parts {
            many.add(0, *part, &s);
        }
        prop_assert_eq!(one, many);
    }

    /// An overflow comes when the period is over, and not before.
    #[test]
    fn periods_are_exact(version in prop::sample::select(vec![1u8, V3P5]), bits in any::<u64>(), n in prop::sample::select(vec![0u8, 1, CYCLE]), start in any::<u64>()) {
        let s = shape(version, 2);
        let mut p = on(&s, bits & (pmcr::LP | pmcr::LC));
        write(&mut p, Reg::Counter(n), start, &s);
        if let Some(period) = p.period(n, &s) {
            prop_assert!(!p.clone().add(n, period - 1, &s));
            prop_assert!(p.add(n, period, &s));
        }
    }

    /// Nothing that is written has a bit for a counter that is not there, and nothing panics.
    #[test]
    fn no_bits_too_many(n in 0u8..40, writes in prop::collection::vec((0usize..11, any::<u64>()), 0..40)) {
        let s = shape(V3P5, n.min(31));
        let mut p = new(&s);
        for (r, v) in writes {
            let r = [
                Reg::Control, Reg::Enable(true), Reg::Enable(false), Reg::Interrupt(true), Reg::Overflow(true),
                Reg::Increment, Reg::Select, Reg::SelectedCounter, Reg::SelectedType, Reg::User, Reg::Counter(n % 32),
            ][r];
            if let Ok(changed) = p.write(r, v, false, &s) {
                prop_assert_eq!(changed & !s.implemented(), 0);
            }
        }
        for r in [Reg::Enable(true), Reg::Interrupt(false), Reg::Overflow(true)] {
            prop_assert_eq!(read(&p, r, &s) & !s.implemented(), 0);
        }
        prop_assert!(read(&p, Reg::User, &s) < 16);
    }
}
