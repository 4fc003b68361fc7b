// SPDX-License-Identifier: GPL-2.0

//! What one guest was given by KVM_SET_CPUID2: the CPUID instruction's answers, and what follows
//! for registers.

use super::super::regs::{cr4, efer};
use super::super::xstate::XstateLayout;
use super::feature::{Feature, FeatureSet, ALL};
use super::supported::Supported;
use super::{family_model, Entry, Regs, Vendor, SIGNIFICANT_INDEX};

/// State of the guest that CPUID shows.
#[derive(Clone, Copy, Debug)]
pub struct Dynamic<'a> {
    /// CR4 (OSXSAVE, PKE).
    pub cr4: u64,
    /// IA32_APIC_BASE says that the APIC is on.
    pub apic_enabled: bool,
    /// `Some` if MISC_ENABLE's MWAIT bit decides over MONITOR (the quirk
    /// KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT is off), and then that bit.
    pub mwait: Option<bool>,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// Component sizes.
    pub layout: &'a XstateLayout,
}

/// A guest's CPUID entries, to look up in.
///
/// # Invariants
/// `entries` is sorted by function; entries of one function are in the order that user space gave.
#[derive(Clone, Copy, Debug)]
pub struct CpuidTable<'a> {
    entries: &'a [Entry],
}

impl<'a> CpuidTable<'a> {
    /// Sorts `entries` for lookup. Stable: the first of several entries that answer the same query
    /// wins, as user space may rely on. KVM_GET_CPUID2 returns entries in this order.
    pub fn sort(entries: &mut [Entry]) {
        // Insertion sort: at most 256 entries, nearly always sorted within each range already.
        for end in 1..entries.len() {
            let mut i = end;
            while i > 0 {
                match entries.get(i - 1..=i) {
                    Some([a, b]) if a.function > b.function => entries.swap(i - 1, i),
                    _ => break,
                }
                i -= 1;
            }
        }
    }

    /// A table over entries that [`sort`](Self::sort) has sorted.
    pub const fn new(entries: &'a [Entry]) -> CpuidTable<'a> {
        CpuidTable { entries }
    }

    /// The entry that answers for (`leaf`, `subleaf`).
    #[inline]
    pub fn find(&self, leaf: u32, subleaf: u32) -> Option<&'a Entry> {
        let start = self.entries.partition_point(|e| e.function < leaf);
        self.entries
            .get(start..)?
            .iter()
            .take_while(|e| e.function == leaf)
            .find(|e| e.flags & SIGNIFICANT_INDEX == 0 || e.index == subleaf)
    }

    /// True if both tables hold the same entries, but for bits that follow the guest's state: a
    /// vCPU that has run takes only such a table, which user space may have got from
    /// KVM_GET_CPUID2 in another state.
    pub fn same(&self, other: &CpuidTable<'_>, d: &Dynamic<'_>) -> bool {
        let key = |e: &Entry| (e.function, e.index, e.flags);
        self.entries.len() == other.entries.len()
            && self
                .entries
                .iter()
                .zip(other.entries)
                .all(|(a, b)| key(a) == key(b) && dynamic(a, d) == dynamic(b, d))
    }

    /// Registers of an entry, zero if there is none.
    fn regs(&self, leaf: u32, subleaf: u32) -> Regs {
        self.find(leaf, subleaf).map_or(Regs::ZERO, |e| e.regs)
    }

    /// The CPUID instruction: what the guest sees for EAX = `leaf`, ECX = `subleaf`.
    ///
    /// Leaves that do not exist answer as the guest's vendor does: AMD with zeros, Intel with the
    /// highest basic leaf if `leaf` is beyond its range (SDM vol. 2A "CPUID").
    pub fn query(&self, leaf: u32, subleaf: u32, d: &Dynamic<'_>) -> Regs {
        if let Some(e) = self.find(leaf, subleaf) {
            return dynamic(e, d);
        }
        let mut leaf = leaf;
        if let Some(basic) = self.out_of_range(leaf) {
            leaf = basic;
            if let Some(e) = self.find(leaf, subleaf) {
                return dynamic(e, d);
            }
        }
        // Topology leaves echo the sub-leaf, and give the x2APIC id, in sub-leaves that are not
        // there too. Sub-leaf 1 exists if the leaf has content.
        match leaf {
            0xb | 0x1f => match self.find(leaf, 1) {
                Some(e) => Regs {
                    ecx: subleaf & 0xff,
                    edx: e.regs.edx,
                    ..Regs::ZERO
                },
                None => Regs::ZERO,
            },
            _ => Regs::ZERO,
        }
    }

    /// The leaf that answers instead of `leaf`, if that is out of range and the vendor has such a
    /// rule.
    fn out_of_range(&self, leaf: u32) -> Option<u32> {
        let basic = self.find(0, 0)?;
        if Vendor::from_leaf0(&basic.regs) == Vendor::Amd {
            return None;
        }
        // Each hypervisor interface has a range of 0x100 leaves of its own.
        let class = match leaf {
            0x4000_0000..=0x4fff_ffff => leaf & 0xffff_ff00,
            0xc000_0000.. => 0xc000_0000,
            _ => leaf & 0x8000_0000,
        };
        match self.find(class, 0) {
            Some(first) if leaf <= first.regs.eax => None,
            _ => Some(basic.regs.eax),
        }
    }

    /// Guest's vendor by leaf 0.
    pub fn vendor(&self) -> Vendor {
        Vendor::from_leaf0(&self.regs(0, 0))
    }

    /// Features that the entries claim, whether they are supported or not.
    pub fn claimed(&self) -> FeatureSet {
        let mut set = FeatureSet::EMPTY;
        for &f in &ALL {
            let info = f.info();
            let regs = self.regs(info.leaf, info.subleaf);
            set.set(f, info.in_regs(&regs));
        }
        set
    }

    /// Base leaf of the paravirtual interface with KVM's signature (0x4000_0000, or higher when
    /// another interface is in front).
    pub fn pv_base(&self) -> Option<u32> {
        (0x4000_0000u32..0x4001_0000).step_by(0x100).find(|&base| {
            let r = self.regs(base, 0);
            (r.ebx, r.ecx, r.edx) == (0x4b4d_564b, 0x564b_4d56, 0x4d)
        })
    }
}

/// An entry's registers with the bits that follow the guest's state put in: what CPUID and
/// KVM_GET_CPUID2 return.
pub fn dynamic(e: &Entry, d: &Dynamic<'_>) -> Regs {
    let mut r = e.regs;
    let mut put = |f: Feature, on: bool| {
        let info = f.info();
        let reg = r.get_mut(info.reg);
        *reg = if on {
            *reg | info.mask()
        } else {
            *reg & !info.mask()
        };
    };
    match (e.function, e.index) {
        (1, _) => {
            put(Feature::Osxsave, d.cr4 & cr4::OSXSAVE != 0);
            put(Feature::Apic, d.apic_enabled);
            if let Some(on) = d.mwait {
                put(Feature::Monitor, on);
            }
        }
        (7, 0) => put(Feature::Ospke, d.cr4 & cr4::PKE != 0),
        (0xd, 0) => r.ebx = d.layout.standard_size(d.xcr0),
        (0xd, 1) => {
            let compact = Feature::Xsavec.info().mask() | Feature::Xsaves.info().mask();
            if r.eax & compact != 0 {
                r.ebx = d.layout.compacted_size(d.xcr0 | d.xss);
            }
        }
        _ => {}
    }
    r
}

/// Why a table is refused (EINVAL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidCpuid {
    /// Leaf 0x8000_0008 says a linear address width other than 48 or 57 bits.
    LinearBits(u8),
}

/// What follows from a guest's CPUID, worked out once at KVM_SET_CPUID2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    /// Features that the guest was given and that are supported.
    pub set: FeatureSet,
    /// Vendor.
    pub vendor: Vendor,
    /// Family, with the extended family added.
    pub family: u16,
    /// Model, with the extended model.
    pub model: u8,
    /// Width of physical addresses in bits.
    pub maxphyaddr: u8,
    /// Width of linear addresses in bits that the processor has: 48, or 57 with LA57. MSRs that
    /// hold addresses are checked against this, whatever CR4.LA57 says.
    pub linear_bits: u8,
    /// Bits of CR4 that the guest may set.
    pub cr4: u64,
    /// Bits of EFER that the guest may set.
    pub efer: u64,
    /// Components that XCR0 may have.
    pub xcr0: u64,
    /// Components that IA32_XSS may have.
    pub xss: u64,
    /// Paravirtual features (see [`pv`](super::super::pv)).
    pub pv: u32,
}

/// CR4 bits that every guest may set.
const CR4_BASE: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT;

/// CR4 bits that come with a feature.
static CR4_BY_FEATURE: [(u64, Feature); 12] = [
    (cr4::UMIP, Feature::Umip),
    (cr4::LA57, Feature::La57),
    (cr4::VMXE, Feature::Vmx),
    (cr4::SMXE, Feature::Smx),
    (cr4::FSGSBASE, Feature::Fsgsbase),
    (cr4::PCIDE, Feature::Pcid),
    (cr4::OSXSAVE, Feature::Xsave),
    (cr4::SMEP, Feature::Smep),
    (cr4::SMAP, Feature::Smap),
    (cr4::PKE, Feature::Pku),
    (cr4::CET, Feature::Shstk),
    (cr4::CET, Feature::Ibt),
];

/// EFER bits that come with a feature; SCE always exists.
static EFER_BY_FEATURE: [(u64, Feature); 7] = [
    (efer::LME | efer::LMA, Feature::Lm),
    (efer::NXE, Feature::Nx),
    (efer::SVME, Feature::Svm),
    (efer::FFXSR, Feature::FxsrOpt),
    (efer::TCE, Feature::Tce),
    (efer::AUTOIBRS, Feature::AutoIbrs),
    (efer::SCE, Feature::Syscall),
];

fn mask(base: u64, rows: &[(u64, Feature)], set: &FeatureSet) -> u64 {
    rows.iter()
        .filter(|(_, f)| set.has(*f))
        .fold(base, |m, (bits, _)| m | bits)
}

/// Bits of CR4 that go with `set`.
fn cr4_mask(set: &FeatureSet) -> u64 {
    mask(CR4_BASE, &CR4_BY_FEATURE, set)
}

impl Default for GuestFeatures {
    /// A guest that was never given a CPUID table.
    fn default() -> Self {
        GuestFeatures {
            set: FeatureSet::EMPTY,
            vendor: Vendor::default(),
            family: 0,
            model: 0,
            maxphyaddr: 36,
            linear_bits: 48,
            cr4: CR4_BASE,
            efer: efer::SCE,
            xcr0: 0,
            xss: 0,
            pv: 0,
        }
    }
}

impl GuestFeatures {
    /// Works out what `table` gives on this host.
    ///
    /// # Errors
    /// If the table cannot be honoured at all.
    pub fn derive(table: &CpuidTable<'_>, host: &Supported) -> Result<GuestFeatures, InvalidCpuid> {
        let widths = table.find(0x8000_0008, 0).map(|e| e.regs.eax);
        let linear = (widths.unwrap_or(0) >> 8) & 0xff;
        if !matches!(linear, 0 | 48 | 57) {
            return Err(InvalidCpuid::LinearBits(linear as u8));
        }
        let has_widths = table
            .find(0x8000_0000, 0)
            .is_some_and(|e| e.regs.eax >= 0x8000_0008);
        let maxphyaddr = match widths {
            Some(w) if has_widths => (w & 0xff) as u8,
            // Processors without that leaf have 36 bits with PAE (SDM vol. 3A 4.1.4).
            _ => 36,
        };
        let mut known = host.features;
        // User space may give MONITOR: MWAIT then runs as a no-op.
        known.set(Feature::Monitor, true);
        let set = table.claimed().and(&known);

        let d0 = table.regs(0xd, 0);
        let d1 = table.regs(0xd, 1);
        let (family, model) = family_model(table.regs(1, 0).eax);
        let pv = match table.pv_base() {
            Some(base) => table.regs(base | 1, 0).eax,
            None => 0,
        };
        Ok(GuestFeatures {
            set,
            vendor: table.vendor(),
            family,
            model,
            maxphyaddr,
            linear_bits: if set.has(Feature::La57) { 57 } else { 48 },
            cr4: cr4_mask(&set),
            efer: mask(efer::SCE, &EFER_BY_FEATURE, &set),
            xcr0: (u64::from(d0.eax) | u64::from(d0.edx) << 32) & host.xcr0,
            xss: (u64::from(d1.ecx) | u64::from(d1.edx) << 32) & host.xss,
            pv,
        })
    }

    /// The guest has the feature.
    #[inline]
    pub const fn has(&self, f: Feature) -> bool {
        self.set.has(f)
    }

    /// Bits of a physical address that are reserved (above MAXPHYADDR).
    #[inline]
    pub const fn reserved_gpa_bits(&self) -> u64 {
        match self.maxphyaddr {
            bits @ 0..=63 => u64::MAX << bits,
            _ => 0,
        }
    }

    /// Behaves as AMD's processors do.
    #[inline]
    pub fn is_amd(&self) -> bool {
        self.vendor == Vendor::Amd
    }
}
