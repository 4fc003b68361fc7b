// SPDX-License-Identifier: GPL-2.0

//! Near transfers, BOUND and software interrupts.

use super::super::decode::Mnemonic;
use super::super::regs::rflags;
use super::super::regs::{
    vector,
    Exception,
    Gpr,
    Seg, //
};
use super::env::{
    Env,
    Kind,
    Outcome,
    Stop,
    System, //
};
use super::flags::{
    condition,
    mask,
    sext, //
};
use super::operand::Bits;
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// Makes `target`, cut to `size` bytes, the next RIP, unless it lies outside CS.
    pub(super) fn jump(&mut self, target: u64, size: u8) -> Step {
        let target = target & mask(size);
        let bad = if self.is_64 {
            !self.canonical(target)
        } else {
            target > u64::from(self.env.segment(Seg::Cs).limit)
        };
        if bad {
            return self.gp();
        }
        self.r.rip = target;
        Ok(Flow::Jump)
    }

    fn relative(&mut self) -> Step {
        let target = self.next.wrapping_add(self.imm());
        self.jump(target, self.insn.opsize)
    }

    /// Jcc, JCXZ, LOOPcc, and near JMP, CALL, RET.
    pub(super) fn near(&mut self) -> Step {
        let size = self.insn.opsize;
        let op = self.insn.ops[0];
        let f = self.r.rflags;
        match self.insn.mnemonic {
            Mnemonic::Jcc => {
                if condition(self.insn.cond(), f) {
                    return self.relative();
                }
                Ok(Flow::Next)
            }
            Mnemonic::Jcxz => {
                if self.addr_reg(Gpr::Rcx, self.insn.addrsize) == 0 {
                    return self.relative();
                }
                Ok(Flow::Next)
            }
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
                let width = self.insn.addrsize;
                let n = self.addr_reg(Gpr::Rcx, width).wrapping_sub(1) & mask(width);
                self.set_addr_reg(Gpr::Rcx, width, n);
                let zf = f & rflags::ZF != 0;
                let on = match self.insn.mnemonic {
                    Mnemonic::Loop => true,
                    Mnemonic::Loope => zf,
                    _ => !zf,
                };
                if n != 0 && on {
                    return self.relative();
                }
                Ok(Flow::Next)
            }
            Mnemonic::JmpRel => self.relative(),
            Mnemonic::JmpNear => {
                let target = self.get(op)?;
                self.jump(target, size)
            }
            Mnemonic::CallRel => {
                let target = self.next.wrapping_add(self.imm());
                self.call(target)
            }
            Mnemonic::CallNear => {
                let target = self.get(op)?;
                self.call(target)
            }
            _ => {
                let target = self.pop(size)?;
                let release = self.imm() & 0xffff;
                self.set_stack(self.stack_at(release));
                self.jump(target, size)
            }
        }
    }

    /// The stack is checked first, then the target, and then the return address is written.
    fn call(&mut self, target: u64) -> Step {
        let size = self.insn.opsize;
        self.check_push(1, size)?;
        let flow = self.jump(target, size)?;
        let back = self.next & mask(size);
        self.push(back, size)?;
        Ok(flow)
    }

    /// INT n, INT3, INTO, INT1. In real mode through the vector table; in protected mode the vCPU
    /// delivers.
    pub(super) fn interrupt(&mut self) -> Step {
        let by = self.insn.mnemonic;
        let vector = match by {
            Mnemonic::Int3 => vector::BP,
            Mnemonic::Int1 => vector::DB,
            Mnemonic::Into if !self.flag(rflags::OF) => return Ok(Flow::Next),
            Mnemonic::Into => vector::OF,
            _ => self.imm().to_le_bytes()[0],
        };
        if self.v86 && by == Mnemonic::Int && !self.iopl3() {
            return self.v86_flags();
        }
        if self.protected || self.v86 {
            return Ok(Flow::Leave(Outcome::System(System::SoftInt { vector, by })));
        }
        let idt = self.env.idtr();
        let at = u64::from(vector) * 4;
        if at + 3 > u64::from(idt.limit) {
            return self.gp();
        }
        let la = self.system_address(idt.base, at);
        let entry = self.load_int(la, 4, Kind::System, false)?.to_le_bytes();
        let (ip, cs) = (
            u16::from_le_bytes([entry[0], entry[1]]),
            u16::from_le_bytes([entry[2], entry[3]]),
        );
        let old_cs = u64::from(self.env.segment(Seg::Cs).selector);
        let flags = self.r.rflags;
        self.check_push(3, 2)?;
        let next = self.next;
        self.push(flags, 2)?;
        self.push(old_cs, 2)?;
        self.push(next, 2)?;
        self.set_flags(rflags::IF | rflags::TF | rflags::AC | rflags::RF, 0);
        self.load_cs_real(cs);
        self.r.rip = u64::from(ip);
        Ok(Flow::Jump)
    }

    /// BOUND: #BR unless the index lies between two signed numbers in memory.
    pub(super) fn bound(&mut self) -> Step {
        let size = self.insn.opsize;
        let m = self.mem()?;
        let ea = self.ea(&m);
        let lower = self.read_seg(m.seg, ea, size, false)?;
        let upper_at = ea.wrapping_add(u64::from(size)) & mask(self.insn.addrsize);
        let upper = self.read_seg(m.seg, upper_at, size, false)?;
        let index = self.reg(self.insn.reg(), size);
        let n = |v| sext(v, size).cast_signed_();
        if n(index) < n(lower) || n(index) > n(upper) {
            return Err(Stop::Fault(Exception::plain(vector::BR)));
        }
        Ok(Flow::Next)
    }
}
