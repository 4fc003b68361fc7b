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
    pmu::vm::VmPmu,
    timer::{PHYSICAL_PPI, VIRTUAL_PPI},
    vmid::Vmid,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
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
    /// What was done against speculation when the VM was made.
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
    /// The same of the physical counter.
    pub(crate) physical_offset: AtomicU64,
    /// `KVM_ARM_SET_COUNTER_OFFSET` has set both: registers do not move them any more.
    pub(crate) offset_fixed: AtomicBool,
    /// The timers' PPIs: the virtual one's, the physical one's (`KVM_ARM_VCPU_TIMER_CTRL`).
    pub(crate) timer_ppis: [AtomicU32; 2],
    /// A vCPU has run: what the firmware and the ID registers are and where interrupts go stays from now on. Set
    /// under the locks of both.
    pub(crate) ran: AtomicBool,
    /// The firmware that the guest calls.
    #[pin]
    pub(crate) firmware: Mutex<Firmware>,
    /// Performance monitors.
    #[pin]
    pub(crate) pmu: VmPmu,
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
                physical_offset: AtomicU64::new(0),
                offset_fixed: AtomicBool::new(false),
                timer_ppis: [AtomicU32::new(VIRTUAL_PPI), AtomicU32::new(PHYSICAL_PPI)],
                ran: AtomicBool::new(false),
                firmware <- new_mutex!(Firmware {
                    mitigations: host.mitigations(),
                    ..Firmware::default()
                }, "rkvm::VmState::firmware"),
                pmu <- VmPmu::new(host),
                nisv_to_user: AtomicBool::new(false),
                system_suspend: AtomicBool::new(false),
            }))
        })
    }

    /// The guest's virtual counter, now.
    pub(crate) fn counter(&self) -> u64 {
        self.virtual_count(insn::counter())
    }

    /// The same when the host's has this count.
    pub(crate) fn virtual_count(&self, count: u64) -> u64 {
        count.wrapping_sub(self.counter_offset.load(Ordering::Relaxed))
    }

    /// The count that the guest's physical timer sees.
    pub(crate) fn physical_count(&self) -> u64 {
        self.physical_count_at(insn::counter())
    }

    /// The same when the host's has this count.
    pub(crate) fn physical_count_at(&self, count: u64) -> u64 {
        count.wrapping_sub(self.physical_offset.load(Ordering::Relaxed))
    }

    /// The virtual timer's PPI.
    pub(crate) fn virtual_ppi(&self) -> u32 {
        let [ppi, _] = &self.timer_ppis;
        ppi.load(Ordering::Relaxed)
    }

    /// One of the timers' PPIs.
    pub(crate) fn is_timers(&self, intid: u32) -> bool {
        [self.virtual_ppi(), self.physical_ppi()].contains(&intid)
    }

    /// The physical timer's.
    pub(crate) fn physical_ppi(&self) -> u32 {
        let [_, ppi] = &self.timer_ppis;
        ppi.load(Ordering::Relaxed)
    }
}
