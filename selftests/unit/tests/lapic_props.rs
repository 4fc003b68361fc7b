// SPDX-License-Identifier: GPL-2.0

//! The local APIC against a naive model, and its saved state against itself.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::lapic::regs::{lvt, offset, svr};
use rkvm_unit::arch::x86::model::lapic::*;
use std::collections::BTreeSet;

const ENABLED: u64 = apic_base::DEFAULT | apic_base::ENABLE;
const CONFIG: Config = Config {
    id: 0x25,
    bsp: false,
    bus_cycle_ns: 1,
    lint0_extint: false,
};
const FEATURES: Features = Features {
    x2apic: true,
    tsc_deadline: true,
    cmci: true,
    directed_eoi: true,
    suppress_eoi: true,
    pmc_masks: false,
    phys_bits: 48,
};

/// Sets of vectors and the rules of SDM vol. 3A 12.8, as they are written.
#[derive(Default)]
struct Naive {
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    tmr: BTreeSet<u8>,
    tpr: u8,
    enabled: bool,
    suppress: bool,
}

impl Naive {
    fn accept(&mut self, v: u8, level: bool) -> bool {
        if !self.enabled || v < 16 {
            return false;
        }
        if level {
            self.tmr.insert(v);
        } else {
            self.tmr.remove(&v);
        }
        self.irr.insert(v)
    }
    fn ppr(&self) -> u8 {
        let isrv = self.isr.last().copied().unwrap_or(0);
        let (tc, ic) = (self.tpr / 16, isrv / 16);
        match tc.cmp(&ic) {
            std::cmp::Ordering::Greater => self.tpr,
            // The sub-class is then either's: the TPR's here, as on most processors.
            std::cmp::Ordering::Equal => tc * 16 + self.tpr % 16,
            std::cmp::Ordering::Less => ic * 16,
        }
    }
    fn pending(&self) -> Option<u8> {
        self.irr
            .last()
            .copied()
            .filter(|v| v / 16 > self.ppr() / 16)
    }
    fn ack(&mut self) -> Option<u8> {
        let v = self.pending()?;
        self.irr.remove(&v);
        self.isr.insert(v);
        Some(v)
    }
    fn eoi(&mut self) -> Option<u8> {
        let v = self.isr.pop_last()?;
        (self.tmr.contains(&v) && !self.suppress).then_some(v)
    }
}

fn set_of(l: &mut Lapic, x2: bool, first: u16) -> BTreeSet<u8> {
    let mut set = BTreeSet::new();
    for i in 0..8u16 {
        let off = first + i * 16;
        let word = if x2 {
            l.msr_read(0x800 + u32::from(off >> 4), || 0).unwrap()
        } else {
            l.mmio_read(off, 4, || 0)
        };
        set.extend(
            (0..32u16)
                .filter(|b| word & 1 << b != 0)
                .map(|b| (i * 32 + b) as u8),
        );
    }
    set
}

#[derive(Clone, Debug)]
enum Op {
    Accept(u8, bool),
    Post(Vec<(u8, bool)>),
    SelfIpi(u8),
    Ack,
    Eoi,
    Tpr(u8),
    Cr8(u8),
    Enable(bool, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<(u8, bool)>().prop_map(|(v, l)| Op::Accept(v, l)),
        2 => prop::collection::vec(any::<(u8, bool)>(), 0..6).prop_map(Op::Post),
        2 => any::<u8>().prop_map(Op::SelfIpi),
        6 => Just(Op::Ack),
        4 => Just(Op::Eoi),
        1 => any::<u8>().prop_map(Op::Tpr),
        1 => (0u8..16).prop_map(Op::Cr8),
        1 => (prop::bool::weighted(0.8), any::<bool>()).prop_map(|(e, s)| Op::Enable(e, s)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// No accepted vector is lost, none comes twice, and the highest comes first.
    #[test]
    fn agrees_with_the_naive_model(x2: bool, ops in prop::collection::vec(op(), 1..150)) {
        let mut l = Lapic::new(CONFIG, FEATURES);
        let mut n = Naive::default();
        let inbox = Inbox::new();
        if x2 {
            l.set_base(ENABLED | apic_base::EXTD, false).map(drop).unwrap();
        }
        for op in ops {
            match op {
                Op::Accept(v, level) => prop_assert_eq!(l.accept(v, level), n.accept(v, level)),
                Op::Post(vectors) => {
                    // Senders look whether the APIC is enabled.
                    if n.enabled {
                        for (v, level) in vectors {
                            inbox.post(v, level);
                            n.accept(v, level);
                        }
                        inbox.drain(&mut l);
                    }
                }
                Op::SelfIpi(v) => {
                    let effect = if x2 {
                        l.msr_write(0x83f, v.into(), || 0).unwrap()
                    } else {
                        l.mmio_write(offset::ICR, 4, 0x4_4000 | u64::from(v), || 0)
                    };
                    prop_assert_eq!(effect, Effect::None);
                    n.accept(v, false);
                }
                Op::Ack => prop_assert_eq!(l.ack(), n.ack()),
                Op::Eoi => {
                    let effect = if x2 {
                        l.msr_write(0x80b, 0, || 0).unwrap()
                    } else {
                        l.mmio_write(offset::EOI, 4, 0xffff_ffff, || 0)
                    };
                    prop_assert_eq!(effect, n.eoi().map_or(Effect::None, Effect::Eoi));
                }
                Op::Tpr(v) => {
                    if x2 {
                        l.msr_write(0x808, v.into(), || 0).map(drop).unwrap();
                    } else {
                        let _ = l.mmio_write(offset::TPR, 4, 0xffff_ff00 | u64::from(v), || 0);
                    }
                    n.tpr = v;
                }
                Op::Cr8(v) => {
                    l.set_cr8(v);
                    n.tpr = v * 16;
                }
                Op::Enable(enabled, suppress) => {
                    let value = 0xff | if enabled { svr::ENABLE } else { 0 } | if suppress { svr::SUPPRESS_EOI } else { 0 };
                    if x2 {
                        l.msr_write(0x80f, value.into(), || 0).map(drop).unwrap();
                    } else {
                        let _ = l.mmio_write(offset::SVR, 4, value.into(), || 0);
                    }
                    (n.enabled, n.suppress) = (enabled, suppress);
                }
            }
            prop_assert_eq!(l.pending(), n.pending());
            prop_assert_eq!(l.ppr(), n.ppr());
            prop_assert_eq!((l.tpr(), l.cr8()), (n.tpr, n.tpr / 16));
            prop_assert_eq!(l.highest_request(), n.irr.last().copied());
            prop_assert_eq!(l.in_service(), n.isr.last().copied());
        }
        prop_assert_eq!(set_of(&mut l, x2, offset::IRR), n.irr.clone());
        prop_assert_eq!(set_of(&mut l, x2, offset::ISR), n.isr.clone());
        prop_assert_eq!(set_of(&mut l, x2, offset::TMR), n.tmr.clone());
        for v in 0..=255 {
            prop_assert_eq!(l.awaits_eoi(v), n.irr.contains(&v) || n.isr.contains(&v));
        }
        // All that is left comes out, in order, each once.
        let mut all = n.irr.clone();
        l.set_tpr(0);
        while l.in_service().is_some() {
            l.eoi();
        }
        while let Some(v) = l.ack() {
            prop_assert_eq!(all.pop_last(), Some(v));
            l.eoi();
        }
        prop_assert!(all.is_empty());
    }
}

/// An access of the guest, or time that passes.
#[derive(Clone, Debug)]
enum Step {
    Write(u16, u32),
    Read(u16),
    Accept(u8, bool),
    Ack,
    Deadline(u64),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop::sample::select(vec![
        offset::TPR,
        offset::EOI,
        offset::LDR,
        offset::DFR,
        offset::SVR,
        offset::ESR,
        offset::ICR,
        offset::ICR2,
        offset::LVT_TIMER,
        offset::LVT_LINT0,
        offset::LVT_ERROR,
        offset::LVT_PMC,
        offset::LVT_CMCI,
        offset::TMICT,
        offset::ID,
    ]);
    prop_oneof![
        6 => (register, any::<u32>()).prop_map(|(off, v)| match off {
            // Long enough not to be stretched; mostly enabled; mostly legal vectors.
            offset::TMICT => Step::Write(off, if v & 7 == 0 { 0 } else { v % 1_000_000 + 200_000 }),
            offset::SVR => Step::Write(off, v & !0x1000 | if v & 0x3000 != 0 { 0x100 } else { 0 }),
            offset::LVT_TIMER => Step::Write(off, v & !lvt::MASKED | 0x80),
            _ => Step::Write(off, v),
        }),
        2 => (0u16..0x40).prop_map(|i| Step::Read(i * 16)),
        3 => any::<(u8, bool)>().prop_map(|(v, l)| Step::Accept(v, l)),
        3 => Just(Step::Ack),
        1 => (0u64..2_000_000).prop_map(Step::Deadline),
        3 => (0u32..500_000).prop_map(Step::Wait),
    ]
}

/// Does `step`, and returns all that can be seen of it.
fn run(l: &mut Lapic, step: &Step, now: &mut Now) -> String {
    let x2 = l.mode() == Mode::X2apic;
    let ns = now.ns;
    let seen = match *step {
        Step::Write(off, v) if x2 => {
            let v = if matches!(off, offset::EOI | offset::ESR) {
                0
            } else {
                v
            };
            let v = if off == offset::ICR { v & 0xd_dfff } else { v };
            format!(
                "{:?}",
                l.msr_write(0x800 + u32::from(off >> 4), v.into(), || ns)
            )
        }
        Step::Write(off, v) => format!("{:?}", l.mmio_write(off, 4, v.into(), || ns)),
        Step::Read(off) if x2 => format!("{:?}", l.msr_read(0x800 + u32::from(off >> 4), || ns)),
        Step::Read(off) => format!("{:?}", l.mmio_read(off, 4, || ns)),
        Step::Accept(v, level) => format!("{:?}", l.accept(v, level)),
        Step::Ack => format!("{:?}", l.ack()),
        Step::Deadline(d) => {
            let tsc = now.tsc;
            format!("{:?}", l.set_tsc_deadline(tsc + d, || tsc))
        }
        Step::Wait(d) => {
            now.ns += u64::from(d);
            now.tsc += u64::from(d) * 3;
            format!("{:?}", l.timer_fired(*now))
        }
    };
    format!(
        "{seen} {:?} {:?} {:?} {:?}",
        l.pending(),
        l.ppr(),
        l.timer(),
        l.identity()
    )
}

fn latch(l: &mut Lapic) {
    if l.mode() == Mode::X2apic {
        l.msr_write(0x828, 0, || 0).map(drop).unwrap();
    } else {
        let _ = l.mmio_write(offset::ESR, 4, 0, || 0);
    }
}

fn enabled(x2: bool) -> Lapic {
    let mut l = Lapic::new(CONFIG, FEATURES);
    let _ = l.mmio_write(offset::SVR, 4, 0x1ff, || 0);
    let _ = l.mmio_write(offset::TDCR, 4, 0xb, || 0);
    if x2 {
        l.set_base(ENABLED | apic_base::EXTD, false)
            .map(drop)
            .unwrap();
    }
    l
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What was saved and loaded, into an APIC that was anywhere, goes on as if nothing had
    /// happened. (Errors are latched before: see the module's documentation.)
    #[test]
    fn saved_state_behaves_the_same(
        x2: bool,
        wide: bool,
        before in prop::collection::vec(step(), 0..60),
        elsewhere in prop::collection::vec(step(), 0..30),
        after in prop::collection::vec(step(), 1..60),
        gap in 0u64..1 << 40,
    ) {
        let mut a = enabled(x2);
        let mut now = Now { ns: 1_000_000, tsc: 3_000_000 };
        for s in &before {
            run(&mut a, s, &mut now);
        }
        latch(&mut a);
        if a.timer() == Timer::Cancel {
            // A timer that has run down would run again.
            run(&mut a, &Step::Write(offset::TMICT, 0), &mut now);
        }
        let mut page = [0x5a; PAGE_SIZE];
        let effect = a.save(&mut page, wide, now);
        prop_assert_eq!(effect, Effect::Timer(a.timer()));

        let mut b = Lapic::new(CONFIG, FEATURES);
        let mut other = Now { ns: 77, tsc: 88 };
        for s in &elsewhere {
            run(&mut b, s, &mut other);
        }
        // A deadline is not in the page, and stays.
        run(&mut b, &Step::Write(offset::LVT_TIMER, 0), &mut other);
        // Another host's clock, on which times are `gap` later.
        let mut there = Now { ns: now.ns + gap, tsc: now.tsc };
        b.set_base(a.base(), true).map(drop).unwrap();
        prop_assert_eq!(b.load(&page, wide, there), Ok(Effect::Timer(b.timer())));
        let tsc = there.tsc;
        if a.timer_mode() == TimerMode::TscDeadline {
            let _ = b.set_tsc_deadline(a.tsc_deadline(), || tsc);
        }
        let mut again = [0; PAGE_SIZE];
        let _ = b.save(&mut again, wide, there);
        prop_assert_eq!(page.as_slice(), again.as_slice());
        let shift = |seen: String, by: u64| -> String {
            // Deadlines on the other clock.
            match seen.find("ArmNs(") {
                None => seen,
                Some(_) => {
                    let mut out = String::new();
                    let mut rest = seen.as_str();
                    while let Some(i) = rest.find("ArmNs(") {
                        let (head, tail) = rest.split_at(i + 6);
                        let (number, tail) = tail.split_at(tail.find(')').unwrap());
                        out += head;
                        out += &(number.parse::<u64>().unwrap() - by).to_string();
                        rest = tail;
                    }
                    out + rest
                }
            }
        };
        for s in &after {
            let x = run(&mut a, s, &mut now);
            let y = run(&mut b, s, &mut there);
            prop_assert_eq!(x, shift(y, gap), "{:?}", s);
        }
    }

    /// Any page can be loaded, and what it made is stable: saved, it loads into the same.
    #[test]
    fn any_page_loads(seed in prop::collection::vec(any::<u8>(), PAGE_SIZE), x2: bool, wide: bool) {
        let mut page: [u8; PAGE_SIZE] = seed.try_into().unwrap();
        let now = Now { ns: 1 << 40, tsc: 1 << 40 };
        let mut l = enabled(x2);
        if wide && x2 {
            prop_assert_eq!(l.load(&page, wide, now), Err(IdMismatch));
            page[0x20..0x24].copy_from_slice(&CONFIG.id.to_le_bytes());
        }
        prop_assert!(l.load(&page, wide, now).is_ok());
        let mut first = [0; PAGE_SIZE];
        let _ = l.save(&mut first, wide, now);
        let mut again = enabled(x2);
        prop_assert!(again.load(&first, wide, now).is_ok());
        let mut second = [0; PAGE_SIZE];
        let _ = again.save(&mut second, wide, now);
        prop_assert_eq!(first.as_slice(), second.as_slice());
        prop_assert_eq!(l.pending(), again.pending());
        prop_assert_eq!(l.identity(), again.identity());
    }

    /// No access, at any offset, size or MSR, does anything but answer; and PPR stays what TPR and
    /// ISR make it.
    #[test]
    fn any_access_is_answered(x2: bool, accesses in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u64>(), any::<bool>()), 1..100)) {
        let mut l = enabled(x2);
        for (off, len, value, write) in accesses {
            let off = if len & 1 == 0 { off & 0xff0 } else { off & 0xfff };
            let msr = 0x800 + u32::from(off >> 4);
            match (x2, write) {
                (false, false) => {
                    let got = l.mmio_read(off, len, || value);
                    prop_assert!(len >= 8 || got >> (len * 8) == 0);
                }
                (false, true) => {
                    let _ = l.mmio_write(off, if len & 2 == 0 { 4 } else { len }, value, || value);
                }
                (true, false) => drop(l.msr_read(msr, || value)),
                (true, true) => drop(l.msr_write(msr, value & 0x4_87ff, || value)),
            }
            let service = l.in_service().unwrap_or(0) & 0xf0;
            prop_assert_eq!(l.ppr(), if l.tpr() & 0xf0 >= service { l.tpr() } else { service });
            if let Some(v) = l.pending() {
                prop_assert!(v & 0xf0 > l.ppr() & 0xf0);
            }
        }
    }
}

#[test]
fn page_layout() {
    let mut l = Lapic::new(
        Config {
            id: 7,
            bsp: true,
            ..CONFIG
        },
        FEATURES,
    );
    let w = |l: &mut Lapic, off, v: u32| {
        let _ = l.mmio_write(off, 4, v.into(), || 1000);
    };
    w(&mut l, offset::SVR, 0x1ff);
    w(&mut l, offset::TPR, 0x20);
    w(&mut l, offset::LDR, 0x8000_0000);
    w(&mut l, offset::DFR, 0);
    w(&mut l, offset::ICR2, 0x0900_0000);
    w(&mut l, offset::ICR, 0x4_4031);
    w(&mut l, offset::LVT_LINT0, 0x700);
    w(&mut l, offset::TDCR, 0xb);
    w(&mut l, offset::TMICT, 5000);
    l.accept(0xf7, true);
    l.ack();
    let mut page = [0xff; PAGE_SIZE];
    let armed = Effect::Timer(Timer::ArmNs(6000));
    assert_eq!(l.save(&mut page, true, Now { ns: 3000, tsc: 0 }), armed);
    let reg = |off: usize| u32::from_le_bytes(page[off..off + 4].try_into().unwrap());
    let want = [
        (0x020, 0x0700_0000),
        (0x030, 0x0106_0014),
        (0x080, 0x20),
        (0x0a0, 0xf0),
        (0x0d0, 0x8000_0000),
        (0x0e0, 0x0fff_ffff),
        (0x0f0, 0x1ff),
        (0x170, 1 << 23),
        (0x1f0, 1 << 23),
        (0x210, 1 << 17),
        (0x2f0, 0x1_0000),
        (0x300, 0x4_4031),
        (0x310, 0x0900_0000),
        (0x320, 0x1_0000),
        (0x330, 0x1_0000),
        (0x340, 0x1_0000),
        (0x350, 0x700),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 5000),
        (0x390, 3000),
        (0x3e0, 0xb),
    ];
    for off in (0..PAGE_SIZE).step_by(4) {
        let value = want.iter().find(|w| w.0 == off).map_or(0, |w| w.1);
        assert_eq!(reg(off), value, "{off:#x}");
    }
}

/// KVM's api.rst, KVM_GET_LAPIC: where the id is depends on mode and capability.
#[test]
fn ids_in_the_page() {
    let id = |page: &[u8; PAGE_SIZE]| u32::from_le_bytes(page[0x20..0x24].try_into().unwrap());
    let now = Now::default();
    let mut page = [0; PAGE_SIZE];
    for (x2, wide, want) in [
        (false, false, 0x2500_0000),
        (false, true, 0x2500_0000),
        (true, false, 0x2500_0000),
        (true, true, 0x25),
    ] {
        let mut l = enabled(x2);
        let _ = l.save(&mut page, wide, now);
        assert_eq!(id(&page), want);
        assert_eq!(
            u32::from_le_bytes(page[0xd0..0xd4].try_into().unwrap()),
            if x2 { 0x2_0020 } else { 0 }
        );
        // Another id: an xAPIC takes it, an x2APIC refuses or overlooks it.
        page[0x20..0x24].copy_from_slice(&0x3300_0000u32.to_le_bytes());
        assert_eq!(l.load(&page, wide, now).is_err(), x2 && wide);
        let _ = l.save(&mut page, wide, now);
        assert_eq!(id(&page), if x2 { want } else { 0x3300_0000 });
    }
}

/// Firmware's LINT0 setting is there before the APIC is software enabled, and survives.
#[test]
fn lint0_of_the_bootstrap_processor_survives() {
    let mut l = Lapic::new(
        Config {
            bsp: true,
            lint0_extint: true,
            ..CONFIG
        },
        FEATURES,
    );
    let mut page = [0; PAGE_SIZE];
    let _ = l.save(&mut page, false, Now::default());
    let mut b = Lapic::new(CONFIG, FEATURES);
    b.load(&page, false, Now::default()).map(drop).unwrap();
    assert!(b.accepts_extint());
}

/// A timer that is due when the state is saved has its interrupt in the page.
#[test]
fn a_due_timer_is_in_the_page() {
    for deadline in [false, true] {
        let mut l = enabled(false);
        let mode = if deadline { lvt::TSC_DEADLINE } else { 0 };
        let _ = l.mmio_write(offset::LVT_TIMER, 4, u64::from(mode | 0x61), || 0);
        let _ = l.mmio_write(offset::TMICT, 4, 500, || 0);
        let _ = l.set_tsc_deadline(500, || 0);
        let mut page = [0; PAGE_SIZE];
        let at = Now { ns: 500, tsc: 500 };
        assert_eq!(l.save(&mut page, false, at), Effect::Timer(Timer::Cancel));
        let mut b = Lapic::new(CONFIG, FEATURES);
        assert_eq!(b.load(&page, false, at), Ok(Effect::Timer(Timer::Cancel)));
        assert_eq!(b.ack(), Some(0x61));
        assert_eq!(
            b.timer_fired(Now {
                ns: 5000,
                tsc: 5000
            }),
            Timer::Cancel
        );
        b.eoi();
        assert_eq!(b.ack(), None);
    }
    // User space that does not keep the current count: the tick comes at once, or a period later.
    for periodic in [false, true] {
        let mut l = enabled(false);
        let mode = if periodic { lvt::PERIODIC } else { 0 };
        let _ = l.mmio_write(offset::LVT_TIMER, 4, u64::from(mode | 0x61), || 0);
        let _ = l.mmio_write(offset::TMICT, 4, 500_000, || 0);
        let mut page = [0; PAGE_SIZE];
        let _ = l.save(&mut page, false, Now { ns: 1000, tsc: 0 });
        page[0x390..0x394].fill(0);
        let mut b = Lapic::new(CONFIG, FEATURES);
        let timer = if periodic {
            Timer::ArmNs(502_000)
        } else {
            Timer::Cancel
        };
        assert_eq!(
            b.load(&page, false, Now { ns: 2000, tsc: 0 }),
            Ok(Effect::Timer(timer))
        );
        assert_eq!(b.ack(), (!periodic).then_some(0x61));
    }
    // One count of a slow timer left: not lost by rounding.
    let mut l = enabled(false);
    let _ = l.mmio_write(offset::LVT_TIMER, 4, 0x61, || 0);
    let _ = l.mmio_write(offset::TDCR, 4, 0xa, || 0);
    let _ = l.mmio_write(offset::TMICT, 4, 10, || 0);
    let mut page = [0; PAGE_SIZE];
    let at = Now { ns: 1279, tsc: 0 };
    let _ = l.save(&mut page, false, at);
    let mut b = Lapic::new(CONFIG, FEATURES);
    assert_eq!(
        b.load(&page, false, at),
        Ok(Effect::Timer(Timer::ArmNs(1279 + 128)))
    );
}
