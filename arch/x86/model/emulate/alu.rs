// SPDX-License-Identifier: GPL-2.0

//! Arithmetic and logic with two operands, and the exchanges.

use super::super::decode::Mnemonic;
use super::super::regs::rflags::{
    CF,
    OF,
    ZF, //
};
use super::super::regs::Exception;
use super::env::{
    Env,
    Feature,
    Kind,
    Outcome, //
};
use super::flags::{
    self,
    when,
    STATUS, //
};
use super::operand::Place;
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST.
    pub(super) fn alu(&mut self) -> Step {
        use Mnemonic::*;
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let op = self.insn.mnemonic;
        if matches!(op, Cmp | Test) {
            let a = self.get(dst)?;
            let b = self.get(src)?;
            let f = if op == Cmp {
                flags::sub(a, b, false, size).1
            } else {
                flags::logic(a & b, size)
            };
            self.set_status(f);
            return Ok(Flow::Next);
        }
        let b = self.get(src)?;
        let (a, place) = self.fetch(dst)?;
        let cf = self.flag(CF);
        let (r, f) = match op {
            Add => flags::add(a, b, false, size),
            Adc => flags::add(a, b, cf, size),
            Sub => flags::sub(a, b, false, size),
            Sbb => flags::sub(a, b, cf, size),
            And => (a & b, flags::logic(a & b, size)),
            Or => (a | b, flags::logic(a | b, size)),
            _ => (a ^ b, flags::logic(a ^ b, size)),
        };
        let written = self.modify(place, size, r, self.atomic)?;
        self.set_status(f);
        Ok(Flow::after(written))
    }

    /// INC, DEC, NEG, NOT. INC and DEC keep the carry, NOT all flags.
    pub(super) fn unary(&mut self) -> Step {
        let dst = self.insn.ops[0];
        let size = self.insn.size(dst);
        let (a, place) = self.fetch(dst)?;
        let ((r, f), which) = match self.insn.mnemonic {
            Mnemonic::Inc => (flags::add(a, 1, false, size), STATUS & !CF),
            Mnemonic::Dec => (flags::sub(a, 1, false, size), STATUS & !CF),
            Mnemonic::Neg => (flags::sub(0, a, false, size), STATUS),
            _ => ((!a, 0), 0),
        };
        let written = self.modify(place, size, r, self.atomic)?;
        self.set_flags(which, f);
        Ok(Flow::after(written))
    }

    /// ADCX and ADOX: addition with one flag as carry in and out.
    pub(super) fn add_extended(&mut self) -> Step {
        self.need(Feature::Adx)?;
        let flag = if self.insn.mnemonic == Mnemonic::Adcx {
            CF
        } else {
            OF
        };
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let b = self.get(src)?;
        let a = self.get(dst)?;
        let (r, f) = flags::add(a, b, self.flag(flag), size);
        self.put(dst, r)?;
        self.set_flags(flag, when(f & CF != 0, flag));
        Ok(Flow::Next)
    }

    /// CMPXCHG. Memory is written either way.
    pub(super) fn cmpxchg(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let new = self.get(src)?;
        let acc = self.reg(0, size);
        let (old, place) = self.fetch(dst)?;
        let (_, f) = flags::sub(acc, old, false, size);
        let equal = f & ZF != 0;
        // A register is not written when it differs: the upper half of its 64 bits stays.
        let written = match place {
            Place::Reg(_) if !equal => true,
            _ => self.modify(place, size, if equal { new } else { old }, self.atomic)?,
        };
        if !equal {
            self.set_reg(0, size, old);
        }
        self.set_status(f);
        Ok(Flow::after(written))
    }

    /// CMPXCHG8B and CMPXCHG16B.
    pub(super) fn cmpxchg8b(&mut self) -> Step {
        let half: u8 = if self.insn.opsize == 8 { 8 } else { 4 };
        let n = usize::from(half);
        if half == 8 {
            self.need(Feature::Cx16)?;
        }
        let m = self.mem()?;
        let la = self.linear(m.seg, self.ea(&m), u64::from(half) * 2, true)?;
        if half == 8 && la & 15 != 0 {
            return Err(Exception::gp(0).into());
        }
        self.check_alignment(la, u64::from(half) * 2)?;
        let mut old = [0u8; 16];
        self.load(la, &mut old[..2 * n], Kind::Data, true)?;
        let pair = |c: &Self, hi: u8, lo: u8| {
            let (hi, lo) = (c.reg(hi, half).to_le_bytes(), c.reg(lo, half).to_le_bytes());
            let mut v = [0u8; 16];
            v[..n].copy_from_slice(&lo[..n]);
            v[n..2 * n].copy_from_slice(&hi[..n]);
            v
        };
        let equal = pair(self, 2, 0) == old;
        let new = if equal { pair(self, 1, 3) } else { old };
        if self.atomic {
            if !self.exchange(la, &old[..2 * n], &new[..2 * n])? {
                return Ok(Flow::Leave(Outcome::Retry));
            }
        } else {
            self.store(la, &new[..2 * n], Kind::Data)?;
        }
        if !equal {
            let (mut lo, mut hi) = ([0u8; 8], [0u8; 8]);
            lo[..n].copy_from_slice(&old[..n]);
            hi[..n].copy_from_slice(&old[n..2 * n]);
            self.set_reg(0, half, u64::from_le_bytes(lo));
            self.set_reg(2, half, u64::from_le_bytes(hi));
        }
        self.set_flags(ZF, when(equal, ZF));
        Ok(Flow::Next)
    }

    /// XADD.
    pub(super) fn xadd(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let b = self.get(src)?;
        let (a, place) = self.fetch(dst)?;
        let (r, f) = flags::add(a, b, false, size);
        // When both are one register it ends with the sum.
        if let Place::Reg(_) = place {
            self.put(src, a)?;
        }
        let written = self.modify(place, size, r, self.atomic)?;
        if let Place::Mem(..) = place {
            self.put(src, a)?;
        }
        self.set_status(f);
        Ok(Flow::after(written))
    }

    /// XCHG; with memory always atomic.
    pub(super) fn xchg(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let b = self.get(src)?;
        let (a, place) = self.fetch(dst)?;
        let written = self.modify(place, size, b, true)?;
        self.put(src, a)?;
        Ok(Flow::after(written))
    }
}
