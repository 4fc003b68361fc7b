// SPDX-License-Identifier: GPL-2.0

//! irqfd: eventfds that drive interrupt lines, and eventfds that hear when the guest has ended one.
//!
//! The interrupt is injected in the wake-up of the eventfd itself, in whatever context that happens;
//! no thread is involved.
//!
//! The route is looked up at each signal. That is two array accesses within the read section that a
//! copy kept with the irqfd would need as well, and leaves nothing to be stale when routes change.
//!
//! Who holds whom: the list in [`Lines`] owns each irqfd; an irqfd holds its eventfd and, by `Arc`, the
//! lines. An irqfd is only dropped by who takes it off the list under the list's lock, never by the
//! wake-up, which leaves that to a work item when user space closes the eventfd.

use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Arc, SpinLock,
    },
    workqueue,
};

use super::{lines::Lines, routing, Controller, SOURCE_RESAMPLE};
use crate::{
    bindings,
    host::{
        eventfd::{EventFd, EventFile, Listen, Listener},
        workqueue::flush,
    },
};

/// All irqfds of a VM.
pub(super) struct Irqfds<C: Controller> {
    list: KVec<Irqfd<C>>,
    next_id: u64,
}

impl<C: Controller> Default for Irqfds<C> {
    fn default() -> Self {
        Self {
            list: KVec::new(),
            next_id: 0,
        }
    }
}

struct Irqfd<C: Controller> {
    /// Connects it to its [`Resample`], if it has one.
    id: u64,
    listener: Pin<KBox<Listener<Inject<C>>>>,
}

/// What a signal of an irqfd's eventfd does.
struct Inject<C: Controller> {
    lines: Arc<Lines<C>>,
    gsi: u32,
    resample: bool,
    closed: Atomic<bool>,
}

impl<C: Controller> Listen for Inject<C> {
    fn signalled(&self) {
        if self.resample {
            self.lines.set(self.gsi, SOURCE_RESAMPLE, true);
        } else {
            self.lines.pulse(self.gsi);
        }
    }

    fn closed(&self) {
        self.closed.store(true, Release);
        // If it is queued already, it has yet to look at the list.
        let _ = workqueue::system_long().enqueue(self.lines.clone());
    }
}

/// A resample eventfd.
struct Resample {
    id: u64,
    gsi: u32,
    eventfd: EventFd,
}

/// All resample eventfds of a VM.
#[pin_data]
pub(super) struct Resamplers {
    /// Length of `list`, readable without its lock.
    count: Atomic<usize>,
    #[pin]
    list: SpinLock<KVec<Resample>>,
}

impl Resamplers {
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            count: Atomic::new(0),
            list <- new_spinlock!(KVec::new(), "rkvm::irq::Resamplers"),
        })
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Acquire) == 0
    }

    pub(super) fn wants(&self, gsi: u32) -> bool {
        self.list.lock().iter().any(|r| r.gsi == gsi)
    }

    fn add(&self, resample: Resample) -> Result {
        let mut list = self.list.lock();
        list.push(resample, GFP_ATOMIC)?;
        self.count.store(list.len(), Release);
        Ok(())
    }

    /// Takes the resample eventfd of an irqfd off the list, if it has one. Returns whether it had.
    fn remove(&self, id: u64) -> bool {
        let mut list = self.list.lock();
        let Some(at) = list.iter().position(|r| r.id == id) else {
            return false;
        };
        let gone = list.remove(at);
        self.count.store(list.len(), Release);
        drop(list);
        drop(gone);
        true
    }
}

impl<C: Controller> Lines<C> {
    /// `KVM_IRQFD`; see [`super::Irq::irqfd`].
    pub(super) fn irqfd(this: &Arc<Self>, args: &bindings::kvm_irqfd) -> Result {
        let resample = match routing::Irqfd::from_flags(args.flags)? {
            routing::Irqfd::Deassign => {
                let eventfd = EventFd::get(args.fd)?;
                this.remove_if(|irqfd| {
                    irqfd.listen().gsi == args.gsi && irqfd.eventfd().same(&eventfd)
                });
                return Ok(());
            }
            routing::Irqfd::Assign { resample } => resample,
        };
        this.controller().irqfd_ok(resample)?;
        let file = EventFile::get(args.fd)?;
        let resamplefd = match resample {
            true => Some(EventFd::get(args.resamplefd)?),
            false => None,
        };
        Self::assign(this, &file, args.gsi, resamplefd)
    }

    fn assign(this: &Arc<Self>, file: &EventFile, gsi: u32, resamplefd: Option<EventFd>) -> Result {
        let resample = resamplefd.is_some();
        // Held until the irqfd is on the list, so that the work item that a close queues finds it.
        let mut irqfds = this.irqfds.lock();
        irqfds.list.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let id = irqfds.next_id;
        irqfds.next_id = id.wrapping_add(1);

        // Before the first signal: the guest may end the interrupt at once.
        if let Some(eventfd) = resamplefd {
            this.resamplers.add(Resample { id, gsi, eventfd })?;
            this.acks_changed();
        }
        let inject = Inject {
            lines: this.clone(),
            gsi,
            resample,
            closed: Atomic::new(false),
        };
        let irqfd = Listener::new(file, inject).and_then(|listener| {
            let irqfd = Irqfd { id, listener };
            irqfds.list.push_within_capacity(irqfd).map_err(|_| ENOMEM)
        });
        if irqfd.is_err() {
            this.forget_resample(id, gsi);
        }
        irqfd
    }

    /// Deassigns the irqfds that `which` picks.
    fn remove_if(&self, which: impl Fn(&Listener<Inject<C>>) -> bool) {
        let mut irqfds = self.irqfds.lock();
        let mut at = 0;
        while let Some(irqfd) = irqfds.list.get(at) {
            if !which(&irqfd.listener) {
                at += 1;
                continue;
            }
            let Ok(Irqfd { id, listener }) = irqfds.list.remove(at) else {
                break;
            };
            let gsi = listener.listen().gsi;
            drop(listener);
            self.forget_resample(id, gsi);
        }
    }

    /// Forgets the resample eventfd of irqfd `id`, if it has one, and lowers the line if it was the
    /// last of this gsi. The caller holds the lock of the list of irqfds.
    fn forget_resample(&self, id: u64, gsi: u32) {
        if self.resamplers.remove(id) {
            if !self.resamplers.wants(gsi) {
                self.set(gsi, SOURCE_RESAMPLE, false);
            }
            self.acks_changed();
        }
    }

    pub(super) fn reap_closed(&self) {
        self.remove_if(|irqfd| irqfd.listen().closed.load(Acquire));
    }

    pub(super) fn shutdown(&self) {
        self.remove_if(|_| true);
        // No listener is left to queue it again.
        flush(&self.reap);
    }

    /// The guest has ended an interrupt that `gsi` leads to. Returns whether somebody wanted to know.
    pub(super) fn ack_gsi(&self, gsi: u32) -> bool {
        let list = self.resamplers.list.lock();
        let of_gsi = || list.iter().filter(|r| r.gsi == gsi);
        if of_gsi().next().is_none() {
            return false;
        }
        // Once for all who share the line, and before any of them can raise it again.
        self.set(gsi, SOURCE_RESAMPLE, false);
        for resample in of_gsi() {
            resample.eventfd.signal();
        }
        true
    }
}
