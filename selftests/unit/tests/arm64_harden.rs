// SPDX-License-Identifier: GPL-2.0

//! What a CPU needs against guests that train its predictors.

use rkvm_unit::arch::arm64::model::harden::{Cpu, Exit, Firmware, Found, Worst, LOOPS};
use rkvm_unit::arch::arm64::model::midr::{Core, Midr, Range};
use rkvm_unit::arch::arm64::model::smccc::Mitigation::{self, Mitigated, Unaffected, Vulnerable};

const A57: u32 = 0x411f_d070;
const A55: u32 = 0x412f_d050;
const A510: u32 = 0x410f_d460;
const A64FX: u32 = 0x461f_0010;
const N1: u32 = 0x414f_d0c1;
const CSV2: u64 = 1 << 56;
const SSBS: u64 = 2 << 4;
const NONE: [Firmware; 3] = [Firmware::None; 3];
const HELPS: [Firmware; 3] = [Firmware::Helps; 3];

fn cpu(midr: u32) -> Cpu {
    Cpu {
        midr: Midr(midr),
        pfr0: CSV2,
        pfr1: SSBS,
        mmfr1: 0,
        isar2: 0,
        firmware: NONE,
        off: false,
    }
}

fn all(f: Found) -> (Exit, [Mitigation; 3]) {
    (
        f.exit,
        [f.branch_predictor, f.store_bypass, f.branch_history],
    )
}

#[test]
fn a_core_that_needs_nothing_does_nothing() {
    let new = Cpu {
        pfr0: 3 << 56,
        firmware: HELPS,
        ..cpu(N1)
    };
    assert_eq!(
        all(new.look()),
        (Exit::Plain, [Unaffected, Mitigated, Unaffected])
    );
    let in_order = Cpu {
        pfr0: 0,
        pfr1: 0,
        ..cpu(A55)
    };
    assert_eq!(all(in_order.look()), (Exit::Plain, [Unaffected; 3]));
    assert_eq!(
        all(cpu(A510).look()),
        (Exit::Plain, [Unaffected, Mitigated, Unaffected])
    );
}

#[test]
fn branch_history_by_the_cheapest_way() {
    let n1 = cpu(N1);
    assert_eq!(
        all(n1.look()),
        (Exit::Loop(24), [Unaffected, Mitigated, Mitigated])
    );
    // CLRBHB, ECBHB
    let clear = Cpu {
        isar2: 1 << 28,
        firmware: HELPS,
        ..n1
    };
    assert_eq!(clear.look().exit, Exit::ClearHistory);
    assert_eq!(
        Cpu {
            mmfr1: 1 << 60,
            ..clear
        }
        .look()
        .exit,
        Exit::Plain
    );
    assert_eq!(
        Cpu {
            mmfr1: 1 << 60,
            ..clear
        }
        .look()
        .branch_history,
        Mitigated
    );
    // Nobody knows how long its history is.
    let other = Cpu {
        firmware: HELPS,
        ..cpu(A64FX)
    };
    assert_eq!(other.look().exit, Exit::Workaround3);
    assert_eq!(
        all(cpu(A64FX).look()),
        (Exit::Plain, [Unaffected, Mitigated, Vulnerable])
    );
}

#[test]
fn branch_targets_by_the_firmware() {
    let old = Cpu {
        pfr0: 0,
        pfr1: 0,
        ..cpu(A57)
    };
    assert_eq!(all(old.look()), (Exit::Plain, [Vulnerable; 3]));
    let helped = Cpu {
        firmware: [Firmware::Helps, Firmware::None, Firmware::None],
        ..old
    };
    // That clears the history as well.
    assert_eq!(
        all(helped.look()),
        (Exit::Workaround1, [Mitigated, Vulnerable, Mitigated])
    );
    let unknown = Cpu {
        midr: Midr(A64FX),
        firmware: HELPS,
        ..old
    };
    assert_eq!(all(unknown.look()), (Exit::Workaround3, [Mitigated; 3]));
    let needless = Cpu {
        firmware: [Firmware::Needless; 3],
        ..old
    };
    assert_eq!(
        all(needless.look()),
        (Exit::Loop(8), [Unaffected, Unaffected, Mitigated])
    );
}

#[test]
fn turned_off() {
    for midr in [A57, N1, A64FX] {
        for pfr0 in [0, CSV2] {
            let off = Cpu {
                pfr0,
                firmware: HELPS,
                off: true,
                ..cpu(midr)
            };
            let f = off.look();
            assert_eq!(f.exit, Exit::Plain);
            assert_eq!((f.store_bypass, f.branch_history), (Vulnerable, Vulnerable));
        }
    }
}

#[test]
fn firmware_answers() {
    for (x0, f) in [
        (0, Firmware::Helps),
        (1, Firmware::Needless),
        (-2, Firmware::Needless),
        (-1, Firmware::None),
        (7, Firmware::None),
    ] {
        assert_eq!(Firmware::from_x0(x0), f);
    }
}

#[test]
fn vectors_are_those_of_the_entry_code() {
    let entry = include_str!("../../../arch/arm64/entry.S");
    let loops: Vec<String> = LOOPS.iter().map(u8::to_string).collect();
    assert!(entry.contains(&format!(".irp\tcount, {}\n", loops.join(", "))));
    let names = [
        "plain",
        "clear",
        "smc ARM_SMCCC_ARCH_WORKAROUND_1",
        "smc ARM_SMCCC_ARCH_WORKAROUND_3",
    ];
    let lines = names.map(|n| format!("\tvectors\tharden_{n}\n")).concat();
    assert!(entry.contains(&lines));
    let header = include_str!("../../../include/helpers_arm64_run.h");
    assert!(header.contains(&format!("RKVM_ARM64_VECTORS {}\n", 4 + LOOPS.len())));
    for n in 0..10 {
        assert_eq!(Exit::of_vectors(n).map(Exit::vectors), Some(n));
    }
    assert_eq!(Exit::of_vectors(10), None);
    assert_eq!(Exit::of_vectors(u32::MAX), None);
    // Never too few.
    assert_eq!(
        Exit::of_vectors(Exit::Loop(25).vectors()),
        Some(Exit::Loop(32))
    );
}

#[test]
fn guests_are_told_the_worst() {
    let found = |midr, pfr0| Cpu { pfr0, ..cpu(midr) }.look();
    let mut w = Worst::BEST;
    assert_eq!(w.all(), [Unaffected; 3]);
    for (f, told) in [
        (found(A55, 0), [Unaffected; 3]),
        (found(N1, CSV2), [Unaffected, Mitigated, Mitigated]),
        (found(A57, 0), [Vulnerable, Mitigated, Vulnerable]),
        (found(A55, 0), [Vulnerable, Mitigated, Vulnerable]),
    ] {
        w = Worst::from_bits(w.and(&f).bits());
        assert_eq!(w.all(), told);
    }
}

#[test]
fn revisions() {
    let m = Midr(N1);
    assert_eq!((m.core(), m.revision()), (Core::NEOVERSE_N1, 0x41));
    assert!(m.is(&[Core::CORTEX_A76, Core::NEOVERSE_N1]) && !m.is(&[Core::CORTEX_A76]));
    for (first, last, has) in [
        (0x41, 0x41, true),
        (0, 0x40, false),
        (0x42, 0xff, false),
        (0x3f, 0x50, true),
    ] {
        assert_eq!(Range::between(Core::NEOVERSE_N1, first, last).has(m), has);
    }
    assert!(Range::all(Core::NEOVERSE_N1).has(m) && !Range::all(Core::NEOVERSE_N2).has(m));
}
