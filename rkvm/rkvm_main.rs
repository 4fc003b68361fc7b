// SPDX-License-Identifier: GPL-2.0

//! rkvm: KVM written anew in safe Rust.

use kernel::prelude::*;

mod bindings;

struct Rkvm;

impl kernel::Module for Rkvm {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("KVM API version {}\n", bindings::KVM_API_VERSION);
        Ok(Self)
    }
}

impl Drop for Rkvm {
    fn drop(&mut self) {
        pr_info!("unloaded\n");
    }
}

module! {
    type: Rkvm,
    name: "rkvm",
    authors: ["The rkvm authors"],
    description: "KVM in safe Rust",
    license: "GPL",
}
