// SPDX-License-Identifier: GPL-2.0

//! Multiplication and division.

use super::super::decode::{
    Mnemonic,
    Opnd, //
};
use super::super::regs::rflags::{
    CF,
    OF,
    PF,
    SF, //
};
use super::super::regs::{
    vector,
    Exception, //
};
use super::env::{
    Env,
    Feature,
    Stop, //
};
use super::flags::{
    mask,
    pzs,
    sext,
    sign_bit,
    when, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

/// The two halves of a product of operands of `size` bytes.
fn product(a: u64, b: u64, size: u8, signed: bool) -> (u64, u64) {
    let wide = if signed {
        let s = |v| i128::from(i64::from_ne_bytes(sext(v, size).to_ne_bytes()));
        u128::from_ne_bytes(s(a).wrapping_mul(s(b)).to_ne_bytes())
    } else {
        u128::from(a).wrapping_mul(u128::from(b))
    };
    let bits = u32::from(size) * 8;
    (
        low_half(wide) & mask(size),
        low_half(wide >> bits) & mask(size),
    )
}

/// The low 64 bits.
fn low_half(v: u128) -> u64 {
    let b = v.to_le_bytes();
    let mut low = [0u8; 8];
    low.copy_from_slice(&b[..8]);
    u64::from_le_bytes(low)
}

/// Divides the number `hi:lo`, halves of 64 bits, by `d`. `None` when the quotient has more than
/// 64 bits, or `d` is 0. By hand, since kernels have no 128-bit division.
fn divide_wide(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    if hi >= d {
        return None;
    }
    if hi == 0 {
        return Some((lo / d, lo % d));
    }
    let (mut rem, mut q) = (hi, lo);
    for _ in 0..64 {
        let carry = rem >> 63 != 0;
        rem = rem << 1 | q >> 63;
        q <<= 1;
        if carry || rem >= d {
            rem = rem.wrapping_sub(d);
            q |= 1;
        }
    }
    Some((q, rem))
}

/// As [`divide_wide`], for two's complement numbers.
fn divide_wide_signed(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    let negative = |v: u64| v >> 63 != 0;
    let (n_neg, d_neg) = (negative(hi), negative(d));
    let (hi, lo) = if n_neg {
        let lo = lo.wrapping_neg();
        (if lo == 0 { hi.wrapping_neg() } else { !hi }, lo)
    } else {
        (hi, lo)
    };
    let (q, r) = divide_wide(hi, lo, if d_neg { d.wrapping_neg() } else { d })?;
    let q_neg = n_neg != d_neg;
    let limit = if q_neg { 1 << 63 } else { (1 << 63) - 1 };
    if q > limit {
        return None;
    }
    let signed = |v: u64, neg| if neg { v.wrapping_neg() } else { v };
    Some((signed(q, q_neg), signed(r, n_neg)))
}

impl<E: Env> Ctx<'_, E> {
    /// MUL, IMUL, MULX. CF and OF say whether the upper half matters; the other flags are
    /// undefined, SF and PF follow the result, ZF and AF stay.
    pub(super) fn multiply(&mut self) -> Step {
        let [dst, src, by] = self.insn.ops;
        match self.insn.mnemonic {
            Mnemonic::Mulx => {
                self.need_vex_integer(Feature::Bmi2)?;
                let size = self.insn.size(dst);
                let b = self.get(by)?;
                let (lo, hi) = product(self.reg(2, size), b, size, false);
                // When both destinations are one register, it ends with the upper half.
                self.put(src, lo)?;
                self.put(dst, hi)?;
            }
            Mnemonic::Imul => {
                let size = self.insn.opsize;
                let b = self.get(if by == Opnd::None { dst } else { by })?;
                let a = self.get(src)?;
                let (lo, hi) = product(a, b, size, true);
                self.put(dst, lo)?;
                let over = hi != when(lo & sign_bit(size) != 0, mask(size));
                self.mul_flags(lo, size, over);
            }
            op => {
                let size = self.insn.size(dst);
                let signed = op == Mnemonic::Imul1;
                let b = self.get(dst)?;
                let (lo, hi) = product(self.reg(0, size), b, size, signed);
                if size == 1 {
                    self.set_reg(0, 2, lo | hi << 8);
                } else {
                    self.set_reg(0, size, lo);
                    self.set_reg(2, size, hi);
                }
                let sign = when(signed && lo & sign_bit(size) != 0, mask(size));
                self.mul_flags(lo, size, hi != sign);
            }
        }
        Ok(Flow::Next)
    }

    fn mul_flags(&mut self, lo: u64, size: u8, over: bool) {
        self.set_flags(CF | OF, when(over, CF | OF));
        self.set_flags(SF | PF, pzs(lo, size));
    }

    /// DIV and IDIV. All flags are undefined; they stay.
    pub(super) fn divide(&mut self) -> Step {
        let src = self.insn.ops[0];
        let size = self.insn.size(src);
        let signed = self.insn.mnemonic == Mnemonic::Idiv;
        let d = self.get(src)?;
        let error: Stop = Exception::plain(vector::DE).into();
        let (hi, lo) = if size == 1 {
            (0, self.reg(0, 2))
        } else {
            (self.reg(2, size), self.reg(0, size))
        };
        // The dividend, of twice the size, as two halves of 64 bits.
        let (hi, lo) = match size {
            8 => (hi, lo),
            1 => (0, lo),
            _ => (0, hi << (8 * u32::from(size)) | lo),
        };
        let twice = if size == 8 { 8 } else { size * 2 };
        let (q, r) = if signed {
            let (hi, lo) = if size == 8 {
                (hi, lo)
            } else {
                let lo = sext(lo, twice);
                (if lo >> 63 != 0 { u64::MAX } else { 0 }, lo)
            };
            divide_wide_signed(hi, lo, sext(d, size)).ok_or(error)?
        } else {
            divide_wide(hi, lo, d).ok_or(error)?
        };
        let fits = if signed {
            sext(q, size) == q
        } else {
            q & !mask(size) == 0
        };
        if !fits {
            return Err(error);
        }
        if size == 1 {
            self.set_reg(0, 2, (q & 0xff) | (r & 0xff) << 8);
        } else {
            self.set_reg(0, size, q);
            self.set_reg(2, size, r);
        }
        Ok(Flow::Next)
    }
}
