/* SPDX-License-Identifier: GPL-2.0 */
/* What the SVM entry code needs for one run, shared by assembly, C and (through bindgen) Rust. */
#ifndef RKVM_SVM_RUN_H
#define RKVM_SVM_RUN_H

#include "guest_run_x86.h"

/* Offsets in struct rkvm_svm_run. */
#define RKVM_SVM_RUN_VMCB RKVM_SPEC_CTRL_SIZE
#define RKVM_SVM_RUN_HOST (RKVM_SPEC_CTRL_SIZE + 8)

#ifndef __ASSEMBLY__
struct rkvm_svm_run {
	struct rkvm_spec_ctrl spec;
	u64 vmcb;	/* physical address of the control block */
	u64 host;	/* physical address of what rkvm_svm_save_host() saved on this CPU */
};
#endif

#endif
