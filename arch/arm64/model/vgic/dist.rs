// SPDX-License-Identifier: GPL-2.0

//! The distributor: SPIs, and which vCPU each concerns.

use super::{
    bank::Bank, lr::Lr, Affinity, Bits, Global, NoSuchInterrupt, RegError, Vcpus, END_OF_SPIS,
    FIRST_SPI, MAX_VCPUS,
};
use crate::host::grow_vec::{GrowVec, NoMemory};

/// GICD_IROUTER<n>.Interrupt_Routing_Mode: any vCPU. We choose the first, always.
pub const IRM: u32 = 1 << 31;
/// GICD_IROUTER<n>: the routing mode and Aff2 to Aff0. GICD_TYPER.A3V is 0, so the upper word is
/// reserved.
const ROUTE_MASK: u32 = IRM | 0x00ff_ffff;
/// No vCPU
const NOBODY: u16 = u16::MAX;

/// What stays the same for the life of a distributor, but for the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// INTIDs of SGIs, PPIs and SPIs: 64 to 1024, a multiple of 32
    /// (KVM_DEV_ARM_VGIC_GRP_NR_IRQS)
    pub nr_irqs: u32,
    /// GICD_IIDR.Revision: 2 or 3
    pub revision: u8,
    /// There is an ITS.
    pub its: bool,
}

/// Why there is no distributor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewError {
    /// The configuration is out of range, or there are too many vCPUs: `EINVAL`.
    Invalid,
    /// `ENOMEM`
    NoMemory,
}

impl From<NoMemory> for NewError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// 32 SPIs.
pub(super) struct Spis {
    pub(super) bank: Bank,
    /// GICD_IROUTER<n>, the lower word
    route: [u32; 32],
    /// The vCPU that `route` means, or nobody
    target: [u16; 32],
    /// The vCPU in whose list the SPI is, or nobody
    listed: [u16; 32],
}

impl Spis {
    fn new() -> Self {
        Self {
            bank: Bank::new(0, 0),
            route: [0; 32],
            target: [NOBODY; 32],
            listed: [NOBODY; 32],
        }
    }

    /// Whom interrupt `b` concerns: in a list register or active, it stays where it is.
    fn place(&self, b: usize) -> u16 {
        let bit = 1 << b;
        let listed = self.listed.get(b).copied().unwrap_or(NOBODY);
        let target = self.target.get(b).copied().unwrap_or(NOBODY);
        if self.bank.in_lr & bit != 0 {
            listed
        } else if self.bank.active & bit != 0 {
            if listed == NOBODY {
                target
            } else {
                listed
            }
        } else if self.bank.ready() & bit != 0 {
            target
        } else {
            NOBODY
        }
    }
}

/// A vCPU, as the distributor sees it.
struct Cpu {
    affinity: Affinity,
    /// The SPIs that concern it, a word for each element of `Dist::spis`
    list: [u32; 31],
    /// Bit `w` is set when `list[w]` is not zero.
    summary: u32,
}

impl Cpu {
    fn set(&mut self, w: usize, bit: u32, on: bool) {
        if let Some(word) = self.list.get_mut(w) {
            *word = *word & !bit | if on { bit } else { 0 };
            self.summary = self.summary & !(1 << w) | if *word == 0 { 0 } else { 1 << w };
        }
    }
}

/// The distributor of a VM, with its SPIs.
///
/// # Invariants
///
/// An SPI is in the list of the vCPU that [`Spis::place`] says, and in no other; `listed` is that
/// vCPU.
pub struct Dist {
    pub(super) global: Global,
    pub(super) statusr: u32,
    nr_irqs: u32,
    spis: GrowVec<Spis>,
    cpus: GrowVec<Cpu>,
}

impl Dist {
    /// A distributor after a reset. `vcpus` are the affinities of all vCPUs, by index. The memory
    /// is some 330 bytes for 32 SPIs, and 130 for a vCPU.
    pub fn new(
        config: Config,
        vcpus: impl ExactSizeIterator<Item = Affinity>,
    ) -> Result<Self, NewError> {
        let Config {
            nr_irqs,
            revision,
            its,
        } = config;
        if !(64..=1024).contains(&nr_irqs)
            || nr_irqs % 32 != 0
            || !matches!(revision, 2 | 3)
            || !(1..=MAX_VCPUS).contains(&vcpus.len())
        {
            return Err(NewError::Invalid);
        }
        let banks = (nr_irqs / 32 - 1) as usize;
        let mut cpus = GrowVec::filled(vcpus.len(), || Cpu {
            affinity: Affinity::default(),
            list: [0; 31],
            summary: 0,
        })?;
        for (cpu, affinity) in cpus.iter_mut().zip(vcpus) {
            cpu.affinity = affinity;
        }
        let mut dist = Self {
            global: Global {
                its,
                revision,
                ..Global::default()
            },
            statusr: 0,
            nr_irqs,
            spis: GrowVec::filled(banks, Spis::new)?,
            cpus,
        };
        dist.reset();
        Ok(dist)
    }

    /// Resets the distributor and the SPIs. No vCPU may have an SPI in a list register: their
    /// list registers are dropped as well.
    pub fn reset(&mut self) {
        self.global.group0 = false;
        self.global.group1 = false;
        self.statusr = 0;
        // Affinity 0.0.0.0
        let first = self.resolve(0);
        for spis in self.spis.iter_mut() {
            // The level of a line is its device's.
            let line = spis.bank.line;
            *spis = Spis::new();
            spis.bank.line = line;
            spis.target = [first; 32];
        }
        for cpu in self.cpus.iter_mut() {
            cpu.list = [0; 31];
            cpu.summary = 0;
        }
    }

    /// What redistributors must know. Publish it whenever it may have changed.
    pub const fn global(&self) -> Global {
        self.global
    }

    /// INTIDs of SGIs, PPIs and SPIs; those from [`END_OF_SPIS`] on are not there all the same.
    pub const fn nr_irqs(&self) -> u32 {
        self.nr_irqs
    }

    /// Tells whether there is an ITS: until the guest runs, one may be created.
    pub fn set_its(&mut self, its: bool) {
        self.global.its = its;
    }

    /// Whether an SPI concerns this vCPU: it may take it, has it active, or has it in a list
    /// register. Else [`super::fill`] needs no distributor. It becomes true only for vCPUs whose
    /// bell is to ring, and for the one that folds: publish it for these, under the lock, and
    /// again after each fill.
    pub fn concerns(&self, vcpu: u16) -> bool {
        self.cpu(vcpu).is_some_and(|cpu| cpu.summary != 0)
    }

    /// The index of the vCPU with this affinity.
    pub fn vcpu_at(&self, affinity: Affinity) -> Option<u16> {
        let cpus = (0u16..).zip(self.cpus.iter());
        let mut found = cpus.filter(|(_, cpu)| cpu.affinity == affinity);
        found.next().map(|(index, _)| index)
    }

    /// A vCPU has another affinity: SPIs are routed anew.
    pub fn set_affinity(&mut self, vcpu: u16, affinity: Affinity) -> Vcpus {
        let mut ring = Vcpus::NONE;
        let Some(cpu) = self.cpus.get_mut(usize::from(vcpu)) else {
            return ring;
        };
        let names = [core::mem::replace(&mut cpu.affinity, affinity), affinity];
        // Others may have either.
        let targets = names.map(|a| (a.bits(), self.vcpu_at(a).unwrap_or(NOBODY)));
        for w in 0..self.spis.len() {
            let others = self.update(w, |spis| {
                let mut changed = 0;
                let routes = spis.route.iter().zip(&mut spis.target);
                for (b, (route, target)) in routes.enumerate() {
                    let named = targets.iter().find(|(name, _)| name == route);
                    if let Some((_, now)) = named.filter(|(_, now)| now != target) {
                        *target = *now;
                        changed |= 1 << b;
                    }
                }
                changed
            });
            ring = ring.or(others);
        }
        ring
    }

    /// The line of an SPI has the level `level`; for an edge-triggered one a high level is an
    /// edge.
    pub fn set_spi(&mut self, intid: u32, level: bool) -> Result<Vcpus, NoSuchInterrupt> {
        let (w, b) = self.locate(intid).ok_or(NoSuchInterrupt)?;
        Ok(self.update(w, |spis| spis.bank.set_line(b, level, true)))
    }

    /// The line of an SPI was high for a moment.
    pub fn pulse_spi(&mut self, intid: u32) -> Result<Vcpus, NoSuchInterrupt> {
        let (w, b) = self.locate(intid).ok_or(NoSuchInterrupt)?;
        Ok(self.update(w, |spis| spis.bank.pulse(b)))
    }

    /// The levels of the 32 lines from `intid`, a multiple of 32, on
    /// (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO); those of [`super::Private::level_info`] are not here.
    /// Lines of edge-triggered interrupts read as low.
    pub fn level_info(&self, intid: u32) -> Result<u32, RegError> {
        if intid % 32 != 0 {
            return Err(RegError::Invalid);
        }
        let spis = word_of(intid).and_then(|w| self.spis.get(w));
        Ok(spis.map_or(0, |spis| spis.bank.line & !spis.bank.edge))
    }

    /// Sets them, whether level- or edge-triggered: the configuration may be restored later.
    pub fn set_level_info(&mut self, intid: u32, levels: u32) -> Result<Vcpus, RegError> {
        if intid % 32 != 0 {
            return Err(RegError::Invalid);
        }
        let Some(w) = word_of(intid) else {
            return Ok(Vcpus::NONE);
        };
        let levels = levels & self.valid(w);
        Ok(self.update(w, |spis| {
            let changed = spis.bank.line ^ levels;
            spis.bank.line = levels;
            changed
        }))
    }

    /// The vCPUs that have any of the interrupts of a register in a list register, so that what
    /// the register shows may be old, and what is written to it takes effect when they fold. To
    /// be exact, have them fold first.
    pub fn stale(&self, offset: u64) -> Vcpus {
        let Some((field, first)) = super::regs::per_interrupt(offset) else {
            return Vcpus::NONE;
        };
        let spis = word_of(first).and_then(|w| self.spis.get(w));
        let Some(spis) = spis.filter(|_| field.may_be_stale()) else {
            return Vcpus::NONE;
        };
        let mut holders = Vcpus::NONE;
        for b in Bits(spis.bank.in_lr) {
            if let Some(&vcpu) = spis.listed.get(b) {
                holders.insert(vcpu);
            }
        }
        holders
    }

    /// Of the SPIs of word `w`, those that there are.
    pub(super) fn valid(&self, w: usize) -> u32 {
        match self.spis.get(w) {
            None => 0,
            // INTIDs 1020 to 1023 are special.
            Some(_) if w == 30 => 0x0fff_ffff,
            Some(_) => !0,
        }
    }

    pub(super) fn spis(&self, w: usize) -> Option<&Spis> {
        self.spis.get(w)
    }

    /// Word and bit of an SPI.
    fn locate(&self, intid: u32) -> Option<(usize, usize)> {
        if intid >= self.nr_irqs.min(END_OF_SPIS) {
            return None;
        }
        Some((word_of(intid)?, (intid & 31) as usize))
    }

    fn cpu(&self, vcpu: u16) -> Option<&Cpu> {
        self.cpus.get(usize::from(vcpu))
    }

    /// All vCPUs.
    pub(super) fn everyone(&self) -> Vcpus {
        Vcpus::first(self.cpus.len())
    }

    /// GICD_IROUTER<n>, the lower word.
    pub(super) fn route(&self, intid: u32) -> u32 {
        let spi = self.locate(intid);
        spi.and_then(|(w, b)| self.spis.get(w)?.route.get(b).copied())
            .unwrap_or(0)
    }

    pub(super) fn set_route(&mut self, intid: u32, value: u32) -> Vcpus {
        let Some((w, b)) = self.locate(intid) else {
            return Vcpus::NONE;
        };
        let value = value & ROUTE_MASK;
        let target = self.resolve(value);
        self.update(w, |spis| {
            if let (Some(route), Some(was)) = (spis.route.get_mut(b), spis.target.get_mut(b)) {
                *route = value;
                if *was != target {
                    *was = target;
                    return 1 << b;
                }
            }
            0
        })
    }

    fn resolve(&self, route: u32) -> u16 {
        if route & IRM != 0 {
            return 0;
        }
        self.vcpu_at(Affinity::from_bits(route)).unwrap_or(NOBODY)
    }

    /// Applies `f`, which returns what it has changed, to the SPIs of word `w`. Returns the vCPUs
    /// that should know: they may take one of these now, have it active, or in a list register.
    pub(super) fn update(&mut self, w: usize, f: impl FnOnce(&mut Spis) -> u32) -> Vcpus {
        let mut ring = Vcpus::NONE;
        let Some(spis) = self.spis.get_mut(w) else {
            return ring;
        };
        let changed = f(spis);
        let bank = &spis.bank;
        let interesting = bank.ready() | bank.in_lr | bank.active;
        for b in Bits(changed) {
            let now = spis.place(b);
            let Some(listed) = spis.listed.get_mut(b) else {
                continue;
            };
            if now != *listed {
                // INVARIANT: the list of the one loses it, that of the other gets it.
                if let Some(cpu) = self.cpus.get_mut(usize::from(*listed)) {
                    cpu.set(w, 1 << b, false);
                }
                if let Some(cpu) = self.cpus.get_mut(usize::from(now)) {
                    cpu.set(w, 1 << b, true);
                }
                *listed = now;
            }
            if interesting & 1 << b != 0 {
                ring.insert(now);
            }
        }
        ring
    }

    /// The words of the SPIs that concern `vcpu`: word, those in its list, their state.
    pub(super) fn listed(&self, vcpu: u16) -> impl Iterator<Item = (usize, u32, &Bank)> {
        let (summary, list) = self
            .cpu(vcpu)
            .map_or((0, None), |cpu| (cpu.summary, Some(&cpu.list)));
        Bits(summary).filter_map(move |w| {
            let mask = list?.get(w).copied()?;
            Some((w, mask, &self.spis.get(w)?.bank))
        })
    }

    /// Puts an SPI from the list of `vcpu` into a list register of it.
    pub(super) fn lend(&mut self, vcpu: u16, intid: u32, deliver: bool) -> Option<Lr> {
        let (w, b) = self.locate(intid)?;
        let spis = self.spis.get_mut(w)?;
        // An active interrupt may have another target by now, which then gets the next.
        let deliver = deliver && spis.target.get(b) == Some(&vcpu);
        // It stays in the list.
        Some(spis.bank.lend(b, intid, deliver, None))
    }

    /// Takes an SPI back. True if it is level-triggered and the guest has ended it.
    pub(super) fn reclaim(&mut self, lr: Lr, ring: &mut Vcpus) -> bool {
        let Some((w, b)) = self.locate(lr.intid()) else {
            return false;
        };
        let mut ended = false;
        let others = self.update(w, |spis| {
            ended = spis.bank.reclaim(b, lr).ended && spis.bank.edge & 1 << b == 0;
            1 << b
        });
        *ring = ring.or(others);
        ended
    }

    /// Ends an active SPI from outside of its list register. True if it is level-triggered, and
    /// ended with that.
    pub(super) fn deactivate(&mut self, intid: u32, ring: &mut Vcpus) -> bool {
        let Some((w, b)) = self.locate(intid) else {
            return false;
        };
        let mut ended = false;
        let others = self.update(w, |spis| {
            let bit = 1 << b;
            if (spis.bank.active | spis.bank.in_lr) & bit == 0 {
                return 0;
            }
            ended = spis.bank.deactivate(b) && spis.bank.edge & bit == 0;
            bit
        });
        *ring = ring.or(others);
        ended
    }
}

/// The word that has this SPI.
pub(super) const fn word_of(intid: u32) -> Option<usize> {
    match intid.checked_sub(FIRST_SPI) {
        Some(spi) => Some((spi / 32) as usize),
        None => None,
    }
}
