// SPDX-License-Identifier: GPL-2.0

//! ID registers of a guest: what it is shown of the host's features, and what user space may take away.
//!
//! Arm ARM (DDI 0487), D24.1.3 (principles of the ID scheme: signed and unsigned fields, which value is the safe
//! one) and D24.2 for each register; Linux `Documentation/virt/kvm/api.rst`, KVM_ARM_GET_REG_WRITABLE_MASKS.
//!
//! A field that is not in the table reads as zero in every guest: what is not known is not offered.

use super::sysreg::Sysreg;
use super::trap::Features;

pub mod cache;
mod table;

pub use table::TABLE;

/// Which of two values of a field a guest can do with, on a host with the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The lower one.
    Lower,
    /// The higher one.
    Higher,
    /// The higher one, but zero is the highest (sizes that are "not given").
    HigherOrZero,
    /// Only the same, or this.
    Exact(u8),
}

/// Whence a field's value comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// The host's, up to the field's maximum.
    Host,
    /// None: zero.
    Zero,
    /// The host's, if the guest has SVE.
    Sve,
    /// The host's, if the guest has pointer authentication.
    Pauth,
    /// One if the guest has a GICv3.
    Gic,
    /// The host's, if the guest has a GICv3.
    GicHost,
    /// One if the host is not affected by Spectre v2; else its own.
    Csv2,
    /// One if the host is not affected by Meltdown; else its own.
    Csv3,
    /// The version of the PMU that the guest has (ID_AA64DFR0_EL1.PMUVer).
    PmuVer,
    /// The same, as AArch32 numbers it (ID_DFR0_EL1.PerfMon).
    PerfMon,
    /// The host's, if WFIT and WFET can be trapped and timed.
    WfxT,
    /// The host's, if it has an effect (RAS_frac is for RAS 1).
    RasFrac,
    /// The host's, if it switches POR_EL0 and POR_EL1.
    Poe,
}

/// A field of a register.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its lowest bit.
    pub shift: u8,
    /// Number of bits: 1, 2 or 4.
    pub width: u8,
    /// Signed: all ones is less than zero.
    pub signed: bool,
    /// Which values are safe.
    pub rule: Rule,
    /// The most that guests are offered.
    pub max: u8,
    /// The least that user space may set.
    pub min: u8,
    /// User space may set it.
    pub writable: bool,
    /// Whence its value comes.
    pub show: Show,
}

/// A register.
#[derive(Clone, Copy, Debug)]
pub struct IdReg {
    /// Which.
    pub reg: Sysreg,
    /// Bits that are always set.
    pub res1: u64,
    /// Its fields.
    pub fields: &'static [Field],
}

/// What a VM is, as far as its ID registers depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// vCPUs have a PMU: the highest ID_AA64DFR0_EL1.PMUVer that it can have.
    pub pmu: Option<u8>,
    /// vCPUs have SVE.
    pub sve: bool,
    /// vCPUs have pointer authentication.
    pub pauth: bool,
    /// There is a GICv3. Before there is any controller: there could be one.
    pub gic: bool,
    /// The host is not affected by Spectre v2.
    pub csv2: bool,
    /// The host is not affected by Meltdown.
    pub csv3: bool,
    /// The processors run AArch32 at EL0.
    pub aarch32_el0: bool,
    /// WFIT and WFET work for guests.
    pub wfxt: bool,
    /// ID_AA64PFR1_EL1.RAS_frac has a meaning: the host's ID_AA64PFR0_EL1.RAS is 1.
    pub ras_frac: bool,
    /// Permission overlays work for guests.
    pub poe: bool,
}

/// A value that a register does not take: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidValue;

/// PMUVer and PerfMon: a PMU that is not Arm's. Never offered.
const IMP_DEF: u8 = 0xf;

impl Field {
    const fn ones(&self) -> u64 {
        (1 << self.width) - 1
    }

    const fn mask(&self) -> u64 {
        self.ones() << self.shift
    }

    fn get(&self, value: u64) -> u8 {
        u8::try_from(value >> self.shift & self.ones()).unwrap_or(0)
    }

    fn put(&self, value: u8) -> u64 {
        (u64::from(value) & self.ones()) << self.shift
    }

    /// As a number that can be compared.
    fn number(&self, value: u8) -> i16 {
        let n = i16::from(value);
        if self.signed && value >> (self.width - 1) != 0 {
            n - (1 << self.width)
        } else {
            n
        }
    }

    /// What the guest is shown of `host`, which is the field's value there.
    fn shown(&self, host: u8, c: &Config) -> u8 {
        let limited = if self.number(host) > self.number(self.max) {
            self.max
        } else {
            host
        };
        let only_if = |on: bool| if on { limited } else { 0 };
        let pmu = match c.pmu {
            None | Some(IMP_DEF) => 0,
            // 2 and 3 are not allocated; AArch32 would take 2 for another PMU.
            Some(1..=3) => 1,
            Some(v) => v.min(self.max),
        };
        match self.show {
            Show::Host => limited,
            Show::Zero => 0,
            Show::Sve => only_if(c.sve),
            Show::Pauth => only_if(c.pauth),
            Show::WfxT => only_if(c.wfxt),
            Show::RasFrac => only_if(c.ras_frac),
            Show::Poe => only_if(c.poe),
            Show::GicHost => only_if(c.gic),
            Show::Gic => u8::from(c.gic),
            Show::Csv2 if c.csv2 => 1,
            Show::Csv3 if c.csv3 => 1,
            Show::Csv2 | Show::Csv3 => limited,
            Show::PmuVer => pmu,
            // 1 is PMUv3, which AArch32 calls 3; later versions have the same number in both.
            Show::PerfMon if pmu == 1 => 3,
            Show::PerfMon => pmu,
        }
    }

    /// `new` can be had where `limit` is offered.
    fn allows(&self, limit: u8, new: u8) -> bool {
        if new == limit {
            return true;
        }
        if !self.writable || self.number(new) < self.number(self.min) {
            return false;
        }
        match self.rule {
            Rule::Lower => self.number(new) < self.number(limit),
            Rule::Higher => self.number(new) > self.number(limit),
            Rule::HigherOrZero => new == 0 || limit != 0 && new > limit,
            Rule::Exact(safe) => new == safe,
        }
    }
}

/// A register's row; `None` if all of it is zero.
fn row(reg: Sysreg) -> Option<&'static IdReg> {
    index(reg).and_then(|i| TABLE.get(i))
}

/// How many registers have a value that is not always zero.
pub const COUNT: usize = TABLE.len();

/// The place of such a register in an array of [`COUNT`] values; `None` reads as zero.
pub fn index(reg: Sysreg) -> Option<usize> {
    TABLE.binary_search_by_key(&reg, |r| r.reg).ok()
}

/// ID registers of AArch32, as AArch64 sees them: CRm 1 to 3.
const fn is_aarch32(reg: Sysreg) -> bool {
    reg.is_feature_id() && reg.crm() <= 3
}

/// Reads as zero in this guest, whatever the host has.
fn zero(reg: Sysreg, c: &Config) -> bool {
    is_aarch32(reg) && !c.aarch32_el0 || reg == Sysreg::ID_AA64ZFR0_EL1 && !c.sve
}

/// The most that a guest is offered of a register whose value is `host` here, on all processors. This is what the
/// guest has until user space sets less.
pub fn guest_value(reg: Sysreg, host: u64, c: &Config) -> u64 {
    let Some(r) = row(reg).filter(|_| !zero(reg, c)) else {
        return 0;
    };
    r.fields
        .iter()
        .map(|f| f.put(f.shown(f.get(host), c)))
        .fold(r.res1, |all, f| all | f)
}

/// What user space's write of a register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets it to this.
    Set(u64),
    /// Nothing: ID registers of AArch32 where there is none.
    Ignore,
}

/// Bits that older kernels let guests see of the host's, and that user space may bring back: they are dropped.
/// MPAM and MPAM_frac, NV.
const fn tolerated(reg: Sysreg) -> u64 {
    match reg {
        Sysreg::ID_AA64PFR0_EL1 => 0xf << 40,
        Sysreg::ID_AA64PFR1_EL1 => 0xf << 16,
        Sysreg::ID_AA64MMFR2_EL1 => 0xf << 24,
        _ => 0,
    }
}

/// User space sets a register to `value`, before a vCPU has run (later: EBUSY unless it is what is there). `host`
/// is the host's value, and with `c` gives the most that can be asked for.
///
/// # Errors
/// More than is offered in a field, a change where none is possible, or bits that are in no field.
pub fn check_write(reg: Sysreg, host: u64, value: u64, c: &Config) -> Result<Write, InvalidValue> {
    if is_aarch32(reg) && !c.aarch32_el0 {
        return Ok(Write::Ignore);
    }
    let limit = guest_value(reg, host, c);
    let mut value = value;
    let old = tolerated(reg);
    if old != 0 && value & old == host & old {
        value &= !old;
    }
    let Some(r) = row(reg).filter(|_| !zero(reg, c)) else {
        return if value == 0 {
            Ok(Write::Set(0))
        } else {
            Err(InvalidValue)
        };
    };
    let mut rest = value ^ r.res1;
    for f in r.fields {
        let mut new = f.get(value);
        // That, too, was shown once.
        if matches!(f.show, Show::PmuVer | Show::PerfMon) && new == IMP_DEF {
            new = 0;
            value &= !f.mask();
        }
        if !f.allows(f.get(limit), new) {
            return Err(InvalidValue);
        }
        rest &= !f.mask();
    }
    // There is no PMU between "none" and version 3.
    if reg == Sysreg::ID_DFR0_EL1 && matches!(value >> 24 & 0xf, 1 | 2) {
        return Err(InvalidValue);
    }
    if rest != 0 {
        return Err(InvalidValue);
    }
    Ok(Write::Set(value))
}

/// A register's value when the VM runs without a GICv3 in the kernel, whatever user space has set before.
pub const fn without_gic(reg: Sysreg, value: u64) -> u64 {
    match reg {
        Sysreg::ID_AA64PFR0_EL1 => value & !(0xf << 24),
        Sysreg::ID_PFR1_EL1 => value & !(0xf << 28),
        _ => value,
    }
}

/// Bits of MIDR_EL1, REVIDR_EL1 and AIDR_EL1 that user space may set (KVM_CAP_ARM_WRITABLE_IMP_ID_REGS).
pub const fn implementation_mask(reg: Sysreg) -> Option<u64> {
    match reg {
        Sysreg::MIDR_EL1 => Some(0xffff_ffff),
        Sysreg::REVIDR_EL1 | Sysreg::AIDR_EL1 => Some(u64::MAX),
        _ => None,
    }
}

/// Bits of a register that user space may set.
pub fn writable_mask(reg: Sysreg, aarch32_el0: bool) -> u64 {
    if let Some(mask) = implementation_mask(reg) {
        return mask;
    }
    if reg == Sysreg::CLIDR_EL1 {
        return cache::CLIDR_FIELDS;
    }
    if is_aarch32(reg) && !aarch32_el0 {
        return 0;
    }
    row(reg).map_or(0, |r| {
        r.fields
            .iter()
            .filter(|f| f.writable)
            .fold(0, |all, f| all | f.mask())
    })
}

/// Masks in the array of KVM_ARM_GET_REG_WRITABLE_MASKS (KVM_ARM_FEATURE_ID_RANGE_SIZE).
pub const MASKS: usize = 3 * 8 * 8;

/// The register whose mask is at `index` of that array (KVM_ARM_FEATURE_ID_RANGE_IDX): op1 0, 1 and 3, each with
/// CRn 0 and CRm 0 to 7.
pub const fn mask_register(index: usize) -> Option<Sysreg> {
    if index >= MASKS {
        return None;
    }
    let op1 = match index >> 6 {
        2 => 3,
        n => (n & 1) as u8,
    };
    Some(Sysreg::new(
        3,
        op1,
        0,
        (index >> 3 & 7) as u8,
        (index & 7) as u8,
    ))
}

/// What registers a guest has that follow from its ID registers, whose final values `id` gives, and from its
/// vCPUs' features.
pub fn features(id: impl Fn(Sysreg) -> u64, c: &Config) -> Features {
    let field = |reg: Sysreg, shift: u32| id(reg) >> shift & 0xf;
    let ras = field(Sysreg::ID_AA64PFR0_EL1, 28);
    let ras_frac = field(Sysreg::ID_AA64PFR1_EL1, 12);
    let mmfr3 = |shift| field(Sysreg::ID_AA64MMFR3_EL1, shift) != 0;
    Features {
        pmu: c.pmu.is_some(),
        sve: c.sve,
        pauth: c.pauth,
        mte: field(Sysreg::ID_AA64PFR1_EL1, 8) >= 2,
        ras: ras >= 1,
        ras1p1: ras >= 2 || ras == 1 && ras_frac >= 1,
        lor: field(Sysreg::ID_AA64MMFR1_EL1, 16) != 0,
        gic: c.gic && field(Sysreg::ID_AA64PFR0_EL1, 24) != 0,
        sctlr2: mmfr3(4),
        tcr2: mmfr3(0),
        s1pie: mmfr3(8),
        s1poe: mmfr3(16),
        fpmr: field(Sysreg::ID_AA64PFR2_EL1, 32) != 0,
    }
}

/// The host has what KVM_CAP_ARM_PTRAUTH_ADDRESS and GENERIC promise: authentication of both kinds, by the same
/// algorithm (QARMA5, QARMA3, or the implementation's own). `isar1`, `isar2`: ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1.
pub const fn has_pauth(isar1: u64, isar2: u64) -> bool {
    const fn has(v: u64, shift: u32) -> bool {
        v >> shift & 0xf != 0
    }
    // (APA, GPA), (APA3, GPA3), (API, GPI)
    has(isar1, 4) && has(isar1, 24)
        || has(isar2, 12) && has(isar2, 8)
        || has(isar1, 8) && has(isar1, 28)
}
