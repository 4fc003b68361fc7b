// SPDX-License-Identifier: GPL-2.0

//! What it is to take an exception to EL1, for those that rkvm delivers in the processor's place.
//!
//! Arm ARM (DDI 0487), J1.1: AArch64.TakeException(); D1.3 (exception entry), D24.2: SCTLR_EL1, SCTLR2_EL1.

use super::esr;
use super::pstate::{bit, Mode};

/// What arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A synchronous exception.
    Sync,
    /// IRQ
    Irq,
    /// FIQ
    Fiq,
    /// SError
    SError,
}

/// An exception to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which vector.
    pub kind: Kind,
    /// For ESR_EL1.
    pub esr: Option<u64>,
    /// For FAR_EL1.
    pub far: Option<u64>,
}

/// What of the guest's state decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// PC
    pub pc: u64,
    /// PSTATE
    pub pstate: u64,
    /// VBAR_EL1
    pub vbar: u64,
    /// SCTLR_EL1
    pub sctlr: u64,
    /// SCTLR2_EL1; 0 if the guest has none.
    pub sctlr2: u64,
    /// The guest has FEAT_MTE.
    pub mte: bool,
    /// The guest has FEAT_NMI.
    pub nmi: bool,
}

/// The state afterwards. `None` is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// PC
    pub pc: u64,
    /// PSTATE
    pub pstate: u64,
    /// SPSR_EL1
    pub spsr: u64,
    /// ELR_EL1
    pub elr: u64,
    /// ESR_EL1
    pub esr: Option<u64>,
    /// FAR_EL1
    pub far: Option<u64>,
}

/// SCTLR_EL1
mod sctlr {
    /// PAN stays as it is
    pub(super) const SPAN: u64 = 1 << 23;
    /// SSBS on entry
    pub(super) const DSSBS: u64 = 1 << 44;
    /// ALLINT stays clear (its inverse is the value on entry)
    pub(super) const SPINTMASK: u64 = 1 << 62;
}

/// SCTLR2_EL1 (FEAT_DoubleFault2)
mod sctlr2 {
    /// SError is not masked by PSTATE.A
    pub(super) const NMEA: u64 = 1 << 2;
    /// Synchronous external aborts go to the vector of SError
    pub(super) const EASE: u64 = 1 << 5;
}

/// `bits` if `on`.
const fn when(on: bool, bits: u64) -> u64 {
    if on {
        bits
    } else {
        0
    }
}

impl Exception {
    /// An undefined instruction.
    pub const fn undefined() -> Exception {
        Exception::sync(esr::undefined())
    }

    /// Synchronous, with this syndrome.
    pub const fn sync(esr: u64) -> Exception {
        Exception {
            kind: Kind::Sync,
            esr: Some(esr),
            far: None,
        }
    }

    /// IRQ or FIQ.
    pub const fn interrupt(kind: Kind) -> Exception {
        Exception {
            kind,
            esr: None,
            far: None,
        }
    }

    /// SError with this ISS.
    pub const fn serror(iss: u64) -> Exception {
        Exception {
            kind: Kind::SError,
            esr: Some(esr::serror(iss)),
            far: None,
        }
    }
}

impl Context {
    const fn is_el0(&self) -> bool {
        match Mode::of(self.pstate) {
            Some(mode) => mode.is_el0(),
            None => false,
        }
    }

    /// A synchronous external abort for an access to `far`. `walk`: the level at which a walk of the guest's
    /// tables met it.
    pub const fn external_abort(&self, instruction: bool, far: u64, walk: Option<i8>) -> Exception {
        Exception {
            kind: if self.sctlr2 & sctlr2::EASE != 0 {
                Kind::SError
            } else {
                Kind::Sync
            },
            esr: Some(esr::external_abort(instruction, self.is_el0(), walk)),
            far: Some(far),
        }
    }

    /// An address size fault: the guest has put a table or an access beyond what its processor can address.
    pub const fn address_size(&self, instruction: bool, far: u64) -> Exception {
        let mut e = self.external_abort(instruction, far, None);
        e.esr = Some(esr::with_fault(
            esr::external_abort(instruction, self.is_el0(), None),
            0,
        ));
        e
    }

    /// An exclusive or atomic access to memory that has none of it.
    pub const fn unsupported_exclusive(&self, far: u64) -> Exception {
        let mut e = self.external_abort(false, far, None);
        e.esr = Some(esr::with_fault(
            esr::external_abort(false, self.is_el0(), None),
            0x35,
        ));
        e
    }

    /// SError has to wait.
    pub const fn serror_masked(&self) -> bool {
        self.pstate & bit::A != 0 && self.sctlr2 & sctlr2::NMEA == 0
    }

    /// Takes `e` to EL1. `None` if PSTATE holds no mode of a guest.
    pub const fn take(&self, e: &Exception) -> Option<Taken> {
        // D1.3.1, "Exception vectors".
        let from = match Mode::of(self.pstate) {
            Some(Mode::El1t) => 0x000,
            Some(Mode::El1h) => 0x200,
            Some(Mode::El0) => 0x400,
            Some(Mode::User32) => 0x600,
            None => return None,
        };
        let kind = match e.kind {
            Kind::Sync => 0x000,
            Kind::Irq => 0x080,
            Kind::Fiq => 0x100,
            Kind::SError => 0x180,
        };
        const EL1H: u64 = 5;
        // These are at the same place in both layouts. All else is cleared but for what follows: SS, IL, UAO,
        // BTYPE; IT, T, E, Q and GE of AArch32.
        let kept = self.pstate & (bit::NZCV | bit::DIT | bit::PAN);
        let pstate = kept
            | when(self.sctlr & sctlr::SPAN == 0, bit::PAN)
            | when(self.sctlr & sctlr::DSSBS != 0, bit::SSBS)
            | when(self.nmi && self.sctlr & sctlr::SPINTMASK == 0, bit::ALLINT)
            | when(self.mte, bit::TCO)
            | bit::D
            | bit::A
            | bit::I
            | bit::F
            | EL1H;
        Some(Taken {
            pc: (self.vbar & !0x7ff) + from + kind,
            pstate,
            spsr: self.pstate,
            elr: self.pc,
            esr: e.esr,
            far: e.far,
        })
    }
}
