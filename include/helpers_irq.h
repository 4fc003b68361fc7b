/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers of rkvm/host/ for interrupts and I/O. */
#ifndef RKVM_HELPERS_IRQ_H
#define RKVM_HELPERS_IRQ_H

#include <linux/eventfd.h>
#include <linux/wait.h>

struct file;

/* What an eventfd's wake-up says, in the low bits of its key. */
enum rkvm_wake {
	RKVM_WAKE_IN = 0x01,
	RKVM_WAKE_HUP = 0x10,
};

void rkvm_wait_entry_init(struct wait_queue_entry *entry, wait_queue_func_t func);
int rkvm_eventfd_listen(struct file *file, struct wait_queue_entry *entry);

#endif
