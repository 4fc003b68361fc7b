// SPDX-License-Identifier: GPL-2.0

//! What guests' instructions do: port I/O, MMIO, exceptions, modes, entry failures.

use crate::harness::tests;
use iced_x86::code_asm::*;
use iced_x86::IcedError;
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE, DATA, MMIO};
use rkvm_l1::machine::{assemble, cpuid, has_xsave, leaf, Cpu};
use rkvm_l1::ram::Ram;
use rkvm_l1::{Exit, Irqchip, Machine, Mode, Outcome};

tests![
    arithmetic,
    pio_sizes,
    pio_every_port_form,
    pio_answer_keeps_other_bits,
    outs_forwards_and_back,
    ins_forwards_and_back,
    string_io_without_count,
    string_io_count_is_16_bits_in_real_mode,
    string_io_faults_at_the_limit,
    string_io_page_fault_is_restartable,
    mmio_forms,
    mmio_addressing_64,
    mmio_addressing_32,
    mmio_addressing_16,
    mmio_crosses_a_page,
    mmio_crosses_into_memory,
    mmio_crosses_into_missing_memory,
    mmio_too_many_pieces,
    mmio_at_the_offset_of_the_other_operand,
    mmio_goes_on_with_the_same_instruction,
    mmio_rep_movs,
    mmio_page_fault_at_the_other_operand,
    mmio_sets_accessed_and_dirty,
    mmio_flags,
    mmio_fetch,
    unemulatable_on_mmio,
    hlt_exits,
    triple_fault,
    exceptions_64,
    exceptions_32,
    page_fault_codes,
    user_mode,
    syscall_sysret,
    interrupt_from_user_mode,
    real_mode_interrupts,
    boot_path,
    leave_long_mode,
    long_mode_enable_alone,
    control_registers,
    control_register_faults,
    cr8_and_tpr,
    descriptor_tables,
    xsetbv_faults,
    tsc_instructions,
    absent_instructions,
    hypercall,
    debug_traps,
    single_step,
    sse_state_of_two_vcpus,
    far_memory,
    invalid_guest_state,
    self_modifying_code,
    cpuid_leaves,
];

fn eax_of(mode: Mode, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u32> {
    Machine::new(mode, |a| {
        f(a)?;
        kit::done_after(a)
    })
    .expect("code")
    .cpu()
    .results()
}

fn arithmetic() -> Outcome {
    for mode in Mode::ALL {
        let r = eax_of(mode, |a| {
            let mut again = a.create_label();
            a.xor(eax, eax)?;
            a.mov(ecx, 1000)?;
            a.set_label(&mut again)?;
            a.add(eax, ecx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            kit::result(a)?;
            a.mov(edx, 0)?;
            a.mov(ecx, 7)?;
            a.div(ecx)?;
            kit::result(a)?;
            a.mov(eax, edx)?;
            kit::result(a)
        });
        assert_eq!(r, [500_500, 71_500, 0], "{mode:?}");
    }
    Ok(())
}

fn pio_sizes() -> Outcome {
    for mode in Mode::ALL {
        let mut m = Machine::new(mode, |a| {
            a.mov(eax, 0x4433_2211)?;
            a.mov(dx, 0x1234)?;
            a.out(dx, al)?;
            a.out(dx, ax)?;
            a.out(dx, eax)?;
            a.in_(al, dx)?;
            kit::result(a)?;
            a.in_(ax, dx)?;
            kit::result(a)?;
            a.in_(eax, dx)?;
            kit::result(a)?;
            kit::done(a)
        })?;
        let mut outs = Vec::new();
        let r = m.cpu().run_with(|c, e| match e {
            Exit::Out {
                port: 0x1234,
                size,
                data,
            } => {
                assert_eq!(*size, data.len());
                outs.push(data.clone());
                true
            }
            Exit::In { port: 0x1234, .. } => {
                c.answer(&[0xa1, 0xb2, 0xc3, 0xd4]);
                true
            }
            _ => false,
        });
        assert_eq!(
            outs,
            [vec![0x11], vec![0x11, 0x22], vec![0x11, 0x22, 0x33, 0x44]],
            "{mode:?}"
        );
        assert_eq!(r, [0x4433_22a1, 0x4433_b2a1, 0xd4c3_b2a1], "{mode:?}");
    }
    Ok(())
}

fn pio_every_port_form() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.out(0, al)?;
        a.out(0xff, ax)?;
        a.mov(edx, 0xffff_0080u32)?;
        a.out(dx, eax)?;
        a.mov(edx, 0xffff)?;
        a.out(dx, al)?;
        kit::done(a)
    })?;
    let (_, e) = m.cpu().results_io();
    let got: Vec<_> = e
        .iter()
        .map(|e| {
            if let Exit::Out { port, size, .. } = e {
                (*port, *size)
            } else {
                (0, 0)
            }
        })
        .collect();
    assert_eq!(got, [(0, 1), (0xff, 2), (0x80, 4), (0xffff, 1)]);
    Ok(())
}

/// IN to EAX clears the upper half of RAX; to AX and AL it does not.
fn pio_answer_keeps_other_bits() -> Outcome {
    for (size, want) in [
        (1, 0xffff_ffff_ffff_ff78),
        (2, 0xffff_ffff_ffff_5678),
        (4, 0x1234_5678u64),
    ] {
        let mut m = Machine::new(Mode::Long, |a| {
            a.mov(rax, u64::MAX)?;
            match size {
                1 => a.in_(al, 0x50)?,
                2 => a.in_(ax, 0x50)?,
                _ => a.in_(eax, 0x50)?,
            }
            a.mov(qword_ptr(DATA), rax)?;
            kit::done(a)
        })?;
        m.cpu().run().expect("run");
        m.cpu().answer(&[0x78, 0x56, 0x34, 0x12]);
        m.cpu().results();
        assert_eq!(m.ram.u64(DATA), want, "size {size}");
    }
    Ok(())
}

/// REP INS and OUTS of `size` bytes, `n` times, from `at`.
fn string_io(
    mode: Mode,
    output: bool,
    back: bool,
    size: usize,
    n: u32,
    at: u32,
) -> Result<Machine, IcedError> {
    Machine::new(mode, |a| {
        if back {
            a.std()?;
        }
        a.mov(esi, at)?;
        a.mov(edi, at)?;
        a.mov(ecx, n)?;
        a.mov(dx, 0x70)?;
        match (output, size) {
            (true, 1) => a.rep().outsb()?,
            (true, 2) => a.rep().outsw()?,
            (true, _) => a.rep().outsd()?,
            (false, 1) => a.rep().insb()?,
            (false, 2) => a.rep().insw()?,
            (false, _) => a.rep().insd()?,
        }
        a.mov(eax, ecx)?;
        kit::result(a)?;
        a.mov(eax, if output { esi } else { edi })?;
        kit::result(a)?;
        kit::done(a)
    })
}

/// Where string I/O of `n` elements starts, and the addresses of its elements in order.
fn places(mode: Mode, back: bool, size: usize, n: u32) -> (u32, Vec<u64>) {
    let low = if mode == Mode::Real {
        0xc00u64
    } else {
        DATA + 0x10
    };
    let step = size as u64;
    let all: Vec<u64> = (0..u64::from(n)).map(|i| low + i * step).collect();
    if back {
        (
            (low + step * (u64::from(n) - 1)) as u32,
            all.into_iter().rev().collect(),
        )
    } else {
        (low as u32, all)
    }
}

fn outs_forwards_and_back() -> Outcome {
    for (mode, n) in [
        (Mode::Real, 40),
        (Mode::Protected, 60),
        (Mode::Pae, 60),
        (Mode::Long, 150),
    ] {
        for back in [false, true] {
            for size in [1, 2, 4] {
                let (start, places) = places(mode, back, size, n);
                let mut m = string_io(mode, true, back, size, n, start)?;
                for (i, p) in places.iter().enumerate() {
                    m.ram.put(
                        *p,
                        &(i as u32).wrapping_mul(0x0101_0107).to_le_bytes()[..size],
                    );
                }
                let want: Vec<u8> = places.iter().flat_map(|p| m.ram.get(*p, size)).collect();
                let mut got: Vec<u8> = Vec::new();
                let r = m.cpu().run_with(|_, e| {
                    let Exit::Out {
                        port: 0x70,
                        size: s,
                        data,
                    } = e
                    else {
                        return false;
                    };
                    assert!(*s == size && data.len() <= 4096);
                    got.extend(data);
                    true
                });
                let moved = n * size as u32;
                let end = if back {
                    start.wrapping_sub(moved)
                } else {
                    start + moved
                };
                assert!(
                    got == want,
                    "{mode:?} back {back} size {size}: other bytes ({} of {})",
                    got.len(),
                    want.len()
                );
                assert_eq!(r, [0, end], "{mode:?} back {back} size {size}: ECX and ESI");
            }
        }
    }
    Ok(())
}

fn ins_forwards_and_back() -> Outcome {
    for (mode, n) in [
        (Mode::Real, 100),
        (Mode::Protected, 400),
        (Mode::Pae, 400),
        (Mode::Long, 2500),
    ] {
        for back in [false, true] {
            for size in [1, 2, 4] {
                let (start, places) = places(mode, back, size, n);
                let mut m = string_io(mode, false, back, size, n, start)?;
                let mut given = Vec::new();
                let mut seed = 1u32;
                let r = m.cpu().run_with(|c, e| {
                    let Exit::In {
                        port: 0x70,
                        size: s,
                        count,
                    } = e
                    else {
                        return false;
                    };
                    assert!(*s == size && s * count <= 4096);
                    let bytes: Vec<u8> = (0..s * count)
                        .map(|_| {
                            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
                            (seed >> 16) as u8
                        })
                        .collect();
                    c.answer(&bytes);
                    given.extend(bytes);
                    true
                });
                let got: Vec<u8> = places.iter().flat_map(|p| m.ram.get(*p, size)).collect();
                let moved = n * size as u32;
                let end = if back {
                    start.wrapping_sub(moved)
                } else {
                    start + moved
                };
                assert!(
                    got == given,
                    "{mode:?} back {back} size {size}: other bytes"
                );
                assert_eq!(r, [0, end], "{mode:?} back {back} size {size}: ECX and EDI");
            }
        }
    }
    Ok(())
}

fn string_io_without_count() -> Outcome {
    for mode in Mode::ALL {
        for output in [false, true] {
            let at = if mode == Mode::Real {
                0xc00
            } else {
                DATA as u32
            };
            let mut m = string_io(mode, output, false, 4, 0, at)?;
            assert_eq!(
                m.cpu().results(),
                [0, at],
                "{mode:?}: no exit, nothing moves"
            );
        }
    }
    Ok(())
}

fn string_io_count_is_16_bits_in_real_mode() -> Outcome {
    // CX = 2, SI = 0xffff: the second byte is at offset 0.
    let mut m = Machine::new(Mode::Real, |a| {
        a.mov(ecx, 0x5_0002)?;
        a.mov(esi, 0x7_ffff)?;
        a.mov(dx, 0x70)?;
        a.rep().outsb()?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        a.mov(eax, esi)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    m.ram.put(0xffff, &[0xaa]);
    m.ram.put(0, &[0xbb]);
    let mut got = Vec::new();
    let r = m.cpu().run_with(|_, e| {
        let Exit::Out {
            port: 0x70, data, ..
        } = e
        else {
            return false;
        };
        got.extend(data);
        true
    });
    assert_eq!((got, r), (vec![0xaa, 0xbb], vec![0x5_0000, 0x7_0001]));
    Ok(())
}

fn string_io_faults_at_the_limit() -> Outcome {
    // ES ends at 0xfff: the last two bytes go out, then #GP with ECX and ESI as far as it came.
    let mut m = Machine::new(Mode::Protected, |a| {
        let mut after = a.create_label();
        kit::expect32(a, after)?;
        a.mov(eax, i32::from(kit::SEL_SMALL))?;
        a.mov(es, eax)?;
        a.mov(esi, 0xffe)?;
        a.mov(ecx, 5)?;
        a.mov(dx, 0x70)?;
        // rep outs dx, es:[esi]
        a.db(&[0xf3, 0x26, 0x6e])?;
        a.set_label(&mut after)?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        a.mov(eax, esi)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    m.ram.put(DATA + 0xffe, &[1, 2]);
    let mut got: Vec<u8> = Vec::new();
    let r = m.cpu().run_with(|_, e| {
        let Exit::Out {
            port: 0x70, data, ..
        } = e
        else {
            return false;
        };
        got.extend(data);
        true
    });
    assert_eq!((got, r), (vec![1, 2], vec![3, 0x1000]));
    assert_eq!(m.frame()[..2], [13, 0]);
    Ok(())
}

fn string_io_page_fault_is_restartable() -> Outcome {
    // The third page is not there; after the handler has put it there the instruction goes on.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rsi, 0x40_0000u64 - 4)?;
        a.mov(ecx, 4)?;
        a.mov(dx, 0x70)?;
        a.rep().outsw()?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    // 2..4 MiB is the last 2 MiB page's worth of a second memory; 4 MiB is not mapped by the guest.
    let more = Ram::anon(0x20_0000, 0x40_0000);
    m.slot(1, &more, 0).expect("slot");
    for i in 0..8u8 {
        more.put(0x40_0000 - 4 + u64::from(i), &[i + 1]);
    }
    m.ram.set64(kit::PDS + 16, 0);
    // The handler of vector 14: count, map, return.
    let handler = 0x1_8000;
    m.code(handler, 64, |a| {
        a.push(rax)?;
        a.mov(rax, cr2)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(eax, dword_ptr(rsp + 8))?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.mov(qword_ptr(DATA + 16), rcx)?;
        a.inc(dword_ptr(DATA + 24))?;
        a.mov(eax, 0x40_00e7)?;
        a.mov(qword_ptr(kit::PDS + 16), rax)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()
    })?;
    m.ram.put(
        kit::IDT + 16 * 14,
        &kit::gate(handler, kit::SEL_CODE64, 0x8e, true),
    );
    let mut got = Vec::new();
    let r = m.cpu().run_with(|_, e| {
        let Exit::Out {
            port: 0x70, data, ..
        } = e
        else {
            return false;
        };
        got.extend(data);
        true
    });
    assert_eq!((r, got), (vec![0], vec![1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(m.ram.u64(DATA), 0x40_0000, "CR2");
    assert_eq!(
        m.ram.u32(DATA + 8),
        0,
        "error code: a supervisor's read, not present"
    );
    assert_eq!(m.ram.u64(DATA + 16), 2, "RCX: two were done");
    assert_eq!(m.ram.u32(DATA + 24), 1, "one fault");
    Ok(())
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What MMIO holds at each address.
fn pattern(gpa: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| 0x81 + 0x11 * ((gpa + i) & 7) as u8)
        .collect()
}

/// Runs code whose MMIO reads give [`pattern`]; returns the results and the accesses: `r4@0`, `w2@10:aabb`.
fn mmio(m: &mut Machine, base: u64) -> (Vec<u32>, String) {
    let mut log = String::new();
    let r = m.cpu().run_with(|c, e| {
        let s = match e {
            Exit::Read { gpa, len } => {
                c.answer(&pattern(*gpa, *len));
                format!("r{len}@{:x}", gpa.wrapping_sub(base))
            }
            Exit::Write { gpa, data } => {
                let hex: Vec<String> = data.iter().map(|b| format!("{b:02x}")).collect();
                let hex = hex.concat();
                format!("w{}@{:x}:{hex}", data.len(), gpa.wrapping_sub(base))
            }
            _ => return false,
        };
        log = format!("{log} {s}");
        true
    });
    (r, log.trim().into())
}

/// Instructions that meet MMIO at EBX, in 32- and 64-bit mode; EAX is 0x11223344 before, and its value afterwards is given.
const FORMS: &[(&str, Code, &str, u32)] = &[
    (
        "mov r8, m",
        |a| a.mov(al, byte_ptr(ebx)),
        "r1@0",
        0x1122_3381,
    ),
    (
        "mov r16, m",
        |a| a.mov(ax, word_ptr(ebx)),
        "r2@0",
        0x1122_9281,
    ),
    (
        "mov r32, m",
        |a| a.mov(eax, dword_ptr(ebx)),
        "r4@0",
        0xb4a3_9281,
    ),
    (
        "mov ah, m",
        |a| a.mov(ah, byte_ptr(ebx + 1)),
        "r1@1",
        0x1122_9244,
    ),
    (
        "mov m, r8",
        |a| a.mov(byte_ptr(ebx), al),
        "w1@0:44",
        0x1122_3344,
    ),
    (
        "mov m, ah",
        |a| a.mov(byte_ptr(ebx), ah),
        "w1@0:33",
        0x1122_3344,
    ),
    (
        "mov m, r16",
        |a| a.mov(word_ptr(ebx), ax),
        "w2@0:4433",
        0x1122_3344,
    ),
    (
        "mov m, r32",
        |a| a.mov(dword_ptr(ebx), eax),
        "w4@0:44332211",
        0x1122_3344,
    ),
    (
        "mov m, imm8",
        |a| a.mov(byte_ptr(ebx), 0x5a),
        "w1@0:5a",
        0x1122_3344,
    ),
    (
        "mov m, imm16",
        |a| a.mov(word_ptr(ebx), 0x5a5b),
        "w2@0:5b5a",
        0x1122_3344,
    ),
    (
        "mov m, imm32",
        |a| a.mov(dword_ptr(ebx), 0x0102_0304),
        "w4@0:04030201",
        0x1122_3344,
    ),
    (
        "movzx r32, m8",
        |a| a.movzx(eax, byte_ptr(ebx)),
        "r1@0",
        0x81,
    ),
    (
        "movzx r32, m16",
        |a| a.movzx(eax, word_ptr(ebx)),
        "r2@0",
        0x9281,
    ),
    (
        "movsx r32, m8",
        |a| a.movsx(eax, byte_ptr(ebx)),
        "r1@0",
        0xffff_ff81,
    ),
    (
        "movsx r16, m8",
        |a| a.movsx(ax, byte_ptr(ebx)),
        "r1@0",
        0x1122_ff81,
    ),
    (
        "movsx r32, m16",
        |a| a.movsx(eax, word_ptr(ebx)),
        "r2@0",
        0xffff_9281,
    ),
    (
        "add r, m",
        |a| a.add(eax, dword_ptr(ebx)),
        "r4@0",
        0x1122_3344u32.wrapping_add(0xb4a3_9281),
    ),
    (
        "and r, m",
        |a| a.and(eax, dword_ptr(ebx)),
        "r4@0",
        0x1122_3344 & 0xb4a3_9281,
    ),
    (
        "or r8, m8",
        |a| a.or(al, byte_ptr(ebx)),
        "r1@0",
        0x1122_33c5,
    ),
    (
        "xor r16, m16",
        |a| a.xor(ax, word_ptr(ebx)),
        "r2@0",
        0x1122_a1c5,
    ),
    (
        "sub r, m",
        |a| a.sub(eax, dword_ptr(ebx)),
        "r4@0",
        0x1122_3344u32.wrapping_sub(0xb4a3_9281),
    ),
    (
        "add m, r",
        |a| a.add(dword_ptr(ebx), eax),
        "r4@0 w4@0:c5c5c5c5",
        0x1122_3344,
    ),
    (
        "or m, imm",
        |a| a.or(byte_ptr(ebx), 0x7e),
        "r1@0 w1@0:ff",
        0x1122_3344,
    ),
    (
        "and m, imm32",
        |a| a.and(dword_ptr(ebx), 0xff),
        "r4@0 w4@0:81000000",
        0x1122_3344,
    ),
    (
        "lock add m, r",
        |a| a.lock().add(dword_ptr(ebx), eax),
        "r4@0 w4@0:c5c5c5c5",
        0x1122_3344,
    ),
    (
        "inc m",
        |a| a.inc(dword_ptr(ebx)),
        "r4@0 w4@0:8292a3b4",
        0x1122_3344,
    ),
    (
        "dec m16",
        |a| a.dec(word_ptr(ebx)),
        "r2@0 w2@0:8092",
        0x1122_3344,
    ),
    (
        "not m",
        |a| a.not(dword_ptr(ebx)),
        "r4@0 w4@0:7e6d5c4b",
        0x1122_3344,
    ),
    (
        "neg m8",
        |a| a.neg(byte_ptr(ebx)),
        "r1@0 w1@0:7f",
        0x1122_3344,
    ),
    (
        "xchg m, r",
        |a| a.xchg(dword_ptr(ebx), eax),
        "r4@0 w4@0:44332211",
        0xb4a3_9281,
    ),
    (
        "xadd m, r",
        |a| a.xadd(dword_ptr(ebx), eax),
        "r4@0 w4@0:c5c5c5c5",
        0xb4a3_9281,
    ),
    (
        "shl m, 4",
        |a| a.shl(dword_ptr(ebx), 4),
        "r4@0 w4@0:1028394a",
        0x1122_3344,
    ),
    (
        "bts m, 1",
        |a| a.bts(dword_ptr(ebx), 1),
        "r4@0 w4@0:8392a3b4",
        0x1122_3344,
    ),
    (
        "btr m, 0",
        |a| a.btr(dword_ptr(ebx), 0),
        "r4@0 w4@0:8092a3b4",
        0x1122_3344,
    ),
    (
        "cmp m, imm",
        |a| {
            a.cmp(dword_ptr(ebx), 0)?;
            a.sets(al)
        },
        "r4@0",
        0x1122_3301,
    ),
    (
        "test m, imm",
        |a| {
            a.test(dword_ptr(ebx), 1)?;
            a.setnz(al)
        },
        "r4@0",
        0x1122_3301,
    ),
    (
        "bt m, 0",
        |a| {
            a.bt(dword_ptr(ebx), 0)?;
            a.setc(al)
        },
        "r4@0",
        0x1122_3301,
    ),
    (
        "imul r, m",
        |a| a.imul_2(eax, dword_ptr(ebx)),
        "r4@0",
        0x1122_3344u32.wrapping_mul(0xb4a3_9281),
    ),
    (
        "cmovne r, m",
        |a| {
            a.test(eax, eax)?;
            a.cmovne(eax, dword_ptr(ebx))
        },
        "r4@0",
        0xb4a3_9281,
    ),
    (
        "setc m",
        |a| {
            a.stc()?;
            a.setc(byte_ptr(ebx))
        },
        "w1@0:01",
        0x1122_3344,
    ),
    (
        "lodsd",
        |a| {
            a.mov(esi, ebx)?;
            a.lodsd()
        },
        "r4@0",
        0xb4a3_9281,
    ),
    (
        "stosd",
        |a| {
            a.mov(edi, ebx)?;
            a.stosd()
        },
        "w4@0:44332211",
        0x1122_3344,
    ),
    (
        "rep stosb",
        |a| {
            a.mov(edi, ebx)?;
            a.mov(ecx, 3)?;
            a.rep().stosb()
        },
        "w1@0:44 w1@1:44 w1@2:44",
        0x1122_3344,
    ),
    (
        "movsd to",
        |a| {
            a.mov(edi, ebx)?;
            a.mov(esi, DATA as u32)?;
            a.movsd()
        },
        "w4@0:efbeadde",
        0x1122_3344,
    ),
    (
        "movsw from",
        |a| {
            a.mov(edi, DATA as u32)?;
            a.mov(esi, ebx)?;
            a.movsw()?;
            a.mov(eax, dword_ptr(DATA))
        },
        "r2@0",
        0xdead_9281,
    ),
    (
        "scasb",
        |a| {
            a.mov(edi, ebx)?;
            a.mov(al, 0x81)?;
            a.scasb()?;
            a.setz(al)
        },
        "r1@0",
        0x1122_3301,
    ),
    (
        "cmpxchg, other",
        |a| {
            a.mov(ecx, 1)?;
            a.cmpxchg(dword_ptr(ebx), ecx)
        },
        "r4@0 w4@0:8192a3b4",
        0xb4a3_9281,
    ),
    (
        "push m",
        |a| {
            a.push(dword_or_qword(a.bitness()))?;
            a.pop(dword_or_qword_at_data(a.bitness()))?;
            a.mov(eax, dword_ptr(DATA))
        },
        "rN@0",
        0xb4a3_9281,
    ),
    (
        "movups to",
        |a| {
            a.movups(xmm1, xmmword_ptr(DATA))?;
            a.movups(xmmword_ptr(ebx), xmm1)
        },
        "w8@0:efbeadde04030201 w8@8:0807060510111213",
        0x1122_3344,
    ),
    (
        "movups from",
        |a| {
            a.movups(xmm1, xmmword_ptr(ebx))?;
            a.movd(eax, xmm1)
        },
        "r8@0 r8@8",
        0xb4a3_9281,
    ),
    (
        "movdqa from",
        |a| {
            a.movdqa(xmm1, xmmword_ptr(ebx))?;
            a.psrldq(xmm1, 12)?;
            a.movd(eax, xmm1)
        },
        "r8@0 r8@8",
        0xf8e7_d6c5,
    ),
    (
        "movdqu to",
        |a| {
            a.movdqu(xmm1, xmmword_ptr(DATA))?;
            a.movdqu(xmmword_ptr(ebx + 0x10), xmm1)
        },
        "w8@10:efbeadde04030201 w8@18:0807060510111213",
        0x1122_3344,
    ),
    (
        "movnti",
        |a| a.movnti(dword_ptr(ebx), eax),
        "w4@0:44332211",
        0x1122_3344,
    ),
    (
        "moffs32",
        |a| {
            if a.bitness() == 32 {
                a.mov(eax, dword_ptr(MMIO))
            } else {
                a.db(&[0xa1, 0, 0, 0, 0xd0, 0, 0, 0, 0])
            }
        },
        "r4@0",
        0xb4a3_9281,
    ),
];

fn dword_or_qword(bits: u32) -> AsmMemoryOperand {
    if bits == 64 {
        qword_ptr(ebx)
    } else {
        dword_ptr(ebx)
    }
}

fn dword_or_qword_at_data(bits: u32) -> AsmMemoryOperand {
    if bits == 64 {
        qword_ptr(DATA)
    } else {
        dword_ptr(DATA)
    }
}

fn mmio_forms() -> Outcome {
    let mut bad = Vec::new();
    for mode in [Mode::Protected, Mode::Long] {
        for (name, code, want, want_eax) in FORMS {
            let mut m = Machine::new(mode, |a| {
                a.mov(ebx, MMIO as u32)?;
                a.mov(eax, 0x1122_3344)?;
                code(a)?;
                kit::result(a)?;
                kit::done(a)
            })?;
            m.ram.put(
                DATA,
                &[
                    0xef, 0xbe, 0xad, 0xde, 4, 3, 2, 1, 8, 7, 6, 5, 0x10, 0x11, 0x12, 0x13,
                ],
            );
            let (r, log) = mmio(&mut m, MMIO);
            let want = want.replace('N', if mode == Mode::Long { "8" } else { "4" });
            if log != want || r != [*want_eax] {
                bad.push(format!(
                    "{mode:?} {name}: {log}, eax {r:x?}; wanted {want}, {want_eax:x}"
                ));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

fn mmio_addressing_64() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(r13, MMIO - 0x10)?;
        a.mov(r14d, 0x20)?;
        a.mov(rcx, -8i64)?;
        a.mov(dword_ptr(rbx), r14d)?;
        a.mov(dword_ptr(rbx + 0x7f), r14d)?;
        a.mov(dword_ptr(rbx + 0x1234), r14d)?;
        a.mov(dword_ptr(rbx - 0x80 + 0x90), r14d)?;
        a.mov(dword_ptr(rbx + r14 * 4), r14d)?;
        a.mov(dword_ptr(r13 + r14 * 8 + 0x40), r14d)?;
        a.mov(dword_ptr(rbx + rcx * 1 + 0x10), r14d)?;
        a.mov(r12, rbx)?;
        a.mov(dword_ptr(r12), r14d)?;
        a.mov(rbp, rbx)?;
        a.mov(dword_ptr(rbp), r14d)?;
        a.mov(qword_ptr(r13 + 0x10), rcx)?;
        // GS with a base.
        a.mov(ecx, 0xc000_0101u32)?;
        a.mov(eax, MMIO as u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(dword_ptr(0x400).gs(), r14d)?;
        a.xor(esi, esi)?;
        a.mov(eax, dword_ptr(rsi + 0x404).gs())?;
        kit::done(a)
    })?;
    let (_, log) = mmio(&mut m, MMIO);
    let w = "20000000";
    assert_eq!(
        log,
        format!(
            "w4@0:{w} w4@7f:{w} w4@1234:{w} w4@10:{w} w4@80:{w} w4@130:{w} w4@8:{w} w4@0:{w} w4@0:{w} w8@0:f8ffffffffffffff w4@400:{w} r4@404"
        )
    );
    // RIP-relative: code just below the hole, so that it is in reach.
    let top = Ram::anon(0x3fe0_0000, 0x20_0000);
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 1);
    m.slot(1, &top, 0).expect("slot");
    top.put(
        0x3fff_0000,
        &assemble(64, 0x3fff_0000, |a| {
            a.db(&[0x89, 0x05])?;
            // mov [rip + 0x20000 - 6], eax
            a.db(&(0x2_0000u32 - 6).to_le_bytes())?;
            kit::done(a)
        })?,
    );
    m.cpu().regs(|r| (r.rip, r.rax) = (0x3fff_0000, 7));
    let (_, log) = mmio(&mut m, 0x4000_0000);
    assert_eq!(log, "w4@10000:07000000");
    Ok(())
}

fn mmio_addressing_32() -> Outcome {
    let mut m = Machine::new(Mode::Protected, |a| {
        a.mov(ebx, MMIO as u32)?;
        a.mov(edi, 0x10)?;
        a.mov(dword_ptr(ebx + edi * 4 + 0x100), edi)?;
        a.mov(dword_ptr(edi * 8 + MMIO), edi)?;
        a.mov(dword_ptr(MMIO + 4), edi)?;
        a.mov(esi, ebx)?;
        a.mov(ebp, ebx)?;
        a.mov(dword_ptr(ebp - 0x10 + 0x18), edi)?;
        a.mov(byte_ptr(esi + edi), bl)?;
        kit::done(a)
    })?;
    let (_, log) = mmio(&mut m, MMIO);
    assert_eq!(
        log,
        "w4@140:10000000 w4@80:10000000 w4@4:10000000 w4@8:10000000 w1@10:00"
    );
    Ok(())
}

fn mmio_addressing_16() -> Outcome {
    // 640 KiB of memory; the hole begins at 0xa0000.
    let mut m = Machine::on(Ram::anon(0, 0xa_0000), Mode::Real, Irqchip::Split, 1);
    m.code(CODE, 16, |a| {
        a.mov(ax, 0xa000)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(bx, 0x100)?;
        a.mov(si, 0x20)?;
        a.mov(di, 0x30)?;
        a.mov(bp, 0x200)?;
        a.mov(word_ptr(bx + si), ax)?;
        a.mov(word_ptr(bx + di + 4), ax)?;
        a.mov(word_ptr(bp + si), ax)?;
        a.mov(word_ptr(bp + di), ax)?;
        a.mov(word_ptr(si), ax)?;
        a.mov(word_ptr(di + 0x1000), ax)?;
        a.mov(word_ptr(bp + 1), ax)?;
        a.mov(byte_ptr(0x8000), al)?;
        a.mov(word_ptr(bx), ax)?;
        a.mov(eax, dword_ptr(bx + 0x10))?;
        a.mov(ecx, 0x40)?;
        a.mov(dword_ptr(ecx * 4 + 0x10), ecx)?;
        // The offset wraps at 64 KiB.
        a.mov(bx, 0xfff0)?;
        a.mov(byte_ptr(bx + si), cl)?;
        a.mov(cx, 2)?;
        a.rep().movsw()?;
        kit::done(a)
    })?;
    let (_, log) = mmio(&mut m, 0xa_0000);
    assert_eq!(
        log,
        "w2@120:00a0 w2@134:00a0 w2@220:00a0 w2@230:00a0 w2@20:00a0 w2@1030:00a0 w2@201:00a0 w1@8000:00 w2@100:00a0 r4@110 \
         w4@110:40000000 w1@10:40 r2@20 w2@30:8192 r2@22 w2@32:a3b4"
    );
    Ok(())
}

fn mmio_crosses_a_page() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO + 0xffc)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(rax, qword_ptr(rbx))?;
        kit::result(a)?;
        a.shr(rax, 32)?;
        kit::result(a)?;
        a.mov(word_ptr(rbx + 3), ax)?;
        kit::done(a)
    })?;
    let (r, log) = mmio(&mut m, MMIO);
    assert_eq!(
        log,
        "w4@ffc:11223344 w4@1000:55667788 r4@ffc r4@1000 w1@fff:81 w1@1000:92"
    );
    assert_eq!(r, [0xf8e7_d6c5, 0xb4a3_9281]);
    Ok(())
}

fn mmio_crosses_into_memory() -> Outcome {
    // Memory ends at 2 MiB.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(ebx, 0x1f_fffe)?;
        a.mov(eax, 0x4433_2211)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let (r, log) = mmio(&mut m, 0x20_0000);
    assert_eq!(log, "w2@0:3344 r2@0");
    assert_eq!(r, [0x9281_2211]);
    assert_eq!(m.ram.get(0x1f_fffe, 2), [0x11, 0x22]);
    Ok(())
}

/// In-tree KVM is what is tested.
fn in_tree() -> bool {
    std::env::var("RKVM_MODULE").is_ok_and(|m| m == "kvm")
}

fn mmio_crosses_into_missing_memory() -> Outcome {
    // The device hears of its part once, after the memory behind it has taken its own.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(ebx, 0x3f_fffe)?;
        a.mov(eax, 0x4433_2211)?;
        a.mov(dword_ptr(rbx), eax)?;
        kit::done(a)
    })?;
    let more = Ram::anon(0x40_0000, 0x1000);
    m.slot(1, &more, 0).expect("slot");
    let protect = |prot| {
        // SAFETY: our own mapping, which nothing refers to meanwhile.
        assert_eq!(unsafe { libc::mprotect(more.at(0), 0x1000, prot) }, 0);
    };
    protect(libc::PROT_NONE);
    if in_tree() {
        return rkvm_l1::skip("it tells the device first");
    }
    match m.cpu().run() {
        Err(libc::EFAULT) | Ok(Exit::MemoryFault { .. }) => {}
        e => panic!("{e:x?}"),
    }
    protect(libc::PROT_READ | libc::PROT_WRITE);
    let (_, log) = mmio(&mut m, 0x3f_fffe);
    assert_eq!(log, "w2@0:1122");
    assert_eq!(more.get(0x40_0000, 2), [0x33, 0x44]);
    Ok(())
}

fn mmio_too_many_pieces() -> Outcome {
    // PUSHA over a page's end, unaligned: eight stores, one of them in two pieces. What cannot be told whole
    // is not told in part.
    let mut m = Machine::new(Mode::Protected, |a| {
        a.mov(esp, (MMIO + 0x100e) as u32)?;
        a.pushad()?;
        kit::done(a)
    })?;
    if in_tree() {
        return rkvm_l1::skip("it tells as much as it can");
    }
    for _ in 0..2 {
        match m.cpu().run() {
            Ok(Exit::Internal { suberror, .. }) => {
                assert_eq!(suberror, KVM_INTERNAL_ERROR_EMULATION);
            }
            e => panic!("{e:x?}"),
        }
    }
    Ok(())
}

fn mmio_at_the_offset_of_the_other_operand() -> Outcome {
    // What stage 2 refused is one of two operands, which have the same place in their pages.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, DATA + 0x100)?;
        a.mov(rsp, MMIO + 0x108)?;
        a.push(qword_ptr(rbx))?;
        a.pop(qword_ptr(rbx + 0x1000))?;
        a.mov(rsi, DATA + 0x100)?;
        a.mov(rdi, MMIO + 0x100)?;
        a.movsq()?;
        a.mov(rsi, MMIO + 0x100)?;
        a.mov(rdi, DATA + 0x2100)?;
        a.movsq()?;
        a.mov(rsp, kit::STACK)?;
        kit::done(a)
    })?;
    m.ram.put(DATA + 0x100, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let (_, log) = mmio(&mut m, MMIO);
    assert_eq!(
        log,
        "w8@100:0102030405060708 r8@100 w8@100:0102030405060708 r8@100"
    );
    for at in [DATA + 0x1100, DATA + 0x2100] {
        assert_eq!(m.ram.get(at, 8), pattern(MMIO + 0x100, 8));
    }
    Ok(())
}

fn mmio_goes_on_with_the_same_instruction() -> Outcome {
    // The guest's code is another when user space has answered: what was begun is finished.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().run(), Ok(Exit::Read { gpa: MMIO, len: 4 }));
    m.cpu().answer(&[1, 2, 3, 4]);
    // MOV EBX, [RBX]
    m.ram.put(CODE + 10, &[0x8b, 0x1b]);
    let (r, log) = mmio(&mut m, MMIO);
    assert_eq!((r, log.as_str()), (vec![0x0403_0201], ""));
    // And then it is the new one: with the same RIP, and no answer of before.
    m.cpu().regs(|r| r.rip = CODE + 10);
    assert_eq!(m.cpu().run(), Ok(Exit::Read { gpa: MMIO, len: 4 }));
    m.cpu().answer(&[5, 6, 7, 8]);
    // User space has other plans for RIP: the answer is forgotten, too.
    m.cpu().regs(|r| r.rip = CODE);
    let (_, log) = mmio(&mut m, MMIO);
    assert_eq!(log, "r4@0");
    assert_eq!(m.cpu().fd.get_regs()?.rbx, 0xb4a3_9281);
    Ok(())
}

fn mmio_rep_movs() -> Outcome {
    for (back, from_mmio) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut m = Machine::new(Mode::Long, |a| {
            if back {
                a.std()?;
            }
            let off = if back { 4 * 19 } else { 0 };
            let (d, i) = (DATA + off, MMIO + off);
            a.mov(rsi, if from_mmio { i } else { d })?;
            a.mov(rdi, if from_mmio { d } else { i })?;
            a.mov(ecx, 20)?;
            a.rep().movsd()?;
            a.mov(eax, ecx)?;
            kit::result(a)?;
            a.mov(eax, esi)?;
            kit::result(a)?;
            kit::done(a)
        })?;
        for i in 0..20 {
            m.ram.set32(DATA + 4 * i, 0x100 + i as u32);
        }
        let (r, log) = mmio(&mut m, MMIO);
        let order: Vec<u64> = if back {
            (0..20).rev().collect()
        } else {
            (0..20).collect()
        };
        let want: Vec<String> = order
            .iter()
            .map(|i| {
                if from_mmio {
                    format!("r4@{:x}", 4 * i)
                } else {
                    format!("w4@{:x}:{:02x}010000", 4 * i, i)
                }
            })
            .collect();
        assert_eq!(log, want.join(" "), "back {back} from {from_mmio}");
        assert_eq!(r[0], 0);
        if from_mmio {
            assert_eq!(m.ram.get(DATA, 80), pattern(MMIO, 80));
        }
    }
    Ok(())
}

/// Vector 14's record of the kit: the fault goes on at a label.
fn mmio_page_fault_at_the_other_operand() -> Outcome {
    // The destination's second page is read-only to the guest: #PF there, with what was moved counted.
    let mut m = Machine::new(Mode::Long, |a| {
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.mov(rsi, MMIO)?;
        a.mov(edi, 0x40_0000 - 8)?;
        a.mov(ecx, 4)?;
        a.rep().movsd()?;
        a.set_label(&mut after)?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        a.mov(eax, edi)?;
        kit::result(a)?;
        a.mov(eax, esi)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let more = Ram::anon(0x20_0000, 0x40_0000);
    m.slot(1, &more, 0).expect("slot");
    m.ram.set64(kit::PDS + 16, 0x40_00e5);
    let (r, log) = mmio(&mut m, MMIO);
    assert_eq!(r, [2, 0x40_0000, MMIO as u32 + 8]);
    assert!(log == "r4@0 r4@4" || log == "r4@0 r4@4 r4@8", "{log}");
    let f = m.frame();
    assert_eq!(
        (f[0], f[1], f[7]),
        (14, 3, 0x40_0000),
        "vector, error code, CR2"
    );
    assert_eq!(more.get(0x40_0000 - 8, 8), pattern(MMIO, 8));
    Ok(())
}

fn mmio_sets_accessed_and_dirty() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rsi, MMIO)?;
        a.mov(edi, 0x40_0000)?;
        a.movsd()?;
        kit::done(a)
    })?;
    let more = Ram::anon(0x20_0000, 0x40_0000);
    m.slot(1, &more, 0).expect("slot");
    m.ram.set64(kit::PDS + 16, 0x40_0087);
    m.ram.set64(kit::PDS + 8 * (MMIO >> 21), MMIO | 0x87);
    mmio(&mut m, MMIO);
    assert_eq!(m.ram.u64(kit::PDS + 16) & 0x60, 0x60, "the written page");
    assert_eq!(
        m.ram.u64(kit::PDS + 8 * (MMIO >> 21)) & 0x60,
        0x20,
        "the read page"
    );
    Ok(())
}

fn mmio_flags() -> Outcome {
    // Flags of arithmetic on MMIO: all six, against the same on a register.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        let forms: [(Code, Code); 5] = [
            (|a| a.add(ecx, dword_ptr(rbx)), |a| a.add(ecx, edx)),
            (|a| a.sub(ecx, dword_ptr(rbx)), |a| a.sub(ecx, edx)),
            (|a| a.adc(ecx, dword_ptr(rbx)), |a| a.adc(ecx, edx)),
            (|a| a.sbb(dword_ptr(rbx), ecx), |a| a.sbb(edx, ecx)),
            (|a| a.cmp(ecx, dword_ptr(rbx)), |a| a.cmp(ecx, edx)),
        ];
        for (io, register) in forms {
            for f in [io, register] {
                a.mov(edx, 0xb4a3_9281u32)?;
                a.mov(ecx, 0x5bcd_1270)?;
                a.stc()?;
                f(a)?;
                a.pushfq()?;
                a.pop(rax)?;
                kit::result(a)?;
            }
        }
        kit::done(a)
    })?;
    let (r, _) = mmio(&mut m, MMIO);
    for (i, p) in r.chunks(2).enumerate() {
        assert_eq!(p[0] & 0x8d5, p[1] & 0x8d5, "form {i}");
    }
    Ok(())
}

fn mmio_fetch() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rax, MMIO)?;
        a.jmp(rax)
    })?;
    match m.cpu().run() {
        Ok(Exit::Internal { suberror, .. }) => assert_eq!(suberror, KVM_INTERNAL_ERROR_EMULATION),
        e => panic!("{e:x?}"),
    }
    assert_eq!(m.cpu().fd.get_regs()?.rip, MMIO);
    Ok(())
}

fn unemulatable_on_mmio() -> Outcome {
    // An FPU state in MMIO: no emulator does that.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, MMIO)?;
        a.fbstp(tword_ptr(rbx))?;
        kit::done(a)
    })?;
    let rip = CODE + 10;
    match m.cpu().run() {
        Ok(Exit::Internal { suberror, data }) => {
            assert_eq!(suberror, KVM_INTERNAL_ERROR_EMULATION);
            // Flags, then the size and up to 15 bytes of the instruction.
            assert!(data.len() >= 3, "{data:x?}");
            assert_eq!(data[0] & 1, 1, "bytes are given");
            let bytes: Vec<u8> = data[1..3].iter().flat_map(|w| w.to_le_bytes()).collect();
            assert!((2..=15).contains(&bytes[0]), "{bytes:x?}");
            assert_eq!(bytes[1..3], [0xdf, 0x33], "{bytes:x?}");
        }
        e => panic!("{e:x?}"),
    }
    assert_eq!(m.cpu().fd.get_regs()?.rip, rip, "RIP is at the instruction");
    Ok(())
}

fn hlt_exits() -> Outcome {
    for mode in Mode::ALL {
        let mut m = Machine::with(mode, Irqchip::None, 1);
        m.code(CODE, mode.bits(), |a| {
            a.hlt()?;
            kit::done(a)
        })?;
        let start = m.cpu().fd.get_regs()?.rip;
        assert_eq!(m.cpu().run(), Ok(Exit::Hlt), "{mode:?}");
        assert_eq!(m.cpu().fd.get_regs()?.rip, start + 1);
        m.cpu().results();
    }
    Ok(())
}

fn triple_fault() -> Outcome {
    for mode in Mode::ALL {
        let mut m = Machine::new(mode, |a| {
            a.ud2()?;
            kit::done(a)
        })?;
        m.cpu().sregs(|s| s.idt.limit = 0);
        assert_eq!(m.cpu().run(), Ok(Exit::Shutdown), "{mode:?}");
    }
    Ok(())
}

/// Runs `f`, which is to fault, in long mode; gives the frame.
fn fault64(
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    prepare: impl FnOnce(&Machine),
) -> [u64; 8] {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.mov(ebx, 0)?;
        f(a)?;
        a.nop()?;
        a.set_label(&mut after)?;
        kit::done_after(a)
    })
    .expect("code");
    prepare(&m);
    m.cpu().results();
    m.frame()
}

fn exceptions_64() -> Outcome {
    let cases: [(&str, Code, u64, u64); 15] = [
        (
            "divide",
            |a| {
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                a.div(ebx)
            },
            0,
            0,
        ),
        ("int3", |a| a.int3(), 3, 0),
        ("ud2", |a| a.ud2(), 6, 0),
        (
            "device not available",
            |a| {
                a.mov(rax, cr0)?;
                a.or(rax, 8)?;
                a.mov(cr0, rax)?;
                a.fldz()
            },
            7,
            0,
        ),
        (
            "null selector",
            |a| {
                a.xor(eax, eax)?;
                a.mov(ss, eax)?;
                a.mov(eax, 0x1000)?;
                a.mov(ss, eax)
            },
            13,
            0x1000,
        ),
        (
            "selector past the table",
            |a| {
                a.mov(eax, 0x1000)?;
                a.mov(ds, eax)
            },
            13,
            0x1000,
        ),
        (
            "not present",
            |a| {
                a.mov(eax, 0x28)?;
                a.mov(dword_ptr(kit::GDT + 0x2c), 0x0f_1300)?;
                a.mov(ds, eax)
            },
            11,
            0x28,
        ),
        (
            "non-canonical",
            |a| {
                a.mov(rax, 1u64 << 63)?;
                a.mov(eax, dword_ptr(rax))
            },
            13,
            0,
        ),
        (
            "misaligned movaps",
            |a| a.movaps(xmm0, xmmword_ptr(DATA + 1)),
            13,
            0,
        ),
        (
            "int past the table",
            |a| {
                a.sidt(tbyte_ptr(DATA))?;
                a.mov(word_ptr(DATA), 0x2ff)?;
                a.lidt(tbyte_ptr(DATA))?;
                a.int(0x40)
            },
            13,
            0x202,
        ),
        (
            "rdmsr of nothing",
            |a| {
                a.mov(ecx, 0x4000_0fff)?;
                a.rdmsr()
            },
            13,
            0,
        ),
        (
            "wrmsr of nothing",
            |a| {
                a.mov(ecx, 0x4000_0fff)?;
                a.wrmsr()
            },
            13,
            0,
        ),
        (
            "reserved in CR4",
            |a| {
                a.mov(rax, cr4)?;
                a.bts(rax, 28)?;
                a.mov(cr4, rax)
            },
            13,
            0,
        ),
        (
            "ltr of data",
            |a| {
                a.mov(eax, 0x10)?;
                a.ltr(ax)
            },
            13,
            0x10,
        ),
        (
            "x87 error",
            |a| {
                a.fninit()?;
                a.mov(word_ptr(DATA), 0x37b)?;
                a.fldcw(word_ptr(DATA))?;
                a.fld1()?;
                a.fldz()?;
                a.fdivp(st1, st0)?;
                a.wait()
            },
            16,
            0,
        ),
    ];
    for (name, code, vector, error) in cases {
        let f = fault64(code, |_| ());
        assert_eq!((f[0], f[1]), (vector, error), "{name}");
    }
    Ok(())
}

fn exceptions_32() -> Outcome {
    let cases: [(&str, Code, u64, u64); 5] = [
        (
            "divide",
            |a| {
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                a.xor(ebx, ebx)?;
                a.div(ebx)
            },
            0,
            0,
        ),
        (
            "into",
            |a| {
                a.mov(eax, 0x7fff_ffff)?;
                a.add(eax, 1)?;
                a.into()
            },
            4,
            0,
        ),
        (
            "bound",
            |a| {
                a.mov(eax, 5)?;
                a.bound(eax, dword_ptr(DATA + 0x100))
            },
            5,
            0,
        ),
        ("ud2", |a| a.ud2(), 6, 0),
        ("int3", |a| a.int3(), 3, 0),
    ];
    for mode in [Mode::Protected, Mode::Paged, Mode::Pae] {
        for (name, code, vector, error) in cases {
            let mut m = Machine::new(mode, |a| {
                let mut after = a.create_label();
                kit::expect32(a, after)?;
                code(a)?;
                a.nop()?;
                a.set_label(&mut after)?;
                kit::done_after(a)
            })?;
            m.cpu().results();
            let f = m.frame();
            assert_eq!((f[0], f[1]), (vector, error), "{mode:?} {name}");
        }
    }
    Ok(())
}

fn page_fault_codes() -> Outcome {
    const AT: u64 = 0x40_0000;
    let read: Code = |a| a.mov(eax, dword_ptr(AT + 0x123));
    let write: Code = |a| a.mov(dword_ptr(AT + 0x123), eax);
    let fetch: Code = |a| {
        a.mov(eax, (AT + 0x123) as u32)?;
        a.jmp(rax)
    };
    let nx = 1 << 63;
    let cases: [(&str, Code, u64, u64); 6] = [
        ("absent, read", read, 0, 0),
        ("absent, write", write, 0, 2),
        ("absent, fetch", fetch, 0, 0x10),
        ("read-only, write", write, AT | 0x85, 3),
        ("no execute", fetch, AT | 0x87 | nx, 0x11),
        ("reserved bit", read, AT | 0x87 | 1 << 13, 9),
    ];
    for (name, code, pde, error) in cases {
        let f = fault64(code, |m| {
            m.cpus[0].sregs(|s| s.efer |= 1 << 11);
            m.ram.set64(kit::PDS + 16, pde);
        });
        // (TCG leaves the P bit out when a reserved bit is set.)
        let missing = if error == 9 { 1 } else { 0 };
        assert_eq!(
            (f[0], f[1] | missing, f[7]),
            (14, error, AT + 0x123),
            "{name}"
        );
    }
    // CR0.WP off: a supervisor may.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(dword_ptr(0x40_0000), eax)?;
        kit::done(a)
    })?;
    let more = Ram::anon(0x40_0000, 0x1000);
    m.slot(1, &more, 0).expect("slot");
    m.ram.set64(kit::PDS + 16, 0x40_0085);
    m.cpu().sregs(|s| s.cr0 &= !(1 << 16));
    m.cpu().results();
    Ok(())
}

/// Goes to ring 3 at `l`, with the stack at 0xd000.
fn to_user(a: &mut CodeAssembler, l: CodeLabel) -> Result<(), IcedError> {
    a.push(i32::from(kit::SEL_UDATA))?;
    a.push(0xd000)?;
    a.push(2)?;
    a.push(i32::from(kit::SEL_USER64))?;
    a.lea(rax, ptr(l))?;
    a.push(rax)?;
    a.iretq()
}

fn user_mode() -> Outcome {
    // Each of these is refused in ring 3.
    let cases: [(&str, Code, u64, u64); 7] = [
        ("cli", |a| a.cli(), 13, 0),
        ("hlt", |a| a.hlt(), 13, 0),
        ("out", |a| a.out(0x50, al), 13, 0),
        (
            "outs",
            |a| {
                a.mov(esi, DATA as u32)?;
                a.outsb()
            },
            13,
            0,
        ),
        ("mov cr3", |a| a.mov(rax, cr3), 13, 0),
        (
            "rdmsr",
            |a| {
                a.mov(ecx, 0x10)?;
                a.rdmsr()
            },
            13,
            0,
        ),
        ("int to ring 0's gate", |a| a.int(0x40), 13, 0x202),
    ];
    for (name, code, vector, error) in cases {
        let mut m = Machine::new(Mode::Long, |a| {
            let (mut user, mut after) = (a.create_label(), a.create_label());
            to_user(a, user)?;
            a.set_label(&mut user)?;
            kit::expect64(a, after)?;
            code(a)?;
            a.nop()?;
            a.set_label(&mut after)?;
            // Back in ring 3; a gate of ring 3 ends it.
            a.int(0x41)
        })?;
        let end = 0x1_8000;
        m.code(end, 64, kit::done)?;
        m.ram.put(
            kit::IDT + 16 * 0x41,
            &kit::gate(end, kit::SEL_CODE64, 0xee, true),
        );
        m.cpu().results();
        let f = m.frame();
        assert_eq!(
            (f[0], f[1], f[3], f[6]),
            (vector, error, kit::SEL_USER64.into(), kit::SEL_UDATA.into()),
            "{name}"
        );
    }
    Ok(())
}

fn syscall_sysret() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let (mut user, mut entry, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.lea(rax, ptr(entry))?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, 0xc000_0082u32)?;
        a.wrmsr()?;
        // STAR: SYSCALL's CS 0x08 (SS 0x10); SYSRET's CS 0x30 + 16 | 3, SS 0x30 + 8 | 3.
        kit::wrmsr(a, 0xc000_0081, 0x0033_0008_0000_0000)?;
        kit::wrmsr(a, 0xc000_0084, 0x200)?;
        a.xor(ebx, ebx)?;
        a.lea(rcx, ptr(user))?;
        a.mov(r11d, 0x202)?;
        a.sysretq()?;
        a.set_label(&mut user)?;
        a.inc(ebx)?;
        a.mov(ax, cs)?;
        a.mov(esi, eax)?;
        a.syscall()?;
        a.jmp(user)?;
        a.set_label(&mut entry)?;
        a.cmp(ebx, 3)?;
        a.je(end)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.pushfq()?;
        a.pop(rax)?;
        kit::result(a)?;
        a.mov(rax, r11)?;
        kit::result(a)?;
        a.movzx(eax, si)?;
        kit::result(a)?;
        a.xor(eax, eax)?;
        a.mov(ax, cs)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    // SYSCALL and SYSRET are a feature of EFER.
    m.cpu().sregs(|s| s.efer |= 1);
    let r = m.cpu().results();
    assert_eq!(r[0] & 0x200, 0, "SFMASK cleared IF");
    assert_eq!((r[1] & 0x200, r[2], r[3]), (0x200, 0x43, 8));
    Ok(())
}

fn interrupt_from_user_mode() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let (mut user, mut again) = (a.create_label(), a.create_label());
        kit::wrmsr(a, 0x1b, 0xfee0_0d00)?;
        kit::wrmsr(a, 0x80f, 0x1ff)?;
        a.mov(dword_ptr(kit::EOI_MODE), 2)?;
        a.mov(ebx, (kit::COUNTS + 4 * 0x40) as u32)?;
        // Pending, but interrupts are off until IRET to ring 3.
        kit::wrmsr(a, 0x83f, 0x40)?;
        a.push(i32::from(kit::SEL_UDATA))?;
        a.push(0xd000)?;
        a.push(0x202)?;
        a.push(i32::from(kit::SEL_USER64))?;
        a.lea(rax, ptr(user))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut user)?;
        a.set_label_after_nop(&mut again)?;
        a.cmp(dword_ptr(rbx), 1)?;
        a.jne(again)?;
        a.int(0x41)
    })?;
    let end = 0x1_8000;
    m.code(end, 64, kit::done)?;
    m.ram.put(
        kit::IDT + 16 * 0x41,
        &kit::gate(end, kit::SEL_CODE64, 0xee, true),
    );
    m.cpu().results();
    let f = m.frame();
    assert_eq!(
        (f[0], f[3], f[4] & 0x200),
        (0x40, kit::SEL_USER64.into(), 0x200)
    );
    Ok(())
}

trait LabelAfterNop {
    fn set_label_after_nop(&mut self, l: &mut CodeLabel) -> Result<(), IcedError>;
}

impl LabelAfterNop for CodeAssembler {
    /// Two labels may not stand at one instruction.
    fn set_label_after_nop(&mut self, l: &mut CodeLabel) -> Result<(), IcedError> {
        self.nop()?;
        self.set_label(l)
    }
}

fn real_mode_interrupts() -> Outcome {
    let mut m = Machine::new(Mode::Real, |a| {
        a.mov(ebx, 0)?;
        a.sti()?;
        a.int(0x21)?;
        a.int3()?;
        // Divide: the handler skips the two bytes of it.
        a.xor(cx, cx)?;
        a.div(cx)?;
        a.mov(eax, ebx)?;
        kit::result(a)?;
        a.pushf()?;
        a.pop(ax)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let handlers = [
        (0x21u64, 0x9000u64, 1),
        (3, 0x9100, 0x100),
        (0, 0x9200, 0x1_0000),
    ];
    for (vector, at, add) in handlers {
        m.ram.set32(4 * vector, at as u32);
        m.code(at, 16, |a| {
            a.add(ebx, add)?;
            if vector == 0 {
                a.mov(bp, sp)?;
                a.add(word_ptr(bp), 2)?;
            }
            a.iret()
        })?;
    }
    m.cpu().regs(|r| r.rbp = 0);
    let r = m.cpu().results();
    assert_eq!(r[0], 0x1_0101);
    assert_eq!(r[1] & 0x200, 0x200, "IRET gives IF back");
    Ok(())
}

/// From real mode through protected and PAE mode to long mode, as a kernel does it.
fn boot_path() -> Outcome {
    let mut m = Machine::with(Mode::Real, Irqchip::Split, 1);
    // Tables as in long mode.
    for (i, e) in kit::GDT_ENTRIES.iter().enumerate() {
        m.ram.set64(kit::GDT + 8 * i as u64, *e);
    }
    for i in 0..4 {
        m.ram.set64(kit::PDPT + 8 * i, kit::PDS + 0x1000 * i | 7);
    }
    for i in 0..2048 {
        m.ram.set64(kit::PDS + 8 * i, i << 21 | 0xe7);
    }
    m.ram.set64(kit::TABLES, kit::PDPT | 7);
    // GDTR's image.
    m.ram.put(0xc00, &[0x5f, 0, 0, 0x10, 0, 0]);
    let (code32, code64) = (0x1_2000u32, 0x1_3000u32);
    m.code(CODE, 16, |a| {
        a.cli()?;
        a.lgdt(fword_ptr(0xc00))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // jmp far 0x18:code32
        a.db(&[0x66, 0xea])?;
        a.db(&code32.to_le_bytes())?;
        a.db(&kit::SEL_CODE32.to_le_bytes())
    })?;
    m.code(code32.into(), 32, |a| {
        a.mov(eax, i32::from(kit::SEL_DATA))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, kit::STACK as u32)?;
        a.mov(eax, 32)?;
        kit::result(a)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, kit::TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        kit::result(a)?;
        a.db(&[0xea])?;
        a.db(&code64.to_le_bytes())?;
        a.db(&kit::SEL_CODE64.to_le_bytes())
    })?;
    m.code(code64.into(), 64, |a| {
        a.mov(rax, 0x4000_0000_0000_0000u64)?;
        a.shr(rax, 56)?;
        kit::result(a)?;
        a.mov(eax, i32::from(kit::SEL_TSS))?;
        a.mov(dword_ptr(kit::GDT + 0x34), 0x8900)?;
        a.ltr(ax)?;
        a.mov(eax, dword_ptr(kit::GDT + 0x34))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [32, 0x500, 0x40, 0x8b00]);
    let s = m.cpu().fd.get_sregs()?;
    assert_eq!(
        (s.efer, s.cs.l, s.cr0 & 0x8000_0001),
        (0x500, 1, 0x8000_0001)
    );
    Ok(())
}

/// Back from long mode to real mode.
fn leave_long_mode() -> Outcome {
    let compat = 0x1_2000u32;
    let real = 0x9000u32;
    let mut m = Machine::new(Mode::Long, |a| {
        a.push(i32::from(kit::SEL_CODE32))?;
        a.push(compat as i32)?;
        a.db(&[0x48, 0xcb])
    })?;
    m.code(compat.into(), 32, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        kit::result(a)?;
        a.and(eax, !0x100u32 as i32)?;
        a.wrmsr()?;
        a.mov(eax, cr4)?;
        a.and(eax, !0x20)?;
        a.mov(cr4, eax)?;
        // 16-bit code based at 0; then real mode.
        a.db(&[0xea])?;
        a.db(&real.to_le_bytes())?;
        a.db(&kit::SEL_CODE16.to_le_bytes())
    })?;
    m.code(real.into(), 16, |a| {
        a.mov(eax, cr0)?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        // jmp far 0x900:0x100
        a.db(&[0xea, 0x00, 0x01, 0x00, 0x09])
    })?;
    m.code(0x9100, 16, |a| {
        a.xor(eax, eax)?;
        a.mov(ax, cs)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [0x100, 0x900]);
    let s = m.cpu().fd.get_sregs()?;
    assert_eq!((s.cr0 & 1, s.efer, s.cs.base), (0, 0, 0x9000));
    Ok(())
}

/// EFER.LME without paging and PAE is a legal state; the guest and user space see it as it is.
fn long_mode_enable_alone() -> Outcome {
    let mut m = Machine::new(Mode::Real, |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        kit::result(a)?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.rdmsr()?;
        kit::result(a)?;
        // Protected mode and back changes CR0, not EFER.
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.and(al, 0xfe)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        kit::result(a)?;
        // An exit that the host handles with interrupts on.
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.rdmsr()?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [0, 0x100, 0x100, 0x100]);
    let s = m.cpu().fd.get_sregs()?;
    assert_eq!((s.efer, s.cr0 & 0x8000_0001, s.cr4), (0x100, 0, 0x20));
    // Without paging, LMA cannot be; LME set by user space is read back.
    m.cpu().sregs(|s| s.efer = 0);
    assert_eq!(m.cpu().fd.get_sregs()?.efer, 0);
    m.cpu().sregs(|s| s.efer = 0x100);
    assert_eq!(m.cpu().fd.get_sregs()?.efer, 0x100);
    Ok(())
}

fn control_registers() -> Outcome {
    let r = eax_of(Mode::Long, |a| {
        // CR0.TS by CLTS, LMSW and MOV.
        a.mov(rax, cr0)?;
        a.or(eax, 8)?;
        a.mov(cr0, rax)?;
        a.smsw(eax)?;
        a.and(eax, 0xf)?;
        kit::result(a)?;
        a.clts()?;
        a.mov(rax, cr0)?;
        a.and(eax, 0xf)?;
        kit::result(a)?;
        a.mov(eax, 0xb)?;
        a.lmsw(ax)?;
        a.mov(rax, cr0)?;
        a.and(eax, 0xf)?;
        kit::result(a)?;
        a.clts()?;
        a.mov(rax, 0x1234_5678_9abcu64)?;
        a.mov(cr2, rax)?;
        a.mov(rax, cr2)?;
        kit::result(a)?;
        a.mov(rax, cr3)?;
        kit::result(a)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr4)?;
        a.or(eax, 0x80)?;
        a.mov(cr4, rax)?;
        a.mov(rax, cr4)?;
        // (MCE may be there, whether asked for or not.)
        a.and(eax, !0x40)?;
        kit::result(a)
    });
    assert_eq!(r, [0xb, 3, 0xb, 0x5678_9abc, kit::TABLES as u32, 0x6a0]);
    Ok(())
}

fn control_register_faults() -> Outcome {
    let cases: [(&str, Code); 4] = [
        ("PG without PE", |a| {
            a.mov(eax, 0x8000_0010u32)?;
            a.mov(cr0, rax)
        }),
        ("NW without CD", |a| {
            a.mov(rax, cr0)?;
            a.or(eax, 0x2000_0000)?;
            a.mov(cr0, rax)
        }),
        ("paging off in long mode", |a| {
            a.mov(rax, cr0)?;
            a.btr(rax, 31)?;
            a.mov(cr0, rax)
        }),
        ("PAE off in long mode", |a| {
            a.mov(rax, cr4)?;
            a.btr(rax, 5)?;
            a.mov(cr4, rax)
        }),
    ];
    for (name, code) in cases {
        let f = fault64(code, |_| ());
        assert_eq!((f[0], f[1]), (13, 0), "{name}");
    }
    let f = fault64(|a| a.db(&[0x0f, 0x20, 0xc8]), |_| ());
    assert_eq!(f[0], 6, "there is no CR1");
    Ok(())
}

fn cr8_and_tpr() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(ebx, 0xfee0_0080u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        a.mov(dword_ptr(rbx), 0x57)?;
        a.mov(rax, cr8)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [0x90, 5]);
    assert_eq!(m.cpu().page().cr8, 5, "kvm_run.cr8");
    assert_eq!(m.cpu().fd.get_sregs()?.cr8, 5);
    Ok(())
}

fn descriptor_tables() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.sgdt(tbyte_ptr(DATA))?;
        a.sidt(tbyte_ptr(DATA + 16))?;
        a.mov(word_ptr(DATA + 32), 0xfff)?;
        a.mov(eax, 0x1234_5000)?;
        a.mov(qword_ptr(DATA + 34), rax)?;
        a.lidt(tbyte_ptr(DATA + 32))?;
        a.xor(eax, eax)?;
        a.lldt(ax)?;
        a.str(eax)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [kit::SEL_TSS.into()]);
    assert_eq!(m.ram.u64(DATA + 2), kit::GDT);
    assert_eq!(m.ram.u64(DATA + 18), kit::IDT);
    let s = m.cpu().fd.get_sregs()?;
    assert_eq!((s.idt.base, s.idt.limit), (0x1234_5000, 0xfff));
    Ok(())
}

fn xsetbv_faults() -> Outcome {
    let on: Code = |a| {
        a.mov(rax, cr4)?;
        a.or(eax, 1 << 18)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)
    };
    for (name, value, index) in [
        ("nothing", 0, 0),
        ("AVX without SSE", 5, 0),
        ("no such XCR", 1, 1),
        ("reserved", 0x8000_0001u32, 0),
    ] {
        let f = fault64(
            |a| {
                on(a)?;
                a.mov(eax, value)?;
                a.mov(ecx, index)?;
                a.xsetbv()
            },
            |_| (),
        );
        assert_eq!((f[0], f[1]), (13, 0), "{name}");
    }
    let f = fault64(
        |a| {
            a.xor(ecx, ecx)?;
            a.xsetbv()
        },
        |_| (),
    );
    // (TCG looks at the intercept first, so the hypervisor's #GP is seen there.)
    assert!(f[0] == 6 || f[0] == 13, "OSXSAVE is off");
    Ok(())
}

fn tsc_instructions() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        kit::wrmsr(a, 0xc000_0103, 0x77)?;
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        a.shl(rdx, 32)?;
        a.or(rbx, rdx)?;
        a.rdtscp()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.sub(rax, rbx)?;
        a.shr(rax, 32)?;
        kit::result(a)?;
        a.mov(eax, ecx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let c = cpuid(&m.kvm, 0);
    if leaf(&c, 0x8000_0001, 0).is_none_or(|l| l.edx >> 27 & 1 == 0) {
        return rkvm_l1::skip("RDTSCP");
    }
    assert_eq!(m.cpu().results(), [0, 0x77]);
    // CR4.TSD makes it the supervisor's.
    let r = eax_of(Mode::Long, |a| {
        a.mov(rax, cr4)?;
        a.or(eax, 4)?;
        a.mov(cr4, rax)?;
        a.rdtsc()?;
        a.mov(eax, 1)?;
        kit::result(a)
    });
    assert_eq!(r, [1]);
    Ok(())
}

fn absent_instructions() -> Outcome {
    let cases: [(&str, Code, &[u64]); 6] = [
        // A guest has no SVM and no VMX, and SMM is not entered.
        ("vmrun", |a| a.vmrun(), &[6, 13]),
        ("vmload", |a| a.vmload(), &[6, 13]),
        ("stgi", |a| a.stgi(), &[6, 13]),
        ("rsm", |a| a.rsm(), &[6]),
        ("vmxon", |a| a.vmxon(qword_ptr(DATA)), &[6]),
        (
            "rdpmc",
            |a| {
                a.mov(ecx, 0x1234)?;
                a.rdpmc()
            },
            &[13],
        ),
    ];
    for (name, code, vectors) in cases {
        let f = fault64(code, |m| {
            // No SVM for the guest, even where the hypervisor would give it.
            let mut c = cpuid(&m.kvm, 0);
            for e in c.as_mut_slice() {
                if e.function == 0x8000_0001 {
                    e.ecx &= !4;
                }
            }
            m.cpus[0].fd.set_cpuid2(&c).expect("KVM_SET_CPUID2");
        });
        assert!(vectors.contains(&f[0]), "{name}: vector {}", f[0]);
    }
    // These do nothing that the guest could see.
    let r = eax_of(Mode::Long, |a| {
        a.wbinvd()?;
        a.invd()?;
        a.pause()?;
        a.invlpg(byte_ptr(DATA))?;
        a.mov(eax, 1)?;
        kit::result(a)
    });
    assert_eq!(r, [1]);
    Ok(())
}

fn hypercall() -> Outcome {
    let r = eax_of(Mode::Long, |a| {
        a.mov(eax, 9999)?;
        a.vmmcall()?;
        kit::result(a)?;
        // The other vendor's is as good.
        a.mov(eax, 9999)?;
        a.vmcall()?;
        kit::result(a)
    });
    assert_eq!(r, [(-1000i32) as u32, (-1000i32) as u32], "-KVM_ENOSYS");
    Ok(())
}

fn debug_traps() -> Outcome {
    // A write watch on DATA: a trap after the instruction, DR6 says which.
    let mut m = Machine::new(Mode::Long, |a| {
        let mut after = a.create_label();
        kit::expect64(a, after)?;
        a.mov(eax, DATA as u32)?;
        a.mov(dr0, rax)?;
        a.mov(eax, 0x000d_0403)?;
        a.mov(dr7, rax)?;
        a.mov(dword_ptr(DATA), 1)?;
        a.nop()?;
        a.nop()?;
        a.set_label(&mut after)?;
        a.mov(rax, dr6)?;
        kit::result(a)?;
        a.mov(eax, dword_ptr(DATA))?;
        kit::result(a)?;
        kit::done(a)
    })?;
    let r = m.cpu().results();
    assert_eq!((r[0] & 0xf, r[1]), (1, 1));
    assert_eq!(m.frame()[0], 1);
    // Access to debug registers with GD set.
    let f = fault64(
        |a| {
            a.mov(eax, 0x2400)?;
            a.mov(dr7, rax)?;
            a.mov(rax, dr0)
        },
        |_| (),
    );
    assert_eq!(f[0], 1, "general detect");
    Ok(())
}

/// The guest single-steps itself over instructions that exit: one trap for each.
fn single_step() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.xor(ebx, ebx)?;
        a.popfq()?;
        a.nop()?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.out(0x50, al)?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100)?;
        a.popfq()?;
        kit::done(a)
    })?;
    let handler = 0x1_8000;
    m.code(handler, 64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.mov(ecx, dword_ptr(DATA))?;
        a.mov(dword_ptr(rcx * 4 + DATA + 16), eax)?;
        a.inc(dword_ptr(DATA))?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    })?;
    m.ram.put(
        kit::IDT + 16,
        &kit::gate(handler, kit::SEL_CODE64, 0x8e, true),
    );
    m.cpu().results_io();
    let n = m.ram.u32(DATA);
    let steps: Vec<u32> = (0..n.min(20))
        .map(|i| m.ram.u32(DATA + 16 + 4 * u64::from(i)) - CODE as u32)
        .collect();
    // After: nop, xor, cpuid, out, pushfq.
    let sizes = [1, 2, 2, 2, 1];
    let mut at = 1 + 7 + 2 + 1;
    let mut want = Vec::new();
    for s in sizes {
        at += s;
        want.push(at);
    }
    assert!(
        steps.len() >= want.len() && steps[..want.len()] == want[..],
        "{steps:x?}, wanted {want:x?}"
    );
    Ok(())
}

fn sse_state_of_two_vcpus() -> Outcome {
    let mut m = Machine::with(Mode::Long, Irqchip::Split, 2);
    for i in 0..2u64 {
        m.code(CODE + 0x1000 * i, 64, |a| {
            let mut again = a.create_label();
            a.mov(eax, 0x1000 * (i as i32 + 1))?;
            a.movd(xmm5, eax)?;
            a.mov(ecx, 20)?;
            a.set_label(&mut again)?;
            a.out(0x50, al)?;
            a.movd(eax, xmm5)?;
            a.inc(eax)?;
            a.movd(xmm5, eax)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            kit::result(a)?;
            kit::done(a)
        })?;
        m.cpus[i as usize].regs(|r| r.rip = CODE + 0x1000 * i);
    }
    let step = |c: &mut Cpu| c.run().expect("run");
    // By turns on one thread.
    for _ in 0..20 {
        for c in &mut m.cpus {
            assert!(matches!(step(c), Exit::Out { port: 0x50, .. }));
        }
    }
    assert_eq!(
        (m.cpus[0].results(), m.cpus[1].results()),
        (vec![0x1014], vec![0x2014])
    );
    Ok(())
}

fn far_memory() -> Outcome {
    // Memory at 64 GiB (where the guest's physical addresses reach so far), by a 1 GiB page.
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(rbx, 1u64 << 39)?;
        a.mov(eax, dword_ptr(rbx))?;
        kit::result(a)?;
        a.mov(dword_ptr(rbx + 0x1000), 0x99)?;
        kit::done(a)
    })?;
    let at = 0x8_0000_0000;
    let far = Ram::anon(at, 0x10_0000);
    m.slot(1, &far, 0).expect("slot");
    far.set32(at, 0x7777);
    // PML4 entry 1 -> a table at 0x30000 -> a directory at 0x31000 -> 2 MiB page.
    m.ram.set64(kit::TABLES + 8, 0x3_0007);
    m.ram.set64(0x3_0000, 0x3_1007);
    m.ram.set64(0x3_1000, at | 0xe7);
    assert_eq!(m.cpu().results(), [0x7777]);
    assert_eq!(far.u32(at + 0x1000), 0x99);
    Ok(())
}

/// A state that KVM_SET_SREGS takes and the processor does not.
fn invalid_guest_state() -> Outcome {
    let mut m = Machine::new(Mode::Long, kit::done)?;
    m.cpu().sregs(|s| s.cs.db = 1);
    for _ in 0..2 {
        match m.cpu().run() {
            Ok(Exit::FailEntry { .. }) => {}
            e => panic!("{e:x?}"),
        }
    }
    // Repaired, it runs. (TCG clobbers the state that it refuses.)
    m.cpu().start(Mode::Long, CODE, 0);
    m.cpu().results();
    Ok(())
}

fn self_modifying_code() -> Outcome {
    let mut m = Machine::new(Mode::Long, |a| {
        let mut place = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 3)?;
        a.set_label(&mut place)?;
        // add ebx, 1; its immediate grows each time round
        a.db(&[0x83, 0xc3, 0x01])?;
        a.lea(rax, ptr(place))?;
        a.inc(byte_ptr(rax + 2))?;
        a.dec(ecx)?;
        a.jnz(place)?;
        a.mov(eax, ebx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    assert_eq!(m.cpu().results(), [1 + 2 + 3]);
    Ok(())
}

fn cpuid_leaves() -> Outcome {
    // Beyond the last leaf; a leaf with sub-leaves; CPUID's OSXSAVE follows CR4.
    let mut m = Machine::new(Mode::Long, |a| {
        for cr4_bit in [false, true] {
            if cr4_bit {
                a.mov(rax, cr4)?;
                a.or(eax, 1 << 18)?;
                a.mov(cr4, rax)?;
            }
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(eax, ecx)?;
            kit::result(a)?;
        }
        a.mov(eax, 0xd)?;
        a.mov(ecx, 0)?;
        a.cpuid()?;
        a.mov(eax, ebx)?;
        kit::result(a)?;
        a.mov(rax, u64::MAX)?;
        a.mov(rbx, u64::MAX)?;
        a.mov(eax, 0)?;
        a.cpuid()?;
        a.shr(rbx, 32)?;
        a.mov(eax, ebx)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    if !has_xsave(&m.kvm) {
        return rkvm_l1::skip("XSAVE");
    }
    let r = m.cpu().results();
    assert_eq!((r[0] >> 27 & 1, r[1] >> 27 & 1), (0, 1), "OSXSAVE");
    assert_eq!(r[2], 0x240, "the size of XSAVE's area with XCR0 = 1");
    assert_eq!(r[3], 0, "CPUID clears the upper halves");
    Ok(())
}
