// SPDX-License-Identifier: GPL-2.0

//! Registers, effective and linear addresses, and operands: everything between an instruction's
//! meaning and its [`Env`].

use super::super::decode::{
    MemRef,
    Opnd, //
};
use super::super::regs::{
    cr0,
    cr4,
    rflags,
    vector,
    Exception,
    Gpr,
    Seg,
    Segment, //
};
use super::env::{
    Access,
    Env,
    Kind,
    Stop, //
};
use super::flags::mask;
use super::Ctx;

/// Where a read-modify-write operand stands.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// A general register of this number.
    Reg(u8),
    /// Memory at this linear address, with what was read there.
    Mem(u64, u64),
}

impl<E: Env> Ctx<'_, E> {
    /// A general register, zero extended. Byte registers 4 to 7 are AH, CH, DH, BH without REX.
    pub(super) fn reg(&self, n: u8, size: u8) -> u64 {
        if size == 1 && self.insn.prefixes.rex == 0 && n & 0xc == 4 {
            return self.r.gprs.get(Gpr::from_low4(n & 3)) >> 8 & 0xff;
        }
        self.r.gprs.get(Gpr::from_low4(n)) & mask(size)
    }

    /// Sets a general register. 32-bit writes clear the upper half, smaller ones keep the rest.
    pub(super) fn set_reg(&mut self, n: u8, size: u8, v: u64) {
        let (n, shift) = if size == 1 && self.insn.prefixes.rex == 0 && n & 0xc == 4 {
            (n & 3, 8)
        } else {
            (n, 0)
        };
        let r = Gpr::from_low4(n);
        let new = match size {
            8 => v,
            4 => v & mask(4),
            _ => {
                let m = mask(size) << shift;
                (self.r.gprs.get(r) & !m) | (v << shift & m)
            }
        };
        self.r.gprs.set(r, new);
    }

    /// A register used as an address, count or stack pointer of `size` bytes.
    pub(super) fn addr_reg(&self, r: Gpr, size: u8) -> u64 {
        self.r.gprs.get(r) & mask(size)
    }

    /// Sets such a register.
    pub(super) fn set_addr_reg(&mut self, r: Gpr, size: u8, v: u64) {
        let old = self.r.gprs.get(r);
        let new = match size {
            2 => (old & !0xffff) | (v & 0xffff),
            4 => v & mask(4),
            _ => v,
        };
        self.r.gprs.set(r, new);
    }

    /// The effective address of a memory reference.
    pub(super) fn ea(&self, m: &MemRef) -> u64 {
        let base = match m.base {
            Some(b) => self.r.gprs.get(b),
            None if m.rip_relative => self.next,
            None => 0,
        };
        let index = m.index.map_or(0, |i| self.r.gprs.get(i) << (m.scale & 3));
        base.wrapping_add(index)
            .wrapping_add(m.disp.cast_unsigned_())
            & mask(self.insn.addrsize)
    }

    /// The memory operand that the instruction must have.
    pub(super) fn mem(&self) -> Result<MemRef, Stop> {
        self.insn.mem.ok_or(Stop::Unhandleable)
    }

    /// The exception for a bad address in `seg`.
    fn bad_address(seg: Seg) -> Exception {
        if seg == Seg::Ss {
            Exception::ss(0)
        } else {
            Exception::gp(0)
        }
    }

    /// Whether a linear address is canonical.
    pub(super) fn canonical(&self, la: u64) -> bool {
        let shift = if self.env.cr(4) & cr4::LA57 != 0 {
            7
        } else {
            16
        };
        (la << shift).cast_signed_() >> shift == la.cast_signed_()
    }

    /// From an offset in a segment to a linear address, with all checks of segmentation (APM
    /// vol. 2 4.7 to 4.12) for `size` bytes.
    pub(super) fn linear(&self, seg: Seg, ea: u64, size: u64, write: bool) -> Result<u64, Stop> {
        let last = size.saturating_sub(1);
        if self.is_64 {
            let base = match seg {
                Seg::Fs | Seg::Gs => self.env.segment(seg).base,
                _ => 0,
            };
            let la = base.wrapping_add(ea);
            if !self.canonical(la) || !self.canonical(la.wrapping_add(last)) {
                return Err(Self::bad_address(seg).into());
            }
            return Ok(la);
        }
        let s = self.env.segment(seg);
        if (self.protected && !type_allows(&s, write)) || !within_limit(&s, ea, last) {
            return Err(Self::bad_address(seg).into());
        }
        Ok(s.base.wrapping_add(ea) & mask(4))
    }

    /// Alignment checks of user code (APM vol. 2 8.2.18).
    pub(super) fn check_alignment(&self, la: u64, size: u64) -> Result<(), Stop> {
        let on = self.cpl == 3 && self.r.rflags & rflags::AC != 0 && self.env.cr(0) & cr0::AM != 0;
        if on && size.is_power_of_two() && la & (size - 1) != 0 {
            return Err(Exception::with_error(vector::AC, 0).into());
        }
        Ok(())
    }

    fn access(&self, kind: Kind, write: bool) -> Access {
        Access {
            kind,
            write,
            user: self.cpl == 3 && kind != Kind::System,
        }
    }

    /// How many of `len` bytes at `la` stand before the linear address wraps to 0: at 2^64, or at
    /// 4 GiB outside 64-bit mode. (Descriptor tables of compatibility mode may lie above.)
    fn before_wrap(&self, la: u64, len: usize) -> usize {
        let room = match (1u64 << 32).checked_sub(la) {
            Some(n) if !self.is_64 && n > 0 => n,
            _ if la == 0 => return len,
            _ => la.wrapping_neg(),
        };
        usize::try_from(room).map_or(len, |n| n.min(len))
    }

    /// Reads `buf` at a linear address.
    pub(super) fn load(
        &mut self,
        la: u64,
        buf: &mut [u8],
        kind: Kind,
        write: bool,
    ) -> Result<(), Stop> {
        let access = self.access(kind, write);
        let n = self.before_wrap(la, buf.len());
        let (a, b) = buf.split_at_mut(n);
        self.env.read(la, a, access)?;
        if !b.is_empty() {
            self.env.read(0, b, access)?;
        }
        Ok(())
    }

    /// Writes `data` at a linear address.
    pub(super) fn store(&mut self, la: u64, data: &[u8], kind: Kind) -> Result<(), Stop> {
        let access = self.access(kind, true);
        let n = self.before_wrap(la, data.len());
        let (a, b) = data.split_at(n);
        if b.is_empty() {
            return self.env.write(la, a, access);
        }
        self.env.check_write(la, a.len(), access)?;
        self.env.check_write(0, b.len(), access)?;
        self.env.write(la, a, access)?;
        self.env.write(0, b, access)
    }

    /// Checks that a later [`Ctx::store`] will not fault.
    pub(super) fn check_store(&mut self, la: u64, len: usize, kind: Kind) -> Result<(), Stop> {
        let access = self.access(kind, true);
        let n = self.before_wrap(la, len);
        self.env.check_write(la, n, access)?;
        if n < len {
            self.env.check_write(0, len - n, access)?;
        }
        Ok(())
    }

    /// Reads an integer of `size` bytes at a linear address.
    pub(super) fn load_int(
        &mut self,
        la: u64,
        size: u8,
        kind: Kind,
        write: bool,
    ) -> Result<u64, Stop> {
        let mut b = [0u8; 8];
        let n = usize::from(size).min(8);
        self.load(la, &mut b[..n], kind, write)?;
        Ok(u64::from_le_bytes(b))
    }

    /// Writes an integer of `size` bytes at a linear address.
    pub(super) fn store_int(&mut self, la: u64, size: u8, v: u64, kind: Kind) -> Result<(), Stop> {
        let n = usize::from(size).min(8);
        self.store(la, &v.to_le_bytes()[..n], kind)
    }

    /// Reads `size` bytes at `seg:ea`.
    pub(super) fn read_seg(
        &mut self,
        seg: Seg,
        ea: u64,
        size: u8,
        write: bool,
    ) -> Result<u64, Stop> {
        let la = self.linear(seg, ea, u64::from(size), write)?;
        self.check_alignment(la, u64::from(size))?;
        self.load_int(la, size, Kind::Data, write)
    }

    /// Writes `size` bytes at `seg:ea`.
    pub(super) fn write_seg(&mut self, seg: Seg, ea: u64, size: u8, v: u64) -> Result<(), Stop> {
        let la = self.linear(seg, ea, u64::from(size), true)?;
        self.check_alignment(la, u64::from(size))?;
        self.store_int(la, size, v, Kind::Data)
    }

    /// The linear address of the memory operand, checked for an access of `size` bytes.
    pub(super) fn mem_linear(&self, size: u64, write: bool) -> Result<u64, Stop> {
        let m = self.mem()?;
        let la = self.linear(m.seg, self.ea(&m), size, write)?;
        self.check_alignment(la, size)?;
        Ok(la)
    }

    /// The value of an operand, zero extended (immediates extended as their kind says and cut to
    /// the operand size).
    pub(super) fn get(&mut self, op: Opnd) -> Result<u64, Stop> {
        let size = self.insn.size(op);
        if op.is_rm() || matches!(op, Opnd::Ob | Opnd::Ov) {
            if self.insn.mem.is_some() {
                let la = self.mem_linear(u64::from(size), false)?;
                return self.load_int(la, size, Kind::Data, false);
            }
            return Ok(self.reg(self.insn.rm(), size));
        }
        Ok(match op {
            Opnd::Gb | Opnd::Gv | Opnd::Gy => self.reg(self.insn.reg(), size),
            Opnd::Zb | Opnd::Zv => self.reg(self.insn.opreg(), size),
            Opnd::By => self.reg(self.insn.vex.map_or(0, |v| v.vvvv), size),
            Opnd::Al | Opnd::Ax => self.reg(0, size),
            Opnd::Cl => self.reg(1, 1),
            Opnd::Dx => self.reg(2, 2),
            Opnd::One => 1,
            _ => self.insn.imm.cast_unsigned_() & mask(size),
        })
    }

    /// Sets an operand.
    pub(super) fn put(&mut self, op: Opnd, v: u64) -> Result<(), Stop> {
        let size = self.insn.size(op);
        if op.is_rm() || matches!(op, Opnd::Ob | Opnd::Ov) {
            if self.insn.mem.is_some() {
                let la = self.mem_linear(u64::from(size), true)?;
                return self.store_int(la, size, v, Kind::Data);
            }
            self.set_reg(self.insn.rm(), size, v);
            return Ok(());
        }
        let n = match op {
            Opnd::Gb | Opnd::Gv | Opnd::Gy => self.insn.reg(),
            Opnd::Zb | Opnd::Zv => self.insn.opreg(),
            Opnd::By => self.insn.vex.map_or(0, |v| v.vvvv),
            Opnd::Al | Opnd::Ax => 0,
            _ => return Err(Stop::Unhandleable),
        };
        self.set_reg(n, size, v);
        Ok(())
    }

    /// Reads an operand that [`Ctx::modify`] will write back: write permission is checked first.
    pub(super) fn fetch(&mut self, op: Opnd) -> Result<(u64, Place), Stop> {
        let size = self.insn.size(op);
        if op.is_rm() && self.insn.mem.is_some() {
            let la = self.mem_linear(u64::from(size), true)?;
            return self.fetch_at(la, size);
        }
        let n = match op {
            Opnd::Zv | Opnd::Zb => self.insn.opreg(),
            Opnd::Al | Opnd::Ax => 0,
            Opnd::Gv | Opnd::Gb | Opnd::Gy => self.insn.reg(),
            _ => self.insn.rm(),
        };
        Ok((self.reg(n, size), Place::Reg(n)))
    }

    /// The same, of memory at a linear address.
    pub(super) fn fetch_at(&mut self, la: u64, size: u8) -> Result<(u64, Place), Stop> {
        let v = self.load_int(la, size, Kind::Data, true)?;
        Ok((v, Place::Mem(la, v)))
    }

    /// Writes `new` where `old` stands, atomically. Not where linear addresses wrap.
    pub(super) fn exchange(&mut self, la: u64, old: &[u8], new: &[u8]) -> Result<bool, Stop> {
        if self.before_wrap(la, new.len()) < new.len() {
            return Err(Stop::Unhandleable);
        }
        let access = self.access(Kind::Data, true);
        self.env.cmpxchg(la, old, new, access)
    }

    /// Writes an operand back. With `atomic`, only if memory still holds what was read; else the
    /// instruction must be tried again, and false is returned.
    pub(super) fn modify(
        &mut self,
        place: Place,
        size: u8,
        v: u64,
        atomic: bool,
    ) -> Result<bool, Stop> {
        match place {
            Place::Reg(n) => {
                self.set_reg(n, size, v);
                Ok(true)
            }
            Place::Mem(la, old) if atomic => {
                let n = usize::from(size).min(8);
                let (old, new) = (old.to_le_bytes(), v.to_le_bytes());
                self.exchange(la, &old[..n], &new[..n])
            }
            Place::Mem(la, _) => {
                self.store_int(la, size, v, Kind::Data)?;
                Ok(true)
            }
        }
    }

    /// Replaces the arithmetic flags.
    pub(super) fn set_status(&mut self, f: u64) {
        self.set_flags(super::flags::STATUS, f);
    }

    /// Replaces the flags in `which`.
    pub(super) fn set_flags(&mut self, which: u64, f: u64) {
        self.r.rflags = (self.r.rflags & !which) | (f & which);
    }

    /// Whether a flag is set.
    pub(super) fn flag(&self, f: u64) -> bool {
        self.r.rflags & f != 0
    }
}

/// Whether a segment's type allows the access: what was loaded, and whether for writing.
fn type_allows(s: &Segment, write: bool) -> bool {
    if s.attr.unusable() {
        return false;
    }
    let code = s.attr.typ() & 8 != 0;
    let rw = s.attr.typ() & 2 != 0;
    if write {
        !code && rw
    } else {
        !code || rw
    }
}

/// Whether bytes from `ea` to `ea + last` lie in the segment. Offsets do not wrap, not
/// even in a segment of 4 GiB (where the SDM leaves it open, and AMD faults).
fn within_limit(s: &Segment, ea: u64, last: u64) -> bool {
    let limit = u64::from(s.limit);
    let end = ea.wrapping_add(last);
    let expand_down = s.attr.s() && s.attr.typ() & 0xc == 4;
    if expand_down {
        let top = if s.attr.db() { mask(4) } else { mask(2) };
        return ea > limit && end <= top;
    }
    end <= limit
}

/// The bits of a number read as signed or unsigned, nothing else: what `cast_signed` and
/// `cast_unsigned` of later compilers do.
pub(super) trait Bits {
    /// As an unsigned number.
    fn cast_unsigned_(self) -> u64;
    /// As a signed number.
    fn cast_signed_(self) -> i64;
}

impl Bits for i64 {
    fn cast_unsigned_(self) -> u64 {
        u64::from_ne_bytes(self.to_ne_bytes())
    }
    fn cast_signed_(self) -> i64 {
        self
    }
}

impl Bits for u64 {
    fn cast_unsigned_(self) -> u64 {
        self
    }
    fn cast_signed_(self) -> i64 {
        i64::from_ne_bytes(self.to_ne_bytes())
    }
}
