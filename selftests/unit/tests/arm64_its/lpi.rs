// SPDX-License-Identifier: GPL-2.0

//! The tables of LPIs.

use super::machine::*;
use rkvm_unit::arch::arm64::model::its::*;

#[test]
fn configuration_table() {
    let ram = Ram::new();
    // Attributes, and 14 bits of INTID
    let t = ConfigTable::new(CONFIG | 7 << 7 | 1 << 10 | 7 << 56 | 13);
    for (intid, there) in [
        (0, false),
        (8191, false),
        (8192, true),
        (16383, true),
        (16384, false),
        (u32::MAX, false),
    ] {
        assert_eq!(t.contains(intid), there, "{intid}");
    }
    ram.write(CONFIG, &[0xff]).unwrap();
    ram.write(CONFIG + 5, &[0xa2]).unwrap();
    let c = |priority, enabled| Ok(LpiConfig { priority, enabled });
    assert_eq!(t.read(&ram, 8192), c(0xfc, true));
    assert_eq!(t.read(&ram, 8197), c(0xa0, false));
    assert_eq!(t.read(&ram, 8191), Err(Fault));
    assert_eq!(t.address(8192), Ok(CONFIG));
    // Never more than 16 bits, and with too few there are no LPIs.
    assert!(ConfigTable::new(31).contains(65535));
    assert!(!ConfigTable::new(31).contains(65536));
    assert!(ConfigTable::new(15).contains(65535));
    assert!(!ConfigTable::new(12).contains(8192));
    assert!(ConfigTable::new(13).contains(8192));
    let high = ConfigTable::new(u64::MAX);
    assert_eq!(high.address(65535), Ok(0x000f_ffff_ffff_f000 + 57343));
    assert_eq!(high.read(&ram, 8192), Err(Fault));
}

#[test]
fn pending_table() {
    let ram = Ram::new();
    // PTZ, attributes
    let t = PendingTable::new(PENDING | 1 << 62 | 7 << 7 | 1 << 10);
    assert_eq!(t.address(8192), Ok((PENDING + 1024, 1)));
    assert_eq!(t.address(65535), Ok((PENDING + 8191, 0x80)));
    ram.write(PENDING + 1024, &[0b1010_0101]).unwrap();
    assert_eq!(t.is_pending(&ram, 8192), Ok(true));
    assert_eq!(t.is_pending(&ram, 8193), Ok(false));
    t.set(&ram, 8193, true).unwrap();
    t.set(&ram, 8192, false).unwrap();
    assert_eq!(ram.u64(PENDING + 1024), 0b1010_0110);
    // What does not change is not written.
    ram.read_only.borrow_mut().push(PENDING..PENDING + 0x1_0000);
    assert_eq!(t.set(&ram, 8193, true), Ok(()));
    assert_eq!(t.set(&ram, 8193, false), Err(Fault));
    assert_eq!(
        PendingTable::new(NOWHERE).is_pending(&ram, 8192),
        Err(Fault)
    );
}
