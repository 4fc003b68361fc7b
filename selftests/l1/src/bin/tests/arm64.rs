// SPDX-License-Identifier: GPL-2.0

//! arm64's tests.

mod gic;
mod guest;
mod ioctls;
mod memory;
mod pmu;
mod races;
mod registers;
mod smp;

/// All, by area.
pub const AREAS: &[(&str, &[crate::harness::Test])] = &[
    ("ioctls", ioctls::TESTS),
    ("registers", registers::TESTS),
    ("gic", gic::TESTS),
    ("guest", guest::TESTS),
    ("pmu", pmu::TESTS),
    ("smp", smp::TESTS),
    ("memory", memory::TESTS),
    ("races", races::TESTS),
];
