// SPDX-License-Identifier: GPL-2.0

//! ID registers: they belong to the VM, and user space may change them until a vCPU has run. Each vCPU
//! has a copy, with what follows from them, so that a trap takes no lock.

use super::{
    host::Host,
    insn,
    model::{
        idreg::{self, Config, Write},
        sysreg::Sysreg,
        trap::Features,
    },
};
use crate::{bindings as rb, host::trace};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// A feature of `KVM_ARM_VCPU_INIT`.
pub(crate) const fn has(features: u32, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// What guests have beside what the CPU has.
fn config(host: &Host, features: u32) -> Config {
    Config {
        gic: true,
        pmu: has(features, rb::KVM_ARM_VCPU_PMU_V3).then_some(host.pmus.limit()),
        sve: has(features, rb::KVM_ARM_VCPU_SVE),
        pauth: has(features, rb::KVM_ARM_VCPU_PTRAUTH_ADDRESS),
        aarch32_el0: host.aarch32_el0,
        ras_frac: host.ras_1_0,
        ..Config::default()
    }
}

/// An ID register of the host, as far as its fields can be given to guests.
fn of_host(host: &Host, r: Sysreg) -> u64 {
    let v = insn::ftr(r);
    match r {
        // FPMR, which the instructions of FPFR0 need.
        Sysreg::ID_AA64PFR2_EL1 | Sysreg::ID_AA64FPFR0_EL1 if !host.fpmr => 0,
        // TCRX, SCTLRX, S1PIE; DF2, which is SCTLR2's; MOPS, which HCRX_EL2 turns on.
        Sysreg::ID_AA64MMFR3_EL1 if !host.later => 0,
        Sysreg::ID_AA64PFR1_EL1 if !host.later => v & !(0xf << 56),
        Sysreg::ID_AA64ISAR2_EL1 if !host.hcrx => v & !(0xf << 16),
        _ => v,
    }
}

/// The values, and what follows from them.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    table: [u64; idreg::COUNT],
    /// MIDR_EL1
    pub(crate) midr: u64,
    /// REVIDR_EL1
    pub(crate) revidr: u64,
    /// AIDR_EL1
    pub(crate) aidr: u64,
    /// What registers there are.
    pub(crate) features: Features,
}

impl Values {
    fn of_host() -> Self {
        Self {
            table: [0; idreg::COUNT],
            midr: insn::midr(),
            revidr: insn::revidr(),
            aidr: insn::aidr(),
            features: Features::default(),
        }
    }

    /// A register's; those that are not known read as zero.
    pub(crate) fn get(&self, r: Sysreg) -> u64 {
        match r {
            Sysreg::MIDR_EL1 => self.midr,
            Sysreg::REVIDR_EL1 => self.revidr,
            Sysreg::AIDR_EL1 => self.aidr,
            _ => idreg::index(r)
                .and_then(|i| self.table.get(i))
                .copied()
                .unwrap_or(0),
        }
    }

    fn slot(&mut self, r: Sysreg) -> Option<&mut u64> {
        Some(match r {
            Sysreg::MIDR_EL1 => &mut self.midr,
            Sysreg::REVIDR_EL1 => &mut self.revidr,
            Sysreg::AIDR_EL1 => &mut self.aidr,
            _ => self.table.get_mut(idreg::index(r)?)?,
        })
    }
}

struct Inner {
    values: Values,
    /// Of the VM's vCPUs; `None`: there is none yet.
    features: Option<u32>,
    /// MIDR, REVIDR and AIDR are user space's.
    implementation: bool,
}

/// A VM's.
#[pin_data]
pub(crate) struct Ids {
    #[pin]
    inner: Mutex<Inner>,
    /// Counts changes.
    version: AtomicU32,
}

impl Ids {
    /// Those of a VM without vCPUs.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(Inner {
                values: Values::of_host(),
                features: None,
                implementation: false,
            }, "rkvm::Ids"),
            version: AtomicU32::new(1),
        })
    }

    fn change(&self, inner: &mut Inner, host: &Host) {
        let config = config(host, inner.features.unwrap_or(0));
        let values = inner.values;
        inner.values.features = idreg::features(|r| values.get(r), &config);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// `KVM_ARM_VCPU_INIT` with these features, power aside: the first one decides for all vCPUs.
    ///
    /// # Errors
    /// `EINVAL`: the VM has others.
    pub(crate) fn initialize(&self, host: &Host, features: u32) -> Result {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        match inner.features {
            Some(f) if f == features => return Ok(()),
            Some(_) => return Err(trace::invalid(c"a VM's vCPUs have the same features")),
            None => inner.features = Some(features),
        }
        let config = config(host, features);
        for (row, v) in idreg::TABLE.iter().zip(&mut inner.values.table) {
            *v = idreg::guest_value(row.reg, of_host(host, row.reg), &config);
        }
        self.change(inner, host);
        Ok(())
    }

    /// `KVM_CAP_ARM_WRITABLE_IMP_ID_REGS`
    pub(crate) fn open_implementation(&self) {
        self.inner.lock().implementation = true;
    }

    /// Before a vCPU runs: all is as it stays, from when `ran` is set. `gic`: there is an interrupt controller.
    pub(crate) fn close(&self, host: &Host, gic: bool, ran: &AtomicBool) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if !gic {
            for (row, v) in idreg::TABLE.iter().zip(&mut inner.values.table) {
                *v = idreg::without_gic(row.reg, *v);
            }
        }
        self.change(inner, host);
        ran.store(true, Ordering::Release);
    }

    /// The values, if they have changed since `seen`, which is then brought up to date.
    pub(crate) fn newer(&self, seen: &mut u32) -> Option<Values> {
        if self.version.load(Ordering::Acquire) == *seen {
            return None;
        }
        let inner = self.inner.lock();
        *seen = self.version.load(Ordering::Relaxed);
        Some(inner.values)
    }

    /// A register's, for user space.
    pub(crate) fn get(&self, r: Sysreg) -> u64 {
        self.inner.lock().values.get(r)
    }

    /// User space sets a register; `ran`: see [`Self::close`].
    ///
    /// # Errors
    /// `EINVAL`: the host has not what it says. `EBUSY`: a vCPU has run.
    pub(crate) fn set(&self, host: &Host, r: Sysreg, value: u64, ran: &AtomicBool) -> Result {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let same = inner.values.get(r) == value;
        if ran.load(Ordering::Acquire) {
            return if same {
                Ok(())
            } else {
                Err(trace::refuse(
                    EBUSY,
                    c"ID registers stay once a vCPU has run",
                ))
            };
        }
        let value = match idreg::implementation_mask(r) {
            Some(_) if same => value,
            Some(mask) if inner.implementation && value & !mask == 0 => value,
            Some(_) => return Err(trace::invalid(c"the implementation is the host's")),
            None => {
                let config = config(host, inner.features.unwrap_or(0));
                let of_host = idreg::index(r).map_or(0, |_| of_host(host, r));
                match idreg::check_write(r, of_host, value, &config) {
                    Ok(Write::Set(v)) => v,
                    Ok(Write::Ignore) => return Ok(()),
                    Err(idreg::InvalidValue) => {
                        return Err(trace::invalid(
                            c"more than the host can give in an ID register",
                        ))
                    }
                }
            }
        };
        if let Some(v) = inner.values.slot(r) {
            *v = value;
            self.change(inner, host);
        }
        Ok(())
    }
}
