// SPDX-License-Identifier: GPL-2.0

//! A VM's interrupt lines: routes, and what drives them.

use kernel::{
    alloc::KVVec,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    workqueue::{impl_has_work, new_work, Work, WorkItem},
};

use super::{
    irqfd::{Irqfds, Resamplers},
    routing::{self, Entry, PinRoute, Table, Target},
    Controller, SOURCE_USER,
};
use crate::host::srcu_cell::SrcuCell;

/// A routing table with its storage. Never changed once built.
#[derive(Default)]
struct Routes {
    entries: KVVec<Entry>,
    starts: KVVec<u16>,
    pins: KVVec<PinRoute>,
}

impl Routes {
    fn new(mut entries: KVVec<Entry>) -> Result<Self> {
        let sizes = routing::sizes(&entries)?;
        let mut starts = KVVec::from_elem(0, sizes.starts, GFP_KERNEL_ACCOUNT)?;
        let mut pins = KVVec::from_elem(PinRoute::default(), sizes.pins, GFP_KERNEL_ACCOUNT)?;
        routing::build(&mut entries, &mut starts, &mut pins)?;
        Ok(Self {
            entries,
            starts,
            pins,
        })
    }

    /// The table.
    #[inline]
    fn table(&self) -> Table<'_> {
        Table::new(&self.entries, &self.starts, &self.pins)
    }
}

/// The interrupt lines of one VM.
///
/// The irqfds hold it as well, so that the VM can go while an eventfd is being signalled;
/// [`Self::shutdown`] breaks the cycle.
///
/// Lock order: `irqfds`; then `writer`, or `resamplers`; then an eventfd's; then the controller's. An
/// eventfd's wake-up comes with the eventfd's lock held, and takes the controller's only.
#[pin_data]
pub(super) struct Lines<C: Controller> {
    controller: Arc<C>,
    #[pin]
    routes: SrcuCell<Routes>,
    /// Held while routes are replaced, and while the controller takes note of a change.
    #[pin]
    writer: Mutex<()>,
    #[pin]
    pub(super) irqfds: Mutex<Irqfds<C>>,
    #[pin]
    pub(super) resamplers: Resamplers,
    /// Deassigns the irqfds whose eventfds have been closed.
    #[pin]
    pub(super) reap: Work<Lines<C>>,
}

impl_has_work! {
    impl{C: Controller} HasWork<Lines<C>> for Lines<C> { self.reap }
}

impl<C: Controller> WorkItem for Lines<C> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.reap_closed();
    }
}

impl<C: Controller> Lines<C> {
    pub(super) fn new(controller: Arc<C>) -> Result<Arc<Self>> {
        let routes = KBox::new(Routes::default(), GFP_KERNEL_ACCOUNT)?;
        Arc::pin_init(
            try_pin_init!(Self {
                controller,
                routes <- SrcuCell::new(routes),
                writer <- new_mutex!((), "rkvm::irq::Lines::writer"),
                irqfds <- new_mutex!(Irqfds::default(), "rkvm::irq::Lines::irqfds"),
                resamplers <- Resamplers::new(),
                reap <- new_work!("rkvm::irq::Lines::reap"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    pub(super) fn controller(&self) -> &Arc<C> {
        &self.controller
    }

    pub(super) fn set_routes(&self, entries: KVVec<Entry>) -> Result {
        for e in &entries {
            self.controller.route_ok(&e.target)?;
        }
        let routes = KBox::new(Routes::new(entries)?, GFP_KERNEL_ACCOUNT)?;

        let _writer = self.writer.lock();
        let _old = self.routes.replace(routes);
        self.controller.routes_changed(&self.routes.read().table());
        Ok(())
    }

    /// The set of pins whose ends of interrupt somebody wants to know has changed.
    pub(super) fn acks_changed(&self) {
        let _writer = self.writer.lock();
        self.controller.routes_changed(&self.routes.read().table());
    }

    fn set_target(&self, target: &Target, source: u32, level: bool) -> Result<i32> {
        match target {
            Target::Pin { chip, pin } => self.controller.set_pin(*chip, *pin, source, level),
            // A message has no level: it is sent when its line rises.
            Target::Msi(msi) if level => self.controller.signal_msi(msi),
            Target::Msi(_) => Ok(-1),
            Target::Other { kind, words } => self.controller.set_other(*kind, words, level),
        }
    }

    /// Drives a line; see [`Table::deliver`] for the result. Atomic context allowed.
    pub(super) fn set(&self, gsi: u32, source: u32, level: bool) -> i32 {
        self.routes
            .read()
            .table()
            .deliver(gsi, |target| self.set_target(target, source, level))
    }

    /// Raises and lowers a line. Atomic context allowed.
    pub(super) fn pulse(&self, gsi: u32) {
        let routes = self.routes.read();
        let table = routes.table();
        if let [Entry {
            target: Target::Msi(msi),
            ..
        }] = table.targets(gsi)
        {
            // The controller has nobody to tell of an error, nor have we.
            let _ = self.controller.signal_msi(msi);
            return;
        }
        table.deliver(gsi, |target| match target {
            Target::Pin { chip, pin } => self.controller.pulse_pin(*chip, *pin, SOURCE_USER),
            target => {
                let raised = self.set_target(target, SOURCE_USER, true);
                let _ = self.set_target(target, SOURCE_USER, false);
                raised
            }
        });
    }

    pub(super) fn ack(&self, chip: u32, pin: u32) -> bool {
        if self.resamplers.is_empty() {
            return false;
        }
        let routes = self.routes.read();
        let gsis = routes.table().gsis_of(chip, pin);
        gsis.fold(false, |any, gsi| self.ack_gsi(gsi) || any)
    }

    pub(super) fn wants_ack(&self, chip: u32, pin: u32) -> bool {
        if self.resamplers.is_empty() {
            return false;
        }
        let routes = self.routes.read();
        let mut gsis = routes.table().gsis_of(chip, pin);
        gsis.any(|gsi| self.resamplers.wants(gsi))
    }
}
