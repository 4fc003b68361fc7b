// SPDX-License-Identifier: GPL-2.0

//! Registers, as the guest and as user space sees them.

use super::machine::*;
use rkvm_unit::arch::arm64::model::its::{regs::Register, *};

#[test]
fn after_reset() {
    let m = Machine::off();
    assert_eq!(m.read(CTLR), 1 << 31);
    assert_eq!(m.read(IIDR), 0x4b00_043b);
    assert_eq!(m.read(TYPER), 0x1_ef71);
    assert_eq!(m.read(CBASER), 0);
    assert_eq!(m.read(CWRITER), 0);
    assert_eq!(m.read(CREADR), 0);
    // Devices and collections, 8 bytes an entry, 64 KiB a page, inner shareable and cacheable
    assert_eq!(m.read(BASER0), 0x1907_0000_0000_0600);
    assert_eq!(m.read(BASER1), 0x1c07_0000_0000_0600);
    for n in 2..8 {
        assert_eq!(m.read(BASER0 + 8 * n), 0);
    }
    let ids = [
        (0xffd0, 0x40),
        (0xffe0, 0x92),
        (0xffe4, 0xb4),
        (0xffe8, 0x3b),
    ];
    let common = [
        (0xfff0, 0x0d),
        (0xfff4, 0xf0),
        (0xfff8, 0x05),
        (0xfffc, 0xb1),
    ];
    for (offset, value) in ids.into_iter().chain(common) {
        assert_eq!(m.its.read(offset, 4), value);
    }
}

#[test]
fn sizes() {
    let mut m = Machine::off();
    let _ = m.its.write(CBASER, 4, 0x4010_0003, &mut m.vcpus);
    let _ = m.its.write(CBASER + 4, 4, 0x8000_0000, &mut m.vcpus);
    let whole = m.read(CBASER);
    assert_eq!(whole, 0x9800_0000_4010_0003);
    assert_eq!(m.its.read(CBASER, 4), whole & 0xffff_ffff);
    assert_eq!(m.its.read(CBASER + 4, 4), whole >> 32);
    // Bits beyond the access' size do not matter.
    let _ = m.its.write(CBASER, 4, 0x77_4020_0001, &mut m.vcpus);
    assert_eq!(m.read(CBASER), 0x9800_0000_4020_0001);
    assert_eq!(m.its.read(TYPER + 4, 4), 0);
    assert_eq!(m.its.read(TYPER, 4), 0x1_ef71);
    // 64 bits of registers with 32, other sizes, misaligned, and where there is nothing: as if 0
    for (offset, len) in [
        (CTLR, 8),
        (CTLR, 2),
        (CTLR, 1),
        (2, 4),
        (TYPER, 1),
        (TYPER + 4, 8),
        (CBASER + 2, 4),
        (CBASER, 0),
        (0xffe0, 8),
        (0x18, 8),
        (0x20, 4),
        (0x140, 8),
        (0x1_0040, 4),
        (u64::MAX, 4),
        (u64::MAX - 7, 8),
    ] {
        assert_eq!(m.its.read(offset, len), 0, "{offset:x} {len}");
        let before = m.read(CBASER);
        assert_eq!(
            m.its.write(offset, len, u64::MAX, &mut m.vcpus),
            Effect::None
        );
        assert_eq!(m.read(CBASER), before);
        assert_eq!(m.read(CTLR), 1 << 31);
    }
    for offset in [IIDR, 0xffe0, 0xfff0] {
        let before = m.its.read(offset, 4);
        let _ = m.its.write(offset, 4, 0, &mut m.vcpus);
        assert_eq!(m.its.read(offset, 4), before);
    }
}

#[test]
fn table_registers() {
    let mut m = Machine::off();
    m.write(BASER0, u64::MAX);
    // Type, entry size and page size stay; shareability is inner; outer cacheability is as inner
    let b = m.read(BASER0);
    assert_eq!(b, 0xf907_ffff_ffff_f6ff);
    m.write(BASER1, u64::MAX);
    assert_eq!(m.read(BASER1), 0xbc07_ffff_ffff_f6ff);
    // Not shareable, outer not cacheable stay; inner not cacheable does not.
    m.write(BASER0, 1 << 59 | 1 << 53);
    assert_eq!(m.read(BASER0), 0x1927_0000_0000_0200);
    m.write(CBASER, u64::MAX);
    assert_eq!(m.read(CBASER), 0xb80f_ffff_ffff_04ff);
    for n in 2..8 {
        m.write(BASER0 + 8 * n, u64::MAX);
        assert_eq!(m.read(BASER0 + 8 * n), 0);
    }
}

#[test]
fn addresses_and_sizes() {
    use regs::{Baser, Cbaser};
    // 52 bits: the highest are at 15:12.
    let b = Baser::DEVICES.written(VALID | 0x1234_5678_a003);
    assert_eq!(b.address(), 0x000a_1234_5678_0000);
    assert_eq!(
        (b.entries(), b.indirect(), b.valid()),
        (4 * 8192, false, true)
    );
    let c = Cbaser::written(VALID | 0x0009_1234_5678_f0ff);
    assert_eq!((c.address(), c.size()), (0x0009_1234_5678_0000, 1 << 20));
    assert_eq!(Cbaser::RESET.size(), 4096);
}

#[test]
fn enabling_needs_tables() {
    for missing in [CBASER, BASER0, BASER1] {
        let mut m = Machine::off();
        for (register, value) in [(CBASER, QUEUE), (BASER0, DEVICES), (BASER1, COLLECTIONS)] {
            if register != missing {
                m.write(register, value | VALID);
            } else {
                m.write(register, value);
            }
        }
        m.write(CTLR, 1);
        assert_eq!(m.read(CTLR), 1 << 31);
    }
    let mut m = Machine::new();
    assert_eq!(m.read(CTLR), 1 << 31 | 1);
    m.write(CTLR, 0);
    assert_eq!(m.read(CTLR), 1 << 31);
}

#[test]
fn read_only_while_enabled() {
    let mut m = Machine::new();
    m.good(mapd(1, ITTS, 4));
    for register in [CBASER, BASER0, BASER1, CREADR] {
        let before = m.read(register);
        m.write(register, 0);
        assert_eq!(m.read(register), before);
    }
    assert_eq!(m.its.mapped_devices(), 1);
    m.write(CTLR, 0);
    // The guest never writes CREADR.
    let before = m.read(CREADR);
    assert_ne!(before, 0);
    m.write(CREADR, 0);
    assert_eq!(m.read(CREADR), before);
    // A new queue is empty.
    m.write(CBASER, VALID | QUEUE);
    assert_eq!((m.read(CREADR), m.read(CWRITER)), (0, 0));
}

fn with_events() -> Machine {
    let mut m = Machine::new();
    for v in 0..VCPUS {
        m.good(mapc(v as u16, v));
    }
    m.good(mapd(1, ITTS, 4));
    m.good(mapd(2, ITTS + 0x1000, 4));
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(2, 3, 8193, 1));
    m
}

#[test]
fn another_table_drops_what_was_mapped() {
    let mut m = with_events();
    m.write(CTLR, 0);
    let (b0, b1) = (m.read(BASER0), m.read(BASER1));
    // A driver that resumes writes what there was.
    m.write(BASER0, b0);
    m.write(BASER1, b1);
    assert_eq!(m.its.mapped_events(), 2);
    m.write(CTLR, 1);
    assert_eq!(m.to(1, 0), Some((8192, 0)));
    m.write(CTLR, 0);
    m.write(BASER1, b1 | 1);
    assert_eq!((m.its.mapped_devices(), m.its.known_collections()), (2, 0));
    assert_eq!(m.its.mapped_events(), 0);
    assert!(m.vcpus.lpis.is_empty());
    m.write(CTLR, 1);
    // Devices are still there; their events can be mapped again.
    m.good(mapc(1, 2));
    m.good(mapti(1, 0, 8192, 1));
    assert_eq!(m.to(1, 0), Some((8192, 2)));
    m.write(CTLR, 0);
    let _ = m.its.write(BASER0 + 4, 4, 0, &mut m.vcpus);
    assert_eq!((m.its.mapped_devices(), m.its.known_collections()), (0, 1));
    assert!(m.vcpus.lpis.is_empty());
    m.write(CTLR, 1);
    assert_eq!(m.read(CTLR) & 1, 0);
}

#[test]
fn nothing_is_translated_while_disabled() {
    let mut m = with_events();
    m.write(CTLR, 0);
    assert_eq!(m.to(1, 0), None);
    m.write(CTLR, 1);
    assert_eq!(m.to(1, 0), Some((8192, 0)));
    assert_eq!(m.to(1, 1), None);
    assert_eq!(m.to(3, 0), None);
    // Ids that only agree in their low bits
    assert_eq!(m.to(0x1_0001, 0), None);
    assert_eq!(m.to(1, 0x1_0000), None);
}

#[test]
fn reset() {
    let mut m = with_events();
    m.its.reset(&mut m.vcpus);
    assert!(m.vcpus.lpis.is_empty());
    assert_eq!(m.its.mapped_devices() + m.its.known_collections(), 0);
    let fresh = Machine::off();
    for r in [CTLR, IIDR, CBASER, CREADR, CWRITER, BASER0, BASER1] {
        assert_eq!(m.read(r), fresh.read(r));
    }
    assert_eq!(m.its.base(), Some(BASE));
    m.set_up();
    m.good(mapc(0, 0));
}

#[test]
fn address() {
    let mut its = Its::new();
    assert!(!its.is_doorbell(TRANSLATER));
    assert_eq!(its.set_base(0x1000, 40), Err(AddressError::Misaligned));
    assert_eq!(its.set_base(1 << 40, 40), Err(AddressError::TooBig));
    let half = (1 << 40) - 0x1_0000;
    assert_eq!(its.set_base(half, 40), Err(AddressError::TooBig));
    assert_eq!(
        its.set_base(u64::MAX - 0xffff, 64),
        Err(AddressError::TooBig)
    );
    assert_eq!(its.base(), None);
    assert_eq!(its.set_base(half - 0x1_0000, 40), Ok(()));
    assert_eq!(its.set_base(BASE, 40), Err(AddressError::Exists));
    let base = its.base().unwrap();
    assert!(its.is_doorbell(base + 0x1_0040));
    for other in [base, base + 0x40, base + 0x1_0000, base + 0x1_0044] {
        assert!(!its.is_doorbell(other));
    }
}

#[test]
fn user_space_offsets() {
    for (offset, result) in [
        (0x0, Ok(Register::Ctlr)),
        (0x4, Ok(Register::Iidr)),
        (0x8, Ok(Register::Typer)),
        (0x90, Ok(Register::Creadr)),
        (0x138, Ok(Register::NoTable)),
        (0xffe8, Ok(Register::Id(0x3b))),
        (0xffd4, Ok(Register::Id(0))),
        (0x2, Err(Error::Invalid)),
        (0xc, Err(Error::Invalid)),
        (0x84, Err(Error::Invalid)),
        (0xffe2, Err(Error::Invalid)),
        (0x18, Err(Error::NoRegister)),
        (0x140, Err(Error::NoRegister)),
        (0xffc8, Err(Error::NoRegister)),
        (0x1_0000, Err(Error::NoRegister)),
        (0x1_0040, Err(Error::NoRegister)),
        (u64::MAX - 3, Err(Error::NoRegister)),
    ] {
        assert_eq!(Its::has_register(offset), result, "{offset:x}");
    }
    // Without an address there are none.
    let (mut its, mut vcpus) = (Its::new(), Vcpus::new());
    assert_eq!(its.user_read(CTLR), Err(Error::NoRegister));
    let write = its.user_write(CBASER, 0, &mut vcpus);
    assert_eq!(write, Err(Error::NoRegister));
    assert_eq!(its.user_read(0xc), Err(Error::Invalid));
}

#[test]
fn user_space_restores() {
    let mut m = with_events();
    let all = [CBASER, CREADR, CWRITER, BASER0, BASER1, IIDR, CTLR];
    // One command is still to be carried out.
    m.write(CTLR, 0);
    let next = m.queue(m.read(CWRITER), mapc(7, 2));
    m.write(CWRITER, next);
    assert_ne!(m.read(CREADR), next);
    let saved = all.map(|r| (r, m.its.user_read(r).unwrap()));
    m.its.reset(&mut m.vcpus);
    for (r, v) in saved {
        assert_eq!(m.its.user_write(r, v, &mut m.vcpus), Ok(Effect::None));
    }
    for (r, v) in saved {
        assert_eq!(m.its.user_read(r), Ok(v));
    }
    let on = m.its.user_write(CTLR, 1, &mut m.vcpus);
    assert_eq!(on, Ok(Effect::Process));
    m.run();
    assert_eq!(m.its.known_collections(), 1);
    assert_eq!(m.read(CREADR), next);

    let mut user = |r, v| m.its.user_write(r, v, &mut m.vcpus);
    assert_eq!(user(CREADR, 0), Err(Error::Busy));
    assert_eq!(user(IIDR, 0x4b00_143b), Err(Error::Invalid));
    assert_eq!(user(IIDR, 0), Ok(Effect::None));
    assert_eq!(user(TYPER, 0), Ok(Effect::None));
    assert_eq!(user(0xffe8, 0), Ok(Effect::None));
    assert_eq!(user(CTLR, 0), Ok(Effect::None));
    assert_eq!(user(CREADR, 0x1_0000), Err(Error::Invalid));
    assert_eq!(user(CREADR, 0xffff_0000_0000_003f), Ok(Effect::None));
    // Beyond the queue: ignored, as the guest's
    assert_eq!(user(CWRITER, 0x1_0000), Ok(Effect::None));
    assert_eq!(m.read(CREADR), 0x20);
    assert_eq!(m.read(CWRITER), next);
    assert_eq!(m.read(IIDR), 0x4b00_043b);
    assert_eq!(m.read(TYPER), 0x1_ef71);
}
