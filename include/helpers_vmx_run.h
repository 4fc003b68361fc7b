/* SPDX-License-Identifier: GPL-2.0 */
/* What the VMX entry code needs for one run, shared by assembly, C and (through bindgen) Rust. */
#ifndef RKVM_VMX_RUN_H
#define RKVM_VMX_RUN_H

/* Offsets in struct rkvm_vmx_run. */
#define RKVM_VMX_RUN_HOST_RSP 0
#define RKVM_VMX_RUN_CR2 8
#define RKVM_VMX_RUN_SPEC_GUEST 16
#define RKVM_VMX_RUN_SPEC_HOST 24
#define RKVM_VMX_RUN_FLAGS 32

/* The VMCS was launched since it was loaded: VMRESUME. The lowest bit, which the entry code copies to CF. */
#define RKVM_VMX_LAUNCHED 1
/* The guest's SPEC_CTRL is switched by us. */
#define RKVM_VMX_SPEC_SWITCH 2
/* The guest can write SPEC_CTRL without an exit: read it back. */
#define RKVM_VMX_SPEC_DIRECT 4

#ifndef __ASSEMBLY__
#include <linux/types.h>

struct rkvm_vmx_run {
	u64 host_rsp;	/* what HOST_RSP holds */
	u64 cr2;	/* the guest's */
	u64 spec_guest;
	u64 spec_host;
	u32 flags;	/* RKVM_VMX_* */
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
