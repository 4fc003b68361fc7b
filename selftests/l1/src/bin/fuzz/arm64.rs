// SPDX-License-Identifier: GPL-2.0

//! arm64: its ioctls' arguments. Guests: [`guest`]; devices: [`gic`].

mod gic;
mod guest;

use crate::args::{gpa, number, pointer, Filled, Message, Put, VALUES};
use crate::rng::Rng;
use crate::world::{Slot, World};
use kvm_bindings::*;
use kvm_ioctls::Kvm;
use rkvm_l1::kit::{self, CODE};
use rkvm_l1::machine::{sysreg, Cpu, Machine, PC, PSCI, PSTATE, SP_EL1};
use rkvm_l1::sys::{self, Ioctl};
use rkvm_l1::{done, guest, result};
use std::os::fd::RawFd;

pub use gic::{attribute, devices};
pub use guest::prepare;

/// Where the first slot of a VM is.
pub const RAM: u64 = kit::BASE;
/// Addresses where writes are collected.
pub const ZONES: [u64; 4] = [kit::MMIO, kit::RESULT, kit::GICD, kit::MMIO + 0x1000];
/// Kinds of devices to make.
pub const DEVICES: [u32; 2] = [
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
];
/// Capabilities of a VM.
pub const CAPS: [u32; 10] = [
    KVM_CAP_ARM_NISV_TO_USER,
    KVM_CAP_ARM_NISV_TO_USER,
    KVM_CAP_ARM_SYSTEM_SUSPEND,
    KVM_CAP_ARM_SYSTEM_SUSPEND,
    KVM_CAP_ARM_WRITABLE_IMP_ID_REGS,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_ARM_MTE,
    KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE,
    KVM_CAP_HALT_POLL,
    KVM_CAP_DIRTY_LOG_RING,
];
/// Ioctls that make a descriptor and return it.
pub const MAKERS: [u32; 2] = [sys::CREATE_VM, sys::CREATE_VCPU];
/// vCPU ids are below this, mostly.
pub const MAX_VCPU_ID: u64 = 520;

/// What a VM's vCPUs have, mostly.
const FEATURES: [u32; 4] = [
    PSCI,
    PSCI,
    PSCI | 1 << KVM_ARM_VCPU_SVE,
    PSCI | 1 << KVM_ARM_VCPU_SVE
        | 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS
        | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC,
];

/// What this host has.
pub struct Facts {
    /// Registers that a vCPU with all features lists.
    registers: Vec<u64>,
}

impl Facts {
    /// Asks.
    pub fn new(kvm: &Kvm) -> Facts {
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let registers = FEATURES.iter().rev().find_map(|f| {
            let cpu = Cpu::new(vm.create_vcpu(u64::from(*f) & 0xff).ok()?);
            cpu.init(*f).ok()?;
            let _ = finalize(cpu.raw(), KVM_ARM_VCPU_SVE);
            let mut list = vec![0u64; 4096];
            list[0] = 4095;
            sys::with(cpu.raw(), sys::GET_REG_LIST, &mut list[0]).ok()?;
            let n = list[0] as usize;
            Some(list[1..=n].to_vec())
        });
        Facts {
            registers: registers.expect("KVM_GET_REG_LIST"),
        }
    }

    /// The id of a register, mostly of one that is there.
    fn register(&self, r: &mut Rng) -> u64 {
        match r.below(16) {
            0 => number(r),
            1 => self.pick(r) ^ 1 << r.below(64),
            2 => sysreg(
                2 + r.below(2),
                r.below(8),
                r.below(16),
                r.below(16),
                r.below(8),
            ),
            3 => {
                let kind = r.pick(&[
                    KVM_REG_ARM_CORE,
                    KVM_REG_ARM_DEMUX,
                    KVM_REG_ARM_FW,
                    KVM_REG_ARM_FW_FEAT_BMAP,
                    KVM_REG_ARM64_SVE,
                ]);
                KVM_REG_ARM64 | r.below(10) << 52 | u64::from(kind) | r.below(0x800)
            }
            _ => self.pick(r),
        }
    }

    fn pick(&self, r: &mut Rng) -> u64 {
        r.pick(&self.registers)
    }
}

fn finalize(fd: RawFd, feature: u32) -> Result<i32, i32> {
    let mut f = feature as i32;
    sys::with(fd, sys::ARM_VCPU_FINALIZE, &mut f)
}

/// An address of a device in the kernel.
pub fn device(r: &mut Rng) -> u64 {
    gic::frame(r)
}

/// What KVM_IRQ_LINE calls a line: type, vCPU, number.
pub fn line(r: &mut Rng) -> u64 {
    let (kind, cpu) = (r.pick(&[0, 1, 1, 2, 2, 3]), r.below(6));
    let n = match kind {
        1 => r.pick(&[32, 33, 40, 255, 256, 1019]) + r.below(4),
        2 => r.below(34),
        _ => r.below(2),
    };
    if r.one_in(16) {
        number(r)
    } else {
        kind << 24 | cpu << 16 | n
    }
}

/// An interrupt's message.
pub fn message(r: &mut Rng) -> Message {
    Message {
        address: if r.one_in(8) {
            number(r)
        } else {
            gic::GITS + 0x1_0040
        },
        data: r.below(20),
        flags: if r.one_in(8) {
            number(r)
        } else {
            KVM_MSI_VALID_DEVID.into()
        },
        device: r.below(5),
    }
}

/// As a VMM does with a new VM: nothing.
pub fn new_vm(_vm: RawFd) {}

/// As a VMM does with a new vCPU.
pub fn new_cpu(r: &mut Rng, fd: RawFd, _world: &World) {
    // The choice is the VM's, mostly; a descriptor's number is as good as any.
    let any = r.pick(&FEATURES);
    let features = if r.one_in(2) { PSCI } else { any };
    let mut init = kvm_vcpu_init {
        target: KVM_ARM_TARGET_GENERIC_V8,
        ..Default::default()
    };
    for f in [features, FEATURES[0], FEATURES[2], FEATURES[3]] {
        init.features[0] = f;
        if sys::with(fd, sys::ARM_VCPU_INIT, &mut init).is_ok() {
            break;
        }
    }
    if !r.one_in(16) {
        let _ = finalize(fd, KVM_ARM_VCPU_SVE);
    }
}

/// Writes what user space writes before KVM_RUN.
///
/// # Safety
/// `run` is mapped.
pub unsafe fn scribble(r: &mut Rng, run: *mut kvm_run) {
    if r.one_in(4) {
        // The answer to a read of a device.
        // SAFETY: fields of the caller's page.
        unsafe {
            let mmio = &raw mut (*run).__bindgen_anon_1.mmio;
            (&raw mut (*mmio).data).write_volatile(r.next().to_le_bytes());
        }
    }
}

/// The argument of an ioctl that only arm64 has, or has in its own way.
pub fn fill(
    i: &Ioctl,
    r: &mut Rng,
    p: &mut Put<'_>,
    world: &World,
    slot: &Slot,
    keep: bool,
) -> Filled {
    match i.code {
        sys::GET_ONE_REG | sys::SET_ONE_REG => {
            let id = world.facts.register(r);
            p.u64(0, id);
            let at = if r.one_in(12) {
                pointer(r, slot)
            } else {
                p.values()
            };
            p.u64(8, at);
            if i.code == sys::SET_ONE_REG {
                let size = 1usize << (id >> 52 & 15).min(12);
                value(r, p, size);
            }
        }
        sys::GET_REG_LIST => {
            let n = r.pick(&[0, 1, 100, 500, 4000, u64::MAX]);
            p.u64(0, n);
        }
        sys::ARM_VCPU_INIT => {
            let target = if r.one_in(16) { number(r) } else { 5 };
            p.u32(0, target);
            let features = match r.below(8) {
                0 => r.next(),
                1 => 1 << r.below(32),
                _ => u64::from(r.pick(&FEATURES)) | r.below(2),
            };
            p.u32(4, features);
            if r.one_in(16) {
                p.dirt(r, 32);
            }
        }
        sys::ARM_VCPU_FINALIZE => {
            let feature = if r.one_in(4) { number(r) } else { 4 };
            p.u32(0, feature);
        }
        sys::ARM_SET_COUNTER_OFFSET => {
            let offset = number(r);
            p.u64(0, offset);
            p.u64(8, u64::from(r.one_in(8)));
        }
        sys::ARM_GET_REG_WRITABLE_MASKS => {
            let at = if r.one_in(4) {
                pointer(r, slot)
            } else {
                p.values()
            };
            p.u64(0, at);
            if r.one_in(8) {
                p.dirt(r, 64);
            }
        }
        sys::SET_GUEST_DEBUG => {
            let control = if r.one_in(8) {
                number(r)
            } else {
                r.pick(&[0, 1, 1, 3, 0x1_0001, 0x2_0001, 0x3_0003])
            };
            p.u32(0, control);
            for k in 0..64usize {
                // Values at even places, controls at odd ones.
                let v = match k % 32 {
                    0..16 if r.one_in(4) => gpa(r),
                    16.. if r.one_in(4) => r.below(0x2000) | u64::from(r.one_in(2)),
                    _ => 0,
                };
                p.u64(8 + 8 * k, v);
            }
            if r.one_in(2) {
                p.u64(8, CODE + 4 * r.below(16));
                p.u64(8 + 8 * 16, 0x1e5);
            }
        }
        sys::SET_VCPU_EVENTS => {
            if !keep {
                for at in 0..3 {
                    let on = u64::from(r.one_in(3));
                    p.u8(at, on);
                }
                let esr = if r.one_in(4) {
                    number(r)
                } else {
                    r.below(1 << 25)
                };
                p.u64(8, esr);
            }
            if r.one_in(8) {
                p.dirt(r, 64);
            }
        }
        _ => return Filled::Unknown,
    }
    Filled::Buffer
}

/// Something to write: what was read last, changed; or new.
fn value(r: &mut Rng, p: &mut Put<'_>, size: usize) {
    match r.below(4) {
        0 | 1 => p.dirt_at(r, VALUES, size.min(4096)),
        2 => {
            let v = number(r);
            p.u64(VALUES, v);
        }
        _ => {
            for k in 0..size.min(4096).div_ceil(8) {
                let v = r.next();
                p.u64(VALUES + 8 * k, v);
            }
        }
    }
}

/// A VM made after all this must run.
pub fn fresh_vm_runs() -> Result<(), Box<dyn std::error::Error>> {
    let mut m = Machine::new(guest!["mov x0, #0x600d", result!("x0"), done!()]);
    if m.cpu().results() != [0x600d] {
        return Err("another result".into());
    }
    Ok(())
}

/// KVM_SET_ONE_REG
fn set(fd: RawFd, id: u64, v: u64) {
    let mut one = kvm_one_reg {
        id,
        addr: &raw const v as u64,
    };
    let _ = sys::with(fd, sys::SET_ONE_REG, &mut one);
}

/// What every guest starts from.
fn start(fd: RawFd, pc: u64, pstate: u64, sp: u64) {
    set(fd, PC, pc);
    set(fd, PSTATE, pstate);
    set(fd, SP_EL1, sp);
}
