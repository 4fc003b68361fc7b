// SPDX-License-Identifier: GPL-2.0

//! arm64: hypercalls by SMCCC, and user space's filter of them. Numbers from DEN 0028 and DEN 0098.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::onereg::Firmware;
use rkvm_unit::arch::arm64::model::psci::{Action, Version};
use rkvm_unit::arch::arm64::model::smccc::{
    decide, ptp_answer, Call, Context, Filter, FilterAction, FilterError, InvalidValue, Mitigation,
    Mitigations, Outcome, Services, MAX_RANGES,
};

const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID: u64 = -2_i64 as u64;

struct Vm {
    services: Services,
    filter: Filter,
    mitigations: Mitigations,
    stolen_time: Option<u64>,
}

impl Vm {
    fn new() -> Vm {
        Vm {
            services: Services::default(),
            filter: Filter::default(),
            mitigations: Mitigations::default(),
            stolen_time: None,
        }
    }

    fn call(&self, x0: u64, x1: u64) -> Outcome {
        let c = Context {
            version: Version::V1_1,
            services: &self.services,
            filter: &self.filter,
            mitigations: self.mitigations,
            system_suspend: false,
            stolen_time: self.stolen_time,
        };
        decide(&Call::new([x0, x1, 0, 0]), &c)
    }
}

fn ret(x0: u64) -> Outcome {
    Outcome::Return([x0, 0, 0, 0])
}

#[test]
fn architecture() {
    let mut vm = Vm::new();
    assert_eq!(vm.call(0x8000_0000, 0), ret(0x1_0001));
    // The upper half of X0 does not count, nor of an argument of 32 bits.
    assert_eq!(vm.call(0xffff_ffff_8000_0000, 0), ret(0x1_0001));
    for f in [
        0x8000_0002,
        0x8000_8000,
        0x8000_7fff,
        0x8000_3fff,
        0x1234,
        0x8400_0050,
    ] {
        assert_eq!(vm.call(0x8000_0001, f), ret(NOT_SUPPORTED), "{f:#x}");
        assert_eq!(vm.call(0x8000_8000, 0), ret(NOT_SUPPORTED));
    }
    use Mitigation::{Mitigated, Unaffected, Vulnerable};
    for (m, ssbs, one_three, two) in [
        (Vulnerable, false, NOT_SUPPORTED, NOT_SUPPORTED),
        (Mitigated, false, 0, -2_i64 as u64),
        (Mitigated, true, 0, NOT_SUPPORTED),
        (Unaffected, true, 1, -2_i64 as u64),
    ] {
        vm.mitigations = Mitigations {
            branch_predictor: m,
            store_bypass: Vulnerable,
            branch_history: Vulnerable,
            ssbs,
        };
        assert_eq!(vm.call(0x8000_0001, 1 << 32 | 0x8000_8000), ret(one_three));
        assert_eq!(vm.call(0x8000_0001, 0x8000_3fff), ret(NOT_SUPPORTED));
        let works = if one_three == NOT_SUPPORTED {
            NOT_SUPPORTED
        } else {
            0
        };
        assert_eq!(vm.call(0x8000_8000, 0), ret(works));
        vm.mitigations.branch_history = m;
        vm.mitigations.store_bypass = m;
        vm.mitigations.branch_predictor = Vulnerable;
        assert_eq!(vm.call(0x8000_0001, 0x8000_3fff), ret(one_three));
        assert_eq!(vm.call(0x8000_0001, 0x8000_7fff), ret(two));
        assert_eq!(vm.call(0x8000_0001, 0x8000_8000), ret(NOT_SUPPORTED));
        let works = if two == NOT_SUPPORTED {
            NOT_SUPPORTED
        } else {
            0
        };
        assert_eq!(vm.call(0x8000_7fff, 0), ret(works));
    }
}

#[test]
fn random_numbers() {
    let mut vm = Vm::new();
    assert_eq!(vm.call(0x8400_0050, 0), ret(0x1_0000));
    for f in [
        0x8400_0050_u64,
        0x8400_0051,
        0x8400_0052,
        0x8400_0053,
        0xc400_0053,
    ] {
        assert_eq!(vm.call(0x8400_0051, f), ret(0));
    }
    assert_eq!(vm.call(0x8400_0051, 0xc400_0050), ret(NOT_SUPPORTED));
    assert_eq!(
        vm.call(0x8400_0052, 0),
        Outcome::Return([0x00e0_210d, 0xeb11_8443, 0x4452_7080, 0x4c5a_4e55])
    );
    assert_eq!(vm.call(0x8400_0053, 97), ret(INVALID));
    assert_eq!(vm.call(0xc400_0053, 193), ret(INVALID));
    let bits = |fid, n| match vm.call(fid, n) {
        Outcome::Random(r) => r.answer([u64::MAX; 3]),
        other => panic!("{other:?}"),
    };
    let (m, h) = (u64::MAX, 0xffff_ffff);
    assert_eq!(bits(0x8400_0053, 0), [0, 0, 0, 0]);
    assert_eq!(bits(0x8400_0053, 1), [0, 0, 0, 1]);
    assert_eq!(bits(0x8400_0053, 32), [0, 0, 0, h]);
    assert_eq!(bits(0x8400_0053, 33), [0, 0, 1, h]);
    assert_eq!(bits(0x8400_0053, 95), [0, h >> 1, h, h]);
    assert_eq!(bits(0x8400_0053, 1 << 32 | 96), [0, h, h, h]);
    assert_eq!(bits(0xc400_0053, 63), [0, 0, 0, m >> 1]);
    assert_eq!(bits(0xc400_0053, 64), [0, 0, 0, m]);
    assert_eq!(bits(0xc400_0053, 129), [0, 1, m, m]);
    assert_eq!(bits(0xc400_0053, 192), [0, m, m, m]);
    vm.services
        .set(Firmware::Standard, 0)
        .expect("a service less");
    for f in [
        0x8400_0050,
        0x8400_0051,
        0x8400_0052,
        0x8400_0053,
        0xc400_0053,
    ] {
        assert_eq!(vm.call(f, 0), ret(NOT_SUPPORTED));
    }
}

#[test]
fn stolen_time() {
    let mut vm = Vm::new();
    assert_eq!(vm.call(0x8000_0001, 0xc500_0020), ret(0));
    assert_eq!(vm.call(0xc500_0020, 0xc500_0021), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0xc500_0021, 0), ret(NOT_SUPPORTED));
    vm.stolen_time = Some(0x4000_1000);
    assert_eq!(vm.call(0xc500_0020, 0xc500_0021), ret(0));
    assert_eq!(vm.call(0xc500_0020, 0xc500_0020), ret(0));
    assert_eq!(vm.call(0xc500_0020, 0xc500_0022), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0xc500_0021, 0), Outcome::StolenTime(0x4000_1000));
    vm.services
        .set(Firmware::StandardHyp, 0)
        .expect("a service less");
    assert_eq!(vm.call(0x8000_0001, 0xc500_0020), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0xc500_0020, 0xc500_0021), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0xc500_0021, 0), ret(NOT_SUPPORTED));
}

#[test]
fn vendor() {
    let mut vm = Vm::new();
    // As linux/arm-smccc.h: 0xb66fb428, 0xe911c52e, 0x564bcaa9, 0x743a004d.
    assert_eq!(
        vm.call(0x8600_ff01, 0),
        Outcome::Return([0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d])
    );
    assert_eq!(vm.call(0x8600_0000, 0), Outcome::Return([3, 0, 0, 0]));
    assert_eq!(vm.call(0x8600_0001, 0), Outcome::Ptp { physical: false });
    assert_eq!(vm.call(0x8600_0001, 1), Outcome::Ptp { physical: true });
    assert_eq!(vm.call(0x8600_0001, 2), ret(NOT_SUPPORTED));
    vm.services
        .set(Firmware::VendorHyp, 1)
        .expect("a service less");
    vm.services
        .set(Firmware::VendorHyp2, 3)
        .expect("user space's own");
    assert_eq!(vm.call(0x8600_0000, 0), Outcome::Return([1, 0, 3, 0]));
    assert_eq!(vm.call(0x8600_0001, 0), ret(NOT_SUPPORTED));
    vm.services
        .set(Firmware::VendorHyp, 2)
        .expect("a service less");
    assert_eq!(vm.call(0x8600_ff01, 0), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0x8600_0000, 0), ret(NOT_SUPPORTED));
    // Served by user space, by its filter, or not at all.
    assert_eq!(vm.call(0xc600_0040, 0), ret(NOT_SUPPORTED));
    let t = Some((0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00));
    assert_eq!(
        ptp_answer(t),
        [0x1122_3344, 0x5566_7788, 0x99aa_bbcc, 0xddee_ff00]
    );
    assert_eq!(ptp_answer(None), [NOT_SUPPORTED, 0, 0, 0]);
}

#[test]
fn psci_by_hypercall() {
    let vm = Vm::new();
    assert_eq!(vm.call(0x8400_0002, 0), Outcome::Psci(Action::CpuOff));
    assert_eq!(
        vm.call(0x8400_0000, 0),
        Outcome::Psci(Action::Return(0x1_0001))
    );
    assert_eq!(
        vm.call(0x95c1_ba5f, 0),
        Outcome::Psci(Action::Return(NOT_SUPPORTED))
    );
    assert_eq!(vm.call(0x8400_0020, 0), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0, 0), ret(NOT_SUPPORTED));
}

#[test]
fn bitmaps() {
    let mut s = Services::default();
    for (r, initial, all) in [
        (Firmware::Standard, 1, 1),
        (Firmware::StandardHyp, 1, 1),
        (Firmware::VendorHyp, 3, 3),
        (Firmware::VendorHyp2, 0, 3),
    ] {
        assert_eq!(s.get(r), Some(initial));
        assert_eq!(s.set(r, all + 1), Err(InvalidValue));
        assert_eq!(s.set(r, 1 << 63), Err(InvalidValue));
        for v in 0..=all {
            assert_eq!(s.set(r, v), Ok(()));
            assert_eq!(s.get(r), Some(v));
        }
    }
    assert_eq!(
        (
            s.get(Firmware::PsciVersion),
            s.set(Firmware::Workaround1, 0)
        ),
        (None, Err(InvalidValue))
    );
}

#[test]
fn workaround_registers() {
    use Firmware::{PsciVersion, Workaround1, Workaround2, Workaround3};
    use Mitigation::{Mitigated, Unaffected, Vulnerable};
    let of = |m, ssbs| Mitigations {
        branch_predictor: m,
        store_bypass: m,
        branch_history: m,
        ssbs,
    };
    let accepted =
        |m: Mitigations, r| -> Vec<u64> { (0..64).filter(|&v| m.check(r, v).is_ok()).collect() };
    for (m, level) in [(Vulnerable, 0), (Mitigated, 1), (Unaffected, 2)] {
        for r in [Workaround1, Workaround3] {
            assert_eq!(of(m, false).level(r), Some(level));
            assert_eq!(accepted(of(m, false), r), (0..=level).collect::<Vec<_>>());
        }
    }
    for (m, ssbs, level) in [
        (Vulnerable, false, 0),
        (Mitigated, true, 0),
        (Mitigated, false, 3),
        (Unaffected, true, 3),
    ] {
        assert_eq!(of(m, ssbs).level(Workaround2), Some(level));
        let want: &[u64] = if level == 0 {
            &[0, 1]
        } else {
            &[0, 1, 2, 3, 0x12]
        };
        assert_eq!(accepted(of(m, ssbs), Workaround2), want);
    }
    assert_eq!(of(Unaffected, false).level(PsciVersion), None);
    assert!(of(Unaffected, false).check(PsciVersion, 0).is_err());
}

#[test]
fn filters() {
    let mut vm = Vm::new();
    let f = &mut vm.filter;
    use FilterError::{Exists, Full, Invalid};
    assert_eq!(f.insert(0xc400_0003, 0, 1), Err(Invalid));
    assert_eq!(f.insert(0, 0, 1), Err(Invalid));
    assert_eq!(f.insert(u32::MAX, u32::MAX, 1), Err(Invalid));
    assert_eq!(f.insert(0xc400_0003, 1, 3), Err(Invalid));
    assert_eq!(f.insert(0xc400_0003, 1, 0xff), Err(Invalid));
    for (base, count) in [
        (0x8000_8000, 1),
        (0x8000_0000, 1),
        (0x8000_ffff, 1),
        (0xc000_0000, 1),
        (0xc000_ffff, 2),
        (0x7fff_ffff, 2),
        (0, u32::MAX),
    ] {
        assert_eq!(f.insert(base, count, 1), Err(Exists), "{base:#x}");
    }
    assert_eq!(f.insert(0x8001_0000, 1, 1), Ok(()));
    assert_eq!(f.insert(0x8400_0008, 2, 2), Ok(()));
    assert_eq!(f.insert(0xffff_ffff, 1, 2), Ok(()));
    assert_eq!(f.insert(0x8400_0007, 1, 1), Ok(()));
    assert_eq!(f.insert(0xc600_0040, 2, 2), Ok(()));
    for (base, count) in [
        (0x8400_0008, 1),
        (0x8400_0000, 8),
        (0x8400_0009, 9),
        (0x8400_0000, 64),
    ] {
        assert_eq!(f.insert(base, count, 0), Err(Exists));
    }
    assert_eq!(f.insert(0x8400_0006, 1, 0), Ok(()));
    assert_eq!(f.action(0x8400_0005), FilterAction::Handle);
    assert_eq!(f.action(0x8400_0006), FilterAction::Handle);
    assert_eq!(f.action(0x8400_0007), FilterAction::Deny);
    assert_eq!(f.action(0x8400_000a), FilterAction::Handle);
    assert_eq!(vm.call(0x8400_0008, 0), Outcome::Forward);
    assert_eq!(vm.call(0x8400_0009, 0), Outcome::Forward);
    assert_eq!(vm.call(0xffff_ffff, 0), Outcome::Forward);
    assert_eq!(vm.call(0xc600_0041, 0), Outcome::Forward);
    assert_eq!(vm.call(0x8400_0007, 0), ret(NOT_SUPPORTED));
    assert_eq!(vm.call(0x8400_0002, 0), Outcome::Psci(Action::CpuOff));
    let mut f = Filter::default();
    for n in 0..MAX_RANGES as u32 {
        assert_eq!(f.insert(2 * (99 - n), 1, 1), Ok(()));
    }
    assert_eq!(f.insert(1, 1, 1), Err(Full));
    assert_eq!(f.insert(2 * 99, 1, 1), Err(Exists));
}

proptest! {
    #[test]
    fn filter_against_a_map(ops in proptest::collection::vec((0_u32..40, 1_u32..6, 0_u8..3), 0..40)) {
        let mut f = Filter::default();
        let mut map = [None; 64];
        for (base, count, action) in ops {
            let range = base as usize..(base + count) as usize;
            let free = map[range.clone()].iter().all(Option::is_none);
            let got = f.insert(0x8400_0000 + base, count, action);
            prop_assert_eq!(got, if free { Ok(()) } else { Err(FilterError::Exists) });
            if free {
                map[range].fill(Some(action));
            }
        }
        for (n, a) in map.into_iter().enumerate() {
            prop_assert_eq!(f.action(0x8400_0000 + n as u32) as u8, a.unwrap_or(0));
        }
    }

    #[test]
    fn no_call_is_unspeakable(x0: u64, x1: u64) {
        let mut vm = Vm::new();
        vm.stolen_time = Some(x1);
        let _ = vm.call(x0, x1);
        let _ = vm.call(x0 & 0x4f00_00ff | 0x8000_0000, x1);
    }
}
