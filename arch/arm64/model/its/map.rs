// SPDX-License-Identifier: GPL-2.0

//! What is mapped: sorted arrays, so that a lookup is a few binary searches and allocates nothing.

use super::FIRST_LPI;
use crate::host::grow_vec::{GrowVec, NoMemory};

/// An event of a device (5.2: an interrupt translation entry).
///
/// # Invariants
///
/// `lpi` is an LPI's INTID: [`FIRST_LPI`] or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: u16,
    lpi: u16,
    pub(super) icid: u16,
}

impl Event {
    /// `None` if that is no INTID of an LPI with 16 bits.
    pub(super) fn new(id: u16, intid: u32, icid: u16) -> Option<Self> {
        let lpi = u16::try_from(intid).ok()?;
        (intid >= FIRST_LPI).then_some(Self { id, lpi, icid })
    }

    #[inline]
    pub(super) fn intid(&self) -> u32 {
        u32::from(self.lpi)
    }
}

/// A mapped device.
pub(super) struct Device {
    pub(super) id: u16,
    /// Its EventIDs have so many bits: 1 to 16
    pub(super) event_bits: u8,
    /// Where its interrupt translation table is
    pub(super) itt: u64,
    /// Sorted by `id`
    events: GrowVec<Event>,
}

impl Device {
    /// Its mapped events, sorted.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// EventIDs are below this.
    pub(super) fn event_limit(&self) -> u32 {
        1_u32.checked_shl(u32::from(self.event_bits)).unwrap_or(0)
    }

    fn find(&self, event: u16) -> Result<usize, usize> {
        self.events.binary_search_by_key(&event, |e| e.id)
    }
}

/// Where a collection's interrupts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// GICR_TYPER.Processor_Number
    pub(super) processor: u32,
    /// The vCPU's index
    pub(super) vcpu: u32,
}

/// A collection that is mapped, or that events refer to.
pub(super) struct Collection {
    pub(super) icid: u16,
    /// So many events refer to it.
    events: u32,
    /// `None`: not mapped
    pub(super) target: Option<Target>,
}

/// Devices, their events, collections.
///
/// # Invariants
///
/// - Each array is sorted by id, and no id is in it twice.
/// - A collection's `events` is how many there are of it, and there is a collection for each event.
/// - `events` is how many there are.
pub(super) struct Map {
    devices: GrowVec<Device>,
    collections: GrowVec<Collection>,
    events: u32,
}

impl Map {
    pub(super) fn new() -> Self {
        Self {
            devices: GrowVec::new(),
            collections: GrowVec::new(),
            events: 0,
        }
    }

    /// How many events are mapped.
    pub(super) fn event_count(&self) -> u32 {
        self.events
    }

    /// Sorted by id.
    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Sorted by id.
    pub(super) fn collections(&self) -> &[Collection] {
        &self.collections
    }

    fn find_device(&self, id: u32) -> Option<usize> {
        let id = u16::try_from(id).ok()?;
        self.devices.binary_search_by_key(&id, |d| d.id).ok()
    }

    #[inline]
    pub(super) fn device(&self, id: u32) -> Option<&Device> {
        self.devices.get(self.find_device(id)?)
    }

    fn device_mut(&mut self, id: u32) -> Option<&mut Device> {
        let at = self.find_device(id)?;
        self.devices.get_mut(at)
    }

    #[inline]
    pub(super) fn event(&self, device: u32, event: u32) -> Option<Event> {
        let device = self.device(device)?;
        let at = device.find(u16::try_from(event).ok()?).ok()?;
        device.events.get(at).copied()
    }

    fn find_collection(&self, icid: u16) -> Result<usize, usize> {
        self.collections.binary_search_by_key(&icid, |c| c.icid)
    }

    pub(super) fn collection(&self, icid: u16) -> Option<&Collection> {
        self.collections.get(self.find_collection(icid).ok()?)
    }

    fn collection_mut(&mut self, icid: u16) -> Option<&mut Collection> {
        let at = self.find_collection(icid).ok()?;
        self.collections.get_mut(at)
    }

    /// Where the collection's interrupts go, if it is mapped.
    #[inline]
    pub(super) fn target(&self, icid: u16) -> Option<Target> {
        self.collection(icid)?.target
    }

    /// Maps a device without events, that must not be mapped.
    pub(super) fn add_device(&mut self, id: u16, event_bits: u8, itt: u64) -> Result<(), NoMemory> {
        let Err(at) = self.devices.binary_search_by_key(&id, |d| d.id) else {
            return Ok(());
        };
        self.devices.reserve_one()?;
        let device = Device {
            id,
            event_bits,
            itt,
            events: GrowVec::new(),
        };
        self.devices.insert(at, device)
    }

    /// Unmaps a device with all its events, and calls `f` for each.
    pub(super) fn remove_device(&mut self, id: u32, mut f: impl FnMut(Event)) {
        let device = self.find_device(id).and_then(|at| self.devices.remove(at));
        for event in device.iter().flat_map(|d| d.events.iter()) {
            f(*event);
            self.release(event.icid);
        }
    }

    /// Makes room for an event, and a collection for it, that [`Self::forget_unused`] takes back.
    pub(super) fn reserve_event(&mut self, device: u32, event: Event) -> Result<(), NoMemory> {
        if let Some(device) = self.device_mut(device) {
            device.events.reserve_one()?;
        }
        self.ensure_collection(event.icid)
    }

    /// Adds an event of a mapped device, that must not be mapped and for which there is room.
    pub(super) fn insert_event(&mut self, device: u32, event: Event) -> Result<(), NoMemory> {
        if let Some(device) = self.device_mut(device) {
            if let Err(at) = device.find(event.id) {
                device.events.insert(at, event)?;
                self.hold(event.icid);
            }
        }
        Ok(())
    }

    pub(super) fn remove_event(&mut self, device: u32, event: u32) -> Option<Event> {
        let device = self.device_mut(device)?;
        let at = device.find(u16::try_from(event).ok()?).ok()?;
        let event = device.events.remove(at)?;
        self.release(event.icid);
        Some(event)
    }

    /// Moves an event to another collection, that there must be.
    pub(super) fn move_event(&mut self, device: u32, event: u32, icid: u16) {
        let Some(device) = self.device_mut(device) else {
            return;
        };
        let at = u16::try_from(event).ok().and_then(|e| device.find(e).ok());
        let Some(event) = at.and_then(|at| device.events.get_mut(at)) else {
            return;
        };
        let old = core::mem::replace(&mut event.icid, icid);
        self.hold(icid);
        self.release(old);
    }

    /// Calls `f` for each event.
    pub(super) fn each_event(&self, mut f: impl FnMut(&Event)) {
        for event in self.devices.iter().flat_map(|d| d.events.iter()) {
            f(event);
        }
    }

    /// The events of a collection.
    pub(super) fn events_of(&self, icid: u16) -> impl Iterator<Item = &Event> {
        self.devices
            .iter()
            .flat_map(|d| d.events.iter())
            .filter(move |e| e.icid == icid)
    }

    /// Events refer to the collection.
    pub(super) fn has_events(&self, icid: u16) -> bool {
        self.collection(icid).is_some_and(|c| c.events > 0)
    }

    fn ensure_collection(&mut self, icid: u16) -> Result<(), NoMemory> {
        let Err(at) = self.find_collection(icid) else {
            return Ok(());
        };
        self.collections.reserve_one()?;
        let collection = Collection {
            icid,
            events: 0,
            target: None,
        };
        self.collections.insert(at, collection)
    }

    /// Maps a collection, or unmaps it: then it stays only for the events that refer to it.
    pub(super) fn set_target(&mut self, icid: u16, target: Option<Target>) -> Result<(), NoMemory> {
        if target.is_some() {
            self.ensure_collection(icid)?;
        }
        if let Some(collection) = self.collection_mut(icid) {
            collection.target = target;
        }
        self.forget_unused(icid);
        Ok(())
    }

    /// Adds a collection that is not mapped, for events to come.
    pub(super) fn add_unmapped(&mut self, icid: u16) -> Result<(), NoMemory> {
        self.ensure_collection(icid)
    }

    /// Drops what is not mapped and has no events.
    pub(super) fn forget_unused(&mut self, icid: u16) {
        if let Ok(at) = self.find_collection(icid) {
            let unused = |c: &Collection| c.events == 0 && c.target.is_none();
            if self.collections.get(at).is_some_and(unused) {
                self.collections.remove(at);
            }
        }
    }

    /// Drops all devices and their events; collections stay.
    pub(super) fn clear_devices(&mut self) {
        self.devices = GrowVec::new();
        for collection in self.collections.iter_mut() {
            collection.events = 0;
        }
        self.events = 0;
    }

    /// Drops all collections and all events; devices stay.
    pub(super) fn clear_collections(&mut self) {
        for device in self.devices.iter_mut() {
            device.events = GrowVec::new();
        }
        self.collections = GrowVec::new();
        self.events = 0;
    }

    /// Counts one more event.
    fn hold(&mut self, icid: u16) {
        self.events = self.events.saturating_add(1);
        if let Some(collection) = self.collection_mut(icid) {
            collection.events = collection.events.saturating_add(1);
        }
    }

    /// Counts one event less.
    fn release(&mut self, icid: u16) {
        self.events = self.events.saturating_sub(1);
        if let Some(collection) = self.collection_mut(icid) {
            collection.events = collection.events.saturating_sub(1);
        }
        self.forget_unused(icid);
    }
}
