// SPDX-License-Identifier: GPL-2.0

//! `KVM_SET_CPUID2`, `KVM_GET_CPUID2`, `KVM_GET_SUPPORTED_CPUID`.

use super::super::{
    args::regs as args,
    backend::{Backend, HwVcpu},
    host::{cpuid, Host},
    model::cpuid::{dynamic, CpuidTable, Entry, GuestFeatures, MAX_ENTRIES},
    run,
    vcpu::Vcpu,
    X86,
};
use crate::{abi::user, bindings as rb, family::Ctx, host::trace};
use kernel::{alloc::KVVec, prelude::*};

/// Header of `kvm_cpuid2`: count and padding.
type Header = [u32; 2];

/// `KVM_SET_CPUID2`
///
/// # Errors
/// `E2BIG`: more than 256 entries. `EINVAL`: refused as a whole, or the vCPU has run and the entries
/// differ. `EFAULT`, `ENOMEM`.
pub(super) fn set<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, arg: usize) -> Result<isize> {
    let [n, _]: Header = user::get(arg)?;
    let n = n as usize;
    if n > MAX_ENTRIES {
        return Err(trace::refuse(E2BIG, c"at most 256 CPUID entries"));
    }
    let raw = user::get_array::<Header, rb::kvm_cpuid_entry2>(arg, n)?;
    let mut entries = KVVec::with_capacity(n, GFP_KERNEL_ACCOUNT)?;
    for e in raw.iter() {
        entries.push(args::from_cpuid_entry(e), GFP_KERNEL_ACCOUNT)?;
    }
    CpuidTable::sort(&mut entries);
    if ctx.vcpu.has_run {
        // Once it has run, user space may set the same again, and nothing else.
        let old = CpuidTable::new(&ctx.vcpu.cpuid);
        return if old.same(
            &CpuidTable::new(&entries),
            &ctx.vcpu.dynamic(&ctx.vm.family),
        ) {
            Ok(0)
        } else {
            Err(trace::refuse(
                EINVAL,
                c"CPUID cannot change once the vCPU has run",
            ))
        };
    }
    let host = ctx.vm.family.host;
    let features = GuestFeatures::derive(&CpuidTable::new(&entries), &host.supported)
        .map_err(|_| trace::refuse(EINVAL, c"linear addresses have 48 or 57 bits"))?;
    let v = &mut *ctx.vcpu;
    v.cpuid = entries;
    v.features = features;
    let effect = v.lapic.set_features(Vcpu::<B>::lapic_features(&v.features));
    v.hw.flush_tlb();
    run::apply(ctx, effect);
    Ok(0)
}

/// `KVM_GET_CPUID2`
///
/// # Errors
/// `E2BIG` when the array is too small. `EFAULT`.
pub(super) fn get<B: Backend>(ctx: &Ctx<'_, X86<B>>, arg: usize) -> Result<isize> {
    let v = &*ctx.vcpu;
    let [room, pad]: Header = user::get(arg)?;
    let needed = u32::try_from(v.cpuid.len()).map_err(|_| E2BIG)?;
    if room < needed {
        return Err(trace::refuse(E2BIG, c"the array is too small"));
    }
    let d = v.dynamic(&ctx.vm.family);
    for (i, e) in v.cpuid.iter().enumerate() {
        let now = Entry {
            regs: dynamic(e, &d),
            ..*e
        };
        user::put(
            user::element::<Header, rb::kvm_cpuid_entry2>(arg, i)?,
            &args::cpuid_entry(&now),
        )?;
    }
    user::put(arg, &[needed, pad])?;
    Ok(0)
}

/// `KVM_GET_SUPPORTED_CPUID`
///
/// # Errors
/// `E2BIG` when the array is too small. `EFAULT`.
pub(super) fn supported(arg: usize) -> Result<isize> {
    let [room, pad]: Header = user::get(arg)?;
    let room = (room as usize).min(MAX_ENTRIES);
    let mut n = 0usize;
    Host::get()?.supported.emit(cpuid, |e| {
        if n >= room {
            return Err(trace::refuse(E2BIG, c"the array is too small"));
        }
        user::put(
            user::element::<Header, rb::kvm_cpuid_entry2>(arg, n)?,
            &args::cpuid_entry(&e),
        )?;
        n += 1;
        Ok(())
    })?;
    let n = u32::try_from(n).map_err(|_| E2BIG)?;
    user::put(arg, &[n, pad])?;
    Ok(0)
}
