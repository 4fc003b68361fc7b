// SPDX-License-Identifier: GPL-2.0

//! Single bits, bit scans and bit manipulation.

use super::super::decode::{
    Mnemonic,
    Opnd, //
};
use super::super::regs::rflags::{
    CF,
    OF,
    SF,
    ZF, //
};
use super::env::{
    Env,
    Feature,
    Kind,
    Stop, //
};
use super::flags::{
    mask,
    pzs,
    sext,
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
    /// BT, BTS, BTR, BTC. With a bit number in a register, memory is a string of bits that reaches
    /// 2^63 bits to either side.
    pub(super) fn bit_test(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let bits = u64::from(size) * 8;
        let n = self.get(src)?;
        let write = self.insn.mnemonic != Mnemonic::Bt;
        let bit = 1u64 << (n & (bits - 1));
        let (a, place) = match self.insn.mem {
            Some(m) => {
                let mut ea = self.ea(&m);
                if src == Opnd::Gv {
                    let wide = i64::from_ne_bytes(sext(n, size).to_ne_bytes());
                    let step = wide
                        .div_euclid(i64::from(size) * 8)
                        .wrapping_mul(i64::from(size));
                    let step = u64::from_ne_bytes(step.to_ne_bytes());
                    ea = ea.wrapping_add(step) & mask(self.insn.addrsize);
                }
                let la = self.linear(m.seg, ea, u64::from(size), write)?;
                self.check_alignment(la, u64::from(size))?;
                let v = self.load_int(la, size, Kind::Data, write)?;
                (v, Place::Mem(la, v))
            }
            None => (self.reg(self.insn.rm(), size), Place::Reg(self.insn.rm())),
        };
        let r = match self.insn.mnemonic {
            Mnemonic::Bts => a | bit,
            Mnemonic::Btr => a & !bit,
            Mnemonic::Btc => a ^ bit,
            _ => a,
        };
        let written = !write || self.modify(place, size, r, self.atomic)?;
        self.set_flags(CF, when(a & bit != 0, CF));
        Ok(Flow::after(written))
    }

    /// BSF, BSR, TZCNT, LZCNT, POPCNT. Without the extension, TZCNT is BSF and LZCNT is BSR.
    pub(super) fn bit_scan(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let bits = u64::from(size) * 8;
        let v = self.get(src)?;
        let low = u64::from(v.trailing_zeros());
        let high = 63u64.wrapping_sub(u64::from(v.leading_zeros()));
        let op = match self.insn.mnemonic {
            Mnemonic::Tzcnt if !self.env.has(Feature::Bmi1) => Mnemonic::Bsf,
            Mnemonic::Lzcnt if !self.env.has(Feature::Lzcnt) => Mnemonic::Bsr,
            op => op,
        };
        match op {
            Mnemonic::Bsf | Mnemonic::Bsr => {
                // A source of zero leaves the destination as it is, all 64 bits (APM vol. 3; Intel
                // calls it undefined). Flags other than ZF are undefined.
                if v != 0 {
                    self.put(dst, if op == Mnemonic::Bsf { low } else { high })?;
                }
                self.set_flags(ZF, when(v == 0, ZF));
            }
            Mnemonic::Popcnt => {
                self.need(Feature::Popcnt)?;
                self.put(dst, u64::from(v.count_ones()))?;
                self.set_flags(STATUS, when(v == 0, ZF));
            }
            _ => {
                let n = match op {
                    Mnemonic::Tzcnt => low.min(bits),
                    _ if v == 0 => bits,
                    _ => bits - 1 - high,
                };
                self.put(dst, n)?;
                self.set_flags(CF | ZF, when(v == 0, CF) | when(n == 0, ZF));
            }
        }
        Ok(Flow::Next)
    }

    /// The integer instructions with VEX encoding are #UD in real and virtual-8086 mode.
    pub(super) fn need_vex_integer(&self, f: Feature) -> Result<(), Stop> {
        if !self.protected {
            return self.ud();
        }
        self.need(f)
    }

    /// ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, PDEP, PEXT.
    pub(super) fn bmi(&mut self) -> Step {
        use Mnemonic::*;
        let op = self.insn.mnemonic;
        self.need_vex_integer(match op {
            Bzhi | Pdep | Pext => Feature::Bmi2,
            _ => Feature::Bmi1,
        })?;
        let [dst, a, b] = self.insn.ops;
        let size = self.insn.size(dst);
        let a = self.get(a)?;
        let b = if b == Opnd::None { 0 } else { self.get(b)? };
        let bits = u64::from(size) * 8;
        let (r, f) = match op {
            Andn => {
                let r = !a & b & mask(size);
                (r, Some(pzs(r, size) & (SF | ZF)))
            }
            Bextr => {
                let (start, len) = (b & 0xff, b >> 8 & 0xff);
                let r = if start < bits { a >> start } else { 0 };
                let r = if len < 64 { r & ((1 << len) - 1) } else { r };
                (r, Some(when(r == 0, ZF)))
            }
            Blsi => {
                let r = a.wrapping_neg() & a & mask(size);
                (r, Some(pzs(r, size) & (SF | ZF) | when(a != 0, CF)))
            }
            Blsmsk => {
                let r = (a.wrapping_sub(1) ^ a) & mask(size);
                (r, Some(pzs(r, size) & SF | when(a == 0, CF)))
            }
            Blsr => {
                let r = a.wrapping_sub(1) & a & mask(size);
                (r, Some(pzs(r, size) & (SF | ZF) | when(a == 0, CF)))
            }
            Bzhi => {
                let n = b & 0xff;
                let r = if n < bits { a & ((1 << n) - 1) } else { a };
                (r, Some(pzs(r, size) & (SF | ZF) | when(n >= bits, CF)))
            }
            Pdep => (spread(a, b), None),
            _ => (gather(a, b), None),
        };
        self.put(dst, r)?;
        if let Some(f) = f {
            self.set_flags(SF | ZF | CF | OF, f);
        }
        Ok(Flow::Next)
    }
}

/// The low bits of `v`, one to each set bit of `to`.
fn spread(v: u64, mut to: u64) -> u64 {
    let (mut r, mut v) = (0, v);
    while to != 0 {
        let low = to & to.wrapping_neg();
        if v & 1 != 0 {
            r |= low;
        }
        v >>= 1;
        to ^= low;
    }
    r
}

/// The bits of `v` at set bits of `from`, put together at the bottom.
fn gather(v: u64, mut from: u64) -> u64 {
    let (mut r, mut bit) = (0, 1u64);
    while from != 0 {
        let low = from & from.wrapping_neg();
        if v & low != 0 {
            r |= bit;
        }
        bit <<= 1;
        from ^= low;
    }
    r
}
