// SPDX-License-Identifier: GPL-2.0

//! One vCPU on VMX: its VMCS, the copy of the guest's state, and what neither says.

mod events;

use super::check::{self, interruptibility, pending, State};
use super::controls::{entry as entry_control, proc2};
use super::decode::{self, reason, Raw};
use super::delivery::{self, Delivery, VTPR};
use super::enable::{self, Host};
use super::entry::{self, HostState, SyscallMsrs, Vmcs};
use super::ept;
use super::event::Injection;
use super::field as f;
use super::l1d::Calm;
use super::mirror::{Guest, Mirror, LDTR, TR};
use super::pml;
use crate::arch::x86::asid::Asid;
use crate::arch::x86::backend::{Field, HwCaps, HwVcpu, Since};
use crate::arch::x86::exit::{Event, Exit, Intercepts, Windows};
use crate::arch::x86::insn::msr;
use crate::arch::x86::model::clock::TscRatio;
use crate::arch::x86::model::lapic::{Hand, Vectors};
use crate::arch::x86::model::msr::permission;
use crate::arch::x86::model::regs::{
    cr0, cr4, efer, rflags, vector, DescTable, Gpr, Gprs, Seg, Segment,
};
use crate::arch::x86::model::sregs::DR6_INIT;
use crate::host::hw_page::HwPage;
use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use kernel::prelude::*;
use kernel::sync::Arc;

/// CR0 bits that the guest cannot change without an exit: all but TS and MP.
pub(super) const CR0_OURS: u64 = !(cr0::TS | cr0::MP);
/// CR4 bits whose change makes cached translations wrong.
const CR4_PAGING: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
/// What exits for every guest: a guest can make endless #DB and #AC that hold back all interrupts; machine
/// checks are the host's.
pub(super) const EXCEPTIONS: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;
/// CPU number of a vCPU that has not run.
const NO_CPU: u32 = u32::MAX;

/// What an entry has to see to first, in rising order: each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stale {
    /// Nothing.
    Nothing,
    /// The controls.
    Controls,
    /// Cached translations of linear addresses.
    Linear,
    /// All cached translations.
    Tables,
}

/// The controls that change, as the VMCS has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) proc: u32,
    pub(super) proc2: u32,
    pub(super) entry: u32,
    pub(super) exceptions: u32,
    pub(super) tsc_offset: u64,
    pub(super) tsc_ratio: TscRatio,
}

/// The page-modification log.
pub(super) struct Log {
    page: HwPage<pml::Page>,
    /// The control is to be on.
    on: bool,
    /// The next entry, of a section that has ended.
    next: u16,
}

impl Log {
    fn new() -> Result<Self> {
        Ok(Self {
            page: HwPage::new()?,
            on: false,
            next: pml::FIRST,
        })
    }

    /// Where the VMCS has it.
    pub(super) fn phys(&self) -> u64 {
        self.page.phys()
    }

    /// It is wanted.
    pub(super) fn on(&self) -> bool {
        self.on
    }

    /// A section ends, with this index. Returns whether that has to be written again.
    pub(super) fn section_ends(&mut self, next: u16) -> bool {
        self.next = next;
        next != pml::FIRST
    }
}

/// A vCPU.
pub(crate) struct VmxVcpu {
    pub(super) vmcs: Vmcs,
    /// The guest's registers.
    pub(super) m: KBox<Mirror>,
    /// Which MSRs exit.
    pub(super) bitmap: HwPage<[u8; 4096]>,
    /// The virtual-APIC page: the task priority.
    pub(super) apic: HwPage<[u8; 4096]>,
    pub(super) host: Arc<Host>,
    /// The host's state, as the VMCS has it.
    pub(super) state: KBox<HostState>,
    pub(super) eptp: u64,
    /// Where it ran last, and by which id.
    pub(super) cpu: u32,
    pub(super) vpid: Asid,
    pub(super) stale: Stale,
    pub(super) wanted: Intercepts,
    pub(super) windows: Windows,
    /// `None`: not yet.
    pub(super) written: Option<Written>,
    pub(super) tsc_offset: u64,
    pub(super) tsc_ratio: TscRatio,
    /// Where writes are logged, where that is possible.
    pub(super) log: Option<Log>,
    /// CR3, or the mode of paging, was set: the VMCS' page-directory pointers are not those of CR3.
    pdptes_stale: bool,
    /// For the next entry.
    event: Injection,
    /// The last entry failed: the VMCS still has an event, or may have.
    event_left: bool,
    /// What the last exit said.
    raw: Raw,
    undelivered: Option<Event>,
    /// SYSCALL's MSRs, of the guest; they are in the processor.
    pub(super) syscall: SyscallMsrs,
    pub(super) syscall_loaded: bool,
    /// What they were before.
    pub(super) syscall_found: SyscallMsrs,
    /// KERNEL_GS_BASE of the guest; in the processor during sections.
    pub(super) kernel_gs: u64,
    /// DR6 of the guest; in the processor during sections, while it uses debug registers.
    pub(super) dr6: u64,
    pub(super) dr6_live: bool,
    /// The guest writes SPEC_CTRL without exits.
    pub(super) spec_direct: bool,
    /// What the preemption timer begins from.
    pub(super) timer: u32,
    /// The processor delivers interrupts, or does not.
    pub(super) delivery: Delivery,
    /// The task when the last section ended, where L1D is to be flushed.
    pub(super) left: Option<Calm>,
    /// Tells vCPUs apart, for barriers between them.
    pub(super) id: u64,
}

/// The next vCPU's `id`; 0 is nobody's.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl VmxVcpu {
    /// Allocates it, in an unspecified register state.
    pub(super) fn new(caps: &HwCaps, root: u64) -> Result<Self> {
        let host = enable::host()?;
        let log = match host.plan.has2(proc2::PML) {
            true => Some(Log::new()?),
            false => None,
        };
        let timer = host.stay(u64::MAX);
        let mut bitmap = HwPage::<[u8; 4096]>::new()?;
        bitmap.fill(0xff);
        let mut m = KBox::new(Mirror::new(), GFP_KERNEL)?;
        m.set(Guest::Pat, 0x0007_0406_0007_0406);
        m.set(Guest::Rflags, rflags::FIXED);
        m.set(Guest::Dr7, 0x400);
        let mut v = Self {
            vmcs: Vmcs::new(host.plan.revision)?,
            m,
            bitmap,
            apic: HwPage::new()?,
            state: KBox::new(host.constant, GFP_KERNEL)?,
            eptp: ept::pointer(root, caps.stage2_levels, host.plan.ept_track),
            host,
            cpu: NO_CPU,
            vpid: Asid::default(),
            stale: Stale::Tables,
            wanted: Intercepts {
                hlt: true,
                rdpmc: true,
                mwait: true,
                debug_regs: true,
                ..Intercepts::default()
            },
            windows: Windows::default(),
            written: None,
            tsc_offset: 0,
            tsc_ratio: TscRatio::one(0),
            log,
            pdptes_stale: false,
            event: Injection::default(),
            event_left: false,
            raw: Raw::default(),
            undelivered: None,
            syscall: SyscallMsrs::default(),
            syscall_loaded: false,
            syscall_found: SyscallMsrs::default(),
            kernel_gs: 0,
            dr6: DR6_INIT,
            dr6_live: false,
            spec_direct: false,
            timer,
            delivery: Delivery::default(),
            left: None,
            id: NEXT_ID.fetch_add(1, Relaxed),
        };
        v.set_cr0(cr0::ET);
        v.set_cr4(0);
        Ok(v)
    }

    #[inline]
    fn get(&self, g: Guest) -> u64 {
        self.m.get(&self.vmcs, g)
    }

    #[inline]
    fn mark(&mut self, s: Stale) {
        self.stale = self.stale.max(s);
    }

    fn mark_if(&mut self, changed: bool, s: Stale) {
        if changed {
            self.mark(s);
        }
    }

    /// The VM-entry controls.
    pub(super) fn entry_controls(&self) -> u32 {
        let long = match self.get(Guest::Efer) & efer::LMA {
            0 => 0,
            _ => entry_control::LONG_MODE,
        };
        self.host.plan.controls.entry | long
    }

    /// Delivery's fields go to the VMCS, which has `old`, or nothing yet.
    pub(super) fn put_delivery(&self, old: Option<&Delivery>) {
        let new = &self.delivery;
        if old.is_none_or(|old| old.status != new.status) {
            self.vmcs.put(&f::INTERRUPT_STATUS, new.status);
        }
        if old.is_none_or(|old| old.eoi_exits != new.eoi_exits) {
            for (field, bits) in f::EOI_EXITS.iter().zip(new.eoi_exits) {
                self.vmcs.put(field, bits);
            }
        }
    }

    fn is_64bit(&self) -> bool {
        self.get(Guest::Efer) & efer::LMA != 0 && self.m.attr(&self.vmcs, Seg::Cs).long()
    }
}

/// What the processor insists on in a segment that can be used: it has been accessed.
fn accessed(v: &Segment) -> Segment {
    let mut v = *v;
    if v.attr.s() && v.attr.present() && !v.attr.unusable() {
        v.attr.0 |= 1;
    }
    v
}

impl HwVcpu for VmxVcpu {
    fn begin_section(&mut self, since: Since) {
        self.begin(since);
    }

    fn end_section(&mut self) {
        self.end();
    }

    #[inline]
    fn enter(&mut self, gprs: &mut Gprs) {
        if self.stale != Stale::Nothing {
            self.prepare();
        }
        self.m.set(Guest::Rsp, gprs.get(Gpr::Rsp));
        if self.m.is_dirty() {
            if self.m.is_changed(Guest::Rflags) || self.m.is_changed(Guest::Interruptibility) {
                self.match_shadow();
            }
            self.m.flush(&self.vmcs);
        }
        let injected = self.event.info.valid();
        if injected || self.event_left {
            self.write_event();
        }
        match self.vmcs.enter(gprs) {
            Ok(true) => {}
            refused => {
                self.event_left = true;
                return self.not_entered(refused.is_ok());
            }
        }
        let (reason, info) = self.vmcs.reason();
        if reason & reason::FAILED != 0 {
            // The guest's state is what it was, and the event stays in, for `broken_rule`.
            self.event_left = true;
            self.raw = Raw {
                reason,
                qualification: self.vmcs.get(&f::QUALIFICATION),
                ..Raw::default()
            };
            return;
        }
        if injected || self.event_left {
            // The processor has cleared it in the VMCS.
            self.event = Injection::default();
            self.event_left = false;
        }
        self.m.exited();
        gprs.set(Gpr::Rsp, self.get(Guest::Rsp));
        self.read_exit(reason, info);
    }

    #[inline]
    fn exit(&self) -> Exit {
        decode::exit(&self.raw, || self.next_rip())
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        if self.raw.length == 0 {
            return None;
        }
        let rip = self.get(Guest::Rip);
        let next = rip.wrapping_add(u64::from(self.raw.length));
        // Only 64-bit code is above 4 GiB, or goes there.
        Some(if next >> 32 == 0 || rip >> 32 != 0 || self.is_64bit() {
            next
        } else {
            next & 0xffff_ffff
        })
    }

    fn insn_bytes(&self, _buf: &mut [u8; 15]) -> usize {
        0
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.get(Guest::Rip)
    }
    #[inline]
    fn set_rip(&mut self, v: u64) {
        self.m.set(Guest::Rip, v);
    }
    #[inline]
    fn rflags(&self) -> u64 {
        self.get(Guest::Rflags)
    }
    fn set_rflags(&mut self, v: u64) {
        self.m.set(Guest::Rflags, v | rflags::FIXED);
    }

    fn cr0(&self) -> u64 {
        self.get(Guest::Cr0) & !CR0_OURS | self.get(Guest::Cr0Shadow) & CR0_OURS
    }
    fn set_cr0(&mut self, v: u64) {
        let changed = self.get(Guest::Cr0Shadow) ^ v;
        self.mark_if(changed & (cr0::PE | cr0::WP | cr0::PG) != 0, Stale::Linear);
        self.pdptes_stale |= changed & (cr0::PG | cr0::CD | cr0::NW) != 0;
        let [needed, _] = self.host.limits.cr0;
        self.m.set(Guest::Cr0Shadow, v);
        // CD in hardware would make all of the guest's memory uncached; caching is the host's.
        let v = v & !(cr0::CD | cr0::NW) | needed & !(cr0::PE | cr0::PG);
        self.m.set(Guest::Cr0, v);
    }
    fn cr2(&self) -> u64 {
        self.vmcs.cr2()
    }
    fn set_cr2(&mut self, v: u64) {
        self.vmcs.set_cr2(v);
    }
    fn cr3(&self) -> u64 {
        self.get(Guest::Cr3)
    }
    fn set_cr3(&mut self, v: u64) {
        self.mark(Stale::Linear);
        self.pdptes_stale = true;
        self.m.set(Guest::Cr3, v);
    }
    #[inline]
    fn cr4(&self) -> u64 {
        self.get(Guest::Cr4Shadow)
    }
    fn set_cr4(&mut self, v: u64) {
        let changed = self.get(Guest::Cr4Shadow) ^ v;
        self.mark_if(changed & CR4_PAGING != 0, Stale::Linear);
        self.pdptes_stale |= changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0;
        let [needed, has] = self.host.limits.cr4;
        self.m.set(Guest::Cr4Shadow, v);
        // Without MCE a machine check would shut down the machine, not exit.
        self.m.set(Guest::Cr4, v | needed | cr4::MCE & has);
    }
    #[inline]
    fn efer(&self) -> u64 {
        self.get(Guest::Efer)
    }
    fn set_efer(&mut self, v: u64) {
        let changed = self.get(Guest::Efer) ^ v;
        self.mark_if(changed & (efer::LMA | efer::NXE) != 0, Stale::Linear);
        self.mark(Stale::Controls);
        self.pdptes_stale |= changed & efer::LMA != 0;
        self.m.set(Guest::Efer, v);
    }
    #[inline]
    fn cr8(&self) -> u8 {
        self.apic.get(VTPR).map_or(0, |tpr| tpr >> 4)
    }
    fn set_cr8(&mut self, v: u8) {
        if let Some(tpr) = self.apic.get_mut(VTPR) {
            *tpr = v << 4;
        }
    }
    fn dr6(&self) -> u64 {
        match self.dr6_live && self.vmcs.is_current() {
            true => entry::dr6(),
            false => self.dr6,
        }
    }
    fn set_dr6(&mut self, v: u64) {
        self.dr6 = v;
        if self.dr6_live && self.vmcs.is_current() {
            entry::set_dr6(v);
        }
    }
    fn dr7(&self) -> u64 {
        self.get(Guest::Dr7)
    }
    fn set_dr7(&mut self, v: u64) {
        self.m.set(Guest::Dr7, v);
    }

    fn segment(&self, s: Seg) -> Segment {
        self.m.segment(&self.vmcs, s)
    }
    fn set_segment(&mut self, s: Seg, v: &Segment) {
        self.m.set_segment(s, &accessed(v));
    }
    fn tr(&self) -> Segment {
        self.m.system(&self.vmcs, TR)
    }
    fn set_tr(&mut self, v: &Segment) {
        let mut v = *v;
        // A task register that is loaded is busy.
        v.attr.0 |= 2;
        self.m.set_system(TR, &v);
    }
    fn ldtr(&self) -> Segment {
        self.m.system(&self.vmcs, LDTR)
    }
    fn set_ldtr(&mut self, v: &Segment) {
        self.m.set_system(LDTR, v);
    }
    fn gdtr(&self) -> DescTable {
        self.m.table(&self.vmcs, Guest::GdtrBase, Guest::GdtrLimit)
    }
    fn set_gdtr(&mut self, v: &DescTable) {
        self.m.set_table(Guest::GdtrBase, Guest::GdtrLimit, v);
    }
    fn idtr(&self) -> DescTable {
        self.m.table(&self.vmcs, Guest::IdtrBase, Guest::IdtrLimit)
    }
    fn set_idtr(&mut self, v: &DescTable) {
        self.m.set_table(Guest::IdtrBase, Guest::IdtrLimit, v);
    }
    #[inline]
    fn cpl(&self) -> u8 {
        self.m.attr(&self.vmcs, Seg::Ss).dpl()
    }

    fn field(&self, x: Field) -> u64 {
        match x {
            Field::Star => self.syscall.star,
            Field::Lstar => self.syscall.lstar,
            Field::Cstar => self.syscall.cstar,
            Field::Sfmask => self.syscall.sfmask,
            Field::KernelGsBase if self.vmcs.is_current() => entry::kernel_gs(),
            Field::KernelGsBase => self.kernel_gs,
            Field::SysenterCs => self.get(Guest::SysenterCs),
            Field::SysenterEsp => self.get(Guest::SysenterEsp),
            Field::SysenterEip => self.get(Guest::SysenterEip),
            Field::Pat => self.get(Guest::Pat),
            Field::SpecCtrl => self.vmcs.spec_guest(),
        }
    }
    fn set_field(&mut self, x: Field, v: u64) {
        match x {
            Field::Star | Field::Lstar | Field::Cstar | Field::Sfmask => {
                self.unload_syscall();
                match x {
                    Field::Star => self.syscall.star = v,
                    Field::Lstar => self.syscall.lstar = v,
                    Field::Cstar => self.syscall.cstar = v,
                    _ => self.syscall.sfmask = v,
                }
                self.mark(Stale::Controls);
            }
            Field::KernelGsBase => {
                self.kernel_gs = v;
                if self.vmcs.is_current() {
                    entry::set_kernel_gs(v);
                }
            }
            Field::SysenterCs => self.m.set(Guest::SysenterCs, v & 0xffff_ffff),
            Field::SysenterEsp => self.m.set(Guest::SysenterEsp, v),
            Field::SysenterEip => self.m.set(Guest::SysenterEip, v),
            Field::Pat => self.m.set(Guest::Pat, v),
            Field::SpecCtrl => self.vmcs.spec_ctrl().guest = v,
        }
    }

    #[inline]
    fn take_undelivered(&mut self) -> Option<Event> {
        self.undelivered.take()
    }
    fn inject(&mut self, e: &Event) {
        self.put_event(e);
    }
    fn set_windows(&mut self, w: Windows) {
        self.mark_if(w != self.windows, Stale::Controls);
        self.windows = w;
    }
    #[inline]
    fn interrupt_shadow(&self) -> bool {
        let shadow = interruptibility::STI | interruptibility::MOV_SS;
        self.get(Guest::Interruptibility) & shadow != 0
    }
    #[inline]
    fn set_interrupt_shadow(&mut self, on: bool) {
        if on != self.interrupt_shadow() {
            let rest = self.get(Guest::Interruptibility)
                & !(interruptibility::STI | interruptibility::MOV_SS);
            let shadow = if on { interruptibility::STI } else { 0 };
            self.m.set(Guest::Interruptibility, rest | shadow);
            if !on {
                // A step that MOV SS has put off is over, too: whoever steps over an instruction tells of it.
                let due = self.get(Guest::PendingDebug) & !pending::STEP;
                self.m.set(Guest::PendingDebug, due);
            }
        }
    }
    fn nmi_masked(&self) -> bool {
        self.get(Guest::Interruptibility) & interruptibility::NMI != 0
    }
    fn set_nmi_masked(&mut self, on: bool) {
        let rest = self.get(Guest::Interruptibility) & !interruptibility::NMI;
        let nmi = if on { interruptibility::NMI } else { 0 };
        self.m.set(Guest::Interruptibility, rest | nmi);
    }

    fn set_intercepts(&mut self, i: &Intercepts) {
        self.mark_if(*i != self.wanted, Stale::Controls);
        self.wanted = *i;
        let live = !i.debug_regs;
        if live != self.dr6_live {
            let dr6 = self.dr6();
            self.dr6_live = live;
            self.set_dr6(dr6);
        }
    }
    fn set_msr_direct(&mut self, index: u32, read: bool, write: bool) {
        let (read, write) = match index {
            // Not in the processor but while the guest uses SYSCALL.
            msr::STAR..=msr::SFMASK => (false, false),
            // Rarely written, so that they need not be read back.
            0x174..=0x176 => (read, false),
            _ => (read, write),
        };
        if index == msr::SPEC_CTRL {
            self.spec_direct = write;
        }
        let _ = permission::vmx_set(&mut self.bitmap[..], index, !read, !write);
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.mark(Stale::Controls);
    }

    fn set_tsc_ratio(&mut self, ratio: TscRatio) {
        self.tsc_ratio = ratio;
        self.mark(Stale::Controls);
    }

    #[inline]
    fn log_writes(&mut self, on: bool) {
        if let Some(log) = self.log.as_mut().filter(|log| log.on != on) {
            log.on = on;
            self.mark(Stale::Controls);
        }
    }
    #[inline]
    fn written(&mut self, page: impl FnMut(u64)) {
        if let Some(log) = self.log.as_mut().filter(|log| log.next != pml::FIRST) {
            pml::logged(&log.page, log.next).for_each(page);
            log.next = pml::FIRST;
        }
    }

    #[inline]
    fn counts_down(&self) -> bool {
        // MWAIT of the guest's own could take the processor to where it does not count.
        self.host.plan.has_timer() && self.wanted.mwait && self.tsc_ratio.is_one()
    }
    #[inline]
    fn stay(&mut self, ticks: u64) {
        let timer = self.host.stay(ticks);
        if timer != self.timer && self.vmcs.is_current() {
            self.timer = timer;
            self.vmcs.put(&f::TIMER, timer);
        }
    }

    fn flush_tlb(&mut self) {
        self.mark(Stale::Tables);
    }
    fn flush_linear(&mut self, _addr: u64) {
        self.mark(Stale::Linear);
    }

    #[inline]
    fn delivers(&self) -> bool {
        self.host.delivers
    }
    fn hand_over(&mut self, hand: Option<&Hand>) {
        let old = self.delivery;
        self.delivery.on = hand.is_some();
        if let Some(hand) = hand {
            self.delivery.give(&mut self.apic, hand);
            self.put_delivery(Some(&old));
        }
        if self.delivery.on != old.on {
            let exits = !self.delivery.on;
            let _ = permission::vmx_set(&mut self.bitmap[..], delivery::TPR, exits, exits);
            let _ = permission::vmx_set(&mut self.bitmap[..], delivery::EOI, true, exits);
            self.mark(Stale::Controls);
        }
    }
    #[inline]
    fn taken(&mut self) -> Option<(Vectors, Vectors)> {
        let status = self.vmcs.get(&f::INTERRUPT_STATUS);
        self.delivery.taken(&self.apic, status)
    }
    #[inline]
    fn tpr(&self) -> u8 {
        self.apic.get(VTPR).copied().unwrap_or(0)
    }

    fn broken_rule(&self) -> Option<&'static CStr> {
        match self.raw.reason {
            reason::NO_VMX => return Some(c"VMX is off on this CPU (the machine is going down)"),
            reason::VMFAIL => {
                return match self.raw.qualification {
                    7 => Some(c"the controls do not go together"),
                    8 => Some(c"the host's state is not as it should be"),
                    26 => Some(c"events are blocked by MOV SS"),
                    _ => None,
                }
            }
            _ => {}
        }
        check::broken_rule(&State {
            guest: &self.m.values(&self.vmcs),
            entry: self.entry_controls(),
            event: self.event,
            limits: &self.host.limits,
        })
    }

    #[inline]
    fn wants_pdptes(&self) -> bool {
        self.pdptes_stale
            && self.get(Guest::Cr0) & cr0::PG != 0
            && self.cr4() & cr4::PAE != 0
            && self.efer() & efer::LMA == 0
    }
    fn set_pdptes(&mut self, v: &[u64; 4]) {
        let fields = [Guest::Pdpte0, Guest::Pdpte1, Guest::Pdpte2, Guest::Pdpte3];
        for (g, v) in fields.into_iter().zip(v) {
            self.m.set(g, *v);
        }
        self.pdptes_stale = false;
    }

    fn reset_events(&mut self) {
        self.forget_events();
    }
}
