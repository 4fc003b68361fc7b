// SPDX-License-Identifier: GPL-2.0

//! The XSAVE area: sizes and offsets of its components, and what KVM_{GET,SET}_XSAVE and
//! KVM_{GET,SET}_FPU do with one in standard format.
//!
//! All functions work on bytes that were copied out of hardware's or user space's reach.
//! Sources: APM vol. 2 11.5, SDM vol. 1 chapter 13.

use super::cpuid::Regs;

/// x87 state
pub const X87: u64 = 1 << 0;
/// SSE state
pub const SSE: u64 = 1 << 1;
/// Upper halves of YMM
pub const YMM: u64 = 1 << 2;
/// MPX bound registers and configuration (never offered)
pub const MPX: u64 = 3 << 3;
/// AVX-512: opmask, upper ZMM0-15, ZMM16-31
pub const AVX512: u64 = 7 << 5;
/// PKRU
pub const PKRU: u64 = 1 << 9;
/// CET user state (IA32_XSS)
pub const CET_U: u64 = 1 << 11;
/// CET supervisor state (IA32_XSS)
pub const CET_S: u64 = 1 << 12;
/// AMX tile configuration and data (never offered)
pub const AMX: u64 = 3 << 17;

/// The XCR0 components that a guest can be offered, if the host saves and restores them.
pub const XCR0_KNOWN: u64 = X87 | SSE | YMM | AVX512 | PKRU;
/// The same for IA32_XSS.
pub const XSS_KNOWN: u64 = CET_U | CET_S;

/// Bytes of the legacy (FXSAVE) region.
pub const LEGACY_BYTES: usize = 512;
/// Bytes of the legacy region and the XSAVE header: the smallest area.
pub const MIN_BYTES: u32 = 576;
/// Bytes that KVM_GET_XSAVE and KVM_SET_XSAVE always carry.
pub const UAPI_BYTES: usize = 4096;
/// MXCSR bits that a processor has which does not say (APM vol. 2 11.4.4.2).
pub const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
/// MXCSR after reset.
pub const MXCSR_INIT: u32 = 0x1f80;
/// x87 control word after FNINIT.
pub const FCW_INIT: u16 = 0x37f;

/// Components described, by bit number in XCR0 | IA32_XSS. Nothing above is ever offered.
const COMPONENTS: usize = 20;

const OFF_FCW: usize = 0;
const OFF_FSW: usize = 2;
const OFF_FTW: usize = 4;
const OFF_FOP: usize = 6;
const OFF_FIP: usize = 8;
const OFF_FDP: usize = 16;
const OFF_MXCSR: usize = 24;
const OFF_MXCSR_MASK: usize = 28;
const OFF_ST: usize = 32;
const OFF_XMM: usize = 160;
const OFF_BV: usize = 512;
const OFF_XCOMP: usize = 520;
const OFF_RESERVED: usize = 528;

/// Place of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Component {
    size: u32,
    offset: u32,
    /// Starts at a multiple of 64 bytes in compacted format.
    aligned: bool,
}

/// Sizes and offsets of the extended components, as the host's CPUID leaf 0xD gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XstateLayout {
    components: [Component; COMPONENTS],
}

impl XstateLayout {
    /// Reads leaf 0xD, sub-leaves 2 and up, through `cpuid(leaf, subleaf)`.
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> Regs) -> XstateLayout {
        let mut layout = XstateLayout::default();
        for (i, c) in (0..COMPONENTS as u32)
            .zip(layout.components.iter_mut())
            .skip(2)
        {
            let r = cpuid(0xd, i);
            *c = Component {
                size: r.eax,
                offset: r.ebx,
                aligned: r.ecx & 2 != 0,
            };
        }
        layout
    }

    /// Extended components that are set in `mask`, with their bit number.
    fn extended(&self, mask: u64) -> impl Iterator<Item = (u32, &Component)> {
        (0..COMPONENTS as u32)
            .zip(self.components.iter())
            .skip(2)
            .filter(move |(i, _)| mask & (1 << (i & 63)) != 0)
    }

    /// Bytes of a standard-format area that holds the components in `xcr0`.
    pub fn standard_size(&self, xcr0: u64) -> u32 {
        self.extended(xcr0)
            .map(|(_, c)| c.offset.saturating_add(c.size))
            .fold(MIN_BYTES, u32::max)
    }

    /// Bytes of a compacted area that holds the components in `mask` (XCR0 | IA32_XSS).
    pub fn compacted_size(&self, mask: u64) -> u32 {
        self.extended(mask).fold(MIN_BYTES, |end, (_, c)| {
            let start = if c.aligned {
                end.saturating_add(63) & !63
            } else {
                end
            };
            start.saturating_add(c.size)
        })
    }

    /// Offset and size of the component with this bit number in standard format, if it exists.
    pub fn standard_place(&self, bit: u32) -> Option<(u32, u32)> {
        let c = self.components.get(usize::try_from(bit).ok()?)?;
        (bit >= 2 && c.size != 0 && c.offset != 0).then_some((c.offset, c.size))
    }

    /// Puts every component of `xcr0` that is in its initial state (clear in XSTATE_BV) to its
    /// initial bytes, which is what KVM_GET_XSAVE shows. The processor leaves such bytes as they
    /// were. PKRU's initial value is 0, like all others of the extended ones.
    ///
    /// # Errors
    /// [`Invalid::Size`] if `area` is too short for `xcr0`.
    pub fn fill_init(&self, area: &mut [u8], xcr0: u64) -> Result<(), Invalid> {
        let present = header(area)?.0;
        let absent = xcr0 & !present;
        for (_, c) in self.extended(absent) {
            let start = usize::try_from(c.offset).map_err(|_| Invalid::Size)?;
            let end =
                usize::try_from(c.offset.saturating_add(c.size)).map_err(|_| Invalid::Size)?;
            area.get_mut(start..end).ok_or(Invalid::Size)?.fill(0);
        }
        if absent & X87 != 0 {
            fill(area, 0, 24, 0)?;
            fill(area, OFF_ST, 128, 0)?;
            put(area, OFF_FCW, FCW_INIT.to_le_bytes())?;
        }
        if absent & SSE != 0 {
            fill(area, OFF_XMM, 256, 0)?;
        }
        Ok(())
    }
}

/// Why an area cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Shorter than its components need.
    Size,
    /// XSTATE_BV names components that the guest does not have.
    Components(u64),
    /// XCOMP_BV says compacted.
    Compacted,
    /// Reserved bytes of the header are not zero.
    Header,
    /// MXCSR has reserved bits set.
    Mxcsr(u32),
}

fn bytes<const N: usize>(area: &[u8], at: usize) -> Result<[u8; N], Invalid> {
    area.get(at..)
        .and_then(|s| s.first_chunk::<N>())
        .copied()
        .ok_or(Invalid::Size)
}

fn put<const N: usize>(area: &mut [u8], at: usize, v: [u8; N]) -> Result<(), Invalid> {
    let to = area
        .get_mut(at..)
        .and_then(|s| s.first_chunk_mut::<N>())
        .ok_or(Invalid::Size)?;
    *to = v;
    Ok(())
}

fn fill(area: &mut [u8], at: usize, n: usize, v: u8) -> Result<(), Invalid> {
    area.get_mut(at..)
        .and_then(|s| s.get_mut(..n))
        .ok_or(Invalid::Size)?
        .fill(v);
    Ok(())
}

/// XSTATE_BV and XCOMP_BV.
///
/// # Errors
/// [`Invalid::Size`] if there is no header.
pub fn header(area: &[u8]) -> Result<(u64, u64), Invalid> {
    Ok((
        u64::from_le_bytes(bytes(area, OFF_BV)?),
        u64::from_le_bytes(bytes(area, OFF_XCOMP)?),
    ))
}

/// Sets XSTATE_BV of a standard-format area, and the rest of the header to zero.
///
/// # Errors
/// [`Invalid::Size`] if there is no header.
pub fn set_header(area: &mut [u8], xstate_bv: u64) -> Result<(), Invalid> {
    put(area, OFF_BV, xstate_bv.to_le_bytes())?;
    fill(area, OFF_XCOMP, 56, 0)
}

/// Checks that XRSTOR would take `area` (standard format) for a guest with components `xcr0`:
/// KVM_SET_XSAVE's rules. `mxcsr_mask` is the host's.
///
/// # Errors
/// The first rule that is broken.
pub fn validate(area: &[u8], xcr0: u64, mxcsr_mask: u32) -> Result<(), Invalid> {
    let (xstate_bv, xcomp_bv) = header(area)?;
    if xcomp_bv != 0 {
        return Err(Invalid::Compacted);
    }
    // FXSAVE state exists even in guests without XSAVE.
    let unknown = xstate_bv & !(xcr0 | X87 | SSE);
    if unknown != 0 {
        return Err(Invalid::Components(unknown));
    }
    if bytes::<48>(area, OFF_RESERVED)?.iter().any(|&b| b != 0) {
        return Err(Invalid::Header);
    }
    // XRSTOR loads MXCSR for SSE and for AVX (SDM vol. 1 13.8.1).
    let mxcsr = u32::from_le_bytes(bytes(area, OFF_MXCSR)?);
    if xstate_bv & (SSE | YMM) != 0 && mxcsr & !mxcsr_mask != 0 {
        return Err(Invalid::Mxcsr(mxcsr & !mxcsr_mask));
    }
    Ok(())
}

/// Puts `area` in the state after power-up: everything initial, x87 and SSE marked as present.
///
/// # Errors
/// [`Invalid::Size`] if it is shorter than [`MIN_BYTES`].
pub fn init(area: &mut [u8], mxcsr_mask: u32) -> Result<(), Invalid> {
    area.fill(0);
    put(area, OFF_FCW, FCW_INIT.to_le_bytes())?;
    put(area, OFF_MXCSR, MXCSR_INIT.to_le_bytes())?;
    put(area, OFF_MXCSR_MASK, mxcsr_mask.to_le_bytes())?;
    set_header(area, X87 | SSE)
}

/// x87 and SSE state, field by field as `struct kvm_fpu` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fpu {
    /// ST0-7 (80 bits each, in 16 bytes).
    pub fpr: [[u8; 16]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tag word (FXSAVE's: a bit a register).
    pub ftwx: u8,
    /// Last opcode.
    pub last_opcode: u16,
    /// Last instruction pointer.
    pub last_ip: u64,
    /// Last data pointer.
    pub last_dp: u64,
    /// XMM0-15.
    pub xmm: [[u8; 16]; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl Fpu {
    /// Takes the state out of the legacy region of an XSAVE area (or an FXSAVE image).
    ///
    /// # Errors
    /// [`Invalid::Size`] if it is shorter than 512 bytes.
    pub fn from_area(area: &[u8]) -> Result<Fpu, Invalid> {
        let mut fpu = Fpu {
            fcw: u16::from_le_bytes(bytes(area, OFF_FCW)?),
            fsw: u16::from_le_bytes(bytes(area, OFF_FSW)?),
            ftwx: bytes::<1>(area, OFF_FTW)?[0],
            last_opcode: u16::from_le_bytes(bytes(area, OFF_FOP)?),
            last_ip: u64::from_le_bytes(bytes(area, OFF_FIP)?),
            last_dp: u64::from_le_bytes(bytes(area, OFF_FDP)?),
            mxcsr: u32::from_le_bytes(bytes(area, OFF_MXCSR)?),
            ..Fpu::default()
        };
        for (i, r) in fpu.fpr.iter_mut().enumerate() {
            *r = bytes(area, OFF_ST + i * 16)?;
        }
        for (i, r) in fpu.xmm.iter_mut().enumerate() {
            *r = bytes(area, OFF_XMM + i * 16)?;
        }
        Ok(fpu)
    }

    /// Writes the state to the legacy region of `area`, and marks x87 and SSE as present if it has
    /// a header. Reserved MXCSR bits (outside `mxcsr_mask`) are dropped: loading them would fault.
    ///
    /// # Errors
    /// [`Invalid::Size`] if it is shorter than 512 bytes.
    pub fn store(&self, area: &mut [u8], mxcsr_mask: u32) -> Result<(), Invalid> {
        if area.len() < LEGACY_BYTES {
            return Err(Invalid::Size);
        }
        put(area, OFF_FCW, self.fcw.to_le_bytes())?;
        put(area, OFF_FSW, self.fsw.to_le_bytes())?;
        put(area, OFF_FTW, [self.ftwx, 0])?;
        put(area, OFF_FOP, self.last_opcode.to_le_bytes())?;
        put(area, OFF_FIP, self.last_ip.to_le_bytes())?;
        put(area, OFF_FDP, self.last_dp.to_le_bytes())?;
        put(area, OFF_MXCSR, (self.mxcsr & mxcsr_mask).to_le_bytes())?;
        for (i, r) in self.fpr.iter().enumerate() {
            put(area, OFF_ST + i * 16, *r)?;
        }
        for (i, r) in self.xmm.iter().enumerate() {
            put(area, OFF_XMM + i * 16, *r)?;
        }
        if let Ok((bv, _)) = header(area) {
            put(area, OFF_BV, (bv | X87 | SSE).to_le_bytes())?;
        }
        Ok(())
    }
}

/// The host's MXCSR mask out of an FXSAVE image (0 there means the default).
///
/// # Errors
/// [`Invalid::Size`] if it is shorter than 32 bytes.
pub fn mxcsr_mask(fxsave: &[u8]) -> Result<u32, Invalid> {
    match u32::from_le_bytes(bytes(fxsave, OFF_MXCSR_MASK)?) {
        0 => Ok(MXCSR_MASK_DEFAULT),
        mask => Ok(mask),
    }
}

/// True if XSETBV may load `value` into XCR0 of a guest that is offered `supported`
/// (SDM vol. 1 13.3).
pub const fn xcr0_valid(value: u64, supported: u64) -> bool {
    let avx512 = value & AVX512;
    let mpx = value & MPX;
    let amx = value & AMX;
    value & X87 != 0
        && value & !supported == 0
        && (value & YMM == 0 || value & SSE != 0)
        && (avx512 == 0 || (avx512 == AVX512 && value & YMM != 0))
        && (mpx == 0 || mpx == MPX)
        && (amx == 0 || amx == AMX)
}

/// The largest set of components within `host` that is valid as XCR0, out of the known ones.
pub const fn xcr0_offer(host: u64) -> u64 {
    let mut v = host & XCR0_KNOWN;
    if v & X87 == 0 || v & SSE == 0 {
        return 0;
    }
    if v & YMM == 0 || v & AVX512 != AVX512 {
        v &= !AVX512;
    }
    v
}
