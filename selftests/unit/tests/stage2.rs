// SPDX-License-Identifier: GPL-2.0

//! The second-stage engine against a plain map, in two formats, alone and with threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicU8, AtomicUsize, Ordering},
        Arc, Mutex, RwLock,
    },
};

use proptest::prelude::*;
use rkvm_unit::memory::stage2::{
    pages, Access, Allow, Cache, Config, Entry, Leaf, MapError, Mapped, MemoryType, Stage2, Tables,
};

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const EXEC: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const TABLE: u64 = 0x80;
const HOST: u64 = 0x100;
const DEVICE: u64 = 0x200;

fn leaf_bits(l: &Leaf) -> u64 {
    let bit = |on, bit| if on { bit } else { 0 };
    l.pfn << 12
        | bit(l.write, WRITE)
        | bit(l.exec, EXEC)
        | bit(l.accessed, ACCESSED)
        | bit(l.dirty, DIRTY)
        | bit(l.host_write, HOST)
        | bit(l.memory == MemoryType::Device, DEVICE)
}

fn bits_leaf(e: u64) -> Leaf {
    Leaf {
        pfn: e >> 12,
        write: e & WRITE != 0,
        exec: e & EXEC != 0,
        host_write: e & HOST != 0,
        memory: if e & DEVICE != 0 {
            MemoryType::Device
        } else {
            MemoryType::Normal
        },
        accessed: e & ACCESSED != 0,
        dirty: e & DIRTY != 0,
    }
}

/// Alike at all levels, as on x86 and arm64, but with tables of eight entries.
struct Even;

impl Entry for Even {
    fn index_bits(_: u32) -> u32 {
        3
    }
    fn is_present(entry: u64, _: u32) -> bool {
        entry & PRESENT != 0
    }
    fn is_table(entry: u64, level: u32) -> bool {
        level > 0 && entry & TABLE != 0
    }
    fn table(phys: u64, _: u32) -> u64 {
        phys | TABLE | PRESENT
    }
    fn table_phys(entry: u64, _: u32) -> u64 {
        entry & !0xfff
    }
    fn leaf(leaf: &Leaf, _: u32) -> u64 {
        leaf_bits(leaf) | PRESENT
    }
    fn decode(entry: u64, _: u32) -> Leaf {
        bits_leaf(entry)
    }
}

/// Tables of two sizes, and entries that say so when they are *not* valid, as on s390.
struct Uneven;

const INVALID: u64 = 0x400;

impl Entry for Uneven {
    fn index_bits(level: u32) -> u32 {
        if level == 0 {
            2
        } else {
            4
        }
    }
    fn empty(level: u32) -> u64 {
        INVALID | u64::from(level) << 2
    }
    fn is_present(entry: u64, _: u32) -> bool {
        entry & INVALID == 0
    }
    fn is_table(entry: u64, level: u32) -> bool {
        level > 0 && entry & TABLE != 0
    }
    fn table(phys: u64, _: u32) -> u64 {
        phys | TABLE
    }
    fn table_phys(entry: u64, _: u32) -> u64 {
        entry & !0xfff
    }
    fn leaf(leaf: &Leaf, _: u32) -> u64 {
        leaf_bits(leaf)
    }
    fn decode(entry: u64, _: u32) -> Leaf {
        bits_leaf(entry)
    }
}

const FREE: u8 = 0;
const OWNED: u8 = 1;
const ADOPTED: u8 = 2;
/// What a freed table's entries hold: whoever follows one has used it too late.
const POISON: u64 = u64::MAX;

struct Table {
    state: AtomicU8,
    entries: Box<[AtomicU64]>,
}

/// A store of tables that knows the state of each. "Physical" addresses are indexes + 1, in pages.
struct Arena {
    tables: Vec<Table>,
    free: Mutex<Vec<usize>>,
}

/// The part that a tree owns.
struct Store(Arc<Arena>);

struct Page {
    arena: Arc<Arena>,
    at: usize,
}

impl Arena {
    fn new(count: usize, entries: usize) -> Arc<Self> {
        let table = || Table {
            state: AtomicU8::new(FREE),
            entries: (0..entries).map(|_| AtomicU64::new(POISON)).collect(),
        };
        Arc::new(Self {
            tables: (0..count).map(|_| table()).collect(),
            free: Mutex::new((0..count).collect()),
        })
    }

    fn alloc(self: &Arc<Self>, empty: u64) -> Page {
        let at = self
            .free
            .lock()
            .unwrap()
            .pop()
            .expect("arena is large enough");
        assert_eq!(self.tables[at].state.swap(OWNED, Ordering::SeqCst), FREE);
        for entry in &self.tables[at].entries {
            entry.store(empty, Ordering::SeqCst);
        }
        Page {
            arena: self.clone(),
            at,
        }
    }

    fn in_use(&self) -> usize {
        self.tables.len() - self.free.lock().unwrap().len()
    }

    fn table(&self, phys: u64) -> &Table {
        &self.tables[(phys >> 12) as usize - 1]
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let table = &self.arena.tables[self.at];
        assert_eq!(table.state.swap(FREE, Ordering::SeqCst), OWNED);
        for entry in &table.entries {
            entry.store(POISON, Ordering::SeqCst);
        }
        self.arena.free.lock().unwrap().push(self.at);
    }
}

impl Tables for Store {
    type Page = Page;

    fn phys(page: &Page) -> u64 {
        (page.at as u64 + 1) << 12
    }

    fn get(&self, phys: u64) -> Option<&[AtomicU64]> {
        let table = self.0.table(phys);
        match table.state.load(Ordering::SeqCst) {
            ADOPTED => Some(&table.entries),
            // Published, but not adopted yet: the one moment when this may be asked for.
            OWNED => None,
            _ => panic!("a freed table is in the tree"),
        }
    }

    fn adopt(&self, page: Page) {
        let table = &self.0.tables[page.at];
        assert_eq!(table.state.swap(ADOPTED, Ordering::SeqCst), OWNED);
        let page = std::mem::ManuallyDrop::new(page);
        // The arena is counted by the page no more, but by the store.
        assert!(Arc::ptr_eq(&page.arena, &self.0));
    }

    fn release(&mut self, phys: u64) -> Option<Page> {
        let table = self.0.table(phys);
        assert_eq!(table.state.swap(OWNED, Ordering::SeqCst), ADOPTED);
        Some(Page {
            arena: self.0.clone(),
            at: (phys >> 12) as usize - 1,
        })
    }
}

struct Fixture<E: Entry> {
    arena: Arc<Arena>,
    tree: Stage2<E, Store>,
    cache: Cache<Page>,
    config: Config,
}

impl<E: Entry> Fixture<E> {
    fn new(config: Config) -> Self {
        assert!(Stage2::<E, Store>::is_valid(&config));
        let root_entries = 1 << Stage2::<E, Store>::root_bits(&config);
        let arena = Arena::new(2000, root_entries.max(16));
        let root = arena.alloc(E::empty(config.levels - 1));
        Self {
            tree: Stage2::new(Store(arena.clone()), root, config),
            arena,
            cache: Cache::new(),
            config,
        }
    }

    fn fill(&mut self) {
        let fill = |level| Ok::<_, ()>(self.arena.alloc(E::empty(level)));
        self.cache.fill(self.config.levels, fill).unwrap();
    }

    fn map(&mut self, gfn: u64, level: u32, leaf: &Leaf) -> Result<Mapped, MapError> {
        self.fill();
        self.tree.map(gfn, level, leaf, &mut self.cache)
    }

    fn spares(&self) -> usize {
        // A full cache: one for each level but the root.
        self.config.levels as usize - 1
    }
}

/// What the tree should be.
struct Naive {
    /// Leaves by their first frame, with their level.
    leaves: BTreeMap<u64, (u32, Leaf)>,
    /// Tables by level and first frame.
    tables: BTreeSet<(u32, u64)>,
    levels: u32,
    end: u64,
}

impl Naive {
    fn covering<E: Entry>(&self, gfn: u64) -> Option<(u64, u32, Leaf)> {
        let (&first, &(level, leaf)) = self.leaves.range(..=gfn).next_back()?;
        (gfn < first + pages::<E>(level)).then_some((first, level, leaf))
    }

    fn map<E: Entry>(
        &mut self,
        gfn: u64,
        level: u32,
        max: u32,
        leaf: &Leaf,
    ) -> Result<Mapped, MapError> {
        if gfn >= self.end || level > max {
            return Err(MapError::Invalid);
        }
        let first = gfn / pages::<E>(level) * pages::<E>(level);
        if let Some((at, have, old)) = self.covering::<E>(gfn).filter(|c| c.1 >= level) {
            if old.pfn + (first - at) != leaf.pfn || old.memory != leaf.memory {
                return Err(MapError::InTheWay);
            }
            let all = Leaf {
                write: old.write | leaf.write,
                exec: old.exec | leaf.exec,
                host_write: old.host_write | leaf.host_write,
                accessed: old.accessed | leaf.accessed,
                dirty: old.dirty | leaf.dirty,
                ..old
            };
            if have > level {
                let enough = all.write == old.write && all.exec == old.exec;
                return if enough {
                    Ok(Mapped::Spurious)
                } else {
                    Err(MapError::InTheWay)
                };
            }
            self.leaves.insert(at, (level, all));
            return Ok(if all == old {
                Mapped::Spurious
            } else {
                Mapped::Upgraded
            });
        }
        for above in (level..self.levels - 1).rev() {
            let reach = pages::<E>(above + 1);
            self.tables.insert((above, gfn / reach * reach));
        }
        if level > 0 && self.tables.contains(&(level - 1, first)) {
            return Err(MapError::InTheWay);
        }
        self.leaves.insert(first, (level, *leaf));
        Ok(Mapped::New)
    }

    fn zap<E: Entry>(&mut self, range: &Range<u64>) -> bool {
        let before = (self.leaves.len(), self.tables.len());
        self.leaves.retain(|&at, &mut (level, _)| {
            at >= range.end || at + pages::<E>(level) <= range.start
        });
        self.tables
            .retain(|&(level, at)| at < range.start || at + pages::<E>(level + 1) > range.end);
        before != (self.leaves.len(), self.tables.len())
    }

    fn each<E: Entry>(&mut self, range: &Range<u64>, mut f: impl FnMut(u32, &mut Leaf)) {
        for (&at, (level, leaf)) in &mut self.leaves {
            if at < range.end && range.start < at + pages::<E>(*level) {
                f(*level, leaf);
            }
        }
    }
}

fn protect(leaf: &mut Leaf) -> bool {
    let was = leaf.write;
    if was {
        leaf.write = false;
        leaf.dirty = false;
    }
    was
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u32, Leaf),
    Zap(u64, u64),
    ZapBlocks(u64, u64),
    Protect(u64, u64),
    ProtectRange(u64, u64),
    Age(u64, u64, bool),
    Allow(u64, u8),
}

fn op(end: u64) -> impl Strategy<Value = Op> {
    let flags = any::<(bool, bool, bool, bool, bool)>();
    // Around a few places, so that operations meet.
    let gfn =
        || prop_oneof![4 => 0..40u64, 2 => 60..70u64, 1 => 0..end, 1 => end - 3..end + 5].boxed();
    let len = || prop_oneof![4 => 0..20u64, 2 => 60..600u64, 1 => 0..end];
    let leaf = (flags, 0..8u64, 0..8u64).prop_map(
        |((write, exec, host, accessed, dirty), other, device)| Leaf {
            pfn: if other == 0 { 1 << 20 } else { 0 },
            write,
            exec,
            host_write: write || host,
            memory: if device == 0 {
                MemoryType::Device
            } else {
                MemoryType::Normal
            },
            accessed,
            dirty,
        },
    );
    prop_oneof![
        6 => (gfn(), prop_oneof![5 => Just(0u32), 2 => Just(1), 1 => 2..5u32], leaf).prop_map(|(g, l, leaf)| Op::Map(g, l, leaf)),
        2 => (gfn(), len()).prop_map(|(g, n)| Op::Zap(g, n)),
        1 => (gfn(), len()).prop_map(|(g, n)| Op::ZapBlocks(g, n)),
        1 => (gfn(), any::<u64>()).prop_map(|(g, m)| Op::Protect(g, m)),
        1 => (gfn(), len()).prop_map(|(g, n)| Op::ProtectRange(g, n)),
        1 => (gfn(), len(), any::<bool>()).prop_map(|(g, n, c)| Op::Age(g, n, c)),
        2 => (gfn(), 0..3u8).prop_map(|(g, a)| Op::Allow(g, a)),
    ]
}

fn run<E: Entry>(config: Config, ops: Vec<Op>) {
    let mut this = Fixture::<E>::new(config);
    let end = this.tree.end();
    let mut naive = Naive {
        leaves: BTreeMap::new(),
        tables: BTreeSet::new(),
        levels: config.levels,
        end,
    };
    for op in ops {
        match op.clone() {
            Op::Map(gfn, level, leaf) => {
                let size = pages::<E>(level.min(config.levels - 1));
                let leaf = Leaf {
                    pfn: leaf.pfn + gfn / size * size,
                    ..leaf
                };
                let want = naive.map::<E>(gfn, level, config.max_leaf_level, &leaf);
                assert_eq!(this.map(gfn, level, &leaf), want, "{op:?}");
            }
            Op::Zap(gfn, len) => {
                let range = gfn..gfn + len;
                let mut freed = Vec::new();
                let changed = this.tree.zap(range.clone(), &mut |page| freed.push(page));
                let tables = naive.tables.len();
                let want = len > 0 && naive.zap::<E>(&range);
                assert_eq!(changed, want, "{op:?}");
                assert_eq!(freed.len(), tables - naive.tables.len(), "{op:?}");
            }
            Op::ZapBlocks(gfn, len) => {
                let before = naive.leaves.len();
                naive.leaves.retain(|&at, &mut (level, _)| {
                    level == 0 || len == 0 || at >= gfn + len || at + pages::<E>(level) <= gfn
                });
                let changed = this.tree.zap_blocks(gfn..gfn + len);
                assert_eq!(changed, naive.leaves.len() != before, "{op:?}");
            }
            Op::Protect(gfn, mask) => {
                let mut want = false;
                for i in (0..64).filter(|i| mask >> i & 1 != 0) {
                    naive.each::<E>(&(gfn + i..gfn + i + 1), |_, leaf| want |= protect(leaf));
                }
                assert_eq!(this.tree.watch(gfn, mask), want, "{op:?}");
            }
            Op::ProtectRange(gfn, len) => {
                let mut want = false;
                if len > 0 {
                    naive.each::<E>(&(gfn..gfn + len), |_, leaf| want |= protect(leaf));
                }
                assert_eq!(this.tree.watch_range(gfn..gfn + len), want, "{op:?}");
            }
            Op::Age(gfn, len, clear) => {
                let mut want = false;
                if len > 0 {
                    naive.each::<E>(&(gfn..gfn + len), |_, leaf| {
                        want |= leaf.accessed;
                        leaf.accessed &= !clear;
                    });
                }
                assert_eq!(this.tree.age(gfn..gfn + len, clear), want, "{op:?}");
            }
            Op::Allow(gfn, access) => {
                let mut want = Allow::Denied;
                let access = [Access::Read, Access::Write, Access::Execute][usize::from(access)];
                naive.each::<E>(&(gfn..gfn + 1), |level, leaf| {
                    want = match access {
                        Access::Read => Allow::Allowed,
                        Access::Execute if leaf.exec => Allow::Allowed,
                        Access::Write if leaf.write => Allow::Allowed,
                        Access::Write if leaf.host_write && level == 0 => Allow::MadeWritable,
                        _ => Allow::Denied,
                    };
                    leaf.accessed |= want != Allow::Denied;
                    leaf.write |= want == Allow::MadeWritable;
                    leaf.dirty |= want == Allow::MadeWritable;
                });
                assert_eq!(this.tree.allow(gfn, access), want, "{op:?}");
            }
        }
        for gfn in (0..80).chain(end - 3..end + 2) {
            let want = naive
                .covering::<E>(gfn)
                .map(|(_, level, leaf)| (leaf, level));
            assert_eq!(this.tree.lookup(gfn), want, "{gfn} after {op:?}");
        }
        this.fill();
        let tables = 1 + naive.tables.len() + this.spares();
        assert_eq!(this.arena.in_use(), tables, "{op:?}");
    }
    let arena = this.arena.clone();
    drop(this);
    assert_eq!(arena.in_use(), 0);
}

const EVEN: Config = Config {
    levels: 4,
    gpa_bits: 12 + 12,
    max_leaf_level: 2,
    logs_writes: false,
};
/// With a root of 64 entries, as arm64's can be.
const WIDE: Config = Config {
    levels: 3,
    gpa_bits: 12 + 12,
    max_leaf_level: 1,
    logs_writes: false,
};
const UNEVEN: Config = Config {
    levels: 4,
    gpa_bits: 12 + 13,
    max_leaf_level: 2,
    logs_writes: false,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn even_tree_is_as_a_map(ops in prop::collection::vec(op(1 << 12), 1..60)) {
        run::<Even>(EVEN, ops);
    }

    #[test]
    fn wide_tree_is_as_a_map(ops in prop::collection::vec(op(1 << 12), 1..60)) {
        run::<Even>(WIDE, ops);
    }

    #[test]
    fn uneven_tree_is_as_a_map(ops in prop::collection::vec(op(1 << 13), 1..60)) {
        run::<Uneven>(UNEVEN, ops);
    }
}

#[test]
fn shapes_are_checked() {
    let valid = |levels, gpa_bits, max_leaf_level| {
        Stage2::<Even, Store>::is_valid(&Config {
            levels,
            gpa_bits,
            max_leaf_level,
            logs_writes: false,
        })
    };
    assert!(valid(4, 24, 2) && valid(2, 18, 1) && valid(5, 27, 4));
    // No levels, one, too many; no root entry; a root too large; leaves above the root.
    assert!(!valid(0, 24, 0) && !valid(1, 15, 0) && !valid(6, 30, 1) && !valid(u32::MAX, 30, 1));
    assert!(!valid(4, 21, 2) && !valid(2, 40, 1) && !valid(4, 24, 4));
}

#[test]
fn a_full_cache_is_enough_and_an_empty_one_is_told() {
    let mut this = Fixture::<Even>::new(EVEN);
    let leaf = bits_leaf(5 << 12);
    assert_eq!(
        this.tree.map(5, 0, &leaf, &mut this.cache),
        Err(MapError::NeedTable(2))
    );
    assert_eq!(this.map(5, 0, &leaf), Ok(Mapped::New));
}

/// Ends the other threads when its own panics.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

/// Faults in parallel with zaps, write protection and hardware that walks without any lock.
///
/// Each page's frame changes with each zap, as when the host moves a page. The hardware must never
/// meet a freed table, nor a frame of another time than that of its walk.
#[test]
fn threads_keep_the_tree_whole() {
    const END: u64 = 1 << 12;
    const ZAPS: u64 = 5_000;
    let fixture = Fixture::<Even>::new(EVEN);
    let (arena, root) = (fixture.arena.clone(), fixture.tree.root());
    drop(fixture.cache);
    let tree = RwLock::new(fixture.tree);
    // By frame: how often it was zapped. Changed under the write lock.
    let generation: Vec<_> = (0..END).map(|_| AtomicU64::new(0)).collect();
    let pfn = |gfn: u64, generation: u64| generation << 12 | gfn;
    // Even: not walking; odd: walking.
    let walking: [AtomicUsize; 2] = Default::default();
    let stop = AtomicBool::new(false);
    let new = AtomicU64::new(0);
    let random = |seed: &mut u64| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    };

    std::thread::scope(|scope| {
        for id in 1..=3u64 {
            let (arena, tree, generation) = (&arena, &tree, &generation);
            let (stop, new) = (&stop, &new);
            scope.spawn(move || {
                let _stop = StopOnPanic(stop);
                let mut seed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut cache = Cache::new();
                while !stop.load(Ordering::SeqCst) {
                    // Mostly among few, so that threads meet in the same tables.
                    let r = random(&mut seed);
                    let gfn = if r & 7 == 0 { r >> 8 } else { r >> 8 & 63 } % END;
                    cache
                        .fill(4, |level| Ok::<_, ()>(arena.alloc(Even::empty(level))))
                        .unwrap();
                    let tree = tree.read().unwrap();
                    let frame = pfn(gfn, generation[gfn as usize].load(Ordering::SeqCst));
                    let write = r >> 40 & 1 != 0;
                    let leaf = Leaf {
                        write,
                        host_write: true,
                        ..bits_leaf(frame << 12 | ACCESSED)
                    };
                    match tree.map(gfn, 0, &leaf, &mut cache) {
                        Ok(Mapped::New) => {
                            new.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(_) | Err(MapError::Busy) => {}
                        other => panic!("{other:?}"),
                    }
                    if write && r >> 41 & 1 != 0 {
                        tree.allow(gfn, Access::Write);
                    }
                    if let Some((leaf, _)) = tree.lookup(gfn) {
                        assert_eq!(leaf.pfn, frame);
                    }
                    drop(tree);
                    if r >> 42 & 7 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }

        for (id, walking) in walking.iter().enumerate() {
            let (arena, generation, stop) = (&arena, &generation, &stop);
            scope.spawn(move || {
                let _stop = StopOnPanic(stop);
                let mut seed = (id as u64 + 7).wrapping_mul(0x2545_f491_4f6c_dd1d);
                while !stop.load(Ordering::SeqCst) {
                    let r = random(&mut seed);
                    let gfn = if r & 7 == 0 { r >> 8 } else { r >> 8 & 63 } % END;
                    walking.fetch_add(1, Ordering::SeqCst);
                    let before = generation[gfn as usize].load(Ordering::SeqCst);
                    let (mut table, mut bad) = (root, None);
                    for level in (0..4).rev() {
                        let index = gfn >> (3 * level) & 7;
                        let entry =
                            arena.table(table).entries[index as usize].load(Ordering::SeqCst);
                        if entry == POISON {
                            bad = Some("a freed table");
                        }
                        if entry == POISON || entry & PRESENT == 0 {
                            break;
                        }
                        table = entry & !0xfff;
                        if level == 0 {
                            let after = generation[gfn as usize].load(Ordering::SeqCst);
                            if !(before..=after).any(|g| pfn(gfn, g) == entry >> 12) {
                                bad = Some("a stale frame");
                            }
                        }
                    }
                    walking.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(bad, None, "{gfn:x}");
                    std::thread::yield_now();
                }
            });
        }

        let _stop = StopOnPanic(&stop);
        let mut seed = 0xdead_beef;
        for zaps in 0..ZAPS {
            // Faults and zaps take turns, however the machine schedules the threads.
            while new.load(Ordering::SeqCst) < zaps * 8 {
                assert!(!stop.load(Ordering::SeqCst), "a thread has failed");
                std::thread::yield_now();
            }
            let r = random(&mut seed);
            let start = if r & 3 == 0 { r >> 8 } else { r >> 8 & 63 } % END;
            let len = [1, 3, 8, 64, 600][(r >> 32) as usize % 5];
            let range = start..(start + len).min(END);
            let mut freed = Vec::new();
            let mut tree = tree.write().unwrap();
            if r >> 50 & 3 == 0 {
                tree.watch_range(range.clone());
                for gfn in range {
                    assert!(tree.lookup(gfn).is_none_or(|(leaf, _)| !leaf.write));
                }
                continue;
            }
            tree.zap(range.clone(), &mut |page| freed.push(page));
            for gfn in range {
                assert_eq!(tree.lookup(gfn), None);
                generation[gfn as usize].fetch_add(1, Ordering::SeqCst);
            }
            drop(tree);
            // The flush: every walk that is going on ends.
            for walking in &walking {
                let now = walking.load(Ordering::SeqCst);
                while now % 2 == 1 && walking.load(Ordering::SeqCst) == now {
                    std::thread::yield_now();
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
    });

    let tree = tree.into_inner().unwrap();
    for gfn in 0..END {
        if let Some((leaf, _)) = tree.lookup(gfn) {
            let now = generation[gfn as usize].load(Ordering::SeqCst);
            assert_eq!(leaf.pfn, pfn(gfn, now));
        }
    }
    drop(tree);
    assert_eq!(arena.in_use(), 0);
}

/// Two changes of one entry at the same moment: neither is lost, nor is a table.
#[test]
fn changes_at_the_same_moment_are_not_lost() {
    const ROUNDS: usize = 60_000;
    const GFN: u64 = 8;
    let Fixture {
        arena,
        tree,
        cache: _,
        config,
    } = Fixture::<Even>::new(EVEN);
    let tree = RwLock::new(tree);
    let turn = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    // Both threads leave when both have come.
    let meet = |count: usize| {
        turn.fetch_add(1, Ordering::SeqCst);
        while turn.load(Ordering::SeqCst) < count {
            assert!(!stop.load(Ordering::SeqCst), "the other thread has failed");
            std::hint::spin_loop();
        }
    };
    let leaf = |flags| Leaf {
        host_write: true,
        ..bits_leaf(GFN << 12 | flags)
    };
    let fill = |cache: &mut Cache<Page>| {
        let make = |level| Ok::<_, ()>(arena.alloc(Even::empty(level)));
        cache.fill(config.levels, make).unwrap();
    };
    std::thread::scope(|scope| {
        let (tree, leaf, fill, meet, stop) = (&tree, &leaf, &fill, &meet, &stop);
        for id in 0..2 {
            scope.spawn(move || {
                let _stop = StopOnPanic(stop);
                let mut cache = Cache::new();
                for round in 0..ROUNDS {
                    fill(&mut cache);
                    if id == 0 {
                        let mut tree = tree.write().unwrap();
                        tree.zap(0..64, &mut drop);
                        let first = [None, Some(0), Some(0), None][round % 4];
                        // The path is there already, so that the leaf itself is what is raced for.
                        tree.map(GFN + 1, 0, &leaf(1 << 12), &mut cache).unwrap();
                        fill(&mut cache);
                        if let Some(flags) = first {
                            tree.map(GFN, 0, &leaf(flags), &mut cache).unwrap();
                        }
                        if round % 4 == 3 {
                            tree.zap(GFN..GFN + 8, &mut drop);
                        }
                    }
                    meet(8 * round + 2);
                    {
                        let tree = tree.read().unwrap();
                        meet(8 * round + 4);
                        match (round % 4, id) {
                            (0, 0) | (1, 0) => drop(tree.map(GFN, 0, &leaf(WRITE), &mut cache)),
                            (0, _) | (1, _) => drop(tree.map(GFN, 0, &leaf(EXEC), &mut cache)),
                            (2, 0) => drop(tree.allow(GFN, Access::Write)),
                            (2, _) => drop(tree.map(GFN, 0, &leaf(EXEC), &mut cache)),
                            (_, 0) => drop(tree.map(GFN, 1, &leaf(WRITE), &mut cache)),
                            _ => drop(tree.map(GFN, 0, &leaf(WRITE), &mut cache)),
                        }
                    }
                    meet(8 * round + 6);
                    if id == 0 {
                        let (leaf, _) = tree.read().unwrap().lookup(GFN).unwrap();
                        assert!(
                            leaf.write && (leaf.exec || round % 4 == 3),
                            "{round}: {leaf:?}"
                        );
                    }
                    meet(8 * round + 8);
                }
            });
        }
    });
    drop(tree);
    assert_eq!(arena.in_use(), 0);
}
