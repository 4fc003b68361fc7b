/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen turns into rkvm/bindings_generated.rs: the uapi of KVM and our own C helpers.
 * Types that the kernel crate already binds are blocked in Kbuild and taken from there.
 */
#ifndef RKVM_BINDINGS_H
#define RKVM_BINDINGS_H

#include <linux/kvm.h>
#include "helpers_core.h"
#include "helpers_hw.h"
#ifdef CONFIG_X86_64
#include "helpers_x86.h"
#endif
#ifdef CONFIG_ARM64
#include "helpers_arm64.h"
#endif
#include "helpers_trace.h"
#include "helpers_mm.h"
#include "helpers_irq.h"
#include "helpers_perf.h"

#endif
