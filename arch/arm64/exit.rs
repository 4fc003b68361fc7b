// SPDX-License-Identifier: GPL-2.0

//! Reasons to return to user space.

use crate::{
    abi::exit::{reason, Common, WriteRun, DATA},
    bindings as rb,
    host::run_page::SharedPage,
};

/// arm64's own reasons, and those of all.
#[derive(Clone, Copy)]
pub(crate) enum UserExit {
    /// One that every family has.
    Common(Common),
    /// An access that user space has to decode (`KVM_EXIT_ARM_NISV`, `KVM_EXIT_ARM_LDST64B`).
    NoSyndrome {
        /// Which.
        reason: u32,
        /// What the syndrome says.
        esr_iss: u64,
        /// Guest-physical address.
        gpa: u64,
    },
    /// A hypercall that user space answers (`KVM_ARM_VM_SMCCC_FILTER`).
    Hypercall {
        /// The function.
        nr: u64,
        /// By SMC, not HVC.
        smc: bool,
    },
    /// The guest wants the machine off, reset or asleep (`KVM_EXIT_SYSTEM_EVENT`).
    System {
        /// `KVM_SYSTEM_EVENT_*`
        kind: u32,
        /// For `data[0]`.
        flags: u64,
    },
}

impl From<Common> for UserExit {
    fn from(c: Common) -> Self {
        UserExit::Common(c)
    }
}

impl WriteRun for UserExit {
    fn write(&self, run: &SharedPage) {
        match *self {
            UserExit::Common(ref c) => c.write(run),
            UserExit::NoSyndrome {
                reason: why,
                esr_iss,
                gpa,
            } => {
                reason(run, why);
                run.write(DATA, esr_iss);
                run.write(DATA + 8, gpa);
            }
            UserExit::Hypercall { nr, smc } => {
                reason(run, rb::KVM_EXIT_HYPERCALL);
                run.write(DATA, nr);
                let flags = if smc { rb::KVM_HYPERCALL_EXIT_SMC } else { 0 };
                run.write(DATA + 64, u64::from(flags));
            }
            UserExit::System { kind, flags } => {
                reason(run, rb::KVM_EXIT_SYSTEM_EVENT);
                run.write(DATA, kind);
                run.write(DATA + 4, 1u32);
                run.write(DATA + 8, flags);
            }
        }
    }
}
