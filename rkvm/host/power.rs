// SPDX-License-Identifier: GPL-2.0

//! Turning the virtualization hardware on and off with the CPUs: at load and unload, hotplug,
//! suspend and resume, reboot and kexec.

use crate::bindings as rb;
use core::marker::PhantomData;
use kernel::{error::to_result, ffi::c_int, prelude::*};

/// What a family does on one CPU. Called with interrupts off, on that CPU.
pub(crate) trait CpuPower: 'static {
    /// Turns the hardware on.
    ///
    /// # Errors
    /// Whatever keeps it off; the CPU then does not come online.
    fn on() -> Result;
    /// Turns it off; nothing happens where it is off.
    fn off();
}

/// The hardware is on, on every online CPU, as long as this exists. There is at most one.
pub(crate) struct PoweredOn<P: CpuPower>(PhantomData<P>);

impl<P: CpuPower> PoweredOn<P> {
    extern "C" fn on() -> c_int {
        match P::on() {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    extern "C" fn off() {
        P::off();
    }

    /// Turns the hardware on everywhere.
    ///
    /// # Errors
    /// What [`CpuPower::on`] says on the first CPU that refuses; then it is off everywhere again.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Both functions live as long as the module; `drop` unregisters them.
        to_result(unsafe { rb::rkvm_power_register(Some(Self::on), Some(Self::off)) })?;
        Ok(Self(PhantomData))
    }
}

impl<P: CpuPower> Drop for PoweredOn<P> {
    fn drop(&mut self) {
        // SAFETY: Registered by `new`; the module is being unloaded, so no VM lives.
        unsafe { rb::rkvm_power_unregister() };
    }
}
