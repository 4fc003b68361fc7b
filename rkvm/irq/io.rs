// SPDX-License-Identifier: GPL-2.0

//! Writes of the guest that end in the kernel: ioeventfd and coalesced I/O.

use kernel::{
    alloc::KVVec,
    new_mutex, new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        barrier::{smp_mb, Write},
        Arc, Mutex, SpinLock,
    },
};

use super::{
    bus::{self, Event, Key, Space, Span, Zone},
    coalesced::{self, Ring},
};
use crate::{
    bindings,
    host::{
        eventfd::EventFd,
        run_page::SharedPage,
        srcu_cell::{SrcuCell, SrcuRef},
        trace::refuse,
    },
};

const RING: Ring = Ring::new(PAGE_SIZE);

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Written {
    /// It is done.
    Handled,
    /// Nothing in the kernel wants it, or the ring is full: user space has to see it.
    Unhandled,
}

/// What is registered in one address space.
struct Lane {
    span: Span,
    events: KVVec<Event<Arc<EventFd>>>,
    zones: KVVec<Zone>,
}

impl Lane {
    const EMPTY: Self = Self {
        span: Span::EMPTY,
        events: KVVec::new(),
        zones: KVVec::new(),
    };

    /// A copy with room for one event and one zone more.
    fn try_clone(&self) -> Result<Self> {
        let mut events = KVVec::with_capacity(self.events.len() + 1, GFP_KERNEL_ACCOUNT)?;
        for event in &self.events {
            events.push(event.clone(), GFP_KERNEL_ACCOUNT)?;
        }
        let mut zones = KVVec::with_capacity(self.zones.len() + 1, GFP_KERNEL_ACCOUNT)?;
        zones.extend_from_slice(&self.zones, GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            span: self.span,
            events,
            zones,
        })
    }
}

/// One version of everything that is registered.
struct Map {
    mmio: Lane,
    pio: Lane,
}

impl Map {
    #[inline]
    fn lane(&self, space: Space) -> &Lane {
        match space {
            Space::Mmio => &self.mmio,
            Space::Pio => &self.pio,
        }
    }
}

/// The I/O bus of one VM.
///
/// Lookups are lock-free on a version that does not change; registering copies it.
#[pin_data]
pub(crate) struct Io {
    #[pin]
    map: SrcuCell<Map>,
    /// Held while `map` is replaced.
    #[pin]
    writer: Mutex<()>,
    page: SharedPage,
    /// Held while an entry is put into the ring in `page`.
    #[pin]
    ring: SpinLock<()>,
}

impl Io {
    pub(super) fn new() -> Result<impl PinInit<Self, Error>> {
        let map = Map {
            mmio: Lane::EMPTY,
            pio: Lane::EMPTY,
        };
        let map = KBox::new(map, GFP_KERNEL_ACCOUNT)?;
        let page = SharedPage::new()?;
        Ok(try_pin_init!(Self {
            map <- SrcuCell::new(map),
            writer <- new_mutex!((), "rkvm::irq::Io::writer"),
            page,
            ring <- new_spinlock!((), "rkvm::irq::Io::ring"),
        }))
    }

    /// The page of coalesced writes.
    pub(crate) fn coalesced_page(&self) -> &SharedPage {
        &self.page
    }

    /// Opens a read section on the bus, for one write or many. Registering waits for its end.
    ///
    /// Any context but NMI.
    #[inline]
    pub(crate) fn bus(&self) -> Bus<'_> {
        Bus {
            map: self.map.read(),
            io: self,
        }
    }

    /// Replaces the lane of `space` by what `change` makes of it.
    fn change(&self, space: Space, change: impl FnOnce(&mut Lane) -> Result) -> Result {
        let _writer = self.writer.lock();
        let mut map = {
            let map = self.map.read();
            KBox::new(
                Map {
                    mmio: map.mmio.try_clone()?,
                    pio: map.pio.try_clone()?,
                },
                GFP_KERNEL_ACCOUNT,
            )?
        };
        let lane = match space {
            Space::Mmio => &mut map.mmio,
            Space::Pio => &mut map.pio,
        };
        change(lane)?;
        lane.span = Span::of(&lane.events, &lane.zones);
        let _old = self.map.replace(map);
        Ok(())
    }

    /// `KVM_IOEVENTFD`: assigns or deassigns.
    ///
    /// `EINVAL`: flags, length, or range (assign); `EBADF` or `EINVAL`: no eventfd; `EEXIST`: a write
    /// would be for two events; `ENOENT`: nothing to deassign; `ENOMEM`. When deassign returns, the
    /// guest's writes no longer signal the eventfd.
    pub(crate) fn ioeventfd(&self, args: &bindings::kvm_ioeventfd) -> Result {
        if args.flags & bus::FLAG_DEASSIGN != 0 {
            let eventfd = eventfd(args.fd)?;
            let absent = || refuse(ENOENT, c"no such ioeventfd");
            let (space, key) =
                Key::named(args.flags, args.addr, args.len, args.datamatch).ok_or_else(absent)?;
            return self.change(space, |lane| {
                let is_it = |e: &Event<Arc<EventFd>>| e.key == key && e.signal.same(&eventfd);
                let at = lane.events.iter().position(is_it).ok_or_else(absent)?;
                lane.events.remove(at).map_err(|_| absent())?;
                Ok(())
            });
        }

        let (space, key) = Key::checked(args.flags, args.addr, args.len, args.datamatch)?;
        let signal = Arc::new(eventfd(args.fd)?, GFP_KERNEL_ACCOUNT)?;
        self.change(space, |lane| {
            let at = bus::place(&lane.events, &key)
                .ok_or_else(|| refuse(EEXIST, c"a write would be for two ioeventfds"))?;
            lane.events
                .insert_within_capacity(at, Event { key, signal })
                .map_err(|_| ENOMEM)
        })
    }

    /// `KVM_REGISTER_COALESCED_MMIO`: writes that lie in `[addr, addr + size)` go to the ring. `pio` is
    /// 0 or 1, else `EINVAL`. `ENOSPC`: too many zones; `ENOMEM`.
    pub(crate) fn register_zone(&self, addr: u64, size: u32, pio: u32) -> Result {
        let zone = Zone { addr, size };
        self.change(Zone::space(pio)?, |lane| {
            let at = zone
                .place(&lane.zones)
                .ok_or_else(|| refuse(ENOSPC, c"too many coalesced zones"))?;
            lane.zones
                .insert_within_capacity(at, zone)
                .map_err(|_| ENOMEM)
        })
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO`: forgets all zones that contain `[addr, addr + size)`, if any.
    /// `EINVAL` as above; `ENOMEM`.
    pub(crate) fn unregister_zone(&self, addr: u64, size: u32, pio: u32) -> Result {
        self.change(Zone::space(pio)?, |lane| {
            lane.zones.retain(|z| !z.contains(addr, u64::from(size)));
            Ok(())
        })
    }

    /// Puts a write into the ring.
    fn coalesce(&self, space: Space, addr: u64, data: &[u8]) -> Option<()> {
        let entry = coalesced::entry(space == Space::Pio, addr, data)?;
        let _ring = self.ring.lock();
        let first = self.page.read(coalesced::FIRST);
        let slot = RING.next(first, self.page.read(coalesced::LAST))?;
        for (at, word) in slot.words().zip(entry) {
            self.page.write(at, word);
        }
        // User space reads `last`, then the entry.
        smp_mb(Write);
        self.page.write(coalesced::LAST, slot.next);
        Some(())
    }
}

fn eventfd(fd: i32) -> Result<EventFd> {
    // A negative one is no descriptor either.
    EventFd::get(u32::try_from(fd).unwrap_or(u32::MAX))
}

/// A read section on the I/O bus. See [`Io::bus`].
pub(crate) struct Bus<'a> {
    map: SrcuRef<'a, Map>,
    io: &'a Io,
}

impl Bus<'_> {
    /// A guest's write of `data` (in the order of memory, 1 to 8 bytes) to `addr`.
    ///
    /// Any context that may signal an eventfd, with interrupts off too; not hard interrupts.
    #[inline]
    pub(crate) fn write(&self, space: Space, addr: u64, data: &[u8]) -> Written {
        let lane = self.map.lane(space);
        if !lane.span.covers(addr) {
            return Written::Unhandled;
        }
        match bus::find(&lane.events, addr, data) {
            Some(event) => {
                event.signal.signal();
                Written::Handled
            }
            None => self.write_zone(lane, space, addr, data),
        }
    }

    /// A write that no event is for.
    #[inline(never)]
    fn write_zone(&self, lane: &Lane, space: Space, addr: u64, data: &[u8]) -> Written {
        let in_zone =
            u64::try_from(data.len()).is_ok_and(|len| bus::in_zone(&lane.zones, addr, len));
        if in_zone && self.io.coalesce(space, addr, data).is_some() {
            Written::Handled
        } else {
            Written::Unhandled
        }
    }
}
