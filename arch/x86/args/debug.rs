// SPDX-License-Identifier: GPL-2.0

//! `kvm_guest_debug`.

use super::Why;
use crate::{
    arch::x86::model::{regs::vector, sregs::DR7_INIT},
    bindings as rb,
};

/// What can be asked for.
pub const SERVED: u32 = rb::KVM_GUESTDBG_ENABLE
    | rb::KVM_GUESTDBG_SINGLESTEP
    | rb::KVM_GUESTDBG_USE_SW_BP
    | rb::KVM_GUESTDBG_USE_HW_BP
    | rb::KVM_GUESTDBG_INJECT_DB
    | rb::KVM_GUESTDBG_INJECT_BP
    | rb::KVM_GUESTDBG_BLOCKIRQ;

/// Breakpoints of the debugger, in place of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoints {
    /// DR0 to DR3
    pub addresses: [u64; 4],
    /// DR7
    pub dr7: u64,
}

/// What a debugger wants, as long as it does not want something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// An exit after each instruction.
    pub step: bool,
    /// An exit at each #BP.
    pub int3: bool,
    /// These breakpoints.
    pub breakpoints: Option<Breakpoints>,
    /// No interrupts nor NMIs into the guest.
    pub block_events: bool,
}

/// What `KVM_SET_GUEST_DEBUG` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// From now on.
    pub wanted: Wanted,
    /// The exception to raise, once.
    pub inject: Option<u8>,
}

/// `KVM_SET_GUEST_DEBUG`. Its control bits are among [`SERVED`]. Without `KVM_GUESTDBG_ENABLE` only
/// what is to be injected counts.
///
/// # Errors
/// DR7 of more than 32 bits.
pub fn decode(d: &rb::kvm_guest_debug) -> Result<Request, Why> {
    let has = |flag: u32| d.control & flag != 0;
    let inject = if has(rb::KVM_GUESTDBG_INJECT_DB) {
        Some(vector::DB)
    } else {
        has(rb::KVM_GUESTDBG_INJECT_BP).then_some(vector::BP)
    };
    if !has(rb::KVM_GUESTDBG_ENABLE) {
        return Ok(Request {
            wanted: Wanted::default(),
            inject,
        });
    }
    let [d0, d1, d2, d3, _, _, _, dr7] = d.arch.debugreg;
    let hard = has(rb::KVM_GUESTDBG_USE_HW_BP);
    if hard && dr7 >> 32 != 0 {
        return Err(c"DR7 has 32 bits");
    }
    let wanted = Wanted {
        step: has(rb::KVM_GUESTDBG_SINGLESTEP),
        int3: has(rb::KVM_GUESTDBG_USE_SW_BP),
        breakpoints: hard.then_some(Breakpoints {
            addresses: [d0, d1, d2, d3],
            dr7: dr7 | DR7_INIT,
        }),
        block_events: has(rb::KVM_GUESTDBG_BLOCKIRQ),
    };
    Ok(Request { wanted, inject })
}
