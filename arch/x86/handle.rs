// SPDX-License-Identifier: GPL-2.0

//! Exits that are handled outside of a guest section: they may sleep, fault, and end in user space.

use super::{
    backend::{Backend, HwVcpu, Since},
    emu::{self, Operand},
    exit::{Exit, Io, Stage2Access},
    io::{Asked, UserExit},
    mem::Phys,
    model::{
        decode::{length_of, Mnemonic},
        regs::{cr0, vector, Exception, Gpr},
        sregs::{self, Gp},
    },
    run::{self, length},
    vcpu::{MpState, Vcpu},
    X86,
};
use crate::{
    abi::exit::{Common, WriteRun as _},
    bindings as rb,
    family::{Ctx, Next, Step},
    host::trace,
    memory::{Access, Outcome, View},
};
use kernel::prelude::*;

/// What is left to do when a section ends.
pub(crate) enum Slow {
    /// This exit.
    Exit(Exit),
    /// User space wants to see an MSR access.
    Msr {
        /// WRMSR
        write: bool,
        /// `KVM_MSR_EXIT_REASON_*`
        reason: u32,
        /// Bytes of the instruction.
        len: u8,
    },
    /// HLT, and there is no local APIC that could wake the vCPU.
    HaltToUser,
    /// A triple fault.
    TripleFault,
    /// The hardware wants page-directory pointers that are not in memory right now.
    Pdptes,
    /// Whether the guest has ended its interrupt is not to be found out right now; and then this exit.
    Eoi(Option<Exit>),
}

type After = Result<Next<UserExit>>;

const REENTER: After = Ok(Next::Reenter);

/// A fault's access, as the memory room has it.
pub(crate) fn access_of(a: &Stage2Access) -> Access {
    if a.write {
        Access::Write
    } else if a.fetch {
        Access::Execute
    } else {
        Access::Read
    }
}

/// What became of an exit that was handled quickly after all.
pub(crate) fn after<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    step: Step<Slow>,
) -> After {
    match step {
        Step::Again | Step::Leave(None) => REENTER,
        Step::Leave(Some(slow)) => handle(ctx, view, slow),
    }
}

/// See [`crate::family::Family::handle`].
pub(crate) fn handle<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, slow: Slow) -> After {
    match slow {
        Slow::Exit(e) => exit(ctx, view, &e),
        Slow::Msr { write, reason, len } => {
            let v = &mut *ctx.vcpu;
            v.pending.asked = if write {
                Asked::Wrmsr { len }
            } else {
                Asked::Rdmsr { len }
            };
            Ok(Next::ToUser(UserExit::Msr {
                write,
                reason,
                index: (v.gprs.get(Gpr::Rcx) & 0xffff_ffff) as u32,
                data: if write { v.edx_eax() } else { 0 },
            }))
        }
        Slow::Eoi(e) => {
            let v = &mut *ctx.vcpu;
            v.pv.eoi.settle_now(&mut v.lapic, view);
            e.map_or(REENTER, |e| exit(ctx, view, &e))
        }
        Slow::HaltToUser => Ok(Next::ToUser(UserExit::Common(Common::Halt))),
        Slow::TripleFault => Ok(shutdown(ctx.vcpu)),
        Slow::Pdptes => {
            if ctx.vcpu.load_pdptes(&Phys::sleeping(view)).is_err() {
                // None of the guest's addresses is mapped, then.
                ctx.vcpu.hw.set_pdptes(&[0; 4]);
            }
            REENTER
        }
    }
}

fn shutdown<B: Backend>(v: &mut Vcpu<B>) -> Next<UserExit> {
    trace::guest_error(c"triple fault at RIP, CR2", v.hw.rip(), v.hw.cr2());
    Next::ToUser(UserExit::Common(Common::Shutdown))
}

fn exit<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, e: &Exit) -> After {
    match *e {
        Exit::HostInterrupt
        | Exit::TimeIsUp
        | Exit::HostNmi
        | Exit::LogFull
        | Exit::MachineCheck
        | Exit::InterruptWindow
        | Exit::NmiWindow => REENTER,
        Exit::Eoi { vector } => {
            let step = run::eoi(ctx, vector);
            after(ctx, view, step)
        }
        Exit::Stage2Fault { gpa, access } => stage2_fault(ctx, view, gpa, &access),
        Exit::Io(io) => port_io(ctx, view, &io),
        Exit::Pause => {
            crate::host::work::yield_now();
            step_over(ctx, view, Mnemonic::Pause)
        }
        Exit::Wbinvd => step_over(ctx, view, Mnemonic::Wbinvd),
        Exit::Invd => step_over(ctx, view, Mnemonic::Invd),
        Exit::Cpuid
        | Exit::Hlt
        | Exit::Rdmsr
        | Exit::Wrmsr
        | Exit::Rdpmc
        | Exit::Rdtsc
        | Exit::Monitor
        | Exit::Mwait
        | Exit::Cr { .. }
        | Exit::Dr { .. }
        | Exit::Invlpg { .. }
        | Exit::Xsetbv
        | Exit::Hypercall => emu::run(ctx, view, None),
        Exit::Rsm | Exit::Undefined => {
            ctx.vcpu.raise(Exception::ud());
            REENTER
        }
        Exit::TaskSwitch(ref wanted) => emu::task::switch(ctx, view, wanted),
        // #AC is intercepted so that a guest cannot keep the processor busy with it; it is the guest's.
        Exit::Exception(x) if x.vector == vector::UD => undefined(ctx, view),
        Exit::Exception(x) if ctx.vcpu.debug.wants(x.vector) => {
            let dr6 = x.payload.unwrap_or(sregs::DR6_INIT);
            let exit = ctx.vcpu.debug_exit(x.vector, dr6);
            Ok(Next::ToUser(UserExit::Common(exit)))
        }
        Exit::Exception(x) => {
            ctx.vcpu.raise(x);
            REENTER
        }
        Exit::SoftInterrupt => soft_interrupt(ctx, view),
        Exit::TripleFault => Ok(shutdown(ctx.vcpu)),
        Exit::FailEntry { code } => Ok(fail_entry(ctx, code)),
        Exit::Unknown { code } => {
            trace::guest_error(c"exit reason not known; RIP", code, ctx.vcpu.hw.rip());
            Ok(Next::ToUser(UserExit::Common(Common::Unknown { code })))
        }
    }
}

/// The hardware refused the guest's state: says which rule it breaks.
fn fail_entry<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, code: u64) -> Next<UserExit> {
    let why = ctx
        .vcpu
        .hw
        .broken_rule()
        .unwrap_or(c"no rule that is known here is broken");
    trace::guest_error(why, code, ctx.vcpu.hw.rip());
    if crate::host::trace::may_log() {
        pr_warn!(
            "vCPU {}: the processor refused the guest's state (code {:#x}): {}\n",
            ctx.core.id,
            code,
            why
        );
    }
    Next::ToUser(UserExit::Common(Common::FailEntry {
        code,
        cpu: crate::host::work::cpu_hint(),
        why,
    }))
}

/// An instruction that does nothing here.
fn step_over<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, m: Mnemonic) -> After {
    match length(ctx.vcpu, view, m) {
        Some(next) => {
            ctx.vcpu.advance_to(next);
            REENTER
        }
        None => emu::run(ctx, view, None),
    }
}

/// #UD: VMCALL on AMD and VMMCALL on Intel are hypercalls all the same, for guests that were moved
/// from one to the other.
fn undefined<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>) -> After {
    let v = &mut *ctx.vcpu;
    let next = length(v, view, Mnemonic::Vmcall).or_else(|| length(v, view, Mnemonic::Vmmcall));
    match next {
        // `length` trusts hardware that says the next address; for #UD none does.
        Some(next) if v.hw.next_rip().is_none() => {
            hypercall(v);
            v.advance_to(next);
        }
        _ => v.raise(Exception::ud()),
    }
    REENTER
}

/// INT n, INT3 or INTO: the debugger's, or delivered after all.
fn soft_interrupt<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>) -> After {
    let v = &mut *ctx.vcpu;
    let mut buf = [0; 15];
    let n = v.fetch(&mut Phys::sleeping(view), v.code_address(), &mut buf);
    let bytes = n.ok().and_then(|n| buf.get(..n)).unwrap_or(&[]);
    if v.debug.wants(vector::BP) && length_of(bytes, v.mode(), Mnemonic::Int3).is_some() {
        let exit = v.debug_exit(vector::BP, sregs::DR6_INIT);
        return Ok(Next::ToUser(UserExit::Common(exit)));
    }
    emu::run(ctx, view, None)
}

/// A guest-physical address that stage 2 does not map (so).
fn stage2_fault<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    gpa: u64,
    access: &Stage2Access,
) -> After {
    let outcome = match ctx
        .vm
        .memory
        .fault(view, gpa, access_of(access), &mut ctx.vcpu.tables)
    {
        Ok(o) => o,
        Err(e) if e == EFAULT => return memory_fault(ctx, gpa),
        Err(e) => return Err(e),
    };
    match outcome {
        Outcome::Mapped => {
            ctx.vcpu.since = Since::Fault;
            REENTER
        }
        Outcome::Retry => REENTER,
        Outcome::NoSlot | Outcome::ReadOnly => {
            if access.table_walk {
                // The processor's own access to a page table that is no memory.
                trace::guest_error(c"page table in MMIO; gpa, RIP", gpa, ctx.vcpu.hw.rip());
                return emu::failure(ctx.vcpu, &[]);
            }
            if ctx.vcpu.events.needs_reinjection() {
                // The processor was delivering an event through an IDT or onto a stack that is no
                // memory: to run the instruction at RIP would lose the event.
                return Ok(delivery_failed(ctx, gpa));
            }
            let operand = (!access.fetch).then(|| Operand::new(gpa, access.write));
            emu::run(ctx, view, operand)
        }
    }
}

/// An event cannot be delivered, because of a device's memory.
fn delivery_failed<B: Backend>(ctx: &Ctx<'_, X86<B>>, gpa: u64) -> Next<UserExit> {
    trace::guest_error(
        c"event delivery touches MMIO; gpa, RIP",
        gpa,
        ctx.vcpu.hw.rip(),
    );
    Next::ToUser(UserExit::Common(Common::InternalError {
        suberror: rb::KVM_INTERNAL_ERROR_DELIVERY_EV,
        data: [gpa, ctx.vcpu.hw.rip()],
    }))
}

/// Memory that a slot promises cannot be had: `KVM_RUN` fails with `EFAULT`, and the exit's data says
/// where.
pub(crate) fn memory_fault<B: Backend>(ctx: &Ctx<'_, X86<B>>, gpa: u64) -> After {
    trace::guest_error(c"no memory behind a slot; gpa", gpa, 0);
    if let Some(run) = ctx.core.run_page() {
        Common::MemoryFault {
            gpa: gpa & !0xfff,
            size: 0x1000,
        }
        .write(run);
    }
    Err(EFAULT)
}

/// IN, OUT, INS, OUTS that nothing in the kernel took.
fn port_io<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, io: &Io) -> After {
    if io.string {
        return emu::run(ctx, view, None);
    }
    let want = if io.input {
        Mnemonic::In
    } else {
        Mnemonic::Out
    };
    let Some(next) = io.next_rip.or_else(|| length(ctx.vcpu, view, want)) else {
        return emu::run(ctx, view, None);
    };
    let v = &mut *ctx.vcpu;
    if io.input {
        v.pending.asked = Asked::In {
            size: io.size,
            next_rip: next,
        };
    } else {
        let value = (v.gprs.get(Gpr::Rax) & 0xffff_ffff) as u32;
        let page = ctx.core.pages.get(1).ok_or(EIO)?;
        v.pending.post_out(page, io.port, io.size, value);
        v.advance_to(next);
        return Ok(v.pending.tell().map_or(Next::Reenter, Next::ToUser));
    }
    Ok(Next::ToUser(UserExit::Io {
        input: true,
        size: io.size,
        port: io.port,
        count: 1,
    }))
}

/// MOV to a control register, LMSW, CLTS: `value` is what the register would be.
///
/// # Errors
/// [`Gp`]
pub(crate) fn write_cr<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    cr: u8,
    value: u64,
) -> core::result::Result<(), Gp> {
    let v = &mut *ctx.vcpu;
    let c = v.control();
    let cs_long = v.hw.segment(super::model::regs::Seg::Cs).attr.long();
    let (c, effects) = match cr {
        0 => c.mov_cr0(value, cs_long)?,
        3 => c.mov_cr3(value, &v.features)?,
        4 => c.mov_cr4(value, &v.features)?,
        8 => {
            let cr8 = sregs::mov_cr8(value)?;
            v.lapic.set_cr8(cr8);
            return Ok(());
        }
        _ => {
            v.hw.set_cr2(value);
            return Ok(());
        }
    };
    v.set_control(&c, effects);
    Ok(())
}

/// A control register as the guest reads it.
pub(crate) fn read_cr<B: Backend>(v: &Vcpu<B>, cr: u8) -> u64 {
    match cr {
        0 => v.hw.cr0() | cr0::ET,
        2 => v.hw.cr2(),
        3 => v.hw.cr3(),
        4 => v.hw.cr4(),
        _ => u64::from(v.lapic.cr8()),
    }
}

/// MOV to a debug register.
///
/// # Errors
/// [`Gp`]
pub(crate) fn write_dr<B: Backend>(
    v: &mut Vcpu<B>,
    dr: u8,
    value: u64,
) -> core::result::Result<(), Gp> {
    match dr {
        0..=3 => {
            let mut all = v.guest_breakpoints();
            if let Some(d) = all.get_mut(usize::from(dr)) {
                *d = value;
            }
            v.set_guest_breakpoints(all);
        }
        6 | 4 => {
            let dr6 = sregs::write_dr6(value, &v.features)?;
            v.set_guest_dr6(dr6);
        }
        _ => {
            let dr7 = sregs::write_dr7(value, &v.features)?;
            v.set_guest_dr7(dr7);
        }
    }
    v.use_debug_regs();
    Ok(())
}

/// A debug register as the guest reads it.
pub(crate) fn read_dr<B: Backend>(v: &mut Vcpu<B>, dr: u8) -> u64 {
    let value = match dr {
        0..=3 => v
            .guest_breakpoints()
            .get(usize::from(dr))
            .copied()
            .unwrap_or(0),
        4 | 6 => v.guest_dr6(),
        _ => v.guest_dr7(),
    };
    v.use_debug_regs();
    value
}

/// XSETBV.
///
/// # Errors
/// [`Gp`]
pub(crate) fn xsetbv<B: Backend>(v: &mut Vcpu<B>) -> core::result::Result<(), Gp> {
    let index = (v.gprs.get(Gpr::Rcx) & 0xffff_ffff) as u32;
    let value = sregs::xsetbv(index, v.edx_eax(), &v.features)?;
    v.fpu.set_xcr0(value).map_err(|_| Gp)
}

/// Hypercalls: none is provided; the guest is told so.
pub(crate) fn hypercall<B: Backend>(v: &mut Vcpu<B>) {
    let user = v.hw.cpl() > 0;
    /// KVM_EPERM and KVM_ENOSYS of linux/kvm_para.h
    const ERRORS: (u64, u64) = (1, 1000);
    let error = if user { ERRORS.0 } else { ERRORS.1 };
    let result = 0u64.wrapping_sub(error);
    v.gprs.set(Gpr::Rax, v.narrow(result));
}

/// HLT, after the emulator: see [`run::halt`].
pub(crate) fn halt<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>) -> After {
    let step = run::halt(ctx);
    after(ctx, view, step)
}

/// INIT: the application processor stops and waits for its start-up message; the bootstrap
/// processor starts over.
pub(crate) fn init<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) {
    let v = &mut *ctx.vcpu;
    v.reset(true);
    v.pending.abandon();
    v.mp_state = if v.bsp {
        MpState::Runnable
    } else {
        MpState::InitReceived
    };
    ctx.core.shared.identity.publish(v.lapic.identity());
    v.set_alarm(super::model::lapic::Timer::Cancel);
}

/// Start-up: runs from page `vector` in real mode.
pub(crate) fn startup<B: Backend>(v: &mut Vcpu<B>, vector: u8) {
    use super::model::regs::{Seg, Segment};
    if v.mp_state != MpState::InitReceived {
        return;
    }
    v.sipi_vector = vector;
    let cs = v.hw.segment(Seg::Cs);
    v.hw.set_segment(
        Seg::Cs,
        &Segment {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            ..cs
        },
    );
    v.hw.set_rip(0);
    v.mp_state = MpState::Runnable;
}
