// SPDX-License-Identifier: GPL-2.0

//! A growing array for pure modules: on the host, the tests put one over `std` in its place.

use core::ops::{Deref, DerefMut};
use kernel::prelude::*;

/// Allocation failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoMemory;

impl From<NoMemory> for Error {
    fn from(_: NoMemory) -> Self {
        ENOMEM
    }
}

/// A growing array, charged to the memory cgroup.
pub(crate) struct GrowVec<T>(KVVec<T>);

impl<T> GrowVec<T> {
    /// Without elements, without memory.
    pub(crate) fn new() -> Self {
        Self(KVVec::new())
    }

    /// `len` elements made by `make`.
    pub(crate) fn filled(len: usize, make: impl Fn() -> T) -> Result<Self, NoMemory> {
        let mut vec = KVVec::with_capacity(len, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        for _ in 0..len {
            vec.push_within_capacity(make()).map_err(|_| NoMemory)?;
        }
        Ok(Self(vec))
    }

    /// Makes room for one more element: at least an eighth more, so that growing stays linear.
    pub(crate) fn reserve_one(&mut self) -> Result<(), NoMemory> {
        if self.0.len() < self.0.capacity() {
            return Ok(());
        }
        self.0
            .reserve(1 + self.0.len() / 8, GFP_KERNEL_ACCOUNT)
            .map_err(|_| NoMemory)
    }

    /// Inserts; fails if there is no room.
    pub(crate) fn insert(&mut self, at: usize, value: T) -> Result<(), NoMemory> {
        self.0
            .insert_within_capacity(at, value)
            .map_err(|_| NoMemory)
    }

    /// Removes; `None` if there is no such element.
    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        self.0.remove(at).ok()
    }
}

impl<T> Deref for GrowVec<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for GrowVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
