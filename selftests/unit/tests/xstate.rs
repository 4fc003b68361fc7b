// SPDX-License-Identifier: GPL-2.0

//! The XSAVE area: sizes and places as processors give them, validation rule by rule, and the
//! legacy state there and back.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::cpuid::Regs;
use rkvm_unit::arch::x86::model::xstate::{
    header, init, mxcsr_mask, set_header, validate, xcr0_offer, xcr0_valid, Fpu, Invalid,
    XstateLayout, MXCSR_MASK_DEFAULT, UAPI_BYTES,
};

/// A Skylake-SP: AVX, MPX, AVX-512, PKRU; PT as a supervisor component (8) that is not ours.
fn skylake(leaf: u32, sub: u32) -> Regs {
    let r = |eax, ebx, ecx| Regs {
        eax,
        ebx,
        ecx,
        edx: 0,
    };
    match (leaf, sub) {
        (0xd, 2) => r(256, 576, 0),
        (0xd, 3) => r(64, 960, 0),
        (0xd, 4) => r(64, 1024, 0),
        (0xd, 5) => r(64, 1088, 0),
        (0xd, 6) => r(512, 1152, 0),
        (0xd, 7) => r(1024, 1664, 0),
        (0xd, 8) => r(128, 0, 1),
        (0xd, 9) => r(8, 2688, 0),
        (0xd, 11) => r(16, 0, 1),
        (0xd, 12) => r(24, 0, 1),
        // AMX's, 64-byte aligned when compacted.
        (0xd, 17) => r(64, 2752, 2),
        (0xd, 18) => r(8192, 2816, 6),
        _ => Regs::ZERO,
    }
}

fn layout() -> XstateLayout {
    XstateLayout::from_cpuid(skylake)
}

#[test]
fn sizes() {
    let l = layout();
    for (xcr0, size) in [
        (1, 576),
        (3, 576),
        (7, 832),
        (0xe7, 2688),
        (0x207, 2696),
        (0x2e7, 2696),
    ] {
        assert_eq!(l.standard_size(xcr0), size, "XCR0 {xcr0:#x}");
    }
    for (mask, size) in [
        (1, 576),
        (7, 832),
        (0x207, 840),
        (0xe7, 2432),
        (0x2e7, 2440),
        (0x1a07, 576 + 256 + 8 + 16 + 24),
        // 576 + 8, then up to 640
        (0x20203, 704),
        (0x60203, 8896),
    ] {
        assert_eq!(l.compacted_size(mask), size, "components {mask:#x}");
    }
    assert_eq!(l.standard_place(2), Some((576, 256)));
    assert_eq!(l.standard_place(9), Some((2688, 8)));
    for bit in [0, 1, 10, 11, 12, 19, 20, 64, u32::MAX] {
        assert_eq!(l.standard_place(bit), None, "component {bit}");
    }
    assert_eq!(XstateLayout::default().standard_size(u64::MAX), 576);
}

#[test]
fn rules() {
    let mut a = vec![0u8; UAPI_BYTES];
    init(&mut a, 0xffff).unwrap();
    assert_eq!(validate(&a, 7, 0xffff), Ok(()));
    assert_eq!(header(&a), Ok((3, 0)));
    let with = |at: usize, v: u8| {
        let mut b = a.clone();
        b[at] = v;
        validate(&b, 7, 0xffff)
    };
    assert_eq!(with(512, 7), Ok(()));
    assert_eq!(with(512, 0xf), Err(Invalid::Components(8)));
    assert_eq!(with(519, 0x80), Err(Invalid::Components(1 << 63)));
    assert_eq!(with(527, 0x80), Err(Invalid::Compacted));
    assert_eq!(with(520, 1), Err(Invalid::Compacted));
    for at in 528..576 {
        assert_eq!(with(at, 1), Err(Invalid::Header), "byte {at}");
    }
    assert_eq!(with(576, 1), Ok(()));
    assert_eq!(with(26, 1), Err(Invalid::Mxcsr(0x1_0000)));
    // MXCSR is not loaded if neither SSE nor AVX is.
    let mut b = a.clone();
    b[26] = 1;
    set_header(&mut b, 1).unwrap();
    assert_eq!(validate(&b, 7, 0xffff), Ok(()));
    set_header(&mut b, 5).unwrap();
    assert_eq!(validate(&b, 7, 0xffff), Err(Invalid::Mxcsr(0x1_0000)));
    // A guest without XSAVE still has x87 and SSE.
    assert_eq!(validate(&a, 0, 0xffff), Ok(()));
    for n in [0, 511, 519, 527, 575] {
        assert_eq!(
            validate(&a[..n], 7, 0xffff),
            Err(Invalid::Size),
            "{n} bytes"
        );
    }
    assert_eq!(init(&mut [0; 575], 0), Err(Invalid::Size));
}

#[test]
fn initial_components() {
    let l = layout();
    let mut a = vec![0xaau8; 2752];
    set_header(&mut a, 0x4).unwrap();
    l.fill_init(&mut a, 0x2e7).unwrap();
    assert!(a[576..832].iter().all(|&b| b == 0xaa), "YMM is there");
    assert!(
        a[1088..2696].iter().all(|&b| b == 0),
        "AVX-512 and PKRU are initial"
    );
    assert!(
        a[832..1088].iter().all(|&b| b == 0xaa),
        "MPX is not asked for"
    );
    assert_eq!(&a[0..2], &[0x7f, 3]);
    assert!(a[2..24].iter().all(|&b| b == 0), "x87 after FNINIT");
    assert!(
        a[24..32].iter().all(|&b| b == 0xaa),
        "MXCSR is not part of a component"
    );
    assert!(a[32..416].iter().all(|&b| b == 0));
    assert!(
        a[416..512].iter().all(|&b| b == 0xaa),
        "bytes that software may use"
    );
    assert_eq!(l.fill_init(&mut a[..2690], 0x2e7), Err(Invalid::Size));
}

#[test]
fn mxcsr_masks() {
    let mut a = [0u8; 512];
    assert_eq!(mxcsr_mask(&a), Ok(MXCSR_MASK_DEFAULT));
    a[28..32].copy_from_slice(&0x2_ffffu32.to_le_bytes());
    assert_eq!(mxcsr_mask(&a), Ok(0x2_ffff));
    assert_eq!(mxcsr_mask(&a[..31]), Err(Invalid::Size));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn legacy_state_there_and_back(bytes in proptest::collection::vec(any::<u8>(), 576)) {
        let fpu = Fpu::from_area(&bytes).unwrap();
        // Places of the FXSAVE image (SDM vol. 1 table 10-2).
        prop_assert_eq!(fpu.fcw, u16::from_le_bytes([bytes[0], bytes[1]]));
        prop_assert_eq!(fpu.fsw, u16::from_le_bytes([bytes[2], bytes[3]]));
        prop_assert_eq!(fpu.ftwx, bytes[4]);
        prop_assert_eq!(fpu.last_opcode, u16::from_le_bytes([bytes[6], bytes[7]]));
        prop_assert_eq!(fpu.last_ip.to_le_bytes(), &bytes[8..16]);
        prop_assert_eq!(fpu.last_dp.to_le_bytes(), &bytes[16..24]);
        prop_assert_eq!(fpu.mxcsr.to_le_bytes(), &bytes[24..28]);
        prop_assert_eq!(fpu.fpr[3], &bytes[80..96]);
        prop_assert_eq!(fpu.xmm[15], &bytes[400..416]);

        let mut out = bytes.clone();
        out[..416].fill(0);
        fpu.store(&mut out, u32::MAX).unwrap();
        let mut want = bytes.clone();
        want[5] = 0;
        want[28..32].fill(0);
        want[512] |= 3;
        prop_assert_eq!(&out, &want);
        prop_assert_eq!(Fpu::from_area(&out), Ok(fpu));

        fpu.store(&mut out, 0xffff).unwrap();
        prop_assert_eq!(Fpu::from_area(&out).unwrap().mxcsr, fpu.mxcsr & 0xffff);
        // An FXSAVE image has no header; a shorter one is none.
        prop_assert!(fpu.store(&mut out[..512], 0xffff).is_ok());
        prop_assert_eq!(fpu.store(&mut out[..511], 0xffff), Err(Invalid::Size));
        prop_assert_eq!(Fpu::from_area(&out[..415]), Err(Invalid::Size));
    }

    #[test]
    fn offers_are_valid(host in any::<u64>()) {
        let v = xcr0_offer(host);
        prop_assert_eq!(v & !host, 0);
        prop_assert!(v == 0 || xcr0_valid(v, v));
        let full = xcr0_offer(host | 0x2e7);
        prop_assert_eq!(full, 0x2e7);
    }
}
