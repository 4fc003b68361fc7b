// SPDX-License-Identifier: GPL-2.0

//! Saved tables: what is written, and that it can be restored.

use super::machine::*;
use rkvm_unit::arch::arm64::model::its::*;

pub fn dte(next: u64, itt: u64, bits: u64) -> u64 {
    VALID | next << 49 | itt >> 8 << 5 | (bits - 1)
}
pub fn ite(next: u64, intid: u64, icid: u64) -> u64 {
    next << 48 | intid << 16 | icid
}
pub fn cte(icid: u64, rdbase: u64) -> u64 {
    VALID | rdbase << 16 | icid
}

fn registers(m: &Machine) -> [(u64, u64); 5] {
    [CBASER, CREADR, CWRITER, BASER0, BASER1].map(|r| (r, m.read(r)))
}

/// As a new VM with the same memory does it, in the order that the documentation says.
fn migrate(m: &mut Machine) -> Result<(), Error> {
    m.its.save(&m.ram)?;
    let saved = registers(m);
    let on = m.read(CTLR);
    m.its = Its::new();
    m.vcpus = Vcpus::new();
    m.its.set_base(BASE, 40).unwrap();
    for (r, v) in saved {
        let _ = m.its.user_write(r, v, &mut m.vcpus).unwrap();
    }
    m.its.restore(&m.ram, &mut m.vcpus)?;
    let _ = m.its.user_write(CTLR, on, &mut m.vcpus).unwrap();
    Ok(())
}

#[test]
fn layout() {
    let mut m = Machine::new();
    m.good(mapc(6, 1));
    m.good(mapd(3, ITTS, 5));
    m.good(mapd(700, ITTS + 0x100, 16));
    m.good(mapti(3, 2, 8192, 6));
    m.good(mapti(3, 31, 65535, 6));
    m.good(mapti(3, 9, 8200, 11));
    let before = m.ram.snapshot();
    m.its.save(&m.ram).unwrap();
    let expected = [
        (DEVICES + 3 * 8, dte(697, ITTS, 5)),
        (DEVICES + 700 * 8, dte(0, ITTS + 0x100, 16)),
        (ITTS + 2 * 8, ite(7, 8192, 6)),
        (ITTS + 9 * 8, ite(22, 8200, 11)),
        (ITTS + 31 * 8, ite(0, 65535, 6)),
        (COLLECTIONS, cte(6, processor(1))),
        // Known, and not mapped
        (COLLECTIONS + 8, cte(11, 0xffff_ffff)),
        (COLLECTIONS + 16, 0),
    ];
    // Figures worked out by hand from the documentation
    assert_eq!(dte(697, 0x4080_0000, 5), 0x8572_0000_0810_0004);
    assert_eq!(ITTS, 0x4080_0000);
    assert_eq!(ite(7, 8192, 6), 0x0007_0000_2000_0006);
    assert_eq!(cte(6, 10), 0x8000_0000_000a_0006);
    let other = Machine::new();
    for (gpa, entry) in expected {
        assert_eq!(m.ram.u64(gpa), entry, "{gpa:x}");
        other.ram.set_u64(gpa, entry);
    }
    // Nothing else was written, but for the queue.
    let (mut a, mut b) = (m.ram.snapshot(), other.ram.snapshot());
    let queue = 0x10_0000..0x11_0000;
    a[queue.clone()].fill(0);
    b[queue].fill(0);
    assert!(a == b);
    assert!(before != a);
}

#[test]
fn next_is_capped() {
    let mut m = Machine::new();
    m.write(CTLR, 0);
    m.write(BASER0, VALID | DEVICES | 7);
    m.write(CTLR, 1);
    m.good(mapc(0, 0));
    for id in [0, 16383, 40000] {
        m.good(mapd(id, ITTS + u64::from(id) * 0x10 / 0x100 * 0x100, 1));
    }
    m.good(mapd(5, ITTS + 0x40_0000, 16));
    m.good(mapti(5, 0, 8192, 0));
    m.good(mapti(5, 65535, 8193, 0));
    m.good(mapti(40000, 1, 8194, 0));
    m.its.save(&m.ram).unwrap();
    assert_eq!(m.ram.u64(DEVICES) >> 49 & 0x3fff, 5);
    assert_eq!(m.ram.u64(DEVICES + 5 * 8) >> 49 & 0x3fff, 16378);
    assert_eq!(m.ram.u64(DEVICES + 16383 * 8) >> 49 & 0x3fff, 16383);
    assert_eq!(m.ram.u64(ITTS + 0x40_0000) >> 48, 65535);
    migrate(&mut m).unwrap();
    assert_eq!(m.to(5, 65535), Some((8193, 0)));
    assert_eq!(m.to(40000, 1), Some((8194, 0)));
    assert_eq!(m.its.mapped_devices(), 4);
}

#[test]
fn pending_and_configuration_come_back() {
    let mut m = Machine::new();
    m.good(mapc(0, 2));
    m.good(mapd(1, ITTS, 4));
    m.ram.write(CONFIG + 1, &[0x41]).unwrap();
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(1, 1, 8193, 0));
    // What the redistributors save
    m.ram.write(PENDING + 0x2_0000 + 1024, &[0b110]).unwrap();
    migrate(&mut m).unwrap();
    let lpi = |event, target, pending, config| State {
        event: (1, event),
        target: Some(target),
        pending,
        config: Some(config),
    };
    assert_eq!(m.lpi(8192), lpi(0, 2, false, (0, false)));
    assert_eq!(m.lpi(8193), lpi(1, 2, true, (0x40, true)));
    assert_eq!(m.ram.u64(PENDING + 0x2_0000 + 1024), 0b100);
}

#[test]
fn without_tables_nothing_is_read_or_written() {
    let mut m = Machine::off();
    let before = m.ram.accesses.get();
    m.its.save(&m.ram).unwrap();
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    assert_eq!(m.ram.accesses.get(), before);
}

#[test]
fn a_changed_collection_table_saves_none() {
    let mut m = Machine::new();
    m.write(CTLR, 0);
    m.write(BASER1, VALID | COLLECTIONS | 1);
    m.write(CTLR, 1);
    for icid in 0..8193 {
        m.good(mapc(icid, 0));
    }
    m.write(CTLR, 0);
    m.write(BASER1, VALID | COLLECTIONS);
    m.ram.fill(COLLECTIONS, 0x2_0000, 0xde);
    m.its.save(&m.ram).unwrap();
    assert_eq!(m.ram.u64(COLLECTIONS), 0);
    for i in 1..16384 {
        assert_eq!(m.ram.u64(COLLECTIONS + 8 * i), 0xdede_dede_dede_dede);
    }
}

#[test]
fn a_full_collection_table_has_no_end() {
    let mut m = Machine::new();
    for icid in 0..8192 {
        m.good(mapc(icid, 1));
    }
    m.ram.fill(COLLECTIONS, 0x2_0000, 0xde);
    m.its.save(&m.ram).unwrap();
    assert_eq!(m.ram.u64(COLLECTIONS + 0xfff8), cte(8191, processor(1)));
    assert_eq!(m.ram.u64(COLLECTIONS + 0x1_0000), 0xdede_dede_dede_dede);
    migrate(&mut m).unwrap();
    assert_eq!(m.its.known_collections(), 8192);
}

fn indirect() -> Machine {
    let mut m = Machine::off();
    m.write(CBASER, VALID | QUEUE | 15);
    m.write(BASER0, VALID | INDIRECT | DEVICES);
    m.write(BASER1, VALID | COLLECTIONS);
    m.write(CTLR, 1);
    for page in [0, 1, 5] {
        m.ram
            .set_u64(DEVICES + 8 * page, VALID | ITTS + (page << 16));
    }
    m.good(mapc(0, 0));
    for (i, device) in [0, 8191, 8192, 5 * 8192 + 7].into_iter().enumerate() {
        m.good(mapd(device, ITTS + 0x20_0000 + 0x100 * i as u64, 5));
        m.good(mapti(device, 3, 8192 + i as u32, 0));
    }
    m
}

#[test]
fn indirect_tables() {
    let mut m = indirect();
    migrate(&mut m).unwrap();
    for (i, device) in [0, 8191, 8192, 5 * 8192 + 7].into_iter().enumerate() {
        assert_eq!(m.to(device, 3), Some((8192 + i as u32, 0)));
    }
    assert_eq!(m.its.mapped_devices(), 4);
    assert_eq!(m.ram.u64(ITTS + 8 * 8191) >> 49 & 0x3fff, 1);
    assert_eq!(m.ram.u64(ITTS + 0x1_0000) >> 49 & 0x3fff, 16383);
}

#[test]
fn devices_out_of_reach_are_left_out() {
    let mut m = indirect();
    m.ram.set_u64(DEVICES + 8, 0);
    m.ram.fill(ITTS + 0x1_0000, 0x1_0000, 0xde);
    m.its.save(&m.ram).unwrap();
    assert_eq!(m.ram.u64(ITTS + 0x1_0000), 0xdede_dede_dede_dede);
    // The next is the one behind.
    assert_eq!(m.ram.u64(ITTS + 8 * 8191) >> 49 & 0x3fff, 16383);
    migrate(&mut m).unwrap();
    assert_eq!(m.its.mapped_devices(), 3);
    assert_eq!(m.to(8192, 3), None);
    assert_eq!(m.to(5 * 8192 + 7, 3), Some((8195, 0)));
    // None behind
    m.ram.set_u64(DEVICES + 40, VALID | NOWHERE);
    m.its.save(&m.ram).unwrap();
    assert_eq!(m.ram.u64(ITTS + 8 * 8191) >> 49 & 0x3fff, 0);
}

#[test]
fn faults() {
    let mut m = Machine::new();
    m.good(mapc(0, 0));
    m.good(mapd(1, ITTS, 4));
    m.good(mapti(1, 0, 8192, 0));
    for hole in [ITTS..ITTS + 8, COLLECTIONS..COLLECTIONS + 8] {
        m.ram.read_only.borrow_mut().push(hole);
        assert_eq!(m.its.save(&m.ram), Err(Error::Fault));
        m.ram.read_only.borrow_mut().clear();
    }
    m.its.save(&m.ram).unwrap();
    for hole in [ITTS, COLLECTIONS, DEVICES, CONFIG, PENDING + 1024] {
        m.ram.holes.borrow_mut().push(hole..hole + 1);
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        assert_eq!(done, Err(Error::Fault), "{hole:x}");
        assert_eq!((m.its.mapped_devices(), m.its.known_collections()), (0, 0));
        assert!(m.vcpus.lpis.is_empty());
        m.ram.holes.borrow_mut().clear();
    }
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    // Tables that are not in memory at all
    for (r, v) in [(BASER0, VALID | NOWHERE), (BASER1, VALID | NOWHERE)] {
        let mut m = Machine::off();
        m.write(r, v);
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        assert_eq!(done, Err(Error::Fault));
    }
}

#[test]
fn no_memory() {
    let mut m = Machine::new();
    m.good(mapc(0, 0));
    m.good(mapd(1, ITTS, 4));
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(1, 1, 8193, 0));
    m.its.save(&m.ram).unwrap();
    for fail in 0..4 {
        m.vcpus.fail_in = Some(fail);
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        assert_eq!(done, Err(Error::NoMemory));
        assert!(m.vcpus.lpis.is_empty());
        assert_eq!((m.its.mapped_devices(), m.its.known_collections()), (0, 0));
    }
    for fail in 0..3 {
        rkvm_unit::host::grow_vec::fail_after(Some(fail));
        let done = m.its.restore(&m.ram, &mut m.vcpus);
        rkvm_unit::host::grow_vec::fail_after(None);
        assert_eq!(done, Err(Error::NoMemory));
        assert!(m.vcpus.lpis.is_empty());
    }
    m.vcpus.fail_in = None;
    // What there was is replaced.
    for _ in 0..2 {
        m.its.restore(&m.ram, &mut m.vcpus).unwrap();
        assert_eq!(m.to(1, 1), Some((8193, 0)));
        assert_eq!(m.vcpus.lpis.len(), 2);
    }
}
