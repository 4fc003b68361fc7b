// SPDX-License-Identifier: GPL-2.0

//! The command queue.

use super::machine::*;
use rkvm_unit::arch::arm64::model::its::*;

#[test]
fn wraps() {
    let mut m = Machine::off();
    m.write(CBASER, VALID | QUEUE);
    m.write(BASER0, VALID | DEVICES);
    m.write(BASER1, VALID | COLLECTIONS);
    m.write(CTLR, 1);
    // 128 commands fit; three rounds, in bursts that do not divide it
    let mut sent = 0;
    while sent < 384 {
        let mut at = m.read(CWRITER);
        for _ in 0..7 {
            at = m.queue(at, mapc(sent, u32::from(sent) % VCPUS));
            sent += 1;
        }
        m.write(CWRITER, at);
        assert_eq!(m.read(CREADR), at);
        assert_eq!(m.its.known_collections(), usize::from(sent));
    }
    assert!(m.vcpus.refused.is_empty());
}

#[test]
fn writer_outside_of_the_queue_is_ignored() {
    let mut m = Machine::off();
    m.write(CBASER, VALID | QUEUE | 1);
    m.write(BASER0, VALID | DEVICES);
    m.write(BASER1, VALID | COLLECTIONS);
    m.write(CTLR, 1);
    m.queue(0, mapc(0, 0));
    for outside in [0x2000, 0x2020, 0xf_ffe0] {
        m.write(CWRITER, outside);
        assert_eq!(m.read(CWRITER), 0);
    }
    // Bits that are not the offset's do not matter.
    m.write(CWRITER, 0xfff0_0000_0000_003e | 1 << 20);
    assert_eq!((m.read(CWRITER), m.read(CREADR)), (0x20, 0x20));
    assert_eq!(m.its.known_collections(), 1);
    // The high half is none of it.
    let _ = m.its.write(CWRITER + 4, 4, u64::MAX, &mut m.vcpus);
    assert_eq!(m.read(CWRITER), 0x20);
}

#[test]
fn bad_commands_are_skipped() {
    let mut m = Machine::new();
    let mut at = 0;
    let mut codes = vec![];
    for code in 0..=255 {
        let known = [1, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
        if !known.contains(&code) {
            at = m.queue(at, [code, 1, 2, 3]);
            codes.push(code);
        }
    }
    at = m.queue(at, mapc(5, 1));
    m.write(CWRITER, at);
    assert_eq!(m.read(CREADR), at);
    assert_eq!(m.vcpus.refused.len(), codes.len());
    for (i, (r, code)) in m.vcpus.refused.iter().zip(codes).enumerate() {
        assert_eq!(r.reason, "no such command");
        assert_eq!((r.offset, u64::from(r.code)), (32 * i as u32, code));
    }
    assert_eq!(m.its.known_collections(), 1);
}

#[test]
fn stalls_where_there_is_no_memory() {
    let mut m = Machine::new();
    let hole = QUEUE + 0x1000..QUEUE + 0x2000;
    let mut at = 0x1000 - 32;
    for i in 0..3 {
        at = m.queue(at, mapc(i, 0));
    }
    m.ram.holes.borrow_mut().push(hole);
    let _ = m.its.user_write(CTLR, 0, &mut m.vcpus).unwrap();
    let _ = m.its.user_write(CREADR, 0x1000 - 32, &mut m.vcpus).unwrap();
    m.write(CTLR, 1);
    m.write(CWRITER, at);
    // The first was carried out. Stalled is told; nothing is under way.
    assert_eq!(m.its.known_collections(), 1);
    assert_eq!(m.read(CREADR), 0x1001);
    assert_eq!(m.read(CTLR), 1 << 31 | 1);
    assert_eq!(m.vcpus.refused.len(), 1);
    let reason = "the command queue is not in memory";
    assert_eq!(m.vcpus.refused[0].reason, reason);
    // More commands do not help, nor does memory; only to retry does.
    m.ram.holes.borrow_mut().clear();
    m.write(CWRITER, at);
    assert_eq!(m.read(CREADR), 0x1001);
    m.write(CWRITER, at | 1);
    assert_eq!(m.read(CREADR), at);
    assert_eq!(m.its.known_collections(), 3);
}

#[test]
fn a_queue_outside_of_memory() {
    for base in [NOWHERE & !0xffff, RAM + RAM_SIZE as u64, 0xf_ffff_ffff_0000] {
        let mut m = Machine::off();
        m.write(CBASER, VALID | base | 0xff);
        m.write(BASER0, VALID | DEVICES);
        m.write(BASER1, VALID | COLLECTIONS);
        m.write(CTLR, 1);
        m.write(CWRITER, 0xf_ffe0);
        assert_eq!(m.read(CREADR), 1);
        assert_eq!(m.vcpus.refused.len(), 1);
        // To retry tries once.
        m.write(CWRITER, 0xf_ffe0 | 1);
        assert_eq!(m.vcpus.refused.len(), 2);
        // Another queue is not stalled.
        m.write(CTLR, 0);
        m.write(CBASER, VALID | QUEUE);
        assert_eq!(m.read(CREADR), 0);
    }
}

#[test]
fn waits_while_disabled() {
    let mut m = Machine::new();
    m.write(CTLR, 0);
    let at = m.queue(0, mapc(0, 0));
    m.write(CWRITER, at);
    assert_eq!((m.read(CREADR), m.its.known_collections()), (0, 0));
    assert_eq!(m.read(CTLR), 1 << 31);
    m.write(CTLR, 1);
    assert_eq!((m.read(CREADR), m.its.known_collections()), (at, 1));
}

/// Calls of `process` until all is done, with the most that one of them did.
fn rounds(m: &mut Machine) -> (u64, u64) {
    let (mut rounds, mut most) = (0, 0);
    loop {
        let (ram, lpis) = (m.ram.accesses.get(), m.vcpus.touched);
        let done = m.its.process(&m.ram, &mut m.vcpus).unwrap();
        rounds += 1;
        most = most.max(m.ram.accesses.get() - ram + m.vcpus.touched - lpis);
        assert_eq!(m.its.has_work(), done == Progress::More);
        if done == Progress::Idle {
            return (rounds, most);
        }
        // Not quiescent, and CREADR shows how far it is
        assert_eq!(m.read(CTLR) >> 31, 0);
    }
}

#[test]
fn a_call_is_bounded() {
    // The largest queue, full of commands that do nothing
    let mut m = Machine::off();
    m.write(CBASER, VALID | QUEUE | 0xff);
    m.write(BASER0, VALID | DEVICES);
    m.write(BASER1, VALID | COLLECTIONS);
    m.write(CTLR, 1);
    let effect = m.its.write(CWRITER, 8, 0xf_ffe0, &mut m.vcpus);
    assert_eq!(effect, Effect::Process);
    let (calls, most) = rounds(&mut m);
    assert!(calls > 30 && most <= 1100, "{calls} {most}");
}

#[test]
fn a_call_is_bounded_with_many_events() {
    let mut m = Machine::new();
    m.good(mapc(0, 0));
    m.good(mapd(0, ITTS, 16));
    for i in 0..20000 {
        m.send(mapti(0, i, 8192 + i, 0));
    }
    assert_eq!(m.its.mapped_events(), 20000);
    // Each moves all of them, or looks at all LPIs.
    for command in [
        |i: u32| mapc(0, 1 + i % 2),
        |_: u32| invall(0),
        |i: u32| movall(processor(i % 2), processor(i % 2 + 1)),
    ] {
        let mut at = m.read(CWRITER);
        for i in 0..20 {
            at = m.queue(at, command(i));
        }
        let effect = m.its.write(CWRITER, 8, at, &mut m.vcpus);
        assert_eq!(effect, Effect::Process);
        let (calls, most) = rounds(&mut m);
        assert!(calls >= 20 && most <= 20002, "{calls} {most}");
    }
    // So does this unmap them.
    m.good(unmapd(0));
    assert!(m.vcpus.lpis.is_empty());
}

#[test]
fn no_memory_is_told_and_the_command_stays() {
    // To map, to configure, to make pending
    for fail in 0..3 {
        let mut m = Machine::new();
        m.good(mapc(3, 0));
        m.good(mapd(1, ITTS, 4));
        m.ram.write(PENDING + 1024, &[1]).unwrap();
        let before = m.read(CREADR);
        let at = m.queue(before, mapti(1, 2, 8192, 3));
        let _ = m.its.write(CWRITER, 8, at, &mut m.vcpus);
        m.vcpus.fail_in = Some(fail);
        assert!(m.its.process(&m.ram, &mut m.vcpus).is_err());
        assert!(m.its.has_work());
        assert_eq!(m.read(CREADR), before);
        assert!(m.vcpus.lpis.is_empty());
        assert_eq!(m.its.mapped_events(), 0);
        assert_eq!(m.ram.u64(PENDING + 1024), 1);
        m.run();
        assert_eq!(m.read(CREADR), at);
        assert_eq!(m.to(1, 2), Some((8192, 0)));
        assert!(m.lpi(8192).pending);
        assert_eq!(m.ram.u64(PENDING + 1024), 0);
    }
}

#[test]
fn no_memory_with_a_new_collection() {
    for fail in 0..2 {
        let mut m = Machine::new();
        m.good(mapd(1, ITTS, 4));
        let before = m.read(CREADR);
        let at = m.queue(before, mapti(1, 2, 8192, 3));
        let at = m.queue(at, mapti(1, 3, 8193, 3));
        let at = m.queue(at, mapc(3, 2));
        let _ = m.its.write(CWRITER, 8, at, &mut m.vcpus);
        m.vcpus.fail_in = Some(fail);
        assert!(m.its.process(&m.ram, &mut m.vcpus).is_err());
        assert_eq!(m.read(CREADR), before);
        assert_eq!((m.its.mapped_events(), m.its.known_collections()), (0, 0));
        // Each of the moves fails, too: the collection is then still where it was.
        for fail in [4, 1] {
            m.vcpus.fail_in = Some(fail);
            assert!(m.its.process(&m.ram, &mut m.vcpus).is_err());
            assert_eq!(m.read(CREADR), before + 64);
            assert_eq!(m.to(1, 2), None);
        }
        m.run();
        for (event, intid) in [(2, 8192), (3, 8193)] {
            assert_eq!(m.to(1, event), Some((intid, 2)));
            assert_eq!(m.lpi(intid).target, Some(2));
        }
    }
}

#[test]
fn no_memory_for_ourselves() {
    use rkvm_unit::host::grow_vec::fail_after;
    let mut m = Machine::new();
    for command in [mapc(0, 0), mapd(1, ITTS, 4), mapti(1, 2, 8192, 0)] {
        let at = m.queue(m.read(CWRITER), command);
        let _ = m.its.write(CWRITER, 8, at, &mut m.vcpus);
        fail_after(Some(0));
        assert!(m.its.process(&m.ram, &mut m.vcpus).is_err());
        assert!(m.its.process(&m.ram, &mut m.vcpus).is_err());
        fail_after(None);
        assert!(m.vcpus.lpis.is_empty());
        m.run();
        assert_eq!(m.read(CREADR), at);
    }
    assert_eq!(m.to(1, 2), Some((8192, 0)));
}
