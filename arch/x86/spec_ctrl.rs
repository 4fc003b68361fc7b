// SPDX-License-Identifier: GPL-2.0

//! How the entry code switches the guest's SPEC_CTRL, where hardware does not.

use super::insn;
use crate::bindings;

/// The guest's value, the host's, and what to do about them.
pub(crate) type SpecCtrl = bindings::rkvm_spec_ctrl;

impl SpecCtrl {
    /// A section begins: the entry code switches it on this CPU if the processor has it and `wanted`
    /// says so. `direct`: the guest may write it without an exit.
    pub(crate) fn choose(&mut self, wanted: bool, direct: bool) {
        self.flags = 0;
        let Some(host) = insn::host_spec_ctrl().filter(|_| wanted) else {
            return;
        };
        self.host = host;
        self.flags = bindings::RKVM_SPEC_CTRL_SWITCH;
        if direct {
            self.flags |= bindings::RKVM_SPEC_CTRL_DIRECT;
        }
    }
}
