// SPDX-License-Identifier: GPL-2.0

//! Exit codes to [`Exit`], and events to and from their format in the control block.
//!
//! AMD APM vol. 2, appendix C (exit codes) and 15.7-15.14, 15.20. Pure.

use super::vmcb::{event_type, EventInfo, Vmcb};
use crate::arch::x86::exit::{Event, Exit, Io, Stage2Access, TaskSwitch, TaskSwitchReason};
use crate::arch::x86::model::regs::{vector, Exception, Gpr};

/// Exit codes (table C-1).
pub(crate) mod code {
    /// Reads of CR0 to CR15
    pub(crate) const CR_READ: u64 = 0x00;
    /// Writes of CR0 to CR15
    pub(crate) const CR_WRITE: u64 = 0x10;
    /// Reads of DR0 to DR15
    pub(crate) const DR_READ: u64 = 0x20;
    /// Writes of DR0 to DR15
    pub(crate) const DR_WRITE: u64 = 0x30;
    /// Exceptions 0 to 31
    pub(crate) const EXCP: u64 = 0x40;
    /// The last of them
    pub(crate) const EXCP_LAST: u64 = 0x5f;
    /// Physical interrupt
    pub(crate) const INTR: u64 = 0x60;
    /// Physical NMI
    pub(crate) const NMI: u64 = 0x61;
    /// Physical SMI
    pub(crate) const SMI: u64 = 0x62;
    /// Physical INIT
    pub(crate) const INIT: u64 = 0x63;
    /// Virtual interrupt about to be taken
    pub(crate) const VINTR: u64 = 0x64;
    /// CR0 write that changes more than TS or MP
    pub(crate) const CR0_SEL_WRITE: u64 = 0x65;
    /// RDTSC
    pub(crate) const RDTSC: u64 = 0x6e;
    /// RDPMC
    pub(crate) const RDPMC: u64 = 0x6f;
    /// CPUID
    pub(crate) const CPUID: u64 = 0x72;
    /// RSM
    pub(crate) const RSM: u64 = 0x73;
    /// IRET
    pub(crate) const IRET: u64 = 0x74;
    /// INT n; on QEMU's TCG INT3 and INTO as well
    pub(crate) const SWINT: u64 = 0x75;
    /// INVD
    pub(crate) const INVD: u64 = 0x76;
    /// PAUSE
    pub(crate) const PAUSE: u64 = 0x77;
    /// HLT
    pub(crate) const HLT: u64 = 0x78;
    /// INVLPG
    pub(crate) const INVLPG: u64 = 0x79;
    /// INVLPGA
    pub(crate) const INVLPGA: u64 = 0x7a;
    /// Port access
    pub(crate) const IOIO: u64 = 0x7b;
    /// RDMSR, WRMSR
    pub(crate) const MSR: u64 = 0x7c;
    /// Task switch
    pub(crate) const TASK_SWITCH: u64 = 0x7d;
    /// Shutdown
    pub(crate) const SHUTDOWN: u64 = 0x7f;
    /// VMRUN
    pub(crate) const VMRUN: u64 = 0x80;
    /// VMMCALL
    pub(crate) const VMMCALL: u64 = 0x81;
    /// VMLOAD
    pub(crate) const VMLOAD: u64 = 0x82;
    /// VMSAVE
    pub(crate) const VMSAVE: u64 = 0x83;
    /// STGI
    pub(crate) const STGI: u64 = 0x84;
    /// CLGI
    pub(crate) const CLGI: u64 = 0x85;
    /// SKINIT
    pub(crate) const SKINIT: u64 = 0x86;
    /// RDTSCP
    pub(crate) const RDTSCP: u64 = 0x87;
    /// WBINVD, WBNOINVD
    pub(crate) const WBINVD: u64 = 0x89;
    /// MONITOR, MONITORX
    pub(crate) const MONITOR: u64 = 0x8a;
    /// MWAIT, MWAITX
    pub(crate) const MWAIT: u64 = 0x8b;
    /// MWAIT with the monitor armed
    pub(crate) const MWAIT_ARMED: u64 = 0x8c;
    /// XSETBV
    pub(crate) const XSETBV: u64 = 0x8d;
    /// RDPRU
    pub(crate) const RDPRU: u64 = 0x8e;
    /// INVLPGB
    pub(crate) const INVLPGB: u64 = 0xa0;
    /// INVLPGB with operands that the guest may not use
    pub(crate) const INVLPGB_ILLEGAL: u64 = 0xa1;
    /// MCOMMIT
    pub(crate) const MCOMMIT: u64 = 0xa3;
    /// TLBSYNC
    pub(crate) const TLBSYNC: u64 = 0xa4;
    /// Nested page fault
    pub(crate) const NPF: u64 = 0x400;
    /// The guest's state breaks a rule (low half; the high half is all ones or, on some, zero)
    pub(crate) const INVALID: u64 = 0xffff_ffff;
    /// Ours, outside of the manual's range: VMRUN itself faulted; SVM was turned off under us.
    pub(crate) const VMRUN_FAULT: u64 = 0x726b_766d_0000_0001;
    /// Ours: the run has ended twice; the guest's registers are lost.
    pub(crate) const EXITED_TWICE: u64 = 0x726b_766d_0000_0002;
}

/// What an exit's EXITINFO1 says about a port access (15.10.2).
mod ioio {
    pub(super) const IN: u64 = 1 << 0;
    pub(super) const STR: u64 = 1 << 2;
    pub(super) const REP: u64 = 1 << 3;
    pub(super) const SIZE: u32 = 4;
    pub(super) const PORT: u32 = 16;
}

/// EXITINFO1 of a nested page fault (15.25.6).
mod npf {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const W: u64 = 1 << 1;
    pub(super) const ID: u64 = 1 << 4;
    /// While the guest's page tables were walked.
    pub(super) const TABLE: u64 = 1 << 33;
}

/// EXITINFO2 of a task switch (15.14.1).
mod task {
    pub(super) const IRET: u64 = 1 << 36;
    pub(super) const JUMP: u64 = 1 << 38;
    pub(super) const ERROR: u64 = 1 << 44;
    /// RFLAGS.RF as the old task's TSS would have it.
    pub(super) const RF: u64 = 1 << 48;
}

/// MOV CRx, in EXITINFO1 with decode assists (15.8.1).
const MOV_CR: u64 = 1 << 63;

/// The low 32 bits.
#[inline]
const fn low32(v: u64) -> u32 {
    (v & 0xffff_ffff) as u32
}

/// The low 16 bits.
#[inline]
const fn low16(v: u64) -> u16 {
    (v & 0xffff) as u16
}

/// The low 8 bits.
#[inline]
const fn low8(v: u64) -> u8 {
    (v & 0xff) as u8
}

/// Whether exception `v` pushes an error code (8.2).
#[inline]
pub(crate) const fn pushes_error(v: u8) -> bool {
    matches!(
        v,
        vector::DF
            | vector::TS
            | vector::NP
            | vector::SS
            | vector::GP
            | vector::PF
            | vector::AC
            | vector::CP
            | 29
            | 30
    )
}

/// The exit that the block records. `assists`: the processor has decode assists; `event`: what EXITINTINFO
/// was before it was taken.
#[inline]
pub(crate) fn exit(b: &Vmcb, assists: bool, event: EventInfo) -> Exit {
    let code = b.exitcode();
    match code {
        code::INTR | code::SMI | code::INIT => Exit::HostInterrupt,
        code::NPF => nested_fault(b),
        code::CPUID => Exit::Cpuid,
        code::MSR => match b.exitinfo1() & 1 {
            0 => Exit::Rdmsr,
            _ => Exit::Wrmsr,
        },
        code::IOIO => Exit::Io(io(b)),
        code::HLT => Exit::Hlt,
        code::VINTR => Exit::InterruptWindow,
        _ => rare(b, code, assists, event),
    }
}

/// Exits that are not frequent, kept out of line.
#[cold]
fn rare(b: &Vmcb, code: u64, assists: bool, event: EventInfo) -> Exit {
    match code {
        code::CR_READ..=0x0f | code::CR_WRITE..=0x1f | code::CR0_SEL_WRITE => cr(b, code, assists),
        code::DR_READ..=0x3f => Exit::Dr {
            dr: low8(code & 7),
            write: code >= code::DR_WRITE,
            gpr: assists.then(|| Gpr::from_low4(low8(b.exitinfo1() & 15))),
        },
        code::EXCP..=code::EXCP_LAST => exception(b, low8(code & 31)),
        code::NMI => Exit::HostNmi,
        // The window for an NMI: the backend shows it only when the IRET is done.
        code::IRET => Exit::NmiWindow,
        code::RDTSC | code::RDTSCP => Exit::Rdtsc,
        code::RDPMC => Exit::Rdpmc,
        code::RSM => Exit::Rsm,
        code::SWINT => Exit::SoftInterrupt,
        code::INVD => Exit::Invd,
        code::PAUSE => Exit::Pause,
        code::INVLPG => Exit::Invlpg {
            addr: assists.then_some(b.exitinfo1()),
        },
        code::TASK_SWITCH => task_switch(b, event),
        code::SHUTDOWN => Exit::TripleFault,
        code::VMMCALL => Exit::Hypercall,
        // Guests do not have SVM, nor RDPRU, MCOMMIT and the broadcast invalidations.
        code::VMRUN
        | code::VMLOAD
        | code::VMSAVE
        | code::STGI
        | code::CLGI
        | code::SKINIT
        | code::INVLPGA
        | code::RDPRU
        | code::INVLPGB
        | code::INVLPGB_ILLEGAL
        | code::MCOMMIT
        | code::TLBSYNC => Exit::Undefined,
        code::WBINVD => Exit::Wbinvd,
        code::MONITOR => Exit::Monitor,
        code::MWAIT | code::MWAIT_ARMED => Exit::Mwait,
        code::XSETBV => Exit::Xsetbv,
        code::VMRUN_FAULT | code::EXITED_TWICE => Exit::FailEntry { code },
        _ if refused(code) => Exit::FailEntry { code },
        _ => Exit::Unknown { code },
    }
}

/// The processor refused the guest's state: it did not run.
#[inline]
pub(super) const fn refused(code: u64) -> bool {
    code & code::INVALID == code::INVALID
}

fn nested_fault(b: &Vmcb) -> Exit {
    let info = b.exitinfo1();
    Exit::Stage2Fault {
        gpa: b.exitinfo2(),
        access: Stage2Access {
            write: info & npf::W != 0,
            fetch: info & npf::ID != 0,
            present: info & npf::P != 0,
            table_walk: info & npf::TABLE != 0,
        },
    }
}

fn io(b: &Vmcb) -> Io {
    let info = b.exitinfo1();
    Io {
        port: low16(info >> ioio::PORT),
        // One of the three size bits is set: its weight is the size in bytes.
        size: low8(info >> ioio::SIZE & 7),
        input: info & ioio::IN != 0,
        string: info & ioio::STR != 0,
        rep: info & ioio::REP != 0,
        next_rip: Some(b.exitinfo2()),
    }
}

fn cr(b: &Vmcb, code: u64, assists: bool) -> Exit {
    let info = b.exitinfo1();
    let (cr, write) = match code {
        code::CR0_SEL_WRITE => (0, true),
        _ => (low8(code & 15), code >= code::CR_WRITE),
    };
    let mov = assists && info & MOV_CR != 0;
    Exit::Cr {
        cr,
        write,
        gpr: mov.then(|| Gpr::from_low4(low8(info & 15))),
    }
}

fn exception(b: &Vmcb, v: u8) -> Exit {
    match v {
        vector::MC => Exit::MachineCheck,
        _ => Exit::Exception(Exception {
            vector: v,
            error: pushes_error(v).then(|| low32(b.exitinfo1())),
            payload: match v {
                vector::PF => Some(b.exitinfo2()),
                // 15.12.2: DR6 in the block is what a handler would see.
                vector::DB => Some(b.dr6()),
                _ => None,
            },
        }),
    }
}

fn task_switch(b: &Vmcb, event: EventInfo) -> Exit {
    let info = b.exitinfo2();
    let reason = if info & task::IRET != 0 {
        TaskSwitchReason::Iret
    } else if info & task::JUMP != 0 {
        TaskSwitchReason::Jump
    } else if event.valid() {
        gate(event)
    } else {
        TaskSwitchReason::Call
    };
    Exit::TaskSwitch(TaskSwitch {
        selector: low16(b.exitinfo1()),
        reason,
        error: (info & task::ERROR != 0).then(|| low32(info)),
        resume: Some(info & task::RF != 0),
    })
}

/// What has come to a task gate in the IDT.
fn gate(event: EventInfo) -> TaskSwitchReason {
    let vector = low8(event.vector());
    match (event.typ(), vector) {
        (event_type::NMI, _) => TaskSwitchReason::Nmi,
        (event_type::SOFT, _) | (event_type::EXCEPTION, vector::BP | vector::OF) => {
            TaskSwitchReason::Soft { vector }
        }
        _ => TaskSwitchReason::Event,
    }
}

/// An event in the format of EVENTINJ.
pub(crate) fn encode(e: &Event) -> EventInfo {
    let base = EventInfo::default().with_valid(true);
    match *e {
        Event::Exception(x) => {
            let i = base
                .with_typ(event_type::EXCEPTION)
                .with_vector(u64::from(x.vector));
            match x.error {
                Some(c) => i.with_error_valid(true).with_error(u64::from(c)),
                None => i,
            }
        }
        Event::SoftException { vector, .. } => base
            .with_typ(event_type::EXCEPTION)
            .with_vector(u64::from(vector)),
        Event::SoftInterrupt { vector, .. } => base
            .with_typ(event_type::SOFT)
            .with_vector(u64::from(vector)),
        Event::Interrupt { vector } => base
            .with_typ(event_type::INTR)
            .with_vector(u64::from(vector)),
        Event::Nmi => base
            .with_typ(event_type::NMI)
            .with_vector(u64::from(vector::NMI)),
    }
}

/// The event that EXITINTINFO holds. `len`: length of the instruction that raised it, if it is a
/// software event; `cr2`: what a page fault left in CR2.
pub(crate) fn undelivered(i: EventInfo, len: u8, cr2: u64) -> Option<Event> {
    if !i.valid() {
        return None;
    }
    let v = low8(i.vector());
    match i.typ() {
        event_type::INTR => Some(Event::Interrupt { vector: v }),
        event_type::NMI => Some(Event::Nmi),
        event_type::SOFT => Some(Event::SoftInterrupt { vector: v, len }),
        event_type::EXCEPTION => Some(match v {
            // No exception has such a vector: QEMU's TCG says so of a virtual interrupt.
            32.. => Event::Interrupt { vector: v },
            vector::BP | vector::OF => Event::SoftException { vector: v, len },
            _ => Event::Exception(Exception {
                vector: v,
                error: i.error_valid().then(|| low32(i.error())),
                payload: (v == vector::PF).then_some(cr2),
            }),
        }),
        _ => None,
    }
}
