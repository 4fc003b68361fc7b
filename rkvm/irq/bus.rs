// SPDX-License-Identifier: GPL-2.0

//! Matching a guest's write to what user space has registered at its address: events (ioeventfd)
//! and zones (coalesced I/O).
//!
//! Pure: slices in, references out. The shell keeps one [`Event`] array and one [`Zone`] array per
//! address space, sorted, and replaces them as a whole.
//!
//! Reference: Documentation/virt/kvm/api.rst, 4.59 `KVM_IOEVENTFD`, 4.116
//! `KVM_(UN)REGISTER_COALESCED_MMIO`.

use core::ffi::CStr;

/// Zones in one address space.
pub const MAX_ZONES: usize = 1000;

/// `KVM_IOEVENTFD_FLAG_DATAMATCH`.
pub const FLAG_DATAMATCH: u32 = 1 << 0;
/// `KVM_IOEVENTFD_FLAG_PIO`.
pub const FLAG_PIO: u32 = 1 << 1;
/// `KVM_IOEVENTFD_FLAG_DEASSIGN`.
pub const FLAG_DEASSIGN: u32 = 1 << 2;
/// `KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY`.
pub const FLAG_VIRTIO_CCW_NOTIFY: u32 = 1 << 3;
/// Flags that have a name in the ABI (the last, "fast MMIO", is a name only).
const FLAGS: u32 = (1 << 5) - 1;

/// An address space that guests write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest physical addresses without memory behind them.
    Mmio,
    /// I/O ports, where the processor has them.
    Pio,
}

/// Why an ioeventfd or a zone was refused. User space gets `EINVAL` for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A flag that does not exist, or a space that this module does not serve.
    Flags(u32),
    /// Lengths are 0 (any), 1, 2, 4 and 8 bytes.
    Length(u32),
    /// The range leaves the address space.
    Range,
    /// A value cannot be matched when the length is any.
    MatchWithoutLength,
    /// A zone of neither memory (0) nor ports (1).
    Space(u32),
}

impl Refused {
    /// The reason in words.
    pub fn why(&self) -> &'static CStr {
        match self {
            Self::Flags(_) => c"unknown flag of an ioeventfd",
            Self::Length(_) => c"the length of an ioeventfd is 0, 1, 2, 4 or 8",
            Self::Range => c"the range of an ioeventfd leaves the address space",
            Self::MatchWithoutLength => c"an ioeventfd of any length cannot match a value",
            Self::Space(_) => c"a coalesced zone is of memory (0) or of ports (1)",
        }
    }
}

/// The writes that an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Address; a write has to start exactly here.
    pub addr: u64,
    /// Length of the write in bytes; 0 is any.
    pub len: u32,
    /// The value written; `None` is any.
    pub value: Option<u64>,
}

impl Key {
    /// Space and key that `KVM_IOEVENTFD`'s arguments name, not yet checked: what a deassign looks
    /// for. `None`: the arguments name a space in which nothing can be registered.
    pub fn named(flags: u32, addr: u64, len: u32, datamatch: u64) -> Option<(Space, Self)> {
        let space = if flags & FLAG_PIO != 0 {
            Space::Pio
        } else if flags & FLAG_VIRTIO_CCW_NOTIFY != 0 {
            return None;
        } else {
            Space::Mmio
        };
        let value = (flags & FLAG_DATAMATCH != 0).then_some(datamatch);
        Some((space, Self { addr, len, value }))
    }

    /// As [`Self::named`], checked: what an assign registers.
    pub fn checked(
        flags: u32,
        addr: u64,
        len: u32,
        datamatch: u64,
    ) -> Result<(Space, Self), Refused> {
        if !matches!(len, 0 | 1 | 2 | 4 | 8) {
            return Err(Refused::Length(len));
        }
        if addr.checked_add(u64::from(len)).is_none() {
            return Err(Refused::Range);
        }
        if flags & !FLAGS != 0 {
            return Err(Refused::Flags(flags));
        }
        if len == 0 && flags & FLAG_DATAMATCH != 0 {
            return Err(Refused::MatchWithoutLength);
        }
        Self::named(flags, addr, len, datamatch).ok_or(Refused::Flags(flags))
    }

    /// Whether some write would be for both.
    fn collides(&self, other: &Self) -> bool {
        let values = match (self.value, other.value) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.addr == other.addr
            && (self.len == 0 || other.len == 0 || self.len == other.len && values)
    }

    /// Order in the array.
    fn order(&self) -> (u64, u32, u64) {
        (self.addr, self.len, self.value.unwrap_or(0))
    }
}

/// A registered event.
#[derive(Clone, Debug)]
pub struct Event<T> {
    /// The writes that it is for.
    pub key: Key,
    /// What they signal.
    pub signal: T,
}

/// Where to insert an event with `key` into the sorted `events`; `None` if one of them collides.
pub fn place<T>(events: &[Event<T>], key: &Key) -> Option<usize> {
    let first = events.partition_point(|e| e.key.addr < key.addr);
    let mut at_addr = events
        .iter()
        .skip(first)
        .take_while(|e| e.key.addr == key.addr);
    if at_addr.any(|e| e.key.collides(key)) {
        return None;
    }
    Some(events.partition_point(|e| e.key.order() < key.order()))
}

/// The event that a write of `data` to `addr` signals. `events` is in the order that [`place`] keeps.
#[inline]
pub fn find<'a, T>(events: &'a [Event<T>], addr: u64, data: &[u8]) -> Option<&'a Event<T>> {
    let first = events.partition_point(|e| e.key.addr < addr);
    let here = events.get(first..)?;
    let event = here.first()?;
    if event.key.addr != addr {
        return None;
    }
    if event.key.len == 0 {
        // It collides with all others, so it is alone at its address.
        return Some(event);
    }
    let same_len = usize::try_from(event.key.len).is_ok_and(|len| len == data.len());
    if same_len && event.key.value.is_none() {
        return Some(event);
    }
    find_value(here, addr, data)
}

/// The same, where `events` begins at `addr`. Of one address and length there is one event for any
/// value, or some for one value each.
#[inline(never)]
fn find_value<'a, T>(events: &'a [Event<T>], addr: u64, data: &[u8]) -> Option<&'a Event<T>> {
    let (len, value) = native(data)?;
    let end = events.partition_point(|e| e.key.order() <= (addr, len, value));
    let event = events.get(end.checked_sub(1)?)?;
    let hit = event.key.len == len && event.key.value.is_none_or(|v| v == value);
    hit.then_some(event)
}

/// Length and value of a write, as the guest's processor would read it back.
fn native(data: &[u8]) -> Option<(u32, u64)> {
    match *data {
        [a] => Some((1, u64::from(a))),
        [a, b] => Some((2, u64::from(u16::from_ne_bytes([a, b])))),
        [a, b, c, d] => Some((4, u64::from(u32::from_ne_bytes([a, b, c, d])))),
        [a, b, c, d, e, f, g, h] => Some((8, u64::from_ne_bytes([a, b, c, d, e, f, g, h]))),
        _ => None,
    }
}

/// A range of addresses whose writes are coalesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u32,
}

impl Zone {
    /// The space that `kvm_coalesced_mmio_zone.pio` names.
    ///
    /// # Errors
    /// [`Refused::Space`]
    pub fn space(pio: u32) -> Result<Space, Refused> {
        match pio {
            0 => Ok(Space::Mmio),
            1 => Ok(Space::Pio),
            _ => Err(Refused::Space(pio)),
        }
    }

    /// Where to insert it into the sorted `zones`; `None` if there are [`MAX_ZONES`].
    pub fn place(&self, zones: &[Zone]) -> Option<usize> {
        (zones.len() < MAX_ZONES).then(|| zones.partition_point(|z| z.addr <= self.addr))
    }

    /// Whether all of `len` bytes at `addr` lie in the zone.
    #[inline]
    pub fn contains(&self, addr: u64, len: u64) -> bool {
        let size = u64::from(self.size);
        let offset = addr.wrapping_sub(self.addr);
        addr >= self.addr
            && addr.checked_add(len).is_some()
            && offset <= size
            && len <= size.wrapping_sub(offset)
    }

    /// Last address; the first, if the zone is empty.
    fn last(&self) -> u64 {
        self.addr
            .saturating_add(u64::from(self.size).saturating_sub(1))
    }
}

/// Whether a zone contains all of `len` bytes at `addr`. `zones` is sorted by address.
#[inline]
pub fn in_zone(zones: &[Zone], addr: u64, len: u64) -> bool {
    let end = zones.partition_point(|z| z.addr <= addr);
    zones
        .iter()
        .take(end)
        .rev()
        .any(|zone| zone.contains(addr, len))
}

/// The addresses between which everything registered lies: the quick way to say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// The span of these events and zones, both sorted.
    pub fn of<T>(events: &[Event<T>], zones: &[Zone]) -> Self {
        let mut span = Self::EMPTY;
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            span = span.and(first.key.addr, last.key.addr);
        }
        zones
            .iter()
            .fold(span, |span, zone| span.and(zone.addr, zone.last()))
    }

    /// The span of nothing.
    pub const EMPTY: Self = Self {
        first: u64::MAX,
        last: 0,
    };

    fn and(self, first: u64, last: u64) -> Self {
        Self {
            first: self.first.min(first),
            last: self.last.max(last),
        }
    }

    /// Whether something may be registered at `addr`.
    #[inline]
    pub fn covers(&self, addr: u64) -> bool {
        self.first <= addr && addr <= self.last
    }
}
