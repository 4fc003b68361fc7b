// SPDX-License-Identifier: GPL-2.0

//! Where the frames of a GICv3 are in guest-physical memory: what user space may say, and what follows
//! (Linux `Documentation/virt/kvm/devices/arm-vgic-v3.rst`, KVM_DEV_ARM_VGIC_GRP_ADDR).

use super::{DIST_SIZE, REDIST_SIZE};
use core::ops::Range;

/// Frames are aligned to 64 KiB (IHI 0069, 12.9).
const ALIGN: u64 = 0x1_0000;

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// EINVAL: not aligned, out of order, overlaps, or the two ways to say it are mixed.
    Invalid,
    /// EEXIST: it has an address.
    Exists,
    /// E2BIG: not within guest-physical memory.
    TooBig,
}

/// Why no vCPU can run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// ENXIO: the distributor, or a redistributor, has no address.
    Missing,
    /// EINVAL: frames overlap, or reach beyond guest-physical memory.
    Misplaced,
}

/// A frame of `size` bytes at `base` is aligned, and below `limit`.
///
/// # Errors
/// See [`FrameError`].
pub const fn check(base: u64, size: u64, limit: u64) -> Result<(), FrameError> {
    if base % ALIGN != 0 {
        return Err(FrameError::Invalid);
    }
    match base.checked_add(size) {
        Some(end) if end <= limit => Ok(()),
        _ => Err(FrameError::TooBig),
    }
}

const fn overlap(a: u64, a_size: u64, b: u64, b_size: u64) -> bool {
    a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
}

/// Redistributors, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    base: u64,
    /// How many; `None`: as many as there are vCPUs (KVM_VGIC_V3_ADDR_TYPE_REDIST).
    count: Option<u32>,
}

impl Region {
    /// The only region, for all vCPUs: KVM_VGIC_V3_ADDR_TYPE_REDIST. There are `vcpus` now.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn single(
        base: u64,
        others: &[Region],
        vcpus: u32,
        limit: u64,
    ) -> Result<Self, FrameError> {
        match others.first() {
            Some(Region { count: None, .. }) => return Err(FrameError::Exists),
            Some(_) => return Err(FrameError::Invalid),
            None => {}
        }
        let region = Self { base, count: None };
        check(base, region.size(vcpus.max(1)), limit)?;
        Ok(region)
    }

    /// One of several: KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION with the value `attr`, behind `others`; the
    /// distributor is at `dist`.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn indexed(
        attr: u64,
        others: &[Region],
        dist: Option<u64>,
        limit: u64,
    ) -> Result<Self, FrameError> {
        // 63:52 the number, 51:16 the address, 15:12 flags, 11:0 the index.
        let count = u32::try_from(attr >> 52).unwrap_or(0);
        let in_order = attr & 0xfff == others.len() as u64;
        let mixed = others.iter().any(|r| r.count.is_none());
        if count == 0 || attr & 0xf000 != 0 || !in_order || mixed {
            return Err(FrameError::Invalid);
        }
        let region = Self {
            base: attr & 0x000f_ffff_ffff_0000,
            count: Some(count),
        };
        let size = region.size(0);
        check(region.base, size, limit)?;
        let on_other = |r: &Region| overlap(region.base, size, r.base, r.size(0));
        let on_dist = dist.is_some_and(|d| overlap(region.base, size, d, DIST_SIZE));
        if on_dist || others.iter().any(on_other) {
            return Err(FrameError::Invalid);
        }
        Ok(region)
    }

    /// The value of the attribute, to be read back.
    pub fn attr(&self, index: u64) -> u64 {
        u64::from(self.count.unwrap_or(0)) << 52 | self.base | index & 0xfff
    }

    /// Its first address.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// User space has said it in the way that has but one region.
    pub const fn is_single(&self) -> bool {
        self.count.is_none()
    }

    fn frames(&self, vcpus: u32) -> u32 {
        self.count.unwrap_or(vcpus)
    }

    fn size(&self, vcpus: u32) -> u64 {
        u64::from(self.frames(vcpus)).saturating_mul(REDIST_SIZE)
    }
}

/// The addresses of the redistributors, in the order of the vCPUs' creation, as far as there are any.
pub fn redistributors(regions: &[Region], vcpus: u32) -> impl Iterator<Item = u64> + Clone + '_ {
    let frames = regions.iter().flat_map(move |r| {
        (0..r.frames(vcpus)).map(move |i| r.base.saturating_add(u64::from(i) * REDIST_SIZE))
    });
    frames.take(vcpus as usize)
}

/// The redistributors of a region that there is: `count` from `base` on, of the `first` vCPU and the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    base: u64,
    first: u32,
    count: u32,
}

/// The redistributors by region, in the order of the vCPUs. For [`find`] they are to be sorted.
pub fn runs(regions: &[Region], vcpus: u32) -> impl Iterator<Item = Run> + '_ {
    let mut first = 0;
    regions.iter().map_while(move |r| {
        let count = r.frames(vcpus).min(vcpus.checked_sub(first)?);
        let run = Run {
            base: r.base,
            first,
            count,
        };
        first += count;
        (count != 0).then_some(run)
    })
}

/// The addresses between which all are. `sorted`: see [`runs`].
pub fn span(sorted: &[Run]) -> Range<u64> {
    let start = sorted.first().map_or(0, |r| r.base);
    let size = |r: &Run| u64::from(r.count).saturating_mul(REDIST_SIZE);
    let end = sorted.last().map_or(0, |r| r.base.saturating_add(size(r)));
    start..end
}

/// The vCPU whose redistributor has this address, and the offset in it. `sorted`: see [`runs`].
pub fn find(sorted: &[Run], gpa: u64) -> Option<(u32, u64)> {
    let after = sorted.partition_point(|r| r.base <= gpa);
    let run = sorted.get(after.checked_sub(1)?)?;
    let at = gpa.checked_sub(run.base)?;
    let n = u32::try_from(at / REDIST_SIZE).ok()?;
    (n < run.count).then_some((run.first.checked_add(n)?, at % REDIST_SIZE))
}

/// Whether no redistributor follows the one at `base`, for GICR_TYPER.Last.
pub fn is_last(base: u64, mut all: impl Iterator<Item = u64>) -> bool {
    !all.any(|other| other == base.saturating_add(REDIST_SIZE))
}

/// Looks at everything before a vCPU runs.
///
/// # Errors
/// See [`NotReady`].
pub fn ready(
    regions: &[Region],
    vcpus: u32,
    dist: Option<u64>,
    limit: u64,
) -> Result<(), NotReady> {
    let room: u64 = regions.iter().map(|r| u64::from(r.frames(vcpus))).sum();
    let Some(dist) = dist.filter(|_| room >= u64::from(vcpus)) else {
        return Err(NotReady::Missing);
    };
    let well = |r: &Region| {
        let size = r.size(vcpus);
        check(r.base, size, limit).is_ok() && !overlap(r.base, size, dist, DIST_SIZE)
    };
    if regions.iter().all(well) {
        Ok(())
    } else {
        Err(NotReady::Misplaced)
    }
}
