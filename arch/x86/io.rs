// SPDX-License-Identifier: GPL-2.0

//! Accesses that user space takes part in: what was asked, what was answered, what is still to be
//! told.
//!
//! An instruction that needs a device's answer is stopped with nothing committed; when the answer is
//! there, the same bytes are run again and find it. Writes are posted: the instruction is done, and
//! user space is told before the guest goes on.

use crate::{
    abi::exit::{reason, Common, WriteRun, DATA},
    bindings as rb,
    host::run_page::SharedPage,
};
use kernel::page::PAGE_SIZE;

/// Bytes of the page behind `kvm_run` that carries port data.
pub(crate) const PIO_BYTES: u32 = PAGE_SIZE as u32;

/// Pieces of one access to a device: a 32-byte register that straddles two pages makes six.
const PIECES: usize = 8;

/// One piece of an access to a device's memory, at most 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Guest-physical address.
    pub(crate) gpa: u64,
    /// Bytes, 1 to 8.
    pub(crate) len: u8,
    /// In memory order.
    pub(crate) data: [u8; 8],
}

/// What user space was asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing, or only told something.
    #[default]
    Nothing,
    /// To read a device's memory; the instruction is run again with the answer.
    Mmio(Piece),
    /// To read a port for a plain IN: then RAX gets it and RIP moves to `next_rip`.
    In {
        /// 1, 2 or 4.
        size: u8,
        /// Where the guest goes on.
        next_rip: u64,
    },
    /// To read a port for INS; the instruction is run again with the answers.
    Ins {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// How many items.
        count: u32,
    },
    /// To read an MSR for the guest.
    Rdmsr {
        /// Bytes of the instruction.
        len: u8,
    },
    /// To write an MSR for the guest.
    Wrmsr {
        /// Bytes of the instruction.
        len: u8,
    },
}

/// The accesses of one vCPU that are under way.
#[derive(Default)]
pub(crate) struct Pending {
    /// What user space was asked for and has not answered yet.
    pub(crate) asked: Asked,
    /// An instruction waits for answers: the one in the vCPU's `code`.
    pub(crate) waits: bool,
    answers: [Piece; PIECES],
    answered: usize,
    /// How many of the answers this run of the instruction has used.
    used: usize,
    posted: [Piece; PIECES],
    posted_len: usize,
    /// How many of the posted pieces are of instructions, or iterations, that are committed.
    sure: usize,
    told: usize,
    /// Items of INS that user space has delivered: (port, size, count, used, used by this run).
    ins: Option<Items>,
    /// Items of OUT and OUTS for user space, in the port page.
    outs: Option<Items>,
}

/// A run of port items of the same size.
#[derive(Clone, Copy, Debug)]
struct Items {
    port: u16,
    size: u8,
    count: u32,
    used: u32,
    tentative: u32,
}

/// No more pieces fit: the access is larger than any instruction makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooMany;

impl Pending {
    /// A run of an instruction begins: answers are used from the first on.
    pub(crate) fn begin(&mut self) {
        self.used = 0;
        if let Some(i) = &mut self.ins {
            i.tentative = i.used;
        }
    }

    /// An instruction, or an iteration of one, is committed: its answers are used up.
    pub(crate) fn commit(&mut self) {
        self.answered = 0;
        self.used = 0;
        self.sure = self.posted_len;
        if let Some(i) = &mut self.ins {
            i.used = i.tentative;
            if i.used >= i.count {
                self.ins = None;
            }
        }
    }

    /// Forgets everything that waits for an answer (a fault, or user space changed RIP), but for items
    /// that a device has given already: INS goes on with them if the guest comes back to it.
    pub(crate) fn abandon(&mut self) {
        self.asked = Asked::Nothing;
        self.waits = false;
        self.answered = 0;
        self.used = 0;
    }

    /// An instruction has stopped: what it posted since the last commit it will post again.
    pub(crate) fn undo(&mut self) {
        self.posted_len = self.sure;
    }

    /// How many pieces can be posted yet.
    pub(crate) fn room(&self) -> usize {
        PIECES - self.posted_len
    }

    /// Items of INS wait to be stored.
    pub(crate) fn has_items(&self) -> bool {
        self.ins.is_some_and(|i| i.tentative < i.count)
    }

    /// The answer to the next read of this run, if it is there.
    pub(crate) fn answer(&mut self, gpa: u64, len: u8) -> Option<[u8; 8]> {
        let a = self.answers.get(..self.answered)?.get(self.used)?;
        if a.gpa != gpa || a.len != len {
            // The guest changed what it runs; ask again.
            self.answered = self.used;
            return None;
        }
        self.used += 1;
        Some(a.data)
    }

    /// Takes an answer of user space.
    fn add_answer(&mut self, p: Piece) {
        if let Some(slot) = self.answers.get_mut(self.answered) {
            *slot = p;
            self.answered += 1;
        }
    }

    /// Posts a write to a device's memory.
    pub(crate) fn post(&mut self, p: Piece) -> Result<(), TooMany> {
        *self.posted.get_mut(self.posted_len).ok_or(TooMany)? = p;
        self.posted_len += 1;
        Ok(())
    }

    /// Something is posted that user space was not told yet.
    pub(crate) fn has_posts(&self) -> bool {
        self.told < self.posted_len || self.outs.is_some()
    }

    /// Memory pieces wait, or the port page is full: user space has to be told before more is done.
    pub(crate) fn must_tell(&self) -> bool {
        self.told < self.posted_len
            || self
                .outs
                .is_some_and(|i| (i.count + 1) * u32::from(i.size) > PIO_BYTES)
    }

    /// The next item of INS that user space delivered; read from the port page.
    pub(crate) fn next_in(&mut self, page: &SharedPage, port: u16, size: u8) -> Option<u32> {
        let i = self.ins.as_mut()?;
        if i.port != port || i.size != size || i.tentative >= i.count {
            return None;
        }
        let at = i.tentative as usize * usize::from(size);
        i.tentative += 1;
        Some(read_item(page, at, size))
    }

    /// Adds an item of OUT or OUTS; false when the page is full or holds another port's.
    pub(crate) fn post_out(&mut self, page: &SharedPage, port: u16, size: u8, value: u32) -> bool {
        let i = self.outs.get_or_insert(Items {
            port,
            size,
            count: 0,
            used: 0,
            tentative: 0,
        });
        if i.port != port || i.size != size || (i.count + 1) * u32::from(size) > PIO_BYTES {
            return false;
        }
        let at = i.count as usize * usize::from(size);
        let bytes = value.to_le_bytes();
        if let Some(b) = bytes.get(..usize::from(size)) {
            page.write_bytes(at, b);
        }
        i.count += 1;
        true
    }

    /// An instruction waits for user space's answer, or user space has still to be told of a write.
    pub(crate) fn is_waiting(&self) -> bool {
        self.asked != Asked::Nothing || self.has_posts()
    }

    /// What to tell user space next.
    pub(crate) fn tell(&mut self) -> Option<UserExit> {
        if let Some(p) = self.posted.get(..self.posted_len)?.get(self.told) {
            self.told += 1;
            let p = *p;
            if self.told == self.posted_len {
                self.told = 0;
                self.posted_len = 0;
                self.sure = 0;
            }
            return Some(UserExit::Common(Common::Mmio {
                gpa: p.gpa,
                len: p.len,
                write: true,
                data: p.data,
            }));
        }
        let i = self.outs.take()?;
        Some(UserExit::Io {
            input: false,
            size: i.size,
            port: i.port,
            count: i.count,
        })
    }

    /// Takes what user space wrote to the run page since the last exit. What the last exit asked
    /// for is returned.
    pub(crate) fn take_answer(&mut self, run: &SharedPage, port_page: &SharedPage) -> Answer {
        match core::mem::take(&mut self.asked) {
            Asked::Nothing => Answer::Nothing,
            Asked::Mmio(mut p) => {
                run.read_bytes(DATA + 8, &mut p.data);
                self.add_answer(p);
                Answer::RunAgain
            }
            Asked::Ins { port, size, count } => {
                self.ins = Some(Items {
                    port,
                    size,
                    count,
                    used: 0,
                    tentative: 0,
                });
                Answer::RunAgain
            }
            Asked::In { size, next_rip } => Answer::In {
                value: read_item(port_page, 0, size),
                size,
                next_rip,
            },
            Asked::Rdmsr { len } => {
                let error = run.read::<u8>(DATA) != 0;
                Answer::Rdmsr {
                    value: (!error).then(|| run.read::<u64>(DATA + 16)),
                    len,
                }
            }
            Asked::Wrmsr { len } => Answer::Wrmsr {
                ok: run.read::<u8>(DATA) == 0,
                len,
            },
        }
    }
}

fn read_item(page: &SharedPage, at: usize, size: u8) -> u32 {
    let mut b = [0; 4];
    if let Some(b) = b.get_mut(..usize::from(size)) {
        page.read_bytes(at, b);
    }
    u32::from_le_bytes(b)
}

/// What user space answered.
pub(crate) enum Answer {
    /// Nothing was asked.
    Nothing,
    /// Run the instruction again.
    RunAgain,
    /// A plain IN.
    In {
        /// What was read.
        value: u32,
        /// 1, 2 or 4.
        size: u8,
        /// Where the guest goes on.
        next_rip: u64,
    },
    /// RDMSR; `None`: #GP.
    Rdmsr {
        /// The value.
        value: Option<u64>,
        /// Bytes of the instruction.
        len: u8,
    },
    /// WRMSR; not ok: #GP.
    Wrmsr {
        /// No #GP.
        ok: bool,
        /// Bytes of the instruction.
        len: u8,
    },
}

/// A reason to return to user space.
#[derive(Clone, Copy)]
pub(crate) enum UserExit {
    /// One that every family has.
    Common(Common),
    /// Port input or output; data is in the page behind `kvm_run`.
    Io {
        /// IN
        input: bool,
        /// Bytes of an item: 1, 2 or 4.
        size: u8,
        /// The port.
        port: u16,
        /// Items.
        count: u32,
    },
    /// The guest can take the interrupt that user space holds.
    IrqWindow,
    /// A level-triggered interrupt of user space's I/O APIC ended.
    IoapicEoi {
        /// Its vector.
        vector: u8,
    },
    /// An MSR access that user space wanted to see.
    Msr {
        /// WRMSR
        write: bool,
        /// `KVM_MSR_EXIT_REASON_*`
        reason: u32,
        /// Which MSR.
        index: u32,
        /// The value to write.
        data: u64,
    },
    /// An instruction could not be emulated.
    EmulationFailure {
        /// Its bytes.
        bytes: [u8; 15],
        /// How many are known.
        len: u8,
    },
}

impl WriteRun for UserExit {
    fn write(&self, run: &SharedPage) {
        match *self {
            UserExit::Common(c) => c.write(run),
            UserExit::Io {
                input,
                size,
                port,
                count,
            } => {
                let direction = if input {
                    rb::KVM_EXIT_IO_IN
                } else {
                    rb::KVM_EXIT_IO_OUT
                };
                reason(run, rb::KVM_EXIT_IO);
                run.write(DATA, direction as u8);
                run.write(DATA + 1, size);
                run.write(DATA + 2, port);
                run.write(DATA + 4, count);
                run.write(DATA + 8, PAGE_SIZE as u64);
            }
            UserExit::IrqWindow => reason(run, rb::KVM_EXIT_IRQ_WINDOW_OPEN),
            UserExit::IoapicEoi { vector } => {
                reason(run, rb::KVM_EXIT_IOAPIC_EOI);
                run.write(DATA, vector);
            }
            UserExit::Msr {
                write,
                reason: why,
                index,
                data,
            } => {
                let code = if write {
                    rb::KVM_EXIT_X86_WRMSR
                } else {
                    rb::KVM_EXIT_X86_RDMSR
                };
                reason(run, code);
                run.write(DATA, 0u64);
                run.write(DATA + 8, why);
                run.write(DATA + 12, index);
                run.write(DATA + 16, data);
            }
            UserExit::EmulationFailure { bytes, len } => {
                reason(run, rb::KVM_EXIT_INTERNAL_ERROR);
                run.write(DATA, rb::KVM_INTERNAL_ERROR_EMULATION);
                // flags, and two words of bytes with their count in front.
                run.write(DATA + 4, 3u32);
                run.write(
                    DATA + 8,
                    u64::from(rb::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
                );
                run.write(DATA + 16, len);
                run.write_bytes(DATA + 17, &bytes);
            }
        }
    }
}
