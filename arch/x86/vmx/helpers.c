// SPDX-License-Identifier: GPL-2.0
/*
 * C helpers of arch/x86/vmx: VMX operation and who owns it, VMCS instructions that may fault, and the
 * host's state of a CPU and task.
 */

#include <linux/cpu.h>
#include <linux/cpufeature.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/hardirq.h>
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <asm/cpu_entry_area.h>
#include <asm/desc.h>
#include <asm/entry-common.h>
#include <asm/fsgsbase.h>
#include <asm/mmu_context.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/segment.h>
#include <asm/special_insns.h>
#include <asm/tlbflush.h>
#include <asm/trapnr.h>
#include <asm/virt.h>

#include "guest_entry.h"
#include "helpers_x86.h"

static_assert(offsetof(struct rkvm_vmx_run, spec) == 0);
static_assert(offsetof(struct rkvm_vmx_run, host_rsp) == RKVM_VMX_RUN_HOST_RSP);
static_assert(offsetof(struct rkvm_vmx_run, cr2) == RKVM_VMX_RUN_CR2);
static_assert(offsetof(struct rkvm_vmx_run, launched) == RKVM_VMX_RUN_LAUNCHED);

/* Fields and values that the entry needs itself (SDM vol. 3D, appendix B; vol. 3C, 26.9). */
#define EXIT_REASON 0x4402
#define EXIT_INTR_INFO 0x4404
#define REASON_EXCEPTION_OR_NMI 0
#define INTR_TYPE(info) (((info) >> 8) & 7)
#define INTR_TYPE_NMI 2

extern const char rkvm_vmx_exit[];

static __always_inline u32 read_field(unsigned long field)
{
	unsigned long v;

	asm volatile("vmread %1, %0" : "=r" (v) : "r" (field) : "cc");
	return v;
}

/*
 * An NMI that ended the guest's run is delivered here: NMIs are still blocked. FRED has no software
 * interrupts from the kernel, and the kernel's own way is for KVM only (see rkvm_vmx_usable()).
 */
static __always_inline void deliver_nmi(void)
{
#ifdef RKVM_VIRT_REFS
	if (cpu_feature_enabled(X86_FEATURE_FRED)) {
		instrumentation_begin();
		x86_entry_from_kvm(EVENT_TYPE_NMI, NMI_VECTOR);
		instrumentation_end();
		return;
	}
#endif
	asm volatile("int $2");
}

noinstr int rkvm_vmx_enter(struct rkvm_vmx_run *run, u64 *gprs)
{
	int ret;

	rkvm_guest_begins();
	ret = rkvm_vmx_vmenter(run, gprs);
	if (!ret) {
		run->launched = 1;
		run->reason = read_field(EXIT_REASON);
		if (run->reason == REASON_EXCEPTION_OR_NMI) {
			run->intr_info = read_field(EXIT_INTR_INFO);
			if (INTR_TYPE(run->intr_info) == INTR_TYPE_NMI)
				deliver_nmi();
		}
	}
	rkvm_guest_ends();
	return ret;
}

/* VMX instructions fault where VMX was turned off under us (reboot, crash). */

#define NO_VMCS (~0ULL)

/* One that succeeds or fails (VMfail or a fault), as a function. */
#define VMX_OP(insn, ...) ({						\
	__label__ fail;							\
	int err = -EIO;							\
	asm goto("1: " insn "\n"					\
		 "jna %l[fail]\n"					\
		 _ASM_EXTABLE(1b, %l[fail])				\
		 : : __VA_ARGS__ : "cc", "memory" : fail);		\
	err = 0;							\
fail:									\
	err;								\
})

static int load(u64 pa)
{
	return VMX_OP("vmptrld %0", "m" (pa));
}

static int clear(u64 pa)
{
	return VMX_OP("vmclear %0", "m" (pa));
}

static int current_vmcs(u64 *pa)
{
	int err = 0;

	asm volatile("1: vmptrst %[pa]\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err), [pa] "=m" (*pa) : : "cc");
	return err;
}

/* Makes a VMCS current; *before is what was. */
int rkvm_vmx_load(u64 pa, u64 *before)
{
	*before = NO_VMCS;
	if (!(__read_cr4() & X86_CR4_VMXE) || current_vmcs(before))
		return -EIO;
	return load(pa);
}

/* Writes a VMCS back to memory, and makes the one current that was before. */
void rkvm_vmx_unload(u64 pa, u64 before)
{
	clear(pa);
	if (before != NO_VMCS && before != pa)
		load(before);
}

int rkvm_vmx_clear(u64 pa)
{
	return clear(pa);
}

int rkvm_vmx_invept(u64 type, u64 eptp)
{
	struct { u64 eptp, zero; } desc = { eptp, 0 };

	return VMX_OP("invept %0, %1", "m" (desc), "r" (type));
}

int rkvm_vmx_invvpid(u64 type, u16 vpid, u64 address)
{
	struct { u64 vpid, address; } desc = { vpid, address };

	return VMX_OP("invvpid %0, %1", "m" (desc), "r" (type));
}

/* Who turns VMX on */

/*
 * Kernels that let modules use what is exported to KVM: VMX operation is counted there, per CPU. On
 * others it is kvm_intel's, which has to be there before us and stays as long as we do.
 */
static struct file *kvm;

int rkvm_vmx_hold(void)
{
#ifndef RKVM_VIRT_REFS
	const struct module *owner;
	struct file *f = filp_open("/dev/kvm", O_RDWR | O_CLOEXEC, 0);

	if (IS_ERR(f))
		return PTR_ERR(f);
	/* The descriptor's operations are kvm_intel's; with them it is pinned. */
	owner = f->f_op->owner;
	if (!owner || strcmp(owner->name, "kvm_intel")) {
		fput(f);
		return -ENODEV;
	}
	kvm = f;
#endif
	return 0;
}

void rkvm_vmx_release(void)
{
	if (kvm)
		fput(kvm);
	kvm = NULL;
}

bool rkvm_vmx_own(void)
{
	return IS_ENABLED(CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS);
}

/* On this CPU, IRQs off. */
int rkvm_vmx_on(void)
{
	u64 pa;

#ifdef RKVM_VIRT_REFS
	int ret = x86_virt_get_ref(X86_FEATURE_VMX);

	if (ret)
		return ret;
#endif
	if (!(__read_cr4() & X86_CR4_VMXE) || current_vmcs(&pa))
		return -EIO;
	return 0;
}

void rkvm_vmx_off(void)
{
#ifdef RKVM_VIRT_REFS
	x86_virt_put_ref(X86_FEATURE_VMX);
#endif
}

/* NMIs can be delivered after an exit. */
bool rkvm_vmx_usable(void)
{
	return IS_ENABLED(CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS) ||
	       !cpu_feature_enabled(X86_FEATURE_FRED);
}

/* The host's state */

void rkvm_vmx_host_constant(struct rkvm_vmx_host *h)
{
	struct desc_ptr idt;

	h->cs = __KERNEL_CS;
	h->ss = __KERNEL_DS;
	h->tr = GDT_ENTRY_TSS * 8;
	store_idt(&idt);
	h->idt_base = idt.address;
	h->rip = (unsigned long)rkvm_vmx_exit;
	rdmsrq(MSR_EFER, h->efer);
	rdmsrq(MSR_IA32_CR_PAT, h->pat);
	rdmsrq(MSR_IA32_SYSENTER_CS, h->sysenter_cs);
	rdmsrq(MSR_IA32_SYSENTER_EIP, h->sysenter_eip);
	h->cr0 = read_cr0() & ~X86_CR0_TS;
}

void rkvm_vmx_host_cpu(struct rkvm_vmx_host *h)
{
	h->gs_base = cpu_kernelmode_gs_base(smp_processor_id());
	h->tr_base = (unsigned long)&get_cpu_entry_area(smp_processor_id())->tss.x86_tss;
	h->gdt_base = (unsigned long)get_current_gdt_ro();
	rdmsrq(MSR_IA32_SYSENTER_ESP, h->sysenter_esp);
}

void rkvm_vmx_host_task(struct rkvm_vmx_host *h)
{
	h->cr3 = __read_cr3();
	h->cr4 = __read_cr4();
	savesegment(ds, h->ds);
	savesegment(es, h->es);
	savesegment(fs, h->fs);
	savesegment(gs, h->gs);
	store_ldt(h->ldt);
	rdmsrq(MSR_FS_BASE, h->fs_base);
	rdmsrq(MSR_KERNEL_GS_BASE, h->user_gs_base);
}

/* Brings back what an exit has left otherwise than it was: limits, and segments of user space. */
void rkvm_vmx_host_restore(const struct rkvm_vmx_host *h)
{
	if (h->ldt)
		asm volatile("lldt %w0" : : "q" (h->ldt));
	if (unlikely(h->fs | h->gs | h->ds | h->es)) {
		if (h->gs)
			load_gs_index(h->gs);
		loadsegment(ds, h->ds);
		loadsegment(es, h->es);
		if (h->fs) {
			loadsegment(fs, h->fs);
			wrmsrq(MSR_FS_BASE, h->fs_base);
		}
	}
	wrmsrq(MSR_KERNEL_GS_BASE, h->user_gs_base);
	load_fixmap_gdt(smp_processor_id());
	/* The limit of TR is 0x67 now; whoever needs the I/O bitmap loads TR again. */
	this_cpu_write(__tss_limit_invalid, true);
}

void rkvm_vmx_host_syscall(struct rkvm_vmx_syscall *s)
{
	rdmsrq(MSR_STAR, s->star);
	rdmsrq(MSR_LSTAR, s->lstar);
	rdmsrq(MSR_CSTAR, s->cstar);
	rdmsrq(MSR_SYSCALL_MASK, s->sfmask);
}

/* Values that the guest may have: checked. Nothing else happens on this CPU until the host's are back. */
void rkvm_vmx_set_syscall(const struct rkvm_vmx_syscall *s, const struct rkvm_vmx_syscall *now)
{
	if (s->star != now->star)
		(void)wrmsrq_safe(MSR_STAR, s->star);
	if (s->lstar != now->lstar)
		(void)wrmsrq_safe(MSR_LSTAR, s->lstar);
	if (s->cstar != now->cstar)
		(void)wrmsrq_safe(MSR_CSTAR, s->cstar);
	if (s->sfmask != now->sfmask)
		(void)wrmsrq_safe(MSR_SYSCALL_MASK, s->sfmask);
}

u64 rkvm_vmx_get_kernel_gs(void)
{
	u64 v;

	rdmsrq(MSR_KERNEL_GS_BASE, v);
	return v;
}

void rkvm_vmx_set_kernel_gs(u64 v)
{
	(void)wrmsrq_safe(MSR_KERNEL_GS_BASE, v);
}

/* The guest's DR6, while a section lasts; the host's has no use between its own debug exceptions. */
u64 rkvm_vmx_get_dr6(void)
{
	unsigned long v;

	get_debugreg(v, 6);
	return v;
}

void rkvm_vmx_set_dr6(u64 v)
{
	set_debugreg((unsigned long)v, 6);
}

static bool apicv = true;
static bool apicv_in_use;

/* As of KVM's own parameter, what is read says what is so: on AMD, no. */
static int get_apicv(char *buffer, const struct kernel_param *kp)
{
	return scnprintf(buffer, PAGE_SIZE, "%c\n", apicv_in_use ? 'Y' : 'N');
}

static const struct kernel_param_ops apicv_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = param_set_bool,
	.get = get_apicv,
};

module_param_cb(apicv, &apicv_ops, &apicv, 0444);
MODULE_PARM_DESC(apicv, "VMX: the processor delivers interrupts to guests in x2APIC mode, and ends them, by itself where it can (default: yes)");

bool rkvm_vmx_apicv(bool possible)
{
	apicv_in_use = apicv && possible;
	return apicv_in_use;
}

bool rkvm_vmx_wants_l1d_flush(void)
{
	return boot_cpu_has_bug(X86_BUG_L1TF) && !cpu_mitigations_off();
}

/* Changes when the task has been switched from, or has had a page fault of its own or for its memory. */
u64 rkvm_vmx_task_events(void)
{
	return current->nvcsw + current->nivcsw + current->maj_flt + current->min_flt;
}

/*
 * The kernel's entry code sets the flag at each interrupt, where it is built with KVM for Intel; that
 * clears it, too, and flushes whenever it has changed tasks.
 */
bool rkvm_vmx_interrupted_since_flush(void)
{
#if IS_ENABLED(CONFIG_CPU_MITIGATIONS) && IS_ENABLED(CONFIG_KVM_INTEL)
	return kvm_get_cpu_l1tf_flush_l1d();
#else
	return true;
#endif
}

static void flushed(void)
{
#if IS_ENABLED(CONFIG_CPU_MITIGATIONS) && IS_ENABLED(CONFIG_KVM_INTEL)
	kvm_clear_cpu_l1tf_flush_l1d();
#endif
}

/* Where there is no command for it, the cache is filled with what is no secret. */
void rkvm_vmx_flush_l1d(const void *fill, size_t len)
{
	const volatile char *p = fill;

	flushed();
	if (boot_cpu_has(X86_FEATURE_FLUSH_L1D)) {
		wrmsrq(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
		return;
	}
	/* A line each; the length is a multiple of eight. */
	for (size_t i = 0; i + 512 <= len; i += 512) {
		(void)p[i];
		(void)p[i + 64];
		(void)p[i + 128];
		(void)p[i + 192];
		(void)p[i + 256];
		(void)p[i + 320];
		(void)p[i + 384];
		(void)p[i + 448];
	}
}
