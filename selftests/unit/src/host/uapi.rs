// SPDX-License-Identifier: GPL-2.0

//! `rkvm/host/uapi.rs` over `std`: what the tables of ioctls and `arch/x86/args` use of it.

#![allow(non_snake_case, reason = "the names of the uapi")]

use std::mem::size_of;

/// A structure of zeroes.
pub fn zeroed<T: Default>() -> T {
    T::default()
}

/// A request code (include/uapi/asm-generic/ioctl.h): direction, size, type, number.
const fn request(dir: u32, kind: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14 && kind < 1 << 8 && nr < 1 << 8);
    dir << 30 | (size as u32) << 16 | kind << 8 | nr
}

/// Without argument.
pub(crate) const fn _IO(kind: u32, nr: u32) -> u32 {
    request(0, kind, nr, 0)
}

/// The argument is copied out.
pub(crate) const fn _IOR<T>(kind: u32, nr: u32) -> u32 {
    request(2, kind, nr, size_of::<T>())
}

/// The argument is copied in.
pub(crate) const fn _IOW<T>(kind: u32, nr: u32) -> u32 {
    request(1, kind, nr, size_of::<T>())
}

/// Both.
pub(crate) const fn _IOWR<T>(kind: u32, nr: u32) -> u32 {
    request(3, kind, nr, size_of::<T>())
}
