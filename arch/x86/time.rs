// SPDX-License-Identifier: GPL-2.0

//! Time: each vCPU's TSC, and the VM's kvmclock.

use super::{
    host::Host,
    insn::rdtsc,
    model::{
        clock::{
            deadline_ns,
            KvmClock,
            Reference,
            Scale,
            TimeInfo,
            TscOffset,
            TscRatio,
            TscSync,
            TscWrite, //
        },
        lapic::Now,
    },
    shared::now_ns,
    vm::VmState,
};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::SpinLock,
    time::{BootTime, ClockSource, RealTime},
};

/// Bits of fraction in a TSC ratio; no guest's TSC is scaled, so any will do.
const RATIO: TscRatio = TscRatio::one(32);

/// The real time, in ns since 1970.
pub(crate) fn realtime_ns() -> u64 {
    u64::try_from(RealTime::ktime_get()).unwrap_or(0)
}

/// The time since boot, suspension included, in ns.
pub(crate) fn boottime_ns() -> u64 {
    u64::try_from(BootTime::ktime_get()).unwrap_or(0)
}

/// What the vCPUs of a VM share of time.
#[pin_data]
pub(crate) struct VmTime {
    #[pin]
    state: SpinLock<Shared>,
    to_ns: Scale,
}

/// Protected by [`VmTime`]'s lock.
struct Shared {
    sync: TscSync,
    clock: KvmClock,
    reference: Reference,
    /// Some vCPU's page counts from the reference.
    shown: bool,
}

/// The factor from TSC cycles to ns; 1 GHz if the frequency makes no sense.
fn to_ns(host: &Host) -> Scale {
    Scale::to_ns(host.tsc_khz).unwrap_or(Scale {
        mult: 1 << 31,
        shift: 1,
    })
}

impl VmTime {
    /// A clock that starts at 0 now.
    pub(crate) fn new(host: &Host) -> impl PinInit<Self> {
        let to_ns = to_ns(host);
        let reference = Reference {
            host_tsc: rdtsc(),
            ns: boottime_ns(),
        };
        pin_init!(Self {
            state <- new_spinlock!(Shared {
                sync: TscSync::default(),
                clock: KvmClock::starting_at(reference.ns),
                reference,
                shown: false,
            }, "rkvm::VmTime"),
            to_ns,
        })
    }

    /// What kvmclock reads, ns; with the host's TSC and the real time at that moment.
    pub(crate) fn read(&self) -> (u64, u64, u64) {
        let s = self.state.lock();
        let tsc = rdtsc();
        (
            s.clock.at_tsc(s.reference, tsc, self.to_ns),
            tsc,
            realtime_ns(),
        )
    }

    /// Sets kvmclock; with `realtime`, it has gone on since then.
    pub(crate) fn set(&self, clock: u64, realtime: Option<u64>) {
        let mut s = self.state.lock();
        s.reference = Reference {
            host_tsc: rdtsc(),
            ns: boottime_ns(),
        };
        let now = realtime.map(|then| (then, realtime_ns()));
        s.clock = KvmClock::set(clock, s.reference.ns, now);
    }

    /// What a vCPU's kvmclock page says.
    pub(crate) fn info(&self, tsc: &Tsc) -> TimeInfo {
        let mut s = self.state.lock();
        if !s.shown {
            // Not before the guest's TSC began to count: some guests take a difference for unsigned.
            let host_tsc = rdtsc();
            let since = self
                .to_ns
                .apply(host_tsc.wrapping_sub(s.reference.host_tsc));
            s.reference = Reference {
                host_tsc,
                ns: s.reference.ns.wrapping_add(since),
            };
            s.shown = true;
        }
        TimeInfo::new(s.reference, s.clock, RATIO, tsc.offset(), self.to_ns, true)
    }
}

/// A vCPU's time-stamp counter.
pub(crate) struct Tsc {
    value: TscOffset,
    generation: u64,
    khz: u32,
    to_ns: Scale,
}

impl Tsc {
    /// In step with the VM's other vCPUs.
    pub(crate) fn new(vm: &VmState) -> Self {
        let mut tsc = Self {
            value: TscOffset::default(),
            generation: 0,
            khz: vm.host.tsc_khz,
            to_ns: to_ns(vm.host),
        };
        tsc.synchronise(vm, 0, false);
        tsc
    }

    fn synchronise(&mut self, vm: &VmState, value: u64, by_user: bool) {
        let write = TscWrite {
            value,
            by_user,
            host_tsc: rdtsc(),
            now_ns: boottime_ns(),
            khz: self.khz,
            ratio: RATIO,
            stable: true,
        };
        let mut s = vm.time.state.lock();
        self.value.offset = s.sync.write(&write, &mut self.generation);
    }

    /// What is added to the host's TSC.
    #[inline]
    pub(crate) fn offset(&self) -> u64 {
        self.value.offset
    }

    /// The frequency, in kHz.
    pub(crate) fn khz(&self) -> u32 {
        self.khz
    }

    /// The guest's TSC now.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        rdtsc().wrapping_add(self.value.offset)
    }

    /// Both clocks now.
    #[inline]
    pub(crate) fn clock(&self) -> Now {
        Now {
            ns: now_ns(),
            tsc: self.now(),
        }
    }

    /// How long until the guest's TSC reaches `deadline`, in ns.
    pub(crate) fn ns_until(&self, deadline: u64) -> u64 {
        deadline_ns(deadline, 0, self.now(), self.to_ns)
    }

    /// IA32_TSC is written.
    pub(crate) fn write(&mut self, vm: &VmState, value: u64, by_user: bool) {
        if by_user {
            self.synchronise(vm, value, true);
        } else {
            self.value.write_tsc(value, rdtsc(), RATIO);
        }
    }

    /// IA32_TSC_ADJUST
    pub(crate) fn adjust(&self) -> u64 {
        self.value.adjust
    }

    /// IA32_TSC_ADJUST is written.
    pub(crate) fn write_adjust(&mut self, value: u64, by_user: bool) {
        if by_user {
            self.value.adjust = value;
        } else {
            self.value.write_adjust(value);
        }
    }

    /// `KVM_VCPU_TSC_OFFSET`: user space sets the offset itself.
    pub(crate) fn set_offset(&mut self, vm: &VmState, offset: u64) {
        let write = TscWrite {
            value: 0,
            by_user: true,
            host_tsc: rdtsc(),
            now_ns: boottime_ns(),
            khz: self.khz,
            ratio: RATIO,
            stable: true,
        };
        let mut s = vm.time.state.lock();
        s.sync.set_offset(offset, &write, &mut self.generation);
        self.value.offset = offset;
    }
}
