// SPDX-License-Identifier: GPL-2.0

//! List registers, and what controls them: ICH_LR<n>_EL2, ICH_HCR_EL2, ICH_VTR_EL2 (IHI 0069,
//! 12.4).

/// The most list registers that there can be.
pub const MAX_LRS: usize = 16;

/// A list register, ICH_LR<n>_EL2 (IHI 0069, 12.4.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lr(pub u64);

impl Lr {
    const EOI: u64 = 1 << 41;
    const GROUP1: u64 = 1 << 60;
    const HW: u64 = 1 << 61;
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const PINTID_SHIFT: u32 = 32;
    const PINTID: u64 = 0x1fff;
    const PRIORITY_SHIFT: u32 = 48;

    /// An interrupt that is neither pending nor active.
    pub const fn new(intid: u32, priority: u8, group1: bool) -> Self {
        let group = if group1 { Self::GROUP1 } else { 0 };
        Self(intid as u64 | (priority as u64) << Self::PRIORITY_SHIFT | group)
    }

    /// The state: pending, active, both.
    #[must_use]
    pub const fn state(self, pending: bool, active: bool) -> Self {
        let p = if pending { Self::PENDING } else { 0 };
        let a = if active { Self::ACTIVE } else { 0 };
        Self(self.0 & !(Self::PENDING | Self::ACTIVE) | p | a)
    }

    /// HW: its deactivation is that of the physical interrupt `pintid` as well.
    #[must_use]
    pub const fn backed(self, pintid: u16) -> Self {
        Self(self.0 | Self::HW | (pintid as u64 & Self::PINTID) << Self::PINTID_SHIFT)
    }

    /// Its end is a maintenance interrupt. Not together with [`Self::backed`].
    #[must_use]
    pub const fn ask_eoi(self) -> Self {
        Self(self.0 | Self::EOI)
    }

    /// vINTID
    #[inline]
    pub const fn intid(self) -> u32 {
        super::low(self.0)
    }

    /// Pending, or pending and active
    #[inline]
    pub const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    /// Active, or pending and active
    #[inline]
    pub const fn is_active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    /// Neither pending nor active, with a physical interrupt behind it: the guest's end of it was that one's too.
    #[inline]
    pub const fn is_over(self) -> bool {
        self.0 & (Self::HW | Self::PENDING | Self::ACTIVE) == Self::HW
    }

    /// The priority
    pub const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT & 0xff) as u8
    }

    /// Group 1
    pub const fn group1(self) -> bool {
        self.0 & Self::GROUP1 != 0
    }

    /// pINTID, if a physical interrupt is behind it
    pub const fn pintid(self) -> Option<u16> {
        if self.0 & Self::HW == 0 {
            return None;
        }
        Some((self.0 >> Self::PINTID_SHIFT & Self::PINTID) as u16)
    }

    /// Whether its end is a maintenance interrupt.
    pub const fn asks_eoi(self) -> bool {
        self.0 & (Self::HW | Self::EOI) == Self::EOI
    }
}

/// ICH_HCR_EL2 (IHI 0069, 12.4.7): which maintenance interrupts and traps there are.
pub mod hcr {
    /// The virtual CPU interface works.
    pub const EN: u64 = 1 << 0;
    /// Maintenance interrupt when at most one list register is valid
    pub const UIE: u64 = 1 << 1;
    /// ... when the guest ends an interrupt that is in none
    pub const LRENPIE: u64 = 1 << 2;
    /// ... when none is pending
    pub const NPIE: u64 = 1 << 3;
    /// ... while the guest has group 0 enabled
    pub const VGRP0EIE: u64 = 1 << 4;
    /// ... disabled
    pub const VGRP0DIE: u64 = 1 << 5;
    /// ... while the guest has group 1 enabled
    pub const VGRP1EIE: u64 = 1 << 6;
    /// ... disabled
    pub const VGRP1DIE: u64 = 1 << 7;
    /// Registers common to both groups trap: ICC_CTLR, DIR, PMR, RPR.
    pub const TC: u64 = 1 << 10;
    /// ICC_DIR_EL1 traps (if ICH_VTR_EL2.TDS).
    pub const TDIR: u64 = 1 << 14;
    /// All registers of the CPU interface trap: TC, TALL0, TALL1, TDIR. It does not work either.
    pub const ALL_TRAP: u64 = TC | 1 << 11 | 1 << 12 | TDIR;
    /// Interrupts that the guest ended, and that were in no list register: modulo 32
    pub const fn eoi_count(hcr: u64) -> u32 {
        (hcr >> 27 & 0x1f) as u32
    }
}

/// What the hardware's virtual CPU interface can do: ICH_VTR_EL2 (IHI 0069, 12.4.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LrConfig {
    /// List registers, 1 to [`MAX_LRS`]
    pub count: u8,
    /// Bits of a priority, 5 to 8
    pub pri_bits: u8,
    /// Field IDbits: 0 for 16 bits, 1 for 24
    pub id_bits: u8,
    /// Locally generated SErrors
    pub seis: bool,
    /// Affinity 3 may be other than 0 in SGIs.
    pub a3v: bool,
    /// ICC_DIR_EL1 can be trapped alone.
    pub tds: bool,
}

impl LrConfig {
    /// From ICH_VTR_EL2.
    pub const fn from_vtr(vtr: u64) -> Self {
        let count = (vtr & 0x1f) as u8 + 1;
        Self {
            count: if count as usize > MAX_LRS {
                MAX_LRS as u8
            } else {
                count
            },
            pri_bits: (vtr >> 29 & 7) as u8 + 1,
            id_bits: (vtr >> 23 & 7) as u8,
            seis: vtr & 1 << 22 != 0,
            a3v: vtr & 1 << 21 != 0,
            tds: vtr & 1 << 19 != 0,
        }
    }
}

/// The list registers of a vCPU, and ICH_HCR_EL2: what the shell loads before an entry, and reads
/// back after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRegs {
    /// ICH_LR<n>_EL2; those from `used` on are zero.
    pub lr: [Lr; MAX_LRS],
    /// So many hold an interrupt.
    pub used: usize,
    /// ICH_HCR_EL2. After an entry its EOIcount matters.
    pub hcr: u64,
    /// SPIs are among those in the list registers, or among those left out: [`super::fold`] needs
    /// the distributor.
    pub spis: bool,
    /// Something did not fit.
    pub overflow: bool,
    /// Filled, and not folded
    pub loaded: bool,
}

impl ListRegs {
    /// Those that hold an interrupt.
    pub fn in_use(&self) -> &[Lr] {
        self.lr.get(..self.used).unwrap_or(&self.lr)
    }

    /// The same, to put back what the hardware has.
    pub fn in_use_mut(&mut self) -> &mut [Lr] {
        let used = self.used.min(MAX_LRS);
        self.lr.get_mut(..used).unwrap_or_default()
    }
}
