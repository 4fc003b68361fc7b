// SPDX-License-Identifier: GPL-2.0

//! The interrupt controllers: made as a VMM makes them, and their attributes.

use crate::args::{number, poke, words, Put, VALUES};
use crate::rng::Rng;
use crate::world::Slot;
use kvm_bindings::*;
use rkvm_l1::kit::{BASE, GICD, GICR};
use rkvm_l1::machine::attribute as call;
use rkvm_l1::sys;
use std::os::fd::RawFd;

/// The ITS.
pub const GITS: u64 = 0x0808_0000;

/// Tables of the ITS, its commands, the LPIs' tables: in the first slot.
const DEVICE_TABLE: u64 = BASE + 0x4_0000;
const COLLECTION_TABLE: u64 = BASE + 0x5_0000;
const COMMANDS: u64 = BASE + 0x6_0000;
const ITT: u64 = BASE + 0x7_0000;
const LPI_CONFIG: u64 = BASE + 0x8_0000;
const LPI_PENDING: u64 = BASE + 0x9_0000;

/// Registers of the distributor that do something, by their offset.
const DIST: [u64; 20] = [
    0, 4, 8, 0xc, 0x80, 0x84, 0x100, 0x104, 0x180, 0x184, 0x200, 0x204, 0x280, 0x300, 0x380, 0x400,
    0x420, 0xc08, 0x6100, 0xffe8,
];
/// Of a redistributor.
const REDIST: [u64; 20] = [
    0, 4, 8, 0x10, 0x14, 0x70, 0x78, 0xa0, 0xb0, 0xc0, 0x1_0080, 0x1_0100, 0x1_0180, 0x1_0200,
    0x1_0280, 0x1_0300, 0x1_0380, 0x1_0400, 0x1_0c04, 0xffe8,
];
/// Of an ITS.
const ITS: [u64; 10] = [0, 4, 8, 0x80, 0x88, 0x90, 0x100, 0x108, 0xffe8, 0x1_0040];

/// An offset into a frame: of one of `known`, near it, or anywhere.
fn offset(r: &mut Rng, known: &[u64], size: u64) -> u64 {
    match r.below(8) {
        0 => r.below(size),
        1 => r.pick(known) + r.below(64),
        2 => r.pick(known) + 4 * r.below(64),
        _ => r.pick(known),
    }
}

/// An address in a frame.
pub fn frame(r: &mut Rng) -> u64 {
    match r.below(3) {
        0 => GICD + offset(r, &DIST, 0x1_0000),
        1 => GICR + r.below(4) * 0x2_0000 + offset(r, &REDIST, 0x2_0000),
        _ => GITS + offset(r, &ITS, 0x2_0000),
    }
}

/// Something to write to a frame's register, or to a register by an attribute.
pub fn content(r: &mut Rng) -> u64 {
    match r.below(10) {
        0 => u64::MAX,
        1 => 0,
        2 => 1 << 63 | 0x0107_0000_0000_050f | DEVICE_TABLE,
        3 => 1 << 63 | 0x0407_0000_0000_050f | COLLECTION_TABLE,
        4 => 1 << 63 | COMMANDS | r.below(16),
        5 => 32 * r.below(128) | r.below(2),
        6 => LPI_CONFIG | r.pick(&[0xd, 0xf, 0xffff, 13]),
        7 => LPI_PENDING | r.below(2) << 62,
        8 => number(r),
        _ => r.below(32),
    }
}

/// A vCPU's affinity, where an attribute has it.
fn affinity(r: &mut Rng) -> u64 {
    if r.one_in(16) {
        number(r) << 32
    } else {
        r.below(5) << 32
    }
}

/// Group and attribute of KVM_SET_DEVICE_ATTR and its kin; and the value, in the buffer. Device 0 is a GIC, others are mostly ITSes.
pub fn attribute(r: &mut Rng, p: &mut Put<'_>, device: Option<usize>) -> (u64, u64) {
    let mut v = content(r);
    let which = match device {
        _ if r.one_in(12) => r.below(12),
        None => 10,
        Some(0) => r.below(8),
        Some(_) => r.pick(&[0, 2, 8, 8, 9, 9]),
    };
    let (group, attr) = match which {
        0 => {
            v = match r.below(4) {
                0 => GICD,
                1 => GICR + 0x2_0000 * r.below(4),
                2 => GITS,
                // A region: count, base, index.
                _ => r.below(5) << 52 | (GICR + 0x10_0000 * r.below(3)) | r.below(3),
            };
            (KVM_DEV_ARM_VGIC_GRP_ADDR, r.below(7))
        }
        1 => {
            v = r.pick(&[64, 96, 128, 256, 1024, 63]);
            (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, r.below(2))
        }
        2 => (KVM_DEV_ARM_VGIC_GRP_CTRL, r.below(6)),
        3 | 4 => (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset(r, &DIST, 0x1_0000)),
        5 => {
            let at = offset(r, &REDIST, 0x2_0000);
            (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, affinity(r) | at)
        }
        6 => {
            // op0 3, op1 0, CRn 12 or 4
            let reg = 3 << 14 | r.pick(&[12, 12, 12, 4]) << 7 | r.below(128);
            (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, affinity(r) | reg)
        }
        7 => {
            let intid = 32 * r.below(10);
            (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, affinity(r) | intid)
        }
        8 | 9 => (KVM_DEV_ARM_VGIC_GRP_ITS_REGS, offset(r, &ITS, 0x2_0000)),
        // Of a vCPU: PMU, timers, stolen time. Of a VM: the filter of hypercalls.
        10 => {
            match r.below(4) {
                0 => filter(r, p),
                1 => p.u64(VALUES, BASE + (r.below(0x4000) << 6)),
                _ => p.u64(VALUES, r.below(36)),
            }
            return (r.below(4), r.below(4));
        }
        _ => (number(r) as u32, number(r)),
    };
    p.u64(VALUES, v);
    (group.into(), attr)
}

/// A `kvm_smccc_filter`.
fn filter(r: &mut Rng, p: &mut Put<'_>) {
    let base = r.pick(&[
        0x8400_0000,
        0xc400_0000,
        0x8600_0000,
        0xc500_0020,
        0x8000_0000,
        0xff00_0000,
    ]);
    p.u32(VALUES, base + r.below(16));
    p.u32(VALUES + 4, if r.one_in(8) { number(r) } else { r.below(8) });
    p.u32(VALUES + 8, r.below(4));
    p.u64(VALUES + 12, 0);
    p.u32(VALUES + 20, u64::from(r.one_in(16)));
}

fn set(fd: RawFd, group: u32, attr: u32, v: u64) {
    let _ = call(
        fd,
        sys::SET_DEVICE_ATTR,
        group,
        attr.into(),
        &raw const v as u64,
    );
}

fn make(vm: RawFd, kind: u32) -> Option<RawFd> {
    let mut d = kvm_create_device {
        type_: kind,
        ..Default::default()
    };
    sys::with(vm, sys::CREATE_DEVICE, &mut d).ok()?;
    Some(d.fd as RawFd)
}

/// The GIC and an ITS, as a VMM makes them, but for now and then.
pub fn devices(r: &mut Rng, vm: RawFd, slot: &Slot) -> Vec<RawFd> {
    if r.one_in(10) {
        return Vec::new();
    }
    let mut made = Vec::new();
    let gic = make(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3);
    made.extend(gic);
    let its = if r.one_in(4) {
        None
    } else {
        make(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)
    };
    made.extend(its);
    if let Some(fd) = gic {
        let address = KVM_DEV_ARM_VGIC_GRP_ADDR;
        set(fd, address, KVM_VGIC_V3_ADDR_TYPE_DIST, GICD);
        if !r.one_in(16) {
            set(fd, address, KVM_VGIC_V3_ADDR_TYPE_REDIST, GICR);
        }
        if !r.one_in(16) {
            set(fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
        }
        if r.one_in(2) {
            set(fd, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, 0x12);
            set(fd, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0x104, u64::MAX);
        }
        for cpu in 0..3u64 {
            if r.one_in(2) {
                let redist = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
                let put = |at: u64, v: u64| {
                    let at = cpu << 32 | at;
                    let _ = call(fd, sys::SET_DEVICE_ATTR, redist, at, &raw const v as u64);
                };
                put(0x14, 0);
                put(0x70, LPI_CONFIG & 0xffff_ffff | 0xf);
                put(0x78, LPI_PENDING & 0xffff_ffff);
                put(0x1_0100, 0xffff_ffff);
                put(0, 1);
            }
        }
    }
    if let Some(fd) = its {
        set_up_its(r, fd, slot);
    }
    made
}

fn set_up_its(r: &mut Rng, fd: RawFd, slot: &Slot) {
    set(fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, GITS);
    if !r.one_in(16) {
        set(fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
    }
    if r.one_in(4) {
        return;
    }
    commands(r, slot);
    let regs = KVM_DEV_ARM_VGIC_GRP_ITS_REGS;
    set(
        fd,
        regs,
        0x100,
        1 << 63 | 0x0107_0000_0000_0500 | DEVICE_TABLE | r.below(2),
    );
    set(
        fd,
        regs,
        0x108,
        1 << 63 | 0x0407_0000_0000_0500 | COLLECTION_TABLE,
    );
    set(fd, regs, 0x80, 1 << 63 | COMMANDS | r.below(4));
    set(fd, regs, 0, 1);
    set(fd, regs, 0x88, 32 * r.below(128));
}

/// Writes commands to the ITS's queue, most of them meaningful (IHI 0069, 5.3); and to the LPIs' tables that they are enabled.
pub fn commands(r: &mut Rng, slot: &Slot) {
    let mut queue = Vec::new();
    for _ in 0..64 {
        let (device, event, icid) = (r.below(5), r.below(20), r.below(5));
        let command = match r.below(20) {
            0..=3 => {
                let itt = ITT + 0x1000 * r.below(8);
                [
                    8 | device << 32,
                    r.below(8),
                    itt | u64::from(!r.one_in(8)) << 63,
                    0,
                ]
            }
            4..=6 => [
                9,
                0,
                icid | r.below(4) << 16 | u64::from(!r.one_in(8)) << 63,
                0,
            ],
            7..=10 => [
                0xa | device << 32,
                event | (8192 + r.below(64)) << 32,
                icid,
                0,
            ],
            11 => [0xb | device << 32, event, icid, 0],
            12 => [1 | device << 32, event, icid, 0],
            13 => [3 | device << 32, event, 0, 0],
            14 => [4 | device << 32, event, 0, 0],
            15 => [0xf | device << 32, event, 0, 0],
            16 => [0xc | device << 32, event, 0, 0],
            17 => [0xd, 0, icid, 0],
            18 => [0xe, 0, r.below(4) << 16, r.below(4) << 16],
            _ => [r.next(), r.next(), r.next(), r.next()],
        };
        queue.extend(command);
    }
    poke(slot, COMMANDS, &words(&queue));
    poke(slot, LPI_CONFIG, &[0xa1; 256]);
}
