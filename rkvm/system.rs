// SPDX-License-Identifier: GPL-2.0

//! The device node's descriptor: what there is before any VM.

use crate::{
    abi::{
        cap::{self, MAX_VCPUS},
        ioctl,
    },
    bindings as rb,
    family::Family,
    host::{
        fd::{DeviceNode, Fd, NewFile, Node},
        trace,
    },
    vm::Vm,
};
use core::marker::PhantomData;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// An open device node.
pub(crate) struct System<F: Family>(PhantomData<F>);

/// The device nodes of a loaded module.
pub(crate) struct Nodes<F: Family> {
    _own: Pin<KBox<DeviceNode<System<F>>>>,
    _kvm: Option<Pin<KBox<DeviceNode<System<F>>>>>,
}

impl<F: Family> Nodes<F> {
    /// Registers `/dev/rkvm`, and if `kvm` is set `/dev/kvm`: descriptors can be had from now on.
    ///
    /// # Errors
    /// `EBUSY`: in-tree KVM has `/dev/kvm`; this is logged. `EEXIST`, `ENOMEM`
    pub(crate) fn register(kvm: bool) -> Result<Self> {
        /// KVM's own minor number (Documentation/admin-guide/devices.txt).
        const KVM_MINOR: u8 = 232;
        let node = |name, minor| KBox::pin_init(DeviceNode::register(name, minor), GFP_KERNEL);
        let kvm = if kvm {
            let n = node(c"kvm", Some(KVM_MINOR)).inspect_err(|_| {
                pr_err!(
                    "kvm_node=1, but in-tree KVM has /dev/kvm: {}\n",
                    F::FREE_KVM
                );
            })?;
            Some(n)
        } else {
            None
        };
        Ok(Self {
            _own: node(c"rkvm", None)?,
            _kvm: kvm,
        })
    }
}

/// The value of a capability, generic or the family's.
pub(crate) fn capability<F: Family>(vm: Option<&Vm<F>>, number: usize) -> isize {
    let Ok(number) = u32::try_from(number) else {
        return 0;
    };
    // The value is the place of the ring among a vCPU's pages.
    if number == rb::KVM_CAP_COALESCED_MMIO {
        return F::COALESCED_PAGE as isize;
    }
    match number {
        // Each needs an id.
        rb::KVM_CAP_MAX_VCPUS => return MAX_VCPUS.min(F::MAX_VCPU_ID as usize) as isize,
        rb::KVM_CAP_SET_GUEST_DEBUG => return isize::from(F::GUEST_DEBUG != 0),
        rb::KVM_CAP_SET_GUEST_DEBUG2 => return F::GUEST_DEBUG as isize,
        _ => {}
    }
    let value = match cap::value(cap::GENERIC, number) {
        0 => F::capability(vm, number),
        v => v,
    };
    value as isize
}

impl<F: Family> Fd for System<F> {
    fn ioctl(_this: &Arc<Self>, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            ioctl::GET_API_VERSION if arg == 0 => Ok(rb::KVM_API_VERSION as isize),
            ioctl::GET_VCPU_MMAP_SIZE if arg == 0 => Ok((F::MMAP_PAGES * PAGE_SIZE) as isize),
            ioctl::GET_API_VERSION | ioctl::GET_VCPU_MMAP_SIZE => {
                Err(trace::refuse(EINVAL, c"the request takes no argument"))
            }
            ioctl::CHECK_EXTENSION => Ok(capability::<F>(None, arg)),
            ioctl::CREATE_VM => {
                let vm = Vm::<F>::new(arg)?;
                Ok(NewFile::new(c"kvm-vm", vm)?.install())
            }
            _ => F::system_ioctl(cmd, arg),
        }
    }
}

impl<F: Family> Node for System<F> {
    fn open() -> Result<Arc<Self>> {
        Ok(Arc::new(Self(PhantomData), GFP_KERNEL_ACCOUNT)?)
    }
}
