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
            TscRate,
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
    /// From the host's cycles.
    to_ns: Scale,
}

/// Protected by [`VmTime`]'s lock.
struct Shared {
    sync: TscSync,
    clock: KvmClock,
    reference: Reference,
    /// What new vCPUs' TSCs run at.
    rate: TscRate,
    /// Some vCPU's page counts from the reference.
    shown: bool,
}

impl VmTime {
    /// A clock that starts at 0 now.
    pub(crate) fn new(host: &Host) -> impl PinInit<Self> {
        let rate = TscRate::host(host.tsc_khz);
        let reference = Reference {
            host_tsc: rdtsc(),
            ns: boottime_ns(),
        };
        pin_init!(Self {
            state <- new_spinlock!(Shared {
                sync: TscSync::default(),
                clock: KvmClock::starting_at(reference.ns),
                reference,
                rate,
                shown: false,
            }, "rkvm::VmTime"),
            to_ns: rate.to_ns(),
        })
    }

    /// What the TSCs of new vCPUs run at.
    pub(crate) fn rate(&self) -> TscRate {
        self.state.lock().rate
    }

    /// Sets it. There is no vCPU yet.
    pub(crate) fn set_rate(&self, rate: TscRate) {
        self.state.lock().rate = rate;
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

    /// What a vCPU's kvmclock page says; `stable`: the time is the same on all.
    pub(crate) fn info(&self, tsc: &Tsc, stable: bool) -> TimeInfo {
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
        let (ratio, offset) = (tsc.ratio(), tsc.offset());
        TimeInfo::new(s.reference, s.clock, ratio, offset, tsc.to_ns, stable)
    }
}

/// A vCPU's time-stamp counter.
pub(crate) struct Tsc {
    value: TscOffset,
    generation: u64,
    rate: TscRate,
    /// From its own cycles.
    to_ns: Scale,
}

impl Tsc {
    /// In step with the VM's other vCPUs.
    pub(crate) fn new(vm: &VmState) -> Self {
        let rate = vm.time.rate();
        let mut tsc = Self {
            value: TscOffset::default(),
            generation: 0,
            rate,
            to_ns: rate.to_ns(),
        };
        tsc.synchronise(vm, 0, false);
        tsc
    }

    /// A write, now.
    fn writing(&self, value: u64, by_user: bool, host_tsc: u64) -> TscWrite {
        TscWrite {
            value,
            by_user,
            host_tsc,
            now_ns: boottime_ns(),
            khz: self.rate.khz,
            ratio: self.rate.ratio,
            stable: true,
        }
    }

    fn synchronise(&mut self, vm: &VmState, value: u64, by_user: bool) {
        let write = self.writing(value, by_user, rdtsc());
        let mut s = vm.time.state.lock();
        self.value.offset = s.sync.write(&write, &mut self.generation);
    }

    /// Gives it another frequency, from now on.
    pub(crate) fn set_rate(&mut self, vm: &VmState, rate: TscRate) {
        let host_tsc = rdtsc();
        let value = self.rate.ratio.guest_tsc(host_tsc, self.value.offset);
        self.rate = rate;
        self.to_ns = rate.to_ns();
        let write = self.writing(value, false, host_tsc);
        let mut s = vm.time.state.lock();
        // Clock pages count from a new reference: at the old one this TSC may not have begun yet.
        s.shown = false;
        self.value.offset = s.sync.rescale(&write, &mut self.generation);
    }

    /// What is added to the host's TSC, once that is scaled.
    #[inline]
    pub(crate) fn offset(&self) -> u64 {
        self.value.offset
    }

    /// How the host's TSC is scaled.
    #[inline]
    pub(crate) fn ratio(&self) -> TscRatio {
        self.rate.ratio
    }

    /// The frequency, in kHz.
    pub(crate) fn khz(&self) -> u32 {
        self.rate.khz
    }

    /// The guest's TSC now.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.rate.ratio.guest_tsc(rdtsc(), self.value.offset)
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
            self.value.write_tsc(value, rdtsc(), self.rate.ratio);
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
        let write = self.writing(0, true, rdtsc());
        let mut s = vm.time.state.lock();
        s.sync.set_offset(offset, &write, &mut self.generation);
        self.value.offset = offset;
    }
}
