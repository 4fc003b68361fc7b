// SPDX-License-Identifier: GPL-2.0

//! Counts what an exit costs: a guest does the same thing many times over and reads its counter before and after.
//!
//! In an L1 started with `--icount` one tick of the TSC, one ns of arm64's counter, is one instruction that L1 executes, so
//! the figures are exact; anywhere else they are ticks, or ns. Prints `raw NAME N` for each kind of exit: the least of several rounds, for one exit.

#[cfg_attr(target_arch = "x86_64", path = "x86.rs")]
#[cfg_attr(target_arch = "aarch64", path = "arm64.rs")]
mod arch;

use arch::{Kind, KINDS};
use clap::Parser;
use regex_lite::Regex;
use rkvm_l1::sys;
use std::time::{Duration, Instant};
use wait_timeout::ChildExt;

#[derive(Parser)]
#[command(about = "Counts what an exit costs")]
struct Args {
    /// The device node
    #[arg(long)]
    device: Option<String>,
    /// Only kinds of exit whose name matches this regular expression
    #[arg(long)]
    filter: Option<String>,
    /// How often each is measured; the first is a warm-up
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Print all rounds
    #[arg(long)]
    verbose: bool,
    /// Instead: run a command, which is to end with this status, some times, and print `raw boot N`, the
    /// least of the nanoseconds that L1 was not idle meanwhile
    #[arg(long)]
    time: Option<i32>,
    /// So many times the command may come to no end; it is run again then
    #[arg(long, default_value_t = 0)]
    forgive: usize,
    /// A command that needs as many seconds, without the idle time, comes to no end.
    #[arg(long, default_value_t = 6)]
    limit: u64,
    /// The command
    #[arg(last = true)]
    command: Vec<String>,
}

/// Exits in a round.
const N: u32 = 64;

/// How often the command is timed.
const BOOTS: usize = 6;

/// How often a kind of exit is tried.
const TRIES: usize = 3;

/// [`arch::measure`], again if the guest does not come to its end: what did is as good as ever, and why the
/// other did not is printed.
fn measure_again(k: &Kind, rounds: usize) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    for _ in 1..TRIES {
        match arch::measure(k, rounds) {
            Ok(all) => return Ok(all),
            Err(e) => println!("{}: {e}; measured again", k.name),
        }
    }
    arch::measure(k, rounds)
}

/// Waits until nothing else runs: after its boot a kernel goes on with tests of its own (of its ciphers, for
/// a minute), and what they take would be in the figures.
fn settle() -> Result<(), Box<dyn std::error::Error>> {
    const STEP: Duration = Duration::from_millis(250);
    let limit = Instant::now() + Duration::from_secs(300);
    let mut quiet = 0;
    while quiet < 4 {
        let before = idle()?;
        let start = Instant::now();
        std::thread::sleep(STEP);
        let elapsed = start.elapsed().as_nanos() as u64;
        // One processor's worth; /proc/uptime counts hundredths of a second.
        let busy = elapsed.saturating_sub(idle()? - before);
        quiet = if busy < elapsed / 10 { quiet + 1 } else { 0 };
        if Instant::now() > limit {
            return Err("this computer does not come to rest".into());
        }
    }
    Ok(())
}

/// Nanoseconds that the processors have been idle.
fn idle() -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let seconds: f64 = text
        .split_whitespace()
        .nth(1)
        .ok_or("/proc/uptime")?
        .parse()?;
    Ok((seconds * 1e9) as u64)
}

/// Runs the command to its end; the nanoseconds that this computer was not idle meanwhile, or `None` if they became
/// too many.
fn run(
    command: &[String],
    status: i32,
    limit: Duration,
) -> Result<Option<u64>, Box<dyn std::error::Error>> {
    let (program, args) = command.split_first().ok_or("no command")?;
    settle()?;
    let (start, idle_start) = (sys::now(), idle()?);
    let mut child = std::process::Command::new(program).args(args).spawn()?;
    // It is looked at often enough, and seldom enough not to count.
    let watch = Duration::from_millis(500);
    let (got, ns, idle_ns) = loop {
        let got = child.wait_timeout(watch)?;
        let (ns, idle_ns) = (sys::now() - start, idle()? - idle_start);
        match got {
            Some(got) => break (got, ns, idle_ns),
            None if Duration::from_nanos(ns.saturating_sub(idle_ns)) > limit => {
                child.kill()?;
                child.wait()?;
                println!("elapsed {ns} idle {idle_ns}: came to no end");
                return Ok(None);
            }
            None => {}
        }
    };
    if got.code() != Some(status) {
        return Err(format!("{program}: {got}, not {status}").into());
    }
    println!("elapsed {ns} idle {idle_ns}");
    Ok(Some(ns.saturating_sub(idle_ns)))
}

fn time(args: &Args, status: i32) -> Result<(), Box<dyn std::error::Error>> {
    let mut least = u64::MAX;
    let mut forgive = args.forgive;
    // The first brings the files into memory. While it waits for them time goes by as fast as the machine
    // outside is slow, and with it the guest's timers.
    let mut boots = 0;
    while boots < BOOTS {
        if let Some(busy) = run(&args.command, status, Duration::from_secs(args.limit))? {
            least = least.min(busy);
            boots += 1;
            // Each time, so that something is known if the rest comes to no end.
            println!("raw boot {least}");
        } else {
            forgive = forgive
                .checked_sub(1)
                .ok_or("the command comes to no end")?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    settle()?;
    if let Some(status) = args.time {
        return time(&args, status);
    }
    rkvm_l1::set_device(args.device.clone());
    let filter = args.filter.as_deref().map(Regex::new).transpose()?;
    let mut floor = 0;
    for k in KINDS {
        if k.name != "nothing" && filter.as_ref().is_some_and(|f| !f.is_match(k.name)) {
            continue;
        }
        let all = measure_again(k, args.rounds)?;
        if args.verbose {
            println!("{}: {all:?}", k.name);
        }
        let least = all.iter().skip(1).min().copied().unwrap_or(0);
        if k.name == "nothing" {
            // What reading the TSC costs by itself.
            floor = least;
        } else {
            println!("raw {} {}", k.name, least.saturating_sub(floor));
        }
    }
    Ok(())
}
