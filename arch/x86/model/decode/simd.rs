// SPDX-License-Identifier: GPL-2.0

//! Which legacy-encoded MMX, SSE and other extension opcodes exist, by mandatory prefix (APM
//! vol. 3 appendix A.1, vol. 4 and 5; SDM vol. 2D appendix A). Enough for lengths and #UD; the
//! moves that the emulator knows are named in `vecmov`.

/// No such instruction.
const X: u8 = 0;
/// Memory form only.
const M: u8 = 1;
/// Register form only.
const R: u8 = 2;
/// Both forms.
const B: u8 = 3;

/// First and last opcode; then the forms without prefix, with 66, with F3, with F2.
type Row = (u8, u8, u8, u8, u8, u8);

const ROWS_0F: &[Row] = &[
    (0x10, 0x11, B, B, B, B), // MOVUPS and kin
    (0x12, 0x12, B, M, B, B), // MOVLPS, MOVHLPS, MOVSLDUP, MOVDDUP
    (0x13, 0x13, M, M, X, X),
    (0x14, 0x15, B, B, X, X), // UNPCK
    (0x16, 0x16, B, M, B, X), // MOVHPS, MOVLHPS, MOVSHDUP
    (0x17, 0x17, M, M, X, X),
    (0x28, 0x29, B, B, X, X), // MOVAPS
    (0x2a, 0x2a, B, B, B, B), // CVTPI2PS
    (0x2b, 0x2b, M, M, M, M), // MOVNTPS, MOVNTSS (SSE4A)
    (0x2c, 0x2d, B, B, B, B), // CVTTPS2PI
    (0x2e, 0x2f, B, B, X, X), // UCOMISS
    (0x37, 0x37, B, X, X, X), // GETSEC
    (0x50, 0x50, R, R, X, X), // MOVMSKPS
    (0x51, 0x51, B, B, B, B), // SQRTPS
    (0x52, 0x53, B, X, B, X), // RSQRTPS
    (0x54, 0x57, B, B, X, X), // ANDPS
    (0x58, 0x5a, B, B, B, B), // ADDPS
    (0x5b, 0x5b, B, B, B, X), // CVTDQ2PS
    (0x5c, 0x5f, B, B, B, B), // SUBPS
    (0x60, 0x6b, B, B, X, X), // PUNPCK
    (0x6c, 0x6d, X, B, X, X), // PUNPCKLQDQ
    (0x6e, 0x6e, B, B, X, X), // MOVD
    (0x6f, 0x6f, B, B, B, X), // MOVQ, MOVDQA, MOVDQU
    (0x70, 0x70, B, B, B, B), // PSHUFW
    (0x71, 0x73, R, R, X, X), // shifts by immediate
    (0x74, 0x76, B, B, X, X), // PCMPEQ
    (0x77, 0x77, B, X, X, X), // EMMS
    (0x78, 0x79, B, R, X, R), // VMREAD, VMWRITE; EXTRQ, INSERTQ (SSE4A)
    (0x7c, 0x7d, X, B, X, B), // HADDPS
    (0x7e, 0x7f, B, B, B, X), // MOVD, MOVQ, MOVDQA
    (0xc2, 0xc2, B, B, B, B), // CMPPS
    (0xc4, 0xc4, B, B, X, X), // PINSRW
    (0xc5, 0xc5, R, R, X, X), // PEXTRW
    (0xc6, 0xc6, B, B, X, X), // SHUFPS
    (0xd0, 0xd0, X, B, X, B), // ADDSUBPS
    (0xd1, 0xd5, B, B, X, X),
    (0xd6, 0xd6, X, B, R, R), // MOVQ, MOVQ2DQ, MOVDQ2Q
    (0xd7, 0xd7, R, R, X, X), // PMOVMSKB
    (0xd8, 0xe5, B, B, X, X),
    (0xe6, 0xe6, X, B, B, B), // CVTTPD2DQ
    (0xe7, 0xe7, M, M, X, X), // MOVNTQ
    (0xe8, 0xef, B, B, X, X),
    (0xf0, 0xf0, X, X, X, M), // LDDQU
    (0xf1, 0xf6, B, B, X, X),
    (0xf7, 0xf7, R, R, X, X), // MASKMOVQ
    (0xf8, 0xfe, B, B, X, X),
];

const ROWS_0F38: &[Row] = &[
    (0x00, 0x0b, B, B, X, X), // PSHUFB
    (0x10, 0x10, X, B, X, X), // PBLENDVB
    (0x14, 0x15, X, B, X, X), // BLENDVPS
    (0x17, 0x17, X, B, X, X), // PTEST
    (0x1c, 0x1e, B, B, X, X), // PABSB
    (0x20, 0x25, X, B, X, X), // PMOVSX
    (0x28, 0x29, X, B, X, X),
    (0x2a, 0x2a, X, M, X, X), // MOVNTDQA
    (0x2b, 0x2b, X, B, X, X),
    (0x30, 0x35, X, B, X, X), // PMOVZX
    (0x37, 0x41, X, B, X, X),
    (0x80, 0x81, X, M, X, X), // INVEPT, INVVPID
    (0xc8, 0xcd, B, X, X, X), // SHA
    (0xcf, 0xcf, X, B, X, X), // GF2P8MULB
    (0xd8, 0xd8, X, X, M, X), // AESENCWIDE128KL
    (0xdb, 0xdb, X, B, X, X), // AESIMC
    (0xdc, 0xdc, X, B, B, X), // AESENC, AESENC128KL, LOADIWKEY
    (0xdd, 0xdf, X, B, M, X), // AES
    (0xf5, 0xf5, X, M, X, X), // WRUSS
    (0xf8, 0xf8, X, M, M, M), // MOVDIR64B, ENQCMD
    (0xf9, 0xf9, M, X, X, X), // MOVDIRI
    (0xfa, 0xfb, X, X, R, X), // ENCODEKEY
    (0xfc, 0xfc, M, M, M, M), // AADD, AAND, AXOR, AOR
];

const ROWS_0F3A: &[Row] = &[
    (0x08, 0x0e, X, B, X, X), // ROUNDPS, BLENDPS
    (0x0f, 0x0f, B, B, X, X), // PALIGNR
    (0x14, 0x17, X, B, X, X), // PEXTR
    (0x20, 0x22, X, B, X, X), // PINSR
    (0x40, 0x42, X, B, X, X), // DPPS
    (0x44, 0x44, X, B, X, X), // PCLMULQDQ
    (0x60, 0x63, X, B, X, X), // PCMPxSTRx
    (0xcc, 0xcc, B, X, X, X), // SHA1RNDS4
    (0xce, 0xcf, X, B, X, X), // GF2P8AFFINE
    (0xdf, 0xdf, X, B, X, X), // AESKEYGENASSIST
];

const fn expand(rows: &[Row]) -> [u8; 256] {
    let mut t = [0; 256];
    let mut i = 0;
    while i < rows.len() {
        let (lo, hi, np, p66, f3, f2) = rows[i];
        let mut op = lo as usize;
        while op <= hi as usize {
            t[op] = np | p66 << 2 | f3 << 4 | f2 << 6;
            op += 1;
        }
        i += 1;
    }
    t
}

static FORMS_0F: [u8; 256] = expand(ROWS_0F);
static FORMS_0F38: [u8; 256] = expand(ROWS_0F38);
static FORMS_0F3A: [u8; 256] = expand(ROWS_0F3A);

/// An opcode map beyond the one-byte map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// 0F.
    M0f,
    /// 0F 38.
    M0f38,
    /// 0F 3A: each has an immediate byte.
    M0f3a,
}

/// Whether the memory and the register form of a SIMD opcode exist under mandatory prefix `pp`.
#[inline]
pub(super) fn forms(map: Map, opcode: u8, pp: u8) -> (bool, bool) {
    let t = match map {
        Map::M0f => &FORMS_0F,
        Map::M0f38 => &FORMS_0F38,
        Map::M0f3a => &FORMS_0F3A,
    };
    let f = t[usize::from(opcode)] >> (2 * (pp & 3));
    (f & M != 0, f & R != 0)
}

/// How many immediate bytes follow a SIMD opcode.
#[inline]
pub(super) const fn imm_bytes(map: Map, opcode: u8, pp: u8) -> usize {
    match (map, opcode) {
        (Map::M0f3a, _) => 1,
        (Map::M0f, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => 1,
        (Map::M0f, 0x78) if pp != 0 => 2,
        _ => 0,
    }
}

/// Whether a SIMD opcode is one byte of opcode and nothing else.
#[inline]
pub(super) const fn no_modrm(map: Map, opcode: u8) -> bool {
    matches!((map, opcode), (Map::M0f, 0x37 | 0x77))
}

/// Which ModRM.reg values exist in the shifts by immediate (0F 71 to 0F 73), as a bit mask.
#[inline]
pub(super) const fn shift_group(opcode: u8, pp: u8) -> u8 {
    match (opcode, pp) {
        (0x71 | 0x72, _) => 1 << 2 | 1 << 4 | 1 << 6,
        (_, 1) => 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7,
        _ => 1 << 2 | 1 << 6,
    }
}
