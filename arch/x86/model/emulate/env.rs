// SPDX-License-Identifier: GPL-2.0

//! What the emulator asks of the vCPU around it, and what it answers.

use super::super::decode::{
    Mnemonic,
    Vendor, //
};
use super::super::regs::{
    DescTable,
    Exception,
    Gpr,
    Gprs,
    Seg,
    Segment, //
};

/// The registers that the emulator commits by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// General registers.
    pub gprs: Gprs,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// Why an instruction was not completed. Nothing of it is committed but, for string instructions
/// with a repeat prefix, the iterations before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Deliver this exception; RIP is that of the instruction.
    Fault(Exception),
    /// User space must answer a read first. Run the same instruction again afterwards; the [`Env`]
    /// then has the data.
    NeedUser,
    /// What it takes is changing just now: let the guest come back to the instruction.
    Again,
    /// The emulator does not know how; report the bytes to user space.
    Unhandleable,
}

impl From<Exception> for Stop {
    fn from(e: Exception) -> Stop {
        Stop::Fault(e)
    }
}

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An operand.
    Data,
    /// The stack.
    Stack,
    /// A descriptor table, the TSS, the interrupt vector table: always with supervisor rights,
    /// whatever the CPL (SDM vol. 3A 4.6.1 "implicit").
    System,
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// On whose behalf.
    pub kind: Kind,
    /// Set on a read whose bytes the instruction writes back: write permission is checked before
    /// the read, and a fault's error code says write. Always set on writes.
    pub write: bool,
    /// Whether the access has user rights (CPL 3 and not [`Kind::System`]).
    pub user: bool,
}

/// Until when interrupts, and after a load of SS also debug traps, are held off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// STI enabled interrupts: none before the next instruction ends.
    Sti,
    /// SS was loaded by MOV or POP.
    MovSs,
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Registers, with RIP, are committed.
    Done {
        /// The shadow that it leaves; `None` ends any that was in force.
        shadow: Option<Shadow>,
        /// RFLAGS.TF was set: deliver #DB with DR6.BS.
        trap: bool,
    },
    /// A repeated string instruction with iterations left: those done are committed, RIP still
    /// points at it. Take interrupts, then run it again.
    Partial {
        /// RFLAGS.TF is set: deliver #DB with DR6.BS.
        trap: bool,
    },
    /// Another processor changed memory meanwhile; nothing is committed. Run it again.
    Retry,
    /// All checks that come before the operation passed; nothing is committed. Do it, then
    /// advance RIP by the instruction's length.
    System(System),
}

/// Operations that the vCPU itself carries out, as it does when they exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// CPUID
    Cpuid,
    /// RDMSR
    Rdmsr,
    /// WRMSR
    Wrmsr,
    /// RDTSC
    Rdtsc,
    /// RDTSCP
    Rdtscp,
    /// RDPMC
    Rdpmc,
    /// RDPID into this register
    Rdpid(Gpr),
    /// HLT
    Hlt,
    /// INVD
    Invd,
    /// WBINVD
    Wbinvd,
    /// INVLPG of this linear address
    Invlpg(u64),
    /// MOV from a control register
    ReadCr {
        /// 0, 2, 3, 4 or 8
        cr: u8,
        /// Destination
        to: Gpr,
    },
    /// MOV to a control register; also LMSW and CLTS
    WriteCr {
        /// 0, 2, 3, 4 or 8
        cr: u8,
        /// The new value; outside 64-bit mode the low 32 bits of the register
        value: u64,
    },
    /// MOV from a debug register
    ReadDr {
        /// 0 to 7
        dr: u8,
        /// Destination
        to: Gpr,
    },
    /// MOV to a debug register
    WriteDr {
        /// 0 to 7
        dr: u8,
        /// The new value
        value: u64,
    },
    /// LGDT
    Lgdt(DescTable),
    /// LIDT
    Lidt(DescTable),
    /// LLDT
    Lldt(Segment),
    /// LTR; the descriptor is marked busy already
    Ltr(Segment),
    /// MONITOR of this linear address
    Monitor(u64),
    /// MWAIT
    Mwait,
    /// XGETBV
    Xgetbv,
    /// XSETBV
    Xsetbv,
    /// VMCALL or VMMCALL
    Hypercall(Mnemonic),
    /// SWAPGS
    Swapgs,
    /// INT n, INT3, INTO or INT1 in protected mode: deliver through the IDT
    SoftInt {
        /// Vector
        vector: u8,
        /// Which instruction
        by: Mnemonic,
    },
}

/// Instruction-set extensions whose presence changes what an encoding does (CPUID as the guest
/// sees it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Adx,
    Avx,
    Bmi1,
    Bmi2,
    Cx16,
    Lzcnt,
    Movbe,
    Popcnt,
    Smap,
}

/// The vCPU as the emulator sees it.
///
/// State getters tell what holds before the instruction. Setters are called only when nothing of
/// the instruction can fail any more.
pub trait Env {
    /// CR0, CR2, CR3, CR4 or CR8 as the guest sees it.
    fn cr(&self, n: u8) -> u64;
    /// EFER.
    fn efer(&self) -> u64;
    /// The current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// Whose processor it is.
    fn vendor(&self) -> Vendor;
    /// Whether the guest has an extension.
    fn has(&self, feature: Feature) -> bool;
    /// A segment register.
    fn segment(&self, s: Seg) -> Segment;
    /// Loads a segment register. The CPL does not change by it.
    fn set_segment(&mut self, s: Seg, v: &Segment);
    /// LDTR.
    fn ldtr(&self) -> Segment;
    /// TR.
    fn tr(&self) -> Segment;
    /// GDTR.
    fn gdtr(&self) -> DescTable;
    /// IDTR.
    fn idtr(&self) -> DescTable;

    /// Reads memory at a linear address. The range may cross pages, and memory and devices; it
    /// does not wrap.
    ///
    /// # Errors
    ///
    /// A page fault, or [`Stop::NeedUser`] when a device in user space must be asked.
    fn read(&mut self, la: u64, buf: &mut [u8], access: Access) -> Result<(), Stop>;
    /// Writes memory at a linear address; all of it or nothing. Writes to devices are posted: they
    /// count as done, and user space gets them before the next instruction.
    ///
    /// # Errors
    ///
    /// A page fault.
    fn write(&mut self, la: u64, data: &[u8], access: Access) -> Result<(), Stop>;
    /// Checks that [`Env::write`] would not fault.
    ///
    /// # Errors
    ///
    /// A page fault.
    fn check_write(&mut self, la: u64, len: usize, access: Access) -> Result<(), Stop>;
    /// Writes `new` where `old` stands, atomically against other processors (1 to 16 bytes). False
    /// when something else stands there. On a device, a plain write.
    ///
    /// # Errors
    ///
    /// As [`Env::write`].
    fn cmpxchg(&mut self, la: u64, old: &[u8], new: &[u8], access: Access) -> Result<bool, Stop>;

    /// Reads a port (`size` 1, 2 or 4; permission was checked). `ahead` (at least 1) tells how
    /// many reads of this port the instruction is sure to make from here on: more than one may be
    /// fetched from user space at once, to answer the next calls.
    ///
    /// # Errors
    ///
    /// [`Stop::NeedUser`].
    fn pio_in(&mut self, port: u16, size: u8, ahead: u32) -> Result<u32, Stop>;
    /// Writes a port; posted as a write to a device is.
    ///
    /// # Errors
    ///
    /// None by itself; the type is that of its fellows.
    fn pio_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop>;

    /// The low 256 bits of vector register `n`.
    ///
    /// # Errors
    ///
    /// [`Stop::Unhandleable`] where guest vector state cannot be had.
    fn vec(&mut self, n: u8) -> Result<[u8; 32], Stop>;
    /// Sets the low 256 bits of vector register `n`. With `clear`, bits above become zero, as all
    /// VEX instructions do; else they are kept.
    fn set_vec(&mut self, n: u8, value: &[u8; 32], clear: bool);
    /// MXCSR.
    fn mxcsr(&self) -> u32;
    /// Sets MXCSR; reserved bits are clear.
    fn set_mxcsr(&mut self, value: u32);

    /// An instruction, or an iteration of one, is done: these are the registers from now on.
    /// Answers of user space were used up.
    fn commit(&mut self, regs: &Regs);
    /// Asked between iterations: true to leave with [`Outcome::Partial`], because of posted
    /// writes, signals or interrupts.
    fn should_yield(&self) -> bool {
        false
    }
}
