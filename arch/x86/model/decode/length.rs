// SPDX-License-Identifier: GPL-2.0

//! The length of an instruction whose exit already told what it is: the path that every exit of a
//! processor without next-RIP takes.

use super::decode;
use super::mnemonic::Mnemonic;
use super::types::Mode;

/// Length in bytes of the instruction at the start of `bytes`, provided that it is `expected`.
///
/// Encodings without prefixes are compared byte by byte; whatever else goes through the decoder.
/// `None` when the bytes are another instruction (another processor may have overwritten them
/// after the exit), are too few, or are none.
#[inline]
pub fn length_of(bytes: &[u8], mode: Mode, expected: Mnemonic) -> Option<u8> {
    use Mnemonic::*;
    let quick = match (expected, bytes) {
        (Cpuid, [0x0f, 0xa2, ..])
        | (Rdmsr, [0x0f, 0x32, ..])
        | (Wrmsr, [0x0f, 0x30, ..])
        | (Rdtsc, [0x0f, 0x31, ..])
        | (Rdpmc, [0x0f, 0x33, ..])
        | (Clts, [0x0f, 0x06, ..])
        | (Invd, [0x0f, 0x08, ..])
        | (Wbinvd, [0x0f, 0x09, ..])
        | (Rsm, [0x0f, 0xaa, ..])
        | (Int, [0xcd, _, ..])
        | (In, [0xe4 | 0xe5, _, ..])
        | (Out, [0xe6 | 0xe7, _, ..])
        | (Pause, [0xf3, 0x90, ..]) => 2,
        (Hlt, [0xf4, ..])
        | (In, [0xec | 0xed, ..])
        | (Out, [0xee | 0xef, ..])
        | (Int3, [0xcc, ..])
        | (Iret, [0xcf, ..])
        | (Pushf, [0x9c, ..])
        | (Popf, [0x9d, ..]) => 1,
        (Vmmcall, [0x0f, 0x01, 0xd9, ..])
        | (Vmcall, [0x0f, 0x01, 0xc1, ..])
        | (Xsetbv, [0x0f, 0x01, 0xd1, ..])
        | (Rdtscp, [0x0f, 0x01, 0xf9, ..])
        | (Monitor, [0x0f, 0x01, 0xc8, ..])
        | (Mwait, [0x0f, 0x01, 0xc9, ..])
        | (MovFromDr, [0x0f, 0x21, _, ..])
        | (MovToDr, [0x0f, 0x23, _, ..]) => 3,
        // CR0, CR2, CR3, CR4: there are no others without a prefix.
        (MovFromCr, [0x0f, 0x20, m, ..]) | (MovToCr, [0x0f, 0x22, m, ..])
            if matches!(m >> 3 & 7, 0 | 2..=4) =>
        {
            3
        }
        _ => return slow(bytes, mode, expected),
    };
    Some(quick)
}

#[cold]
fn slow(bytes: &[u8], mode: Mode, expected: Mnemonic) -> Option<u8> {
    decode(bytes, mode)
        .ok()
        .filter(|i| i.mnemonic == expected)
        .map(|i| i.len)
}
