// SPDX-License-Identifier: GPL-2.0

//! What arm64 keeps for a VM besides memory, routes and vCPUs.

use super::{
    host::Host,
    ids::Ids,
    insn,
    model::{
        psci::Version,
        smccc::{Filter, Mitigations, Services},
    },
    vmid::Vmid,
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// What user space has chosen of the firmware.
#[derive(Default)]
pub(crate) struct Firmware {
    /// The version of PSCI; `None`: the newest.
    pub(crate) psci: Option<Version>,
    /// Services besides PSCI.
    pub(crate) services: Services,
    /// `KVM_ARM_VM_SMCCC_FILTER`
    pub(crate) filter: Filter,
    /// What the host does against speculation.
    pub(crate) mitigations: Mitigations,
}

/// The arm64 part of a VM.
#[pin_data]
pub(crate) struct VmState {
    /// What the host offers.
    pub(crate) host: &'static Host,
    /// Its number for the CPUs.
    pub(crate) vmid: Vmid,
    /// ID registers.
    #[pin]
    pub(crate) ids: Ids,
    /// CNTVOFF_EL2: what the counter has when the guest reads 0.
    pub(crate) counter_offset: AtomicU64,
    /// The firmware that the guest calls.
    #[pin]
    pub(crate) firmware: Mutex<Firmware>,
    /// `KVM_CAP_ARM_NISV_TO_USER`
    pub(crate) nisv_to_user: AtomicBool,
    /// `KVM_CAP_ARM_SYSTEM_SUSPEND`
    pub(crate) system_suspend: AtomicBool,
}

impl VmState {
    /// A new VM's.
    ///
    /// # Errors
    /// `ENODEV` before the module is loaded.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let host = Host::get()?;
            Ok(try_pin_init!(Self {
                host,
                vmid: Vmid::default(),
                ids <- Ids::new(),
                counter_offset: AtomicU64::new(insn::counter()),
                firmware <- new_mutex!(Firmware::default(), "rkvm::VmState::firmware"),
                nisv_to_user: AtomicBool::new(false),
                system_suspend: AtomicBool::new(false),
            }))
        })
    }

    /// The guest's virtual counter, now.
    pub(crate) fn counter(&self) -> u64 {
        insn::counter().wrapping_sub(self.counter_offset.load(Ordering::Relaxed))
    }
}
