// SPDX-License-Identifier: GPL-2.0

//! The routing table against a list that is searched from end to end.

use proptest::prelude::*;
use rkvm_unit::irq::routing::{
    build, sizes, Entry, Msi, PinRoute, Refused, Sizes, Table, Target, ENTRY_WORDS, MAX_ROUTES,
};

/// A built table with its storage.
struct Routes(Vec<Entry>, Vec<u16>, Vec<PinRoute>);

impl Routes {
    fn new(entries: &[Entry]) -> Result<Self, Refused> {
        let Sizes { starts, pins } = sizes(entries)?;
        let mut r = Self(
            entries.to_vec(),
            vec![0xaaaa; starts],
            vec![PinRoute::default(); pins],
        );
        build(&mut r.0, &mut r.1, &mut r.2)?;
        Ok(r)
    }

    fn table(&self) -> Table<'_> {
        Table::new(&self.0, &self.1, &self.2)
    }
}

fn pin(gsi: u32, chip: u32, pin: u32) -> Entry {
    Entry {
        gsi,
        target: Target::Pin { chip, pin },
    }
}

fn msi(gsi: u32, data: u32) -> Entry {
    let msi = Msi::new(0xfee0_1000, 0, data, 0, 0).unwrap();
    Entry {
        gsi,
        target: Target::Msi(msi),
    }
}

/// Small numbers, so that they meet; and the edges of what is allowed.
fn any_entry() -> impl Strategy<Value = Entry> {
    let gsi = prop_oneof![8 => 0u32..24, 1 => Just(4095), 1 => 4090u32..4096];
    let target = prop_oneof![
        4 => (0u32..3, 0u32..6).prop_map(|(chip, pin)| Target::Pin { chip, pin }),
        2 => any::<(u32, u32, u32, bool, u32)>().prop_map(|(lo, hi, data, devid, dev)| {
            Target::Msi(Msi::new(lo, hi, data, devid.into(), dev).unwrap())
        }),
        1 => (3u32..6, any::<[u32; 8]>()).prop_map(|(kind, words)| Target::Other { kind, words }),
    ];
    (gsi, target).prop_map(|(gsi, target)| Entry { gsi, target })
}

/// What is allowed, said the long way: for each pair of entries of one gsi.
fn conflict(entries: &[Entry]) -> bool {
    entries.iter().enumerate().any(|(i, a)| {
        entries[i + 1..].iter().any(|b| {
            a.gsi == b.gsi
                && !matches!((a.target, b.target),
                    (Target::Pin { chip: x, .. }, Target::Pin { chip: y, .. }) if x != y)
        })
    })
}

fn sorted(mut v: Vec<Entry>) -> Vec<String> {
    v.sort_by_key(|e| e.gsi);
    let mut v: Vec<_> = v.iter().map(|e| format!("{e:?}")).collect();
    v.sort();
    v
}

/// Drops entries that conflict with earlier ones: most random lists would be refused otherwise.
fn without_conflicts(entries: &[Entry]) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    for e in entries {
        kept.push(*e);
        if conflict(&kept) {
            kept.pop();
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn refuses_exactly_conflicts(entries in proptest::collection::vec(any_entry(), 0..12)) {
        match Routes::new(&entries) {
            Ok(_) => prop_assert!(!conflict(&entries)),
            Err(Refused::Conflict(gsi)) => {
                let of_gsi: Vec<_> = entries.iter().filter(|e| e.gsi == gsi).copied().collect();
                prop_assert!(conflict(&of_gsi));
            }
            Err(e) => prop_assert!(false, "{e:?}"),
        }
    }

    #[test]
    fn finds_what_a_list_finds(entries in proptest::collection::vec(any_entry(), 0..120)) {
        let entries = without_conflicts(&entries);
        let routes = Routes::new(&entries).unwrap();
        let table = routes.table();

        for gsi in (0..30).chain(4088..4100).chain([u32::MAX]) {
            let naive: Vec<_> = entries.iter().filter(|e| e.gsi == gsi).copied().collect();
            prop_assert_eq!(sorted(table.targets(gsi).to_vec()), sorted(naive));
        }
        for chip in 0..4 {
            for pin in 0..7 {
                let mut naive: Vec<_> = entries
                    .iter()
                    .filter(|e| e.target == Target::Pin { chip, pin })
                    .map(|e| e.gsi)
                    .collect();
                naive.sort();
                prop_assert_eq!(table.gsis_of(chip, pin).collect::<Vec<_>>(), naive);
            }
        }
    }

    /// One pin per chip, each with a result; the status is as `KVM_IRQ_LINE_STATUS` documents it.
    #[test]
    fn sums_up_statuses(results in proptest::collection::vec(
        prop_oneof![Just(Err(())), (-3i32..4).prop_map(Ok), Just(Ok(i32::MAX))], 0..5,
    )) {
        let entries: Vec<_> = (0..).zip(&results).map(|(chip, _)| pin(7, chip, 0)).collect();
        let routes = Routes::new(&entries).unwrap();
        let mut called = 0;
        let status = routes.table().deliver(7, |target| {
            called += 1;
            let Target::Pin { chip, .. } = target else { panic!() };
            results[*chip as usize]
        });
        prop_assert_eq!(called, results.len());

        let taken: Vec<i64> = results
            .iter()
            .filter_map(|r| r.ok())
            .filter(|n| *n >= 0)
            .map(i64::from)
            .collect();
        let expected = if taken.is_empty() {
            -1
        } else {
            taken.iter().sum::<i64>().min(i32::MAX.into())
        };
        prop_assert_eq!(i64::from(status), expected);
    }

    /// `struct kvm_irq_routing_entry` from arbitrary memory: no panic, and nothing gets lost.
    #[test]
    fn decodes_any_words(
        gsi: u32,
        kind in prop_oneof![0u32..8, any::<u32>()],
        flags in prop_oneof![0u32..4, any::<u32>()],
        u: [u32; 8],
    ) {
        let mut words = [0xdead_beef; ENTRY_WORDS];
        words[..3].copy_from_slice(&[gsi, kind, flags]);
        words[4..].copy_from_slice(&u);
        let expected = match (kind, flags) {
            (1, 0) => Ok(Target::Pin { chip: u[0], pin: u[1] }),
            (2, 0 | 1) => Ok(Target::Msi(Msi {
                address: (u64::from(u[1]) << 32) + u64::from(u[0]),
                data: u[2],
                devid: if flags == 1 { Some(u[3]) } else { None },
            })),
            (3..=5, 0) => Ok(Target::Other { kind, words: u }),
            (_, 0) => Err(Refused::Type(kind)),
            _ => Err(Refused::Flags(flags)),
        };
        prop_assert_eq!(
            Entry::from_words(&words),
            expected.map(|target| Entry { gsi, target })
        );
    }

    /// Arrays that nobody has built: wrong answers are all right, panics are not.
    #[test]
    fn does_not_trust_its_arrays(
        starts in proptest::collection::vec(prop_oneof![0u16..9, any::<u16>()], 0..9),
        gsi in prop_oneof![0u32..9, any::<u32>()],
    ) {
        let entries = [msi(0, 1), msi(1, 2), pin(2, 0, 0)];
        let table = Table::new(&entries, &starts, &[]);
        prop_assert!(table.targets(gsi).len() <= 3);
        prop_assert_eq!(table.gsis_of(0, 0).count(), 0);
    }
}

#[test]
fn empty() {
    let routes = Routes::new(&[]).unwrap();
    assert!(routes.table().targets(0).is_empty());
    assert_eq!(routes.table().deliver(0, |_| Ok::<_, ()>(1)), -1);
    // What a table is before anything was set.
    let table = Table::new(&[], &[], &[]);
    assert!(table.targets(0).is_empty());
    assert!(table.targets(u32::MAX).is_empty());
}

#[test]
fn limits() {
    let full: Vec<_> = (0..4096).map(|gsi| msi(gsi, gsi)).collect();
    let routes = Routes::new(&full).unwrap();
    for gsi in [0, 1, 2047, 4095] {
        assert_eq!(routes.table().targets(gsi), &[msi(gsi, gsi)]);
    }
    assert!(routes.table().targets(4096).is_empty());

    let mut more = full;
    more.push(pin(0, 0, 0));
    assert_eq!(sizes(&more), Err(Refused::TooMany));
    assert_eq!(sizes(&[pin(4096, 0, 0)]), Err(Refused::Gsi(4096)));
    assert_eq!(sizes(&[pin(u32::MAX, 0, 0)]), Err(Refused::Gsi(u32::MAX)));
    assert_eq!(MAX_ROUTES, 4096);
}

#[test]
fn shared_lines() {
    // A line wired to two chips, as a PC's line 4 is; in either order.
    for entries in [[pin(4, 0, 4), pin(4, 2, 4)], [pin(4, 2, 4), pin(4, 0, 4)]] {
        let routes = Routes::new(&entries).unwrap();
        assert_eq!(routes.table().targets(4), &[pin(4, 0, 4), pin(4, 2, 4)]);
    }
    for entries in [
        [pin(4, 0, 4), pin(4, 0, 5)],
        [pin(4, 0, 4), msi(4, 1)],
        [msi(4, 1), pin(4, 0, 4)],
        [msi(4, 1), msi(4, 1)],
        // A chip whose number is that which the order gives to messages.
        [pin(4, u32::MAX, 4), msi(4, 1)],
    ] {
        assert_eq!(Routes::new(&entries).err(), Some(Refused::Conflict(4)));
    }
}

#[test]
fn wrong_sizes() {
    let entries = [pin(3, 0, 1)];
    assert_eq!(sizes(&entries), Ok(Sizes { starts: 5, pins: 1 }));
    for (starts, pins) in [(4, 1), (6, 1), (5, 0), (5, 2)] {
        let mut starts = vec![0; starts];
        let mut pins = vec![PinRoute::default(); pins];
        let built = build(&mut entries.to_vec(), &mut starts, &mut pins);
        assert_eq!(built, Err(Refused::Sizes));
    }
}

#[test]
fn message_flags() {
    assert_eq!(Msi::new(1, 2, 3, 2, 4), None);
    assert_eq!(Msi::new(1, 2, 3, 1 << 31, 4), None);
    let msi = Msi::new(1, 2, 3, 1, 4).unwrap();
    assert_eq!(
        (msi.address, msi.data, msi.devid),
        (0x2_0000_0001, 3, Some(4))
    );
    assert_eq!(Msi::new(1, 2, 3, 0, 4).unwrap().devid, None);
}
