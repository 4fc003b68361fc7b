// SPDX-License-Identifier: GPL-2.0

//! The processor that the test runs on, as an oracle: a child process is single-stepped through
//! one instruction at a time, in 16-, 32- and 64-bit user code.
//!
//! Code and data are pages shared with the child; 16- and 32-bit segments with bases and limits
//! come from its own LDT. The child can do no system call (seccomp strict mode).

use std::io::Error;

/// Linear address of the code page.
pub const CODE: u64 = 0x10_0000;
/// Linear address of the data pages.
pub const DATA: u64 = 0x20_0000;
/// Bytes of data, with nothing mapped behind them.
pub const DATA_LEN: usize = 0x1_0000;

/// A descriptor of the child's LDT.
#[derive(Clone, Copy)]
pub struct Ldt {
    pub base: u32,
    pub limit: u32,
    pub code: bool,
    pub expand_down: bool,
    pub read_only: bool,
    pub big: bool,
    pub pages: bool,
}

impl Ldt {
    /// The eight bytes of the descriptor, as the kernel writes them.
    pub fn raw(&self) -> u64 {
        let typ = if self.code {
            0xb
        } else {
            1 | u64::from(!self.read_only) << 1 | u64::from(self.expand_down) << 2
        };
        let access = typ | 1 << 4 | 3 << 5 | 1 << 7;
        let flags = u64::from(self.big) << 2 | u64::from(self.pages) << 3;
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 15) << 48
            | flags << 52
            | (base >> 24) << 56
    }
}

#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

pub type UserRegs = libc::user_regs_struct;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The instruction, or an iteration of it, was done.
    Stepped,
    /// A signal: its number and code, and the address of a page fault.
    Signal(i32, i32, u64),
}

pub struct Native {
    pid: i32,
}

fn map(at: u64, len: usize) {
    // SAFETY: A fixed mapping at low addresses where this process, linked as PIE, has nothing;
    // MAP_FIXED_NOREPLACE fails rather than replace.
    let p = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(p as u64, at, "mmap: {}", Error::last_os_error());
}

impl Native {
    pub fn new(ldt: &[Ldt]) -> Native {
        map(CODE, 4096);
        map(DATA, DATA_LEN);
        // SAFETY: The child only makes the system calls below and stops.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", Error::last_os_error());
        if pid == 0 {
            Self::child(ldt);
        }
        let n = Native { pid };
        assert_eq!(n.wait(), libc::SIGSTOP);
        n
    }

    fn child(ldt: &[Ldt]) -> ! {
        for (i, d) in ldt.iter().enumerate() {
            let contents = if d.code { 2 } else { u32::from(d.expand_down) };
            let u = UserDesc {
                entry: i as u32,
                base: d.base,
                limit: d.limit,
                flags: u32::from(d.big)
                    | contents << 1
                    | u32::from(d.read_only) << 3
                    | u32::from(d.pages) << 4
                    | 1 << 6,
            };
            // SAFETY: The descriptor is well formed, and this process runs nothing in it yet.
            let r = unsafe {
                libc::syscall(libc::SYS_modify_ldt, 1, &u, std::mem::size_of::<UserDesc>())
            };
            if r != 0 {
                // SAFETY: Ends the child.
                unsafe { libc::_exit(1) };
            }
        }
        // SAFETY: The child gives itself to its parent, forgoes system calls, and stops; it never
        // runs on but by single steps of the parent.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::raise(libc::SIGSTOP);
            libc::_exit(2);
        }
    }

    /// Waits until the child stops; the signal that stopped it.
    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is a place for the result.
        let r = unsafe { libc::waitpid(self.pid, &mut status, 0) };
        assert_eq!(r, self.pid, "waitpid: {}", Error::last_os_error());
        assert!(
            libc::WIFSTOPPED(status),
            "the child is gone: status {status:x}"
        );
        libc::WSTOPSIG(status)
    }

    /// Waits for a stop; stops a child that has run for too long.
    fn wait_a_while(&self) -> i32 {
        let begin = std::time::Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: `status` is a place for the result.
            let r = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
            if r == self.pid {
                assert!(
                    libc::WIFSTOPPED(status),
                    "the child is gone: status {status:x}"
                );
                return libc::WSTOPSIG(status);
            }
            if begin.elapsed().as_millis() > 300 {
                // SAFETY: A signal to our own child.
                unsafe { libc::kill(self.pid, libc::SIGSTOP) };
                return self.wait();
            }
            std::thread::yield_now();
        }
    }

    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        assert!(
            (at >= CODE && end <= CODE + 4096) || (at >= DATA && end <= DATA + DATA_LEN as u64)
        );
        // SAFETY: The range was just checked to be in the mappings of `map`, which live as long as
        // the process and which no reference points to; the child is stopped.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    pub fn peek(&self, at: u64, out: &mut [u8]) {
        assert!(at >= DATA && at + out.len() as u64 <= DATA + DATA_LEN as u64);
        // SAFETY: As in `poke`.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, out.as_mut_ptr(), out.len()) };
    }

    pub fn regs(&self) -> UserRegs {
        // SAFETY: All-zero is a value of this plain structure.
        let mut r: UserRegs = unsafe { std::mem::zeroed() };
        // SAFETY: `r` is a place for the result.
        let e = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid, 0, &mut r) };
        assert_eq!(e, 0, "getregs: {}", Error::last_os_error());
        r
    }

    pub fn set_regs(&mut self, r: &UserRegs) -> bool {
        // SAFETY: `r` is a valid structure.
        unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, 0, r) == 0 }
    }

    pub fn fpregs(&self) -> libc::user_fpregs_struct {
        // SAFETY: All-zero is a value of this plain structure.
        let mut r: libc::user_fpregs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: `r` is a place for the result.
        let e = unsafe { libc::ptrace(libc::PTRACE_GETFPREGS, self.pid, 0, &mut r) };
        assert_eq!(e, 0, "getfpregs: {}", Error::last_os_error());
        r
    }

    pub fn set_fpregs(&mut self, r: &libc::user_fpregs_struct) {
        // SAFETY: `r` is a valid structure.
        let e = unsafe { libc::ptrace(libc::PTRACE_SETFPREGS, self.pid, 0, r) };
        assert_eq!(e, 0, "setfpregs: {}", Error::last_os_error());
    }

    /// Lets the child do one instruction, or an iteration of one.
    pub fn step(&mut self) -> Stopped {
        // SAFETY: The child is stopped and under our trace.
        let e = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) };
        assert_eq!(e, 0, "singlestep: {}", Error::last_os_error());
        let signal = self.wait_a_while();
        if signal == libc::SIGTRAP {
            return Stopped::Stepped;
        }
        // SAFETY: All-zero is a value of this plain structure.
        let mut i: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `i` is a place for the result; every fault signal has an address.
        let addr = unsafe {
            assert_eq!(
                libc::ptrace(libc::PTRACE_GETSIGINFO, self.pid, 0, &mut i),
                0
            );
            i.si_addr() as u64
        };
        Stopped::Signal(signal, i.si_code, addr)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: Ends and reaps our own child.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
