// SPDX-License-Identifier: GPL-2.0

//! Register accesses: by memory (xAPIC, SDM vol. 3A 12.4.1) and by MSR (x2APIC, 12.12.1).

use super::regs::{dfr, esr, icr, lvt, offset, svr, Access, FIRST_MSR};
use super::{DeliveryMode, Effect, GeneralProtection, Irq, Lapic, Lvt, Mode, Shorthand};

impl Lapic {
    /// Reads `len` bytes at `offset` of the register page, in xAPIC mode; see [`Lapic::place`].
    ///
    /// Registers are 32 bits wide at multiples of 16. A read of parts of one returns those bytes;
    /// what is beyond the 32 bits is undefined for hardware, and zero here. `now_ns` is asked for
    /// the monotonic time if the register needs it.
    pub fn mmio_read(&mut self, offset: u16, len: u8, now_ns: impl FnOnce() -> u64) -> u64 {
        let within = offset & 0xf;
        if !matches!(len, 1..=4) || within + u16::from(len) > 4 {
            return 0;
        }
        let access = Access::of(offset);
        if !access.readable(false) || !self.has_register(offset & !0xf) {
            if !access.writable(false) {
                self.error(esr::ILLEGAL_REGISTER);
            }
            return 0;
        }
        let value = self.read(offset & !0xf, now_ns) >> ((within & 3) * 8);
        u64::from(value) & !(u64::MAX << (u32::from(len) * 8))
    }

    /// Writes the low `len` bytes of `value` at `offset` of the register page, in xAPIC mode.
    /// Only 32-bit writes at multiples of 16 do something.
    pub fn mmio_write(
        &mut self,
        offset: u16,
        len: u8,
        value: u64,
        now_ns: impl FnOnce() -> u64,
    ) -> Effect {
        if len != 4 || offset & 0xf != 0 {
            return Effect::None;
        }
        let access = Access::of(offset);
        if !access.writable(false) || !self.has_register(offset) {
            if !access.readable(false) {
                self.error(esr::ILLEGAL_REGISTER);
            }
            return Effect::None;
        }
        self.write(offset, (value & 0xffff_ffff) as u32, now_ns)
    }

    /// Reads the MSR `msr`, which is in 0x800 to 0x8ff.
    pub fn msr_read(
        &mut self,
        msr: u32,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<u64, GeneralProtection> {
        let offset = self.msr_offset(msr)?;
        if !Access::of(offset).readable(true) || !self.has_register(offset) {
            return Err(GeneralProtection);
        }
        if offset == offset::ICR {
            return Ok(self.icr);
        }
        Ok(u64::from(self.read(offset, now_ns)))
    }

    /// Writes the MSR `msr`, which is in 0x800 to 0x8ff.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now_ns: impl FnOnce() -> u64,
    ) -> Result<Effect, GeneralProtection> {
        let offset = self.msr_offset(msr)?;
        if offset == offset::ICR {
            if value & icr::X2APIC_RESERVED != 0 {
                return Err(GeneralProtection);
            }
            return Ok(self.write_icr(value));
        }
        let Ok(low) = u32::try_from(value) else {
            return Err(GeneralProtection);
        };
        if !Access::of(offset).writable(true)
            || !self.has_register(offset)
            || low & self.reserved(offset) != 0
        {
            return Err(GeneralProtection);
        }
        Ok(self.write(offset, low, now_ns))
    }

    #[inline]
    fn msr_offset(&self, msr: u32) -> Result<u16, GeneralProtection> {
        if !self.x2apic() {
            return Err(GeneralProtection);
        }
        match u16::try_from(msr.wrapping_sub(FIRST_MSR)) {
            Ok(index) if index < 0x100 => Ok(index << 4),
            _ => Err(GeneralProtection),
        }
    }

    /// Whether an optional register is there.
    #[inline]
    const fn has_register(&self, offset: u16) -> bool {
        offset != offset::LVT_CMCI || self.features.cmci
    }

    /// The reserved bits of a register in x2APIC mode, where a write that sets one raises #GP
    /// (SDM vol. 3A 12.12.1.3). Read-only bits are not reserved.
    const fn reserved(&self, offset: u16) -> u32 {
        match offset {
            offset::TPR | offset::SELF_IPI => !0xff,
            offset::EOI | offset::ESR => !0,
            offset::SVR => !self.svr_writable(),
            offset::TDCR => !0xb,
            _ => match Lvt::at(offset) {
                Some(Lvt::Lint0 | Lvt::Lint1) => {
                    !(Lvt::Lint0.writable(false) | lvt::STATUS | lvt::REMOTE_IRR)
                }
                Some(entry) => !(entry.writable(self.features.tsc_deadline) | lvt::STATUS),
                None => 0,
            },
        }
    }

    const fn svr_writable(&self) -> u32 {
        let suppress = if self.features.directed_eoi {
            svr::SUPPRESS_EOI
        } else {
            0
        };
        svr::VECTOR | svr::ENABLE | svr::NO_FOCUS | suppress
    }

    /// The value of a readable register; the low half of the ICR.
    pub(super) fn read(&self, offset: u16, now_ns: impl FnOnce() -> u64) -> u32 {
        let index = usize::from(offset >> 4 & 7);
        match offset {
            offset::ID if self.x2apic() => self.config.id,
            offset::ID => u32::from(self.xapic_id) << 24,
            offset::VERSION => self.version(),
            offset::TPR => u32::from(self.tpr),
            offset::PPR => u32::from(self.ppr),
            offset::LDR if self.x2apic() => {
                (self.config.id >> 4 & 0xffff) << 16 | 1 << (self.config.id & 15)
            }
            offset::LDR => u32::from(self.logical_id) << 24,
            offset::DFR => self.dfr,
            offset::SVR => self.svr,
            0x100..=0x17f => self.isr.reg(index),
            0x180..=0x1ff => self.tmr.reg(index),
            0x200..=0x27f => self.irr.reg(index),
            offset::ESR => self.esr,
            offset::ICR => (self.icr & 0xffff_ffff) as u32,
            offset::ICR2 => (self.icr >> 32) as u32,
            offset::TMICT => self.clock.initial,
            offset::TMCCT => self.clock.current(now_ns()),
            offset::TDCR => self.clock.divide,
            _ => match Lvt::at(offset) {
                Some(entry) => self.lvt[entry as usize],
                None => 0,
            },
        }
    }

    /// Writes a writable register.
    fn write(&mut self, offset: u16, value: u32, now_ns: impl FnOnce() -> u64) -> Effect {
        match offset {
            offset::EOI => return self.eoi().map_or(Effect::None, Effect::Eoi),
            offset::ICR => {
                let high = self.icr & !0xffff_ffff;
                return self.write_icr(high | u64::from(value));
            }
            offset::SELF_IPI => self.send_self((value & 0xff) as u8, false),
            offset::TPR => self.set_tpr((value & 0xff) as u8),
            offset::TMICT => {
                let timer = self.clock.set_initial(value, now_ns());
                return timer.map_or(Effect::None, Effect::Timer);
            }
            offset::TDCR => {
                let timer = self.clock.set_divide(value, now_ns());
                return timer.map_or(Effect::None, Effect::Timer);
            }
            offset::ID => {
                self.xapic_id = (value >> 24) as u8;
                return Effect::Identity(self.identity());
            }
            offset::LDR => {
                self.logical_id = (value >> 24) as u8;
                return Effect::Identity(self.identity());
            }
            offset::DFR => {
                self.dfr = value | dfr::ONES;
                return Effect::Identity(self.identity());
            }
            offset::SVR => return self.write_svr(value),
            offset::ESR => {
                self.esr = core::mem::take(&mut self.errors);
                self.error_armed = true;
            }
            offset::ICR2 => self.icr = self.icr & 0xffff_ffff | u64::from(value >> 24) << 56,
            _ => {
                if let Some(entry) = Lvt::at(offset) {
                    return self.write_lvt(entry, value);
                }
            }
        }
        Effect::None
    }

    fn write_svr(&mut self, value: u32) -> Effect {
        let was = self.software_enabled();
        self.svr = value & self.svr_writable();
        if !self.software_enabled() {
            // SDM vol. 3A 12.4.7.2
            self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
        if was == self.software_enabled() {
            return Effect::None;
        }
        Effect::Identity(self.identity())
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32) -> Effect {
        let mut value = value & entry.writable(self.features.tsc_deadline);
        if !self.software_enabled() {
            value |= lvt::MASKED;
        }
        self.lvt[entry as usize] = value;
        match entry {
            // INVARIANT: the timer follows its entry.
            Lvt::Timer => self.follow_timer_mode(),
            _ => Effect::None,
        }
    }

    /// Sends what the ICR says. Sending takes no time, so it is never busy.
    fn write_icr(&mut self, value: u64) -> Effect {
        self.icr = value & !icr::BUSY;
        let irq = Irq::from_icr(value, self.x2apic(), self.config.id);
        match irq.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if irq.level && !irq.assert {
                    return Effect::None;
                }
                if irq.shorthand == Shorthand::Me {
                    self.send_self(irq.vector, irq.level);
                    return Effect::None;
                }
                if irq.vector < 16 {
                    self.error(esr::SEND_ILLEGAL);
                    return Effect::None;
                }
            }
            // INIT level de-assert has no effect; the other two are not for the ICR.
            DeliveryMode::Init if irq.level && !irq.assert => return Effect::None,
            DeliveryMode::Reserved | DeliveryMode::ExtInt => return Effect::None,
            _ => {}
        }
        if self.mode == Mode::Disabled {
            return Effect::None;
        }
        Effect::Ipi(irq)
    }

    #[inline]
    fn send_self(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(esr::SEND_ILLEGAL);
        } else {
            self.accept(vector, level);
        }
    }
}
