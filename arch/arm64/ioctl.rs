// SPDX-License-Identifier: GPL-2.0

//! arm64's own ioctls, by kind of descriptor.

use super::{
    abi, attr, gic,
    ids::has,
    insn::Sve,
    model::{
        debug,
        events::{self, Events},
        idreg,
        sve::Layout,
    },
    onereg,
    pmu::Pmu,
    psci,
    shared::power,
    vcpu::Vcpu,
    Arm64,
};
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
/// Features of `KVM_ARM_VCPU_INIT` that in-tree KVM knows: others are `ENOENT`.
const KNOWN: u32 = (2 << rb::KVM_ARM_VCPU_PMU_V3_STRICT) - 1;
/// A vCPU starts so or so; all else is the same for all vCPUs of a VM.
const POWER_OFF: u32 = 1 << rb::KVM_ARM_VCPU_POWER_OFF;

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
            vm.controller.stopped()?;
            let v = &vm.family;
            v.counter_offset.store(o.counter_offset, Ordering::Relaxed);
            v.physical_offset.store(o.counter_offset, Ordering::Relaxed);
            v.offset_fixed.store(true, Ordering::Relaxed);
            Ok(0)
        }
        abi::ARM_GET_REG_WRITABLE_MASKS => {
            writable_masks(vm, &user::get(arg)?)?;
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
        rb::KVM_CAP_ARM_WRITABLE_IMP_ID_REGS => {
            if vm.vcpus.len() != 0 {
                return Err(trace::invalid(c"the VM has vCPUs already"));
            }
            vm.family.ids.open_implementation();
        }
        _ => return Err(trace::invalid(c"no such capability of a VM")),
    }
    Ok(0)
}

/// `KVM_ARM_GET_REG_WRITABLE_MASKS`
fn writable_masks(vm: &Vm<Arm64>, r: &rb::reg_mask_range) -> Result {
    if r.range != rb::KVM_ARM_FEATURE_ID_RANGE || r.reserved.iter().any(|w| *w != 0) {
        return Err(trace::invalid(c"no such range of registers"));
    }
    let at = usize::try_from(r.addr).map_err(|_| EFAULT)?;
    let aarch32 = vm.family.host.aarch32_el0;
    for i in 0..idreg::MASKS {
        let mask = idreg::mask_register(i).map_or(0, |r| idreg::writable_mask(r, aarch32));
        user::put(user::element::<[u64; 0], u64>(at, i)?, &mask)?;
    }
    Ok(())
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
        abi::GET_VCPU_EVENTS => user::put(arg, &events(ctx))?,
        abi::SET_VCPU_EVENTS => set_events(ctx, &user::get(arg)?)?,
        abi::ARM_VCPU_FINALIZE => finalize(ctx.vcpu, user::get(arg)?)?,
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
    if features & !KNOWN != 0 || rest.iter().any(|w| *w != 0) {
        return Err(trace::refuse(
            ENOENT,
            c"features of a vCPU that nobody knows",
        ));
    }
    let vm = ctx.vm.clone();
    let host = vm.family.host;
    if features & !host.features() != 0 {
        return Err(trace::invalid(c"features of a vCPU that the host has not"));
    }
    if has(features, rb::KVM_ARM_VCPU_PTRAUTH_ADDRESS)
        != has(features, rb::KVM_ARM_VCPU_PTRAUTH_GENERIC)
    {
        return Err(trace::invalid(
            c"pointer authentication is of both kinds or none",
        ));
    }
    let pmu = has(features, rb::KVM_ARM_VCPU_PMU_V3);
    let strict = has(features, rb::KVM_ARM_VCPU_PMU_V3_STRICT);
    if strict && !pmu {
        return Err(trace::invalid(c"a strict PMU is one"));
    }
    vm.family.ids.initialize(host, features & !POWER_OFF)?;
    if pmu {
        vm.family.pmu.initialize(strict)?;
        if ctx.vcpu.pmu.is_none() {
            ctx.vcpu.pmu = Some(Pmu::new(&ctx.core.kick)?);
        }
    }
    ctx.vcpu.initialize(&vm.family, features & !POWER_OFF);
    let off = features & POWER_OFF != 0;
    ctx.core
        .shared
        .power
        .state
        .store(if off { power::OFF } else { power::ON }, Ordering::Release);
    Ok(0)
}

/// `KVM_ARM_VCPU_FINALIZE`
fn finalize(v: &mut Vcpu, feature: u32) -> Result {
    if feature != rb::KVM_ARM_VCPU_SVE || !v.has(feature) {
        return Err(trace::invalid(
            c"not a feature that the vCPU has to finalize",
        ));
    }
    if v.is_final() {
        return Err(trace::refuse(EPERM, c"the feature is final already"));
    }
    v.sve = Some(Sve::new(Layout::new(v.lengths.max()))?);
    Ok(())
}

/// `KVM_GET_VCPU_EVENTS`
fn events(ctx: &Ctx<'_, Arm64>) -> rb::kvm_vcpu_events {
    let e = events::get(ctx.vcpu.serror, ctx.vm.family.host.ras);
    let mut out: rb::kvm_vcpu_events = user::zeroed();
    out.exception.serror_pending = e.serror.into();
    out.exception.serror_has_esr = e.has_esr.into();
    out.exception.serror_esr = e.esr;
    out
}

/// `KVM_SET_VCPU_EVENTS`
fn set_events(ctx: &mut Ctx<'_, Arm64>, e: &rb::kvm_vcpu_events) -> Result {
    let e = Events {
        serror: e.exception.serror_pending != 0,
        has_esr: e.exception.serror_has_esr != 0,
        abort: e.exception.ext_dabt_pending != 0,
        esr: e.exception.serror_esr,
    };
    let wanted = events::set(&e, ctx.vm.family.host.ras)
        .map_err(|_| trace::invalid(c"an SError with a syndrome that the guest cannot have"))?;
    let vm = ctx.vm.clone();
    let v = &mut *ctx.vcpu;
    v.refresh(&vm.family);
    if wanted.abort {
        // The access is not made.
        v.mmio = None;
        let far = v.run.far;
        v.external_abort(false, far, None);
    }
    if let Some(iss) = wanted.serror {
        v.raise_serror(iss);
    }
    Ok(())
}

/// `KVM_SET_GUEST_DEBUG`
pub(crate) fn set_guest_debug(v: &mut Vcpu, d: &rb::kvm_guest_debug) {
    let on = d.control & debug::control::ENABLE != 0;
    v.debug.control = if on { d.control } else { 0 };
    if !on {
        v.debug.stepper = debug::Stepper::default();
    }
    if v.debug.control & debug::control::HARDWARE != 0 {
        v.debug.user = debug::Registers {
            bvr: d.arch.dbg_bvr,
            bcr: d.arch.dbg_bcr,
            wvr: d.arch.dbg_wvr,
            wcr: d.arch.dbg_wcr,
        };
    }
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
    let _firmware = vm.family.firmware.lock();
    vm.controller
        .create(vm.family.ran.load(Ordering::Acquire))?;
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
    let its = match d {
        Device::Gic => None,
        Device::Its(number) => Some(*number),
    };
    gic::attr::access(vm, its, what, a)
}

plain!(
    rb::kvm_vcpu_init,
    rb::kvm_one_reg,
    rb::kvm_mp_state,
    rb::kvm_device_attr,
    rb::kvm_vcpu_events,
    rb::reg_mask_range,
);
