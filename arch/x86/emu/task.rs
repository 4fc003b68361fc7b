// SPDX-License-Identifier: GPL-2.0

//! Task switches, which no processor does in a guest.

use super::{failure, fetch, machine::Machine, missed, After, Code};
use crate::{
    arch::x86::{
        backend::{Backend, HwVcpu},
        exit::{self, TaskSwitchReason as Reason},
        handle,
        mem::{Miss, Phys},
        model::{
            emulate::{switch_task, Regs, Stop, TaskCause, TaskSwitch, Tasks},
            regs::{cr0, rflags, vector, Exception, Segment},
            sregs::Effects,
        },
        run, X86,
    },
    family::{Ctx, Next},
    host::trace,
    memory::View,
};

/// DR7: L0 to L3 and LE, which are the task's.
const LOCAL_ENABLES: u64 = 0x155;
/// DR6.BT: the new TSS has its T flag set.
const TASK_TRAP: u64 = 1 << 15;

impl<B: Backend> Tasks for Machine<'_, '_, '_, B> {
    fn set_tr(&mut self, v: &Segment) {
        self.ctx.vcpu.hw.set_tr(v);
    }
    fn set_ldtr(&mut self, v: &Segment) {
        self.ctx.vcpu.hw.set_ldtr(v);
    }
    fn set_cr3(&mut self, v: u64) -> bool {
        let vcpu = &mut *self.ctx.vcpu;
        match vcpu.control().mov_cr3(v, &vcpu.features) {
            Ok((c, effects)) => {
                vcpu.set_control(&c, effects);
                true
            }
            Err(_) => false,
        }
    }
    fn task_switched(&mut self) {
        let vcpu = &mut *self.ctx.vcpu;
        let mut c = vcpu.control();
        c.cr0 |= cr0::TS;
        vcpu.set_control(&c, Effects::NONE);
        vcpu.set_guest_dr7(vcpu.guest_dr7() & !LOCAL_ENABLES);
    }
}

/// Where the old task goes on, and what the switch is to the model.
fn cause<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    reason: Reason,
) -> core::result::Result<(u64, TaskCause), Miss> {
    let v = &mut *ctx.vcpu;
    let rip = v.hw.rip();
    let cause = match reason {
        Reason::Event | Reason::Nmi => return Ok((rip, TaskCause::Event)),
        Reason::Int1 => TaskCause::Event,
        Reason::Soft { .. } => TaskCause::SoftEvent,
        Reason::Call => TaskCause::Call,
        Reason::Jump => TaskCause::Jump,
        Reason::Iret => TaskCause::Iret,
    };
    if let Some(next) = v.hw.next_rip() {
        return Ok((next, cause));
    }
    let len = match reason {
        Reason::Soft { vector } => match run::soft_length(v, &mut Phys::sleeping(view), vector) {
            Some(len) => len,
            // A #BP or #OF that user space has made up.
            None => return Ok((rip, TaskCause::Event)),
        },
        _ => {
            let mut code = Code::default();
            fetch(v, view, &mut code, None)?;
            code.decoded.map_or(0, |(_, insn)| insn.len)
        }
    };
    Ok((v.narrow(rip.wrapping_add(u64::from(len))), cause))
}

/// Does a task switch.
///
/// # Errors
/// As [`handle::memory_fault`].
#[cold]
pub(crate) fn switch<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    wanted: &exit::TaskSwitch,
) -> After {
    ctx.vcpu.pending.abandon();
    let (next, cause) = match cause(ctx, view, wanted.reason) {
        Ok(c) => c,
        Err(miss) => return missed(ctx, miss),
    };
    let v = &mut *ctx.vcpu;
    let rip = v.hw.rip();
    let mut regs = Regs {
        gprs: v.gprs,
        rip,
        rflags: v.visible_rflags(),
    };
    match wanted.resume {
        Some(true) => regs.rflags |= rflags::RF,
        Some(false) => regs.rflags &= !rflags::RF,
        None => {}
    }
    v.pending.begin();
    let mut m = Machine {
        ctx,
        view,
        operand: &mut None,
        fault: None,
        leave: false,
    };
    let task = TaskSwitch {
        selector: wanted.selector,
        cause,
        next,
        error: wanted.error,
    };
    let result = switch_task(&mut m, &task, &mut regs);
    let fault = m.fault;
    let v = &mut *ctx.vcpu;
    if result.is_err() {
        v.pending.undo();
        v.pending.abandon();
    }
    let taken_nmi = wanted.reason == Reason::Nmi;
    let done = matches!(result, Ok(_) | Err(Stop::Fault(_)));
    // IRET ends the masking of NMIs even if it faults then.
    if done && (taken_nmi || cause == TaskCause::Iret) {
        v.hw.set_nmi_masked(taken_nmi);
    }
    match result {
        Ok(arrival) => {
            v.replace_rflags(regs.rflags);
            v.hw.set_interrupt_shadow(false);
            match arrival.fault {
                // It combines with the event that is being delivered.
                Some(e) => v.raise(e),
                None => v.events.exited(None),
            }
            if arrival.trap {
                v.raise(Exception {
                    vector: vector::DB,
                    error: None,
                    payload: Some(TASK_TRAP),
                });
            }
            if next != rip {
                v.debugger_steps();
            }
            Ok(v.pending.tell().map_or(Next::Reenter, Next::ToUser))
        }
        Err(Stop::Fault(e)) => {
            v.raise(e);
            Ok(Next::Reenter)
        }
        // The same again: the instruction, or the event's delivery.
        Err(Stop::Again) => Ok(Next::Reenter),
        Err(Stop::NeedUser | Stop::Unhandleable) => match fault {
            Some(gpa) => handle::memory_fault(ctx, gpa),
            None => impossible(ctx, wanted),
        },
    }
}

/// A TSS or a descriptor table in a device's memory, or long mode.
fn impossible<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, wanted: &exit::TaskSwitch) -> After {
    trace::guest_error(
        c"task switch cannot be emulated; RIP, selector",
        ctx.vcpu.hw.rip(),
        u64::from(wanted.selector),
    );
    failure(ctx.vcpu, &[])
}
