/* SPDX-License-Identifier: GPL-2.0 */
/* What the VMX entry code needs for one run, shared by assembly, C and (through bindgen) Rust. */
#ifndef RKVM_VMX_RUN_H
#define RKVM_VMX_RUN_H

#include "guest_run_x86.h"

/* Offsets in struct rkvm_vmx_run. */
#define RKVM_VMX_RUN_HOST_RSP RKVM_SPEC_CTRL_SIZE
#define RKVM_VMX_RUN_CR2 (RKVM_SPEC_CTRL_SIZE + 8)
#define RKVM_VMX_RUN_LAUNCHED (RKVM_SPEC_CTRL_SIZE + 16)

#ifndef __ASSEMBLY__
struct rkvm_vmx_run {
	struct rkvm_spec_ctrl spec;
	u64 host_rsp;	/* what HOST_RSP holds */
	u64 cr2;	/* the guest's */
	u32 launched;	/* 1: the VMCS was launched since it was loaded: VMRESUME */
	u32 reason;	/* of the last exit */
	u32 intr_info;	/* VM-exit interruption information, if the reason is an exception or NMI */
	u32 unused;
};

/* The host's state of a CPU and task, as an exit has to bring it back (SDM vol. 3C 26.5). */
struct rkvm_vmx_host {
	u64 cr0;
	u64 cr3;
	u64 cr4;
	u64 fs_base;
	u64 gs_base;
	u64 tr_base;
	u64 gdt_base;
	u64 idt_base;
	u64 sysenter_cs;
	u64 sysenter_esp;
	u64 sysenter_eip;
	u64 efer;
	u64 pat;
	u64 rip;	/* where exits go */
	u16 cs, ss, tr;
	/* What exits make null, for rkvm_vmx_host_restore(). */
	u16 ds, es, fs, gs, ldt;
	u64 user_gs_base;	/* MSR_KERNEL_GS_BASE */
};

/* The MSRs of SYSCALL and SWAPGS, which VMX does not switch. */
struct rkvm_vmx_syscall {
	u64 star;
	u64 lstar;
	u64 cstar;
	u64 sfmask;
};
#endif

#endif
