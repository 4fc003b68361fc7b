// SPDX-License-Identifier: GPL-2.0

//! What lies in a guest's memory before its own code: exception vectors and a page table; and how its code is written.
//!
//! A guest starts at EL1 with its MMU off and these registers: x28 is [`RESULT`], x27 [`DATA`], x26 [`STATE`], x25 the
//! number of its vCPU. The handlers use the stack and no other register: an exception is noted in [`STATE`] and goes on at
//! the address in [`FIXUP`] (cleared then), or is reported at [`FAULT`] when that is 0; an interrupt is counted and ended, and
//! a timer that caused it turned off, as are overflows of counters.

/// Guests' memory in the usual case, and where it lies.
pub const RAM: usize = 0x20_0000;
/// Where it lies.
pub const BASE: u64 = 0x4000_0000;
/// The vectors, for VBAR_EL1.
pub const VECTORS: u64 = BASE;
/// A level-1 table of 1 GiB blocks: the lowest is device memory, all others normal memory, each mapped to itself.
pub const TABLE: u64 = BASE + 0x1000;
/// See [`STATE`].
pub const FIXUP: u64 = STATE;
/// The last exception: where the next one goes on, then ESR, FAR, ELR, SPSR and a count of exceptions.
pub const STATE: u64 = BASE + 0x2000;
/// How often each interrupt came: 32 bits for each INTID below 1024, a page for each of 8 vCPUs.
pub const COUNTS: u64 = BASE + 0x4000;
/// The first vCPU's stack starts here and goes down, the next one's 1 KiB below.
pub const STACK: u64 = BASE + 0x1_0000;
/// Where guests' code goes.
pub const CODE: u64 = BASE + 0x1_0000;
/// For the tests' data.
pub const DATA: u64 = BASE + 0x2_0000;

/// Results are written here, 64 bits each.
pub const RESULT: u64 = 0x1000_0000;
/// The guest has finished.
pub const DONE: u64 = RESULT + 8;
/// An exception that no one expected: its ESR_EL1 is written here.
pub const FAULT: u64 = RESULT + 16;
/// No memory and no device of the kit's here: accesses go to user space.
pub const MMIO: u64 = 0x1001_0000;
/// The distributor.
pub const GICD: u64 = 0x0800_0000;
/// The redistributors, 128 KiB each.
pub const GICR: u64 = 0x080a_0000;

/// The virtual timer's interrupt.
pub const VTIMER: u32 = 27;
/// The physical timer's.
pub const PTIMER: u32 = 30;
/// The PMU's, where a test gives it this one.
pub const PMU: u32 = 23;

/// A guest's code, as the compiler's assembler has it: lines, position-independent; labels are numbers below 70.
#[macro_export]
macro_rules! guest {
    ($($line:expr),+ $(,)?) => {{
        let (begin, end): (*const u8, *const u8);
        // SAFETY: The code is data here; its two addresses are computed, and nothing else happens.
        unsafe {
            core::arch::asm!(
                ".pushsection .rodata.guest, \"a\"",
                ".balign 8",
                "77:",
                $($line,)+
                "78:",
                ".popsection",
                "adrp {begin}, 77b",
                "add {begin}, {begin}, :lo12:77b",
                "adrp {end}, 78b",
                "add {end}, {end}, :lo12:78b",
                begin = out(reg) begin,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
            core::slice::from_raw_parts(begin, end.offset_from(begin) as usize)
        }
    }};
}

/// Writes a register as a result.
#[macro_export]
macro_rules! result {
    ($reg:literal) => {
        concat!("str ", $reg, ", [x28]")
    };
}

/// Says that the guest is done, for good. Uses label 69.
#[macro_export]
macro_rules! done {
    () => {
        "69: str xzr, [x28, #8]\nb 69b"
    };
}

/// Has the next exception go on at a label. Uses x29.
#[macro_export]
macro_rules! expect {
    ($label:literal) => {
        concat!("adr x29, ", $label, "\nstr x29, [x26]")
    };
}

/// Turns the GIC on: distributor, this vCPU's redistributor with all private interrupts, CPU interface. Uses x0 to x3.
#[macro_export]
macro_rules! gic_on {
    () => {
        "mov x0, #0x08000000
         mov w1, #0x12
         str w1, [x0]
         mov x1, #0x080a0000
         add x1, x1, x25, lsl #17
         str wzr, [x1, #0x14]
         add x1, x1, #0x10000
         mov w3, #-1
         str w3, [x1, #0x80]
         str w3, [x1, #0x100]
         mov x3, #0xf8
         msr icc_pmr_el1, x3
         mov x3, #1
         msr icc_igrpen1_el1, x3
         isb"
    };
}

/// Turns the MMU on with the kit's table. Uses x0.
#[macro_export]
macro_rules! mmu_on {
    () => {
        "mov x0, #0x40000000
         add x0, x0, #0x1000
         msr ttbr0_el1, x0
         mov x0, #0x04ff
         msr mair_el1, x0
         mov x0, #0x3519
         movk x0, #0x0080, lsl #16
         movk x0, #0x2, lsl #32
         msr tcr_el1, x0
         isb
         tlbi vmalle1
         dsb nsh
         isb
         mrs x0, sctlr_el1
         orr x0, x0, #1
         orr x0, x0, #4
         bic x0, x0, #2
         msr sctlr_el1, x0
         isb"
    };
}

/// The vectors (Arm ARM D1.3.1.4): 16 of 128 bytes each, and what they branch to.
pub fn vectors() -> &'static [u8] {
    guest![
        // EL1 with SP_EL0: nobody uses it; as the others.
        "b 1f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        // EL1
        "b 1f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        // EL0
        "b 1f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 2f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        // EL0 in AArch32, which there is not.
        "b 1f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        "b 1f",
        ".balign 128",
        // An exception.
        "1:",
        "stp x0, x1, [sp, #-16]!",
        "mov x0, #0x40000000",
        "add x0, x0, #0x2000",
        "mrs x1, esr_el1",
        "str x1, [x0, #8]",
        "mrs x1, far_el1",
        "str x1, [x0, #16]",
        "mrs x1, elr_el1",
        "str x1, [x0, #24]",
        "mrs x1, spsr_el1",
        "str x1, [x0, #32]",
        "ldr x1, [x0, #40]",
        "add x1, x1, #1",
        "str x1, [x0, #40]",
        "ldr x1, [x0]",
        "cbz x1, 3f",
        "str xzr, [x0]",
        "msr elr_el1, x1",
        "ldp x0, x1, [sp], #16",
        "eret",
        "3:",
        "ldr x1, [x0, #8]",
        "mov x0, #0x10000000",
        "4:",
        "str x1, [x0, #16]",
        "b 4b",
        // An interrupt.
        "2:",
        "stp x0, x1, [sp, #-16]!",
        "stp x2, x3, [sp, #-16]!",
        "mrs x0, icc_iar1_el1",
        "and x0, x0, #0x3ff",
        "mrs x1, mpidr_el1",
        "and x1, x1, #7",
        "mov x2, #0x40000000",
        "add x2, x2, #0x4000",
        "add x2, x2, x1, lsl #12",
        "ldr w1, [x2, x0, lsl #2]",
        "add w1, w1, #1",
        "str w1, [x2, x0, lsl #2]",
        "cmp x0, #1020",
        "b.hs 5f",
        "cmp x0, #27",
        "b.ne 6f",
        "msr cntv_ctl_el0, xzr",
        "6: cmp x0, #30",
        "b.ne 7f",
        "msr cntp_ctl_el0, xzr",
        "7: cmp x0, #23",
        "b.ne 8f",
        "mov w1, #-1",
        "msr pmovsclr_el0, x1",
        "8: isb",
        "msr icc_eoir1_el1, x0",
        "5:",
        "ldp x2, x3, [sp], #16",
        "ldp x0, x1, [sp], #16",
        "eret",
    ]
}

/// The table of [`TABLE`].
pub fn table() -> Vec<u8> {
    // Access flag, inner shareable, block; attribute 0 is normal memory, 1 is device memory (MAIR_EL1: 0x04ff).
    const NORMAL: u64 = 1 << 10 | 3 << 8 | 1;
    const DEVICE: u64 = 1 << 54 | 1 << 53 | 1 << 10 | 1 << 2 | 1;
    (0..512u64)
        .flat_map(|i| (i << 30 | if i == 0 { DEVICE } else { NORMAL }).to_le_bytes())
        .collect()
}
