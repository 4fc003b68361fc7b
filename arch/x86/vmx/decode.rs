// SPDX-License-Identifier: GPL-2.0

//! Exit reasons and qualifications to [`Exit`].
//!
//! Intel SDM vol. 3D appendix C (reasons), vol. 3C 29.2.1 (qualifications). Pure.

use super::event::{kind, Info};
use crate::arch::x86::exit::{Exit, Io, Stage2Access, TaskSwitch, TaskSwitchReason};
use crate::arch::x86::model::regs::{vector, Exception, Gpr};
use crate::arch::x86::model::sregs::DR6_INIT;

/// Basic exit reasons (table C-1).
pub(crate) mod reason {
    /// Exception or NMI
    pub(crate) const EXCEPTION: u32 = 0;
    /// External interrupt
    pub(crate) const INTERRUPT: u32 = 1;
    /// Triple fault
    pub(crate) const TRIPLE_FAULT: u32 = 2;
    /// INIT signal
    pub(crate) const INIT: u32 = 3;
    /// Start-up IPI
    pub(crate) const SIPI: u32 = 4;
    /// SMI
    pub(crate) const SMI_IO: u32 = 5;
    /// Other SMI
    pub(crate) const SMI: u32 = 6;
    /// Interrupt window
    pub(crate) const INTERRUPT_WINDOW: u32 = 7;
    /// NMI window
    pub(crate) const NMI_WINDOW: u32 = 8;
    /// Task switch
    pub(crate) const TASK_SWITCH: u32 = 9;
    /// CPUID
    pub(crate) const CPUID: u32 = 10;
    /// GETSEC
    pub(crate) const GETSEC: u32 = 11;
    /// HLT
    pub(crate) const HLT: u32 = 12;
    /// INVD
    pub(crate) const INVD: u32 = 13;
    /// INVLPG
    pub(crate) const INVLPG: u32 = 14;
    /// RDPMC
    pub(crate) const RDPMC: u32 = 15;
    /// RDTSC
    pub(crate) const RDTSC: u32 = 16;
    /// RSM
    pub(crate) const RSM: u32 = 17;
    /// VMCALL
    pub(crate) const VMCALL: u32 = 18;
    /// VMCLEAR, the first of nine VMX instructions
    pub(crate) const VMCLEAR: u32 = 19;
    /// VMXON, the last of them
    pub(crate) const VMXON: u32 = 27;
    /// Control-register access
    pub(crate) const CR: u32 = 28;
    /// MOV DR
    pub(crate) const DR: u32 = 29;
    /// I/O instruction
    pub(crate) const IO: u32 = 30;
    /// RDMSR
    pub(crate) const RDMSR: u32 = 31;
    /// WRMSR
    pub(crate) const WRMSR: u32 = 32;
    /// MWAIT
    pub(crate) const MWAIT: u32 = 36;
    /// MONITOR
    pub(crate) const MONITOR: u32 = 39;
    /// PAUSE
    pub(crate) const PAUSE: u32 = 40;
    /// Machine check during entry
    pub(crate) const MACHINE_CHECK: u32 = 41;
    /// An end of interrupt that others must hear of
    pub(crate) const VIRTUALIZED_EOI: u32 = 45;
    /// EPT violation
    pub(crate) const EPT_VIOLATION: u32 = 48;
    /// EPT misconfiguration
    pub(crate) const EPT_MISCONFIG: u32 = 49;
    /// INVEPT
    pub(crate) const INVEPT: u32 = 50;
    /// RDTSCP
    pub(crate) const RDTSCP: u32 = 51;
    /// Preemption timer
    pub(crate) const TIMER: u32 = 52;
    /// INVVPID
    pub(crate) const INVVPID: u32 = 53;
    /// WBINVD, WBNOINVD
    pub(crate) const WBINVD: u32 = 54;
    /// XSETBV
    pub(crate) const XSETBV: u32 = 55;
    /// INVPCID
    pub(crate) const INVPCID: u32 = 58;
    /// VMFUNC
    pub(crate) const VMFUNC: u32 = 59;
    /// ENCLS
    pub(crate) const ENCLS: u32 = 60;
    /// Page-modification log full
    pub(crate) const PML_FULL: u32 = 62;
    /// XSAVES
    pub(crate) const XSAVES: u32 = 63;
    /// XRSTORS
    pub(crate) const XRSTORS: u32 = 64;
    /// UMWAIT
    pub(crate) const UMWAIT: u32 = 67;
    /// TPAUSE
    pub(crate) const TPAUSE: u32 = 68;
    /// The entry failed: the guest did not run.
    pub(crate) const FAILED: u32 = 1 << 31;
    /// Ours, outside of the manual's range: VMX was turned off under us, or no section.
    pub(crate) const NO_VMX: u32 = 0x4000_0001;
    /// Ours: the processor did not even begin to enter; the error number is in the qualification.
    pub(crate) const VMFAIL: u32 = 0x4000_0002;
}

/// Which further fields an exit has to be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Exit qualification
    pub(crate) qualification: bool,
    /// Guest-physical address
    pub(crate) gpa: bool,
    /// Error code
    pub(crate) error: bool,
    /// IDT-vectoring information
    pub(crate) vectoring: bool,
    /// It is an instruction's: its length says where the next one is.
    pub(crate) length: bool,
}

/// What goes with a reason.
#[inline]
pub(crate) const fn needs(r: u32) -> Needs {
    const NOTHING: Needs = Needs {
        qualification: false,
        gpa: false,
        error: false,
        vectoring: false,
        length: false,
    };
    match r {
        reason::EXCEPTION => Needs {
            qualification: true,
            error: true,
            vectoring: true,
            ..NOTHING
        },
        // Like a trap: the instruction is over.
        reason::VIRTUALIZED_EOI => Needs {
            qualification: true,
            ..NOTHING
        },
        // In the middle of whatever writes memory.
        reason::PML_FULL => Needs {
            qualification: true,
            vectoring: true,
            ..NOTHING
        },
        reason::EPT_VIOLATION | reason::EPT_MISCONFIG => Needs {
            qualification: true,
            gpa: true,
            vectoring: true,
            ..NOTHING
        },
        reason::TASK_SWITCH => Needs {
            qualification: true,
            vectoring: true,
            length: true,
            ..NOTHING
        },
        reason::CR | reason::DR | reason::IO | reason::INVLPG => Needs {
            qualification: true,
            length: true,
            ..NOTHING
        },
        reason::CPUID
        | reason::GETSEC
        | reason::HLT
        | reason::INVD
        | reason::RDPMC
        | reason::RDTSC
        | reason::VMCALL..=reason::VMXON
        | reason::RDMSR
        | reason::WRMSR
        | reason::MWAIT
        | reason::MONITOR
        | reason::PAUSE
        | reason::INVEPT
        | reason::RDTSCP
        | reason::INVVPID..=reason::XSETBV
        | reason::INVPCID..=reason::ENCLS
        | reason::XSAVES
        | reason::XRSTORS
        | reason::UMWAIT
        | reason::TPAUSE => Needs {
            length: true,
            ..NOTHING
        },
        reason::TRIPLE_FAULT => Needs {
            vectoring: true,
            ..NOTHING
        },
        _ => NOTHING,
    }
}

/// What an exit has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    /// Exit reason
    pub(crate) reason: u32,
    /// Interruption information
    pub(crate) info: Info,
    /// Error code
    pub(crate) error: u32,
    /// Exit qualification
    pub(crate) qualification: u64,
    /// Guest-physical address
    pub(crate) gpa: u64,
    /// Length of the instruction; 0: it is none
    pub(crate) length: u8,
    /// IDT-vectoring information
    pub(crate) vectoring: Info,
}

const fn low4(v: u64) -> u8 {
    (v & 15) as u8
}

const fn low16(v: u64) -> u16 {
    (v & 0xffff) as u16
}

/// The exit that the fields tell of. `next_rip`: RIP after the instruction.
#[inline]
pub(crate) fn exit(r: &Raw, next_rip: impl Fn() -> Option<u64>) -> Exit {
    match r.reason {
        reason::INTERRUPT => Exit::HostInterrupt,
        reason::TIMER => Exit::TimeIsUp,
        reason::EPT_VIOLATION => ept_violation(r),
        reason::CPUID => Exit::Cpuid,
        reason::RDMSR => Exit::Rdmsr,
        reason::WRMSR => Exit::Wrmsr,
        reason::IO => Exit::Io(io(r, next_rip())),
        reason::HLT => Exit::Hlt,
        reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
        _ => rare(r),
    }
}

#[cold]
fn rare(r: &Raw) -> Exit {
    match r.reason {
        reason::EXCEPTION => exception(r),
        reason::TRIPLE_FAULT => Exit::TripleFault,
        reason::INIT | reason::SIPI | reason::SMI_IO | reason::SMI => Exit::HostInterrupt,
        reason::PML_FULL => Exit::LogFull,
        reason::NMI_WINDOW => Exit::NmiWindow,
        reason::VIRTUALIZED_EOI => Exit::Eoi {
            vector: (r.qualification & 0xff) as u8,
        },
        reason::TASK_SWITCH => task_switch(r),
        reason::INVD => Exit::Invd,
        reason::INVLPG => Exit::Invlpg {
            addr: Some(r.qualification),
        },
        reason::RDPMC => Exit::Rdpmc,
        reason::RDTSC | reason::RDTSCP => Exit::Rdtsc,
        reason::RSM => Exit::Rsm,
        reason::VMCALL => Exit::Hypercall,
        reason::CR => cr(r),
        reason::DR => Exit::Dr {
            dr: low4(r.qualification & 7),
            write: r.qualification & 1 << 4 == 0,
            gpr: Some(Gpr::from_low4(low4(r.qualification >> 8))),
        },
        reason::MWAIT => Exit::Mwait,
        reason::MONITOR => Exit::Monitor,
        reason::PAUSE => Exit::Pause,
        reason::MACHINE_CHECK => Exit::MachineCheck,
        reason::WBINVD => Exit::Wbinvd,
        reason::XSETBV => Exit::Xsetbv,
        // Guests do not have VMX, nor SGX, SMX, and waiting in user mode.
        reason::GETSEC
        | reason::VMCLEAR..=reason::VMXON
        | reason::INVEPT
        | reason::INVVPID
        | reason::INVPCID
        | reason::VMFUNC
        | reason::ENCLS
        | reason::XSAVES
        | reason::XRSTORS
        | reason::UMWAIT
        | reason::TPAUSE => Exit::Undefined,
        reason::VMFAIL => Exit::FailEntry {
            code: r.qualification,
        },
        f if f & reason::FAILED != 0 || f == reason::NO_VMX => {
            Exit::FailEntry { code: u64::from(f) }
        }
        // A misconfigured entry is ours: no guest can make one.
        code => Exit::Unknown {
            code: u64::from(code),
        },
    }
}

/// Table 29-7.
fn ept_violation(r: &Raw) -> Exit {
    /// The access: read, write, fetch.
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 2;
    /// What the entries allow.
    const ALLOWED: u64 = 7 << 3;
    /// There is a linear address; and the access was to its translation, not to a table.
    const LINEAR: u64 = 1 << 7;
    const FINAL: u64 = 1 << 8;
    let q = r.qualification;
    Exit::Stage2Fault {
        gpa: r.gpa,
        access: Stage2Access {
            write: q & WRITE != 0,
            fetch: q & FETCH != 0,
            present: q & ALLOWED != 0,
            table_walk: q & (LINEAR | FINAL) == LINEAR,
        },
    }
}

/// Table 29-5.
fn io(r: &Raw, next_rip: Option<u64>) -> Io {
    let q = r.qualification;
    Io {
        port: low16(q >> 16),
        size: match q & 7 {
            0 => 1,
            1 => 2,
            _ => 4,
        },
        input: q & 1 << 3 != 0,
        string: q & 1 << 4 != 0,
        rep: q & 1 << 5 != 0,
        next_rip,
    }
}

/// Table 29-3.
fn cr(r: &Raw) -> Exit {
    let q = r.qualification;
    // MOV to CR, MOV from CR, CLTS, LMSW.
    let kind = q >> 4 & 3;
    Exit::Cr {
        cr: if kind < 2 { low4(q) } else { 0 },
        write: kind != 1,
        gpr: (kind < 2).then(|| Gpr::from_low4(low4(q >> 8))),
    }
}

fn exception(r: &Raw) -> Exit {
    /// B0 to B3, BLD, BD, BS; RTM says the opposite in DR6.
    const CAUSES: u64 = 0xf | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 16;
    /// Bits of DR6 that are 0 when their cause is there.
    const ACTIVE_LOW: u64 = 1 << 11 | 1 << 16;
    if r.info.kind() == kind::NMI {
        return Exit::HostNmi;
    }
    match r.info.vector() {
        vector::MC => Exit::MachineCheck,
        v => Exit::Exception(Exception {
            vector: v,
            error: r.info.has_error().then_some(r.error),
            payload: match v {
                vector::PF => Some(r.qualification),
                vector::DB => Some(r.qualification & CAUSES ^ ACTIVE_LOW | DR6_INIT & !ACTIVE_LOW),
                _ => None,
            },
        }),
    }
}

/// Table 29-2.
fn task_switch(r: &Raw) -> Exit {
    let q = r.qualification;
    Exit::TaskSwitch(TaskSwitch {
        selector: low16(q),
        reason: match q >> 30 & 3 {
            0 => TaskSwitchReason::Call,
            1 => TaskSwitchReason::Iret,
            2 => TaskSwitchReason::Jump,
            _ => match r.vectoring.kind() {
                kind::NMI => TaskSwitchReason::Nmi,
                kind::SOFT_INTERRUPT | kind::SOFT_EXCEPTION => TaskSwitchReason::Soft {
                    vector: r.vectoring.vector(),
                },
                kind::INT1 => TaskSwitchReason::Int1,
                _ => TaskSwitchReason::Event,
            },
        },
        error: (r.vectoring.valid() && r.vectoring.has_error()).then_some(r.error),
        // 29.3.3: RFLAGS has it as the old task's TSS would.
        resume: None,
    })
}
