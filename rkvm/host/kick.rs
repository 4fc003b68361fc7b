// SPDX-License-Identifier: GPL-2.0

//! Getting a vCPU's attention: requests, the way out of the guest, and the way out of a wait.
//!
//! Any context may post a request. The vCPU looks at them before each entry; the order of the
//! accesses (request, then mode; mode, then requests) makes sure that one of the two sides sees the
//! other's write.

use crate::bindings as rb;
use core::sync::atomic::{fence, AtomicI32, AtomicU32, AtomicU64, Ordering};
use kernel::{prelude::*, types::Opaque};

/// Asks the vCPU to drop its cached translations before it enters again.
pub(crate) const FLUSH_TLB: u64 = 1 << 0;
/// The first bit that a family may use for itself.
pub(crate) const FAMILY_SHIFT: u32 = 8;

const NOT_RUNNING: i32 = -1;

/// One vCPU's bell.
///
/// # Invariants
/// `csd` is initialised and is only passed to the kernel's cross-call; it is idle when dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Kick {
    requests: AtomicU64,
    /// The CPU on which the vCPU is in a guest section, else `NOT_RUNNING`.
    cpu: AtomicI32,
    /// 1 while the vCPU's thread sleeps in [`Kick::wait`].
    waiting: AtomicU32,
    #[pin]
    wait: Opaque<rb::rkvm_bell>,
}

// SAFETY: All shared state is atomic or the kernel's own (rcuwait, csd), made for any thread.
unsafe impl Send for Kick {}
// SAFETY: As above.
unsafe impl Sync for Kick {}

impl Kick {
    /// A quiet bell.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            requests: AtomicU64::new(0),
            cpu: AtomicI32::new(NOT_RUNNING),
            waiting: AtomicU32::new(0),
            // SAFETY: The helper initialises the whole structure.
            wait <- Opaque::ffi_init(|slot| unsafe { rb::rkvm_bell_init(slot) }),
        })
    }

    /// Posts requests without ringing: the caller is the vCPU's own thread, or rings later.
    #[inline]
    pub(crate) fn post(&self, bits: u64) {
        self.requests.fetch_or(bits, Ordering::SeqCst);
    }

    /// Posts requests and makes sure that the vCPU sees them soon. Any context.
    #[inline]
    pub(crate) fn ring(&self, bits: u64) {
        self.post(bits);
        self.wake();
        let cpu = self.cpu.load(Ordering::SeqCst);
        if let Ok(cpu) = u32::try_from(cpu) {
            // SAFETY: The structure is initialised and lives as long as `self`, which its drop
            // makes outlast every cross-call.
            unsafe { rb::rkvm_bell_ipi(self.wait.get(), cpu) };
        }
    }

    /// Ends the vCPU's wait, if it waits. Any context.
    #[inline]
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            // SAFETY: Initialised; rcuwait_wake_up may be called in any context.
            unsafe { rb::rkvm_bell_wake(self.wait.get()) };
        }
    }

    /// The requests posted since the last call. One load when there are none.
    #[inline]
    pub(crate) fn take(&self) -> u64 {
        if self.requests.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        self.requests.swap(0, Ordering::SeqCst)
    }

    /// Some request is posted.
    #[inline]
    pub(crate) fn posted(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// The vCPU begins a guest section on `cpu`: from here on a ring interrupts it.
    #[inline]
    pub(crate) fn section_begins(&self, cpu: u32) {
        self.cpu
            .store(i32::try_from(cpu).unwrap_or(NOT_RUNNING), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The section ends.
    #[inline]
    pub(crate) fn section_ends(&self) {
        self.cpu.store(NOT_RUNNING, Ordering::Release);
    }

    /// The CPU that the vCPU is in a guest section on.
    #[inline]
    pub(crate) fn cpu(&self) -> Option<u32> {
        u32::try_from(self.cpu.load(Ordering::SeqCst)).ok()
    }

    /// Sleeps until `done` says so or a signal or other work is pending. vCPU's thread only.
    pub(crate) fn wait(&self, mut done: impl FnMut() -> bool) {
        // SAFETY: Initialised; only the vCPU's thread, which holds its lock, waits on it.
        unsafe { rb::rkvm_bell_wait_begin(self.wait.get()) };
        self.waiting.store(1, Ordering::SeqCst);
        loop {
            // SAFETY: Sets the state of the current thread; `wait_end` sets it back.
            unsafe { rb::rkvm_bell_wait_prepare() };
            if done() || self.posted() || super::work::pending() {
                break;
            }
            // SAFETY: Task context, no locks held.
            unsafe { kernel::bindings::schedule() };
        }
        self.waiting.store(0, Ordering::SeqCst);
        // SAFETY: Matches `wait_begin`.
        unsafe { rb::rkvm_bell_wait_end(self.wait.get()) };
    }
}

#[pinned_drop]
impl PinnedDrop for Kick {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised; waits until no cross-call uses it any more.
        unsafe { rb::rkvm_bell_quiesce(self.wait.get()) };
    }
}

/// Interrupts the CPUs on which the vCPUs of `bells` are in guest sections, and returns when each
/// has been out of its section (or is about to look at its requests). Must not be called with
/// interrupts off; spinlocks may be held.
pub(crate) fn interrupt_and_wait<'a>(bells: impl Iterator<Item = &'a Kick>) {
    fence(Ordering::SeqCst);
    for b in bells {
        if let Some(cpu) = b.cpu() {
            // SAFETY: Runs an empty function on that CPU and waits for it; interrupts are on.
            unsafe { rb::rkvm_cpu_sync(cpu) };
        }
    }
}
