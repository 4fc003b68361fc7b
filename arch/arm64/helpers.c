// SPDX-License-Identifier: GPL-2.0
/*
 * C helpers of arch/arm64: the guest-entry glue that must not be instrumented, and what the kernel
 * offers only to C: alternatives, its view of the CPUs' features, interrupts of the firmware's tables.
 */

#include <linux/acpi.h>
#include <linux/arm-smccc.h>
#include <linux/cpu.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/kvm_host.h>
#include <linux/moduleparam.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>
#include <linux/perf/arm_pmu.h>
#include <linux/perf/arm_pmuv3.h>
#include <linux/perf_event.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>
#include <linux/stddef.h>
#include <asm/arch_gicv3.h>
#include <asm/cacheflush.h>
#include <asm/cpufeature.h>
#include <asm/kvm_arm.h>
#include <asm/neon.h>
#include <asm/virt.h>

#include "guest_entry.h"
#include "helpers_arm64.h"

static_assert(offsetof(struct rkvm_arm64_run, sp_el0) == RKVM_ARM64_SP_EL0);
static_assert(offsetof(struct rkvm_arm64_run, pc) == RKVM_ARM64_PC);
static_assert(offsetof(struct rkvm_arm64_run, pstate) == RKVM_ARM64_PSTATE);
static_assert(offsetof(struct rkvm_arm64_run, esr) == RKVM_ARM64_ESR);
static_assert(offsetof(struct rkvm_arm64_run, far) == RKVM_ARM64_FAR);
static_assert(offsetof(struct rkvm_arm64_run, hpfar) == RKVM_ARM64_HPFAR);
static_assert(offsetof(struct rkvm_arm64_run, flags) == RKVM_ARM64_FLAGS);
static_assert(offsetof(struct rkvm_arm64_run, guest_keys) == RKVM_ARM64_GUEST_KEYS);
static_assert(offsetof(struct rkvm_arm64_run, host_keys) == RKVM_ARM64_HOST_KEYS);

/* The host's vectors, for entry code that meets an exception of its own. */
unsigned long rkvm_arm64_host_vbar;

void rkvm_arm64_unexpected(void);
void rkvm_arm64_unexpected(void)
{
	panic("rkvm: exception in the entry code: ESR %llx ELR %llx FAR %llx\n",
	      read_sysreg(esr_el1), read_sysreg(elr_el1), read_sysreg(far_el1));
}

/* What this CPU's exits begin with. A module's per-CPU data has one section: none that is read mostly. */
static DEFINE_PER_CPU(unsigned long, vectors);
extern const char rkvm_arm64_vectors[];

int rkvm_arm64_set_vectors(u32 n)
{
	if (n >= RKVM_ARM64_VECTORS)
		return -EINVAL;
	/* SMC is undefined without firmware to take it. */
	if ((n == RKVM_ARM64_VECTORS_SMC1 || n == RKVM_ARM64_VECTORS_SMC3) &&
	    arm_smccc_1_1_get_conduit() != SMCCC_CONDUIT_SMC)
		return -ENODEV;
	__this_cpu_write(vectors, (unsigned long)rkvm_arm64_vectors + n * RKVM_ARM64_VECTORS_BYTES);
	return 0;
}

/* The firmware's answer about a function. False: there is no firmware that could be asked. */
bool rkvm_arm64_firmware(u32 function, s32 *x0)
{
	struct arm_smccc_res res;

	if (arm_smccc_1_1_get_conduit() != SMCCC_CONDUIT_SMC)
		return false;
	arm_smccc_1_1_smc(ARM_SMCCC_ARCH_FEATURES_FUNC_ID, function, &res);
	*x0 = (s32)res.a0;
	return true;
}

bool rkvm_arm64_mitigations_off(void)
{
	return cpu_mitigations_off();
}

static int exit_vectors = -1;
module_param(exit_vectors, int, 0444);
MODULE_PARM_DESC(exit_vectors, "arm64: what a guest's exits do against its training of predictors: -1 what each CPU needs, 0 nothing, else a number of Documentation/security.md");

int rkvm_arm64_vectors_wanted(void)
{
	return exit_vectors;
}

noinstr int rkvm_arm64_enter(struct rkvm_arm64_run *run)
{
	int ret;

	rkvm_guest_begins();

	/* With pseudo-NMIs, interrupts are off by priority: the guest must be left for each. */
	if (system_uses_irq_prio_masking())
		gic_write_pmr(GIC_PRIO_IRQON | GIC_PRIO_PSR_I_SET);
	ret = rkvm_arm64_vcpu_run(run, raw_cpu_read(vectors));
	if (system_uses_irq_prio_masking())
		gic_write_pmr(GIC_PRIO_IRQOFF);

	rkvm_guest_ends();
	return ret;
}

void rkvm_arm64_fpu_begin(void)
{
	kernel_neon_begin(NULL);
}

void rkvm_arm64_fpu_end(void)
{
	kernel_neon_end(NULL);
}

bool rkvm_arm64_in_hyp(void)
{
	rkvm_arm64_host_vbar = read_sysreg(vbar_el1);
	return is_kernel_in_hyp_mode();
}

u64 rkvm_arm64_ftr(u32 sysreg)
{
	return read_sanitised_ftr_reg(sysreg);
}

/* The guest may read this memory with caches off. */
void rkvm_arm64_clean_poc(u64 pa, u64 size)
{
	u64 line = 4UL << SYS_FIELD_GET(CTR_EL0, DminLine, read_sanitised_ftr_reg(SYS_CTR_EL0));
	unsigned long p = (unsigned long)phys_to_virt(pa) & ~(line - 1);
	unsigned long end = (unsigned long)phys_to_virt(pa) + size;

	for (; p < end; p += line)
		asm volatile("dc civac, %0" : : "r" (p) : "memory");
	dsb(sy);
}

/* The guest may execute what the host wrote here. */
void rkvm_arm64_sync_icache(u64 pa, u64 size)
{
	unsigned long p = (unsigned long)phys_to_virt(pa);

	caches_clean_inval_pou(p, p + size);
}

void rkvm_arm64_random(u64 *words, size_t n)
{
	get_random_bytes(words, n * sizeof(*words));
}

u64 rkvm_arm64_run_delay(void)
{
	return READ_ONCE(current->sched_info.run_delay);
}

bool rkvm_arm64_clock(u64 *ns, u64 *count)
{
	struct system_time_snapshot now;

	ktime_get_snapshot_id(CLOCK_REALTIME, &now);
	*ns = ktime_to_ns(now.systime);
	*count = now.cycles;
	return now.valid && now.cs_id == CSID_ARM_ARCH_COUNTER;
}

/*
 * Each length that ZCR_EL2 is asked for gives the next shorter one that there is. SVE is usable in the
 * kernel; the user's registers, which a shorter vector would cut, are put away first.
 */
u16 rkvm_arm64_sve_lengths(void)
{
	unsigned long flags;
	u16 lengths = 0;
	u64 zcr, quads;
	int i;

	local_irq_save(flags);
	kernel_neon_begin(NULL);
	zcr = read_sysreg_s(SYS_ZCR_EL1);
	for (i = 15; i >= 0; i--) {
		write_sysreg_s(i, SYS_ZCR_EL1);
		isb();
		quads = rkvm_arm64_rdvl();
		if (quads >= 1 && quads <= 16)
			lengths |= BIT(quads - 1);
	}
	write_sysreg_s(zcr, SYS_ZCR_EL1);
	isb();
	kernel_neon_end(NULL);
	local_irq_restore(flags);
	return lengths;
}

/* Interrupts of the host */

static DEFINE_PER_CPU(int, irq_cookie);
static struct rkvm_arm64_irqs requested;

/*
 * The guest's timer or its interrupt controller wants attention: that it has left the guest is all.
 * Both lines fall when the vCPU's state is taken off the CPU.
 */
static irqreturn_t nudge(int irq, void *cookie)
{
	return IRQ_HANDLED;
}

static u32 percpu_irq(struct device_node *np, int index, u32 *intid)
{
	u32 irq = irq_of_parse_and_map(np, index);
	struct irq_data *d = irq ? irq_get_irq_data(irq) : NULL;

	if (d && intid)
		*intid = irqd_to_hwirq(d);
	return irq;
}

#ifdef CONFIG_ACPI
/* The same number as the drivers of timer and GIC have: a GSI that is mapped stays as it is. */
static u32 acpi_irq(u32 gsi, bool edge, bool low)
{
	int irq = acpi_register_gsi(NULL, gsi, edge ? ACPI_EDGE_SENSITIVE : ACPI_LEVEL_SENSITIVE,
				    low ? ACPI_ACTIVE_LOW : ACPI_ACTIVE_HIGH);

	return irq > 0 ? irq : 0;
}

/* MADT: the maintenance interrupt, on which all CPUs have to agree, of a GICv3. */
static void acpi_maintenance(struct acpi_table_madt *madt, struct rkvm_arm64_irqs *irqs)
{
	char *p = (char *)(madt + 1), *end = (char *)madt + madt->header.length;
	bool found = false, same = true, edge = false, redist = false;
	u32 gsi = 0, version = 0;

	while (end - p >= (long)sizeof(struct acpi_subtable_header)) {
		struct acpi_subtable_header *h = (void *)p;

		if (h->length < sizeof(*h) || h->length > end - p)
			return;
		if (h->type == ACPI_MADT_TYPE_GENERIC_DISTRIBUTOR &&
		    h->length >= sizeof(struct acpi_madt_generic_distributor)) {
			version = ((struct acpi_madt_generic_distributor *)h)->version;
		} else if (h->type == ACPI_MADT_TYPE_GENERIC_REDISTRIBUTOR) {
			redist = true;
		} else if (h->type == ACPI_MADT_TYPE_GENERIC_INTERRUPT &&
			   h->length >= ACPI_OFFSET(struct acpi_madt_generic_interrupt, efficiency_class)) {
			struct acpi_madt_generic_interrupt *c = (void *)h;
			bool is_edge = c->flags & ACPI_MADT_VGIC_IRQ_MODE;

			if (c->flags & (ACPI_MADT_ENABLED | ACPI_MADT_GICC_ONLINE_CAPABLE)) {
				if (found && (gsi != c->vgic_interrupt || edge != is_edge))
					same = false;
				found = true;
				gsi = c->vgic_interrupt;
				edge = is_edge;
				redist |= c->gicr_base_address != 0;
			}
		}
		p += h->length;
	}
	/* 0: it is to be found out; only GICv3 and later have redistributors. */
	irqs->gic_v3 = version >= 3 || (!version && redist);
	if (irqs->gic_v3 && same && gsi)
		irqs->maintenance = acpi_irq(gsi, edge, false);
}

static void acpi_find_irqs(struct rkvm_arm64_irqs *irqs)
{
	struct acpi_table_header *table;
	struct irq_data *d;

	if (acpi_disabled)
		return;
	if (ACPI_SUCCESS(acpi_get_table(ACPI_SIG_GTDT, 0, &table))) {
		struct acpi_table_gtdt *gtdt = (void *)table;
		u32 flags = gtdt->virtual_timer_flags;

		irqs->vtimer = acpi_irq(gtdt->virtual_timer_interrupt, flags & ACPI_GTDT_INTERRUPT_MODE,
					flags & ACPI_GTDT_INTERRUPT_POLARITY);
		d = irqs->vtimer ? irq_get_irq_data(irqs->vtimer) : NULL;
		if (d)
			irqs->vtimer_intid = irqd_to_hwirq(d);
		acpi_put_table(table);
	}
	if (ACPI_SUCCESS(acpi_get_table(ACPI_SIG_MADT, 0, &table))) {
		acpi_maintenance((void *)table, irqs);
		acpi_put_table(table);
	}
}
#else
static void acpi_find_irqs(struct rkvm_arm64_irqs *irqs)
{
}
#endif

int rkvm_arm64_find_irqs(struct rkvm_arm64_irqs *irqs)
{
	struct device_node *np;

	*irqs = (struct rkvm_arm64_irqs){};
	acpi_find_irqs(irqs);
	if (irqs->vtimer && irqs->maintenance)
		return 0;
	np = of_find_compatible_node(NULL, NULL, "arm,armv8-timer");
	if (np) {
		/* Secure physical, physical, virtual, hypervisor. */
		irqs->vtimer = percpu_irq(np, 2, &irqs->vtimer_intid);
		of_node_put(np);
	}
	np = of_find_compatible_node(NULL, NULL, "arm,gic-v3");
	if (np) {
		irqs->gic_v3 = 1;
		irqs->maintenance = percpu_irq(np, 0, NULL);
		of_node_put(np);
	}
	return irqs->vtimer && irqs->maintenance ? 0 : -ENODEV;
}

/* The chip that can make the virtual timer's interrupt active, and what it knows it by; NULL: ask the kernel. */
static struct irq_data *vtimer_data;

static void find_vtimer_data(void)
{
	struct irq_data *d = irq_get_irq_data(requested.vtimer);

	if (d && (!d->chip->irq_set_irqchip_state || d->chip->irq_bus_lock))
		d = NULL;
	vtimer_data = d;
}

int rkvm_arm64_request_irqs(const struct rkvm_arm64_irqs *irqs)
{
	int ret = request_percpu_irq(irqs->vtimer, nudge, "rkvm-vtimer", &irq_cookie);

	if (ret)
		return ret;
	ret = request_percpu_irq(irqs->maintenance, nudge, "rkvm-vgic", &irq_cookie);
	if (ret) {
		free_percpu_irq(irqs->vtimer, &irq_cookie);
		return ret;
	}
	requested = *irqs;
	find_vtimer_data();
	return 0;
}

void rkvm_arm64_free_irqs(void)
{
	free_percpu_irq(requested.vtimer, &irq_cookie);
	free_percpu_irq(requested.maintenance, &irq_cookie);
}

void rkvm_arm64_irqs_on(void)
{
	enable_percpu_irq(requested.vtimer, irq_get_trigger_type(requested.vtimer));
	enable_percpu_irq(requested.maintenance, irq_get_trigger_type(requested.maintenance));
}

void rkvm_arm64_irqs_off(void)
{
	disable_percpu_irq(requested.vtimer);
	disable_percpu_irq(requested.maintenance);
}

/*
 * The host does not take the guest's timer as long as it is active; the guest's EOI ends that. The kernel would look for
 * the chip each time, and lock the interrupt's descriptor, of which this CPU's own state is no part.
 */
int rkvm_arm64_vtimer_active(bool active)
{
	struct irq_data *d = vtimer_data;

	if (d)
		return d->chip->irq_set_irqchip_state(d, IRQCHIP_STATE_ACTIVE, active);
	return irq_set_irqchip_state(requested.vtimer, IRQCHIP_STATE_ACTIVE, active);
}

/*
 * The kernel tells modules of no PMU, but an event that is made of a number of the CPU's own has found it: only a
 * struct arm_pmu takes such on arm64.
 */
int rkvm_arm64_find_pmu(u32 cpu, struct rkvm_arm64_pmu *out)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_RAW,
		.size = sizeof(attr),
		.config = ARMV8_PMUV3_PERFCTR_CPU_CYCLES,
		.disabled = 1,
	};
	struct perf_event *event;
	struct arm_pmu *pmu;
	u32 lo[2], hi[2];
	int ret = -ENODEV;

	/* perf refuses what goes offline in the meantime. */
	if (!IS_ENABLED(CONFIG_ARM_PMUV3) || !cpu_online(cpu))
		return -ENODEV;
	event = perf_event_create_kernel_counter(&attr, cpu, NULL, NULL, NULL);
	if (IS_ERR(event))
		return PTR_ERR(event);
	pmu = to_arm_pmu(event->pmu);
	/* PMUs that are not Arm's, and say nothing of PMUv3, are no use. */
	if (pmuv3_implemented(pmu->pmuver) && !pmu->map_pmuv3_event &&
	    cpumask_test_cpu(cpu, &pmu->supported_cpus)) {
		bitmap_to_arr32(lo, pmu->pmceid_bitmap, ARMV8_PMUV3_MAX_COMMON_EVENTS);
		bitmap_to_arr32(hi, pmu->pmceid_ext_bitmap, ARMV8_PMUV3_MAX_COMMON_EVENTS);
		*out = (struct rkvm_arm64_pmu) {
			.pmceid = { (u64)hi[0] << 32 | lo[0], (u64)hi[1] << 32 | lo[1] },
			.type = event->pmu->type,
			.version = pmu->pmuver,
			.counters = bitmap_weight(pmu->cntr_mask, 31),
			.slots = pmu->reg_pmmir & 0xff,
		};
		ret = 0;
	}
	perf_event_release_kernel(event);
	return ret;
}
