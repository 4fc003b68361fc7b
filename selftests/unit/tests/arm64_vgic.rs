// SPDX-License-Identifier: GPL-2.0

//! The registers of the virtual GICv3, for the guest and for user space.

use rkvm_unit::arch::arm64::model::vgic::*;

const HW: LrConfig = LrConfig {
    count: 4,
    pri_bits: 5,
    id_bits: 0,
    seis: false,
    a3v: true,
    tds: true,
};
const GLOBAL: Global = Global {
    group0: true,
    group1: true,
    its: true,
    revision: 3,
};

/// vCPU 0 is 0.0.0.0, vCPU 1 is 0.0.0.1, vCPU 2 is 0.0.1.0.
fn affinities() -> [Affinity; 3] {
    [0, 1, 0x100].map(Affinity::from_bits)
}

fn dist(nr_irqs: u32) -> Dist {
    let config = Config {
        nr_irqs,
        revision: 3,
        its: false,
    };
    Dist::new(config, affinities().into_iter()).ok().unwrap()
}

fn private(index: u16) -> Private {
    let affinity = affinities()[usize::from(index)];
    Private::new(index, index + 5, affinity, &HW)
}

fn ring(v: Vcpus) -> Vec<u16> {
    v.iter().collect()
}

fn read(d: &Dist, offset: u64) -> u32 {
    d.read(offset, 4).try_into().unwrap()
}

fn write(d: &mut Dist, offset: u64, value: u32) -> Vec<u16> {
    ring(d.write(offset, 4, value.into()))
}

#[test]
fn configurations() {
    let new = |nr_irqs, revision, n: usize| {
        let config = Config {
            nr_irqs,
            revision,
            its: false,
        };
        Dist::new(config, vec![Affinity::default(); n].into_iter()).err()
    };
    for good in [64, 96, 256, 1024] {
        assert_eq!(new(good, 3, 1), None);
    }
    for bad in [0, 32, 63, 65, 80, 1056] {
        assert_eq!(new(bad, 3, 1), Some(NewError::Invalid));
    }
    assert_eq!(new(64, 2, MAX_VCPUS), None);
    assert_eq!(new(64, 1, 1), Some(NewError::Invalid));
    assert_eq!(new(64, 4, 1), Some(NewError::Invalid));
    assert_eq!(new(64, 3, 0), Some(NewError::Invalid));
    assert_eq!(new(64, 3, MAX_VCPUS + 1), Some(NewError::Invalid));
    rkvm_unit::host::grow_vec::fail_after(Some(0));
    assert_eq!(new(64, 3, 1), Some(NewError::NoMemory));
    rkvm_unit::host::grow_vec::fail_after(Some(1));
    assert_eq!(new(64, 3, 1), Some(NewError::NoMemory));
    rkvm_unit::host::grow_vec::fail_after(None);
}

#[test]
fn dist_identification() {
    let mut d = dist(64);
    assert_eq!(read(&d, gicd::CTLR), 0x50);
    assert_eq!(read(&d, gicd::TYPER), 9 << 19 | 1);
    assert_eq!(read(&d, gicd::IIDR), 0x4b00_343b);
    assert_eq!(read(&d, gicd::TYPER2), 0);
    assert_eq!(read(&d, gicd::PIDR2), 0x3b);
    assert_eq!(read(&d, gicd::IDREGS), 0);
    assert_eq!(read(&d, 0xfffc), 0);
    d.set_its(true);
    assert!(d.global().its);
    assert_eq!(read(&d, gicd::TYPER), 15 << 19 | 1 << 17 | 1);
    assert_eq!(read(&dist(1024), gicd::TYPER), 9 << 19 | 31);
    // Read-only
    for offset in [gicd::TYPER, gicd::IIDR, gicd::TYPER2, gicd::PIDR2] {
        let was = read(&d, offset);
        assert_eq!(write(&mut d, offset, !was), []);
        assert_eq!(read(&d, offset), was);
    }
}

#[test]
fn dist_control() {
    let mut d = dist(64);
    // All bits: two of them can be written, and everyone looks again.
    assert_eq!(write(&mut d, gicd::CTLR, !0), [0, 1, 2]);
    assert_eq!(read(&d, gicd::CTLR), 0x53);
    assert!(d.global().group0 && d.global().group1);
    assert_eq!(write(&mut d, gicd::CTLR, 0x53), []);
    assert_eq!(write(&mut d, gicd::CTLR, 2), [0, 1, 2]);
    assert_eq!(read(&d, gicd::CTLR), 0x52);
    assert!(!d.global().group0 && d.global().group1);
    assert_eq!(ring(d.user_write(gicd::CTLR, 1).unwrap()), [0, 1, 2]);
    assert_eq!(d.user_read(gicd::CTLR), Ok(0x51));
    let g = Global {
        group0: true,
        group1: false,
        its: true,
        revision: 2,
    };
    assert_eq!(Global::from_bits(g.to_bits()), g);
    assert_eq!(Global::from_bits(GLOBAL.to_bits()), GLOBAL);
}

#[test]
fn status_registers() {
    let mut d = dist(64);
    assert_eq!(read(&d, gicd::STATUSR), 0);
    assert!(d.user_write(gicd::STATUSR, !0).unwrap().is_empty());
    assert_eq!(d.user_read(gicd::STATUSR), Ok(0xf));
    write(&mut d, gicd::STATUSR, 0x5);
    assert_eq!(read(&d, gicd::STATUSR), 0xa);
    assert!(d.user_write(gicd::STATUSR, 0x3).is_ok());
    assert_eq!(read(&d, gicd::STATUSR), 0x3);

    let mut p = private(0);
    assert!(p.user_write(gicr::STATUSR, !0, GLOBAL).is_ok());
    let _ = p.write(gicr::STATUSR, 4, 0x6, GLOBAL);
    assert_eq!(p.user_read(gicr::STATUSR, GLOBAL), Ok(0x9));
}

#[test]
fn revision() {
    let mut d = dist(64);
    assert!(d.user_write(gicd::IIDR, 0x4b00_243b).is_ok());
    assert_eq!(d.user_read(gicd::IIDR), Ok(0x4b00_243b));
    assert_eq!(d.global().revision, 2);
    for bad in [0x4b00_143b, 0x4b00_443b, 0x4b01_343b, 0x4b00_343a, 0] {
        assert_eq!(d.user_write(gicd::IIDR, bad), Err(RegError::Invalid));
    }
    assert!(d.user_write(gicd::TYPER2, 0).is_ok());
    assert_eq!(d.user_write(gicd::TYPER2, 1 << 8), Err(RegError::Invalid));
    // GICR_CTLR tells of IR and CES from revision 3 on.
    let p = private(0);
    assert_eq!(p.read(gicr::CTLR, 4, GLOBAL), 6);
    assert_eq!(p.read(gicr::CTLR, 4, d.global()), 0);
}

/// Registers with a set and a clear half.
#[test]
fn dist_bits() {
    let mut d = dist(96);
    for (set, clear) in [
        (gicd::ISENABLER, gicd::ICENABLER),
        (gicd::ISPENDR, gicd::ICPENDR),
        (gicd::ISACTIVER, gicd::ICACTIVER),
    ] {
        for n in [1, 2] {
            let (set, clear) = (set + 4 * n, clear + 4 * n);
            assert_eq!(read(&d, set), 0);
            write(&mut d, set, 0x8000_00f0);
            write(&mut d, set, 0x0000_0f00);
            assert_eq!(read(&d, set), 0x8000_0ff0);
            assert_eq!(read(&d, clear), 0x8000_0ff0);
            write(&mut d, clear, 0x0000_01ff);
            assert_eq!(read(&d, set), 0x8000_0e00);
            assert_eq!(read(&d, clear), 0x8000_0e00);
        }
        // Those of SGIs and PPIs are in the redistributors; beyond the last there is nothing.
        for n in [0, 3, 31] {
            write(&mut d, set + 4 * n, !0);
            assert_eq!(read(&d, set + 4 * n), 0);
        }
    }
    assert_eq!(read(&d, gicd::IGROUPR + 4), !0);
    write(&mut d, gicd::IGROUPR + 4, 0x1234_5678);
    assert_eq!(read(&d, gicd::IGROUPR + 4), 0x1234_5678);
    assert_eq!(read(&d, gicd::IGROUPR), 0);
    assert_eq!(read(&d, gicd::IGROUPR + 12), 0);
    write(&mut d, gicd::IGRPMODR + 4, !0);
    assert_eq!(read(&d, gicd::IGRPMODR + 4), 0);
}

/// INTIDs 1020 to 1023 are special, even with 1024.
#[test]
fn special_intids() {
    let mut d = dist(1024);
    for offset in [gicd::ISENABLER, gicd::ISPENDR, gicd::ISACTIVER] {
        write(&mut d, offset + 124, !0);
        assert_eq!(read(&d, offset + 124), 0x0fff_ffff);
    }
    write(&mut d, gicd::IGROUPR + 124, 0);
    assert_eq!(read(&d, gicd::IGROUPR + 124) & 0x0fff_ffff, 0);
    write(&mut d, gicd::IPRIORITYR + 1020, !0);
    assert_eq!(read(&d, gicd::IPRIORITYR + 1020), 0);
    write(&mut d, gicd::IROUTER + 8 * 1020, 1);
    assert_eq!(read(&d, gicd::IROUTER + 8 * 1020), 0);
    // It is active.
    assert_eq!(d.set_spi(1019, true).map(ring), Ok(vec![0]));
    for bad in [0, 31, 1020, 1023, 1024, 8192, u32::MAX] {
        assert_eq!(d.set_spi(bad, true), Err(NoSuchInterrupt));
    }
    assert_eq!(dist(64).set_spi(64, true), Err(NoSuchInterrupt));
    let levels = d.set_level_info(992, !0).map(drop);
    assert_eq!(levels, Ok(()));
    assert_eq!(d.level_info(992), Ok(0x0fff_ffff));
}

#[test]
fn priorities() {
    let mut d = dist(64);
    write(&mut d, gicd::IPRIORITYR + 32, 0xffa7_5b08);
    assert_eq!(read(&d, gicd::IPRIORITYR + 32), 0xf8a0_5808);
    // Bytes
    assert!(d.write(gicd::IPRIORITYR + 33, 1, 0x1_23ff).is_empty());
    assert_eq!(read(&d, gicd::IPRIORITYR + 32), 0xf8a0_f808);
    assert_eq!(d.read(gicd::IPRIORITYR + 34, 1), 0xa0);
    write(&mut d, gicd::IPRIORITYR + 60, 0x8070_6050);
    assert_eq!(d.read(gicd::IPRIORITYR + 63, 1), 0x80);
    // Other sizes and alignments
    for (offset, len) in [(32, 2), (33, 4), (32, 8), (34, 2), (32, 3), (32, 0)] {
        let offset = gicd::IPRIORITYR + offset;
        assert_eq!(d.read(offset, len), 0);
        assert!(d.write(offset, len, 0).is_empty());
    }
    assert_eq!(read(&d, gicd::IPRIORITYR + 32), 0xf8a0_f808);
    assert_eq!(read(&d, gicd::IPRIORITYR + 28), 0);
    assert_eq!(read(&d, gicd::IPRIORITYR + 64), 0);
    write(&mut d, gicd::ITARGETSR + 32, !0);
    assert_eq!(read(&d, gicd::ITARGETSR + 32), 0);
}

#[test]
fn triggers() {
    let mut d = dist(64);
    assert_eq!(read(&d, gicd::ICFGR + 8), 0);
    // The lower bit of each field is reserved.
    write(&mut d, gicd::ICFGR + 8, 0xffff_000f);
    assert_eq!(read(&d, gicd::ICFGR + 8), 0xaaaa_000a);
    write(&mut d, gicd::ICFGR + 12, 0x8000_0002);
    assert_eq!(read(&d, gicd::ICFGR + 12), 0x8000_0002);
    assert_eq!(read(&d, gicd::ICFGR + 8), 0xaaaa_000a);
    write(&mut d, gicd::ICFGR, !0);
    assert_eq!(read(&d, gicd::ICFGR), 0);
    // A line that is high makes an interrupt pending as soon as it is level-triggered.
    assert_eq!(d.set_spi(32, true).map(ring), Ok(vec![]));
    write(&mut d, gicd::ICPENDR + 4, !0);
    assert_eq!(read(&d, gicd::ISPENDR + 4), 0);
    write(&mut d, gicd::ICFGR + 8, 0);
    assert_eq!(read(&d, gicd::ISPENDR + 4), 1);
}

#[test]
fn routes() {
    let mut d = dist(64);
    let router = gicd::IROUTER + 8 * 40;
    assert_eq!(d.read(router, 8), 0);
    assert!(d.write(router, 8, 0xffff_ff12_ff34_5678).is_empty());
    // Aff3 and reserved bits are zero, the routing mode is kept.
    assert_eq!(d.read(router, 8), 0x8034_5678);
    assert!(d.write(router, 4, 0x0012_0001).is_empty());
    assert!(d.write(router + 4, 4, 0xff).is_empty());
    assert_eq!(d.read(router, 8), 0x0012_0001);
    assert_eq!(d.read(router, 4), 0x0012_0001);
    assert_eq!(d.read(router + 4, 4), 0);
    for (offset, len) in [(router + 4, 8), (router, 2), (router + 1, 1)] {
        assert_eq!(d.read(offset, len), 0);
        assert!(d.write(offset, len, 1).is_empty());
    }
    assert_eq!(d.read(router, 4), 0x0012_0001);
    // Of SGIs and PPIs, and beyond the last
    for n in [0, 31, 64, 1019] {
        assert!(d.write(gicd::IROUTER + 8 * n, 8, 1).is_empty());
        assert_eq!(d.read(gicd::IROUTER + 8 * n, 8), 0);
    }

    write(&mut d, gicd::CTLR, 2);
    write(&mut d, gicd::ISENABLER + 4, 1 << 8);
    // Nobody is there.
    assert_eq!(d.set_spi(40, true).map(ring), Ok(vec![]));
    assert!((0..3).all(|v| !d.concerns(v)));
    for (route, vcpu) in [(0x100, 2), (1, 1), (0, 0), (0x100, 2), (1 << 31 | 1, 0)] {
        assert_eq!(ring(d.write(router, 8, route)), [vcpu]);
        for v in 0..3 {
            assert_eq!(d.concerns(v), v == vcpu, "{v} {route:#x}");
        }
    }
    assert!(d.write(router, 8, 77).is_empty());
    assert!((0..3).all(|v| !d.concerns(v)));
    assert_eq!(d.vcpu_at(Affinity::from_bits(0x100)), Some(2));
    assert_eq!(d.vcpu_at(Affinity::from_bits(2)), None);
    assert!(!d.concerns(3) && !d.concerns(u16::MAX));
}

#[test]
fn reserved_is_zero() {
    let mut d = dist(1024);
    for offset in [
        0x14, 0x40, 0x48, 0x7c, 0xe00, 0xf00, 0xf10, 0xf20, 0x1000, 0x5ffc, 0x8000,
    ] {
        write(&mut d, offset, !0);
        assert_eq!(read(&d, offset), 0, "{offset:#x}");
        assert_eq!(d.user_read(offset), Err(RegError::Unknown), "{offset:#x}");
        assert_eq!(d.user_write(offset, 0), Err(RegError::Unknown));
    }
    assert_eq!(d.read(0x1_0000, 4), 0);
    assert_eq!(d.read(u64::MAX - 3, 4), 0);
    assert_eq!(d.user_read(0x1_0000), Err(RegError::Unknown));
    // Sizes that a register does not have
    for len in [0, 1, 2, 3, 5, 8, 16, 255] {
        assert_eq!(d.read(gicd::TYPER, len), 0);
        assert_eq!(d.read(gicd::PIDR2, len), 0);
        assert!(d.write(gicd::ISENABLER + 4, len, !0).is_empty());
        assert!(d.write(gicd::CTLR, len, !0).is_empty());
    }
    assert!(d.write(gicd::ISENABLER + 5, 4, !0).is_empty());
    assert_eq!(read(&d, gicd::ISENABLER + 4), 0);
    assert_eq!(read(&d, gicd::CTLR), 0x50);
}

/// Documentation/virt/kvm/devices/arm-vgic-v3.rst: the latch, not what is pending.
#[test]
fn user_space_sees_the_latch() {
    let mut d = dist(64);
    let (set, clear) = (gicd::ISPENDR + 4, gicd::ICPENDR + 4);
    write(&mut d, gicd::ICFGR + 8, 0x2);
    for intid in [32, 33, 34] {
        let _ = d.set_spi(intid, true).unwrap();
    }
    write(&mut d, set, 0x8);
    // 32 is an edge; 33 and 34 are high lines; 35 was written.
    assert_eq!(read(&d, set), 0xf);
    assert_eq!(read(&d, clear), 0xf);
    assert_eq!(d.user_read(set), Ok(0x9));
    assert_eq!(d.user_read(clear), Ok(0));
    assert_eq!(d.level_info(32), Ok(0x6));
    assert!(d.user_write(clear, !0).is_ok());
    assert_eq!(d.user_read(set), Ok(0x9));
    // Both ways
    assert!(d.user_write(set, 0x12).is_ok());
    assert_eq!(d.user_read(set), Ok(0x12));
    assert_eq!(read(&d, set), 0x16);
    // ICPENDR does not lower a line.
    write(&mut d, clear, !0);
    assert_eq!(read(&d, set), 0x6);

    let mut p = private(0);
    let (set, clear) = (
        gicr::SGI_BASE + gicd::ISPENDR,
        gicr::SGI_BASE + gicd::ICPENDR,
    );
    assert!(p.set_ppi(20, true).is_ok());
    let _ = p.write(set, 4, 1 << 3 | 1 << 21, GLOBAL);
    assert_eq!(p.read(set, 4, GLOBAL), 0x30_0008);
    assert_eq!(p.user_read(set, GLOBAL), Ok(0x20_0008));
    assert_eq!(p.user_read(clear, GLOBAL), Ok(0));
    assert!(p.user_write(set, 0x10, GLOBAL).is_ok());
    assert_eq!(p.read(clear, 4, GLOBAL), 0x10_0010);
    assert_eq!(p.level_info(), 1 << 20);
}

#[test]
fn level_info() {
    let mut d = dist(64);
    for bad in [1, 31, 33, 1000] {
        assert_eq!(d.level_info(bad), Err(RegError::Invalid));
        assert_eq!(d.set_level_info(bad, 0), Err(RegError::Invalid));
    }
    write(&mut d, gicd::ISENABLER + 4, 0x3);
    write(&mut d, gicd::ICFGR + 8, 0x2);
    assert_eq!(d.set_level_info(32, 0x7).map(ring), Ok(vec![0]));
    // An edge-triggered one's is kept, not shown, and no edge.
    assert_eq!(d.level_info(32), Ok(0x6));
    assert_eq!(read(&d, gicd::ISPENDR + 4), 0x6);
    write(&mut d, gicd::ICFGR + 8, 0);
    assert_eq!(d.level_info(32), Ok(0x7));
    assert_eq!(d.set_level_info(32, 0x0).map(ring), Ok(vec![]));
    assert!(!d.concerns(0));
    // Not those of SGIs and PPIs, nor beyond the last
    for none in [0, 64, 992, 1024, 8192] {
        assert_eq!(d.set_level_info(none, !0).map(ring), Ok(vec![]));
        assert_eq!(d.level_info(none), Ok(0));
    }
    let mut p = private(0);
    let _ = p.write(gicr::SGI_BASE + gicd::ISENABLER, 4, !0, GLOBAL);
    assert!(p.set_level_info(!0));
    assert_eq!(p.level_info(), 0xffff_0000);
    assert!(!p.set_level_info(!0));
    assert!(!p.set_level_info(0));
    assert_eq!(p.level_info(), 0);
}

/// Edges and levels, as ISPENDR shows them.
#[test]
fn lines() {
    let mut d = dist(64);
    let pending = |d: &Dist| read(d, gicd::ISPENDR + 4);
    write(&mut d, gicd::ISENABLER + 4, !0);
    write(&mut d, gicd::ICFGR + 8, 0x2);
    // A level: pending while it is high.
    assert_eq!(d.set_spi(33, true).map(ring), Ok(vec![0]));
    assert_eq!(d.set_spi(33, true).map(ring), Ok(vec![]));
    assert_eq!(pending(&d), 2);
    assert_eq!(d.set_spi(33, false).map(ring), Ok(vec![]));
    assert_eq!(pending(&d), 0);
    // An edge: until it is taken or cleared.
    assert_eq!(d.set_spi(32, true).map(ring), Ok(vec![0]));
    assert_eq!(d.set_spi(32, false).map(ring), Ok(vec![]));
    assert_eq!(pending(&d), 1);
    assert_eq!(d.set_spi(32, true).map(ring), Ok(vec![]));
    write(&mut d, gicd::ICPENDR + 4, 1);
    assert_eq!(pending(&d), 0);
    // The line was not lowered, but each call is an edge.
    assert_eq!(d.set_spi(32, true).map(ring), Ok(vec![0]));
    // Written to a level-triggered one: until cleared, whatever the line does.
    write(&mut d, gicd::ISPENDR + 4, 2);
    let _ = d.set_spi(33, true).unwrap();
    let _ = d.set_spi(33, false).unwrap();
    assert_eq!(pending(&d), 3);
    let _ = d.set_spi(33, true).unwrap();
    write(&mut d, gicd::ICPENDR + 4, 3);
    assert_eq!(pending(&d), 2);
    // Disabled, nobody needs to know; enabled again, the target does.
    write(&mut d, gicd::ICENABLER + 4, !0);
    assert!(!d.concerns(0));
    assert_eq!(d.set_spi(32, true).map(ring), Ok(vec![]));
    assert_eq!(write(&mut d, gicd::ISENABLER + 4, 1), [0]);
}

#[test]
fn vcpu_sets() {
    let mut v = Vcpus::NONE;
    assert!(v.is_empty());
    for i in [0, 63, 64, 200, 511] {
        v.insert(i);
        assert!(v.contains(i));
    }
    v.insert(512);
    v.insert(u16::MAX);
    assert_eq!(ring(v), [0, 63, 64, 200, 511]);
    v.remove(64);
    assert!(!v.contains(64) && !v.contains(512));
    for n in [0, 1, 63, 64, 65, 512] {
        assert_eq!(Vcpus::first(n).iter().count(), n);
    }
    assert_eq!(ring(Vcpus::first(2).or(v)), [0, 1, 63, 200, 511]);
}

/// All state goes through user space and comes back, in an order of its own.
#[test]
fn save_and_restore() {
    let per_word = [
        gicd::IGROUPR,
        gicd::ISENABLER,
        gicd::ISACTIVER,
        gicd::ISPENDR,
    ];
    let offsets: Vec<u64> = (per_word.iter().flat_map(|r| [1, 2].map(|n| r + 4 * n)))
        .chain((8..24).map(|n| gicd::IPRIORITYR + 4 * n))
        .chain((2..6).map(|n| gicd::ICFGR + 4 * n))
        .chain((32..96).map(|n| gicd::IROUTER + 8 * n))
        .chain([gicd::CTLR, gicd::STATUSR, gicd::IIDR])
        .collect();
    let save = |d: &Dist| -> Vec<u32> {
        let regs = offsets.iter().map(|&o| d.user_read(o).unwrap());
        regs.chain([32, 64].map(|n| d.level_info(n).unwrap()))
            .collect()
    };
    let mut a = dist(96);
    write(&mut a, gicd::CTLR, 3);
    for (i, &o) in offsets.iter().enumerate() {
        if ![gicd::CTLR, gicd::STATUSR, gicd::IIDR].contains(&o) {
            write(&mut a, o, 0x9e37_79b9u32.wrapping_mul(i as u32 + 1));
        }
    }
    // Of each kind of line, some are high.
    assert!(a.set_level_info(32, 0x1234_5678).is_ok());
    write(&mut a, gicd::IROUTER + 8 * 32, 1);
    assert!(a.user_write(gicd::STATUSR, 9).is_ok());
    let saved = save(&a);
    let mut b = dist(96);
    assert!(b.set_level_info(32, saved[offsets.len()]).is_ok());
    for (&o, &v) in offsets.iter().zip(&saved) {
        assert!(b.user_write(o, v).is_ok(), "{o:#x}");
    }
    assert_eq!(save(&b), saved);
    assert_eq!(b.global(), a.global());
    for v in 0..3 {
        assert_eq!(b.concerns(v), a.concerns(v));
    }
    for o in per_word {
        assert_eq!(read(&a, o + 4), read(&b, o + 4));
    }
    a.reset();
    let mut fresh = dist(96);
    assert!(fresh.set_level_info(32, 0x1234_5678).is_ok());
    assert_eq!(save(&a), save(&fresh));
    assert!((0..3).all(|v| !a.concerns(v)));
}

#[test]
fn a_pulse_is_pending_until_it_is_taken() {
    for edge in [false, true] {
        let mut d = dist(64);
        write(&mut d, gicd::CTLR, 2);
        write(&mut d, gicd::ISENABLER + 4, 1 << 8);
        write(&mut d, gicd::ICFGR + 8, if edge { 2 << 16 } else { 0 });
        assert_eq!(d.pulse_spi(40).map(ring), Ok(vec![0]));
        assert_eq!(read(&d, gicd::ISPENDR + 4), 1 << 8);
        // Once.
        assert_eq!(d.pulse_spi(40).map(ring), Ok(vec![]));
        write(&mut d, gicd::ICPENDR + 4, 1 << 8);
        assert_eq!(read(&d, gicd::ISPENDR + 4), 0);
    }
    // A line that is high already shows no difference.
    let mut d = dist(64);
    assert!(d.set_spi(40, true).is_ok());
    assert!(d.pulse_spi(40).is_ok());
    assert!(d.set_spi(40, false).is_ok());
    assert_eq!(read(&d, gicd::ISPENDR + 4), 0);
    assert_eq!(d.pulse_spi(64), Err(NoSuchInterrupt));
}

#[test]
fn registers_of_the_cpu_interface_that_trap() {
    const PMR: u16 = 3 << 14 | 4 << 7 | 6 << 3;
    const CTLR: u16 = 3 << 14 | 12 << 7 | 12 << 3 | 4;
    let mut cpu = CpuIf::new(&HW);
    assert_eq!(cpu.running(&HW), 0xff);
    // With five bits, each is a priority of eight.
    cpu.ap1r[0] = 1 << 20 | 1 << 31;
    assert_eq!(cpu.running(&HW), 20 << 3);
    cpu.ap0r[0] = 1;
    assert_eq!(cpu.running(&HW), 0);
    let seven = LrConfig { pri_bits: 7, ..HW };
    let mut cpu = CpuIf::new(&seven);
    cpu.ap1r[3] = 1 << 31;
    assert_eq!(cpu.running(&seven), 0xfe);
    cpu.ap0r[1] = 2;
    assert_eq!(cpu.running(&seven), 33 << 1);

    let mut cpu = CpuIf::new(&HW);
    assert!(cpu.write(PMR, 0xf0));
    assert_eq!(cpu.sysreg(PMR, &HW), Ok(0xf0));
    let before = cpu.sysreg(CTLR, &HW).unwrap();
    // The guest sets two flags; what the hardware has stays.
    assert!(cpu.write(CTLR, !0));
    assert_eq!(cpu.sysreg(CTLR, &HW), Ok(before | 3));
    assert!(cpu.vmcr.eoi_split());
    assert!(!cpu.write(CTLR + 1, 1));
}

#[test]
fn routes_follow_affinities() {
    let mut d = dist(64);
    write(&mut d, gicd::CTLR, 2);
    write(&mut d, gicd::ISENABLER + 4, 7 << 8);
    for (intid, route) in [(40, 0), (41, 1), (42, 0x305)] {
        let _ = d.write(gicd::IROUTER + 8 * intid, 8, route);
        let _ = d.set_spi(intid as u32, true).unwrap();
    }
    let concerned = |d: &Dist| (0..3).filter(|v| d.concerns(*v)).collect::<Vec<_>>();
    assert_eq!(concerned(&d), [0, 1]);
    // vCPU 1 goes to where 42 is routed; nobody is where 41 is.
    assert_eq!(ring(d.set_affinity(1, Affinity::from_bits(0x305))), [1]);
    assert_eq!(concerned(&d), [0, 1]);
    assert_eq!(d.vcpu_at(Affinity::from_bits(1)), None);
    // vCPU 0 goes, vCPU 2 takes its place.
    assert!(d.set_affinity(0, Affinity::from_bits(7)).is_empty());
    assert_eq!(concerned(&d), [1]);
    assert_eq!(ring(d.set_affinity(2, Affinity::from_bits(0))), [2]);
    assert_eq!(concerned(&d), [1, 2]);
    // What user space reads of the routes is what was written.
    assert_eq!(d.read(gicd::IROUTER + 8 * 41, 8), 1);
    assert!(d.set_affinity(3, Affinity::from_bits(1)).is_empty());
    let mut p = private(1);
    p.set_affinity(Affinity::from_bits(0x305));
    assert_eq!(p.read(gicr::TYPER + 4, 4, GLOBAL), 0x305);
}
