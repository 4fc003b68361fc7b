// SPDX-License-Identifier: GPL-2.0

//! A debugger in user space (`KVM_SET_GUEST_DEBUG`), and whose the debug registers are.
//!
//! All is decided when the debugger says what it wants: by intercepts, by RFLAGS.TF and by the debug
//! registers that the hardware is given. While it steps or has breakpoints, every #DB is its own; the
//! guest's registers are kept aside then ([`Displaced`]), and each access to them exits.

use super::{
    args::debug::{Request, Wanted},
    backend::{Backend, HwVcpu},
    model::{
        regs::{rflags, vector, Exception},
        sregs::{DR6_INIT, DR7_INIT},
    },
    vcpu::Vcpu,
    DEBUG_EXIT,
};
use crate::{abi::exit::Common, bindings as rb, host::trace};
use kernel::prelude::*;

/// DR6.BD: an access to a debug register.
const ACCESS: u64 = 1 << 13;
/// DR6.BS: a single step.
const SINGLE_STEP: u64 = 1 << 14;
/// DR7.GD: accesses to debug registers fault.
pub(crate) const GENERAL_DETECT: u64 = 1 << 13;

/// The guest's debug registers, while the hardware has others.
#[derive(Clone, Copy)]
struct Displaced {
    dr: [u64; 4],
    dr6: u64,
    dr7: u64,
    /// The guest used its registers before.
    used: bool,
}

/// What a debugger has asked of one vCPU.
#[derive(Default)]
pub(crate) struct GuestDebug {
    wanted: Wanted,
    /// There while all #DBs are the debugger's.
    displaced: Option<Displaced>,
    /// The guest's own RFLAGS.TF, while the hardware's is set to step.
    own_tf: Option<bool>,
    /// An instruction was emulated that the debugger is to hear of: the bits of DR6.
    due: Option<u64>,
}

impl GuestDebug {
    /// The debugger holds interrupts and NMIs back.
    #[inline]
    pub(crate) fn blocks_events(&self) -> bool {
        self.wanted.block_events
    }

    /// An exception of this vector is the debugger's.
    pub(crate) fn wants(&self, v: u8) -> bool {
        match v {
            vector::DB => self.displaced.is_some(),
            vector::BP => self.wanted.int3,
            _ => false,
        }
    }
}

impl<B: Backend> Vcpu<B> {
    /// Does what `KVM_SET_GUEST_DEBUG` asks for.
    ///
    /// # Errors
    /// `EBUSY`: an exception is to be raised, and there is one already.
    pub(crate) fn set_debug(&mut self, r: &Request) -> Result {
        if let Some(v) = r.inject {
            if self.events.has_exception() {
                return Err(trace::refuse(EBUSY, c"an exception is queued already"));
            }
            self.raise(Exception::plain(v));
        }
        let flags = self.visible_rflags();
        self.debug.wanted = r.wanted;
        if !r.wanted.step {
            self.debug.due = None;
        }
        self.debug.own_tf = None;
        self.hw.set_rflags(flags);
        self.displace(r.wanted.step || r.wanted.breakpoints.is_some());
        self.arm();
        let exceptions = &mut self.intercepts.exceptions;
        for v in [vector::DB, vector::BP] {
            *exceptions &= !(1 << v);
            if self.debug.wants(v) {
                *exceptions |= 1 << v;
            }
        }
        self.show_intercepts();
        Ok(())
    }

    fn show_intercepts(&mut self) {
        self.intercepts.debug_regs = self.debug.displaced.is_some() || !self.dr_live;
        let i = self.intercepts;
        self.hw.set_intercepts(&i);
    }

    /// Puts the guest's debug registers aside, or gives them back.
    fn displace(&mut self, on: bool) {
        match self.debug.displaced {
            None if on => {
                self.debug.displaced = Some(Displaced {
                    dr: self.dr,
                    dr6: self.hw.dr6(),
                    dr7: self.hw.dr7(),
                    used: self.dr_live,
                });
            }
            Some(d) if !on => {
                self.debug.displaced = None;
                self.dr = d.dr;
                self.hw.set_dr6(d.dr6);
                self.hw.set_dr7(d.dr7);
                self.dr_live = d.used;
            }
            _ => {}
        }
    }

    /// Gives the hardware the debugger's breakpoints; where it sets none, the guest's are in force.
    fn arm_breakpoints(&mut self) {
        if let Some(d) = self.debug.displaced {
            let (dr, dr7) = match self.debug.wanted.breakpoints {
                Some(b) => (b.addresses, b.dr7),
                None => (d.dr, d.dr7),
            };
            self.dr = dr;
            self.dr_live = true;
            self.hw.set_dr7(dr7);
            self.hw.set_dr6(DR6_INIT);
        }
    }

    /// Gets the hardware ready for the debugger's next exit.
    fn arm(&mut self) {
        self.arm_breakpoints();
        if self.debug.wanted.step {
            let flags = self.hw.rflags();
            let tf = flags & rflags::TF != 0;
            self.debug.own_tf = Some(tf && self.debug.own_tf.unwrap_or(true));
            self.hw.set_rflags(flags | rflags::TF);
        }
    }

    /// RFLAGS as user space sees them: without the TF that steps. Where the guest has loaded the flags
    /// since (POPF, IRET), TF may have been pushed with them, and is not taken for its own.
    pub(crate) fn visible_rflags(&self) -> u64 {
        let flags = self.hw.rflags();
        match self.debug.own_tf {
            Some(false) => flags & !rflags::TF,
            _ => flags,
        }
    }

    /// User space sets RFLAGS; a step that is under way goes on with them. What the debugger was to
    /// hear of an instruction before is out of date.
    pub(crate) fn replace_rflags(&mut self, v: u64) {
        self.debug.due = None;
        self.debug.own_tf = None;
        self.hw.set_rflags(v | rflags::FIXED);
        self.arm();
    }

    /// After a reset, which has set the registers of a processor that nobody debugs.
    pub(crate) fn debug_after_reset(&mut self) {
        self.debug.due = None;
        self.debug.own_tf = None;
        if let Some(d) = &mut self.debug.displaced {
            *d = Displaced {
                dr: [0; 4],
                dr6: DR6_INIT,
                dr7: DR7_INIT,
                used: false,
            };
        }
        self.arm();
        self.show_intercepts();
    }

    /// An instruction was emulated with TF set.
    #[cold]
    pub(crate) fn single_step(&mut self) {
        if self.debug.wanted.step {
            self.debug_due(SINGLE_STEP);
        } else {
            self.raise_debug(SINGLE_STEP);
        }
    }

    /// An instruction was emulated that has loaded TF, so that the guest's own has no effect; a debugger's has.
    pub(crate) fn debugger_steps(&mut self) {
        if self.debug.wanted.step {
            self.debug_due(SINGLE_STEP);
        }
    }

    fn raise_debug(&mut self, causes: u64) {
        self.raise(Exception {
            vector: vector::DB,
            error: None,
            payload: Some(causes),
        });
    }

    /// The debugger is told before the guest goes on; what the instruction itself has to tell user
    /// space goes first.
    fn debug_due(&mut self, causes: u64) {
        self.debug.due = Some(causes);
        self.alarm.mail().request(DEBUG_EXIT);
    }

    /// What the debugger is to hear of an emulated instruction.
    pub(crate) fn take_debug_exit(&mut self) -> Option<Common> {
        let causes = self.debug.due.take()?;
        Some(self.debug_exit(vector::DB, DR6_INIT | causes))
    }

    /// The exit that tells the debugger of an exception at RIP.
    pub(crate) fn debug_exit(&mut self, exception: u8, dr6: u64) -> Common {
        let exit = Common::Debug {
            arch: rb::kvm_debug_exit_arch {
                exception: u32::from(exception),
                pad: 0,
                pc: self.code_address(),
                dr6,
                dr7: self.hw.dr7(),
            },
        };
        self.arm();
        exit
    }

    /// An access to a debug register is about to be emulated. True: it faults, as DR7.GD is set.
    /// Processors look at GD before an exit; not all emulated ones do.
    pub(crate) fn debug_regs_guarded(&mut self) -> bool {
        if self.hw.dr7() & GENERAL_DETECT == 0 {
            return false;
        }
        if self.debug.displaced.is_some() {
            self.debug_due(ACCESS);
        } else {
            self.raise_debug(ACCESS);
        }
        true
    }

    /// DR0 to DR3 of the guest.
    pub(crate) fn guest_breakpoints(&self) -> [u64; 4] {
        self.debug.displaced.map_or(self.dr, |d| d.dr)
    }

    /// Sets them.
    pub(crate) fn set_guest_breakpoints(&mut self, v: [u64; 4]) {
        match &mut self.debug.displaced {
            Some(d) => d.dr = v,
            None => self.dr = v,
        }
    }

    /// DR6 of the guest.
    pub(crate) fn guest_dr6(&self) -> u64 {
        self.debug.displaced.map_or(self.hw.dr6(), |d| d.dr6)
    }

    /// Sets it.
    pub(crate) fn set_guest_dr6(&mut self, v: u64) {
        match &mut self.debug.displaced {
            Some(d) => d.dr6 = v,
            None => self.hw.set_dr6(v),
        }
    }

    /// DR7 of the guest.
    pub(crate) fn guest_dr7(&self) -> u64 {
        self.debug.displaced.map_or(self.hw.dr7(), |d| d.dr7)
    }

    /// Sets it.
    pub(crate) fn set_guest_dr7(&mut self, v: u64) {
        match &mut self.debug.displaced {
            Some(d) => {
                d.dr7 = v;
                self.arm_breakpoints();
            }
            None => self.hw.set_dr7(v),
        }
    }

    /// The guest uses debug registers: from now on they are the processor's during sections, and
    /// accesses exit no more, unless a debugger has them.
    pub(crate) fn use_debug_regs(&mut self) {
        if let Some(d) = &mut self.debug.displaced {
            d.used = true;
            self.arm_breakpoints();
        } else if !self.dr_live {
            self.dr_live = true;
            self.show_intercepts();
        }
    }
}
