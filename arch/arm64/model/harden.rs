// SPDX-License-Identifier: GPL-2.0

//! What a CPU needs against a guest that trains its predictors, and what its guests are told.
//!
//! Arm, "Cache Speculation Side-channels" and "Spectre-BHB" (whitepapers); Arm DEN 0028 (SMCCC), 7.5; Arm ARM D24, ID
//! registers. A module cannot ask the kernel which mitigations it has chosen, so each CPU is looked at again, and the
//! same follows as in the kernel unless its command line turned one off.

use super::{
    midr::{Core, Midr},
    smccc::Mitigation,
};

/// The firmware's answer to SMCCC_ARCH_FEATURES about a workaround.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// It has none, or is not asked.
    #[default]
    None,
    /// It helps.
    Helps,
    /// This CPU needs none.
    Needless,
}

impl Firmware {
    /// From the lower half of X0.
    pub const fn from_x0(x0: i32) -> Firmware {
        match x0 {
            0 => Firmware::Helps,
            // SMCCC_ARCH_WORKAROUND_RET_UNAFFECTED; NOT_REQUIRED, of the second.
            1 | -2 => Firmware::Needless,
            _ => Firmware::None,
        }
    }
}

/// A CPU.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// MIDR_EL1
    pub midr: Midr,
    /// ID_AA64PFR0_EL1, of this CPU
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1
    pub pfr1: u64,
    /// ID_AA64MMFR1_EL1
    pub mmfr1: u64,
    /// ID_AA64ISAR2_EL1
    pub isar2: u64,
    /// SMCCC_ARCH_WORKAROUND_1, 2 and 3, by SMC
    pub firmware: [Firmware; 3],
    /// Nothing is to be done (`mitigations=off`).
    pub off: bool,
}

/// What each exit of a guest does, before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing
    Plain,
    /// CLRBHB
    ClearHistory,
    /// SMCCC_ARCH_WORKAROUND_1
    Workaround1,
    /// SMCCC_ARCH_WORKAROUND_3
    Workaround3,
    /// So many taken branches as the history is long
    Loop(u8),
}

/// The lengths of history that there are; entry.S has vectors for each, in this order.
pub const LOOPS: [u8; 6] = [8, 11, 24, 32, 38, 132];

impl Exit {
    /// Its vectors, as entry.S numbers them.
    pub fn vectors(self) -> u32 {
        match self {
            Exit::Plain => 0,
            Exit::ClearHistory => 1,
            Exit::Workaround1 => 2,
            Exit::Workaround3 => 3,
            Exit::Loop(n) => {
                let longer = LOOPS.iter().take_while(|l| **l < n).count();
                (longer.min(LOOPS.len() - 1) + 4) as u32
            }
        }
    }

    /// The other way.
    pub fn of_vectors(n: u32) -> Option<Exit> {
        Some(match n {
            0 => Exit::Plain,
            1 => Exit::ClearHistory,
            2 => Exit::Workaround1,
            3 => Exit::Workaround3,
            n => Exit::Loop(*LOOPS.get(n.checked_sub(4)? as usize)?),
        })
    }
}

/// What was found of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// At each exit
    pub exit: Exit,
    /// Spectre v2: targets of branches
    pub branch_predictor: Mitigation,
    /// Spectre v4: loads that pass stores
    pub store_bypass: Mitigation,
    /// Spectre-BHB: the history of branches
    pub branch_history: Mitigation,
}

const fn field(v: u64, shift: u32) -> u64 {
    v >> shift & 0xf
}

/// Cores in order, which do not run ahead far enough: none of the three.
const IN_ORDER: &[Core] = &[
    Core::CORTEX_A35,
    Core::CORTEX_A53,
    Core::CORTEX_A55,
    Core::BRAHMA_B53,
    Core::KRYO_3XX_SILVER,
    Core::KRYO_4XX_SILVER,
];
/// More that do not mix up targets.
const TARGETS_SAFE: &[Core] = &[Core::TSV110, Core::KRYO_2XX_SILVER];
/// More that do not mix up histories.
const HISTORY_SAFE: &[Core] = &[Core::CORTEX_A510, Core::CORTEX_A520, Core::KRYO_2XX_SILVER];
/// How many branches fill the history.
const HISTORY: &[(u8, &[Core])] = &[
    (132, &[Core::CORTEX_X3, Core::NEOVERSE_V2]),
    (
        38,
        &[Core::CORTEX_A715, Core::CORTEX_A720, Core::CORTEX_A720AE],
    ),
    (
        32,
        &[
            Core::CORTEX_A78,
            Core::CORTEX_A78AE,
            Core::CORTEX_A78C,
            Core::CORTEX_X1,
            Core::CORTEX_X1C,
            Core::CORTEX_A710,
            Core::CORTEX_X2,
            Core::NEOVERSE_N2,
            Core::NEOVERSE_V1,
            Core::TSV110,
        ],
    ),
    (
        24,
        &[
            Core::CORTEX_A76,
            Core::CORTEX_A76AE,
            Core::CORTEX_A77,
            Core::NEOVERSE_N1,
            Core::KRYO_4XX_GOLD,
            Core::HIP09,
        ],
    ),
    (11, &[Core::AMPERE1]),
    (8, &[Core::CORTEX_A72, Core::CORTEX_A57]),
];

impl Cpu {
    fn branch_predictor(&self) -> Mitigation {
        let [workaround, ..] = self.firmware;
        // CSV2: targets that another context has trained are not used.
        let safe =
            field(self.pfr0, 56) >= 1 || self.midr.is(IN_ORDER) || self.midr.is(TARGETS_SAFE);
        match workaround {
            _ if safe => Mitigation::Unaffected,
            Firmware::Needless => Mitigation::Unaffected,
            Firmware::Helps if !self.off => Mitigation::Mitigated,
            _ => Mitigation::Vulnerable,
        }
    }

    fn store_bypass(&self) -> Mitigation {
        let [_, workaround, _] = self.firmware;
        let ssbs = field(self.pfr1, 4) >= 1;
        match workaround {
            _ if self.midr.is(IN_ORDER) => Mitigation::Unaffected,
            Firmware::Needless if !ssbs => Mitigation::Unaffected,
            // PSTATE.SSBS: each exception level has its own. Firmware: the kernel has turned it on for itself, and so
            // it is for guests.
            _ if !self.off && (ssbs || workaround == Firmware::Helps) => Mitigation::Mitigated,
            _ => Mitigation::Vulnerable,
        }
    }

    /// With it, what an exit does for it.
    fn branch_history(&self) -> (Mitigation, Exit) {
        let [_, _, workaround] = self.firmware;
        // CSV2_3: history that another context has made is not used.
        if field(self.pfr0, 56) >= 3 || self.midr.is(IN_ORDER) || self.midr.is(HISTORY_SAFE) {
            return (Mitigation::Unaffected, Exit::Plain);
        }
        if self.off || self.branch_predictor() == Mitigation::Vulnerable {
            return (Mitigation::Vulnerable, Exit::Plain);
        }
        let length = HISTORY.iter().find(|(_, cores)| self.midr.is(cores));
        // ECBHB: exceptions clear it. CLRBHB: there is an instruction for it.
        let exit = if field(self.mmfr1, 60) >= 1 {
            Exit::Plain
        } else if field(self.isar2, 28) >= 1 {
            Exit::ClearHistory
        } else if let Some((n, _)) = length {
            Exit::Loop(*n)
        } else if workaround == Firmware::Helps {
            Exit::Workaround3
        } else {
            return (Mitigation::Vulnerable, Exit::Plain);
        };
        (Mitigation::Mitigated, exit)
    }

    /// Looks at all of it.
    pub fn look(&self) -> Found {
        let branch_predictor = self.branch_predictor();
        let (branch_history, for_history) = self.branch_history();
        // A call that makes the predictor forget its targets leaves nothing for the history to choose.
        let exit = match (branch_predictor, for_history) {
            (Mitigation::Mitigated, e) if e != Exit::Workaround3 => Exit::Workaround1,
            (_, e) => e,
        };
        Found {
            exit,
            branch_predictor,
            store_bypass: self.store_bypass(),
            branch_history,
        }
    }
}

/// The worst of all CPUs, for guests, which may come to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst(u32);

impl Worst {
    /// Without any CPU.
    pub const BEST: Worst = Worst(0);

    /// Two bits each: 0 is unaffected, so that the worse of two is the greater.
    const fn rank(m: Mitigation) -> u32 {
        match m {
            Mitigation::Unaffected => 0,
            Mitigation::Mitigated => 1,
            Mitigation::Vulnerable => 2,
        }
    }

    const fn mitigation(rank: u32) -> Mitigation {
        match rank & 3 {
            0 => Mitigation::Unaffected,
            1 => Mitigation::Mitigated,
            _ => Mitigation::Vulnerable,
        }
    }

    /// From [`Self::bits`].
    pub const fn from_bits(bits: u32) -> Worst {
        Worst(bits)
    }

    /// As a word.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// With one more CPU.
    pub fn and(self, f: &Found) -> Worst {
        let more = [f.branch_predictor, f.store_bypass, f.branch_history].map(Self::rank);
        let ranks = (0..).step_by(2).zip(more);
        Worst(ranks.fold(0, |all, (shift, m)| {
            all | (self.0 >> shift & 3).max(m) << shift
        }))
    }

    /// Branch predictor, store bypass, branch history.
    pub fn all(self) -> [Mitigation; 3] {
        [0, 2, 4].map(|shift| Self::mitigation(self.0 >> shift))
    }
}
