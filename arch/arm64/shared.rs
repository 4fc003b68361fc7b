// SPDX-License-Identifier: GPL-2.0

//! What other threads may touch of an arm64 vCPU, and the alarm that ends its wait.

use super::gic;
use crate::host::kick::Kick;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use kernel::{
    impl_has_hr_timer,
    prelude::*,
    sync::{Arc, ArcBorrow},
    time::{
        hrtimer::{
            ArcHrTimerHandle, HrTimer, HrTimerCallback, HrTimerCallbackContext, HrTimerPointer,
            HrTimerRestart, RelativeHardMode,
        },
        Delta, Monotonic,
    },
};

/// A vCPU, as others see it.
pub(crate) struct Shared {
    /// Its interrupts.
    pub(crate) gic: Arc<gic::Cpu>,
    /// What PSCI wants of it.
    pub(crate) power: Power,
    /// MPIDR_EL1: how it is addressed.
    pub(crate) mpidr: AtomicU64,
    /// The INTID of its PMU's overflows; 0: none (`KVM_ARM_VCPU_PMU_V3_IRQ`).
    pub(crate) pmu_irq: AtomicU32,
}

/// A request of another vCPU's, by PSCI.
pub(crate) struct Power {
    /// One of [`power`]; while it is `STARTING`, `entry` and `context` say how.
    pub(crate) state: AtomicU64,
    /// Where it starts.
    pub(crate) entry: AtomicU64,
    /// Its x0 then.
    pub(crate) context: AtomicU64,
    /// It sees data in big-endian order then, as its caller does.
    pub(crate) big_endian: AtomicBool,
}

/// [`Power::state`]
pub(crate) mod power {
    /// Off
    pub(crate) const OFF: u64 = 0;
    /// On
    pub(crate) const ON: u64 = 1;
    /// CPU_ON was called for it: it is to start.
    pub(crate) const STARTING: u64 = 2;
    /// A caller of CPU_ON is about to say where it starts.
    pub(crate) const CLAIMED: u64 = 3;
    /// User space has it wait for an interrupt, of which it wants to hear (`KVM_MP_STATE_SUSPENDED`).
    pub(crate) const SUSPENDED: u64 = 4;
}

/// The host timer behind a vCPU's own: it rings when that would interrupt the guest, while the
/// vCPU is not on a CPU.
#[pin_data]
struct Bell {
    kick: Arc<Kick>,
    #[pin]
    timer: HrTimer<Self>,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Bell { mode: RelativeHardMode<Monotonic>, field: self.timer }
}

impl HrTimerCallback for Bell {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        this.kick.ring(0);
        HrTimerRestart::NoRestart
    }
}

/// Owned by the vCPU's thread.
pub(crate) struct Alarm {
    bell: Arc<Bell>,
    armed: Option<ArcHrTimerHandle<Bell>>,
}

impl Alarm {
    /// A quiet one.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(kick: &Arc<Kick>) -> Result<Self> {
        let kick = kick.clone();
        let bell = Arc::pin_init(
            try_pin_init!(Bell {
                kick,
                timer <- HrTimer::new(),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Self { bell, armed: None })
    }

    /// Rings so many ns from now.
    pub(crate) fn set(&mut self, ns: u64) {
        // Dropping the handle stops the timer, and waits for a callback that runs.
        self.armed = None;
        let delta = Delta::from_nanos(i64::try_from(ns).unwrap_or(i64::MAX));
        self.armed = Some(self.bell.clone().start(delta));
    }

    /// Does not ring.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.armed.is_some() {
            self.armed = None;
        }
    }
}
