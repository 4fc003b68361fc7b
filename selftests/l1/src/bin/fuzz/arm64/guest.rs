// SPDX-License-Identifier: GPL-2.0

//! Guests: random words, or instructions that exit in random order; handlers that skip what fails.

use super::{gic, set, start};
use crate::args::{gpa, number, poke};
use crate::rng::Rng;
use crate::world::{Slot, World};
use kvm_bindings::*;
use rkvm_l1::guest;
use rkvm_l1::kit::{self, CODE, DATA};
use rkvm_l1::machine::{sysreg, x, SCTLR_EL1, VBAR_EL1};
use rkvm_l1::sys;
use std::os::fd::RawFd;

/// A vCPU's code is this far from the last one's.
const STRIDE: u64 = 0x1000;

/// Writes code and tables, and gives a vCPU the registers to run it.
pub fn prepare(r: &mut Rng, slot: &Slot, cpu: usize, fd: RawFd, world: &World) {
    let at = CODE + STRIDE * cpu as u64;
    poke(slot, kit::VECTORS, skipping_vectors());
    poke(slot, kit::TABLE, &kit::table());
    let code: Vec<u32> = if r.one_in(2) {
        (0..200).map(|_| r.next() as u32).collect()
    } else {
        snippets(r)
    };
    let bytes: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
    poke(slot, at, &bytes);
    // Back to the start.
    let back = 0x1400_0000 | (0u32.wrapping_sub(code.len() as u32) & 0x03ff_ffff);
    poke(slot, at + bytes.len() as u64, &back.to_le_bytes());
    if r.one_in(4) {
        gic::commands(r, slot);
    }
    if r.one_in(3) {
        super::new_cpu(r, fd, world);
    }
    registers(r, fd, at);
}

fn registers(r: &mut Rng, fd: RawFd, at: u64) {
    // EL1 on its own stack, interrupts on or off; now and then EL0, EL1 on the other stack, or what there is not.
    let mode = r.pick(&[5, 5, 5, 5, 4, 0]);
    let mut pstate = mode | r.pick(&[0, 0x3c0, 0x340]);
    if r.one_in(16) {
        pstate ^= 1 << r.below(32);
    }
    start(fd, at, pstate, kit::STACK);
    set(
        fd,
        VBAR_EL1,
        if r.one_in(16) { gpa(r) } else { kit::VECTORS },
    );
    for n in 0..28 {
        let v = match r.below(4) {
            0 => gpa(r),
            1 => gic::frame(r),
            2 => DATA + 8 * r.below(64),
            _ => number(r),
        };
        set(fd, x(n), v);
    }
    let mmu = r.one_in(3);
    if mmu {
        set(fd, sysreg(3, 0, 2, 0, 0), kit::TABLE);
        set(fd, sysreg(3, 0, 10, 2, 0), 0x04ff);
        set(fd, sysreg(3, 0, 2, 0, 2), 0x2_0080_3519);
    }
    set(fd, SCTLR_EL1, 0x30d0_0980 | u64::from(mmu) * 5);
    // FP and SVE do not trap, mostly.
    set(
        fd,
        sysreg(3, 0, 1, 0, 2),
        if r.one_in(4) { 0 } else { 0x33_0000 },
    );
    let mut state = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    let _ = sys::with(fd, sys::SET_MP_STATE, &mut state);
}

/// The handlers: an exception is skipped, an interrupt is taken and ended. They use x18.
fn skipping_vectors() -> &'static [u8] {
    guest![
        ".rept 4",
        "mrs x18, elr_el1",
        "add x18, x18, #4",
        "msr elr_el1, x18",
        "eret",
        ".balign 128",
        ".rept 2",
        "mrs x18, icc_iar1_el1",
        "msr icc_eoir1_el1, x18",
        "msr cntv_ctl_el0, xzr",
        "msr cntp_ctl_el0, xzr",
        "eret",
        ".balign 128",
        ".endr",
        "mrs x18, elr_el1",
        "add x18, x18, #4",
        "msr elr_el1, x18",
        "eret",
        ".balign 128",
        ".endr",
    ]
}

/// Encodings of instructions (Arm ARM C6).
mod op {
    /// MOVZ and MOVKs: 64 bits.
    pub fn mov(code: &mut Vec<u32>, rd: u32, v: u64) {
        code.push(0xd280_0000 | ((v & 0xffff) as u32) << 5 | rd);
        for hw in 1..4 {
            let part = (v >> (16 * hw) & 0xffff) as u32;
            if part != 0 {
                code.push(0xf280_0000 | hw << 21 | part << 5 | rd);
            }
        }
    }

    /// MRS, or MSR (register); with op0 1 SYS.
    pub fn system(read: bool, encoding: u32, rt: u32) -> u32 {
        0xd500_0000 | u32::from(read) << 21 | encoding << 5 | rt
    }

    /// op0, op1, CRn, CRm, op2 as [`system`] takes them.
    pub const fn encoding(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
        op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    }

    /// Loads and stores of x1 to x3 at x0: all sizes; with write-back, pairs, exclusives, atomics, vectors: these the
    /// hardware does not describe.
    pub const MEMORY: [u32; 24] = [
        0x3900_0001,
        0x3940_0001,
        0x7900_0001,
        0x7940_0001,
        0xb900_0001,
        0xb940_0001,
        0xf900_0001,
        0xf940_0001,
        0x3980_0001,
        0xb980_0001,
        0xf840_8401,
        0xf800_8c01,
        0xa900_0801,
        0xa940_0801,
        0xc85f_7c01,
        0xc802_7c01,
        0xc8a1_7c03,
        0xf821_0003,
        0x3d80_0001,
        0x3dc0_0001,
        0x4c00_7001,
        0xd50b_7420,
        0xc8df_fc01,
        0xf980_0000,
    ];
}

/// System registers and instructions, by op0, op1, CRn, CRm, op2, and how many follow.
#[rustfmt::skip]
const PLACES: [(u32, u32, u32); 26] = [
    (op::encoding(3, 0, 12, 8, 0), 8, 3), // ICC_*
    (op::encoding(3, 0, 12, 11, 0), 16, 4),
    (op::encoding(3, 0, 4, 6, 0), 1, 1), // PMR
    (op::encoding(3, 3, 14, 0, 0), 8, 2), // timers
    (op::encoding(3, 3, 14, 2, 0), 16, 4),
    (op::encoding(3, 0, 0, 0, 0), 64, 2), // ID registers
    (op::encoding(3, 3, 9, 12, 0), 24, 2), // PMU
    (op::encoding(3, 0, 9, 14, 0), 4, 1),
    (op::encoding(3, 3, 14, 8, 0), 64, 1),
    (op::encoding(2, 0, 0, 0, 0), 128, 2), // debug
    (op::encoding(2, 0, 1, 0, 0), 8, 1),
    (op::encoding(3, 0, 1, 0, 0), 4, 2), // SCTLR_EL1 and others
    (op::encoding(3, 0, 2, 0, 0), 4, 2), // TTBRs, TCR_EL1
    (op::encoding(3, 0, 10, 2, 0), 8, 1),
    (op::encoding(3, 0, 13, 0, 0), 8, 1),
    (op::encoding(3, 0, 5, 0, 0), 32, 1), // syndromes
    (op::encoding(3, 0, 2, 1, 0), 32, 1), // keys
    (op::encoding(3, 1, 0, 0, 0), 8, 1), // caches
    (op::encoding(3, 2, 0, 0, 0), 1, 1),
    (op::encoding(3, 3, 4, 2, 0), 16, 1), // FPCR and others
    (op::encoding(3, 0, 4, 0, 0), 16, 1), // SPSR, ELR, SP
    (op::encoding(1, 0, 8, 3, 0), 8, 2), // TLBI
    (op::encoding(1, 0, 8, 7, 0), 8, 1),
    (op::encoding(1, 0, 7, 6, 0), 24, 1), // caches by set and way
    (op::encoding(1, 0, 7, 8, 0), 8, 2), // AT
    (op::encoding(3, 0, 1, 2, 0), 8, 1), // ZCR_EL1 and others
];

/// Functions of the firmware.
const CALLS: [u64; 24] = [
    0x8400_0000,
    0xc400_0001,
    0x8400_0001,
    0x8400_0002,
    0xc400_0003,
    0x8400_0003,
    0xc400_0004,
    0x8400_0006,
    0x8400_0008,
    0x8400_0009,
    0x8400_000a,
    0xc400_000e,
    0xc400_0012,
    0x8000_0000,
    0x8000_0001,
    0x8000_8000,
    0x8000_7fff,
    0x8400_0050,
    0xc400_0053,
    0xc500_0020,
    0xc500_0021,
    0x8600_0000,
    0x8600_0001,
    0x8600_ff01,
];

fn snippets(r: &mut Rng) -> Vec<u32> {
    let mut code = Vec::new();
    for _ in 0..1 + r.below(16) {
        snippet(r, &mut code);
    }
    code
}

fn snippet(r: &mut Rng, code: &mut Vec<u32>) {
    let rt = r.below(8) as u32;
    match r.below(32) {
        0..=5 => {
            let v = gic::content(r);
            op::mov(code, 0, gic::frame(r));
            op::mov(code, 1, v);
            code.push(r.pick(&op::MEMORY));
        }
        6..=8 => {
            let place = r.pick(&[kit::MMIO, kit::RESULT, DATA, DATA + 0xffc, kit::GICD]);
            op::mov(code, 0, if r.one_in(4) { gpa(r) } else { place });
            code.push(r.pick(&op::MEMORY));
        }
        9..=16 => {
            let total: u32 = PLACES.iter().map(|p| p.2).sum();
            let mut n = r.below(u64::from(total)) as u32;
            let place = PLACES.iter().find(|p| {
                let here = n < p.2;
                n = n.wrapping_sub(if here { 0 } else { p.2 });
                here
            });
            let (first, count, _) = place.copied().unwrap_or(PLACES[0]);
            let v = if r.one_in(2) { r.below(256) } else { number(r) };
            op::mov(code, rt, v);
            let encoding = first + r.below(u64::from(count)) as u32;
            let read = first >> 14 != 1 && r.one_in(2);
            code.push(op::system(read, encoding, rt));
        }
        17 => {
            let encoding = (1 << 14) + r.below(3 << 14) as u32;
            code.push(op::system(r.one_in(2), encoding, rt));
        }
        18..=21 => {
            op::mov(code, 0, r.pick(&CALLS));
            for n in 1..4 {
                let v = match r.below(4) {
                    0 => CODE + STRIDE * r.below(3),
                    1 => number(r),
                    _ => r.below(4),
                };
                op::mov(code, n, v);
            }
            // HVC, SMC
            code.push(r.pick(&[0xd400_0002, 0xd400_0002, 0xd400_0003]));
        }
        // WFI, WFE, WFIT, WFET, SEV, YIELD, ISB, DSB
        22 => code.push(r.pick(&[
            0xd503_207f,
            0xd503_205f,
            0xd503_1020,
            0xd503_1001,
            0xd503_209f,
            0xd503_203f,
            0xd503_3fdf,
            0xd503_3f9f,
        ])),
        // Interrupts on, off; debug exceptions on; SError on; SPSel; PAN
        23 | 24 => code.push(r.pick(&[
            0xd503_42ff,
            0xd503_42df,
            0xd503_48ff,
            0xd503_44ff,
            0xd500_41bf,
            0xd500_40bf,
            0xd500_419f,
        ])),
        25 => {
            // A virtual timer that fires soon, and a wait for it.
            op::mov(code, 1, r.below(0x2000));
            code.push(op::system(false, op::encoding(3, 3, 14, 3, 0), 1));
            op::mov(code, 1, 1);
            code.push(op::system(false, op::encoding(3, 3, 14, 3, 1), 1));
            code.push(0xd503_207f);
        }
        26 => {
            // An SGI, with the interrupts' group on.
            op::mov(code, 1, 1);
            code.push(op::system(false, op::encoding(3, 0, 12, 12, 7), 1));
            op::mov(code, 1, 0xf0);
            code.push(op::system(false, op::encoding(3, 0, 4, 6, 0), 1));
            op::mov(code, 1, r.below(16) << 24 | r.below(16) | r.below(2) << 40);
            code.push(op::system(false, op::encoding(3, 0, 12, 11, 5), 1));
        }
        // SVC, BRK, HLT, UDF, HVC with another number
        27 => code.push(r.pick(&[
            0xd400_0001,
            0xd420_0000,
            0xd440_0000,
            0x0000_0000,
            0xd400_0022,
        ])),
        28 => {
            // To EL0, or wherever: behind this ERET.
            op::mov(code, 1, r.pick(&[0, 5, 4, 0x3c5, 9, 0x10]));
            code.push(op::system(false, op::encoding(3, 0, 4, 0, 0), 1));
            // ADR x1, .+12
            code.push(0x1000_0061);
            code.push(op::system(false, op::encoding(3, 0, 4, 0, 1), 1));
            code.push(0xd69f_03e0);
        }
        // FP, SVE (RDVL, PTRUE, a store), pointer authentication
        29 => code.push(r.pick(&[
            0x4ea0_1c00,
            0x04bf_5020,
            0x2518_e3e0,
            0xe580_4000,
            0xdac1_0020,
            0xd503_233f,
            0x9ac2_3020,
        ])),
        _ => {
            let v = number(r);
            op::mov(code, rt, v);
        }
    }
}
