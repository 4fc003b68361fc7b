// SPDX-License-Identifier: GPL-2.0

//! EL1's and EL0's registers, which are switched as a whole.

use super::super::model::sysreg::Sysreg;
use core::arch::asm;

/// Declares the guest's EL1 and EL0 registers that are switched as a whole: a field each, with the
/// name by which EL2 reaches it.
macro_rules! el1_state {
    ($(#[$head:meta])* $state:ident: $($(#[$doc:meta])* $field:ident = $name:literal, $op:expr;)*) => {
        $(#[$head])*
        #[derive(Clone, Copy, Default)]
        pub(crate) struct $state {
            $($(#[$doc])* pub(crate) $field: u64,)*
        }

        impl $state {
            /// Loads them. The host must not need what EL0 shares with it (thread pointers), which
            /// [`HostEl0`] keeps.
            #[inline]
            pub(crate) fn load(&self) {
                $(msr!($name, self.$field);)*
            }

            /// Takes them back, between barriers for PAR_EL1.
            #[inline]
            pub(crate) fn save(&mut self) {
                $(self.$field = mrs!($name);)*
            }

            /// The register, if it is one of these.
            pub(crate) fn get_mut(&mut self, r: Sysreg) -> Option<&mut u64> {
                const fn of([op0, op1, crn, crm, op2]: [u8; 5]) -> Sysreg {
                    Sysreg::new(op0, op1, crn, crm, op2)
                }
                $(if r == const { of($op) } {
                    return Some(&mut self.$field);
                })*
                None
            }

        }
    };
}

el1_state! {
    /// The guest's system registers at EL1 and EL0 that every processor has.
    El1:
    /// SCTLR_EL1
    sctlr = "S3_5_C1_C0_0", [3, 0, 1, 0, 0];
    /// ACTLR_EL1 is the host's; CPACR_EL1
    cpacr = "S3_5_C1_C0_2", [3, 0, 1, 0, 2];
    /// TTBR0_EL1
    ttbr0 = "S3_5_C2_C0_0", [3, 0, 2, 0, 0];
    /// TTBR1_EL1
    ttbr1 = "S3_5_C2_C0_1", [3, 0, 2, 0, 1];
    /// TCR_EL1
    tcr = "S3_5_C2_C0_2", [3, 0, 2, 0, 2];
    /// ESR_EL1
    esr = "S3_5_C5_C2_0", [3, 0, 5, 2, 0];
    /// AFSR0_EL1
    afsr0 = "S3_5_C5_C1_0", [3, 0, 5, 1, 0];
    /// AFSR1_EL1
    afsr1 = "S3_5_C5_C1_1", [3, 0, 5, 1, 1];
    /// FAR_EL1
    far = "S3_5_C6_C0_0", [3, 0, 6, 0, 0];
    /// MAIR_EL1
    mair = "S3_5_C10_C2_0", [3, 0, 10, 2, 0];
    /// VBAR_EL1
    vbar = "S3_5_C12_C0_0", [3, 0, 12, 0, 0];
    /// CONTEXTIDR_EL1
    contextidr = "S3_5_C13_C0_1", [3, 0, 13, 0, 1];
    /// AMAIR_EL1
    amair = "S3_5_C10_C3_0", [3, 0, 10, 3, 0];
    /// CNTKCTL_EL1
    cntkctl = "S3_5_C14_C1_0", [3, 0, 14, 1, 0];
    /// PAR_EL1
    par = "S3_0_C7_C4_0", [3, 0, 7, 4, 0];
    /// TPIDR_EL1
    tpidr_el1 = "S3_0_C13_C0_4", [3, 0, 13, 0, 4];
    /// SP_EL1, which the ABI calls `sp_el1`
    sp_el1 = "S3_4_C4_C1_0", [3, 4, 4, 1, 0];
    /// ELR_EL1
    elr = "S3_5_C4_C0_1", [3, 0, 4, 0, 1];
    /// SPSR_EL1
    spsr = "S3_5_C4_C0_0", [3, 0, 4, 0, 0];
    /// TPIDR_EL0
    tpidr_el0 = "S3_3_C13_C0_2", [3, 3, 13, 0, 2];
    /// TPIDRRO_EL0
    tpidrro_el0 = "S3_3_C13_C0_3", [3, 3, 13, 0, 3];
}

el1_state! {
    /// Those that FEAT_TCR2, FEAT_SCTLR2 and FEAT_S1PIE bring, which come together.
    El1Later:
    /// TCR2_EL1
    tcr2 = "S3_5_C2_C0_3", [3, 0, 2, 0, 3];
    /// SCTLR2_EL1
    sctlr2 = "S3_5_C1_C0_3", [3, 0, 1, 0, 3];
    /// PIRE0_EL1
    pire0 = "S3_5_C10_C2_2", [3, 0, 10, 2, 2];
    /// PIR_EL1
    pir = "S3_5_C10_C2_3", [3, 0, 10, 2, 3];
}

el1_state! {
    /// Those that only AArch32 at EL1 uses. They exist where EL1 can be AArch32.
    Banked:
    /// SPSR_irq
    spsr_irq = "S3_4_C4_C3_0", [3, 4, 4, 3, 0];
    /// SPSR_abt
    spsr_abt = "S3_4_C4_C3_1", [3, 4, 4, 3, 1];
    /// SPSR_und
    spsr_und = "S3_4_C4_C3_2", [3, 4, 4, 3, 2];
    /// SPSR_fiq
    spsr_fiq = "S3_4_C4_C3_3", [3, 4, 4, 3, 3];
    /// DACR32_EL2: DACR
    dacr = "S3_4_C3_C0_0", [3, 4, 3, 0, 0];
    /// IFSR32_EL2: IFSR
    ifsr = "S3_4_C5_C0_1", [3, 4, 5, 0, 1];
    /// FPEXC32_EL2: FPEXC
    fpexc = "S3_4_C5_C3_0", [3, 4, 5, 3, 0];
}

/// DBGVCR32_EL2: DBGVCR of a guest whose EL1 is AArch32; 0 is for the host.
#[inline]
pub(crate) fn load_dbgvcr(v: u64) {
    msr!("S2_4_C0_C7_0", v);
}

/// The same as the guest has left it.
#[inline]
pub(crate) fn dbgvcr() -> u64 {
    mrs!("S2_4_C0_C7_0")
}

/// What the host's user space has in registers that guests use too.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostEl0 {
    tpidr: u64,
    tpidrro: u64,
    mdscr: u64,
    par: u64,
}

impl HostEl0 {
    /// Notes them, between barriers for PAR_EL1.
    #[inline]
    pub(crate) fn save() -> Self {
        Self {
            tpidr: mrs!("S3_3_C13_C0_2"),
            tpidrro: mrs!("S3_3_C13_C0_3"),
            mdscr: mrs!("S2_0_C0_C2_2"),
            par: mrs!("S3_0_C7_C4_0"),
        }
    }

    /// Puts them back.
    #[inline]
    pub(crate) fn restore(&self) {
        msr!("S3_3_C13_C0_2", self.tpidr);
        msr!("S3_3_C13_C0_3", self.tpidrro);
        msr!("S2_0_C0_C2_2", self.mdscr);
        msr!("S3_0_C7_C4_0", self.par);
    }
}
