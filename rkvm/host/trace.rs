// SPDX-License-Identifier: GPL-2.0

//! Why something was refused, for people: trace events `rkvm:rkvm_refused` and
//! `rkvm:rkvm_guest_error`.

use crate::bindings as rb;
use kernel::{
    error::{self, Error},
    str::{CStr, CStrExt as _},
};

/// Records why a request is refused, and gives its errno back.
#[cold]
pub(crate) fn refuse(error: Error, why: &'static CStr) -> Error {
    // SAFETY: The string is static and terminated; the tracepoint copies it.
    unsafe { rb::rkvm_trace_refused(error.to_errno(), why.as_char_ptr()) };
    error
}

/// The same for an argument that makes no sense: `EINVAL`.
#[cold]
pub(crate) fn invalid(why: &'static CStr) -> Error {
    refuse(error::code::EINVAL, why)
}

/// The reason of an error that can come from anywhere in a request, so that those who meet it need not
/// give one.
#[cold]
pub(crate) fn explain(error: Error) -> Error {
    use error::code::{EFAULT, EMFILE, ENFILE, ENOMEM};
    match error {
        EFAULT => refuse(error, c"user memory cannot be read or written"),
        ENOMEM => refuse(error, c"no memory, or the memory cgroup is at its limit"),
        EMFILE | ENFILE => refuse(error, c"no more descriptors"),
        error => error,
    }
}

/// A message may go to the kernel's log: a guest or user space that causes many gets few through.
pub(crate) fn may_log() -> bool {
    // SAFETY: No requirement.
    unsafe { rb::rkvm_may_log() }
}

/// Records what went wrong with a guest, with two numbers that the text explains.
#[cold]
pub(crate) fn guest_error(why: &'static CStr, a: u64, b: u64) {
    // SAFETY: As above.
    unsafe { rb::rkvm_trace_guest_error(why.as_char_ptr(), a, b) };
}
