// SPDX-License-Identifier: GPL-2.0

//! A VM with memory, vCPUs and a mode to start in.

use crate::kit::{self, CODE, PORT_DONE, PORT_FAULT, PORT_RESULT};
use crate::ram::Ram;
use crate::sys;
use iced_x86::code_asm::CodeAssembler;
use iced_x86::IcedError;
use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd, RawFd};

/// How a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16 bits, CS based at the code, the other segments at 0.
    Real,
    /// 32 bits, no paging.
    Protected,
    /// 32 bits, 4 MiB pages.
    Paged,
    /// 32 bits, PAE, 2 MiB pages.
    Pae,
    /// 64 bits, 2 MiB pages.
    Long,
}

impl Mode {
    /// All.
    pub const ALL: [Mode; 5] = [
        Mode::Real,
        Mode::Protected,
        Mode::Paged,
        Mode::Pae,
        Mode::Long,
    ];

    /// Of code.
    pub fn bits(self) -> u32 {
        match self {
            Mode::Real => 16,
            Mode::Long => 64,
            _ => 32,
        }
    }
}

/// What interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// None: HLT exits, KVM_INTERRUPT injects.
    None,
    /// The local APICs.
    Split,
}

/// Why KVM_RUN returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN or INS: `count` times `size` bytes are wanted.
    In {
        port: u16,
        size: usize,
        count: usize,
    },
    /// OUT or OUTS.
    Out {
        port: u16,
        size: usize,
        data: Vec<u8>,
    },
    /// A read where no memory is.
    Read { gpa: u64, len: usize },
    /// A write where no memory is.
    Write { gpa: u64, data: Vec<u8> },
    /// HLT, with no LAPIC in the kernel.
    Hlt,
    /// A triple fault.
    Shutdown,
    /// A signal, seen by KVM_RUN as an exit.
    Intr,
    /// `request_interrupt_window` was set, and it is open.
    Window,
    /// The processor would not enter the guest.
    FailEntry { reason: u64, why: String },
    /// With its data words.
    Internal { suberror: u32, data: Vec<u64> },
    /// An MSR read for user space.
    Rdmsr { index: u32, reason: u32 },
    /// An MSR write for user space.
    Wrmsr { index: u32, data: u64, reason: u32 },
    /// An EOI of a vector that an IOAPIC in user space waits for.
    Eoi { vector: u8 },
    /// Memory of ours that cannot be had.
    MemoryFault { flags: u64, gpa: u64, size: u64 },
    /// KVM_SET_GUEST_DEBUG.
    Debug { exception: u32, pc: u64, dr6: u64 },
    /// Anything else.
    Other(u32),
}

/// One vCPU.
#[derive(Debug)]
pub struct Cpu {
    /// Ioctls.
    pub fd: VcpuFd,
    run: *mut kvm_run,
}

// SAFETY: `run` points into the mapping that `fd` owns and may be used from any thread.
unsafe impl Send for Cpu {}
// SAFETY: through a shared reference only ioctls are made, which the kernel orders.
unsafe impl Sync for Cpu {}

impl Cpu {
    /// Takes a vCPU as `kvm-ioctls` makes it.
    pub fn new(mut fd: VcpuFd) -> Cpu {
        let run = fd.get_kvm_run() as *mut kvm_run;
        Cpu { fd, run }
    }

    /// The file descriptor.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The shared page.
    pub fn page(&mut self) -> &mut kvm_run {
        // SAFETY: it lives as long as `fd`; the kernel writes it only within KVM_RUN.
        unsafe { &mut *self.run }
    }

    /// The shared page's address.
    pub fn page_ptr(&self) -> *mut kvm_run {
        self.run
    }

    /// KVM_RUN; `Err` is its errno.
    ///
    /// # Errors
    /// The kernel's; with EFAULT and a memory-fault exit, the exit is given.
    pub fn run(&mut self) -> Result<Exit, i32> {
        match sys::call(self.raw(), sys::RUN, 0) {
            Ok(_) => Ok(self.exit()),
            Err(libc::EFAULT | libc::EHWPOISON)
                if self.page().exit_reason == KVM_EXIT_MEMORY_FAULT =>
            {
                Ok(self.exit())
            }
            Err(e) => Err(e),
        }
    }

    fn io(&mut self) -> (usize, usize, *mut u8) {
        let base = self.run.cast::<u8>();
        // SAFETY: the exit is KVM_EXIT_IO.
        let io = unsafe { self.page().__bindgen_anon_1.io };
        // SAFETY: the kernel keeps the data within the mapping.
        (usize::from(io.size), io.count as usize, unsafe {
            base.add(io.data_offset as usize)
        })
    }

    /// The exit that the shared page tells of.
    pub fn exit(&mut self) -> Exit {
        let reason = self.page().exit_reason;
        // SAFETY: each reason has its own member of the union.
        unsafe {
            let u = &self.page().__bindgen_anon_1;
            match reason {
                KVM_EXIT_IO => {
                    let io = u.io;
                    let (size, count, data) = self.io();
                    if u32::from(io.direction) == KVM_EXIT_IO_IN {
                        Exit::In {
                            port: io.port,
                            size,
                            count,
                        }
                    } else {
                        Exit::Out {
                            port: io.port,
                            size,
                            data: std::slice::from_raw_parts(data, size * count).to_vec(),
                        }
                    }
                }
                KVM_EXIT_MMIO => {
                    let m = u.mmio;
                    let len = m.len as usize;
                    if m.is_write == 0 {
                        Exit::Read {
                            gpa: m.phys_addr,
                            len,
                        }
                    } else {
                        Exit::Write {
                            gpa: m.phys_addr,
                            data: m.data[..len].to_vec(),
                        }
                    }
                }
                KVM_EXIT_HLT => Exit::Hlt,
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_INTR => Exit::Intr,
                KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Window,
                KVM_EXIT_FAIL_ENTRY => Exit::FailEntry {
                    reason: u.fail_entry.hardware_entry_failure_reason,
                    why: words(&u.padding[16..]),
                },
                KVM_EXIT_INTERNAL_ERROR => {
                    let i = u.internal;
                    let n = (i.ndata as usize).min(i.data.len());
                    Exit::Internal {
                        suberror: i.suberror,
                        data: i.data[..n].to_vec(),
                    }
                }
                KVM_EXIT_X86_RDMSR => Exit::Rdmsr {
                    index: u.msr.index,
                    reason: u.msr.reason,
                },
                KVM_EXIT_X86_WRMSR => Exit::Wrmsr {
                    index: u.msr.index,
                    data: u.msr.data,
                    reason: u.msr.reason,
                },
                KVM_EXIT_IOAPIC_EOI => Exit::Eoi {
                    vector: u.eoi.vector,
                },
                KVM_EXIT_MEMORY_FAULT => Exit::MemoryFault {
                    flags: u.memory_fault.flags,
                    gpa: u.memory_fault.gpa,
                    size: u.memory_fault.size,
                },
                KVM_EXIT_DEBUG => {
                    let d = u.debug.arch;
                    Exit::Debug {
                        exception: d.exception,
                        pc: d.pc,
                        dr6: d.dr6,
                    }
                }
                other => Exit::Other(other),
            }
        }
    }

    /// Answers an [`Exit::In`] or [`Exit::Read`]; what is missing is 0.
    pub fn answer(&mut self, bytes: &[u8]) {
        if self.page().exit_reason == KVM_EXIT_IO {
            let (size, count, data) = self.io();
            // SAFETY: `size * count` bytes are there.
            let to = unsafe { std::slice::from_raw_parts_mut(data, size * count) };
            to.fill(0);
            let n = bytes.len().min(to.len());
            to[..n].copy_from_slice(&bytes[..n]);
        } else {
            // SAFETY: the exit is KVM_EXIT_MMIO.
            let m = unsafe { &mut self.page().__bindgen_anon_1.mmio };
            m.data = [0; 8];
            let n = bytes.len().min(8);
            m.data[..n].copy_from_slice(&bytes[..n]);
        }
    }

    /// Answers an MSR exit.
    pub fn answer_msr(&mut self, data: u64, error: bool) {
        // SAFETY: the exit is one of the MSR exits.
        let m = unsafe { &mut self.page().__bindgen_anon_1.msr };
        m.data = data;
        m.error = error.into();
    }

    /// Runs until [`kit::PORT_DONE`]; `each` is given every exit but results and returns whether it knew what to do with it.
    ///
    /// # Panics
    /// When it did not, or when KVM_RUN fails.
    pub fn run_with(&mut self, mut each: impl FnMut(&mut Cpu, &Exit) -> bool) -> Vec<u32> {
        let mut results = Vec::new();
        loop {
            let exit = self
                .run()
                .unwrap_or_else(|e| panic!("KVM_RUN: errno {e}, results {results:x?}"));
            match &exit {
                Exit::Out {
                    port: PORT_DONE, ..
                } => return results,
                Exit::Out {
                    port: PORT_RESULT,
                    data,
                    ..
                } => {
                    let mut v = [0; 4];
                    v[..data.len().min(4)].copy_from_slice(&data[..data.len().min(4)]);
                    results.push(u32::from_le_bytes(v));
                }
                Exit::Out {
                    port: PORT_FAULT,
                    data,
                    ..
                } => {
                    panic!(
                        "unexpected exception {} in the guest, results {results:x?}, {:x?}",
                        data[0],
                        self.fd.get_regs()
                    )
                }
                _ => {
                    assert!(
                        each(self, &exit),
                        "unexpected exit {exit:x?}, results {results:x?}, {:x?}",
                        self.fd.get_regs()
                    );
                }
            }
        }
    }

    /// Runs until the guest is done.
    ///
    /// # Panics
    /// At any exit but results.
    pub fn results(&mut self) -> Vec<u32> {
        self.run_with(|_, _| false)
    }

    /// Runs until the guest is done; what it reads by port and MMIO is 0.
    pub fn results_io(&mut self) -> (Vec<u32>, Vec<Exit>) {
        let mut exits = Vec::new();
        let r = self.run_with(|c, e| {
            exits.push(e.clone());
            match e {
                Exit::In { .. } | Exit::Read { .. } => {
                    c.answer(&[]);
                    true
                }
                Exit::Out { .. } | Exit::Write { .. } => true,
                _ => false,
            }
        });
        (r, exits)
    }

    /// Changes the general registers.
    pub fn regs(&self, f: impl FnOnce(&mut kvm_regs)) {
        let mut r = self.fd.get_regs().expect("KVM_GET_REGS");
        f(&mut r);
        self.fd.set_regs(&r).expect("KVM_SET_REGS");
    }

    /// Changes the system registers.
    pub fn sregs(&self, f: impl FnOnce(&mut kvm_sregs)) {
        let mut s = self.fd.get_sregs().expect("KVM_GET_SREGS");
        f(&mut s);
        self.fd.set_sregs(&s).expect("KVM_SET_SREGS");
    }

    /// Reads an MSR by ioctl.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let mut m = Msrs::from_entries(&[kvm_msr_entry {
            index,
            ..Default::default()
        }])
        .expect("one entry");
        match self.fd.get_msrs(&mut m) {
            Ok(1) => Some(m.as_slice()[0].data),
            _ => None,
        }
    }

    /// Writes an MSR by ioctl; whether it was taken.
    pub fn set_msr(&self, index: u32, data: u64) -> bool {
        let m = Msrs::from_entries(&[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }])
        .expect("one entry");
        matches!(self.fd.set_msrs(&m), Ok(1))
    }

    /// Puts the vCPU at `entry` in `mode`, on the stack of CPU number `n`.
    pub fn start(&self, mode: Mode, entry: u64, n: u64) {
        let mut s = self.fd.get_sregs().expect("KVM_GET_SREGS");
        mode_sregs(&mut s, mode, entry);
        self.fd.set_sregs(&s).expect("KVM_SET_SREGS");
        let rip = if mode == Mode::Real {
            entry & 0xf
        } else {
            entry
        };
        self.fd
            .set_regs(&kvm_regs {
                rip,
                rsp: kit::STACK - 0x400 * n,
                rflags: 2,
                ..Default::default()
            })
            .expect("KVM_SET_REGS");
    }
}

/// The system registers of `mode`, with the kit's tables; in real mode CS is based at `entry`.
pub fn mode_sregs(s: &mut kvm_sregs, mode: Mode, entry: u64) {
    let seg = |selector: u16, code: bool, l: u8, db: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    if mode == Mode::Real {
        s.cs.base = entry & !0xf;
        s.cs.selector = (s.cs.base >> 4) as u16;
        for d in [&mut s.ds, &mut s.es, &mut s.ss, &mut s.fs, &mut s.gs] {
            d.base = 0;
            d.selector = 0;
        }
        return;
    }
    s.cs = match mode {
        Mode::Long => seg(kit::SEL_CODE64, true, 1, 0),
        _ => seg(kit::SEL_CODE32, true, 0, 1),
    };
    let data = seg(kit::SEL_DATA, false, 0, 1);
    (s.ds, s.es, s.ss, s.fs, s.gs) = (data, data, data, data, data);
    s.tr = kvm_segment {
        base: kit::TSS,
        limit: 0x67,
        selector: kit::SEL_TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    s.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    s.gdt = kvm_dtable {
        base: kit::GDT,
        limit: (kit::GDT_ENTRIES.len() * 8 - 1) as u16,
        ..Default::default()
    };
    s.idt = kvm_dtable {
        base: kit::IDT,
        limit: if mode == Mode::Long { 0xfff } else { 0x7ff },
        ..Default::default()
    };
    let (pe, pg, wp, ne, mp) = (1, 1 << 31, 1 << 16, 1 << 5, 1 << 1);
    let (pse, pae, osfxsr, osxmm) = (1 << 4, 1 << 5, 1 << 9, 1 << 10);
    s.cr0 = pe | ne | mp | 1 << 4;
    s.cr4 = osfxsr | osxmm;
    s.efer = 0;
    match mode {
        Mode::Paged => {
            s.cr0 |= pg | wp;
            s.cr4 |= pse;
            s.cr3 = kit::TABLES;
        }
        Mode::Pae => {
            s.cr0 |= pg | wp;
            s.cr4 |= pae;
            s.cr3 = kit::PDPT;
        }
        Mode::Long => {
            s.cr0 |= pg | wp;
            s.cr4 |= pae;
            s.cr3 = kit::TABLES;
            s.efer = 0x500;
        }
        _ => {}
    }
}

/// A VM.
#[derive(Debug)]
pub struct Machine {
    /// vCPUs; dropped before the VM.
    pub cpus: Vec<Cpu>,
    /// The VM.
    pub vm: VmFd,
    /// Slot 0, at 0.
    pub ram: Ram,
    /// The system descriptor.
    pub kvm: Kvm,
    /// What the vCPUs start in.
    pub mode: Mode,
}

impl Machine {
    /// One vCPU, split interrupt controller, 2 MiB, code at [`CODE`].
    ///
    /// # Errors
    /// The assembler's.
    pub fn new(
        mode: Mode,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Machine, IcedError> {
        let m = Machine::with(mode, Irqchip::Split, 1);
        m.code(CODE, mode.bits(), code)?;
        Ok(m)
    }

    /// `n` vCPUs, which all start at [`CODE`]; there is no code yet.
    pub fn with(mode: Mode, irqchip: Irqchip, n: usize) -> Machine {
        Machine::on(Ram::anon(0, kit::RAM), mode, irqchip, n)
    }

    /// The same, on memory of the caller's choice.
    pub fn on(ram: Ram, mode: Mode, irqchip: Irqchip, n: usize) -> Machine {
        let kvm = crate::kvm();
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        if irqchip == Irqchip::Split {
            split(&vm).expect("KVM_CAP_SPLIT_IRQCHIP");
        }
        let mut m = Machine {
            cpus: Vec::new(),
            vm,
            ram,
            kvm,
            mode,
        };
        m.slot(0, &m.ram, 0).expect("slot 0");
        m.furnish();
        for i in 0..n {
            m.add_cpu(i);
        }
        m
    }

    /// Makes vCPU `i`, with the CPUID that the kernel supports, at [`CODE`].
    pub fn add_cpu(&mut self, i: usize) {
        let cpu = Cpu::new(self.vm.create_vcpu(i as u64).expect("KVM_CREATE_VCPU"));
        cpu.fd
            .set_cpuid2(&cpuid(&self.kvm, i as u32))
            .expect("KVM_SET_CPUID2");
        if i == 0 || self.mode != Mode::Real {
            cpu.start(self.mode, CODE, i as u64);
            cpu.fd
                .set_mp_state(kvm_mp_state {
                    mp_state: KVM_MP_STATE_RUNNABLE,
                })
                .expect("KVM_SET_MP_STATE");
        }
        self.cpus.push(cpu);
    }

    fn furnish(&self) {
        for (i, e) in kit::GDT_ENTRIES.iter().enumerate() {
            self.ram.set64(kit::GDT + 8 * i as u64, *e);
        }
        // RSP0 of the 64-bit task state, ESP0 and SS0 of the 32-bit one.
        if self.mode == Mode::Long {
            self.ram.set64(kit::TSS + 4, 0xe000);
        } else {
            self.ram.set32(kit::TSS + 4, 0xe000);
            self.ram.set32(kit::TSS + 8, u32::from(kit::SEL_DATA));
        }
        // No I/O permission bitmap: its place is behind the limit.
        self.ram.put(kit::TSS + 0x66, &0x68u16.to_le_bytes());
        for (at, bytes) in kit::handlers(self.mode == Mode::Long).expect("handlers") {
            if self.mode != Mode::Real {
                self.ram.put(at, &bytes);
            }
        }
        match self.mode {
            Mode::Paged => {
                for i in 0..1024u32 {
                    self.ram
                        .set32(kit::TABLES + 4 * u64::from(i), i << 22 | 0xe7);
                }
            }
            Mode::Pae | Mode::Long => {
                let user = if self.mode == Mode::Long { 7 } else { 1 };
                for i in 0..4 {
                    self.ram
                        .set64(kit::PDPT + 8 * i, kit::PDS + 0x1000 * i | user);
                }
                for i in 0..2048 {
                    self.ram.set64(kit::PDS + 8 * i, i << 21 | 0xe7);
                }
                if self.mode == Mode::Long {
                    self.ram.set64(kit::TABLES, kit::PDPT | 7);
                }
            }
            _ => {}
        }
    }

    /// Assembles code and puts it at `gpa`; in real mode its addresses start at 0.
    ///
    /// # Errors
    /// The assembler's.
    pub fn code(
        &self,
        gpa: u64,
        bits: u32,
        f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let ip = if bits == 16 { 0 } else { gpa };
        self.ram.put(gpa, &assemble(bits, ip, f)?);
        Ok(())
    }

    /// Makes a memory slot of `ram`.
    ///
    /// # Errors
    /// The errno.
    pub fn slot(&self, slot: u32, ram: &Ram, flags: u32) -> Result<i32, i32> {
        self.region(slot, flags, ram.gpa, ram.len() as u64, ram.addr())
    }

    /// KVM_SET_USER_MEMORY_REGION.
    ///
    /// # Errors
    /// The errno.
    pub fn region(
        &self,
        slot: u32,
        flags: u32,
        gpa: u64,
        size: u64,
        addr: u64,
    ) -> Result<i32, i32> {
        let mut r = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: addr,
        };
        sys::with(self.raw(), sys::SET_USER_MEMORY_REGION, &mut r)
    }

    /// The VM's file descriptor.
    pub fn raw(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    /// The first vCPU.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpus[0]
    }

    /// How often `vector` has been taken.
    pub fn count(&self, vector: u8) -> u32 {
        self.ram.u32(kit::COUNTS + 4 * u64::from(vector))
    }

    /// The frame of the last exception or interrupt: see [`kit::FRAME`].
    pub fn frame(&self) -> [u64; 8] {
        std::array::from_fn(|i| self.ram.u64(kit::FRAME + 8 * i as u64))
    }

    /// The vectors in the order they were taken.
    pub fn log(&self) -> Vec<u8> {
        self.ram.get(kit::LOG, self.ram.u32(kit::LOGGED) as usize)
    }
}

/// A C string.
fn words(text: &[std::ffi::c_char]) -> String {
    let text = text.iter().take_while(|c| **c != 0);
    text.map(|c| char::from(*c as u8)).collect()
}

/// Assembles code for `ip`.
///
/// # Errors
/// The assembler's.
pub fn assemble(
    bits: u32,
    ip: u64,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    f(&mut a)?;
    a.assemble(ip)
}

/// Puts the local APICs in the kernel, with 24 pins of an IOAPIC in user space.
///
/// # Errors
/// The errno.
pub fn split(vm: &VmFd) -> Result<i32, i32> {
    enable(vm.as_raw_fd(), KVM_CAP_SPLIT_IRQCHIP, 24)
}

/// KVM_ENABLE_CAP with one argument.
///
/// # Errors
/// The errno.
pub fn enable(fd: RawFd, cap: u32, arg: u64) -> Result<i32, i32> {
    let mut c = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    c.args[0] = arg;
    sys::with(fd, sys::ENABLE_CAP, &mut c)
}

/// The CPUID that the kernel supports, for the CPU with this APIC id.
pub fn cpuid(kvm: &Kvm, id: u32) -> CpuId {
    let mut c = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .expect("KVM_GET_SUPPORTED_CPUID");
    for e in c.as_mut_slice() {
        match e.function {
            1 => e.ebx = e.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => e.edx = id,
            _ => {}
        }
    }
    c
}

/// One leaf of it.
pub fn leaf(c: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    c.as_slice()
        .iter()
        .find(|e| e.function == function && (e.index == index || e.flags & 1 == 0))
        .copied()
}

/// The processor has XSAVE, and the kernel uses it.
pub fn has_xsave(kvm: &Kvm) -> bool {
    leaf(&cpuid(kvm, 0), 1, 0).is_some_and(|l| l.ecx >> 26 & 1 != 0)
}
