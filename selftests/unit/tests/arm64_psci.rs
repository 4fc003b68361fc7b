// SPDX-License-Identifier: GPL-2.0

//! arm64: PSCI. Numbers from DEN 0022.

use rkvm_unit::arch::arm64::model::psci::{
    affinity_answer, call, cpu_on_answer, Action, Target, Version,
};
use Version::{V0_1, V0_2, V1_0, V1_1, V1_2, V1_3};

const ALL: [Version; 6] = [V0_1, V0_2, V1_0, V1_1, V1_2, V1_3];
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID: u64 = -2_i64 as u64;
const RET_NOT_SUPPORTED: Action = Action::Return(NOT_SUPPORTED);

fn psci(v: Version, fid: u32, args: [u64; 3]) -> Action {
    call(v, fid, args, true)
}

#[test]
fn versions() {
    for (v, value) in [
        (V0_1, 1),
        (V0_2, 2),
        (V1_0, 0x1_0000),
        (V1_1, 0x1_0001),
        (V1_2, 0x1_0002),
        (V1_3, 0x1_0003),
    ] {
        assert_eq!(v.value(), value);
        assert_eq!(Version::choose(value, v != V0_1), Some(v));
        assert_eq!(Version::choose(value, v == V0_1), None);
        let want = if v == V0_1 { NOT_SUPPORTED } else { value };
        assert_eq!(psci(v, 0x8400_0000, [0; 3]), Action::Return(want));
    }
    assert_eq!(Version::choose(0x1_0004, true), None);
    assert_eq!(Version::choose(1 << 32 | 2, true), None);
    assert_eq!(
        (Version::initial(true), Version::initial(false)),
        (V1_3, V0_1)
    );
}

/// Each function by number, the version that brings it, and whether there is a 64-bit one.
#[test]
fn functions() {
    let known: [(u32, Version, bool); 12] = [
        (0, V0_2, false),
        (1, V0_2, true),
        (2, V0_2, false),
        (3, V0_2, true),
        (4, V0_2, true),
        (6, V0_2, false),
        (8, V0_2, false),
        (9, V0_2, false),
        (10, V1_0, false),
        (14, V1_0, true),
        (18, V1_1, true),
        (21, V1_3, true),
    ];
    for v in ALL {
        for n in 0..0x20 {
            for wide in [false, true] {
                let fid = 0x8400_0000 | u32::from(wide) << 30 | n;
                let is = v > V0_1
                    && known
                        .iter()
                        .any(|&(k, since, w)| k == n && v >= since && (w || !wide));
                // An id, for PSCI_FEATURES; for others some number.
                assert_eq!(
                    psci(v, fid, [0x8000_0000, 0, 0]) != RET_NOT_SUPPORTED,
                    is,
                    "{v:?} {fid:#x}"
                );
                // PSCI_FEATURES agrees, from 1.0 on.
                let feature = psci(v, 0x8400_000a, [u64::from(fid) | 1 << 40, 0, 0]);
                let want = match (v >= V1_0 && is, n) {
                    (false, _) => NOT_SUPPORTED,
                    (true, 21) => 1,
                    _ => 0,
                };
                assert_eq!(feature, Action::Return(want), "{v:?} {fid:#x}");
            }
        }
        let smccc = psci(v, 0x8400_000a, [0x8000_0000, 0, 0]);
        assert_eq!(smccc == Action::Return(0), v >= V1_0);
    }
    // Nothing is at other ids.
    for fid in [
        0,
        0x8400_0020,
        0x0400_0002,
        0x8400_0102,
        0x8500_0002,
        0x95c1_ba5f,
        0xffff_ffff,
    ] {
        assert_eq!(psci(V1_3, fid, [0; 3]), RET_NOT_SUPPORTED, "{fid:#x}");
    }
}

#[test]
fn version_0_1() {
    let on = Action::CpuOn {
        mpidr: 1,
        entry: 1 << 40,
        context: 3,
    };
    assert_eq!(psci(V0_1, 0x95c1_ba60, [1, 1 << 40, 3]), on);
    assert_eq!(psci(V0_1, 0x95c1_ba5f, [0; 3]), Action::CpuOff);
    assert_eq!(psci(V0_1, 0x95c1_ba5e, [0; 3]), RET_NOT_SUPPORTED);
    assert_eq!(psci(V0_1, 0x95c1_ba61, [0; 3]), RET_NOT_SUPPORTED);
    assert_eq!(cpu_on_answer(V0_1, Target::On), INVALID);
}

#[test]
fn processors() {
    let args = [1 << 32 | 0x1_0203, 0xffff_8000_0000_1000, 1 << 63];
    let on = |mpidr, entry, context| Action::CpuOn {
        mpidr,
        entry,
        context,
    };
    assert_eq!(psci(V1_3, 0xc400_0003, args), on(args[0], args[1], args[2]));
    // Upper halves of 32-bit calls do not count.
    assert_eq!(psci(V1_3, 0x8400_0003, args), on(0x1_0203, 0x1000, 0));
    // MPIDR's other bits (RES1, U, MT, Aff3's neighbours) are none of an affinity's.
    for bad in [1 << 31, 1 << 24, 1 << 40, 1 << 63] {
        assert_eq!(
            psci(V1_3, 0xc400_0003, [bad, 0, 0]),
            Action::Return(INVALID)
        );
        assert_eq!(
            psci(V1_3, 0xc400_0004, [bad, 0, 0]),
            Action::Return(INVALID)
        );
    }
    assert_eq!(cpu_on_answer(V1_3, Target::Started), 0);
    assert_eq!(cpu_on_answer(V1_3, Target::On), -4_i64 as u64);
    assert_eq!(cpu_on_answer(V0_2, Target::Missing), INVALID);
    let info = |level, affinity, mask| {
        assert_eq!(
            psci(V0_2, 0xc400_0004, [0x12_0034_5678, level, 0]),
            Action::AffinityInfo { affinity, mask }
        );
    };
    info(0, 0x12_0034_5678, 0xff_00ff_ffff);
    info(1, 0x12_0034_5600, 0xff_00ff_ff00);
    info(2, 0x12_0034_0000, 0xff_00ff_0000);
    info(3, 0x12_0000_0000, 0xff_0000_0000);
    assert_eq!(psci(V0_2, 0xc400_0004, [0, 4, 0]), Action::Return(INVALID));
    assert_eq!(
        psci(V0_2, 0xc400_0004, [0, 1 << 32, 0]),
        Action::Return(INVALID)
    );
    assert!(psci(V0_2, 0x8400_0004, [0, 1 << 32, 0]) != Action::Return(INVALID));
    assert_eq!(affinity_answer(0, 0), INVALID);
    assert_eq!((affinity_answer(2, 1), affinity_answer(2, 0)), (0, 1));
    assert_eq!(psci(V1_0, 0x8400_0001, [0; 3]), Action::Suspend);
    assert_eq!(psci(V1_0, 0x8400_0002, [0; 3]), Action::CpuOff);
    assert_eq!(psci(V1_0, 0x8400_0006, [0; 3]), Action::Return(2));
}

#[test]
fn system() {
    assert_eq!(
        psci(V0_2, 0x8400_0008, [0; 3]),
        Action::SystemOff { flags: 0 }
    );
    assert_eq!(
        psci(V0_2, 0x8400_0009, [0; 3]),
        Action::SystemReset { flags: 0 }
    );
    for fid in [0x8400_0012, 0xc400_0012] {
        for t in [0, 0x8000_0000, 0xffff_ffff] {
            assert_eq!(psci(V1_1, fid, [t, 9, 0]), Action::SystemReset { flags: 1 });
        }
        assert_eq!(psci(V1_1, fid, [1, 0, 0]), Action::Return(INVALID));
        assert_eq!(
            psci(V1_1, fid, [0x7fff_ffff, 0, 0]),
            Action::Return(INVALID)
        );
    }
    for fid in [0x8400_0015, 0xc400_0015] {
        assert_eq!(psci(V1_3, fid, [0, 0, 0]), Action::SystemOff { flags: 1 });
        assert_eq!(psci(V1_3, fid, [1, 0, 0]), Action::SystemOff { flags: 1 });
        assert_eq!(psci(V1_3, fid, [2, 0, 0]), Action::Return(INVALID));
        assert_eq!(psci(V1_3, fid, [1, 1, 0]), Action::Return(INVALID));
    }
    assert_eq!(
        psci(V1_3, 0xc400_0015, [1, 1 << 32, 0]),
        Action::Return(INVALID)
    );
    assert_eq!(
        psci(V1_3, 0x8400_0015, [1, 1 << 32, 0]),
        Action::SystemOff { flags: 1 }
    );
    let args = [1 << 33 | 5, 6, 7];
    assert_eq!(
        psci(V1_0, 0xc400_000e, args),
        Action::SystemSuspend { args }
    );
    assert_eq!(
        psci(V1_0, 0x8400_000e, args),
        Action::SystemSuspend { args: [5, 6, 7] }
    );
    // Unless user space wants it, it is not there.
    for fid in [0x8400_000e, 0xc400_000e] {
        assert_eq!(call(V1_3, fid, args, false), RET_NOT_SUPPORTED);
        assert_eq!(
            call(V1_3, 0x8400_000a, [fid.into(), 0, 0], false),
            RET_NOT_SUPPORTED
        );
    }
}
