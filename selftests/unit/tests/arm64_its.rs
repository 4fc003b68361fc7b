// SPDX-License-Identifier: GPL-2.0

//! The interrupt translation service.

#[path = "arm64_its/commands.rs"]
mod commands;
#[path = "arm64_its/hostile.rs"]
mod hostile;
#[path = "arm64_its/lpi.rs"]
mod lpi;
#[path = "arm64_its/machine.rs"]
mod machine;
#[path = "arm64_its/queue.rs"]
mod queue;
#[path = "arm64_its/random.rs"]
mod random;
#[path = "arm64_its/registers.rs"]
mod registers;
#[path = "arm64_its/tables.rs"]
mod tables;
