// SPDX-License-Identifier: GPL-2.0

//! Allocations and copies of user memory that fail, where the kernel has fault injection
//! (Documentation/fault-injection/fault-injection.rst): the n-th of an ioctl.

use crate::world::KICK;
use rkvm_l1::sys;
use std::fs::{self, File};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

const DEBUGFS: &str = "/sys/kernel/debug";

/// Has the kernel refuse without a word in its log, and not only what need not succeed.
pub fn prepare() {
    for kind in ["failslab", "fail_page_alloc", "fail_usercopy"] {
        for (file, value) in [
            ("verbose", "0"),
            ("ignore-gfp-wait", "N"),
            ("ignore-gfp-highmem", "N"),
            // Single pages, too.
            ("min-order", "0"),
        ] {
            let _ = fs::write(format!("{DEBUGFS}/{kind}/{file}"), value);
        }
    }
}

/// The calling thread's switch. While a fault is armed the thread takes no [`world::KICK`](crate::world::KICK): the kernel could not
/// put its frame on the stack, and end us. In KVM_RUN it ends the guest's run all the same.
pub struct Nth(File);

impl Nth {
    /// `None`: this kernel injects no faults.
    pub fn open() -> Option<Nth> {
        if !fs::exists(format!("{DEBUGFS}/failslab")).unwrap_or(false) {
            return None;
        }
        let file = File::options()
            .write(true)
            .open("/proc/thread-self/fail-nth");
        file.ok().map(Nth)
    }

    /// What is the `n`-th from now that can fail does, in an ioctl of `fd`; `run`: that is KVM_RUN. False: not armed.
    pub fn arm(&self, n: u64, fd: RawFd, run: bool) -> bool {
        if run {
            // A length, and no signal at all.
            let mut mask = [8u32, 0, 0];
            if sys::with(fd, sys::SET_SIGNAL_MASK, &mut mask).is_err() {
                return false;
            }
        }
        block(libc::SIG_BLOCK);
        let _ = self.0.write_at(n.to_string().as_bytes(), 0);
        true
    }

    /// Nothing fails any more.
    pub fn disarm(&self) {
        // This itself may fail, once.
        if self.0.write_at(b"0", 0).is_err() {
            let _ = self.0.write_at(b"0", 0);
        }
        block(libc::SIG_UNBLOCK);
    }
}

fn block(how: i32) {
    // SAFETY: a whole set of ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, KICK);
        libc::pthread_sigmask(how, &set, std::ptr::null_mut());
    }
}
