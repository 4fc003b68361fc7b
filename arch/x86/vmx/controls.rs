// SPDX-License-Identifier: GPL-2.0

//! Which controls of VMX are used, and whether this processor has them: one table.
//!
//! Intel SDM vol. 3C 26.6 to 26.8 (the controls), vol. 3D appendix A (the capability MSRs). Pure.

use crate::arch::x86::exit::{Intercepts, Windows};

/// Pin-based controls (26.6.1).
mod pin {
    /// VMX-preemption timer
    pub(super) const TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls (26.6.2).
pub(crate) mod proc {
    /// Interrupt-window exiting
    pub(crate) const INTERRUPT_WINDOW: u32 = 1 << 2;
    /// HLT exiting
    pub(crate) const HLT: u32 = 1 << 7;
    /// INVLPG exiting
    pub(crate) const INVLPG: u32 = 1 << 9;
    /// MWAIT exiting
    pub(crate) const MWAIT: u32 = 1 << 10;
    /// RDPMC exiting
    pub(crate) const RDPMC: u32 = 1 << 11;
    /// RDTSC exiting
    pub(crate) const RDTSC: u32 = 1 << 12;
    /// CR8-load exiting
    pub(crate) const CR8_LOAD: u32 = 1 << 19;
    /// NMI-window exiting
    pub(crate) const NMI_WINDOW: u32 = 1 << 22;
    /// MOV-DR exiting
    pub(crate) const MOV_DR: u32 = 1 << 23;
    /// MONITOR exiting
    pub(crate) const MONITOR: u32 = 1 << 29;
}

/// Secondary processor-based controls (26.6.2).
pub(crate) mod proc2 {
    /// Enable RDTSCP
    pub(crate) const RDTSCP: u32 = 1 << 3;
    /// Virtualize x2APIC mode, and virtual-interrupt delivery
    pub(crate) const DELIVERY: u32 = 1 << 4 | 1 << 9;
    /// PAUSE-loop exiting
    pub(crate) const PAUSE_LOOP: u32 = 1 << 10;
    /// Enable INVPCID
    pub(crate) const INVPCID: u32 = 1 << 12;
    /// Enable PML
    pub(crate) const PML: u32 = 1 << 17;
    /// Use TSC scaling
    pub(crate) const TSC_SCALING: u32 = 1 << 25;
}

/// VM-entry controls (26.8.1).
pub(crate) mod entry {
    /// IA-32e mode guest
    pub(crate) const LONG_MODE: u32 = 1 << 9;
}

/// A word of controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Pin-based
    Pin,
    /// Primary processor-based
    Proc,
    /// Secondary processor-based
    Proc2,
    /// VM-exit
    Exit,
    /// VM-entry
    Entry,
}

/// What is lost without a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// rkvm does not run.
    Refused,
    /// It runs, without this.
    Lost(&'static str),
    /// The same, and it is set on demand.
    LostOnDemand(&'static str),
    /// It must be possible to have it off, and it is; set on demand.
    OnDemand,
    /// It must be possible to have it off, and it stays off.
    Off,
}

/// One control.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    /// The word that it is in.
    pub(crate) word: Word,
    /// Its bit there.
    pub(crate) bit: u32,
    /// The manual's name.
    pub(crate) name: &'static str,
    /// What if the processor lacks it.
    pub(crate) without: Without,
}

const fn c(word: Word, bit: u32, name: &'static str, without: Without) -> Control {
    Control {
        word,
        bit,
        name,
        without,
    }
}

use Without::{Lost, LostOnDemand, Off, OnDemand, Refused};

/// Every control that is set, or has to be clear.
///
/// Not here, so off where the processor lets us: acknowledge interrupt on exit (host interrupts are
/// taken by enabling them) and so posted interrupts, which require it; virtualization of the local APIC's
/// page (it exits) and of its registers, VM functions, mode-based execute, and what enables instructions
/// that guests are not shown (XSAVES, UMWAIT and its like, ENCLV).
#[rustfmt::skip]
pub(crate) const TABLE: &[Control] = &[
    c(Word::Pin, 0, "external-interrupt exiting", Refused),
    c(Word::Pin, 3, "NMI exiting", Refused),
    c(Word::Pin, 5, "virtual NMIs", Refused),
    c(Word::Pin, 6, "VMX-preemption timer", Lost("no bound on a stay in the guest but the host's interrupts")),
    c(Word::Pin, 7, "process posted interrupts", Off),
    c(Word::Proc, 2, "interrupt-window exiting", OnDemand),
    c(Word::Proc, 3, "use TSC offsetting", Refused),
    c(Word::Proc, 7, "HLT exiting", OnDemand),
    c(Word::Proc, 9, "INVLPG exiting", OnDemand),
    c(Word::Proc, 10, "MWAIT exiting", OnDemand),
    c(Word::Proc, 11, "RDPMC exiting", OnDemand),
    c(Word::Proc, 12, "RDTSC exiting", OnDemand),
    c(Word::Proc, 15, "CR3-load exiting", Off),
    c(Word::Proc, 16, "CR3-store exiting", Off),
    c(Word::Proc, 19, "CR8-load exiting", OnDemand),
    c(Word::Proc, 20, "CR8-store exiting", Off),
    c(Word::Proc, 21, "use TPR shadow", Refused),
    c(Word::Proc, 22, "NMI-window exiting", OnDemand),
    c(Word::Proc, 23, "MOV-DR exiting", OnDemand),
    c(Word::Proc, 24, "unconditional I/O exiting", Refused),
    c(Word::Proc, 25, "use I/O bitmaps", Off),
    c(Word::Proc, 27, "monitor trap flag", Off),
    c(Word::Proc, 28, "use MSR bitmaps", Refused),
    c(Word::Proc, 29, "MONITOR exiting", OnDemand),
    c(Word::Proc, 30, "PAUSE exiting", OnDemand),
    c(Word::Proc, 31, "activate secondary controls", Refused),
    c(Word::Proc2, 1, "enable EPT", Refused),
    c(Word::Proc2, 3, "enable RDTSCP", Lost("guests have no RDTSCP")),
    c(Word::Proc2, 4, "virtualize x2APIC mode", LostOnDemand("guests' interrupts are delivered, and end, with exits")),
    c(Word::Proc2, 5, "enable VPID", Refused),
    c(Word::Proc2, 6, "WBINVD exiting", Lost("guests empty the host's caches at will")),
    c(Word::Proc2, 7, "unrestricted guest", Refused),
    c(Word::Proc2, 9, "virtual-interrupt delivery", LostOnDemand("guests' interrupts are delivered, and end, with exits")),
    c(Word::Proc2, 10, "PAUSE-loop exiting", Lost("spinning guests do not yield")),
    c(Word::Proc2, 12, "enable INVPCID", Lost("guests have no INVPCID")),
    c(Word::Proc2, 17, "enable PML", LostOnDemand("the dirty log write-protects pages")),
    c(Word::Proc2, 25, "use TSC scaling", LostOnDemand("guests' TSCs run at the host's frequency")),
    c(Word::Exit, 2, "save debug controls", Refused),
    c(Word::Exit, 9, "host address-space size", Refused),
    c(Word::Exit, 12, "load IA32_PERF_GLOBAL_CTRL", Off),
    c(Word::Exit, 15, "acknowledge interrupt on exit", Off),
    c(Word::Exit, 19, "load IA32_PAT", Refused),
    c(Word::Exit, 21, "load IA32_EFER", Refused),
    c(Word::Exit, 22, "save VMX-preemption timer value", Off),
    c(Word::Entry, 2, "load debug controls", Refused),
    c(Word::Entry, 9, "IA-32e mode guest", OnDemand),
    c(Word::Entry, 13, "load IA32_PERF_GLOBAL_CTRL", Off),
    c(Word::Entry, 14, "load IA32_PAT", Refused),
    c(Word::Entry, 15, "load IA32_EFER", Refused),
];

/// The capability MSRs, as read: the low half of each says which controls must be 1, the high half
/// which may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Msrs {
    /// IA32_VMX_BASIC
    pub(crate) basic: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS
    pub(crate) pin: u64,
    /// IA32_VMX_TRUE_PROCBASED_CTLS
    pub(crate) proc: u64,
    /// IA32_VMX_PROCBASED_CTLS2
    pub(crate) proc2: u64,
    /// IA32_VMX_TRUE_EXIT_CTLS
    pub(crate) exit: u64,
    /// IA32_VMX_TRUE_ENTRY_CTLS
    pub(crate) entry: u64,
    /// IA32_VMX_MISC
    pub(crate) misc: u64,
    /// IA32_VMX_EPT_VPID_CAP
    pub(crate) ept_vpid: u64,
    /// IA32_VMX_CR0_FIXED0 and FIXED1
    pub(crate) cr0: [u64; 2],
    /// IA32_VMX_CR4_FIXED0 and FIXED1
    pub(crate) cr4: [u64; 2],
}

/// IA32_VMX_BASIC (A.1).
pub(crate) mod basic {
    /// The revision, which a VMCS begins with
    pub(crate) const REVISION: u64 = 0x7fff_ffff;
    /// Bytes of a VMCS
    pub(crate) const SIZE: u32 = 32;
    /// Memory type of a VMCS
    pub(crate) const TYPE: u32 = 50;
    /// There are TRUE capability MSRs
    pub(crate) const TRUE: u64 = 1 << 55;
    /// Exceptions are injected with an error code or without, as asked
    pub(crate) const ANY_ERROR_CODE: u64 = 1 << 56;
}

/// IA32_VMX_EPT_VPID_CAP (A.10).
mod ept_vpid {
    pub(super) const WALK_4: u64 = 1 << 6;
    pub(super) const WALK_5: u64 = 1 << 7;
    pub(super) const WRITE_BACK: u64 = 1 << 14;
    pub(super) const LEAF_2M: u64 = 1 << 16;
    pub(super) const LEAF_1G: u64 = 1 << 17;
    pub(super) const INVEPT: u64 = 1 << 20;
    pub(super) const ACCESSED_DIRTY: u64 = 1 << 21;
    pub(super) const INVEPT_SINGLE: u64 = 1 << 25;
    pub(super) const INVVPID: u64 = 1 << 32;
    pub(super) const INVVPID_SINGLE: u64 = 1 << 41;
    pub(super) const INVVPID_ALL: u64 = 1 << 42;
}

/// What is needed of EPT and VPID beyond their controls.
const EPT_NEEDS: &[(u64, &str)] = &[
    (ept_vpid::WALK_4, "four-level EPT"),
    (ept_vpid::WRITE_BACK, "write-back EPT structures"),
    (ept_vpid::LEAF_2M, "2 MiB pages in EPT"),
    (ept_vpid::INVEPT, "INVEPT"),
    (ept_vpid::INVEPT_SINGLE, "INVEPT of one context"),
    (ept_vpid::INVVPID, "INVVPID"),
    (ept_vpid::INVVPID_SINGLE, "INVVPID of one context"),
    (ept_vpid::INVVPID_ALL, "INVVPID of all contexts"),
];

/// The five words, as every guest has them before anything is added on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Controls {
    /// Pin-based
    pub(crate) pin: u32,
    /// Primary processor-based
    pub(crate) proc: u32,
    /// Secondary processor-based
    pub(crate) proc2: u32,
    /// VM-exit
    pub(crate) exit: u32,
    /// VM-entry
    pub(crate) entry: u32,
}

/// What the processor has, and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The controls.
    pub(crate) controls: Controls,
    /// Secondary controls that are set on demand, where the processor has them.
    pub(crate) proc2_on_demand: u32,
    /// EPT can map 1 GiB at once.
    pub(crate) ept_1g: bool,
    /// EPT can have five levels.
    pub(crate) ept_5: bool,
    /// EPT has accessed and dirty bits.
    pub(crate) ept_track: bool,
    /// Ticks of the TSC, as a power of two, for one of the preemption timer.
    pub(crate) timer_shift: u32,
    /// The VMCS' revision.
    pub(crate) revision: u32,
    /// Exceptions are injected with an error code or without, as asked.
    pub(crate) any_error_code: bool,
}

fn low(v: u64) -> u32 {
    (v & 0xffff_ffff) as u32
}

impl Msrs {
    fn of(&self, w: Word) -> (u32, u32) {
        let v = match w {
            Word::Pin => self.pin,
            Word::Proc => self.proc,
            Word::Proc2 => self.proc2,
            Word::Exit => self.exit,
            Word::Entry => self.entry,
        };
        (low(v), low(v >> 32))
    }
}

impl Controls {
    fn word(&mut self, w: Word) -> &mut u32 {
        match w {
            Word::Pin => &mut self.pin,
            Word::Proc => &mut self.proc,
            Word::Proc2 => &mut self.proc2,
            Word::Exit => &mut self.exit,
            Word::Entry => &mut self.entry,
        }
    }
}

/// The names of the controls that are required, and that the processor lacks.
pub(crate) fn missing(m: &Msrs) -> impl Iterator<Item = &'static str> + '_ {
    let lacks =
        |c: &&Control| c.without == Without::Refused && m.of(c.word).1 & 1 << (c.bit & 31) == 0;
    TABLE.iter().filter(lacks).map(|c| c.name)
}

/// Plans the controls. `lost` hears of what is missing that is only wanted.
///
/// # Errors
/// The name of the first thing that is missing and required.
pub(crate) fn plan(m: &Msrs, mut lost: impl FnMut(&Control)) -> Result<Plan, &'static str> {
    /// Write-back
    const WB: u64 = 6;
    if m.basic & basic::TRUE == 0 {
        return Err("control over CR3 accesses (TRUE capability MSRs)");
    }
    if m.basic >> basic::SIZE & 0x1fff > 4096 || m.basic >> basic::TYPE & 0xf != WB {
        return Err("a VMCS of one page in ordinary memory");
    }
    let mut controls = Controls::default();
    for w in [Word::Pin, Word::Proc, Word::Proc2, Word::Exit, Word::Entry] {
        // What must be 1, is.
        *controls.word(w) = m.of(w).0;
    }
    let mut proc2_on_demand = 0;
    for c in TABLE {
        let (must, may) = m.of(c.word);
        let bit = 1 << (c.bit & 31);
        match c.without {
            Without::Refused if may & bit == 0 => return Err(c.name),
            Without::Lost(_) | Without::LostOnDemand(_) if may & bit == 0 => lost(c),
            Without::OnDemand | Without::LostOnDemand(_) | Without::Off if must & bit != 0 => {
                return Err(c.name)
            }
            Without::OnDemand if may & bit == 0 => return Err(c.name),
            Without::LostOnDemand(_) if c.word == Word::Proc2 => proc2_on_demand |= bit,
            Without::OnDemand | Without::LostOnDemand(_) | Without::Off => {}
            Without::Refused | Without::Lost(_) => *controls.word(c.word) |= bit,
        }
    }
    if let Some(&(_, name)) = EPT_NEEDS.iter().find(|(b, _)| m.ept_vpid & b == 0) {
        return Err(name);
    }
    let has = |b: u64| m.ept_vpid & b != 0;
    if !has(ept_vpid::ACCESSED_DIRTY) {
        // It logs when it sets dirty bits.
        proc2_on_demand &= !proc2::PML;
    }
    Ok(Plan {
        controls,
        proc2_on_demand,
        ept_1g: has(ept_vpid::LEAF_1G),
        ept_5: has(ept_vpid::WALK_5),
        ept_track: has(ept_vpid::ACCESSED_DIRTY),
        timer_shift: low(m.misc) & 0x1f,
        revision: low(m.basic & basic::REVISION),
        any_error_code: m.basic & basic::ANY_ERROR_CODE != 0,
    })
}

impl Plan {
    /// There is a preemption timer.
    pub(crate) fn has_timer(&self) -> bool {
        self.controls.pin & pin::TIMER != 0
    }

    /// What it begins from in order not to be over before so many ticks of the TSC, nor much later; as much
    /// as it holds if they are too many. It counts when a bit of the TSC changes, so the first count may
    /// come at once (25.5.1).
    #[inline]
    pub(crate) fn timer_value(&self, ticks: u64) -> u32 {
        let counts = ticks >> (self.timer_shift & 0x1f);
        // One for the rest, and one for what comes at once.
        u32::try_from(counts.saturating_add(2)).unwrap_or(u32::MAX)
    }

    /// The guest has these secondary controls, or has them when they are asked for.
    pub(crate) fn has2(&self, bits: u32) -> bool {
        (self.controls.proc2 | self.proc2_on_demand) & bits == bits
    }

    /// The secondary controls for what is wanted now; `asked`: those that are on demand.
    pub(crate) fn proc2(&self, i: &Intercepts, asked: u32) -> u32 {
        let always = match i.pause {
            true => self.controls.proc2,
            false => self.controls.proc2 & !proc2::PAUSE_LOOP,
        };
        always | asked & self.proc2_on_demand
    }

    /// The primary processor-based controls for what is wanted now.
    pub(crate) fn proc(&self, i: &Intercepts, w: Windows) -> u32 {
        let flag = |on: bool, bits: u32| if on { bits } else { 0 };
        self.controls.proc
            | flag(i.hlt, proc::HLT)
            | flag(i.invlpg, proc::INVLPG)
            | flag(i.mwait, proc::MWAIT | proc::MONITOR)
            | flag(i.rdpmc, proc::RDPMC)
            | flag(i.rdtsc, proc::RDTSC)
            | flag(i.cr8_write, proc::CR8_LOAD)
            | flag(i.debug_regs, proc::MOV_DR)
            | flag(w.interrupt, proc::INTERRUPT_WINDOW)
            | flag(w.nmi, proc::NMI_WINDOW)
    }
}
