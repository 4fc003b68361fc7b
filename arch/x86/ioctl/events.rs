// SPDX-License-Identifier: GPL-2.0

//! Events, the local APIC's state, whether a vCPU runs, and vCPU attributes.

use super::super::{
    abi,
    args::events as args,
    backend::{Backend, HwVcpu},
    model::{
        lapic::{Signals, PAGE_SIZE},
        msr::mce::{Event, Injected},
        regs::{cr4, vector, Exception},
    },
    run,
    vcpu::{MpState, Vcpu},
    vm::VmState,
    X86,
};
use crate::{abi::user, bindings as rb, family::Ctx, host::trace};
use kernel::prelude::*;

/// What others have sent to the vCPU becomes part of its state.
pub(super) fn collect<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) {
    let inbox = &ctx.core.shared.mail.inbox;
    if inbox.is_empty() || inbox.has_init_or_sipi() {
        return;
    }
    let Signals { nmi, timer, .. } = inbox.drain(&mut ctx.vcpu.lapic);
    run::take_signals(ctx, nmi, timer);
}

/// `KVM_INTERRUPT`
///
/// # Errors
/// `EINVAL`: no such vector. `EEXIST`: one is queued already.
pub(super) fn interrupt<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, i: &rb::kvm_interrupt) -> Result {
    let vector = u8::try_from(i.irq)
        .map_err(|_| trace::refuse(EINVAL, c"interrupt vectors are 0 to 255"))?;
    ctx.vcpu
        .events
        .raise_extint(vector)
        .map_err(|_| trace::refuse(EEXIST, c"an interrupt is queued already"))
}

/// `KVM_GET_LAPIC`
pub(super) fn get_lapic<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, arg: usize) -> Result<isize> {
    if !ctx.vcpu.has_lapic {
        return Err(trace::refuse(
            EINVAL,
            c"the vCPU has no local APIC in the kernel",
        ));
    }
    let mut page = [0u8; PAGE_SIZE];
    let now = ctx.vcpu.tsc.clock();
    let effect = ctx
        .vcpu
        .lapic
        .save(&mut page, ctx.vm.controller.wide_ids(), now);
    run::apply(ctx, effect);
    user::put(arg, &page)?;
    Ok(0)
}

/// `KVM_SET_LAPIC`
pub(super) fn set_lapic<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, l: &rb::kvm_lapic_state) -> Result {
    if !ctx.vcpu.has_lapic {
        return Err(trace::refuse(
            EINVAL,
            c"the vCPU has no local APIC in the kernel",
        ));
    }
    let mut page = [0u8; PAGE_SIZE];
    for (to, from) in page.iter_mut().zip(l.regs) {
        *to = from.to_ne_bytes()[0];
    }
    let now = ctx.vcpu.tsc.clock();
    let effect = ctx
        .vcpu
        .lapic
        .load(&page, ctx.vm.controller.wide_ids(), now)
        .map_err(|_| trace::refuse(EINVAL, c"the x2APIC id is another vCPU's"))?;
    ctx.core.shared.identity.publish(ctx.vcpu.lapic.identity());
    run::apply(ctx, effect);
    Ok(())
}

/// `KVM_GET_MP_STATE`
pub(super) fn get_mp_state<B: Backend>(v: &Vcpu<B>) -> rb::kvm_mp_state {
    rb::kvm_mp_state {
        mp_state: match v.mp_state {
            MpState::Runnable => rb::KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => rb::KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => rb::KVM_MP_STATE_INIT_RECEIVED,
            MpState::Halted => rb::KVM_MP_STATE_HALTED,
        },
    }
}

/// `KVM_SET_MP_STATE`
///
/// # Errors
/// `EINVAL`: no such state, or one that needs a local APIC in the kernel.
pub(super) fn set_mp_state<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_mp_state) -> Result {
    let v = &mut *ctx.vcpu;
    let state = match s.mp_state {
        rb::KVM_MP_STATE_RUNNABLE => MpState::Runnable,
        _ if !v.has_lapic => {
            return Err(trace::refuse(
                EINVAL,
                c"without a local APIC a vCPU only runs",
            ));
        }
        rb::KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        rb::KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        rb::KVM_MP_STATE_HALTED => MpState::Halted,
        rb::KVM_MP_STATE_SIPI_RECEIVED => {
            // An older name for: INIT received, and the start-up message waits.
            ctx.core.shared.mail.inbox.post_sipi(v.sipi_vector);
            MpState::InitReceived
        }
        _ => return Err(trace::refuse(EINVAL, c"no such state of a vCPU")),
    };
    v.mp_state = state;
    Ok(())
}

fn enabled(vm: &VmState) -> args::Enabled {
    args::Enabled {
        payloads: vm.exception_payload(),
        triple_fault: vm.triple_fault_event(),
    }
}

/// `KVM_GET_VCPU_EVENTS`
pub(super) fn get<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> rb::kvm_vcpu_events {
    let enabled = enabled(&ctx.vm.family);
    let v = &mut *ctx.vcpu;
    v.events.set_nmi_masked(v.hw.nmi_masked());
    if !enabled.payloads {
        // User space would lose the payload: it takes effect now.
        match v.events.take_payload() {
            Some((vector::PF, cr2)) => v.hw.set_cr2(cr2),
            Some((vector::DB, dr6)) => run::set_dr6(v, dr6),
            _ => {}
        }
    }
    let e = v.events.save(enabled.payloads);
    args::encode(&e, enabled, v.hw.interrupt_shadow(), v.sipi_vector)
}

/// `KVM_SET_VCPU_EVENTS`
///
/// # Errors
/// `EINVAL`: flags that are not defined or not enabled, SMM, or an impossible exception.
pub(super) fn set<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, e: &rb::kvm_vcpu_events) -> Result {
    let enabled = enabled(&ctx.vm.family);
    let v = &mut *ctx.vcpu;
    let old = v.events.save(enabled.payloads);
    let new = args::decode(e, enabled, &old).map_err(trace::invalid)?;
    v.events
        .load(&new.events)
        .map_err(|_| trace::invalid(c"no such exception"))?;
    v.hw.set_nmi_masked(new.events.nmi_masked);
    if let Some(shadow) = new.shadow {
        v.hw.set_interrupt_shadow(shadow);
    }
    if let Some(vector) = new.sipi_vector {
        v.sipi_vector = vector;
    }
    Ok(())
}

/// `KVM_X86_SET_MCE`
///
/// # Errors
/// `EINVAL`: no such bank, or not set up.
pub(super) fn set_mce<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, m: &rb::kvm_x86_mce) -> Result {
    let v = &mut *ctx.vcpu;
    let event = Event {
        bank: m.bank,
        status: m.status,
        addr: m.addr,
        misc: m.misc,
        mcg_status: m.mcg_status,
    };
    match v.msrs.mce.inject(&event, v.hw.cr4() & cr4::MCE != 0) {
        None => Err(trace::refuse(EINVAL, c"machine-check bank or status")),
        Some(Injected::Exception) => {
            v.raise(Exception::plain(vector::MC));
            Ok(())
        }
        Some(Injected::Shutdown) => {
            v.events.raise_triple_fault();
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

/// `KVM_HAS_DEVICE_ATTR` and its like on a vCPU: the TSC's offset.
///
/// # Errors
/// `ENXIO`: no such attribute. `EFAULT`.
pub(super) fn device_attr<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    cmd: u32,
    a: &rb::kvm_device_attr,
) -> Result {
    if a.group != rb::KVM_VCPU_TSC_CTRL || a.attr != u64::from(rb::KVM_VCPU_TSC_OFFSET) {
        return Err(trace::refuse(ENXIO, c"no such attribute of a vCPU"));
    }
    let addr = usize::try_from(a.addr).map_err(|_| EFAULT)?;
    match cmd {
        abi::GET_DEVICE_ATTR => user::put(addr, &ctx.vcpu.tsc.offset()),
        abi::SET_DEVICE_ATTR => {
            let offset: u64 = user::get(addr)?;
            let v = &mut *ctx.vcpu;
            v.tsc.set_offset(&ctx.vm.family, offset);
            let effect = v.tsc_changed();
            run::apply(ctx, effect);
            Ok(())
        }
        _ => Ok(()),
    }
}
