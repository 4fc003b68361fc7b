// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of guest time against the same in wide integers.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::clock::*;

const GHZ3: u32 = 3_000_000;

fn wide(v: u128) -> u64 {
    u64::try_from(v).unwrap_or(u64::MAX)
}

#[test]
fn scale_known_values() {
    // 1 GHz: the identity, as a multiplier of 2^31 and a shift of 1.
    assert_eq!(
        Scale::to_ns(1_000_000),
        Some(Scale {
            mult: 1 << 31,
            shift: 1
        })
    );
    // 2 GHz and 4 GHz halve and quarter.
    assert_eq!(
        Scale::to_ns(2_000_000),
        Some(Scale {
            mult: 1 << 31,
            shift: 0
        })
    );
    assert_eq!(
        Scale::to_ns(4_000_000),
        Some(Scale {
            mult: 1 << 31,
            shift: -1
        })
    );
    // 3 GHz: a third, so two thirds by half.
    assert_eq!(
        Scale::to_ns(GHZ3),
        Some(Scale {
            mult: 0xaaaa_aaaa,
            shift: -1
        })
    );
    assert_eq!(Scale::new(0, 1), None);
    assert_eq!(Scale::new(1, 0), None);
    assert_eq!(Scale::new(1, u64::MAX), None);
    assert_eq!(Scale::new(u64::MAX, 1), None);
    assert!(Scale::new(1, 1 << 30).is_some());
}

#[test]
fn ratios() {
    assert_eq!(TscRatio::new(GHZ3, GHZ3, 32, 8), Some(TscRatio::one(32)));
    assert_eq!(
        TscRatio::new(1_500_000, GHZ3, 48, 16).map(|r| r.ratio),
        Some(1 << 47)
    );
    // 8 bits above the fraction: up to 255.99 times.
    assert!(TscRatio::new(255_000, 1000, 32, 8).is_some());
    assert_eq!(TscRatio::new(256_000, 1000, 32, 8), None);
    assert_eq!(TscRatio::new(0, 1000, 32, 8), None);
    assert_eq!(TscRatio::new(1000, 0, 32, 8), None);
    let half = TscRatio::new(1_500_000, GHZ3, 32, 8).unwrap();
    assert_eq!(half.guest_tsc(1000, 7), 507);
    assert_eq!(half.guest_tsc(1234, half.offset_for(99, 1234)), 99);
}

const VMX: Option<TscScaling> = Some(TscScaling {
    fraction: 48,
    integer: 16,
});
const SVM: Option<TscScaling> = Some(TscScaling {
    fraction: 32,
    integer: 8,
});

#[test]
fn rates() {
    let host = TscRate::host(GHZ3);
    for scaling in [None, VMX, SVM] {
        let rate = |khz| TscRate::new(khz, GHZ3, scaling);
        // 0 is the host's, and so is what is within 250 ppm of it.
        for khz in [0, 3_000_000, 3_000_750, 2_999_250] {
            assert_eq!(rate(khz), Ok(host), "{khz}");
        }
        // An int could not tell it.
        for khz in [1 << 31, 0xffff_ffff, 1 << 32, u64::MAX] {
            let no = if scaling.is_some() {
                NoRate::TooFar
            } else {
                NoRate::Unscaled
            };
            assert_eq!(rate(khz), Err(no), "{khz}");
        }
    }
    for khz in [3_000_754, 2_999_246, 1, 1_500_000] {
        assert_eq!(TscRate::new(khz, GHZ3, None), Err(NoRate::Unscaled));
        let r = TscRate::new(khz, GHZ3, VMX).unwrap();
        assert!(u64::from(r.khz) == khz && !r.ratio.is_one());
    }
    // The ratio's bounds: 16 bits, or 8, above the fraction; not 0.
    assert!(TscRate::new(65_535_000, 1000, VMX).is_ok());
    assert_eq!(TscRate::new(65_536_000, 1000, VMX), Err(NoRate::TooFar));
    assert!(TscRate::new(255_999, 1000, SVM).is_ok());
    assert_eq!(TscRate::new(256_000, 1000, SVM), Err(NoRate::TooFar));
    assert!(TscRate::new(1, u32::MAX, SVM).is_ok());
    // A host whose frequency nobody knows.
    assert_eq!(TscRate::new(0, 0, VMX), Ok(TscRate::host(0)));
    assert_eq!(TscRate::new(1, 0, VMX), Err(NoRate::TooFar));
    assert_eq!(TscRate::host(0).to_ns().apply(1000), 1000);
}

/// The whole of a vCPU's TSC, at a rate that is not the host's: what its owner does with it.
struct Scaled {
    rate: TscRate,
    t: TscOffset,
}

impl Scaled {
    fn at(&self, host: u64) -> u64 {
        self.rate.ratio.guest_tsc(host, self.t.offset)
    }
}

#[test]
fn a_scaled_tsc_advances_at_its_rate() {
    for (num, den) in [(1, 2), (3, 2)] {
        let khz = u64::from(GHZ3) * num / den;
        let rate = TscRate::new(khz, GHZ3, VMX).unwrap();
        let mut v = Scaled {
            rate,
            t: TscOffset::default(),
        };
        // Far from 0, and over the end of 64 bits.
        for host in [1 << 40, 1 << 62, u64::MAX - 1_000_000_000] {
            v.t.write_tsc(1 << 50, host, rate.ratio);
            assert_eq!(v.at(host), 1 << 50);
            let after = v.at(host.wrapping_add(3_000_000)).wrapping_sub(1 << 50);
            assert!(after.abs_diff(3_000_000 * num / den) <= 1, "{after}");
        }
        // IA32_TSC_ADJUST counts the guest's cycles, whatever the ratio.
        let host = 1 << 61;
        let (tsc, adjust) = (v.at(host), v.t.adjust);
        v.t.write_adjust(adjust.wrapping_add(12_345));
        assert_eq!(v.at(host), tsc + 12_345);
        v.t.write_tsc(7, host, rate.ratio);
        assert_eq!(v.t.adjust, adjust.wrapping_sub(tsc).wrapping_add(7));
    }
}

#[test]
fn a_new_rate_goes_on_from_where_the_tsc_is() {
    let mut sync = TscSync::default();
    let mut gens = [0; 3];
    let created = write(0, false, 0);
    let offsets = [0, 1, 2].map(|i| sync.write(&created, &mut gens[i]));
    let rate = TscRate::new(1_000_000, GHZ3, VMX).unwrap();
    // One after the other, some ms apart: their TSCs go on, and are one at the end.
    let mut changed = [0; 3];
    for i in 0..3 {
        let now = write(0, false, 1000 + 4 * i as u64);
        let before = tsc_at(offsets[i], &now);
        let w = TscWrite {
            value: before,
            khz: rate.khz,
            ratio: rate.ratio,
            ..now
        };
        changed[i] = sync.rescale(&w, &mut gens[i]);
        let apart = tsc_at(changed[i], &w).abs_diff(before);
        assert!(apart <= 4 * i as u64 * 2_000_000 + 3, "{i}: {apart}");
    }
    assert!(changed.iter().all(|o| *o == changed[0]));
    assert!(sync.all_match(3));
    // User space restores: in step with these, not with the host's frequency.
    let w = TscWrite {
        khz: rate.khz,
        ratio: rate.ratio,
        ..write(0, true, 2000)
    };
    assert_eq!(sync.write(&w, &mut gens[1]), changed[0]);
    // More than a second away from the others: on its own.
    let w = TscWrite {
        value: 1 << 45,
        ..w
    };
    let own = sync.rescale(&w, &mut gens[2]);
    assert_eq!(tsc_at(own, &w), 1 << 45);
    assert!(!sync.all_match(3));
}

/// SDM vol. 3B 18.17.3, and the steps of the kernel's tsc_msrs_test.
#[test]
fn tsc_and_tsc_adjust() {
    let one = TscRatio::one(32);
    let mut t = TscOffset {
        offset: one.offset_for(0, 1_000_000),
        adjust: 0,
    };
    let tsc = |t: &TscOffset, host| one.guest_tsc(host, t.offset);
    t.write_tsc(500, 1_000_000, one);
    assert_eq!((tsc(&t, 1_000_000), t.adjust), (500, 500));
    t.write_adjust(800);
    assert_eq!((tsc(&t, 1_000_000), t.adjust), (800, 800));
    // The host moves the offset: IA32_TSC_ADJUST stays, and goes on from there.
    t.offset = one.offset_for(10_800, 1_000_000);
    t.write_adjust(900);
    assert_eq!((tsc(&t, 1_000_000), t.adjust), (10_900, 900));
    t.write_tsc(1200, 1_000_000, one);
    assert_eq!(
        (tsc(&t, 1_000_000), t.adjust),
        (1200, 900u64.wrapping_sub(9700))
    );
}

fn write(value: u64, by_user: bool, at_ms: u64) -> TscWrite {
    TscWrite {
        value,
        by_user,
        host_tsc: 77_000_000_000 + at_ms * 3_000_000,
        now_ns: 5_000_000_000 + at_ms * 1_000_000,
        khz: GHZ3,
        ratio: TscRatio::one(32),
        stable: true,
    }
}

fn tsc_at(offset: u64, w: &TscWrite) -> u64 {
    w.ratio.guest_tsc(w.host_tsc, offset)
}

#[test]
fn vcpus_are_created_in_step() {
    let mut sync = TscSync::default();
    let mut gens = [0; 3];
    assert!(!sync.all_match(1));
    let offsets: Vec<u64> = (0..3)
        .map(|i| sync.write(&write(0, false, 900 * i), &mut gens[i as usize]))
        .collect();
    assert_eq!(tsc_at(offsets[0], &write(0, false, 0)), 0);
    assert!(offsets.iter().all(|o| *o == offsets[0]));
    assert!(gens.iter().all(|g| *g == gens[0] && *g != 0));
    assert!(sync.all_match(3));
    assert!(!sync.all_match(4));
    // Writing again does not count a vCPU twice.
    sync.write(&write(0, true, 3000), &mut gens[1]);
    assert!(!sync.all_match(4));
}

#[test]
fn restored_tscs_within_a_second_are_made_equal() {
    const S: u64 = 3_000_000_000;
    let mut sync = TscSync::default();
    let mut gens = [0; 4];
    for g in &mut gens {
        sync.write(&write(0, false, 0), g);
    }
    // The first write by user space is taken as it is, though it is near.
    let w = write(S / 2, true, 10);
    let first = sync.write(&w, &mut gens[0]);
    assert_eq!(tsc_at(first, &w), S / 2);
    assert!(!sync.all_match(4));
    // The next ones, each up to a second off the one before, get the same offset.
    assert_eq!(sync.write(&write(S / 2, true, 900), &mut gens[1]), first);
    assert_eq!(sync.write(&write(S / 2, true, 1800), &mut gens[2]), first);
    assert_eq!(
        sync.write(&write(S / 2 + 20, true, 2700), &mut gens[3]),
        first
    );
    assert!(sync.all_match(4));
    // Ahead counts as well as behind.
    assert_eq!(sync.write(&write(S, true, 2700), &mut gens[3]), first);
    // More than a second off: as written, and a new generation.
    let w = write(10 * S, true, 2700);
    let other = sync.write(&w, &mut gens[0]);
    assert_eq!(tsc_at(other, &w), 10 * S);
    assert!(!sync.all_match(2));
    let w = write(9 * S, true, 2700);
    assert_eq!(tsc_at(sync.write(&w, &mut gens[1]), &w), 9 * S);
    // At another frequency nothing matches, 0 neither.
    let w = TscWrite {
        khz: 1000,
        ..write(0, true, 2700)
    };
    assert_eq!(tsc_at(sync.write(&w, &mut gens[1]), &w), 0);
    assert!(!sync.all_match(2));
}

#[test]
fn with_an_unstable_host_tsc_the_time_that_passed_counts() {
    let mut sync = TscSync::default();
    let mut g = [0; 2];
    let unstable = |w| TscWrite { stable: false, ..w };
    sync.write(&unstable(write(1000, true, 0)), &mut g[0]);
    // The host's TSC went astray, the clock says 100 ms.
    let w = TscWrite {
        host_tsc: 5,
        ..unstable(write(1000, true, 100))
    };
    assert_eq!(tsc_at(sync.write(&w, &mut g[1]), &w), 1000 + 300_000_000);
    assert!(sync.all_match(2));
}

#[test]
fn offsets_set_by_user_space() {
    let mut sync = TscSync::default();
    let mut g = [0; 2];
    sync.set_offset(1234, &write(0, true, 0), &mut g[0]);
    sync.set_offset(1234, &write(0, true, 5000), &mut g[1]);
    assert!(sync.all_match(2));
    sync.set_offset(1235, &write(0, true, 5000), &mut g[1]);
    assert!(!sync.all_match(2));
}

#[test]
fn kvm_clock() {
    let clock = KvmClock::starting_at(5_000);
    assert_eq!(clock.at(5_000), 0);
    assert_eq!(clock.at(5_700), 700);
    assert_eq!(KvmClock::set(100, 5_700, None).at(5_701), 101);
    assert_eq!(KvmClock::set(100, 5_700, Some((40, 90))).at(5_700), 150);
    assert_eq!(KvmClock::set(100, 5_700, Some((90, 40))).at(5_700), 100);
    let scale = Scale::to_ns(2_000_000).unwrap();
    let from = Reference {
        host_tsc: 1000,
        ns: 5_000,
    };
    assert_eq!(clock.at_tsc(from, 3000, scale), 1000);
}

/// struct pvclock_vcpu_time_info and struct pvclock_wall_clock, byte by byte.
#[test]
fn pvclock_layout() {
    let info = TimeInfo {
        tsc: 0x1122_3344_5566_7788,
        ns: 0x99aa_bbcc_ddee_ff00,
        scale: Scale {
            mult: 0xdead_beef,
            shift: -2,
        },
        stable: true,
        stopped: true,
    };
    let want = [
        0x04, 0x03, 0x02, 0x01, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00,
        0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0xef, 0xbe, 0xad, 0xde, 0xfe, 3, 0, 0,
    ];
    assert_eq!(info.to_bytes(0x0102_0304), want);
    assert!(TimeInfo::was_stopped(&want));
    let plain = TimeInfo {
        stable: false,
        stopped: false,
        ..info
    }
    .to_bytes(2);
    assert_eq!(plain[29], 0);
    assert!(!TimeInfo::was_stopped(&plain));
    let wall = wall_clock(6, 1_700_000_000_123_456_789 + 5_000_000_001, 5_000_000_001);
    assert_eq!(wall[0..4], 6u32.to_le_bytes());
    assert_eq!(wall[4..8], 1_700_000_000u32.to_le_bytes());
    assert_eq!(wall[8..12], 123_456_789u32.to_le_bytes());
    assert_eq!(next_versions(0), (1, 2));
    assert_eq!(next_versions(2), (3, 4));
    // Left odd by somebody who did not finish.
    assert_eq!(next_versions(3), (5, 6));
    assert_eq!(next_versions(u32::MAX), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn mul_div_is_exact(a: u64, b: u64, c: u64) {
        let c = c >> (a % 64);
        let want = if c == 0 { u64::MAX } else { wide(u128::from(a) * u128::from(b) / u128::from(c)) };
        prop_assert_eq!(mul_div(a, b, c), want);
    }

    #[test]
    fn scale_is_precise(khz in 1u32..10_000_000, x: u64) {
        let scale = Scale::to_ns(khz).unwrap();
        prop_assert!(scale.mult >> 31 == 1);
        // Small enough for the guest's arithmetic not to overflow.
        let x = x >> 24;
        let exact = u128::from(x) * 1_000_000 / u128::from(khz);
        let got = u128::from(scale.apply(x));
        // At most one in 2^31 too small, and what a right shift loses.
        let lost = exact / (1 << 31) + 2;
        prop_assert!(got <= exact && got + lost >= exact, "{} {}", got, exact);
    }

    #[test]
    fn a_deadline_is_never_early_and_little_late(khz in 1u32..10_000_000, now_ns: u64, tsc: u64, deadline: u64) {
        let now_ns = now_ns >> 1;
        let scale = Scale::to_ns(khz).unwrap();
        let at = deadline_ns(deadline, now_ns, tsc, scale);
        prop_assert!(at <= i64::MAX as u64);
        if deadline <= tsc {
            prop_assert_eq!(at, now_ns);
        } else {
            let exact = u128::from(now_ns) + (u128::from(deadline - tsc) * 1_000_000).div_ceil(u128::from(khz));
            let cycle = 1_000_000 / u128::from(khz) + 2;
            let late = (exact - u128::from(now_ns)) / (1 << 30) + 2 * cycle;
            prop_assert!(u128::from(at) >= exact.min(i64::MAX as u128));
            prop_assert!(u128::from(at) <= exact + late, "{} {}", at, exact);
        }
    }

    #[test]
    fn ratio_follows_the_frequencies(guest in 1000u32..8_000_000, host in 1000u32..8_000_000, tsc: u64, svm: bool) {
        let (fraction, integer) = if svm { (32, 8) } else { (48, 16) };
        let tsc = tsc >> 16;
        if let Some(r) = TscRatio::new(guest, host, fraction, integer) {
            let exact = u128::from(tsc) * u128::from(guest) / u128::from(host);
            let got = u128::from(r.scale(tsc));
            prop_assert!(got <= exact && exact - got <= (u128::from(tsc) >> fraction) + 1);
        } else {
            prop_assert!(svm && u64::from(guest) * 10 >= u64::from(host) * 2550);
        }
    }

    /// All vCPUs, whatever their offset, and the VM's own reading agree with the host's clock.
    #[test]
    fn kvmclock_is_one_clock(khz in 500_000u32..5_000_000, offset: u64, at: u64, since in 0u64..1 << 45) {
        let at = at >> 1;
        let scale = Scale::to_ns(khz).unwrap();
        let from = Reference { host_tsc: at, ns: 1_000_000 };
        let clock = KvmClock::set(777, from.ns, None);
        let ratio = TscRatio::one(32);
        let info = TimeInfo::new(from, clock, ratio, offset, scale, true);
        let guest = info.read(ratio.guest_tsc(at + since, offset));
        prop_assert_eq!(guest, clock.at_tsc(from, at + since, scale));
        let exact = 777 + u128::from(since) * 1_000_000 / u128::from(khz);
        prop_assert!(u128::from(guest).abs_diff(exact) <= exact / (1 << 31) + 2);
    }

    /// What a guest at any rate computes from its page is what the VM's clock reads, but for the
    /// rounding of two factors.
    #[test]
    fn kvmclock_of_a_scaled_guest(
        host in 500_000u32..5_000_000,
        asked in 1u64..5_000_000,
        offset: u64,
        at in 0u64..1 << 62,
        since in 0u64..1 << 45,
    ) {
        let rate = TscRate::new(asked, host, VMX).unwrap();
        let from = Reference { host_tsc: at, ns: 1_000_000 };
        let clock = KvmClock::starting_at(0);
        let info = TimeInfo::new(from, clock, rate.ratio, offset, rate.to_ns(), true);
        let guest = info.read(rate.ratio.guest_tsc(at + since, offset));
        let own = clock.at_tsc(from, at + since, TscRate::host(host).to_ns());
        // A cycle of the guest's, and one in 2^30; within the tolerance the rate is the host's.
        let cycle = 1_000_000 / u64::from(rate.khz) + 2;
        prop_assert!(guest.abs_diff(own) <= cycle + (own >> 26), "{} {}", guest, own);
    }

    /// A deadline in the guest's cycles: when the time has passed, the guest's TSC has reached it, or
    /// nearly so (the timer then is set once more).
    #[test]
    fn a_deadline_of_a_scaled_guest(
        host in 500_000u32..5_000_000,
        asked in 1000u64..5_000_000,
        offset: u64,
        at in 0u64..1 << 60,
        cycles in 0u64..1 << 40,
    ) {
        let rate = TscRate::new(asked, host, VMX).unwrap();
        let now = rate.ratio.guest_tsc(at, offset);
        prop_assume!(now.checked_add(cycles).is_some());
        let ns = deadline_ns(now + cycles, 0, now, rate.to_ns());
        let later = at + ns_to_cycles(ns, host) + 1;
        let reached = rate.ratio.guest_tsc(later, offset).wrapping_sub(now);
        let slack = u64::from(rate.khz) / 1_000_000 + 2 + (cycles >> 26);
        prop_assert!(reached.abs_diff(cycles) <= slack, "{} {}", reached, cycles);
    }

    /// Nothing overflows, whatever user space asks for.
    #[test]
    fn any_rate(asked: u64, host: u32, fraction in 0u8..64, integer in 0u8..64, tsc: u64) {
        let scaling = Some(TscScaling { fraction, integer });
        if let Ok(rate) = TscRate::new(asked, host, scaling) {
            let _ = rate.to_ns().apply_up(tsc);
            let offset = rate.ratio.offset_for(tsc, asked);
            prop_assert_eq!(rate.ratio.guest_tsc(asked, offset), tsc);
        }
    }
}
