// SPDX-License-Identifier: GPL-2.0

//! The dirty log with processors that write: the engine, the bitmap and the slots put together as
//! `rkvm/memory/` does, against a model of processors with translation caches, and with a log of what
//! they write where they have one. What happens between any two steps of user space's request is up to
//! proptest.

use crate::arch::x86::vmx::{ept::Ept, pml};
use crate::memory::{
    bitmap::Bitmap,
    slots::{Region, Slot, Slots, LOG_DIRTY, READONLY},
    stage2::{pages, Access, Allow, Cache, Config, Leaf, MapError, MemoryType, Stage2, Tables},
};
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc,
    },
};

type Entries = Arc<Vec<Box<[AtomicU64]>>>;

/// Tables, and which of them are the tree's; "physical" addresses are indexes + 1, in pages.
struct Pool(Entries, RefCell<BTreeSet<u64>>);

impl Tables for Pool {
    type Page = u64;

    fn phys(page: &u64) -> u64 {
        *page
    }
    fn get(&self, phys: u64) -> Option<&[AtomicU64]> {
        let owned = self.1.borrow().contains(&phys);
        owned.then(|| &*self.0[(phys >> 12) as usize - 1])
    }
    fn adopt(&self, page: u64) {
        assert!(self.1.borrow_mut().insert(page));
    }
    fn release(&mut self, phys: u64) -> Option<u64> {
        self.1.borrow_mut().remove(&phys).then_some(phys)
    }
}

const BASE: u64 = 0x400;
/// More than two blocks of 2 MiB, and no whole number of words.
const PAGES: u64 = 1100;
/// The pages that are used: at the ends of words, of blocks, and of the slot.
const USED: [u64; 10] = [0, 1, 63, 64, 65, 511, 512, 1023, 1024, 1099];
/// A second slot, which is never logged.
const OTHER: u64 = 0x2000;
/// Entries that a processor has room for: few, so that it often has not.
const ROOM: u16 = 3;

type Set = Slots<Option<Arc<Bitmap>>>;

/// A processor in a guest section, with what it has cached.
struct Cpu {
    /// By frame: writable, dirty.
    tlb: BTreeMap<u64, (bool, bool)>,
    log: pml::Page,
    index: u16,
    /// The log is on: seen when the section began.
    on: bool,
}

/// `KVM_GET_DIRTY_LOG`, or `KVM_CLEAR_DIRTY_LOG` after it, as far as it has got.
#[derive(Clone, Debug)]
enum Getter {
    Idle,
    /// Processors have left their sections; the words that are not taken yet.
    Taking {
        at: usize,
        taken: Vec<u64>,
        changed: bool,
    },
}

struct Vm {
    tree: Stage2<Ept, Pool>,
    config: Config,
    tables: Entries,
    free: Vec<u64>,
    cache: Cache<u64>,
    set: Set,
    logging: bool,
    cpus: [Cpu; 2],
    getter: Getter,
    /// What is in each page: how often it was written; and when user space copied it last.
    content: BTreeMap<u64, u64>,
    copied: BTreeMap<u64, u64>,
    faults: u64,
    /// Guests write while logging is switched on.
    rush: bool,
}

const fn config(logs_writes: bool) -> Config {
    Config {
        levels: 4,
        gpa_bits: 48,
        max_leaf_level: 1,
        logs_writes,
    }
}

impl Vm {
    fn new(logs_writes: bool) -> Self {
        let table = |_| (0..512).map(|_| AtomicU64::new(0)).collect();
        let tables: Entries = Arc::new((0..40).map(table).collect());
        let pool = Pool(tables.clone(), RefCell::default());
        let config = config(logs_writes);
        let cpu = || Cpu {
            tlb: BTreeMap::new(),
            log: [0xa5; 4096],
            index: pml::FIRST,
            on: false,
        };
        let mut vm = Self {
            tree: Stage2::new(pool, 0x1000, config),
            config,
            tables,
            free: (2..=40).map(|at| at << 12).collect(),
            cache: Cache::new(),
            set: Set::new(),
            logging: false,
            cpus: [cpu(), cpu()],
            getter: Getter::Idle,
            content: BTreeMap::new(),
            copied: BTreeMap::new(),
            faults: 0,
            rush: false,
        };
        vm.region(0, BASE, PAGES, 0);
        vm.region(1, OTHER, 512, 0);
        vm
    }

    /// `Memory::set_region`
    fn region(&mut self, slot: u32, base_gfn: u64, count: u64, flags: u32) {
        assert!(
            matches!(self.getter, Getter::Idle),
            "one holds the writer's lock"
        );
        let region = Region {
            slot,
            flags,
            guest_phys_addr: base_gfn << 12,
            memory_size: count << 12,
            userspace_addr: 0x7000_0000_0000 + (u64::from(slot) << 32),
        };
        self.set.check(&region, 1 << 36).expect("allowed");
        let logged = flags & LOG_DIRTY != 0;
        self.logging |= logged && self.config.logs_writes;
        // Nobody uses the old set any more: what was noted by it is in its bitmaps, and all log.
        self.leave();
        let old = self.set.remove(slot);
        if count != 0 {
            let old = old
                .as_ref()
                .filter(|_| logged)
                .and_then(|o| o.dirty.clone());
            let dirty =
                logged.then(|| old.unwrap_or_else(|| Arc::new(Bitmap::new(count).unwrap())));
            let new = Slot {
                id: slot,
                flags,
                base_gfn,
                pages: count,
                hva: region.userspace_addr,
                dirty,
            };
            self.set.insert(&new).unwrap();
        }
        if let Some(old) = old {
            if logged && old.base_gfn == base_gfn {
                self.tree.zap_blocks(old.gfns());
                self.tree.watch_range(old.gfns());
                if self.rush {
                    // Before all have flushed.
                    for (cpu, page) in [(0, 1), (1, 0), (0, 1024), (1, 1099)] {
                        self.access(cpu, BASE + page, true);
                    }
                }
            } else {
                self.zap(old.gfns());
            }
        }
        self.flush();
        self.logging &= self.set.iter().any(Slot::logging);
    }

    fn zap(&mut self, gfns: Range<u64>) {
        let mut freed = vec![];
        self.tree.zap(gfns, &mut |page| freed.push(page));
        self.flush();
        for page in freed {
            for e in &self.tables[(page >> 12) as usize - 1] {
                e.store(0, Ordering::Relaxed);
            }
            self.free.push(page);
        }
    }

    /// All leave their sections, and begin new ones.
    fn leave(&mut self) {
        for i in 0..self.cpus.len() {
            self.section_ends(i);
        }
    }

    fn flush(&mut self) {
        self.leave();
        self.cpus.iter_mut().for_each(|c| c.tlb.clear());
    }

    /// `View::written`, and the next section.
    fn section_ends(&mut self, i: usize) {
        let cpu = &mut self.cpus[i];
        for gpa in pml::logged(&cpu.log, cpu.index) {
            let gfn = gpa >> 12;
            if let Some(slot) = self.set.find(gfn) {
                if let Some(dirty) = &slot.dirty {
                    dirty.set(gfn - slot.base_gfn);
                }
            }
        }
        cpu.log.fill(0xa5);
        cpu.index = pml::FIRST;
        cpu.on = self.logging;
    }

    fn mark(&self, gfn: u64) {
        if let Some(slot) = self.set.find(gfn) {
            if let Some(dirty) = &slot.dirty {
                dirty.set(gfn - slot.base_gfn);
            }
        }
    }

    /// `Memory::fault`; false: a device's.
    fn fault(&mut self, gfn: u64, write: bool) -> bool {
        self.faults += 1;
        if self.set.find(gfn).is_none_or(|s| write && s.readonly()) {
            return false;
        }
        let access = if write { Access::Write } else { Access::Read };
        match self.tree.allow(gfn, access) {
            Allow::Allowed => return true,
            Allow::MadeWritable => {
                self.mark(gfn);
                return true;
            }
            Allow::Denied => {}
        }
        let slot = self.set.find(gfn).expect("it was there");
        let (logged, readonly, gfns) = (slot.logging(), slot.readonly(), slot.gfns());
        let first = gfn & !511;
        let fits = gfns.start <= first && first + 512 <= gfns.end;
        let level = u32::from(!logged && fits);
        let host_write = !readonly;
        let (may_write, dirty) = self.config.may_write(host_write, write, logged);
        let leaf = Leaf {
            pfn: gfn & !(pages::<Ept>(level) - 1),
            write: may_write,
            exec: true,
            host_write,
            memory: MemoryType::Normal,
            accessed: true,
            dirty,
        };
        let free = &mut self.free;
        let fill = |_| free.pop().ok_or(());
        self.cache.fill(self.config.levels, fill).unwrap();
        match self.tree.map(gfn, level, &leaf, &mut self.cache) {
            Ok(_) => {}
            Err(MapError::InTheWay) => {
                self.zap(first..first + 512);
                return self.fault(gfn, write);
            }
            Err(e) => panic!("{e:?}"),
        }
        if write {
            self.mark(gfn);
        }
        true
    }

    /// What the processor does for an access, by its cache or by a walk that fills it.
    fn access(&mut self, i: usize, gfn: u64, write: bool) {
        loop {
            if let Some(&(writable, dirty)) = self.cpus[i].tlb.get(&gfn) {
                if !write {
                    return;
                }
                if writable && dirty {
                    break;
                }
            }
            let leaf = self.tree.lookup(gfn);
            let Some((leaf, level)) = leaf.filter(|(l, _)| l.write || !write) else {
                if !self.fault(gfn, write) {
                    return;
                }
                continue;
            };
            if write && !leaf.dirty {
                let cpu = &mut self.cpus[i];
                if cpu.on {
                    if pml::FIRST - cpu.index == ROOM {
                        // Full: an exit before the write.
                        self.section_ends(i);
                        continue;
                    }
                    let at = usize::from(cpu.index) * 8;
                    cpu.log[at..at + 8].copy_from_slice(&(gfn << 12).to_le_bytes());
                    cpu.index -= 1;
                }
                let mut cache = Cache::new();
                let set = Leaf {
                    dirty: true,
                    ..leaf
                };
                self.tree.map(gfn, level, &set, &mut cache).expect("there");
            }
            let entry = (leaf.write, leaf.dirty || write);
            self.cpus[i].tlb.insert(gfn, entry);
        }
        *self.content.entry(gfn).or_default() += 1;
    }

    fn slot(&self) -> &Slot<Option<Arc<Bitmap>>> {
        self.set.by_id(0).expect("there")
    }

    /// One step of `Memory::dirty_log` or `clear_dirty_log`. `Some`: user space has these words.
    fn step(&mut self) -> Option<Vec<u64>> {
        match std::mem::replace(&mut self.getter, Getter::Idle) {
            Getter::Idle => {
                self.slot().dirty.as_ref()?;
                if self.logging {
                    self.leave();
                }
                self.getter = Getter::Taking {
                    at: 0,
                    taken: vec![],
                    changed: false,
                };
                None
            }
            Getter::Taking {
                at,
                mut taken,
                mut changed,
            } => {
                let slot = self.slot();
                let (base, bitmap) = (slot.base_gfn, slot.dirty.clone().expect("logged"));
                if at < bitmap.words() {
                    // One hold of the lock.
                    let word = bitmap.take(at, u64::MAX);
                    changed |= self.tree.watch(base + 64 * at as u64, word);
                    taken.push(word);
                    self.getter = Getter::Taking {
                        at: at + 1,
                        taken,
                        changed,
                    };
                    return None;
                }
                if changed {
                    self.flush();
                }
                Some(taken)
            }
        }
    }

    /// User space copies what it was told. Returns which pages that was for nothing.
    fn copy(&mut self, words: &[u64]) -> Vec<u64> {
        let mut vain = vec![];
        for p in 0..PAGES {
            if words[p as usize / 64] >> (p % 64) & 1 == 1 {
                let gfn = BASE + p;
                let now = self.content.get(&gfn).copied().unwrap_or(0);
                if self.copied.insert(gfn, now) == Some(now) || now == 0 {
                    vain.push(p);
                }
            }
        }
        vain
    }

    /// The whole of `KVM_GET_DIRTY_LOG`, nobody running meanwhile.
    fn get(&mut self) -> Vec<u64> {
        loop {
            if let Some(words) = self.step() {
                return self.copy(&words);
            }
        }
    }

    /// Everything, as at the start of a migration.
    fn copy_all(&mut self) {
        self.copied = self.content.clone();
    }

    fn all_copied(&self) {
        for gfn in USED.map(|p| BASE + p) {
            let (now, then) = (self.content.get(&gfn), self.copied.get(&gfn));
            assert_eq!(
                now.copied().unwrap_or(0),
                then.copied().unwrap_or(0),
                "frame {gfn:#x}: a write that no log shows"
            );
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Access {
        cpu: usize,
        page: usize,
        write: bool,
    },
    Other {
        cpu: usize,
        page: u64,
    },
    /// rkvm writes for the guest.
    Emulate {
        page: usize,
    },
    SectionEnds {
        cpu: usize,
    },
    Step,
    /// The host takes a page away.
    Zap {
        page: usize,
    },
    Age,
    /// Logging off and on again, or the slot deleted and made again.
    Restart {
        delete: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..USED.len();
    prop_oneof![
        10 => (0..2usize, page.clone(), any::<bool>())
            .prop_map(|(cpu, page, write)| Op::Access { cpu, page, write }),
        1 => (0..2usize, 0..512u64).prop_map(|(cpu, page)| Op::Other { cpu, page }),
        1 => page.clone().prop_map(|page| Op::Emulate { page }),
        1 => (0..2usize).prop_map(|cpu| Op::SectionEnds { cpu }),
        12 => Just(Op::Step),
        1 => page.prop_map(|page| Op::Zap { page }),
        1 => Just(Op::Age),
        1 => any::<bool>().prop_map(|delete| Op::Restart { delete }),
    ]
}

fn run(logs_writes: bool, ops: Vec<Op>) {
    let mut vm = Vm::new(logs_writes);
    vm.rush = true;
    for page in USED {
        // Mapped before there is a log, by blocks where those fit.
        vm.access(0, BASE + page, page % 2 == 0);
    }
    vm.region(0, BASE, PAGES, LOG_DIRTY);
    vm.copy_all();
    for op in ops {
        match op {
            Op::Access { cpu, page, write } => vm.access(cpu, BASE + USED[page], write),
            Op::Other { cpu, page } => vm.access(cpu, OTHER + page, true),
            Op::Emulate { page } => {
                let gfn = BASE + USED[page];
                *vm.content.entry(gfn).or_default() += 1;
                vm.mark(gfn);
            }
            Op::SectionEnds { cpu } => vm.section_ends(cpu),
            Op::Step => {
                if let Some(words) = vm.step() {
                    vm.copy(&words);
                }
            }
            Op::Zap { page } => {
                let gfn = BASE + USED[page];
                vm.zap(gfn..gfn + 1);
            }
            Op::Age => drop(vm.tree.age(BASE..BASE + PAGES, true)),
            Op::Restart { delete } => {
                while !matches!(vm.getter, Getter::Idle) {
                    if let Some(words) = vm.step() {
                        vm.copy(&words);
                    }
                }
                if delete {
                    // What a processor has noted still finds no slot.
                    vm.cpus[0].tlb.clear();
                    vm.region(0, BASE, 0, 0);
                    vm.access(1, BASE + 1, true);
                } else {
                    vm.region(0, BASE, PAGES, 0);
                    vm.access(1, BASE + 1, true);
                }
                vm.region(0, BASE, PAGES, LOG_DIRTY);
                vm.copy_all();
            }
        }
    }
    while !matches!(vm.getter, Getter::Idle) {
        if let Some(words) = vm.step() {
            vm.copy(&words);
        }
    }
    vm.get();
    vm.all_copied();
    assert!(vm.get().is_empty(), "nothing happened since");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_write_is_lost_where_processors_log(ops in prop::collection::vec(op(), 1..120)) {
        run(true, ops);
    }

    #[test]
    fn no_write_is_lost_where_they_do_not(ops in prop::collection::vec(op(), 1..120)) {
        run(false, ops);
    }

    /// With nobody running while user space asks, the log has what was written, and nothing else.
    #[test]
    fn the_log_is_exact(logs: bool, rounds in prop::collection::vec(
        prop::collection::vec((0..2usize, 0..USED.len(), any::<bool>()), 0..40), 1..6)
    ) {
        let mut vm = Vm::new(logs);
        for page in USED {
            vm.access(0, BASE + page, true);
        }
        vm.region(0, BASE, PAGES, LOG_DIRTY);
        vm.copy_all();
        for round in rounds {
            for (cpu, page, write) in round {
                vm.access(cpu, BASE + USED[page], write);
            }
            prop_assert!(vm.get().is_empty());
            vm.all_copied();
        }
    }
}

/// The reason for it all: a page that was taken is written again without a fault.
#[test]
fn writing_again_costs_no_fault() {
    let faults = |logs_writes| {
        let mut vm = Vm::new(logs_writes);
        vm.region(0, BASE, PAGES, LOG_DIRTY);
        vm.access(0, BASE + 5, false);
        vm.copy_all();
        let before = vm.faults;
        for _ in 0..10 {
            vm.access(0, BASE + 5, true);
            assert!(vm.get().is_empty());
            vm.all_copied();
        }
        vm.faults - before
    };
    assert_eq!(faults(true), 0);
    assert_eq!(faults(false), 10);
}

#[test]
fn read_only_slots_stay_read_only() {
    let mut vm = Vm::new(true);
    vm.region(1, OTHER, 0, 0);
    vm.region(1, OTHER, 512, READONLY | LOG_DIRTY);
    vm.access(0, OTHER + 3, false);
    assert!(vm
        .tree
        .lookup(OTHER + 3)
        .is_some_and(|(l, _)| !l.write && !l.dirty));
    vm.access(0, OTHER + 3, true);
    assert_eq!(vm.content.get(&(OTHER + 3)), None, "a device's");
}

/// A block in a logged slot, should there ever be one, is no leaf whose first write tells it all.
#[test]
fn blocks_are_write_protected_all_the_same() {
    let mut vm = Vm::new(true);
    vm.access(0, BASE + 700, true);
    assert_eq!(vm.tree.lookup(BASE + 700).map(|(_, level)| level), Some(1));
    assert!(vm.tree.watch(BASE + 640, 1 << 60));
    let (leaf, _) = vm.tree.lookup(BASE + 700).unwrap();
    assert!(!leaf.write && !leaf.dirty);
    // Switching logging on takes blocks away.
    vm.region(0, BASE, PAGES, LOG_DIRTY);
    assert_eq!(vm.tree.lookup(BASE + 700), None);
}

/// In a slot that is not logged, leaves are dirty from the start: the hardware has nothing to tell.
#[test]
fn other_slots_fill_no_log() {
    let mut vm = Vm::new(true);
    vm.region(0, BASE, PAGES, LOG_DIRTY);
    for page in 0..20 {
        vm.access(0, OTHER + page, false);
        vm.access(0, OTHER + page, true);
    }
    assert_eq!(vm.cpus[0].index, pml::FIRST);
    vm.access(0, BASE, false);
    vm.access(0, BASE, true);
    assert_eq!(vm.cpus[0].index, pml::FIRST - 1);
}

#[test]
fn what_a_leaf_may_say() {
    for logs in [false, true] {
        let c = config(logs);
        for write in [false, true] {
            assert_eq!(c.may_write(false, write, true), (false, false));
            assert_eq!(c.may_write(false, write, false), (false, false));
            assert_eq!(c.may_write(true, write, false), (true, true));
        }
        assert_eq!(c.may_write(true, true, true), (true, true));
        assert_eq!(c.may_write(true, false, true), (logs, false));
    }
}

#[test]
fn the_processors_log() {
    let mut page = [0u8; 4096];
    for (i, e) in page.chunks_exact_mut(8).enumerate() {
        e.copy_from_slice(&((i as u64) << 12 | 0xabc).to_le_bytes());
    }
    let at = |index| {
        pml::logged(&page, index)
            .map(|a| a >> 12)
            .collect::<Vec<_>>()
    };
    assert!(at(511).is_empty());
    assert_eq!(at(510), [511]);
    assert_eq!(at(508), [509, 510, 511]);
    assert_eq!(at(0).len(), 511);
    // No room: the index has gone below 0. So it has for whatever else it cannot be.
    for full in [0xffff, 512, 0x8000] {
        assert_eq!(at(full), (0..512).collect::<Vec<_>>());
    }
    assert!(pml::logged(&page, 0xffff).all(|a| a & 0xfff == 0));
}

/// A log entry is the guest's: any address will do.
#[test]
fn any_address_may_be_noted() {
    let mut vm = Vm::new(true);
    vm.region(0, BASE, PAGES, LOG_DIRTY);
    vm.copy_all();
    let wild = [
        0,
        u64::MAX,
        1 << 51,
        (BASE - 1) << 12,
        (BASE + PAGES) << 12,
        BASE << 12 | 8,
    ];
    let cpu = &mut vm.cpus[0];
    for gpa in wild {
        let at = usize::from(cpu.index) * 8;
        cpu.log[at..at + 8].copy_from_slice(&gpa.to_le_bytes());
        cpu.index -= 1;
    }
    vm.section_ends(0);
    assert_eq!(vm.get(), [0], "the one that has a page");
}
