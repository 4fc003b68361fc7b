// SPDX-License-Identifier: GPL-2.0

//! The local APIC's timer (SDM vol. 3A 12.5.4).

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::lapic::regs::{lvt, offset};
use rkvm_unit::arch::x86::model::lapic::*;

const VECTOR: u32 = 0xec;
const FEATURES: Features = Features {
    x2apic: true,
    tsc_deadline: true,
    cmci: false,
    directed_eoi: false,
    suppress_eoi: false,
    pmc_masks: false,
    phys_bits: 48,
};

fn lapic(bus_cycle_ns: u32, mode: u32) -> Lapic {
    let config = Config {
        id: 0,
        bsp: true,
        bus_cycle_ns,
        lint0_extint: false,
    };
    let mut l = Lapic::new(config, FEATURES);
    let _ = write(&mut l, offset::SVR, 0x1ff, 0);
    let _ = write(&mut l, offset::LVT_TIMER, mode | VECTOR, 0);
    let _ = write(&mut l, offset::TDCR, 0xb, 0);
    l
}

fn write(l: &mut Lapic, off: u16, v: u32, now: u64) -> Effect {
    l.mmio_write(off, 4, v.into(), || now)
}

fn count(l: &mut Lapic, now: u64) -> u64 {
    l.mmio_read(offset::TMCCT, 4, || now)
}

fn fire(l: &mut Lapic, ns: u64) -> Timer {
    l.timer_fired(Now { ns, tsc: 0 })
}

fn fire_tsc(l: &mut Lapic, tsc: u64) -> Timer {
    l.timer_fired(Now { ns: 0, tsc })
}

/// Whether the timer's interrupt is pending; if so, it is taken and ended.
fn ticked(l: &mut Lapic) -> bool {
    let vector = l.ack();
    l.eoi();
    assert!(vector.is_none() || vector == Some(VECTOR as u8));
    vector.is_some()
}

const PERIODIC: u32 = lvt::PERIODIC;
const DEADLINE: u32 = lvt::TSC_DEADLINE;

#[test]
fn divisors() {
    // SDM vol. 3A figure 12-10.
    for (tdcr, by) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        for bus in [1, 40] {
            let mut l = lapic(bus, 0);
            let _ = write(&mut l, offset::TDCR, tdcr, 0);
            let want = 1000 + 7 * by * u64::from(bus);
            assert_eq!(
                write(&mut l, offset::TMICT, 7, 1000),
                Effect::Timer(Timer::ArmNs(want))
            );
            assert_eq!(count(&mut l, 1000), 7);
            assert_eq!(count(&mut l, want - 1), 1);
            assert_eq!(count(&mut l, want), 0);
        }
    }
    // Only bits 3, 1 and 0 are there.
    let mut l = lapic(1, 0);
    let _ = write(&mut l, offset::TDCR, u32::MAX, 0);
    assert_eq!(l.mmio_read(offset::TDCR, 4, || 0), 0xb);
}

#[test]
fn one_shot() {
    let mut l = lapic(1, 0);
    let armed = Effect::Timer(Timer::ArmNs(1500));
    assert_eq!(write(&mut l, offset::TMICT, 500, 1000), armed);
    assert_eq!(l.timer(), Timer::ArmNs(1500));
    // Too early: only arms again.
    assert_eq!(fire(&mut l, 1499), Timer::ArmNs(1500));
    assert!(!ticked(&mut l));
    assert_eq!(fire(&mut l, 1500), Timer::Cancel);
    assert!(ticked(&mut l));
    assert_eq!(count(&mut l, 1500), 0);
    assert_eq!(l.mmio_read(offset::TMICT, 4, || 0), 500);
    // Once.
    assert_eq!(fire(&mut l, 9999), Timer::Cancel);
    assert!(!ticked(&mut l));
    // A firing for a setting that has changed.
    let _ = write(&mut l, offset::TMICT, 500, 10_000);
    let _ = write(&mut l, offset::TMICT, 800, 10_400);
    assert_eq!(fire(&mut l, 10_500), Timer::ArmNs(11_200));
    assert_eq!(
        write(&mut l, offset::TMICT, 0, 10_600),
        Effect::Timer(Timer::Cancel)
    );
    assert_eq!(fire(&mut l, 20_000), Timer::Cancel);
    assert!(!ticked(&mut l));
    assert_eq!(count(&mut l, 20_000), 0);
}

#[test]
fn masked_expiries_are_lost() {
    for (mode, set) in [(0, 300_000), (PERIODIC, 300_000)] {
        let mut l = lapic(1, mode | lvt::MASKED);
        let _ = write(&mut l, offset::TMICT, set, 0);
        let _ = fire(&mut l, 300_000);
        let _ = write(&mut l, offset::LVT_TIMER, mode | VECTOR, 0);
        assert!(!ticked(&mut l));
        assert_eq!(count(&mut l, 300_001), if mode == 0 { 0 } else { 299_999 });
    }
    // Software disabled: masked as well.
    let mut l = lapic(1, 0);
    let _ = write(&mut l, offset::TMICT, 5, 0);
    let _ = write(&mut l, offset::SVR, 0xff, 0);
    assert_eq!(fire(&mut l, 5), Timer::Cancel);
    assert!(!ticked(&mut l));
}

#[test]
fn periodic() {
    let mut l = lapic(1, PERIODIC);
    assert_eq!(
        write(&mut l, offset::TMICT, 1_000_000, 77),
        Effect::Timer(Timer::ArmNs(1_000_077))
    );
    assert_eq!(count(&mut l, 77), 1_000_000);
    assert_eq!(fire(&mut l, 1_000_080), Timer::ArmNs(2_000_077));
    assert!(ticked(&mut l));
    assert_eq!(count(&mut l, 1_000_080), 999_997);
    // After a long stop: one interrupt, and in phase.
    assert_eq!(
        fire(&mut l, 1_000_000_000_000),
        Timer::ArmNs(1_000_000_000_077)
    );
    assert!(ticked(&mut l));
    assert!(!ticked(&mut l));
    // Due, but not noticed: the count has reloaded.
    assert_eq!(count(&mut l, 1_000_000_000_077), 1_000_000);
    assert_eq!(count(&mut l, 1_000_000_000_078), 999_999);
}

#[test]
fn short_periods_are_stretched() {
    let mut l = lapic(1, PERIODIC);
    assert_eq!(
        write(&mut l, offset::TMICT, 1, 0),
        Effect::Timer(Timer::ArmNs(MIN_PERIOD_NS))
    );
    assert_eq!(count(&mut l, 0), 1);
    assert_eq!(fire(&mut l, MIN_PERIOD_NS), Timer::ArmNs(2 * MIN_PERIOD_NS));
    // One-shot is not; turned into periodic it is from the next expiry on.
    let mut l = lapic(1, 0);
    assert_eq!(
        write(&mut l, offset::TMICT, 10, 0),
        Effect::Timer(Timer::ArmNs(10))
    );
    assert_eq!(
        write(&mut l, offset::LVT_TIMER, PERIODIC | VECTOR, 0),
        Effect::None
    );
    assert_eq!(fire(&mut l, 10), Timer::ArmNs(10 + MIN_PERIOD_NS));
    assert!(ticked(&mut l));
}

#[test]
fn the_divisor_can_change_while_it_counts() {
    let mut l = lapic(1, 0);
    let _ = write(&mut l, offset::TMICT, 1000, 0);
    // 600 counts are left: by 4 they take 2400 ns.
    assert_eq!(
        write(&mut l, offset::TDCR, 1, 400),
        Effect::Timer(Timer::ArmNs(2800))
    );
    assert_eq!(count(&mut l, 400), 600);
    assert_eq!(write(&mut l, offset::TDCR, 1, 500), Effect::None);
    assert_eq!(fire(&mut l, 2799), Timer::ArmNs(2800));
    // Due, but not noticed: stays due.
    assert_eq!(
        write(&mut l, offset::TDCR, 0, 3000),
        Effect::Timer(Timer::ArmNs(2800))
    );
    assert_eq!(fire(&mut l, 3000), Timer::Cancel);
    assert!(ticked(&mut l));
    // Not running.
    assert_eq!(write(&mut l, offset::TDCR, 2, 3000), Effect::None);
}

#[test]
fn tsc_deadline() {
    let mut l = lapic(1, DEADLINE);
    assert_eq!(l.timer_mode(), TimerMode::TscDeadline);
    // The counters are dead.
    assert_eq!(write(&mut l, offset::TMICT, 500, 0), Effect::None);
    assert_eq!(l.mmio_read(offset::TMICT, 4, || 0), 0);
    assert_eq!(
        l.set_tsc_deadline(5000, || 4000),
        Effect::Timer(Timer::ArmTsc(5000))
    );
    assert_eq!(count(&mut l, 0), 0);
    assert_eq!((l.tsc_deadline(), l.timer()), (5000, Timer::ArmTsc(5000)));
    assert_eq!(fire_tsc(&mut l, 4999), Timer::ArmTsc(5000));
    assert!(!ticked(&mut l));
    assert_eq!(fire_tsc(&mut l, 5000), Timer::Cancel);
    assert!(ticked(&mut l));
    // Disarmed by its expiry.
    assert_eq!((l.tsc_deadline(), l.timer()), (0, Timer::Cancel));
    assert_eq!(fire_tsc(&mut l, u64::MAX), Timer::Cancel);
    assert!(!ticked(&mut l));
    // In the past: at once.
    assert_eq!(
        l.set_tsc_deadline(5000, || 5000),
        Effect::Timer(Timer::Cancel)
    );
    assert!(ticked(&mut l));
    assert_eq!(l.tsc_deadline(), 0);
    // 0 disarms.
    let _ = l.set_tsc_deadline(9000, || 5000);
    assert_eq!(
        l.set_tsc_deadline(0, || panic!()),
        Effect::Timer(Timer::Cancel)
    );
    assert_eq!(fire_tsc(&mut l, 9000), Timer::Cancel);
    assert!(!ticked(&mut l));
}

#[test]
fn modes_change() {
    // Between one-shot and periodic the count goes on, into and out of TSC deadline it stops.
    let mut l = lapic(1, 0);
    let _ = write(&mut l, offset::TMICT, 300_000, 0);
    assert_eq!(
        write(&mut l, offset::LVT_TIMER, PERIODIC | VECTOR, 1000),
        Effect::None
    );
    assert_eq!(fire(&mut l, 300_000), Timer::ArmNs(600_000));
    assert!(ticked(&mut l));
    assert_eq!(
        write(&mut l, offset::LVT_TIMER, DEADLINE | VECTOR, 0),
        Effect::Timer(Timer::Cancel)
    );
    assert_eq!(l.mmio_read(offset::TMICT, 4, || 0), 0);
    assert_eq!(fire(&mut l, 600_000), Timer::Cancel);
    let _ = l.set_tsc_deadline(500, || 0);
    assert_eq!(
        write(&mut l, offset::LVT_TIMER, VECTOR, 0),
        Effect::Timer(Timer::Cancel)
    );
    assert_eq!(l.tsc_deadline(), 0);
    assert_eq!(l.set_tsc_deadline(500, || 0), Effect::None);
    assert_eq!(l.tsc_deadline(), 0);
    assert!(!ticked(&mut l));
    // The reserved mode does not run.
    let _ = write(&mut l, offset::LVT_TIMER, DEADLINE | PERIODIC | VECTOR, 0);
    assert_eq!(l.timer_mode(), TimerMode::Reserved);
    assert_eq!(write(&mut l, offset::TMICT, 10, 0), Effect::None);
    assert_eq!(l.set_tsc_deadline(500, || 600), Effect::None);
    assert_eq!(l.timer(), Timer::Cancel);
    // Without the feature the bit is not there.
    let mut l = lapic(1, DEADLINE);
    let none = Features {
        tsc_deadline: false,
        ..FEATURES
    };
    assert_eq!(l.set_features(none), Effect::Timer(Timer::Cancel));
    assert_eq!(l.timer_mode(), TimerMode::OneShot);
    let _ = write(&mut l, offset::LVT_TIMER, DEADLINE | VECTOR, 0);
    assert_eq!(l.mmio_read(offset::LVT_TIMER, 4, || 0), u64::from(VECTOR));
}

#[test]
fn resets_stop_it() {
    for init in [false, true] {
        let mut l = lapic(1, DEADLINE);
        let _ = l.set_tsc_deadline(500, || 0);
        if init {
            l.init();
        } else {
            l.reset();
        }
        assert_eq!(
            (l.timer(), l.tsc_deadline(), l.timer_mode()),
            (Timer::Cancel, 0, TimerMode::OneShot)
        );
    }
}

#[test]
fn an_illegal_vector_is_an_error() {
    let mut l = lapic(1, 0);
    let _ = write(&mut l, offset::LVT_TIMER, 15, 0);
    let _ = write(&mut l, offset::TMICT, 1, 0);
    let _ = fire(&mut l, 1);
    assert_eq!(l.highest_request(), None);
    let _ = write(&mut l, offset::ESR, 0, 0);
    assert_eq!(l.mmio_read(offset::ESR, 4, || 0), 0x40);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A shell that fires at the armed time plus some delay, and stops for long now and then: the
    /// next expiry is never in the past, and whole periods after the first; each firing gives one
    /// interrupt, and the number of expiries is what the time allows.
    #[test]
    fn periodic_keeps_its_phase(
        initial in 1u32..,
        tdcr in 0u32..12,
        bus in 1u32..100,
        start in 0u64..1 << 50,
        delays in prop::collection::vec(prop_oneof![4 => 0u64..300_000, 1 => 0u64..1 << 45], 1..50),
    ) {
        let mut l = lapic(bus, PERIODIC);
        let _ = write(&mut l, offset::TDCR, tdcr, 0);
        let Effect::Timer(Timer::ArmNs(first)) = write(&mut l, offset::TMICT, initial, start) else {
            panic!("not armed")
        };
        let period = first - start;
        prop_assert!(period >= MIN_PERIOD_NS);
        let mut at = first;
        for delay in delays {
            let now = at + delay;
            let shown = count(&mut l, now);
            prop_assert!((1..=u64::from(initial)).contains(&shown));
            let Timer::ArmNs(next) = fire(&mut l, now) else { panic!("not armed") };
            prop_assert!(next > now && next - now <= period);
            prop_assert_eq!((next - first) % period, 0);
            prop_assert_eq!(count(&mut l, now), shown);
            prop_assert!(ticked(&mut l));
            prop_assert!(!ticked(&mut l));
            // Again, at once: nothing is due.
            prop_assert_eq!(fire(&mut l, now), Timer::ArmNs(next));
            prop_assert!(!ticked(&mut l));
            at = next;
        }
    }

    /// The current count goes down from the initial count to 0 in the time that it should take,
    /// against the same in wide integers.
    #[test]
    fn one_shot_counts_down(initial in 1u32.., tdcr in 0usize..8, bus in 1u32..1000, start in 0u64..1 << 50, at in 0.0f64..1.2) {
        let (code, by) = [(0, 2u128), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)][tdcr];
        let mut l = lapic(bus, 0);
        let _ = write(&mut l, offset::TDCR, code, 0);
        let total = u128::from(initial) * by * u128::from(bus);
        let end = start + u64::try_from(total).unwrap();
        prop_assert_eq!(write(&mut l, offset::TMICT, initial, start), Effect::Timer(Timer::ArmNs(end)));
        let passed = (total as f64 * at) as u128;
        let left = total.saturating_sub(passed).div_ceil(by * u128::from(bus));
        prop_assert_eq!(u128::from(count(&mut l, start + passed as u64)), left);
    }
}
