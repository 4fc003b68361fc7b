/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/: what the kernel offers only as macros or inline functions. */
#ifndef RKVM_HELPERS_CORE_H
#define RKVM_HELPERS_CORE_H

#include <linux/types.h>

struct page;
struct file_operations;
struct mm_struct;

unsigned long rkvm_page_address(struct page *page);

#endif
