// SPDX-License-Identifier: GPL-2.0

//! The ioctls as numbers, for calls that no wrapper would let us make.

use std::os::fd::RawFd;

/// The kind of file descriptor that an ioctl is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// `/dev/kvm`
    Sys,
    /// a VM
    Vm,
    /// a vCPU
    Vcpu,
}

/// What an ioctl's argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number, or nothing.
    Value,
    /// Read by the kernel.
    In,
    /// Written by the kernel.
    Out,
    /// Both.
    InOut,
}

/// One ioctl.
#[derive(Clone, Copy, Debug)]
pub struct Ioctl {
    /// As in `linux/kvm.h`, without `KVM_`.
    pub name: &'static str,
    /// The request code.
    pub code: u32,
    /// What it is for.
    pub on: On,
    /// What it takes.
    pub arg: Arg,
}

impl Ioctl {
    /// Bytes of the argument that the code names.
    pub const fn size(&self) -> usize {
        ((self.code >> 16) & 0x3fff) as usize
    }
}

macro_rules! ioctls {
    ($($name:ident $code:literal $on:ident $arg:ident)*) => {
        $(#[doc = concat!("KVM_", stringify!($name))] pub const $name: u32 = $code;)*
        /// Every ioctl of tier T0 and T1 of this architecture, once for each kind of descriptor it is for.
        pub const IOCTLS: &[Ioctl] = &[$(Ioctl { name: stringify!($name), code: $code, on: On::$on, arg: Arg::$arg }),*];
    };
}

#[cfg(target_arch = "x86_64")]
ioctls! {
    GET_API_VERSION 0xae00 Sys Value
    CREATE_VM 0xae01 Sys Value
    GET_MSR_INDEX_LIST 0xc004ae02 Sys InOut
    CHECK_EXTENSION 0xae03 Sys Value
    GET_VCPU_MMAP_SIZE 0xae04 Sys Value
    GET_SUPPORTED_CPUID 0xc008ae05 Sys InOut
    GET_MSR_FEATURE_INDEX_LIST 0xc004ae0a Sys InOut
    X86_GET_MCE_CAP_SUPPORTED 0x8008ae9d Sys Out
    CREATE_VCPU 0xae41 Vm Value
    GET_DIRTY_LOG 0x4010ae42 Vm In
    SET_USER_MEMORY_REGION 0x4020ae46 Vm In
    SET_TSS_ADDR 0xae47 Vm Value
    SET_IDENTITY_MAP_ADDR 0x4008ae48 Vm In
    SET_USER_MEMORY_REGION2 0x40a0ae49 Vm In
    CREATE_IRQCHIP 0xae60 Vm Value
    IRQ_LINE 0x4008ae61 Vm In
    GET_IRQCHIP 0xc208ae62 Vm InOut
    SET_IRQCHIP 0x8208ae63 Vm In
    IRQ_LINE_STATUS 0xc008ae67 Vm InOut
    REGISTER_COALESCED_MMIO 0x4010ae67 Vm In
    UNREGISTER_COALESCED_MMIO 0x4010ae68 Vm In
    SET_GSI_ROUTING 0x4008ae6a Vm In
    IRQFD 0x4020ae76 Vm In
    CREATE_PIT2 0x4040ae77 Vm In
    SET_BOOT_CPU_ID 0xae78 Vm Value
    IOEVENTFD 0x4040ae79 Vm In
    SET_CLOCK 0x4030ae7b Vm In
    GET_CLOCK 0x8030ae7c Vm Out
    GET_PIT2 0x8070ae9f Vm Out
    SET_PIT2 0x4070aea0 Vm In
    SET_TSC_KHZ 0xaea2 Vcpu Value
    GET_TSC_KHZ 0xaea3 Vcpu Value
    ENABLE_CAP 0x4068aea3 Vm In
    SIGNAL_MSI 0x4020aea5 Vm In
    CLEAR_DIRTY_LOG 0xc018aec0 Vm InOut
    X86_SET_MSR_FILTER 0x4188aec6 Vm In
    GET_STATS_FD 0xaece Vm Value
    CREATE_DEVICE 0xc00caee0 Vm InOut
    SET_DEVICE_ATTR 0x4018aee1 Vcpu In
    GET_DEVICE_ATTR 0x4018aee2 Vcpu In
    HAS_DEVICE_ATTR 0x4018aee3 Vcpu In
    RUN 0xae80 Vcpu Value
    GET_REGS 0x8090ae81 Vcpu Out
    SET_REGS 0x4090ae82 Vcpu In
    GET_SREGS 0x8138ae83 Vcpu Out
    SET_SREGS 0x4138ae84 Vcpu In
    TRANSLATE 0xc018ae85 Vcpu InOut
    INTERRUPT 0x4004ae86 Vcpu In
    GET_MSRS 0xc008ae88 Vcpu InOut
    SET_MSRS 0x4008ae89 Vcpu In
    SET_SIGNAL_MASK 0x4004ae8b Vcpu In
    GET_FPU 0x81a0ae8c Vcpu Out
    SET_FPU 0x41a0ae8d Vcpu In
    GET_LAPIC 0x8400ae8e Vcpu Out
    SET_LAPIC 0x4400ae8f Vcpu In
    SET_CPUID2 0x4008ae90 Vcpu In
    GET_CPUID2 0xc008ae91 Vcpu InOut
    TPR_ACCESS_REPORTING 0xc028ae92 Vcpu InOut
    SET_VAPIC_ADDR 0x4008ae93 Vcpu In
    GET_MP_STATE 0x8004ae98 Vcpu Out
    SET_MP_STATE 0x4004ae99 Vcpu In
    NMI 0xae9a Vcpu Value
    SET_GUEST_DEBUG 0x4048ae9b Vcpu In
    X86_SETUP_MCE 0x4008ae9c Vcpu In
    X86_SET_MCE 0x4040ae9e Vcpu In
    GET_VCPU_EVENTS 0x8040ae9f Vcpu Out
    SET_VCPU_EVENTS 0x4040aea0 Vcpu In
    GET_DEBUGREGS 0x8080aea1 Vcpu Out
    SET_DEBUGREGS 0x4080aea2 Vcpu In
    GET_XSAVE 0x9000aea4 Vcpu Out
    SET_XSAVE 0x5000aea5 Vcpu In
    GET_XCRS 0x8188aea6 Vcpu Out
    SET_XCRS 0x4188aea7 Vcpu In
    KVMCLOCK_CTRL 0xaead Vcpu Value
    SMI 0xaeb7 Vcpu Value
    GET_SREGS2 0x8140aecc Vcpu Out
    SET_SREGS2 0x4140aecd Vcpu In
    GET_XSAVE2 0x9000aecf Vcpu Out
}

#[cfg(target_arch = "aarch64")]
ioctls! {
    GET_API_VERSION 0xae00 Sys Value
    CREATE_VM 0xae01 Sys Value
    CHECK_EXTENSION 0xae03 Sys Value
    GET_VCPU_MMAP_SIZE 0xae04 Sys Value
    CREATE_VCPU 0xae41 Vm Value
    GET_DIRTY_LOG 0x4010ae42 Vm In
    SET_USER_MEMORY_REGION 0x4020ae46 Vm In
    SET_USER_MEMORY_REGION2 0x40a0ae49 Vm In
    CREATE_IRQCHIP 0xae60 Vm Value
    IRQ_LINE 0x4008ae61 Vm In
    IRQ_LINE_STATUS 0xc008ae67 Vm InOut
    REGISTER_COALESCED_MMIO 0x4010ae67 Vm In
    UNREGISTER_COALESCED_MMIO 0x4010ae68 Vm In
    SET_GSI_ROUTING 0x4008ae6a Vm In
    IRQFD 0x4020ae76 Vm In
    IOEVENTFD 0x4040ae79 Vm In
    ENABLE_CAP 0x4068aea3 Vm In
    SIGNAL_MSI 0x4020aea5 Vm In
    ARM_SET_DEVICE_ADDR 0x4010aeab Vm In
    ARM_PREFERRED_TARGET 0x8020aeaf Vm Out
    ARM_SET_COUNTER_OFFSET 0x4010aeb5 Vm In
    ARM_GET_REG_WRITABLE_MASKS 0x8040aeb6 Vm In
    CLEAR_DIRTY_LOG 0xc018aec0 Vm InOut
    CREATE_DEVICE 0xc00caee0 Vm InOut
    SET_DEVICE_ATTR 0x4018aee1 Vcpu In
    GET_DEVICE_ATTR 0x4018aee2 Vcpu In
    HAS_DEVICE_ATTR 0x4018aee3 Vcpu In
    RUN 0xae80 Vcpu Value
    SET_SIGNAL_MASK 0x4004ae8b Vcpu In
    GET_MP_STATE 0x8004ae98 Vcpu Out
    SET_MP_STATE 0x4004ae99 Vcpu In
    SET_GUEST_DEBUG 0x4208ae9b Vcpu In
    GET_VCPU_EVENTS 0x8040ae9f Vcpu Out
    SET_VCPU_EVENTS 0x4040aea0 Vcpu In
    GET_ONE_REG 0x4010aeab Vcpu In
    SET_ONE_REG 0x4010aeac Vcpu In
    ARM_VCPU_INIT 0x4020aeae Vcpu In
    GET_REG_LIST 0xc008aeb0 Vcpu InOut
    ARM_VCPU_FINALIZE 0x4004aec2 Vcpu In
}

/// Calls an ioctl with whatever argument; `Err` is the errno.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// What the kernel writes through `arg` must be memory that may be written.
pub unsafe fn ioctl(fd: RawFd, code: u32, arg: u64) -> Result<i32, i32> {
    // SAFETY: the caller's promise.
    let r = unsafe { libc::ioctl(fd, libc::c_ulong::from(code), arg) };
    if r < 0 {
        Err(errno())
    } else {
        Ok(r)
    }
}

/// Calls an ioctl whose argument is a number.
///
/// # Errors
/// The kernel's.
pub fn call(fd: RawFd, code: u32, arg: u64) -> Result<i32, i32> {
    // SAFETY: for these the kernel writes nothing; an address that it takes for one is checked by the kernel.
    unsafe { ioctl(fd, code, arg) }
}

/// Calls an ioctl on a structure.
///
/// # Errors
/// The kernel's.
pub fn with<T>(fd: RawFd, code: u32, arg: &mut T) -> Result<i32, i32> {
    // SAFETY: `arg` is as large as the kernel takes it for, which the callers see to.
    unsafe { ioctl(fd, code, arg as *mut T as u64) }
}

/// The calling thread's errno.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// An address where nothing is mapped.
pub const UNMAPPED: u64 = 0x1000;

/// The calling thread's id.
pub fn tid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Sends a signal to a thread of ours.
pub fn kick(tid: i32, signal: i32) {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
}

extern "C" fn nothing(_: i32) {}

/// Has `signal` interrupt system calls and do nothing else.
pub fn catch(signal: i32) {
    // SAFETY: the handler does nothing, and the structure is whole.
    unsafe {
        let mut sa: libc::sigaction = std::mem::zeroed();
        sa.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(signal, &sa, std::ptr::null_mut());
    }
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// CPUs that are online.
pub fn cpus() -> usize {
    // SAFETY: no pointers.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize }
}

/// CPUs that the calling thread may run on.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a whole set of ours.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        set
    };
    // SAFETY: the index is one of the set's.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// Has a child process run `f`; its status, or minus the signal that ended it.
pub fn in_child(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `f` and ends.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork");
        if pid == 0 {
            libc::_exit(f());
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            -libc::WTERMSIG(status)
        }
    }
}

/// An eventfd, non-blocking.
#[derive(Debug)]
pub struct Event(pub RawFd);

impl Event {
    /// A new one, at zero.
    #[expect(clippy::new_without_default, reason = "it opens a file")]
    pub fn new() -> Event {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        assert!(fd >= 0, "eventfd");
        Event(fd)
    }

    /// Adds one.
    pub fn signal(&self) {
        let v = 1u64;
        // SAFETY: eight bytes of ours.
        assert_eq!(unsafe { libc::write(self.0, (&raw const v).cast(), 8) }, 8);
    }

    /// Takes what has been added since the last time.
    pub fn take(&self) -> u64 {
        let mut v = 0u64;
        // SAFETY: eight bytes of ours.
        let n = unsafe { libc::read(self.0, (&raw mut v).cast(), 8) };
        if n == 8 {
            v
        } else {
            0
        }
    }

    /// Waits up to `ms` for it to be other than zero; then takes it.
    pub fn wait(&self, ms: i32) -> u64 {
        let mut p = libc::pollfd {
            fd: self.0,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd of ours.
        unsafe { libc::poll(&mut p, 1, ms) };
        self.take()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: our own descriptor.
        unsafe { libc::close(self.0) };
    }
}
