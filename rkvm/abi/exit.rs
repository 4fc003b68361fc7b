// SPDX-License-Identifier: GPL-2.0

//! Reasons to return to user space that every family has, and the one place that writes them.

use crate::{
    bindings as rb,
    host::{run_page::SharedPage, uapi::plain_bytes},
};
use core::{ffi::CStr, mem::offset_of};

/// Something that can be written to the run page as an exit.
pub(crate) trait WriteRun {
    /// Writes `exit_reason` and the fields that go with it.
    fn write(&self, run: &SharedPage);
}

/// Offset of the union of exit data in `kvm_run`.
pub(crate) const DATA: usize = offset_of!(rb::kvm_run, __bindgen_anon_1);

/// Its length: `kvm_run.padding`.
const DATA_BYTES: usize = 256;
/// Where in it [`Common::FailEntry`] has its words, behind `kvm_run.fail_entry`.
const WHY: usize = 16;

/// A reason that every family has.
#[derive(Clone, Copy)]
pub(crate) enum Common {
    /// The hardware gave a reason that is not known here.
    Unknown {
        /// The hardware's code.
        code: u64,
    },
    /// The hardware refused to enter.
    FailEntry {
        /// The hardware's code.
        code: u64,
        /// The host CPU.
        cpu: u32,
        /// The rule that is broken. It stands behind what KVM's documents give to this exit.
        why: &'static CStr,
    },
    /// The guest touched what is no memory.
    Mmio {
        /// Guest-physical address.
        gpa: u64,
        /// 1 to 8.
        len: u8,
        /// A write: `data` is valid.
        write: bool,
        /// Little-endian in memory order.
        data: [u8; 8],
    },
    /// The guest halted and user space is to wait.
    Halt,
    /// The guest shut down.
    Shutdown,
    /// A signal waits.
    Interrupted,
    /// The hypervisor cannot go on; `suberror` and data say why.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`
        suberror: u32,
        /// Details.
        data: [u64; 2],
    },
    /// What a debugger in user space waits for has come (`KVM_SET_GUEST_DEBUG`).
    Debug {
        /// As the family's uapi has it.
        arch: rb::kvm_debug_exit_arch,
    },
    /// Memory that a slot promises cannot be had.
    MemoryFault {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
}

/// Writes the reason alone.
pub(crate) fn reason(run: &SharedPage, reason: u32) {
    run.write(offset_of!(rb::kvm_run, exit_reason), reason);
}

impl WriteRun for Common {
    fn write(&self, run: &SharedPage) {
        match *self {
            Common::Unknown { code } => {
                reason(run, rb::KVM_EXIT_UNKNOWN);
                run.write(DATA, code);
            }
            Common::FailEntry { code, cpu, why } => {
                reason(run, rb::KVM_EXIT_FAIL_ENTRY);
                run.write(DATA, code);
                run.write(DATA + 8, cpu);
                // The union has 256 bytes (`kvm_run.padding`).
                let text = why.to_bytes();
                let text = text.get(..DATA_BYTES - WHY - 1).unwrap_or(text);
                run.write_bytes(DATA + WHY, text);
                run.write(DATA + WHY + text.len(), 0u8);
            }
            Common::Mmio {
                gpa,
                len,
                write,
                data,
            } => {
                reason(run, rb::KVM_EXIT_MMIO);
                run.write(DATA, gpa);
                run.write_bytes(DATA + 8, &data);
                run.write(DATA + 16, u32::from(len));
                run.write(DATA + 20, u8::from(write));
            }
            Common::Halt => reason(run, rb::KVM_EXIT_HLT),
            Common::Shutdown => reason(run, rb::KVM_EXIT_SHUTDOWN),
            Common::Interrupted => reason(run, rb::KVM_EXIT_INTR),
            Common::InternalError { suberror, ref data } => {
                reason(run, rb::KVM_EXIT_INTERNAL_ERROR);
                run.write(DATA, suberror);
                run.write(DATA + 4, u32::try_from(data.len()).unwrap_or(0));
                for (i, v) in data.iter().enumerate() {
                    run.write(DATA + 8 + i * 8, *v);
                }
            }
            Common::Debug { ref arch } => {
                reason(run, rb::KVM_EXIT_DEBUG);
                run.write_bytes(DATA, plain_bytes(arch));
            }
            Common::MemoryFault { gpa, size } => {
                reason(run, rb::KVM_EXIT_MEMORY_FAULT);
                run.write(DATA, 0u64);
                run.write(DATA + 8, gpa);
                run.write(DATA + 16, size);
            }
        }
    }
}
