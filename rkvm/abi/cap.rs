// SPDX-License-Identifier: GPL-2.0

//! The table of capabilities that do not depend on the family.

/// Most vCPUs of a VM.
pub(crate) const MAX_VCPUS: usize = 1024;
/// Most memory slots of a VM, as in-tree KVM has it.
pub(crate) const MAX_SLOTS: u32 = 32764;
/// Most interrupt routes.
pub(crate) const MAX_ROUTES: u32 = 4096;

/// One row: a capability and its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cap {
    /// The number.
    pub(crate) number: u32,
    /// What `KVM_CHECK_EXTENSION` returns.
    pub(crate) value: i32,
}

/// Declares a table of capabilities.
#[macro_export]
macro_rules! caps {
    ($($name:ident = $value:expr;)*) => {
        &[$($crate::abi::cap::Cap {
            number: $crate::bindings::$name,
            value: $value,
        },)*]
    };
}

/// What every family has. Anything else is 0 unless the family says otherwise.
pub(crate) const GENERIC: &[Cap] = caps! {
    KVM_CAP_USER_MEMORY = 1;
    KVM_CAP_NR_MEMSLOTS = MAX_SLOTS as i32;
    KVM_CAP_SYNC_MMU = 1;
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 1;
    KVM_CAP_IRQ_ROUTING = MAX_ROUTES as i32;
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 1;
    KVM_CAP_IRQFD = 1;
    KVM_CAP_IOEVENTFD = 1;
    KVM_CAP_INTERNAL_ERROR_DATA = 1;
    KVM_CAP_SIGNAL_MSI = 1;
    KVM_CAP_READONLY_MEM = 1;
    KVM_CAP_IRQFD_RESAMPLE = 1;
    KVM_CAP_ENABLE_CAP_VM = 1;
    KVM_CAP_IOEVENTFD_NO_LENGTH = 1;
    KVM_CAP_CHECK_EXTENSION_VM = 1;
    KVM_CAP_MULTI_ADDRESS_SPACE = 1;
    KVM_CAP_IOEVENTFD_ANY_LENGTH = 1;
    KVM_CAP_IMMEDIATE_EXIT = 1;
    KVM_CAP_COALESCED_PIO = 1;
    // KVM_CREATE_DEVICE is there, though no kind of device is yet: ENODEV.
    KVM_CAP_DEVICE_CTRL = 1;
    KVM_CAP_USER_MEMORY2 = 1;
    // KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE; a log never starts with all pages dirty.
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 1;
};

/// The value of `number` in a table; 0 where it is not listed.
pub(crate) fn value(table: &[Cap], number: u32) -> i32 {
    table
        .iter()
        .find(|c| c.number == number)
        .map_or(0, |c| c.value)
}
