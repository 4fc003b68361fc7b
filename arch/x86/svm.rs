// SPDX-License-Identifier: GPL-2.0

//! SVM: AMD's virtualization extension with nested paging (AMD APM vol. 2, chapter 15).

pub(crate) mod check;
pub(crate) mod decode;
mod enable;
mod entry;
pub(crate) mod intercepts;
pub(crate) mod msrpm;
pub(crate) mod npt;
pub(crate) mod seg;
mod vcpu;
pub(crate) mod vmcb;

use super::backend::{Backend, HwCaps};
use kernel::prelude::*;

/// The vendor.
pub(crate) struct Svm;

impl Backend for Svm {
    const NAME: &'static str = "svm";
    type Entry = npt::Npt;
    type Vcpu = vcpu::SvmVcpu;

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
        vcpu::SvmVcpu::new(caps, root)
    }

    fn teardown() {
        enable::teardown();
    }
}
