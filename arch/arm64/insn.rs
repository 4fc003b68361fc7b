// SPDX-License-Identifier: GPL-2.0

//! Privileged instructions and what C has to do, one function each.
//!
//! Safe where no argument can break memory safety: registers of EL1 mean nothing to the host, which
//! runs at EL2 (VHE), and the stage-2 registers act on the guest only. Registers that are the host's
//! too are written by pairs of functions that put back what they found.
//!
//! Arm ARM (DDI 0487) D24. Names are given by their encoding (op0, op1, CRn, CRm, op2), as the
//! assembler knows them only for newer architectures than the kernel is compiled for.

use super::errata;
use super::model::{
    errata::Workarounds,
    harden,
    midr::Midr,
    smccc::fid,
    sve::Layout,
    sysreg::Sysreg,
    vgic::{CpuIf, ListRegs, LrConfig},
};
use crate::bindings as rb;
use core::arch::asm;
use kernel::{error::to_result, prelude::*};

/// Reads a register: `mrs!("S3_0_C1_C0_0")`.
macro_rules! mrs {
    ($name:literal) => {{
        let v: u64;
        // SAFETY: Reads a register that exists wherever this is reached; no memory is touched.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) v, options(nomem, nostack, preserves_flags)) };
        v
    }};
}

/// Writes a register. Why it may be written is said where it is.
macro_rules! msr {
    ($name:literal, $v:expr) => {{
        let v: u64 = $v;
        // SAFETY: See this file's head; each use is of the guest's registers, or puts back the host's.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) v, options(nostack, preserves_flags)) };
    }};
}

/// Reads debug register `crm` of the file `op2`: `mrs_debug!("3", "4")` is DBGBVR3_EL1.
macro_rules! mrs_debug {
    ($crm:literal, $op2:literal) => {{
        let v: u64;
        // SAFETY: As `mrs`.
        unsafe { asm!(concat!("mrs {}, S2_0_C0_C", $crm, "_", $op2), out(reg) v, options(nomem, nostack, preserves_flags)) };
        v
    }};
}

/// Writes one.
macro_rules! msr_debug {
    ($crm:literal, $op2:literal, $v:expr) => {{
        let v: u64 = $v;
        // SAFETY: As `msr`: `debug` puts the host's back.
        unsafe { asm!(concat!("msr S2_0_C0_C", $crm, "_", $op2, ", {}"), in(reg) v, options(nostack, preserves_flags)) };
    }};
}

/// What has been written takes effect.
#[inline]
pub(crate) fn isb() {
    // SAFETY: A barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

mod controls;
mod debug;
mod el1;
mod pmu;

pub(crate) use controls::{GuestControls, HostControls};
pub(crate) use debug::Debug;
pub(crate) use el1::{dbgvcr, load_dbgvcr, Banked, El1, El1Later, HostEl0};
pub(crate) use pmu::{count_el0, pmuserenr, set_pmuserenr};

/// HCR_EL2: while a guest is loaded, VSE tells that an SError waits for it.
#[inline]
pub(crate) fn hcr() -> u64 {
    mrs!("S3_4_C1_C1_0")
}

/// The syndrome of a virtual SError, and what a guest's ESB has deferred: VSESR_EL2 and VDISR_EL2
/// (FEAT_RAS). The host has no use for them.
#[inline]
pub(crate) fn load_ras(vsesr: u64, vdisr: u64) {
    msr!("S3_4_C5_C2_3", vsesr);
    msr!("S3_4_C12_C1_1", vdisr);
}

/// VDISR_EL2
#[inline]
pub(crate) fn vdisr() -> u64 {
    mrs!("S3_4_C12_C1_1")
}

/// Drops all translations of the VMID in VTTBR_EL2, on all CPUs. A guest is loaded.
#[inline]
pub(crate) fn flush_vmid() {
    // SAFETY: Only drops what can be walked again.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi vmalls12e1is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        )
    };
    repeat_tlbi();
}

/// Where that may not have been all: once another one is complete, so is the first.
#[inline]
fn repeat_tlbi() {
    if errata::need(Workarounds::REPEAT_TLBI) {
        // SAFETY: Only drops what can be walked again.
        unsafe {
            asm!(
                "tlbi vale1is, xzr",
                "dsb ish",
                "isb",
                options(nostack, preserves_flags)
            )
        };
    }
}

/// Before a write of HCR_EL2.
#[inline]
fn hcr_barrier(w: Workarounds) {
    if w.has(Workarounds::HCR_BARRIER) {
        // SAFETY: A barrier.
        unsafe { asm!("dsb nsh", options(nostack, preserves_flags)) };
    }
}

/// Before and after PAR_EL1 is read.
#[inline]
pub(crate) fn par_barrier(w: Workarounds) {
    if w.has(Workarounds::PAR_BARRIER) {
        // SAFETY: A barrier.
        unsafe { asm!("dmb sy", options(nostack, preserves_flags)) };
    }
}

/// Drops all translations of all VMIDs, on all CPUs.
pub(crate) fn flush_all_vmids() {
    // SAFETY: Only drops what can be walked again.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi alle1is",
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        )
    };
    repeat_tlbi();
}

/// Drops the translations and fetched instructions of the VMID in VTTBR_EL2 on this CPU.
#[inline]
pub(crate) fn flush_vmid_here() {
    // SAFETY: As above.
    unsafe {
        asm!(
            "dsb nshst",
            "tlbi vmalls12e1",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        )
    };
}

/// PAR_EL1 after a translation of `va` by the guest's stage 1, as EL1 reads. A guest is loaded.
#[inline]
pub(crate) fn translate_el1(va: u64) -> u64 {
    let w = errata::needed();
    par_barrier(w);
    let par = mrs!("S3_0_C7_C4_0");
    par_barrier(w);
    // SAFETY: Translates an address; the result is in PAR_EL1, which is put back.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack, preserves_flags)) };
    par_barrier(w);
    let result = mrs!("S3_0_C7_C4_0");
    par_barrier(w);
    msr!("S3_0_C7_C4_0", par);
    result
}

/// The virtual timer of a guest.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Timer {
    /// CNTV_CTL_EL0
    pub(crate) ctl: u64,
    /// CNTV_CVAL_EL0
    pub(crate) cval: u64,
}

impl Timer {
    /// Hands it to the guest.
    #[inline]
    pub(crate) fn load(&self) {
        msr!("S3_5_C14_C3_2", self.cval);
        isb();
        msr!("S3_5_C14_C3_1", self.ctl);
    }

    /// Takes it back, and stops it: its line falls.
    #[inline]
    pub(crate) fn save(&mut self) {
        self.ctl = mrs!("S3_5_C14_C3_1");
        self.cval = mrs!("S3_5_C14_C3_2");
        msr!("S3_5_C14_C3_1", 0);
        isb();
    }
}

/// The counter that all timers compare with (CNTPCT_EL0).
#[inline]
pub(crate) fn counter() -> u64 {
    isb();
    mrs!("S3_3_C14_C0_1")
}

/// Its frequency, in Hz (CNTFRQ_EL0).
#[inline]
pub(crate) fn counter_frequency() -> u64 {
    mrs!("S3_3_C14_C0_0")
}

/// MIDR_EL1
pub(crate) fn midr() -> u64 {
    mrs!("S3_0_C0_C0_0")
}

/// MPIDR_EL1 of this CPU
pub(crate) fn mpidr() -> u64 {
    mrs!("S3_0_C0_C0_5")
}

/// REVIDR_EL1
pub(crate) fn revidr() -> u64 {
    mrs!("S3_0_C0_C0_6")
}

/// AIDR_EL1
pub(crate) fn aidr() -> u64 {
    mrs!("S3_1_C0_C0_7")
}

/// ACTLR_EL1
pub(crate) fn actlr() -> u64 {
    mrs!("S3_0_C1_C0_1")
}

/// DBGAUTHSTATUS_EL1
pub(crate) fn debug_auth() -> u64 {
    mrs!("S2_0_C7_C14_6")
}

/// Vector lengths of this CPU's SVE, which it has: bit `n` is `n` + 1 quadwords.
pub(crate) fn sve_lengths() -> u16 {
    // SAFETY: The helper takes the vector registers from user space while it looks, with IRQs off.
    unsafe { rb::rkvm_arm64_sve_lengths() }
}

/// Random bits.
pub(crate) fn random() -> [u64; 3] {
    let mut words = [0; 3];
    // SAFETY: Fills so many words.
    unsafe { rb::rkvm_arm64_random(words.as_mut_ptr(), words.len()) };
    words
}

/// How long this thread has wanted to run and could not, in ns.
pub(crate) fn run_delay() -> u64 {
    // SAFETY: Reads a word of the current task.
    unsafe { rb::rkvm_arm64_run_delay() }
}

/// The time since the epoch, in ns, and the counter (CNTPCT_EL0) then; `None` if the host's clock does
/// not run by it.
pub(crate) fn clock() -> Option<(u64, u64)> {
    let (mut ns, mut count) = (0, 0);
    // SAFETY: Fills both.
    unsafe { rb::rkvm_arm64_clock(&mut ns, &mut count) }.then_some((ns, count))
}

/// CPTR_EL2's form and HCR_EL2 show a kernel at EL2 with VHE.
pub(crate) fn in_hyp() -> bool {
    // SAFETY: Reads CurrentEL, and notes VBAR.
    unsafe { rb::rkvm_arm64_in_hyp() }
}

/// The kernel's view of an ID register, the same on all CPUs.
pub(crate) fn ftr(r: Sysreg) -> u64 {
    // The kernel's numbers have the fields at 5 bits more (asm/sysreg.h: sys_reg).
    // SAFETY: A look-up; unknown registers make the kernel warn, so callers name known ones.
    unsafe { rb::rkvm_arm64_ftr(u32::from(r.bits()) << 5) }
}

/// Interrupts that the host has for virtualization.
///
/// # Errors
/// `ENODEV`: not all of them.
pub(crate) fn find_irqs(irqs: &mut rb::rkvm_arm64_irqs) -> Result {
    // SAFETY: Reads the device tree, fills the structure.
    to_result(unsafe { rb::rkvm_arm64_find_irqs(irqs) })
}

/// The PMU of a CPU; `None`: no PMUv3 that the kernel knows. Sleeps.
pub(crate) fn find_pmu(cpu: u32) -> Option<rb::rkvm_arm64_pmu> {
    let mut pmu = rb::rkvm_arm64_pmu::default();
    // SAFETY: Task context; fills the structure.
    let found = unsafe { rb::rkvm_arm64_find_pmu(cpu, &mut pmu) };
    (found == 0).then_some(pmu)
}

/// Takes them, as long as this exists.
pub(crate) struct Irqs(());

impl Irqs {
    /// # Errors
    /// `EBUSY`: in-tree KVM has them.
    pub(crate) fn request(irqs: &rb::rkvm_arm64_irqs) -> Result<Self> {
        // SAFETY: The handler is part of this module; `drop` frees them.
        to_result(unsafe { rb::rkvm_arm64_request_irqs(irqs) })?;
        Ok(Self(()))
    }
}

impl Drop for Irqs {
    fn drop(&mut self) {
        // SAFETY: They were requested, and are off on all CPUs by now.
        unsafe { rb::rkvm_arm64_free_irqs() };
    }
}

/// Lets them come on this CPU, or not.
pub(crate) fn enable_irqs(on: bool) {
    // SAFETY: `Irqs` are requested before a CPU is turned on.
    unsafe {
        if on {
            rb::rkvm_arm64_irqs_on();
        } else {
            rb::rkvm_arm64_irqs_off();
        }
    }
}

/// Marks the virtual timer's interrupt active on this CPU, or not: active, it does not come.
#[inline]
pub(crate) fn set_vtimer_active(active: bool) {
    // SAFETY: Changes a bit of the host's interrupt controller. Errors would be of an unknown interrupt.
    let _ = unsafe { rb::rkvm_arm64_vtimer_active(active) };
}

/// The extended state of FP and SIMD.
pub(crate) use rb::rkvm_arm64_fp as Fp;

/// FP and SIMD are taken from the host's user space, with SVE: the controls are the host's still. IRQs are off.
#[inline]
pub(crate) fn fp_begin() {
    // SAFETY: Preemption is off, so the state cannot be bound to another task until `fp_end`.
    unsafe { rb::rkvm_arm64_fpu_begin() };
}

/// Ends that. The controls are the host's again.
#[inline]
pub(crate) fn fp_end() {
    // SAFETY: Matches `fp_begin`.
    unsafe { rb::rkvm_arm64_fpu_end() };
}

/// Loads the guest's FP and SIMD, between `fp_begin` and `fp_end`.
#[inline]
pub(crate) fn fp_load(fp: &Fp) {
    // SAFETY: Reads the structure.
    unsafe { rb::rkvm_arm64_fp_load(fp) };
}

/// Takes them back.
#[inline]
pub(crate) fn fp_save(fp: &mut Fp) {
    // SAFETY: Writes the structure.
    unsafe { rb::rkvm_arm64_fp_save(fp) };
}

/// A guest's SVE registers: Z0 to Z31, P0 to P15, FFR.
///
/// # Invariants
/// `bytes` has room for all registers with vectors of `layout`.
pub(crate) struct Sve {
    bytes: KVVec<u8>,
    layout: Layout,
}

impl Sve {
    /// All zero.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(layout: Layout) -> Result<Self> {
        // INVARIANT: As many as the layout has.
        Ok(Self {
            bytes: KVVec::from_elem(0, layout.bytes(), GFP_KERNEL_ACCOUNT)?,
            layout,
        })
    }

    /// As after a reset.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(0);
    }

    /// Z0 to Z31
    pub(crate) fn z(&mut self, n: u8) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.layout.z(n))
    }

    /// P0 to P15, and FFR as the next
    pub(crate) fn p(&mut self, n: u8) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.layout.p(n))
    }

    /// ZCR_ELx.LEN
    fn len(&self) -> u64 {
        u64::from(self.layout.quads().saturating_sub(1))
    }

    /// Loads them, with FPSR and FPCR of `fp`, between `fp_begin` and `fp_end`, while CPTR_EL2 is the
    /// guest's. Returns the host's ZCR_EL2.
    #[inline]
    pub(crate) fn load(&self, fp: &Fp) -> u64 {
        let host = mrs!("S3_4_C1_C2_0");
        msr!("S3_4_C1_C2_0", self.len());
        isb();
        // SAFETY: Vectors have at most the layout's length now, so that it reads from the buffer only.
        unsafe { rb::rkvm_arm64_sve_load(self.bytes.as_ptr().cast(), fp) };
        host
    }

    /// Takes them back, and puts the host's ZCR_EL2 back.
    #[inline]
    pub(crate) fn save(&mut self, fp: &mut Fp, host: u64) {
        // SAFETY: ZCR_EL2 is as `load` has left it, so that it writes to the buffer only.
        unsafe { rb::rkvm_arm64_sve_save(self.bytes.as_mut_ptr().cast(), fp) };
        msr!("S3_4_C1_C2_0", host);
        isb();
    }
}

/// ZCR_EL1 of the guest, which has SVE.
#[inline]
pub(crate) fn load_zcr(v: u64) {
    msr!("S3_5_C1_C2_0", v);
}

/// Takes it back.
#[inline]
pub(crate) fn zcr() -> u64 {
    mrs!("S3_5_C1_C2_0")
}

/// FPMR, between `fp_begin` and `fp_end`, where the CPU has it.
#[inline]
pub(crate) fn load_fpmr(v: u64) {
    msr!("S3_3_C4_C4_2", v);
}

/// Takes it back.
#[inline]
pub(crate) fn fpmr() -> u64 {
    mrs!("S3_3_C4_C4_2")
}

/// Makes what the host wrote to this memory visible to a guest without caches.
pub(crate) fn clean_to_poc(pa: u64, size: u64) {
    // SAFETY: Cache maintenance changes no data; the caller's frame is in the linear mapping.
    unsafe { rb::rkvm_arm64_clean_poc(pa, size) };
}

/// Makes what the host wrote to this memory visible to instruction fetches.
pub(crate) fn sync_icache(pa: u64, size: u64) {
    // SAFETY: As above.
    unsafe { rb::rkvm_arm64_sync_icache(pa, size) };
}

/// This CPU, for what it needs against a guest's training of its predictors. IRQs are off.
pub(crate) fn this_cpu() -> harden::Cpu {
    harden::Cpu {
        midr: Midr(u32::try_from(midr() & 0xffff_ffff).unwrap_or(0)),
        pfr0: mrs!("S3_0_C0_C4_0"),
        pfr1: mrs!("S3_0_C0_C4_1"),
        mmfr1: mrs!("S3_0_C0_C7_1"),
        isar2: mrs!("S3_0_C0_C6_2"),
        firmware: [fid::WORKAROUND_1, fid::WORKAROUND_2, fid::WORKAROUND_3].map(firmware),
        // SAFETY: Reads what the command line said.
        off: unsafe { rb::rkvm_arm64_mitigations_off() },
    }
}

fn firmware(function: u32) -> harden::Firmware {
    let mut x0 = 0;
    // SAFETY: Asks the firmware a question, fills the word.
    if unsafe { rb::rkvm_arm64_firmware(function, &mut x0) } {
        harden::Firmware::from_x0(x0)
    } else {
        harden::Firmware::None
    }
}

/// What guests' exits do by the module's parameter, if not what the CPU needs.
pub(crate) fn exit_wanted() -> Option<u32> {
    // SAFETY: Reads a word.
    u32::try_from(unsafe { rb::rkvm_arm64_vectors_wanted() }).ok()
}

/// Guests that run on this CPU exit so. IRQs are off.
///
/// # Errors
/// `EINVAL`: there is no such way. `ENODEV`: no firmware for it.
pub(crate) fn set_exit(vectors: u32) -> Result {
    // SAFETY: Writes a word of this CPU, the address of one of entry.S's vectors.
    to_result(unsafe { rb::rkvm_arm64_set_vectors(vectors) })
}

/// How the guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// By an exception of its own: `run.esr` says which.
    Sync,
    /// By an interrupt of the host.
    Interrupt,
    /// By an SError.
    SError,
}

/// Runs the guest until its next exit. A guest is loaded, IRQs are off.
#[inline]
pub(crate) fn enter(run: &mut rb::rkvm_arm64_run) -> Left {
    // SAFETY: EL1's registers, stage 2 and EL2's controls are the guest's (this is called in a section
    // only), so it reaches nothing but its own memory; the structure is exclusively ours.
    match unsafe { rb::rkvm_arm64_enter(run) }.unsigned_abs() {
        rb::RKVM_ARM64_SYNC => Left::Sync,
        rb::RKVM_ARM64_SERROR => Left::SError,
        _ => Left::Interrupt,
    }
}

/// ICH_VTR_EL2
pub(crate) fn ich_vtr() -> u64 {
    mrs!("S3_4_C12_C11_1")
}

#[inline]
fn write_lr(n: usize, v: u64) {
    match n {
        0 => msr!("S3_4_C12_C12_0", v),
        1 => msr!("S3_4_C12_C12_1", v),
        2 => msr!("S3_4_C12_C12_2", v),
        3 => msr!("S3_4_C12_C12_3", v),
        4 => msr!("S3_4_C12_C12_4", v),
        5 => msr!("S3_4_C12_C12_5", v),
        6 => msr!("S3_4_C12_C12_6", v),
        7 => msr!("S3_4_C12_C12_7", v),
        8 => msr!("S3_4_C12_C13_0", v),
        9 => msr!("S3_4_C12_C13_1", v),
        10 => msr!("S3_4_C12_C13_2", v),
        11 => msr!("S3_4_C12_C13_3", v),
        12 => msr!("S3_4_C12_C13_4", v),
        13 => msr!("S3_4_C12_C13_5", v),
        14 => msr!("S3_4_C12_C13_6", v),
        15 => msr!("S3_4_C12_C13_7", v),
        _ => {}
    }
}

#[inline]
fn read_lr(n: usize) -> u64 {
    match n {
        0 => mrs!("S3_4_C12_C12_0"),
        1 => mrs!("S3_4_C12_C12_1"),
        2 => mrs!("S3_4_C12_C12_2"),
        3 => mrs!("S3_4_C12_C12_3"),
        4 => mrs!("S3_4_C12_C12_4"),
        5 => mrs!("S3_4_C12_C12_5"),
        6 => mrs!("S3_4_C12_C12_6"),
        7 => mrs!("S3_4_C12_C12_7"),
        8 => mrs!("S3_4_C12_C13_0"),
        9 => mrs!("S3_4_C12_C13_1"),
        10 => mrs!("S3_4_C12_C13_2"),
        11 => mrs!("S3_4_C12_C13_3"),
        12 => mrs!("S3_4_C12_C13_4"),
        13 => mrs!("S3_4_C12_C13_5"),
        14 => mrs!("S3_4_C12_C13_6"),
        15 => mrs!("S3_4_C12_C13_7"),
        _ => 0,
    }
}

/// Hands the virtual CPU interface to the guest, but for its list registers. A section begins.
#[inline]
pub(crate) fn load_cpuif(cpu: &CpuIf, hw: &LrConfig) {
    // The guest has system registers only (ICC_SRE_EL1).
    msr!("S3_0_C12_C12_5", 7);
    msr!("S3_4_C12_C11_7", u64::from(cpu.vmcr.0));
    let [a0, a1, a2, a3] = cpu.ap0r;
    let [b0, b1, b2, b3] = cpu.ap1r;
    msr!("S3_4_C12_C8_0", u64::from(a0));
    msr!("S3_4_C12_C9_0", u64::from(b0));
    if hw.pri_bits > 5 {
        msr!("S3_4_C12_C8_1", u64::from(a1));
        msr!("S3_4_C12_C9_1", u64::from(b1));
    }
    if hw.pri_bits > 6 {
        msr!("S3_4_C12_C8_2", u64::from(a2));
        msr!("S3_4_C12_C9_2", u64::from(b2));
        msr!("S3_4_C12_C8_3", u64::from(a3));
        msr!("S3_4_C12_C9_3", u64::from(b3));
    }
}

/// Takes it back, and turns it off: no maintenance interrupt comes any more. The section ends.
#[inline]
pub(crate) fn save_cpuif(cpu: &mut CpuIf, hw: &LrConfig) {
    save_vmcr(cpu);
    let [a0, a1, a2, a3] = &mut cpu.ap0r;
    let [b0, b1, b2, b3] = &mut cpu.ap1r;
    *a0 = low(mrs!("S3_4_C12_C8_0"));
    *b0 = low(mrs!("S3_4_C12_C9_0"));
    if hw.pri_bits > 5 {
        *a1 = low(mrs!("S3_4_C12_C8_1"));
        *b1 = low(mrs!("S3_4_C12_C9_1"));
    }
    if hw.pri_bits > 6 {
        *a2 = low(mrs!("S3_4_C12_C8_2"));
        *b2 = low(mrs!("S3_4_C12_C9_2"));
        *a3 = low(mrs!("S3_4_C12_C8_3"));
        *b3 = low(mrs!("S3_4_C12_C9_3"));
    }
    msr!("S3_4_C12_C11_0", 0);
    isb();
}

const fn low(v: u64) -> u32 {
    (v & 0xffff_ffff) as u32
}

/// Takes back what the guest has set in its CPU interface, of which the choice of list registers depends.
#[inline]
pub(crate) fn save_vmcr(cpu: &mut CpuIf) {
    cpu.vmcr.0 = low(mrs!("S3_4_C12_C11_7"));
}

/// Fills the list registers. The entry that follows synchronizes.
#[inline]
pub(crate) fn load_lrs(lrs: &ListRegs) {
    for (n, lr) in lrs.in_use().iter().enumerate() {
        write_lr(n, lr.0);
    }
    msr!("S3_4_C12_C11_0", lrs.hcr);
}

/// Takes them back, and empties them.
#[inline]
pub(crate) fn save_lrs(lrs: &mut ListRegs) {
    lrs.hcr = mrs!("S3_4_C12_C11_0");
    for (n, lr) in lrs.in_use_mut().iter_mut().enumerate() {
        lr.0 = read_lr(n);
        // What is left there would come back with the next entry.
        write_lr(n, 0);
    }
}

/// SCTLR_EL1 of the guest, which is loaded.
#[inline]
pub(crate) fn guest_sctlr() -> u64 {
    mrs!("S3_5_C1_C0_0")
}
