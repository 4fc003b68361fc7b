// SPDX-License-Identifier: GPL-2.0

//! Memory, LPIs and an ITS to test with.

use rkvm_unit::arch::arm64::model::its::*;
use rkvm_unit::host::grow_vec::NoMemory;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: usize = 0x100_0000;
pub const QUEUE: u64 = RAM + 0x10_0000;
pub const DEVICES: u64 = RAM + 0x20_0000;
pub const COLLECTIONS: u64 = RAM + 0x30_0000;
pub const CONFIG: u64 = RAM + 0x40_0000;
pub const PENDING: u64 = RAM + 0x50_0000;
pub const ITTS: u64 = RAM + 0x80_0000;
/// Not RAM
pub const NOWHERE: u64 = 0x10_0000;

pub const BASE: u64 = 0x808_0000;
pub const CTLR: u64 = 0;
pub const IIDR: u64 = 4;
pub const TYPER: u64 = 8;
pub const CBASER: u64 = 0x80;
pub const CWRITER: u64 = 0x88;
pub const CREADR: u64 = 0x90;
pub const BASER0: u64 = 0x100;
pub const BASER1: u64 = 0x108;
pub const VALID: u64 = 1 << 63;
pub const INDIRECT: u64 = 1 << 62;

pub const VCPUS: u32 = 3;

/// GICR_TYPER.Processor_Number: not the index, so that they are not taken for each other.
pub fn processor(vcpu: u32) -> u64 {
    u64::from(vcpu) * 3 + 7
}

pub struct Ram {
    bytes: RefCell<Vec<u8>>,
    pub holes: RefCell<Vec<Range<u64>>>,
    pub read_only: RefCell<Vec<Range<u64>>>,
    pub accesses: Cell<u64>,
}

fn overlaps(ranges: &RefCell<Vec<Range<u64>>>, gpa: u64, len: usize) -> bool {
    let end = gpa + len as u64;
    ranges.borrow().iter().any(|r| gpa < r.end && r.start < end)
}

impl Ram {
    pub fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; RAM_SIZE]),
            holes: RefCell::default(),
            read_only: RefCell::default(),
            accesses: Cell::new(0),
        }
    }
    fn at(&self, gpa: u64, len: usize) -> Result<Range<usize>, Fault> {
        self.accesses.set(self.accesses.get() + 1);
        let start = usize::try_from(gpa.checked_sub(RAM).ok_or(Fault)?).unwrap();
        let end = start.checked_add(len).filter(|e| *e <= RAM_SIZE);
        if overlaps(&self.holes, gpa, len) {
            return Err(Fault);
        }
        Ok(start..end.ok_or(Fault)?)
    }
    pub fn u64(&self, gpa: u64) -> u64 {
        let mut b = [0; 8];
        self.read(gpa, &mut b).unwrap();
        u64::from_le_bytes(b)
    }
    pub fn set_u64(&self, gpa: u64, v: u64) {
        self.write(gpa, &v.to_le_bytes()).unwrap();
    }
    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        let r = self.at(gpa, len).unwrap();
        self.bytes.borrow_mut()[r].fill(byte);
    }
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }
}

impl Memory for Ram {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let r = self.at(gpa, buf.len())?;
        buf.copy_from_slice(&self.bytes.borrow()[r]);
        Ok(())
    }
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault> {
        let r = self.at(gpa, data.len())?;
        if overlaps(&self.read_only, gpa, data.len()) {
            return Err(Fault);
        }
        self.bytes.borrow_mut()[r].copy_from_slice(data);
        Ok(())
    }
    fn writable(&self, gpa: u64) -> bool {
        self.at(gpa, 1).is_ok() && !overlaps(&self.read_only, gpa, 1)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub target: Option<u32>,
    pub event: (u32, u32),
    pub pending: bool,
    pub config: Option<(u8, bool)>,
}

/// LPIs that insist on being used as their trait says.
#[derive(Default)]
pub struct Vcpus {
    pub lpis: BTreeMap<u32, State>,
    /// Mapped by another ITS
    pub others: BTreeSet<u32>,
    pub disabled: BTreeSet<u32>,
    pub propbaser: u64,
    pub refused: Vec<Refused>,
    pub invalidated: Vec<u32>,
    pub touched: u64,
    /// The operation after so many more fails, once.
    pub fail_in: Option<u32>,
}

impl Vcpus {
    pub fn new() -> Self {
        Self {
            propbaser: CONFIG | 15,
            ..Self::default()
        }
    }
    fn step(&mut self) -> Result<(), NoMemory> {
        self.touched += 1;
        match self.fail_in {
            Some(0) => {
                self.fail_in = None;
                Err(NoMemory)
            }
            Some(n) => {
                self.fail_in = Some(n - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
    fn lpi(&mut self, intid: u32) -> &mut State {
        self.lpis.get_mut(&intid).expect("a mapped LPI")
    }
}

impl Lpis for Vcpus {
    fn vcpu(&self, processor: u32) -> Option<u32> {
        (0..VCPUS).find(|v| super::machine::processor(*v) == u64::from(processor))
    }
    fn config_table(&self) -> ConfigTable {
        ConfigTable::new(self.propbaser)
    }
    fn pending_table(&self, vcpu: u32) -> Option<PendingTable> {
        assert!(vcpu < VCPUS);
        let base = PENDING + u64::from(vcpu) * 0x1_0000;
        (!self.disabled.contains(&vcpu)).then(|| PendingTable::new(base))
    }
    fn map(&mut self, intid: u32, event: (u32, u32), vcpu: Option<u32>) -> Result<bool, NoMemory> {
        self.step()?;
        assert!((FIRST_LPI..INTID_LIMIT).contains(&intid));
        if self.others.contains(&intid) || self.lpis.contains_key(&intid) {
            return Ok(false);
        }
        let state = State {
            target: vcpu,
            event,
            ..State::default()
        };
        self.lpis.insert(intid, state);
        Ok(true)
    }
    fn unmap(&mut self, intid: u32) {
        self.touched += 1;
        assert!(self.lpis.remove(&intid).is_some(), "unmapped twice");
    }
    fn configure(&mut self, intid: u32, c: LpiConfig) -> Result<(), NoMemory> {
        self.step()?;
        self.lpi(intid).config = Some((c.priority, c.enabled));
        Ok(())
    }
    fn set_pending(&mut self, intid: u32, vcpu: u32) -> Result<(), NoMemory> {
        self.step()?;
        let on = !self.disabled.contains(&vcpu);
        let lpi = self.lpi(intid);
        lpi.target = Some(vcpu);
        lpi.pending |= on;
        Ok(())
    }
    fn clear_pending(&mut self, intid: u32) {
        self.lpi(intid).pending = false;
    }
    fn move_to(&mut self, intid: u32, vcpu: u32) -> Result<(), NoMemory> {
        self.step()?;
        self.lpi(intid).target = Some(vcpu);
        Ok(())
    }
    fn detach(&mut self, intid: u32) -> Result<(), NoMemory> {
        self.step()?;
        self.lpi(intid).target = None;
        Ok(())
    }
    fn move_all(&mut self, from: u32, to: u32) -> Result<(), NoMemory> {
        self.step()?;
        let of = self.lpis.values_mut().filter(|l| l.target == Some(from));
        of.for_each(|l| l.target = Some(to));
        Ok(())
    }
    fn invalidate_all(&mut self, vcpu: u32) -> Result<(), NoMemory> {
        self.step()?;
        self.invalidated.push(vcpu);
        Ok(())
    }
    fn refused(&mut self, refused: Refused) {
        self.refused.push(refused);
    }
}

pub type Command = [u64; 4];

pub fn mapd(device: u32, itt: u64, bits: u64) -> Command {
    [8 | u64::from(device) << 32, bits - 1, itt | VALID, 0]
}
pub fn unmapd(device: u32) -> Command {
    [8 | u64::from(device) << 32, 0, 0, 0]
}
pub fn mapc(icid: u16, vcpu: u32) -> Command {
    mapc_to(icid, processor(vcpu))
}
pub fn mapc_to(icid: u16, rdbase: u64) -> Command {
    [9, 0, VALID | rdbase << 16 | u64::from(icid), 0]
}
pub fn unmapc(icid: u16) -> Command {
    [9, 0, icid.into(), 0]
}
fn event(code: u64, device: u32, event: u32, intid: u32, icid: u16) -> Command {
    let w1 = u64::from(intid) << 32 | u64::from(event);
    [code | u64::from(device) << 32, w1, icid.into(), 0]
}
pub fn mapti(device: u32, id: u32, intid: u32, icid: u16) -> Command {
    event(0xa, device, id, intid, icid)
}
pub fn mapi(device: u32, id: u32, icid: u16) -> Command {
    event(0xb, device, id, 0, icid)
}
pub fn movi(device: u32, id: u32, icid: u16) -> Command {
    event(1, device, id, 0, icid)
}
pub fn int(device: u32, id: u32) -> Command {
    event(3, device, id, 0, 0)
}
pub fn clear(device: u32, id: u32) -> Command {
    event(4, device, id, 0, 0)
}
pub fn inv(device: u32, id: u32) -> Command {
    event(0xc, device, id, 0, 0)
}
pub fn discard(device: u32, id: u32) -> Command {
    event(0xf, device, id, 0, 0)
}
pub fn invall(icid: u16) -> Command {
    [0xd, 0, icid.into(), 0]
}
pub fn movall(from: u64, to: u64) -> Command {
    [0xe, 0, from << 16, to << 16]
}
pub fn sync() -> Command {
    [5, 0, processor(0) << 16, 0]
}

pub struct Machine {
    pub ram: Ram,
    pub vcpus: Vcpus,
    pub its: Its,
}

impl Machine {
    /// Off, with an address.
    pub fn off() -> Self {
        let mut its = Its::new();
        its.set_base(BASE, 40).unwrap();
        Self {
            ram: Ram::new(),
            vcpus: Vcpus::new(),
            its,
        }
    }
    /// A queue and tables of 64 KiB each, and on.
    pub fn new() -> Self {
        let mut m = Self::off();
        m.set_up();
        m
    }
    pub fn set_up(&mut self) {
        self.write(CBASER, VALID | QUEUE | 15);
        self.write(BASER0, VALID | DEVICES);
        self.write(BASER1, VALID | COLLECTIONS);
        self.write(CTLR, 1);
        assert_eq!(self.read(CTLR) & 1, 1);
    }
    /// A guest's write of the whole register.
    pub fn write(&mut self, offset: u64, value: u64) {
        let len = if offset < 8 { 4 } else { 8 };
        let effect = self.its.write(offset, len, value, &mut self.vcpus);
        assert_eq!(effect == Effect::Process, self.its.has_work());
        if effect == Effect::Process {
            self.run();
        }
    }
    pub fn read(&self, offset: u64) -> u64 {
        self.its.read(offset, if offset < 8 { 4 } else { 8 })
    }
    pub fn run(&mut self) {
        while self.its.process(&self.ram, &mut self.vcpus).unwrap() == Progress::More {}
    }
    /// Puts a command into the queue, and does not tell.
    pub fn queue(&mut self, at: u64, command: Command) -> u64 {
        for (i, w) in command.iter().enumerate() {
            self.ram.set_u64(QUEUE + at + 8 * i as u64, *w);
        }
        let size = ((self.read(CBASER) & 0xff) + 1) << 12;
        (at + 32) % size
    }
    /// Has a command carried out.
    pub fn send(&mut self, command: Command) {
        let next = self.queue(self.read(CWRITER), command);
        self.write(CWRITER, next);
        assert_eq!(self.read(CREADR), next);
    }
    #[track_caller]
    pub fn good(&mut self, command: Command) {
        let n = self.vcpus.refused.len();
        self.send(command);
        let refused = self.vcpus.refused.get(n);
        assert_eq!(refused, None, "{command:x?}");
    }
    #[track_caller]
    pub fn bad(&mut self, command: Command, reason: &str) {
        let n = self.vcpus.refused.len();
        let at = self.read(CWRITER);
        self.send(command);
        let refused = self.vcpus.refused.get(n..).unwrap();
        assert_eq!(refused.len(), 1, "{reason}");
        assert!(
            refused[0].reason.starts_with(reason),
            "{}",
            refused[0].reason
        );
        assert_eq!(u64::from(refused[0].offset), at);
        assert_eq!(u64::from(refused[0].code), command[0] & 0xff);
    }
    /// Where a message leads: INTID and vCPU.
    pub fn to(&self, device: u32, event: u32) -> Option<(u32, u32)> {
        self.its.translate(device, event).map(|l| (l.intid, l.vcpu))
    }
    pub fn lpi(&self, intid: u32) -> State {
        *self.vcpus.lpis.get(&intid).unwrap()
    }
}
