// SPDX-License-Identifier: GPL-2.0

//! A vCPU's state under its lock.

use super::{
    gic,
    host::Host,
    insn::{self, El1, Fp, GuestControls, HostControls, HostEl0, Timer},
    model::{esr, exception, mmio::Request, pstate, trap},
    shared::Alarm,
    stolen::Stolen,
    vm::VmState,
};
use crate::{
    bindings::{self as rb, rkvm_arm64_run as Run},
    host::kick::Kick,
    memory::{stage2, TableCache},
};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::{prelude::*, sync::Arc};

/// HCR_EL2 (Arm ARM D24).
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_INNER: u64 = 1 << 10;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const E2H: u64 = 1 << 34;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const TEA: u64 = 1 << 37;
    pub(super) const FWB: u64 = 1 << 46;
}

/// CPTR_EL2 with E2H: FP and SIMD are the guest's; SVE, SME, trace and activity monitors trap.
const CPTR: u64 = 3 << 20 | 1 << 28 | 1 << 30;
/// MDCR_EL2: debug registers, the PMU, trace and profiling trap; HPMN (bits 4:0) stays the host's.
const MDCR_TRAPS: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19;
/// CNTHCTL_EL2 with E2H: EL1PCTEN, so that the physical counter can be read; its timer traps.
const CNTHCTL: u64 = EL1PCTEN;
const EL1PCTEN: u64 = 1 << 10;
/// VTCR_EL2: write-back, inner shareable walks, RES1.
const VTCR: u64 = 1 << 31 | 3 << 12 | 1 << 10 | 1 << 8;

/// What only the holder of its lock touches.
pub(crate) struct Vcpu {
    /// General registers, PC and PSTATE; what the entry code works on.
    pub(crate) run: KBox<Run>,
    /// FP and SIMD.
    pub(crate) fp: Fp,
    /// EL1's registers; in the CPU while a section lasts.
    pub(crate) el1: El1,
    controls: GuestControls,
    host_controls: HostControls,
    host_el0: HostEl0,
    /// The virtual timer; in the CPU likewise.
    pub(crate) timer: Timer,
    /// Stolen time.
    pub(crate) stolen: Stolen,
    /// It has run before.
    pub(crate) started: bool,
    /// The VM has a GIC: without one the guest sees none.
    pub(crate) gic: bool,
    /// `KVM_ARM_VCPU_INIT` has been called.
    pub(crate) initialized: bool,
    /// Its features.
    pub(crate) features: u32,
    /// What registers it has, once a trap has asked.
    pub(crate) gates: Option<trap::Features>,
    /// System registers that are in none of the other fields, by [`trap::slot`].
    pub(crate) slots: KVec<u64>,
    /// SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, which no guest has.
    pub(crate) spsr32: [u64; 4],
    /// The physical timer, which traps.
    pub(crate) physical: Timer,
    /// Rings for both timers while the guest is not on a CPU.
    pub(crate) alarm: Alarm,
    /// The virtual timer's interrupt was made active on the CPU for this section.
    vtimer_held: bool,
    /// Translations are to be dropped before the next entry.
    pub(crate) flush: bool,
    /// It executes WFI.
    pub(crate) waiting: bool,
    /// Tables for the next faults.
    pub(crate) cache: TableCache,
    /// A read of a device's memory that user space is to answer.
    pub(crate) mmio: Option<Request>,
    /// Among all vCPUs of the host.
    id: u64,
    host: &'static Host,
}

/// Numbers for vCPUs; 0 is none.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Vcpu {
    /// A vCPU that `KVM_ARM_VCPU_INIT` is still to make one.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(
        vm: &VmState,
        root: u64,
        config: &stage2::Config,
        id: u32,
        kick: &Arc<Kick>,
    ) -> Result<Self> {
        let host = vm.host;
        let run = KBox::new(Run::default(), GFP_KERNEL_ACCOUNT)?;
        let vtcr = VTCR
            | super::model::stage2::vtcr_shape(config)
            | host.pa_range << 16
            | u64::from(host.wide_vmid) << 19
            | u64::from(host.access_flags) << 21;
        let mut controls = GuestControls {
            hcr: hcr::VM
                | hcr::SWIO
                | hcr::FMO
                | hcr::IMO
                | hcr::AMO
                | hcr::FB
                | hcr::BSU_INNER
                | hcr::TWI
                | hcr::TID3
                | hcr::TSC
                | hcr::TIDCP
                | hcr::TACR
                | hcr::TSW
                | hcr::RW
                | hcr::E2H
                | hcr::TLOR,
            vtcr,
            vttbr: vm.vttbr(root),
            cptr: CPTR,
            mdcr: MDCR_TRAPS,
            cnthctl: CNTHCTL,
            cntvoff: 0,
            vmpidr: trap::mpidr(id),
            vpidr: insn::midr(),
            hstr: 0xffff,
            hcrx: host.hcrx.then_some(0),
        };
        if host.ras {
            controls.hcr |= hcr::TERR | hcr::TEA;
        }
        if super::model::stage2::is_forced() {
            controls.hcr |= hcr::FWB;
        }
        Ok(Self {
            run,
            fp: Fp::default(),
            el1: El1::default(),
            controls,
            host_controls: HostControls::default(),
            host_el0: HostEl0::default(),
            timer: Timer::default(),
            stolen: Stolen::default(),
            started: false,
            gic: false,
            initialized: false,
            features: 0,
            gates: None,
            slots: KVec::from_elem(0, trap::SLOTS, GFP_KERNEL_ACCOUNT)?,
            spsr32: [0; 4],
            physical: Timer::default(),
            alarm: Alarm::new(kick)?,
            vtimer_held: false,
            flush: false,
            waiting: false,
            cache: TableCache::new(),
            mmio: None,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            host,
        })
    }

    /// Registers as after a reset (Arm ARM, TakeReset); what is unknown there is 0.
    pub(crate) fn reset(&mut self) {
        *self.run = Run {
            flags: self.run.flags,
            pstate: pstate::RESET,
            ..Run::default()
        };
        self.gates = None;
        self.fp = Fp::default();
        self.el1 = El1::default();
        for r in trap::listed(&self.register_features()) {
            if let Some(v) = self.sys(r) {
                *v = trap::reset_value(r);
            }
        }
        self.spsr32 = [0; 4];
        self.physical = Timer::default();
        self.alarm.clear();
        self.timer = Timer::default();
        self.waiting = false;
        self.mmio = None;
    }

    /// Affinity, as MPIDR_EL1 shows it: that of its id.
    pub(crate) fn mpidr(&self) -> u64 {
        self.controls.vmpidr
    }

    /// KVM_ARM_VCPU_PSCI_0_2
    pub(crate) fn psci_0_2(&self) -> bool {
        self.features & 1 << rb::KVM_ARM_VCPU_PSCI_0_2 != 0
    }

    /// A general register; 31 reads as 0.
    #[inline]
    pub(crate) fn x(&self, n: esr::Gpr) -> u64 {
        self.run.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Sets one; 31 takes nothing.
    #[inline]
    pub(crate) fn set_x(&mut self, n: esr::Gpr, v: u64) {
        if let Some(x) = self.run.x.get_mut(usize::from(n)) {
            *x = v;
        }
    }

    /// The guest goes on behind the instruction that has exited.
    #[inline]
    pub(crate) fn advance(&mut self) {
        let long = self.run.esr & esr::IL != 0;
        (self.run.pc, self.run.pstate) = pstate::step_over(self.run.pc, self.run.pstate, long);
    }

    /// Loads the guest's state into the CPU. IRQs are off until [`Self::section_ends`].
    pub(crate) fn section_begins(&mut self, vm: &VmState, gic: &gic::Cpu) {
        self.controls.cntvoff = vm.counter_offset.load(Ordering::Relaxed);
        // A moved physical counter cannot be read directly.
        self.controls.cnthctl = match vm.physical_offset.load(Ordering::Relaxed) {
            0 => CNTHCTL,
            _ => CNTHCTL & !EL1PCTEN,
        };
        insn::fp_begin();
        self.host_el0 = HostEl0::save();
        self.host_controls = self.controls.load();
        if core::mem::take(&mut self.flush) {
            insn::flush_vmid();
        }
        if let Some((_, last)) = self.host.last.current() {
            // Another vCPU of this VM may have left translations of its own tables here.
            if last.swap(self.id, Ordering::Relaxed) != self.id {
                insn::flush_vmid_here();
            }
        }
        self.el1.load();
        insn::fp_load(&self.fp);
        // Pending or active in the guest, it must not end the guest's run again.
        self.vtimer_held = gic.state.lock().private.is_busy(vm.virtual_ppi());
        if self.vtimer_held {
            insn::set_vtimer_active(true);
        }
        self.timer.load();
    }

    /// Takes it back. `timer_ended`: the guest has ended the virtual timer's interrupt, and so that it is active.
    pub(crate) fn section_ends(&mut self, timer_ended: bool) {
        self.timer.save();
        if self.vtimer_held && !timer_ended {
            insn::set_vtimer_active(false);
        }
        insn::fp_save(&mut self.fp);
        self.el1.save();
        self.host_el0.restore();
        self.host_controls.restore();
        insn::fp_end();
    }

    /// What decides how an exception is taken.
    fn context(&self) -> exception::Context {
        exception::Context {
            pc: self.run.pc,
            pstate: self.run.pstate,
            vbar: self.el1.vbar,
            sctlr: self.el1.sctlr,
            ..exception::Context::default()
        }
    }

    /// The guest takes an exception to EL1 before its next instruction. Outside of a section.
    pub(crate) fn raise(&mut self, e: exception::Exception) {
        // PSTATE holds a mode that guests have: hardware and `KVM_SET_ONE_REG` see to that.
        let Some(taken) = self.context().take(&e) else {
            return;
        };
        self.run.pc = taken.pc;
        self.run.pstate = taken.pstate;
        self.el1.elr = taken.elr;
        self.el1.spsr = taken.spsr;
        if let Some(v) = taken.esr {
            self.el1.esr = v;
        }
        if let Some(v) = taken.far {
            self.el1.far = v;
        }
    }

    /// An external abort for an access to `far`, on a fetch or not; `walk`: at that level of the guest's tables.
    pub(crate) fn external_abort(&mut self, instruction: bool, far: u64, walk: Option<i8>) {
        let e = self.context().external_abort(instruction, far, walk);
        self.raise(e);
    }

    /// The guest sees data in big-endian order now.
    pub(crate) fn big_endian(&self) -> bool {
        pstate::big_endian(self.run.pstate, self.el1.sctlr)
    }
}
