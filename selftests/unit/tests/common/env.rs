// SPDX-License-Identifier: GPL-2.0

//! A vCPU for tests: a window of memory, a device that user space answers for, ports.

use rkvm_unit::arch::x86::model::decode::{decode, DecodeError, Insn, Vendor};
use rkvm_unit::arch::x86::model::emulate::{
    emulate, mode, Access, Env, Feature, Kind, Outcome, Regs, Stop, Tasks,
};
use rkvm_unit::arch::x86::model::regs::{
    cr0, cr4, efer, pferr, DescTable, Exception, Seg, SegAttr, Segment,
};

/// Present code or data, DPL 0, of type `typ`.
pub fn attr(typ: u8, dpl: u8, db: bool, long: bool) -> SegAttr {
    SegAttr::new(typ, true, dpl, true, false, long, db, true, false)
}

/// A segment that starts at 0 and has no end.
pub fn flat(selector: u16, attr: SegAttr) -> Segment {
    Segment {
        selector,
        attr,
        limit: u32::MAX,
        base: 0,
    }
}

/// A segment as real mode has it.
pub fn real(selector: u16) -> Segment {
    let attr = SegAttr::new(3, true, 0, true, false, false, false, false, false);
    Segment {
        selector,
        attr,
        limit: 0xffff,
        base: u64::from(selector) << 4,
    }
}

pub struct TestEnv {
    pub cr0: u64,
    /// A task switch may not load one with any of `cr3_reserved`.
    pub cr3: u64,
    pub cr3_reserved: u64,
    /// How often a task was switched to.
    pub switched: u32,
    pub cr4: u64,
    pub efer: u64,
    pub cpl: u8,
    pub vendor: Vendor,
    pub missing: Vec<Feature>,
    pub segs: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescTable,
    pub idtr: DescTable,
    /// Linear address of the first byte of `ram`.
    pub base: u64,
    pub ram: Vec<u8>,
    /// Descriptor tables, readable and writable by system accesses alone.
    pub tables_at: u64,
    pub tables: Vec<u8>,
    /// Bytes from here to the end of `ram` cannot be written.
    pub read_only: u64,
    /// The device: addresses, and what user space answered so far for the current instruction.
    pub mmio: std::ops::Range<u64>,
    pub answers: Vec<(u64, Vec<u8>)>,
    /// What user space was asked: address and length.
    pub asked: Vec<(u64, usize)>,
    /// Posted writes.
    pub posted: Vec<(u64, Vec<u8>)>,
    /// Port reads that user space is to answer: None asks it first.
    pub port_in: Option<std::collections::VecDeque<u32>>,
    pub port_asked: Vec<(u16, u8, u32)>,
    pub port_out: Vec<(u16, u8, u32)>,
    pub xmm: [[u8; 32]; 16],
    pub mxcsr: u32,
    pub yield_after: u64,
    pub iterations: u64,
    /// Accesses, for tests of their order: what, address, length, access.
    pub log: Vec<(&'static str, u64, usize, Access)>,
    pub logging: bool,
    /// How often cmpxchg is to fail.
    pub races: u32,
    /// The guest's tables change under every write.
    pub changing: bool,
    /// The registers of the last commit.
    pub committed: Option<Regs>,
}

impl TestEnv {
    fn new(cr0: u64, efer: u64, segs: [Segment; 6], base: u64, len: usize) -> TestEnv {
        TestEnv {
            cr0,
            cr3: 0,
            cr3_reserved: 0,
            switched: 0,
            cr4: cr4::OSFXSR | cr4::OSXSAVE | cr4::FSGSBASE,
            efer,
            cpl: 0,
            vendor: Vendor::Amd,
            missing: vec![],
            segs,
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescTable::default(),
            idtr: DescTable {
                base: 0,
                limit: 0x3ff,
            },
            base,
            ram: vec![0; len],
            tables_at: 0,
            tables: vec![],
            read_only: u64::MAX,
            mmio: 0..0,
            answers: vec![],
            asked: vec![],
            posted: vec![],
            port_in: None,
            port_asked: vec![],
            port_out: vec![],
            xmm: [[0; 32]; 16],
            mxcsr: 0x1f80,
            yield_after: u64::MAX,
            iterations: 0,
            committed: None,
            changing: false,
            log: vec![],
            logging: false,
            races: 0,
        }
    }

    pub fn real(base: u64, len: usize) -> TestEnv {
        TestEnv::new(0, 0, [real(0); 6], base, len)
    }

    pub fn prot32(base: u64, len: usize) -> TestEnv {
        let mut segs = [flat(0x10, attr(3, 0, true, false)); 6];
        segs[Seg::Cs as usize] = flat(8, attr(11, 0, true, false));
        TestEnv::new(cr0::PE | cr0::PG, 0, segs, base, len)
    }

    pub fn prot16(base: u64, len: usize) -> TestEnv {
        let mut segs = [flat(0x10, attr(3, 0, false, false)); 6];
        segs[Seg::Cs as usize] = flat(8, attr(11, 0, false, false));
        TestEnv::new(cr0::PE | cr0::PG, 0, segs, base, len)
    }

    pub fn long64(base: u64, len: usize) -> TestEnv {
        let mut segs = [flat(0x10, attr(3, 0, true, false)); 6];
        segs[Seg::Cs as usize] = flat(8, attr(11, 0, false, true));
        TestEnv::new(cr0::PE | cr0::PG, efer::LME | efer::LMA, segs, base, len)
    }

    /// User code: CPL 3, with segments to match.
    pub fn user(mut self) -> TestEnv {
        self.cpl = 3;
        for s in &mut self.segs {
            s.attr = SegAttr(s.attr.0 | 3 << 5);
            s.selector |= 3;
        }
        self
    }

    pub fn poke(&mut self, la: u64, bytes: &[u8]) {
        let at = (la - self.base) as usize;
        self.ram[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn peek<const N: usize>(&self, la: u64) -> [u8; N] {
        let at = (la - self.base) as usize;
        self.ram[at..at + N].try_into().unwrap()
    }

    pub fn decode(&self, code: &[u8], regs: &Regs) -> Result<Insn, DecodeError> {
        decode(code, mode(self, regs.rflags))
    }

    /// Decodes and runs one instruction.
    pub fn run(&mut self, code: &[u8], regs: &mut Regs) -> Result<Outcome, Stop> {
        match self.decode(code, regs) {
            Ok(insn) => {
                let mut own = *regs;
                let outcome = emulate(self, &insn, &mut own);
                if let Some(r) = self.committed.take() {
                    *regs = r;
                }
                outcome
            }
            Err(DecodeError::Invalid) => Err(Stop::Fault(Exception::ud())),
            Err(DecodeError::TooLong) => Err(Stop::Fault(Exception::gp(0))),
            Err(e) => panic!("{code:02x?}: {e:?}"),
        }
    }

    /// The same, with user space at hand: a read of the device gives `answer` bytes.
    pub fn run_with_user(
        &mut self,
        code: &[u8],
        regs: &mut Regs,
        answer: u8,
    ) -> Result<Outcome, Stop> {
        loop {
            match self.run(code, regs) {
                Err(Stop::NeedUser) => {
                    let &(la, len) = self.asked.last().expect("asked for something");
                    self.answers.push((la, vec![answer; len]));
                }
                r => return r,
            }
        }
    }

    fn fault(&self, la: u64, access: Access) -> Stop {
        let mut e = if access.write { pferr::W } else { 0 };
        if access.user {
            e |= pferr::U;
        }
        Stop::Fault(Exception::pf(e, la))
    }

    /// Where a system access hits the tables.
    fn table(&mut self, la: u64, len: usize, access: Access) -> Option<&mut [u8]> {
        let at = usize::try_from(la.checked_sub(self.tables_at)?).ok()?;
        if access.kind != Kind::System {
            return None;
        }
        self.tables.get_mut(at..at.checked_add(len)?)
    }

    fn check(&self, la: u64, len: usize, access: Access) -> Result<(), Stop> {
        for i in 0..len as u64 {
            let a = la.wrapping_add(i);
            if self.mmio.contains(&a) {
                continue;
            }
            let inside = a >= self.base && a - self.base < self.ram.len() as u64;
            if !inside || (access.write && a >= self.read_only) {
                return Err(self.fault(a, access));
            }
        }
        Ok(())
    }

    fn note(&mut self, what: &'static str, la: u64, len: usize, access: Access) {
        assert!(
            len > 0 && len <= 32 || what == "check",
            "{what} of {len} bytes"
        );
        if access.kind == Kind::System {
            assert!(!access.user);
        }
        if self.logging {
            self.log.push((what, la, len, access));
        }
    }
}

impl Env for TestEnv {
    fn cr(&self, n: u8) -> u64 {
        match n {
            0 => self.cr0,
            3 => self.cr3,
            4 => self.cr4,
            _ => 0,
        }
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn vendor(&self) -> Vendor {
        self.vendor
    }
    fn has(&self, feature: Feature) -> bool {
        !self.missing.contains(&feature)
    }
    fn segment(&self, s: Seg) -> Segment {
        self.segs[s as usize]
    }
    fn set_segment(&mut self, s: Seg, v: &Segment) {
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
        self.note("read", la, buf.len(), access);
        if let Some(t) = self.table(la, buf.len(), access) {
            buf.copy_from_slice(t);
            return Ok(());
        }
        self.check(la, buf.len(), access)?;
        if self.mmio.contains(&la) {
            assert!(
                self.mmio.contains(&(la + buf.len() as u64 - 1)),
                "split is not modelled"
            );
            match self
                .answers
                .iter()
                .find(|(a, b)| *a == la && b.len() == buf.len())
            {
                Some((_, b)) => buf.copy_from_slice(b),
                None => {
                    self.asked.push((la, buf.len()));
                    return Err(Stop::NeedUser);
                }
            }
            return Ok(());
        }
        let at = (la - self.base) as usize;
        buf.copy_from_slice(&self.ram[at..at + buf.len()]);
        Ok(())
    }

    fn write(&mut self, la: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        self.note("write", la, data.len(), access);
        assert!(access.write);
        if self.changing {
            return Err(Stop::Again);
        }
        self.check(la, data.len(), access)?;
        if self.mmio.contains(&la) {
            self.posted.push((la, data.to_vec()));
            return Ok(());
        }
        let at = (la - self.base) as usize;
        self.ram[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn check_write(&mut self, la: u64, len: usize, access: Access) -> Result<(), Stop> {
        self.note("check", la, len, access);
        assert!(access.write);
        self.check(la, len, access)
    }

    fn cmpxchg(&mut self, la: u64, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        self.note("cmpxchg", la, new.len(), access);
        let lost = self.races > 0;
        self.races = self.races.saturating_sub(1);
        if let Some(t) = self.table(la, new.len(), access) {
            // Who loses finds that another has written the same.
            assert_eq!(t, old);
            t.copy_from_slice(new);
            return Ok(!lost);
        }
        if lost {
            return Ok(false);
        }
        self.check(la, new.len(), access)?;
        if self.mmio.contains(&la) {
            self.posted.push((la, new.to_vec()));
            return Ok(true);
        }
        let at = (la - self.base) as usize;
        if self.ram[at..at + old.len()] != *old {
            return Ok(false);
        }
        self.ram[at..at + new.len()].copy_from_slice(new);
        Ok(true)
    }

    fn pio_in(&mut self, port: u16, size: u8, ahead: u32) -> Result<u32, Stop> {
        match self.port_in.as_mut().and_then(|q| q.pop_front()) {
            Some(v) => Ok(v),
            None => {
                self.port_asked.push((port, size, ahead));
                Err(Stop::NeedUser)
            }
        }
    }

    fn pio_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        self.port_out.push((port, size, value));
        Ok(())
    }

    fn vec(&mut self, n: u8) -> Result<[u8; 32], Stop> {
        Ok(self.xmm[usize::from(n)])
    }
    fn set_vec(&mut self, n: u8, value: &[u8; 32], _clear: bool) {
        self.xmm[usize::from(n)] = *value;
    }
    fn mxcsr(&self) -> u32 {
        self.mxcsr
    }
    fn set_mxcsr(&mut self, value: u32) {
        self.mxcsr = value;
    }

    fn commit(&mut self, regs: &Regs) {
        self.committed = Some(*regs);
        self.answers.clear();
        self.iterations += 1;
    }
    fn should_yield(&self) -> bool {
        self.iterations >= self.yield_after
    }
}

impl Tasks for TestEnv {
    fn set_tr(&mut self, v: &Segment) {
        self.tr = *v;
    }
    fn set_ldtr(&mut self, v: &Segment) {
        self.ldtr = *v;
    }
    fn set_cr3(&mut self, v: u64) -> bool {
        let valid = v & self.cr3_reserved == 0;
        if valid {
            self.cr3 = v;
        }
        valid
    }
    fn task_switched(&mut self) {
        self.cr0 |= cr0::TS;
        self.switched += 1;
    }
}
