// SPDX-License-Identifier: GPL-2.0

//! Entry code: the only unsafe part of the VMX backend, around vmenter.S and the VMCS.

use super::field::{Field, Rw, Width};
use super::mirror::Hardware;
use crate::arch::x86::{model::regs::Gprs, spec_ctrl::SpecCtrl};
use crate::bindings;
use crate::host::hw_page::HwPage;
use core::arch::asm;
use core::cell::Cell;
use kernel::prelude::*;

/// The host's state, as exits bring it back.
pub(super) type HostState = bindings::rkvm_vmx_host;

/// The MSRs of SYSCALL.
pub(super) type SyscallMsrs = bindings::rkvm_vmx_syscall;

/// A virtual-machine control structure, and the parameters of entries with it.
///
/// It is current on a CPU from [`Vmcs::load`] to [`Vmcs::unload`], with IRQs off in between, and in
/// memory else: no CPU has anything of it then.
pub(super) struct Vmcs {
    page: HwPage<[u8; 4096]>,
    current: Cell<bool>,
    /// The processor has not seen it yet.
    fresh: bool,
    /// Whose VMCS was current before.
    before: u64,
    run: bindings::rkvm_vmx_run,
}

impl Vmcs {
    /// Allocates one of this revision.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(super) fn new(revision: u32) -> Result<Self> {
        let mut page = HwPage::<[u8; 4096]>::new()?;
        page.iter_mut()
            .zip(revision.to_le_bytes())
            .for_each(|(d, s)| *d = s);
        Ok(Self {
            page,
            current: Cell::new(false),
            fresh: true,
            before: 0,
            run: bindings::rkvm_vmx_run::default(),
        })
    }

    /// Makes it current on this CPU. True: it never was, and none of its fields has a value.
    ///
    /// # Errors
    /// `EIO`: VMX is off here.
    pub(super) fn load(&mut self) -> Result<bool> {
        let (pa, fresh) = (self.page.phys(), self.fresh);
        // SAFETY: The page is a VMCS region of this object, which is current nowhere. Faults are
        // caught. IRQs are off until `unload`, so nobody else on this CPU uses another VMCS meanwhile.
        let err = unsafe {
            (fresh && bindings::rkvm_vmx_clear(pa) != 0)
                || bindings::rkvm_vmx_load(pa, &mut self.before) != 0
        };
        if err {
            return Err(EIO);
        }
        self.fresh = false;
        self.current.set(true);
        self.run.launched = 0;
        Ok(fresh)
    }

    /// Puts it back to memory, and makes the one current that was before.
    pub(super) fn unload(&mut self) {
        if self.current.replace(false) {
            // SAFETY: It is current on this CPU, since `load`.
            unsafe { bindings::rkvm_vmx_unload(self.page.phys(), self.before) };
        }
    }

    /// It is current here.
    #[inline]
    pub(super) fn is_current(&self) -> bool {
        self.current.get()
    }

    /// Reads a field; 0 while it is not current.
    #[inline]
    pub(super) fn get<W: Width, A>(&self, f: &Field<W, A>) -> W {
        W::narrow(Hardware::read(self, f.encoding()))
    }

    /// Writes a field; nothing happens while it is not current.
    #[inline]
    pub(super) fn put<W: Width>(&self, f: &Field<W, Rw>, v: W) {
        Hardware::write(self, f.encoding(), v.widen());
    }

    /// CR2 of the guest.
    #[inline]
    pub(super) fn cr2(&self) -> u64 {
        self.run.cr2
    }

    /// Sets it.
    #[inline]
    pub(super) fn set_cr2(&mut self, v: u64) {
        self.run.cr2 = v;
    }

    /// How SPEC_CTRL is switched.
    pub(super) fn spec_ctrl(&mut self) -> &mut SpecCtrl {
        &mut self.run.spec
    }

    /// The guest's SPEC_CTRL.
    pub(super) fn spec_guest(&self) -> u64 {
        self.run.spec.guest
    }

    /// Why the last run ended, and what exception or NMI it was if it was one.
    #[inline]
    pub(super) fn reason(&self) -> (u32, u32) {
        (self.run.reason, self.run.intr_info)
    }

    /// Runs the guest until its next exit. `Ok(false)`: the processor did not begin to enter.
    ///
    /// # Errors
    /// `EIO`: not current.
    #[inline]
    pub(super) fn enter(&mut self, gprs: &mut Gprs) -> Result<bool> {
        if !self.current.get() {
            return Err(EIO);
        }
        // SAFETY: The VMCS is current here. The backend lets it refer only to its own maps and the VM's
        // stage-2 tables, so the guest reaches nothing else; its host state is this CPU's and task's,
        // written in this section. IRQs are off, as they are in a section.
        let ret = unsafe { bindings::rkvm_vmx_enter(&mut self.run, gprs.0.as_mut_ptr()) };
        Ok(ret == 0)
    }
}

impl Hardware for Vmcs {
    #[inline]
    fn read(&self, encoding: u32) -> u64 {
        if !self.current.get() {
            return 0;
        }
        let v: u64;
        // SAFETY: VMX is on, as a VMCS is current; reading it changes nothing. A field that this
        // processor lacks leaves `v` as it was.
        unsafe {
            asm!("vmread {v}, {f}", v = inout(reg) 0u64 => v, f = in(reg) u64::from(encoding), options(nostack));
        }
        v
    }

    #[inline]
    fn write(&self, encoding: u32, v: u64) {
        if !self.current.get() {
            return;
        }
        // SAFETY: VMX is on, as a VMCS is current. What the values mean for the host is for `enter`.
        unsafe {
            asm!("vmwrite {f}, {v}", v = in(reg) v, f = in(reg) u64::from(encoding), options(nostack));
        }
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // Not in a section any more: no CPU refers to the page.
        debug_assert!(!self.current.get());
    }
}

/// Drops what is cached of one EPT's translations, on this CPU, VMX being on.
pub(super) fn invept(eptp: u64) {
    /// Single-context
    const SINGLE: u64 = 1;
    // SAFETY: Makes the processor forget, no more. A fault is caught.
    let _ = unsafe { bindings::rkvm_vmx_invept(SINGLE, eptp) };
}

/// Drops what is cached for one VPID.
pub(super) fn invvpid(vpid: u16) {
    /// Single-context
    const SINGLE: u64 = 1;
    // SAFETY: As above.
    let _ = unsafe { bindings::rkvm_vmx_invvpid(SINGLE, vpid, 0) };
}

/// Drops what is cached for all VPIDs.
pub(super) fn invvpid_all() {
    /// All-context
    const ALL: u64 = 2;
    // SAFETY: As above.
    let _ = unsafe { bindings::rkvm_vmx_invvpid(ALL, 0, 0) };
}

/// Gets hold of whoever turns VMX on. False: that is not kvm_intel.
///
/// # Errors
/// What opening /dev/kvm says.
pub(super) fn hold() -> Result {
    // SAFETY: In task context, at load.
    kernel::error::to_result(unsafe { bindings::rkvm_vmx_hold() })
}

/// Undoes [`hold`].
pub(super) fn release() {
    // SAFETY: In task context, at unload; VMX is not used any more.
    unsafe { bindings::rkvm_vmx_release() };
}

/// VMX operation is had from the kernel, not beside kvm_intel.
pub(super) fn own() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_vmx_own() }
}

/// NMIs can be delivered after an exit, on this kernel and processor.
pub(super) fn usable() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_vmx_usable() }
}

/// VMX is to be on, on this CPU. IRQs are off.
///
/// # Errors
/// `EIO`: it is off.
pub(super) fn on() -> Result {
    // SAFETY: IRQs are off; balanced by `off`.
    kernel::error::to_result(unsafe { bindings::rkvm_vmx_on() })
}

/// It need not be any more.
pub(super) fn off() {
    // SAFETY: After `on`, on this CPU.
    unsafe { bindings::rkvm_vmx_off() };
}

/// What of the host's state is the same everywhere and always.
pub(super) fn host_constant(h: &mut HostState) {
    // SAFETY: Reads registers, of which every processor with VMX has all.
    unsafe { bindings::rkvm_vmx_host_constant(h) };
}

/// What is this CPU's.
pub(super) fn host_cpu(h: &mut HostState) {
    // SAFETY: Reads registers and per-CPU addresses; IRQs are off.
    unsafe { bindings::rkvm_vmx_host_cpu(h) };
}

/// What is this task's.
pub(super) fn host_task(h: &mut HostState) {
    // SAFETY: Reads registers; IRQs are off.
    unsafe { bindings::rkvm_vmx_host_task(h) };
}

/// Brings back what exits have not.
pub(super) fn host_restore(h: &HostState) {
    // SAFETY: What `host_cpu` and `host_task` have read in the section that ends.
    unsafe { bindings::rkvm_vmx_host_restore(h) };
}

/// The MSRs of SYSCALL as this CPU has them.
pub(super) fn syscall_msrs() -> SyscallMsrs {
    let mut s = SyscallMsrs::default();
    // SAFETY: Reads MSRs that every 64-bit processor has.
    unsafe { bindings::rkvm_vmx_host_syscall(&mut s) };
    s
}

/// Sets them, where they are not what they are `now`. In a section, whose end puts the host's back:
/// nobody uses SYSCALL before. The addresses are canonical.
pub(super) fn set_syscall_msrs(to: &SyscallMsrs, now: &SyscallMsrs) {
    // SAFETY: As said.
    unsafe { bindings::rkvm_vmx_set_syscall(to, now) };
}

/// MSR_KERNEL_GS_BASE, the guest's in a section.
pub(super) fn kernel_gs() -> u64 {
    // SAFETY: Reads an MSR.
    unsafe { bindings::rkvm_vmx_get_kernel_gs() }
}

/// Sets it; in a section, whose end puts the host's back.
pub(super) fn set_kernel_gs(v: u64) {
    // SAFETY: SWAPGS is not executed before the section ends.
    unsafe { bindings::rkvm_vmx_set_kernel_gs(v) };
}

/// DR6 of this CPU.
pub(super) fn dr6() -> u64 {
    // SAFETY: Reads a register.
    unsafe { bindings::rkvm_vmx_get_dr6() }
}

/// Sets it: it only tells what has happened.
pub(super) fn set_dr6(v: u64) {
    // SAFETY: No bit of the upper half is set, which would fault; no effect of its own.
    unsafe { bindings::rkvm_vmx_set_dr6(v & 0xffff_ffff) };
}

/// Whether the processor is to deliver interrupts: if it can, the module's parameter says.
pub(super) fn apicv(possible: bool) -> bool {
    // SAFETY: While the module is loading: the parameter is written no more, and nobody reads it yet.
    unsafe { bindings::rkvm_vmx_apicv(possible) }
}

/// The host wants the first-level data cache flushed before a guest runs (L1TF).
pub(super) fn wants_l1d_flush() -> bool {
    // SAFETY: No requirement.
    unsafe { bindings::rkvm_vmx_wants_l1d_flush() }
}

/// How often the calling task has been switched from, or has had a page fault: a number that changes with
/// each.
pub(super) fn task_events() -> u64 {
    // SAFETY: Reads the calling task's own counters.
    unsafe { bindings::rkvm_vmx_task_events() }
}

/// A host interrupt was taken on this CPU since [`flush_l1d`], or that is not known.
pub(super) fn interrupted_since_flush() -> bool {
    // SAFETY: IRQs are off in a section: the CPU stays the same.
    unsafe { bindings::rkvm_vmx_interrupted_since_flush() }
}

/// Flushes it; where there is no command for that, by reading all of `fill`.
pub(super) fn flush_l1d(fill: &[u8]) {
    // SAFETY: Reads `fill` and no more.
    unsafe { bindings::rkvm_vmx_flush_l1d(fill.as_ptr().cast(), fill.len()) };
}
