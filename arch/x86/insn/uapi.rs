// SPDX-License-Identifier: GPL-2.0

//! Which structures of x86's uapi may be copied as bytes.

use crate::{
    bindings as rb,
    host::uapi::{from_user, plain},
};

plain!(
    rb::kvm_regs,
    rb::kvm_sregs,
    rb::kvm_sregs2,
    rb::kvm_segment,
    rb::kvm_dtable,
    rb::kvm_debugregs,
    rb::kvm_translation,
    rb::kvm_interrupt,
    rb::kvm_fpu,
    rb::kvm_xcrs,
    rb::kvm_msr_entry,
    rb::kvm_cpuid_entry2,
    rb::kvm_lapic_state,
    rb::kvm_mp_state,
    rb::kvm_vcpu_events,
    rb::kvm_x86_mce,
    rb::kvm_tpr_access_ctl,
    rb::kvm_vapic_addr,
    rb::kvm_device_attr,
    rb::kvm_clock_data,
    [u8; 1024],
);

from_user!(rb::kvm_msr_filter);
