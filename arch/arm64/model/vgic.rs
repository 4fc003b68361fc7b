// SPDX-License-Identifier: GPL-2.0

//! A virtual GICv3: distributor, redistributors, and how list registers deliver what they hold.
//!
//! - [`Private`] is what belongs to one vCPU: SGIs, PPIs, LPIs, its redistributor and the saved
//!   registers of its CPU interface. One lock a vCPU.
//! - [`Dist`] is what the VM shares: SPIs and the distributor. One lock a VM, taken after a
//!   vCPU's; [`Dist::concerns`] says whether a vCPU needs it at all.
//! - [`fill`] moves what a vCPU may take into its list registers before an entry, [`fold`] takes
//!   back what the guest left of it. In between, what is in a list register belongs to that vCPU:
//!   changes made elsewhere are noted, the vCPU's bell is to ring, and `fold` settles them.
//!
//! Nothing here allocates but [`Dist::new`] and [`LpiSlots::new`].
//!
//! Sources: the GIC architecture, Arm IHI 0069 (chapters 4, 5, 12); what is fixed or differs for
//! user space is KVM's ABI, `Documentation/virt/kvm/devices/arm-vgic-v3.rst`. One security state,
//! affinity routing always on, no extended ranges, no message-based SPIs.

mod bank;
mod cpuif;
mod deliver;
mod dist;
mod dist_access;
pub mod frames;
mod lpi;
mod lr;
mod private;
mod regs;
mod select;
mod sgi;
mod vcpus;

pub use cpuif::{CpuIf, Vmcr};
pub use deliver::{deactivate, fill, fold, pending_for, Ended, NeedsDist, Outcome};
pub use dist::{Config, Dist, NewError, IRM};
pub use lpi::{LpiError, LpiSlots, Taken};
pub use lr::{hcr, ListRegs, Lr, LrConfig, MAX_LRS};
pub use private::{Effect, LpiEffect, Private};
pub use regs::{dist as gicd, redist as gicr};
pub use sgi::{decode_sgi, Sgi, SgiReg, SgiTargets};
pub use vcpus::{Vcpus, MAX_VCPUS};

/// The first PPI.
pub const FIRST_PPI: u32 = 16;
/// The first SPI.
pub const FIRST_SPI: u32 = 32;
/// INTIDs from here to 1023 are special (IHI 0069, 2.2).
pub const END_OF_SPIS: u32 = 1020;
/// The first LPI.
pub const FIRST_LPI: u32 = 8192;
/// LPIs end here: INTIDs have 16 bits.
pub const END_OF_LPIS: u32 = 1 << 16;
/// The size of the distributor's frame, bytes.
pub const DIST_SIZE: u64 = 0x1_0000;
/// The size of a redistributor's two frames, RD_base and SGI_base, bytes.
pub const REDIST_SIZE: u64 = 0x2_0000;
/// The bits of a priority that are kept: 32 levels, the fewest that hardware may have.
const PRIORITY_MASK: u8 = 0xf8;

/// There is no such interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchInterrupt;

/// Why user space cannot have a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegError {
    /// There is no such register: `ENXIO`.
    Unknown,
    /// The register cannot have this value: `EINVAL`.
    Invalid,
}

/// The affinity of a processing element: Aff3.Aff2.Aff1.Aff0, a byte each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Affinity(u32);

impl Affinity {
    /// From the four bytes.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// From MPIDR_EL1, where Aff3 is bits 39:32.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr >> 8 & 0xff00_0000 | mpidr & 0x00ff_ffff) as u32)
    }

    /// The four bytes: also the form of GICR_TYPER and of KVM's attributes.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// What the VM's redistributors and list registers must know of its distributor. It changes
/// rarely: the shell keeps it in an atomic word, and reads it without the distributor's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Global {
    /// GICD_CTLR.EnableGrp0: group 0 is forwarded.
    pub group0: bool,
    /// GICD_CTLR.EnableGrp1: group 1 is forwarded.
    pub group1: bool,
    /// There is an ITS, and so there are LPIs.
    pub its: bool,
    /// GICD_IIDR.Revision, 2 or 3: with 3, GICR_CTLR tells of IR and CES.
    pub revision: u8,
}

impl Global {
    /// As a word, for an atomic.
    pub const fn to_bits(self) -> u32 {
        self.group0 as u32
            | (self.group1 as u32) << 1
            | (self.its as u32) << 2
            | (self.revision as u32) << 8
    }

    /// From [`Self::to_bits`].
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            group0: bits & 1 != 0,
            group1: bits & 2 != 0,
            its: bits & 4 != 0,
            revision: (bits >> 8 & 0xff) as u8,
        }
    }

    /// Those whose group is forwarded, of 32 interrupts with the groups `group`.
    #[inline]
    const fn forwards(self, group: u32) -> u32 {
        (if self.group0 { !group } else { 0 }) | if self.group1 { group } else { 0 }
    }
}

/// The indices of the bits that are set.
struct Bits(u32);

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(bit as usize)
    }
}

/// The low half.
const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
