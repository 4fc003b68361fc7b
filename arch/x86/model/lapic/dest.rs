// SPDX-License-Identifier: GPL-2.0

//! Who gets an interrupt message: destinations, shorthands, lowest priority.
//!
//! A sender knows the other local APICs by their [`Identity`] only, a word that each of them
//! publishes, so it takes no lock. Sources: Intel SDM vol. 3A 12.6.2 and 12.12.10, AMD APM vol. 2
//! 16.6 and 16.12; for hot-plugged APIC ids and the broadcast of devices, KVM's api.rst
//! (KVM_CAP_X2APIC_API).

use core::sync::atomic::{AtomicU64, Ordering};

/// How an interrupt is delivered (ICR bits 10:8; the same in MSI data and in LVT entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all processors of the destination
    Fixed,
    /// To one processor of the destination
    LowestPriority,
    /// System management interrupt
    Smi,
    /// A reserved encoding: delivered to nobody
    Reserved,
    /// Non-maskable interrupt
    Nmi,
    /// INIT
    Init,
    /// Start-up: the vector is the page to start at
    Startup,
    /// The vector comes from an external controller: not a message between APICs
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the low three bits of `bits`.
    #[inline]
    pub const fn from_low3(bits: u32) -> Self {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            3 => DeliveryMode::Reserved,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Startup,
            _ => DeliveryMode::ExtInt,
        }
    }
}

/// Destination shorthand (ICR bits 19:18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender
    Me,
    /// All, the sender too
    All,
    /// All but the sender
    Others,
}

impl Shorthand {
    /// Decodes the low two bits of `bits`.
    #[inline]
    pub const fn from_low2(bits: u32) -> Self {
        match bits & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Me,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        }
    }
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A device or an I/O APIC. `wide_broadcast` says that destination 0xff means everybody to an
    /// APIC in x2APIC mode too (KVM's default, off with KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).
    Device {
        /// 0xff is a broadcast for x2APICs
        wide_broadcast: bool,
    },
    /// The local APIC with this x2APIC id, through its ICR.
    Ipi {
        /// The sender's x2APIC id
        id: u32,
    },
}

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq {
    /// Destination: an APIC id or a logical destination. 8 bits in xAPIC format.
    pub dest: u32,
    /// Vector; for [`DeliveryMode::Startup`] the page number.
    pub vector: u8,
    /// Delivery mode
    pub mode: DeliveryMode,
    /// Logical destination mode (else physical)
    pub logical: bool,
    /// Level triggered (else edge)
    pub level: bool,
    /// Asserted; a de-asserted level-triggered message is dropped, but see `Init`.
    pub assert: bool,
    /// Shorthand that replaces `dest`
    pub shorthand: Shorthand,
    /// MSI redirection hint: the destination is a set of which one is chosen
    pub redirect_hint: bool,
    /// The sender
    pub source: Source,
}

impl Irq {
    /// An edge-triggered fixed interrupt of a device to the APIC with id `dest`.
    pub const fn fixed(dest: u32, vector: u8) -> Self {
        Self {
            dest,
            vector,
            mode: DeliveryMode::Fixed,
            logical: false,
            level: false,
            assert: true,
            shorthand: Shorthand::None,
            redirect_hint: false,
            source: Source::Device {
                wide_broadcast: true,
            },
        }
    }

    /// What the ICR value `icr` sends from the APIC with x2APIC id `sender`. The destination is in
    /// bits 63:32 in x2APIC mode, in 63:56 otherwise (SDM vol. 3A 12.6.1, 12.12.9).
    #[inline]
    pub const fn from_icr(icr: u64, x2apic: bool, sender: u32) -> Self {
        let low = (icr & 0xffff_ffff) as u32;
        let high = (icr >> 32) as u32;
        Self {
            dest: if x2apic { high } else { high >> 24 },
            vector: (low & 0xff) as u8,
            mode: DeliveryMode::from_low3(low >> 8),
            logical: icr & super::regs::icr::LOGICAL != 0,
            level: icr & super::regs::icr::LEVEL != 0,
            assert: icr & super::regs::icr::ASSERT != 0,
            shorthand: Shorthand::from_low2(low >> 18),
            redirect_hint: false,
            source: Source::Ipi { id: sender },
        }
    }

    /// Whether one of the matching processors is chosen (SDM vol. 3A 12.6.2.4; the redirection hint
    /// of a physical broadcast has no set to choose from, so that goes to everybody).
    #[inline]
    pub const fn lowest_priority(&self) -> bool {
        let broadcast = !self.logical && (self.dest == 0xff || self.dest == u32::MAX);
        (matches!(self.mode, DeliveryMode::LowestPriority) || self.redirect_hint) && !broadcast
    }

    /// If at most one processor can match, the APIC id to look for: a shell that has a table from
    /// ids to processors can try that one alone, and falls back to all of them if
    /// [`Identity::matches`] denies it (xAPIC ids can be written).
    #[inline]
    pub const fn unicast(&self) -> Option<u32> {
        match self.shorthand {
            Shorthand::None if !self.logical && self.dest != 0xff && self.dest != u32::MAX => {
                Some(self.dest)
            }
            _ => None,
        }
    }
}

/// Mode of a local APIC (SDM vol. 3A 12.12.1, table 12-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled
    Disabled,
    /// xAPIC: registers in memory
    Xapic,
    /// x2APIC: registers are MSRs
    X2apic,
}

/// Format of logical destinations that an xAPIC understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalModel {
    /// One bit a processor
    Flat,
    /// Four bits of cluster, one bit a processor in it
    Cluster,
    /// A reserved value of the DFR: nothing matches
    Reserved,
}

/// What a sender needs to know of a local APIC, packed in a word:
/// bits 31:0 x2APIC id, 39:32 xAPIC id, 47:40 xAPIC logical id, 49:48 logical model, 51:50 mode,
/// 52 software enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64);

impl Identity {
    /// Packs the fields.
    pub const fn new(
        id: u32,
        xapic_id: u8,
        logical_id: u8,
        model: LogicalModel,
        mode: Mode,
        software_enabled: bool,
    ) -> Self {
        let model = match model {
            LogicalModel::Flat => 0,
            LogicalModel::Cluster => 1,
            LogicalModel::Reserved => 2,
        };
        let mode = match mode {
            Mode::Disabled => 0,
            Mode::Xapic => 1,
            Mode::X2apic => 2,
        };
        Self(
            id as u64
                | (xapic_id as u64) << 32
                | (logical_id as u64) << 40
                | model << 48
                | mode << 50
                | (software_enabled as u64) << 52,
        )
    }

    /// The x2APIC id, which is the processor's own in every mode.
    #[inline]
    pub const fn id(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The xAPIC id.
    #[inline]
    pub const fn xapic_id(self) -> u8 {
        (self.0 >> 32 & 0xff) as u8
    }

    /// The logical id in xAPIC format.
    #[inline]
    pub const fn logical_id(self) -> u8 {
        (self.0 >> 40 & 0xff) as u8
    }

    /// The logical model in xAPIC mode.
    #[inline]
    pub const fn model(self) -> LogicalModel {
        match self.0 >> 48 & 3 {
            0 => LogicalModel::Flat,
            1 => LogicalModel::Cluster,
            _ => LogicalModel::Reserved,
        }
    }

    /// The mode.
    #[inline]
    pub const fn mode(self) -> Mode {
        match self.0 >> 50 & 3 {
            0 => Mode::Disabled,
            1 => Mode::Xapic,
            _ => Mode::X2apic,
        }
    }

    /// Whether fixed and lowest-priority interrupts are accepted (globally and software enabled).
    #[inline]
    pub const fn accepts_fixed(self) -> bool {
        self.0 & 1 << 52 != 0 && !matches!(self.mode(), Mode::Disabled)
    }

    /// Whether this APIC is in the destination of `irq`. A globally disabled one never is.
    #[inline]
    pub const fn matches(self, irq: &Irq) -> bool {
        let mode = self.mode();
        if matches!(mode, Mode::Disabled) {
            return false;
        }
        let me = matches!(irq.source, Source::Ipi { id } if id == self.id());
        match irq.shorthand {
            Shorthand::None => {}
            Shorthand::Me => return me,
            Shorthand::All => return true,
            Shorthand::Others => return !me,
        }
        if matches!(mode, Mode::X2apic) {
            let wide = matches!(
                irq.source,
                Source::Device {
                    wide_broadcast: true
                }
            );
            if irq.dest == u32::MAX || wide && irq.dest == 0xff {
                return true;
            }
            if irq.logical {
                // Cluster in 31:16, a bit a member in 15:0, both made from the id (12.12.10.2).
                return irq.dest >> 16 == self.id() >> 4 & 0xffff
                    && irq.dest & 1 << (self.id() & 15) != 0;
            }
            return irq.dest == self.id();
        }
        if irq.dest == 0xff {
            return true;
        }
        if irq.logical {
            let (mine, dest) = (self.logical_id() as u32, irq.dest);
            return match self.model() {
                LogicalModel::Flat => mine & dest != 0,
                LogicalModel::Cluster => mine >> 4 == dest >> 4 && mine & dest & 0xf != 0,
                LogicalModel::Reserved => false,
            };
        }
        if irq.dest > 0xff {
            // An id that xAPIC cannot express finds its processor in xAPIC mode too, or a
            // hot-plugged processor could never be started.
            return irq.dest == self.id();
        }
        irq.dest == self.xapic_id() as u32
    }
}

/// The published [`Identity`]: written by the owner whenever a register write returns
/// `Effect::Identity` and after resets, read by all senders.
#[derive(Debug)]
pub struct SharedIdentity(AtomicU64);

impl SharedIdentity {
    /// Publishes `identity` first.
    pub const fn new(identity: Identity) -> Self {
        Self(AtomicU64::new(identity.0))
    }

    /// Publishes `identity`. A sender that reads it also sees what the owner did before.
    #[inline]
    pub fn publish(&self, identity: Identity) {
        self.0.store(identity.0, Ordering::Release);
    }

    /// The identity published last.
    #[inline]
    pub fn get(&self) -> Identity {
        Identity(self.0.load(Ordering::Acquire))
    }
}

/// What became of an interrupt at one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// Newly pending
    Fresh,
    /// It was pending already
    Coalesced,
    /// Refused
    Blocked,
}

/// A local APIC as senders see it: in the kernel a vCPU with its published identity and inbox.
pub trait Target {
    /// The published identity.
    fn identity(&self) -> Identity;

    /// Makes a message pending, and wakes or kicks the processor if that needs it. The modes are
    /// `Fixed` (for lowest priority too), `Smi`, `Nmi`, `Init`, `Startup` only; the destination is
    /// known to match.
    fn post(&self, mode: DeliveryMode, vector: u8, level: bool) -> Posted;
}

/// How many targets did what with a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Made newly pending
    pub fresh: u32,
    /// Pending already
    pub coalesced: u32,
    /// Matched, but refused
    pub blocked: u32,
}

impl Delivered {
    fn count(&mut self, posted: Posted) {
        let n = match posted {
            Posted::Fresh => &mut self.fresh,
            Posted::Coalesced => &mut self.coalesced,
            Posted::Blocked => &mut self.blocked,
        };
        *n = n.wrapping_add(1);
    }

    /// No target matched.
    pub const fn nobody(&self) -> bool {
        self.fresh == 0 && self.coalesced == 0 && self.blocked == 0
    }

    /// The result of KVM_SIGNAL_MSI: how many took it, 0 if the guest blocked it, -1 if nobody is
    /// there.
    pub fn status(&self) -> i32 {
        if self.nobody() {
            return -1;
        }
        i32::try_from(self.fresh.wrapping_add(self.coalesced)).unwrap_or(i32::MAX)
    }

    /// The status of KVM_IRQ_LINE_STATUS: as [`Self::status`], but 0 if it was pending everywhere.
    pub fn line_status(&self) -> i32 {
        if self.nobody() {
            return -1;
        }
        i32::try_from(self.fresh).unwrap_or(i32::MAX)
    }
}

/// Delivers `irq` to those of `targets` that it addresses.
///
/// Lowest priority chooses among the matching targets that accept fixed interrupts the one at place
/// `vector % count`: that spreads the vectors of a device over its processors and keeps each on
/// one, whatever the task priorities are (SDM vol. 3A 12.6.2.4 leaves the choice to the chipset).
pub fn deliver<'a, T, I>(irq: &Irq, targets: I) -> Delivered
where
    T: Target + 'a,
    I: Iterator<Item = &'a T> + Clone,
{
    let mut done = Delivered::default();
    let mode = match irq.mode {
        DeliveryMode::LowestPriority => DeliveryMode::Fixed,
        mode => mode,
    };
    let fixed = matches!(mode, DeliveryMode::Fixed);
    // De-assertions are dropped: INIT level de-assert has no effect since the Pentium 4 (12.6.1).
    let dropped =
        irq.level && !irq.assert || matches!(mode, DeliveryMode::Reserved | DeliveryMode::ExtInt);
    let post = |target: &T, identity: Identity| {
        if dropped || fixed && !identity.accepts_fixed() {
            Posted::Blocked
        } else {
            target.post(mode, irq.vector, irq.level)
        }
    };

    if irq.lowest_priority() {
        let able = |identity: Identity| identity.matches(irq) && identity.accepts_fixed();
        let count = targets.clone().fold(0usize, |n, target| {
            n.wrapping_add(usize::from(able(target.identity())))
        });
        // The set may change under us: a place past the end then falls to the last that is there.
        let place = usize::from(irq.vector).checked_rem(count).unwrap_or(0);
        let chosen = targets
            .clone()
            .map(|t| (t, t.identity()))
            .filter(|(_, identity)| able(*identity))
            .take(place.wrapping_add(1))
            .last();
        match chosen {
            Some((target, identity)) => done.count(post(target, identity)),
            None => {
                done.blocked = u32::from(targets.into_iter().any(|t| t.identity().matches(irq)))
            }
        }
        return done;
    }

    for target in targets {
        let identity = target.identity();
        if identity.matches(irq) {
            done.count(post(target, identity));
        }
    }
    done
}
