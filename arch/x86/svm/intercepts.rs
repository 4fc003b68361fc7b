// SPDX-License-Identifier: GPL-2.0

//! What exits, and why: tables of intercepts.
//!
//! AMD APM vol. 2, 15.9-15.14 and table B-1. Pure.

use super::vmcb::Vmcb;
use crate::arch::x86::exit::Intercepts;
use crate::arch::x86::model::regs::vector;

/// A vector word of the control area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Offset 000h: reads of CRn in bit n, writes in bit 16 + n
    Cr,
    /// Offset 004h: the same for DRn
    Dr,
    /// Offset 008h: exceptions
    Exception,
    /// Offset 00Ch
    Misc3,
    /// Offset 010h
    Misc4,
    /// Offset 014h
    Misc5,
}

/// One intercept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intercept {
    /// The word that it is in.
    pub(crate) word: Word,
    /// Its bit there.
    pub(crate) bit: u32,
    /// The manual's name.
    #[allow(dead_code, reason = "for readers and tests")]
    pub(crate) name: &'static str,
    /// Why we want it.
    #[allow(dead_code, reason = "for readers and tests")]
    pub(crate) why: &'static str,
}

const fn i(word: Word, bit: u32, name: &'static str, why: &'static str) -> Intercept {
    Intercept {
        word,
        bit,
        name,
        why,
    }
}

/// What every guest exits for.
///
/// CR3, INVLPG, PUSHF and the like are not here: nested paging lets the processor do them. Nor is
/// FERR_FREEZE: the frozen processor still exits for host interrupts, and thaws by a guest's.
#[rustfmt::skip]
pub(crate) const ALWAYS: &[Intercept] = &[
    i(Word::Misc3, 0, "INTR", "host interrupts are the host's"),
    i(Word::Misc3, 1, "NMI", "host NMIs are the host's"),
    i(Word::Misc3, 2, "SMI", "system management belongs to the machine"),
    i(Word::Misc3, 3, "INIT", "an INIT of the machine must not reset the guest only"),
    i(Word::Misc3, 5, "CR0_SEL_WRITE", "PG and PE change paging modes, CD and NW must not reach the hardware"),
    i(Word::Misc3, 18, "CPUID", "the guest's CPUID is configured"),
    i(Word::Misc3, 19, "RSM", "undefined outside of system management mode"),
    i(Word::Misc3, 22, "INVD", "would drop the host's dirty cache lines"),
    i(Word::Misc3, 26, "INVLPGA", "guests have no SVM"),
    i(Word::Misc3, 27, "IOIO_PROT", "ports are emulated"),
    i(Word::Misc3, 28, "MSR_PROT", "MSRs are emulated, but for those in the map"),
    i(Word::Misc3, 29, "TASK_SWITCH", "hardware does not switch tasks under nested paging"),
    i(Word::Misc3, 31, "SHUTDOWN", "a triple fault must not stop the machine"),
    i(Word::Misc4, 0, "VMRUN", "required by the processor"),
    i(Word::Misc4, 1, "VMMCALL", "hypercalls"),
    i(Word::Misc4, 2, "VMLOAD", "guests have no SVM; it takes host physical addresses"),
    i(Word::Misc4, 3, "VMSAVE", "guests have no SVM; it takes host physical addresses"),
    i(Word::Misc4, 4, "STGI", "guests have no SVM"),
    i(Word::Misc4, 5, "CLGI", "guests have no SVM; it would hold back host interrupts"),
    i(Word::Misc4, 6, "SKINIT", "would restart the machine"),
    i(Word::Misc4, 9, "WBINVD", "slow, and empties the host's caches"),
    i(Word::Misc4, 13, "XSETBV", "the features of XCR0 are the host's"),
    i(Word::Misc4, 14, "RDPRU", "reads the host's counters"),
    i(Word::Misc5, 0, "INVLPGB", "reaches other guests"),
    i(Word::Misc5, 1, "INVLPGB_ILLEGAL", "reaches other guests"),
    i(Word::Misc5, 3, "MCOMMIT", "guests do not have it"),
    i(Word::Misc5, 4, "TLBSYNC", "reaches other guests"),
    i(Word::Cr, 16 + 4, "CR4_WRITE", "which bits exist depends on the guest's CPUID"),
    i(Word::Exception, vector::AC as u32, "#AC", "a guest can make endless ones that hold back all interrupts"),
    i(Word::Exception, vector::MC as u32, "#MC", "machine checks are the host's"),
];

/// Exits that depend on the guest's configuration: when, and which.
type Wanted = fn(&Intercepts) -> bool;

/// What exits when the caller or the backend's own state asks for it.
#[rustfmt::skip]
pub(crate) const OPTIONAL: &[(Wanted, Intercept)] = &[
    (|w| w.hlt, i(Word::Misc3, 24, "HLT", "the processor is given to others meanwhile")),
    (|w| w.pause, i(Word::Misc3, 23, "PAUSE", "a spinning guest yields")),
    (|w| w.rdpmc, i(Word::Misc3, 15, "RDPMC", "the counters are the host's")),
    (|w| w.mwait, i(Word::Misc4, 10, "MONITOR", "guests may not have it")),
    (|w| w.mwait, i(Word::Misc4, 11, "MWAIT", "guests may not have it")),
    (|w| w.mwait, i(Word::Misc4, 12, "MWAIT_ARMED", "guests may not have it")),
    (|w| w.rdtsc, i(Word::Misc3, 14, "RDTSC", "asked for")),
    (|w| w.rdtsc, i(Word::Misc4, 7, "RDTSCP", "asked for")),
    (|w| w.invlpg, i(Word::Misc3, 25, "INVLPG", "asked for")),
    (|w| w.exceptions & 1 << vector::BP != 0, i(Word::Misc3, 21, "INTN", "INT3 is one to QEMU's TCG, which looks for no #BP then")),
    (|w| w.cr8_write, i(Word::Cr, 16 + 8, "CR8_WRITE", "an interrupt waits for a lower TPR")),
];

/// What the backend itself needs at times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// The hardware's CR0 is not the guest's: reads and all writes exit.
    pub(crate) cr0: bool,
    /// The hardware's CR4 is not the guest's: reads exit.
    pub(crate) cr4: bool,
    /// The guest's IRET is of interest: an NMI is being handled.
    pub(crate) iret: bool,
    /// The moment when the guest can take an interrupt is of interest.
    pub(crate) vintr: bool,
    /// The guest is stepped: #DB.
    pub(crate) step: bool,
}

/// As [`OPTIONAL`], by the backend's own needs.
type OwnWanted = fn(&Own) -> bool;

/// What exits when the backend needs it.
#[rustfmt::skip]
pub(crate) const OWN: &[(OwnWanted, Intercept)] = &[
    (|o| o.cr0, i(Word::Cr, 0, "CR0_READ", "CD or NW is set for the guest only")),
    (|o| o.cr0, i(Word::Cr, 16, "CR0_WRITE", "CD or NW is set for the guest only")),
    (|o| o.cr4, i(Word::Cr, 4, "CR4_READ", "MCE is clear for the guest only")),
    (|o| o.iret, i(Word::Misc3, 20, "IRET", "NMIs are held back until then")),
    (|o| o.vintr, i(Word::Misc3, 4, "VINTR", "an interrupt waits")),
    (|o| o.step, i(Word::Exception, vector::DB as u32, "#DB", "the end of one instruction")),
];

/// The six words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    cr: u32,
    dr: u32,
    exception: u32,
    misc3: u32,
    misc4: u32,
    misc5: u32,
}

impl Words {
    fn add(&mut self, word: Word, bit: u32) {
        let word = match word {
            Word::Cr => &mut self.cr,
            Word::Dr => &mut self.dr,
            Word::Exception => &mut self.exception,
            Word::Misc3 => &mut self.misc3,
            Word::Misc4 => &mut self.misc4,
            Word::Misc5 => &mut self.misc5,
        };
        *word |= 1 << (bit & 31);
    }

    /// Whether one is in.
    #[cfg(test)]
    pub(crate) fn has(&self, n: &Intercept) -> bool {
        let mut with = *self;
        with.add(n.word, n.bit);
        with == *self
    }

    /// Writes them into a control block; nothing is marked dirty when nothing changes.
    pub(crate) fn store(&self, b: &mut Vmcb) {
        if *self == Self::load(b) {
            return;
        }
        b.set_cr_intercepts(self.cr);
        b.set_dr_intercepts(self.dr);
        b.set_exception_intercepts(self.exception);
        b.set_intercepts3(self.misc3);
        b.set_intercepts4(self.misc4);
        b.set_intercepts5(self.misc5);
    }

    fn load(b: &Vmcb) -> Self {
        Self {
            cr: b.cr_intercepts(),
            dr: b.dr_intercepts(),
            exception: b.exception_intercepts(),
            misc3: b.intercepts3(),
            misc4: b.intercepts4(),
            misc5: b.intercepts5(),
        }
    }
}

/// All that is wanted, together.
pub(crate) fn words(wanted: &Intercepts, own: &Own) -> Words {
    let mut w = Words::default();
    let wanted = &Intercepts {
        // QEMU's TCG aborts at such a write while V_IRQ is set.
        cr8_write: wanted.cr8_write || own.vintr,
        ..*wanted
    };
    let optional = OPTIONAL.iter().filter(|(f, _)| f(wanted)).map(|(_, n)| n);
    let own = OWN.iter().filter(|(f, _)| f(own)).map(|(_, n)| n);
    ALWAYS
        .iter()
        .chain(optional)
        .chain(own)
        .for_each(|n| w.add(n.word, n.bit));
    w.exception |= wanted.exceptions;
    if wanted.debug_regs {
        // Reads and writes of DR0 to DR7.
        (0..8).chain(16..24).for_each(|bit| w.add(Word::Dr, bit));
    }
    w
}
