// SPDX-License-Identifier: GPL-2.0

//! `KVM_ARM_VCPU_PMU_V3_CTRL` (Documentation/virt/kvm/devices/vcpu.rst).

use super::super::{
    model::vgic::{FIRST_PPI, FIRST_SPI},
    Arm64,
};
use crate::{
    abi::user,
    bindings as rb,
    device::Attr,
    family::Ctx,
    host::{trace, uapi::plain},
    irq::Controller,
    vm::Vm,
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// The first INTID that is no SPI.
const LAST_SPI: u32 = 1019;

fn unknown() -> Error {
    trace::refuse(ENXIO, c"no such attribute of a PMU")
}

fn no_pmu() -> Error {
    trace::refuse(ENODEV, c"the vCPU has no PMU")
}

fn addr(a: &rb::kvm_device_attr) -> Result<usize> {
    usize::try_from(a.addr).map_err(|_| EFAULT)
}

/// An attribute of a vCPU's PMU.
///
/// # Errors
/// As the document says.
pub(crate) fn access(ctx: &mut Ctx<'_, Arm64>, what: Attr, a: &rb::kvm_device_attr) -> Result {
    let attr = u32::try_from(a.attr).map_err(|_| unknown())?;
    match what {
        Attr::Has if attr <= rb::KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS => {
            ctx.vcpu.pmu.as_ref().map(|_| ()).ok_or_else(unknown)
        }
        Attr::Has => Err(unknown()),
        Attr::Get if attr == rb::KVM_ARM_VCPU_PMU_V3_IRQ => {
            if !ctx.vm.controller.is_created() {
                return Err(trace::invalid(c"the VM has no GIC"));
            }
            if ctx.vcpu.pmu.is_none() {
                return Err(no_pmu());
            }
            match ctx.core.shared.pmu_irq.load(Ordering::Relaxed) {
                0 => Err(trace::refuse(ENXIO, c"the PMU's interrupt is not set")),
                irq => user::put(addr(a)?, &irq),
            }
        }
        Attr::Get => Err(unknown()),
        Attr::Set => set(ctx, attr, a),
    }
}

fn set(ctx: &mut Ctx<'_, Arm64>, attr: u32, a: &rb::kvm_device_attr) -> Result {
    let vm = ctx.vm.clone();
    let Some(pmu) = &mut ctx.vcpu.pmu else {
        return Err(no_pmu());
    };
    if pmu.ready {
        return Err(trace::refuse(EBUSY, c"the PMU is initialized"));
    }
    match attr {
        rb::KVM_ARM_VCPU_PMU_V3_IRQ => set_irq(ctx, a),
        rb::KVM_ARM_VCPU_PMU_V3_INIT => {
            check_init(&vm, ctx)?;
            if let Some(pmu) = &mut ctx.vcpu.pmu {
                pmu.ready = true;
            }
            Ok(())
        }
        rb::KVM_ARM_VCPU_PMU_V3_FILTER => {
            let f: rb::kvm_pmu_event_filter = user::get(addr(a)?)?;
            vm.family.pmu.filter(&vm.family, &f)
        }
        rb::KVM_ARM_VCPU_PMU_V3_SET_PMU => vm.family.pmu.choose(&vm.family, user::get(addr(a)?)?),
        rb::KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS => {
            vm.family.pmu.set_counters(&vm.family, user::get(addr(a)?)?)
        }
        _ => Err(unknown()),
    }
}

fn set_irq(ctx: &Ctx<'_, Arm64>, a: &rb::kvm_device_attr) -> Result {
    if !ctx.vm.controller.is_created() {
        return Err(trace::invalid(c"the VM has no GIC"));
    }
    let irq: u32 = user::get(addr(a)?)?;
    if !(FIRST_PPI..=LAST_SPI).contains(&irq) {
        return Err(trace::invalid(c"a PMU's interrupt is a PPI or an SPI"));
    }
    // Of all vCPUs at once.
    let _firmware = ctx.vm.family.firmware.lock();
    let others = ctx.vm.vcpus.iter();
    let others = others.map(|c| c.shared.pmu_irq.load(Ordering::Relaxed));
    let fits = |other: u32| match other {
        0 => true,
        _ if irq < FIRST_SPI => other == irq,
        _ => other >= FIRST_SPI && other != irq,
    };
    if !others.clone().all(fits) {
        return Err(trace::invalid(
            c"PMUs have one PPI all, or an SPI of its own each",
        ));
    }
    let own = &ctx.core.shared.pmu_irq;
    if own.load(Ordering::Relaxed) != 0 {
        return Err(trace::refuse(EBUSY, c"the PMU's interrupt is set"));
    }
    own.store(irq, Ordering::Relaxed);
    Ok(())
}

fn check_init(vm: &Vm<Arm64>, ctx: &Ctx<'_, Arm64>) -> Result {
    if !vm.family.pmu.is_chosen() {
        return Err(trace::refuse(ENXIO, c"no PMU is chosen"));
    }
    if !vm.controller.is_created() {
        return Ok(());
    }
    if !vm.controller.is_ready() {
        return Err(trace::refuse(ENODEV, c"the GIC is not initialized"));
    }
    match ctx.core.shared.pmu_irq.load(Ordering::Relaxed) {
        0 => Err(trace::refuse(ENXIO, c"the PMU's interrupt is not set")),
        irq if vm.family.is_timers(irq) => Err(trace::refuse(EEXIST, c"a timer has the interrupt")),
        _ => Ok(()),
    }
}

/// A vCPU is about to run for the first time.
///
/// # Errors
/// `EINVAL`: its PMU is not initialized; its interrupt is a timer's, or of a kind that the VM has not.
pub(crate) fn first_run(ctx: &Ctx<'_, Arm64>) -> Result {
    let Some(pmu) = &ctx.vcpu.pmu else {
        return Ok(());
    };
    if !pmu.ready {
        return Err(trace::invalid(c"KVM_ARM_VCPU_PMU_V3_INIT comes first"));
    }
    let (vm, gic) = (&ctx.vm.family, &*ctx.vm.controller);
    let irq = ctx.core.shared.pmu_irq.load(Ordering::Relaxed);
    let fits = match irq {
        _ if !gic.is_created() => irq == 0,
        0 => false,
        FIRST_SPI.. => gic
            .set_pin(0, irq - FIRST_SPI, super::SOURCE, false)
            .is_ok(),
        ppi => !vm.is_timers(ppi),
    };
    if !fits {
        return Err(trace::invalid(c"the VM has not the PMU's interrupt"));
    }
    Ok(())
}

plain!(rb::kvm_pmu_event_filter);
