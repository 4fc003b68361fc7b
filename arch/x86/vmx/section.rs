// SPDX-License-Identifier: GPL-2.0

//! What a guest section brings to a CPU and takes away again: the VMCS, the host's state in it, the
//! MSRs that VMX does not switch, and what a new CPU must forget.

use super::controls::{proc2, Controls};
use super::entry;
use super::field as f;
use super::l1d::Calm;
use super::mirror::Guest;
use super::pml;
use super::vcpu::{Log, Stale, VmxVcpu, Written, CR0_OURS};
use crate::arch::x86::asid::Flush;
use crate::arch::x86::backend::Since;
use crate::arch::x86::insn;
use crate::arch::x86::model::regs::efer;
use core::sync::atomic::Ordering::Relaxed;

/// PAUSEs no further apart than this, in cycles, are one loop; how long it may last.
const PLE_GAP: u32 = 128;
const PLE_WINDOW: u32 = 4096;

impl VmxVcpu {
    /// See [`crate::arch::x86::backend::HwVcpu::begin_section`].
    pub(super) fn begin(&mut self, since: Since) {
        let Some((cpu, slot)) = self.host.cpus.current() else {
            return;
        };
        // A failure shows in the next entry, which does not happen then.
        let Ok(fresh) = self.vmcs.load() else { return };
        if cpu != self.cpu || fresh {
            self.cpu = cpu;
            // What this CPU knows of the tables may be old: it was not told while others ran the guest.
            self.stale = Stale::Tables;
            entry::host_cpu(&mut self.state);
            self.vmcs.put(&f::HOST_GS_BASE, self.state.gs_base);
            self.vmcs.put(&f::HOST_TR_BASE, self.state.tr_base);
            self.vmcs.put(&f::HOST_GDTR_BASE, self.state.gdt_base);
            self.vmcs
                .put(&f::HOST_SYSENTER_ESP, self.state.sysenter_esp);
        }
        let new_guest = slot.last.swap(self.id, Relaxed) != self.id;
        // Guests must not steer each other's speculation.
        if self.host.barrier && new_guest {
            let _ = insn::ibpb();
        }
        let (cr3, cr4, fs_base) = (self.state.cr3, self.state.cr4, self.state.fs_base);
        entry::host_task(&mut self.state);
        if fresh || cr3 != self.state.cr3 {
            self.vmcs.put(&f::HOST_CR3, self.state.cr3);
        }
        if fresh || cr4 != self.state.cr4 {
            self.vmcs.put(&f::HOST_CR4, self.state.cr4);
        }
        if fresh || fs_base != self.state.fs_base {
            self.vmcs.put(&f::HOST_FS_BASE, self.state.fs_base);
        }
        if !slot.vpids.valid(&self.vpid, cpu) {
            let (vpid, flush) = slot.vpids.allocate(cpu);
            self.vpid = vpid;
            if flush == Flush::All {
                entry::invvpid_all();
            }
            self.vmcs.put(&f::VPID, self.vpid());
        }
        if fresh {
            self.write_constant();
        }
        let direct = self.spec_direct;
        self.vmcs.spec_ctrl().choose(true, direct);
        entry::set_kernel_gs(self.kernel_gs);
        if self.dr6_live {
            entry::set_dr6(self.dr6);
        }
        if self.m.get(&self.vmcs, Guest::Efer) & efer::SCE != 0 {
            self.load_syscall();
        }
        if let Some(l1d) = &self.host.l1d {
            let left = self.left.take().filter(|_| since == Since::Fault);
            l1d.flush_unless_calm(left);
        }
    }

    /// See [`crate::arch::x86::backend::HwVcpu::end_section`].
    pub(super) fn end(&mut self) {
        if !self.vmcs.is_current() {
            return;
        }
        self.m.complete(&self.vmcs);
        if let Some(log) = self.log.as_mut().filter(|log| log.on()) {
            if log.section_ends(self.vmcs.get(&f::PML_INDEX)) {
                self.vmcs.put(&f::PML_INDEX, pml::FIRST);
            }
        }
        self.kernel_gs = entry::kernel_gs();
        if self.dr6_live {
            self.dr6 = entry::dr6();
        }
        self.unload_syscall();
        self.vmcs.unload();
        self.left = self.host.l1d.as_ref().map(|_| Calm::now());
        entry::host_restore(&self.state);
        insn::guest_has_run();
    }

    /// The VPID, as the VMCS has it.
    pub(super) fn vpid(&self) -> u16 {
        (self.vpid.value & 0xffff) as u16
    }

    /// SYSCALL's MSRs become the guest's until the section ends. What they are now need not be the host's:
    /// in-tree KVM leaves its own guest's there until this CPU returns to user space, and relies on it.
    pub(super) fn load_syscall(&mut self) {
        if !self.syscall_loaded {
            self.syscall_loaded = true;
            self.syscall_found = entry::syscall_msrs();
            entry::set_syscall_msrs(&self.syscall, &self.syscall_found);
        }
    }

    /// They become what they were.
    pub(super) fn unload_syscall(&mut self) {
        if self.syscall_loaded {
            self.syscall_loaded = false;
            entry::set_syscall_msrs(&self.syscall_found, &self.syscall);
        }
    }

    /// What stays as it is for the vCPU's life: written at its first section.
    #[cold]
    fn write_constant(&mut self) {
        let (v, h, plan) = (&self.vmcs, &self.state, &self.host.plan);
        let Controls { pin, exit, .. } = plan.controls;
        v.put(&f::PIN, pin);
        v.put(&f::EXIT, exit);
        v.put(&f::EPTP, self.eptp);
        v.put(&f::MSR_BITMAP, self.bitmap.phys());
        v.put(&f::VIRTUAL_APIC, self.apic.phys());
        v.put(&f::TPR_THRESHOLD, 0);
        v.put(&f::LINK_POINTER, u64::MAX);
        v.put(&f::PF_MASK, 0);
        v.put(&f::PF_MATCH, 0);
        v.put(&f::CR3_TARGETS, 0);
        v.put(&f::EXIT_STORES, 0);
        v.put(&f::EXIT_LOADS, 0);
        v.put(&f::ENTRY_LOADS, 0);
        v.put(&f::ENTRY_EVENT, 0);
        v.put(&f::CR0_MASK, CR0_OURS);
        v.put(&f::CR4_MASK, u64::MAX);
        v.put(&f::TIMER, self.timer);
        v.put(&f::PLE_GAP, PLE_GAP);
        v.put(&f::PLE_WINDOW, PLE_WINDOW);

        if self.host.delivers {
            self.put_delivery(None);
        }
        if let Some(log) = &self.log {
            v.put(&f::PML_ADDRESS, log.phys());
            v.put(&f::PML_INDEX, pml::FIRST);
        }

        v.put(&f::HOST_CR0, h.cr0);
        v.put(&f::HOST_CS, h.cs);
        v.put(&f::HOST_SS, h.ss);
        v.put(&f::HOST_TR, h.tr);
        // User space's: null while guests run, and put back as they were.
        v.put(&f::HOST_DS, 0);
        v.put(&f::HOST_ES, 0);
        v.put(&f::HOST_FS, 0);
        v.put(&f::HOST_GS, 0);
        v.put(&f::HOST_IDTR_BASE, h.idt_base);
        v.put(&f::HOST_SYSENTER_CS, (h.sysenter_cs & 0xffff_ffff) as u32);
        v.put(&f::HOST_SYSENTER_EIP, h.sysenter_eip);
        v.put(&f::HOST_EFER, h.efer);
        v.put(&f::HOST_PAT, h.pat);
        v.put(&f::HOST_RIP, h.rip);
        self.write_controls();
    }

    /// The controls as they are to be now.
    fn wanted_controls(&self) -> Written {
        let plan = &self.host.plan;
        let mut asked = 0;
        if !self.tsc_ratio.is_one() {
            asked |= proc2::TSC_SCALING;
        }
        if self.log.as_ref().is_some_and(Log::on) {
            asked |= proc2::PML;
        }
        if self.delivery.on {
            asked |= proc2::DELIVERY;
        }
        Written {
            proc: plan.proc(&self.wanted, self.windows),
            proc2: plan.proc2(&self.wanted, asked),
            entry: self.entry_controls(),
            exceptions: super::vcpu::EXCEPTIONS | self.wanted.exceptions,
            tsc_offset: self.tsc_offset,
            tsc_ratio: self.tsc_ratio,
        }
    }

    /// Writes what of them has changed.
    fn write_controls(&mut self) {
        let w = self.wanted_controls();
        let old = self.written.replace(w);
        if old == Some(w) {
            return;
        }
        let v = &self.vmcs;
        let changed = |f: fn(&Written) -> u64| old.as_ref().map(f) != Some(f(&w));
        if changed(|w| w.proc.into()) {
            v.put(&f::PROC, w.proc);
        }
        if changed(|w| w.proc2.into()) {
            v.put(&f::PROC2, w.proc2);
        }
        if changed(|w| w.entry.into()) {
            v.put(&f::ENTRY, w.entry);
        }
        if changed(|w| w.exceptions.into()) {
            v.put(&f::EXCEPTIONS, w.exceptions);
        }
        if changed(|w| w.tsc_offset) {
            v.put(&f::TSC_OFFSET, w.tsc_offset);
        }
        // Not a field of every processor; it counts with its control only.
        if w.proc2 & proc2::TSC_SCALING != 0 {
            v.put(&f::TSC_MULTIPLIER, w.tsc_ratio.ratio);
        }
    }

    /// Before an entry: something else than registers has changed.
    #[cold]
    pub(super) fn prepare(&mut self) {
        self.write_controls();
        match self.stale {
            Stale::Nothing | Stale::Controls => {}
            Stale::Linear => entry::invvpid(self.vpid()),
            // What is combined of both goes with it.
            Stale::Tables => entry::invept(self.eptp),
        }
        self.stale = Stale::Nothing;
        if self.m.get(&self.vmcs, Guest::Efer) & efer::SCE != 0 {
            self.load_syscall();
        }
    }
}
