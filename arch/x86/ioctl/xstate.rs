// SPDX-License-Identifier: GPL-2.0

//! FPU and extended state.

use super::super::{
    backend::Backend,
    model::{sregs, xstate as model},
    vcpu::Vcpu,
};
use crate::{abi::user, bindings as rb, host::trace};
use kernel::{
    alloc::KVVec,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// MXCSR bits that exist on every processor with SSE2 (FXSAVE's MXCSR_MASK).
const MXCSR_MASK: u32 = 0xffff;

/// XCR0 with x87 alone
const XCR0_X87: u64 = 1;

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
    let mut out: rb::kvm_fpu = user::zeroed();
    out.fpr = f.fpr;
    out.fcw = f.fcw;
    out.fsw = f.fsw;
    out.ftwx = f.ftwx;
    out.last_opcode = f.last_opcode;
    out.last_ip = f.last_ip;
    out.last_dp = f.last_dp;
    out.xmm = f.xmm;
    out.mxcsr = f.mxcsr;
    Ok(out)
}

/// `KVM_SET_FPU`
///
/// # Errors
/// `EINVAL`: reserved bits of MXCSR.
pub(super) fn set_fpu<B: Backend>(v: &mut Vcpu<B>, f: &rb::kvm_fpu) -> Result {
    let new = model::Fpu {
        fpr: f.fpr,
        fcw: f.fcw,
        fsw: f.fsw,
        ftwx: f.ftwx,
        last_opcode: f.last_opcode,
        last_ip: f.last_ip,
        last_dp: f.last_dp,
        xmm: f.xmm,
        mxcsr: f.mxcsr,
    };
    let mut area = KVVec::new();
    area.extend_from_slice(v.fpu.bytes(), GFP_KERNEL_ACCOUNT)?;
    new.store(&mut area, MXCSR_MASK)
        .map_err(|_| trace::refuse(EINVAL, c"MXCSR has reserved bits set"))?;
    v.fpu.set_bytes(&area);
    Ok(())
}

/// `KVM_GET_XCRS`
pub(super) fn get_xcrs<B: Backend>(v: &Vcpu<B>) -> rb::kvm_xcrs {
    let mut x: rb::kvm_xcrs = user::zeroed();
    x.nr_xcrs = 1;
    x.xcrs[0].value = v.fpu.xcr0();
    x
}

/// `KVM_SET_XCRS`
///
/// # Errors
/// `EINVAL`: flags, too many, or a value that the guest's CPUID does not allow.
pub(super) fn set_xcrs<B: Backend>(v: &mut Vcpu<B>, x: &rb::kvm_xcrs) -> Result {
    let n = x.nr_xcrs as usize;
    if x.flags != 0 || n > x.xcrs.len() {
        return Err(trace::refuse(EINVAL, c"flags or count of KVM_SET_XCRS"));
    }
    if let Some(x0) = x.xcrs.iter().take(n).find(|x| x.xcr == 0) {
        // x87 alone is what XCR0 is after reset, of a guest without XSAVE too.
        if x0.value != XCR0_X87 {
            sregs::xsetbv(0, x0.value, &v.features)
                .map_err(|_| trace::refuse(EINVAL, c"XCR0 is not within the guest's CPUID"))?;
        }
        v.fpu.set_xcr0(x0.value)?;
    }
    Ok(())
}
