// SPDX-License-Identifier: GPL-2.0

//! States that user space may give and the processor does not enter: KVM_EXIT_FAIL_ENTRY, and words
//! that name the rule. Intel checks nearly everything (SDM vol. 3C 28.3.1), AMD little (APM vol. 2, 15.5.1).

use super::refusals::Trace;
use crate::harness::tests;
use kvm_bindings::*;
use rkvm_l1::kit;
use rkvm_l1::machine::{cpuid, leaf};
use rkvm_l1::{Exit, Machine, Mode, Outcome};

tests![rules_of_long_mode, rules_of_other_modes, rules_of_events,];

const NOT_CANONICAL: u64 = 1 << 63;
const HIGH: u64 = 1 << 32;
/// What Intel's processors begin their name with, in CPUID leaf 0's EBX.
const GENU: u32 = u32::from_le_bytes(*b"Genu");

/// Spoils a vCPU's state.
type Spoil = fn(&Machine);
/// What is spoiled, and the rule's words on VMX and, where it has one, on SVM.
type Case = (Spoil, &'static str, Option<&'static str>);

/// The first vCPU's registers, changed.
fn s(m: &Machine, f: impl FnOnce(&mut kvm_sregs)) {
    m.cpus[0].sregs(f);
}

fn r(m: &Machine, f: impl FnOnce(&mut kvm_regs)) {
    m.cpus[0].regs(f);
}

fn e(m: &Machine, f: impl FnOnce(&mut kvm_vcpu_events)) {
    let mut v = m.cpus[0].fd.get_vcpu_events().expect("events");
    f(&mut v);
    m.cpus[0].fd.set_vcpu_events(&v).expect("events");
}

fn usable_ldt(s: &mut kvm_sregs) {
    s.ldt = kvm_segment {
        selector: 0x18,
        limit: 0xffff,
        type_: 2,
        present: 1,
        ..Default::default()
    };
}

fn check(mode: Mode, cases: &[Case]) -> Outcome {
    let trace = Trace::of("rkvm_guest_error")?;
    let vmx = leaf(&cpuid(&rkvm_l1::kvm(), 0), 0, 0).is_some_and(|l| l.ebx == GENU);
    for (n, (spoil, on_vmx, on_svm)) in cases.iter().enumerate() {
        let mut m = Machine::new(mode, kit::done)?;
        spoil(&m);
        trace.text();
        let exit = m.cpu().run();
        let text = trace.text();
        let words = if vmx { Some(*on_vmx) } else { *on_svm };
        match (exit, words) {
            (Ok(Exit::FailEntry { why, .. }), Some(words)) => {
                assert!(why.contains(words), "case {n}, {words}: {why}");
                assert!(text.contains(words), "case {n}, {words}: {text}");
            }
            (Ok(Exit::FailEntry { .. }), None) => {
                assert!(
                    !text.contains("no rule that is known"),
                    "case {n}, {on_vmx}: {text}"
                );
            }
            (exit, Some(words)) => panic!("case {n}, {words}: entered, {exit:x?}"),
            // What the guest does then is its own affair.
            (_, None) => {}
        }
    }
    Ok(())
}

#[rustfmt::skip]
fn rules_of_long_mode() -> Outcome {
    check(Mode::Long, &[
        (|m| s(m, |s| s.tr.selector |= 4), "TR's selector refers to the LDT", None),
        (|m| s(m, |s| { usable_ldt(s); s.ldt.selector |= 4 }), "LDTR's selector refers to the LDT", None),
        (|m| s(m, |s| s.tr.base = NOT_CANONICAL), "TR's base is not canonical", None),
        (|m| s(m, |s| s.fs.base = NOT_CANONICAL), "FS' or GS' base is not canonical", None),
        (|m| s(m, |s| s.gs.base = NOT_CANONICAL), "FS' or GS' base is not canonical", None),
        (|m| s(m, |s| { usable_ldt(s); s.ldt.base = NOT_CANONICAL }), "LDTR's base is not canonical", None),
        (|m| s(m, |s| s.cs.base = HIGH), "CS' base has bits 63:32 set", None),
        (|m| s(m, |s| s.ss.base = HIGH), "SS', DS' or ES' base has bits 63:32 set", None),
        (|m| s(m, |s| s.cs.type_ = 1), "CS is no accessed code segment", None),
        (|m| s(m, |s| s.ds.type_ = 9), "is of a type that cannot be loaded", None),
        (|m| s(m, |s| s.ss.type_ = 1), "is of a type that cannot be loaded", None),
        (|m| s(m, |s| s.es.s = 0), "a code or data segment has S clear", None),
        (|m| s(m, |s| s.cs.dpl = 3), "CS.DPL does not go with its type and SS.DPL", None),
        (|m| s(m, |s| s.cs.present = 0), "a usable segment is not present", None),
        (|m| s(m, |s| s.cs.db = 1), "CS has both L and D set in long mode", Some("")),
        (|m| s(m, |s| s.ds.limit = 0xffff_f0ff), "a segment's limit does not go with its granularity", None),
        (|m| s(m, |s| s.tr.type_ = 3), "TR is no busy TSS of the mode's kind", None),
        (|m| s(m, |s| s.tr.s = 1), "TR is not a present system segment", None),
        (|m| s(m, |s| s.tr.present = 0), "TR is not a present system segment", None),
        (|m| s(m, |s| { s.tr.g = 1; s.tr.limit = 0x67 }), "TR's limit does not go with its granularity", None),
        (|m| s(m, |s| { usable_ldt(s); s.ldt.type_ = 3 }), "LDTR is no present LDT", None),
        (|m| s(m, |s| { usable_ldt(s); s.ldt.g = 1; s.ldt.limit = 0x67 }), "LDTR's access rights or limit are bad", None),
        (|m| s(m, |s| s.gdt.base = NOT_CANONICAL), "GDTR's or IDTR's base is not canonical", None),
        (|m| s(m, |s| s.idt.base = NOT_CANONICAL), "GDTR's or IDTR's base is not canonical", None),
        (|m| r(m, |r| r.rflags |= 1 << 17), "a segment is not as virtual-8086 mode has it", None),
    ])
}

#[rustfmt::skip]
fn rules_of_other_modes() -> Outcome {
    check(Mode::Protected, &[
        (|m| r(m, |r| r.rip |= HIGH), "RIP has bits 63:32 set outside of 64-bit mode", None),
        (|m| r(m, |r| r.rflags |= 1 << 17), "a segment is not as virtual-8086 mode has it", None),
        (|m| s(m, |s| s.tr.type_ = 2), "TR is no busy TSS of the mode's kind", None),
    ])?;
    check(Mode::Real, &[
        (|m| s(m, |s| { s.ss.dpl = 3; s.cs.dpl = 3 }), "SS.DPL is not 0 in real mode", None),
        (|m| r(m, |r| r.rflags |= 1 << 17), "a segment is not as virtual-8086 mode has it", None),
        (|m| s(m, |s| s.cs.type_ = 0), "CS is no accessed code segment", None),
    ])
}

#[rustfmt::skip]
fn rules_of_events() -> Outcome {
    check(Mode::Long, &[
        (|m| e(m, |e| { e.interrupt.injected = 1; e.interrupt.nr = 0x20 }), "an interrupt is injected while RFLAGS.IF is 0", None),
    ])
}
