// SPDX-License-Identifier: GPL-2.0

//! The registers of the control frame (12.18, 12.19): where they are, and their fields.

/// GITS_CTLR (12.19).
pub mod ctlr {
    /// Enabled
    pub const ENABLED: u32 = 1 << 0;
    /// Quiescent
    pub const QUIESCENT: u32 = 1 << 31;
}

/// GITS_IIDR (12.19): Arm as the implementer, "K" as the product, as user space knows KVM's.
pub mod iidr {
    /// ProductID and Implementer; the revision is 0.
    pub const VALUE: u32 = 0x4b << 24 | 0x43b;
    /// Revision: that of the layout of saved tables
    pub const REVISION: u64 = 0xf << 12;
}

/// GITS_TYPER (12.19): physical LPIs; ITT entries of 8 bytes; EventIDs and DeviceIDs of 16 bits.
/// Collections are in memory only (HCC 0, CCT 0) and have 16-bit ids (CIL 0); they target processor
/// numbers (PTA 0).
pub const TYPER: u64 = 15 << 13 | 15 << 8 | (ENTRY_SIZE - 1) << 4 | 1;

/// Size of an entry in each of the tables, and in the first level of an indirect one.
pub const ENTRY_SIZE: u64 = 8;
/// Page size of the tables.
pub const TABLE_PAGE: u64 = 0x1_0000;
/// Size of a command (5.3).
pub const COMMAND_SIZE: u32 = 32;

/// GITS_CWRITER and GITS_CREADR (12.19, 12.19).
pub mod queue {
    /// Offset: bits 19:5
    pub const OFFSET: u32 = 0x000f_ffe0;
    /// GITS_CWRITER.Retry
    pub const RETRY: u64 = 1;
    /// GITS_CREADR.Stalled
    pub const STALLED: u64 = 1;
}

/// Attributes that GITS_BASER, GITS_CBASER, GICR_PROPBASER and GICR_PENDBASER have at the same or
/// at other bits.
mod attr {
    pub(super) const FIELD: u64 = 7;
    /// Inner or outer: Normal, not cacheable
    pub(super) const NON_CACHEABLE: u64 = 1;
    /// Inner: Normal, read-allocate, write-back
    pub(super) const RA_WB: u64 = 3;
    /// Outer: as inner
    pub(super) const AS_INNER: u64 = 0;
    pub(super) const SHARE_FIELD: u64 = 3;
    pub(super) const INNER_SHAREABLE: u64 = 1;

    pub(super) const INNER_SHIFT: u32 = 59;
    pub(super) const OUTER_SHIFT: u32 = 53;
    pub(super) const SHARE_SHIFT: u32 = 10;
}

/// What the guest says of cacheability and shareability, turned into what there is: inner cacheable
/// memory, and inner shareable or none.
const fn sanitised(value: u64) -> u64 {
    let inner = match value >> attr::INNER_SHIFT & attr::FIELD {
        ..=attr::NON_CACHEABLE => attr::RA_WB,
        other => other,
    };
    let outer = match value >> attr::OUTER_SHIFT & attr::FIELD {
        attr::NON_CACHEABLE => attr::NON_CACHEABLE,
        _ => attr::AS_INNER,
    };
    let share = match value >> attr::SHARE_SHIFT & attr::SHARE_FIELD {
        0 => 0,
        _ => attr::INNER_SHAREABLE,
    };
    let fields = attr::FIELD << attr::INNER_SHIFT
        | attr::FIELD << attr::OUTER_SHIFT
        | attr::SHARE_FIELD << attr::SHARE_SHIFT;
    value & !fields
        | inner << attr::INNER_SHIFT
        | outer << attr::OUTER_SHIFT
        | share << attr::SHARE_SHIFT
}

/// GITS_BASER<n> (12.19): where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baser(u64);

impl Baser {
    const VALID: u64 = 1 << 63;
    const INDIRECT: u64 = 1 << 62;
    const TYPE: u64 = 7 << 56;
    const ENTRY_SIZE: u64 = 0x1f << 48;
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    const PAGE_SIZE: u64 = 3 << 8;
    const PAGE_SIZE_64K: u64 = 2 << 8;
    const PAGES: u64 = 0xff;

    /// GITS_BASER0 after reset: devices.
    pub const DEVICES: Self = Self::reset(1);
    /// GITS_BASER1 after reset: collections.
    pub const COLLECTIONS: Self = Self::reset(4);

    const fn reset(kind: u64) -> Self {
        Self(sanitised(
            kind << 56
                | (ENTRY_SIZE - 1) << 48
                | Self::PAGE_SIZE_64K
                | attr::INNER_SHAREABLE << attr::SHARE_SHIFT,
        ))
    }

    /// The register.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// With `value` written to it. Type and entry size are read-only, pages have 64 KiB, and of the
    /// tables only that of the devices may be indirect.
    pub const fn written(self, value: u64) -> Self {
        let fixed = Self::TYPE | Self::ENTRY_SIZE;
        let mut new = value & !(fixed | Self::PAGE_SIZE) | self.0 & fixed | Self::PAGE_SIZE_64K;
        if self.0 & Self::TYPE != Self::DEVICES.0 & Self::TYPE {
            new &= !Self::INDIRECT;
        }
        Self(sanitised(new))
    }

    /// There is a table.
    pub const fn valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// The table is one of pointers to pages of entries.
    pub const fn indirect(self) -> bool {
        self.0 & Self::INDIRECT != 0
    }

    /// Where the table is. With pages of 64 KiB, bits 15:12 are the address' bits 51:48.
    pub const fn address(self) -> u64 {
        let address = self.0 & Self::ADDRESS;
        address & !0xffff | (address & 0xf000) << 36
    }

    /// How many entries the table has (the first level, if it is indirect).
    pub const fn entries(self) -> u64 {
        ((self.0 & Self::PAGES) + 1) * (TABLE_PAGE / ENTRY_SIZE)
    }
}

/// GITS_CBASER (12.19): where the command queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cbaser(u64);

impl Cbaser {
    const VALID: u64 = 1 << 63;
    /// The queue is aligned to 64 KiB.
    const ADDRESS: u64 = 0x000f_ffff_ffff_0000;
    const PAGES: u64 = 0xff;

    /// After reset.
    pub const RESET: Self = Self(0);

    /// The register.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// With `value` written to it.
    pub const fn written(value: u64) -> Self {
        let attributes = attr::FIELD << attr::INNER_SHIFT
            | attr::FIELD << attr::OUTER_SHIFT
            | attr::SHARE_FIELD << attr::SHARE_SHIFT;
        let defined = Self::VALID | Self::ADDRESS | Self::PAGES | attributes;
        Self(sanitised(value & defined))
    }

    /// There is a queue.
    pub const fn valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Where the queue is.
    pub const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }

    /// Size of the queue, bytes.
    pub fn size(self) -> u32 {
        let [pages, ..] = (self.0 & Self::PAGES).to_le_bytes();
        (u32::from(pages) + 1) << 12
    }
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// GITS_CTLR
    Ctlr,
    /// GITS_IIDR
    Iidr,
    /// GITS_TYPER
    Typer,
    /// GITS_CBASER
    Cbaser,
    /// GITS_CWRITER
    Cwriter,
    /// GITS_CREADR
    Creadr,
    /// GITS_BASER0
    Devices,
    /// GITS_BASER1
    Collections,
    /// GITS_BASER2 to GITS_BASER7: no table
    NoTable,
    /// GITS_PIDRn, GITS_CIDRn: the value
    Id(u32),
}

impl Register {
    /// The register with a byte at `offset` of the first frame.
    pub const fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x0..=0x3 => Self::Ctlr,
            0x4..=0x7 => Self::Iidr,
            0x8..=0xf => Self::Typer,
            0x80..=0x87 => Self::Cbaser,
            0x88..=0x8f => Self::Cwriter,
            0x90..=0x97 => Self::Creadr,
            0x100..=0x107 => Self::Devices,
            0x108..=0x10f => Self::Collections,
            0x110..=0x13f => Self::NoTable,
            // GITS_PIDR4: a page of 64 KiB
            0xffd0..=0xffd3 => Self::Id(0x40),
            // Part number, JEP106 code, architecture revision GICv3
            0xffe0..=0xffe3 => Self::Id(0x92),
            0xffe4..=0xffe7 => Self::Id(0xb4),
            0xffe8..=0xffeb => Self::Id(0x3b),
            // GITS_CIDR0 to GITS_CIDR3
            0xfff0..=0xfff3 => Self::Id(0x0d),
            0xfff4..=0xfff7 => Self::Id(0xf0),
            0xfff8..=0xfffb => Self::Id(0x05),
            0xfffc..=0xffff => Self::Id(0xb1),
            0xffd4..=0xffdf | 0xffec..=0xffef => Self::Id(0),
            _ => return None,
        })
    }

    /// It has 64 bits.
    pub const fn is_wide(self) -> bool {
        !matches!(self, Self::Ctlr | Self::Iidr | Self::Id(_))
    }
}
