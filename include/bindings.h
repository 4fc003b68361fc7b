/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: the KVM ABI, and kernel functions the kernel crate lacks. */
#include <linux/kvm.h>
#include <asm/svm.h>
#include <linux/anon_inodes.h>
#include <linux/eventfd.h>
