// SPDX-License-Identifier: GPL-2.0

//! What can be decided without the hardware.

pub mod aarch32;
pub mod debug;
pub mod errata;
pub mod esr;
pub mod events;
pub mod exception;
pub mod gicattr;
pub mod harden;
pub mod idreg;
pub mod its;
pub mod midr;
pub mod mmio;
pub mod onereg;
pub mod pmu;
pub mod psci;
pub mod pstate;
pub mod smccc;
pub mod stage2;
pub mod sve;
pub mod sysreg;
pub mod trap;
pub mod vgic;
pub mod vmid;
pub mod walk;
