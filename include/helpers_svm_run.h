/* SPDX-License-Identifier: GPL-2.0 */
/* What the SVM entry code needs for one run, shared by assembly, C and (through bindgen) Rust. */
#ifndef RKVM_SVM_RUN_H
#define RKVM_SVM_RUN_H

/* Offsets in struct rkvm_svm_run. */
#define RKVM_SVM_RUN_VMCB 0
#define RKVM_SVM_RUN_HOST 8
#define RKVM_SVM_RUN_SPEC_GUEST 16
#define RKVM_SVM_RUN_SPEC_HOST 24
#define RKVM_SVM_RUN_FLAGS 32

/* The guest's SPEC_CTRL is switched by us, not by hardware. */
#define RKVM_SVM_SPEC_SWITCH 1
/* The guest can write SPEC_CTRL without an exit: read it back. */
#define RKVM_SVM_SPEC_DIRECT 2

#ifndef __ASSEMBLY__
#include <linux/types.h>

struct rkvm_svm_run {
	u64 vmcb;	/* physical address of the control block */
	u64 host;	/* physical address of what rkvm_svm_save_host() saved on this CPU */
	u64 spec_guest;
	u64 spec_host;
	u32 flags;	/* RKVM_SVM_SPEC_* */
};
#endif

#endif
