// SPDX-License-Identifier: GPL-2.0

//! The attributes of the GIC and of an ITS (Linux `Documentation/virt/kvm/devices/arm-vgic-v3.rst`,
//! `arm-vgic-its.rst`): which there are, how long they are, and when they can be had.

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The interrupt controller
    Gic,
    /// An ITS
    Its,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How many interrupts there are
    Interrupts,
    /// Where frames are
    Address,
    /// A register of the distributor
    Dist,
    /// A register of a redistributor
    Redist,
    /// A register of a CPU interface
    CpuInterface,
    /// Levels of 32 lines
    Levels,
    /// The controller is to be made ready.
    Init,
    /// Pending LPIs are to be written to memory.
    SavePending,
    /// A register of the ITS
    ItsRegister,
    /// The ITS is to be reset.
    ItsReset,
    /// Its tables are to be written to memory,
    ItsSave,
    /// or read.
    ItsRestore,
}

/// What goes over, to or from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// 32 bits
    Word,
    /// 64 bits
    Double,
    /// Nothing: it is an action, which cannot be read.
    Action,
}

/// When it can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always
    Any,
    /// `EBUSY` while a vCPU runs
    Stopped,
    /// And `EBUSY` before the controller is initialized
    Ready,
    /// As [`When::Ready`], but before it is initialized `ENXIO`
    Configured,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose
    pub device: Device,
    /// `kvm_device_attr.group`
    pub group: u32,
    /// `kvm_device_attr.attr`, where but one has a meaning
    pub attr: Option<u64>,
    /// What
    pub kind: Kind,
    /// How long
    pub value: Value,
    /// When
    pub when: When,
}

/// `KVM_DEV_ARM_VGIC_GRP_*`
mod group {
    pub(super) const ADDR: u32 = 0;
    pub(super) const DIST_REGS: u32 = 1;
    pub(super) const NR_IRQS: u32 = 3;
    pub(super) const CTRL: u32 = 4;
    pub(super) const REDIST_REGS: u32 = 5;
    pub(super) const CPU_SYSREGS: u32 = 6;
    pub(super) const LEVEL_INFO: u32 = 7;
    pub(super) const ITS_REGS: u32 = 8;
}

macro_rules! rows {
    ($($device:ident, $group:ident $([$attr:literal])?: $kind:ident, $value:ident, $when:ident;)*) => {
        /// All of them.
        pub const TABLE: &[Row] = &[$(Row {
            device: Device::$device,
            group: group::$group,
            attr: rows!(@$($attr)?),
            kind: Kind::$kind,
            value: Value::$value,
            when: When::$when,
        }),*];
    };
    (@) => { None };
    (@ $attr:literal) => { Some($attr) };
}

rows! {
    Gic, NR_IRQS: Interrupts, Word, Any;
    Gic, ADDR: Address, Double, Any;
    // GICD_IIDR and GICD_TYPER2 say what it is to be, before it is: no `Ready`.
    Gic, DIST_REGS: Dist, Word, Stopped;
    Gic, REDIST_REGS: Redist, Word, Ready;
    Gic, CPU_SYSREGS: CpuInterface, Double, Ready;
    Gic, LEVEL_INFO: Levels, Word, Ready;
    Gic, CTRL[0]: Init, Action, Any;
    Gic, CTRL[3]: SavePending, Action, Configured;
    Its, ADDR: Address, Double, Any;
    Its, ITS_REGS: ItsRegister, Double, Stopped;
    // It is made ready when it is created.
    Its, CTRL[0]: Init, Action, Any;
    Its, CTRL[1]: ItsSave, Action, Stopped;
    Its, CTRL[2]: ItsRestore, Action, Stopped;
    Its, CTRL[4]: ItsReset, Action, Stopped;
}

/// The row of an attribute; `None`: `ENXIO`.
pub fn find(device: Device, group: u32, attr: u64) -> Option<&'static Row> {
    TABLE
        .iter()
        .find(|r| r.device == device && r.group == group && r.attr.is_none_or(|only| only == attr))
}
