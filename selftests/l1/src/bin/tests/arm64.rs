// SPDX-License-Identifier: GPL-2.0

//! arm64's tests.

mod aarch32;
mod aarch32_traps;
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
    ("aarch32", aarch32::TESTS),
    ("aarch32_traps", aarch32_traps::TESTS),
    ("pmu", pmu::TESTS),
    ("smp", smp::TESTS),
    ("memory", memory::TESTS),
    ("races", races::TESTS),
];
