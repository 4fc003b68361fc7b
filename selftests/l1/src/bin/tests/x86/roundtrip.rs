// SPDX-License-Identifier: GPL-2.0

//! What is set by ioctl can be got back, and the guest sees it.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use rkvm_l1::kit::{self, DATA};
use rkvm_l1::machine::{cpuid, has_xsave, leaf};
use rkvm_l1::sys;
use rkvm_l1::{Irqchip, Machine, Mode, Outcome};

tests![
    regs,
    guest_sees_regs,
    regs_after_exit,
    sregs,
    sregs2,
    sregs2_pdptrs,
    segments,
    fpu,
    fpu_and_xsave_agree,
    xsave,
    xsave2_size,
    avx_through_xsave,
    xcrs,
    debugregs,
    guest_sees_debugregs,
    vcpu_events,
    pending_exception_is_delivered,
    lapic,
    lapic_x2apic_id,
    every_msr_can_be_read,
    every_msr_can_be_written_back,
    msr_values,
    msr_refusals,
    feature_msrs,
    cpuid_is_kept,
    guest_sees_cpuid,
    clock,
    fresh_vcpu_is_in_reset_state,
];

fn regs() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let r = kvm_regs {
        rax: 0x1111_2222_3333_4444,
        rbx: 0x1,
        rcx: u64::MAX,
        rdx: 1 << 63,
        rsi: 0x55,
        rdi: 0x66,
        rsp: 0xffff_8000_0000_1000,
        rbp: 0x77,
        r8: 8,
        r9: 9,
        r10: 10,
        r11: 11,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 0xf0f0_f0f0_f0f0_f0f0,
        rip: 0xffff_ffff_8000_0000,
        rflags: 0x3_0cd7,
    };
    m.cpus[0].fd.set_regs(&r)?;
    let g = m.cpus[0].fd.get_regs()?;
    assert_eq!(g, r);
    // Bit 1 always is one.
    m.cpus[0].regs(|r| r.rflags = 0);
    assert_eq!(m.cpus[0].fd.get_regs()?.rflags, 2);
    Ok(())
}

const GPRS: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];

fn guest_sees_regs() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        for (i, r) in GPRS.iter().enumerate() {
            a.mov(qword_ptr(DATA + 8 * i as u64), *r)?;
        }
        a.pushfq()?;
        kit::done(a)
    })?;
    let stack = kit::STACK;
    m.cpu().regs(|r| {
        *r = kvm_regs {
            rip: r.rip,
            rsp: stack,
            rflags: 0x0cd7,
            ..*r
        };
        r.rax = 0x100;
        r.rcx = 0x101;
        r.rdx = 0x102;
        r.rbx = 0x103;
        r.rbp = 0x105;
        r.rsi = 0x106;
        r.rdi = 0x107;
        r.r8 = 0x108;
        r.r9 = 0x109;
        r.r10 = 0x10a;
        r.r11 = 0x10b;
        r.r12 = 0x10c;
        r.r13 = 0x10d;
        r.r14 = 0x10e;
        r.r15 = 0xf1f2_f3f4_f5f6_f7f8;
    });
    m.cpu().results();
    for i in 0..15u64 {
        let want = if i == 4 { stack } else { 0x100 + i };
        assert_eq!(m.ram.u64(DATA + 8 * i), want, "register {i}");
    }
    assert_eq!(m.ram.u64(DATA + 8 * 15), 0xf1f2_f3f4_f5f6_f7f8);
    assert_eq!(m.ram.u64(stack - 8), 0x0cd7, "flags");
    Ok(())
}

fn regs_after_exit() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        for (i, r) in GPRS.iter().enumerate().filter(|(i, _)| *i != 4) {
            a.mov(*r, 0x1000_0000_0000 + i as u64)?;
        }
        a.stc()?;
        a.std()?;
        a.out(0x50, al)?;
        a.cld()?;
        // What user space has set is there afterwards.
        a.mov(qword_ptr(DATA), rbx)?;
        kit::done(a)
    })?;
    m.cpu().run().expect("run");
    let r = m.cpu().fd.get_regs()?;
    let got = [
        r.rax, r.rcx, r.rdx, r.rbx, 4, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    for (i, v) in got.iter().enumerate().filter(|(i, _)| *i != 4) {
        assert_eq!(*v, 0x1000_0000_0000 + i as u64, "register {i}");
    }
    assert_eq!(r.rflags & 0x401, 0x401);
    m.cpu().regs(|r| r.rbx = 0xabcd);
    m.cpu().results();
    assert_eq!(m.ram.u64(DATA), 0xabcd);
    Ok(())
}

fn sregs() -> Outcome {
    for mode in Mode::ALL {
        let m = Machine::with(mode, Irqchip::Split, 1);
        let mut s = m.cpus[0].fd.get_sregs()?;
        s.cr2 = 0xffff_8000_dead_b000;
        s.cr8 = 5;
        s.gdt.base = 0x1234_5000;
        s.gdt.limit = 0x7f;
        s.idt.base = 0x4321_0000;
        s.idt.limit = 0xabc;
        m.cpus[0].fd.set_sregs(&s)?;
        assert_eq!(m.cpus[0].fd.get_sregs()?, s, "{mode:?}");
    }
    Ok(())
}

/// `struct kvm_sregs2`, which the bindings may lack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Default)]
struct Sregs2 {
    segs: [kvm_segment; 8],
    gdt: kvm_dtable,
    idt: kvm_dtable,
    cr: [u64; 5],
    efer: u64,
    apic_base: u64,
    flags: u64,
    pdptrs: [u64; 4],
}

fn get_sregs2(m: &Machine) -> Sregs2 {
    let mut s = Sregs2::default();
    assert_eq!(sys::with(m.cpus[0].raw(), sys::GET_SREGS2, &mut s), Ok(0));
    s
}

fn sregs2() -> Outcome {
    assert_eq!(size_of::<Sregs2>(), 0x140);
    for mode in Mode::ALL {
        let m = Machine::with(mode, Irqchip::Split, 1);
        let mut s = get_sregs2(&m);
        let old = m.cpus[0].fd.get_sregs()?;
        assert_eq!(
            (s.segs[0], s.cr[0], s.efer, s.apic_base),
            (old.cs, old.cr0, old.efer, old.apic_base)
        );
        assert_eq!(
            s.flags,
            u64::from(mode == Mode::Pae),
            "{mode:?}: PDPTRs are there in PAE mode alone"
        );
        s.cr[1] = 0x1_2345;
        assert_eq!(
            sys::with(m.cpus[0].raw(), sys::SET_SREGS2, &mut s.clone()),
            Ok(0)
        );
        assert_eq!(get_sregs2(&m), s, "{mode:?}");
        s.flags = 2;
        assert_eq!(
            sys::with(m.cpus[0].raw(), sys::SET_SREGS2, &mut s),
            Err(libc::EINVAL)
        );
    }
    Ok(())
}

fn sregs2_pdptrs() -> Outcome {
    // PDPTRs are loaded from memory, and may be given.
    let mut m = Machine::with(Mode::Pae, Irqchip::Split, 1);
    m.code(kit::CODE, 32, |a| {
        a.mov(eax, dword_ptr(DATA))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    m.ram.set32(DATA, 0x55aa);
    let mut s = get_sregs2(&m);
    assert_eq!(s.pdptrs[0], kit::PDS | 1);
    // Ours: a directory elsewhere, whose first page is the same.
    m.ram.set64(0x3_0000, 0xe7);
    s.pdptrs[0] = 0x3_0000 | 1;
    s.flags = 1;
    assert_eq!(sys::with(m.cpus[0].raw(), sys::SET_SREGS2, &mut s), Ok(0));
    assert_eq!(get_sregs2(&m).pdptrs[0], 0x3_0001, "as given");
    assert_eq!(m.cpu().results(), [0x55aa]);
    // The processor may take them from memory, where nested paging is; what was given is what is shown
    // until something else is loaded.
    assert_eq!(get_sregs2(&m).pdptrs[0], 0x3_0001, "as given, after a run");
    m.ram.set64(0x3_1000, 0x3_2001);
    m.cpus[0].sregs(|s| s.cr3 = 0x3_1000);
    let loaded = get_sregs2(&m).pdptrs;
    assert_eq!(loaded, [0x3_2001, 0, 0, 0], "as KVM_SET_SREGS loads them");
    s.flags = 0;
    s.pdptrs = [0; 4];
    let long = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut t = get_sregs2(&long);
    t.flags = 1;
    assert_eq!(
        sys::with(long.cpus[0].raw(), sys::SET_SREGS2, &mut t),
        Err(libc::EINVAL),
        "no PDPTRs in long mode"
    );
    Ok(())
}

fn segments() -> Outcome {
    let m = Machine::with(Mode::Protected, Irqchip::Split, 1);
    let mut s = m.cpus[0].fd.get_sregs()?;
    s.ds = kvm_segment {
        base: 0x12_3456,
        limit: 0xf_ffff,
        selector: 0x50,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        avl: 1,
        ..Default::default()
    };
    s.es = kvm_segment {
        unusable: 1,
        selector: 0,
        present: 0,
        ..s.ds
    };
    s.fs = kvm_segment {
        base: 0xffff_0000,
        limit: 0xffff_ffff,
        g: 1,
        type_: 7,
        dpl: 3,
        selector: 0x5b,
        ..s.ds
    };
    s.ldt = kvm_segment {
        base: 0x8000,
        limit: 0xff,
        type_: 2,
        present: 1,
        selector: 0x60,
        ..Default::default()
    };
    m.cpus[0].fd.set_sregs(&s)?;
    let g = m.cpus[0].fd.get_sregs()?;
    assert_eq!(
        (g.ds, g.fs, g.ldt, g.tr, g.cs, g.ss),
        (s.ds, s.fs, s.ldt, s.tr, s.cs, s.ss)
    );
    assert_eq!((g.es.unusable, g.es.present), (1, 0));
    Ok(())
}

fn fpu() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.movups(xmmword_ptr(DATA), xmm7)?;
        a.fstp(qword_ptr(DATA + 16))?;
        a.mov(eax, 0x4321)?;
        a.movd(xmm9, eax)?;
        kit::done(a)
    })?;
    let mut f = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ftwx: 1,
        ..Default::default()
    };
    for i in 0..16u8 {
        f.xmm[usize::from(i)] = std::array::from_fn(|j| i * 16 + j as u8);
    }
    // 1.5 on the stack: the exponent's bias is 0x3fff.
    f.fpr[0] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0x3f, 0, 0, 0, 0, 0, 0];
    f.last_opcode = 0x123;
    // (In-tree KVM's SET_FPU does not mark the state as being in use.)
    let mut x = m.cpu().fd.get_xsave()?;
    x.region[128] |= 3;
    // SAFETY: the guest's permitted state is no larger than 4 KiB.
    unsafe { m.cpu().fd.set_xsave(&x)? };
    m.cpu().fd.set_fpu(&f)?;
    let g = m.cpu().fd.get_fpu()?;
    // (In-tree KVM does not take MXCSR from here.)
    assert_eq!(
        (g.fcw, g.ftwx, g.xmm, g.fpr[0], g.last_opcode),
        (f.fcw, f.ftwx, f.xmm, f.fpr[0], 0x123)
    );
    m.cpu().results();
    assert_eq!(m.ram.get(DATA, 16), f.xmm[7]);
    assert_eq!(f64::from_bits(m.ram.u64(DATA + 16)), 1.5);
    let g = m.cpu().fd.get_fpu()?;
    assert_eq!(g.xmm[9][..4], [0x21, 0x43, 0, 0]);
    assert_eq!(g.xmm[8], f.xmm[8]);
    Ok(())
}

fn fpu_and_xsave_agree() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut x = m.cpu().fd.get_xsave()?;
    x.region[128] |= 3;
    // XMM3 is at 160 + 16 * 3 of the legacy area.
    x.region[52..56].fill(0xa5a5_a5a5);
    x.region[0] = 0x27f;
    // SAFETY: the guest's permitted state is no larger than 4 KiB.
    unsafe { m.cpu().fd.set_xsave(&x)? };
    let f = m.cpu().fd.get_fpu()?;
    assert_eq!((f.xmm[3], f.fcw), ([0xa5; 16], 0x27f));
    Ok(())
}

fn xsave() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.movups(xmmword_ptr(DATA), xmm2)?;
        a.xorps(xmm2, xmm2)?;
        kit::done(a)
    })?;
    let mut x = m.cpu().fd.get_xsave()?;
    x.region[128] |= 3;
    x.region[6] = 0x1fa0;
    x.region[48..52].copy_from_slice(&[0x11, 0x22, 0x33, 0x44]);
    // SAFETY: the guest's permitted state is no larger than 4 KiB.
    unsafe { m.cpu().fd.set_xsave(&x)? };
    let g = m.cpu().fd.get_xsave()?;
    assert_eq!(
        (g.region[6], &g.region[48..52]),
        (0x1fa0, &[0x11, 0x22, 0x33, 0x44][..])
    );
    m.cpu().results();
    assert_eq!(
        [0, 4, 8, 12].map(|o| m.ram.u32(DATA + o)),
        [0x11, 0x22, 0x33, 0x44]
    );
    assert_eq!(m.cpu().fd.get_xsave()?.region[48..52], [0; 4]);
    Ok(())
}

fn xsave2_size() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let size = m.vm.check_extension_raw(KVM_CAP_XSAVE2.into()) as usize;
    assert!(size >= 4096);
    let r = rkvm_l1::ram::Ram::anon(0, size + 4096);
    r.put(0, &vec![0xee; size + 4096]);
    assert_eq!(sys::call(m.cpus[0].raw(), sys::GET_XSAVE2, r.addr()), Ok(0));
    assert_eq!(
        r.get(size as u64, 4096),
        vec![0xee; 4096],
        "no byte past the size"
    );
    assert_ne!(r.get(size as u64 - 8, 8), [0xee; 8], "all bytes up to it");
    Ok(())
}

fn avx_through_xsave() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 18)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 7)?;
        a.xsetbv()?;
        a.out(0x50, al)?;
        a.vmovdqu(ymmword_ptr(DATA), ymm5)?;
        kit::done(a)
    })?;
    let c = cpuid(&m.kvm, 0);
    if leaf(&c, 1, 0).is_none_or(|l| l.ecx >> 28 & 1 == 0) {
        return rkvm_l1::skip("AVX");
    }
    let at = leaf(&c, 0xd, 2).expect("the AVX component").ebx as usize / 4;
    m.cpu().run().expect("run");
    let mut x = m.cpu().fd.get_xsave()?;
    x.region[128] |= 7;
    x.region[60..64].copy_from_slice(&[1, 2, 3, 4]);
    x.region[at + 20..at + 24].copy_from_slice(&[5, 6, 7, 8]);
    // SAFETY: the guest's permitted state is no larger than 4 KiB.
    unsafe { m.cpu().fd.set_xsave(&x)? };
    m.cpu().results();
    let got: Vec<u32> = (0..8).map(|i| m.ram.u32(DATA + 4 * i)).collect();
    assert_eq!(got, [1, 2, 3, 4, 5, 6, 7, 8]);
    Ok(())
}

fn xcrs() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.xor(ecx, ecx)?;
        a.xgetbv()?;
        kit::result(a)?;
        a.mov(eax, 1)?;
        a.xor(edx, edx)?;
        a.xsetbv()?;
        kit::done(a)
    })?;
    if !has_xsave(&m.kvm) {
        return rkvm_l1::skip("XSAVE");
    }
    m.cpu().sregs(|s| s.cr4 |= 1 << 18);
    let mut x = m.cpu().fd.get_xcrs()?;
    assert_eq!(x.xcrs[0].value, 1, "after reset");
    x.xcrs[0].value = 3;
    m.cpu().fd.set_xcrs(&x)?;
    assert_eq!(m.cpu().results(), [3]);
    assert_eq!(m.cpu().fd.get_xcrs()?.xcrs[0].value, 1);
    Ok(())
}

fn debugregs() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let d = kvm_debugregs {
        db: [1, 0xffff_8000_0000_0000, 3, u64::MAX],
        dr6: 0xffff_0ff3,
        dr7: 0x401,
        ..Default::default()
    };
    m.cpus[0].fd.set_debug_regs(&d)?;
    let g = m.cpus[0].fd.get_debug_regs()?;
    assert_eq!((g.db, g.dr6, g.dr7), (d.db, d.dr6, d.dr7));
    Ok(())
}

fn guest_sees_debugregs() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rax, dr1)?;
        kit::result(a)?;
        a.mov(rax, dr6)?;
        kit::result(a)?;
        a.mov(eax, 0x5678)?;
        a.mov(dr2, rax)?;
        a.mov(eax, 0x400)?;
        a.mov(dr7, rax)?;
        kit::done(a)
    })?;
    let mut d = m.cpu().fd.get_debug_regs()?;
    d.db[1] = 0x1234;
    d.dr6 = 0xffff_0ff1;
    m.cpu().fd.set_debug_regs(&d)?;
    assert_eq!(m.cpu().results(), [0x1234, 0xffff_0ff1]);
    let d = m.cpu().fd.get_debug_regs()?;
    assert_eq!((d.db[1], d.db[2], d.dr7), (0x1234, 0x5678, 0x400));
    Ok(())
}

fn vcpu_events() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut e = m.cpus[0].fd.get_vcpu_events()?;
    assert_eq!(
        (
            e.exception.injected,
            e.interrupt.injected,
            e.nmi.injected,
            e.nmi.masked
        ),
        (0, 0, 0, 0)
    );
    e.nmi.masked = 1;
    e.nmi.pending = 1;
    e.interrupt.shadow = 1;
    e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    m.cpus[0].fd.set_vcpu_events(&e)?;
    let g = m.cpus[0].fd.get_vcpu_events()?;
    assert_eq!((g.nmi.masked, g.nmi.pending), (1, 1));
    assert_ne!(g.interrupt.shadow, 0);
    e.nmi.masked = 0;
    e.nmi.pending = 0;
    e.interrupt.shadow = 0;
    e.exception.injected = 1;
    e.exception.nr = 13;
    e.exception.has_error_code = 1;
    e.exception.error_code = 0x18;
    m.cpus[0].fd.set_vcpu_events(&e)?;
    let g = m.cpus[0].fd.get_vcpu_events()?;
    let x = g.exception;
    assert_eq!(
        (x.injected, x.nr, x.has_error_code, x.error_code),
        (1, 13, 1, 0x18)
    );
    assert_eq!((g.nmi.masked, g.nmi.pending, g.interrupt.shadow), (0, 0, 0));
    Ok(())
}

fn pending_exception_is_delivered() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.out(0x50, al)?;
        a.ud2()?;
        a.set_label(&mut after)?;
        kit::done_after(a)
    })?;
    m.cpu().run().expect("run");
    let mut e = m.cpu().fd.get_vcpu_events()?;
    e.exception.injected = 1;
    e.exception.nr = 13;
    e.exception.has_error_code = 1;
    e.exception.error_code = 0x18;
    m.cpu().fd.set_vcpu_events(&e)?;
    m.cpu().results();
    assert_eq!(m.frame()[..2], [13, 0x18]);
    assert_eq!(m.count(6), 0, "the instruction after it was never reached");
    assert_eq!(m.cpu().fd.get_vcpu_events()?.exception.injected, 0);
    Ok(())
}

fn lapic() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 2);
    let mut l = m.cpus[1].fd.get_lapic()?;
    let get = |l: &kvm_lapic_state, r: usize| {
        u32::from_le_bytes(std::array::from_fn(|i| l.regs[r + i] as u8))
    };
    assert_eq!(get(&l, 0x20), 1 << 24, "xAPIC id");
    assert_eq!(get(&l, 0x30) & 0xff, 0x14, "version");
    assert_eq!(get(&l, 0xf0), 0xff, "spurious vector: disabled");
    for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        assert!(
            get(&l, lvt) & 0x1_0000 != 0 || lvt == 0x350,
            "LVT {lvt:#x} is masked"
        );
    }
    let mut put = |r: usize, v: u32| {
        for (i, b) in v.to_le_bytes().iter().enumerate() {
            l.regs[r + i] = *b as std::os::raw::c_char;
        }
    };
    put(0x80, 0x20);
    put(0xf0, 0x1ff);
    put(0x320, 0x2_0040);
    put(0x3e0, 0xb);
    put(0xd0, 0x0200_0000);
    put(0x350, 0x700);
    m.cpus[1].fd.set_lapic(&l)?;
    let g = m.cpus[1].fd.get_lapic()?;
    for r in [0x80, 0xf0, 0x320, 0x3e0, 0xd0, 0x350] {
        assert_eq!(get(&g, r), get(&l, r), "{r:#x}");
    }
    assert_eq!(m.cpus[1].fd.get_sregs()?.cr8, 2, "TPR and CR8 are one");
    Ok(())
}

fn lapic_x2apic_id() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 2);
    assert!(m.cpus[1].set_msr(0x1b, 0xfee0_0000 | 0xc00));
    assert_eq!(m.cpus[1].fd.get_sregs()?.apic_base, 0xfee0_0c00);
    let l = m.cpus[1].fd.get_lapic()?;
    // Without KVM_CAP_X2APIC_API the id stays where xAPIC has it.
    assert_eq!(
        l.regs[0x20..0x24]
            .iter()
            .map(|b| *b as u8)
            .collect::<Vec<_>>(),
        [0, 0, 0, 1]
    );
    m.cpus[1].fd.set_lapic(&l)?;
    assert_eq!(m.cpus[1].msr(0x802), Some(1));
    Ok(())
}

fn msr_list(m: &Machine) -> Vec<u32> {
    m.kvm
        .get_msr_index_list()
        .expect("KVM_GET_MSR_INDEX_LIST")
        .as_slice()
        .to_vec()
}

fn every_msr_can_be_read() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let bad: Vec<_> = msr_list(&m)
        .into_iter()
        .filter(|i| m.cpus[0].msr(*i).is_none())
        .collect();
    assert!(bad.is_empty(), "{bad:x?}");
    Ok(())
}

fn every_msr_can_be_written_back() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let mut bad = Vec::new();
    for i in msr_list(&m) {
        let v = m.cpus[0].msr(i).expect("it can be read");
        if !m.cpus[0].set_msr(i, v) {
            bad.push((i, v));
        }
    }
    assert!(bad.is_empty(), "{bad:x?}");
    Ok(())
}

fn msr_values() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let list = msr_list(&m);
    let values = [
        (0x174, 0x10),
        (0x175, 0x8000_1000),
        (0x176, 0x1234_5000),
        (0x277, 0x0007_0406_0007_0406),
        (0xc000_0081, 0x23_0010_0000_0000),
        (0xc000_0082, 0xffff_ffff_8100_0000),
        (0xc000_0083, 0xffff_ffff_8200_0000),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x7f12_3456_7000),
        (0xc000_0101, 0xffff_8880_0000_0000),
        (0xc000_0102, 0x1000),
        (0xc000_0103, 7),
        (0x1b, 0xfee0_0900),
        (0x3b, 0x1234),
        (0x4b56_4d00, 0x3_0000),
        (0x4b56_4d01, 0x3_0001),
    ];
    for (i, v) in values {
        assert!(
            list.contains(&i) || matches!(i, 0xc000_0100 | 0xc000_0101 | 0x1b | 0x277),
            "{i:#x} is not in the list"
        );
        assert!(m.cpus[0].set_msr(i, v), "{i:#x}");
        assert_eq!(m.cpus[0].msr(i), Some(v), "{i:#x}");
    }
    let s = m.cpus[0].fd.get_sregs()?;
    assert_eq!(
        (s.fs.base, s.gs.base),
        (0x7f12_3456_7000, 0xffff_8880_0000_0000)
    );
    Ok(())
}

fn msr_refusals() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let c = &m.cpus[0];
    assert!(
        !c.set_msr(0xc000_0082, 0x8000_0000_0000_0000),
        "LSTAR must be canonical"
    );
    assert!(
        !c.set_msr(0xc000_0102, 0x8000_0000_0000_0000),
        "KERNEL_GS_BASE must be canonical"
    );
    assert!(
        !c.set_msr(0x277, 0x0007_0406_0007_0402),
        "PAT has no type 2"
    );
    assert!(!c.set_msr(0xc000_0080, 1 << 40), "reserved in EFER");
    assert!(!c.set_msr(0x1b, 0xfee0_0400), "x2APIC without enable");
    assert!(!c.set_msr(0x4000_0fff, 1), "no such MSR");
    assert!(c.msr(0x4000_0fff).is_none());
    Ok(())
}

fn feature_msrs() -> Outcome {
    let k = rkvm_l1::kvm();
    for i in k.get_msr_feature_index_list()?.as_slice() {
        let mut m = Msrs::from_entries(&[kvm_msr_entry {
            index: *i,
            ..Default::default()
        }])
        .expect("one entry");
        assert_eq!(k.get_msrs(&mut m)?, 1, "{i:#x}");
    }
    Ok(())
}

fn cpuid_is_kept() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    let want = cpuid(&m.kvm, 0);
    let got = m.cpus[0].fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
    assert_eq!(got.as_slice().len(), want.as_slice().len());
    for (g, w) in got.as_slice().iter().zip(want.as_slice()) {
        assert_eq!(
            (g.function, g.index, g.flags),
            (w.function, w.index, w.flags)
        );
        // Bits that follow the CPU's state: OSXSAVE, APIC, OSPKE, XSAVE sizes, leaf 0x8000_0001's APIC.
        if !matches!(g.function, 1 | 7 | 0xd | 0x8000_0001 | 0x4000_0001) {
            assert_eq!(
                (g.eax, g.ebx, g.ecx, g.edx),
                (w.eax, w.ebx, w.ecx, w.edx),
                "{:#x}.{:#x}",
                g.function,
                g.index
            );
        }
    }
    Ok(())
}

fn guest_sees_cpuid() -> Outcome {
    let asked = [
        (0, 0),
        (1, 0),
        (7, 0),
        (0x4000_0000, 0),
        (0x4000_0001, 0),
        (0x8000_0000, 0),
        (0x8000_0002, 0),
        (0x8000_0008, 0),
        (0x1234, 0),
    ];
    let mut m = Machine::new(Mode::Long, |a| {
        for (function, index) in asked {
            a.mov(eax, function)?;
            a.mov(ecx, index)?;
            a.cpuid()?;
            kit::result(a)?;
            for r in [ebx, ecx, edx] {
                a.mov(eax, r)?;
                kit::result(a)?;
            }
        }
        kit::done(a)
    })?;
    let mut c = cpuid(&m.kvm, 0);
    // Whatever user space says, the guest sees.
    let brand = c
        .as_mut_slice()
        .iter_mut()
        .find(|e| e.function == 0x8000_0002)
        .expect("the brand string");
    (brand.eax, brand.ebx, brand.ecx, brand.edx) = (0x6d76_6b72, 0x1234_5678, 0, u32::MAX);
    m.cpu().fd.set_cpuid2(&c)?;
    let got = m.cpu().results();
    for (i, (function, index)) in asked.iter().enumerate() {
        let g = &got[4 * i..4 * i + 4];
        if let Some(l) = leaf(&c, *function, *index) {
            // OSXSAVE and OSPKE follow CR4.
            let ignore = if *function == 1 { 1 << 27 } else { 0 };
            assert_eq!(
                [g[0], g[1], g[2] & !ignore, g[3]],
                [l.eax, l.ebx, l.ecx & !ignore, l.edx],
                "{function:#x}"
            );
        }
    }
    Ok(())
}

fn clock() -> Outcome {
    let m = Machine::with(Mode::Long, Irqchip::Split, 1);
    m.vm.set_clock(&kvm_clock_data {
        clock: 1_000_000_000_000,
        ..Default::default()
    })?;
    let first = m.vm.get_clock()?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    let second = m.vm.get_clock()?;
    assert!(
        first.clock >= 1_000_000_000_000 && first.clock < 1_100_000_000_000,
        "{}",
        first.clock
    );
    let d = second.clock - first.clock;
    assert!((20_000_000..5_000_000_000).contains(&d), "{d} ns");
    Ok(())
}

fn fresh_vcpu_is_in_reset_state() -> Outcome {
    let k = rkvm_l1::kvm();
    let vm = k.create_vm()?;
    rkvm_l1::machine::split(&vm).expect("split");
    let c = vm.create_vcpu(0)?;
    let r = c.get_regs()?;
    assert_eq!((r.rip, r.rflags, r.rsp, r.rax), (0xfff0, 2, 0, 0));
    let s = c.get_sregs()?;
    assert_eq!(
        (s.cs.base, s.cs.selector, s.cs.limit),
        (0xffff_0000, 0xf000, 0xffff)
    );
    assert_eq!(
        (s.ds.base, s.ds.selector, s.ds.limit, s.ds.present),
        (0, 0, 0xffff, 1)
    );
    assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (0x6000_0010, 0, 0, 0));
    assert_eq!((s.idt.base, s.idt.limit, s.gdt.limit), (0, 0xffff, 0xffff));
    assert_eq!(s.apic_base, 0xfee0_0900, "boot CPU");
    let d = c.get_debug_regs()?;
    assert_eq!((d.dr6, d.dr7), (0xffff_0ff0, 0x400));
    assert_eq!(vm.create_vcpu(1)?.get_sregs()?.apic_base, 0xfee0_0800);
    Ok(())
}
