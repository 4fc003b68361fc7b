// SPDX-License-Identifier: GPL-2.0

//! Pure models of x86: state machines, decoders and tables that need no hardware and no kernel.
//!
//! `core` only, no `unsafe`, no allocation, no panic. The same files are compiled into `rkvm.ko`
//! and, on the host, into `selftests/unit` and `selftests/fuzz`.

pub mod clock;
pub mod cpuid;
pub mod decode;
pub mod emulate;
pub mod events;
pub mod lapic;
pub mod msi;
pub mod msr;
pub mod mtrr;
pub mod pv;
pub mod regs;
pub mod sregs;
pub mod walk;
pub mod xstate;
