// SPDX-License-Identifier: GPL-2.0

//! The interrupt controllers of a VM: the local APICs of its vCPUs, with the I/O APIC in user
//! space (`KVM_CAP_SPLIT_IRQCHIP`).

use super::{
    backend::Backend,
    model::{
        lapic::{deliver, Delivered, Irq},
        msi,
    },
    X86,
};
use crate::{
    host::trace,
    irq::{
        routing::{Msi, Table, Target},
        Controller,
    },
    vcpu::VcpuSet,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::{prelude::*, sync::Arc};

/// Shared by routing, irqfds and vCPUs; any context may send through it.
pub(crate) struct Irqchip<B: Backend> {
    vcpus: Arc<VcpuSet<X86<B>>>,
    /// `KVM_CAP_SPLIT_IRQCHIP` was enabled: vCPUs have local APICs.
    split: AtomicBool,
    /// How many of the first GSIs are pins of user space's I/O APICs.
    pins: AtomicU32,
    /// Destination ids of MSIs have 32 bits (`KVM_X2APIC_API_USE_32BIT_IDS`).
    wide_ids: AtomicBool,
    /// Physical destination 0xff is no broadcast to x2APICs
    /// (`KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`).
    no_broadcast_quirk: AtomicBool,
    /// Vectors whose end user space's I/O APICs want to hear of.
    eoi_exits: [AtomicU64; 4],
}

impl<B: Backend> Irqchip<B> {
    /// The controllers of a new VM: none yet.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(vcpus: &Arc<VcpuSet<X86<B>>>) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                vcpus: vcpus.clone(),
                split: AtomicBool::new(false),
                pins: AtomicU32::new(0),
                wide_ids: AtomicBool::new(false),
                no_broadcast_quirk: AtomicBool::new(false),
                eoi_exits: [const { AtomicU64::new(0) }; 4],
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// vCPUs have local APICs.
    #[inline]
    pub(crate) fn is_split(&self) -> bool {
        self.split.load(Ordering::Acquire)
    }

    /// Makes it a split irqchip with `pins` pins. The caller made sure that there is no vCPU yet.
    pub(crate) fn set_split(&self, pins: u32) {
        self.pins.store(pins, Ordering::Relaxed);
        self.split.store(true, Ordering::Release);
    }

    /// `KVM_CAP_X2APIC_API`.
    pub(crate) fn set_x2apic_api(&self, wide_ids: bool, no_broadcast_quirk: bool) {
        if wide_ids {
            self.wide_ids.store(true, Ordering::Relaxed);
        }
        if no_broadcast_quirk {
            self.no_broadcast_quirk.store(true, Ordering::Relaxed);
        }
    }

    /// Ids in MSIs and in `kvm_lapic_state` have 32 bits.
    #[inline]
    pub(crate) fn wide_ids(&self) -> bool {
        self.wide_ids.load(Ordering::Relaxed)
    }

    /// User space wants to hear of the end of this level-triggered vector.
    #[inline]
    pub(crate) fn wants_eoi(&self, vector: u8) -> bool {
        self.eoi_exits
            .get(usize::from(vector >> 6))
            .is_some_and(|w| w.load(Ordering::Relaxed) & 1 << (vector & 63) != 0)
    }

    /// Delivers a message. Any context.
    #[inline]
    pub(crate) fn send(&self, irq: &Irq) -> Delivered {
        deliver(irq, self.vcpus.iter())
    }

    fn decode(&self, m: &Msi) -> Result<Irq> {
        let words = msi::Msi {
            address_lo: (m.address & 0xffff_ffff) as u32,
            address_hi: (m.address >> 32) as u32,
            data: m.data,
        };
        words
            .irq(msi::Format {
                wide_ids: self.wide_ids(),
                extended_dest: false,
                wide_broadcast: !self.no_broadcast_quirk.load(Ordering::Relaxed),
            })
            .map_err(|_| trace::refuse(EINVAL, c"bits 7:0 of an MSI's upper address are reserved"))
    }
}

impl<B: Backend> Controller for Irqchip<B> {
    fn route_ok(&self, t: &Target) -> Result {
        match t {
            Target::Msi(m) => self.decode(m).map(|_| ()),
            // The PIC and I/O APIC are user space's.
            _ => Err(trace::refuse(
                EINVAL,
                c"routes to pins need an in-kernel I/O APIC",
            )),
        }
    }

    fn irqfd_ok(&self, resample: bool) -> Result {
        if resample {
            // Level-triggered pins are user space's, and so is their end.
            return Err(trace::refuse(
                EINVAL,
                c"resampling needs an in-kernel I/O APIC",
            ));
        }
        Ok(())
    }

    fn signal_msi(&self, m: &Msi) -> Result<i32> {
        Ok(self.send(&self.decode(m)?).status())
    }

    fn set_pin(&self, _chip: u32, _pin: u32, _source: u32, _level: bool) -> Result<i32> {
        Err(EINVAL)
    }

    fn routes_changed(&self, table: &Table<'_>) {
        let mut words = [0u64; 4];
        for gsi in 0..self.pins.load(Ordering::Relaxed) {
            for t in table.targets(gsi) {
                let Target::Msi(m) = &t.target else { continue };
                let Ok(irq) = self.decode(m) else { continue };
                if irq.level {
                    if let Some(w) = words.get_mut(usize::from(irq.vector >> 6)) {
                        *w |= 1 << (irq.vector & 63);
                    }
                }
            }
        }
        for (to, from) in self.eoi_exits.iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
    }
}
