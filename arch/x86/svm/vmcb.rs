// SPDX-License-Identifier: GPL-2.0

//! The virtual machine control block: layout, named bits, and which clean bit each field belongs to.
//!
//! AMD APM vol. 2 (24593), appendix B (layout), 15.15 (clean bits), 15.21 (virtual interrupts).
//! Pure: `core` only. Every setter clears the clean bit that covers its field, so that whoever
//! writes a field cannot forget it.

use crate::arch::x86::model::regs::{DescTable, SegAttr, Segment};
use core::mem::{offset_of, size_of};

/// Makes a word of named bits: a range becomes a getter and a `with_` builder, a flag likewise.
///
/// The kernel's own `bitfield!` is not to be had where this file is tested.
macro_rules! bits {
    ($(#[$meta:meta])* $name:ident($ty:ty) {
        ranges { $($(#[$rmeta:meta])* $get:ident, $with:ident: $hi:literal, $lo:literal;)* }
        flags { $($(#[$fmeta:meta])* $fget:ident, $fwith:ident: $bit:literal;)* }
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(transparent)]
        pub(crate) struct $name(pub(crate) $ty);

        #[allow(dead_code, reason = "every field has its getter and builder, used or not")]
        impl $name {
            $($(#[$rmeta])* #[inline]
            pub(crate) const fn $get(self) -> $ty {
                self.0 >> $lo & const { <$ty>::MAX >> (<$ty>::BITS - 1 - ($hi - $lo)) }
            }
            $(#[$rmeta])* #[inline]
            pub(crate) const fn $with(self, v: $ty) -> Self {
                let mask = const { <$ty>::MAX >> (<$ty>::BITS - 1 - ($hi - $lo)) };
                Self(self.0 & !(mask << $lo) | (v & mask) << $lo)
            })*
            $($(#[$fmeta])* #[inline]
            pub(crate) const fn $fget(self) -> bool {
                self.0 & 1 << $bit != 0
            }
            $(#[$fmeta])* #[inline]
            pub(crate) const fn $fwith(self, v: bool) -> Self {
                Self(if v { self.0 | 1 << $bit } else { self.0 & !(1 << $bit) })
            })*
        }
    };
}

bits! {
    /// Virtual interrupt control, offset 060h.
    IntCtl(u64) {
        ranges {
            /// V_TPR: the guest's task priority, as CR8 shows it.
            v_tpr, with_v_tpr: 3, 0;
            /// V_INTR_PRIO: priority of the virtual interrupt.
            v_intr_prio, with_v_intr_prio: 19, 16;
            /// V_INTR_VECTOR
            v_intr_vector, with_v_intr_vector: 39, 32;
        }
        flags {
            /// V_IRQ: a virtual interrupt is pending.
            v_irq, with_v_irq: 8;
            /// V_IGN_TPR: the virtual interrupt is taken whatever V_TPR says.
            v_ign_tpr, with_v_ign_tpr: 20;
            /// V_INTR_MASKING: the guest's RFLAGS.IF and CR8 do not govern host interrupts.
            v_intr_masking, with_v_intr_masking: 24;
        }
    }
}

bits! {
    /// Guest interrupt state, offset 068h.
    IntState(u64) {
        ranges {}
        flags {
            /// INTERRUPT_SHADOW
            shadow, with_shadow: 0;
        }
    }
}

bits! {
    /// Event injection (0A8h) and exit interrupt information (088h).
    EventInfo(u64) {
        ranges {
            /// VECTOR
            vector, with_vector: 7, 0;
            /// TYPE, see [`event_type`].
            typ, with_typ: 10, 8;
            /// ERRORCODE
            error, with_error: 63, 32;
        }
        flags {
            /// EV: an error code is pushed.
            error_valid, with_error_valid: 11;
            /// V
            valid, with_valid: 31;
        }
    }
}

/// Event types (APM vol. 2, 15.20).
pub(crate) mod event_type {
    /// External or virtual interrupt
    pub(crate) const INTR: u64 = 0;
    /// NMI
    pub(crate) const NMI: u64 = 2;
    /// Exception (also INT3 and INTO)
    pub(crate) const EXCEPTION: u64 = 3;
    /// INT n
    pub(crate) const SOFT: u64 = 4;
}

bits! {
    /// TLB_CONTROL, offset 05Ch.
    TlbControl(u32) {
        ranges {
            /// See [`tlb_control`].
            command, with_command: 7, 0;
        }
        flags {}
    }
}

/// TLB_CONTROL commands (APM vol. 2, 15.16.1).
pub(crate) mod tlb_control {
    /// Nothing
    pub(crate) const NOTHING: u32 = 0;
    /// Every ASID's entries, the host's too
    pub(crate) const FLUSH_ALL: u32 = 1;
    /// This guest's entries (needs flush-by-ASID)
    pub(crate) const FLUSH_ASID: u32 = 3;
}

bits! {
    /// Nested paging control, offset 090h.
    NpControl(u64) {
        ranges {}
        flags {
            /// NP_ENABLE
            np_enable, with_np_enable: 0;
        }
    }
}

/// VMCB clean bits, offset 0C0h (APM vol. 2, 15.15.3): a set bit says that the fields are as the
/// processor last had them.
pub(crate) mod clean {
    /// Intercepts, TSC offset, pause filter
    pub(crate) const I: u32 = 1 << 0;
    /// IOPM and MSRPM base
    pub(crate) const IOPM: u32 = 1 << 1;
    /// ASID
    pub(crate) const ASID: u32 = 1 << 2;
    /// Virtual interrupt control
    pub(crate) const TPR: u32 = 1 << 3;
    /// Nested paging: NP control, N_CR3, G_PAT
    pub(crate) const NP: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER
    pub(crate) const CRX: u32 = 1 << 5;
    /// DR6, DR7
    pub(crate) const DRX: u32 = 1 << 6;
    /// GDTR, IDTR
    pub(crate) const DT: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL
    pub(crate) const SEG: u32 = 1 << 8;
    /// CR2
    pub(crate) const CR2: u32 = 1 << 9;
    /// DBGCTL and the last-branch registers
    pub(crate) const LBR: u32 = 1 << 10;
    /// Fields that no clean bit covers: the processor always reads them.
    pub(crate) const NONE: u32 = 0;
    /// Everything that the processor may keep.
    pub(crate) const ALL: u32 = I | IOPM | ASID | TPR | NP | CRX | DRX | DT | SEG | CR2 | LBR;
}

/// A segment register or descriptor-table register in the save area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct VmcbSeg {
    selector: u16,
    attrib: u16,
    limit: u32,
    base: u64,
}

impl VmcbSeg {
    /// The attributes are the descriptor's bits 55:52 and 47:40, packed into 12 bits. A null
    /// register has P clear: that stands for "unusable".
    pub(crate) const fn new(s: &Segment) -> Self {
        let a = s.attr.0;
        let packed = (a & 0xff) | (a >> 4 & 0xf00);
        let packed = if s.attr.unusable() {
            packed & !0x80
        } else {
            packed
        };
        Self {
            selector: s.selector,
            attrib: (packed & 0xfff) as u16,
            limit: s.limit,
            base: s.base,
        }
    }

    /// Unpacked again.
    pub(crate) fn get(&self) -> Segment {
        let a = u32::from(self.attrib);
        let unusable = if a & 0x80 == 0 { 1 << 16 } else { 0 };
        Segment {
            selector: self.selector,
            attr: SegAttr((a & 0xff) | (a & 0xf00) << 4 | unusable),
            limit: self.limit,
            base: self.base,
        }
    }

    /// As GDTR or IDTR.
    pub(crate) const fn table(&self) -> DescTable {
        DescTable {
            base: self.base,
            limit: (self.limit & 0xffff) as u16,
        }
    }

    /// From GDTR or IDTR.
    pub(crate) fn from_table(t: &DescTable) -> Self {
        Self {
            selector: 0,
            attrib: 0,
            limit: u32::from(t.limit),
            base: t.base,
        }
    }
}

/// Bytes that are reserved.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Reserved<const N: usize>([u8; N]);

impl<const N: usize> Default for Reserved<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

/// The control area, at 000h.
#[derive(Default)]
#[repr(C)]
struct Control {
    cr_intercepts: u32,
    dr_intercepts: u32,
    exception_intercepts: u32,
    intercepts3: u32,
    intercepts4: u32,
    intercepts5: u32,
    _reserved_018: Reserved<0x24>,
    pause_filter_threshold: u16,
    pause_filter_count: u16,
    iopm_base_pa: u64,
    msrpm_base_pa: u64,
    tsc_offset: u64,
    guest_asid: u32,
    tlb_control: TlbControl,
    int_ctl: IntCtl,
    int_state: IntState,
    exitcode: u64,
    exitinfo1: u64,
    exitinfo2: u64,
    exitintinfo: EventInfo,
    np_control: NpControl,
    avic_apic_bar: u64,
    ghcb: u64,
    eventinj: EventInfo,
    n_cr3: u64,
    lbr_control: u64,
    clean: u32,
    _reserved_0c4: u32,
    nrip: u64,
    fetched: [u8; 16],
    _avic_backing_page: u64,
    _reserved_0e8: u64,
    _avic_logical_table: u64,
    _avic_physical_table: u64,
    _reserved_100: u64,
    _vmsa: u64,
    _reserved_110: Reserved<0x2f0>,
}

/// The state save area, at 400h.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Save {
    es: VmcbSeg,
    cs: VmcbSeg,
    ss: VmcbSeg,
    ds: VmcbSeg,
    fs: VmcbSeg,
    gs: VmcbSeg,
    gdtr: VmcbSeg,
    ldtr: VmcbSeg,
    idtr: VmcbSeg,
    tr: VmcbSeg,
    _reserved_4a0: Reserved<0x2b>,
    cpl: u8,
    _reserved_4cc: Reserved<0x4>,
    efer: u64,
    _reserved_4d8: Reserved<0x70>,
    cr4: u64,
    cr3: u64,
    cr0: u64,
    dr7: u64,
    dr6: u64,
    rflags: u64,
    rip: u64,
    _reserved_580: Reserved<0x58>,
    rsp: u64,
    _s_cet: u64,
    _ssp: u64,
    _isst_addr: u64,
    rax: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    cr2: u64,
    _reserved_648: Reserved<0x20>,
    g_pat: u64,
    dbgctl: u64,
    br_from: u64,
    br_to: u64,
    last_excp_from: u64,
    last_excp_to: u64,
    _reserved_698: Reserved<0x48>,
    spec_ctrl: u64,
}

/// The whole block: one page, its physical address is VMRUN's operand.
///
/// # Invariants
///
/// A clean bit is set only if none of its fields changed since the processor last saw them.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Vmcb {
    control: Control,
    save: Save,
    _reserved_6e8: Reserved<0x918>,
}

/// Checks offsets at compile time against the manual's tables B-1 and B-2.
macro_rules! layout {
    ($($area:ident: $($field:ident @ $offset:literal,)*;)*) => {
        $($(const _: () = assert!(offset_of!(Vmcb, $area.$field) == $offset);)*)*
        const _: () = assert!(size_of::<Vmcb>() == 4096);
    };
}

layout! {
    control:
    cr_intercepts @ 0x000, dr_intercepts @ 0x004, exception_intercepts @ 0x008,
    intercepts3 @ 0x00c, intercepts4 @ 0x010, intercepts5 @ 0x014,
    pause_filter_threshold @ 0x03c, pause_filter_count @ 0x03e, iopm_base_pa @ 0x040,
    msrpm_base_pa @ 0x048, tsc_offset @ 0x050, guest_asid @ 0x058, tlb_control @ 0x05c,
    int_ctl @ 0x060, int_state @ 0x068, exitcode @ 0x070, exitinfo1 @ 0x078,
    exitinfo2 @ 0x080, exitintinfo @ 0x088, np_control @ 0x090, avic_apic_bar @ 0x098,
    ghcb @ 0x0a0, eventinj @ 0x0a8, n_cr3 @ 0x0b0, lbr_control @ 0x0b8, clean @ 0x0c0,
    nrip @ 0x0c8, fetched @ 0x0d0,;
    save:
    es @ 0x400, cs @ 0x410, ss @ 0x420, ds @ 0x430, fs @ 0x440, gs @ 0x450, gdtr @ 0x460,
    ldtr @ 0x470, idtr @ 0x480, tr @ 0x490, cpl @ 0x4cb, efer @ 0x4d0, cr4 @ 0x548,
    cr3 @ 0x550, cr0 @ 0x558, dr7 @ 0x560, dr6 @ 0x568, rflags @ 0x570, rip @ 0x578,
    rsp @ 0x5d8, rax @ 0x5f8, star @ 0x600, lstar @ 0x608, cstar @ 0x610, sfmask @ 0x618,
    kernel_gs_base @ 0x620, sysenter_cs @ 0x628, sysenter_esp @ 0x630,
    sysenter_eip @ 0x638, cr2 @ 0x640, g_pat @ 0x668, dbgctl @ 0x670, br_from @ 0x678,
    br_to @ 0x680, last_excp_from @ 0x688, last_excp_to @ 0x690, spec_ctrl @ 0x6e0,;
}

/// Getter and setter of each field; the setter marks the field's clean bit.
macro_rules! accessors {
    ($($area:ident {
        $($(#[$meta:meta])* $field:ident, $set:ident: $ty:ty, $clean:ident;)*
    })*) => {
        #[allow(dead_code, reason = "every field has its getter and setter, used or not")]
        impl Vmcb {
            $($($(#[$meta])* #[inline]
            pub(crate) const fn $field(&self) -> $ty {
                self.$area.$field
            }
            #[doc = concat!("Sets [`Vmcb::", stringify!($field), "`].")]
            #[inline]
            pub(crate) fn $set(&mut self, v: $ty) {
                self.$area.$field = v;
                self.control.clean &= !clean::$clean;
            })*)*
        }
    };
}

accessors! {
    control {
        /// CR intercepts: reads in bits 15:0, writes in 31:16.
        cr_intercepts, set_cr_intercepts: u32, I;
        /// DR intercepts: reads in bits 15:0, writes in 31:16.
        dr_intercepts, set_dr_intercepts: u32, I;
        /// Exception intercepts, bit n is vector n.
        exception_intercepts, set_exception_intercepts: u32, I;
        /// Intercepts, offset 00Ch.
        intercepts3, set_intercepts3: u32, I;
        /// Intercepts, offset 010h.
        intercepts4, set_intercepts4: u32, I;
        /// Intercepts, offset 014h.
        intercepts5, set_intercepts5: u32, I;
        /// PAUSE filter threshold, in cycles.
        pause_filter_threshold, set_pause_filter_threshold: u16, I;
        /// PAUSE filter count.
        pause_filter_count, set_pause_filter_count: u16, I;
        /// Physical address of the I/O permission map.
        iopm_base_pa, set_iopm_base_pa: u64, IOPM;
        /// Physical address of the MSR permission map.
        msrpm_base_pa, set_msrpm_base_pa: u64, IOPM;
        /// Added to the (scaled) TSC.
        tsc_offset, set_tsc_offset: u64, I;
        /// Address-space identifier; 0 is the host's.
        guest_asid, set_guest_asid: u32, ASID;
        /// TLB command for the next VMRUN.
        tlb_control, set_tlb_control: TlbControl, NONE;
        /// Virtual interrupt control.
        int_ctl, set_int_ctl: IntCtl, TPR;
        /// Interrupt shadow.
        int_state, set_int_state: IntState, NONE;
        /// Why the guest exited.
        exitcode, set_exitcode: u64, NONE;
        /// By exit code.
        exitinfo1, set_exitinfo1: u64, NONE;
        /// By exit code.
        exitinfo2, set_exitinfo2: u64, NONE;
        /// The event whose delivery the exit interrupted.
        exitintinfo, set_exitintinfo: EventInfo, NONE;
        /// Nested paging control.
        np_control, set_np_control: NpControl, NP;
        /// The event to deliver at the next VMRUN.
        eventinj, set_eventinj: EventInfo, NONE;
        /// Physical address of the nested page table's root.
        n_cr3, set_n_cr3: u64, NP;
        /// Address of the next instruction (with NRIPS).
        nrip, set_nrip: u64, NONE;
    }
    save {
        /// ES
        es, set_es: VmcbSeg, SEG;
        /// CS
        cs, set_cs: VmcbSeg, SEG;
        /// SS
        ss, set_ss: VmcbSeg, SEG;
        /// DS
        ds, set_ds: VmcbSeg, SEG;
        /// FS (moved by VMLOAD and VMSAVE)
        fs, set_fs: VmcbSeg, NONE;
        /// GS (moved by VMLOAD and VMSAVE)
        gs, set_gs: VmcbSeg, NONE;
        /// GDTR
        gdtr, set_gdtr: VmcbSeg, DT;
        /// LDTR (moved by VMLOAD and VMSAVE)
        ldtr, set_ldtr: VmcbSeg, NONE;
        /// IDTR
        idtr, set_idtr: VmcbSeg, DT;
        /// TR (moved by VMLOAD and VMSAVE)
        tr, set_tr: VmcbSeg, NONE;
        /// Current privilege level.
        cpl, set_cpl: u8, SEG;
        /// EFER, with SVME.
        efer, set_efer: u64, CRX;
        /// CR4
        cr4, set_cr4: u64, CRX;
        /// CR3
        cr3, set_cr3: u64, CRX;
        /// CR0
        cr0, set_cr0: u64, CRX;
        /// DR7
        dr7, set_dr7: u64, DRX;
        /// DR6
        dr6, set_dr6: u64, DRX;
        /// RFLAGS
        rflags, set_rflags: u64, NONE;
        /// RIP
        rip, set_rip: u64, NONE;
        /// RSP
        rsp, set_rsp: u64, NONE;
        /// RAX
        rax, set_rax: u64, NONE;
        /// STAR (moved by VMLOAD and VMSAVE, as the next seven)
        star, set_star: u64, NONE;
        /// LSTAR
        lstar, set_lstar: u64, NONE;
        /// CSTAR
        cstar, set_cstar: u64, NONE;
        /// SFMASK
        sfmask, set_sfmask: u64, NONE;
        /// KERNEL_GS_BASE
        kernel_gs_base, set_kernel_gs_base: u64, NONE;
        /// SYSENTER_CS
        sysenter_cs, set_sysenter_cs: u64, NONE;
        /// SYSENTER_ESP
        sysenter_esp, set_sysenter_esp: u64, NONE;
        /// SYSENTER_EIP
        sysenter_eip, set_sysenter_eip: u64, NONE;
        /// CR2
        cr2, set_cr2: u64, CR2;
        /// The guest's PAT.
        g_pat, set_g_pat: u64, NP;
        /// DEBUGCTL
        dbgctl, set_dbgctl: u64, LBR;
        /// Last branch, from
        br_from, set_br_from: u64, LBR;
        /// Last branch, to
        br_to, set_br_to: u64, LBR;
        /// Last exception, from
        last_excp_from, set_last_excp_from: u64, LBR;
        /// Last exception, to
        last_excp_to, set_last_excp_to: u64, LBR;
        /// SPEC_CTRL (with V_SPEC_CTRL)
        spec_ctrl, set_spec_ctrl: u64, NONE;
    }
}

impl Vmcb {
    /// The clean bits as they stand.
    #[cfg(test)]
    pub(crate) const fn clean(&self) -> u32 {
        self.control.clean
    }

    /// After an entry: the processor has seen everything.
    #[inline]
    pub(crate) fn set_all_clean(&mut self) {
        self.control.clean = clean::ALL;
    }

    /// Another processor is to run this block: it has seen nothing.
    #[inline]
    pub(crate) fn set_all_dirty(&mut self) {
        self.control.clean = 0;
    }

    /// The instruction bytes that the processor fetched (with decode assists): count, at most 15.
    #[inline]
    pub(crate) fn fetched(&self) -> &[u8] {
        let [n, bytes @ ..] = &self.control.fetched;
        bytes.get(..usize::from(*n & 15)).unwrap_or(&[])
    }

    /// The whole save area, to be put back by [`Vmcb::restore`].
    pub(crate) fn save_area(&self) -> Save {
        self.save
    }

    /// Puts a save area back.
    pub(crate) fn restore(&mut self, save: &Save) {
        self.save = *save;
        self.set_all_dirty();
    }
}
