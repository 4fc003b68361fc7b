// SPDX-License-Identifier: GPL-2.0

//! A vCPU's performance monitors: the model's registers, and behind each counter that counts an event of the host's.
//!
//! The host counts for the thread that runs the vCPU, and not at EL2. What it counts is added to the model whenever
//! somebody looks, so nothing is lost if an overflow is told late; its interrupt ends the guest's run, and the model is
//! brought up to date before the next. That EL0 is the guest's and not the host's own, [`Pmu::load`] sees to.

pub(crate) mod attr;
pub(crate) mod vm;

use super::{
    exit::UserExit,
    insn,
    model::{
        esr::SysregAccess,
        pmu::{self as model, events::Events, regs::Given, regs::Reg, Shape, COUNTERS},
        pstate::Mode,
        sysreg::Sysreg,
        vgic::FIRST_SPI,
    },
    sysreg::Served,
    vm::VmState,
    Arm64,
};
use crate::{
    abi::exit::Common,
    bindings as rb,
    family::Ctx,
    host::{
        kick::Kick,
        perf::{Counter, Overflow, What, MAX_PERIOD},
        trace, work,
    },
    irq::Controller,
};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{prelude::*, sync::Arc};

/// Which of a pin's sources ([`Controller::set_pin`]) PMUs are: others are user space's and irqfds'.
const SOURCE: u32 = 2;

/// What overflows of the host's counters tell.
struct Due {
    due: AtomicBool,
    kick: Arc<Kick>,
}

impl Overflow for Due {
    fn overflow(&self, nmi: bool) {
        self.due.store(true, Ordering::Release);
        // An interrupt has ended the guest's run already; the bell is for one that came late, and found it waiting.
        if !nmi {
            self.kick.ring(0);
        }
    }
}

/// What counts for a counter of the guest.
struct Hosted {
    counter: Counter<Due>,
    what: What,
    /// What it had counted when it was last asked.
    seen: u64,
    /// What it will have counted when it tells of an overflow.
    until: u64,
    on: bool,
}

/// A vCPU's PMU.
pub(crate) struct Pmu {
    regs: model::Pmu,
    shape: Shape,
    pmmir: u64,
    hosted: KVec<Option<Hosted>>,
    /// Counters that may have to count otherwise.
    dirty: u64,
    due: Arc<Due>,
    /// The host's numbers of the counters that count at EL0, in a section.
    at_el0: u64,
    host_user: u64,
    /// `KVM_ARM_VCPU_PMU_V3_INIT`
    ready: bool,
    /// Its vCPU has run.
    begun: bool,
    /// The level that the interrupt controller was told since `KVM_RUN` began, before which user space may have changed it.
    line: Option<bool>,
}

/// The counters in a mask.
fn bits(mask: u64) -> impl Iterator<Item = u8> {
    (0u8..32).filter(move |n| mask >> n & 1 != 0)
}

impl Pmu {
    /// A vCPU's first.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(kick: &Arc<Kick>) -> Result<KBox<Self>> {
        let mut hosted = KVec::with_capacity(COUNTERS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..COUNTERS {
            hosted.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        let due = Due {
            due: AtomicBool::new(false),
            kick: kick.clone(),
        };
        let new = Self {
            regs: model::Pmu::default(),
            shape: Shape::default(),
            pmmir: 0,
            hosted,
            dirty: 0,
            due: Arc::new(due, GFP_KERNEL_ACCOUNT)?,
            at_el0: 0,
            host_user: 0,
            ready: false,
            begun: false,
            line: None,
        };
        Ok(KBox::new(new, GFP_KERNEL_ACCOUNT)?)
    }

    /// Registers as after a reset.
    pub(crate) fn reset(&mut self) {
        self.hosted.iter_mut().for_each(|h| *h = None);
        self.regs.reset(&self.shape);
    }

    /// The VM's PMU is so now. Outside of a section, as all that follows unless it says otherwise.
    pub(crate) fn refresh(&mut self, vm: &VmState, dfr0: u64, pfr0: u64) {
        self.shape = vm.pmu.shape(vm.host, dfr0, pfr0);
        self.pmmir = vm.pmu.pmmir();
    }

    /// Its vCPU has not run yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.begun
    }

    /// `KVM_RUN` begins. It is this thread that runs the vCPU: counters of another one's would see nothing. At the first,
    /// the VM's PMU stays as it is from now on.
    pub(crate) fn begin(&mut self) {
        self.line = None;
        let foreign = |h: &Option<Hosted>| h.as_ref().is_some_and(|h| !h.counter.is_current());
        if self.hosted.iter().any(foreign) {
            self.fold();
            self.hosted.iter_mut().for_each(|h| *h = None);
            self.dirty = u64::MAX;
        }
        if !self.begun {
            self.begun = true;
            self.regs.fit(&self.shape);
            self.dirty = u64::MAX;
        }
    }

    /// Takes over what the host has counted for counter `n`. False: that cannot be had without sleeping.
    fn take(&mut self, n: u8, sleep: bool) -> bool {
        let Some(Some(h)) = self.hosted.get_mut(usize::from(n)) else {
            return true;
        };
        let count = match h.counter.try_read() {
            Some(c) => c,
            None if sleep => h.counter.read(),
            None => return false,
        };
        let events = count.wrapping_sub(h.seen);
        h.seen = count;
        if events != 0 && self.regs.add(n, events, &self.shape) {
            self.dirty |= 1 << n;
        }
        true
    }

    /// Likewise, for all.
    fn fold(&mut self) {
        for n in 0..32 {
            self.take(n, true);
        }
    }

    /// An overflow was told.
    pub(crate) fn is_due(&self) -> bool {
        self.due.due.load(Ordering::Acquire)
    }

    /// Before the guest runs: has the host count what the guest wants counted.
    pub(crate) fn prepare(&mut self, vm: &VmState) {
        if self.is_due() {
            self.due.due.store(false, Ordering::Release);
            self.fold();
            self.dirty = u64::MAX;
        }
        let dirty = core::mem::take(&mut self.dirty);
        if dirty != 0 {
            vm.pmu.with(|pmu, events| {
                for n in bits(dirty) {
                    if let Err(e) = self.count(n, pmu, events) {
                        // The counter stands still; others may have taken all of the host's.
                        if trace::may_log() {
                            pr_info!("a guest's counter {n} has no event of the host: {e:?}\n");
                        }
                    }
                }
            });
        }
    }

    fn count(&mut self, n: u8, pmu: Option<&rb::rkvm_arm64_pmu>, events: &Events<'_>) -> Result {
        self.take(n, true);
        let wanted = self.regs.wanted(n, &self.shape, events);
        let Some(slot) = self.hosted.get_mut(usize::from(n)) else {
            return Ok(());
        };
        let (Some(wanted), Some(pmu)) = (wanted, pmu) else {
            if let Some(h) = slot.as_mut().filter(|h| h.on) {
                h.counter.enable(false);
                h.on = false;
            }
            return Ok(());
        };
        let what = What {
            pmu: pmu.type_,
            config: wanted.event.into(),
            // A long one: two counters of hardware that has no such.
            config1: wanted.wide.into(),
            user: wanted.el0,
            kernel: wanted.el1,
        };
        let period = self.regs.period(n, &self.shape);
        let period = period.unwrap_or(MAX_PERIOD).min(MAX_PERIOD);
        match slot {
            Some(h) if h.what == what => {
                let until = h.seen.wrapping_add(period);
                // A period that is cut short is taken up again when it is over.
                if h.until <= h.seen || period < MAX_PERIOD && h.until != until {
                    h.counter.set_period(period)?;
                    h.until = until;
                }
                if !h.on {
                    h.counter.enable(true);
                    h.on = true;
                }
            }
            _ => {
                // First, as it may have the last of the hardware's counters.
                *slot = None;
                let counter = Counter::new(&what, period, self.due.clone())?;
                *slot = Some(Hosted {
                    counter,
                    what,
                    seen: 0,
                    until: period,
                    on: true,
                });
            }
        }
        Ok(())
    }

    /// A section begins. Interrupts are off.
    pub(crate) fn load(&mut self, host_long: bool) {
        // With nothing granted the processor itself traps EL0 to EL1. Else the trap to EL2 decides: EN lets all come so
        // far, and the other bits would let QEMU's TCG read the host's counters.
        self.host_user = insn::pmuserenr();
        let user = u64::from(self.regs.user() != 0);
        if user != self.host_user {
            insn::set_pmuserenr(user);
        }
        self.at_el0 = 0;
        for h in self.hosted.iter().flatten() {
            if !h.on || !h.what.user {
                continue;
            }
            let chained = |i: u32| !host_long && h.what.config1 != 0 && i < u32::from(model::CYCLE);
            if let Some(i) = h.counter.hw_index() {
                // Of a pair the lower one has the event.
                let i = if chained(i) { i.saturating_sub(1) } else { i };
                self.at_el0 |= 1u64.checked_shl(i).unwrap_or(0);
            }
        }
        if self.at_el0 != 0 {
            insn::count_el0(self.at_el0, true);
        }
    }

    /// It ends.
    pub(crate) fn unload(&mut self) {
        if self.at_el0 != 0 {
            insn::count_el0(self.at_el0, false);
        }
        insn::set_pmuserenr(self.host_user);
    }

    fn given(&self, vm: &VmState, reg: Reg) -> Given {
        Given {
            events: match reg {
                Reg::Events(_) => vm.pmu.pmceid(&self.shape),
                _ => [0; 2],
            },
            pmmir: self.pmmir,
        }
    }

    /// `KVM_GET_ONE_REG`
    pub(crate) fn user_read(&mut self, vm: &VmState, r: Sysreg) -> Option<u64> {
        let reg = Reg::of(r)?;
        self.fold();
        Some(self.regs.user_read(reg, &self.shape, &self.given(vm, reg)))
    }

    /// `KVM_SET_ONE_REG`
    ///
    /// # Errors
    /// `ENOENT`: no such register. `EINVAL`, `EBUSY`: of PMMIR_EL1.
    pub(crate) fn user_write(&mut self, vm: &VmState, r: Sysreg, value: u64) -> Result {
        let reg = Reg::of(r).ok_or(ENOENT)?;
        self.fold();
        match reg {
            Reg::Machine => return vm.pmu.set_pmmir(vm, value),
            Reg::Control => vm.pmu.set_pmcr_n(vm, value),
            _ => {}
        }
        self.dirty |= self.regs.user_write(reg, value, &self.shape);
        Ok(())
    }
}

/// The overflow interrupt's level goes to the controller. Of the vCPU's own thread, which looks at it next; in a section
/// or not.
fn update_line(ctx: &mut Ctx<'_, Arm64>) {
    let Some(pmu) = ctx.vcpu.pmu.as_deref_mut() else {
        return;
    };
    let level = pmu.regs.line(&pmu.shape);
    if pmu.line.replace(level) == Some(level) {
        return;
    }
    let (gic, cpu) = (&*ctx.vm.controller, &*ctx.core.shared.gic);
    match ctx.core.shared.pmu_irq.load(Ordering::Relaxed) {
        0 => {}
        ppi @ 1..FIRST_SPI => gic.set_lines(cpu, [(ppi, level)]),
        // What there is not was refused before the first run.
        spi => {
            let _ = gic.set_pin(0, spi - FIRST_SPI, SOURCE, level);
        }
    }
}

/// Before the guest runs. Returns why it cannot, if so.
#[inline]
pub(crate) fn prepare(ctx: &mut Ctx<'_, Arm64>) -> Option<UserExit> {
    let pmu = ctx.vcpu.pmu.as_mut()?;
    let vm = &ctx.vm.family;
    let cpu = work::cpu_hint();
    if vm.pmu.refuses(cpu) {
        return Some(UserExit::Common(Common::FailEntry {
            code: rb::KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED.into(),
            cpu,
            why: c"this CPU's PMU is not the one that the vCPU has",
        }));
    }
    pmu.prepare(vm);
    update_line(ctx);
    None
}

/// The guest's access is from EL0, and PMUSERENR_EL0 does not allow it.
fn refused(ctx: &Ctx<'_, Arm64>, pmu: &Pmu, reg: Reg, write: bool) -> bool {
    let el0 = Mode::of(ctx.vcpu.run.pstate).is_some_and(Mode::is_el0);
    el0 && !reg.open_to_el0(write, pmu.regs.user())
}

/// A guest's access that trapped. `write`: the value, and whether it has 32 bits only.
///
/// # Errors
/// The access is not for this guest.
pub(crate) fn access(
    ctx: &mut Ctx<'_, Arm64>,
    r: Sysreg,
    write: Option<(u64, bool)>,
) -> Result<u64, Served> {
    let (Some(reg), Some(pmu)) = (Reg::of(r), &ctx.vcpu.pmu) else {
        return Err(Served::Undefined);
    };
    if refused(ctx, pmu, reg, write.is_some()) {
        return Err(Served::Trapped);
    }
    let vm = ctx.vm;
    let Some(pmu) = ctx.vcpu.pmu.as_deref_mut() else {
        return Err(Served::Undefined);
    };
    pmu.fold();
    let done = match write {
        None => pmu.regs.read(reg, &pmu.shape, &pmu.given(&vm.family, reg)),
        Some((value, low)) => {
            let changed = pmu.regs.write(reg, value, low, &pmu.shape);
            changed.map(|c| {
                pmu.dirty |= c;
                0
            })
        }
    };
    done.map_err(|model::regs::NoCounter| Served::Undefined)
}

/// The same in a section, for what needs nothing of the host but to look at its counters. False: it takes the long way.
pub(crate) fn quick(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) -> bool {
    let (Some(reg), Some(pmu)) = (Reg::of(a.reg), &ctx.vcpu.pmu) else {
        return false;
    };
    if refused(ctx, pmu, reg, a.write) {
        return false;
    }
    let value = ctx.vcpu.x(a.rt);
    let Some(pmu) = ctx.vcpu.pmu.as_deref_mut() else {
        return false;
    };
    let reg = pmu.regs.resolve(reg);
    let counter = match reg {
        Reg::Counter(n) if !a.write => n,
        r if r.is_quiet(a.write) => 32,
        _ => return false,
    };
    let looked = match reg {
        // An overflow may not have been told yet.
        Reg::Overflow(_) => (0..32).all(|n| pmu.take(n, false)),
        _ => pmu.take(counter, false),
    };
    if !looked {
        return false;
    }
    if a.write {
        match pmu.regs.write(reg, value, false, &pmu.shape) {
            Ok(changed) => pmu.dirty |= changed,
            Err(model::regs::NoCounter) => return false,
        }
    } else {
        match pmu.regs.read(reg, &pmu.shape, &Given::default()) {
            Ok(v) => ctx.vcpu.set_x(a.rt, v),
            Err(model::regs::NoCounter) => return false,
        }
    }
    update_line(ctx);
    true
}
