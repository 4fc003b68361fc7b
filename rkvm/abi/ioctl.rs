// SPDX-License-Identifier: GPL-2.0

//! The table of ioctls (Documentation/virt/kvm/api.rst, section 4).

/// Which kinds of descriptor answer an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// The device node.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
    /// An in-kernel device.
    Device,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ioctl {
    /// The request code.
    pub(crate) code: u32,
    /// Who answers it.
    pub(crate) on: &'static [On],
}

/// Declares request codes and the table of them.
#[macro_export]
macro_rules! ioctls {
    ($($(#[$meta:meta])* $name:ident = $dir:ident($nr:literal $(, $ty:ty)?) on $($on:ident)|+;)*) => {
        $(
            $(#[$meta])*
            pub(crate) const $name: u32 = $crate::host::uapi::$dir$(::<$ty>)?(
                $crate::abi::ioctl::KVMIO,
                $nr,
            );
        )*
        /// All of them.
        pub(crate) const TABLE: &[$crate::abi::ioctl::Ioctl] = &[
            $($crate::abi::ioctl::Ioctl {
                code: $name,
                on: &[$($crate::abi::ioctl::On::$on),+],
            },)*
        ];
    };
}

/// The type byte of every KVM ioctl.
pub(crate) const KVMIO: u32 = 0xae;

use crate::bindings as rb;

ioctls! {
    /// Returns 12.
    GET_API_VERSION = _IO(0x00) on System;
    /// Makes a VM; returns its descriptor.
    CREATE_VM = _IO(0x01) on System;
    /// The value of a capability.
    CHECK_EXTENSION = _IO(0x03) on System | Vm;
    /// How many bytes of a vCPU's descriptor to map.
    GET_VCPU_MMAP_SIZE = _IO(0x04) on System;
    /// Makes a vCPU; returns its descriptor.
    CREATE_VCPU = _IO(0x41) on Vm;
    /// Which pages of a slot were written since the last call.
    GET_DIRTY_LOG = _IOW(0x42, rb::kvm_dirty_log) on Vm;
    /// Makes, moves, changes or deletes a memory slot.
    SET_USER_MEMORY_REGION = _IOW(0x46, rb::kvm_userspace_memory_region) on Vm;
    /// The same, with room for guest memory descriptors (which are not there).
    SET_USER_MEMORY_REGION2 = _IOW(0x49, rb::kvm_userspace_memory_region2) on Vm;
    /// Sets the level of an interrupt line.
    IRQ_LINE = _IOW(0x61, rb::kvm_irq_level) on Vm;
    /// The same, and tells what became of it.
    IRQ_LINE_STATUS = _IOWR(0x67, rb::kvm_irq_level) on Vm;
    /// Collects writes to a range in a ring.
    REGISTER_COALESCED_MMIO = _IOW(0x67, rb::kvm_coalesced_mmio_zone) on Vm;
    /// Stops that.
    UNREGISTER_COALESCED_MMIO = _IOW(0x68, rb::kvm_coalesced_mmio_zone) on Vm;
    /// Replaces the table of interrupt routes.
    SET_GSI_ROUTING = _IOW(0x6a, rb::kvm_irq_routing) on Vm;
    /// Binds an eventfd to an interrupt.
    IRQFD = _IOW(0x76, rb::kvm_irqfd) on Vm;
    /// Binds an eventfd to a guest's write.
    IOEVENTFD = _IOW(0x79, rb::kvm_ioeventfd) on Vm;
    /// Turns a capability on.
    ENABLE_CAP = _IOW(0xa3, rb::kvm_enable_cap) on Vm;
    /// Sends an MSI.
    SIGNAL_MSI = _IOW(0xa5, rb::kvm_msi) on Vm;
    /// Starts the dirty log of some pages anew (after `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    CLEAR_DIRTY_LOG = _IOWR(0xc0, rb::kvm_clear_dirty_log) on Vm;
    /// Makes an in-kernel device.
    CREATE_DEVICE = _IOWR(0xe0, rb::kvm_create_device) on Vm;
    /// Sets an attribute of a device.
    SET_DEVICE_ATTR = _IOW(0xe1, rb::kvm_device_attr) on Device;
    /// Reads one.
    GET_DEVICE_ATTR = _IOW(0xe2, rb::kvm_device_attr) on Device;
    /// Says whether there is one.
    HAS_DEVICE_ATTR = _IOW(0xe3, rb::kvm_device_attr) on Device;
    /// Runs a vCPU.
    RUN = _IO(0x80) on Vcpu;
    /// What of a vCPU a debugger wants to see; the structure is each family's.
    SET_GUEST_DEBUG = _IOW(0x9b, rb::kvm_guest_debug) on Vcpu;
    /// The signals blocked while it runs.
    SET_SIGNAL_MASK = _IOW(0x8b, rb::kvm_signal_mask) on Vcpu;
}

/// A table has the request for this kind of descriptor.
pub(crate) fn known(table: &[Ioctl], code: u32, on: On) -> bool {
    table.iter().any(|i| i.code == code && i.on.contains(&on))
}
