// SPDX-License-Identifier: GPL-2.0

//! Plausible arguments: of what all families have. The family adds its own.

use crate::family;
use crate::rng::Rng;
use crate::world::{Slot, World, ARENA, BUFFER, KICK, STUCK};
use rkvm_l1::kit;
use rkvm_l1::sys::{self, Arg, Ioctl};

/// Numbers that break things.
pub fn number(r: &mut Rng) -> u64 {
    match r.below(12) {
        0..=2 => r.below(4),
        3 => r.below(256),
        4 => 1 << r.below(64),
        5 => (1u64 << r.below(64)).wrapping_sub(1),
        6 => u64::MAX - r.below(4),
        7 => family::device(r),
        8 => family::RAM + r.below(ARENA as u64),
        9 => family::RAM + (r.below(ARENA as u64) & !0xfff),
        10 => 0xffff_8000_0000_0000 | r.below(1 << 40),
        _ => r.next(),
    }
}

/// A guest physical address.
pub fn gpa(r: &mut Rng) -> u64 {
    match r.below(8) {
        0..=3 => family::RAM + (r.below(ARENA as u64 / 4096) << 12),
        4 => kit::MMIO + (r.below(4) << 12),
        5 => r.below(1 << 36) & !0xfff,
        6 => family::RAM + r.below(ARENA as u64),
        _ => number(r),
    }
}

/// Where values lie that an argument points to: what was read there last, unless they are written anew.
pub const VALUES: usize = 0x8000;

/// Writes fields at byte offsets.
pub struct Put<'a>(pub &'a mut [u64; BUFFER]);

impl Put<'_> {
    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8; 8 * BUFFER] {
        // SAFETY: the same memory; bytes have no alignment and every value.
        unsafe { &mut *(self.0.as_mut_ptr().cast()) }
    }

    /// 64 bits.
    pub fn u64(&mut self, at: usize, v: u64) {
        self.bytes()[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }

    /// 32 bits.
    pub fn u32(&mut self, at: usize, v: u64) {
        self.bytes()[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes());
    }

    /// A byte.
    pub fn u8(&mut self, at: usize, v: u64) {
        self.bytes()[at] = v as u8;
    }

    /// Changes a few bytes of the first `len`.
    pub fn dirt(&mut self, r: &mut Rng, len: usize) {
        self.dirt_at(r, 0, len);
    }

    /// Changes a few bytes of `len` from `at`.
    pub fn dirt_at(&mut self, r: &mut Rng, at: usize, len: usize) {
        for _ in 0..r.below(4) {
            let at = at + r.below(len as u64) as usize;
            self.bytes()[at] = if r.one_in(2) {
                r.next() as u8
            } else {
                1 << r.below(8)
            };
        }
    }

    /// The address of [`VALUES`].
    pub fn values(&self) -> u64 {
        self.0.as_ptr() as u64 + VALUES as u64
    }
}

/// A pointer to memory that the kernel may read and write: in the VM's arena, or bad.
pub fn pointer(r: &mut Rng, slot: &Slot) -> u64 {
    match r.below(12) {
        0 => sys::UNMAPPED,
        1 => 0xffff_8880_0000_0000,
        _ => slot.arena as u64 + (r.below(ARENA as u64 - 65536) & !7),
    }
}

/// A message of an interrupt.
pub struct Message {
    /// The address.
    pub address: u64,
    /// What is written there.
    pub data: u64,
    /// As in `kvm_msi` and in a route.
    pub flags: u64,
    /// Who writes it.
    pub device: u64,
}

/// What is made of an ioctl's argument.
pub enum Filled {
    /// It is this number.
    Is(u64),
    /// It is in the buffer.
    Buffer,
    /// This is none of ours.
    Unknown,
}

/// What an ioctl is called on.
pub struct Target<'a> {
    /// The VM, or that of the vCPU.
    pub slot: &'a Slot,
    /// Which of its devices, if one.
    pub device: Option<usize>,
}

/// Makes the argument of an ioctl.
pub fn fill(
    i: &Ioctl,
    r: &mut Rng,
    buf: &mut [u64; BUFFER],
    world: &World,
    target: &Target<'_>,
) -> u64 {
    // Now and then something that cannot be.
    if i.arg != Arg::Value && r.one_in(40) {
        return if r.one_in(2) {
            sys::UNMAPPED
        } else {
            number(r) | 0xffff_8000_0000_0000
        };
    }
    let keep = r.one_in(6);
    let mut p = Put(buf);
    if !keep {
        p.bytes()[..4096].fill(0);
    }
    let mut filled = generic(i, r, &mut p, world, target);
    if matches!(filled, Filled::Unknown) {
        filled = family::fill(i, r, &mut p, world, target.slot, keep);
    }
    match filled {
        Filled::Is(v) => return v,
        Filled::Buffer => {}
        Filled::Unknown if i.arg == Arg::Value => return number(r),
        Filled::Unknown if i.arg == Arg::Out => {}
        Filled::Unknown => {
            p.dirt(r, i.size().max(1));
            p.dirt(r, i.size().max(1));
        }
    }
    buf.as_ptr() as u64
}

fn generic(i: &Ioctl, r: &mut Rng, p: &mut Put<'_>, world: &World, target: &Target<'_>) -> Filled {
    let slot = target.slot;
    match i.code {
        sys::CREATE_VM => return Filled::Is(if r.one_in(4) { number(r) } else { 0 }),
        sys::CREATE_VCPU => return Filled::Is(if r.one_in(4) { number(r) } else { r.below(16) }),
        sys::CHECK_EXTENSION => return Filled::Is(r.below(300)),
        sys::GET_API_VERSION | sys::GET_VCPU_MMAP_SIZE => {
            return Filled::Is(if r.one_in(8) { number(r) } else { 0 });
        }
        sys::SET_USER_MEMORY_REGION | sys::SET_USER_MEMORY_REGION2 => {
            let id = if r.one_in(16) { number(r) } else { r.below(6) };
            p.u32(0, id);
            let flags = if r.one_in(16) {
                number(r)
            } else {
                r.pick(&[0, 0, 1, 1, 2, 3])
            };
            p.u32(4, flags);
            let at = gpa(r);
            p.u64(8, at);
            let bytes = match r.below(10) {
                0..=1 => 0,
                2 => u64::MAX - r.below(0x10_0000),
                3 => r.below(0x10_0000),
                4 => (1 + r.below(8)) << 21,
                _ => (1 + r.below(ARENA as u64 / 4096)) << 12,
            };
            p.u64(16, bytes);
            let hva = match r.below(16) {
                0 => 0xffff_8880_0000_0000,
                1 => slot.arena as u64 + r.below(ARENA as u64),
                _ => slot.arena as u64 + (r.below(ARENA as u64 / 4096) << 12),
            };
            p.u64(24, hva);
        }
        sys::GET_DIRTY_LOG | sys::CLEAR_DIRTY_LOG => {
            let id = r.below(6);
            p.u32(0, id);
            let clear = i.code == sys::CLEAR_DIRTY_LOG;
            if clear {
                let (n, first) = (r.below(1024), r.below(1024) & !63);
                p.u32(4, n);
                p.u64(8, first);
            }
            let at = pointer(r, slot);
            p.u64(if clear { 16 } else { 8 }, at);
        }
        sys::IRQ_LINE | sys::IRQ_LINE_STATUS => {
            let (gsi, level) = (family::line(r), r.below(2));
            p.u32(0, gsi);
            p.u32(4, level);
        }
        sys::REGISTER_COALESCED_MMIO | sys::UNREGISTER_COALESCED_MMIO => {
            let at = r.pick(&family::ZONES);
            p.u64(0, at);
            let (n, pio) = (r.pick(&[1, 4, 0x1000, 0xffff_ffff]), r.below(3));
            p.u32(8, n);
            p.u32(12, pio);
        }
        sys::SET_GSI_ROUTING => routes(r, p),
        sys::IRQFD => {
            let (fd, gsi, flags, resample) = (
                r.pick(&world.events),
                r.below(32),
                r.pick(&[0, 0, 0, 1, 1, 2, 3, 8]),
                r.pick(&world.events),
            );
            p.u32(0, fd as u64);
            p.u32(4, gsi);
            p.u32(8, flags);
            p.u32(12, resample as u64);
        }
        sys::IOEVENTFD => {
            let (m, a, l) = (
                r.below(4),
                r.pick(&[kit::MMIO, 0x50, 0x60, kit::MMIO + 8, u64::MAX]),
                r.pick(&[0, 1, 2, 4, 8, 3]),
            );
            p.u64(0, m);
            p.u64(8, a);
            p.u32(16, l);
            let (fd, flags) = (r.pick(&world.events), r.below(9));
            p.u32(20, fd as u64);
            p.u32(24, flags);
        }
        sys::ENABLE_CAP => {
            let cap = if r.one_in(8) {
                r.below(300)
            } else {
                u64::from(r.pick(&family::CAPS))
            };
            p.u32(0, cap);
            let flags = u64::from(r.one_in(16));
            p.u32(4, flags);
            let v = r.pick(&[0, 1, 3, 24, 24, 24, 7, 100, u64::MAX]);
            p.u64(8, v);
        }
        sys::SIGNAL_MSI => {
            let m = family::message(r);
            p.u64(0, m.address);
            p.u32(8, m.data);
            p.u32(12, m.flags);
            p.u32(16, m.device);
            if r.one_in(8) {
                p.dirt(r, 32);
            }
        }
        sys::CREATE_DEVICE => {
            let kind = if r.one_in(2) {
                u64::from(r.pick(&family::DEVICES))
            } else {
                r.below(12)
            };
            p.u32(0, kind);
            let flags = r.below(3);
            p.u32(8, flags);
            p.u32(4, 0);
        }
        sys::SET_DEVICE_ATTR | sys::GET_DEVICE_ATTR | sys::HAS_DEVICE_ATTR => {
            let (g, a) = family::attribute(r, p, target.device);
            let at = if r.one_in(4) {
                pointer(r, slot)
            } else {
                p.values()
            };
            p.u32(0, 0);
            p.u32(4, g);
            p.u64(8, a);
            p.u64(16, at);
        }
        sys::SET_SIGNAL_MASK => {
            let len = r.pick(&[8, 8, 8, 4, 0]);
            p.u32(0, len);
            // Never a signal that ends KVM_RUN.
            let ends = [KICK, STUCK, libc::SIGTERM].map(|s| 1 << (s - 1));
            let mask = ends.iter().fold(number(r), |m, s: &u64| m & !s);
            p.u64(4, mask);
            if r.one_in(4) {
                return Filled::Is(0);
            }
        }
        sys::SET_MP_STATE => {
            let s = r.below(12);
            p.u32(0, s);
        }
        _ => return Filled::Unknown,
    }
    Filled::Buffer
}

fn routes(r: &mut Rng, p: &mut Put<'_>) {
    let n = if r.one_in(16) { number(r) } else { r.below(30) };
    p.u32(0, n);
    for k in 0..n.min(30) as usize {
        let at = 8 + 48 * k;
        let (gsi, kind) = (r.below(32), r.pick(&[1, 2, 2, 2, 3, 5]));
        p.u32(at, gsi);
        p.u32(at + 4, kind);
        if kind == 2 {
            let m = family::message(r);
            p.u32(at + 8, m.flags);
            p.u64(at + 16, m.address);
            p.u32(at + 24, m.data);
            p.u32(at + 28, m.device);
        } else {
            let (chip, pin) = (r.below(4), r.below(26));
            p.u32(at + 16, chip);
            p.u32(at + 20, pin);
        }
    }
    if r.one_in(8) {
        p.dirt(r, 200);
    }
}

/// Writes to a VM's memory at this guest-physical address, as it is at first. It may be unmapped by another thread at any
/// time: this is the way that fails instead of killing us.
pub fn poke(slot: &Slot, at: u64, bytes: &[u8]) {
    let local = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: (slot.arena as u64 + at - family::RAM) as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: both describe memory of this process; what is not there gives an error.
    unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
}

/// Words as bytes.
pub fn words(v: &[u64]) -> Vec<u8> {
    v.iter().flat_map(|w| w.to_le_bytes()).collect()
}
