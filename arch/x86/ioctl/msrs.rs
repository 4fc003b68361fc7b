// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_MSRS`, `KVM_SET_MSRS`, and the lists of MSRs.

use super::super::{backend::Backend, model::msr::Origin, msr::Done, run, X86};
use crate::{abi::user, bindings as rb, family::Ctx, host::trace};
use kernel::prelude::*;

/// Most entries of one call.
const MAX: u32 = 256;

/// Header of `kvm_msrs`: count and padding.
type Header = [u32; 2];

/// Goes through the entries of a `kvm_msrs` until `f` says no; returns how many it took. With
/// `read`, the values are copied back.
///
/// # Errors
/// `E2BIG`: 256 entries or more. `EFAULT`.
pub(super) fn transfer(
    arg: usize,
    read: bool,
    mut f: impl FnMut(u32, u64) -> Option<u64>,
) -> Result<isize> {
    let [n, _]: Header = user::get(arg)?;
    if n >= MAX {
        return Err(trace::refuse(E2BIG, c"at most 255 MSRs at once"));
    }
    let mut done = 0;
    for i in 0..n as usize {
        let at = user::element::<Header, rb::kvm_msr_entry>(arg, i)?;
        let mut e: rb::kvm_msr_entry = user::get(at)?;
        let Some(v) = f(e.index, e.data) else { break };
        if read {
            e.data = v;
            user::put(at, &e)?;
        }
        done += 1;
    }
    Ok(done)
}

/// One MSR for user space.
pub(super) fn get<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, index: u32) -> Option<u64> {
    let value = ctx.vcpu.read_msr(&ctx.vm.family, index, Origin::Host).ok();
    if value.is_none() {
        trace::guest_error(c"MSR not shown to user space; index", u64::from(index), 0);
    }
    value
}

/// One MSR from user space.
pub(super) fn set<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, index: u32, value: u64) -> Option<u64> {
    match ctx
        .vcpu
        .write_msr(&ctx.vm.family, index, value, Origin::Host)
    {
        Ok(Done::Done) => {}
        Ok(Done::Effect(e)) => {
            run::apply(ctx, e);
        }
        Err(_) => {
            trace::guest_error(
                c"MSR refused from user space; index, value",
                u64::from(index),
                value,
            );
            return None;
        }
    }
    Some(value)
}

/// Copies a list of MSR numbers out: `kvm_msr_list`.
///
/// # Errors
/// `E2BIG` when the array is too small; the count needed is in the header then. `EFAULT`.
pub(super) fn list(arg: usize, items: impl Iterator<Item = u32> + Clone) -> Result<isize> {
    let room: u32 = user::get(arg)?;
    let needed = u32::try_from(items.clone().count()).map_err(|_| E2BIG)?;
    user::put(arg, &needed)?;
    if room < needed {
        return Err(trace::refuse(E2BIG, c"the list is longer than the array"));
    }
    for (i, index) in items.enumerate() {
        user::put(user::element::<u32, u32>(arg, i)?, &index)?;
    }
    Ok(0)
}
