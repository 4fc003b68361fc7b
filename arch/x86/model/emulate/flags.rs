// SPDX-License-Identifier: GPL-2.0

//! Arithmetic with flags (APM vol. 1 3.1.4; vol. 3, each instruction). Operands are zero extended,
//! sizes in bytes. Where a manual leaves a flag undefined, the value here is one that hardware
//! gives too.

use super::super::regs::rflags::{
    AF,
    CF,
    OF,
    PF,
    SF,
    ZF, //
};

/// The flags of arithmetic.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// All bits of an operand.
#[inline]
pub const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The sign bit of an operand.
#[inline]
pub const fn sign_bit(size: u8) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

/// Sign extends an operand to 64 bits.
#[inline]
pub const fn sext(v: u64, size: u8) -> u64 {
    let v = v & mask(size);
    if v & sign_bit(size) != 0 {
        v | !mask(size)
    } else {
        v
    }
}

/// `flag` if `cond`.
#[inline]
pub const fn when(cond: bool, flag: u64) -> u64 {
    if cond {
        flag
    } else {
        0
    }
}

/// PF, ZF and SF of a result.
#[inline]
pub const fn pzs(r: u64, size: u8) -> u64 {
    let r = r & mask(size);
    when((r & 0xff).count_ones() % 2 == 0, PF)
        | when(r == 0, ZF)
        | when(r & sign_bit(size) != 0, SF)
}

/// `a + b + carry`: the sum and all flags.
#[inline]
pub const fn add(a: u64, b: u64, carry: bool, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let r = a.wrapping_add(b).wrapping_add(carry as u64) & mask(size);
    // The carry out of each bit.
    let c = (a & b) | ((a | b) & !r);
    let f = pzs(r, size)
        | when(c & sign_bit(size) != 0, CF)
        | when(c & 8 != 0, AF)
        | when((a ^ r) & (b ^ r) & sign_bit(size) != 0, OF);
    (r, f)
}

/// `a - b - borrow`: the difference and all flags.
#[inline]
pub const fn sub(a: u64, b: u64, borrow: bool, size: u8) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let r = a.wrapping_sub(b).wrapping_sub(borrow as u64) & mask(size);
    // The borrow out of each bit.
    let c = (!a & b) | ((!a | b) & r);
    let f = pzs(r, size)
        | when(c & sign_bit(size) != 0, CF)
        | when(c & 8 != 0, AF)
        | when((a ^ b) & (a ^ r) & sign_bit(size) != 0, OF);
    (r, f)
}

/// Flags of AND, OR, XOR, TEST: carry and overflow clear; AF is undefined and cleared.
#[inline]
pub const fn logic(r: u64, size: u8) -> u64 {
    pzs(r, size)
}

/// Whether condition `cc` (Jcc's opcode bits 3:0) holds.
#[inline]
pub const fn condition(cc: u8, f: u64) -> bool {
    let r = match cc >> 1 & 7 {
        0 => f & OF != 0,
        1 => f & CF != 0,
        2 => f & ZF != 0,
        3 => f & (CF | ZF) != 0,
        4 => f & SF != 0,
        5 => f & PF != 0,
        6 => (f & SF != 0) != (f & OF != 0),
        _ => f & ZF != 0 || (f & SF != 0) != (f & OF != 0),
    };
    r != (cc & 1 != 0)
}

/// Rotates and shifts by a count already masked to 5 or 6 bits; 0 changes nothing. `f` are the flags
/// before; the result has those after. OF is defined for a count of 1 only, AF not at all, CF of
/// shifts only up to the operand's width.
pub fn shift(op: Shift, a: u64, count: u8, size: u8, f: u64) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let m = mask(size);
    let sign = sign_bit(size);
    let a = a & m;
    let n = u32::from(count);
    if n == 0 {
        return (a, f);
    }
    match op {
        Shift::Rol => {
            let n = n % bits;
            let r = if n == 0 {
                a
            } else {
                (a << n | a >> (bits - n)) & m
            };
            let cf = r & 1 != 0;
            (r, rotated(f, cf, (r & sign != 0) != cf))
        }
        Shift::Ror => {
            let n = n % bits;
            let r = if n == 0 {
                a
            } else {
                (a >> n | a << (bits - n)) & m
            };
            let cf = r & sign != 0;
            (r, rotated(f, cf, cf != (r & sign >> 1 != 0)))
        }
        Shift::Rcl => {
            let (mut r, mut cf) = (a, f & CF != 0);
            for _ in 0..n % (bits + 1) {
                let out = r & sign != 0;
                r = (r << 1 | u64::from(cf)) & m;
                cf = out;
            }
            (r, rotated(f, cf, (r & sign != 0) != cf))
        }
        Shift::Rcr => {
            let (mut r, mut cf) = (a, f & CF != 0);
            for _ in 0..n % (bits + 1) {
                let out = r & 1 != 0;
                r = r >> 1 | when(cf, sign);
                cf = out;
            }
            (r, rotated(f, cf, (r & sign != 0) != (r & sign >> 1 != 0)))
        }
        Shift::Shl => {
            let r = if n < bits { a << n & m } else { 0 };
            let cf = n <= bits && a >> (bits - n) & 1 != 0;
            (r, shifted(f, r, size, cf, (r & sign != 0) != cf))
        }
        Shift::Shr => {
            let r = if n < bits { a >> n } else { 0 };
            let cf = n <= bits && a >> (n - 1) & 1 != 0;
            (r, shifted(f, r, size, cf, (r << 1 ^ r) & sign != 0))
        }
        Shift::Sar => {
            let wide = i64::from_ne_bytes(sext(a, size).to_ne_bytes());
            let r = u64::from_ne_bytes((wide >> n.min(63)).to_ne_bytes()) & m;
            let cf = wide >> (n - 1).min(63) & 1 != 0;
            (r, shifted(f, r, size, cf, false))
        }
    }
}

/// SHLD (`left`) and SHRD: `a` shifted, bits of `b` moving in. For 16-bit operands a
/// count above 16 is undefined; then the operands count as one number turned round.
pub fn double_shift(left: bool, a: u64, b: u64, count: u8, size: u8, f: u64) -> (u64, u64) {
    if count == 0 {
        return (a, f);
    }
    let bits = u32::from(size) * 8;
    let m = mask(size);
    let sign = sign_bit(size);
    let (a, b) = (a & m, b & m);
    let (mut r, mut cf, mut rest) = (a, false, b);
    for _ in 0..count {
        if left {
            cf = r & sign != 0;
            r = (r << 1 | rest >> (bits - 1)) & m;
            rest = (rest << 1 | rest >> (bits - 1)) & m;
        } else {
            cf = r & 1 != 0;
            r = r >> 1 | when(rest & 1 != 0, sign);
            rest = rest >> 1 | when(rest & 1 != 0, sign);
        }
    }
    let of = (r ^ a) & sign != 0;
    (r, shifted(f, r, size, cf, of))
}

fn rotated(f: u64, cf: bool, of: bool) -> u64 {
    (f & !(CF | OF)) | when(cf, CF) | when(of, OF)
}

fn shifted(f: u64, r: u64, size: u8, cf: bool, of: bool) -> u64 {
    (f & !STATUS) | pzs(r, size) | when(cf, CF) | when(of, OF)
}

/// The shifts and rotates, in the order of ModRM.reg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}
