// SPDX-License-Identifier: GPL-2.0

//! Things done at the same time, and processes that end in the middle.

use super::ioctls::{line, set_line};
use super::smp::with_others;
use crate::harness::tests;
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::machine::{x, Machine, PC, PSCI};
use rkvm_l1::ram::Ram;
use rkvm_l1::{done, gic_on, guest, skip, sys, Exit, Outcome};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

tests![
    two_threads_one_vcpu,
    ioctls_while_running,
    counters_move_only_while_stopped,
    signal_ends_run,
    immediate_exit,
    immediate_exit_completes_a_read,
    slots_change_while_running,
    munmap_while_running,
    dirty_log_while_running,
    lines_change_while_running,
    killed_while_running,
    killed_with_many_vcpus,
    descriptors_closed_while_running,
    migrates_between_cpus,
    cpu_hotplug,
    vm_churn,
    vmids_come_back,
];

/// A guest that counts at DATA for ever.
fn spinner() -> &'static [u8] {
    guest![
        "1: ldr x1, [x27]",
        "add x1, x1, #1",
        "str x1, [x27]",
        "b 1b",
    ]
}

fn ms(n: u64) {
    std::thread::sleep(Duration::from_millis(n));
}

/// A vCPU's page, for the thread that runs it.
struct Page(*mut kvm_run);

// SAFETY: only the vCPU's thread looks at it, between runs.
unsafe impl Sync for Page {}

/// Runs the first vCPU in a thread of its own while `f` runs; the thread's KVM_RUN may end with what `ok` allows.
fn while_running(m: &Machine, ok: fn(Result<i32, i32>) -> bool, f: impl FnOnce()) {
    sys::catch(libc::SIGUSR1);
    let (tid, stop) = (AtomicI32::new(0), AtomicBool::new(false));
    let (fd, page) = (m.cpus[0].raw(), Page(m.cpus[0].page_ptr()));
    std::thread::scope(|s| {
        s.spawn(|| {
            let page = &page;
            tid.store(sys::tid(), Ordering::Release);
            while !stop.load(Ordering::Acquire) {
                let r = sys::call(fd, sys::RUN, 0);
                assert!(
                    r == Err(libc::EINTR) || ok(r),
                    "{r:?}, exit {}, exception {:x?}",
                    // SAFETY: the vCPU's page, which is mapped as long as it.
                    unsafe { (*page.0).exit_reason },
                    m.exception()
                );
            }
            tid.store(0, Ordering::Release);
        });
        while tid.load(Ordering::Acquire) == 0 {
            ms(1);
        }
        f();
        stop.store(true, Ordering::Release);
        loop {
            match tid.load(Ordering::Acquire) {
                0 => break,
                t => sys::kick(t, libc::SIGUSR1),
            }
            ms(1);
        }
    });
}

fn never(_: Result<i32, i32>) -> bool {
    false
}

/// Waits until the guest has counted on.
fn goes_on(m: &Machine) {
    let before = m.ram.u64(kit::DATA);
    for _ in 0..5000 {
        if m.ram.u64(kit::DATA) != before {
            return;
        }
        ms(1);
    }
    panic!("the guest stands at {before}");
}

fn two_threads_one_vcpu() -> Outcome {
    let m = Machine::new(guest![
        "1: str xzr, [x28]",
        "ldr x1, [x27]",
        "add x1, x1, #1",
        "str x1, [x27]",
        "b 1b",
    ]);
    let fd = m.cpus[0].raw();
    let exits = AtomicU32::new(0);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..500 {
                    // One waits while the other runs.
                    assert_eq!(sys::call(fd, sys::RUN, 0), Ok(0));
                    exits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(exits.into_inner(), 1000);
    assert_eq!(m.ram.u64(kit::DATA), 999);
    Ok(())
}

fn ioctls_while_running() -> Outcome {
    let m = Machine::new(spinner());
    while_running(&m, never, || {
        for n in 0..200u64 {
            // Of the VM: at once. Of the vCPU: when it is out.
            assert_eq!(
                set_line(&m, line(KVM_ARM_IRQ_TYPE_SPI, 0, 40), (n & 1) as u32),
                Ok(0)
            );
            assert!(sys::call(m.raw(), sys::CHECK_EXTENSION, 1).is_ok());
        }
        goes_on(&m);
    });
    assert!(m.cpus[0].reg(PC) >= CODE);
    Ok(())
}

fn counters_move_only_while_stopped() -> Outcome {
    let m = Machine::new(spinner());
    let mut offset = kvm_arm_counter_offset::default();
    while_running(&m, never, || {
        goes_on(&m);
        for _ in 0..20 {
            let r = sys::with(m.raw(), sys::ARM_SET_COUNTER_OFFSET, &mut offset);
            assert_eq!(r, Err(libc::EBUSY));
        }
        goes_on(&m);
    });
    let r = sys::with(m.raw(), sys::ARM_SET_COUNTER_OFFSET, &mut offset);
    assert_eq!(r, Ok(0));
    Ok(())
}

fn signal_ends_run() -> Outcome {
    let m = Machine::new(spinner());
    for _ in 0..10 {
        while_running(&m, never, || goes_on(&m));
    }
    Ok(())
}

fn immediate_exit() -> Outcome {
    let mut m = Machine::new(spinner());
    for _ in 0..10 {
        m.cpu().page().immediate_exit = 1;
        assert_eq!(m.cpu().run(), Err(libc::EINTR));
    }
    assert_eq!(m.ram.u64(kit::DATA), 0);
    Ok(())
}

fn immediate_exit_completes_a_read() -> Outcome {
    let mut m = Machine::new(guest!["ldr x1, [x19]", "str x1, [x28]", done!()]);
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    assert_eq!(
        m.cpu().run(),
        Ok(Exit::Read {
            gpa: kit::MMIO,
            len: 8
        })
    );
    m.cpu().answer(&[42]);
    m.cpu().page().immediate_exit = 1;
    assert_eq!(m.cpu().run(), Err(libc::EINTR));
    // Done: the register has it, and the guest is behind the load.
    assert_eq!((m.cpus[0].reg(x(1)), m.cpus[0].reg(PC)), (42, CODE + 4));
    m.cpu().page().immediate_exit = 0;
    assert_eq!(m.cpu().results(), [42]);
    Ok(())
}

const MORE: u64 = 0x8000_0000;

/// A guest that reads and writes 64 pages from MORE on, and counts.
fn walker() -> &'static [u8] {
    guest![
        "1: mov x20, #64",
        "mov x2, x19",
        "2: ldr x1, [x2]",
        "add x1, x1, #1",
        "str x1, [x2]",
        "add x2, x2, #4096",
        "subs x20, x20, #1",
        "b.ne 2b",
        "ldr x1, [x27]",
        "add x1, x1, #1",
        "str x1, [x27]",
        "b 1b",
    ]
}

fn with_walker() -> (Machine, Ram) {
    let m = Machine::new(walker());
    m.cpus[0].set(x(19), MORE).expect("x19");
    let r = Ram::anon(MORE, 64 * 4096);
    assert_eq!(m.slot(1, &r, 0), Ok(0));
    (m, r)
}

fn slots_change_while_running() -> Outcome {
    let (m, r) = with_walker();
    // Without the slot, its accesses are a device's.
    while_running(
        &m,
        |r| r == Ok(0),
        || {
            for n in 0..100 {
                assert_eq!(m.region(1, 0, MORE, 0, 0), Ok(0));
                let flags = if n % 3 == 0 { KVM_MEM_READONLY } else { 0 };
                assert_eq!(m.slot(1, &r, flags), Ok(0));
                if n % 10 == 0 && flags == 0 {
                    goes_on(&m);
                }
            }
            assert_eq!(m.region(1, 0, MORE, 0, 0), Ok(0));
            assert_eq!(m.slot(1, &r, 0), Ok(0));
            goes_on(&m);
        },
    );
    Ok(())
}

fn munmap_while_running() -> Outcome {
    let (m, r) = with_walker();
    while_running(
        &m,
        |r| r == Err(libc::EFAULT),
        || {
            for _ in 0..100 {
                goes_on(&m);
                // SAFETY: our own mapping.
                unsafe {
                    libc::munmap(r.at(0), 64 * 4096);
                    let p = libc::mmap(
                        r.at(0),
                        64 * 4096,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                        -1,
                        0,
                    );
                    assert_eq!(p, r.at(0));
                }
            }
            goes_on(&m);
        },
    );
    Ok(())
}

fn dirty_log_while_running() -> Outcome {
    let (m, r) = with_walker();
    assert_eq!(m.slot(1, &r, KVM_MEM_LOG_DIRTY_PAGES), Ok(0));
    while_running(&m, never, || {
        let mut bits = 0u64;
        for _ in 0..50 {
            goes_on(&m);
            goes_on(&m);
            let mut l = kvm_dirty_log {
                slot: 1,
                padding1: 0,
                __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: (&raw mut bits).cast(),
                },
            };
            assert_eq!(sys::with(m.raw(), sys::GET_DIRTY_LOG, &mut l), Ok(0));
            // A whole round has been made since the last time.
            assert_eq!(bits, u64::MAX);
        }
    });
    Ok(())
}

fn lines_change_while_running() -> Outcome {
    let mut m = Machine::with(3);
    m.code(
        CODE,
        guest![
            gic_on!(),
            "mov x0, #0x08000000",
            // Edges: levels would keep it busy.
            "mov w1, #0xaaaaaaaa",
            "str w1, [x0, #0xc08]",
            "str w1, [x0, #0xc0c]",
            "str w1, [x0, #0xc10]",
            "str w1, [x0, #0xc14]",
            "mov w1, #-1",
            "str w1, [x0, #0x104]",
            "str w1, [x0, #0x108]",
            "msr daifclr, #2",
            "2: mov x20, #0x10000",
            "1: subs x20, x20, #1",
            "b.ne 1b",
            "str xzr, [x28]",
            "b 2b",
        ],
    );
    let vm = m.raw();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut n = 0u32;
            while !stop.load(Ordering::Acquire) {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let irq = line(KVM_ARM_IRQ_TYPE_SPI, 0, 32 + (n >> 8) % 64);
                let mut l = kvm_irq_level {
                    __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq },
                    level: n >> 20 & 1,
                };
                assert_eq!(sys::with(vm, sys::IRQ_LINE, &mut l), Ok(0));
            }
            // All low in the end.
            for i in 32..96 {
                let mut l = kvm_irq_level {
                    __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 {
                        irq: line(KVM_ARM_IRQ_TYPE_SPI, 0, i),
                    },
                    level: 0,
                };
                assert_eq!(sys::with(vm, sys::IRQ_LINE, &mut l), Ok(0));
            }
        });
        with_others(&mut m, |c| {
            for _ in 0..200 {
                let e = c.run();
                assert!(
                    matches!(
                        e,
                        Ok(Exit::Write {
                            gpa: kit::RESULT,
                            ..
                        })
                    ),
                    "{e:x?}"
                );
            }
        });
        stop.store(true, Ordering::Release);
    });
    let taken: u32 = (32..96).map(|i| m.count(0, i)).sum();
    assert!(taken > 0, "no interrupt was taken");
    Ok(())
}

/// A child with `n` vCPUs that all run is killed.
fn killed(n: usize) {
    // SAFETY: the child runs what follows, and is killed.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let mut m = Machine::bare();
        for i in 0..n {
            m.add_cpu(i, PSCI);
        }
        m.add_gic();
        m.code(CODE, spinner());
        let mut cpus = std::mem::take(&mut m.cpus);
        std::thread::scope(|s| {
            for c in &mut cpus {
                s.spawn(move || c.run());
            }
        });
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) };
    }
    ms(200);
    let mut status = 0;
    // SAFETY: our own child.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, &mut status, 0);
    }
    assert!(
        libc::WIFSIGNALED(status),
        "the child ended with {status:#x}"
    );
}

fn killed_while_running() -> Outcome {
    for _ in 0..5 {
        killed(1);
    }
    Ok(())
}

fn killed_with_many_vcpus() -> Outcome {
    for _ in 0..3 {
        killed(8);
    }
    Ok(())
}

fn descriptors_closed_while_running() -> Outcome {
    let m = Machine::new(spinner());
    let Machine {
        cpus,
        vm,
        gic,
        ram,
        kvm,
    } = m;
    sys::catch(libc::SIGUSR1);
    let fd = cpus[0].raw();
    let tid = AtomicI32::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::tid(), Ordering::Release);
            assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
            tid.store(-1, Ordering::Release);
        });
        ms(50);
        drop((vm, gic, kvm));
        // SAFETY: the vCPU's descriptor is closed under KVM_RUN, which holds it.
        unsafe { libc::close(fd) };
        ms(50);
        while tid.load(Ordering::Acquire) != -1 {
            sys::kick(tid.load(Ordering::Acquire), libc::SIGUSR1);
            ms(1);
        }
    });
    // Its descriptor is closed already.
    std::mem::forget(cpus);
    drop(ram);
    Ok(())
}

/// Binds a thread to one CPU.
fn bind(tid: i32, cpu: usize) {
    // SAFETY: a set of ours.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &set);
    }
}

fn migrates_between_cpus() -> Outcome {
    let n = sys::cpus();
    if n < 2 {
        return skip("two CPUs");
    }
    sys::catch(libc::SIGUSR1);
    let m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        "mov x6, #1",
        "mov x5, #0x4000",
        // A timer all the time.
        "1: msr cntv_tval_el0, x5",
        "msr cntv_ctl_el0, x6",
        "isb",
        "2: ldr x1, [x27]",
        "add x1, x1, #1",
        "str x1, [x27]",
        "mrs x1, cntv_ctl_el0",
        "cbnz x1, 2b",
        "b 1b",
    ]);
    let (tid, stop) = (AtomicI32::new(0), AtomicBool::new(false));
    let fd = m.cpus[0].raw();
    std::thread::scope(|s| {
        s.spawn(|| {
            tid.store(sys::tid(), Ordering::Release);
            while !stop.load(Ordering::Acquire) {
                assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
            }
            tid.store(-1, Ordering::Release);
        });
        while tid.load(Ordering::Acquire) == 0 {
            ms(1);
        }
        for i in 0..60 {
            bind(tid.load(Ordering::Acquire), i % n);
            goes_on(&m);
        }
        let before = m.count(0, kit::VTIMER);
        for _ in 0..5000 {
            if m.count(0, kit::VTIMER) > before {
                break;
            }
            ms(1);
        }
        assert!(m.count(0, kit::VTIMER) > before, "the timer does not come");
        stop.store(true, Ordering::Release);
        while tid.load(Ordering::Acquire) != -1 {
            sys::kick(tid.load(Ordering::Acquire), libc::SIGUSR1);
            ms(1);
        }
    });
    Ok(())
}

/// Turns the second CPU off or on.
fn online(on: bool) -> bool {
    let file = "/sys/devices/system/cpu/cpu1/online";
    std::fs::write(file, if on { "1" } else { "0" }).is_ok()
}

fn cpu_hotplug() -> Outcome {
    if sys::cpus() < 2 || !online(true) {
        return skip("a CPU that can be turned off");
    }
    let m = Machine::new(spinner());
    while_running(&m, never, || {
        for _ in 0..5 {
            assert!(online(false));
            goes_on(&m);
            assert!(online(true));
            goes_on(&m);
        }
    });
    // A guest runs on the CPU that was away.
    bind(0, 1);
    let mut m = Machine::new(guest!["mov x1, #1", "str x1, [x28]", done!()]);
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}

fn vm_churn() -> Outcome {
    for n in 0..50u64 {
        let mut m = Machine::new(guest!["str x5, [x28]", done!()]);
        m.cpus[0].set(x(5), n).expect("x5");
        assert_eq!(m.cpu().results(), [n]);
    }
    Ok(())
}

/// More VMs, one after the other, than VMIDs of eight bits: what one has left in the TLB is not the next one's.
fn vmids_come_back() -> Outcome {
    let code = guest!["ldr x1, [x19]", "str x1, [x28]", done!()];
    for n in 0..300u64 {
        let mut m = Machine::new(code);
        m.cpus[0].set(x(19), MORE).expect("x19");
        let r = Ram::anon(MORE, 0x1000);
        r.set64(MORE, n);
        assert_eq!(m.slot(1, &r, 0), Ok(0));
        assert_eq!(m.cpu().results(), [n]);
    }
    Ok(())
}
