// SPDX-License-Identifier: GPL-2.0

//! rkvm: KVM written anew in safe Rust.
//!
//! One loadable module that gives Linux the KVM ABI on `/dev/rkvm`. Generic code (VM, vCPU, memory,
//! interrupts) is written once; each processor family is a backend behind one boundary.

mod abi;
#[path = "../arch/mod.rs"]
mod arch;
mod bindings;
mod device;
mod family;
mod host;
mod irq;
mod memory;
mod system;
mod vcpu;
mod vm;

use kernel::prelude::*;

module! {
    type: Rkvm,
    name: "rkvm",
    authors: ["The rkvm authors"],
    description: "KVM in safe Rust",
    license: "GPL",
    params: {
        kvm_node: u8 {
            default: 0,
            description: "1: register the device as /dev/kvm too, when in-tree KVM has not",
        },
    },
}

/// The loaded module.
struct Rkvm {
    _loaded: arch::Loaded,
}

impl kernel::Module for Rkvm {
    fn init(_module: &'static kernel::ThisModule) -> Result<Self> {
        let kvm_node = module_parameters::kvm_node.value() != 0;
        Ok(Rkvm {
            _loaded: arch::load(kvm_node)?,
        })
    }
}
