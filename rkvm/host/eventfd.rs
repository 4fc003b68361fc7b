// SPDX-License-Identifier: GPL-2.0

//! Eventfds: signalling one, and being told at once when one is signalled.
//!
//! C header: `include/linux/eventfd.h`.

use core::{marker::PhantomPinned, pin::Pin, ptr::NonNull};
use kernel::{
    bindings as c,
    error::{from_err_ptr, to_result},
    ffi::{c_int, c_uint, c_void},
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    types::Opaque,
};

use super::trace;
use crate::bindings;

/// The file of an eventfd, held open.
///
/// # Invariants
///
/// The pointer is a reference that we own to an eventfd's `struct file`.
pub(crate) struct EventFile(NonNull<c::file>);

/// The reason that goes with an error of the kernel's.
#[cold]
fn refused(error: Error) -> Error {
    match error {
        EBADF => trace::refuse(error, c"the descriptor of an eventfd is not open"),
        EINVAL => trace::refuse(error, c"the descriptor is no eventfd's"),
        EBUSY => trace::refuse(error, c"the eventfd is an irqfd already"),
        error => error,
    }
}

impl EventFile {
    /// Takes a reference to the open file `fd`. `EBADF` if there is none, `EINVAL` if it is no eventfd.
    pub(crate) fn get(fd: u32) -> Result<Self> {
        // The ABI has descriptors both signed and unsigned; none is above `i32::MAX`.
        let fd = i32::try_from(fd).map_err(|_| refused(EBADF))?;
        // SAFETY: Any number may be asked for.
        let file = from_err_ptr(unsafe { c::eventfd_fget(fd) }).map_err(refused)?;
        // INVARIANT: `eventfd_fget` gave us a reference.
        Ok(Self(NonNull::new(file).ok_or_else(|| refused(EBADF))?))
    }

    /// The eventfd behind the file.
    pub(crate) fn eventfd(&self) -> Result<EventFd> {
        // SAFETY: By the invariant, the file is valid.
        let ctx = from_err_ptr(unsafe { c::eventfd_ctx_fileget(self.0.as_ptr()) });
        // INVARIANT: `eventfd_ctx_fileget` gave us a reference.
        let ctx = NonNull::new(ctx.map_err(refused)?).ok_or_else(|| refused(EINVAL))?;
        Ok(EventFd(ctx))
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        // SAFETY: By the invariant, we own a reference.
        unsafe { c::fput(self.0.as_ptr()) };
    }
}

/// An eventfd, whether or not user space still has it open.
///
/// # Invariants
///
/// The pointer is a reference that we own to a `struct eventfd_ctx`.
pub(crate) struct EventFd(NonNull<c::eventfd_ctx>);

// SAFETY: References to an eventfd may be used and given up on any CPU.
unsafe impl Send for EventFd {}
// SAFETY: Eventfds have their own lock.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// Takes a reference to the eventfd that is open as `fd`. `EBADF` if nothing is, `EINVAL` if it is
    /// no eventfd.
    pub(crate) fn get(fd: u32) -> Result<Self> {
        EventFile::get(fd)?.eventfd()
    }

    /// Whether both are the same eventfd.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Adds one to the eventfd and wakes who waits for it.
    ///
    /// Callable in any context, with interrupts off too, but not from within [`Listen`]'s methods: the
    /// kernel drops signals that nest.
    #[inline]
    pub(crate) fn signal(&self) {
        // SAFETY: By the invariant, the eventfd is valid.
        unsafe { c::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the invariant, we own a reference.
        unsafe { c::eventfd_ctx_put(self.0.as_ptr()) };
    }
}

/// Hears what happens to an eventfd.
///
/// Both methods run with interrupts off and the eventfd's lock held, on whatever CPU and in whatever
/// context the event came about: they must not sleep, nor signal an eventfd, nor drop their
/// [`Listener`].
pub(crate) trait Listen: Send + Sync + 'static {
    /// The eventfd was signalled; its count has been consumed.
    fn signalled(&self);
    /// User space has closed the eventfd for good. It may still be signalled by the kernel.
    fn closed(&self);
}

/// An eventfd with the one listener that takes all its signals: nobody else who waits for the eventfd
/// sees them.
///
/// Dropping it ends this; when drop returns, no call to `L` is running or will come. Drop must not run
/// within a call to `L`.
///
/// # Invariants
///
/// If `listening`, `entry` is on the wait queue of `eventfd`; otherwise on none.
#[pin_data(PinnedDrop)]
pub(crate) struct Listener<L: Listen> {
    #[pin]
    entry: Opaque<c::wait_queue_entry>,
    listening: Atomic<bool>,
    eventfd: EventFd,
    listen: L,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: The wait queue entry is only touched under the eventfd's lock, from any CPU; the other fields
// are `Send`.
unsafe impl<L: Listen> Send for Listener<L> {}
// SAFETY: As above; `&Listener` gives access to fields that are `Sync` only.
unsafe impl<L: Listen> Sync for Listener<L> {}

impl<L: Listen> Listener<L> {
    /// Lets `listen` take the signals of `file`; also one that came before, of which the count is left
    /// in the eventfd. `EBUSY` if the eventfd already has a listener, whoever owns it.
    pub(crate) fn new(file: &EventFile, listen: L) -> Result<Pin<KBox<Self>>> {
        let eventfd = file.eventfd()?;
        let this = KBox::pin_init(
            pin_init!(Self {
                entry <- Opaque::ffi_init(|entry| {
                    // SAFETY: `entry` is memory for a wait queue entry.
                    unsafe { bindings::rkvm_wait_entry_init(entry, Some(Self::wake)) }
                }),
                // INVARIANT: The entry is on no queue yet.
                listening: Atomic::new(false),
                eventfd,
                listen,
                _pin: PhantomPinned,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;

        // SAFETY: The file is valid and an eventfd's, so that its poll method puts the entry on the
        // queue of `eventfd`. The entry is initialised; it is pinned, and `drop` takes it off before
        // its memory or any of the other fields goes. `wake` is sound for an entry within `Self`.
        let ret = unsafe { bindings::rkvm_eventfd_listen(file.0.as_ptr(), this.entry.get()) };
        if ret < 0 {
            to_result(ret).map_err(refused)?;
        }
        // INVARIANT: The entry is on the queue.
        this.listening.store(true, Relaxed);
        if ret > 0 {
            this.listen.signalled();
        }
        Ok(this)
    }

    /// The listener.
    pub(crate) fn listen(&self) -> &L {
        &self.listen
    }

    /// The eventfd.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// Called by the kernel for each wake-up of the eventfd, with its lock held and interrupts off.
    ///
    /// # Safety
    ///
    /// `entry` is the entry of a `Self` and on the wait queue of its eventfd, of which the lock is held.
    unsafe extern "C" fn wake(
        entry: *mut c::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        // SAFETY: `entry` lies in a `Self`, which lives at least until `drop` has had the eventfd's
        // lock, and which nobody borrows mutably while it is pinned and not being dropped. (`drop`
        // itself touches nothing before it gets the lock.)
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(entry), Self, entry) };
        let events = key as usize;
        let mut taken = 0;

        if events & bindings::rkvm_wake_RKVM_WAKE_IN as usize != 0 {
            let mut count = 0;
            // SAFETY: The eventfd is valid, and the caller holds its lock.
            unsafe { c::eventfd_ctx_do_read(this.eventfd.0.as_ptr(), &mut count) };
            this.listen.signalled();
            taken = 1;
        }
        if events & bindings::rkvm_wake_RKVM_WAKE_HUP as usize != 0 {
            this.listen.closed();
        }
        taken
    }
}

#[pinned_drop]
impl<L: Listen> PinnedDrop for Listener<L> {
    fn drop(self: Pin<&mut Self>) {
        if self.listening.load(Relaxed) {
            let mut count = 0;
            // SAFETY: By the invariant, the entry is on the queue of `eventfd`. This takes it off under
            // the lock that `wake` is called with.
            //
            // The result only says whether there was a count.
            unsafe {
                c::eventfd_ctx_remove_wait_queue(
                    self.eventfd.0.as_ptr(),
                    self.entry.get(),
                    &mut count,
                )
            };
        }
    }
}
