// SPDX-License-Identifier: GPL-2.0

//! The interrupt translation service of a GICv3: a pure state machine.
//!
//! An [`Its`] turns a device's message (DeviceID, EventID) into an LPI of a vCPU. The guest maps
//! these by commands that it queues in its memory; what they map is kept here, in sorted arrays,
//! and reaches the guest's own tables only when user space saves them.
//!
//! The shell holds a lock around each call. It brings guest memory as [`Memory`] and the state of
//! the LPIs as [`Lpis`]; it calls [`Its::process`] when a register write says so ([`Effect`]), and
//! again as long as there is [`Progress::More`], letting go of its lock in between: so no guest
//! holds that for long, whatever it queues.
//!
//! What a guest can make the host allocate is bounded: there are no more collections and devices
//! than entries in its own tables, and than 16-bit ids ([`MAX_DEVICES`], [`MAX_COLLECTIONS`]); no
//! more events than LPIs of 16 bits ([`MAX_EVENTS`]), as an LPI is mapped by one event at most. All
//! in all less than 6 MiB.
//!
//! Sources: GIC architecture specification (IHI 0069), chapter 5 (the ITS), 12.18 and 12.19 (its
//! registers); the kernel's Documentation/virt/kvm/devices/arm-vgic-its.rst for user space's side.

mod access;
mod command;
mod lpi;
mod map;
mod queue;
pub mod regs;
mod save;
mod tables;

pub use lpi::{ConfigTable, LpiConfig, PendingTable};
pub use queue::{Progress, Refused, WORK_PER_CALL};

use crate::host::grow_vec::NoMemory;
use map::{Event, Map};
use regs::{Baser, Cbaser};

/// Size of the two frames: control registers, and the one with GITS_TRANSLATER (12.18).
pub const FRAMES_SIZE: u64 = 0x2_0000;
/// Alignment of the frames.
pub const FRAMES_ALIGN: u64 = 0x1_0000;
/// GITS_TRANSLATER, relative to the first frame: where devices write their EventID (12.19).
pub const TRANSLATER: u64 = 0x1_0040;

/// The lowest INTID of an LPI (2.2).
pub const FIRST_LPI: u32 = 8192;
/// INTIDs are below this: 16 bits, as GICD_TYPER.IDbits says beside an ITS.
pub const INTID_LIMIT: u32 = 1 << 16;
/// Devices that can be mapped at most: GITS_TYPER.Devbits.
pub const MAX_DEVICES: u32 = 1 << 16;
/// Collections that there can be at most: GITS_TYPER.CIL is 0.
pub const MAX_COLLECTIONS: u32 = 1 << 16;
/// Events that can be mapped at most: one an LPI.
pub const MAX_EVENTS: u32 = INTID_LIMIT - FIRST_LPI;

/// Guest memory cannot be accessed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Guest memory.
pub trait Memory {
    /// Reads all of `buf`.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault>;
    /// Writes all of `data`.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault>;
    /// There is memory at `gpa` that can be written.
    fn writable(&self, gpa: u64) -> bool;
}

/// The state of the LPIs and what the redistributors say. vCPUs are known by their index.
///
/// All ITSes of a VM share this. What an LPI's pending state and configuration are is the
/// implementation's; the ITS says which LPIs are mapped, and to which vCPU.
pub trait Lpis {
    /// The vCPU of this processor number (GICR_TYPER.Processor_Number), as GITS_TYPER.PTA is 0.
    fn vcpu(&self, processor: u32) -> Option<u32>;
    /// The LPI configuration table: GICR_PROPBASER, the same for all vCPUs.
    fn config_table(&self) -> ConfigTable;
    /// The vCPU's LPI pending table: GICR_PENDBASER. `None` while its LPIs are disabled, as the
    /// table is read when they are enabled.
    fn pending_table(&self, vcpu: u32) -> Option<PendingTable>;
    /// The event, by DeviceID and EventID, leads to this LPI, that targets `vcpu` (none yet, if its
    /// collection is not mapped). `false` if another event has it, of this ITS or another: nothing is
    /// changed then.
    fn map(&mut self, intid: u32, event: (u32, u32), vcpu: Option<u32>) -> Result<bool, NoMemory>;
    /// No event leads to this LPI any more; it is not pending either.
    fn unmap(&mut self, intid: u32);
    /// The LPI's configuration, read anew.
    fn configure(&mut self, intid: u32, config: LpiConfig) -> Result<(), NoMemory>;
    /// The LPI is pending on `vcpu`. Dropped if the vCPU's LPIs are disabled.
    fn set_pending(&mut self, intid: u32, vcpu: u32) -> Result<(), NoMemory>;
    /// The LPI is not pending.
    fn clear_pending(&mut self, intid: u32);
    /// The LPI targets `vcpu`; if it is pending it is pending there.
    fn move_to(&mut self, intid: u32, vcpu: u32) -> Result<(), NoMemory>;
    /// The LPI's collection is unmapped: it targets no vCPU until it is moved to one.
    fn detach(&mut self, intid: u32) -> Result<(), NoMemory>;
    /// All LPIs that target `from` target `to`, as by [`Lpis::move_to`].
    fn move_all(&mut self, from: u32, to: u32) -> Result<(), NoMemory>;
    /// Reads the configuration of all LPIs that target `vcpu` anew.
    fn invalidate_all(&mut self, vcpu: u32) -> Result<(), NoMemory>;
    /// A command was not carried out, and why. For a trace event.
    fn refused(&mut self, _refused: Refused) {}
}

/// What a register write wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for its commands"]
pub enum Effect {
    /// Nothing.
    None,
    /// Call [`Its::process`] until there is no more, before the writer goes on.
    Process,
}

/// Why an access of user space fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// EINVAL: a misaligned offset, a value out of range, or inconsistent tables
    Invalid,
    /// ENXIO: no such register, or the ITS has no address yet
    NoRegister,
    /// EBUSY: not while the ITS is enabled
    Busy,
    /// EFAULT: a table is not in guest memory
    Fault,
    /// ENOMEM
    NoMemory,
}

impl From<NoMemory> for Error {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<Fault> for Error {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// EEXIST: there is an address already
    Exists,
    /// EINVAL: not aligned to 64 KiB
    Misaligned,
    /// E2BIG: beyond the guest's physical addresses
    TooBig,
}

/// An LPI of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lpi {
    /// Its INTID
    pub intid: u32,
    /// The index of the vCPU that it targets
    pub vcpu: u32,
}

/// A virtual ITS.
///
/// # Invariants
///
/// - `creadr` and `cwriter` are multiples of a command's size, and less than the size of the queue.
/// - If `enabled`, `cbaser` and both `baser` are valid; they do not change then.
/// - What `map` holds has an entry in the tables of `devices` and `collections`, as far as these
///   have not changed in guest memory since.
pub struct Its {
    base: Option<u64>,
    enabled: bool,
    /// The queue could not be read: no command is handled until the guest says to retry.
    stalled: bool,
    cbaser: Cbaser,
    creadr: u32,
    cwriter: u32,
    /// GITS_BASER0
    devices: Baser,
    /// GITS_BASER1
    collections: Baser,
    map: Map,
}

impl Default for Its {
    fn default() -> Self {
        Self::new()
    }
}

impl Its {
    /// An ITS after reset, without an address. Nothing is allocated.
    pub fn new() -> Self {
        Self {
            base: None,
            enabled: false,
            stalled: false,
            cbaser: Cbaser::RESET,
            creadr: 0,
            cwriter: 0,
            devices: Baser::DEVICES,
            collections: Baser::COLLECTIONS,
            map: Map::new(),
        }
    }

    /// KVM_DEV_ARM_ITS_CTRL_RESET: as new, but for the address. To be called also before an ITS is
    /// dropped, so that its LPIs are free.
    pub fn reset(&mut self, lpis: &mut impl Lpis) {
        self.forget_all(lpis);
        *self = Self {
            base: self.base,
            ..Self::new()
        };
    }

    /// The address of the first frame.
    pub fn base(&self) -> Option<u64> {
        self.base
    }

    /// KVM_VGIC_ITS_ADDR_TYPE: gives the frames their address, once.
    pub fn set_base(&mut self, base: u64, ipa_bits: u32) -> Result<(), AddressError> {
        if self.base.is_some() {
            return Err(AddressError::Exists);
        }
        if base % FRAMES_ALIGN != 0 {
            return Err(AddressError::Misaligned);
        }
        let limit = 1_u64.checked_shl(ipa_bits).unwrap_or(u64::MAX);
        if base.checked_add(FRAMES_SIZE).is_none_or(|end| end > limit) {
            return Err(AddressError::TooBig);
        }
        self.base = Some(base);
        Ok(())
    }

    /// Messages to `gpa` are for this ITS: it is the address of its GITS_TRANSLATER.
    #[inline]
    pub fn is_doorbell(&self, gpa: u64) -> bool {
        self.base
            .and_then(|base| base.checked_add(TRANSLATER))
            .is_some_and(|at| at == gpa)
    }

    /// The LPI that a message leads to (5.2); `None` if it is to be dropped.
    #[inline]
    pub fn translate(&self, device: u32, event: u32) -> Option<Lpi> {
        if !self.enabled {
            return None;
        }
        let event = self.map.event(device, event)?;
        Some(Lpi {
            intid: event.intid(),
            vcpu: self.map.target(event.icid)?.vcpu,
        })
    }

    /// GITS_CTLR.Enabled
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// There are commands to process.
    pub fn has_work(&self) -> bool {
        self.enabled && !self.stalled && self.creadr != self.cwriter
    }

    /// How many devices are mapped.
    pub fn mapped_devices(&self) -> usize {
        self.map.devices().len()
    }

    /// How many events are mapped.
    pub fn mapped_events(&self) -> u32 {
        self.map.event_count()
    }

    /// How many collections are known: mapped, or referred to by events, now or when the tables
    /// were restored.
    pub fn known_collections(&self) -> usize {
        self.map.collections().len()
    }

    /// Unmaps all.
    fn forget_all(&mut self, lpis: &mut impl Lpis) {
        self.map.each_event(|event| lpis.unmap(event.intid()));
        self.map = Map::new();
    }

    /// Unmaps all devices.
    fn forget_devices(&mut self, lpis: &mut impl Lpis) {
        self.map.each_event(|event| lpis.unmap(event.intid()));
        self.map.clear_devices();
    }

    /// Unmaps all collections, and with them the events, that are nothing without.
    fn forget_collections(&mut self, lpis: &mut impl Lpis) {
        self.map.each_event(|event| lpis.unmap(event.intid()));
        self.map.clear_collections();
    }

    /// Maps an event of a mapped device, that must not be mapped, to an LPI. If that fails nothing
    /// has changed.
    fn map_event(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
        device: u32,
        event: Event,
    ) -> Result<(), MapError> {
        let intid = event.intid();
        self.map.reserve_event(device, event)?;
        let vcpu = self.map.target(event.icid).map(|t| t.vcpu);
        let done = match lpis.map(intid, (device, event.id.into()), vcpu) {
            Ok(true) => {
                let done = load_lpi(mem, lpis, intid, vcpu)
                    .and_then(|()| Ok(self.map.insert_event(device, event)?));
                if done.is_err() {
                    lpis.unmap(intid);
                }
                done
            }
            Ok(false) => Err(MapError::Taken),
            Err(error) => Err(error.into()),
        };
        if done.is_err() {
            self.map.forget_unused(event.icid);
        }
        done
    }
}

/// Why an event cannot be mapped.
enum MapError {
    /// Another event has the LPI.
    Taken,
    /// The LPI's configuration or pending state is not in guest memory.
    Fault,
    NoMemory,
}

impl From<NoMemory> for MapError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<Fault> for MapError {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

/// A mapped LPI starts with what the guest's tables say of it (5.1.1, 5.1.2). Its bit in the
/// pending table is taken: from now on the LPI's state is ours.
fn load_lpi(
    mem: &impl Memory,
    lpis: &mut impl Lpis,
    intid: u32,
    vcpu: Option<u32>,
) -> Result<(), MapError> {
    let config = lpis.config_table().read(mem, intid)?;
    lpis.configure(intid, config)?;
    let Some(vcpu) = vcpu else {
        return Ok(());
    };
    let Some(table) = lpis.pending_table(vcpu) else {
        return Ok(());
    };
    if table.is_pending(mem, intid)? {
        lpis.set_pending(intid, vcpu)?;
        table.set(mem, intid, false)?;
    }
    Ok(())
}
