// SPDX-License-Identifier: GPL-2.0

//! Ioctls of a VM.

use super::super::{
    abi,
    args::vm::{self as args, Enable},
    backend::Backend,
    host::Host,
    model::{
        clock::TscRate,
        msr::filter::{self, Range},
    },
    vm::{Bitmap, Filter},
    X86,
};
use super::unknown;
use crate::{
    abi::{ioctl::On, user},
    bindings as rb,
    host::trace,
    vm::Vm,
};
use core::mem::size_of;
use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

/// The argument of `KVM_SET_TSC_KHZ`: without scaling, only the host's own frequency can be had.
pub(super) fn tsc_rate(host: &Host, arg: usize) -> Result<TscRate> {
    let khz = u64::try_from(arg).map_err(|_| EINVAL)?;
    args::tsc_khz(host.tsc_khz, khz, host.hw.tsc_scaling).map_err(trace::invalid)
}

/// An ioctl of a VM that is x86's own.
///
/// # Errors
/// `ENOTTY` when there is none such; the rest as documented for each.
pub(crate) fn ioctl<B: Backend>(vm: &Arc<Vm<X86<B>>>, cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        abi::SET_TSS_ADDR => {
            // Used by VMX without unrestricted guest only; 3 pages below 4 GiB.
            if arg > 0xffff_d000 {
                return Err(trace::refuse(EINVAL, c"the TSS has to lie below 4 GiB"));
            }
            Ok(0)
        }
        abi::SET_IDENTITY_MAP_ADDR => {
            let addr: u64 = user::get(arg)?;
            let _creating = vm.creating.lock();
            if vm.vcpus.len() != 0 {
                return Err(trace::refuse(EINVAL, c"vCPUs exist already"));
            }
            vm.family.set_identity_map(addr);
            Ok(0)
        }
        abi::CREATE_IRQCHIP if vm.controller.is_split() => {
            Err(trace::refuse(EEXIST, c"the VM has a split irqchip"))
        }
        abi::CREATE_IRQCHIP => Err(trace::refuse(
            ENOTTY,
            c"the PIC and I/O APIC are user space's: enable KVM_CAP_SPLIT_IRQCHIP",
        )),
        abi::SET_BOOT_CPU_ID => {
            let _creating = vm.creating.lock();
            if vm.vcpus.len() != 0 {
                return Err(trace::refuse(EBUSY, c"vCPUs exist already"));
            }
            let id = u32::try_from(arg).map_err(|_| trace::invalid(c"vCPU ids have 32 bits"))?;
            vm.family.set_boot_cpu_id(id);
            Ok(0)
        }
        abi::GET_CLOCK => {
            let (clock, host_tsc, realtime) = vm.family.time.read();
            let mut c: rb::kvm_clock_data = user::zeroed();
            c.clock = clock;
            c.flags = rb::KVM_CLOCK_REALTIME | rb::KVM_CLOCK_HOST_TSC;
            if super::super::one_time(vm) {
                c.flags |= rb::KVM_CLOCK_TSC_STABLE;
            }
            c.realtime = realtime;
            c.host_tsc = host_tsc;
            user::put(arg, &c)?;
            Ok(0)
        }
        abi::SET_CLOCK => {
            let c: rb::kvm_clock_data = user::get(arg)?;
            let (clock, realtime) = args::clock(&c).map_err(trace::invalid)?;
            vm.family.time.set(clock, realtime);
            vm.vcpus.ring_all(super::super::REFRESH_CLOCK);
            Ok(0)
        }
        abi::SET_TSC_KHZ => {
            let _creating = vm.creating.lock();
            if vm.vcpus.len() != 0 {
                return Err(trace::refuse(EINVAL, c"vCPUs exist already"));
            }
            let rate = tsc_rate(vm.family.host, arg)?;
            vm.family.time.set_rate(rate);
            Ok(0)
        }
        abi::GET_TSC_KHZ => Ok(vm.family.time.rate().khz as isize),
        abi::X86_SET_MSR_FILTER => set_filter(vm, arg),
        _ => unknown(cmd, On::Vm),
    }
}

/// `KVM_X86_SET_MSR_FILTER`
fn set_filter<B: Backend>(vm: &Arc<Vm<X86<B>>>, arg: usize) -> Result<isize> {
    let f: rb::kvm_msr_filter = user::get(arg)?;
    let bad = |why| trace::refuse(EINVAL, why);
    let mut ranges = KVec::with_capacity(filter::MAX_RANGES, GFP_KERNEL_ACCOUNT)?;
    for r in &f.ranges {
        let bytes = filter::bitmap_bytes(r.flags, r.nmsrs)
            .map_err(|_| bad(c"MSR filter: flags or size of a range"))?;
        if bytes == 0 {
            continue;
        }
        let from = UserSlice::new(UserPtr::from_ptr(r.bitmap.cast()), bytes);
        let mut bitmap = KVVec::new();
        from.read_all(&mut bitmap, GFP_KERNEL_ACCOUNT)?;
        let range = Range {
            flags: r.flags,
            base: r.base,
            count: r.nmsrs,
            bitmap: Bitmap(bitmap),
        };
        ranges.push(range, GFP_KERNEL_ACCOUNT)?;
    }
    if !filter::flags_valid(f.flags, ranges.len()) {
        return Err(bad(c"MSR filter: flags, or nothing is allowed at all"));
    }
    let new = Filter {
        default_allow: f.flags & filter::DEFAULT_DENY == 0,
        ranges,
    };
    vm.family.set_filter(KBox::new(new, GFP_KERNEL_ACCOUNT)?);
    vm.vcpus.ring_all(super::super::REFRESH_MSRS);
    Ok(0)
}

/// `KVM_ENABLE_CAP` on a VM.
///
/// # Errors
/// `EINVAL`: no such capability, flags or arguments that are not defined, or vCPUs exist that must
/// not.
pub(crate) fn enable_cap<B: Backend>(
    vm: &Vm<X86<B>>,
    cap: u32,
    flags: u32,
    args: &[u64; 4],
) -> Result<isize> {
    let state = &vm.family;
    match Enable::decode(cap, flags, args).map_err(trace::invalid)? {
        Enable::SplitIrqchip(pins) => {
            let _creating = vm.creating.lock();
            if vm.controller.is_split() {
                return Err(trace::refuse(EEXIST, c"the VM has an irqchip already"));
            }
            if vm.vcpus.len() != 0 {
                return Err(trace::refuse(EEXIST, c"vCPUs exist already"));
            }
            vm.controller.set_split(pins);
        }
        Enable::X2apicApi {
            wide_ids,
            no_broadcast_quirk,
        } => vm.controller.set_x2apic_api(wide_ids, no_broadcast_quirk),
        Enable::DisableQuirks(quirks) => state.disable_quirks(quirks),
        Enable::PlatformInfo(on) => state.set_platform_info(on),
        Enable::ExceptionPayload(on) => state.set_exception_payload(on),
        Enable::TripleFaultEvent(on) => state.set_triple_fault_event(on),
        Enable::MsrExits(reasons) => state.set_msr_exits(reasons),
    }
    Ok(0)
}

const _: () = assert!(size_of::<rb::kvm_msr_filter>() == 0x188);
