// SPDX-License-Identifier: GPL-2.0

//! General, segment, control and debug registers.

use super::super::{
    backend::{Backend, HwVcpu},
    handle,
    mem::Phys,
    model::{
        regs::{efer, rflags, DescTable, Gpr, Seg, SegAttr, Segment},
        sregs::{self, Control},
        walk,
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
        rflags: v.hw.rflags(),
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
    v.hw.set_rflags(r.rflags | rflags::FIXED);
    v.events.clear_exception();
    Ok(())
}

fn segment(s: &Segment) -> rb::kvm_segment {
    let unusable = s.attr.unusable();
    rb::kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.attr.typ(),
        present: u8::from(s.attr.present()),
        dpl: s.attr.dpl(),
        db: u8::from(s.attr.db()),
        s: u8::from(s.attr.s()),
        l: u8::from(s.attr.long()),
        g: u8::from(s.attr.granularity()),
        avl: u8::from(s.attr.avl()),
        unusable: u8::from(unusable),
        ..user::zeroed()
    }
}

fn from_segment(s: &rb::kvm_segment) -> Segment {
    Segment {
        selector: s.selector,
        attr: SegAttr::new(
            s.type_,
            s.s & 1 != 0,
            s.dpl,
            s.present & 1 != 0,
            s.avl & 1 != 0,
            s.l & 1 != 0,
            s.db & 1 != 0,
            s.g & 1 != 0,
            s.unusable & 1 != 0 || s.present & 1 == 0,
        ),
        limit: s.limit,
        base: s.base,
    }
}

fn table(t: DescTable) -> rb::kvm_dtable {
    rb::kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..user::zeroed()
    }
}

/// `KVM_GET_SREGS`
pub(super) fn get_sregs<B: Backend>(v: &Vcpu<B>) -> rb::kvm_sregs {
    let mut s: rb::kvm_sregs = user::zeroed();
    s.cs = segment(&v.hw.segment(Seg::Cs));
    s.ds = segment(&v.hw.segment(Seg::Ds));
    s.es = segment(&v.hw.segment(Seg::Es));
    s.fs = segment(&v.hw.segment(Seg::Fs));
    s.gs = segment(&v.hw.segment(Seg::Gs));
    s.ss = segment(&v.hw.segment(Seg::Ss));
    s.tr = segment(&v.hw.tr());
    s.ldt = segment(&v.hw.ldtr());
    s.gdt = table(v.hw.gdtr());
    s.idt = table(v.hw.idtr());
    s.cr0 = v.hw.cr0();
    s.cr2 = v.hw.cr2();
    s.cr3 = v.hw.cr3();
    s.cr4 = v.hw.cr4();
    s.cr8 = u64::from(v.lapic.cr8());
    s.efer = v.hw.efer();
    s.apic_base = v.lapic.base();
    if let Some(vector) = v.events.interrupt_in_delivery() {
        if let Some(w) = s.interrupt_bitmap.get_mut(usize::from(vector >> 6)) {
            *w |= 1 << (vector & 63);
        }
    }
    s
}

/// `KVM_SET_SREGS`
pub(super) fn set_sregs<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_sregs) -> Result {
    set_common(ctx, s)?;
    ctx.vcpu.pdptes = None;
    let mut words = s.interrupt_bitmap.iter().zip(0u8..);
    if let Some((word, index)) = words.find(|(w, _)| **w != 0) {
        let vector = index * 64 + (word.trailing_zeros() & 63) as u8;
        ctx.vcpu.events.requeue_interrupt(vector);
    }
    Ok(())
}

fn set_common<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_sregs) -> Result {
    let v = &mut *ctx.vcpu;
    let new = Control {
        cr0: s.cr0,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.efer,
    };
    let cs = from_segment(&s.cs);
    sregs::check(&new, cs.attr.long(), &v.features)
        .map_err(|_| trace::refuse(EINVAL, c"control registers that no processor can have"))?;
    let cr8 = sregs::mov_cr8(s.cr8 & 0xf)
        .map_err(|_| trace::refuse(EINVAL, c"CR8 has reserved bits set"))?;
    if s.apic_base != v.lapic.base() {
        if !v.has_lapic {
            sregs::apic_base_valid(s.apic_base, &v.features)
                .map_err(|_| trace::refuse(EINVAL, c"APIC base"))?;
        }
        let effect = v
            .lapic
            .set_base(s.apic_base, true)
            .map_err(|_| trace::refuse(EINVAL, c"APIC base with reserved bits or a wrong mode"))?;
        super::super::run::apply(ctx, effect);
    }
    let v = &mut *ctx.vcpu;
    v.hw.set_idtr(&DescTable {
        base: s.idt.base,
        limit: s.idt.limit,
    });
    v.hw.set_gdtr(&DescTable {
        base: s.gdt.base,
        limit: s.gdt.limit,
    });
    v.hw.set_cr2(s.cr2);
    let effects = sregs::replaced(&v.control(), &new);
    v.set_control(&new, effects.and(sregs::Effects::FLUSH_TLB));
    v.lapic.set_cr8(cr8);
    v.hw.set_segment(Seg::Cs, &cs);
    v.hw.set_segment(Seg::Ds, &from_segment(&s.ds));
    v.hw.set_segment(Seg::Es, &from_segment(&s.es));
    v.hw.set_segment(Seg::Fs, &from_segment(&s.fs));
    v.hw.set_segment(Seg::Gs, &from_segment(&s.gs));
    v.hw.set_segment(Seg::Ss, &from_segment(&s.ss));
    v.hw.set_tr(&from_segment(&s.tr));
    v.hw.set_ldtr(&from_segment(&s.ldt));
    Ok(())
}

/// CR3 under PAE paging: 32-byte aligned, 32 bits (APM vol. 2 5.2.1).
const PDPT_ADDRESS: u64 = 0xffff_ffe0;

/// `KVM_GET_SREGS2`
pub(super) fn get_sregs2<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> rb::kvm_sregs2 {
    let s = get_sregs(ctx.vcpu);
    let mut out: rb::kvm_sregs2 = user::zeroed();
    out.cs = s.cs;
    out.ds = s.ds;
    out.es = s.es;
    out.fs = s.fs;
    out.gs = s.gs;
    out.ss = s.ss;
    out.tr = s.tr;
    out.ldt = s.ldt;
    out.gdt = s.gdt;
    out.idt = s.idt;
    out.cr0 = s.cr0;
    out.cr2 = s.cr2;
    out.cr3 = s.cr3;
    out.cr4 = s.cr4;
    out.cr8 = s.cr8;
    out.efer = s.efer;
    out.apic_base = s.apic_base;
    let c = ctx.vcpu.control();
    if c.pae_paging() {
        // Under nested paging the processor reads the PDPTEs from memory at each walk: what is there
        // is what is in force.
        let view = ctx.vm.memory.read();
        let mut bytes = [0; 32];
        let given = ctx.vcpu.pdptes.filter(|(cr3, _)| *cr3 == c.cr3);
        if let Some((_, pdptes)) = given {
            out.pdptrs = pdptes;
            out.flags |= u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID);
        } else if view.read(c.cr3 & PDPT_ADDRESS, &mut bytes).is_ok() {
            for (to, from) in out.pdptrs.iter_mut().zip(bytes.chunks_exact(8)) {
                *to = from.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            }
            out.flags |= u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID);
        }
    }
    out
}

/// `KVM_SET_SREGS2`
pub(super) fn set_sregs2<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, s: &rb::kvm_sregs2) -> Result {
    if s.flags & !u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
        return Err(trace::refuse(
            EINVAL,
            c"flags of KVM_SET_SREGS2 that are not defined",
        ));
    }
    let pae = s.cr0 & 1 << 31 != 0 && s.cr4 & 1 << 5 != 0 && s.efer & efer::LMA == 0;
    if s.flags & u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 && !pae {
        return Err(trace::refuse(EINVAL, c"PDPTRs without PAE paging"));
    }
    let mut old: rb::kvm_sregs = user::zeroed();
    old.cs = s.cs;
    old.ds = s.ds;
    old.es = s.es;
    old.fs = s.fs;
    old.gs = s.gs;
    old.ss = s.ss;
    old.tr = s.tr;
    old.ldt = s.ldt;
    old.gdt = s.gdt;
    old.idt = s.idt;
    old.cr0 = s.cr0;
    old.cr2 = s.cr2;
    old.cr3 = s.cr3;
    old.cr4 = s.cr4;
    old.cr8 = s.cr8;
    old.efer = s.efer;
    old.apic_base = s.apic_base;
    set_common(ctx, &old)?;
    let valid = s.flags & u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    ctx.vcpu.pdptes = valid.then_some((s.cr3, s.pdptrs));
    Ok(())
}

/// `KVM_GET_DEBUGREGS`
pub(super) fn get_debug<B: Backend>(v: &Vcpu<B>) -> rb::kvm_debugregs {
    rb::kvm_debugregs {
        db: v.dr,
        dr6: v.hw.dr6(),
        dr7: v.hw.dr7(),
        ..user::zeroed()
    }
}

/// `KVM_SET_DEBUGREGS`
pub(super) fn set_debug<B: Backend>(v: &mut Vcpu<B>, d: &rb::kvm_debugregs) -> Result {
    if d.flags != 0 {
        return Err(trace::refuse(
            EINVAL,
            c"flags of KVM_SET_DEBUGREGS are not defined",
        ));
    }
    if d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
        return Err(trace::refuse(EINVAL, c"DR6 and DR7 have 32 bits"));
    }
    v.dr = d.db;
    v.hw.set_dr6(d.dr6);
    v.hw.set_dr7(d.dr7);
    handle::use_debug_regs(v);
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
