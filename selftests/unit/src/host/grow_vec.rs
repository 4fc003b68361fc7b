// SPDX-License-Identifier: GPL-2.0

//! `rkvm/host/grow_vec.rs` over `std`, with failures on demand.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
};

/// Allocation failed.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

thread_local! {
    static FAIL_AFTER: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Makes the allocation after `n` more fail, and all that follow, in this thread; `None` ends that.
pub fn fail_after(n: Option<u32>) {
    FAIL_AFTER.set(n);
}

fn allocate() -> Result<(), NoMemory> {
    match FAIL_AFTER.get() {
        Some(0) => Err(NoMemory),
        Some(n) => {
            FAIL_AFTER.set(Some(n - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

/// A growing array.
#[derive(Debug)]
pub struct GrowVec<T>(Vec<T>);

impl<T> Default for GrowVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> GrowVec<T> {
    /// Without elements.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// `len` elements made by `make`.
    pub fn filled(len: usize, make: impl Fn() -> T) -> Result<Self, NoMemory> {
        allocate()?;
        Ok(Self((0..len).map(|_| make()).collect()))
    }

    /// Makes room for one more element.
    pub fn reserve_one(&mut self) -> Result<(), NoMemory> {
        if self.0.len() == self.0.capacity() {
            allocate()?;
            self.0.reserve_exact(1 + self.0.len() / 8);
        }
        Ok(())
    }

    /// Inserts; fails if there is no room.
    pub fn insert(&mut self, at: usize, value: T) -> Result<(), NoMemory> {
        if self.0.len() == self.0.capacity() || at > self.0.len() {
            return Err(NoMemory);
        }
        self.0.insert(at, value);
        Ok(())
    }

    /// Removes; `None` if there is no such element.
    pub fn remove(&mut self, at: usize) -> Option<T> {
        (at < self.0.len()).then(|| self.0.remove(at))
    }
}

impl<T> Deref for GrowVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for GrowVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
