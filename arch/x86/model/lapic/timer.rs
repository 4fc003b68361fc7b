// SPDX-License-Identifier: GPL-2.0

//! The timer of the local APIC: one-shot, periodic, TSC deadline.
//!
//! Nothing here counts. A running timer is the time at which it expires; the current count is
//! computed from that when somebody reads it. Sources: SDM vol. 3A 12.5.4, APM vol. 2 16.4.1.

use super::regs::lvt;

/// The shortest period that a guest gets, in ns, so that it cannot keep the host busy with timers
/// (the same as the kernel's own KVM).
pub const MIN_PERIOD_NS: u64 = 200_000;

/// The time, as the shell sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A monotonic clock, in ns: the one that [`Timer::ArmNs`] is about.
    pub ns: u64,
    /// The guest's TSC.
    pub tsc: u64,
}

/// What the shell does with its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Stop it; a firing that is under way does no harm.
    Cancel,
    /// Have it fire when the monotonic clock reaches this many ns.
    ArmNs(u64),
    /// Have it fire when the guest's TSC reaches this.
    ArmTsc(u64),
}

/// Timer mode (LVT timer bits 18:17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// Counts down once
    OneShot,
    /// Reloads
    Periodic,
    /// Fires when the TSC reaches a deadline
    TscDeadline,
    /// Reserved: does not run
    Reserved,
}

impl TimerMode {
    /// The mode in the LVT timer entry. Without the TSC deadline feature bit 18 has no meaning.
    #[inline]
    pub const fn of(entry: u32, tsc_deadline: bool) -> Self {
        let known = if tsc_deadline {
            lvt::TIMER_MODE
        } else {
            lvt::PERIODIC
        };
        match entry & known {
            0 => TimerMode::OneShot,
            lvt::PERIODIC => TimerMode::Periodic,
            lvt::TSC_DEADLINE => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }

    /// Whether it counts the initial count down.
    const fn counts(self) -> bool {
        matches!(self, TimerMode::OneShot | TimerMode::Periodic)
    }
}

/// The state of the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clockwork {
    pub(super) mode: TimerMode,
    /// Initial count register
    pub(super) initial: u32,
    /// Divide configuration register
    pub(super) divide: u32,
    /// Length of a bus cycle, ns, at least 1
    pub(super) bus_cycle_ns: u32,
    /// When it expires, ns, if it runs
    pub(super) expires: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed
    pub(super) deadline: u64,
}

impl Clockwork {
    pub(super) const fn new(bus_cycle_ns: u32) -> Self {
        Self {
            mode: TimerMode::OneShot,
            initial: 0,
            divide: 0,
            bus_cycle_ns,
            expires: None,
            deadline: 0,
        }
    }

    /// What the divide configuration divides by: bits 3, 1 and 0 make a number from 0 (by 2) to 6
    /// (by 128), and 7 is by 1.
    pub(super) const fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// Length of one count, ns.
    fn unit(&self) -> u64 {
        u64::from(self.bus_cycle_ns)
            .max(1)
            .wrapping_mul(self.divisor())
    }

    /// The time from one expiry to the next, ns, or 0 if there is no count.
    fn period(&self) -> u64 {
        let period = u64::from(self.initial).saturating_mul(self.unit());
        match self.mode {
            TimerMode::Periodic if period != 0 => period.max(MIN_PERIOD_NS),
            _ => period,
        }
    }

    fn order(&self) -> Timer {
        match self.expires {
            Some(at) => Timer::ArmNs(at),
            None => Timer::Cancel,
        }
    }

    /// Current count: rounded up, so that it starts at the initial count and is 0 when, and only
    /// when, the timer has expired or stands.
    pub(super) fn current(&self, now_ns: u64) -> u32 {
        let (true, Some(at)) = (self.mode.counts(), self.expires) else {
            return 0;
        };
        let left = match self.mode {
            // The expiry is not known to have been noticed yet.
            TimerMode::Periodic if now_ns >= at => self.next_after(at, now_ns).wrapping_sub(now_ns),
            _ => at.saturating_sub(now_ns),
        };
        u32::try_from(left.div_ceil(self.unit()))
            .unwrap_or(u32::MAX)
            .min(self.initial)
    }

    /// The first time after `now_ns` that is whole periods after `at`.
    fn next_after(&self, at: u64, now_ns: u64) -> u64 {
        let period = self.period().max(1);
        let late = now_ns.saturating_sub(at);
        at.saturating_add((late / period).saturating_add(1).saturating_mul(period))
    }

    /// Writes the initial count, which starts the timer, or stops it with 0.
    pub(super) fn set_initial(&mut self, count: u32, now_ns: u64) -> Option<Timer> {
        if !self.mode.counts() {
            return None;
        }
        self.initial = count;
        self.expires = (count != 0).then(|| now_ns.saturating_add(self.period()));
        Some(self.order())
    }

    /// Writes the divide configuration: what is left of the count goes on at the new speed.
    pub(super) fn set_divide(&mut self, value: u32, now_ns: u64) -> Option<Timer> {
        let count = self.current(now_ns);
        let old = self.divisor();
        self.divide = value & 0xb;
        if old == self.divisor() || !self.mode.counts() {
            return None;
        }
        let at = self.expires?;
        // An expiry that has passed stays due.
        if at > now_ns {
            let left = u64::from(count).saturating_mul(self.unit());
            self.expires = Some(now_ns.saturating_add(left));
        }
        Some(self.order())
    }

    /// Follows a change of the LVT timer entry. Into and out of TSC deadline mode the timer is
    /// disarmed (SDM vol. 3A 12.5.4.1); between one-shot and periodic the count goes on.
    pub(super) fn set_mode(&mut self, mode: TimerMode) -> Option<Timer> {
        let old = core::mem::replace(&mut self.mode, mode);
        if old == mode || old.counts() && mode.counts() {
            return None;
        }
        self.initial = 0;
        self.expires = None;
        self.deadline = 0;
        Some(Timer::Cancel)
    }

    /// Whether the timer is due; if so it has expired with this call, and a periodic one runs
    /// again: in phase, with the periods that nobody saw left out. Also returns what to do with
    /// the shell's timer, so it does not matter if that fired too early, or for a time that the
    /// guest has changed since.
    pub(super) fn expire(&mut self, now: Now) -> (bool, Timer) {
        match self.mode {
            TimerMode::OneShot => match self.expires {
                Some(at) if now.ns >= at => {
                    self.expires = None;
                    (true, Timer::Cancel)
                }
                _ => (false, self.order()),
            },
            TimerMode::Periodic => match self.expires {
                Some(at) if now.ns >= at => {
                    self.expires = Some(self.next_after(at, now.ns));
                    (true, self.order())
                }
                _ => (false, self.order()),
            },
            TimerMode::TscDeadline => match self.deadline {
                0 => (false, Timer::Cancel),
                deadline if now.tsc >= deadline => {
                    self.deadline = 0;
                    (true, Timer::Cancel)
                }
                deadline => (false, Timer::ArmTsc(deadline)),
            },
            TimerMode::Reserved => (false, Timer::Cancel),
        }
    }

    /// Restores the counters, and starts the timer if there is an initial count. Where user space
    /// does not keep the current count, `current` is 0: a periodic timer then starts anew, and a
    /// one-shot timer is due at once. One that had expired already so ticks once more than it
    /// should, which guests bear; they do not bear a tick that never comes.
    pub(super) fn restore(&mut self, initial: u32, current: u32, divide: u32, now_ns: u64) {
        self.divide = divide & 0xb;
        self.initial = initial;
        let left = match (self.mode, current) {
            (TimerMode::Periodic, 0) => self.period(),
            (_, count) => u64::from(count.min(initial)).saturating_mul(self.unit()),
        };
        let runs = initial != 0 && self.mode.counts();
        self.expires = runs.then(|| now_ns.saturating_add(left));
    }

    /// What the shell's timer should be doing.
    pub(super) fn running(&self) -> Timer {
        match self.mode {
            TimerMode::TscDeadline if self.deadline != 0 => Timer::ArmTsc(self.deadline),
            TimerMode::TscDeadline => Timer::Cancel,
            _ => self.order(),
        }
    }
}
