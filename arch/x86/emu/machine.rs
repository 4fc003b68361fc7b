// SPDX-License-Identifier: GPL-2.0

//! What the pure emulator sees: a vCPU's registers, the guest's memory, and the devices in the kernel and
//! in user space.

use crate::{
    arch::x86::{
        backend::{Backend, HwVcpu},
        handle,
        io::{Asked, Piece, PIO_BYTES},
        mem::{Miss, Phys},
        model::{
            cpuid::Feature,
            decode::Vendor,
            emulate::{Access, Env, Feature as Ext, Kind, Regs, Stop},
            lapic::Place,
            regs::{DescTable, Seg, Segment},
            walk::{self, Kind as WalkKind, Privilege},
        },
        run,
        shared::now_ns,
        X86,
    },
    family::Ctx,
    irq::{bus::Space, Written},
    memory::{GuestAccess, View},
};

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

/// A vCPU as the emulator sees it.
pub(super) struct Machine<'m, 'c, 'v, B: Backend> {
    pub(super) ctx: &'m mut Ctx<'c, X86<B>>,
    pub(super) view: &'m View<'v>,
    /// See [`Code::operand`](super::Code).
    pub(super) operand: &'m mut Option<Operand>,
    /// Memory behind a slot could not be had, at this guest-physical address: `KVM_RUN` fails with
    /// `EFAULT`.
    pub(super) fault: Option<u64>,
    /// A local APIC access has to be told to user space, or posted writes are full.
    pub(super) leave: bool,
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

pub(super) fn copy(to: &mut [u8], from: &[u8]) {
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
