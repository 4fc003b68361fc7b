// SPDX-License-Identifier: GPL-2.0

//! The ring of coalesced writes, with a consumer as user space writes it.

use proptest::prelude::*;
use rkvm_unit::irq::coalesced::{entry, Ring, Slot, ENTRY, FIRST, LAST};
use std::collections::VecDeque;

/// A page with `struct kvm_coalesced_mmio_ring`, as user space sees it.
struct Page(Vec<u8>);

#[derive(Clone, Debug, PartialEq)]
struct Write {
    addr: u64,
    pio: bool,
    data: Vec<u8>,
}

impl Page {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// What the module's shell does.
    fn push(&mut self, write: &Write) -> bool {
        let words = entry(write.pio, write.addr, &write.data).unwrap();
        let ring = Ring::new(self.0.len());
        let Some(slot) = ring.next(self.u32(FIRST), self.u32(LAST)) else {
            return false;
        };
        assert_eq!(slot.words().count(), words.len());
        for (at, word) in slot.words().zip(words) {
            self.0[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        self.set_u32(LAST, slot.next);
        true
    }

    /// What user space does: `first`, `last`, then entries of phys_addr, len, pio, data[8].
    fn pop(&mut self) -> Option<Write> {
        let (first, last) = (self.u32(0), self.u32(4));
        if first == last {
            return None;
        }
        let at = 8 + first as usize * 24;
        let len = self.u32(at + 8) as usize;
        let write = Write {
            addr: u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap()),
            pio: self.u32(at + 12) == 1,
            data: self.0[at + 16..at + 16 + len].to_vec(),
        };
        self.set_u32(0, (first + 1) % max(self.0.len()));
        Some(write)
    }
}

/// `KVM_COALESCED_MMIO_MAX`.
fn max(page_size: usize) -> u32 {
    ((page_size - 8) / 24).try_into().unwrap()
}

fn any_write() -> impl Strategy<Value = Write> {
    let data = proptest::collection::vec(any::<u8>(), 1..=8);
    (any::<u64>(), any::<bool>(), data).prop_map(|(addr, pio, data)| Write { addr, pio, data })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A queue that holds one less than the ring has entries.
    #[test]
    fn is_a_queue(
        steps in proptest::collection::vec(prop_oneof![
            3 => any_write().prop_map(Some),
            2 => Just(None),
        ], 0..1200),
        page_size in prop_oneof![Just(4096usize), Just(8 + 24 * 5)],
    ) {
        let mut page = Page(vec![0; page_size]);
        let mut queue = VecDeque::new();
        for step in steps {
            match step {
                Some(write) => {
                    let room = queue.len() < max(page_size) as usize - 1;
                    prop_assert_eq!(page.push(&write), room);
                    if room {
                        queue.push_back(write);
                    }
                }
                None => prop_assert_eq!(page.pop(), queue.pop_front()),
            }
        }
    }

    /// Whatever user space writes to the two words, an entry lies in the page, behind them.
    #[test]
    fn trusts_no_word(
        page_size in prop_oneof![Just(4096usize), Just(16384), Just(65536)],
        first in prop_oneof![0u32..200, any::<u32>()],
        last in prop_oneof![0u32..200, any::<u32>(), 165u32..175, 2725u32..2735],
    ) {
        match Ring::new(page_size).next(first, last) {
            Some(Slot { offset, next }) => {
                prop_assert!(last < max(page_size));
                prop_assert_eq!(offset, 8 + last as usize * 24);
                prop_assert!(offset + ENTRY <= page_size);
                prop_assert_eq!(next, (last + 1) % max(page_size));
                prop_assert_ne!(next, first);
            }
            None => prop_assert!(
                last >= max(page_size) || (last + 1) % max(page_size) == first
            ),
        }
    }
}

#[test]
fn fills_a_page() {
    let mut page = Page(vec![0; 4096]);
    let write = Write {
        addr: 0xa_0000,
        pio: false,
        data: vec![1, 2, 3, 4],
    };
    let mut pushed = 0;
    while page.push(&write) {
        pushed += 1;
    }
    assert_eq!(pushed, 169);
    assert_eq!(page.pop(), Some(write.clone()));
    assert!(page.push(&write));
    assert!(!page.push(&write));
}

#[test]
fn entries() {
    assert_eq!(entry(false, 0, &[0; 9]), None);
    assert_eq!(entry(false, 0, &[0; 100]), None);
    let [addr, len_pio, data] = entry(true, 0x1122_3344_5566_7788, &[0xab, 0xcd]).unwrap();
    assert_eq!(addr, 0x1122_3344_5566_7788);
    assert_eq!(len_pio.to_ne_bytes()[..4], 2u32.to_ne_bytes());
    assert_eq!(len_pio.to_ne_bytes()[4..], 1u32.to_ne_bytes());
    assert_eq!(data.to_ne_bytes(), [0xab, 0xcd, 0, 0, 0, 0, 0, 0]);
}

/// A page too small for any entry never has room (there is none such; it must not panic).
#[test]
fn no_page() {
    for size in [0, 7, 8, 31] {
        assert_eq!(Ring::new(size).next(0, 0), None);
    }
}
