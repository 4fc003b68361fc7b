// SPDX-License-Identifier: GPL-2.0

//! The interrupt controller of a VM: the model of a GICv3 behind locks, its frames, and the list
//! registers of the CPU.
//!
//! Locks: a vCPU's [`Cpu::state`], then the VM's [`Gic::dist`]. Both disable interrupts, as irqfds
//! come from anywhere. Bells are rung when both are free.

use super::{
    insn,
    model::trap,
    model::vgic::{
        self, decode_sgi, fill, fold, pending_for, Affinity, Config, Dist, Ended, Global, ListRegs,
        LrConfig, Private, Sgi, SgiReg, SgiTargets, Vcpus, DIST_SIZE, REDIST_SIZE,
    },
    timer::VIRTUAL_PPI,
    Arm64,
};
use crate::{
    family::Ctx,
    host::{kick::Kick, trace},
    irq::{
        routing::{Msi, Target},
        Controller,
    },
    vcpu::VcpuSet,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
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
}

/// A vCPU's part.
#[pin_data]
pub(crate) struct Cpu {
    #[pin]
    pub(crate) state: SpinLockIrq<CpuState>,
    kick: Arc<Kick>,
    /// SPIs concern it: [`Dist::concerns`].
    spis: AtomicBool,
    /// Where its redistributor is.
    redist: AtomicU64,
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
                }, "rkvm::gic::Cpu"),
                kick,
                spis: AtomicBool::new(false),
                redist: AtomicU64::new(NOWHERE),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl Cpu {
    /// The host's virtual timer is behind the guest's.
    ///
    /// # Errors
    /// `EINVAL`: its number cannot be of a PPI.
    pub(crate) fn map_timer(&self, host_intid: u32) -> Result {
        let pintid = u16::try_from(host_intid)?;
        let mapped = self.state.lock().private.map_ppi(VIRTUAL_PPI, Some(pintid));
        mapped.map_err(|_| EINVAL)
    }
}

/// A range of redistributors, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    base: u64,
    /// How many; 0: as many as there are vCPUs.
    count: u32,
}

/// What user space says before it is initialized.
struct Setup {
    nr_irqs: u32,
    regions: KVec<Region>,
}

/// Shared by routing, irqfds and vCPUs; any context may send through it.
#[pin_data]
pub(crate) struct Gic {
    vcpus: Arc<VcpuSet<Arm64>>,
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
                sources,
                hw: LrConfig::from_vtr(insn::ich_vtr()),
                created: AtomicBool::new(false),
                setup <- new_mutex!(Setup { nr_irqs: 0, regions: KVec::new() }, "rkvm::Gic::setup"),
                dist: SetOnce::new(),
                global: AtomicU32::new(0),
                dist_base: AtomicU64::new(NOWHERE),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// `KVM_CREATE_DEVICE`
    ///
    /// # Errors
    /// `EEXIST`: there is one.
    pub(crate) fn create(&self) -> Result {
        if self.created.swap(true, Ordering::AcqRel) {
            return Err(trace::refuse(EEXIST, c"the VM has a GIC"));
        }
        Ok(())
    }

    /// What the hardware's CPU interface can do.
    pub(crate) fn hw(&self) -> &LrConfig {
        &self.hw
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
    fn publish(&self, dist: &Dist, to: &Vcpus) {
        for index in to.iter() {
            if let Some(c) = self.cpu(index) {
                c.spis.store(dist.concerns(index), Ordering::Release);
            }
        }
    }

    fn cpu(&self, index: u16) -> Option<&Cpu> {
        self.vcpus.get(u32::from(index)).map(|c| &*c.shared.gic)
    }

    fn ring(&self, to: &Vcpus) {
        for index in to.iter() {
            if let Some(c) = self.cpu(index) {
                c.kick.ring(0);
            }
        }
    }
}

/// What the guest's own thread does.
impl Gic {
    /// Before an entry: fills the list registers and loads them with the rest of the CPU interface.
    /// IRQs are off.
    #[inline]
    pub(crate) fn load(&self, cpu: &Cpu) {
        let mut state = cpu.state.lock();
        let CpuState { private, lrs } = &mut *state;
        if !lrs.loaded {
            let global = self.global();
            match self.dist.as_ref() {
                Some(lock) if cpu.spis.load(Ordering::Acquire) => {
                    let mut dist = lock.lock();
                    fill(private, Some(&mut dist), global, &self.hw, lrs);
                    cpu.spis
                        .store(dist.concerns(private.index()), Ordering::Release);
                }
                _ => fill(private, None, global, &self.hw, lrs),
            }
        }
        insn::load_gic(lrs, &private.cpuif, &self.hw);
    }

    /// After an exit: takes back what the guest left; returns the SPIs that it has ended. IRQs are off.
    #[inline]
    pub(crate) fn save(&self, cpu: &Cpu) -> Option<Ended> {
        let outcome = {
            let mut state = cpu.state.lock();
            let CpuState { private, lrs } = &mut *state;
            insn::save_gic(lrs, &mut private.cpuif, &self.hw);
            let folded = match self.dist.as_ref() {
                Some(lock) if lrs.spis => {
                    let mut dist = lock.lock();
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

    /// A PPI's line changes. Any context.
    pub(crate) fn set_ppi(&self, cpu: &Cpu, intid: u32, level: bool) {
        let ring = cpu.state.lock().private.set_ppi(intid, level);
        if ring == Ok(true) {
            cpu.kick.ring(0);
        }
    }
}

/// An access of the guest to a frame, `write` with the bytes; `None` if `gpa` is in no frame.
pub(crate) fn mmio(
    ctx: &mut Ctx<'_, Arm64>,
    gpa: u64,
    len: u8,
    write: Option<&[u8; 8]>,
) -> Option<[u8; 8]> {
    let gic = &*ctx.vm.controller;
    let offset = |base: u64, size: u64| gpa.checked_sub(base).filter(|o| *o < size);
    if let Some(at) = offset(gic.dist_base.load(Ordering::Acquire), DIST_SIZE) {
        return gic.with_dist(|d| match write {
            None => (d.read(at, len).to_le_bytes(), Vcpus::NONE),
            Some(b) => ([0; 8], d.write(at, len, u64::from_le_bytes(*b))),
        });
    }
    for c in ctx.vm.vcpus.iter().map(|c| &*c.shared.gic) {
        let Some(at) = offset(c.redist.load(Ordering::Acquire), REDIST_SIZE) else {
            continue;
        };
        let global = gic.global();
        let mut state = c.state.lock();
        let Some(b) = write else {
            return Some(state.private.read(at, len, global).to_le_bytes());
        };
        let effect = state.private.write(at, len, u64::from_le_bytes(*b), global);
        drop(state);
        if effect.ring {
            c.kick.ring(0);
        }
        return Some([0; 8]);
    }
    None
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
            gic.set_ppi(&c.shared.gic, intid, level);
            Ok(1)
        }
        _ => Err(trace::invalid(c"no such kind of interrupt")),
    }
}

/// Device attributes of the controller (Documentation/virt/kvm/devices/arm-vgic-v3.rst).
pub(crate) mod attr {
    use super::*;
    use crate::{abi::user, bindings as rb, vm::Vm};

    /// `KVM_SET_DEVICE_ATTR`
    ///
    /// # Errors
    /// `ENXIO`: no such attribute. `EINVAL`, `EEXIST`, `EBUSY`, `E2BIG`: as the document says.
    pub(crate) fn set(vm: &Vm<Arm64>, a: &rb::kvm_device_attr) -> Result {
        let gic = &*vm.controller;
        let arg = usize::try_from(a.addr).map_err(|_| EFAULT)?;
        match (a.group, a.attr) {
            (rb::KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0) => {
                let n: u32 = user::get(arg)?;
                let mut setup = gic.setup.lock();
                if !(64..=1024).contains(&n) || n % 32 != 0 {
                    return Err(trace::invalid(c"interrupts: 64 to 1024, in steps of 32"));
                }
                if setup.nr_irqs != 0 || gic.is_ready() {
                    return Err(trace::refuse(EBUSY, c"the number of interrupts is set"));
                }
                setup.nr_irqs = n;
                Ok(())
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_ADDR, attr) => {
                let v: u64 = user::get(arg)?;
                set_address(gic, attr, v)
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_CTRL, attr)
                if attr == u64::from(rb::KVM_DEV_ARM_VGIC_CTRL_INIT) =>
            {
                let _creating = vm.creating.lock();
                init(gic)
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_DIST_REGS, attr) => {
                let v: u32 = user::get(arg)?;
                let done = gic.with_dist(|d| match d.user_write(attr & 0xffff_ffff, v) {
                    Ok(ring) => (Ok(()), ring),
                    Err(e) => (Err(e), Vcpus::NONE),
                });
                Ok(done.ok_or(EBUSY)??)
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attr) => {
                let v: u32 = user::get(arg)?;
                let cpu = cpu_of(gic, attr)?;
                let global = gic.global();
                let effect = cpu
                    .state
                    .lock()
                    .private
                    .user_write(attr & 0xffff_ffff, v, global)?;
                if effect.ring {
                    cpu.kick.ring(0);
                }
                Ok(())
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, attr) => {
                let v: u32 = user::get(arg)?;
                let intid = level_info(attr)?;
                if intid < vgic::FIRST_SPI {
                    let cpu = cpu_of(gic, attr)?;
                    if cpu.state.lock().private.set_level_info(v) {
                        cpu.kick.ring(0);
                    }
                    return Ok(());
                }
                let done = gic.with_dist(|d| match d.set_level_info(intid, v) {
                    Ok(ring) => (Ok(()), ring),
                    Err(e) => (Err(e), Vcpus::NONE),
                });
                Ok(done.ok_or(EBUSY)??)
            }
            (rb::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr) => {
                let v: u64 = user::get(arg)?;
                let cpu = cpu_of(gic, attr)?;
                let instr = u16::try_from(attr & 0xffff).unwrap_or(0);
                Ok(cpu
                    .state
                    .lock()
                    .private
                    .cpuif
                    .set_sysreg(instr, v, &gic.hw)?)
            }
            _ => Err(trace::refuse(ENXIO, c"no such attribute of the GIC")),
        }
    }

    /// The vCPU that an attribute names by its affinity, in bits 63:32.
    fn cpu_of(gic: &Gic, attr: u64) -> Result<&Cpu> {
        // Aff3 to Aff0 side by side.
        let affinity = Affinity::from_bits(u32::try_from(attr >> 32).unwrap_or(0));
        gic.at(affinity)
            .ok_or_else(|| trace::invalid(c"no vCPU has this affinity"))
    }

    impl From<vgic::RegError> for Error {
        fn from(e: vgic::RegError) -> Self {
            match e {
                vgic::RegError::Unknown => trace::refuse(ENXIO, c"the GIC has no such register"),
                vgic::RegError::Invalid => trace::invalid(c"the register cannot have this value"),
            }
        }
    }

    /// `KVM_GET_DEVICE_ATTR`
    ///
    /// # Errors
    /// As [`set`].
    pub(crate) fn get(vm: &Vm<Arm64>, a: &rb::kvm_device_attr) -> Result {
        let gic = &*vm.controller;
        let arg = usize::try_from(a.addr).map_err(|_| EFAULT)?;
        let offset = a.attr & 0xffff_ffff;
        match a.group {
            rb::KVM_DEV_ARM_VGIC_GRP_NR_IRQS => {
                let n = gic.setup.lock().nr_irqs;
                user::put(arg, &n)
            }
            rb::KVM_DEV_ARM_VGIC_GRP_ADDR
                if offset == u64::from(rb::KVM_VGIC_V3_ADDR_TYPE_DIST) =>
            {
                user::put(arg, &gic.dist_base.load(Ordering::Acquire))
            }
            rb::KVM_DEV_ARM_VGIC_GRP_DIST_REGS => {
                let v = gic.with_dist(|d| (d.user_read(offset), Vcpus::NONE));
                user::put(arg, &v.ok_or(EBUSY)??)
            }
            rb::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS => {
                let cpu = cpu_of(gic, a.attr)?;
                let v = cpu.state.lock().private.user_read(offset, gic.global())?;
                user::put(arg, &v)
            }
            rb::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => {
                let cpu = cpu_of(gic, a.attr)?;
                let instr = u16::try_from(offset & 0xffff).unwrap_or(0);
                let v = cpu.state.lock().private.cpuif.sysreg(instr, &gic.hw)?;
                user::put(arg, &v)
            }
            rb::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO => {
                let intid = level_info(a.attr)?;
                let v = if intid < vgic::FIRST_SPI {
                    cpu_of(gic, a.attr)?.state.lock().private.level_info()
                } else {
                    let v = gic.with_dist(|d| (d.level_info(intid), Vcpus::NONE));
                    v.ok_or(EBUSY)??
                };
                user::put(arg, &v)
            }
            _ => Err(trace::refuse(ENXIO, c"no such attribute of the GIC")),
        }
    }

    /// The first INTID that a LEVEL_INFO attribute names.
    fn level_info(attr: u64) -> Result<u32> {
        // Bits 31:10 choose what is told: 0 is the level.
        if attr & 0xffff_fc00 != 0 {
            return Err(trace::invalid(c"only levels of lines can be told"));
        }
        Ok(u32::try_from(attr & 0x3ff).unwrap_or(0))
    }

    /// `KVM_HAS_DEVICE_ATTR`
    ///
    /// # Errors
    /// `ENXIO`: no.
    pub(crate) fn has(a: &rb::kvm_device_attr) -> Result {
        let offset = a.attr & 0xffff_ffff;
        let there = match a.group {
            rb::KVM_DEV_ARM_VGIC_GRP_NR_IRQS => true,
            rb::KVM_DEV_ARM_VGIC_GRP_ADDR => [
                rb::KVM_VGIC_V3_ADDR_TYPE_DIST,
                rb::KVM_VGIC_V3_ADDR_TYPE_REDIST,
                rb::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
            ]
            .iter()
            .any(|t| u64::from(*t) == a.attr),
            rb::KVM_DEV_ARM_VGIC_GRP_CTRL => a.attr == u64::from(rb::KVM_DEV_ARM_VGIC_CTRL_INIT),
            rb::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS => {
                vgic::CpuIf::has_sysreg(u16::try_from(offset & 0xffff).unwrap_or(0))
            }
            rb::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS => Private::has_user_reg(offset),
            rb::KVM_DEV_ARM_VGIC_GRP_DIST_REGS => true,
            rb::KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO => level_info(a.attr).is_ok_and(|i| i % 32 == 0),
            _ => false,
        };
        if there {
            Ok(())
        } else {
            Err(trace::refuse(ENXIO, c"no such attribute of the GIC"))
        }
    }

    fn set_address(gic: &Gic, attr: u64, v: u64) -> Result {
        const ALIGN: u64 = 0xffff;
        let taken = || trace::refuse(EEXIST, c"the frame has an address already");
        match u32::try_from(attr).unwrap_or(u32::MAX) {
            rb::KVM_VGIC_V3_ADDR_TYPE_DIST => {
                if v & ALIGN != 0 {
                    return Err(trace::invalid(c"frames are aligned to 64 KiB"));
                }
                gic.dist_base
                    .compare_exchange(NOWHERE, v, Ordering::AcqRel, Ordering::Relaxed)
                    .map_err(|_| taken())?;
                Ok(())
            }
            kind @ (rb::KVM_VGIC_V3_ADDR_TYPE_REDIST | rb::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION) => {
                let mut setup = gic.setup.lock();
                let region = if kind == rb::KVM_VGIC_V3_ADDR_TYPE_REDIST {
                    if !setup.regions.is_empty() {
                        return Err(taken());
                    }
                    Region { base: v, count: 0 }
                } else {
                    // Bits 63:52 the number, 15:12 flags, 11:0 the index.
                    let count = u32::try_from(v >> 52).unwrap_or(0);
                    if count == 0 || v & 0xf000 != 0 || v & 0xfff != setup.regions.len() as u64 {
                        return Err(trace::invalid(c"regions come in order, and hold something"));
                    }
                    Region {
                        base: v & 0x000f_ffff_ffff_0000,
                        count,
                    }
                };
                if region.base & ALIGN != 0 {
                    return Err(trace::invalid(c"frames are aligned to 64 KiB"));
                }
                setup.regions.push(region, GFP_KERNEL_ACCOUNT)?;
                if gic.is_ready() {
                    place(gic, &setup);
                }
                Ok(())
            }
            _ => Err(trace::refuse(ENXIO, c"no such frame")),
        }
    }

    /// The VM's `creating` is held: there come no more vCPUs.
    fn init(gic: &Gic) -> Result {
        if gic.is_ready() {
            return Ok(());
        }
        let setup = gic.setup.lock();
        let n = gic.vcpus.len();
        if n == 0 {
            return Err(trace::refuse(ENODEV, c"the VM has no vCPU yet"));
        }
        let mut affinities: KVec<Affinity> = KVec::new();
        for c in gic.vcpus.iter() {
            let mpidr = c.shared.mpidr.load(Ordering::Relaxed);
            affinities.push(Affinity::from_mpidr(mpidr), GFP_KERNEL_ACCOUNT)?;
        }
        let dist = Dist::new(
            Config {
                nr_irqs: if setup.nr_irqs == 0 {
                    256
                } else {
                    setup.nr_irqs
                },
                revision: 3,
                its: false,
            },
            affinities.iter().copied(),
        )
        .map_err(|e| match e {
            vgic::NewError::NoMemory => ENOMEM,
            vgic::NewError::Invalid => trace::invalid(c"the GIC cannot be made so"),
        })?;
        gic.global.store(dist.global().to_bits(), Ordering::Release);
        let lock = KBox::pin_init(
            new_spinlock_irq!(dist, "rkvm::Gic::dist"),
            GFP_KERNEL_ACCOUNT,
        )?;
        gic.dist.populate(lock);
        place(gic, &setup);
        Ok(())
    }

    /// Gives the vCPUs their frames, as far as there are regions: these may come before and after
    /// the controller is initialized.
    fn place(gic: &Gic, setup: &Setup) {
        let n = gic.vcpus.len();
        let mut frames = setup.regions.iter().flat_map(|r| {
            let count = if r.count == 0 { n } else { r.count };
            (0..count).map(move |i| (r.base + u64::from(i) * REDIST_SIZE, i + 1 == count))
        });
        for c in gic.vcpus.iter() {
            let Some((base, last)) = frames.next() else {
                break;
            };
            let cpu = &*c.shared.gic;
            cpu.redist.store(base, Ordering::Release);
            let last = last || c.index + 1 == n;
            cpu.state.lock().private.set_last(last);
        }
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

    fn signal_msi(&self, _m: &Msi) -> Result<i32> {
        Err(trace::refuse(ENODEV, c"the VM has no ITS"))
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
        let done = self.with_dist(|d| match d.set_spi(pin + vgic::FIRST_SPI, level) {
            Ok(ring) => (Ok(1), ring),
            Err(vgic::NoSuchInterrupt) => (Err(EINVAL), Vcpus::NONE),
        });
        done.unwrap_or(Err(EAGAIN))
    }
}
