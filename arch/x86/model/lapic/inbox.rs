// SPDX-License-Identifier: GPL-2.0

//! What other processors post to a local APIC.
//!
//! The APIC itself belongs to its vCPU's thread. Everybody else sets bits in the [`Inbox`], in the
//! manner of a posted-interrupt descriptor (SDM vol. 3C 31.6), and the owner drains it before an
//! entry into the guest.
//!
//! # Ordering
//!
//! A poster writes the vector first and the summary last; the owner takes the summary first and
//! the vectors last. So a bit of the summary may find no vector (somebody was quicker), but no
//! vector is ever left without its summary bit. All accesses are sequentially consistent, which
//! costs nothing on x86 (a locked instruction or a plain load), and is what the usual handshake
//! needs: the poster sets the summary, then looks whether the processor is in the guest and kicks
//! it; the owner says that it is in the guest, then looks at [`Inbox::is_empty`]. One of the two
//! sees the other.

use super::{DeliveryMode, Lapic};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Bits of the summary word.
mod bit {
    /// Some vector is posted.
    pub(super) const VECTORS: u32 = 1 << 0;
    /// The timer fired.
    pub(super) const TIMER: u32 = 1 << 1;
    /// The external controller's output changed.
    pub(super) const EXTINT: u32 = 1 << 2;
    /// SMI
    pub(super) const SMI: u32 = 1 << 3;
    /// INIT
    pub(super) const INIT: u32 = 1 << 4;
    /// Start-up, with the vector in bits 23:16
    pub(super) const SIPI: u32 = 1 << 5;
    pub(super) const SIPI_VECTOR: u32 = 0xff << 16;
    /// NMIs, 0 to 2
    pub(super) const NMI: u32 = 3 << 8;
    pub(super) const ONE_NMI: u32 = 1 << 8;
}

/// The inbox of one local APIC. Any thread and any context may post; one thread drains.
#[derive(Debug, Default)]
pub struct Inbox {
    summary: AtomicU32,
    request: [AtomicU64; 4],
    /// Of the posted vectors, which are level triggered.
    level: [AtomicU64; 4],
}

/// What posting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post {
    /// It was not pending in the inbox before.
    pub fresh: bool,
    /// The inbox was empty: the owner may need a kick. Otherwise a kick is on its way, or the
    /// owner is about to look.
    pub wake: bool,
}

/// What came out of the inbox besides vectors, which go into the APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// How many NMIs, 0 to 2: one can be in service and one latched (APM vol. 2 8.2.3).
    pub nmi: u8,
    /// SMI
    pub smi: bool,
    /// INIT; it comes before the start-up if both are there.
    pub init: bool,
    /// Start-up with its vector
    pub sipi: Option<u8>,
    /// The timer fired: call [`Lapic::timer_fired`].
    pub timer: bool,
    /// The external controller wants a look.
    pub extint: bool,
}

impl Inbox {
    /// An empty inbox.
    pub const fn new() -> Self {
        Self {
            summary: AtomicU32::new(0),
            request: [const { AtomicU64::new(0) }; 4],
            level: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// Whether nothing is there: one load.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.summary.load(SeqCst) == 0
    }

    /// Whether an INIT or a start-up is there, for a vCPU that waits for it.
    #[inline]
    pub fn has_init_or_sipi(&self) -> bool {
        self.summary.load(SeqCst) & (bit::INIT | bit::SIPI) != 0
    }

    #[inline]
    fn raise(&self, bits: u32) -> Post {
        let before = self.summary.fetch_or(bits, SeqCst);
        Post {
            fresh: before & bits == 0,
            wake: before == 0,
        }
    }

    /// Updates the summary with `f`.
    fn update(&self, f: impl Fn(u32) -> u32) -> Post {
        let mut before = self.summary.load(SeqCst);
        loop {
            let after = f(before);
            match self
                .summary
                .compare_exchange_weak(before, after, SeqCst, SeqCst)
            {
                Ok(_) => {
                    return Post {
                        fresh: before != after,
                        wake: before == 0,
                    }
                }
                Err(now) => before = now,
            }
        }
    }

    /// Posts a fixed interrupt.
    #[inline]
    pub fn post(&self, vector: u8, level: bool) -> Post {
        let word = usize::from(vector >> 6) & 3;
        let mask = 1u64 << (vector & 63);
        let was_level = self.level[word].load(SeqCst) & mask != 0;
        if level && !was_level {
            self.level[word].fetch_or(mask, SeqCst);
        } else if !level && was_level {
            self.level[word].fetch_and(!mask, SeqCst);
        }
        let before = self.request[word].fetch_or(mask, SeqCst);
        let Post { wake, .. } = self.raise(bit::VECTORS);
        Post {
            fresh: before & mask == 0,
            wake,
        }
    }

    /// Posts an NMI; a third one that nobody has taken yet is lost.
    pub fn post_nmi(&self) -> Post {
        self.update(|s| {
            if s & bit::NMI < 2 * bit::ONE_NMI {
                s.wrapping_add(bit::ONE_NMI)
            } else {
                s
            }
        })
    }

    /// Posts an SMI.
    pub fn post_smi(&self) -> Post {
        self.raise(bit::SMI)
    }

    /// Posts an INIT, which cancels a start-up that came before it.
    pub fn post_init(&self) -> Post {
        self.update(|s| s & !(bit::SIPI | bit::SIPI_VECTOR) | bit::INIT)
    }

    /// Posts a start-up; the last vector counts.
    pub fn post_sipi(&self, vector: u8) -> Post {
        self.update(|s| s & !bit::SIPI_VECTOR | bit::SIPI | u32::from(vector) << 16)
    }

    /// Says that the timer, armed as the APIC asked, has fired.
    pub fn post_timer(&self) -> Post {
        self.raise(bit::TIMER)
    }

    /// Says that the external interrupt controller's output changed.
    pub fn post_extint(&self) -> Post {
        self.raise(bit::EXTINT)
    }

    /// Posts a message as [`super::Target::post`] gets it; other modes do nothing.
    pub fn post_message(&self, mode: DeliveryMode, vector: u8, level: bool) -> Option<Post> {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => Some(self.post(vector, level)),
            DeliveryMode::Smi => Some(self.post_smi()),
            DeliveryMode::Nmi => Some(self.post_nmi()),
            DeliveryMode::Init => Some(self.post_init()),
            DeliveryMode::Startup => Some(self.post_sipi(vector)),
            DeliveryMode::Reserved | DeliveryMode::ExtInt => None,
        }
    }

    /// Moves all posted vectors into `lapic`, and returns the rest. Owner only.
    #[inline]
    pub fn drain(&self, lapic: &mut Lapic) -> Signals {
        let summary = self.summary.swap(0, SeqCst);
        if summary & bit::VECTORS != 0 {
            for index in 0..4 {
                // A load is much cheaper than a swap, and most words are empty. A vector that
                // comes after the load brings its own summary bit.
                if self.request[index].load(SeqCst) != 0 {
                    let posted = self.request[index].swap(0, SeqCst);
                    lapic.accept_word(index, posted, self.level[index].load(SeqCst));
                }
            }
        }
        Signals {
            nmi: ((summary & bit::NMI) / bit::ONE_NMI) as u8,
            smi: summary & bit::SMI != 0,
            init: summary & bit::INIT != 0,
            sipi: (summary & bit::SIPI != 0).then_some((summary >> 16 & 0xff) as u8),
            timer: summary & bit::TIMER != 0,
            extint: summary & bit::EXTINT != 0,
        }
    }
}
