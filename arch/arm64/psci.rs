// SPDX-License-Identifier: GPL-2.0

//! HVC and SMC: the firmware that KVM stands for (Arm DEN 0022, DEN 0028).

use super::{
    exit::UserExit,
    model::{
        psci::{self, Action, Target, AFFINITY},
        smccc::{self, Call, Outcome},
    },
    shared::power,
    Arm64,
};
use crate::{
    bindings as rb,
    family::{Ctx, Next},
};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// A call of the guest's; its PC is behind the instruction already.
pub(crate) fn call(ctx: &mut Ctx<'_, Arm64>) -> Result<Next<UserExit>> {
    let v = &*ctx.vcpu;
    let call = Call::new([v.x(0), v.x(1), v.x(2), v.x(3)]);
    let vm = ctx.vm.clone();
    let outcome = {
        let firmware = vm.family.firmware.lock();
        let context = smccc::Context {
            version: firmware
                .psci
                .unwrap_or(psci::Version::initial(v.psci_0_2())),
            services: &firmware.services,
            filter: &firmware.filter,
            mitigations: firmware.mitigations,
            system_suspend: vm.family.system_suspend.load(Ordering::Relaxed),
            stolen_time: None,
        };
        smccc::decide(&call, &context)
    };
    match outcome {
        Outcome::Return(answer) => reply(ctx, answer),
        Outcome::Psci(action) => return power(ctx, action),
        Outcome::Random(r) => {
            let words = super::insn::random();
            reply(ctx, r.answer(words));
        }
        Outcome::Ptp { .. } => reply(ctx, smccc::ptp_answer(None)),
        Outcome::StolenTime(_) => reply(ctx, [smccc::code::NOT_SUPPORTED, 0, 0, 0]),
        Outcome::Forward => {
            return Ok(Next::ToUser(UserExit::Hypercall {
                nr: u64::from(call.fid),
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
    p.state.store(power::STARTING, Ordering::Release);
    c.kick.ring(0);
    Target::Started
}
