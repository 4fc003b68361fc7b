// SPDX-License-Identifier: GPL-2.0

//! Errors of cores that touch a hypervisor, and what is done about each.
//!
//! Linux `Documentation/arch/arm64/silicon-errata.rst` names them, the makers' errata notices tell what they are. Not
//! here: those of cores without VHE (Cortex-A53, A57, A72, A73, ThunderX: rkvm does not load there), of trace,
//! profiling and activity monitors, which guests do not have, and of devices.

use super::midr::{Core, Midr, Range};

/// What is done, as bits of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workarounds(u32);

impl Workarounds {
    /// A broadcast TLBI may be reported complete too early: it is followed by another one.
    pub const REPEAT_TLBI: Workarounds = Workarounds(1 << 0);
    /// Reading PAR_EL1 may deadlock with loads from devices: barriers around it.
    pub const PAR_BARRIER: Workarounds = Workarounds(1 << 1);
    /// A write of HCR_EL2 may mix up translations in flight: a barrier before it.
    pub const HCR_BARRIER: Workarounds = Workarounds(1 << 2);
    /// While it is stepped, a trap of pointer authentication leaves SPSR_EL2 wrong: it is as at the entry.
    pub const SPSR_OF_STEP: Workarounds = Workarounds(1 << 3);
    /// With threads, EL1's translation registers do not take effect in time: their writes trap (HCR_EL2.TVM).
    pub const TRAP_TRANSLATION: Workarounds = Workarounds(1 << 4);
    /// Nothing helps: rkvm does not load.
    pub const REFUSED: Workarounds = Workarounds(1 << 5);

    /// From [`Self::bits`].
    pub const fn from_bits(bits: u32) -> Workarounds {
        Workarounds(bits)
    }

    /// As a word.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// It is among these.
    pub const fn has(self, one: Workarounds) -> bool {
        self.0 & one.0 != 0
    }

    /// Both.
    pub const fn and(self, more: Workarounds) -> Workarounds {
        Workarounds(self.0 | more.0)
    }
}

/// Why rkvm goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It does something.
    Done(Workarounds),
    /// It has nothing to do, for this reason.
    Needless(&'static str),
}

/// An erratum.
#[derive(Clone, Copy, Debug)]
pub struct Erratum {
    /// Its numbers
    pub name: &'static str,
    /// Where it is
    pub cores: &'static [Range],
    /// What follows
    pub what: What,
}

macro_rules! errata {
    ($($name:literal: [$($range:expr),* $(,)?] => $what:expr;)*) => {
        /// All of them.
        pub const TABLE: &[Erratum] = &[$(Erratum {
            name: $name,
            cores: &[$($range),*],
            what: $what,
        }),*];
    };
}

const fn all(core: Core) -> Range {
    Range::all(core)
}

const fn between(core: Core, first: u8, last: u8) -> Range {
    Range::between(core, first, last)
}

use What::{Done, Needless};

errata! {
    "1286807": [between(Core::CORTEX_A76, 0, 0x30), between(Core::KRYO_4XX_GOLD, 0xce, 0xfe)]
        => Done(Workarounds::REPEAT_TLBI);
    "2441007": [all(Core::CORTEX_A55)] => Done(Workarounds::REPEAT_TLBI);
    "2441009": [between(Core::CORTEX_A510, 0, 0x11)] => Done(Workarounds::REPEAT_TLBI);
    "4118414": [
        all(Core::C1_PREMIUM),
        all(Core::C1_ULTRA),
        all(Core::CORTEX_A76),
        all(Core::CORTEX_A76AE),
        all(Core::CORTEX_A77),
        all(Core::CORTEX_A78),
        all(Core::CORTEX_A78AE),
        all(Core::CORTEX_A78C),
        all(Core::CORTEX_A710),
        all(Core::CORTEX_X1),
        all(Core::CORTEX_X1C),
        all(Core::CORTEX_X2),
        all(Core::CORTEX_X3),
        all(Core::CORTEX_X4),
        all(Core::CORTEX_X925),
        all(Core::NEOVERSE_N1),
        all(Core::NEOVERSE_N2),
        all(Core::NEOVERSE_V1),
        all(Core::NEOVERSE_V2),
        all(Core::NEOVERSE_V3),
        all(Core::NEOVERSE_V3AE),
        all(Core::OLYMPUS),
        all(Core::COBALT_100),
    ] => Done(Workarounds::REPEAT_TLBI);
    "1508412": [between(Core::CORTEX_A77, 0, 0x10)] => Done(Workarounds::PAR_BARRIER);
    "AC04_CPU_23": [all(Core::AMPERE1A)] => Done(Workarounds::HCR_BARRIER);
    "2077057": [between(Core::CORTEX_A510, 0, 0x02)] => Done(Workarounds::SPSR_OF_STEP);
    "Cavium 219": [all(Core::THUNDERX2), all(Core::VULCAN)] => Done(Workarounds::TRAP_TRANSLATION);
    "Oryon CNTVOFF_EL2": [all(Core::ORYON_X1)] => Done(Workarounds::REFUSED);

    "1165522, 1530923": [
        between(Core::CORTEX_A76, 0, 0x20),
        between(Core::CORTEX_A55, 0, 0x20),
        between(Core::KRYO_4XX_SILVER, 0xde, 0xde),
    ] => Needless("EL1's registers are whole before HCR_EL2.TGE lets anything be translated by them");
    "1463225": [between(Core::CORTEX_A76, 0, 0x31), between(Core::KRYO_4XX_GOLD, 0xce, 0xff)]
        => Needless("steps of the kernel, which sees to them");
    "1418040": [
        between(Core::CORTEX_A76, 0, 0x31),
        between(Core::NEOVERSE_N1, 0, 0x31),
        between(Core::KRYO_4XX_GOLD, 0xce, 0xff),
    ] => Needless("AArch32 programs of the guest, whose kernel sees to them by MIDR_EL1");
    "1542419": [all(Core::NEOVERSE_N1)]
        => Needless("the firmware's and each kernel's: a guest's sees MIDR_EL1, and may trap its EL0");
    "1024718": [between(Core::CORTEX_A55, 0, 0x10), between(Core::KRYO_4XX_SILVER, 0xde, 0xde)]
        => Needless("hardware does not set dirty state at stage 2");
    "AC03_CPU_38, AC04_CPU_10": [all(Core::AMPERE1), all(Core::AMPERE1A)]
        => Needless("hardware sets access flags at stage 2 only where ID_AA64MMFR1_EL1 says that it can");
    "Carmel CnP, 162100125": [all(Core::CARMEL), all(Core::HIP09)]
        => Needless("translations are not shared between CPUs (VTTBR_EL2.CnP)");
    "2645198": [all(Core::CORTEX_A715)] => Needless("stage 1 of the kernel and of guests, each sees to its own");
    "2966298, 3117295": [between(Core::CORTEX_A520, 0, 0x01), all(Core::CORTEX_A510)]
        => Needless("the kernel's return to its EL0; a guest's EL0 and EL1 are behind stage 2");
    "4193714": [between(Core::C1_PRO, 0, 0x12)] => Needless("guests have no SME");
    "Olympus 1027": [all(Core::OLYMPUS)] => Needless("accesses to devices, which each kernel orders");
}

/// Those of a core.
pub fn of(midr: Midr) -> impl Iterator<Item = &'static Erratum> {
    TABLE
        .iter()
        .filter(move |e| e.cores.iter().any(|r| r.has(midr)))
}

/// What is to be done on it.
pub fn workarounds(midr: Midr) -> Workarounds {
    of(midr).fold(Workarounds::default(), |all, e| match e.what {
        What::Done(w) => all.and(w),
        What::Needless(_) => all,
    })
}
