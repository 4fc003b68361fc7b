// SPDX-License-Identifier: GPL-2.0

//! Pages that the processor knows by their physical address: control blocks, permission maps, host
//! save areas.

use crate::bindings;
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use kernel::prelude::*;

/// A type that may live in pages which hardware writes behind the compiler's back.
///
/// # Safety
///
/// Every bit pattern is a valid value, zeroes too; no padding matters; no interior references.
/// Hardware may write it only while no Rust code runs that has a reference (inside of an entry).
pub(crate) unsafe trait HwLayout: Sized {}

// SAFETY: Plain bytes.
unsafe impl<const N: usize> HwLayout for [u8; N] {}

/// An owned, zeroed `T` in physically contiguous pages of its own.
///
/// # Invariants
///
/// `ptr` is page-aligned, valid for reads and writes of `T`, and owned by this object.
pub(crate) struct HwPage<T: HwLayout> {
    ptr: NonNull<T>,
    _owns: PhantomData<T>,
}

// SAFETY: The object owns its pages.
unsafe impl<T: HwLayout + Send> Send for HwPage<T> {}
// SAFETY: Shared access gives shared references only.
unsafe impl<T: HwLayout + Sync> Sync for HwPage<T> {}

impl<T: HwLayout> HwPage<T> {
    /// Allocates, charged to the current memory cgroup. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new() -> Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        // SAFETY: Any size may be asked for.
        let p = unsafe { bindings::rkvm_alloc_contiguous(size_of::<T>()) };
        let ptr = NonNull::new(p.cast::<T>()).ok_or(ENOMEM)?;
        // INVARIANT: Fresh pages, zeroed, at least `size_of::<T>()` bytes; zeroes are a valid `T`.
        Ok(Self {
            ptr,
            _owns: PhantomData,
        })
    }

    /// The physical address.
    #[inline]
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: `ptr` is in the kernel's linear mapping.
        unsafe { bindings::rkvm_phys(self.ptr.as_ptr().cast()) }
    }
}

impl<T: HwLayout> Deref for HwPage<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the invariants; hardware writes only while no reference lives (`HwLayout`).
        unsafe { self.ptr.as_ref() }
    }
}

impl<T: HwLayout> DerefMut for HwPage<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: As above, and `&mut self` is exclusive.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T: HwLayout> Drop for HwPage<T> {
    fn drop(&mut self) {
        // SAFETY: Allocated by `rkvm_alloc_contiguous` with the same size, and owned.
        unsafe { bindings::rkvm_free_contiguous(self.ptr.as_ptr().cast(), size_of::<T>()) };
    }
}

/// Owned bytes in physically contiguous pages of their own, zeroed when new: for areas whose size the
/// processor tells.
///
/// # Invariants
///
/// `ptr` is page-aligned, valid for reads and writes of `len` bytes, and owned by this object.
pub(crate) struct HwBytes {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: The object owns its pages.
unsafe impl Send for HwBytes {}
// SAFETY: Shared access gives shared references only.
unsafe impl Sync for HwBytes {}

impl HwBytes {
    /// Allocates, charged to the current memory cgroup. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(len: usize) -> Result<Self> {
        // SAFETY: Any size may be asked for.
        let p = unsafe { bindings::rkvm_alloc_contiguous(len) };
        let ptr = NonNull::new(p.cast()).ok_or(ENOMEM)?;
        // INVARIANT: Fresh pages, zeroed, at least `len` bytes.
        Ok(Self { ptr, len })
    }
}

impl Deref for HwBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the invariants.
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for HwBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: By the invariants, and `&mut self` is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for HwBytes {
    fn drop(&mut self) {
        // SAFETY: Allocated by `rkvm_alloc_contiguous` with the same size, and owned.
        unsafe { bindings::rkvm_free_contiguous(self.ptr.as_ptr().cast(), self.len) };
    }
}
