// SPDX-License-Identifier: GPL-2.0

//! A static place for something shared that comes and goes with the module's life.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::prelude::*;
use kernel::sync::{rcu, Arc};
use kernel::types::ForeignOwnable;

/// Holds an `Arc<T>` or nothing. Readable in any context, IRQs off too, without a lock.
///
/// # Invariants
///
/// The pointer is null, or came from `Arc::into_foreign` and stays valid for an RCU grace period after
/// it is taken out.
pub(crate) struct RcuSlot<T: Send + Sync + 'static>(AtomicPtr<T>);

impl<T: Send + Sync + 'static> RcuSlot<T> {
    /// Nothing in it.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Puts `v` in.
    ///
    /// # Errors
    /// `EBUSY` when there is something already.
    pub(crate) fn set(&self, v: Arc<T>) -> Result {
        let p = v.into_foreign().cast::<T>();
        match self
            .0
            .compare_exchange(ptr::null_mut(), p, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Ok(()),
            Err(_) => {
                // SAFETY: From `into_foreign` just now, and not published.
                drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(p.cast()) });
                Err(EBUSY)
            }
        }
    }

    /// A new reference to what is in it.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let p = self.0.load(Ordering::Acquire);
        if p.is_null() {
            return None;
        }
        // SAFETY: By the invariants it is valid until the guard goes, the count is at least one.
        let v = unsafe { <Arc<T> as ForeignOwnable>::borrow(p.cast()) };
        Some(v.into())
    }

    /// Takes out what is in it. Sleeps.
    pub(crate) fn take(&self) -> Option<Arc<T>> {
        let p = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        if p.is_null() {
            return None;
        }
        rcu::synchronize_rcu();
        // SAFETY: By the invariants; nobody finds it any more.
        Some(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(p.cast()) })
    }
}
