// SPDX-License-Identifier: GPL-2.0

//! The decoder's edges, and the quick way to a length.

mod common;

use common::Rng;
use rkvm_unit::arch::x86::model::decode::{
    decode, length_of, DecodeError, Mnemonic, Mode, Opnd, Rep, Vendor, Width, MAX_LEN,
};
use rkvm_unit::arch::x86::model::regs::{Gpr, Seg};

const M16: Mode = Mode::new(Width::Bits16, Vendor::Amd);
const M32: Mode = Mode::new(Width::Bits32, Vendor::Amd);
const M64: Mode = Mode::new(Width::Bits64, Vendor::Amd);
const I64: Mode = Mode::new(Width::Bits64, Vendor::Intel);

#[test]
fn fifteen_bytes_and_no_more() {
    let mut b = vec![0x66; 14];
    b.push(0x90);
    assert_eq!(decode(&b, M64).unwrap().len, 15);
    b.insert(0, 0x66);
    assert_eq!(decode(&b, M64), Err(DecodeError::TooLong));
    // An immediate that starts in time but ends too late.
    let mut b = vec![0x3e; 11];
    b.extend([0xb8, 1, 2, 3, 4, 5]);
    assert_eq!(decode(&b, M32), Err(DecodeError::TooLong));
    assert_eq!(decode(&b[1..], M32).unwrap().len, 15);
}

#[test]
fn asks_for_more_bytes_and_never_for_too_many() {
    let mut r = Rng::new(7);
    for _ in 0..200_000 {
        let b: [u8; MAX_LEN] = std::array::from_fn(|_| r.u8());
        let mode = r.pick(&[M16, M32, M64, I64]);
        let whole = decode(&b, mode);
        assert_ne!(whole, Err(DecodeError::NeedMore));
        let Ok(i) = whole else { continue };
        let n = usize::from(i.len);
        assert_eq!(
            decode(&b[..n], mode),
            Ok(i),
            "the bytes after it do not matter"
        );
        for short in 0..n {
            assert_eq!(
                decode(&b[..short], mode),
                Err(DecodeError::NeedMore),
                "{b:02x?} {short}"
            );
        }
    }
}

#[test]
fn lock_needs_memory_that_is_written() {
    for (ok, code) in [
        (true, &[0xf0, 0x01, 0x00][..]),         // lock add [rax], eax
        (false, &[0xf0, 0x01, 0xc0]),            // lock add eax, eax
        (false, &[0xf0, 0x39, 0x00]),            // lock cmp [rax], eax
        (false, &[0xf0, 0x03, 0x00]),            // lock add eax, [rax]
        (true, &[0xf0, 0x0f, 0xb1, 0x0a]),       // lock cmpxchg [rdx], ecx
        (true, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), // lock cmpxchg16b [rdi]
        (true, &[0xf0, 0x87, 0x07]),             // lock xchg [rdi], eax
        (false, &[0xf0, 0x90]),                  // lock nop
        (false, &[0xf0, 0x0f, 0xba, 0x20, 1]),   // lock bt [rax], 1
        (true, &[0xf0, 0x0f, 0xba, 0x28, 1]),    // lock bts [rax], 1
        (false, &[0xf0, 0x89, 0x00]),            // lock mov [rax], eax
        (false, &[0xf0, 0x0f, 0x28, 0x00]),      // lock movaps
        (false, &[0xf0, 0xf3, 0xa4]),            // lock rep movsb
    ] {
        assert_eq!(decode(code, M64).is_ok(), ok, "{code:02x?}");
    }
}

#[test]
fn lock_names_cr8_on_amd() {
    let i = decode(&[0xf0, 0x0f, 0x20, 0xc1], M32).unwrap();
    assert_eq!((i.mnemonic, i.reg(), i.rm()), (Mnemonic::MovFromCr, 8, 1));
    let intel = Mode::new(Width::Bits32, Vendor::Intel);
    assert_eq!(
        decode(&[0xf0, 0x0f, 0x20, 0xc1], intel),
        Err(DecodeError::Invalid)
    );
}

#[test]
fn memory_operands() {
    // mov eax, fs:[rip + 0x10]
    let i = decode(&[0x64, 0x8b, 0x05, 0x10, 0, 0, 0], M64).unwrap();
    let m = i.mem.unwrap();
    assert!(m.rip_relative && m.base.is_none() && m.seg == Seg::Fs && m.disp == 16);
    // The same bytes in 32-bit code are an absolute address.
    let m = decode(&[0x64, 0x8b, 0x05, 0x10, 0, 0, 0], M32)
        .unwrap()
        .mem
        .unwrap();
    assert!(!m.rip_relative && m.base.is_none());
    // mov [r12 + r13*8 - 1], al
    let m = decode(&[0x43, 0x88, 0x44, 0xec, 0xff], M64)
        .unwrap()
        .mem
        .unwrap();
    assert_eq!(
        (m.base, m.index, m.scale, m.disp),
        (Some(Gpr::R12), Some(Gpr::R13), 3, -1)
    );
    // mov ax, [bp + di + 0x1234]: by way of SS
    let m = decode(&[0x8b, 0x83, 0x34, 0x12], M16).unwrap().mem.unwrap();
    assert_eq!(
        (m.base, m.index, m.seg),
        (Some(Gpr::Rbp), Some(Gpr::Rdi), Seg::Ss)
    );
    // mov al, [moffs64]
    let i = decode(&[0xa0, 1, 2, 3, 4, 5, 6, 7, 8], M64).unwrap();
    assert_eq!(
        (i.ops[1], i.mem.unwrap().disp),
        (Opnd::Ob, 0x0807_0605_0403_0201)
    );
}

#[test]
fn vendors_differ_on_near_branches() {
    let call = [0x66, 0xe8, 1, 2, 3, 4];
    let (amd, intel) = (decode(&call, M64).unwrap(), decode(&call, I64).unwrap());
    assert_eq!((amd.len, amd.opsize), (4, 2));
    assert_eq!((intel.len, intel.opsize), (6, 8));
}

#[test]
fn prefixes_count_as_hardware_counts_them() {
    // REX before another prefix is dropped.
    let i = decode(&[0x48, 0x66, 0x89, 0xc8], M64).unwrap();
    assert_eq!((i.opsize, i.prefixes.rex), (2, 0));
    // REX.W wins over 66.
    assert_eq!(decode(&[0x66, 0x48, 0x89, 0xc8], M64).unwrap().opsize, 8);
    // The last of F2 and F3 counts.
    assert_eq!(
        decode(&[0xf2, 0xf3, 0xa4], M64).unwrap().prefixes.rep,
        Rep::Rep
    );
    assert_eq!(
        decode(&[0xf3, 0xf2, 0xa4], M64).unwrap().prefixes.rep,
        Rep::Repne
    );
    // DS, ES, SS, CS mean nothing in 64-bit mode and do not cancel FS.
    let m = decode(&[0x64, 0x3e, 0x8b, 0x00], M64).unwrap().mem.unwrap();
    assert_eq!(m.seg, Seg::Fs);
}

/// What exits without its length known.
const QUICK: &[(Mnemonic, &[u8])] = &[
    (Mnemonic::Cpuid, &[0x0f, 0xa2]),
    (Mnemonic::Rdmsr, &[0x0f, 0x32]),
    (Mnemonic::Wrmsr, &[0x0f, 0x30]),
    (Mnemonic::Rdtsc, &[0x0f, 0x31]),
    (Mnemonic::Rdtscp, &[0x0f, 0x01, 0xf9]),
    (Mnemonic::Rdpmc, &[0x0f, 0x33]),
    (Mnemonic::Hlt, &[0xf4]),
    (Mnemonic::In, &[0xe4, 0x70]),
    (Mnemonic::In, &[0xe5, 0x70]),
    (Mnemonic::In, &[0xec]),
    (Mnemonic::In, &[0xed]),
    (Mnemonic::Out, &[0xe6, 0x70]),
    (Mnemonic::Out, &[0xe7, 0x70]),
    (Mnemonic::Out, &[0xee]),
    (Mnemonic::Out, &[0xef]),
    (Mnemonic::Ins, &[0xf3, 0x6d]),
    (Mnemonic::Outs, &[0xf3, 0x6e]),
    (Mnemonic::Invlpg, &[0x0f, 0x01, 0x38]),
    (Mnemonic::Clts, &[0x0f, 0x06]),
    (Mnemonic::MovFromCr, &[0x0f, 0x20, 0xc0]),
    (Mnemonic::MovToCr, &[0x0f, 0x22, 0xd8]),
    (Mnemonic::MovFromDr, &[0x0f, 0x21, 0xf0]),
    (Mnemonic::MovToDr, &[0x0f, 0x23, 0xf8]),
    (Mnemonic::Lmsw, &[0x0f, 0x01, 0xf0]),
    (Mnemonic::Smsw, &[0x0f, 0x01, 0xe0]),
    (Mnemonic::Wbinvd, &[0x0f, 0x09]),
    (Mnemonic::Invd, &[0x0f, 0x08]),
    (Mnemonic::Monitor, &[0x0f, 0x01, 0xc8]),
    (Mnemonic::Mwait, &[0x0f, 0x01, 0xc9]),
    (Mnemonic::Xsetbv, &[0x0f, 0x01, 0xd1]),
    (Mnemonic::Vmmcall, &[0x0f, 0x01, 0xd9]),
    (Mnemonic::Vmcall, &[0x0f, 0x01, 0xc1]),
    (Mnemonic::Pause, &[0xf3, 0x90]),
    (Mnemonic::Int3, &[0xcc]),
    (Mnemonic::Int, &[0xcd, 0x80]),
    (Mnemonic::Iret, &[0xcf]),
    (Mnemonic::Pushf, &[0x9c]),
    (Mnemonic::Popf, &[0x9d]),
    (Mnemonic::Lgdt, &[0x0f, 0x01, 0x10]),
    (Mnemonic::Sgdt, &[0x0f, 0x01, 0x00]),
    (Mnemonic::Lidt, &[0x0f, 0x01, 0x18]),
    (Mnemonic::Sidt, &[0x0f, 0x01, 0x08]),
    (Mnemonic::Lldt, &[0x0f, 0x00, 0xd0]),
    (Mnemonic::Ltr, &[0x0f, 0x00, 0xd8]),
    (Mnemonic::Rsm, &[0x0f, 0xaa]),
    (Mnemonic::Int1, &[0xf1]),
    (Mnemonic::Stgi, &[0x0f, 0x01, 0xdc]),
    (Mnemonic::Clgi, &[0x0f, 0x01, 0xdd]),
    (Mnemonic::Vmrun, &[0x0f, 0x01, 0xd8]),
    (Mnemonic::Vmload, &[0x0f, 0x01, 0xda]),
    (Mnemonic::Vmsave, &[0x0f, 0x01, 0xdb]),
];

#[test]
fn lengths_of_what_exits() {
    for &(m, code) in QUICK {
        let n = code.len();
        for mode in [M16, M32, M64, I64] {
            let mut b = code.to_vec();
            b.resize(15, 0x90);
            assert_eq!(length_of(&b, mode, m), Some(n as u8), "{m:?} {mode:?}");
            assert_eq!(
                length_of(&b[..n], mode, m),
                Some(n as u8),
                "{m:?} without bytes behind"
            );
            assert_eq!(length_of(&b[..n - 1], mode, m), None, "{m:?} cut off");
            // A prefix leaves the quick way.
            b.insert(0, 0x2e);
            assert_eq!(
                length_of(&b, mode, m),
                Some(n as u8 + 1),
                "{m:?} {mode:?} with prefix"
            );
            // Another instruction is none of it.
            let other = if m == Mnemonic::Hlt {
                Mnemonic::Cpuid
            } else {
                Mnemonic::Hlt
            };
            assert_eq!(length_of(&b, mode, other), None);
        }
    }
}

#[test]
fn quick_lengths_are_the_decoders() {
    let mut r = Rng::new(11);
    for _ in 0..300_000 {
        let mut b: [u8; 15] = std::array::from_fn(|_| r.u8());
        let &(m, code) = &QUICK[r.below(QUICK.len() as u64) as usize];
        b[..code.len()].copy_from_slice(code);
        if r.one_in(3) {
            b[r.below(3) as usize] = r.u8();
        }
        let mode = r.pick(&[M16, M32, M64, I64]);
        let slow = decode(&b, mode)
            .ok()
            .filter(|i| i.mnemonic == m)
            .map(|i| i.len);
        assert_eq!(length_of(&b, mode, m), slow, "{m:?} {b:02x?} {mode:?}");
    }
}

#[test]
fn one_access_is_one_linear_address() {
    for (one, code) in [
        (true, &[0x8b, 0x03][..]),               // mov eax, [rbx]
        (true, &[0x88, 0x03]),                   // mov [rbx], al
        (true, &[0xa1, 0, 0, 0, 0, 0, 0, 0, 0]), // mov eax, [0]
        (true, &[0xf0, 0x01, 0x03]),             // lock add [rbx], eax
        (true, &[0x0f, 0xb1, 0x0b]),             // cmpxchg [rbx], ecx
        (true, &[0x0f, 0xb6, 0x03]),             // movzx eax, byte [rbx]
        (true, &[0x0f, 0x11, 0x03]),             // movups [rbx], xmm0
        (false, &[0x89, 0xd8]),                  // mov eax, ebx
        (false, &[0xff, 0x33]),                  // push [rbx]
        (false, &[0x8f, 0x03]),                  // pop [rbx]
        (false, &[0xff, 0x13]),                  // call [rbx]
        (false, &[0xff, 0x1b]),                  // call far [rbx]
        (false, &[0x8e, 0x1b]),                  // mov ds, [rbx]
        (false, &[0x0f, 0xb2, 0x03]),            // lss eax, [rbx]
        (false, &[0xa5]),                        // movsd
        (false, &[0xf3, 0xab]),                  // rep stosd
        (false, &[0x6d]),                        // insd
        (false, &[0x0f, 0x01, 0x13]),            // lgdt [rbx]
    ] {
        let i = decode(code, M64).unwrap();
        assert_eq!(i.has_one_access(), one, "{code:02x?}");
    }
}
