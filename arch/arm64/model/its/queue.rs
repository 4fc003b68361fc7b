// SPDX-License-Identifier: GPL-2.0

//! The command queue (5.2, 5.3): a ring in guest memory.

use super::{
    command::{Command, Refusal},
    regs::COMMAND_SIZE,
    Its, Lpis, Memory,
};
use crate::host::grow_vec::NoMemory;

/// So much work is done in one call of [`Its::process`], give or take a command. A unit is about
/// what an event costs that is looked at: all in all about a millisecond.
pub const WORK_PER_CALL: u32 = 1 << 14;
/// What a command costs besides the events that it looks at.
const COMMAND_WORK: u32 = 16;

/// Whether [`super::Its::process`] is to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for its commands"]
pub enum Progress {
    /// No: the queue is empty, stalled, or off.
    Idle,
    /// Yes: let others have the lock, and call again.
    More,
}

/// A command that was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its offset in the queue
    pub offset: u32,
    /// Its first byte, that says which one it is; 0 if it could not be read
    pub code: u8,
    /// Why; it begins with the name of the error, where the architecture has one.
    pub reason: &'static str,
}

impl Its {
    /// Carries out commands, in the order in which they are queued.
    ///
    /// One that is not valid is skipped, and reported to [`Lpis::refused`]. If the queue cannot be
    /// read it stalls (12.19), until the guest says to retry: what there is behind cannot be known
    /// to be commands. If memory lacks, the command stays in the queue, and may be tried again.
    pub fn process(
        &mut self,
        mem: &impl Memory,
        lpis: &mut impl Lpis,
    ) -> Result<Progress, NoMemory> {
        let mut work = 0_u32;
        while self.has_work() {
            if work >= WORK_PER_CALL {
                return Ok(Progress::More);
            }
            let mut words = [[0_u8; 8]; 4];
            let gpa = self.cbaser.address().saturating_add(self.creadr.into());
            if mem.read(gpa, words.as_flattened_mut()).is_err() {
                self.stalled = true;
                lpis.refused(Refused {
                    offset: self.creadr,
                    code: 0,
                    reason: "the command queue is not in memory",
                });
                break;
            }
            let words = words.map(u64::from_le_bytes);
            work = work.saturating_add(COMMAND_WORK);
            let done = match Command::decode(words) {
                Some(command) => self.execute(mem, lpis, command, &mut work),
                None => Err(Refusal::Invalid("no such command")),
            };
            match done {
                Ok(()) => {}
                Err(Refusal::Invalid(reason)) => {
                    let [first, ..] = words;
                    let [code, ..] = first.to_le_bytes();
                    lpis.refused(Refused {
                        offset: self.creadr,
                        code,
                        reason,
                    });
                }
                Err(Refusal::NoMemory) => return Err(NoMemory),
            }
            let next = self.creadr.saturating_add(COMMAND_SIZE);
            self.creadr = if next < self.cbaser.size() { next } else { 0 };
        }
        Ok(Progress::Idle)
    }
}
