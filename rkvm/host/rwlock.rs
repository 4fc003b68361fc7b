// SPDX-License-Identifier: GPL-2.0

//! Readers-writer spinlock (`rwlock_t`).

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};
use kernel::{
    bindings as kbindings,
    prelude::*,
    types::{NotThreadSafe, Opaque},
};

use crate::bindings;

/// Data behind a readers-writer spinlock.
///
/// Must not be taken in interrupts. Code that runs with interrupts off may only [`RwLock::try_read`]:
/// a writer may be waiting for that very CPU to answer an interrupt.
#[pin_data]
pub(crate) struct RwLock<T> {
    #[pin]
    lock: Opaque<kbindings::rwlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock moves with its data.
unsafe impl<T: Send> Send for RwLock<T> {}
// SAFETY: The lock gives `&mut T` to one thread (needs `Send`) or `&T` to many (needs `Sync`).
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// A new, free lock. All such locks are of one lock class.
    pub(crate) fn new(data: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid memory for a lock, and pinned from here on.
            lock <- Opaque::ffi_init(|slot: *mut kbindings::rwlock_t| unsafe {
                bindings::rkvm_rwlock_init(slot.cast())
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Spins until the data can be shared.
    #[inline]
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The lock was initialised by `new`.
        unsafe { bindings::rkvm_read_lock(self.lock.get().cast()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Shares the data if no writer is about. Allowed with interrupts off.
    #[inline]
    pub(crate) fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        // SAFETY: The lock was initialised by `new`.
        let locked = unsafe { bindings::rkvm_read_trylock(self.lock.get().cast()) } != 0;
        // Not `then_some`: a guard that is made is one that unlocks.
        locked.then(|| ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Spins until the data is the caller's alone.
    #[inline]
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: The lock was initialised by `new`.
        unsafe { bindings::rkvm_write_lock(self.lock.get().cast()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// Shared access. The read lock is held.
#[must_use = "the lock is released at once if the guard is not kept"]
pub(crate) struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The read lock is held, so there is no `&mut T`.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard's existence means that the read lock is held.
        unsafe { bindings::rkvm_read_unlock(self.lock.lock.get().cast()) };
    }
}

/// Exclusive access. The write lock is held.
#[must_use = "the lock is released at once if the guard is not kept"]
pub(crate) struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The write lock is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The write lock is held, so nobody else refers to the data.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard's existence means that the write lock is held.
        unsafe { bindings::rkvm_write_unlock(self.lock.lock.get().cast()) };
    }
}
