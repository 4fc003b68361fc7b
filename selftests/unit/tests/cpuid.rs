// SPDX-License-Identifier: GPL-2.0

//! CPUID: the tables themselves, what is offered on all kinds of hosts, and lookups against the
//! rules told another way.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::cpuid::feature::{ALL, COUNT, TABLE};
use rkvm_unit::arch::x86::model::cpuid::{
    dynamic, family_model, Cap, CapSet, CpuidTable, Dynamic, Entry, Feature, FeatureSet,
    GuestFeatures, HostCaps, InvalidCpuid, Policy, Reg, Regs, Supported, Vendor, MAX_ENTRIES,
    SIGNIFICANT_INDEX,
};
use rkvm_unit::arch::x86::model::pv;
use rkvm_unit::arch::x86::model::regs::{cr4, efer};
use rkvm_unit::arch::x86::model::xstate::XstateLayout;
use std::collections::HashSet;

const REGS: [Reg; 4] = [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx];

/// "AuthenticAMD"
const AMD: Regs = Regs {
    eax: 0,
    ebx: 0x6874_7541,
    ecx: 0x444d_4163,
    edx: 0x6974_6e65,
};
/// "GenuineIntel"
const INTEL: Regs = Regs {
    eax: 0,
    ebx: 0x756e_6547,
    ecx: 0x6c65_746e,
    edx: 0x4965_6e69,
};

/// XSAVE components of a processor with AVX-512, PKRU and CET, sizes as Intel's have them.
fn xsave_leaf(sub: u32) -> Regs {
    let c = |eax, ebx, ecx| Regs {
        eax,
        ebx,
        ecx,
        edx: 0,
    };
    match sub {
        0 => c(0x2e7, 0x340, 0x988 + 0x108),
        1 => Regs {
            eax: 0xf,
            ebx: 0,
            ecx: 0x1800,
            edx: 0,
        },
        2 => c(0x100, 0x240, 0),
        5 => c(0x40, 0x440, 0),
        6 => c(0x200, 0x480, 0),
        7 => c(0x400, 0x680, 0),
        9 => c(8, 0xa80, 6),
        11 => c(0x10, 0, 1),
        12 => c(0x18, 0, 1),
        _ => Regs::ZERO,
    }
}

/// A host whose every bit is one, but for what has to make sense.
fn full_host(vendor: Regs) -> impl Fn(u32, u32) -> Regs {
    let ones = Regs {
        eax: !0,
        ebx: !0,
        ecx: !0,
        edx: !0,
    };
    move |leaf, sub| match leaf {
        0 => Regs {
            eax: 0x24,
            ..vendor
        },
        1 => Regs {
            eax: 0x00a2_0f12,
            ..ones
        },
        4 | 0x8000_001d if sub < 4 => Regs {
            eax: 0x4000_0121 + sub,
            ebx: 1,
            ecx: sub,
            edx: 0,
        },
        4 | 0x8000_001d => Regs::ZERO,
        7 if sub == 0 => Regs { eax: 2, ..ones },
        0xd => xsave_leaf(sub),
        0x8000_0000 => Regs {
            eax: 0x8000_0026,
            ..vendor
        },
        0x8000_0008 => Regs {
            eax: 0x3930,
            ..ones
        },
        _ => ones,
    }
}

fn caps(vendor: Vendor) -> HostCaps {
    HostCaps {
        vendor,
        caps: CapSet::ALL,
        host_xcr0: 0x2e7,
        xss: 0x1800,
        gpa_bits: 48,
        pv: pv::KNOWN,
    }
}

fn entries(s: &Supported, host: &dyn Fn(u32, u32) -> Regs) -> Vec<Entry> {
    let mut v = Vec::new();
    s.emit(host, |e| {
        v.push(e);
        Ok::<(), ()>(())
    })
    .unwrap();
    v
}

fn find(v: &[Entry], leaf: u32, sub: u32) -> Regs {
    let e = v.iter().find(|e| e.function == leaf && e.index == sub);
    e.unwrap_or_else(|| panic!("leaf {leaf:#x}.{sub}")).regs
}

fn state(layout: &XstateLayout) -> Dynamic<'_> {
    Dynamic {
        cr4: 0,
        apic_enabled: true,
        mwait: None,
        xcr0: 1,
        xss: 0,
        layout,
    }
}

#[test]
fn table_is_sorted_and_unique() {
    assert_eq!(TABLE.len(), COUNT);
    let place = |i: usize| {
        let t = &TABLE[i];
        (t.leaf, t.subleaf, t.reg, t.bit)
    };
    for i in 1..COUNT {
        assert!(
            place(i - 1) < place(i),
            "{} after {}",
            TABLE[i].name,
            TABLE[i - 1].name
        );
    }
    let names: HashSet<_> = TABLE.iter().map(|t| t.name).collect();
    assert_eq!(names.len(), COUNT);
    for (i, (f, t)) in ALL.iter().zip(TABLE.iter()).enumerate() {
        assert_eq!(*f as usize, i);
        assert_eq!(f.info().name, t.name);
        assert!(t.bit < 32, "{}", t.name);
        assert!(
            t.name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{}",
            t.name
        );
    }
}

/// Positions that everybody knows, so that a slip in a table row shows.
#[test]
fn well_known_bits() {
    use Feature::*;
    for (f, leaf, sub, reg, bit) in [
        (Sse3, 1, 0, Reg::Ecx, 0),
        (Cx16, 1, 0, Reg::Ecx, 13),
        (Pcid, 1, 0, Reg::Ecx, 17),
        (X2apic, 1, 0, Reg::Ecx, 21),
        (TscDeadline, 1, 0, Reg::Ecx, 24),
        (Xsave, 1, 0, Reg::Ecx, 26),
        (Osxsave, 1, 0, Reg::Ecx, 27),
        (Hypervisor, 1, 0, Reg::Ecx, 31),
        (Apic, 1, 0, Reg::Edx, 9),
        (Sse2, 1, 0, Reg::Edx, 26),
        (Fsgsbase, 7, 0, Reg::Ebx, 0),
        (Smep, 7, 0, Reg::Ebx, 7),
        (Invpcid, 7, 0, Reg::Ebx, 10),
        (Smap, 7, 0, Reg::Ebx, 20),
        (Umip, 7, 0, Reg::Ecx, 2),
        (Pku, 7, 0, Reg::Ecx, 3),
        (La57, 7, 0, Reg::Ecx, 16),
        (Rdpid, 7, 0, Reg::Ecx, 22),
        (SpecCtrl, 7, 0, Reg::Edx, 26),
        (ArchCapabilities, 7, 0, Reg::Edx, 29),
        (AvxVnni, 7, 1, Reg::Eax, 4),
        (Xsaves, 0xd, 1, Reg::Eax, 3),
        (Svm, 0x8000_0001, 0, Reg::Ecx, 2),
        (Topoext, 0x8000_0001, 0, Reg::Ecx, 22),
        (Syscall, 0x8000_0001, 0, Reg::Edx, 11),
        (Nx, 0x8000_0001, 0, Reg::Edx, 20),
        (Gbpages, 0x8000_0001, 0, Reg::Edx, 26),
        (Rdtscp, 0x8000_0001, 0, Reg::Edx, 27),
        (Lm, 0x8000_0001, 0, Reg::Edx, 29),
        (InvariantTsc, 0x8000_0007, 0, Reg::Edx, 8),
        (AmdIbpb, 0x8000_0008, 0, Reg::Ebx, 12),
        (LfenceSerializing, 0x8000_0021, 0, Reg::Eax, 2),
        (NullSelClearsBase, 0x8000_0021, 0, Reg::Eax, 6),
        (AutoIbrs, 0x8000_0021, 0, Reg::Eax, 8),
    ] {
        let i = f.info();
        assert_eq!(
            (i.leaf, i.subleaf, i.reg, i.bit),
            (leaf, sub, reg, bit),
            "{}",
            i.name
        );
    }
}

#[test]
fn feature_set() {
    let mut s = FeatureSet::EMPTY;
    for f in ALL {
        assert!(!s.has(f));
        s.set(f, true);
        assert!(s.has(f));
    }
    for f in ALL {
        s.set(f, false);
        assert!(!s.has(f));
    }
    assert_eq!(s, FeatureSet::EMPTY);
}

/// Which registers of which leaves are features, and what an all-ones host may show in them.
#[test]
fn full_host_shows_nothing_unknown() {
    for (vendor, name) in [(Vendor::Amd, AMD), (Vendor::Intel, INTEL)] {
        let host = full_host(name);
        let s = Supported::build(&host, &caps(vendor));
        let v = entries(&s, &host);
        assert!(v.len() <= MAX_ENTRIES);
        let order: Vec<_> = v.iter().map(|e| (e.function, e.index)).collect();
        assert!(
            order.windows(2).all(|w| w[0] < w[1]),
            "sorted, no entry twice"
        );

        for f in ALL {
            let i = f.info();
            let shown = i.in_regs(&find(&v, i.leaf, i.subleaf));
            match i.policy {
                Policy::Hidden | Policy::Runtime => assert!(!shown, "{} is shown", i.name),
                _ => assert!(shown, "{} is not shown", i.name),
            }
        }
        // Feature registers hold what the table knows, and nothing else.
        for (leaf, sub, reg) in TABLE.iter().map(|t| (t.leaf, t.subleaf, t.reg)) {
            let known = TABLE
                .iter()
                .filter(|t| (t.leaf, t.subleaf, t.reg) == (leaf, sub, reg))
                .fold(0, |m, t| m | t.mask());
            let shown = find(&v, leaf, sub).get(reg);
            let alias = if (leaf, reg) == (0x8000_0001, Reg::Edx) {
                0x0183_f3ff
            } else {
                0
            };
            assert_eq!(shown & !known & !alias, 0, "leaf {leaf:#x}.{sub} {reg:?}");
        }
        // Leaves of what is not virtualised are there, and empty.
        for leaf in [
            3, 5, 8, 9, 0xa, 0xc, 0xe, 0x10, 0x12, 0x14, 0x15, 0x16, 0x18, 0x1d, 0x1e,
        ] {
            assert_eq!(find(&v, leaf, 0), Regs::ZERO, "leaf {leaf:#x}");
        }
        for leaf in [
            0x8000_000a,
            0x8000_001b,
            0x8000_001e,
            0x8000_001f,
            0x8000_0020,
        ] {
            assert_eq!(find(&v, leaf, 0), Regs::ZERO, "leaf {leaf:#x}");
        }
        assert_eq!(find(&v, 0, 0), Regs { eax: 0x1f, ..name });
        assert_eq!(
            find(&v, 6, 0),
            Regs {
                eax: 4,
                ..Regs::ZERO
            }
        );
        assert_eq!(find(&v, 7, 0).eax, 2);
        assert_eq!(
            find(&v, 0x8000_0000, 0),
            Regs {
                eax: 0x8000_0021,
                ..name
            }
        );
        assert_eq!(find(&v, 0x8000_0008, 0).eax, 0x30_3930);
        assert_eq!(find(&v, 0x8000_0008, 0).ecx, 0xf0ff);
        assert_eq!(find(&v, 0x8000_0006, 0).edx, !0x3_0000);
        // The cache list ends with its empty entry.
        assert_eq!(v.iter().filter(|e| e.function == 4).count(), 5);
        assert_eq!(find(&v, 4, 4), Regs::ZERO);
        let sig = find(&v, 0x4000_0000, 0);
        let text: Vec<u8> = [sig.ebx, sig.ecx, sig.edx]
            .iter()
            .flat_map(|r| r.to_le_bytes())
            .collect();
        assert_eq!(&text, b"KVMKVMKVM\0\0\0");
        assert_eq!(sig.eax, 0x4000_0001);
        assert_eq!(find(&v, 0x4000_0001, 0).eax, pv::KNOWN);
    }
}

#[test]
fn xsave_leaf_of_a_full_host() {
    let host = full_host(INTEL);
    let s = Supported::build(&host, &caps(Vendor::Intel));
    assert_eq!((s.xcr0, s.xss), (0x2e7, 0x1800));
    let v = entries(&s, &host);
    assert_eq!(
        find(&v, 0xd, 0),
        Regs {
            eax: 0x2e7,
            ebx: 0xa88,
            ecx: 0xa88,
            edx: 0
        }
    );
    // 576 + 256 + 64 + 512 + 1024 + 8 + 16 + 24
    assert_eq!(
        find(&v, 0xd, 1),
        Regs {
            eax: 0xf,
            ebx: 2480,
            ecx: 0x1800,
            edx: 0
        }
    );
    let subs: Vec<u32> = v
        .iter()
        .filter(|e| e.function == 0xd)
        .map(|e| e.index)
        .collect();
    assert_eq!(subs, [0, 1, 2, 5, 6, 7, 9, 11, 12]);
    assert_eq!(
        find(&v, 0xd, 12),
        Regs {
            eax: 0x18,
            ebx: 0,
            ecx: 1,
            edx: 0
        }
    );
    // Alignment is shown, faulting by XFD is not.
    assert_eq!(
        find(&v, 0xd, 9),
        Regs {
            eax: 8,
            ebx: 0xa80,
            ecx: 2,
            edx: 0
        }
    );
    assert!(v.iter().all(|e| (e.flags == SIGNIFICANT_INDEX)
        == matches!(e.function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d)));
}

/// What is left when nothing is provided: no feature that needs support.
#[test]
fn without_capabilities() {
    let host = full_host(AMD);
    let none = HostCaps {
        vendor: Vendor::Amd,
        gpa_bits: 40,
        ..HostCaps::default()
    };
    let s = Supported::build(&host, &none);
    assert_eq!((s.xcr0, s.xss), (0, 0));
    for f in ALL {
        let want = matches!(
            f.info().policy,
            Policy::Host | Policy::Emulated | Policy::HostOr(_)
        );
        assert_eq!(s.features.has(f), want, "{}", f.info().name);
    }
    let v = entries(&s, &host);
    assert_eq!(find(&v, 0xd, 0), Regs::ZERO);
    assert_eq!(v.iter().filter(|e| e.function == 0xd).count(), 1);
    assert_eq!(find(&v, 0x4000_0001, 0).eax, 0);
    // Guest-physical addresses are limited by the second stage.
    assert_eq!(find(&v, 0x8000_0008, 0).eax, 0x28_3930);
}

#[test]
fn features_follow_their_state() {
    let host = full_host(INTEL);
    let mut c = caps(Vendor::Intel);
    let avx = [
        Feature::Avx,
        Feature::Fma,
        Feature::F16c,
        Feature::Avx2,
        Feature::Vaes,
    ];
    // A host kernel without AVX-512 state: AVX stays.
    c.host_xcr0 = 0x207;
    let s = Supported::build(&host, &c);
    assert_eq!(s.xcr0, 0x207);
    assert!(!s.features.has_any(&[Feature::Avx512f, Feature::Avx512vl]));
    assert!(avx.iter().all(|&f| s.features.has(f)));
    // Parts of AVX-512 are none.
    c.host_xcr0 = 0x67;
    assert_eq!(Supported::build(&host, &c).xcr0, 7);
    // Without YMM none of both, and no PKU without PKRU.
    c.host_xcr0 = 0xe3;
    let s = Supported::build(&host, &c);
    assert_eq!(s.xcr0, 3);
    assert!(!s.features.has_any(&avx));
    assert!(!s.features.has_any(&[Feature::Pku, Feature::Avx512f]));
    assert!(s.features.has(Feature::Xsave));
    // CET needs both of its components.
    c.xss = 0x800;
    assert!(!Supported::build(&host, &c)
        .features
        .has_any(&[Feature::Shstk, Feature::Ibt]));
}

/// Bits that the host's CPUID does not have but that hold there.
#[test]
fn synthesised_bits() {
    let host = |leaf, sub| match leaf {
        0x8000_0000 => Regs {
            eax: 0x8000_001e,
            ..AMD
        },
        _ => full_host(AMD)(leaf, sub),
    };
    let mut c = caps(Vendor::Amd);
    c.caps = CapSet::EMPTY;
    let v = entries(&Supported::build(host, &c), &host);
    assert_eq!(find(&v, 0x8000_0000, 0).eax, 0x8000_001e);
    c.caps = CapSet::EMPTY
        .with(Cap::LfenceSerializing)
        .with_if(Cap::NullSelClearsBase, true)
        .with_if(Cap::SsbNo, false);
    let v = entries(&Supported::build(host, &c), &host);
    assert_eq!(find(&v, 0x8000_0000, 0).eax, 0x8000_0021);
    // Those two, and "no SMM_CTL MSR", which is ours.
    assert_eq!(
        find(&v, 0x8000_0021, 0),
        Regs {
            eax: 0x244,
            ..Regs::ZERO
        }
    );
}

/// A 1990s host: no extended leaves, no leaf 7, and Intel's repetition of the highest leaf.
#[test]
fn small_host() {
    let host = |leaf: u32, sub: u32| match leaf {
        0 => Regs { eax: 2, ..INTEL },
        1 => Regs {
            eax: 0x650,
            ebx: 0,
            ecx: 0,
            edx: 0x0183_f9ff,
        },
        _ => Regs {
            eax: 0x0304_0101 + sub,
            ebx: !0,
            ecx: !0,
            edx: !0,
        },
    };
    let s = Supported::build(host, &caps(Vendor::Intel));
    let v = entries(&s, &host);
    assert!(v
        .iter()
        .all(|e| e.function <= 2 || e.function & !1 == 0x4000_0000));
    assert!(s.features.has(Feature::Fpu) && s.features.has(Feature::X2apic));
    assert!(!s
        .features
        .has_any(&[Feature::Fsgsbase, Feature::Lm, Feature::Nx, Feature::Sse]));
}

#[test]
fn sink_errors_pass() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    let mut n = 0;
    let r = s.emit(&host, |_| {
        n += 1;
        if n > 5 {
            Err("E2BIG")
        } else {
            Ok(())
        }
    });
    assert_eq!((r, n), (Err("E2BIG"), 6));
}

#[test]
fn guest_with_all_that_is_offered() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    let mut v = entries(&s, &host);
    CpuidTable::sort(&mut v);
    let g = GuestFeatures::derive(&CpuidTable::new(&v), &s).unwrap();
    assert_eq!(g.set, s.features);
    assert_eq!((g.vendor, g.family, g.model), (Vendor::Amd, 0x19, 0x21));
    assert_eq!((g.maxphyaddr, g.linear_bits), (48, 57));
    assert_eq!((g.xcr0, g.xss), (0x2e7, 0x1800));
    assert_eq!(g.reserved_gpa_bits(), 0xffff_0000_0000_0000);
    assert_eq!(g.pv, pv::KNOWN);
    assert_eq!(
        g.cr4,
        0xfff
            | cr4::LA57
            | cr4::FSGSBASE
            | cr4::PCIDE
            | cr4::OSXSAVE
            | cr4::SMEP
            | cr4::SMAP
            | cr4::PKE
            | cr4::CET
    );
    assert_eq!(
        g.efer,
        efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::FFXSR | efer::AUTOIBRS
    );
    assert!(g.is_amd());
}

#[test]
fn guest_gets_only_what_is_offered() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    // User space claims everything, hidden things too.
    let all = |function, index| Entry {
        function,
        index,
        flags: if matches!(function, 7 | 0xd) {
            SIGNIFICANT_INDEX
        } else {
            0
        },
        regs: Regs {
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        },
    };
    let mut v = vec![
        all(1, 0),
        all(7, 0),
        all(0xd, 0),
        all(0xd, 1),
        all(0x8000_0001, 0),
    ];
    v.push(Entry {
        function: 0,
        regs: Regs { eax: 0xd, ..INTEL },
        ..Entry::default()
    });
    CpuidTable::sort(&mut v);
    let g = GuestFeatures::derive(&CpuidTable::new(&v), &s).unwrap();
    assert!(!g
        .set
        .has_any(&[Feature::Svm, Feature::Vmx, Feature::Mpx, Feature::Osxsave]));
    assert!(
        g.has(Feature::Monitor),
        "MWAIT as a no-op, if user space wants it"
    );
    assert_eq!((g.xcr0, g.xss), (s.xcr0, s.xss));
    assert_eq!((g.vendor, g.maxphyaddr), (Vendor::Intel, 36));
    assert_eq!(g.cr4 & (cr4::VMXE | cr4::SMXE), 0);
    assert_eq!(g.efer & efer::SVME, 0);
}

#[test]
fn guest_without_cpuid() {
    let g = GuestFeatures::default();
    // What the kernel's set_sregs_test expects of a vCPU without KVM_SET_CPUID2.
    assert_eq!(g.efer, efer::SCE);
    assert_eq!(g.cr4, 0x7ff);
    let empty = CpuidTable::new(&[]);
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    assert_eq!(GuestFeatures::derive(&empty, &s).unwrap(), g);
    assert_eq!(empty.query(0, 0, &state(&s.layout)), Regs::ZERO);
}

#[test]
fn linear_address_width_is_checked() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    for (bits, ok) in [
        (48, true),
        (57, true),
        (0, true),
        (47, false),
        (64, false),
        (56, false),
    ] {
        let e = [
            Entry {
                function: 0x8000_0000,
                regs: Regs {
                    eax: 0x8000_0008,
                    ..AMD
                },
                ..Entry::default()
            },
            Entry {
                function: 0x8000_0008,
                regs: Regs {
                    eax: 40 | bits << 8,
                    ..Regs::ZERO
                },
                ..Entry::default()
            },
        ];
        let r = GuestFeatures::derive(&CpuidTable::new(&e), &s);
        match r {
            Ok(g) => assert!(ok && g.maxphyaddr == 40),
            Err(InvalidCpuid::LinearBits(b)) => assert!(!ok && u32::from(b) == bits),
        }
    }
}

#[test]
fn state_shows() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    let mut v = entries(&s, &host);
    CpuidTable::sort(&mut v);
    let t = CpuidTable::new(&v);
    let mut d = state(&s.layout);
    let has = |d: &Dynamic<'_>, f: Feature| {
        f.info()
            .in_regs(&t.query(f.info().leaf, f.info().subleaf, d))
    };
    assert!(!has(&d, Feature::Osxsave) && !has(&d, Feature::Ospke) && has(&d, Feature::Apic));
    assert_eq!(t.query(0xd, 0, &d).ebx, 576);
    assert_eq!(t.query(0xd, 1, &d).ebx, 576);
    d.cr4 = cr4::OSXSAVE | cr4::PKE;
    d.apic_enabled = false;
    d.xcr0 = 7;
    d.xss = 0x800;
    assert!(has(&d, Feature::Osxsave) && has(&d, Feature::Ospke) && !has(&d, Feature::Apic));
    assert_eq!(t.query(0xd, 0, &d).ebx, 832);
    assert_eq!(t.query(0xd, 0, &d).ecx, 0xa88, "the maximum stays");
    assert_eq!(t.query(0xd, 1, &d).ebx, 832 + 16);
    assert!(!has(&d, Feature::Monitor));
    d.mwait = Some(true);
    assert!(has(&d, Feature::Monitor));
    d.mwait = Some(false);
    assert!(!has(&d, Feature::Monitor));
}

/// The kernel's cpuid_test: a table that was read back in another state is the same table, one with
/// another feature or address width is not.
#[test]
fn same_tables() {
    let host = full_host(AMD);
    let s = Supported::build(&host, &caps(Vendor::Amd));
    let mut v = entries(&s, &host);
    CpuidTable::sort(&mut v);
    let mut d = state(&s.layout);
    d.cr4 = cr4::OSXSAVE | cr4::PKE;
    d.apic_enabled = false;
    d.xcr0 = 7;
    let read_back: Vec<Entry> = v
        .iter()
        .map(|e| Entry {
            regs: dynamic(e, &d),
            ..*e
        })
        .collect();
    assert_ne!(v, read_back);
    let t = CpuidTable::new(&v);
    let now = state(&s.layout);
    assert!(t.same(&t, &now) && t.same(&CpuidTable::new(&read_back), &now));
    assert!(!t.same(&CpuidTable::new(&v[1..]), &now));
    for i in 0..v.len() {
        let mut w = v.clone();
        w[i].regs.edx ^= 1 << 30;
        assert!(!t.same(&CpuidTable::new(&w), &now), "entry {i}");
        let mut w = v.clone();
        w[i].index += 1;
        assert!(!t.same(&CpuidTable::new(&w), &now), "entry {i}");
    }
}

#[test]
fn families() {
    // Milan, Zen 4, Rome, Skylake, Pentium III, K8, the highest there can be.
    for (eax, family, model) in [
        (0x00a0_0f11, 0x19, 0x01),
        (0x00a6_0f12, 0x19, 0x61),
        (0x0083_0f10, 0x17, 0x31),
        (0x0005_0654, 6, 0x55),
        (0x0000_0683, 6, 8),
        (0x0002_0f32, 0xf, 0x23),
        (0xffff_ffff, 0x10e, 0xff),
    ] {
        assert_eq!(family_model(eax), (family, model), "{eax:#x}");
    }
}

#[test]
fn pv_interface_behind_another() {
    let sig = |function| Entry {
        function,
        regs: Regs {
            eax: function + 1,
            ebx: 0x4b4d_564b,
            ecx: 0x564b_4d56,
            edx: 0x4d,
        },
        ..Entry::default()
    };
    let hv = Entry {
        function: 0x4000_0000,
        regs: AMD,
        ..Entry::default()
    };
    assert_eq!(
        CpuidTable::new(&[hv, sig(0x4000_0100)]).pv_base(),
        Some(0x4000_0100)
    );
    assert_eq!(
        CpuidTable::new(&[sig(0x4000_0000)]).pv_base(),
        Some(0x4000_0000)
    );
    assert_eq!(CpuidTable::new(&[hv]).pv_base(), None);
}

/// A random host that makes sense in its maxima only.
fn random_host(seed: u64, max: u32, max_ext: u32) -> impl Fn(u32, u32) -> Regs {
    move |leaf, sub| {
        let word = |n: u64| {
            let mut x = seed ^ (u64::from(leaf) << 32 | u64::from(sub) << 8 | n);
            for _ in 0..3 {
                x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
            }
            (x >> 16) as u32
        };
        let r = Regs {
            eax: word(0),
            ebx: word(1),
            ecx: word(2),
            edx: word(3),
        };
        match leaf {
            0 => Regs { eax: max, ..r },
            7 if sub == 0 => Regs {
                eax: r.eax & 3,
                ..r
            },
            0x8000_0000 => Regs {
                eax: 0x8000_0000 | max_ext,
                ..r
            },
            0xd if sub > 1 => Regs {
                eax: r.eax & 0x7ff,
                ebx: 576 + (r.ebx & 0x7c0),
                ..r
            },
            _ => r,
        }
    }
}

/// A few entries with few different leaves, so that they meet.
fn some_entries() -> impl Strategy<Value = Vec<Entry>> {
    let leaf = prop_oneof![
        Just(0u32),
        Just(1),
        Just(2),
        Just(0xb),
        Just(0xd),
        Just(0x4000_0000),
        Just(0x4000_0001),
        Just(0x4000_0100),
        Just(0x8000_0000),
        Just(0x8000_0001),
        Just(0xc000_0000),
    ];
    let max = prop_oneof![
        Just(1u32),
        Just(0xb),
        Just(0xd),
        Just(0x4000_0001),
        Just(0x8000_0001)
    ];
    proptest::collection::vec((leaf, 0u32..4, 0u32..2, max, any::<u32>(), 0u8..3), 0..24).prop_map(
        |rows| {
            rows.into_iter()
                .map(|(function, index, flags, eax, r, vendor)| {
                    let name = match vendor {
                        0 => AMD,
                        1 => INTEL,
                        _ => Regs {
                            ebx: r,
                            ecx: r,
                            edx: r,
                            eax,
                        },
                    };
                    Entry {
                        function,
                        index,
                        flags,
                        regs: Regs { eax, ..name },
                    }
                })
                .collect()
        },
    )
}

/// The first entry, in user space's order, that answers.
fn first(v: &[Entry], leaf: u32, sub: u32) -> Option<Regs> {
    v.iter()
        .find(|e| e.function == leaf && (e.flags & 1 == 0 || e.index == sub))
        .map(|e| e.regs)
}

/// The CPUID instruction, told plainly.
fn naive_query(v: &[Entry], leaf: u32, sub: u32) -> Regs {
    if let Some(r) = first(v, leaf, sub) {
        return r;
    }
    let mut leaf = leaf;
    if let Some(basic) = first(v, 0, 0) {
        let amd = (basic.ebx, basic.ecx, basic.edx) == (AMD.ebx, AMD.ecx, AMD.edx);
        let start = if (0x4000_0000..0x5000_0000).contains(&leaf) {
            leaf - leaf % 0x100
        } else if leaf >= 0xc000_0000 {
            0xc000_0000
        } else if leaf >= 0x8000_0000 {
            0x8000_0000
        } else {
            0
        };
        let in_range = first(v, start, 0).is_some_and(|r| leaf <= r.eax);
        if !amd && !in_range {
            leaf = basic.eax;
            if let Some(r) = first(v, leaf, sub) {
                return r;
            }
        }
    }
    match (leaf == 0xb || leaf == 0x1f, first(v, leaf, 1)) {
        (true, Some(r)) => Regs {
            eax: 0,
            ebx: 0,
            ecx: sub & 0xff,
            edx: r.edx,
        },
        _ => Regs::ZERO,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn lookup_like_the_plain_rules(
        given in some_entries(),
        leaf in prop_oneof![
            0u32..0x10,
            0x4000_0000u32..0x4000_0003,
            0x4000_0100u32..0x4000_0102,
            0x8000_0000u32..0x8000_0003,
            0xc000_0000u32..0xc000_0002,
            any::<u32>()
        ],
        sub in 0u32..6,
    ) {
        let mut sorted = given.clone();
        CpuidTable::sort(&mut sorted);
        let t = CpuidTable::new(&sorted);
        prop_assert_eq!(t.find(leaf, sub).map(|e| e.regs), first(&given, leaf, sub));
        // Leaves whose bits follow the guest's state are looked at elsewhere.
        let want = naive_query(&given, leaf, sub);
        let layout = XstateLayout::default();
        let got = t.query(leaf, sub, &state(&layout));
        let dynamic = [1, 7, 0xd];
        let basic = first(&given, 0, 0).map_or(0, |r| r.eax);
        if !dynamic.contains(&leaf) && !dynamic.contains(&basic) {
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn random_hosts_offer_what_they_have(
        seed in any::<u64>(),
        max in 0u32..0x30,
        max_ext in 0u32..0x30,
        caps_bits in any::<u32>(),
        xcr0 in any::<u64>(),
        xss in any::<u64>(),
    ) {
        let host = random_host(seed, max, max_ext);
        let mut set = CapSet::EMPTY;
        for (n, c) in [
            Cap::Xsave, Cap::Xsaves, Cap::Pku, Cap::TscAux, Cap::Invpcid, Cap::Waitpkg, Cap::Cet,
            Cap::La57, Cap::SpecCtrl, Cap::PredCmd, Cap::FlushCmd, Cap::ArchCapabilities,
            Cap::CpuidFaulting, Cap::LfenceSerializing, Cap::NullSelClearsBase, Cap::SsbNo,
        ].into_iter().enumerate() {
            set = set.with_if(c, caps_bits >> n & 1 == 1);
            prop_assert_eq!(set.has(c), caps_bits >> n & 1 == 1);
        }
        let c = HostCaps {
            vendor: Vendor::Amd, caps: set, host_xcr0: xcr0 | 3, xss, gpa_bits: 48, pv: !0,
        };
        let s = Supported::build(&host, &c);
        let v = entries(&s, &host);
        prop_assert!(v.len() <= MAX_ENTRIES);
        for f in ALL {
            let i = f.info();
            let reachable = if i.leaf >= 0x8000_0000 {
                i.leaf <= 0x8000_0000 + max_ext
            } else {
                i.leaf <= max && (i.leaf != 7 || i.subleaf <= host(7, 0).eax)
            };
            let has = reachable && i.in_regs(&host(i.leaf, i.subleaf));
            let ours = s.features.has(f);
            match i.policy {
                Policy::Emulated => prop_assert!(ours),
                Policy::EmulatedWith(c) => prop_assert_eq!(ours, set.has(c)),
                Policy::HostOr(c) => prop_assert_eq!(ours, has || set.has(c)),
                Policy::Host => prop_assert_eq!(ours, has, "{}", i.name),
                Policy::HostWith(c) => prop_assert!(!ours || (has && set.has(c)), "{}", i.name),
                Policy::HostState(m) => {
                    prop_assert_eq!(ours, has && s.xcr0 & m == m, "{}", i.name)
                }
                Policy::Runtime | Policy::Hidden => prop_assert!(!ours),
            }
        }
        // No XCR0 that XSETBV would refuse, and nothing the host kernel does not run with.
        prop_assert_eq!(s.xcr0 & !xcr0 & !3, 0);
        prop_assert_eq!(s.xcr0 & !0x2e7, 0);
        prop_assert!(s.xcr0 == 0 || s.xcr0 & 3 == 3);
        prop_assert!(s.xcr0 & 0xe0 == 0 || s.xcr0 & 0xe4 == 0xe4);
        prop_assert_eq!(s.xss & !(xss & 0x1800), 0);
        // What is shown is what is offered, in every register that holds features.
        for (leaf, sub, reg) in TABLE.iter().map(|t| (t.leaf, t.subleaf, t.reg)) {
            if let Some(e) = v.iter().find(|e| e.function == leaf && e.index == sub) {
                let mut want = s.features.register(leaf, sub, reg);
                if (leaf, reg) == (0x8000_0001, Reg::Edx) {
                    want |= host(leaf, 0).edx & 0x0183_f3ff
                        & s.features.register(1, 0, Reg::Edx);
                }
                prop_assert_eq!(e.regs.get(reg), want, "leaf {:#x}.{} {:?}", leaf, sub, reg);
            }
        }
        prop_assert!(REGS.iter().all(|&r| Regs::ZERO.get(r) == 0));
    }
}
