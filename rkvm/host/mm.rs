// SPDX-License-Identifier: GPL-2.0

//! The host's memory management: user pages, how they are mapped, and news about both.

use core::{
    ops::{Deref, Range},
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering},
};
use kernel::{
    bindings as kbindings,
    error::{code::*, to_result},
    mm::{Mm, MmWithUser},
    prelude::*,
    sync::aref::ARef,
    types::Opaque,
};

use crate::{bindings, memory::stage2::MemoryType};

/// What listens to changes of an address space.
///
/// The callbacks run in contexts of many kinds, with locks of the memory management held: they must
/// not sleep, allocate, or touch user memory. Interrupts are on.
pub(crate) trait NotifierOps: Send + Sync {
    /// The host is about to change the mappings of `range` (user addresses): nothing may use the
    /// pages from the return of this call, nor get hold of them before [`NotifierOps::invalidate_end`].
    fn invalidate_start(&self, range: Range<usize>);

    /// The change that `invalidate_start` announced is over. Calls for overlapping ranges may interleave.
    fn invalidate_end(&self, range: Range<usize>);

    /// Whether any page of `range` has been used since it was last cleared; clears that if `clear`.
    fn age(&self, range: Range<usize>, clear: bool) -> bool;

    /// The address space is going away.
    fn release(&self);
}

/// A listener, registered from construction to drop with the address space that was current then.
///
/// # Invariants
///
/// `notifier` is registered with `mm`, and `ops` outlives the registration.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: NotifierOps> {
    #[pin]
    ops: T,
    mm: ARef<Mm>,
    #[pin]
    notifier: Opaque<kbindings::mmu_notifier>,
}

// SAFETY: Registration is not bound to a thread.
unsafe impl<T: NotifierOps> Send for Notifier<T> {}
// SAFETY: `&Notifier` gives `&T`, which is `Sync`.
unsafe impl<T: NotifierOps> Sync for Notifier<T> {}

impl<T: NotifierOps> Notifier<T> {
    const OPS: kbindings::mmu_notifier_ops = kbindings::mmu_notifier_ops {
        release: Some(Self::release),
        clear_flush_young: Some(Self::clear_young),
        clear_young: Some(Self::clear_young),
        test_young: Some(Self::test_young),
        invalidate_range_start: Some(Self::invalidate_range_start),
        invalidate_range_end: Some(Self::invalidate_range_end),
        arch_invalidate_secondary_tlbs: None,
        alloc_notifier: None,
        free_notifier: None,
    };

    /// Registers `ops`, to be made in place, with the current address space. `ESRCH` without one.
    pub(crate) fn new<E>(ops: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            ops <- ops,
            mm: current!().mm().map(|mm| ARef::from(&**mm)).ok_or(ESRCH)?,
            // The last field: once registered, callbacks come, and find the others initialised.
            notifier <- Opaque::try_ffi_init(|slot: *mut kbindings::mmu_notifier| {
                // SAFETY: `slot` is valid memory for the structure, of which zero is a valid value.
                unsafe { slot.write_bytes(0, 1) };
                // SAFETY: As above.
                unsafe { (*slot).ops = &Self::OPS };
                let mm = current!().mm().ok_or(ESRCH)?.as_raw();
                // SAFETY: The structure is pinned and stays registered until the drop of `self`.
                to_result(unsafe { kbindings::mmu_notifier_register(slot, mm) })
            }),
        } ? Error)
    }

    /// The address space.
    pub(crate) fn mm(&self) -> &Mm {
        &self.mm
    }

    /// # Safety
    ///
    /// `notifier` must be the field of a registered `Self`.
    unsafe fn ops<'a>(notifier: *mut kbindings::mmu_notifier) -> &'a T {
        let field: *mut Opaque<kbindings::mmu_notifier> = notifier.cast();
        // SAFETY: The caller says so. The registration, during which callbacks happen, lies within
        // the life of `ops`.
        unsafe { &(*kernel::container_of!(field, Self, notifier)).ops }
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn release(
        notifier: *mut kbindings::mmu_notifier,
        _mm: *mut kbindings::mm_struct,
    ) {
        // SAFETY: The kernel passes what was registered.
        unsafe { Self::ops(notifier) }.release();
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn clear_young(
        notifier: *mut kbindings::mmu_notifier,
        _mm: *mut kbindings::mm_struct,
        start: usize,
        end: usize,
    ) -> bool {
        // SAFETY: The kernel passes what was registered.
        unsafe { Self::ops(notifier) }.age(start..end, true)
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn test_young(
        notifier: *mut kbindings::mmu_notifier,
        _mm: *mut kbindings::mm_struct,
        address: usize,
    ) -> bool {
        // SAFETY: The kernel passes what was registered.
        unsafe { Self::ops(notifier) }.age(address..address.saturating_add(1), false)
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn invalidate_range_start(
        notifier: *mut kbindings::mmu_notifier,
        range: *const kbindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: The kernel passes a valid range for the duration of the call.
        let (start, end) = unsafe { ((*range).start, (*range).end) };
        // SAFETY: The kernel passes what was registered.
        unsafe { Self::ops(notifier) }.invalidate_start(start..end);
        0
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn invalidate_range_end(
        notifier: *mut kbindings::mmu_notifier,
        range: *const kbindings::mmu_notifier_range,
    ) {
        // SAFETY: The kernel passes a valid range for the duration of the call.
        let (start, end) = unsafe { ((*range).start, (*range).end) };
        // SAFETY: The kernel passes what was registered.
        unsafe { Self::ops(notifier) }.invalidate_end(start..end);
    }
}

impl<T: NotifierOps> Deref for Notifier<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.ops
    }
}

#[pinned_drop]
impl<T: NotifierOps> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the invariant it is registered with this mm, which we hold a reference of.
        // No callback runs after this returns.
        unsafe { kbindings::mmu_notifier_unregister(self.notifier.get(), self.mm.as_raw()) };
    }
}

/// Whether `mm` is the current task's.
#[inline]
pub(crate) fn is_current(mm: &Mm) -> bool {
    current!()
        .mm()
        .is_some_and(|current| core::ptr::eq(current.as_raw(), mm.as_raw()))
}

/// A reference to a page of the current address space.
///
/// # Invariants
///
/// Owns one reference of the page.
pub(crate) struct UserPage {
    page: NonNull<kbindings::page>,
}

impl UserPage {
    /// Looks the page at `address` up without sleeping; only finds what is mapped already.
    pub(crate) fn get_fast(address: usize, write: bool) -> Option<Self> {
        let flags = if write { kbindings::FOLL_WRITE } else { 0 };
        let mut page = core::ptr::null_mut();
        // SAFETY: Any address may be asked for; `page` has room for one pointer.
        let n = unsafe { kbindings::get_user_pages_fast_only(address, 1, flags, &mut page) };
        let page = NonNull::new(page).filter(|_| n == 1)?;
        // INVARIANT: One page was returned, with a reference.
        Some(Self { page })
    }

    /// Gets the page at `address`, faulting it in. May sleep; if `interruptible`, not longer than until
    /// a signal comes.
    ///
    /// `EINTR`/`EAGAIN`: a signal is pending. `EHWPOISON`: the page is broken. `EFAULT`: no page, or
    /// no permission.
    pub(crate) fn get(address: usize, write: bool, interruptible: bool) -> Result<Self> {
        let optional = |flag, on| if on { flag } else { 0 };
        let flags = kbindings::FOLL_HWPOISON
            | kbindings::FOLL_HONOR_NUMA_FAULT
            | optional(kbindings::FOLL_INTERRUPTIBLE, interruptible)
            | optional(kbindings::FOLL_WRITE, write);
        let mut page = core::ptr::null_mut();
        // SAFETY: Any address may be asked for; `page` has room for one pointer.
        let n = unsafe { kbindings::get_user_pages_unlocked(address, 1, &mut page, flags) };
        match n {
            1 => Ok(Self {
                // INVARIANT: One page was returned, with a reference.
                page: NonNull::new(page).ok_or(EFAULT)?,
            }),
            n if n < 0 => Err(Error::from_errno(n as c_int)),
            _ => Err(EFAULT),
        }
    }

    /// The page's frame number.
    #[inline]
    pub(crate) fn pfn(&self) -> u64 {
        // SAFETY: We have a reference.
        unsafe { bindings::rkvm_page_pfn(self.page.as_ptr()) }
    }

    /// Says that the page may be written behind the back of the host's page table.
    #[inline]
    pub(crate) fn set_dirty(&self) {
        // SAFETY: We have a reference.
        unsafe { bindings::rkvm_page_set_dirty(self.page.as_ptr()) };
    }

    /// Says that the page is in use.
    #[inline]
    pub(crate) fn set_accessed(&self) {
        // SAFETY: We have a reference.
        unsafe { bindings::rkvm_page_set_accessed(self.page.as_ptr()) };
    }

    /// Atomically replaces the `size` (1, 2, 4, 8) bytes at `offset`, which must be aligned to it,
    /// by `new` if they are `old`. Returns what was there.
    pub(crate) fn compare_exchange(
        &self,
        offset: usize,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<u64> {
        if offset.checked_rem(size) != Some(0) || offset >= kernel::page::PAGE_SIZE {
            return Err(EINVAL);
        }
        // SAFETY: We have a reference; no kernel that we run on has high memory.
        let base: *mut u8 = unsafe { bindings::rkvm_mm_page_address(self.page.as_ptr()) }.cast();
        if base.is_null() {
            return Err(EFAULT);
        }
        // SAFETY: Within the page.
        let at = unsafe { base.add(offset) };
        macro_rules! exchange {
            ($atomic:ty, $int:ty) => {{
                // SAFETY: Within the page, aligned, and alive as long as we have a reference.
                // Whoever else writes there is user space or the guest.
                let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
                let order = Ordering::SeqCst;
                // CAST: The upper part is not of the operand.
                match cell.compare_exchange(old as $int, new as $int, order, order) {
                    Ok(was) | Err(was) => Ok(u64::from(was)),
                }
            }};
        }
        match size {
            1 => exchange!(AtomicU8, u8),
            2 => exchange!(AtomicU16, u16),
            4 => exchange!(AtomicU32, u32),
            8 => exchange!(AtomicU64, u64),
            _ => Err(EINVAL),
        }
    }
}

impl Drop for UserPage {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: We have a reference and give it up.
        unsafe { bindings::rkvm_put_page(self.page.as_ptr()) };
    }
}

/// A frame that is mapped in user space but is not a page that can be referred to (device memory).
#[derive(Clone, Copy)]
pub(crate) struct UserFrame {
    /// Frame number.
    pub(crate) pfn: u64,
    /// User space may write.
    pub(crate) write: bool,
    /// How user space maps it.
    pub(crate) memory: MemoryType,
}

impl UserFrame {
    /// Finds the frame at `address` of the current address space, whose mapping must be one of raw
    /// frames. May sleep.
    ///
    /// Nothing holds the frame: the caller must use it under the notifier's protection only.
    pub(crate) fn of_current(address: usize, write: bool) -> Result<Self> {
        let task = current!();
        let mm: &MmWithUser = task.mm().ok_or(ESRCH)?;
        // `fixup_user_fault` may drop the lock: then the mapping is looked up again.
        for _ in 0..8 {
            let guard = mm.mmap_read_lock();
            let vma = guard.vma_lookup(address).ok_or(EFAULT)?;
            if vma.flags() & (kernel::mm::virt::flags::IO | kernel::mm::virt::flags::PFNMAP) == 0 {
                return Err(EFAULT);
            }
            let mut args = kbindings::follow_pfnmap_args {
                vma: vma.as_ptr(),
                address,
                ..Default::default()
            };
            // SAFETY: The mapping is locked.
            if unsafe { kbindings::follow_pfnmap_start(&mut args) } == 0 {
                #[allow(clippy::unnecessary_cast, reason = "not of this type on all families")]
                let bits = args.pgprot.pgprot as u64;
                let frame = Self {
                    pfn: args.pfn as u64,
                    write: args.writable,
                    // SAFETY: Plain arithmetic.
                    memory: match unsafe { bindings::rkvm_pgprot_type(bits) } {
                        0 => MemoryType::Normal,
                        1 => MemoryType::WriteCombining,
                        _ => MemoryType::Device,
                    },
                };
                // SAFETY: Ends what `follow_pfnmap_start` began.
                unsafe { kbindings::follow_pfnmap_end(&mut args) };
                return if write && !frame.write {
                    Err(EFAULT)
                } else {
                    Ok(frame)
                };
            }
            let flags = if write {
                kbindings::fault_flag_FAULT_FLAG_WRITE
            } else {
                0
            };
            let mut unlocked = false;
            // SAFETY: The mmap lock is held, and held again on return.
            to_result(unsafe {
                kbindings::fixup_user_fault(mm.as_raw(), address, flags, &mut unlocked)
            })?;
        }
        Err(EAGAIN)
    }
}

/// log2 of the size at which the current address space maps `address` now, or 0 if it does not.
#[inline]
pub(crate) fn mapping_shift(address: usize) -> u32 {
    // SAFETY: Any address may be asked for.
    unsafe { bindings::rkvm_mapping_shift(address) }
}

/// Sends the current task the signal for an access to a broken page.
pub(crate) fn signal_hwpoison(address: usize) {
    // SAFETY: No preconditions.
    unsafe { bindings::rkvm_sigbus_hwpoison(address) };
}

/// Whether the range is one that user space may have.
pub(crate) fn access_ok(address: usize, size: usize) -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::rkvm_access_ok(address, size) != 0 }
}

/// The address without the bits that hardware ignores.
pub(crate) fn untagged(address: usize) -> usize {
    // SAFETY: No preconditions.
    unsafe { bindings::rkvm_untagged_addr(address) }
}

/// Reads user memory without sleeping. `EFAULT` if a page is not there.
#[inline]
pub(crate) fn read_nofault(to: &mut [u8], from: usize) -> Result {
    // SAFETY: `to` is writable for its length; any address may be tried, and is checked.
    match unsafe { bindings::rkvm_read_user_nofault(to.as_mut_ptr().cast(), from, to.len()) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Writes user memory without sleeping. `EFAULT` if a page is not there, or not to be written.
#[inline]
pub(crate) fn write_nofault(to: usize, from: &[u8]) -> Result {
    // SAFETY: `from` is readable for its length; any address may be tried, and is checked.
    match unsafe { bindings::rkvm_write_user_nofault(to, from.as_ptr().cast(), from.len()) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}
