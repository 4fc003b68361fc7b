// SPDX-License-Identifier: GPL-2.0

//! The boundary between the generic code and a processor family.
//!
//! Static dispatch: the family (with its vendor's backend in it) is a type parameter of `Vm` and
//! `Vcpu`, chosen once at load. Nothing on this side knows any processor.

use crate::{
    abi::exit::WriteRun,
    bindings as rb,
    device::Attr,
    host::{kick::Kick, section::GuestSection, trace},
    irq,
    memory::{stage2, View},
    vcpu::{Core, VcpuSet},
    vm::Vm,
};
use kernel::{prelude::*, sync::Arc};

/// A vCPU under its lock, with everything that a handler may need.
pub(crate) struct Ctx<'a, F: Family> {
    /// The VM that it belongs to.
    pub(crate) vm: &'a Arc<Vm<F>>,
    /// What other threads may touch of it.
    pub(crate) core: &'a Core<F>,
    /// What only the lock's holder touches.
    pub(crate) vcpu: &'a mut F::Vcpu,
}

/// What a family wants before a guest section.
pub(crate) enum Poll<U> {
    /// Enter the guest.
    Run,
    /// Sleep until [`Family::runnable`].
    Block,
    /// Return to user space.
    ToUser(U),
}

/// How one entry of the guest ended, seen from inside a section.
pub(crate) enum Step<E> {
    /// Handled; enter again.
    Again,
    /// Leave the section; then handle this, if anything.
    Leave(Option<E>),
}

/// What follows an exit that was handled outside of a section.
pub(crate) enum Next<U> {
    /// Enter again.
    Reenter,
    /// Return to user space with this.
    ToUser(U),
}

/// A processor family with its hardware backend.
pub(crate) trait Family: Sized + Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;
    /// What one does so that in-tree KVM gives `/dev/kvm` free, for a message.
    const FREE_KVM: &'static str;
    /// Pages that a vCPU's descriptor maps: `kvm_run` first.
    const MMAP_PAGES: usize;
    /// Which of them is the VM's ring of coalesced accesses.
    const COALESCED_PAGE: usize;
    /// The highest vCPU id, plus one.
    const MAX_VCPU_ID: u32;
    /// Bits of `kvm_guest_debug.control` that are served, `KVM_GUESTDBG_ENABLE` among them. 0: there
    /// is no `KVM_SET_GUEST_DEBUG`.
    const GUEST_DEBUG: u32;

    /// The format of its stage-2 tables.
    type Entry: stage2::Entry;
    /// The interrupt controllers, shared by routing, irqfds and vCPUs.
    type Controller: irq::Controller;
    /// An in-kernel device with a descriptor of its own (`KVM_CREATE_DEVICE`).
    type Device: Send + Sync;
    /// The rest of a VM's state.
    type Vm: Send + Sync;
    /// A vCPU's state that other threads may touch.
    type Shared: Send + Sync;
    /// A vCPU's state under its lock.
    type Vcpu: Send;
    /// A decoded exit that is handled outside of a guest section.
    type Exit;
    /// A reason to return to user space.
    type UserExit: WriteRun;

    /// The value of a capability of the family, for a VM or for the system. 0: not there.
    fn capability(vm: Option<&Vm<Self>>, cap: u32) -> i32;

    /// An ioctl of the system descriptor that is the family's own.
    ///
    /// # Errors
    /// `ENOTTY` when the family does not know it either.
    fn system_ioctl(cmd: u32, arg: usize) -> Result<isize>;

    /// Stage-2 geometry of a new VM of this type (the argument of `KVM_CREATE_VM`).
    ///
    /// # Errors
    /// `EINVAL`: no such type.
    fn stage2_config(vm_type: usize) -> Result<stage2::Config>;

    /// The controllers of a new VM.
    ///
    /// # Errors
    /// `ENOMEM`
    fn controller(vcpus: &Arc<VcpuSet<Self>>) -> Result<Arc<Self::Controller>>;

    /// The rest of a new VM.
    ///
    /// # Errors
    /// `ENOMEM`
    fn vm(controller: &Arc<Self::Controller>) -> impl PinInit<Self::Vm, Error>;

    /// An ioctl of a VM that is the family's own.
    ///
    /// # Errors
    /// `ENOTTY` when the family does not know it either.
    fn vm_ioctl(vm: &Arc<Vm<Self>>, cmd: u32, arg: usize) -> Result<isize>;

    /// `KVM_ENABLE_CAP` on a VM.
    ///
    /// # Errors
    /// `EINVAL`: no such capability, or its arguments or the VM's state do not allow it.
    fn enable_cap(vm: &Vm<Self>, cap: u32, flags: u32, args: &[u64; 4]) -> Result<isize>;

    /// `KVM_CREATE_DEVICE`: makes a device of this kind, or only looks whether it could (`test`: then
    /// `None`). The VM's creation lock is held.
    ///
    /// # Errors
    /// `ENODEV`: no such kind. `EEXIST`: the VM has it.
    fn create_device(_vm: &Arc<Vm<Self>>, _kind: u32, _test: bool) -> Result<Option<Self::Device>> {
        Err(trace::refuse(ENODEV, c"no such kind of in-kernel device"))
    }

    /// Sets, gets, or looks for an attribute of a device.
    ///
    /// # Errors
    /// `ENXIO`: no such attribute; and what the device's documentation says.
    fn device_attr(
        _vm: &Arc<Vm<Self>>,
        _device: &Self::Device,
        _what: Attr,
        _attr: &rb::kvm_device_attr,
    ) -> Result {
        Err(ENXIO)
    }

    /// Drives an input of the controllers (`KVM_IRQ_LINE`): by default the route of the gsi.
    ///
    /// # Errors
    /// `EINVAL`: no such input.
    fn irq_line(vm: &Vm<Self>, gsi: u32, level: bool) -> Result<i32> {
        vm.irq.irq_line(gsi, level)
    }

    /// Host memory is about to be mapped for guests: cleans caches that do not agree by themselves.
    /// Nothing to do by default. May sleep.
    #[inline]
    fn prepare_memory(_phys: u64, _bytes: u64) {}

    /// Interrupts can be injected by routes, irqfds and MSIs: the controllers exist.
    fn irqchip_ready(vm: &Vm<Self>) -> bool;

    /// `KVM_SET_GSI_ROUTING` is allowed now: for some families only once the controllers exist.
    fn takes_routes(_vm: &Vm<Self>) -> bool {
        true
    }

    /// A new vCPU in its reset state, `index` being how many there are already.
    ///
    /// # Errors
    /// `ENOMEM`, or `EINVAL` when the family does not allow the id.
    fn vcpu(
        vm: &Vm<Self>,
        id: u32,
        index: u32,
        kick: &Arc<Kick>,
    ) -> Result<(KBox<Self::Vcpu>, Self::Shared)>;

    /// An ioctl of a vCPU other than `KVM_RUN`.
    ///
    /// # Errors
    /// `ENOTTY` when the family does not know it.
    fn vcpu_ioctl(ctx: &mut Ctx<'_, Self>, cmd: u32, arg: usize) -> Result<isize>;

    /// `KVM_SET_GUEST_DEBUG`, with no other bits than [`Self::GUEST_DEBUG`] in `control`. Without
    /// `KVM_GUESTDBG_ENABLE` the vCPU is as if it had never been debugged.
    ///
    /// # Errors
    /// `EINVAL`: registers that the processor cannot have. `EBUSY`: an exception is to be put in, and
    /// there is one already. Nothing has changed then.
    fn set_guest_debug(ctx: &mut Ctx<'_, Self>, d: &rb::kvm_guest_debug) -> Result;

    /// Takes what user space wrote to the run page before `KVM_RUN`, and finishes the access that
    /// the last exit asked it for.
    ///
    /// # Errors
    /// What makes `KVM_RUN` fail without running.
    fn resume(ctx: &mut Ctx<'_, Self>) -> Result<Next<Self::UserExit>>;

    /// Writes what user space reads from the run page after `KVM_RUN`, whatever ended it.
    fn publish(ctx: &mut Ctx<'_, Self>);

    /// Looks whether the guest can be entered. May sleep.
    ///
    /// # Errors
    /// What makes `KVM_RUN` fail.
    fn poll(ctx: &mut Ctx<'_, Self>) -> Result<Poll<Self::UserExit>>;

    /// A blocked vCPU has something to do. Called with the task's state set to sleep: must not
    /// sleep itself.
    fn runnable(ctx: &mut Ctx<'_, Self>) -> bool;

    /// Loads what the guest section needs (FPU, debug registers). IRQs off.
    fn section_begins(ctx: &mut Ctx<'_, Self>, section: &GuestSection);

    /// Takes the host's state back. IRQs off. What the processor has logged of the guest's writes
    /// ([`crate::memory::Memory::logs_writes`]) goes to [`View::written`].
    fn section_ends(ctx: &mut Ctx<'_, Self>, view: &View<'_>, section: &GuestSection);

    /// Drops cached translations before the next entry. IRQs off.
    fn flush_tlb(ctx: &mut Ctx<'_, Self>);

    /// Enters the guest once and handles the exit if that needs no sleep. IRQs off. `requests` are
    /// the family's own bits, not yet seen.
    fn enter(
        ctx: &mut Ctx<'_, Self>,
        view: &View<'_>,
        section: &GuestSection,
        requests: u64,
    ) -> Step<Self::Exit>;

    /// Handles an exit outside of a section. May sleep.
    ///
    /// # Errors
    /// What makes `KVM_RUN` fail: `EFAULT` for memory that user space took away, `EINTR`.
    fn handle(
        ctx: &mut Ctx<'_, Self>,
        view: &View<'_>,
        exit: Self::Exit,
    ) -> Result<Next<Self::UserExit>>;
}
