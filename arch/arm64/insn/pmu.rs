// SPDX-License-Identifier: GPL-2.0

//! The performance monitors, which are the host's (Arm ARM D24.5). Interrupts are off, so its driver does not see what
//! is changed here until it is put back.

use super::isb;
use core::arch::asm;

/// PMUSERENR_EL0: what EL0 may do without a trap to EL1.
#[inline]
pub(crate) fn pmuserenr() -> u64 {
    mrs!("S3_3_C9_C14_0")
}

/// Sets it: the host's, or a guest's.
#[inline]
pub(crate) fn set_pmuserenr(v: u64) {
    msr!("S3_3_C9_C14_0", v);
}

/// PMEVTYPER_EL0.U: not at EL0
const U: u64 = 1 << 30;
/// The fixed counter of instructions (FEAT_PMUv3_ICNTR), as the kernel numbers it.
const INSTRUCTIONS: u32 = 32;

/// These counters of the hardware, a bit each, count at EL0, or do not. The host's driver has those of guests not count
/// there, as it cannot tell whose EL0 it is.
pub(crate) fn count_el0(counters: u64, on: bool) {
    let mut rest = counters;
    while rest != 0 {
        let n = rest.trailing_zeros();
        rest &= rest - 1;
        let change = |v: u64| if on { v & !U } else { v | U };
        if n == INSTRUCTIONS {
            // PMICFILTR_EL0
            msr!("S3_3_C9_C6_0", change(mrs!("S3_3_C9_C6_0")));
            continue;
        }
        // PMSELR_EL0, which the kernel does not use, and PMXEVTYPER_EL0.
        msr!("S3_3_C9_C12_5", u64::from(n));
        isb();
        msr!("S3_3_C9_C13_1", change(mrs!("S3_3_C9_C13_1")));
    }
    isb();
}
