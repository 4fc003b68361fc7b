// SPDX-License-Identifier: GPL-2.0

//! x86: everything that SVM and VMX share, and the two vendors' own rooms.

mod abi;
#[allow(unreachable_pub, reason = "also compiled on the host, for fuzzing")]
pub(crate) mod args;
pub(crate) mod asid;
pub(crate) mod backend;
mod debug;
mod emu;
pub(crate) mod exit;
mod handle;
pub(crate) mod host;
pub(crate) mod insn;
mod io;
mod ioctl;
mod irqchip;
mod mem;
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod model;
mod msr;
mod pv;
mod run;
mod shared;
mod spec_ctrl;
pub(crate) mod svm;
mod time;
mod vcpu;
mod vm;
pub(crate) mod vmx;

use crate::{
    abi::cap,
    bindings as rb,
    family::{Ctx, Family, Next, Poll, Step},
    host::{
        kick::{self, Kick},
        power::{CpuPower, PoweredOn},
        section::GuestSection,
    },
    memory::{stage2, View},
    system,
    vcpu::{Core, VcpuSet},
    vm::Vm,
};
use backend::{Backend, HwVcpu, Since};
use core::{
    marker::PhantomData,
    mem::offset_of,
    sync::atomic::{AtomicU32, Ordering},
};
use io::{Answer, UserExit};
use kernel::{prelude::*, sync::Arc};
use model::{lapic::SharedIdentity, regs::Exception};
use shared::{Mail, Shared};
use vcpu::MpState;

/// The x86 family with the vendor `B`.
pub(crate) struct X86<B: Backend>(PhantomData<B>);

/// kvmclock was set: the page is to be written anew.
pub(crate) const REFRESH_CLOCK: u64 = 1 << kick::FAMILY_SHIFT;
/// The MSR filter changed: which MSRs the guest reaches without an exit is to be looked at.
pub(crate) const REFRESH_MSRS: u64 = 2 << kick::FAMILY_SHIFT;
/// A debugger is to hear of an instruction that was emulated.
pub(crate) const DEBUG_EXIT: u64 = 4 << kick::FAMILY_SHIFT;

impl<B: Backend> CpuPower for X86<B> {
    fn on() -> Result {
        B::enable_cpu()
    }
    fn off() {
        B::disable_cpu();
    }
}

/// A loaded vendor: the hardware is on, the device nodes are there.
///
/// Fields are dropped in this order: no new descriptors, then the hardware goes off, then its pages.
pub(crate) struct Vendor<B: Backend> {
    _nodes: system::Nodes<X86<B>>,
    _power: PoweredOn<X86<B>>,
    _teardown: Teardown<B>,
}

/// Whatever vendor was found.
pub(crate) enum Loaded {
    /// AMD's.
    Svm {
        /// Kept as long as the module.
        _vendor: Vendor<svm::Svm>,
    },
    /// Intel's.
    Vmx {
        /// Kept as long as the module.
        _vendor: Vendor<vmx::Vmx>,
    },
}

/// Gives back what [`Backend::setup`] allocated, last of all.
struct Teardown<B: Backend>(PhantomData<B>);

impl<B: Backend> Drop for Teardown<B> {
    fn drop(&mut self) {
        B::teardown();
    }
}

/// Finds the vendor, turns its hardware on and registers the device nodes.
///
/// # Errors
/// `ENODEV`, `EBUSY`: no hardware that this kernel may use; the reason is logged.
pub(crate) fn load(kvm_node: bool) -> Result<Loaded> {
    if svm::Svm::present() {
        return Ok(Loaded::Svm {
            _vendor: load_vendor(kvm_node)?,
        });
    }
    if vmx::Vmx::present() {
        return Ok(Loaded::Vmx {
            _vendor: load_vendor(kvm_node)?,
        });
    }
    pr_err!("this processor has no virtualization extension (AMD's SVM, Intel's VMX)\n");
    pr_err!(
        "inside a virtual machine: give it a CPU with one, e.g. QEMU's -cpu host or max,+svm\n"
    );
    Err(ENODEV)
}

fn load_vendor<B: Backend>(kvm_node: bool) -> Result<Vendor<B>> {
    host::Host::find_out::<B>()?;
    let teardown = Teardown::<B>(PhantomData);
    let power = PoweredOn::new()?;
    let vendor = Vendor {
        _nodes: system::Nodes::register(kvm_node)?,
        _power: power,
        _teardown: teardown,
    };
    pr_info!("{}: ready\n", B::NAME);
    Ok(vendor)
}

/// kvmclock is the same on all vCPUs: TSCs of unlike frequencies, each rounded in its own way, do not
/// tell one time.
pub(crate) fn one_time<B: Backend>(vm: &Vm<X86<B>>) -> bool {
    let khz = |c: &Core<X86<B>>| c.shared.tsc_khz.load(Ordering::Relaxed);
    let mut all = vm.vcpus.iter().map(khz);
    let first = all.next();
    all.all(|other| Some(other) == first)
}

impl<B: Backend> Family for X86<B> {
    const NAME: &'static str = "x86";
    const FREE_KVM: &'static str = "unload kvm_amd or kvm_intel, and kvm, first";
    // kvm_run, port data, the ring of coalesced accesses.
    const MMAP_PAGES: usize = 3;
    const COALESCED_PAGE: usize = rb::KVM_COALESCED_MMIO_PAGE_OFFSET as usize;
    const MAX_VCPU_ID: u32 = 4096;
    const GUEST_DEBUG: u32 = args::debug::SERVED;

    type Entry = B::Entry;
    type Controller = irqchip::Irqchip<B>;
    type Device = core::convert::Infallible;
    type Vm = vm::VmState;
    type Shared = Shared;
    type Vcpu = vcpu::Vcpu<B>;
    type Exit = handle::Slow;
    type UserExit = UserExit;

    fn capability(vm: Option<&Vm<Self>>, number: u32) -> i32 {
        let Ok(host) = host::Host::get() else {
            return 0;
        };
        match number {
            rb::KVM_CAP_NR_VCPUS => crate::host::work::online_cpus(),
            rb::KVM_CAP_MAX_VCPU_ID => Self::MAX_VCPU_ID as i32,
            rb::KVM_CAP_XCRS => i32::from(insn::osxsave()),
            rb::KVM_CAP_XSAVE2 => {
                let size = host.supported.layout.standard_size(host.supported.xcr0);
                i32::try_from(size.max(4096)).unwrap_or(4096)
            }
            rb::KVM_CAP_DISABLE_QUIRKS => 1,
            rb::KVM_CAP_DISABLE_QUIRKS2 => i32::try_from(args::vm::QUIRKS).unwrap_or(0),
            rb::KVM_CAP_X2APIC_API if vm.is_some_and(|v| !v.controller.is_split()) => 3,
            rb::KVM_CAP_TSC_CONTROL | rb::KVM_CAP_VM_TSC_CONTROL => {
                i32::from(host.hw.tsc_scaling.is_some())
            }
            number => cap::value(abi::CAPS, number),
        }
    }

    fn system_ioctl(cmd: u32, arg: usize) -> Result<isize> {
        ioctl::system(cmd, arg)
    }

    fn stage2_config(vm_type: usize) -> Result<stage2::Config> {
        if vm_type != rb::KVM_X86_DEFAULT_VM as usize {
            return Err(crate::host::trace::refuse(EINVAL, c"no such type of VM"));
        }
        let host = host::Host::get()?;
        Ok(stage2::Config {
            levels: u32::from(host.hw.stage2_levels),
            gpa_bits: u32::from(host.supported.host.gpa_bits),
            max_leaf_level: if host.hw.stage2_1g { 2 } else { 1 },
            logs_writes: host.hw.logs_writes,
        })
    }

    fn controller(vcpus: &Arc<VcpuSet<Self>>) -> Result<Arc<Self::Controller>> {
        irqchip::Irqchip::new(vcpus)
    }

    fn vm(_controller: &Arc<Self::Controller>) -> impl PinInit<Self::Vm, Error> {
        vm::VmState::new()
    }

    fn vm_ioctl(vm: &Arc<Vm<Self>>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::vm(vm, cmd, arg)
    }

    fn enable_cap(vm: &Vm<Self>, cap: u32, flags: u32, args: &[u64; 4]) -> Result<isize> {
        ioctl::enable_cap(vm, cap, flags, args)
    }

    fn irqchip_ready(vm: &Vm<Self>) -> bool {
        vm.controller.is_split()
    }

    fn takes_routes(vm: &Vm<Self>) -> bool {
        Self::irqchip_ready(vm)
    }

    fn vcpu(
        vm: &Vm<Self>,
        id: u32,
        _index: u32,
        kick: &Arc<Kick>,
    ) -> Result<(KBox<Self::Vcpu>, Self::Shared)> {
        let mail = Mail::new(kick)?;
        let v = vcpu::Vcpu::new(
            &vm.family,
            vm.memory.root(),
            id,
            vm.controller.is_split(),
            mail.clone(),
        )?;
        let identity = SharedIdentity::new(v.lapic.identity());
        let tsc_khz = AtomicU32::new(v.tsc.khz());
        let shared = Shared {
            mail,
            identity,
            tsc_khz,
        };
        Ok((v, shared))
    }

    fn vcpu_ioctl(ctx: &mut Ctx<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::vcpu(ctx, cmd, arg)
    }

    fn set_guest_debug(ctx: &mut Ctx<'_, Self>, d: &rb::kvm_guest_debug) -> Result {
        let request = args::debug::decode(d).map_err(crate::host::trace::invalid)?;
        ctx.vcpu.set_debug(&request)
    }

    fn resume(ctx: &mut Ctx<'_, Self>) -> Result<Next<UserExit>> {
        let (Some(run), Some(port_page)) = (ctx.core.pages.first(), ctx.core.pages.get(1)) else {
            return Err(EIO);
        };
        let v = &mut *ctx.vcpu;
        v.has_run = true;
        v.since = Since::Anything;
        v.want_window = run.read::<u8>(offset_of!(rb::kvm_run, request_interrupt_window)) != 0;
        if !v.has_lapic {
            let cr8 = run.read::<u64>(offset_of!(rb::kvm_run, cr8));
            v.lapic.set_cr8((cr8 & 0xf) as u8);
        }
        match v.pending.take_answer(run, port_page) {
            Answer::Nothing => {}
            Answer::RunAgain => return emu::again(ctx),
            Answer::In {
                value,
                size,
                next_rip,
            } => {
                let old = v.gprs.get(model::regs::Gpr::Rax);
                let value = u64::from(value);
                let rax = match size {
                    1 => old & !0xff | value & 0xff,
                    2 => old & !0xffff | value & 0xffff,
                    _ => value,
                };
                v.gprs.set(model::regs::Gpr::Rax, rax);
                v.advance_to(next_rip);
            }
            Answer::Rdmsr {
                value: Some(value),
                len,
            } => {
                v.set_edx_eax(value);
                v.advance(len);
            }
            Answer::Wrmsr { ok: true, len } => v.advance(len),
            Answer::Rdmsr { value: None, .. } | Answer::Wrmsr { ok: false, .. } => {
                v.raise(Exception::gp(0));
            }
        }
        // Pieces of a write that user space was not told yet.
        Ok(v.pending.tell().map_or(Next::Reenter, Next::ToUser))
    }

    fn publish(ctx: &mut Ctx<'_, Self>) {
        let Some(run) = ctx.core.pages.first() else {
            return;
        };
        let v = &mut *ctx.vcpu;
        if v.pv.eoi.is_armed() {
            v.pv.eoi.settle_now(&mut v.lapic, &ctx.vm.memory.read());
        }
        let cpu = v.cpu();
        let ready = v.events.ready_for_extint(cpu) && v.takes_extint() && !v.pending.is_waiting();
        run.write(
            offset_of!(rb::kvm_run, ready_for_interrupt_injection),
            u8::from(ready),
        );
        run.write(
            offset_of!(rb::kvm_run, if_flag),
            u8::from(cpu.interrupt_flag),
        );
        run.write(offset_of!(rb::kvm_run, flags), 0u16);
        run.write(offset_of!(rb::kvm_run, cr8), u64::from(v.lapic.cr8()));
        run.write(offset_of!(rb::kvm_run, apic_base), v.lapic.base());
    }

    fn poll(ctx: &mut Ctx<'_, Self>) -> Result<Poll<UserExit>> {
        let requests = ctx.core.kick.take();
        if requests & kick::FLUSH_TLB != 0 {
            ctx.vcpu.hw.flush_tlb();
        }
        if requests & REFRESH_CLOCK != 0 {
            ctx.vcpu.pv.refresh_clock();
        }
        if requests & REFRESH_MSRS != 0 {
            let vm = ctx.vm.clone();
            ctx.vcpu.direct_msrs(&vm.family);
        }
        if requests & DEBUG_EXIT != 0 {
            if let Some(exit) = ctx.vcpu.take_debug_exit() {
                return Ok(Poll::ToUser(UserExit::Common(exit)));
            }
        }
        if ctx.vcpu.pv.has_work() {
            let vm = ctx.vm.clone();
            let view = vm.memory.read();
            pv::write_pages(ctx.vcpu, &vm.family, &view, one_time(&vm));
        }
        if let Some(vector) = ctx.vcpu.eoi.take() {
            return Ok(Poll::ToUser(UserExit::IoapicEoi { vector }));
        }
        let inbox = &ctx.core.shared.mail.inbox;
        if !inbox.is_empty() {
            let signals = inbox.drain(&mut ctx.vcpu.lapic);
            run::take_signals(ctx, signals.nmi, signals.timer);
            if signals.init {
                handle::init(ctx);
            }
            if let Some(vector) = signals.sipi {
                handle::startup(ctx.vcpu, vector);
            }
        }
        run::see_deadline(ctx);
        let v = &mut *ctx.vcpu;
        match v.mp_state {
            MpState::Runnable => {}
            MpState::Halted => {
                if !run::wakes(v) {
                    if v.wants_window() && v.events.ready_for_extint(v.cpu()) {
                        return Ok(Poll::ToUser(UserExit::IrqWindow));
                    }
                    let tsc = &v.tsc;
                    v.alarm.sleeps(|at| tsc.ns_until(at));
                    return Ok(Poll::Block);
                }
                v.mp_state = MpState::Runnable;
            }
            MpState::Uninitialized | MpState::InitReceived => return Ok(Poll::Block),
        }
        if v.wants_window() && v.events.ready_for_extint(v.cpu()) {
            return Ok(Poll::ToUser(UserExit::IrqWindow));
        }
        Ok(Poll::Run)
    }

    fn runnable(ctx: &mut Ctx<'_, Self>) -> bool {
        if !ctx.core.shared.mail.inbox.is_empty() {
            return true;
        }
        match ctx.vcpu.mp_state {
            MpState::Runnable => true,
            MpState::Halted => run::wakes(ctx.vcpu),
            MpState::Uninitialized | MpState::InitReceived => false,
        }
    }

    fn section_begins(ctx: &mut Ctx<'_, Self>, _section: &GuestSection) {
        ctx.vcpu.hw.log_writes(ctx.vm.memory.logs_writes());
        ctx.vcpu.section_begins();
    }

    fn section_ends(ctx: &mut Ctx<'_, Self>, view: &View<'_>, _section: &GuestSection) {
        ctx.vcpu.section_ends();
        ctx.vcpu.hw.written(|gpa| view.written(gpa));
    }

    fn flush_tlb(ctx: &mut Ctx<'_, Self>) {
        ctx.vcpu.hw.flush_tlb();
    }

    #[inline]
    fn enter(
        ctx: &mut Ctx<'_, Self>,
        view: &View<'_>,
        _section: &GuestSection,
        requests: u64,
    ) -> Step<handle::Slow> {
        run::enter(ctx, view, requests)
    }

    fn handle(
        ctx: &mut Ctx<'_, Self>,
        view: &View<'_>,
        exit: handle::Slow,
    ) -> Result<Next<UserExit>> {
        handle::handle(ctx, view, exit)
    }
}
