/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/hw_page.rs. */
#ifndef RKVM_HELPERS_HW_H
#define RKVM_HELPERS_HW_H

#include <linux/types.h>

/* Zeroed, physically contiguous pages, charged to the memory cgroup; NULL when there are none. */
void *rkvm_alloc_contiguous(size_t size);
void rkvm_free_contiguous(void *p, size_t size);
/* Physical address of something in the linear mapping. */
u64 rkvm_phys(const void *p);

#endif
