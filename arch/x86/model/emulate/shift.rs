// SPDX-License-Identifier: GPL-2.0

//! Shifts and rotates.

use super::super::decode::{
    Mnemonic,
    Opnd, //
};
use super::env::{
    Env,
    Feature,
    Stop, //
};
use super::flags::{
    self,
    sext,
    Shift, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// A count operand, masked to 5 bits, or 6 for 64-bit operands.
    fn count(&mut self, op: Opnd, size: u8) -> Result<u8, Stop> {
        let n = self.get(op)?.to_le_bytes()[0];
        Ok(n & if size == 8 { 63 } else { 31 })
    }

    /// ROL, ROR, RCL, RCR, SHL, SHR, SAR.
    pub(super) fn shift(&mut self) -> Step {
        let [dst, by, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let count = self.count(by, size)?;
        let (a, place) = self.fetch(dst)?;
        let op = match self.insn.mnemonic {
            Mnemonic::Rol => Shift::Rol,
            Mnemonic::Ror => Shift::Ror,
            Mnemonic::Rcl => Shift::Rcl,
            Mnemonic::Rcr => Shift::Rcr,
            Mnemonic::Shl => Shift::Shl,
            Mnemonic::Shr => Shift::Shr,
            _ => Shift::Sar,
        };
        let (r, f) = flags::shift(op, a, count, size, self.r.rflags);
        let written = self.modify(place, size, r, false)?;
        self.r.rflags = f;
        Ok(Flow::after(written))
    }

    /// SHLD and SHRD.
    pub(super) fn double_shift(&mut self) -> Step {
        let [dst, src, by] = self.insn.ops;
        let size = self.insn.size(dst);
        let count = self.count(by, size)?;
        let b = self.get(src)?;
        let (a, place) = self.fetch(dst)?;
        let left = self.insn.mnemonic == Mnemonic::Shld;
        let (r, f) = flags::double_shift(left, a, b, count, size, self.r.rflags);
        let written = self.modify(place, size, r, false)?;
        self.r.rflags = f;
        Ok(Flow::after(written))
    }

    /// SHLX, SHRX, SARX, RORX: no flags.
    pub(super) fn shift_x(&mut self) -> Step {
        self.need_vex_integer(Feature::Bmi2)?;
        let [dst, src, by] = self.insn.ops;
        let size = self.insn.size(dst);
        let n = u32::from(self.count(by, size)?);
        let a = self.get(src)?;
        let r = match self.insn.mnemonic {
            Mnemonic::Shlx => a << n,
            Mnemonic::Shrx => a >> n,
            Mnemonic::Sarx => {
                let wide = i64::from_ne_bytes(sext(a, size).to_ne_bytes());
                u64::from_ne_bytes((wide >> n).to_ne_bytes())
            }
            _ if n == 0 => a,
            _ => a >> n | a << (8 * u32::from(size) - n),
        };
        self.put(dst, r)?;
        Ok(Flow::Next)
    }
}
