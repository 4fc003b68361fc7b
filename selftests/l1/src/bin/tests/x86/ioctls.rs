// SPDX-License-Identifier: GPL-2.0

//! Every ioctl with arguments good and bad: what is refused, and with which errno.

use crate::harness::tests;
use kvm_bindings::*;
use libc::{E2BIG, EEXIST, EFAULT, EINVAL, EIO, ENOENT, ENOTTY, ENXIO};
use rkvm_l1::machine::{cpuid, enable, has_xsave, split};
use rkvm_l1::sys::{self, in_child, Arg, On, IOCTLS, UNMAPPED};
use rkvm_l1::{env, kit, kvm, Exit, Irqchip, Machine, Mode, Outcome};
use std::os::fd::AsRawFd;

tests![
    api_version,
    mmap_size,
    unknown_numbers,
    wrong_size,
    wrong_descriptor,
    unmapped_pointers,
    read_only_pointers,
    required_capabilities,
    capability_values,
    unknown_capabilities,
    create_vm_types,
    descriptors_close_on_exec,
    create_vcpu_ids,
    vcpu_count_limit,
    vcpu_mapping,
    vcpu_mapping_survives_close,
    vcpu_mapping_past_end,
    supported_cpuid_protocol,
    get_cpuid2_protocol,
    set_cpuid2_limits,
    set_cpuid2_after_run,
    msr_list_protocol,
    msr_count_limits,
    tss_and_identity_addresses,
    enable_cap_refusals,
    split_irqchip_states,
    create_irqchip,
    no_irqchip_states,
    interrupt_arguments,
    mp_state_arguments,
    vcpu_events_arguments,
    debugregs_arguments,
    xcrs_arguments,
    xsave_arguments,
    sregs_arguments,
    mce_arguments,
    clock_arguments,
    tsc_khz_arguments,
    msr_filter_arguments,
    signal_mask_arguments,
    dirty_log_arguments,
    create_device_arguments,
    guest_debug_arguments,
    vapic_arguments,
    run_argument,
    boot_cpu_id,
    stats_fd,
    other_process,
    vm_closed_first,
    all_closed_in_every_order,
    system_descriptor_closed,
];

fn api_version() -> Outcome {
    let k = kvm();
    assert_eq!(sys::call(k.as_raw_fd(), sys::GET_API_VERSION, 0), Ok(12));
    assert_eq!(
        sys::call(k.as_raw_fd(), sys::GET_API_VERSION, 1),
        Err(EINVAL)
    );
    Ok(())
}

fn mmap_size() -> Outcome {
    let k = kvm();
    let size = sys::call(k.as_raw_fd(), sys::GET_VCPU_MMAP_SIZE, 0).expect("size");
    // The run page, the page for port I/O, and the coalesced ring's where there is one.
    let ring = k.check_extension_raw(KVM_CAP_COALESCED_MMIO.into());
    assert!(size % 4096 == 0 && size >= 4096 * (ring + 1), "{size}");
    assert_eq!(
        sys::call(k.as_raw_fd(), sys::GET_VCPU_MMAP_SIZE, 1),
        Err(EINVAL)
    );
    Ok(())
}

/// The descriptors of each kind.
fn three(m: &Machine) -> [(On, i32); 3] {
    [
        (On::Sys, m.kvm.as_raw_fd()),
        (On::Vm, m.raw()),
        (On::Vcpu, m.cpus[0].raw()),
    ]
}

/// What an ioctl that does not exist gives: ENOTTY; in-tree KVM says EINVAL on two of the three kinds.
fn no_such(on: On, e: Result<i32, i32>) -> bool {
    e == Err(ENOTTY) || (on != On::Vm && e == Err(EINVAL))
}

fn unknown_numbers() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    for (on, fd) in three(&m) {
        // No such number; another driver's type; a number that only other families have.
        for code in [0xaeff, 0x4008_aef7, 0xc100_ae3f, 0x5401, 0x4020_aeae] {
            let r = sys::call(fd, code, UNMAPPED);
            assert!(no_such(on, r), "{on:?} {code:#x}: {r:?}");
        }
    }
    Ok(())
}

fn wrong_size() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    for (on, fd) in three(&m) {
        for i in IOCTLS.iter().filter(|i| i.on == on && i.arg != Arg::Value) {
            let code = i.code & !0x3fff_0000 | (i.size() as u32 + 4) << 16;
            let r = sys::call(fd, code, UNMAPPED);
            assert!(no_such(on, r), "{} {code:#x}: {r:?}", i.name);
        }
    }
    Ok(())
}

fn wrong_descriptor() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    // These are for more than one kind.
    let shared = [
        "CHECK_EXTENSION",
        "GET_MSRS",
        "ENABLE_CAP",
        "SET_TSC_KHZ",
        "GET_TSC_KHZ",
        "GET_STATS_FD",
        "SET_DEVICE_ATTR",
        "GET_DEVICE_ATTR",
        "HAS_DEVICE_ATTR",
        "CREATE_PIT2",
        // As other kinds' numbers these mean something else.
        "GET_PIT2",
        "SET_PIT2",
    ];
    for (on, fd) in three(&m) {
        for i in IOCTLS
            .iter()
            .filter(|i| i.on != on && !shared.contains(&i.name))
        {
            let r = sys::call(fd, i.code, UNMAPPED);
            assert!(no_such(on, r), "{} on {on:?}: {r:?}", i.name);
        }
    }
    Ok(())
}

/// Refused before the argument is looked at, in a VM with a split interrupt controller: not implemented, or not in this state.
const REFUSED_EARLY: &[(&str, &[i32])] = &[
    ("CREATE_PIT2", &[ENOENT, ENOTTY, EINVAL]),
    ("GET_PIT2", &[ENXIO, ENOTTY, EINVAL]),
    ("SET_PIT2", &[ENXIO, ENOTTY, EINVAL]),
    ("GET_IRQCHIP", &[ENXIO, ENOTTY, EINVAL]),
    ("SET_IRQCHIP", &[ENXIO, ENOTTY, EINVAL]),
    ("GET_STATS_FD", &[ENOTTY, EINVAL]),
    ("X86_SET_MCE", &[ENOTTY, EINVAL]),
    ("TRANSLATE", &[ENOTTY, EINVAL]),
    ("CLEAR_DIRTY_LOG", &[ENOTTY, EINVAL]),
    ("CREATE_DEVICE", &[ENOTTY, EINVAL]),
    ("SET_DEVICE_ATTR", &[ENOTTY, EINVAL]),
    ("GET_DEVICE_ATTR", &[ENOTTY, EINVAL]),
    ("HAS_DEVICE_ATTR", &[ENOTTY, EINVAL]),
    ("SET_IDENTITY_MAP_ADDR", &[EINVAL]),
];

fn faults(at: u64, args: &[Arg]) -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    let mut bad = Vec::new();
    for (on, fd) in three(&m) {
        for i in IOCTLS
            .iter()
            .filter(|i| i.on == on && args.contains(&i.arg))
        {
            let r = sys::call(fd, i.code, at);
            let early = REFUSED_EARLY.iter().find(|(n, _)| *n == i.name);
            if r != Err(EFAULT) && !early.is_some_and(|(_, e)| r.is_err_and(|r| e.contains(&r))) {
                bad.push((i.name, r));
            }
        }
    }
    assert!(bad.is_empty(), "not EFAULT: {bad:?}");
    Ok(())
}

fn unmapped_pointers() -> Outcome {
    faults(UNMAPPED, &[Arg::In, Arg::Out, Arg::InOut])?;
    // The kernel's own half of the address space.
    faults(0xffff_8880_0000_0000, &[Arg::In, Arg::Out, Arg::InOut])
}

fn read_only_pointers() -> Outcome {
    let r = rkvm_l1::ram::Ram::anon(0, 0x4000);
    // SAFETY: our own mapping.
    unsafe { libc::mprotect(r.at(0), r.len(), libc::PROT_READ) };
    faults(r.addr(), &[Arg::Out])
}

fn required_capabilities() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    // What QEMU 11.1 will not start without.
    let caps = [
        KVM_CAP_USER_MEMORY,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
        KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
        KVM_CAP_INTERNAL_ERROR_DATA,
        KVM_CAP_IOEVENTFD,
        KVM_CAP_IOEVENTFD_ANY_LENGTH,
        KVM_CAP_SET_TSS_ADDR,
        KVM_CAP_EXT_CPUID,
        KVM_CAP_MP_STATE,
        KVM_CAP_SIGNAL_MSI,
        KVM_CAP_IRQ_ROUTING,
        KVM_CAP_DEBUGREGS,
        KVM_CAP_XSAVE,
        KVM_CAP_VCPU_EVENTS,
        KVM_CAP_X86_ROBUST_SINGLESTEP,
        KVM_CAP_MCE,
        KVM_CAP_ADJUST_CLOCK,
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        KVM_CAP_IRQCHIP,
        KVM_CAP_IRQFD,
    ];
    for c in caps {
        let (s, v) = (
            k.check_extension_raw(c.into()),
            vm.check_extension_raw(c.into()),
        );
        assert!(
            s > 0 && v > 0,
            "capability {c}: {s} on the system, {v} on a VM"
        );
    }
    Ok(())
}

fn capability_values() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    let exact = [
        (KVM_CAP_HLT, 1),
        (KVM_CAP_USER_MEMORY, 1),
        (KVM_CAP_NR_MEMSLOTS, 32764),
        (KVM_CAP_NOP_IO_DELAY, 1),
        (KVM_CAP_PV_MMU, 0),
        (KVM_CAP_SYNC_MMU, 1),
        (KVM_CAP_IRQ_ROUTING, 4096),
        (KVM_CAP_COALESCED_MMIO, 2),
        (KVM_CAP_COALESCED_PIO, 1),
        (KVM_CAP_READONLY_MEM, 1),
        (KVM_CAP_IMMEDIATE_EXIT, 1),
        (KVM_CAP_SPLIT_IRQCHIP, 1),
        (KVM_CAP_SREGS2, 1),
        (KVM_CAP_GET_TSC_KHZ, 1),
        (KVM_CAP_TSC_DEADLINE_TIMER, 1),
        (KVM_CAP_USER_MEMORY2, 1),
        (KVM_CAP_CHECK_EXTENSION_VM, 1),
        (KVM_CAP_ENABLE_CAP_VM, 1),
        (KVM_CAP_IRQFD_RESAMPLE, 1),
        (KVM_CAP_KVMCLOCK_CTRL, 1),
        (KVM_CAP_USER_NMI, 1),
        (KVM_CAP_GET_MSR_FEATURES, 1),
        (KVM_CAP_X86_USER_SPACE_MSR, 1),
        (KVM_CAP_X86_MSR_FILTER, 1),
    ];
    let xcrs = (KVM_CAP_XCRS, i32::from(has_xsave(&k)));
    for (c, want) in exact.into_iter().chain([xcrs]) {
        let (s, v) = (
            k.check_extension_raw(c.into()),
            vm.check_extension_raw(c.into()),
        );
        assert_eq!((s, v), (want, want), "capability {c}");
    }
    let at_least = [
        (KVM_CAP_NR_VCPUS, 1),
        (KVM_CAP_MAX_VCPUS, 255),
        (KVM_CAP_MAX_VCPU_ID, 255),
        (KVM_CAP_XSAVE2, 4096),
        (KVM_CAP_MCE, 10),
    ];
    for (c, least) in at_least {
        let (s, v) = (
            k.check_extension_raw(c.into()),
            vm.check_extension_raw(c.into()),
        );
        assert!(s >= least && v >= least, "capability {c}: {s}, {v}");
    }
    assert!(
        k.check_extension_raw(KVM_CAP_NR_VCPUS.into())
            <= k.check_extension_raw(KVM_CAP_MAX_VCPUS.into())
    );
    Ok(())
}

fn unknown_capabilities() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    for c in [5, 17, 43, 250, 1000, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(
            sys::call(k.as_raw_fd(), sys::CHECK_EXTENSION, c),
            Ok(0),
            "{c}"
        );
        assert_eq!(
            sys::call(vm.as_raw_fd(), sys::CHECK_EXTENSION, c),
            Ok(0),
            "{c}"
        );
    }
    Ok(())
}

fn create_vm_types() -> Outcome {
    let k = kvm();
    let types = k.check_extension_raw(KVM_CAP_VM_TYPES.into());
    for t in 0..40u64 {
        let r = sys::call(k.as_raw_fd(), sys::CREATE_VM, t);
        let offered = t < 31 && types >> t & 1 == 1;
        assert_eq!(r.is_ok(), t == 0 || offered, "type {t}: {r:?}");
        match r {
            // SAFETY: a descriptor just made.
            Ok(fd) => assert_eq!(unsafe { libc::close(fd) }, 0),
            Err(e) => assert_eq!(e, EINVAL),
        }
    }
    Ok(())
}

fn descriptors_close_on_exec() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    for fd in [m.raw(), m.cpus[0].raw()] {
        // SAFETY: no pointers.
        assert_eq!(
            unsafe { libc::fcntl(fd, libc::F_GETFD) } & libc::FD_CLOEXEC,
            libc::FD_CLOEXEC
        );
    }
    Ok(())
}

fn create_vcpu_ids() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    let max = k.check_extension_raw(KVM_CAP_MAX_VCPU_ID.into()) as u64;
    let new = |id| sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, id);
    assert_eq!(new(max), Err(EINVAL));
    assert_eq!(new(u64::from(u32::MAX)), Err(EINVAL));
    assert_eq!(new(u64::MAX), Err(EINVAL));
    for id in [0, 7, 3, 200] {
        assert!(new(id).is_ok(), "{id}");
        assert_eq!(new(id), Err(EEXIST));
    }
    Ok(())
}

fn vcpu_count_limit() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    split(&vm).expect("split");
    let n = 64.min(k.check_extension_raw(KVM_CAP_MAX_VCPUS.into())) as u64;
    let fds: Vec<_> = (0..n)
        .map(|i| sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, i).expect("vCPU"))
        .collect();
    for fd in fds {
        // SAFETY: descriptors just made.
        unsafe { libc::close(fd) };
    }
    // A vCPU lives as long as its VM, descriptor or not.
    assert_eq!(sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, 0), Err(EEXIST));
    Ok(())
}

fn map(fd: i32, pages: usize, at: i64, prot: i32, flags: i32) -> Result<*mut u8, i32> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * 4096,
            prot,
            flags,
            fd,
            at * 4096,
        )
    };
    if p == libc::MAP_FAILED {
        Err(sys::errno())
    } else {
        Ok(p.cast())
    }
}

fn vcpu_mapping() -> Outcome {
    let m = Machine::new(Mode::Long, |a| {
        a.mov(iced_x86::code_asm::eax, 0x1234_5678)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let mut m = m;
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let fd = m.cpu().raw();
    let pages =
        sys::call(m.kvm.as_raw_fd(), sys::GET_VCPU_MMAP_SIZE, 0).expect("size") as usize / 4096;
    let second = map(fd, pages, 0, rw, libc::MAP_SHARED).expect("a second mapping");
    let read_only = map(fd, 1, 0, libc::PROT_READ, libc::MAP_SHARED).expect("a read-only mapping");
    let page1 = map(fd, 1, 1, libc::PROT_READ, libc::MAP_SHARED).expect("the second page alone");
    assert_eq!(
        m.cpu().run(),
        Ok(Exit::Out {
            port: kit::PORT_RESULT,
            size: 4,
            data: vec![0x78, 0x56, 0x34, 0x12]
        })
    );
    // SAFETY: all three are mapped, and the vCPU does not run.
    unsafe {
        assert_eq!(read_only.add(8).cast::<u32>().read_volatile(), KVM_EXIT_IO);
        let run = &*second.cast::<kvm_run>();
        let off = run.__bindgen_anon_1.io.data_offset as usize;
        assert_eq!(off & !0xfff, 0x1000, "the data page follows the run page");
        assert_eq!(
            page1.add(off - 0x1000).cast::<u32>().read_volatile(),
            0x1234_5678
        );
        libc::munmap(second.cast(), pages * 4096);
        libc::munmap(read_only.cast(), 4096);
    }
    Ok(())
}

fn vcpu_mapping_survives_close() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    let fd = sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, 0).expect("vCPU");
    let p = map(
        fd,
        1,
        0,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    )
    .expect("mapping");
    // SAFETY: our own descriptor.
    unsafe { libc::close(fd) };
    drop((vm, k));
    // SAFETY: the mapping still is there.
    unsafe {
        p.write_volatile(1);
        assert_eq!(p.read_volatile(), 1);
    }
    Ok(())
}

fn vcpu_mapping_past_end() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    let fd = sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, 0).expect("vCPU");
    let pages = sys::call(k.as_raw_fd(), sys::GET_VCPU_MMAP_SIZE, 0).expect("size") as usize / 4096;
    // Either the mapping is refused, or touching it is SIGBUS.
    for at in [pages as i64, 63, 1 << 20, 1 << 40] {
        let Ok(p) = map(
            fd,
            1,
            at,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        ) else {
            continue;
        };
        // SAFETY: the child only reads a byte, which is to kill it.
        let status = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let v = p.read_volatile();
                libc::_exit(i32::from(v));
            }
            let mut s = 0;
            libc::waitpid(pid, &mut s, 0);
            s
        };
        assert!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
            "page {at}: {status:#x}"
        );
    }
    Ok(())
}

#[repr(C)]
struct CpuidBuf {
    nent: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; 300],
}

fn cpuid_buf(nent: u32) -> Box<CpuidBuf> {
    Box::new(CpuidBuf {
        nent,
        padding: 0,
        entries: [kvm_cpuid_entry2::default(); 300],
    })
}

fn supported_cpuid_protocol() -> Outcome {
    let k = kvm();
    let mut full = cpuid_buf(256);
    assert_eq!(
        sys::with(k.as_raw_fd(), sys::GET_SUPPORTED_CPUID, &mut *full),
        Ok(0)
    );
    let n = full.nent;
    assert!(n > 10 && n < 256, "{n} entries");
    for few in [0, 1, n - 1] {
        let mut b = cpuid_buf(few);
        assert_eq!(
            sys::with(k.as_raw_fd(), sys::GET_SUPPORTED_CPUID, &mut *b),
            Err(E2BIG),
            "{few} of {n}"
        );
    }
    let mut b = cpuid_buf(n);
    assert_eq!(
        sys::with(k.as_raw_fd(), sys::GET_SUPPORTED_CPUID, &mut *b),
        Ok(0)
    );
    assert_eq!(b.nent, n);
    // A count beyond reason is taken as the most there can be.
    let mut b = cpuid_buf(u32::MAX);
    assert_eq!(
        sys::with(k.as_raw_fd(), sys::GET_SUPPORTED_CPUID, &mut *b),
        Ok(0)
    );
    assert_eq!(b.nent, n);
    let e = &full.entries[..n as usize];
    assert!(e.iter().any(|e| e.function == 0 && e.eax >= 7), "leaf 0");
    assert!(
        e.iter()
            .any(|e| e.function == 0x8000_0001 && e.edx >> 29 & 1 == 1),
        "long mode"
    );
    let pv = e
        .iter()
        .find(|e| e.function == 0x4000_0000)
        .expect("leaf 0x40000000");
    assert_eq!(
        [pv.ebx, pv.ecx, pv.edx].map(u32::to_le_bytes).concat(),
        b"KVMKVMKVM\0\0\0"
    );
    let one = e.iter().find(|e| e.function == 1).expect("leaf 1");
    assert_eq!(one.ecx >> 5 & 1, 0, "no VMX in a guest");
    assert_eq!(one.ecx >> 21 & 1, 1, "x2APIC is always there");
    Ok(())
}

fn get_cpuid2_protocol() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::Split, 1);
    let want = cpuid(&m.kvm, 0);
    let n = want.as_slice().len() as u32;
    let fd = m.cpu().raw();
    let mut b = cpuid_buf(n - 1);
    assert_eq!(sys::with(fd, sys::GET_CPUID2, &mut *b), Err(E2BIG));
    let mut b = cpuid_buf(300);
    assert_eq!(sys::with(fd, sys::GET_CPUID2, &mut *b), Ok(0));
    assert_eq!(b.nent, n);
    for (i, w) in want.as_slice().iter().enumerate() {
        assert_eq!(
            (b.entries[i].function, b.entries[i].index),
            (w.function, w.index)
        );
    }
    Ok(())
}

fn set_cpuid2_limits() -> Outcome {
    let m = Machine::with(Mode::Real, Irqchip::Split, 1);
    let fd = m.cpus[0].raw();
    let mut b = cpuid_buf(257);
    assert_eq!(sys::with(fd, sys::SET_CPUID2, &mut *b), Err(E2BIG));
    b.nent = u32::MAX;
    assert_eq!(sys::with(fd, sys::SET_CPUID2, &mut *b), Err(E2BIG));
    // None at all is a CPU without features.
    b.nent = 0;
    assert_eq!(sys::with(fd, sys::SET_CPUID2, &mut *b), Ok(0));
    let mut g = cpuid_buf(10);
    assert_eq!(sys::with(fd, sys::GET_CPUID2, &mut *g), Ok(0));
    assert_eq!(g.nent, 0);
    // A list that reaches past what is mapped.
    let r = rkvm_l1::ram::Ram::anon(0, 0x2000);
    // SAFETY: the second page of our own mapping.
    unsafe { libc::munmap(r.at(0x1000), 0x1000) };
    r.set32(0xff0, 100);
    assert_eq!(
        sys::call(fd, sys::SET_CPUID2, r.addr() + 0xff0),
        Err(EFAULT)
    );
    Ok(())
}

fn set_cpuid2_after_run() -> Outcome {
    let mut m = Machine::new(Mode::Long, kit::done)?;
    m.cpu().results();
    let c = cpuid(&m.kvm, 0);
    m.cpu().fd.set_cpuid2(&c)?;
    let mut other = cpuid(&m.kvm, 0);
    let one = other
        .as_mut_slice()
        .iter_mut()
        .find(|e| e.function == 1)
        .expect("leaf 1");
    one.ecx ^= 1;
    assert_eq!(
        m.cpu().fd.set_cpuid2(&other).map_err(|e| e.errno()),
        Err(EINVAL),
        "the CPU has run with other features"
    );
    Ok(())
}

fn msr_list_protocol() -> Outcome {
    let k = kvm();
    for code in [sys::GET_MSR_INDEX_LIST, sys::GET_MSR_FEATURE_INDEX_LIST] {
        let mut b = vec![0u32; 1025];
        assert_eq!(sys::with(k.as_raw_fd(), code, &mut b[0]), Err(E2BIG));
        let n = b[0];
        assert!(n > 0 && n < 1024, "{n} MSRs");
        b[0] = n - 1;
        assert_eq!(sys::with(k.as_raw_fd(), code, &mut b[0]), Err(E2BIG));
        assert_eq!(b[0], n);
        b[0] = 1024;
        assert_eq!(sys::with(k.as_raw_fd(), code, &mut b[0]), Ok(0));
        assert_eq!(b[0], n);
        let mut list = b[1..=n as usize].to_vec();
        list.sort_unstable();
        list.dedup();
        assert_eq!(list.len(), n as usize, "each MSR once");
    }
    Ok(())
}

#[repr(C)]
struct MsrBuf {
    n: u32,
    pad: u32,
    e: [kvm_msr_entry; 300],
}

fn msr_count_limits() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let fd = m.cpus[0].raw();
    let msr = |index| kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut b = Box::new(MsrBuf {
        n: 0,
        pad: 0,
        e: [msr(0x10); 300],
    });
    assert_eq!(sys::with(fd, sys::GET_MSRS, &mut *b), Ok(0));
    for many in [256, 300, u32::MAX] {
        b.n = many;
        assert_eq!(sys::with(fd, sys::GET_MSRS, &mut *b), Err(E2BIG), "{many}");
        assert_eq!(sys::with(fd, sys::SET_MSRS, &mut *b), Err(E2BIG), "{many}");
    }
    b.n = 255;
    assert_eq!(sys::with(fd, sys::GET_MSRS, &mut *b), Ok(255));
    // It stops at the first that does not exist and says how many were done.
    b.n = 5;
    b.e[3] = msr(0xdead_0000);
    assert_eq!(sys::with(fd, sys::GET_MSRS, &mut *b), Ok(3));
    b.e[0] = msr(0xc000_0082);
    b.e[1] = msr(0xc000_0082);
    b.e[2] = msr(0xdead_0000);
    b.e[0].data = 0x1234;
    b.e[1].data = 0x5678;
    assert_eq!(sys::with(fd, sys::SET_MSRS, &mut *b), Ok(2));
    assert_eq!(m.cpus[0].msr(0xc000_0082), Some(0x5678));
    // The system descriptor knows feature MSRs only.
    b.n = 1;
    b.e[0] = msr(0xdead_0000);
    assert_eq!(sys::with(m.kvm.as_raw_fd(), sys::GET_MSRS, &mut *b), Ok(0));
    Ok(())
}

fn tss_and_identity_addresses() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    assert_eq!(
        sys::call(vm.as_raw_fd(), sys::SET_TSS_ADDR, 0xfeff_d000),
        Ok(0)
    );
    assert_eq!(
        sys::call(vm.as_raw_fd(), sys::SET_TSS_ADDR, 0xffff_f000),
        Err(EINVAL),
        "three pages below 4 GiB"
    );
    let mut at = 0xfeff_c000u64;
    assert_eq!(
        sys::with(vm.as_raw_fd(), sys::SET_IDENTITY_MAP_ADDR, &mut at),
        Ok(0)
    );
    let _cpu = vm.create_vcpu(0)?;
    assert_eq!(
        sys::with(vm.as_raw_fd(), sys::SET_IDENTITY_MAP_ADDR, &mut at),
        Err(EINVAL),
        "there is a vCPU"
    );
    Ok(())
}

fn enable_cap_refusals() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::Split, 1);
    for cap in [0, 1, 5, KVM_CAP_USER_MEMORY, 5000, u32::MAX] {
        assert_eq!(enable(m.raw(), cap, 0), Err(EINVAL), "{cap}");
    }
    let fd = m.cpu().raw();
    // A vCPU may have none at all.
    assert!(matches!(enable(fd, 5000, 0), Err(EINVAL | ENOTTY)));
    let mut c = kvm_enable_cap {
        cap: KVM_CAP_EXCEPTION_PAYLOAD,
        flags: 1,
        ..Default::default()
    };
    assert_eq!(
        sys::with(m.raw(), sys::ENABLE_CAP, &mut c),
        Err(EINVAL),
        "flags"
    );
    assert_eq!(
        enable(m.raw(), KVM_CAP_X86_USER_SPACE_MSR, 1 << 20),
        Err(EINVAL)
    );
    Ok(())
}

fn split_irqchip_states() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    assert_eq!(
        enable(vm.as_raw_fd(), KVM_CAP_SPLIT_IRQCHIP, 4097),
        Err(EINVAL),
        "too many pins"
    );
    assert_eq!(split(&vm), Ok(0));
    assert_eq!(split(&vm), Err(EEXIST));
    // (ENOTTY: there is no other controller to be had.)
    assert!(matches!(
        sys::call(vm.as_raw_fd(), sys::CREATE_IRQCHIP, 0),
        Err(EEXIST | ENOTTY)
    ));
    let vm = k.create_vm()?;
    let _cpu = vm.create_vcpu(0)?;
    assert!(
        matches!(split(&vm), Err(EEXIST | EINVAL)),
        "there is a vCPU"
    );
    Ok(())
}

/// rkvm has no PIC, IOAPIC and PIT yet and must say so; in-tree KVM has.
fn create_irqchip() -> Outcome {
    let vm = kvm().create_vm()?;
    let r = sys::call(vm.as_raw_fd(), sys::CREATE_IRQCHIP, 0);
    if env().rkvm && r.is_err() {
        assert!(
            matches!(r, Err(ENOTTY | EINVAL | ENXIO | libc::EOPNOTSUPP)),
            "{r:?}"
        );
        let mut pit = kvm_pit_config::default();
        assert!(sys::with(vm.as_raw_fd(), sys::CREATE_PIT2, &mut pit).is_err());
        // And then the other way is still open.
        assert_eq!(split(&vm), Ok(0));
        return Ok(());
    }
    assert_eq!(r, Ok(0));
    assert_eq!(split(&vm), Err(EEXIST));
    Ok(())
}

fn no_irqchip_states() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::None, 1);
    let vm = m.raw();
    let fd = m.cpu().raw();
    let mut lapic = kvm_lapic_state::default();
    assert_eq!(sys::with(fd, sys::GET_LAPIC, &mut lapic), Err(EINVAL));
    assert_eq!(sys::with(fd, sys::SET_LAPIC, &mut lapic), Err(EINVAL));
    let mut irq = kvm_irq_level {
        level: 1,
        ..Default::default()
    };
    assert_eq!(sys::with(vm, sys::IRQ_LINE, &mut irq), Err(ENXIO));
    let mut msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x40,
        ..Default::default()
    };
    assert_eq!(sys::with(vm, sys::SIGNAL_MSI, &mut msi), Err(EINVAL));
    let e = sys::Event::new();
    let mut irqfd = kvm_irqfd {
        fd: e.0 as u32,
        gsi: 1,
        ..Default::default()
    };
    assert_eq!(sys::with(vm, sys::IRQFD, &mut irqfd), Err(EINVAL));
    for state in [
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_UNINITIALIZED,
    ] {
        let r = m
            .cpu()
            .fd
            .set_mp_state(kvm_mp_state { mp_state: state })
            .map_err(|e| e.errno());
        assert_eq!(r, Err(EINVAL), "state {state} needs a LAPIC");
    }
    m.cpu().fd.set_mp_state(kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    })?;
    Ok(())
}

fn interrupt_arguments() -> Outcome {
    for irqchip in [Irqchip::None, Irqchip::Split] {
        let mut m = Machine::with(Mode::Real, irqchip, 1);
        let fd = m.cpu().raw();
        for irq in [256u32, 1000, u32::MAX] {
            assert_eq!(
                sys::with(fd, sys::INTERRUPT, &mut { irq }),
                Err(EINVAL),
                "{irqchip:?} {irq}"
            );
        }
        assert_eq!(
            sys::with(fd, sys::INTERRUPT, &mut 0x20u32),
            Ok(0),
            "{irqchip:?}"
        );
        if irqchip == Irqchip::Split {
            assert_eq!(sys::with(fd, sys::INTERRUPT, &mut 0x21u32), Err(EEXIST));
        }
    }
    Ok(())
}

fn mp_state_arguments() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::Split, 2);
    assert_eq!(m.cpus[0].fd.get_mp_state()?.mp_state, KVM_MP_STATE_RUNNABLE);
    assert_eq!(
        m.cpus[1].fd.get_mp_state()?.mp_state,
        KVM_MP_STATE_UNINITIALIZED,
        "waits for INIT"
    );
    for state in [6, 11, 1000, u32::MAX] {
        let r = m
            .cpu()
            .fd
            .set_mp_state(kvm_mp_state { mp_state: state })
            .map_err(|e| e.errno());
        assert_eq!(r, Err(EINVAL), "{state}");
    }
    for mp_state in [
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_UNINITIALIZED,
        KVM_MP_STATE_RUNNABLE,
    ] {
        m.cpu().fd.set_mp_state(kvm_mp_state { mp_state })?;
        assert_eq!(m.cpu().fd.get_mp_state()?.mp_state, mp_state);
    }
    Ok(())
}

fn vcpu_events_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let good = m.cpus[0].fd.get_vcpu_events()?;
    m.cpus[0].fd.set_vcpu_events(&good)?;
    let bad = |f: &dyn Fn(&mut kvm_vcpu_events)| {
        let mut e = good;
        f(&mut e);
        m.cpus[0].fd.set_vcpu_events(&e).map_err(|e| e.errno())
    };
    assert_eq!(bad(&|e| e.flags = 1 << 20), Err(EINVAL));
    assert_eq!(
        bad(&|e| (e.exception.injected, e.exception.nr) = (1, 32)),
        Err(EINVAL)
    );
    assert_eq!(
        bad(&|e| (e.exception.injected, e.exception.nr) = (1, 2)),
        Err(EINVAL),
        "NMI is no exception"
    );
    assert_eq!(
        bad(&|e| (e.flags, e.exception.pending) = (e.flags | KVM_VCPUEVENT_VALID_PAYLOAD, 1)),
        Err(EINVAL)
    );
    Ok(())
}

fn debugregs_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let good = m.cpus[0].fd.get_debug_regs()?;
    let set = |f: &dyn Fn(&mut kvm_debugregs)| {
        let mut d = good;
        f(&mut d);
        m.cpus[0].fd.set_debug_regs(&d).map_err(|e| e.errno())
    };
    assert_eq!(set(&|_| ()), Ok(()));
    assert_eq!(set(&|d| d.flags = 1), Err(EINVAL));
    assert_eq!(set(&|d| d.dr6 = 1 << 32), Err(EINVAL));
    assert_eq!(set(&|d| d.dr7 = 1 << 32), Err(EINVAL));
    Ok(())
}

fn xcrs_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let good = m.cpus[0].fd.get_xcrs()?;
    if !has_xsave(&m.kvm) {
        assert_eq!(good.nr_xcrs, 0);
        let set = m.cpus[0].fd.set_xcrs(&good).map_err(|e| e.errno());
        assert_eq!(set, Err(EINVAL));
        return rkvm_l1::skip("XSAVE");
    }
    assert_eq!((good.nr_xcrs, good.xcrs[0].xcr), (1, 0));
    let set = |f: &dyn Fn(&mut kvm_xcrs)| {
        let mut x = good;
        f(&mut x);
        m.cpus[0].fd.set_xcrs(&x).map_err(|e| e.errno())
    };
    assert_eq!(set(&|_| ()), Ok(()));
    assert_eq!(set(&|x| x.flags = 1), Err(EINVAL));
    assert_eq!(set(&|x| x.nr_xcrs = 17), Err(EINVAL));
    assert_eq!(set(&|x| x.nr_xcrs = u32::MAX), Err(EINVAL));
    assert_eq!(set(&|x| x.xcrs[0].value = 0), Err(EINVAL), "x87 must be on");
    assert_eq!(
        set(&|x| x.xcrs[0].value = 5),
        Err(EINVAL),
        "AVX without SSE"
    );
    assert_eq!(set(&|x| x.xcrs[0].value = 1 | 1 << 40), Err(EINVAL));
    assert_eq!(set(&|x| x.xcrs[0].value = 3), Ok(()));
    Ok(())
}

fn xsave_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let cpu = &m.cpus[0].fd;
    let set = |f: &dyn Fn(&mut kvm_xsave)| {
        let mut x = cpu.get_xsave().expect("KVM_GET_XSAVE");
        f(&mut x);
        // SAFETY: the guest's permitted state is no larger than 4 KiB.
        unsafe { cpu.set_xsave(&x) }.map_err(|e| e.errno())
    };
    assert_eq!(set(&|_| ()), Ok(()));
    assert_eq!(
        set(&|x| (x.region[6], x.region[128]) = (0xffff_ffff, 3)),
        Err(EINVAL),
        "MXCSR"
    );
    assert_eq!(
        set(&|x| x.region[128 + 1] = 0x4000_0000),
        Err(EINVAL),
        "XSTATE_BV"
    );
    Ok(())
}

fn sregs_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let good = m.cpus[0].fd.get_sregs()?;
    let set = |f: &dyn Fn(&mut kvm_sregs)| {
        let mut s = good;
        f(&mut s);
        m.cpus[0].fd.set_sregs(&s).map_err(|e| e.errno())
    };
    assert_eq!(set(&|_| ()), Ok(()));
    assert_eq!(set(&|s| s.cr4 |= 1 << 28), Err(EINVAL), "reserved in CR4");
    assert_eq!(set(&|s| s.cr0 &= !1), Err(EINVAL), "PG without PE");
    assert_eq!(
        set(&|s| s.cr4 &= !(1 << 5)),
        Err(EINVAL),
        "long mode without PAE"
    );
    assert_eq!(
        set(&|s| s.efer &= !(1 << 10)),
        Err(EINVAL),
        "LME and PG without LMA"
    );
    assert_eq!(set(&|s| s.efer = 1 << 20), Err(EINVAL), "reserved in EFER");
    assert_eq!(set(&|s| s.cr0 |= 1 << 40), Err(EINVAL), "CR0's high half");
    assert_eq!(
        set(&|s| s.cr0 = (s.cr0 | 1 << 29) & !(1 << 30)),
        Err(EINVAL),
        "NW without CD"
    );
    assert_eq!(
        set(&|s| s.apic_base |= 1 << 60),
        Err(EINVAL),
        "reserved in APIC_BASE"
    );
    assert_eq!(set(&|s| s.cr8 = 15), Ok(()));
    // More than one interrupt in the bitmap is nothing: the lowest counts. One is injected at the next entry.
    let mut s = m.cpus[0].fd.get_sregs()?;
    s.interrupt_bitmap = [0; 4];
    m.cpus[0].fd.set_sregs(&s)?;
    Ok(())
}

fn mce_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut cap = 0u64;
    assert_eq!(
        sys::with(m.kvm.as_raw_fd(), sys::X86_GET_MCE_CAP_SUPPORTED, &mut cap),
        Ok(0)
    );
    let fd = m.cpus[0].raw();
    let set = |v: u64| sys::with(fd, sys::X86_SETUP_MCE, &mut { v });
    assert_eq!(set(cap & !0xff | 10), Ok(0));
    assert_eq!(m.cpus[0].msr(0x179).map(|v| v & 0xff), Some(10));
    assert_eq!(set(0), Err(EINVAL), "no banks");
    assert_eq!(
        set(cap & !0xff | 33),
        Err(EINVAL),
        "more banks than are offered"
    );
    assert_eq!(set(cap | 10 | 1 << 62), Err(EINVAL), "unknown bits");
    Ok(())
}

fn clock_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut c = kvm_clock_data {
        flags: 1 << 30,
        ..Default::default()
    };
    assert_eq!(sys::with(m.raw(), sys::SET_CLOCK, &mut c), Err(EINVAL));
    c.flags = 0;
    assert_eq!(sys::with(m.raw(), sys::SET_CLOCK, &mut c), Ok(0));
    Ok(())
}

fn tsc_khz_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let fd = m.cpus[0].raw();
    let khz = sys::call(fd, sys::GET_TSC_KHZ, 0).expect("GET_TSC_KHZ");
    // Bochs' Ryzen says 99,999 of its 100 MHz.
    assert!(khz >= 90_000, "{khz} kHz");
    assert_eq!(sys::call(m.raw(), sys::GET_TSC_KHZ, 0), Ok(khz));
    assert_eq!(sys::call(fd, sys::SET_TSC_KHZ, khz as u64), Ok(0));
    let vm = m.kvm.create_vm()?;
    assert_eq!(
        sys::call(vm.as_raw_fd(), sys::SET_TSC_KHZ, khz as u64),
        Ok(0)
    );
    Ok(())
}

fn msr_filter_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut bits = [0u8; 0x1000];
    let set = |f: &dyn Fn(&mut kvm_msr_filter)| {
        let mut v = kvm_msr_filter::default();
        f(&mut v);
        sys::with(m.raw(), sys::X86_SET_MSR_FILTER, &mut v)
    };
    let p = bits.as_mut_ptr();
    let range = |flags, nmsrs, base, bitmap| kvm_msr_filter_range {
        flags,
        nmsrs,
        base,
        bitmap,
    };
    assert_eq!(
        set(&|_| ()),
        Ok(0),
        "no ranges, allow by default: no filter"
    );
    assert_eq!(
        set(&|f| f.flags = 1),
        Err(EINVAL),
        "deny by default needs a range"
    );
    assert_eq!(set(&|f| f.flags = 2), Err(EINVAL));
    assert_eq!(set(&|f| f.ranges[0] = range(3, 8, 0, p)), Ok(0));
    assert_eq!(
        set(&|f| f.ranges[0] = range(4, 8, 0, p)),
        Err(EINVAL),
        "range flags"
    );
    assert_eq!(
        set(&|f| f.ranges[0] = range(0, 8, 0, p)),
        Err(EINVAL),
        "neither read nor write"
    );
    assert_eq!(
        set(&|f| f.ranges[0] = range(3, 0x600 * 8 + 64, 0, p)),
        Err(EINVAL),
        "the bitmap is too large"
    );
    assert_eq!(
        set(&|f| f.ranges[0] = range(3, 8, 0, UNMAPPED as *mut u8)),
        Err(EFAULT)
    );
    assert_eq!(
        set(&|f| (f.flags, f.ranges[15]) = (1, range(1, 8, 0x10, p))),
        Ok(0)
    );
    assert_eq!(set(&|_| ()), Ok(0));
    Ok(())
}

fn signal_mask_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let fd = m.cpus[0].raw();
    #[repr(C)]
    struct Mask {
        len: u32,
        set: [u8; 8],
    }
    assert_eq!(
        sys::with(
            fd,
            sys::SET_SIGNAL_MASK,
            &mut Mask {
                len: 8,
                set: [0; 8]
            }
        ),
        Ok(0)
    );
    for len in [0, 4, 9, 128, u32::MAX] {
        assert_eq!(
            sys::with(fd, sys::SET_SIGNAL_MASK, &mut Mask { len, set: [0; 8] }),
            Err(EINVAL),
            "{len}"
        );
    }
    assert_eq!(sys::call(fd, sys::SET_SIGNAL_MASK, 0), Ok(0), "none again");
    Ok(())
}

fn dirty_log_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut bits = [0u8; 0x1000];
    let mut get = |slot| {
        let mut d = kvm_dirty_log {
            slot,
            ..Default::default()
        };
        d.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
        sys::with(m.raw(), sys::GET_DIRTY_LOG, &mut d)
    };
    assert_eq!(get(0), Err(ENOENT), "no log is kept");
    assert_eq!(get(5), Err(ENOENT), "no such slot");
    assert_eq!(get(40_000), Err(EINVAL));
    assert_eq!(get(2 << 16), Err(EINVAL), "no such address space");
    assert_eq!(m.slot(0, &m.ram, KVM_MEM_LOG_DIRTY_PAGES), Ok(0));
    assert_eq!(get(0), Ok(0));
    let mut d = kvm_dirty_log {
        slot: 0,
        ..Default::default()
    };
    d.__bindgen_anon_1.dirty_bitmap = UNMAPPED as *mut _;
    assert_eq!(sys::with(m.raw(), sys::GET_DIRTY_LOG, &mut d), Err(EFAULT));
    Ok(())
}

fn create_device_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let none = m.kvm.check_extension_raw(KVM_CAP_DEVICE_CTRL.into()) == 0;
    for type_ in [0, 1, 5, 100, u32::MAX] {
        let mut d = kvm_create_device {
            type_,
            ..Default::default()
        };
        let want = if none { ENOTTY } else { libc::ENODEV };
        assert_eq!(
            sys::with(m.raw(), sys::CREATE_DEVICE, &mut d),
            Err(want),
            "{type_}"
        );
    }
    Ok(())
}

fn guest_debug_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    if m.kvm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG.into()) == 0 {
        let mut d = kvm_guest_debug::default();
        let r = sys::with(m.cpus[0].raw(), sys::SET_GUEST_DEBUG, &mut d);
        assert!(matches!(r, Err(EINVAL | ENOTTY)), "no capability: {r:?}");
        return Ok(());
    }
    m.cpus[0].fd.set_guest_debug(&kvm_guest_debug {
        control: 1,
        ..Default::default()
    })?;
    m.cpus[0].fd.set_guest_debug(&kvm_guest_debug::default())?;
    Ok(())
}

fn vapic_arguments() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    assert_eq!(
        sys::with(m.cpus[0].raw(), sys::SET_VAPIC_ADDR, &mut 0u64),
        Ok(0)
    );
    let none = Machine::with(Mode::Long, Irqchip::None, 1);
    assert_eq!(
        sys::with(none.cpus[0].raw(), sys::SET_VAPIC_ADDR, &mut 0u64),
        Err(EINVAL),
        "no LAPIC"
    );
    Ok(())
}

fn run_argument() -> Outcome {
    let m = Machine::new(Mode::Long, kit::done)?;
    for arg in [1, UNMAPPED, u64::MAX] {
        assert_eq!(sys::call(m.cpus[0].raw(), sys::RUN, arg), Err(EINVAL));
    }
    Ok(())
}

fn boot_cpu_id() -> Outcome {
    let k = kvm();
    if k.check_extension_raw(KVM_CAP_SET_BOOT_CPU_ID.into()) == 0 {
        return Ok(());
    }
    let vm = k.create_vm()?;
    assert_eq!(sys::call(vm.as_raw_fd(), sys::SET_BOOT_CPU_ID, 1), Ok(0));
    let _cpu = vm.create_vcpu(0)?;
    assert_eq!(
        sys::call(vm.as_raw_fd(), sys::SET_BOOT_CPU_ID, 0),
        Err(libc::EBUSY)
    );
    Ok(())
}

fn stats_fd() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    if m.kvm.check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) == 0 {
        for fd in [m.raw(), m.cpus[0].raw()] {
            let r = sys::call(fd, sys::GET_STATS_FD, 0);
            assert!(matches!(r, Err(EINVAL | ENOTTY)), "no capability: {r:?}");
        }
        return Ok(());
    }
    for fd in [m.raw(), m.cpus[0].raw()] {
        let fd = sys::call(fd, sys::GET_STATS_FD, 0).expect("GET_STATS_FD");
        let mut head = [0u32; 6];
        // SAFETY: 24 bytes of ours; the descriptor is new.
        unsafe {
            assert_eq!(libc::read(fd, head.as_mut_ptr().cast(), 24), 24);
            libc::close(fd);
        }
        let [flags, name, n, id, desc, data] = head;
        assert!(
            flags == 0 && name >= 16 && n > 0 && id >= 24 && desc > id && data > desc,
            "{head:?}"
        );
    }
    Ok(())
}

fn other_process() -> Outcome {
    let mut m = Machine::new(Mode::Long, kit::done)?;
    let (vm, cpu) = (m.raw(), m.cpu().raw());
    let sysfd = m.kvm.as_raw_fd();
    let e = in_child(|| {
        let mut regs = kvm_regs::default();
        let mut clock = kvm_clock_data::default();
        let vm_refused = [
            sys::call(vm, sys::CREATE_VCPU, 1),
            sys::with(vm, sys::GET_CLOCK, &mut clock),
            sys::call(vm, sys::CHECK_EXTENSION, 0),
        ];
        let cpu_refused = [
            sys::call(cpu, sys::RUN, 0),
            sys::with(cpu, sys::GET_REGS, &mut regs),
        ];
        if vm_refused
            .iter()
            .chain(&cpu_refused)
            .any(|r| *r != Err(EIO))
        {
            eprintln!("VM {vm_refused:?}, vCPU {cpu_refused:?}");
            return 1;
        }
        if sys::call(sysfd, sys::GET_API_VERSION, 0) != Ok(12) {
            return 2;
        }
        0
    });
    assert_eq!(e, 0);
    // The parent is not disturbed.
    m.cpu().results();
    Ok(())
}

fn vm_closed_first() -> Outcome {
    let m = Machine::new(Mode::Long, |a| {
        a.mov(iced_x86::code_asm::eax, 7)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let Machine {
        mut cpus,
        vm,
        ram,
        kvm,
        ..
    } = m;
    drop((vm, kvm));
    assert_eq!(cpus[0].results(), [7]);
    drop(cpus);
    drop(ram);
    Ok(())
}

fn all_closed_in_every_order() -> Outcome {
    for order in 0..6 {
        let k = kvm();
        let vm = k.create_vm()?;
        split(&vm).expect("split");
        let cpu = vm.create_vcpu(0)?;
        let mut things: Vec<Option<Box<dyn std::any::Any>>> =
            vec![Some(Box::new(k)), Some(Box::new(vm)), Some(Box::new(cpu))];
        let first = order / 2;
        drop(things[first].take());
        let rest: Vec<usize> = (0..3).filter(|i| *i != first).collect();
        drop(things[rest[order % 2]].take());
        drop(things);
    }
    Ok(())
}

fn system_descriptor_closed() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    drop(k);
    let cpu = vm.create_vcpu(0)?;
    cpu.get_regs()?;
    Ok(())
}
