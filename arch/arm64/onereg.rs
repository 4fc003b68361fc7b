// SPDX-License-Identifier: GPL-2.0

//! `KVM_GET_ONE_REG`, `KVM_SET_ONE_REG`, `KVM_GET_REG_LIST`.

use super::{
    gic::Gic,
    model::{
        idreg::cache,
        onereg::{self, Core, Firmware, NotFound, Register, Sve},
        psci::Version,
        pstate,
        sve::{FFR, WORDS},
        sysreg::Sysreg,
    },
    shared::Shared,
    vcpu::Vcpu,
    vm::VmState,
    Arm64,
};
use crate::{abi::user, bindings as rb, family::Ctx, host::trace};
use core::sync::atomic::Ordering;
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// The largest register: a Z register of SVE.
const MAX_BYTES: usize = 256;

impl From<NotFound> for Error {
    fn from(n: NotFound) -> Self {
        match n {
            NotFound::NoEntry => trace::refuse(ENOENT, c"the vCPU has no such register"),
            NotFound::Invalid => trace::invalid(c"this id cannot be of a register"),
        }
    }
}

/// `KVM_GET_ONE_REG`, or `SET`.
pub(crate) fn one(ctx: &mut Ctx<'_, Arm64>, r: &rb::kvm_one_reg, set: bool) -> Result {
    let vm = ctx.vm.clone();
    ctx.vcpu.refresh(&vm.family);
    let reg = Register::parse(r.id, &ctx.vcpu.ids.features)?;
    let at = UserPtr::from_addr(usize::try_from(r.addr).map_err(|_| EFAULT)?);
    let mut buffer = [0u8; MAX_BYTES];
    let bytes = buffer.get_mut(..reg.bytes()).ok_or(EINVAL)?;
    let shared = &ctx.core.shared;
    if set {
        UserSlice::new(at, bytes.len()).reader().read_slice(bytes)?;
        return write(ctx.vcpu, &vm.family, shared, &vm.controller, reg, bytes);
    }
    read(ctx.vcpu, &vm.family, shared, reg, bytes)?;
    UserSlice::new(at, bytes.len()).writer().write_slice(bytes)
}

fn word(bytes: &[u8]) -> u64 {
    let mut b = [0; 8];
    for (to, from) in b.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(b)
}

fn put(bytes: &mut [u8], v: u64) {
    for (to, from) in bytes.iter_mut().zip(v.to_le_bytes()) {
        *to = from;
    }
}

/// The two halves of a vector register.
fn vector(v: &mut Vcpu, n: u8) -> Option<&mut [u64]> {
    let n = usize::from(n) * 2;
    v.fp.v.get_mut(n..n + 2)
}

/// A register of SVE, as long as vectors make it.
fn sve(v: &mut Vcpu, r: Sve) -> Result<&mut [u8]> {
    let Some(state) = &mut v.sve else {
        return Err(trace::refuse(EPERM, c"KVM_ARM_VCPU_FINALIZE comes first"));
    };
    let found = match r {
        Sve::Z(n) => state.z(n),
        Sve::P(n) => state.p(n),
        Sve::Ffr => state.p(FFR),
        Sve::Lengths => None,
    };
    found.ok_or(ENOENT)
}

/// A register of `struct kvm_regs` with one word.
fn core(v: &mut Vcpu, c: Core) -> Option<&mut u64> {
    Some(match c {
        Core::X(n) => v.run.x.get_mut(usize::from(n))?,
        Core::SpEl0 => &mut v.run.sp_el0,
        Core::Pc => &mut v.run.pc,
        Core::Pstate => &mut v.run.pstate,
        Core::SpEl1 => &mut v.el1.sp_el1,
        Core::ElrEl1 => &mut v.el1.elr,
        Core::Spsr(0) => &mut v.el1.spsr,
        Core::Spsr(1) => &mut v.banked.spsr_abt,
        Core::Spsr(2) => &mut v.banked.spsr_und,
        Core::Spsr(3) => &mut v.banked.spsr_irq,
        Core::Spsr(_) => &mut v.banked.spsr_fiq,
        Core::Fpsr => &mut v.fp.fpsr,
        Core::Fpcr => &mut v.fp.fpcr,
        Core::V(_) => return None,
    })
}

fn read(v: &mut Vcpu, vm: &VmState, shared: &Shared, reg: Register, bytes: &mut [u8]) -> Result {
    match reg {
        Register::Core(Core::V(n)) => {
            let halves = vector(v, n).ok_or(ENOENT)?;
            for (to, from) in bytes.chunks_mut(8).zip(halves) {
                put(to, *from);
            }
        }
        Register::Core(c) => {
            let w = *core(v, c).ok_or(ENOENT)?;
            put(bytes, w);
        }
        Register::Sysreg(r) => {
            let w = v.user_sysreg(vm, shared, r)?;
            put(bytes, w);
        }
        Register::Firmware(f) => {
            let fw = vm.firmware.lock();
            let w = match f {
                Firmware::PsciVersion => fw.psci.unwrap_or(Version::initial(v.psci_0_2())).value(),
                _ => fw
                    .services
                    .get(f)
                    .or_else(|| fw.mitigations.level(f))
                    .ok_or(ENOENT)?,
            };
            put(bytes, w);
        }
        Register::Ccsidr(n) => {
            let w = *v.ccsidr.get(usize::from(n)).ok_or(ENOENT)?;
            put(bytes, u64::from(w));
        }
        Register::Sve(Sve::Lengths) => {
            for (to, w) in bytes.chunks_mut(8).zip(v.lengths.words()) {
                put(to, w);
            }
        }
        // What a vector lacks of the register's full length is zero.
        Register::Sve(r) => {
            for (to, from) in bytes.iter_mut().zip(sve(v, r)?) {
                *to = *from;
            }
        }
    }
    Ok(())
}

fn write(
    v: &mut Vcpu,
    vm: &VmState,
    shared: &Shared,
    gic: &Gic,
    reg: Register,
    bytes: &[u8],
) -> Result {
    let w = word(bytes);
    match reg {
        Register::Core(Core::V(n)) => {
            let halves = vector(v, n).ok_or(ENOENT)?;
            for (to, from) in halves.iter_mut().zip(bytes.chunks(8)) {
                *to = word(from);
            }
        }
        Register::Core(c) => {
            // A return to a state that the processor has not would be an exception at EL2.
            if c == Core::Pstate && !pstate::valid(w, vm.host.aarch32_el0, v.aarch32()) {
                return Err(trace::invalid(c"PSTATE has a mode that the guest has not"));
            }
            *core(v, c).ok_or(ENOENT)? = w;
            if c == Core::Pstate {
                v.narrow();
            }
        }
        Register::Sysreg(r) => v.set_user_sysreg(vm, shared, gic, r, w)?,
        Register::Firmware(f) => {
            let mut fw = vm.firmware.lock();
            match f {
                Firmware::PsciVersion => {
                    let version = Version::choose(w, v.psci_0_2());
                    fw.psci =
                        Some(version.ok_or_else(|| trace::invalid(c"no such version of PSCI"))?);
                }
                _ if fw.services.get(f).is_some_and(|old| old != w)
                    && vm.ran.load(Ordering::Acquire) =>
                {
                    return Err(trace::refuse(EBUSY, c"a vCPU has run"));
                }
                _ if fw.services.get(f).is_some() => fw
                    .services
                    .set(f, w)
                    .map_err(|_| trace::invalid(c"services that are not there"))?,
                _ => fw
                    .mitigations
                    .check(f, w)
                    .map_err(|_| trace::invalid(c"the host does less against speculation"))?,
            }
        }
        Register::Ccsidr(n) => {
            let w = u32::try_from(w)?;
            cache::check_ccsidr(super::insn::ftr(Sysreg::CTR_EL0), n, w)
                .map_err(|_| trace::invalid(c"the host's caches have longer lines"))?;
            *v.ccsidr.get_mut(usize::from(n)).ok_or(ENOENT)? = w;
        }
        Register::Sve(Sve::Lengths) => {
            if v.is_final() {
                return Err(trace::refuse(EPERM, c"vector lengths are final"));
            }
            let mut words = [0; WORDS];
            for (to, from) in words.iter_mut().zip(bytes.chunks(8)) {
                *to = word(from);
            }
            v.lengths = vm
                .host
                .sve_lengths()
                .choose(words)
                .map_err(|_| trace::invalid(c"the host has other vector lengths"))?;
        }
        Register::Sve(r) => {
            for (to, from) in sve(v, r)?.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
    }
    Ok(())
}

/// `KVM_GET_REG_LIST`
pub(crate) fn list(ctx: &mut Ctx<'_, Arm64>, arg: usize) -> Result {
    let vm = ctx.vm.clone();
    ctx.vcpu.refresh(&vm.family);
    if !ctx.vcpu.is_final() {
        return Err(trace::refuse(EPERM, c"KVM_ARM_VCPU_FINALIZE comes first"));
    }
    let features = ctx.vcpu.ids.features;
    let room: u64 = user::get(arg)?;
    let n = onereg::list(&features).count() as u64;
    user::put(arg, &n)?;
    if room < n {
        return Err(trace::refuse(E2BIG, c"the list has more registers"));
    }
    for (i, id) in onereg::list(&features).enumerate() {
        user::put(user::element::<u64, u64>(arg, i)?, &id)?;
    }
    Ok(())
}
