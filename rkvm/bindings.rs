// SPDX-License-Identifier: GPL-2.0

//! Generated bindings: the KVM ABI, and kernel functions that the kernel crate lacks.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ptr_cast_constness,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused
)]

use kernel::bindings::{eventfd_ctx, file, file_operations};
use kernel::ffi;

include!(concat!(env!("RKVM_OBJ"), "/rkvm/bindings_generated.rs"));
