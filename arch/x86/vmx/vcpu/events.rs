// SPDX-License-Identifier: GPL-2.0

//! Events on their way into the guest, and what an exit says of those that it cut short.

use super::VmxVcpu;
use crate::arch::x86::backend::HwVcpu;
use crate::arch::x86::exit::{Event, Windows};
use crate::arch::x86::insn;
use crate::arch::x86::model::regs::{cr0, rflags, vector};
use crate::arch::x86::vmx::check::{activity, interruptibility, pending};
use crate::arch::x86::vmx::decode::{self, reason, Raw};
use crate::arch::x86::vmx::event::{self, kind, Info, Injection};
use crate::arch::x86::vmx::field as f;
use crate::arch::x86::vmx::mirror::Guest;

impl VmxVcpu {
    /// The processor insists that an interrupt shadow goes with IF, and a step that is due with TF
    /// (28.3.1.5); what sets one of them need not know of the other.
    #[cold]
    pub(super) fn match_shadow(&mut self) {
        let (flags, mut shadow) = (self.get(Guest::Rflags), self.get(Guest::Interruptibility));
        if shadow & interruptibility::STI != 0 && flags & rflags::IF == 0 {
            shadow = shadow & !interruptibility::STI | interruptibility::MOV_SS;
            self.m.set(Guest::Interruptibility, shadow);
        }
        if shadow & (interruptibility::STI | interruptibility::MOV_SS) == 0 {
            return;
        }
        let due = self.get(Guest::PendingDebug);
        match (flags & rflags::TF != 0, due & pending::STEP != 0) {
            // A debugger's step from here: it is not due yet, so the shadow has to go.
            (true, false) => self.m.set(
                Guest::Interruptibility,
                shadow & !(interruptibility::STI | interruptibility::MOV_SS),
            ),
            (false, true) => self.m.set(Guest::PendingDebug, due & !pending::STEP),
            _ => {}
        }
    }

    /// Writes what is to be injected.
    pub(super) fn write_event(&mut self) {
        self.vmcs.put(&f::ENTRY_EVENT, self.event.info.0);
        if self.event.info.has_error() {
            self.vmcs.put(&f::ENTRY_ERROR, self.event.error);
        }
        if self.event.length != 0 {
            self.vmcs
                .put(&f::ENTRY_LENGTH, u32::from(self.event.length));
        }
    }

    /// The guest did not run.
    #[cold]
    pub(super) fn not_entered(&mut self, began: bool) {
        let code = match began {
            true => u64::from(self.vmcs.get(&f::INSTRUCTION_ERROR)),
            false => 0,
        };
        self.raw = Raw {
            reason: if began {
                reason::VMFAIL
            } else {
                reason::NO_VMX
            },
            qualification: code,
            ..Raw::default()
        };
    }

    /// Reads what goes with the exit's reason.
    #[inline]
    pub(super) fn read_exit(&mut self, reason: u32, info: u32) {
        let needs = decode::needs(reason);
        let mut raw = Raw {
            reason,
            ..Raw::default()
        };
        if needs.length {
            raw.length = (self.vmcs.get(&f::EXIT_LENGTH) & 15) as u8;
        }
        if needs.qualification {
            raw.qualification = self.vmcs.get(&f::QUALIFICATION);
        }
        if needs.gpa {
            raw.gpa = self.vmcs.get(&f::GUEST_PHYSICAL);
        }
        if needs.vectoring {
            raw.vectoring = Info(self.vmcs.get(&f::VECTORING));
        }
        if needs.error {
            raw.info = Info(info);
            raw.error = self.vmcs.get(&f::EXIT_ERROR);
        }
        self.raw = raw;
        if needs.vectoring {
            self.after_event();
        }
        if reason == decode::reason::EXCEPTION && raw.info.vector() == vector::MC
            || reason == decode::reason::MACHINE_CHECK
        {
            insn::machine_check();
        }
    }

    /// After an exit that may have come from the delivery of an event, or from an IRET.
    #[inline]
    fn after_event(&mut self) {
        /// Bit 12 of the qualification of what paging causes: as in interruption information.
        const AFTER_IRET: u64 = 1 << 12;
        let Raw {
            vectoring,
            info,
            qualification,
            reason,
            ..
        } = self.raw;
        if vectoring.valid() {
            self.undelivered(vectoring);
            return;
        }
        // NMIs stay held back until the IRET, which has faulted, is done.
        let iret = match reason {
            decode::reason::EPT_VIOLATION | decode::reason::PML_FULL => {
                qualification & AFTER_IRET != 0
            }
            decode::reason::EXCEPTION => {
                info.kind() == kind::EXCEPTION && info.after_iret() && info.vector() != vector::DF
            }
            _ => false,
        };
        if iret {
            self.set_nmi_masked(true);
        }
    }

    #[cold]
    fn undelivered(&mut self, i: Info) {
        if i.kind() == kind::NMI {
            self.set_nmi_masked(false);
        }
        let error = match i.has_error() {
            true => self.vmcs.get(&f::VECTORING_ERROR),
            false => 0,
        };
        if self.raw.reason == reason::TASK_SWITCH {
            self.raw.error = error;
        }
        let len = (self.vmcs.get(&f::EXIT_LENGTH) & 15) as u8;
        self.undelivered = event::undelivered(i, error, len);
    }

    /// See [`HwVcpu::inject`].
    pub(super) fn put_event(&mut self, e: &Event) {
        let protected = self.get(Guest::Cr0) & cr0::PE != 0;
        let Some(i) = event::encode(e, protected, self.host.plan.any_error_code) else {
            return;
        };
        self.event = i;
        if !self.wanted.hlt {
            // It may have halted by itself.
            self.m.set(Guest::Activity, activity::ACTIVE);
        }
    }

    /// See [`HwVcpu::reset_events`].
    pub(super) fn forget_events(&mut self) {
        self.event = Injection::default();
        self.undelivered = None;
        self.set_windows(Windows::default());
        self.m.set(Guest::Interruptibility, 0);
        self.m.set(Guest::Activity, activity::ACTIVE);
        self.m.set(Guest::PendingDebug, 0);
    }
}
