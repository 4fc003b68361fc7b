// SPDX-License-Identifier: GPL-2.0

//! VMX: Intel's virtualization extension with extended page tables (Intel SDM vol. 3C, chapters 25-30).

pub(crate) mod check;
pub(crate) mod controls;
pub(crate) mod decode;
pub(crate) mod delivery;
mod enable;
mod entry;
pub(crate) mod ept;
pub(crate) mod event;
pub(crate) mod field;
mod l1d;
pub(crate) mod mirror;
pub(crate) mod pml;
mod section;
mod vcpu;

use super::backend::{Backend, HwCaps};
use kernel::prelude::*;

/// The vendor.
pub(crate) struct Vmx;

impl Backend for Vmx {
    const NAME: &'static str = "vmx";
    type Entry = ept::Ept;
    type Vcpu = vcpu::VmxVcpu;

    fn present() -> bool {
        enable::present()
    }

    fn setup() -> Result<HwCaps> {
        enable::setup()
    }

    fn enable_cpu() -> Result {
        enable::enable_cpu()
    }

    fn disable_cpu() {
        enable::disable_cpu();
    }

    fn vcpu(caps: &HwCaps, root: u64) -> Result<Self::Vcpu> {
        vcpu::VmxVcpu::new(caps, root)
    }

    fn teardown() {
        enable::teardown();
    }
}
