// SPDX-License-Identifier: GPL-2.0

//! arm64's rows in the tables of ioctls and capabilities.

use crate::{abi::cap::Cap, bindings as rb, caps};

crate::ioctls! {
    /// Makes a vCPU what it is, or resets it.
    ARM_VCPU_INIT = _IOW(0xae, rb::kvm_vcpu_init) on Vcpu;
    /// What to give to that.
    ARM_PREFERRED_TARGET = _IOR(0xaf, rb::kvm_vcpu_init) on Vm;
    /// Registers that user space reads and writes.
    GET_REG_LIST = _IOWR(0xb0, rb::kvm_reg_list) on Vcpu;
    /// Reads a register.
    GET_ONE_REG = _IOW(0xab, rb::kvm_one_reg) on Vcpu;
    /// Writes one.
    SET_ONE_REG = _IOW(0xac, rb::kvm_one_reg) on Vcpu;
    /// Runs, or waits.
    GET_MP_STATE = _IOR(0x98, rb::kvm_mp_state) on Vcpu;
    /// Sets that.
    SET_MP_STATE = _IOW(0x99, rb::kvm_mp_state) on Vcpu;
    /// Moves both counters of all vCPUs.
    ARM_SET_COUNTER_OFFSET = _IOW(0xb5, rb::kvm_arm_counter_offset) on Vm;
    /// SErrors that wait.
    GET_VCPU_EVENTS = _IOR(0x9f, rb::kvm_vcpu_events) on Vcpu;
    /// Makes one pending, or ends an access in an abort.
    SET_VCPU_EVENTS = _IOW(0xa0, rb::kvm_vcpu_events) on Vcpu;
    /// Which bits of ID registers can be set.
    ARM_GET_REG_WRITABLE_MASKS = _IOR(0xb6, rb::reg_mask_range) on Vm;
    /// A feature is as it is to be.
    ARM_VCPU_FINALIZE = _IOW(0xc2, i32) on Vcpu;
}

/// What arm64 has on every host; values that depend on it are added by the code.
pub(crate) const CAPS: &[Cap] = caps! {
    KVM_CAP_IRQCHIP = 1;
    KVM_CAP_MP_STATE = 1;
    KVM_CAP_ONE_REG = 1;
    KVM_CAP_ARM_PSCI = 1;
    KVM_CAP_ARM_PSCI_0_2 = 1;
    KVM_CAP_ARM_NISV_TO_USER = 1;
    KVM_CAP_ARM_SYSTEM_SUSPEND = 1;
    KVM_CAP_ARM_INJECT_EXT_DABT = 1;
    KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES = 1;
    KVM_CAP_ARM_WRITABLE_IMP_ID_REGS = 1;
    KVM_CAP_VCPU_EVENTS = 1;
    KVM_CAP_ENABLE_CAP = 1;
    KVM_CAP_VM_ATTRIBUTES = 1;
    KVM_CAP_VCPU_ATTRIBUTES = 1;
    KVM_CAP_COUNTER_OFFSET = 1;
    KVM_CAP_STEAL_TIME = 1;
    KVM_CAP_PTP_KVM = 1;
    KVM_CAP_ARM_IRQ_LINE_LAYOUT_2 = 1;
    KVM_CAP_MEMORY_FAULT_INFO = 1;
};
