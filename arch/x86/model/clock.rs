// SPDX-License-Identifier: GPL-2.0

//! Arithmetic of guest time: TSC offset and scaling, kvmclock, deadlines.
//!
//! All of it is on plain numbers: the shell reads the host's clocks. Guest values may be anything,
//! so sums wrap where hardware wraps, and times saturate. There is no 128-bit division, which the
//! kernel does not have.
//!
//! Sources: AMD APM vol. 2 15.30.5 (TSC ratio), Intel SDM vol. 3C 26.6.5 (TSC multiplier), the
//! kernel's Documentation/virt/kvm/x86/timekeeping.rst, msr.rst and devices/vcpu.rst.

/// Nanoseconds a second.
pub const NS_PER_S: u64 = 1_000_000_000;
/// Nanoseconds a millisecond: what a frequency in kHz divides.
const NS_PER_MS: u64 = 1_000_000;

/// `value * mul / div`, rounded down; `u64::MAX` if that is too large, or `div` is 0.
///
/// Divides bit by bit: for setting things up, not for the exit path.
pub const fn mul_div(value: u64, mul: u64, div: u64) -> u64 {
    let wide = (value as u128).wrapping_mul(mul as u128);
    let mut rest = (wide >> 64) as u64;
    if rest >= div {
        return u64::MAX;
    }
    let low = (wide & u64::MAX as u128) as u64;
    let mut quotient = 0u64;
    let mut bit = 64;
    while bit != 0 {
        bit -= 1;
        // `rest` is below `div`; doubled, it may need a 65th bit.
        let carry = rest >> 63 != 0;
        rest = rest << 1 | low >> bit & 1;
        quotient <<= 1;
        if carry || rest >= div {
            rest = rest.wrapping_sub(div);
            quotient |= 1;
        }
    }
    quotient
}

/// How many cycles of a clock of `khz` are in `ns`, rounded down.
pub const fn ns_to_cycles(ns: u64, khz: u32) -> u64 {
    mul_div(ns, khz as u64, NS_PER_MS)
}

/// A factor as kvmclock has it: `x` becomes `(x << shift) * mult >> 32` (a negative shift is to
/// the right).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The multiplier: its highest bit is set, for the best precision.
    pub mult: u32,
    /// The shift
    pub shift: i8,
}

impl Scale {
    /// The factor that turns ticks of a clock of `from_hz` into ticks of one of `to_hz`; too small
    /// by at most one in 2^31. None if one of them is 0, or they differ by a factor of 2^31.
    ///
    /// Tries the shifts one by one: for setting things up.
    pub const fn new(from_hz: u64, to_hz: u64) -> Option<Self> {
        if from_hz == 0 {
            return None;
        }
        let mut shift = -31i8;
        while shift < 32 {
            let mult = mul_div(to_hz, 1 << (32 - shift as i32), from_hz);
            if mult >> 32 == 0 {
                // The smallest shift that fits has the most precision.
                return if mult >> 31 == 1 {
                    Some(Self {
                        mult: mult as u32,
                        shift,
                    })
                } else {
                    None
                };
            }
            shift += 1;
        }
        None
    }

    /// The factor from cycles of a clock of `khz` to nanoseconds: kvmclock's.
    pub const fn to_ns(khz: u32) -> Option<Self> {
        Self::new(khz as u64 * 1000, NS_PER_S)
    }

    /// Scales `x` as a guest that follows the protocol does, so with the same bits lost.
    #[inline]
    pub const fn apply(self, x: u64) -> u64 {
        let x = if self.shift < 0 {
            x >> (self.shift.unsigned_abs() & 63)
        } else {
            x << (self.shift.unsigned_abs() & 63)
        };
        ((x as u128).wrapping_mul(self.mult as u128) >> 32 & u64::MAX as u128) as u64
    }

    /// Scales `x`, rounded up, and `u64::MAX` if that is too large.
    #[inline]
    pub const fn apply_up(self, x: u64) -> u64 {
        // Below 2^96, so nothing is lost; shifted to the right by 1 to 63.
        let wide = (x as u128).wrapping_mul(self.mult as u128);
        let right = (32 - self.shift as i32) as u32 & 63;
        let up = wide.wrapping_add((1 << right) - 1) >> right;
        if up >> 64 == 0 {
            up as u64
        } else {
            u64::MAX
        }
    }
}

/// When a guest's TSC reaches `deadline`, on the monotonic clock: never too early by this
/// arithmetic, but the host may slew its clock. `now_ns` and `now_tsc` were read together. At most
/// `i64::MAX`, which the kernel's timers take for "never".
#[inline]
pub const fn deadline_ns(deadline: u64, now_ns: u64, now_tsc: u64, tsc_to_ns: Scale) -> u64 {
    const NEVER: u64 = i64::MAX as u64;
    if deadline <= now_tsc {
        return now_ns;
    }
    // One more, as the factor is rounded down.
    let cycles = deadline - now_tsc;
    let ns = tsc_to_ns
        .apply_up(cycles)
        .saturating_add(tsc_to_ns.apply_up(cycles >> 31));
    let at = now_ns.saturating_add(ns);
    if at < NEVER {
        at
    } else {
        NEVER
    }
}

/// The ratio of a guest's TSC to the host's: a fixed-point number, as the hardware takes it. SVM
/// has 32 bits of fraction and 8 above, VMX 48 of fraction and 16 above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRatio {
    /// The number
    pub ratio: u64,
    /// Bits of fraction
    pub fraction: u8,
}

impl TscRatio {
    /// The ratio 1.
    pub const fn one(fraction: u8) -> Self {
        Self {
            ratio: 1 << (fraction & 63),
            fraction: fraction & 63,
        }
    }

    /// Nothing is scaled.
    #[inline]
    pub const fn is_one(self) -> bool {
        self.ratio == 1 << (self.fraction & 63)
    }

    /// The ratio that turns the host's frequency into the guest's. None if that needs more than
    /// `integer` bits above the fraction, or is 0.
    pub const fn new(guest_khz: u32, host_khz: u32, fraction: u8, integer: u8) -> Option<Self> {
        let fraction = fraction & 63;
        let ratio = mul_div(guest_khz as u64, 1 << fraction, host_khz as u64);
        let bits = fraction as u32 + integer as u32;
        if ratio == 0 || ratio == u64::MAX || bits < 64 && ratio >> bits != 0 {
            return None;
        }
        Some(Self { ratio, fraction })
    }

    /// The host's TSC `tsc`, or a number of its cycles, in the guest's cycles.
    #[inline]
    pub const fn scale(self, tsc: u64) -> u64 {
        if self.is_one() {
            return tsc;
        }
        let wide = (tsc as u128).wrapping_mul(self.ratio as u128);
        (wide >> (self.fraction & 63) & u64::MAX as u128) as u64
    }

    /// The guest's TSC when the host's is `host_tsc`.
    #[inline]
    pub const fn guest_tsc(self, host_tsc: u64, offset: u64) -> u64 {
        self.scale(host_tsc).wrapping_add(offset)
    }

    /// The offset with which the guest's TSC is `value` when the host's is `host_tsc`.
    #[inline]
    pub const fn offset_for(self, value: u64, host_tsc: u64) -> u64 {
        value.wrapping_sub(self.scale(host_tsc))
    }
}

/// How the hardware takes a [`TscRatio`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScaling {
    /// Bits of fraction
    pub fraction: u8,
    /// Bits above
    pub integer: u8,
}

/// The frequency of a guest's TSC, and how that comes from the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRate {
    /// In kHz; not 0 unless the host's is
    pub khz: u32,
    /// To the host's
    pub ratio: TscRatio,
}

/// Why a guest's TSC cannot have a frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRate {
    /// The hardware does not scale.
    Unscaled,
    /// Not by that much, or `KVM_GET_TSC_KHZ`, which gives an `int`, could not tell it.
    TooFar,
}

/// How far from the host's a frequency may be said to be and still be taken for it, in ppm.
const TOLERANCE_PPM: u64 = 250;

impl TscRate {
    /// The host's own frequency.
    pub const fn host(khz: u32) -> Self {
        Self {
            khz,
            ratio: TscRatio::one(32),
        }
    }

    /// A frequency as user space asks for it: 0 is the host's, and so is what is that within the
    /// precision of clocks.
    ///
    /// # Errors
    /// [`NoRate`]
    pub const fn new(
        asked: u64,
        host_khz: u32,
        scaling: Option<TscScaling>,
    ) -> Result<Self, NoRate> {
        let host = host_khz as u64;
        let apart = asked.abs_diff(host).saturating_mul(1_000_000);
        if asked == 0 || apart / if host == 0 { 1 } else { host } <= TOLERANCE_PPM {
            return Ok(Self::host(host_khz));
        }
        let Some(TscScaling { fraction, integer }) = scaling else {
            return Err(NoRate::Unscaled);
        };
        if asked > i32::MAX as u64 {
            return Err(NoRate::TooFar);
        }
        let khz = (asked & 0x7fff_ffff) as u32;
        match TscRatio::new(khz, host_khz, fraction, integer) {
            Some(ratio) => Ok(Self { khz, ratio }),
            None => Err(NoRate::TooFar),
        }
    }

    /// The factor from the guest's cycles to nanoseconds.
    pub const fn to_ns(self) -> Scale {
        match Scale::to_ns(self.khz) {
            Some(scale) => scale,
            // 1 GHz, if the host's frequency makes no sense.
            None => Scale {
                mult: 1 << 31,
                shift: 1,
            },
        }
    }
}

/// The TSC offset of a vCPU, and IA32_TSC_ADJUST (SDM vol. 3B 18.17.3). Both wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscOffset {
    /// What is added to the scaled TSC of the host
    pub offset: u64,
    /// IA32_TSC_ADJUST
    pub adjust: u64,
}

impl TscOffset {
    /// The guest writes IA32_TSC: IA32_TSC_ADJUST follows.
    pub fn write_tsc(&mut self, value: u64, host_tsc: u64, ratio: TscRatio) {
        let offset = ratio.offset_for(value, host_tsc);
        self.adjust = self.adjust.wrapping_add(offset.wrapping_sub(self.offset));
        self.offset = offset;
    }

    /// The guest writes IA32_TSC_ADJUST: the TSC follows. (The host's write only sets the
    /// register.)
    pub fn write_adjust(&mut self, value: u64) {
        self.offset = self.offset.wrapping_add(value.wrapping_sub(self.adjust));
        self.adjust = value;
    }
}

/// A write to a vCPU's TSC by user space, or its start at vCPU creation (which is a write of 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscWrite {
    /// The value written
    pub value: u64,
    /// By user space, so not at creation
    pub by_user: bool,
    /// The host's TSC now
    pub host_tsc: u64,
    /// The time now, ns, of a clock that goes on while the host sleeps
    pub now_ns: u64,
    /// Frequency of the guest's TSC
    pub khz: u32,
    /// Scaling of the vCPU
    pub ratio: TscRatio,
    /// The host's TSC is the same on all processors, and runs at constant speed.
    pub stable: bool,
}

/// The last write, and the first of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LastWrite {
    value: u64,
    at_ns: u64,
    khz: u32,
    offset: u64,
    generation_offset: u64,
}

/// Keeps the TSCs of a VM's vCPUs in step. Owned by the VM, behind a lock.
///
/// User space restores the TSCs one after the other, each with a value that is a little older than
/// the last; what it means is that they are the same. So a write that is within a second of what
/// the last written TSC would be now belongs to the same *generation*, and gets the same offset.
/// That is so from the second write by user space on: the first is not compared to what the vCPUs
/// were created with. Writing 0 always means "in step".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscSync {
    generation: u64,
    /// vCPUs of this generation, besides the one that began it
    followers: u32,
    user_wrote: bool,
    last: Option<LastWrite>,
}

impl TscSync {
    /// The offset for `write`. `generation` is the vCPU's own, 0 at creation, and is updated.
    pub fn write(&mut self, write: &TscWrite, generation: &mut u64) -> u64 {
        let user_wrote = self.user_wrote;
        self.join(write, generation, |close| {
            write.value == 0 || user_wrote && close
        })
    }

    /// The offset of a vCPU whose frequency has changed to `write.khz`; `write.value` is what its TSC
    /// has come to, and goes on from, so that the guest sees no jump. It is in step with the one that
    /// changed before, as all of a VM's do, one after the other.
    pub fn rescale(&mut self, write: &TscWrite, generation: &mut u64) -> u64 {
        self.join(write, generation, |close| close)
    }

    /// The offset for `write`; `in_step` says whether it belongs to the last one's generation, by
    /// whether the values are within a second of each other.
    fn join(
        &mut self,
        write: &TscWrite,
        generation: &mut u64,
        in_step: impl FnOnce(bool) -> bool,
    ) -> u64 {
        // What the TSC that was written last is now, if this one is to be in step with it.
        let matching = self
            .last
            .filter(|last| last.khz == write.khz)
            .and_then(|last| {
                let elapsed = ns_to_cycles(write.now_ns.wrapping_sub(last.at_ns), write.khz);
                let expected = last.value.wrapping_add(elapsed);
                let second = u64::from(write.khz).wrapping_mul(1000);
                let apart = write.value.wrapping_sub(expected);
                let close = apart < second || apart.wrapping_neg() < second;
                in_step(close).then_some((last, expected))
            });
        let offset = match matching {
            Some((last, _)) if write.stable => last.generation_offset,
            Some((_, expected)) => write.ratio.offset_for(expected, write.host_tsc),
            None => write.ratio.offset_for(write.value, write.host_tsc),
        };
        // The value as written counts for the next comparison: a row of writes may take more than
        // a second.
        self.record(write, write.value, offset, matching.is_some(), generation);
        offset
    }

    /// User space sets the `offset` itself (KVM_VCPU_TSC_OFFSET); `write.value` does not count.
    pub fn set_offset(&mut self, offset: u64, write: &TscWrite, generation: &mut u64) {
        let value = write.ratio.guest_tsc(write.host_tsc, offset);
        let same = self
            .last
            .is_some_and(|last| last.khz == write.khz && last.offset == offset);
        self.record(write, value, offset, same, generation);
    }

    fn record(
        &mut self,
        write: &TscWrite,
        value: u64,
        offset: u64,
        matched: bool,
        generation: &mut u64,
    ) {
        self.user_wrote |= write.by_user;
        let generation_offset = match self.last {
            Some(last) if matched => last.generation_offset,
            _ => offset,
        };
        if !matched {
            self.generation = self.generation.wrapping_add(1);
            self.followers = 0;
        } else if *generation != self.generation {
            self.followers = self.followers.saturating_add(1);
        }
        *generation = self.generation;
        let (at_ns, khz) = (write.now_ns, write.khz);
        self.last = Some(LastWrite {
            value,
            at_ns,
            khz,
            offset,
            generation_offset,
        });
    }

    /// Whether all of `vcpus` vCPUs are of the same generation, as a master clock needs it.
    pub const fn all_match(&self, vcpus: u32) -> bool {
        self.generation != 0 && self.followers.saturating_add(1) >= vcpus
    }
}

/// A point at which the host's TSC and its clock were read together: what kvmclock counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// The host's TSC
    pub host_tsc: u64,
    /// The host's clock (boot time, raw), ns
    pub ns: u64,
}

/// The kvmclock of a VM: the host's clock plus an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvmClock {
    /// ns, wrapping
    pub offset: u64,
}

impl KvmClock {
    /// A clock that reads 0 at `host_ns`.
    pub const fn starting_at(host_ns: u64) -> Self {
        Self {
            offset: host_ns.wrapping_neg(),
        }
    }

    /// What the clock reads when the host's is at `host_ns`.
    #[inline]
    pub const fn at(self, host_ns: u64) -> u64 {
        host_ns.wrapping_add(self.offset)
    }

    /// What the clock reads at `host_tsc`, for a VM with a master clock: as the guests compute it.
    pub const fn at_tsc(self, from: Reference, host_tsc: u64, host_tsc_to_ns: Scale) -> u64 {
        let since = host_tsc_to_ns.apply(host_tsc.wrapping_sub(from.host_tsc));
        self.at(from.ns).wrapping_add(since)
    }

    /// KVM_SET_CLOCK: the clock reads `clock` at `host_ns`. With KVM_CLOCK_REALTIME, `realtime` is
    /// the real time that user space gave and the real time now, ns; the clock goes on by what has
    /// passed in between, if that is not negative.
    pub const fn set(clock: u64, host_ns: u64, realtime: Option<(u64, u64)>) -> Self {
        let passed = match realtime {
            Some((then, now)) => now.saturating_sub(then),
            None => 0,
        };
        Self {
            offset: clock.wrapping_add(passed).wrapping_sub(host_ns),
        }
    }
}

/// The guest's kvmclock page, struct pvclock_vcpu_time_info, without the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// The guest's TSC
    pub tsc: u64,
    /// The time at that moment, ns
    pub ns: u64,
    /// From the guest's TSC to ns
    pub scale: Scale,
    /// The time is the same on all vCPUs (PVCLOCK_TSC_STABLE_BIT).
    pub stable: bool,
    /// The guest was stopped by its host (PVCLOCK_GUEST_STOPPED).
    pub stopped: bool,
}

/// PVCLOCK_TSC_STABLE_BIT
const STABLE: u8 = 1 << 0;
/// PVCLOCK_GUEST_STOPPED
const STOPPED: u8 = 1 << 1;

impl TimeInfo {
    /// Size of the structure in guest memory, bytes.
    pub const SIZE: usize = 32;

    /// The time information of a vCPU from `from` on.
    pub const fn new(
        from: Reference,
        clock: KvmClock,
        ratio: TscRatio,
        offset: u64,
        scale: Scale,
        stable: bool,
    ) -> Self {
        Self {
            tsc: ratio.guest_tsc(from.host_tsc, offset),
            ns: clock.at(from.ns),
            scale,
            stable,
            stopped: false,
        }
    }

    /// The structure, little-endian, with `version`.
    pub fn to_bytes(self, version: u32) -> [u8; Self::SIZE] {
        let flags = if self.stable { STABLE } else { 0 } | if self.stopped { STOPPED } else { 0 };
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&version.to_le_bytes());
        out[8..16].copy_from_slice(&self.tsc.to_le_bytes());
        out[16..24].copy_from_slice(&self.ns.to_le_bytes());
        out[24..28].copy_from_slice(&self.scale.mult.to_le_bytes());
        out[28..29].copy_from_slice(&self.scale.shift.to_le_bytes());
        out[29] = flags;
        out
    }

    /// Whether the guest has not yet cleared the "stopped" flag of the page that it has, which
    /// stays until it does.
    pub const fn was_stopped(page: &[u8; Self::SIZE]) -> bool {
        page[29] & STOPPED != 0
    }

    /// What the guest computes at its TSC `tsc`.
    pub const fn read(&self, tsc: u64) -> u64 {
        self.ns
            .wrapping_add(self.scale.apply(tsc.wrapping_sub(self.tsc)))
    }
}

/// The versions for an update of a page whose version is `old`: an odd one to write first, while
/// the rest changes, and an even one to write last.
pub const fn next_versions(old: u32) -> (u32, u32) {
    let odd = old.wrapping_add(1) | 1;
    (odd, odd.wrapping_add(1))
}

/// struct pvclock_wall_clock: the real time at which kvmclock was 0, from the real time now and
/// kvmclock now, in ns. Seconds are modulo 2^32, as the field is.
pub fn wall_clock(version: u32, realtime_ns: u64, clock_ns: u64) -> [u8; 12] {
    let zero = realtime_ns.wrapping_sub(clock_ns);
    let seconds = ((zero / NS_PER_S) & 0xffff_ffff) as u32;
    let ns = (zero % NS_PER_S) as u32;
    let mut out = [0; 12];
    out[0..4].copy_from_slice(&version.to_le_bytes());
    out[4..8].copy_from_slice(&seconds.to_le_bytes());
    out[8..12].copy_from_slice(&ns.to_le_bytes());
    out
}
