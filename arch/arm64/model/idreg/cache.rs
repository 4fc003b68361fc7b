// SPDX-License-Identifier: GPL-2.0

//! Caches as a guest sees them: as few as CTR_EL0 allows, so that loops over sets and ways, which trap, are short.
//!
//! Arm ARM (DDI 0487), D24.2: CTR_EL0, CLIDR_EL1, CCSIDR_EL1, CSSELR_EL1; B2.8 (caches and points of coherency).

use super::super::onereg::CACHES;
use super::InvalidValue;

/// Bits of CLIDR_EL1 that are fields: Ctype1 to Ctype7, LoUIS, LoC, LoUU, ICB, Ttype1 to Ttype7.
pub const CLIDR_FIELDS: u64 = (1 << 47) - 1;

/// CTR_EL0.DIC: instruction caches need no invalidation to the point of unification.
const DIC: u64 = 1 << 29;
/// CTR_EL0.IDC: data caches need no cleaning to the point of unification.
const IDC: u64 = 1 << 28;

const INSTRUCTION: u64 = 1;
const DATA: u64 = 2;
const UNIFIED: u64 = 4;

/// CLIDR_EL1 of a guest on a host with this CTR_EL0. All of it follows from what the guest has to do for code that
/// it writes; sizes of the host's caches do not matter.
pub const fn clidr(ctr: u64) -> u64 {
    let instruction = if ctr & DIC == 0 { INSTRUCTION } else { 0 };
    if ctr & IDC == 0 {
        // A data cache at level 1, to be cleaned to the point of unification: LoC, LoUU, LoUIS are 1.
        return instruction | DATA | 1 << 21 | 1 << 24 | 1 << 27;
    }
    // A unified cache, to be cleaned to the point of coherency only. It is at level 2 if there is an instruction
    // cache, which is at level 1.
    if instruction != 0 {
        instruction | UNIFIED << 3 | 2 << 24
    } else {
        UNIFIED | 1 << 24
    }
}

/// User space sets CLIDR_EL1.
///
/// # Errors
/// Bits that are no fields; or, on a host with this CTR_EL0, less maintenance than it needs.
pub const fn check_clidr(ctr: u64, value: u64) -> Result<(), InvalidValue> {
    let louis = value >> 21 & 7;
    let loc = value >> 24 & 7;
    let louu = value >> 27 & 7;
    let like_idc = loc == 0 || louis == 0 && louu == 0;
    if value & !CLIDR_FIELDS != 0 || like_idc && ctr & IDC == 0 {
        return Err(InvalidValue);
    }
    Ok(())
}

/// log2 of the bytes of the smallest line, of instruction or data caches.
const fn line(ctr: u64, instruction: bool) -> u64 {
    // IminLine and DminLine count words.
    (if instruction { ctr } else { ctr >> 16 } & 15) + 2
}

/// CSSELR_EL1's value as an index, if it can select a cache: Level in bits 3:1, InD in bit 0.
pub fn selected(csselr: u64) -> Option<u8> {
    u8::try_from(csselr & 15).ok().filter(|&n| n < CACHES)
}

/// CCSIDR_EL1 for this selection: one set, one way, of the smallest line.
pub const fn ccsidr(ctr: u64, selection: u8) -> u32 {
    // LineSize is log2 of bytes less 4.
    let size = line(ctr, selection & 1 != 0).saturating_sub(4);
    (size & 7) as u32
}

/// User space sets it.
///
/// # Errors
/// Lines that are smaller than the host's.
pub const fn check_ccsidr(ctr: u64, selection: u8, value: u32) -> Result<(), InvalidValue> {
    if (value & 7) as u64 + 4 < line(ctr, selection & 1 != 0) {
        return Err(InvalidValue);
    }
    Ok(())
}
