// SPDX-License-Identifier: GPL-2.0

//! Attributes of a VM and of a vCPU (Documentation/virt/kvm/devices/vm.rst, vcpu.rst).

use super::{
    model::{
        smccc::FilterError,
        vgic::{FIRST_PPI, FIRST_SPI},
    },
    pmu, Arm64,
};
use crate::{
    abi::user,
    bindings as rb,
    device::Attr,
    family::Ctx,
    host::{trace, uapi::plain},
    vm::Vm,
};
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::{prelude::*, sync::Arc};

fn unknown() -> Error {
    trace::refuse(ENXIO, c"no such attribute")
}

fn addr(a: &rb::kvm_device_attr) -> Result<usize> {
    usize::try_from(a.addr).map_err(|_| EFAULT)
}

impl From<FilterError> for Error {
    fn from(e: FilterError) -> Self {
        match e {
            FilterError::Invalid => trace::invalid(c"no functions, or no such action"),
            FilterError::Exists => trace::refuse(EEXIST, c"functions are filtered already"),
            FilterError::Full => ENOMEM,
        }
    }
}

/// Of a VM.
///
/// # Errors
/// `ENXIO`: no such attribute. `EINVAL`, `EEXIST`, `EBUSY`: as the document says.
pub(crate) fn vm(vm: &Arc<Vm<Arm64>>, what: Attr, a: &rb::kvm_device_attr) -> Result {
    if (a.group, a.attr)
        != (
            rb::KVM_ARM_VM_SMCCC_CTRL,
            rb::KVM_ARM_VM_SMCCC_FILTER.into(),
        )
    {
        return Err(unknown());
    }
    match what {
        Attr::Has => Ok(()),
        Attr::Get => Err(unknown()),
        Attr::Set => {
            let f: rb::kvm_smccc_filter = user::get(addr(a)?)?;
            if f.pad.iter().any(|b| *b != 0) {
                return Err(trace::invalid(c"padding is to be zero"));
            }
            let mut firmware = vm.family.firmware.lock();
            if vm.family.ran.load(Ordering::Acquire) {
                return Err(trace::refuse(EBUSY, c"a vCPU has run"));
            }
            Ok(firmware.filter.insert(f.base, f.nr_functions, f.action)?)
        }
    }
}

/// Of a vCPU.
///
/// # Errors
/// As [`vm`].
pub(crate) fn vcpu(ctx: &mut Ctx<'_, Arm64>, what: Attr, a: &rb::kvm_device_attr) -> Result {
    match a.group {
        rb::KVM_ARM_VCPU_PMU_V3_CTRL => pmu::attr::access(ctx, what, a),
        rb::KVM_ARM_VCPU_TIMER_CTRL => timer(ctx, what, a),
        rb::KVM_ARM_VCPU_PVTIME_CTRL if a.attr == u64::from(rb::KVM_ARM_VCPU_PVTIME_IPA) => {
            let stolen = &mut ctx.vcpu.stolen;
            match what {
                Attr::Has => Ok(()),
                Attr::Get => user::put(addr(a)?, &stolen.base().unwrap_or(u64::MAX)),
                Attr::Set => {
                    let base: u64 = user::get(addr(a)?)?;
                    stolen.place(&ctx.vm.memory.read(), base)
                }
            }
        }
        _ => Err(unknown()),
    }
}

/// Which PPI a timer has: the same in all vCPUs.
fn timer(ctx: &mut Ctx<'_, Arm64>, what: Attr, a: &rb::kvm_device_attr) -> Result {
    let ppis: &[AtomicU32; 2] = &ctx.vm.family.timer_ppis;
    // VTIMER and PTIMER are 0 and 1; those of EL2 the guest has not.
    let ppi = usize::try_from(a.attr).ok().and_then(|i| ppis.get(i));
    let ppi = ppi.ok_or_else(unknown)?;
    match what {
        Attr::Has => Ok(()),
        Attr::Get => user::put(addr(a)?, &ppi.load(Ordering::Relaxed)),
        Attr::Set => {
            let intid: u32 = user::get(addr(a)?)?;
            if !ctx.vm.controller.is_created() {
                return Err(trace::invalid(c"the VM has no GIC"));
            }
            if !(FIRST_PPI..FIRST_SPI).contains(&intid) {
                return Err(trace::invalid(c"a timer's interrupt is a PPI"));
            }
            let _firmware = ctx.vm.family.firmware.lock();
            if ctx.vm.family.ran.load(Ordering::Acquire) {
                return Err(trace::refuse(EBUSY, c"a vCPU has run"));
            }
            ppi.store(intid, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// The first of a VM's vCPUs, or a vCPU with a PMU for the first time, is about to run: from now on what has been said stays.
///
/// # Errors
/// `EINVAL`: both timers have one interrupt. What [`super::gic::Gic::check`] and [`pmu::attr::first_run`] say.
pub(crate) fn first_run(ctx: &Ctx<'_, Arm64>) -> Result {
    let (vm, v, gic) = (&ctx.vm, &ctx.vm.family, &ctx.vm.controller);
    let created = gic.is_created();
    if created && !v.ran.load(Ordering::Acquire) {
        // What is found complete stays so. Not below the lock: what changes the GIC's frames waits for vCPUs that
        // run, and they may be about to call the firmware.
        let limit = 1u64.checked_shl(vm.memory.config().gpa_bits);
        gic.check(limit.unwrap_or(u64::MAX))?;
    }
    let _firmware = v.firmware.lock();
    if v.ran.load(Ordering::Acquire) {
        return pmu::attr::first_run(ctx);
    }
    if gic.is_created() != created {
        return Err(trace::refuse(EBUSY, c"the GIC is not initialized"));
    }
    pmu::attr::first_run(ctx)?;
    if created {
        if v.virtual_ppi() == v.physical_ppi() {
            return Err(trace::invalid(c"both timers have one interrupt"));
        }
        // It is initialized, so that there are all the vCPUs that there will be.
        for c in vm.vcpus.iter() {
            let gic = &c.shared.gic;
            gic.map_timer(v.virtual_ppi(), v.host.irqs.vtimer_intid)?;
        }
    }
    v.ids.close(v.host, gic.is_created(), &v.ran);
    Ok(())
}

plain!(rb::kvm_smccc_filter, rb::kvm_arm_counter_offset);
