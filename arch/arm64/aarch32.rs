// SPDX-License-Identifier: GPL-2.0

//! vCPUs whose EL1 is AArch32 (`KVM_ARM_VCPU_EL1_32BIT`), as far as they differ: exceptions, calls of the firmware, and
//! coprocessor accesses, which AArch32 code at EL0 makes too.

use super::{
    exit::UserExit,
    model::{
        aarch32::{self, Context, Exception, Mode},
        esr::{Esr, Syndrome, SysregAccess},
        pstate::bit,
        sysreg::Sysreg,
        trap::{
            self,
            aarch32::{self as cp, Mapped},
            Action, Class,
        },
    },
    psci,
    sysreg::{self, Served},
    vcpu::Vcpu,
    Arm64,
};
use crate::family::{Ctx, Next};
use kernel::prelude::*;

const LOW: u64 = 0xffff_ffff;

impl Vcpu {
    /// Takes an exception to EL1, which is AArch32. Outside of a section.
    pub(crate) fn raise32(&mut self, e: &Exception) {
        let taken = Context {
            pc: self.run.pc,
            pstate: self.run.pstate,
            vbar: self.el1.vbar,
            sctlr: self.el1.sctlr,
            ttbcr: self.el1.tcr,
            far: self.el1.far,
        }
        .take(e);
        self.run.pc = taken.pc;
        self.run.pstate = taken.pstate;
        let (lr, value) = taken.lr;
        self.set_x(lr, value);
        match taken.spsr {
            (Mode::Undefined, v) => self.banked.spsr_und = v,
            (_, v) => self.banked.spsr_abt = v,
        }
        if let Some(v) = taken.dfsr {
            self.el1.esr = v;
        }
        if let Some(v) = taken.ifsr {
            self.banked.ifsr = v;
        }
        self.el1.far = taken.far;
        self.debug.passed();
    }

    /// PSTATE was set to that of AArch32: what is wider than its registers goes. User and System have only R0 to R14.
    pub(crate) fn narrow(&mut self) {
        if self.run.pstate & bit::AARCH32 == 0 {
            return;
        }
        let count = match Mode::of(self.run.pstate) {
            Some(Mode::User | Mode::System) => 15,
            _ => 31,
        };
        for x in self.run.x.iter_mut().take(count) {
            *x &= LOW;
        }
        self.run.pc &= LOW;
    }
}

/// The condition of the instruction that has trapped holds. If not, it does nothing.
fn condition_holds(ctx: &Ctx<'_, Arm64>) -> bool {
    Esr(ctx.vcpu.run.esr).condition_holds(ctx.vcpu.run.pstate)
}

/// A coprocessor access.
pub(crate) fn coprocessor(ctx: &mut Ctx<'_, Arm64>, s: Syndrome) {
    let served = if condition_holds(ctx) {
        access(ctx, s)
    } else {
        Served::Done
    };
    match served {
        Served::Done => ctx.vcpu.advance(),
        Served::Trapped if !ctx.vcpu.aarch32() => super::run::trapped(ctx.vcpu),
        // An EL1 that is AArch32 has no syndrome for it.
        Served::Trapped | Served::Undefined => ctx.vcpu.undefined(),
    }
}

/// A wait whose condition does not hold is none.
pub(crate) fn waits(ctx: &Ctx<'_, Arm64>) -> bool {
    ctx.vcpu.run.pstate & bit::AARCH32 == 0 || condition_holds(ctx)
}

/// SMC, whose PC is that of the instruction.
pub(crate) fn smc(ctx: &mut Ctx<'_, Arm64>) -> Result<Next<UserExit>> {
    let holds = condition_holds(ctx);
    ctx.vcpu.advance();
    if holds {
        psci::call32(ctx, true)
    } else {
        Ok(Next::Reenter)
    }
}

fn access(ctx: &mut Ctx<'_, Arm64>, s: Syndrome) -> Served {
    let (mapped, rt, rt2, write) = match s {
        Syndrome::Cp15(a) => (cp::cp15(&a), a.rt, None, a.write),
        Syndrome::Cp14(a) => (cp::cp14(&a), a.rt, None, a.write),
        Syndrome::VmrsId(a) => (cp::vmrs(&a), a.rt, None, a.write),
        Syndrome::Cp15Pair(a) => (cp::cp15_pair(&a), a.rt, Some(a.rt2), a.write),
        Syndrome::Cp14Pair(a) => (cp::cp14_pair(&a), a.rt, Some(a.rt2), a.write),
        _ => return Served::Undefined,
    };
    let pstate = ctx.vcpu.run.pstate;
    let (rt, rt2) = (
        aarch32::view(pstate, rt),
        rt2.map(|n| aarch32::view(pstate, n)),
    );
    let mapped = match Mode::of(pstate) {
        Some(Mode::User) => cp::at_el0(mapped),
        _ => mapped,
    };
    let (reg, upper) = match mapped {
        Mapped::Register(r) => (Some(r), false),
        Mapped::Upper(r) => (Some(r), true),
        Mapped::RazWi | Mapped::Dbgdidr | Mapped::DscrInt => (None, false),
        Mapped::Undefined => return Served::Undefined,
    };
    let row = match reg {
        None => None,
        Some(r) => {
            let a = SysregAccess { reg: r, rt, write };
            match trap::decide32(&a, &ctx.vcpu.ids.features) {
                Action::Undefined => return Served::Undefined,
                Action::RazWi => None,
                Action::Serve(class) => Some((r, class)),
            }
        }
    };
    if write {
        let low = ctx.vcpu.x(rt) & LOW;
        let Some((r, class)) = row else {
            return Served::Done;
        };
        let v = match (rt2, class) {
            (_, Class::OsLock) => cp::os_lock_key(low),
            (Some(n), _) => ctx.vcpu.x(n) << 32 | low,
            // The other half is another register's.
            (None, Class::Debug | Class::Vm) => match ctx.vcpu.sys(r) {
                Some(old) => cp::with_half(*old, upper, low),
                None => return Served::Undefined,
            },
            (None, _) => low,
        };
        return sysreg::write(ctx, r, class, v, rt2.is_none());
    }
    let v = match (row, mapped) {
        (Some((r, class)), _) => match sysreg::read(ctx, r, class) {
            Ok(v) => v,
            Err(why) => return why,
        },
        (None, Mapped::Dbgdidr) => u64::from(cp::dbgdidr(
            ctx.vcpu.ids.get(Sysreg::ID_AA64DFR0_EL1),
            ctx.vcpu.ids.get(Sysreg::ID_AA64PFR0_EL1),
        )),
        (None, Mapped::DscrInt) => cp::dscr_int(ctx.vcpu.debug.mdscr),
        (None, _) => 0,
    };
    let low = if upper { v >> 32 } else { v & LOW };
    ctx.vcpu.set_x(rt, low);
    match rt2 {
        Some(n) => ctx.vcpu.set_x(n, v >> 32),
        // MRC to APSR_nzcv.
        None if rt == 31 => {
            ctx.vcpu.run.pstate = pstate & !bit::NZCV | low & bit::NZCV;
        }
        None => {}
    }
    Served::Done
}
