// SPDX-License-Identifier: GPL-2.0

//! arm64: data aborts where there is no memory.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::esr::{Esr, Syndrome};
use rkvm_unit::arch::arm64::model::mmio::{decide, Mmio, Request};

const DABT: u64 = 0x24 << 26 | 1 << 25;
const ISV: u64 = 1 << 24;

fn at(iss: u64, slot: bool, big: bool, nisv: bool) -> Mmio {
    let esr = Esr(DABT | iss);
    let Syndrome::DataAbort(d) = esr.decode() else {
        panic!("no data abort");
    };
    decide(esr, &d, 0x900_0018, slot, (5, u64::from(big) << 25), nisv)
}

fn request(iss: u64, big: bool) -> Request {
    match at(ISV | iss | 7, false, big, false) {
        Mmio::Device(r) => r,
        other => panic!("{other:?}"),
    }
}

#[test]
fn accesses() {
    for (sas, len) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
        let r = request(sas << 22 | 9 << 16, false);
        assert_eq!((r.gpa, r.len, r.write, r.rt()), (0x900_0018, len, false, 9));
        let r = request(sas << 22 | 31 << 16 | 1 << 6, false);
        assert_eq!((r.len, r.write, r.rt()), (len, true, 31));
    }
}

#[test]
fn stores() {
    let v = 0x1122_3344_5566_7788;
    for (sas, little, big) in [
        (0, "8800000000000000", "8800000000000000"),
        (1, "8877000000000000", "7788000000000000"),
        (2, "8877665500000000", "5566778800000000"),
        (3, "8877665544332211", "1122334455667788"),
    ] {
        let hex = |b: [u8; 8]| b.map(|x| format!("{x:02x}")).concat();
        assert_eq!(hex(request(sas << 22, false).store(v)), little);
        assert_eq!(hex(request(sas << 22, true).store(v)), big);
    }
}

#[test]
fn loads() {
    // What is beyond the length does not count.
    let bytes = [0x81, 0x82, 0x83, 0x84, 0x05, 0x06, 0x07, 0x88];
    const SSE: u64 = 1 << 21;
    const SF: u64 = 1 << 15;
    for (iss, big, value) in [
        (0, false, 0x81),
        (SSE, false, 0xffff_ff81),
        (SSE | SF, false, 0xffff_ffff_ffff_ff81),
        (SF, true, 0x81),
        (1 << 22, false, 0x8281),
        (1 << 22, true, 0x8182),
        (1 << 22 | SSE, true, 0xffff_8182),
        (1 << 22 | SSE | SF, false, 0xffff_ffff_ffff_8281),
        (2 << 22, false, 0x8483_8281),
        (2 << 22, true, 0x8182_8384),
        (2 << 22 | SSE | SF, false, 0xffff_ffff_8483_8281),
        (2 << 22 | SSE, false, 0x8483_8281),
        (3 << 22 | SF, false, 0x8807_0605_8483_8281),
        (3 << 22 | SF, true, 0x8182_8384_0506_0788),
        (3 << 22 | SF | SSE, false, 0x8807_0605_8483_8281),
    ] {
        assert_eq!(request(iss, big).load(bytes), value, "{iss:#x} {big}");
    }
    // A positive value stays one.
    assert_eq!(request(SSE | SF, false).load([0x7f; 8]), 0x7f);
}

#[test]
fn no_device() {
    // A walk of the guest's tables, whatever else is said.
    assert_eq!(at(ISV | 1 << 7 | 7, false, false, true), Mmio::Abort);
    // Cache maintenance: nothing, unless there is memory (read-only) after all.
    assert_eq!(at(1 << 8 | 1 << 6 | 7, false, false, true), Mmio::Skip);
    assert_eq!(
        at(1 << 8 | 1 << 6 | 0xf, true, false, false),
        Mmio::Unsupported
    );
    // STP: user space gets DFSC, WnR and CM, and nothing that has no meaning.
    assert_eq!(
        at(1 << 6 | 3 << 22 | 1 << 14 | 7, false, false, false),
        Mmio::Unsupported
    );
    assert_eq!(
        at(1 << 6 | 3 << 22 | 1 << 14 | 7, false, false, true),
        Mmio::NoSyndrome { esr_iss: 0x47 }
    );
    assert_eq!(
        at(1 << 8 | 1 << 6 | 0xf, true, false, true),
        Mmio::NoSyndrome { esr_iss: 0x14f }
    );
    // ST64BV
    assert_eq!(
        at(ISV | 3 << 22 | 1 << 11 | 1 << 6 | 7, false, false, false),
        Mmio::Ls64 {
            esr_iss: DABT | ISV | 3 << 22 | 1 << 11 | 1 << 6
        }
    );
}

proptest! {
    #[test]
    fn what_is_stored_is_loaded(v: u64, sas in 0_u64..4, big: bool) {
        let r = request(sas << 22 | 1 << 15, big);
        let mask = u64::MAX >> (64 - 8 * r.len);
        prop_assert_eq!(r.load(r.store(v)), v & mask);
    }
}
