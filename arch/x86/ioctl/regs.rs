// SPDX-License-Identifier: GPL-2.0

//! General, segment, control and debug registers.

use super::super::{
    args::regs::{self as args, Sregs},
    backend::{Backend, HwVcpu},
    mem::Phys,
    model::{
        regs::{Gpr, Seg},
        sregs, walk,
    },
    vcpu::Vcpu,
    X86,
};
use crate::{abi::user, bindings as rb, family::Ctx, host::trace};
use kernel::prelude::*;

/// `KVM_GET_REGS`
pub(super) fn get<B: Backend>(v: &Vcpu<B>) -> rb::kvm_regs {
    let g = |r| v.gprs.get(r);
    rb::kvm_regs {
        rax: g(Gpr::Rax),
        rbx: g(Gpr::Rbx),
        rcx: g(Gpr::Rcx),
        rdx: g(Gpr::Rdx),
        rsi: g(Gpr::Rsi),
        rdi: g(Gpr::Rdi),
        rsp: g(Gpr::Rsp),
        rbp: g(Gpr::Rbp),
        r8: g(Gpr::R8),
        r9: g(Gpr::R9),
        r10: g(Gpr::R10),
        r11: g(Gpr::R11),
        r12: g(Gpr::R12),
        r13: g(Gpr::R13),
        r14: g(Gpr::R14),
        r15: g(Gpr::R15),
        rip: v.hw.rip(),
        rflags: v.visible_rflags(),
    }
}

/// `KVM_SET_REGS`: also drops what waited for the old RIP, and pending exceptions.
pub(super) fn set<B: Backend>(v: &mut Vcpu<B>, r: &rb::kvm_regs) -> Result {
    let all = [
        (Gpr::Rax, r.rax),
        (Gpr::Rbx, r.rbx),
        (Gpr::Rcx, r.rcx),
        (Gpr::Rdx, r.rdx),
        (Gpr::Rsi, r.rsi),
        (Gpr::Rdi, r.rdi),
        (Gpr::Rsp, r.rsp),
        (Gpr::Rbp, r.rbp),
        (Gpr::R8, r.r8),
        (Gpr::R9, r.r9),
        (Gpr::R10, r.r10),
        (Gpr::R11, r.r11),
        (Gpr::R12, r.r12),
        (Gpr::R13, r.r13),
        (Gpr::R14, r.r14),
        (Gpr::R15, r.r15),
    ];
    for (reg, value) in all {
        v.gprs.set(reg, value);
    }
    v.hw.set_rip(r.rip);
    v.replace_rflags(r.rflags);
    v.events.clear_exception();
    Ok(())
}

/// The registers of both `KVM_GET_SREGS` and `KVM_GET_SREGS2`.
fn sregs<B: Backend>(v: &Vcpu<B>) -> Sregs {
    Sregs {
        cs: v.hw.segment(Seg::Cs),
        ds: v.hw.segment(Seg::Ds),
        es: v.hw.segment(Seg::Es),
        fs: v.hw.segment(Seg::Fs),
        gs: v.hw.segment(Seg::Gs),
        ss: v.hw.segment(Seg::Ss),
        tr: v.hw.tr(),
        ldtr: v.hw.ldtr(),
        gdtr: v.hw.gdtr(),
        idtr: v.hw.idtr(),
        control: v.control(),
        cr2: v.hw.cr2(),
        cr8: v.lapic.cr8(),
        apic_base: v.lapic.base(),
    }
}

/// `KVM_GET_SREGS`
pub(super) fn get_sregs<B: Backend>(v: &Vcpu<B>) -> rb::kvm_sregs {
    sregs(v).to_sregs(v.events.interrupt_in_delivery())
}

/// `KVM_SET_SREGS`
///
/// # Errors
/// `EINVAL`: control registers that no processor can have, or an APIC base that this APIC cannot.
pub(super) fn set_sregs<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_sregs) -> Result {
    let (regs, interrupt) = Sregs::from_sregs(s, &ctx.vcpu.features).map_err(trace::invalid)?;
    load(ctx, &regs)?;
    ctx.vcpu.pdptes = None;
    if let Some(vector) = interrupt {
        ctx.vcpu.events.requeue_interrupt(vector);
    }
    Ok(())
}

/// Loads registers that are checked but for the APIC base.
fn load<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &Sregs) -> Result {
    let v = &mut *ctx.vcpu;
    if s.apic_base != v.lapic.base() {
        if !v.has_lapic {
            sregs::apic_base_valid(s.apic_base, &v.features)
                .map_err(|_| trace::invalid(c"APIC base"))?;
        }
        let effect = v
            .lapic
            .set_base(s.apic_base, true)
            .map_err(|_| trace::invalid(c"APIC base with reserved bits or a wrong mode"))?;
        super::super::run::apply(ctx, effect);
    }
    let v = &mut *ctx.vcpu;
    v.hw.set_idtr(&s.idtr);
    v.hw.set_gdtr(&s.gdtr);
    v.hw.set_cr2(s.cr2);
    let effects = sregs::replaced(&v.control(), &s.control);
    v.set_control(&s.control, effects.and(sregs::Effects::FLUSH_TLB));
    v.lapic.set_cr8(s.cr8);
    v.hw.set_segment(Seg::Cs, &s.cs);
    v.hw.set_segment(Seg::Ds, &s.ds);
    v.hw.set_segment(Seg::Es, &s.es);
    v.hw.set_segment(Seg::Fs, &s.fs);
    v.hw.set_segment(Seg::Gs, &s.gs);
    v.hw.set_segment(Seg::Ss, &s.ss);
    v.hw.set_tr(&s.tr);
    v.hw.set_ldtr(&s.ldtr);
    Ok(())
}

/// CR3 under PAE paging: 32-byte aligned, 32 bits (APM vol. 2 5.2.1).
const PDPT_ADDRESS: u64 = 0xffff_ffe0;

/// The PDPTEs, if the paging mode has them: those that user space gave for this CR3, else memory's.
fn pdptes<B: Backend>(ctx: &Ctx<'_, X86<B>>) -> Option<[u64; 4]> {
    let c = ctx.vcpu.control();
    if !c.pae_paging() {
        return None;
    }
    if let Some((_, given)) = ctx.vcpu.pdptes.filter(|(cr3, _)| *cr3 == c.cr3) {
        return Some(given);
    }
    // Under nested paging the processor reads the PDPTEs from memory at each walk: what is there
    // is what is in force.
    let mut bytes = [0; 32];
    let view = ctx.vm.memory.read();
    view.read(c.cr3 & PDPT_ADDRESS, &mut bytes).ok()?;
    let mut pdptes = [0; 4];
    for (to, from) in pdptes.iter_mut().zip(bytes.chunks_exact(8)) {
        *to = from.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    }
    Some(pdptes)
}

/// `KVM_GET_SREGS2`
pub(super) fn get_sregs2<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> rb::kvm_sregs2 {
    sregs(ctx.vcpu).to_sregs2(pdptes(ctx))
}

/// `KVM_SET_SREGS2`
///
/// # Errors
/// `EINVAL`: as [`set_sregs`]; flags; PDPTEs where the paging mode has none.
pub(super) fn set_sregs2<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_sregs2) -> Result {
    let (regs, pdptes) = Sregs::from_sregs2(s, &ctx.vcpu.features).map_err(trace::invalid)?;
    load(ctx, &regs)?;
    ctx.vcpu.pdptes = pdptes.map(|p| (s.cr3, p));
    Ok(())
}

/// `KVM_GET_DEBUGREGS`
pub(super) fn get_debug<B: Backend>(v: &Vcpu<B>) -> rb::kvm_debugregs {
    rb::kvm_debugregs {
        db: v.guest_breakpoints(),
        dr6: v.guest_dr6(),
        dr7: v.guest_dr7(),
        ..user::zeroed()
    }
}

/// `KVM_SET_DEBUGREGS`
pub(super) fn set_debug<B: Backend>(v: &mut Vcpu<B>, d: &rb::kvm_debugregs) -> Result {
    let (dr6, dr7) = args::debug(d).map_err(trace::invalid)?;
    v.set_guest_breakpoints(d.db);
    v.set_guest_dr6(dr6);
    v.set_guest_dr7(dr7);
    v.use_debug_regs();
    Ok(())
}

/// `KVM_TRANSLATE`
pub(super) fn translate<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    t: &mut rb::kvm_translation,
) -> Result {
    let view = ctx.vm.memory.read();
    let found = walk::probe(
        &ctx.vcpu.paging(),
        &mut Phys::sleeping(&view),
        t.linear_address,
    );
    t.valid = u8::from(found.is_ok());
    t.physical_address = found.map_or(u64::MAX, |f| f.gpa);
    t.writeable = 1;
    t.usermode = 0;
    Ok(())
}
