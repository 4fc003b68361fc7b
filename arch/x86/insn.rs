// SPDX-License-Identifier: GPL-2.0

//! Privileged instructions, one a function.
//!
//! A function is safe when no argument of it can break memory safety at CPL 0; those which could
//! (arbitrary WRMSR) are not offered, only the registers that we have a use for.

pub(crate) mod fpu;
mod uapi;
pub(crate) mod vcpu;

use crate::bindings;
use crate::host::hw_page::{HwBytes, HwPage};
use core::arch::{asm, x86_64};
use kernel::prelude::*;

/// MSR numbers (APM vol. 2, appendix A).
pub(crate) mod msr {
    /// EFER
    pub(crate) const EFER: u32 = 0xc000_0080;
    /// TSC_AUX
    pub(crate) const TSC_AUX: u32 = 0xc000_0103;
    /// SPEC_CTRL
    pub(crate) const SPEC_CTRL: u32 = 0x48;
    /// PRED_CMD
    pub(crate) const PRED_CMD: u32 = 0x49;
    /// VM_CR
    pub(crate) const VM_CR: u32 = 0xc001_0114;
    /// VM_HSAVE_PA
    pub(crate) const VM_HSAVE_PA: u32 = 0xc001_0117;
    /// TSC_RATIO
    pub(crate) const TSC_RATIO: u32 = 0xc000_0104;
    /// IA32_FEATURE_CONTROL (SDM vol. 4)
    pub(crate) const FEAT_CTL: u32 = 0x3a;
    /// IA32_VMX_BASIC, the first of VMX' capability MSRs (SDM vol. 3D, appendix A)
    pub(crate) const VMX_BASIC: u32 = 0x480;
    /// STAR
    pub(crate) const STAR: u32 = 0xc000_0081;
    /// SFMASK, the last of SYSCALL's
    pub(crate) const SFMASK: u32 = 0xc000_0084;
}

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpuid {
    /// EAX
    pub(crate) eax: u32,
    /// EBX
    pub(crate) ebx: u32,
    /// ECX
    pub(crate) ecx: u32,
    /// EDX
    pub(crate) edx: u32,
}

/// CPUID of the processor that this runs on.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    // SAFETY: Every 64-bit processor has CPUID, and it changes nothing.
    let r = unsafe { x86_64::__cpuid_count(leaf, subleaf) };
    Cpuid {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// RDMSR.
///
/// # Errors
/// `EIO`: the processor has no such MSR.
pub(crate) fn rdmsr(index: u32) -> Result<u64> {
    let mut v = 0;
    // SAFETY: Reading an MSR changes nothing that matters; a fault is caught.
    match unsafe { bindings::rkvm_rdmsr(index, &mut v) } {
        0 => Ok(v),
        _ => Err(EIO),
    }
}

/// WRMSR for the registers below.
fn wrmsr(index: u32, v: u64) -> Result {
    // SAFETY: Private; only the callers below, which know what they write. A fault is caught.
    match unsafe { bindings::rkvm_wrmsr(index, v) } {
        0 => Ok(()),
        _ => Err(EIO),
    }
}

/// Sets or clears EFER.SVME on this CPU.
///
/// # Errors
/// `EIO`: refused by the processor.
pub(crate) fn set_svme(on: bool) -> Result {
    use super::model::regs::efer::SVME;
    let v = rdmsr(msr::EFER)?;
    wrmsr(msr::EFER, if on { v | SVME } else { v & !SVME })
}

/// Points VM_HSAVE_PA of this CPU at a page where VMRUN keeps the host's state, or at none. The page
/// must stay until SVM is turned off here.
///
/// # Errors
/// `EIO`: refused by the processor.
pub(crate) fn set_host_save(page: Option<&HwPage<[u8; 4096]>>) -> Result {
    wrmsr(
        msr::VM_HSAVE_PA,
        page.map_or(0, |p| p.phys() | encryption_mask()),
    )
}

/// Writes TSC_RATIO: 8.32 fixed point (APM vol. 2, 15.30.5). The host's own TSC is not affected.
///
/// # Errors
/// `EIO`: the processor has none.
pub(crate) fn set_tsc_ratio(v: u64) -> Result {
    wrmsr(msr::TSC_RATIO, v)
}

/// Indirect-branch prediction barrier.
///
/// # Errors
/// `EIO`: the processor has none.
pub(crate) fn ibpb() -> Result {
    wrmsr(msr::PRED_CMD, 1)
}

/// RDTSC, not ordered.
#[inline]
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: Changes nothing.
    unsafe { x86_64::_rdtsc() }
}

/// Frequency of the host's TSC, in kHz.
pub(crate) fn tsc_khz() -> u32 {
    // SAFETY: Reads a variable that is set once at boot.
    unsafe { bindings::rkvm_tsc_khz() }
}

/// MOV from CR4: the host's.
pub(crate) fn cr4() -> u64 {
    let v: u64;
    // SAFETY: Reading it changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}

/// XGETBV of XCR0; `None` when the kernel does not use XSAVE.
pub(crate) fn xcr0() -> Option<u64> {
    if !osxsave() {
        return None;
    }
    let (lo, hi): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set, as just checked.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags));
    }
    Some(u64::from(lo) | u64::from(hi) << 32)
}

/// Whether the kernel uses XSAVE.
pub(crate) fn osxsave() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_osxsave() }
}

/// Whether the kernel uses protection keys.
pub(crate) fn ospke() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_ospke() }
}

/// XSETBV of XCR0.
///
/// # Errors
/// `EIO`: refused by the processor.
fn set_xcr0(v: u64) -> Result {
    // SAFETY: Private to this module and `fpu`, which puts the host's value back before anything else
    // uses extended state. A fault is caught.
    match unsafe { bindings::rkvm_xsetbv(0, v) } {
        0 => Ok(()),
        _ => Err(EIO),
    }
}

/// The length in bytes of an XSAVE area in the standard format with these components (SDM vol. 1, 13.4;
/// APM vol. 2, 11.5).
fn xsave_size(components: u64) -> usize {
    /// The legacy region and the header.
    const MIN: usize = 576;
    let end = |n: u32| {
        let c = cpuid(0xd, n);
        let [at, len] = [c.ebx, c.eax].map(|v| usize::try_from(v).unwrap_or(0));
        at.saturating_add(len)
    };
    (2..63)
        .filter(|n| components & 1 << n != 0)
        .map(end)
        .fold(MIN, usize::max)
}

/// Where the FPU's and the extended state goes to and comes from, in the standard format of XSAVE.
///
/// # Invariants
/// `bytes` is page-aligned, and has room for all of `components`, and for FXSAVE.
struct XsaveArea {
    bytes: HwBytes,
    components: u64,
}

impl XsaveArea {
    /// Zeroed, at least `len` bytes long. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`
    fn new(components: u64, len: usize) -> Result<Self> {
        // INVARIANT: As long as the processor says.
        let bytes = HwBytes::new(xsave_size(components).max(len))?;
        Ok(Self { bytes, components })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// XRSTOR of these components, or FXRSTOR. After [`fpu_begin`].
    ///
    /// # Errors
    /// `EINVAL`: the processor refuses what the area holds.
    fn restore(&self, components: Option<u64>) -> Result {
        let p = self.bytes.as_ptr().cast();
        // SAFETY: By the invariants it reads nothing behind the area. Private to `fpu`, to which the
        // registers belong since `fpu_begin`. A fault is caught.
        let err = unsafe {
            match components {
                None => bindings::rkvm_fxrstor(p),
                Some(c) => bindings::rkvm_xrstor(p, c & self.components),
            }
        };
        if err == 0 {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// XSAVE of these components, or FXSAVE.
    fn save(&mut self, components: Option<u64>) {
        let p = self.bytes.as_mut_ptr().cast();
        // SAFETY: By the invariants it writes nothing behind the area.
        unsafe {
            match components {
                None => bindings::rkvm_fxsave(p),
                Some(c) => bindings::rkvm_xsave(p, c & self.components),
            }
        }
    }
}

/// Puts away the FPU state of whom this CPU works for. IRQs are off until [`fpu_end`].
fn fpu_begin() {
    // SAFETY: Private to `fpu`, which calls `fpu_end` before the section ends.
    unsafe { bindings::rkvm_fpu_begin() };
}

/// The FPU is the host's again.
fn fpu_end() {
    // SAFETY: Private to `fpu`, which has called `fpu_begin`.
    unsafe { bindings::rkvm_fpu_end() };
}

/// RDPKRU. The kernel uses protection keys ([`ospke`]).
#[inline]
fn rdpkru() -> u32 {
    let v: u32;
    // SAFETY: Private to `fpu`, which checks `ospke`.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") v, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    v
}

/// WRPKRU. The kernel uses protection keys ([`ospke`]).
#[inline]
fn wrpkru(v: u32) {
    // SAFETY: Private to `fpu`, which checks `ospke` and restores the host's value.
    unsafe {
        asm!("wrpkru", in("eax") v, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
    }
}

/// The guest's breakpoint addresses, in DR0 to DR3, for as long as this lives; then the host's again.
///
/// DR7 is not touched: while a guest does not run, SVM and VMX leave it without enabled breakpoints.
/// IRQs are off for as long as this lives.
pub(crate) struct GuestBreakpoints {
    host: [u64; 4],
}

impl GuestBreakpoints {
    /// Loads them.
    pub(crate) fn load(guest: &[u64; 4]) -> Self {
        write_dr7(0x400);
        let host = read_breakpoints();
        write_breakpoints(guest);
        Self { host }
    }

    /// What the guest has in them now.
    pub(crate) fn read(&self) -> [u64; 4] {
        read_breakpoints()
    }
}

impl Drop for GuestBreakpoints {
    fn drop(&mut self) {
        write_breakpoints(&self.host);
        restore_dr7();
    }
}

/// DR0 to DR3.
fn read_breakpoints() -> [u64; 4] {
    let mut d = [0; 4];
    // SAFETY: Reading debug registers changes nothing (DR7.GD is not set by Linux).
    unsafe {
        asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
            out(reg) d[0], out(reg) d[1], out(reg) d[2], out(reg) d[3],
            options(nomem, nostack, preserves_flags)
        );
    }
    d
}

fn write_breakpoints(d: &[u64; 4]) {
    // SAFETY: No breakpoint is enabled: the caller has cleared DR7.
    unsafe {
        asm!(
            "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}",
            in(reg) d[0], in(reg) d[1], in(reg) d[2], in(reg) d[3],
            options(nostack, preserves_flags)
        );
    }
}

fn write_dr7(v: u64) {
    // SAFETY: Callers enable nothing but what the kernel has enabled.
    unsafe { asm!("mov dr7, {}", in(reg) v, options(nostack, preserves_flags)) };
}

/// Gives this CPU back the breakpoints that the host has enabled; a guest's exit has disabled them.
pub(crate) fn restore_dr7() {
    // SAFETY: Reads a per-CPU variable.
    let v = unsafe { bindings::rkvm_host_dr7() };
    if v != 0 {
        write_dr7(v);
    }
}

/// Hands a machine check that ended a guest's run to the host's handler.
#[cold]
pub(crate) fn machine_check() {
    // SAFETY: It is what the host's own #MC entry calls; any context.
    unsafe { bindings::rkvm_machine_check() };
}

/// Whether the host wants prediction barriers between guests (it has them, and mitigations are on).
pub(crate) fn wants_barriers() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_wants_barriers() }
}

/// Makes the next entry exit as soon as it has delivered what is injected.
#[cold]
pub(crate) fn exit_at_once() {
    // SAFETY: An interrupt to this CPU, which does nothing but come; preemption is off in a section.
    unsafe { bindings::rkvm_kick_self() };
}

/// A guest section ends: the host's user mode may want a prediction barrier first.
pub(crate) fn guest_has_run() {
    // SAFETY: Sets a per-CPU flag; preemption is off in a section.
    unsafe { bindings::rkvm_guest_has_run() };
}

/// The address bit that marks encrypted host memory; 0 without memory encryption.
pub(crate) fn encryption_mask() -> u64 {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_encryption_mask() }
}

/// SPEC_CTRL as the host runs on this CPU; `None` if the processor has no such MSR.
pub(crate) fn host_spec_ctrl() -> Option<u64> {
    // SAFETY: No requirement; reads a per-CPU variable.
    unsafe { bindings::rkvm_has_spec_ctrl().then(|| bindings::rkvm_host_spec_ctrl()) }
}
