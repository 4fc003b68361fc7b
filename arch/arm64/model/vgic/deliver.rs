// SPDX-License-Identifier: GPL-2.0

//! Into list registers before an entry, and back after it.

use super::{
    bank::Bank,
    dist::{word_of, Dist},
    hcr,
    private::Private,
    select::{Class, Key, Outside, Selection},
    Bits, Global, ListRegs, Lr, LrConfig, Vcpus, END_OF_SPIS, FIRST_LPI, FIRST_SPI, MAX_LRS,
};

/// SPIs are in list registers, but there was no distributor to give them back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsDist;

/// The most interrupts that can end in one run: those of the list registers, and EOIcount.
const MAX_ENDED: usize = MAX_LRS + 31;

/// Level-triggered SPIs that the guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    intids: [u16; MAX_ENDED],
    len: usize,
}

impl Ended {
    fn push(&mut self, intid: u32) {
        if let (Some(slot), Ok(intid)) = (self.intids.get_mut(self.len), u16::try_from(intid)) {
            *slot = intid;
            self.len += 1;
        }
    }

    /// The INTIDs.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.intids.iter().take(self.len).map(|&intid| intid.into())
    }
}

/// What the ends of interrupts lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "others wait for the end of these interrupts"]
pub struct Outcome {
    /// Level-triggered SPIs that are over: irqfds with resampling look at their lines.
    pub ended: Ended,
    /// SGIs and PPIs that are over, a bit each: look at the lines of those that have a physical
    /// interrupt behind them.
    pub ended_private: u32,
    /// Of these, those whose physical interrupt the hardware has not deactivated: do it.
    pub deactivate: u32,
    /// Other vCPUs whose bell is to ring
    pub ring: Vcpus,
}

impl Outcome {
    const NONE: Self = Self {
        ended: Ended {
            intids: [0; MAX_ENDED],
            len: 0,
        },
        ended_private: 0,
        deactivate: 0,
        ring: Vcpus::NONE,
    };
}

/// Fills the list registers, which were folded before: if they were not, nothing happens.
///
/// `dist` may be left out if [`Dist::concerns`] says so. The list registers are allotted to, in
/// this order: what is pending; what is active; what is pending in a group that the guest's CPU
/// interface has disabled. Within each, to the highest priorities. If something does not fit, a
/// maintenance interrupt comes when that may have to change.
pub fn fill(
    vcpu: &mut Private,
    mut dist: Option<&mut Dist>,
    global: Global,
    hw: &LrConfig,
    out: &mut ListRegs,
) {
    if out.loaded {
        return;
    }
    let mut selection = Selection::new(hw.count.into());
    out.spis = false;
    candidates(vcpu, dist.as_deref(), global, |key| {
        out.spis |= is_spi(key.intid());
        selection.offer(key);
    });
    out.used = 0;
    out.lr = Default::default();
    for key in selection.chosen() {
        if let Some(lr) = lend(vcpu, dist.as_deref_mut(), global, key.intid()) {
            if let Some(slot) = out.lr.get_mut(out.used) {
                *slot = lr;
                out.used += 1;
            }
        }
    }
    out.overflow = selection.outside.any();
    out.hcr = control(vcpu, &selection.outside, hw);
    out.loaded = true;
}

/// Takes back what [`fill`] gave, as the guest left it in `regs`, and empties them. The CPU
/// interface has been saved before. Without `dist` it fails if [`ListRegs::spis`]; then nothing
/// has happened.
///
/// What an interrupt's end does not say, as it was in no list register, follows from EOIcount: the
/// guest ends interrupts from the highest priority on (IHI 0069, 4.8). With EOImode 1 this does
/// not hold, but then ICC_DIR_EL1 traps: [`deactivate`].
pub fn fold(
    vcpu: &mut Private,
    mut dist: Option<&mut Dist>,
    regs: &mut ListRegs,
) -> Result<Outcome, NeedsDist> {
    let mut outcome = Outcome::NONE;
    if !regs.loaded {
        return Ok(outcome);
    }
    if regs.spis && dist.is_none() {
        return Err(NeedsDist);
    }
    // Before the list registers, as these still tell what was outside.
    if !vcpu.cpuif.vmcr.eoi_split() {
        for _ in 0..hcr::eoi_count(regs.hcr) {
            match first_active(vcpu, dist.as_deref()) {
                Some(intid) => end(vcpu, dist.as_deref_mut(), intid, &mut outcome),
                None => break,
            }
        }
    }
    for &lr in regs.in_use() {
        let intid = lr.intid();
        if intid < FIRST_SPI {
            let b = intid as usize;
            if vcpu.bank.reclaim(b, lr).ended {
                outcome.ended_private |= 1 << intid;
                if vcpu.pintid(b).is_some() && lr.pintid().is_none() {
                    outcome.deactivate |= 1 << intid;
                }
            }
        } else if intid >= FIRST_LPI {
            vcpu.lpis.reclaim(intid, lr.is_pending());
        } else if let Some(dist) = dist.as_deref_mut() {
            if dist.reclaim(lr, &mut outcome.ring) {
                outcome.ended.push(intid);
            }
        }
    }
    outcome.ring.remove(vcpu.index);
    *regs = ListRegs::default();
    Ok(outcome)
}

/// The guest wrote `intid` to ICC_DIR_EL1, which trapped, and the vCPU has folded. If the
/// interrupt is an SPI, give the distributor, as another vCPU may have it active. Of an SPI in
/// another vCPU's list register it takes effect when that folds: its bell is to ring.
pub fn deactivate(vcpu: &mut Private, dist: Option<&mut Dist>, intid: u32) -> Outcome {
    let mut outcome = Outcome::NONE;
    // With EOImode 0 the write has no effect (IHI 0069, 12.2.10).
    if vcpu.cpuif.vmcr.eoi_split() {
        end(vcpu, dist, intid, &mut outcome);
    }
    outcome
}

/// Whether the vCPU, which has folded, would be signalled an interrupt now, and so not wait:
/// pending, enabled, in a group that distributor and CPU interface have enabled, and of a
/// priority that ICC_PMR_EL1 lets through. `dist` as for [`fill`].
pub fn pending_for(vcpu: &Private, dist: Option<&Dist>, global: Global) -> bool {
    let pmr = vcpu.cpuif.vmcr.pmr();
    let mut found = false;
    candidates(vcpu, dist, global, |key| {
        found |= key.is_pending() && key.priority() < pmr;
    });
    found
}

const fn is_spi(intid: u32) -> bool {
    FIRST_SPI <= intid && intid < END_OF_SPIS
}

/// All that could be in a list register of `vcpu`.
fn candidates(vcpu: &Private, dist: Option<&Dist>, global: Global, mut offer: impl FnMut(Key)) {
    let class = |group1: bool| {
        if vcpu.cpuif.vmcr.group(group1) {
            Class::Pending
        } else {
            Class::Off
        }
    };
    let mut word = |first: u32, mask: u32, bank: &Bank, pintids: Option<&Private>| {
        let ready = bank.ready() & global.forwards(bank.group);
        for b in Bits((ready | bank.active & !bank.in_lr) & mask) {
            let group1 = bank.group & 1 << b != 0;
            let class = match bank.active & 1 << b {
                0 => class(group1),
                _ => Class::Active,
            };
            let intid = first + b as u32;
            let backed = pintids.is_some_and(|vcpu| vcpu.pintid(b).is_some());
            offer(Key::new(class, bank.priority(b), backed, intid, group1));
        }
    };
    word(0, !0, &vcpu.bank, Some(vcpu));
    if let Some(dist) = dist {
        for (w, mask, bank) in dist.listed(vcpu.index) {
            word(FIRST_SPI + 32 * w as u32, mask, bank, None);
        }
    }
    // LPIs are of group 1.
    if vcpu.lpis_enabled && global.group1 {
        for (intid, priority) in vcpu.lpis.ready() {
            offer(Key::new(class(true), priority, false, intid, true));
        }
    }
}

/// Puts `intid` into a list register.
fn lend(vcpu: &mut Private, dist: Option<&mut Dist>, global: Global, intid: u32) -> Option<Lr> {
    if intid < FIRST_SPI {
        let b = intid as usize;
        let pintid = vcpu.pintid(b);
        let deliver = global.forwards(vcpu.bank.group) & 1 << b != 0;
        Some(vcpu.bank.lend(b, intid, deliver, pintid))
    } else if intid >= FIRST_LPI {
        let priority = vcpu.lpis.lend(intid)?;
        Some(Lr::new(intid, priority, true).state(true, false))
    } else {
        let dist = dist?;
        let bank = &dist.spis(word_of(intid)?)?.bank;
        let deliver = global.forwards(bank.group) & 1 << (intid & 31) != 0;
        dist.lend(vcpu.index, intid, deliver)
    }
}

/// ICH_HCR_EL2 for the next entry.
fn control(vcpu: &Private, outside: &Outside, hw: &LrConfig) -> u64 {
    let vmcr = vcpu.cpuif.vmcr;
    let mut value = hcr::EN;
    let [off0, off1] = outside.off;
    if outside.pending {
        // All list registers are pending, so this does not come at once.
        value |= hcr::NPIE;
        // If the guest disables the group of those inside, the others' turn comes.
        if vmcr.group(false) {
            value |= hcr::VGRP0DIE;
        }
        if vmcr.group(true) {
            value |= hcr::VGRP1DIE;
        }
    }
    if off0 {
        value |= hcr::VGRP0EIE;
    }
    if off1 {
        value |= hcr::VGRP1EIE;
    }
    if outside.active {
        value |= hcr::LRENPIE;
    }
    // Which interrupt is deactivated, only the write itself tells: one outside of the list
    // registers, or, as any vCPU may do it, one in those of another. The guest may set EOImode without
    // an exit, and with EOImode 0 it does not write there, so it always traps; TC, which costs more,
    // comes with the next exit after that.
    if hw.tds {
        value |= hcr::TDIR;
    } else if outside.active || vmcr.eoi_split() {
        value |= hcr::TC;
    }
    value
}

/// The active interrupt of the highest priority that is in no list register.
fn first_active(vcpu: &Private, dist: Option<&Dist>) -> Option<u32> {
    let private = vcpu.bank.first_active(!0);
    let mut best = private.map(|(priority, b)| (priority, b as u32));
    for (w, mask, bank) in dist.into_iter().flat_map(|d| d.listed(vcpu.index)) {
        let here = bank.first_active(mask);
        let here = here.map(|(priority, b)| (priority, FIRST_SPI + (32 * w + b) as u32));
        best = match (best, here) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    best.map(|(_, intid)| intid)
}

/// Deactivates an interrupt that is in none of the vCPU's list registers.
fn end(vcpu: &mut Private, dist: Option<&mut Dist>, intid: u32, outcome: &mut Outcome) {
    if intid < FIRST_SPI {
        let bit = 1 << intid;
        if vcpu.bank.active & bit != 0 && vcpu.bank.deactivate(intid as usize) {
            outcome.ended_private |= bit;
            if vcpu.pintid(intid as usize).is_some() {
                outcome.deactivate |= bit;
            }
        }
    } else if let Some(dist) = dist.filter(|_| is_spi(intid)) {
        if dist.deactivate(intid, &mut outcome.ring) {
            outcome.ended.push(intid);
        }
    }
}
