// SPDX-License-Identifier: GPL-2.0

//! The register map of the local APIC: offsets, fields, and who may read and write what.
//!
//! Sources: Intel SDM vol. 3A 12.4.1 (table 12-1) and 12.12.1.2 (table 12-6), AMD APM vol. 2 16.3.2
//! (table 16-2) and 16.11.

/// The x2APIC's first MSR, which is the register's at offset 0.
pub const FIRST_MSR: u32 = 0x800;

/// Offsets in the register page.
pub mod offset {
    /// The x2APIC MSR of the register at `offset`.
    pub const fn msr(offset: u16) -> u32 {
        super::FIRST_MSR + (offset as u32 >> 4)
    }

    /// Local APIC ID
    pub const ID: u16 = 0x020;
    /// Version
    pub const VERSION: u16 = 0x030;
    /// Task priority
    pub const TPR: u16 = 0x080;
    /// Arbitration priority (reads as zero)
    pub const APR: u16 = 0x090;
    /// Processor priority
    pub const PPR: u16 = 0x0a0;
    /// End of interrupt
    pub const EOI: u16 = 0x0b0;
    /// Logical destination
    pub const LDR: u16 = 0x0d0;
    /// Destination format (xAPIC only)
    pub const DFR: u16 = 0x0e0;
    /// Spurious interrupt vector
    pub const SVR: u16 = 0x0f0;
    /// In service, eight registers
    pub const ISR: u16 = 0x100;
    /// Trigger mode, eight registers
    pub const TMR: u16 = 0x180;
    /// Interrupt request, eight registers
    pub const IRR: u16 = 0x200;
    /// Error status
    pub const ESR: u16 = 0x280;
    /// LVT corrected machine check
    pub const LVT_CMCI: u16 = 0x2f0;
    /// Interrupt command; all 64 bits in x2APIC mode
    pub const ICR: u16 = 0x300;
    /// High half of the interrupt command (xAPIC only)
    pub const ICR2: u16 = 0x310;
    /// LVT timer
    pub const LVT_TIMER: u16 = 0x320;
    /// LVT thermal sensor
    pub const LVT_THERMAL: u16 = 0x330;
    /// LVT performance counters
    pub const LVT_PMC: u16 = 0x340;
    /// LVT LINT0
    pub const LVT_LINT0: u16 = 0x350;
    /// LVT LINT1
    pub const LVT_LINT1: u16 = 0x360;
    /// LVT error
    pub const LVT_ERROR: u16 = 0x370;
    /// Timer initial count
    pub const TMICT: u16 = 0x380;
    /// Timer current count
    pub const TMCCT: u16 = 0x390;
    /// Timer divide configuration
    pub const TDCR: u16 = 0x3e0;
    /// Self IPI (x2APIC only)
    pub const SELF_IPI: u16 = 0x3f0;
}

/// Local vector table entries (SDM vol. 3A 12.5.1).
pub mod lvt {
    /// Vector
    pub const VECTOR: u32 = 0xff;
    /// Delivery mode
    pub const MODE: u32 = 0x700;
    /// Delivery mode NMI
    pub const MODE_NMI: u32 = 0x400;
    /// Delivery mode ExtINT
    pub const MODE_EXTINT: u32 = 0x700;
    /// Delivery status (read-only; delivery takes no time here, so it is zero)
    pub const STATUS: u32 = 1 << 12;
    /// Input polarity (LINT0 and LINT1)
    pub const POLARITY: u32 = 1 << 13;
    /// Remote IRR (read-only)
    pub const REMOTE_IRR: u32 = 1 << 14;
    /// Level triggered (LINT0 and LINT1)
    pub const LEVEL: u32 = 1 << 15;
    /// Masked
    pub const MASKED: u32 = 1 << 16;
    /// Timer mode: periodic
    pub const PERIODIC: u32 = 1 << 17;
    /// Timer mode: TSC deadline
    pub const TSC_DEADLINE: u32 = 1 << 18;
    /// Both bits of the timer mode
    pub const TIMER_MODE: u32 = PERIODIC | TSC_DEADLINE;
}

/// Spurious interrupt vector register (SDM vol. 3A 12.9).
pub mod svr {
    /// Vector
    pub const VECTOR: u32 = 0xff;
    /// Software enable
    pub const ENABLE: u32 = 1 << 8;
    /// Focus processor checking disabled
    pub const NO_FOCUS: u32 = 1 << 9;
    /// Suppress EOI broadcast; there if the version register has [`super::version::DIRECTED_EOI`]
    pub const SUPPRESS_EOI: u32 = 1 << 12;
}

/// Version register (SDM vol. 3A 12.4.8).
pub mod version {
    /// An integrated APIC
    pub const INTEGRATED: u32 = 0x14;
    /// EOI broadcasts can be suppressed
    pub const DIRECTED_EOI: u32 = 1 << 24;
}

/// Error status register (SDM vol. 3A 12.5.3).
pub mod esr {
    /// An illegal vector was to be sent
    pub const SEND_ILLEGAL: u32 = 1 << 5;
    /// An illegal vector was received, or raised by the local vector table
    pub const RECEIVE_ILLEGAL: u32 = 1 << 6;
    /// A reserved register was accessed (xAPIC)
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
    /// All errors that this APIC raises
    pub const ALL: u32 = SEND_ILLEGAL | RECEIVE_ILLEGAL | ILLEGAL_REGISTER;
}

/// Interrupt command register (SDM vol. 3A 12.6.1).
pub mod icr {
    /// Logical destination mode
    pub const LOGICAL: u64 = 1 << 11;
    /// Delivery status (read-only)
    pub const BUSY: u64 = 1 << 12;
    /// Assert
    pub const ASSERT: u64 = 1 << 14;
    /// Level triggered
    pub const LEVEL: u64 = 1 << 15;
    /// What must be zero in x2APIC mode (SDM vol. 3A 12.12.9). The busy bit is ignored, as
    /// processors of both vendors disagree on it.
    pub const X2APIC_RESERVED: u64 = 0xfff0_0000 | 3 << 16 | 1 << 13;
}

/// Destination format register (SDM vol. 3A 12.6.2.2): only the model in bits 31:28 can change.
pub mod dfr {
    /// Flat model, and the reset value
    pub const FLAT: u32 = 0xffff_ffff;
    /// Cluster model
    pub const CLUSTER: u32 = 0x0fff_ffff;
    /// Bits that are always one
    pub const ONES: u32 = 0x0fff_ffff;
}

/// How one register may be accessed.
#[derive(Clone, Copy)]
pub struct Access(u8);

impl Access {
    const NONE: Access = Access(0);
    /// xAPIC read, xAPIC write, x2APIC read, x2APIC write.
    const XR: u8 = 1;
    const XW: u8 = 2;
    const R: u8 = 4;
    const W: u8 = 8;

    /// May be read; in x2APIC mode a read of another raises #GP.
    #[inline]
    pub const fn readable(self, x2apic: bool) -> bool {
        self.0 & if x2apic { Self::R } else { Self::XR } != 0
    }

    /// May be written; in x2APIC mode a write to another raises #GP.
    #[inline]
    pub const fn writable(self, x2apic: bool) -> bool {
        self.0 & if x2apic { Self::W } else { Self::XW } != 0
    }

    /// The access rights of the register at `offset` (bits 3:0 are ignored).
    #[inline]
    pub const fn of(offset: u16) -> Access {
        if offset < 0x400 {
            TABLE[(offset >> 4 & 63) as usize]
        } else {
            Access::NONE
        }
    }
}

const TABLE: [Access; 64] = {
    use offset::*;
    const READ: u8 = Access::XR | Access::R;
    const BOTH: u8 = READ | Access::XW | Access::W;
    const WRITE: u8 = Access::XW | Access::W;
    const X_ONLY: u8 = Access::XR | Access::XW;
    const ROWS: [(u16, usize, u8); 26] = [
        (ID, 1, READ | Access::XW),
        (VERSION, 1, READ),
        (TPR, 1, BOTH),
        (APR, 1, Access::XR),
        (PPR, 1, READ),
        (EOI, 1, WRITE),
        (LDR, 1, READ | Access::XW),
        (DFR, 1, X_ONLY),
        (SVR, 1, BOTH),
        (ISR, 8, READ),
        (TMR, 8, READ),
        (IRR, 8, READ),
        (ESR, 1, BOTH),
        (LVT_CMCI, 1, BOTH),
        (ICR, 1, BOTH),
        (ICR2, 1, X_ONLY),
        (LVT_TIMER, 1, BOTH),
        (LVT_THERMAL, 1, BOTH),
        (LVT_PMC, 1, BOTH),
        (LVT_LINT0, 1, BOTH),
        (LVT_LINT1, 1, BOTH),
        (LVT_ERROR, 1, BOTH),
        (TMICT, 1, BOTH),
        (TMCCT, 1, READ),
        (TDCR, 1, BOTH),
        (SELF_IPI, 1, Access::W),
    ];
    let mut table = [Access::NONE; 64];
    let mut row = 0;
    while row < ROWS.len() {
        let mut i = 0;
        while i < ROWS[row].1 {
            table[((ROWS[row].0 >> 4) as usize + i) & 63] = Access(ROWS[row].2);
            i += 1;
        }
        row += 1;
    }
    table
};

/// A source of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lvt {
    /// Timer
    Timer = 0,
    /// Thermal sensor
    Thermal = 1,
    /// Performance counters
    Pmc = 2,
    /// LINT0 pin: the PIC in a PC
    Lint0 = 3,
    /// LINT1 pin: NMI in a PC
    Lint1 = 4,
    /// APIC error
    Error = 5,
    /// Corrected machine check
    Cmci = 6,
}

impl Lvt {
    /// All of them, by index.
    pub const ALL: [Lvt; 7] = [
        Lvt::Timer,
        Lvt::Thermal,
        Lvt::Pmc,
        Lvt::Lint0,
        Lvt::Lint1,
        Lvt::Error,
        Lvt::Cmci,
    ];

    /// Where its register is.
    pub const fn offset(self) -> u16 {
        match self {
            Lvt::Cmci => offset::LVT_CMCI,
            _ => offset::LVT_TIMER + ((self as u16) << 4),
        }
    }

    /// Which entry has its register at `off`.
    #[inline]
    pub const fn at(off: u16) -> Option<Lvt> {
        match off {
            offset::LVT_TIMER => Some(Lvt::Timer),
            offset::LVT_THERMAL => Some(Lvt::Thermal),
            offset::LVT_PMC => Some(Lvt::Pmc),
            offset::LVT_LINT0 => Some(Lvt::Lint0),
            offset::LVT_LINT1 => Some(Lvt::Lint1),
            offset::LVT_ERROR => Some(Lvt::Error),
            offset::LVT_CMCI => Some(Lvt::Cmci),
            _ => None,
        }
    }

    /// The bits that software can write; the timer's second mode bit depends on the processor.
    pub const fn writable(self, tsc_deadline: bool) -> u32 {
        let base = lvt::VECTOR | lvt::MASKED;
        match self {
            Lvt::Timer if tsc_deadline => base | lvt::TIMER_MODE,
            Lvt::Timer => base | lvt::PERIODIC,
            Lvt::Thermal | Lvt::Pmc | Lvt::Cmci => base | lvt::MODE,
            Lvt::Lint0 | Lvt::Lint1 => base | lvt::MODE | lvt::POLARITY | lvt::LEVEL,
            Lvt::Error => base,
        }
    }
}
