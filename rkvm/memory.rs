// SPDX-License-Identifier: GPL-2.0

//! Guest memory: slots, access to it, the second stage of translation, and the dirty log.
//!
//! # How the parts keep together
//!
//! - The *slot set* says which user address backs a guest frame. Readers hold a [`View`] (an SRCU read
//!   section); `Memory::set_region` publishes a new set and waits until no view of the old one is left.
//! - The *tree* ([`stage2`]) holds translations of both steps (guest frame to host frame). It lives in a
//!   readers-writer spinlock with the list of user ranges that the host is changing: faults add
//!   under the read lock, everything that takes away holds the write lock.
//! - A fault asks the host for a page without a lock. It installs the page only if, under the read
//!   lock, no change of that user address is in progress and none has ended since it began to ask.
//! - Whoever takes translations away flushes after it has dropped the lock, and frees tables after
//!   that. [`Shadow::settle`] makes others wait for a flush that they rely on: a notifier
//!   that finds nothing to take away may be behind one who has, and has not flushed yet.
//! - A slot that leaves is remembered in the lock from before it leaves the set until its translations are gone,
//!   so that the host's notifications still reach them.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod bitmap;
mod dirty;
mod fault;
mod guest;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod invalidate;
mod notifier;
mod region;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod slots;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "also compiled on the host, for tests"
)]
pub(crate) mod stage2;
use core::{
    ops::Range,
    sync::atomic::{fence, AtomicBool, AtomicU64, Ordering},
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

use crate::host::{
    mm::{self, Notifier},
    rwlock::RwLock,
    srcu_cell::{SrcuCell, SrcuRef},
    table_page::{FreeList, TablePage, TableStore},
};
use bitmap::Bitmap;
use invalidate::Invalidations;
use stage2::{Config, Entry, Stage2};

pub(crate) use fault::Outcome;
pub(crate) use guest::{GuestAccess, View};
pub(crate) use slots::Region;
pub(crate) use stage2::Access;

/// What memory needs of the rest of the VM.
pub(crate) trait Remote: Send + Sync + 'static {
    /// Makes every vCPU leave its guest section and drop cached translations before it enters
    /// again; returns when none can use a stale one.
    ///
    /// Called without spinlocks of ours, but in notifiers with locks of the memory management held:
    /// must not sleep. What was changed before the call is visible to a vCPU that
    /// the call finds outside a guest section once that enters one (the caller has a full barrier).
    fn flush_tlb_all(&self);

    /// Returns when every vCPU has been out of its guest section: what its processor has logged there
    /// is in the dirty log. As for [`Remote::flush_tlb_all`].
    fn leave_guests(&self);

    /// Host memory is about to be mapped: guests must find in it what the host has written, whatever
    /// their caches do. `phys` and `bytes` are of a leaf. May sleep.
    fn prepare_memory(&self, phys: u64, bytes: u64);
}

/// A slot with its dirty log.
pub(crate) type Slot = slots::Slot<Option<Arc<Bitmap>>>;
/// The slots of a VM.
pub(crate) type SlotSet = slots::Slots<Option<Arc<Bitmap>>>;
/// A vCPU's supply of table pages, for [`Memory::fault`].
pub(crate) type TableCache = stage2::Cache<TablePage>;

/// The guest memory of a VM.
///
/// Bound to the address space that was current when it was made. All methods but the notifier's
/// callbacks are for tasks of that address space ([`Memory::mm_is_current`]).
#[pin_data]
pub(crate) struct Memory<E: Entry, R: Remote> {
    #[pin]
    shadow: Notifier<Shadow<E, R>>,
    /// Serialises changes of slots and the dirty log. Taken before all other locks of this room.
    #[pin]
    writer: Mutex<Writer>,
}

/// What the host's notifications act on.
#[pin_data]
struct Shadow<E: Entry, R: Remote> {
    remote: R,
    config: Config,
    root: u64,
    #[pin]
    slots: SrcuCell<SlotSet>,
    #[pin]
    mmu: RwLock<Mmu<E>>,
    /// Number of changes by the host that have ended. Changed under the write lock.
    ends: AtomicU64,
    /// vCPUs' processors are to tell which pages they write ([`Config::logs_writes`]), from each one's
    /// next section on. Changed with the writer's lock held.
    logging: AtomicBool,
    /// `Mmu::changes` up to which processors are known to have flushed.
    flushed: AtomicU64,
}

/// Protected by `Shadow::mmu`.
struct Mmu<E: Entry> {
    tree: Stage2<E, TableStore>,
    invalidations: Invalidations,
    /// Number of changes that took something away: each needs a flush.
    changes: u64,
    /// A slot whose translations may still be in the tree though it has left the set.
    leaving: Option<Slot>,
}

/// Protected by `Memory::writer`.
struct Writer {
    /// Equal to the published set, to make the next one from. `None` if it has to be copied.
    spare: Option<KBox<SlotSet>>,
}

/// How many pages are worked on before others get the lock.
const CHUNK_PAGES: u64 = 1 << 18;

/// The pieces of `range`, at multiples of [`CHUNK_PAGES`].
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        let end = ((at / CHUNK_PAGES + 1) * CHUNK_PAGES).min(range.end);
        let chunk = at..end;
        at = end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl<E: Entry, R: Remote> Memory<E, R> {
    /// Memory without slots, bound to the current address space.
    ///
    /// `ESRCH` without an address space, `EINVAL` for a tree that cannot be, `ENOMEM`; `EINTR` if a
    /// signal comes while the notifier is registered.
    pub(crate) fn new(remote: R, config: Config) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            shadow <- Notifier::new(Shadow::new(remote, config)),
            writer <- new_mutex!(Writer { spare: None }),
        })
    }

    /// Whether the current task may use this memory: else ioctls fail with `EIO`.
    #[inline]
    pub(crate) fn mm_is_current(&self) -> bool {
        mm::is_current(self.shadow.mm())
    }

    /// Physical address of the root of the translation tree; the same for the life of the VM.
    #[inline]
    pub(crate) fn root(&self) -> u64 {
        self.shadow.root
    }

    /// The tree's shape.
    #[inline]
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn config(&self) -> Config {
        self.shadow.config
    }

    /// vCPUs' processors are to log what they write, in a section that begins now with a [`View`] that was
    /// had before. At its end each calls [`View::written`].
    #[inline]
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn logs_writes(&self) -> bool {
        self.shadow.logging.load(Ordering::Relaxed)
    }

    /// Starts a read section of the slot set.
    ///
    /// Not to be held over anything that may wait for [`Memory::set_region`], nor for long: that
    /// waits for it.
    #[inline]
    pub(crate) fn read(&self) -> View<'_> {
        View::new(self.shadow.slots.read())
    }
}

impl<E: Entry, R: Remote> Shadow<E, R> {
    fn new(remote: R, config: Config) -> impl PinInit<Self, Error> {
        let tree = Self::tree(config);
        pin_init::pin_init_scope(move || {
            let tree = tree?;
            let slots = KBox::new(SlotSet::new(), GFP_KERNEL_ACCOUNT)?;
            Ok(try_pin_init!(Self {
                remote,
                config,
                root: tree.root(),
                slots <- SrcuCell::new(slots),
                mmu <- RwLock::new(Mmu {
                    tree,
                    invalidations: Invalidations::new(),
                    changes: 0,
                    leaving: None,
                }),
                ends: AtomicU64::new(0),
                logging: AtomicBool::new(false),
                flushed: AtomicU64::new(0),
            }))
        })
    }

    /// An empty tree.
    fn tree(config: Config) -> Result<Stage2<E, TableStore>> {
        if !Stage2::<E, TableStore>::is_valid(&config) {
            return Err(EINVAL);
        }
        let root = table_page::<E>(
            Stage2::<E, TableStore>::root_bits(&config),
            config.levels - 1,
        )?;
        Ok(Stage2::new(TableStore::new()?, root, config))
    }

    /// First guest frame that the VM cannot have.
    fn end_gfn(&self) -> u64 {
        1 << (self.config.gpa_bits - E::PAGE_SHIFT)
    }

    /// Fills a cache. May sleep.
    fn top_up(&self, cache: &mut TableCache) -> Result {
        cache.fill(self.config.levels, |level| {
            table_page::<E>(E::index_bits(level), level)
        })
    }

    /// Unmaps guest frames, waits until no processor uses them, and frees what is left over. Sleeps.
    fn unmap(&self, gfns: Range<u64>) {
        let mut freed = FreeList::new();
        let mut last = 0;
        for chunk in chunks(gfns) {
            let mut mmu = self.mmu.write();
            let changed = mmu.tree.zap(chunk, &mut |page| freed.push(page));
            last = mmu.changed(changed);
        }
        self.settle(last);
    }

    /// Unmaps everything, in one step: for the end, when nobody waits for the lock. Takes as long as the
    /// tree is large, not as the guest's address space is.
    fn unmap_all(&self) {
        let mut freed = FreeList::new();
        let mut mmu = self.mmu.write();
        let changed = mmu
            .tree
            .zap(0..self.end_gfn(), &mut |page| freed.push(page));
        let last = mmu.changed(changed);
        drop(mmu);
        self.settle(last);
    }

    /// Returns when every processor has dropped the translations that were taken away up to `change`.
    fn settle(&self, change: u64) {
        if self.flushed.load(Ordering::Acquire) >= change {
            return;
        }
        // The entries are changed before the flush looks at who runs.
        fence(Ordering::SeqCst);
        self.remote.flush_tlb_all();
        self.flushed.fetch_max(change, Ordering::AcqRel);
    }
}

impl<E: Entry> Mmu<E> {
    /// Notes whether translations were taken away; returns what to settle before the lock's holder
    /// may rely on it.
    fn changed(&mut self, changed: bool) -> u64 {
        self.changes += u64::from(changed);
        self.changes
    }
}

/// A table of `1 << bits` entries for `level`.
fn table_page<E: Entry>(bits: u32, level: u32) -> Result<TablePage> {
    // Entries are of eight bytes.
    TablePage::new((bits + 3).saturating_sub(E::PAGE_SHIFT), E::empty(level))
}

/// A read section of the slot set.
type SlotsRef<'a> = SrcuRef<'a, SlotSet>;
