// SPDX-License-Identifier: GPL-2.0

//! Tests of the KVM ABI in L1. Each runs in a process of its own, under a time limit; the last line is `N passed, N failed`.

mod harness;

mod code;
mod debug;
mod events;
mod ioctls;
mod ioeventfd;
mod lapic;
mod memory;
mod msi;
mod msrs;
mod races;
mod refusals;
mod roundtrip;
mod smp;
mod time;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Tests of the KVM ABI in L1")]
struct Args {
    /// The device node [default: /dev/rkvm, or /dev/kvm where there is none]
    #[arg(long)]
    device: Option<String>,
    /// Only tests whose name matches this regular expression
    #[arg(long)]
    filter: Option<String>,
    /// Only print the names
    #[arg(long)]
    list: bool,
    /// How many tests to run at the same time
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds that a test may take
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Run each test this often
    #[arg(long, default_value_t = 1)]
    repeat: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    rkvm_l1::set_device(args.device.clone());
    let all = [
        ("ioctls", ioctls::TESTS),
        ("refusals", refusals::TESTS),
        ("roundtrip", roundtrip::TESTS),
        ("code", code::TESTS),
        ("events", events::TESTS),
        ("debug", debug::TESTS),
        ("msrs", msrs::TESTS),
        ("lapic", lapic::TESTS),
        ("smp", smp::TESTS),
        ("msi", msi::TESTS),
        ("ioeventfd", ioeventfd::TESTS),
        ("memory", memory::TESTS),
        ("races", races::TESTS),
        ("time", time::TESTS),
    ];
    harness::run(
        &all,
        &harness::Options {
            filter: args.filter,
            list: args.list,
            threads: args.threads.max(1),
            timeout: args.timeout,
            repeat: args.repeat,
        },
    )
}
