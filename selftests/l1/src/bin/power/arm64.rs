// SPDX-License-Identifier: GPL-2.0

//! arm64's guests.

use rkvm_l1::kit::CODE;
use rkvm_l1::machine::PSCI;
use rkvm_l1::{done, guest, Machine};

/// vCPUs that count, each in a place of its own.
pub fn spinners(n: usize) -> Machine {
    let mut m = Machine::bare();
    for i in 0..n {
        m.add_cpu(i, PSCI);
    }
    m.add_gic();
    let code = guest![
        "1:",
        "ldr x0, [x27, x25, lsl #3]",
        "add x0, x0, #1",
        "str x0, [x27, x25, lsl #3]",
        "b 1b",
    ];
    m.code(CODE, code);
    m
}

/// A guest that ends.
pub fn done() {
    Machine::new(guest![done!()]).cpu().results();
}
