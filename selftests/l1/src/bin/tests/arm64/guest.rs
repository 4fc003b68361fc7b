// SPDX-License-Identifier: GPL-2.0

//! What a guest at EL1 does: devices, hypercalls, exceptions, waiting, timers.

use crate::harness::tests;
use kvm_bindings::*;
use libc::ENOSYS;
use rkvm_l1::machine::{enable, x, Machine, SCTLR_EL1};
use rkvm_l1::{done, expect, gic_on, guest, kit, mmu_on, result, Exit, Outcome};

tests![
    reads_of_a_device,
    writes_of_a_device,
    zero_register,
    big_endian_device,
    no_syndrome,
    cache_maintenance_of_a_device,
    ioeventfd,
    firmware_version,
    unknown_calls,
    smc_is_hvc,
    system_off_and_reset,
    undefined_registers,
    undefined_features,
    code_where_none_is,
    a_walk_into_nothing,
    own_exceptions,
    mmu,
    virtual_timer,
    physical_timer,
    wfi_ends_by_a_timer,
    wfi_is_interrupted,
    wfe_does_not_wait,
    counter_goes_on,
];

fn reads_of_a_device() -> Outcome {
    let mut m = Machine::new(guest![
        "ldrb w1, [x19]",
        result!("x1"),
        "ldrh w1, [x19]",
        result!("x1"),
        "ldr w1, [x19]",
        result!("x1"),
        "ldr x1, [x19]",
        result!("x1"),
        "ldrsb w1, [x19]",
        result!("x1"),
        "ldrsb x1, [x19]",
        result!("x1"),
        "ldrsh x1, [x19]",
        result!("x1"),
        "ldrsw x1, [x19]",
        result!("x1"),
        done!(),
    ]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| match *e {
        Exit::Read { gpa, len } => {
            seen.push((gpa - kit::MMIO, len));
            c.answer(&[0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8]);
            true
        }
        _ => false,
    });
    assert_eq!(
        r,
        [
            0x81,
            0x9281,
            0xb4a3_9281,
            0xf8e7_d6c5_b4a3_9281,
            0xffff_ff81,
            0xffff_ffff_ffff_ff81,
            0xffff_ffff_ffff_9281,
            0xffff_ffff_b4a3_9281,
        ]
    );
    assert_eq!(
        seen.iter().map(|s| s.1).collect::<Vec<_>>(),
        [1, 2, 4, 8, 1, 1, 2, 4]
    );
    Ok(())
}

fn writes_of_a_device() -> Outcome {
    let mut m = Machine::new(guest![
        "strb w1, [x19]",
        "strh w1, [x19, #2]",
        "str w1, [x19, #4]",
        "str x1, [x19, #8]",
        done!(),
    ]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    m.cpus[0].set(x(1), 0x1122_3344_5566_7788).expect("x1");
    let mut seen = Vec::new();
    m.cpu().run_with(|_, e| match e {
        Exit::Write { gpa, data } => {
            seen.push((gpa - kit::MMIO, data.clone()));
            true
        }
        _ => false,
    });
    let all = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    let want: Vec<(u64, Vec<u8>)> = [(0, 1), (2, 2), (4, 4), (8, 8)]
        .map(|(at, n)| (at, all[..n].to_vec()))
        .to_vec();
    assert_eq!(seen, want);
    Ok(())
}

fn zero_register() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x1, #5",
        "ldr xzr, [x19]",
        "str xzr, [x19]",
        result!("x1"),
        "mov x2, sp",
        result!("x2"),
        done!(),
    ]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| {
        seen.push(e.clone());
        if matches!(e, Exit::Read { .. }) {
            c.answer(&[0xff; 8]);
        }
        true
    });
    assert_eq!(r, [5, kit::STACK]);
    assert_eq!(
        seen[1],
        Exit::Write {
            gpa: kit::MMIO,
            data: vec![0; 8]
        }
    );
    Ok(())
}

fn big_endian_device() -> Outcome {
    // The kit's results would be reversed as well: they are looked at here.
    let mut m = Machine::new(guest![
        "mrs x0, sctlr_el1",
        "orr x0, x0, #0x2000000",
        "msr sctlr_el1, x0",
        "isb",
        "ldr w1, [x19]",
        "str w1, [x19]",
        "strh w1, [x19]",
        "mrs x0, sctlr_el1",
        "bic x0, x0, #0x2000000",
        "msr sctlr_el1, x0",
        "isb",
        result!("x1"),
        done!(),
    ]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| {
        seen.push(e.clone());
        if matches!(e, Exit::Read { .. }) {
            c.answer(&[1, 2, 3, 4]);
        }
        true
    });
    assert_eq!(r, [0x0102_0304]);
    assert_eq!(
        seen[1..],
        [
            Exit::Write {
                gpa: kit::MMIO,
                data: vec![1, 2, 3, 4]
            },
            Exit::Write {
                gpa: kit::MMIO,
                data: vec![3, 4]
            }
        ]
    );
    Ok(())
}

fn no_syndrome() -> Outcome {
    // A pair has none.
    let code = guest!["ldp x1, x2, [x19]", done!()];
    let mut m = Machine::new(code);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    assert_eq!(m.cpu().run(), Err(ENOSYS));
    // And again: nothing has changed.
    assert_eq!(m.cpu().run(), Err(ENOSYS));
    let mut m = Machine::new(code);
    assert_eq!(enable(m.raw(), KVM_CAP_ARM_NISV_TO_USER, 0), Ok(0));
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    let e = m.cpu().run();
    assert!(matches!(e, Ok(Exit::Nisv { gpa: kit::MMIO, .. })), "{e:x?}");
    Ok(())
}

fn cache_maintenance_of_a_device() -> Outcome {
    let mut m = Machine::new(guest!["dc civac, x19", "dc cvac, x19", done!()]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    // Where there is nothing, nothing happens.
    assert_eq!(m.cpu().results(), []);
    Ok(())
}

fn ioeventfd() -> Outcome {
    let mut m = Machine::new(guest![
        "mov w1, #7",
        "str w1, [x19]",
        "mov w1, #8",
        "str w1, [x19]",
        "strb w1, [x19]",
        done!(),
    ]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    let e = rkvm_l1::sys::Event::new();
    let mut io = kvm_ioeventfd {
        addr: kit::MMIO,
        len: 4,
        fd: e.0,
        datamatch: 7,
        flags: 1 << kvm_ioeventfd_flag_nr_datamatch,
        ..Default::default()
    };
    assert_eq!(
        rkvm_l1::sys::with(m.raw(), rkvm_l1::sys::IOEVENTFD, &mut io),
        Ok(0)
    );
    let mut seen = Vec::new();
    m.cpu().run_with(|_, e| {
        seen.push(e.clone());
        true
    });
    assert_eq!(e.take(), 1);
    assert_eq!(
        seen,
        [
            Exit::Write {
                gpa: kit::MMIO,
                data: vec![8, 0, 0, 0]
            },
            Exit::Write {
                gpa: kit::MMIO,
                data: vec![8]
            }
        ]
    );
    Ok(())
}

fn firmware_version() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x0, #0x84000000",
        "hvc #0",
        result!("x0"),
        "mov x0, #0x80000000",
        "hvc #0",
        result!("x0"),
        // PSCI_FEATURES of CPU_ON, and of nothing
        "mov x0, #0x84000000",
        "add x0, x0, #10",
        "mov x1, #0xc4000000",
        "add x1, x1, #3",
        "hvc #0",
        result!("x0"),
        "mov x0, #0x84000000",
        "add x0, x0, #10",
        "mov x1, #0x84000000",
        "add x1, x1, #0x1f",
        "hvc #0",
        result!("x0"),
        // The guest's number of the instruction does not matter.
        "mov x0, #0x84000000",
        "hvc #77",
        result!("x0"),
        done!(),
    ]);
    let r = m.cpu().results();
    assert_eq!((r[0], r[2], r[4]), (0x1_0003, 0, 0x1_0003));
    assert!(r[1] >= 0x1_0001, "SMCCC {:#x}", r[1]);
    assert_eq!(r[3] as i32, -1);
    Ok(())
}

fn unknown_calls() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x5, #55",
        "mov x0, #0x12340000",
        "hvc #0",
        result!("x0"),
        "mov x0, #-1",
        "hvc #0",
        result!("x0"),
        "mov x0, #0xc4000000",
        "add x0, x0, #0xfff",
        "hvc #0",
        result!("x0"),
        result!("x5"),
        done!(),
    ]);
    let r = m.cpu().results();
    for (n, v) in r[..3].iter().enumerate() {
        assert_eq!(*v as i32, -1, "call {n}");
    }
    assert_eq!(r[3], 55);
    Ok(())
}

fn smc_is_hvc() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x0, #0x84000000",
        "smc #0",
        result!("x0"),
        "mov x1, #1",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [0x1_0003, 1]);
    Ok(())
}

fn system_off_and_reset() -> Outcome {
    for (function, kind) in [(8, KVM_SYSTEM_EVENT_SHUTDOWN), (9, KVM_SYSTEM_EVENT_RESET)] {
        let mut m = Machine::new(guest![
            "mov x0, #0x84000000",
            "add x0, x0, x5",
            "hvc #0",
            done!(),
        ]);
        m.cpus[0].set(x(5), function).expect("x5");
        let e = m.cpu().run();
        assert!(
            matches!(e, Ok(Exit::System { kind: k, .. }) if k == kind),
            "{e:x?}"
        );
    }
    Ok(())
}

fn undefined_registers() -> Outcome {
    let mut m = Machine::new(guest![
        // EL2's, an implementation's own, one that there is not
        expect!("1f"),
        "mrs x1, hcr_el2",
        "1:",
        expect!("2f"),
        "mrs x1, s3_0_c15_c2_0",
        "2:",
        expect!("3f"),
        "msr s3_7_c11_c0_0, x1",
        "3:",
        expect!("4f"),
        // A write to what can be read only
        "msr s3_0_c0_c4_0, x1",
        "4:",
        done!(),
    ]);
    assert_eq!(m.cpu().results(), []);
    assert_eq!(m.exceptions(), 4);
    // Unknown reason, or (of registers that the processor itself refuses) the same.
    assert_eq!(m.exception()[0] >> 26, 0);
    Ok(())
}

fn undefined_features() -> Outcome {
    // SVE, if the guest has it not: undefined, or trapped by its own CPACR_EL1.
    let mut m = Machine::new(guest![
        "mov x0, #0x330000",
        "msr cpacr_el1, x0",
        "isb",
        "mrs x1, id_aa64pfr0_el1",
        "ubfx x1, x1, #32, #4",
        result!("x1"),
        expect!("1f"),
        // cntb x2
        ".inst 0x0420e3e2",
        "1:",
        "mrs x1, id_aa64dfr0_el1",
        "ubfx x1, x1, #8, #4",
        result!("x1"),
        expect!("2f"),
        "mrs x2, pmcr_el0",
        "2:",
        done!(),
    ]);
    let r = m.cpu().results();
    let missing = u64::from(r[0] == 0) + u64::from(r[1] == 0);
    assert_eq!(m.exceptions(), missing, "SVE {}, PMU {}", r[0], r[1]);
    Ok(())
}

fn code_where_none_is() -> Outcome {
    let mut m = Machine::new(guest![
        expect!("1f"),
        "mov x1, #0x20000000",
        "br x1",
        "1:",
        done!(),
    ]);
    assert_eq!(m.cpu().results(), []);
    let [esr, far, elr, _] = m.exception();
    // An instruction abort from the same level, external.
    assert_eq!((esr >> 26, esr & 0x3f), (0x21, 0x10));
    assert_eq!((far, elr), (0x2000_0000, 0x2000_0000));
    Ok(())
}

fn a_walk_into_nothing() -> Outcome {
    let mut m = Machine::new(guest![
        mmu_on!(),
        // A table where there is no memory, at the second GiB.
        "mov x0, #0x40000000",
        "add x0, x0, #0x1000",
        "mov x1, #0x20000000",
        "orr x1, x1, #3",
        "str x1, [x0, #24]",
        "dsb ish",
        "tlbi vmalle1",
        "dsb ish",
        "isb",
        expect!("1f"),
        "mov x2, #0xc0000000",
        "ldr x3, [x2]",
        "1:",
        done!(),
    ]);
    assert_eq!(m.cpu().results(), []);
    let [esr, far, ..] = m.exception();
    // A data abort: external, on a walk at level 2.
    assert_eq!((esr >> 26, far), (0x25, 0xc000_0000));
    assert!(matches!(esr & 0x3f, 0x10 | 0x14..=0x17), "{esr:#x}");
    Ok(())
}

fn own_exceptions() -> Outcome {
    let mut m = Machine::new(guest![
        expect!("1f"),
        "svc #5",
        "1:",
        expect!("2f"),
        "brk #6",
        "2:",
        expect!("3f"),
        "udf #7",
        "3:",
        done!(),
    ]);
    assert_eq!(m.cpu().results(), []);
    assert_eq!(m.exceptions(), 3);
    Ok(())
}

fn mmu() -> Outcome {
    let mut m = Machine::new(guest![
        mmu_on!(),
        "mov x1, #0x1234",
        "str x1, [x27]",
        "ldr x2, [x27]",
        result!("x2"),
        // Unaligned, in normal memory.
        "str x1, [x27, #9]",
        "ldur x2, [x27, #9]",
        result!("x2"),
        // Exclusives
        "1: ldxr x3, [x27]",
        "add x3, x3, #1",
        "stxr w4, x3, [x27]",
        "cbnz w4, 1b",
        "ldr x2, [x27]",
        result!("x2"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [0x1234, 0x1234, 0x1235]);
    assert_eq!(m.cpus[0].reg(SCTLR_EL1) & 5, 5);
    Ok(())
}

fn virtual_timer() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        "mov x5, #0",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "mov x6, #1",
        "1: add x5, x5, #1",
        "mov x7, #5000",
        "msr cntv_tval_el0, x7",
        "msr cntv_ctl_el0, x6",
        "isb",
        "2: ldr w1, [x0, #108]",
        "cmp x1, x5",
        "b.ne 2b",
        "cmp x5, #50",
        "b.ne 1b",
        // In the future: not due.
        "mov x7, #0x7fffffff",
        "msr cntv_tval_el0, x7",
        "msr cntv_ctl_el0, x6",
        "isb",
        "mrs x1, cntv_ctl_el0",
        result!("x1"),
        "msr cntv_ctl_el0, xzr",
        "msr cntv_tval_el0, xzr",
        "mov x6, #3",
        "msr cntv_ctl_el0, x6",
        "isb",
        "mrs x1, cntv_ctl_el0",
        result!("x1"),
        done!(),
    ]);
    // Enabled; then due, but masked.
    assert_eq!(m.cpu().results(), [1, 7]);
    assert_eq!(m.count(0, kit::VTIMER), 50);
    Ok(())
}

fn physical_timer() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        "mov x5, #0",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "mov x6, #1",
        "1: add x5, x5, #1",
        "mov x7, #5000",
        "msr cntp_tval_el0, x7",
        "msr cntp_ctl_el0, x6",
        "isb",
        "2: ldr w1, [x0, #120]",
        "cmp x1, x5",
        "b.ne 2b",
        "cmp x5, #20",
        "b.ne 1b",
        "mrs x1, cntp_ctl_el0",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [0]);
    assert_eq!(m.count(0, kit::PTIMER), 20);
    Ok(())
}

fn wfi_ends_by_a_timer() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        "mov x6, #1",
        "mrs x7, cntfrq_el0",
        "mov x8, #100",
        "udiv x7, x7, x8",
        "mrs x9, cntvct_el0",
        "msr cntv_tval_el0, x7",
        "msr cntv_ctl_el0, x6",
        "isb",
        "1: wfi",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "ldr w1, [x0, #108]",
        "cbz w1, 1b",
        "isb",
        "mrs x10, cntvct_el0",
        "sub x10, x10, x9",
        "cmp x10, x7",
        "cset x1, hs",
        result!("x1"),
        // Masked interrupts end the wait as well.
        "msr daifset, #2",
        "msr cntp_tval_el0, x7",
        "msr cntp_ctl_el0, x6",
        "isb",
        "wfi",
        "mov x1, #2",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [1, 2]);
    Ok(())
}

fn wfi_is_interrupted() -> Outcome {
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    rkvm_l1::sys::catch(libc::SIGUSR1);
    let mut m = Machine::new(guest!["wfi", done!()]);
    let (tid, done) = (AtomicI32::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(std::time::Duration::from_millis(5));
                let t = tid.load(Ordering::Acquire);
                if t != 0 {
                    rkvm_l1::sys::kick(t, libc::SIGUSR1);
                }
            }
        });
        for _ in 0..5 {
            tid.store(rkvm_l1::sys::tid(), Ordering::Release);
            assert_eq!(m.cpu().run(), Err(libc::EINTR));
        }
        done.store(true, Ordering::Release);
    });
    // It waits still: nothing is pending.
    assert_eq!(m.cpu().exit(), Exit::Intr);
    Ok(())
}

fn wfe_does_not_wait() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x5, #1000",
        "1: sevl",
        "wfe",
        "wfe",
        "yield",
        "subs x5, x5, #1",
        "sev",
        "b.ne 1b",
        "mov x1, #3",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [3]);
    Ok(())
}

fn counter_goes_on() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x5, #1000",
        "mrs x1, cntvct_el0",
        "1: isb",
        "mrs x2, cntvct_el0",
        "cmp x2, x1",
        "b.lo 2f",
        "mov x1, x2",
        "isb",
        "mrs x3, cntpct_el0",
        "subs x5, x5, #1",
        "b.ne 1b",
        "mov x1, #1",
        result!("x1"),
        done!(),
        "2: ",
        result!("x2"),
        "b 2b",
    ]);
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}
