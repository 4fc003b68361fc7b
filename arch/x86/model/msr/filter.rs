// SPDX-License-Identifier: GPL-2.0

//! KVM_X86_SET_MSR_FILTER: user space's say over which MSRs a guest may access (Linux
//! `Documentation/virt/kvm/api.rst` 4.97).

use core::ops::Deref;

/// Ranges at most (KVM_MSR_FILTER_MAX_RANGES).
pub const MAX_RANGES: usize = 16;
/// Bytes of a range's bitmap at most (KVM_MSR_FILTER_MAX_BITMAP_SIZE).
pub const MAX_BITMAP: usize = 0x600;
/// Range flag: the bitmap decides over reads.
pub const READ: u32 = 1;
/// Range flag: the bitmap decides over writes.
pub const WRITE: u32 = 2;
/// Filter flag: what is in no range is denied.
pub const DEFAULT_DENY: u32 = 1;

/// A range of MSRs with a bit for each: 1 allows. `B` holds the bitmap's bytes, as user space gave
/// them (bit 0 of byte 0 first).
#[derive(Clone, Copy, Debug)]
pub struct Range<B> {
    /// [`READ`] and [`WRITE`]; at least one.
    pub flags: u32,
    /// First MSR.
    pub base: u32,
    /// How many.
    pub count: u32,
    /// One bit for each.
    pub bitmap: B,
}

/// Why a range is refused (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRange;

/// How many bytes of bitmap to copy for a range of `count` MSRs. Zero for an unused range.
///
/// # Errors
/// Unknown flags, none, or too many MSRs.
pub fn bitmap_bytes(flags: u32, count: u32) -> Result<usize, InvalidRange> {
    if count == 0 {
        return Ok(0);
    }
    let bytes = usize::try_from(count.div_ceil(8)).map_err(|_| InvalidRange)?;
    if flags & !(READ | WRITE) != 0 || flags == 0 || bytes > MAX_BITMAP {
        return Err(InvalidRange);
    }
    Ok(bytes)
}

/// The filter may be put in: known flags, and no default of "deny" without any range.
pub const fn flags_valid(flags: u32, ranges_used: usize) -> bool {
    flags & !DEFAULT_DENY == 0 && !(flags & DEFAULT_DENY != 0 && ranges_used == 0)
}

/// True if the guest may access MSR `index` under the filter of `ranges`. The first range that
/// holds the MSR and filters this kind of access decides. x2APIC registers cannot be filtered.
pub fn allowed<B: Deref<Target = [u8]>>(
    ranges: &[Range<B>],
    default_deny: bool,
    index: u32,
    write: bool,
) -> bool {
    if let 0x800..=0x8ff = index {
        return true;
    }
    let kind = if write { WRITE } else { READ };
    for r in ranges {
        // An MSR below the base wraps to more than any count.
        let i = index.wrapping_sub(r.base);
        if i < r.count && r.flags & kind != 0 {
            let byte = usize::try_from(i / 8).ok().and_then(|b| r.bitmap.get(b));
            return byte.is_some_and(|b| b >> (i % 8) & 1 != 0);
        }
    }
    !default_deny
}
