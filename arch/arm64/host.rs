// SPDX-License-Identifier: GPL-2.0

//! What the host offers, found out once when the module loads; and what belongs to each of its CPUs.

use super::{
    insn,
    model::{stage2, sysreg::Sysreg},
};
use crate::{bindings as rb, host::percpu::PerCpu};
use core::sync::atomic::AtomicU64;
use kernel::{
    id_pool::IdPool,
    new_mutex,
    prelude::*,
    sync::{Mutex, SetOnce},
};

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
    /// The frequency of the counter, in Hz.
    pub(crate) counter_hz: u64,
    /// Interrupts that the host has for us.
    pub(crate) irqs: rb::rkvm_arm64_irqs,
    /// By CPU: which vCPU ran there last, as [`super::vcpu::Vcpu`] numbers them.
    pub(crate) last: PerCpu<AtomicU64>,
    /// VMIDs in use.
    pub(crate) vmids: Pin<KBox<Mutex<IdPool>>>,
}

static HOST: SetOnce<Host> = SetOnce::new();

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
                "no GICv3 with a maintenance interrupt and no virtual timer in the device tree\n"
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
        let pool = IdPool::with_capacity(if wide_vmid { 1 << 16 } else { 1 << 8 }, GFP_KERNEL)?;
        let vmids = KBox::pin_init(new_mutex!(pool, "rkvm::Host::vmids"), GFP_KERNEL)?;
        HOST.populate(Host {
            pa_bits,
            pa_range: range.min(5),
            wide_vmid,
            access_flags,
            hcrx: field(mmfr1, 40) >= 1,
            ras: field(insn::ftr(Sysreg::ID_AA64PFR0_EL1), 28) >= 1,
            counter_hz: insn::counter_frequency().max(1),
            irqs,
            last,
            vmids,
        });
        Self::get()
    }
}
