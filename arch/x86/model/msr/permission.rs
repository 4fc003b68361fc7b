// SPDX-License-Identifier: GPL-2.0

//! Where an MSR's intercept bits are in the hardware's permission maps.

/// Bytes of AMD's map (two pages).
pub const SVM_BYTES: usize = 8192;
/// Bytes of Intel's bitmap (one page).
pub const VMX_BYTES: usize = 4096;

/// Bit number of an MSR's read intercept in the MSRPM; the write intercept is the next bit
/// (APM vol. 2 15.11). `None`: the MSR is in no range, and always intercepted.
pub const fn svm_read_bit(msr: u32) -> Option<usize> {
    let vector = match msr {
        0..=0x1fff => msr,
        0xc000_0000..=0xc000_1fff => 0x2000 + (msr & 0x1fff),
        0xc001_0000..=0xc001_1fff => 0x4000 + (msr & 0x1fff),
        _ => return None,
    };
    Some(vector as usize * 2)
}

/// Bit numbers of an MSR's read and write intercepts in the VMX MSR bitmap (SDM vol. 3C 25.6.9).
/// `None`: the MSR is in no range, and always intercepted.
pub const fn vmx_bits(msr: u32) -> Option<(usize, usize)> {
    // Read low, read high, write low, write high: 1 KiB each.
    let read = match msr {
        0..=0x1fff => msr as usize,
        0xc000_0000..=0xc000_1fff => 1024 * 8 + (msr & 0x1fff) as usize,
        _ => return None,
    };
    Some((read, read + 2048 * 8))
}

/// Sets or clears bit `bit` of `map`; nothing beyond its end.
pub fn set_bit(map: &mut [u8], bit: usize, on: bool) {
    if let Some(byte) = map.get_mut(bit / 8) {
        if on {
            *byte |= 1 << (bit % 8);
        } else {
            *byte &= !(1 << (bit % 8));
        }
    }
}

/// Sets an MSR's intercepts in an AMD map. False if it is in no range.
pub fn svm_set(map: &mut [u8], msr: u32, read: bool, write: bool) -> bool {
    let Some(bit) = svm_read_bit(msr) else {
        return false;
    };
    set_bit(map, bit, read);
    set_bit(map, bit + 1, write);
    true
}

/// Sets an MSR's intercepts in a VMX bitmap. False if it is in no range.
pub fn vmx_set(map: &mut [u8], msr: u32, read: bool, write: bool) -> bool {
    let Some((r, w)) = vmx_bits(msr) else {
        return false;
    };
    set_bit(map, r, read);
    set_bit(map, w, write);
    true
}
