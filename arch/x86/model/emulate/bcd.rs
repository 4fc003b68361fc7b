// SPDX-License-Identifier: GPL-2.0

//! Decimal arithmetic (APM vol. 3: AAA and its fellows).

use super::super::decode::Mnemonic;
use super::super::regs::rflags::{
    AF,
    CF, //
};
use super::super::regs::{
    vector,
    Exception, //
};
use super::env::Env;
use super::flags::{
    pzs,
    when,
    STATUS, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// AAA, AAS, DAA, DAS, AAM, AAD.
    pub(super) fn bcd(&mut self) -> Step {
        let ax = self.reg(0, 2);
        let al = ax & 0xff;
        let low = al & 15 > 9 || self.flag(AF);
        match self.insn.mnemonic {
            Mnemonic::Aaa | Mnemonic::Aas => {
                let ax = match (low, self.insn.mnemonic) {
                    (false, _) => ax,
                    (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
                    // The borrow of AL reaches AH, before AH is decremented.
                    (true, _) => ax.wrapping_sub(0x106),
                };
                let ax = ax & 0xff0f;
                self.set_reg(0, 2, ax);
                self.set_status(pzs(ax, 1) | when(low, AF | CF));
            }
            Mnemonic::Daa | Mnemonic::Das => {
                let high = al > 0x99 || self.flag(CF);
                let fix = when(low, 6) + when(high, 0x60);
                let r = if self.insn.mnemonic == Mnemonic::Daa {
                    al.wrapping_add(fix)
                } else {
                    al.wrapping_sub(fix)
                } & 0xff;
                // DAS: the borrow of the lower digit counts too.
                let borrow = self.insn.mnemonic == Mnemonic::Das && low && al < 6;
                self.set_reg(0, 1, r);
                self.set_status(pzs(r, 1) | when(low, AF) | when(high || borrow, CF));
            }
            Mnemonic::Aam => {
                let base = self.imm() & 0xff;
                if base == 0 {
                    return Err(Exception::plain(vector::DE).into());
                }
                let r = (al / base) << 8 | (al % base);
                self.set_reg(0, 2, r);
                self.set_flags(STATUS, pzs(r, 1));
            }
            _ => {
                let ah = ax >> 8;
                let r = al.wrapping_add(ah.wrapping_mul(self.imm() & 0xff)) & 0xff;
                self.set_reg(0, 2, r);
                self.set_flags(STATUS, pzs(r, 1));
            }
        }
        Ok(Flow::Next)
    }
}
