// SPDX-License-Identifier: GPL-2.0

//! The guest's time stamp counter: offset, scaling, IA32_TSC and IA32_TSC_ADJUST, and how the
//! vCPUs of a VM get the same offset although user space writes to them one after the other.
//!
//! Sources: SDM vol. 3B 18.17, APM vol. 2 15.30.5 (TSC ratio), Linux
//! `Documentation/virt/kvm/devices/vcpu.rst` section 4.

use super::Origin;

/// A ratio of frequencies as hardware takes it: a fixed-point number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// The number, with `fraction_bits` of fraction.
    pub value: u64,
    /// 32 on SVM, 48 on VMX, at most 63.
    pub fraction_bits: u8,
}

impl Ratio {
    /// The ratio 1.
    pub const fn one(fraction_bits: u8) -> Ratio {
        Ratio {
            value: 1 << (fraction_bits & 63),
            fraction_bits,
        }
    }

    /// `guest_khz / host_khz`, rounded down. `None` if a frequency is zero or the ratio does not
    /// fit (hardware takes 8 bits before the point on SVM, 16 on VMX; `int_bits` says which).
    pub fn new(guest_khz: u32, host_khz: u32, fraction_bits: u8, int_bits: u8) -> Option<Ratio> {
        if guest_khz == 0 || host_khz == 0 {
            return None;
        }
        let host = u64::from(host_khz);
        let mut value = u64::from(guest_khz) / host;
        if value.checked_shr(u32::from(int_bits))? != 0 {
            return None;
        }
        // Long division, a bit at a time: 128-bit division is not to be had in a kernel.
        let mut rest = u64::from(guest_khz) % host;
        for _ in 0..fraction_bits {
            rest <<= 1;
            value = value << 1 | u64::from(rest >= host);
            if rest >= host {
                rest -= host;
            }
        }
        (value != 0).then_some(Ratio {
            value,
            fraction_bits,
        })
    }

    /// The guest's cycles in `tsc` cycles of the host.
    #[inline]
    pub const fn scale(&self, tsc: u64) -> u64 {
        let wide = (tsc as u128).wrapping_mul(self.value as u128) >> (self.fraction_bits & 63);
        // Counters wrap: the low half is the result.
        (wide & u64::MAX as u128) as u64
    }
}

/// One vCPU's counter. Guest TSC = scaled host TSC + offset, modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// What the control block's TSC offset is to be.
    pub offset: u64,
    /// IA32_TSC_ADJUST.
    pub adjust: u64,
    /// Guest cycles per host cycle.
    pub ratio: Ratio,
}

impl Tsc {
    /// The counter's value when the host's is `host_tsc`.
    #[inline]
    pub const fn read(&self, host_tsc: u64) -> u64 {
        self.ratio.scale(host_tsc).wrapping_add(self.offset)
    }

    /// The host's counter when the guest's will be (or was) `guest`, as a distance from `host_tsc`
    /// in guest cycles.
    #[inline]
    pub const fn until(&self, guest: u64, host_tsc: u64) -> u64 {
        guest.wrapping_sub(self.read(host_tsc))
    }

    /// The offset with which the counter would be `value` at `host_tsc`.
    #[inline]
    pub const fn offset_for(&self, value: u64, host_tsc: u64) -> u64 {
        value.wrapping_sub(self.ratio.scale(host_tsc))
    }

    /// The guest writes IA32_TSC: the counter moves, and TSC_ADJUST by as much (SDM 18.17.3).
    pub fn guest_write(&mut self, value: u64, host_tsc: u64) {
        let new = self.offset_for(value, host_tsc);
        self.adjust = self.adjust.wrapping_add(new.wrapping_sub(self.offset));
        self.offset = new;
    }

    /// IA32_TSC_ADJUST is written. By the guest the counter moves by as much as the register; user
    /// space restores the register alone.
    pub fn write_adjust(&mut self, value: u64, origin: Origin) {
        if origin == Origin::Guest {
            self.offset = self.offset.wrapping_add(value.wrapping_sub(self.adjust));
        }
        self.adjust = value;
    }
}

/// What a VM remembers of user space's last write to IA32_TSC of any of its vCPUs.
///
/// User space that starts or restores a VM writes the vCPUs' counters one by one. Between two
/// writes time passes, so offsets worked out for each would differ, and the guest would see its
/// processors' counters apart. A write that continues the last one therefore gets its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sync {
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    value: u64,
    offset: u64,
    ns: u64,
    khz: u32,
}

impl Sync {
    /// User space writes `value` at host time `ns` (monotonic nanoseconds) and host counter
    /// `host_tsc`, to a vCPU whose counter runs at `khz`. Returns the offset to use; `tsc` is not
    /// changed.
    ///
    /// `initial` marks the write of zero that creating a vCPU implies: it always continues an
    /// earlier one, so that a vCPU plugged in later has the others' counter.
    pub fn write(
        &mut self,
        tsc: &Tsc,
        value: u64,
        host_tsc: u64,
        ns: u64,
        khz: u32,
        initial: bool,
    ) -> u64 {
        if let Some(last) = self.last.filter(|l| l.khz == khz) {
            let expected = last
                .value
                .wrapping_add(cycles(ns.saturating_sub(last.ns), khz));
            let second = u64::from(khz).wrapping_mul(1000);
            // Within a second on either side of where the last write has got to.
            let near = value.wrapping_sub(expected).wrapping_add(second) < 2 * second;
            if initial || near {
                return last.offset;
            }
        }
        let offset = tsc.offset_for(value, host_tsc);
        self.last = Some(Last {
            value,
            offset,
            ns,
            khz,
        });
        offset
    }
}

/// Cycles of a `khz` counter in `ns` nanoseconds, modulo 2^64.
pub const fn cycles(ns: u64, khz: u32) -> u64 {
    let khz = khz as u64;
    (ns / 1_000_000)
        .wrapping_mul(khz)
        .wrapping_add((ns % 1_000_000) * khz / 1_000_000)
}
