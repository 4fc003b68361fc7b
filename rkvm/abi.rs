// SPDX-License-Identifier: GPL-2.0

//! The ABI as data: one table of ioctls and one of capabilities; a family adds its own rows.

pub(crate) mod cap;
pub(crate) mod exit;
pub(crate) mod ioctl;
pub(crate) mod user;
