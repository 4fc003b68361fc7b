// SPDX-License-Identifier: GPL-2.0

//! The local APIC against the manuals' rules (SDM vol. 3A chapter 12, APM vol. 2 chapter 16).

use rkvm_unit::arch::x86::model::lapic::regs::{dfr, esr, lvt, offset, svr};
use rkvm_unit::arch::x86::model::lapic::*;

const CONFIG: Config = Config {
    id: 3,
    bsp: false,
    bus_cycle_ns: 1,
    lint0_extint: true,
};
const FEATURES: Features = Features {
    x2apic: true,
    tsc_deadline: true,
    cmci: true,
    directed_eoi: true,
    suppress_eoi: true,
    pmc_masks: false,
    phys_bits: 48,
};
const ENABLED: u64 = apic_base::DEFAULT | apic_base::ENABLE;
const X2: u64 = ENABLED | apic_base::EXTD;

fn no_time() -> u64 {
    panic!("this access needs no time")
}

fn write(l: &mut Lapic, off: u16, v: u32) -> Effect {
    l.mmio_write(off, 4, v.into(), || 0)
}

fn read(l: &mut Lapic, off: u16) -> u32 {
    l.mmio_read(off, 4, || 0) as u32
}

/// In xAPIC mode, software enabled.
fn xapic() -> Lapic {
    let mut l = Lapic::new(CONFIG, FEATURES);
    assert!(matches!(
        write(&mut l, offset::SVR, 0x1ff),
        Effect::Identity(_)
    ));
    l
}

fn x2apic() -> Lapic {
    let mut l = xapic();
    assert!(matches!(l.set_base(X2, false), Ok(Effect::Identity(_))));
    l
}

fn msr(off: u16) -> u32 {
    0x800 + u32::from(off >> 4)
}

#[test]
fn reset_values() {
    let mut l = Lapic::new(CONFIG, FEATURES);
    assert_eq!(l.base(), ENABLED);
    assert_eq!(l.mode(), Mode::Xapic);
    for (off, value) in [
        (offset::ID, 3 << 24),
        (offset::VERSION, 0x0106_0014),
        (offset::TPR, 0),
        (offset::PPR, 0),
        (offset::LDR, 0),
        (offset::DFR, u32::MAX),
        (offset::SVR, 0xff),
        (offset::ICR, 0),
        (offset::ICR2, 0),
        (offset::TMICT, 0),
        (offset::TMCCT, 0),
        (offset::TDCR, 0),
    ] {
        assert_eq!(read(&mut l, off), value, "{off:#x}");
    }
    for entry in Lvt::ALL {
        assert_eq!(read(&mut l, entry.offset()), lvt::MASKED, "{entry:?}");
    }
    let mut bsp = Lapic::new(
        Config {
            bsp: true,
            ..CONFIG
        },
        Features {
            cmci: false,
            directed_eoi: false,
            ..FEATURES
        },
    );
    assert_eq!(bsp.base(), ENABLED | apic_base::BSP);
    assert_eq!(read(&mut bsp, offset::VERSION), 0x0005_0014);
    assert_eq!(read(&mut bsp, offset::LVT_LINT0), lvt::MODE_EXTINT);
    assert!(bsp.accepts_extint());
    assert!(!l.accepts_extint());
}

#[test]
fn init_keeps_mode_and_id() {
    let mut l = xapic();
    let _ = write(&mut l, offset::ID, 0x55 << 24);
    let _ = write(&mut l, offset::LDR, 0x10 << 24);
    l.accept(0x40, true);
    l.set_tpr(0x20);
    l.init();
    assert_eq!(read(&mut l, offset::ID), 0x55 << 24);
    assert_eq!(read(&mut l, offset::LDR), 0);
    assert_eq!((l.highest_request(), l.tpr(), l.ppr()), (None, 0, 0));
    assert_eq!(read(&mut l, offset::SVR), 0xff);
    l.reset();
    assert_eq!(read(&mut l, offset::ID), 3 << 24);
    let mut l = x2apic();
    l.init();
    assert_eq!(l.mode(), Mode::X2apic);
    l.reset();
    assert_eq!(l.mode(), Mode::Xapic);
}

#[test]
fn priorities() {
    let mut l = xapic();
    assert!(l.accept(0x31, false));
    assert!(!l.accept(0x31, false));
    assert!(l.accept(0x51, false));
    assert_eq!(l.pending(), Some(0x51));
    assert_eq!(l.ack(), Some(0x51));
    assert_eq!(l.ppr(), 0x50);
    // Of the same class: has to wait.
    assert!(l.accept(0x5f, false));
    assert_eq!(l.pending(), None);
    assert_eq!(l.ack(), None);
    assert!(l.accept(0x60, false));
    assert_eq!(l.ack(), Some(0x60));
    assert_eq!(l.eoi(), None);
    assert_eq!(l.ppr(), 0x50);
    assert_eq!(l.pending(), None);
    assert_eq!(l.eoi(), None);
    assert_eq!(l.ack(), Some(0x5f));
    l.eoi();
    l.set_tpr(0x31);
    assert_eq!((l.ppr(), l.pending()), (0x31, None));
    l.set_tpr(0x2f);
    assert_eq!((l.ppr(), l.pending()), (0x2f, Some(0x31)));
    l.set_cr8(3);
    assert_eq!((l.tpr(), l.cr8(), l.pending()), (0x30, 3, None));
    l.set_tpr(0x35);
    l.accept(0x4a, false);
    assert_eq!(l.ack(), Some(0x4a));
    assert_eq!(l.ppr(), 0x40);
    l.set_tpr(0x45);
    assert_eq!(l.ppr(), 0x45);
    // Nothing in service: no effect.
    l.eoi();
    assert_eq!(l.eoi(), None);
}

#[test]
fn eoi_is_broadcast_for_level_triggered_vectors_unless_suppressed() {
    let mut l = xapic();
    l.accept(0x41, true);
    l.ack();
    assert_eq!(write(&mut l, offset::EOI, 0), Effect::Eoi(0x41));
    l.accept(0x41, false);
    l.ack();
    assert_eq!(write(&mut l, offset::EOI, 0), Effect::None);
    let _ = write(&mut l, offset::SVR, 0x1ff | svr::SUPPRESS_EOI);
    l.accept(0x41, true);
    l.ack();
    assert_eq!(write(&mut l, offset::EOI, 0), Effect::None);
    // Offered, but without effect: KVM's default.
    let _ = l.set_features(Features {
        suppress_eoi: false,
        ..FEATURES
    });
    l.accept(0x41, true);
    l.ack();
    assert_eq!(write(&mut l, offset::EOI, 0), Effect::Eoi(0x41));
    // Not offered: the bit cannot be set.
    let _ = l.set_features(Features {
        directed_eoi: false,
        ..FEATURES
    });
    let _ = write(&mut l, offset::SVR, u32::MAX);
    assert_eq!(read(&mut l, offset::SVR), 0x3ff);
}

#[test]
fn software_disable() {
    let mut l = xapic();
    l.accept(0x41, false);
    let _ = write(&mut l, offset::LVT_LINT1, lvt::MODE_NMI);
    assert_eq!(l.local(Lvt::Lint1), Local::Nmi);
    assert!(l.identity().accepts_fixed());
    assert!(matches!(write(&mut l, offset::SVR, 0xff), Effect::Identity(i) if !i.accepts_fixed()));
    assert_eq!(read(&mut l, offset::LVT_LINT1), lvt::MODE_NMI | lvt::MASKED);
    assert_eq!(l.local(Lvt::Lint1), Local::Ignored);
    // Cannot be unmasked, takes nothing new, and keeps what it has.
    let _ = write(&mut l, offset::LVT_LINT1, lvt::MODE_NMI);
    assert_eq!(read(&mut l, offset::LVT_LINT1), lvt::MODE_NMI | lvt::MASKED);
    assert!(!l.accept(0x51, false));
    assert_eq!(l.ack(), Some(0x41));
}

#[test]
fn base_transitions() {
    use Mode::*;
    let all = [
        (Disabled, apic_base::DEFAULT),
        (Xapic, ENABLED),
        (X2apic, X2),
    ];
    for host in [false, true] {
        for (from, from_value) in all {
            for (to, to_value) in all {
                let mut l = Lapic::new(CONFIG, FEATURES);
                l.set_base(from_value, true).map(drop).unwrap();
                assert_eq!(l.mode(), from);
                let bad = matches!((from, to), (X2apic, Xapic) | (Disabled, X2apic)) && !host;
                let result = l.set_base(to_value, host);
                assert_eq!(result.is_err(), bad, "{from:?} to {to:?}");
                assert_eq!(l.mode(), if bad { from } else { to });
                assert_eq!(l.base(), if bad { from_value } else { to_value });
                if !bad && from != to {
                    assert_eq!(result, Ok(Effect::Identity(l.identity())));
                }
            }
        }
        let mut l = Lapic::new(CONFIG, FEATURES);
        for bad in [
            apic_base::DEFAULT | apic_base::EXTD,
            ENABLED | 1 << 48,
            ENABLED | 1,
            ENABLED | 1 << 9,
        ] {
            assert_eq!(l.set_base(bad, host), Err(GeneralProtection), "{bad:#x}");
        }
        assert!(l.set_base(ENABLED | 1 << 47, host).is_ok());
        let _ = l.set_features(Features {
            x2apic: false,
            ..FEATURES
        });
        assert_eq!(l.set_base(X2, host), Err(GeneralProtection));
    }
}

#[test]
fn place_follows_the_base() {
    let mut l = xapic();
    assert_eq!(l.place(0xfee0_0320), Place::Register(0x320));
    assert_eq!(l.place(0xfee0_1000), Place::Elsewhere);
    assert_eq!(l.place(0xfedf_ffff), Place::Elsewhere);
    l.set_base(0x1_2345_6000 | apic_base::ENABLE, false)
        .map(drop)
        .unwrap();
    assert_eq!(l.place(0xfee0_0320), Place::Elsewhere);
    assert_eq!(l.place(0x1_2345_6fff), Place::Register(0xfff));
    l.set_base(0x1_2345_6000, false).map(drop).unwrap();
    assert_eq!(l.place(0x1_2345_6000), Place::Hole);
    assert_eq!(x2apic().place(0xfee0_0000), Place::Hole);
}

#[test]
fn x2apic_ids() {
    let mut l = Lapic::new(
        Config {
            id: 0x1234_5678,
            ..CONFIG
        },
        FEATURES,
    );
    assert_eq!(read(&mut l, offset::ID), 0x78 << 24);
    l.set_base(X2, false).map(drop).unwrap();
    assert_eq!(l.msr_read(0x802, no_time), Ok(0x1234_5678));
    assert_eq!(l.msr_read(0x80d, no_time), Ok(0x4567_0100));
}

/// SDM vol. 3A table 12-6.
#[test]
fn x2apic_msr_access() {
    let read_only = [0x802, 0x803, 0x80a, 0x80d, 0x839];
    let write_only = [0x80b, 0x83f];
    let both = [
        0x808, 0x80f, 0x828, 0x82f, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e,
    ];
    for m in 0x800..0x900 {
        let mut l = x2apic();
        let readable = read_only.contains(&m) || both.contains(&m) || (0x810..0x828).contains(&m);
        let writable = write_only.contains(&m) || both.contains(&m);
        assert_eq!(l.msr_read(m, || 0).is_ok(), readable, "read {m:#x}");
        assert_eq!(l.msr_write(m, 0, || 0).is_ok(), writable, "write {m:#x}");
        let mut l = xapic();
        assert_eq!(l.msr_read(m, || 0), Err(GeneralProtection));
        assert_eq!(l.msr_write(m, 0, || 0), Err(GeneralProtection));
    }
    let mut l = x2apic();
    assert_eq!(l.msr_read(0x7ff, || 0), Err(GeneralProtection));
    let _ = l.set_features(Features {
        cmci: false,
        ..FEATURES
    });
    assert_eq!(l.msr_read(0x82f, || 0), Err(GeneralProtection));
    assert_eq!(l.msr_write(0x82f, 0, || 0), Err(GeneralProtection));
}

#[test]
fn x2apic_reserved_bits() {
    // What a write may set, and what of it sticks.
    let cases: [(u16, u64); 11] = [
        (offset::TPR, 0xff),
        (offset::EOI, 0),
        (offset::SVR, 0x13ff),
        (offset::ESR, 0),
        (offset::LVT_TIMER, 0x7_10ff),
        (offset::LVT_LINT0, 0x1_f7ff),
        (offset::LVT_ERROR, 0x1_10ff),
        (offset::LVT_PMC, 0x1_17ff),
        (offset::TMICT, 0xffff_ffff),
        (offset::TDCR, 0xb),
        (offset::SELF_IPI, 0xff),
    ];
    for (off, allowed) in cases {
        for bit in 0..64 {
            let ok = allowed & 1 << bit != 0;
            let mut l = x2apic();
            assert_eq!(
                l.msr_write(msr(off), 1 << bit, || 0).is_ok(),
                ok,
                "{off:#x} bit {bit}"
            );
        }
    }
    let mut l = x2apic();
    for bit in 0..64 {
        let bad = [13, 16, 17].contains(&bit) || (20..32).contains(&bit);
        assert_eq!(
            l.msr_write(0x830, 1 << bit, || 0).is_err(),
            bad,
            "bit {bit}"
        );
    }
    let _ = l.set_features(Features {
        tsc_deadline: false,
        directed_eoi: false,
        ..FEATURES
    });
    assert!(l.msr_write(msr(offset::LVT_TIMER), 1 << 18, || 0).is_err());
    assert!(l.msr_write(msr(offset::SVR), 0x1100, || 0).is_err());
    // Read-only bits of LVT entries do not stick.
    l.msr_write(msr(offset::LVT_LINT0), 0x1_f7ff, || 0)
        .map(drop)
        .unwrap();
    assert_eq!(l.msr_read(msr(offset::LVT_LINT0), || 0), Ok(0x1_a7ff));
}

#[test]
fn mmio_sizes() {
    let mut l = xapic();
    let _ = write(&mut l, offset::LVT_LINT0, 0x1_a7ff);
    for (off, len, value) in [
        (0, 4, 0x1_a7ffu64),
        (0, 2, 0xa7ff),
        (2, 2, 0x1),
        (0, 1, 0xff),
        (1, 1, 0xa7),
        (2, 1, 1),
        (3, 1, 0),
        (1, 4, 0),
        (4, 1, 0),
        (0, 0, 0),
        (4, 0, 0),
        (4, 4, 0),
        (0, 8, 0),
        (0, 16, 0),
    ] {
        assert_eq!(
            l.mmio_read(offset::LVT_LINT0 + off, len, no_time),
            value,
            "+{off} {len}"
        );
    }
    for (off, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (4, 4), (2, 2)] {
        assert_eq!(
            l.mmio_write(offset::TPR + off, len, 0x77, no_time),
            Effect::None
        );
        assert_eq!(l.tpr(), 0);
    }
    assert_eq!(read(&mut l, 0x3f0), 0);
    assert_eq!(l.mmio_read(0xffc, 4, no_time), 0);
}

#[test]
fn errors_are_latched_by_a_write_and_reported_once() {
    let mut l = xapic();
    let _ = write(&mut l, offset::LVT_ERROR, 0xfe);
    // Reserved: the error interrupt comes, the register shows nothing yet.
    let _ = read(&mut l, 0x010);
    assert_eq!(read(&mut l, offset::ESR), 0);
    assert_eq!(l.ack(), Some(0xfe));
    l.eoi();
    let _ = write(&mut l, 0x3f0, 0x41);
    assert_eq!(l.pending(), None);
    assert!(!l.accept(15, false));
    let _ = write(&mut l, offset::ESR, 0);
    assert_eq!(
        read(&mut l, offset::ESR),
        esr::ILLEGAL_REGISTER | esr::RECEIVE_ILLEGAL
    );
    let _ = write(&mut l, offset::ICR, 0x0004_4000 | 15);
    assert_eq!(l.ack(), Some(0xfe));
    l.eoi();
    let _ = write(&mut l, offset::ESR, 0);
    assert_eq!(read(&mut l, offset::ESR), esr::SEND_ILLEGAL);
    let _ = write(&mut l, offset::ESR, 0);
    assert_eq!(read(&mut l, offset::ESR), 0);
    // Read-only and write-only registers are there.
    let _ = read(&mut l, offset::EOI);
    let _ = write(&mut l, offset::VERSION, 0);
    let _ = write(&mut l, offset::ESR, 0);
    assert_eq!(read(&mut l, offset::ESR), 0);
}

#[test]
fn icr() {
    let mut l = xapic();
    assert_eq!(write(&mut l, offset::ICR2, 0xabcd_ef01), Effect::None);
    assert_eq!(read(&mut l, offset::ICR2), 0xab00_0000);
    let want = Irq {
        dest: 0xab,
        vector: 0x77,
        mode: DeliveryMode::LowestPriority,
        logical: true,
        level: false,
        assert: true,
        shorthand: Shorthand::None,
        redirect_hint: false,
        source: Source::Ipi { id: 3 },
    };
    assert_eq!(
        write(&mut l, offset::ICR, 0xfff3_7977 & !0xc_8000),
        Effect::Ipi(want)
    );
    // Reads back as written, but never busy.
    assert_eq!(read(&mut l, offset::ICR), 0xfff3_6977 & !0xc_8000);
    // To itself: at once.
    assert_eq!(write(&mut l, offset::ICR, 0x4_4055), Effect::None);
    assert_eq!(l.ack(), Some(0x55));
    for (value, mode) in [
        (0x4500, DeliveryMode::Init),
        (0xc500, DeliveryMode::Init),
        (0x4612, DeliveryMode::Startup),
        (0x4400, DeliveryMode::Nmi),
        (0x4200, DeliveryMode::Smi),
    ] {
        assert!(
            matches!(write(&mut l, offset::ICR, value), Effect::Ipi(i) if i.mode == mode),
            "{value:#x}"
        );
    }
    // INIT level de-assert, reserved modes, illegal vectors.
    for value in [0x8500, 0x4300, 0x4700, 0x400f, 0x8041] {
        assert_eq!(
            write(&mut l, offset::ICR, value),
            Effect::None,
            "{value:#x}"
        );
    }
    let mut l = x2apic();
    assert!(matches!(
        l.msr_write(0x830, 0x1234_5678_0000_4041, no_time),
        Ok(Effect::Ipi(Irq {
            dest: 0x1234_5678,
            vector: 0x41,
            ..
        }))
    ));
    assert_eq!(l.msr_read(0x830, no_time), Ok(0x1234_5678_0000_4041));
    assert_eq!(l.msr_write(0x83f, 0x99, no_time), Ok(Effect::None));
    assert_eq!(l.ack(), Some(0x99));
}

#[test]
fn local_sources() {
    let mut l = xapic();
    for source in [Lvt::Thermal, Lvt::Pmc, Lvt::Lint0, Lvt::Lint1, Lvt::Cmci] {
        for (mode, want) in [
            (0x000, Local::Accepted),
            (0x200, Local::Smi),
            (0x400, Local::Nmi),
            (0x700, Local::ExtInt),
            (0x300, Local::Ignored),
        ] {
            let _ = write(&mut l, source.offset(), mode | 0x61);
            assert_eq!(l.local(source), want);
            let _ = write(&mut l, source.offset(), mode | 0x61 | lvt::MASKED);
            assert_eq!(l.local(source), Local::Ignored);
        }
        assert_eq!(l.ack(), Some(0x61));
        l.eoi();
    }
    let _ = write(&mut l, offset::LVT_LINT0, lvt::MODE_EXTINT);
    assert!(l.accepts_extint());
    let _ = write(&mut l, offset::LVT_LINT0, lvt::MODE_EXTINT | lvt::MASKED);
    assert!(!l.accepts_extint());
    l.set_base(apic_base::DEFAULT, false).map(drop).unwrap();
    assert!(l.accepts_extint());

    let mut l = xapic();
    let _ = l.set_features(Features {
        pmc_masks: true,
        ..FEATURES
    });
    let _ = write(&mut l, offset::LVT_PMC, lvt::MODE_NMI);
    assert_eq!(l.local(Lvt::Pmc), Local::Nmi);
    assert_eq!(l.local(Lvt::Pmc), Local::Ignored);
    assert_eq!(read(&mut l, offset::LVT_PMC), lvt::MODE_NMI | lvt::MASKED);
}

#[test]
fn destination_registers() {
    let mut l = xapic();
    for (value, model) in [
        (0, LogicalModel::Cluster),
        (0xf000_0000, LogicalModel::Flat),
        (0x7fff_ffff, LogicalModel::Reserved),
    ] {
        let effect = write(&mut l, offset::DFR, value);
        assert!(matches!(effect, Effect::Identity(i) if i.model() == model));
        assert_eq!(read(&mut l, offset::DFR), value | dfr::ONES);
    }
    assert!(
        matches!(write(&mut l, offset::LDR, u32::MAX), Effect::Identity(i) if i.logical_id() == 0xff)
    );
    assert_eq!(read(&mut l, offset::LDR), 0xff00_0000);
    assert!(
        matches!(write(&mut l, offset::ID, u32::MAX), Effect::Identity(i) if i.xapic_id() == 0xff && i.id() == 3)
    );
    assert_eq!(read(&mut l, offset::ID), 0xff00_0000);
}

#[test]
fn a_disabled_apic_delivers_nothing() {
    let mut l = xapic();
    l.accept(0x80, false);
    l.set_base(apic_base::DEFAULT, false).map(drop).unwrap();
    assert_eq!(l.pending(), None);
    assert_eq!(l.ack(), None);
    assert!(!l.accept(0x90, false));
    assert_eq!(l.local(Lvt::Lint0), Local::Ignored);
}

#[test]
fn an_end_may_wait_if_nothing_follows() {
    let mut l = xapic();
    assert!(!l.end_may_wait(), "nothing in service");
    assert!(l.accept(0x41, false));
    assert!(!l.end_may_wait(), "requested only");
    assert_eq!(l.ack(), Some(0x41));
    assert!(l.end_may_wait());
    // Whatever its priority.
    assert!(l.accept(0x31, false));
    assert!(!l.end_may_wait(), "another is requested");
    assert_eq!(l.eoi(), None);
    assert_eq!(l.ack(), Some(0x31));
    assert!(l.end_may_wait());
    assert!(l.accept(0x61, true));
    assert_eq!(l.ack(), Some(0x61));
    assert!(!l.end_may_wait(), "an I/O APIC waits");
    assert_eq!(l.eoi(), Some(0x61));
    assert!(l.end_may_wait());
}
