// SPDX-License-Identifier: GPL-2.0

//! A VM: its descriptor.

use crate::{
    abi::{ioctl, user},
    bindings as rb,
    device::Device,
    family::Family,
    host::{
        fd::{Fd, NewFile},
        trace,
    },
    irq::Irq,
    memory::{Memory, Region},
    system::capability,
    vcpu::{Vcpu, VcpuSet},
};
use core::{
    mem::offset_of,
    sync::atomic::{AtomicBool, Ordering},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    uaccess::UserPtr,
};

/// A virtual machine. Its descriptor and each of its vCPUs' hold a reference.
#[pin_data(PinnedDrop)]
pub(crate) struct Vm<F: Family> {
    /// Guest-physical memory.
    #[pin]
    pub(crate) memory: Memory<F::Entry, Arc<VcpuSet<F>>>,
    /// Interrupt routes, eventfds, I/O buses.
    #[pin]
    pub(crate) irq: Irq<F::Controller>,
    /// Its vCPUs.
    pub(crate) vcpus: Arc<VcpuSet<F>>,
    /// Its interrupt controllers.
    pub(crate) controller: Arc<F::Controller>,
    /// Held while vCPUs or controllers are made, so that "none yet" stays true.
    #[pin]
    pub(crate) creating: Mutex<()>,
    /// `KVM_GET_DIRTY_LOG` leaves the log as it is (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    manual_dirty_log: AtomicBool,
    /// The family's own state.
    #[pin]
    pub(crate) family: F::Vm,
}

impl<F: Family> Vm<F> {
    /// A VM for the current process.
    ///
    /// # Errors
    /// `EINVAL`: no such type. `ENOMEM`.
    pub(crate) fn new(vm_type: usize) -> Result<Arc<Self>> {
        let config = F::stage2_config(vm_type)?;
        let vcpus = VcpuSet::new()?;
        let controller = F::controller(&vcpus)?;
        Arc::pin_init(
            try_pin_init!(Self {
                memory <- Memory::new(vcpus.clone(), config),
                irq <- Irq::new(controller.clone()),
                creating <- new_mutex!((), "rkvm::Vm::creating"),
                manual_dirty_log: AtomicBool::new(false),
                family <- F::vm(&controller),
                vcpus,
                controller,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn create_vcpu(this: &Arc<Self>, arg: usize) -> Result<isize> {
        let id = u32::try_from(arg)
            .ok()
            .filter(|id| *id < F::MAX_VCPU_ID)
            .ok_or_else(|| trace::invalid(c"the vCPU id is too large"))?;
        let _creating = this.creating.lock();
        let vcpu = Vcpu::new(this, id)?;
        let file = NewFile::new(c"kvm-vcpu", vcpu.clone())?;
        vcpu.publish()?;
        Ok(file.install())
    }

    fn set_region(&self, arg: usize, two: bool) -> Result<isize> {
        let r: rb::kvm_userspace_memory_region2 = if two {
            user::get(arg)?
        } else {
            let old: rb::kvm_userspace_memory_region = user::get(arg)?;
            rb::kvm_userspace_memory_region2 {
                slot: old.slot,
                flags: old.flags,
                guest_phys_addr: old.guest_phys_addr,
                memory_size: old.memory_size,
                userspace_addr: old.userspace_addr,
                ..user::zeroed()
            }
        };
        self.memory.set_region(&Region {
            slot: r.slot,
            flags: r.flags,
            guest_phys_addr: r.guest_phys_addr,
            memory_size: r.memory_size,
            userspace_addr: r.userspace_addr,
        })?;
        Ok(0)
    }

    fn enable_cap(&self, arg: usize) -> Result<isize> {
        let c: rb::kvm_enable_cap = user::get(arg)?;
        if c.cap == rb::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 {
            let known = u64::from(rb::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
            if c.flags != 0 || c.args[0] & !known != 0 {
                return Err(trace::refuse(EINVAL, c"options of the manual dirty log"));
            }
            self.manual_dirty_log
                .store(c.args[0] & known != 0, Ordering::Relaxed);
            return Ok(0);
        }
        F::enable_cap(self, c.cap, c.flags, &c.args)
    }

    fn need_irqchip(ready: bool) -> Result {
        if ready {
            Ok(())
        } else {
            Err(trace::invalid(c"the VM has no interrupt controller yet"))
        }
    }

    fn irq_line(&self, arg: usize, status: bool) -> Result<isize> {
        if !F::irqchip_ready(self) {
            return Err(trace::refuse(
                ENXIO,
                c"the VM has no interrupt controller yet",
            ));
        }
        let mut l: rb::kvm_irq_level = user::get(arg)?;
        let gsi = crate::host::uapi::irq_level_gsi(&l);
        let result = F::irq_line(self, gsi, l.level != 0)?;
        if status {
            crate::host::uapi::set_irq_level_status(&mut l, result);
            user::put(arg, &l)?;
        }
        Ok(0)
    }
}

#[pinned_drop]
impl<F: Family> PinnedDrop for Vm<F> {
    fn drop(self: Pin<&mut Self>) {
        self.irq.shutdown();
    }
}

impl<F: Family> Fd for Vm<F> {
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.memory.mm_is_current() {
            return Err(trace::refuse(
                EIO,
                c"the VM belongs to another address space",
            ));
        }
        match cmd {
            ioctl::CREATE_VCPU => Self::create_vcpu(this, arg),
            ioctl::CHECK_EXTENSION => Ok(capability::<F>(Some(this), arg)),
            ioctl::SET_USER_MEMORY_REGION => this.set_region(arg, false),
            ioctl::SET_USER_MEMORY_REGION2 => this.set_region(arg, true),
            ioctl::GET_DIRTY_LOG => {
                let l: rb::kvm_dirty_log = user::get(arg)?;
                let manual = this.manual_dirty_log.load(Ordering::Relaxed);
                let bitmap = offset_of!(rb::kvm_dirty_log, __bindgen_anon_1);
                let bitmap: u64 = user::get(arg.checked_add(bitmap).ok_or(EFAULT)?)?;
                let bitmap = usize::try_from(bitmap).map_err(|_| EFAULT)?;
                this.memory
                    .dirty_log(l.slot, UserPtr::from_addr(bitmap), !manual)?;
                Ok(0)
            }
            ioctl::CLEAR_DIRTY_LOG => {
                let l: rb::kvm_clear_dirty_log = user::get(arg)?;
                let bitmap = offset_of!(rb::kvm_clear_dirty_log, __bindgen_anon_1);
                let bitmap: u64 = user::get(arg.checked_add(bitmap).ok_or(EFAULT)?)?;
                let bitmap = UserPtr::from_addr(usize::try_from(bitmap).map_err(|_| EFAULT)?);
                this.memory.clear_dirty_log(
                    l.slot,
                    l.first_page,
                    u64::from(l.num_pages),
                    bitmap,
                )?;
                Ok(0)
            }
            ioctl::CREATE_DEVICE => Device::create(this, arg),
            ioctl::ENABLE_CAP => this.enable_cap(arg),
            ioctl::IRQ_LINE => this.irq_line(arg, false),
            ioctl::IRQ_LINE_STATUS => this.irq_line(arg, true),
            ioctl::REGISTER_COALESCED_MMIO => {
                this.irq.coalesced_register(&user::get(arg)?)?;
                Ok(0)
            }
            ioctl::UNREGISTER_COALESCED_MMIO => {
                this.irq.coalesced_unregister(&user::get(arg)?)?;
                Ok(0)
            }
            ioctl::SET_GSI_ROUTING => {
                Self::need_irqchip(F::takes_routes(this))?;
                this.irq.set_routing(arg)?;
                Ok(0)
            }
            ioctl::IRQFD => {
                Self::need_irqchip(F::irqchip_ready(this))?;
                this.irq.irqfd(&user::get(arg)?)?;
                Ok(0)
            }
            ioctl::IOEVENTFD => {
                this.irq.ioeventfd(&user::get(arg)?)?;
                Ok(0)
            }
            ioctl::SIGNAL_MSI => {
                Self::need_irqchip(F::irqchip_ready(this))?;
                Ok(this.irq.signal_msi(&user::get(arg)?)? as isize)
            }
            _ => F::vm_ioctl(this, cmd, arg),
        }
    }
}
