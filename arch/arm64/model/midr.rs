// SPDX-License-Identifier: GPL-2.0

//! Which core it is: MIDR_EL1 (Arm ARM D24, MIDR_EL1).

/// Implementer and PartNum of some cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core(u32);

impl Core {
    const fn of(implementer: u32, part: u32) -> Core {
        Core(implementer << 24 | part << 4)
    }

    const fn arm(part: u32) -> Core {
        Core::of(0x41, part)
    }
}

macro_rules! cores {
    ($($name:ident = $core:expr;)*) => {
        #[allow(missing_docs, reason = "their names")]
        impl Core {
            $(pub const $name: Core = $core;)*
        }
    };
}

cores! {
    CORTEX_A35 = Core::arm(0xd04);
    CORTEX_A53 = Core::arm(0xd03);
    CORTEX_A55 = Core::arm(0xd05);
    CORTEX_A57 = Core::arm(0xd07);
    CORTEX_A72 = Core::arm(0xd08);
    CORTEX_A76 = Core::arm(0xd0b);
    CORTEX_A76AE = Core::arm(0xd0e);
    CORTEX_A77 = Core::arm(0xd0d);
    CORTEX_A78 = Core::arm(0xd41);
    CORTEX_A78AE = Core::arm(0xd42);
    CORTEX_A78C = Core::arm(0xd4b);
    CORTEX_A510 = Core::arm(0xd46);
    CORTEX_A520 = Core::arm(0xd80);
    CORTEX_A710 = Core::arm(0xd47);
    CORTEX_A715 = Core::arm(0xd4d);
    CORTEX_A720 = Core::arm(0xd81);
    CORTEX_A720AE = Core::arm(0xd89);
    CORTEX_X1 = Core::arm(0xd44);
    CORTEX_X1C = Core::arm(0xd4c);
    CORTEX_X2 = Core::arm(0xd48);
    CORTEX_X3 = Core::arm(0xd4e);
    CORTEX_X4 = Core::arm(0xd82);
    CORTEX_X925 = Core::arm(0xd85);
    NEOVERSE_N1 = Core::arm(0xd0c);
    NEOVERSE_N2 = Core::arm(0xd49);
    NEOVERSE_V1 = Core::arm(0xd40);
    NEOVERSE_V2 = Core::arm(0xd4f);
    NEOVERSE_V3 = Core::arm(0xd84);
    NEOVERSE_V3AE = Core::arm(0xd83);
    C1_ULTRA = Core::arm(0xd8c);
    C1_PREMIUM = Core::arm(0xd90);
    C1_PRO = Core::arm(0xd8b);
    AMPERE1 = Core::of(0xc0, 0xac3);
    AMPERE1A = Core::of(0xc0, 0xac4);
    BRAHMA_B53 = Core::of(0x42, 0x100);
    VULCAN = Core::of(0x42, 0x516);
    THUNDERX2 = Core::of(0x43, 0x0af);
    CARMEL = Core::of(0x4e, 0x004);
    OLYMPUS = Core::of(0x4e, 0x010);
    TSV110 = Core::of(0x48, 0xd01);
    HIP09 = Core::of(0x48, 0xd02);
    KRYO_2XX_SILVER = Core::of(0x51, 0x801);
    KRYO_3XX_SILVER = Core::of(0x51, 0x803);
    KRYO_4XX_GOLD = Core::of(0x51, 0x804);
    KRYO_4XX_SILVER = Core::of(0x51, 0x805);
    ORYON_X1 = Core::of(0x51, 0x001);
    COBALT_100 = Core::of(0x6d, 0xd49);
}

/// A CPU's MIDR_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Midr(pub u32);

impl Midr {
    /// The core.
    pub const fn core(self) -> Core {
        Core(self.0 & 0xff00_fff0)
    }

    /// Variant and Revision: rNpM is 0xNM.
    pub const fn revision(self) -> u8 {
        (self.0 >> 16 & 0xf0 | self.0 & 0xf) as u8
    }

    /// It is one of these.
    pub fn is(self, cores: &[Core]) -> bool {
        cores.contains(&self.core())
    }
}

/// Cores, from one revision to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    core: Core,
    first: u8,
    last: u8,
}

impl Range {
    /// All of a core.
    pub const fn all(core: Core) -> Range {
        Range {
            core,
            first: 0,
            last: 0xff,
        }
    }

    /// From one revision to another, as [`Midr::revision`] has them.
    pub const fn between(core: Core, first: u8, last: u8) -> Range {
        Range { core, first, last }
    }

    /// It is one of these.
    pub fn has(&self, midr: Midr) -> bool {
        self.core == midr.core() && (self.first..=self.last).contains(&midr.revision())
    }
}
