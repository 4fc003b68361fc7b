// SPDX-License-Identifier: GPL-2.0

//! Processor families: one folder each, one line each here.

#[cfg(CONFIG_X86_64)]
pub(crate) mod x86;
#[cfg(CONFIG_X86_64)]
pub(crate) use x86::{load, Loaded};

#[cfg(CONFIG_ARM64)]
pub(crate) mod arm64;
#[cfg(CONFIG_ARM64)]
pub(crate) use arm64::{load, Loaded};
