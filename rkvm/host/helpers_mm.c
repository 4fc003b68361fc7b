// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/ for memory: thin wrappers of kernel macros and inlines. */

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>
#include <linux/vmstat.h>

#include "helpers_mm.h"

void rkvm_rwlock_init(void *lock)
{
	rwlock_init((rwlock_t *)lock);
}

void rkvm_read_lock(void *lock)
{
	read_lock((rwlock_t *)lock);
}

int rkvm_read_trylock(void *lock)
{
	return read_trylock((rwlock_t *)lock);
}

void rkvm_read_unlock(void *lock)
{
	read_unlock((rwlock_t *)lock);
}

void rkvm_write_lock(void *lock)
{
	write_lock((rwlock_t *)lock);
}

void rkvm_write_unlock(void *lock)
{
	write_unlock((rwlock_t *)lock);
}

struct page *rkvm_table_alloc(unsigned int order)
{
	struct page *page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, order);

	if (page)
		mod_lruvec_page_state(page, NR_SECONDARY_PAGETABLE, 1 << order);
	return page;
}

void rkvm_table_free(struct page *page, unsigned int order)
{
	mod_lruvec_page_state(page, NR_SECONDARY_PAGETABLE, -(1 << order));
	__free_pages(page, order);
}

u64 rkvm_table_phys(struct page *page)
{
	return page_to_phys(page);
}

void rkvm_table_set_private(struct page *page, unsigned long value)
{
	/* After the table's content. */
	smp_store_release(&page->private, value);
}

unsigned long rkvm_table_private(struct page *page)
{
	return page->private;
}

struct page *rkvm_table_page(u64 phys)
{
	return pfn_to_page(PHYS_PFN(phys));
}

unsigned long rkvm_table_find(u64 phys, unsigned long token, unsigned long extra)
{
	unsigned long pfn = PHYS_PFN(phys);
	unsigned long private;

	/*
	 * With a virtual memory map, the page structure of any address has an address of its own,
	 * though perhaps no memory: a load that may fault is quicker than to ask first.
	 */
	if (IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP) ? phys >> MAX_PHYSMEM_BITS : !pfn_valid(pfn))
		return 0;
	__get_kernel_nofault(&private, &pfn_to_page(pfn)->private, unsigned long, none);
	if (unlikely((private ^ token) & ~extra))
		return 0;
	return (unsigned long)__va(PFN_PHYS(pfn)) | (private & extra);
none:
	return 0;
}

u64 rkvm_page_pfn(struct page *page)
{
	return page_to_pfn(page);
}

void *rkvm_mm_page_address(struct page *page)
{
	return page_address(page);
}

void rkvm_put_page(struct page *page)
{
	put_page(page);
}

void rkvm_page_set_dirty(struct page *page)
{
	struct folio *folio = page_folio(page);

	/*
	 * The guest's writes leave no trace in the host's page table. A page of a file was made
	 * writable there by a write fault, which has set the dirty bit; it takes a notifier call to
	 * clear it. Anonymous memory can be writable and clean.
	 */
	if (folio_test_anon(folio) || folio_test_swapbacked(folio))
		folio_set_dirty(folio);
}

void rkvm_page_set_accessed(struct page *page)
{
	mark_page_accessed(page);
}

unsigned int rkvm_mapping_shift(unsigned long address)
{
	unsigned int shift = 0;
	unsigned long flags;
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t pmd;

	/* With interrupts off nobody can free these tables, as in get_user_pages_fast(). */
	local_irq_save(flags);
	pgdp = pgd_offset(current->mm, address);
	pgd = pgdp_get(pgdp);
	if (pgd_none(pgd))
		goto out;
	p4dp = p4d_offset_lockless(pgdp, pgd, address);
	p4d = p4dp_get(p4dp);
	if (p4d_none(p4d) || !p4d_present(p4d))
		goto out;
	pudp = pud_offset_lockless(p4dp, p4d, address);
	pud = pudp_get(pudp);
	if (pud_none(pud) || !pud_present(pud))
		goto out;
	if (pud_leaf(pud)) {
		shift = PUD_SHIFT;
		goto out;
	}
	pmd = pmdp_get_lockless(pmd_offset_lockless(pudp, pud, address));
	if (pmd_none(pmd) || !pmd_present(pmd))
		goto out;
	shift = pmd_leaf(pmd) ? PMD_SHIFT : PAGE_SHIFT;
out:
	local_irq_restore(flags);
	return shift;
}

unsigned int rkvm_pgprot_type(u64 prot)
{
	pgprot_t p = __pgprot(prot);

	/* Where the macro does nothing, the architecture's page tables say nothing about caches. */
	if (pgprot_val(pgprot_noncached(PAGE_KERNEL)) == pgprot_val(PAGE_KERNEL))
		return 0;
	if (pgprot_val(pgprot_noncached(p)) == prot)
		return 2;
	if (pgprot_val(pgprot_writecombine(p)) == prot)
		return 1;
	return 0;
}

void rkvm_sigbus_hwpoison(unsigned long address)
{
	send_sig_mceerr(BUS_MCEERR_AR, (void __user *)address, PAGE_SHIFT, current);
}

int rkvm_access_ok(unsigned long address, unsigned long size)
{
	return access_ok((void __user *)address, size);
}

unsigned long rkvm_untagged_addr(unsigned long address)
{
	return untagged_addr(address);
}

/* Loads the next of `size` bytes with one instruction. */
#define RKVM_GET(type) do {							\
		type value;							\
		unsafe_get_user(value, (type __user *)from, fault);		\
		put_unaligned(value, (type *)to);				\
		to += sizeof(type);						\
		from += sizeof(type);						\
	} while (0)

/* 1, 2, 4 and 8 bytes in one load: the guest may be writing them. */
unsigned long rkvm_read_user_nofault(void *to, unsigned long from, unsigned long size)
{
	unsigned long left = size, words;

	pagefault_disable();
	/* A page-table entry, or an instruction, is read sooner than the copy has checked its arguments. */
	if (size > 16) {
		if (access_ok((void __user *)from, size))
			left = __copy_from_user_inatomic(to, (void __user *)from, size);
		goto out;
	}
	if (!user_read_access_begin((void __user *)from, size))
		goto out;
	for (words = size / 8; words; words--)
		RKVM_GET(u64);
	if (size & 4)
		RKVM_GET(u32);
	if (size & 2)
		RKVM_GET(u16);
	if (size & 1)
		RKVM_GET(u8);
	left = 0;
fault:
	user_read_access_end();
out:
	pagefault_enable();
	return left;
}

long rkvm_write_user_nofault(unsigned long to, const void *from, unsigned long size)
{
	return copy_to_user_nofault((void __user *)to, from, size);
}
