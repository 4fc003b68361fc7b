// SPDX-License-Identifier: GPL-2.0

//! Stage 1 of a guest, as far as it takes to tell at which level a walk of it has met an abort: stage 2 reports the
//! page of the descriptor, not the level that EL1 expects.
//!
//! Arm ARM (DDI 0487), D8.2 (VMSAv8-64 translation process), D8.3 (descriptors), D24.2: TCR_EL1, TTBR0_EL1.

/// What rules the walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// TCR_EL1
    pub tcr: u64,
    /// TTBR0_EL1
    pub ttbr0: u64,
    /// TTBR1_EL1
    pub ttbr1: u64,
    /// Descriptors are big-endian (SCTLR_EL1.EE).
    pub big_endian: bool,
}

/// Bits 47:1 of TTBRx_EL1.
const BASE: u64 = 0x0000_ffff_ffff_fffe;

const fn field(v: u64, shift: u32, width: u32) -> u64 {
    v >> shift & ((1 << width) - 1)
}

impl Tables {
    /// log2 of a granule, TxSZ and TTBRx_EL1 for this address.
    const fn half(&self, va: u64) -> Option<(u32, u64, u64)> {
        // TG0 and TG1 have unlike encodings.
        let (granule, size, base) = if va >> 55 & 1 == 0 {
            let granule = match field(self.tcr, 14, 2) {
                0 => 12,
                1 => 16,
                2 => 14,
                _ => return None,
            };
            (granule, field(self.tcr, 0, 6), self.ttbr0)
        } else {
            let granule = match field(self.tcr, 30, 2) {
                1 => 14,
                2 => 12,
                3 => 16,
                _ => return None,
            };
            (granule, field(self.tcr, 16, 6), self.ttbr1)
        };
        Some((granule, size, base & BASE))
    }

    /// The level whose descriptor for `va` lies in the 4 KiB page at `page`. `read` gives the eight bytes at a
    /// guest-physical address, if there is memory.
    ///
    /// `None` if the walk does not come there: the guest has changed its tables since, or they are of a kind that
    /// is not known here (52-bit addresses).
    pub fn level_of(
        &self,
        va: u64,
        page: u64,
        mut read: impl FnMut(u64) -> Option<[u8; 8]>,
    ) -> Option<i8> {
        let (granule, size, ttbr) = self.half(va)?;
        let bits = 64_u32.checked_sub(u32::try_from(size).ok()?)?;
        // A table has as many entries as 8-byte descriptors fit in a granule.
        let stride = granule - 3;
        if bits <= granule || bits > 48 {
            return None;
        }
        let levels = (bits - granule).div_ceil(stride);
        let mut level = 4_u32.checked_sub(levels)?;
        let mut top = bits;
        // The first table may be smaller, and is aligned to its size.
        let first = bits - granule - stride * (levels - 1) + 3;
        let mut table = ttbr >> first << first;
        loop {
            let shift = granule + stride * (3 - level);
            let index = field(va, shift, top - shift);
            let at = table + index * 8;
            if at >> 12 == page >> 12 {
                return i8::try_from(level).ok();
            }
            let bytes = read(at)?;
            let entry = if self.big_endian {
                u64::from_be_bytes(bytes)
            } else {
                u64::from_le_bytes(bytes)
            };
            // Only a table leads on.
            if entry & 3 != 3 || level == 3 {
                return None;
            }
            table = entry >> granule << granule & BASE;
            top = shift;
            level += 1;
        }
    }
}
