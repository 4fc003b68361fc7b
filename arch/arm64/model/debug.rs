// SPDX-License-Identifier: GPL-2.0

//! Self-hosted debug: whose breakpoints, watchpoints and single step the processor has while the guest runs.
//!
//! Arm ARM (DDI 0487), D2 (self-hosted debug), D2.11 (software step), D24.3: MDSCR_EL1, MDCR_EL2, OSLSR_EL1; Linux
//! `Documentation/virt/kvm/api.rst`, KVM_SET_GUEST_DEBUG.

use super::esr::Debug;
use super::pstate::bit;
use super::sysreg::Sysreg;

/// MDSCR_EL1
pub mod mdscr {
    /// Software step
    pub const SS: u64 = 1 << 0;
    /// Debug exceptions at EL1
    pub const KDE: u64 = 1 << 13;
    /// Breakpoints and watchpoints
    pub const MDE: u64 = 1 << 15;
}

/// MDCR_EL2
pub mod mdcr {
    /// Debug exceptions come to EL2
    pub const TDE: u64 = 1 << 8;
    /// Debug registers trap, but for those of the OS lock and of the ROM table
    pub const TDA: u64 = 1 << 9;
}

/// OSLSR_EL1.OSLK
pub const OS_LOCKED: u64 = 1 << 1;

/// `kvm_guest_debug.control`
pub mod control {
    /// KVM_GUESTDBG_ENABLE
    pub const ENABLE: u32 = 1;
    /// KVM_GUESTDBG_SINGLESTEP
    pub const STEP: u32 = 2;
    /// KVM_GUESTDBG_USE_SW_BP
    pub const SOFTWARE: u32 = 1 << 16;
    /// KVM_GUESTDBG_USE_HW
    pub const HARDWARE: u32 = 1 << 17;
    /// All that are served.
    pub const ALL: u32 = ENABLE | STEP | SOFTWARE | HARDWARE;
}

/// Breakpoints and watchpoints of each kind that the architecture has at the most.
pub const MAX: usize = 16;

/// Breakpoints and watchpoints: value and control, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// DBGBVR
    pub bvr: [u64; MAX],
    /// DBGBCR
    pub bcr: [u64; MAX],
    /// DBGWVR
    pub wvr: [u64; MAX],
    /// DBGWCR
    pub wcr: [u64; MAX],
}

impl Registers {
    /// The one of this encoding; `None` for any other register.
    pub fn get_mut(&mut self, r: Sysreg) -> Option<&mut u64> {
        if (r.op0(), r.op1(), r.crn()) != (2, 0, 0) {
            return None;
        }
        let file = match r.op2() {
            4 => &mut self.bvr,
            5 => &mut self.bcr,
            6 => &mut self.wvr,
            7 => &mut self.wcr,
            _ => return None,
        };
        file.get_mut(usize::from(r.crm()))
    }
}

/// How many breakpoints and watchpoints a processor with this ID_AA64DFR0_EL1 has.
pub fn counts(dfr0: u64) -> (u8, u8) {
    let field = |shift: u32| (dfr0 >> shift & 15) as u8 + 1;
    (field(12), field(20))
}

/// Whose breakpoints and watchpoints are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nobody's: MDSCR_EL1 lets none of them match.
    None,
    /// The guest's, which has all debug registers directly then.
    Guest,
    /// The debugger's in user space.
    User,
}

/// What the processor is to have while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Breakpoints and watchpoints.
    pub loaded: Loaded,
    /// MDSCR_EL1
    pub mdscr: u64,
    /// [`mdcr::TDE`] and [`mdcr::TDA`]
    pub mdcr: u64,
    /// User space steps the guest: [`Stepper`] has PSTATE.SS.
    pub step: bool,
}

/// Decides, by what user space has asked for (`control`) and the guest's MDSCR_EL1 and OSLSR_EL1.
pub const fn plan(control: u32, mdscr: u64, oslsr: u64) -> Plan {
    let debugged = control & control::ENABLE != 0;
    // The lock masks all but breakpoint instructions.
    if debugged || oslsr & OS_LOCKED != 0 {
        let own = mdscr & !(mdscr::SS | mdscr::KDE | mdscr::MDE);
        let step = debugged && control & control::STEP != 0;
        let hardware = debugged && control & control::HARDWARE != 0;
        return Plan {
            loaded: if hardware { Loaded::User } else { Loaded::None },
            mdscr: own
                | if step { mdscr::SS } else { 0 }
                | if hardware { mdscr::KDE | mdscr::MDE } else { 0 },
            mdcr: mdcr::TDA | if debugged { mdcr::TDE } else { 0 },
            step,
        };
    }
    let live = mdscr & (mdscr::KDE | mdscr::MDE) != 0;
    Plan {
        loaded: if live { Loaded::Guest } else { Loaded::None },
        mdscr,
        mdcr: if live { 0 } else { mdcr::TDA },
        step: false,
    }
}

/// The state machine of software step, when user space has it and the guest may have it too (D2.11): "active, not
/// pending" is PSTATE.SS set, "active, pending" is it clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stepper {
    pending: bool,
    guest: bool,
}

impl Stepper {
    /// PSTATE for the processor: the guest's own SS waits here.
    pub fn load(&mut self, pstate: u64) -> u64 {
        self.guest = pstate & bit::SS != 0;
        if self.pending {
            pstate & !bit::SS
        } else {
            pstate | bit::SS
        }
    }

    /// PSTATE for the guest again.
    pub fn unload(&mut self, pstate: u64) -> u64 {
        self.pending = pstate & bit::SS == 0;
        if self.guest {
            pstate | bit::SS
        } else {
            pstate & !bit::SS
        }
    }

    /// An instruction was done, or an exception taken, in the processor's place: the step ends before the next one.
    pub fn passed(&mut self) {
        self.pending = true;
    }

    /// The step has been reported.
    pub fn reported(&mut self) {
        self.pending = false;
    }
}

/// FAR_EL2 belongs to this exception: user space is told.
pub const fn has_address(d: &Debug) -> bool {
    matches!(d, Debug::Watchpoint { .. })
}
