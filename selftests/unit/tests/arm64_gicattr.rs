// SPDX-License-Identifier: GPL-2.0

//! The table of the GIC's attributes.

use rkvm_unit::arch::arm64::model::gicattr::{find, Device, Kind, Value, When, TABLE};

#[test]
fn each_row_is_found_by_itself() {
    for row in TABLE {
        assert_eq!(
            find(row.device, row.group, row.attr.unwrap_or(0)),
            Some(row)
        );
        // Actions are told apart by their number alone.
        assert_eq!(row.value == Value::Action, row.group == 4);
        assert_eq!(row.attr.is_some(), row.group == 4);
    }
}

#[test]
fn what_is_not_there() {
    for (device, group, attr) in [
        (Device::Gic, 2, 0),
        (Device::Gic, 4, 1),
        (Device::Gic, 4, 4),
        (Device::Gic, 8, 0),
        (Device::Its, 4, 3),
        (Device::Its, 1, 0),
        (Device::Its, 3, 0),
        (Device::Its, u32::MAX, u64::MAX),
    ] {
        assert_eq!(find(device, group, attr), None, "{device:?} {group} {attr}");
    }
}

#[test]
fn state_of_the_guest_is_had_only_while_it_stops() {
    for row in TABLE {
        let before = matches!(row.kind, Kind::Interrupts | Kind::Address | Kind::Init);
        assert_eq!(row.when == When::Any, before, "{row:?}");
    }
}
