// SPDX-License-Identifier: GPL-2.0

//! Ioctls of the device node.

use super::super::{abi, host::Host, model::msr::mce};
use super::{cpuid, msrs, unknown};
use crate::{
    abi::{ioctl::On, user},
    bindings as rb,
    host::trace,
};
use kernel::prelude::*;

/// An ioctl of the device node that is x86's own.
///
/// # Errors
/// `ENOTTY` when there is none such; the rest as documented for each.
pub(crate) fn ioctl(cmd: u32, arg: usize) -> Result<isize> {
    let host = Host::get()?;
    match cmd {
        abi::GET_SUPPORTED_CPUID => cpuid::supported(arg),
        abi::GET_MSR_INDEX_LIST => msrs::list(
            arg,
            MsrNumbers {
                at: 0,
                feature: false,
            },
        ),
        abi::GET_MSR_FEATURE_INDEX_LIST => msrs::list(
            arg,
            MsrNumbers {
                at: 0,
                feature: true,
            },
        ),
        abi::GET_MSRS => msrs::transfer(arg, true, |index, _| host.msr.feature_msr(index)),
        abi::X86_GET_MCE_CAP_SUPPORTED => {
            user::put(arg, &mce::SUPPORTED)?;
            Ok(0)
        }
        abi::HAS_DEVICE_ATTR | abi::GET_DEVICE_ATTR => {
            let a: rb::kvm_device_attr = user::get(arg)?;
            if a.group != 0 || a.attr != u64::from(rb::KVM_X86_XCOMP_GUEST_SUPP) {
                return Err(trace::refuse(ENXIO, c"no such attribute of the system"));
            }
            if cmd == abi::GET_DEVICE_ATTR {
                let addr = usize::try_from(a.addr).map_err(|_| EFAULT)?;
                user::put(addr, &host.supported.xcr0)?;
            }
            Ok(0)
        }
        _ => unknown(cmd, On::System),
    }
}

/// The numbers of one of the two lists; a clonable iterator.
#[derive(Clone)]
struct MsrNumbers {
    at: usize,
    feature: bool,
}

impl Iterator for MsrNumbers {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let msr = &Host::get().ok()?.msr;
        let at = self.at;
        self.at += 1;
        if self.feature {
            msr.feature_list().nth(at)
        } else {
            msr.index_list().nth(at)
        }
    }
}
