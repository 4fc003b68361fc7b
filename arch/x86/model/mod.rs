// SPDX-License-Identifier: GPL-2.0

//! Pure models of x86: state machines, decoders and tables that need no hardware and no kernel.
//!
//! `core` only, no `unsafe`, no allocation, no panic. The same files are compiled into `rkvm.ko`
//! and, on the host, into `selftests/unit` and `selftests/fuzz`.

pub mod decode;
pub mod emulate;
pub mod regs;
