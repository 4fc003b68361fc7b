// SPDX-License-Identifier: GPL-2.0

//! Virtual-interrupt delivery: the processor takes the interrupts that the local APIC has requested to
//! the guest, and ends them, without exits.
//!
//! Intel SDM vol. 3C 26.4.2 (guest interrupt status), 26.6.8 (EOI-exit bitmap), 31.1 and 31.2 (the
//! virtual-APIC page and how it is used). Only for guests in x2APIC mode, whose task priority and EOI are
//! MSRs; of the page's registers they reach no other without an exit. Pure.

use crate::arch::x86::model::lapic::regs::offset;
use crate::arch::x86::model::lapic::{Hand, Vectors};

/// The page.
pub(crate) type Page = [u8; 4096];

/// The task priority, in the page as in an APIC's.
pub(crate) const VTPR: usize = offset::TPR as usize;
/// The MSR of the task priority.
pub(crate) const TPR: u32 = offset::msr(offset::TPR);
/// The MSR of the end of interrupt, which is write-only.
pub(crate) const EOI: u32 = offset::msr(offset::EOI);

/// Where delivery stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The processor delivers.
    pub(crate) on: bool,
    /// Guest interrupt status: the highest vector requested (bits 7:0), and in service.
    pub(crate) status: u16,
    /// The vectors whose end exits.
    pub(crate) eoi_exits: [u64; 4],
}

impl Delivery {
    /// The processor gets what is in `hand`: the page, and the fields here.
    pub(crate) fn give(&mut self, page: &mut Page, hand: &Hand) {
        let (requested, serviced) = hand.highest();
        self.status = u16::from_le_bytes([requested, serviced]);
        self.eoi_exits = hand.eoi_exits.words();
        if let Some(tpr) = page.get_mut(VTPR) {
            *tpr = hand.tpr;
        }
        hand.irr.save(page, offset::IRR);
        hand.isr.save(page, offset::ISR);
    }

    /// What the processor has requested and in service now that its status is `status`, if that differs.
    ///
    /// The same status means the same vectors: none is added but by [`Self::give`] (self-IPIs exit), each
    /// delivery lowers the one half, and each end the other, or there was nothing to end.
    #[inline]
    pub(crate) fn taken(&mut self, page: &Page, status: u16) -> Option<(Vectors, Vectors)> {
        if status == self.status {
            return None;
        }
        self.status = status;
        Some((
            Vectors::load(page, offset::IRR),
            Vectors::load(page, offset::ISR),
        ))
    }
}
