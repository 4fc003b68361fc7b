// SPDX-License-Identifier: GPL-2.0

//! Far transfers: in real and virtual-8086 mode, and in protected mode without a change of
//! privilege (APM vol. 2 4.11, 12.1). Gates, tasks, and returns to an outer level are not emulated.

use super::super::decode::Mnemonic;
use super::super::regs::rflags;
use super::super::regs::{
    vector,
    Gpr,
    Seg,
    SegAttr,
    Segment, //
};
use super::env::{
    Env,
    Stop, //
};
use super::flags::mask;
use super::segment::{
    is_null,
    rpl,
    ACCESSED, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

/// How control comes to a code segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// JMP or CALL.
    Transfer,
    /// RET or IRET.
    Return,
}

impl<E: Env> Ctx<'_, E> {
    /// Loads CS as real and virtual-8086 mode do.
    pub(super) fn load_cs_real(&mut self, selector: u16) {
        let s = self.real_segment(Seg::Cs, selector);
        self.env.set_segment(Seg::Cs, &s);
    }

    /// What CS becomes, after all checks, and whether `rip` lies in it.
    fn code_segment(&mut self, selector: u16, rip: u64, by: By) -> Result<Segment, Stop> {
        if !self.protected {
            let s = self.real_segment(Seg::Cs, selector);
            if rip > u64::from(s.limit) {
                return self.gp();
            }
            return Ok(s);
        }
        if is_null(selector) {
            return self.gp();
        }
        let mut d = self.descriptor(selector, false, vector::GP)?;
        let a = d.attr();
        let gate_or_tss = match a.typ() {
            12 => true,
            1 | 4 | 5 | 9 => !self.long_mode(),
            _ => false,
        };
        if !a.s() && gate_or_tss && by == By::Transfer {
            return Err(Stop::Unhandleable);
        }
        if !a.s() || a.typ() & 8 == 0 {
            return self.fault(vector::GP, selector);
        }
        let conforming = a.typ() & 4 != 0;
        let rpl = rpl(selector);
        let ok = match by {
            By::Transfer if conforming => a.dpl() <= self.cpl,
            By::Transfer => rpl <= self.cpl && a.dpl() == self.cpl,
            By::Return => {
                if rpl > self.cpl {
                    return Err(Stop::Unhandleable);
                }
                rpl == self.cpl
                    && if conforming {
                        a.dpl() <= rpl
                    } else {
                        a.dpl() == rpl
                    }
            }
        };
        if !ok || (self.long_mode() && a.long() && a.db()) {
            return self.fault(vector::GP, selector);
        }
        if !a.present() {
            return self.fault(vector::NP, selector);
        }
        let to_64 = self.long_mode() && a.long();
        let s = d.segment(selector & !3 | u16::from(self.cpl));
        let bad = if to_64 {
            !self.canonical(rip)
        } else {
            rip > u64::from(s.limit)
        };
        if bad {
            return self.gp();
        }
        if !self.mark(&mut d, ACCESSED)? {
            return Err(Stop::Unhandleable);
        }
        Ok(Segment {
            attr: SegAttr(s.attr.0 | u32::from(ACCESSED)),
            ..s
        })
    }

    /// JMP, CALL, RET far; IRET.
    pub(super) fn far(&mut self) -> Step {
        match self.insn.mnemonic {
            Mnemonic::RetFar => self.ret_far(),
            Mnemonic::Iret => self.iret(),
            Mnemonic::JmpFarImm | Mnemonic::CallFarImm => self.transfer(self.insn.imm2, self.imm()),
            _ => {
                let (selector, offset) = self.far_pointer()?;
                self.transfer(selector, offset)
            }
        }
    }

    fn transfer(&mut self, selector: u16, offset: u64) -> Step {
        let size = self.insn.opsize;
        let rip = offset & mask(size);
        let s = self.code_segment(selector, rip, By::Transfer)?;
        if matches!(self.insn.mnemonic, Mnemonic::CallFar | Mnemonic::CallFarImm) {
            let cs = u64::from(self.env.segment(Seg::Cs).selector);
            self.check_push(2, size)?;
            let back = self.next & mask(size);
            self.push(cs, size)?;
            self.push(back, size)?;
        }
        self.env.set_segment(Seg::Cs, &s);
        self.r.rip = rip;
        Ok(Flow::Jump)
    }

    fn ret_far(&mut self) -> Step {
        let size = self.insn.opsize;
        let n = u64::from(size);
        let [lo, hi, ..] = self.peek(n, size)?.to_le_bytes();
        let rip = self.pop(size)?;
        self.set_stack(self.stack_at(n));
        let s = self.code_segment(u16::from_le_bytes([lo, hi]), rip, By::Return)?;
        let release = self.imm() & 0xffff;
        if self.long_mode() && s.attr.long() {
            // Already in the mode that is returned to.
            let sp = self.r.gprs.get(Gpr::Rsp).wrapping_add(release);
            self.r.gprs.set(Gpr::Rsp, sp);
        } else {
            self.set_stack(self.stack_at(release));
        }
        self.env.set_segment(Seg::Cs, &s);
        self.r.rip = rip;
        Ok(Flow::Jump)
    }

    /// IRET to the same privilege level. In 64-bit mode SS and RSP are popped too, which only the
    /// vCPU could do.
    fn iret(&mut self) -> Step {
        let size = self.insn.opsize;
        if self.v86 && !self.iopl3() {
            return self.v86_flags();
        }
        if self.is_64 || (self.protected && self.flag(rflags::NT)) {
            return Err(Stop::Unhandleable);
        }
        let rip = self.pop(size)?;
        let [lo, hi, ..] = self.pop(size)?.to_le_bytes();
        let flags = self.pop(size)?;
        if self.protected && flags & rflags::VM != 0 && size > 2 && self.cpl == 0 {
            return Err(Stop::Unhandleable);
        }
        let s = self.code_segment(u16::from_le_bytes([lo, hi]), rip, By::Return)?;
        self.env.set_segment(Seg::Cs, &s);
        self.load_flags(flags, size);
        self.r.rip = rip;
        Ok(Flow::Jump)
    }
}
