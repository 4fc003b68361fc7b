// SPDX-License-Identifier: GPL-2.0

//! EL2's controls, which are the host's or a guest's.

use super::{super::model::errata::Workarounds, hcr_barrier, isb};
use core::arch::asm;

/// EL2's controls while a guest is loaded.
#[derive(Clone, Copy, Default)]
pub(crate) struct GuestControls {
    /// HCR_EL2, with E2H and without TGE
    pub(crate) hcr: u64,
    /// VTCR_EL2
    pub(crate) vtcr: u64,
    /// VTTBR_EL2
    pub(crate) vttbr: u64,
    /// CPTR_EL2 in its VHE form (CPACR_EL1's name while E2H is set)
    pub(crate) cptr: u64,
    /// MDCR_EL2
    pub(crate) mdcr: u64,
    /// CNTHCTL_EL2
    pub(crate) cnthctl: u64,
    /// CNTVOFF_EL2
    pub(crate) cntvoff: u64,
    /// VMPIDR_EL2
    pub(crate) vmpidr: u64,
    /// VPIDR_EL2
    pub(crate) vpidr: u64,
    /// HSTR_EL2
    pub(crate) hstr: u64,
    /// HCRX_EL2, where there is one
    pub(crate) hcrx: Option<u64>,
    /// HFGRTR_EL2 and HFGWTR_EL2, where there are such
    pub(crate) fine: Option<u64>,
}

/// What they are for the host.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostControls {
    hcr: u64,
    cptr: u64,
    mdcr: u64,
    cnthctl: u64,
    hcrx: Option<u64>,
    fine: Option<(u64, u64)>,
}

/// MDCR_EL2.HPMN: how the host's PMU is divided stays.
const HPMN: u64 = 0x1f;

impl GuestControls {
    /// Loads them, after EL1's registers; returns the host's. IRQs are off until [`HostControls::restore`]: the host's user
    /// memory is out of reach, as TGE is clear.
    #[inline]
    pub(crate) fn load(&self, w: Workarounds) -> HostControls {
        let host = HostControls {
            hcr: mrs!("S3_4_C1_C1_0"),
            cptr: mrs!("S3_4_C1_C1_2"),
            mdcr: mrs!("S3_4_C1_C1_1"),
            cnthctl: mrs!("S3_4_C14_C1_0"),
            hcrx: self.hcrx.map(|_| mrs!("S3_4_C1_C2_2")),
            fine: self
                .fine
                .map(|_| (mrs!("S3_4_C1_C1_4"), mrs!("S3_4_C1_C1_5"))),
        };
        msr!("S3_4_C2_C1_2", self.vtcr);
        msr!("S3_4_C2_C1_0", self.vttbr);
        // Speculative walks must not mix the guest's tables with the host's controls, nor with another guest's EL1:
        // that is loaded by now (errata 1165522, 1530923).
        isb();
        hcr_barrier(w);
        msr!("S3_4_C1_C1_0", self.hcr);
        isb();
        msr!("S3_4_C1_C1_2", self.cptr);
        msr!("S3_4_C1_C1_1", self.mdcr | host.mdcr & HPMN);
        msr!("S3_4_C14_C1_0", self.cnthctl);
        msr!("S3_4_C14_C0_3", self.cntvoff);
        msr!("S3_4_C0_C0_5", self.vmpidr);
        msr!("S3_4_C0_C0_0", self.vpidr);
        msr!("S3_4_C1_C1_3", self.hstr);
        if let Some(v) = self.hcrx {
            msr!("S3_4_C1_C2_2", v);
        }
        if let Some(v) = self.fine {
            msr!("S3_4_C1_C1_4", v);
            msr!("S3_4_C1_C1_5", v);
        }
        host
    }
}

impl HostControls {
    /// Puts the host's back.
    #[inline]
    pub(crate) fn restore(&self, w: Workarounds) {
        isb();
        hcr_barrier(w);
        msr!("S3_4_C1_C1_0", self.hcr);
        isb();
        msr!("S3_4_C2_C1_0", 0);
        msr!("S3_4_C1_C1_2", self.cptr);
        msr!("S3_4_C1_C1_1", self.mdcr);
        msr!("S3_4_C14_C1_0", self.cnthctl);
        msr!("S3_4_C14_C0_3", 0);
        msr!("S3_4_C1_C1_3", 0);
        if let Some(v) = self.hcrx {
            msr!("S3_4_C1_C2_2", v);
        }
        if let Some((read, write)) = self.fine {
            msr!("S3_4_C1_C1_4", read);
            msr!("S3_4_C1_C1_5", write);
        }
        isb();
    }
}
