// SPDX-License-Identifier: GPL-2.0

//! What other threads may touch of an x86 vCPU: its interrupt inbox and published identity, and the
//! alarm of its APIC timer.

use super::model::lapic::{DeliveryMode, Identity, Inbox, Posted, SharedIdentity, Target, Timer};
use crate::{
    arch::x86::{backend::Backend, X86},
    host::kick::Kick,
    vcpu::Core,
};
use core::sync::atomic::AtomicU32;
use kernel::{
    impl_has_hr_timer,
    prelude::*,
    sync::{Arc, ArcBorrow},
    time::{
        hrtimer::{
            ArcHrTimerHandle, HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerPointer,
            HrTimerRestart, RelativeHardMode,
        },
        ClockSource, Delta, Monotonic,
    },
};

/// A vCPU's place in the machine, as senders of interrupts see it.
pub(crate) struct Shared {
    /// What was sent to it.
    pub(crate) mail: Arc<Mail>,
    /// Who it is.
    pub(crate) identity: SharedIdentity,
    /// Frequency of its TSC, in kHz.
    pub(crate) tsc_khz: AtomicU32,
}

/// An inbox with the bell that goes with it.
#[pin_data]
pub(crate) struct Mail {
    /// Interrupts posted by others, and by the timer.
    pub(crate) inbox: Inbox,
    kick: Arc<Kick>,
    #[pin]
    timer: HrTimer<Self>,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Mail { mode: RelativeHardMode<Monotonic>, field: self.timer }
}

impl HrTimerCallback for Mail {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        if this.inbox.post_timer().wake {
            this.kick.ring(0);
        }
        HrTimerRestart::NoRestart
    }
}

impl Mail {
    /// Has the vCPU, whose thread calls this, leave the section that it is in or next enters, and look
    /// at these bits of the family's.
    pub(crate) fn request(&self, bits: u64) {
        self.kick.post(bits);
    }

    /// An empty inbox of the vCPU that `kick` rings.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(kick: &Arc<Kick>) -> Result<Arc<Self>> {
        let kick = kick.clone();
        Arc::pin_init(
            try_pin_init!(Self {
                inbox: Inbox::new(),
                kick,
                timer <- HrTimer::new(),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

/// The host timer that stands behind a vCPU's APIC timer. Owned by the vCPU's thread.
pub(crate) struct Alarm {
    mail: Arc<Mail>,
    armed: Option<ArcHrTimerHandle<Mail>>,
    /// The guest's TSC at which it is to ring, by the processor while the guest runs.
    deadline: Option<u64>,
}

/// Who rings at a deadline of the TSC.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ringer {
    /// The host's timer
    Host,
    /// The processor's, while the guest runs; the host's while the vCPU sleeps.
    Processor,
}

/// The monotonic clock, in ns: the one that the APIC timer runs by.
#[inline]
pub(crate) fn now_ns() -> u64 {
    u64::try_from(Monotonic::ktime_get()).unwrap_or(0)
}

impl Alarm {
    /// The vCPU's own inbox, where it rings.
    pub(crate) fn mail(&self) -> &Mail {
        &self.mail
    }

    /// A quiet one.
    pub(crate) fn new(mail: Arc<Mail>) -> Self {
        Self {
            mail,
            armed: None,
            deadline: None,
        }
    }

    /// Does what the model asks for. `until` turns a guest TSC into a time from now, in ns.
    pub(crate) fn set(&mut self, t: Timer, ringer: Ringer, until: impl FnOnce(u64) -> u64) {
        // Dropping the handle stops the timer, and waits for a callback that runs.
        self.armed = None;
        self.deadline = None;
        let delta = match t {
            Timer::Cancel => return,
            Timer::ArmNs(at) => at.saturating_sub(now_ns()),
            Timer::ArmTsc(at) if ringer == Ringer::Processor => {
                self.deadline = Some(at);
                return;
            }
            Timer::ArmTsc(at) => until(at),
        };
        self.start(delta);
    }

    /// The deadline, if the processor is to ring at it.
    #[inline]
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// The vCPU is about to sleep: the host's timer rings. That it goes on when something else has woken
    /// the vCPU does no harm.
    pub(crate) fn sleeps(&mut self, until: impl FnOnce(u64) -> u64) {
        if let Some(at) = self.deadline {
            self.armed = None;
            self.start(until(at));
        }
    }

    /// Rings in so many ns.
    fn start(&mut self, delta: u64) {
        if delta == 0 {
            self.mail.inbox.post_timer();
            return;
        }
        let delta = Delta::from_nanos(i64::try_from(delta).unwrap_or(i64::MAX));
        self.armed = Some(self.mail.clone().start(delta));
    }
}

impl<B: Backend> Target for Core<X86<B>> {
    #[inline]
    fn identity(&self) -> Identity {
        self.shared.identity.get()
    }

    fn post(&self, mode: DeliveryMode, vector: u8, level: bool) -> Posted {
        match self.shared.mail.inbox.post_message(mode, vector, level) {
            None => Posted::Blocked,
            Some(p) => {
                if p.wake {
                    self.kick.ring(0);
                }
                if p.fresh {
                    Posted::Fresh
                } else {
                    Posted::Coalesced
                }
            }
        }
    }
}
