// SPDX-License-Identifier: GPL-2.0

//! Performance monitors of a guest: what they count and what not, overflows, who reaches them, attributes, and that
//! their state can be moved.

use super::registers::list;
use crate::harness::tests;
use kvm_bindings::*;
use libc::{EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENXIO};
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::machine::{attribute, sysreg, x, Cpu, Machine, PSCI};
use rkvm_l1::sys::{self, UNMAPPED};
use rkvm_l1::{done, expect, gic_on, guest, result, skip, Exit, Outcome};
use std::time::{Duration, Instant};

tests![
    cycles_count_while_enabled,
    only_the_guest_counts,
    the_hosts_counters_are_hidden,
    software_increments_and_chains,
    levels_are_told_apart,
    el0_needs_permission,
    counters_that_are_not_there,
    an_overflow_interrupts,
    overflows_again_and_again,
    an_overflow_by_an_spi,
    an_overflow_at_64_bits,
    filtered_events_count_nothing,
    another_thread_goes_on,
    state_moves,
    registers_can_be_written_back,
    attributes,
    interrupts_of_many,
    strict_ones,
    none_without_the_feature,
];

const PMU: u32 = 1 << KVM_ARM_VCPU_PMU_V3;
/// KVM_ARM_VCPU_PMU_V3_STRICT
const STRICT: u32 = 1 << 9;
/// KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS
const NR_COUNTERS: u32 = 4;

const PMCR: u64 = sysreg(3, 3, 9, 12, 0);
const PMOVSSET: u64 = sysreg(3, 3, 9, 14, 3);
const PMCCNTR: u64 = sysreg(3, 3, 9, 13, 0);
const PMUSERENR: u64 = sysreg(3, 3, 9, 14, 0);
const PMMIR: u64 = sysreg(3, 0, 9, 14, 6);
const PMEVCNTR0: u64 = sysreg(3, 3, 14, 8, 0);

/// What is unknown after a reset is zero. Uses x0.
macro_rules! clear {
    () => {
        "mov w0, #-1
         msr pmcntenclr_el0, x0
         msr pmintenclr_el1, x0
         msr pmovsclr_el0, x0
         msr pmccfiltr_el0, xzr
         msr pmuserenr_el0, xzr
         mov x0, #0x46
         msr pmcr_el0, x0
         isb"
    };
}

/// Turns the PMU on with the counters of a mask, of two bytes shifted by 16 and two more: PMCR_EL0.E and LC. Uses x0.
macro_rules! count {
    ($high:literal, $low:literal) => {
        concat!(
            "mov x0, #",
            $low,
            "\nmovk x0, #",
            $high,
            ", lsl #16\nmsr pmcntenset_el0, x0\nmov x0, #0x41\nmsr pmcr_el0, x0\nisb"
        )
    };
}

/// Does something for a while. Uses x0.
macro_rules! spin {
    () => {
        "mov x0, #0x20000\n66: subs x0, x0, #1\nb.ne 66b\nisb"
    };
}

/// Goes on at EL0, with the same stack pointer and all interrupts masked. Uses x0.
macro_rules! to_el0 {
    () => {
        "adr x0, 65f\nmsr elr_el1, x0\nmov x0, #0x3c0\nmsr spsr_el1, x0\neret\n65:"
    };
}

fn set(c: &Cpu, attr: u32, v: &mut u32) -> Result<i32, i32> {
    let at = &raw mut *v as u64;
    attribute(
        c.raw(),
        sys::SET_DEVICE_ATTR,
        KVM_ARM_VCPU_PMU_V3_CTRL,
        attr.into(),
        at,
    )
}

fn get_irq(c: &Cpu) -> Result<u32, i32> {
    let mut v = 0u32;
    let at = &raw mut v as u64;
    let attr = KVM_ARM_VCPU_PMU_V3_IRQ.into();
    attribute(
        c.raw(),
        sys::GET_DEVICE_ATTR,
        KVM_ARM_VCPU_PMU_V3_CTRL,
        attr,
        at,
    )
    .map(|_| v)
}

fn has(c: &Cpu, attr: u32) -> Result<i32, i32> {
    attribute(
        c.raw(),
        sys::HAS_DEVICE_ATTR,
        KVM_ARM_VCPU_PMU_V3_CTRL,
        attr.into(),
        0,
    )
}

fn init(c: &Cpu) -> Result<i32, i32> {
    set(c, KVM_ARM_VCPU_PMU_V3_INIT, &mut 0)
}

fn filter(c: &Cpu, base_event: u16, nevents: u16, action: u32) -> Result<i32, i32> {
    let mut f = event_filter(base_event, nevents, action as u8);
    let at = f.as_mut_ptr() as u64;
    let attr = KVM_ARM_VCPU_PMU_V3_FILTER.into();
    attribute(
        c.raw(),
        sys::SET_DEVICE_ATTR,
        KVM_ARM_VCPU_PMU_V3_CTRL,
        attr,
        at,
    )
}

/// `struct kvm_pmu_event_filter`
fn event_filter(base: u16, count: u16, action: u8) -> [u8; 8] {
    let ([b0, b1], [c0, c1]) = (base.to_le_bytes(), count.to_le_bytes());
    [b0, b1, c0, c1, action, 0, 0, 0]
}

/// A machine whose vCPU has a PMU with an interrupt, not initialized yet.
fn fresh(code: &[u8], irq: u32) -> Result<Machine, rkvm_l1::Stop> {
    if rkvm_l1::kvm().check_extension_raw(KVM_CAP_ARM_PMU_V3.into()) == 0 {
        return skip("the host has no PMU");
    }
    let mut m = Machine::bare();
    m.add_cpu(0, PSCI | PMU);
    m.code(CODE, code);
    m.add_gic();
    m.cpus[0].set(x(19), kit::MMIO).expect("x19");
    assert_eq!(
        set(&m.cpus[0], KVM_ARM_VCPU_PMU_V3_IRQ, &mut { irq }),
        Ok(0)
    );
    Ok(m)
}

fn machine(code: &[u8]) -> Result<Machine, rkvm_l1::Stop> {
    let m = fresh(code, kit::PMU)?;
    assert_eq!(init(&m.cpus[0]), Ok(0));
    Ok(m)
}

/// Runs until the guest is done, and does `hook` when it writes to [`kit::MMIO`].
fn run(m: &mut Machine, mut hook: impl FnMut(&mut Cpu)) -> Vec<u64> {
    m.cpu().run_with(|c, e| match e {
        Exit::Write { gpa: kit::MMIO, .. } => {
            hook(c);
            true
        }
        _ => false,
    })
}

fn busy(ms: u64) {
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end {}
}

fn cycles_count_while_enabled() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        "mov x0, #0x11",
        "msr pmevtyper0_el0, x0",
        count!("0x8000", "1"),
        "mrs x1, pmccntr_el0",
        "mrs x2, pmevcntr0_el0",
        spin!(),
        "mrs x3, pmccntr_el0",
        "mrs x4, pmevcntr0_el0",
        result!("x1"),
        result!("x2"),
        result!("x3"),
        result!("x4"),
        // The cycle counter off; then all.
        "mov x0, #0x80000000",
        "msr pmcntenclr_el0, x0",
        "isb",
        "mrs x1, pmccntr_el0",
        "mrs x2, pmevcntr0_el0",
        spin!(),
        "mrs x3, pmccntr_el0",
        "mrs x4, pmevcntr0_el0",
        result!("x1"),
        result!("x3"),
        result!("x2"),
        result!("x4"),
        "mov x0, #0x40",
        "msr pmcr_el0, x0",
        "isb",
        "mrs x2, pmevcntr0_el0",
        spin!(),
        "mrs x4, pmevcntr0_el0",
        result!("x2"),
        result!("x4"),
        // PMCR_EL0.P and C
        "mov x0, #0x46",
        "msr pmcr_el0, x0",
        "mrs x1, pmccntr_el0",
        "mrs x2, pmevcntr0_el0",
        result!("x1"),
        result!("x2"),
        done!(),
    ])?;
    let r = m.cpu().results();
    // Each loop is some 100 us at the least, by TCG's clock of 1 GHz.
    assert!(r[2] > r[0] + 10_000 && r[3] > r[1] + 10_000, "{r:?}");
    assert!(r[4] >= r[2] && r[5] == r[4], "{r:?}");
    assert!(r[7] > r[6] + 10_000, "{r:?}");
    assert!(r[8] >= r[7] && r[9] == r[8], "{r:?}");
    assert_eq!(r[10..], [0, 0]);
    Ok(())
}

fn only_the_guest_counts() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        "mov x0, #0x11",
        "msr pmevtyper0_el0, x0",
        count!("0x8000", "1"),
        spin!(),
        "str x1, [x19]",
        spin!(),
        done!(),
    ])?;
    let mut seen = Vec::new();
    run(&mut m, |c| {
        let both = |c: &Cpu| [c.reg(PMCCNTR), c.reg(PMEVCNTR0)];
        seen.push(both(c));
        busy(50);
        seen.push(both(c));
    });
    assert!(seen[0].iter().all(|c| *c > 10_000), "{seen:?}");
    assert_eq!(seen[0], seen[1]);
    let (cycles, event) = (m.cpu().reg(PMCCNTR), m.cpu().reg(PMEVCNTR0));
    assert!(
        cycles > seen[1][0] && event > seen[1][1],
        "{seen:?} {cycles} {event}"
    );
    Ok(())
}

/// A counter of this thread's cycles, in the host.
fn host_counter() -> std::fs::File {
    use std::os::fd::FromRawFd;
    // perf_event_attr: type (PERF_TYPE_HARDWARE), size, config (cycles); of the flags, pinned.
    let mut attr = [0u64; 16];
    attr[0] = 128 << 32;
    attr[5] = 1 << 2;
    // SAFETY: the kernel reads as much as the size says.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0) };
    assert!(
        fd >= 0,
        "perf_event_open: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: it is ours.
    unsafe { std::fs::File::from_raw_fd(fd as i32) }
}

fn host_count(mut f: &std::fs::File) -> u64 {
    let mut b = [0; 8];
    std::io::Read::read_exact(&mut f, &mut b).expect("read of a counter");
    u64::from_le_bytes(b)
}

fn the_hosts_counters_are_hidden() -> Outcome {
    let mut m = machine(guest![
        "mrs x1, pmcntenset_el0",
        result!("x1"),
        "mrs x1, pmintenset_el1",
        result!("x1"),
        "mrs x1, pmovsset_el0",
        result!("x1"),
        "mrs x1, pmccntr_el0",
        result!("x1"),
        "mrs x1, pmevcntr0_el0",
        result!("x1"),
        "mrs x1, pmevtyper0_el0",
        result!("x1"),
        "mrs x1, pmuserenr_el0",
        result!("x1"),
        // Turns off what it thinks it has; uses the same counters.
        "mov w0, #-1",
        "msr pmcntenclr_el0, x0",
        "msr pmintenclr_el1, x0",
        "mov x0, #0x11",
        "msr pmevtyper0_el0, x0",
        count!("0x8000", "1"),
        spin!(),
        "mov x0, #0x46",
        "msr pmcr_el0, x0",
        done!(),
    ])?;
    let counter = host_counter();
    busy(2);
    let before = host_count(&counter);
    let r = m.cpu().results();
    assert_eq!(r, [0; 7]);
    let then = host_count(&counter);
    busy(5);
    let now = host_count(&counter);
    assert!(
        0 < before && before < then && then < now,
        "{before} {then} {now}"
    );
    Ok(())
}

fn software_increments_and_chains() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        "msr pmevtyper0_el0, xzr",
        "mov x0, #0x1e",
        "msr pmevtyper1_el0, x0",
        "mov w0, #-1",
        "msr pmevcntr0_el0, x0",
        count!("0", "3"),
        "mov x0, #3",
        "msr pmswinc_el0, x0",
        "mrs x1, pmevcntr0_el0",
        result!("w1"),
        "mrs x1, pmevcntr1_el0",
        result!("x1"),
        "mrs x1, pmovsclr_el0",
        result!("x1"),
        "msr pmswinc_el0, x0",
        "mrs x1, pmevcntr0_el0",
        result!("w1"),
        "msr pmovsclr_el0, x0",
        "mrs x1, pmovsset_el0",
        result!("x1"),
        done!(),
    ])?;
    assert_eq!(m.cpu().results(), [0, 1, 1, 1, 0]);
    Ok(())
}

fn levels_are_told_apart() -> Outcome {
    // Counter 0 at EL0 only, counter 1 at EL1 only, the cycle counter at EL0 only.
    let mut m = machine(guest![
        clear!(),
        "mov x0, #0x11",
        "movk x0, #0x8000, lsl #16",
        "msr pmevtyper0_el0, x0",
        "mov x0, #0x11",
        "movk x0, #0x4000, lsl #16",
        "msr pmevtyper1_el0, x0",
        "mov x0, #0x80000000",
        "msr pmccfiltr_el0, x0",
        "mov x0, #1",
        "msr pmuserenr_el0, x0",
        count!("0x8000", "3"),
        spin!(),
        "mrs x1, pmevcntr0_el0",
        result!("x1"),
        "mrs x1, pmevcntr1_el0",
        result!("x1"),
        "mrs x1, pmccntr_el0",
        result!("x1"),
        to_el0!(),
        "mrs x1, pmevcntr1_el0",
        spin!(),
        "mrs x2, pmevcntr1_el0",
        "mrs x3, pmevcntr0_el0",
        "mrs x4, pmccntr_el0",
        result!("x1"),
        result!("x2"),
        result!("x3"),
        result!("x4"),
        "str x1, [x19]",
        done!(),
    ])?;
    // Our own EL0 is not the guest's.
    let mut seen = Vec::new();
    let r = run(&mut m, |c| {
        seen.push([c.reg(PMEVCNTR0), c.reg(PMCCNTR)]);
        busy(20);
        seen.push([c.reg(PMEVCNTR0), c.reg(PMCCNTR)]);
    });
    assert_eq!((r[0], r[2]), (0, 0), "{r:?}");
    assert!(r[1] > 10_000 && r[3] >= r[1], "{r:?}");
    assert_eq!(r[3], r[4], "{r:?}");
    assert!(r[5] > 10_000 && r[6] > 10_000, "{r:?}");
    assert_eq!(seen[0], seen[1]);
    Ok(())
}

fn el0_needs_permission() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        count!("0x8000", "1"),
        to_el0!(),
        expect!("1f"),
        "mrs x1, pmccntr_el0",
        "1:",
        expect!("2f"),
        "mov x1, #1",
        "msr pmswinc_el0, x1",
        "2:",
        "str x1, [x19]",
        // CR: the cycle counter can be read, and nothing else.
        "mrs x1, pmccntr_el0",
        result!("x1"),
        expect!("3f"),
        "msr pmccntr_el0, xzr",
        "3:",
        expect!("4f"),
        "mrs x1, pmevcntr0_el0",
        "4:",
        "str x1, [x19]",
        // EN: all, but PMUSERENR_EL0 to be written.
        "msr pmccntr_el0, xzr",
        "mrs x1, pmcr_el0",
        "and x1, x1, #1",
        result!("x1"),
        "mrs x1, pmuserenr_el0",
        result!("x1"),
        expect!("5f"),
        "msr pmuserenr_el0, x1",
        "5:",
        done!(),
    ])?;
    let (mut esr, mut count) = (Vec::new(), 0);
    let Machine { cpus, ram, .. } = &mut m;
    let r = cpus[0].run_with(|c, e| {
        esr.push((ram.u64(kit::STATE + 40), ram.u64(kit::STATE + 8)));
        count += 1;
        let user = if count == 1 { 4 } else { 1 };
        matches!(e, Exit::Write { gpa: kit::MMIO, .. }) && c.set(PMUSERENR, user) == Ok(0)
    });
    // A trap of MSR or MRS, told to EL1: PMSWINC_EL0 by x1; PMEVCNTR0_EL0 to x1.
    assert_eq!(esr.iter().map(|e| e.0).collect::<Vec<_>>(), [2, 4]);
    assert!(esr.iter().all(|e| e.1 >> 26 == 0x18), "{esr:x?}");
    assert_eq!(esr[0].1 >> 5 & 0x1f, 1);
    assert!(r[0] > 0);
    assert_eq!(r[1..], [1, 1]);
    assert_eq!(m.exceptions(), 5);
    Ok(())
}

fn counters_that_are_not_there() -> Outcome {
    let mut m = fresh(
        guest![
            "mrs x1, pmcr_el0",
            "ubfx x1, x1, #11, #5",
            result!("x1"),
            "mov w0, #-1",
            "msr pmcntenset_el0, x0",
            "mrs x1, pmcntenset_el0",
            result!("x1"),
            expect!("1f"),
            "mrs x1, pmevcntr2_el0",
            "1:",
            expect!("2f"),
            "msr pmevtyper30_el0, x1",
            "2:",
            "mov x1, #2",
            "msr pmselr_el0, x1",
            "isb",
            expect!("3f"),
            "mrs x1, pmxevcntr_el0",
            "3:",
            // The cycle counter's filter
            "mov x1, #31",
            "msr pmselr_el0, x1",
            "isb",
            "mov x1, #0x40000000",
            "msr pmxevtyper_el0, x1",
            "mrs x1, pmccfiltr_el0",
            result!("x1"),
            done!(),
        ],
        kit::PMU,
    )?;
    assert_eq!(set(&m.cpus[0], NR_COUNTERS, &mut 2), Ok(0));
    assert_eq!(init(&m.cpus[0]), Ok(0));
    assert_eq!(m.cpu().results(), [2, 0x8000_0003, 0x4000_0000]);
    assert_eq!((m.exceptions(), m.exception()[0] >> 26), (3, 0));
    // As for user space, too late to be changed.
    let pmcr = m.cpu().reg(PMCR);
    assert_eq!(m.cpu().set(PMCR, 1 << 11), Ok(0));
    assert_eq!(m.cpu().reg(PMCR) >> 11 & 0x1f, pmcr >> 11 & 0x1f);
    Ok(())
}

fn an_overflow_interrupts() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        gic_on!(),
        "mov x0, #-50000",
        "msr pmccntr_el0, x0",
        "mov x0, #0x80000000",
        "msr pmintenset_el1, x0",
        "mov x4, #0x40000000",
        "add x4, x4, #0x4000",
        "msr daifclr, #2",
        count!("0x8000", "0"),
        "1: ldr w1, [x4, #92]",
        "cbz w1, 1b",
        "mrs x2, pmccntr_el0",
        "mrs x3, pmovsset_el0",
        result!("x2"),
        result!("x3"),
        spin!(),
        done!(),
    ])?;
    let r = m.cpu().results();
    assert!(r[0] < 1 << 40, "{r:x?}");
    assert_eq!((r[1], m.count(0, kit::PMU)), (0, 1));
    Ok(())
}

fn overflows_again_and_again() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        gic_on!(),
        "mov x0, #0x11",
        "msr pmevtyper0_el0, x0",
        "mov x0, #1",
        "msr pmintenset_el1, x0",
        "mov x4, #0x40000000",
        "add x4, x4, #0x4000",
        count!("0", "1"),
        "mov x5, #0",
        "msr daifclr, #2",
        "2: mov w0, #-20000",
        "msr pmevcntr0_el0, x0",
        "add x5, x5, #1",
        "1: ldr w1, [x4, #92]",
        "cmp w1, w5",
        "b.lo 1b",
        "cmp x5, #100",
        "b.lo 2b",
        "mov x0, #0x40",
        "msr pmcr_el0, x0",
        done!(),
    ])?;
    assert_eq!(m.cpu().results(), []);
    assert_eq!(m.count(0, kit::PMU), 100);
    Ok(())
}

fn an_overflow_by_an_spi() -> Outcome {
    const SPI: u32 = 40;
    let mut m = fresh(
        guest![
            clear!(),
            gic_on!(),
            "mov x0, #0x08000000",
            "mov w1, #0x100",
            "str w1, [x0, #0x84]",
            "str w1, [x0, #0x104]",
            "mov x0, #-50000",
            "msr pmccntr_el0, x0",
            "mov x0, #0x80000000",
            "msr pmintenset_el1, x0",
            count!("0x8000", "0"),
            // Pending, masked here.
            "1: mrs x1, icc_hppir1_el1",
            "cmp x1, #40",
            "b.ne 1b",
            result!("x1"),
            "mov w0, #-1",
            "msr pmovsclr_el0, x0",
            "isb",
            // A level: it is gone with its cause.
            "2: mrs x1, icc_hppir1_el1",
            "cmp x1, #40",
            "b.eq 2b",
            result!("x1"),
            done!(),
        ],
        SPI,
    )?;
    assert_eq!(init(&m.cpus[0]), Ok(0));
    assert_eq!(m.cpu().results(), [40, 1023]);
    Ok(())
}

fn an_overflow_at_64_bits() -> Outcome {
    // What is told at 32 bits, is not with LC; without it, if the processor has that.
    let mut m = machine(guest![
        clear!(),
        "mov w0, #-16",
        "msr pmccntr_el0, x0",
        count!("0x8000", "0"),
        spin!(),
        "mrs x1, pmovsset_el0",
        result!("x1"),
        "mrs x1, pmccntr_el0",
        "lsr x1, x1, #32",
        result!("x1"),
        "mov x0, #1",
        "msr pmcr_el0, x0",
        "isb",
        "mrs x2, pmcr_el0",
        "mov w0, #-16",
        "msr pmccntr_el0, x0",
        spin!(),
        "mrs x1, pmovsset_el0",
        result!("x1"),
        "ubfx x2, x2, #6, #1",
        result!("x2"),
        done!(),
    ])?;
    let r = m.cpu().results();
    let late = r[3] == 1;
    assert_eq!(r[..3], [0, 1, if late { 0 } else { 1 << 31 }]);
    Ok(())
}

fn filtered_events_count_nothing() -> Outcome {
    let mut m = fresh(
        guest![
            clear!(),
            "mov x0, #0x11",
            "msr pmevtyper0_el0, x0",
            count!("0x8000", "1"),
            spin!(),
            "mrs x1, pmccntr_el0",
            result!("x1"),
            "mrs x1, pmevcntr0_el0",
            result!("x1"),
            "mrs x1, pmceid0_el0",
            "ubfx x1, x1, #17, #1",
            result!("x1"),
            done!(),
        ],
        kit::PMU,
    )?;
    let c = &m.cpus[0];
    assert_eq!(filter(c, 0x11, 1, 2), Err(EINVAL));
    assert_eq!(filter(c, 0xffff, 2, KVM_PMU_EVENT_DENY), Err(EINVAL));
    assert_eq!(filter(c, 0x11, 1, KVM_PMU_EVENT_DENY), Ok(0));
    assert_eq!(init(c), Ok(0));
    assert_eq!(filter(c, 0x11, 1, KVM_PMU_EVENT_ALLOW), Err(EBUSY));
    assert_eq!(m.cpu().results(), [0, 0, 0]);
    Ok(())
}

fn another_thread_goes_on() -> Outcome {
    let mut m = machine(guest![
        clear!(),
        count!("0x8000", "0"),
        spin!(),
        "str x1, [x19]",
        "mrs x1, pmccntr_el0",
        result!("x1"),
        spin!(),
        "mrs x1, pmccntr_el0",
        result!("x1"),
        done!(),
    ])?;
    let first = std::thread::scope(|s| {
        let c = m.cpu();
        s.spawn(|| c.run()).join().expect("a thread")
    });
    assert!(
        matches!(first, Ok(Exit::Write { gpa: kit::MMIO, .. })),
        "{first:?}"
    );
    let seen = m.cpu().reg(PMCCNTR);
    let r = m.cpu().results();
    assert!(
        seen > 10_000 && r[0] >= seen && r[1] > r[0] + 10_000,
        "{seen} {r:?}"
    );
    Ok(())
}

/// Ids of the PMU's registers.
fn registers(c: &Cpu) -> Vec<u64> {
    let all = list(c).into_iter();
    all.filter(|id| {
        let at = |shift: u32, bits: u64| id >> shift & bits;
        let sys = id >> 16 & 0xfff == 0x13 && at(14, 3) == 3;
        let crn = at(7, 15);
        sys && (crn == 9 && at(3, 15) >= 12 || crn == 14 && at(11, 7) == 3 && at(3, 15) >= 8)
    })
    .collect()
}

fn state_moves() -> Outcome {
    let mut old = machine(guest![
        clear!(),
        "mov x0, #0x11",
        "msr pmevtyper0_el0, x0",
        "movk x0, #0x8000, lsl #16",
        "msr pmevtyper1_el0, x0",
        "mov x0, #5",
        "msr pmselr_el0, x0",
        "mov x0, #3",
        "msr pmuserenr_el0, x0",
        "mov w0, #-1000",
        "msr pmevcntr0_el0, x0",
        "mov x0, #2",
        "msr pmintenset_el1, x0",
        count!("0x8000", "3"),
        spin!(),
        "str x1, [x19]",
        done!(),
    ])?;
    let mut new = machine(guest![
        "mrs x1, pmccntr_el0",
        result!("x1"),
        spin!(),
        "mrs x1, pmccntr_el0",
        result!("x1"),
        "mrs x1, pmovsset_el0",
        result!("x1"),
        "mrs x1, pmselr_el0",
        result!("x1"),
        done!(),
    ])?;
    let mut saved = Vec::new();
    run(&mut old, |c| {
        saved = registers(c).into_iter().map(|id| (id, c.reg(id))).collect();
    });
    let of = |id: u64| saved.iter().find(|r| r.0 == id).expect("a register").1;
    assert_eq!(saved.len(), 3 + 9 + 63, "{saved:x?}");
    // Counter 0 overflowed, which was not asked to interrupt.
    assert_eq!((of(PMOVSSET), of(PMUSERENR)), (1, 3));
    assert!(of(PMCCNTR) > 10_000);
    for (id, v) in &saved {
        assert_eq!(new.cpu().set(*id, *v), Ok(0), "{id:#x}");
    }
    for (id, v) in &saved {
        assert_eq!(new.cpu().reg(*id), *v, "{id:#x}");
    }
    let r = new.cpu().results();
    assert!(r[0] >= of(PMCCNTR) && r[1] > r[0] + 10_000, "{r:?}");
    assert_eq!(r[2..], [1, 5]);
    Ok(())
}

fn registers_can_be_written_back() -> Outcome {
    let m = machine(guest![done!()])?;
    let c = &m.cpus[0];
    for id in registers(c) {
        let v = c.reg(id);
        assert_eq!(
            c.set(id, u64::MAX).err().unwrap_or(0) & !EINVAL,
            0,
            "{id:#x}"
        );
        assert_eq!(c.set(id, v), Ok(0), "{id:#x}");
    }
    // More counters than there are: ignored; fewer: taken, and never more again than the host has.
    let n = |c: &Cpu| c.reg(PMCR) >> 11 & 0x1f;
    let most = n(c);
    assert_eq!((c.set(PMCR, 0x1f << 11), n(c)), (Ok(0), most));
    assert_eq!((c.set(PMCR, 1 << 11), n(c)), (Ok(0), 1));
    assert_eq!((c.set(PMCR, most << 11), n(c)), (Ok(0), most));
    assert_eq!(c.reg(PMMIR), 0);
    assert_eq!(c.set(PMMIR, 1), Err(EINVAL));
    assert_eq!(c.set(PMMIR, 0x100), Err(EINVAL));
    // A reset leaves the number of counters.
    assert_eq!(c.set(PMCR, 1 << 11), Ok(0));
    assert_eq!(c.set(PMCCNTR, 77), Ok(0));
    assert_eq!(c.init(PSCI | PMU), Ok(0));
    assert_eq!((n(c), c.reg(PMCCNTR)), (1, 0));
    Ok(())
}

/// The kernel's number of the PMU of CPUs, and PMMIR_EL1.SLOTS.
fn host_pmu() -> (u32, u64) {
    let of = |e: std::io::Result<std::fs::DirEntry>| {
        let dir = e.ok()?.path();
        dir.file_name()?
            .to_str()?
            .starts_with("armv8")
            .then_some(dir)
    };
    let devices = std::fs::read_dir("/sys/bus/event_source/devices").expect("devices");
    let dir = devices.filter_map(of).next().expect("a PMU");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
    let slots = read("caps/slots");
    let slots = u64::from_str_radix(slots.trim().trim_start_matches("0x"), 16);
    (
        read("type").trim().parse().expect("a number"),
        slots.expect("slots"),
    )
}

fn attributes() -> Outcome {
    let mut m = fresh(guest![done!()], 27)?;
    let c = &m.cpus[0];
    for attr in 0..=NR_COUNTERS {
        assert_eq!(has(c, attr), Ok(0));
    }
    assert_eq!((has(c, 5), set(c, 5, &mut 0)), (Err(ENXIO), Err(ENXIO)));
    // The virtual timer's.
    assert_eq!((get_irq(c), init(c)), (Ok(27), Err(EEXIST)));
    assert_eq!(set(c, KVM_ARM_VCPU_PMU_V3_IRQ, &mut 27), Err(EBUSY));
    assert_eq!(m.cpu().run(), Err(EINVAL));

    let mut m = Machine::bare();
    m.add_cpu(0, PSCI | PMU);
    m.code(CODE, guest![done!()]);
    let irq = KVM_ARM_VCPU_PMU_V3_IRQ;
    assert_eq!(set(&m.cpus[0], irq, &mut 23), Err(EINVAL));
    assert_eq!(get_irq(&m.cpus[0]), Err(EINVAL));
    m.add_gic();
    let c = &m.cpus[0];
    assert_eq!((get_irq(c), init(c)), (Err(ENXIO), Err(ENXIO)));
    for bad in [0, 15, 1020, 5000, u32::MAX] {
        assert_eq!(set(c, irq, &mut { bad }), Err(EINVAL));
    }
    let group = KVM_ARM_VCPU_PMU_V3_CTRL;
    for attr in [
        irq,
        KVM_ARM_VCPU_PMU_V3_FILTER,
        KVM_ARM_VCPU_PMU_V3_SET_PMU,
        NR_COUNTERS,
    ] {
        let r = attribute(c.raw(), sys::SET_DEVICE_ATTR, group, attr.into(), UNMAPPED);
        assert_eq!(r, Err(EFAULT), "{attr}");
    }
    assert_eq!((set(c, irq, &mut 23), get_irq(c)), (Ok(0), Ok(23)));
    let (pmu, _) = host_pmu();
    let choose = KVM_ARM_VCPU_PMU_V3_SET_PMU;
    assert_eq!(set(c, choose, &mut 0x7fff), Err(ENXIO));
    assert_eq!(set(c, NR_COUNTERS, &mut 1), Ok(0));
    assert_eq!(set(c, choose, &mut { pmu }), Ok(0));
    // That has all of its counters again.
    assert!(c.reg(PMCR) >> 11 & 0x1f > 1);
    assert_eq!(set(c, NR_COUNTERS, &mut 32), Err(EINVAL));
    assert_eq!(filter(c, 0, 4, KVM_PMU_EVENT_ALLOW), Ok(0));
    assert_eq!(set(c, choose, &mut { pmu }), Ok(0));
    assert_eq!((init(c), init(c)), (Ok(0), Err(EBUSY)));
    for attr in [irq, choose, NR_COUNTERS] {
        assert_eq!(set(c, attr, &mut 0), Err(EBUSY));
    }
    assert_eq!(m.cpu().results(), []);
    Ok(())
}

fn interrupts_of_many() -> Outcome {
    if rkvm_l1::kvm().check_extension_raw(KVM_CAP_ARM_PMU_V3.into()) == 0 {
        return skip("the host has no PMU");
    }
    let mut m = Machine::bare();
    for i in 0..3 {
        m.add_cpu(i, PSCI | PMU);
    }
    m.code(CODE, guest![done!()]);
    m.add_gic();
    let irq = KVM_ARM_VCPU_PMU_V3_IRQ;
    let [a, b, c] = &m.cpus[..] else {
        panic!("three vCPUs")
    };
    assert_eq!(set(a, irq, &mut 40), Ok(0));
    // Neither a PPI nor the same SPI.
    assert_eq!(set(b, irq, &mut 23), Err(EINVAL));
    assert_eq!(set(b, irq, &mut 40), Err(EINVAL));
    assert_eq!(set(b, irq, &mut 41), Ok(0));
    // One that the GIC has not.
    assert_eq!(set(c, irq, &mut 1019), Ok(0));
    for cpu in [a, b, c] {
        assert_eq!(init(cpu), Ok(0));
    }
    assert_eq!(m.cpus[2].run(), Err(EINVAL));
    assert_eq!(m.cpus[1].results(), []);
    // After a run of any vCPU nothing of the VM's PMU changes.
    Ok(())
}

fn strict_ones() -> Outcome {
    // KVM_CAP_ARM_PMU_V3_STRICT
    if rkvm_l1::kvm().check_extension_raw(251) == 0 {
        return skip("no such PMUs");
    }
    let mut m = Machine::bare();
    let c = Cpu::new(m.vm.create_vcpu(0).expect("a vCPU"));
    assert_eq!(c.init(PSCI | STRICT), Err(EINVAL));
    drop(c);
    m = Machine::bare();
    m.add_cpu(0, PSCI | PMU | STRICT);
    m.code(CODE, guest!["mrs x1, pmmir_el1", result!("x1"), done!()]);
    m.add_gic();
    let c = &m.cpus[0];
    assert_eq!(set(c, KVM_ARM_VCPU_PMU_V3_IRQ, &mut 23), Ok(0));
    assert_eq!(c.reg(PMCR) >> 11 & 0x1f, 0);
    assert_eq!(init(c), Err(ENXIO));
    assert_eq!(filter(c, 0, 4, KVM_PMU_EVENT_ALLOW), Err(ENXIO));
    assert_eq!(set(c, NR_COUNTERS, &mut 1), Err(EINVAL));
    let (pmu, slots) = host_pmu();
    assert_eq!(set(c, KVM_ARM_VCPU_PMU_V3_SET_PMU, &mut { pmu }), Ok(0));
    let most = c.reg(PMCR) >> 11 & 0x1f;
    assert!(most > 0);
    assert_eq!(c.set(PMCR, 0), Ok(0));
    assert_eq!(c.reg(PMCR) >> 11 & 0x1f, most);
    assert_eq!((c.reg(PMMIR), c.set(PMMIR, slots)), (slots, Ok(0)));
    assert_eq!(init(c), Ok(0));
    assert_eq!(m.cpu().results(), [slots]);
    assert_eq!(m.cpu().set(PMMIR, slots), Ok(0));
    assert_eq!(m.cpu().set(PMMIR, slots ^ 1), Err(EBUSY));
    Ok(())
}

fn none_without_the_feature() -> Outcome {
    let mut m = Machine::new(guest![
        "mrs x1, id_aa64dfr0_el1",
        "ubfx x1, x1, #8, #4",
        result!("x1"),
        expect!("1f"),
        "mrs x1, pmcr_el0",
        "1:",
        expect!("2f"),
        "msr pmintenset_el1, x1",
        "2:",
        to_el0!(),
        expect!("3f"),
        "mrs x1, pmccntr_el0",
        "3:",
        done!(),
    ]);
    let c = &m.cpus[0];
    assert_eq!(has(c, KVM_ARM_VCPU_PMU_V3_IRQ), Err(ENXIO));
    assert_eq!(set(c, KVM_ARM_VCPU_PMU_V3_IRQ, &mut 23), Err(ENODEV));
    assert_eq!((get_irq(c), init(c)), (Err(ENODEV), Err(ENODEV)));
    assert!(registers(c).is_empty());
    assert_eq!(m.cpu().results(), [0]);
    assert_eq!(m.exceptions(), 3);
    Ok(())
}
