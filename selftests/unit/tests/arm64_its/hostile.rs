// SPDX-License-Identifier: GPL-2.0

//! Saved tables, and what a guest may have made of them.

use super::machine::*;
use super::tables::{cte, dte, ite};
use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::its::*;

/// Tables that are good: two collections, a device with two events.
fn hand_made() -> Machine {
    let m = Machine::new();
    m.ram.set_u64(COLLECTIONS, cte(0, processor(0)));
    m.ram.set_u64(COLLECTIONS + 8, cte(9, processor(2)));
    m.ram.set_u64(DEVICES + 8, dte(0, ITTS, 4));
    m.ram.set_u64(ITTS, ite(5, 8192, 0));
    m.ram.set_u64(ITTS + 40, ite(0, 8193, 9));
    m
}

#[test]
fn hostile_entries() {
    let max = RAM + RAM_SIZE as u64;
    for (what, gpa, entry, result) in [
        ("as it is", ITTS, ite(5, 8192, 0), Ok(2)),
        ("event: next is at the end", ITTS, ite(15, 8192, 0), Ok(1)),
        (
            "event: next is beyond",
            ITTS,
            ite(16, 8192, 0),
            Err(Error::Invalid),
        ),
        (
            "event: next is far beyond",
            ITTS,
            ite(65535, 8192, 0),
            Err(Error::Invalid),
        ),
        (
            "event: last, next is beyond",
            ITTS + 40,
            ite(11, 8193, 9),
            Err(Error::Invalid),
        ),
        ("event: no LPI", ITTS, ite(5, 8191, 0), Err(Error::Invalid)),
        ("event: 16 bits", ITTS, ite(5, 65535, 0), Ok(2)),
        (
            "event: 17 bits",
            ITTS,
            ite(5, 65536, 0),
            Err(Error::Invalid),
        ),
        (
            "event: 32 bits",
            ITTS,
            ite(5, 0xffff_ffff, 0),
            Err(Error::Invalid),
        ),
        ("event: not valid", ITTS, ite(5, 0, 9), Ok(1)),
        (
            "event: no such collection",
            ITTS,
            ite(5, 8192, 1),
            Err(Error::Invalid),
        ),
        ("event: the same LPI", ITTS + 40, ite(0, 8192, 9), Ok(1)),
        (
            "device: not valid",
            DEVICES + 8,
            dte(0, ITTS, 4) & !VALID,
            Ok(0),
        ),
        (
            "device: 17 bits",
            DEVICES + 8,
            dte(0, ITTS, 17),
            Err(Error::Invalid),
        ),
        (
            "device: 32 bits",
            DEVICES + 8,
            dte(0, ITTS, 32),
            Err(Error::Invalid),
        ),
        (
            "device: next beyond the table",
            DEVICES + 8,
            dte(16383, ITTS, 4),
            Ok(2),
        ),
        (
            "device: no memory",
            DEVICES + 8,
            dte(0, NOWHERE, 4),
            Err(Error::Fault),
        ),
        (
            "device: highest address",
            DEVICES + 8,
            dte(0, 0xf_ffff_ffff_ff00, 16),
            Err(Error::Fault),
        ),
        (
            "device: end of memory",
            DEVICES + 8,
            dte(0, max - 0x100, 6),
            Err(Error::Fault),
        ),
        (
            "device: just in memory",
            DEVICES + 8,
            dte(0, max - 0x100, 5),
            Ok(0),
        ),
        (
            "device: an earlier one",
            DEVICES,
            dte(2, ITTS + 0x100, 1),
            Ok(0),
        ),
        (
            "device: an earlier one",
            DEVICES,
            dte(1, ITTS + 0x100, 1),
            Ok(2),
        ),
        (
            "collection: no vCPU",
            COLLECTIONS,
            cte(0, 0),
            Err(Error::Invalid),
        ),
        (
            "collection: not mapped",
            COLLECTIONS,
            cte(0, 0xffff_ffff),
            Ok(1),
        ),
        (
            "collection: 33 bits",
            COLLECTIONS,
            cte(0, 1 << 32 | processor(0)),
            Err(Error::Invalid),
        ),
        (
            "collection: 36 bits",
            COLLECTIONS,
            cte(0, 0xf_ffff_ffff),
            Err(Error::Invalid),
        ),
        (
            "collection: reserved bits",
            COLLECTIONS,
            cte(0, processor(0)) | 0x7ff << 52,
            Ok(2),
        ),
        (
            "collection: twice",
            COLLECTIONS + 16,
            cte(0, processor(0)),
            Err(Error::Invalid),
        ),
        (
            "collection: outside",
            COLLECTIONS,
            cte(8192, processor(0)),
            Err(Error::Invalid),
        ),
        (
            "collection: last entry",
            COLLECTIONS + 16,
            cte(8191, processor(0)),
            Ok(2),
        ),
        ("collection: end", COLLECTIONS, 0, Err(Error::Invalid)),
    ] {
        let mut m = hand_made();
        m.ram.set_u64(gpa, entry);
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        let routes = (0..3)
            .flat_map(|d| (0..64).map(move |e| (d, e)))
            .filter(|(d, e)| m.to(*d, *e).is_some())
            .count();
        assert_eq!(done.map(|()| routes), result, "{what}");
        if done.is_err() {
            assert_eq!((m.its.mapped_devices(), m.its.known_collections()), (0, 0));
            assert!(m.vcpus.lpis.is_empty());
        }
    }
}

/// Tables full of entries that are all valid and lead to each other.
#[test]
fn hostile_tables_are_bounded() {
    let mut m = Machine::new();
    m.write(CTLR, 0);
    m.write(BASER0, VALID | DEVICES | 7);
    m.write(CTLR, 1);
    m.ram.set_u64(COLLECTIONS, cte(0, processor(0)));
    // All devices have the same table, of which all entries are valid.
    for id in 0..65536 {
        m.ram.set_u64(DEVICES + 8 * id, dte(1, ITTS, 2));
        m.ram.set_u64(ITTS + 8 * id, ite(1, 8192 + id % 57344, 0));
    }
    for last in [3, 7] {
        m.ram.set_u64(ITTS + 8 * last, ite(0, 8192 + last, 0));
    }
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    assert_eq!(m.its.mapped_devices(), 65536);
    assert_eq!(m.its.mapped_events(), 4);
    // One device with all events
    m.ram.set_u64(DEVICES, dte(0, ITTS, 16));
    m.ram.set_u64(ITTS + 8 * 3, ite(1, 8195, 0));
    m.ram.set_u64(ITTS + 8 * 7, ite(1, 8199, 0));
    m.ram.set_u64(ITTS + 8 * 65535, ite(0, 16383, 0));
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    assert_eq!(m.its.mapped_events(), MAX_EVENTS);
    assert_eq!(m.its.mapped_devices(), 1);
    // All collections
    m.write(CTLR, 0);
    m.write(BASER1, VALID | COLLECTIONS | 0xf);
    for icid in 0..65536 {
        m.ram
            .set_u64(COLLECTIONS + 8 * icid, cte(icid, 0xffff_ffff));
    }
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    assert_eq!(m.its.known_collections(), 65536);
}

/// An entry that is likely to lead somewhere.
fn entry() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        any::<u64>(),
        (0_u64..40, 8190_u64..8200, 0_u64..4).prop_map(|(n, i, c)| ite(n, i, c)),
        (0_u64..5, 0_u64..4, 1_u64..18).prop_map(|(n, t, b)| dte(n, ITTS + t * 0x100, b)),
        (0_u64..4, 0_u32..4).prop_map(|(c, v)| cte(c, processor(v))),
    ]
}

proptest! {
    /// Whatever the tables hold: it ends, is in bounds, nothing stays behind upon an error, and what is taken can be
    /// saved and is the same when it is restored again.
    #[test]
    fn any_tables(
        devices in prop::collection::vec(entry(), 8),
        events in prop::collection::vec(entry(), 96),
        collections in prop::collection::vec(entry(), 4),
        good in any::<bool>(),
    ) {
        let mut m = Machine::new();
        let put = |m: &Machine, at: u64, entries: &[u64]| {
            for (i, e) in entries.iter().enumerate() {
                m.ram.set_u64(at + 8 * i as u64, *e);
            }
        };
        put(&m, DEVICES, &devices);
        put(&m, ITTS, &events);
        put(&m, COLLECTIONS, &collections);
        if good {
            for c in 0..4 {
                m.ram.set_u64(COLLECTIONS + 8 * c, cte(c, processor(c as u32 % VCPUS)));
            }
        }
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        prop_assert_eq!(m.its.mapped_events() as usize, m.vcpus.lpis.len());
        if done.is_err() {
            prop_assert_eq!(m.its.mapped_devices() + m.its.known_collections(), 0);
        } else {
            let all = |m: &Machine| {
                (0..8).flat_map(|d| (0..128).map(move |e| (d, e)))
                    .map(|(d, e)| m.to(d, e)).collect::<Vec<_>>()
            };
            let (before, lpis) = (all(&m), m.vcpus.lpis.clone());
            // Devices that share a table, as the guest must not have them, would be one on top of the other.
            let shared = m.its.mapped_devices() > 1;
            m.its.save(&m.ram).unwrap();
            if !shared {
                m.its.restore(&m.ram, &mut m.vcpus).unwrap();
                prop_assert_eq!(all(&m), before);
                prop_assert_eq!(&m.vcpus.lpis, &lpis);
            }
        }
    }
}
