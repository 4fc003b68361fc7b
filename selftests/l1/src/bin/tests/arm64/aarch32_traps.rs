// SPDX-License-Identifier: GPL-2.0

//! What traps in guests whose EL1 is AArch32, and the exceptions that are taken there in the processor's place. Expected
//! values are the manual's: DDI 0487, G1 (exceptions), G8 (registers).

use crate::harness::tests;
use kvm_bindings::*;
use rkvm_l1::a32::*;
use rkvm_l1::kit::{self, CODE, MMIO};
use rkvm_l1::machine::{core, sysreg, Cpu, Exit, Machine, PC, PSTATE, SCTLR_EL1};
use rkvm_l1::{sys, Outcome};

tests![
    identification,
    trapped_registers,
    conditional_traps,
    undefined,
    undefined_in_t32,
    undefined_by_sctlr,
    aborts,
    aborts_with_lpae,
    serror,
    interrupts,
    timers,
    debug_registers,
    single_step,
];

const FAR: u64 = sysreg(3, 0, 6, 0, 0);
const ESR: u64 = sysreg(3, 0, 5, 2, 0);

/// ID registers, which trap, have what user space sees of them.
fn identification() -> Outcome {
    let cp: [(Cp, u64); 13] = [
        ((15, 0, 0, 0, 0), sysreg(3, 0, 0, 0, 0)), // MIDR
        ((15, 0, 0, 0, 5), sysreg(3, 0, 0, 0, 5)), // MPIDR
        ((15, 0, 0, 0, 6), sysreg(3, 0, 0, 0, 6)), // REVIDR
        ((15, 0, 0, 0, 1), sysreg(3, 3, 0, 0, 1)), // CTR
        ((15, 0, 0, 1, 0), sysreg(3, 0, 0, 1, 0)), // ID_PFR0
        ((15, 0, 0, 1, 1), sysreg(3, 0, 0, 1, 1)), // ID_PFR1
        ((15, 0, 0, 1, 2), sysreg(3, 0, 0, 1, 2)), // ID_DFR0
        ((15, 0, 0, 1, 4), sysreg(3, 0, 0, 1, 4)), // ID_MMFR0
        ((15, 0, 0, 2, 0), sysreg(3, 0, 0, 2, 0)), // ID_ISAR0
        ((15, 0, 0, 2, 7), sysreg(3, 0, 0, 2, 7)), // ID_ISAR6
        ((15, 0, 0, 3, 4), sysreg(3, 0, 0, 3, 4)), // ID_PFR2
        ((15, 1, 0, 0, 1), sysreg(3, 1, 0, 0, 1)), // CLIDR
        ((15, 1, 0, 0, 7), sysreg(3, 1, 0, 0, 7)), // AIDR
    ];
    let mut code = Vec::new();
    for (r, _) in cp {
        code.extend([mrc(r, LR), result(LR)]);
    }
    // What AArch64 has there is not AArch32's: MVFR0, ID_AA64PFR0. No TCM and no separate TLBs.
    for r in [
        (15, 0, 0, 3, 0),
        (15, 0, 0, 4, 0),
        (15, 0, 0, 0, 2),
        (15, 0, 0, 0, 3),
    ] {
        code.extend([mrc(r, 0), result(0)]);
    }
    // MVFR0 to MVFR2 by VMRS, with access to cp10.
    code.extend(set(0, 0xf0_0000));
    code.extend([mcr((15, 0, 1, 0, 2), 0), ISB]);
    for n in [7, 6, 5] {
        code.extend([vmrs(SP, n), result(SP)]);
    }
    code.extend(DONE);
    let mut m = machine(1, &[&code])?;
    let r = m.cpu().results();
    let c = m.cpu();
    for (n, (cp, id)) in cp.iter().enumerate() {
        assert_eq!(r[n], c.reg(*id) & 0xffff_ffff, "{cp:?}");
    }
    assert_eq!(r[13..17], [0; 4]);
    for (n, v) in r[17..].iter().enumerate() {
        assert_eq!(*v, c.reg(sysreg(3, 0, 0, 3, n as u64)), "MVFR{n}");
    }
    Ok(())
}

/// Registers that trap, written and read.
fn trapped_registers() -> Outcome {
    let csselr = (15, 2, 0, 0, 0);
    let ccsidr = (15, 1, 0, 0, 0);
    let actlr = (15, 0, 1, 0, 1);
    let mut m = machine(
        1,
        &[
            &[movw(0, 1), mcr(csselr, 0), mrc(csselr, 1), result(1)],
            &[mrc(ccsidr, 1), result(1)],
            // Writes of ACTLR do nothing; maintenance by set and way.
            &[mrc(actlr, 2), movw(0, 0xffff), mcr(actlr, 0), mrc(actlr, 3)],
            &[0xe032_2003, result(2)], // eors r2, r2, r3
            &[
                movw(0, 0),
                mcr((15, 0, 7, 6, 2), 0),
                mcr((15, 0, 7, 14, 2), 0),
            ],
            // The physical timer: CNTP_CVAL, CNTP_CTL.
            &[movw(4, 0x1234), movw(5, 0x56)],
            &[
                mcrr(15, 2, 14, 4, 5),
                mrrc(15, 2, 14, 6, 7),
                result(6),
                result(7),
            ],
            &[
                movw(0, 3),
                mcr((15, 0, 14, 2, 1), 0),
                mrc((15, 0, 14, 2, 1), 1),
            ],
            &[result(1)],
            &DONE,
        ],
    )?;
    let r = m.cpu().results();
    let mut ccsidr = 0u32;
    let mut one = kvm_one_reg {
        id: KVM_REG_ARM64 | KVM_REG_SIZE_U32 | 0x11 << 16 | 1,
        addr: &raw mut ccsidr as u64,
    };
    sys::with(m.cpus[0].raw(), sys::GET_ONE_REG, &mut one).expect("CCSIDR");
    assert_eq!(r[..3], [1, u64::from(ccsidr), 0]);
    assert_eq!(r[3..5], [0x1234, 0x56]);
    assert_eq!(r[5] & 3, 3);
    Ok(())
}

/// Trapped instructions whose condition does not hold do nothing, and those in an IT block move it on.
fn conditional_traps() -> Outcome {
    let id = mrc((15, 0, 0, 1, 0), 2);
    let und = mrc((15, 0, 15, 0, 0), 2);
    let mut m = machine(
        1,
        &[
            &[movw(0, 1), movw(2, 7), cmp(0, 0)],
            &[
                on(0, id),
                result(2),
                on(0, und),
                result(2),
                on(1, id),
                result(2),
            ],
            &set(3, CODE + 0x101),
            &[bx(3)],
        ],
    )?;
    let eq = wide(mrc((15, 0, 0, 1, 0), 4));
    let ne = wide(mrc((15, 0, 0, 1, 0), 5));
    m.code(
        CODE + 0x100,
        &t32(&[
            &[0x2407, 0x2507], // movs r4, #7; movs r5, #7
            &[0x2800, 0xbf1c], // cmp r0, #0; itt ne
            &ne,
            &[0x2601], // movne r6, #1
            &[0xbf0c], // ite eq
            &eq,
            &[0x2602], // movne r6, #2
            &[0xf8cb, 0x4000, 0xf8cb, 0x5000, 0xf8cb, 0x6000],
            &[0xf8cb, 0x0008, 0xe7fc],
        ]),
    );
    let r = m.cpu().results();
    let id = m.cpu().reg(sysreg(3, 0, 0, 1, 0));
    assert_eq!(r, [7, 7, id, 7, id, 2]);
    Ok(())
}

/// What is reported of an exception, after what was before: vector, LR, SPSR, CPSR. The guest ends in its mode.
///
/// QEMU's processors do not switch the SPSR of the mode that a guest is in, so that the guest reads another: what counts here
/// is what user space sees.
fn report(m: &mut Machine, then: &[&[u32]]) -> Vec<u64> {
    let mut landing: Vec<&[u32]> = then.to_vec();
    landing.push(&DONE);
    m.code(LANDING, &a32(&landing));
    let mut r = m.cpu().results();
    let n = match mode_of(m.cpu()) as u32 {
        mode::ABT => 1,
        _ => 2,
    };
    r[2] = m.cpu().reg(bank(n));
    r
}

/// An access to c15, which HSTR_EL2 has trap and nobody serves.
const NOBODY: u32 = mrc((15, 0, 15, 0, 0), 0);

fn undefined() -> Outcome {
    // Flags N and C stay; F, which was set, and A.
    let mut m = machine(1, &[&[0xe3a0_020a, 0xe128_f000, NOP, NOBODY]])?;
    let r = report(&mut m, &[]);
    assert_eq!(r[..2], [1, CODE + 16]);
    assert_eq!(r[2] & !(0xf << 20), 0xa000_01d3);
    assert_eq!(r[3] & !(0xf << 20), 0xa000_01db);
    // From User: masks as they were, so I is new.
    let user = [movw(0, 0x110), set_spsr(0), 0xe28f_e000, MOVS_PC_LR, NOBODY];
    let mut m = machine(1, &[&user])?;
    let r = report(&mut m, &[]);
    assert_eq!(r[..2], [1, CODE + 20]);
    assert_eq!(r[3] & 0x1ff, 0x19b);
    Ok(())
}

fn undefined_in_t32() -> Outcome {
    let mut m = machine(1, &[&set(0, CODE + 0x101), &[bx(0)]])?;
    let nobody = wide(NOBODY);
    m.code(CODE + 0x100, &t32(&[&[0x2800, 0xbf18], &nobody])); // cmp r0, #0; it ne
    let r = report(&mut m, &[]);
    // Two on from the instruction; T and IT (NE, 0b00011000) in SPSR.
    assert_eq!(r[..2], [1, CODE + 0x106]);
    assert_eq!(r[2] & 0x0600_fdff, 0x1800 | 0x1f3);
    assert_eq!(r[3] & 0x1ff, 0x1db);
    Ok(())
}

/// SCTLR.V, TE, EE.
fn undefined_by_sctlr() -> Outcome {
    // Vectors where no memory is: the vector's fetch is an abort of its own, whose vector is not there either.
    let mut m = machine(1, &[&[NOBODY]])?;
    let old = m.cpu().reg(SCTLR_EL1);
    let c = m.cpu();
    c.set(SCTLR_EL1, old | 1 << 13).expect("SCTLR_EL1");
    // A slot there, with a branch to itself behind a store.
    let high = rkvm_l1::ram::Ram::anon(0xffff_0000, 0x1_0000);
    m.slot(1, &high, 0).expect("slot 1");
    high.put(0xffff_0004, &a32(&[&[result(LR)], &DONE]));
    assert_eq!(m.cpu().results(), [CODE + 4]);
    // T32 and big-endian: the handler is in T32.
    let mut m = machine(1, &[&[NOBODY]])?;
    let old = m.cpu().reg(SCTLR_EL1);
    m.cpu()
        .set(SCTLR_EL1, old | 1 << 30 | 1 << 25)
        .expect("SCTLR_EL1");
    m.code(
        kit::VECTORS + 4,
        &t32(&[&[
            0xf3ef, 0x8a00, // mrs r10, cpsr
            0xb650, // setend le
            0xf8cb, 0xa000, // str.w r10, [r11]
            0xf8cb, 0x0008, 0xe7fc,
        ]]),
    );
    let r = m.cpu().results();
    assert_eq!(r[0] & 0x3df, 0x3db);
    assert_eq!(m.cpu().reg(PSTATE) & 0x20, 0x20);
    Ok(())
}

/// A fetch from nowhere, and an access that user space ends in an abort: DFSR, DFAR, IFSR, IFAR.
fn abort(eae: bool) -> Outcome {
    let ttbcr = [mcr((15, 0, 2, 0, 2), 0)];
    let status_registers = [
        mrc((15, 0, 5, 0, 0), 0),
        result(0),
        mrc((15, 0, 5, 0, 1), 0),
        result(0),
        mrc((15, 0, 6, 0, 0), 0),
        result(0),
        mrc((15, 0, 6, 0, 2), 0),
        result(0),
    ];
    let begin = set(0, u64::from(eae) << 31);
    let status = if eae { 0x210 } else { 0x08 };
    let nowhere = 0x1003_0000;
    // blx r0
    let mut m = machine(1, &[&begin, &ttbcr, &set(0, nowhere), &[0xe12f_ff30]])?;
    let r = report(&mut m, &[&status_registers]);
    // LR is four on from where the fetch was.
    assert_eq!(r[..2], [3, nowhere + 4]);
    assert_eq!((r[2] & 0x1ff, r[3] & 0x1ff), (0x1d3, 0x1d7));
    assert_eq!((r[5], r[7]), (status, nowhere));

    let mut m = machine(1, &[&begin, &ttbcr, &set(1, MMIO + 0x24), &[ldr(0, 1, 0)]])?;
    m.code(LANDING, &a32(&[&status_registers, &DONE]));
    m.cpu().set(FAR, 0x7777_7777_0000_0000).expect("FAR_EL1");
    let r = m.cpu().run_with(|c, e| {
        assert_eq!(
            *e,
            Exit::Read {
                gpa: MMIO + 0x24,
                len: 4
            }
        );
        let mut events = kvm_vcpu_events::default();
        events.exception.ext_dabt_pending = 1;
        sys::with(c.raw(), sys::SET_VCPU_EVENTS, &mut events).expect("KVM_SET_VCPU_EVENTS");
        true
    });
    // Eight on from the instruction, which is the sixth.
    assert_eq!(r[..2], [4, CODE + 20 + 8]);
    assert_eq!((m.cpu().reg(bank(1)) & 0x1ff, r[3] & 0x1ff), (0x1d3, 0x1d7));
    assert_eq!((r[4], r[6], r[7]), (status, MMIO + 0x24, 0x7777_7777));
    assert_eq!(m.cpu().reg(ESR), status);
    Ok(())
}

fn aborts() -> Outcome {
    abort(false)
}

fn aborts_with_lpae() -> Outcome {
    abort(true)
}

/// An asynchronous abort, once the guest lets it come.
fn serror() -> Outcome {
    let mut m = machine(
        1,
        &[
            &[movw(0, 1), result(0), 0xf108_0100], // cpsie a
            &[ISB, NOP, NOP, result(0)],
            &DONE,
        ],
    )?;
    m.code(
        LANDING,
        &a32(&[&[mrc((15, 0, 5, 0, 0), 0), result(0)], &DONE]),
    );
    let mut events = kvm_vcpu_events::default();
    events.exception.serror_pending = 1;
    sys::with(m.cpus[0].raw(), sys::SET_VCPU_EVENTS, &mut events).expect("KVM_SET_VCPU_EVENTS");
    let r = m.cpu().results();
    // It was masked for the first result; then a data abort, asynchronous external: FS 0b10110.
    assert_eq!((r[0], r[1]), (1, 4));
    assert_eq!(r[4] & 0x1ff, 0x1d7);
    assert_eq!(r[5] & 0x40f, 0x406);
    Ok(())
}

/// The GIC by cp15: an SGI to itself, taken as an IRQ.
fn interrupts() -> Outcome {
    let mut m = machine(
        1,
        &[
            // GICD_CTLR, GICR_WAKER, GICR_IGROUPR0, GICR_ISENABLER0
            &set(0, kit::GICD),
            &[movw(1, 0x12), str(1, 0, 0)],
            &set(0, kit::GICR),
            &[movw(1, 0), str(1, 0, 0x14), add(0, 0, 0x801)], // add r0, r0, #0x10000
            &set(1, 0xffff_ffff),
            &[str(1, 0, 0x80), str(1, 0, 0x100)],
            // ICC_PMR, ICC_IGRPEN1
            &[movw(1, 0xf8), mcr((15, 0, 4, 6, 0), 1)],
            &[movw(1, 1), mcr((15, 0, 12, 12, 7), 1), ISB],
            // ICC_SGI1R: SGI 5 to Aff0 0
            &[movw(2, 1), movt(2, 5 << 24), movw(3, 0)],
            &[mcrr(15, 0, 12, 2, 3), ISB, CPSIE_I, NOP, NOP, result(9)],
            &DONE,
        ],
    )?;
    m.code(
        LANDING,
        &a32(&[
            // ICC_IAR1, ICC_EOIR1, ICC_RPR, ICC_SRE
            &[mrc((15, 0, 12, 12, 0), 0), result(0)],
            &[mrc((15, 0, 12, 11, 3), 1), result(1)],
            &[
                mcr((15, 0, 12, 12, 1), 0),
                mrc((15, 0, 12, 11, 3), 1),
                result(1),
            ],
            &[mrc((15, 0, 12, 12, 5), 1), result(1)],
            &[SUBS_PC_LR_4],
        ]),
    );
    let r = m.cpu().results();
    // The vector of IRQ, in its mode.
    assert_eq!((r[0], r[3] & 0x1df), (6, 0x1d2));
    assert_eq!(r[4..7], [5, 0, 0xff]);
    assert_eq!(r[7] & 1, 1);
    // It went on, with r9 as it was.
    assert_eq!(r[8], kit::STATE);
    Ok(())
}

/// A wait that the virtual timer ends, and one that the physical one does.
fn timers() -> Outcome {
    let gic: [&[u32]; 2] = [
        &[movw(1, 0xf8), mcr((15, 0, 4, 6, 0), 1), movw(1, 1)],
        &[mcr((15, 0, 12, 12, 7), 1), ISB],
    ];
    let wait = |crm: u32| {
        vec![
            mcr((15, 0, 14, crm, 0), 4),
            movw(0, 1),
            mcr((15, 0, 14, crm, 1), 0),
            ISB,
            WFI,
            mrc((15, 0, 14, crm, 1), 0),
            result(0),
            movw(0, 0),
            mcr((15, 0, 14, crm, 1), 0),
        ]
    };
    let (v, p) = (wait(3), wait(2));
    let mut m = machine(
        1,
        &[
            &set(0, kit::GICD),
            &[movw(1, 0x12), str(1, 0, 0)],
            &set(0, kit::GICR),
            &[movw(1, 0), str(1, 0, 0x14), add(0, 0, 0x801)],
            &set(1, 0xffff_ffff),
            &[str(1, 0, 0x80), str(1, 0, 0x100)],
            gic[0],
            gic[1],
            &[movw(4, 0x4000), movt(4, 0x10_0000)],
            &v,
            &p,
            &DONE,
        ],
    )?;
    // Enabled, and its condition met.
    assert_eq!(m.cpu().results(), [5, 5]);
    Ok(())
}

/// cp14: a breakpoint's address, DBGDSCR, the OS lock, DBGVCR, DBGDIDR.
fn debug_registers() -> Outcome {
    const BVR1: u64 = sysreg(2, 0, 0, 1, 4);
    let bvr = (14, 0, 0, 1, 4);
    let mut m = machine(
        1,
        &[
            &set(0, 0x4001_0000),
            &[mcr(bvr, 0), mrc(bvr, 2), result(2)],
            // OS lock: closed by the key, opened by anything else.
            &set(0, 0xc5ac_ce55),
            &[mcr((14, 0, 1, 0, 4), 0), mrc((14, 0, 1, 1, 4), 1)],
            &[result(1), movw(0, 1), mcr((14, 0, 1, 0, 4), 0)],
            &[mrc((14, 0, 1, 1, 4), 1), result(1)],
            // DBGVCR while debug is off
            &[
                movw(0, 0xde),
                mcr((14, 0, 0, 7, 0), 0),
                mrc((14, 0, 0, 7, 0), 1),
            ],
            &[result(1), movw(0, 0), mcr((14, 0, 0, 7, 0), 0)],
            // DBGDSCRext.MDBGen shows in DBGDSCRint; all flags of it to APSR.
            &[movw(0, 0x8000), mcr((14, 0, 0, 2, 2), 0), ISB],
            &[mrc((14, 0, 0, 1, 0), 1), result(1)],
            &[
                mrc((14, 0, 0, 1, 0), 15),
                mrc((14, 0, 0, 0, 0), 1),
                result(1),
            ],
            // The registers are its own now.
            &[
                movw(0, 0xde),
                mcr((14, 0, 0, 7, 0), 0),
                mrc((14, 0, 0, 7, 0), 1),
            ],
            &[result(1), movw(0, 0), mcr((14, 0, 0, 7, 0), 0)],
            &DONE,
        ],
    )?;
    // The upper half is another register (DBGBXVR), which QEMU's processors have not.
    m.cpu().set(BVR1, 0x77 << 32).expect("DBGBVR1_EL1");
    let r = m.cpu().results();
    assert_eq!(m.cpu().reg(BVR1), 0x77_4001_0000);
    assert_eq!(r[0], 0x4001_0000);
    // OSLM and OSLK.
    assert_eq!((r[1] & 0xa, r[2] & 0xa), (0xa, 8));
    assert_eq!(r[3], 0xde);
    assert_eq!(r[4] & 0x8000, 0x8000);
    // The same numbers of breakpoints and watchpoints as AArch64 has.
    let dfr0 = m.cpu().reg(sysreg(3, 0, 0, 5, 0));
    assert_eq!(
        (r[5] >> 24 & 15, r[5] >> 28),
        (dfr0 >> 12 & 15, dfr0 >> 20 & 15)
    );
    // QEMU's processors have none.
    assert!([0xde, 0].contains(&r[6]));
    Ok(())
}

/// User space steps the guest, over a trap as well, and sees its BKPT.
fn single_step() -> Outcome {
    let mut m = machine(
        1,
        &[&[NOP, mrc((15, 0, 0, 1, 0), 2), NOP, 0xe120_0070], &DONE],
    )?;
    let debug = |c: &Cpu, control: u32| {
        let mut d = kvm_guest_debug {
            control,
            ..Default::default()
        };
        sys::with(c.raw(), sys::SET_GUEST_DEBUG, &mut d).expect("KVM_SET_GUEST_DEBUG");
    };
    let c = m.cpu();
    debug(c, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
    for n in 1..4 {
        assert_eq!(c.run(), Ok(Exit::Other(KVM_EXIT_DEBUG)));
        assert_eq!(c.reg(PC), CODE + 4 * n);
    }
    debug(c, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP);
    assert_eq!(c.run(), Ok(Exit::Other(KVM_EXIT_DEBUG)));
    // SAFETY: the exit is KVM_EXIT_DEBUG.
    let hsr = unsafe { c.page().__bindgen_anon_1.debug.arch.hsr };
    assert_eq!((c.reg(PC), hsr >> 26), (CODE + 12, 0x38));
    debug(c, 0);
    assert_eq!(c.reg(core(0x42)) & 1 << 21, 0);
    Ok(())
}
