// SPDX-License-Identifier: GPL-2.0

//! The tables of LPIs that the redistributors point at: configuration and pending state.

use super::{Fault, Memory, FIRST_LPI, INTID_LIMIT};

/// Physical_Address of GICR_PROPBASER: bits 51:12
const PROPBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// IDbits of GICR_PROPBASER
const PROPBASER_ID_BITS: u64 = 0x1f;
/// Physical_Address of GICR_PENDBASER: bits 51:16
const PENDBASER_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// Priority, of which the low two bits are 0
const CONFIG_PRIORITY: u8 = 0xfc;
/// Enable
const CONFIG_ENABLE: u8 = 1;

/// An entry of the configuration table (5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LpiConfig {
    /// Priority; lower is more urgent.
    pub priority: u8,
    /// It may be delivered.
    pub enabled: bool,
}

impl From<u8> for LpiConfig {
    fn from(byte: u8) -> Self {
        Self {
            priority: byte & CONFIG_PRIORITY,
            enabled: byte & CONFIG_ENABLE != 0,
        }
    }
}

/// The LPI configuration table: a byte an LPI, from INTID 8192 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigTable {
    base: u64,
    limit: u32,
}

impl ConfigTable {
    /// By the value of GICR_PROPBASER (12.11).
    pub fn new(propbaser: u64) -> Self {
        let shift = (propbaser & PROPBASER_ID_BITS).saturating_add(1);
        Self {
            base: propbaser & PROPBASER_ADDRESS,
            limit: if shift < 16 { 1 << shift } else { INTID_LIMIT },
        }
    }

    /// The INTID is one of an LPI in the table.
    pub fn contains(&self, intid: u32) -> bool {
        (FIRST_LPI..self.limit).contains(&intid)
    }

    /// Where the LPI's entry is.
    pub fn address(&self, intid: u32) -> Result<u64, Fault> {
        let index = intid.checked_sub(FIRST_LPI).ok_or(Fault)?;
        self.base.checked_add(u64::from(index)).ok_or(Fault)
    }

    /// Reads the LPI's entry.
    pub fn read(&self, mem: &impl Memory, intid: u32) -> Result<LpiConfig, Fault> {
        let mut byte = [0_u8];
        mem.read(self.address(intid)?, &mut byte)?;
        let [byte] = byte;
        Ok(byte.into())
    }
}

/// A vCPU's LPI pending table (5.1.2): a bit an INTID, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingTable {
    base: u64,
}

impl PendingTable {
    /// By the value of GICR_PENDBASER (12.11).
    pub fn new(pendbaser: u64) -> Self {
        Self {
            base: pendbaser & PENDBASER_ADDRESS,
        }
    }

    /// The byte that the LPI's bit is in, and the bit.
    pub fn address(&self, intid: u32) -> Result<(u64, u8), Fault> {
        let gpa = self.base.checked_add(u64::from(intid / 8)).ok_or(Fault)?;
        Ok((gpa, 1 << (intid % 8)))
    }

    /// The LPI's bit.
    pub fn is_pending(&self, mem: &impl Memory, intid: u32) -> Result<bool, Fault> {
        let (gpa, bit) = self.address(intid)?;
        let mut byte = [0_u8];
        mem.read(gpa, &mut byte)?;
        let [byte] = byte;
        Ok(byte & bit != 0)
    }

    /// Sets the LPI's bit. Memory is written only if that changes it.
    pub fn set(&self, mem: &impl Memory, intid: u32, pending: bool) -> Result<(), Fault> {
        let (gpa, bit) = self.address(intid)?;
        let mut byte = [0_u8];
        mem.read(gpa, &mut byte)?;
        let [old] = byte;
        let new = if pending { old | bit } else { old & !bit };
        if new != old {
            mem.write(gpa, &[new])?;
        }
        Ok(())
    }
}
