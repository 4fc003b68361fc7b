// SPDX-License-Identifier: GPL-2.0

//! Arguments of ioctls: a sequence of requests with any bytes, decoded and checked by the module's
//! own code and applied to a model of a VM and a vCPU. What must hold is said where it is checked,
//! in `selftests/unit/src/ioctls`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rkvm_unit::ioctls;

fuzz_target!(|data: &[u8]| ioctls::run(data));
