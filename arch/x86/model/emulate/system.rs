// SPDX-License-Identifier: GPL-2.0

//! System instructions: the checks that come before them, and then a [`System`] operation for the
//! vCPU.

use super::super::decode::Mnemonic;
use super::super::regs::{
    cr0,
    cr4,
    rflags,
    vector,
    DescTable,
    Exception,
    Gpr,
    Seg, //
};
use super::env::{
    Env,
    Feature,
    Kind,
    Outcome,
    Shadow,
    Stop,
    System, //
};
use super::flags::mask;
use super::{
    Ctx,
    Flow,
    Step, //
};

fn leave(s: System) -> Step {
    Ok(Flow::Leave(Outcome::System(s)))
}

impl<E: Env> Ctx<'_, E> {
    /// Whatever no other file knows.
    pub(super) fn system(&mut self) -> Step {
        use Mnemonic::*;
        match self.insn.mnemonic {
            Cpuid => leave(System::Cpuid),
            Cli | Sti => self.interrupt_flag(),
            Clac | Stac => self.access_flag(),
            Fwait => self.fwait(),
            Sgdt | Sidt => self.store_table(),
            Lgdt | Lidt => self.load_table(),
            Smsw => self.smsw(),
            Lmsw => self.lmsw(),
            Clts => {
                self.supervisor()?;
                leave(System::WriteCr {
                    cr: 0,
                    value: self.env.cr(0) & !cr0::TS,
                })
            }
            MovFromCr | MovToCr | MovFromDr | MovToDr => self.mov_special(),
            Rdmsr => self.privileged(System::Rdmsr),
            Wrmsr => self.privileged(System::Wrmsr),
            Hlt => self.privileged(System::Hlt),
            Invd => self.privileged(System::Invd),
            Wbinvd => self.privileged(System::Wbinvd),
            Invlpg => {
                self.supervisor()?;
                let m = self.mem()?;
                let base = match (self.is_64, m.seg) {
                    (false, s) | (true, s @ (Seg::Fs | Seg::Gs)) => self.env.segment(s).base,
                    _ => 0,
                };
                let la = base.wrapping_add(self.ea(&m));
                leave(System::Invlpg(if self.is_64 { la } else { la & mask(4) }))
            }
            Rdtsc => self.unless_disabled(cr4::TSD, false, System::Rdtsc),
            Rdtscp => self.unless_disabled(cr4::TSD, false, System::Rdtscp),
            Rdpmc => self.unless_disabled(cr4::PCE, true, System::Rdpmc),
            Rdpid => leave(System::Rdpid(Gpr::from_low4(self.insn.rm()))),
            Monitor => {
                if self.cpl > 0 {
                    return self.ud();
                }
                let seg = self.insn.prefixes.seg.unwrap_or(Seg::Ds);
                let ea = self.addr_reg(Gpr::Rax, self.insn.addrsize);
                let la = self.linear(seg, ea, 1, false)?;
                leave(System::Monitor(la))
            }
            Mwait => {
                if self.cpl > 0 {
                    return self.ud();
                }
                leave(System::Mwait)
            }
            Xgetbv => self.with_osxsave(System::Xgetbv),
            Xsetbv => {
                let flow = self.with_osxsave(System::Xsetbv)?;
                self.supervisor()?;
                Ok(flow)
            }
            op @ (Vmcall | Vmmcall) => leave(System::Hypercall(op)),
            Swapgs => self.privileged(System::Swapgs),
            _ => Err(Stop::Unhandleable),
        }
    }

    fn privileged(&self, s: System) -> Step {
        self.supervisor()?;
        leave(s)
    }

    /// At CPL above 0, a bit of CR4 forbids (or, `inverted`, allows) the instruction.
    fn unless_disabled(&self, bit: u64, inverted: bool, s: System) -> Step {
        let set = self.env.cr(4) & bit != 0;
        if self.cpl > 0 && set != inverted {
            return self.gp();
        }
        leave(s)
    }

    fn with_osxsave(&self, s: System) -> Step {
        if self.env.cr(4) & cr4::OSXSAVE == 0 {
            return self.ud();
        }
        leave(s)
    }

    /// CLI and STI. The virtual interrupt flag (CR4.VME, CR4.PVI) is not emulated.
    fn interrupt_flag(&mut self) -> Step {
        let iopl = u64::from(self.cpl) << 12;
        if self.cpl > 0 && iopl > self.r.rflags & rflags::IOPL {
            let bit = if self.v86 { cr4::VME } else { cr4::PVI };
            if self.env.cr(4) & bit != 0 && self.cpl == 3 {
                return Err(Stop::Unhandleable);
            }
            return self.gp();
        }
        if self.insn.mnemonic == Mnemonic::Cli {
            self.set_flags(rflags::IF, 0);
        } else {
            if !self.flag(rflags::IF) {
                self.shadow = Some(Shadow::Sti);
            }
            self.set_flags(rflags::IF, rflags::IF);
        }
        Ok(Flow::Next)
    }

    /// CLAC and STAC.
    fn access_flag(&mut self) -> Step {
        self.need(Feature::Smap)?;
        if self.cpl > 0 {
            return self.ud();
        }
        let v = if self.insn.mnemonic == Mnemonic::Stac {
            rflags::AC
        } else {
            0
        };
        self.set_flags(rflags::AC, v);
        Ok(Flow::Next)
    }

    fn fwait(&self) -> Step {
        let both = cr0::MP | cr0::TS;
        if self.env.cr(0) & both == both {
            return Err(Exception::plain(vector::NM).into());
        }
        Ok(Flow::Next)
    }

    /// #GP(0) where user code may not see system registers.
    fn umip(&self) -> Result<(), Stop> {
        if self.cpl > 0 && self.env.cr(4) & cr4::UMIP != 0 {
            return self.gp();
        }
        Ok(())
    }

    /// Bytes of a base address in the image of GDTR and IDTR.
    fn table_width(&self) -> u8 {
        if self.is_64 {
            8
        } else {
            4
        }
    }

    /// SGDT and SIDT: limit and base, whatever the operand size.
    fn store_table(&mut self) -> Step {
        self.umip()?;
        let t = match self.insn.mnemonic {
            Mnemonic::Sgdt => self.env.gdtr(),
            _ => self.env.idtr(),
        };
        let n = self.table_width();
        let mut image = [0u8; 10];
        image[..2].copy_from_slice(&t.limit.to_le_bytes());
        image[2..].copy_from_slice(&t.base.to_le_bytes());
        let len = usize::from(n) + 2;
        let la = self.table_linear(len, true)?;
        self.store(la, &image[..len], Kind::Data)?;
        Ok(Flow::Next)
    }

    fn table_linear(&self, len: usize, write: bool) -> Result<u64, Stop> {
        let m = self.mem()?;
        self.linear(m.seg, self.ea(&m), u64::try_from(len).unwrap_or(0), write)
    }

    /// LGDT and LIDT. A 16-bit operand size takes 24 bits of base.
    fn load_table(&mut self) -> Step {
        self.supervisor()?;
        let n = self.table_width();
        let len = usize::from(n) + 2;
        let la = self.table_linear(len, false)?;
        let mut image = [0u8; 10];
        self.load(la, &mut image[..len], Kind::Data, false)?;
        let [a, b, base @ ..] = image;
        let mut base = u64::from_le_bytes(base);
        if self.is_64 {
            if !self.canonical(base) {
                return self.gp();
            }
        } else if self.insn.opsize == 2 {
            base &= 0xff_ffff;
        }
        let t = DescTable {
            base,
            limit: u16::from_le_bytes([a, b]),
        };
        leave(match self.insn.mnemonic {
            Mnemonic::Lgdt => System::Lgdt(t),
            _ => System::Lidt(t),
        })
    }

    fn smsw(&mut self) -> Step {
        self.umip()?;
        let v = self.env.cr(0);
        self.put(self.insn.ops[0], v)?;
        Ok(Flow::Next)
    }

    /// LMSW sets CR0 bits 3:0, but cannot clear PE.
    fn lmsw(&mut self) -> Step {
        self.supervisor()?;
        let v = self.get(self.insn.ops[0])?;
        let old = self.env.cr(0);
        let value = (old & !0xe) | (v & 0xf);
        leave(System::WriteCr { cr: 0, value })
    }

    /// MOV to and from control and debug registers.
    fn mov_special(&mut self) -> Step {
        use Mnemonic::*;
        self.supervisor()?;
        let n = self.insn.reg();
        let gpr = Gpr::from_low4(self.insn.rm());
        let value = self.r.gprs.get(gpr) & mask(self.insn.opsize);
        if matches!(self.insn.mnemonic, MovFromDr | MovToDr) && matches!(n, 4 | 5) {
            // Names of DR6 and DR7, unless CR4.DE.
            if self.env.cr(4) & cr4::DE != 0 {
                return self.ud();
            }
        }
        let dr = if matches!(n, 4 | 5) { n + 2 } else { n };
        leave(match self.insn.mnemonic {
            MovFromCr => System::ReadCr { cr: n, to: gpr },
            MovToCr => System::WriteCr { cr: n, value },
            MovFromDr => System::ReadDr { dr, to: gpr },
            _ => System::WriteDr { dr, value },
        })
    }
}
