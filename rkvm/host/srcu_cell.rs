// SPDX-License-Identifier: GPL-2.0

//! A value that many read at any time and that is replaced as a whole.

use core::ops::Deref;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full},
        srcu, Srcu,
    },
};

/// A pointer to a `T`, protected by sleepable RCU.
///
/// Readers take no lock, may be in any context but NMI, and see one version for as long as they hold
/// their [`SrcuRef`]. A writer waits for the readers of the version that it replaced.
///
/// # Invariants
///
/// `value` comes from [`KBox::into_raw`]. A value that was taken out of it is given up only after all
/// readers that could have seen it are gone.
#[pin_data(PinnedDrop)]
pub(crate) struct SrcuCell<T> {
    value: Atomic<*mut T>,
    #[pin]
    srcu: Srcu,
}

// SAFETY: The cell owns a `T`, which may be read from several threads at once.
unsafe impl<T: Send + Sync> Send for SrcuCell<T> {}
// SAFETY: As above; and `replace` sends a `T` to another thread.
unsafe impl<T: Send + Sync> Sync for SrcuCell<T> {}

impl<T> SrcuCell<T> {
    /// A cell that holds `value`.
    pub(crate) fn new(value: KBox<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- kernel::sync::srcu::new_srcu!("rkvm::SrcuCell"),
            // INVARIANT: From `KBox::into_raw`. (Last, so that it is not leaked if SRCU cannot be set up.)
            value: Atomic::new(KBox::into_raw(value)),
        })
    }

    /// Opens a read section; the version that is current now stays as long as it.
    #[inline]
    pub(crate) fn read(&self) -> SrcuRef<'_, T> {
        let guard = self.srcu.read_lock();
        let value = self.value.load(Acquire);
        SrcuRef {
            // SAFETY: By the invariant, valid; and it stays so as long as `guard`, since `replace` and
            // `drop` wait for all readers.
            value: unsafe { &*value },
            _guard: guard,
        }
    }

    /// Makes `new` the current version, waits until nobody reads the old one, and returns that.
    ///
    /// Sleeps; must not be called within a read section. Writers who derive `new` from the current
    /// version have to exclude each other.
    pub(crate) fn replace(&self, new: KBox<T>) -> KBox<T> {
        // INVARIANT: `new` comes from `KBox::into_raw`; the old value is given up below.
        let old = self.value.xchg(KBox::into_raw(new), Full);
        self.srcu.synchronize_expedited();
        // SAFETY: From `KBox::into_raw`, by the invariant; no other `replace` got it, and all readers
        // that could have seen it are gone.
        unsafe { KBox::from_raw(old) }
    }
}

#[pinned_drop]
impl<T> PinnedDrop for SrcuCell<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: From `KBox::into_raw`, by the invariant. Readers borrow the cell, so there are none.
        drop(unsafe { KBox::from_raw(self.value.load(Acquire)) });
    }
}

/// One version of what is in an [`SrcuCell`], held in an SRCU read section.
pub(crate) struct SrcuRef<'a, T> {
    value: &'a T,
    _guard: srcu::Guard<'a>,
}

impl<T> Deref for SrcuRef<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
