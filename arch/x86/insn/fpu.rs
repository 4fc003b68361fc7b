// SPDX-License-Identifier: GPL-2.0

//! The guest's FPU and extended state, and who has the registers when.
//!
//! Between guest sections the state lies in an area in the standard format of XSAVE (SDM vol. 1,
//! 13.4; APM vol. 2, 11.5), which is what KVM_GET_XSAVE gives. In a section it is in the registers:
//! `kernel_fpu_begin` has put the user's away, and XCR0 is the guest's. PKRU rules the kernel's own
//! accesses to user memory too, so it is the guest's only around an entry.

use super::{cpuid, fpu_begin, fpu_end, ospke, osxsave, rdpkru, set_xcr0, wrpkru, xcr0, XsaveArea};
use kernel::prelude::*;

/// Components of XCR0 (SDM vol. 1, 13.1).
pub(crate) mod xfeature {
    /// x87
    pub(crate) const X87: u64 = 1 << 0;
    /// SSE
    pub(crate) const SSE: u64 = 1 << 1;
    /// AVX
    pub(crate) const AVX: u64 = 1 << 2;
    /// The three of AVX-512
    pub(crate) const AVX512: u64 = 7 << 5;
    /// PKRU
    pub(crate) const PKRU: u64 = 1 << 9;
}

/// What guests can have: no AMX (its state is dynamic, XFD), no MPX.
const OFFERED: u64 =
    xfeature::X87 | xfeature::SSE | xfeature::AVX | xfeature::AVX512 | xfeature::PKRU;

/// Never less than the structure of KVM_GET_XSAVE.
const AREA_MIN: usize = 4096;
/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;
/// FCW, 16 bits, at 0; MXCSR, 32 bits, at 24; MXCSR_MASK at 28.
const FCW_INIT: [u8; 2] = [0x7f, 0x03];
const MXCSR: usize = 24;
const MXCSR_INIT: [u8; 4] = 0x1f80_u32.to_le_bytes();

/// What the host offers of extended state; the same on all CPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FpuCaps {
    /// XCR0 of the host; 0 without XSAVE.
    host_xcr0: u64,
    /// Components that guests can have, without PKRU.
    pub(crate) mask: u64,
    /// What an area has room for.
    offered: u64,
    /// Guests can have PKRU: its offset in the area.
    pkru: Option<usize>,
}

impl FpuCaps {
    /// Asks the processor.
    pub(crate) fn new() -> Self {
        let host_xcr0 = xcr0().unwrap_or(0);
        let offered = host_xcr0 & OFFERED;
        let pkru = (ospke() && offered & xfeature::PKRU != 0)
            .then(|| usize::try_from(cpuid(0xd, 9).ebx).unwrap_or(0));
        Self {
            host_xcr0,
            mask: if osxsave() {
                offered & !xfeature::PKRU
            } else {
                xfeature::X87 | xfeature::SSE
            },
            pkru,
            offered,
        }
    }

    /// All components that a guest's XCR0 may have.
    pub(crate) fn xcr0_mask(&self) -> u64 {
        self.mask
            | if self.pkru.is_some() {
                xfeature::PKRU
            } else {
                0
            }
    }
}

impl XsaveArea {
    fn put(&mut self, at: usize, data: &[u8]) {
        let end = at.saturating_add(data.len());
        if let Some(d) = self.bytes_mut().get_mut(at..end) {
            d.copy_from_slice(data);
        }
    }

    fn u64_at(&self, at: usize) -> u64 {
        let b = self.bytes().get(at..at.saturating_add(8));
        b.and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    fn u32_at(&self, at: usize) -> u32 {
        let b = self.bytes().get(at..at.saturating_add(4));
        b.and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }
}

/// One vCPU's extended state.
pub(crate) struct GuestFpu {
    caps: FpuCaps,
    area: XsaveArea,
    xcr0: u64,
    pkru: u32,
    host_pkru: u32,
    loaded: bool,
}

impl GuestFpu {
    /// In the reset state. Sleeps.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(crate) fn new(caps: &FpuCaps) -> Result<Self> {
        let area = XsaveArea::new(caps.offered, AREA_MIN)?;
        let mut f = Self {
            caps: *caps,
            area,
            xcr0: 0,
            pkru: 0,
            host_pkru: 0,
            loaded: false,
        };
        f.reset();
        Ok(f)
    }

    /// The state after RESET: every component in its initial state, XCR0 = 1. Not in a section.
    pub(crate) fn reset(&mut self) {
        self.area.bytes_mut().fill(0);
        self.area.put(0, &FCW_INIT);
        self.area.put(MXCSR, &MXCSR_INIT);
        self.xcr0 = xfeature::X87;
        self.pkru = 0;
    }

    /// XCR0 as the guest sees it.
    pub(crate) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sets it, in a section or outside. The caller has validated it: bit 0 set, a subset of
    /// [`FpuCaps::xcr0_mask`], AVX only with SSE, AVX-512 all three and with AVX.
    ///
    /// # Errors
    /// `EINVAL`: not a subset, or refused by the processor; it keeps its value.
    pub(crate) fn set_xcr0(&mut self, v: u64) -> Result {
        if v & !self.caps.xcr0_mask() != 0 || v & xfeature::X87 == 0 {
            return Err(EINVAL);
        }
        if self.loaded && self.caps.host_xcr0 != 0 {
            set_xcr0(v).map_err(|_| EINVAL)?;
        }
        self.xcr0 = v;
        Ok(())
    }

    /// PKRU as the guest has it.
    pub(crate) fn pkru(&self) -> u32 {
        self.pkru
    }

    /// A guest section begins, IRQs off: the registers become the guest's.
    ///
    /// # Errors
    /// `EINVAL`: the processor refuses the area (only if it was not validated): the guest's state is
    /// the initial one then. The registers are the guest's all the same.
    pub(crate) fn load(&mut self) -> Result {
        fpu_begin();
        self.loaded = true;
        if self.caps.pkru.is_some() {
            self.host_pkru = rdpkru();
        }
        let mut ret = self.restore();
        if ret.is_err() {
            let xcr0 = self.xcr0;
            self.reset();
            self.xcr0 = xcr0;
            // The initial state is always accepted.
            let _ = self.restore();
        }
        if self.caps.host_xcr0 != self.xcr0 && self.caps.host_xcr0 != 0 {
            ret = ret.and(set_xcr0(self.xcr0).map_err(|_| EINVAL));
        }
        ret
    }

    /// What XSAVE and XRSTOR handle; without them it is FXSAVE.
    fn by_xsave(&self) -> Option<u64> {
        (self.caps.host_xcr0 != 0).then_some(self.caps.mask)
    }

    fn restore(&self) -> Result {
        self.area.restore(self.by_xsave())
    }

    /// The section ends, IRQs still off: the guest's state goes to the area.
    pub(crate) fn save(&mut self) {
        if !self.loaded {
            return;
        }
        if self.caps.host_xcr0 != self.xcr0 && self.caps.host_xcr0 != 0 {
            // The host's own value is always accepted.
            let _ = set_xcr0(self.caps.host_xcr0);
        }
        let how = self.by_xsave();
        self.area.save(how);
        fpu_end();
        self.loaded = false;
    }

    /// Just before an entry: PKRU becomes the guest's, if it can see it.
    #[inline]
    pub(crate) fn enter_pkru(&self) {
        if self.pkru_differs() {
            wrpkru(self.pkru);
        }
    }

    /// Just after an exit: PKRU is the host's again.
    #[inline]
    pub(crate) fn exit_pkru(&mut self) {
        if self.caps.pkru.is_some() && self.xcr0 & xfeature::PKRU != 0 {
            self.pkru = rdpkru();
            if self.pkru_differs() {
                wrpkru(self.host_pkru);
            }
        }
    }

    #[inline]
    fn pkru_differs(&self) -> bool {
        self.caps.pkru.is_some() && self.xcr0 & xfeature::PKRU != 0 && self.pkru != self.host_pkru
    }

    /// The whole state in the standard format, components in their initial state filled in. Not in
    /// a section.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        if let Some(at) = self.caps.pkru {
            let bv = self.area.u64_at(XSTATE_BV) & !xfeature::PKRU;
            let bv = bv | if self.pkru != 0 { xfeature::PKRU } else { 0 };
            self.area.put(XSTATE_BV, &bv.to_le_bytes());
            self.area.put(at, &self.pkru.to_le_bytes());
        }
        self.fill_initial();
        self.area.bytes()
    }

    /// XSAVE leaves out what is in its initial state: puts the initial values there.
    fn fill_initial(&mut self) {
        if self.caps.host_xcr0 == 0 {
            // FXSAVE has stored everything.
            let all = (xfeature::X87 | xfeature::SSE).to_le_bytes();
            self.area.put(XSTATE_BV, &all);
            return;
        }
        let absent = !self.area.u64_at(XSTATE_BV);
        if absent & xfeature::X87 != 0 {
            self.area.put(0, &FCW_INIT);
            self.area.put(2, &[0; 22]);
            self.area.put(32, &[0; 128]);
        }
        if absent & xfeature::SSE != 0 {
            self.area.put(XMM, &[0; 256]);
        }
        for n in (2..63).filter(|n| self.caps.mask & absent & 1 << n != 0) {
            let c = cpuid(0xd, n);
            let at = usize::try_from(c.ebx).unwrap_or(usize::MAX);
            let end = at.saturating_add(usize::try_from(c.eax).unwrap_or(0));
            if let Some(d) = self.area.bytes_mut().get_mut(at..end) {
                d.fill(0);
            }
        }
    }

    /// Replaces the state by `data` (KVM_SET_XSAVE), which the caller has validated: XSTATE_BV within
    /// [`FpuCaps::xcr0_mask`], XCOMP_BV and the rest of the header zero, no reserved MXCSR bits. What
    /// is longer than the area is cut off. PKRU keeps its value if XSTATE_BV does not have it.
    /// Not in a section.
    pub(crate) fn set_bytes(&mut self, data: &[u8]) {
        let n = data.len().min(self.area.bytes().len());
        if let Some(data) = data.get(..n) {
            self.area.put(0, data);
        }
        if let Some(at) = self.caps.pkru {
            if self.area.u64_at(XSTATE_BV) & xfeature::PKRU != 0 {
                self.pkru = self.area.u32_at(at);
            }
        }
    }

    /// The low 256 bits of vector register `n` (0 to 15). Not in a section.
    pub(crate) fn vector(&mut self, n: u8) -> [u8; 32] {
        let mut v = [0; 32];
        let high = self.ymm_high(n);
        let bytes = self.bytes();
        let parts = [(Some(XMM + 16 * usize::from(n & 15)), 0), (high, 16)];
        for (from, to) in parts {
            let from = from.and_then(|at| bytes.get(at..at + 16));
            if let (Some(from), Some(to)) = (from, v.get_mut(to..to + 16)) {
                to.copy_from_slice(from);
            }
        }
        v
    }

    /// Sets the low 256 bits of vector register `n`; with `clear`, what is above becomes zero. Not in
    /// a section.
    pub(crate) fn set_vector(&mut self, n: u8, value: &[u8; 32], clear: bool) {
        let high = self.ymm_high(n);
        // Initial values are filled in, so that setting the component's bit adds nothing else.
        self.bytes();
        let [low_half, high_half] = [value.first_chunk::<16>(), value.last_chunk::<16>()];
        let mut present = self.area.u64_at(XSTATE_BV);
        if let Some(half) = low_half {
            self.area.put(XMM + 16 * usize::from(n & 15), half);
            present |= xfeature::SSE;
        }
        if let (Some(at), Some(half)) = (high, high_half) {
            self.area.put(at, half);
            present |= xfeature::AVX;
        }
        if clear && self.caps.mask & xfeature::AVX512 != 0 && present & ZMM_HI256 != 0 {
            let c = cpuid(0xd, 6);
            let at = usize::try_from(c.ebx).unwrap_or(usize::MAX);
            self.area
                .put(at.saturating_add(32 * usize::from(n & 15)), &[0; 32]);
        }
        self.area.put(XSTATE_BV, &present.to_le_bytes());
    }

    /// Where the upper half of YMM register `n` is.
    fn ymm_high(&self, n: u8) -> Option<usize> {
        if self.caps.mask & xfeature::AVX == 0 {
            return None;
        }
        let at = usize::try_from(cpuid(0xd, 2).ebx).ok()?;
        Some(at + 16 * usize::from(n & 15))
    }

    /// MXCSR. Not in a section.
    pub(crate) fn mxcsr(&self) -> u32 {
        self.area.u32_at(MXCSR)
    }

    /// Sets MXCSR, which has no reserved bits set. Not in a section.
    pub(crate) fn set_mxcsr(&mut self, v: u32) {
        self.bytes();
        self.area.put(MXCSR, &v.to_le_bytes());
        let present = self.area.u64_at(XSTATE_BV) | xfeature::SSE;
        self.area.put(XSTATE_BV, &present.to_le_bytes());
    }
}

/// Offset of XMM0 in the legacy region.
const XMM: usize = 160;
/// Bits 511:256 of ZMM0 to ZMM15.
const ZMM_HI256: u64 = 1 << 6;
