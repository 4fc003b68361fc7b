// SPDX-License-Identifier: GPL-2.0

//! The boundary between x86 and its two vendors: what SVM and VMX each implement, and nothing else.
//!
//! Static dispatch: `Backend` is a type parameter of everything above it, chosen once at load.
//! A backend knows its hardware; it knows no ioctl, no LAPIC, no memslot.

use super::exit::{Event, Exit, Intercepts, Windows};
use super::model::clock::{TscRatio, TscScaling};
use super::model::lapic::{Hand, Vectors};
use super::model::regs::{DescTable, Gprs, Seg, Segment};
use crate::memory::stage2;
use core::ffi::CStr;
use kernel::prelude::*;

/// What a vendor's hardware offers that those above it ask for; read once at load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HwCaps {
    /// Stage 2 can map 1 GiB at once.
    pub(crate) stage2_1g: bool,
    /// Levels of the stage-2 table, 4 or 5.
    pub(crate) stage2_levels: u8,
    /// PAUSE exits are filtered by count and threshold.
    pub(crate) pause_filter: bool,
    /// Guests can have RDTSCP and RDPID.
    pub(crate) rdtscp: bool,
    /// Guests can have INVPCID.
    pub(crate) invpcid: bool,
    /// A guest's TSC can have a frequency of its own, by a ratio of this form.
    pub(crate) tsc_scaling: Option<TscScaling>,
    /// The processor logs the pages whose leaf it marks dirty ([`stage2::Config::logs_writes`]).
    pub(crate) logs_writes: bool,
}

/// A register that lives in the vendor's control block and that the guest reaches as an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// STAR
    Star,
    /// LSTAR
    Lstar,
    /// CSTAR
    Cstar,
    /// SFMASK
    Sfmask,
    /// KERNEL_GS_BASE
    KernelGsBase,
    /// SYSENTER_CS
    SysenterCs,
    /// SYSENTER_ESP
    SysenterEsp,
    /// SYSENTER_EIP
    SysenterEip,
    /// PAT
    Pat,
    /// SPEC_CTRL
    SpecCtrl,
}

/// A vendor: SVM or VMX.
pub(crate) trait Backend: Sized + Send + Sync + 'static {
    /// For logs and `/sys`: "svm" or "vmx".
    const NAME: &'static str;
    /// The format of its stage-2 tables.
    type Entry: stage2::Entry;
    /// One vCPU's control block and what goes with it.
    type Vcpu: HwVcpu;

    /// Says whether this processor has the vendor's extension (CPUID only).
    fn present() -> bool;

    /// Checks the hardware once, at load, on one CPU.
    ///
    /// # Errors
    /// `ENODEV` when the extension, nested paging, or firmware's permission is missing; `EBUSY` when
    /// another hypervisor holds it. The reason and what to do are logged.
    fn setup() -> Result<HwCaps>;

    /// Turns the extension on, on the calling CPU, IRQs off. Also after hotplug and resume.
    ///
    /// # Errors
    /// `EBUSY` when it is on already and not by us, `EIO` when it does not turn on.
    fn enable_cpu() -> Result;

    /// Turns it off again, on the calling CPU, IRQs off. Does nothing where it is off already.
    fn disable_cpu();

    /// Makes a vCPU in its reset state. `root` is the physical address of the VM's stage-2 root.
    ///
    /// # Errors
    /// `ENOMEM`
    fn vcpu(caps: &HwCaps, root: u64) -> Result<Self::Vcpu>;

    /// Undoes [`Backend::setup`], when the module goes or fails to load: after
    /// [`Backend::disable_cpu`] on every CPU, with no vCPU left.
    fn teardown();
}

/// What was done in a vCPU's name between two of its guest sections, as far as it may have brought what
/// the guest must not see into the processor's caches.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Since {
    /// Anything: user space has run, an instruction was emulated.
    Anything,
    /// A stage-2 fault was resolved, and what was due to the guest was put where it reads it.
    Fault,
}

/// One vCPU, as its vendor sees it.
///
/// Exclusively owned by whoever holds the vCPU's lock. Register accessors act on the control block in
/// memory; none executes a privileged instruction, so they may be called on any CPU, at any time
/// outside of [`HwVcpu::enter`].
pub(crate) trait HwVcpu: Send {
    /// A guest section begins on the calling CPU, IRQs off: gets what lasts until its end ready
    /// (the host's state, the address-space id, a new CPU's caches). No [`HwVcpu::enter`] without.
    /// `since`: what was done for the vCPU since its last section.
    fn begin_section(&mut self, since: Since);
    /// The section ends, on the same CPU, IRQs still off. The host's DR7 is the caller's to restore:
    /// an exit leaves it without breakpoints.
    fn end_section(&mut self);

    /// Enters the guest and returns at the next exit. IRQs and preemption are off, the guest's FPU
    /// is loaded. On return all of `gprs` (RAX and RSP too) is the guest's.
    ///
    /// Chooses and flushes address-space ids as needed (a new CPU, [`HwVcpu::flush_tlb`] called).
    fn enter(&mut self, gprs: &mut Gprs);

    /// Why the last [`HwVcpu::enter`] returned. Pure: reads the control block only.
    fn exit(&self) -> Exit;

    /// RIP after the instruction that exited, where the hardware says so.
    fn next_rip(&self) -> Option<u64>;

    /// The bytes that the hardware fetched at the exit, where it does: copied to `buf`, the count
    /// is returned.
    fn insn_bytes(&self, buf: &mut [u8; 15]) -> usize;

    /// RIP
    fn rip(&self) -> u64;
    /// Sets RIP.
    fn set_rip(&mut self, v: u64);
    /// RFLAGS
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, v: u64);

    /// CR0, CR2, CR3, CR4 and EFER as the guest sees them.
    fn cr0(&self) -> u64;
    /// Sets CR0.
    fn set_cr0(&mut self, v: u64);
    /// CR2
    fn cr2(&self) -> u64;
    /// Sets CR2.
    fn set_cr2(&mut self, v: u64);
    /// CR3
    fn cr3(&self) -> u64;
    /// Sets CR3.
    fn set_cr3(&mut self, v: u64);
    /// CR4
    fn cr4(&self) -> u64;
    /// Sets CR4.
    fn set_cr4(&mut self, v: u64);
    /// EFER (without the bits that the hypervisor needs set).
    fn efer(&self) -> u64;
    /// Sets EFER.
    fn set_efer(&mut self, v: u64);
    /// The current task priority as CR8 shows it, 0 to 15.
    fn cr8(&self) -> u8;
    /// Sets it.
    fn set_cr8(&mut self, v: u8);
    /// DR6
    fn dr6(&self) -> u64;
    /// Sets DR6.
    fn set_dr6(&mut self, v: u64);
    /// DR7
    fn dr7(&self) -> u64;
    /// Sets DR7.
    fn set_dr7(&mut self, v: u64);

    /// A segment register with its hidden part.
    fn segment(&self, s: Seg) -> Segment;
    /// Sets a segment register. Setting SS or CS keeps the processor's CPL right (SS.DPL).
    fn set_segment(&mut self, s: Seg, v: &Segment);
    /// TR
    fn tr(&self) -> Segment;
    /// Sets TR.
    fn set_tr(&mut self, v: &Segment);
    /// LDTR
    fn ldtr(&self) -> Segment;
    /// Sets LDTR.
    fn set_ldtr(&mut self, v: &Segment);
    /// GDTR
    fn gdtr(&self) -> DescTable;
    /// Sets GDTR.
    fn set_gdtr(&mut self, v: &DescTable);
    /// IDTR
    fn idtr(&self) -> DescTable;
    /// Sets IDTR.
    fn set_idtr(&mut self, v: &DescTable);
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// A register of the control block that the guest reaches as an MSR.
    fn field(&self, f: Field) -> u64;
    /// Sets it.
    fn set_field(&mut self, f: Field, v: u64);

    /// The event whose delivery the exit cut short; it must be injected again. Taken: a second call
    /// returns `None`.
    fn take_undelivered(&mut self) -> Option<Event>;
    /// Puts an event in for the next entry. At most one at a time; see [`HwVcpu::injecting`].
    ///
    /// For a soft event with RIP at the instruction and hardware that cannot push the address
    /// behind it, the backend arranges that the guest's return address is right.
    fn inject(&mut self, e: &Event);
    /// Asks for exits when the guest can take an interrupt or NMI.
    fn set_windows(&mut self, w: Windows);
    /// Interrupts are held back for one instruction after STI or MOV SS (POP SS).
    fn interrupt_shadow(&self) -> bool;
    /// Sets or clears that.
    fn set_interrupt_shadow(&mut self, on: bool);
    /// NMIs are held back until the next IRET.
    fn nmi_masked(&self) -> bool;
    /// Sets or clears that.
    fn set_nmi_masked(&mut self, on: bool);

    /// What exits are wanted.
    fn set_intercepts(&mut self, i: &Intercepts);
    /// Lets the guest read or write an MSR without an exit, or takes that back. MSRs which the
    /// hardware's bitmap does not cover always exit.
    fn set_msr_direct(&mut self, index: u32, read: bool, write: bool);
    /// All of a port range exits by default; nothing to set.
    ///
    /// Guest TSC = host TSC (scaled) + offset, modulo 2^64.
    fn set_tsc_offset(&mut self, offset: u64);
    /// The scale: 1 unless [`HwCaps::tsc_scaling`].
    fn set_tsc_ratio(&mut self, _ratio: TscRatio) {}

    /// The hardware counts the host's TSC down while the guest runs, halted or not, and the guest's has
    /// the same frequency: [`HwVcpu::stay`] has an effect.
    #[inline]
    fn counts_down(&self) -> bool {
        false
    }
    /// In a section, or nothing happens: entries are to last no longer than this, in ticks of the TSC
    /// ([`Exit::TimeIsUp`]); `u64::MAX`: than the hardware's bound.
    #[inline]
    fn stay(&mut self, _ticks: u64) {}

    /// Drops every cached translation of this vCPU before the next entry.
    fn flush_tlb(&mut self);
    /// Drops one linear address' cached translations (guest's INVLPG), before the next entry.
    fn flush_linear(&mut self, addr: u64);

    /// The processor is to log the guest's writes, or need not. Before a section; only where
    /// [`HwCaps::logs_writes`].
    #[inline]
    fn log_writes(&mut self, _on: bool) {}
    /// Calls `page` with the guest-physical address of each page that it has logged, once the section
    /// has ended, IRQs still off.
    #[inline]
    fn written(&mut self, _page: impl FnMut(u64)) {}

    /// After [`Exit::FailEntry`]: the first rule of the manual that the guest's state breaks, for
    /// people; `None` when every rule that we know holds.
    fn broken_rule(&self) -> Option<&'static CStr>;

    /// PAE paging is on, and the hardware holds the four page-directory pointers that CR3 refers to
    /// instead of reading them in memory: they are to be given before the next entry.
    #[inline]
    fn wants_pdptes(&self) -> bool {
        false
    }
    /// Gives them.
    fn set_pdptes(&mut self, _v: &[u64; 4]) {}

    /// The processor can deliver and end the interrupts of an APIC by itself (virtual-interrupt
    /// delivery).
    #[inline]
    fn delivers(&self) -> bool {
        false
    }
    /// In a section: it does so from the next entry on, and begins with this; `None`: no longer.
    fn hand_over(&mut self, _hand: Option<&Hand>) {}
    /// After an exit while it does: IRR and ISR, if they have changed.
    #[inline]
    fn taken(&mut self) -> Option<(Vectors, Vectors)> {
        None
    }
    /// The task priority, as far as the hardware knows of it: at least its class.
    #[inline]
    fn tpr(&self) -> u8 {
        self.cr8() << 4
    }

    /// The state after RESET or INIT is the caller's (it sets every register); this resets what only
    /// the backend knows: pending injection, windows, shadow, NMI mask.
    fn reset_events(&mut self);
}
