// SPDX-License-Identifier: GPL-2.0

//! What the tests, the fuzzer and the benchmarks that run in L1 share.
//!
//! Guests are a few instructions each, on a [`machine::Machine`]: 2 MiB of memory with tables and exception handlers
//! (see [`kit`]) already in it. On x86 they are assembled at run time; on arm64 the compiler assembles them ([`guest!`]).

#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
pub mod kit;
#[cfg(target_arch = "x86_64")]
pub mod machine;
pub mod ram;
pub mod sys;

#[cfg(target_arch = "aarch64")]
pub use arm64::{a32, kit, machine};

pub use machine::{Cpu, Exit, Machine};
#[cfg(target_arch = "x86_64")]
pub use machine::{Irqchip, Mode};

use std::ffi::CString;
use std::sync::OnceLock;

/// What is tested.
#[derive(Debug)]
pub struct Env {
    /// The device node.
    pub device: CString,
    /// It is rkvm, and not the KVM of the kernel's own tree.
    pub rkvm: bool,
    /// CPUs for guests. (The svm L1's first one is not, see Documentation/lab.md.)
    pub cpus: Vec<usize>,
}

static ENV: OnceLock<Env> = OnceLock::new();

/// Says which device to open. To be called once, before all else.
pub fn set_device(device: Option<String>) {
    let device = device.unwrap_or_else(|| {
        let own = "/dev/rkvm";
        if std::path::Path::new(own).exists() {
            own
        } else {
            "/dev/kvm"
        }
        .into()
    });
    // Both may be loaded.
    let in_tree = std::env::var("RKVM_MODULE").is_ok_and(|m| m == "kvm");
    let rkvm = !in_tree && std::path::Path::new("/sys/module/rkvm").exists();
    let device = CString::new(device).expect("a path has no zero byte");
    let cpus = sys::allowed_cpus();
    ENV.set(Env { device, rkvm, cpus }).expect("called once");
}

/// What [`set_device`] chose.
pub fn env() -> &'static Env {
    ENV.get().expect("set_device was called")
}

/// Opens the device.
pub fn kvm() -> kvm_ioctls::Kvm {
    kvm_ioctls::Kvm::new_with_path(&env().device)
        .unwrap_or_else(|e| panic!("open {:?}: {e}", env().device))
}

/// Why a test did not pass.
#[derive(Debug)]
pub enum Stop {
    /// This computer lacks what the test needs.
    Skip(String),
    /// It failed.
    Fail(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(e: E) -> Self {
        Stop::Fail(e.to_string())
    }
}

/// What a test returns; it may panic, too.
pub type Outcome = Result<(), Stop>;

/// Leaves the test: this computer lacks `what`.
///
/// # Errors
/// Always.
pub fn skip<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(what.into()))
}
