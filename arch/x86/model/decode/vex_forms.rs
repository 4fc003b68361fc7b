// SPDX-License-Identifier: GPL-2.0

//! Which VEX-encoded opcodes exist (APM vol. 3 appendix A.1, vol. 4; SDM vol. 2).

use super::simd::Map::{
    self,
    M0f,
    M0f38,
    M0f3a, //
};

/// No mandatory prefix.
const NP: u8 = 1 << 0;
/// 66.
const P66: u8 = 1 << 1;
/// F3.
const F3: u8 = 1 << 2;
/// F2.
const F2: u8 = 1 << 3;
/// Packed and scalar, single and double.
const ALL: u8 = NP | P66 | F3 | F2;

/// ModRM.rm may be memory.
const M: u8 = 1 << 0;
/// ModRM.rm may be a register.
const R: u8 = 1 << 1;
/// Both.
const B: u8 = M | R;
/// VEX.vvvv names a register; else it must be unused.
const V: u8 = 1 << 2;
/// VEX.L must be 0.
const L0: u8 = 1 << 3;
/// VEX.L must be 1.
const L1: u8 = 1 << 4;
/// VEX.W must be 0.
const W0: u8 = 1 << 5;
/// VEX.W must be 1.
const W1: u8 = 1 << 6;
/// A vector of addresses: ModRM.rm must say SIB.
const VSIB: u8 = 1 << 7;

/// Map, first and last opcode, mandatory prefixes, form.
type Row = (Map, u8, u8, u8, u8);

const ROWS: &[Row] = &[
    (M0f, 0x10, 0x11, NP | P66, B), // VMOVUPS
    (M0f, 0x10, 0x11, F3 | F2, M),  // VMOVSS
    (M0f, 0x10, 0x11, F3 | F2, R | V),
    (M0f, 0x12, 0x12, NP, B | V | L0),  // VMOVLPS
    (M0f, 0x12, 0x12, P66, M | V | L0), // VMOVLPD
    (M0f, 0x12, 0x12, F3 | F2, B),      // VMOVSLDUP
    (M0f, 0x13, 0x13, NP | P66, M | L0),
    (M0f, 0x14, 0x15, NP | P66, B | V), // VUNPCK
    (M0f, 0x16, 0x16, NP, B | V | L0),  // VMOVHPS
    (M0f, 0x16, 0x16, P66, M | V | L0), // VMOVHPD
    (M0f, 0x16, 0x16, F3, B),           // VMOVSHDUP
    (M0f, 0x17, 0x17, NP | P66, M | L0),
    (M0f, 0x28, 0x29, NP | P66, B),          // VMOVAPS
    (M0f, 0x2a, 0x2a, F3 | F2, B | V),       // VCVTSI2SS
    (M0f, 0x2b, 0x2b, NP | P66, M),          // VMOVNTPS
    (M0f, 0x2c, 0x2d, F3 | F2, B),           // VCVTTSS2SI
    (M0f, 0x2e, 0x2f, NP | P66, B),          // VUCOMISS
    (M0f, 0x41, 0x42, NP | P66, R | V | L1), // KAND
    (M0f, 0x44, 0x44, NP | P66, R | L0),     // KNOT
    (M0f, 0x45, 0x47, NP | P66, R | V | L1), // KOR
    (M0f, 0x4a, 0x4a, NP | P66, R | V | L1), // KADD
    (M0f, 0x4b, 0x4b, NP, R | V | L1),       // KUNPCK
    (M0f, 0x4b, 0x4b, P66, R | V | L1 | W0),
    (M0f, 0x50, 0x50, NP | P66, R),      // VMOVMSKPS
    (M0f, 0x51, 0x51, NP | P66, B),      // VSQRTPS
    (M0f, 0x51, 0x51, F3 | F2, B | V),   // VSQRTSS
    (M0f, 0x52, 0x53, NP, B),            // VRSQRTPS
    (M0f, 0x52, 0x53, F3, B | V),        // VRSQRTSS
    (M0f, 0x54, 0x57, NP | P66, B | V),  // VANDPS
    (M0f, 0x58, 0x59, ALL, B | V),       // VADDPS
    (M0f, 0x5a, 0x5a, NP | P66, B),      // VCVTPS2PD
    (M0f, 0x5a, 0x5a, F3 | F2, B | V),   // VCVTSS2SD
    (M0f, 0x5b, 0x5b, NP | P66 | F3, B), // VCVTDQ2PS
    (M0f, 0x5c, 0x5f, ALL, B | V),       // VSUBPS
    (M0f, 0x60, 0x6d, P66, B | V),       // VPUNPCK
    (M0f, 0x6e, 0x6e, P66, B | L0),      // VMOVD
    (M0f, 0x6f, 0x6f, P66 | F3, B),      // VMOVDQA
    (M0f, 0x70, 0x70, P66 | F3 | F2, B), // VPSHUFD
    (M0f, 0x71, 0x73, P66, R | V),       // shifts by immediate
    (M0f, 0x74, 0x76, P66, B | V),       // VPCMPEQ
    (M0f, 0x7c, 0x7d, P66 | F2, B | V),  // VHADD
    (M0f, 0x7e, 0x7e, P66 | F3, B | L0), // VMOVD, VMOVQ
    (M0f, 0x7f, 0x7f, P66 | F3, B),      // VMOVDQA
    (M0f, 0x90, 0x90, NP | P66, B | L0), // KMOV
    (M0f, 0x91, 0x91, NP | P66, M | L0),
    (M0f, 0x92, 0x93, NP | P66, R | L0 | W0),
    (M0f, 0x92, 0x93, F2, R | L0),
    (M0f, 0x98, 0x99, NP | P66, R | L0), // KORTEST
    (M0f, 0xae, 0xae, NP, M | L0),       // VLDMXCSR, VSTMXCSR
    (M0f, 0xc2, 0xc2, ALL, B | V),       // VCMPPS
    (M0f, 0xc4, 0xc4, P66, B | V | L0),  // VPINSRW
    (M0f, 0xc5, 0xc5, P66, R | L0),      // VPEXTRW
    (M0f, 0xc6, 0xc6, NP | P66, B | V),  // VSHUFPS
    (M0f, 0xd0, 0xd0, P66 | F2, B | V),  // VADDSUB
    (M0f, 0xd1, 0xd5, P66, B | V),
    (M0f, 0xd6, 0xd6, P66, B | L0), // VMOVQ
    (M0f, 0xd7, 0xd7, P66, R),      // VPMOVMSKB
    (M0f, 0xd8, 0xe5, P66, B | V),
    (M0f, 0xe6, 0xe6, P66 | F3 | F2, B), // VCVTTPD2DQ
    (M0f, 0xe7, 0xe7, P66, M),           // VMOVNTDQ
    (M0f, 0xe8, 0xef, P66, B | V),
    (M0f, 0xf0, 0xf0, F2, M), // VLDDQU
    (M0f, 0xf1, 0xf6, P66, B | V),
    (M0f, 0xf7, 0xf7, P66, R | L0), // VMASKMOVDQU
    (M0f, 0xf8, 0xfe, P66, B | V),
    (M0f38, 0x00, 0x0b, P66, B | V),           // VPSHUFB
    (M0f38, 0x0c, 0x0d, P66, B | V | W0),      // VPERMILPS
    (M0f38, 0x0e, 0x0f, P66, B | W0),          // VTESTPS
    (M0f38, 0x13, 0x13, P66, B | W0),          // VCVTPH2PS
    (M0f38, 0x16, 0x16, P66, B | V | L1 | W0), // VPERMPS
    (M0f38, 0x17, 0x17, P66, B),               // VPTEST
    (M0f38, 0x18, 0x18, P66, B | W0),          // VBROADCASTSS
    (M0f38, 0x19, 0x19, P66, B | L1 | W0),
    (M0f38, 0x1a, 0x1a, P66, M | L1 | W0),
    (M0f38, 0x1c, 0x1e, P66, B), // VPABS
    (M0f38, 0x20, 0x25, P66, B), // VPMOVSX
    (M0f38, 0x28, 0x29, P66, B | V),
    (M0f38, 0x2a, 0x2a, P66, M), // VMOVNTDQA
    (M0f38, 0x2b, 0x2b, P66, B | V),
    (M0f38, 0x2c, 0x2f, P66, M | V | W0),      // VMASKMOV
    (M0f38, 0x30, 0x35, P66, B),               // VPMOVZX
    (M0f38, 0x36, 0x36, P66, B | V | L1 | W0), // VPERMD
    (M0f38, 0x37, 0x40, P66, B | V),
    (M0f38, 0x41, 0x41, P66, B | L0), // VPHMINPOSUW
    (M0f38, 0x45, 0x45, P66, B | V),  // VPSRLV
    (M0f38, 0x46, 0x46, P66, B | V | W0),
    (M0f38, 0x47, 0x47, P66, B | V),
    (M0f38, 0x50, 0x51, ALL, B | V | W0), // VPDPB
    (M0f38, 0x52, 0x53, P66, B | V | W0), // VPDPWSSD
    (M0f38, 0x58, 0x59, P66, B | W0),     // VPBROADCAST
    (M0f38, 0x5a, 0x5a, P66, M | L1 | W0),
    (M0f38, 0x72, 0x72, F3, B | W0), // VCVTNEPS2BF16
    (M0f38, 0x78, 0x79, P66, B | W0),
    (M0f38, 0x8c, 0x8c, P66, M | V), // VPMASKMOV
    (M0f38, 0x8e, 0x8e, P66, M | V),
    (M0f38, 0x90, 0x93, P66, M | V | VSIB), // VPGATHER
    (M0f38, 0x96, 0x9f, P66, B | V),        // VFMADD132
    (M0f38, 0xa6, 0xaf, P66, B | V),        // VFMADD213
    (M0f38, 0xb0, 0xb0, ALL, M | W0),       // VCVTNE
    (M0f38, 0xb1, 0xb1, P66 | F3, M | W0),
    (M0f38, 0xb4, 0xb5, P66, B | V | W1),     // VPMADD52
    (M0f38, 0xb6, 0xbf, P66, B | V),          // VFMADD231
    (M0f38, 0xcb, 0xcb, F2, R | V | L1 | W0), // VSHA512
    (M0f38, 0xcc, 0xcd, F2, R | L1 | W0),
    (M0f38, 0xcf, 0xcf, P66, B | V | W0),           // VGF2P8MULB
    (M0f38, 0xd2, 0xd3, NP | P66 | F3, B | V | W0), // VPDPWUSD
    (M0f38, 0xda, 0xda, NP | P66, B | V | L0 | W0), // VSM3MSG
    (M0f38, 0xda, 0xda, F3 | F2, B | V | W0),       // VSM4
    (M0f38, 0xdb, 0xdb, P66, B | L0),               // VAESIMC
    (M0f38, 0xdc, 0xdf, P66, B | V),                // VAES
    (M0f38, 0xe0, 0xef, P66, M | V | L0),           // CMPccXADD
    (M0f38, 0xf2, 0xf2, NP, B | V | L0),            // ANDN
    (M0f38, 0xf3, 0xf3, NP, B | V | L0),            // BLSR, BLSMSK, BLSI
    (M0f38, 0xf5, 0xf5, NP | F3 | F2, B | V | L0),  // BZHI, PEXT, PDEP
    (M0f38, 0xf6, 0xf6, F2, B | V | L0),            // MULX
    (M0f38, 0xf7, 0xf7, ALL, B | V | L0),           // BEXTR, SHLX, SARX, SHRX
    (M0f3a, 0x00, 0x01, P66, B | L1 | W1),          // VPERMQ
    (M0f3a, 0x02, 0x02, P66, B | V | W0),           // VPBLENDD
    (M0f3a, 0x04, 0x05, P66, B | W0),               // VPERMILPS
    (M0f3a, 0x06, 0x06, P66, B | V | L1 | W0),      // VPERM2F128
    (M0f3a, 0x08, 0x09, P66, B),                    // VROUNDPS
    (M0f3a, 0x0a, 0x0f, P66, B | V),
    (M0f3a, 0x14, 0x17, P66, B | L0),          // VPEXTR
    (M0f3a, 0x18, 0x18, P66, B | V | L1 | W0), // VINSERTF128
    (M0f3a, 0x19, 0x19, P66, B | L1 | W0),
    (M0f3a, 0x1d, 0x1d, P66, B | W0),          // VCVTPS2PH
    (M0f3a, 0x20, 0x22, P66, B | V | L0),      // VPINSR
    (M0f3a, 0x30, 0x33, P66, R | L0),          // KSHIFT
    (M0f3a, 0x38, 0x38, P66, B | V | L1 | W0), // VINSERTI128
    (M0f3a, 0x39, 0x39, P66, B | L1 | W0),
    (M0f3a, 0x40, 0x40, P66, B | V), // VDPPS
    (M0f3a, 0x41, 0x41, P66, B | V | L0),
    (M0f3a, 0x42, 0x42, P66, B | V),
    (M0f3a, 0x44, 0x44, P66, B | V),           // VPCLMULQDQ
    (M0f3a, 0x46, 0x46, P66, B | V | L1 | W0), // VPERM2I128
    (M0f3a, 0x4a, 0x4c, P66, B | V | W0),      // VBLENDV
    (M0f3a, 0x60, 0x63, P66, B | L0),          // VPCMPxSTRx
    (M0f3a, 0xce, 0xcf, P66, B | V | W1),      // VGF2P8AFFINE
    (M0f3a, 0xde, 0xde, P66, B | V | L0 | W0), // VSM3RNDS2
    (M0f3a, 0xdf, 0xdf, P66, B | L0),          // VAESKEYGENASSIST
    (M0f3a, 0xf0, 0xf0, F2, B | L0),           // RORX
];

/// The fields of a VEX encoding that decide whether it exists.
pub(super) struct Form {
    pub(super) map: Map,
    pub(super) opcode: u8,
    /// None 0, 66 1, F3 2, F2 3.
    pub(super) pp: u8,
    pub(super) modrm: u8,
    pub(super) l: bool,
    pub(super) w: bool,
    /// VEX.vvvv, complemented.
    pub(super) vvvv: u8,
    /// VEX.R, complemented.
    pub(super) r: bool,
    /// In 64-bit mode.
    pub(super) is_64: bool,
    /// Addresses are of 16 bits, and so without SIB.
    pub(super) short_address: bool,
}

/// Whether a VEX encoding exists.
pub(super) fn exists(f: &Form) -> bool {
    ROWS.iter().any(|&(map, lo, hi, pps, form)| {
        map == f.map
            && (lo..=hi).contains(&f.opcode)
            && pps >> f.pp & 1 != 0
            && form & (if f.modrm < 0xc0 { M } else { R }) != 0
            && (form & V != 0 || f.vvvv == 0)
            && form & (if f.l { L0 } else { L1 }) == 0
            && form & (if f.w { W0 } else { W1 }) == 0
            && (form & VSIB == 0 || f.modrm & 7 == 4)
    }) && opcode_extension(f)
        && other_rules(f)
}

/// Opcodes that ModRM.reg extends.
fn opcode_extension(f: &Form) -> bool {
    let regs = match (f.map, f.opcode) {
        (M0f, 0x71..=0x73) => super::simd::shift_group(f.opcode, f.pp),
        (M0f, 0xae) => 1 << 2 | 1 << 3,
        (M0f38, 0xf3) => 1 << 1 | 1 << 2 | 1 << 3,
        _ => 0xff,
    };
    regs >> (f.modrm >> 3 & 7) & 1 != 0
}

/// What a few opcodes want besides: there are eight mask registers; CMPccXADD is for 64-bit mode.
fn other_rules(f: &Form) -> bool {
    match (f.map, f.opcode) {
        (M0f, 0x41..=0x4b) => !f.r && (f.vvvv < 8 || !f.is_64),
        (M0f, 0x90..=0x92 | 0x98 | 0x99) | (M0f3a, 0x30..=0x33) => !f.r,
        (M0f38, 0xe0..=0xef) => f.is_64,
        (M0f38, 0x90..=0x93) => !f.short_address,
        _ => true,
    }
}
