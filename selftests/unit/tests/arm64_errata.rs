// SPDX-License-Identifier: GPL-2.0

//! The table of errata.

use rkvm_unit::arch::arm64::model::errata::{of, workarounds, What, Workarounds, TABLE};
use rkvm_unit::arch::arm64::model::midr::Midr;

fn midr(implementer: u32, part: u32, revision: u32) -> Midr {
    Midr(implementer << 24 | (revision & 0xf0) << 16 | 0xf_0000 | part << 4 | revision & 0xf)
}

fn names(m: Midr) -> Vec<&'static str> {
    of(m).map(|e| e.name).collect()
}

#[test]
fn cores_by_revision() {
    let a76 = |r| midr(0x41, 0xd0b, r);
    assert_eq!(
        names(a76(0x20)),
        [
            "1286807",
            "4118414",
            "1165522, 1530923",
            "1463225",
            "1418040"
        ]
    );
    assert_eq!(names(a76(0x31)), ["4118414", "1463225", "1418040"]);
    assert_eq!(names(a76(0x41)), ["4118414"]);
    // QEMU's neoverse-n1 is r4p1, its neoverse-v1 r1p2.
    assert_eq!(names(Midr(0x414f_d0c1)), ["4118414", "1542419"]);
    assert_eq!(names(Midr(0x411f_d402)), ["4118414"]);
    // Its max is nobody's, its a64fx has none.
    assert_eq!(names(Midr(0x000f_0510)), [""; 0]);
    assert_eq!(names(Midr(0x461f_0010)), [""; 0]);
}

#[test]
fn what_is_done() {
    for (m, done) in [
        (
            midr(0x41, 0xd0d, 0x10),
            Workarounds::PAR_BARRIER.and(Workarounds::REPEAT_TLBI),
        ),
        (midr(0x41, 0xd0d, 0x11), Workarounds::REPEAT_TLBI),
        (midr(0xc0, 0xac4, 0), Workarounds::HCR_BARRIER),
        (midr(0xc0, 0xac3, 0), Workarounds::default()),
        (
            midr(0x41, 0xd46, 0x02),
            Workarounds::SPSR_OF_STEP.and(Workarounds::REPEAT_TLBI),
        ),
        (midr(0x41, 0xd46, 0x12), Workarounds::default()),
        (midr(0x43, 0x0af, 0x11), Workarounds::TRAP_TRANSLATION),
        (midr(0x51, 0x001, 0x21), Workarounds::REFUSED),
    ] {
        assert_eq!(workarounds(m), done, "{m:x?}");
        assert_eq!(Workarounds::from_bits(done.bits()), done);
        assert_eq!(
            done.has(Workarounds::REPEAT_TLBI),
            done.and(Workarounds::REPEAT_TLBI) == done
        );
    }
}

#[test]
fn each_row_says_something() {
    let mut seen = std::collections::BTreeSet::new();
    for e in TABLE {
        assert!(!e.cores.is_empty() && seen.insert(e.name), "{}", e.name);
        match e.what {
            What::Done(w) => assert_eq!(w.bits().count_ones(), 1, "{}", e.name),
            What::Needless(why) => assert!(!why.is_empty(), "{}", e.name),
        }
    }
    // A bit each in the shell's word.
    assert!(TABLE.len() <= 64);
}
