// SPDX-License-Identifier: GPL-2.0

//! String instructions, alone and repeated.

use super::super::decode::{
    Mnemonic,
    Rep, //
};
use super::super::regs::rflags::{
    DF,
    TF,
    ZF, //
};
use super::super::regs::{
    Gpr,
    Seg, //
};
use super::env::{
    Env,
    Kind,
    Outcome,
    Stop, //
};
use super::flags::{
    self,
    mask, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

/// Iterations that one call carries out at most, so that interrupts do not wait long.
const BATCH: u64 = 1024;

const PAGE: u64 = 4096;

impl<E: Env> Ctx<'_, E> {
    /// MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS.
    pub(super) fn string(&mut self) -> Step {
        let op = self.insn.mnemonic;
        let compares = matches!(op, Mnemonic::Cmps | Mnemonic::Scas);
        if matches!(op, Mnemonic::Ins | Mnemonic::Outs) {
            let size = self.port_size(self.insn.ops[0]);
            self.check_port(self.string_port(), size)?;
        }
        if self.insn.prefixes.rep == Rep::None {
            self.iteration(1)?;
            return Ok(Flow::Next);
        }
        let width = self.insn.addrsize;
        let mut left = self.addr_reg(Gpr::Rcx, width);
        for _ in 0..BATCH {
            if left == 0 {
                return Ok(Flow::Next);
            }
            self.iteration(left)?;
            left = left.wrapping_sub(1);
            self.set_addr_reg(Gpr::Rcx, width, left);
            let until = self.insn.prefixes.rep == Rep::Repne;
            if left == 0 || (compares && self.flag(ZF) == until) {
                return Ok(Flow::Next);
            }
            self.commit();
            if self.flag(TF) || self.env.should_yield() {
                break;
            }
        }
        Ok(Flow::Leave(Outcome::Partial {
            trap: self.flag(TF),
        }))
    }

    fn string_port(&self) -> u16 {
        let [lo, hi, ..] = self.r.gprs.get(Gpr::Rdx).to_le_bytes();
        u16::from_le_bytes([lo, hi])
    }

    /// One iteration, of `left` that are still to do.
    fn iteration(&mut self, left: u64) -> Result<(), Stop> {
        let data = self.insn.ops[0];
        let op = self.insn.mnemonic;
        let size = match op {
            Mnemonic::Ins | Mnemonic::Outs => self.port_size(data),
            _ => self.insn.size(data),
        };
        let width = self.insn.addrsize;
        let source = self.insn.prefixes.seg.unwrap_or(Seg::Ds);
        let si = self.addr_reg(Gpr::Rsi, width);
        let di = self.addr_reg(Gpr::Rdi, width);
        let (mut uses_si, mut uses_di) = (true, true);
        match op {
            Mnemonic::Movs => {
                let v = self.read_seg(source, si, size, false)?;
                self.write_seg(Seg::Es, di, size, v)?;
            }
            Mnemonic::Cmps => {
                // In this order: when both fault, it is the second operand's fault that is seen.
                let b = self.read_seg(Seg::Es, di, size, false)?;
                let a = self.read_seg(source, si, size, false)?;
                self.set_status(flags::sub(a, b, false, size).1);
            }
            Mnemonic::Scas => {
                let b = self.read_seg(Seg::Es, di, size, false)?;
                self.set_status(flags::sub(self.reg(0, size), b, false, size).1);
                uses_si = false;
            }
            Mnemonic::Lods => {
                let v = self.read_seg(source, si, size, false)?;
                self.set_reg(0, size, v);
                uses_di = false;
            }
            Mnemonic::Stos => {
                let v = self.reg(0, size);
                self.write_seg(Seg::Es, di, size, v)?;
                uses_si = false;
            }
            Mnemonic::Ins => {
                self.ins(di, size, left)?;
                uses_si = false;
            }
            _ => {
                let v = self.read_seg(source, si, size, false)?;
                let [b0, b1, b2, b3, ..] = v.to_le_bytes();
                let v = u32::from_le_bytes([b0, b1, b2, b3]);
                self.env.pio_out(self.string_port(), size, v)?;
                uses_di = false;
            }
        }
        let n = u64::from(size);
        let step = if self.flag(DF) { n.wrapping_neg() } else { n };
        if uses_si {
            self.set_addr_reg(Gpr::Rsi, width, si.wrapping_add(step));
        }
        if uses_di {
            self.set_addr_reg(Gpr::Rdi, width, di.wrapping_add(step));
        }
        Ok(())
    }

    /// One INS. What was read from a port is gone if it cannot be written: the destination is
    /// checked first, and for as many items ahead as stand in one page.
    fn ins(&mut self, di: u64, size: u8, left: u64) -> Result<(), Stop> {
        let n = u64::from(size);
        let la = self.linear(Seg::Es, di, n, true)?;
        let mut ahead = 1;
        if self.insn.prefixes.rep != Rep::None && !self.flag(DF) && !self.flag(TF) {
            // n is a power of two.
            let shift = n.trailing_zeros();
            let fit = (PAGE - la % PAGE) >> shift;
            let wrap = mask(self.insn.addrsize).wrapping_sub(di) >> shift;
            let wanted = left.min(fit).min(wrap).clamp(1, BATCH);
            if self.linear(Seg::Es, di, n * wanted, true).is_ok() {
                ahead = wanted;
            }
        }
        self.check_store(la, usize::try_from(n * ahead).unwrap_or(0), Kind::Data)?;
        let hint = u32::try_from(ahead).unwrap_or(1);
        let v = self.env.pio_in(self.string_port(), size, hint)?;
        self.write_seg(Seg::Es, di, size, u64::from(v))
    }
}
