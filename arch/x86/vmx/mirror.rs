// SPDX-License-Identifier: GPL-2.0

//! The guest's state as memory: a copy of the VMCS' guest-state fields, with what is known and what the
//! hardware has to be told.
//!
//! The VMCS can be read and written only while it is current, which it is in guest sections. Outside
//! everything is known. Intel SDM vol. 3C 26.4, vol. 3D appendix B. Pure.

use crate::arch::x86::model::regs::{DescTable, Seg, SegAttr, Segment};
use core::cell::Cell;

macro_rules! guest {
    ($($(#[$meta:meta])* $name:ident = $n:literal;)*) => {
        /// A field of the guest's state.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Guest { $($(#[$meta])* $name,)* }

        /// How VMREAD and VMWRITE name them.
        pub(crate) const ENCODING: &[u32] = &[$($n,)*];

        impl Guest {
            /// All, in order.
            pub(crate) const ALL: &[Guest] = &[$(Guest::$name,)*];
        }
    };
}

guest! {
    // The eight segments, each a row of four.
    /// ES selector
    EsSelector = 0x0800;
    /// ES access rights
    EsAttr = 0x4814;
    /// ES limit
    EsLimit = 0x4800;
    /// ES base
    EsBase = 0x6806;
    /// CS selector
    CsSelector = 0x0802;
    /// CS access rights
    CsAttr = 0x4816;
    /// CS limit
    CsLimit = 0x4802;
    /// CS base
    CsBase = 0x6808;
    /// SS selector
    SsSelector = 0x0804;
    /// SS access rights
    SsAttr = 0x4818;
    /// SS limit
    SsLimit = 0x4804;
    /// SS base
    SsBase = 0x680a;
    /// DS selector
    DsSelector = 0x0806;
    /// DS access rights
    DsAttr = 0x481a;
    /// DS limit
    DsLimit = 0x4806;
    /// DS base
    DsBase = 0x680c;
    /// FS selector
    FsSelector = 0x0808;
    /// FS access rights
    FsAttr = 0x481c;
    /// FS limit
    FsLimit = 0x4808;
    /// FS base
    FsBase = 0x680e;
    /// GS selector
    GsSelector = 0x080a;
    /// GS access rights
    GsAttr = 0x481e;
    /// GS limit
    GsLimit = 0x480a;
    /// GS base
    GsBase = 0x6810;
    /// LDTR selector
    LdtrSelector = 0x080c;
    /// LDTR access rights
    LdtrAttr = 0x4820;
    /// LDTR limit
    LdtrLimit = 0x480c;
    /// LDTR base
    LdtrBase = 0x6812;
    /// TR selector
    TrSelector = 0x080e;
    /// TR access rights
    TrAttr = 0x4822;
    /// TR limit
    TrLimit = 0x480e;
    /// TR base
    TrBase = 0x6814;
    /// GDTR limit
    GdtrLimit = 0x4810;
    /// GDTR base
    GdtrBase = 0x6816;
    /// IDTR limit
    IdtrLimit = 0x4812;
    /// IDTR base
    IdtrBase = 0x6818;
    /// CR0
    Cr0 = 0x6800;
    /// CR3
    Cr3 = 0x6802;
    /// CR4
    Cr4 = 0x6804;
    /// CR0 as the guest reads the bits that are ours
    Cr0Shadow = 0x6004;
    /// CR4 as the guest reads the bits that are ours
    Cr4Shadow = 0x6006;
    /// DR7
    Dr7 = 0x681a;
    /// RSP
    Rsp = 0x681c;
    /// RIP
    Rip = 0x681e;
    /// RFLAGS
    Rflags = 0x6820;
    /// Pending debug exceptions
    PendingDebug = 0x6822;
    /// IA32_DEBUGCTL
    DebugCtl = 0x2802;
    /// IA32_PAT
    Pat = 0x2804;
    /// IA32_EFER
    Efer = 0x2806;
    /// PDPTE 0
    Pdpte0 = 0x280a;
    /// PDPTE 1
    Pdpte1 = 0x280c;
    /// PDPTE 2
    Pdpte2 = 0x280e;
    /// PDPTE 3
    Pdpte3 = 0x2810;
    /// Interruptibility state
    Interruptibility = 0x4824;
    /// Activity state
    Activity = 0x4826;
    /// IA32_SYSENTER_CS
    SysenterCs = 0x482a;
    /// IA32_SYSENTER_ESP
    SysenterEsp = 0x6824;
    /// IA32_SYSENTER_EIP
    SysenterEip = 0x6826;
}

const COUNT: usize = Guest::ALL.len();
const _: () = assert!(COUNT <= 64 && COUNT == ENCODING.len());

const fn bit(g: Guest) -> u64 {
    1 << g as u64
}

const fn all() -> u64 {
    u64::MAX >> (64 - COUNT)
}

/// What the guest cannot change without an exit at which we are told: it stays known. The SYSENTER
/// MSRs, PAT and EFER exit when they are written; all of CR4 is ours.
const STAYS: u64 = bit(Guest::Cr4)
    | bit(Guest::Cr0Shadow)
    | bit(Guest::Cr4Shadow)
    | bit(Guest::DebugCtl)
    | bit(Guest::Pat)
    | bit(Guest::Efer)
    | bit(Guest::SysenterCs)
    | bit(Guest::SysenterEsp)
    | bit(Guest::SysenterEip);

/// Access rights: the bit of a register that cannot be used (26.4.1).
const UNUSABLE: u64 = 1 << 16;

/// A segment register's four fields.
type Row = [Guest; 4];

const fn row(s: Seg) -> Row {
    use Guest::{
        CsAttr, CsBase, CsLimit, CsSelector, DsAttr, DsBase, DsLimit, DsSelector, EsAttr, EsBase,
        EsLimit, EsSelector, FsAttr, FsBase, FsLimit, FsSelector, GsAttr, GsBase, GsLimit,
        GsSelector, SsAttr, SsBase, SsLimit, SsSelector,
    };
    match s {
        Seg::Es => [EsSelector, EsAttr, EsLimit, EsBase],
        Seg::Cs => [CsSelector, CsAttr, CsLimit, CsBase],
        Seg::Ss => [SsSelector, SsAttr, SsLimit, SsBase],
        Seg::Ds => [DsSelector, DsAttr, DsLimit, DsBase],
        Seg::Fs => [FsSelector, FsAttr, FsLimit, FsBase],
        Seg::Gs => [GsSelector, GsAttr, GsLimit, GsBase],
    }
}

/// LDTR
pub(crate) const LDTR: Row = [
    Guest::LdtrSelector,
    Guest::LdtrAttr,
    Guest::LdtrLimit,
    Guest::LdtrBase,
];
/// TR
pub(crate) const TR: Row = [
    Guest::TrSelector,
    Guest::TrAttr,
    Guest::TrLimit,
    Guest::TrBase,
];

/// Who can read and write the VMCS while it is current.
pub(crate) trait Hardware {
    /// VMREAD
    fn read(&self, encoding: u32) -> u64;
    /// VMWRITE
    fn write(&self, encoding: u32, v: u64);
}

/// The copy.
pub(crate) struct Mirror {
    values: [Cell<u64>; COUNT],
    /// Bit n: value n is what the VMCS holds, or is to hold.
    known: Cell<u64>,
    /// Bit n: value n is to be written before the next entry.
    dirty: u64,
}

impl Mirror {
    /// All zero, and all to be written.
    pub(crate) fn new() -> Self {
        Self {
            values: [const { Cell::new(0) }; COUNT],
            known: Cell::new(all()),
            dirty: all(),
        }
    }

    /// A field's value. What is not known is asked of `hw`, which can tell as the guest is in a section.
    #[inline]
    pub(crate) fn get(&self, hw: &impl Hardware, g: Guest) -> u64 {
        if self.known.get() & bit(g) == 0 {
            self.ask(hw, g);
        }
        self.values.get(g as usize).map_or(0, Cell::get)
    }

    #[inline]
    fn ask(&self, hw: &impl Hardware, g: Guest) {
        let i = g as usize;
        if let (Some(v), Some(&e)) = (self.values.get(i), ENCODING.get(i)) {
            v.set(hw.read(e));
            self.known.set(self.known.get() | bit(g));
        }
    }

    /// Sets it.
    #[inline]
    pub(crate) fn set(&mut self, g: Guest, v: u64) {
        if let Some(c) = self.values.get(g as usize) {
            if self.known.get() & bit(g) == 0 || c.get() != v {
                c.set(v);
                self.known.set(self.known.get() | bit(g));
                self.dirty |= bit(g);
            }
        }
    }

    /// Something was set since the last entry.
    #[inline]
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty != 0
    }

    /// Whether this was.
    #[inline]
    pub(crate) fn is_changed(&self, g: Guest) -> bool {
        self.dirty & bit(g) != 0
    }

    /// Before an entry: tells the hardware what was set.
    #[inline]
    pub(crate) fn flush(&mut self, hw: &impl Hardware) {
        while self.dirty != 0 {
            let i = self.dirty.trailing_zeros() as usize;
            if let (Some(v), Some(&e)) = (self.values.get(i), ENCODING.get(i)) {
                hw.write(e, v.get());
            }
            self.dirty &= self.dirty - 1;
        }
    }

    /// After an exit: the guest may have changed what is not ours alone.
    #[inline]
    pub(crate) fn exited(&mut self) {
        self.known.set(self.known.get() & STAYS);
    }

    /// A section ends: whatever is not known is read.
    #[inline]
    pub(crate) fn complete(&mut self, hw: &impl Hardware) {
        let mut missing = all() & !self.known.get();
        while missing != 0 {
            let i = missing.trailing_zeros() as usize;
            if let (Some(v), Some(&e)) = (self.values.get(i), ENCODING.get(i)) {
                v.set(hw.read(e));
            }
            missing &= missing - 1;
        }
        self.known.set(all());
    }

    fn segment_of(&self, hw: &impl Hardware, [sel, attr, limit, base]: Row) -> Segment {
        Segment {
            selector: (self.get(hw, sel) & 0xffff) as u16,
            attr: SegAttr((self.get(hw, attr) & 0x1_f0ff) as u32),
            limit: (self.get(hw, limit) & 0xffff_ffff) as u32,
            base: self.get(hw, base),
        }
    }

    fn set_segment_of(&mut self, [sel, attr, limit, base]: Row, v: &Segment) {
        self.set(sel, u64::from(v.selector));
        // A descriptor that is not present is as good as none to the processor: a usable one must be.
        let a = u64::from(v.attr.0 & 0x1_f0ff);
        let a = if v.attr.present() { a } else { a | UNUSABLE };
        self.set(attr, a);
        self.set(limit, u64::from(v.limit));
        self.set(base, v.base);
    }

    /// A segment register.
    pub(crate) fn segment(&self, hw: &impl Hardware, s: Seg) -> Segment {
        self.segment_of(hw, row(s))
    }

    /// Only its access rights.
    #[inline]
    pub(crate) fn attr(&self, hw: &impl Hardware, s: Seg) -> SegAttr {
        let [_, attr, ..] = row(s);
        SegAttr((self.get(hw, attr) & 0x1_f0ff) as u32)
    }

    /// Loads one.
    pub(crate) fn set_segment(&mut self, s: Seg, v: &Segment) {
        self.set_segment_of(row(s), v);
    }

    /// TR or LDTR.
    pub(crate) fn system(&self, hw: &impl Hardware, r: Row) -> Segment {
        self.segment_of(hw, r)
    }

    /// Loads TR or LDTR.
    pub(crate) fn set_system(&mut self, r: Row, v: &Segment) {
        self.set_segment_of(r, v);
    }

    /// GDTR or IDTR, by its two fields.
    pub(crate) fn table(&self, hw: &impl Hardware, base: Guest, limit: Guest) -> DescTable {
        DescTable {
            base: self.get(hw, base),
            limit: (self.get(hw, limit) & 0xffff) as u16,
        }
    }

    /// Loads GDTR or IDTR.
    pub(crate) fn set_table(&mut self, base: Guest, limit: Guest, t: &DescTable) {
        self.set(base, t.base);
        self.set(limit, u64::from(t.limit));
    }

    /// All values at once, by the numbers of [`Guest`]; for checks.
    pub(crate) fn values(&self, hw: &impl Hardware) -> [u64; COUNT] {
        let mut all = [0; COUNT];
        for (v, &g) in all.iter_mut().zip(Guest::ALL) {
            *v = self.get(hw, g);
        }
        all
    }
}

/// What [`Mirror::values`] gives.
pub(crate) type Values = [u64; COUNT];
