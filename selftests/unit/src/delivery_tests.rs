// SPDX-License-Identifier: GPL-2.0

//! Virtual-interrupt delivery: a processor that follows the manual's operations, given what rkvm gives it,
//! does to the local APIC what the model does by itself.

use crate::arch::x86::{
    model::lapic::*,
    vmx::delivery::{Delivery, Page},
};
use proptest::prelude::*;

/// A processor (Intel SDM vol. 3C 31.1.3 to 31.2.2), with bits of its own.
struct Cpu {
    rvi: u8,
    svi: u8,
    vppr: u8,
    eoi_exits: [u64; 4],
}

/// In the page: the registers from 0x100 (in service) and 0x200 (requested).
fn bit(page: &Page, base: usize, v: u8) -> bool {
    page[base + usize::from(v / 32) * 16 + usize::from(v / 8 % 4)] & 1 << (v % 8) != 0
}

fn set(page: &mut Page, base: usize, v: u8, on: bool) {
    let byte = &mut page[base + usize::from(v / 32) * 16 + usize::from(v / 8 % 4)];
    *byte = *byte & !(1 << (v % 8)) | u8::from(on) << (v % 8);
}

fn highest(page: &Page, base: usize) -> u8 {
    (0..=255).rev().find(|&v| bit(page, base, v)).unwrap_or(0)
}

impl Cpu {
    fn entered(page: &mut Page, d: &Delivery) -> Self {
        let mut c = Cpu {
            rvi: d.status.to_le_bytes()[0],
            svi: d.status.to_le_bytes()[1],
            vppr: 0,
            eoi_exits: d.eoi_exits,
        };
        c.virtualize_ppr(page);
        c
    }
    fn virtualize_ppr(&mut self, page: &mut Page) {
        let vtpr = page[0x80];
        self.vppr = if vtpr >> 4 >= self.svi >> 4 {
            vtpr
        } else {
            self.svi & 0xf0
        };
        page[0xa0] = self.vppr;
    }
    fn deliver(&mut self, page: &mut Page) -> Option<u8> {
        if self.rvi >> 4 <= self.vppr >> 4 {
            return None;
        }
        let v = self.rvi;
        set(page, 0x100, v, true);
        self.svi = v;
        self.vppr = v & 0xf0;
        page[0xa0] = self.vppr;
        set(page, 0x200, v, false);
        self.rvi = highest(page, 0x200);
        Some(v)
    }
    fn eoi(&mut self, page: &mut Page) -> Option<u8> {
        let v = self.svi;
        set(page, 0x100, v, false);
        self.svi = highest(page, 0x100);
        self.virtualize_ppr(page);
        (self.eoi_exits[usize::from(v >> 6)] & 1 << (v & 63) != 0).then_some(v)
    }
    fn status(&self) -> u16 {
        u16::from_le_bytes([self.rvi, self.svi])
    }
}

#[derive(Clone, Debug)]
enum Op {
    Accept(u8, bool),
    Deliver,
    Eoi,
    Tpr(u8),
    Suppress(bool),
    Exit,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(v, level)| Op::Accept(v, level)),
        4 => Just(Op::Deliver),
        4 => Just(Op::Eoi),
        1 => prop_oneof![Just(0u8), any::<u8>()].prop_map(Op::Tpr),
        1 => any::<bool>().prop_map(Op::Suppress),
        2 => Just(Op::Exit),
    ]
}

/// In x2APIC mode, enabled.
fn lapic() -> Lapic {
    let features = Features {
        x2apic: true,
        tsc_deadline: true,
        cmci: false,
        directed_eoi: true,
        suppress_eoi: true,
        pmc_masks: true,
        phys_bits: 48,
    };
    let config = Config {
        id: 3,
        bsp: false,
        bus_cycle_ns: 1,
        lint0_extint: false,
    };
    let mut l = Lapic::new(config, features);
    assert!(!l.can_be_handed_over());
    let base = l.base() | apic_base::EXTD;
    let _ = l.set_base(base, true).unwrap();
    svr(&mut l, false);
    assert!(l.can_be_handed_over());
    l
}

fn svr(l: &mut Lapic, suppress: bool) {
    let now = || unreachable!("no timer");
    let _ = l
        .msr_write(0x80f, 0x1ff | u64::from(suppress) << 12, now)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut soft = lapic();
        let mut l = lapic();
        let mut page: Page = [0; 4096];
        let mut d = Delivery::default();
        let mut hand = l.hand();
        d.give(&mut page, &hand);
        let mut cpu = Cpu::entered(&mut page, &d);
        for op in ops {
            match op {
                Op::Deliver => prop_assert_eq!(cpu.deliver(&mut page), soft.ack()),
                Op::Eoi => prop_assert_eq!(cpu.eoi(&mut page), soft.eoi()),
                Op::Tpr(v) => {
                    page[0x80] = v;
                    cpu.virtualize_ppr(&mut page);
                    soft.set_tpr(v);
                }
                // What comes from outside, and writes of other registers, come after exits.
                Op::Accept(..) | Op::Suppress(_) | Op::Exit => {
                    match d.taken(&page, cpu.status()) {
                        Some((irr, isr)) => l.take_back(irr, isr, page[0x80]),
                        None => l.set_tpr(page[0x80]),
                    }
                    prop_assert_eq!(&l, &soft);
                    hand = l.hand();
                    match op {
                        Op::Accept(v, level) => {
                            prop_assert_eq!(l.accept(v, level), soft.accept(v, level));
                        }
                        Op::Suppress(on) => {
                            svr(&mut l, on);
                            svr(&mut soft, on);
                        }
                        _ => {}
                    }
                    if !l.is_in(&hand) {
                        hand = l.hand();
                        d.give(&mut page, &hand);
                    }
                    cpu = Cpu { eoi_exits: d.eoi_exits, ..Cpu::entered(&mut page, &d) };
                    prop_assert_eq!(cpu.vppr, soft.ppr());
                }
            }
        }
    }
}
