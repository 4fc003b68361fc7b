// SPDX-License-Identifier: GPL-2.0

//! An x86 vCPU under its lock.

use super::{
    backend::{Backend, Field, HwVcpu, Since},
    debug::GuestDebug,
    emu::Code,
    exit::Intercepts,
    host::Host,
    insn::{self, fpu::GuestFpu, GuestBreakpoints},
    io::Pending,
    model::{
        cpuid::{CpuidTable, Dynamic, Entry, GuestFeatures},
        events::{Cpu, Events},
        lapic::{Config, Effect, Features, Hand, Lapic, Timer},
        msr::MsrState,
        regs::{cr0, efer, rflags, Gpr, Gprs, Seg, SegAttr, Segment},
        sregs::{Control, DR6_INIT, DR7_INIT},
        walk::Paging,
    },
    pv::Pv,
    shared::{Alarm, Mail, Ringer},
    time::Tsc,
    vm::VmState,
};
use crate::memory::TableCache;
use kernel::{prelude::*, sync::Arc};

/// `kvm_mp_state` of x86.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MpState {
    /// Runs, or would.
    Runnable,
    /// Waits for INIT: an application processor after power-up.
    Uninitialized,
    /// Got INIT, waits for the start-up message.
    InitReceived,
    /// Executed HLT.
    Halted,
}

/// An x86 vCPU.
pub(crate) struct Vcpu<B: Backend> {
    /// The vendor's part: control block and what goes with it.
    pub(crate) hw: B::Vcpu,
    /// What the host offers.
    pub(crate) host: &'static Host,
    /// General registers.
    pub(crate) gprs: Gprs,
    /// FPU, SSE, AVX… state and XCR0.
    pub(crate) fpu: GuestFpu,
    /// Its local APIC.
    pub(crate) lapic: Lapic,
    /// Exceptions, interrupts and NMIs on their way in.
    pub(crate) events: Events,
    /// What the last entry asked windows for.
    pub(crate) windows: super::exit::Windows,
    /// CPUID entries, sorted.
    pub(crate) cpuid: KVVec<Entry>,
    /// What follows from them.
    pub(crate) features: GuestFeatures,
    /// MSRs that live in the model.
    pub(crate) msrs: MsrState,
    /// CR3 and the PDPTEs that user space gave for it; shown again as long as CR3 stays the same, as
    /// in-tree KVM does. The processor reads those in memory.
    pub(crate) pdptes: Option<(u64, [u64; 4])>,
    /// IA32_XSS
    pub(crate) xss: u64,
    /// TSC_AUX
    pub(crate) tsc_aux: u64,
    /// DR0 to DR3 as the hardware is to have them: the guest's, unless a debugger has put them aside.
    pub(crate) dr: [u64; 4],
    /// DR0 to DR3 are in the processor during sections, because the guest or a debugger uses them.
    pub(crate) dr_live: bool,
    /// What a debugger in user space wants.
    pub(crate) debug: GuestDebug,
    /// They are there now.
    breakpoints: Option<GuestBreakpoints>,
    /// The host's TSC_AUX, while the guest's is in the processor.
    host_tsc_aux: Option<u64>,
    /// Between [`Self::section_begins`] and [`Self::section_ends`].
    in_section: bool,
    /// Where the last stage-2 fault was that was resolved on the spot.
    pub(crate) last_fault: u64,
    /// Tables for stage-2 faults.
    pub(crate) tables: TableCache,
    /// What exits are wanted.
    pub(crate) intercepts: Intercepts,
    /// Whether it runs.
    pub(crate) mp_state: MpState,
    /// The last start-up message's vector.
    pub(crate) sipi_vector: u8,
    /// The guest's time-stamp counter.
    pub(crate) tsc: Tsc,
    /// Paravirtual pages.
    pub(crate) pv: Pv,
    /// The host timer behind the APIC timer.
    pub(crate) alarm: Alarm,
    /// An access that user space has to finish.
    pub(crate) pending: Pending,
    /// The instruction that was emulated last; one that waits goes on from here.
    pub(crate) code: Option<KBox<Code>>,
    /// A level-triggered vector ended that user space wants to hear of.
    pub(crate) eoi: Option<u8>,
    /// User space wants an exit when it can inject an interrupt.
    pub(crate) want_window: bool,
    /// The APIC is in the kernel (`KVM_CAP_SPLIT_IRQCHIP`).
    pub(crate) has_lapic: bool,
    /// It is the bootstrap processor.
    pub(crate) bsp: bool,
    /// SET_CPUID2 is refused once the guest has run.
    pub(crate) has_run: bool,
    /// What the processor knows of the local APIC, whose interrupts it delivers.
    pub(crate) handed: Option<Hand>,
    /// Since the last guest section.
    pub(crate) since: Since,
}

impl<B: Backend> Vcpu<B> {
    /// A vCPU after power-up.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(
        vm: &VmState,
        root: u64,
        id: u32,
        has_lapic: bool,
        mail: Arc<Mail>,
    ) -> Result<KBox<Self>> {
        let host = vm.host;
        let bsp = id == vm.boot_cpu_id();
        let config = Config {
            id,
            bsp,
            bus_cycle_ns: 1,
            lint0_extint: !vm.quirk_disabled(crate::bindings::KVM_X86_QUIRK_LINT0_REENABLED),
        };
        let features = GuestFeatures::default();
        let vcpu = try_init!(Self {
            hw: B::vcpu(&host.hw, root)?,
            host,
            gprs: Gprs::default(),
            fpu: GuestFpu::new(&host.fpu)?,
            lapic: Lapic::new(config, Self::lapic_features(&features)),
            events: Events::new(),
            windows: super::exit::Windows::default(),
            cpuid: KVVec::new(),
            features,
            msrs: MsrState::new(
                &host.msr,
                !vm.quirk_disabled(crate::bindings::KVM_X86_QUIRK_STUFF_FEATURE_MSRS),
            ),
            pdptes: None,
            xss: 0,
            tsc_aux: 0,
            dr: [0; 4],
            dr_live: false,
            debug: GuestDebug::default(),
            breakpoints: None,
            host_tsc_aux: None,
            in_section: false,
            last_fault: u64::MAX,
            tables: TableCache::default(),
            intercepts: Intercepts {
                hlt: true,
                mwait: true,
                rdpmc: true,
                // Without a filter every PAUSE would exit.
                pause: host.hw.pause_filter,
                // The other vendor's hypercall is one, too: see `handle::undefined`.
                exceptions: 1 << super::model::regs::vector::UD,
                ..Intercepts::default()
            },
            mp_state: if bsp || !has_lapic {
                MpState::Runnable
            } else {
                MpState::Uninitialized
            },
            sipi_vector: 0,
            tsc: Tsc::new(vm),
            pv: Pv::default(),
            alarm: Alarm::new(mail),
            pending: Pending::default(),
            code: None,
            eoi: None,
            want_window: false,
            has_lapic,
            bsp,
            has_run: false,
            handed: None,
            since: Since::Anything,
        }? Error);
        let mut v = KBox::init(vcpu, GFP_KERNEL_ACCOUNT)?;
        v.reset(false);
        v.hw.set_field(Field::Pat, super::model::msr::PAT_INIT);
        // No deadline is armed yet.
        let _ = v.tsc_changed();
        v.direct_msrs(vm);
        Ok(v)
    }

    /// The TSC's offset or frequency has changed: so does kvmclock's page, and the time at which a
    /// deadline comes that is armed.
    pub(crate) fn tsc_changed(&mut self) -> Effect {
        self.pv.refresh_clock();
        self.hw.set_tsc_ratio(self.tsc.ratio());
        self.hw.set_tsc_offset(self.tsc.offset());
        match self.lapic.timer() {
            armed @ Timer::ArmTsc(_) => Effect::Timer(armed),
            _ => Effect::None,
        }
    }

    /// Does what the local APIC's timer asks for.
    pub(crate) fn set_alarm(&mut self, t: Timer) {
        let ringer = match self.hw.counts_down() {
            true => Ringer::Processor,
            false => Ringer::Host,
        };
        let tsc = &self.tsc;
        self.alarm.set(t, ringer, |at| tsc.ns_until(at));
    }

    /// What the local APIC offers, by the guest's CPUID.
    pub(crate) fn lapic_features(f: &GuestFeatures) -> Features {
        use super::model::cpuid::Feature;
        Features {
            x2apic: f.has(Feature::X2apic),
            tsc_deadline: f.has(Feature::TscDeadline),
            cmci: false,
            directed_eoi: true,
            suppress_eoi: false,
            pmc_masks: !f.is_amd(),
            phys_bits: f.maxphyaddr,
        }
    }

    /// Lets the guest reach the MSRs that the hardware switches without an exit, as far as user
    /// space's filter lets it.
    pub(crate) fn direct_msrs(&mut self, vm: &VmState) {
        /// STAR, LSTAR, CSTAR, SFMASK, FS, GS and KERNEL_GS base, SYSENTER_*.
        const DIRECT: [u32; 10] = [
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0x174,
            0x175,
            0x176,
        ];
        for index in DIRECT {
            let (read, write) = (vm.msr_allowed(index, false), vm.msr_allowed(index, true));
            self.hw.set_msr_direct(index, read, write);
        }
    }

    /// The state after RESET (or, with `init`, INIT): APM vol. 2 table 14-1.
    pub(crate) fn reset(&mut self, init: bool) {
        let code = |selector, base| Segment {
            selector,
            attr: SegAttr::new(0xb, true, 0, true, false, false, false, false, false),
            limit: 0xffff,
            base,
        };
        let data = Segment {
            selector: 0,
            attr: SegAttr::new(3, true, 0, true, false, false, false, false, false),
            limit: 0xffff,
            base: 0,
        };
        let system = |typ| Segment {
            selector: 0,
            attr: SegAttr::new(typ, false, 0, true, false, false, false, false, false),
            limit: 0xffff,
            base: 0,
        };
        let table = super::model::regs::DescTable {
            base: 0,
            limit: 0xffff,
        };
        let keep = self.hw.cr0() & (cr0::CD | cr0::NW);
        let cache = if init { keep } else { cr0::CD | cr0::NW };
        self.gprs = Gprs::default();
        // The signature that CPUID leaf 1 shows; 0x600 where there is none yet.
        let signature = CpuidTable::new(&self.cpuid)
            .find(1, 0)
            .map_or(0x600, |e| u64::from(e.regs.eax));
        self.gprs.set(Gpr::Rdx, signature);
        self.hw.set_cr0(cr0::ET | cache);
        self.hw.set_cr2(0);
        self.hw.set_cr3(0);
        self.hw.set_cr4(0);
        self.hw.set_efer(0);
        self.hw.set_rflags(rflags::FIXED);
        self.hw.set_rip(0xfff0);
        self.hw.set_segment(Seg::Cs, &code(0xf000, 0xffff_0000));
        for s in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs, Seg::Ss] {
            self.hw.set_segment(s, &data);
        }
        self.hw.set_tr(&system(0xb));
        self.hw.set_ldtr(&system(2));
        self.hw.set_gdtr(&table);
        self.hw.set_idtr(&table);
        self.dr = [0; 4];
        self.pdptes = None;
        self.hw.set_dr6(DR6_INIT);
        self.hw.set_dr7(DR7_INIT);
        self.dr_live = false;
        self.hw.reset_events();
        self.hw.flush_tlb();
        self.events = Events::new();
        self.windows = super::exit::Windows::default();
        if init {
            self.msrs.init();
            self.lapic.init();
            self.pv.eoi.reset();
        } else {
            self.fpu.reset();
        }
        self.hw.set_cr8(0);
        self.debug_after_reset();
    }

    /// A guest section begins, IRQs off: the FPU, debug registers and TSC_AUX become the guest's.
    pub(crate) fn section_begins(&mut self) {
        if self.fpu.load().is_err() {
            crate::host::trace::guest_error(c"extended state refused by the processor", 0, 0);
        }
        self.hw
            .begin_section(core::mem::replace(&mut self.since, Since::Anything));
        self.breakpoints = self.dr_live.then(|| GuestBreakpoints::load(&self.dr));
        self.in_section = true;
        if self.tsc_aux != 0 {
            self.load_tsc_aux();
        }
    }

    /// The section ends, IRQs still off.
    pub(crate) fn section_ends(&mut self) {
        self.hw.end_section();
        self.in_section = false;
        if let Some(host) = self.host_tsc_aux.take() {
            insn::vcpu::swap_tsc_aux(host);
        }
        match self.breakpoints.take() {
            Some(b) => self.dr = b.read(),
            None => insn::restore_dr7(),
        }
        self.fpu.save();
    }

    /// IA32_TSC_AUX is written.
    pub(crate) fn set_tsc_aux(&mut self, v: u64) {
        self.tsc_aux = v;
        if self.in_section {
            self.load_tsc_aux();
        }
    }

    fn load_tsc_aux(&mut self) {
        let old = insn::vcpu::swap_tsc_aux(self.tsc_aux);
        self.host_tsc_aux.get_or_insert(old);
    }

    /// CR0, CR3, CR4 and EFER together.
    #[inline]
    pub(crate) fn control(&self) -> Control {
        Control {
            cr0: self.hw.cr0(),
            cr3: self.hw.cr3(),
            cr4: self.hw.cr4(),
            efer: self.hw.efer(),
        }
    }

    /// How linear addresses are translated now.
    #[inline]
    pub(crate) fn paging(&self) -> Paging {
        use super::model::cpuid::Feature;
        Paging {
            cr0: self.hw.cr0(),
            cr3: self.hw.cr3(),
            cr4: self.hw.cr4(),
            efer: self.hw.efer(),
            pkru: self.fpu.pkru(),
            rflags_ac: self.hw.rflags() & rflags::AC != 0,
            maxphyaddr: self.features.maxphyaddr,
            gbpages: self.features.has(Feature::Gbpages),
            nonleaf_bit8_reserved: self.features.is_amd(),
            pdptes: None,
        }
    }

    /// 64-bit mode: long mode is active and CS.L is set.
    #[inline]
    pub(crate) fn is_64bit(&self) -> bool {
        self.hw.efer() & efer::LMA != 0 && self.hw.segment(Seg::Cs).attr.long()
    }

    /// What a register of the mode's width holds of `v`: all of it in 64-bit mode, else the lower half.
    #[inline]
    pub(crate) fn narrow(&self, v: u64) -> u64 {
        if self.is_64bit() {
            v
        } else {
            v & 0xffff_ffff
        }
    }

    /// EDX:EAX, as RDMSR and its like pass 64 bits.
    #[inline]
    pub(crate) fn edx_eax(&self) -> u64 {
        self.gprs.get(Gpr::Rax) & 0xffff_ffff | self.gprs.get(Gpr::Rdx) << 32
    }

    /// Sets EDX:EAX; the upper halves of the registers become zero.
    #[inline]
    pub(crate) fn set_edx_eax(&mut self, v: u64) {
        self.gprs.set(Gpr::Rax, v & 0xffff_ffff);
        self.gprs.set(Gpr::Rdx, v >> 32);
    }

    /// What decides whether events can be taken.
    #[inline]
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu {
            interrupt_flag: self.hw.rflags() & rflags::IF != 0,
            shadow: self.hw.interrupt_shadow(),
            gif: true,
        }
    }

    /// What CPUID shows that changes as the guest runs.
    pub(crate) fn dynamic(&self, vm: &VmState) -> Dynamic<'static> {
        let by_misc_enable = vm.quirk_disabled(crate::bindings::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT);
        Dynamic {
            cr4: self.hw.cr4(),
            apic_enabled: self.lapic.base() & super::model::lapic::apic_base::ENABLE != 0,
            mwait: by_misc_enable.then(|| self.msrs.mwait_enabled()),
            xcr0: self.fpu.xcr0(),
            xss: self.xss,
            layout: &vm.host.supported.layout,
        }
    }

    /// Interrupts of a controller in user space reach the processor: LINT0 is set up for them.
    #[inline]
    pub(crate) fn takes_extint(&self) -> bool {
        !self.has_lapic || self.lapic.accepts_extint()
    }

    /// User space wants an exit when it can inject an interrupt, and that can come to be.
    #[inline]
    pub(crate) fn wants_window(&self) -> bool {
        self.want_window && self.takes_extint()
    }

    /// Moves RIP past an instruction of `len` bytes: it is done, so an interrupt shadow ends, and
    /// a single step is due if TF is set.
    #[inline]
    pub(crate) fn advance(&mut self, len: u8) {
        let rip = self.hw.rip().wrapping_add(u64::from(len));
        self.advance_to(self.narrow(rip));
    }

    /// As [`Self::advance`], where the next instruction's address is known.
    #[inline]
    pub(crate) fn advance_to(&mut self, rip: u64) {
        self.hw.set_rip(rip);
        self.hw.set_interrupt_shadow(false);
        let flags = self.hw.rflags();
        if flags & (rflags::TF | rflags::RF) != 0 {
            self.hw.set_rflags(flags & !rflags::RF);
            if flags & rflags::TF != 0 {
                self.single_step();
            }
        }
    }

    /// Raises an exception in the guest.
    pub(crate) fn raise(&mut self, e: super::model::regs::Exception) {
        if let Some(cr2) = self.events.raise(e) {
            self.hw.set_cr2(cr2);
        }
    }

    /// Puts a new CR0, CR3, CR4 and EFER in and does what follows.
    pub(crate) fn set_control(&mut self, c: &Control, effects: super::model::sregs::Effects) {
        use super::model::sregs::Effects;
        if self.hw.cr0() != c.cr0 {
            self.hw.set_cr0(c.cr0);
        }
        if self.hw.cr3() != c.cr3 {
            self.hw.set_cr3(c.cr3);
        }
        if self.hw.cr4() != c.cr4 {
            self.hw.set_cr4(c.cr4);
        }
        if self.hw.efer() != c.efer {
            self.hw.set_efer(c.efer);
        }
        if effects.has(Effects::FLUSH_TLB) || effects.has(Effects::FLUSH_TLB_LOCAL) {
            self.hw.flush_tlb();
        }
    }

    /// The task priority moved in the model: show it to the hardware, which the guest's CR8 reads.
    #[inline]
    pub(crate) fn show_cr8(&mut self) {
        let cr8 = self.lapic.cr8();
        if self.hw.cr8() != cr8 {
            self.hw.set_cr8(cr8);
        }
    }
}
