// SPDX-License-Identifier: GPL-2.0

//! Why an entry failed: the rules for the guest's state, each with its words.
//!
//! Intel SDM vol. 3C 28.3.1 (the checks, in its order) and 28.2.1.3 (the injected event). Pure. Run
//! after an entry that the processor refused.

use super::controls::entry;
use super::event::{kind, pushes_error, Injection};
use super::mirror::{Guest, Values, LDTR, TR};
use crate::arch::x86::model::regs::{cr0, cr4, efer, rflags, vector, SegAttr};
use core::ffi::CStr;

/// Interruptibility (table 26-3).
pub(crate) mod interruptibility {
    /// Blocking by STI
    pub(crate) const STI: u64 = 1 << 0;
    /// Blocking by MOV SS
    pub(crate) const MOV_SS: u64 = 1 << 1;
    /// Blocking by SMI
    pub(crate) const SMI: u64 = 1 << 2;
    /// Blocking by NMI
    pub(crate) const NMI: u64 = 1 << 3;
}

/// Activity states (26.4.2).
pub(crate) mod activity {
    /// Active
    pub(crate) const ACTIVE: u64 = 0;
    /// HLT
    pub(crate) const HLT: u64 = 1;
}

/// Pending debug exceptions (table 26-4).
pub(crate) mod pending {
    /// BS: a single step is due
    pub(crate) const STEP: u64 = 1 << 14;
    /// Bits that exist: B0 to B3, BLD, enabled breakpoint, BS, RTM
    pub(crate) const DEFINED: u64 = 0xf | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 16;
}

/// What the checks need of the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Width of a physical address, in bits.
    pub(crate) phys_bits: u32,
    /// Width of a linear address: 48 or 57.
    pub(crate) linear_bits: u32,
    /// CR0 bits that must be 1 and may be 1; unrestricted guests need not have PE and PG.
    pub(crate) cr0: [u64; 2],
    /// CR4 bits, likewise.
    pub(crate) cr4: [u64; 2],
    /// Exceptions are injected with an error code or without, as asked.
    pub(crate) any_error_code: bool,
}

/// What is checked.
pub(crate) struct State<'a> {
    /// The guest's registers.
    pub(crate) guest: &'a Values,
    /// The VM-entry controls.
    pub(crate) entry: u32,
    /// What was to be injected.
    pub(crate) event: Injection,
    /// The processor.
    pub(crate) limits: &'a Limits,
}

impl State<'_> {
    fn get(&self, g: Guest) -> u64 {
        self.guest.get(g as usize).copied().unwrap_or(0)
    }

    fn cr0(&self, bits: u64) -> bool {
        self.get(Guest::Cr0) & bits != 0
    }

    fn cr4(&self, bits: u64) -> bool {
        self.get(Guest::Cr4) & bits != 0
    }

    fn flags(&self, bits: u64) -> bool {
        self.get(Guest::Rflags) & bits != 0
    }

    fn long(&self) -> bool {
        self.entry & entry::LONG_MODE != 0
    }

    fn virtual_8086(&self) -> bool {
        self.flags(rflags::VM)
    }

    fn attr(&self, g: Guest) -> SegAttr {
        SegAttr((self.get(g) & 0xffff_ffff) as u32)
    }

    fn usable(&self, g: Guest) -> bool {
        !self.attr(g).unusable()
    }

    fn canonical(&self, v: u64) -> bool {
        Self::extends(v, self.limits.linear_bits)
    }

    /// All bits from `bits - 1` up are the same.
    fn extends(v: u64, bits: u32) -> bool {
        let shift = 64 - bits.min(64);
        let signed = v.checked_shl(shift).unwrap_or(v) as i64;
        signed.checked_shr(shift).unwrap_or(signed) as u64 == v
    }

    fn shadow(&self, bits: u64) -> bool {
        self.get(Guest::Interruptibility) & bits != 0
    }
}

/// A rule: true when it is broken.
type Broken = fn(&State<'_>) -> bool;

/// The registers of code and data, but CS: selector, access rights, limit, base.
const DATA: [[Guest; 4]; 5] = [
    [
        Guest::SsSelector,
        Guest::SsAttr,
        Guest::SsLimit,
        Guest::SsBase,
    ],
    [
        Guest::DsSelector,
        Guest::DsAttr,
        Guest::DsLimit,
        Guest::DsBase,
    ],
    [
        Guest::EsSelector,
        Guest::EsAttr,
        Guest::EsLimit,
        Guest::EsBase,
    ],
    [
        Guest::FsSelector,
        Guest::FsAttr,
        Guest::FsLimit,
        Guest::FsBase,
    ],
    [
        Guest::GsSelector,
        Guest::GsAttr,
        Guest::GsLimit,
        Guest::GsBase,
    ],
];

const CODE: [Guest; 4] = [
    Guest::CsSelector,
    Guest::CsAttr,
    Guest::CsLimit,
    Guest::CsBase,
];

/// Reserved bits of access rights: 11:8 and above 16.
const ATTR_RESERVED: u64 = 0xf00 | 0xffff_ffff_fffe_0000;

/// A limit that its granularity bit cannot say (28.3.1.2).
fn bad_granularity(s: &State<'_>, [_, attr, limit, _]: [Guest; 4]) -> bool {
    let (g, limit) = (s.attr(attr).granularity(), s.get(limit));
    limit & 0xfff != 0xfff && g || limit & 0xfff0_0000 != 0 && !g
}

fn any_data(s: &State<'_>, f: impl Fn([Guest; 4]) -> bool) -> bool {
    DATA.iter().any(|&r| s.usable(r[1]) && f(r))
}

fn segments_8086(s: &State<'_>) -> bool {
    /// Present, S, DPL 3, read and write, accessed
    const ATTR: u64 = 0xf3;
    let [bad_base, bad_limit, bad_attr] = [
        |s: &State<'_>, r: [Guest; 4]| s.get(r[3]) != s.get(r[0]) << 4,
        |s: &State<'_>, r: [Guest; 4]| s.get(r[2]) != 0xffff,
        |s: &State<'_>, r: [Guest; 4]| s.get(r[1]) != ATTR,
    ];
    s.virtual_8086()
        && DATA
            .iter()
            .chain([&CODE])
            .any(|&r| bad_base(s, r) || bad_limit(s, r) || bad_attr(s, r))
}

fn bad_cs_type(s: &State<'_>) -> bool {
    // Type 3, a data segment, will do for unrestricted guests.
    !matches!(s.attr(Guest::CsAttr).typ(), 3 | 9 | 11 | 13 | 15)
}

fn bad_cs_dpl(s: &State<'_>) -> bool {
    let (cs, ss) = (s.attr(Guest::CsAttr), s.attr(Guest::SsAttr));
    match cs.typ() {
        3 => cs.dpl() != 0,
        9 | 11 => cs.dpl() != ss.dpl(),
        13 | 15 => cs.dpl() > ss.dpl(),
        _ => false,
    }
}

fn bad_ss_dpl(s: &State<'_>) -> bool {
    let dpl = s.attr(Guest::SsAttr).dpl();
    (s.attr(Guest::CsAttr).typ() == 3 || !s.cr0(cr0::PE)) && dpl != 0
}

fn bad_data_type(s: &State<'_>) -> bool {
    let readable_and_accessed = |g| {
        let t = s.attr(g).typ();
        t & 1 != 0 && (t & 8 == 0 || t & 2 != 0)
    };
    let ss = s.attr(Guest::SsAttr);
    !ss.unusable() && !matches!(ss.typ(), 3 | 7)
        || DATA
            .iter()
            .skip(1)
            .any(|r| s.usable(r[1]) && !readable_and_accessed(r[1]))
}

fn bad_event(s: &State<'_>) -> bool {
    let (i, protected) = (s.event.info, s.cr0(cr0::PE));
    let v = i.vector();
    let error_wanted = protected && i.kind() == kind::EXCEPTION && pushes_error(v);
    let error_bad = if s.limits.any_error_code {
        i.has_error() && (!protected || i.kind() != kind::EXCEPTION)
    } else {
        i.has_error() != error_wanted
    };
    let soft = matches!(
        i.kind(),
        kind::SOFT_INTERRUPT | kind::INT1 | kind::SOFT_EXCEPTION
    );
    i.valid()
        && (i.kind() == 1
            || i.kind() == kind::NMI && v != vector::NMI
            || i.kind() == kind::EXCEPTION && v > 31
            || error_bad
            || soft && !matches!(s.event.length, 1..=15))
}

fn bad_activity_event(s: &State<'_>) -> bool {
    let i = s.event.info;
    s.get(Guest::Activity) == activity::HLT
        && i.valid()
        && !(matches!(i.kind(), kind::INTERRUPT | kind::NMI)
            || i.kind() == kind::EXCEPTION && matches!(i.vector(), vector::DB | vector::MC))
}

fn bad_step(s: &State<'_>) -> bool {
    let held = s.shadow(interruptibility::STI | interruptibility::MOV_SS)
        || s.get(Guest::Activity) == activity::HLT;
    let due = s.flags(rflags::TF) && s.get(Guest::DebugCtl) & 2 == 0;
    held && (s.get(Guest::PendingDebug) & pending::STEP != 0) != due
}

fn event_is(s: &State<'_>, kind: u32) -> bool {
    s.event.info.valid() && s.event.info.kind() == kind
}

/// PDPTE: reserved bits of one that is present (SDM vol. 3A table 5-8).
fn bad_pdptes(s: &State<'_>) -> bool {
    let above = u64::MAX.checked_shl(s.limits.phys_bits).unwrap_or(0);
    let bad = |g| s.get(g) & 1 != 0 && s.get(g) & (0x1e6 | above) != 0;
    let pae = s.cr0(cr0::PG) && s.cr4(cr4::PAE) && !s.long();
    pae && [Guest::Pdpte0, Guest::Pdpte1, Guest::Pdpte2, Guest::Pdpte3]
        .into_iter()
        .any(bad)
}

/// The rules, in the manual's order.
#[rustfmt::skip]
const RULES: &[(Broken, &CStr)] = &[
    // 28.2.1.3: the injected event.
    (bad_event, c"the injected event is illegal"),
    // 28.3.1.1: control registers, debug registers and MSRs.
    (|s| s.limits.cr0[0] & !(cr0::PE | cr0::PG) & !s.get(Guest::Cr0) != 0, c"CR0 lacks bits that VMX needs"),
    (|s| s.get(Guest::Cr0) & !s.limits.cr0[1] & !(cr0::CD | cr0::NW) != 0, c"CR0 has reserved bits set"),
    (|s| s.cr0(cr0::PG) && !s.cr0(cr0::PE), c"CR0.PG is 1 while CR0.PE is 0"),
    (|s| s.limits.cr4[0] & !s.get(Guest::Cr4) != 0, c"CR4 lacks bits that VMX needs"),
    (|s| s.get(Guest::Cr4) & !s.limits.cr4[1] != 0, c"CR4 has bits set that this processor lacks"),
    (|s| s.cr4(cr4::CET) && !s.cr0(cr0::WP), c"CR4.CET is 1 while CR0.WP is 0"),
    (|s| s.get(Guest::DebugCtl) & !0xffff != 0, c"DEBUGCTL has reserved bits set"),
    (|s| s.long() && !s.cr0(cr0::PG), c"long mode is active while CR0.PG is 0"),
    (|s| s.long() && !s.cr4(cr4::PAE), c"long mode is active while CR4.PAE is 0"),
    (|s| !s.long() && s.cr4(cr4::PCIDE), c"CR4.PCIDE is 1 outside of long mode"),
    (|s| s.get(Guest::Cr3).checked_shr(s.limits.phys_bits).unwrap_or(0) != 0, c"CR3 has bits set beyond the physical address width"),
    (|s| s.get(Guest::Dr7) >> 32 != 0, c"DR7 has bits 63:32 set"),
    (|s| !s.canonical(s.get(Guest::SysenterEsp)), c"SYSENTER_ESP is not canonical"),
    (|s| !s.canonical(s.get(Guest::SysenterEip)), c"SYSENTER_EIP is not canonical"),
    (|s| !pat_valid(s.get(Guest::Pat)), c"the guest's PAT has a reserved memory type"),
    (|s| s.get(Guest::Efer) & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) != 0, c"EFER has reserved bits set"),
    (|s| (s.get(Guest::Efer) & efer::LMA != 0) != s.long(), c"EFER.LMA is not what the entry controls say of long mode"),
    (|s| s.cr0(cr0::PG) && (s.get(Guest::Efer) & efer::LMA != 0) != (s.get(Guest::Efer) & efer::LME != 0), c"EFER.LMA and LME differ while paging is on"),
    // 28.3.1.2: segments.
    (|s| s.usable(Guest::TrAttr) && s.get(Guest::TrSelector) & 4 != 0, c"TR's selector refers to the LDT"),
    (|s| s.usable(Guest::LdtrAttr) && s.get(Guest::LdtrSelector) & 4 != 0, c"LDTR's selector refers to the LDT"),
    (segments_8086, c"a segment is not as virtual-8086 mode has it"),
    (|s| !s.canonical(s.get(Guest::TrBase)), c"TR's base is not canonical"),
    (|s| !s.canonical(s.get(Guest::FsBase)) || !s.canonical(s.get(Guest::GsBase)), c"FS' or GS' base is not canonical"),
    (|s| s.usable(Guest::LdtrAttr) && !s.canonical(s.get(Guest::LdtrBase)), c"LDTR's base is not canonical"),
    (|s| s.get(Guest::CsBase) >> 32 != 0, c"CS' base has bits 63:32 set"),
    (|s| DATA.iter().take(3).any(|r| s.usable(r[1]) && s.get(r[3]) >> 32 != 0), c"SS', DS' or ES' base has bits 63:32 set"),
    (|s| !s.virtual_8086() && bad_cs_type(s), c"CS is no accessed code segment"),
    (|s| !s.virtual_8086() && bad_data_type(s), c"SS, DS, ES, FS or GS is of a type that cannot be loaded"),
    (|s| !s.virtual_8086() && (!s.attr(Guest::CsAttr).s() || any_data(s, |r| !s.attr(r[1]).s())), c"a code or data segment has S clear"),
    (|s| !s.virtual_8086() && bad_cs_dpl(s), c"CS.DPL does not go with its type and SS.DPL"),
    (|s| !s.virtual_8086() && bad_ss_dpl(s), c"SS.DPL is not 0 in real mode"),
    (|s| !s.virtual_8086() && (!s.attr(Guest::CsAttr).present() || any_data(s, |r| !s.attr(r[1]).present())), c"a usable segment is not present"),
    (|s| s.get(Guest::CsAttr) & ATTR_RESERVED != 0 || any_data(s, |r| s.get(r[1]) & ATTR_RESERVED != 0), c"a segment's access rights have reserved bits set"),
    (|s| !s.virtual_8086() && s.long() && s.attr(Guest::CsAttr).long() && s.attr(Guest::CsAttr).db(), c"CS has both L and D set in long mode"),
    (|s| !s.virtual_8086() && (bad_granularity(s, CODE) || any_data(s, |r| bad_granularity(s, r))), c"a segment's limit does not go with its granularity"),
    (|s| !matches!(s.attr(Guest::TrAttr).typ(), 3 | 11) || s.long() && s.attr(Guest::TrAttr).typ() != 11, c"TR is no busy TSS of the mode's kind"),
    (|s| s.attr(Guest::TrAttr).s() || !s.attr(Guest::TrAttr).present() || !s.usable(Guest::TrAttr), c"TR is not a present system segment"),
    (|s| s.get(Guest::TrAttr) & ATTR_RESERVED != 0, c"TR's access rights have reserved bits set"),
    (|s| bad_granularity(s, TR), c"TR's limit does not go with its granularity"),
    (|s| s.usable(Guest::LdtrAttr) && (s.attr(Guest::LdtrAttr).typ() != 2 || s.attr(Guest::LdtrAttr).s() || !s.attr(Guest::LdtrAttr).present()), c"LDTR is no present LDT"),
    (|s| s.usable(Guest::LdtrAttr) && (s.get(Guest::LdtrAttr) & ATTR_RESERVED != 0 || bad_granularity(s, LDTR)), c"LDTR's access rights or limit are bad"),
    // 28.3.1.3: descriptor tables.
    (|s| !s.canonical(s.get(Guest::GdtrBase)) || !s.canonical(s.get(Guest::IdtrBase)), c"GDTR's or IDTR's base is not canonical"),
    (|s| s.get(Guest::GdtrLimit) > 0xffff || s.get(Guest::IdtrLimit) > 0xffff, c"GDTR's or IDTR's limit has bits 31:16 set"),
    // 28.3.1.4: RIP, RFLAGS.
    (|s| !(s.long() && s.attr(Guest::CsAttr).long()) && s.get(Guest::Rip) >> 32 != 0, c"RIP has bits 63:32 set outside of 64-bit mode"),
    // An instruction may end where the canonical addresses do.
    (|s| s.long() && s.attr(Guest::CsAttr).long() && !State::extends(s.get(Guest::Rip), s.limits.linear_bits + 1), c"RIP is not a linear address"),
    (|s| s.get(Guest::Rflags) & !0x3f_7fd7 != 0 || !s.flags(rflags::FIXED), c"RFLAGS has reserved bits set, or bit 1 clear"),
    (|s| s.virtual_8086() && (s.long() || !s.cr0(cr0::PE)), c"RFLAGS.VM is 1 in long mode or real mode"),
    (|s| event_is(s, kind::INTERRUPT) && !s.flags(rflags::IF), c"an interrupt is injected while RFLAGS.IF is 0"),
    // 28.3.1.5: activity and interruptibility.
    (|s| s.get(Guest::Activity) > 3, c"the activity state does not exist"),
    (|s| s.get(Guest::Activity) == activity::HLT && s.attr(Guest::SsAttr).dpl() != 0, c"the guest is halted at a privilege level other than 0"),
    (|s| s.get(Guest::Activity) != activity::ACTIVE && s.shadow(interruptibility::STI | interruptibility::MOV_SS), c"the guest is halted in an interrupt shadow"),
    (bad_activity_event, c"an event is injected that does not end a halt"),
    (|s| s.get(Guest::Interruptibility) & !0x1f != 0, c"the interruptibility state has reserved bits set"),
    (|s| s.shadow(interruptibility::STI) && s.shadow(interruptibility::MOV_SS), c"STI and MOV SS both hold interrupts back"),
    (|s| s.shadow(interruptibility::STI) && !s.flags(rflags::IF), c"STI holds interrupts back while RFLAGS.IF is 0"),
    (|s| event_is(s, kind::INTERRUPT) && s.shadow(interruptibility::STI | interruptibility::MOV_SS), c"an interrupt is injected in an interrupt shadow"),
    (|s| event_is(s, kind::NMI) && s.shadow(interruptibility::MOV_SS), c"an NMI is injected in the shadow of MOV SS"),
    (|s| s.shadow(interruptibility::SMI), c"SMIs are blocked outside of system management mode"),
    (|s| event_is(s, kind::NMI) && s.shadow(interruptibility::NMI), c"an NMI is injected while NMIs are blocked"),
    (|s| s.get(Guest::PendingDebug) & !pending::DEFINED != 0, c"the pending debug exceptions have reserved bits set"),
    (bad_step, c"a pending single step does not go with RFLAGS.TF in an interrupt shadow"),
    // 28.3.1.6: PDPTEs.
    (bad_pdptes, c"a PDPTE has reserved bits set"),
];

/// Each byte of a PAT is a memory type: 0, 1, 4, 5, 6 or 7.
fn pat_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))
}

/// The first rule that the state breaks.
pub(crate) fn broken_rule(s: &State<'_>) -> Option<&'static CStr> {
    RULES
        .iter()
        .find(|(broken, _)| broken(s))
        .map(|&(_, words)| words)
}
