// SPDX-License-Identifier: GPL-2.0

//! The guest's tables: where an entry is, and its layout in revision 0 of KVM's ABI.

use super::{
    map::Device,
    regs::{Baser, ENTRY_SIZE, TABLE_PAGE},
    Fault, Memory,
};

/// Entries in a page of an indirect table.
pub(super) const PAGE_ENTRIES: u64 = TABLE_PAGE / ENTRY_SIZE;
/// Ids of devices and collections are below this.
const ID_LIMIT: u64 = 1 << 16;

/// An entry of the first level of an indirect table (GITS_BASER<n>.Indirect): valid, and bits 51:16
/// of the page.
const LEVEL1_VALID: u64 = 1 << 63;
const LEVEL1_ADDRESS: u64 = 0x000f_ffff_ffff_0000;

/// A field of `bits` bits from `shift` on.
pub(super) const fn field(value: u64, shift: u32, bits: u32) -> u64 {
    value >> shift & ((1 << bits) - 1)
}

/// The field's low 16 bits.
pub(super) fn low16(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Where the entry of `id` is. `None` if the table has none, or it is not in memory that can be
/// written.
pub(super) fn entry_address(mem: &impl Memory, baser: Baser, id: u32) -> Option<u64> {
    let id = u64::from(id);
    if id >= ids(baser) {
        return None;
    }
    let gpa = if baser.indirect() {
        let first = baser.address() + id / PAGE_ENTRIES * ENTRY_SIZE;
        let page = read_entry(mem, first).ok()?;
        if page & LEVEL1_VALID == 0 {
            return None;
        }
        (page & LEVEL1_ADDRESS) + id % PAGE_ENTRIES * ENTRY_SIZE
    } else {
        baser.address() + id * ENTRY_SIZE
    };
    mem.writable(gpa).then_some(gpa)
}

/// The table's ids are below this.
pub(super) fn ids(baser: Baser) -> u64 {
    let entries = if baser.indirect() {
        baser.entries() * PAGE_ENTRIES
    } else {
        baser.entries()
    };
    entries.min(ID_LIMIT)
}

/// Where an event's entry is. `None` if the device's table has none, or it is not in memory that
/// can be written.
pub(super) fn event_address(mem: &impl Memory, device: &Device, event: u32) -> Option<u64> {
    if event >= device.event_limit() {
        return None;
    }
    let gpa = device.itt.checked_add(u64::from(event) * ENTRY_SIZE)?;
    mem.writable(gpa).then_some(gpa)
}

/// Reads an entry.
pub(super) fn read_entry(mem: &impl Memory, gpa: u64) -> Result<u64, Fault> {
    let mut bytes = [0_u8; 8];
    mem.read(gpa, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes an entry.
pub(super) fn write_entry(mem: &impl Memory, gpa: u64, entry: u64) -> Result<(), Fault> {
    mem.write(gpa, &entry.to_le_bytes())
}

/// A valid device table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dte {
    /// Distance to the next device; 0: there is none.
    pub(super) next: u32,
    /// Where its interrupt translation table is
    pub(super) itt: u64,
    /// Bits of its EventIDs
    pub(super) event_bits: u8,
}

impl Dte {
    const VALID: u64 = 1 << 63;
    const NEXT_MAX: u32 = (1 << 14) - 1;

    /// `None`: not valid
    pub(super) fn decode(entry: u64) -> Option<Self> {
        let [bits, ..] = field(entry, 0, 5).to_le_bytes();
        (entry & Self::VALID != 0).then_some(Self {
            next: low16(field(entry, 49, 14)).into(),
            itt: field(entry, 5, 44) << 8,
            event_bits: bits + 1,
        })
    }

    pub(super) fn encode(self) -> u64 {
        Self::VALID
            | u64::from(self.next.min(Self::NEXT_MAX)) << 49
            | field(self.itt, 8, 44) << 5
            | field(u64::from(self.event_bits).saturating_sub(1), 0, 5)
    }
}

/// A valid interrupt translation entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ite {
    /// Distance to the next event; 0: there is none.
    pub(super) next: u16,
    pub(super) intid: u32,
    pub(super) icid: u16,
}

impl Ite {
    /// `None`: not valid. An INTID that has more than 32 bits cannot be.
    pub(super) fn decode(entry: u64) -> Option<Self> {
        let intid = u32::try_from(field(entry, 16, 32)).ok()?;
        (intid != 0).then_some(Self {
            next: low16(entry >> 48),
            intid,
            icid: low16(entry),
        })
    }

    pub(super) fn encode(self) -> u64 {
        u64::from(self.next) << 48 | u64::from(self.intid) << 16 | u64::from(self.icid)
    }
}

/// A valid collection table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cte {
    pub(super) icid: u16,
    /// The processor number; [`Cte::NOT_MAPPED`]
    pub(super) rdbase: u64,
}

impl Cte {
    const VALID: u64 = 1 << 63;
    /// RDbase of a collection that events refer to, but that is not mapped.
    pub(super) const NOT_MAPPED: u64 = 0xffff_ffff;

    /// `None`: not valid
    pub(super) fn decode(entry: u64) -> Option<Self> {
        (entry & Self::VALID != 0).then_some(Self {
            icid: low16(entry),
            rdbase: field(entry, 16, 36),
        })
    }

    pub(super) fn encode(self) -> u64 {
        Self::VALID | field(self.rdbase, 0, 36) << 16 | u64::from(self.icid)
    }
}
