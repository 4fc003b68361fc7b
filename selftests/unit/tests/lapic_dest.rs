// SPDX-License-Identifier: GPL-2.0

//! Destinations against a naive matcher, and the inbox under concurrent posting.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::lapic::*;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

struct Cpu {
    identity: Identity,
    got: RefCell<Vec<(DeliveryMode, u8, bool)>>,
    answer: Posted,
}

impl Cpu {
    fn new(identity: Identity) -> Self {
        Self {
            identity,
            got: RefCell::default(),
            answer: Posted::Fresh,
        }
    }
}

impl Target for Cpu {
    fn identity(&self) -> Identity {
        self.identity
    }
    fn post(&self, mode: DeliveryMode, vector: u8, level: bool) -> Posted {
        self.got.borrow_mut().push((mode, vector, level));
        self.answer
    }
}

const FLAT: LogicalModel = LogicalModel::Flat;

fn xapic(id: u32, logical: u8, model: LogicalModel) -> Identity {
    Identity::new(id, id as u8, logical, model, Mode::Xapic, true)
}

fn x2apic(id: u32) -> Identity {
    Identity::new(id, id as u8, 0, FLAT, Mode::X2apic, true)
}

fn ipi(from: u32, dest: u32) -> Irq {
    Irq {
        source: Source::Ipi { id: from },
        ..Irq::fixed(dest, 0x41)
    }
}

#[test]
fn identity_packs() {
    for model in [FLAT, LogicalModel::Cluster, LogicalModel::Reserved] {
        for mode in [Mode::Disabled, Mode::Xapic, Mode::X2apic] {
            for enabled in [false, true] {
                let i = Identity::new(0xdead_beef, 0x12, 0x34, model, mode, enabled);
                assert_eq!(
                    (i.id(), i.xapic_id(), i.logical_id()),
                    (0xdead_beef, 0x12, 0x34)
                );
                assert_eq!((i.model(), i.mode()), (model, mode));
                assert_eq!(i.accepts_fixed(), enabled && mode != Mode::Disabled);
            }
        }
    }
    let shared = SharedIdentity::new(x2apic(1));
    assert_eq!(shared.get(), x2apic(1));
    shared.publish(x2apic(2));
    assert_eq!(shared.get(), x2apic(2));
}

#[test]
fn physical() {
    assert!(xapic(3, 0, FLAT).matches(&ipi(0, 3)));
    assert!(!xapic(3, 0, FLAT).matches(&ipi(0, 2)));
    assert!(xapic(3, 0, FLAT).matches(&ipi(0, 0xff)));
    assert!(x2apic(3).matches(&ipi(0, 3)));
    assert!(x2apic(3).matches(&ipi(0, u32::MAX)));
    assert!(!x2apic(3).matches(&ipi(0, 0xff)));
    // A device's 0xff is a broadcast, unless that is turned off.
    let device = Irq::fixed(0xff, 0x41);
    assert!(x2apic(3).matches(&device));
    let quiet = Irq {
        source: Source::Device {
            wide_broadcast: false,
        },
        ..device
    };
    assert!(!x2apic(3).matches(&quiet));
    assert!(x2apic(0xff).matches(&quiet));
    // An id that xAPIC has no room for.
    assert!(xapic(0x123, 0, FLAT).matches(&ipi(0, 0x123)));
    assert!(xapic(0x123, 0, FLAT).matches(&ipi(0, 0x23)));
    assert!(!x2apic(0x123).matches(&ipi(0, 0x23)));
    // An xAPIC id that was written.
    let moved = Identity::new(3, 0x70, 0, FLAT, Mode::Xapic, true);
    assert!(moved.matches(&ipi(0, 0x70)));
    assert!(!moved.matches(&ipi(0, 3)));
}

#[test]
fn logical() {
    let to = |dest| Irq {
        logical: true,
        ..ipi(0, dest)
    };
    let flat = xapic(0, 0b0010_0000, FLAT);
    assert!(flat.matches(&to(0b0110_0000)));
    assert!(!flat.matches(&to(0b1101_1111)));
    assert!(flat.matches(&to(0xff)));
    let cluster = xapic(0, 0x34, LogicalModel::Cluster);
    assert!(cluster.matches(&to(0x3c)));
    assert!(!cluster.matches(&to(0x3b)));
    assert!(!cluster.matches(&to(0x24)));
    assert!(cluster.matches(&to(0xff)));
    assert!(!xapic(0, 0x34, LogicalModel::Reserved).matches(&to(0x34)));
    let wide = x2apic(0x25);
    assert!(wide.matches(&to(0x0002_0020)));
    assert!(wide.matches(&to(0x0002_ffff)));
    assert!(!wide.matches(&to(0x0002_ffdf)));
    assert!(!wide.matches(&to(0x0001_0020)));
    assert!(wide.matches(&to(u32::MAX)));
}

#[test]
fn shorthands() {
    let with = |shorthand| Irq {
        shorthand,
        ..ipi(3, 0x77)
    };
    for (shorthand, me, other) in [
        (Shorthand::Me, true, false),
        (Shorthand::All, true, true),
        (Shorthand::Others, false, true),
    ] {
        assert_eq!(x2apic(3).matches(&with(shorthand)), me, "{shorthand:?}");
        assert_eq!(x2apic(4).matches(&with(shorthand)), other, "{shorthand:?}");
    }
    let disabled = Identity::new(4, 4, 0xff, FLAT, Mode::Disabled, true);
    assert!(!disabled.matches(&with(Shorthand::All)));
    assert!(!disabled.matches(&ipi(0, 4)));
}

#[test]
fn status_codes() {
    let irq = Irq::fixed(1, 0x41);
    let cpus = [Cpu::new(x2apic(1)), Cpu::new(x2apic(2))];
    let one = deliver(&irq, cpus.iter());
    assert_eq!((one.status(), one.line_status()), (1, 1));
    assert_eq!(*cpus[0].got.borrow(), [(DeliveryMode::Fixed, 0x41, false)]);
    let nobody = deliver(&Irq::fixed(7, 0x41), cpus.iter());
    assert_eq!((nobody.status(), nobody.line_status()), (-1, -1));
    assert!(nobody.nobody());
    let all = deliver(&Irq::fixed(0xff, 0x41), cpus.iter());
    assert_eq!((all.status(), all.line_status()), (2, 2));
    let again = [Cpu {
        answer: Posted::Coalesced,
        ..Cpu::new(x2apic(1))
    }];
    let coalesced = deliver(&irq, again.iter());
    assert_eq!((coalesced.status(), coalesced.line_status()), (1, 0));
    // Software disabled: there, but takes no fixed interrupt; NMI and start-up it does take.
    let off = [Cpu::new(Identity::new(1, 1, 0, FLAT, Mode::X2apic, false))];
    let blocked = deliver(&irq, off.iter());
    assert_eq!((blocked.status(), blocked.line_status()), (0, 0));
    let lowest = Irq {
        mode: DeliveryMode::LowestPriority,
        ..irq
    };
    assert_eq!(deliver(&lowest, off.iter()).status(), 0);
    for mode in [
        DeliveryMode::Nmi,
        DeliveryMode::Init,
        DeliveryMode::Startup,
        DeliveryMode::Smi,
    ] {
        assert_eq!(deliver(&Irq { mode, ..irq }, off.iter()).status(), 1);
        assert_eq!(off[0].got.borrow().last(), Some(&(mode, 0x41, false)));
    }
    for mode in [DeliveryMode::ExtInt, DeliveryMode::Reserved] {
        assert_eq!(deliver(&Irq { mode, ..irq }, cpus.iter()).status(), 0);
    }
    // De-asserted.
    let down = Irq {
        level: true,
        assert: false,
        mode: DeliveryMode::Init,
        ..irq
    };
    assert_eq!(deliver(&down, off.iter()).status(), 0);
}

#[test]
fn lowest_priority_spreads_vectors_and_keeps_each() {
    let cpus: Vec<Cpu> = (0..4).map(|i| Cpu::new(xapic(i, 1 << i, FLAT))).collect();
    let irq = |vector| Irq {
        mode: DeliveryMode::LowestPriority,
        logical: true,
        vector,
        ..Irq::fixed(0b1110, 0)
    };
    for vector in 0x30..0x60 {
        for _ in 0..2 {
            assert_eq!(deliver(&irq(vector), cpus.iter()).status(), 1);
        }
    }
    let counts: Vec<usize> = cpus.iter().map(|c| c.got.borrow().len()).collect();
    assert_eq!(counts, [0, 32, 32, 32]);
    for cpu in &cpus[1..] {
        assert!(cpu.got.borrow().chunks(2).all(|pair| pair[0] == pair[1]));
    }
    // The redirection hint of an MSI does the same; a physical broadcast is for everybody.
    let hint = Irq {
        mode: DeliveryMode::Fixed,
        redirect_hint: true,
        ..irq(0x40)
    };
    assert_eq!(deliver(&hint, cpus.iter()).status(), 1);
    for dest in [0xff, u32::MAX] {
        let all = Irq {
            mode: DeliveryMode::LowestPriority,
            ..Irq::fixed(dest, 0x40)
        };
        assert!(!all.lowest_priority());
    }
    let all = Irq {
        mode: DeliveryMode::LowestPriority,
        ..Irq::fixed(0xff, 0x40)
    };
    assert_eq!(deliver(&all, cpus.iter()).status(), 4);
}

fn any_identity() -> impl Strategy<Value = Identity> {
    let id = prop_oneof![0u32..20, 0xf0u32..0x110, any::<u32>()];
    (id, any::<u8>(), any::<u8>(), 0..3, 0..3, any::<bool>()).prop_map(
        |(id, xid, ldr, model, mode, on)| {
            let model = [FLAT, LogicalModel::Cluster, LogicalModel::Reserved][model as usize];
            let mode = [Mode::Disabled, Mode::Xapic, Mode::X2apic][mode as usize];
            let xid = if xid % 2 == 0 { id as u8 } else { xid };
            Identity::new(id, xid, ldr, model, mode, on)
        },
    )
}

fn any_irq() -> impl Strategy<Value = Irq> {
    let dest = prop_oneof![
        0u32..20,
        Just(0xff),
        Just(u32::MAX),
        0xf0u32..0x110,
        any::<u32>(),
        (0u32..3, any::<u16>()).prop_map(|(c, m)| c << 16 | u32::from(m))
    ];
    let source = prop_oneof![
        any::<bool>().prop_map(|wide_broadcast| Source::Device { wide_broadcast }),
        (0u32..20).prop_map(|id| Source::Ipi { id }),
    ];
    (
        dest,
        any::<u8>(),
        0u32..8,
        any::<[bool; 4]>(),
        0u32..4,
        source,
    )
        .prop_map(|(dest, vector, mode, b, sh, source)| Irq {
            dest,
            vector,
            mode: DeliveryMode::from_low3(mode),
            logical: b[0],
            level: b[1],
            assert: b[2],
            redirect_hint: b[3],
            shorthand: match source {
                Source::Device { .. } => Shorthand::None,
                Source::Ipi { .. } => Shorthand::from_low2(sh),
            },
            source,
        })
}

/// The rules one by one, without the short cuts.
fn naive(i: &Identity, irq: &Irq) -> bool {
    if i.mode() == Mode::Disabled {
        return false;
    }
    let sender = match irq.source {
        Source::Ipi { id } => Some(id),
        Source::Device { .. } => None,
    };
    match irq.shorthand {
        Shorthand::Me => return sender == Some(i.id()),
        Shorthand::All => return true,
        Shorthand::Others => return sender != Some(i.id()),
        Shorthand::None => {}
    }
    let mut dest = irq.dest;
    if i.mode() == Mode::X2apic {
        if dest == 0xff
            && irq.source
                == (Source::Device {
                    wide_broadcast: true,
                })
        {
            dest = 0xffff_ffff;
        }
        if dest == 0xffff_ffff {
            return true;
        }
        if !irq.logical {
            return dest == i.id();
        }
        let ldr = ((u64::from(i.id()) >> 4) << 16 & 0xffff_0000) as u32 | 1 << (i.id() % 16);
        return dest & 0xffff_0000 == ldr & 0xffff_0000 && dest & ldr & 0xffff != 0;
    }
    if dest == 0xff {
        return true;
    }
    if !irq.logical {
        return dest
            == if dest <= 0xff {
                i.xapic_id().into()
            } else {
                i.id()
            };
    }
    let ldr = u32::from(i.logical_id());
    match i.model() {
        LogicalModel::Flat => dest & ldr != 0,
        LogicalModel::Cluster => dest / 16 == ldr / 16 && (dest % 16) & (ldr % 16) != 0,
        LogicalModel::Reserved => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn delivery_agrees_with_the_naive_matcher(ids in prop::collection::vec(any_identity(), 0..12), irq in any_irq()) {
        let cpus: Vec<Cpu> = ids.iter().map(|i| Cpu::new(*i)).collect();
        let done = deliver(&irq, cpus.iter());
        let matching: Vec<usize> = (0..ids.len()).filter(|n| naive(&ids[*n], &irq)).collect();
        for (n, id) in ids.iter().enumerate() {
            prop_assert_eq!(id.matches(&irq), matching.contains(&n), "{:?} {:?}", id, irq);
        }
        let got: Vec<usize> = (0..ids.len()).filter(|n| !cpus[*n].got.borrow().is_empty()).collect();
        let fixed = matches!(irq.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        let dead = irq.level && !irq.assert || matches!(irq.mode, DeliveryMode::Reserved | DeliveryMode::ExtInt);
        prop_assert_eq!(done.status() == -1, matching.is_empty());
        let able: Vec<usize> = matching.iter().copied().filter(|n| ids[*n].accepts_fixed()).collect();
        if dead {
            prop_assert!(got.is_empty());
        } else if irq.lowest_priority() {
            prop_assert_eq!(got.len(), usize::from(!able.is_empty()));
            prop_assert!(got.iter().all(|n| able.contains(n)));
        } else if fixed {
            prop_assert_eq!(&got, &able);
        } else {
            prop_assert_eq!(&got, &matching);
        }
        prop_assert_eq!(done.status(), if matching.is_empty() { -1 } else { got.len() as i32 });
        for n in got {
            let mode = if fixed { DeliveryMode::Fixed } else { irq.mode };
            prop_assert_eq!(&*cpus[n].got.borrow(), &[(mode, irq.vector, irq.level)]);
        }
        if let Some(id) = irq.unicast() {
            // What the short cut promises, where ids are unique.
            let candidates = ids.iter().filter(|i| i.matches(&irq));
            for c in candidates {
                prop_assert!(c.id() == id || u32::from(c.xapic_id()) == id);
            }
        }
    }
}

fn lapic() -> Lapic {
    let config = Config {
        id: 0,
        bsp: true,
        bus_cycle_ns: 1,
        lint0_extint: false,
    };
    let features = Features {
        x2apic: true,
        tsc_deadline: true,
        cmci: false,
        directed_eoi: false,
        suppress_eoi: false,
        pmc_masks: false,
        phys_bits: 48,
    };
    let mut l = Lapic::new(config, features);
    let _ = l.mmio_write(0xf0, 4, 0x1ff, || 0);
    l
}

#[test]
fn inbox_vectors() {
    let (inbox, mut l) = (Inbox::new(), lapic());
    assert!(inbox.is_empty());
    assert_eq!(
        inbox.post(0x41, true),
        Post {
            fresh: true,
            wake: true
        }
    );
    assert_eq!(
        inbox.post(0x41, true),
        Post {
            fresh: false,
            wake: false
        }
    );
    assert_eq!(
        inbox.post(0xfe, false),
        Post {
            fresh: true,
            wake: false
        }
    );
    assert!(!inbox.is_empty());
    assert_eq!(inbox.drain(&mut l), Signals::default());
    assert!(inbox.is_empty());
    assert_eq!(l.ack(), Some(0xfe));
    assert_eq!(l.eoi(), None);
    assert_eq!(l.ack(), Some(0x41));
    assert_eq!(l.eoi(), Some(0x41));
    assert_eq!(l.ack(), None);
    // The last trigger mode counts.
    inbox.post(0x41, true);
    inbox.post(0x41, false);
    inbox.drain(&mut l);
    l.ack();
    assert_eq!(l.eoi(), None);
    // Illegal vectors are errors, not requests.
    inbox.post(3, false);
    inbox.post(0x33, false);
    inbox.drain(&mut l);
    assert_eq!(l.ack(), Some(0x33));
    assert_eq!((l.eoi(), l.highest_request()), (None, None));
    let _ = l.mmio_write(0x280, 4, 0, || 0);
    assert_eq!(l.mmio_read(0x280, 4, || 0), 0x40);
}

#[test]
fn inbox_signals() {
    let (inbox, mut l) = (Inbox::new(), lapic());
    for _ in 0..3 {
        inbox.post_nmi();
    }
    assert!(!inbox.post_nmi().fresh);
    inbox.post_smi();
    inbox.post_timer();
    inbox.post_extint();
    assert!(!inbox.has_init_or_sipi());
    inbox.post_sipi(0x12);
    assert!(inbox.has_init_or_sipi());
    inbox.post_sipi(0x9a);
    let all = Signals {
        nmi: 2,
        smi: true,
        timer: true,
        extint: true,
        sipi: Some(0x9a),
        init: false,
    };
    assert_eq!(inbox.drain(&mut l), all);
    assert_eq!(inbox.drain(&mut l), Signals::default());
    // INIT cancels what came before it, and keeps what comes after.
    inbox.post_sipi(0x55);
    assert!(inbox.post_init().fresh);
    assert_eq!(
        inbox.drain(&mut l),
        Signals {
            init: true,
            ..Signals::default()
        }
    );
    inbox.post_init();
    inbox.post_sipi(0x66);
    assert_eq!(
        inbox.drain(&mut l),
        Signals {
            init: true,
            sipi: Some(0x66),
            ..Signals::default()
        }
    );
}

#[test]
fn inbox_messages() {
    let (inbox, mut l) = (Inbox::new(), lapic());
    for mode in [DeliveryMode::Reserved, DeliveryMode::ExtInt] {
        assert_eq!(inbox.post_message(mode, 0x41, false), None);
        assert!(inbox.is_empty());
    }
    for (mode, want) in [
        (
            DeliveryMode::Nmi,
            Signals {
                nmi: 1,
                ..Signals::default()
            },
        ),
        (
            DeliveryMode::Smi,
            Signals {
                smi: true,
                ..Signals::default()
            },
        ),
        (
            DeliveryMode::Init,
            Signals {
                init: true,
                ..Signals::default()
            },
        ),
        (
            DeliveryMode::Startup,
            Signals {
                sipi: Some(0x41),
                ..Signals::default()
            },
        ),
        (DeliveryMode::Fixed, Signals::default()),
        (DeliveryMode::LowestPriority, Signals::default()),
    ] {
        assert!(inbox
            .post_message(mode, 0x41, false)
            .is_some_and(|p| p.fresh && p.wake));
        assert_eq!(inbox.drain(&mut l), want);
    }
    assert_eq!(l.ack(), Some(0x41));
}

/// Several threads post, each its own vectors and each vector again only when it has been taken;
/// so every post is one interrupt, and none may be lost or come twice. A level-triggered one must
/// arrive as such. The owner looks only when `is_empty` says that there is something, so a missing
/// summary bit would be a hang.
#[test]
fn nothing_is_lost_between_threads() {
    const ROUNDS: u32 = 40_000;
    const POSTERS: u8 = 3;
    const VECTORS: [u8; 4] = [0x20, 0x3c, 0x90, 0xf0];
    let inbox = Inbox::new();
    let busy: Vec<AtomicBool> = (0..256).map(|_| AtomicBool::new(false)).collect();
    let stale = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let mut taken = vec![0u32; 256];
    let mut wrong_trigger = 0;
    let total = ROUNDS * u32::from(POSTERS) * VECTORS.len() as u32;
    std::thread::scope(|scope| {
        for poster in 0..POSTERS {
            let (inbox, busy, stale, over) = (&inbox, &busy, &stale, &over);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    for base in VECTORS {
                        let vector = base + poster;
                        while busy[usize::from(vector)].load(Ordering::Acquire) {
                            if over.load(Ordering::Acquire) {
                                return;
                            }
                            std::thread::yield_now();
                        }
                        busy[usize::from(vector)].store(true, Ordering::Release);
                        if !inbox.post(vector, poster == 1).fresh {
                            stale.store(true, Ordering::Release);
                        }
                    }
                }
            });
        }
        let mut l = lapic();
        let mut sum = 0;
        let end = Instant::now() + Duration::from_secs(25);
        while sum < total && Instant::now() < end {
            if inbox.is_empty() {
                std::thread::yield_now();
                continue;
            }
            inbox.drain(&mut l);
            while let Some(vector) = l.ack() {
                // No panic in here: the posters would wait for ever.
                wrong_trigger += u32::from(l.eoi().is_some() != (vector & 3 == 1));
                taken[usize::from(vector)] += 1;
                sum += 1;
                busy[usize::from(vector)].store(false, Ordering::Release);
            }
        }
        over.store(true, Ordering::Release);
    });
    assert!(inbox.is_empty());
    assert!(!stale.into_inner());
    assert_eq!(wrong_trigger, 0);
    for base in VECTORS {
        for poster in 0..POSTERS {
            assert_eq!(taken[usize::from(base + poster)], ROUNDS);
        }
    }
}

/// NMIs and start-ups from several threads: the owner sees each start-up vector in order, and at
/// most as many NMIs as were sent.
#[test]
fn signals_between_threads() {
    const ROUNDS: u32 = 20_000;
    let inbox = Inbox::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..ROUNDS {
                inbox.post_nmi();
                inbox.post_sipi((i / 100) as u8);
            }
            done.store(true, Ordering::Release);
        });
        let mut l = lapic();
        let (mut nmis, mut last) = (0u32, 0u8);
        loop {
            let over = done.load(Ordering::Acquire);
            let s = inbox.drain(&mut l);
            assert!(s.nmi <= 2);
            nmis += u32::from(s.nmi);
            if let Some(v) = s.sipi {
                assert!(v >= last);
                last = v;
            }
            if over {
                break;
            }
        }
        assert!((1..=ROUNDS).contains(&nmis));
        assert_eq!(last, ((ROUNDS - 1) / 100) as u8);
        assert!(inbox.is_empty());
    });
}
