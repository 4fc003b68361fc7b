// SPDX-License-Identifier: GPL-2.0

//! The commands (5.3). Names of errors are those of 5.3's tables of command errors.

use super::{
    map::{Event, Target},
    queue::WORK_PER_CALL,
    tables::{entry_address, event_address, field, low16, write_entry},
    Its, Lpis, MapError, Memory,
};
use crate::host::grow_vec::NoMemory;

/// EventIDs have at most so many bits: GITS_TYPER.ID_bits.
pub(super) const MAX_EVENT_BITS: u8 = 16;

/// Why a command is not carried out.
pub(super) enum Refusal {
    /// It is the guest's error.
    Invalid(&'static str),
    NoMemory,
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Mapd {
        device: u32,
        bits: u8,
        itt: u64,
        valid: bool,
    },
    Mapc {
        icid: u16,
        rdbase: u64,
        valid: bool,
    },
    /// And MAPI, of which the INTID is the EventID
    Mapti {
        device: u32,
        event: u32,
        intid: u32,
        icid: u16,
    },
    Movi {
        device: u32,
        event: u32,
        icid: u16,
    },
    Movall {
        from: u64,
        to: u64,
    },
    Discard {
        device: u32,
        event: u32,
    },
    Clear {
        device: u32,
        event: u32,
    },
    Int {
        device: u32,
        event: u32,
    },
    Inv {
        device: u32,
        event: u32,
    },
    Invall {
        icid: u16,
    },
    Sync,
}

impl Command {
    /// `None`: there is no such command here.
    pub(super) fn decode([w0, w1, w2, w3]: [u64; 4]) -> Option<Self> {
        let halves = |w: u64| {
            let [a, b, c, d, e, f, g, h] = w.to_le_bytes();
            (
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            )
        };
        let (_, device) = halves(w0);
        let (event, intid) = halves(w1);
        let icid = low16(w2);
        let valid = w2 >> 63 != 0;
        // Bits 51:16, with PTA 0 a processor number
        let rdbase = |w: u64| field(w, 16, 36);
        Some(match field(w0, 0, 8) {
            0x01 => Self::Movi {
                device,
                event,
                icid,
            },
            0x03 => Self::Int { device, event },
            0x04 => Self::Clear { device, event },
            0x05 => Self::Sync,
            0x08 => {
                let [bits, ..] = field(w1, 0, 5).to_le_bytes();
                Self::Mapd {
                    device,
                    bits: bits + 1,
                    itt: field(w2, 8, 44) << 8,
                    valid,
                }
            }
            0x09 => Self::Mapc {
                icid,
                rdbase: rdbase(w2),
                valid,
            },
            0x0a => Self::Mapti {
                device,
                event,
                intid,
                icid,
            },
            0x0b => Self::Mapti {
                device,
                event,
                intid: event,
                icid,
            },
            0x0c => Self::Inv { device, event },
            0x0d => Self::Invall { icid },
            0x0e => Self::Movall {
                from: rdbase(w2),
                to: rdbase(w3),
            },
            0x0f => Self::Discard { device, event },
            _ => return None,
        })
    }
}

/// The vCPU with this processor number.
fn target(lpis: &impl Lpis, rdbase: u64) -> Option<Target> {
    let processor = u32::try_from(rdbase).ok()?;
    let vcpu = lpis.vcpu(processor)?;
    Some(Target { processor, vcpu })
}

impl Its {
    /// Carries out a command, and adds to `work` what it costs besides a command's fixed price.
    pub(super) fn execute(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        command: Command,
        work: &mut u32,
    ) -> Result<(), Refusal> {
        // Upon failure the whole price is paid, too.
        *work = work.saturating_add(self.cost(&command));
        match command {
            Command::Mapd {
                device,
                bits,
                itt,
                valid,
            } => self.mapd(mem, lpis, device, valid.then_some((bits, itt))),
            Command::Mapc {
                icid,
                rdbase,
                valid,
            } => self.mapc(mem, lpis, icid, valid.then_some(rdbase)),
            Command::Mapti {
                device,
                event,
                intid,
                icid,
            } => self.mapti(mem, lpis, (device, event), intid, icid),
            Command::Movi {
                device,
                event,
                icid,
            } => self.movi(lpis, device, event, icid),
            Command::Movall { from, to } => movall(lpis, from, to),
            Command::Discard { device, event } => self.discard(mem, lpis, device, event),
            Command::Clear { device, event } => {
                let event = self.map.event(device, event).ok_or(Refusal::Invalid(
                    "CLEAR_UNMAPPED_INTERRUPT: the event is not mapped",
                ))?;
                lpis.clear_pending(event.intid());
                Ok(())
            }
            Command::Int { device, event } => {
                let lpi = self.translate(device, event).ok_or(Refusal::Invalid(
                    "INT_UNMAPPED_INTERRUPT: the event or its collection is not mapped",
                ))?;
                Ok(lpis.set_pending(lpi.intid, lpi.vcpu)?)
            }
            Command::Inv { device, event } => self.inv(mem, lpis, device, event),
            Command::Invall { icid } => {
                let target = self.map.target(icid).ok_or(Refusal::Invalid(
                    "INVALL_UNMAPPED_COLLECTION: the collection is not mapped",
                ))?;
                Ok(lpis.invalidate_all(target.vcpu)?)
            }
            // What a command does is seen when the next begins.
            Command::Sync => Ok(()),
        }
    }

    /// What a command may have to look at and to move: events; entries of arrays, by their size.
    fn cost(&self, command: &Command) -> u32 {
        let entries = |n: usize, a_unit: usize| u32::try_from(n / a_unit).unwrap_or(u32::MAX);
        let events = |device: u32| self.map.device(device).map_or(0, |d| d.events().len());
        match *command {
            Command::Mapd { device, .. } => {
                entries(self.map.devices().len(), 8).saturating_add(entries(events(device), 1))
            }
            Command::Mapc { icid, .. } if self.map.has_events(icid) => self.map.event_count(),
            Command::Mapc { .. } => entries(self.map.collections().len(), 16),
            Command::Mapti { device, .. } => entries(self.map.collections().len(), 16)
                .saturating_add(entries(events(device), 64)),
            Command::Discard { device, .. } => entries(events(device), 64),
            // All LPIs of the VM
            Command::Movall { .. } | Command::Invall { .. } => WORK_PER_CALL,
            _ => 0,
        }
    }

    /// Maps a device, or unmaps it (`None`). Its events are unmapped in any case.
    fn mapd(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        table: Option<(u8, u64)>,
    ) -> Result<(), Refusal> {
        const OUT_OF_RANGE: Refusal =
            Refusal::Invalid("MAPD_DEVICE_OOR: the device table has no entry for the DeviceID");
        let Some(entry) = entry_address(mem, self.devices, device) else {
            return Err(OUT_OF_RANGE);
        };
        let id = u16::try_from(device).map_err(|_| OUT_OF_RANGE)?;
        if table.is_some_and(|(bits, _)| bits > MAX_EVENT_BITS) {
            return Err(Refusal::Invalid(
                "MAPD_ITTSIZE_OOR: EventIDs with more than 16 bits",
            ));
        }
        self.map
            .remove_device(device, |event| lpis.unmap(event.intid()));
        match table {
            Some((bits, itt)) => Ok(self.map.add_device(id, bits, itt)?),
            // What was saved there must not come back when it is restored.
            None => write_entry(mem, entry, 0)
                .map_err(|_| Refusal::Invalid("the device table cannot be written")),
        }
    }

    /// Maps a collection to a redistributor, or unmaps it (`None`). Events keep their collection:
    /// they are delivered again once it is mapped again.
    fn mapc(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        icid: u16,
        rdbase: Option<u64>,
    ) -> Result<(), Refusal> {
        let Some(rdbase) = rdbase else {
            if self.map.has_events(icid) {
                for event in self.map.events_of(icid) {
                    lpis.detach(event.intid())?;
                }
            }
            return Ok(self.map.set_target(icid, None)?);
        };
        let target = target(lpis, rdbase).ok_or(Refusal::Invalid(
            "MAPC_PROCNUM_OOR: there is no vCPU with this number",
        ))?;
        self.collection_fits(
            mem,
            icid,
            "MAPC_COLLECTION_OOR: the collection table has no entry for the ICID",
        )?;
        if self.map.has_events(icid) && self.map.target(icid) != Some(target) {
            for event in self.map.events_of(icid) {
                lpis.move_to(event.intid(), target.vcpu)?;
            }
        }
        Ok(self.map.set_target(icid, Some(target))?)
    }

    /// There is, or can be, a collection of this id.
    fn collection_fits(
        &self,
        mem: &impl Memory,
        icid: u16,
        reason: &'static str,
    ) -> Result<(), Refusal> {
        let known = self.map.collection(icid).is_some();
        if known || entry_address(mem, self.collections, icid.into()).is_some() {
            Ok(())
        } else {
            Err(Refusal::Invalid(reason))
        }
    }

    /// Maps an event to an LPI in a collection, which need not be mapped yet.
    fn mapti(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        (device, event): (u32, u32),
        intid: u32,
        icid: u16,
    ) -> Result<(), Refusal> {
        let Some(owner) = self.map.device(device) else {
            return Err(Refusal::Invalid(
                "MAPTI_UNMAPPED_DEVICE: the device is not mapped",
            ));
        };
        if event_address(mem, owner, event).is_none() {
            return Err(Refusal::Invalid(
                "MAPTI_ID_OOR: the device's table has no entry for the EventID",
            ));
        }
        const NO_LPI: Refusal =
            Refusal::Invalid("MAPTI_PHYSICALID_OOR: the INTID is not that of an LPI");
        if !lpis.config_table().contains(intid) {
            return Err(NO_LPI);
        }
        let id = u16::try_from(event).map_err(|_| NO_LPI)?;
        let new = Event::new(id, intid, icid).ok_or(NO_LPI)?;
        self.collection_fits(
            mem,
            icid,
            "MAPTI_COLLECTION_OOR: the collection table has no entry for the ICID",
        )?;
        // UNPREDICTABLE
        if self.map.event(device, event).is_some() {
            return Err(Refusal::Invalid("the event is mapped already"));
        }
        self.map_event(mem, lpis, device, new)
            .map_err(|error| match error {
                MapError::Taken => Refusal::Invalid("another event is mapped to the LPI"),
                MapError::Fault => Refusal::Invalid("the LPI's tables are not in memory"),
                MapError::NoMemory => Refusal::NoMemory,
            })
    }

    /// Moves an event to another collection, and its LPI to that one's redistributor.
    fn movi(
        &mut self,
        lpis: &mut impl Lpis,
        device: u32,
        event: u32,
        icid: u16,
    ) -> Result<(), Refusal> {
        let mapped = self.map.event(device, event).ok_or(Refusal::Invalid(
            "MOVI_UNMAPPED_INTERRUPT: the event is not mapped",
        ))?;
        const UNMAPPED: Refusal =
            Refusal::Invalid("MOVI_UNMAPPED_COLLECTION: a collection is not mapped");
        self.map.target(mapped.icid).ok_or(UNMAPPED)?;
        let target = self.map.target(icid).ok_or(UNMAPPED)?;
        lpis.move_to(mapped.intid(), target.vcpu)?;
        self.map.move_event(device, event, icid);
        Ok(())
    }

    /// Unmaps an event. Its LPI is not pending any more.
    fn discard(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        event: u32,
    ) -> Result<(), Refusal> {
        let removed = self
            .map
            .remove_event(device, event)
            .ok_or(Refusal::Invalid(
                "DISCARD_UNMAPPED_INTERRUPT: the event is not mapped",
            ))?;
        lpis.unmap(removed.intid());
        // What was saved there must not come back when it is restored.
        let entry = self
            .map
            .device(device)
            .and_then(|owner| event_address(mem, owner, event));
        match entry.map(|gpa| write_entry(mem, gpa, 0)) {
            Some(Ok(())) => Ok(()),
            _ => Err(Refusal::Invalid("the device's table cannot be written")),
        }
    }

    /// Reads an LPI's configuration anew.
    fn inv(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        event: u32,
    ) -> Result<(), Refusal> {
        let event = self.map.event(device, event).ok_or(Refusal::Invalid(
            "INV_UNMAPPED_INTERRUPT: the event is not mapped",
        ))?;
        let config = lpis
            .config_table()
            .read(mem, event.intid())
            .map_err(|_| Refusal::Invalid("the LPI's configuration is not in memory"))?;
        Ok(lpis.configure(event.intid(), config)?)
    }
}

/// Moves all LPIs from one redistributor to another. (Collections stay: to map them is for MAPC.)
fn movall(lpis: &mut impl Lpis, from: u64, to: u64) -> Result<(), Refusal> {
    let (Some(from), Some(to)) = (target(lpis, from), target(lpis, to)) else {
        return Err(Refusal::Invalid(
            "MOVALL_PROCNUM_OOR: there is no vCPU with this number",
        ));
    };
    if from.vcpu != to.vcpu {
        lpis.move_all(from.vcpu, to.vcpu)?;
    }
    Ok(())
}
