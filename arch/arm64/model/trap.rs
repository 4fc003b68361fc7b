// SPDX-License-Identifier: GPL-2.0

//! System registers that a guest can reach by a trap, or that user space can: one table, and what follows from it
//! for an access.
//!
//! Arm ARM (DDI 0487), D24.2 and D24.3 for the registers; D1.3.6 and HCR_EL2, MDCR_EL2, CPTR_EL2 for what traps.
//! What is not in the table is undefined for guests and unknown to user space.

use super::esr::SysregAccess;
use super::sysreg::Sysreg;

pub mod aarch32;
mod table;

pub use table::TABLE;

/// Which timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// EL1's virtual timer.
    Virtual,
    /// EL1's physical timer.
    Physical,
}

/// Which of a timer's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerReg {
    /// The count; a read that is ordered is served in the same way.
    Count,
    /// Countdown: compare value minus count.
    Countdown,
    /// Control.
    Control,
    /// Compare value.
    Compare,
}

/// Who serves an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The VM's ID registers: see `idreg`.
    Id,
    /// MIDR, REVIDR, AIDR: the VM's, if user space may write them (KVM_CAP_ARM_WRITABLE_IMP_ID_REGS); else the
    /// processor's own.
    Implementation,
    /// CLIDR_EL1: of the vCPU.
    Clidr,
    /// CCSIDR_EL1: of the vCPU, selected by CSSELR_EL1.
    Ccsidr,
    /// CSSELR_EL1: of the vCPU.
    Csselr,
    /// Reads as zero, writes are ignored.
    RazWi,
    /// Nobody: undefined. User space may have it nevertheless.
    Undefined,
    /// Debug registers: of the vCPU. After an access they can be the guest's directly.
    Debug,
    /// OSLAR_EL1: bit 0 goes to OSLSR_EL1.OSLK.
    OsLock,
    /// OSLSR_EL1: of the vCPU.
    OsLockStatus,
    /// DBGAUTHSTATUS_EL1: the processor's own.
    DebugAuth,
    /// A register that rules stage 1 (HCR_EL2.TVM): to be written, and its effect on the caches looked at.
    Vm,
    /// ACTLR_EL1: the processor's as the vCPU was made; writes are ignored.
    Actlr,
    /// The guest has it directly. If it traps, the guest has it not.
    Direct,
    /// ICC_*: the interrupt controller's model.
    Gic,
    /// A timer.
    Timer(Timer, TimerReg),
    /// The PMU's model, which checks PMUSERENR_EL0 too.
    Pmu,
    /// Cache maintenance by set and way (HCR_EL2.TSW).
    SetWay,
    /// AArch32's at EL1, kept for user space in every guest: AArch64 code has it not.
    Aarch32,
}

/// Which ways a register goes. The wrong way is undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Read and write.
    Rw,
    /// Read.
    Ro,
    /// Write.
    Wo,
}

/// Where a register's value is for KVM_GET_ONE_REG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nowhere: user space does not have it.
    No,
    /// In the vCPU's array, at [`slot`].
    Slot,
    /// With the model that serves it.
    Model,
}

/// Which guests have a register; for others it is undefined, and unknown to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// All.
    Always,
    /// KVM_ARM_VCPU_PMU_V3
    Pmu,
    /// KVM_ARM_VCPU_SVE
    Sve,
    /// KVM_ARM_VCPU_PTRAUTH_ADDRESS and GENERIC
    Pauth,
    /// FEAT_MTE2
    Mte,
    /// FEAT_RAS
    Ras,
    /// FEAT_RASv1p1
    Ras1p1,
    /// FEAT_LOR
    Lor,
    /// A GICv3
    Gic,
    /// FEAT_SCTLR2
    Sctlr2,
    /// FEAT_TCR2
    Tcr2,
    /// FEAT_S1PIE
    S1pie,
    /// FEAT_S1POE
    S1poe,
    /// FEAT_FPMR
    Fpmr,
}

/// What a guest has, as far as registers depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// KVM_ARM_VCPU_PMU_V3
    pub pmu: bool,
    /// KVM_ARM_VCPU_SVE
    pub sve: bool,
    /// KVM_ARM_VCPU_PTRAUTH_ADDRESS and GENERIC
    pub pauth: bool,
    /// FEAT_MTE2
    pub mte: bool,
    /// FEAT_RAS
    pub ras: bool,
    /// FEAT_RASv1p1
    pub ras1p1: bool,
    /// FEAT_LOR
    pub lor: bool,
    /// A GICv3
    pub gic: bool,
    /// FEAT_SCTLR2
    pub sctlr2: bool,
    /// FEAT_TCR2
    pub tcr2: bool,
    /// FEAT_S1PIE
    pub s1pie: bool,
    /// FEAT_S1POE
    pub s1poe: bool,
    /// FEAT_FPMR
    pub fpmr: bool,
}

impl Features {
    /// A register with this gate exists.
    pub const fn has(&self, gate: Gate) -> bool {
        match gate {
            Gate::Always => true,
            Gate::Pmu => self.pmu,
            Gate::Sve => self.sve,
            Gate::Pauth => self.pauth,
            Gate::Mte => self.mte,
            Gate::Ras => self.ras,
            Gate::Ras1p1 => self.ras1p1,
            Gate::Lor => self.lor,
            Gate::Gic => self.gic,
            Gate::Sctlr2 => self.sctlr2,
            Gate::Tcr2 => self.tcr2,
            Gate::S1pie => self.s1pie,
            Gate::S1poe => self.s1poe,
            Gate::Fpmr => self.fpmr,
        }
    }
}

/// A row: `count` registers whose encodings follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The first.
    pub first: Sysreg,
    /// How many.
    pub count: u16,
    /// Who serves.
    pub class: Class,
    /// Which ways.
    pub way: Way,
    /// Which guests.
    pub gate: Gate,
    /// For user space.
    pub keep: Keep,
}

impl Row {
    /// Its registers, in order.
    pub fn registers(&self) -> impl Iterator<Item = Sysreg> {
        let first = self.first;
        (0..self.count).map(move |n| first.plus(n))
    }
}

/// Rows are in order and do not overlap.
const fn in_order(rows: &[Row]) -> bool {
    let mut rest = rows;
    let mut next = 0;
    while let [row, tail @ ..] = rest {
        if row.count == 0 || (row.first.bits() as u32) < next {
            return false;
        }
        next = row.first.bits() as u32 + row.count as u32;
        rest = tail;
    }
    next <= 0x1_0000
}

/// Registers with a slot.
pub const SLOTS: usize = {
    assert!(in_order(TABLE));
    let mut rest: &[Row] = TABLE;
    let mut n = 0;
    while let [row, tail @ ..] = rest {
        if let Keep::Slot = row.keep {
            n += row.count as usize;
        }
        rest = tail;
    }
    n
};

const ROWS: usize = TABLE.len();

/// The slot of each row's first register, or where it would be.
static BASES: [u16; ROWS] = {
    let mut bases = [0; ROWS];
    let mut n = 0;
    let mut i = 0;
    while i < ROWS {
        bases[i] = n;
        if let Keep::Slot = TABLE[i].keep {
            n += TABLE[i].count;
        }
        i += 1;
    }
    bases
};

fn position(r: Sysreg) -> Option<(usize, &'static Row)> {
    let i = TABLE.partition_point(|row| row.first <= r).checked_sub(1)?;
    let row = TABLE.get(i)?;
    (r.bits() - row.first.bits() < row.count).then_some((i, row))
}

/// The row of a register.
pub fn find(r: Sysreg) -> Option<&'static Row> {
    position(r).map(|(_, row)| row)
}

/// The place of a register in an array of [`SLOTS`] values, if it is kept so.
pub fn slot(r: Sysreg) -> Option<usize> {
    let (i, row) = position(r)?;
    if row.keep != Keep::Slot {
        return None;
    }
    let base = BASES.get(i)?;
    Some(usize::from(*base) + usize::from(r.bits() - row.first.bits()))
}

/// What becomes of a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An undefined instruction, for the guest.
    Undefined,
    /// Reads zero; a write does nothing.
    RazWi,
    /// Served by this one.
    Serve(Class),
}

/// Decides a trapped access.
pub fn decide(a: &SysregAccess, features: &Features) -> Action {
    let Some(row) = find(a.reg).filter(|row| features.has(row.gate)) else {
        return Action::Undefined;
    };
    match (row.way, a.write) {
        (Way::Ro, true) | (Way::Wo, false) => return Action::Undefined,
        _ => {}
    }
    match row.class {
        Class::Undefined | Class::Direct | Class::Aarch32 => Action::Undefined,
        Class::RazWi => Action::RazWi,
        class => Action::Serve(class),
    }
}

/// The same for AArch32 code, whose EL1 may be AArch32 too.
pub fn decide32(a: &SysregAccess, features: &Features) -> Action {
    match find(a.reg) {
        Some(row) if matches!(row.class, Class::Aarch32) => Action::Serve(Class::Aarch32),
        _ => decide(a, features),
    }
}

/// A register that is not there is reported as a trapped access, not as an undefined instruction (FEAT_IDST,
/// ID_AA64MMFR2_EL1.IDS): one in the space of ID registers, D24.1.4.
pub const fn reported_as_trap(r: Sysreg, mmfr2: u64) -> bool {
    mmfr2 >> 36 & 0xf != 0 && r.op0() == 3 && r.op1() <= 3 && r.crn() == 0 && r.crm() <= 7
}

/// User space has the register, and where; `None` is ENOENT.
pub fn kept(r: Sysreg, features: &Features) -> Option<Keep> {
    find(r)
        .filter(|row| row.keep != Keep::No && features.has(row.gate))
        .map(|row| row.keep)
}

/// The registers that user space has, by encoding: KVM_GET_REG_LIST's part of them.
pub fn listed(features: &Features) -> impl Iterator<Item = Sysreg> + '_ {
    TABLE
        .iter()
        .filter(|row| row.keep != Keep::No && features.has(row.gate))
        .flat_map(Row::registers)
}

/// The value that a register in a slot has after a reset, when nobody else gives one. SCTLR_EL1 has its RES1 bits
/// of Armv8.0; FPEXC32_EL2 those of its own; OSLSR_EL1 tells that the lock exists, and is open.
pub const fn reset_value(r: Sysreg) -> u64 {
    match r {
        Sysreg::SCTLR_EL1 => 0x00c5_0078,
        Sysreg::FPEXC32_EL2 => 0x700,
        Sysreg::OSLSR_EL1 => 1 << 3,
        _ => 0,
    }
}

/// OSLSR_EL1 after a write of OSLAR_EL1.
pub const fn os_lock(oslsr: u64, oslar: u64) -> u64 {
    oslsr & !2 | (oslar & 1) << 1
}

/// User space may set OSLSR_EL1 so: only OSLK (bit 1) differs from what [`reset_value`] has.
pub const fn oslsr_valid(value: u64) -> bool {
    value & !2 == reset_value(Sysreg::OSLSR_EL1)
}

/// MPIDR_EL1 of a vCPU that user space gives none: 16 in Aff0, as many as an SGI can be sent to at once.
pub const fn mpidr(vcpu_id: u32) -> u64 {
    const RES1: u64 = 1 << 31;
    let id = vcpu_id as u64;
    RES1 | id & 0xf | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}
