// SPDX-License-Identifier: GPL-2.0

//! Privileged instructions and what C has to do, one function each.
//!
//! Safe where no argument can break memory safety: registers of EL1 mean nothing to the host, which
//! runs at EL2 (VHE), and the stage-2 registers act on the guest only. Registers that are the host's
//! too are written by pairs of functions that put back what they found.
//!
//! Arm ARM (DDI 0487) D24. Names are given by their encoding (op0, op1, CRn, CRm, op2), as the
//! assembler knows them only for newer architectures than the kernel is compiled for.

use super::model::{
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

/// What has been written takes effect.
#[inline]
pub(crate) fn isb() {
    // SAFETY: A barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Declares the guest's EL1 and EL0 registers that are switched as a whole: a field each, with the
/// name by which EL2 reaches it.
macro_rules! el1_state {
    ($($(#[$doc:meta])* $field:ident = $name:literal, $op:expr;)*) => {
        /// The guest's system registers at EL1 and EL0.
        #[derive(Clone, Copy, Default)]
        pub(crate) struct El1 {
            $($(#[$doc])* pub(crate) $field: u64,)*
        }

        impl El1 {
            /// Loads them. The host must not need what EL0 shares with it (thread pointers), which
            /// [`HostEl0`] keeps.
            #[inline]
            pub(crate) fn load(&self) {
                $(msr!($name, self.$field);)*
            }

            /// Takes them back.
            #[inline]
            pub(crate) fn save(&mut self) {
                $(self.$field = mrs!($name);)*
            }

            /// The register, if it is one of these.
            pub(crate) fn get_mut(&mut self, r: Sysreg) -> Option<&mut u64> {
                const fn of([op0, op1, crn, crm, op2]: [u8; 5]) -> Sysreg {
                    Sysreg::new(op0, op1, crn, crm, op2)
                }
                $(if r == const { of($op) } {
                    return Some(&mut self.$field);
                })*
                None
            }

        }
    };
}

el1_state! {
    /// SCTLR_EL1
    sctlr = "S3_5_C1_C0_0", [3, 0, 1, 0, 0];
    /// ACTLR_EL1 is the host's; CPACR_EL1
    cpacr = "S3_5_C1_C0_2", [3, 0, 1, 0, 2];
    /// TTBR0_EL1
    ttbr0 = "S3_5_C2_C0_0", [3, 0, 2, 0, 0];
    /// TTBR1_EL1
    ttbr1 = "S3_5_C2_C0_1", [3, 0, 2, 0, 1];
    /// TCR_EL1
    tcr = "S3_5_C2_C0_2", [3, 0, 2, 0, 2];
    /// ESR_EL1
    esr = "S3_5_C5_C2_0", [3, 0, 5, 2, 0];
    /// AFSR0_EL1
    afsr0 = "S3_5_C5_C1_0", [3, 0, 5, 1, 0];
    /// AFSR1_EL1
    afsr1 = "S3_5_C5_C1_1", [3, 0, 5, 1, 1];
    /// FAR_EL1
    far = "S3_5_C6_C0_0", [3, 0, 6, 0, 0];
    /// MAIR_EL1
    mair = "S3_5_C10_C2_0", [3, 0, 10, 2, 0];
    /// VBAR_EL1
    vbar = "S3_5_C12_C0_0", [3, 0, 12, 0, 0];
    /// CONTEXTIDR_EL1
    contextidr = "S3_5_C13_C0_1", [3, 0, 13, 0, 1];
    /// AMAIR_EL1
    amair = "S3_5_C10_C3_0", [3, 0, 10, 3, 0];
    /// CNTKCTL_EL1
    cntkctl = "S3_5_C14_C1_0", [3, 0, 14, 1, 0];
    /// PAR_EL1
    par = "S3_0_C7_C4_0", [3, 0, 7, 4, 0];
    /// TPIDR_EL1
    tpidr_el1 = "S3_0_C13_C0_4", [3, 0, 13, 0, 4];
    /// SP_EL1, which the ABI calls `sp_el1`
    sp_el1 = "S3_4_C4_C1_0", [3, 4, 4, 1, 0];
    /// ELR_EL1
    elr = "S3_5_C4_C0_1", [3, 0, 4, 0, 1];
    /// SPSR_EL1
    spsr = "S3_5_C4_C0_0", [3, 0, 4, 0, 0];
    /// TPIDR_EL0
    tpidr_el0 = "S3_3_C13_C0_2", [3, 3, 13, 0, 2];
    /// TPIDRRO_EL0
    tpidrro_el0 = "S3_3_C13_C0_3", [3, 3, 13, 0, 3];
    /// CSSELR_EL1
    csselr = "S3_2_C0_C0_0", [3, 2, 0, 0, 0];
    /// MDSCR_EL1
    mdscr = "S2_0_C0_C2_2", [2, 0, 0, 2, 2];
}

/// What the host's user space has in registers that guests use too.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostEl0 {
    tpidr: u64,
    tpidrro: u64,
    mdscr: u64,
    par: u64,
    csselr: u64,
}

impl HostEl0 {
    /// Notes them.
    #[inline]
    pub(crate) fn save() -> Self {
        Self {
            tpidr: mrs!("S3_3_C13_C0_2"),
            tpidrro: mrs!("S3_3_C13_C0_3"),
            mdscr: mrs!("S2_0_C0_C2_2"),
            par: mrs!("S3_0_C7_C4_0"),
            csselr: mrs!("S3_2_C0_C0_0"),
        }
    }

    /// Puts them back.
    #[inline]
    pub(crate) fn restore(&self) {
        msr!("S3_3_C13_C0_2", self.tpidr);
        msr!("S3_3_C13_C0_3", self.tpidrro);
        msr!("S2_0_C0_C2_2", self.mdscr);
        msr!("S3_0_C7_C4_0", self.par);
        msr!("S3_2_C0_C0_0", self.csselr);
    }
}

/// EL2's controls while a guest is loaded.
#[derive(Clone, Copy, Default)]
pub(crate) struct GuestControls {
    /// HCR_EL2, with E2H and without TGE
    pub(crate) hcr: u64,
    /// VTCR_EL2
    pub(crate) vtcr: u64,
    /// VTTBR_EL2
    pub(crate) vttbr: u64,
    /// CPTR_EL2 in its VHE form (CPACR_EL1's name while E2H is set)
    pub(crate) cptr: u64,
    /// MDCR_EL2
    pub(crate) mdcr: u64,
    /// CNTHCTL_EL2
    pub(crate) cnthctl: u64,
    /// CNTVOFF_EL2
    pub(crate) cntvoff: u64,
    /// VMPIDR_EL2
    pub(crate) vmpidr: u64,
    /// VPIDR_EL2
    pub(crate) vpidr: u64,
    /// HSTR_EL2
    pub(crate) hstr: u64,
    /// HCRX_EL2, where there is one
    pub(crate) hcrx: Option<u64>,
}

/// What they are for the host.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostControls {
    hcr: u64,
    cptr: u64,
    mdcr: u64,
    cnthctl: u64,
    hcrx: Option<u64>,
}

/// MDCR_EL2.HPMN: how the host's PMU is divided stays.
const HPMN: u64 = 0x1f;

impl GuestControls {
    /// Loads them; returns the host's. IRQs are off until [`HostControls::restore`]: the host's user
    /// memory is out of reach, as TGE is clear.
    #[inline]
    pub(crate) fn load(&self) -> HostControls {
        let host = HostControls {
            hcr: mrs!("S3_4_C1_C1_0"),
            cptr: mrs!("S3_4_C1_C1_2"),
            mdcr: mrs!("S3_4_C1_C1_1"),
            cnthctl: mrs!("S3_4_C14_C1_0"),
            hcrx: self.hcrx.map(|_| mrs!("S3_4_C1_C2_2")),
        };
        msr!("S3_4_C2_C1_2", self.vtcr);
        msr!("S3_4_C2_C1_0", self.vttbr);
        // Speculative walks must not mix the guest's tables with the host's controls.
        isb();
        msr!("S3_4_C1_C1_0", self.hcr);
        isb();
        msr!("S3_4_C1_C1_2", self.cptr);
        msr!("S3_4_C1_C1_1", self.mdcr | host.mdcr & HPMN);
        msr!("S3_4_C14_C1_0", self.cnthctl);
        msr!("S3_4_C14_C0_3", self.cntvoff);
        msr!("S3_4_C0_C0_5", self.vmpidr);
        msr!("S3_4_C0_C0_0", self.vpidr);
        msr!("S3_4_C1_C1_3", self.hstr);
        if let Some(v) = self.hcrx {
            msr!("S3_4_C1_C2_2", v);
        }
        host
    }
}

impl HostControls {
    /// Puts the host's back.
    #[inline]
    pub(crate) fn restore(&self) {
        isb();
        msr!("S3_4_C1_C1_0", self.hcr);
        isb();
        msr!("S3_4_C2_C1_0", 0);
        msr!("S3_4_C1_C1_2", self.cptr);
        msr!("S3_4_C1_C1_1", self.mdcr);
        msr!("S3_4_C14_C1_0", self.cnthctl);
        msr!("S3_4_C14_C0_3", 0);
        msr!("S3_4_C1_C1_3", 0);
        if let Some(v) = self.hcrx {
            msr!("S3_4_C1_C2_2", v);
        }
        isb();
    }
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
}

/// Drops all translations of a VMID, given as in VTTBR_EL2, on all CPUs. No guest is loaded here.
pub(crate) fn flush_vmid_of(vttbr: u64) {
    // SAFETY: The helper runs with IRQs off and puts the host's registers back.
    unsafe { rb::rkvm_arm64_flush_vmid(vttbr) };
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
    let par = mrs!("S3_0_C7_C4_0");
    // SAFETY: Translates an address; the result is in PAR_EL1, which is put back.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack, preserves_flags)) };
    let result = mrs!("S3_0_C7_C4_0");
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

/// REVIDR_EL1
pub(crate) fn revidr() -> u64 {
    mrs!("S3_0_C0_C0_6")
}

/// CLIDR_EL1
pub(crate) fn clidr() -> u64 {
    mrs!("S3_1_C0_C0_1")
}

/// CCSIDR_EL1 for this value of CSSELR_EL1.
pub(crate) fn ccsidr(select: u8) -> u64 {
    // SAFETY: The helper selects and reads with IRQs off.
    unsafe { rb::rkvm_arm64_ccsidr(u32::from(select)) }
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
