// SPDX-License-Identifier: GPL-2.0

//! Segments, control and debug registers, XCR0, the FPU, CPUID entries.

use super::Why;
use crate::{
    arch::x86::model::{
        cpuid::{self, GuestFeatures},
        regs::{DescTable, SegAttr, Segment},
        sregs::{self, Control},
        xstate,
    },
    bindings as rb,
    host::uapi::zeroed,
};

fn segment(s: &Segment) -> rb::kvm_segment {
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
        unusable: u8::from(s.attr.unusable()),
        ..zeroed()
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

fn table(t: &DescTable) -> rb::kvm_dtable {
    rb::kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..zeroed()
    }
}

fn from_table(t: &rb::kvm_dtable) -> DescTable {
    DescTable {
        base: t.base,
        limit: t.limit,
    }
}

/// What `kvm_sregs` and `kvm_sregs2` have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sregs {
    /// CS
    pub cs: Segment,
    /// DS
    pub ds: Segment,
    /// ES
    pub es: Segment,
    /// FS
    pub fs: Segment,
    /// GS
    pub gs: Segment,
    /// SS
    pub ss: Segment,
    /// TR
    pub tr: Segment,
    /// LDTR
    pub ldtr: Segment,
    /// GDTR
    pub gdtr: DescTable,
    /// IDTR
    pub idtr: DescTable,
    /// CR0, CR3, CR4, EFER
    pub control: Control,
    /// CR2
    pub cr2: u64,
    /// CR8, 4 bits
    pub cr8: u8,
    /// IA32_APIC_BASE. Its rules are the local APIC's.
    pub apic_base: u64,
}

/// Both structures have these fields.
macro_rules! decode {
    ($s:ident) => {
        Sregs {
            cs: from_segment(&$s.cs),
            ds: from_segment(&$s.ds),
            es: from_segment(&$s.es),
            fs: from_segment(&$s.fs),
            gs: from_segment(&$s.gs),
            ss: from_segment(&$s.ss),
            tr: from_segment(&$s.tr),
            ldtr: from_segment(&$s.ldt),
            gdtr: from_table(&$s.gdt),
            idtr: from_table(&$s.idt),
            control: Control {
                cr0: $s.cr0,
                cr3: $s.cr3,
                cr4: $s.cr4,
                efer: $s.efer,
            },
            cr2: $s.cr2,
            cr8: ($s.cr8 & 0xf) as u8,
            apic_base: $s.apic_base,
        }
    };
}

/// The way back.
macro_rules! encode {
    ($r:ident, $out:ident) => {
        $out.cs = segment(&$r.cs);
        $out.ds = segment(&$r.ds);
        $out.es = segment(&$r.es);
        $out.fs = segment(&$r.fs);
        $out.gs = segment(&$r.gs);
        $out.ss = segment(&$r.ss);
        $out.tr = segment(&$r.tr);
        $out.ldt = segment(&$r.ldtr);
        $out.gdt = table(&$r.gdtr);
        $out.idt = table(&$r.idtr);
        $out.cr0 = $r.control.cr0;
        $out.cr2 = $r.cr2;
        $out.cr3 = $r.control.cr3;
        $out.cr4 = $r.control.cr4;
        $out.cr8 = u64::from($r.cr8);
        $out.efer = $r.control.efer;
        $out.apic_base = $r.apic_base;
    };
}

/// Words for each rule.
fn why(invalid: sregs::Invalid) -> Why {
    use sregs::Invalid::*;
    match invalid {
        Cr0Reserved => c"CR0 has bits 63:32 set",
        PagingWithoutProtection => c"CR0.PG without CR0.PE",
        NotWriteThroughWithoutCacheDisable => c"CR0.NW without CR0.CD",
        Cr4Reserved(_) => c"CR4 has bits that the guest's CPUID does not offer",
        Cr4Mode => c"CR4.PCIDE outside of long mode, or CR4.CET without CR0.WP",
        EferReserved(_) => c"EFER has bits that the guest's CPUID does not offer",
        LongModeWithoutPae => c"long mode without CR4.PAE",
        LongModeActive => c"EFER.LMA is not what CR0.PG and EFER.LME make it",
        CsLong => c"CS.L outside of long mode",
        Cr3Reserved => c"CR3 has bits beyond the guest's physical addresses",
    }
}

impl Sregs {
    fn check(self, f: &GuestFeatures) -> Result<Self, Why> {
        sregs::check(&self.control, self.cs.attr.long(), f).map_err(why)?;
        Ok(self)
    }

    /// `KVM_SET_SREGS`, and the interrupt whose delivery it resumes.
    ///
    /// # Errors
    /// Control registers that no processor with these features can have.
    pub fn from_sregs(s: &rb::kvm_sregs, f: &GuestFeatures) -> Result<(Self, Option<u8>), Why> {
        let mut words = s.interrupt_bitmap.iter().zip(0u8..);
        let interrupt = words
            .find(|(w, _)| **w != 0)
            .map(|(w, index)| index * 64 + (w.trailing_zeros() & 63) as u8);
        Ok((decode!(s).check(f)?, interrupt))
    }

    /// `KVM_GET_SREGS`, with the interrupt whose delivery is under way.
    pub fn to_sregs(&self, interrupt: Option<u8>) -> rb::kvm_sregs {
        let mut out: rb::kvm_sregs = zeroed();
        encode!(self, out);
        if let Some(vector) = interrupt {
            if let Some(w) = out.interrupt_bitmap.get_mut(usize::from(vector >> 6)) {
                *w |= 1 << (vector & 63);
            }
        }
        out
    }

    /// `KVM_SET_SREGS2`, with the PDPTEs if it gives them.
    ///
    /// # Errors
    /// As [`Self::from_sregs`]; flags; PDPTEs where the paging mode has none.
    pub fn from_sregs2(
        s: &rb::kvm_sregs2,
        f: &GuestFeatures,
    ) -> Result<(Self, Option<[u64; 4]>), Why> {
        const VALID: u64 = rb::KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;
        if s.flags & !VALID != 0 {
            return Err(c"flags of KVM_SET_SREGS2 that are not defined");
        }
        let regs = decode!(s);
        let pdptes = (s.flags & VALID != 0).then_some(s.pdptrs);
        if pdptes.is_some() && !regs.control.pae_paging() {
            return Err(c"PDPTRs without PAE paging");
        }
        Ok((regs.check(f)?, pdptes))
    }

    /// `KVM_GET_SREGS2`, with the PDPTEs if the paging mode has them.
    pub fn to_sregs2(&self, pdptes: Option<[u64; 4]>) -> rb::kvm_sregs2 {
        let mut out: rb::kvm_sregs2 = zeroed();
        encode!(self, out);
        if let Some(pdptes) = pdptes {
            out.pdptrs = pdptes;
            out.flags = u64::from(rb::KVM_SREGS2_FLAGS_PDPTRS_VALID);
        }
        out
    }
}

/// `KVM_SET_DEBUGREGS`: DR6 and DR7.
///
/// # Errors
/// Flags; more than 32 bits.
pub fn debug(d: &rb::kvm_debugregs) -> Result<(u64, u64), Why> {
    if d.flags != 0 {
        return Err(c"flags of KVM_SET_DEBUGREGS are not defined");
    }
    if d.dr6 >> 32 != 0 || d.dr7 >> 32 != 0 {
        return Err(c"DR6 and DR7 have 32 bits");
    }
    Ok((d.dr6, d.dr7))
}

/// XCR0 with x87 alone: what it is after reset, of a guest without XSAVE too.
const XCR0_X87: u64 = 1;

/// `KVM_SET_XCRS`: the value for XCR0, if it is among them.
///
/// # Errors
/// Flags, too many, or a value that the guest's CPUID does not allow.
pub fn xcr0(x: &rb::kvm_xcrs, f: &GuestFeatures) -> Result<Option<u64>, Why> {
    let given = usize::try_from(x.nr_xcrs)
        .ok()
        .and_then(|n| x.xcrs.get(..n))
        .filter(|_| x.flags == 0)
        .ok_or(c"flags or count of KVM_SET_XCRS")?;
    let Some(x0) = given.iter().find(|x| x.xcr == 0) else {
        return Ok(None);
    };
    if x0.value != XCR0_X87 {
        sregs::xsetbv(0, x0.value, f).map_err(|_| c"XCR0 is not within the guest's CPUID")?;
    }
    Ok(Some(x0.value))
}

/// `KVM_GET_XCRS`, of a processor that may have no XCR0.
pub fn xcrs(xcr0: Option<u64>) -> rb::kvm_xcrs {
    let mut x: rb::kvm_xcrs = zeroed();
    if let (Some(xcr0), Some(first)) = (xcr0, x.xcrs.first_mut()) {
        x.nr_xcrs = 1;
        first.value = xcr0;
    }
    x
}

/// `KVM_GET_FPU`
pub fn fpu(f: &xstate::Fpu) -> rb::kvm_fpu {
    let mut out: rb::kvm_fpu = zeroed();
    out.fpr = f.fpr;
    out.fcw = f.fcw;
    out.fsw = f.fsw;
    out.ftwx = f.ftwx;
    out.last_opcode = f.last_opcode;
    out.last_ip = f.last_ip;
    out.last_dp = f.last_dp;
    out.xmm = f.xmm;
    out.mxcsr = f.mxcsr;
    out
}

/// `KVM_SET_FPU`
pub fn from_fpu(f: &rb::kvm_fpu) -> xstate::Fpu {
    xstate::Fpu {
        fpr: f.fpr,
        fcw: f.fcw,
        fsw: f.fsw,
        ftwx: f.ftwx,
        last_opcode: f.last_opcode,
        last_ip: f.last_ip,
        last_dp: f.last_dp,
        xmm: f.xmm,
        mxcsr: f.mxcsr,
    }
}

/// An entry of `KVM_GET_CPUID2`.
pub fn cpuid_entry(e: &cpuid::Entry) -> rb::kvm_cpuid_entry2 {
    rb::kvm_cpuid_entry2 {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.regs.eax,
        ebx: e.regs.ebx,
        ecx: e.regs.ecx,
        edx: e.regs.edx,
        ..zeroed()
    }
}

/// An entry of `KVM_SET_CPUID2`.
pub fn from_cpuid_entry(e: &rb::kvm_cpuid_entry2) -> cpuid::Entry {
    cpuid::Entry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        regs: cpuid::Regs {
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        },
    }
}
