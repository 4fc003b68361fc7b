// SPDX-License-Identifier: GPL-2.0

//! Device attributes of the controller (Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use super::*;
use crate::{abi::user, vm::Vm};

/// `KVM_SET_DEVICE_ATTR`
///
/// # Errors
/// `ENXIO`: no such attribute. `EINVAL`, `EEXIST`, `EBUSY`, `E2BIG`: as the document says.
pub(crate) fn set(vm: &Vm<Arm64>, a: &rb::kvm_device_attr) -> Result {
    let gic = &*vm.controller;
    let arg = usize::try_from(a.addr).map_err(|_| EFAULT)?;
    gic.stopped_for(a.group)?;
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
            set_address(gic, attr, v, limit(vm))
        }
        (rb::KVM_DEV_ARM_VGIC_GRP_CTRL, attr)
            if attr == u64::from(rb::KVM_DEV_ARM_VGIC_CTRL_INIT) =>
        {
            let _creating = vm.creating.lock();
            if gic.is_ready() {
                return Ok(());
            }
            init(gic)?;
            vm.irq.set_routes(default_routes(gic)?)
        }
        (rb::KVM_DEV_ARM_VGIC_GRP_CTRL, attr)
            if attr == u64::from(rb::KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES) =>
        {
            if !gic.is_ready() {
                return Err(trace::refuse(ENXIO, c"the GIC is not initialized"));
            }
            gic.stopped()?;
            its::save_pending_tables(gic, &vm.memory.read())
        }
        (rb::KVM_DEV_ARM_VGIC_GRP_DIST_REGS, attr) => {
            let v: u32 = user::get(arg)?;
            let offset = attr & 0xffff_ffff;
            if !gic.is_ready() {
                return set_early(gic, offset, v);
            }
            // What the distributor can do is fixed by now.
            if offset == vgic::gicd::TYPER2 && get_dist(gic, offset)? != v {
                return Err(trace::refuse(EBUSY, c"the GIC is initialized"));
            }
            let done = gic.with_dist(|d| match d.user_write(offset, v) {
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
            let index = cpu.state.lock().private.index();
            if effect.ring {
                cpu.kick.ring(0);
            }
            its::redistributor(gic, &vm.memory.read(), index.into(), effect.lpi)
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
    let cpu = gic.at(affinity);
    let cpu = cpu.ok_or_else(|| trace::invalid(c"no vCPU has this affinity"))?;
    if !gic.is_ready() {
        return Err(trace::refuse(EBUSY, c"the GIC is not initialized"));
    }
    Ok(cpu)
}

/// The end of guest-physical memory.
fn limit(vm: &Vm<Arm64>) -> u64 {
    1u64.checked_shl(vm.memory.config().gpa_bits)
        .unwrap_or(u64::MAX)
}

/// A distributor as it is going to be.
fn preview(setup: &Setup) -> Result<Dist> {
    let config = Config {
        nr_irqs: 64,
        revision: setup.revision,
        its: false,
    };
    Dist::new(config, [Affinity::from_bits(0)].into_iter()).map_err(|_| ENOMEM)
}

/// GICD_IIDR and GICD_TYPER2 say what the distributor is to be, before it is initialized.
fn set_early(gic: &Gic, offset: u64, v: u32) -> Result {
    let mut setup = gic.setup.lock();
    if !matches!(offset, vgic::gicd::IIDR | vgic::gicd::TYPER2) {
        return Err(trace::refuse(EBUSY, c"the GIC is not initialized"));
    }
    let mut dist = preview(&setup)?;
    let _ = dist.user_write(offset, v)?;
    setup.revision = dist.global().revision;
    Ok(())
}

/// A register of the distributor.
fn get_dist(gic: &Gic, offset: u64) -> Result<u32> {
    match gic.with_dist(|d| (d.user_read(offset), Vcpus::NONE)) {
        Some(v) => Ok(v?),
        None if matches!(offset, vgic::gicd::IIDR | vgic::gicd::TYPER2) => {
            Ok(preview(&gic.setup.lock())?.user_read(offset)?)
        }
        None => Err(trace::refuse(EBUSY, c"the GIC is not initialized")),
    }
}

impl From<frames::FrameError> for Error {
    fn from(e: frames::FrameError) -> Self {
        match e {
            frames::FrameError::Invalid => {
                trace::invalid(c"the frame is not aligned, overlaps, or comes out of order")
            }
            frames::FrameError::Exists => {
                trace::refuse(EEXIST, c"the frame has an address already")
            }
            frames::FrameError::TooBig => {
                trace::refuse(E2BIG, c"the frame is beyond guest-physical memory")
            }
        }
    }
}

impl From<frames::NotReady> for Error {
    fn from(e: frames::NotReady) -> Self {
        match e {
            frames::NotReady::Missing => trace::refuse(ENXIO, c"a frame has no address"),
            frames::NotReady::Misplaced => trace::invalid(c"frames overlap"),
        }
    }
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
    gic.stopped_for(a.group)?;
    match a.group {
        rb::KVM_DEV_ARM_VGIC_GRP_NR_IRQS => {
            let n = gic.setup.lock().nr_irqs;
            user::put(arg, &n)
        }
        rb::KVM_DEV_ARM_VGIC_GRP_ADDR => {
            let v = address(gic, a.attr, arg)?;
            user::put(arg, &v)
        }
        rb::KVM_DEV_ARM_VGIC_GRP_DIST_REGS => user::put(arg, &get_dist(gic, offset)?),
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
        rb::KVM_DEV_ARM_VGIC_GRP_CTRL => [
            rb::KVM_DEV_ARM_VGIC_CTRL_INIT,
            rb::KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
        ]
        .iter()
        .any(|t| u64::from(*t) == a.attr),
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

/// A frame's address; for regions the index is read from `arg` first.
fn address(gic: &Gic, attr: u64, arg: usize) -> Result<u64> {
    let setup = gic.setup.lock();
    match u32::try_from(attr).unwrap_or(u32::MAX) {
        rb::KVM_VGIC_V3_ADDR_TYPE_DIST => Ok(gic.dist_base.load(Ordering::Acquire)),
        rb::KVM_VGIC_V3_ADDR_TYPE_REDIST => match setup.regions.first() {
            None => Ok(NOWHERE),
            Some(r) if r.is_single() => Ok(r.base()),
            Some(_) => Err(trace::invalid(c"the redistributors are in regions")),
        },
        rb::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => {
            let index = user::get::<u64>(arg)? & 0xfff;
            let region = usize::try_from(index)
                .ok()
                .and_then(|i| setup.regions.get(i));
            match region {
                None => Err(trace::refuse(ENOENT, c"no such region")),
                Some(r) if r.is_single() => Err(trace::invalid(c"there are no regions")),
                Some(r) => Ok(r.attr(index)),
            }
        }
        _ => Err(trace::refuse(ENXIO, c"no such frame")),
    }
}

fn set_address(gic: &Gic, attr: u64, v: u64, limit: u64) -> Result {
    let mut setup = gic.setup.lock();
    let region = match u32::try_from(attr).unwrap_or(u32::MAX) {
        rb::KVM_VGIC_V3_ADDR_TYPE_DIST => {
            if gic.dist_base().is_some() {
                return Err(frames::FrameError::Exists.into());
            }
            frames::check(v, DIST_SIZE, limit)?;
            gic.dist_base.store(v, Ordering::Release);
            return Ok(());
        }
        rb::KVM_VGIC_V3_ADDR_TYPE_REDIST => {
            Region::single(v, &setup.regions, gic.vcpus.len(), limit)?
        }
        rb::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION => {
            Region::indexed(v, &setup.regions, gic.dist_base(), limit)?
        }
        _ => return Err(trace::refuse(ENXIO, c"no such frame")),
    };
    setup.regions.push(region, GFP_KERNEL_ACCOUNT)?;
    if gic.is_ready() {
        place(gic, &setup);
    }
    Ok(())
}

/// The VM's `creating` is held: there come no more vCPUs.
fn init(gic: &Gic) -> Result {
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
            revision: setup.revision,
            its: gic.itses.any(),
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

/// Each shared interrupt is the gsi of its number, until user space says otherwise.
fn default_routes(gic: &Gic) -> Result<KVVec<Entry>> {
    let nr = gic.with_dist(|d| (d.nr_irqs(), Vcpus::NONE)).unwrap_or(0);
    let mut routes = KVVec::new();
    for pin in 0..nr.saturating_sub(vgic::FIRST_SPI).min(SPIS as u32) {
        let target = Target::Pin { chip: 0, pin };
        routes.push(Entry { gsi: pin, target }, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(routes)
}

/// Gives the vCPUs their frames, as far as there are regions: these may come before and after
/// the controller is initialized.
fn place(gic: &Gic, setup: &Setup) {
    let all = frames::redistributors(&setup.regions, gic.vcpus.len());
    for (c, base) in gic.vcpus.iter().zip(all.clone()) {
        let cpu = &*c.shared.gic;
        cpu.redist.store(base, Ordering::Release);
        let last = frames::is_last(base, all.clone());
        cpu.state.lock().private.set_last(last);
    }
}
