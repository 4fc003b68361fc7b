// SPDX-License-Identifier: GPL-2.0

//! The emulator against a vCPU that the fuzzer makes up, in any state: it must not panic, must
//! leave no trace of an instruction that does not complete, and must do the same when it is run
//! again after user space answered. The same for task switches, but that the old TSS may have been written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rkvm_unit::arch::x86::model::decode::{decode, DecodeError, Mnemonic, Vendor};
use rkvm_unit::arch::x86::model::emulate::{
    emulate, mode, switch_task, Access, Env, Feature, Kind, Outcome, Regs, Stop, TaskCause,
    TaskSwitch, Tasks,
};
use rkvm_unit::arch::x86::model::regs::{
    cr0, pferr, rflags, DescTable, Exception, Gpr, Gprs, Seg, SegAttr, Segment,
};

/// Takes numbers from the input; zeros when it has ended.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&b, rest)) => {
                self.0 = rest;
                b
            }
            None => 0,
        }
    }
    fn u64(&mut self) -> u64 {
        // Few bytes of input make numbers at the ends of their ranges.
        let b = self.u8();
        let n = u64::from(self.u8());
        match b >> 5 {
            0 => n,
            1 => n.wrapping_neg(),
            2 => 1u64.rotate_left(u32::from(b)).wrapping_add(n),
            3 => 0xffff_ffff - n,
            4 => 0xffff - n,
            5 => 0x0000_8000_0000_0000 - n,
            6 => (n << 12) | (u64::from(b) << 4),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.u8())),
        }
    }
}

#[derive(Default)]
struct Fuzzed {
    cr0: u64,
    cr4: u64,
    efer: u64,
    cpl: u8,
    intel: bool,
    missing: u16,
    segs: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdtr: DescTable,
    idtr: DescTable,
    /// Every page whose number has these low bits is absent, read-only, or a device.
    absent: u8,
    read_only: u8,
    device: u8,
    salt: u64,
    /// Device reads that user space answered since the last commit.
    answered: Vec<(u64, usize)>,
    /// Set by a write, cleared by a commit.
    dirty: bool,
    /// The registers of the last commit.
    committed: Option<Regs>,
    written: Vec<(u64, Vec<u8>)>,
    vec: [[u8; 32]; 16],
    mxcsr: u32,
    lose: bool,
    port_answered: bool,
    /// Task switches that were begun.
    switched: u32,
}

impl Fuzzed {
    fn page(&self, la: u64) -> u8 {
        (la >> 12) as u8 & 7
    }

    fn check(&self, la: u64, len: usize, access: Access) -> Result<(), Stop> {
        assert!(len > 0);
        assert!(la.checked_add(len as u64 - 1).is_some(), "the range wraps");
        if self.efer & 1 << 10 == 0 {
            assert!(la + (len as u64) <= 1 << 32, "a 32-bit address");
        }
        assert!(access.kind != Kind::System || !access.user);
        for i in 0..len as u64 {
            let page = self.page(la + i);
            let absent = page == self.absent;
            if absent || (access.write && page == self.read_only) {
                let mut e = if access.write { pferr::W } else { 0 };
                e |= if access.user { pferr::U } else { 0 };
                e |= if absent { 0 } else { pferr::P };
                return Err(Stop::Fault(Exception::pf(e, la + i)));
            }
        }
        Ok(())
    }

    fn byte(&self, la: u64) -> u8 {
        for (at, data) in self.written.iter().rev() {
            let i = la.wrapping_sub(*at);
            if i < data.len() as u64 {
                return data[i as usize];
            }
        }
        (la.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.salt).rotate_left(17) as u8
    }
}

impl Env for Fuzzed {
    fn cr(&self, n: u8) -> u64 {
        match n {
            0 => self.cr0,
            4 => self.cr4,
            2 | 3 | 8 => 0,
            n => panic!("CR{n}"),
        }
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn vendor(&self) -> Vendor {
        if self.intel {
            Vendor::Intel
        } else {
            Vendor::Amd
        }
    }
    fn has(&self, f: Feature) -> bool {
        self.missing >> (f as u16) & 1 == 0
    }
    fn segment(&self, s: Seg) -> Segment {
        self.segs[s as usize]
    }
    fn set_segment(&mut self, s: Seg, v: &Segment) {
        self.dirty = true;
        self.segs[s as usize] = *v;
    }
    fn ldtr(&self) -> Segment {
        self.ldtr
    }
    fn tr(&self) -> Segment {
        self.tr
    }
    fn gdtr(&self) -> DescTable {
        self.gdtr
    }
    fn idtr(&self) -> DescTable {
        self.idtr
    }
    fn read(&mut self, la: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        self.check(la, buf.len(), access)?;
        if self.page(la) == self.device && !self.answered.contains(&(la, buf.len())) {
            self.answered.push((la, buf.len()));
            return Err(Stop::NeedUser);
        }
        for (i, b) in buf.iter_mut().enumerate() {
            *b = self.byte(la + i as u64);
        }
        Ok(())
    }
    fn write(&mut self, la: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        assert!(access.write);
        self.check(la, data.len(), access)?;
        self.dirty = true;
        self.written.push((la, data.to_vec()));
        Ok(())
    }
    fn check_write(&mut self, la: u64, len: usize, access: Access) -> Result<(), Stop> {
        assert!(access.write);
        self.check(la, len, access)
    }
    fn cmpxchg(&mut self, la: u64, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        assert!(access.write && old.len() == new.len() && old.len() <= 16);
        self.check(la, new.len(), access)?;
        if self.lose {
            return Ok(false);
        }
        // The accessed and busy bits of descriptors may stay behind.
        self.dirty |= access.kind != Kind::System;
        self.written.push((la, new.to_vec()));
        Ok(true)
    }
    fn pio_in(&mut self, port: u16, size: u8, ahead: u32) -> Result<u32, Stop> {
        assert!(matches!(size, 1 | 2 | 4) && (1..=4096).contains(&ahead));
        if self.port_answered {
            self.port_answered = false;
            Ok(u32::from(port).wrapping_mul(0x0101_0101))
        } else {
            self.port_answered = true;
            Err(Stop::NeedUser)
        }
    }
    fn pio_out(&mut self, _port: u16, size: u8, value: u32) -> Result<(), Stop> {
        assert!(matches!(size, 1 | 2 | 4));
        assert!(size == 4 || value < 1 << (8 * size));
        self.dirty = true;
        Ok(())
    }
    fn vec(&mut self, n: u8) -> Result<[u8; 32], Stop> {
        Ok(self.vec[usize::from(n)])
    }
    fn set_vec(&mut self, n: u8, value: &[u8; 32], _clear: bool) {
        self.dirty = true;
        self.vec[usize::from(n)] = *value;
    }
    fn mxcsr(&self) -> u32 {
        self.mxcsr
    }
    fn set_mxcsr(&mut self, value: u32) {
        self.dirty = true;
        self.mxcsr = value;
    }
    fn commit(&mut self, regs: &Regs) {
        self.committed = Some(*regs);
        self.answered.clear();
        self.dirty = false;
    }
    fn should_yield(&self) -> bool {
        self.written.len() > 64
    }
}

impl Tasks for Fuzzed {
    fn set_tr(&mut self, v: &Segment) {
        self.dirty = true;
        self.tr = *v;
    }
    fn set_ldtr(&mut self, v: &Segment) {
        self.dirty = true;
        self.ldtr = *v;
    }
    fn set_cr3(&mut self, v: u64) -> bool {
        self.dirty = true;
        v & 8 == 0
    }
    fn task_switched(&mut self) {
        self.dirty = true;
        self.switched += 1;
    }
}

/// A task switch: to the end, or not at all.
fn switch(mut e: Fuzzed, r: &Regs, code: &[u8; 15]) {
    let [lo, hi, cause, has_error, ..] = *code;
    let task = TaskSwitch {
        selector: u16::from_le_bytes([lo, hi]),
        cause: match cause % 5 {
            0 => TaskCause::Call,
            1 => TaskCause::Jump,
            2 => TaskCause::Iret,
            3 => TaskCause::SoftEvent,
            _ => TaskCause::Event,
        },
        next: r.rip,
        error: (has_error & 1 != 0).then_some(u32::from(has_error)),
    };
    let (segs, tr, ldtr) = (e.segs, e.tr, e.ldtr);
    match switch_task(&mut e, &task, &mut r.clone()) {
        Ok(arrival) => {
            assert!(!e.dirty && e.switched == 1);
            assert!(e.cr0 & cr0::PE != 0 && e.efer & 1 << 10 == 0);
            let now = e.committed.expect("a commit");
            assert!(now.rip >> 32 == 0 && now.rflags & 2 != 0);
            assert!(arrival.fault.is_none() || !arrival.trap);
            assert_eq!((e.tr.attr.typ() & 7, e.tr.attr.unusable()), (3, false));
        }
        // There is no way back from some.
        Err(Stop::Unhandleable) => {}
        Err(_) => {
            assert_eq!((e.segs, e.tr, e.ldtr), (segs, tr, ldtr));
            assert!(e.switched == 0 && e.committed.is_none());
        }
    }
}

fn segment(i: &mut Input<'_>) -> Segment {
    let kind = i.u8();
    let attr = SegAttr(u32::from(kind) | u32::from(i.u8() & 0xf1) << 8 | 1 << 7);
    Segment {
        selector: i.u64() as u16,
        attr: if kind & 0x80 != 0 {
            attr
        } else {
            SegAttr(0xc093)
        },
        limit: if kind & 0x40 != 0 {
            u32::MAX
        } else {
            i.u64() as u32
        },
        base: i.u64(),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut i = Input(data);
    let how = i.u8();
    let code: [u8; 15] = std::array::from_fn(|_| i.u8());
    let mut e = Fuzzed {
        cpl: i.u8() & 3,
        intel: how & 1 != 0,
        missing: u16::from(i.u8()),
        salt: i.u64(),
        absent: i.u8(),
        read_only: i.u8(),
        device: i.u8(),
        cr4: i.u64(),
        lose: i.u8() == 1,
        mxcsr: 0x1f80,
        ..Fuzzed::default()
    };
    let long = how & 6 == 6;
    e.cr0 = match how & 6 {
        0 => 0,
        _ => cr0::PE | u64::from(long) << 31,
    } | i.u64() & (cr0::TS | cr0::EM | cr0::AM | cr0::MP);
    e.efer = if long { 1 << 8 | 1 << 10 } else { 0 };
    for n in 0..6 {
        e.segs[n] = segment(&mut i);
        if !long {
            e.segs[n].base &= 0xffff_ffff;
        }
    }
    e.segs[Seg::Cs as usize].attr = match how >> 3 & 3 {
        0 => SegAttr(0x009b),
        1 => SegAttr(0xc09b),
        _ => SegAttr(0xa09b),
    };
    e.ldtr = segment(&mut i);
    e.tr = segment(&mut i);
    e.gdtr = DescTable {
        base: i.u64(),
        limit: i.u64() as u16,
    };
    e.idtr = DescTable {
        base: i.u64(),
        limit: i.u64() as u16,
    };
    if !long {
        for b in [
            &mut e.gdtr.base,
            &mut e.idtr.base,
            &mut e.ldtr.base,
            &mut e.tr.base,
        ] {
            *b &= 0xffff_ffff;
        }
    }
    let mut r = Regs {
        gprs: Gprs::default(),
        rip: i.u64(),
        rflags: i.u64() & 0x3f_7fd5 | 2,
    };
    if e.cr0 & cr0::PE == 0 || long {
        r.rflags &= !rflags::VM;
    }
    for g in Gpr::ALL {
        r.gprs.set(g, i.u64());
    }
    if how & 0xe0 == 0xe0 {
        return switch(e, &r, &code);
    }
    let insn = match decode(&code, mode(&e, r.rflags)) {
        Ok(insn) => insn,
        Err(e) => {
            assert_ne!(e, DecodeError::NeedMore);
            return;
        }
    };
    let string = matches!(
        insn.mnemonic,
        Mnemonic::Movs
            | Mnemonic::Cmps
            | Mnemonic::Scas
            | Mnemonic::Lods
            | Mnemonic::Stos
            | Mnemonic::Ins
            | Mnemonic::Outs
    );
    for _ in 0..200 {
        let before = r;
        e.dirty = false;
        let mut own = r;
        let result = emulate(&mut e, &insn, &mut own);
        r = e.committed.take().unwrap_or(r);
        match result {
            Ok(Outcome::Done { .. }) => {
                assert!(!e.dirty, "a change after the commit");
                assert_eq!(r.rflags & rflags::RF, 0);
                return;
            }
            Ok(Outcome::Partial { .. }) => {
                assert!(string && r.rip == before.rip);
                return;
            }
            Ok(Outcome::Retry) | Ok(Outcome::System(_)) => {
                assert!(!e.dirty && r == before);
                return;
            }
            Err(stop) => {
                assert!(!e.dirty, "{insn:?}: {stop:?} after a write");
                assert_eq!(r.rip, before.rip);
                if !string {
                    assert_eq!(r, before);
                }
                if let Stop::Fault(x) = stop {
                    assert!(x.vector < 32);
                    assert!(e.cr0 & cr0::PE != 0 || x.error.is_none());
                }
                // A repeated string instruction asks for each iteration.
                if stop != Stop::NeedUser || r != before {
                    return;
                }
            }
        }
    }
    panic!("{insn:?} asks user space without end");
});
