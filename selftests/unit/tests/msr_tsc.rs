// SPDX-License-Identifier: GPL-2.0

//! The guest's time stamp counter: the kernel's tsc_msrs_test step by step, scaling against wide
//! arithmetic, and vCPUs that are written one after the other.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::msr::tsc::{cycles, Ratio, Sync, Tsc};
use rkvm_unit::arch::x86::model::msr::Origin::{Guest, Host};

const KHZ: u32 = 2_500_000;

fn plain() -> Tsc {
    Tsc {
        offset: 0,
        adjust: 0,
        ratio: Ratio::one(32),
    }
}

/// What tsc_msrs_test does, with a host counter that stands still.
#[test]
fn kernels_tsc_msrs_test() {
    const STEP: u64 = 4 << 30;
    const HOST_ADJUST: u64 = 64 << 30;
    let now = 0x1234_5678_9abc;
    let mut vm = Sync::default();
    let mut t = plain();
    t.offset = vm.write(&t, 0, now, 0, KHZ, true);
    assert_eq!((t.read(now), t.adjust), (0, 0));
    t.guest_write(STEP, now);
    assert_eq!((t.read(now), t.adjust), (STEP, STEP));
    t.write_adjust(2 * STEP, Guest);
    assert_eq!((t.read(now), t.adjust), (2 * STEP, 2 * STEP));
    // User space's write moves the counter only.
    t.offset = vm.write(&t, HOST_ADJUST + 2 * STEP, now, 0, KHZ, false);
    assert_eq!((t.read(now), t.adjust), (HOST_ADJUST + 2 * STEP, 2 * STEP));
    t.write_adjust(123_456 << 30, Host);
    assert_eq!(
        (t.read(now), t.adjust),
        (HOST_ADJUST + 2 * STEP, 123_456 << 30)
    );
    t.write_adjust(2 * STEP, Host);
    t.write_adjust(3 * STEP, Guest);
    assert_eq!((t.read(now), t.adjust), (HOST_ADJUST + 3 * STEP, 3 * STEP));
    t.guest_write(4 * STEP, now);
    assert_eq!(t.read(now), 4 * STEP);
    assert_eq!(t.adjust, (4 * STEP).wrapping_sub(HOST_ADJUST));
}

#[test]
fn vcpus_written_in_turn_agree() {
    let t = plain();
    let at = |ns: u64| cycles(ns, KHZ).wrapping_add(0x7000_0000_0000);
    let mut vm = Sync::default();
    let first = vm.write(&t, 0, at(1000), 1000, KHZ, true);
    // Created 3 ms and 10 minutes later.
    assert_eq!(vm.write(&t, 0, at(3_000_000), 3_000_000, KHZ, true), first);
    assert_eq!(
        vm.write(&t, 0, at(600_000_000_000), 600_000_000_000, KHZ, true),
        first
    );

    // A restore: the same value to each, milliseconds apart.
    let mut vm = Sync::default();
    let saved = 0x9_8765_4321;
    let a = vm.write(&t, saved, at(0), 0, KHZ, false);
    assert_eq!(t.offset_for(saved, at(0)), a);
    assert_eq!(vm.write(&t, saved, at(5_000_000), 5_000_000, KHZ, false), a);
    assert_eq!(
        vm.write(&t, saved, at(900_000_000), 900_000_000, KHZ, false),
        a
    );
    // Counters that were saved one after the other, too.
    assert_eq!(
        vm.write(
            &t,
            saved + 40_000_000,
            at(20_000_000),
            20_000_000,
            KHZ,
            false
        ),
        a
    );
    // A second and more away it is meant.
    let b = vm.write(&t, saved, at(1_100_000_000), 1_100_000_000, KHZ, false);
    assert_eq!(b, t.offset_for(saved, at(1_100_000_000)));
    assert_ne!(a, b);
    let c = vm.write(
        &t,
        saved + 3_000_000_000,
        at(1_100_000_000),
        1_100_000_000,
        KHZ,
        false,
    );
    assert_eq!(c, t.offset_for(saved + 3_000_000_000, at(1_100_000_000)));
    // Another frequency is another counter.
    let d = vm.write(&t, 0, at(1_100_000_000), 1_100_000_000, KHZ / 2, true);
    assert_eq!(d, t.offset_for(0, at(1_100_000_000)));
}

#[test]
fn ratios() {
    assert_eq!(Ratio::new(1000, 1000, 32, 8), Some(Ratio::one(32)));
    assert_eq!(Ratio::new(3000, 2000, 32, 8).unwrap().value, 0x1_8000_0000);
    assert_eq!(Ratio::new(1, 3, 48, 16).unwrap().value, 0x5555_5555_5555);
    for (guest, host) in [(0, 1), (1, 0), (256, 1)] {
        assert_eq!(Ratio::new(guest, host, 32, 8), None, "{guest}/{host}");
    }
    assert!(Ratio::new(255, 1, 32, 8).is_some());
    assert!(Ratio::new(65_535, 1, 48, 16).is_some() && Ratio::new(65_536, 1, 48, 16).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 50_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arithmetic(
        guest in 100_000u32..6_000_000,
        host in 100_000u32..6_000_000,
        tsc in any::<u64>(),
        value in any::<u64>(),
        later in 0u64..1 << 40,
        ns in any::<u64>(),
        vmx in any::<bool>(),
    ) {
        let (fraction, int) = if vmx { (48, 16) } else { (32, 8) };
        let r = Ratio::new(guest, host, fraction, int).unwrap();
        prop_assert_eq!(u128::from(r.value), (u128::from(guest) << fraction) / u128::from(host));
        let wide = (u128::from(tsc) * u128::from(r.value)) >> fraction;
        prop_assert_eq!(r.scale(tsc), wide as u64);

        // Whatever is written is read at that moment, and what passes later is scaled.
        let mut t = Tsc { offset: 0, adjust: 7, ratio: r };
        t.guest_write(value, tsc);
        prop_assert_eq!(t.read(tsc), value);
        let passed = t.read(tsc.wrapping_add(later)).wrapping_sub(value);
        if tsc.checked_add(later).is_some() {
            let exact = (u128::from(later) * u128::from(r.value)) >> fraction;
            prop_assert!((u128::from(passed)).abs_diff(exact) <= 1);
        }
        prop_assert_eq!(t.until(value.wrapping_add(5), tsc), 5);
        // TSC_ADJUST carries exactly what the guest has moved the counter by.
        let before = t;
        t.write_adjust(value ^ tsc, Guest);
        prop_assert_eq!(
            t.offset.wrapping_sub(before.offset),
            t.adjust.wrapping_sub(before.adjust)
        );
        let want = u128::from(ns) * u128::from(guest) / 1_000_000;
        prop_assert!((u128::from(cycles(ns, guest))).abs_diff(want & u128::from(u64::MAX)) <= 1);
    }
}
