// SPDX-License-Identifier: GPL-2.0

//! The decoded exit of x86: why the guest stopped, with typed payloads, the same for every vendor.
//!
//! A backend turns its exit codes into this enum; all handlers are written once, against it.

use super::model::regs::{Exception, Gpr};

/// Why the guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A host interrupt (or SMI, INIT) is pending; it is taken when the guest section ends.
    HostInterrupt,
    /// The guest has run as long as [`super::backend::HwVcpu::stay`] lets it, or the hardware's bound.
    TimeIsUp,
    /// The processor has no more room to log writes in; the section's end makes some.
    LogFull,
    /// A host NMI is pending or was taken.
    HostNmi,
    /// A machine check hit the host while the guest ran.
    MachineCheck,
    /// The guest can take a maskable interrupt now; asked for with [`Windows::interrupt`].
    InterruptWindow,
    /// The guest can take an NMI now, or will after one more instruction (it executes IRET).
    NmiWindow,
    /// The guest has ended an interrupt that was delivered without us, and that others must hear of.
    Eoi {
        /// Its vector.
        vector: u8,
    },
    /// A guest-physical address was not mapped, or not with the permission needed.
    Stage2Fault {
        /// The guest-physical address, in bytes.
        gpa: u64,
        /// What the guest tried.
        access: Stage2Access,
    },
    /// CPUID
    Cpuid,
    /// HLT
    Hlt,
    /// PAUSE, more often than the filter allows.
    Pause,
    /// RDMSR
    Rdmsr,
    /// WRMSR
    Wrmsr,
    /// IN, OUT, INS or OUTS
    Io(Io),
    /// MOV from or to a control register, CLTS, LMSW, SMSW.
    Cr {
        /// Which: 0, 2, 3, 4 or 8.
        cr: u8,
        /// The guest writes it.
        write: bool,
        /// The register operand; `None`: the hardware does not say, or it is no MOV.
        gpr: Option<Gpr>,
    },
    /// MOV from or to a debug register.
    Dr {
        /// Which, 0 to 7.
        dr: u8,
        /// The guest writes it.
        write: bool,
        /// The register operand; `None`: the hardware does not say.
        gpr: Option<Gpr>,
    },
    /// INVLPG
    Invlpg {
        /// The linear address, when the hardware says it.
        addr: Option<u64>,
    },
    /// RDPMC
    Rdpmc,
    /// RDTSC or RDTSCP (only when intercepted)
    Rdtsc,
    /// XSETBV
    Xsetbv,
    /// WBINVD or WBNOINVD
    Wbinvd,
    /// INVD
    Invd,
    /// MONITOR
    Monitor,
    /// MWAIT
    Mwait,
    /// VMMCALL or VMCALL
    Hypercall,
    /// RSM outside of system-management mode.
    Rsm,
    /// A task switch, which the processor has not begun.
    TaskSwitch(TaskSwitch),
    /// INT n, INT3 or INTO, not executed yet.
    SoftInterrupt,
    /// An exception that is intercepted.
    Exception(Exception),
    /// Triple fault: the processor shut down.
    TripleFault,
    /// An instruction that this guest does not have: #UD.
    Undefined,
    /// The hardware refused the guest's state.
    FailEntry {
        /// The hardware's own code.
        code: u64,
    },
    /// A reason that this version does not know.
    Unknown {
        /// The hardware's own code.
        code: u64,
    },
}

/// What a guest access that stage 2 refused was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage2Access {
    /// A write (or a read-modify-write).
    pub(crate) write: bool,
    /// An instruction fetch.
    pub(crate) fetch: bool,
    /// The entry was present, its permission was too narrow.
    pub(crate) present: bool,
    /// The access was the processor's own, to a guest page table, not the instruction's operand.
    pub(crate) table_walk: bool,
}

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Io {
    /// Port number.
    pub(crate) port: u16,
    /// Operand size in bytes: 1, 2 or 4.
    pub(crate) size: u8,
    /// IN or INS.
    pub(crate) input: bool,
    /// INS or OUTS.
    pub(crate) string: bool,
    /// With a REP prefix.
    pub(crate) rep: bool,
    /// RIP of the instruction after it, where the hardware says it.
    pub(crate) next_rip: Option<u64>,
}

/// What the processor has found of a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskSwitch {
    /// Selector of the new TSS.
    pub(crate) selector: u16,
    /// What caused it.
    pub(crate) reason: TaskSwitchReason,
    /// Error code to push on the new task's stack.
    pub(crate) error: Option<u32>,
    /// RFLAGS.RF as it is to be saved; `None`: as it is.
    pub(crate) resume: Option<bool>,
}

/// What caused a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskSwitchReason {
    /// CALL
    Call,
    /// IRET
    Iret,
    /// JMP
    Jump,
    /// An exception or interrupt, through a task gate in the IDT
    Event,
    /// An NMI, in the same way
    Nmi,
    /// INT n, INT3 or INTO, which RIP is at, in the same way
    Soft {
        /// Vector
        vector: u8,
    },
    /// INT1, which RIP is at, in the same way
    Int1,
}

/// An event put into the guest at entry, or found undelivered at exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A hardware exception.
    Exception(Exception),
    /// INT3 or INTO (#BP, #OF), raised by the instruction at RIP.
    SoftException {
        /// 3 or 4.
        vector: u8,
        /// Length of the instruction, in bytes; 0: not known.
        len: u8,
    },
    /// INT n.
    SoftInterrupt {
        /// Vector, 0 to 255.
        vector: u8,
        /// Length of the instruction, in bytes; 0: not known.
        len: u8,
    },
    /// External interrupt.
    Interrupt {
        /// Vector, 0 to 255.
        vector: u8,
    },
    /// Non-maskable interrupt.
    Nmi,
}

/// The exits that are wanted as soon as the guest can take an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Windows {
    /// A maskable interrupt waits.
    pub(crate) interrupt: bool,
    /// An NMI waits.
    pub(crate) nmi: bool,
}

/// What exits are wanted that depend on the guest's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intercepts {
    /// Bit n: exception n exits. (#AC and #MC always do.)
    pub(crate) exceptions: u32,
    /// Every access to a debug register.
    pub(crate) debug_regs: bool,
    /// HLT
    pub(crate) hlt: bool,
    /// PAUSE (filtered, where the hardware can).
    pub(crate) pause: bool,
    /// MONITOR and MWAIT
    pub(crate) mwait: bool,
    /// Writes of CR8 (an interrupt waits that TPR holds back).
    pub(crate) cr8_write: bool,
    /// RDTSC and RDTSCP
    pub(crate) rdtsc: bool,
    /// RDPMC
    pub(crate) rdpmc: bool,
    /// INVLPG
    pub(crate) invlpg: bool,
}
