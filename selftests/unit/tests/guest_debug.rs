// SPDX-License-Identifier: GPL-2.0

//! What `kvm_guest_debug` asks for.

use kvm_bindings::*;
use rkvm_unit::arch::x86::args::debug::{decode, Breakpoints, Request, Wanted, SERVED};

fn debug(control: u32) -> kvm_guest_debug {
    let mut d = kvm_guest_debug {
        control,
        ..Default::default()
    };
    d.arch.debugreg = [1, 2, 3, 4, 5, 6, 7, 0xd_0002];
    d
}

#[test]
fn served() {
    assert_eq!(SERVED, 0x1f_0003);
}

#[test]
fn nothing_without_enable() {
    for control in [0, SERVED & !1] {
        let r = decode(&debug(control)).expect("no rule is broken");
        assert_eq!(r.wanted, Wanted::default());
    }
    // What is injected does not need it, and #DB goes first.
    let inject = |c| decode(&debug(c)).expect("no rule is broken").inject;
    assert_eq!(inject(0), None);
    assert_eq!(inject(KVM_GUESTDBG_INJECT_BP), Some(3));
    assert_eq!(inject(KVM_GUESTDBG_INJECT_DB), Some(1));
    assert_eq!(
        inject(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP),
        Some(1)
    );
}

#[test]
fn each_bit() {
    let on = |bit| decode(&debug(KVM_GUESTDBG_ENABLE | bit)).expect("no rule is broken");
    let only = |wanted| Request {
        wanted,
        inject: None,
    };
    let none = Wanted::default();
    assert_eq!(on(0), only(none));
    assert_eq!(
        on(KVM_GUESTDBG_SINGLESTEP),
        only(Wanted { step: true, ..none })
    );
    assert_eq!(
        on(KVM_GUESTDBG_USE_SW_BP),
        only(Wanted { int3: true, ..none })
    );
    assert_eq!(
        on(KVM_GUESTDBG_BLOCKIRQ),
        only(Wanted {
            block_events: true,
            ..none
        })
    );
    // Bit 10 is always set.
    let breakpoints = Some(Breakpoints {
        addresses: [1, 2, 3, 4],
        dr7: 0xd_0402,
    });
    assert_eq!(
        on(KVM_GUESTDBG_USE_HW_BP),
        only(Wanted {
            breakpoints,
            ..none
        })
    );
}

#[test]
fn dr7_is_checked_where_it_is_used() {
    for (control, ok) in [
        (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, false),
        (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, true),
        (KVM_GUESTDBG_USE_HW_BP, true),
    ] {
        let mut d = debug(control);
        d.arch.debugreg[7] = 1 << 32;
        assert_eq!(decode(&d).is_ok(), ok, "{control:#x}");
    }
}
