// SPDX-License-Identifier: GPL-2.0

//! SError and aborts that user space gives a guest (KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS), and SErrors of the host
//! while a guest runs.
//!
//! Linux `Documentation/virt/kvm/api.rst` 4.31 and 4.32; Arm ARM (DDI 0487), D24.2: ESR_EL2, "ISS encoding for an
//! SError interrupt", and VSESR_EL2.

/// What of ESR_EL1 an SError's syndrome can be: ISS.
const ISS: u64 = 0x1ff_ffff;
/// ISS.IDS: the rest of the syndrome is the implementation's own.
pub const IDS: u64 = 1 << 24;

/// `kvm_vcpu_events`, or what of it user space has set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// An SError is, or is to be, pending.
    pub serror: bool,
    /// `esr` is its syndrome.
    pub has_esr: bool,
    /// A data access is to end in an external abort.
    pub abort: bool,
    /// ISS
    pub esr: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// An external abort of the access that went to user space.
    pub abort: bool,
    /// An SError with this ISS.
    pub serror: Option<u64>,
}

/// A syndrome that the guest cannot have: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidEvents;

/// KVM_SET_VCPU_EVENTS. `ras`: the syndrome can be chosen. A pending SError cannot be taken back.
///
/// # Errors
/// A syndrome without RAS, or one with more than an ISS.
pub const fn set(e: &Events, ras: bool) -> Result<Wanted, InvalidEvents> {
    if e.serror && e.has_esr && (!ras || e.esr & !ISS != 0) {
        return Err(InvalidEvents);
    }
    let serror = if !e.serror {
        None
    } else if e.has_esr {
        Some(e.esr)
    } else {
        Some(IDS)
    };
    Ok(Wanted {
        abort: e.abort,
        serror,
    })
}

/// KVM_GET_VCPU_EVENTS of a vCPU for which an SError with this ISS is pending, or none.
pub const fn get(pending: Option<u64>, ras: bool) -> Events {
    let (serror, esr) = match pending {
        Some(iss) => (true, iss),
        None => (false, 0),
    };
    Events {
        serror,
        has_esr: ras,
        abort: false,
        esr: if ras { esr } else { 0 },
    }
}

/// A physical SError with this ISS came while the guest ran: whether it is the guest's to take. One that was
/// corrected, or that hurts only who asks for the data, is not.
pub const fn is_guests(iss: u64, ras: bool) -> bool {
    const DFSC: u64 = 0x3f;
    const ASYNCHRONOUS: u64 = 0x11;
    if !ras || iss & IDS != 0 || iss & DFSC != ASYNCHRONOUS {
        return true;
    }
    // AET: restartable 2, corrected 6; uncontainable 0, unrecoverable 1, recoverable 3.
    !matches!(iss >> 10 & 7, 2 | 6)
}
