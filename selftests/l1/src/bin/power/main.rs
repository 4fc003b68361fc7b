// SPDX-License-Identifier: GPL-2.0

//! A host that sleeps, whose processors come and go, or that is replaced by another kernel, while guests run. See selftests/power/run.

#[cfg(target_arch = "aarch64")]
#[path = "arm64.rs"]
mod guests;
#[cfg(target_arch = "x86_64")]
#[path = "x86.rs"]
mod guests;

use clap::Parser;
use kvm_ioctls::Kvm;
use rkvm_l1::kit;
use rkvm_l1::{sys, Machine};
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
enum Job {
    /// Sleeps (to RAM, or else as deep as it goes) with guests running; they and new ones must run afterwards.
    Suspend,
    /// Takes processors away and gives them back, with guests running.
    Hotplug,
    /// Runs guests until the machine ends.
    Spin,
    /// Runs a guest on each processor, once.
    Once,
    /// Has a VM and a vCPU open, but not the device, until it is killed.
    Hold,
}

/// Where the guest of vCPU `i` counts.
pub fn counter(i: usize) -> u64 {
    kit::DATA + 8 * i as u64
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
        guests::done();
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

/// Does `body` while more vCPUs run than there are processors: one waits for its turn whenever it is. They must go on
/// afterwards, and new ones start.
fn with_guests(body: impl FnOnce(&Machine)) {
    sys::catch(libc::SIGUSR1);
    let m = guests::spinners(sys::cpus() + 1);
    let end = AtomicBool::new(false);
    run(&m, &end, || {
        advance(&m);
        body(&m);
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

fn suspend() {
    let kinds = fs::read_to_string("/sys/power/mem_sleep").expect("mem_sleep");
    let kind = ["deep", "s2idle"].into_iter().find(|k| kinds.contains(k));
    let kind = kind.expect("a way to sleep");
    with_guests(|m| {
        for _ in 0..2 {
            let alarm = "/sys/class/rtc/rtc0/wakealarm";
            fs::write(alarm, "0").expect("no alarm");
            fs::write(alarm, "+4").expect("alarm");
            fs::write("/sys/power/mem_sleep", kind).expect("kind of sleep");
            fs::write("/sys/power/state", "mem").expect("sleep");
            println!("awake again from {kind}");
            advance(m);
        }
    });
}

/// Every processor that can go goes, and comes back.
fn hotplug() {
    with_guests(|m| {
        let mut went = 0;
        for _ in 0..3 {
            for cpu in 0..sys::cpus() {
                let online = format!("/sys/devices/system/cpu/cpu{cpu}/online");
                // The first may have to stay.
                if fs::exists(&online).unwrap_or(false) {
                    fs::write(&online, "0").expect("off");
                    advance(m);
                    fs::write(&online, "1").expect("on");
                    advance(m);
                    went += 1;
                }
            }
        }
        assert!(went > 0, "no processor can go");
        println!("processors went and came {went} times");
    });
}

fn hold() {
    let Machine { vm, cpus, .. } = guests::spinners(1);
    println!("held");
    loop {
        std::thread::sleep(Duration::from_secs(1));
        // Still there.
        assert!(vm.as_raw_fd() >= 0 && cpus.len() == 1);
    }
}

fn main() {
    let job = Job::parse();
    rkvm_l1::set_device(None);
    match job {
        Job::Suspend => suspend(),
        Job::Hotplug => hotplug(),
        Job::Once => once(),
        Job::Hold => hold(),
        Job::Spin => {
            let m = guests::spinners(sys::cpus() + 1);
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
