// SPDX-License-Identifier: GPL-2.0

//! arm64: vector lengths of guests, and where SVE's registers lie.

use rkvm_unit::arch::arm64::model::sve::{Layout, Lengths, FFR, WORDS};

fn low(w: u64) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    words[0] = w;
    words
}

#[test]
fn what_is_offered() {
    // Powers of two to 2048 bits, on all processors.
    assert_eq!(Lengths::offered(0x808b, 0x808b).words(), low(0x808b));
    assert_eq!(Lengths::offered(0x808b, 0x808b).max(), 16);
    // One has 384 bits too: nobody may go that far.
    assert_eq!(Lengths::offered(0x8b, 0x8f).words(), low(0x03));
    // One has longer ones only.
    assert_eq!(Lengths::offered(0x0b, 0x8b).words(), low(0x0b));
    assert_eq!(Lengths::offered(0, 1).max(), 0);
    assert_eq!(Lengths::default().max(), 0);
}

#[test]
fn what_can_be_chosen() {
    let host = Lengths::offered(0x808b, 0x808b);
    for good in [1, 3, 0xb, 0x8b, 0x808b] {
        assert_eq!(host.choose(low(good)).unwrap().words(), low(good));
    }
    // Nothing; what is not there; a hole; longer.
    for bad in [0, 4, 5, 0x2, 0x9, 0x808f, 0x1_0000, 1 << 63] {
        assert!(host.choose(low(bad)).is_err(), "{bad:#x}");
    }
    let mut far = low(1);
    far[7] = 1;
    assert!(host.choose(far).is_err());
    assert!(Lengths::default().choose(low(1)).is_err());
}

#[test]
fn layout() {
    let l = Layout::new(1);
    assert_eq!(l.z(0), 0..16);
    assert_eq!(l.z(31), 496..512);
    assert_eq!(l.p(0), 512..514);
    assert_eq!(l.p(FFR), 544..546);
    assert_eq!(l.bytes(), 546);
    let l = Layout::new(16);
    assert_eq!(l.z(31), 7936..8192);
    assert_eq!(l.p(15), 8672..8704);
    assert_eq!(l.p(FFR), 8704..8736);
    assert_eq!(l.bytes(), 8736);
    // Never further.
    assert_eq!(Layout::new(200), l);
    assert_eq!(l.p(200), l.p(FFR));
    assert_eq!(l.z(200), l.z(8));
}
