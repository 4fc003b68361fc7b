// SPDX-License-Identifier: GPL-2.0

//! System registers: those that trap, and those that user space names.

use super::{
    insn,
    model::{
        esr::SysregAccess,
        idreg,
        sysreg::Sysreg,
        trap::{self, Action, Class, Features, Timer, TimerReg},
        vgic::{SgiReg, FIRST_SPI},
    },
    vcpu::Vcpu,
    vm::VmState,
    Arm64,
};
use crate::family::Ctx;
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// A guest's access that trapped. False: the register is undefined for it.
pub(crate) fn access(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) -> bool {
    let features = ctx.vcpu.gates();
    let class = match trap::decide(&a, &features) {
        Action::Undefined => return false,
        Action::RazWi => {
            if !a.write {
                ctx.vcpu.set_x(a.rt, 0);
            }
            return true;
        }
        Action::Serve(class) => class,
    };
    if a.write {
        let v = ctx.vcpu.x(a.rt);
        write(ctx, a.reg, class, v)
    } else {
        match read(ctx, a.reg, class) {
            Some(v) => {
                ctx.vcpu.set_x(a.rt, v);
                true
            }
            None => false,
        }
    }
}

/// The same in a section, for what is frequent: questions who the CPU is, and interrupts for other vCPUs. False: it takes
/// the long way.
#[inline]
pub(crate) fn quick(ctx: &mut Ctx<'_, Arm64>, a: SysregAccess) -> bool {
    let features = ctx.vcpu.gates();
    match (trap::decide(&a, &features), a.write) {
        (Action::Serve(Class::Id), false) => ctx.vcpu.set_x(a.rt, id_register(a.reg, ctx.vcpu.gic)),
        (Action::Serve(Class::Gic), true) if a.reg == Sysreg::ICC_SGI1R_EL1 => {
            let value = ctx.vcpu.x(a.rt);
            let (gic, own) = (&*ctx.vm.controller, &*ctx.core.shared.gic);
            gic.send_sgi(own, SgiReg::Sgi1r, value);
        }
        _ => return false,
    }
    true
}

fn read(ctx: &mut Ctx<'_, Arm64>, r: Sysreg, class: Class) -> Option<u64> {
    let v = &mut *ctx.vcpu;
    Some(match class {
        Class::Id => id_register(r, v.gic),
        Class::Implementation => implementation(r),
        Class::Actlr | Class::DebugAuth => 0,
        Class::Clidr => insn::clidr(),
        Class::Timer(t, reg) => timer(v, &ctx.vm.family, t, reg),
        Class::Gic => (ctx.vm.controller).read_sysreg(&ctx.core.shared.gic, r)?,
        _ => *v.sys(r)?,
    })
}

fn write(ctx: &mut Ctx<'_, Arm64>, r: Sysreg, class: Class, value: u64) -> bool {
    match class {
        // Nothing is cached beside the host's own caches, which are coherent.
        Class::SetWay | Class::Actlr => {}
        Class::OsLock => {
            if let Some(s) = ctx.vcpu.sys(Sysreg::OSLSR_EL1) {
                *s = trap::os_lock(*s, value);
            }
        }
        Class::Gic => {
            let gic = ctx.vm.controller.clone();
            let cpu = &*ctx.core.shared.gic;
            let reg = match r {
                Sysreg::ICC_DIR_EL1 => {
                    for intid in gic.deactivate(cpu, value).iter() {
                        ctx.vm.irq.ack(0, intid.wrapping_sub(FIRST_SPI));
                    }
                    return true;
                }
                Sysreg::ICC_SGI1R_EL1 => SgiReg::Sgi1r,
                Sysreg::ICC_ASGI1R_EL1 => SgiReg::Asgi1r,
                Sysreg::ICC_SGI0R_EL1 => SgiReg::Sgi0r,
                // System registers, and nothing else.
                Sysreg::ICC_SRE_EL1 => return true,
                _ => return gic.write_sysreg(cpu, r, value),
            };
            gic.send_sgi(cpu, reg, value);
        }
        Class::Timer(t, reg) => set_timer(ctx.vcpu, &ctx.vm.family, t, reg, value),
        _ => match ctx.vcpu.sys(r) {
            Some(s) => *s = value,
            None => return false,
        },
    }
    true
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

fn implementation(r: Sysreg) -> u64 {
    match r {
        Sysreg::MIDR_EL1 => insn::midr(),
        Sysreg::REVIDR_EL1 => insn::revidr(),
        _ => 0,
    }
}

/// What guests have beside what the CPU has.
fn id_config(gic: bool) -> idreg::Config {
    idreg::Config {
        gic,
        ..idreg::Config::default()
    }
}

/// An ID register, as guests have it.
pub(crate) fn id_register(r: Sysreg, gic: bool) -> u64 {
    // (register, fields that are not given to guests yet: nobody switches their state, or turns them on)
    const HIDDEN: &[(Sysreg, u64)] = &[
        (Sysreg::ID_AA64MMFR3_EL1, !0),
        (Sysreg::ID_AA64PFR2_EL1, !0),
        // MOPS
        (Sysreg::ID_AA64ISAR2_EL1, 0xf << 16),
    ];
    if idreg::index(r).is_none() {
        return 0;
    }
    let v = idreg::guest_value(r, insn::ftr(r), &id_config(gic));
    let hidden = HIDDEN.iter().find(|(reg, _)| *reg == r);
    v & !hidden.map_or(0, |(_, bits)| *bits)
}

impl Vcpu {
    /// What registers it has.
    pub(crate) fn register_features(&self) -> Features {
        Features {
            gic: self.gic,
            // Registers of what ID registers do not show are undefined.
            ..idreg::features(|r| id_register(r, self.gic), &id_config(self.gic))
        }
    }

    /// The same, as it was when it was first asked for since the last reset: what a vCPU has does not change once it
    /// has run.
    #[inline]
    fn gates(&mut self) -> Features {
        match self.gates {
            Some(f) => f,
            None => *self.gates.insert(self.register_features()),
        }
    }

    /// A register that is kept as a value. Outside of a section.
    pub(crate) fn sys(&mut self, r: Sysreg) -> Option<&mut u64> {
        match self.el1.get_mut(r) {
            Some(v) => Some(v),
            None => self.slots.get_mut(trap::slot(r)?),
        }
    }

    /// `KVM_GET_ONE_REG` of a system register.
    pub(crate) fn user_sysreg(&mut self, vm: &VmState, r: Sysreg) -> Result<u64> {
        let row = trap::find(r).ok_or(ENOENT)?;
        Ok(match row.class {
            Class::Id => id_register(r, self.gic),
            Class::Implementation => implementation(r),
            Class::Clidr => insn::clidr(),
            Class::Timer(t, reg) => timer(self, vm, t, reg),
            _ if r == Sysreg::MPIDR_EL1 => self.mpidr(),
            _ => *self.sys(r).ok_or(ENOENT)?,
        })
    }

    /// `KVM_SET_ONE_REG` of one.
    pub(crate) fn set_user_sysreg(&mut self, vm: &VmState, r: Sysreg, value: u64) -> Result {
        let row = trap::find(r).ok_or(ENOENT)?;
        match row.class {
            // As they are.
            _ if r == Sysreg::MPIDR_EL1
                || matches!(row.class, Class::Id | Class::Implementation | Class::Clidr) =>
            {
                if self.user_sysreg(vm, r)? != value {
                    return Err(crate::host::trace::invalid(
                        c"the guest cannot have this ID register",
                    ));
                }
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
            _ => *self.sys(r).ok_or(ENOENT)? = value,
        }
        Ok(())
    }
}
