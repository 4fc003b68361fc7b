// SPDX-License-Identifier: GPL-2.0

//! Entering the guest, and the exits that are handled on the spot, with interrupts off.

use super::{
    backend::{Backend, HwVcpu},
    debug::GENERAL_DETECT,
    exit::{Event, Exit, Io, Windows},
    handle::Slow,
    mem::Phys,
    model::{
        decode::{length_of, Mnemonic},
        events::{self, is_fault, Interrupted},
        lapic::Effect,
        regs::{rflags, vector, Exception, Gpr},
    },
    msr::{self, Access},
    vcpu::{MpState, Vcpu},
    X86,
};
use crate::{
    family::{Ctx, Step},
    irq::{bus::Space, Written},
    memory::View,
};

type Entered = Step<Slow>;

const AGAIN: Entered = Step::Again;
const LEAVE: Entered = Step::Leave(None);

/// Does what a register write of the local APIC asks for. True if the section has to be left, to tell
/// user space.
pub(crate) fn apply<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, effect: Effect) -> bool {
    match effect {
        Effect::None => {}
        // What became of it nobody asks: an IPI to nobody is lost in silence, as in hardware.
        Effect::Ipi(irq) => {
            let _ = ctx.vm.controller.send(&irq);
        }
        Effect::Eoi(vector) => {
            if ctx.vm.controller.wants_eoi(vector) {
                ctx.vcpu.eoi = Some(vector);
                return true;
            }
        }
        Effect::Timer(t) => ctx.vcpu.set_alarm(t),
        Effect::Identity(i) => ctx.core.shared.identity.publish(i),
    }
    false
}

/// Empties the inbox into the model. True if something came that is handled outside of a section
/// (INIT, start-up).
#[inline]
pub(crate) fn drain<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> bool {
    let inbox = &ctx.core.shared.mail.inbox;
    if inbox.is_empty() {
        return false;
    }
    if inbox.has_init_or_sipi() {
        return true;
    }
    let signals = inbox.drain(&mut ctx.vcpu.lapic);
    take_signals(ctx, signals.nmi, signals.timer);
    false
}

/// NMIs and the timer, out of the inbox.
pub(crate) fn take_signals<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, nmi: u8, timer: bool) {
    if nmi != 0 {
        ctx.vcpu.events.raise_nmi(nmi);
    }
    if timer {
        let now = ctx.vcpu.tsc.clock();
        let next = ctx.vcpu.lapic.timer_fired(now);
        ctx.vcpu.set_alarm(next);
    }
}

/// The deadline that the processor is to ring at: if it is over, the timer fires, and else the next entry
/// lasts no longer.
// Out of line, as the two below: most vCPUs' entries have no need of it.
#[inline(never)]
pub(crate) fn see_deadline<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) {
    let v = &mut *ctx.vcpu;
    if let Some(at) = v.alarm.deadline() {
        let left = at.saturating_sub(v.tsc.now());
        if left != 0 {
            v.hw.stay(left);
        } else {
            v.hw.stay(u64::MAX);
            take_signals(ctx, 0, true);
        }
    }
}

/// Enters the guest once; see [`crate::family::Family::enter`].
#[inline]
pub(crate) fn enter<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    requests: u64,
) -> Entered {
    if requests >> crate::host::kick::FAMILY_SHIFT != 0 {
        ctx.core.kick.post(requests);
        return LEAVE;
    }
    if drain(ctx) {
        return LEAVE;
    }
    if ctx.vcpu.alarm.deadline().is_some() {
        see_deadline(ctx);
    }
    let v = &mut *ctx.vcpu;
    if v.pv.eoi.is_over(&v.lapic) && v.pv.eoi.settle(&mut v.lapic, &Phys::quick(view)).is_err() {
        return Step::Leave(Some(Slow::Eoi(None)));
    }
    if v.hw.delivers() {
        hand_over(v);
    }
    let mine = v.handed.is_none() && v.lapic.pending().is_some();
    if !v.events.is_idle() || mine || v.wants_window() {
        if !inject(v, view) {
            return Step::Leave(Some(Slow::TripleFault));
        }
    } else if v.windows != Windows::default() {
        v.windows = Windows::default();
        v.hw.set_windows(v.windows);
    }
    if v.handed.is_none() {
        v.pv.eoi.arm(&v.lapic, view);
    }
    v.show_cr8();
    if v.hw.wants_pdptes() && v.load_pdptes(&Phys::quick(view)).is_err() {
        return Step::Leave(Some(Slow::Pdptes));
    }

    v.fpu.enter_pkru();
    v.hw.enter(&mut v.gprs);
    v.fpu.exit_pkru();

    if v.handed.is_some() {
        take_back(v);
    } else if v.hw.cr8() != v.lapic.cr8() {
        v.lapic.set_cr8(v.hw.cr8());
    }
    let undelivered = match v.hw.take_undelivered() {
        Some(e) => interrupted(v, view, &e),
        None => None,
    };
    v.events.exited(undelivered);
    if v.pv.eoi.is_armed() && v.pv.eoi.follow(&mut v.lapic, view).is_err() {
        return Step::Leave(Some(Slow::Eoi(Some(v.hw.exit()))));
    }
    quick(ctx, view)
}

/// The interrupts of a local APIC that the processor looks after.
struct Delivered;

impl events::Interrupts for Delivered {
    fn pending(&self) -> bool {
        false
    }
    fn acknowledge(&mut self) -> Option<u8> {
        None
    }
}

/// The local APIC's interrupts become the processor's to deliver, or ours again; what has come to be
/// known of them since the last entry, it is told.
#[inline(never)]
fn hand_over<B: Backend>(v: &mut Vcpu<B>) {
    // An interrupt whose end the guest leaves in memory has to end before.
    let can = v.has_lapic && v.lapic.can_be_handed_over();
    if !can || v.pv.eoi.is_armed() || v.debug.blocks_events() {
        if v.handed.take().is_some() {
            v.hw.hand_over(None);
        }
    } else if !v.handed.as_ref().is_some_and(|h| v.lapic.is_in(h)) {
        let hand = v.lapic.hand();
        v.hw.hand_over(Some(&hand));
        v.handed = Some(hand);
    }
}

/// After an exit: what the processor has delivered and ended.
#[inline(never)]
fn take_back<B: Backend>(v: &mut Vcpu<B>) {
    let tpr = v.hw.tpr();
    if let Some((irr, isr)) = v.hw.taken() {
        v.lapic.take_back(irr, isr, tpr);
    } else if tpr != v.lapic.tpr() {
        v.lapic.set_tpr(tpr);
    } else {
        return;
    }
    v.handed = Some(v.lapic.hand());
}

/// Chooses what to inject and which windows to ask for. False: triple fault.
fn inject<B: Backend>(v: &mut Vcpu<B>, view: &View<'_>) -> bool {
    v.events.set_nmi_masked(v.hw.nmi_masked());
    let mut cpu = v.cpu();
    cpu.gif = !v.debug.blocks_events();
    let entry = match v.handed {
        Some(_) => v.events.next(cpu, &mut Delivered),
        None => v.events.next(cpu, &mut v.lapic),
    };
    let Ok(entry) = entry else {
        return false;
    };
    if let Some(e) = entry.inject {
        let event = match e {
            events::Event::Exception {
                vector,
                error,
                payload,
                first,
            } => {
                if first {
                    prepare_exception(v, vector, payload);
                }
                let soft = matches!(vector, vector::BP | vector::OF);
                let len = soft.then(|| soft_length(v, &mut Phys::quick(view), vector));
                match len.flatten() {
                    Some(len) => Event::SoftException { vector, len },
                    None => Event::Exception(Exception {
                        vector,
                        error,
                        payload: None,
                    }),
                }
            }
            events::Event::Nmi => Event::Nmi,
            events::Event::Interrupt { vector, soft: true } => {
                // Without a length it runs again.
                let len = soft_length(v, &mut Phys::quick(view), vector).unwrap_or(0);
                Event::SoftInterrupt { vector, len }
            }
            events::Event::Interrupt {
                vector,
                soft: false,
            } => Event::Interrupt { vector },
        };
        v.hw.inject(&event);
    }
    // What is held back has no window: it would be open at once.
    let windows = Windows {
        interrupt: cpu.gif && (entry.interrupt_window || v.wants_window()),
        nmi: cpu.gif && entry.nmi_window,
    };
    if windows != v.windows {
        v.windows = windows;
        v.hw.set_windows(windows);
    }
    true
}

/// The length of the instruction at RIP, if it is one that raises `vector` by itself (INT3, INTO,
/// INT n): then the guest is to return behind it. Those that user space makes up may stand anywhere.
pub(crate) fn soft_length<B: Backend>(
    v: &Vcpu<B>,
    phys: &mut Phys<'_, '_>,
    vector: u8,
) -> Option<u8> {
    let mut buf = [0; 15];
    let n = v.fetch(phys, v.code_address(), &mut buf).ok()?;
    let bytes = buf.get(..n)?;
    let own = match vector {
        vector::BP => length_of(bytes, v.mode(), Mnemonic::Int3),
        vector::OF => length_of(bytes, v.mode(), Mnemonic::Into),
        _ => None,
    };
    own.or_else(|| {
        let len = length_of(bytes, v.mode(), Mnemonic::Int)?;
        (bytes.get(usize::from(len).checked_sub(1)?) == Some(&vector)).then_some(len)
    })
}

/// What the processor itself does to CR2, DR6, DR7 and RFLAGS before it delivers an exception.
fn prepare_exception<B: Backend>(v: &mut Vcpu<B>, vector: u8, payload: Option<u64>) {
    if is_fault(vector) {
        v.hw.set_rflags(v.hw.rflags() | rflags::RF);
    }
    match (vector, payload) {
        (vector::PF, Some(cr2)) => v.hw.set_cr2(cr2),
        (vector::DB, Some(dr6)) => set_dr6(v, dr6),
        _ => {}
    }
    if vector == vector::DB {
        v.set_guest_dr7(v.guest_dr7() & !GENERAL_DETECT);
    }
}

/// Records the causes of a debug exception in DR6: B0 to B3 are replaced, the rest is added.
pub(crate) fn set_dr6<B: Backend>(v: &mut Vcpu<B>, causes: u64) {
    /// B0 to B3
    const BREAKPOINTS: u64 = 0xf;
    v.set_guest_dr6(v.guest_dr6() & !BREAKPOINTS | causes);
}

/// What the exit cut short. Soft events run again with their instruction, but for a #BP or #OF that was
/// made up, or whose instruction is a debugger's.
fn interrupted<B: Backend>(v: &Vcpu<B>, view: &View<'_>, e: &Event) -> Option<Interrupted> {
    match *e {
        Event::Exception(Exception { vector, error, .. }) => {
            Some(Interrupted::Exception { vector, error })
        }
        Event::Nmi => Some(Interrupted::Nmi),
        Event::Interrupt { vector } => Some(Interrupted::Interrupt {
            vector,
            soft: false,
        }),
        Event::SoftException { vector, .. } => {
            let own = soft_length(v, &mut Phys::quick(view), vector).is_some();
            (!own || v.debug.wants(vector)).then_some(Interrupted::Exception {
                vector,
                error: None,
            })
        }
        Event::SoftInterrupt { .. } => None,
    }
}

/// Handles an exit on the spot, or says what is to be done outside of the section.
#[inline]
fn quick<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>) -> Entered {
    match ctx.vcpu.hw.exit() {
        Exit::HostInterrupt | Exit::HostNmi | Exit::LogFull => LEAVE,
        Exit::TimeIsUp => {
            let v = &mut *ctx.vcpu;
            match v.alarm.deadline() {
                Some(at) if at <= v.tsc.now() => return AGAIN,
                Some(_) => {}
                // One that was taken back.
                None => v.hw.stay(u64::MAX),
            }
            LEAVE
        }
        Exit::InterruptWindow => {
            ctx.vcpu.windows.interrupt = false;
            ctx.vcpu.hw.set_windows(ctx.vcpu.windows);
            if ctx.vcpu.wants_window() {
                LEAVE
            } else {
                AGAIN
            }
        }
        Exit::NmiWindow => {
            ctx.vcpu.windows.nmi = false;
            ctx.vcpu.hw.set_windows(ctx.vcpu.windows);
            AGAIN
        }
        Exit::Eoi { vector } => eoi(ctx, vector),
        Exit::Cpuid => match length(ctx.vcpu, view, Mnemonic::Cpuid) {
            Some(next) => cpuid(ctx, next),
            None => Step::Leave(Some(Slow::Exit(Exit::Cpuid))),
        },
        Exit::Rdmsr => quick_msr(ctx, view, false),
        Exit::Wrmsr => quick_msr(ctx, view, true),
        Exit::Io(io) => quick_io(ctx, view, &io),
        Exit::Hlt => match length(ctx.vcpu, view, Mnemonic::Hlt) {
            Some(next) => {
                ctx.vcpu.advance_to(next);
                halt(ctx)
            }
            None => Step::Leave(Some(Slow::Exit(Exit::Hlt))),
        },
        // An entry that is not there takes the slow way; so does one that still does not do.
        Exit::Stage2Fault { gpa, access } if access.present && ctx.vcpu.last_fault != gpa => {
            ctx.vcpu.last_fault = gpa;
            if ctx
                .vm
                .memory
                .fault_fast(view, gpa, super::handle::access_of(&access))
            {
                AGAIN
            } else {
                Step::Leave(Some(Slow::Exit(Exit::Stage2Fault { gpa, access })))
            }
        }
        exit => Step::Leave(Some(Slow::Exit(exit))),
    }
}

/// The end of an interrupt, which the processor has seen to already.
pub(crate) fn eoi<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, vector: u8) -> Entered {
    if apply(ctx, Effect::Eoi(vector)) {
        LEAVE
    } else {
        AGAIN
    }
}

/// RIP after the instruction at RIP, which is a `want`; `None` if it takes a closer look.
#[inline]
pub(crate) fn length<B: Backend>(v: &Vcpu<B>, view: &View<'_>, want: Mnemonic) -> Option<u64> {
    if let Some(next) = v.hw.next_rip() {
        return Some(next);
    }
    let mut buf = [0; 15];
    let mut n = v.hw.insn_bytes(&mut buf);
    if n == 0 {
        n = v
            .fetch(&mut Phys::quick(view), v.code_address(), &mut buf)
            .ok()?;
    }
    let len = length_of(buf.get(..n)?, v.mode(), want)?;
    let next = v.hw.rip().wrapping_add(u64::from(len));
    Some(v.narrow(next))
}

/// CPUID.
pub(crate) fn cpuid<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, next: u64) -> Entered {
    let v = &mut *ctx.vcpu;
    // Asking for the privilege level may be slow.
    if v.msrs.cpuid_may_fault() && v.msrs.cpuid_faults(v.hw.cpl()) {
        v.raise(Exception::gp(0));
        return AGAIN;
    }
    let leaf = (v.gprs.get(Gpr::Rax) & 0xffff_ffff) as u32;
    let subleaf = (v.gprs.get(Gpr::Rcx) & 0xffff_ffff) as u32;
    let r = super::model::cpuid::CpuidTable::new(&v.cpuid).query(
        leaf,
        subleaf,
        &v.dynamic(&ctx.vm.family),
    );
    v.gprs.set(Gpr::Rax, u64::from(r.eax));
    v.gprs.set(Gpr::Rbx, u64::from(r.ebx));
    v.gprs.set(Gpr::Rcx, u64::from(r.ecx));
    v.gprs.set(Gpr::Rdx, u64::from(r.edx));
    v.advance_to(next);
    AGAIN
}

/// The processor halts, RIP being behind HLT: goes on if something waits for it already.
pub(crate) fn halt<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> Entered {
    if !ctx.vcpu.has_lapic {
        return Step::Leave(Some(Slow::HaltToUser));
    }
    if !drain(ctx) && wakes(ctx.vcpu) {
        return AGAIN;
    }
    ctx.vcpu.mp_state = MpState::Halted;
    LEAVE
}

/// Something ends a halt.
#[inline]
pub(crate) fn wakes<B: Backend>(v: &mut Vcpu<B>) -> bool {
    v.events.set_nmi_masked(v.hw.nmi_masked());
    v.events.wakes(v.cpu(), &v.lapic)
}

#[inline]
fn quick_msr<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, write: bool) -> Entered {
    let want = if write {
        Mnemonic::Wrmsr
    } else {
        Mnemonic::Rdmsr
    };
    let Some(next) = length(ctx.vcpu, view, want) else {
        let exit = if write { Exit::Wrmsr } else { Exit::Rdmsr };
        return Step::Leave(Some(Slow::Exit(exit)));
    };
    guest_msr(ctx, write, next)
}

/// RDMSR or WRMSR, `next` being behind it.
pub(crate) fn guest_msr<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, write: bool, next: u64) -> Entered {
    match msr::guest_access(ctx, write) {
        Access::Done => {
            ctx.vcpu.advance_to(next);
            AGAIN
        }
        Access::DoneLeave => {
            ctx.vcpu.advance_to(next);
            LEAVE
        }
        Access::Gp => {
            ctx.vcpu.raise(Exception::gp(0));
            AGAIN
        }
        Access::ToUser(reason) => {
            let len = (next.wrapping_sub(ctx.vcpu.hw.rip()) & 0xf) as u8;
            Step::Leave(Some(Slow::Msr { write, reason, len }))
        }
    }
}

/// A plain OUT that something in the kernel takes.
#[inline]
fn quick_io<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, view: &View<'_>, io: &Io) -> Entered {
    let slow = Step::Leave(Some(Slow::Exit(Exit::Io(*io))));
    if io.input || io.string {
        return slow;
    }
    let next = match io.next_rip {
        Some(next) => next,
        None => match length(ctx.vcpu, view, Mnemonic::Out) {
            Some(next) => next,
            None => return slow,
        },
    };
    let data = ctx.vcpu.gprs.get(Gpr::Rax).to_le_bytes();
    let Some(data) = data.get(..usize::from(io.size)) else {
        return slow;
    };
    match ctx.vm.irq.bus().write(Space::Pio, u64::from(io.port), data) {
        Written::Handled => {
            ctx.vcpu.advance_to(next);
            AGAIN
        }
        Written::Unhandled => Step::Leave(Some(Slow::Exit(Exit::Io(Io {
            next_rip: Some(next),
            ..*io
        })))),
    }
}
