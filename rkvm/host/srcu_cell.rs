// SPDX-License-Identifier: GPL-2.0

//! A value that many read and few replace, under sleepable RCU.

use core::{
    ops::Deref,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{
    new_srcu,
    prelude::*,
    sync::{srcu, Srcu},
};

/// A pointer to a `T` which readers follow without a lock and may keep while they sleep.
///
/// # Invariants
///
/// `value` comes from `KBox::into_raw` and is owned by the cell. A value that was taken out is freed
/// only after a grace period of `srcu`.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T: Send + Sync> {
    #[pin]
    srcu: Srcu,
    value: AtomicPtr<T>,
}

impl<T: Send + Sync> SrcuCell<T> {
    /// A cell that holds `value`.
    pub(crate) fn new(value: KBox<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- new_srcu!("rkvm_srcu_cell"),
            // INVARIANT: The pointer comes from `KBox::into_raw`.
            value: AtomicPtr::new(KBox::into_raw(value)),
        })
    }

    /// Starts a read section, in any context. The section's end is the drop of what is returned.
    #[inline]
    pub(crate) fn read(&self) -> SrcuRef<'_, T> {
        let guard = self.srcu.read_lock();
        SrcuRef {
            // INVARIANT: Loaded within the section.
            value: self.value.load(Ordering::Acquire),
            _guard: guard,
        }
    }

    /// Publishes `new`, waits until nobody reads the old value, and returns that.
    ///
    /// Sleeps; must not be called within a read section of this cell (it would wait for itself).
    pub(crate) fn replace(&self, new: KBox<T>) -> KBox<T> {
        // INVARIANT: The pointer comes from `KBox::into_raw`; ownership of the old one goes to `old`.
        let old = self.value.swap(KBox::into_raw(new), Ordering::AcqRel);
        self.srcu.synchronize_expedited();
        // SAFETY: `old` was owned by the cell, this call took it out, and its readers are gone.
        unsafe { KBox::from_raw(old) }
    }
}

#[pinned_drop]
impl<T: Send + Sync> PinnedDrop for SrcuCell<T> {
    fn drop(self: Pin<&mut Self>) {
        let value = self.value.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: The cell owns the value; read sections borrow the cell, so there are none.
        drop(unsafe { KBox::from_raw(value) });
    }
}

/// A read section.
///
/// # Invariants
///
/// `value` was the cell's value at some time in the section, so it lives as long as the section.
#[must_use = "the read section ends at once if the reference is not kept"]
pub(crate) struct SrcuRef<'a, T: Send + Sync> {
    value: *const T,
    _guard: srcu::Guard<'a>,
}

impl<T: Send + Sync> Deref for SrcuRef<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the invariant the value is live.
        unsafe { &*self.value }
    }
}
