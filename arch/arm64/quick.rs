// SPDX-License-Identifier: GPL-2.0

//! Exits that are handled in the section, with interrupts off. The guest's EL1 registers are in the CPU then, and locks
//! that sleep are only tried. False, from any of these: nothing has happened, and the exit takes the long way.

use super::{
    insn,
    model::{
        esr::{DataAbort, Esr, Syndrome},
        mmio::{self, Mmio},
    },
    psci, sysreg, Arm64,
};
use crate::{
    family::Ctx,
    irq::{bus::Space, Written},
    memory::View,
};

/// One that its syndrome tells all of.
#[inline]
pub(crate) fn exit(ctx: &mut Ctx<'_, Arm64>, s: &Syndrome) -> bool {
    match *s {
        Syndrome::Hvc(_) => psci::quick(ctx),
        Syndrome::Sysreg(a) => {
            let done = sysreg::quick(ctx, a);
            if done {
                ctx.vcpu.advance();
            }
            done
        }
        _ => false,
    }
}

/// An access to where stage 2 has nothing: the interrupt controller, or a write that an eventfd waits for.
#[inline]
pub(crate) fn device(ctx: &mut Ctx<'_, Arm64>, view: &View<'_>, d: &DataAbort, gpa: u64) -> bool {
    const PAGE_SHIFT: u32 = 12;
    if view.slot(gpa >> PAGE_SHIFT).is_some() {
        return false;
    }
    let order = (ctx.vcpu.run.pstate, insn::guest_sctlr());
    let esr = Esr(ctx.vcpu.run.esr);
    let Mmio::Device(r) = mmio::decide(esr, d, gpa, false, order, false) else {
        return false;
    };
    let len = u8::try_from(r.len).unwrap_or(8);
    // What concerns timers' interrupts takes the long way: the timers are in the CPU.
    let gic = &*ctx.vm.controller;
    if r.write {
        let data = r.store(ctx.vcpu.x(r.rt()));
        if gic.distributor(gpa, len, Some(&data)).is_none() {
            let bytes = data.get(..r.len).unwrap_or(&data);
            if ctx.vm.irq.bus().write(Space::Mmio, gpa, bytes) != Written::Handled {
                return false;
            }
        }
    } else {
        let Some(read) = gic.distributor(gpa, len, None) else {
            return false;
        };
        ctx.vcpu.set_x(r.rt(), r.load(read));
    }
    ctx.vcpu.advance();
    true
}
