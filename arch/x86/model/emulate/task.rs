// SPDX-License-Identifier: GPL-2.0

//! Task switches: SDM vol. 3A chapter 9 (APM vol. 2 chapter 12).
//!
//! The processor leaves them to the hypervisor after it has found the new TSS' selector (SDM vol. 3C 27.4.2, APM
//! vol. 2 15.14.1): the rights to use a gate or a TSS are its own to check. What it has seen of the
//! descriptor is looked at again, as that is the guest's memory.
//!
//! Until the new TSS is marked busy, what faults is reported in the old task, in which nothing
//! has changed; from then on the switch is completed, and the first fault is the new task's.

use super::super::decode::decode;
use super::super::regs::{
    cr0,
    efer,
    rflags,
    vector,
    Exception,
    Gpr,
    Seg,
    SegAttr,
    Segment, //
};
use super::env::{
    Access,
    Env,
    Kind,
    Regs,
    Stop, //
};
use super::flags::mask;
use super::segment::{
    is_null,
    null_segment,
    rpl,
    Descriptor,
    ACCESSED,
    BUSY, //
};
use super::{
    mode,
    Ctx, //
};

/// What caused a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskCause {
    /// CALL
    Call,
    /// JMP
    Jump,
    /// IRET with RFLAGS.NT
    Iret,
    /// INT n, INT3 or INTO, through a task gate in the IDT.
    SoftEvent,
    /// An interrupt or exception, or INT1, through a task gate in the IDT.
    Event,
}

impl TaskCause {
    /// The old task is returned to.
    const fn nests(self) -> bool {
        !matches!(self, TaskCause::Jump | TaskCause::Iret)
    }
}

/// A task switch that is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new TSS.
    pub selector: u16,
    /// What caused it.
    pub cause: TaskCause,
    /// RIP at which the old task goes on.
    pub next: u64,
    /// The error code of an exception, for the new task's stack.
    pub error: Option<u32>,
}

/// What comes after a task switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// To be delivered in the new task, before its first instruction.
    pub fault: Option<Exception>,
    /// The new TSS' T flag: #DB with DR6.BT.
    pub trap: bool,
}

/// What a task switch does to a vCPU beyond [`Env`].
pub trait Tasks: Env {
    /// Loads TR.
    fn set_tr(&mut self, v: &Segment);
    /// Loads LDTR.
    fn set_ldtr(&mut self, v: &Segment);
    /// Loads CR3, with all that follows. False: it is no valid one, and stays as it was.
    fn set_cr3(&mut self, v: u64) -> bool;
    /// Sets CR0.TS; clears DR7's enables of the task (L0 to L3, LE).
    fn task_switched(&mut self);
}

/// Where a TSS has what is saved and loaded: instruction pointer, flags, eight registers and the
/// segment selectors in the order of their numbers, and LDTR, which is loaded only.
struct Layout {
    /// Offset of the instruction pointer.
    first: u64,
    /// Bytes of a field (selectors always have two).
    width: u8,
    /// How many segment registers.
    segments: usize,
    /// What its limit must be at least.
    limit: u32,
}

/// SDM vol. 3A 9.6
const TSS16: Layout = Layout {
    first: 0x0e,
    width: 2,
    segments: 4,
    limit: 0x2b,
};
/// SDM vol. 3A 9.2.1
const TSS32: Layout = Layout {
    first: 0x20,
    width: 4,
    segments: 6,
    limit: 0x67,
};
/// CR3 in a 32-bit TSS.
const CR3: u64 = 0x1c;
/// The T flag, bit 0 there.
const TRAP: u64 = 0x64;

/// The segment registers, by number.
const SEGMENTS: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];
/// Instruction pointer and flags come before the general registers.
const GPRS: u64 = 2;
/// General registers.
const GPR_COUNT: u64 = 8;
/// EFLAGS without what is reserved.
const FLAGS: u64 = 0x3f_7fd5;
/// How often what was lost to another processor is tried once there is no way back.
const TRIES: u32 = 16;

impl Layout {
    fn of(tss: &Segment) -> &'static Layout {
        if tss.attr.typ() & 8 != 0 {
            &TSS32
        } else {
            &TSS16
        }
    }

    /// Offset of the `n`th field.
    fn field(&self, n: u64) -> u64 {
        self.first + n * u64::from(self.width)
    }

    /// Offset of the `n`th segment register.
    fn selector(&self, n: u64) -> u64 {
        self.field(GPRS + GPR_COUNT + n)
    }

    /// Offset of LDTR, where what is saved ends.
    fn ldtr(&self) -> u64 {
        self.selector(self.segments as u64)
    }
}

/// What the new TSS holds.
#[derive(Clone, Copy)]
struct Image {
    regs: Regs,
    segments: [u16; 6],
    ldtr: u16,
    cr3: Option<u64>,
    trap: bool,
}

/// Does a task switch. `regs` are the old task's, RIP being that of the instruction at which a fault is
/// reported; they are the emulator's to work on, and what counts is what [`Env::commit`] got.
///
/// # Errors
///
/// See [`Stop`]; nothing of the old task has changed. But [`Stop::Unhandleable`] may come at any
/// time.
pub fn switch_task<E: Tasks>(
    env: &mut E,
    what: &TaskSwitch,
    regs: &mut Regs,
) -> Result<Arrival, Stop> {
    if env.cr(0) & cr0::PE == 0 || env.efer() & efer::LMA != 0 {
        return Err(Stop::Unhandleable);
    }
    let v86 = regs.rflags & rflags::VM != 0;
    let cpl = if v86 { 3 } else { env.cpl() };
    // Whatever the instruction was: what works on segments and the stack has one at hand.
    let nop = decode(&[0x90], mode(env, regs.rflags)).map_err(|_| Stop::Unhandleable)?;
    let mut c = Ctx {
        cpl,
        insn: &nop,
        tf: false,
        r: regs,
        next: what.next & mask(4),
        is_64: false,
        protected: !v86,
        v86,
        atomic: false,
        shadow: None,
        env,
    };
    let (tss, image) = c.leave_task(what).map_err(|s| external(s, what))?;
    match c.arrive(&tss, &image, what).map_err(|s| external(s, what)) {
        Ok(()) => Ok(Arrival {
            fault: None,
            trap: image.trap,
        }),
        Err(Stop::Fault(e)) => Ok(Arrival {
            fault: Some(e),
            trap: false,
        }),
        Err(_) => Err(Stop::Unhandleable),
    }
}

/// What faults in the delivery of an event that is no software interrupt says so in its error code (EXT; SDM vol. 3A
/// 7.13).
fn external(s: Stop, what: &TaskSwitch) -> Stop {
    match s {
        Stop::Fault(e) if what.cause == TaskCause::Event && e.vector != vector::PF => {
            Stop::Fault(Exception {
                error: e.error.map(|code| code | 1),
                ..e
            })
        }
        s => s,
    }
}

/// Keeps the first fault; the rest of the switch goes on without what has faulted.
fn note(first: &mut Option<Stop>, r: Result<(), Stop>) {
    if let Err(s) = r {
        first.get_or_insert(s);
    }
}

impl<E: Tasks> Ctx<'_, E> {
    /// All checks of the two TSSs; the old one gets its task's state, the new one is marked busy.
    fn leave_task(&mut self, what: &TaskSwitch) -> Result<(Segment, Image), Stop> {
        let mut d = self.new_tss(what)?;
        let tss = d.segment(what.selector);
        let old = self.env.tr();
        let (from, to) = (Layout::of(&old), Layout::of(&tss));
        let saved = from.ldtr() - from.first;
        if u64::from(old.limit) < from.ldtr() - 1 {
            return self.fault(vector::TS, old.selector);
        }

        // Nothing is written before all is known to be there.
        self.image(&tss, to)?;
        let len = usize::try_from(saved).map_err(|_| Stop::Unhandleable)?;
        let at = self.system_address(old.base, from.first);
        self.check_store(at, len, Kind::System)?;
        if what.cause.nests() {
            self.check_store(self.system_address(tss.base, 0), 2, Kind::System)?;
        } else {
            let of_old = self.descriptor(old.selector & !7, false, vector::TS)?;
            self.check_store(self.type_address(&of_old), 1, Kind::System)?;
        }
        if what.cause != TaskCause::Iret {
            self.check_store(self.type_address(&d), 1, Kind::System)?;
        }

        self.save(&old, from, what)?;
        // After that, as they may be one.
        let image = self.image(&tss, to)?;
        if what.cause != TaskCause::Iret && !self.mark(&mut d, BUSY)? {
            return Err(Stop::Again);
        }
        Ok((d.segment(what.selector), image))
    }

    /// The new TSS' descriptor (SDM vol. 3A table 9-1; vol. 2A CALL, INT n, IRET).
    fn new_tss(&mut self, what: &TaskSwitch) -> Result<Descriptor, Stop> {
        let iret = what.cause == TaskCause::Iret;
        let bad = if iret { vector::TS } else { vector::GP };
        if what.selector & 4 != 0 || is_null(what.selector) {
            return self.fault(bad, what.selector);
        }
        let d = self.descriptor(what.selector, false, bad)?;
        let a = d.attr();
        let typ = if iret { [3, 11] } else { [1, 9] };
        if a.s() || !typ.contains(&a.typ()) {
            return self.fault(bad, what.selector);
        }
        if !a.present() {
            return self.fault(vector::NP, what.selector);
        }
        let tss = d.segment(what.selector);
        if tss.limit < Layout::of(&tss).limit {
            return self.fault(vector::TS, what.selector);
        }
        Ok(d)
    }

    fn tss_field(&mut self, tss: &Segment, offset: u64, size: u8) -> Result<u64, Stop> {
        let at = self.system_address(tss.base, offset);
        self.load_int(at, size, Kind::System, false)
    }

    fn tss_selector(&mut self, tss: &Segment, offset: u64) -> Result<u16, Stop> {
        let [lo, hi, ..] = self.tss_field(tss, offset, 2)?.to_le_bytes();
        Ok(u16::from_le_bytes([lo, hi]))
    }

    /// Reads the new task's state. What a 16-bit TSS has no place for is 0; of the general registers' upper halves no
    /// manual says it (Bochs and TCG have ffffh).
    fn image(&mut self, tss: &Segment, l: &Layout) -> Result<Image, Stop> {
        let mut regs = Regs {
            gprs: self.r.gprs,
            rip: self.tss_field(tss, l.field(0), l.width)?,
            rflags: self.tss_field(tss, l.field(1), l.width)? & FLAGS | rflags::FIXED,
        };
        for (n, r) in (GPRS..).zip(Gpr::ALL.iter().take(8)) {
            let v = self.tss_field(tss, l.field(n), l.width)?;
            regs.gprs.set(*r, v);
        }
        let mut segments = [0; 6];
        for (n, s) in (0..).zip(segments.iter_mut().take(l.segments)) {
            *s = self.tss_selector(tss, l.selector(n))?;
        }
        let wide = l.width == 4;
        let paging = self.env.cr(0) & cr0::PG != 0;
        Ok(Image {
            regs,
            segments,
            ldtr: self.tss_selector(tss, l.ldtr())?,
            cr3: match wide && paging {
                true => Some(self.tss_field(tss, CR3, 4)?),
                false => None,
            },
            trap: wide && self.tss_field(tss, TRAP, 2)? & 1 != 0,
        })
    }

    /// Writes the old task's state to its TSS.
    fn save(&mut self, tss: &Segment, l: &Layout, what: &TaskSwitch) -> Result<(), Stop> {
        let mut flags = self.r.rflags;
        if what.cause == TaskCause::Iret {
            flags &= !rflags::NT;
        }
        let gprs = self.r.gprs;
        let numbers = [self.next, flags].into_iter().chain(gprs.0);
        for (n, v) in (0..GPRS + GPR_COUNT).zip(numbers) {
            let at = self.system_address(tss.base, l.field(n));
            self.store_int(at, l.width, v, Kind::System)?;
        }
        for (n, seg) in (0..).zip(SEGMENTS.iter().take(l.segments)) {
            let at = self.system_address(tss.base, l.selector(n));
            let v = u64::from(self.env.segment(*seg).selector);
            self.store_int(at, 2, v, Kind::System)?;
        }
        Ok(())
    }

    /// Runs `f` again as long as it loses to another processor: there is no way back.
    fn persist<T>(&mut self, mut f: impl FnMut(&mut Self) -> Result<T, Stop>) -> Result<T, Stop> {
        for _ in 0..TRIES {
            match f(self) {
                Err(Stop::Again) => {}
                r => return r,
            }
        }
        Err(Stop::Unhandleable)
    }

    /// From the old task to the new one, whatever faults. The first fault is returned.
    fn arrive(&mut self, tss: &Segment, image: &Image, what: &TaskSwitch) -> Result<(), Stop> {
        let mut first = None;
        let old = self.env.tr();
        let r = match what.cause.nests() {
            true => self.link(tss, old.selector),
            false => self.persist(|c| c.clear_busy(old.selector)),
        };
        note(&mut first, r);
        self.env.set_tr(&Segment {
            attr: SegAttr(tss.attr.0 | u32::from(BUSY)),
            ..*tss
        });
        self.env.task_switched();
        if let Some(cr3) = image.cr3 {
            if !self.env.set_cr3(cr3) {
                note(&mut first, self.fault(vector::TS, tss.selector));
            }
        }

        *self.r = image.regs;
        if what.cause.nests() {
            self.r.rflags |= rflags::NT;
        }
        self.v86 = self.r.rflags & rflags::VM != 0;
        self.protected = !self.v86;
        let [_, cs, ..] = image.segments;
        self.cpl = if self.v86 { 3 } else { rpl(cs) };
        let r = self.load_task_segments(image, Layout::of(tss).width == 4);
        note(&mut first, r);
        if let (None, Some(code)) = (first, what.error) {
            let size = Layout::of(tss).width;
            let r = self.persist(|c| c.push(u64::from(code), size));
            note(&mut first, r);
        }
        self.commit();
        first.map_or(Ok(()), Err)
    }

    /// The new task's link to the old one.
    fn link(&mut self, tss: &Segment, to: u16) -> Result<(), Stop> {
        let at = self.system_address(tss.base, 0);
        self.persist(|c| c.store_int(at, 2, u64::from(to), Kind::System))
    }

    /// The old TSS is not busy any more.
    fn clear_busy(&mut self, selector: u16) -> Result<(), Stop> {
        let d = self.descriptor(selector & !7, false, vector::TS)?;
        let [.., old, _, _] = d.raw.to_le_bytes();
        let access = Access {
            kind: Kind::System,
            write: true,
            user: false,
        };
        let la = self.type_address(&d);
        match self.env.cmpxchg(la, &[old], &[old & !BUSY], access)? {
            true => Ok(()),
            false => Err(Stop::Again),
        }
    }

    /// LDTR and the segment registers. SS comes first, so that there is a stack for what the
    /// others raise. One that may not be loaded keeps its selector, and nothing can be reached by it.
    fn load_task_segments(&mut self, image: &Image, wide: bool) -> Result<(), Stop> {
        let mut first = None;
        let ldtr = self.persist(|c| c.task_ldtr(image.ldtr));
        self.env
            .set_ldtr(ldtr.as_ref().unwrap_or(&null_segment(image.ldtr)));
        note(&mut first, ldtr.map(|_| ()));

        let [es, cs, ss, ds, fs, gs] = image.segments;
        for (seg, selector) in [
            (Seg::Ss, ss),
            (Seg::Cs, cs),
            (Seg::Es, es),
            (Seg::Ds, ds),
            (Seg::Fs, fs),
            (Seg::Gs, gs),
        ] {
            let loaded = self.persist(|c| match seg {
                Seg::Cs if c.protected => c.task_cs(selector),
                seg => c.load_segment_or(seg, selector, vector::TS),
            });
            let s = match &loaded {
                Ok(s) => *s,
                Err(_) => self.unloaded(seg, selector, wide),
            };
            self.env.set_segment(seg, &s);
            note(&mut first, loaded.map(|_| ()));
        }
        first.map_or(Ok(()), Err)
    }

    /// A segment register whose descriptor may not be loaded. The processor knows no CS that cannot be used.
    fn unloaded(&self, seg: Seg, selector: u16, wide: bool) -> Segment {
        if seg == Seg::Cs {
            return Segment {
                selector,
                attr: SegAttr::new(11, true, self.cpl, true, false, false, wide, true, false),
                limit: u32::MAX,
                base: 0,
            };
        }
        let mut s = null_segment(selector);
        if seg == Seg::Ss {
            s.attr = SegAttr(s.attr.0 | u32::from(self.cpl) << 5);
        }
        s
    }

    fn task_ldtr(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        if selector & 4 != 0 {
            return self.fault(vector::TS, selector);
        }
        let d = self.descriptor(selector, false, vector::TS)?;
        let a = d.attr();
        if a.s() || a.typ() != 2 || !a.present() {
            return self.fault(vector::TS, selector);
        }
        Ok(d.segment(selector))
    }

    fn task_cs(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return self.fault(vector::TS, selector);
        }
        let mut d = self.descriptor(selector, false, vector::TS)?;
        let a = d.attr();
        let level = if a.typ() & 4 != 0 {
            a.dpl() <= self.cpl
        } else {
            a.dpl() == self.cpl
        };
        if !a.s() || a.typ() & 8 == 0 || !level {
            return self.fault(vector::TS, selector);
        }
        if !a.present() {
            return self.fault(vector::NP, selector);
        }
        if !self.mark(&mut d, ACCESSED)? {
            return Err(Stop::Again);
        }
        Ok(d.segment(selector))
    }
}
