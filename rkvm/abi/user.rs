// SPDX-License-Identifier: GPL-2.0

//! Copying the ABI's structures from and to user space.

pub(crate) use crate::host::uapi::{read_user as get, write_user as put, zeroed, FromUser, Plain};
use core::mem::size_of;
use kernel::{
    alloc::{flags::GFP_KERNEL_ACCOUNT, KVVec},
    prelude::*,
};

/// The address of element `i` of an array of `T` behind a header.
///
/// # Errors
/// `EFAULT` when it wraps.
pub(crate) fn element<H, T>(addr: usize, i: usize) -> Result<usize> {
    i.checked_mul(size_of::<T>())
        .and_then(|o| o.checked_add(size_of::<H>()))
        .and_then(|o| addr.checked_add(o))
        .ok_or(EFAULT)
}

/// Copies in the `n` elements that follow a header of type `H`.
///
/// # Errors
/// `EFAULT`, `ENOMEM`
pub(crate) fn get_array<H, T: FromUser>(addr: usize, n: usize) -> Result<KVVec<T>> {
    let mut v = KVVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    for i in 0..n {
        v.push(get::<T>(element::<H, T>(addr, i)?)?, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(v)
}
