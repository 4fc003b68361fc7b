// SPDX-License-Identifier: GPL-2.0

//! Runs tests, each in a child process: a test may kill itself, close what it likes, or hang.

use regex_lite::Regex;
use rkvm_l1::{Outcome, Stop};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A name and what it does.
pub type Test = (&'static str, fn() -> Outcome);

/// Makes a file's table of tests.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[crate::harness::Test] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use tests;

/// The command line.
pub struct Options {
    pub filter: Option<String>,
    pub list: bool,
    pub threads: usize,
    pub timeout: u64,
    pub repeat: usize,
    pub except: Exceptions,
}

/// What an emulator's own faults do to tests.
pub type Exceptions = Vec<Exception>;

pub struct Exception {
    /// The test's name, or how it begins and an asterisk.
    name: String,
    /// It would take the whole computer along, and is left out; else it fails, and has to.
    kills: bool,
    why: String,
}

impl Exception {
    fn of<'a>(name: &str, all: &'a [Exception]) -> Option<&'a Exception> {
        all.iter().find(|e| match e.name.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == e.name,
        })
    }
}

/// Reads a list of exceptions: lines `kills NAME WHY` and `fails NAME WHY`.
pub fn exceptions(text: &str) -> Result<Exceptions, String> {
    let mut found = Exceptions::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.splitn(3, char::is_whitespace);
        let (Some(how @ ("kills" | "fails")), Some(name), Some(why)) =
            (words.next(), words.next(), words.next())
        else {
            return Err(format!("not an exception: {line}"));
        };
        found.push(Exception {
            name: name.into(),
            kills: how == "kills",
            why: why.trim().into(),
        });
    }
    Ok(found)
}

const FAILED: i32 = 1;
const SKIPPED: i32 = 77;

struct Running {
    name: String,
    pid: i32,
    output: File,
    since: Instant,
}

/// Runs them all.
pub fn run(areas: &[(&str, &[Test])], options: &Options) -> ExitCode {
    let filter = match options.filter.as_deref().map(Regex::new).transpose() {
        Ok(f) => f,
        Err(e) => {
            eprintln!("--filter: {e}");
            return ExitCode::from(2);
        }
    };
    let mut queue = VecDeque::new();
    for (area, tests) in areas {
        for (name, f) in *tests {
            let name = format!("{area}::{name}");
            if filter.as_ref().is_none_or(|r| r.is_match(&name)) {
                for _ in 0..options.repeat {
                    queue.push_back((name.clone(), *f));
                }
            }
        }
    }
    if options.list {
        for (name, _) in queue {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    if queue.is_empty() {
        eprintln!("no test has such a name");
        return ExitCode::from(2);
    }
    let (mut passed, mut failed, mut skipped, mut excepted) = (0, Vec::new(), 0, 0);
    queue.retain(|(name, _)| match Exception::of(name, &options.except) {
        Some(e) if e.kills => {
            println!("left {name}: {}", e.why);
            excepted += 1;
            false
        }
        _ => true,
    });
    let mut running: Vec<Running> = Vec::new();
    while !queue.is_empty() || !running.is_empty() {
        while running.len() < options.threads {
            let Some((name, f)) = queue.pop_front() else {
                break;
            };
            running.push(start(name, f));
        }
        let Some(i) = running.iter().position(|r| ended(r, options.timeout)) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let mut r = running.swap_remove(i);
        let timed_out = r.since.elapsed().as_secs() >= options.timeout;
        let mut status = 0;
        // SAFETY: our own child, or what is left of it.
        unsafe {
            // Its own children go too; the group's id is its pid.
            libc::kill(-r.pid, libc::SIGKILL);
            libc::kill(r.pid, libc::SIGKILL);
            libc::waitpid(r.pid, &mut status, 0);
        }
        let mut output = String::new();
        let _ = r.output.rewind();
        let _ = r.output.read_to_string(&mut output);
        let ms = r.since.elapsed().as_millis();
        let name = r.name;
        let exception = Exception::of(&name, &options.except);
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            if exception.is_some() {
                println!("FAIL {name}: it passes, and is on the list of exceptions");
                failed.push(name);
                continue;
            }
            println!("ok   {name} ({ms} ms)");
            passed += 1;
        } else if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == SKIPPED {
            println!("skip {name}: {}", output.trim());
            skipped += 1;
        } else if let Some(e) = exception {
            println!("fail {name}: {}", e.why);
            excepted += 1;
        } else {
            let how = match status {
                _ if timed_out => format!("no end after {} s", options.timeout),
                s if libc::WIFSIGNALED(s) => format!("signal {}", libc::WTERMSIG(s)),
                _ => String::new(),
            };
            println!("FAIL {name} ({ms} ms) {how}");
            for line in output.lines() {
                println!("     {line}");
            }
            failed.push(name);
        }
        let _ = std::io::stdout().flush();
    }
    for name in &failed {
        println!("failed: {name}");
    }
    if skipped > 0 {
        println!("{skipped} skipped: this computer lacks what they need");
    }
    if excepted > 0 {
        println!("{excepted} excepted: the emulator's own faults");
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether it has ended or had its time. It is left for the caller to reap.
fn ended(r: &Running, timeout: u64) -> bool {
    // SAFETY: `info` is ours.
    let gone = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PID,
            r.pid as u32,
            &mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        );
        info.si_pid() != 0
    };
    gone || r.since.elapsed().as_secs() >= timeout
}

fn start(name: String, f: fn() -> Outcome) -> Running {
    // SAFETY: a name with its zero byte; the descriptor is new and goes to `File`.
    let mut output = unsafe { File::from_raw_fd(libc::memfd_create(c"output".as_ptr(), 0)) };
    let since = Instant::now();
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid != 0 {
        return Running {
            name,
            pid,
            output,
            since,
        };
    }
    // SAFETY: plain numbers.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::dup2(output.as_raw_fd(), 1);
        libc::dup2(output.as_raw_fd(), 2);
    }
    let status = match std::panic::catch_unwind(f) {
        Ok(Ok(())) => 0,
        Ok(Err(Stop::Skip(why))) => {
            let _ = write!(output, "{why}");
            SKIPPED
        }
        Ok(Err(Stop::Fail(why))) => {
            let _ = writeln!(output, "{why}");
            FAILED
        }
        Err(_) => FAILED,
    };
    // SAFETY: ends the child at once: what it holds, the kernel puts back.
    unsafe { libc::_exit(status) }
}
