// SPDX-License-Identifier: GPL-2.0

//! arm64's own ioctls, by kind of descriptor.

use super::{abi, attr, gic, its, onereg, psci, shared::power, vcpu::Vcpu, Arm64};
use crate::{
    abi::user,
    bindings as rb,
    device::Attr,
    family::Ctx,
    host::{trace, uapi::plain},
    vm::Vm,
};
use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};

/// Any v8 CPU: the one target that there is on this host.
const TARGET: u32 = rb::KVM_ARM_TARGET_GENERIC_V8;
/// Features of `KVM_ARM_VCPU_INIT` that are there.
const FEATURES: u32 = 1 << rb::KVM_ARM_VCPU_POWER_OFF | 1 << rb::KVM_ARM_VCPU_PSCI_0_2;

fn unknown() -> Result<isize> {
    Err(trace::refuse(ENOTTY, c"no such request"))
}

/// An ioctl of a VM.
pub(crate) fn vm(vm: &Arc<Vm<Arm64>>, cmd: u32, arg: usize) -> Result<isize> {
    if let Some((what, a)) = Attr::of(cmd, arg)? {
        attr::vm(vm, what, &a)?;
        return Ok(0);
    }
    match cmd {
        abi::ARM_SET_COUNTER_OFFSET => {
            let o: rb::kvm_arm_counter_offset = user::get(arg)?;
            if o.reserved != 0 {
                return Err(trace::invalid(c"reserved words are to be zero"));
            }
            let v = &vm.family;
            v.counter_offset.store(o.counter_offset, Ordering::Relaxed);
            v.physical_offset.store(o.counter_offset, Ordering::Relaxed);
            v.offset_fixed.store(true, Ordering::Relaxed);
            Ok(0)
        }
        abi::ARM_PREFERRED_TARGET => {
            let mut init: rb::kvm_vcpu_init = user::zeroed();
            init.target = TARGET;
            user::put(arg, &init)?;
            Ok(0)
        }
        _ => unknown(),
    }
}

/// `KVM_ENABLE_CAP` on a VM.
pub(crate) fn enable_cap(vm: &Vm<Arm64>, cap: u32, flags: u32) -> Result<isize> {
    if flags != 0 {
        return Err(trace::invalid(c"a capability has no flags"));
    }
    match cap {
        rb::KVM_CAP_ARM_NISV_TO_USER => vm.family.nisv_to_user.store(true, Ordering::Relaxed),
        rb::KVM_CAP_ARM_SYSTEM_SUSPEND => vm.family.system_suspend.store(true, Ordering::Relaxed),
        _ => return Err(trace::invalid(c"no such capability of a VM")),
    }
    Ok(0)
}

/// An ioctl of a vCPU other than `KVM_RUN`.
pub(crate) fn vcpu(ctx: &mut Ctx<'_, Arm64>, cmd: u32, arg: usize) -> Result<isize> {
    if cmd == abi::ARM_VCPU_INIT {
        let init: rb::kvm_vcpu_init = user::get(arg)?;
        return initialize(ctx, &init);
    }
    if !ctx.vcpu.initialized {
        return Err(trace::refuse(ENOEXEC, c"KVM_ARM_VCPU_INIT comes first"));
    }
    // Until a vCPU runs, the VM may still get a GIC.
    ctx.vcpu.gic = ctx.vm.controller.is_created() || !ctx.vm.family.ran.load(Ordering::Acquire);
    psci::take_start(ctx);
    if let Some((what, a)) = Attr::of(cmd, arg)? {
        attr::vcpu(ctx, what, &a)?;
        return Ok(0);
    }
    match cmd {
        abi::GET_ONE_REG => onereg::one(ctx, &user::get(arg)?, false)?,
        abi::SET_ONE_REG => onereg::one(ctx, &user::get(arg)?, true)?,
        abi::GET_REG_LIST => onereg::list(ctx, arg)?,
        abi::GET_MP_STATE => {
            let mp_state = match ctx.core.shared.power.state.load(Ordering::Acquire) {
                power::OFF => rb::KVM_MP_STATE_STOPPED,
                power::SUSPENDED => rb::KVM_MP_STATE_SUSPENDED,
                _ => rb::KVM_MP_STATE_RUNNABLE,
            };
            let state = rb::kvm_mp_state { mp_state };
            user::put(arg, &state)?;
        }
        abi::SET_MP_STATE => {
            let s: rb::kvm_mp_state = user::get(arg)?;
            let state = match s.mp_state {
                rb::KVM_MP_STATE_RUNNABLE => power::ON,
                rb::KVM_MP_STATE_STOPPED => power::OFF,
                rb::KVM_MP_STATE_SUSPENDED => power::SUSPENDED,
                _ => return Err(trace::invalid(c"no such state of a vCPU")),
            };
            ctx.core.shared.power.state.store(state, Ordering::Release);
        }
        _ => return unknown(),
    }
    Ok(0)
}

/// `KVM_ARM_VCPU_INIT`
fn initialize(ctx: &mut Ctx<'_, Arm64>, init: &rb::kvm_vcpu_init) -> Result<isize> {
    if init.target != TARGET {
        return Err(trace::invalid(c"this host has no such CPU"));
    }
    let [features, rest @ ..] = init.features;
    if features & !FEATURES != 0 || rest.iter().any(|w| *w != 0) {
        return Err(trace::refuse(
            ENOENT,
            c"features of a vCPU that are not there",
        ));
    }
    // How it starts may differ each time; what it is may not, nor from the VM's other vCPUs.
    const POWER_OFF: u32 = 1 << rb::KVM_ARM_VCPU_POWER_OFF;
    let off = features & POWER_OFF != 0;
    let features = features & !POWER_OFF;
    if !ctx.vm.family.agree_on(features) {
        return Err(trace::invalid(c"all vCPUs of a VM have the same features"));
    }
    let v: &mut Vcpu = ctx.vcpu;
    v.features = features;
    v.initialized = true;
    v.reset();
    ctx.core
        .shared
        .power
        .state
        .store(if off { power::OFF } else { power::ON }, Ordering::Release);
    Ok(0)
}

/// `KVM_CREATE_DEVICE`
pub(crate) fn create_device(vm: &Arc<Vm<Arm64>>, kind: u32, test: bool) -> Result<Option<Device>> {
    let its = match kind {
        rb::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3 => false,
        rb::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS => true,
        _ => return Err(trace::refuse(ENODEV, c"no such kind of in-kernel device")),
    };
    if test {
        return Ok(None);
    }
    if its {
        let number = vm.controller.itses.create()?;
        vm.controller.has_its();
        return Ok(Some(Device::Its(number)));
    }
    vm.controller.create()?;
    Ok(Some(Device::Gic))
}

/// What `KVM_CREATE_DEVICE` makes.
pub(crate) enum Device {
    /// The interrupt controller.
    Gic,
    /// An ITS, by its number.
    Its(u8),
}

/// An attribute of a device.
pub(crate) fn device_attr(
    vm: &Arc<Vm<Arm64>>,
    d: &Device,
    what: Attr,
    a: &rb::kvm_device_attr,
) -> Result {
    match (d, what) {
        (Device::Gic, Attr::Set) => gic::attr::set(vm, a),
        (Device::Gic, Attr::Get) => gic::attr::get(vm, a),
        (Device::Gic, Attr::Has) => gic::attr::has(a),
        (Device::Its(number), what) => its::attr::access(vm, *number, what, a),
    }
}

plain!(
    rb::kvm_vcpu_init,
    rb::kvm_one_reg,
    rb::kvm_mp_state,
    rb::kvm_device_attr,
);
