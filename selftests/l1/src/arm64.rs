// SPDX-License-Identifier: GPL-2.0

//! arm64's guests.

pub mod a32;
pub mod kit;
pub mod machine;
