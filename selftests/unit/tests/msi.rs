// SPDX-License-Identifier: GPL-2.0

//! Decoding of messages (SDM vol. 3A 12.11).

use rkvm_unit::arch::x86::model::lapic::{DeliveryMode, Irq, Shorthand, Source};
use rkvm_unit::arch::x86::model::msi::{Format, InvalidAddress, Msi};

const NARROW: Format = Format {
    wide_ids: false,
    extended_dest: false,
    wide_broadcast: true,
};

fn irq(address_lo: u32, address_hi: u32, data: u32, format: Format) -> Irq {
    Msi {
        address_lo,
        address_hi,
        data,
    }
    .irq(format)
    .unwrap()
}

#[test]
fn fields() {
    let want = Irq {
        dest: 0x12,
        vector: 0x41,
        mode: DeliveryMode::Fixed,
        logical: false,
        level: false,
        assert: true,
        shorthand: Shorthand::None,
        redirect_hint: false,
        source: Source::Device {
            wide_broadcast: true,
        },
    };
    assert_eq!(irq(0xfee1_2000, 0, 0x41, NARROW), want);
    assert_eq!(
        irq(0xfee1_2004, 0, 0x41, NARROW),
        Irq {
            logical: true,
            ..want
        }
    );
    assert_eq!(
        irq(0xfee1_2008, 0, 0x41, NARROW),
        Irq {
            redirect_hint: true,
            ..want
        }
    );
    assert_eq!(
        irq(0xfee1_2000, 0, 0x8041, NARROW),
        Irq {
            level: true,
            ..want
        }
    );
    assert_eq!(
        irq(0xfee1_2000, 0, 0xc141, NARROW).mode,
        DeliveryMode::LowestPriority
    );
    let modes = [0, 2, 4, 5, 7].map(|m| irq(0xfee0_0000, 0, m << 8, NARROW).mode);
    use DeliveryMode::*;
    assert_eq!(modes, [Fixed, Smi, Nmi, Init, ExtInt]);
    let quiet = Format {
        wide_broadcast: false,
        ..NARROW
    };
    assert_eq!(
        irq(0xfeef_f000, 0, 0, quiet).source,
        Source::Device {
            wide_broadcast: false
        }
    );
}

#[test]
fn wide_destinations() {
    let wide = Format {
        wide_ids: true,
        ..NARROW
    };
    let extended = Format {
        extended_dest: true,
        ..NARROW
    };
    // Without the format, the upper half is not looked at.
    assert_eq!(irq(0xfee1_2fe0, 0x3456_78ff, 0, NARROW).dest, 0x12);
    assert_eq!(irq(0xfee1_2fe0, 0x3456_7800, 0, wide).dest, 0x3456_7812);
    assert_eq!(irq(0xfee1_2fe0, 0x3456_7800, 0, extended).dest, 0x7f12);
    assert_eq!(irq(0xfee1_2020, 0, 0, extended).dest, 0x112);
    for bad in [1, 0x80, 0xff] {
        let msi = Msi {
            address_lo: 0xfee0_0000,
            address_hi: bad,
            data: 0,
        };
        assert_eq!(msi.irq(wide), Err(InvalidAddress));
    }
}
