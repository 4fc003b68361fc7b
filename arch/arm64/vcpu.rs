// SPDX-License-Identifier: GPL-2.0

//! A vCPU's state under its lock.

use super::{
    controls, errata,
    host::Host,
    ids::{self, Values},
    insn::{self, Banked, El1, El1Later, Fp, GuestControls, HostControls, HostEl0, Sve, Timer},
    model::{
        aarch32,
        debug::{self, Loaded, Plan, Stepper},
        esr, exception, idreg,
        mmio::Request,
        onereg::CACHES,
        pstate,
        sve::Lengths,
        sysreg::Sysreg,
        trap,
    },
    pmu::Pmu,
    shared::{Alarm, Shared},
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

/// What only the holder of its lock touches.
pub(crate) struct Vcpu {
    /// General registers, PC and PSTATE; what the entry code works on.
    pub(crate) run: KBox<Run>,
    /// FP and SIMD; of a guest with SVE only FPSR and FPCR.
    pub(crate) fp: KBox<Fp>,
    /// SVE, once it is finalized.
    pub(crate) sve: Option<Sve>,
    /// Its vector lengths.
    pub(crate) lengths: Lengths,
    /// ZCR_EL1
    pub(crate) zcr: u64,
    /// FPMR
    pub(crate) fpmr: u64,
    /// EL1's registers; in the CPU while a section lasts.
    pub(crate) el1: KBox<El1>,
    /// Likewise, where the CPU has them.
    pub(crate) later: El1Later,
    /// Who debugs, and with what.
    pub(crate) debug: KBox<Debug>,
    /// An SError with this ISS waits until the guest unmasks it.
    pub(crate) serror: Option<u64>,
    /// DISR_EL1
    pub(crate) disr: u64,
    /// CCSIDR_EL1 by CSSELR_EL1.
    pub(crate) ccsidr: [u32; CACHES as usize],
    /// The VM's ID registers.
    pub(crate) ids: KBox<Values>,
    ids_seen: u32,
    /// For `kvm_run.flags`.
    pub(crate) run_flags: u16,
    root: u64,
    host_zcr: u64,
    controls: GuestControls,
    host_controls: HostControls,
    host_el0: HostEl0,
    /// The virtual timer; in the CPU likewise.
    pub(crate) timer: Timer,
    /// Performance monitors, if it has them.
    pub(crate) pmu: Option<KBox<Pmu>>,
    /// Stolen time.
    pub(crate) stolen: Stolen,
    /// `KVM_ARM_VCPU_INIT` has been called.
    pub(crate) initialized: bool,
    /// Its features.
    pub(crate) features: u32,
    /// System registers that are in none of the other fields, by [`trap::slot`].
    pub(crate) slots: KVec<u64>,
    /// What AArch32 at EL1 has besides; in the CPU while a section of such a vCPU lasts.
    pub(crate) banked: Banked,
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

/// What a vCPU keeps for debugging.
pub(crate) struct Debug {
    /// `KVM_SET_GUEST_DEBUG`: [`debug::control`]
    pub(crate) control: u32,
    /// The registers that came with it.
    pub(crate) user: debug::Registers,
    /// User space's single step.
    pub(crate) stepper: Stepper,
    /// The guest's registers.
    pub(crate) guest: debug::Registers,
    /// The guest's MDSCR_EL1.
    pub(crate) mdscr: u64,
    /// The guest's OSLSR_EL1.
    pub(crate) oslsr: u64,
    /// The guest's DBGVCR.
    pub(crate) vcr: u64,
    plan: Plan,
    hw: insn::Debug,
}

impl Debug {
    /// Apart, as it is much for a stack.
    #[inline(never)]
    fn new() -> Result<KBox<Self>> {
        let new = Self {
            control: 0,
            user: debug::Registers::default(),
            stepper: Stepper::default(),
            guest: debug::Registers::default(),
            mdscr: 0,
            oslsr: 0,
            vcr: 0,
            plan: debug::plan(0, 0, 0),
            hw: insn::Debug::new(),
        };
        Ok(KBox::new(new, GFP_KERNEL_ACCOUNT)?)
    }

    /// User space steps the guest.
    fn steps(&self) -> bool {
        self.control & debug::control::STEP != 0
    }

    /// An instruction was done, or an exception taken, in the processor's place.
    #[inline]
    pub(crate) fn passed(&mut self) {
        if self.steps() {
            self.stepper.passed();
        }
    }
}

/// The place in `Run` of the key whose encoding is `n` on from that of the first: CRm 1 and 2 have four words each,
/// CRm 3 has two.
const fn key_index(n: usize) -> Option<usize> {
    match n {
        0..=3 => Some(n),
        8..=11 => Some(n - 4),
        16 | 17 => Some(n - 8),
        _ => None,
    }
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
        kick: &Arc<Kick>,
    ) -> Result<Self> {
        let host = vm.host;
        let run = KBox::new(Run::default(), GFP_KERNEL_ACCOUNT)?;
        let mut ids_seen = 0;
        let ids = KBox::new(
            vm.ids.newer(&mut ids_seen).ok_or(EINVAL)?,
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut slots = KVec::from_elem(0, trap::SLOTS, GFP_KERNEL_ACCOUNT)?;
        let ctr = insn::ftr(Sysreg::CTR_EL0);
        // It outlives resets, as what user space sets instead does.
        if let Some(s) = trap::slot(Sysreg::CLIDR_EL1).and_then(|n| slots.get_mut(n)) {
            *s = idreg::cache::clidr(ctr);
        }
        let mut ccsidr = [0; CACHES as usize];
        for (n, c) in (0u8..).zip(&mut ccsidr) {
            *c = idreg::cache::ccsidr(ctr, n);
        }
        Ok(Self {
            run,
            fp: KBox::new(Fp::default(), GFP_KERNEL_ACCOUNT)?,
            sve: None,
            lengths: Lengths::default(),
            zcr: 0,
            fpmr: 0,
            el1: KBox::new(El1::default(), GFP_KERNEL_ACCOUNT)?,
            later: El1Later::default(),
            debug: Debug::new()?,
            serror: None,
            disr: 0,
            ccsidr,
            ids,
            ids_seen,
            run_flags: 0,
            root,
            host_zcr: 0,
            controls: controls::new(host, config),
            host_controls: HostControls::default(),
            host_el0: HostEl0::default(),
            timer: Timer::default(),
            pmu: None,
            stolen: Stolen::default(),
            initialized: false,
            features: 0,
            slots,
            banked: Banked::default(),
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
        *self.fp = Fp::default();
        if let Some(sve) = &mut self.sve {
            sve.reset();
        }
        if self.aarch32() {
            self.run.pstate = aarch32::RESET;
        }
        *self.el1 = El1::default();
        self.banked = Banked::default();
        self.debug.stepper = Stepper::default();
        let features = self.ids.features;
        for r in trap::listed(&features) {
            if matches!(r, Sysreg::CLIDR_EL1 | Sysreg::MPIDR_EL1) {
                continue;
            }
            if let Some(v) = self.sys(r) {
                *v = match r {
                    Sysreg::ACTLR_EL1 => insn::actlr(),
                    _ => trap::reset_value(r),
                };
            }
        }
        if let Some(pmu) = &mut self.pmu {
            pmu.reset();
        }
        self.serror = None;
        self.physical = Timer::default();
        self.alarm.clear();
        self.timer = Timer::default();
        self.waiting = false;
        self.mmio = None;
    }

    /// Takes over the VM's ID registers, if they have changed.
    #[inline]
    pub(crate) fn refresh(&mut self, vm: &VmState) {
        if let Some(ids) = vm.ids.newer(&mut self.ids_seen) {
            *self.ids = ids;
            controls::apply(&mut self.controls, self.host, self.features, &self.ids);
        }
        if let Some(pmu) = &mut self.pmu {
            let id = |r| self.ids.get(r);
            pmu.refresh(vm, id(Sysreg::ID_AA64DFR0_EL1), id(Sysreg::ID_AA64PFR0_EL1));
        }
    }

    /// It becomes what `KVM_ARM_VCPU_INIT` asks for: these features, power aside.
    pub(crate) fn initialize(&mut self, vm: &VmState, features: u32) {
        if !self.initialized {
            self.lengths = self.host.sve_lengths();
        }
        self.features = features;
        self.initialized = true;
        self.ids_seen = 0;
        self.refresh(vm);
        self.run.flags =
            u64::from(self.has(rb::KVM_ARM_VCPU_PTRAUTH_ADDRESS)) << rb::RKVM_ARM64_PAUTH_BIT;
        self.reset();
    }

    /// A feature of `KVM_ARM_VCPU_INIT`.
    pub(crate) fn has(&self, feature: u32) -> bool {
        ids::has(self.features, feature)
    }

    /// Nothing is left to be finalized.
    pub(crate) fn is_final(&self) -> bool {
        self.sve.is_some() || !self.has(rb::KVM_ARM_VCPU_SVE)
    }

    /// A value that is kept by [`Self::sys`] where it can be needed often, or switched.
    pub(crate) fn special(&mut self, r: Sysreg) -> Option<&mut u64> {
        let key = r.bits().checked_sub(Sysreg::APIAKEYLO_EL1.bits());
        let key = key.and_then(|n| key_index(usize::from(n)));
        Some(match r {
            Sysreg::MDSCR_EL1 => &mut self.debug.mdscr,
            Sysreg::OSLSR_EL1 => &mut self.debug.oslsr,
            Sysreg::DBGVCR32_EL2 => &mut self.debug.vcr,
            Sysreg::DISR_EL1 => &mut self.disr,
            Sysreg::ZCR_EL1 => &mut self.zcr,
            Sysreg::FPMR => &mut self.fpmr,
            _ => match key {
                Some(n) => self.run.guest_keys.get_mut(n)?,
                None => return self.debug.guest.get_mut(r),
            },
        })
    }

    /// KVM_ARM_VCPU_EL1_32BIT: its EL1 is AArch32.
    #[inline]
    pub(crate) fn aarch32(&self) -> bool {
        self.has(rb::KVM_ARM_VCPU_EL1_32BIT)
    }

    /// KVM_ARM_VCPU_PSCI_0_2
    pub(crate) fn psci_0_2(&self) -> bool {
        self.features & 1 << rb::KVM_ARM_VCPU_PSCI_0_2 != 0
    }

    /// A trap of pointer authentication has left PSTATE wrong, if a step was not done yet: it is as when the guest was
    /// `entered` (erratum 2077057).
    #[cold]
    pub(crate) fn mend_pstate(&mut self, entered: u64) {
        if self.debug.plan.step && entered & pstate::bit::SS != 0 {
            self.run.pstate = entered;
        }
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
        self.debug.passed();
    }

    /// Loads the guest's state into the CPU. IRQs are off until [`Self::section_ends`]. `timer_busy`: the virtual timer's
    /// interrupt is pending or active in the guest.
    pub(crate) fn section_begins(&mut self, vm: &VmState, shared: &Shared, timer_busy: bool) {
        let d = &mut *self.debug;
        d.plan = debug::plan(d.control, d.mdscr, d.oslsr);
        if d.plan.step {
            self.run.pstate = d.stepper.load(self.run.pstate);
        }
        let c = &mut self.controls;
        c.mdcr = controls::mdcr(self.host) | d.plan.mdcr;
        c.hcr &= !controls::SERROR;
        if self.serror.is_some() {
            c.hcr |= controls::SERROR;
        }
        // CnP, so that the threads of a core share translations: not without FEAT_TTCNP, so not yet.
        c.vttbr = self.host.vmids.enter(&vm.vmid) << 48 | self.root;
        c.cntvoff = vm.counter_offset.load(Ordering::Relaxed);
        c.cnthctl = controls::cnthctl(vm.physical_offset.load(Ordering::Relaxed) != 0);
        c.vmpidr = shared.mpidr.load(Ordering::Relaxed);
        insn::fp_begin();
        let errata = errata::needed();
        insn::par_barrier(errata);
        self.host_el0 = HostEl0::save();
        insn::par_barrier(errata);
        // Nothing is translated by these yet.
        self.el1.load();
        if self.host.later {
            self.later.load();
        }
        self.host_controls = self.controls.load(errata);
        if core::mem::take(&mut self.flush) {
            insn::flush_vmid();
        }
        if let Some((_, last)) = self.host.last.current() {
            // Another vCPU of this VM may have left translations of its own tables here.
            if last.swap(self.id, Ordering::Relaxed) != self.id {
                insn::flush_vmid_here();
            }
        }
        if self.host.ras {
            insn::load_ras(self.serror.unwrap_or(0), self.disr);
        }
        match &self.sve {
            Some(sve) => {
                insn::load_zcr(self.zcr);
                self.host_zcr = sve.load(&self.fp);
            }
            None => insn::fp_load(&self.fp),
        }
        if self.host.fpmr {
            insn::load_fpmr(self.fpmr);
        }
        let aarch32 = self.aarch32();
        let d = &mut *self.debug;
        let registers = match d.plan.loaded {
            Loaded::None => None,
            Loaded::Guest => Some(&d.guest),
            Loaded::User => Some(&d.user),
        };
        d.hw.load(registers, d.plan.mdscr);
        if aarch32 {
            self.banked.load();
            if d.plan.loaded == Loaded::Guest {
                insn::load_dbgvcr(d.vcr);
            }
        }
        // It must not end the guest's run again.
        self.vtimer_held = timer_busy;
        if timer_busy {
            insn::set_vtimer_active(true);
        }
        self.timer.load();
        if let Some(pmu) = &mut self.pmu {
            pmu.load(vm.host.pmus.long());
        }
    }

    /// Takes it back. `timer_ended`: the guest has ended the virtual timer's interrupt, and so that it is active.
    pub(crate) fn section_ends(&mut self, vm: &VmState, timer_ended: bool) {
        if let Some(pmu) = &mut self.pmu {
            pmu.unload();
        }
        self.timer.save();
        if self.vtimer_held && !timer_ended {
            insn::set_vtimer_active(false);
        }
        let aarch32 = self.aarch32();
        let d = &mut *self.debug;
        if aarch32 {
            self.banked.save();
            if d.plan.loaded == Loaded::Guest {
                d.vcr = insn::dbgvcr();
                insn::load_dbgvcr(0);
            }
        }
        if d.plan.loaded == Loaded::Guest {
            d.mdscr = d.hw.mdscr();
            d.hw.unload(Some(&mut d.guest));
        } else {
            d.hw.unload(None);
        }
        match &mut self.sve {
            Some(sve) => {
                sve.save(&mut self.fp, self.host_zcr);
                self.zcr = insn::zcr();
            }
            None => insn::fp_save(&mut self.fp),
        }
        if self.host.fpmr {
            self.fpmr = insn::fpmr();
        }
        if self.host.ras {
            self.disr = insn::vdisr();
        }
        if self.serror.is_some() && insn::hcr() & controls::SERROR == 0 {
            // The guest has taken it.
            self.serror = None;
        }
        if self.host.later {
            self.later.save();
        }
        let errata = errata::needed();
        insn::par_barrier(errata);
        self.el1.save();
        insn::par_barrier(errata);
        self.host_el0.restore();
        self.host_controls.restore(errata);
        let d = &mut *self.debug;
        d.hw.unmask();
        if d.plan.step {
            self.run.pstate = d.stepper.unload(self.run.pstate);
        }
        self.host.vmids.leave(&vm.vmid);
        insn::fp_end();
    }

    /// What decides how an exception is taken.
    fn context(&self) -> exception::Context {
        exception::Context {
            pc: self.run.pc,
            pstate: self.run.pstate,
            vbar: self.el1.vbar,
            sctlr: self.el1.sctlr,
            sctlr2: if self.ids.features.sctlr2 {
                self.later.sctlr2
            } else {
                0
            },
            ..exception::Context::default()
        }
    }

    /// The guest's instruction is an undefined one.
    pub(crate) fn undefined(&mut self) {
        if self.aarch32() {
            self.raise32(&aarch32::Exception::Undefined);
        } else {
            self.raise(exception::Exception::undefined());
        }
    }

    /// The guest takes an exception to EL1, which is AArch64, before its next instruction. Outside of a section.
    pub(crate) fn raise(&mut self, e: exception::Exception) {
        // PSTATE holds a mode that guests have: hardware and `KVM_SET_ONE_REG` see to that.
        let Some(taken) = self.context().take(&e) else {
            return;
        };
        self.run.pc = taken.pc;
        self.run.pstate = taken.pstate;
        self.debug.passed();
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
        if self.aarch32() {
            self.raise32(&if instruction {
                aarch32::Exception::PrefetchAbort { far, walk }
            } else {
                aarch32::Exception::DataAbort { far, walk }
            });
            return;
        }
        let e = self.context().external_abort(instruction, far, walk);
        self.raise(e);
    }

    /// An SError with this ISS: at once, or as soon as the guest unmasks it. Outside of a section.
    pub(crate) fn raise_serror(&mut self, iss: u64) {
        if self.aarch32() {
            // The processor takes it: at once, or when it is unmasked.
            self.serror = Some(iss);
        } else if self.context().serror_masked() {
            self.serror = Some(iss);
        } else {
            self.mmio = None;
            self.raise(exception::Exception::serror(iss));
        }
    }

    /// Starts it where CPU_ON says, after a reset.
    pub(crate) fn start(&mut self, entry: u64, context: u64, big_endian: bool) {
        if self.aarch32() {
            (self.run.pc, self.run.pstate) = aarch32::start(entry, big_endian);
        } else {
            self.run.pc = entry;
            if big_endian {
                self.el1.sctlr |= pstate::SCTLR_EE;
            }
        }
        self.set_x(0, context);
    }

    /// What decides how the guest sees data now: PSTATE and SCTLR_EL1.
    pub(crate) fn data_order(&self) -> (u64, u64) {
        (self.run.pstate, self.el1.sctlr)
    }
}
