// SPDX-License-Identifier: GPL-2.0

//! Architectural register state, as the models see it: general registers, segments, descriptor
//! tables, and the named bits of control registers.
//!
//! Everything here is plain data, independent of the vendor's control block. Sources: AMD APM
//! vol. 2 (24593) chapters 3-5, Intel SDM vol. 3A chapters 2-5.

/// A general-purpose register, numbered as instructions encode it (ModRM with REX.B/X/R).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gpr {
    /// RAX
    Rax = 0,
    /// RCX
    Rcx = 1,
    /// RDX
    Rdx = 2,
    /// RBX
    Rbx = 3,
    /// RSP
    Rsp = 4,
    /// RBP
    Rbp = 5,
    /// RSI
    Rsi = 6,
    /// RDI
    Rdi = 7,
    /// R8
    R8 = 8,
    /// R9
    R9 = 9,
    /// R10
    R10 = 10,
    /// R11
    R11 = 11,
    /// R12
    R12 = 12,
    /// R13
    R13 = 13,
    /// R14
    R14 = 14,
    /// R15
    R15 = 15,
}

impl Gpr {
    /// All sixteen, by number.
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];

    /// The register with the low four bits of `n` as its number.
    #[inline]
    pub const fn from_low4(n: u8) -> Gpr {
        Self::ALL[(n & 15) as usize]
    }
}

/// The sixteen general-purpose registers, in encoding order.
///
/// The entry assembly loads and stores them by these offsets (8 bytes each); RAX and RSP are kept
/// in the control block while a guest runs, and copied here by the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Gprs(pub [u64; 16]);

impl Gprs {
    /// The full 64-bit value.
    #[inline]
    pub const fn get(&self, r: Gpr) -> u64 {
        self.0[r as usize & 15]
    }

    /// Sets all 64 bits.
    #[inline]
    pub fn set(&mut self, r: Gpr, v: u64) {
        self.0[r as usize & 15] = v;
    }
}

/// A segment register, numbered as instructions encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seg {
    /// ES
    Es = 0,
    /// CS
    Cs = 1,
    /// SS
    Ss = 2,
    /// DS
    Ds = 3,
    /// FS
    Fs = 4,
    /// GS
    Gs = 5,
}

/// Attributes of a segment, in the layout of the descriptor's second word from bit 8 on (SDM
/// vol. 3A 3.4.5; the same as the VMX access-rights format): type 3:0, S 4, DPL 6:5, P 7, AVL 12,
/// L 13, D/B 14, G 15; bit 16 says "unusable" (a null selector was loaded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegAttr(pub u32);

impl SegAttr {
    /// Type, 4 bits.
    #[inline]
    pub const fn typ(self) -> u8 {
        (self.0 & 0xf) as u8
    }
    /// S: true for code and data, false for system segments.
    #[inline]
    pub const fn s(self) -> bool {
        self.0 & (1 << 4) != 0
    }
    /// Descriptor privilege level, 0 to 3.
    #[inline]
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }
    /// Present.
    #[inline]
    pub const fn present(self) -> bool {
        self.0 & (1 << 7) != 0
    }
    /// Available to software.
    #[inline]
    pub const fn avl(self) -> bool {
        self.0 & (1 << 12) != 0
    }
    /// Long: 64-bit code segment.
    #[inline]
    pub const fn long(self) -> bool {
        self.0 & (1 << 13) != 0
    }
    /// Default operation size / stack size: 32 bits when set.
    #[inline]
    pub const fn db(self) -> bool {
        self.0 & (1 << 14) != 0
    }
    /// Granularity: the limit counts 4 KiB units.
    #[inline]
    pub const fn granularity(self) -> bool {
        self.0 & (1 << 15) != 0
    }
    /// Unusable: the register holds a null selector.
    #[inline]
    pub const fn unusable(self) -> bool {
        self.0 & (1 << 16) != 0
    }
    /// Builds attributes from their fields.
    #[inline]
    #[expect(
        clippy::too_many_arguments,
        reason = "one argument a field of the descriptor"
    )]
    pub const fn new(
        typ: u8,
        s: bool,
        dpl: u8,
        present: bool,
        avl: bool,
        long: bool,
        db: bool,
        granularity: bool,
        unusable: bool,
    ) -> SegAttr {
        SegAttr(
            (typ & 0xf) as u32
                | (s as u32) << 4
                | ((dpl & 3) as u32) << 5
                | (present as u32) << 7
                | (avl as u32) << 12
                | (long as u32) << 13
                | (db as u32) << 14
                | (granularity as u32) << 15
                | (unusable as u32) << 16,
        )
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Attributes.
    pub attr: SegAttr,
    /// The limit in bytes (already scaled by the granularity).
    pub limit: u32,
    /// The linear base address.
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// An exception to deliver to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// The error code, for vectors that push one.
    pub error: Option<u32>,
    /// What CR2 (#PF) or DR6 (#DB) becomes at delivery.
    pub payload: Option<u64>,
}

impl Exception {
    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            payload: None,
        }
    }
    /// An exception with error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            payload: None,
        }
    }
    /// #UD
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }
    /// #GP(error)
    pub const fn gp(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }
    /// #SS(error)
    pub const fn ss(error: u32) -> Self {
        Self::with_error(vector::SS, error)
    }
    /// #PF(error) at linear address `cr2`
    pub const fn pf(error: u32, cr2: u64) -> Self {
        Self {
            vector: vector::PF,
            error: Some(error),
            payload: Some(cr2),
        }
    }
}

/// Exception vectors (APM vol. 2 table 8-1).
pub mod vector {
    /// Divide error
    pub const DE: u8 = 0;
    /// Debug
    pub const DB: u8 = 1;
    /// Non-maskable interrupt
    pub const NMI: u8 = 2;
    /// Breakpoint
    pub const BP: u8 = 3;
    /// Overflow
    pub const OF: u8 = 4;
    /// Bound range
    pub const BR: u8 = 5;
    /// Invalid opcode
    pub const UD: u8 = 6;
    /// Device not available
    pub const NM: u8 = 7;
    /// Double fault
    pub const DF: u8 = 8;
    /// Invalid TSS
    pub const TS: u8 = 10;
    /// Segment not present
    pub const NP: u8 = 11;
    /// Stack fault
    pub const SS: u8 = 12;
    /// General protection
    pub const GP: u8 = 13;
    /// Page fault
    pub const PF: u8 = 14;
    /// x87 floating point
    pub const MF: u8 = 16;
    /// Alignment check
    pub const AC: u8 = 17;
    /// Machine check
    pub const MC: u8 = 18;
    /// SIMD floating point
    pub const XM: u8 = 19;
    /// Control protection
    pub const CP: u8 = 21;
}

/// CR0 (APM vol. 2 3.1.1).
pub mod cr0 {
    /// Protection enable
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor
    pub const MP: u64 = 1 << 1;
    /// Emulate coprocessor
    pub const EM: u64 = 1 << 2;
    /// Task switched
    pub const TS: u64 = 1 << 3;
    /// Extension type
    pub const ET: u64 = 1 << 4;
    /// Numeric error
    pub const NE: u64 = 1 << 5;
    /// Write protect
    pub const WP: u64 = 1 << 16;
    /// Alignment mask
    pub const AM: u64 = 1 << 18;
    /// Not write-through
    pub const NW: u64 = 1 << 29;
    /// Cache disable
    pub const CD: u64 = 1 << 30;
    /// Paging
    pub const PG: u64 = 1 << 31;
    /// All bits that are defined.
    pub const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4 (APM vol. 2 3.1.3; SDM vol. 3A 2.5).
pub mod cr4 {
    /// Virtual-8086 mode extensions
    pub const VME: u64 = 1 << 0;
    /// Protected-mode virtual interrupts
    pub const PVI: u64 = 1 << 1;
    /// Time stamp disable
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions
    pub const DE: u64 = 1 << 3;
    /// Page-size extensions
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extensions
    pub const PAE: u64 = 1 << 5;
    /// Machine check enable
    pub const MCE: u64 = 1 << 6;
    /// Page-global enable
    pub const PGE: u64 = 1 << 7;
    /// RDPMC at any privilege level
    pub const PCE: u64 = 1 << 8;
    /// FXSAVE/FXRSTOR and SSE
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SIMD exceptions
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention
    pub const UMIP: u64 = 1 << 11;
    /// 57-bit linear addresses
    pub const LA57: u64 = 1 << 12;
    /// VMX enable
    pub const VMXE: u64 = 1 << 13;
    /// SMX enable
    pub const SMXE: u64 = 1 << 14;
    /// RDFSBASE and friends
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages
    pub const PKE: u64 = 1 << 22;
    /// Control-flow enforcement
    pub const CET: u64 = 1 << 23;
}

/// EFER (APM vol. 2 3.1.7).
pub mod efer {
    /// SYSCALL enable
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable
    pub const LME: u64 = 1 << 8;
    /// Long mode active
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable
    pub const NXE: u64 = 1 << 11;
    /// SVM enable
    pub const SVME: u64 = 1 << 12;
    /// Long mode segment limit enable
    pub const LMSLE: u64 = 1 << 13;
    /// Fast FXSAVE/FXRSTOR
    pub const FFXSR: u64 = 1 << 14;
    /// Translation cache extension
    pub const TCE: u64 = 1 << 15;
    /// Automatic IBRS
    pub const AUTOIBRS: u64 = 1 << 21;
}

/// RFLAGS (APM vol. 2 3.1.6).
pub mod rflags {
    /// Carry
    pub const CF: u64 = 1 << 0;
    /// Always one
    pub const FIXED: u64 = 1 << 1;
    /// Parity
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry
    pub const AF: u64 = 1 << 4;
    /// Zero
    pub const ZF: u64 = 1 << 6;
    /// Sign
    pub const SF: u64 = 1 << 7;
    /// Trap (single step)
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable
    pub const IF: u64 = 1 << 9;
    /// Direction
    pub const DF: u64 = 1 << 10;
    /// Overflow
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level
    pub const IOPL: u64 = 3 << 12;
    /// Nested task
    pub const NT: u64 = 1 << 14;
    /// Resume (suppresses instruction breakpoints)
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode
    pub const VM: u64 = 1 << 17;
    /// Alignment check / SMAP override
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt flag
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending
    pub const VIP: u64 = 1 << 20;
    /// CPUID available
    pub const ID: u64 = 1 << 21;
}

/// Page-fault error code (APM vol. 2 8.4.2).
pub mod pferr {
    /// The page was present: a protection violation
    pub const P: u32 = 1 << 0;
    /// Write access
    pub const W: u32 = 1 << 1;
    /// User access
    pub const U: u32 = 1 << 2;
    /// Reserved bit set
    pub const RSV: u32 = 1 << 3;
    /// Instruction fetch
    pub const I: u32 = 1 << 4;
    /// Protection key
    pub const PK: u32 = 1 << 5;
    /// Shadow stack
    pub const SS: u32 = 1 << 6;
}
