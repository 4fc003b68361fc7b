// SPDX-License-Identifier: GPL-2.0

//! `kvm_vcpu_events`.

use super::Why;
use crate::{arch::x86::model::events::VcpuEvents, bindings as rb, host::uapi::zeroed};

/// What user space has enabled on the VM: without it, the fields are neither told nor taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enabled {
    /// `KVM_CAP_EXCEPTION_PAYLOAD`
    pub payloads: bool,
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT`
    pub triple_fault: bool,
}

/// What `KVM_SET_VCPU_EVENTS` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// For the arbiter of events.
    pub events: VcpuEvents,
    /// The interrupt shadow, if it is to be set.
    pub shadow: Option<bool>,
    /// The start-up vector, if it is to be set.
    pub sipi_vector: Option<u8>,
}

/// `KVM_SET_VCPU_EVENTS`. `old` is the state now: what user space does not set stays.
///
/// # Errors
/// Flags that are not defined or not enabled; system-management mode.
pub fn decode(e: &rb::kvm_vcpu_events, enabled: Enabled, old: &VcpuEvents) -> Result<Request, Why> {
    let has = |flag: u32| e.flags & flag != 0;
    let mut allowed = rb::KVM_VCPUEVENT_VALID_NMI_PENDING
        | rb::KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | rb::KVM_VCPUEVENT_VALID_SHADOW
        | rb::KVM_VCPUEVENT_VALID_SMM;
    if enabled.payloads {
        allowed |= rb::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if enabled.triple_fault {
        allowed |= rb::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    if has(!allowed) {
        return Err(c"event flags that are not enabled");
    }
    let smm = e.smi.smm | e.smi.pending | e.smi.smm_inside_nmi | e.smi.latched_init;
    if has(rb::KVM_VCPUEVENT_VALID_SMM) && smm != 0 {
        return Err(c"system-management mode is not there");
    }
    let payloads = has(rb::KVM_VCPUEVENT_VALID_PAYLOAD);
    let events = VcpuEvents {
        exception_injected: e.exception.injected != 0,
        exception_pending: payloads && e.exception.pending != 0,
        exception_nr: e.exception.nr,
        exception_error: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        exception_payload: (payloads && e.exception_has_payload != 0)
            .then_some(e.exception_payload),
        interrupt_injected: e.interrupt.injected != 0,
        interrupt_nr: e.interrupt.nr,
        interrupt_soft: e.interrupt.soft != 0,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: if has(rb::KVM_VCPUEVENT_VALID_NMI_PENDING) {
            e.nmi.pending != 0
        } else {
            old.nmi_pending
        },
        nmi_masked: e.nmi.masked != 0,
        triple_fault_pending: if has(rb::KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
            e.triple_fault.pending != 0
        } else {
            old.triple_fault_pending
        },
    };
    Ok(Request {
        events,
        shadow: has(rb::KVM_VCPUEVENT_VALID_SHADOW).then_some(e.interrupt.shadow != 0),
        sipi_vector: has(rb::KVM_VCPUEVENT_VALID_SIPI_VECTOR)
            .then_some((e.sipi_vector & 0xff) as u8),
    })
}

/// `KVM_GET_VCPU_EVENTS`
pub fn encode(
    e: &VcpuEvents,
    enabled: Enabled,
    shadow: bool,
    sipi_vector: u8,
) -> rb::kvm_vcpu_events {
    let mut out: rb::kvm_vcpu_events = zeroed();
    out.exception.injected = u8::from(e.exception_injected);
    out.exception.pending = u8::from(e.exception_pending);
    out.exception.nr = e.exception_nr;
    out.exception.has_error_code = u8::from(e.exception_error.is_some());
    out.exception.error_code = e.exception_error.unwrap_or(0);
    out.exception_has_payload = u8::from(e.exception_payload.is_some());
    out.exception_payload = e.exception_payload.unwrap_or(0);
    out.interrupt.injected = u8::from(e.interrupt_injected);
    out.interrupt.nr = e.interrupt_nr;
    out.interrupt.soft = u8::from(e.interrupt_soft);
    out.interrupt.shadow = if shadow {
        (rb::KVM_X86_SHADOW_INT_STI | rb::KVM_X86_SHADOW_INT_MOV_SS) as u8
    } else {
        0
    };
    out.nmi.injected = u8::from(e.nmi_injected);
    out.nmi.pending = u8::from(e.nmi_pending);
    out.nmi.masked = u8::from(e.nmi_masked);
    out.sipi_vector = u32::from(sipi_vector);
    out.flags = rb::KVM_VCPUEVENT_VALID_NMI_PENDING | rb::KVM_VCPUEVENT_VALID_SHADOW;
    if enabled.payloads {
        out.flags |= rb::KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if enabled.triple_fault {
        out.triple_fault.pending = u8::from(e.triple_fault_pending);
        out.flags |= rb::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    out
}
