// SPDX-License-Identifier: GPL-2.0

//! Where the frames of a GICv3 may be.

use rkvm_unit::arch::arm64::model::vgic::frames::{
    check, find, is_last, ready, redistributors, runs, span, FrameError, NotReady, Region,
};
use FrameError::{Exists, Invalid, TooBig};

const LIMIT: u64 = 1 << 40;
const RD: u64 = 0x2_0000;

fn attr(count: u64, base: u64, flags: u64, index: u64) -> u64 {
    count << 52 | base | flags << 12 | index
}

fn add(regions: &mut Vec<Region>, count: u64, base: u64) {
    let index = regions.len() as u64;
    let r = Region::indexed(attr(count, base, 0, index), regions, None, LIMIT).unwrap();
    regions.push(r);
}

#[test]
fn a_frame_is_aligned_and_within_memory() {
    assert_eq!(check(0, 0x1_0000, LIMIT), Ok(()));
    assert_eq!(check(0x1000, 0x1_0000, LIMIT), Err(Invalid));
    assert_eq!(check(LIMIT - 0x1_0000, 0x1_0000, LIMIT), Ok(()));
    assert_eq!(check(LIMIT - 0x1_0000, RD, LIMIT), Err(TooBig));
    assert_eq!(check(!0xffff, RD, u64::MAX), Err(TooBig));
}

#[test]
fn one_region_for_all() {
    let r = Region::single(0, &[], 4, LIMIT).unwrap();
    assert_eq!(Region::single(0x10_0000, &[r], 4, LIMIT), Err(Exists));
    let mixed = Region::indexed(attr(1, 0x10_0000, 0, 1), &[r], None, LIMIT);
    assert_eq!(mixed, Err(Invalid));
    // So much as there are vCPUs; room for one at least.
    assert!(Region::single(LIMIT - 3 * RD, &[], 3, LIMIT).is_ok());
    assert_eq!(Region::single(LIMIT - 3 * RD, &[], 4, LIMIT), Err(TooBig));
    assert_eq!(Region::single(LIMIT - RD / 2, &[], 0, LIMIT), Err(TooBig));
    // vCPUs that come later may have no room, or the distributor in it.
    let at_end = Region::single(LIMIT - 3 * RD, &[], 1, LIMIT).unwrap();
    assert_eq!(
        ready(&[at_end], 4, Some(0), LIMIT),
        Err(NotReady::Misplaced)
    );
    assert_eq!(
        ready(&[r], 4, Some(3 * RD), LIMIT),
        Err(NotReady::Misplaced)
    );
    assert_eq!(ready(&[r], 3, Some(3 * RD), LIMIT), Ok(()));
    assert_eq!(ready(&[r], 3, None, LIMIT), Err(NotReady::Missing));
}

#[test]
fn regions_come_in_order_and_apart() {
    let new = |a, others: &[Region]| Region::indexed(a, others, Some(0x26_0000), LIMIT);
    assert_eq!(new(attr(2, 0x20_0000, 1, 0), &[]), Err(Invalid));
    assert_eq!(new(attr(0, 0x20_0000, 0, 0), &[]), Err(Invalid));
    assert_eq!(new(attr(2, 0x20_0000, 0, 1), &[]), Err(Invalid));
    let first = new(attr(2, 0x20_0000, 0, 0), &[]).unwrap();
    assert_eq!(first.attr(0), attr(2, 0x20_0000, 0, 0));
    let regions = [first];
    assert_eq!(new(attr(1, 0x24_0000, 0, 0), &regions), Err(Invalid));
    assert_eq!(new(attr(1, 0x24_0000, 0, 2), &regions), Err(Invalid));
    // Overlaps the first, from above and from below; the distributor; nothing.
    assert_eq!(new(attr(1, 0x23_0000, 0, 1), &regions), Err(Invalid));
    assert_eq!(new(attr(10, 0x10_0000, 0, 1), &regions), Err(Invalid));
    assert_eq!(new(attr(1, 0x25_0000, 0, 1), &regions), Err(Invalid));
    assert!(new(attr(8, 0x10_0000, 0, 1), &regions).is_ok());
    assert!(new(attr(1, 0x24_0000, 0, 1), &regions).is_ok());
    assert_eq!(new(attr(1, LIMIT, 0, 1), &regions), Err(TooBig));
    assert_eq!(new(attr(2, LIMIT - 0x3_0000, 0, 1), &regions), Err(TooBig));
    assert_eq!(Region::single(0x40_0000, &regions, 1, LIMIT), Err(Invalid));
}

#[test]
fn vcpus_fill_regions_in_order() {
    let mut regions = Vec::new();
    add(&mut regions, 2, 0x10_0000);
    add(&mut regions, 2, 0x24_0000);
    add(&mut regions, 2, 0x20_0000);
    let all: Vec<u64> = redistributors(&regions, 6).collect();
    assert_eq!(
        all,
        [0x10_0000, 0x12_0000, 0x24_0000, 0x26_0000, 0x20_0000, 0x22_0000]
    );
    let last: Vec<bool> = all
        .iter()
        .map(|b| is_last(*b, all.iter().copied()))
        .collect();
    // The third region ends where the second begins.
    assert_eq!(last, [false, true, false, true, false, false]);
    assert_eq!(redistributors(&regions, 3).count(), 3);
    assert_eq!(redistributors(&regions, 9).count(), 6);
    assert_eq!(ready(&regions, 6, Some(0), LIMIT), Ok(()));
    assert_eq!(ready(&regions, 7, Some(0), LIMIT), Err(NotReady::Missing));
}

#[test]
fn an_address_leads_to_its_vcpu() {
    let mut regions = vec![];
    add(&mut regions, 2, 0xa00_0000);
    add(&mut regions, 3, 0x810_0000);
    add(&mut regions, 1, 0x900_0000);
    for vcpus in [0, 1, 2, 4, 6] {
        let mut sorted: Vec<_> = runs(&regions, vcpus).collect();
        sorted.sort();
        // As the list of all says.
        let all: Vec<u64> = redistributors(&regions, vcpus).collect();
        for base in [0x810_0000u64, 0x900_0000, 0xa00_0000] {
            for n in 0..4 {
                for offset in [0, 8, RD - 1] {
                    let frame = base + n * RD;
                    let at = all.iter().position(|b| *b == frame);
                    let told = find(&sorted, frame + offset);
                    assert!(told.is_none() || span(&sorted).contains(&(frame + offset)));
                    assert_eq!(told, at.map(|i| (i as u32, offset)), "{vcpus} {frame:#x}");
                }
            }
        }
        for gpa in [0, 0x80f_ffff, u64::MAX] {
            assert_eq!(find(&sorted, gpa), None);
        }
    }
    let all = [Region::single(0x80a_0000, &[], 3, LIMIT).unwrap()];
    let sorted: Vec<_> = runs(&all, 3).collect();
    assert_eq!(find(&sorted, 0x80a_0000 + 2 * RD + 4), Some((2, 4)));
    assert_eq!(find(&sorted, 0x80a_0000 + 3 * RD), None);
}
