// SPDX-License-Identifier: GPL-2.0

//! What the engine is given: the format of entries, where tables live, and tables in advance.

use super::MAX_LEVELS;
use core::sync::atomic::{AtomicU64, Ordering};

/// How the guest's accesses to a leaf are cached, as far as the host has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Ordinary memory.
    Normal,
    /// Not cached, but writes may be combined (frame buffers).
    WriteCombining,
    /// Device registers.
    Device,
}

/// What a leaf says, in terms that every format shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Host frame of the first page; aligned to the leaf's size.
    pub pfn: u64,
    /// The guest may write.
    pub write: bool,
    /// The guest may execute.
    pub exec: bool,
    /// The host lets us make this writable without asking it again: kept in a bit that hardware
    /// ignores, and told apart from `write` while a dirty log write-protects the leaf.
    pub host_write: bool,
    /// Cacheability.
    pub memory: MemoryType,
    /// Used since the flag was last cleared. A format without hardware support may report `true`
    /// always, or fault on the next access (and then be told by a new mapping).
    pub accessed: bool,
    /// Written; formats without such a bit report `write`.
    pub dirty: bool,
}

/// An entry format: how tables and leaves look to the hardware that walks them.
///
/// For every leaf, `decode(leaf(l, level), level) == l` as far as the format has the bits, and
/// `leaf(decode(e, level), level) == e`: the engine changes a leaf by decoding, changing and encoding it.
///
/// `level` is the level of the table that holds the entry.
pub trait Entry: Send + Sync + 'static {
    /// log2 of the size of a page at level 0, in bytes.
    const PAGE_SHIFT: u32 = 12;

    /// log2 of the number of entries of a table at `level` (x86: 9 everywhere; s390: 8, then 11).
    fn index_bits(level: u32) -> u32;

    /// An entry that maps nothing (s390 has non-zero ones).
    fn empty(level: u32) -> u64 {
        let _ = level;
        0
    }

    /// Whether the entry is a table or a leaf.
    fn is_present(entry: u64, level: u32) -> bool;

    /// Whether a present entry refers to a table of `level - 1`; never at level 0.
    fn is_table(entry: u64, level: u32) -> bool;

    /// An entry that refers to a table at physical address `phys`, with all permissions.
    fn table(phys: u64, level: u32) -> u64;

    /// The physical address in a table entry.
    fn table_phys(entry: u64, level: u32) -> u64;

    /// Encodes a leaf.
    fn leaf(leaf: &Leaf, level: u32) -> u64;

    /// Decodes a present leaf.
    fn decode(entry: u64, level: u32) -> Leaf;

    /// Replaces a present entry; `false` if it was not `old` any more.
    ///
    /// For architectures that change live entries by special instructions only (s390: IPTE, CRDTE).
    #[inline]
    fn exchange(slot: &AtomicU64, level: u32, old: u64, new: u64) -> bool {
        let _ = level;
        slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// Where table pages live.
///
/// `get` must give a table only while the store owns it: from `adopt` until `release`. It may fail
/// for an address that it does not own, which makes a broken entry an error and not a wild pointer.
pub trait Tables {
    /// A table that no entry refers to, with all entries [`Entry::empty`].
    type Page;

    /// The physical address of a table.
    fn phys(page: &Self::Page) -> u64;

    /// The entries of an adopted table.
    fn get(&self, phys: u64) -> Option<&[AtomicU64]>;

    /// Takes a table over, after an entry that refers to it has been published.
    fn adopt(&self, page: Self::Page);

    /// Gives an adopted table back. Hardware may still walk it, so its content stays as it is.
    fn release(&mut self, phys: u64) -> Option<Self::Page>;
}

/// Tables made in advance, one for each level below the root: what one mapping can need at most.
///
/// One for each vCPU, filled while sleeping is possible.
pub struct Cache<P> {
    pages: [Option<P>; MAX_LEVELS],
}

impl<P> Cache<P> {
    /// An empty cache.
    pub const fn new() -> Self {
        Self {
            pages: [const { None }; MAX_LEVELS],
        }
    }

    /// Fills the cache for a tree of `levels`, by `make(level)`.
    pub fn fill<Error>(
        &mut self,
        levels: u32,
        mut make: impl FnMut(u32) -> Result<P, Error>,
    ) -> Result<(), Error> {
        for (level, page) in (0..levels.saturating_sub(1)).zip(self.pages.iter_mut()) {
            if page.is_none() {
                *page = Some(make(level)?);
            }
        }
        Ok(())
    }

    pub(super) fn slot(&mut self, level: u32) -> Option<&mut Option<P>> {
        self.pages.get_mut(usize::try_from(level).ok()?)
    }
}

impl<P> Default for Cache<P> {
    fn default() -> Self {
        Self::new()
    }
}
