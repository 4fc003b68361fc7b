// SPDX-License-Identifier: GPL-2.0

//! A set of interrupt vectors: the 256-bit arrays IRR, ISR and TMR.

/// 256 bits, one a vector, with a summary of the words that are not empty, so that the highest
/// vector is found with two bit scans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors {
    words: [u64; 4],
    /// Bit `i` is set when `words[i]` is not zero.
    summary: u8,
}

impl Vectors {
    /// The empty set.
    pub const EMPTY: Self = Self {
        words: [0; 4],
        summary: 0,
    };

    #[inline]
    const fn split(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Adds `vector`; true if it was not there.
    #[inline]
    pub fn insert(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::split(vector);
        let fresh = self.words[word & 3] & bit == 0;
        self.words[word & 3] |= bit;
        self.summary |= 1 << (word & 3);
        fresh
    }

    /// Removes `vector`; true if it was there.
    #[inline]
    pub fn remove(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::split(vector);
        let was = self.words[word & 3] & bit != 0;
        self.words[word & 3] &= !bit;
        if self.words[word & 3] == 0 {
            self.summary &= !(1 << (word & 3));
        }
        was
    }

    /// Whether `vector` is in the set.
    #[inline]
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::split(vector);
        self.words[word & 3] & bit != 0
    }

    /// The highest vector, which is the one of the highest priority (SDM vol. 3A 12.8.3).
    #[inline]
    pub const fn highest(&self) -> Option<u8> {
        if self.summary == 0 {
            return None;
        }
        let word = self.summary.ilog2() & 3;
        // The summary says that the word is not zero, so the lowest bit changes nothing; it spares
        // the test for zero.
        let bit = (self.words[word as usize] | 1).ilog2();
        Some((word << 6 | bit) as u8)
    }

    /// The 32 vectors from `32 * index` on, as the register page and the MSRs show them; `index`
    /// counts modulo 8.
    #[inline]
    pub const fn reg(&self, index: usize) -> u32 {
        let word = self.words[index >> 1 & 3];
        (if index & 1 == 0 { word } else { word >> 32 } & 0xffff_ffff) as u32
    }

    /// All, the lowest first.
    #[inline]
    pub const fn words(&self) -> [u64; 4] {
        self.words
    }

    /// Replaces the 32 vectors from `32 * index` on; `index` counts modulo 8.
    pub fn set_reg(&mut self, index: usize, value: u32) {
        let word = index >> 1 & 3;
        let shift = (index & 1) * 32;
        let kept = self.words[word] & !(0xffff_ffff << shift);
        self.words[word] = kept | u64::from(value) << shift;
        self.refresh(word);
    }

    /// Writes the eight registers to `page`, from the offset `at` on, 16 bytes each.
    pub fn save(&self, page: &mut [u8], at: u16) {
        let regs = page.get_mut(usize::from(at)..).unwrap_or_default();
        for (i, reg) in regs.chunks_exact_mut(16).take(8).enumerate() {
            if let Some(reg) = reg.first_chunk_mut() {
                *reg = self.reg(i).to_le_bytes();
            }
        }
    }

    /// Reads what [`Self::save`] writes.
    pub fn load(page: &[u8], at: u16) -> Self {
        let mut v = Self::EMPTY;
        let regs = page.get(usize::from(at)..).unwrap_or_default();
        for (i, reg) in regs.chunks_exact(16).take(8).enumerate() {
            if let Some(reg) = reg.first_chunk() {
                v.set_reg(i, u32::from_le_bytes(*reg));
            }
        }
        v
    }

    /// Of the 64 vectors from `64 * index` on, those in `mask` become as in `bits`; `index` counts
    /// modulo 4.
    #[inline]
    pub fn assign(&mut self, index: usize, mask: u64, bits: u64) {
        let word = index & 3;
        self.words[word] = self.words[word] & !mask | bits & mask;
        self.refresh(word);
    }

    #[inline]
    fn refresh(&mut self, word: usize) {
        if self.words[word & 3] == 0 {
            self.summary &= !(1 << (word & 3));
        } else {
            self.summary |= 1 << (word & 3);
        }
    }
}
