// SPDX-License-Identifier: GPL-2.0

//! SVE: vector lengths that a guest can have, and where its registers lie in memory.
//!
//! Arm ARM (DDI 0487), B1.4 (SVE registers), D24.2: ZCR_EL1, ZCR_EL2; Linux `Documentation/virt/kvm/api.rst` 4.68
//! (KVM_REG_ARM64_SVE_VLS) and 4.82 (KVM_ARM_VCPU_SVE). Lengths are counted in quadwords of 16 bytes.

use core::ops::Range;

/// The longest vector, in quadwords.
pub const MAX_QUADS: u8 = 16;
/// Words of the ABI's set of lengths (KVM_ARM64_SVE_VLS_WORDS).
pub const WORDS: usize = 8;

/// A set that no guest on this host can have: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSet;

/// A set of lengths: bit `n` is `n` + 1 quadwords.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths(u16);

impl Lengths {
    /// What guests are offered where all processors have the lengths `all`, and some have `any`. A guest's longest
    /// one decides which shorter ones it sees, so it ends below the first on which processors differ.
    pub const fn offered(all: u16, any: u16) -> Lengths {
        let differ = any & !all;
        if differ == 0 {
            return Lengths(all);
        }
        Lengths(all & ((1_u16 << differ.trailing_zeros()) - 1))
    }

    /// The longest; 0 for none.
    pub const fn max(self) -> u8 {
        (16 - self.0.leading_zeros()) as u8
    }

    /// As KVM_REG_ARM64_SVE_VLS has it.
    pub fn words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = u64::from(self.0);
        words
    }

    /// The set that user space asks for, where `self` is offered: all of those up to its longest.
    ///
    /// # Errors
    /// None at all, one that is not offered, or one too few: ZCR_EL2 can only set a limit.
    pub fn choose(self, words: [u64; WORDS]) -> Result<Lengths, InvalidSet> {
        let [low, high @ ..] = words;
        let wanted = u16::try_from(low).map_err(|_| InvalidSet)?;
        if wanted == 0 || high.iter().any(|w| *w != 0) {
            return Err(InvalidSet);
        }
        let wanted = Lengths(wanted);
        if wanted != self.up_to(wanted.max()) {
            return Err(InvalidSet);
        }
        Ok(wanted)
    }

    const fn up_to(self, quads: u8) -> Lengths {
        if quads >= MAX_QUADS {
            return self;
        }
        Lengths(self.0 & ((1 << quads) - 1))
    }
}

/// Where the registers lie: Z0 to Z31, P0 to P15, FFR, each as long as vectors of `quads` make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    quads: u8,
}

impl Layout {
    /// For vectors of so many quadwords, at most [`MAX_QUADS`].
    pub const fn new(quads: u8) -> Layout {
        let quads = if quads > MAX_QUADS { MAX_QUADS } else { quads };
        Layout { quads }
    }

    /// Of a vector.
    pub const fn quads(self) -> u8 {
        self.quads
    }

    const fn vector(self) -> usize {
        self.quads as usize * 16
    }

    /// A predicate has a bit for each byte of a vector.
    const fn predicate(self) -> usize {
        self.quads as usize * 2
    }

    /// Bytes of all.
    pub const fn bytes(self) -> usize {
        32 * self.vector() + 17 * self.predicate()
    }

    /// Bytes of Z0 to Z31.
    pub const fn z(self, n: u8) -> Range<usize> {
        let at = (n & 31) as usize * self.vector();
        at..at + self.vector()
    }

    /// Bytes of P0 to P15, and, as 16, of FFR.
    pub const fn p(self, n: u8) -> Range<usize> {
        let n = if n > 16 { 16 } else { n };
        let at = 32 * self.vector() + n as usize * self.predicate();
        at..at + self.predicate()
    }
}

/// The number of FFR among the predicates.
pub const FFR: u8 = 16;
