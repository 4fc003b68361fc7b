// SPDX-License-Identifier: GPL-2.0

//! arm64 with VHE: the kernel runs at EL2, guests at EL1.

mod aarch32;
mod abi;
mod attr;
mod controls;
mod errata;
mod exit;
mod gic;
mod host;
mod ids;
pub(crate) mod insn;
mod ioctl;
mod its;
mod lpi;
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod model;
mod onereg;
mod pmu;
mod psci;
mod quick;
mod run;
mod shared;
mod stolen;
mod sysreg;
mod timer;
mod vcpu;
mod vm;
mod vmid;

use crate::{
    abi::cap,
    bindings as rb,
    device::Attr,
    family::{Ctx, Family, Next, Poll, Step},
    host::{
        kick::{self, Kick},
        power::{CpuPower, PoweredOn},
        section::GuestSection,
        trace,
    },
    memory::{stage2, View},
    system,
    vcpu::VcpuSet,
    vm::Vm,
};
use core::{
    mem::offset_of,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use exit::UserExit;
use kernel::{prelude::*, sync::Arc};
use shared::{power, Power, Shared};

/// The family.
pub(crate) struct Arm64;

/// What is loaded. Fields are dropped in this order: no new descriptors, then the hardware goes off.
pub(crate) struct Loaded {
    _nodes: system::Nodes<Arm64>,
    _power: PoweredOn<Arm64>,
    _irqs: insn::Irqs,
}

impl CpuPower for Arm64 {
    fn on() -> Result {
        host::Host::add_cpu()?;
        insn::enable_irqs(true);
        Ok(())
    }

    fn off() {
        insn::enable_irqs(false);
    }
}

/// Looks at the hardware, takes the interrupts that it needs, and registers the device nodes.
///
/// # Errors
/// `ENODEV`, `EBUSY`: no hardware that this kernel may use; the reason is logged.
pub(crate) fn load(kvm_node: bool) -> Result<Loaded> {
    let host = host::Host::find_out()?;
    let irqs = insn::Irqs::request(&host.irqs).map_err(|e| {
        if e == ENOMEM {
            return e;
        }
        // The kernel says EINVAL of an interrupt that another has.
        pr_err!("the virtual timer's interrupt is taken: boot with kvm-arm.mode=none, so that in-tree KVM leaves EL2 alone\n");
        EBUSY
    })?;
    let power = PoweredOn::new()?;
    host.log();
    errata::log()?;
    let loaded = Loaded {
        _nodes: system::Nodes::register(kvm_node)?,
        _power: power,
        _irqs: irqs,
    };
    pr_info!("VHE: ready\n");
    Ok(loaded)
}

impl Family for Arm64 {
    const NAME: &'static str = "arm64";
    const FREE_KVM: &'static str = "boot with kvm-arm.mode=none";
    // kvm_run, the ring of coalesced accesses.
    const MMAP_PAGES: usize = 2;
    const COALESCED_PAGE: usize = rb::KVM_COALESCED_MMIO_PAGE_OFFSET as usize;
    const MAX_VCPU_ID: u32 = 512;
    const GUEST_DEBUG: u32 = model::debug::control::ALL;

    type Entry = model::stage2::Stage2;
    type Controller = gic::Gic;
    type Device = ioctl::Device;
    type Vm = vm::VmState;
    type Shared = Shared;
    type Vcpu = vcpu::Vcpu;
    type Exit = run::Slow;
    type UserExit = UserExit;

    fn capability(vm: Option<&Vm<Self>>, number: u32) -> i32 {
        let Ok(host) = host::Host::get() else {
            return 0;
        };
        match number {
            rb::KVM_CAP_NR_VCPUS => crate::host::work::online_cpus(),
            rb::KVM_CAP_MAX_VCPU_ID => Self::MAX_VCPU_ID as i32,
            rb::KVM_CAP_MSI_DEVID => vm.is_some_and(|vm| vm.controller.itses.any()).into(),
            rb::KVM_CAP_ARM_EL1_32BIT => host.aarch32_el1.into(),
            rb::KVM_CAP_ARM_VM_IPA_SIZE => host.pa_bits as i32,
            rb::KVM_CAP_ARM_PTRAUTH_ADDRESS | rb::KVM_CAP_ARM_PTRAUTH_GENERIC => host.pauth.into(),
            rb::KVM_CAP_ARM_SVE => (host.sve_lengths().max() > 0).into(),
            rb::KVM_CAP_ARM_PMU_V3 | rb::KVM_CAP_ARM_PMU_V3_STRICT => host.pmus.any().into(),
            rb::KVM_CAP_ARM_INJECT_SERROR_ESR => host.ras.into(),
            rb::KVM_CAP_GUEST_DEBUG_HW_BPS => host.debug.0.into(),
            rb::KVM_CAP_GUEST_DEBUG_HW_WPS => host.debug.1.into(),
            number => cap::value(abi::CAPS, number),
        }
    }

    fn system_ioctl(_cmd: u32, _arg: usize) -> Result<isize> {
        Err(trace::refuse(ENOTTY, c"no such request"))
    }

    fn stage2_config(vm_type: usize) -> Result<stage2::Config> {
        let host = host::Host::get()?;
        let bits = u32::try_from(vm_type).unwrap_or(u32::MAX);
        let bits = match bits {
            0 => model::stage2::DEFAULT_IPA_BITS,
            b => b,
        };
        model::stage2::config(bits, host.pa_bits)
            .ok_or_else(|| trace::invalid(c"no such width of guest-physical addresses"))
    }

    fn controller(vcpus: &Arc<VcpuSet<Self>>) -> Result<Arc<Self::Controller>> {
        gic::Gic::new(vcpus)
    }

    fn vm(_controller: &Arc<Self::Controller>) -> impl PinInit<Self::Vm, Error> {
        vm::VmState::new()
    }

    fn vm_ioctl(vm: &Arc<Vm<Self>>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::vm(vm, cmd, arg)
    }

    fn enable_cap(vm: &Vm<Self>, cap: u32, flags: u32, _args: &[u64; 4]) -> Result<isize> {
        ioctl::enable_cap(vm, cap, flags)
    }

    fn create_device(vm: &Arc<Vm<Self>>, kind: u32, test: bool) -> Result<Option<Self::Device>> {
        ioctl::create_device(vm, kind, test)
    }

    fn device_attr(
        vm: &Arc<Vm<Self>>,
        device: &Self::Device,
        what: Attr,
        attr: &rb::kvm_device_attr,
    ) -> Result {
        ioctl::device_attr(vm, device, what, attr)
    }

    fn irq_line(vm: &Vm<Self>, gsi: u32, level: bool) -> Result<i32> {
        gic::irq_line(vm, gsi, level)
    }

    fn prepare_memory(phys: u64, bytes: u64) {
        // A guest starts with its caches off, and goes past the host's unless stage 2 forbids it.
        if !model::stage2::is_forced() {
            insn::clean_to_poc(phys, bytes);
        }
        insn::sync_icache(phys, bytes);
    }

    fn irqchip_ready(vm: &Vm<Self>) -> bool {
        vm.controller.is_ready()
    }

    fn vcpu(
        vm: &Vm<Self>,
        id: u32,
        index: u32,
        kick: &Arc<Kick>,
    ) -> Result<(KBox<Self::Vcpu>, Self::Shared)> {
        if vm.controller.is_ready() {
            return Err(trace::refuse(EBUSY, c"the GIC has all its vCPUs"));
        }
        let v = vcpu::Vcpu::new(&vm.family, vm.memory.root(), &vm.memory.config(), kick)?;
        let gic = gic::Cpu::new(id, index, vm.controller.hw(), kick)?;
        let power = Power {
            state: AtomicU64::new(power::OFF),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
            big_endian: AtomicBool::new(false),
        };
        let mpidr = AtomicU64::new(model::trap::mpidr(id));
        let shared = Shared {
            gic,
            power,
            mpidr,
            pmu_irq: AtomicU32::new(0),
        };
        Ok((KBox::new(v, GFP_KERNEL_ACCOUNT)?, shared))
    }

    fn vcpu_ioctl(ctx: &mut Ctx<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::vcpu(ctx, cmd, arg)
    }

    fn set_guest_debug(ctx: &mut Ctx<'_, Self>, d: &rb::kvm_guest_debug) -> Result {
        ioctl::set_guest_debug(ctx.vcpu, d);
        Ok(())
    }

    fn resume(ctx: &mut Ctx<'_, Self>) -> Result<Next<UserExit>> {
        if !ctx.vcpu.initialized {
            return Err(trace::refuse(ENOEXEC, c"KVM_ARM_VCPU_INIT comes first"));
        }
        if !ctx.vcpu.is_final() {
            return Err(trace::refuse(EPERM, c"KVM_ARM_VCPU_FINALIZE comes first"));
        }
        let first = ctx.vcpu.pmu.as_ref().is_some_and(|p| p.is_new());
        let vm = &ctx.vm.family;
        if first || !vm.ran.load(Ordering::Acquire) {
            attr::first_run(ctx)?;
        }
        ctx.vcpu.refresh(vm);
        if let Some(pmu) = &mut ctx.vcpu.pmu {
            pmu.begin();
        }
        ctx.vcpu.run_flags = 0;
        if let Some(r) = ctx.vcpu.mmio.take() {
            if !r.write {
                let run = ctx.core.run_page().ok_or(EIO)?;
                let bytes: u64 = run.read(crate::abi::exit::DATA + 8);
                ctx.vcpu.set_x(r.rt(), r.load(bytes.to_le_bytes()));
            }
            ctx.vcpu.advance();
        }
        Ok(Next::Reenter)
    }

    fn publish(ctx: &mut Ctx<'_, Self>) {
        if let Some(run) = ctx.core.run_page() {
            run.write(offset_of!(rb::kvm_run, flags), ctx.vcpu.run_flags);
        }
    }

    fn poll(ctx: &mut Ctx<'_, Self>) -> Result<Poll<UserExit>> {
        if ctx.core.kick.take() & kick::FLUSH_TLB != 0 {
            ctx.vcpu.flush = true;
        }
        psci::take_start(ctx);
        let suspended = match ctx.core.shared.power.state.load(Ordering::Acquire) {
            power::ON => false,
            power::SUSPENDED => true,
            _ => return Ok(Poll::Block),
        };
        let vm = ctx.vm;
        if let Some(refused) = pmu::prepare(ctx) {
            return Ok(Poll::ToUser(refused));
        }
        let (gic, cpu) = (&*vm.controller, &*ctx.core.shared.gic);
        // Otherwise they are looked at when the section begins.
        if ctx.vcpu.waiting || suspended {
            ctx.vcpu.update_timers(&vm.family, gic, cpu);
            if !gic.pending(cpu) && ctx.vcpu.serror.is_none() {
                ctx.vcpu.set_alarm(&vm.family, true);
                return Ok(Poll::Block);
            }
            ctx.vcpu.waiting = false;
        }
        if suspended {
            return Ok(Poll::ToUser(UserExit::System {
                kind: rb::KVM_SYSTEM_EVENT_WAKEUP,
                flags: 0,
            }));
        }
        ctx.vcpu.set_alarm(&vm.family, false);
        if ctx.vcpu.stolen.due() {
            ctx.vcpu.stolen.tell(&vm.memory.read());
        }
        Ok(Poll::Run)
    }

    fn runnable(ctx: &mut Ctx<'_, Self>) -> bool {
        let suspended = match ctx.core.shared.power.state.load(Ordering::Acquire) {
            power::ON => false,
            power::SUSPENDED => true,
            power::STARTING => return true,
            _ => return false,
        };
        let (gic, cpu) = (&*ctx.vm.controller, &*ctx.core.shared.gic);
        ctx.vcpu.update_timers(&ctx.vm.family, gic, cpu);
        let overflow = ctx.vcpu.pmu.as_ref().is_some_and(|p| p.is_due());
        !(ctx.vcpu.waiting || suspended)
            || overflow
            || gic.pending(cpu)
            || ctx.vcpu.serror.is_some()
    }

    fn section_begins(ctx: &mut Ctx<'_, Self>, section: &GuestSection) {
        let (vm, shared) = (&ctx.vm.family, &ctx.core.shared);
        let lines = ctx.vcpu.timer_lines(vm);
        let busy = ctx.vm.controller.begin(&shared.gic, lines, section);
        ctx.vcpu.section_begins(vm, shared, busy);
    }

    fn section_ends(ctx: &mut Ctx<'_, Self>, _view: &View<'_>, section: &GuestSection) {
        let timer_ended = ctx.vm.controller.end(&ctx.core.shared.gic, section);
        ctx.vcpu.section_ends(&ctx.vm.family, timer_ended);
    }

    fn flush_tlb(_ctx: &mut Ctx<'_, Self>) {
        insn::flush_vmid();
    }

    #[inline]
    fn enter(
        ctx: &mut Ctx<'_, Self>,
        view: &View<'_>,
        section: &GuestSection,
        _requests: u64,
    ) -> Step<run::Slow> {
        run::enter(ctx, view, section)
    }

    fn handle(ctx: &mut Ctx<'_, Self>, view: &View<'_>, exit: run::Slow) -> Result<Next<UserExit>> {
        run::handle(ctx, view, exit)
    }
}
