// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/hw_page.rs: pages known to hardware by physical address. */

#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>

#include "helpers_hw.h"

void *rkvm_alloc_contiguous(size_t size)
{
	return alloc_pages_exact(size, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
}

void rkvm_free_contiguous(void *p, size_t size)
{
	free_pages_exact(p, size);
}

u64 rkvm_phys(const void *p)
{
	return virt_to_phys((void *)p);
}
