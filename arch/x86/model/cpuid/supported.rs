// SPDX-License-Identifier: GPL-2.0

//! What guests can be offered on this host: KVM_GET_SUPPORTED_CPUID.

use super::super::pv;
use super::super::xstate::{self, XstateLayout};
use super::feature::{Feature, FeatureSet, Policy, ALL};
use super::leaf::{self, Show, Sub};
use super::{Entry, Reg, Regs, Vendor, SIGNIFICANT_INDEX};

/// Something that the backend or the shell provides, on which features depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cap {
    /// XCR0 and the XSAVE area are switched.
    Xsave,
    /// IA32_XSS is switched and XSAVES runs in guests.
    Xsaves,
    /// PKRU is switched; the host itself uses protection keys (CR4.PKE).
    Pku,
    /// TSC_AUX is switched (for RDTSCP and RDPID).
    TscAux,
    /// INVPCID runs in guests.
    Invpcid,
    /// TPAUSE and UMWAIT run in guests, UMWAIT_CONTROL is switched.
    Waitpkg,
    /// Shadow stacks and indirect-branch tracking: the CET registers are switched.
    Cet,
    /// Guests can use 57-bit linear addresses.
    La57,
    /// SPEC_CTRL is switched.
    SpecCtrl,
    /// Guests can issue prediction barriers by PRED_CMD.
    PredCmd,
    /// Guests can flush L1D by FLUSH_CMD.
    FlushCmd,
    /// ARCH_CAPABILITIES is emulated (Intel hosts).
    ArchCapabilities,
    /// CPUID faults in user mode if the guest asks for it (HWCR, MISC_FEATURES_ENABLES).
    CpuidFaulting,
    /// LFENCE is serialising on this host, whether its CPUID says so or not.
    LfenceSerializing,
    /// Loading a null selector clears the base, likewise.
    NullSelClearsBase,
    /// The host does not suffer from speculative store bypass, likewise.
    SsbNo,
}

/// A set of [`Cap`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(u32);

impl CapSet {
    /// The empty set.
    pub const EMPTY: CapSet = CapSet(0);
    /// All there are.
    pub const ALL: CapSet = CapSet(u32::MAX);

    /// With `c` added.
    pub const fn with(self, c: Cap) -> CapSet {
        CapSet(self.0 | 1 << c as u8)
    }

    /// With `c` added if `on`.
    pub const fn with_if(self, c: Cap, on: bool) -> CapSet {
        if on {
            self.with(c)
        } else {
            self
        }
    }

    /// `c` is in the set.
    pub const fn has(self, c: Cap) -> bool {
        self.0 & (1 << c as u8) != 0
    }
}

/// What the host is, beyond its CPUID, and what the backend does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCaps {
    /// The host processor's vendor.
    pub vendor: Vendor,
    /// What is provided.
    pub caps: CapSet,
    /// XCR0 as the host kernel runs with it: components it saves and restores.
    pub host_xcr0: u64,
    /// IA32_XSS components that the backend switches.
    pub xss: u64,
    /// Bits of guest-physical address that the second stage translates.
    pub gpa_bits: u8,
    /// Paravirtual features that are provided: EAX of leaf 0x4000_0001 (see [`pv`]).
    pub pv: u32,
}

/// What guests can be offered on this host.
#[derive(Clone, Copy, Debug)]
pub struct Supported {
    /// Features.
    pub features: FeatureSet,
    /// Components for XCR0.
    pub xcr0: u64,
    /// Components for IA32_XSS.
    pub xss: u64,
    /// Sizes and offsets of the components.
    pub layout: XstateLayout,
    /// What was given to [`Supported::build`].
    pub host: HostCaps,
    max_basic: u32,
    max_extended: u32,
}

/// Highest basic leaf that is ever offered.
const MAX_BASIC: u32 = 0x1f;
/// Highest extended leaf that is ever offered.
const MAX_EXTENDED: u32 = 0x8000_0021;
/// The hypervisor's leaves.
const HYPERVISOR: u32 = 0x4000_0000;
/// "KVMKVMKVM\0\0\0" in EBX, ECX, EDX: the interface is KVM's.
const SIGNATURE: Regs = Regs {
    eax: 0x4000_0001,
    ebx: 0x4b4d_564b,
    ecx: 0x564b_4d56,
    edx: 0x0000_004d,
};
/// Bits of leaf 0x8000_0001 EDX that repeat leaf 1's on AMD.
const ALIASED_EDX: u32 = 0x0183_f3ff;

/// The host's CPUID, zero beyond the highest leaf of each range (where Intel repeats another leaf).
struct HostCpuid<F> {
    raw: F,
    max_basic: u32,
    max_extended: u32,
}

impl<F: Fn(u32, u32) -> Regs> HostCpuid<F> {
    fn new(raw: F) -> Self {
        let max_basic = raw(0, 0).eax;
        let max_extended = match raw(0x8000_0000, 0).eax {
            m if m & 0xffff_0000 == 0x8000_0000 => m,
            _ => 0,
        };
        HostCpuid {
            raw,
            max_basic,
            max_extended,
        }
    }

    fn get(&self, leaf: u32, subleaf: u32) -> Regs {
        let max = if leaf & 0x8000_0000 != 0 {
            self.max_extended
        } else {
            self.max_basic
        };
        if leaf > max || (leaf == 7 && subleaf > (self.raw)(7, 0).eax) {
            return Regs::ZERO;
        }
        (self.raw)(leaf, subleaf)
    }
}

impl Supported {
    /// Decides what to offer, from the host's CPUID and `caps`. `host(leaf, subleaf)` executes
    /// CPUID.
    pub fn build(host: impl Fn(u32, u32) -> Regs, caps: &HostCaps) -> Supported {
        let cpuid = HostCpuid::new(host);
        let layout = XstateLayout::from_cpuid(|l, s| cpuid.get(l, s));
        let d0 = cpuid.get(0xd, 0);
        let d1 = cpuid.get(0xd, 1);

        let mut xcr0 = 0;
        if caps.caps.has(Cap::Xsave) {
            let mut want = caps.host_xcr0 & join(d0.eax, d0.edx);
            if !caps.caps.has(Cap::Pku) {
                want &= !xstate::PKRU;
            }
            xcr0 = xstate::xcr0_offer(want);
        }
        let xss = if xcr0 != 0 && caps.caps.has(Cap::Xsaves) {
            caps.xss & xstate::XSS_KNOWN & join(d1.ecx, d1.edx)
        } else {
            0
        };

        let mut features = FeatureSet::EMPTY;
        for &f in &ALL {
            let info = f.info();
            let on_host = || info.in_regs(&cpuid.get(info.leaf, info.subleaf));
            let on = match info.policy {
                Policy::Host => on_host(),
                Policy::HostWith(c) => caps.caps.has(c) && on_host(),
                Policy::HostState(need) => xcr0 & need == need && on_host(),
                Policy::HostOr(c) => caps.caps.has(c) || on_host(),
                Policy::Emulated => true,
                Policy::EmulatedWith(c) => caps.caps.has(c),
                Policy::Runtime | Policy::Hidden => false,
            };
            features.set(f, on);
        }
        // A feature without the state that belongs to it would trap or lose data.
        if xcr0 == 0 {
            for f in [
                Feature::Xsave,
                Feature::Xsaveopt,
                Feature::Xsavec,
                Feature::Xgetbv1,
            ] {
                features.set(f, false);
            }
        }
        if !features.has(Feature::Xsave) {
            features.set(Feature::Xsaves, false);
        }
        if xss & xstate::XSS_KNOWN != xstate::XSS_KNOWN {
            features.set(Feature::Shstk, false);
            features.set(Feature::Ibt, false);
        }
        if xcr0 & xstate::PKRU == 0 {
            features.set(Feature::Pku, false);
        }

        let synthesised =
            caps.caps.has(Cap::LfenceSerializing) || caps.caps.has(Cap::NullSelClearsBase);
        let max_extended = match cpuid.max_extended {
            // User space takes a maximum above 0x8000_001d as a promise that the host has that leaf.
            m if m >= 0x8000_001d && synthesised => MAX_EXTENDED,
            m => m.min(MAX_EXTENDED),
        };
        Supported {
            features,
            xcr0,
            xss,
            layout,
            host: *caps,
            max_basic: cpuid.max_basic.min(MAX_BASIC),
            max_extended,
        }
    }

    /// Gives every entry of the table to `sink`, in order of leaf and sub-leaf. `host` is as in
    /// [`Supported::build`].
    ///
    /// # Errors
    /// The first error of `sink` (e.g. that its buffer is full), unchanged.
    pub fn emit<E>(
        &self,
        host: impl Fn(u32, u32) -> Regs,
        mut sink: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let cpuid = HostCpuid::new(host);
        for leaf in 0..=self.max_basic {
            self.emit_leaf(&cpuid, leaf, &mut sink)?;
        }
        self.emit_leaf(&cpuid, HYPERVISOR, &mut sink)?;
        self.emit_leaf(&cpuid, HYPERVISOR | 1, &mut sink)?;
        if self.max_extended != 0 {
            for leaf in 0x8000_0000..=self.max_extended {
                self.emit_leaf(&cpuid, leaf, &mut sink)?;
            }
        }
        Ok(())
    }

    /// Gives one leaf with its sub-leaves.
    fn emit_leaf<F: Fn(u32, u32) -> Regs, E>(
        &self,
        cpuid: &HostCpuid<F>,
        function: u32,
        sink: &mut impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let flags = if leaf::indexed(function) {
            SIGNIFICANT_INDEX
        } else {
            0
        };
        let mut put = |index: u32, regs: Regs| {
            sink(Entry {
                function,
                index,
                flags,
                regs,
            })
        };
        match function {
            0 => put(
                0,
                Regs {
                    eax: self.max_basic,
                    ..cpuid.get(0, 0)
                },
            ),
            7 => {
                let last = cpuid.get(7, 0).eax.min(2);
                for i in 0..=last {
                    let eax = if i == 0 { last } else { 0 };
                    put(i, or(self.features_of(7, i), Regs { eax, ..Regs::ZERO }))?;
                }
                Ok(())
            }
            0xd => self.emit_xsave(cpuid, &mut put),
            HYPERVISOR => put(0, SIGNATURE),
            0x4000_0001 => put(
                0,
                Regs {
                    eax: self.host.pv & pv::KNOWN,
                    ..Regs::ZERO
                },
            ),
            0x8000_0000 => put(
                0,
                Regs {
                    eax: self.max_extended,
                    ..cpuid.get(function, 0)
                },
            ),
            0x8000_0001 => {
                let raw = cpuid.get(function, 0);
                let mut r = self.features_of(function, 0);
                r.eax = raw.eax;
                // Bits 27:16 are reserved.
                r.ebx = raw.ebx & 0xf000_ffff;
                r.edx |= raw.edx & ALIASED_EDX & self.features.register(1, 0, Reg::Edx);
                put(0, r)
            }
            0x8000_0008 => put(0, self.address_sizes(cpuid)),
            _ => match leaf::find(function) {
                None => put(0, Regs::ZERO),
                Some(row) => {
                    // 64 is more than any processor's caches; it bounds the loop on a bad host.
                    for i in 0..64 {
                        let raw = cpuid.get(function, i);
                        put(i, self.show(row, &raw))?;
                        if row.sub != Sub::Caches || raw.eax & 0x1f == 0 {
                            break;
                        }
                    }
                    Ok(())
                }
            },
        }
    }

    /// The offered feature bits of a (sub-)leaf, in all four registers.
    fn features_of(&self, leaf: u32, subleaf: u32) -> Regs {
        let f = |reg| self.features.register(leaf, subleaf, reg);
        Regs {
            eax: f(Reg::Eax),
            ebx: f(Reg::Ebx),
            ecx: f(Reg::Ecx),
            edx: f(Reg::Edx),
        }
    }

    /// A leaf's registers by the general rule.
    fn show(&self, row: &leaf::Leaf, raw: &Regs) -> Regs {
        let mut out = Regs::ZERO;
        for (reg, show) in [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx]
            .into_iter()
            .zip(row.show)
        {
            *out.get_mut(reg) = match show {
                Show::Zero => 0,
                Show::Host(mask) => raw.get(reg) & mask,
                Show::Features => self.features.register(row.function, 0, reg),
                Show::Fixed(v) => v,
            };
        }
        out
    }

    /// Leaf 0xD: XCR0, IA32_XSS, and a sub-leaf for each component of both.
    fn emit_xsave<F: Fn(u32, u32) -> Regs, E>(
        &self,
        cpuid: &HostCpuid<F>,
        put: &mut impl FnMut(u32, Regs) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.xcr0 == 0 {
            return put(0, Regs::ZERO);
        }
        let size = self.layout.standard_size(self.xcr0);
        put(
            0,
            Regs {
                eax: low(self.xcr0),
                ebx: size,
                ecx: size,
                edx: high(self.xcr0),
            },
        )?;
        let compact = self.features.has(Feature::Xsavec) || self.features.has(Feature::Xsaves);
        let ebx = if compact {
            self.layout.compacted_size(self.xcr0 | self.xss)
        } else {
            0
        };
        let eax = self.features.register(0xd, 1, Reg::Eax);
        put(
            1,
            Regs {
                eax,
                ebx,
                ecx: low(self.xss),
                edx: high(self.xss),
            },
        )?;
        for i in 2..63 {
            if (self.xcr0 | self.xss) & (1 << i) != 0 {
                let raw = cpuid.get(0xd, i);
                // ECX: supervisor component, alignment. Bit 2 (XFD faulting) is for AMX.
                put(
                    i,
                    Regs {
                        ecx: raw.ecx & 3,
                        edx: 0,
                        ..raw
                    },
                )?;
            }
        }
        Ok(())
    }

    /// Leaf 0x8000_0008: widths of addresses, features, and the core count field's size.
    fn address_sizes<F: Fn(u32, u32) -> Regs>(&self, cpuid: &HostCpuid<F>) -> Regs {
        let raw = cpuid.get(0x8000_0008, 0);
        let phys = raw.eax & 0xff;
        let linear = ((raw.eax >> 8) & 0xff).max(48);
        let guest_phys = phys.min(u32::from(self.host.gpa_bits));
        Regs {
            eax: phys | linear << 8 | guest_phys << 16,
            ebx: self.features.register(0x8000_0008, 0, Reg::Ebx),
            // Number of cores, APIC id size.
            ecx: raw.ecx & 0xf0ff,
            edx: 0,
        }
    }
}

fn or(a: Regs, b: Regs) -> Regs {
    Regs {
        eax: a.eax | b.eax,
        ebx: a.ebx | b.ebx,
        ecx: a.ecx | b.ecx,
        edx: a.edx | b.edx,
    }
}

const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

const fn low(v: u64) -> u32 {
    (v & 0xffff_ffff) as u32
}

const fn high(v: u64) -> u32 {
    (v >> 32) as u32
}
