// SPDX-License-Identifier: GPL-2.0

//! Accesses to the distributor's registers (IHI 0069, 12.9), by the guest and by user space.

use super::{
    dist::{word_of, Dist},
    low,
    regs::{
        self,
        dist::{ctlr, CTLR, IDREGS, IIDR, IROUTER, PIDR2, STATUSR, TYPER, TYPER2},
        may_access, part, per_interrupt, Field, IIDR_REVISION_SHIFT, STATUSR_MASK,
    },
    RegError, Vcpus, DIST_SIZE, FIRST_SPI,
};

/// GICD_TYPER (IHI 0069, 12.9.38).
mod typer {
    pub(super) const LPIS: u32 = 1 << 17;
    pub(super) const ID_BITS_SHIFT: u32 = 19;
}

/// What is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reg {
    Ctlr,
    Typer,
    Iidr,
    Typer2,
    Statusr,
    /// With the first interrupt of the access
    Interrupts(Field, u32),
    /// GICD_IROUTER<n> of this interrupt
    Router(u32),
    Id,
}

impl Reg {
    fn at(offset: u64) -> Option<Self> {
        Some(match offset & !3 {
            CTLR => Self::Ctlr,
            TYPER => Self::Typer,
            IIDR => Self::Iidr,
            TYPER2 => Self::Typer2,
            STATUSR => Self::Statusr,
            IROUTER..0x8000 => Self::Router(low(offset - IROUTER) / 8),
            IDREGS..DIST_SIZE => Self::Id,
            _ => {
                let (field, intid) = per_interrupt(offset)?;
                Self::Interrupts(field, intid)
            }
        })
    }

    /// The register that a guest's access means, if it has such a size.
    fn of_guest(offset: u64, len: u8) -> Option<Self> {
        let reg = Self::at(offset)?;
        let ok = match reg {
            Self::Interrupts(field, _) => may_access(field, offset, len),
            Self::Router(_) => len == 8 && offset & 7 == 0 || len == 4 && offset & 3 == 0,
            _ => len == 4 && offset & 3 == 0,
        };
        ok.then_some(reg)
    }
}

impl Dist {
    /// The guest reads `len` bytes at `offset` of the frame. What is reserved, or not to be
    /// accessed with this length or alignment, reads as zero. See [`Dist::stale`].
    pub fn read(&self, offset: u64, len: u8) -> u64 {
        Reg::of_guest(offset, len).map_or(0, |reg| self.get(reg, offset, len, false))
    }

    /// The guest writes the low `len` bytes of `value` at `offset` of the frame. See
    /// [`Dist::stale`].
    pub fn write(&mut self, offset: u64, len: u8, value: u64) -> Vcpus {
        match Reg::of_guest(offset, len) {
            None => Vcpus::NONE,
            // A one clears the error.
            Some(Reg::Statusr) => {
                self.statusr &= !low(value);
                Vcpus::NONE
            }
            Some(Reg::Iidr) => Vcpus::NONE,
            Some(reg) => self.set(reg, offset, len, value, false),
        }
    }

    /// User space reads a word (KVM_DEV_ARM_VGIC_GRP_DIST_REGS). No vCPU runs.
    pub fn user_read(&self, offset: u64) -> Result<u32, RegError> {
        let reg = self.of_user(offset)?;
        Ok(low(self.get(reg, offset, 4, true)))
    }

    /// User space writes a word. No vCPU runs.
    pub fn user_write(&mut self, offset: u64, value: u32) -> Result<Vcpus, RegError> {
        let reg = self.of_user(offset)?;
        match reg {
            Reg::Statusr => self.statusr = value & STATUSR_MASK,
            Reg::Iidr => {
                let revision = (value >> IIDR_REVISION_SHIFT & 0xf) as u8;
                let rest = value & !(0xf << IIDR_REVISION_SHIFT);
                if rest != regs::IIDR || !matches!(revision, 2 | 3) {
                    return Err(RegError::Invalid);
                }
                self.global.revision = revision;
            }
            // SGIs always have an active state.
            Reg::Typer2 if value != 0 => return Err(RegError::Invalid),
            _ => return Ok(self.set(reg, offset, 4, value.into(), true)),
        }
        Ok(Vcpus::NONE)
    }

    /// Whether user space can name this register.
    pub fn has_user_reg(&self, offset: u64) -> bool {
        self.of_user(offset).is_ok()
    }

    fn of_user(&self, offset: u64) -> Result<Reg, RegError> {
        let reg = Reg::at(offset).filter(|_| offset & 3 == 0);
        let exists = |reg: &Reg| match *reg {
            Reg::Interrupts(_, intid) | Reg::Router(intid) => intid < self.nr_irqs(),
            _ => true,
        };
        reg.filter(exists).ok_or(RegError::Unknown)
    }

    fn get(&self, reg: Reg, offset: u64, len: u8, user: bool) -> u64 {
        let global = self.global;
        match reg {
            Reg::Ctlr => {
                let flag = |on: bool, bit: u32| if on { bit } else { 0 };
                let groups = flag(global.group0, ctlr::GROUP0) | flag(global.group1, ctlr::GROUP1);
                (groups | ctlr::ARE | ctlr::DS).into()
            }
            Reg::Typer => {
                let lines = self.nr_irqs() / 32 - 1;
                // The number of bits of an INTID, less one
                let ids = if global.its { 15 } else { 9 };
                let lpis = if global.its { typer::LPIS } else { 0 };
                (lines | ids << typer::ID_BITS_SHIFT | lpis).into()
            }
            Reg::Iidr => {
                let revision = u32::from(global.revision) << IIDR_REVISION_SHIFT;
                (regs::IIDR | revision).into()
            }
            Reg::Typer2 => 0,
            Reg::Statusr => self.statusr.into(),
            Reg::Interrupts(field, intid) => {
                let spis = word_of(intid).and_then(|w| self.spis(w));
                let first = (intid & 31) as usize;
                spis.map_or(0, |spis| spis.bank.read(field, first, len, user))
            }
            Reg::Router(intid) => part(self.route(intid).into(), offset, len),
            Reg::Id if offset == PIDR2 => regs::PIDR2.into(),
            Reg::Id => 0,
        }
    }

    fn set(&mut self, reg: Reg, offset: u64, len: u8, value: u64, user: bool) -> Vcpus {
        match reg {
            Reg::Ctlr => {
                let groups = (self.global.group0, self.global.group1);
                self.global.group0 = low(value) & ctlr::GROUP0 != 0;
                self.global.group1 = low(value) & ctlr::GROUP1 != 0;
                if groups != (self.global.group0, self.global.group1) {
                    return self.everyone();
                }
                Vcpus::NONE
            }
            Reg::Interrupts(field, intid) if intid >= FIRST_SPI => {
                let Some(w) = word_of(intid) else {
                    return Vcpus::NONE;
                };
                let valid = self.valid(w);
                let first = (intid & 31) as usize;
                self.update(w, |spis| {
                    spis.bank.write(field, first, len, value, user, valid)
                })
            }
            // The upper word is Aff3, which there is not.
            Reg::Router(intid) if len == 8 || offset & 4 == 0 => self.set_route(intid, low(value)),
            _ => Vcpus::NONE,
        }
    }
}
