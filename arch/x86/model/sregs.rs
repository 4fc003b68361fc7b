// SPDX-License-Identifier: GPL-2.0

//! Rules for control and debug registers, EFER, XCR0 and APIC_BASE: what a guest's MOV, XSETBV or
//! WRMSR may load, what follows from it, and which values KVM_SET_SREGS may put in.
//!
//! Every function takes the old state and returns the new one or the fault; nothing is changed in
//! place. Sources: APM vol. 2 3.1, 5.3, 13.1, 14.6; SDM vol. 3A 2.5, 4.1, 9.8, 17.2.

use super::cpuid::{Feature, GuestFeatures};
use super::regs::{cr0, cr4, efer};
use super::xstate;

/// The guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// CR0, CR3, CR4 and EFER together: their rules refer to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// CR0
    pub cr0: u64,
    /// CR3
    pub cr3: u64,
    /// CR4
    pub cr4: u64,
    /// EFER
    pub efer: u64,
}

/// What the shell has to do after a register has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects(u8);

impl Effects {
    /// Nothing.
    pub const NONE: Effects = Effects(0);
    /// Flush the guest's translations (global ones too).
    pub const FLUSH_TLB: Effects = Effects(1);
    /// Flush the guest's translations that are not global.
    pub const FLUSH_TLB_LOCAL: Effects = Effects(2);
    /// Load the four PDPTEs from CR3; #GP(0) and nothing changed if one of them is invalid.
    pub const LOAD_PDPTES: Effects = Effects(4);
    /// Long mode was entered or left (EFER.LMA changed).
    pub const LONG_MODE: Effects = Effects(8);
    /// CPUID shows something else now.
    pub const CPUID: Effects = Effects(16);

    /// All effects of `other` are in the set.
    #[inline]
    pub const fn has(self, other: Effects) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together.
    #[inline]
    pub const fn and(self, other: Effects) -> Effects {
        Effects(self.0 | other.0)
    }

    #[inline]
    const fn and_if(self, on: bool, other: Effects) -> Effects {
        if on {
            self.and(other)
        } else {
            self
        }
    }
}

impl Control {
    /// Paging is on and PAE paging without long mode is in force: PDPTEs matter.
    #[inline]
    pub const fn pae_paging(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// MOV to CR0, or LMSW with the bits it keeps put in. `cs_long` is CS.L; `value` is 32 bits
    /// wide outside 64-bit mode.
    ///
    /// # Errors
    /// [`Gp`] for what APM 3.1.1 and SDM 2.5 forbid.
    pub fn mov_cr0(self, value: u64, cs_long: bool) -> Result<(Control, Effects), Gp> {
        if value >> 32 != 0 {
            return Err(Gp);
        }
        // Reserved bits of the lower half are ignored; ET is always one.
        let new = (value & cr0::DEFINED) | cr0::ET;
        cr0_valid(new)?;
        let changed = self.cr0 ^ new;
        let on = new & cr0::PG != 0;
        let mut next = Control { cr0: new, ..self };
        if changed & cr0::PG != 0 {
            if on && self.efer & efer::LME != 0 {
                if self.cr4 & cr4::PAE == 0 || cs_long {
                    return Err(Gp);
                }
                next.efer |= efer::LMA;
            } else if !on {
                // Not from 64-bit code, and not with PCIDs in use.
                let in_64bit = self.efer & efer::LMA != 0 && cs_long;
                if in_64bit || self.cr4 & cr4::PCIDE != 0 {
                    return Err(Gp);
                }
                next.efer &= !efer::LMA;
            }
        }
        if new & cr0::WP == 0 && self.cr4 & cr4::CET != 0 {
            return Err(Gp);
        }
        let paging_changed = changed & cr0::PG != 0;
        let reload = changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && next.pae_paging();
        Ok((
            next,
            Effects::NONE
                .and_if(paging_changed || changed & cr0::WP != 0, Effects::FLUSH_TLB)
                .and_if(reload, Effects::LOAD_PDPTES)
                .and_if(self.efer != next.efer, Effects::LONG_MODE),
        ))
    }

    /// MOV to CR3. The no-flush bit (63, with CR4.PCIDE) is taken out of the result.
    ///
    /// # Errors
    /// [`Gp`] if address bits above MAXPHYADDR are set.
    pub fn mov_cr3(self, value: u64, f: &GuestFeatures) -> Result<(Control, Effects), Gp> {
        const NO_FLUSH: u64 = 1 << 63;
        let pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value & NO_FLUSH != 0;
        let value = if pcid { value & !NO_FLUSH } else { value };
        if value & f.reserved_gpa_bits() != 0 {
            return Err(Gp);
        }
        let next = Control { cr3: value, ..self };
        Ok((
            next,
            Effects::NONE
                .and_if(!keep, Effects::FLUSH_TLB_LOCAL)
                .and_if(next.pae_paging(), Effects::LOAD_PDPTES),
        ))
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// [`Gp`] for a bit that the guest does not have, and for changes that its mode forbids.
    pub fn mov_cr4(self, value: u64, f: &GuestFeatures) -> Result<(Control, Effects), Gp> {
        if value & !f.cr4 != 0 {
            return Err(Gp);
        }
        let changed = self.cr4 ^ value;
        if self.efer & efer::LMA != 0 {
            if value & cr4::PAE == 0 || changed & cr4::LA57 != 0 {
                return Err(Gp);
            }
        } else if value & cr4::PCIDE != 0 {
            return Err(Gp);
        }
        if changed & value & cr4::PCIDE != 0 && self.cr3 & 0xfff != 0 {
            return Err(Gp);
        }
        if value & cr4::CET != 0 && self.cr0 & cr0::WP == 0 {
            return Err(Gp);
        }
        const TRANSLATION: u64 =
            cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::LA57 | cr4::PKE;
        const PDPTES: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP;
        let flush = changed & TRANSLATION != 0 || changed & !value & cr4::PCIDE != 0;
        let next = Control { cr4: value, ..self };
        Ok((
            next,
            Effects::NONE
                .and_if(flush, Effects::FLUSH_TLB)
                .and_if(
                    changed & PDPTES != 0 && next.pae_paging(),
                    Effects::LOAD_PDPTES,
                )
                .and_if(changed & (cr4::OSXSAVE | cr4::PKE) != 0, Effects::CPUID),
        ))
    }

    /// WRMSR to EFER by the guest. LMA keeps its value, whatever is written.
    ///
    /// # Errors
    /// [`Gp`] for a bit that the guest does not have, and if LME changes while paging is on.
    pub fn write_efer(self, value: u64, f: &GuestFeatures) -> Result<(Control, Effects), Gp> {
        if value & !f.efer != 0 {
            return Err(Gp);
        }
        let changed = self.efer ^ value;
        if changed & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            return Err(Gp);
        }
        let new = (value & !efer::LMA) | (self.efer & efer::LMA);
        Ok((
            Control { efer: new, ..self },
            Effects::NONE.and_if(changed & efer::NXE != 0, Effects::FLUSH_TLB),
        ))
    }
}

/// CR0's own rules (APM 3.1.1): no paging without protection, no NW without CD.
const fn cr0_valid(v: u64) -> Result<(), Gp> {
    let paging_alone = v & cr0::PG != 0 && v & cr0::PE == 0;
    let nw_alone = v & cr0::NW != 0 && v & cr0::CD == 0;
    if paging_alone || nw_alone {
        Err(Gp)
    } else {
        Ok(())
    }
}

/// MOV to CR8 (the task priority, 4 bits).
///
/// # Errors
/// [`Gp`] for a value above 15.
pub const fn mov_cr8(value: u64) -> Result<u8, Gp> {
    if value > 15 {
        return Err(Gp);
    }
    Ok((value & 15) as u8)
}

/// Why KVM_SET_SREGS refuses a set of registers (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// CR0 has bits above 31.
    Cr0Reserved,
    /// CR0.PG without CR0.PE.
    PagingWithoutProtection,
    /// CR0.NW without CR0.CD.
    NotWriteThroughWithoutCacheDisable,
    /// CR4 has bits that the guest lacks.
    Cr4Reserved(u64),
    /// CR4 bits that do not go with the mode (PCIDE outside long mode, CET without CR0.WP).
    Cr4Mode,
    /// EFER has bits that the guest lacks.
    EferReserved(u64),
    /// Long mode (PG and LME) without CR4.PAE.
    LongModeWithoutPae,
    /// EFER.LMA is not what PG and LME say.
    LongModeActive,
    /// CS.L outside long mode.
    CsLong,
    /// CR3 has address bits above MAXPHYADDR.
    Cr3Reserved,
}

/// Checks the control registers that KVM_SET_SREGS(2) would load, as a whole. `cs_long` is CS.L.
/// The APIC base has its own rule, [`apic_base_valid`].
///
/// # Errors
/// The first rule that is broken.
pub fn check(c: &Control, cs_long: bool, f: &GuestFeatures) -> Result<(), Invalid> {
    if c.cr0 >> 32 != 0 {
        return Err(Invalid::Cr0Reserved);
    }
    if c.cr0 & cr0::PG != 0 && c.cr0 & cr0::PE == 0 {
        return Err(Invalid::PagingWithoutProtection);
    }
    if c.cr0 & cr0::NW != 0 && c.cr0 & cr0::CD == 0 {
        return Err(Invalid::NotWriteThroughWithoutCacheDisable);
    }
    if c.cr4 & !f.cr4 != 0 {
        return Err(Invalid::Cr4Reserved(c.cr4 & !f.cr4));
    }
    if c.efer & !f.efer != 0 {
        return Err(Invalid::EferReserved(c.efer & !f.efer));
    }
    let lma = c.efer & efer::LMA != 0;
    if c.efer & efer::LME != 0 && c.cr0 & cr0::PG != 0 {
        if c.cr4 & cr4::PAE == 0 {
            return Err(Invalid::LongModeWithoutPae);
        }
        if !lma {
            return Err(Invalid::LongModeActive);
        }
        if c.cr3 & f.reserved_gpa_bits() != 0 {
            return Err(Invalid::Cr3Reserved);
        }
    } else {
        if lma {
            return Err(Invalid::LongModeActive);
        }
        if cs_long {
            return Err(Invalid::CsLong);
        }
    }
    let cet_alone = c.cr4 & cr4::CET != 0 && c.cr0 & cr0::WP == 0;
    let pcid_alone = c.cr4 & cr4::PCIDE != 0 && !lma;
    if cet_alone || pcid_alone {
        return Err(Invalid::Cr4Mode);
    }
    Ok(())
}

/// What has to be done when KVM_SET_SREGS replaces `old` by `new` (which [`check`] has passed).
pub fn replaced(old: &Control, new: &Control) -> Effects {
    Effects::NONE
        .and_if(old != new, Effects::FLUSH_TLB)
        .and_if(new.pae_paging(), Effects::LOAD_PDPTES)
        .and_if((old.efer ^ new.efer) & efer::LMA != 0, Effects::LONG_MODE)
        .and_if(
            (old.cr4 ^ new.cr4) & (cr4::OSXSAVE | cr4::PKE) != 0,
            Effects::CPUID,
        )
}

/// IA32_APIC_BASE: the processor is the bootstrap one.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const APIC_BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is on.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;

/// Checks a value for IA32_APIC_BASE by itself: reserved bits, and no x2APIC without enable.
///
/// # Errors
/// [`Gp`] if it cannot be loaded.
pub fn apic_base_valid(value: u64, f: &GuestFeatures) -> Result<(), Gp> {
    let mut reserved = 0x2ff | f.reserved_gpa_bits();
    if !f.has(Feature::X2apic) {
        reserved |= APIC_BASE_EXTD;
    }
    let mode = value & (APIC_BASE_EXTD | APIC_BASE_ENABLE);
    if value & reserved != 0 || mode == APIC_BASE_EXTD {
        return Err(Gp);
    }
    Ok(())
}

/// Checks a guest's write of IA32_APIC_BASE over `old`: also the transitions that the x2APIC
/// forbids (SDM 11.12.5): from x2APIC only to disabled, and never from disabled to x2APIC at once.
///
/// # Errors
/// [`Gp`] if the write faults.
pub fn apic_base_write(old: u64, value: u64, f: &GuestFeatures) -> Result<(), Gp> {
    apic_base_valid(value, f)?;
    let mode = |v: u64| (v & APIC_BASE_ENABLE != 0, v & APIC_BASE_EXTD != 0);
    match (mode(old), mode(value)) {
        ((true, true), (true, false)) | ((false, false), (true, true)) => Err(Gp),
        _ => Ok(()),
    }
}

/// XSETBV with ECX = `index`, EDX:EAX = `value`. The caller has checked CPL and CR4.OSXSAVE.
///
/// # Errors
/// [`Gp`] for another register than XCR0, and for a value that it cannot have.
pub fn xsetbv(index: u32, value: u64, f: &GuestFeatures) -> Result<u64, Gp> {
    if index != 0 || !xstate::xcr0_valid(value, f.xcr0) {
        return Err(Gp);
    }
    Ok(value)
}

/// DR6 after reset: the bits that are always one (or active low).
pub const DR6_INIT: u64 = 0xffff_0ff0;
/// DR7 after reset.
pub const DR7_INIT: u64 = 0x400;
/// DR6: B0-B3, BD, BS, BT.
const DR6_WRITABLE: u64 = 0xe00f;
/// DR6.RTM, DR7.RTM (with the feature RTM).
const DR6_RTM: u64 = 1 << 16;
const DR7_RTM: u64 = 1 << 11;
/// DR6.BLD, bus lock detected (active low).
const DR6_BUS_LOCK: u64 = 1 << 11;
/// DR7: enables, LE, GE, GD, and the conditions.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR7.GD
pub const DR7_GD: u64 = 1 << 13;

/// What DR6 holds after `value` is written to it.
///
/// # Errors
/// [`Gp`] if a bit of the upper half is set.
pub fn write_dr6(value: u64, f: &GuestFeatures) -> Result<u64, Gp> {
    if value >> 32 != 0 {
        return Err(Gp);
    }
    let mut writable = DR6_WRITABLE;
    if f.has(Feature::Rtm) {
        writable |= DR6_RTM;
    }
    if f.has(Feature::BusLockDetect) {
        writable |= DR6_BUS_LOCK;
    }
    Ok((value & writable) | (DR6_INIT & !writable))
}

/// What DR7 holds after `value` is written to it.
///
/// # Errors
/// [`Gp`] if a bit of the upper half is set.
pub fn write_dr7(value: u64, f: &GuestFeatures) -> Result<u64, Gp> {
    if value >> 32 != 0 {
        return Err(Gp);
    }
    let rtm = if f.has(Feature::Rtm) { DR7_RTM } else { 0 };
    Ok((value & (DR7_WRITABLE | rtm)) | DR7_INIT)
}

/// The debug register that number `n` (0 to 7) of a MOV names: DR4 and DR5 are DR6 and DR7, unless
/// CR4.DE makes them undefined.
///
/// `None` means #UD.
pub const fn debug_register(n: u8, cr4: u64) -> Option<u8> {
    match n {
        4 | 5 if cr4 & cr4::DE != 0 => None,
        4 | 5 => Some(n + 2),
        0..=3 | 6 | 7 => Some(n),
        _ => None,
    }
}
