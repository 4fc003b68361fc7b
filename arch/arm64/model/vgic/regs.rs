// SPDX-License-Identifier: GPL-2.0

//! Where registers are in the frames, and how they may be accessed (IHI 0069, 12.8 to 12.11).

/// Offsets of the distributor's registers (IHI 0069, 12.8).
pub mod dist {
    /// GICD_CTLR
    pub const CTLR: u64 = 0x0000;
    /// GICD_TYPER
    pub const TYPER: u64 = 0x0004;
    /// GICD_IIDR
    pub const IIDR: u64 = 0x0008;
    /// GICD_TYPER2
    pub const TYPER2: u64 = 0x000c;
    /// GICD_STATUSR
    pub const STATUSR: u64 = 0x0010;
    /// GICD_IGROUPR<n>
    pub const IGROUPR: u64 = 0x0080;
    /// GICD_ISENABLER<n>
    pub const ISENABLER: u64 = 0x0100;
    /// GICD_ICENABLER<n>
    pub const ICENABLER: u64 = 0x0180;
    /// GICD_ISPENDR<n>
    pub const ISPENDR: u64 = 0x0200;
    /// GICD_ICPENDR<n>
    pub const ICPENDR: u64 = 0x0280;
    /// GICD_ISACTIVER<n>
    pub const ISACTIVER: u64 = 0x0300;
    /// GICD_ICACTIVER<n>
    pub const ICACTIVER: u64 = 0x0380;
    /// GICD_IPRIORITYR<n>
    pub const IPRIORITYR: u64 = 0x0400;
    /// GICD_ITARGETSR<n>: zero with affinity routing
    pub const ITARGETSR: u64 = 0x0800;
    /// GICD_ICFGR<n>
    pub const ICFGR: u64 = 0x0c00;
    /// GICD_IGRPMODR<n>: zero with one security state
    pub const IGRPMODR: u64 = 0x0d00;
    /// GICD_IROUTER<n>: that of INTID 0, which does not exist
    pub const IROUTER: u64 = 0x6000;
    /// Identification registers
    pub const IDREGS: u64 = 0xffd0;
    /// GICD_PIDR2, GICR_PIDR2
    pub const PIDR2: u64 = 0xffe8;

    /// GICD_CTLR (IHI 0069, 12.9.4), with one security state
    pub mod ctlr {
        /// EnableGrp0
        pub const GROUP0: u32 = 1 << 0;
        /// EnableGrp1
        pub const GROUP1: u32 = 1 << 1;
        /// ARE: affinity routing; always on
        pub const ARE: u32 = 1 << 4;
        /// DS: security is disabled; always on
        pub const DS: u32 = 1 << 6;
    }
}

/// Offsets of a redistributor's registers, from RD_base (IHI 0069, 12.10). Those of SGI_base are
/// [`redist::SGI_BASE`] and the offset of the distributor's like register.
pub mod redist {
    /// GICR_CTLR
    pub const CTLR: u64 = 0x0000;
    /// GICR_IIDR
    pub const IIDR: u64 = 0x0004;
    /// GICR_TYPER, 64 bits
    pub const TYPER: u64 = 0x0008;
    /// GICR_STATUSR
    pub const STATUSR: u64 = 0x0010;
    /// GICR_WAKER
    pub const WAKER: u64 = 0x0014;
    /// GICR_PROPBASER, 64 bits
    pub const PROPBASER: u64 = 0x0070;
    /// GICR_PENDBASER, 64 bits
    pub const PENDBASER: u64 = 0x0078;
    /// GICR_INVLPIR, 64 bits
    pub const INVLPIR: u64 = 0x00a0;
    /// GICR_INVALLR, 64 bits
    pub const INVALLR: u64 = 0x00b0;
    /// GICR_SYNCR
    pub const SYNCR: u64 = 0x00c0;
    /// The second frame
    pub const SGI_BASE: u64 = 0x1_0000;
    /// GICR_NSACR, in the second frame: zero with one security state
    pub const NSACR: u64 = SGI_BASE + 0x0e00;

    /// GICR_CTLR (IHI 0069, 12.11.2)
    pub mod ctlr {
        /// EnableLPIs
        pub const ENABLE_LPIS: u32 = 1 << 0;
        /// CES: EnableLPIs can be cleared
        pub const CES: u32 = 1 << 1;
        /// IR: there are INVLPIR and INVALLR
        pub const IR: u32 = 1 << 2;
    }
}

/// GICD_PIDR2: GICv3, with the JEP106 code of Arm
pub(super) const PIDR2: u32 = 0x3b;
/// GICD_STATUSR: RRD, WRD, RWOD, WROD
pub(super) const STATUSR_MASK: u32 = 0xf;
/// ProductID "K", implementer Arm: KVM's, on which user space relies.
pub(super) const IIDR: u32 = 0x4b00_043b;
/// Where Revision is in GICD_IIDR
pub(super) const IIDR_REVISION_SHIFT: u32 = 12;

/// A register that has a field for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
    /// Reads as zero, ignores writes.
    Zero,
}

impl Field {
    /// Whether a list register may know better.
    pub(super) const fn may_be_stale(self) -> bool {
        use Field::{ClearActive, ClearPending, SetActive, SetPending};
        matches!(self, SetPending | ClearPending | SetActive | ClearActive)
    }
}

/// The register at `offset` of the distributor or of SGI_base, and the INTID of the first
/// interrupt in the byte there.
pub(super) fn per_interrupt(offset: u64) -> Option<(Field, u32)> {
    let one_bit = [
        (dist::IGROUPR, Field::Group),
        (dist::ISENABLER, Field::SetEnable),
        (dist::ICENABLER, Field::ClearEnable),
        (dist::ISPENDR, Field::SetPending),
        (dist::ICPENDR, Field::ClearPending),
        (dist::ISACTIVER, Field::SetActive),
        (dist::ICACTIVER, Field::ClearActive),
        (dist::IGRPMODR, Field::Zero),
    ];
    let within = |base: u64, len: u64| offset.checked_sub(base).filter(|&at| at < len);
    let (field, intid) = if let Some(at) = within(dist::IPRIORITYR, 0x400) {
        (Field::Priority, at)
    } else if let Some(at) = within(dist::ITARGETSR, 0x400) {
        (Field::Zero, at)
    } else if let Some(at) = within(dist::ICFGR, 0x100) {
        (Field::Config, at * 4)
    } else {
        one_bit
            .iter()
            .find_map(|&(base, field)| Some((field, within(base, 0x80)? * 8)))?
    };
    Some((field, super::low(intid)))
}

/// Whether a guest may access the register of `field` so: words, and priorities by the byte.
/// Bytes of GICD_ITARGETSR are zero anyhow.
pub(super) fn may_access(field: Field, offset: u64, len: u8) -> bool {
    match len {
        4 => offset & 3 == 0,
        1 => field == Field::Priority,
        _ => false,
    }
}

/// `len` bytes (4 or 8) at `offset` of a 64-bit register.
pub(super) const fn part(value: u64, offset: u64, len: u8) -> u64 {
    match (len, offset & 4) {
        (8, _) => value,
        (_, 0) => value & 0xffff_ffff,
        _ => value >> 32,
    }
}

/// A 64-bit register after `len` bytes (4 or 8) at `offset` were written.
pub(super) const fn merge(old: u64, offset: u64, len: u8, value: u64) -> u64 {
    match (len, offset & 4) {
        (8, _) => value,
        (_, 0) => old & !0xffff_ffff | value & 0xffff_ffff,
        _ => old & 0xffff_ffff | value << 32,
    }
}

/// GICR_PROPBASER and GICR_PENDBASER (IHI 0069, 12.11.27 and 12.11.25): guest memory that we
/// read is cacheable, and at most inner shareable. These fields the guest reads back corrected.
pub(super) mod baser {
    const INNER_CACHE: u64 = 7 << 7;
    const INNER_RAWB: u64 = 3 << 7;
    const SHAREABILITY: u64 = 3 << 10;
    const INNER_SHAREABLE: u64 = 1 << 10;
    const OUTER_SHAREABLE: u64 = 2 << 10;
    const OUTER_CACHE: u64 = 7 << 56;
    const OUTER_NC: u64 = 1 << 56;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// GICR_PENDBASER.PTZ: the pending table is zero. Reads as zero.
    pub(in super::super) const PTZ: u64 = 1 << 62;
    const ID_BITS: u64 = 0x1f;

    const fn attributes(value: u64) -> u64 {
        // Device-nGnRE (0) and normal non-cacheable (1) become write-back.
        let inner = match value & INNER_CACHE {
            i if i >> 7 <= 1 => INNER_RAWB,
            i => i,
        };
        let share = match value & SHAREABILITY {
            OUTER_SHAREABLE => INNER_SHAREABLE,
            s => s,
        };
        // The same as inner (0), or non-cacheable
        let outer = match value & OUTER_CACHE {
            OUTER_NC => OUTER_NC,
            _ => 0,
        };
        inner | share | outer
    }

    /// GICR_PROPBASER
    pub(in super::super) const fn prop(value: u64) -> u64 {
        value & (ADDRESS | ID_BITS) | attributes(value)
    }

    /// GICR_PENDBASER: the table is aligned to 64 KiB.
    pub(in super::super) const fn pend(value: u64) -> u64 {
        value & (ADDRESS & !0xffff | PTZ) | attributes(value)
    }
}
