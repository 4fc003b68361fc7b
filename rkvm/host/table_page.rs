// SPDX-License-Identifier: GPL-2.0

//! Pages that hold second-stage page tables.

use core::{
    mem::ManuallyDrop,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};
use kernel::{bindings as kbindings, prelude::*};

use crate::{bindings, memory::stage2};

/// Largest allocation order of a table: four pages (s390's region tables, arm64's concatenated roots
/// need up to sixteen).
const MAX_ORDER: u32 = 4;

/// `1 << order` pages that hold one table, charged to the current memory cgroup and counted as
/// secondary page tables.
///
/// # Invariants
///
/// The pages are owned by this value, and `page->private` is no store's token.
pub(crate) struct TablePage {
    page: NonNull<kbindings::page>,
    order: u32,
}

// SAFETY: Ownership of pages is not bound to a thread.
unsafe impl Send for TablePage {}
// SAFETY: `&TablePage` gives nothing but addresses.
unsafe impl Sync for TablePage {}

impl TablePage {
    /// Allocates a table of `1 << order` pages in which every entry is `empty`. May sleep.
    pub(crate) fn new(order: u32, empty: u64) -> Result<Self> {
        if order > MAX_ORDER {
            return Err(EINVAL);
        }
        // SAFETY: Allocation has no preconditions but that the context may sleep.
        let page = NonNull::new(unsafe { bindings::rkvm_table_alloc(order) }).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated, and zeroed `private`.
        // SAFETY: The page is ours.
        unsafe { bindings::rkvm_table_set_private(page.as_ptr(), 0) };
        let table = Self { page, order };
        if empty != 0 {
            // SAFETY: The pages are ours and mapped in the kernel's direct map.
            let at = unsafe { bindings::rkvm_mm_page_address(page.as_ptr()) };
            let at: *mut AtomicU64 = at.cast();
            // SAFETY: As long as the allocation, zeroed by it, and shared with nobody.
            for entry in unsafe { core::slice::from_raw_parts(at, entries(order)) } {
                entry.store(empty, Ordering::Relaxed);
            }
        }
        Ok(table)
    }

    /// Physical address; aligned to the size.
    pub(crate) fn phys(&self) -> u64 {
        // SAFETY: The page is ours.
        unsafe { bindings::rkvm_table_phys(self.page.as_ptr()) }
    }
}

impl Drop for TablePage {
    fn drop(&mut self) {
        // SAFETY: By the invariant the pages are ours and in no store.
        unsafe { bindings::rkvm_table_free(self.page.as_ptr(), self.order) };
    }
}

fn entries(order: u32) -> usize {
    (kernel::page::PAGE_SIZE << order) / size_of::<u64>()
}

/// The tables of one tree, found by physical address.
///
/// A page belongs to a store if its `page->private` holds the store's token, which is unlike any
/// value that other users of that field have: the address of an allocation of our own, made odd. So
/// an address that is not a table of this store, wherever it comes from, is recognised and never
/// followed.
pub(crate) struct TableStore {
    anchor: KBox<Anchor>,
}

/// An allocation for the sake of its address, whose alignment leaves a token's bits 1 to 4 to the
/// order of the table.
#[repr(align(64))]
struct Anchor(#[expect(dead_code, reason = "not of size zero, for an address of its own")] u64);

/// Bits of a token that hold the order.
const ORDER_SHIFT: usize = 1;
const ORDER_MASK: usize = 0x1e;

impl TableStore {
    /// An empty store.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            anchor: KBox::new(Anchor(0), GFP_KERNEL_ACCOUNT)?,
        })
    }

    fn token(&self) -> usize {
        ptr::from_ref(&*self.anchor).addr() | 1
    }

    /// The address and order of the table at `phys`.
    #[inline]
    fn find(&self, phys: u64) -> Option<(NonNull<AtomicU64>, u32)> {
        // SAFETY: Any address and token may be asked for.
        let found = unsafe { bindings::rkvm_table_find(phys, self.token(), ORDER_MASK) };
        let order = (found & ORDER_MASK) >> ORDER_SHIFT;
        // The table is in the kernel's direct map, which C code has given us the address of.
        let at = ptr::with_exposed_provenance_mut(found & !ORDER_MASK);
        Some((NonNull::new(at)?, order as u32))
    }
}

impl stage2::Tables for TableStore {
    type Page = TablePage;

    fn phys(page: &TablePage) -> u64 {
        page.phys()
    }

    #[inline]
    fn get(&self, phys: u64) -> Option<&[AtomicU64]> {
        let (at, order) = self.find(phys)?;
        // SAFETY: The page carries our token, so it was adopted and not released: it is a table of
        // this order. `release` takes `&mut self`, so it stays one while `self` is borrowed. Entries
        // are only ever accessed as atomics (and by hardware).
        Some(unsafe { core::slice::from_raw_parts(at.as_ptr(), entries(order)) })
    }

    fn adopt(&self, page: TablePage) {
        let page = ManuallyDrop::new(page);
        let token = self.token() | (page.order as usize) << ORDER_SHIFT;
        // SAFETY: The page is ours. It now belongs to the store.
        unsafe { bindings::rkvm_table_set_private(page.page.as_ptr(), token) };
    }

    fn release(&mut self, phys: u64) -> Option<TablePage> {
        let (_, order) = self.find(phys)?;
        // SAFETY: `find` has seen that this is the address of a page.
        let page = NonNull::new(unsafe { bindings::rkvm_table_page(phys) })?;
        // SAFETY: The store owns the page, and `&mut self` says that nobody refers to its entries.
        unsafe { bindings::rkvm_table_set_private(page.as_ptr(), 0) };
        // INVARIANT: Ownership moves from the store to the value.
        Some(TablePage { page, order })
    }
}

/// Table pages on their way to the allocator; taking one in needs no memory.
///
/// # Invariants
///
/// A link (`head`, and the `private` of each page of the list) is 0 at the end, or else the physical
/// address of a page that the list owns, with the page's order in bits 1 to 4.
pub(crate) struct FreeList {
    head: usize,
}

impl FreeList {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self { head: 0 }
    }

    /// Adds a page.
    pub(crate) fn push(&mut self, page: TablePage) {
        let link = page.phys() as usize | (page.order as usize) << ORDER_SHIFT;
        let page = ManuallyDrop::new(page);
        // INVARIANT: The list owns the page now. A link is even, so it is no store's token.
        // SAFETY: The page is ours.
        unsafe { bindings::rkvm_table_set_private(page.page.as_ptr(), self.head) };
        self.head = link;
    }
}

impl Drop for FreeList {
    fn drop(&mut self) {
        while self.head != 0 {
            let order = ((self.head & ORDER_MASK) >> ORDER_SHIFT) as u32;
            // SAFETY: By the invariant this is the address of a page of the list.
            let page = unsafe { bindings::rkvm_table_page((self.head & !ORDER_MASK) as u64) };
            // SAFETY: As above; the list owns the page.
            self.head = unsafe { bindings::rkvm_table_private(page) };
            // SAFETY: The list owns the page, and has just let it go.
            unsafe { bindings::rkvm_table_free(page, order) };
        }
    }
}
