// SPDX-License-Identifier: GPL-2.0

//! rkvm: KVM written anew in safe Rust.
//!
//! One loadable module that gives Linux the KVM ABI on `/dev/rkvm`. Generic code (VM, vCPU, memory,
//! interrupts) is written once; each processor family is a backend behind one boundary.

mod bindings;
mod host;
mod memory;
mod irq;

use kernel::prelude::*;

module! {
    type: Rkvm,
    name: "rkvm",
    authors: ["The rkvm authors"],
    description: "KVM in safe Rust",
    license: "GPL",
}

struct Rkvm;

impl kernel::Module for Rkvm {
    fn init(_module: &'static kernel::ThisModule) -> Result<Self> {
        Ok(Rkvm)
    }
}
