// SPDX-License-Identifier: GPL-2.0

//! Entering the guest, and what follows an exit.

use super::{
    aarch32, errata,
    exit::UserExit,
    insn,
    its::Accessed,
    model::{
        debug,
        errata::Workarounds,
        esr::{self, Abort, DataAbort, Debug, Esr, Fault, Syndrome, SysregAccess, Wait},
        events,
        exception::Exception,
        mmio::{self, Mmio, Request},
        sysreg::Sysreg,
        trap,
        vgic::FIRST_SPI,
        walk::Tables,
    },
    psci, quick,
    sysreg::{self, Served},
    vcpu::Vcpu,
    Arm64,
};
use crate::{
    abi::{
        exit::{Common, WriteRun},
        user,
    },
    bindings as rb,
    family::{Ctx, Next, Step},
    host::{section::GuestSection, trace},
    irq::{bus::Space, Written},
    memory::{Access, Outcome, View},
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// An exit that is handled outside of a section.
pub(crate) enum Slow {
    /// By its syndrome.
    Exit(Syndrome),
    /// An SError of the host came.
    SError,
    /// Stage 2 did not let the guest access `gpa`.
    Fault {
        /// What it did.
        abort: Abort,
        /// If it was no fetch.
        data: Option<DataAbort>,
        /// Guest-physical, with the offset where it is known.
        gpa: u64,
    },
}

/// `kvm_run.flags` of `KVM_EXIT_DEBUG`: KVM_DEBUG_ARCH_HSR_HIGH_VALID
const HSR_HIGH_VALID: u16 = 1;

type After = Result<Next<UserExit>>;
const REENTER: After = Ok(Next::Reenter);

/// Runs the guest once. See [`crate::family::Family::enter`].
#[inline]
pub(crate) fn enter(
    ctx: &mut Ctx<'_, Arm64>,
    view: &View<'_>,
    section: &GuestSection,
) -> Step<Slow> {
    let (gic, cpu) = (&*ctx.vm.controller, &*ctx.core.shared.gic);
    let loaded = gic.load(cpu, section);
    let entered = ctx.vcpu.run.pstate;
    let left = insn::enter(&mut ctx.vcpu.run);
    if loaded {
        if let Some(ended) = gic.save(cpu, section) {
            for intid in ended.iter() {
                // Devices with eventfds look at their lines.
                ctx.vm.irq.ack(0, intid.wrapping_sub(FIRST_SPI));
            }
        }
    }
    match left {
        insn::Left::Sync => {}
        // Taken when IRQs are on again.
        insn::Left::Interrupt => return Step::Leave(None),
        insn::Left::SError => return Step::Leave(Some(Slow::SError)),
    }
    match Esr(ctx.vcpu.run.esr).decode() {
        Syndrome::DataAbort(d) => fault(ctx, view, d.abort, Some(d)),
        Syndrome::InstructionAbort(a) => fault(ctx, view, a, None),
        other if quick::exit(ctx, &other) => Step::Again,
        other => {
            if other == Syndrome::Pauth && errata::need(Workarounds::SPSR_OF_STEP) {
                ctx.vcpu.mend_pstate(entered);
            }
            Step::Leave(Some(Slow::Exit(other)))
        }
    }
}

/// A fault of stage 2, still in the section.
#[inline]
fn fault(
    ctx: &mut Ctx<'_, Arm64>,
    view: &View<'_>,
    abort: Abort,
    data: Option<DataAbort>,
) -> Step<Slow> {
    let run = &ctx.vcpu.run;
    let gpa = if abort.ipa_valid() {
        esr::fault_address(run.hpfar, run.far, abort.on_walk)
    } else {
        match esr::par_address(insn::translate_el1(run.far), run.far) {
            Some(gpa) => gpa,
            // The guest has changed its tables since: it comes again.
            None => return Step::Again,
        }
    };
    if let (Fault::Translation(_), Some(d)) = (abort.fault, &data) {
        if quick::device(ctx, view, d, gpa) {
            return Step::Again;
        }
    }
    let access = access_of(data);
    if !matches!(abort.fault, Fault::Translation(_)) && ctx.vm.memory.fault_fast(view, gpa, access)
    {
        return Step::Again;
    }
    Step::Leave(Some(Slow::Fault { abort, data, gpa }))
}

fn access_of(data: Option<DataAbort>) -> Access {
    match data {
        None => Access::Execute,
        Some(d) if d.needs_write() => Access::Write,
        Some(_) => Access::Read,
    }
}

/// See [`crate::family::Family::handle`].
pub(crate) fn handle(ctx: &mut Ctx<'_, Arm64>, view: &View<'_>, exit: Slow) -> After {
    let syndrome = match exit {
        Slow::Fault { abort, data, gpa } => return slow_fault(ctx, view, abort, data, gpa),
        Slow::Exit(s) => s,
        Slow::SError => {
            let iss = Esr(ctx.vcpu.run.esr).iss();
            if events::is_guests(iss, ctx.vm.family.host.ras) {
                ctx.vcpu.raise_serror(events::IDS);
            }
            return REENTER;
        }
    };
    match syndrome {
        Syndrome::Wait(w) => {
            let waits = aarch32::waits(ctx);
            ctx.vcpu.advance();
            match w {
                _ if !waits => {}
                Wait::Interrupt | Wait::InterruptUntil(_) => ctx.vcpu.waiting = true,
                Wait::Event | Wait::EventUntil(_) => crate::host::work::yield_now(),
            }
            REENTER
        }
        Syndrome::Hvc(_) => psci::call(ctx, false),
        Syndrome::Hvc32(_) => psci::call32(ctx, false),
        Syndrome::Smc32 => aarch32::smc(ctx),
        Syndrome::Smc(_) => {
            // Its PC is that of the instruction.
            ctx.vcpu.advance();
            psci::call(ctx, true)
        }
        Syndrome::Sysreg(a) => {
            system_register(ctx, a);
            REENTER
        }
        Syndrome::Debug(d) => Ok(Next::ToUser(debug_exit(ctx, &d))),
        s @ (Syndrome::Cp15(_)
        | Syndrome::Cp15Pair(_)
        | Syndrome::Cp14(_)
        | Syndrome::Cp14Pair(_)
        | Syndrome::Cp14Memory
        | Syndrome::VmrsId(_)) => {
            aarch32::coprocessor(ctx, s);
            REENTER
        }
        // Not the guest's: SVE, SME, keys, what came after Armv8.0.
        _ => {
            ctx.vcpu.undefined();
            REENTER
        }
    }
}

/// `KVM_EXIT_DEBUG`
fn debug_exit(ctx: &mut Ctx<'_, Arm64>, d: &Debug) -> UserExit {
    let v = &mut *ctx.vcpu;
    if *d == Debug::Step {
        v.debug.stepper.reported();
    }
    let esr = v.run.esr;
    let half = |v: u64| u32::try_from(v & 0xffff_ffff).unwrap_or(0);
    let mut arch: rb::kvm_debug_exit_arch = user::zeroed();
    arch.hsr = half(esr);
    arch.hsr_high = half(esr >> 32);
    if debug::has_address(d) {
        arch.far = v.run.far;
    }
    v.run_flags = HSR_HIGH_VALID;
    UserExit::Common(Common::Debug { arch })
}

/// A trapped system register.
fn system_register(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) {
    match sysreg::access(ctx, a) {
        Served::Done => ctx.vcpu.advance(),
        Served::Undefined => undefined(ctx, a),
        Served::Trapped => trapped(ctx.vcpu),
    }
}

/// EL1 has asked for this exception: its syndrome is the one that came to EL2.
pub(super) fn trapped(v: &mut Vcpu) {
    v.raise(Exception::sync(v.run.esr));
}

fn undefined(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) {
    if trace::may_log() {
        pr_info!(
            "vCPU {}: no such system register for the guest: {:#06x}\n",
            ctx.core.id,
            a.reg.bits()
        );
    }
    let v = &mut *ctx.vcpu;
    let trap = trap::reported_as_trap(a.reg, v.ids.get(Sysreg::ID_AA64MMFR2_EL1));
    v.raise(if trap {
        Exception::sync(v.run.esr)
    } else {
        Exception::undefined()
    });
}

fn slow_fault(
    ctx: &mut Ctx<'_, Arm64>,
    view: &View<'_>,
    abort: Abort,
    data: Option<DataAbort>,
    gpa: u64,
) -> After {
    if abort.fault.is_external() {
        // The host's memory has failed under the guest.
        let far = ctx.vcpu.run.far;
        ctx.vcpu.external_abort(data.is_none(), far, None);
        return REENTER;
    }
    let access = access_of(data);
    let vm = ctx.vm;
    let outcome = match vm.memory.fault(view, gpa, access, &mut ctx.vcpu.cache) {
        Ok(o) => o,
        Err(e) if e == EFAULT => {
            trace::guest_error(c"no memory behind a slot; gpa", gpa, 0);
            if let Some(run) = ctx.core.run_page() {
                Common::MemoryFault {
                    gpa: gpa & !0xfff,
                    size: 0x1000,
                }
                .write(run);
            }
            return Err(EFAULT);
        }
        Err(e) => return Err(e),
    };
    match outcome {
        Outcome::Mapped | Outcome::Retry => REENTER,
        Outcome::NoSlot | Outcome::ReadOnly => {
            let Some(d) = data else {
                // Code where there is none.
                let far = ctx.vcpu.run.far;
                let walk = walk_level(ctx, view, &abort, gpa);
                ctx.vcpu.external_abort(true, far, walk);
                return REENTER;
            };
            device(ctx, view, &d, gpa, outcome == Outcome::ReadOnly)
        }
    }
}

/// The level of the guest's own tables at which an access has failed, if it was a walk of them.
fn walk_level(ctx: &Ctx<'_, Arm64>, view: &View<'_>, abort: &Abort, gpa: u64) -> Option<i8> {
    // AArch32's tables are others.
    if !abort.on_walk || ctx.vcpu.aarch32() {
        return None;
    }
    let el1 = &ctx.vcpu.el1;
    let tables = Tables {
        tcr: el1.tcr,
        ttbr0: el1.ttbr0,
        ttbr1: el1.ttbr1,
        big_endian: el1.sctlr & 1 << 25 != 0,
    };
    tables.level_of(ctx.vcpu.run.far, gpa, |at| {
        let mut bytes = [0; 8];
        view.read(at, &mut bytes).ok().map(|()| bytes)
    })
}

/// An access to a device.
fn device(ctx: &mut Ctx<'_, Arm64>, view: &View<'_>, d: &DataAbort, gpa: u64, slot: bool) -> After {
    let (esr, far) = (Esr(ctx.vcpu.run.esr), ctx.vcpu.run.far);
    let to_user = ctx.vm.family.nisv_to_user.load(Ordering::Relaxed);
    match mmio::decide(esr, d, gpa, slot, ctx.vcpu.data_order(), to_user) {
        Mmio::Device(r) => access(ctx, view, r),
        Mmio::Skip => {
            ctx.vcpu.advance();
            REENTER
        }
        Mmio::Abort => {
            let walk = walk_level(ctx, view, &d.abort, gpa);
            ctx.vcpu.external_abort(false, far, walk);
            REENTER
        }
        Mmio::Ls64 { esr_iss } => Ok(Next::ToUser(UserExit::NoSyndrome {
            reason: rb::KVM_EXIT_ARM_LDST64B,
            esr_iss,
            gpa,
        })),
        Mmio::NoSyndrome { esr_iss } => Ok(Next::ToUser(UserExit::NoSyndrome {
            reason: rb::KVM_EXIT_ARM_NISV,
            esr_iss,
            gpa,
        })),
        Mmio::Unsupported => {
            trace::guest_error(
                c"a device was accessed without syndrome at PC, gpa",
                ctx.vcpu.run.pc,
                gpa,
            );
            Err(ENOSYS)
        }
    }
}

fn access(ctx: &mut Ctx<'_, Arm64>, view: &View<'_>, r: Request) -> After {
    let data = if r.write {
        r.store(ctx.vcpu.x(r.rt()))
    } else {
        [0; 8]
    };
    let len = u8::try_from(r.len).unwrap_or(8);
    if let Some(done) = super::gic::mmio(ctx, view, r.gpa, len, r.write.then_some(&data)) {
        match done? {
            Accessed::Done(read) => {
                if !r.write {
                    ctx.vcpu.set_x(r.rt(), r.load(read));
                }
                ctx.vcpu.advance();
            }
            // The guest makes the write again when it is back.
            Accessed::More => {}
        }
        return REENTER;
    }
    if r.write {
        let bytes = data.get(..r.len).unwrap_or(&data);
        if ctx.vm.irq.bus().write(Space::Mmio, r.gpa, bytes) == Written::Handled {
            ctx.vcpu.advance();
            return REENTER;
        }
    }
    // The guest goes on behind it with the next `KVM_RUN`, unless user space makes it abort.
    ctx.vcpu.mmio = Some(r);
    Ok(Next::ToUser(UserExit::Common(Common::Mmio {
        gpa: r.gpa,
        len,
        write: r.write,
        data,
    })))
}
