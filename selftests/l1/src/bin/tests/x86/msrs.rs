// SPDX-License-Identifier: GPL-2.0

//! MSRs as the guest meets them, filters, and MSR exits to user space.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use rkvm_l1::kit;
use rkvm_l1::machine::enable;
use rkvm_l1::sys;
use rkvm_l1::{Exit, Machine, Mode, Outcome};

tests![
    guest_reads_and_writes,
    guest_faults,
    tsc_adjust,
    efer_bits,
    unknown_to_user_space,
    user_space_refuses,
    filter_denies,
    filter_to_user_space,
    filter_of_bases,
];

fn guest_reads_and_writes() -> Outcome {
    let values = [
        (0x174u32, 0x1234u64),
        (0x175, 0x5678_9000),
        (0x176, 0x1000),
        (0x277, 0x0007_0106_0007_0106),
        (0xc000_0081, 0x0023_0010_0000_0000),
        (0xc000_0082, 0xffff_8000_1234_5678),
        (0xc000_0083, 0xffff_8000_8765_4321),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x7fff_1234_5678),
        (0xc000_0102, 0xffff_8000_0000_1000),
    ];
    let mut m = Machine::new(Mode::Long, |a| {
        for (msr, v) in values {
            kit::wrmsr(a, msr, v)?;
        }
        for (msr, _) in values {
            kit::rdmsr(a, msr)?;
        }
        kit::done(a)
    })?;
    let r = m.cpu().results();
    for (i, (msr, v)) in values.iter().enumerate() {
        assert_eq!(
            u64::from(r[2 * i]) | u64::from(r[2 * i + 1]) << 32,
            *v,
            "{msr:#x}"
        );
        assert_eq!(m.cpu().msr(*msr), Some(*v), "{msr:#x} by ioctl");
    }
    Ok(())
}

fn guest_faults() -> Outcome {
    for (msr, v) in [
        (0xc000_0080u32, 1u64 << 20),
        (0x277, 2),
        (0x1b, 1 << 63),
        (0x4000_1234, 0),
    ] {
        let mut m = Machine::new(Mode::Long, |a| {
            let mut after = a.create_label();
            kit::expect64(a, after)?;
            kit::wrmsr(a, msr, v)?;
            a.nop()?;
            a.set_label(&mut after)?;
            kit::done_after(a)
        })?;
        m.cpu().results();
        assert_eq!((m.count(13), m.frame()[1]), (1, 0), "{msr:#x}");
    }
    Ok(())
}

fn tsc_adjust() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rbx, rax)?;
        kit::wrmsr(a, 0x3b, 0x100_0000_0000)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.sub(rax, rbx)?;
        a.shr(rax, 32)?;
        kit::result(a)?;
        // Writing the TSC shows in TSC_ADJUST.
        kit::wrmsr(a, 0x10, 0)?;
        a.rdtsc()?;
        a.mov(eax, edx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let r = m.cpu().results();
    assert!((0x100..0x110).contains(&r[0]), "{r:x?}");
    assert!(r[1] < 0x10, "{r:x?}");
    Ok(())
}

fn efer_bits() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x801)?;
        a.wrmsr()?;
        kit::rdmsr(a, 0xc000_0080)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [0xd01, 0]);
    assert_eq!(m.cpu().fd.get_sregs()?.efer, 0xd01);
    Ok(())
}

const MSR: u32 = 0x4000_1234;

fn exits(reasons: u64) -> Machine {
    let m = Machine::new(Mode::Long, |a| {
        let (mut one, mut two) = (a.create_label(), a.create_label());
        kit::expect64(a, one)?;
        a.mov(ecx, MSR)?;
        a.mov(eax, 0)?;
        a.rdmsr()?;
        a.set_label(&mut one)?;
        kit::result(a)?;
        a.mov(eax, edx)?;
        kit::result(a)?;
        kit::expect64(a, two)?;
        kit::wrmsr(a, MSR, 0x1122_3344_5566_7788)?;
        a.set_label(&mut two)?;
        a.mov(eax, 0x900d)?;
        kit::result(a)?;
        kit::count(a, 13)?;
        kit::done(a)
    })
    .expect("code");
    assert_eq!(enable(m.raw(), KVM_CAP_X86_USER_SPACE_MSR, reasons), Ok(0));
    m
}

fn unknown_to_user_space() -> Outcome {
    let mut m = exits(KVM_MSR_EXIT_REASON_UNKNOWN.into());
    let mut seen = Vec::new();
    let r = m.cpu().run_with(|c, e| {
        seen.push(e.clone());
        match e {
            Exit::Rdmsr { .. } => c.answer_msr(0xaabb_ccdd_0102_0304, false),
            Exit::Wrmsr { .. } => c.answer_msr(0, false),
            _ => return false,
        }
        true
    });
    assert_eq!(
        seen,
        [
            Exit::Rdmsr {
                index: MSR,
                reason: KVM_MSR_EXIT_REASON_UNKNOWN
            },
            Exit::Wrmsr {
                index: MSR,
                data: 0x1122_3344_5566_7788,
                reason: KVM_MSR_EXIT_REASON_UNKNOWN
            }
        ]
    );
    assert_eq!(r, [0x0102_0304, 0xaabb_ccdd, 0x900d, 0]);
    Ok(())
}

fn user_space_refuses() -> Outcome {
    let mut m = exits(KVM_MSR_EXIT_REASON_UNKNOWN.into());
    let r = m.cpu().run_with(|c, e| {
        c.answer_msr(0, true);
        matches!(e, Exit::Rdmsr { .. } | Exit::Wrmsr { .. })
    });
    assert_eq!(r[2..], [0x900d, 2], "#GP, twice");
    // Other reasons than were asked for do not exit.
    let mut m = exits(KVM_MSR_EXIT_REASON_FILTER.into());
    assert_eq!(m.cpu().results()[3], 2);
    Ok(())
}

fn filter(m: &Machine, flags: u32, ranges: &[(u32, u32, &[u8])]) {
    let mut f = kvm_msr_filter {
        flags,
        ..Default::default()
    };
    for (i, (access, base, bits)) in ranges.iter().enumerate() {
        f.ranges[i] = kvm_msr_filter_range {
            flags: *access,
            nmsrs: bits.len() as u32 * 8,
            base: *base,
            bitmap: bits.as_ptr().cast_mut(),
        };
    }
    assert_eq!(sys::with(m.raw(), sys::X86_SET_MSR_FILTER, &mut f), Ok(0));
}

/// Reads and writes LSTAR and CSTAR; results: how many #GP there were after each.
fn star_guest() -> Machine {
    Machine::new(Mode::Long, |a| {
        for (msr, write) in [
            (0xc000_0082u32, false),
            (0xc000_0082, true),
            (0xc000_0083, false),
            (0xc000_0083, true),
        ] {
            let mut after = a.create_label();
            kit::expect64(a, after)?;
            a.mov(ecx, msr)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            if write {
                a.wrmsr()?;
            } else {
                a.rdmsr()?;
            }
            a.set_label(&mut after)?;
            kit::count(a, 13)?;
        }
        kit::done(a)
    })
    .expect("code")
}

fn filter_denies() -> Outcome {
    // LSTAR: not to be written. CSTAR: not to be read. Both are passed through otherwise.
    let mut m = star_guest();
    filter(
        &m,
        0,
        &[
            (KVM_MSR_FILTER_WRITE, 0xc000_0082, &[0xfe]),
            (KVM_MSR_FILTER_READ, 0xc000_0083, &[0xfe]),
        ],
    );
    assert_eq!(m.cpu().results(), [0, 1, 2, 2]);
    // User space's own access is not filtered.
    assert!(m.cpu().set_msr(0xc000_0082, 0x1000));
    // No filter again.
    let mut m = star_guest();
    filter(&m, 0, &[(KVM_MSR_FILTER_READ, 0xc000_0082, &[0])]);
    filter(&m, 0, &[]);
    assert_eq!(m.cpu().results(), [0, 0, 0, 0]);
    Ok(())
}

fn filter_to_user_space() -> Outcome {
    let mut m = star_guest();
    assert_eq!(
        enable(
            m.raw(),
            KVM_CAP_X86_USER_SPACE_MSR,
            KVM_MSR_EXIT_REASON_FILTER.into()
        ),
        Ok(0)
    );
    filter(
        &m,
        0,
        &[(
            KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            0xc000_0082,
            &[0xfe],
        )],
    );
    let mut n = 0;
    let r = m.cpu().run_with(|c, e| {
        n += 1;
        c.answer_msr(0, false);
        matches!(
            e,
            Exit::Rdmsr {
                index: 0xc000_0082,
                reason: KVM_MSR_EXIT_REASON_FILTER
            } | Exit::Wrmsr {
                index: 0xc000_0082,
                ..
            }
        )
    });
    assert_eq!((n, r), (2, vec![0, 0, 0, 0]));
    Ok(())
}

fn filter_of_bases() -> Outcome {
    // Deny by default; what a range names is as it says. x2APIC's MSRs are never filtered.
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0x1b, 0xfee0_0d00)?;
        kit::rdmsr(a, 0x802)?;
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.mov(ecx, 0x277)?;
        a.rdmsr()?;
        a.set_label(&mut after)?;
        kit::count(a, 13)?;
        kit::done(a)
    })?;
    filter(
        &m,
        1,
        &[(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, 0x18, &[0xff])],
    );
    assert_eq!(m.cpu().results(), [0, 0, 1]);
    Ok(())
}
