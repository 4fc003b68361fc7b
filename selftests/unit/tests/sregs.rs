// SPDX-License-Identifier: GPL-2.0

//! Control and debug registers: the manuals' rules one by one, and what must hold after any
//! sequence of moves.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::cpuid::{Feature, GuestFeatures};
use rkvm_unit::arch::x86::model::regs::{cr0, cr4, efer};
use rkvm_unit::arch::x86::model::sregs::{
    apic_base_valid, apic_base_write, check, debug_register, mov_cr8, replaced, write_dr6,
    write_dr7, xsetbv, Control, Effects, Gp, Invalid, APIC_BASE_BSP, APIC_BASE_ENABLE,
    APIC_BASE_EXTD, DR6_INIT, DR7_INIT,
};

/// A guest with everything that these rules ask for.
fn guest() -> GuestFeatures {
    let mut g = GuestFeatures {
        maxphyaddr: 40,
        efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        xcr0: 0x2e7,
        ..GuestFeatures::default()
    };
    g.cr4 |= cr4::UMIP
        | cr4::LA57
        | cr4::FSGSBASE
        | cr4::PCIDE
        | cr4::OSXSAVE
        | cr4::SMEP
        | cr4::SMAP
        | cr4::PKE
        | cr4::CET;
    g.set.set(Feature::X2apic, true);
    g
}

fn real() -> Control {
    Control {
        cr0: cr0::ET,
        ..Control::default()
    }
}

fn protected() -> Control {
    Control {
        cr0: cr0::ET | cr0::PE,
        ..Control::default()
    }
}

fn pae() -> Control {
    Control {
        cr0: cr0::ET | cr0::PE | cr0::PG,
        cr4: cr4::PAE,
        ..Control::default()
    }
}

fn long() -> Control {
    Control {
        efer: efer::LME | efer::LMA,
        ..pae()
    }
}

#[test]
fn cr0_alone() {
    for bit in 32..64 {
        assert_eq!(real().mov_cr0(1 << bit, false), Err(Gp));
    }
    assert_eq!(real().mov_cr0(cr0::PG, false), Err(Gp), "PG needs PE");
    assert_eq!(real().mov_cr0(cr0::NW, false), Err(Gp), "NW needs CD");
    assert!(real().mov_cr0(cr0::NW | cr0::CD, false).is_ok());
    // Reserved bits of the lower half vanish, ET stays.
    assert_eq!(real().mov_cr0(0x1ffa_ffc0, false).unwrap().0.cr0, cr0::ET);
    assert_eq!(real().mov_cr0(0, false).unwrap(), (real(), Effects::NONE));
}

#[test]
fn entering_and_leaving_long_mode() {
    let mut c = protected();
    c.efer = efer::LME;
    let on = c.cr0 | cr0::PG;
    assert_eq!(c.mov_cr0(on, false), Err(Gp), "without PAE");
    c.cr4 = cr4::PAE;
    assert_eq!(c.mov_cr0(on, true), Err(Gp), "with CS.L");
    let (c, e) = c.mov_cr0(on, false).unwrap();
    assert_eq!(c.efer, efer::LME | efer::LMA);
    assert!(e.has(Effects::LONG_MODE) && e.has(Effects::FLUSH_TLB));
    assert!(!e.has(Effects::LOAD_PDPTES));

    let off = c.cr0 & !cr0::PG;
    assert_eq!(c.mov_cr0(off, true), Err(Gp), "from 64-bit code");
    let pcid = Control {
        cr4: c.cr4 | cr4::PCIDE,
        ..c
    };
    assert_eq!(pcid.mov_cr0(off, false), Err(Gp), "with PCIDE");
    let (c, e) = c.mov_cr0(off, false).unwrap();
    assert_eq!(c.efer, efer::LME);
    assert!(e.has(Effects::LONG_MODE) && e.has(Effects::FLUSH_TLB));
}

#[test]
fn pdptes_are_loaded() {
    let g = guest();
    let load = |r: Result<(Control, Effects), Gp>| r.unwrap().1.has(Effects::LOAD_PDPTES);
    let mut c = pae();
    c.cr0 &= !cr0::PG;
    assert!(load(c.mov_cr0(pae().cr0, false)), "PG set");
    assert!(
        load(pae().mov_cr0(pae().cr0 | cr0::CD, false)),
        "CD changed"
    );
    assert!(
        !load(pae().mov_cr0(pae().cr0 | cr0::WP, false)),
        "WP changed"
    );
    assert!(load(pae().mov_cr3(0x1000, &g)));
    assert!(!load(long().mov_cr3(0x1000, &g)));
    for bit in [cr4::PSE, cr4::PGE, cr4::SMEP] {
        assert!(load(pae().mov_cr4(cr4::PAE | bit, &g)), "CR4 {bit:#x}");
        assert!(
            !load(long().mov_cr4(cr4::PAE | bit, &g)),
            "CR4 {bit:#x} in long mode"
        );
    }
    assert!(!load(pae().mov_cr4(cr4::PAE | cr4::TSD, &g)));
    let legacy = Control { cr4: 0, ..pae() };
    assert!(load(legacy.mov_cr4(cr4::PAE, &g)), "PAE set under paging");
}

#[test]
fn cr3_values() {
    let g = guest();
    for bit in 40..64 {
        assert_eq!(long().mov_cr3(1 << bit, &g), Err(Gp), "bit {bit}");
    }
    let (c, e) = long().mov_cr3(0xff_ffff_f018, &g).unwrap();
    assert_eq!(c.cr3, 0xff_ffff_f018);
    assert_eq!(e, Effects::FLUSH_TLB_LOCAL);
    let pcid = Control {
        cr4: cr4::PAE | cr4::PCIDE,
        ..long()
    };
    let (c, e) = pcid.mov_cr3(1 << 63 | 0x5001, &g).unwrap();
    assert_eq!((c.cr3, e), (0x5001, Effects::NONE));
    assert_eq!(pcid.mov_cr3(1 << 62, &g), Err(Gp));
}

#[test]
fn cr4_values() {
    let g = guest();
    let none = GuestFeatures::default();
    for bit in 0..64 {
        let ok = protected().mov_cr4(1 << bit, &none).is_ok();
        assert_eq!(ok, none.cr4 >> bit & 1 == 1, "bit {bit}");
    }
    assert_eq!(long().mov_cr4(0, &g), Err(Gp), "clearing PAE in long mode");
    assert_eq!(
        long().mov_cr4(cr4::PAE | cr4::LA57, &g),
        Err(Gp),
        "LA57 in long mode"
    );
    assert!(protected().mov_cr4(cr4::PAE | cr4::LA57, &g).is_ok());
    assert_eq!(
        pae().mov_cr4(cr4::PAE | cr4::PCIDE, &g),
        Err(Gp),
        "PCIDE outside long mode"
    );
    assert!(long().mov_cr4(cr4::PAE | cr4::PCIDE, &g).is_ok());
    let odd = Control {
        cr3: 0x1001,
        ..long()
    };
    assert_eq!(
        odd.mov_cr4(cr4::PAE | cr4::PCIDE, &g),
        Err(Gp),
        "PCIDE with a PCID in CR3"
    );
    let set = Control {
        cr4: cr4::PAE | cr4::PCIDE,
        ..odd
    };
    assert!(
        set.mov_cr4(cr4::PAE | cr4::PCIDE | cr4::PGE, &g).is_ok(),
        "it may stay"
    );
    assert_eq!(
        long().mov_cr4(cr4::PAE | cr4::CET, &g),
        Err(Gp),
        "CET without WP"
    );
    let wp = Control {
        cr0: long().cr0 | cr0::WP,
        ..long()
    };
    let (cet, _) = wp.mov_cr4(cr4::PAE | cr4::CET, &g).unwrap();
    assert_eq!(
        cet.mov_cr0(cet.cr0 & !cr0::WP, false),
        Err(Gp),
        "WP under CET"
    );

    let effects = |from: u64, to: u64| {
        Control {
            cr4: from,
            ..long()
        }
        .mov_cr4(to, &g)
        .unwrap()
        .1
    };
    let p = cr4::PAE;
    assert_eq!(effects(p, p | cr4::OSXSAVE), Effects::CPUID);
    assert_eq!(
        effects(p, p | cr4::PKE),
        Effects::CPUID.and(Effects::FLUSH_TLB)
    );
    for bit in [cr4::PGE, cr4::PSE, cr4::SMEP, cr4::SMAP] {
        assert_eq!(effects(p, p | bit), Effects::FLUSH_TLB);
        assert_eq!(effects(p | bit, p), Effects::FLUSH_TLB);
    }
    assert_eq!(effects(p, p | cr4::PCIDE), Effects::NONE);
    assert_eq!(effects(p | cr4::PCIDE, p), Effects::FLUSH_TLB);
    assert_eq!(effects(p, p | cr4::TSD | cr4::UMIP), Effects::NONE);
}

#[test]
fn efer_values() {
    let g = guest();
    let none = GuestFeatures::default();
    for bit in 0..64 {
        assert_eq!(
            protected().write_efer(1 << bit, &none).is_ok(),
            bit == 0,
            "bit {bit}"
        );
    }
    assert_eq!(pae().write_efer(efer::LME, &g), Err(Gp), "LME under paging");
    assert_eq!(long().write_efer(0, &g), Err(Gp), "LME under paging");
    let (c, e) = long().write_efer(efer::LME | efer::NXE, &g).unwrap();
    assert_eq!(c.efer, efer::LME | efer::LMA | efer::NXE, "LMA stays");
    assert_eq!(e, Effects::FLUSH_TLB);
    let (c, e) = protected().write_efer(efer::LME | efer::LMA, &g).unwrap();
    assert_eq!(
        (c.efer, e),
        (efer::LME, Effects::NONE),
        "LMA is not written"
    );
}

#[test]
fn cr8_values() {
    for v in 0..16 {
        assert_eq!(mov_cr8(v), Ok(v as u8));
    }
    for v in [16, 17, 0x100, 1 << 63, u64::MAX] {
        assert_eq!(mov_cr8(v), Err(Gp));
    }
}

#[test]
fn sregs_rules() {
    let g = guest();
    let bad = |c: Control, cs_long: bool, why: Invalid| {
        assert_eq!(check(&c, cs_long, &g), Err(why));
    };
    for c in [real(), protected(), pae(), long()] {
        assert_eq!(check(&c, false, &g), Ok(()));
    }
    assert_eq!(check(&long(), true, &g), Ok(()));
    bad(
        Control {
            cr0: 1 << 32,
            ..real()
        },
        false,
        Invalid::Cr0Reserved,
    );
    bad(
        Control {
            cr0: cr0::PG,
            ..real()
        },
        false,
        Invalid::PagingWithoutProtection,
    );
    bad(
        Control {
            cr0: cr0::NW,
            ..real()
        },
        false,
        Invalid::NotWriteThroughWithoutCacheDisable,
    );
    bad(
        Control {
            cr4: 1 << 13,
            ..real()
        },
        false,
        Invalid::Cr4Reserved(1 << 13),
    );
    bad(
        Control {
            efer: efer::SVME,
            ..real()
        },
        false,
        Invalid::EferReserved(efer::SVME),
    );
    bad(
        Control { cr4: 0, ..long() },
        false,
        Invalid::LongModeWithoutPae,
    );
    bad(
        Control {
            efer: efer::LME,
            ..long()
        },
        false,
        Invalid::LongModeActive,
    );
    bad(
        Control {
            efer: efer::LMA,
            ..long()
        },
        false,
        Invalid::LongModeActive,
    );
    bad(
        Control {
            efer: efer::LME | efer::LMA,
            ..protected()
        },
        false,
        Invalid::LongModeActive,
    );
    bad(pae(), true, Invalid::CsLong);
    bad(
        Control {
            cr3: 1 << 40,
            ..long()
        },
        false,
        Invalid::Cr3Reserved,
    );
    bad(
        Control {
            cr4: cr4::PAE | cr4::CET,
            ..long()
        },
        false,
        Invalid::Cr4Mode,
    );
    bad(
        Control {
            cr4: cr4::PAE | cr4::PCIDE,
            ..pae()
        },
        false,
        Invalid::Cr4Mode,
    );

    assert_eq!(replaced(&long(), &long()), Effects::NONE);
    let e = replaced(&real(), &long());
    assert!(e.has(Effects::FLUSH_TLB) && e.has(Effects::LONG_MODE));
    assert!(replaced(&real(), &pae()).has(Effects::LOAD_PDPTES));
    let osxsave = Control {
        cr4: cr4::PAE | cr4::OSXSAVE,
        ..long()
    };
    assert!(replaced(&long(), &osxsave).has(Effects::CPUID));
}

#[test]
fn apic_base() {
    let g = guest();
    let base = 0xfee0_0000;
    let (off, x, x2) = (
        base,
        base | APIC_BASE_ENABLE,
        base | APIC_BASE_ENABLE | APIC_BASE_EXTD,
    );
    // Cases of the kernel's set_sregs_test.
    assert_eq!(apic_base_valid(APIC_BASE_EXTD, &g), Err(Gp));
    assert_eq!(apic_base_valid(APIC_BASE_ENABLE, &g), Ok(()));
    for bit in (0..8).chain([9]).chain(40..64) {
        assert_eq!(apic_base_valid(x | 1 << bit, &g), Err(Gp), "bit {bit}");
    }
    assert_eq!(apic_base_valid(x2 | APIC_BASE_BSP, &g), Ok(()));
    assert_eq!(
        apic_base_valid(
            x2,
            &GuestFeatures {
                maxphyaddr: 40,
                ..Default::default()
            }
        ),
        Err(Gp)
    );
    for (from, to, ok) in [
        (off, off, true),
        (off, x, true),
        (off, x2, false),
        (x, off, true),
        (x, x, true),
        (x, x2, true),
        (x2, off, true),
        (x2, x, false),
        (x2, x2, true),
    ] {
        assert_eq!(
            apic_base_write(from, to, &g).is_ok(),
            ok,
            "{from:#x} to {to:#x}"
        );
    }
}

#[test]
fn debug_registers() {
    let g = guest();
    assert_eq!(write_dr6(0, &g), Ok(DR6_INIT));
    assert_eq!(write_dr6(0xffff_ffff, &g), Ok(0xffff_efff));
    assert_eq!(write_dr7(0, &g), Ok(DR7_INIT));
    assert_eq!(write_dr7(0xffff_ffff, &g), Ok(0xffff_27ff));
    for bit in 32..64 {
        assert_eq!(
            (write_dr6(1 << bit, &g), write_dr7(1 << bit, &g)),
            (Err(Gp), Err(Gp))
        );
    }
    let mut rtm = guest();
    rtm.set.set(Feature::Rtm, true);
    assert_eq!(write_dr6(0, &rtm), Ok(0xfffe_0ff0));
    assert_eq!(write_dr7(1 << 11, &rtm), Ok(0xc00));
    let names: Vec<_> = (0..9).map(|n| debug_register(n, 0)).collect();
    let want = [0, 1, 2, 3, 6, 7, 6, 7].map(Some).into_iter().chain([None]);
    assert!(names.into_iter().eq(want));
    assert_eq!(
        (debug_register(4, cr4::DE), debug_register(5, cr4::DE)),
        (None, None)
    );
    assert_eq!(debug_register(6, cr4::DE), Some(6));
}

#[test]
fn xcr0_of_the_kernels_selftest() {
    let g = guest();
    assert_eq!(xsetbv(0, 1, &g), Ok(1));
    assert_eq!(xsetbv(0, g.xcr0, &g), Ok(g.xcr0));
    for bit in (0..64).filter(|b| g.xcr0 >> b & 1 == 0) {
        assert_eq!(xsetbv(0, g.xcr0 | 1 << bit, &g), Err(Gp), "bit {bit}");
    }
    assert_eq!(xsetbv(1, 1, &g), Err(Gp));
    assert_eq!(xsetbv(0, 0, &g), Err(Gp));
}

/// One thing a guest can do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Cr0(u64),
    Cr3(u64),
    Cr4(u64),
    Efer(u64),
    CsLong(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let some = |bits: &'static [u64]| {
        proptest::collection::vec(proptest::sample::select(bits), 0..7)
            .prop_map(|v| v.into_iter().fold(0, |a, b| a | b))
    };
    static CR0: [u64; 7] = [
        cr0::PE,
        cr0::PE | cr0::PG,
        cr0::PG,
        cr0::WP,
        cr0::CD,
        cr0::NW,
        1 << 40,
    ];
    static CR4: [u64; 11] = [
        cr4::PAE,
        cr4::PAE,
        cr4::PGE,
        cr4::LA57,
        cr4::PCIDE,
        cr4::OSXSAVE,
        cr4::CET,
        cr4::SMEP,
        cr4::SMAP,
        cr4::PSE,
        cr4::VMXE,
    ];
    static EFER: [u64; 5] = [efer::LME, efer::LMA, efer::NXE, efer::SCE, efer::SVME];
    prop_oneof![
        some(&CR0).prop_map(Step::Cr0),
        any::<u64>().prop_map(|v| Step::Cr3(v >> (v & 31))),
        some(&CR4).prop_map(Step::Cr4),
        some(&EFER).prop_map(Step::Efer),
        any::<bool>().prop_map(Step::CsLong),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// From reset, no sequence of moves leads to a state that KVM_SET_SREGS would refuse (or that a
    /// VM entry would): LMA is PG and LME, long mode has PAE, PCIDE is in long mode only.
    #[test]
    fn moves_keep_the_rules(steps in proptest::collection::vec(step(), 1..40)) {
        let g = guest();
        let mut c = real();
        let mut cs_long = false;
        for s in steps {
            let r = match s {
                Step::Cr0(v) => c.mov_cr0(v, cs_long),
                Step::Cr3(v) => c.mov_cr3(v, &g),
                Step::Cr4(v) => c.mov_cr4(v, &g),
                Step::Efer(v) => c.write_efer(v, &g),
                Step::CsLong(l) => {
                    // A far jump; CS.L has no meaning outside long mode.
                    cs_long = l && c.efer & efer::LMA != 0;
                    continue;
                }
            };
            let Ok((next, effects)) = r else { continue };
            prop_assert_eq!(check(&next, cs_long, &g), Ok(()), "{:?} then {:?}", c, s);
            let paging = next.cr0 & cr0::PG != 0;
            let lma = next.efer & efer::LMA != 0;
            prop_assert_eq!(lma, paging && next.efer & efer::LME != 0);
            prop_assert!(next.cr4 & cr4::PCIDE == 0 || lma);
            prop_assert_eq!(effects.has(Effects::LONG_MODE), (c.efer ^ next.efer) & efer::LMA != 0);
            // Whatever changes how addresses are translated is flushed.
            let translation = |c: &Control| (
                c.cr0 & (cr0::PG | cr0::WP),
                c.cr4 & (cr4::PAE | cr4::PSE | cr4::PGE | cr4::LA57 | cr4::SMEP | cr4::SMAP),
                c.efer & (efer::NXE | efer::LMA),
            );
            if translation(&c) != translation(&next) {
                prop_assert!(effects.has(Effects::FLUSH_TLB), "{:?} then {:?}", c, s);
            }
            if next.pae_paging() && !c.pae_paging() {
                prop_assert!(effects.has(Effects::LOAD_PDPTES), "{:?} then {:?}", c, s);
            }
            c = next;
        }
    }

    /// XCR0 against the rules as SDM vol. 1 13.3 lists them.
    #[test]
    fn xcr0(value in prop_oneof![any::<u64>(), 0u64..0x400], supported in prop_oneof![
        Just(3u64), Just(7), Just(0x207), Just(0xe7), Just(0x2e7), Just(0x602e7), Just(0x1f), any::<u64>()
    ]) {
        let g = GuestFeatures { xcr0: supported, ..GuestFeatures::default() };
        let on = |n: u32| value >> n & 1 == 1;
        let mut ok = on(0);
        ok &= (0..64).all(|n| !on(n) || supported >> n & 1 == 1);
        ok &= !on(2) || on(1);
        ok &= on(3) == on(4);
        ok &= on(5) == on(6) && on(6) == on(7);
        ok &= !on(5) || on(2);
        ok &= on(17) == on(18);
        prop_assert_eq!(xsetbv(0, value, &g).is_ok(), ok);
    }
}
