// SPDX-License-Identifier: GPL-2.0

//! Why VMRUN refused: the rules that it checks, each with its words.
//!
//! AMD APM vol. 2, 15.5.1 (canonicalization and consistency checks) and 15.20 (illegal event
//! injection). Pure. Run before an entry whose state user space has set, and
//! after a refused one.

use super::vmcb::{event_type, Vmcb};
use crate::arch::x86::model::regs::{cr0, cr4, efer, vector};
use core::ffi::CStr;

/// What the checks need of the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Width of a physical address, in bits.
    pub(crate) phys_bits: u32,
    /// Number of ASIDs, the host's included.
    pub(crate) asids: u32,
}

/// A rule: true when it is broken.
type Broken = fn(&Vmcb, &Limits) -> bool;

const fn high32(v: u64) -> bool {
    v >> 32 != 0
}

fn beyond(pa: u64, bytes: u64, l: &Limits) -> bool {
    let end = pa.checked_add(bytes);
    pa & 0xfff != 0 || end.is_none_or(|e| e.checked_shr(l.phys_bits).unwrap_or(0) != 0)
}

fn long_paging(b: &Vmcb) -> bool {
    b.efer() & efer::LME != 0 && b.cr0() & cr0::PG != 0
}

fn cs_long_and_32(b: &Vmcb) -> bool {
    let a = b.cs().get().attr;
    long_paging(b) && b.cr4() & cr4::PAE != 0 && a.long() && a.db()
}

fn bad_event(b: &Vmcb) -> bool {
    let e = b.eventinj();
    let v = (e.vector() & 0xff) as u8;
    e.valid()
        && match e.typ() {
            event_type::INTR | event_type::NMI | event_type::SOFT => false,
            event_type::EXCEPTION => v > 31 || v == vector::NMI,
            _ => true,
        }
}

/// EFER bits that no processor known to us defines.
const EFER_MBZ: u64 = !(efer::SCE
    | efer::LME
    | efer::LMA
    | efer::NXE
    | efer::SVME
    | efer::LMSLE
    | efer::FFXSR
    | efer::TCE
    | efer::AUTOIBRS
    | 1 << 17
    | 1 << 18
    | 1 << 20);

/// CR4 bits that no AMD processor known to us defines: VMXE, SMXE, 15, KL, and 24 up but FRED (32).
const CR4_MBZ: u64 = !(0xff_ffff | 1 << 32) | cr4::VMXE | cr4::SMXE | 1 << 15 | 1 << 19;

/// The rules, in the manual's order.
const RULES: &[(Broken, &CStr)] = &[
    (|b, _| b.efer() & efer::SVME == 0, c"EFER.SVME is 0"),
    (
        |b, _| b.cr0() & (cr0::CD | cr0::NW) == cr0::NW,
        c"CR0.NW is 1 while CR0.CD is 0",
    ),
    (|b, _| high32(b.cr0()), c"CR0 has bits 63:32 set"),
    (
        // Whether outside of long mode, too, is for the processor to say.
        |b, l| b.cr3().checked_shr(l.phys_bits).unwrap_or(0) != 0,
        c"CR3 has bits set beyond the physical address width",
    ),
    (|b, _| b.cr4() & CR4_MBZ != 0, c"CR4 has reserved bits set"),
    (|b, _| high32(b.dr6()), c"DR6 has bits 63:32 set"),
    (|b, _| high32(b.dr7()), c"DR7 has bits 63:32 set"),
    (
        |b, _| b.efer() & EFER_MBZ != 0,
        c"EFER has reserved bits set",
    ),
    (
        |b, _| long_paging(b) && b.cr4() & cr4::PAE == 0,
        c"EFER.LME and CR0.PG are 1 while CR4.PAE is 0",
    ),
    (
        |b, _| long_paging(b) && b.cr0() & cr0::PE == 0,
        c"EFER.LME and CR0.PG are 1 while CR0.PE is 0",
    ),
    (
        |b, _| b.cr0() & (cr0::PG | cr0::PE) == cr0::PG,
        c"CR0.PG is 1 while CR0.PE is 0",
    ),
    (
        |b, _| cs_long_and_32(b),
        c"EFER.LME, CR0.PG and CR4.PAE are 1 and CS has both L and D set",
    ),
    (
        |b, _| b.cr4() & cr4::CET != 0 && b.cr0() & cr0::WP == 0,
        c"CR4.CET is 1 while CR0.WP is 0",
    ),
    (
        |b, _| b.intercepts4() & 1 == 0,
        c"the VMRUN intercept is off",
    ),
    (
        |b, l| beyond(b.msrpm_base_pa(), 8192, l),
        c"the MSR map's address is bad",
    ),
    (
        |b, l| beyond(b.iopm_base_pa(), 12288, l),
        c"the port map's address is bad",
    ),
    (|b, _| bad_event(b), c"the injected event is illegal"),
    (|b, _| b.guest_asid() == 0, c"the ASID is 0"),
    (|b, l| b.guest_asid() >= l.asids, c"the ASID is too large"),
    (
        |b, _| b.np_control().np_enable() && !pat_valid(b.g_pat()),
        c"the guest's PAT has a reserved memory type",
    ),
    (
        |b, l| b.np_control().np_enable() && beyond(b.n_cr3(), 4096, l),
        c"the nested page table's address is bad",
    ),
];

/// Each byte of a PAT is a memory type: 0, 1, 4, 5, 6 or 7 (7.8.1).
fn pat_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

/// The first rule that the block breaks.
pub(crate) fn broken_rule(b: &Vmcb, l: &Limits) -> Option<&'static CStr> {
    RULES
        .iter()
        .find(|(broken, _)| broken(b, l))
        .map(|&(_, words)| words)
}
