// SPDX-License-Identifier: GPL-2.0

//! The vCPU's part: registers, events, CPUID, MSRs, extended state, the local APIC, machine checks.
//!
//! For each pair of ioctls: what is accepted can be read back, what was read back is accepted
//! again, and changes nothing.

use super::{
    input::{patch, patch_bytes, words, Input},
    vm::Vm,
};
use crate::{
    arch::x86::{
        abi,
        args::{
            events as event_args,
            regs::{self as args, Sregs},
        },
        exit,
        model::{
            cpuid::{
                CapSet, CpuidTable, Dynamic, Entry, Feature, GuestFeatures, HostCaps, Regs,
                Supported, Vendor, MAX_ENTRIES,
            },
            events::{Cpu, Event, Events},
            lapic::{self, Lapic, Now, PAGE_SIZE},
            msr::{
                self, mce, Ctx, Field, MsrHost, MsrState, Origin, Read, Service, Write, TABLE,
                WRITE_ONLY,
            },
            pv,
            regs::{cr0, cr4, efer, vector, Exception, Seg, Segment},
            sregs::{self, Control},
            xstate,
        },
        svm::{
            check::{broken_rule, Limits},
            decode, seg,
            vmcb::{EventInfo, NpControl, Vmcb, VmcbSeg},
        },
    },
    bindings as rb,
};
use std::{collections::HashMap, sync::OnceLock};

/// MXCSR bits of any processor with SSE2.
const MXCSR_MASK: u32 = 0xffff;
/// The time stands still.
const NOW: Now = Now {
    ns: 1 << 40,
    tsc: 1 << 41,
};

/// What the host offers: everything.
struct Host {
    supported: Supported,
    msr: MsrHost,
    entries: Vec<Entry>,
}

fn cpuid(leaf: u32, sub: u32) -> Regs {
    let r = |eax, ebx, ecx, edx| Regs { eax, ebx, ecx, edx };
    // "AuthenticAMD"
    let name = |max| r(max, 0x6874_7541, 0x444d_4163, 0x6974_6e65);
    match (leaf, sub) {
        (0, _) => name(0x1f),
        (1, _) => r(0x00a2_0f12, !0, !0, !0),
        (7, 0) => r(2, !0, !0, !0),
        (0xd, 0) => r(0x2e7, 0x340, 0xa88, 0),
        (0xd, 1) => r(0xf, 0, 0x1800, 0),
        (0xd, 2) => r(0x100, 0x240, 0, 0),
        (0xd, 5) => r(0x40, 0x440, 0, 0),
        (0xd, 6) => r(0x200, 0x480, 0, 0),
        (0xd, 7) => r(0x400, 0x680, 0, 0),
        (0xd, 9) => r(8, 0xa80, 6, 0),
        (0xd, 11) => r(0x10, 0, 1, 0),
        (0xd, 12) => r(0x18, 0, 1, 0),
        (4 | 0xd | 0x8000_001d, _) => Regs::ZERO,
        (0x8000_0000, _) => name(0x8000_0021),
        (0x8000_0008, _) => r(0x3030, !0, !0, !0),
        _ => r(!0, !0, !0, !0),
    }
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let caps = HostCaps {
            vendor: Vendor::Amd,
            caps: CapSet::ALL,
            host_xcr0: 0x2e7,
            xss: 0,
            gpa_bits: 48,
            pv: pv::KNOWN,
        };
        let supported = Supported::build(cpuid, &caps);
        let mut entries = Vec::new();
        let all = supported.emit(cpuid, |e| {
            entries.push(e);
            Ok::<(), ()>(())
        });
        assert!(all.is_ok() && entries.len() <= MAX_ENTRIES);
        let msr = MsrHost {
            features: supported.features,
            pv: pv::KNOWN,
            vendor: Vendor::Amd,
            de_cfg: 2,
            ucode_rev: 1,
            arch_capabilities: 0,
            cpuid_faulting: true,
        };
        Host {
            supported,
            msr,
            entries,
        }
    })
}

/// A vCPU.
pub(super) struct Vcpu {
    cpuid: Vec<Entry>,
    features: GuestFeatures,
    block: Box<Vmcb>,
    /// CR0.CD and NW, and CR4.MCE, of which the block does not have the guest's values.
    cache: u64,
    mce: bool,
    pdptes: Option<(u64, [u64; 4])>,
    lapic: Lapic,
    has_lapic: bool,
    events: Events,
    shadow: bool,
    sipi: u8,
    msrs: MsrState,
    /// MSRs that the model does not keep.
    fields: HashMap<String, u64>,
    dr: [u64; 4],
    area: Vec<u8>,
    xcr0: u64,
}

fn lapic_features(f: &GuestFeatures) -> lapic::Features {
    lapic::Features {
        x2apic: f.has(Feature::X2apic),
        tsc_deadline: f.has(Feature::TscDeadline),
        cmci: false,
        directed_eoi: true,
        suppress_eoi: false,
        pmc_masks: !f.is_amd(),
        phys_bits: f.maxphyaddr,
    }
}

impl Vcpu {
    pub(super) fn new(i: &mut Input<'_>) -> Self {
        let features = GuestFeatures::default();
        let config = lapic::Config {
            id: i.u32() & 0xfff,
            bsp: true,
            bus_cycle_ns: 1,
            lint0_extint: true,
        };
        let mut block: Box<Vmcb> = Box::default();
        block.set_intercepts4(1);
        block.set_guest_asid(1);
        block.set_np_control(NpControl::default().with_np_enable(true));
        block.set_n_cr3(0x1000);
        block.set_msrpm_base_pa(0x2000);
        block.set_iopm_base_pa(0x4000);
        block.set_efer(efer::SVME);
        block.set_g_pat(msr::PAT_INIT);
        block.set_dr6(sregs::DR6_INIT);
        block.set_dr7(sregs::DR7_INIT);
        let layout = host().supported.layout;
        let mut area = vec![0; layout.standard_size(host().supported.xcr0).max(4096) as usize];
        xstate::init(&mut area, MXCSR_MASK).expect("an area");
        let mut v = Self {
            cpuid: Vec::new(),
            features,
            block,
            cache: 0,
            mce: false,
            pdptes: None,
            lapic: Lapic::new(config, lapic_features(&features)),
            has_lapic: i.u8() & 1 == 0,
            events: Events::new(),
            shadow: false,
            sipi: 0,
            msrs: MsrState::new(&host().msr, true),
            fields: HashMap::new(),
            dr: [0; 4],
            area,
            xcr0: 1,
        };
        v.set_control(&Control {
            cr0: cr0::ET | cr0::CD | cr0::NW,
            ..Control::default()
        });
        if i.u8() & 1 == 0 {
            // Most of it needs what the host offers.
            v.set_cpuid(host().entries.clone());
        }
        v
    }

    /// After any request: VMRUN takes the state, or `check.rs` names a rule that only user space
    /// can break, as it can in in-tree KVM.
    pub(super) fn check(&mut self) {
        let limits = Limits {
            phys_bits: 48,
            asids: 16,
        };
        let mut block = self.block.clone_state();
        let mut events = self.events.clone();
        let cpu = Cpu {
            interrupt_flag: true,
            shadow: self.shadow,
            gif: true,
        };
        let mut lapic = self.lapic.clone();
        if let Ok(entry) = events.next(cpu, &mut lapic) {
            if let Some(e) = entry.inject {
                let e = match e {
                    Event::Exception { vector, error, .. } => exit::Event::Exception(Exception {
                        vector,
                        error,
                        payload: None,
                    }),
                    Event::Nmi => exit::Event::Nmi,
                    Event::Interrupt { vector, soft: true } => {
                        exit::Event::SoftInterrupt { vector, len: 0 }
                    }
                    Event::Interrupt { vector, .. } => exit::Event::Interrupt { vector },
                };
                block.set_eventinj(decode::encode(&e));
            }
        }
        match broken_rule(&block, &limits).and_then(|r| r.to_str().ok()) {
            None
            // The guest's CPUID may claim wider physical addresses than the host has.
            | Some("CR3 has bits set beyond the physical address width")
            | Some("EFER.LME, CR0.PG and CR4.PAE are 1 and CS has both L and D set") => {}
            Some(rule) => panic!("accepted, but {rule}"),
        }
    }

    fn control(&self) -> Control {
        let cr4 = self.block.cr4();
        Control {
            cr0: self.block.cr0() | self.cache,
            cr3: self.block.cr3(),
            cr4: if self.mce { cr4 } else { cr4 & !cr4::MCE },
            efer: self.block.efer() & !efer::SVME,
        }
    }

    /// As `svm/vcpu.rs` does it.
    fn set_control(&mut self, c: &Control) {
        self.cache = c.cr0 & (cr0::CD | cr0::NW);
        self.mce = c.cr4 & cr4::MCE != 0;
        self.block.set_cr0(c.cr0 & !(cr0::CD | cr0::NW));
        self.block.set_cr3(c.cr3);
        self.block.set_cr4(c.cr4 | cr4::MCE);
        self.block.set_efer(c.efer | efer::SVME);
    }

    /// A request on the vCPU's descriptor.
    pub(super) fn ioctl(&mut self, code: u32, vm: &Vm, i: &mut Input<'_>) {
        match code {
            abi::SET_SREGS | abi::GET_SREGS => {
                let mut s = self.sregs().to_sregs(self.events.interrupt_in_delivery());
                patch(&mut s, i);
                if self.set_sregs(&s) {
                    let got = self.sregs().to_sregs(self.events.interrupt_in_delivery());
                    assert_eq!(
                        (got.cr0, got.cr2, got.cr3, got.cr4, got.cr8, got.efer),
                        (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8 & 0xf, s.efer)
                    );
                    assert_eq!(got.apic_base, s.apic_base);
                    assert!(self.set_sregs(&got), "what was read is refused: {got:x?}");
                    let again = self.sregs().to_sregs(self.events.interrupt_in_delivery());
                    assert_eq!(words(again), words(got));
                }
            }
            abi::SET_SREGS2 | abi::GET_SREGS2 => {
                let mut s = self.sregs2();
                patch(&mut s, i);
                if self.set_sregs2(&s) {
                    let got = self.sregs2();
                    if s.flags != 0 {
                        assert_eq!((got.flags, got.pdptrs), (1, s.pdptrs));
                    }
                    assert!(self.set_sregs2(&got), "what was read is refused: {got:x?}");
                    assert_eq!(words(self.sregs2()), words(got));
                }
            }
            abi::SET_DEBUGREGS | abi::GET_DEBUGREGS => {
                let mut d = self.debugregs();
                patch(&mut d, i);
                if let Ok((dr6, dr7)) = args::debug(&d) {
                    self.dr = d.db;
                    self.block.set_dr6(dr6);
                    self.block.set_dr7(dr7);
                    let got = self.debugregs();
                    assert_eq!((got.db, got.dr6, got.dr7), (d.db, d.dr6, d.dr7));
                    assert!(args::debug(&got).is_ok());
                }
            }
            abi::SET_VCPU_EVENTS | abi::GET_VCPU_EVENTS => self.vcpu_events(vm, i),
            abi::SET_XCRS | abi::GET_XCRS => {
                let mut x = args::xcrs(Some(self.xcr0));
                patch(&mut x, i);
                if let Ok(xcr0) = args::xcr0(&x, &self.features) {
                    self.xcr0 = xcr0.unwrap_or(self.xcr0);
                    // CPUID may have changed since it was set.
                    if xcr0.is_some() {
                        assert!(self.xcr0 == 1 || self.xcr0 & !self.features.xcr0 == 0);
                        let got = args::xcrs(Some(self.xcr0));
                        assert_eq!(args::xcr0(&got, &self.features), Ok(xcr0));
                    }
                }
            }
            abi::SET_XSAVE | abi::GET_XSAVE | abi::GET_XSAVE2 => {
                let mut area = self.area.clone();
                patch_bytes(&mut area, i);
                let room = area.len();
                area.truncate(room - i.below(room) * usize::from(i.u8() == 1));
                if xstate::validate(&area, host().supported.xcr0, MXCSR_MASK).is_ok()
                    && area.len() == room
                {
                    self.area = area;
                    self.show_area();
                }
            }
            abi::SET_FPU | abi::GET_FPU => {
                let mut f = args::fpu(&xstate::Fpu::from_area(&self.area).expect("an area"));
                patch(&mut f, i);
                let new = args::from_fpu(&f);
                new.store(&mut self.area, MXCSR_MASK).expect("an area");
                let got = xstate::Fpu::from_area(&self.area).expect("an area");
                let masked = xstate::Fpu {
                    mxcsr: new.mxcsr & MXCSR_MASK,
                    ..new
                };
                assert_eq!(got, masked);
                assert_eq!(args::from_fpu(&args::fpu(&got)), got);
                self.show_area();
            }
            abi::SET_CPUID2 | abi::GET_CPUID2 => {
                let mut entries = match i.u8() & 3 {
                    0 => self.cpuid.clone(),
                    _ => host().entries.clone(),
                };
                entries.truncate(usize::from(i.u16()));
                let extra = i.u8() & 7;
                for _ in 0..extra {
                    entries.push(Entry::default());
                }
                for _ in 0..i.u8() & 7 {
                    let n = i.below(entries.len().max(1));
                    if let Some(e) = entries.get_mut(n) {
                        let mut raw = args::cpuid_entry(e);
                        patch(&mut raw, i);
                        *e = args::from_cpuid_entry(&raw);
                    }
                }
                self.set_cpuid(entries);
                self.show_cpuid(i);
            }
            abi::SET_MSRS | abi::GET_MSRS => {
                for _ in 0..i.u8() & 7 {
                    let index = match i.u8() & 3 {
                        0 => i.u32(),
                        _ => {
                            let m = &TABLE[i.below(TABLE.len())];
                            m.first.wrapping_add(u32::from(i.u8()) % 8)
                        }
                    };
                    self.msr(index, i.u64(), i);
                }
            }
            abi::SET_LAPIC | abi::GET_LAPIC => self.lapic_page(vm, i),
            abi::X86_SETUP_MCE => {
                let cap = i.u64();
                if self.msrs.mce.setup(cap) {
                    assert_eq!(self.msrs.mce.read(0x179, Origin::Host), Some(cap));
                }
            }
            abi::X86_SET_MCE => {
                let e = mce::Event {
                    status: i.u64(),
                    addr: i.u64(),
                    misc: i.u64(),
                    mcg_status: i.u64(),
                    bank: i.u8(),
                };
                let on = self.control().cr4 & cr4::MCE != 0;
                if let Some(mce::Injected::Exception) = self.msrs.mce.inject(&e, on) {
                    assert!(on && usize::from(e.bank) < mce::BANKS);
                    self.events.raise(Exception::plain(vector::MC));
                }
            }
            abi::INTERRUPT => {
                let busy = self.events.has_extint();
                assert_eq!(self.events.raise_extint(i.u8()).is_err(), busy);
            }
            abi::NMI => self.events.raise_nmi(1),
            _ => {}
        }
    }

    fn sregs(&self) -> Sregs {
        let b = &self.block;
        Sregs {
            cs: seg::get(b, Seg::Cs),
            ds: seg::get(b, Seg::Ds),
            es: seg::get(b, Seg::Es),
            fs: seg::get(b, Seg::Fs),
            gs: seg::get(b, Seg::Gs),
            ss: seg::get(b, Seg::Ss),
            tr: seg::tr(b),
            ldtr: b.ldtr().get(),
            gdtr: b.gdtr().table(),
            idtr: b.idtr().table(),
            control: self.control(),
            cr2: b.cr2(),
            cr8: self.lapic.cr8(),
            apic_base: self.lapic.base(),
        }
    }

    /// As `ioctl/regs.rs` loads them. False: refused, and nothing has changed.
    fn load(&mut self, s: &Sregs) -> bool {
        if s.apic_base != self.lapic.base() {
            if !self.has_lapic && sregs::apic_base_valid(s.apic_base, &self.features).is_err() {
                return false;
            }
            if self.lapic.set_base(s.apic_base, true).is_err() {
                return false;
            }
        }
        self.set_control(&s.control);
        self.lapic.set_cr8(s.cr8);
        let b = &mut *self.block;
        b.set_gdtr(VmcbSeg::from_table(&s.gdtr));
        b.set_idtr(VmcbSeg::from_table(&s.idtr));
        b.set_cr2(s.cr2);
        let all: [(Seg, &Segment); 6] = [
            (Seg::Cs, &s.cs),
            (Seg::Ds, &s.ds),
            (Seg::Es, &s.es),
            (Seg::Fs, &s.fs),
            (Seg::Gs, &s.gs),
            (Seg::Ss, &s.ss),
        ];
        for (which, value) in all {
            seg::set(b, which, value);
        }
        b.set_tr(VmcbSeg::new(&s.tr));
        b.set_ldtr(VmcbSeg::new(&s.ldtr));
        true
    }

    fn set_sregs(&mut self, s: &rb::kvm_sregs) -> bool {
        let before = self.sregs();
        let Ok((regs, interrupt)) = Sregs::from_sregs(s, &self.features) else {
            return false;
        };
        if !self.load(&regs) {
            assert_eq!(self.sregs(), before);
            return false;
        }
        self.pdptes = None;
        if let Some(vector) = interrupt {
            self.events.requeue_interrupt(vector);
        }
        true
    }

    fn sregs2(&self) -> rb::kvm_sregs2 {
        let c = self.control();
        let shown = match self.pdptes {
            Some((cr3, given)) if cr3 == c.cr3 => given,
            _ => [1; 4],
        };
        let pdptes = c.pae_paging().then_some(shown);
        self.sregs().to_sregs2(pdptes)
    }

    fn set_sregs2(&mut self, s: &rb::kvm_sregs2) -> bool {
        match Sregs::from_sregs2(s, &self.features) {
            Ok((regs, pdptes)) if self.load(&regs) => {
                self.pdptes = pdptes.map(|p| (s.cr3, p));
                true
            }
            _ => false,
        }
    }

    fn debugregs(&self) -> rb::kvm_debugregs {
        rb::kvm_debugregs {
            db: self.dr,
            dr6: self.block.dr6(),
            dr7: self.block.dr7(),
            ..Default::default()
        }
    }

    fn get_events(&self, enabled: event_args::Enabled) -> rb::kvm_vcpu_events {
        let state = self.events.save(enabled.payloads);
        event_args::encode(&state, enabled, self.shadow, self.sipi)
    }

    fn set_events(&mut self, e: &rb::kvm_vcpu_events, enabled: event_args::Enabled) -> bool {
        let old = self.events.save(enabled.payloads);
        let Ok(new) = event_args::decode(e, enabled, &old) else {
            return false;
        };
        if self.events.load(&new.events).is_err() {
            assert_eq!(self.events.save(enabled.payloads), old);
            return false;
        }
        self.shadow = new.shadow.unwrap_or(self.shadow);
        self.sipi = new.sipi_vector.unwrap_or(self.sipi);
        true
    }

    fn vcpu_events(&mut self, vm: &Vm, i: &mut Input<'_>) {
        if !vm.enabled.payloads {
            self.events.take_payload();
        }
        let mut e = self.get_events(vm.enabled);
        patch(&mut e, i);
        if self.set_events(&e, vm.enabled) {
            let got = self.get_events(vm.enabled);
            assert!(
                self.set_events(&got, vm.enabled),
                "what was read is refused"
            );
            assert_eq!(words(self.get_events(vm.enabled)), words(got));
        }
    }

    /// What is in the area can be loaded, as often as one likes.
    fn show_area(&self) {
        let xcr0 = host().supported.xcr0;
        assert_eq!(xstate::validate(&self.area, xcr0, MXCSR_MASK), Ok(()));
        let mut shown = self.area.clone();
        let layout = host().supported.layout;
        layout.fill_init(&mut shown, xcr0).expect("an area");
        assert_eq!(xstate::validate(&shown, xcr0, MXCSR_MASK), Ok(()));
    }

    fn dynamic(&self) -> Dynamic<'static> {
        Dynamic {
            cr4: self.control().cr4,
            apic_enabled: self.lapic.base() & sregs::APIC_BASE_ENABLE != 0,
            mwait: None,
            xcr0: self.xcr0,
            xss: 0,
            layout: &host().supported.layout,
        }
    }

    fn set_cpuid(&mut self, mut entries: Vec<Entry>) {
        entries.truncate(MAX_ENTRIES);
        CpuidTable::sort(&mut entries);
        assert!(entries.is_sorted_by_key(|e| e.function));
        let table = CpuidTable::new(&entries);
        let Ok(features) = GuestFeatures::derive(&table, &host().supported) else {
            return;
        };
        let offered = &host().supported;
        assert_eq!(features.xcr0 & !offered.xcr0, 0);
        assert_eq!(features.xss & !offered.xss, 0);
        let mut known = offered.features;
        known.set(Feature::Monitor, true);
        assert_eq!(features.set.and(&known), features.set);
        self.cpuid = entries;
        self.features = features;
        let _ = self.lapic.set_features(lapic_features(&self.features));
    }

    fn show_cpuid(&self, i: &mut Input<'_>) {
        let d = self.dynamic();
        let table = CpuidTable::new(&self.cpuid);
        table.query(i.u32(), i.u32(), &d);
        // What KVM_GET_CPUID2 shows is the same table for a vCPU that has run.
        let mut shown: Vec<Entry> = self
            .cpuid
            .iter()
            .map(|e| Entry {
                regs: crate::arch::x86::model::cpuid::dynamic(e, &d),
                ..*e
            })
            .collect();
        let before = shown.clone();
        CpuidTable::sort(&mut shown);
        assert_eq!(shown, before, "the order is kept");
        assert!(table.same(&CpuidTable::new(&shown), &d));
        for e in &self.cpuid {
            let found = table.find(e.function, e.index).expect("an entry");
            assert_eq!(found.function, e.function);
        }
    }

    fn rules(&self, origin: Origin) -> Ctx<'_> {
        Ctx {
            guest: &self.features,
            host: &host().msr,
            origin,
            enforce_pv: false,
            platform_info: true,
            mwait_by_misc_enable: false,
        }
    }

    fn read_msr(&mut self, index: u32, origin: Origin) -> Option<u64> {
        Some(match self.msrs.read(index, &self.rules(origin)).ok()? {
            Read::Value(v) => v,
            Read::Backend(Field::Pat) => self.block.g_pat(),
            Read::Backend(f) => self.fields.get(&format!("{f:?}")).copied().unwrap_or(0),
            Read::Shell(Service::ApicBase) => self.lapic.base(),
            Read::Shell(Service::X2Apic(n)) => {
                let read = self.lapic.msr_read(0x800 | u32::from(n), || NOW.ns);
                return read.ok();
            }
            Read::Shell(Service::TscDeadline) => self.lapic.tsc_deadline(),
            Read::Shell(Service::Efer) => self.control().efer,
            Read::Shell(s) => {
                let name = format!("{s:?}");
                let name = name.split(' ').next().unwrap_or_default();
                self.fields.get(name).copied().unwrap_or(0)
            }
        })
    }

    fn write_msr(&mut self, index: u32, value: u64, origin: Origin) -> bool {
        let (features, mut msrs) = (self.features, self.msrs);
        let rules = Ctx {
            guest: &features,
            ..self.rules(origin)
        };
        let Ok(write) = msrs.write(index, value, &rules) else {
            return false;
        };
        self.msrs = msrs;
        match write {
            Write::Done | Write::DoneCpuid => {}
            Write::Backend(Field::Pat, v) => self.block.set_g_pat(v),
            Write::Backend(f, v) => {
                self.fields.insert(format!("{f:?}"), v);
            }
            Write::Shell(Service::ApicBase, v) => {
                return self.lapic.set_base(v, origin == Origin::Host).is_ok();
            }
            Write::Shell(Service::X2Apic(n), v) => {
                let write = self.lapic.msr_write(0x800 | u32::from(n), v, || NOW.ns);
                return write.is_ok();
            }
            Write::Shell(Service::TscDeadline, v) => {
                let _ = self.lapic.set_tsc_deadline(v, || NOW.tsc);
            }
            Write::Shell(Service::Efer, v) => match origin {
                Origin::Host => {
                    if v & !self.features.efer != 0 {
                        return false;
                    }
                    let mut c = self.control();
                    c.efer = v & !efer::LMA | c.efer & efer::LMA;
                    self.set_control(&c);
                }
                Origin::Guest => match self.control().write_efer(v, &self.features) {
                    Ok((c, _)) => self.set_control(&c),
                    Err(sregs::Gp) => return false,
                },
            },
            Write::Shell(s, v) => {
                let name = format!("{s:?}");
                let name = name.split(' ').next().unwrap_or_default();
                self.fields.insert(name.to_string(), v);
            }
        }
        true
    }

    fn msr(&mut self, index: u32, value: u64, i: &mut Input<'_>) {
        let guest = i.u8() & 7 == 0;
        let origin = if guest { Origin::Guest } else { Origin::Host };
        let x2apic = (0x800..=0x8ff).contains(&index);
        let written = self.write_msr(index, value, origin);
        let read = self.read_msr(index, origin);
        if guest || x2apic || !written {
            return;
        }
        if msr::find(index).is_some_and(|m| m.lists & WRITE_ONLY != 0) {
            return;
        }
        let got = read.unwrap_or_else(|| panic!("{index:#x} takes {value:#x}, and cannot be read"));
        assert!(
            self.write_msr(index, got, origin),
            "{index:#x} took {value:#x}, shows {got:#x}, and does not take that"
        );
        assert_eq!(self.read_msr(index, origin), Some(got), "{index:#x}");
    }

    fn lapic_page(&mut self, vm: &Vm, i: &mut Input<'_>) {
        let mut page = [0u8; PAGE_SIZE];
        let _ = self.lapic.save(&mut page, vm.wide_ids, NOW);
        patch_bytes(&mut page, i);
        let before = self.lapic.clone();
        if self.lapic.load(&page, vm.wide_ids, NOW).is_err() {
            assert_eq!(self.lapic, before);
            return;
        }
        let (mut first, mut second) = ([0u8; PAGE_SIZE], [0u8; PAGE_SIZE]);
        let _ = self.lapic.save(&mut first, vm.wide_ids, NOW);
        assert!(self.lapic.load(&first, vm.wide_ids, NOW).is_ok());
        let _ = self.lapic.save(&mut second, vm.wide_ids, NOW);
        for at in (0..PAGE_SIZE).step_by(16) {
            assert_eq!(first[at..at + 4], second[at..at + 4], "register {at:#x}");
        }
        let _ = self.lapic.pending();
    }
}

/// A copy of the state that VMRUN looks at.
trait CloneState {
    fn clone_state(&self) -> Box<Vmcb>;
}

impl CloneState for Vmcb {
    fn clone_state(&self) -> Box<Vmcb> {
        let mut b: Box<Vmcb> = Box::default();
        b.restore(&self.save_area());
        b.set_intercepts4(self.intercepts4());
        b.set_guest_asid(self.guest_asid());
        b.set_np_control(self.np_control());
        b.set_n_cr3(self.n_cr3());
        b.set_msrpm_base_pa(self.msrpm_base_pa());
        b.set_iopm_base_pa(self.iopm_base_pa());
        b.set_eventinj(EventInfo::default());
        b
    }
}
