// SPDX-License-Identifier: GPL-2.0

//! KVM_GET_ONE_REG and its kin: which registers there are, what they take, and that the guest has what they say.

use crate::harness::tests;
use kvm_bindings::*;
use libc::{E2BIG, EFAULT, EINVAL, ENOENT};
use rkvm_l1::machine::{core, sysreg, x, Cpu, Machine, MPIDR_EL1, PC, PSTATE, SCTLR_EL1, VBAR_EL1};
use rkvm_l1::sys::{self, UNMAPPED};
use rkvm_l1::{done, guest, result, Outcome};

tests![
    list_protocol,
    every_register_can_be_read,
    every_register_can_be_written_back,
    unknown_registers,
    unmapped_values,
    general_registers_reach_the_guest,
    vector_registers_reach_the_guest,
    modes_that_guests_have_not,
    identity,
    firmware_registers,
    workarounds,
    counter_can_be_set,
];

/// The vCPU's list.
pub(super) fn list(c: &Cpu) -> Vec<u64> {
    let mut n = 0u64;
    assert_eq!(sys::with(c.raw(), sys::GET_REG_LIST, &mut n), Err(E2BIG));
    let mut all = vec![0u64; n as usize + 1];
    all[0] = n;
    // SAFETY: the kernel writes as many as we say that there is room for.
    let r = unsafe { sys::ioctl(c.raw(), sys::GET_REG_LIST, all.as_mut_ptr() as u64) };
    assert_eq!((r, all[0]), (Ok(0), n));
    all.split_off(1)
}

/// Bytes of a register.
fn size(id: u64) -> usize {
    1 << (id >> 52 & 15)
}

/// KVM_GET_ONE_REG or KVM_SET_ONE_REG of any size.
fn one(c: &Cpu, code: u32, id: u64, v: &mut [u8; 256]) -> Result<i32, i32> {
    let mut r = kvm_one_reg {
        id,
        addr: v.as_mut_ptr() as u64,
    };
    sys::with(c.raw(), code, &mut r)
}

fn list_protocol() -> Outcome {
    let m = Machine::with(1);
    let all = list(&m.cpus[0]);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), all.len(), "a register is listed twice");
    for id in [x(0), x(30), PC, PSTATE, SCTLR_EL1, VBAR_EL1, MPIDR_EL1] {
        assert!(all.contains(&id), "{id:#x}");
    }
    // Room for one too few.
    let mut few = vec![0u64; all.len() + 1];
    few[0] = all.len() as u64 - 1;
    // SAFETY: as above.
    let r = unsafe { sys::ioctl(m.cpus[0].raw(), sys::GET_REG_LIST, few.as_mut_ptr() as u64) };
    assert_eq!((r, few[0]), (Err(E2BIG), all.len() as u64));
    Ok(())
}

fn every_register_can_be_read() -> Outcome {
    let m = Machine::with(1);
    for id in list(&m.cpus[0]) {
        let mut v = [0xa5; 256];
        assert_eq!(
            one(&m.cpus[0], sys::GET_ONE_REG, id, &mut v),
            Ok(0),
            "{id:#x}"
        );
        assert!(v[size(id)..].iter().all(|b| *b == 0xa5), "{id:#x}");
    }
    Ok(())
}

fn every_register_can_be_written_back() -> Outcome {
    let m = Machine::with(1);
    let c = &m.cpus[0];
    for id in list(c) {
        let mut v = [0; 256];
        assert_eq!(one(c, sys::GET_ONE_REG, id, &mut v), Ok(0), "{id:#x}");
        assert_eq!(one(c, sys::SET_ONE_REG, id, &mut v), Ok(0), "{id:#x}");
        let mut again = [0; 256];
        assert_eq!(one(c, sys::GET_ONE_REG, id, &mut again), Ok(0), "{id:#x}");
        // The counter goes on.
        let counts = [sysreg(3, 3, 14, 3, 2), sysreg(3, 3, 14, 0, 1)];
        assert!(v == again || counts.contains(&id), "{id:#x}");
    }
    Ok(())
}

fn unknown_registers() -> Outcome {
    let m = Machine::with(1);
    let c = &m.cpus[0];
    let bad = [
        0,
        u64::MAX,
        // Another architecture's
        KVM_REG_X86 | KVM_REG_SIZE_U64,
        // Of core registers: past the end, a half, other sizes
        core(0x1000),
        core(1),
        x(0) & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U32,
        x(0) & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U128,
        // Of vectors: words
        core(0x54) & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U32,
        // System registers that nobody has; of another size
        sysreg(3, 7, 15, 15, 7),
        sysreg(0, 0, 0, 0, 0),
        SCTLR_EL1 & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U32,
        // Groups that nobody has
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | 0xff << 16,
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | (KVM_REG_ARM_FW as u64) | 0xffff,
    ];
    for id in bad {
        for code in [sys::GET_ONE_REG, sys::SET_ONE_REG] {
            let r = one(c, code, id, &mut [0; 256]);
            assert!(matches!(r, Err(ENOENT | EINVAL)), "{id:#x}: {r:?}");
        }
    }
    Ok(())
}

fn unmapped_values() -> Outcome {
    let m = Machine::with(1);
    for id in [
        PC,
        SCTLR_EL1,
        core(0x54) & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U128,
    ] {
        for code in [sys::GET_ONE_REG, sys::SET_ONE_REG] {
            for addr in [UNMAPPED, u64::MAX - 3] {
                let mut r = kvm_one_reg { id, addr };
                assert_eq!(
                    sys::with(m.cpus[0].raw(), code, &mut r),
                    Err(EFAULT),
                    "{id:#x}"
                );
            }
        }
    }
    Ok(())
}

fn general_registers_reach_the_guest() -> Outcome {
    let mut m = Machine::new(guest![
        "add x0, x0, #1",
        "add x1, x1, x2",
        "str x0, [x28]",
        "str x1, [x28]",
        "mov x3, sp",
        "str x3, [x28]",
        "mrs x4, sp_el0",
        "str x4, [x28]",
        "mrs x5, tpidr_el1",
        "str x5, [x28]",
        "cset x6, vs",
        "str x6, [x28]",
        "mov x17, #0x1234",
        "msr tpidr_el0, x17",
        done!(),
    ]);
    let c = &m.cpus[0];
    let tpidr_el1 = sysreg(3, 0, 13, 0, 4);
    for (id, v) in [
        (x(0), 41),
        (x(1), u64::MAX),
        (x(2), 5),
        (rkvm_l1::machine::SP_EL0, 0x1_0203),
        (tpidr_el1, 0x55aa),
        // EL1h, masked, V
        (PSTATE, 0x1000_03c5),
    ] {
        assert_eq!(c.set(id, v), Ok(0), "{id:#x}");
    }
    let sp = c.reg(rkvm_l1::machine::SP_EL1);
    assert_eq!(m.cpu().results(), [42, 4, sp, 0x1_0203, 0x55aa, 1]);
    let c = &m.cpus[0];
    assert_eq!(
        (c.reg(x(17)), c.reg(sysreg(3, 3, 13, 0, 2))),
        (0x1234, 0x1234)
    );
    Ok(())
}

fn vector_registers_reach_the_guest() -> Outcome {
    let mut m = Machine::new(guest![
        // FP on: CPACR_EL1.FPEN
        "mov x0, #0x300000",
        "msr cpacr_el1, x0",
        "isb",
        "mov x1, v31.d[0]",
        "str x1, [x28]",
        "mov x1, v31.d[1]",
        "str x1, [x28]",
        "movi v0.16b, #0x5a",
        "ins v31.d[1], x28",
        done!(),
    ]);
    let v = |n: u64| core(0x54 + 4 * n) & !KVM_REG_SIZE_MASK | KVM_REG_SIZE_U128;
    let mut bytes = [0; 256];
    bytes[..8].copy_from_slice(&0x0123_4567_89ab_cdefu64.to_le_bytes());
    bytes[8..16].copy_from_slice(&0x0f1e_2d3c_4b5a_6978u64.to_le_bytes());
    assert_eq!(one(&m.cpus[0], sys::SET_ONE_REG, v(31), &mut bytes), Ok(0));
    let r = m.cpu().results();
    assert_eq!(r, [0x0123_4567_89ab_cdef, 0x0f1e_2d3c_4b5a_6978]);
    let mut got = [0; 256];
    assert_eq!(one(&m.cpus[0], sys::GET_ONE_REG, v(0), &mut got), Ok(0));
    assert_eq!(got[..16], [0x5a; 16]);
    assert_eq!(one(&m.cpus[0], sys::GET_ONE_REG, v(31), &mut got), Ok(0));
    assert_eq!(got[..8], bytes[..8]);
    assert_eq!(got[8..16], rkvm_l1::kit::RESULT.to_le_bytes());
    Ok(())
}

fn modes_that_guests_have_not() -> Outcome {
    let m = Machine::with(1);
    let c = &m.cpus[0];
    // EL2, EL3, EL1 with reserved bits, AArch32's modes
    for mode in [0x3c8, 0x3c9, 0x3cc, 0x3cd, 0x3c6, 0x3cf, 0x1d3, 0x1da] {
        assert_eq!(c.set(PSTATE, mode), Err(EINVAL), "{mode:#x}");
    }
    for mode in [0x3c5, 0x3c4, 0x3c0, 0] {
        assert_eq!(c.set(PSTATE, mode), Ok(0), "{mode:#x}");
    }
    Ok(())
}

fn identity() -> Outcome {
    let mut m = Machine::new(guest![
        "mrs x0, mpidr_el1",
        result!("x0"),
        "mrs x0, midr_el1",
        result!("x0"),
        "mrs x0, id_aa64pfr0_el1",
        result!("x0"),
        "mrs x0, id_aa64mmfr0_el1",
        result!("x0"),
        "mrs x0, id_aa64isar0_el1",
        result!("x0"),
        "mrs x0, currentel",
        result!("x0"),
        done!(),
    ]);
    let r = m.cpu().results();
    let ids = [
        MPIDR_EL1,
        sysreg(3, 0, 0, 0, 0),
        sysreg(3, 0, 0, 4, 0),
        sysreg(3, 0, 0, 7, 0),
        sysreg(3, 0, 0, 6, 0),
    ];
    for (id, seen) in ids.iter().zip(&r) {
        let told = m.cpus[0].get(*id);
        assert!(
            told == Ok(*seen) || told == Err(ENOENT),
            "{id:#x}: {told:x?}, {seen:#x}"
        );
    }
    assert_eq!(r[5], 4);
    // EL1 in AArch64.
    assert!(r[2] >> 4 & 15 != 0);
    // No two vCPUs are the same.
    let m = Machine::with(4);
    let all: std::collections::BTreeSet<u64> = m.cpus.iter().map(|c| c.reg(MPIDR_EL1)).collect();
    assert_eq!(all.len(), 4);
    // What it must not be.
    let c = &m.cpus[0];
    let pfr0 = c.reg(sysreg(3, 0, 0, 4, 0));
    assert_eq!(c.set(sysreg(3, 0, 0, 4, 0), pfr0 | 0xf << 8), Err(EINVAL));
    Ok(())
}

fn firmware_registers() -> Outcome {
    let m = Machine::with(1);
    let c = &m.cpus[0];
    let psci = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW as u64;
    assert_eq!(c.get(psci), Ok(0x1_0003));
    for bad in [0, 3, 0x1_0009, u64::MAX] {
        assert_eq!(c.set(psci, bad), Err(EINVAL), "{bad:#x}");
    }
    assert_eq!(c.set(psci, 0x1_0000), Ok(0));
    assert_eq!(c.get(psci), Ok(0x1_0000));
    Ok(())
}

/// What the firmware's registers say of the workarounds against speculation, and what the guest hears.
fn workarounds() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x5, #0x80000000",
        // SMCCC_ARCH_FEATURES, of each of the three; then the calls themselves, with what is left of x4.
        "mov x6, #0x80000000",
        "mov x7, #0x8000",
        "add x7, x6, x7",
        "mov x8, #0x7fff",
        "add x8, x6, x8",
        "mov x9, #0x3fff",
        "add x9, x6, x9",
        "add x6, x6, #1",
        "mov x4, #0x77",
        "mov x0, x6",
        "mov x1, x7",
        "hvc #0",
        result!("x0"),
        "mov x0, x6",
        "mov x1, x8",
        "hvc #0",
        result!("x0"),
        "mov x0, x6",
        "mov x1, x9",
        "hvc #0",
        result!("x0"),
        "mov x0, x7",
        "hvc #0",
        result!("x0"),
        "mov x0, x9",
        "smc #0",
        result!("x0"),
        result!("x4"),
        done!(),
    ]);
    let reg = |n: u64| KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW as u64 | n;
    let c = &m.cpus[0];
    let levels = [1, 2, 3].map(|n| c.reg(reg(n)));
    for (n, level) in (1..).zip(levels) {
        assert!(level <= if n == 2 { 3 } else { 2 }, "{n} {level}");
        // A guest that comes from where there was less goes on here, one from where there was more does not.
        assert_eq!(c.set(reg(n), level), Ok(0), "{n} {level}");
        assert_eq!(c.set(reg(n), 0), Ok(0), "{n} {level}");
        assert_eq!(c.set(reg(n), 1 << 8), Err(EINVAL), "{n} {level}");
        if n != 2 && level < 2 {
            assert_eq!(c.set(reg(n), level + 1), Err(EINVAL), "{n} {level}");
        }
        assert_eq!(c.reg(reg(n)), level);
    }
    // Not available, available, not required.
    let answer = |level: u64| [u64::MAX, 0, 1][level as usize];
    let r = m.cpu().results();
    assert_eq!(r[0], answer(levels[0]));
    assert_eq!(r[1] as i64, if levels[1] == 3 { -2 } else { -1 });
    assert_eq!(r[2], answer(levels[2]));
    // The calls do what they can, and say so.
    for (said, level) in [(r[3], levels[0]), (r[4], levels[2])] {
        assert_eq!(said, if level == 0 { u64::MAX } else { 0 });
    }
    assert_eq!(r[5], 0x77);
    Ok(())
}

fn counter_can_be_set() -> Outcome {
    let mut m = Machine::new(guest!["isb", "mrs x0, cntvct_el0", result!("x0"), done!()]);
    // By an old mistake the ABI's name for the counter is the encoding of the compare value.
    let count = sysreg(3, 3, 14, 3, 2);
    let start = 0x1234_0000_0000_0000u64;
    assert_eq!(m.cpus[0].set(count, start), Ok(0));
    let r = m.cpu().results();
    assert!(r[0] >= start && r[0] - start < 1 << 40, "{:#x}", r[0]);
    Ok(())
}
