// SPDX-License-Identifier: GPL-2.0

//! Ioctls without a kernel: requests with any arguments go through the module's own decoding and
//! checks, and what they accept is applied to a model of a VM and a vCPU. [`run`] asserts after
//! each of them what must always hold. Driven by the fuzz target `ioctl`, and by a test here.

mod input;
mod vcpu;
mod vm;

use crate::{
    abi::ioctl::{self, Ioctl, On},
    arch::x86::abi,
};
use input::Input;

/// Every row of both tables.
fn rows() -> impl Iterator<Item = &'static Ioctl> {
    ioctl::TABLE.iter().chain(abi::TABLE)
}

/// A request code that may or may not be in the tables.
fn any_code(code: u32) {
    for on in [On::System, On::Vm, On::Vcpu] {
        let known = ioctl::known(ioctl::TABLE, code, on) || ioctl::known(abi::TABLE, code, on);
        assert_eq!(
            known,
            rows().any(|r| r.code == code && r.on.contains(&on)),
            "{code:#x}"
        );
        if known {
            assert_eq!(code >> 8 & 0xff, ioctl::KVMIO);
            // A direction goes with a size, and none with none.
            assert_eq!(code >> 30 == 0, code >> 16 & 0x3fff == 0, "{code:#x}");
        }
    }
}

/// Takes a sequence of requests from `data` and applies it.
///
/// # Panics
/// If something does not hold.
pub fn run(data: &[u8]) {
    let mut i = Input::new(data);
    let mut vm = vm::Vm::new(&mut i);
    let mut vcpu = vcpu::Vcpu::new(&mut i);
    let all: Vec<&Ioctl> = rows().collect();
    let mut left = 64;
    while !i.is_empty() && left > 0 {
        left -= 1;
        let at = usize::from(i.u8());
        let Some(row) = all.get(at) else {
            // What is nearly a request: another number, direction or size.
            let near = all[i.below(all.len())].code;
            any_code(near ^ i.u32() ^ i.u32());
            continue;
        };
        any_code(row.code);
        if row.on.contains(&On::Vcpu) {
            vcpu.ioctl(row.code, &vm, &mut i);
            vcpu.check();
        }
        if row.on.contains(&On::Vm) {
            vm.ioctl(row.code, &mut i);
        }
    }
    vm.check_routes();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn no_request_has_two_rows() {
        let mut seen = HashSet::new();
        for row in rows() {
            any_code(row.code);
            for on in row.on {
                assert!(
                    seen.insert((row.code, format!("{on:?}"))),
                    "{:#x}",
                    row.code
                );
            }
        }
    }

    /// The codes are those of the uapi, whoever made the structures (linux/kvm.h).
    #[test]
    fn codes_are_the_uapi_s() {
        for (ours, uapi) in [
            (ioctl::GET_API_VERSION, 0x0000_ae00),
            (ioctl::SET_USER_MEMORY_REGION, 0x4020_ae46),
            (ioctl::GET_DIRTY_LOG, 0x4010_ae42),
            (ioctl::CLEAR_DIRTY_LOG, 0xc018_aec0),
            (ioctl::IRQ_LINE_STATUS, 0xc008_ae67),
            (ioctl::IOEVENTFD, 0x4040_ae79),
            (abi::GET_SREGS, 0x8138_ae83),
            (abi::SET_SREGS2, 0x4140_aecd),
            (abi::SET_CPUID2, 0x4008_ae90),
            (abi::GET_XSAVE, 0x9000_aea4),
            (abi::SET_VCPU_EVENTS, 0x4040_aea0),
            (abi::SET_XCRS, 0x4188_aea7),
            (abi::X86_SET_MSR_FILTER, 0x4188_aec6),
        ] {
            assert_eq!(ours, uapi, "{ours:#x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn any_requests(data in prop::collection::vec(any::<u8>(), 0..512)) {
            run(&data);
        }
    }
}
