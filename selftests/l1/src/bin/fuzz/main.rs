// SPDX-License-Identifier: GPL-2.0

//! Structured random ioctls: right sizes and plausible values, on many descriptors, from several threads that also
//! take memory away from under the guests. The kernel must not complain, and must have given everything back at the end.
//!
//! A thread's choices follow from the seed and its number alone (what they meet depends on the other threads, too).

mod args;
#[cfg(target_arch = "aarch64")]
mod arm64;
mod faults;
mod health;
mod rng;
mod world;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64 as family;
use clap::Parser;
use rkvm_l1::sys::IOCTLS;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
#[cfg(target_arch = "x86_64")]
use x86 as family;

#[derive(Parser)]
#[command(about = "Structured random ioctls")]
struct Args {
    /// The device node
    #[arg(long)]
    device: Option<String>,
    /// What the random numbers start from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many ioctls, by all threads together
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// How many threads
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Seconds after which to stop, whatever the count
    #[arg(long)]
    seconds: Option<u64>,
    /// Mebibytes by which slab memory, or memory that is not available, may have grown at the end. Allocators keep
    /// some of what they were given, so it cannot be nothing.
    #[arg(long, default_value_t = 16)]
    tolerance: u64,
}

/// errno 0 to 133, and one for the rest.
const ERRNOS: usize = 135;

/// How often each ioctl ended in each way.
pub struct Counts(Vec<[AtomicU64; ERRNOS]>);

impl Counts {
    fn new() -> Counts {
        Counts(
            IOCTLS
                .iter()
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
        )
    }

    /// One ioctl has ended.
    pub fn add(&self, ioctl: usize, result: Result<i32, i32>) {
        let e = result
            .err()
            .map_or(0, |e| usize::try_from(e).unwrap_or(ERRNOS))
            .min(ERRNOS - 1);
        self.0[ioctl][e].fetch_add(1, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.0
            .iter()
            .flatten()
            .map(|c| c.load(Ordering::Relaxed))
            .sum()
    }

    fn print(&self) {
        for (i, ioctl) in IOCTLS.iter().enumerate() {
            let mut line = format!("{:24}", ioctl.name);
            for (e, c) in self.0[i].iter().enumerate() {
                let n = c.load(Ordering::Relaxed);
                if n > 0 {
                    let what = if e == 0 {
                        "ok".into()
                    } else {
                        format!("errno {e}")
                    };
                    line += &format!(" {what}: {n}");
                }
            }
            println!("{line}");
        }
    }
}

fn fuzz(args: &Args, count: u64, counts: &Counts) {
    let stop = AtomicBool::new(false);
    let world = world::World::new(args.threads);
    let start = Instant::now();
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..args.threads)
            .map(|t| {
                let (world, stop) = (&world, &stop);
                let n = count / args.threads as u64;
                s.spawn(move || world::Worker::new(world, counts, t, args.seed).work(n, stop))
            })
            .collect();
        let (mut said, mut before) = (Instant::now(), 0);
        while !workers.iter().all(|w| w.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            if said.elapsed().as_secs() >= 10 {
                said = Instant::now();
                let now = counts.total();
                println!("{now} ioctls after {} s", start.elapsed().as_secs());
                // A vCPU may run under a mask that another thread has set.
                if now == before {
                    world::kick_all();
                }
                before = now;
            }
            if args.seconds.is_some_and(|s| start.elapsed().as_secs() >= s) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    println!(
        "{} ioctls after {} s",
        counts.total(),
        start.elapsed().as_secs()
    );
}

fn main() -> ExitCode {
    let args = Args::parse();
    rkvm_l1::set_device(args.device.clone());
    println!(
        "seed {} threads {} count {}",
        args.seed, args.threads, args.count
    );
    faults::prepare();
    // Caches and allocators settle first.
    fuzz(&args, args.count / 20, &Counts::new());
    let before = health::Memory::now();
    let counts = Counts::new();
    fuzz(&args, args.count, &counts);
    counts.print();
    let mut failed = 0;
    let after = health::Memory::settled(&before, args.tolerance);
    match before.compare(&after, args.tolerance) {
        Ok(text) => println!("memory: {text}"),
        Err(text) => {
            println!("FAIL memory: {text}");
            failed += 1;
        }
    }
    match std::panic::catch_unwind(family::fresh_vm_runs) {
        Ok(Ok(())) => println!("a fresh VM runs"),
        e => {
            println!("FAIL a fresh VM does not run: {e:?}");
            failed += 1;
        }
    }
    println!("{} passed, {failed} failed", 2 - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
