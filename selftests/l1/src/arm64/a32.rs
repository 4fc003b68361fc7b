// SPDX-License-Identifier: GPL-2.0

//! Guests whose EL1 is AArch32: their code, instruction by instruction, as no assembler here has it, and their vectors.
//!
//! Arm ARM (DDI 0487), F4 (A32), F3 (T32) for the encodings. A guest starts in Supervisor mode with its MMU off and these
//! registers: r11 is [`kit::RESULT`], r9 [`kit::STATE`]. An exception gives as results its vector's number, LR, SPSR and CPSR of
//! its mode, and goes on at [`LANDING`] in that mode; r10 is lost. No one expects it unless code is put there.

use super::kit;
use super::machine::{core, x, Cpu, Machine, PC, PSCI, PSTATE, VBAR_EL1};
use crate::{skip, Stop};
use kvm_bindings::*;

/// KVM_ARM_VCPU_EL1_32BIT
pub const AARCH32: u32 = 1 << KVM_ARM_VCPU_EL1_32BIT;
/// Where an exception goes on.
pub const LANDING: u64 = kit::CODE + 0x800;

/// Modes.
pub mod mode {
    pub const USR: u32 = 0x10;
    pub const FIQ: u32 = 0x11;
    pub const IRQ: u32 = 0x12;
    pub const SVC: u32 = 0x13;
    pub const ABT: u32 = 0x17;
    pub const UND: u32 = 0x1b;
    pub const SYS: u32 = 0x1f;
}

/// Stack pointer and link register, by number.
pub const SP: u32 = 13;
/// LR
pub const LR: u32 = 14;

/// A coprocessor's register: coprocessor, op1, CRn, CRm, op2.
pub type Cp = (u32, u32, u32, u32, u32);

/// `rd` gets the lower half of `v`.
pub const fn movw(rd: u32, v: u32) -> u32 {
    0xe300_0000 | (v >> 12 & 15) << 16 | rd << 12 | v & 0xfff
}
/// `rd` gets the upper half of `v`.
pub const fn movt(rd: u32, v: u32) -> u32 {
    0xe340_0000 | (v >> 28) << 16 | rd << 12 | v >> 16 & 0xfff
}
/// Register to register.
pub const fn mov(rd: u32, rm: u32) -> u32 {
    0xe1a0_0000 | rd << 12 | rm
}
/// 32 bits.
pub const fn ldr(rt: u32, rn: u32, at: u32) -> u32 {
    0xe590_0000 | rn << 16 | rt << 12 | at
}
/// 32 bits.
pub const fn str(rt: u32, rn: u32, at: u32) -> u32 {
    0xe580_0000 | rn << 16 | rt << 12 | at
}
/// 8 bits.
pub const fn ldrb(rt: u32, rn: u32, at: u32) -> u32 {
    0xe5d0_0000 | rn << 16 | rt << 12 | at
}
/// 8 bits.
pub const fn strb(rt: u32, rn: u32, at: u32) -> u32 {
    0xe5c0_0000 | rn << 16 | rt << 12 | at
}
/// 16 bits.
pub const fn strh(rt: u32, rn: u32, at: u32) -> u32 {
    0xe1c0_00b0 | rn << 16 | rt << 12 | (at >> 4) << 8 | at & 15
}
/// 16 bits, with sign.
pub const fn ldrsh(rt: u32, rn: u32, at: u32) -> u32 {
    0xe1d0_00f0 | rn << 16 | rt << 12 | (at >> 4) << 8 | at & 15
}
/// Compares with a small number.
pub const fn cmp(rn: u32, v: u32) -> u32 {
    0xe350_0000 | rn << 16 | v
}
/// Adds a small number.
pub const fn add(rd: u32, rn: u32, v: u32) -> u32 {
    0xe280_0000 | rn << 16 | rd << 12 | v
}
/// Branches by so many instructions, from this one.
pub const fn b(by: i32) -> u32 {
    0xea00_0000 | (by - 2) as u32 & 0xff_ffff
}
/// Branches to an address, T32 if its bit 0 is set.
pub const fn bx(rm: u32) -> u32 {
    0xe12f_ff10 | rm
}
/// With another condition: 0 EQ, 1 NE.
pub const fn on(cond: u32, insn: u32) -> u32 {
    insn & 0x0fff_ffff | cond << 28
}
/// MRS of CPSR.
pub const fn cpsr(rd: u32) -> u32 {
    0xe10f_0000 | rd << 12
}
/// MRS of SPSR.
pub const fn spsr(rd: u32) -> u32 {
    0xe14f_0000 | rd << 12
}
/// MSR of SPSR.
pub const fn set_spsr(rm: u32) -> u32 {
    0xe16f_f000 | rm
}
/// Changes the mode.
pub const fn cps(mode: u32) -> u32 {
    0xf102_0000 | mode
}
/// CPSIE I
pub const CPSIE_I: u32 = 0xf108_0080;
/// MOVS PC, LR
pub const MOVS_PC_LR: u32 = 0xe1b0_f00e;
/// SUBS PC, LR, #4
pub const SUBS_PC_LR_4: u32 = 0xe25e_f004;
/// HVC #0
pub const HVC: u32 = 0xe140_0070;
/// SMC #0
pub const SMC: u32 = 0xe160_0070;
/// WFI
pub const WFI: u32 = 0xe320_f003;
/// ISB
pub const ISB: u32 = 0xf57f_f06f;
/// DMB SY
pub const DMB: u32 = 0xf57f_f05f;
/// NOP
pub const NOP: u32 = 0xe320_f000;
/// MCR
pub const fn mcr((p, op1, crn, crm, op2): Cp, rt: u32) -> u32 {
    0xee00_0010 | op1 << 21 | crn << 16 | rt << 12 | p << 8 | op2 << 5 | crm
}
/// MRC
pub const fn mrc(r: Cp, rt: u32) -> u32 {
    mcr(r, rt) | 1 << 20
}
/// MCRR
pub const fn mcrr(p: u32, op1: u32, crm: u32, rt: u32, rt2: u32) -> u32 {
    0xec40_0000 | rt2 << 16 | rt << 12 | p << 8 | op1 << 4 | crm
}
/// MRRC
pub const fn mrrc(p: u32, op1: u32, crm: u32, rt: u32, rt2: u32) -> u32 {
    mcrr(p, op1, crm, rt, rt2) | 1 << 20
}
/// VMRS
pub const fn vmrs(rt: u32, reg: u32) -> u32 {
    0xeef0_0a10 | reg << 16 | rt << 12
}
/// All of `v`.
pub fn set(rd: u32, v: u64) -> [u32; 2] {
    let v = u32::try_from(v).expect("32 bits");
    [movw(rd, v), movt(rd, v)]
}
/// A result.
pub const fn result(rt: u32) -> u32 {
    str(rt, 11, 0)
}
/// The guest is done, for good.
pub const DONE: [u32; 2] = [str(0, 11, 8), b(-1)];

/// An instruction of A32 as T32 has it, if it is one with the same bits: coprocessors, VMRS.
pub const fn wide(insn: u32) -> [u16; 2] {
    [(insn >> 16) as u16, insn as u16]
}

/// Instructions as bytes: pieces of A32, of any length.
pub fn a32(pieces: &[&[u32]]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|p| p.iter().flat_map(|i| i.to_le_bytes()))
        .collect()
}

/// The same of T32.
pub fn t32(pieces: &[&[u16]]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|p| p.iter().flat_map(|i| i.to_le_bytes()))
        .collect()
}

/// The vectors, and what they branch to, 16 instructions behind.
fn vectors() -> Vec<u8> {
    let mut code: Vec<u32> = (0..8).map(|n| b(8 - n + 8 * n)).collect();
    for n in 0..8 {
        code.extend([
            movw(10, n as u32),
            result(10),
            result(LR),
            spsr(10),
            result(10),
            cpsr(10),
            b(8 * (8 - n) - 6),
            NOP,
        ]);
    }
    code.push(result(10));
    code.extend(set(10, LANDING));
    code.push(bx(10));
    a32(&[&code])
}

/// A vCPU at `entry` with the guest's registers.
pub fn place(c: &Cpu, entry: u64, n: u64) {
    for (id, v) in [
        (PC, entry),
        (VBAR_EL1, kit::VECTORS),
        (x(8), n),
        (x(9), kit::STATE),
        (x(11), kit::RESULT),
    ] {
        c.set(id, v)
            .unwrap_or_else(|e| panic!("KVM_SET_ONE_REG {id:#x}: errno {e}"));
    }
}

/// `n` vCPUs, all but the first off, with a GIC, and this code.
///
/// # Errors
/// The computer's processors have no AArch32 at EL1.
pub fn machine(n: usize, code: &[&[u32]]) -> Result<Machine, Stop> {
    let mut m = Machine::bare();
    if m.vm.check_extension_raw(KVM_CAP_ARM_EL1_32BIT.into()) == 0 {
        return skip("AArch32 at EL1");
    }
    for i in 0..n {
        let off = if i == 0 { 0 } else { super::machine::OFF };
        let cpu = Cpu::new(m.vm.create_vcpu(i as u64).expect("KVM_CREATE_VCPU"));
        cpu.init(PSCI | AARCH32 | off).expect("KVM_ARM_VCPU_INIT");
        place(&cpu, kit::CODE, i as u64);
        m.cpus.push(cpu);
    }
    m.add_gic();
    m.code(kit::VECTORS, &vectors());
    m.code(LANDING, &a32(&[&[str(10, 11, 16), b(-1)]]));
    m.code(kit::CODE, &a32(code));
    Ok(m)
}

/// The process state's mode.
pub fn mode_of(c: &Cpu) -> u64 {
    c.reg(PSTATE) & 0x1f
}

/// SPSR_svc, SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq by number.
pub const fn bank(n: u64) -> u64 {
    core(72 + 2 * n)
}
