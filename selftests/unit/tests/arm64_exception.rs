// SPDX-License-Identifier: GPL-2.0

//! arm64: exceptions taken to EL1 in the processor's place, from every mode. Bits and offsets are written out
//! from DDI 0487, D1.3 and D24.2 (SPSR_EL1).

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::exception::{Context, Exception, Kind, Taken};
use rkvm_unit::arch::arm64::model::pstate::{big_endian, step_over, valid, Mode, RESET};

const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;
const SPINTMASK: u64 = 1 << 62;

fn ctx(pstate: u64) -> Context {
    Context {
        pc: 0xffff_8000_0010_0004,
        pstate,
        vbar: 0xffff_8000_0001_0800,
        sctlr: SPAN,
        ..Context::default()
    }
}

fn take(c: &Context, kind: Kind) -> Taken {
    let e = match kind {
        Kind::Sync => Exception::undefined(),
        Kind::SError => Exception::serror(3),
        k => Exception::interrupt(k),
    };
    c.take(&e).expect("a guest's mode")
}

#[test]
fn vectors() {
    for (mode, base) in [(4, 0x000), (5, 0x200), (0, 0x400), (0x10, 0x600)] {
        for (kind, offset) in [
            (Kind::Sync, 0),
            (Kind::Irq, 0x80),
            (Kind::Fiq, 0x100),
            (Kind::SError, 0x180),
        ] {
            let t = take(&ctx(mode), kind);
            assert_eq!(
                t.pc,
                0xffff_8000_0001_0800 + base + offset,
                "{mode:#x} {kind:?}"
            );
            assert_eq!(t.elr, 0xffff_8000_0010_0004);
            assert_eq!(t.spsr, mode);
            // D, A, I, F and EL1h.
            assert_eq!(t.pstate, 0x3c5);
        }
    }
    // Bits 10:0 of VBAR are none.
    let c = Context {
        vbar: 0x87ff,
        ..ctx(5)
    };
    assert_eq!(take(&c, Kind::Irq).pc, 0x8280);
}

#[test]
fn modes_that_guests_do_not_have() {
    let ok = [0, 4, 5, 0x10];
    for m in 0..32 {
        assert_eq!(Mode::of(m).is_some(), ok.contains(&m), "{m:#x}");
        assert_eq!(valid(m, true, false), ok.contains(&m));
        assert_eq!(valid(m, false, false), ok.contains(&m) && m != 0x10);
        // EL1 in AArch32: no mode of AArch64 is left.
        let ok32 = [0x10, 0x11, 0x12, 0x13, 0x17, 0x1b, 0x1f];
        assert_eq!(valid(m, true, true), ok32.contains(&m));
        assert_eq!(valid(m, false, true), ok32.contains(&m) && m != 0x10);
        assert_eq!(
            ctx(m).take(&Exception::undefined()).is_some(),
            ok.contains(&m)
        );
    }
    assert!(valid(RESET, false, false) && Mode::of(RESET) == Some(Mode::El1h));
    assert!(Mode::El0.is_el0() && Mode::User32.is_el0());
    assert!(!Mode::El1h.is_el0() && !Mode::El1t.is_el0());
}

/// What stays: N, Z, C, V, DIT (24), PAN (22). What goes: SS, IL, UAO, BTYPE, SSBS, TCO, ALLINT.
#[test]
fn fields_from_aarch64() {
    let all = 0xf37f_ffe0_u64;
    for bit in 0..64 {
        let p = 1_u64 << bit;
        let mode_bit = bit < 5;
        let from = if mode_bit { 0 } else { p } | 4;
        let kept = matches!(bit, 22 | 24 | 28..=31);
        let t = take(&ctx(from), Kind::Sync);
        assert_eq!(t.pstate, 0x3c5 | if kept { p } else { 0 }, "bit {bit}");
        assert_eq!(t.spsr, from);
    }
    assert_eq!(take(&ctx(all & !0x1f | 5), Kind::Irq).pstate, 0xf140_03c5);
}

#[test]
fn fields_by_control() {
    let with = |sctlr, mte, nmi| {
        let c = Context {
            sctlr,
            mte,
            nmi,
            ..ctx(0)
        };
        take(&c, Kind::Sync).pstate
    };
    assert_eq!(with(0, false, false), 0x3c5 | 1 << 22, "PAN is set");
    assert_eq!(with(SPAN | DSSBS, false, false), 0x3c5 | 1 << 12);
    assert_eq!(with(SPAN, true, false), 0x3c5 | 1 << 25, "TCO");
    assert_eq!(with(SPAN, false, true), 0x3c5 | 1 << 13, "ALLINT");
    assert_eq!(with(SPAN | SPINTMASK, false, true), 0x3c5);
    assert_eq!(with(SPAN | SPINTMASK, false, false), 0x3c5);
}

/// From AArch32 bit 23 is SSBS, 26:25 and 15:10 are IT, 19:16 GE, 27 Q, 9 E, 5 T: nothing of it stays.
#[test]
fn fields_from_aarch32() {
    let p = 0xffff_ffe0 | 0x10;
    let t = take(&ctx(p), Kind::Sync);
    assert_eq!(t.spsr, p);
    assert_eq!(t.pstate, 0xf140_03c5);
    assert_eq!(t.pc & 0x7ff, 0x600);
}

#[test]
fn syndromes_and_addresses() {
    let t = take(&ctx(0), Kind::Irq);
    assert_eq!((t.esr, t.far), (None, None));
    assert_eq!(take(&ctx(0), Kind::SError).esr, Some(0xbe00_0003));
    assert_eq!(take(&ctx(0), Kind::Sync).esr, Some(0x0200_0000));
    for (mode, low) in [(0, true), (0x10, true), (4, false), (5, false)] {
        let c = ctx(mode);
        let e = c.external_abort(false, 0x1234, None);
        assert_eq!(e.esr, Some(if low { 0x9200_0010 } else { 0x9600_0010 }));
        assert_eq!((e.kind, e.far), (Kind::Sync, Some(0x1234)));
        let e = c.external_abort(true, 0x1234, Some(2));
        assert_eq!(e.esr, Some(if low { 0x8200_0016 } else { 0x8600_0016 }));
        let e = c.address_size(true, 5);
        assert_eq!(e.esr, Some(if low { 0x8200_0000 } else { 0x8600_0000 }));
        let e = c.unsupported_exclusive(6);
        assert_eq!(e.esr, Some(if low { 0x9200_0035 } else { 0x9600_0035 }));
        assert_eq!(e.far, Some(6));
    }
}

/// FEAT_DoubleFault2: EASE is bit 5, NMEA bit 2 of SCTLR2_EL1.
#[test]
fn double_fault() {
    let c = Context {
        sctlr2: 1 << 5,
        ..ctx(0x105)
    };
    let e = c.external_abort(false, 7, None);
    assert_eq!(e.kind, Kind::SError);
    let t = c.take(&e).expect("a guest's mode");
    assert_eq!(
        (t.pc & 0x7ff, t.esr, t.far),
        (0x380, Some(0x9600_0010), Some(7))
    );
    assert!(c.serror_masked());
    assert!(!Context {
        sctlr2: 1 << 2,
        ..c
    }
    .serror_masked());
    assert!(!ctx(5).serror_masked());
}

#[test]
fn endianness() {
    let (e0e, ee) = (1 << 24, 1 << 25);
    assert!(big_endian(0, e0e) && !big_endian(0, ee));
    assert!(big_endian(5, ee) && !big_endian(5, e0e) && big_endian(4, ee));
    assert!(big_endian(0x210, 0) && !big_endian(0x10, e0e | ee));
}

#[test]
fn steps() {
    // BTYPE and SS are done with.
    assert_eq!(
        step_over(0x1000, 0x20_0c05 | 1 << 31, true),
        (0x1004, 5 | 1 << 31)
    );
    assert_eq!(step_over(u64::MAX - 3, 0, true), (0, 0));
    assert_eq!(step_over(0x1000, 0x10, true).0, 0x1004);
    assert_eq!(step_over(0xffff_fffc, 0x10, true).0, 0);
    assert_eq!(step_over(0x1000, 0x30, true).0, 0x1004);
    assert_eq!(step_over(0x1000, 0x30, false).0, 0x1002);
    // A32 has no short instructions, whatever IL says.
    assert_eq!(step_over(0x1000, 0x10, false).0, 0x1004);
    assert_eq!(step_over(0x1000, 0x20_0030, false).1, 0x30);
    // ITTET EQ is IT = 0000_0101: EQ, EQ, NE, EQ; after it, none.
    let it = |it: u64| 0x30 | (it & 0xfc) << 8 | (it & 3) << 25;
    let mut p = it(0b0000_0101);
    for next in [0b0000_1010, 0b0001_0100, 0b0000_1000, 0] {
        p = step_over(0, p, false).1;
        assert_eq!(p, it(next));
    }
    // The condition's upper bits stay.
    assert_eq!(step_over(0, it(0b1101_0010), false).1, it(0b1100_0100));
}

proptest! {
    #[test]
    fn never_illegal(pc: u64, pstate: u64, vbar: u64, sctlr: u64, sctlr2: u64, mte: bool, nmi: bool) {
        let c = Context { pc, pstate, vbar, sctlr, sctlr2, mte, nmi };
        match c.take(&Exception::undefined()) {
            Some(t) => {
                prop_assert_eq!(t.pstate & 0x3df, 0x3c5);
                prop_assert_eq!(t.pstate >> 32, 0);
                prop_assert_eq!((t.spsr, t.elr, t.pc & 3), (pstate, pc, 0));
            }
            None => prop_assert!(Mode::of(pstate).is_none()),
        }
    }
}
