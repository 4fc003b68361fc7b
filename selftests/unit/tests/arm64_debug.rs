// SPDX-License-Identifier: GPL-2.0

//! arm64: who has the debug registers, and software step; SErrors of user space's.

use rkvm_unit::arch::arm64::model::debug::{
    control, counts, mdcr, mdscr, plan, Loaded, Plan, Registers, Stepper, OS_LOCKED,
};
use rkvm_unit::arch::arm64::model::events::{get, is_guests, set, Events, Wanted, IDS};
use rkvm_unit::arch::arm64::model::pstate::bit::SS;
use rkvm_unit::arch::arm64::model::sysreg::Sysreg;

const TDCC: u64 = 1 << 12;

#[test]
fn nobody_debugs() {
    let p = plan(0, TDCC, 0);
    assert_eq!(
        p,
        Plan {
            loaded: Loaded::None,
            mdscr: TDCC,
            mdcr: mdcr::TDA,
            step: false
        }
    );
    // The guest's own step needs no registers.
    assert_eq!(plan(0, mdscr::SS, 0).mdscr, mdscr::SS);
    assert_eq!(plan(0, mdscr::SS, 0).mdcr, mdcr::TDA);
}

#[test]
fn the_guest_debugs() {
    for on in [mdscr::MDE, mdscr::KDE, mdscr::MDE | mdscr::KDE | mdscr::SS] {
        let p = plan(0, on | TDCC, 0);
        assert_eq!((p.loaded, p.mdscr, p.mdcr), (Loaded::Guest, on | TDCC, 0));
        // Not while it has locked them.
        let p = plan(0, on | TDCC, OS_LOCKED | 8);
        assert_eq!((p.loaded, p.mdscr, p.mdcr), (Loaded::None, TDCC, mdcr::TDA));
    }
}

#[test]
fn user_space_debugs() {
    let all = mdcr::TDA | mdcr::TDE;
    let guests = mdscr::MDE | mdscr::KDE | mdscr::SS | TDCC;
    for oslsr in [0, OS_LOCKED] {
        let p = plan(control::ENABLE | control::SOFTWARE, guests, oslsr);
        assert_eq!(
            (p.loaded, p.mdscr, p.mdcr, p.step),
            (Loaded::None, TDCC, all, false)
        );
        let p = plan(control::ENABLE | control::STEP, guests, oslsr);
        assert_eq!(
            (p.loaded, p.mdscr, p.step),
            (Loaded::None, TDCC | mdscr::SS, true)
        );
        let p = plan(control::ALL, guests, oslsr);
        assert_eq!(
            (p.loaded, p.mdscr, p.mdcr, p.step),
            (Loaded::User, guests, all, true)
        );
    }
    // Nothing counts without ENABLE.
    assert_eq!(plan(control::ALL & !1, guests, 0), plan(0, guests, 0));
}

#[test]
fn steps() {
    let mut s = Stepper::default();
    // One instruction is done: SS falls, and the exception comes.
    assert_eq!(s.load(5), 5 | SS);
    assert_eq!(s.unload(5), 5);
    s.reported();
    // Left before it was: it comes again.
    assert_eq!(s.load(5), 5 | SS);
    assert_eq!(s.unload(5 | SS), 5);
    assert_eq!(s.load(5), 5 | SS);
    // The guest is stepping itself, and has not begun.
    assert_eq!(s.unload(5 | SS), 5);
    assert_eq!(s.load(5 | SS), 5 | SS);
    assert_eq!(s.unload(5), 5 | SS);
    s.reported();
    // Emulated: nothing more is to be done.
    assert_eq!(s.load(5), 5 | SS);
    s.unload(5 | SS);
    s.passed();
    assert_eq!(s.load(5), 5);
    // Interrupted before the exception: it is still to come.
    assert_eq!(s.unload(5), 5);
    assert_eq!(s.load(5), 5);
    s.unload(5);
    s.reported();
    assert_eq!(s.load(5), 5 | SS);
}

#[test]
fn registers_by_encoding() {
    let mut r = Registers::default();
    *r.get_mut(Sysreg::DBGBVR0_EL1).unwrap() = 1;
    *r.get_mut(Sysreg::DBGBCR0_EL1.plus(8)).unwrap() = 2;
    *r.get_mut(Sysreg::DBGWVR0_EL1.plus(15 * 8)).unwrap() = 3;
    *r.get_mut(Sysreg::DBGWCR0_EL1.plus(7 * 8)).unwrap() = 4;
    assert_eq!((r.bvr[0], r.bcr[1], r.wvr[15], r.wcr[7]), (1, 2, 3, 4));
    for other in [
        Sysreg::MDSCR_EL1,
        Sysreg::OSDTRRX_EL1,
        Sysreg::OSLAR_EL1,
        Sysreg::DBGVCR32_EL2,
        Sysreg::SCTLR_EL1,
        Sysreg::DBGCLAIMSET_EL1,
    ] {
        assert_eq!(r.get_mut(other), None, "{other}");
    }
    assert_eq!(counts(0x30_5000), (6, 4));
    assert_eq!(counts(u64::MAX), (16, 16));
}

#[test]
fn serrors_of_user_space() {
    let e = Events {
        serror: true,
        has_esr: true,
        esr: IDS | 0x1d1ed,
        ..Events::default()
    };
    assert_eq!(
        set(&e, true),
        Ok(Wanted {
            abort: false,
            serror: Some(IDS | 0x1d1ed)
        })
    );
    assert!(set(&e, false).is_err());
    assert!(set(&Events { esr: 1 << 25, ..e }, true).is_err());
    // Without one of its own.
    let plain = Events {
        has_esr: false,
        ..e
    };
    assert_eq!(set(&plain, false).unwrap().serror, Some(IDS));
    assert_eq!(set(&plain, true).unwrap().serror, Some(IDS));
    // A syndrome of nothing does not matter.
    let none = Events {
        abort: true,
        serror: false,
        esr: !0,
        ..e
    };
    assert_eq!(
        set(&none, false),
        Ok(Wanted {
            abort: true,
            serror: None
        })
    );
    // What is got can be set.
    for ras in [false, true] {
        for pending in [None, Some(0x1ff_ffff), Some(0)] {
            let got = get(pending, ras);
            assert_eq!(got.has_esr, ras);
            let back = set(&got, ras).unwrap();
            assert_eq!(back.serror.is_some(), pending.is_some());
            if ras {
                assert_eq!(back.serror, pending);
            }
        }
    }
}

#[test]
fn serrors_of_the_host() {
    let aet = |n: u64| n << 10 | 0x11;
    for (iss, theirs) in [
        (aet(0), true),
        (aet(1), true),
        (aet(2), false),
        (aet(3), true),
        (aet(6), false),
        (aet(6) | IDS, true),
        (6 << 10, true),
    ] {
        assert_eq!(is_guests(iss, true), theirs, "{iss:#x}");
        assert!(is_guests(iss, false));
    }
}
