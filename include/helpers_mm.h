/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/ for memory: locks, table pages, host pages, user memory. */
#ifndef RKVM_HELPERS_MM_H
#define RKVM_HELPERS_MM_H

#include <linux/types.h>

struct page;
struct mm_struct;

/* rwlock_t, by its address. */
void rkvm_rwlock_init(void *lock);
void rkvm_read_lock(void *lock);
int rkvm_read_trylock(void *lock);
void rkvm_read_unlock(void *lock);
void rkvm_write_lock(void *lock);
void rkvm_write_unlock(void *lock);

/* Table pages: zeroed, charged to the memory cgroup, counted as secondary page tables. */
struct page *rkvm_table_alloc(unsigned int order);
void rkvm_table_free(struct page *page, unsigned int order);
u64 rkvm_table_phys(struct page *page);
void rkvm_table_set_private(struct page *page, unsigned long value);
unsigned long rkvm_table_private(struct page *page);
struct page *rkvm_table_page(u64 phys);
/*
 * The address of the table at phys if its page's private is token with any of the bits in extra,
 * together with those bits, which must be below the page size; else 0. Any phys may be asked for.
 */
unsigned long rkvm_table_find(u64 phys, unsigned long token, unsigned long extra);

/* Host pages. */
u64 rkvm_page_pfn(struct page *page);
void *rkvm_mm_page_address(struct page *page);
void rkvm_put_page(struct page *page);
void rkvm_page_set_dirty(struct page *page);
void rkvm_page_set_accessed(struct page *page);
/* log2 of the size at which current->mm maps a user address, or 0 if it does not. */
unsigned int rkvm_mapping_shift(unsigned long address);
/* 0 cached, 1 write-combining, 2 uncached. */
unsigned int rkvm_pgprot_type(u64 prot);
void rkvm_sigbus_hwpoison(unsigned long address);

/* User memory without sleeping: the number of bytes not copied. */
int rkvm_access_ok(unsigned long address, unsigned long size);
unsigned long rkvm_untagged_addr(unsigned long address);
unsigned long rkvm_read_user_nofault(void *to, unsigned long from, unsigned long size);
long rkvm_write_user_nofault(unsigned long to, const void *from, unsigned long size);

#endif
