// SPDX-License-Identifier: GPL-2.0

//! x86: everything that SVM and VMX share, and the two vendors' own rooms.

pub(crate) mod backend;
pub(crate) mod exit;
pub(crate) mod insn;
pub(crate) mod model;
pub(crate) mod svm;
