// SPDX-License-Identifier: GPL-2.0

//! Whether this machine can, and turning SVM on and off on its CPUs.
//!
//! AMD APM vol. 2, 15.4 (enabling SVM), 15.30.1 (VM_CR), 15.30.4 (VM_HSAVE_PA); CPUID Fn8000_0001
//! and Fn8000_000A.

use super::check::Limits;
use super::msrpm::Iopm;
use super::npt;
use super::vmcb::Vmcb;
use crate::arch::x86::asid::Allocator;
use crate::arch::x86::backend::HwCaps;
use crate::arch::x86::insn::{self, msr};
use crate::arch::x86::model::regs::{cr4, efer};
use crate::host::hw_page::HwPage;
use crate::host::percpu::PerCpu;
use crate::host::rcu_slot::RcuSlot;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::prelude::*;
use kernel::sync::Arc;

/// VM_CR.SVMDIS: firmware has locked SVM out.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// Fn8000_000A EDX: what SVM offers.
mod feature {
    pub(super) const NP: u32 = 1 << 0;
    pub(super) const NRIPS: u32 = 1 << 3;
    pub(super) const TSC_RATE: u32 = 1 << 4;
    pub(super) const FLUSH_BY_ASID: u32 = 1 << 6;
    pub(super) const DECODE_ASSISTS: u32 = 1 << 7;
    pub(super) const PAUSE_FILTER: u32 = 1 << 10;
    pub(super) const VGIF: u32 = 1 << 16;
    pub(super) const SPEC_CTRL: u32 = 1 << 20;
}

/// What belongs to one CPU.
pub(super) struct HostCpu {
    /// VMRUN keeps the host's state here (VM_HSAVE_PA).
    hsave: HwPage<[u8; 4096]>,
    /// What VMLOAD brings back after an exit.
    pub(super) save: HwPage<Vmcb>,
    /// This CPU's address-space ids.
    pub(super) asids: Allocator,
    /// Which vCPU ran here last.
    pub(super) last: AtomicU64,
    /// SVM is on here, by us.
    enabled: AtomicBool,
}

/// What lives as long as the module, and as any vCPU.
pub(super) struct Host {
    /// By CPU.
    pub(super) cpus: PerCpu<HostCpu>,
    /// One map for all guests: every port exits.
    pub(super) iopm: HwPage<Iopm>,
    /// The address bit of encrypted memory, for addresses that hardware reads.
    pub(super) encryption: u64,
    /// A prediction barrier is wanted between different guests on a CPU.
    pub(super) barrier: bool,
    /// For the rules of VMRUN.
    pub(super) limits: Limits,
    /// What may be there, or not.
    pub(super) has: Optional,
}

/// What not every SVM has (CPUID Fn8000_000A EDX).
#[derive(Clone, Copy, Debug)]
pub(super) struct Optional {
    /// Exits carry the address of the next instruction.
    pub(super) next_rip: bool,
    /// Exits carry instruction bytes or decoded operands.
    pub(super) decode_assists: bool,
    /// One address space can be flushed alone.
    pub(super) flush_by_asid: bool,
    /// The guest's TSC can be scaled.
    pub(super) tsc_scaling: bool,
    /// The guest's SPEC_CTRL is switched by the hardware.
    pub(super) v_spec_ctrl: bool,
    /// A virtual GIF. rkvm has no use for it, but it tells QEMU's TCG, which has one, from Bochs: see
    /// `inject_virtual` in `vcpu/events.rs`.
    pub(super) v_gif: bool,
}

static HOST: RcuSlot<Host> = RcuSlot::new();

/// What [`setup`] has made.
pub(super) fn host() -> Result<Arc<Host>> {
    HOST.get().ok_or(ENODEV)
}

/// CPUID Fn8000_0001 ECX bit 2.
pub(super) fn present() -> bool {
    insn::cpuid(0x8000_0000, 0).eax >= 0x8000_000a && insn::cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0
}

/// Checks the machine and allocates what the CPUs need.
pub(super) fn setup() -> Result<HwCaps> {
    if !present() {
        pr_err!("this processor has no SVM (or it is hidden from this virtual machine)\n");
        return Err(ENODEV);
    }
    let svm = insn::cpuid(0x8000_000a, 0);
    let has = |f: u32| svm.edx & f != 0;
    if !has(feature::NP) {
        pr_err!("this processor's SVM has no nested paging, which rkvm needs\n");
        return Err(ENODEV);
    }
    // Hypervisors below us need not have VM_CR.
    if insn::rdmsr(msr::VM_CR).unwrap_or(0) & VM_CR_SVMDIS != 0 {
        pr_err!("SVM is disabled by firmware: enable it (\"SVM mode\") in the firmware's setup\n");
        return Err(ENODEV);
    }
    refuse_if_on(insn::rdmsr(msr::EFER)?)?;

    let size = insn::cpuid(0x8000_0008, 0).eax;
    let encryption = insn::encryption_mask();
    npt::set_encryption_mask(encryption);
    let mut iopm = HwPage::<Iopm>::new()?;
    iopm.set_all();
    let cpus = PerCpu::new(|_| {
        Ok(HostCpu {
            hsave: HwPage::new()?,
            save: HwPage::new()?,
            asids: Allocator::new(),
            last: AtomicU64::new(0),
            enabled: AtomicBool::new(false),
        })
    })?;
    let limits = Limits {
        phys_bits: size & 0xff,
        asids: svm.ebx,
    };
    let host = Host {
        cpus,
        iopm,
        encryption,
        barrier: insn::wants_barriers(),
        limits,
        has: Optional {
            next_rip: has(feature::NRIPS),
            decode_assists: has(feature::DECODE_ASSISTS),
            flush_by_asid: has(feature::FLUSH_BY_ASID),
            tsc_scaling: has(feature::TSC_RATE),
            v_spec_ctrl: has(feature::SPEC_CTRL),
            v_gif: has(feature::VGIF),
        },
    };
    HOST.set(Arc::new(host, GFP_KERNEL)?)?;

    Ok(HwCaps {
        // CPUID Fn8000_0001 EDX bit 26: 1 GiB pages.
        stage2_1g: insn::cpuid(0x8000_0001, 0).edx & 1 << 26 != 0,
        // Nested tables have the host's number of levels (15.25.3).
        stage2_levels: if host_la57() { 5 } else { 4 },
        pause_filter: has(feature::PAUSE_FILTER),
        // No intercept keeps them from guests.
        rdtscp: true,
        // TSC_RATIO is kept at 1 so far.
        tsc_scaling: None,
        logs_writes: false,
        invpcid: true,
    })
}

fn host_la57() -> bool {
    insn::cr4() & cr4::LA57 != 0
}

/// SVM may have one owner: kvm_amd turns it on when its module is loaded.
fn refuse_if_on(e: u64) -> Result {
    if e & efer::SVME == 0 {
        return Ok(());
    }
    pr_err!("another hypervisor holds SVM: unload it first (rmmod kvm_amd)\n");
    Err(EBUSY)
}

/// Turns SVM on, here.
pub(super) fn enable_cpu() -> Result {
    let host = host()?;
    let (_, cpu) = host.cpus.current().ok_or(ENODEV)?;
    let e = insn::rdmsr(msr::EFER)?;
    if !cpu.enabled.load(Relaxed) {
        refuse_if_on(e)?;
    }
    if e & efer::SVME == 0 {
        insn::set_svme(true)?;
    }
    if let Err(e) = insn::set_host_save(Some(&cpu.hsave)) {
        let _ = insn::set_svme(false);
        return Err(e);
    }
    cpu.asids
        .restart(insn::cpuid(0x8000_000a, 0).ebx.saturating_sub(1));
    cpu.enabled.store(true, Relaxed);
    Ok(())
}

/// Turns SVM off, here.
pub(super) fn disable_cpu() {
    let Ok(host) = host() else { return };
    let Some((_, cpu)) = host.cpus.current() else {
        return;
    };
    if !cpu.enabled.swap(false, Relaxed) {
        return;
    }
    // After a crash or reboot has turned it off, VM_HSAVE_PA cannot be written; nor need it.
    if insn::rdmsr(msr::EFER).is_ok_and(|e| e & efer::SVME != 0) {
        let _ = insn::set_host_save(None);
        let _ = insn::set_svme(false);
    }
}

/// Frees what [`setup`] made.
pub(super) fn teardown() {
    drop(HOST.take());
}
