// SPDX-License-Identifier: GPL-2.0

//! The emulator's shell: gives the pure emulator a vCPU's registers, the guest's memory, and the
//! devices in the kernel and in user space, and does what it says in the end.

use super::{
    backend::{Backend, HwVcpu},
    handle,
    io::{Asked, Piece, UserExit, PIO_BYTES},
    mem::{Miss, Phys},
    model::{
        cpuid::{self, Feature},
        decode::{decode, DecodeError, Insn, Mnemonic, Mode, Vendor, Width},
        emulate::{
            emulate, Access, Env, Feature as Ext, Kind, Outcome, Regs, Shadow, Stop, System,
        },
        lapic::Place,
        regs::{
            efer,
            rflags,
            DescTable,
            Exception,
            Gpr,
            Seg,
            Segment, //
        },
        walk::{self, Kind as WalkKind, Privilege},
    },
    run,
    shared::now_ns,
    vcpu::Vcpu,
    X86,
};
use crate::{
    family::{Ctx, Next},
    host::trace,
    irq::{bus::Space, Written},
    memory::{GuestAccess, View},
};
use kernel::prelude::*;

type After = Result<Next<UserExit>>;

impl<B: Backend> Vcpu<B> {
    /// The vendor whose rules the guest's instructions follow.
    fn decode_vendor(&self) -> Vendor {
        match self.features.vendor {
            cpuid::Vendor::Amd => Vendor::Amd,
            cpuid::Vendor::Intel => Vendor::Intel,
        }
    }

    /// The mode that code is decoded in.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        let cs = self.hw.segment(Seg::Cs).attr;
        let width = if self.hw.efer() & efer::LMA != 0 && cs.long() {
            Width::Bits64
        } else if cs.db() && self.hw.rflags() & rflags::VM == 0 {
            Width::Bits32
        } else {
            Width::Bits16
        };
        Mode::new(width, self.decode_vendor())
    }
}

/// Where stage 2 refused an access: the processor has walked the guest's tables for it, and has found
/// that they allow it.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    gpa: u64,
    write: bool,
    /// The linear page that it was found to be.
    page: Option<u64>,
}

impl Operand {
    /// The operand of an instruction whose access (a write, or not) to `gpa` was refused.
    pub(crate) fn new(gpa: u64, write: bool) -> Self {
        Self {
            gpa,
            write,
            page: None,
        }
    }

    /// Where `len` bytes at `la` are, if this is the operand and they are in its page.
    fn locate(&mut self, la: u64, len: usize, a: Access) -> Option<u64> {
        let (page, offset) = (la & !0xfff, la & 0xfff);
        let fits = offset == self.gpa & 0xfff && len as u64 <= 0x1000 - offset;
        let allowed = a.kind == Kind::Data && (self.write || !a.write);
        (fits && allowed && *self.page.get_or_insert(page) == page).then_some(self.gpa)
    }
}

/// An instruction under emulation. It is kept while user space answers: then the same one goes on,
/// whatever has become of the guest's code, and is not fetched, decoded and looked up again.
#[derive(Default)]
pub(crate) struct Code {
    rip: u64,
    bytes: [u8; 15],
    /// How many of them are valid.
    len: usize,
    decoded: Option<(Mode, Insn)>,
    /// Where its operand is, if it has only one and hardware has found it.
    operand: Option<Operand>,
}

/// A vCPU as the emulator sees it.
struct Machine<'m, 'c, 'v, B: Backend> {
    ctx: &'m mut Ctx<'c, X86<B>>,
    view: &'m View<'v>,
    /// See [`Code::operand`].
    operand: &'m mut Option<Operand>,
    /// Memory behind a slot could not be had, at this guest-physical address: `KVM_RUN` fails with
    /// `EFAULT`.
    fault: Option<u64>,
    /// A local APIC access has to be told to user space, or posted writes are full.
    leave: bool,
}

/// A contiguous part of an access: where it is in guest-physical memory.
#[derive(Clone, Copy, Default)]
struct Part {
    gpa: u64,
    len: usize,
}

impl<B: Backend> Machine<'_, '_, '_, B> {
    fn stop(&mut self, m: Miss) -> Stop {
        match m {
            Miss::Exception(e) => Stop::Fault(e),
            Miss::Busy => Stop::Again,
            Miss::Memory {
                gpa,
                error: GuestAccess::Fault,
            } => {
                self.fault = Some(gpa);
                Stop::Unhandleable
            }
            Miss::Memory { .. } => Stop::Unhandleable,
        }
    }

    fn rights(&self, a: Access) -> walk::Access {
        walk::Access {
            kind: if a.write {
                WalkKind::Write
            } else {
                WalkKind::Read
            },
            privilege: match a.kind {
                Kind::System => Privilege::Implicit,
                _ if a.user => Privilege::User,
                _ => Privilege::Supervisor,
            },
        }
    }

    /// The one or two parts of an access of `len` bytes, by pages.
    fn parts(&mut self, la: u64, len: usize, a: Access) -> Result<[Part; 2], Stop> {
        if let Some(gpa) = self.operand.as_mut().and_then(|o| o.locate(la, len, a)) {
            return Ok([Part { gpa, len }, Part::default()]);
        }
        let rights = self.rights(a);
        let mut parts = [Part::default(); 2];
        let first = usize::try_from(0x1000 - (la & 0xfff)).unwrap_or(0).min(len);
        let mut at = la;
        for (part, n) in parts.iter_mut().zip([first, len - first]) {
            if n == 0 {
                continue;
            }
            let t = self
                .ctx
                .vcpu
                .translate(&mut Phys::sleeping(self.view), at, rights)
                .map_err(|m| self.stop(m))?;
            *part = Part { gpa: t.gpa, len: n };
            at = at.wrapping_add(n as u64);
            if !self.ctx.vcpu.is_64bit() {
                at &= 0xffff_ffff;
            }
        }
        Ok(parts)
    }

    fn lapic_at(&self, gpa: u64) -> Place {
        if self.ctx.vcpu.has_lapic {
            self.ctx.vcpu.lapic.place(gpa)
        } else {
            Place::Elsewhere
        }
    }

    /// Reads what is no memory, at most 8 bytes.
    fn device_read(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let len = u8::try_from(buf.len()).map_err(|_| Stop::Unhandleable)?;
        if let Place::Register(offset) = self.lapic_at(gpa) {
            let value = self
                .ctx
                .vcpu
                .lapic
                .mmio_read(offset, len, now_ns)
                .to_le_bytes();
            copy(buf, &value);
            return Ok(());
        }
        let pending = &mut self.ctx.vcpu.pending;
        if let Some(data) = pending.answer(gpa, len) {
            copy(buf, &data);
            return Ok(());
        }
        pending.asked = Asked::Mmio(Piece {
            gpa,
            len,
            data: [0; 8],
        });
        Err(Stop::NeedUser)
    }

    /// Writes what is no memory, at most 8 bytes.
    fn device_write(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        if let Place::Register(offset) = self.lapic_at(gpa) {
            let mut value = [0; 8];
            copy(&mut value, data);
            let len = u8::try_from(data.len()).map_err(|_| Stop::Unhandleable)?;
            let value = u64::from_le_bytes(value);
            let effect = self.ctx.vcpu.lapic.mmio_write(offset, len, value, now_ns);
            self.leave |= run::apply(self.ctx, effect);
            return Ok(());
        }
        if self.ctx.vm.irq.bus().write(Space::Mmio, gpa, data) == Written::Handled {
            return Ok(());
        }
        let mut piece = Piece {
            gpa,
            len: 0,
            data: [0; 8],
        };
        piece.len = u8::try_from(data.len()).map_err(|_| Stop::Unhandleable)?;
        copy(&mut piece.data, data);
        self.ctx
            .vcpu
            .pending
            .post(piece)
            .map_err(|_| Stop::Unhandleable)
    }

    /// Whether a write there is one to memory.
    fn is_memory(&self, gpa: u64) -> bool {
        self.view.slot(gpa >> 12).is_some_and(|s| !s.readonly())
    }

    /// Pieces of `len` bytes can be posted.
    fn has_room(&self, len: usize) -> Result<(), Stop> {
        if len.div_ceil(8) > self.ctx.vcpu.pending.room() {
            return Err(Stop::Unhandleable);
        }
        Ok(())
    }

    fn write_part(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        match self.view.write(gpa, data) {
            Ok(()) => Ok(()),
            Err(GuestAccess::NoSlot | GuestAccess::ReadOnly) => {
                self.has_room(data.len())?;
                for (i, chunk) in data.chunks(8).enumerate() {
                    self.device_write(gpa.wrapping_add(i as u64 * 8), chunk)?;
                }
                Ok(())
            }
            Err(e) => Err(self.backing(e, gpa)),
        }
    }

    fn backing(&mut self, error: GuestAccess, gpa: u64) -> Stop {
        self.stop(Miss::Memory { gpa, error })
    }
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = *f;
    }
}

impl<B: Backend> Env for Machine<'_, '_, '_, B> {
    fn cr(&self, n: u8) -> u64 {
        handle::read_cr(self.ctx.vcpu, n)
    }
    fn efer(&self) -> u64 {
        self.ctx.vcpu.hw.efer()
    }
    fn cpl(&self) -> u8 {
        self.ctx.vcpu.hw.cpl()
    }
    fn vendor(&self) -> Vendor {
        self.ctx.vcpu.decode_vendor()
    }
    fn has(&self, feature: Ext) -> bool {
        let f = match feature {
            Ext::Adx => Feature::Adx,
            Ext::Avx => Feature::Avx,
            Ext::Bmi1 => Feature::Bmi1,
            Ext::Bmi2 => Feature::Bmi2,
            Ext::Cx16 => Feature::Cx16,
            Ext::Lzcnt => Feature::Abm,
            Ext::Movbe => Feature::Movbe,
            Ext::Popcnt => Feature::Popcnt,
            Ext::Smap => Feature::Smap,
        };
        self.ctx.vcpu.features.has(f)
    }
    fn segment(&self, s: Seg) -> Segment {
        self.ctx.vcpu.hw.segment(s)
    }
    fn set_segment(&mut self, s: Seg, v: &Segment) {
        self.ctx.vcpu.hw.set_segment(s, v);
    }
    fn ldtr(&self) -> Segment {
        self.ctx.vcpu.hw.ldtr()
    }
    fn tr(&self) -> Segment {
        self.ctx.vcpu.hw.tr()
    }
    fn gdtr(&self) -> DescTable {
        self.ctx.vcpu.hw.gdtr()
    }
    fn idtr(&self) -> DescTable {
        self.ctx.vcpu.hw.idtr()
    }

    fn read(&mut self, la: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        let parts = self.parts(la, buf.len(), access)?;
        let mut rest = buf;
        for p in parts {
            let (now, later) = rest.split_at_mut_checked(p.len).ok_or(Stop::Unhandleable)?;
            rest = later;
            if p.len == 0 {
                continue;
            }
            match self.view.read(p.gpa, now) {
                Ok(()) => {}
                Err(GuestAccess::NoSlot) => {
                    for (i, chunk) in now.chunks_mut(8).enumerate() {
                        self.device_read(p.gpa.wrapping_add(i as u64 * 8), chunk)?;
                    }
                }
                Err(e) => return Err(self.backing(e, p.gpa)),
            }
        }
        Ok(())
    }

    fn write(&mut self, la: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        let [first, second] = self.parts(la, data.len(), access)?;
        if second.len == 0 {
            return self.write_part(first.gpa, data);
        }
        let (a, b) = data.split_at_checked(first.len).ok_or(Stop::Unhandleable)?;
        // Nothing is told to a device before the other page has taken its part, or is sure to.
        match (self.is_memory(first.gpa), self.is_memory(second.gpa)) {
            (false, true) => {
                self.has_room(a.len())?;
                self.write_part(second.gpa, b)?;
                self.write_part(first.gpa, a)
            }
            (true, _) => {
                self.write_part(first.gpa, a)?;
                self.write_part(second.gpa, b)
            }
            (false, false) => {
                self.has_room(a.len().next_multiple_of(8) + b.len())?;
                self.write_part(first.gpa, a)?;
                self.write_part(second.gpa, b)
            }
        }
    }

    fn check_write(&mut self, la: u64, len: usize, access: Access) -> Result<(), Stop> {
        self.parts(la, len, access).map(|_| ())
    }

    fn cmpxchg(&mut self, la: u64, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop> {
        let len = old.len();
        let parts = self.parts(la, len, access)?;
        let [p, second] = parts;
        if !self.is_memory(p.gpa) {
            return self.write(la, new, access).map(|()| true);
        }
        if second.len != 0 || !matches!(len, 1 | 2 | 4 | 8) || p.gpa % len as u64 != 0 {
            // A locked access that is split over cache lines or 16 bytes wide: no single step here
            // does that.
            return Err(Stop::Unhandleable);
        }
        let number = |b: &[u8]| {
            let mut v = [0; 8];
            copy(&mut v, b);
            u64::from_le_bytes(v)
        };
        let (old, new) = (number(old), number(new));
        match self.view.compare_exchange(p.gpa, len, old, new) {
            Ok(was) => Ok(was == old),
            Err(e) => Err(self.backing(e, p.gpa)),
        }
    }

    fn pio_in(&mut self, port: u16, size: u8, ahead: u32) -> Result<u32, Stop> {
        let page = self.ctx.core.pages.get(1).ok_or(Stop::Unhandleable)?;
        let pending = &mut self.ctx.vcpu.pending;
        if let Some(v) = pending.next_in(page, port, size) {
            return Ok(v);
        }
        let count = ahead.clamp(1, PIO_BYTES / u32::from(size.max(1)));
        pending.asked = Asked::Ins { port, size, count };
        Err(Stop::NeedUser)
    }

    fn pio_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..usize::from(size)).ok_or(Stop::Unhandleable)?;
        if self
            .ctx
            .vm
            .irq
            .bus()
            .write(Space::Pio, u64::from(port), data)
            == Written::Handled
        {
            return Ok(());
        }
        let page = self.ctx.core.pages.get(1).ok_or(Stop::Unhandleable)?;
        if !self.ctx.vcpu.pending.post_out(page, port, size, value) {
            return Err(Stop::Unhandleable);
        }
        Ok(())
    }

    fn vec(&mut self, n: u8) -> Result<[u8; 32], Stop> {
        Ok(self.ctx.vcpu.fpu.vector(n))
    }
    fn set_vec(&mut self, n: u8, value: &[u8; 32], clear: bool) {
        self.ctx.vcpu.fpu.set_vector(n, value, clear);
    }
    fn mxcsr(&self) -> u32 {
        self.ctx.vcpu.fpu.mxcsr()
    }
    fn set_mxcsr(&mut self, value: u32) {
        self.ctx.vcpu.fpu.set_mxcsr(value);
    }

    fn commit(&mut self, regs: &Regs) {
        let v = &mut *self.ctx.vcpu;
        v.gprs = regs.gprs;
        v.hw.set_rip(regs.rip);
        v.hw.set_rflags(regs.rflags);
        v.pending.commit();
    }
    fn should_yield(&self) -> bool {
        let v = &self.ctx.vcpu;
        // Port items are collected as long as they fit; pieces of memory are told one by one.
        if self.leave || v.pending.must_tell() {
            return true;
        }
        // What a device has given is stored first: there are at most 4096 bytes of it.
        !v.pending.has_items()
            && (crate::host::work::pending() || !self.ctx.core.shared.mail.inbox.is_empty())
    }
}

/// Fetches and decodes the instruction at RIP, but for one that waits there. `operand`: where stage 2
/// has refused its access.
fn fetch<B: Backend>(
    v: &mut Vcpu<B>,
    view: &View<'_>,
    code: &mut Code,
    operand: Option<Operand>,
) -> Result<(), Miss> {
    let rip = v.hw.rip();
    let mode = v.mode();
    if core::mem::take(&mut v.pending.waits) && code.rip == rip {
        if matches!(code.decoded, Some((m, _)) if m == mode) {
            return Ok(());
        }
    } else {
        v.pending.abandon();
        code.rip = rip;
        code.len = v.hw.insn_bytes(&mut code.bytes);
    }
    loop {
        let bytes = code.bytes.get(..code.len).unwrap_or(&[]);
        let decoded = if bytes.is_empty() {
            Err(DecodeError::NeedMore)
        } else {
            decode(bytes, mode)
        };
        match decoded {
            Ok(insn) => {
                code.operand = operand.filter(|_| insn.has_one_access());
                code.decoded = Some((mode, insn));
                return Ok(());
            }
            Err(DecodeError::NeedMore) => {}
            Err(DecodeError::TooLong) => return Err(Miss::Exception(Exception::gp(0))),
            Err(DecodeError::Invalid) => return Err(Miss::Exception(Exception::ud())),
            Err(DecodeError::Unsupported) => {
                return Err(Miss::Memory {
                    gpa: 0,
                    error: GuestAccess::NoSlot,
                });
            }
        }
        let at = rip.wrapping_add(code.len as u64);
        let la = if mode.is_64() {
            at
        } else {
            v.hw.segment(Seg::Cs).base.wrapping_add(at) & 0xffff_ffff
        };
        let missing = code.bytes.get_mut(code.len..).unwrap_or(&mut []);
        let n = v.fetch(&mut Phys::sleeping(view), la, missing)?;
        if n == 0 {
            return Err(Miss::Exception(Exception::gp(0)));
        }
        code.len += n;
    }
}

/// Emulation cannot go on: user space gets the bytes.
pub(crate) fn failure<B: Backend>(v: &mut Vcpu<B>, bytes: &[u8]) -> After {
    let mut out = [0; 15];
    copy(&mut out, bytes);
    let len = u8::try_from(bytes.len().min(15)).unwrap_or(0);
    trace::guest_error(
        c"instruction cannot be emulated; RIP, first bytes",
        v.hw.rip(),
        u64::from_le_bytes(out.first_chunk().copied().unwrap_or_default()),
    );
    v.pending.abandon();
    Ok(Next::ToUser(UserExit::EmulationFailure { bytes: out, len }))
}

/// Emulates the instruction at RIP. `operand`: where stage 2 has refused its access.
///
/// # Errors
/// `ENOMEM`, and as [`handle::memory_fault`].
pub(crate) fn run<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    operand: Option<Operand>,
) -> After {
    let mut code = match ctx.vcpu.code.take() {
        Some(code) => code,
        None => KBox::new(Code::default(), GFP_KERNEL_ACCOUNT)?,
    };
    let after = run_code(ctx, view, &mut code, operand);
    ctx.vcpu.code = Some(code);
    after
}

fn run_code<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    code: &mut Code,
    operand: Option<Operand>,
) -> After {
    match fetch(ctx.vcpu, view, code, operand) {
        Ok(()) => {}
        Err(Miss::Exception(e)) => {
            ctx.vcpu.pending.abandon();
            ctx.vcpu.raise(e);
            return Ok(Next::Reenter);
        }
        Err(Miss::Busy) => return Ok(Next::Reenter),
        Err(Miss::Memory {
            gpa,
            error: GuestAccess::Fault,
        }) => {
            return handle::memory_fault(ctx, gpa);
        }
        Err(Miss::Memory { .. }) => return failure(ctx.vcpu, &[]),
    }
    let Code {
        bytes,
        decoded: Some((_, insn)),
        operand,
        ..
    } = code
    else {
        return failure(ctx.vcpu, &[]);
    };
    let mut regs = Regs {
        gprs: ctx.vcpu.gprs,
        rip: ctx.vcpu.hw.rip(),
        rflags: ctx.vcpu.hw.rflags(),
    };
    ctx.vcpu.pending.begin();
    let mut m = Machine {
        ctx,
        view,
        operand,
        fault: None,
        leave: false,
    };
    let outcome = emulate(&mut m, insn, &mut regs);
    let fault = m.fault;
    let v = &mut *ctx.vcpu;
    if outcome.is_err() {
        v.pending.undo();
    }
    match outcome {
        Ok(Outcome::Done { shadow, trap }) => {
            v.pending.abandon();
            v.hw.set_interrupt_shadow(shadow.is_some());
            if trap && shadow != Some(Shadow::MovSs) {
                v.single_step();
            }
        }
        Ok(Outcome::Partial { trap }) => {
            v.hw.set_interrupt_shadow(false);
            if trap {
                v.single_step();
            }
        }
        Ok(Outcome::Retry) | Err(Stop::Again) => v.pending.abandon(),
        Ok(Outcome::System(s)) => {
            v.pending.abandon();
            return system(ctx, view, s, insn.len);
        }
        Err(Stop::Fault(e)) => {
            v.pending.abandon();
            v.raise(e);
        }
        Err(Stop::NeedUser) => {
            if !v.pending.has_posts() {
                v.pending.waits = true;
                return Ok(Next::ToUser(ask(v)));
            }
            // What was written comes before what is read; the read is asked for again.
            v.pending.abandon();
        }
        Err(Stop::Unhandleable) => {
            if let Some(gpa) = fault {
                v.pending.abandon();
                return handle::memory_fault(ctx, gpa);
            }
            return failure(v, bytes.get(..usize::from(insn.len)).unwrap_or(&[]));
        }
    }
    Ok(v.pending.tell().map_or(Next::Reenter, Next::ToUser))
}

/// The exit that asks user space for what [`Asked`] says.
fn ask<B: Backend>(v: &Vcpu<B>) -> UserExit {
    use crate::abi::exit::Common;
    match v.pending.asked {
        Asked::Ins { port, size, count } => UserExit::Io {
            input: true,
            size,
            port,
            count,
        },
        Asked::Mmio(p) => UserExit::Common(Common::Mmio {
            gpa: p.gpa,
            len: p.len,
            write: false,
            data: [0; 8],
        }),
        _ => UserExit::Common(Common::Unknown { code: 0 }),
    }
}

/// Operations that the emulator leaves to the vCPU.
fn system<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, s: System, len: u8) -> After {
    let v = &mut *ctx.vcpu;
    let rip = v.hw.rip().wrapping_add(u64::from(len));
    let next = if v.is_64bit() { rip } else { rip & 0xffff_ffff };
    let gp = Err(super::model::sregs::Gp);
    let done = match s {
        System::Cpuid => {
            let step = run::cpuid(ctx, next);
            return handle::after(ctx, view, step);
        }
        System::Rdmsr => {
            let step = run::guest_msr(ctx, false, next);
            return handle::after(ctx, view, step);
        }
        System::Wrmsr => {
            let step = run::guest_msr(ctx, true, next);
            return handle::after(ctx, view, step);
        }
        System::Hlt => {
            v.advance_to(next);
            return handle::halt(ctx, view);
        }
        System::Rdtsc => {
            let t = v.tsc.now();
            v.set_edx_eax(t);
            Ok(())
        }
        System::Rdtscp => {
            let t = v.tsc.now();
            v.set_edx_eax(t);
            v.gprs.set(Gpr::Rcx, v.tsc_aux & 0xffff_ffff);
            Ok(())
        }
        System::Rdpid(r) => {
            v.gprs.set(r, v.tsc_aux);
            Ok(())
        }
        // No counters are offered.
        System::Rdpmc => gp,
        System::Invd | System::Wbinvd | System::Monitor(_) => Ok(()),
        System::Mwait => Ok(()),
        System::Invlpg(la) => {
            v.hw.flush_linear(la);
            Ok(())
        }
        System::ReadCr { cr, to } => {
            let value = handle::read_cr(v, cr);
            v.gprs.set(
                to,
                if v.is_64bit() {
                    value
                } else {
                    value & 0xffff_ffff
                },
            );
            Ok(())
        }
        System::WriteCr { cr, value } => handle::write_cr(ctx, cr, value),
        System::ReadDr { .. } | System::WriteDr { .. } if v.debug_regs_guarded() => {
            return Ok(Next::Reenter);
        }
        System::ReadDr { dr, to } => {
            let value = handle::read_dr(v, dr);
            v.gprs.set(
                to,
                if v.is_64bit() {
                    value
                } else {
                    value & 0xffff_ffff
                },
            );
            Ok(())
        }
        System::WriteDr { dr, value } => handle::write_dr(v, dr, value),
        System::Lgdt(t) => {
            v.hw.set_gdtr(&t);
            Ok(())
        }
        System::Lidt(t) => {
            v.hw.set_idtr(&t);
            Ok(())
        }
        System::Lldt(seg) => {
            v.hw.set_ldtr(&seg);
            Ok(())
        }
        System::Ltr(seg) => {
            v.hw.set_tr(&seg);
            Ok(())
        }
        System::Xgetbv => {
            let x = v.fpu.xcr0();
            v.set_edx_eax(x);
            Ok(())
        }
        System::Xsetbv => handle::xsetbv(v),
        System::Hypercall(_) => {
            handle::hypercall(v);
            Ok(())
        }
        System::Swapgs => {
            use super::backend::Field;
            let gs = v.hw.segment(Seg::Gs);
            let other = v.hw.field(Field::KernelGsBase);
            v.hw.set_field(Field::KernelGsBase, gs.base);
            v.hw.set_segment(Seg::Gs, &Segment { base: other, ..gs });
            Ok(())
        }
        // RIP stays: the address behind it is found when it is injected.
        System::SoftInt {
            vector,
            by: Mnemonic::Int3 | Mnemonic::Into,
        } => {
            v.raise(Exception::plain(vector));
            return Ok(Next::Reenter);
        }
        System::SoftInt { vector, .. } => {
            v.events.raise_soft_interrupt(vector);
            return Ok(Next::Reenter);
        }
    };
    let v = &mut *ctx.vcpu;
    match done {
        Ok(()) => v.advance_to(next),
        Err(super::model::sregs::Gp) => v.raise(Exception::gp(0)),
    }
    Ok(Next::Reenter)
}

/// Runs the instruction that waited for user space again.
pub(crate) fn again<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> After {
    let vm = ctx.vm.clone();
    let view = vm.memory.read();
    run(ctx, &view, None)
}
