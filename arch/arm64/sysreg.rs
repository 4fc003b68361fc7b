// SPDX-License-Identifier: GPL-2.0

//! System registers: those that trap, and those that user space names.

use super::{
    gic::Gic,
    insn,
    model::{
        esr::SysregAccess,
        idreg,
        sysreg::Sysreg,
        trap::{self, Action, Class, Timer, TimerReg},
        vgic::{SgiReg, FIRST_SPI},
    },
    pmu,
    shared::Shared,
    vcpu::Vcpu,
    vm::VmState,
    Arm64,
};
use crate::{family::Ctx, host::trace};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// What has become of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// It is made.
    Done,
    /// The register is undefined for the guest.
    Undefined,
    /// EL1 has it trap.
    Trapped,
}

/// A guest's access that trapped.
pub(crate) fn access(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) -> Served {
    let class = match trap::decide(&a, &ctx.vcpu.ids.features) {
        Action::Undefined => return Served::Undefined,
        Action::RazWi => {
            if !a.write {
                ctx.vcpu.set_x(a.rt, 0);
            }
            return Served::Done;
        }
        Action::Serve(class) => class,
    };
    if a.write {
        let v = ctx.vcpu.x(a.rt);
        return write(ctx, a.reg, class, v, false);
    }
    match read(ctx, a.reg, class) {
        Ok(v) => {
            ctx.vcpu.set_x(a.rt, v);
            Served::Done
        }
        Err(why) => why,
    }
}

/// The same in a section, for what is frequent: questions who the CPU is, and interrupts for other vCPUs. False: it takes
/// the long way.
#[inline]
pub(crate) fn quick(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) -> bool {
    match (trap::decide(&a, &ctx.vcpu.ids.features), a.write) {
        (Action::Serve(Class::Id), false) => ctx.vcpu.set_x(a.rt, ctx.vcpu.ids.get(a.reg)),
        (Action::Serve(Class::Gic), true) if a.reg == Sysreg::ICC_SGI1R_EL1 => {
            let value = ctx.vcpu.x(a.rt);
            let (gic, own) = (&*ctx.vm.controller, &*ctx.core.shared.gic);
            gic.send_sgi(own, SgiReg::Sgi1r, value);
        }
        (Action::Serve(Class::Pmu), _) => return pmu::quick(ctx, a),
        _ => return false,
    }
    true
}

/// A register of this class, which the guest may read.
pub(super) fn read(ctx: &mut Ctx<'_, Arm64>, r: Sysreg, class: Class) -> Result<u64, Served> {
    if class == Class::Pmu {
        return pmu::access(ctx, r, None);
    }
    let v = &mut *ctx.vcpu;
    Ok(match class {
        Class::Id | Class::Implementation => v.ids.get(r),
        Class::DebugAuth => insn::debug_auth(),
        Class::Ccsidr => {
            let csselr = *v.sys(Sysreg::CSSELR_EL1).ok_or(Served::Undefined)?;
            let selected = idreg::cache::selected(csselr);
            // What selects no cache is unknown.
            let of = selected.and_then(|n| v.ccsidr.get(usize::from(n)));
            u64::from(of.copied().unwrap_or(0))
        }
        Class::Timer(t, reg) => timer(v, &ctx.vm.family, t, reg),
        Class::Gic => (ctx.vm.controller)
            .read_sysreg(&ctx.core.shared.gic, r)
            .ok_or(Served::Undefined)?,
        _ => *v.sys(r).ok_or(Served::Undefined)?,
    })
}

/// The guest writes it. `low`: AArch32 writes 32 bits of a register that has more.
pub(super) fn write(
    ctx: &mut Ctx<'_, Arm64>,
    r: Sysreg,
    class: Class,
    value: u64,
    low: bool,
) -> Served {
    match class {
        Class::Pmu => {
            return pmu::access(ctx, r, Some((value, low)))
                .err()
                .unwrap_or(Served::Done)
        }
        // Nothing is cached beside the host's own caches, which are coherent.
        Class::SetWay | Class::Actlr => {}
        Class::OsLock => {
            let d = &mut ctx.vcpu.debug;
            d.oslsr = trap::os_lock(d.oslsr, value);
        }
        // Level and InD.
        Class::Csselr => match ctx.vcpu.sys(r) {
            Some(s) => *s = value & 0xf,
            None => return Served::Undefined,
        },
        Class::Gic => {
            let gic = &*ctx.vm.controller;
            let cpu = &*ctx.core.shared.gic;
            let reg = match r {
                Sysreg::ICC_DIR_EL1 => {
                    for intid in gic.deactivate(cpu, value).iter() {
                        ctx.vm.irq.ack(0, intid.wrapping_sub(FIRST_SPI));
                    }
                    return Served::Done;
                }
                Sysreg::ICC_SGI1R_EL1 => SgiReg::Sgi1r,
                Sysreg::ICC_ASGI1R_EL1 => SgiReg::Asgi1r,
                Sysreg::ICC_SGI0R_EL1 => SgiReg::Sgi0r,
                // System registers, and nothing else.
                Sysreg::ICC_SRE_EL1 => return Served::Done,
                _ if gic.write_sysreg(cpu, r, value) => return Served::Done,
                _ => return Served::Undefined,
            };
            gic.send_sgi(cpu, reg, value);
        }
        Class::Timer(t, reg) => set_timer(ctx.vcpu, &ctx.vm.family, t, reg, value),
        _ => match ctx.vcpu.sys(r) {
            Some(s) => *s = value,
            None => return Served::Undefined,
        },
    }
    Served::Done
}

fn timer(v: &Vcpu, vm: &VmState, t: Timer, reg: TimerReg) -> u64 {
    let (timer, count) = match t {
        Timer::Virtual => (&v.timer, vm.counter()),
        Timer::Physical => (&v.physical, vm.physical_count()),
    };
    match reg {
        TimerReg::Count => count,
        TimerReg::Countdown => timer.cval.wrapping_sub(count) & 0xffff_ffff,
        TimerReg::Control => timer.control(count),
        TimerReg::Compare => timer.cval,
    }
}

fn set_timer(v: &mut Vcpu, vm: &VmState, t: Timer, reg: TimerReg, value: u64) {
    let count = match t {
        Timer::Virtual => vm.counter(),
        Timer::Physical => vm.physical_count(),
    };
    let timer = match t {
        Timer::Virtual => &mut v.timer,
        Timer::Physical => &mut v.physical,
    };
    match reg {
        TimerReg::Count => {}
        TimerReg::Countdown => {
            // Signed, 32 bits.
            let down = i64::from(i32::from_ne_bytes(
                u32::try_from(value & 0xffff_ffff)
                    .unwrap_or(0)
                    .to_ne_bytes(),
            ));
            timer.cval = count.wrapping_add_signed(down);
        }
        TimerReg::Control => timer.ctl = value & 3,
        TimerReg::Compare => timer.cval = value,
    }
}

impl Vcpu {
    /// A register that is kept as a value. Outside of a section.
    pub(crate) fn sys(&mut self, r: Sysreg) -> Option<&mut u64> {
        if self.el1.get_mut(r).is_some() {
            return self.el1.get_mut(r);
        }
        if self.later.get_mut(r).is_some() {
            return self.later.get_mut(r);
        }
        if self.special(r).is_some() {
            return self.special(r);
        }
        if r.op1() == 4 {
            return self.banked.get_mut(r);
        }
        self.slots.get_mut(trap::slot(r)?)
    }

    /// `KVM_GET_ONE_REG` of a system register.
    pub(crate) fn user_sysreg(&mut self, vm: &VmState, shared: &Shared, r: Sysreg) -> Result<u64> {
        let row = trap::find(r).ok_or(ENOENT)?;
        Ok(match row.class {
            Class::Id | Class::Implementation => vm.ids.get(r),
            Class::Timer(t, reg) => timer(self, vm, t, reg),
            Class::Pmu => (self.pmu.as_mut())
                .and_then(|p| p.user_read(vm, r))
                .ok_or(ENOENT)?,
            _ if r == Sysreg::MPIDR_EL1 => shared.mpidr.load(Ordering::Relaxed),
            _ => *self.sys(r).ok_or(ENOENT)?,
        })
    }

    /// `KVM_SET_ONE_REG` of one.
    pub(crate) fn set_user_sysreg(
        &mut self,
        vm: &VmState,
        shared: &Shared,
        gic: &Gic,
        r: Sysreg,
        value: u64,
    ) -> Result {
        let row = trap::find(r).ok_or(ENOENT)?;
        match row.class {
            Class::Id | Class::Implementation => vm.ids.set(vm.host, r, value, &vm.ran)?,
            Class::Clidr => {
                idreg::cache::check_clidr(insn::ftr(Sysreg::CTR_EL0), value)
                    .map_err(|_| trace::invalid(c"the host's caches need more maintenance"))?;
                *self.sys(r).ok_or(ENOENT)? = value;
            }
            Class::OsLockStatus if !trap::oslsr_valid(value) => {
                return Err(trace::invalid(c"OSLSR_EL1 has another kind of lock"))
            }
            // Silently: a VMM that has moved both counters may still write them all.
            Class::Timer(_, TimerReg::Count) if vm.offset_fixed.load(Ordering::Relaxed) => {}
            Class::Timer(t, TimerReg::Count) => {
                let offset = match t {
                    Timer::Virtual => &vm.counter_offset,
                    Timer::Physical => &vm.physical_offset,
                };
                offset.store(insn::counter().wrapping_sub(value), Ordering::Relaxed);
            }
            Class::Timer(t, reg) => set_timer(self, vm, t, reg, value),
            Class::Pmu => self.pmu.as_mut().ok_or(ENOENT)?.user_write(vm, r, value)?,
            _ if r == Sysreg::MPIDR_EL1 => {
                shared.mpidr.store(value, Ordering::Relaxed);
                gic.set_affinity(&shared.gic, value);
            }
            _ => *self.sys(r).ok_or(ENOENT)? = value,
        }
        Ok(())
    }
}
