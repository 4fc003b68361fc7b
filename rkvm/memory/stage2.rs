// SPDX-License-Identifier: GPL-2.0

//! The second stage of translation: guest physical to host physical, as one radix page-table engine
//! for every entry format.
//!
//! The format ([`Entry`]) and the store of table pages ([`Tables`]) are parameters, so this file is
//! `core` only and runs on the host, where it is tested against a plain map.
//!
//! # Concurrency
//!
//! The owner keeps a [`Stage2`] in a readers-writer lock. `&self` methods run in parallel with each
//! other and with the hardware walker: they change entries by compare-and-exchange only, and never
//! take a table away. `&mut self` methods may unlink tables; what they unlink goes to the caller,
//! who must keep it until every processor has dropped its cached translations.
//!
//! # Units
//!
//! `gfn` is a guest frame number, a guest physical address shifted right by [`Entry::PAGE_SHIFT`];
//! `pfn` the same for the host. Level 0 holds pages, level 1 the tables' parents (and blocks of one
//! level-0 table's reach), and so on up to `Config::levels - 1`, the root.

mod entry;

pub use entry::{Cache, Entry, Leaf, MemoryType, Tables};

use core::{
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// The deepest tree that the engine handles (five levels: 57 bits on x86).
pub const MAX_LEVELS: usize = 5;

/// Shape of one tree, fixed when the VM is made.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of levels, 2 to [`MAX_LEVELS`].
    pub levels: u32,
    /// Width of a guest physical address, in bits; at most what the levels reach, but the root
    /// table may be larger than [`Entry::index_bits`] says (arm64's concatenated tables).
    pub gpa_bits: u32,
    /// Highest level at which the hardware allows leaves (0: pages only).
    pub max_leaf_level: u32,
    /// The hardware sets a leaf's dirty flag at the first write, and tells afterwards whose it was: so
    /// the dirty log takes that flag away, and not the permission.
    pub logs_writes: bool,
}

impl Config {
    /// What a leaf that the host allows to be written (`host_write`) says after a fault, a `write` or
    /// not, in a slot that is `logged` or not: writable, and dirty. A dirty leaf of a logged slot has
    /// its page in the log; of one that is not logged, the hardware has nothing to tell.
    #[inline]
    pub fn may_write(&self, host_write: bool, write: bool, logged: bool) -> (bool, bool) {
        let noted = write || !logged;
        (
            host_write && (noted || self.logs_writes),
            host_write && noted,
        )
    }
}

/// What [`Stage2::map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// The entry was empty.
    New,
    /// The entry has been given more permissions.
    Upgraded,
    /// The entry allowed all that already.
    Spurious,
}

/// Why [`Stage2::map`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A table of this level is missing and the cache has none.
    NeedTable(u32),
    /// Another thread is changing the path: try again.
    Busy,
    /// A table, or a leaf that says something else, is where the leaf should go: zap it first.
    InTheWay,
    /// The address is beyond [`Config::gpa_bits`], or the level allows no leaf.
    Invalid,
}

/// What an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic operation.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Result of [`Stage2::allow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// The entry already allows it: the fault is over.
    Allowed,
    /// The entry was write-protected for the dirty log and is writable now: the caller logs the page.
    MadeWritable,
    /// It takes a full fault.
    Denied,
}

/// log2 of the reach of an entry at `level`, in pages.
#[inline]
pub fn page_order<E: Entry>(level: u32) -> u32 {
    (0..level).map(E::index_bits).sum()
}

/// The reach of an entry at `level`, in pages.
#[inline]
pub fn pages<E: Entry>(level: u32) -> u64 {
    1 << page_order::<E>(level)
}

/// What a walk needs to know of a level.
#[derive(Clone, Copy, Default)]
struct Shape {
    /// log2 of an entry's reach, in pages.
    shift: u32,
    /// Number of a table's entries, less 1.
    mask: u64,
}

/// A tree of tables.
pub struct Stage2<E: Entry, T: Tables> {
    tables: T,
    root: u64,
    config: Config,
    shapes: [Shape; MAX_LEVELS],
    _format: PhantomData<E>,
}

impl<E: Entry, T: Tables> Stage2<E, T> {
    /// An empty tree. `root` must have `1 << root_bits(&config)` entries.
    pub fn new(tables: T, root: T::Page, config: Config) -> Self {
        let phys = T::phys(&root);
        tables.adopt(root);
        let mut shapes = [Shape::default(); MAX_LEVELS];
        for (level, shape) in (0..config.levels).zip(&mut shapes) {
            let bits = if level + 1 == config.levels {
                Self::root_bits(&config)
            } else {
                E::index_bits(level)
            };
            *shape = Shape {
                shift: page_order::<E>(level),
                mask: (1 << bits) - 1,
            };
        }
        Self {
            tables,
            root: phys,
            config,
            shapes,
            _format: PhantomData,
        }
    }

    /// Whether a tree can have this shape.
    pub fn is_valid(config: &Config) -> bool {
        let Some(top) = config.levels.checked_sub(1) else {
            return false;
        };
        let reach = E::PAGE_SHIFT + page_order::<E>(top.min(MAX_LEVELS as u32));
        (2..=MAX_LEVELS as u32).contains(&config.levels)
            && config.max_leaf_level < config.levels
            && config.gpa_bits > reach
            && config.gpa_bits <= reach + 16
    }

    /// log2 of the number of entries of the root table.
    pub fn root_bits(config: &Config) -> u32 {
        config
            .gpa_bits
            .saturating_sub(E::PAGE_SHIFT + page_order::<E>(config.levels.saturating_sub(1)))
    }

    /// Physical address of the root table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// First guest frame that the tree cannot map.
    pub fn end(&self) -> u64 {
        1 << self.config.gpa_bits.saturating_sub(E::PAGE_SHIFT)
    }

    fn top(&self) -> u32 {
        self.config.levels - 1
    }

    #[inline]
    fn shape(&self, level: u32) -> Shape {
        // There is no such level above the root, which is the highest that anyone asks for.
        self.shapes.get(level as usize).copied().unwrap_or_default()
    }

    /// The index of `gfn` in a table at `level`.
    #[inline]
    fn index(&self, gfn: u64, level: u32) -> usize {
        let shape = self.shape(level);
        // The mask makes it fit.
        ((gfn >> shape.shift) & shape.mask) as usize
    }

    #[inline]
    fn slot(&self, table: u64, level: u32, gfn: u64) -> Option<&AtomicU64> {
        self.tables.get(table)?.get(self.index(gfn, level))
    }

    /// The entry that decides about `gfn`, if it is a leaf.
    #[inline]
    fn leaf_slot(&self, gfn: u64) -> Option<(&AtomicU64, u64, u32)> {
        if gfn >= self.end() {
            return None;
        }
        let (mut table, mut level) = (self.root, self.top());
        loop {
            let slot = self.slot(table, level, gfn)?;
            let entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) {
                return None;
            }
            if level == 0 || !E::is_table(entry, level) {
                return Some((slot, entry, level));
            }
            table = E::table_phys(entry, level);
            level -= 1;
        }
    }

    /// The leaf that maps `gfn`, and its level.
    #[allow(dead_code, reason = "for tests, which run on the host")]
    pub fn lookup(&self, gfn: u64) -> Option<(Leaf, u32)> {
        let (_, entry, level) = self.leaf_slot(gfn)?;
        Some((E::decode(entry, level), level))
    }

    /// Maps the leaf of `level` that contains `gfn`.
    ///
    /// `leaf.pfn` is the frame of the leaf's first page. A leaf that is there already is only ever
    /// given more permissions: taking some away is for [`Stage2::zap`] and
    /// [`Stage2::write_protect`], whose callers flush.
    pub fn map(
        &self,
        gfn: u64,
        level: u32,
        leaf: &Leaf,
        cache: &mut Cache<T::Page>,
    ) -> Result<Mapped, MapError> {
        if gfn >= self.end() || level > self.config.max_leaf_level || level > self.top() {
            return Err(MapError::Invalid);
        }
        let (mut table, mut at) = (self.root, self.top());
        loop {
            let slot = self.slot(table, at, gfn).ok_or(MapError::Busy)?;
            let entry = slot.load(Ordering::Acquire);
            if at == level {
                return Self::set_leaf(slot, entry, level, leaf);
            }
            if !E::is_present(entry, at) {
                let spare = cache.slot(at - 1).ok_or(MapError::Invalid)?;
                let page = spare.take().ok_or(MapError::NeedTable(at - 1))?;
                let phys = T::phys(&page);
                let new = E::table(phys, at);
                if slot
                    .compare_exchange(entry, new, Ordering::AcqRel, Ordering::Acquire)
                    .is_err()
                {
                    // Another thread was first: go on with what it has put there.
                    *spare = Some(page);
                    continue;
                }
                // From here on others find the table in the tree, but may walk it only once adopted.
                self.tables.adopt(page);
                table = phys;
            } else if E::is_table(entry, at) {
                table = E::table_phys(entry, at);
            } else {
                return Self::within_block(entry, at, gfn, level, leaf);
            }
            at -= 1;
        }
    }

    /// A leaf is asked for where a larger one is.
    fn within_block(
        entry: u64,
        at: u32,
        gfn: u64,
        level: u32,
        leaf: &Leaf,
    ) -> Result<Mapped, MapError> {
        let block = E::decode(entry, at);
        let first = gfn & !(pages::<E>(level) - 1) & (pages::<E>(at) - 1);
        let same = block.pfn.wrapping_add(first) == leaf.pfn && block.memory == leaf.memory;
        if same && (block.write || !leaf.write) && (block.exec || !leaf.exec) {
            Ok(Mapped::Spurious)
        } else {
            Err(MapError::InTheWay)
        }
    }

    fn set_leaf(
        slot: &AtomicU64,
        mut entry: u64,
        level: u32,
        leaf: &Leaf,
    ) -> Result<Mapped, MapError> {
        loop {
            if !E::is_present(entry, level) {
                match slot.compare_exchange(
                    entry,
                    E::leaf(leaf, level),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => return Ok(Mapped::New),
                    Err(now) => entry = now,
                }
                continue;
            }
            if level > 0 && E::is_table(entry, level) {
                return Err(MapError::InTheWay);
            }
            let old = E::decode(entry, level);
            if old.pfn != leaf.pfn || old.memory != leaf.memory {
                return Err(MapError::InTheWay);
            }
            let merged = Leaf {
                write: old.write || leaf.write,
                exec: old.exec || leaf.exec,
                host_write: old.host_write || leaf.host_write,
                accessed: old.accessed || leaf.accessed,
                dirty: old.dirty || leaf.dirty,
                ..old
            };
            let new = E::leaf(&merged, level);
            if new == entry {
                return Ok(Mapped::Spurious);
            }
            if E::exchange(slot, level, entry, new) {
                return Ok(Mapped::Upgraded);
            }
            entry = slot.load(Ordering::Acquire);
        }
    }

    /// The quick way out of a fault: allows `access` to `gfn` if the host need not be asked.
    #[inline]
    pub fn allow(&self, gfn: u64, access: Access) -> Allow {
        let Some((slot, mut entry, level)) = self.leaf_slot(gfn) else {
            return Allow::Denied;
        };
        loop {
            let old = E::decode(entry, level);
            let (new, result) = match access {
                Access::Write if old.write => (old, Allow::Allowed),
                // A block is never log-protected: the log splits it first.
                Access::Write if old.host_write && level == 0 => {
                    let new = Leaf {
                        write: true,
                        dirty: true,
                        ..old
                    };
                    (new, Allow::MadeWritable)
                }
                Access::Read => (old, Allow::Allowed),
                Access::Execute if old.exec => (old, Allow::Allowed),
                _ => return Allow::Denied,
            };
            let new = E::leaf(
                &Leaf {
                    accessed: true,
                    ..new
                },
                level,
            );
            if new == entry || E::exchange(slot, level, entry, new) {
                return result;
            }
            entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) || (level > 0 && E::is_table(entry, level)) {
                return Allow::Denied;
            }
        }
    }

    /// Changes one leaf by `change`, which says what it should be or `None` to leave it.
    /// Returns whether it was changed.
    fn update(slot: &AtomicU64, level: u32, change: &mut impl FnMut(Leaf) -> Option<Leaf>) -> bool {
        loop {
            let entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) || (level > 0 && E::is_table(entry, level)) {
                return false;
            }
            let Some(leaf) = change(E::decode(entry, level)) else {
                return false;
            };
            let new = E::leaf(&leaf, level);
            if new == entry {
                return false;
            }
            if E::exchange(slot, level, entry, new) {
                return true;
            }
        }
    }

    /// A leaf whose next write will be noticed, or `None` if it would be already.
    fn watched(&self, leaf: Leaf, level: u32) -> Option<Leaf> {
        if self.config.logs_writes && level == 0 {
            return leaf.dirty.then_some(Leaf {
                dirty: false,
                ..leaf
            });
        }
        // A block that is written says so of its first page only.
        leaf.write.then_some(Leaf {
            write: false,
            dirty: false,
            ..leaf
        })
    }

    /// Has the next write to those of the 64 pages from `gfn` whose bit is set in `mask` noticed:
    /// the hardware tells of it ([`Config::logs_writes`]), or it faults. Returns whether any was
    /// taken something away for that: then the caller must flush.
    ///
    /// Needs `&mut`, so that it and the reading of the dirty bitmap are one step to faults.
    pub fn watch(&mut self, gfn: u64, mask: u64) -> bool {
        let mut changed = false;
        let mut left = mask;
        while left != 0 {
            let bit = left.trailing_zeros();
            left &= left - 1;
            let Some(gfn) = gfn.checked_add(u64::from(bit)) else {
                break;
            };
            if let Some((slot, _, level)) = self.leaf_slot(gfn) {
                changed |= Self::update(slot, level, &mut |leaf| self.watched(leaf, level));
            }
        }
        changed
    }

    /// Whether a leaf in `range` has been used; with `clear`, forgets it.
    pub fn age(&self, range: Range<u64>, clear: bool) -> bool {
        let mut young = false;
        self.leaves(self.root, self.top(), 0, &range, &mut |slot, level| {
            Self::update(slot, level, &mut |leaf| {
                young |= leaf.accessed;
                (clear && leaf.accessed).then_some(Leaf {
                    accessed: false,
                    ..leaf
                })
            });
        });
        young
    }

    /// The same for all of `range`.
    pub fn watch_range(&mut self, range: Range<u64>) -> bool {
        let mut changed = false;
        self.leaves(self.root, self.top(), 0, &range, &mut |slot, level| {
            changed |= Self::update(slot, level, &mut |leaf| self.watched(leaf, level));
        });
        changed
    }

    /// Calls `visit` for every present leaf that meets `range`.
    fn leaves(
        &self,
        table: u64,
        level: u32,
        base: u64,
        range: &Range<u64>,
        visit: &mut impl FnMut(&AtomicU64, u32),
    ) {
        let Some(entries) = self.tables.get(table) else {
            return;
        };
        let step = pages::<E>(level);
        for i in self.indexes(level, base, range) {
            let Some(slot) = entries.get(i) else {
                break;
            };
            let entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) {
                continue;
            }
            if level > 0 && E::is_table(entry, level) {
                let at = base + i as u64 * step;
                self.leaves(E::table_phys(entry, level), level - 1, at, range, visit);
            } else {
                visit(slot, level);
            }
        }
    }

    /// Unmaps every leaf that meets `range`, a block as a whole, and gives every table that lies
    /// wholly in it to `freed`. Returns whether a flush is needed, which must be over before what
    /// `freed` got is reused.
    pub fn zap(&mut self, range: Range<u64>, freed: &mut impl FnMut(T::Page)) -> bool {
        self.zap_table(self.root, self.top(), 0, &range, freed)
    }

    /// Unmaps every block (leaf above level 0) that meets `range`. Returns whether a flush is needed.
    pub fn zap_blocks(&mut self, range: Range<u64>) -> bool {
        let mut changed = false;
        self.leaves(self.root, self.top(), 0, &range, &mut |slot, level| {
            if level > 0 {
                changed |= Self::clear(slot, level);
            }
        });
        changed
    }

    /// Empties an entry. Returns whether it was present.
    fn clear(slot: &AtomicU64, level: u32) -> bool {
        loop {
            let entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) {
                return false;
            }
            if E::exchange(slot, level, entry, E::empty(level)) {
                return true;
            }
        }
    }

    fn zap_table(
        &mut self,
        table: u64,
        level: u32,
        base: u64,
        range: &Range<u64>,
        freed: &mut impl FnMut(T::Page),
    ) -> bool {
        let mut changed = false;
        let step = pages::<E>(level);
        let indexes = self.indexes(level, base, range);
        for i in indexes.clone() {
            let Some(entries) = self.tables.get(table) else {
                break;
            };
            if level == 0 {
                for slot in entries.get(indexes).unwrap_or(&[]) {
                    changed |= Self::clear(slot, 0);
                }
                break;
            }
            let Some(slot) = entries.get(i) else {
                break;
            };
            let entry = slot.load(Ordering::Acquire);
            if !E::is_present(entry, level) {
                continue;
            }
            let at = base + i as u64 * step;
            let whole = range.start <= at && at + step <= range.end;
            if !E::is_table(entry, level) {
                changed |= Self::clear(slot, level);
            } else if whole {
                changed |= Self::clear(slot, level);
                self.release(E::table_phys(entry, level), level - 1, freed);
            } else {
                let child = E::table_phys(entry, level);
                changed |= self.zap_table(child, level - 1, at, range, freed);
            }
        }
        changed
    }

    /// Takes an unlinked table and all below it out of the store.
    fn release(&mut self, table: u64, level: u32, freed: &mut impl FnMut(T::Page)) {
        for i in 0..=self.shape(level).mask as usize {
            if level == 0 {
                break;
            }
            let Some(slot) = self.tables.get(table).and_then(|t| t.get(i)) else {
                break;
            };
            let entry = slot.load(Ordering::Acquire);
            if E::is_present(entry, level) && E::is_table(entry, level) {
                self.release(E::table_phys(entry, level), level - 1, freed);
            }
        }
        if let Some(page) = self.tables.release(table) {
            freed(page);
        }
    }

    /// The indexes of a table that starts at frame `base` whose entries meet `range`.
    fn indexes(&self, level: u32, base: u64, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        let Shape { shift, mask } = self.shape(level);
        let (step, count) = (1 << shift, mask + 1);
        let first = (range.start.saturating_sub(base) / step).min(count);
        let last = range.end.saturating_sub(base).div_ceil(step).min(count);
        first as usize..last.max(first) as usize
    }
}

impl<E: Entry, T: Tables> Drop for Stage2<E, T> {
    /// Frees all tables. No hardware walks them any more.
    fn drop(&mut self) {
        let (root, top) = (self.root, self.top());
        self.release(root, top, &mut drop);
    }
}
