// SPDX-License-Identifier: GPL-2.0

//! What the vCPU code needs of the processor, besides the backend's own.

use super::{msr, rdmsr, wrmsr};

/// IA32_FLUSH_CMD
const FLUSH_CMD: u32 = 0x10b;

/// Issues the barriers that the guest asked for by PRED_CMD; the value was checked.
pub(crate) fn pred_cmd(v: u64) {
    // A processor that does not have the command has nothing to do.
    let _ = wrmsr(msr::PRED_CMD, v);
}

/// Flushes L1D as the guest asked for by FLUSH_CMD; the value was checked.
pub(crate) fn flush_cmd(v: u64) {
    let _ = wrmsr(FLUSH_CMD, v);
}

/// Sets TSC_AUX and returns what it was. In a guest section; the host's value is put back before it
/// ends.
pub(crate) fn swap_tsc_aux(v: u64) -> u64 {
    let old = rdmsr(msr::TSC_AUX).unwrap_or(0);
    let _ = wrmsr(msr::TSC_AUX, v);
    old
}
