// SPDX-License-Identifier: GPL-2.0

//! The pure modules of rkvm, compiled on the host. The paths are those of the module's own crate,
//! so that a file is the same in both.

#![forbid(unsafe_code)]

/// Processor families.
#[path = "../../../arch"]
pub mod arch {
    /// arm64.
    pub mod arm64 {
        pub mod model;
    }

    /// x86.
    pub mod x86 {
        #[allow(dead_code, reason = "the module uses what the tests do not")]
        pub(crate) mod abi;
        pub mod args;
        pub mod model;

        /// The decoded exit; the crate's own, as in the module.
        #[allow(dead_code, reason = "the module uses what the tests do not")]
        pub(crate) mod exit;

        /// Address-space ids.
        #[allow(dead_code, reason = "the module uses what the tests do not")]
        pub(crate) mod asid;

        /// Pure parts of VMX, tested in `vmx_tests`.
        #[allow(dead_code, reason = "the module uses what the tests do not")]
        pub(crate) mod vmx {
            pub(crate) mod check;
            pub(crate) mod controls;
            pub(crate) mod decode;
            pub(crate) mod delivery;
            pub(crate) mod ept;
            pub(crate) mod event;
            pub(crate) mod field;
            pub(crate) mod mirror;
            pub(crate) mod pml;
        }

        /// Pure parts of SVM, tested in `svm_tests`.
        #[allow(dead_code, reason = "the module uses what the tests do not")]
        pub(crate) mod svm {
            pub(crate) mod check;
            pub(crate) mod decode;
            pub(crate) mod intercepts;
            pub(crate) mod msrpm;
            pub(crate) mod npt;
            pub(crate) mod seg;
            pub(crate) mod vmcb;
        }
    }
}

/// The tables of ioctls and capabilities.
#[path = "../../../rkvm/abi"]
#[allow(dead_code, reason = "the module uses what the tests do not")]
pub(crate) mod abi {
    pub(crate) mod cap;
    pub(crate) mod ioctl;
}

/// The uapi's structures: rust-vmm's, as bindgen makes the module's own when that is built.
pub mod bindings {
    pub use kvm_bindings::*;
}

/// Guest memory.
#[path = "../../../rkvm/memory"]
pub mod memory {
    pub mod bitmap;
    pub mod invalidate;
    pub mod slots;
    pub mod stage2;
}

/// Interrupts and I/O.
#[path = "../../../rkvm/irq"]
pub mod irq {
    pub mod bus;
    pub mod coalesced;
    pub mod routing;
}

/// What pure modules use of `rkvm/host/`, over `std`.
pub mod host {
    pub mod grow_vec;
    pub mod uapi;
}

pub mod ioctls;

#[cfg(test)]
mod delivery_tests;
#[cfg(test)]
mod dirty_tests;
#[cfg(test)]
mod svm_tests;
#[cfg(test)]
mod vmx_tests;
