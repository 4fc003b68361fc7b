// SPDX-License-Identifier: GPL-2.0

//! Accesses to the registers: the guest's, and user space's by KVM_DEV_ARM_VGIC_GRP_ITS_REGS.

use super::{
    regs::{ctlr, iidr, queue, Baser, Cbaser, Register, TYPER},
    Effect, Error, Its, Lpis,
};

/// The low 32 bits.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The half of a register that an access is to.
#[derive(Clone, Copy)]
enum Part {
    All,
    Low,
    High,
}

impl Part {
    /// The part of the register that `len` bytes at `offset` are. `None` if accesses of that kind
    /// are not supported (12.18: 32 bits, or 64 bits of a register that has them).
    fn of(register: Register, offset: u64, len: usize) -> Option<Self> {
        match (len, offset % 8) {
            (8, 0) if register.is_wide() => Some(Self::All),
            (4, 4) if register.is_wide() => Some(Self::High),
            (4, 0 | 4) => Some(Self::Low),
            _ => None,
        }
    }

    fn read(self, register: u64) -> u64 {
        match self {
            Self::All => register,
            Self::Low => register & 0xffff_ffff,
            Self::High => register >> 32,
        }
    }

    fn write(self, old: u64, value: u64) -> u64 {
        match self {
            Self::All => value,
            Self::Low => old & !0xffff_ffff | value & 0xffff_ffff,
            Self::High => old & 0xffff_ffff | value << 32,
        }
    }
}

impl Its {
    /// A guest's read of `len` bytes at `offset` of the frames. What is not there reads as 0.
    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let Some(register) = Register::at(offset) else {
            return 0;
        };
        match Part::of(register, offset, len) {
            Some(part) => part.read(self.register(register)),
            None => 0,
        }
    }

    /// A guest's write of the `len` low bytes of `value` at `offset` of the frames. What is not
    /// there is not written, nor are registers that are read-only, always or while the ITS is
    /// enabled. (A write to GITS_TRANSLATER is none of a device here, so it has no DeviceID.)
    pub fn write(&mut self, offset: u64, len: usize, value: u64, lpis: &mut impl Lpis) -> Effect {
        let Some(register) = Register::at(offset) else {
            return Effect::None;
        };
        match Part::of(register, offset, len) {
            Some(part) => self.write_register(register, part, value, lpis),
            None => Effect::None,
        }
    }

    /// Whether there is a register for KVM_DEV_ARM_VGIC_GRP_ITS_REGS at `offset`.
    pub fn has_register(offset: u64) -> Result<Register, Error> {
        let narrow = !(0x8..0xffd0).contains(&offset);
        if offset % if narrow { 4 } else { 8 } != 0 {
            return Err(Error::Invalid);
        }
        Register::at(offset).ok_or(Error::NoRegister)
    }

    /// User space's read of the register at `offset`: all of it.
    pub fn user_read(&self, offset: u64) -> Result<u64, Error> {
        let register = Self::has_register(offset)?;
        match self.base {
            Some(_) => Ok(self.register(register)),
            None => Err(Error::NoRegister),
        }
    }

    /// User space's write of the register at `offset`: all of it. As the guest's, but that
    /// GITS_CREADR can be written as well, and GITS_IIDR with a revision of the tables' layout that
    /// we know.
    pub fn user_write(
        &mut self,
        offset: u64,
        value: u64,
        lpis: &mut impl Lpis,
    ) -> Result<Effect, Error> {
        let register = Self::has_register(offset)?;
        if self.base.is_none() {
            return Err(Error::NoRegister);
        }
        match register {
            Register::Creadr if self.enabled => return Err(Error::Busy),
            Register::Creadr => {
                let offset = low(value) & queue::OFFSET;
                if offset >= self.cbaser.size() {
                    return Err(Error::Invalid);
                }
                self.creadr = offset;
                self.stalled = false;
            }
            Register::Iidr if value & iidr::REVISION != 0 => return Err(Error::Invalid),
            _ => return Ok(self.write_register(register, Part::All, value, lpis)),
        }
        Ok(Effect::None)
    }

    fn register(&self, register: Register) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        match register {
            Register::Ctlr => {
                flag(self.enabled, ctlr::ENABLED.into())
                    | flag(!self.has_work(), ctlr::QUIESCENT.into())
            }
            Register::Iidr => iidr::VALUE.into(),
            Register::Typer => TYPER,
            Register::Cbaser => self.cbaser.value(),
            Register::Cwriter => self.cwriter.into(),
            Register::Creadr => u64::from(self.creadr) | flag(self.stalled, queue::STALLED),
            Register::Devices => self.devices.value(),
            Register::Collections => self.collections.value(),
            Register::NoTable => 0,
            Register::Id(value) => value.into(),
        }
    }

    fn write_register(
        &mut self,
        register: Register,
        part: Part,
        value: u64,
        lpis: &mut impl Lpis,
    ) -> Effect {
        match register {
            Register::Ctlr => self.enable(low(value) & ctlr::ENABLED != 0),
            Register::Cbaser if !self.enabled => {
                self.cbaser = Cbaser::written(part.write(self.cbaser.value(), value));
                // CREADR is 0 then (12.19). CWRITER is UNKNOWN: as CREADR, the queue is empty.
                self.creadr = 0;
                self.cwriter = 0;
                self.stalled = false;
            }
            Register::Cwriter => {
                let value = part.write(self.cwriter.into(), value);
                let offset = low(value) & queue::OFFSET;
                if offset < self.cbaser.size() {
                    self.cwriter = offset;
                }
                if value & queue::RETRY != 0 {
                    self.stalled = false;
                }
            }
            Register::Devices if !self.enabled => {
                let new = self
                    .devices
                    .written(part.write(self.devices.value(), value));
                self.set_devices(new, lpis);
            }
            Register::Collections if !self.enabled => {
                let old = self.collections;
                let new = old.written(part.write(old.value(), value));
                if new != old {
                    self.collections = new;
                    self.forget_collections(lpis);
                }
            }
            _ => {}
        }
        if self.has_work() {
            Effect::Process
        } else {
            Effect::None
        }
    }

    /// Another device table has other devices. One that is written as it was (a driver does so when
    /// it resumes) is the same table.
    fn set_devices(&mut self, new: Baser, lpis: &mut impl Lpis) {
        if new != self.devices {
            self.devices = new;
            self.forget_devices(lpis);
        }
    }

    /// To enable an ITS without tables or queue is UNPREDICTABLE (12.19): it stays disabled.
    fn enable(&mut self, on: bool) {
        let ready = self.cbaser.valid() && self.devices.valid() && self.collections.valid();
        self.enabled = on && (self.enabled || ready);
    }
}
