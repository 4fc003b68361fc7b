// SPDX-License-Identifier: GPL-2.0

//! Interrupts that user space injects, NMIs, shadows, priorities.

use crate::harness::tests;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use rkvm_l1::kit;
use rkvm_l1::sys;
use rkvm_l1::{Exit, Irqchip, Machine, Mode, Outcome};

tests![
    window_without_lapic,
    interrupt_real_mode,
    interrupt_waits_for_sti,
    sti_shadow,
    mov_ss_shadow,
    if_flag_and_ready,
    hlt_until_interrupt,
    nmi_is_delivered,
    nmi_is_masked_until_iret,
    nmi_wakes_hlt,
    nmi_before_interrupt,
    exception_before_interrupt,
    interrupt_during_string_io,
    interrupt_during_fault_delivery,
    guest_debug_single_step,
];

fn inject(m: &Machine, vector: u32) -> Result<i32, i32> {
    sys::with(m.cpus[0].raw(), sys::INTERRUPT, &mut { vector })
}

/// Waits at port 0x50, then runs `code`.
fn at_port(
    irqchip: Irqchip,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Machine {
    let mut m = Machine::with(Mode::Long, irqchip, 1);
    m.code(kit::CODE, 64, |a| {
        a.out(0x50, al)?;
        code(a)?;
        kit::done_after(a)
    })
    .expect("code");
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x50, .. })));
    m
}

fn window_without_lapic() -> Outcome {
    let mut m = at_port(Irqchip::None, |a| {
        a.mov(ebx, 1)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.mov(ebx, 2)?;
        a.cli()?;
        a.nop()
    });
    assert_eq!(
        (
            m.cpu().page().if_flag,
            m.cpu().page().ready_for_interrupt_injection
        ),
        (0, 0)
    );
    m.cpu().page().request_interrupt_window = 1;
    assert_eq!(m.cpu().run(), Ok(Exit::Window));
    assert_eq!(
        (
            m.cpu().page().if_flag,
            m.cpu().page().ready_for_interrupt_injection
        ),
        (1, 1)
    );
    m.cpu().page().request_interrupt_window = 0;
    assert_eq!(inject(&m, 0x55), Ok(0));
    m.cpu().results();
    assert_eq!(m.log(), [0x55]);
    Ok(())
}

fn interrupt_real_mode() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::None, 1);
    m.code(kit::CODE, 16, |a| {
        a.mov(ebx, 0)?;
        a.sti()?;
        a.nop()?;
        a.out(0x50, al)?;
        a.mov(eax, ebx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    m.ram.set32(4 * 0x20, 0x9000);
    m.code(0x9000, 16, |a| {
        a.inc(ebx)?;
        a.iret()
    })?;
    m.cpu().run().expect("run");
    assert_eq!(inject(&m, 0x20), Ok(0));
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}

fn interrupt_waits_for_sti() -> Outcome {
    // Injected when it may be only: a VMM asks for the window and gets it with the first instruction that lets it.
    let mut m = at_port(Irqchip::None, |a| {
        for _ in 0..50 {
            a.nop()?;
        }
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    m.cpu().page().request_interrupt_window = 1;
    assert_eq!(m.cpu().run(), Ok(Exit::Window));
    let rip = m.cpu().fd.get_regs()?.rip;
    // After the STI, the instruction in its shadow is done first.
    assert_eq!(rip, kit::CODE + 2 + 50 + 1 + 1);
    Ok(())
}

fn sti_shadow() -> Outcome {
    // STI; CLI opens no window; STI; NOP does. The handler notes where it came from.
    let mut m = at_port(Irqchip::Split, |a| {
        super::lapic::x2apic_on(a)?;
        kit::wrmsr(a, 0x83f, 0x66)?;
        a.sti()?;
        a.cli()?;
        kit::count(a, 0x66)?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        kit::count(a, 0x66)
    });
    assert_eq!(m.cpu().results(), [0, 1]);
    Ok(())
}

fn mov_ss_shadow() -> Outcome {
    let mut m = at_port(Irqchip::Split, |a| {
        super::lapic::x2apic_on(a)?;
        a.mov(ebx, ss)?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        kit::wrmsr(a, 0x83f, 0x67)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x200)?;
        a.mov(ss, ebx)?;
        a.nop()?;
        // POPF enables at once: it has no shadow.
        a.popfq()?;
        a.nop()?;
        a.cli()?;
        kit::count(a, 0x67)
    });
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}

fn if_flag_and_ready() -> Outcome {
    let mut m = at_port(Irqchip::None, |a| {
        a.sti()?;
        a.nop()?;
        a.out(0x51, al)?;
        a.cli()?;
        a.out(0x52, al)
    });
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x51, .. })));
    assert_eq!(
        (
            m.cpu().page().if_flag,
            m.cpu().page().ready_for_interrupt_injection
        ),
        (1, 1)
    );
    assert!(matches!(m.cpu().run(), Ok(Exit::Out { port: 0x52, .. })));
    assert_eq!(
        (
            m.cpu().page().if_flag,
            m.cpu().page().ready_for_interrupt_injection
        ),
        (0, 0)
    );
    assert_eq!(m.cpu().page().apic_base & 0xffff_f000, 0xfee0_0000);
    Ok(())
}

fn hlt_until_interrupt() -> Outcome {
    let mut m = at_port(Irqchip::None, |a| {
        a.sti()?;
        a.hlt()?;
        kit::count(a, 0x31)
    });
    assert_eq!(m.cpu().run(), Ok(Exit::Hlt));
    assert_eq!(inject(&m, 0x31), Ok(0));
    assert_eq!(m.cpu().results(), [1]);
    Ok(())
}

fn nmi_is_delivered() -> Outcome {
    for irqchip in [Irqchip::None, Irqchip::Split] {
        let mut m = at_port(irqchip, |a| kit::count(a, 2));
        assert_eq!(sys::call(m.cpu().raw(), sys::NMI, 0), Ok(0));
        assert_eq!(m.cpu().results(), [1], "{irqchip:?}");
        let f = m.frame();
        assert_eq!(
            (f[0], f[2]),
            (2, kit::CODE + 2),
            "before the next instruction"
        );
    }
    Ok(())
}

fn nmi_is_masked_until_iret() -> Outcome {
    let mut m = at_port(Irqchip::Split, |a| {
        a.nop()?;
        kit::count(a, 3)
    });
    // The NMI's handler exits; another NMI comes meanwhile and must wait for its IRET.
    let handler = 0x1_8000;
    m.code(handler, 64, |a| {
        a.inc(dword_ptr(kit::DATA))?;
        a.mov(eax, dword_ptr(kit::DATA))?;
        a.out(0x51, al)?;
        a.mov(eax, dword_ptr(kit::DATA))?;
        a.out(0x52, al)?;
        a.iretq()
    })?;
    m.ram.put(
        kit::IDT + 32,
        &kit::gate(handler, kit::SEL_CODE64, 0x8e, true),
    );
    assert_eq!(sys::call(m.cpu().raw(), sys::NMI, 0), Ok(0));
    let port = |e: Result<Exit, i32>| {
        if let Ok(Exit::Out { port, data, .. }) = e {
            (port, data[0])
        } else {
            panic!("{e:x?}")
        }
    };
    assert_eq!(port(m.cpu().run()), (0x51, 1));
    assert_eq!(m.cpu().fd.get_vcpu_events()?.nmi.masked, 1);
    // Two more are one.
    assert_eq!(sys::call(m.cpu().raw(), sys::NMI, 0), Ok(0));
    assert_eq!(sys::call(m.cpu().raw(), sys::NMI, 0), Ok(0));
    assert_eq!(port(m.cpu().run()), (0x52, 1), "not within the handler");
    assert_eq!(port(m.cpu().run()), (0x51, 2), "after its IRET");
    m.cpu().run_with(|_, e| matches!(e, Exit::Out { .. }));
    assert!(m.ram.u32(kit::DATA) <= 3);
    assert_eq!(m.cpu().fd.get_vcpu_events()?.nmi.masked, 0);
    Ok(())
}

fn nmi_wakes_hlt() -> Outcome {
    let mut m = at_port(Irqchip::Split, |a| {
        super::lapic::x2apic_on(a)?;
        a.hlt()?;
        kit::count(a, 2)
    });
    // (KVM_NMI would wait for KVM_RUN to end.)
    let fd = m.raw();
    let r = std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut msi = kvm_msi {
                address_lo: 0xfee0_0000,
                data: 0x400,
                ..Default::default()
            };
            assert_eq!(sys::with(fd, sys::SIGNAL_MSI, &mut msi), Ok(1));
        });
        m.cpus[0].results()
    });
    assert_eq!(r, [1]);
    Ok(())
}

fn nmi_before_interrupt() -> Outcome {
    let mut m = at_port(Irqchip::Split, |a| {
        super::lapic::x2apic_on(a)?;
        kit::wrmsr(a, 0x83f, 0x44)?;
        a.sti()?;
        a.out(0x51, al)
    });
    // Both wait in the shadow of STI; the NMI is first.
    m.cpu().run().expect("run");
    if m.log().is_empty() {
        assert_eq!(sys::call(m.cpu().raw(), sys::NMI, 0), Ok(0));
        m.cpu().results();
        assert_eq!(m.log(), [2, 0x44]);
    }
    Ok(())
}

fn exception_before_interrupt() -> Outcome {
    let mut m = at_port(Irqchip::Split, |a| {
        let mut after = a.create_label();
        super::lapic::x2apic_on(a)?;
        kit::expect64(a, after)?;
        kit::wrmsr(a, 0x83f, 0x44)?;
        a.sti()?;
        // In the shadow: its exception comes first, and its handler runs with interrupts off.
        a.ud2()?;
        a.set_label(&mut after)?;
        a.nop()
    });
    m.cpu().results();
    assert_eq!(m.log()[0], 6);
    assert_eq!(m.count(0x44), 1);
    Ok(())
}

fn interrupt_during_string_io() -> Outcome {
    // REP INS with a timer that ticks: every byte arrives once, whatever comes between.
    let mut m = at_port(Irqchip::Split, |a| {
        super::lapic::x2apic_on(a)?;
        kit::wrmsr(a, 0x83e, 0xb)?;
        kit::wrmsr(a, 0x832, 0x2_0045)?;
        kit::wrmsr(a, 0x838, 1_000_000)?;
        a.sti()?;
        a.mov(edi, 0x4_0000)?;
        a.mov(ecx, 20_000)?;
        a.mov(dx, 0x70)?;
        a.rep().insb()?;
        a.cli()?;
        kit::wrmsr(a, 0x838, 0)
    });
    let mut n = 0u32;
    m.cpu().run_with(|c, e| {
        let Exit::In { count, .. } = e else {
            return false;
        };
        let bytes: Vec<u8> = (0..*count)
            .map(|_| {
                n += 1;
                (n * 7 >> 2) as u8
            })
            .collect();
        c.answer(&bytes);
        true
    });
    let want: Vec<u8> = (1..=20_000u32).map(|n| (n * 7 >> 2) as u8).collect();
    let got = m.ram.get(0x4_0000, 20_000);
    let wrong = (0..20_000).find(|i| got[*i] != want[*i]);
    assert_eq!(
        wrong,
        None,
        "bytes were lost or came twice: {n} were given, {} ticks",
        m.count(0x45)
    );
    Ok(())
}

/// The IDT's page, or the stack's, is not in the hypervisor's tables when an exception is delivered: it is delivered once, all the same.
fn interrupt_during_fault_delivery() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    m.code(kit::CODE, 64, |a| {
        for _ in 0..30 {
            a.out(0x50, al)?;
            a.int(0x30)?;
            a.int3()?;
        }
        kit::done(a)
    })?;
    // The fix-up of INT3 is the next instruction: none is needed, as it is a trap; so a handler that returns.
    let handler = 0x1_8000;
    m.code(handler, 64, |a| {
        a.lock().inc(dword_ptr(kit::DATA))?;
        a.iretq()
    })?;
    for v in [3, 0x30] {
        m.ram.put(
            kit::IDT + 16 * v,
            &kit::gate(handler, kit::SEL_CODE64, 0x8e, true),
        );
    }
    let ram = m.ram.at(0);
    let len = m.ram.len();
    m.cpu().run_with(|_, e| {
        // Everything is dropped from the hypervisor's tables, and is there again at the next touch.
        // SAFETY: our own mapping; contents are kept.
        unsafe {
            libc::mprotect(ram, len, libc::PROT_READ);
            libc::mprotect(ram, len, libc::PROT_READ | libc::PROT_WRITE);
            libc::mprotect(ram, len, libc::PROT_NONE);
            libc::mprotect(ram, len, libc::PROT_READ | libc::PROT_WRITE);
        }
        matches!(e, Exit::Out { port: 0x50, .. })
    });
    assert_eq!(m.ram.u32(kit::DATA), 60);
    Ok(())
}

fn debuggable(m: &Machine) -> bool {
    m.kvm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG.into()) > 0
}

fn guest_debug_single_step() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.nop()?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        kit::done(a)
    })?;
    if !debuggable(&m) {
        return rkvm_l1::skip("KVM_CAP_SET_GUEST_DEBUG");
    }
    m.cpu().fd.set_guest_debug(&kvm_guest_debug {
        control: 3,
        ..Default::default()
    })?;
    for at in [1, 3, 5] {
        let e = m.cpu().run();
        assert!(
            matches!(e, Ok(Exit::Debug { exception: 1, pc, .. }) if pc == kit::CODE + at),
            "{at}: {e:x?}"
        );
    }
    m.cpu().fd.set_guest_debug(&kvm_guest_debug::default())?;
    m.cpu().results();
    Ok(())
}
