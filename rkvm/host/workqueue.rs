// SPDX-License-Identifier: GPL-2.0

//! Work items: what the kernel crate's `workqueue` lacks.

use kernel::{bindings as c, workqueue::Work};

/// Waits until `work` is neither queued nor running. Sleeps; must not be called by the work itself.
pub(crate) fn flush<T: ?Sized, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: The reference is valid and initialised.
    unsafe { c::flush_work(Work::raw_get(work)) };
}
