// SPDX-License-Identifier: GPL-2.0

//! Exception syndromes: why a guest came to EL2, and the syndromes of exceptions that it is given at EL1.
//!
//! Arm ARM (DDI 0487), D24.2: ESR_EL1, ESR_EL2, FAR_EL2, HPFAR_EL2, with their tables of exception classes and of
//! ISS encodings. All values are decoded in full: what hardware writes is the architecture's, but nothing here
//! relies on it.

use super::sysreg::Sysreg;

mod abort;
mod inject;

pub use abort::{fault_address, par_address, Abort, Access, DataAbort, Fault};
pub use inject::{at_el1, external_abort, serror, undefined, with_fault, IL};

macro_rules! classes {
    ($( $(#[$doc:meta])* $name:ident = $ec:literal, )*) => {
        /// ESR_ELx.EC
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Class { $( $(#[$doc])* $name = $ec, )* }

        /// All classes.
        pub const CLASSES: &[Class] = &[ $( Class::$name, )* ];

        impl Class {
            /// By number; `None` if the architecture has none.
            pub const fn of(ec: u8) -> Option<Class> {
                match ec {
                    $( $ec => Some(Class::$name), )*
                    _ => None,
                }
            }
        }
    };
}

classes! {
    /// Unknown reason: an undefined instruction, most of all
    Unknown = 0x00,
    /// WFI, WFE, WFIT, WFET
    Wfx = 0x01,
    /// AArch32 MCR or MRC, coprocessor 15
    Cp15 = 0x03,
    /// AArch32 MCRR or MRRC, coprocessor 15
    Cp15Pair = 0x04,
    /// AArch32 MCR or MRC, coprocessor 14
    Cp14 = 0x05,
    /// AArch32 LDC or STC
    Cp14Memory = 0x06,
    /// SVE, SIMD or floating point, by CPACR or CPTR
    Fp = 0x07,
    /// AArch32 VMRS of an ID register
    VmrsId = 0x08,
    /// Pointer authentication, by HCR_EL2.API
    Pauth = 0x09,
    /// LD64B, ST64B and others that HCRX_EL2 traps
    Other = 0x0a,
    /// AArch32 MRRC, coprocessor 14
    Cp14Pair = 0x0c,
    /// Branch target
    Bti = 0x0d,
    /// Illegal execution state
    IllegalState = 0x0e,
    /// SVC, AArch32
    Svc32 = 0x11,
    /// HVC, AArch32
    Hvc32 = 0x12,
    /// SMC, AArch32
    Smc32 = 0x13,
    /// SVC
    Svc = 0x15,
    /// HVC
    Hvc = 0x16,
    /// SMC
    Smc = 0x17,
    /// MSR, MRS or a System instruction
    Sysreg = 0x18,
    /// SVE, by CPACR or CPTR
    Sve = 0x19,
    /// ERET
    Eret = 0x1a,
    /// A pointer that failed authentication
    Fpac = 0x1c,
    /// SME
    Sme = 0x1d,
    /// Instruction abort from a lower level
    InstructionAbort = 0x20,
    /// Instruction abort from the same level
    InstructionAbortSame = 0x21,
    /// Misaligned PC
    PcAlignment = 0x22,
    /// Data abort from a lower level
    DataAbort = 0x24,
    /// Data abort from the same level
    DataAbortSame = 0x25,
    /// Misaligned SP
    SpAlignment = 0x26,
    /// Memory copy and set
    Mops = 0x27,
    /// Floating-point exception, AArch32
    FpException32 = 0x28,
    /// Floating-point exception
    FpException = 0x2c,
    /// Guarded control stack
    Gcs = 0x2d,
    /// SError
    SError = 0x2f,
    /// Breakpoint from a lower level
    Breakpoint = 0x30,
    /// Breakpoint from the same level
    BreakpointSame = 0x31,
    /// Software step from a lower level
    Step = 0x32,
    /// Software step from the same level
    StepSame = 0x33,
    /// Watchpoint from a lower level
    Watchpoint = 0x34,
    /// Watchpoint from the same level
    WatchpointSame = 0x35,
    /// BKPT, AArch32
    Bkpt32 = 0x38,
    /// Vector catch, AArch32
    VectorCatch32 = 0x3a,
    /// BRK
    Brk = 0x3c,
}

/// A value of ESR_ELx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Esr(pub u64);

/// A general-purpose register by number, as AArch64 sees it; 31 is the zero register.
pub type Gpr = u8;

/// Which instruction waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// WFI
    Interrupt,
    /// WFE
    Event,
    /// WFIT: until the virtual count reaches the register's value, if the syndrome names the register
    InterruptUntil(Option<Gpr>),
    /// WFET: likewise
    EventUntil(Option<Gpr>),
}

/// A trapped access to a system register, or System instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysregAccess {
    /// Which.
    pub reg: Sysreg,
    /// To or from which register.
    pub rt: Gpr,
    /// MSR, or an instruction without result.
    pub write: bool,
}

/// A trapped AArch32 MCR or MRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpAccess {
    /// opc1
    pub op1: u8,
    /// CRn
    pub crn: u8,
    /// CRm
    pub crm: u8,
    /// opc2
    pub op2: u8,
    /// To or from which register.
    pub rt: Gpr,
    /// MCR
    pub write: bool,
}

/// A trapped AArch32 MCRR or MRRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpPairAccess {
    /// opc1
    pub op1: u8,
    /// CRm
    pub crm: u8,
    /// Lower half.
    pub rt: Gpr,
    /// Upper half.
    pub rt2: Gpr,
    /// MCRR
    pub write: bool,
}

/// A debug exception that was routed to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debug {
    /// Hardware breakpoint
    Breakpoint,
    /// Software step
    Step,
    /// Hardware watchpoint; FAR_EL2 has the address, if it is valid
    Watchpoint {
        /// The access was a write (or cache maintenance, which `cache` tells).
        write: bool,
        /// By cache maintenance.
        cache: bool,
        /// FAR_EL2 is valid.
        address: bool,
    },
    /// AArch32 BKPT
    Bkpt32(u16),
    /// AArch32 vector catch
    VectorCatch32,
    /// BRK
    Brk(u16),
}

/// A decoded syndrome of an exception that came to EL2 from a guest at EL1 or EL0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// Waits.
    Wait(Wait),
    /// Coprocessor 15, 32 bits, from AArch32.
    Cp15(CpAccess),
    /// Coprocessor 15, 64 bits, from AArch32.
    Cp15Pair(CpPairAccess),
    /// Coprocessor 14, 32 bits, from AArch32.
    Cp14(CpAccess),
    /// Coprocessor 14, 64 bits, from AArch32.
    Cp14Pair(CpPairAccess),
    /// LDC or STC of DBGDTR, from AArch32.
    Cp14Memory,
    /// VMRS of MVFR<n> or FPSID, from AArch32: the register's number is in CRn's place.
    VmrsId(CpAccess),
    /// Floating point or SIMD is not the guest's yet.
    Fp,
    /// SVE is not the guest's yet.
    Sve,
    /// SME
    Sme,
    /// Pointer authentication, or a key, by HCR_EL2.API and APK.
    Pauth,
    /// By HCRX_EL2 and others: the ISS.
    Other(u64),
    /// HVC with the immediate.
    Hvc(u16),
    /// The same from AArch32.
    Hvc32(u16),
    /// SMC with the immediate. The PC is that of the instruction, not of the next.
    Smc(u16),
    /// The same from AArch32, which gives no immediate.
    Smc32,
    /// MSR, MRS or a System instruction.
    Sysreg(SysregAccess),
    /// ERET
    Eret,
    /// Stage 2 did not let an instruction be fetched.
    InstructionAbort(Abort),
    /// Stage 2 did not let data be accessed.
    DataAbort(DataAbort),
    /// The guest's PSTATE.IL: it can come here only if its own state is illegal.
    IllegalState,
    /// SError: the ISS.
    SError(u64),
    /// A debug exception, by MDCR_EL2.TDE.
    Debug(Debug),
    /// Of no class that can be routed here: for the guest, as an undefined instruction.
    Unexpected(u8),
}

impl Esr {
    /// EC as a number.
    #[inline]
    pub const fn ec(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// EC; `None` if it is not allocated.
    #[inline]
    pub const fn class(self) -> Option<Class> {
        Class::of(self.ec())
    }

    /// IL: the instruction has 32 bits (in T32: not 16).
    #[inline]
    pub const fn long(self) -> bool {
        self.0 & IL != 0
    }

    /// ISS: bits 24 to 0.
    #[inline]
    pub const fn iss(self) -> u64 {
        self.0 & 0x1ff_ffff
    }

    /// ISS2: bits 55 to 32.
    #[inline]
    pub const fn iss2(self) -> u64 {
        self.0 >> 32 & 0xff_ffff
    }

    #[inline]
    const fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 != 0
    }

    /// `width` bits from `shift` on, at most 8.
    #[inline]
    const fn field(self, shift: u32, width: u32) -> u8 {
        (self.0 >> shift & ((1 << width) - 1) & 0xff) as u8
    }

    const fn imm16(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    const fn wait(self) -> Wait {
        // TI in bits 1:0, RV in bit 2, RN in bits 9:5.
        let rn = if self.bit(2) {
            Some(self.field(5, 5))
        } else {
            None
        };
        match self.field(0, 2) {
            0 => Wait::Interrupt,
            1 => Wait::Event,
            2 => Wait::InterruptUntil(rn),
            _ => Wait::EventUntil(rn),
        }
    }

    const fn cp(self) -> CpAccess {
        CpAccess {
            op1: self.field(14, 3),
            crn: self.field(10, 4),
            crm: self.field(1, 4),
            op2: self.field(17, 3),
            rt: self.field(5, 5),
            write: !self.bit(0),
        }
    }

    const fn cp_pair(self) -> CpPairAccess {
        CpPairAccess {
            op1: self.field(16, 4),
            crm: self.field(1, 4),
            rt: self.field(5, 5),
            rt2: self.field(10, 5),
            write: !self.bit(0),
        }
    }

    /// What it says of a guest's exception to EL2.
    pub const fn decode(self) -> Syndrome {
        let Some(class) = self.class() else {
            return Syndrome::Unexpected(self.ec());
        };
        match class {
            Class::Wfx => Syndrome::Wait(self.wait()),
            Class::Cp15 => Syndrome::Cp15(self.cp()),
            Class::Cp15Pair => Syndrome::Cp15Pair(self.cp_pair()),
            Class::Cp14 => Syndrome::Cp14(self.cp()),
            Class::Cp14Pair => Syndrome::Cp14Pair(self.cp_pair()),
            Class::Cp14Memory => Syndrome::Cp14Memory,
            Class::VmrsId => Syndrome::VmrsId(self.cp()),
            Class::Fp => Syndrome::Fp,
            Class::Sve => Syndrome::Sve,
            Class::Sme => Syndrome::Sme,
            Class::Pauth => Syndrome::Pauth,
            Class::Other => Syndrome::Other(self.iss()),
            Class::Hvc => Syndrome::Hvc(self.imm16()),
            Class::Hvc32 => Syndrome::Hvc32(self.imm16()),
            Class::Smc32 => Syndrome::Smc32,
            Class::Smc => Syndrome::Smc(self.imm16()),
            Class::Sysreg => Syndrome::Sysreg(SysregAccess {
                reg: Sysreg::from_iss(self.iss()),
                rt: self.field(5, 5),
                write: !self.bit(0),
            }),
            Class::Eret => Syndrome::Eret,
            Class::InstructionAbort => Syndrome::InstructionAbort(Abort::of(self)),
            Class::DataAbort => Syndrome::DataAbort(DataAbort::of(self)),
            Class::IllegalState => Syndrome::IllegalState,
            Class::SError => Syndrome::SError(self.iss()),
            Class::Breakpoint => Syndrome::Debug(Debug::Breakpoint),
            Class::Step => Syndrome::Debug(Debug::Step),
            Class::Watchpoint => Syndrome::Debug(Debug::Watchpoint {
                write: self.bit(6),
                cache: self.bit(8),
                address: !self.bit(10),
            }),
            Class::Bkpt32 => Syndrome::Debug(Debug::Bkpt32(self.imm16())),
            Class::VectorCatch32 => Syndrome::Debug(Debug::VectorCatch32),
            Class::Brk => Syndrome::Debug(Debug::Brk(self.imm16())),
            _ => Syndrome::Unexpected(self.ec()),
        }
    }

    /// False if the trapped instruction was a conditional one of AArch32 whose condition fails in `pstate`: it
    /// does nothing then, but traps all the same on some processors (G1.15, "traps of conditional instructions").
    pub fn condition_holds(self, pstate: u64) -> bool {
        match self.class() {
            // CCKNOWNPASS, bit 19: clear if the condition held, or if there was none.
            Some(Class::Smc32) if !self.bit(19) => return true,
            Some(
                Class::Wfx
                | Class::Smc32
                | Class::Cp15
                | Class::Cp15Pair
                | Class::Cp14
                | Class::Cp14Pair
                | Class::Cp14Memory
                | Class::Fp
                | Class::VmrsId,
            ) => {}
            _ => return true,
        }
        const AARCH32: u64 = 1 << 4;
        if pstate & AARCH32 == 0 {
            return true;
        }
        // CV in bit 24, COND in bits 23:20. Without it, T32: the instruction may stand in an IT block, whose
        // condition is IT[7:4]. IT[7:2] is in PSTATE 15:10, IT[1:0] in 26:25; all is zero outside of a block.
        let cond = if self.bit(24) {
            self.field(20, 4)
        } else {
            let it = pstate >> 8 & 0xfc | pstate >> 25 & 3;
            if it == 0 {
                return true;
            }
            (it >> 4 & 15) as u8
        };
        condition_holds(cond, pstate)
    }
}

/// ConditionHolds(): a condition code against N, Z, C and V of `pstate`.
pub const fn condition_holds(cond: u8, pstate: u64) -> bool {
    let n = pstate >> 31 & 1 != 0;
    let z = pstate >> 30 & 1 != 0;
    let c = pstate >> 29 & 1 != 0;
    let v = pstate >> 28 & 1 != 0;
    let holds = match cond >> 1 & 7 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    holds != (cond & 1 != 0)
}
