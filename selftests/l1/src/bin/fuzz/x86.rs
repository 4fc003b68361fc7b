// SPDX-License-Identifier: GPL-2.0

//! x86: its ioctls' arguments, its guests.

use crate::args::{gpa, number, pointer, poke, words, Filled, Message, Put};
use crate::rng::Rng;
use crate::world::{Slot, World, BUFFER};
use kvm_bindings::*;
use kvm_ioctls::Kvm;
use rkvm_l1::kit::{self, CODE, DATA};
use rkvm_l1::machine::{assemble, enable, Mode};
use rkvm_l1::sys::{self, Ioctl};
use rkvm_l1::Machine;
use std::os::fd::RawFd;

/// Where the first slot of a VM is.
pub const RAM: u64 = 0;
/// Addresses and ports where writes are collected.
pub const ZONES: [u64; 4] = [kit::MMIO, 0x80, 0x70, kit::MMIO + 0x1000];
/// Kinds of devices to make: there are none.
pub const DEVICES: [u32; 1] = [kvm_device_type_KVM_DEV_TYPE_VFIO];
/// Ioctls that make a descriptor and return it.
pub const MAKERS: [u32; 3] = [sys::CREATE_VM, sys::CREATE_VCPU, sys::GET_STATS_FD];
/// vCPU ids are below this, mostly.
pub const MAX_VCPU_ID: u64 = 1100;

/// Capabilities of a VM.
pub const CAPS: [u32; 14] = [
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

/// What this host has.
pub struct Facts {
    /// The MSRs that the kernel names.
    msrs: Vec<u32>,
    /// What it supports.
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Facts {
    /// Asks.
    pub fn new(kvm: &Kvm) -> Facts {
        Facts {
            msrs: kvm
                .get_msr_index_list()
                .map(|l| l.as_slice().to_vec())
                .unwrap_or_default(),
            cpuid: rkvm_l1::machine::cpuid(kvm, 0).as_slice().to_vec(),
        }
    }

    fn put_cpuid(&self, p: &mut Put<'_>, n: usize) {
        p.u32(0, n as u64);
        for (k, e) in self.cpuid.iter().take(n).enumerate() {
            for (f, v) in [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]
                .iter()
                .enumerate()
            {
                p.u32(8 + 40 * k + 4 * f, u64::from(*v));
            }
        }
    }
}

/// An address of a device in the kernel.
pub fn device(r: &mut Rng) -> u64 {
    0xfee0_0000 | r.below(0x1000)
}

/// What KVM_IRQ_LINE calls a line.
pub fn line(r: &mut Rng) -> u64 {
    r.below(32)
}

/// An interrupt's message.
pub fn message(r: &mut Rng) -> Message {
    Message {
        address: 0xfee0_0000 | r.below(256) << 12 | r.below(4) << 2,
        data: r.below(0x10000),
        flags: 0,
        device: 0,
    }
}

/// Group and attribute of KVM_SET_DEVICE_ATTR and its kin.
pub fn attribute(r: &mut Rng, _p: &mut Put<'_>, _device: Option<usize>) -> (u64, u64) {
    (r.below(3), r.below(3))
}

/// As a VMM does with a new VM.
pub fn new_vm(vm: RawFd) {
    let _ = enable(vm, KVM_CAP_SPLIT_IRQCHIP, 24);
}

/// As a VMM does with a new vCPU: no more than [`prepare`].
pub fn new_cpu(_r: &mut Rng, _fd: RawFd, _world: &World) {}

/// Devices that a VM with vCPUs gets.
pub fn devices(_r: &mut Rng, _vm: RawFd, _slot: &Slot) -> Vec<RawFd> {
    Vec::new()
}

/// Writes what user space writes before KVM_RUN.
///
/// # Safety
/// `run` is mapped.
pub unsafe fn scribble(r: &mut Rng, run: *mut kvm_run) {
    // SAFETY: fields of the caller's page.
    unsafe {
        (&raw mut (*run).request_interrupt_window).write_volatile(u8::from(r.one_in(4)));
        if r.one_in(8) {
            (&raw mut (*run).cr8).write_volatile(r.below(20));
        }
    }
}

/// The type of the task register's descriptor: a TSS that is not busy. Hardware does not look, but QEMU's TCG ends with
/// "invalid tss type" when a 32-bit guest changes stacks by one that is marked busy.
const TSS: u8 = 9;
/// Where it is in `kvm_sregs` and `kvm_sregs2`.
const TR_TYPE: usize =
    std::mem::offset_of!(kvm_sregs, tr) + std::mem::offset_of!(kvm_segment, type_);

/// Lets the breakpoints in the DR7 at `at` be for data: QEMU's TCG crashes on a guest's code
/// breakpoints.
fn data_breakpoints(p: &mut Put<'_>, r: &mut Rng, at: usize) {
    for byte in [2, 3] {
        let kinds = r.pick(&[0x11, 0x33, 0x1d, 0xdf, 0xff]);
        p.u8(at + byte, kinds);
    }
}

/// The argument of an ioctl that only x86 has, or has in its own way.
pub fn fill(
    i: &Ioctl,
    r: &mut Rng,
    p: &mut Put<'_>,
    world: &World,
    slot: &Slot,
    keep: bool,
) -> Filled {
    let facts = &world.facts;
    match i.code {
        sys::NMI | sys::KVMCLOCK_CTRL => {
            return Filled::Is(if r.one_in(8) { number(r) } else { 0 });
        }
        sys::SET_TSC_KHZ => {
            let khz = [0, 1, 1_000_000, 2_500_000, u64::from(u32::MAX), 100_000_000];
            return Filled::Is(r.pick(&khz));
        }
        sys::SET_TSS_ADDR => {
            let at = [0xfffb_d000, 0xfeff_d000, 0, 0xffff_f000, u64::MAX];
            return Filled::Is(r.pick(&at));
        }
        sys::SET_BOOT_CPU_ID => return Filled::Is(r.below(4)),
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
                facts.cpuid.len()
            };
            facts.put_cpuid(p, n);
            if r.one_in(2) {
                p.dirt(r, 8 + 40 * n.clamp(1, 300));
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
                let msr = if r.one_in(6) || facts.msrs.is_empty() {
                    r.pick(&[0x800, 0x1b, 0xc000_0000, 0x4b56_4d00, 0x4000_0000, 0x175])
                        + r.below(64)
                } else {
                    u64::from(r.pick(&facts.msrs))
                };
                p.u32(8 + 16 * k, msr);
                let v = number(r);
                p.u64(16 + 16 * k, v);
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
            data_breakpoints(p, r, 8 + 8 * 7);
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
            p.dirt(r, i.size());
            if matches!(i.code, sys::SET_SREGS | sys::SET_SREGS2) {
                p.u8(TR_TYPE, u64::from(TSS));
            }
            if i.code == sys::SET_DEBUGREGS {
                data_breakpoints(p, r, 40);
            }
            if i.code == sys::SET_XCRS && !keep {
                let v = r.below(8);
                p.u32(0, 1);
                p.u64(16, v);
            }
        }
        _ => return Filled::Unknown,
    }
    Filled::Buffer
}

/// Puts a vCPU into a mode with code to run, as a VMM does; registers are sometimes odd.
pub fn prepare(r: &mut Rng, slot: &Slot, _cpu: usize, fd: RawFd, world: &World) {
    let mode = r.pick(&Mode::ALL);
    guest(r, slot, mode);
    registers(r, fd, mode, world);
}

/// Writes tables and code to the VM's memory.
fn guest(r: &mut Rng, slot: &Slot, mode: Mode) {
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
fn registers(r: &mut Rng, fd: i32, mode: Mode, world: &World) {
    let mut s = kvm_sregs::default();
    if sys::with(fd, sys::GET_SREGS, &mut s).is_err() {
        return;
    }
    if r.one_in(2) {
        let mut b = Box::new([0u64; BUFFER]);
        let mut p = Put(&mut b);
        world.facts.put_cpuid(&mut p, world.facts.cpuid.len());
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

/// A VM made after all this must run.
pub fn fresh_vm_runs() -> Result<(), Box<dyn std::error::Error>> {
    let mut m = Machine::new(Mode::Long, |a| {
        a.mov(iced_x86::code_asm::eax, 0x600d)?;
        kit::result(a)?;
        kit::done(a)
    })?;
    if m.cpu().results() != [0x600d] {
        return Err("another result".into());
    }
    Ok(())
}
