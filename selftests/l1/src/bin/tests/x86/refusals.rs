// SPDX-License-Identifier: GPL-2.0

//! What is refused says why: each errno of an ioctl comes with a trace event that has the same
//! errno, and words.

use crate::harness::tests;
use kvm_bindings::*;
use libc::*;
use rkvm_l1::machine::{enable, has_xsave, split};
use rkvm_l1::sys::{self, Arg, Event, On, IOCTLS, UNMAPPED};
use rkvm_l1::{env, skip, Irqchip, Machine, Mode, Outcome, Stop};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};

tests![
    of_the_system,
    of_a_vm,
    of_memory_slots,
    of_dirty_logs,
    of_interrupts,
    of_eventfds,
    of_vcpu_state,
    of_unmapped_arguments,
    of_unknown_requests,
];

/// A trace of our own: its buffer holds nothing but what this test caused.
pub struct Trace(String);

impl Trace {
    fn new() -> Result<Trace, Stop> {
        Trace::of("rkvm_refused")
    }

    /// Of this event.
    pub fn of(event: &str) -> Result<Trace, Stop> {
        if !env().rkvm {
            return skip("in-tree KVM has no such events");
        }
        let dir = format!("/sys/kernel/tracing/instances/{event}-{}", sys::tid());
        fs::create_dir(&dir)?;
        let trace = Trace(dir);
        fs::write(trace.file(&format!("events/rkvm/{event}/enable")), "1")?;
        Ok(trace)
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// All of it since the last look.
    pub fn text(&self) -> String {
        let text = fs::read_to_string(self.file("trace")).expect("trace");
        fs::write(self.file("trace"), "").expect("trace");
        text
    }

    /// The reasons given since the last look: errno and words.
    fn take(&self) -> Vec<(i32, String)> {
        let text = self.text();
        let reason = |line: &str| {
            let (_, reason) = line.split_once("rkvm_refused: error=-")?;
            let (errno, why) = reason.split_once(": ")?;
            Some((errno.parse().ok()?, why.to_string()))
        };
        text.lines().filter_map(reason).collect()
    }

    /// `result` is the refusal `errno`, and there is a reason with these words.
    #[track_caller]
    fn says(&self, result: Result<i32, i32>, errno: i32, words: &str) {
        assert_eq!(result, Err(errno), "{words}");
        let reasons = self.take();
        let found = |(e, why): &(i32, String)| *e == errno && why.contains(words);
        assert!(
            reasons.iter().any(found),
            "errno {errno} without '{words}': {reasons:?}"
        );
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// An ioctl on a structure of zeroes but for 32-bit words at these offsets.
fn words(fd: RawFd, code: u32, set: &[(usize, u32)]) -> Result<i32, i32> {
    let mut buf = vec![0u8; 16384];
    for (at, v) in set {
        buf[*at..*at + 4].copy_from_slice(&v.to_le_bytes());
    }
    // SAFETY: larger than any structure.
    unsafe { sys::ioctl(fd, code, buf.as_mut_ptr() as u64) }
}

/// The state as `get` reads it, with 32-bit words changed, to `set`.
fn changed(fd: RawFd, get: u32, set: u32, with: &[(usize, u32)]) -> Result<i32, i32> {
    let mut buf = vec![0u8; 16384];
    // SAFETY: larger than any structure.
    unsafe {
        sys::ioctl(fd, get, buf.as_mut_ptr() as u64).expect("the state");
        for (at, v) in with {
            buf[*at..*at + 4].copy_from_slice(&v.to_le_bytes());
        }
        sys::ioctl(fd, set, buf.as_mut_ptr() as u64)
    }
}

fn machine() -> Machine {
    Machine::with(Mode::Long, Irqchip::Split, 1)
}

fn of_the_system() -> Outcome {
    let t = Trace::new()?;
    let kvm = rkvm_l1::kvm();
    let k = kvm.as_raw_fd();
    t.says(
        sys::call(k, sys::GET_API_VERSION, 1),
        EINVAL,
        "takes no argument",
    );
    t.says(
        sys::call(k, sys::CREATE_VM, 99),
        EINVAL,
        "no such type of VM",
    );
    for list in [
        sys::GET_MSR_INDEX_LIST,
        sys::GET_MSR_FEATURE_INDEX_LIST,
        sys::GET_SUPPORTED_CPUID,
    ] {
        t.says(words(k, list, &[(0, 1)]), E2BIG, "array");
    }
    t.says(words(k, sys::GET_MSRS, &[(0, 256)]), E2BIG, "255 MSRs");
    t.says(
        words(k, sys::GET_DEVICE_ATTR, &[(4, 9)]),
        ENXIO,
        "attribute",
    );
    t.says(
        sys::call(k, sys::RUN, 0),
        ENOTTY,
        "another kind of descriptor",
    );
    Ok(())
}

fn of_a_vm() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let vm = m.raw();
    t.says(
        sys::call(vm, sys::CREATE_VCPU, 1 << 40),
        EINVAL,
        "too large",
    );
    t.says(sys::call(vm, sys::CREATE_VCPU, 4096), EINVAL, "too large");
    t.says(sys::call(vm, sys::CREATE_VCPU, 0), EEXIST, "is taken");
    t.says(
        sys::call(vm, sys::SET_TSS_ADDR, 1 << 32),
        EINVAL,
        "below 4 GiB",
    );
    t.says(
        words(vm, sys::SET_IDENTITY_MAP_ADDR, &[]),
        EINVAL,
        "vCPUs exist",
    );
    t.says(sys::call(vm, sys::SET_BOOT_CPU_ID, 0), EBUSY, "vCPUs exist");
    t.says(
        sys::call(vm, sys::CREATE_IRQCHIP, 0),
        EEXIST,
        "split irqchip",
    );
    t.says(split(&m.vm), EEXIST, "irqchip already");
    t.says(enable(vm, 9999, 0), EINVAL, "cannot be enabled");
    t.says(enable(vm, KVM_CAP_X2APIC_API, 4), EINVAL, "X2APIC_API");
    t.says(
        enable(vm, KVM_CAP_DISABLE_QUIRKS2, 1 << 40),
        EINVAL,
        "quirks",
    );
    t.says(enable(vm, KVM_CAP_SPLIT_IRQCHIP, 1000), EINVAL, "pins");
    t.says(
        enable(vm, KVM_CAP_X86_USER_SPACE_MSR, 64),
        EINVAL,
        "MSR exits",
    );
    t.says(
        enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 8),
        EINVAL,
        "manual dirty log",
    );
    t.says(
        words(vm, sys::SET_CLOCK, &[(8, 1 << 9)]),
        EINVAL,
        "KVM_SET_CLOCK",
    );
    t.says(words(vm, sys::CREATE_DEVICE, &[(0, 1)]), ENODEV, "device");
    t.says(
        words(vm, sys::X86_SET_MSR_FILTER, &[(0, 1)]),
        EINVAL,
        "filter",
    );
    t.says(
        words(vm, sys::X86_SET_MSR_FILTER, &[(8, 4), (12, 1)]),
        EINVAL,
        "filter",
    );
    t.says(sys::call(vm, sys::SET_TSC_KHZ, 1), EINVAL, "vCPUs exist");
    // SAFETY: plain calls; the child leaves by _exit.
    let status = unsafe {
        let child = fork();
        if child == 0 {
            let other = sys::call(vm, sys::CHECK_EXTENSION, 0);
            _exit(i32::from(other != Err(EIO)));
        }
        let mut status = 0;
        waitpid(child, &mut status, 0);
        status
    };
    assert_eq!(status, 0);
    t.says(Err(EIO), EIO, "another address space");
    Ok(())
}

fn of_memory_slots() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let ram = m.ram.addr();
    let set = |slot, flags, gpa: u64, size: u64, hva: u64| m.region(slot, flags, gpa, size, hva);
    let page = 0x1000;
    t.says(set(1, 1 << 5, 1 << 30, page, ram), EINVAL, "flag");
    t.says(set(40_000, 0, 1 << 30, page, ram), EINVAL, "slot numbers");
    t.says(
        set(1, 0, (1 << 30) + 1, page, ram),
        EINVAL,
        "multiples of 4096",
    );
    t.says(
        set(1, 0, 1 << 30, page, 0u64.wrapping_sub(page)),
        EINVAL,
        "user",
    );
    t.says(
        set(1, 0, 1 << 30, page, 1 << 63),
        EINVAL,
        "not user space's",
    );
    t.says(set(1, 0, 1 << 30, 0, 0), EINVAL, "no such slot to delete");
    t.says(set(1, 0, 1 << 62, page, ram), EINVAL, "beyond");
    t.says(set(0, 0, 0, page, ram), EINVAL, "keeps its size");
    t.says(
        set(0, KVM_MEM_READONLY, 0, rkvm_l1::kit::RAM as u64, ram),
        EINVAL,
        "read-only or not",
    );
    t.says(set(1, 0, page, page, ram), EEXIST, "overlaps");
    Ok(())
}

fn of_dirty_logs() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let vm = m.raw();
    let get = |slot| words(vm, sys::GET_DIRTY_LOG, &[(0, slot)]);
    t.says(get(40_000), EINVAL, "slot numbers");
    t.says(get(5), ENOENT, "no such slot");
    t.says(get(0), ENOENT, "no dirty log");
    m.slot(0, &m.ram, KVM_MEM_LOG_DIRTY_PAGES).expect("a log");
    // The bitmap's address is 0.
    t.says(get(0), EFAULT, "user memory");
    // slot, num_pages, first_page
    let clear = |pages, first| words(vm, sys::CLEAR_DIRTY_LOG, &[(0, 0), (4, pages), (8, first)]);
    t.says(clear(64, 1), EINVAL, "multiples of 64");
    t.says(clear(63, 0), EINVAL, "multiples of 64");
    t.says(clear(1 << 20, 0), EINVAL, "not in the slot");
    t.says(clear(64, 1 << 20), EINVAL, "not in the slot");
    Ok(())
}

fn of_interrupts() -> Outcome {
    let t = Trace::new()?;
    let none = Machine::with(Mode::Long, Irqchip::None, 0);
    t.says(
        words(none.raw(), sys::SET_GSI_ROUTING, &[]),
        EINVAL,
        "no interrupt controller",
    );
    t.says(
        words(none.raw(), sys::SIGNAL_MSI, &[]),
        EINVAL,
        "no interrupt controller",
    );
    t.says(
        words(none.raw(), sys::IRQFD, &[]),
        EINVAL,
        "no interrupt controller",
    );
    t.says(
        words(none.raw(), sys::IRQ_LINE, &[]),
        ENXIO,
        "no interrupt controller",
    );
    let m = machine();
    let route = |set: &[(usize, u32)]| words(m.raw(), sys::SET_GSI_ROUTING, set);
    t.says(route(&[(4, 1)]), EINVAL, "has no flags");
    t.says(route(&[(0, 5000)]), EINVAL, "4096 interrupt routes");
    t.says(route(&[(0, 1), (12, 77)]), EINVAL, "unknown type");
    t.says(route(&[(0, 1), (12, 2), (16, 8)]), EINVAL, "unknown flag");
    t.says(
        route(&[(0, 1), (8, 4096), (12, 2)]),
        EINVAL,
        "not below 4096",
    );
    t.says(route(&[(0, 2), (12, 2), (60, 2)]), EINVAL, "routed twice");
    t.says(route(&[(0, 1), (12, 1)]), EINVAL, "in-kernel I/O APIC");
    t.says(
        words(m.raw(), sys::SIGNAL_MSI, &[(12, 8)]),
        EINVAL,
        "flag of a message",
    );
    Ok(())
}

fn of_eventfds() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let vm = m.raw();
    let (e, other) = (Event::new(), Event::new());
    // fd, gsi, flags, resamplefd
    let irqfd = |fd: u32, gsi, flags, resample: u32| {
        words(
            vm,
            sys::IRQFD,
            &[(0, fd), (4, gsi), (8, flags), (12, resample)],
        )
    };
    let (fd, closed, file) = (e.0 as u32, 900, vm as u32);
    t.says(irqfd(fd, 1, 8, 0), EINVAL, "flag of an irqfd");
    // KVM takes any gsi: one that cannot have a route leads nowhere.
    irqfd(fd, 4096, 0, 0).expect("irqfd without a route");
    e.signal();
    irqfd(fd, 4096, 1, 0).expect("irqfd taken away");
    t.says(irqfd(closed, 1, 0, 0), EBADF, "not open");
    t.says(irqfd(file, 1, 0, 0), EINVAL, "no eventfd");
    t.says(irqfd(fd, 1, 2, other.0 as u32), EINVAL, "resampling");
    irqfd(fd, 1, 0, 0).expect("irqfd");
    t.says(irqfd(fd, 2, 0, 0), EBUSY, "irqfd already");
    // datamatch, addr, len, fd, flags
    let io = |addr, len, fd: u32, flags| {
        words(
            vm,
            sys::IOEVENTFD,
            &[(8, addr), (16, len), (20, fd), (24, flags)],
        )
    };
    t.says(io(0x1000, 3, fd, 0), EINVAL, "length of an ioeventfd");
    t.says(io(0x1000, 4, fd, 1 << 9), EINVAL, "flag of an ioeventfd");
    t.says(io(0x1000, 0, fd, 1), EINVAL, "any length");
    t.says(io(0x1000, 4, closed, 0), EBADF, "not open");
    t.says(io(0x1000, 4, u32::MAX, 0), EBADF, "not open");
    t.says(io(0x1000, 4, file, 0), EINVAL, "no eventfd");
    t.says(io(0x1000, 4, fd, 4), ENOENT, "no such ioeventfd");
    io(0x1000, 4, fd, 0).expect("ioeventfd");
    t.says(io(0x1000, 4, fd, 0), EEXIST, "two ioeventfds");
    for code in [sys::REGISTER_COALESCED_MMIO, sys::UNREGISTER_COALESCED_MMIO] {
        t.says(words(vm, code, &[(12, 2)]), EINVAL, "zone");
    }
    Ok(())
}

fn of_vcpu_state() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let cpu = m.cpus[0].raw();
    t.says(sys::call(cpu, sys::RUN, 1), EINVAL, "takes no argument");
    t.says(
        words(cpu, sys::SET_SIGNAL_MASK, &[(0, 4)]),
        EINVAL,
        "8 bytes",
    );
    let sregs = |with: &[(usize, u32)]| changed(cpu, sys::GET_SREGS, sys::SET_SREGS, with);
    let sregs2 = |with: &[(usize, u32)]| changed(cpu, sys::GET_SREGS2, sys::SET_SREGS2, with);
    // After eight segments and two tables: CR0, 2, 3, 4, 8, EFER, APIC base; then flags.
    let cr = 8 * 24 + 2 * 16;
    t.says(sregs(&[(cr + 4, 1)]), EINVAL, "CR0");
    t.says(sregs(&[(cr + 24, 1 << 31)]), EINVAL, "CR4 has bits");
    t.says(sregs(&[(cr + 24, 0)]), EINVAL, "without CR4.PAE");
    t.says(sregs(&[(cr + 44, 1)]), EINVAL, "EFER has bits");
    t.says(sregs(&[(cr + 40, 0x100)]), EINVAL, "EFER.LMA");
    t.says(sregs(&[(cr + 20, 1 << 31)]), EINVAL, "CR3");
    t.says(sregs(&[(cr + 52, 1 << 31)]), EINVAL, "APIC base");
    t.says(sregs2(&[(cr + 56, 2)]), EINVAL, "flags");
    t.says(sregs2(&[(cr + 56, 1)]), EINVAL, "without PAE paging");
    t.says(words(cpu, sys::SET_DEBUGREGS, &[(48, 1)]), EINVAL, "flags");
    t.says(
        words(cpu, sys::SET_DEBUGREGS, &[(36, 1)]),
        EINVAL,
        "32 bits",
    );
    let (number, value) = match has_xsave(&m.kvm) {
        true => ("KVM_SET_XCRS", "XCR0"),
        false => ("no XSAVE", "no XSAVE"),
    };
    t.says(words(cpu, sys::SET_XCRS, &[(0, 17)]), EINVAL, number);
    let two = [(0, 1), (16, 2)];
    t.says(words(cpu, sys::SET_XCRS, &two), EINVAL, value);
    t.says(words(cpu, sys::SET_XSAVE, &[(520, 1)]), EINVAL, "XSAVE");
    let events = |with: &[(usize, u32)]| words(cpu, sys::SET_VCPU_EVENTS, with);
    t.says(events(&[(20, 1 << 20)]), EINVAL, "not enabled");
    t.says(events(&[(20, 8), (24, 1)]), EINVAL, "system-management");
    t.says(events(&[(0, 1 | 40 << 8)]), EINVAL, "no such exception");
    t.says(
        words(cpu, sys::SET_MP_STATE, &[(0, 99)]),
        EINVAL,
        "state of a vCPU",
    );
    t.says(words(cpu, sys::INTERRUPT, &[(0, 256)]), EINVAL, "0 to 255");
    words(cpu, sys::INTERRUPT, &[(0, 32)]).expect("interrupt");
    t.says(words(cpu, sys::INTERRUPT, &[(0, 32)]), EEXIST, "queued");
    t.says(words(cpu, sys::SET_CPUID2, &[(0, 257)]), E2BIG, "256 CPUID");
    // One entry: function, index, flags, EAX.
    let width = [(0, 1), (8, 0x8000_0008), (20, 50 << 8)];
    t.says(words(cpu, sys::SET_CPUID2, &width), EINVAL, "48 or 57");
    t.says(words(cpu, sys::GET_CPUID2, &[(0, 1)]), E2BIG, "too small");
    for code in [sys::GET_MSRS, sys::SET_MSRS] {
        t.says(words(cpu, code, &[(0, 256)]), E2BIG, "255 MSRs");
    }
    t.says(
        words(cpu, sys::X86_SETUP_MCE, &[(0, 200)]),
        EINVAL,
        "MCG_CAP",
    );
    t.says(words(cpu, sys::X86_SET_MCE, &[(32, 200)]), EINVAL, "bank");
    t.says(
        words(cpu, sys::ENABLE_CAP, &[(0, 9999)]),
        EINVAL,
        "capability",
    );
    t.says(
        words(cpu, sys::SET_DEVICE_ATTR, &[(4, 9)]),
        ENXIO,
        "attribute",
    );
    t.says(
        sys::call(cpu, sys::KVMCLOCK_CTRL, 0),
        EINVAL,
        "kvmclock page",
    );
    t.says(
        sys::call(cpu, sys::SET_TSC_KHZ, 1 << 31),
        EINVAL,
        "be scaled",
    );
    let without = Machine::with(Mode::Long, Irqchip::None, 1);
    let cpu = without.cpus[0].raw();
    for code in [sys::GET_LAPIC, sys::SET_LAPIC, sys::SET_VAPIC_ADDR] {
        t.says(words(cpu, code, &[]), EINVAL, "no local APIC");
    }
    t.says(
        words(cpu, sys::SET_MP_STATE, &[(0, 3)]),
        EINVAL,
        "without a local APIC",
    );
    Ok(())
}

/// Whatever is said to an argument that is not there: it is refused with a reason.
fn of_unmapped_arguments() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    let mut faults = 0;
    for i in IOCTLS.iter().filter(|i| i.arg != Arg::Value) {
        let fd = match i.on {
            On::Sys => m.kvm.as_raw_fd(),
            On::Vm => m.raw(),
            On::Vcpu => m.cpus[0].raw(),
        };
        t.take();
        let r = sys::call(fd, i.code, UNMAPPED);
        // A null signal mask is none; this one is not null.
        let errno = r.expect_err(i.name);
        let reasons = t.take();
        assert!(
            reasons.iter().any(|(e, _)| *e == errno),
            "{}: errno {errno}: {reasons:?}",
            i.name
        );
        faults += u32::from(errno == EFAULT);
    }
    assert!(faults > 40, "{faults}");
    Ok(())
}

fn of_unknown_requests() -> Outcome {
    let t = Trace::new()?;
    let m = machine();
    for fd in [m.kvm.as_raw_fd(), m.raw(), m.cpus[0].raw()] {
        t.says(sys::call(fd, 0xaeff, 0), ENOTTY, "no such request");
        t.says(sys::call(fd, 0x1234_5678, 0), ENOTTY, "no such request");
    }
    Ok(())
}
