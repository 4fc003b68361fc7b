// SPDX-License-Identifier: GPL-2.0

//! x86's tests.

mod code;
mod debug;
mod delivery;
mod dirty;
mod entry;
mod events;
mod ioctls;
mod ioeventfd;
mod lapic;
mod memory;
mod msi;
mod msrs;
mod pv_eoi;
mod races;
mod refusals;
mod roundtrip;
mod smp;
mod task;
mod time;
mod tsc;

/// All, by area.
pub const AREAS: &[(&str, &[crate::harness::Test])] = &[
    ("ioctls", ioctls::TESTS),
    ("refusals", refusals::TESTS),
    ("roundtrip", roundtrip::TESTS),
    ("code", code::TESTS),
    ("entry", entry::TESTS),
    ("task", task::TESTS),
    ("events", events::TESTS),
    ("debug", debug::TESTS),
    ("msrs", msrs::TESTS),
    ("lapic", lapic::TESTS),
    ("delivery", delivery::TESTS),
    ("pv_eoi", pv_eoi::TESTS),
    ("smp", smp::TESTS),
    ("msi", msi::TESTS),
    ("ioeventfd", ioeventfd::TESTS),
    ("memory", memory::TESTS),
    ("dirty", dirty::TESTS),
    ("races", races::TESTS),
    ("time", time::TESTS),
    ("tsc", tsc::TESTS),
];
