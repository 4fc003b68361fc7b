// SPDX-License-Identifier: GPL-2.0

//! A vCPU: its descriptor, and `KVM_RUN`.
//!
//! `KVM_RUN` is a loop around guest sections: outside of them it takes signals, sleeps, and handles
//! exits that may sleep; inside, with interrupts off, the guest is entered again and again as long as
//! its exits can be handled on the spot.

use crate::{
    abi::{
        cap::MAX_VCPUS,
        exit::{Common, WriteRun},
        ioctl, user,
    },
    bindings as rb,
    family::{Ctx, Family, Next, Poll, Step},
    host::{
        fd::Fd,
        kick::{self, Kick},
        run_page::SharedPage,
        section::GuestSection,
        trace,
        vcpu_lock::KillableMutex,
        work::{self, Masked, SignalSet},
    },
    memory::{Remote, View},
    vm::Vm,
};
use core::{
    mem::{offset_of, size_of},
    sync::atomic::{AtomicU32, Ordering},
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    mm::virt::VmaNew,
    prelude::*,
    sync::{Arc, SetOnce},
};

/// How often the guest is entered in one section at the most. A pending interrupt of the host ends a
/// section at once, but only if the guest gets as far as taking it: what fails before that, again and
/// again, must not keep the CPU.
const STREAK: u32 = 256;

/// What is under a vCPU's lock.
struct Inner<F: Family> {
    /// In a place of its own: families make it there, since it may be too large for the stack.
    vcpu: KBox<F::Vcpu>,
    sigmask: Option<SignalSet>,
}

/// A vCPU as its VM knows it. Lives as long as the VM.
#[pin_data]
pub(crate) struct Core<F: Family> {
    /// As user space numbered it.
    pub(crate) id: u32,
    /// The order of creation, from 0.
    pub(crate) index: u32,
    /// How to get its attention.
    pub(crate) kick: Arc<Kick>,
    /// What other threads may touch.
    pub(crate) shared: F::Shared,
    /// `kvm_run` and the family's pages behind it, but for the ring, which is the VM's.
    pub(crate) pages: KVec<SharedPage>,
    #[pin]
    inner: KillableMutex<Inner<F>>,
}

impl<F: Family> Core<F> {
    /// Nobody works with it, and nobody has it run: so it was a moment ago.
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.try_lock().is_some()
    }

    /// `kvm_run` itself.
    #[inline]
    pub(crate) fn run_page(&self) -> Option<&SharedPage> {
        self.pages.first()
    }
}

/// All vCPUs of a VM. Entries are added, never removed, and read without a lock.
pub(crate) struct VcpuSet<F: Family> {
    slots: KVVec<SetOnce<Arc<Core<F>>>>,
    count: AtomicU32,
}

impl<F: Family> VcpuSet<F> {
    /// An empty set.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut slots = KVVec::with_capacity(MAX_VCPUS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..MAX_VCPUS {
            slots.push(SetOnce::new(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Arc::new(
            Self {
                slots,
                count: AtomicU32::new(0),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// The one that was created as the `index`th, from 0. Any context.
    #[inline]
    #[allow(dead_code, reason = "not all families ask")]
    pub(crate) fn get(&self, index: u32) -> Option<&Core<F>> {
        if index >= self.len() {
            return None;
        }
        self.slots.get(index as usize)?.as_ref().map(|c| &**c)
    }

    /// All of them, in the order of their creation. Any context.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Core<F>> + Clone {
        let n = self.len() as usize;
        self.slots
            .iter()
            .take(n)
            .filter_map(|s| s.as_ref().map(|c| &**c))
    }

    /// Adds one. The VM's creation lock is held.
    fn add(&self, core: Arc<Core<F>>) -> Result {
        let n = self.len();
        let slot = self.slots.get(n as usize);
        let slot = slot.ok_or_else(|| trace::invalid(c"too many vCPUs"))?;
        if !slot.populate(core) {
            return Err(trace::refuse(EEXIST, c"a vCPU is being made already"));
        }
        self.count.store(n + 1, Ordering::Release);
        Ok(())
    }

    /// Posts requests to all and makes them look, without waiting.
    pub(crate) fn ring_all(&self, bits: u64) {
        for c in self.iter() {
            c.kick.ring(bits);
        }
    }
}

impl<F: Family> Remote for Arc<VcpuSet<F>> {
    fn flush_tlb_all(&self) {
        for c in self.iter() {
            c.kick.post(kick::FLUSH_TLB);
        }
        self.leave_guests();
    }

    fn leave_guests(&self) {
        kick::interrupt_and_wait(self.iter().map(|c| &*c.kick));
    }

    fn prepare_memory(&self, phys: u64, bytes: u64) {
        F::prepare_memory(phys, bytes);
    }
}

/// The descriptor of a vCPU.
pub(crate) struct Vcpu<F: Family> {
    vm: Arc<Vm<F>>,
    core: Arc<Core<F>>,
}

impl<F: Family> Vcpu<F> {
    /// Makes vCPU `id` of a VM. The VM's creation lock is held.
    ///
    /// # Errors
    /// `EINVAL` when there are too many, `EEXIST` when the id is taken, `ENOMEM`.
    pub(crate) fn new(vm: &Arc<Vm<F>>, id: u32) -> Result<Arc<Self>> {
        let index = vm.vcpus.len();
        if index as usize >= MAX_VCPUS {
            return Err(trace::refuse(EINVAL, c"too many vCPUs"));
        }
        if vm.vcpus.iter().any(|c| c.id == id) {
            return Err(trace::refuse(EEXIST, c"the vCPU id is taken"));
        }
        let kick = Arc::pin_init(Kick::new(), GFP_KERNEL_ACCOUNT)?;
        let (vcpu, shared) = F::vcpu(vm, id, index, &kick)?;
        let mut pages = KVec::with_capacity(F::MMAP_PAGES, GFP_KERNEL_ACCOUNT)?;
        for _ in 1..F::MMAP_PAGES {
            pages.push(SharedPage::new()?, GFP_KERNEL_ACCOUNT)?;
        }
        let core = Arc::pin_init(
            try_pin_init!(Core {
                id,
                index,
                kick,
                shared,
                pages,
                inner <- KillableMutex::new(Inner { vcpu, sigmask: None }),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Arc::new(
            Self {
                vm: vm.clone(),
                core,
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// Makes it one of the VM's: from now on it takes interrupts.
    ///
    /// # Errors
    /// `EINVAL` when there are too many.
    pub(crate) fn publish(&self) -> Result {
        self.vm.vcpus.add(self.core.clone())
    }

    fn set_signal_mask(inner: &mut Inner<F>, arg: usize) -> Result<isize> {
        if arg == 0 {
            inner.sigmask = None;
            return Ok(0);
        }
        let len: u32 = user::get(arg)?;
        if len != 8 {
            return Err(trace::refuse(EINVAL, c"a signal set has 8 bytes"));
        }
        let at = arg.checked_add(size_of::<u32>()).ok_or(EFAULT)?;
        inner.sigmask = Some(SignalSet::new(user::get(at)?));
        Ok(0)
    }

    fn set_guest_debug(ctx: &mut Ctx<'_, F>, arg: usize) -> Result<isize> {
        let d: rb::kvm_guest_debug = user::get(arg)?;
        if d.control & !F::GUEST_DEBUG != 0 {
            return Err(trace::invalid(
                c"control bits of KVM_SET_GUEST_DEBUG that are not served",
            ));
        }
        F::set_guest_debug(ctx, &d)?;
        Ok(0)
    }

    fn run(&self, inner: &mut Inner<F>) -> Result<isize> {
        let run = self.core.run_page().ok_or(EIO)?;
        let _mask = inner.sigmask.map(Masked::new);
        let mut ctx = Ctx {
            vm: &self.vm,
            core: &self.core,
            vcpu: &mut inner.vcpu,
        };
        let result = Self::run_loop(&mut ctx, run);
        work::to_user_space();
        F::publish(&mut ctx);
        result
    }

    fn run_loop(ctx: &mut Ctx<'_, F>, run: &SharedPage) -> Result<isize> {
        let interrupted = || {
            Common::Interrupted.write(run);
            Err(EINTR)
        };
        if let Next::ToUser(exit) = F::resume(ctx)? {
            exit.write(run);
            return Ok(0);
        }
        if run.read::<u8>(offset_of!(rb::kvm_run, immediate_exit__unsafe)) != 0 {
            // The reason stays what it was: user space looks at the last exit again after it has had
            // the access finished.
            return Err(EINTR);
        }
        loop {
            if work::pending() && work::handle().is_err() {
                return interrupted();
            }
            match F::poll(ctx)? {
                Poll::Run => {}
                Poll::Block => {
                    let kick = &ctx.core.kick;
                    kick.wait(|| F::runnable(ctx));
                    continue;
                }
                Poll::ToUser(exit) => {
                    exit.write(run);
                    return Ok(0);
                }
            }
            let vm = ctx.vm;
            let view = vm.memory.read();
            let exit = {
                let section = GuestSection::enter();
                if section.work_pending() {
                    continue;
                }
                ctx.core.kick.section_begins(section.cpu());
                F::section_begins(ctx, &section);
                section.quiescent();
                let exit = Self::section(ctx, &view, &section);
                F::section_ends(ctx, &view, &section);
                ctx.core.kick.section_ends();
                exit
            };
            if let Some(exit) = exit {
                if let Next::ToUser(exit) = F::handle(ctx, &view, exit)? {
                    exit.write(run);
                    return Ok(0);
                }
            }
        }
    }

    /// Enters the guest until something has to be done outside of the section.
    #[inline]
    fn section(ctx: &mut Ctx<'_, F>, view: &View<'_>, section: &GuestSection) -> Option<F::Exit> {
        for _ in 0..STREAK {
            let requests = ctx.core.kick.take();
            if requests & kick::FLUSH_TLB != 0 {
                F::flush_tlb(ctx);
            }
            match F::enter(ctx, view, section, requests) {
                Step::Again => {}
                Step::Leave(exit) => return exit,
            }
        }
        None
    }
}

impl<F: Family> Fd for Vcpu<F> {
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<isize> {
        if !this.vm.memory.mm_is_current() {
            return Err(trace::refuse(
                EIO,
                c"the VM belongs to another address space",
            ));
        }
        let mut inner = this.core.inner.lock()?;
        match cmd {
            ioctl::RUN if arg == 0 => this.run(&mut inner),
            ioctl::RUN => Err(trace::refuse(EINVAL, c"KVM_RUN takes no argument")),
            ioctl::SET_SIGNAL_MASK => Self::set_signal_mask(&mut inner, arg),
            _ => {
                let mut ctx = Ctx {
                    vm: &this.vm,
                    core: &this.core,
                    vcpu: &mut inner.vcpu,
                };
                match cmd {
                    ioctl::SET_GUEST_DEBUG if F::GUEST_DEBUG != 0 => {
                        Self::set_guest_debug(&mut ctx, arg)
                    }
                    _ => F::vcpu_ioctl(&mut ctx, cmd, arg),
                }
            }
        }
    }

    fn mmap(this: &Arc<Self>, vma: &VmaNew) -> Result {
        let mut pages: KVec<&SharedPage> = KVec::with_capacity(F::MMAP_PAGES, GFP_KERNEL_ACCOUNT)?;
        let mut own = this.core.pages.iter();
        for i in 0..F::MMAP_PAGES {
            let page = if i == F::COALESCED_PAGE {
                this.vm.irq.coalesced_page()
            } else {
                own.next().ok_or(EIO)?
            };
            pages.push(page, GFP_KERNEL_ACCOUNT)?;
        }
        SharedPage::map_all(&pages, vma)
    }
}
