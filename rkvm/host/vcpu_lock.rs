// SPDX-License-Identifier: GPL-2.0

//! A mutex whose wait a kill can end: `KVM_RUN` holds a vCPU's lock as long as the guest runs.

use crate::bindings as rb;
use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};
use kernel::{prelude::*, types::Opaque};

/// `T`, for whoever holds the lock.
///
/// # Invariants
/// `raw` is an initialised mutex; `data` is accessed by the holder only.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    raw: Opaque<rb::rkvm_lock>,
    data: UnsafeCell<T>,
}

// SAFETY: Only the holder reaches `data`, which may move between threads if `T` may.
unsafe impl<T: Send> Send for KillableMutex<T> {}
// SAFETY: As above: the mutex serialises access.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// An unlocked mutex with `data` in it.
    pub(crate) fn new(data: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The helper initialises the whole mutex in place.
            raw <- Opaque::ffi_init(|slot| unsafe { rb::rkvm_lock_init(slot) }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock. May sleep.
    ///
    /// # Errors
    /// `EINTR` when the thread is being killed.
    pub(crate) fn lock(&self) -> Result<Guard<'_, T>> {
        // SAFETY: Initialised and pinned by the type's invariant; task context.
        if unsafe { rb::rkvm_lock_killable(self.raw.get()) } != 0 {
            return Err(EINTR);
        }
        Ok(Guard { lock: self })
    }
}

impl<T> KillableMutex<T> {
    /// Takes the lock if it is free.
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        // SAFETY: Initialised and pinned by the type's invariant; task context.
        unsafe { rb::rkvm_lock_try(self.raw.get()) }.then(|| Guard { lock: self })
    }
}

/// The lock is held as long as this exists.
pub(crate) struct Guard<'a, T> {
    lock: &'a KillableMutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The guard holds the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The guard holds the lock, and it is borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The guard holds the lock.
        unsafe { rb::rkvm_lock_release(self.lock.raw.get()) };
    }
}
