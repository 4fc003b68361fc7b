// SPDX-License-Identifier: GPL-2.0

//! What the host offers, found out once when the module loads; and what belongs to each of its CPUs.

use super::{
    errata, insn,
    model::{
        debug,
        harden::{self, Exit, Worst},
        idreg,
        smccc::{Mitigation, Mitigations},
        stage2,
        sve::Lengths,
        sysreg::Sysreg,
    },
    pmu::vm::HostPmus,
    vmid::Vmids,
};
use crate::{bindings as rb, host::percpu::PerCpu};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use kernel::{prelude::*, sync::SetOnce};

/// The host, as guests can see of it.
pub(crate) struct Host {
    /// Width of a physical address, at most what stage 2 can have without LPA2.
    pub(crate) pa_bits: u32,
    /// ID_AA64MMFR0_EL1.PARange, for VTCR_EL2.PS.
    pub(crate) pa_range: u64,
    /// VMIDs have 16 bits, not 8.
    pub(crate) wide_vmid: bool,
    /// Hardware sets access flags at stage 2.
    pub(crate) access_flags: bool,
    /// HCRX_EL2 exists.
    pub(crate) hcrx: bool,
    /// RAS: HCR_EL2.TERR, TEA
    pub(crate) ras: bool,
    /// No more of it than FEAT_RAS: ID_AA64PFR1_EL1.RAS_frac has a meaning.
    pub(crate) ras_1_0: bool,
    /// Fine-grained traps: HFGRTR_EL2 and others exist.
    pub(crate) fgt: bool,
    /// HCR_EL2.TID4 exists (FEAT_EVT).
    pub(crate) tid4: bool,
    /// TCR2_EL1, SCTLR2_EL1, PIR_EL1 and PIRE0_EL1 exist, and HCRX_EL2 gives them to guests.
    pub(crate) later: bool,
    /// FPMR exists, and HCRX_EL2 gives it to guests.
    pub(crate) fpmr: bool,
    /// HCR_EL2.TTLBOS exists (FEAT_EVT).
    pub(crate) ttlbos: bool,
    /// HCR_EL2.TID5 exists (FEAT_MTE2).
    pub(crate) tid5: bool,
    /// EL0 runs AArch32.
    pub(crate) aarch32_el0: bool,
    /// So does EL1, on all CPUs.
    pub(crate) aarch32_el1: bool,
    /// Pointer authentication of addresses and generic, as KVM wants it.
    pub(crate) pauth: bool,
    sve: bool,
    /// PSTATE.SSBS
    ssbs: bool,
    /// Breakpoints and watchpoints that all CPUs have.
    pub(crate) debug: (u8, u8),
    /// The frequency of the counter, in Hz.
    pub(crate) counter_hz: u64,
    /// Interrupts that the host has for us.
    pub(crate) irqs: rb::rkvm_arm64_irqs,
    /// By CPU: which vCPU ran there last, as [`super::vcpu::Vcpu`] numbers them.
    pub(crate) last: PerCpu<AtomicU64>,
    /// PMUs of its CPUs.
    pub(crate) pmus: HostPmus,
    /// The hardware's VMIDs.
    pub(crate) vmids: Pin<KBox<Vmids>>,
}

static HOST: SetOnce<Host> = SetOnce::new();
/// Vector lengths that all CPUs have, and that any has: see [`Host::add_cpu`].
static LENGTHS_ALL: AtomicU16 = AtomicU16::new(u16::MAX);
static LENGTHS_ANY: AtomicU16 = AtomicU16::new(0);

/// What CPUs need against speculation, the worst of it ([`Worst::bits`]); how their guests exit, a bit each.
static WORST: AtomicU32 = AtomicU32::new(Worst::BEST.bits());
static EXITS: AtomicU32 = AtomicU32::new(0);

const fn field(v: u64, shift: u32) -> u64 {
    v >> shift & 0xf
}

/// PARange as a number of bits (Arm ARM D24, ID_AA64MMFR0_EL1).
fn pa_bits(range: u64) -> u32 {
    match range {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => stage2::MAX_IPA_BITS,
    }
}

impl Host {
    /// What was found out at load.
    ///
    /// # Errors
    /// `ENODEV` before that; no descriptor exists then.
    #[inline]
    pub(crate) fn get() -> Result<&'static Host> {
        HOST.as_ref().ok_or(ENODEV)
    }

    /// This CPU is to run guests: notes what CPUs may differ in, and how its guests exit. IRQs are off.
    ///
    /// # Errors
    /// `EINVAL`, `ENODEV`: the module's parameter asks for an exit that there is not.
    pub(crate) fn add_cpu() -> Result {
        let cpu = insn::this_cpu();
        let found = cpu.look();
        errata::add_cpu(cpu.midr, insn::mpidr());
        let wanted = insn::exit_wanted();
        let vectors = wanted.unwrap_or(found.exit.vectors());
        insn::set_exit(vectors)
            .inspect_err(|_| pr_err!("exit_vectors: no such way on this computer\n"))?;
        EXITS.fetch_or(1u32.checked_shl(vectors).unwrap_or(0), Ordering::Relaxed);
        let told = match wanted {
            Some(0) => harden::Cpu { off: true, ..cpu }.look(),
            _ => found,
        };
        let and = |bits| Some(Worst::from_bits(bits).and(&told).bits());
        // It always has a next value.
        let _ = WORST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, and);
        if HOST.as_ref().is_some_and(|h| h.sve) {
            let here = insn::sve_lengths();
            LENGTHS_ALL.fetch_and(here, Ordering::Relaxed);
            LENGTHS_ANY.fetch_or(here, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What is done against speculation, as guests are told.
    pub(crate) fn mitigations(&self) -> Mitigations {
        let worst = Worst::from_bits(WORST.load(Ordering::Relaxed));
        let [branch_predictor, store_bypass, branch_history] = worst.all();
        Mitigations {
            branch_predictor,
            store_bypass,
            branch_history,
            ssbs: self.ssbs,
        }
    }

    /// Says what there is about this computer.
    pub(crate) fn log(&self) {
        let m = self.mitigations();
        let word = |m: Mitigation| match m {
            Mitigation::Unaffected => "not affected",
            Mitigation::Mitigated => "mitigated",
            Mitigation::Vulnerable => "vulnerable",
        };
        pr_info!(
            "Spectre v2: {}, v4: {}, BHB: {}\n",
            word(m.branch_predictor),
            word(m.store_bypass),
            word(m.branch_history)
        );
        let exits = EXITS.load(Ordering::Relaxed);
        for (n, e) in (0..32).filter_map(|n| Some((n, Exit::of_vectors(n)?))) {
            if exits & 1 << n == 0 {
                continue;
            }
            match e {
                Exit::Plain => {}
                Exit::ClearHistory => pr_info!("a guest's exit clears the branch history\n"),
                Exit::Workaround1 => pr_info!("a guest's exit calls SMCCC_ARCH_WORKAROUND_1\n"),
                Exit::Workaround3 => pr_info!("a guest's exit calls SMCCC_ARCH_WORKAROUND_3\n"),
                Exit::Loop(n) => pr_info!("a guest's exit takes {n} branches\n"),
            }
        }
    }

    /// SVE's vector lengths that guests can have: none without SVE.
    pub(crate) fn sve_lengths(&self) -> Lengths {
        if self.sve {
            Lengths::offered(
                LENGTHS_ALL.load(Ordering::Relaxed),
                LENGTHS_ANY.load(Ordering::Relaxed),
            )
        } else {
            Lengths::default()
        }
    }

    /// Features of `KVM_ARM_VCPU_INIT` that there are.
    pub(crate) fn features(&self) -> u32 {
        let when = |on: bool, bits: u32| if on { bits } else { 0 };
        1 << rb::KVM_ARM_VCPU_POWER_OFF
            | 1 << rb::KVM_ARM_VCPU_PSCI_0_2
            | when(self.aarch32_el1, 1 << rb::KVM_ARM_VCPU_EL1_32BIT)
            | when(
                self.pauth,
                1 << rb::KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << rb::KVM_ARM_VCPU_PTRAUTH_GENERIC,
            )
            | when(
                self.pmus.any(),
                1 << rb::KVM_ARM_VCPU_PMU_V3 | 1 << rb::KVM_ARM_VCPU_PMU_V3_STRICT,
            )
            | when(self.sve_lengths().max() > 0, 1 << rb::KVM_ARM_VCPU_SVE)
    }

    /// Looks at the hardware.
    ///
    /// # Errors
    /// `ENODEV`: no EL2 that this kernel may use; the reason is logged.
    pub(crate) fn find_out() -> Result<&'static Host> {
        if let Some(h) = HOST.as_ref() {
            return Ok(h);
        }
        if !insn::in_hyp() {
            pr_err!("the kernel does not run at EL2: rkvm needs a CPU with VHE (Armv8.1), and firmware that starts the kernel at EL2\n");
            pr_err!("inside a virtual machine: give it EL2, e.g. QEMU's -M virt,virtualization=on -cpu max\n");
            return Err(ENODEV);
        }
        let mut irqs = rb::rkvm_arm64_irqs::default();
        insn::find_irqs(&mut irqs).inspect_err(|_| {
            pr_err!(
                "no GICv3 with a maintenance interrupt and no virtual timer, by ACPI or the device tree\n"
            );
        })?;
        let mmfr0 = insn::ftr(Sysreg::ID_AA64MMFR0_EL1);
        if !matches!(field(mmfr0, 40), 2 | 3) && field(mmfr0, 28) == 0xf {
            pr_err!("the CPU has no 4 KiB granule at stage 2\n");
            return Err(ENODEV);
        }
        let (mmfr1, range) = (insn::ftr(Sysreg::ID_AA64MMFR1_EL1), field(mmfr0, 0));
        let pa_bits = pa_bits(range).min(stage2::MAX_IPA_BITS);
        let access_flags = field(mmfr1, 0) >= 1;
        stage2::set_format(
            field(insn::ftr(Sysreg::ID_AA64MMFR2_EL1), 40) >= 1,
            access_flags,
        );
        let last = PerCpu::new(|_| Ok(AtomicU64::new(0)))?;
        let wide_vmid = field(mmfr1, 4) == 2;
        let vmids = Vmids::new(if wide_vmid { 1 << 16 } else { 1 << 8 })?;
        let (pfr0, mmfr3) = (
            insn::ftr(Sysreg::ID_AA64PFR0_EL1),
            insn::ftr(Sysreg::ID_AA64MMFR3_EL1),
        );
        let pmus = HostPmus::find_out(insn::ftr(Sysreg::ID_AA64DFR0_EL1))?;
        let isar = [Sysreg::ID_AA64ISAR1_EL1, Sysreg::ID_AA64ISAR2_EL1].map(insn::ftr);
        let hcrx = field(mmfr1, 40) >= 1;
        let evt = field(insn::ftr(Sysreg::ID_AA64MMFR2_EL1), 56);
        let ras = field(pfr0, 28);
        HOST.populate(Host {
            pa_bits,
            pa_range: range.min(5),
            wide_vmid,
            access_flags,
            hcrx,
            ras: ras >= 1,
            ras_1_0: ras == 1,
            fgt: field(mmfr0, 56) >= 1,
            tid4: evt >= 1,
            later: hcrx && field(mmfr3, 0) >= 1 && field(mmfr3, 4) >= 1 && field(mmfr3, 8) >= 1,
            fpmr: hcrx && field(insn::ftr(Sysreg::ID_AA64PFR2_EL1), 32) >= 1,
            ttlbos: evt >= 2,
            tid5: field(insn::ftr(Sysreg::ID_AA64PFR1_EL1), 8) >= 2,
            aarch32_el0: field(pfr0, 0) >= 2,
            aarch32_el1: field(pfr0, 4) >= 2,
            pauth: idreg::has_pauth(isar[0], isar[1]),
            sve: field(pfr0, 32) >= 1,
            ssbs: field(insn::ftr(Sysreg::ID_AA64PFR1_EL1), 4) >= 1,
            debug: debug::counts(insn::ftr(Sysreg::ID_AA64DFR0_EL1)),
            counter_hz: insn::counter_frequency().max(1),
            irqs,
            last,
            pmus,
            vmids,
        });
        Self::get()
    }
}
