// SPDX-License-Identifier: GPL-2.0

//! The GICv3: its attributes, and that interrupts come as they should.

use super::ioctls::{line, route, set_line};
use crate::harness::tests;
use kvm_bindings::*;
use libc::{EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENXIO};
use rkvm_l1::machine::{attribute, Machine, MPIDR_EL1, OFF, PSCI};
use rkvm_l1::sys::{self, UNMAPPED};
use rkvm_l1::{done, gic_on, guest, kit, result, Outcome};
use std::os::fd::AsRawFd;

tests![
    addresses,
    number_of_interrupts,
    initialization,
    attributes_that_are_there,
    unknown_attributes,
    unmapped_values,
    no_vcpu_after_it,
    registers_can_be_set,
    distributor_identity,
    an_affinity_of_user_space,
    regions_in_any_order,
    a_private_interrupt_by_ioctl,
    a_level_stays_until_it_is_lowered,
    an_edge_comes_once,
    masked_and_unmasked,
    priorities,
    an_irqfd,
    a_resampled_irqfd,
    self_sgi,
];

/// A GIC without an address yet, and one vCPU.
fn fresh() -> (Machine, std::os::fd::OwnedFd) {
    let mut m = Machine::bare();
    m.add_cpu(0, PSCI);
    let v3 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    let gic = m.create_device(v3, 0).expect("KVM_CREATE_DEVICE");
    (m, gic)
}

fn set(fd: i32, group: u32, attr: u64, v: u64) -> Result<i32, i32> {
    attribute(fd, sys::SET_DEVICE_ATTR, group, attr, &raw const v as u64)
}

fn get(fd: i32, group: u32, attr: u64) -> Result<u64, i32> {
    let mut v = 0u64;
    attribute(fd, sys::GET_DEVICE_ATTR, group, attr, &raw mut v as u64).map(|_| v)
}

const ADDR: u32 = KVM_DEV_ARM_VGIC_GRP_ADDR;
const DIST: u64 = KVM_VGIC_V3_ADDR_TYPE_DIST as u64;
const REDIST: u64 = KVM_VGIC_V3_ADDR_TYPE_REDIST as u64;
const CTRL: u32 = KVM_DEV_ARM_VGIC_GRP_CTRL;
const INIT: u64 = KVM_DEV_ARM_VGIC_CTRL_INIT as u64;

fn addresses() -> Outcome {
    let (_m, gic) = fresh();
    let fd = gic.as_raw_fd();
    assert_eq!(set(fd, ADDR, DIST, kit::GICD + 0x1000), Err(EINVAL));
    assert_eq!(set(fd, ADDR, REDIST, kit::GICR + 0x1000), Err(EINVAL));
    assert_eq!(set(fd, ADDR, 99, kit::GICD), Err(ENXIO));
    assert_eq!(set(fd, ADDR, DIST, kit::GICD), Ok(0));
    assert_eq!(set(fd, ADDR, DIST, kit::GICD), Err(EEXIST));
    assert_eq!(get(fd, ADDR, DIST), Ok(kit::GICD));
    assert_eq!(set(fd, ADDR, REDIST, kit::GICR), Ok(0));
    assert!(set(fd, ADDR, REDIST, kit::GICR).is_err());
    Ok(())
}

fn number_of_interrupts() -> Outcome {
    let (_m, gic) = fresh();
    let fd = gic.as_raw_fd();
    let n = KVM_DEV_ARM_VGIC_GRP_NR_IRQS;
    for bad in [0, 32, 63, 65, 1056, 0xffff_ffff] {
        assert_eq!(set(fd, n, 0, bad), Err(EINVAL), "{bad}");
    }
    assert_eq!(set(fd, n, 0, 96), Ok(0));
    assert_eq!(set(fd, n, 0, 128), Err(EBUSY));
    assert_eq!(get(fd, n, 0), Ok(96));
    Ok(())
}

fn initialization() -> Outcome {
    let m = Machine::bare();
    let v3 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    let gic = m.create_device(v3, 0).expect("KVM_CREATE_DEVICE");
    // No vCPU yet: in-tree KVM says EPERM or takes it.
    let r = set(gic.as_raw_fd(), CTRL, INIT, 0);
    assert!(!rkvm_l1::env().rkvm || r == Err(ENODEV), "{r:?}");
    let (_m, gic) = fresh();
    assert_eq!(set(gic.as_raw_fd(), CTRL, INIT, 0), Ok(0));
    // Again: nothing.
    assert_eq!(set(gic.as_raw_fd(), CTRL, INIT, 0), Ok(0));
    assert_eq!(set(gic.as_raw_fd(), CTRL, 99, 0), Err(ENXIO));
    Ok(())
}

fn attributes_that_are_there() -> Outcome {
    let m = Machine::with(1);
    let has = |group: u32, attr: u64| attribute(m.gic_fd(), sys::HAS_DEVICE_ATTR, group, attr, 0);
    for (group, attr) in [
        (ADDR, DIST),
        (ADDR, REDIST),
        (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0),
        (CTRL, INIT),
        (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0),
        (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0x14),
        // ICC_PMR_EL1
        (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, 0xc230),
    ] {
        assert_eq!(
            has(group, attr),
            Ok(0),
            "group {group}, attribute {attr:#x}"
        );
    }
    for (group, attr) in [(99, 0), (ADDR, 99), (CTRL, 99), (u32::MAX, u64::MAX)] {
        assert_eq!(
            has(group, attr),
            Err(ENXIO),
            "group {group}, attribute {attr:#x}"
        );
    }
    Ok(())
}

fn unknown_attributes() -> Outcome {
    let m = Machine::with(1);
    for (group, attr) in [
        (99, 0),
        (u32::MAX, u64::MAX),
        (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, 0x1234),
        (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0xfff0_0000),
    ] {
        let (r, w) = (
            get(m.gic_fd(), group, attr),
            set(m.gic_fd(), group, attr, 0),
        );
        assert!(
            matches!(r, Err(ENXIO | EINVAL | libc::ENOENT)),
            "{group}, {attr:#x}: {r:?}"
        );
        assert!(
            matches!(w, Err(ENXIO | EINVAL | libc::ENOENT)),
            "{group}, {attr:#x}: {w:?}"
        );
    }
    // No vCPU has this affinity, which is a mistake before the controller is initialized too.
    let nobody = 0x0102_0304u64 << 32;
    let (_early, early) = fresh();
    for (group, attr) in [
        (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, 0x8),
        // ICC_PMR_EL1
        (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, 0xc230),
        (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, 0),
    ] {
        assert_eq!(get(m.gic_fd(), group, nobody | attr), Err(EINVAL));
        assert_eq!(get(early.as_raw_fd(), group, nobody | attr), Err(EINVAL));
        assert_eq!(get(early.as_raw_fd(), group, attr), Err(EBUSY));
    }
    Ok(())
}

fn unmapped_values() -> Outcome {
    let (_m, gic) = fresh();
    for (group, attr) in [(ADDR, DIST), (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0)] {
        for addr in [UNMAPPED, u64::MAX - 3, 0] {
            let r = attribute(gic.as_raw_fd(), sys::SET_DEVICE_ATTR, group, attr, addr);
            assert_eq!(r, Err(EFAULT), "group {group}");
        }
    }
    Ok(())
}

fn no_vcpu_after_it() -> Outcome {
    let m = Machine::with(1);
    let r = sys::call(m.raw(), sys::CREATE_VCPU, 1);
    assert_eq!(r, Err(EBUSY));
    Ok(())
}

fn registers_can_be_set() -> Outcome {
    let m = Machine::with(1);
    let fd = m.gic_fd();
    let dist = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
    let redist = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
    // GICD_ISENABLER1, GICD_IPRIORITYR8, GICR_ISENABLER0, GICR_ISPENDR0
    for (group, at, v) in [
        (dist, 0x104, 0x8000_0001),
        (dist, 0x420, 0x4830_1808),
        (redist, 0x1_0100, 0xffff),
        (redist, 0x1_0200, 1 << 20),
    ] {
        assert_eq!(set(fd, group, at, v), Ok(0), "{at:#x}");
        assert_eq!(
            get(fd, group, at).map(|r| r & 0xffff_ffff),
            Ok(v),
            "{at:#x}"
        );
    }
    // ICC_PMR_EL1
    let cpu = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
    assert_eq!(set(fd, cpu, 0xc230, 0xf0), Ok(0));
    assert_eq!(get(fd, cpu, 0xc230), Ok(0xf0));
    Ok(())
}

fn distributor_identity() -> Outcome {
    let mut m = Machine::new(guest![
        "mov x0, #0x08000000",
        "ldr w1, [x0, #4]",
        result!("x1"),
        "mov w2, #0xffe8",
        "ldr w1, [x0, x2]",
        result!("x1"),
        // The redistributor's affinity and number.
        "mov x0, #0x080a0000",
        "ldr x1, [x0, #8]",
        result!("x1"),
        // No register: reads zero.
        "mov x0, #0x08000000",
        "mov w2, #0xc000",
        "ldr w1, [x0, x2]",
        result!("x1"),
        done!(),
    ]);
    let r = m.cpu().results();
    // ITLinesNumber: some; PIDR2: architecture 3.
    assert!(r[0] & 31 >= 1, "{:#x}", r[0]);
    assert_eq!(r[1] >> 4 & 15, 3);
    // Last, affinity 0, number 0.
    assert_eq!((r[2] >> 32, r[2] >> 8 & 0xffff, r[2] >> 4 & 1), (0, 0, 1));
    assert_eq!(r[3], 0);
    Ok(())
}

fn an_affinity_of_user_space() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "mov x0, #0x080a0000",
        "ldr x1, [x0, #8]",
        "lsr x1, x1, #32",
        result!("x1"),
        // SPI 40 to 0.0.3.8
        "mov x0, #0x08000000",
        "mov w1, #0x100",
        "str w1, [x0, #0x84]",
        "str w1, [x0, #0x104]",
        "mov x2, #0x308",
        "str x2, [x0, #0x6140]",
        "str w1, [x0, #0x204]",
        // An SGI to 0.0.3.8, and to 0.0.0.0, which nobody is any more.
        "mov x9, #0x100",
        "movk x9, #0x0503, lsl #16",
        "msr icc_sgi1r_el1, x9",
        "mov x9, #1",
        "movk x9, #0x0600, lsl #16",
        "msr icc_sgi1r_el1, x9",
        "msr daifclr, #2",
        "isb",
        "mov x3, #0x4000000",
        "1: subs x3, x3, #1",
        "b.eq 2f",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "ldr w1, [x0, #160]",
        "ldr w2, [x0, #20]",
        "cbz w1, 1b",
        "cbz w2, 1b",
        "2:",
        result!("x1"),
        result!("x2"),
        "ldr w1, [x0, #24]",
        result!("x1"),
        done!(),
    ]);
    // Routes that name the old one are there before it changes: they lead to nobody then.
    let (fd, dist) = (m.gic_fd(), KVM_DEV_ARM_VGIC_GRP_DIST_REGS);
    assert_eq!(m.cpus[0].set(MPIDR_EL1, 0x8000_0308), Ok(0));
    assert_eq!(get(fd, dist, 0x6140).map(|v| v & 0xffff_ffff), Ok(0));
    // So is its redistributor named.
    let typer = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
    assert_eq!(
        get(fd, typer, 0x308 << 32 | 0xc).map(|v| v & 0xffff_ffff),
        Ok(0x308)
    );
    assert_eq!(get(fd, typer, 0xc), Err(EINVAL));
    assert_eq!(m.cpu().results(), [0x308, 1, 1, 0]);
    assert_eq!(m.exceptions(), 0);
    Ok(())
}

fn regions_in_any_order() -> Outcome {
    let mut m = Machine::bare();
    for i in 0..3 {
        m.add_cpu(i, if i == 0 { PSCI } else { PSCI | OFF });
    }
    let v3 = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    let gic = m.create_device(v3, 0).expect("KVM_CREATE_DEVICE");
    let fd = gic.as_raw_fd();
    assert_eq!(set(fd, ADDR, DIST, kit::GICD), Ok(0));
    let region = u64::from(KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION);
    // Two at the top, then three below, of which one is used.
    assert_eq!(set(fd, ADDR, region, 2 << 52 | 0x0a00_0000), Ok(0));
    assert_eq!(set(fd, CTRL, INIT, 0), Ok(0));
    assert_eq!(set(fd, ADDR, region, 3 << 52 | 0x0810_0000 | 1), Ok(0));
    m.code(
        kit::CODE,
        guest![
            "mov x0, #0x0a000000",
            "ldr x1, [x0, #8]",
            result!("x1"),
            "mov x0, #0x0a020000",
            "ldr x1, [x0, #8]",
            result!("x1"),
            "mov x0, #0x08100000",
            "ldr x1, [x0, #8]",
            result!("x1"),
            done!(),
        ],
    );
    let r = m.cpu().results();
    // Affinity, number, Last.
    let told = r.iter().map(|t| (t >> 32, t >> 8 & 0xffff, t >> 4 & 1));
    assert_eq!(told.collect::<Vec<_>>(), [(0, 0, 0), (1, 1, 1), (2, 2, 1)]);
    Ok(())
}

/// A guest that turns its GIC on with SPI 40 enabled and routed to it, says so, and waits for interrupts.
fn waiter() -> &'static [u8] {
    guest![
        gic_on!(),
        "mov x0, #0x08000000",
        "mov w1, #0x100",
        "str w1, [x0, #0x104]",
        "str xzr, [x0, #0x6140]",
        "msr daifclr, #2",
        "str xzr, [x28]",
        "1: wfi",
        "str xzr, [x28]",
        "b 1b",
    ]
}

/// Runs until the guest writes its next result.
fn next(m: &mut Machine) {
    let e = m.cpu().run();
    assert!(
        matches!(
            &e,
            Ok(rkvm_l1::Exit::Write {
                gpa: kit::RESULT,
                ..
            })
        ),
        "{e:x?}, PC {:#x}, ESR {:#x}",
        m.cpus[0].reg(rkvm_l1::machine::PC),
        m.exception()[0]
    );
}

fn a_private_interrupt_by_ioctl() -> Outcome {
    let mut m = Machine::new(waiter());
    next(&mut m);
    let irq = line(KVM_ARM_IRQ_TYPE_PPI, 0, 20);
    for n in 1..=3 {
        // Level-triggered: it is taken again as long as the line is high.
        assert_eq!(set_line(&m, irq, 1), Ok(0));
        let before = m.count(0, 20);
        next_while_high(&mut m, irq, before);
        assert!(m.count(0, 20) >= n);
    }
    Ok(())
}

/// Lets the guest run with the line high until it has taken `before + 1` interrupts, then lowers it.
fn next_while_high(m: &mut Machine, irq: u32, before: u32) {
    sys::catch(libc::SIGALRM);
    let mut rounds = 0;
    while m.count(0, irq & 0xffff) <= before {
        alarm(20_000);
        let _ = m.cpu().run();
        rounds += 1;
        assert!(rounds < 500, "the interrupt does not come");
    }
    alarm(0);
    assert_eq!(set_line(m, irq, 0), Ok(0));
}

/// Sends SIGALRM in so many microseconds.
fn alarm(us: i64) {
    let t = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: us,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: us,
        },
    };
    // SAFETY: a structure of ours.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &t, std::ptr::null_mut()) };
}

fn a_level_stays_until_it_is_lowered() -> Outcome {
    let mut m = Machine::new(waiter());
    next(&mut m);
    let irq = line(KVM_ARM_IRQ_TYPE_SPI, 0, 40);
    assert_eq!(set_line(&m, irq, 1), Ok(0));
    next_while_high(&mut m, irq, 2);
    let taken = m.count(0, 40);
    assert!(taken >= 3, "{taken}");
    // Low now: what is in the guest may come to its end, and then there is peace.
    sys::catch(libc::SIGALRM);
    let mut last = u32::MAX;
    for _ in 0..20 {
        alarm(20_000);
        let r = m.cpu().run();
        if r == Err(libc::EINTR) && m.count(0, 40) == last {
            alarm(0);
            return Ok(());
        }
        last = m.count(0, 40);
    }
    panic!("SPI 40 comes with its line low: {taken}, then {last}");
}

fn an_edge_comes_once() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "mov x0, #0x08000000",
        // Edge-triggered, enabled, routed here.
        "mov w1, #0x20000",
        "str w1, [x0, #0xc08]",
        "mov w1, #0x100",
        "str w1, [x0, #0x104]",
        "msr daifclr, #2",
        "str xzr, [x28]",
        "mov x5, #0",
        "1: add x5, x5, #1",
        "cmp x5, #100",
        "b.ne 1b",
        "str xzr, [x28]",
        "mov x5, #0",
        "b 1b",
    ]);
    next(&mut m);
    let irq = line(KVM_ARM_IRQ_TYPE_SPI, 0, 40);
    for n in 1..=5 {
        assert_eq!(set_line(&m, irq, 1), Ok(0));
        for _ in 0..3 {
            next(&mut m);
        }
        assert_eq!(m.count(0, 40), n);
        assert_eq!(set_line(&m, irq, 0), Ok(0));
        next(&mut m);
        assert_eq!(m.count(0, 40), n);
    }
    Ok(())
}

fn masked_and_unmasked() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        // An SGI with its priority at the mask: not signalled.
        "msr icc_pmr_el1, xzr",
        "mov x9, #1",
        "movk x9, #0x0300, lsl #16",
        "msr icc_sgi1r_el1, x9",
        "isb",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "ldr w1, [x0, #12]",
        result!("x1"),
        "mov x3, #0xf8",
        "msr icc_pmr_el1, x3",
        "isb",
        "1: ldr w1, [x0, #12]",
        "cbz w1, 1b",
        result!("x1"),
        // Masked by PSTATE.
        "msr daifset, #2",
        "msr icc_sgi1r_el1, x9",
        "isb",
        "ldr w1, [x0, #12]",
        result!("x1"),
        "msr daifclr, #2",
        "2: ldr w1, [x0, #12]",
        "cmp w1, #1",
        "b.eq 2b",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [0, 1, 1, 2]);
    Ok(())
}

fn priorities() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        // SGI 2 before SGI 1: a lower number.
        "mov x1, #0x080a0000",
        "add x1, x1, #0x10000",
        "mov w2, #0x8000",
        "movk w2, #0x2040, lsl #16",
        "str w2, [x1, #0x400]",
        // 1, 2, 3 become pending while masked.
        "mov w2, #0xe",
        "str w2, [x1, #0x200]",
        "1: mrs x3, icc_hppir1_el1",
        "cmp x3, #3",
        "b.ne 1b",
        "mrs x4, icc_iar1_el1",
        result!("x4"),
        "msr icc_eoir1_el1, x4",
        "mrs x4, icc_iar1_el1",
        result!("x4"),
        "msr icc_eoir1_el1, x4",
        "mrs x4, icc_iar1_el1",
        result!("x4"),
        "msr icc_eoir1_el1, x4",
        "mrs x4, icc_iar1_el1",
        result!("x4"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [3, 2, 1, 1023]);
    Ok(())
}

/// KVM_IRQFD
fn irqfd(m: &Machine, fd: i32, gsi: u32, flags: u32, resample: i32) -> Result<i32, i32> {
    let mut i = kvm_irqfd {
        fd: fd as u32,
        gsi,
        flags,
        resamplefd: resample as u32,
        ..Default::default()
    };
    sys::with(m.raw(), sys::IRQFD, &mut i)
}

fn an_irqfd() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "mov x0, #0x08000000",
        "mov w1, #0x20000",
        "str w1, [x0, #0xc08]",
        "mov w1, #0x100",
        "str w1, [x0, #0x104]",
        "msr daifclr, #2",
        "1: str xzr, [x28]",
        "b 1b",
    ]);
    let e = sys::Event::new();
    route(&m, 8, 8);
    assert_eq!(irqfd(&m, e.0, 8, 0, 0), Ok(0));
    // It is an edge once the guest has said so.
    next(&mut m);
    for n in 1..=10 {
        e.signal();
        for _ in 0..1000 {
            next(&mut m);
            if m.count(0, 40) == n {
                break;
            }
        }
        assert_eq!(m.count(0, 40), n);
    }
    assert_eq!(irqfd(&m, e.0, 8, KVM_IRQFD_FLAG_DEASSIGN, 0), Ok(0));
    e.signal();
    for _ in 0..20 {
        next(&mut m);
    }
    assert_eq!(m.count(0, 40), 10);
    Ok(())
}

fn a_resampled_irqfd() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "mov x0, #0x08000000",
        "mov w1, #0x100",
        "str w1, [x0, #0x104]",
        "msr daifclr, #2",
        "1: str xzr, [x28]",
        "b 1b",
    ]);
    let (e, again) = (sys::Event::new(), sys::Event::new());
    route(&m, 8, 8);
    let r = irqfd(&m, e.0, 8, KVM_IRQFD_FLAG_RESAMPLE, again.0);
    assert_eq!(r, Ok(0));
    for n in 1..=5 {
        e.signal();
        let mut told = 0;
        for _ in 0..1000 {
            next(&mut m);
            told += again.take();
            if told > 0 {
                break;
            }
        }
        // The end of the interrupt has lowered the line and told it, once.
        assert_eq!((m.count(0, 40), told), (n, 1));
    }
    Ok(())
}

fn self_sgi() -> Outcome {
    let mut m = Machine::new(guest![
        gic_on!(),
        "msr daifclr, #2",
        "mov x5, #0",
        "mov x0, #0x40000000",
        "add x0, x0, #0x4000",
        "mov x9, #1",
        "movk x9, #0x0500, lsl #16",
        "1: msr icc_sgi1r_el1, x9",
        "add x5, x5, #1",
        "2: ldr w1, [x0, #20]",
        "cmp x1, x5",
        "b.ne 2b",
        "cmp x5, #100",
        "b.ne 1b",
        result!("x1"),
        done!(),
    ]);
    assert_eq!(m.cpu().results(), [100]);
    assert_eq!(m.exceptions(), 0);
    Ok(())
}
