// SPDX-License-Identifier: GPL-2.0

//! Events on their way into the guest: injection, virtual interrupts, and when an NMI's handling is over.

use super::SvmVcpu;
use crate::arch::x86::exit::{Event, Windows};
use crate::arch::x86::insn;
use crate::arch::x86::model::regs::{efer, rflags, vector};
use crate::arch::x86::svm::decode::{self, code};
use crate::arch::x86::svm::intercepts::Own;
use crate::arch::x86::svm::vmcb::{event_type, EventInfo};

/// DR6.BS: a single step ended.
const DR6_BS: u64 = 1 << 14;
/// DR7.GD: accesses to debug registers fault; cleared when #DB is delivered.
const DR7_GD: u64 = 1 << 13;

/// An INT n, INT3 or INTO that was put in. Without NRIPS, RIP was moved behind it.
#[derive(Clone, Copy)]
pub(super) struct SoftEvent {
    before: u64,
    after: u64,
    len: u8,
}

/// How far an NMI's handling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nmi {
    /// The guest can take one.
    Open,
    /// Held back until the guest's next IRET, which exits.
    Masked,
    /// Held back until the IRET at this RIP is done.
    Iret(u64),
}

impl SvmVcpu {
    pub(super) fn set_nmi(&mut self, nmi: Nmi) {
        self.nmi = nmi;
        self.set_own(Own {
            iret: nmi == Nmi::Masked,
            ..self.own
        });
    }

    /// After a run that may have had a virtual interrupt to deliver: hardware takes V_IRQ away when it is.
    #[inline]
    pub(super) fn after_virtual_irq(&mut self) {
        if self.virtual_irq.is_none() {
            return;
        }
        let ctl = self.vmcb.int_ctl();
        if ctl.v_irq() {
            self.vmcb.set_int_ctl(ctl.with_v_irq(false));
        } else {
            self.virtual_irq = None;
        }
    }

    /// Has the processor deliver an interrupt as a virtual one (APM vol. 2, 15.21.4), if the guest takes it
    /// at once. EVENTINJ does as well on hardware, and has to where RFLAGS.IF is 0; but QEMU's TCG may deliver
    /// what was injected by it once more, at any time until the next exit. Bochs, which has no virtual GIF,
    /// does that right, and does not deliver virtual interrupts to guests that have IF set at entry.
    #[inline]
    fn inject_virtual(&mut self, vector: u8) -> bool {
        let open = self.vmcb.rflags() & rflags::IF != 0 && !self.vmcb.int_state().shadow();
        if !open || self.windows.interrupt || !self.has.v_gif {
            return false;
        }
        let ctl = self.vmcb.int_ctl().with_v_irq(true).with_v_ign_tpr(true);
        let ctl = ctl.with_v_intr_prio(0xf);
        self.vmcb
            .set_int_ctl(ctl.with_v_intr_vector(u64::from(vector)));
        self.virtual_irq = Some(vector);
        true
    }

    /// An event was delivered, or not.
    #[cold]
    pub(super) fn after_event(&mut self) {
        if self.refused() {
            // Nothing was delivered: it stays in, for the next entry, and `broken_rule`.
            return;
        }
        self.vmcb.set_eventinj(EventInfo::default());
        let left = self.vmcb.exitintinfo();
        if left.valid() {
            if left.typ() == event_type::NMI {
                self.set_nmi(Nmi::Open);
            }
            if let Some(s) = self.soft {
                // Not delivered, or a fault of its delivery was not: the guest is still at it.
                if self.vmcb.rip() == s.after {
                    self.vmcb.set_rip(s.before);
                }
                if is_soft(left) {
                    return;
                }
            }
        }
        self.soft = None;
    }

    /// Before an entry: an NMI waits. See that there is an exit as soon as the guest can take it.
    #[cold]
    pub(super) fn open_nmi_window(&mut self) {
        if self.nmi == Nmi::Masked || self.step.is_some() {
            // IRET exits; or a step is under way.
            return;
        }
        if self.vmcb.eventinj().valid() || self.virtual_irq.is_some() {
            // The event goes first. A step would be visible in the RFLAGS that it pushes.
            insn::exit_at_once();
            return;
        }
        self.start_step();
    }

    fn start_step(&mut self) {
        let f = self.vmcb.rflags();
        self.step = Some(f & rflags::TF != 0);
        self.vmcb.set_rflags(f | rflags::TF);
        self.set_own(Own {
            step: true,
            ..self.own
        });
    }

    /// The step ends; `loaded`: an IRET is done (or faulted), so that TF is the guest's own again.
    pub(super) fn end_step(&mut self, loaded: bool) {
        if let Some(own_tf) = self.step.take() {
            if !own_tf && !loaded {
                let f = self.vmcb.rflags();
                self.vmcb.set_rflags(f & !rflags::TF);
            }
            self.set_own(Own {
                step: false,
                ..self.own
            });
        }
    }

    /// After an exit while an NMI is being handled or waits. Returns as [`SvmVcpu::run_once`].
    #[cold]
    pub(super) fn after_nmi(&mut self) -> bool {
        let code = self.vmcb.exitcode();
        if code == code::IRET && self.nmi == Nmi::Masked {
            // It has not been executed yet. NMIs stay held back until it has.
            self.set_nmi(Nmi::Iret(self.vmcb.rip()));
            return false;
        }
        let iret_done = match self.nmi {
            Nmi::Iret(at) => self.vmcb.rip() != at && !self.refused(),
            _ => false,
        };
        if iret_done {
            self.set_nmi(Nmi::Open);
        }
        let Some(own_tf) = self.step else { return true };
        let stepped = code == code::EXCP + u64::from(vector::DB) && self.vmcb.dr6() & DR6_BS != 0;
        if !stepped {
            if self.nmi == Nmi::Open && !self.vmcb.int_state().shadow() {
                self.end_step(iret_done);
            }
            return true;
        }
        self.end_step(iret_done);
        if !own_tf {
            let dr6 = self.vmcb.dr6() & !DR6_BS;
            self.vmcb.set_dr6(dr6);
            if dr6 & 0xf == 0 {
                // Nothing but our step: what the caller sees is the window.
                self.vmcb.set_exitcode(code::IRET);
            }
        }
        true
    }

    /// RIP is kept to the width that the guest's mode has.
    pub(super) fn wrap_rip(&self, rip: u64) -> u64 {
        let long = self.vmcb.efer() & efer::LMA != 0 && self.vmcb.cs().get().attr.long();
        if long {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }

    /// A software event of `len` bytes at RIP. Returns whether to inject it.
    fn prepare_soft(&mut self, len: u8) -> bool {
        if len == 0 {
            // RIP is at the instruction: it runs again, and raises the event itself.
            return false;
        }
        let before = self.vmcb.rip();
        let after = self.wrap_rip(before.wrapping_add(u64::from(len)));
        if self.has.next_rip {
            self.vmcb.set_nrip(after);
        } else {
            self.vmcb.set_rip(after);
        }
        self.soft = Some(SoftEvent { before, after, len });
        true
    }

    /// Length of the instruction whose software event was not delivered; 0: not known.
    fn soft_len(&self) -> u8 {
        if let Some(s) = self.soft {
            return s.len;
        }
        if !self.has.next_rip {
            return 0;
        }
        match self.wrap_rip(self.vmcb.nrip().wrapping_sub(self.vmcb.rip())) {
            n @ 1..=15 => (n & 15) as u8,
            _ => 0,
        }
    }

    /// See [`HwVcpu::take_undelivered`](crate::arch::x86::backend::HwVcpu::take_undelivered).
    pub(super) fn take_event(&mut self) -> Option<Event> {
        let late = self.virtual_irq.take();
        let i = self.vmcb.exitintinfo();
        self.delivering = i;
        if !i.valid() {
            return late.map(|vector| Event::Interrupt { vector });
        }
        let e = decode::undelivered(i, self.soft_len(), self.vmcb.cr2());
        self.vmcb.set_exitintinfo(EventInfo::default());
        self.soft = None;
        e
    }

    /// See [`HwVcpu::inject`](crate::arch::x86::backend::HwVcpu::inject).
    pub(super) fn put_event(&mut self, e: &Event) {
        // The event must not push our TF.
        self.end_step(false);
        match *e {
            Event::SoftException { len, .. } | Event::SoftInterrupt { len, .. } => {
                if !self.prepare_soft(len) {
                    return;
                }
            }
            Event::Exception(x) => match (x.vector, x.payload) {
                // No such exception: VMRUN will refuse.
                (vector::NMI | 32.., _) => self.unchecked = true,
                (vector::PF, Some(cr2)) => self.vmcb.set_cr2(cr2),
                (vector::DB, Some(dr6)) => {
                    self.vmcb.set_dr6(dr6);
                    let dr7 = self.vmcb.dr7() & !DR7_GD;
                    self.vmcb.set_dr7(dr7);
                }
                _ => {}
            },
            Event::Nmi => self.set_nmi(Nmi::Masked),
            Event::Interrupt { vector } => {
                if self.inject_virtual(vector) {
                    return;
                }
            }
        }
        self.vmcb.set_eventinj(decode::encode(e));
    }

    /// See [`HwVcpu::set_windows`](crate::arch::x86::backend::HwVcpu::set_windows).
    pub(super) fn open_windows(&mut self, w: Windows) {
        if w.interrupt {
            // There is one V_IRQ.
            if let Some(vector) = self.virtual_irq.take() {
                let e = decode::encode(&Event::Interrupt { vector });
                self.vmcb.set_eventinj(e);
            }
        }
        if w.nmi != self.windows.nmi && !w.nmi {
            self.end_step(false);
        }
        if w.interrupt != self.windows.interrupt {
            // A dummy virtual interrupt, of the highest priority and whatever TPR says: the guest
            // exits when it would take it.
            let ctl = self.vmcb.int_ctl();
            let ctl = ctl.with_v_irq(w.interrupt).with_v_ign_tpr(w.interrupt);
            self.vmcb
                .set_int_ctl(ctl.with_v_intr_prio(if w.interrupt { 0xf } else { 0 }));
            self.set_own(Own {
                vintr: w.interrupt,
                ..self.own
            });
        }
        self.windows = w;
    }
}

/// INT n, INT3, INTO.
fn is_soft(i: EventInfo) -> bool {
    i.typ() == event_type::SOFT || i.typ() == event_type::EXCEPTION && matches!(i.vector(), 3 | 4)
}
