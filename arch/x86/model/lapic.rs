// SPDX-License-Identifier: GPL-2.0

//! The local APIC: a pure state machine for xAPIC and x2APIC.
//!
//! A [`Lapic`] belongs to one vCPU's thread, which passes it register accesses and the time, and
//! does what the returned [`Effect`] says. Everybody else posts to its [`Inbox`], and finds out by
//! its [`SharedIdentity`] whether a message is for it; [`deliver`] puts these together.
//!
//! Sources: Intel SDM vol. 3A chapter 12, AMD APM vol. 2 chapter 16. What KVM's ABI adds (the
//! register page, ids of hot-plugged processors, quirks) is said where it is.

mod access;
mod dest;
mod hand;
mod inbox;
pub mod regs;
mod state;
mod timer;
mod vectors;

pub use dest::{
    deliver, Delivered, DeliveryMode, Identity, Irq, LogicalModel, Mode, Posted, SharedIdentity,
    Shorthand, Source, Target,
};
pub use hand::Hand;
pub use inbox::{Inbox, Post, Signals};
pub use regs::Lvt;
pub use state::{IdMismatch, PAGE_SIZE};
pub use timer::{Now, Timer, TimerMode, MIN_PERIOD_NS};
pub use vectors::Vectors;

use regs::{dfr, esr, lvt, svr, version};
use timer::Clockwork;

/// IA32_APIC_BASE (SDM vol. 3A 12.4.4).
pub mod apic_base {
    /// Bootstrap processor
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode
    pub const EXTD: u64 = 1 << 10;
    /// Global enable
    pub const ENABLE: u64 = 1 << 11;
    /// Where the register page is after reset
    pub const DEFAULT: u64 = 0xfee0_0000;
    /// The bits of the page address
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a register write wants done outside of the APIC: at most one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for the effect"]
pub enum Effect {
    /// Nothing. (What is deliverable may have changed: look before the next entry.)
    None,
    /// Deliver this to the other APICs (and, if it addresses it, to this one's inbox).
    Ipi(Irq),
    /// Tell the I/O APICs that this vector, which was level triggered, has ended.
    Eoi(u8),
    /// See to the timer.
    Timer(Timer),
    /// Publish this.
    Identity(Identity),
}

/// What stays the same for the life of a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// x2APIC id: the vCPU's id
    pub id: u32,
    /// The bootstrap processor
    pub bsp: bool,
    /// Length of a bus cycle in ns: KVM_CAP_X86_APIC_BUS_CYCLES_NS, by default 1
    pub bus_cycle_ns: u32,
    /// Resets leave LINT0 of the bootstrap processor open for ExtINT, as firmware would
    /// (KVM_X86_QUIRK_LINT0_REENABLED)
    pub lint0_extint: bool,
}

/// What depends on the processor that the guest sees, and so on KVM_SET_CPUID2 and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// CPUID.1:ECX.x2APIC
    pub x2apic: bool,
    /// CPUID.1:ECX.TSC-Deadline
    pub tsc_deadline: bool,
    /// There is an LVT entry for corrected machine checks (MCG_CAP.CMCI_P).
    pub cmci: bool,
    /// The version register offers suppression of EOI broadcasts.
    pub directed_eoi: bool,
    /// ... and the guest's choice has an effect. KVM by default offers it, for a split irqchip,
    /// and has the EOI broadcast all the same.
    pub suppress_eoi: bool,
    /// An interrupt of the performance counters masks its LVT entry (Intel).
    pub pmc_masks: bool,
    /// Width of physical addresses, bits
    pub phys_bits: u8,
}

/// What a local interrupt source leads to, besides a vector that has become pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// Masked, or not to be delivered
    Ignored,
    /// The vector is pending.
    Accepted,
    /// Queue an NMI.
    Nmi,
    /// Queue an SMI.
    Smi,
    /// Ask the external controller for the vector.
    ExtInt,
}

/// Where a physical address is, for this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the register page, at this offset.
    Register(u16),
    /// In the page of an APIC that does not answer (disabled, or in x2APIC mode).
    Hole,
    /// Not in the page.
    Elsewhere,
}

/// A local APIC.
///
/// # Invariants
///
/// - `ppr` is what `tpr` and `isr` make it.
/// - `clock.mode` is the mode in the LVT timer entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    tpr: u8,
    ppr: u8,
    mode: Mode,
    xapic_id: u8,
    logical_id: u8,
    /// An error has not been reported since the last write to the ESR.
    error_armed: bool,
    base: u64,
    dfr: u32,
    svr: u32,
    /// What a read of the ESR shows
    esr: u32,
    /// Errors since the last write to the ESR
    errors: u32,
    /// In xAPIC mode the high half is ICR2.
    icr: u64,
    lvt: [u32; Lvt::ALL.len()],
    clock: Clockwork,
    features: Features,
    config: Config,
}

impl Lapic {
    /// A local APIC after power-up.
    pub fn new(config: Config, features: Features) -> Self {
        let mut lapic = Self {
            irr: Vectors::EMPTY,
            isr: Vectors::EMPTY,
            tmr: Vectors::EMPTY,
            tpr: 0,
            ppr: 0,
            mode: Mode::Xapic,
            xapic_id: 0,
            logical_id: 0,
            error_armed: true,
            base: 0,
            dfr: dfr::FLAT,
            svr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; Lvt::ALL.len()],
            clock: Clockwork::new(config.bus_cycle_ns),
            features,
            config,
        };
        lapic.reset();
        lapic
    }

    /// Power-up reset (SDM vol. 3A 12.4.7.1): xAPIC mode at the default address, software
    /// disabled. The shell publishes the identity and stops its timer.
    pub fn reset(&mut self) {
        self.mode = Mode::Xapic;
        self.base = apic_base::DEFAULT | apic_base::ENABLE;
        if self.config.bsp {
            self.base |= apic_base::BSP;
        }
        self.xapic_id = (self.config.id & 0xff) as u8;
        self.init();
    }

    /// INIT (SDM vol. 3A 12.4.7.3): as a reset, but the id and IA32_APIC_BASE stay. The shell
    /// publishes the identity and stops its timer.
    pub fn init(&mut self) {
        self.irr = Vectors::EMPTY;
        self.isr = Vectors::EMPTY;
        self.tmr = Vectors::EMPTY;
        self.tpr = 0;
        self.ppr = 0;
        self.logical_id = 0;
        self.error_armed = true;
        self.dfr = dfr::FLAT;
        self.svr = svr::VECTOR;
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [lvt::MASKED; Lvt::ALL.len()];
        if self.config.bsp && self.config.lint0_extint {
            self.lvt[Lvt::Lint0 as usize] = lvt::MODE_EXTINT;
        }
        self.clock = Clockwork::new(self.config.bus_cycle_ns);
    }

    /// The configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What the guest's processor offers.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Follows a change of the guest's CPUID or of capabilities. If that turns the timer's mode
    /// into another, the timer is disarmed.
    pub fn set_features(&mut self, features: Features) -> Effect {
        self.features = features;
        self.follow_timer_mode()
    }

    /// What senders need to know of this APIC.
    pub const fn identity(&self) -> Identity {
        let model = match self.dfr {
            dfr::FLAT => LogicalModel::Flat,
            dfr::CLUSTER => LogicalModel::Cluster,
            _ => LogicalModel::Reserved,
        };
        Identity::new(
            self.config.id,
            self.xapic_id,
            self.logical_id,
            model,
            self.mode,
            self.software_enabled(),
        )
    }

    /// The mode.
    #[inline]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    #[inline]
    const fn software_enabled(&self) -> bool {
        self.svr & svr::ENABLE != 0
    }

    /// Globally and software enabled: fixed interrupts are accepted.
    #[inline]
    const fn enabled(&self) -> bool {
        self.software_enabled() && !matches!(self.mode, Mode::Disabled)
    }

    #[inline]
    const fn x2apic(&self) -> bool {
        matches!(self.mode, Mode::X2apic)
    }

    /// IA32_APIC_BASE.
    #[inline]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. A guest's write that makes a transition which SDM vol. 3A 12.12.5
    /// forbids, or sets a reserved bit, raises #GP. The `host` may make any transition between
    /// valid modes. Registers keep their values, but for the id, and for the logical id that
    /// x2APIC mode does not have.
    pub fn set_base(&mut self, value: u64, host: bool) -> Result<Effect, GeneralProtection> {
        if value == self.base {
            return Ok(Effect::None);
        }
        let mode = match (value & apic_base::ENABLE != 0, value & apic_base::EXTD != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::Xapic,
            (true, true) if self.features.x2apic => Mode::X2apic,
            _ => return Err(GeneralProtection),
        };
        let phys = 1u64
            .checked_shl(u32::from(self.features.phys_bits))
            .unwrap_or(0);
        let address = phys.wrapping_sub(1) & apic_base::ADDRESS;
        let defined = address | apic_base::BSP | apic_base::EXTD | apic_base::ENABLE;
        let forbidden = matches!(
            (self.mode, mode),
            (Mode::X2apic, Mode::Xapic) | (Mode::Disabled, Mode::X2apic)
        );
        if value & !defined != 0 || forbidden && !host {
            return Err(GeneralProtection);
        }
        self.base = value;
        if mode == self.mode {
            return Ok(Effect::None);
        }
        self.mode = mode;
        if mode != Mode::Disabled {
            self.xapic_id = (self.config.id & 0xff) as u8;
        }
        if mode == Mode::X2apic {
            self.logical_id = 0;
        }
        Ok(Effect::Identity(self.identity()))
    }

    /// Where `gpa` is for this processor.
    #[inline]
    pub const fn place(&self, gpa: u64) -> Place {
        if gpa & !0xfff != self.base & apic_base::ADDRESS {
            Place::Elsewhere
        } else if matches!(self.mode, Mode::Xapic) {
            Place::Register((gpa & 0xfff) as u16)
        } else {
            Place::Hole
        }
    }

    /// The vector to deliver, if its priority class is above the processor's (SDM vol. 3A
    /// 12.8.3.1). A globally disabled APIC delivers nothing; a software disabled one delivers what
    /// it had accepted (12.4.7.2).
    #[inline]
    pub const fn pending(&self) -> Option<u8> {
        match self.irr.highest() {
            Some(v) if v >> 4 > self.ppr >> 4 && !matches!(self.mode, Mode::Disabled) => Some(v),
            _ => None,
        }
    }

    /// The interrupt acknowledge: the vector to deliver goes from requested to in service.
    #[inline]
    pub fn ack(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        // INVARIANT: `vector` is above all others in service, and its class above the TPR's.
        self.ppr = vector & 0xf0;
        Some(vector)
    }

    /// The end of the interrupt in service with the highest priority. Returns its vector if the
    /// I/O APICs must hear of it. Without an interrupt in service nothing happens.
    #[inline]
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.update_ppr();
        (self.tmr.contains(vector) && !self.eoi_suppressed()).then_some(vector)
    }

    /// The requested vector of the highest priority, deliverable or not: for TPR thresholds.
    #[inline]
    pub const fn highest_request(&self) -> Option<u8> {
        self.irr.highest()
    }

    /// Whether the end of the interrupt in service may become known later: nothing is requested that
    /// could be delivered after it, and no I/O APIC waits for it.
    #[inline]
    pub const fn end_may_wait(&self) -> bool {
        match (self.irr.highest(), self.isr.highest()) {
            (None, Some(vector)) => !self.tmr.contains(vector),
            _ => false,
        }
    }

    /// The interrupt in service of the highest priority.
    #[inline]
    pub const fn in_service(&self) -> Option<u8> {
        self.isr.highest()
    }

    /// Whether `vector` is requested or in service, so that its EOI is still to come.
    pub const fn awaits_eoi(&self, vector: u8) -> bool {
        self.irr.contains(vector) || self.isr.contains(vector)
    }

    /// Accepts a fixed interrupt, true if it was not pending. A disabled APIC refuses it, and an
    /// illegal vector (0 to 15) becomes an error (SDM vol. 3A 12.5.2).
    #[inline]
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if vector < 16 {
            self.error(esr::RECEIVE_ILLEGAL);
            return false;
        }
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        self.irr.insert(vector)
    }

    /// Accepts the posted vectors of a word of 64: their senders saw that the APIC was enabled.
    #[inline]
    fn accept_word(&mut self, index: usize, mut posted: u64, level: u64) {
        if index & 3 == 0 && posted & 0xffff != 0 {
            self.error(esr::RECEIVE_ILLEGAL);
            posted &= !0xffff;
        }
        self.tmr.assign(index, posted, level);
        self.irr.assign(index, posted, !0);
    }

    /// An interrupt of the local source `source` (SDM vol. 3A 12.5.1). The timer has its own way:
    /// [`Self::timer_fired`].
    pub fn local(&mut self, source: Lvt) -> Local {
        let entry = self.lvt[source as usize];
        if matches!(self.mode, Mode::Disabled) || entry & lvt::MASKED != 0 {
            return Local::Ignored;
        }
        let level = entry & lvt::LEVEL != 0;
        let result = match DeliveryMode::from_low3(entry >> 8) {
            DeliveryMode::Fixed => {
                self.accept((entry & lvt::VECTOR) as u8, level);
                Local::Accepted
            }
            DeliveryMode::Nmi => Local::Nmi,
            DeliveryMode::Smi => Local::Smi,
            DeliveryMode::ExtInt => Local::ExtInt,
            _ => Local::Ignored,
        };
        if source == Lvt::Pmc && self.features.pmc_masks && result != Local::Ignored {
            self.lvt[Lvt::Pmc as usize] |= lvt::MASKED;
        }
        result
    }

    /// Whether the processor takes interrupts of an external controller (PIC): LINT0 is set to
    /// ExtINT, or the APIC is globally disabled and the pin leads straight to the processor.
    #[inline]
    pub const fn accepts_extint(&self) -> bool {
        matches!(self.mode, Mode::Disabled)
            || self.lvt[Lvt::Lint0 as usize] & (lvt::MASKED | lvt::MODE) == lvt::MODE_EXTINT
    }

    /// Records an error, and reports it once between two writes to the ESR (SDM vol. 3A 12.5.3).
    #[cold]
    fn error(&mut self, bits: u32) {
        self.errors |= bits;
        let entry = self.lvt[Lvt::Error as usize];
        if self.error_armed && entry & lvt::MASKED == 0 && self.enabled() {
            self.error_armed = false;
            let vector = (entry & lvt::VECTOR) as u8;
            if vector < 16 {
                self.errors |= esr::RECEIVE_ILLEGAL;
            } else {
                self.tmr.remove(vector);
                self.irr.insert(vector);
            }
        }
    }

    /// The shell's timer fired (or may have). Raises the timer's interrupt if it is due, and says
    /// how the shell's timer goes on. A timer that is early, or was meant for a setting that has
    /// changed, only returns what to arm.
    pub fn timer_fired(&mut self, now: Now) -> Timer {
        let (due, timer) = self.clock.expire(now);
        if due {
            self.raise_timer();
        }
        timer
    }

    fn raise_timer(&mut self) {
        let entry = self.lvt[Lvt::Timer as usize];
        if entry & lvt::MASKED == 0 {
            self.accept((entry & lvt::VECTOR) as u8, false);
        }
    }

    /// What the shell's timer should be doing, for a shell that stopped it (the vCPU has moved, or
    /// the TSC's offset has changed).
    pub fn timer(&self) -> Timer {
        self.clock.running()
    }

    /// The timer's mode.
    pub const fn timer_mode(&self) -> TimerMode {
        self.clock.mode
    }

    fn follow_timer_mode(&mut self) -> Effect {
        let mode = TimerMode::of(self.lvt[Lvt::Timer as usize], self.features.tsc_deadline);
        self.clock
            .set_mode(mode)
            .map_or(Effect::None, Effect::Timer)
    }

    /// IA32_TSC_DEADLINE: 0 if the timer is in another mode, or disarmed.
    pub const fn tsc_deadline(&self) -> u64 {
        self.clock.deadline
    }

    /// Writes IA32_TSC_DEADLINE (SDM vol. 3A 12.5.4.1): ignored in another mode. A deadline that
    /// has passed raises the interrupt at once; 0 disarms.
    pub fn set_tsc_deadline(&mut self, deadline: u64, tsc: impl FnOnce() -> u64) -> Effect {
        if self.clock.mode != TimerMode::TscDeadline || matches!(self.mode, Mode::Disabled) {
            return Effect::None;
        }
        self.clock.deadline = deadline;
        Effect::Timer(self.timer_fired(Now {
            ns: 0,
            tsc: if deadline == 0 { 0 } else { tsc() },
        }))
    }

    /// Task priority register.
    #[inline]
    pub const fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Writes the task priority register.
    #[inline]
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    /// CR8: the class of the task priority.
    #[inline]
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8 (bits 3:0; the caller has checked the rest).
    #[inline]
    pub fn set_cr8(&mut self, cr8: u8) {
        self.set_tpr((cr8 & 0xf) << 4);
    }

    /// Processor priority register.
    #[inline]
    pub const fn ppr(&self) -> u8 {
        self.ppr
    }

    /// The higher class of the task priority and of the interrupt in service; the sub-class counts
    /// only for the task priority (SDM vol. 3A 12.8.3.1).
    #[inline]
    fn update_ppr(&mut self) {
        let service = match self.isr.highest() {
            Some(vector) => vector & 0xf0,
            None => 0,
        };
        self.ppr = if self.tpr & 0xf0 >= service {
            self.tpr
        } else {
            service
        };
    }

    /// The version register.
    const fn version(&self) -> u32 {
        let last = if self.features.cmci { 6 } else { 5 };
        let directed = if self.features.directed_eoi {
            version::DIRECTED_EOI
        } else {
            0
        };
        version::INTEGRATED | last << 16 | directed
    }
}
