// SPDX-License-Identifier: GPL-2.0

//! Segment registers of the guest in the control block, and as the guest would see them.
//!
//! AMD APM vol. 2 15.5.1: hardware does not keep every attribute. Pure.

use super::vmcb::{Vmcb, VmcbSeg};
use crate::arch::x86::model::regs::{Seg, SegAttr, Segment};

fn raw(b: &Vmcb, s: Seg) -> Segment {
    match s {
        Seg::Es => b.es(),
        Seg::Cs => b.cs(),
        Seg::Ss => b.ss(),
        Seg::Ds => b.ds(),
        Seg::Fs => b.fs(),
        Seg::Gs => b.gs(),
    }
    .get()
}

/// The register as the guest has it.
pub(crate) fn get(b: &Vmcb, s: Seg) -> Segment {
    let mut v = raw(b, s);
    let a = v.attr.0;
    v.attr = SegAttr(match s {
        // Hardware does not keep CS.G (15.5.1): the limit tells.
        Seg::Cs if v.limit > 0xf_ffff => a | 1 << 15,
        // A usable data segment has been accessed.
        Seg::Ds | Seg::Es | Seg::Fs | Seg::Gs if !v.attr.unusable() => a | 1,
        // CPL, not SS.DPL, is what counts (15.5.1).
        Seg::Ss => a & !(3 << 5) | u32::from(b.cpl() & 3) << 5,
        _ => a,
    });
    v
}

/// Loads it. SS brings the privilege level with it.
pub(crate) fn set(b: &mut Vmcb, s: Seg, v: &Segment) {
    let h = VmcbSeg::new(v);
    match s {
        Seg::Es => b.set_es(h),
        Seg::Cs => b.set_cs(h),
        Seg::Ss => {
            b.set_ss(h);
            b.set_cpl(v.attr.dpl());
        }
        Seg::Ds => b.set_ds(h),
        Seg::Fs => b.set_fs(h),
        Seg::Gs => b.set_gs(h),
    }
}

/// The task register: always busy, whatever hardware kept.
pub(crate) fn tr(b: &Vmcb) -> Segment {
    let mut v = b.tr().get();
    v.attr.0 |= 2;
    v
}
