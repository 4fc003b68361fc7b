// SPDX-License-Identifier: GPL-2.0

//! x86's own ioctls, by kind of descriptor.

mod cpuid;
mod events;
mod msrs;
mod regs;
mod system;
mod vm;
mod xstate;

pub(crate) use system::ioctl as system;
pub(crate) use vm::{enable_cap, ioctl as vm};

use super::{abi, backend::Backend, run, X86};
use crate::{
    abi::{ioctl::On, user},
    family::Ctx,
    host::trace,
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Nobody knows the request.
pub(crate) fn unknown(cmd: u32, on: On) -> Result<isize> {
    use crate::abi::ioctl;
    let elsewhere = |on| ioctl::known(abi::TABLE, cmd, on) || ioctl::known(ioctl::TABLE, cmd, on);
    let why = if elsewhere(on) {
        c"the request is known, but not served"
    } else if [On::System, On::Vm, On::Vcpu].into_iter().any(elsewhere) {
        c"the request is for another kind of descriptor"
    } else {
        c"no such request"
    };
    Err(trace::refuse(ENOTTY, why))
}

/// Copies a structure in, and passes it on.
fn with<T: user::Plain>(arg: usize, f: impl FnOnce(&T) -> Result) -> Result<isize> {
    f(&user::get(arg)?)?;
    Ok(0)
}

/// Copies a structure out.
fn give<T: user::Plain>(arg: usize, v: &T) -> Result<isize> {
    user::put(arg, v)?;
    Ok(0)
}

/// An ioctl of a vCPU other than `KVM_RUN`.
pub(crate) fn vcpu<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, cmd: u32, arg: usize) -> Result<isize> {
    // What others have sent belongs to the state that user space reads or replaces.
    events::collect(ctx);
    match cmd {
        abi::GET_REGS => give(arg, &regs::get(ctx.vcpu)),
        abi::SET_REGS => with(arg, |r| regs::set(ctx.vcpu, r)),
        abi::GET_SREGS => give(arg, &regs::get_sregs(ctx.vcpu)),
        abi::SET_SREGS => with(arg, |s| regs::set_sregs(ctx, s)),
        abi::GET_SREGS2 => give(arg, &regs::get_sregs2(ctx)),
        abi::SET_SREGS2 => with(arg, |s| regs::set_sregs2(ctx, s)),
        abi::GET_DEBUGREGS => give(arg, &regs::get_debug(ctx.vcpu)),
        abi::SET_DEBUGREGS => with(arg, |d| regs::set_debug(ctx.vcpu, d)),
        abi::TRANSLATE => {
            let mut t = user::get(arg)?;
            regs::translate(ctx, &mut t)?;
            give(arg, &t)
        }
        abi::GET_FPU => give(arg, &xstate::get_fpu(ctx.vcpu)?),
        abi::SET_FPU => with(arg, |f| xstate::set_fpu(ctx.vcpu, f)),
        abi::GET_XSAVE => xstate::get(ctx.vcpu, arg, 4096),
        abi::GET_XSAVE2 => xstate::get(ctx.vcpu, arg, usize::MAX),
        abi::SET_XSAVE => xstate::set(ctx.vcpu, arg),
        abi::GET_XCRS => give(arg, &xstate::get_xcrs(ctx.vcpu)),
        abi::SET_XCRS => with(arg, |x| xstate::set_xcrs(ctx.vcpu, x)),
        abi::GET_MSRS => msrs::transfer(arg, true, |index, _| msrs::get(ctx, index)),
        abi::SET_MSRS => msrs::transfer(arg, false, |index, value| msrs::set(ctx, index, value)),
        abi::SET_CPUID2 => cpuid::set(ctx, arg),
        abi::GET_CPUID2 => cpuid::get(ctx, arg),
        abi::GET_LAPIC => events::get_lapic(ctx, arg),
        abi::SET_LAPIC => with(arg, |l| events::set_lapic(ctx, l)),
        abi::INTERRUPT => with(arg, |i| events::interrupt(ctx, i)),
        abi::NMI => {
            ctx.vcpu.events.raise_nmi(1);
            Ok(0)
        }
        abi::GET_MP_STATE => give(arg, &events::get_mp_state(ctx.vcpu)),
        abi::SET_MP_STATE => with(arg, |s| events::set_mp_state(ctx, s)),
        abi::GET_VCPU_EVENTS => give(arg, &events::get(ctx)),
        abi::SET_VCPU_EVENTS => with(arg, |e| events::set(ctx, e)),
        abi::X86_SETUP_MCE => with(arg, |cap: &u64| {
            if ctx.vcpu.msrs.mce.setup(*cap) {
                Ok(())
            } else {
                Err(trace::refuse(
                    EINVAL,
                    c"MCG_CAP is not within what is supported",
                ))
            }
        }),
        abi::X86_SET_MCE => with(arg, |m| events::set_mce(ctx, m)),
        abi::TPR_ACCESS_REPORTING => {
            // The task priority never exits to user space: accepted, without effect.
            let t: crate::bindings::kvm_tpr_access_ctl = user::get(arg)?;
            give(arg, &t)
        }
        abi::SET_VAPIC_ADDR => with(arg, |v: &crate::bindings::kvm_vapic_addr| {
            if ctx.vcpu.has_lapic {
                // Kept by nobody: the task priority is in the hardware, never in the guest's page.
                let _ = v.vapic_addr;
                Ok(())
            } else {
                Err(trace::refuse(
                    EINVAL,
                    c"the vCPU has no local APIC in the kernel",
                ))
            }
        }),
        abi::KVMCLOCK_CTRL => {
            if ctx.vcpu.pv.note_stopped() {
                Ok(0)
            } else {
                Err(trace::refuse(EINVAL, c"the guest has no kvmclock page"))
            }
        }
        abi::ENABLE_CAP => with(arg, |c: &crate::bindings::kvm_enable_cap| {
            if c.flags != 0 || c.cap != crate::bindings::KVM_CAP_ENFORCE_PV_FEATURE_CPUID {
                return Err(trace::refuse(EINVAL, c"no such capability of a vCPU"));
            }
            ctx.vcpu.pv.enforce = c.args[0] != 0;
            Ok(())
        }),
        abi::SET_TSC_KHZ => set_tsc_khz(ctx, arg),
        abi::GET_TSC_KHZ => Ok(ctx.vcpu.tsc.khz() as isize),
        abi::HAS_DEVICE_ATTR | abi::GET_DEVICE_ATTR | abi::SET_DEVICE_ATTR => {
            with(arg, |a| events::device_attr(ctx, cmd, a))
        }
        _ => unknown(cmd, On::Vcpu),
    }
}

/// `KVM_SET_TSC_KHZ`: the TSC goes on from where it is.
fn set_tsc_khz<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, arg: usize) -> Result<isize> {
    let rate = vm::tsc_rate(ctx.vcpu.host, arg)?;
    let v = &mut *ctx.vcpu;
    if v.tsc.khz() == rate.khz {
        return Ok(0);
    }
    v.tsc.set_rate(&ctx.vm.family, rate);
    let effect = v.tsc_changed();
    ctx.core.shared.tsc_khz.store(rate.khz, Ordering::Relaxed);
    // Whether all have the same frequency stands in every clock page.
    ctx.vm.vcpus.ring_all(super::REFRESH_CLOCK);
    run::apply(ctx, effect);
    Ok(0)
}
