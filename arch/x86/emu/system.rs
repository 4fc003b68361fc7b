// SPDX-License-Identifier: GPL-2.0

//! Operations that the emulator leaves to the vCPU.

use super::After;
use crate::{
    arch::x86::{
        backend::{Backend, Field, HwVcpu},
        handle,
        model::{
            decode::Mnemonic,
            emulate::System,
            regs::{Exception, Gpr, Seg, Segment},
        },
        run, X86,
    },
    family::{Ctx, Next},
    memory::View,
};

/// Operations that the emulator leaves to the vCPU.
pub(super) fn system<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    s: System,
    len: u8,
) -> After {
    let v = &mut *ctx.vcpu;
    let rip = v.hw.rip().wrapping_add(u64::from(len));
    let next = v.narrow(rip);
    let gp = Err(crate::arch::x86::model::sregs::Gp);
    let done = match s {
        System::Cpuid => {
            let step = run::cpuid(ctx, next);
            return handle::after(ctx, view, step);
        }
        System::Rdmsr => {
            let step = run::guest_msr(ctx, false, next);
            return handle::after(ctx, view, step);
        }
        System::Wrmsr => {
            let step = run::guest_msr(ctx, true, next);
            return handle::after(ctx, view, step);
        }
        System::Hlt => {
            v.advance_to(next);
            return handle::halt(ctx, view);
        }
        System::Rdtsc => {
            let t = v.tsc.now();
            v.set_edx_eax(t);
            Ok(())
        }
        System::Rdtscp => {
            let t = v.tsc.now();
            v.set_edx_eax(t);
            v.gprs.set(Gpr::Rcx, v.tsc_aux & 0xffff_ffff);
            Ok(())
        }
        System::Rdpid(r) => {
            v.gprs.set(r, v.tsc_aux);
            Ok(())
        }
        // No counters are offered.
        System::Rdpmc => gp,
        System::Invd | System::Wbinvd | System::Monitor(_) => Ok(()),
        System::Mwait => Ok(()),
        System::Invlpg(la) => {
            v.hw.flush_linear(la);
            Ok(())
        }
        System::ReadCr { cr, to } => {
            let value = handle::read_cr(v, cr);
            v.gprs.set(to, v.narrow(value));
            Ok(())
        }
        System::WriteCr { cr, value } => handle::write_cr(ctx, cr, value),
        System::ReadDr { .. } | System::WriteDr { .. } if v.debug_regs_guarded() => {
            return Ok(Next::Reenter);
        }
        System::ReadDr { dr, to } => {
            let value = handle::read_dr(v, dr);
            v.gprs.set(to, v.narrow(value));
            Ok(())
        }
        System::WriteDr { dr, value } => handle::write_dr(v, dr, value),
        System::Lgdt(t) => {
            v.hw.set_gdtr(&t);
            Ok(())
        }
        System::Lidt(t) => {
            v.hw.set_idtr(&t);
            Ok(())
        }
        System::Lldt(seg) => {
            v.hw.set_ldtr(&seg);
            Ok(())
        }
        System::Ltr(seg) => {
            v.hw.set_tr(&seg);
            Ok(())
        }
        System::Xgetbv => {
            let x = v.fpu.xcr0();
            v.set_edx_eax(x);
            Ok(())
        }
        System::Xsetbv => handle::xsetbv(v),
        System::Hypercall(_) => {
            handle::hypercall(v);
            Ok(())
        }
        System::Swapgs => {
            let gs = v.hw.segment(Seg::Gs);
            let other = v.hw.field(Field::KernelGsBase);
            v.hw.set_field(Field::KernelGsBase, gs.base);
            v.hw.set_segment(Seg::Gs, &Segment { base: other, ..gs });
            Ok(())
        }
        // RIP stays: the address behind it is found when it is injected.
        System::SoftInt {
            vector,
            by: Mnemonic::Int3 | Mnemonic::Into,
        } => {
            v.raise(Exception::plain(vector));
            return Ok(Next::Reenter);
        }
        System::SoftInt { vector, .. } => {
            v.events.raise_soft_interrupt(vector);
            return Ok(Next::Reenter);
        }
    };
    let v = &mut *ctx.vcpu;
    match done {
        Ok(()) => v.advance_to(next),
        Err(crate::arch::x86::model::sregs::Gp) => v.raise(Exception::gp(0)),
    }
    Ok(Next::Reenter)
}
