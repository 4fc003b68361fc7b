// SPDX-License-Identifier: GPL-2.0

//! Syndromes for ESR_EL1, of exceptions that the guest is given.

use super::{Class, Esr};

/// ESR_ELx.IL
pub const IL: u64 = 1 << 25;

const fn class(c: Class) -> u64 {
    (c as u64) << 26
}

/// An undefined instruction.
pub const fn undefined() -> u64 {
    class(Class::Unknown) | IL
}

/// The class that EL1 sees: "lower level" for what comes from EL0, "same" for what comes from EL1.
const fn from_level(lower: Class, same: Class, from_el0: bool) -> u64 {
    class(if from_el0 { lower } else { same })
}

/// A synchronous external abort of an instruction's fetch or of a data access. `walk` is the level at which the
/// guest's own walk met it (-1 to 3). IL is set: for data aborts without a valid ISS it is RES1.
pub const fn external_abort(instruction: bool, from_el0: bool, walk: Option<i8>) -> u64 {
    let ec = if instruction {
        from_level(
            Class::InstructionAbort,
            Class::InstructionAbortSame,
            from_el0,
        )
    } else {
        from_level(Class::DataAbort, Class::DataAbortSame, from_el0)
    };
    let fsc = match walk {
        None => 0x10,
        Some(-1) => 0x13,
        Some(0) => 0x14,
        Some(1) => 0x15,
        Some(2) => 0x16,
        Some(_) => 0x17,
    };
    ec | IL | fsc
}

/// `esr`, an abort's, with another status code: 0 is an address size fault at level 0, 0x35 an exclusive or
/// atomic access that the memory does not support.
pub const fn with_fault(esr: u64, fsc: u8) -> u64 {
    esr & !0x3f | (fsc & 0x3f) as u64
}

/// SError with the ISS that user space or VSESR_EL2 gives.
pub const fn serror(iss: u64) -> u64 {
    class(Class::SError) | IL | iss & 0x1ff_ffff
}

/// The syndrome of an exception that was taken to EL2, as EL1 would have it: classes that tell a lower level
/// from the same one change if it came from EL1.
pub const fn at_el1(esr: u64, from_el0: bool) -> u64 {
    let same = match Esr(esr).class() {
        Some(Class::InstructionAbort) => Class::InstructionAbortSame,
        Some(Class::DataAbort) => Class::DataAbortSame,
        Some(Class::Breakpoint) => Class::BreakpointSame,
        Some(Class::Step) => Class::StepSame,
        Some(Class::Watchpoint) => Class::WatchpointSame,
        _ => return esr,
    };
    if from_el0 {
        esr
    } else {
        esr & !(0x3f << 26) | class(same)
    }
}
