// SPDX-License-Identifier: GPL-2.0

//! Every ioctl with arguments good and bad: what is refused, and with which errno.

use crate::harness::tests;
use kvm_bindings::*;
use libc::{EBADF, EBUSY, EEXIST, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOEXEC, ENOTTY, ENXIO};
use rkvm_l1::machine::{enable, x, Cpu, Machine, OFF, PC, PSCI};
use rkvm_l1::ram::Ram;
use rkvm_l1::sys::{self, in_child, Arg, On, IOCTLS, UNMAPPED};
use rkvm_l1::{done, env, guest, kit, kvm, Outcome};
use std::os::fd::AsRawFd;

tests![
    api_version,
    mmap_size,
    unknown_numbers,
    wrong_size,
    wrong_descriptor,
    unmapped_pointers,
    read_only_pointers,
    capability_values,
    unknown_capabilities,
    widths_of_addresses,
    vcpu_ids,
    vcpu_mapping,
    vcpu_not_initialized,
    vcpu_init_arguments,
    vcpu_init_resets,
    preferred_target,
    mp_state_arguments,
    signal_mask_arguments,
    run_argument,
    guest_debug_is_refused,
    enable_cap_arguments,
    irq_line_arguments,
    irqfd_arguments,
    ioeventfd_arguments,
    routing_arguments,
    signal_msi_arguments,
    create_device_arguments,
    no_gic_after_running,
    other_process,
    vm_closed_first,
    all_closed_in_every_order,
    descriptors_close_on_exec,
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
    let ring = k.check_extension_raw(KVM_CAP_COALESCED_MMIO.into());
    assert!(size % 4096 == 0 && size > 4096 * ring, "{size}");
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

/// What an ioctl that does not exist gives: ENOTTY; in-tree KVM says EINVAL.
fn no_such(e: Result<i32, i32>) -> bool {
    e == Err(ENOTTY) || (!env().rkvm && e == Err(EINVAL))
}

fn unknown_numbers() -> Outcome {
    let m = Machine::with(1);
    for (on, fd) in three(&m) {
        // No such number; another driver's type; numbers that only x86 has.
        for code in [0xaeff, 0x4008_aef7, 0x5401, 0x8138_ae83, 0xc008_ae91] {
            let r = sys::call(fd, code, UNMAPPED);
            assert!(no_such(r), "{on:?} {code:#x}: {r:?}");
        }
    }
    Ok(())
}

fn wrong_size() -> Outcome {
    let m = Machine::with(1);
    for (on, fd) in three(&m) {
        for i in IOCTLS.iter().filter(|i| i.on == on && i.arg != Arg::Value) {
            let code = i.code & !0x3fff_0000 | (i.size() as u32 + 4) << 16;
            let r = sys::call(fd, code, UNMAPPED);
            assert!(no_such(r), "{} {code:#x}: {r:?}", i.name);
        }
    }
    Ok(())
}

fn wrong_descriptor() -> Outcome {
    let m = Machine::with(1);
    // For more than one kind, or with a number that means something else to another.
    let shared = [
        "CHECK_EXTENSION",
        "ENABLE_CAP",
        "SET_DEVICE_ATTR",
        "GET_DEVICE_ATTR",
        "HAS_DEVICE_ATTR",
        "ARM_SET_DEVICE_ADDR",
        "GET_ONE_REG",
    ];
    for (on, fd) in three(&m) {
        let other = IOCTLS.iter().filter(|i| i.on != on);
        for i in other.filter(|i| !shared.contains(&i.name)) {
            let r = sys::call(fd, i.code, UNMAPPED);
            assert!(no_such(r), "{} on {on:?}: {r:?}", i.name);
        }
    }
    Ok(())
}

/// Refused before the argument is looked at: not there, or not in this state.
const REFUSED_EARLY: &[(&str, &[i32])] = &[
    ("SET_DEVICE_ATTR", &[ENOTTY, EINVAL, ENXIO]),
    ("GET_DEVICE_ATTR", &[ENOTTY, EINVAL, ENXIO]),
    ("HAS_DEVICE_ATTR", &[ENOTTY, EINVAL, ENXIO]),
    ("SET_GUEST_DEBUG", &[ENOTTY, EINVAL]),
    ("GET_VCPU_EVENTS", &[ENOTTY, EINVAL]),
    ("SET_VCPU_EVENTS", &[ENOTTY, EINVAL]),
    ("ARM_VCPU_FINALIZE", &[ENOTTY, EINVAL]),
    ("ARM_SET_DEVICE_ADDR", &[ENOTTY, EINVAL]),
    ("CLEAR_DIRTY_LOG", &[ENOTTY, EINVAL]),
];

fn faults(at: u64, args: &[Arg]) {
    let m = Machine::with(1);
    let mut bad = Vec::new();
    for (on, fd) in three(&m) {
        let of_this = IOCTLS.iter().filter(|i| i.on == on);
        for i in of_this.filter(|i| args.contains(&i.arg)) {
            let r = sys::call(fd, i.code, at);
            let early = REFUSED_EARLY.iter().find(|(n, _)| *n == i.name);
            if r != Err(EFAULT) && !early.is_some_and(|(_, e)| r.is_err_and(|r| e.contains(&r))) {
                bad.push((i.name, r));
            }
        }
    }
    assert!(bad.is_empty(), "not EFAULT: {bad:?}");
}

fn unmapped_pointers() -> Outcome {
    let all = [Arg::In, Arg::Out, Arg::InOut];
    faults(UNMAPPED, &all);
    // The kernel's own half of the address space, and its very end.
    faults(0xffff_8000_0000_0000, &all);
    faults(u64::MAX - 7, &all);
    Ok(())
}

fn read_only_pointers() -> Outcome {
    let r = Ram::anon(0, 0x4000);
    // SAFETY: our own mapping.
    unsafe { libc::mprotect(r.at(0), r.len(), libc::PROT_READ) };
    faults(r.addr(), &[Arg::Out]);
    Ok(())
}

fn capability_values() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    // What QEMU 11.1 will not start without, and what it takes from the values.
    let exact = [
        (KVM_CAP_USER_MEMORY, 1),
        (KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1),
        (KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1),
        (KVM_CAP_INTERNAL_ERROR_DATA, 1),
        (KVM_CAP_IOEVENTFD, 1),
        (KVM_CAP_IOEVENTFD_ANY_LENGTH, 1),
        (KVM_CAP_SYNC_MMU, 1),
        (KVM_CAP_IRQCHIP, 1),
        (KVM_CAP_IRQFD, 1),
        (KVM_CAP_IRQFD_RESAMPLE, 1),
        (KVM_CAP_IRQ_ROUTING, 4096),
        (KVM_CAP_MP_STATE, 1),
        (KVM_CAP_ONE_REG, 1),
        (KVM_CAP_ARM_PSCI, 1),
        (KVM_CAP_ARM_PSCI_0_2, 1),
        (KVM_CAP_DEVICE_CTRL, 1),
        (KVM_CAP_READONLY_MEM, 1),
        (KVM_CAP_IMMEDIATE_EXIT, 1),
        (KVM_CAP_CHECK_EXTENSION_VM, 1),
        (KVM_CAP_ENABLE_CAP_VM, 1),
        (KVM_CAP_USER_MEMORY2, 1),
        (KVM_CAP_ARM_NISV_TO_USER, 1),
        (KVM_CAP_ARM_SYSTEM_SUSPEND, 1),
        // x86's
        (KVM_CAP_HLT, 0),
        (KVM_CAP_EXT_CPUID, 0),
    ];
    for (c, want) in exact {
        let got = vm.check_extension_raw(c.into());
        assert_eq!(got, want, "capability {c}");
    }
    let at_least = [
        (KVM_CAP_NR_VCPUS, 1),
        (KVM_CAP_MAX_VCPUS, 255),
        (KVM_CAP_MAX_VCPU_ID, 255),
        (KVM_CAP_NR_MEMSLOTS, 509),
        (KVM_CAP_ARM_VM_IPA_SIZE, 40),
    ];
    for (c, least) in at_least {
        let got = k.check_extension_raw(c.into());
        assert!(got >= least, "capability {c}: {got}");
    }
    Ok(())
}

fn unknown_capabilities() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    for c in [5, 17, 43, 1000, u64::from(u32::MAX), u64::MAX] {
        for fd in [k.as_raw_fd(), vm.as_raw_fd()] {
            assert_eq!(sys::call(fd, sys::CHECK_EXTENSION, c), Ok(0), "{c}");
        }
    }
    Ok(())
}

fn close(fd: i32) {
    // SAFETY: a descriptor that nothing else uses.
    unsafe { libc::close(fd) };
}

fn widths_of_addresses() -> Outcome {
    let k = kvm();
    let most = k.check_extension_raw(KVM_CAP_ARM_VM_IPA_SIZE.into()) as u64;
    for bits in 0..256u64 {
        let r = sys::call(k.as_raw_fd(), sys::CREATE_VM, bits);
        let good = bits == 0 || (32..=most).contains(&bits);
        assert_eq!(r.is_ok(), good, "{bits} bits: {r:?}");
        match r {
            Ok(fd) => {
                // A slot may end where the addresses do, and not begin behind.
                let ram = Ram::anon(0, 0x1000);
                let end = 1 << if bits == 0 { 40 } else { bits };
                for (gpa, fits) in [(end - 0x1000, true), (end, false)] {
                    let mut s = kvm_userspace_memory_region {
                        slot: u32::from(!fits),
                        guest_phys_addr: gpa,
                        memory_size: 0x1000,
                        userspace_addr: ram.addr(),
                        ..Default::default()
                    };
                    let r = sys::with(fd, sys::SET_USER_MEMORY_REGION, &mut s);
                    assert_eq!(r.is_ok(), fits, "{bits} bits, slot at {gpa:#x}: {r:?}");
                }
                close(fd);
            }
            Err(e) => assert_eq!(e, EINVAL, "{bits} bits"),
        }
    }
    for t in [1 << 8, 1 << 16, 1 << 32, u64::MAX] {
        let r = sys::call(k.as_raw_fd(), sys::CREATE_VM, t);
        assert_eq!(r, Err(EINVAL), "type {t:#x}");
    }
    Ok(())
}

fn vcpu_ids() -> Outcome {
    let k = kvm();
    let vm = k.create_vm()?;
    let limit = k.check_extension_raw(KVM_CAP_MAX_VCPU_ID.into()) as u64;
    assert!(sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, 0).is_ok());
    assert_eq!(sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, 0), Err(EEXIST));
    for id in [limit, limit + 1, 1 << 31, u64::from(u32::MAX)] {
        let r = sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, id);
        assert_eq!(r, Err(EINVAL), "id {id}");
    }
    assert!(sys::call(vm.as_raw_fd(), sys::CREATE_VCPU, limit - 1).is_ok());
    Ok(())
}

fn vcpu_mapping() -> Outcome {
    let m = Machine::with(1);
    let size = sys::call(m.kvm.as_raw_fd(), sys::GET_VCPU_MMAP_SIZE, 0).expect("size") as usize;
    let map = |len: usize, offset: i64, flags: i32| {
        // SAFETY: a new mapping of a descriptor of ours.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                flags,
                m.cpus[0].raw(),
                offset,
            );
            if at == libc::MAP_FAILED {
                return Err(sys::errno());
            }
            at.cast::<u64>().read_volatile();
            libc::munmap(at, len);
            Ok(())
        }
    };
    assert_eq!(map(size, 0, libc::MAP_SHARED), Ok(()));
    assert_eq!(map(4096, 0, libc::MAP_SHARED), Ok(()));
    Ok(())
}

/// A vCPU that KVM_ARM_VCPU_INIT has not been called for.
fn raw_vcpu() -> (Machine, Cpu) {
    let m = Machine::bare();
    let cpu = Cpu::new(m.vm.create_vcpu(0).expect("KVM_CREATE_VCPU"));
    (m, cpu)
}

fn vcpu_not_initialized() -> Outcome {
    let (_m, mut cpu) = raw_vcpu();
    assert_eq!(cpu.run(), Err(ENOEXEC));
    assert_eq!(cpu.get(PC), Err(ENOEXEC));
    assert_eq!(cpu.set(PC, 0), Err(ENOEXEC));
    let mut list = 0u64;
    assert_eq!(
        sys::with(cpu.raw(), sys::GET_REG_LIST, &mut list),
        Err(ENOEXEC)
    );
    cpu.init(PSCI).expect("KVM_ARM_VCPU_INIT");
    assert_eq!(cpu.get(PC), Ok(0));
    Ok(())
}

fn vcpu_init_arguments() -> Outcome {
    let (_m, cpu) = raw_vcpu();
    let init = |target: u32, features: [u32; 7]| {
        let mut i = kvm_vcpu_init { target, features };
        sys::with(cpu.raw(), sys::ARM_VCPU_INIT, &mut i)
    };
    for target in [99, u32::MAX] {
        assert_eq!(init(target, [0; 7]), Err(EINVAL), "target {target}");
    }
    for word in 0..7 {
        let mut f = [0; 7];
        f[word] = 1 << 31;
        let r = init(KVM_ARM_TARGET_GENERIC_V8, f);
        assert_eq!(r, Err(ENOENT), "word {word}");
    }
    assert_eq!(
        init(KVM_ARM_TARGET_GENERIC_V8, [PSCI, 0, 0, 0, 0, 0, 0]),
        Ok(0)
    );
    // Once more, but with the same features.
    assert_eq!(
        init(KVM_ARM_TARGET_GENERIC_V8, [PSCI, 0, 0, 0, 0, 0, 0]),
        Ok(0)
    );
    assert_eq!(
        init(KVM_ARM_TARGET_GENERIC_V8, [0, 0, 0, 0, 0, 0, 0]),
        Err(EINVAL)
    );
    Ok(())
}

fn vcpu_init_resets() -> Outcome {
    let m = Machine::new(guest![done!()]);
    let c = &m.cpus[0];
    c.set(x(5), 77).expect("x5");
    c.init(PSCI).expect("KVM_ARM_VCPU_INIT");
    assert_eq!((c.reg(x(5)), c.reg(PC)), (0, 0));
    Ok(())
}

fn preferred_target() -> Outcome {
    let m = Machine::bare();
    let mut init = kvm_vcpu_init {
        target: 99,
        features: [!0; 7],
    };
    assert_eq!(
        sys::with(m.raw(), sys::ARM_PREFERRED_TARGET, &mut init),
        Ok(0)
    );
    assert_eq!(
        (init.target, init.features),
        (KVM_ARM_TARGET_GENERIC_V8, [0; 7])
    );
    Ok(())
}

fn mp_state_arguments() -> Outcome {
    let mut m = Machine::bare();
    m.add_cpu(0, PSCI);
    m.add_cpu(1, PSCI | OFF);
    let get = |n: usize| {
        let mut s = kvm_mp_state::default();
        sys::with(m.cpus[n].raw(), sys::GET_MP_STATE, &mut s).expect("KVM_GET_MP_STATE");
        s.mp_state
    };
    let set = |mp_state: u32| {
        let mut s = kvm_mp_state { mp_state };
        sys::with(m.cpus[0].raw(), sys::SET_MP_STATE, &mut s)
    };
    assert_eq!(
        (get(0), get(1)),
        (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED)
    );
    for bad in [
        KVM_MP_STATE_UNINITIALIZED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_SIPI_RECEIVED,
        99,
        u32::MAX,
    ] {
        assert_eq!(set(bad), Err(EINVAL), "state {bad}");
    }
    assert_eq!(set(KVM_MP_STATE_STOPPED), Ok(0));
    assert_eq!(get(0), KVM_MP_STATE_STOPPED);
    assert_eq!(set(KVM_MP_STATE_RUNNABLE), Ok(0));
    assert_eq!(get(0), KVM_MP_STATE_RUNNABLE);
    Ok(())
}

fn signal_mask_arguments() -> Outcome {
    let m = Machine::with(1);
    let fd = m.cpus[0].raw();
    // The length, then the set.
    let mut mask = [8u32, 0, 0];
    assert_eq!(sys::with(fd, sys::SET_SIGNAL_MASK, &mut mask), Ok(0));
    for len in [0, 4, 7, 9, 16, u32::MAX] {
        mask[0] = len;
        let r = sys::with(fd, sys::SET_SIGNAL_MASK, &mut mask);
        assert_eq!(r, Err(EINVAL), "length {len}");
    }
    assert_eq!(sys::call(fd, sys::SET_SIGNAL_MASK, 0), Ok(0));
    Ok(())
}

fn run_argument() -> Outcome {
    let m = Machine::new(guest![done!()]);
    assert_eq!(sys::call(m.cpus[0].raw(), sys::RUN, 1), Err(EINVAL));
    Ok(())
}

fn guest_debug_is_refused() -> Outcome {
    let m = Machine::with(1);
    if m.vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG.into()) != 0 {
        return Ok(());
    }
    let mut d = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    };
    let r = sys::with(m.cpus[0].raw(), sys::SET_GUEST_DEBUG, &mut d);
    assert!(matches!(r, Err(ENOTTY | EINVAL)), "{r:?}");
    Ok(())
}

fn enable_cap_arguments() -> Outcome {
    let m = Machine::with(1);
    assert_eq!(enable(m.raw(), KVM_CAP_ARM_NISV_TO_USER, 0), Ok(0));
    for cap in [KVM_CAP_HLT, KVM_CAP_USER_MEMORY, 9999, u32::MAX] {
        assert_eq!(enable(m.raw(), cap, 0), Err(EINVAL), "capability {cap}");
    }
    let mut c = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        flags: 1,
        ..Default::default()
    };
    assert_eq!(sys::with(m.raw(), sys::ENABLE_CAP, &mut c), Err(EINVAL));
    Ok(())
}

/// KVM_IRQ_LINE's number.
pub fn line(kind: u32, vcpu: u32, intid: u32) -> u32 {
    kind << 24 | (vcpu & 0xff) << 16 | intid | (vcpu >> 8) << 28
}

/// KVM_IRQ_LINE
pub fn set_line(m: &Machine, irq: u32, level: u32) -> Result<i32, i32> {
    let mut l = kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq },
        level,
    };
    sys::with(m.raw(), sys::IRQ_LINE, &mut l)
}

fn irq_line_arguments() -> Outcome {
    let mut m = Machine::bare();
    m.add_cpu(0, PSCI);
    // No controller yet.
    assert_eq!(
        set_line(&m, line(KVM_ARM_IRQ_TYPE_SPI, 0, 40), 1),
        Err(ENXIO)
    );
    m.add_gic();
    for (irq, want) in [
        (line(KVM_ARM_IRQ_TYPE_SPI, 0, 40), true),
        (line(KVM_ARM_IRQ_TYPE_SPI, 0, 31), false),
        (line(KVM_ARM_IRQ_TYPE_SPI, 0, 1019), false),
        (line(KVM_ARM_IRQ_TYPE_SPI, 0, 0xffff), false),
        (line(KVM_ARM_IRQ_TYPE_PPI, 0, 20), true),
        (line(KVM_ARM_IRQ_TYPE_PPI, 0, 15), false),
        (line(KVM_ARM_IRQ_TYPE_PPI, 0, 32), false),
        (line(KVM_ARM_IRQ_TYPE_PPI, 1, 20), false),
        (line(KVM_ARM_IRQ_TYPE_PPI, 0xfff, 20), false),
        (line(KVM_ARM_IRQ_TYPE_CPU, 0, 0), false),
        (line(3, 0, 40), false),
        (line(15, 0, 40), false),
    ] {
        for level in [1, 0] {
            let r = set_line(&m, irq, level);
            assert_eq!(r.is_ok(), want, "line {irq:#x}: {r:?}");
            // ENXIO: a vCPU has no such line besides its controller's.
            assert!(
                want || matches!(r, Err(EINVAL | ENXIO)),
                "line {irq:#x}: {r:?}"
            );
        }
    }
    Ok(())
}

fn irqfd_arguments() -> Outcome {
    let m = Machine::with(1);
    let e = sys::Event::new();
    let irqfd = |fd: i32, gsi: u32, flags: u32| {
        let mut i = kvm_irqfd {
            fd: fd as u32,
            gsi,
            flags,
            ..Default::default()
        };
        sys::with(m.raw(), sys::IRQFD, &mut i)
    };
    assert_eq!(irqfd(-1, 8, 0), Err(EBADF));
    assert_eq!(irqfd(m.raw(), 8, 0), Err(EINVAL));
    assert_eq!(irqfd(e.0, 8, 0x10), Err(EINVAL));
    assert_eq!(irqfd(e.0, 8, 0), Ok(0));
    assert_eq!(irqfd(e.0, 8, 0), Err(libc::EBUSY));
    assert_eq!(irqfd(e.0, 8, KVM_IRQFD_FLAG_DEASSIGN), Ok(0));
    // The resampler's eventfd is none.
    assert_eq!(irqfd(e.0, 8, KVM_IRQFD_FLAG_RESAMPLE), Err(EINVAL));
    Ok(())
}

fn ioeventfd_arguments() -> Outcome {
    let m = Machine::with(1);
    let e = sys::Event::new();
    let io = |addr: u64, len: u32, fd: i32, flags: u32| {
        let mut i = kvm_ioeventfd {
            addr,
            len,
            fd,
            flags,
            ..Default::default()
        };
        sys::with(m.raw(), sys::IOEVENTFD, &mut i)
    };
    for len in [3, 5, 9, 16, u32::MAX] {
        assert_eq!(io(kit::MMIO, len, e.0, 0), Err(EINVAL), "length {len}");
    }
    assert_eq!(io(u64::MAX, 4, e.0, 0), Err(EINVAL));
    assert_eq!(io(kit::MMIO, 4, e.0, 1 << 5), Err(EINVAL));
    assert_eq!(io(kit::MMIO, 4, -1, 0), Err(EBADF));
    assert_eq!(
        io(kit::MMIO, 4, e.0, 1 << kvm_ioeventfd_flag_nr_deassign),
        Err(ENOENT)
    );
    assert_eq!(io(kit::MMIO, 4, e.0, 0), Ok(0));
    assert_eq!(io(kit::MMIO, 4, e.0, 0), Err(EEXIST));
    assert_eq!(
        io(kit::MMIO, 4, e.0, 1 << kvm_ioeventfd_flag_nr_deassign),
        Ok(0)
    );
    Ok(())
}

/// KVM_SET_GSI_ROUTING: a header and one entry.
fn set_route(
    m: &Machine,
    [nr, flags]: [u32; 2],
    [gsi, kind, chip, pin]: [u32; 4],
) -> Result<i32, i32> {
    let mut r = [nr, flags, gsi, kind, 0, 0, chip, pin, 0, 0, 0, 0, 0, 0];
    sys::with(m.raw(), sys::SET_GSI_ROUTING, &mut r)
}

/// Has a GSI lead to the SPI with INTID `32 + pin`.
pub fn route(m: &Machine, gsi: u32, pin: u32) {
    let r = set_route(m, [1, 0], [gsi, KVM_IRQ_ROUTING_IRQCHIP, 0, pin]);
    assert_eq!(r, Ok(0));
}

fn routing_arguments() -> Outcome {
    let m = Machine::with(1);
    let set = |nr, flags, gsi, kind, chip, pin| set_route(&m, [nr, flags], [gsi, kind, chip, pin]);
    let chip = KVM_IRQ_ROUTING_IRQCHIP;
    assert_eq!(set(0, 0, 0, 0, 0, 0), Ok(0));
    assert_eq!(set(1, 0, 5, chip, 0, 8), Ok(0));
    assert_eq!(set(1, 1, 5, chip, 0, 8), Err(EINVAL));
    assert_eq!(set(4097, 0, 5, chip, 0, 8), Err(EINVAL));
    assert_eq!(set(1, 0, 5, 99, 0, 8), Err(EINVAL));
    assert_eq!(set(1, 0, 5, chip, 1, 8), Err(EINVAL));
    assert_eq!(set(1, 0, 5, chip, 0, 5000), Err(EINVAL));
    assert_eq!(set(1, 0, 5000, chip, 0, 8), Err(EINVAL));
    Ok(())
}

fn signal_msi_arguments() -> Outcome {
    let m = Machine::with(1);
    // There is no ITS that would take it.
    let mut msi = kvm_msi {
        address_lo: 0x0808_0040,
        data: 8192,
        ..Default::default()
    };
    let r = sys::with(m.raw(), sys::SIGNAL_MSI, &mut msi);
    assert!(matches!(r, Err(ENODEV | EINVAL)), "{r:?}");
    Ok(())
}

fn create_device_arguments() -> Outcome {
    let m = Machine::bare();
    let v3 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    for kind in [0, 99, u32::MAX] {
        let r = m.create_device(kind, 0);
        assert_eq!(r.err(), Some(ENODEV), "kind {kind}");
    }
    let mut test = kvm_create_device {
        type_: v3,
        fd: 0,
        flags: KVM_CREATE_DEVICE_TEST,
    };
    assert_eq!(sys::with(m.raw(), sys::CREATE_DEVICE, &mut test), Ok(0));
    let gic = m.create_device(v3, 0).expect("the GIC");
    assert_eq!(m.create_device(v3, 0).err(), Some(EEXIST));
    // Its descriptor knows attributes only.
    assert_eq!(
        sys::call(gic.as_raw_fd(), sys::CHECK_EXTENSION, 1),
        Err(ENOTTY)
    );
    Ok(())
}

fn no_gic_after_running() -> Outcome {
    let mut m = Machine::bare();
    m.add_cpu(0, PSCI);
    m.code(kit::CODE, guest![done!()]);
    assert_eq!(m.cpu().results(), []);
    let v3 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    assert_eq!(m.create_device(v3, 0).err(), Some(EBUSY));
    Ok(())
}

fn other_process() -> Outcome {
    let m = Machine::new(guest![done!()]);
    let (vm, cpu) = (m.raw(), m.cpus[0].raw());
    let status = in_child(|| {
        let mut one = kvm_one_reg {
            id: PC,
            addr: UNMAPPED,
        };
        let refused = [
            sys::call(cpu, sys::RUN, 0),
            sys::with(cpu, sys::GET_ONE_REG, &mut one),
            sys::call(vm, sys::CREATE_VCPU, 7),
        ];
        i32::from(refused.iter().any(|r| *r != Err(EIO)))
    });
    assert_eq!(status, 0);
    Ok(())
}

fn vm_closed_first() -> Outcome {
    let m = Machine::new(guest!["mov x0, #7", "str x0, [x28]", done!()]);
    let Machine {
        mut cpus,
        vm,
        gic,
        ram,
        ..
    } = m;
    drop(vm);
    drop(gic);
    assert_eq!(cpus[0].results(), [7]);
    drop(cpus);
    drop(ram);
    Ok(())
}

fn all_closed_in_every_order() -> Outcome {
    for order in 0..24usize {
        let Machine {
            mut cpus,
            vm,
            gic,
            ram,
            kvm,
        } = Machine::new(guest!["mov x0, #1", "str x0, [x28]", done!()]);
        assert_eq!(cpus[0].results(), [1]);
        let mut things: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(cpus),
            Box::new(vm),
            Box::new(gic),
            Box::new((ram, kvm)),
        ];
        let mut n = order;
        for left in (1..=4).rev() {
            drop(things.remove(n % left));
            n /= left;
        }
    }
    Ok(())
}

fn descriptors_close_on_exec() -> Outcome {
    let m = Machine::with(1);
    for fd in [m.kvm.as_raw_fd(), m.raw(), m.cpus[0].raw(), m.gic_fd()] {
        // SAFETY: plain numbers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
    Ok(())
}
