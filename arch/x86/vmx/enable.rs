// SPDX-License-Identifier: GPL-2.0

//! Whether this machine can, and who turns VMX on.
//!
//! Intel SDM vol. 3C 25.6 to 25.8 (discovering and enabling VMX), vol. 3D appendix A.
//!
//! CR4.VMXE is the kernel's to set, and what it has for that is for KVM only. Where the kernel lets
//! other modules use it all the same (MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS), it counts our reference
//! beside in-tree KVM's. On other kernels in-tree kvm_intel has to be loaded: it keeps VMX on, on every
//! CPU, for as long as it is loaded, and our hold on it lasts as long as we do.

use super::check::Limits;
use super::controls::{self, proc2, Msrs, Plan, Without};
use super::entry::{self, HostState};
use super::l1d::L1d;
use crate::arch::x86::asid::Allocator;
use crate::arch::x86::backend::HwCaps;
use crate::arch::x86::insn::{self, msr};
use crate::arch::x86::model::clock::TscScaling;
use crate::arch::x86::model::regs::cr4;
use crate::host::percpu::PerCpu;
use crate::host::rcu_slot::RcuSlot;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::prelude::*;
use kernel::sync::Arc;

/// IA32_FEATURE_CONTROL: locked, VMX allowed outside of SMX.
const FEAT_CTL_LOCKED: u64 = 1 << 0;
const FEAT_CTL_VMX: u64 = 1 << 2;

/// The highest VPID.
const MAX_VPID: u32 = 0xffff;

/// The TSC multiplier (26.6.5).
const TSC_SCALING: TscScaling = TscScaling {
    fraction: 48,
    integer: 16,
};

/// Longest stay in the guest, in milliseconds: host interrupts end one anyway, but not on every
/// emulated processor.
const MAX_STAY_MS: u64 = 10;

/// What belongs to one CPU.
pub(super) struct HostCpu {
    /// This CPU's VPIDs.
    pub(super) vpids: Allocator,
    /// Which vCPU ran here last.
    pub(super) last: AtomicU64,
    /// VMX is on here, and we hold it.
    enabled: AtomicBool,
}

/// What lives as long as the module, and as any vCPU.
pub(super) struct Host {
    /// By CPU.
    pub(super) cpus: PerCpu<HostCpu>,
    /// What this processor offers.
    pub(super) plan: Plan,
    /// For the checks of the guest's state.
    pub(super) limits: Limits,
    /// The host's state, as far as it is the same everywhere.
    pub(super) constant: HostState,
    /// What the preemption timer begins from at most.
    timer: u32,
    /// A prediction barrier is wanted between different guests on a CPU.
    pub(super) barrier: bool,
    /// The processor delivers the interrupts of x2APIC guests.
    pub(super) delivers: bool,
    /// L1D is to be flushed before guests run.
    pub(super) l1d: Option<L1d>,
}

impl Host {
    /// What the preemption timer begins from, for a stay in the guest of so many ticks of the TSC, if that is
    /// not too long.
    #[inline]
    pub(super) fn stay(&self, ticks: u64) -> u32 {
        self.plan.timer_value(ticks).min(self.timer)
    }
}

static HOST: RcuSlot<Host> = RcuSlot::new();

/// What [`setup`] has made.
pub(super) fn host() -> Result<Arc<Host>> {
    HOST.get().ok_or(ENODEV)
}

/// CPUID leaf 1 ECX bit 5.
pub(super) fn present() -> bool {
    insn::cpuid(1, 0).ecx & 1 << 5 != 0
}

fn capabilities() -> Result<Msrs> {
    let read = |n: u32| insn::rdmsr(msr::VMX_BASIC + n);
    Ok(Msrs {
        basic: read(0)?,
        misc: read(5)?,
        cr0: [read(6)?, read(7)?],
        cr4: [read(8)?, read(9)?],
        // These need not be there; without them something required is missing.
        proc2: read(0xb).unwrap_or(0),
        ept_vpid: read(0xc).unwrap_or(0),
        pin: read(0xd).unwrap_or(0),
        proc: read(0xe).unwrap_or(0),
        exit: read(0xf).unwrap_or(0),
        entry: read(0x10).unwrap_or(0),
    })
}

fn plan(m: &Msrs) -> Result<Plan> {
    let lost = |c: &controls::Control| {
        if let Without::Lost(what) | Without::LostOnDemand(what) = c.without {
            pr_info!("vmx: no \"{}\" here: {}\n", c.name, what);
        }
    };
    controls::plan(m, lost).map_err(|what| {
        pr_err!("this processor's VMX lacks what rkvm needs: {}\n", what);
        for also in controls::missing(m).filter(|name| *name != what) {
            pr_err!("this processor's VMX lacks what rkvm needs: {}\n", also);
        }
        ENODEV
    })
}

/// Gets hold of whoever turns VMX on.
fn hold() -> Result {
    if !entry::usable() {
        pr_err!("this kernel takes NMIs by FRED, which rkvm cannot: boot with fred=off\n");
        return Err(ENODEV);
    }
    if entry::own() {
        pr_info!("vmx: VMX operation by the kernel's own count\n");
        return Ok(());
    }
    let on = insn::cr4() & cr4::VMXE != 0;
    match entry::hold() {
        Ok(()) if on => {
            pr_info!("vmx: beside kvm_intel, which keeps VMX on\n");
            Ok(())
        }
        Ok(()) => {
            entry::release();
            pr_err!(
                "kvm_intel is loaded, but keeps VMX off: load kvm with enable_virt_at_load=1\n"
            );
            Err(ENODEV)
        }
        Err(_) if on => {
            pr_err!("another hypervisor holds VMX (no kvm_intel behind /dev/kvm)\n");
            Err(EBUSY)
        }
        Err(_) => {
            pr_err!("on this kernel rkvm needs kvm_intel to turn VMX on: load that first (modprobe kvm_intel)\n");
            Err(ENODEV)
        }
    }
}

/// Checks the machine and allocates what the CPUs need.
pub(super) fn setup() -> Result<HwCaps> {
    let feat = insn::rdmsr(msr::FEAT_CTL).unwrap_or(0);
    if feat & FEAT_CTL_LOCKED != 0 && feat & FEAT_CTL_VMX == 0 {
        pr_err!("VMX is disabled by firmware: enable it (\"VT-x\") in the firmware's setup\n");
        return Err(ENODEV);
    }
    let msrs = capabilities().inspect_err(|_| pr_err!("VMX' capability MSRs cannot be read\n"))?;
    let plan = plan(&msrs)?;
    hold()?;
    let caps = make_host(&msrs, plan);
    if caps.is_err() {
        entry::release();
    }
    caps
}

fn make_host(msrs: &Msrs, plan: Plan) -> Result<HwCaps> {
    let phys_bits = insn::cpuid(0x8000_0008, 0).eax & 0xff;
    let mut constant = HostState::default();
    entry::host_constant(&mut constant);
    let ticks = u64::from(insn::tsc_khz()).saturating_mul(MAX_STAY_MS) >> plan.timer_shift;
    let host = Host {
        cpus: PerCpu::new(|_| {
            Ok(HostCpu {
                vpids: Allocator::new(),
                last: AtomicU64::new(0),
                enabled: AtomicBool::new(false),
            })
        })?,
        plan,
        limits: Limits {
            phys_bits,
            linear_bits: if insn::cr4() & cr4::LA57 != 0 { 57 } else { 48 },
            cr0: msrs.cr0,
            cr4: msrs.cr4,
            any_error_code: plan.any_error_code,
        },
        constant,
        timer: u32::try_from(ticks.max(1)).unwrap_or(u32::MAX),
        barrier: insn::wants_barriers(),
        delivers: entry::apicv(plan.has2(proc2::DELIVERY)),
        l1d: L1d::new()?,
    };
    HOST.set(Arc::new(host, GFP_KERNEL)?)?;
    Ok(HwCaps {
        stage2_1g: plan.ept_1g,
        // Five levels where addresses need them.
        stage2_levels: if plan.ept_5 && phys_bits > 48 { 5 } else { 4 },
        pause_filter: plan.has2(proc2::PAUSE_LOOP),
        rdtscp: plan.has2(proc2::RDTSCP),
        invpcid: plan.has2(proc2::INVPCID),
        tsc_scaling: plan.has2(proc2::TSC_SCALING).then_some(TSC_SCALING),
        logs_writes: plan.has2(proc2::PML),
    })
}

/// VMX is to be on, here.
pub(super) fn enable_cpu() -> Result {
    let host = host()?;
    let (_, cpu) = host.cpus.current().ok_or(ENODEV)?;
    entry::on()?;
    cpu.vpids.restart(MAX_VPID);
    cpu.enabled.store(true, Relaxed);
    Ok(())
}

/// It need not be, here.
pub(super) fn disable_cpu() {
    let Ok(host) = host() else { return };
    let Some((_, cpu)) = host.cpus.current() else {
        return;
    };
    if cpu.enabled.swap(false, Relaxed) {
        entry::off();
    }
}

/// Frees what [`setup`] made.
pub(super) fn teardown() {
    drop(HOST.take());
    entry::release();
}
