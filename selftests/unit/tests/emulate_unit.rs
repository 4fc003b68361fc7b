// SPDX-License-Identifier: GPL-2.0

//! The emulator by hand: what no oracle shows. Segments, real mode, replay of device reads,
//! repeated strings, shadows, system instructions.

mod common;

use common::env::{attr, flat, real, TestEnv};
use rkvm_unit::arch::x86::model::decode::{Mnemonic, Vendor};
use rkvm_unit::arch::x86::model::emulate::{Feature, Kind, Outcome, Regs, Shadow, Stop, System};
use rkvm_unit::arch::x86::model::regs::{
    cr0, cr4, rflags, vector, DescTable, Exception, Gpr, Gprs, Seg, SegAttr, Segment,
};

const DONE: Result<Outcome, Stop> = Ok(Outcome::Done {
    shadow: None,
    trap: false,
});

fn regs(set: &[(Gpr, u64)]) -> Regs {
    let mut r = Regs {
        gprs: Gprs::default(),
        rip: 0x1000,
        rflags: rflags::FIXED,
    };
    for &(g, v) in set {
        r.gprs.set(g, v);
    }
    r
}

fn fault(e: Exception) -> Result<Outcome, Stop> {
    Err(Stop::Fault(e))
}

/// No error code, as in real mode.
fn bare(vector: u8) -> Result<Outcome, Stop> {
    fault(Exception::plain(vector))
}

const GP0: Exception = Exception::gp(0);

// Segmentation.

#[test]
fn limits_count_the_last_byte() {
    let mut e = TestEnv::prot32(0x1_0000, 0x1000);
    e.segs[Seg::Ds as usize] = Segment {
        selector: 0x10,
        attr: attr(3, 0, true, false),
        limit: 0xff,
        base: 0x1_0000,
    };
    let code = [0x8b, 0x03]; // mov eax, [ebx]
    for (at, ok) in [
        (0xfc, true),
        (0xfd, false),
        (0x100, false),
        (0xffff_fffe, false),
    ] {
        let mut r = regs(&[(Gpr::Rbx, at)]);
        let before = r;
        let out = e.run(&code, &mut r);
        if ok {
            assert_eq!(out, DONE, "{at:x}");
        } else {
            assert_eq!((out, r), (fault(GP0), before), "{at:x}");
        }
    }
    // By way of SS it is a stack fault.
    e.segs[Seg::Ss as usize] = e.segs[Seg::Ds as usize];
    let mut r = regs(&[(Gpr::Rbp, 0xfd)]);
    assert_eq!(e.run(&[0x8b, 0x45, 0], &mut r), fault(Exception::ss(0)));
}

#[test]
fn expand_down_segments_end_below() {
    let mut e = TestEnv::prot32(0, 0x2_0000);
    let down = |db| Segment {
        selector: 0x10,
        attr: attr(7, 0, db, false),
        limit: 0xfff,
        base: 0,
    };
    for (db, at, ok) in [
        (true, 0xfff, false),
        (true, 0x1000, true),
        (true, 0x1_8000, true),
        (false, 0x1000, true),
        (false, 0xfffc, true),
        (false, 0xfffd, false), // past 64 KiB
        (false, 0x1_8000, false),
    ] {
        e.segs[Seg::Ds as usize] = down(db);
        let mut r = regs(&[(Gpr::Rbx, at)]);
        assert_eq!(e.run(&[0x8b, 0x03], &mut r).is_ok(), ok, "{db} {at:x}");
    }
}

#[test]
fn types_are_checked_before_memory() {
    let mut e = TestEnv::prot32(0, 0x1000);
    let mut with = |typ: u8, unusable: bool, code: &[u8]| {
        let mut a = attr(typ, 0, true, false);
        if unusable {
            a = SegAttr(a.0 | 1 << 16);
        }
        e.segs[Seg::Ds as usize] = flat(0x10, a);
        e.run(code, &mut regs(&[(Gpr::Rbx, 0x100)]))
    };
    let (load, store, modify) = ([0x8b, 0x03], [0x89, 0x03], [0x01, 0x03]);
    assert_eq!(with(1, false, &load), DONE); // read-only data
    assert_eq!(with(1, false, &store), fault(GP0));
    assert_eq!(with(1, false, &modify), fault(GP0));
    assert_eq!(with(9, false, &load), fault(GP0)); // execute-only code
    assert_eq!(with(11, false, &load), DONE);
    assert_eq!(with(11, false, &store), fault(GP0));
    assert_eq!(with(3, true, &load), fault(GP0)); // a null selector
}

#[test]
fn real_mode_does_not_wrap_and_has_no_error_codes() {
    let mut e = TestEnv::real(0, 0x3_0000);
    e.segs[Seg::Ds as usize] = real(0x1000);
    e.poke(0x1_fffe, &[0x34, 0x12]);
    let mut r = regs(&[(Gpr::Rbx, 0xfffe)]);
    assert_eq!(e.run(&[0x8b, 0x07], &mut r), DONE); // mov ax, [bx]
    assert_eq!(r.gprs.get(Gpr::Rax), 0x1234);
    let mut r = regs(&[(Gpr::Rbx, 0xffff)]);
    assert_eq!(e.run(&[0x8b, 0x07], &mut r), bare(vector::GP));
    // The address itself wraps at 64 KiB: bx + si.
    let mut r = regs(&[(Gpr::Rbx, 0xffff), (Gpr::Rsi, 0xffff)]);
    assert_eq!(e.run(&[0x8b, 0x00], &mut r), DONE);
    assert_eq!(r.gprs.get(Gpr::Rax), 0x1234);
    // Stack: pushes at SP 1 fall off the segment.
    let mut r = regs(&[(Gpr::Rsp, 1)]);
    assert_eq!(e.run(&[0x50], &mut r), bare(vector::SS));
    let mut r = regs(&[(Gpr::Rsp, 0)]);
    assert_eq!(e.run(&[0x50], &mut r), DONE);
    assert_eq!(r.gprs.get(Gpr::Rsp), 0xfffe);
}

#[test]
fn addresses_wrap_at_4_gib_outside_64_bit_mode() {
    let mut e = TestEnv::prot32(0, 0x1000);
    e.segs[Seg::Ds as usize].base = 0xffff_f000;
    e.poke(0x10, &[1, 2, 3, 4]);
    let mut r = regs(&[(Gpr::Rbx, 0x1010)]);
    assert_eq!(e.run(&[0x8b, 0x03], &mut r), DONE);
    assert_eq!(r.gprs.get(Gpr::Rax), 0x0403_0201);
    // An access across the end is made in two.
    e.mmio = 0xffff_f000..0x1_0000_0000;
    let mut r = regs(&[(Gpr::Rbx, 0xffe)]);
    assert_eq!(e.run_with_user(&[0x8b, 0x03], &mut r, 0xaa), DONE);
    assert_eq!(e.asked, [(0xffff_fffe, 2)]);
    assert_eq!(r.gprs.get(Gpr::Rax), 0xaaaa);
}

#[test]
fn addresses_are_canonical() {
    let mut e = TestEnv::long64(0, 0x1000);
    let code = [0x48, 0x8b, 0x03]; // mov rax, [rbx]
    for (at, want) in [
        (0x0000_8000_0000_0000, GP0),
        (0x0000_7fff_ffff_fff9, GP0), // the last byte is not canonical
        (0xffff_7fff_ffff_ffff, GP0),
    ] {
        assert_eq!(
            e.run(&code, &mut regs(&[(Gpr::Rbx, at)])),
            fault(want),
            "{at:x}"
        );
    }
    let pf = |at| fault(Exception::pf(0, at));
    let high = 0xffff_8000_0000_0000;
    assert_eq!(e.run(&code, &mut regs(&[(Gpr::Rbx, high)])), pf(high));
    // push, and by RBP: stack faults
    let at = 0x0000_8000_0000_0008;
    assert_eq!(
        e.run(&[0x50], &mut regs(&[(Gpr::Rsp, at)])),
        fault(Exception::ss(0))
    );
    assert_eq!(
        e.run(&[0x8b, 0x45, 0], &mut regs(&[(Gpr::Rbp, at)])),
        fault(Exception::ss(0))
    );
    // 57 bits
    e.cr4 |= cr4::LA57;
    let at = 0x0000_8000_0000_0000;
    assert_eq!(e.run(&code, &mut regs(&[(Gpr::Rbx, at)])), pf(at));
    // jmp rax
    e.cr4 &= !cr4::LA57;
    assert_eq!(
        e.run(&[0xff, 0xe0], &mut regs(&[(Gpr::Rax, at)])),
        fault(GP0)
    );
}

#[test]
fn user_rights_and_alignment() {
    let mut e = TestEnv::long64(0, 0x1000).user();
    e.read_only = 0x800;
    let rw = |at| Exception::pf(4 | 2, at);
    // A read-modify-write asks for write permission at its read.
    e.logging = true;
    let mut r = regs(&[(Gpr::Rbx, 0x900)]);
    assert_eq!(e.run(&[0x01, 0x03], &mut r), fault(rw(0x900)));
    assert!(e
        .log
        .iter()
        .all(|l| l.3.write && l.3.user && l.3.kind == Kind::Data));
    assert_eq!(e.run(&[0x8b, 0x03], &mut r), DONE);
    // #AC wants CR0.AM, RFLAGS.AC and CPL 3.
    let ac = fault(Exception::with_error(vector::AC, 0));
    for (am, f, cpl, want) in [
        (cr0::AM, rflags::AC, 3, ac),
        (0, rflags::AC, 3, DONE),
        (cr0::AM, 0, 3, DONE),
        (cr0::AM, rflags::AC, 0, DONE),
    ] {
        e.cr0 = e.cr0 & !cr0::AM | am;
        e.cpl = cpl;
        let mut r = regs(&[(Gpr::Rbx, 0x102)]);
        r.rflags |= f;
        assert_eq!(e.run(&[0x8b, 0x03], &mut r), want);
    }
}

// Pages and devices.

#[test]
fn nothing_is_left_of_a_write_that_faults_on_its_second_page() {
    let mut e = TestEnv::long64(0x1000, 0x1000);
    let before = e.ram.clone();
    let mut r = regs(&[(Gpr::Rbx, 0x1ffe), (Gpr::Rax, 0x1234_5678)]);
    let saved = r;
    assert_eq!(
        e.run(&[0x89, 0x03], &mut r),
        fault(Exception::pf(2, 0x2000))
    );
    assert_eq!((r, &e.ram), (saved, &before));
    // pusha in 32-bit code, its last slots unmapped
    let mut e = TestEnv::prot32(0x1000, 0x1000);
    let mut r = regs(&[(Gpr::Rsp, 0x1010), (Gpr::Rax, 7)]);
    let saved = r;
    assert_eq!(e.run(&[0x60], &mut r), fault(Exception::pf(2, 0xffc)));
    assert_eq!(r, saved);
    assert!(e.ram.iter().all(|b| *b == 0));
}

#[test]
fn a_device_read_is_asked_once_and_then_replayed() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.mmio = 0x1000..0x2000;
    // add eax, [rbx]
    let mut r = regs(&[(Gpr::Rbx, 0x1008), (Gpr::Rax, 1)]);
    let before = r;
    assert_eq!(e.run(&[0x03, 0x03], &mut r), Err(Stop::NeedUser));
    assert_eq!(r, before, "nothing is committed");
    e.answers.push((0x1008, vec![5, 0, 0, 0]));
    assert_eq!(e.run(&[0x03, 0x03], &mut r), DONE);
    assert_eq!((r.gprs.get(Gpr::Rax), r.rip), (6, 0x1002));
    assert_eq!(e.asked, [(0x1008, 4)], "one access");
    // A modification is one read and one write.
    e.asked.clear();
    let mut r = regs(&[(Gpr::Rbx, 0x1010), (Gpr::Rax, 1)]);
    assert_eq!(e.run_with_user(&[0x01, 0x03], &mut r, 0x11), DONE);
    assert_eq!(e.asked, [(0x1010, 4)]);
    assert_eq!(e.posted, [(0x1010, vec![0x12, 0x11, 0x11, 0x11])]);
}

#[test]
fn tables_that_change_under_an_access_leave_no_trace() {
    let mut e = TestEnv::long64(0, 0x1000);
    for code in [&[0x89, 0x03][..], &[0x01, 0x03], &[0x50], &[0xa5]] {
        let mut r = regs(&[
            (Gpr::Rbx, 0x100),
            (Gpr::Rsp, 0x108),
            (Gpr::Rdi, 0x100),
            (Gpr::Rax, 1),
        ]);
        let before = r;
        e.changing = true;
        e.poke(0x100, &[0; 8]);
        assert_eq!(e.run(code, &mut r), Err(Stop::Again));
        assert_eq!((r, e.peek::<8>(0x100)), (before, [0; 8]));
        e.changing = false;
        assert_eq!(e.run(code, &mut r), DONE);
    }
}

#[test]
fn cmps_of_two_device_registers_asks_for_both() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.mmio = 0x1000..0x2000;
    let mut r = regs(&[(Gpr::Rsi, 0x1000), (Gpr::Rdi, 0x1800)]);
    assert_eq!(e.run_with_user(&[0xa7], &mut r, 9), DONE);
    assert_eq!(e.asked.len(), 2);
    assert!(r.rflags & rflags::ZF != 0);
    assert_eq!(
        (r.gprs.get(Gpr::Rsi), r.gprs.get(Gpr::Rdi)),
        (0x1004, 0x1804)
    );
}

#[test]
fn a_lost_race_leaves_no_trace() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.poke(0x100, &[1, 0, 0, 0]);
    for code in [
        &[0xf0, 0x01, 0x03][..],
        &[0x87, 0x03],
        &[0xf0, 0x0f, 0xc1, 0x03],
        &[0xf0, 0x0f, 0xb1, 0x03],
    ] {
        e.races = 1;
        let mut r = regs(&[(Gpr::Rbx, 0x100), (Gpr::Rax, 1)]);
        let before = r;
        assert_eq!(e.run(code, &mut r), Ok(Outcome::Retry));
        assert_eq!((r, e.peek::<4>(0x100)), (before, [1, 0, 0, 0]));
        assert_eq!(e.run(code, &mut r), DONE);
        e.poke(0x100, &[1, 0, 0, 0]);
    }
}

// Strings.

#[test]
fn rep_movs_commits_iterations_one_by_one() {
    let mut e = TestEnv::long64(0x1000, 0x1000);
    e.poke(0x1100, b"abcdefgh");
    // The fifth byte falls off the page.
    let mut r = regs(&[(Gpr::Rsi, 0x1100), (Gpr::Rdi, 0x1ffc), (Gpr::Rcx, 8)]);
    assert_eq!(
        e.run(&[0xf3, 0xa4], &mut r),
        fault(Exception::pf(2, 0x2000))
    );
    assert_eq!(r.gprs.get(Gpr::Rcx), 4);
    assert_eq!(
        (r.gprs.get(Gpr::Rsi), r.gprs.get(Gpr::Rdi)),
        (0x1104, 0x2000)
    );
    assert_eq!((r.rip, e.peek::<4>(0x1ffc)), (0x1000, *b"abcd"));
}

#[test]
fn rep_yields_and_goes_on() {
    let mut e = TestEnv::long64(0, 0x10000);
    let mut r = regs(&[(Gpr::Rdi, 0x100), (Gpr::Rcx, 3000), (Gpr::Rax, 0x55)]);
    let code = [0xf3, 0xaa];
    e.yield_after = 10;
    assert_eq!(e.run(&code, &mut r), Ok(Outcome::Partial { trap: false }));
    assert_eq!((r.gprs.get(Gpr::Rcx), r.rip), (2990, 0x1000));
    e.yield_after = u64::MAX;
    let mut calls = 0;
    while e.run(&code, &mut r) != DONE {
        calls += 1;
        assert!(calls < 10);
    }
    assert!(calls > 1, "a call does a bounded number of iterations");
    assert_eq!(
        (r.gprs.get(Gpr::Rcx), r.gprs.get(Gpr::Rdi), r.rip),
        (0, 0x100 + 3000, 0x1002)
    );
    assert!(e.ram[0x100..0x100 + 3000].iter().all(|b| *b == 0x55));
    assert_eq!(e.ram[0x100 + 3000], 0);
    // No iteration at all.
    let mut r = regs(&[(Gpr::Rdi, u64::MAX)]);
    assert_eq!(e.run(&code, &mut r), DONE);
    // Only the low half of RCX counts with 32-bit addresses.
    let mut r = regs(&[(Gpr::Rcx, 1 << 32), (Gpr::Rdi, u64::MAX)]);
    assert_eq!(e.run(&[0x67, 0xf3, 0xaa], &mut r), DONE);
}

#[test]
fn rep_traps_after_each_iteration() {
    let mut e = TestEnv::long64(0, 0x1000);
    let mut r = regs(&[(Gpr::Rdi, 0x100), (Gpr::Rcx, 2)]);
    r.rflags |= rflags::TF;
    assert_eq!(
        e.run(&[0xf3, 0xaa], &mut r),
        Ok(Outcome::Partial { trap: true })
    );
    assert_eq!(
        e.run(&[0xf3, 0xaa], &mut r),
        Ok(Outcome::Done {
            shadow: None,
            trap: true
        })
    );
}

#[test]
fn repe_and_repne_stop_at_the_difference() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.poke(0x100, b"same, then this");
    e.poke(0x200, b"same, then that");
    let mut r = regs(&[(Gpr::Rsi, 0x100), (Gpr::Rdi, 0x200), (Gpr::Rcx, 100)]);
    assert_eq!(e.run(&[0xf3, 0xa6], &mut r), DONE);
    assert_eq!((r.gprs.get(Gpr::Rcx), r.gprs.get(Gpr::Rsi)), (86, 0x10e));
    assert!(r.rflags & rflags::ZF == 0);
    let mut r = regs(&[
        (Gpr::Rdi, 0x100),
        (Gpr::Rcx, 100),
        (Gpr::Rax, u64::from(b',')),
    ]);
    assert_eq!(e.run(&[0xf2, 0xae], &mut r), DONE);
    assert_eq!(r.gprs.get(Gpr::Rdi), 0x105);
}

#[test]
fn a_device_answers_each_iteration_once() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.mmio = 0x1000..0x2000;
    // rep movsd from the device
    let mut r = regs(&[(Gpr::Rsi, 0x1000), (Gpr::Rdi, 0x100), (Gpr::Rcx, 3)]);
    assert_eq!(e.run_with_user(&[0xf3, 0xa5], &mut r, 0x77), DONE);
    assert_eq!(e.asked, [(0x1000, 4), (0x1004, 4), (0x1008, 4)]);
    assert!(e.ram[0x100..0x10c].iter().all(|b| *b == 0x77));
}

#[test]
fn ins_reads_ahead_what_it_is_sure_to_store() {
    let mut e = TestEnv::real(0, 0x10000);
    // rep insw, 5 words before the end of a page, 100 wanted
    let mut r = regs(&[(Gpr::Rdx, 0x1f0), (Gpr::Rdi, 0x1ff6), (Gpr::Rcx, 100)]);
    let code = [0xf3, 0x6d];
    assert_eq!(e.run(&code, &mut r), Err(Stop::NeedUser));
    assert_eq!(e.port_asked, [(0x1f0, 2, 5)]);
    e.port_in = Some((0..5).collect());
    assert_eq!(e.run(&code, &mut r), Err(Stop::NeedUser), "the next page");
    assert_eq!(e.port_asked[1], (0x1f0, 2, 95));
    assert_eq!((r.gprs.get(Gpr::Rcx), r.gprs.get(Gpr::Rdi)), (95, 0x2000));
    assert_eq!(e.peek::<10>(0x1ff6), [0, 0, 1, 0, 2, 0, 3, 0, 4, 0]);
    // Backwards, one by one.
    e.port_asked.clear();
    r.rflags |= rflags::DF;
    assert_eq!(e.run(&code, &mut r), Err(Stop::NeedUser));
    assert_eq!(e.port_asked, [(0x1f0, 2, 1)]);
    // Nothing is read when it cannot be stored.
    e.port_asked.clear();
    e.read_only = 0;
    assert!(matches!(e.run(&code, &mut r), Err(Stop::Fault(_))));
    assert!(e.port_asked.is_empty());
}

#[test]
fn outs_posts_what_it_reads() {
    let mut e = TestEnv::real(0, 0x10000);
    e.poke(0x100, b"hello");
    let mut r = regs(&[(Gpr::Rdx, 0x3f8), (Gpr::Rsi, 0x100), (Gpr::Rcx, 5)]);
    assert_eq!(e.run(&[0xf3, 0x6e], &mut r), DONE);
    let bytes: Vec<u8> = e.port_out.iter().map(|o| o.2 as u8).collect();
    assert_eq!(bytes, b"hello");
}

#[test]
fn ports_are_guarded_by_iopl_and_the_bitmap() {
    let mut e = TestEnv::prot32(0, 0x1000).user();
    let code = [0xec]; // in al, dx
    let run = |e: &mut TestEnv, iopl: u64, port: u64| {
        e.port_in = Some([0x42].into());
        let mut r = regs(&[(Gpr::Rdx, port)]);
        r.rflags |= iopl << 12;
        e.run(&code, &mut r)
    };
    assert_eq!(run(&mut e, 3, 0x60), DONE);
    assert_eq!(run(&mut e, 0, 0x60), fault(GP0));
    e.tr = Segment {
        selector: 0x40,
        attr: SegAttr(0x8b),
        limit: 0x68 + 0x10,
        base: 0x200,
    };
    e.poke(0x200 + 102, &[0x68, 0]);
    e.ram[0x268..0x279].fill(0xff);
    e.ram[0x268 + 0xc] = 0xfe; // port 0x60
    assert_eq!(run(&mut e, 0, 0x60), DONE);
    assert_eq!(run(&mut e, 0, 0x61), fault(GP0));
    assert_eq!(run(&mut e, 0, 0x80), fault(GP0), "beyond the limit");
    e.tr.attr = SegAttr(0x83); // a 16-bit TSS has none
    assert_eq!(run(&mut e, 0, 0x60), fault(GP0));
}

// Control.

#[test]
fn far_transfers_in_real_mode() {
    let mut e = TestEnv::real(0, 0x3_0000);
    e.segs[Seg::Cs as usize] = real(0x200);
    let mut r = regs(&[(Gpr::Rsp, 0x8000)]);
    // call 0x1234:0x5678
    assert_eq!(e.run(&[0x9a, 0x78, 0x56, 0x34, 0x12], &mut r), DONE);
    assert_eq!((e.segs[Seg::Cs as usize].base, r.rip), (0x1_2340, 0x5678));
    assert_eq!(e.peek::<4>(0x7ffc), [0x05, 0x10, 0x00, 0x02]);
    // retf 2
    assert_eq!(e.run(&[0xca, 2, 0], &mut r), DONE);
    assert_eq!((e.segs[Seg::Cs as usize].selector, r.rip), (0x200, 0x1005));
    assert_eq!(r.gprs.get(Gpr::Rsp), 0x8002);
    // jmp far [bx]
    e.poke(0x400, &[0x00, 0x7c, 0x00, 0xf0]);
    r.gprs.set(Gpr::Rbx, 0x400);
    assert_eq!(e.run(&[0xff, 0x2f], &mut r), DONE);
    assert_eq!((e.segs[Seg::Cs as usize].base, r.rip), (0xf_0000, 0x7c00));
    // A 32-bit offset beyond the limit.
    assert_eq!(
        e.run(&[0x66, 0xea, 0, 0, 1, 0, 0, 0], &mut r),
        bare(vector::GP)
    );
}

#[test]
fn interrupts_and_iret_in_real_mode() {
    let mut e = TestEnv::real(0, 0x2_0000);
    e.segs[Seg::Cs as usize] = real(0x100);
    e.poke(0x10 * 4, &[0x00, 0x20, 0x00, 0x30]);
    let mut r = regs(&[(Gpr::Rsp, 0x9000)]);
    r.rflags |= rflags::IF | rflags::CF;
    assert_eq!(e.run(&[0xcd, 0x10], &mut r), DONE);
    assert_eq!((e.segs[Seg::Cs as usize].base, r.rip), (0x3_0000, 0x2000));
    assert_eq!(r.rflags & (rflags::IF | rflags::TF), 0);
    assert_eq!(e.peek::<6>(0x8ffa), [0x02, 0x10, 0x00, 0x01, 0x03, 0x02]);
    assert_eq!(e.run(&[0xcf], &mut r), DONE);
    assert_eq!((e.segs[Seg::Cs as usize].selector, r.rip), (0x100, 0x1002));
    assert!(r.rflags & rflags::IF != 0 && r.rflags & rflags::CF != 0);
    assert_eq!(r.gprs.get(Gpr::Rsp), 0x9000);
    // Beyond the table.
    e.idtr.limit = 0x3f;
    assert_eq!(e.run(&[0xcd, 0x10], &mut r), bare(vector::GP));
    // Protected mode: the vCPU delivers.
    let mut e = TestEnv::prot32(0, 0x1000);
    let out = e.run(&[0xcd, 0x80], &mut r);
    let soft = System::SoftInt {
        vector: 0x80,
        by: Mnemonic::Int,
    };
    assert_eq!(out, Ok(Outcome::System(soft)));
}

fn gdt(e: &mut TestEnv, entries: &[u64]) {
    e.tables_at = 0xffff_8800_0000_0000;
    if e.efer == 0 {
        e.tables_at = 0xc000_0000;
    }
    e.tables = entries.iter().flat_map(|d| d.to_le_bytes()).collect();
    e.gdtr = DescTable {
        base: e.tables_at,
        limit: (entries.len() * 8 - 1) as u16,
    };
}

#[test]
fn far_jumps_in_protected_mode() {
    let mut e = TestEnv::prot32(0, 0x1000);
    gdt(
        &mut e,
        &[
            0,
            0x00cf_9a00_0000_ffff, // 8: 32-bit code, not accessed
            0x00cf_9200_0000_ffff, // 10: data
            0x0000_9a00_8000_0fff, // 18: 16-bit code at 0x8000, limit 0xfff
            0x00cf_fa00_0000_ffff, // 20: user code
            0x00cf_1a00_0000_ffff, // 28: not present
            0x0000_8c00_0008_0000, // 30: a call gate
            0x00cf_9e00_0000_ffff, // 38: conforming code
        ],
    );
    let cs = e.segs[Seg::Cs as usize];
    let mut jump = |sel: u8, at: u8| {
        e.segs[Seg::Cs as usize] = cs;
        let mut r = regs(&[]);
        let out = e.run(&[0xea, at, 1, 0, 0, sel, 0], &mut r);
        (out, r.rip, e.segs[Seg::Cs as usize])
    };
    let (out, rip, cs) = jump(0x18, 0);
    assert_eq!((out, rip), (DONE, 0x100));
    assert_eq!(
        (cs.base, cs.limit, cs.attr.db(), cs.attr.typ()),
        (0x8000, 0xfff, false, 11)
    );
    assert_eq!(jump(0x8, 0).0, DONE);
    assert_eq!(jump(0x38, 0).2.selector, 0x38);
    assert_eq!(jump(0, 0).0, fault(GP0));
    assert_eq!(jump(0x10, 0).0, fault(Exception::gp(0x10)));
    assert_eq!(jump(0x20, 0).0, fault(Exception::gp(0x20)));
    assert_eq!(
        jump(0x28, 0).0,
        fault(Exception::with_error(vector::NP, 0x28))
    );
    assert_eq!(jump(0x30, 0).0, Err(Stop::Unhandleable));
    assert_eq!(
        jump(0x40, 0).0,
        fault(Exception::gp(0x40)),
        "beyond the limit"
    );
    // The accessed bit was set in the table.
    assert_eq!(e.tables[3 * 8 + 5], 0x9b);
}

#[test]
fn segment_loads_in_protected_mode() {
    let mut e = TestEnv::prot32(0, 0x1000);
    gdt(
        &mut e,
        &[
            0,
            0x00cf_9a00_0000_ffff, // 8: code
            0x00cf_9200_0000_ffff, // 10: data
            0x00cf_9000_0000_ffff, // 18: read-only data
            0x00cf_1200_0000_ffff, // 20: not present
            0x00cf_9800_0000_ffff, // 28: execute-only code
            0x0000_8200_0000_0067, // 30: an LDT
        ],
    );
    let mut load = |seg: u8, sel: u64| {
        let mut r = regs(&[(Gpr::Rax, sel)]);
        e.run(&[0x8e, 0xc0 | seg << 3], &mut r)
    };
    let (ds, ss) = (3, 2);
    assert_eq!(load(ds, 0x10), DONE);
    assert_eq!(load(ds, 8), DONE, "readable code");
    assert_eq!(load(ds, 0x18), DONE);
    assert_eq!(load(ds, 0), DONE);
    assert_eq!(load(ds, 0x28), fault(Exception::gp(0x28)));
    assert_eq!(load(ds, 0x30), fault(Exception::gp(0x30)));
    assert_eq!(
        load(ds, 0x20),
        fault(Exception::with_error(vector::NP, 0x20))
    );
    assert_eq!(
        load(ds, 0x14),
        fault(Exception::gp(0x14)),
        "there is no LDT"
    );
    let shadow = Ok(Outcome::Done {
        shadow: Some(Shadow::MovSs),
        trap: false,
    });
    assert_eq!(load(ss, 0x10), shadow);
    assert_eq!(load(ss, 0), fault(GP0));
    assert_eq!(
        load(ss, 0x13),
        fault(Exception::gp(0x10)),
        "its RPL is not the CPL"
    );
    assert_eq!(load(ss, 0x18), fault(Exception::gp(0x18)));
    assert_eq!(load(ss, 8), fault(Exception::gp(8)));
    assert_eq!(load(ss, 0x20), fault(Exception::ss(0x20)));
    assert_eq!(load(1, 0x10), fault(Exception::ud()), "CS");
    // lldt, ltr
    let mut r = regs(&[(Gpr::Rax, 0x30)]);
    let out = e.run(&[0x0f, 0x00, 0xd0], &mut r);
    let Ok(Outcome::System(System::Lldt(s))) = out else {
        panic!("{out:?}")
    };
    assert_eq!((s.selector, s.limit, s.attr.typ()), (0x30, 0x67, 2));
    assert_eq!(
        e.run(&[0x0f, 0x00, 0xd8], &mut r),
        fault(Exception::gp(0x30))
    );
}

#[test]
fn two_processors_load_one_segment() {
    let mut e = TestEnv::prot32(0, 0x1000);
    let tss = 0x0000_8900_0000_0067;
    gdt(&mut e, &[0, 0x00cf_9200_0000_ffff, tss]);
    // Both set the accessed bit; it does not matter who was first.
    e.races = 1;
    let mut r = regs(&[(Gpr::Rax, 8)]);
    assert_eq!(e.run(&[0x8e, 0xd8], &mut r), DONE);
    assert_eq!(e.segs[Seg::Ds as usize].attr.typ(), 3);
    // Only one makes a TSS busy; the other sees that next.
    e.races = 1;
    r.gprs.set(Gpr::Rax, 0x10);
    assert_eq!(e.run(&[0x0f, 0x00, 0xd8], &mut r), Ok(Outcome::Retry));
    assert_eq!(
        e.run(&[0x0f, 0x00, 0xd8], &mut r),
        fault(Exception::gp(0x10))
    );
}

#[test]
fn virtual_8086_mode() {
    let mut e = TestEnv::prot32(0, 0x3_0000);
    e.segs = [real(0x1000); 6];
    let mut r = regs(&[(Gpr::Rax, 0x2345), (Gpr::Rsp, 0x100)]);
    r.rflags |= rflags::VM;
    assert_eq!(e.run(&[0x8e, 0xd8], &mut r), DONE); // mov ds, ax
    let ds = e.segs[Seg::Ds as usize];
    assert_eq!((ds.base, ds.limit, ds.attr.dpl()), (0x2_3450, 0xffff, 3));
    // IOPL-sensitive
    for code in [&[0xfa][..], &[0x9c], &[0x9d], &[0xcd, 0x10], &[0xcf]] {
        assert_eq!(e.run(code, &mut r), fault(GP0), "{code:02x?}");
    }
    assert_eq!(e.run(&[0xf4], &mut r), fault(GP0));
    // No selectors here.
    assert_eq!(e.run(&[0x0f, 0x00, 0xc8], &mut r), fault(Exception::ud()));
    r.rflags |= rflags::IOPL;
    assert_eq!(e.run(&[0x9c], &mut r), DONE);
    assert_eq!(e.run(&[0xfa], &mut r), DONE);
}

#[test]
fn shadows() {
    let sti = Ok(Outcome::Done {
        shadow: Some(Shadow::Sti),
        trap: false,
    });
    let mut e = TestEnv::real(0, 0x10000);
    let mut r = regs(&[(Gpr::Rsp, 0x100)]);
    assert_eq!(e.run(&[0xfb], &mut r), sti);
    assert_eq!(
        e.run(&[0xfb], &mut r),
        DONE,
        "interrupts were enabled already"
    );
    // mov ss, ax and pop ss hold off the trap of TF too
    r.rflags |= rflags::TF;
    let ss = Ok(Outcome::Done {
        shadow: Some(Shadow::MovSs),
        trap: false,
    });
    assert_eq!(e.run(&[0x8e, 0xd0], &mut r), ss);
    assert_eq!(e.run(&[0x17], &mut r), ss);
    assert_eq!(
        e.run(&[0x90], &mut r),
        Ok(Outcome::Done {
            shadow: None,
            trap: true
        })
    );
}

#[test]
fn too_long_and_locked() {
    let mut e = TestEnv::long64(0, 0x1000);
    let mut r = regs(&[(Gpr::Rax, 0x100)]);
    let mut long = vec![0x2e; 15];
    long.push(0x90);
    assert_eq!(e.run(&long, &mut r), fault(GP0));
    assert_eq!(e.run(&[0xf0, 0x8b, 0x00], &mut r), fault(Exception::ud()));
    e.logging = true;
    assert_eq!(e.run(&[0xf0, 0xff, 0x00], &mut r), DONE);
    let kinds: Vec<_> = e.log.iter().map(|l| l.0).collect();
    assert_eq!(kinds, ["read", "cmpxchg"]);
}

#[test]
fn rf_ends_with_the_instruction() {
    let mut e = TestEnv::long64(0, 0x1000);
    let mut r = regs(&[]);
    r.rflags |= rflags::RF;
    assert_eq!(e.run(&[0x90], &mut r), DONE);
    assert_eq!(r.rflags & rflags::RF, 0);
}

// System.

#[test]
fn system_instructions_are_checked_and_handed_on() {
    let ok = |s| Ok(Outcome::System(s));
    let code: &[(&[u8], System, bool)] = &[
        (&[0x0f, 0xa2], System::Cpuid, true),
        (&[0x0f, 0x32], System::Rdmsr, false),
        (&[0x0f, 0x30], System::Wrmsr, false),
        (&[0xf4], System::Hlt, false),
        (&[0x0f, 0x08], System::Invd, false),
        (&[0x0f, 0x09], System::Wbinvd, false),
        (&[0x0f, 0x31], System::Rdtsc, true),
        (&[0x0f, 0x01, 0xf9], System::Rdtscp, true),
        (&[0x0f, 0x01, 0xd0], System::Xgetbv, true),
        (&[0x0f, 0x01, 0xd1], System::Xsetbv, false),
        (&[0x0f, 0x01, 0xf8], System::Swapgs, false),
        (&[0x0f, 0x01, 0x3b], System::Invlpg(0x100), false),
        (
            &[0x0f, 0x01, 0xd9],
            System::Hypercall(Mnemonic::Vmmcall),
            true,
        ),
        (
            &[0x0f, 0x20, 0xd9],
            System::ReadCr {
                cr: 3,
                to: Gpr::Rcx,
            },
            false,
        ),
        (
            &[0x44, 0x0f, 0x22, 0xc3],
            System::WriteCr {
                cr: 8,
                value: 0x100,
            },
            false,
        ),
        (
            &[0x0f, 0x23, 0xfb],
            System::WriteDr {
                dr: 7,
                value: 0x100,
            },
            false,
        ),
        (
            &[0x0f, 0x21, 0xe1],
            System::ReadDr {
                dr: 6,
                to: Gpr::Rcx,
            },
            false,
        ),
    ];
    for &(code, want, user_too) in code {
        let mut e = TestEnv::long64(0, 0x1000);
        let mut r = regs(&[(Gpr::Rbx, 0x100)]);
        let before = r;
        assert_eq!(e.run(code, &mut r), ok(want), "{code:02x?}");
        assert_eq!(r, before);
        let mut e = TestEnv::long64(0, 0x1000).user();
        let want = if user_too { ok(want) } else { fault(GP0) };
        assert_eq!(e.run(code, &mut r), want, "{code:02x?} at CPL 3");
    }
    let mut e = TestEnv::long64(0, 0x1000);
    let mut r = regs(&[]);
    // clts; lmsw cannot clear PE
    e.cr0 |= cr0::TS;
    let value = e.cr0 & !cr0::TS;
    assert_eq!(
        e.run(&[0x0f, 0x06], &mut r),
        ok(System::WriteCr { cr: 0, value })
    );
    assert_eq!(
        e.run(&[0x0f, 0x01, 0xf0], &mut r),
        ok(System::WriteCr { cr: 0, value })
    );
    // DR4 is DR6, unless CR4.DE; RDTSC may be forbidden to users; UMIP
    e.cr4 |= cr4::DE | cr4::TSD | cr4::UMIP;
    assert_eq!(e.run(&[0x0f, 0x21, 0xe1], &mut r), fault(Exception::ud()));
    assert_eq!(e.run(&[0x0f, 0x31], &mut r), ok(System::Rdtsc));
    let mut e = e.user();
    assert_eq!(e.run(&[0x0f, 0x31], &mut r), fault(GP0));
    assert_eq!(e.run(&[0x0f, 0x01, 0xe0], &mut r), fault(GP0));
}

#[test]
fn descriptor_table_registers() {
    let mut e = TestEnv::prot32(0, 0x1000);
    e.gdtr = DescTable {
        base: 0x1234_5678,
        limit: 0x7f,
    };
    let mut r = regs(&[(Gpr::Rbx, 0x100)]);
    assert_eq!(e.run(&[0x0f, 0x01, 0x03], &mut r), DONE);
    assert_eq!(e.peek::<8>(0x100), [0x7f, 0, 0x78, 0x56, 0x34, 0x12, 0, 0]);
    let t = |base| {
        Ok(Outcome::System(System::Lgdt(DescTable {
            base,
            limit: 0x7f,
        })))
    };
    assert_eq!(e.run(&[0x0f, 0x01, 0x13], &mut r), t(0x1234_5678));
    assert_eq!(e.run(&[0x66, 0x0f, 0x01, 0x13], &mut r), t(0x34_5678));
    // Ten bytes in 64-bit mode.
    let mut e = TestEnv::long64(0, 0x1000);
    e.gdtr = DescTable {
        base: 0xffff_8800_0000_1000,
        limit: 0x7f,
    };
    assert_eq!(e.run(&[0x0f, 0x01, 0x03], &mut r), DONE);
    assert_eq!(e.run(&[0x0f, 0x01, 0x13], &mut r), t(0xffff_8800_0000_1000));
    e.poke(0x108, &[0, 0x80]);
    assert_eq!(
        e.run(&[0x0f, 0x01, 0x13], &mut r),
        fault(GP0),
        "not canonical"
    );
}

// Vectors.

#[test]
fn vector_moves_to_a_device() {
    let mut e = TestEnv::long64(0, 0x1000);
    e.mmio = 0x1000..0x2000;
    e.xmm[1] = std::array::from_fn(|i| i as u8);
    let mut r = regs(&[(Gpr::Rbx, 0x1000)]);
    assert_eq!(e.run(&[0x0f, 0x29, 0x0b], &mut r), DONE); // movaps [rbx], xmm1
    assert_eq!(e.posted[0].1, e.xmm[1][..16]);
    assert_eq!(e.run(&[0xc5, 0xfd, 0x7f, 0x0b], &mut r), DONE); // vmovdqa [rbx], ymm1
    assert_eq!(e.posted[1].1, e.xmm[1]);
    // vmovdqu ymm2, [rbx]
    assert_eq!(
        e.run_with_user(&[0xc5, 0xfe, 0x6f, 0x13], &mut r, 0xee),
        DONE
    );
    assert_eq!(e.xmm[2], [0xee; 32]);
    // SSE keeps the upper half, VEX clears it
    assert_eq!(e.run_with_user(&[0x0f, 0x10, 0x0b], &mut r, 0x33), DONE);
    assert_eq!((&e.xmm[1][..16], e.xmm[1][16]), (&[0x33; 16][..], 16));
    assert_eq!(
        e.run_with_user(&[0xc5, 0xf8, 0x10, 0x0b], &mut r, 0x44),
        DONE
    );
    assert_eq!(e.xmm[1][16..], [0; 16]);
    // Alignment, and who may use them.
    r.gprs.set(Gpr::Rbx, 0x1008);
    assert_eq!(e.run(&[0x0f, 0x29, 0x0b], &mut r), fault(GP0));
    assert_eq!(e.run(&[0x0f, 0x11, 0x0b], &mut r), DONE);
    e.cr0 |= cr0::TS;
    assert_eq!(e.run(&[0x0f, 0x11, 0x0b], &mut r), bare(vector::NM));
    e.cr0 ^= cr0::TS | cr0::EM;
    assert_eq!(e.run(&[0x0f, 0x11, 0x0b], &mut r), bare(vector::UD));
    e.missing.push(Feature::Avx);
    assert_eq!(e.run(&[0xc5, 0xf8, 0x11, 0x0b], &mut r), bare(vector::UD));
}

#[test]
fn missing_features_change_meanings() {
    let mut e = TestEnv::long64(0, 0x1000);
    let mut r = regs(&[(Gpr::Rbx, 0x10)]);
    assert_eq!(e.run(&[0xf3, 0x0f, 0xbd, 0xc3], &mut r), DONE); // lzcnt eax, ebx
    assert_eq!(r.gprs.get(Gpr::Rax), 27);
    e.missing = vec![Feature::Lzcnt, Feature::Movbe];
    assert_eq!(e.run(&[0xf3, 0x0f, 0xbd, 0xc3], &mut r), DONE); // now bsr
    assert_eq!(r.gprs.get(Gpr::Rax), 4);
    assert_eq!(e.run(&[0x0f, 0x38, 0xf0, 0x03], &mut r), bare(vector::UD));
}

#[test]
fn vendors_differ_on_pushed_selectors() {
    for (vendor, upper) in [(Vendor::Amd, 0), (Vendor::Intel, 0xee)] {
        let mut e = TestEnv::prot32(0, 0x1000);
        e.vendor = vendor;
        e.ram.fill(0xee);
        let mut r = regs(&[(Gpr::Rsp, 0x800)]);
        assert_eq!(e.run(&[0x1e], &mut r), DONE); // push ds
        assert_eq!(e.peek::<4>(0x7fc), [0x10, 0, upper, upper]);
    }
}
