// SPDX-License-Identifier: GPL-2.0

//! Guests whose EL1 is AArch32. Expected values are the manual's: DDI 0487, G1 (exceptions), G8 (registers).

use super::smp::with_others;
use crate::harness::tests;
use kvm_bindings::*;
use libc::{EINVAL, ENOENT};
use rkvm_l1::a32::*;
use rkvm_l1::kit::{self, CODE, DATA, MMIO};
use rkvm_l1::machine::{sysreg, x, Cpu, Exit, Machine, OFF, PC, PSCI, PSTATE, SCTLR_EL1};
use rkvm_l1::{skip, sys, Outcome};

tests![
    widths_do_not_mix,
    after_init,
    modes_of_user_space,
    registers_of_aarch32,
    devices,
    devices_in_t32,
    devices_in_each_mode,
    banked_registers_survive,
    firmware,
    cpu_on,
];

/// VM with as many vCPUs, none of them initialized.
fn blank(n: u64) -> Result<(Machine, Vec<Cpu>), rkvm_l1::Stop> {
    let m = Machine::bare();
    if m.vm.check_extension_raw(KVM_CAP_ARM_EL1_32BIT.into()) == 0 {
        return skip("AArch32 at EL1");
    }
    let cpus = (0..n)
        .map(|i| Cpu::new(m.vm.create_vcpu(i).expect("KVM_CREATE_VCPU")))
        .collect();
    Ok((m, cpus))
}

fn widths_do_not_mix() -> Outcome {
    for (first, second) in [(AARCH32, 0), (0, AARCH32), (AARCH32 | PSCI, PSCI)] {
        let (_m, c) = blank(2)?;
        c[0].init(first).expect("the first decides");
        assert_eq!(c[1].init(second), Err(EINVAL));
        assert_eq!(c[0].init(second), Err(EINVAL));
        c[1].init(first | OFF).expect("power is no feature");
    }
    Ok(())
}

fn after_init() -> Outcome {
    let (_m, c) = blank(1)?;
    c[0].init(AARCH32).expect("KVM_ARM_VCPU_INIT");
    // Supervisor; A, I, F.
    assert_eq!(c[0].reg(PSTATE), 0x1d3);
    assert_eq!(c[0].reg(PC), 0);
    // Vectors at VBAR, A32, little-endian, MMU off.
    assert_eq!(c[0].reg(SCTLR_EL1) & (1 << 13 | 1 << 30 | 1 << 25 | 1), 0);
    // A reset in a banked mode.
    c[0].set(PSTATE, 0x1d1).expect("FIQ");
    c[0].set(bank(4), 0x1f).expect("SPSR_fiq");
    c[0].init(AARCH32).expect("KVM_ARM_VCPU_INIT");
    assert_eq!((c[0].reg(PSTATE), c[0].reg(bank(4))), (0x1d3, 0));
    Ok(())
}

fn modes_of_user_space() -> Outcome {
    let (_m, c) = blank(1)?;
    c[0].init(AARCH32).expect("KVM_ARM_VCPU_INIT");
    for m in 0..32 {
        let ok = [0x10, 0x11, 0x12, 0x13, 0x17, 0x1b, 0x1f].contains(&m);
        let r = c[0].set(PSTATE, 0x1c0 | m);
        assert_eq!(r.is_ok(), ok, "{m:#x}: {r:?}");
        if !ok {
            assert_eq!(r, Err(EINVAL));
        }
    }
    // The upper halves go with the mode: r0 to r14 of User, all of any other.
    let wide = 0x1111_2222_3333_4444;
    for (m, last) in [(mode::USR, 14), (mode::SVC, 30)] {
        for n in 0..31 {
            c[0].set(x(n), wide).expect("a register");
        }
        c[0].set(PC, wide).expect("PC");
        c[0].set(PSTATE, 0x1c0 | u64::from(m)).expect("PSTATE");
        for n in 0..31 {
            let want = if n <= last { 0x3333_4444 } else { wide };
            assert_eq!(c[0].reg(x(n)), want, "{m:#x} x{n}");
        }
        assert_eq!(c[0].reg(PC), 0x3333_4444);
    }
    // And a guest of AArch64 has none of these modes but User.
    let (_m, c) = blank(1)?;
    c[0].init(0).expect("KVM_ARM_VCPU_INIT");
    assert_eq!(c[0].set(PSTATE, 0x1d3), Err(EINVAL));
    Ok(())
}

const DACR: u64 = sysreg(3, 4, 3, 0, 0);
const IFSR: u64 = sysreg(3, 4, 5, 0, 1);
const FPEXC: u64 = sysreg(3, 4, 5, 3, 0);
const FAR: u64 = sysreg(3, 0, 6, 0, 0);

/// What the guest sets, user space sees, and the other way round.
fn registers_of_aarch32() -> Outcome {
    let dacr = (15, 0, 3, 0, 0);
    let ifsr = (15, 0, 5, 0, 1);
    let mut m = machine(
        1,
        &[
            &[mrc(dacr, 0), result(0), mrc(ifsr, 0), result(0)],
            &set(0, 0x5555_5555),
            &[mcr(dacr, 0), movw(0, 0x407), mcr(ifsr, 0)],
            // DFAR, IFAR
            &set(0, 0x1234_5678),
            &[mcr((15, 0, 6, 0, 0), 0)],
            &set(0, 0x9abc_def0),
            &[mcr((15, 0, 6, 0, 2), 0)],
            // FPEXC.EN, with access to cp10 and cp11; then a register of it
            &set(0, 0xf0_0000),
            &[mcr((15, 0, 1, 0, 2), 0), ISB],
            &set(0, 0x4000_0000),
            &[0xeee8_0a10, vmrs(1, 8), result(1)],
            // vmov s3, r0; vmov r2, s3
            &[0xee01_0a90, 0xee11_2a90, result(2)],
            &DONE,
        ],
    )?;
    m.cpu().set(DACR, 0xaaaa_aaaa).expect("DACR32_EL2");
    m.cpu().set(IFSR, 0x211).expect("IFSR32_EL2");
    let r = m.cpu().results();
    assert_eq!(r[..2], [0xaaaa_aaaa, 0x211]);
    assert_eq!(r[2] & 1 << 30, 1 << 30);
    assert_eq!(r[3], 0x4000_0000);
    let c = m.cpu();
    assert_eq!((c.reg(DACR), c.reg(IFSR)), (0x5555_5555, 0x407));
    assert_eq!(c.reg(FAR), 0x9abc_def0_1234_5678);
    assert_eq!(c.reg(FPEXC) & 1 << 30, 1 << 30);
    // s3 is the upper part of the low half of V0.
    let mut v = [0u64; 2];
    let mut one = kvm_one_reg {
        id: KVM_REG_ARM64 | KVM_REG_SIZE_U128 | u64::from(KVM_REG_ARM_CORE) | 84,
        addr: v.as_mut_ptr() as u64,
    };
    sys::with(c.raw(), sys::GET_ONE_REG, &mut one).expect("V0");
    assert_eq!(v[1] >> 32, 0x4000_0000);
    assert_eq!(c.get(sysreg(3, 4, 4, 3, 0)), Err(ENOENT));
    Ok(())
}

/// An access: whether it is a write, where, and its bytes.
type Seen = (bool, u64, Vec<u8>);

/// Accesses of the device, in order; reads are given this word.
fn device(m: &mut Machine, word: u32) -> (Vec<u64>, Vec<Seen>) {
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| match e {
        Exit::Read { gpa, len } => {
            seen.push((false, gpa - MMIO, vec![0; *len]));
            c.answer(&word.to_le_bytes());
            true
        }
        Exit::Write { gpa, data } => {
            seen.push((true, gpa - MMIO, data.clone()));
            true
        }
        _ => false,
    });
    (r, seen)
}

fn devices() -> Outcome {
    let mut m = machine(
        1,
        &[
            &set(1, MMIO),
            &set(0, 0x1122_3344),
            &[
                str(0, 1, 0),
                strh(0, 1, 4),
                strb(0, 1, 8),
                ldr(2, 1, 12),
                result(2),
                ldrb(2, 1, 16),
                result(2),
                ldrsh(2, 1, 20),
                result(2),
                // Only one of two has its condition.
                cmp(0, 0),
                on(0, str(0, 1, 24)),
                on(1, str(0, 1, 28)),
                on(0, ldr(2, 1, 32)),
                result(2),
                // setend be
                0xf101_0200,
                str(0, 1, 36),
                ldr(3, 1, 40),
                0xf101_0000,
                result(3),
            ],
            &DONE,
        ],
    )?;
    let (r, seen) = device(&mut m, 0x8182_9394);
    assert_eq!(
        r,
        [0x8182_9394, 0x94, 0xffff_9394, 0xffff_9394, 0x9493_8281]
    );
    assert_eq!(
        seen,
        [
            (true, 0, vec![0x44, 0x33, 0x22, 0x11]),
            (true, 4, vec![0x44, 0x33]),
            (true, 8, vec![0x44]),
            (false, 12, vec![0; 4]),
            (false, 16, vec![0]),
            (false, 20, vec![0; 2]),
            (true, 28, vec![0x44, 0x33, 0x22, 0x11]),
            (true, 36, vec![0x11, 0x22, 0x33, 0x44]),
            (false, 40, vec![0; 4]),
        ]
    );
    Ok(())
}

/// Instructions of 16 and of 32 bits, and the state of an IT block.
fn devices_in_t32() -> Outcome {
    let mut m = machine(
        1,
        &[
            &set(1, MMIO),
            &set(0, 0x1122_3344),
            &set(2, CODE + 0x101),
            &[bx(2)],
        ],
    )?;
    m.code(
        CODE + 0x100,
        &t32(&[&[
            0x6008, // str r0, [r1]
            0x8088, // strh r0, [r1, #4]
            0xf8c1, 0x0008, // str.w r0, [r1, #8]
            0x68ca, // ldr r2, [r1, #12]
            0xf8d1, 0x3010, // ldr.w r3, [r1, #16]
            0x2800, // cmp r0, #0
            0xbf15, // itete ne
            0x6148, // strne r0, [r1, #20]
            0x6188, // streq r0, [r1, #24]
            0xf8c1, 0x001c, // strne.w r0, [r1, #28]
            0x6a0c, // ldreq r4, [r1, #32]
            0x2405, // movs r4, #5
            0xf8cb, 0x2000, // str.w r2, [r11]
            0xf8cb, 0x3000, // str.w r3, [r11]
            0xf8cb, 0x4000, // str.w r4, [r11]
            0xf8cb, 0x0008, // str.w r0, [r11, #8]
            0xe7fc, // b to it
        ]]),
    );
    let (r, seen) = device(&mut m, 0x8182_9394);
    assert_eq!(r, [0x8182_9394, 0x8182_9394, 5]);
    let word = vec![0x44, 0x33, 0x22, 0x11];
    assert_eq!(
        seen,
        [
            (true, 0, word.clone()),
            (true, 4, vec![0x44, 0x33]),
            (true, 8, word.clone()),
            (false, 12, vec![0; 4]),
            (false, 16, vec![0; 4]),
            (true, 20, word.clone()),
            (true, 28, word),
        ]
    );
    Ok(())
}

/// r13 and r14 of each mode, r8 to r12 of FIQ: stored to a device and loaded from it.
fn devices_in_each_mode() -> Outcome {
    let modes = [
        (mode::SVC, 19, 18),
        (mode::IRQ, 17, 16),
        (mode::ABT, 21, 20),
        (mode::UND, 23, 22),
        (mode::SYS, 13, 14),
        (mode::FIQ, 29, 30),
    ];
    let mut code = set(1, MMIO).to_vec();
    for (n, (m, ..)) in (0u32..).zip(modes) {
        code.push(cps(m));
        code.extend(set(SP, 0x100 + u64::from(n)));
        code.extend(set(LR, 0x200 + u64::from(n)));
        code.extend([str(SP, 1, 0), str(LR, 1, 0), ldr(SP, 1, 4), ldr(LR, 1, 8)]);
    }
    // In FIQ now.
    for n in 8..13 {
        code.push(movw(n, 0x300 + n));
        code.push(str(n, 1, 0));
        code.push(ldr(n, 1, 12));
    }
    code.push(cps(mode::SVC));
    code.extend(DONE);
    let mut m = machine(1, &[&code])?;
    let mut stores = Vec::new();
    let mut loads = 0;
    m.cpu().run_with(|c, e| match e {
        Exit::Read { .. } => {
            loads += 1;
            c.answer(&(0x5000u32 + loads).to_le_bytes());
            true
        }
        Exit::Write { data, .. } => {
            stores.push(rkvm_l1::machine::value(data));
            true
        }
        _ => false,
    });
    let want: Vec<u64> = (0..6)
        .flat_map(|n| [0x100 + n, 0x200 + n])
        .chain(0x308..0x30d)
        .collect();
    assert_eq!(stores, want);
    // What was loaded is where AArch64 has these registers.
    let c = m.cpu();
    for (n, (m, sp, lr)) in (0u64..).zip(modes) {
        assert_eq!(c.reg(x(sp)), 0x5001 + 2 * n, "sp of {m:#x}");
        assert_eq!(c.reg(x(lr)), 0x5002 + 2 * n, "lr of {m:#x}");
    }
    for n in 0..5 {
        assert_eq!(c.reg(x(24 + n)), 0x500d + n);
    }
    // r11 and r9, of which FIQ has its own.
    assert_eq!((c.reg(x(11)), c.reg(x(9))), (kit::RESULT, kit::STATE));
    assert_eq!(mode_of(c), u64::from(mode::SVC));
    Ok(())
}

fn banked_registers_survive() -> Outcome {
    let modes = [mode::SVC, mode::ABT, mode::UND, mode::IRQ, mode::FIQ];
    let mut code = Vec::new();
    for (n, m) in (0u32..).zip(modes) {
        code.push(cps(m));
        code.push(movw(0, 0x10 + (n << 8)));
        code.push(set_spsr(0));
    }
    code.push(cps(mode::SVC));
    // An exit to user space, a hypercall, and a wait that a timer's line would end: WFE's place is taken by a read.
    code.extend(set(1, MMIO));
    code.push(ldr(2, 1, 0));
    code.extend(set(0, 0x8400_0000));
    code.push(HVC);
    for m in modes {
        code.extend([cps(m), spsr(0)]);
        if m == mode::FIQ {
            code.extend([cps(mode::SVC)]);
        }
        code.push(result(0));
    }
    code.extend(DONE);
    let mut m = machine(1, &[&code])?;
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| match e {
        Exit::Read { .. } => {
            seen = (0..5).map(|n| c.reg(bank(n))).collect();
            // User space changes one.
            c.set(bank(2), 0x2_0010).expect("SPSR_und");
            true
        }
        _ => false,
    });
    assert_eq!(seen, [0x10, 0x110, 0x210, 0x310, 0x410]);
    assert_eq!(r, [0x10, 0x110, 0x2_0010, 0x310, 0x410]);
    Ok(())
}

fn firmware() -> Outcome {
    let mut code = Vec::new();
    for insn in [HVC, SMC] {
        // PSCI_VERSION; CPU_ON for 64 bits; AFFINITY_INFO of itself; what nobody knows.
        for (f, a) in [
            (0x8400_0000, 0),
            (0xc400_0003, 1),
            (0x8400_0004, 0),
            (0x8400_001e, 0),
        ] {
            code.extend(set(0, f));
            code.extend([movw(1, a), movw(2, 0), movw(3, 0), insn, result(0)]);
        }
    }
    // SMC of a condition that fails does nothing.
    code.extend(set(0, 0x8400_0000));
    code.extend([cmp(0, 0), on(0, SMC), result(0)]);
    code.extend(set(0, 0x8400_0008));
    code.push(HVC);
    let mut m = machine(1, &[&code])?;
    let mut off = None;
    let mut results = Vec::new();
    while off.is_none() {
        match m.cpu().run().expect("KVM_RUN") {
            Exit::Write { data, .. } => results.push(rkvm_l1::machine::value(&data)),
            e => off = Some(e),
        }
    }
    assert_eq!(
        off,
        Some(Exit::System {
            kind: KVM_SYSTEM_EVENT_SHUTDOWN,
            flags: 0
        })
    );
    let version = results[0];
    assert_eq!(version >> 16, 1);
    let each = [version, 0xffff_ffff, 0, 0xffff_ffff];
    assert_eq!(results[..4], each);
    assert_eq!(results[4..8], each);
    assert_eq!(results[8], 0x8400_0000);
    Ok(())
}

/// A vCPU starts in A32, then, started again, in T32.
fn cpu_on() -> Outcome {
    let (a, t) = (CODE + 0x400, CODE + 0x600);
    let wait = |word: u32, v: u32| [ldr(0, 9, word), cmp(0, v), on(1, b(-2))];
    let on_at = |entry: u64, context: u32| {
        let mut c = set(0, 0x8400_0003).to_vec();
        c.push(movw(1, 1));
        c.extend(set(2, entry));
        c.extend([movw(3, context), HVC, result(0)]);
        c
    };
    // Until AFFINITY_INFO says that it is off: 1.
    let off = [
        movw(0, 4),
        movt(0, 0x8400_0000),
        movw(1, 1),
        movw(2, 0),
        HVC,
        cmp(0, 1),
        on(1, b(-6)),
    ];
    let mut m = machine(
        2,
        &[
            &set(9, DATA),
            &on_at(a, 0x5a5a),
            &wait(0, 0x5a),
            &[ldr(0, 9, 4), result(0), ldr(0, 9, 8), result(0)],
            &off,
            &on_at(t | 1, 0x77),
            &wait(0, 0x77),
            &[ldr(0, 9, 8), result(0)],
            &DONE,
        ],
    )?;
    m.code(
        a,
        &a32(&[
            &set(9, DATA),
            &[
                str(0, 9, 4),
                cpsr(1),
                str(1, 9, 8),
                movw(1, 0x5a),
                DMB,
                str(1, 9, 0),
            ],
            // CPU_OFF
            &set(0, 0x8400_0002),
            &[HVC, b(0)],
        ]),
    );
    m.code(
        t,
        &t32(&[
            &wide(0xf240_0900), // movw r9, #0
            &wide(0xf2c4_0902), // movt r9, #0x4002
            &[0xf3ef, 0x8100],  // mrs r1, cpsr
            &[0xf8c9, 0x1008],  // str.w r1, [r9, #8]
            &[0xf3bf, 0x8f5f],  // dmb sy
            &[0xf8c9, 0x0000],  // str.w r0, [r9]
            &[0xbf30, 0xe7fd],  // wfi; b to it
        ]),
    );
    let r = with_others(&mut m, |c| c.results());
    // Success, context, mode and masks; success. MRS does not show T.
    assert_eq!(r[..3], [0, 0x5a5a, 0x1d3]);
    assert_eq!(r[3..], [0, 0x1d3]);
    assert_eq!(m.cpus[1].reg(PSTATE) & 0x1ff, 0x1f3);
    Ok(())
}
