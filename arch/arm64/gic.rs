// SPDX-License-Identifier: GPL-2.0

//! The interrupt controller of a VM: the model of a GICv3 behind locks, its frames, and the list
//! registers of the CPU.
//!
//! Locks: a vCPU's [`Cpu::state`], then the VM's [`Gic::dist`]. Both disable interrupts, as irqfds
//! come from anywhere. Bells are rung when both are free.

pub(crate) mod attr;

use super::{
    insn,
    its::{self, Accessed, Itses},
    model::vgic::{
        self, decode_sgi, fill, fold,
        frames::{self, Region, Run},
        pending_for, Affinity, Config, Dist, Ended, Global, ListRegs, LrConfig, Private, Sgi,
        SgiReg, SgiTargets, Vcpus, DIST_SIZE,
    },
    model::{sysreg::Sysreg, trap},
    Arm64,
};
use crate::{
    bindings as rb,
    family::Ctx,
    host::{kick::Kick, section::GuestSection, srcu_cell::SrcuCell, trace},
    irq::{
        routing::{Entry, Msi, Target},
        Controller,
    },
    memory::View,
    vcpu::VcpuSet,
};
use core::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use kernel::{
    new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{Arc, Mutex, SetOnce, SpinLockIrq},
};

/// No frame is there yet.
const NOWHERE: u64 = u64::MAX;

/// A vCPU's part, under its lock.
pub(crate) struct CpuState {
    /// SGIs, PPIs, LPIs, redistributor.
    pub(crate) private: Private,
    /// What is in the CPU's list registers, or will be.
    pub(crate) lrs: ListRegs,
    /// How many mapped LPIs target it.
    pub(crate) lpis: usize,
    /// They are empty in the CPU too, and ICH_HCR_EL2 is as it is then. In a section only.
    empty: bool,
    /// The guest has ended the virtual timer's interrupt in this section, and the CPU with it the host's.
    timer_ended: bool,
}

/// A vCPU's part.
#[pin_data]
pub(crate) struct Cpu {
    #[pin]
    pub(crate) state: SpinLockIrq<CpuState>,
    pub(crate) kick: Arc<Kick>,
    /// SPIs concern it: [`Dist::concerns`].
    spis: AtomicBool,
}

impl Cpu {
    /// Of vCPU `id`, the `index`th.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(id: u32, index: u32, hw: &LrConfig, kick: &Arc<Kick>) -> Result<Arc<Self>> {
        let number = u16::try_from(id)?;
        let affinity = Affinity::from_mpidr(trap::mpidr(id));
        let private = Private::new(u16::try_from(index)?, number, affinity, hw);
        let kick = kick.clone();
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_spinlock_irq!(CpuState {
                    private,
                    lrs: ListRegs::default(),
                    lpis: 0,
                    empty: false,
                    timer_ended: false,
                }, "rkvm::gic::Cpu"),
                kick,
                spis: AtomicBool::new(false),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl Cpu {
    /// The host's virtual timer is behind the guest's PPI.
    ///
    /// # Errors
    /// `EINVAL`: its number cannot be of a PPI.
    pub(crate) fn map_timer(&self, ppi: u32, host_intid: u32) -> Result {
        let pintid = u16::try_from(host_intid)?;
        let mapped = self.state.lock().private.map_ppi(ppi, Some(pintid));
        mapped.map_err(|_| EINVAL)
    }
}

/// What user space says before it is initialized.
struct Setup {
    nr_irqs: u32,
    /// GICD_IIDR.Revision
    revision: u8,
    regions: KVec<Region>,
}

/// Shared by routing, irqfds and vCPUs; any context may send through it.
#[pin_data]
pub(crate) struct Gic {
    pub(crate) vcpus: Arc<VcpuSet<Arm64>>,
    #[pin]
    pub(crate) itses: Itses,
    hw: LrConfig,
    /// `KVM_CREATE_DEVICE` has made it.
    created: AtomicBool,
    #[pin]
    setup: Mutex<Setup>,
    /// Since `KVM_DEV_ARM_VGIC_CTRL_INIT`.
    dist: SetOnce<Pin<KBox<SpinLockIrq<Dist>>>>,
    /// [`Dist::global`]
    global: AtomicU32,
    dist_base: AtomicU64,
    /// Where the redistributors are, as [`frames::find`] wants it.
    #[pin]
    frames: SrcuCell<KVec<Run>>,
    /// All these are in it: accesses elsewhere, to user space's devices, need not look there.
    span: Range<AtomicU64>,
    /// Who holds each SPI's line up: a bit for each source of [`Controller::set_pin`].
    sources: KVVec<AtomicU32>,
}

/// SPIs at the most.
const SPIS: usize = 988;

impl Gic {
    /// None yet.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(vcpus: &Arc<VcpuSet<Arm64>>) -> Result<Arc<Self>> {
        let vcpus = vcpus.clone();
        let mut sources = KVVec::with_capacity(SPIS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..SPIS {
            sources.push(AtomicU32::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                vcpus,
                itses <- Itses::new(),
                sources,
                hw: LrConfig::from_vtr(insn::ich_vtr()),
                created: AtomicBool::new(false),
                setup <- new_mutex!(Setup { nr_irqs: 0, revision: 3, regions: KVec::new() }, "rkvm::Gic::setup"),
                dist: SetOnce::new(),
                global: AtomicU32::new(0),
                dist_base: AtomicU64::new(NOWHERE),
                frames <- SrcuCell::new(KBox::new(KVec::new(), GFP_KERNEL_ACCOUNT)?),
                span: AtomicU64::new(0)..AtomicU64::new(0),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// `KVM_CREATE_DEVICE`
    ///
    /// # Errors
    /// `EEXIST`: there is one. `EBUSY`: a vCPU has `ran` without.
    pub(crate) fn create(&self, ran: bool) -> Result {
        if self.is_created() {
            return Err(trace::refuse(EEXIST, c"the VM has a GIC"));
        }
        if ran {
            return Err(trace::refuse(EBUSY, c"a vCPU has run"));
        }
        self.created.store(true, Ordering::Release);
        Ok(())
    }

    /// What the hardware's CPU interface can do.
    pub(crate) fn hw(&self) -> &LrConfig {
        &self.hw
    }

    /// The VM has one, whether it is initialized or not.
    #[inline]
    pub(crate) fn is_created(&self) -> bool {
        self.created.load(Ordering::Acquire)
    }

    /// Looks, before a vCPU runs for the first time, whether all of it has been said, as it was
    /// created. `limit`: the end of guest-physical memory.
    ///
    /// # Errors
    /// `ENXIO`: a frame has no address. `EINVAL`: frames overlap. `EBUSY`: it is not initialized.
    pub(crate) fn check(&self, limit: u64) -> Result {
        let setup = self.setup.lock();
        frames::ready(&setup.regions, self.vcpus.len(), self.dist_base(), limit)?;
        if !self.is_ready() {
            return Err(trace::refuse(EBUSY, c"the GIC is not initialized"));
        }
        Ok(())
    }

    fn dist_base(&self) -> Option<u64> {
        Some(self.dist_base.load(Ordering::Acquire)).filter(|b| *b != NOWHERE)
    }

    /// Guests have it.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.dist.as_ref().is_some()
    }

    fn global(&self) -> Global {
        Global::from_bits(self.global.load(Ordering::Acquire))
    }

    /// Changes the distributor, publishes what others look at without its lock, and rings.
    fn with_dist<T>(&self, f: impl FnOnce(&mut Dist) -> (T, Vcpus)) -> Option<T> {
        let lock = self.dist.as_ref()?;
        let (result, ring) = {
            let mut dist = lock.lock();
            let before = dist.global();
            let (result, mut ring) = f(&mut dist);
            if dist.global() != before {
                self.global
                    .store(dist.global().to_bits(), Ordering::Release);
                ring = Vcpus::first(self.vcpus.len() as usize);
            }
            self.publish(&dist, &ring);
            (result, ring)
        };
        self.ring(&ring);
        Some(result)
    }

    /// The distributor's lock is held.
    #[inline]
    fn publish(&self, dist: &Dist, to: &Vcpus) {
        if to.is_empty() {
            return;
        }
        for index in to.iter() {
            if let Some(c) = self.cpu(index) {
                c.spis.store(dist.concerns(index), Ordering::Release);
            }
        }
    }

    fn cpu(&self, index: u16) -> Option<&Cpu> {
        self.cpu_at(index.into())
    }

    /// The part of the vCPU with this index.
    pub(crate) fn cpu_at(&self, index: u32) -> Option<&Cpu> {
        self.vcpus.get(index).map(|c| &*c.shared.gic)
    }

    /// The index of the vCPU with this id: most are made in the order of their ids.
    pub(crate) fn vcpu_with_id(&self, id: u32) -> Option<u32> {
        let is = |c: &&crate::vcpu::Core<Arm64>| c.id == id;
        let core = self.vcpus.get(id).filter(is);
        core.or_else(|| self.vcpus.iter().find(is)).map(|c| c.index)
    }

    /// For what user space may see and change only while no vCPU runs.
    ///
    /// # Errors
    /// `EBUSY`: one runs.
    pub(crate) fn stopped(&self) -> Result {
        if self.vcpus.iter().all(|c| c.is_idle()) {
            return Ok(());
        }
        Err(trace::refuse(EBUSY, c"a vCPU is running"))
    }

    /// There is an ITS from now on: registers tell of LPIs.
    pub(crate) fn has_its(&self) {
        self.with_dist(|d| {
            d.set_its(true);
            ((), Vcpus::NONE)
        });
    }

    #[inline]
    fn ring(&self, to: &Vcpus) {
        if !to.is_empty() {
            self.ring_each(to);
        }
    }

    fn ring_each(&self, to: &Vcpus) {
        for index in to.iter() {
            if let Some(c) = self.cpu(index) {
                c.kick.ring(0);
            }
        }
    }
}

/// What the guest's own thread does.
impl Gic {
    /// A section begins, with these levels of the timers' lines: loads the CPU interface, but for the list registers.
    /// True if the interrupt of the first line is pending or active.
    #[inline]
    pub(crate) fn begin(&self, cpu: &Cpu, lines: [(u32, bool); 2], section: &GuestSection) -> bool {
        let private = &mut cpu.state.lock_with(section.irqs_off()).private;
        set_lines(private, lines);
        insn::load_cpuif(&private.cpuif, &self.hw);
        let [(first, _), _] = lines;
        private.is_busy(first)
    }

    /// It ends: takes it back. True if the host's virtual timer, having been active, is not any more.
    #[inline]
    pub(crate) fn end(&self, cpu: &Cpu, section: &GuestSection) -> bool {
        let mut state = cpu.state.lock_with(section.irqs_off());
        insn::save_cpuif(&mut state.private.cpuif, &self.hw);
        state.empty = false;
        core::mem::take(&mut state.timer_ended)
    }

    /// Before an entry: fills the list registers, unless there is nothing for them as the last time. True: [`Self::save`]
    /// is to follow.
    #[inline]
    pub(crate) fn load(&self, cpu: &Cpu, section: &GuestSection) -> bool {
        let mut state = cpu.state.lock_with(section.irqs_off());
        let CpuState {
            private,
            lrs,
            empty,
            ..
        } = &mut *state;
        let spis = cpu.spis.load(Ordering::Acquire);
        if *empty {
            if !spis && private.is_quiet() {
                return false;
            }
            *empty = false;
            insn::save_vmcr(&mut private.cpuif);
        }
        if !lrs.loaded {
            let global = self.global();
            match self.dist.as_ref() {
                Some(lock) if spis => {
                    let mut dist = lock.lock_with(section.irqs_off());
                    fill(private, Some(&mut dist), global, &self.hw, lrs);
                    cpu.spis
                        .store(dist.concerns(private.index()), Ordering::Release);
                }
                _ => fill(private, None, global, &self.hw, lrs),
            }
            if !self.is_ready() {
                // Without a GIC the guest has none of its registers.
                lrs.hcr = vgic::hcr::ALL_TRAP;
            }
        }
        insn::load_lrs(lrs);
        true
    }

    /// After an exit: takes back what the guest left; returns the SPIs that it has ended.
    #[inline]
    pub(crate) fn save(&self, cpu: &Cpu, section: &GuestSection) -> Option<Ended> {
        let outcome = {
            let mut state = cpu.state.lock_with(section.irqs_off());
            let CpuState {
                private,
                lrs,
                empty,
                timer_ended,
                ..
            } = &mut *state;
            if lrs.used == 0 && !lrs.overflow {
                // Nothing can have come of it. They stay so until there is something.
                *empty = true;
                *lrs = ListRegs::default();
                return None;
            }
            insn::save_lrs(lrs);
            insn::save_vmcr(&mut private.cpuif);
            let mut given = lrs.in_use().iter();
            // Only the virtual timer has a physical interrupt.
            *timer_ended |= given.any(|lr| lr.pintid().is_some() && lr.is_over());
            let folded = match self.dist.as_ref() {
                Some(lock) if lrs.spis => {
                    let mut dist = lock.lock_with(section.irqs_off());
                    let folded = fold(private, Some(&mut dist), lrs);
                    cpu.spis
                        .store(dist.concerns(private.index()), Ordering::Release);
                    if let Ok(o) = &folded {
                        self.publish(&dist, &o.ring);
                    }
                    folded
                }
                _ => fold(private, None, lrs),
            };
            match folded {
                Ok(o) => o,
                // Cannot be: with SPIs in list registers there is a distributor.
                Err(vgic::NeedsDist) => return None,
            }
        };
        self.ring(&outcome.ring);
        Some(outcome.ended)
    }

    /// The vCPU, which is not in the guest, would be signalled an interrupt.
    pub(crate) fn pending(&self, cpu: &Cpu) -> bool {
        let state = cpu.state.lock();
        let global = self.global();
        match self.dist.as_ref() {
            Some(lock) if cpu.spis.load(Ordering::Acquire) => {
                pending_for(&state.private, Some(&lock.lock()), global)
            }
            _ => pending_for(&state.private, None, global),
        }
    }

    /// The guest reads a register of its CPU interface that traps (ICH_HCR_EL2.TC), or ICC_SRE_EL1.
    pub(crate) fn read_sysreg(&self, cpu: &Cpu, r: Sysreg) -> Option<u64> {
        let cpuif = &cpu.state.lock().private.cpuif;
        match r {
            Sysreg::ICC_RPR_EL1 => Some(cpuif.running(&self.hw)),
            r => cpuif.sysreg(r.bits(), &self.hw).ok(),
        }
    }

    /// The guest writes ICC_DIR_EL1, which traps while it may name an interrupt that is in no list
    /// register of this vCPU. Returns the SPIs that this ends.
    pub(crate) fn deactivate(&self, cpu: &Cpu, value: u64) -> Ended {
        let intid = u32::try_from(value & 0xff_ffff).unwrap_or(0);
        let outcome = {
            let mut state = cpu.state.lock();
            let private = &mut state.private;
            match self.dist.as_ref() {
                Some(lock) if intid >= vgic::FIRST_SPI => {
                    let mut dist = lock.lock();
                    let outcome = vgic::deactivate(private, Some(&mut dist), intid);
                    cpu.spis
                        .store(dist.concerns(private.index()), Ordering::Release);
                    self.publish(&dist, &outcome.ring);
                    outcome
                }
                _ => vgic::deactivate(private, None, intid),
            }
        };
        self.ring(&outcome.ring);
        outcome.ended
    }

    /// The guest writes another register of its CPU interface that traps.
    pub(crate) fn write_sysreg(&self, cpu: &Cpu, r: Sysreg, value: u64) -> bool {
        cpu.state.lock().private.cpuif.write(r.bits(), value)
    }

    /// The guest writes ICC_SGI1R_EL1 and the like.
    pub(crate) fn send_sgi(&self, from: &Cpu, reg: SgiReg, value: u64) {
        let sgi = decode_sgi(reg, value);
        match sgi.targets {
            SgiTargets::Others => {
                for c in self.vcpus.iter().map(|c| &*c.shared.gic) {
                    if !core::ptr::eq(c, from) {
                        Self::post_sgi(c, &sgi);
                    }
                }
            }
            SgiTargets::List { .. } => {
                for affinity in sgi.list() {
                    if let Some(c) = self.at(affinity) {
                        Self::post_sgi(c, &sgi);
                    }
                }
            }
        }
    }

    fn post_sgi(cpu: &Cpu, sgi: &Sgi) {
        let ring = cpu.state.lock().private.set_sgi(sgi);
        if ring {
            cpu.kick.ring(0);
        }
    }

    /// The vCPU with this affinity: its id is in it, and most are made in the order of their ids.
    fn at(&self, affinity: Affinity) -> Option<&Cpu> {
        let is = |c: &&crate::vcpu::Core<Arm64>| {
            Affinity::from_mpidr(c.shared.mpidr.load(Ordering::Relaxed)) == affinity
        };
        let bits = affinity.bits();
        let guess = bits & 0xf | bits >> 4 & 0xff0 | bits >> 4 & 0xff000;
        let core = self.vcpus.get(guess).filter(is);
        let core = core.or_else(|| self.vcpus.iter().find(is));
        core.map(|c| &*c.shared.gic)
    }

    /// A vCPU has another affinity: MPIDR_EL1 was set.
    pub(crate) fn set_affinity(&self, cpu: &Cpu, mpidr: u64) {
        let affinity = Affinity::from_mpidr(mpidr);
        let index = {
            let private = &mut cpu.state.lock().private;
            private.set_affinity(affinity);
            private.index()
        };
        self.with_dist(|d| ((), d.set_affinity(index, affinity)));
    }

    /// An access to the distributor, in a section or not; `None`: not there. What a read has.
    #[inline]
    pub(crate) fn distributor(
        &self,
        gpa: u64,
        len: u8,
        write: Option<&[u8; 8]>,
    ) -> Option<[u8; 8]> {
        let at = gpa.checked_sub(self.dist_base.load(Ordering::Acquire))?;
        if at >= DIST_SIZE {
            return None;
        }
        self.with_dist(|d| match write {
            None => (d.read(at, len).to_le_bytes(), Vcpus::NONE),
            Some(b) => ([0; 8], d.write(at, len, u64::from_le_bytes(*b))),
        })
    }

    /// The redistributors are there now. Sleeps.
    fn set_frames(&self, runs: KVec<Run>) -> Result {
        let span = frames::span(&runs);
        drop(self.frames.replace(KBox::new(runs, GFP_KERNEL_ACCOUNT)?));
        self.span.start.store(span.start, Ordering::Release);
        self.span.end.store(span.end, Ordering::Release);
        Ok(())
    }

    /// Whose redistributor has this address, and the offset.
    fn redistributor(&self, gpa: u64) -> Option<(&Cpu, u64)> {
        let span = self.span.start.load(Ordering::Acquire)..self.span.end.load(Ordering::Acquire);
        if !span.contains(&gpa) {
            return None;
        }
        let (index, at) = frames::find(&self.frames.read(), gpa)?;
        Some((self.cpu_at(index)?, at))
    }

    /// PPIs of the vCPU's timers and of its PMU have these levels. Of the vCPU's own thread, which looks at them next.
    pub(crate) fn set_lines<const N: usize>(&self, cpu: &Cpu, lines: [(u32, bool); N]) {
        set_lines(&mut cpu.state.lock().private, lines);
    }

    /// A PPI's line changes. Any context.
    pub(crate) fn set_ppi(&self, cpu: &Cpu, intid: u32, level: bool) {
        let ring = cpu.state.lock().private.set_ppi(intid, level);
        if ring == Ok(true) {
            cpu.kick.ring(0);
        }
    }
}

/// [`Gic::set_lines`]
#[inline]
fn set_lines<const N: usize>(private: &mut Private, lines: [(u32, bool); N]) {
    for (ppi, level) in lines {
        // It is a PPI: user space can choose no other.
        let _ = private.set_ppi(ppi, level);
    }
}

/// An access of the guest to a frame, `write` with the bytes; `None` if `gpa` is in no frame.
///
/// # Errors
/// `ENOMEM`
pub(crate) fn mmio(
    ctx: &mut Ctx<'_, Arm64>,
    view: &View<'_>,
    gpa: u64,
    len: u8,
    write: Option<&[u8; 8]>,
) -> Option<Result<Accessed>> {
    let gic = &*ctx.vm.controller;
    if let Some(read) = gic.distributor(gpa, len, write) {
        return Some(Ok(Accessed::Done(read)));
    }
    let Some((c, at)) = gic.redistributor(gpa) else {
        return its::mmio(gic, view, gpa, len, write);
    };
    // The guest may have changed its timers since their lines were looked at.
    ctx.vcpu
        .update_timers(&ctx.vm.family, gic, &ctx.core.shared.gic);
    let global = gic.global();
    let mut state = c.state.lock();
    let Some(b) = write else {
        let read = state.private.read(at, len, global).to_le_bytes();
        return Some(Ok(Accessed::Done(read)));
    };
    let effect = state.private.write(at, len, u64::from_le_bytes(*b), global);
    let index = state.private.index();
    drop(state);
    if effect.ring {
        c.kick.ring(0);
    }
    let done = its::redistributor(gic, view, index.into(), effect.lpi);
    Some(done.map(|()| Accessed::Done([0; 8])))
}

/// `KVM_IRQ_LINE`: the number packs type, vCPU and INTID (api.rst, 4.25).
///
/// # Errors
/// `EINVAL`: no such vCPU or interrupt. `ENXIO`: the VM has no controller.
pub(crate) fn irq_line(vm: &crate::vm::Vm<Arm64>, number: u32, level: bool) -> Result<i32> {
    const PPI: u32 = 2;
    const SPI: u32 = 1;
    let gic = &*vm.controller;
    let (kind, intid) = (number >> 24 & 0xf, number & 0xffff);
    let index = (number >> 28 & 0xf) << 8 | number >> 16 & 0xff;
    match kind {
        SPI => match intid.checked_sub(vgic::FIRST_SPI) {
            Some(pin) => gic.set_pin(0, pin, 0, level),
            None => Err(trace::invalid(c"no such shared interrupt")),
        },
        PPI if (vgic::FIRST_PPI..vgic::FIRST_SPI).contains(&intid) => {
            let c = vm.vcpus.get(index);
            let c = c.ok_or_else(|| trace::invalid(c"no such vCPU"))?;
            // The timers' lines are the timers' own, and the PMU's is its.
            let pmus = c.shared.pmu_irq.load(Ordering::Relaxed);
            if vm.family.is_timers(intid) || pmus == intid {
                return Ok(0);
            }
            gic.set_ppi(&c.shared.gic, intid, level);
            Ok(1)
        }
        _ => Err(trace::invalid(c"no such kind of interrupt")),
    }
}

impl Controller for Gic {
    fn route_ok(&self, t: &Target) -> Result {
        match t {
            Target::Pin { chip: 0, pin } if *pin < 988 => Ok(()),
            Target::Msi(_) => Ok(()),
            _ => Err(trace::invalid(c"the GIC has no such pin")),
        }
    }

    fn signal_msi(&self, m: &Msi) -> Result<i32> {
        its::signal(self, m)
    }

    fn set_pin(&self, _chip: u32, pin: u32, source: u32, level: bool) -> Result<i32> {
        let sources = usize::try_from(pin).ok().and_then(|p| self.sources.get(p));
        let sources = sources.ok_or_else(|| trace::invalid(c"no such shared interrupt"))?;
        let bit = 1u32.checked_shl(source).ok_or(EINVAL)?;
        let level = if level {
            sources.fetch_or(bit, Ordering::AcqRel);
            true
        } else {
            sources.fetch_and(!bit, Ordering::AcqRel) & !bit != 0
        };
        let done =
            self.with_dist(
                |d| match d.set_spi(pin.saturating_add(vgic::FIRST_SPI), level) {
                    Ok(ring) => (Ok(1), ring),
                    Err(vgic::NoSuchInterrupt) => (Err(EINVAL), Vcpus::NONE),
                },
            );
        done.unwrap_or(Err(EAGAIN))
    }

    fn pulse_pin(&self, _chip: u32, pin: u32, _source: u32) -> Result<i32> {
        let intid = pin.checked_add(vgic::FIRST_SPI).ok_or(EINVAL)?;
        let done = self.with_dist(|d| match d.pulse_spi(intid) {
            Ok(ring) => (Ok(1), ring),
            Err(vgic::NoSuchInterrupt) => (Err(EINVAL), Vcpus::NONE),
        });
        done.unwrap_or(Err(EAGAIN))
    }
}
