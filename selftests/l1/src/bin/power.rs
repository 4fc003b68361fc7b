// SPDX-License-Identifier: GPL-2.0

//! A host that sleeps, or that is replaced by another kernel, while guests run. See selftests/power/run.

use clap::Parser;
use iced_x86::code_asm::*;
use kvm_ioctls::Kvm;
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::{sys, Irqchip, Machine, Mode};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
enum Job {
    /// Sleeps (to RAM) with guests running; they and new ones must run afterwards.
    Suspend,
    /// Runs guests until the machine ends.
    Spin,
    /// Runs a guest on each processor, once.
    Once,
}

/// Where the guest of vCPU `i` counts.
fn counter(i: usize) -> u64 {
    kit::DATA + 8 * i as u64
}

/// vCPUs that count, each in a place of its own.
fn spinners(n: usize) -> Machine {
    let m = Machine::with(Mode::Long, Irqchip::Split, n);
    for i in 0..n {
        let at = CODE + 0x100 * i as u64;
        m.code(at, 64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(qword_ptr(counter(i)))?;
            a.jmp(again)
        })
        .expect("code");
        m.cpus[i].start(Mode::Long, at, i as u64);
    }
    m
}

fn pin(cpu: usize) {
    // SAFETY: a whole set of ours.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set),
            0
        );
    }
}

/// A guest on each processor.
fn once() {
    assert_eq!(
        Kvm::new_with_path(c"/dev/rkvm")
            .expect("open")
            .get_api_version(),
        12
    );
    for cpu in 0..sys::cpus() {
        pin(cpu);
        let mut m = Machine::new(Mode::Long, kit::done).expect("machine");
        m.cpu().results();
        println!("a guest ran on processor {cpu}");
    }
}

/// Runs vCPUs until told to end; a signal (the freezer's, too) only interrupts.
fn run(m: &Machine, end: &AtomicBool, body: impl FnOnce()) {
    std::thread::scope(|s| {
        for c in &m.cpus {
            let fd = c.raw();
            s.spawn(move || {
                while !end.load(Ordering::Acquire) {
                    assert_eq!(sys::call(fd, sys::RUN, 0), Err(libc::EINTR));
                }
            });
        }
        body();
    });
}

/// Waits until every counter has moved.
fn advance(m: &Machine) {
    let read = || -> Vec<u64> { (0..m.cpus.len()).map(|i| m.ram.u64(counter(i))).collect() };
    let (before, since) = (read(), Instant::now());
    while read().iter().zip(&before).any(|(now, then)| now <= then) {
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{before:?}: no progress"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn suspend() {
    sys::catch(libc::SIGUSR1);
    // More vCPUs than processors: one waits for its turn when the host goes to sleep.
    let m = spinners(sys::cpus() + 1);
    let end = AtomicBool::new(false);
    run(&m, &end, || {
        advance(&m);
        for _ in 0..2 {
            let alarm = "/sys/class/rtc/rtc0/wakealarm";
            fs::write(alarm, "0").expect("no alarm");
            fs::write(alarm, "+4").expect("alarm");
            fs::write("/sys/power/mem_sleep", "deep").expect("S3");
            fs::write("/sys/power/state", "mem").expect("sleep");
            println!("awake again");
            advance(&m);
        }
        end.store(true, Ordering::Release);
        // Each thread checks the flag after a signal.
        for t in fs::read_dir("/proc/self/task").expect("tasks") {
            let name = t.expect("task").file_name();
            let tid: i32 = name.to_string_lossy().parse().expect("number");
            if tid != sys::tid() {
                sys::kick(tid, libc::SIGUSR1);
            }
        }
    });
    drop(m);
    once();
}

fn main() {
    let job = Job::parse();
    rkvm_l1::set_device(None);
    match job {
        Job::Suspend => suspend(),
        Job::Once => once(),
        Job::Spin => {
            let m = spinners(sys::cpus() + 1);
            let end = AtomicBool::new(false);
            run(&m, &end, || {
                advance(&m);
                println!("guests run");
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
    }
}
