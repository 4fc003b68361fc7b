// SPDX-License-Identifier: GPL-2.0

//! A set of vCPUs, by value.

/// The most vCPUs that a VM with a GICv3 can have.
pub const MAX_VCPUS: usize = 512;

/// A set of vCPUs, by index: those whose bell is to ring, as they may have something to take, or
/// hold in their list registers what has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an interrupt waits until the bell rings"]
pub struct Vcpus {
    words: [u64; MAX_VCPUS / 64],
}

impl Vcpus {
    /// No vCPU.
    pub const NONE: Self = Self {
        words: [0; MAX_VCPUS / 64],
    };

    /// The first `count` vCPUs.
    pub fn first(count: usize) -> Self {
        let mut all = Self::NONE;
        for (i, word) in all.words.iter_mut().enumerate() {
            *word = match count.saturating_sub(i * 64) {
                0 => 0,
                n @ 1..=63 => (1 << n) - 1,
                _ => u64::MAX,
            };
        }
        all
    }

    /// Adds one; an index that no vCPU can have is overlooked.
    #[inline]
    pub fn insert(&mut self, index: u16) {
        if let Some(word) = self.words.get_mut(usize::from(index) / 64) {
            *word |= 1 << (index & 63);
        }
    }

    /// Takes one away.
    pub fn remove(&mut self, index: u16) {
        if let Some(word) = self.words.get_mut(usize::from(index) / 64) {
            *word &= !(1 << (index & 63));
        }
    }

    /// Whether it is in the set.
    #[inline]
    pub fn contains(&self, index: u16) -> bool {
        self.words
            .get(usize::from(index) / 64)
            .is_some_and(|word| word & 1 << (index & 63) != 0)
    }

    /// Whether the set is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Those of both sets.
    pub fn or(mut self, other: Self) -> Self {
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
        self
    }

    /// The indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = (0u16..).zip(self.words.iter().copied());
        // Most sets are empty.
        let words = words.filter(|(_, word)| *word != 0);
        words.flat_map(|(i, mut word)| {
            core::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.wrapping_sub(1);
                // At most 63.
                (bit < 64).then_some(i * 64 + (bit & 63) as u16)
            })
        })
    }
}
