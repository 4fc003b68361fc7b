// SPDX-License-Identifier: GPL-2.0

//! What the structures of user space say: the uapi's fields to the models' types and back, with
//! the checks that need no vCPU.
//!
//! Pure, and a structure in it was copied in before: nothing here reads user space's memory. The
//! same files are compiled on the host, where `selftests/fuzz` gives them anything.

pub mod debug;
pub mod events;
pub mod regs;
pub mod vm;

use core::ffi::CStr;

/// Why an argument is refused, in words. User space gets `EINVAL` for each.
pub type Why = &'static CStr;
