// SPDX-License-Identifier: GPL-2.0

//! Several vCPUs: PSCI turns them on and off, they interrupt each other.

use crate::harness::tests;
use kvm_bindings::*;
use rkvm_l1::kit::CODE;
use rkvm_l1::machine::{Exit, Machine};
use rkvm_l1::{done, gic_on, guest, kit, result, sys, Outcome};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

tests![
    cpu_on_starts_it,
    cpu_on_refusals,
    cpu_off_and_on_again,
    affinity_info,
    system_off_stops_all,
    sgi_to_another,
    sgi_to_all_others,
    sgis_back_and_forth,
    many_vcpus,
    migrate_info,
];

/// Runs all vCPUs but the first in threads of their own until `first`, with the first, has returned.
pub fn with_others<T>(m: &mut Machine, first: impl FnOnce(&mut rkvm_l1::Cpu) -> T) -> T {
    sys::catch(libc::SIGUSR1);
    let stop = AtomicBool::new(false);
    let tids: Vec<AtomicI32> = m.cpus.iter().map(|_| AtomicI32::new(0)).collect();
    let (one, others) = m.cpus.split_at_mut(1);
    std::thread::scope(|s| {
        for (c, tid) in others.iter_mut().zip(&tids) {
            let stop = &stop;
            s.spawn(move || {
                tid.store(sys::tid(), Ordering::Release);
                while !stop.load(Ordering::Acquire) {
                    match c.run() {
                        Ok(Exit::Write { gpa, .. }) if gpa != kit::FAULT => {}
                        Err(libc::EINTR) => {}
                        e => panic!("{e:x?}"),
                    }
                }
                tid.store(0, Ordering::Release);
            });
        }
        let r = first(&mut one[0]);
        stop.store(true, Ordering::Release);
        while tids.iter().any(|t| t.load(Ordering::Acquire) != 0) {
            for t in &tids {
                match t.load(Ordering::Acquire) {
                    0 => {}
                    t => sys::kick(t, libc::SIGUSR1),
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        r
    })
}

/// Calls CPU_ON: target in x1, entry in x2, context in x3.
macro_rules! cpu_on {
    () => {
        "mov x0, #0xc4000000
         add x0, x0, #3
         hvc #0"
    };
}

/// Where the others' code is.
const OTHER: u64 = CODE + 0x1000;

fn cpu_on_starts_it() -> Outcome {
    let mut m = Machine::with(2);
    m.code(
        CODE,
        guest![
            "mov x1, #1",
            "mov x2, #0x40000000",
            "add x2, x2, #0x11000",
            "mov x3, #0x5a5a",
            cpu_on!(),
            result!("x0"),
            "1: ldr x1, [x27]",
            "cbz x1, 1b",
            result!("x1"),
            "ldr x1, [x27, #8]",
            result!("x1"),
            "ldr x1, [x27, #16]",
            result!("x1"),
            // On already
            "mov x1, #1",
            cpu_on!(),
            result!("x0"),
            done!(),
        ],
    );
    m.code(
        OTHER,
        guest![
            "mov x27, #0x40000000",
            "add x27, x27, #0x20000",
            "mrs x1, mpidr_el1",
            "and x1, x1, #0xff",
            "str x1, [x27, #8]",
            "mrs x1, sctlr_el1",
            "and x1, x1, #1",
            "str x1, [x27, #16]",
            "dmb sy",
            "str x0, [x27]",
            "1: wfi",
            "b 1b",
        ],
    );
    let r = with_others(&mut m, |c| c.results());
    // Success; its context, its number, its MMU off; ALREADY_ON.
    assert_eq!(r[..4], [0, 0x5a5a, 1, 0]);
    assert_eq!(r[4] as i64, -4);
    Ok(())
}

fn cpu_on_refusals() -> Outcome {
    let mut m = Machine::with(1);
    m.code(
        CODE,
        guest![
            // Itself
            "mov x1, #0",
            cpu_on!(),
            result!("x0"),
            // Nobody
            "mov x1, #7",
            cpu_on!(),
            result!("x0"),
            "mov x1, #0x10000",
            cpu_on!(),
            result!("x0"),
            done!(),
        ],
    );
    let r: Vec<i64> = m.cpu().results().iter().map(|v| *v as i64).collect();
    assert_eq!(r, [-4, -2, -2]);
    Ok(())
}

fn cpu_off_and_on_again() -> Outcome {
    let mut m = Machine::with(2);
    m.code(
        CODE,
        guest![
            "mov x20, #100",
            "1:",
            "mov x1, #1",
            "mov x2, #0x40000000",
            "add x2, x2, #0x11000",
            "mov x3, x20",
            cpu_on!(),
            // ALREADY_ON: it is not off yet.
            "cbnz x0, 1b",
            "2: ldr x1, [x27]",
            "cmp x1, x20",
            "b.ne 2b",
            "subs x20, x20, #1",
            "b.ne 1b",
            result!("x20"),
            done!(),
        ],
    );
    m.code(
        OTHER,
        guest![
            "mov x27, #0x40000000",
            "add x27, x27, #0x20000",
            "str x0, [x27]",
            // CPU_OFF
            "mov x0, #0x84000000",
            "add x0, x0, #2",
            "hvc #0",
            "udf #0",
        ],
    );
    assert_eq!(with_others(&mut m, |c| c.results()), [0]);
    Ok(())
}

fn affinity_info() -> Outcome {
    let mut m = Machine::with(2);
    m.code(
        CODE,
        guest![
            "mov x0, #0xc4000000",
            "add x0, x0, #4",
            "mov x1, #0",
            "mov x2, #0",
            "hvc #0",
            result!("x0"),
            "mov x0, #0xc4000000",
            "add x0, x0, #4",
            "mov x1, #1",
            "mov x2, #0",
            "hvc #0",
            result!("x0"),
            "mov x0, #0xc4000000",
            "add x0, x0, #4",
            "mov x1, #9",
            "mov x2, #0",
            "hvc #0",
            result!("x0"),
            "mov x0, #0xc4000000",
            "add x0, x0, #4",
            "mov x1, #0",
            "mov x2, #9",
            "hvc #0",
            result!("x0"),
            done!(),
        ],
    );
    let r: Vec<i64> = m.cpu().results().iter().map(|v| *v as i64).collect();
    // ON, OFF, INVALID_PARAMETERS twice
    assert_eq!(r, [0, 1, -2, -2]);
    Ok(())
}

fn system_off_stops_all() -> Outcome {
    let mut m = Machine::with(3);
    m.code(
        CODE,
        guest![
            "mov x1, #1",
            "mov x2, #0x40000000",
            "add x2, x2, #0x11000",
            cpu_on!(),
            "1: ldr x1, [x27]",
            "cbz x1, 1b",
            // SYSTEM_OFF
            "mov x0, #0x84000000",
            "add x0, x0, #8",
            "hvc #0",
            done!(),
        ],
    );
    m.code(
        OTHER,
        guest![
            "mov x27, #0x40000000",
            "add x27, x27, #0x20000",
            "1: ldr x1, [x27]",
            "add x1, x1, #1",
            "str x1, [x27]",
            "b 1b",
        ],
    );
    let e = with_others(&mut m, |c| c.run());
    assert!(
        matches!(
            e,
            Ok(Exit::System {
                kind: KVM_SYSTEM_EVENT_SHUTDOWN,
                ..
            })
        ),
        "{e:x?}"
    );
    for c in &m.cpus {
        let mut s = kvm_mp_state::default();
        sys::with(c.raw(), sys::GET_MP_STATE, &mut s).expect("KVM_GET_MP_STATE");
        assert_eq!(s.mp_state, KVM_MP_STATE_STOPPED);
    }
    Ok(())
}

/// vCPU 0 turns all others on, waits until each has said that it is ready, and goes on with `rest`. The others, at
/// [`OTHER`], wait for interrupts, which the kit counts.
macro_rules! starter {
    ($($rest:expr),+ $(,)?) => {
        guest![
            gic_on!(),
            "msr daifclr, #2",
            "mov x20, #1",
            "1: cmp x20, x21",
            "b.eq 2f",
            "mov x1, x20",
            "mov x2, #0x40000000",
            "add x2, x2, #0x11000",
            "mov x3, x20",
            cpu_on!(),
            "cbnz x0, 9f",
            "add x20, x20, #1",
            "b 1b",
            "2: mov x20, #1",
            "3: cmp x20, x21",
            "b.eq 5f",
            "4: ldr x1, [x27, x20, lsl #3]",
            "cbz x1, 4b",
            "add x20, x20, #1",
            "b 3b",
            "9: str x0, [x28, #16]",
            "b 9b",
            "5:",
            $($rest),+
        ]
    };
}

/// x0 is its number.
fn follower() -> &'static [u8] {
    guest![
        "mov x25, x0",
        "mov x27, #0x40000000",
        "add x27, x27, #0x20000",
        "mov x1, #0x40000000",
        "msr vbar_el1, x1",
        "add x1, x1, #0x10000",
        "sub x1, x1, x25, lsl #10",
        "mov sp, x1",
        gic_on!(),
        "msr daifclr, #2",
        "str x25, [x27, x25, lsl #3]",
        "1: wfi",
        "b 1b",
    ]
}

fn machine(n: usize, code: &[u8]) -> Machine {
    let m = Machine::with(n);
    m.code(CODE, code);
    m.code(OTHER, follower());
    m.cpus[0]
        .set(rkvm_l1::machine::x(21), n as u64)
        .expect("x21");
    m
}

fn sgi_to_another() -> Outcome {
    let mut m = machine(
        2,
        starter![
            "mov x5, #0",
            "mov x6, #0x40000000",
            "add x6, x6, #0x5000",
            "mov x9, #2",
            "movk x9, #0x0500, lsl #16",
            "6: msr icc_sgi1r_el1, x9",
            "add x5, x5, #1",
            "7: ldr w1, [x6, #20]",
            "cmp x1, x5",
            "b.ne 7b",
            "cmp x5, #100",
            "b.ne 6b",
            result!("x5"),
            done!(),
        ],
    );
    assert_eq!(with_others(&mut m, |c| c.results()), [100]);
    assert_eq!((m.count(0, 5), m.count(1, 5)), (0, 100));
    Ok(())
}

fn sgi_to_all_others() -> Outcome {
    let mut m = machine(
        4,
        starter![
            "mov x5, #0",
            "6: movz x9, #0x0600, lsl #16",
            "movk x9, #0x100, lsl #32",
            "msr icc_sgi1r_el1, x9",
            "add x5, x5, #1",
            "mov x6, #0x40000000",
            "add x6, x6, #0x5000",
            "7: ldr w1, [x6, #24]",
            "cmp x1, x5",
            "b.ne 7b",
            "add x7, x6, #0x1000",
            "8: ldr w1, [x7, #24]",
            "cmp x1, x5",
            "b.ne 8b",
            "add x7, x7, #0x1000",
            "10: ldr w1, [x7, #24]",
            "cmp x1, x5",
            "b.ne 10b",
            "cmp x5, #30",
            "b.ne 6b",
            result!("x5"),
            done!(),
        ],
    );
    assert_eq!(with_others(&mut m, |c| c.results()), [30]);
    let counts: Vec<u32> = (0..4).map(|v| m.count(v, 6)).collect();
    assert_eq!(counts, [0, 30, 30, 30]);
    Ok(())
}

fn sgis_back_and_forth() -> Outcome {
    // Each waits in WFI until the other has sent.
    let mut m = machine(
        2,
        starter![
            "mov x5, #0",
            "mov x6, #0x40000000",
            "add x6, x6, #0x4000",
            "mov x9, #2",
            "movk x9, #0x0100, lsl #16",
            "6: msr icc_sgi1r_el1, x9",
            "add x5, x5, #1",
            "7: msr daifset, #2",
            "ldr w1, [x6, #4]",
            "cmp x1, x5",
            "b.eq 8f",
            "wfi",
            "msr daifclr, #2",
            "isb",
            "b 7b",
            "8: msr daifclr, #2",
            "cmp x5, #100",
            "b.ne 6b",
            result!("x5"),
            done!(),
        ],
    );
    m.code(
        OTHER,
        guest![
            "mov x25, x0",
            "mov x27, #0x40000000",
            "add x27, x27, #0x20000",
            "mov x1, #0x40000000",
            "msr vbar_el1, x1",
            "add x1, x1, #0x10000",
            "sub x1, x1, x25, lsl #10",
            "mov sp, x1",
            gic_on!(),
            "msr daifclr, #2",
            "str x25, [x27, x25, lsl #3]",
            "mov x5, #0",
            "mov x6, #0x40000000",
            "add x6, x6, #0x5000",
            "mov x9, #1",
            "movk x9, #0x0100, lsl #16",
            "7: msr daifset, #2",
            "ldr w1, [x6, #4]",
            "cmp x1, x5",
            "b.ne 8f",
            "wfi",
            "msr daifclr, #2",
            "isb",
            "b 7b",
            "8: msr daifclr, #2",
            "add x5, x5, #1",
            "msr icc_sgi1r_el1, x9",
            "b 7b",
        ],
    );
    assert_eq!(with_others(&mut m, |c| c.results()), [100]);
    assert_eq!((m.count(0, 1), m.count(1, 1)), (100, 100));
    Ok(())
}

fn many_vcpus() -> Outcome {
    let mut m = machine(8, starter![result!("x20"), done!()]);
    assert_eq!(with_others(&mut m, |c| c.results()), [8]);
    Ok(())
}

fn migrate_info() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x0, #0x84000000",
        "add x0, x0, #6",
        "hvc #0",
        result!("x0"),
        done!(),
    ]);
    // MIGRATE_INFO_TYPE: there is nothing to migrate.
    assert_eq!(m.cpu().results(), [2]);
    Ok(())
}
