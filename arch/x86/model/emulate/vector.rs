// SPDX-License-Identifier: GPL-2.0

//! Moves between memory and vector registers, and MXCSR.

use super::super::decode::{
    Mnemonic,
    VecMove, //
};
use super::super::regs::{
    cr0,
    cr4,
    vector,
    Exception, //
};
use super::env::{
    Env,
    Feature,
    Kind,
    Stop, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

/// MXCSR bits that exist (APM vol. 1 4.2.2): exceptions and their masks, DAZ, rounding, FZ, and
/// AMD's misaligned mode.
const MXCSR_DEFINED: u32 = 0x2_ffff;

impl<E: Env> Ctx<'_, E> {
    /// Who may use vector registers (APM vol. 4 2.19; SDM vol. 2A 2.4).
    fn vector_enabled(&self) -> Result<(), Stop> {
        let (cr0, cr4) = (self.env.cr(0), self.env.cr(4));
        if self.insn.vex.is_some() {
            if !self.protected || cr4 & cr4::OSXSAVE == 0 || !self.env.has(Feature::Avx) {
                return self.ud();
            }
        } else if cr0 & cr0::EM != 0 || cr4 & cr4::OSFXSR == 0 {
            return self.ud();
        }
        if cr0 & cr0::TS != 0 {
            return Err(Exception::plain(vector::NM).into());
        }
        Ok(())
    }

    /// The linear address of a vector's memory operand.
    fn vector_linear(&self, v: &VecMove, write: bool) -> Result<u64, Stop> {
        let m = self.mem()?;
        let size = u64::from(v.size);
        let la = self.linear(m.seg, self.ea(&m), size, write)?;
        if v.aligned && la & (size - 1) != 0 {
            return self.gp();
        }
        self.check_alignment(la, size)?;
        Ok(la)
    }

    /// Moves of 4, 8, 16 and 32 bytes.
    pub(super) fn vec_mov(&mut self) -> Step {
        self.vector_enabled()?;
        let v = self.insn.vec.ok_or(Stop::Unhandleable)?;
        let n = usize::from(v.size).min(32);
        let at = if v.high { 8 } else { 0 };
        if v.store {
            let src = self.env.vec(self.insn.reg())?;
            let bytes = &src[at..(at + n).min(32)];
            if self.insn.mem.is_some() {
                let la = self.vector_linear(&v, true)?;
                self.store(la, bytes, Kind::Data)?;
            } else if v.gpr {
                let mut b = [0u8; 8];
                b[..n.min(8)].copy_from_slice(&bytes[..n.min(8)]);
                self.set_reg(self.insn.rm(), v.size, u64::from_le_bytes(b));
            } else {
                self.set_vector(self.insn.rm(), &v, bytes)?;
            }
            return Ok(Flow::Next);
        }
        let mut buf = [0u8; 32];
        if self.insn.mem.is_some() {
            let la = self.vector_linear(&v, false)?;
            self.load(la, &mut buf[..n], Kind::Data, false)?;
        } else if v.gpr {
            let r = self.reg(self.insn.rm(), v.size);
            buf[..8].copy_from_slice(&r.to_le_bytes());
        } else {
            buf = self.env.vec(self.insn.rm())?;
        }
        self.set_vector(self.insn.reg(), &v, &buf[..n])?;
        Ok(Flow::Next)
    }

    /// Puts `bytes` into vector register `n` and fills up the rest.
    fn set_vector(&mut self, n: u8, v: &VecMove, bytes: &[u8]) -> Result<(), Stop> {
        let vex = self.insn.vex;
        // The rest comes from the destination itself, or the register that VEX.vvvv names.
        let mut new = match vex {
            Some(x) => self.env.vec(x.vvvv)?,
            None => self.env.vec(n)?,
        };
        if v.zero {
            new[..16].fill(0);
        }
        if vex.is_some() {
            new[16..].fill(0);
        }
        let at = if v.high { 8 } else { 0 };
        for (d, s) in new.iter_mut().skip(at).zip(bytes) {
            *d = *s;
        }
        self.env.set_vec(n, &new, vex.is_some());
        Ok(())
    }

    /// LDMXCSR and STMXCSR.
    pub(super) fn mxcsr(&mut self) -> Step {
        self.vector_enabled()?;
        let load = self.insn.mnemonic == Mnemonic::Ldmxcsr;
        let la = self.mem_linear(4, !load)?;
        if load {
            let [a, b, c, d, ..] = self.load_int(la, 4, Kind::Data, false)?.to_le_bytes();
            let v = u32::from_le_bytes([a, b, c, d]);
            if v & !MXCSR_DEFINED != 0 {
                return self.gp();
            }
            self.env.set_mxcsr(v);
        } else {
            let v = u64::from(self.env.mxcsr());
            self.store_int(la, 4, v, Kind::Data)?;
        }
        Ok(Flow::Next)
    }
}
