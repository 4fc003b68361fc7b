// SPDX-License-Identifier: GPL-2.0

//! x86's guests.

use crate::counter;
use iced_x86::code_asm::*;
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::{Irqchip, Machine, Mode};

/// vCPUs that count, each in a place of its own.
pub fn spinners(n: usize) -> Machine {
    let m = Machine::with(Mode::Long, Irqchip::Split, n);
    for i in 0..n {
        let at = CODE + 0x100 * i as u64;
        m.code(at, 64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(qword_ptr(counter(i)))?;
            a.jmp(again)
        })
        .expect("code");
        m.cpus[i].start(Mode::Long, at, i as u64);
    }
    m
}

/// A guest that ends.
pub fn done() {
    let mut m = Machine::new(Mode::Long, kit::done).expect("machine");
    m.cpu().results();
}
