// SPDX-License-Identifier: GPL-2.0

//! The ITSes of a VM: their devices, and the guest's accesses to their frames.
//!
//! Locks: [`Itses::models`], before all others of the interrupt controller. Guest memory is accessed
//! under it. A message takes only those of [`super::lpi`].

use super::{
    gic::Gic,
    lpi::{Hand, Lpis, Mem, Source},
    model::its::{self, AddressError, Effect, Its, Progress, FRAMES_SIZE, TRANSLATER},
    model::{gicattr::Kind, vgic::LpiEffect},
    Arm64,
};
use crate::{
    bindings as rb,
    host::{trace, work},
    irq::routing::Msi,
    memory::View,
    vm::Vm,
};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// A VM has so many at the most.
const MAX_ITSES: usize = 8;
/// There are no frames yet.
const NOWHERE: u64 = u64::MAX;

/// What others must know of an ITS, without its lock.
struct Slot {
    base: AtomicU64,
    enabled: AtomicBool,
}

/// The ITSes of a VM.
#[pin_data]
pub(crate) struct Itses {
    #[pin]
    pub(crate) lpis: Lpis,
    #[pin]
    models: Mutex<KVec<Its>>,
    slots: [Slot; MAX_ITSES],
    count: AtomicUsize,
}

impl Itses {
    /// None.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            lpis <- Lpis::new(),
            models <- new_mutex!(KVec::new(), "rkvm::Itses::models"),
            slots: [const {
                Slot {
                    base: AtomicU64::new(NOWHERE),
                    enabled: AtomicBool::new(false),
                }
            }; MAX_ITSES],
            count: AtomicUsize::new(0),
        })
    }

    /// There is one.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// Makes one; returns its number. The VM's creation lock is held.
    ///
    /// # Errors
    /// `ENOSPC`: there are too many. `ENOMEM`
    pub(crate) fn create(&self) -> Result<u8> {
        let mut models = self.models.lock();
        let n = models.len();
        if n >= MAX_ITSES {
            return Err(trace::refuse(ENOSPC, c"the VM has as many ITSes as it can"));
        }
        let number = u8::try_from(n)?;
        models.push(Its::new(), GFP_KERNEL_ACCOUNT)?;
        self.count.store(n + 1, Ordering::Release);
        Ok(number)
    }

    fn slots(&self) -> impl Iterator<Item = (u8, &Slot)> {
        (0u8..).zip(self.slots.iter().take(self.count.load(Ordering::Acquire)))
    }

    /// The ITS with `gpa` in its frames, and the offset.
    #[inline]
    fn at(&self, gpa: u64) -> Option<(u8, u64)> {
        self.slots().find_map(|(n, s)| {
            let offset = gpa.checked_sub(s.base.load(Ordering::Acquire))?;
            (offset < FRAMES_SIZE).then_some((n, offset))
        })
    }

    fn publish(&self, number: u8, model: &Its) {
        if let Some(s) = self.slots.get(usize::from(number)) {
            s.enabled.store(model.is_enabled(), Ordering::Release);
            s.base
                .store(model.base().unwrap_or(NOWHERE), Ordering::Release);
        }
    }
}

/// A message. 1: it led to an LPI; 0: the guest has not mapped it. Any context.
///
/// # Errors
/// `ENODEV`: there is no ITS. `EINVAL`: it is not for one, or does not say who sends it.
pub(crate) fn signal(gic: &Gic, m: &Msi) -> Result<i32> {
    if !gic.itses.any() {
        return Err(trace::refuse(ENODEV, c"the VM has no ITS"));
    }
    let (Some((number, TRANSLATER)), Some(device)) = (gic.itses.at(m.address), m.devid) else {
        return Err(trace::invalid(
            c"a message for no ITS, or without its device",
        ));
    };
    let slot = gic.itses.slots.get(usize::from(number));
    if !slot.is_some_and(|s| s.enabled.load(Ordering::Acquire)) {
        return Ok(0);
    }
    let source = Source::new(number, device, m.data);
    Ok(source.is_some_and(|s| gic.itses.lpis.signal(gic, s)).into())
}

/// What became of a guest's access.
pub(crate) enum Accessed {
    /// Done; what a read has.
    Done([u8; 8]),
    /// Commands are left: the write is to be made again.
    More,
}

/// A guest's access to the frames of an ITS; `None`: there are none at `gpa`.
///
/// # Errors
/// `ENOMEM`: the guest's commands need more memory.
pub(crate) fn mmio(
    gic: &Gic,
    view: &View<'_>,
    gpa: u64,
    len: u8,
    write: Option<&[u8; 8]>,
) -> Option<Result<Accessed>> {
    let (number, offset) = gic.itses.at(gpa)?;
    let mut models = gic.itses.models.lock();
    let model = models.get_mut(usize::from(number))?;
    let Some(data) = write else {
        let v = model.read(offset, len.into());
        return Some(Ok(Accessed::Done(v.to_le_bytes())));
    };
    let mut hand = Hand::new(gic, view, number);
    let effect = model.write(offset, len.into(), u64::from_le_bytes(*data), &mut hand);
    let more = match effect {
        Effect::None => Ok(Progress::Idle),
        // One portion, so that signals are seen and others get the lock.
        Effect::Process => model.process(&Mem(view), &mut hand),
    };
    gic.itses.publish(number, model);
    Some(match more {
        Ok(Progress::Idle) => Ok(Accessed::Done([0; 8])),
        Ok(Progress::More) => Ok(Accessed::More),
        Err(e) => Err(e.into()),
    })
}

/// What a write to the redistributor of the `index`th vCPU means for LPIs.
///
/// # Errors
/// `ENOMEM`
pub(crate) fn redistributor(gic: &Gic, view: &View<'_>, index: u32, effect: LpiEffect) -> Result {
    if effect == LpiEffect::None {
        return Ok(());
    }
    let _models = gic.itses.models.lock();
    let mut hand = Hand::new(gic, view, 0);
    match effect {
        // The model has dropped what was pending.
        LpiEffect::None | LpiEffect::Disabled => {}
        LpiEffect::Enabled => hand.enabled(index)?,
        LpiEffect::Invalidate(intid) => hand.invalidate(intid),
        LpiEffect::InvalidateAll => its::Lpis::invalidate_all(&mut hand, index)?,
    }
    Ok(())
}

/// `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`
///
/// # Errors
/// `EFAULT`: a table is not in guest memory.
pub(crate) fn save_pending_tables(gic: &Gic, view: &View<'_>) -> Result {
    let _models = gic.itses.models.lock();
    let hand = Hand::new(gic, view, 0);
    for index in 0..gic.vcpus.len() {
        hand.save_pending(index).map_err(|_| EFAULT)?;
    }
    Ok(())
}

impl From<its::Error> for Error {
    fn from(e: its::Error) -> Self {
        match e {
            its::Error::Invalid => trace::invalid(c"the ITS cannot have this"),
            its::Error::NoRegister => trace::refuse(ENXIO, c"the ITS has no such register"),
            its::Error::Busy => trace::refuse(EBUSY, c"not while the ITS is enabled"),
            its::Error::Fault => trace::refuse(EFAULT, c"a table of the ITS is not in memory"),
            its::Error::NoMemory => ENOMEM,
        }
    }
}

fn with<T>(itses: &Itses, number: u8, f: impl FnOnce(&mut Its) -> Result<T>) -> Result<T> {
    let mut models = itses.models.lock();
    let model = models.get_mut(usize::from(number)).ok_or(ENXIO)?;
    let result = f(model);
    itses.publish(number, model);
    result
}

/// An attribute of the group KVM_DEV_ARM_VGIC_GRP_ADDR that there is.
pub(crate) fn is_address(attr: u64) -> bool {
    attr == u64::from(rb::KVM_VGIC_ITS_ADDR_TYPE)
}

/// One of the group KVM_DEV_ARM_VGIC_GRP_ITS_REGS.
pub(crate) fn has_register(attr: u64) -> bool {
    Its::has_register(attr).is_ok()
}

fn need_address(attr: u64) -> Result {
    if is_address(attr) {
        return Ok(());
    }
    Err(trace::refuse(ENODEV, c"no such frame of an ITS"))
}

/// `KVM_SET_DEVICE_ATTR` of an ITS.
///
/// # Errors
/// As Documentation/virt/kvm/devices/arm-vgic-its.rst says.
pub(crate) fn set_attr(vm: &Vm<Arm64>, number: u8, kind: Kind, attr: u64, v: u64) -> Result {
    let gic = &*vm.controller;
    let itses = &gic.itses;
    let view = vm.memory.read();
    let mut hand = Hand::new(gic, &view, number);
    match kind {
        Kind::Address => {
            need_address(attr)?;
            let bits = vm.memory.config().gpa_bits;
            with(itses, number, |m| {
                m.set_base(v, bits).map_err(|e| match e {
                    AddressError::Exists => trace::refuse(EEXIST, c"the ITS has its address"),
                    AddressError::Misaligned => trace::invalid(c"frames are aligned to 64 KiB"),
                    AddressError::TooBig => trace::refuse(E2BIG, c"beyond the guest's addresses"),
                })
            })
        }
        Kind::ItsRegister => with(itses, number, |m| {
            let mut effect = m.user_write(attr, v, &mut hand)?;
            while effect == Effect::Process {
                if m.process(&Mem(&view), &mut hand)? == Progress::Idle {
                    effect = Effect::None;
                }
                if work::killed() {
                    return Err(EINTR);
                }
            }
            Ok(())
        }),
        Kind::ItsReset => with(itses, number, |m| {
            m.reset(&mut hand);
            Ok(())
        }),
        Kind::ItsSave => with(itses, number, |m| Ok(m.save(&Mem(&view))?)),
        Kind::ItsRestore => with(itses, number, |m| Ok(m.restore(&Mem(&view), &mut hand)?)),
        _ => Ok(()),
    }
}

/// `KVM_GET_DEVICE_ATTR` of an ITS.
///
/// # Errors
/// As [`set_attr`].
pub(crate) fn get_attr(gic: &Gic, number: u8, kind: Kind, attr: u64) -> Result<u64> {
    match kind {
        Kind::Address => {
            need_address(attr)?;
            with(&gic.itses, number, |m| Ok(m.base().unwrap_or(NOWHERE)))
        }
        _ => with(&gic.itses, number, |m| Ok(m.user_read(attr)?)),
    }
}
