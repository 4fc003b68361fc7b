// SPDX-License-Identifier: GPL-2.0

//! Breakpoints and watchpoints, which the host and its guests share (Arm ARM D24.3).

use super::super::model::debug::{counts, Registers};
use core::arch::asm;

/// Calls `$do!` with each number, as a literal and as a string.
macro_rules! for_each {
    ($do:ident) => {
        $do!(0, "0");
        $do!(1, "1");
        $do!(2, "2");
        $do!(3, "3");
        $do!(4, "4");
        $do!(5, "5");
        $do!(6, "6");
        $do!(7, "7");
        $do!(8, "8");
        $do!(9, "9");
        $do!(10, "10");
        $do!(11, "11");
        $do!(12, "12");
        $do!(13, "13");
        $do!(14, "14");
        $do!(15, "15");
    };
}

/// The registers of this CPU that exist.
fn read(r: &mut Registers) {
    // This CPU's own, not what all have.
    let (breakpoints, watchpoints) = counts(mrs!("S3_0_C0_C5_0"));
    macro_rules! one {
        ($n:literal, $name:literal) => {
            if $n < breakpoints {
                r.bvr[$n] = mrs_debug!($name, "4");
                r.bcr[$n] = mrs_debug!($name, "5");
            }
            if $n < watchpoints {
                r.wvr[$n] = mrs_debug!($name, "6");
                r.wcr[$n] = mrs_debug!($name, "7");
            }
        };
    }
    for_each!(one);
}

fn write(r: &Registers) {
    let (breakpoints, watchpoints) = counts(mrs!("S3_0_C0_C5_0"));
    macro_rules! one {
        ($n:literal, $name:literal) => {
            if $n < breakpoints {
                msr_debug!($name, "4", r.bvr[$n]);
                msr_debug!($name, "5", r.bcr[$n]);
            }
            if $n < watchpoints {
                msr_debug!($name, "6", r.wvr[$n]);
                msr_debug!($name, "7", r.wcr[$n]);
            }
        };
    }
    for_each!(one);
}

/// The host's own, while a guest has the registers.
pub(crate) struct Debug {
    host: Registers,
    loaded: bool,
    daif: u64,
}

impl Debug {
    /// The host has them.
    pub(crate) fn new() -> Self {
        Self {
            host: Registers::default(),
            loaded: false,
            daif: 0,
        }
    }

    /// Loads `registers`, if any, and MDSCR_EL1, which `HostEl0` has noted. Debug exceptions stay masked
    /// here until [`Self::unload`]: they could be enabled at EL2, and step or break the host.
    #[inline]
    pub(crate) fn load(&mut self, registers: Option<&Registers>, mdscr: u64) {
        self.daif = mrs!("S3_3_C4_C2_1");
        // DAIF.D, bit 9.
        msr!("S3_3_C4_C2_1", self.daif | 1 << 9);
        self.loaded = registers.is_some();
        if let Some(r) = registers {
            read(&mut self.host);
            write(r);
        }
        msr!("S2_0_C0_C2_2", mdscr);
    }

    /// Takes them back, to `registers` if they were the guest's. [`Self::unmask`] follows.
    #[inline]
    pub(crate) fn unload(&mut self, registers: Option<&mut Registers>) {
        if !self.loaded {
            return;
        }
        if let Some(r) = registers {
            read(r);
        }
        write(&self.host);
        self.loaded = false;
    }

    /// MDSCR_EL1, as the guest has left it.
    #[inline]
    pub(crate) fn mdscr(&self) -> u64 {
        mrs!("S2_0_C0_C2_2")
    }

    /// The host's MDSCR_EL1 and controls are back: so are its debug exceptions.
    #[inline]
    pub(crate) fn unmask(&self) {
        msr!("S3_3_C4_C2_1", self.daif);
    }
}
