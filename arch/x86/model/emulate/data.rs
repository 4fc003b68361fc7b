// SPDX-License-Identifier: GPL-2.0

//! Moves, extensions, conditions and single flags.

use super::super::decode::Mnemonic;
use super::super::regs::rflags::{
    AF,
    CF,
    DF,
    PF,
    SF,
    ZF, //
};
use super::super::regs::{
    Gpr,
    Seg, //
};
use super::env::{
    Env,
    Feature, //
};
use super::flags::{
    condition,
    mask,
    sext,
    sign_bit, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// MOV, MOVNTI.
    pub(super) fn mov(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let v = self.get(src)?;
        self.put(dst, v)?;
        Ok(Flow::Next)
    }

    /// MOVZX, MOVSX, MOVSXD.
    pub(super) fn mov_extended(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let v = self.get(src)?;
        let v = match self.insn.mnemonic {
            Mnemonic::Movzx => v,
            _ => sext(v, self.insn.size(src)),
        };
        self.put(dst, v)?;
        Ok(Flow::Next)
    }

    /// MOVBE and BSWAP. BSWAP of a 16-bit register is undefined; processors clear it.
    pub(super) fn byte_swap(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let size = self.insn.size(dst);
        let shift = 64 - 8 * u32::from(size);
        if self.insn.mnemonic == Mnemonic::Movbe {
            self.need(Feature::Movbe)?;
            let v = self.get(src)?.swap_bytes() >> shift;
            self.put(dst, v)?;
        } else {
            let v = self.get(dst)?;
            let v = if size == 2 {
                0
            } else {
                v.swap_bytes() >> shift
            };
            self.put(dst, v)?;
        }
        Ok(Flow::Next)
    }

    /// LEA: neither the segment nor the width of the address matters.
    pub(super) fn lea(&mut self) -> Step {
        let m = self.mem()?;
        let v = self.ea(&m);
        self.put(self.insn.ops[0], v)?;
        Ok(Flow::Next)
    }

    /// SETcc, and CMOVcc, which reads its source whatever the condition.
    pub(super) fn conditional(&mut self) -> Step {
        let [dst, src, _] = self.insn.ops;
        let holds = condition(self.insn.cond(), self.r.rflags);
        if self.insn.mnemonic == Mnemonic::Set {
            self.put(dst, u64::from(holds))?;
            return Ok(Flow::Next);
        }
        let v = self.get(src)?;
        let old = self.get(dst)?;
        self.put(dst, if holds { v } else { old })?;
        Ok(Flow::Next)
    }

    /// CBW, CWDE, CDQE; CWD, CDQ, CQO.
    pub(super) fn sign_extend(&mut self) -> Step {
        let size = self.insn.opsize;
        if self.insn.mnemonic == Mnemonic::Cbw {
            let half = size / 2;
            let v = sext(self.r.gprs.get(Gpr::Rax), half);
            self.set_reg(0, size, v);
        } else {
            let negative = self.reg(0, size) & sign_bit(size) != 0;
            self.set_reg(2, size, if negative { mask(size) } else { 0 });
        }
        Ok(Flow::Next)
    }

    /// LAHF, SAHF, SALC, CLC, STC, CMC, CLD, STD.
    pub(super) fn flag_op(&mut self) -> Step {
        const LOW: u64 = SF | ZF | AF | PF | CF;
        match self.insn.mnemonic {
            Mnemonic::Lahf => {
                let rax = self.r.gprs.get(Gpr::Rax);
                let ah = (self.r.rflags & LOW | 2) << 8;
                self.r.gprs.set(Gpr::Rax, rax & !0xff00 | ah);
            }
            Mnemonic::Sahf => {
                let ah = self.r.gprs.get(Gpr::Rax) >> 8;
                self.set_flags(LOW, ah);
            }
            Mnemonic::Salc => {
                let v = if self.flag(CF) { 0xff } else { 0 };
                self.set_reg(0, 1, v);
            }
            Mnemonic::Clc => self.set_flags(CF, 0),
            Mnemonic::Stc => self.set_flags(CF, CF),
            Mnemonic::Cmc => self.r.rflags ^= CF,
            Mnemonic::Cld => self.set_flags(DF, 0),
            _ => self.set_flags(DF, DF),
        }
        Ok(Flow::Next)
    }

    /// XLAT.
    pub(super) fn xlat(&mut self) -> Step {
        let size = self.insn.addrsize;
        let seg = self.insn.prefixes.seg.unwrap_or(Seg::Ds);
        let al = self.r.gprs.get(Gpr::Rax) & 0xff;
        let ea = self.addr_reg(Gpr::Rbx, size).wrapping_add(al) & mask(size);
        let v = self.read_seg(seg, ea, 1, false)?;
        self.set_reg(0, 1, v);
        Ok(Flow::Next)
    }
}
