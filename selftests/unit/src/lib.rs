// SPDX-License-Identifier: GPL-2.0

//! The pure modules of rkvm, compiled on the host. The paths are those of the module's own crate,
//! so that a file is the same in both.

#![forbid(unsafe_code)]

/// Processor families.
#[path = "../../../arch"]
pub mod arch {
    /// x86.
    pub mod x86 {
        pub mod model;
    }
}

/// Guest memory.
#[path = "../../../rkvm/memory"]
pub mod memory {
    pub mod stage2;
}

/// Interrupts and I/O.
#[path = "../../../rkvm/irq"]
pub mod irq {
    pub mod bus;
    pub mod coalesced;
    pub mod routing;
}
