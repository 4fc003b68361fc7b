// SPDX-License-Identifier: GPL-2.0

//! The MSR permission map: two bits an MSR, read (even) and write (odd); a set bit exits.
//!
//! AMD APM vol. 2, 15.11. Pure.

/// The MSR ranges that the map covers, in the map's order; each takes 2 KiB.
const RANGES: [u32; 3] = [0x0000_0000, 0xc000_0000, 0xc001_0000];
/// MSRs in a range.
const RANGE_LEN: u32 = 0x2000;
/// Bytes that a range takes.
const RANGE_BYTES: usize = RANGE_LEN as usize * 2 / 8;

/// Where an MSR's bits are: byte in the map and the number of its read bit (the write bit is next
/// to it). `None`: the map does not cover it, so it always exits.
pub(crate) fn position(msr: u32) -> Option<(usize, u32)> {
    let (n, first) = RANGES
        .iter()
        .enumerate()
        .find(|(_, &first)| msr.wrapping_sub(first) < RANGE_LEN)?;
    let bit = msr.wrapping_sub(*first).wrapping_mul(2);
    Some((n * RANGE_BYTES + usize::try_from(bit / 8).ok()?, bit % 8))
}

/// The map, 8 KiB, physically contiguous. The last 2 KiB are reserved.
#[repr(C, align(4096))]
pub(crate) struct Msrpm([u8; 8192]);

impl Msrpm {
    /// Everything exits.
    pub(crate) fn set_all(&mut self) {
        self.0.fill(0xff);
    }

    /// Lets reads and writes of an MSR pass or exit. Returns whether the map covers it.
    pub(crate) fn set_direct(&mut self, msr: u32, read: bool, write: bool) -> bool {
        let Some((byte, bit)) = position(msr) else {
            return false;
        };
        let Some(b) = self.0.get_mut(byte) else {
            return false;
        };
        let exits = u8::from(!read) | u8::from(!write) << 1;
        *b = *b & !(3 << bit) | exits << bit;
        true
    }

    /// For tests: the module's comes from zeroed pages.
    #[cfg(test)]
    pub(crate) fn zeroed() -> Self {
        Self([0; 8192])
    }

    /// Whether (reads, writes) pass without an exit.
    #[cfg(test)]
    pub(crate) fn direct(&self, msr: u32) -> (bool, bool) {
        let Some((byte, bit)) = position(msr) else {
            return (false, false);
        };
        let b = self.0.get(byte).copied().unwrap_or(0xff) >> bit;
        (b & 1 == 0, b & 2 == 0)
    }
}

/// The I/O permission map: one bit a port, 12 KiB (64 Ki ports and the three bytes behind them
/// that a wide access to port FFFFh looks at). All ports exit.
#[repr(C, align(4096))]
pub(crate) struct Iopm([u8; 12288]);

impl Iopm {
    /// Everything exits.
    pub(crate) fn set_all(&mut self) {
        self.0.fill(0xff);
    }

    /// For tests: the module's comes from zeroed pages.
    #[cfg(test)]
    pub(crate) fn zeroed() -> Self {
        Self([0; 12288])
    }

    /// Whether an access to a port exits.
    #[cfg(test)]
    pub(crate) fn exits(&self, port: usize) -> bool {
        self.0
            .get(port / 8)
            .is_some_and(|b| b & 1 << (port % 8) != 0)
    }
}
