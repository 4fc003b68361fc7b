// SPDX-License-Identifier: GPL-2.0

//! The kernel's performance events, as counters of what a thread's guest does.

use crate::bindings as rb;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{error::to_result, ffi::c_void, prelude::*, sync::Arc, types::ForeignOwnable};

/// Who hears of overflows.
pub(crate) trait Overflow: Send + Sync + 'static {
    /// A counter has counted its period. In interrupts; `nmi`: in one that cannot be masked, where next to nothing may
    /// be done.
    fn overflow(&self, nmi: bool);
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct What {
    /// The kernel's number of the PMU (`perf_event_attr.type`).
    pub(crate) pmu: u32,
    /// As the PMU's driver has it.
    pub(crate) config: u64,
    /// Likewise.
    pub(crate) config1: u64,
    /// In the guest's user mode.
    pub(crate) user: bool,
    /// In its kernel mode.
    pub(crate) kernel: bool,
}

/// The longest period that the kernel takes.
pub(crate) const MAX_PERIOD: u64 = u64::MAX >> 1;

/// A counter of the thread that made it. It has a hardware counter while that thread is on a CPU and it is enabled,
/// unless others have taken all. The kernel leaves it to the hypervisor that user mode is the guest's.
///
/// # Invariants
/// `event` is the kernel's until `drop`. Its context is a foreign `Arc<T>`, which is taken back after the kernel has
/// ended the event, so that no overflow is told any more.
pub(crate) struct Counter<T: Overflow> {
    event: NonNull<rb::rkvm_perf>,
    context: *mut c_void,
    _told: PhantomData<Arc<T>>,
}

// SAFETY: The kernel's functions on an event may be called by any thread; `T` is shared among threads.
unsafe impl<T: Overflow> Send for Counter<T> {}

impl<T: Overflow> Counter<T> {
    extern "C" fn overflow(context: *mut c_void, nmi: bool) {
        // SAFETY: By the type's invariants the `Arc` is not taken back while the event lives, which calls this.
        let told = unsafe { <Arc<T> as ForeignOwnable>::borrow(context) };
        told.overflow(nmi);
    }

    /// A counter of the current thread, enabled, with an overflow after `period` (at most [`MAX_PERIOD`]) and each
    /// `period` from then on. Sleeps.
    ///
    /// # Errors
    /// `ENOENT`, `EOPNOTSUPP`: the PMU has no such event. `ENOMEM`; others by the driver.
    pub(crate) fn new(what: &What, period: u64, told: Arc<T>) -> Result<Self> {
        let when = |on: bool, bit: u32| if on { bit } else { 0 };
        let attr = rb::rkvm_perf_attr {
            type_: what.pmu,
            exclude: when(!what.user, rb::RKVM_PERF_NO_USER)
                | when(!what.kernel, rb::RKVM_PERF_NO_KERNEL),
            config: what.config,
            config1: what.config1,
            period: period.clamp(1, MAX_PERIOD),
        };
        let context = told.into_foreign();
        let mut event = core::ptr::null_mut();
        // SAFETY: Task context; `context` stays valid as long as the event.
        let made = to_result(unsafe {
            rb::rkvm_perf_create(&attr, Some(Self::overflow), context, &mut event)
        });
        match (made, NonNull::new(event)) {
            // INVARIANT: Both are new, and belong together.
            (Ok(()), Some(event)) => Ok(Self {
                event,
                context,
                _told: PhantomData,
            }),
            (made, _) => {
                // SAFETY: From `into_foreign` above; there is no event that has it.
                drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(context) });
                Err(made.err().unwrap_or(EINVAL))
            }
        }
    }

    /// It is of the current thread.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: The event lives.
        unsafe { rb::rkvm_perf_is_current(self.event.as_ptr()) }
    }

    /// What it has counted since it was made; `None` if it is another thread's. Any context but NMI.
    pub(crate) fn try_read(&self) -> Option<u64> {
        let mut count = 0;
        // SAFETY: The event lives.
        let mine = unsafe { rb::rkvm_perf_read_local(self.event.as_ptr(), &mut count) };
        mine.then_some(count)
    }

    /// The same, whoever asks. Sleeps.
    pub(crate) fn read(&self) -> u64 {
        match self.try_read() {
            Some(count) => count,
            // SAFETY: The event lives; task context.
            None => unsafe { rb::rkvm_perf_read(self.event.as_ptr()) },
        }
    }

    /// Lets it count, or not. Sleeps.
    pub(crate) fn enable(&self, on: bool) {
        // SAFETY: The event lives; task context.
        unsafe {
            if on {
                rb::rkvm_perf_enable(self.event.as_ptr());
            } else {
                rb::rkvm_perf_disable(self.event.as_ptr());
            }
        }
    }

    /// The next overflow comes `period` (at most [`MAX_PERIOD`]) from now. Sleeps.
    ///
    /// # Errors
    /// By the driver.
    pub(crate) fn set_period(&self, period: u64) -> Result {
        let period = period.clamp(1, MAX_PERIOD);
        // SAFETY: The event lives; task context.
        to_result(unsafe { rb::rkvm_perf_period(self.event.as_ptr(), period) })
    }

    /// Which of this CPU's hardware counters it has, as the PMU's driver numbers them. Interrupts are off.
    #[inline]
    pub(crate) fn hw_index(&self) -> Option<u32> {
        // SAFETY: The event lives.
        u32::try_from(unsafe { rb::rkvm_perf_hw_index(self.event.as_ptr()) }).ok()
    }
}

impl<T: Overflow> Drop for Counter<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariants it is the kernel's until now; task context.
        unsafe { rb::rkvm_perf_release(self.event.as_ptr()) };
        // SAFETY: By the invariants: nobody borrows it any more.
        drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(self.context) });
    }
}
