// SPDX-License-Identifier: GPL-2.0

//! CPUID: what guests can be offered ([`Supported`]), what a guest was given ([`CpuidTable`]), and
//! what follows from it ([`GuestFeatures`]).
//!
//! Every feature bit is a row of one table ([`feature::TABLE`]) with its policy: who has to do what
//! for it to work. A bit without a row is never offered.
//! Sources: APM vol. 3 (24594) appendix E, SDM vol. 2A "CPUID", Linux
//! `Documentation/virt/kvm/x86/cpuid.rst` for the hypervisor's own leaves.

pub mod feature;
mod guest;
mod leaf;
mod supported;

pub use feature::{Feature, FeatureSet, Policy};
pub use guest::{dynamic, CpuidTable, Dynamic, GuestFeatures, InvalidCpuid};
pub use supported::{Cap, CapSet, HostCaps, Supported};

/// What CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// EAX
    pub eax: u32,
    /// EBX
    pub ebx: u32,
    /// ECX
    pub ecx: u32,
    /// EDX
    pub edx: u32,
}

impl Regs {
    /// All zero: what an undefined leaf returns.
    pub const ZERO: Regs = Regs {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };

    /// One of the four.
    #[inline]
    pub const fn get(&self, r: Reg) -> u32 {
        match r {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    /// One of the four, to change.
    #[inline]
    pub fn get_mut(&mut self, r: Reg) -> &mut u32 {
        match r {
            Reg::Eax => &mut self.eax,
            Reg::Ebx => &mut self.ebx,
            Reg::Ecx => &mut self.ecx,
            Reg::Edx => &mut self.edx,
        }
    }
}

/// A result register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reg {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

/// Flag of an [`Entry`]: it answers only for its own sub-leaf (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
pub const SIGNIFICANT_INDEX: u32 = 1;

/// The most entries that a guest can have (KVM_MAX_CPUID_ENTRIES).
pub const MAX_ENTRIES: usize = 256;

/// One line of a CPUID table, as `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Leaf (EAX on entry).
    pub function: u32,
    /// Sub-leaf (ECX on entry); means something with [`SIGNIFICANT_INDEX`] only.
    pub index: u32,
    /// [`SIGNIFICANT_INDEX`] or 0.
    pub flags: u32,
    /// What to return.
    pub regs: Regs,
}

/// A processor's vendor, as far as behaviour depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, and Hygon which behaves like it.
    Amd,
    /// Intel, and Centaur and Zhaoxin which behave like it. Also any other name.
    #[default]
    Intel,
}

impl Vendor {
    /// By the name in leaf 0 (EBX, EDX, ECX).
    pub const fn from_leaf0(r: &Regs) -> Vendor {
        // "AuthenticAMD", "AMDisbetter!", "HygonGenuine"
        match (r.ebx, r.edx, r.ecx) {
            (0x6874_7541, 0x6974_6e65, 0x444d_4163)
            | (0x6944_4d41, 0x7465_6273, 0x2172_6574)
            | (0x6f67_7948, 0x6e65_476e, 0x656e_6975) => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }
}

/// Family and model of leaf 1's EAX with the extended parts added (APM vol. 3 E.3.2).
pub const fn family_model(eax: u32) -> (u16, u8) {
    let base = ((eax >> 8) & 0xf) as u16;
    let extended = ((eax >> 20) & 0xff) as u16;
    let family = if base == 0xf { base + extended } else { base };
    let low = ((eax >> 4) & 0xf) as u8;
    let high = ((eax >> 12) & 0xf0) as u8;
    let model = if base == 0xf || base == 6 {
        low | high
    } else {
        low
    };
    (family, model)
}
