// SPDX-License-Identifier: GPL-2.0

//! Tests of the KVM ABI in L1. Each runs in a process of its own, under a time limit; the last line is `N passed, N failed`.

mod harness;

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm64::AREAS;
use clap::Parser;
use std::process::ExitCode;
#[cfg(target_arch = "x86_64")]
use x86::AREAS;

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
    /// A file that names the tests which the emulator's own faults break
    #[arg(long)]
    except: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let except = match args.except.as_deref().map(std::fs::read_to_string) {
        None => Ok(Default::default()),
        Some(Ok(text)) => harness::exceptions(&text),
        Some(Err(e)) => Err(e.to_string()),
    };
    let except = match except {
        Ok(e) => e,
        Err(e) => {
            eprintln!("--except: {e}");
            return ExitCode::from(2);
        }
    };
    rkvm_l1::set_device(args.device.clone());
    harness::run(
        AREAS,
        &harness::Options {
            filter: args.filter,
            list: args.list,
            threads: args.threads.max(1),
            timeout: args.timeout,
            repeat: args.repeat,
            except,
        },
    )
}
