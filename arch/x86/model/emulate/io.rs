// SPDX-License-Identifier: GPL-2.0

//! Ports: IN, OUT, and who may use them (APM vol. 2 12.2.4 "I/O-permission bitmap").

use super::super::decode::{
    Mnemonic,
    Opnd, //
};
use super::super::regs::rflags;
use super::env::{
    Env,
    Kind,
    Stop, //
};
use super::{
    Ctx,
    Flow,
    Step, //
};

impl<E: Env> Ctx<'_, E> {
    /// Bytes that a port access moves: at most 4.
    pub(super) fn port_size(&self, data: Opnd) -> u8 {
        if data == Opnd::Al {
            1
        } else {
            self.insn.opsize.min(4)
        }
    }

    /// IN and OUT.
    pub(super) fn port(&mut self) -> Step {
        let [a, b, _] = self.insn.ops;
        let out = self.insn.mnemonic == Mnemonic::Out;
        let (port, data) = if out { (a, b) } else { (b, a) };
        let [lo, hi, ..] = self.get(port)?.to_le_bytes();
        let port = u16::from_le_bytes([lo, hi]);
        let size = self.port_size(data);
        self.check_port(port, size)?;
        if out {
            let [b0, b1, b2, b3, ..] = self.reg(0, size).to_le_bytes();
            self.env
                .pio_out(port, size, u32::from_le_bytes([b0, b1, b2, b3]))?;
        } else {
            let v = self.env.pio_in(port, size, 1)?;
            self.set_reg(0, size, u64::from(v));
        }
        Ok(Flow::Next)
    }

    /// #GP(0) unless IOPL or the bitmap in the TSS allows the port.
    pub(super) fn check_port(&mut self, port: u16, size: u8) -> Result<(), Stop> {
        let iopl = self.r.rflags & rflags::IOPL;
        let allowed = u64::from(self.cpl) << 12 <= iopl && !self.v86;
        if (!self.protected && !self.v86) || allowed {
            return Ok(());
        }
        let tr = self.env.tr();
        // Only a 32- or 64-bit TSS, available or busy, has a bitmap.
        if tr.attr.unusable() || tr.attr.typ() & !2 != 9 || tr.limit < 103 {
            return self.gp();
        }
        let map = self.load_int(self.system_address(tr.base, 102), 2, Kind::System, false)?;
        let at = map + u64::from(port >> 3);
        // Two bytes are read whatever the access, so the map ends with a byte of ones.
        if at + 1 > u64::from(tr.limit) {
            return self.gp();
        }
        let bits = self.load_int(self.system_address(tr.base, at), 2, Kind::System, false)?;
        let wanted = ((1u64 << size) - 1) << (port & 7);
        if bits & wanted != 0 {
            return self.gp();
        }
        Ok(())
    }
}
