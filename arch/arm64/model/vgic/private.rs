// SPDX-License-Identifier: GPL-2.0

//! What belongs to one vCPU: SGIs, PPIs, LPIs, and the registers of its redistributor
//! (IHI 0069, 12.11).

use super::{
    bank::Bank,
    cpuif::CpuIf,
    low,
    lpi::{LpiSet, LpiSlots},
    regs::{
        self, baser, dist,
        dist::{IDREGS, PIDR2},
        may_access, merge, part, per_interrupt,
        redist::{
            ctlr, CTLR, IIDR, INVALLR, INVLPIR, NSACR, PENDBASER, PROPBASER, SGI_BASE, STATUSR,
            SYNCR, TYPER, WAKER,
        },
        Field, STATUSR_MASK,
    },
    Affinity, Global, LpiError, LrConfig, NoSuchInterrupt, RegError, Sgi, Taken, FIRST_PPI,
    FIRST_SPI,
};

/// SGIs: always edge-triggered, and enabled after a reset, as KVM has them.
const SGIS: u32 = 0xffff;

/// What a write to a redistributor wants done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an interrupt waits until the bell rings"]
pub struct Effect {
    /// Ring the vCPU's bell. Also if the state of a PPI with a physical interrupt behind it has
    /// changed: the vCPU then leaves the CPU, and makes that one active or not when it is back.
    pub ring: bool,
    /// What the ITS has to do
    pub lpi: LpiEffect,
}

/// What the ITS has to do after a write to a redistributor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LpiEffect {
    /// Nothing
    #[default]
    None,
    /// EnableLPIs was set: make pending what the guest's pending table has.
    Enabled,
    /// EnableLPIs was cleared: none is pending any more.
    Disabled,
    /// Read the configuration of this LPI again.
    Invalidate(u32),
    /// Read the configuration of all LPIs of this redistributor again.
    InvalidateAll,
}

/// The private part of a vCPU.
pub struct Private {
    pub(super) index: u16,
    affinity: Affinity,
    number: u16,
    last: bool,
    pub(super) bank: Bank,
    /// The physical interrupts behind PPIs
    pintid: [Option<u16>; 16],
    statusr: u32,
    pub(super) lpis_enabled: bool,
    propbaser: u64,
    pendbaser: u64,
    pub(super) lpis: LpiSet,
    /// The saved CPU interface
    pub cpuif: CpuIf,
}

impl Private {
    /// After a reset. `index` is the vCPU's in [`super::Dist::new`], `number` the
    /// Processor_Number of GICR_TYPER: KVM's vCPU id.
    pub fn new(index: u16, number: u16, affinity: Affinity, hw: &LrConfig) -> Self {
        Self {
            index,
            affinity,
            number,
            last: false,
            bank: Bank::new(SGIS, SGIS),
            pintid: [None; 16],
            statusr: 0,
            lpis_enabled: false,
            propbaser: 0,
            pendbaser: 0,
            lpis: LpiSet::new(),
            cpuif: CpuIf::new(hw),
        }
    }

    /// Resets redistributor and CPU interface. What is in list registers is dropped, levels of
    /// lines stay.
    pub fn reset(&mut self, hw: &LrConfig) {
        let line = self.bank.line;
        self.bank = Bank::new(SGIS, SGIS);
        self.bank.line = line;
        self.statusr = 0;
        self.lpis_enabled = false;
        self.propbaser = 0;
        self.pendbaser = 0;
        self.lpis.reset();
        self.cpuif = CpuIf::new(hw);
    }

    /// The vCPU's index.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// The vCPU's affinity.
    pub const fn affinity(&self) -> Affinity {
        self.affinity
    }

    /// The vCPU has another one (MPIDR_EL1 was set).
    pub fn set_affinity(&mut self, affinity: Affinity) {
        self.affinity = affinity;
    }

    /// GICR_TYPER.Last: no redistributor follows at the next address.
    pub fn set_last(&mut self, last: bool) {
        self.last = last;
    }

    /// Puts the physical interrupt `pintid` behind a PPI, or takes it away. Its line is the
    /// physical interrupt's, told with [`Self::set_ppi`] before each entry; while the PPI is
    /// pending or active, the physical one is active ([`Self::is_busy`]), and the guest's end of
    /// the one deactivates the other.
    pub fn map_ppi(&mut self, intid: u32, pintid: Option<u16>) -> Result<(), NoSuchInterrupt> {
        let ppi = intid.checked_sub(FIRST_PPI).ok_or(NoSuchInterrupt)?;
        let slot = self.pintid.get_mut(ppi as usize).ok_or(NoSuchInterrupt)?;
        *slot = pintid;
        Ok(())
    }

    /// The physical interrupt behind the SGI or PPI `b`.
    pub(super) fn pintid(&self, b: usize) -> Option<u16> {
        self.pintid
            .get(b.checked_sub(FIRST_PPI as usize)?)
            .copied()
            .flatten()
    }

    /// Whether an SGI or PPI is pending or active: then the physical interrupt behind it has to
    /// be active.
    pub fn is_busy(&self, intid: u32) -> bool {
        intid < FIRST_SPI && (self.bank.pending() | self.bank.active) & 1 << intid != 0
    }

    /// No SGI, PPI or LPI could be in a list register now: with no SPI either, [`super::fill`] would leave them all
    /// empty.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        (self.bank.ready() | self.bank.active) == 0
            && (!self.lpis_enabled || self.lpis.ready().next().is_none())
    }

    /// Whether an SGI or PPI is active, as far as is known here.
    pub fn is_active(&self, intid: u32) -> bool {
        intid < FIRST_SPI && self.bank.active & 1 << intid != 0
    }

    /// The line of a PPI has the level `level`. True if the vCPU should know.
    pub fn set_ppi(&mut self, intid: u32, level: bool) -> Result<bool, NoSuchInterrupt> {
        if !(FIRST_PPI..FIRST_SPI).contains(&intid) {
            return Err(NoSuchInterrupt);
        }
        let b = intid as usize;
        let eoi = self.pintid(b).is_none();
        let changed = self.bank.set_line(b, level, eoi);
        Ok(self.concerns(changed))
    }

    /// Takes an SGI that is for this vCPU. True if the vCPU should know.
    pub fn set_sgi(&mut self, sgi: &Sgi) -> bool {
        let bit = 1 << (sgi.intid & 15);
        if self.bank.group & bit != 0 && !sgi.group1 {
            return false;
        }
        let changed = bit & !self.bank.latch;
        self.bank.latch |= bit;
        self.concerns(changed)
    }

    /// Whether the vCPU should know that these have changed.
    const fn concerns(&self, changed: u32) -> bool {
        changed & (self.bank.ready() | self.bank.in_lr | self.bank.active) != 0
    }

    /// Gives room for pending LPIs: as many as the ITS has mapped to this vCPU never fail. Returns
    /// the slots that are not used, which are these if they are too few.
    pub fn set_lpi_slots(&mut self, slots: LpiSlots) -> LpiSlots {
        self.lpis.set_slots(slots)
    }

    /// So many LPIs can be pending.
    pub fn lpi_capacity(&self) -> usize {
        self.lpis.capacity()
    }

    /// An LPI becomes pending; priority and enable are those of its configuration. True if the
    /// vCPU should know. While EnableLPIs is clear, it is lost (IHI 0069, 5.1.1).
    pub fn set_lpi_pending(
        &mut self,
        intid: u32,
        priority: u8,
        enabled: bool,
    ) -> Result<bool, LpiError> {
        if !self.lpis_enabled {
            return Ok(false);
        }
        self.lpis.pend(intid, priority, enabled)
    }

    /// The configuration of an LPI was read again. True if the vCPU should know.
    pub fn configure_lpi(&mut self, intid: u32, priority: u8, enabled: bool) -> bool {
        self.lpis.configure(intid, priority, enabled)
    }

    /// An LPI is no longer pending (CLEAR, DISCARD). True if the vCPU should know.
    pub fn clear_lpi(&mut self, intid: u32) -> bool {
        self.lpis.clear(intid)
    }

    /// Takes an LPI away that is moved to another redistributor (MOVI, MOVALL): if it was pending
    /// here, make it pending there.
    pub fn take_lpi(&mut self, intid: u32) -> Taken {
        self.lpis.take(intid)
    }

    /// The pending LPIs, ascending: what the pending table is to have.
    pub fn pending_lpis(&self) -> impl Iterator<Item = u32> + '_ {
        self.lpis.pending()
    }

    /// Whether the LPI is pending here.
    pub fn is_lpi_pending(&self, intid: u32) -> bool {
        self.lpis.is_pending(intid)
    }

    /// GICR_CTLR.EnableLPIs
    pub const fn lpis_enabled(&self) -> bool {
        self.lpis_enabled
    }

    /// GICR_PROPBASER
    pub const fn propbaser(&self) -> u64 {
        self.propbaser
    }

    /// GICR_PENDBASER, with PTZ
    pub const fn pendbaser(&self) -> u64 {
        self.pendbaser
    }

    /// The levels of the lines (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO of INTID 0): bits 31:16.
    pub const fn level_info(&self) -> u32 {
        self.bank.line & !self.bank.edge & !SGIS
    }

    /// Sets them. True if the vCPU should know.
    pub fn set_level_info(&mut self, levels: u32) -> bool {
        let changed = (self.bank.line ^ levels) & !SGIS;
        self.bank.line ^= changed;
        self.concerns(changed)
    }

    /// Whether the vCPU has SGIs or PPIs in list registers, so that what the register at `offset`
    /// shows may be old, and what is written to it takes effect when the vCPU folds. To be exact,
    /// have it fold first.
    pub fn stale(&self, offset: u64) -> bool {
        matches!(
            Reg::at(offset),
            Some(Reg::Interrupts(field, _)) if field.may_be_stale() && self.bank.in_lr != 0
        )
    }

    /// A guest reads `len` bytes at `offset` from RD_base. What is reserved, or not to be accessed
    /// with this length or alignment, reads as zero.
    pub fn read(&self, offset: u64, len: u8, global: Global) -> u64 {
        let reg = Reg::of_guest(offset, len);
        reg.map_or(0, |reg| self.get(reg, offset, len, false, global))
    }

    /// A guest writes the low `len` bytes of `value` at `offset` from RD_base.
    pub fn write(&mut self, offset: u64, len: u8, value: u64, global: Global) -> Effect {
        match Reg::of_guest(offset, len) {
            None => Effect::default(),
            // A one clears the error.
            Some(Reg::Statusr) => {
                self.statusr &= !low(value);
                Effect::default()
            }
            Some(reg) => self.set(reg, offset, len, value, false, global),
        }
    }

    /// User space reads a word (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS). The vCPU does not run.
    pub fn user_read(&self, offset: u64, global: Global) -> Result<u32, RegError> {
        let reg = Reg::of_user(offset)?;
        Ok(low(self.get(reg, offset, 4, true, global)))
    }

    /// User space writes a word. The vCPU does not run.
    pub fn user_write(
        &mut self,
        offset: u64,
        value: u32,
        global: Global,
    ) -> Result<Effect, RegError> {
        let reg = Reg::of_user(offset)?;
        if reg == Reg::Statusr {
            self.statusr = value & STATUSR_MASK;
            return Ok(Effect::default());
        }
        Ok(self.set(reg, offset, 4, value.into(), true, global))
    }

    /// Whether user space can name this register.
    pub fn has_user_reg(offset: u64) -> bool {
        Reg::of_user(offset).is_ok()
    }

    fn get(&self, reg: Reg, offset: u64, len: u8, user: bool, global: Global) -> u64 {
        match reg {
            Reg::Ctlr => {
                let enabled = if self.lpis_enabled {
                    ctlr::ENABLE_LPIS
                } else {
                    0
                };
                let caps = if global.revision >= 3 {
                    ctlr::CES | ctlr::IR
                } else {
                    0
                };
                (enabled | caps).into()
            }
            Reg::Iidr => regs::IIDR.into(),
            Reg::Typer => {
                let typer = u64::from(self.affinity.bits()) << 32
                    | u64::from(self.number) << 8
                    | u64::from(self.last) << 4
                    | u64::from(global.its);
                part(typer, offset, len)
            }
            Reg::Statusr => self.statusr.into(),
            Reg::Propbaser => part(self.propbaser, offset, len),
            Reg::Pendbaser => part(self.pendbaser & !baser::PTZ, offset, len),
            Reg::Interrupts(field, b) => self.bank.read(field, b, len, user),
            Reg::Pidr2 => regs::PIDR2.into(),
            Reg::Invlpir | Reg::Invallr | Reg::Zero => 0,
        }
    }

    fn set(
        &mut self,
        reg: Reg,
        offset: u64,
        len: u8,
        value: u64,
        user: bool,
        global: Global,
    ) -> Effect {
        let mut effect = Effect::default();
        match reg {
            Reg::Ctlr if global.its => {
                let enable = low(value) & ctlr::ENABLE_LPIS != 0;
                if enable != self.lpis_enabled {
                    self.lpis_enabled = enable;
                    if enable {
                        effect.lpi = LpiEffect::Enabled;
                    } else {
                        effect.lpi = LpiEffect::Disabled;
                        effect.ring = self.lpis.clear_all();
                    }
                }
            }
            // While LPIs are enabled, the tables stay where they are.
            Reg::Propbaser if !self.lpis_enabled => {
                self.propbaser = baser::prop(merge(self.propbaser, offset, len, value));
            }
            Reg::Pendbaser if !self.lpis_enabled => {
                self.pendbaser = baser::pend(merge(self.pendbaser, offset, len, value));
            }
            // The upper words are for virtual LPIs.
            Reg::Invlpir if self.lpis_enabled && offset & 4 == 0 => {
                effect.lpi = LpiEffect::Invalidate(low(value));
            }
            Reg::Invallr if self.lpis_enabled && offset & 4 == 0 => {
                effect.lpi = LpiEffect::InvalidateAll;
            }
            // SGIs are edge-triggered, PPIs level-triggered.
            Reg::Interrupts(Field::Config, _) => {}
            Reg::Interrupts(field, b) => {
                let changed = self.bank.write(field, b, len, value, user, !0);
                effect.ring = self.concerns(changed) || self.backed() & changed != 0;
            }
            _ => {}
        }
        effect
    }

    /// The PPIs that have a physical interrupt behind them.
    fn backed(&self) -> u32 {
        let mapped = self.pintid.iter().enumerate();
        mapped
            .filter(|(_, pintid)| pintid.is_some())
            .fold(0, |mask, (ppi, _)| mask | 1 << FIRST_PPI << ppi)
    }
}

/// What is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reg {
    Ctlr,
    Iidr,
    Typer,
    Statusr,
    Propbaser,
    Pendbaser,
    Invlpir,
    Invallr,
    /// With the first interrupt of the access
    Interrupts(Field, usize),
    Pidr2,
    /// Known, but reads as zero and ignores writes: GICR_WAKER (there is no power management),
    /// GICR_SYNCR (nothing is ever in progress), identification.
    Zero,
}

impl Reg {
    fn at(offset: u64) -> Option<Self> {
        Some(match offset & !3 {
            CTLR => Self::Ctlr,
            IIDR => Self::Iidr,
            TYPER | 0xc => Self::Typer,
            STATUSR => Self::Statusr,
            PROPBASER | 0x74 => Self::Propbaser,
            PENDBASER | 0x7c => Self::Pendbaser,
            INVLPIR | 0xa4 => Self::Invlpir,
            INVALLR | 0xb4 => Self::Invallr,
            PIDR2 => Self::Pidr2,
            WAKER | SYNCR | NSACR | IDREGS..SGI_BASE => Self::Zero,
            _ => {
                let at = offset.checked_sub(SGI_BASE)?;
                let (field, intid) = per_interrupt(at)?;
                // GICD_ITARGETSR<n> is not here.
                let here = intid < FIRST_SPI && at & !0x3ff != dist::ITARGETSR;
                here.then_some(Self::Interrupts(field, intid as usize))?
            }
        })
    }

    /// The register that a guest's access means, if it has such a size.
    fn of_guest(offset: u64, len: u8) -> Option<Self> {
        let reg = Self::at(offset)?;
        let word = len == 4 && offset & 3 == 0;
        let ok = match reg {
            Self::Interrupts(field, _) => may_access(field, offset, len),
            Self::Typer | Self::Propbaser | Self::Pendbaser | Self::Invlpir | Self::Invallr => {
                word || len == 8 && offset & 7 == 0
            }
            _ => word,
        };
        ok.then_some(reg)
    }

    fn of_user(offset: u64) -> Result<Self, RegError> {
        let reg = Self::at(offset).filter(|_| offset & 3 == 0);
        reg.ok_or(RegError::Unknown)
    }
}
