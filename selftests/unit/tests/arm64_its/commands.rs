// SPDX-License-Identifier: GPL-2.0

//! Each command, good and bad.

use super::machine::*;
use rkvm_unit::arch::arm64::model::its::*;

/// A device of 16 events, collections 0 to 2 at the vCPUs.
fn ready() -> Machine {
    let mut m = Machine::new();
    for v in 0..VCPUS {
        m.good(mapc(v as u16, v));
    }
    m.good(mapd(1, ITTS, 4));
    m
}

#[test]
fn mapd_maps_and_unmaps() {
    let mut m = ready();
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(1, 15, 8193, 0));
    m.bad(mapti(1, 16, 8194, 0), "MAPTI_ID_OOR");
    // Again: its events are gone, and there are fewer.
    m.good(mapd(1, ITTS, 1));
    assert_eq!(m.to(1, 0), None);
    assert!(m.vcpus.lpis.is_empty());
    m.bad(mapti(1, 2, 8192, 0), "MAPTI_ID_OOR");
    m.good(mapti(1, 1, 8192, 0));
    m.ram.set_u64(DEVICES + 8, !0);
    m.good(unmapd(1));
    assert!(m.vcpus.lpis.is_empty());
    assert_eq!(m.its.mapped_devices(), 0);
    // What was saved would be found again.
    assert_eq!(m.ram.u64(DEVICES + 8), 0);
    m.bad(mapti(1, 0, 8192, 0), "MAPTI_UNMAPPED_DEVICE");
    // Not mapped: nothing to do
    m.good(unmapd(1));
}

#[test]
fn mapd_bounds() {
    let mut m = ready();
    // A table of 64 KiB has 8192 entries.
    m.good(mapd(8191, ITTS, 16));
    for id in [8192, 0xffff, 0x1_0001, u32::MAX] {
        m.bad(mapd(id, ITTS, 4), "MAPD_DEVICE_OOR");
        m.bad(unmapd(id), "MAPD_DEVICE_OOR");
    }
    for bits in 17..=32 {
        m.bad(mapd(2, ITTS, bits), "MAPD_ITTSIZE_OOR");
    }
    assert_eq!(m.its.mapped_devices(), 2);
    // To unmap, the size does not matter.
    let [a, _, c, d] = unmapd(1);
    m.good([a, 31, c, d]);
    assert_eq!(m.its.mapped_devices(), 1);
    // All 16 bits, with a table for them, and not one more
    m.write(CTLR, 0);
    m.write(BASER0, VALID | DEVICES | 15);
    m.write(CTLR, 1);
    m.good(mapd(0xffff, ITTS, 4));
    m.bad(mapd(0x1_0000, ITTS, 4), "MAPD_DEVICE_OOR");
}

#[test]
fn mapd_table_not_in_memory() {
    let mut m = ready();
    m.ram.read_only.borrow_mut().push(DEVICES..DEVICES + 0x1000);
    m.bad(mapd(2, ITTS, 4), "MAPD_DEVICE_OOR");
    m.bad(unmapd(1), "MAPD_DEVICE_OOR");
    m.good(mapd(512, ITTS, 4));
    m.ram.read_only.borrow_mut().clear();
    m.write(CTLR, 0);
    m.write(BASER0, VALID | RAM + RAM_SIZE as u64 - 0x1_0000 | 1);
    m.write(CTLR, 1);
    m.good(mapd(8191, ITTS, 4));
    m.bad(mapd(8192, ITTS, 4), "MAPD_DEVICE_OOR");
}

#[test]
fn indirect_device_table() {
    let mut m = Machine::off();
    m.write(CBASER, VALID | QUEUE | 15);
    m.write(BASER0, VALID | INDIRECT | DEVICES);
    m.write(BASER1, VALID | INDIRECT | COLLECTIONS);
    m.write(CTLR, 1);
    let (second, third) = (ITTS, ITTS + 0x1_0000);
    m.bad(mapd(0, ITTS, 4), "MAPD_DEVICE_OOR");
    // Attributes and the low bits of an entry are not the address'.
    m.ram.set_u64(DEVICES, VALID | second | 0xffff);
    m.ram.set_u64(DEVICES + 56, VALID | third);
    m.ram.set_u64(DEVICES + 8, VALID | NOWHERE);
    m.ram.set_u64(DEVICES + 16, third);
    m.ram.set_u64(DEVICES + 64, VALID | third);
    for id in [0, 8191, 7 * 8192, 65535] {
        m.good(mapd(id, ITTS + 0x2_0000, 4));
    }
    for id in [8192, 2 * 8192, 3 * 8192, 65536] {
        m.bad(mapd(id, ITTS + 0x2_0000, 4), "MAPD_DEVICE_OOR");
    }
    m.ram.set_u64(third + 8 * 8191, !0);
    m.good(unmapd(65535));
    assert_eq!(m.ram.u64(third + 8 * 8191), 0);
    // That of collections is never indirect.
    m.good(mapc(8191, 0));
    m.bad(mapc(8192, 0), "MAPC_COLLECTION_OOR");
    // The first level is not in memory.
    m.ram.holes.borrow_mut().push(DEVICES..DEVICES + 8);
    m.bad(mapd(1, ITTS, 4), "MAPD_DEVICE_OOR");
    m.good(mapd(7 * 8192 + 1, ITTS, 4));
}

#[test]
fn mapc_maps_and_unmaps() {
    let mut m = ready();
    m.good(mapti(1, 0, 8192, 1));
    m.good(mapti(1, 1, 8193, 2));
    assert_eq!(m.to(1, 0), Some((8192, 1)));
    m.good(int(1, 0));
    m.good(mapc(1, 2));
    assert_eq!(m.to(1, 0), Some((8192, 2)));
    // It is pending where it is now.
    let state = m.lpi(8192);
    assert_eq!((state.target, state.pending), (Some(2), true));
    m.good(mapc(2, 0));
    assert_eq!(m.lpi(8192).target, Some(2));
    assert_eq!(m.lpi(8193).target, Some(0));
    m.good(unmapc(1));
    assert_eq!(m.to(1, 0), None);
    m.bad(int(1, 0), "INT_UNMAPPED_INTERRUPT");
    // The event has not forgotten its collection.
    m.good(mapc(1, 0));
    assert_eq!(m.to(1, 0), Some((8192, 0)));
    assert_eq!(m.lpi(8192).target, Some(0));
    m.good(unmapc(77));
    assert_eq!(m.its.known_collections(), 3);
    m.good(unmapc(0));
    assert_eq!(m.its.known_collections(), 2);
}

#[test]
fn mapc_bounds() {
    let mut m = ready();
    for rdbase in [
        0,
        1,
        8,
        processor(VCPUS),
        0xffff_ffff,
        1 << 32 | processor(0),
    ] {
        m.bad(mapc_to(5, rdbase), "MAPC_PROCNUM_OOR");
    }
    m.good(mapc(8191, 0));
    m.bad(mapc(8192, 0), "MAPC_COLLECTION_OOR");
    m.bad(mapc(0xffff, 0), "MAPC_COLLECTION_OOR");
    m.ram
        .read_only
        .borrow_mut()
        .push(COLLECTIONS..COLLECTIONS + 0x1_0000);
    m.bad(mapc(5, 0), "MAPC_COLLECTION_OOR");
    assert_eq!(m.its.known_collections(), 4);
    // Known ones can be unmapped and moved.
    m.good(mapc(8191, 1));
    m.good(unmapc(8191));
}

#[test]
fn mapti_maps() {
    let mut m = ready();
    m.ram.write(CONFIG + 3, &[0xa3]).unwrap();
    m.good(mapti(1, 7, 8195, 2));
    assert_eq!(m.to(1, 7), Some((8195, 2)));
    let state = m.lpi(8195);
    assert_eq!(state.config, Some((0xa0, true)));
    assert_eq!((state.target, state.pending), (Some(2), false));
    // Twice the same event, or the same LPI
    m.bad(mapti(1, 7, 8200, 0), "the event is mapped already");
    m.bad(mapti(1, 8, 8195, 0), "another event is mapped to the LPI");
    m.vcpus.others.insert(8196);
    m.bad(mapti(1, 8, 8196, 9), "another event is mapped to the LPI");
    assert_eq!(m.its.known_collections(), 3);
    assert_eq!(m.to(1, 7), Some((8195, 2)));
    assert_eq!((m.its.mapped_events(), m.vcpus.lpis.len()), (1, 1));
}

#[test]
fn mapti_takes_the_pending_bit() {
    let mut m = ready();
    // Of another vCPU, of another LPI, and its own
    m.ram.write(PENDING + 1024, &[0b11]).unwrap();
    m.ram.write(PENDING + 0x1_0000 + 1024, &[0b110]).unwrap();
    m.good(mapti(1, 0, 8193, 1));
    assert!(m.lpi(8193).pending);
    assert_eq!(m.ram.u64(PENDING + 0x1_0000 + 1024), 0b100);
    assert_eq!(m.ram.u64(PENDING + 1024), 0b11);
    // LPIs are off there: the table is read when they are enabled.
    m.vcpus.disabled.insert(0);
    m.good(mapti(1, 1, 8192, 0));
    assert!(!m.lpi(8192).pending);
    assert_eq!(m.ram.u64(PENDING + 1024), 0b11);
}

#[test]
fn mapti_bounds() {
    let mut m = ready();
    for intid in [0, 1, 8191, 65536, 0x1_2000, u32::MAX] {
        m.bad(mapti(1, 0, intid, 0), "MAPTI_PHYSICALID_OOR");
    }
    m.bad(mapti(1, 16, 8192, 0), "MAPTI_ID_OOR");
    m.bad(mapti(1, 0x1_0000, 8192, 0), "MAPTI_ID_OOR");
    m.bad(mapti(2, 0, 8192, 0), "MAPTI_UNMAPPED_DEVICE");
    m.bad(mapti(0x1_0001, 0, 8192, 0), "MAPTI_UNMAPPED_DEVICE");
    m.bad(mapti(1, 0, 8192, 8192), "MAPTI_COLLECTION_OOR");
    m.good(mapti(1, 0, 65535, 8191));
    m.good(discard(1, 0));
    assert_eq!(m.its.known_collections(), 3);
    // GICR_PROPBASER has fewer bits.
    m.vcpus.propbaser = CONFIG | 13;
    m.good(mapti(1, 0, 16383, 0));
    m.bad(mapti(1, 1, 16384, 0), "MAPTI_PHYSICALID_OOR");
    m.vcpus.propbaser = CONFIG | 12;
    m.bad(mapti(1, 1, 8192, 0), "MAPTI_PHYSICALID_OOR");
    m.vcpus.propbaser = CONFIG | 31;
    m.good(mapti(1, 1, 65535, 0));
    m.bad(mapti(1, 2, 65536, 0), "MAPTI_PHYSICALID_OOR");
}

#[test]
fn mapti_tables_not_in_memory() {
    let mut m = ready();
    m.good(mapd(2, RAM + RAM_SIZE as u64 - 16, 4));
    // The address' low bits are none of the table's.
    m.bad(mapti(2, 32, 8192, 0), "MAPTI_ID_OOR");
    m.good(mapd(2, RAM + RAM_SIZE as u64 - 0x100, 16));
    m.good(mapti(2, 31, 8192, 0));
    m.bad(mapti(2, 32, 8193, 0), "MAPTI_ID_OOR");
    m.vcpus.propbaser = NOWHERE | 15;
    m.bad(mapti(1, 0, 8193, 7), "the LPI's tables");
    m.vcpus.propbaser = CONFIG | 15;
    m.ram.holes.borrow_mut().push(PENDING..PENDING + 0x1_0000);
    m.bad(mapti(1, 0, 8193, 0), "the LPI's tables");
    m.good(mapti(1, 0, 8193, 1));
    m.ram.holes.borrow_mut().clear();
    // It cannot be taken.
    m.ram.write(PENDING + 1024, &[0xff]).unwrap();
    m.ram
        .read_only
        .borrow_mut()
        .push(PENDING..PENDING + 0x1_0000);
    m.bad(mapti(1, 1, 8194, 0), "the LPI's tables");
    assert_eq!(m.ram.u64(PENDING + 1024), 0xff);
    assert_eq!((m.its.mapped_events(), m.vcpus.lpis.len()), (2, 2));
    assert_eq!(m.its.known_collections(), 3);
}

#[test]
fn mapi() {
    let mut m = ready();
    m.bad(super::machine::mapi(1, 3, 0), "MAPTI_PHYSICALID_OOR");
    m.good(mapd(2, ITTS + 0x1000, 14));
    m.good(super::machine::mapi(2, 8200, 1));
    assert_eq!(m.to(2, 8200), Some((8200, 1)));
    m.bad(super::machine::mapi(2, 8191, 1), "MAPTI_PHYSICALID_OOR");
    m.bad(super::machine::mapi(2, 16384, 1), "MAPTI_ID_OOR");
}

#[test]
fn an_event_before_its_collection() {
    let mut m = ready();
    m.good(mapti(1, 0, 8192, 9));
    assert_eq!(m.to(1, 0), None);
    assert_eq!(m.lpi(8192).target, None);
    m.bad(int(1, 0), "INT_UNMAPPED_INTERRUPT");
    m.bad(movi(1, 0, 1), "MOVI_UNMAPPED_COLLECTION");
    m.good(mapc(9, 1));
    assert_eq!(m.to(1, 0), Some((8192, 1)));
    assert_eq!(m.lpi(8192).target, Some(1));
    m.good(int(1, 0));
    assert!(m.lpi(8192).pending);
    m.good(super::machine::unmapc(9));
    assert_eq!(m.lpi(8192).target, None);
    m.bad(int(1, 0), "INT_UNMAPPED_INTERRUPT");
    m.good(mapc(9, 2));
    assert_eq!(m.lpi(8192).target, Some(2));
}

#[test]
fn movi_moves() {
    let mut m = ready();
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(1, 1, 8193, 0));
    m.good(int(1, 0));
    m.good(movi(1, 0, 2));
    assert_eq!(m.to(1, 0), Some((8192, 2)));
    assert_eq!(m.to(1, 1), Some((8193, 0)));
    let state = m.lpi(8192);
    assert_eq!((state.target, state.pending), (Some(2), true));
    // To where it is
    m.good(movi(1, 0, 2));
    m.good(mapc(2, 1));
    assert_eq!(m.lpi(8192).target, Some(1));
    m.bad(movi(1, 2, 1), "MOVI_UNMAPPED_INTERRUPT");
    m.bad(movi(2, 0, 1), "MOVI_UNMAPPED_INTERRUPT");
    m.bad(movi(1, 0, 5), "MOVI_UNMAPPED_COLLECTION");
    m.good(unmapc(2));
    m.bad(movi(1, 0, 1), "MOVI_UNMAPPED_COLLECTION");
    assert_eq!(m.its.known_collections(), 3);
}

#[test]
fn movall_moves() {
    let mut m = ready();
    m.good(mapti(1, 0, 8192, 0));
    m.good(mapti(1, 1, 8193, 1));
    m.good(movall(processor(0), processor(2)));
    assert_eq!(m.lpi(8192).target, Some(2));
    assert_eq!(m.lpi(8193).target, Some(1));
    // Collections are not moved.
    assert_eq!(m.to(1, 0), Some((8192, 0)));
    let touched = m.vcpus.touched;
    m.good(movall(processor(1), processor(1)));
    assert_eq!(m.vcpus.touched, touched);
    m.bad(movall(processor(0), 0), "MOVALL_PROCNUM_OOR");
    m.bad(movall(0xffff_ffff, processor(0)), "MOVALL_PROCNUM_OOR");
}

#[test]
fn discard_unmaps() {
    let mut m = ready();
    m.good(mapti(1, 3, 8192, 0));
    m.good(int(1, 3));
    m.ram.set_u64(ITTS + 24, !0);
    m.ram.set_u64(ITTS + 32, !0);
    m.good(discard(1, 3));
    assert_eq!(m.to(1, 3), None);
    assert!(m.vcpus.lpis.is_empty());
    assert_eq!(m.ram.u64(ITTS + 24), 0);
    assert_eq!(m.ram.u64(ITTS + 32), !0);
    m.bad(discard(1, 3), "DISCARD_UNMAPPED_INTERRUPT");
    m.bad(discard(2, 3), "DISCARD_UNMAPPED_INTERRUPT");
    // Both are free again.
    m.good(mapti(1, 3, 8192, 0));
    // Unmapped collections are no reason to keep it.
    m.good(unmapc(0));
    m.good(discard(1, 3));
    m.good(mapti(1, 3, 8192, 0));
    m.ram.read_only.borrow_mut().push(ITTS..ITTS + 0x1000);
    m.bad(discard(1, 3), "the device's table cannot be written");
    assert!(m.vcpus.lpis.is_empty());
}

#[test]
fn int_and_clear() {
    let mut m = ready();
    m.good(mapti(1, 3, 8192, 2));
    m.good(int(1, 3));
    assert!(m.lpi(8192).pending);
    m.good(clear(1, 3));
    assert!(!m.lpi(8192).pending);
    for (command, reason) in [
        (int(1, 4), "INT_UNMAPPED_INTERRUPT"),
        (int(2, 3), "INT_UNMAPPED_INTERRUPT"),
        (int(0x1_0001, 3), "INT_UNMAPPED_INTERRUPT"),
        (int(1, 0x1_0003), "INT_UNMAPPED_INTERRUPT"),
        (clear(1, 4), "CLEAR_UNMAPPED_INTERRUPT"),
        (clear(2, 3), "CLEAR_UNMAPPED_INTERRUPT"),
    ] {
        m.bad(command, reason);
    }
}

#[test]
fn inv_and_invall() {
    let mut m = ready();
    m.good(mapti(1, 3, 8194, 2));
    assert_eq!(m.lpi(8194).config, Some((0, false)));
    m.ram.write(CONFIG + 2, &[0xff]).unwrap();
    assert_eq!(m.lpi(8194).config, Some((0, false)));
    m.good(inv(1, 3));
    assert_eq!(m.lpi(8194).config, Some((0xfc, true)));
    m.bad(inv(1, 4), "INV_UNMAPPED_INTERRUPT");
    m.ram.holes.borrow_mut().push(CONFIG..CONFIG + 1);
    m.good(inv(1, 3));
    m.ram.holes.borrow_mut().push(CONFIG + 2..CONFIG + 3);
    m.bad(inv(1, 3), "the LPI's configuration");
    m.good(invall(2));
    m.good(invall(0));
    assert_eq!(m.vcpus.invalidated, [2, 0]);
    m.bad(invall(3), "INVALL_UNMAPPED_COLLECTION");
    m.good(sync());
}

#[test]
fn allocation_is_bounded() {
    let mut m = Machine::new();
    m.good(mapc(0, 0));
    // Devices with more events than there are LPIs
    for d in 0..2 {
        m.good(mapd(d, ITTS + u64::from(d) * 0x8_0000, 16));
    }
    for i in 0..65536 {
        m.send(mapti(0, i, i, 0));
        m.send(mapti(1, i, i, 0));
    }
    assert_eq!(m.its.mapped_events(), MAX_EVENTS);
    assert_eq!(m.vcpus.refused.len(), 2 * 65536 - MAX_EVENTS as usize);
    // Collections: entries of their table
    for icid in 0..=0xffff {
        m.send(mapc(icid, 1));
    }
    assert_eq!(m.its.known_collections(), 8192);
    // Devices: entries of theirs, in whatever order
    for d in (0..20000).rev() {
        m.send(mapd(d, ITTS, 4));
    }
    assert_eq!(m.its.mapped_devices(), 8192);
    assert_eq!(m.its.mapped_events(), 0);
    assert!(m.vcpus.lpis.is_empty());
}
