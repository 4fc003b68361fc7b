// SPDX-License-Identifier: GPL-2.0

//! The arbiter of events: what an entry into the guest injects, and which windows it asks for.
//!
//! An event is *pending* while it has had no effect on the guest's state, and *injected* from the
//! entry that injects it until an exit shows that the processor delivered it. What the exit says
//! was cut short (EXITINTINFO, IDT-vectoring information) stays injected and goes first at the
//! next entry. Sources: AMD APM vol. 2 8.2.9, 8.5 and 15.20, Intel SDM vol. 3A 6.9 and 6.15; for
//! the state that user space sees, KVM's api.rst (KVM_GET_VCPU_EVENTS, KVM_CAP_EXCEPTION_PAYLOAD).

use super::lapic::Lapic;
use super::regs::{vector, Exception};

/// Where maskable interrupts come from.
pub trait Interrupts {
    /// Whether one could be delivered to a processor that takes interrupts.
    fn pending(&self) -> bool;
    /// Acknowledges it.
    fn acknowledge(&mut self) -> Option<u8>;
}

impl Interrupts for Lapic {
    #[inline]
    fn pending(&self) -> bool {
        Lapic::pending(self).is_some()
    }
    #[inline]
    fn acknowledge(&mut self) -> Option<u8> {
        self.ack()
    }
}

/// What of the processor's state decides about interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// RFLAGS.IF
    pub interrupt_flag: bool,
    /// The instruction after STI, MOV SS or POP SS is next. Holds off interrupts, and NMIs as well
    /// (SDM vol. 3A 6.8.3 allows that after STI, and requires it after the others).
    pub shadow: bool,
    /// The global interrupt flag (APM vol. 2 15.17); always true without SVM in the guest.
    pub gif: bool,
}

impl Cpu {
    const fn takes_interrupts(self) -> bool {
        self.interrupt_flag && !self.shadow && self.gif
    }
    const fn takes_nmis(self) -> bool {
        !self.shadow && self.gif
    }
}

/// An event to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception.
    Exception {
        /// Vector
        vector: u8,
        /// Error code, for vectors that push one
        error: Option<u32>,
        /// What goes into CR2 (#PF) or is or-ed into DR6 (#DB), before the injection. Only at the
        /// first attempt.
        payload: Option<u64>,
        /// The first attempt, so RFLAGS.RF is to be set if the exception is a fault, and #DB
        /// clears DR7.GD.
        first: bool,
    },
    /// A non-maskable interrupt. NMIs are masked from now on until IRET.
    Nmi,
    /// An interrupt.
    Interrupt {
        /// Vector
        vector: u8,
        /// From an INT instruction, which needs the address after it
        soft: bool,
    },
}

/// What an entry does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Inject this.
    pub inject: Option<Event>,
    /// An interrupt waits: exit as soon as one can be delivered.
    pub interrupt_window: bool,
    /// An NMI waits: exit as soon as one can be delivered.
    pub nmi_window: bool,
}

/// The processor shuts down: KVM_EXIT_SHUTDOWN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault;

/// An external vector waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What an exit interrupted (EXITINTINFO, IDT-vectoring information). Software exceptions (INT3,
/// INTO) are reported here only where they are injected with their length (VMX); elsewhere their
/// instruction runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Delivery of an exception
    Exception {
        /// Vector
        vector: u8,
        /// Error code
        error: Option<u32>,
    },
    /// Delivery of an NMI
    Nmi,
    /// Delivery of an interrupt
    Interrupt {
        /// Vector
        vector: u8,
        /// INT n
        soft: bool,
    },
}

/// How exceptions combine (APM vol. 2 table 8-3, SDM vol. 3A table 6-4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    const fn of(vector: u8) -> Self {
        match vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP => {
                Class::Contributory
            }
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

/// Whether an exception of this vector is a fault, and so pushes RFLAGS with RF set (APM vol. 2
/// 8.2: traps are #BP, #OF and, here, #DB; aborts are #DF and #MC).
pub const fn is_fault(vector: u8) -> bool {
    !matches!(
        vector,
        vector::DB | vector::BP | vector::OF | vector::DF | vector::MC
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queued {
    exception: Exception,
    injected: bool,
}

/// The events of one vCPU. Owned by its thread.
///
/// # Invariants
///
/// An injected exception has no payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    exception: Option<Queued>,
    /// In delivery: vector, soft
    interrupt: Option<(u8, bool)>,
    nmi_injected: bool,
    nmi_masked: bool,
    /// 0 to 2
    nmi_pending: u8,
    /// A vector of an external controller that user space has acknowledged (KVM_INTERRUPT)
    extint: Option<u8>,
    triple_fault: bool,
}

impl Events {
    /// No events.
    pub const fn new() -> Self {
        Self {
            exception: None,
            interrupt: None,
            nmi_injected: false,
            nmi_masked: false,
            nmi_pending: 0,
            extint: None,
            triple_fault: false,
        }
    }

    /// Raises `exception`, which combines with one that is already there: to a double fault, a
    /// triple fault, or, if the two are handled one after the other, it replaces the first, which
    /// comes again when its instruction does.
    ///
    /// Returns what CR2 becomes now, if a page fault has turned into something else.
    pub fn raise(&mut self, exception: Exception) -> Option<u64> {
        use Class::*;
        let first = self
            .exception
            .map_or(Benign, |q| Class::of(q.exception.vector));
        let second = Class::of(exception.vector);
        let address = exception.payload.filter(|_| second == PageFault);
        match (first, second) {
            (DoubleFault, Contributory | PageFault | DoubleFault) => {
                self.exception = None;
                self.triple_fault = true;
                address
            }
            (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
                let exception = Exception::with_error(vector::DF, 0);
                self.exception = Some(Queued {
                    exception,
                    injected: false,
                });
                address
            }
            _ => {
                self.exception = Some(Queued {
                    exception,
                    injected: false,
                });
                None
            }
        }
    }

    /// Shuts the processor down at the next entry.
    pub fn raise_triple_fault(&mut self) {
        self.triple_fault = true;
    }

    /// Adds `count` NMIs to the pending ones. One is latched while another is in service or about
    /// to be; the rest are lost (APM vol. 2 8.2.3).
    pub fn raise_nmi(&mut self, count: u8) {
        let limit = if self.nmi_injected || self.nmi_masked {
            1
        } else {
            2
        };
        self.nmi_pending = self.nmi_pending.saturating_add(count).min(limit);
    }

    /// Takes the vector of an external controller, to be delivered when the processor takes
    /// interrupts.
    pub fn raise_extint(&mut self, vector: u8) -> Result<(), Busy> {
        if self.extint.is_some() {
            return Err(Busy);
        }
        self.extint = Some(vector);
        Ok(())
    }

    /// Injects the software interrupt `vector` at the next entry (an emulated INT n).
    pub fn raise_soft_interrupt(&mut self, vector: u8) {
        self.interrupt = Some((vector, true));
    }

    /// Drops a pending or injected exception (KVM_SET_REGS).
    pub fn clear_exception(&mut self) {
        self.exception = None;
    }

    /// The interrupt whose delivery is under way, if it is no software interrupt:
    /// kvm_sregs.interrupt_bitmap.
    pub fn interrupt_in_delivery(&self) -> Option<u8> {
        self.interrupt
            .and_then(|(vector, soft)| (!soft).then_some(vector))
    }

    /// Delivers the interrupt `vector` at the next entry, whatever the processor's state
    /// (KVM_SET_SREGS restores a delivery that was under way).
    pub fn requeue_interrupt(&mut self, vector: u8) {
        self.interrupt = Some((vector, false));
    }

    /// Whether NMIs are masked, because one is in service.
    pub const fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// Masks or unmasks NMIs: an IRET has been executed, or the hardware keeps track.
    pub fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
    }

    /// Whether an exception is pending or injected.
    pub const fn has_exception(&self) -> bool {
        self.exception.is_some()
    }

    /// Whether an event's delivery is under way, to be resumed by the next entry.
    pub fn needs_reinjection(&self) -> bool {
        self.exception.is_some_and(|q| q.injected) || self.interrupt.is_some() || self.nmi_injected
    }

    /// Whether a vector of an external controller waits.
    pub const fn has_extint(&self) -> bool {
        self.extint.is_some()
    }

    /// Whether a vector that user space brings now would be delivered by the next entry:
    /// kvm_run.ready_for_interrupt_injection, if the local APIC accepts such vectors too.
    pub fn ready_for_extint(&self, cpu: Cpu) -> bool {
        cpu.takes_interrupts()
            && self.exception.is_none()
            && self.extint.is_none()
            && !self.needs_reinjection()
    }

    /// Whether something wakes a halted processor.
    pub fn wakes(&self, cpu: Cpu, interrupts: &impl Interrupts) -> bool {
        self.triple_fault
            || self.exception.is_some()
            || self.needs_reinjection()
            || self.nmi_pending != 0 && !self.nmi_masked && cpu.takes_nmis()
            || cpu.takes_interrupts() && (self.extint.is_some() || interrupts.pending())
    }

    /// Whether nothing is to be injected, whatever the processor's state, but for the interrupts
    /// of the local APIC: the hot path's test.
    #[inline]
    pub const fn is_idle(&self) -> bool {
        self.exception.is_none()
            && self.interrupt.is_none()
            && !self.nmi_injected
            && self.nmi_pending == 0
            && self.extint.is_none()
            && !self.triple_fault
    }

    /// What the next entry does. An event that it chooses becomes injected; if the entry does not
    /// take place, the next call chooses it again.
    ///
    /// An exception goes before everything else: it belongs to the instruction that just ran, or to
    /// the delivery of an interrupt, which is lost then, as it is in hardware.
    pub fn next(
        &mut self,
        cpu: Cpu,
        interrupts: &mut impl Interrupts,
    ) -> Result<Entry, TripleFault> {
        if self.is_idle() && !interrupts.pending() {
            return Ok(Entry::default());
        }
        if core::mem::take(&mut self.triple_fault) {
            return Err(TripleFault);
        }
        let inject = match self.resume() {
            Some(event) => Some(event),
            None => self.choose(cpu, interrupts),
        };
        Ok(Entry {
            inject,
            interrupt_window: self.extint.is_some() || interrupts.pending(),
            nmi_window: self.nmi_pending != 0,
        })
    }

    /// The event that is injected already, or the pending exception.
    fn resume(&mut self) -> Option<Event> {
        if let Some(queued) = &mut self.exception {
            let first = !core::mem::replace(&mut queued.injected, true);
            // INVARIANT: injected, so without payload.
            let payload = queued.exception.payload.take();
            let Exception { vector, error, .. } = queued.exception;
            self.interrupt = None;
            self.nmi_injected = false;
            return Some(Event::Exception {
                vector,
                error,
                payload,
                first,
            });
        }
        if self.nmi_injected {
            return Some(Event::Nmi);
        }
        self.interrupt
            .map(|(vector, soft)| Event::Interrupt { vector, soft })
    }

    /// A pending event that the processor takes now.
    fn choose(&mut self, cpu: Cpu, interrupts: &mut impl Interrupts) -> Option<Event> {
        if self.nmi_pending != 0 && !self.nmi_masked && cpu.takes_nmis() {
            self.nmi_pending -= 1;
            self.nmi_injected = true;
            self.nmi_masked = true;
            return Some(Event::Nmi);
        }
        if !cpu.takes_interrupts() {
            return None;
        }
        let vector = match self.extint.take() {
            Some(vector) => vector,
            None => interrupts.acknowledge()?,
        };
        self.interrupt = Some((vector, false));
        Some(Event::Interrupt {
            vector,
            soft: false,
        })
    }

    /// An exit has come: the injected event was delivered, but for what the exit interrupted.
    /// Exceptions that the exit itself raises come after this.
    #[inline]
    pub fn exited(&mut self, interrupted: Option<Interrupted>) {
        if self.exception.is_some_and(|q| q.injected) {
            self.exception = None;
        }
        self.interrupt = None;
        self.nmi_injected = false;
        match interrupted {
            None => {}
            Some(Interrupted::Nmi) => {
                self.nmi_injected = true;
                self.nmi_masked = true;
            }
            Some(Interrupted::Interrupt { vector, soft }) => self.interrupt = Some((vector, soft)),
            Some(Interrupted::Exception { vector, error }) => {
                let exception = Exception {
                    vector,
                    error,
                    payload: None,
                };
                self.exception = Some(Queued {
                    exception,
                    injected: true,
                });
            }
        }
    }

    /// Takes the payload of the pending exception, to be written to CR2 or DR6 now: for
    /// KVM_GET_VCPU_EVENTS by user space that has not enabled KVM_CAP_EXCEPTION_PAYLOAD, and so
    /// would lose it. Returns the vector too.
    pub fn take_payload(&mut self) -> Option<(u8, u64)> {
        let queued = self.exception.as_mut()?;
        Some((queued.exception.vector, queued.exception.payload.take()?))
    }

    /// The state for KVM_GET_VCPU_EVENTS. Without `payload_enabled` a pending exception is shown as
    /// injected (see [`Self::take_payload`]). Software exceptions and interrupts are left out, as
    /// there is no field for their instruction's length: they come again when it runs again.
    pub fn save(&self, payload_enabled: bool) -> VcpuEvents {
        let mut out = VcpuEvents {
            nmi_injected: self.nmi_injected,
            nmi_pending: self.nmi_pending != 0,
            nmi_masked: self.nmi_masked,
            triple_fault_pending: self.triple_fault,
            ..VcpuEvents::default()
        };
        if let Some(Queued {
            exception,
            injected,
        }) = self.exception
        {
            if !matches!(exception.vector, vector::BP | vector::OF) {
                out.exception_injected = injected || !payload_enabled;
                out.exception_pending = !injected && payload_enabled;
                out.exception_nr = exception.vector;
                out.exception_error = exception.error;
                out.exception_payload = exception.payload;
            }
        }
        if let Some((vector, false)) = self.interrupt {
            out.interrupt_injected = true;
            out.interrupt_nr = vector;
        }
        out
    }

    /// Takes the state of KVM_SET_VCPU_EVENTS. Fields whose flag user space did not set must have
    /// been filled in from [`Self::save`]; with the payload's flag clear, `exception_pending` must
    /// be false. On an error nothing changes.
    pub fn load(&mut self, state: &VcpuEvents) -> Result<(), InvalidEvents> {
        let exception = state.exception_injected || state.exception_pending;
        if exception && (state.exception_nr > 31 || state.exception_nr == vector::NMI) {
            return Err(InvalidEvents);
        }
        self.exception = exception.then_some(Queued {
            exception: Exception {
                vector: state.exception_nr,
                error: state.exception_error,
                // INVARIANT: only a pending exception has a payload.
                payload: state.exception_payload.filter(|_| state.exception_pending),
            },
            // Pending goes first, if somebody sets both.
            injected: !state.exception_pending,
        });
        self.interrupt = state
            .interrupt_injected
            .then_some((state.interrupt_nr, state.interrupt_soft));
        self.nmi_injected = state.nmi_injected;
        if state.nmi_pending != (self.nmi_pending != 0) {
            self.nmi_pending = u8::from(state.nmi_pending);
        }
        self.nmi_masked = state.nmi_masked;
        self.triple_fault = state.triple_fault_pending;
        Ok(())
    }
}

/// The exception's vector is not one of an exception: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidEvents;

/// What struct kvm_vcpu_events says about [`Events`]. The interrupt shadow, SMM and start-up
/// vectors are not in the arbiter's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuEvents {
    /// exception.injected
    pub exception_injected: bool,
    /// exception.pending
    pub exception_pending: bool,
    /// exception.nr
    pub exception_nr: u8,
    /// exception.error_code, if exception.has_error_code
    pub exception_error: Option<u32>,
    /// exception_payload, if exception_has_payload
    pub exception_payload: Option<u64>,
    /// interrupt.injected
    pub interrupt_injected: bool,
    /// interrupt.nr
    pub interrupt_nr: u8,
    /// interrupt.soft
    pub interrupt_soft: bool,
    /// nmi.injected
    pub nmi_injected: bool,
    /// nmi.pending
    pub nmi_pending: bool,
    /// nmi.masked
    pub nmi_masked: bool,
    /// triple_fault.pending
    pub triple_fault_pending: bool,
}
