// SPDX-License-Identifier: GPL-2.0

//! The x86 instruction emulator: carries out one decoded instruction against an [`Env`].
//!
//! For instructions that touch devices, string I/O, and whatever else exits without the processor
//! having done it. It works in all modes (real, virtual-8086, 16- and 32-bit protected,
//! compatibility, 64-bit) and raises the faults that hardware raises, in the order in which
//! hardware does where software can tell.
//!
//! An instruction works on registers of its own, which are committed when nothing can fail any
//! more. Memory is written last; so a fault, or a device read that user space must answer, leaves
//! no trace and the instruction can be run again.
//!
//! Sources: AMD APM vol. 1 to 4 (24592 to 24594, 26568); Intel SDM vol. 2.

mod alu;
mod bcd;
mod bits;
mod control;
mod data;
mod env;
mod far;
pub mod flags;
mod io;
mod muldiv;
mod operand;
mod segment;
mod shift;
mod stack;
mod string;
mod system;
mod task;
mod vector;

pub use env::{
    Access,
    Env,
    Feature,
    Kind,
    Outcome,
    Regs,
    Shadow,
    Stop,
    System, //
};
pub use task::{
    switch_task,
    Arrival,
    TaskCause,
    TaskSwitch,
    Tasks, //
};

use super::decode::{
    Insn,
    Mnemonic,
    Mode,
    Vendor,
    Width, //
};
use super::regs::{
    cr0,
    efer,
    rflags,
    Exception,
    Seg, //
};
use operand::Bits;

/// The mode in which code runs that `env` describes: what [`super::decode::decode`] wants to know.
pub fn mode<E: Env>(env: &E, rflags: u64) -> Mode {
    let vendor = env.vendor();
    if env.cr(0) & cr0::PE == 0 || rflags & rflags::VM != 0 {
        // Real mode with a 32-bit code segment is a leftover of protected mode that counts.
        let big = rflags & rflags::VM == 0 && env.segment(Seg::Cs).attr.db();
        return Mode::new(if big { Width::Bits32 } else { Width::Bits16 }, vendor);
    }
    let cs = env.segment(Seg::Cs).attr;
    let width = if env.efer() & efer::LMA != 0 && cs.long() {
        Width::Bits64
    } else if cs.db() {
        Width::Bits32
    } else {
        Width::Bits16
    };
    Mode::new(width, vendor)
}

/// Carries out `insn`, which was decoded in the mode of `env`, with the registers in `regs`, which
/// are the emulator's to work on: what counts is what [`Env::commit`] got, and after an outcome
/// without a commit they are worth nothing.
///
/// # Errors
///
/// See [`Stop`]. Only completed iterations of a repeated string instruction are committed then.
pub fn emulate<E: Env>(env: &mut E, insn: &Insn, regs: &mut Regs) -> Result<Outcome, Stop> {
    let protected = env.cr(0) & cr0::PE != 0;
    let v86 = protected && regs.rflags & rflags::VM != 0;
    let is_64 = mode(env, regs.rflags).is_64();
    let next = regs.rip.wrapping_add(u64::from(insn.len));
    let mut c = Ctx {
        cpl: match (protected, v86) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => env.cpl(),
        },
        insn,
        tf: regs.rflags & rflags::TF != 0,
        r: regs,
        next: if is_64 { next } else { next & flags::mask(4) },
        is_64,
        protected: protected && !v86,
        v86,
        atomic: false,
        shadow: None,
        env,
    };
    let result = c.dispatch().and_then(|flow| c.finish(flow));
    match result {
        // In real mode no exception has an error code.
        Err(Stop::Fault(e)) if !protected => Err(Stop::Fault(Exception { error: None, ..e })),
        r => r,
    }
}

/// How control goes on after an instruction.
enum Flow {
    /// To the next instruction.
    Next,
    /// To the RIP that the instruction set.
    Jump,
    /// Not at all, for now.
    Leave(Outcome),
}

impl Flow {
    /// After a write that may have lost a race.
    fn after(written: bool) -> Flow {
        if written {
            Flow::Next
        } else {
            Flow::Leave(Outcome::Retry)
        }
    }
}

/// One instruction in flight.
struct Ctx<'a, E> {
    env: &'a mut E,
    insn: &'a Insn,
    /// The registers as the instruction makes them.
    r: &'a mut Regs,
    /// RFLAGS.TF was set before it.
    tf: bool,
    /// Address of the next instruction.
    next: u64,
    /// 64-bit mode.
    is_64: bool,
    /// Protected mode (with long mode), but not virtual-8086 mode.
    protected: bool,
    /// Virtual-8086 mode.
    v86: bool,
    /// 0 to 3; 0 in real mode, 3 in virtual-8086 mode.
    cpl: u8,
    /// Memory is to be modified atomically.
    atomic: bool,
    /// The shadow that the instruction leaves.
    shadow: Option<Shadow>,
}

type Step = Result<Flow, Stop>;

impl<E: Env> Ctx<'_, E> {
    fn finish(&mut self, flow: Flow) -> Result<Outcome, Stop> {
        match flow {
            Flow::Leave(o) => return Ok(o),
            Flow::Next => self.r.rip = self.next,
            Flow::Jump => {}
        }
        let trap = self.tf && self.shadow != Some(Shadow::MovSs);
        self.r.rflags &= !rflags::RF;
        self.commit();
        Ok(Outcome::Done {
            shadow: self.shadow,
            trap,
        })
    }

    /// Makes what was done so far final.
    fn commit(&mut self) {
        self.env.commit(self.r);
    }

    fn ud<T>(&self) -> Result<T, Stop> {
        Err(Exception::ud().into())
    }

    fn gp<T>(&self) -> Result<T, Stop> {
        Err(Exception::gp(0).into())
    }

    /// #UD unless the guest has the extension.
    fn need(&self, f: Feature) -> Result<(), Stop> {
        if self.env.has(f) {
            Ok(())
        } else {
            self.ud()
        }
    }

    /// #GP(0) unless at CPL 0.
    fn supervisor(&self) -> Result<(), Stop> {
        if self.cpl == 0 {
            Ok(())
        } else {
            self.gp()
        }
    }

    fn is_amd(&self) -> bool {
        self.env.vendor() == Vendor::Amd
    }

    /// The immediate as an unsigned number of 64 bits.
    fn imm(&self) -> u64 {
        self.insn.imm.cast_unsigned_()
    }

    fn dispatch(&mut self) -> Step {
        use Mnemonic::*;
        self.atomic = self.insn.prefixes.lock;
        match self.insn.mnemonic {
            Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test => self.alu(),
            Inc | Dec | Neg | Not => self.unary(),
            Adcx | Adox => self.add_extended(),
            Cmpxchg => self.cmpxchg(),
            Cmpxchg8b => self.cmpxchg8b(),
            Xadd => self.xadd(),
            Xchg => self.xchg(),

            Mov | Movnti => self.mov(),
            Movzx | Movsx | Movsxd => self.mov_extended(),
            Movbe | Bswap => self.byte_swap(),
            Lea => self.lea(),
            Set | Cmov => self.conditional(),
            Cbw | Cwd => self.sign_extend(),
            Lahf | Sahf | Salc | Clc | Stc | Cmc | Cld | Std => self.flag_op(),
            Xlat => self.xlat(),
            Nop | Pause | Fence => Ok(Flow::Next),
            Clflush => {
                self.mem_linear(1, false)?;
                Ok(Flow::Next)
            }

            Rol | Ror | Rcl | Rcr | Shl | Shr | Sar => self.shift(),
            Shld | Shrd => self.double_shift(),
            Shlx | Shrx | Sarx | Rorx => self.shift_x(),

            Bt | Bts | Btr | Btc => self.bit_test(),
            Bsf | Bsr | Popcnt | Lzcnt | Tzcnt => self.bit_scan(),
            Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Pdep | Pext => self.bmi(),

            Mul | Imul1 | Imul | Mulx => self.multiply(),
            Div | Idiv => self.divide(),
            Aaa | Aas | Daa | Das | Aam | Aad => self.bcd(),

            Push | Pop | PushSeg | PopSeg | Pusha | Popa | Pushf | Popf | Enter | Leave => {
                self.stack_op()
            }
            Jcc | Jcxz | Loop | Loope | Loopne | JmpRel | JmpNear | CallRel | CallNear
            | RetNear => self.near(),
            JmpFar | JmpFarImm | CallFar | CallFarImm | RetFar | Iret => self.far(),
            Int | Int1 | Int3 | Into => self.interrupt(),
            Bound => self.bound(),

            Movs | Cmps | Scas | Lods | Stos | Ins | Outs => self.string(),
            In | Out => self.port(),

            MovFromSeg | MovToSeg | Lds | Les | Lfs | Lgs | Lss => self.segment_op(),
            Sldt | Str | Lldt | Ltr | Lar | Lsl | Verr | Verw | Arpl => self.descriptor_op(),
            Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => self.base_op(),

            VecMov => self.vec_mov(),
            Ldmxcsr | Stmxcsr => self.mxcsr(),
            Ud => self.ud(),
            _ => self.system(),
        }
    }
}
