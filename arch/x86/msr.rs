// SPDX-License-Identifier: GPL-2.0

//! Model-specific registers: the shell around the model. It brings together what the model keeps,
//! what the backend's control block holds, and the local APIC, the TSC and paravirtual pages.

use super::{
    backend::{Backend, Field, HwVcpu},
    model::{
        cpuid::GuestFeatures,
        lapic::Effect,
        msr::{self as model, Ctx as Rules, Origin, Read, Refused, Service, Write},
        regs::{efer, Seg},
        sregs,
    },
    shared::now_ns,
    vcpu::Vcpu,
    vm::VmState,
    X86,
};
use crate::{bindings as rb, family::Ctx};

/// What a write leads to beyond the vCPU itself.
pub(crate) enum Done {
    /// Nothing.
    Done,
    /// The local APIC wants this.
    Effect(Effect),
}

fn field(f: model::Field) -> Option<Field> {
    Some(match f {
        model::Field::SysenterCs => Field::SysenterCs,
        model::Field::SysenterEsp => Field::SysenterEsp,
        model::Field::SysenterEip => Field::SysenterEip,
        model::Field::Star => Field::Star,
        model::Field::Lstar => Field::Lstar,
        model::Field::Cstar => Field::Cstar,
        model::Field::Sfmask => Field::Sfmask,
        model::Field::KernelGsBase => Field::KernelGsBase,
        model::Field::Pat => Field::Pat,
        model::Field::SpecCtrl => Field::SpecCtrl,
        _ => return None,
    })
}

/// The circumstances of an access.
fn rules<'a>(
    guest: &'a GuestFeatures,
    enforce_pv: bool,
    vm: &VmState,
    origin: Origin,
) -> Rules<'a> {
    Rules {
        guest,
        host: &vm.host.msr,
        origin,
        enforce_pv,
        platform_info: vm.platform_info(),
        mwait_by_misc_enable: vm.quirk_disabled(rb::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT),
    }
}

impl<B: Backend> Vcpu<B> {
    /// Reads an MSR.
    ///
    /// # Errors
    /// [`Refused`]
    pub(crate) fn read_msr(
        &mut self,
        vm: &VmState,
        index: u32,
        origin: Origin,
    ) -> Result<u64, Refused> {
        let rules = rules(&self.features, self.pv.enforce, vm, origin);
        let read = self.msrs.read(index, &rules)?;
        Ok(match read {
            Read::Value(v) => v,
            Read::Backend(f) => match f {
                model::Field::FsBase => self.hw.segment(Seg::Fs).base,
                model::Field::GsBase => self.hw.segment(Seg::Gs).base,
                model::Field::TscAux => self.tsc_aux,
                f => field(f).map_or(0, |f| self.hw.field(f)),
            },
            Read::Shell(s) => match s {
                Service::ApicBase => self.lapic.base(),
                Service::X2Apic(n) => self
                    .lapic
                    .msr_read(0x800 | u32::from(n), now_ns)
                    .map_err(|_| Refused::Invalid)?,
                Service::TscDeadline => self.lapic.tsc_deadline(),
                Service::Tsc => self.tsc.now(),
                Service::TscAdjust => self.tsc.adjust(),
                Service::Efer => self.hw.efer(),
                Service::Xss => self.xss,
                Service::PredCmd | Service::FlushCmd => 0,
                Service::WallClock => vm.wall_clock_msr(),
                Service::SystemTime { .. } => self.pv.system_time,
                Service::StealTime => self.pv.steal_time,
                Service::PvEoi => self.pv.eoi.msr(),
                Service::AsyncPf | Service::AsyncPfInt | Service::AsyncPfAck => 0,
            },
        })
    }

    /// Writes an MSR.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub(crate) fn write_msr(
        &mut self,
        vm: &VmState,
        index: u32,
        value: u64,
        origin: Origin,
    ) -> Result<Done, Refused> {
        let rules = rules(&self.features, self.pv.enforce, vm, origin);
        match self.msrs.write(index, value, &rules)? {
            Write::Done | Write::DoneCpuid => {}
            Write::Backend(f, v) => match f {
                model::Field::FsBase => self.set_base(Seg::Fs, v),
                model::Field::GsBase => self.set_base(Seg::Gs, v),
                model::Field::TscAux => self.set_tsc_aux(v),
                f => {
                    if let Some(f) = field(f) {
                        self.hw.set_field(f, v);
                    }
                }
            },
            Write::Shell(s, v) => return self.write_service(vm, s, v, origin),
        }
        Ok(Done::Done)
    }

    fn set_base(&mut self, s: Seg, base: u64) {
        let seg = self.hw.segment(s);
        self.hw
            .set_segment(s, &super::model::regs::Segment { base, ..seg });
    }

    fn write_service(
        &mut self,
        vm: &VmState,
        s: Service,
        v: u64,
        origin: Origin,
    ) -> Result<Done, Refused> {
        let invalid = |_| Refused::Invalid;
        let host = origin == Origin::Host;
        match s {
            Service::ApicBase => {
                let effect = self.lapic.set_base(v, host).map_err(|_| Refused::Invalid)?;
                return Ok(Done::Effect(effect));
            }
            Service::X2Apic(n) => {
                let effect = self
                    .lapic
                    .msr_write(0x800 | u32::from(n), v, now_ns)
                    .map_err(|_| Refused::Invalid)?;
                return Ok(Done::Effect(effect));
            }
            Service::TscDeadline => {
                let tsc = &self.tsc;
                return Ok(Done::Effect(self.lapic.set_tsc_deadline(v, || tsc.now())));
            }
            Service::Tsc => {
                self.tsc.write(vm, v, host);
                return Ok(Done::Effect(self.tsc_changed()));
            }
            Service::TscAdjust => {
                self.tsc.write_adjust(v, host);
                return Ok(Done::Effect(self.tsc_changed()));
            }
            Service::Efer => {
                // Long mode itself is switched by CR0.PG; user space may set LMA with it.
                if host {
                    if v & !self.features.efer != 0 {
                        return Err(Refused::Invalid);
                    }
                    // LMA follows from CR0.PG, which comes by KVM_SET_SREGS.
                    let lma = self.hw.efer() & efer::LMA;
                    self.hw.set_efer(v & !efer::LMA | lma);
                    self.hw.flush_tlb();
                } else {
                    let (c, effects) = self
                        .control()
                        .write_efer(v, &self.features)
                        .map_err(|sregs::Gp| Refused::Invalid)?;
                    self.set_control(&c, effects);
                }
            }
            Service::Xss => self.xss = v,
            Service::PredCmd => super::insn::vcpu::pred_cmd(v),
            Service::FlushCmd => super::insn::vcpu::flush_cmd(v),
            Service::WallClock => self.pv.write_wall_clock(vm, v),
            Service::SystemTime { old } => self.pv.write_system_time(v, old).map_err(invalid)?,
            Service::StealTime => self.pv.write_steal_time(v).map_err(invalid)?,
            Service::PvEoi => self.pv.eoi.write_msr(v).map_err(invalid)?,
            Service::AsyncPf | Service::AsyncPfInt | Service::AsyncPfAck => {
                return if v == 0 {
                    Ok(Done::Done)
                } else {
                    Err(Refused::Invalid)
                };
            }
        }
        Ok(Done::Done)
    }
}

/// What became of a guest's RDMSR or WRMSR.
pub(crate) enum Access {
    /// It is done; go on behind it.
    Done,
    /// The guest gets #GP.
    Gp,
    /// User space wants to see it, for this reason.
    ToUser(u32),
    /// Done, and the section has to be left: a page of the guest is to be written, or user space
    /// to be told of something.
    DoneLeave,
}

/// RDMSR or WRMSR by the guest. IRQs may be off.
pub(crate) fn guest_access<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, write: bool) -> Access {
    use super::model::regs::Gpr;
    let vm = &ctx.vm.family;
    let index = (ctx.vcpu.gprs.get(Gpr::Rcx) & 0xffff_ffff) as u32;
    if !vm.msr_allowed(index, write) {
        return vm.msr_refused(rb::KVM_MSR_EXIT_REASON_FILTER);
    }
    let result = if write {
        let value = ctx.vcpu.edx_eax();
        ctx.vcpu
            .write_msr(vm, index, value, Origin::Guest)
            .map(Some)
    } else {
        ctx.vcpu.read_msr(vm, index, Origin::Guest).map(|v| {
            ctx.vcpu.set_edx_eax(v);
            None
        })
    };
    match result {
        Ok(None | Some(Done::Done)) => {
            if ctx.vcpu.pv.has_work() {
                Access::DoneLeave
            } else {
                Access::Done
            }
        }
        Ok(Some(Done::Effect(e))) => {
            if super::run::apply(ctx, e) || ctx.vcpu.pv.has_work() {
                Access::DoneLeave
            } else {
                Access::Done
            }
        }
        Err(Refused::Unknown) => vm.msr_refused(rb::KVM_MSR_EXIT_REASON_UNKNOWN),
        Err(Refused::Invalid) => vm.msr_refused(rb::KVM_MSR_EXIT_REASON_INVAL),
    }
}
