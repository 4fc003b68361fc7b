// SPDX-License-Identifier: GPL-2.0

//! In-kernel devices of a VM: their descriptors (`KVM_CREATE_DEVICE`). What a device is, the family
//! says; here it is something with attributes.

use crate::{
    abi::{ioctl, user},
    bindings as rb,
    family::Family,
    host::{
        fd::{Fd, NewFile},
        trace,
    },
    vm::Vm,
};
use kernel::{alloc::flags::GFP_KERNEL_ACCOUNT, prelude::*, sync::Arc};

/// What is done with an attribute of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attr {
    /// `KVM_SET_DEVICE_ATTR`
    Set,
    /// `KVM_GET_DEVICE_ATTR`
    Get,
    /// `KVM_HAS_DEVICE_ATTR`
    Has,
}

/// The descriptor of a device. It keeps the VM.
pub(crate) struct Device<F: Family> {
    vm: Arc<Vm<F>>,
    device: F::Device,
}

impl<F: Family> Device<F> {
    /// `KVM_CREATE_DEVICE`; `arg` points to `struct kvm_create_device`.
    ///
    /// # Errors
    /// `EINVAL`: unknown flags. `ENODEV`: no such kind of device. `EEXIST`: the VM has it already.
    pub(crate) fn create(vm: &Arc<Vm<F>>, arg: usize) -> Result<isize> {
        let mut c: rb::kvm_create_device = user::get(arg)?;
        if c.flags & !rb::KVM_CREATE_DEVICE_TEST != 0 {
            return Err(trace::invalid(c"unknown flags of KVM_CREATE_DEVICE"));
        }
        let test = c.flags & rb::KVM_CREATE_DEVICE_TEST != 0;
        let _creating = vm.creating.lock();
        let Some(device) = F::create_device(vm, c.type_, test)? else {
            return Ok(0);
        };
        let device = Arc::new(
            Self {
                vm: vm.clone(),
                device,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let file = NewFile::new(c"kvm-device", device)?;
        c.fd = u32::try_from(file.fd())?;
        user::put(arg, &c)?;
        file.install();
        Ok(0)
    }
}

impl Attr {
    /// What a request asks for, if it is one about attributes, and which: for any descriptor.
    ///
    /// # Errors
    /// `EFAULT`, `EINVAL`
    pub(crate) fn of(cmd: u32, arg: usize) -> Result<Option<(Self, rb::kvm_device_attr)>> {
        let what = match cmd {
            ioctl::SET_DEVICE_ATTR => Attr::Set,
            ioctl::GET_DEVICE_ATTR => Attr::Get,
            ioctl::HAS_DEVICE_ATTR => Attr::Has,
            _ => return Ok(None),
        };
        let attr: rb::kvm_device_attr = user::get(arg)?;
        if attr.flags != 0 {
            return Err(trace::invalid(c"an attribute has no flags"));
        }
        Ok(Some((what, attr)))
    }
}

impl<F: Family> Fd for Device<F> {
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.vm.memory.mm_is_current() {
            return Err(trace::refuse(
                EIO,
                c"the VM belongs to another address space",
            ));
        }
        let Some((what, attr)) = Attr::of(cmd, arg)? else {
            return Err(trace::refuse(ENOTTY, c"no such request for a device"));
        };
        F::device_attr(&this.vm, &this.device, what, &attr)?;
        Ok(0)
    }
}
