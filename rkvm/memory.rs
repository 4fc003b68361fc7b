// SPDX-License-Identifier: GPL-2.0

//! Guest memory: slots, access to it, the second stage of translation, and the dirty log.

pub(crate) mod stage2;
