// SPDX-License-Identifier: GPL-2.0

use crate::harness::tests;

tests![];
