// SPDX-License-Identifier: GPL-2.0

//! Device attributes of the controller and its ITSes, by the table of [`gicattr`].

use super::{
    super::model::gicattr::{self, Device, Kind, Row, Value, When},
    *,
};
use crate::{abi::user, device::Attr, vm::Vm};

/// Any of the three requests about an attribute of the GIC, or of the ITS with this number.
///
/// # Errors
/// `ENXIO`: no such attribute. `EINVAL`, `EEXIST`, `EBUSY`, `E2BIG`: as the documents say.
pub(crate) fn access(
    vm: &Vm<Arm64>,
    its: Option<u8>,
    what: Attr,
    a: &rb::kvm_device_attr,
) -> Result {
    let device = match its {
        Some(_) => Device::Its,
        None => Device::Gic,
    };
    let row = gicattr::find(device, a.group, a.attr).ok_or_else(unknown)?;
    if what == Attr::Has {
        return if exists(row, a.attr) {
            Ok(())
        } else {
            Err(unknown())
        };
    }
    let gic = &*vm.controller;
    // A vCPU that is not there is a mistake, which comes before what is only too early.
    if names_vcpu(row, a.attr) {
        let _there = cpu_of(gic, a.attr)?;
    }
    if row.when == When::Configured && !gic.is_ready() {
        return Err(trace::refuse(ENXIO, c"the GIC is not initialized"));
    }
    if row.when == When::Ready && !gic.is_ready() {
        return Err(not_ready());
    }
    if row.when != When::Any {
        gic.stopped()?;
    }
    let arg = usize::try_from(a.addr).map_err(|_| EFAULT)?;
    if what == Attr::Set {
        let v = match row.value {
            Value::Word => user::get::<u32>(arg)?.into(),
            Value::Double => user::get(arg)?,
            Value::Action => 0,
        };
        return match its {
            Some(number) => its::set_attr(vm, number, row.kind, a.attr, v),
            None => set(vm, row.kind, a.attr, v),
        };
    }
    if row.value == Value::Action {
        return Err(unknown());
    }
    let v = match its {
        Some(number) => its::get_attr(gic, number, row.kind, a.attr)?,
        None => get(gic, row.kind, a.attr, arg)?,
    };
    match row.value {
        Value::Word => user::put(arg, &low(v)),
        _ => user::put(arg, &v),
    }
}

fn unknown() -> Error {
    trace::refuse(ENXIO, c"no such attribute of the interrupt controller")
}

fn not_ready() -> Error {
    trace::refuse(EBUSY, c"the GIC is not initialized")
}

fn low(v: u64) -> u32 {
    u32::try_from(v & 0xffff_ffff).unwrap_or(0)
}

/// Whether there is this one among those of a row.
fn exists(row: &Row, attr: u64) -> bool {
    let offset = attr & 0xffff_ffff;
    match (row.device, row.kind) {
        (Device::Its, Kind::Address) => its::is_address(attr),
        (Device::Gic, Kind::Address) => [
            rb::KVM_VGIC_V3_ADDR_TYPE_DIST,
            rb::KVM_VGIC_V3_ADDR_TYPE_REDIST,
            rb::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
        ]
        .iter()
        .any(|t| u64::from(*t) == attr),
        (_, Kind::CpuInterface) => vgic::CpuIf::has_sysreg(instruction(attr)),
        (_, Kind::Redist) => Private::has_user_reg(offset),
        (_, Kind::Levels) => level_info(attr).is_ok_and(|i| i % 32 == 0),
        (_, Kind::ItsRegister) => its::has_register(attr),
        _ => true,
    }
}

/// Whether an attribute is a vCPU's, whose affinity is in it then.
fn names_vcpu(row: &Row, attr: u64) -> bool {
    match row.kind {
        Kind::Redist | Kind::CpuInterface => true,
        Kind::Levels => level_info(attr).is_ok_and(|intid| intid < vgic::FIRST_SPI),
        _ => false,
    }
}

/// The register that a CPU interface's attribute names.
fn instruction(attr: u64) -> u16 {
    u16::try_from(attr & 0xffff).unwrap_or(0)
}

/// `KVM_SET_DEVICE_ATTR` of the GIC.
fn set(vm: &Vm<Arm64>, kind: Kind, attr: u64, v: u64) -> Result {
    let gic = &*vm.controller;
    let offset = attr & 0xffff_ffff;
    match kind {
        Kind::Interrupts => {
            let n = low(v);
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
        Kind::Address => set_address(gic, attr, v, limit(vm)),
        Kind::Init => {
            let _creating = vm.creating.lock();
            if gic.is_ready() {
                return Ok(());
            }
            init(gic)?;
            vm.irq.set_routes(default_routes(gic)?)
        }
        Kind::SavePending => its::save_pending_tables(gic, &vm.memory.read()),
        Kind::Dist => {
            let v = low(v);
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
            Ok(done.ok_or_else(not_ready)??)
        }
        Kind::Redist => {
            let cpu = cpu_of(gic, attr)?;
            let global = gic.global();
            let (effect, index) = {
                let private = &mut cpu.state.lock().private;
                (private.user_write(offset, low(v), global)?, private.index())
            };
            if effect.ring {
                cpu.kick.ring(0);
            }
            its::redistributor(gic, &vm.memory.read(), index.into(), effect.lpi)
        }
        Kind::Levels => {
            let (intid, v) = (level_info(attr)?, low(v));
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
            Ok(done.ok_or_else(not_ready)??)
        }
        Kind::CpuInterface => {
            let mut state = cpu_of(gic, attr)?.state.lock();
            let cpuif = &mut state.private.cpuif;
            Ok(cpuif.set_sysreg(instruction(attr), v, &gic.hw)?)
        }
        _ => Err(unknown()),
    }
}

/// `KVM_GET_DEVICE_ATTR` of the GIC.
fn get(gic: &Gic, kind: Kind, attr: u64, arg: usize) -> Result<u64> {
    let offset = attr & 0xffff_ffff;
    Ok(match kind {
        Kind::Interrupts => gic.setup.lock().nr_irqs.into(),
        Kind::Address => address(gic, attr, arg)?,
        Kind::Dist => get_dist(gic, offset)?.into(),
        Kind::Redist => {
            let state = cpu_of(gic, attr)?.state.lock();
            state.private.user_read(offset, gic.global())?.into()
        }
        Kind::CpuInterface => {
            let state = cpu_of(gic, attr)?.state.lock();
            (state.private.cpuif).sysreg(instruction(attr), &gic.hw)?
        }
        Kind::Levels => {
            let intid = level_info(attr)?;
            let v = if intid < vgic::FIRST_SPI {
                cpu_of(gic, attr)?.state.lock().private.level_info()
            } else {
                let v = gic.with_dist(|d| (d.level_info(intid), Vcpus::NONE));
                v.ok_or_else(not_ready)??
            };
            v.into()
        }
        _ => return Err(unknown()),
    })
}

/// The vCPU that an attribute names by its affinity, in bits 63:32.
fn cpu_of(gic: &Gic, attr: u64) -> Result<&Cpu> {
    // Aff3 to Aff0 side by side.
    let cpu = gic.at(Affinity::from_bits(low(attr >> 32)));
    cpu.ok_or_else(|| trace::invalid(c"no vCPU has this affinity"))
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
        return Err(not_ready());
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
        None => Err(not_ready()),
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

/// The first INTID that a LEVEL_INFO attribute names.
fn level_info(attr: u64) -> Result<u32> {
    // Bits 31:10 choose what is told: 0 is the level.
    if attr & 0xffff_fc00 != 0 {
        return Err(trace::invalid(c"only levels of lines can be told"));
    }
    Ok(u32::try_from(attr & 0x3ff).unwrap_or(0))
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
        place(gic, &setup)?;
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
    place(gic, &setup)?;
    gic.dist.populate(lock);
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
fn place(gic: &Gic, setup: &Setup) -> Result {
    let vcpus = gic.vcpus.len();
    let mut runs = KVec::new();
    for run in frames::runs(&setup.regions, vcpus) {
        runs.push(run, GFP_KERNEL_ACCOUNT)?;
    }
    runs.sort_unstable();
    gic.set_frames(runs)?;
    let all = frames::redistributors(&setup.regions, vcpus);
    for (c, base) in gic.vcpus.iter().zip(all.clone()) {
        let last = frames::is_last(base, all.clone());
        c.shared.gic.state.lock().private.set_last(last);
    }
    Ok(())
}
