// SPDX-License-Identifier: GPL-2.0

//! The stack.

use super::super::decode::{
    Mnemonic,
    Opnd, //
};
use super::super::regs::rflags;
use super::super::regs::{
    Gpr,
    Seg, //
};
use super::env::{
    Env,
    Kind,
    Shadow,
    Stop, //
};
use super::flags::mask;
use super::{
    Ctx,
    Flow,
    Step, //
};

/// Flags that POPF and IRET may change at CPL 0, less those of the width of their operand.
const POPPED: u64 = 0x7fd5 | rflags::AC | rflags::ID;

impl<E: Env> Ctx<'_, E> {
    /// Width of the stack pointer in bytes.
    pub(super) fn stack_size(&self) -> u8 {
        if self.is_64 {
            8
        } else if self.env.segment(Seg::Ss).attr.db() {
            4
        } else {
            2
        }
    }

    /// The stack pointer plus `delta`, cut to its width.
    pub(super) fn stack_at(&self, delta: u64) -> u64 {
        let size = self.stack_size();
        self.r.gprs.get(Gpr::Rsp).wrapping_add(delta) & mask(size)
    }

    pub(super) fn set_stack(&mut self, v: u64) {
        self.set_addr_reg(Gpr::Rsp, self.stack_size(), v);
    }

    /// Pushes `size` bytes.
    pub(super) fn push(&mut self, v: u64, size: u8) -> Result<(), Stop> {
        self.push_part(v, size, size)
    }

    /// Moves the stack pointer by `size` bytes and writes `len` of them.
    fn push_part(&mut self, v: u64, size: u8, len: u8) -> Result<(), Stop> {
        let sp = self.stack_at(u64::from(size).wrapping_neg());
        let la = self.stack_linear(sp, len, true)?;
        self.store_int(la, len, v, Kind::Stack)?;
        self.set_stack(sp);
        Ok(())
    }

    /// Checks that `count` pushes of `size` bytes would not fault.
    pub(super) fn check_push(&mut self, count: u64, size: u8) -> Result<(), Stop> {
        for i in 1..=count {
            let at = self.stack_at((i * u64::from(size)).wrapping_neg());
            let la = self.stack_linear(at, size, true)?;
            self.check_store(la, usize::from(size), Kind::Stack)?;
        }
        Ok(())
    }

    /// Pops `size` bytes.
    pub(super) fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let v = self.peek(0, size)?;
        self.set_stack(self.stack_at(u64::from(size)));
        Ok(v)
    }

    /// Reads `size` bytes at `offset` from the stack pointer.
    pub(super) fn peek(&mut self, offset: u64, size: u8) -> Result<u64, Stop> {
        let sp = self.stack_at(offset);
        let la = self.stack_linear(sp, size, false)?;
        self.load_int(la, size, Kind::Stack, false)
    }

    fn stack_linear(&self, sp: u64, size: u8, write: bool) -> Result<u64, Stop> {
        let la = self.linear(Seg::Ss, sp, u64::from(size), write)?;
        self.check_alignment(la, u64::from(size))?;
        Ok(la)
    }

    pub(super) fn stack_op(&mut self) -> Step {
        let size = self.insn.opsize;
        let op = self.insn.ops[0];
        match self.insn.mnemonic {
            Mnemonic::Push => {
                let v = match op {
                    Opnd::Iz | Opnd::Ibs => self.imm(),
                    op => self.get(op)?,
                };
                self.push(v, size)?;
            }
            Mnemonic::Pop => {
                // An address made with the stack pointer sees it incremented.
                let v = self.pop(size)?;
                self.put(op, v)?;
            }
            Mnemonic::PushSeg => {
                let v = u64::from(self.env.segment(self.opcode_segment()?).selector);
                // Intel leaves the upper half of the slot as it is (SDM vol. 2B PUSH).
                let len = if self.is_amd() { size } else { 2 };
                self.push_part(v, size, len)?;
            }
            Mnemonic::PopSeg => {
                let seg = self.opcode_segment()?;
                let [lo, hi, ..] = self.peek(0, size)?.to_le_bytes();
                let loaded = self.load_segment(seg, u16::from_le_bytes([lo, hi]))?;
                self.set_stack(self.stack_at(u64::from(size)));
                self.env.set_segment(seg, &loaded);
                if seg == Seg::Ss {
                    self.shadow = Some(Shadow::MovSs);
                }
            }
            Mnemonic::Pusha => self.pusha(size)?,
            Mnemonic::Popa => self.popa(size)?,
            Mnemonic::Pushf => {
                if self.v86 && !self.iopl3() {
                    return self.v86_flags();
                }
                let v = self.r.rflags & !(rflags::RF | rflags::VM);
                self.push(v, size)?;
            }
            Mnemonic::Popf => {
                if self.v86 && !self.iopl3() {
                    return self.v86_flags();
                }
                let v = self.pop(size)?;
                self.load_flags(v, size);
            }
            Mnemonic::Enter => self.enter(size)?,
            _ => {
                // LEAVE: the new stack pointer is seen only when the pop worked.
                let sp = self.addr_reg(Gpr::Rbp, self.stack_size());
                self.set_stack(sp);
                let v = self.pop(size)?;
                self.set_reg(5, size, v);
            }
        }
        Ok(Flow::Next)
    }

    fn opcode_segment(&self) -> Result<Seg, Stop> {
        Ok(match self.insn.opcode >> 3 & 7 {
            0 => Seg::Es,
            1 => Seg::Cs,
            2 => Seg::Ss,
            3 => Seg::Ds,
            4 => Seg::Fs,
            5 => Seg::Gs,
            _ => return Err(Stop::Unhandleable),
        })
    }

    pub(super) fn iopl3(&self) -> bool {
        self.r.rflags & rflags::IOPL == rflags::IOPL
    }

    /// Instructions that touch IF in virtual-8086 mode below IOPL 3: #GP(0), unless CR4.VME makes
    /// up a virtual flag, which is not emulated.
    pub(super) fn v86_flags(&self) -> Step {
        if self.env.cr(4) & super::super::regs::cr4::VME != 0 {
            return Err(Stop::Unhandleable);
        }
        self.gp()
    }

    /// What POPF and IRET make of flags: IF wants CPL <= IOPL, IOPL wants CPL 0.
    pub(super) fn load_flags(&mut self, v: u64, size: u8) {
        let mut which = POPPED & mask(size);
        let iopl = u8::try_from(self.r.rflags >> 12 & 3).unwrap_or(0);
        if self.cpl > iopl {
            which &= !rflags::IF;
        }
        if self.cpl > 0 {
            which &= !rflags::IOPL;
        }
        self.set_flags(which, v);
        self.r.rflags |= rflags::FIXED;
    }

    /// PUSHA: all slots are checked before the first is written.
    fn pusha(&mut self, size: u8) -> Result<(), Stop> {
        let sp = self.reg(4, size);
        self.check_push(8, size)?;
        for r in 0..8 {
            let v = if r == 4 { sp } else { self.reg(r, size) };
            self.push(v, size)?;
        }
        Ok(())
    }

    /// POPA: the slot of SP is skipped.
    fn popa(&mut self, size: u8) -> Result<(), Stop> {
        for r in (0..8u8).rev() {
            let v = self.pop(size)?;
            if r != 4 {
                // SP must not move under the pops: none of these is SP.
                self.set_reg(r, size, v);
            }
        }
        Ok(())
    }

    /// ENTER (APM vol. 3): frames are pushed one by one; nothing is written until all slots and
    /// the last word of the new frame are known to be writable.
    fn enter(&mut self, size: u8) -> Result<(), Stop> {
        let n = u64::from(size);
        let level = u64::from(self.insn.imm2 & 31);
        let alloc = self.imm() & 0xffff;
        let slots = if level == 0 { 1 } else { level + 1 };
        self.check_push(slots, size)?;
        let end = self.stack_at((slots * n).wrapping_add(alloc).wrapping_neg());
        let la = self.stack_linear(end, size, true)?;
        self.check_store(la, usize::from(size), Kind::Stack)?;

        // A first look at the frames finds what faults; a push may change what the second sees.
        for i in 1..level {
            self.outer_frame(i, size)?;
        }
        let bp = self.reg(5, size);
        self.push(bp, size)?;
        // Of the operand's width, though the stack may be narrower.
        let frame = self.reg(4, size);
        if level > 0 {
            for i in 1..level {
                let v = self.outer_frame(i, size)?;
                self.push(v, size)?;
            }
            self.push(frame, size)?;
        }
        self.set_stack(self.stack_at(alloc.wrapping_neg()));
        self.set_reg(5, size, frame);
        Ok(())
    }
    /// The `i`th frame pointer below RBP.
    fn outer_frame(&mut self, i: u64, size: u8) -> Result<u64, Stop> {
        let width = self.stack_size();
        let down = i * u64::from(size);
        let from = self.addr_reg(Gpr::Rbp, width).wrapping_sub(down) & mask(width);
        let la = self.stack_linear(from, size, false)?;
        self.load_int(la, size, Kind::Stack, false)
    }
}
