// SPDX-License-Identifier: GPL-2.0

//! HVC and SMC: the firmware that KVM stands for (Arm DEN 0022, DEN 0028).

use super::{
    exit::UserExit,
    model::{
        psci::{self, Action, Target, AFFINITY},
        pstate,
        smccc::{self, Call, Outcome},
    },
    shared::power,
    vm::Firmware,
    Arm64,
};
use crate::{
    bindings as rb,
    family::{Ctx, Next},
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// What becomes of the call in x0 to x3.
fn decide(ctx: &Ctx<'_, Arm64>, firmware: &Firmware) -> (Call, Outcome) {
    let v = &*ctx.vcpu;
    let call = Call::new([v.x(0), v.x(1), v.x(2), v.x(3)]);
    let context = smccc::Context {
        version: firmware
            .psci
            .unwrap_or(psci::Version::initial(v.psci_0_2())),
        services: &firmware.services,
        filter: &firmware.filter,
        mitigations: firmware.mitigations,
        system_suspend: ctx.vm.family.system_suspend.load(Ordering::Relaxed),
        stolen_time: v.stolen.base(),
    };
    (call, smccc::decide(&call, &context))
}

/// In a section: a call that is only a question. False: it takes the long way.
#[inline]
pub(crate) fn quick(ctx: &mut Ctx<'_, Arm64>) -> bool {
    let outcome = match ctx.vm.family.firmware.try_lock() {
        Some(firmware) => decide(ctx, &firmware).1,
        None => return false,
    };
    match outcome {
        Outcome::Return(answer) => reply(ctx, answer),
        Outcome::Psci(Action::Return(v)) => ctx.vcpu.set_x(0, v),
        _ => return false,
    }
    true
}

/// A call of AArch32 code: what it gives and takes has 32 bits. Functions of 64 bits it cannot call (DEN 0028, 2.5).
pub(crate) fn call32(ctx: &mut Ctx<'_, Arm64>, smc: bool) -> Result<Next<UserExit>> {
    for n in 0..4 {
        let v = ctx.vcpu.x(n);
        ctx.vcpu.set_x(n, v & 0xffff_ffff);
    }
    let wide = {
        let firmware = ctx.vm.family.firmware.lock();
        let (call, outcome) = decide(ctx, &firmware);
        call.is_wide() && outcome != Outcome::Forward
    };
    if wide {
        ctx.vcpu.set_x(0, smccc::code::NOT_SUPPORTED);
        return Ok(Next::Reenter);
    }
    call(ctx, smc)
}

/// A call of the guest's, by SMC or HVC; its PC is behind the instruction already.
pub(crate) fn call(ctx: &mut Ctx<'_, Arm64>, smc: bool) -> Result<Next<UserExit>> {
    let vm = ctx.vm;
    let (call, outcome) = {
        let firmware = vm.family.firmware.lock();
        decide(ctx, &firmware)
    };
    match outcome {
        Outcome::Return(answer) => reply(ctx, answer),
        Outcome::Psci(action) => return power(ctx, action),
        Outcome::Random(r) => {
            let words = super::insn::random();
            reply(ctx, r.answer(words));
        }
        Outcome::Ptp { physical } => {
            let offset = match physical {
                true => &vm.family.physical_offset,
                false => &vm.family.counter_offset,
            };
            let offset = offset.load(Ordering::Relaxed);
            let time = super::insn::clock().map(|(ns, count)| (ns, count.wrapping_sub(offset)));
            reply(ctx, smccc::ptp_answer(time));
        }
        Outcome::StolenTime(base) => {
            ctx.vcpu.stolen.begin(&vm.memory.read(), base);
            reply(ctx, [base, 0, 0, 0]);
        }
        Outcome::Forward => {
            return Ok(Next::ToUser(UserExit::Hypercall {
                nr: u64::from(call.fid),
                smc,
            }))
        }
    }
    Ok(Next::Reenter)
}

fn reply(ctx: &mut Ctx<'_, Arm64>, answer: smccc::Answer) {
    for (n, v) in (0u8..).zip(answer) {
        ctx.vcpu.set_x(n, v);
    }
}

fn power(ctx: &mut Ctx<'_, Arm64>, action: Action) -> Result<Next<UserExit>> {
    let stop_all = |ctx: &mut Ctx<'_, Arm64>| {
        for c in ctx.vm.vcpus.iter() {
            c.shared.power.state.store(power::OFF, Ordering::Release);
            c.kick.ring(0);
        }
        ctx.vcpu.set_x(0, psci::code::INTERNAL_FAILURE);
    };
    match action {
        Action::Return(v) => ctx.vcpu.set_x(0, v),
        Action::CpuOn {
            mpidr,
            entry,
            context,
        } => {
            let target = start(ctx, mpidr, entry, context);
            let version = psci::Version::initial(ctx.vcpu.psci_0_2());
            ctx.vcpu.set_x(0, psci::cpu_on_answer(version, target));
        }
        Action::CpuOff => ctx
            .core
            .shared
            .power
            .state
            .store(power::OFF, Ordering::Release),
        Action::Suspend => {
            ctx.vcpu.set_x(0, psci::code::SUCCESS);
            ctx.vcpu.waiting = true;
        }
        Action::AffinityInfo { affinity, mask } => {
            let (mut matching, mut running) = (0, 0);
            for c in ctx.vm.vcpus.iter() {
                if c.shared.mpidr.load(Ordering::Relaxed) & mask & AFFINITY == affinity {
                    matching += 1;
                    if c.shared.power.state.load(Ordering::Acquire) != power::OFF {
                        running += 1;
                    }
                }
            }
            ctx.vcpu.set_x(0, psci::affinity_answer(matching, running));
        }
        Action::SystemOff { flags } => {
            stop_all(ctx);
            return Ok(Next::ToUser(UserExit::System {
                kind: rb::KVM_SYSTEM_EVENT_SHUTDOWN,
                flags,
            }));
        }
        Action::SystemReset { flags } => {
            stop_all(ctx);
            return Ok(Next::ToUser(UserExit::System {
                kind: rb::KVM_SYSTEM_EVENT_RESET,
                flags,
            }));
        }
        Action::SystemSuspend { args } => {
            for (n, v) in (1u8..).zip(args) {
                ctx.vcpu.set_x(n, v);
            }
            return Ok(Next::ToUser(UserExit::System {
                kind: rb::KVM_SYSTEM_EVENT_SUSPEND,
                flags: 0,
            }));
        }
    }
    Ok(Next::Reenter)
}

/// CPU_ON was called for this vCPU: makes it what it starts as. Before it runs, and before user space
/// looks at it.
pub(crate) fn take_start(ctx: &mut Ctx<'_, Arm64>) {
    let p = &ctx.core.shared.power;
    if p.state.load(Ordering::Acquire) != power::STARTING {
        return;
    }
    ctx.vcpu.reset();
    ctx.vcpu.start(
        p.entry.load(Ordering::Relaxed),
        p.context.load(Ordering::Relaxed),
        p.big_endian.load(Ordering::Relaxed),
    );
    p.state.store(power::ON, Ordering::Release);
}

/// CPU_ON.
fn start(ctx: &mut Ctx<'_, Arm64>, mpidr: u64, entry: u64, context: u64) -> Target {
    let Some(c) = ctx
        .vm
        .vcpus
        .iter()
        .find(|c| c.shared.mpidr.load(Ordering::Relaxed) & AFFINITY == mpidr & AFFINITY)
    else {
        return Target::Missing;
    };
    let p = &c.shared.power;
    // Two callers: one wins, and only then says where to.
    if p.state
        .compare_exchange(
            power::OFF,
            power::CLAIMED,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
        .is_err()
    {
        return Target::On;
    }
    p.entry.store(entry, Ordering::Relaxed);
    p.context.store(context, Ordering::Relaxed);
    let (pstate, sctlr) = ctx.vcpu.data_order();
    p.big_endian
        .store(pstate::big_endian(pstate, sctlr), Ordering::Relaxed);
    p.state.store(power::STARTING, Ordering::Release);
    c.kick.ring(0);
    Target::Started
}
