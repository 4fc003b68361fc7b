// SPDX-License-Identifier: GPL-2.0

//! Segment registers and descriptors (APM vol. 2 4.7 to 4.11).

use super::super::decode::Mnemonic;
use super::super::regs::rflags::ZF;
use super::super::regs::{
    cr4,
    efer,
    vector,
    Exception,
    Seg,
    SegAttr,
    Segment, //
};
use super::env::{
    Access,
    Env,
    Kind,
    Outcome,
    Shadow,
    Stop,
    System, //
};
use super::flags::{
    mask,
    when, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

/// A descriptor as it was read, and where.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    /// The first eight bytes.
    pub(super) raw: u64,
    /// Base bits 63:32 of a system descriptor in long mode.
    pub(super) high: u64,
    /// Linear address.
    pub(super) la: u64,
}

impl Descriptor {
    /// Attributes in the layout of [`SegAttr`].
    pub(super) fn attr(&self) -> SegAttr {
        let [a, b, ..] = (self.raw >> 40).to_le_bytes();
        SegAttr(u32::from(a) | u32::from(b & 0xf0) << 8)
    }

    /// The limit in bytes.
    fn limit(&self) -> u32 {
        let [a, b, ..] = self.raw.to_le_bytes();
        let [c, ..] = (self.raw >> 48 & 15).to_le_bytes();
        let limit = u32::from_le_bytes([a, b, c, 0]);
        if self.attr().granularity() {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56 & 0xff) << 24 | self.high << 32
    }

    /// The register that this descriptor fills.
    pub(super) fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            attr: self.attr(),
            limit: self.limit(),
            base: self.base(),
        }
    }
}

/// The accessed bit of a code or data descriptor's type.
pub(super) const ACCESSED: u8 = 1;
/// The busy bit of a TSS descriptor's type.
pub(super) const BUSY: u8 = 2;

/// A null selector, whatever its RPL.
pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The error code that names a selector.
pub(super) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// The privilege level that a selector requests.
pub(super) fn rpl(selector: u16) -> u8 {
    selector.to_le_bytes()[0] & 3
}

/// What a register holds after a null selector.
pub(super) fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        attr: SegAttr::new(0, false, 0, false, false, false, false, false, true),
        limit: 0,
        base: 0,
    }
}

impl<E: Env> Ctx<'_, E> {
    pub(super) fn long_mode(&self) -> bool {
        self.env.efer() & efer::LMA != 0
    }

    /// An address in a system table, which wraps at 4 GiB outside long mode.
    pub(super) fn system_address(&self, base: u64, offset: u64) -> u64 {
        let width = if self.long_mode() { 8 } else { 4 };
        base.wrapping_add(offset) & mask(width)
    }

    /// Reads the descriptor that a selector names. `None` when it lies outside its table.
    fn try_descriptor(&mut self, selector: u16, wide: bool) -> Result<Option<Descriptor>, Stop> {
        let (base, limit) = if selector & 4 != 0 {
            let ldt = self.env.ldtr();
            if ldt.attr.unusable() || is_null(ldt.selector) {
                return Ok(None);
            }
            (ldt.base, ldt.limit)
        } else {
            let gdt = self.env.gdtr();
            (gdt.base, u32::from(gdt.limit))
        };
        let at = u32::from(selector & !7);
        let len = if wide { 16 } else { 8 };
        if at + len - 1 > limit {
            return Ok(None);
        }
        let la = self.system_address(base, u64::from(at));
        let raw = self.load_int(la, 8, Kind::System, false)?;
        let high = if wide {
            self.load_int(self.system_address(la, 8), 8, Kind::System, false)? & mask(4)
        } else {
            0
        };
        Ok(Some(Descriptor { raw, high, la }))
    }

    /// The same; outside its table is `fault(selector)`.
    pub(super) fn descriptor(
        &mut self,
        selector: u16,
        wide: bool,
        fault: u8,
    ) -> Result<Descriptor, Stop> {
        match self.try_descriptor(selector, wide)? {
            Some(d) => Ok(d),
            None => self.fault(fault, selector),
        }
    }

    pub(super) fn fault<T>(&self, vector: u8, selector: u16) -> Result<T, Stop> {
        Err(Exception::with_error(vector, selector_error(selector)).into())
    }

    /// Where the byte of a descriptor is that has its type.
    pub(super) fn type_address(&self, d: &Descriptor) -> u64 {
        self.system_address(d.la, 5)
    }

    /// Sets bits in a descriptor's type, in memory and in `d`.
    pub(super) fn mark(&mut self, d: &mut Descriptor, bits: u8) -> Result<bool, Stop> {
        let [.., old, _, _] = d.raw.to_le_bytes();
        let new = old | bits;
        if old == new {
            return Ok(true);
        }
        d.raw |= u64::from(bits) << 40;
        let access = Access {
            kind: Kind::System,
            write: true,
            user: false,
        };
        let la = self.type_address(d);
        if self.env.cmpxchg(la, &[old], &[new], access)? {
            return Ok(true);
        }
        // Another processor that loads the same segment has marked it meanwhile; but only one may
        // make a TSS busy.
        let now = self.load_int(la, 1, Kind::System, false)?;
        Ok(bits == ACCESSED && now == u64::from(new))
    }

    /// What a load of `selector` into a data or stack segment register puts there, after all
    /// checks. Nothing but the descriptor's accessed bit changes.
    pub(super) fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<Segment, Stop> {
        self.load_segment_or(seg, selector, vector::GP)
    }

    /// The same; what may not be loaded is `fault(selector)`.
    pub(super) fn load_segment_or(
        &mut self,
        seg: Seg,
        selector: u16,
        fault: u8,
    ) -> Result<Segment, Stop> {
        if !self.protected {
            return Ok(self.real_segment(seg, selector));
        }
        let rpl = rpl(selector);
        if is_null(selector) {
            if seg == Seg::Ss && !(self.is_64 && self.cpl != 3 && rpl == self.cpl) {
                return self.fault(fault, selector);
            }
            let mut s = null_segment(selector);
            if seg == Seg::Ss {
                s.attr = SegAttr(s.attr.0 | u32::from(self.cpl) << 5);
            }
            return Ok(s);
        }
        let mut d = self.descriptor(selector, false, fault)?;
        let a = d.attr();
        let (code, rw) = (a.typ() & 8 != 0, a.typ() & 2 != 0);
        let ok = if seg == Seg::Ss {
            a.s() && !code && rw && rpl == self.cpl && a.dpl() == self.cpl
        } else {
            let conforming = code && a.typ() & 4 != 0;
            a.s() && (!code || rw) && (conforming || a.dpl() >= rpl.max(self.cpl))
        };
        if !ok {
            return self.fault(fault, selector);
        }
        if !a.present() {
            let v = if seg == Seg::Ss {
                vector::SS
            } else {
                vector::NP
            };
            return self.fault(v, selector);
        }
        if !self.mark(&mut d, ACCESSED)? {
            // Whoever changed the descriptor meanwhile: its new value is taken next time.
            return Err(Stop::Again);
        }
        Ok(d.segment(selector))
    }

    /// A segment register as real and virtual-8086 mode load it: base from the selector, the rest
    /// as it was, or as virtual-8086 mode fixes it.
    pub(super) fn real_segment(&self, seg: Seg, selector: u16) -> Segment {
        let old = self.env.segment(seg);
        let base = u64::from(selector) << 4;
        if self.v86 {
            let attr = SegAttr::new(3, true, 3, true, false, false, false, false, false);
            return Segment {
                selector,
                attr,
                limit: 0xffff,
                base,
            };
        }
        let mut attr = old.attr;
        if attr.unusable() {
            attr = SegAttr::new(3, true, 0, true, false, false, false, false, false);
        }
        Segment {
            selector,
            attr,
            limit: old.limit.max(0xffff),
            base,
        }
    }

    /// MOV to and from segment registers, and loads of far pointers.
    pub(super) fn segment_op(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let seg = match self.insn.mnemonic {
            Mnemonic::MovFromSeg => {
                let Some(s) = seg_by_number(self.insn.reg()) else {
                    return self.ud();
                };
                let v = u64::from(self.env.segment(s).selector);
                self.put(dst, v)?;
                return Ok(Flow::Next);
            }
            Mnemonic::MovToSeg => {
                let Some(s) = seg_by_number(self.insn.reg()) else {
                    return self.ud();
                };
                let [lo, hi, ..] = self.get(src)?.to_le_bytes();
                let loaded = self.load_segment(s, u16::from_le_bytes([lo, hi]))?;
                self.env.set_segment(s, &loaded);
                if s == Seg::Ss {
                    self.shadow = Some(Shadow::MovSs);
                }
                return Ok(Flow::Next);
            }
            Mnemonic::Lds => Seg::Ds,
            Mnemonic::Les => Seg::Es,
            Mnemonic::Lfs => Seg::Fs,
            Mnemonic::Lgs => Seg::Gs,
            _ => Seg::Ss,
        };
        let (selector, offset) = self.far_pointer()?;
        let loaded = self.load_segment(seg, selector)?;
        self.put(dst, offset)?;
        self.env.set_segment(seg, &loaded);
        Ok(Flow::Next)
    }

    /// A far pointer in memory: offset of operand size, then the selector. AMD has no 64-bit
    /// offsets here (APM vol. 3 LSS, JMP far).
    pub(super) fn far_pointer(&mut self) -> Result<(u16, u64), Stop> {
        let size = match self.insn.opsize {
            8 if self.is_amd() => 4,
            n => n,
        };
        let m = self.mem()?;
        let ea = self.ea(&m);
        let offset = self.read_seg(m.seg, ea, size, false)?;
        let at = ea.wrapping_add(u64::from(size)) & mask(self.insn.addrsize);
        let [lo, hi, ..] = self.read_seg(m.seg, at, 2, false)?.to_le_bytes();
        Ok((u16::from_le_bytes([lo, hi]), offset))
    }

    /// SLDT, STR, LLDT, LTR, LAR, LSL, VERR, VERW, ARPL.
    pub(super) fn descriptor_op(&mut self) -> Step {
        use Mnemonic::*;
        if !self.protected {
            return self.ud();
        }
        let [dst, src, _] = self.insn.ops;
        match self.insn.mnemonic {
            Sldt | Str => {
                if self.cpl > 0 && self.env.cr(4) & cr4::UMIP != 0 {
                    return self.gp();
                }
                let s = match self.insn.mnemonic {
                    Sldt => self.env.ldtr(),
                    _ => self.env.tr(),
                };
                self.put(dst, u64::from(s.selector))?;
                Ok(Flow::Next)
            }
            Lldt | Ltr => {
                self.supervisor()?;
                let [lo, hi, ..] = self.get(dst)?.to_le_bytes();
                self.load_system_segment(u16::from_le_bytes([lo, hi]))
            }
            Arpl => {
                let want = self.reg(self.insn.reg(), 2) & 3;
                // Memory is written, and must be writable, only when the level changes.
                let v = self.get(dst)?;
                let below = v & 3 < want;
                if below {
                    self.put(dst, v & !3 | want)?;
                }
                self.set_flags(ZF, when(below, ZF));
                Ok(Flow::Next)
            }
            op => {
                let from = if matches!(op, Verr | Verw) { dst } else { src };
                let [lo, hi, ..] = self.get(from)?.to_le_bytes();
                let selector = u16::from_le_bytes([lo, hi]);
                let found = self.visible(op, selector)?;
                if let Some(d) = found {
                    match op {
                        Lar => self.put(dst, d.raw >> 32 & 0xff_ff00)?,
                        Lsl => self.put(dst, u64::from(d.limit()))?,
                        _ => {}
                    }
                }
                self.set_flags(ZF, when(found.is_some(), ZF));
                Ok(Flow::Next)
            }
        }
    }

    /// The descriptor of a selector if LAR, LSL, VERR or VERW may look at it.
    fn visible(&mut self, op: Mnemonic, selector: u16) -> Result<Option<Descriptor>, Stop> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(d) = self.try_descriptor(selector, false)? else {
            return Ok(None);
        };
        let a = d.attr();
        let long = self.long_mode();
        let (code, rw) = (a.typ() & 8 != 0, a.typ() & 2 != 0);
        let kind_ok = match (op, a.s()) {
            (Mnemonic::Verr, s) => s && (!code || rw),
            (Mnemonic::Verw, s) => s && !code && rw,
            (_, true) => true,
            (Mnemonic::Lar, false) if long => matches!(a.typ(), 2 | 9 | 11 | 12),
            (Mnemonic::Lar, false) => matches!(a.typ(), 1..=5 | 9 | 11 | 12),
            (_, false) if long => matches!(a.typ(), 2 | 9 | 11),
            (_, false) => matches!(a.typ(), 1..=3 | 9 | 11),
        };
        let conforming = a.s() && code && a.typ() & 4 != 0;
        let privileged = conforming || a.dpl() >= rpl(selector).max(self.cpl);
        Ok((kind_ok && privileged).then_some(d))
    }

    /// LLDT and LTR, up to the load itself.
    fn load_system_segment(&mut self, selector: u16) -> Step {
        let ltr = self.insn.mnemonic == Mnemonic::Ltr;
        if is_null(selector) {
            if ltr {
                return self.gp();
            }
            return Ok(Flow::Leave(Outcome::System(System::Lldt(null_segment(
                selector,
            )))));
        }
        if selector & 4 != 0 {
            return self.fault(vector::GP, selector);
        }
        let mut d = self.descriptor(selector, self.long_mode(), vector::GP)?;
        let a = d.attr();
        let typ_ok = match (ltr, a.typ()) {
            (true, 9) => true,
            (true, 1) => !self.long_mode(),
            (true, _) => false,
            (false, t) => t == 2,
        };
        if a.s() || !typ_ok {
            return self.fault(vector::GP, selector);
        }
        if !a.present() {
            return self.fault(vector::NP, selector);
        }
        if self.long_mode() && !self.canonical(d.base()) {
            return self.fault(vector::GP, selector);
        }
        if !ltr {
            return Ok(Flow::Leave(Outcome::System(System::Lldt(
                d.segment(selector),
            ))));
        }
        if !self.mark(&mut d, BUSY)? {
            return Ok(Flow::Leave(Outcome::Retry));
        }
        Ok(Flow::Leave(Outcome::System(System::Ltr(
            d.segment(selector),
        ))))
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    pub(super) fn base_op(&mut self) -> Step {
        use Mnemonic::*;
        if !self.is_64 || self.env.cr(4) & cr4::FSGSBASE == 0 {
            return self.ud();
        }
        let op = self.insn.mnemonic;
        let reg = self.insn.ops[0];
        let seg = if matches!(op, Rdfsbase | Wrfsbase) {
            Seg::Fs
        } else {
            Seg::Gs
        };
        let mut s = self.env.segment(seg);
        if matches!(op, Rdfsbase | Rdgsbase) {
            self.put(reg, s.base)?;
            return Ok(Flow::Next);
        }
        s.base = self.get(reg)?;
        if !self.canonical(s.base) {
            return self.gp();
        }
        self.env.set_segment(seg, &s);
        Ok(Flow::Next)
    }
}

/// The segment register that ModRM.reg names; REX.R does not count.
fn seg_by_number(n: u8) -> Option<Seg> {
    Some(match n & 7 {
        0 => Seg::Es,
        1 => Seg::Cs,
        2 => Seg::Ss,
        3 => Seg::Ds,
        4 => Seg::Fs,
        5 => Seg::Gs,
        _ => return None,
    })
}
