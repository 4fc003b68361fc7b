// SPDX-License-Identifier: GPL-2.0
/* C helpers of rkvm/host/: thin wrappers of kernel macros and inlines, no logic of their own. */

#include <linux/mm.h>

#include "helpers_core.h"

unsigned long rkvm_page_address(struct page *page)
{
	return (unsigned long)page_address(page);
}
