// SPDX-License-Identifier: GPL-2.0

//! Memory type range registers: kept and checked, without effect on the memory types in use
//! (APM vol. 2 7.7, SDM vol. 3A 12.11).

/// Variable ranges.
pub const VARIABLE: usize = 8;
/// MTRRcap: write-combining and fixed ranges exist, and how many variable ones.
pub const CAP: u64 = 0x500 | VARIABLE as u64;

/// IA32_MTRRCAP
pub const MSR_CAP: u32 = 0xfe;
/// IA32_MTRR_PHYSBASE0; base and mask alternate
pub const MSR_PHYSBASE0: u32 = 0x200;
/// IA32_MTRR_FIX64K_00000
pub const MSR_FIX64K: u32 = 0x250;
/// IA32_MTRR_FIX16K_80000 and _A0000
pub const MSR_FIX16K: u32 = 0x258;
/// IA32_MTRR_FIX4K_C0000 to _F8000
pub const MSR_FIX4K: u32 = 0x268;
/// IA32_MTRR_DEF_TYPE
pub const MSR_DEF_TYPE: u32 = 0x2ff;

/// A register of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Base(usize),
    Mask(usize),
    Fixed(usize),
    DefType,
}

fn which(index: u32) -> Option<Which> {
    let at = |first: u32, n: u32| {
        index
            .checked_sub(first)
            .filter(|&i| i < n)
            .map(|i| i as usize)
    };
    if let Some(i) = at(MSR_PHYSBASE0, 2 * VARIABLE as u32) {
        return Some(if i % 2 == 0 {
            Which::Base(i / 2)
        } else {
            Which::Mask(i / 2)
        });
    }
    if index == MSR_FIX64K {
        return Some(Which::Fixed(0));
    }
    if let Some(i) = at(MSR_FIX16K, 2) {
        return Some(Which::Fixed(1 + i));
    }
    if let Some(i) = at(MSR_FIX4K, 8) {
        return Some(Which::Fixed(3 + i));
    }
    (index == MSR_DEF_TYPE).then_some(Which::DefType)
}

/// UC, WC, WT, WP, WB.
const fn type_valid(t: u64) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

/// The registers of one vCPU. After reset all are zero: MTRRs are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtrr {
    def_type: u64,
    fixed: [u64; 11],
    variable: [(u64, u64); VARIABLE],
}

impl Mtrr {
    /// The register's value; `None` if there is no such register.
    pub fn read(&self, index: u32) -> Option<u64> {
        if index == MSR_CAP {
            return Some(CAP);
        }
        match which(index)? {
            Which::Base(i) => self.variable.get(i).map(|v| v.0),
            Which::Mask(i) => self.variable.get(i).map(|v| v.1),
            Which::Fixed(i) => self.fixed.get(i).copied(),
            Which::DefType => Some(self.def_type),
        }
    }

    /// Writes a register. `reserved_gpa` are the address bits above MAXPHYADDR. False if there is
    /// no such register, or if the value is not valid for it: #GP in both cases.
    #[must_use]
    pub fn write(&mut self, index: u32, value: u64, reserved_gpa: u64) -> bool {
        let Some(which) = which(index) else {
            return false;
        };
        let (slot, valid) = match which {
            Which::Base(i) => (
                self.variable.get_mut(i).map(|v| &mut v.0),
                type_valid(value & 0xff) && value & (0xf00 | reserved_gpa) == 0,
            ),
            Which::Mask(i) => (
                self.variable.get_mut(i).map(|v| &mut v.1),
                value & (0x7ff | reserved_gpa) == 0,
            ),
            Which::Fixed(i) => (
                self.fixed.get_mut(i),
                value
                    .to_le_bytes()
                    .iter()
                    .all(|&t| type_valid(u64::from(t))),
            ),
            Which::DefType => (
                Some(&mut self.def_type),
                value & !0xcff == 0 && type_valid(value & 0xff),
            ),
        };
        match slot {
            Some(slot) if valid => {
                *slot = value;
                true
            }
            _ => false,
        }
    }
}
