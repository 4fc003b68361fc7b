// SPDX-License-Identifier: GPL-2.0

//! What x86 keeps for a VM besides memory, routes and vCPUs: quirks, MSR filter, clock.

use super::{
    args::vm::QUIRKS,
    host::Host,
    model::msr::filter::{self, Range},
    msr::Access,
    time::VmTime,
};
use crate::host::srcu_cell::SrcuCell;
use core::{
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use kernel::prelude::*;

/// One range's bitmap.
pub(crate) struct Bitmap(pub(crate) KVVec<u8>);

impl Deref for Bitmap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// `KVM_X86_SET_MSR_FILTER`
pub(crate) struct Filter {
    /// MSRs in no range are allowed.
    pub(crate) default_allow: bool,
    /// The ranges.
    pub(crate) ranges: KVec<Range<Bitmap>>,
}

/// The x86 part of a VM.
#[pin_data]
pub(crate) struct VmState {
    /// Its clocks.
    #[pin]
    pub(crate) time: VmTime,
    /// What the host offers.
    pub(crate) host: &'static Host,
    #[pin]
    filter: SrcuCell<Filter>,
    filtering: AtomicBool,
    quirks_off: AtomicU64,
    /// `KVM_MSR_EXIT_REASON_*` that go to user space (`KVM_CAP_X86_USER_SPACE_MSR`).
    msr_exits: AtomicU32,
    no_platform_info: AtomicBool,
    exception_payload: AtomicBool,
    triple_fault_event: AtomicBool,
    boot_cpu: AtomicU32,
    wall_clock: AtomicU64,
    identity_map: AtomicU64,
}

impl VmState {
    /// A new VM's.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let host = Host::get()?;
            let filter = KBox::new(
                Filter {
                    default_allow: true,
                    ranges: KVec::new(),
                },
                GFP_KERNEL_ACCOUNT,
            )?;
            Ok(try_pin_init!(Self {
                time <- VmTime::new(host),
                host,
                filter <- SrcuCell::new(filter),
                filtering: AtomicBool::new(false),
                quirks_off: AtomicU64::new(0),
                msr_exits: AtomicU32::new(0),
                no_platform_info: AtomicBool::new(false),
                exception_payload: AtomicBool::new(false),
                triple_fault_event: AtomicBool::new(false),
                boot_cpu: AtomicU32::new(0),
                wall_clock: AtomicU64::new(0),
                identity_map: AtomicU64::new(0),
            }? Error))
        })
    }

    /// User space switched the quirk off.
    #[inline]
    pub(crate) fn quirk_disabled(&self, quirk: u32) -> bool {
        self.quirks_off.load(Ordering::Relaxed) & u64::from(quirk) != 0
    }

    /// Switches quirks off; they stay off.
    pub(crate) fn disable_quirks(&self, quirks: u64) {
        self.quirks_off.fetch_or(quirks & QUIRKS, Ordering::Relaxed);
    }

    /// The guest may read PLATFORM_INFO.
    pub(crate) fn platform_info(&self) -> bool {
        !self.no_platform_info.load(Ordering::Relaxed)
    }

    /// `KVM_CAP_MSR_PLATFORM_INFO`
    pub(crate) fn set_platform_info(&self, on: bool) {
        self.no_platform_info.store(!on, Ordering::Relaxed);
    }

    /// `KVM_CAP_EXCEPTION_PAYLOAD` is enabled.
    pub(crate) fn exception_payload(&self) -> bool {
        self.exception_payload.load(Ordering::Relaxed)
    }

    /// Enables it, or not.
    pub(crate) fn set_exception_payload(&self, on: bool) {
        self.exception_payload.store(on, Ordering::Relaxed);
    }

    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT` is enabled.
    pub(crate) fn triple_fault_event(&self) -> bool {
        self.triple_fault_event.load(Ordering::Relaxed)
    }

    /// Enables it, or not.
    pub(crate) fn set_triple_fault_event(&self, on: bool) {
        self.triple_fault_event.store(on, Ordering::Relaxed);
    }

    /// The vCPU that is the bootstrap processor.
    pub(crate) fn boot_cpu_id(&self) -> u32 {
        self.boot_cpu.load(Ordering::Relaxed)
    }

    /// `KVM_SET_BOOT_CPU_ID`
    pub(crate) fn set_boot_cpu_id(&self, id: u32) {
        self.boot_cpu.store(id, Ordering::Relaxed);
    }

    /// What MSR_KVM_WALL_CLOCK reads: one for all vCPUs.
    pub(crate) fn wall_clock_msr(&self) -> u64 {
        self.wall_clock.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub(crate) fn set_wall_clock_msr(&self, v: u64) {
        self.wall_clock.store(v, Ordering::Relaxed);
    }

    /// Where VMX without unrestricted guest would put its identity map: kept, not used.
    pub(crate) fn set_identity_map(&self, v: u64) {
        self.identity_map.store(v, Ordering::Relaxed);
    }

    /// Which refused MSR accesses user space wants to see.
    pub(crate) fn set_msr_exits(&self, reasons: u32) {
        self.msr_exits.store(reasons, Ordering::Relaxed);
    }

    /// What becomes of an MSR access that is refused for `reason`.
    pub(crate) fn msr_refused(&self, reason: u32) -> Access {
        if self.msr_exits.load(Ordering::Relaxed) & reason != 0 {
            Access::ToUser(reason)
        } else {
            Access::Gp
        }
    }

    /// Replaces the MSR filter. Sleeps until no vCPU uses the old one.
    pub(crate) fn set_filter(&self, f: KBox<Filter>) {
        self.filtering
            .store(!f.default_allow || !f.ranges.is_empty(), Ordering::Relaxed);
        drop(self.filter.replace(f));
    }

    /// The guest may access the MSR, as far as the filter goes. x2APIC registers are not filtered.
    #[inline]
    pub(crate) fn msr_allowed(&self, index: u32, write: bool) -> bool {
        if !self.filtering.load(Ordering::Relaxed) || (0x800..=0x8ff).contains(&index) {
            return true;
        }
        let f = self.filter.read();
        filter::allowed(&f.ranges, !f.default_allow, index, write)
    }
}
