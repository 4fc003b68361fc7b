// SPDX-License-Identifier: GPL-2.0

//! Structures of the uapi as bytes.

use core::mem::{size_of, MaybeUninit};
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

pub(crate) use kernel::ioctl::{_IO, _IOR, _IOW, _IOWR};

/// A structure of the uapi that may be copied in as bytes.
///
/// # Safety
/// Every bit pattern is a valid value.
pub(crate) unsafe trait FromUser: Copy {}

/// A structure of the uapi that may be copied out as bytes, too.
///
/// # Safety
/// The type has no padding that the compiler inserted (the uapi names its padding).
pub(crate) unsafe trait Plain: FromUser {}

/// Structures that are only copied in.
macro_rules! from_user {
    ($($t:ty),* $(,)?) => {
        // SAFETY: uapi structures of integers, arrays, pointers and unions of those.
        $(unsafe impl $crate::host::uapi::FromUser for $t {})*
    };
}

/// Structures that are copied both ways.
macro_rules! plain {
    ($($t:ty),* $(,)?) => {
        // SAFETY: uapi structures of integers, arrays and unions of those.
        $(unsafe impl $crate::host::uapi::FromUser for $t {})*
        // SAFETY: Their padding is explicit.
        $(unsafe impl $crate::host::uapi::Plain for $t {})*
    };
}
pub(crate) use {from_user, plain};

use crate::bindings as rb;

plain!(
    u8,
    u16,
    u32,
    u64,
    [u32; 2],
    rb::kvm_userspace_memory_region,
    rb::kvm_userspace_memory_region2,
    rb::kvm_dirty_log,
    rb::kvm_create_device,
    rb::kvm_clear_dirty_log,
    rb::kvm_irq_level,
    rb::kvm_coalesced_mmio_zone,
    rb::kvm_irq_routing_entry,
    rb::kvm_irqfd,
    rb::kvm_ioeventfd,
    rb::kvm_enable_cap,
    rb::kvm_msi,
    rb::kvm_guest_debug,
    rb::kvm_debug_exit_arch,
);

/// Copies a structure from user space.
///
/// # Errors
/// `EFAULT`
pub(crate) fn read_user<T: FromUser>(addr: usize) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: The same memory as `value`, as bytes that may be uninitialised.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut(
            value.as_mut_ptr().cast::<MaybeUninit<u8>>(),
            size_of::<T>(),
        )
    };
    UserSlice::new(UserPtr::from_addr(addr), size_of::<T>())
        .reader()
        .read_raw(bytes)?;
    // SAFETY: Zeroed, then whole bytes written: initialised; any pattern is valid (`FromUser`).
    Ok(unsafe { value.assume_init() })
}

/// A structure's bytes.
pub(crate) fn plain_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding: all bytes are initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// Copies a structure to user space.
///
/// # Errors
/// `EFAULT`
pub(crate) fn write_user<T: Plain>(addr: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(addr), size_of::<T>())
        .writer()
        .write_slice(plain_bytes(value))
}

/// A structure of zeroes.
pub(crate) fn zeroed<T: FromUser>() -> T {
    // SAFETY: Any bit pattern is valid (`FromUser`).
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The line that a `kvm_irq_level` names.
pub(crate) fn irq_level_gsi(l: &rb::kvm_irq_level) -> u32 {
    // SAFETY: Both members of the union are plain 32-bit integers.
    unsafe { l.__bindgen_anon_1.irq }
}

/// Puts a line's status in the place of its number.
pub(crate) fn set_irq_level_status(l: &mut rb::kvm_irq_level, status: i32) {
    l.__bindgen_anon_1.status = status;
}

/// Whether a zone of coalesced writes is one of ports: 0 or 1, if user space keeps to the rules.
pub(crate) fn zone_pio(zone: &rb::kvm_coalesced_mmio_zone) -> u32 {
    // SAFETY: Both members of the union are plain 32-bit integers.
    unsafe { zone.__bindgen_anon_1.pio }
}
