// SPDX-License-Identifier: GPL-2.0

//! What lies in a guest's memory before its own code: descriptor tables, page tables, exception handlers.
//!
//! The handlers count each vector and keep the last frame, so that a guest need not have handlers of its own:
//! an exception goes on at the address in [`FIXUP`] (cleared then), or is reported on port [`PORT_FAULT`] when that is 0; an interrupt
//! (vector 32 and up) is ended as [`EOI_MODE`] says.

use iced_x86::code_asm::*;
use iced_x86::IcedError;

/// The descriptor table: see [`selectors`](SEL_CODE64).
pub const GDT: u64 = 0x1000;
/// 104 bytes.
pub const TSS: u64 = 0x1800;
/// 256 gates.
pub const IDT: u64 = 0x2000;
/// The last frame, as eight 64-bit words: vector, error code, RIP, CS, RFLAGS, RSP, SS (32-bit: garbage), CR2.
pub const FRAME: u64 = 0x3000;
/// Where the next exception goes on; 0: nowhere.
pub const FIXUP: u64 = 0x3080;
/// 0: no EOI; 1: xAPIC; 2: x2APIC.
pub const EOI_MODE: u64 = 0x3088;
/// How many vectors were logged.
pub const LOGGED: u64 = 0x3090;
/// A count for each vector, 32 bits wide.
pub const COUNTS: u64 = 0x3400;
/// The vectors in the order they came, 2048 bytes, then again from the start.
pub const LOG: u64 = 0x3800;
const STUBS: u64 = 0x4000;
/// A page for real-mode start-up code: SIPI vector 5.
pub const TRAMPOLINE: u64 = 0x5000;
/// The top-level page table: PML4, or the page directory without PAE.
pub const TABLES: u64 = 0x6000;
/// PAE: four entries; long mode: 512.
pub const PDPT: u64 = 0x7000;
/// Page directories of the lowest 4 GiB, in 2 MiB pages.
pub const PDS: u64 = 0x8000;
/// The first CPU's stack starts here and goes down, the next one's 1 KiB below.
pub const STACK: u64 = 0xfff0;
/// Where guests' code goes.
pub const CODE: u64 = 0x1_0000;
/// For the tests' data.
pub const DATA: u64 = 0x2_0000;
/// Guests' memory in the usual case.
pub const RAM: usize = 0x20_0000;
/// No memory here, in reach of 32-bit code: accesses go to user space.
pub const MMIO: u64 = 0xd000_0000;

/// Results are written here, 32 bits each.
pub const PORT_RESULT: u16 = 0xe0;
/// The guest has finished.
pub const PORT_DONE: u16 = 0xe4;
/// An exception that no one expected.
pub const PORT_FAULT: u16 = 0xe8;

/// 64-bit code
pub const SEL_CODE64: u16 = 0x08;
/// flat data
pub const SEL_DATA: u16 = 0x10;
/// 32-bit code
pub const SEL_CODE32: u16 = 0x18;
/// 16-bit code
pub const SEL_CODE16: u16 = 0x20;
/// task state
pub const SEL_TSS: u16 = 0x30;
/// 64-bit code, ring 3
pub const SEL_USER64: u16 = 0x43;
/// data, ring 3
pub const SEL_UDATA: u16 = 0x4b;
/// data of 4 KiB, expanding up from [`DATA`]
pub const SEL_SMALL: u16 = 0x50;
/// 32-bit code, ring 3
pub const SEL_USER32: u16 = 0x5b;

/// The table itself.
pub const GDT_ENTRIES: [u64; 12] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x000f_9b00_0000_ffff,
    0,
    0x0000_8b00_1800_0067,
    0,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x0040_9302_0000_0fff,
    0x00cf_fb00_0000_ffff,
];

/// Exceptions with an error code.
pub fn has_error(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The gates and handlers, as `(address, bytes)`.
pub fn handlers(long: bool) -> Result<Vec<(u64, Vec<u8>)>, IcedError> {
    let mut a = CodeAssembler::new(if long { 64 } else { 32 })?;
    let mut common = a.create_label();
    let mut stubs = Vec::new();
    for v in 0..=255u8 {
        let mut l = a.create_label();
        a.set_label(&mut l)?;
        stubs.push(l);
        if !has_error(v) {
            a.push(0)?;
        }
        a.push(i32::from(v))?;
        a.jmp(common)?;
    }
    a.set_label(&mut common)?;
    let (mut not_mine, mut no_fixup, mut eoi, mut x2, mut out) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    if long {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.mov(eax, dword_ptr(rsp + 24))?;
        a.lock().inc(dword_ptr(rax * 4 + COUNTS))?;
        a.mov(ecx, 1)?;
        a.lock().xadd(dword_ptr(LOGGED), ecx)?;
        a.and(ecx, 0x7ff)?;
        a.mov(byte_ptr(rcx + LOG), al)?;
        for i in 0..7 {
            a.mov(rcx, qword_ptr(rsp + 24 + 8 * i))?;
            a.mov(qword_ptr(FRAME + 8 * i as u64), rcx)?;
        }
        a.mov(rcx, cr2)?;
        a.mov(qword_ptr(FRAME + 56), rcx)?;
    } else {
        a.push(eax)?;
        a.push(ecx)?;
        a.push(edx)?;
        a.mov(eax, dword_ptr(esp + 12))?;
        a.lock().inc(dword_ptr(eax * 4 + COUNTS))?;
        a.mov(ecx, 1)?;
        a.lock().xadd(dword_ptr(LOGGED), ecx)?;
        a.and(ecx, 0x7ff)?;
        a.mov(byte_ptr(ecx + LOG), al)?;
        for i in 0..7 {
            a.mov(ecx, dword_ptr(esp + 12 + 4 * i))?;
            a.mov(dword_ptr(FRAME + 8 * i as u64), ecx)?;
        }
        a.mov(ecx, cr2)?;
        a.mov(dword_ptr(FRAME + 56), ecx)?;
    }
    a.cmp(eax, 32)?;
    a.jae(eoi)?;
    a.cmp(eax, 2)?;
    a.je(out)?;
    a.mov(ecx, dword_ptr(FIXUP))?;
    a.test(ecx, ecx)?;
    a.jz(no_fixup)?;
    if long {
        a.mov(qword_ptr(rsp + 40), rcx)?;
    } else {
        a.mov(dword_ptr(esp + 20), ecx)?;
    }
    a.mov(dword_ptr(FIXUP), 0)?;
    a.jmp(out)?;
    a.set_label(&mut no_fixup)?;
    a.set_label_or_nop(&mut not_mine)?;
    a.out(i32::from(PORT_FAULT), al)?;
    a.jmp(not_mine)?;
    a.set_label(&mut eoi)?;
    a.mov(eax, dword_ptr(EOI_MODE))?;
    a.cmp(eax, 1)?;
    a.jb(out)?;
    a.ja(x2)?;
    a.mov(ecx, 0xfee0_00b0u32)?;
    a.xor(edx, edx)?;
    if long {
        a.mov(dword_ptr(rcx), edx)?;
    } else {
        a.mov(dword_ptr(ecx), edx)?;
    }
    a.jmp(out)?;
    a.set_label(&mut x2)?;
    a.mov(ecx, 0x80b)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut out)?;
    if long {
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.add(rsp, 16)?;
        a.iretq()?;
    } else {
        a.pop(edx)?;
        a.pop(ecx)?;
        a.pop(eax)?;
        a.add(esp, 8)?;
        a.iretd()?;
    }
    let r = a.assemble_options(
        STUBS,
        iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
    )?;
    let sel = if long { SEL_CODE64 } else { SEL_CODE32 };
    let mut idt = Vec::new();
    for l in &stubs {
        idt.extend(gate(r.label_ip(l)?, sel, 0x8e, long));
    }
    let code = r.inner.code_buffer;
    assert!(
        code.len() <= (TRAMPOLINE - STUBS) as usize,
        "handlers: {:#x} bytes",
        code.len()
    );
    Ok(vec![(IDT, idt), (STUBS, code)])
}

/// An interrupt gate.
pub fn gate(ip: u64, selector: u16, attributes: u8, long: bool) -> Vec<u8> {
    let low = (ip & 0xffff)
        | u64::from(selector) << 16
        | u64::from(attributes) << 40
        | (ip & 0xffff_0000) << 32;
    let mut g = low.to_le_bytes().to_vec();
    if long {
        g.extend((ip >> 32).to_le_bytes());
    }
    g
}

trait LabelOrNop {
    fn set_label_or_nop(&mut self, l: &mut CodeLabel) -> Result<(), IcedError>;
}

impl LabelOrNop for CodeAssembler {
    /// Two labels may not stand at one instruction, so the second gets a NOP between.
    fn set_label_or_nop(&mut self, l: &mut CodeLabel) -> Result<(), IcedError> {
        self.nop()?;
        self.set_label(l)
    }
}

/// What the code of a guest begins with that spins without an exit. Bochs' SVM does not interrupt one whose IF is 0
/// (Documentation/lab.md), and its host hangs with it: there it is 1. No interrupts come.
pub fn spins(a: &mut CodeAssembler) -> Result<(), IcedError> {
    if std::env::var("RKVM_FAMILY").is_ok_and(|f| f == "svm-bochs") {
        a.sti()?;
    }
    Ok(())
}

/// Writes the value of EAX as a result.
pub fn result(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(i32::from(PORT_RESULT), eax)
}

/// Says that the guest is done, for good.
pub fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.out(i32::from(PORT_DONE), al)?;
    a.jmp(again)
}

/// The same behind a label.
pub fn done_after(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.nop()?;
    done(a)
}

/// Has the next exception go on at `l` (long mode). RAX is lost.
pub fn expect64(a: &mut CodeAssembler, l: CodeLabel) -> Result<(), IcedError> {
    a.lea(rax, ptr(l))?;
    a.mov(qword_ptr(FIXUP), rax)
}

/// Has the next exception go on at `l` (protected mode). EAX is lost.
pub fn expect32(a: &mut CodeAssembler, l: CodeLabel) -> Result<(), IcedError> {
    let mut setup = a.create_label();
    a.call(setup)?;
    a.jmp(l)?;
    a.set_label(&mut setup)?;
    a.pop(eax)?;
    a.mov(dword_ptr(FIXUP), eax)
}

/// Writes the counts of `vector` as a result.
pub fn count(a: &mut CodeAssembler, vector: u8) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(COUNTS + 4 * u64::from(vector)))?;
    result(a)
}

/// Writes an MSR (any mode). EAX, ECX and EDX are lost.
pub fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, (value & 0xffff_ffff) as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// Reads an MSR and writes both halves as results, the low one first.
pub fn rdmsr(a: &mut CodeAssembler, msr: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.rdmsr()?;
    result(a)?;
    a.mov(eax, edx)?;
    result(a)
}
