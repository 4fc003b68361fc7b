// SPDX-License-Identifier: GPL-2.0

//! The host's PMUs, and what a VM has of one.

use super::super::{
    host::Host,
    insn,
    model::pmu::{
        events::{Events, Range, WORDS},
        pmcr, Shape, V3P5,
    },
    vm::VmState,
};
use crate::{
    bindings as rb,
    host::{percpu::PerCpu, trace, work},
};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// PMUs of the host's CPUs that guests can have counters of.
pub(crate) struct HostPmus {
    kinds: KVec<rb::rkvm_arm64_pmu>,
    /// Which of them each CPU has.
    of: PerCpu<Option<usize>>,
    /// The version that all CPUs have (ID_AA64DFR0_EL1.PMUVer): 0, none.
    version: u8,
}

impl HostPmus {
    /// Asks the kernel. Sleeps. `dfr0`: ID_AA64DFR0_EL1 of all CPUs.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn find_out(dfr0: u64) -> Result<Self> {
        let version = match dfr0 >> 8 & 0xf {
            0xf => 0,
            v => u8::try_from(v)?,
        };
        let mut kinds: KVec<rb::rkvm_arm64_pmu> = KVec::new();
        let of = PerCpu::new(|cpu| {
            let Some(pmu) = insn::find_pmu(cpu).filter(|_| version != 0) else {
                return Ok(None);
            };
            if let Some(i) = kinds.iter().position(|k| k.type_ == pmu.type_) {
                return Ok(Some(i));
            }
            kinds.push(pmu, GFP_KERNEL)?;
            Ok(Some(kinds.len() - 1))
        })?;
        Ok(Self { kinds, of, version })
    }

    /// Guests can have a PMU.
    pub(crate) fn any(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// The version that guests are offered.
    pub(crate) fn limit(&self) -> u8 {
        self.version.min(V3P5)
    }

    /// Event counters have 64 bits.
    #[inline]
    pub(crate) fn long(&self) -> bool {
        self.version >= V3P5
    }

    fn of_cpu(&self, cpu: u32) -> Option<usize> {
        self.of.get(cpu).copied().flatten()
    }
}

/// A VM's.
#[pin_data]
pub(crate) struct VmPmu {
    host: &'static Host,
    /// Held by who changes any of this. The filter of events; empty: all may be counted.
    #[pin]
    filter: Mutex<KVec<u64>>,
    /// It is not empty.
    filtered: AtomicBool,
    /// Whose events it counts, from 1; 0: no PMU yet.
    kind: AtomicU32,
    /// PMCR_EL0.N
    counters: AtomicU32,
    /// PMMIR_EL1.SLOTS
    slots: AtomicU32,
    /// User space has chosen the PMU: on other CPUs vCPUs do not run.
    chosen: AtomicBool,
    /// `KVM_ARM_VCPU_PMU_V3_STRICT`
    strict: AtomicBool,
}

impl VmPmu {
    /// None yet.
    pub(crate) fn new(host: &'static Host) -> impl PinInit<Self> {
        pin_init!(Self {
            host,
            filter <- new_mutex!(KVec::new(), "rkvm::VmPmu"),
            filtered: AtomicBool::new(false),
            kind: AtomicU32::new(0),
            counters: AtomicU32::new(0),
            slots: AtomicU32::new(0),
            chosen: AtomicBool::new(false),
            strict: AtomicBool::new(false),
        })
    }

    /// A vCPU with a PMU is made. The VM's is that of this CPU, unless user space is to choose (`strict`).
    ///
    /// # Errors
    /// `ENODEV`: this CPU has none.
    pub(crate) fn initialize(&self, strict: bool) -> Result {
        let _changing = self.filter.lock();
        self.strict.store(strict, Ordering::Relaxed);
        if self.is_chosen() || strict {
            return Ok(());
        }
        let kind = self.host.pmus.of_cpu(work::cpu_hint());
        let kind = kind.ok_or_else(|| trace::refuse(ENODEV, c"this CPU has no PMU"))?;
        self.select(kind)
    }

    fn select(&self, kind: usize) -> Result {
        let number = u32::try_from(kind + 1)?;
        self.kind.store(number, Ordering::Release);
        self.counters.store(self.max(), Ordering::Relaxed);
        Ok(())
    }

    fn index(&self) -> Option<usize> {
        let number = usize::try_from(self.kind.load(Ordering::Acquire)).ok()?;
        number.checked_sub(1)
    }

    fn kind(&self) -> Option<&'static rb::rkvm_arm64_pmu> {
        self.host.pmus.kinds.get(self.index()?)
    }

    /// Event counters at the most.
    fn max(&self) -> u32 {
        self.kind().map_or(0, |k| k.counters.min(31))
    }

    /// With the PMU that is counted on, and what may be counted.
    pub(crate) fn with<T>(
        &self,
        f: impl FnOnce(Option<&rb::rkvm_arm64_pmu>, &Events<'_>) -> T,
    ) -> T {
        // Most VMs have no filter, and many vCPUs.
        if !self.filtered.load(Ordering::Acquire) {
            return f(self.kind(), &Events::ALL);
        }
        let filter = self.filter.lock();
        f(self.kind(), &Events::new(&filter))
    }

    /// What the guest's PMU is, with these ID_AA64DFR0_EL1 and ID_AA64PFR0_EL1.
    pub(crate) fn shape(&self, host: &Host, dfr0: u64, pfr0: u64) -> Shape {
        Shape {
            version: u8::try_from(dfr0 >> 8 & 0xf).unwrap_or(0),
            counters: u8::try_from(self.counters.load(Ordering::Relaxed)).unwrap_or(0),
            el3: pfr0 >> 12 & 0xf != 0,
            aarch32: host.aarch32_el0,
        }
    }

    /// PMCEID0_EL0, PMCEID1_EL0
    pub(crate) fn pmceid(&self, shape: &Shape) -> [u64; 2] {
        let slots = self.strict.load(Ordering::Relaxed);
        self.with(|pmu, events| events.pmceid(pmu.map_or([0; 2], |p| p.pmceid), shape, slots))
    }

    /// PMMIR_EL1
    pub(crate) fn pmmir(&self) -> u64 {
        self.slots.load(Ordering::Relaxed).into()
    }

    /// User space sets PMMIR_EL1: to what it is, or to 0, which it was for guests of older kernels.
    ///
    /// # Errors
    /// `EINVAL`: another value. `EBUSY`: a vCPU has run.
    pub(crate) fn set_pmmir(&self, vm: &VmState, value: u64) -> Result {
        let _changing = self.filter.lock();
        let now = self.pmmir();
        if value == now {
            return Ok(());
        }
        if value > 0xff {
            return Err(trace::invalid(c"PMMIR_EL1 has SLOTS only"));
        }
        if vm.ran.load(Ordering::Acquire) {
            return Err(trace::refuse(EBUSY, c"PMMIR_EL1 stays once a vCPU has run"));
        }
        if value != 0 {
            return Err(trace::invalid(c"the host's PMU has other slots"));
        }
        self.slots.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// User space sets PMCR_EL0: its N, if that can still be.
    pub(crate) fn set_pmcr_n(&self, vm: &VmState, value: u64) {
        let _changing = self.filter.lock();
        let n = u32::try_from((value & pmcr::N) >> pmcr::N_SHIFT).unwrap_or(0);
        // More than there are is ignored, as is a change that comes late.
        let free = !self.strict.load(Ordering::Relaxed) && !vm.ran.load(Ordering::Acquire);
        if free && n <= self.max() {
            self.counters.store(n, Ordering::Relaxed);
        }
    }

    /// `KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS`
    ///
    /// # Errors
    /// `EINVAL`: no PMU, or it has fewer. `EBUSY`: a vCPU has run.
    pub(super) fn set_counters(&self, vm: &VmState, n: u32) -> Result {
        let _changing = self.filter.lock();
        if n > self.max() || !self.is_chosen() {
            return Err(trace::invalid(c"the host's PMU has fewer counters"));
        }
        if vm.ran.load(Ordering::Acquire) {
            return Err(trace::refuse(EBUSY, c"a vCPU has run"));
        }
        self.counters.store(n, Ordering::Relaxed);
        Ok(())
    }

    /// `KVM_ARM_VCPU_PMU_V3_SET_PMU`
    ///
    /// # Errors
    /// `ENXIO`: no such PMU. `EBUSY`: a vCPU has run, or events are filtered and it is another one.
    pub(super) fn choose(&self, vm: &VmState, number: u32) -> Result {
        let filter = self.filter.lock();
        let is = |k: &rb::rkvm_arm64_pmu| k.type_ == number;
        let kind = self.host.pmus.kinds.iter().position(is);
        let kind = kind.ok_or_else(|| trace::refuse(ENXIO, c"the host has no such PMU"))?;
        let filtered = !filter.is_empty() && self.index() != Some(kind);
        if vm.ran.load(Ordering::Acquire) || filtered {
            return Err(trace::refuse(EBUSY, c"the PMU is in use already"));
        }
        self.select(kind)?;
        self.chosen.store(true, Ordering::Relaxed);
        if let Some(k) = self.kind() {
            if self.strict.load(Ordering::Relaxed) {
                self.slots.store(k.slots, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// `KVM_ARM_VCPU_PMU_V3_FILTER`
    ///
    /// # Errors
    /// `EINVAL`: no such events. `EBUSY`: a vCPU has run. `ENXIO`: there is no PMU yet. `ENOMEM`
    pub(super) fn filter(&self, vm: &VmState, f: &rb::kvm_pmu_event_filter) -> Result {
        let last = Shape {
            version: self.host.pmus.limit(),
            ..Shape::default()
        }
        .last_event();
        let range = Range::new(f.base_event, f.nevents, f.action, last)
            .map_err(|_| trace::invalid(c"no such range of events, or action"))?;
        let mut filter = self.filter.lock();
        if vm.ran.load(Ordering::Acquire) {
            return Err(trace::refuse(EBUSY, c"a vCPU has run"));
        }
        if !self.is_chosen() {
            return Err(trace::refuse(ENXIO, c"no PMU is chosen"));
        }
        if filter.is_empty() {
            *filter = KVec::from_elem(0, WORDS, GFP_KERNEL_ACCOUNT)?;
            range.begin(&mut filter);
        }
        range.apply(&mut filter);
        self.filtered.store(true, Ordering::Release);
        Ok(())
    }

    /// There is one to count on.
    pub(super) fn is_chosen(&self) -> bool {
        self.kind.load(Ordering::Acquire) != 0
    }

    /// vCPUs cannot run on this CPU: it has another PMU than the one that was chosen.
    pub(crate) fn refuses(&self, cpu: u32) -> bool {
        self.chosen.load(Ordering::Relaxed) && self.host.pmus.of_cpu(cpu) != self.index()
    }
}
