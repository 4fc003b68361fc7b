// SPDX-License-Identifier: GPL-2.0

//! The decoder must not panic, must say the same of the same bytes whatever follows them, and must
//! agree with the quick way to a length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rkvm_unit::arch::x86::model::decode::{
    decode, length_of, DecodeError, Mode, Opnd, Vendor, Width, MAX_LEN,
};

fuzz_target!(|data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let width = match how & 3 {
        0 => Width::Bits16,
        1 => Width::Bits32,
        _ => Width::Bits64,
    };
    let vendor = if how & 4 != 0 {
        Vendor::Intel
    } else {
        Vendor::Amd
    };
    let mode = Mode::new(width, vendor);
    match decode(bytes, mode) {
        Ok(i) => {
            let n = usize::from(i.len);
            assert!((1..=MAX_LEN).contains(&n) && n <= bytes.len());
            assert_eq!(decode(&bytes[..n], mode), Ok(i));
            assert_eq!(decode(&bytes[..n - 1], mode), Err(DecodeError::NeedMore));
            assert!(matches!(i.opsize, 2 | 4 | 8) && matches!(i.addrsize, 2 | 4 | 8));
            assert!(mode.is_64() || (i.addrsize != 8 && i.opsize != 8));
            for op in i.ops {
                assert!(matches!(i.size(op), 0 | 1 | 2 | 4 | 8));
                assert!(!matches!(op, Opnd::M | Opnd::Mv | Opnd::Mp) || i.mem.is_some());
            }
            assert_eq!(length_of(bytes, mode, i.mnemonic), Some(i.len));
        }
        Err(DecodeError::NeedMore) => assert!(bytes.len() < MAX_LEN),
        Err(DecodeError::TooLong) => assert!(bytes.len() >= MAX_LEN),
        Err(_) => {}
    }
});
