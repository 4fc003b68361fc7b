// SPDX-License-Identifier: GPL-2.0

//! A VM with memory, vCPUs at EL1, and a GICv3.

use super::kit::{self, CODE};
use crate::ram::Ram;
use crate::sys;
use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Why KVM_RUN returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A read where no memory is.
    Read { gpa: u64, len: usize },
    /// A write where no memory is.
    Write { gpa: u64, data: Vec<u8> },
    /// The guest asked the firmware for it.
    System { kind: u32, flags: u64 },
    /// An access that the hardware does not describe.
    Nisv { esr_iss: u64, gpa: u64 },
    /// A signal, seen by KVM_RUN as an exit.
    Intr,
    /// The processor would not enter the guest.
    FailEntry { reason: u64 },
    /// With its data words.
    Internal { suberror: u32, data: Vec<u64> },
    /// Memory of ours that cannot be had.
    MemoryFault { flags: u64, gpa: u64, size: u64 },
    /// Anything else.
    Other(u32),
}

/// The id of a register of `struct kvm_regs`, by its offset in words of 32 bits.
pub const fn core(word: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | word
}

/// The id of a general register.
pub const fn x(n: u64) -> u64 {
    core(2 * n)
}

/// SP_EL0
pub const SP_EL0: u64 = core(0x3e);
/// PC
pub const PC: u64 = core(0x40);
/// PSTATE
pub const PSTATE: u64 = core(0x42);
/// SP_EL1
pub const SP_EL1: u64 = core(0x44);
/// ELR_EL1
pub const ELR_EL1: u64 = core(0x46);

/// The id of a system register.
pub const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG as u64
        | op0 << 14
        | op1 << 11
        | crn << 7
        | crm << 3
        | op2
}

/// MPIDR_EL1
pub const MPIDR_EL1: u64 = sysreg(3, 0, 0, 0, 5);
/// SCTLR_EL1
pub const SCTLR_EL1: u64 = sysreg(3, 0, 1, 0, 0);
/// VBAR_EL1
pub const VBAR_EL1: u64 = sysreg(3, 0, 12, 0, 0);

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
            Ok(_) => {
                let exit = self.exit();
                // The one exit with which KVM_RUN fails.
                assert!(!matches!(exit, Exit::MemoryFault { .. }), "{exit:x?}");
                Ok(exit)
            }
            Err(libc::EFAULT | libc::EHWPOISON)
                if self.page().exit_reason == KVM_EXIT_MEMORY_FAULT =>
            {
                Ok(self.exit())
            }
            Err(e) => Err(e),
        }
    }

    /// The exit that the shared page tells of.
    pub fn exit(&mut self) -> Exit {
        let reason = self.page().exit_reason;
        // SAFETY: each reason has its own member of the union.
        unsafe {
            let u = &self.page().__bindgen_anon_1;
            match reason {
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
                KVM_EXIT_SYSTEM_EVENT => Exit::System {
                    kind: u.system_event.type_,
                    flags: u.system_event.__bindgen_anon_1.data[0],
                },
                KVM_EXIT_ARM_NISV => Exit::Nisv {
                    esr_iss: u.arm_nisv.esr_iss,
                    gpa: u.arm_nisv.fault_ipa,
                },
                KVM_EXIT_INTR => Exit::Intr,
                KVM_EXIT_FAIL_ENTRY => Exit::FailEntry {
                    reason: u.fail_entry.hardware_entry_failure_reason,
                },
                KVM_EXIT_INTERNAL_ERROR => {
                    let i = u.internal;
                    let n = (i.ndata as usize).min(i.data.len());
                    Exit::Internal {
                        suberror: i.suberror,
                        data: i.data[..n].to_vec(),
                    }
                }
                KVM_EXIT_MEMORY_FAULT => Exit::MemoryFault {
                    flags: u.memory_fault.flags,
                    gpa: u.memory_fault.gpa,
                    size: u.memory_fault.size,
                },
                other => Exit::Other(other),
            }
        }
    }

    /// Answers an [`Exit::Read`]; what is missing is 0.
    pub fn answer(&mut self, bytes: &[u8]) {
        // SAFETY: the exit is KVM_EXIT_MMIO.
        let m = unsafe { &mut self.page().__bindgen_anon_1.mmio };
        m.data = [0; 8];
        let n = bytes.len().min(8);
        m.data[..n].copy_from_slice(&bytes[..n]);
    }

    /// Runs until [`kit::DONE`]; `each` is given every exit but results and returns whether it knew what to do with it.
    ///
    /// # Panics
    /// When it did not, or when KVM_RUN fails.
    pub fn run_with(&mut self, mut each: impl FnMut(&mut Cpu, &Exit) -> bool) -> Vec<u64> {
        let mut results = Vec::new();
        loop {
            let exit = self
                .run()
                .unwrap_or_else(|e| panic!("KVM_RUN: errno {e}, results {results:x?}"));
            match &exit {
                Exit::Write { gpa: kit::DONE, .. } => return results,
                Exit::Write {
                    gpa: kit::RESULT,
                    data,
                } => results.push(value(data)),
                Exit::Write {
                    gpa: kit::FAULT,
                    data,
                } => panic!(
                    "unexpected exception in the guest: ESR {:#x}, PC {:#x}, results {results:x?}",
                    value(data),
                    self.reg(ELR_EL1)
                ),
                _ => assert!(
                    each(self, &exit),
                    "unexpected exit {exit:x?}, results {results:x?}, PC {:#x}",
                    self.reg(PC)
                ),
            }
        }
    }

    /// Runs until the guest is done.
    ///
    /// # Panics
    /// At any exit but results.
    pub fn results(&mut self) -> Vec<u64> {
        self.run_with(|_, _| false)
    }

    /// KVM_GET_ONE_REG, 64 bits.
    ///
    /// # Errors
    /// The errno.
    pub fn get(&self, id: u64) -> Result<u64, i32> {
        let mut v = 0u64;
        let mut r = kvm_one_reg {
            id,
            addr: &raw mut v as u64,
        };
        sys::with(self.raw(), sys::GET_ONE_REG, &mut r).map(|_| v)
    }

    /// The same, of one that is there.
    ///
    /// # Panics
    /// When it is not.
    pub fn reg(&self, id: u64) -> u64 {
        self.get(id)
            .unwrap_or_else(|e| panic!("KVM_GET_ONE_REG {id:#x}: errno {e}"))
    }

    /// KVM_SET_ONE_REG, 64 bits.
    ///
    /// # Errors
    /// The errno.
    pub fn set(&self, id: u64, v: u64) -> Result<i32, i32> {
        let mut r = kvm_one_reg {
            id,
            addr: &raw const v as u64,
        };
        sys::with(self.raw(), sys::SET_ONE_REG, &mut r)
    }

    /// KVM_ARM_VCPU_INIT with these features.
    ///
    /// # Errors
    /// The errno.
    pub fn init(&self, features: u32) -> Result<i32, i32> {
        let mut init = kvm_vcpu_init {
            target: KVM_ARM_TARGET_GENERIC_V8,
            ..Default::default()
        };
        init.features[0] = features;
        sys::with(self.raw(), sys::ARM_VCPU_INIT, &mut init)
    }

    /// Puts it at `entry` with the kit's registers, as vCPU number `n`.
    pub fn start(&self, entry: u64, n: u64) {
        for (id, v) in [
            (PC, entry),
            (SP_EL1, kit::STACK - 0x400 * n),
            (VBAR_EL1, kit::VECTORS),
            (x(25), n),
            (x(26), kit::STATE),
            (x(27), kit::DATA),
            (x(28), kit::RESULT),
        ] {
            self.set(id, v)
                .unwrap_or_else(|e| panic!("KVM_SET_ONE_REG {id:#x}: errno {e}"));
        }
    }
}

/// Bytes as a number.
pub fn value(bytes: &[u8]) -> u64 {
    let mut v = [0; 8];
    v[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
    u64::from_le_bytes(v)
}

/// A VM.
#[derive(Debug)]
pub struct Machine {
    /// vCPUs; dropped before the VM.
    pub cpus: Vec<Cpu>,
    /// The VM.
    pub vm: VmFd,
    /// The GIC, initialized.
    pub gic: Option<OwnedFd>,
    /// Slot 0, at [`kit::BASE`].
    pub ram: Ram,
    /// The system descriptor.
    pub kvm: Kvm,
}

/// PSCI 0.2 and later.
pub const PSCI: u32 = 1 << KVM_ARM_VCPU_PSCI_0_2;
/// It waits for CPU_ON.
pub const OFF: u32 = 1 << KVM_ARM_VCPU_POWER_OFF;

impl Machine {
    /// One vCPU, a GIC, 2 MiB, this code at [`CODE`].
    pub fn new(code: &[u8]) -> Machine {
        let m = Machine::with(1);
        m.code(CODE, code);
        m
    }

    /// `n` vCPUs at [`CODE`], where no code is yet; all but the first are off.
    pub fn with(n: usize) -> Machine {
        let mut m = Machine::bare();
        for i in 0..n {
            m.add_cpu(i, if i == 0 { PSCI } else { PSCI | OFF });
        }
        m.add_gic();
        m
    }

    /// A VM with the kit's memory, and nothing else.
    pub fn bare() -> Machine {
        let kvm = crate::kvm();
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let m = Machine {
            cpus: Vec::new(),
            vm,
            gic: None,
            ram: Ram::anon(kit::BASE, kit::RAM),
            kvm,
        };
        m.slot(0, &m.ram, 0).expect("slot 0");
        m.ram.put(kit::VECTORS, kit::vectors());
        m.ram.put(kit::TABLE, &kit::table());
        m
    }

    /// Makes vCPU `i`.
    pub fn add_cpu(&mut self, i: usize, features: u32) {
        let cpu = Cpu::new(self.vm.create_vcpu(i as u64).expect("KVM_CREATE_VCPU"));
        cpu.init(features).expect("KVM_ARM_VCPU_INIT");
        cpu.start(CODE, i as u64);
        self.cpus.push(cpu);
    }

    /// Makes the GIC, for the vCPUs that are there.
    pub fn add_gic(&mut self) {
        let gic = self
            .create_device(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, 0)
            .expect("KVM_CREATE_DEVICE");
        for (group, attr, v) in [
            (
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                u64::from(KVM_VGIC_V3_ADDR_TYPE_DIST),
                kit::GICD,
            ),
            (
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                u64::from(KVM_VGIC_V3_ADDR_TYPE_REDIST),
                kit::GICR,
            ),
            (
                KVM_DEV_ARM_VGIC_GRP_CTRL,
                u64::from(KVM_DEV_ARM_VGIC_CTRL_INIT),
                0,
            ),
        ] {
            let mut v = v;
            attribute(
                gic.as_raw_fd(),
                sys::SET_DEVICE_ATTR,
                group,
                attr,
                &raw mut v as u64,
            )
            .unwrap_or_else(|e| panic!("GIC: group {group}, attribute {attr}: errno {e}"));
        }
        self.gic = Some(gic);
    }

    /// KVM_CREATE_DEVICE
    ///
    /// # Errors
    /// The errno.
    pub fn create_device(&self, kind: u32, flags: u32) -> Result<OwnedFd, i32> {
        let mut d = kvm_create_device {
            type_: kind,
            fd: 0,
            flags,
        };
        sys::with(self.raw(), sys::CREATE_DEVICE, &mut d)?;
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(d.fd as RawFd) })
    }

    /// The descriptor of the GIC.
    ///
    /// # Panics
    /// When there is none.
    pub fn gic_fd(&self) -> RawFd {
        self.gic.as_ref().expect("a GIC").as_raw_fd()
    }

    /// Puts code at `gpa`.
    pub fn code(&self, gpa: u64, code: &[u8]) {
        self.ram.put(gpa, code);
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

    /// How often vCPU `cpu` has taken interrupt `intid`.
    pub fn count(&self, cpu: u64, intid: u32) -> u32 {
        self.ram
            .u32(kit::COUNTS + 0x1000 * cpu + 4 * u64::from(intid))
    }

    /// The last exception: ESR, FAR, ELR, SPSR.
    pub fn exception(&self) -> [u64; 4] {
        std::array::from_fn(|i| self.ram.u64(kit::STATE + 8 + 8 * i as u64))
    }

    /// How many exceptions there were.
    pub fn exceptions(&self) -> u64 {
        self.ram.u64(kit::STATE + 40)
    }
}

/// KVM_SET_DEVICE_ATTR and its kin, with an address.
///
/// # Errors
/// The errno.
pub fn attribute(fd: RawFd, code: u32, group: u32, attr: u64, addr: u64) -> Result<i32, i32> {
    let mut a = kvm_device_attr {
        flags: 0,
        group,
        attr,
        addr,
    };
    sys::with(fd, code, &mut a)
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
