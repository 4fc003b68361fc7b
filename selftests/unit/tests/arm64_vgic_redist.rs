// SPDX-License-Identifier: GPL-2.0

//! The redistributors of the virtual GICv3, CPU interfaces as user space sees them, SGIs.

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
const NO_ITS: Global = Global {
    its: false,
    ..GLOBAL
};
const SGI: u64 = gicr::SGI_BASE;

fn private() -> Private {
    Private::new(1, 0x1234, Affinity::from_mpidr(0x8000_00ab_80cd_efac), &HW)
}

fn read(p: &Private, offset: u64) -> u32 {
    p.read(offset, 4, GLOBAL).try_into().unwrap()
}

fn write(p: &mut Private, offset: u64, value: u32) -> Effect {
    p.write(offset, 4, value.into(), GLOBAL)
}

#[test]
fn identification() {
    let mut p = private();
    assert_eq!(p.affinity().bits(), 0xabcd_efac);
    let typer = 0xabcd_efac_0012_3401;
    assert_eq!(p.read(gicr::TYPER, 8, GLOBAL), typer);
    assert_eq!(p.read(gicr::TYPER, 8, NO_ITS), typer & !1);
    p.set_last(true);
    assert_eq!(p.read(gicr::TYPER, 8, GLOBAL), typer | 0x10);
    assert_eq!(read(&p, gicr::TYPER), 0x0012_3411);
    assert_eq!(read(&p, gicr::TYPER + 4), 0xabcd_efac);
    assert_eq!(p.user_read(gicr::TYPER + 4, GLOBAL), Ok(0xabcd_efac));
    p.set_last(false);
    assert_eq!(p.read(gicr::TYPER, 8, GLOBAL), typer);
    assert_eq!(read(&p, gicr::IIDR), 0x4b00_043b);
    assert_eq!(read(&p, gicd::PIDR2), 0x3b);
    for zero in [gicr::WAKER, gicr::SYNCR, gicr::NSACR, gicd::IDREGS, 0xfffc] {
        assert_eq!(write(&mut p, zero, !0), Effect::default());
        assert_eq!(read(&p, zero), 0);
        assert_eq!(p.user_read(zero, GLOBAL), Ok(0));
    }
    for (offset, len) in [
        (gicr::TYPER + 4, 8),
        (gicr::TYPER, 2),
        (gicr::IIDR, 8),
        (gicr::IIDR, 1),
    ] {
        assert_eq!(p.read(offset, len, GLOBAL), 0);
    }
}

#[test]
fn reserved_is_zero() {
    let mut p = private();
    for offset in [
        0x18,
        0x40,
        0x48,
        0x6c,
        0x80,
        0xa8,
        0xc4,
        0x100,
        0x400,
        0xffcc,
        SGI,
        SGI + 0x84,
        SGI + 0x104,
        SGI + 0x420,
        SGI + 0x800,
        SGI + 0xc08,
        SGI + 0xd04,
        SGI + 0xe04,
        SGI + 0x6000,
        SGI + 0xffe8,
        REDIST_SIZE,
        u64::MAX - 3,
    ] {
        assert_eq!(write(&mut p, offset, !0), Effect::default());
        assert_eq!(read(&p, offset), 0, "{offset:#x}");
        assert!(!Private::has_user_reg(offset), "{offset:#x}");
        assert_eq!(p.user_read(offset, GLOBAL), Err(RegError::Unknown));
        assert_eq!(p.user_write(offset, 0, GLOBAL), Err(RegError::Unknown));
    }
    assert_eq!(p.user_read(2, GLOBAL), Err(RegError::Unknown));
    assert!(Private::has_user_reg(SGI + gicd::IGRPMODR));
}

#[test]
fn private_interrupts() {
    let mut p = private();
    // SGIs are enabled, as KVM has them.
    assert_eq!(read(&p, SGI + gicd::ISENABLER), 0xffff);
    assert_eq!(read(&p, SGI + gicd::IGROUPR), !0);
    let _ = write(&mut p, SGI + gicd::IGROUPR, 0xf0f0_f0f0);
    assert_eq!(read(&p, SGI + gicd::IGROUPR), 0xf0f0_f0f0);
    for (set, clear) in [
        (gicd::ISENABLER, gicd::ICENABLER),
        (gicd::ISPENDR, gicd::ICPENDR),
        (gicd::ISACTIVER, gicd::ICACTIVER),
    ] {
        let _ = write(&mut p, SGI + clear, !0);
        let _ = write(&mut p, SGI + set, 0x8000_0180);
        assert_eq!(read(&p, SGI + set), 0x8000_0180);
        let _ = write(&mut p, SGI + clear, 0x0000_0100);
        assert_eq!(read(&p, SGI + clear), 0x8000_0080);
    }
    let _ = write(&mut p, SGI + gicd::IPRIORITYR + 28, 0xff01_0203);
    let _ = p.write(SGI + gicd::IPRIORITYR + 28, 1, 0x77, GLOBAL);
    assert_eq!(read(&p, SGI + gicd::IPRIORITYR + 28), 0xf800_0070);
    // Triggers are fixed.
    for n in [0, 4] {
        let _ = write(&mut p, SGI + gicd::ICFGR + n, 0x5555_5555);
        assert!(p.user_write(SGI + gicd::ICFGR + n, !0, GLOBAL).is_ok());
    }
    assert_eq!(read(&p, SGI + gicd::ICFGR), 0xaaaa_aaaa);
    assert_eq!(read(&p, SGI + gicd::ICFGR + 4), 0);
    for bad in [0, 15, 32, 8192] {
        assert_eq!(p.set_ppi(bad, true), Err(NoSuchInterrupt));
        assert_eq!(p.map_ppi(bad, Some(27)), Err(NoSuchInterrupt));
    }
}

#[test]
fn lpi_tables() {
    let mut p = private();
    for (base, want) in [
        // Address, ID bits; inner cache RaWb, inner shareable, outer as inner
        (gicr::PROPBASER, 0x000f_ffff_ffff_f79f),
        (gicr::PENDBASER, 0x000f_ffff_ffff_0780),
    ] {
        // Inner WaWb, outer shareable, outer WaWb, address
        let value = 0x050f_ffff_ffff_f000 | 5 << 7 | 2 << 10 | 0x7f;
        let want = want & !(0xf80) | 5 << 7 | 1 << 10;
        let _ = p.write(base, 8, value, GLOBAL);
        assert_eq!(p.read(base, 8, GLOBAL), want, "{base:#x}");
        assert_eq!(read(&p, base + 4), (want >> 32) as u32);
        // Inner non-cacheable and device become RaWb; outer non-cacheable stays; halves.
        for inner in [0, 1] {
            let _ = write(&mut p, base, inner << 7 | 3 << 10);
            let _ = write(&mut p, base + 4, 0xf1f0_0001);
            let want = 0x0100_0001_0000_0000 | 3 << 7 | 3 << 10;
            assert_eq!(p.read(base, 8, GLOBAL), want);
        }
    }
    let ptz = 1 << 62;
    let _ = p.write(gicr::PENDBASER, 8, ptz | 0x10000, GLOBAL);
    assert_eq!(p.pendbaser() & ptz, ptz);
    assert_eq!(p.read(gicr::PENDBASER, 8, GLOBAL) & ptz, 0);
    let _ = write(&mut p, gicr::PROPBASER, 0x2000);
    let (prop, pend) = (p.propbaser(), p.pendbaser());
    // They stay while LPIs are enabled.
    let _ = write(&mut p, gicr::CTLR, 1);
    for base in [gicr::PROPBASER, gicr::PENDBASER] {
        let _ = p.write(base, 8, 0x5_5555_0000, GLOBAL);
        assert!(p.user_write(base, 0x5555_0000, GLOBAL).is_ok());
    }
    assert_eq!((p.propbaser(), p.pendbaser()), (prop, pend));
}

#[test]
fn lpi_control() {
    let mut p = private();
    // Without an ITS there are none.
    assert_eq!(p.write(gicr::CTLR, 4, 1, NO_ITS), Effect::default());
    assert_eq!(read(&p, gicr::CTLR), 6);
    let lpi = |effect: Effect| effect.lpi;
    for (offset, value) in [(gicr::INVLPIR, 8192), (gicr::INVALLR, 0)] {
        assert_eq!(lpi(write(&mut p, offset, value)), LpiEffect::None);
    }
    assert_eq!(p.set_lpi_pending(8192, 0, true), Ok(false));
    assert_eq!(lpi(write(&mut p, gicr::CTLR, !0)), LpiEffect::Enabled);
    assert_eq!(read(&p, gicr::CTLR), 7);
    assert!(p.lpis_enabled());
    assert_eq!(lpi(write(&mut p, gicr::CTLR, 1)), LpiEffect::None);
    assert_eq!(
        lpi(p.write(gicr::INVLPIR, 8, 8200, GLOBAL)),
        LpiEffect::Invalidate(8200)
    );
    assert_eq!(lpi(write(&mut p, gicr::INVLPIR + 4, 1)), LpiEffect::None);
    assert_eq!(
        lpi(write(&mut p, gicr::INVALLR, 1)),
        LpiEffect::InvalidateAll
    );
    assert_eq!(lpi(write(&mut p, gicr::INVALLR + 4, 1)), LpiEffect::None);
    assert!(p.set_lpi_slots(LpiSlots::new(1).unwrap()).capacity() == 0);
    assert_eq!(p.set_lpi_pending(8192, 0, true), Ok(true));
    assert_eq!(lpi(write(&mut p, gicr::CTLR, 0)), LpiEffect::Disabled);
    assert_eq!(p.pending_lpis().count(), 0);
    let enabled = p.user_write(gicr::CTLR, 1, GLOBAL).map(lpi);
    assert_eq!(enabled, Ok(LpiEffect::Enabled));
}

#[test]
fn lpi_slots() {
    let mut p = private();
    let _ = write(&mut p, gicr::CTLR, 1);
    assert_eq!(p.set_lpi_pending(8192, 0, true), Err(LpiError::NoRoom));
    for bad in [0, 31, 1023, 8191, 65536] {
        assert_eq!(
            p.set_lpi_pending(bad, 0, true),
            Err(LpiError::NoSuchInterrupt)
        );
    }
    drop(p.set_lpi_slots(LpiSlots::new(3).unwrap()));
    assert_eq!(p.set_lpi_pending(9000, 0, true), Ok(true));
    assert_eq!(p.set_lpi_pending(8192, 0, false), Ok(false));
    assert_eq!(p.set_lpi_pending(65535, 0, true), Ok(true));
    assert_eq!(p.set_lpi_pending(8500, 0, true), Err(LpiError::NoRoom));
    // Again: it is pending once.
    assert_eq!(p.set_lpi_pending(9000, 0, true), Ok(false));
    let pending = |p: &Private| p.pending_lpis().collect::<Vec<_>>();
    assert_eq!(pending(&p), [8192, 9000, 65535]);
    // Too few slots come back; more are taken.
    assert_eq!(p.set_lpi_slots(LpiSlots::new(2).unwrap()).capacity(), 2);
    assert_eq!(p.lpi_capacity(), 3);
    assert_eq!(p.set_lpi_slots(LpiSlots::new(5).unwrap()).capacity(), 3);
    assert_eq!(pending(&p), [8192, 9000, 65535]);
    assert_eq!(p.set_lpi_pending(8500, 0, true), Ok(true));
    assert_eq!(pending(&p), [8192, 8500, 9000, 65535]);
    assert!(!p.clear_lpi(8500));
    assert!(!p.clear_lpi(8501));
    assert_eq!(p.take_lpi(9000), Taken::Pending);
    assert_eq!(p.take_lpi(9000), Taken::Idle);
    assert_eq!(pending(&p), [8192, 65535]);
    // Enabled later
    assert!(p.configure_lpi(8192, 0, true));
    assert!(!p.configure_lpi(8192, 0, false));
    assert!(!p.configure_lpi(9000, 0, true));
    assert_eq!(p.set_lpi_pending(8192, 0, true), Ok(true));
    assert_eq!(LpiSlots::new(1 << 20).unwrap().capacity(), 65536 - 8192);
}

/// The field `instr` of a CPU_SYSREGS attribute.
fn instr(crn: u16, crm: u16, op2: u16) -> u16 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

#[test]
fn sysregs() {
    let mut c = private().cpuif;
    let (pmr, bpr0, bpr1) = (instr(4, 6, 0), instr(12, 8, 3), instr(12, 12, 3));
    let (ctlr, sre) = (instr(12, 12, 4), instr(12, 12, 5));
    let (grp0, grp1) = (instr(12, 12, 6), instr(12, 12, 7));
    // 3, 0, 12, 12, 4 as the uapi has it
    assert_eq!(ctlr, 0xc664);
    let get = |c: &CpuIf, r| c.sysreg(r, &HW);
    assert_eq!(get(&c, ctlr), Ok(4 << 8 | 1 << 15));
    assert_eq!(get(&c, sre), Ok(7));
    for (r, value, reads) in [
        (pmr, 0x1f0, 0xf0),
        (bpr0, 0xf3, 3),
        (bpr1, 0xc, 4),
        (grp0, 3, 1),
        (grp1, 1, 1),
        (ctlr, 4 << 8 | 1 << 15 | 2, 4 << 8 | 1 << 15 | 2),
    ] {
        assert_eq!(c.set_sysreg(r, value, &HW), Ok(()));
        assert_eq!(get(&c, r), Ok(reads));
    }
    // ICH_VMCR_EL2's layout
    assert_eq!(
        c.vmcr,
        Vmcr(0xf0 << 24 | 3 << 21 | 4 << 18 | 1 << 9 | 1 << 3 | 3)
    );
    assert_eq!(c.vmcr.pmr(), 0xf0);
    // The common binary point: group 1 shows one more, and has none of its own to set.
    assert_eq!(c.set_sysreg(ctlr, 4 << 8 | 1 << 15 | 1, &HW), Ok(()));
    assert!(!c.vmcr.eoi_split());
    assert_eq!(get(&c, bpr1), Ok(4));
    assert_eq!(c.set_sysreg(bpr1, 6, &HW), Ok(()));
    assert_eq!(c.set_sysreg(bpr0, 7, &HW), Ok(()));
    assert_eq!(get(&c, bpr1), Ok(7));
    assert_eq!(c.set_sysreg(ctlr, 4 << 8 | 1 << 15, &HW), Ok(()));
    assert_eq!(get(&c, bpr1), Ok(4));
    // What the hardware cannot do
    for bad in [
        5 << 8 | 1 << 15,
        4 << 8,
        4 << 8 | 1 << 14 | 1 << 15,
        1 << 11 | 1 << 15,
    ] {
        assert_eq!(c.set_sysreg(ctlr, bad, &HW), Err(RegError::Invalid));
    }
    assert_eq!(c.set_sysreg(sre, 6, &HW), Err(RegError::Invalid));
    assert_eq!(c.set_sysreg(sre, 1, &HW), Ok(()));
    assert_eq!(c.set_sysreg(grp0, 0, &HW), Ok(()));
    assert_eq!(get(&c, grp0), Ok(0));
    for unknown in [
        0,
        instr(12, 11, 5),
        instr(12, 8, 0),
        instr(12, 12, 2),
        ctlr | 1 << 11,
    ] {
        assert!(!CpuIf::has_sysreg(unknown));
        assert_eq!(get(&c, unknown), Err(RegError::Unknown));
        assert_eq!(c.set_sysreg(unknown, 0, &HW), Err(RegError::Unknown));
    }
}

#[test]
fn active_priorities() {
    for (pri_bits, count) in [(5, 1), (6, 2), (7, 4)] {
        let hw = LrConfig { pri_bits, ..HW };
        let mut c = CpuIf::new(&hw);
        for n in 0..4 {
            for (r, value) in [(instr(12, 8, 4 + n), 0x100), (instr(12, 9, n), 0x8000_0000)] {
                assert!(CpuIf::has_sysreg(r));
                let value = value + u64::from(n);
                if n < count {
                    assert_eq!(c.set_sysreg(r, value, &hw), Ok(()));
                    assert_eq!(c.sysreg(r, &hw), Ok(value));
                } else {
                    assert_eq!(c.set_sysreg(r, value, &hw), Err(RegError::Invalid));
                    assert_eq!(c.sysreg(r, &hw), Err(RegError::Invalid));
                }
            }
        }
        assert_eq!(c.ap0r[0], 0x100);
        assert_eq!(c.ap1r[0], 0x8000_0000);
    }
    // Fewer bits than the hardware's can be restored; then there are fewer registers.
    let hw = LrConfig { pri_bits: 7, ..HW };
    let mut c = CpuIf::new(&hw);
    assert_eq!(
        c.set_sysreg(instr(12, 12, 4), 4 << 8 | 1 << 15, &hw),
        Ok(())
    );
    assert_eq!(c.sysreg(instr(12, 9, 1), &hw), Err(RegError::Invalid));
}

#[test]
fn capabilities() {
    let hw = LrConfig::from_vtr(4 << 29 | 4 << 26 | 1 << 23 | 1 << 21 | 1 << 19 | 3);
    let want = LrConfig {
        count: 4,
        pri_bits: 5,
        id_bits: 1,
        seis: false,
        a3v: true,
        tds: true,
    };
    assert_eq!(hw, want);
    assert_eq!(LrConfig::from_vtr(0x1f | 7 << 29).count, 16);
    assert!(LrConfig::from_vtr(1 << 22).seis);
}

#[test]
fn sgi_targets() {
    // RS 2, Aff3 0x11, Aff2 0x22, SGI 5, Aff1 0x33, Aff0 32 + {0, 3, 15}
    let value = 0x0011_2022_0533_8009;
    let s = decode_sgi(SgiReg::Sgi1r, value);
    assert_eq!((s.intid, s.group1), (5, true));
    let list: Vec<_> = s.list().map(Affinity::bits).collect();
    assert_eq!(list, [0x1122_3320, 0x1122_3323, 0x1122_332f]);
    for a in list {
        for sender in [false, true] {
            assert!(s.is_for(Affinity::from_bits(a), sender));
        }
        for other in [a ^ 0x4, a ^ 0x10, a ^ 0x100, a ^ 0x1_0000, a ^ 0x100_0000] {
            assert!(!s.is_for(Affinity::from_bits(other), false));
        }
    }
    // The routing mode: the list does not matter.
    let s = decode_sgi(SgiReg::Sgi0r, value | 1 << 40);
    assert_eq!(s.targets, SgiTargets::Others);
    assert!(!s.group1);
    assert_eq!(s.list().count(), 0);
    assert!(s.is_for(Affinity::from_bits(99), false));
    assert!(!s.is_for(Affinity::from_bits(0x1122_3320), true));
    assert!(!decode_sgi(SgiReg::Asgi1r, 0).group1);
    assert_eq!(decode_sgi(SgiReg::Sgi1r, 0xf << 24).intid, 15);
}

#[test]
fn sgi_groups() {
    let mut p = private();
    let one = decode_sgi(SgiReg::Sgi1r, 3 << 24);
    let zero = decode_sgi(SgiReg::Sgi0r, 3 << 24);
    // Configured as group 1
    assert!(!p.set_sgi(&zero));
    assert_eq!(read(&p, SGI + gicd::ISPENDR), 0);
    assert!(p.set_sgi(&one));
    assert!(!p.set_sgi(&one));
    assert_eq!(read(&p, SGI + gicd::ISPENDR), 8);
    // As group 0
    let _ = write(&mut p, SGI + gicd::ICPENDR, 8);
    let _ = write(&mut p, SGI + gicd::IGROUPR, !8);
    assert!(p.set_sgi(&zero));
    let _ = write(&mut p, SGI + gicd::ICPENDR, 8);
    assert!(p.set_sgi(&one));
    // Disabled, it is pending, but nobody needs to know.
    let _ = write(&mut p, SGI + gicd::ICENABLER, 8);
    let _ = write(&mut p, SGI + gicd::ICPENDR, 8);
    assert!(!p.set_sgi(&one));
    assert!(write(&mut p, SGI + gicd::ISENABLER, 8).ring);
}

/// All state goes through user space and comes back.
#[test]
fn save_and_restore() {
    const SYSREGS: [(u16, u16, u16); 6] = [
        (4, 6, 0),
        (12, 8, 3),
        (12, 8, 4),
        (12, 9, 0),
        (12, 12, 4),
        (12, 12, 7),
    ];
    let offsets: Vec<u64> = [
        gicr::CTLR,
        gicr::STATUSR,
        gicr::PROPBASER,
        gicr::PROPBASER + 4,
    ]
    .into_iter()
    .chain([gicr::PENDBASER, gicr::PENDBASER + 4])
    .chain(
        [
            gicd::IGROUPR,
            gicd::ISENABLER,
            gicd::ISPENDR,
            gicd::ISACTIVER,
        ]
        .map(|o| SGI + o),
    )
    .chain((0..8).map(|n| SGI + gicd::IPRIORITYR + 4 * n))
    .collect();
    let save = |p: &Private| -> Vec<u32> {
        let regs = offsets.iter().map(|&o| p.user_read(o, GLOBAL).unwrap());
        let cpu = SYSREGS.map(|(n, m, o)| p.cpuif.sysreg(instr(n, m, o), &HW).unwrap() as u32);
        regs.chain(cpu).chain([p.level_info()]).collect()
    };
    let mut a = private();
    let _ = a.write(gicr::PROPBASER, 8, 0x4_5678_900f, GLOBAL);
    let _ = a.write(gicr::PENDBASER, 8, 0x5_6789_0000, GLOBAL);
    let _ = a.user_write(gicr::STATUSR, 5, GLOBAL);
    for (o, v) in [
        (gicr::CTLR, 1),
        (SGI + gicd::IGROUPR, 0xffff_00f0),
        (SGI + gicd::ICENABLER, 0x6),
        (SGI + gicd::ISENABLER, 0x4810_0000),
        (SGI + gicd::ISPENDR, 0x0010_8001),
        (SGI + gicd::ISACTIVER, 0x0800_0200),
        (SGI + gicd::IPRIORITYR + 12, 0x80a0_c0e0),
    ] {
        let _ = write(&mut a, o, v);
    }
    a.set_level_info(0x4800_0000);
    a.cpuif.vmcr = Vmcr(0xf020_020a);
    a.cpuif.ap1r[0] = 0x1000;
    let mut b = private();
    let saved = save(&a);
    let _ = b.user_write(SGI + gicd::ICENABLER, !0, GLOBAL);
    for (&o, &v) in offsets.iter().zip(&saved).skip(1) {
        assert!(b.user_write(o, v, GLOBAL).is_ok());
    }
    let ctlr = b.user_write(gicr::CTLR, saved[0] & 1, GLOBAL).unwrap();
    assert_eq!(ctlr.lpi, LpiEffect::Enabled);
    for (n, &(crn, crm, op2)) in SYSREGS.iter().enumerate() {
        let value = saved[offsets.len() + n].into();
        assert_eq!(b.cpuif.set_sysreg(instr(crn, crm, op2), value, &HW), Ok(()));
    }
    b.set_level_info(*saved.last().unwrap());
    assert_eq!(save(&b), saved);
    assert_eq!(b.cpuif, a.cpuif);
    // A reset leaves only the lines.
    b.reset(&HW);
    let mut fresh = private();
    fresh.set_level_info(0x4800_0000);
    assert_eq!(save(&b), save(&fresh));
}
