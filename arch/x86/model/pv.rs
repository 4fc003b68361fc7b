// SPDX-License-Identifier: GPL-2.0

//! Names of the paravirtual interface that guests find at CPUID leaf 0x4000_0000 (Linux
//! `Documentation/virt/kvm/x86/cpuid.rst` and `msr.rst`, `asm/kvm_para.h`).

/// kvmclock by MSRs 0x11, 0x12
pub const CLOCKSOURCE: u32 = 1 << 0;
/// No delay needed on I/O ports
pub const NOP_IO_DELAY: u32 = 1 << 1;
/// kvmclock by MSRs 0x4b564d00, 0x4b564d01
pub const CLOCKSOURCE2: u32 = 1 << 3;
/// Asynchronous page faults
pub const ASYNC_PF: u32 = 1 << 4;
/// Steal time
pub const STEAL_TIME: u32 = 1 << 5;
/// EOI without exit
pub const PV_EOI: u32 = 1 << 6;
/// Kick of a halted processor
pub const PV_UNHALT: u32 = 1 << 7;
/// TLB flush of preempted processors by the steal-time page
pub const PV_TLB_FLUSH: u32 = 1 << 9;
/// Asynchronous page faults as exits of nested guests
pub const ASYNC_PF_VMEXIT: u32 = 1 << 10;
/// IPIs by hypercall
pub const PV_SEND_IPI: u32 = 1 << 11;
/// Host-side halt polling can be switched off
pub const POLL_CONTROL: u32 = 1 << 12;
/// Directed yield by hypercall
pub const PV_SCHED_YIELD: u32 = 1 << 13;
/// Asynchronous page-ready events by interrupt
pub const ASYNC_PF_INT: u32 = 1 << 14;
/// kvmclock's per-vCPU warning about its flags is not needed: the stable bit means what it says
pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;

/// All that a shell may offer.
pub const KNOWN: u32 = CLOCKSOURCE
    | NOP_IO_DELAY
    | CLOCKSOURCE2
    | ASYNC_PF
    | STEAL_TIME
    | PV_EOI
    | PV_UNHALT
    | PV_TLB_FLUSH
    | ASYNC_PF_VMEXIT
    | PV_SEND_IPI
    | POLL_CONTROL
    | PV_SCHED_YIELD
    | ASYNC_PF_INT
    | CLOCKSOURCE_STABLE;

/// What always works: the clock, no I/O delay, and EOI without exit.
pub const BASE: u32 = CLOCKSOURCE | NOP_IO_DELAY | CLOCKSOURCE2 | PV_EOI | CLOCKSOURCE_STABLE;
