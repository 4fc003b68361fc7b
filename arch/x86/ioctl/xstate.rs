// SPDX-License-Identifier: GPL-2.0

//! FPU and extended state.

use super::super::{
    args::regs as args, backend::Backend, insn, model::xstate as model, vcpu::Vcpu,
};
use crate::{bindings as rb, host::trace};
use kernel::{
    alloc::KVVec,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// MXCSR bits that exist on every processor with SSE2 (FXSAVE's MXCSR_MASK).
const MXCSR_MASK: u32 = 0xffff;

/// `KVM_GET_XSAVE`, `KVM_GET_XSAVE2`: at most `limit` bytes.
pub(super) fn get<B: Backend>(v: &mut Vcpu<B>, arg: usize, limit: usize) -> Result<isize> {
    let bytes = v.fpu.bytes();
    let n = bytes.len().min(limit);
    let bytes = bytes.get(..n).ok_or(EIO)?;
    UserSlice::new(UserPtr::from_addr(arg), n)
        .writer()
        .write_slice(bytes)?;
    Ok(0)
}

/// `KVM_SET_XSAVE`
///
/// # Errors
/// `EINVAL`: components that the host does not offer, or a malformed header or MXCSR. `EFAULT`.
pub(super) fn set<B: Backend>(v: &mut Vcpu<B>, arg: usize) -> Result<isize> {
    let mut data = KVVec::new();
    let size = v.fpu.bytes().len();
    UserSlice::new(UserPtr::from_addr(arg), size).read_all(&mut data, GFP_KERNEL_ACCOUNT)?;
    model::validate(&data, v.host.supported.xcr0, MXCSR_MASK)
        .map_err(|_| trace::refuse(EINVAL, c"malformed XSAVE area"))?;
    v.fpu.set_bytes(&data);
    Ok(0)
}

/// `KVM_GET_FPU`
pub(super) fn get_fpu<B: Backend>(v: &mut Vcpu<B>) -> Result<rb::kvm_fpu> {
    let f = model::Fpu::from_area(v.fpu.bytes()).map_err(|_| EIO)?;
    Ok(args::fpu(&f))
}

/// `KVM_SET_FPU`
///
/// # Errors
/// `EINVAL`: reserved bits of MXCSR.
pub(super) fn set_fpu<B: Backend>(v: &mut Vcpu<B>, f: &rb::kvm_fpu) -> Result {
    let mut area = KVVec::new();
    area.extend_from_slice(v.fpu.bytes(), GFP_KERNEL_ACCOUNT)?;
    args::from_fpu(f)
        .store(&mut area, MXCSR_MASK)
        .map_err(|_| trace::refuse(EINVAL, c"MXCSR has reserved bits set"))?;
    v.fpu.set_bytes(&area);
    Ok(())
}

/// `KVM_GET_XCRS`: none, where the host's processor has none.
pub(super) fn get_xcrs<B: Backend>(v: &Vcpu<B>) -> rb::kvm_xcrs {
    args::xcrs(insn::osxsave().then(|| v.fpu.xcr0()))
}

/// `KVM_SET_XCRS`
///
/// # Errors
/// `EINVAL`: flags, too many, a value that the guest's CPUID does not allow, or no such registers here.
pub(super) fn set_xcrs<B: Backend>(v: &mut Vcpu<B>, x: &rb::kvm_xcrs) -> Result {
    if !insn::osxsave() {
        return Err(trace::invalid(c"this processor has no XSAVE"));
    }
    if let Some(xcr0) = args::xcr0(x, &v.features).map_err(trace::invalid)? {
        v.fpu
            .set_xcr0(xcr0)
            .map_err(|_| trace::invalid(c"the processor refuses this XCR0"))?;
    }
    Ok(())
}
