// SPDX-License-Identifier: GPL-2.0

//! One vCPU on SVM: its control block, and what the block alone does not say.

mod events;

use self::events::{Nmi, SoftEvent};
use super::check;
use super::decode::{self, code};
use super::enable::{self, Host, Optional};
use super::entry::Run;
use super::intercepts::{self, Own};
use super::msrpm::Msrpm;
use super::seg;
use super::vmcb::{tlb_control, EventInfo, IntCtl, NpControl, TlbControl, Vmcb, VmcbSeg};
use crate::arch::x86::asid::{Asid, Flush};
use crate::arch::x86::backend::{Field, HwCaps, HwVcpu, Since};
use crate::arch::x86::exit::{Event, Exit, Intercepts, Windows};
use crate::arch::x86::insn::{self, msr};
use crate::arch::x86::model::regs::{
    cr0, cr4, efer, rflags, vector, DescTable, Gpr, Gprs, Seg, Segment,
};
use crate::arch::x86::model::sregs::DR6_INIT;
use crate::host::hw_page::HwPage;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kernel::prelude::*;
use kernel::sync::Arc;

/// CR4 bits whose change makes cached translations wrong.
const CR4_PAGING: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
/// PAUSEs in a row before an exit, and the cycles that end a row.
const PAUSE_COUNT: u16 = 3000;
const PAUSE_THRESHOLD: u16 = 128;
/// CPU number of a vCPU that has not run.
const NO_CPU: u32 = u32::MAX;

/// A vCPU.
pub(crate) struct SvmVcpu {
    vmcb: HwPage<Vmcb>,
    msrpm: HwPage<Msrpm>,
    host: Arc<Host>,
    has: Optional,
    run: Run,
    /// Where it ran last, and by which id.
    cpu: u32,
    asid: Asid,
    /// The next entry must not use old translations.
    flush: bool,
    wanted: Intercepts,
    own: Own,
    windows: Windows,
    nmi: Nmi,
    /// The guest is stepped over one instruction for an NMI's sake; the value is its own RFLAGS.TF.
    step: Option<bool>,
    soft: Option<SoftEvent>,
    /// EXITINTINFO of the last exit, once it is taken.
    delivering: EventInfo,
    /// An interrupt that the next run delivers as a virtual one, or that the last one has not.
    virtual_irq: Option<u8>,
    /// CR0.CD and NW as the guest has them; the hardware's are clear.
    cr0_cache: u64,
    /// CR4.MCE as the guest has it; the hardware's is set.
    cr4_mce: bool,
    /// EFER.LME as the guest has it; the hardware's is clear while paging is off.
    efer_lme: bool,
    /// The guest writes SPEC_CTRL without exits.
    spec_direct: bool,
    /// TSC_RATIO of this guest, 8.32 fixed point.
    tsc_ratio: u64,
    /// Tells vCPUs apart, for barriers between them.
    id: u64,
    /// State that VMRUN checks was set since the last entry.
    unchecked: bool,
    /// The rule that it seems to break.
    broken: Option<&'static CStr>,
}

/// The next vCPU's `id`; 0 is nobody's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// TSC_RATIO of 1.
const TSC_RATIO_ONE: u64 = 1 << 32;

impl SvmVcpu {
    /// Allocates it, in an unspecified register state.
    pub(super) fn new(caps: &HwCaps, root: u64) -> Result<Self> {
        let host = enable::host()?;
        let has = host.has;
        let mut vmcb = HwPage::<Vmcb>::new()?;
        let mut msrpm = HwPage::<Msrpm>::new()?;
        msrpm.set_all();
        vmcb.set_iopm_base_pa(host.iopm.phys() | host.encryption);
        vmcb.set_msrpm_base_pa(msrpm.phys() | host.encryption);
        vmcb.set_np_control(NpControl::default().with_np_enable(true));
        vmcb.set_n_cr3(root | host.encryption);
        vmcb.set_int_ctl(IntCtl::default().with_v_intr_masking(true));
        vmcb.set_efer(efer::SVME);
        vmcb.set_g_pat(0x0007_0406_0007_0406);
        vmcb.set_rflags(rflags::FIXED);
        vmcb.set_dr6(DR6_INIT);
        vmcb.set_dr7(0x400);
        if caps.pause_filter {
            vmcb.set_pause_filter_count(PAUSE_COUNT);
            vmcb.set_pause_filter_threshold(PAUSE_THRESHOLD);
        }
        let run = Run::new(&vmcb, host.encryption);
        let mut v = Self {
            vmcb,
            msrpm,
            host,
            has,
            run,
            cpu: NO_CPU,
            asid: Asid::default(),
            flush: true,
            wanted: Intercepts {
                hlt: true,
                rdpmc: true,
                mwait: true,
                ..Intercepts::default()
            },
            own: Own::default(),
            windows: Windows::default(),
            nmi: Nmi::Open,
            step: None,
            soft: None,
            delivering: EventInfo::default(),
            virtual_irq: None,
            cr0_cache: 0,
            efer_lme: false,
            cr4_mce: false,
            spec_direct: false,
            tsc_ratio: TSC_RATIO_ONE,
            id: NEXT_ID.fetch_add(1, Relaxed),
            unchecked: true,
            broken: None,
        };
        v.set_cr0(cr0::ET);
        v.set_cr4(0);
        v.apply_intercepts();
        Ok(v)
    }

    /// Gives the hardware EFER, with LME only where it means something: with paging on. Turning paging on
    /// exits. QEMU's TCG does not reload the host's CR0 when a guest exits that has LME but neither paging
    /// nor PAE.
    fn load_efer(&mut self, v: u64) {
        let lme = match self.efer_lme && self.vmcb.cr0() & cr0::PG != 0 {
            true => efer::LME,
            false => 0,
        };
        self.vmcb.set_efer(v & !efer::LME | lme | efer::SVME);
    }

    fn apply_intercepts(&mut self) {
        intercepts::words(&self.wanted, &self.own).store(&mut self.vmcb);
    }

    fn set_own(&mut self, own: Own) {
        if own != self.own {
            self.own = own;
            self.apply_intercepts();
        }
    }

    /// Makes old translations unusable, in the cheapest way that the hardware has.
    #[cold]
    fn renew_translations(&mut self) {
        let host = &self.host;
        let Some(cpu) = host.cpus.get(self.cpu) else {
            return;
        };
        let mut command = tlb_control::NOTHING;
        if cpu.asids.valid(&self.asid, self.cpu) && self.has.flush_by_asid {
            command = tlb_control::FLUSH_ASID;
        } else {
            let (asid, flush) = cpu.asids.allocate(self.cpu);
            self.asid = asid;
            if flush == Flush::All {
                command = tlb_control::FLUSH_ALL;
            }
        }
        self.vmcb.set_guest_asid(self.asid.value);
        self.vmcb
            .set_tlb_control(TlbControl::default().with_command(command));
        self.flush = false;
    }

    /// Runs the guest once. Returns whether the exit is to be handled; else enter again.
    #[inline]
    fn run_once(&mut self, gprs: &mut Gprs) -> bool {
        if self.flush {
            self.renew_translations();
        }
        if self.windows.nmi {
            self.open_nmi_window();
        }
        if self.unchecked {
            self.check();
        }
        if self.broken.is_some() {
            return self.run_suspicious(gprs);
        }
        self.run_hardware(gprs)
    }

    /// Looks for a rule that the guest's state breaks, before hardware does.
    #[cold]
    fn check(&mut self) {
        self.unchecked = false;
        self.broken = check::broken_rule(&self.vmcb, &self.host.limits);
    }

    /// Hardware has the last word on a state that seems wrong. If it refuses, the state that user space
    /// sees is what it was: what the block holds after a refusal is not defined.
    #[cold]
    fn run_suspicious(&mut self, gprs: &mut Gprs) -> bool {
        let (save, before) = (self.vmcb.save_area(), *gprs);
        let ret = self.run_hardware(gprs);
        self.unchecked = true;
        if self.refused() {
            self.vmcb.restore(&save);
            *gprs = before;
        }
        ret
    }

    #[inline]
    fn run_hardware(&mut self, gprs: &mut Gprs) -> bool {
        self.vmcb.set_rax(gprs.get(Gpr::Rax));
        self.vmcb.set_rsp(gprs.get(Gpr::Rsp));
        let (injected, ctl) = (self.vmcb.eventinj(), self.vmcb.int_ctl());
        if self.run.enter(&mut self.vmcb, gprs).is_err() {
            self.vmcb.set_exitcode(code::VMRUN_FAULT);
            self.vmcb.set_exitintinfo(EventInfo::default());
            self.after_virtual_irq();
            return true;
        }
        gprs.set(Gpr::Rax, self.vmcb.rax());
        gprs.set(Gpr::Rsp, self.vmcb.rsp());
        self.vmcb.set_all_clean();
        if decode::refused(self.vmcb.exitcode()) {
            // Some have cleared what they had not loaded; without V_INTR_MASKING the next guest would
            // not be interrupted.
            self.vmcb.set_eventinj(injected);
            self.vmcb.set_int_ctl(ctl);
        }
        if self.vmcb.exitcode() == code::NPF && !self.vmcb.int_ctl().v_intr_masking() {
            self.exited_twice(ctl);
        }
        if self.vmcb.exitcode() == code::EXCP + u64::from(vector::MC) {
            insn::machine_check();
        }
        if self.vmcb.tlb_control() != TlbControl::default() {
            self.vmcb.set_tlb_control(TlbControl::default());
        }
        if injected.valid() || self.vmcb.exitintinfo().valid() {
            self.after_event();
        }
        self.after_virtual_irq();
        self.nmi == Nmi::Open && self.step.is_none() || self.after_nmi()
    }

    /// No processor clears V_INTR_MASKING in the control block. QEMU's TCG does at the second of two exits of one run:
    /// it walks the host's page tables, for its next instruction, as if they were the guest's, and takes the
    /// fault for one of the guest's. What the block holds then is the host's. Without the bit the next guest
    /// would not be interrupted.
    #[cold]
    fn exited_twice(&mut self, ctl: IntCtl) {
        self.vmcb.set_int_ctl(ctl);
        self.vmcb.set_exitcode(code::EXITED_TWICE);
    }

    fn refused(&self) -> bool {
        matches!(self.exit(), Exit::FailEntry { .. })
    }
}

impl HwVcpu for SvmVcpu {
    fn begin_section(&mut self, _: Since) {
        let Some((cpu, slot)) = self.host.cpus.current() else {
            return;
        };
        if cpu != self.cpu {
            self.cpu = cpu;
            self.vmcb.set_all_dirty();
        }
        if !slot.asids.valid(&self.asid, cpu) {
            self.flush = true;
        }
        // Guests must not steer each other's speculation.
        if self.host.barrier && slot.last.swap(self.id, Relaxed) != self.id {
            let _ = insn::ibpb();
        }
        // A failure shows in the next entry, which does not happen then.
        let _ = self.run.save_host(&slot.save, self.host.encryption);
        let (switch, direct) = (!self.has.v_spec_ctrl, self.spec_direct);
        self.run.spec_ctrl().choose(switch, direct);
        if self.has.tsc_scaling {
            let _ = insn::set_tsc_ratio(self.tsc_ratio);
        }
    }

    fn end_section(&mut self) {
        self.run.forget_host();
        insn::guest_has_run();
    }

    #[inline]
    fn enter(&mut self, gprs: &mut Gprs) {
        /// Exits in a row that are handled here: one for an IRET, one for a step behind it.
        const OWN_EXITS: u32 = 16;
        for _ in 0..OWN_EXITS {
            if self.run_once(gprs) {
                return;
            }
        }
        // The guest makes no progress: let the host look around.
        self.vmcb.set_exitcode(code::INTR);
    }

    #[inline]
    fn exit(&self) -> Exit {
        decode::exit(&self.vmcb, self.has.decode_assists, self.delivering)
    }

    /// APM vol. 2, 15.7.1: saved where an instruction was intercepted. Bochs saves it at exceptions as well, and then
    /// it is not what comes after.
    fn next_rip(&self) -> Option<u64> {
        match (self.vmcb.exitcode(), self.vmcb.nrip()) {
            (code::EXCP..=code::EXCP_LAST | code::NPF | code::TASK_SWITCH, _) | (_, 0) => None,
            (_, n) => self.has.next_rip.then_some(n),
        }
    }

    fn insn_bytes(&self, buf: &mut [u8; 15]) -> usize {
        if !self.has.decode_assists {
            return 0;
        }
        let bytes = self.vmcb.fetched();
        buf.iter_mut().zip(bytes).for_each(|(d, s)| *d = *s);
        bytes.len()
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.rip()
    }
    #[inline]
    fn set_rip(&mut self, v: u64) {
        self.vmcb.set_rip(v);
    }
    #[inline]
    fn rflags(&self) -> u64 {
        match self.step {
            Some(false) => self.vmcb.rflags() & !rflags::TF,
            _ => self.vmcb.rflags(),
        }
    }
    fn set_rflags(&mut self, v: u64) {
        let v = v | rflags::FIXED;
        match &mut self.step {
            Some(own_tf) => {
                *own_tf = v & rflags::TF != 0;
                self.vmcb.set_rflags(v | rflags::TF);
            }
            None => self.vmcb.set_rflags(v),
        }
    }

    fn cr0(&self) -> u64 {
        self.vmcb.cr0() | self.cr0_cache
    }
    fn set_cr0(&mut self, v: u64) {
        // CD in hardware would make all of the guest's memory uncached; caching is the host's.
        self.flush |= (self.vmcb.cr0() ^ v) & (cr0::PE | cr0::WP | cr0::PG) != 0;
        self.cr0_cache = v & (cr0::CD | cr0::NW);
        self.unchecked = true;
        self.vmcb.set_cr0(v & !(cr0::CD | cr0::NW));
        self.load_efer(self.vmcb.efer());
        self.set_own(Own {
            cr0: self.cr0_cache != 0,
            ..self.own
        });
    }
    fn cr2(&self) -> u64 {
        self.vmcb.cr2()
    }
    fn set_cr2(&mut self, v: u64) {
        self.vmcb.set_cr2(v);
    }
    fn cr3(&self) -> u64 {
        self.vmcb.cr3()
    }
    fn set_cr3(&mut self, v: u64) {
        self.flush = true;
        self.unchecked = true;
        self.vmcb.set_cr3(v);
    }
    fn cr4(&self) -> u64 {
        match self.cr4_mce {
            true => self.vmcb.cr4(),
            false => self.vmcb.cr4() & !cr4::MCE,
        }
    }
    fn set_cr4(&mut self, v: u64) {
        // Without MCE a machine check would shut down the machine, not exit.
        self.flush |= (self.vmcb.cr4() ^ v) & CR4_PAGING != 0;
        self.cr4_mce = v & cr4::MCE != 0;
        self.unchecked = true;
        self.vmcb.set_cr4(v | cr4::MCE);
        self.set_own(Own {
            cr4: !self.cr4_mce,
            ..self.own
        });
    }
    fn efer(&self) -> u64 {
        let v = self.vmcb.efer() & !efer::SVME;
        match self.efer_lme {
            true => v | efer::LME,
            false => v,
        }
    }
    fn set_efer(&mut self, v: u64) {
        self.flush |= (self.vmcb.efer() ^ v) & (efer::LMA | efer::NXE) != 0;
        self.unchecked = true;
        self.efer_lme = v & efer::LME != 0;
        self.load_efer(v);
    }
    fn cr8(&self) -> u8 {
        (self.vmcb.int_ctl().v_tpr() & 0xf) as u8
    }
    fn set_cr8(&mut self, v: u8) {
        let ctl = self.vmcb.int_ctl();
        if ctl.v_tpr() != u64::from(v & 0xf) {
            self.vmcb.set_int_ctl(ctl.with_v_tpr(u64::from(v)));
        }
    }
    fn dr6(&self) -> u64 {
        self.vmcb.dr6()
    }
    fn set_dr6(&mut self, v: u64) {
        self.unchecked = true;
        self.vmcb.set_dr6(v);
    }
    fn dr7(&self) -> u64 {
        self.vmcb.dr7()
    }
    fn set_dr7(&mut self, v: u64) {
        self.unchecked = true;
        self.vmcb.set_dr7(v);
    }

    fn segment(&self, s: Seg) -> Segment {
        seg::get(&self.vmcb, s)
    }
    fn set_segment(&mut self, s: Seg, v: &Segment) {
        self.unchecked |= s == Seg::Cs;
        seg::set(&mut self.vmcb, s, v);
    }
    fn tr(&self) -> Segment {
        seg::tr(&self.vmcb)
    }
    fn set_tr(&mut self, v: &Segment) {
        self.vmcb.set_tr(VmcbSeg::new(v));
    }
    fn ldtr(&self) -> Segment {
        self.vmcb.ldtr().get()
    }
    fn set_ldtr(&mut self, v: &Segment) {
        self.vmcb.set_ldtr(VmcbSeg::new(v));
    }
    fn gdtr(&self) -> DescTable {
        self.vmcb.gdtr().table()
    }
    fn set_gdtr(&mut self, v: &DescTable) {
        self.vmcb.set_gdtr(VmcbSeg::from_table(v));
    }
    fn idtr(&self) -> DescTable {
        self.vmcb.idtr().table()
    }
    fn set_idtr(&mut self, v: &DescTable) {
        self.vmcb.set_idtr(VmcbSeg::from_table(v));
    }
    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.cpl() & 3
    }

    fn field(&self, f: Field) -> u64 {
        let b = &self.vmcb;
        match f {
            Field::Star => b.star(),
            Field::Lstar => b.lstar(),
            Field::Cstar => b.cstar(),
            Field::Sfmask => b.sfmask(),
            Field::KernelGsBase => b.kernel_gs_base(),
            Field::SysenterCs => b.sysenter_cs(),
            Field::SysenterEsp => b.sysenter_esp(),
            Field::SysenterEip => b.sysenter_eip(),
            Field::Pat => b.g_pat(),
            Field::SpecCtrl if self.has.v_spec_ctrl => b.spec_ctrl(),
            Field::SpecCtrl => self.run.spec_guest(),
        }
    }
    fn set_field(&mut self, f: Field, v: u64) {
        self.unchecked |= f == Field::Pat;
        let b = &mut self.vmcb;
        match f {
            Field::Star => b.set_star(v),
            Field::Lstar => b.set_lstar(v),
            Field::Cstar => b.set_cstar(v),
            Field::Sfmask => b.set_sfmask(v),
            Field::KernelGsBase => b.set_kernel_gs_base(v),
            Field::SysenterCs => b.set_sysenter_cs(v),
            Field::SysenterEsp => b.set_sysenter_esp(v),
            Field::SysenterEip => b.set_sysenter_eip(v),
            Field::Pat => b.set_g_pat(v),
            Field::SpecCtrl if self.has.v_spec_ctrl => b.set_spec_ctrl(v),
            Field::SpecCtrl => self.run.spec_ctrl().guest = v,
        }
    }

    fn take_undelivered(&mut self) -> Option<Event> {
        self.take_event()
    }
    fn inject(&mut self, e: &Event) {
        self.put_event(e);
    }
    fn set_windows(&mut self, w: Windows) {
        self.open_windows(w);
    }
    #[inline]
    fn interrupt_shadow(&self) -> bool {
        self.vmcb.int_state().shadow()
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        let s = self.vmcb.int_state().with_shadow(on);
        self.vmcb.set_int_state(s);
    }
    fn nmi_masked(&self) -> bool {
        self.nmi != Nmi::Open
    }
    fn set_nmi_masked(&mut self, on: bool) {
        if on != self.nmi_masked() {
            self.set_nmi(if on { Nmi::Masked } else { Nmi::Open });
        }
    }

    fn set_intercepts(&mut self, i: &Intercepts) {
        if *i != self.wanted {
            self.wanted = *i;
            self.apply_intercepts();
        }
    }
    fn set_msr_direct(&mut self, index: u32, read: bool, write: bool) {
        if index == msr::SPEC_CTRL {
            self.spec_direct = write;
        }
        self.msrpm.set_direct(index, read, write);
        // The processor may have parts of the map: make it look again.
        let pa = self.vmcb.msrpm_base_pa();
        self.vmcb.set_msrpm_base_pa(pa);
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.set_tsc_offset(offset);
    }

    fn flush_tlb(&mut self) {
        self.flush = true;
    }
    fn flush_linear(&mut self, _addr: u64) {
        // INVLPGA would do on this CPU only, and only with the ASID still valid; it is rare.
        self.flush = true;
    }

    fn broken_rule(&self) -> Option<&'static CStr> {
        if self.vmcb.exitcode() == code::VMRUN_FAULT {
            return Some(c"SVM is off on this CPU (the machine is going down)");
        }
        if self.vmcb.exitcode() == code::EXITED_TWICE {
            return Some(c"the emulated processor has ended the run twice, and the guest's registers are lost");
        }
        self.broken
    }

    fn reset_events(&mut self) {
        self.vmcb.set_eventinj(EventInfo::default());
        self.vmcb.set_exitintinfo(EventInfo::default());
        self.soft = None;
        self.virtual_irq = None;
        let ctl = self.vmcb.int_ctl();
        self.vmcb.set_int_ctl(ctl.with_v_irq(false));
        self.end_step(false);
        self.set_windows(Windows::default());
        self.set_interrupt_shadow(false);
        self.set_nmi(Nmi::Open);
    }
}
