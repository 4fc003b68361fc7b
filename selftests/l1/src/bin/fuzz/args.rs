// SPDX-License-Identifier: GPL-2.0

//! Plausible arguments.

use crate::world::{Rng, Slot, World, ARENA};
use kvm_bindings::*;
use rkvm_l1::kit::{self, CODE, DATA};
use rkvm_l1::machine::{assemble, Mode};
use rkvm_l1::sys::{self, Arg, Ioctl};

/// Numbers that break things.
fn number(r: &mut Rng) -> u64 {
    match r.below(12) {
        0..=2 => r.below(4),
        3 => r.below(256),
        4 => 1 << r.below(64),
        5 => (1u64 << r.below(64)).wrapping_sub(1),
        6 => u64::MAX - r.below(4),
        7 => 0xfee0_0000 | r.below(0x1000),
        8 => r.below(ARENA as u64),
        9 => r.below(ARENA as u64) & !0xfff,
        10 => 0xffff_8000_0000_0000 | r.below(1 << 40),
        _ => r.next(),
    }
}

/// A guest physical address.
fn gpa(r: &mut Rng) -> u64 {
    match r.below(8) {
        0..=3 => r.below(ARENA as u64 / 4096) << 12,
        4 => kit::MMIO + (r.below(4) << 12),
        5 => r.below(1 << 36) & !0xfff,
        6 => r.below(ARENA as u64),
        _ => number(r),
    }
}

/// Writes fields at byte offsets.
struct Put<'a>(&'a mut [u64; 8192]);

impl Put<'_> {
    fn bytes(&mut self) -> &mut [u8; 65536] {
        // SAFETY: the same memory; bytes have no alignment and every value.
        unsafe { &mut *(self.0.as_mut_ptr().cast()) }
    }

    fn u64(&mut self, at: usize, v: u64) {
        self.bytes()[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }

    fn u32(&mut self, at: usize, v: u64) {
        self.bytes()[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes());
    }

    fn u8(&mut self, at: usize, v: u64) {
        self.bytes()[at] = v as u8;
    }

    /// Lets the breakpoints in the DR7 at `at` be for data: QEMU's TCG crashes on a guest's code
    /// breakpoints.
    fn data_breakpoints(&mut self, r: &mut Rng, at: usize) {
        for byte in [2, 3] {
            let kinds = r.pick(&[0x11, 0x33, 0x1d, 0xdf, 0xff]);
            self.u8(at + byte, kinds);
        }
    }

    /// Changes a few bytes of the first `len`.
    fn dirt(&mut self, r: &mut Rng, len: usize) {
        for _ in 0..r.below(4) {
            let at = r.below(len as u64) as usize;
            self.bytes()[at] = if r.one_in(2) {
                r.next() as u8
            } else {
                1 << r.below(8)
            };
        }
    }
}

/// The type of the task register's descriptor: a TSS that is not busy. Hardware does not look, but QEMU's TCG ends with
/// "invalid tss type" when a 32-bit guest changes stacks by one that is marked busy.
const TSS: u8 = 9;
/// Where it is in `kvm_sregs` and `kvm_sregs2`.
const TR_TYPE: usize =
    std::mem::offset_of!(kvm_sregs, tr) + std::mem::offset_of!(kvm_segment, type_);

/// A pointer to memory that the kernel may read and write: in the VM's arena, or bad.
fn pointer(r: &mut Rng, slot: &Slot) -> u64 {
    match r.below(12) {
        0 => sys::UNMAPPED,
        1 => 0xffff_8880_0000_0000,
        _ => slot.arena as u64 + (r.below(ARENA as u64 - 65536) & !7),
    }
}

const CAPS: [u32; 14] = [
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X2APIC_API,
    KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_EXCEPTION_PAYLOAD,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_CAP_X86_USER_SPACE_MSR,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_HALT_POLL,
    KVM_CAP_MAX_VCPU_ID,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
    KVM_CAP_X86_APIC_BUS_CYCLES_NS,
];

/// Makes the argument of an ioctl.
pub fn fill(i: &Ioctl, r: &mut Rng, buf: &mut [u64; 8192], world: &World, slot: &Slot) -> u64 {
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
    let size = i.size();
    match i.code {
        sys::CREATE_VM => return if r.one_in(4) { number(r) } else { 0 },
        sys::CREATE_VCPU => return if r.one_in(4) { number(r) } else { r.below(16) },
        sys::CHECK_EXTENSION => return r.below(300),
        sys::SET_TSC_KHZ => {
            return r.pick(&[0, 1, 1_000_000, 2_500_000, u64::from(u32::MAX), 100_000_000])
        }
        sys::SET_TSS_ADDR => return r.pick(&[0xfffb_d000, 0xfeff_d000, 0, 0xffff_f000, u64::MAX]),
        sys::SET_BOOT_CPU_ID => return r.below(4),
        sys::GET_API_VERSION | sys::GET_VCPU_MMAP_SIZE | sys::NMI | sys::KVMCLOCK_CTRL => {
            return if r.one_in(8) { number(r) } else { 0 };
        }
        sys::GET_MSR_INDEX_LIST | sys::GET_MSR_FEATURE_INDEX_LIST => {
            let n = r.pick(&[0, 1, 50, 500, 1000]);
            p.u32(0, n);
        }
        sys::GET_SUPPORTED_CPUID | sys::GET_CPUID2 => {
            let n = r.pick(&[0, 1, 20, 100, 256, 300]);
            p.u32(0, n);
        }
        sys::SET_CPUID2 => {
            let n = if r.one_in(4) {
                r.below(300) as usize
            } else {
                world.cpuid.len()
            };
            p.u32(0, n as u64);
            for (k, e) in world.cpuid.iter().take(n).enumerate() {
                for (f, v) in [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]
                    .iter()
                    .enumerate()
                {
                    p.u32(8 + 40 * k + 4 * f, u64::from(*v));
                }
            }
            if r.one_in(2) {
                p.dirt(r, 8 + 40 * n.clamp(1, 300));
            }
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
            let (gsi, level) = (r.below(32), r.below(2));
            p.u32(0, gsi);
            p.u32(4, level);
        }
        sys::REGISTER_COALESCED_MMIO | sys::UNREGISTER_COALESCED_MMIO => {
            let at = r.pick(&[kit::MMIO, 0x80, 0x70, kit::MMIO + 0x1000]);
            p.u64(0, at);
            let (n, pio) = (r.pick(&[1, 4, 0x1000, 0xffff_ffff]), r.below(3));
            p.u32(8, n);
            p.u32(12, pio);
        }
        sys::SET_GSI_ROUTING => {
            let n = if r.one_in(16) { number(r) } else { r.below(30) };
            p.u32(0, n);
            for k in 0..n.min(30) as usize {
                let at = 8 + 48 * k;
                let (gsi, kind) = (r.below(32), r.pick(&[1, 2, 2, 2, 3, 5]));
                p.u32(at, gsi);
                p.u32(at + 4, kind);
                if kind == 2 {
                    let (address, data) = (
                        0xfee0_0000 | r.below(256) << 12 | r.below(4) << 2,
                        r.below(0x10000),
                    );
                    p.u32(at + 16, address);
                    p.u32(at + 24, data);
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
                u64::from(r.pick(&CAPS))
            };
            p.u32(0, cap);
            let flags = u64::from(r.one_in(16));
            p.u32(4, flags);
            let v = r.pick(&[0, 1, 3, 24, 24, 24, 7, 100, u64::MAX]);
            p.u64(8, v);
        }
        sys::SIGNAL_MSI => {
            let (a, d) = (
                0xfee0_0000 | r.below(256) << 12 | r.below(4) << 2,
                r.below(0x10000),
            );
            p.u32(0, a);
            p.u32(8, d);
            if r.one_in(8) {
                p.dirt(r, 32);
            }
        }
        sys::X86_SET_MSR_FILTER => {
            let flags = r.pick(&[0, 0, 1, 2]);
            p.u32(0, flags);
            for k in 0..r.below(17) as usize {
                let at = 8 + 24 * k;
                let (f, n, base, bits) = (
                    r.below(5),
                    r.below(300),
                    r.pick(&[0, 0x10, 0xc000_0080, 0x800, 0x4b56_4d00]),
                    pointer(r, slot),
                );
                p.u32(at, f);
                p.u32(at + 4, n);
                p.u32(at + 8, base);
                p.u64(at + 16, bits);
            }
        }
        sys::CREATE_DEVICE => {
            let kind = r.below(12);
            p.u32(0, kind);
            let flags = r.below(3);
            p.u32(8, flags);
            p.u32(4, 0);
        }
        sys::SET_DEVICE_ATTR | sys::GET_DEVICE_ATTR | sys::HAS_DEVICE_ATTR => {
            let (g, a, at) = (r.below(3), r.below(3), pointer(r, slot));
            p.u32(4, g);
            p.u64(8, a);
            p.u64(16, at);
        }
        sys::INTERRUPT => {
            let v = r.below(270);
            p.u32(0, v);
        }
        sys::GET_MSRS | sys::SET_MSRS => {
            let n = if r.one_in(16) {
                number(r)
            } else {
                1 + r.below(12)
            };
            p.u32(0, n);
            for k in 0..n.min(12) as usize {
                let msr = if r.one_in(6) || world.msrs.is_empty() {
                    r.pick(&[0x800, 0x1b, 0xc000_0000, 0x4b56_4d00, 0x4000_0000, 0x175])
                        + r.below(64)
                } else {
                    u64::from(r.pick(&world.msrs))
                };
                p.u32(8 + 16 * k, msr);
                let v = number(r);
                p.u64(16 + 16 * k, v);
            }
        }
        sys::SET_SIGNAL_MASK => {
            let len = r.pick(&[8, 8, 8, 4, 0]);
            p.u32(0, len);
            // Never the signal that ends KVM_RUN.
            let mask = number(r) & !(1 << (libc::SIGUSR1 - 1)) & !(1 << (libc::SIGTERM - 1));
            p.u64(4, mask);
            if r.one_in(4) {
                return 0;
            }
        }
        sys::SET_GUEST_DEBUG => {
            let bits = match number(r) {
                v if r.one_in(8) => v,
                v => v & 0x1f_0003,
            };
            p.u32(0, bits);
            for k in 0..4 {
                let v = gpa(r);
                p.u64(8 + 8 * k, v);
            }
            let enabled = r.below(0x800);
            p.u64(8 + 8 * 7, enabled);
            p.data_breakpoints(r, 8 + 8 * 7);
        }
        sys::SET_MP_STATE => {
            let s = r.below(12);
            p.u32(0, s);
        }
        sys::TRANSLATE | sys::SET_VAPIC_ADDR | sys::SET_IDENTITY_MAP_ADDR | sys::X86_SETUP_MCE => {
            let v = match i.code {
                sys::X86_SETUP_MCE => r.pick(&[10, 0x100_010a, 32, 0, 0x0900_000a]),
                sys::SET_VAPIC_ADDR if r.one_in(2) => 0,
                _ => gpa(r),
            };
            p.u64(0, v);
        }
        sys::SET_REGS
        | sys::SET_SREGS
        | sys::SET_SREGS2
        | sys::SET_FPU
        | sys::SET_LAPIC
        | sys::SET_XSAVE
        | sys::SET_XCRS
        | sys::SET_VCPU_EVENTS
        | sys::SET_DEBUGREGS
        | sys::SET_CLOCK
        | sys::SET_IRQCHIP
        | sys::SET_PIT2 => {
            // What the last GET left in the buffer, changed a little; see `keep`.
            p.dirt(r, size);
            if matches!(i.code, sys::SET_SREGS | sys::SET_SREGS2) {
                p.u8(TR_TYPE, u64::from(TSS));
            }
            if i.code == sys::SET_DEBUGREGS {
                p.data_breakpoints(r, 40);
            }
            if i.code == sys::SET_XCRS && !keep {
                let v = r.below(8);
                p.u32(0, 1);
                p.u64(16, v);
            }
        }
        _ if i.arg == Arg::Value => return number(r),
        _ if i.arg == Arg::Out => {}
        _ => {
            p.dirt(r, size.max(1));
            p.dirt(r, size.max(1));
        }
    }
    buf.as_ptr() as u64
}

fn poke(slot: &Slot, at: u64, bytes: &[u8]) {
    // Guest memory may be unmapped by another thread at any time: write the way that fails instead of killing us.
    let local = libc::iovec {
        iov_base: bytes.as_ptr() as *mut _,
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: (slot.arena as u64 + at) as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: both describe memory of this process; what is not there gives an error.
    unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
}

/// Writes tables and code to the VM's memory.
pub fn guest(r: &mut Rng, slot: &Slot, mode: Mode) {
    let words = |v: &[u64]| v.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    poke(slot, kit::GDT, &words(&kit::GDT_ENTRIES));
    if mode != Mode::Real {
        if let Ok(parts) = kit::handlers(mode == Mode::Long) {
            for (at, bytes) in parts {
                poke(slot, at, &bytes);
            }
        }
    }
    if mode == Mode::Long || mode == Mode::Pae {
        let user = if mode == Mode::Long { 7 } else { 1 };
        poke(
            slot,
            kit::PDPT,
            &words(&[0, 1, 2, 3].map(|i| kit::PDS + 0x1000 * i | user)),
        );
        poke(
            slot,
            kit::PDS,
            &words(&(0..2048u64).map(|i| i << 21 | 0xe7).collect::<Vec<_>>()),
        );
        if mode == Mode::Long {
            poke(slot, kit::TABLES, &words(&[kit::PDPT | 7]));
        }
    } else if mode == Mode::Paged {
        let t: Vec<u8> = (0..1024u32)
            .flat_map(|i| (i << 22 | 0xe7).to_le_bytes())
            .collect();
        poke(slot, kit::TABLES, &t);
    }
    if r.one_in(2) {
        let code: Vec<u8> = (0..256).map(|_| r.next() as u8).collect();
        poke(slot, CODE, &code);
    } else if let Ok(code) = snippets(r, mode) {
        poke(slot, CODE, &code);
    }
}

/// Instructions that exit, in random order, for ever.
fn snippets(r: &mut Rng, mode: Mode) -> Result<Vec<u8>, iced_x86::IcedError> {
    use iced_x86::code_asm::*;
    let ip = if mode == Mode::Real { 0 } else { CODE };
    assemble(mode.bits(), ip, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        for _ in 0..1 + r.below(12) {
            let v = r.below(256) as i32;
            a.mov(
                ebx,
                r.pick(&[
                    kit::MMIO as u32,
                    DATA as u32,
                    0xfee0_0300,
                    0xfee0_0380,
                    0xfee0_0080,
                ]),
            )?;
            match r.below(24) {
                0 => a.cpuid()?,
                1 => a.out(v, al)?,
                2 => a.in_(eax, v)?,
                3 if mode != Mode::Real => a.mov(dword_ptr(ebx), eax)?,
                4 if mode != Mode::Real => a.mov(eax, dword_ptr(ebx))?,
                5 if mode != Mode::Real => a.lock().add(dword_ptr(ebx), eax)?,
                6 => a.hlt()?,
                7 => a.sti()?,
                8 => a.cli()?,
                9 => {
                    a.mov(
                        ecx,
                        r.pick(&[
                            0x10u32,
                            0x1b,
                            0x800,
                            0x80f,
                            0x83f,
                            0x3b,
                            0xc000_0080,
                            0x4b56_4d01,
                            0x832,
                            0x838,
                            0x6e0,
                        ]),
                    )?;
                    a.rdmsr()?;
                }
                10 => {
                    let msr = r.pick(&[
                        0x1bu64,
                        0x80f,
                        0x83f,
                        0x3b,
                        0x830,
                        0x4b56_4d01,
                        0x832,
                        0x838,
                        0x6e0,
                        0x80b,
                    ]);
                    kit::wrmsr(a, msr as u32, number(r) & 0xffff_ffff)?;
                }
                11 => a.int(v)?,
                12 => a.ud2()?,
                13 => {
                    a.mov(ecx, 9)?;
                    a.mov(esi, 0x2000)?;
                    a.mov(dx, v)?;
                    a.rep().outsb()?;
                }
                14 => {
                    a.mov(ecx, 9)?;
                    a.mov(edi, 0x1_2000)?;
                    a.mov(dx, v)?;
                    a.rep().insd()?;
                }
                15 => a.wbinvd()?,
                16 => a.pause()?,
                17 => a.rdtsc()?,
                18 => {
                    a.mov(eax, v)?;
                    a.vmmcall()?;
                }
                19 if mode != Mode::Real => {
                    a.mov(edi, ebx)?;
                    a.mov(esi, DATA as u32)?;
                    a.mov(ecx, 5)?;
                    a.rep().movsd()?;
                }
                // No write of CR8: QEMU's TCG dies of one while an interrupt window is asked for (BQL assertion).
                21 if mode == Mode::Long => {
                    a.mov(rax, cr4)?;
                    a.btc(rax, v & 31)?;
                    a.mov(cr4, rax)?;
                }
                22 => a.mov(eax, v)?,
                _ => a.inc(eax)?,
            }
        }
        a.jmp(again)
    })
}

/// Gives a vCPU the registers to run it.
pub fn registers(r: &mut Rng, fd: i32, mode: Mode, world: &World) {
    let mut s = kvm_sregs::default();
    if sys::with(fd, sys::GET_SREGS, &mut s).is_err() {
        return;
    }
    if r.one_in(2) {
        let mut b = Box::new([0u64; 8192]);
        let mut p = Put(&mut b);
        p.u32(0, world.cpuid.len() as u64);
        for (k, e) in world.cpuid.iter().enumerate() {
            for (f, v) in [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]
                .iter()
                .enumerate()
            {
                p.u32(8 + 40 * k + 4 * f, u64::from(*v));
            }
        }
        p.u8(8 + 40 * world.cpuid.len(), 0);
        let _ = sys::with(fd, sys::SET_CPUID2, &mut b[0]);
    }
    rkvm_l1::machine::mode_sregs(&mut s, mode, CODE);
    s.tr.type_ = TSS;
    let mut regs = kvm_regs {
        rip: if mode == Mode::Real { 0 } else { CODE },
        rsp: kit::STACK,
        rflags: if r.one_in(3) { 0x202 } else { 2 },
        rax: number(r),
        rcx: r.below(300),
        rdx: number(r),
        rsi: gpa(r),
        rdi: gpa(r),
        ..Default::default()
    };
    if r.one_in(8) {
        s.cr4 ^= 1 << r.below(32);
    }
    if r.one_in(8) {
        s.cr0 ^= 1 << r.below(32);
    }
    if r.one_in(16) {
        s.cs.db ^= 1;
        s.ss.unusable ^= 1;
    }
    if r.one_in(16) {
        s.efer ^= 1 << r.below(16);
        regs.rip = number(r);
    }
    if r.one_in(16) {
        s.cr3 = number(r);
    }
    let _ = sys::with(fd, sys::SET_SREGS, &mut s);
    let _ = sys::with(fd, sys::SET_REGS, &mut regs);
    let mut state = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    let _ = sys::with(fd, sys::SET_MP_STATE, &mut state);
}
