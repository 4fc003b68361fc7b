// SPDX-License-Identifier: GPL-2.0

//! Events on their way in and out: the formats of interruption information.
//!
//! Intel SDM vol. 3C 26.8.3 (entry), 26.9.2 and 26.9.3 (exit). Pure.

use crate::arch::x86::exit::Event;
use crate::arch::x86::model::regs::{vector, Exception};

/// Types (table 26-17).
pub(crate) mod kind {
    /// External interrupt
    pub(crate) const INTERRUPT: u32 = 0;
    /// NMI
    pub(crate) const NMI: u32 = 2;
    /// Hardware exception
    pub(crate) const EXCEPTION: u32 = 3;
    /// Software interrupt: INT n
    pub(crate) const SOFT_INTERRUPT: u32 = 4;
    /// Privileged software exception: INT1
    pub(crate) const INT1: u32 = 5;
    /// Software exception: INT3, INTO
    pub(crate) const SOFT_EXCEPTION: u32 = 6;
}

/// Interruption information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info(pub(crate) u32);

/// An error code goes with it.
const ERROR: u32 = 1 << 11;
/// On an exit: the guest's IRET had ended the blocking of NMIs.
const IRET: u32 = 1 << 12;
/// It says anything at all.
const VALID: u32 = 1 << 31;

impl Info {
    /// For entries.
    pub(crate) const fn new(kind: u32, vector: u8, error: bool) -> Self {
        Self(VALID | (kind & 7) << 8 | vector as u32 | if error { ERROR } else { 0 })
    }

    /// Vector
    pub(crate) const fn vector(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Type
    pub(crate) const fn kind(self) -> u32 {
        self.0 >> 8 & 7
    }

    /// With an error code
    pub(crate) const fn has_error(self) -> bool {
        self.0 & ERROR != 0
    }

    /// NMI unblocking due to IRET
    pub(crate) const fn after_iret(self) -> bool {
        self.0 & IRET != 0
    }

    /// Valid
    pub(crate) const fn valid(self) -> bool {
        self.0 & VALID != 0
    }
}

/// An event for the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Injection {
    /// Interruption information
    pub(crate) info: Info,
    /// Error code
    pub(crate) error: u32,
    /// Length of the instruction that raised it
    pub(crate) length: u8,
}

/// Whether exception `v` pushes an error code (SDM vol. 3A table 7-1).
pub(crate) const fn pushes_error(v: u8) -> bool {
    matches!(
        v,
        vector::DF
            | vector::TS
            | vector::NP
            | vector::SS
            | vector::GP
            | vector::PF
            | vector::AC
            | vector::CP
    )
}

/// The event in the format of an entry. `protected`: CR0.PE, without which nothing has an error code;
/// `any`: the processor takes an error code, or none, with any exception. `None`: the instruction at
/// RIP, whose length is not known, raises it by itself.
pub(crate) fn encode(e: &Event, protected: bool, any: bool) -> Option<Injection> {
    let plain = |kind, vector| Injection {
        info: Info::new(kind, vector, false),
        ..Injection::default()
    };
    Some(match *e {
        Event::Exception(x) => {
            let wanted = if any {
                x.error.is_some()
            } else {
                pushes_error(x.vector)
            };
            let error = protected && wanted;
            Injection {
                info: Info::new(kind::EXCEPTION, x.vector, error),
                // The processor takes 16 bits for all but #PF; bit 15 and up must be 0 (28.2.1.3).
                error: if error {
                    x.error.unwrap_or(0) & 0x7fff
                } else {
                    0
                },
                length: 0,
            }
        }
        Event::SoftException { len: 0, .. } | Event::SoftInterrupt { len: 0, .. } => return None,
        Event::SoftException { vector, len } => Injection {
            length: len,
            ..plain(kind::SOFT_EXCEPTION, vector)
        },
        Event::SoftInterrupt { vector, len } => Injection {
            length: len,
            ..plain(kind::SOFT_INTERRUPT, vector)
        },
        Event::Interrupt { vector } => plain(kind::INTERRUPT, vector),
        Event::Nmi => plain(kind::NMI, vector::NMI),
    })
}

/// The event that IDT-vectoring information tells of. `len`: the exit's instruction length.
pub(crate) fn undelivered(i: Info, error: u32, len: u8) -> Option<Event> {
    if !i.valid() {
        return None;
    }
    let vector = i.vector();
    Some(match i.kind() {
        kind::INTERRUPT => Event::Interrupt { vector },
        kind::NMI => Event::Nmi,
        kind::EXCEPTION => Event::Exception(Exception {
            vector,
            error: i.has_error().then_some(error),
            payload: None,
        }),
        kind::SOFT_INTERRUPT => Event::SoftInterrupt { vector, len },
        kind::SOFT_EXCEPTION => Event::SoftException { vector, len },
        // INT1 runs again; other types say nothing.
        _ => return None,
    })
}
