// SPDX-License-Identifier: GPL-2.0

//! x86's rows in the tables of ioctls and capabilities.

use crate::{abi::cap::Cap, bindings as rb, caps};

/// Bytes of `kvm_xsave`.
pub(crate) type Xsave = [u8; 4096];

crate::ioctls! {
    /// MSRs to save and restore.
    GET_MSR_INDEX_LIST = _IOWR(0x02, rb::kvm_msr_list) on System;
    /// What CPUID can show.
    GET_SUPPORTED_CPUID = _IOWR(0x05, rb::kvm_cpuid2) on System;
    /// MSRs that describe the host.
    GET_MSR_FEATURE_INDEX_LIST = _IOWR(0x0a, rb::kvm_msr_list) on System;
    /// Reads MSRs.
    GET_MSRS = _IOWR(0x88, rb::kvm_msrs) on System | Vcpu;
    /// Writes MSRs.
    SET_MSRS = _IOW(0x89, rb::kvm_msrs) on Vcpu;
    /// MCG_CAP that can be set up.
    X86_GET_MCE_CAP_SUPPORTED = _IOR(0x9d, u64) on System;
    /// System attributes (`KVM_CAP_SYS_ATTRIBUTES`), and those of vCPUs.
    SET_DEVICE_ATTR = _IOW(0xe1, rb::kvm_device_attr) on Vcpu;
    /// Reads one.
    GET_DEVICE_ATTR = _IOW(0xe2, rb::kvm_device_attr) on System | Vcpu;
    /// Says whether there is one.
    HAS_DEVICE_ATTR = _IOW(0xe3, rb::kvm_device_attr) on System | Vcpu;
    /// Where VMX could put a TSS.
    SET_TSS_ADDR = _IO(0x47) on Vm;
    /// Where VMX could put an identity map.
    SET_IDENTITY_MAP_ADDR = _IOW(0x48, u64) on Vm;
    /// In-kernel PIC, I/O APIC and local APICs.
    CREATE_IRQCHIP = _IO(0x60) on Vm;
    /// The vCPU that starts first.
    SET_BOOT_CPU_ID = _IO(0x78) on Vm;
    /// Sets kvmclock.
    SET_CLOCK = _IOW(0x7b, rb::kvm_clock_data) on Vm;
    /// Reads it.
    GET_CLOCK = _IOR(0x7c, rb::kvm_clock_data) on Vm;
    /// Sets the TSC's frequency.
    SET_TSC_KHZ = _IO(0xa2) on Vm | Vcpu;
    /// Reads it.
    GET_TSC_KHZ = _IO(0xa3) on Vm | Vcpu;
    /// Which MSRs the guest may access.
    X86_SET_MSR_FILTER = _IOW(0xc6, rb::kvm_msr_filter) on Vm;
    /// General registers.
    GET_REGS = _IOR(0x81, rb::kvm_regs) on Vcpu;
    /// Sets them.
    SET_REGS = _IOW(0x82, rb::kvm_regs) on Vcpu;
    /// Segments and control registers.
    GET_SREGS = _IOR(0x83, rb::kvm_sregs) on Vcpu;
    /// Sets them.
    SET_SREGS = _IOW(0x84, rb::kvm_sregs) on Vcpu;
    /// A linear address to a physical one.
    TRANSLATE = _IOWR(0x85, rb::kvm_translation) on Vcpu;
    /// Queues an external interrupt.
    INTERRUPT = _IOW(0x86, rb::kvm_interrupt) on Vcpu;
    /// The FPU in FXSAVE's terms.
    GET_FPU = _IOR(0x8c, rb::kvm_fpu) on Vcpu;
    /// Sets it.
    SET_FPU = _IOW(0x8d, rb::kvm_fpu) on Vcpu;
    /// The local APIC's registers.
    GET_LAPIC = _IOR(0x8e, rb::kvm_lapic_state) on Vcpu;
    /// Sets them.
    SET_LAPIC = _IOW(0x8f, rb::kvm_lapic_state) on Vcpu;
    /// What the guest's CPUID shows.
    SET_CPUID2 = _IOW(0x90, rb::kvm_cpuid2) on Vcpu;
    /// Reads that.
    GET_CPUID2 = _IOWR(0x91, rb::kvm_cpuid2) on Vcpu;
    /// Exits on accesses to the task priority: accepted, never needed here.
    TPR_ACCESS_REPORTING = _IOWR(0x92, rb::kvm_tpr_access_ctl) on Vcpu;
    /// Where a 32-bit guest's patched code keeps its task priority.
    SET_VAPIC_ADDR = _IOW(0x93, rb::kvm_vapic_addr) on Vcpu;
    /// Runs, halts, waits.
    GET_MP_STATE = _IOR(0x98, rb::kvm_mp_state) on Vcpu;
    /// Sets that.
    SET_MP_STATE = _IOW(0x99, rb::kvm_mp_state) on Vcpu;
    /// Queues an NMI.
    NMI = _IO(0x9a) on Vcpu;
    /// Sets up machine-check banks.
    X86_SETUP_MCE = _IOW(0x9c, u64) on Vcpu;
    /// Injects a machine check.
    X86_SET_MCE = _IOW(0x9e, rb::kvm_x86_mce) on Vcpu;
    /// Events on their way in.
    GET_VCPU_EVENTS = _IOR(0x9f, rb::kvm_vcpu_events) on Vcpu;
    /// Sets them.
    SET_VCPU_EVENTS = _IOW(0xa0, rb::kvm_vcpu_events) on Vcpu;
    /// Debug registers.
    GET_DEBUGREGS = _IOR(0xa1, rb::kvm_debugregs) on Vcpu;
    /// Sets them.
    SET_DEBUGREGS = _IOW(0xa2, rb::kvm_debugregs) on Vcpu;
    /// Extended state, 4096 bytes.
    GET_XSAVE = _IOR(0xa4, super::abi::Xsave) on Vcpu;
    /// Sets it.
    SET_XSAVE = _IOW(0xa5, super::abi::Xsave) on Vcpu;
    /// XCR0
    GET_XCRS = _IOR(0xa6, rb::kvm_xcrs) on Vcpu;
    /// Sets it.
    SET_XCRS = _IOW(0xa7, rb::kvm_xcrs) on Vcpu;
    /// Turns a capability of the vCPU on.
    ENABLE_CAP = _IOW(0xa3, rb::kvm_enable_cap) on Vcpu;
    /// Tells the guest that it was stopped.
    KVMCLOCK_CTRL = _IO(0xad) on Vcpu;
    /// Segments and control registers, with PDPTEs.
    GET_SREGS2 = _IOR(0xcc, rb::kvm_sregs2) on Vcpu;
    /// Sets them.
    SET_SREGS2 = _IOW(0xcd, rb::kvm_sregs2) on Vcpu;
    /// Extended state, as many bytes as `KVM_CAP_XSAVE2` says.
    GET_XSAVE2 = _IOR(0xcf, super::abi::Xsave) on Vcpu;
}

/// What x86 has on every host; values that depend on it are added by the code.
pub(crate) const CAPS: &[Cap] = caps! {
    KVM_CAP_IRQCHIP = 1;
    KVM_CAP_HLT = 1;
    KVM_CAP_SET_TSS_ADDR = 1;
    KVM_CAP_VAPIC = 1;
    KVM_CAP_EXT_CPUID = 1;
    KVM_CAP_CLOCKSOURCE = 1;
    KVM_CAP_NOP_IO_DELAY = 1;
    KVM_CAP_MP_STATE = 1;
    KVM_CAP_USER_NMI = 1;
    KVM_CAP_SET_BOOT_CPU_ID = 1;
    KVM_CAP_SET_IDENTITY_MAP_ADDR = 1;
    KVM_CAP_MCE = 32;
    KVM_CAP_ADJUST_CLOCK = 0xe;
    KVM_CAP_VCPU_EVENTS = 1;
    KVM_CAP_PCI_SEGMENT = 1;
    KVM_CAP_DEBUGREGS = 1;
    KVM_CAP_X86_ROBUST_SINGLESTEP = 1;
    KVM_CAP_XSAVE = 1;
    KVM_CAP_GET_TSC_KHZ = 1;
    KVM_CAP_TSC_DEADLINE_TIMER = 1;
    KVM_CAP_KVMCLOCK_CTRL = 1;
    KVM_CAP_IOAPIC_POLARITY_IGNORED = 1;
    KVM_CAP_SPLIT_IRQCHIP = 1;
    KVM_CAP_VCPU_ATTRIBUTES = 1;
    KVM_CAP_X2APIC_API = 3;
    KVM_CAP_GET_MSR_FEATURES = 1;
    KVM_CAP_MSR_PLATFORM_INFO = 1;
    KVM_CAP_EXCEPTION_PAYLOAD = 1;
    KVM_CAP_X86_USER_SPACE_MSR = 1;
    KVM_CAP_X86_MSR_FILTER = 1;
    KVM_CAP_SREGS2 = 1;
    KVM_CAP_ENABLE_CAP = 1;
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID = 1;
    KVM_CAP_MEMORY_FAULT_INFO = 1;
    KVM_CAP_SYS_ATTRIBUTES = 1;
    KVM_CAP_X86_TRIPLE_FAULT_EVENT = 1;
    KVM_CAP_VM_TYPES = 1;
};
