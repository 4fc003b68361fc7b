// SPDX-License-Identifier: GPL-2.0

//! Pages that user space maps and writes at any time: `kvm_run` and its neighbours.
//!
//! Never borrowed: values are copied in and out, each once, so that what was checked is what is used
//! (CVE-2021-29657 and its like are what happens else).

use super::trace;
use crate::bindings as rb;
use kernel::{
    alloc::flags::{GFP_KERNEL_ACCOUNT, __GFP_ZERO},
    mm::virt::VmaNew,
    page::{Page, PAGE_SIZE},
    prelude::*,
    transmute::{AsBytes, FromBytes},
};

/// One page shared with user space, zeroed when new.
///
/// # Invariants
/// `addr` is the kernel address of `page`, valid for `PAGE_SIZE` bytes as long as `page` lives.
pub(crate) struct SharedPage {
    page: Page,
    addr: usize,
}

impl SharedPage {
    /// A new page, charged to the caller's memory cgroup.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new() -> Result<Self> {
        let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        // SAFETY: The page is ours; it is no highmem page (GFP_KERNEL), so it has an address.
        let addr = unsafe { rb::rkvm_page_address(page.as_ptr()) };
        // INVARIANT: `addr` was just computed of `page`.
        Ok(Self {
            page,
            addr: addr as usize,
        })
    }

    /// The place of a `len`-byte item, if it lies in the page.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= PAGE_SIZE).then(|| (self.addr + offset) as *mut u8)
    }

    /// Copies a value out; zero where it would cross the page's end.
    #[inline]
    pub(crate) fn read<T: FromBytes + Copy + Default>(&self, offset: usize) -> T {
        match self.at(offset, core::mem::size_of::<T>()) {
            // SAFETY: Within the page by `at`; any bit pattern is a `T` (FromBytes); a racing write
            // by user space gives some mix of bytes, which a volatile read allows for.
            Some(p) if (p as usize) % core::mem::align_of::<T>() == 0 => unsafe {
                p.cast::<T>().read_volatile()
            },
            // SAFETY: As above, for places that are not aligned for `T`.
            Some(p) => unsafe { p.cast::<T>().read_unaligned() },
            None => T::default(),
        }
    }

    /// Copies a value in; does nothing where it would cross the page's end.
    #[inline]
    pub(crate) fn write<T: AsBytes + Copy>(&self, offset: usize, v: T) {
        match self.at(offset, core::mem::size_of::<T>()) {
            // SAFETY: Within the page by `at` and aligned.
            Some(p) if (p as usize) % core::mem::align_of::<T>() == 0 => unsafe {
                p.cast::<T>().write_volatile(v)
            },
            // SAFETY: As above, for places that are not aligned for `T`.
            Some(p) => unsafe { p.cast::<T>().write_unaligned(v) },
            None => {}
        }
    }

    /// Copies bytes out; what lies beyond the page's end is left as it was.
    pub(crate) fn read_bytes(&self, offset: usize, out: &mut [u8]) {
        if let Some(p) = self.at(offset, out.len()) {
            // SAFETY: Within the page by `at`; `out` is a distinct buffer.
            unsafe { core::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), out.len()) };
        }
    }

    /// Copies bytes in; does nothing where they would cross the page's end.
    pub(crate) fn write_bytes(&self, offset: usize, data: &[u8]) {
        if let Some(p) = self.at(offset, data.len()) {
            // SAFETY: Within the page by `at`; `data` is a distinct buffer.
            unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()) };
        }
    }

    /// Maps pages in order into a new VMA, from its first page on.
    ///
    /// # Errors
    /// `EINVAL` when the VMA reaches beyond the pages or is executable; else as `vm_insert_page`.
    pub(crate) fn map_all(pages: &[&SharedPage], vma: &VmaNew) -> Result {
        let len = vma.end() - vma.start();
        // SAFETY: The VMA is new and ours for the time of the call.
        let offset = unsafe { (*vma.as_ptr()).vm_pgoff };
        let count = len / PAGE_SIZE;
        let wanted = offset
            .checked_add(count)
            .and_then(|end| pages.get(offset..end))
            .ok_or_else(|| trace::invalid(c"a vCPU's mapping reaches beyond its pages"))?;
        if vma.executable() {
            return Err(trace::invalid(c"a vCPU's pages cannot be executed"));
        }
        vma.try_clear_mayexec()?;
        vma.set_dontexpand();
        let mixed = vma.set_mixedmap();
        for (i, p) in wanted.iter().enumerate() {
            mixed.vm_insert_page(vma.start() + i * PAGE_SIZE, &p.page)?;
        }
        Ok(())
    }
}
