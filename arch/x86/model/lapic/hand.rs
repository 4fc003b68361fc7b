// SPDX-License-Identifier: GPL-2.0

//! A local APIC whose interrupts the processor itself delivers and ends (Intel SDM vol. 3C 31.2,
//! virtual-interrupt delivery): what it is given, and what it gives back.

use super::regs::svr;
use super::{Lapic, Mode, Vectors};

/// What the processor has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hand {
    /// Requested
    pub irr: Vectors,
    /// In service
    pub isr: Vectors,
    /// Whose end others must hear of
    pub eoi_exits: Vectors,
    /// The task priority
    pub tpr: u8,
}

impl Hand {
    /// The highest vector requested, and in service; 0: none.
    #[inline]
    pub fn highest(&self) -> (u8, u8) {
        let of = |v: &Vectors| v.highest().unwrap_or(0);
        (of(&self.irr), of(&self.isr))
    }
}

impl Lapic {
    /// Whether the processor could do it: the guest reaches its registers as MSRs.
    #[inline]
    pub const fn can_be_handed_over(&self) -> bool {
        matches!(self.mode, Mode::X2apic)
    }

    /// What is to be given.
    #[inline]
    pub fn hand(&self) -> Hand {
        Hand {
            irr: self.irr,
            isr: self.isr,
            eoi_exits: *self.eoi_exits(),
            tpr: self.tpr,
        }
    }

    /// Whether the processor's knowledge, `hand`, is that of the model.
    #[inline]
    pub fn is_in(&self, hand: &Hand) -> bool {
        self.irr == hand.irr
            && self.isr == hand.isr
            && self.tpr == hand.tpr
            && *self.eoi_exits() == hand.eoi_exits
    }

    /// What the processor has made of it.
    #[inline]
    pub fn take_back(&mut self, irr: Vectors, isr: Vectors, tpr: u8) {
        self.irr = irr;
        self.isr = isr;
        self.set_tpr(tpr);
    }

    #[inline]
    fn eoi_exits(&self) -> &Vectors {
        if self.eoi_suppressed() {
            &Vectors::EMPTY
        } else {
            &self.tmr
        }
    }

    /// The guest ends level-triggered interrupts at the I/O APIC itself.
    #[inline]
    pub(super) const fn eoi_suppressed(&self) -> bool {
        self.svr & svr::SUPPRESS_EOI != 0 && self.features.suppress_eoi
    }
}
