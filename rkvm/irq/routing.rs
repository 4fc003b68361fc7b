// SPDX-License-Identifier: GPL-2.0

//! The interrupt routing table: what an interrupt line of the VM (a *gsi*) leads to.
//!
//! User space gives a list of entries (`KVM_SET_GSI_ROUTING`). A gsi leads to one message, or to one
//! pin of each of several controllers (a line wired to two chips, of which the guest uses one).
//! Pure: no allocation, no kernel. The caller owns the arrays, [`build`] sorts and checks them once,
//! and [`Table`] looks at them.
//!
//! Reference: Documentation/virt/kvm/api.rst, 4.52 `KVM_SET_GSI_ROUTING`.

use core::ffi::CStr;

/// Entries in one table, and gsis in one VM (gsis are `0..MAX_ROUTES`).
pub const MAX_ROUTES: usize = 4096;

/// `struct kvm_irq_routing_entry` as 32-bit words.
pub const ENTRY_WORDS: usize = 12;

/// `KVM_IRQ_ROUTING_IRQCHIP`.
pub const TYPE_IRQCHIP: u32 = 1;
/// `KVM_IRQ_ROUTING_MSI`.
pub const TYPE_MSI: u32 = 2;
/// From `KVM_IRQ_ROUTING_S390_ADAPTER` to `KVM_IRQ_ROUTING_XEN_EVTCHN`: each known to one family.
pub const TYPES_OF_FAMILIES: core::ops::RangeInclusive<u32> = 3..=5;

/// `KVM_MSI_VALID_DEVID`, in routing entries and in `struct kvm_msi`.
pub const MSI_VALID_DEVID: u32 = 1;

/// `KVM_IRQFD_FLAG_DEASSIGN`.
pub const IRQFD_DEASSIGN: u32 = 1 << 0;
/// `KVM_IRQFD_FLAG_RESAMPLE`.
pub const IRQFD_RESAMPLE: u32 = 1 << 1;

/// What `KVM_IRQFD` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqfd {
    /// The eventfd drives the line no longer.
    Deassign,
    /// It drives the line from now on.
    Assign {
        /// ... until the guest ends the interrupt, of which another eventfd hears.
        resample: bool,
    },
}

impl Irqfd {
    /// Decodes the flags.
    ///
    /// # Errors
    /// [`Refused::IrqfdFlags`]
    pub fn from_flags(flags: u32) -> Result<Self, Refused> {
        if flags & !(IRQFD_DEASSIGN | IRQFD_RESAMPLE) != 0 {
            return Err(Refused::IrqfdFlags(flags));
        }
        Ok(if flags & IRQFD_DEASSIGN != 0 {
            Self::Deassign
        } else {
            Self::Assign {
                resample: flags & IRQFD_RESAMPLE != 0,
            }
        })
    }
}

/// A gsi that an irqfd or a route may name, as an index.
///
/// # Errors
/// [`Refused::Gsi`]
pub fn gsi_index(gsi: u32) -> Result<usize, Refused> {
    usize::try_from(gsi)
        .ok()
        .filter(|gsi| *gsi < MAX_ROUTES)
        .ok_or(Refused::Gsi(gsi))
}

/// A message-signalled interrupt: what a device writes where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Address that the device would write to.
    pub address: u64,
    /// Data that the device would write.
    pub data: u32,
    /// The device that writes, where the controller wants to know it.
    pub devid: Option<u32>,
}

impl Msi {
    /// A message from the ABI's words; `None` if `flags` has a bit that is not defined.
    pub fn new(
        address_lo: u32,
        address_hi: u32,
        data: u32,
        flags: u32,
        devid: u32,
    ) -> Option<Self> {
        if flags & !MSI_VALID_DEVID != 0 {
            return None;
        }
        Some(Self {
            address: u64::from(address_hi) << 32 | u64::from(address_lo),
            data,
            devid: (flags & MSI_VALID_DEVID != 0).then_some(devid),
        })
    }
}

/// What a gsi leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An input pin of an in-kernel interrupt controller.
    Pin {
        /// Number of the controller, as the family counts them.
        chip: u32,
        /// Pin of that controller.
        pin: u32,
    },
    /// A message.
    Msi(Msi),
    /// A kind that one family knows (adapter interrupts, synthetic interrupts, event channels).
    Other {
        /// `kvm_irq_routing_entry.type`.
        kind: u32,
        /// `kvm_irq_routing_entry.u`.
        words: [u32; 8],
    },
}

/// One entry of the table: `gsi` leads to `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The interrupt line.
    pub gsi: u32,
    /// Where it leads.
    pub target: Target,
}

/// Why a table was refused. User space gets `EINVAL` for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More than [`MAX_ROUTES`] entries.
    TooMany,
    /// A gsi that is not below [`MAX_ROUTES`].
    Gsi(u32),
    /// An entry type that does not exist.
    Type(u32),
    /// An entry flag that does not exist for this type.
    Flags(u32),
    /// This gsi leads to two things that exclude each other: only pins of different chips can share.
    Conflict(u32),
    /// An irqfd's flag that does not exist.
    IrqfdFlags(u32),
    /// The caller's arrays do not have the sizes that [`sizes`] asks for.
    Sizes,
}

impl Refused {
    /// The reason in words.
    pub fn why(&self) -> &'static CStr {
        match self {
            Self::TooMany => c"more than 4096 interrupt routes",
            Self::Gsi(_) => c"a gsi is not below 4096",
            Self::Type(_) => c"unknown type of interrupt route",
            Self::Flags(_) => c"unknown flag of an interrupt route",
            Self::Conflict(_) => c"a gsi is routed twice, and not to pins of different chips",
            Self::IrqfdFlags(_) => c"unknown flag of an irqfd",
            Self::Sizes => c"index arrays of the wrong size",
        }
    }
}

impl Entry {
    /// Decodes `struct kvm_irq_routing_entry`: gsi, type, flags, pad, and eight words of union.
    pub fn from_words(w: &[u32; ENTRY_WORDS]) -> Result<Self, Refused> {
        let [gsi, kind, flags, _pad, words @ ..] = *w;
        let target = match kind {
            TYPE_MSI => {
                let [lo, hi, data, devid, ..] = words;
                Target::Msi(Msi::new(lo, hi, data, flags, devid).ok_or(Refused::Flags(flags))?)
            }
            _ if flags != 0 => return Err(Refused::Flags(flags)),
            TYPE_IRQCHIP => {
                let [chip, pin, ..] = words;
                Target::Pin { chip, pin }
            }
            _ if TYPES_OF_FAMILIES.contains(&kind) => Target::Other { kind, words },
            _ => return Err(Refused::Type(kind)),
        };
        Ok(Self { gsi, target })
    }

    /// Order within the table: by gsi, then pins by chip; all else of one gsi is a conflict.
    fn key(&self) -> (u32, u32) {
        match self.target {
            Target::Pin { chip, .. } => (self.gsi, chip),
            _ => (self.gsi, u32::MAX),
        }
    }
}

/// A pin and one gsi that leads to it; the table's way back, for end-of-interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinRoute {
    chip: u32,
    pin: u32,
    gsi: u32,
}

/// Lengths of the index arrays that a list of entries needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Length of `starts`.
    pub starts: usize,
    /// Length of `pins`.
    pub pins: usize,
}

/// Says how long the index arrays for `entries` have to be.
pub fn sizes(entries: &[Entry]) -> Result<Sizes, Refused> {
    if entries.len() > MAX_ROUTES {
        return Err(Refused::TooMany);
    }
    let mut sizes = Sizes { starts: 1, pins: 0 };
    for e in entries {
        sizes.starts = sizes.starts.max(gsi_index(e.gsi)? + 2);
        sizes.pins += usize::from(matches!(e.target, Target::Pin { .. }));
    }
    Ok(sizes)
}

/// Sorts and checks `entries`, and fills the index arrays, which have the lengths that [`sizes`] gave.
pub fn build(
    entries: &mut [Entry],
    starts: &mut [u16],
    pins: &mut [PinRoute],
) -> Result<(), Refused> {
    let wanted = sizes(entries)?;
    if wanted.starts != starts.len() || wanted.pins != pins.len() {
        return Err(Refused::Sizes);
    }

    sort_by_key(entries, Entry::key);
    for (a, b) in entries.iter().zip(entries.iter().skip(1)) {
        let both_pins = matches!(
            (a.target, b.target),
            (Target::Pin { chip: x, .. }, Target::Pin { chip: y, .. }) if x != y
        );
        if a.gsi == b.gsi && !both_pins {
            return Err(Refused::Conflict(a.gsi));
        }
    }

    // starts[g]..starts[g + 1] are the entries of gsi g.
    let mut rest = entries.iter().peekable();
    let mut n: u16 = 0;
    for (gsi, start) in (0u32..).zip(starts.iter_mut()) {
        *start = n;
        while rest.next_if(|e| e.gsi == gsi).is_some() {
            n = n.wrapping_add(1); // at most MAX_ROUTES
        }
    }

    let of_pins = entries.iter().filter_map(|e| match e.target {
        Target::Pin { chip, pin } => Some(PinRoute {
            chip,
            pin,
            gsi: e.gsi,
        }),
        _ => None,
    });
    for (slot, route) in pins.iter_mut().zip(of_pins) {
        *slot = route;
    }
    sort_by_key(pins, |p| *p);
    Ok(())
}

/// Heapsort. (`core`'s sorts can panic, in functions that the kernel's objtool does not know to be
/// without return.)
fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    // Lets the item at `root` sink in the heap that `items[..len]` is otherwise.
    let sink = |items: &mut [T], mut root: usize, len: usize| loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < len && key(&items[child]) > key(&items[largest]) {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        items.swap(root, largest);
        root = largest;
    };

    let len = items.len();
    for root in (0..len / 2).rev() {
        sink(items, root, len);
    }
    for end in (1..len).rev() {
        items.swap(0, end);
        sink(items, 0, end);
    }
}

/// A built table: borrowed arrays, all lookups.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    entries: &'a [Entry],
    starts: &'a [u16],
    pins: &'a [PinRoute],
}

impl<'a> Table<'a> {
    /// A view of arrays that [`build`] has filled. (Others give nonsense, but no panic.)
    #[inline]
    pub fn new(entries: &'a [Entry], starts: &'a [u16], pins: &'a [PinRoute]) -> Self {
        Self {
            entries,
            starts,
            pins,
        }
    }

    /// What `gsi` leads to: nothing, one target, or pins of several chips.
    #[inline]
    pub fn targets(&self, gsi: u32) -> &'a [Entry] {
        let find = || {
            let gsi = usize::try_from(gsi).ok()?;
            let from = usize::from(*self.starts.get(gsi)?);
            let to = usize::from(*self.starts.get(gsi.checked_add(1)?)?);
            self.entries.get(from..to)
        };
        find().unwrap_or(&[])
    }

    /// The gsis that lead to `pin` of `chip`, in ascending order.
    pub fn gsis_of(&self, chip: u32, pin: u32) -> impl Iterator<Item = u32> + 'a {
        let first = self.pins.partition_point(|p| (p.chip, p.pin) < (chip, pin));
        self.pins
            .iter()
            .skip(first)
            .take_while(move |p| p.chip == chip && p.pin == pin)
            .map(|p| p.gsi)
    }

    /// Hands every target of `gsi` to `set` and sums up, as `KVM_IRQ_LINE_STATUS` reports it: below 0
    /// nobody took the interrupt, 0 it was coalesced with one still pending, above 0 the number of
    /// CPUs that it was delivered to. An error of `set` counts as not taken.
    #[inline]
    pub fn deliver<E>(&self, gsi: u32, mut set: impl FnMut(&Target) -> Result<i32, E>) -> i32 {
        let mut status = -1i32;
        for e in self.targets(gsi) {
            if let Ok(n @ 0..) = set(&e.target) {
                status = status.max(0).saturating_add(n);
            }
        }
        status
    }
}
