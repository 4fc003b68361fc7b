// SPDX-License-Identifier: GPL-2.0

//! Software-generated interrupts: what a write to ICC_SGI1R_EL1 and the like means (IHI 0069,
//! 12.2.20 and following).

use super::Affinity;

/// The register that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiReg {
    /// ICC_SGI1R_EL1
    Sgi1r,
    /// ICC_ASGI1R_EL1
    Asgi1r,
    /// ICC_SGI0R_EL1
    Sgi0r,
}

/// Who gets an SGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiTargets {
    /// IRM: all but the sender
    Others,
    /// Those of a cluster that have their bit in the list
    List {
        /// Aff3.Aff2.Aff1 of the cluster; Aff0 of bit 0: 16 times the field RS
        first: Affinity,
        /// TargetList
        list: u16,
    },
}

/// An SGI on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sgi {
    /// 0 to 15
    pub intid: u8,
    /// It becomes pending even if it is configured as group 1. As group 0 it always does.
    pub group1: bool,
    /// Who gets it
    pub targets: SgiTargets,
}

/// Decodes the value written to `reg`.
///
/// With one security state, ICC_SGI1R generates SGIs of both groups, and the others of group 0.
pub const fn decode_sgi(reg: SgiReg, value: u64) -> Sgi {
    let targets = if value & 1 << 40 != 0 {
        SgiTargets::Others
    } else {
        let aff3 = (value >> 48 & 0xff) << 24;
        let aff2 = (value >> 32 & 0xff) << 16;
        let aff1 = (value >> 16 & 0xff) << 8;
        let aff0 = (value >> 44 & 0xf) << 4;
        SgiTargets::List {
            first: Affinity::from_bits((aff3 | aff2 | aff1 | aff0) as u32),
            list: (value & 0xffff) as u16,
        }
    };
    Sgi {
        intid: (value >> 24 & 0xf) as u8,
        group1: matches!(reg, SgiReg::Sgi1r),
        targets,
    }
}

impl Sgi {
    /// Whether a vCPU gets it; `sender` says whether it is the one that wrote the register.
    pub const fn is_for(&self, affinity: Affinity, sender: bool) -> bool {
        match self.targets {
            SgiTargets::Others => !sender,
            SgiTargets::List { first, list } => {
                let (a, f) = (affinity.bits(), first.bits());
                a & !0xf == f && list & 1 << (a & 0xf) != 0
            }
        }
    }

    /// The affinities of a list, whether there are such vCPUs or not; none for
    /// [`SgiTargets::Others`].
    pub fn list(&self) -> impl Iterator<Item = Affinity> {
        let (first, list) = match self.targets {
            SgiTargets::Others => (0, 0),
            SgiTargets::List { first, list } => (first.bits(), list),
        };
        super::Bits(list.into()).map(move |bit| Affinity::from_bits(first | bit as u32))
    }
}
