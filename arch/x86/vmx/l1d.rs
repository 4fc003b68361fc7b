// SPDX-License-Identifier: GPL-2.0

//! When the first-level data cache is flushed before a guest runs.
//!
//! On processors with L1TF a guest can read what is in that cache, whatever address it is of: so it must
//! hold no other guest's memory, nor the host's secrets, when a guest section begins. Inside of a section
//! nothing comes into it but the guest's own and what its exits need. Between two sections nothing does,
//! if the host has done no more than to map a page of the guest's own (the kernel's
//! Documentation/admin-guide/hw-vuln/l1tf.rst, "conditional" flushes).

use super::entry;
use crate::host::hw_page::HwBytes;
use kernel::prelude::*;

/// In bytes: twice the cache of the processors with L1TF, as reading replaces lines in no perfect order.
const FILL: usize = 64 << 10;

/// The cache of a host that wants it flushed.
pub(super) struct L1d {
    /// What is read in order to replace what it holds.
    fill: HwBytes,
}

impl L1d {
    /// `None`: nothing is to be flushed.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(super) fn new() -> Result<Option<Self>> {
        if !entry::wants_l1d_flush() {
            return Ok(None);
        }
        Ok(Some(Self {
            fill: HwBytes::new(FILL)?,
        }))
    }

    /// Flushes it, in a section that begins: unless the task has been `left` alone since the last one, and
    /// its CPU has taken no interrupt.
    pub(super) fn flush_unless_calm(&self, left: Option<Calm>) {
        if left == Some(Calm::now()) && !entry::interrupted_since_flush() {
            return;
        }
        entry::flush_l1d(&self.fill);
    }
}

/// What stays equal while a task stays on its CPU and has no page fault.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Calm(u64);

impl Calm {
    pub(super) fn now() -> Self {
        Self(entry::task_events())
    }
}
