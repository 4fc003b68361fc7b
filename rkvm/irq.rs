// SPDX-License-Identifier: GPL-2.0

//! Interrupts into a VM and the writes that leave it: routing, irqfd, ioeventfd, coalesced I/O.
//!
//! ```text
//!   eventfd, ioctl ──> Lines: gsi ──routing──> Controller (the family's)     interrupts in
//!   end of interrupt ─> Lines: pin ──routing──> resample eventfds
//!   guest's write ───> Io: address ──> eventfd | ring of coalesced writes    writes out
//! ```
//!
//! Nothing here knows a processor. What an interrupt controller is, the family says by [`Controller`].

#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod bus;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod coalesced;
pub(crate) mod io;
mod irqfd;
mod lines;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod routing;

pub(crate) use io::{Bus, Written};

use kernel::{
    alloc::KVVec,
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

use crate::{
    bindings,
    host::{run_page::SharedPage, trace::refuse, uapi::zone_pio},
};
use io::Io;
use lines::Lines;
use routing::{Entry, Msi, Table, Target};

// The pure modules have the ABI's numbers by themselves; here they meet the uapi headers.
const _: () = {
    use bindings::*;
    assert!(bus::FLAG_DATAMATCH == 1 << kvm_ioeventfd_flag_nr_datamatch);
    assert!(bus::FLAG_PIO == 1 << kvm_ioeventfd_flag_nr_pio);
    assert!(bus::FLAG_DEASSIGN == 1 << kvm_ioeventfd_flag_nr_deassign);
    assert!(bus::FLAG_VIRTIO_CCW_NOTIFY == 1 << kvm_ioeventfd_flag_nr_virtio_ccw_notify);
    assert!(routing::TYPE_IRQCHIP == KVM_IRQ_ROUTING_IRQCHIP);
    assert!(routing::TYPE_MSI == KVM_IRQ_ROUTING_MSI);
    assert!(*routing::TYPES_OF_FAMILIES.start() == KVM_IRQ_ROUTING_S390_ADAPTER);
    assert!(*routing::TYPES_OF_FAMILIES.end() == KVM_IRQ_ROUTING_XEN_EVTCHN);
    assert!(routing::IRQFD_DEASSIGN == KVM_IRQFD_FLAG_DEASSIGN);
    assert!(routing::IRQFD_RESAMPLE == KVM_IRQFD_FLAG_RESAMPLE);
    assert!(routing::MSI_VALID_DEVID == KVM_MSI_VALID_DEVID);
    assert!(size_of::<[u32; routing::ENTRY_WORDS]>() == size_of::<kvm_irq_routing_entry>());
    assert!(coalesced::ENTRY == size_of::<kvm_coalesced_mmio>());
    assert!(coalesced::FIRST == core::mem::offset_of!(kvm_coalesced_mmio_ring, first));
    assert!(coalesced::LAST == core::mem::offset_of!(kvm_coalesced_mmio_ring, last));
};

/// Interrupts asserted by `KVM_IRQ_LINE` and by edge-triggered irqfds.
pub(crate) const SOURCE_USER: u32 = 0;
/// Interrupts asserted by level-triggered irqfds, until the guest ends them.
pub(crate) const SOURCE_RESAMPLE: u32 = 1;

/// The family's interrupt controllers, as routing sees them.
///
/// All but [`Self::route_ok`], [`Self::irqfd_ok`] and [`Self::routes_changed`] are called in atomic
/// context: with interrupts on or off, from hard interrupts too, and with the lock of an eventfd held.
/// They may take spinlocks (that disable interrupts) and kick vCPUs, but neither sleep nor signal an
/// eventfd nor call back into [`Irq`].
pub(crate) trait Controller: Send + Sync + 'static {
    /// Whether a route may lead to `target`: the family's limits on chips, pins and messages. `EINVAL`
    /// if not.
    fn route_ok(&self, target: &Target) -> Result;

    /// Whether `KVM_IRQFD` may assign, with a resample eventfd or without: `EINVAL` or `EAGAIN` if not
    /// (yet).
    fn irqfd_ok(&self, _resample: bool) -> Result {
        Ok(())
    }

    /// Sends a message. Above 0: delivered (to that many CPUs); 0: the guest blocked it, or it is
    /// pending already.
    fn signal_msi(&self, msi: &Msi) -> Result<i32>;

    /// Drives `source`'s share of an input pin; the pin's level is the OR over all sources. Above 0:
    /// delivered; 0: coalesced; below 0: masked.
    fn set_pin(&self, chip: u32, pin: u32, source: u32, level: bool) -> Result<i32>;

    /// Raises an input pin and lowers it again, for an eventfd that has no level.
    fn pulse_pin(&self, chip: u32, pin: u32, source: u32) -> Result<i32> {
        let raised = self.set_pin(chip, pin, source, true);
        self.set_pin(chip, pin, source, false)?;
        raised
    }

    /// Drives a target of a kind that only this family has, and has let pass in [`Self::route_ok`].
    fn set_other(&self, _kind: u32, _words: &[u32; 8], _level: bool) -> Result<i32> {
        Err(EINVAL)
    }

    /// `table` is in force now, or the set of pins has changed for which [`Irq::wants_ack`] is true.
    /// May sleep; calls do not overlap. Runs in an SRCU read section of the routes.
    fn routes_changed(&self, _table: &Table<'_>) {}
}

impl From<routing::Refused> for Error {
    fn from(refused: routing::Refused) -> Self {
        refuse(EINVAL, refused.why())
    }
}

impl From<bus::Refused> for Error {
    fn from(refused: bus::Refused) -> Self {
        refuse(EINVAL, refused.why())
    }
}

/// Interrupts and I/O of one VM. Pinned in the VM.
///
/// `&self` methods that serve ioctls may sleep; the others say in which context they may be called.
#[pin_data(PinnedDrop)]
pub(crate) struct Irq<C: Controller> {
    lines: Arc<Lines<C>>,
    #[pin]
    io: Io,
}

impl<C: Controller> Irq<C> {
    /// No routes, no irqfds, nothing on the bus.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(controller: Arc<C>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            lines: Lines::new(controller)?,
            io <- Io::new()?,
        })
    }

    /// The controller given to [`Self::new`].
    pub(crate) fn controller(&self) -> &Arc<C> {
        self.lines.controller()
    }

    /// `KVM_SET_GSI_ROUTING`: replaces all routes. `arg` points to `struct kvm_irq_routing`.
    ///
    /// `EINVAL`: flags, more than 4096 entries, or an entry that cannot be; `EFAULT`; `ENOMEM`. The old
    /// routes stay in force on error.
    pub(crate) fn set_routing(&self, arg: usize) -> Result {
        const HEADER: usize = size_of::<[u32; 2]>();
        const ENTRY: usize = size_of::<[u32; routing::ENTRY_WORDS]>();

        let arg = UserPtr::from_addr(arg);
        let [nr, flags]: [u32; 2] = UserSlice::new(arg, HEADER).reader().read()?;
        if flags != 0 {
            return Err(refuse(EINVAL, c"a routing table has no flags"));
        }
        let nr = usize::try_from(nr).map_err(|_| routing::Refused::TooMany)?;
        if nr > routing::MAX_ROUTES {
            return Err(routing::Refused::TooMany.into());
        }

        let mut entries = KVVec::with_capacity(nr, GFP_KERNEL_ACCOUNT)?;
        let mut user = UserSlice::new(arg.wrapping_byte_add(HEADER), nr * ENTRY).reader();
        for _ in 0..nr {
            let words: [u32; routing::ENTRY_WORDS] = user.read()?;
            entries.push(Entry::from_words(&words)?, GFP_KERNEL_ACCOUNT)?;
        }
        self.set_routes(entries)
    }

    /// Replaces all routes: as [`Self::set_routing`], for the routes that a family has by default.
    pub(crate) fn set_routes(&self, entries: KVVec<Entry>) -> Result {
        self.lines.set_routes(entries)
    }

    /// `KVM_IRQ_LINE(_STATUS)` through the routes: drives `gsi` and returns the status that the latter
    /// reports (see [`Table::deliver`]). Atomic context allowed.
    ///
    /// # Errors
    /// None: a gsi without a route has the status -1, as in KVM.
    pub(crate) fn irq_line(&self, gsi: u32, level: bool) -> Result<i32> {
        Ok(self.lines.set(gsi, SOURCE_USER, level))
    }

    /// `KVM_SIGNAL_MSI`: above 0 delivered, 0 blocked by the guest. `EINVAL`: flags, or a message that
    /// the controller refuses.
    pub(crate) fn signal_msi(&self, msi: &bindings::kvm_msi) -> Result<i32> {
        let msi = Msi::new(
            msi.address_lo,
            msi.address_hi,
            msi.data,
            msi.flags,
            msi.devid,
        )
        .ok_or_else(|| refuse(EINVAL, c"unknown flag of a message"))?;
        self.controller().signal_msi(&msi)
    }

    /// `KVM_IRQFD`: assigns or deassigns.
    ///
    /// `EINVAL`: flags, gsi not below 4096, fd not an eventfd; `EBADF`: fd not open; `EBUSY`: the eventfd
    /// is an irqfd already, of whichever VM. Deassigning what is not assigned succeeds, as in KVM. When
    /// deassign returns, the eventfd raises no more interrupts here.
    pub(crate) fn irqfd(&self, args: &bindings::kvm_irqfd) -> Result {
        Lines::irqfd(&self.lines, args)
    }

    /// `KVM_IOEVENTFD`: see [`Io::ioeventfd`].
    pub(crate) fn ioeventfd(&self, args: &bindings::kvm_ioeventfd) -> Result {
        self.io.ioeventfd(args)
    }

    /// `KVM_REGISTER_COALESCED_MMIO`: see [`Io::register_zone`].
    pub(crate) fn coalesced_register(&self, zone: &bindings::kvm_coalesced_mmio_zone) -> Result {
        self.io.register_zone(zone.addr, zone.size, zone_pio(zone))
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO`: see [`Io::unregister_zone`].
    pub(crate) fn coalesced_unregister(&self, zone: &bindings::kvm_coalesced_mmio_zone) -> Result {
        self.io
            .unregister_zone(zone.addr, zone.size, zone_pio(zone))
    }

    /// The page of coalesced writes, which the mapping of every vCPU shows.
    pub(crate) fn coalesced_page(&self) -> &SharedPage {
        self.io.coalesced_page()
    }

    /// Opens a read section on the I/O bus, for the guest's writes; see [`Io::bus`].
    #[inline]
    pub(crate) fn bus(&self) -> Bus<'_> {
        self.io.bus()
    }

    /// The guest has ended the interrupt of an input pin: level-triggered irqfds that lead to it are
    /// lowered and their resample eventfds signalled. Returns whether there were any.
    ///
    /// Atomic context allowed, but for hard interrupts; the caller holds no lock that [`Controller`]'s
    /// methods take.
    #[allow(dead_code, reason = "for families with pins in the kernel")]
    pub(crate) fn ack(&self, chip: u32, pin: u32) -> bool {
        self.lines.ack(chip, pin)
    }

    /// Whether somebody wants [`Self::ack`] for this pin. Context as there.
    #[allow(dead_code, reason = "for families with pins in the kernel")]
    pub(crate) fn wants_ack(&self, chip: u32, pin: u32) -> bool {
        self.lines.wants_ack(chip, pin)
    }

    /// Deassigns all irqfds, and waits until nothing of them runs. To be called when the VM's fd is
    /// closed; also happens on drop. May be repeated. Sleeps.
    pub(crate) fn shutdown(&self) {
        self.lines.shutdown();
    }
}

#[pinned_drop]
impl<C: Controller> PinnedDrop for Irq<C> {
    fn drop(self: Pin<&mut Self>) {
        self.lines.shutdown();
    }
}
