// SPDX-License-Identifier: GPL-2.0

//! The table of leaves: what each register of a leaf shows to guests.

/// What one register of a leaf shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// Zero.
    Zero,
    /// The host's bits under a mask.
    Host(u32),
    /// The feature bits that are offered.
    Features,
    /// A constant.
    Fixed(u32),
}

/// How the sub-leaves of a leaf are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sub {
    /// It has none.
    None,
    /// Only the first is given; user space adds the others.
    First,
    /// Up to the first whose cache type (EAX bits 4:0) is zero, that one included.
    Caches,
}

/// A leaf that follows the general rule. Leaves with rules of their own (0, 7, 0xD, 0x8000_0000,
/// 0x8000_0001, 0x8000_0008, and the hypervisor's) are in `supported.rs`; a leaf that is in neither
/// place is all zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    /// Its number.
    pub(super) function: u32,
    /// Its sub-leaves.
    pub(super) sub: Sub,
    /// EAX, EBX, ECX, EDX.
    pub(super) show: [Show; 4],
}

use Show::{Features, Fixed, Host, Zero};

/// All 32 bits of the host.
const RAW: Show = Host(u32::MAX);

/// The leaves, in order.
pub(super) static LEAVES: [Leaf; 16] = [
    // Family/model/stepping; CLFLUSH size and brand index. User space sets the APIC id and the
    // count of logical processors (EBX bits 31:16).
    Leaf {
        function: 1,
        sub: Sub::None,
        show: [RAW, Host(0xffff), Features, Features],
    },
    // Cache and TLB descriptors (Intel).
    Leaf {
        function: 2,
        sub: Sub::None,
        show: [RAW, RAW, RAW, RAW],
    },
    // Caches (Intel).
    Leaf {
        function: 4,
        sub: Sub::Caches,
        show: [RAW, RAW, RAW, RAW],
    },
    // Power management: only that the APIC timer never stops (ARAT), as ours never does.
    Leaf {
        function: 6,
        sub: Sub::None,
        show: [Fixed(4), Zero, Zero, Zero],
    },
    // Topology: user space fills it in; the template has no level.
    Leaf {
        function: 0xb,
        sub: Sub::First,
        show: [Zero, Zero, Zero, Zero],
    },
    Leaf {
        function: 0x1f,
        sub: Sub::First,
        show: [Zero, Zero, Zero, Zero],
    },
    // Brand string.
    Leaf {
        function: 0x8000_0002,
        sub: Sub::None,
        show: [RAW, RAW, RAW, RAW],
    },
    Leaf {
        function: 0x8000_0003,
        sub: Sub::None,
        show: [RAW, RAW, RAW, RAW],
    },
    Leaf {
        function: 0x8000_0004,
        sub: Sub::None,
        show: [RAW, RAW, RAW, RAW],
    },
    // L1 cache and TLB (AMD).
    Leaf {
        function: 0x8000_0005,
        sub: Sub::None,
        show: [RAW, RAW, RAW, RAW],
    },
    // L2 and L3; EDX bits 17:16 are reserved.
    Leaf {
        function: 0x8000_0006,
        sub: Sub::None,
        show: [RAW, RAW, RAW, Host(!0x3_0000)],
    },
    // Power: invariant TSC.
    Leaf {
        function: 0x8000_0007,
        sub: Sub::None,
        show: [Zero, Zero, Zero, Features],
    },
    // 1 GiB page TLBs.
    Leaf {
        function: 0x8000_0019,
        sub: Sub::None,
        show: [RAW, RAW, Zero, Zero],
    },
    // Width of SSE and AVX data paths (FP128, MOVU, FP256).
    Leaf {
        function: 0x8000_001a,
        sub: Sub::None,
        show: [Host(7), Zero, Zero, Zero],
    },
    // Caches (AMD).
    Leaf {
        function: 0x8000_001d,
        sub: Sub::Caches,
        show: [RAW, RAW, RAW, RAW],
    },
    // Extended features 2.
    Leaf {
        function: 0x8000_0021,
        sub: Sub::None,
        show: [Features, Zero, Features, Zero],
    },
];

/// The leaf's row, if it follows the general rule.
pub(super) fn find(function: u32) -> Option<&'static Leaf> {
    LEAVES.iter().find(|l| l.function == function)
}

/// True if a leaf's sub-leaves differ, so that its entries carry the significant-index flag.
pub(super) const fn indexed(function: u32) -> bool {
    matches!(function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d)
}
