// SPDX-License-Identifier: GPL-2.0

//! Which errata this computer's CPUs have, by the table of [`model`].

use super::model::{
    errata::{self as model, What, Workarounds},
    midr::Midr,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::prelude::*;

/// [`Workarounds::bits`] of all CPUs so far.
static NEEDED: AtomicU32 = AtomicU32::new(0);
/// Rows of the table that any has, a bit each.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// CPUs are threads of cores (MPIDR_EL1.Aff0).
static THREADS: AtomicBool = AtomicBool::new(false);

const _: () = assert!(model::TABLE.len() <= 64);

/// A CPU is to run guests.
pub(crate) fn add_cpu(midr: Midr, mpidr: u64) {
    NEEDED.fetch_or(model::workarounds(midr).bits(), Ordering::Relaxed);
    for (n, e) in model::TABLE.iter().enumerate() {
        if e.cores.iter().any(|r| r.has(midr)) {
            FOUND.fetch_or(1 << n, Ordering::Relaxed);
        }
    }
    if mpidr & 0xff != 0 {
        THREADS.store(true, Ordering::Relaxed);
    }
}

/// What CPUs need.
#[inline]
pub(crate) fn needed() -> Workarounds {
    Workarounds::from_bits(NEEDED.load(Ordering::Relaxed))
}

/// Some CPU needs this.
#[inline]
pub(crate) fn need(w: Workarounds) -> bool {
    needed().has(w)
}

/// HCR_EL2.TVM: see [`Workarounds::TRAP_TRANSLATION`].
pub(crate) fn trap_translation() -> bool {
    need(Workarounds::TRAP_TRANSLATION) && THREADS.load(Ordering::Relaxed)
}

/// Names them.
///
/// # Errors
/// `ENODEV`: with one of them guests cannot run.
pub(crate) fn log() -> Result {
    let found = FOUND.load(Ordering::Relaxed);
    for (n, e) in model::TABLE.iter().enumerate() {
        if found & 1 << n == 0 {
            continue;
        }
        match e.what {
            What::Done(Workarounds::REFUSED) => {
                pr_err!("erratum {}: guests cannot run on this CPU\n", e.name);
                return Err(ENODEV);
            }
            What::Done(_) => pr_info!("erratum {}: worked around\n", e.name),
            What::Needless(why) => pr_info!("erratum {}: nothing to do: {why}\n", e.name),
        }
    }
    Ok(())
}
