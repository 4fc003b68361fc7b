// SPDX-License-Identifier: GPL-2.0

//! Events and zones against lists that are searched from end to end.

use proptest::prelude::*;
use rkvm_unit::irq::bus::{
    find, in_zone, place, Event, Key, Refused, Space, Span, Zone, FLAG_DEASSIGN,
};

const DATAMATCH: u32 = 1;
const PIO: u32 = 2;
const CCW: u32 = 8;
const FAST_MMIO: u32 = 16;

/// Whether an event with `key` is for a write, as the ABI says it.
fn wants(key: &Key, addr: u64, data: &[u8]) -> bool {
    let mut value = 0u64;
    for byte in data.iter().rev() {
        value = value << 8 | u64::from(*byte);
    }
    addr == key.addr
        && (key.len == 0 || data.len() == key.len as usize && key.value.is_none_or(|v| v == value))
}

/// The writes that tests try: small addresses, all lengths, small values and some in the last byte.
fn writes() -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    for addr in 0..6 {
        for len in 0..=9 {
            for value in 0..4 {
                for at in [0, len - 1] {
                    let mut data = vec![0; len.try_into().unwrap_or(0)];
                    if let Some(byte) = usize::try_from(at).ok().and_then(|at| data.get_mut(at)) {
                        *byte = value;
                    }
                    all.push((addr, data));
                }
            }
        }
    }
    all
}

/// Values that fit the length, as those of [`writes`] do: others would be for no write at all.
fn any_key() -> impl Strategy<Value = Key> {
    let len = prop_oneof![Just(0u32), Just(1), Just(2), Just(4), Just(8)];
    let value = proptest::option::of((0u64..4, any::<bool>()));
    (0u64..6, len, value).prop_map(|(addr, len, value)| Key {
        addr,
        len,
        value: value
            .filter(|_| len != 0)
            .map(|(byte, last)| if last { byte << (8 * (len - 1)) } else { byte }),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Assign(Key),
    Deassign(proptest::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => any_key().prop_map(Step::Assign),
        1 => any::<proptest::sample::Index>().prop_map(Step::Deassign),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Assigns and deassigns in any order: a key is refused exactly if some write would be for two
    /// events, and every write finds the event that a search of the whole list finds.
    #[test]
    fn events(steps in steps()) {
        let writes = writes();
        let mut events: Vec<Event<usize>> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Assign(key) => {
                    let collides = writes.iter().any(|(addr, data)| {
                        wants(&key, *addr, data)
                            && events.iter().any(|e| wants(&e.key, *addr, data))
                    });
                    let at = place(&events, &key);
                    prop_assert_eq!(at.is_none(), collides, "{:?} in {:?}", key, events);
                    if let Some(at) = at {
                        events.insert(at, Event { key, signal: id });
                    }
                }
                Step::Deassign(which) if !events.is_empty() => {
                    events.remove(which.index(events.len()));
                }
                Step::Deassign(_) => {}
            }
        }

        let span = Span::of(&events, &[]);
        for (addr, data) in &writes {
            let naive = events.iter().find(|e| wants(&e.key, *addr, data));
            let found = find(&events, *addr, data);
            prop_assert_eq!(found.map(|e| e.signal), naive.map(|e| e.signal));
            prop_assert!(naive.is_none() || span.covers(*addr));
        }
    }

    #[test]
    fn zones(
        (mut zones, addr) in prop_oneof![
            (proptest::collection::vec(any_zone(), 0..8), any_addr()),
            (proptest::collection::vec(low_zone(), 0..4), 0u64..96),
        ],
        len in prop_oneof![3 => 0u64..9, 1 => any::<u32>().prop_map(u64::from), 1 => Just(u64::MAX)],
    ) {
        zones.sort_by_key(|z| z.addr);
        let naive = |z: &Zone| {
            let (first, end) = (u128::from(z.addr), u128::from(z.addr) + u128::from(z.size));
            let (from, to) = (u128::from(addr), u128::from(addr) + u128::from(len));
            // The ABI's ranges are of 64 bits: one may not reach their end.
            to <= u128::from(u64::MAX) && first <= from && to <= end
        };
        for zone in &zones {
            prop_assert_eq!(zone.contains(addr, len), naive(zone), "{:?}", zone);
        }
        let hit = zones.iter().any(naive);
        prop_assert_eq!(in_zone(&zones, addr, len), hit);
        let span = Span::of::<()>(&[], &zones);
        prop_assert!(!hit || len == 0 || span.covers(addr));
    }

    #[test]
    fn span_of_both(event in any_addr(), zone in any_zone(), addr in any_addr()) {
        let events = [Event { key: Key { addr: event, len: 0, value: None }, signal: () }];
        let span = Span::of(&events, &[zone]);
        if addr == event || zone.contains(addr, 1) {
            prop_assert!(span.covers(addr));
        }
        let low = event.min(zone.addr);
        let high = event.max(zone.addr.saturating_add(u64::from(zone.size)));
        if addr < low || addr > high {
            prop_assert!(!span.covers(addr));
        }
    }

    /// `KVM_IOEVENTFD`'s arguments: exactly the documented ones pass, and mean what is documented.
    #[test]
    fn arguments(
        flags in prop_oneof![0u32..64, any::<u32>()],
        addr in any_addr(),
        len in prop_oneof![0u32..10, any::<u32>()],
        datamatch: u64,
    ) {
        let ok = flags < 32
            && flags & (CCW | PIO) != CCW
            && [0, 1, 2, 4, 8].contains(&len)
            && u128::from(addr) + u128::from(len) <= u128::from(u64::MAX)
            && (len != 0 || flags & DATAMATCH == 0);
        let checked = Key::checked(flags, addr, len, datamatch);
        prop_assert_eq!(checked.is_ok(), ok, "{:?}", checked);
        if let Ok((space, key)) = checked {
            prop_assert_eq!(space == Space::Pio, flags & PIO != 0);
            let value = if flags & DATAMATCH != 0 { Some(datamatch) } else { None };
            prop_assert_eq!(key, Key { addr, len, value });
            // A deassign with the same arguments finds it, whatever else it says.
            let named = Key::named(flags | FLAG_DEASSIGN | 1 << 20, addr, len, datamatch);
            prop_assert_eq!(named, Some((space, key)));
        }
    }
}

fn any_addr() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..48, any::<u64>(), u64::MAX - 48..=u64::MAX]
}

fn low_zone() -> impl Strategy<Value = Zone> {
    (0u64..48, 0u32..40).prop_map(|(addr, size)| Zone { addr, size })
}

fn any_zone() -> impl Strategy<Value = Zone> {
    let size = prop_oneof![4 => 0u32..40, 1 => any::<u32>()];
    (any_addr(), size).prop_map(|(addr, size)| Zone { addr, size })
}

#[test]
fn why() {
    let refused = |flags, addr, len| Key::checked(flags, addr, len, 0).unwrap_err();
    assert_eq!(refused(0, 0, 3), Refused::Length(3));
    assert_eq!(refused(0, u64::MAX, 1), Refused::Range);
    assert_eq!(refused(32, 0, 4), Refused::Flags(32));
    assert_eq!(refused(CCW, 0, 4), Refused::Flags(CCW));
    assert_eq!(refused(DATAMATCH, 0, 0), Refused::MatchWithoutLength);
    assert!(Key::checked(FAST_MMIO, 0x1000, 0, 0).is_ok());
    // The last byte that a range can have.
    assert!(Key::checked(0, u64::MAX - 4, 4, 0).is_ok());
    assert_eq!(Key::named(CCW, 0, 4, 0), None);
}

/// Many queues at one port, each with its number: the legacy way to notify.
#[test]
fn many_values() {
    let mut events = Vec::new();
    for queue in (0..1024u64).rev() {
        let key = Key {
            addr: 0xc050,
            len: 2,
            value: Some(queue),
        };
        let at = place(&events, &key).unwrap();
        events.insert(at, Event { key, signal: queue });
    }
    for queue in 0..1024u16 {
        let found = find(&events, 0xc050, &queue.to_ne_bytes()).unwrap();
        assert_eq!(found.signal, u64::from(queue));
    }
    assert!(find(&events, 0xc050, &1024u16.to_ne_bytes()).is_none());
    assert!(find(&events, 0xc050, &[1, 0, 0, 0]).is_none());
    assert!(find(&events, 0xc04f, &[1, 0]).is_none());
    assert!(find(&events, 0xc051, &[1, 0]).is_none());
}

#[test]
fn nothing_is_nowhere() {
    for addr in [0, 1, u64::MAX - 1, u64::MAX] {
        assert!(!Span::EMPTY.covers(addr));
        assert!(find::<()>(&[], addr, &[0]).is_none());
        assert!(!in_zone(&[], addr, 1));
    }
    assert_eq!(Span::of::<()>(&[], &[]), Span::EMPTY);
}
