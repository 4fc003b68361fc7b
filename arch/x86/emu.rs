// SPDX-License-Identifier: GPL-2.0

//! The emulator's shell: fetches and decodes, runs the pure emulator on a [`Machine`], and does what it
//! says in the end.

mod machine;
mod system;
pub(crate) mod task;

pub(crate) use self::machine::Operand;
use self::{
    machine::{copy, Machine},
    system::system,
};
use super::{
    backend::{Backend, HwVcpu},
    handle,
    io::{Asked, UserExit},
    mem::{Miss, Phys},
    model::{
        cpuid,
        decode::{decode, DecodeError, Insn, Mode, Vendor, Width},
        emulate::{emulate, Outcome, Regs, Shadow, Stop},
        regs::{efer, rflags, Exception, Seg},
    },
    vcpu::Vcpu,
    X86,
};
use crate::{
    family::{Ctx, Next},
    host::trace,
    memory::{GuestAccess, View},
};
use kernel::prelude::*;

type After = Result<Next<UserExit>>;

impl<B: Backend> Vcpu<B> {
    /// The vendor whose rules the guest's instructions follow.
    fn decode_vendor(&self) -> Vendor {
        match self.features.vendor {
            cpuid::Vendor::Amd => Vendor::Amd,
            cpuid::Vendor::Intel => Vendor::Intel,
        }
    }

    /// The mode that code is decoded in.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        let cs = self.hw.segment(Seg::Cs).attr;
        let width = if self.hw.efer() & efer::LMA != 0 && cs.long() {
            Width::Bits64
        } else if cs.db() && self.hw.rflags() & rflags::VM == 0 {
            Width::Bits32
        } else {
            Width::Bits16
        };
        Mode::new(width, self.decode_vendor())
    }
}

/// An instruction under emulation. It is kept while user space answers: then the same one goes on,
/// whatever has become of the guest's code, and is not fetched, decoded and looked up again.
#[derive(Default)]
pub(crate) struct Code {
    rip: u64,
    bytes: [u8; 15],
    /// How many of them are valid.
    len: usize,
    decoded: Option<(Mode, Insn)>,
    /// Where its operand is, if it has only one and hardware has found it.
    operand: Option<Operand>,
}

/// Fetches and decodes the instruction at RIP, but for one that waits there. `operand`: where stage 2
/// has refused its access.
fn fetch<B: Backend>(
    v: &mut Vcpu<B>,
    view: &View<'_>,
    code: &mut Code,
    operand: Option<Operand>,
) -> Result<(), Miss> {
    let rip = v.hw.rip();
    let mode = v.mode();
    if core::mem::take(&mut v.pending.waits) && code.rip == rip {
        if matches!(code.decoded, Some((m, _)) if m == mode) {
            return Ok(());
        }
    } else {
        v.pending.abandon();
        code.rip = rip;
        code.len = v.hw.insn_bytes(&mut code.bytes);
    }
    loop {
        let bytes = code.bytes.get(..code.len).unwrap_or(&[]);
        let decoded = if bytes.is_empty() {
            Err(DecodeError::NeedMore)
        } else {
            decode(bytes, mode)
        };
        match decoded {
            Ok(insn) => {
                code.operand = operand.filter(|_| insn.has_one_access());
                code.decoded = Some((mode, insn));
                return Ok(());
            }
            Err(DecodeError::NeedMore) => {}
            Err(DecodeError::TooLong) => return Err(Miss::Exception(Exception::gp(0))),
            Err(DecodeError::Invalid) => return Err(Miss::Exception(Exception::ud())),
            Err(DecodeError::Unsupported) => {
                return Err(Miss::Memory {
                    gpa: 0,
                    error: GuestAccess::NoSlot,
                });
            }
        }
        let at = rip.wrapping_add(code.len as u64);
        let la = if mode.is_64() {
            at
        } else {
            v.hw.segment(Seg::Cs).base.wrapping_add(at) & 0xffff_ffff
        };
        let missing = code.bytes.get_mut(code.len..).unwrap_or(&mut []);
        let n = v.fetch(&mut Phys::sleeping(view), la, missing)?;
        if n == 0 {
            return Err(Miss::Exception(Exception::gp(0)));
        }
        code.len += n;
    }
}

/// Emulation cannot go on: user space gets the bytes.
pub(crate) fn failure<B: Backend>(v: &mut Vcpu<B>, bytes: &[u8]) -> After {
    let mut out = [0; 15];
    copy(&mut out, bytes);
    let len = u8::try_from(bytes.len().min(15)).unwrap_or(0);
    trace::guest_error(
        c"instruction cannot be emulated; RIP, first bytes",
        v.hw.rip(),
        u64::from_le_bytes(out.first_chunk().copied().unwrap_or_default()),
    );
    v.pending.abandon();
    Ok(Next::ToUser(UserExit::EmulationFailure { bytes: out, len }))
}

/// Emulates the instruction at RIP. `operand`: where stage 2 has refused its access.
///
/// # Errors
/// `ENOMEM`, and as [`handle::memory_fault`].
pub(crate) fn run<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    operand: Option<Operand>,
) -> After {
    let mut code = match ctx.vcpu.code.take() {
        Some(code) => code,
        None => KBox::new(Code::default(), GFP_KERNEL_ACCOUNT)?,
    };
    let after = run_code(ctx, view, &mut code, operand);
    ctx.vcpu.code = Some(code);
    after
}

/// The instruction could not be had.
fn missed<B: Backend>(ctx: &mut Ctx<'_, X86<B>>, miss: Miss) -> After {
    match miss {
        Miss::Exception(e) => {
            ctx.vcpu.pending.abandon();
            ctx.vcpu.raise(e);
            Ok(Next::Reenter)
        }
        Miss::Busy => Ok(Next::Reenter),
        Miss::Memory {
            gpa,
            error: GuestAccess::Fault,
        } => handle::memory_fault(ctx, gpa),
        Miss::Memory { .. } => failure(ctx.vcpu, &[]),
    }
}

fn run_code<B: Backend>(
    ctx: &mut Ctx<'_, X86<B>>,
    view: &View<'_>,
    code: &mut Code,
    operand: Option<Operand>,
) -> After {
    match fetch(ctx.vcpu, view, code, operand) {
        Ok(()) => {}
        Err(miss) => return missed(ctx, miss),
    }
    let Code {
        bytes,
        decoded: Some((_, insn)),
        operand,
        ..
    } = code
    else {
        return failure(ctx.vcpu, &[]);
    };
    let mut regs = Regs {
        gprs: ctx.vcpu.gprs,
        rip: ctx.vcpu.hw.rip(),
        rflags: ctx.vcpu.hw.rflags(),
    };
    ctx.vcpu.pending.begin();
    let mut m = Machine {
        ctx,
        view,
        operand,
        fault: None,
        leave: false,
    };
    let outcome = emulate(&mut m, insn, &mut regs);
    let fault = m.fault;
    let v = &mut *ctx.vcpu;
    if outcome.is_err() {
        v.pending.undo();
    }
    match outcome {
        Ok(Outcome::Done { shadow, trap }) => {
            v.pending.abandon();
            v.hw.set_interrupt_shadow(shadow.is_some());
            if trap && shadow != Some(Shadow::MovSs) {
                v.single_step();
            }
        }
        Ok(Outcome::Partial { trap }) => {
            v.hw.set_interrupt_shadow(false);
            if trap {
                v.single_step();
            }
        }
        Ok(Outcome::Retry) | Err(Stop::Again) => v.pending.abandon(),
        Ok(Outcome::System(s)) => {
            v.pending.abandon();
            return system(ctx, view, s, insn.len);
        }
        Err(Stop::Fault(e)) => {
            v.pending.abandon();
            v.raise(e);
        }
        Err(Stop::NeedUser) => {
            if !v.pending.has_posts() {
                v.pending.waits = true;
                return Ok(Next::ToUser(ask(v)));
            }
            // What was written comes before what is read; the read is asked for again.
            v.pending.abandon();
        }
        Err(Stop::Unhandleable) => {
            if let Some(gpa) = fault {
                v.pending.abandon();
                return handle::memory_fault(ctx, gpa);
            }
            return failure(v, bytes.get(..usize::from(insn.len)).unwrap_or(&[]));
        }
    }
    Ok(v.pending.tell().map_or(Next::Reenter, Next::ToUser))
}

/// The exit that asks user space for what [`Asked`] says.
fn ask<B: Backend>(v: &Vcpu<B>) -> UserExit {
    use crate::abi::exit::Common;
    match v.pending.asked {
        Asked::Ins { port, size, count } => UserExit::Io {
            input: true,
            size,
            port,
            count,
        },
        Asked::Mmio(p) => UserExit::Common(Common::Mmio {
            gpa: p.gpa,
            len: p.len,
            write: false,
            data: [0; 8],
        }),
        _ => UserExit::Common(Common::Unknown { code: 0 }),
    }
}

/// Runs the instruction that waited for user space again.
pub(crate) fn again<B: Backend>(ctx: &mut Ctx<'_, X86<B>>) -> After {
    let vm = ctx.vm.clone();
    let view = vm.memory.read();
    run(ctx, &view, None)
}
