// SPDX-License-Identifier: GPL-2.0

//! Saving what is mapped to the guest's tables, and restoring it: revision 0 of KVM's ABI
//! (Documentation/virt/kvm/devices/arm-vgic-its.rst).
//!
//! What is restored the guest may have written. Ids only ever increase, up to the end of a table,
//! so nothing loops; what is not within the bounds that commands keep to is refused. The time it
//! takes is that of reading the tables that the guest has set up, at most a table of 65536 events
//! for each of 65536 devices: [`Memory`] is where the shell yields, and where it gives up when user
//! space is killed.

use super::{
    command::MAX_EVENT_BITS,
    map::{Event, Target},
    regs::ENTRY_SIZE,
    tables::{
        entry_address, event_address, ids, read_entry, write_entry, Cte, Dte, Ite, PAGE_ENTRIES,
    },
    Error, Fault, Its, Lpis, MapError, Memory,
};

impl Its {
    /// KVM_DEV_ARM_ITS_SAVE_TABLES. A table that there is not is not written; a device that the
    /// device table has no entry for any more is left out, as the guest may have done that at any
    /// time.
    pub fn save(&self, mem: &impl Memory) -> Result<(), Error> {
        if self.devices.valid() {
            self.save_devices(mem)?;
        }
        if self.collections.valid() {
            self.save_collections(mem)?;
        }
        Ok(())
    }

    fn save_devices(&self, mem: &impl Memory) -> Result<(), Fault> {
        // From the last on, as each entry says where the next is.
        let mut next = None;
        for device in self.map.devices().iter().rev() {
            let id = u32::from(device.id);
            let Some(gpa) = entry_address(mem, self.devices, id) else {
                continue;
            };
            save_events(mem, device.itt, device.events())?;
            let entry = Dte {
                next: next.map_or(0, |n: u32| n.saturating_sub(id)),
                itt: device.itt,
                event_bits: device.event_bits,
            };
            write_entry(mem, gpa, entry.encode())?;
            next = Some(id);
        }
        Ok(())
    }

    /// In no particular order, with an invalid entry behind the last, if there is room.
    fn save_collections(&self, mem: &impl Memory) -> Result<(), Fault> {
        let mut places =
            (0..ids(self.collections)).map(|i| self.collections.address() + i * ENTRY_SIZE);
        for (collection, gpa) in self.map.collections().iter().zip(&mut places) {
            let entry = Cte {
                icid: collection.icid,
                rdbase: collection
                    .target
                    .map_or(Cte::NOT_MAPPED, |t| t.processor.into()),
            };
            write_entry(mem, gpa, entry.encode())?;
        }
        match places.next() {
            Some(gpa) => write_entry(mem, gpa, 0),
            None => Ok(()),
        }
    }

    /// KVM_DEV_ARM_ITS_RESTORE_TABLES. What was mapped before is unmapped; upon an error nothing is
    /// mapped.
    pub fn restore(&mut self, mem: &impl Memory, lpis: &mut impl Lpis) -> Result<(), Error> {
        self.forget_all(lpis);
        let done = self
            .restore_collections(mem, lpis)
            .and_then(|()| self.restore_devices(mem, lpis));
        if done.is_err() {
            self.forget_all(lpis);
        }
        done
    }

    fn restore_collections(&mut self, mem: &impl Memory, lpis: &impl Lpis) -> Result<(), Error> {
        if !self.collections.valid() {
            return Ok(());
        }
        for i in 0..ids(self.collections) {
            let gpa = self.collections.address() + i * ENTRY_SIZE;
            let Some(entry) = Cte::decode(read_entry(mem, gpa)?) else {
                break;
            };
            let target = match entry.rdbase {
                Cte::NOT_MAPPED => None,
                rdbase => {
                    let processor = u32::try_from(rdbase).map_err(|_| Error::Invalid)?;
                    let vcpu = lpis.vcpu(processor).ok_or(Error::Invalid)?;
                    Some(Target { processor, vcpu })
                }
            };
            let twice = self.map.collection(entry.icid).is_some();
            if twice || entry_address(mem, self.collections, entry.icid.into()).is_none() {
                return Err(Error::Invalid);
            }
            match target {
                Some(_) => self.map.set_target(entry.icid, target)?,
                None => self.map.add_unmapped(entry.icid)?,
            }
        }
        Ok(())
    }

    fn restore_devices(&mut self, mem: &impl Memory, lpis: &mut impl Lpis) -> Result<(), Error> {
        if !self.devices.valid() {
            return Ok(());
        }
        let limit = ids(self.devices);
        let mut id = 0_u64;
        while id < limit {
            let device = u32::try_from(id).map_err(|_| Error::Invalid)?;
            let Some(gpa) = entry_address(mem, self.devices, device) else {
                if !self.devices.indirect() {
                    return Err(Error::Fault);
                }
                // A page of the table that there is not.
                id = (id / PAGE_ENTRIES + 1) * PAGE_ENTRIES;
                continue;
            };
            let Some(entry) = Dte::decode(read_entry(mem, gpa)?) else {
                id += 1;
                continue;
            };
            self.restore_device(mem, lpis, device, entry)?;
            if entry.next == 0 {
                break;
            }
            id += u64::from(entry.next);
        }
        Ok(())
    }

    fn restore_device(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        entry: Dte,
    ) -> Result<(), Error> {
        if entry.event_bits > MAX_EVENT_BITS {
            return Err(Error::Invalid);
        }
        let id = u16::try_from(device).map_err(|_| Error::Invalid)?;
        self.map.add_device(id, entry.event_bits, entry.itt)?;
        let limit = 1_u32 << entry.event_bits;
        let mut window = Window::new();
        let mut event = 0_u32;
        while event < limit {
            let gpa = entry
                .itt
                .checked_add(u64::from(event) * ENTRY_SIZE)
                .ok_or(Error::Fault)?;
            let Some(ite) = Ite::decode(window.entry(mem, gpa)?) else {
                event += 1;
                continue;
            };
            self.restore_event(mem, lpis, device, event, ite)?;
            if ite.next == 0 {
                break;
            }
            event += u32::from(ite.next);
            if event >= limit {
                return Err(Error::Invalid);
            }
        }
        Ok(())
    }

    fn restore_event(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        event: u32,
        entry: Ite,
    ) -> Result<(), Error> {
        let id = u16::try_from(event).map_err(|_| Error::Invalid)?;
        let new = Event::new(id, entry.intid, entry.icid).ok_or(Error::Invalid)?;
        let fits = self
            .map
            .device(device)
            .is_some_and(|owner| event_address(mem, owner, event).is_some());
        if !fits || self.map.collection(entry.icid).is_none() {
            return Err(Error::Invalid);
        }
        match self.map_event(mem, lpis, device, new) {
            // As MAPTI: the first one has it.
            Ok(()) | Err(MapError::Taken) => Ok(()),
            Err(MapError::Fault) => Err(Error::Fault),
            Err(MapError::NoMemory) => Err(Error::NoMemory),
        }
    }
}

/// Saves a device's events.
fn save_events(mem: &impl Memory, itt: u64, events: &[Event]) -> Result<(), Fault> {
    let mut next = None;
    for event in events.iter().rev() {
        let entry = Ite {
            next: next.map_or(0, |n: u16| n.saturating_sub(event.id)),
            intid: event.intid(),
            icid: event.icid,
        };
        let gpa = itt
            .checked_add(u64::from(event.id) * ENTRY_SIZE)
            .ok_or(Fault)?;
        write_entry(mem, gpa, entry.encode())?;
        next = Some(event.id);
    }
    Ok(())
}

/// Reads entries of a table one after the other, 256 bytes at a time: tables are aligned to that,
/// and it is within a page.
struct Window {
    base: Option<u64>,
    bytes: [u8; Self::SIZE],
}

impl Window {
    const SIZE: usize = 256;

    fn new() -> Self {
        Self {
            base: None,
            bytes: [0; Self::SIZE],
        }
    }

    fn entry(&mut self, mem: &impl Memory, gpa: u64) -> Result<u64, Fault> {
        let [offset, ..] = gpa.to_le_bytes();
        let base = gpa & !0xff;
        if self.base != Some(base) {
            self.base = None;
            mem.read(base, &mut self.bytes)?;
            self.base = Some(base);
        }
        let offset = usize::from(offset);
        let bytes = self.bytes.get(offset..).and_then(|b| b.first_chunk());
        bytes.map(|b| u64::from_le_bytes(*b)).ok_or(Fault)
    }
}
