// SPDX-License-Identifier: GPL-2.0

//! Power State Coordination Interface: how a guest turns processors, and itself, on and off.
//!
//! Arm DEN 0022 (PSCI), chapters 5 and 6; Linux `Documentation/virt/kvm/arm/fw-pseudo-registers.rst` for the
//! version, and `uapi/asm/kvm.h` for the numbers of 0.1, which the specification leaves open.

/// Return codes (5.2.2).
pub mod code {
    /// SUCCESS
    pub const SUCCESS: u64 = 0;
    /// NOT_SUPPORTED
    pub const NOT_SUPPORTED: u64 = u64::MAX;
    /// INVALID_PARAMETERS
    pub const INVALID_PARAMETERS: u64 = u64::MAX - 1;
    /// ALREADY_ON
    pub const ALREADY_ON: u64 = u64::MAX - 3;
    /// INTERNAL_FAILURE: what a guest finds that user space lets go on after it has turned itself off
    pub const INTERNAL_FAILURE: u64 = u64::MAX - 5;
}

/// Version of the interface, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Version {
    /// 0.1: before functions had standard numbers
    V0_1 = 1,
    /// 0.2
    V0_2 = 2,
    /// 1.0
    V1_0 = 0x1_0000,
    /// 1.1
    V1_1 = 0x1_0001,
    /// 1.2
    V1_2 = 0x1_0002,
    /// 1.3
    V1_3 = 0x1_0003,
}

impl Version {
    /// What a guest has that user space does not choose one for: the newest if its vCPUs have
    /// KVM_ARM_VCPU_PSCI_0_2, else 0.1.
    pub const fn initial(psci_0_2: bool) -> Version {
        if psci_0_2 {
            Version::V1_3
        } else {
            Version::V0_1
        }
    }

    /// Value of PSCI_VERSION, and of KVM_REG_ARM_PSCI_VERSION.
    pub const fn value(self) -> u64 {
        self as u64
    }

    /// By that value, if user space may choose it: 0.1 is for vCPUs without KVM_ARM_VCPU_PSCI_0_2, and only for
    /// them. `None` is EINVAL.
    pub const fn choose(value: u64, psci_0_2: bool) -> Option<Version> {
        Some(match (value, psci_0_2) {
            (1, false) => Version::V0_1,
            (2, true) => Version::V0_2,
            (0x1_0000, true) => Version::V1_0,
            (0x1_0001, true) => Version::V1_1,
            (0x1_0002, true) => Version::V1_2,
            (0x1_0003, true) => Version::V1_3,
            _ => return None,
        })
    }
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing but this answer.
    Return(u64),
    /// Start the vCPU of this MPIDR at the entry, with the context in X0, in the caller's endianness; then
    /// [`cpu_on_answer`].
    CpuOn {
        /// Affinity fields.
        mpidr: u64,
        /// PC
        entry: u64,
        /// X0
        context: u64,
    },
    /// Stop this vCPU.
    CpuOff,
    /// Wait for an interrupt, then answer SUCCESS. Registers are kept, whatever state is asked for.
    Suspend,
    /// Look at all vCPUs whose MPIDR has these bits under the mask; then [`affinity_answer`].
    AffinityInfo {
        /// Value.
        affinity: u64,
        /// Mask.
        mask: u64,
    },
    /// KVM_SYSTEM_EVENT_SHUTDOWN with these flags. All vCPUs stop; X0 is INTERNAL_FAILURE.
    SystemOff {
        /// `system_event.data[0]`
        flags: u64,
    },
    /// KVM_SYSTEM_EVENT_RESET with these flags. All vCPUs stop; X0 is INTERNAL_FAILURE.
    SystemReset {
        /// `system_event.data[0]`
        flags: u64,
    },
    /// KVM_SYSTEM_EVENT_SUSPEND. Registers stay, as user space reads the arguments there: X1 to X3 become these.
    SystemSuspend {
        /// X1 to X3
        args: [u64; 3],
    },
}

/// Affinity fields of MPIDR_EL1: Aff3 in 39:32, Aff2 to Aff0 in 23:0.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2
const FLAG_OFF2: u64 = 1;
/// KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2
const FLAG_RESET2: u64 = 1;

/// A function, whichever width its arguments have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Function {
    Version,
    CpuSuspend,
    CpuOff,
    CpuOn,
    AffinityInfo,
    MigrateInfoType,
    SystemOff,
    SystemReset,
    Features,
    SystemSuspend,
    SystemReset2,
    SystemOff2,
}

/// Function ids begin here (KVM_PSCI_FN_BASE).
const BASE_0_1: u32 = 0x95c1_ba5e;
/// SMC64 calling convention.
const SMC64: u32 = 1 << 30;
const SMCCC_VERSION: u32 = 0x8000_0000;

/// Functions by number: the first version that has them, and whether there is one for 64-bit arguments.
const FUNCTIONS: &[(u32, Function, Version, bool)] = &[
    (0, Function::Version, Version::V0_2, false),
    (1, Function::CpuSuspend, Version::V0_2, true),
    (2, Function::CpuOff, Version::V0_2, false),
    (3, Function::CpuOn, Version::V0_2, true),
    (4, Function::AffinityInfo, Version::V0_2, true),
    (6, Function::MigrateInfoType, Version::V0_2, false),
    (8, Function::SystemOff, Version::V0_2, false),
    (9, Function::SystemReset, Version::V0_2, false),
    (10, Function::Features, Version::V1_0, false),
    (14, Function::SystemSuspend, Version::V1_0, true),
    (18, Function::SystemReset2, Version::V1_1, true),
    (21, Function::SystemOff2, Version::V1_3, true),
];

/// The function that `version` has at an id of 0.2 and later.
fn function(version: Version, fid: u32) -> Option<Function> {
    let number = match fid {
        0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => fid & 0x1f,
        _ => return None,
    };
    FUNCTIONS
        .iter()
        .find(|&&(n, _, since, wide)| n == number && version >= since && (wide || fid & SMC64 == 0))
        .map(|&(_, f, _, _)| f)
}

fn cpu_on([mpidr, entry, context]: [u64; 3]) -> Action {
    if mpidr & !AFFINITY != 0 {
        return Action::Return(code::INVALID_PARAMETERS);
    }
    Action::CpuOn {
        mpidr,
        entry,
        context,
    }
}

/// PSCI_FEATURES (5.15) of function `fid`.
fn features(version: Version, fid: u32, system_suspend: bool) -> u64 {
    if fid == SMCCC_VERSION {
        return code::SUCCESS;
    }
    match function(version, fid) {
        None => code::NOT_SUPPORTED,
        Some(Function::SystemSuspend) if !system_suspend => code::NOT_SUPPORTED,
        // Bit 0: HIBERNATE_OFF
        Some(Function::SystemOff2) => 1,
        Some(_) => code::SUCCESS,
    }
}

/// Decides a call with function id `fid` and arguments from X1 on. `system_suspend`: user space wants to hear of
/// SYSTEM_SUSPEND (KVM_CAP_ARM_SYSTEM_SUSPEND).
pub fn call(version: Version, fid: u32, args: [u64; 3], system_suspend: bool) -> Action {
    const UNSUPPORTED: Action = Action::Return(code::NOT_SUPPORTED);
    const INVALID: Action = Action::Return(code::INVALID_PARAMETERS);
    if version == Version::V0_1 {
        return match fid.wrapping_sub(BASE_0_1) {
            1 => Action::CpuOff,
            2 => cpu_on(args),
            _ => UNSUPPORTED,
        };
    }
    let Some(f) = function(version, fid) else {
        return UNSUPPORTED;
    };
    // Of 32-bit calls the upper halves do not count (DEN 0028, 2.4).
    let args = if fid & SMC64 == 0 {
        args.map(|a| a & 0xffff_ffff)
    } else {
        args
    };
    // Such numbers have 32 bits in calls of either kind.
    let small = args.map(|a| a & 0xffff_ffff);
    match f {
        Function::Version => Action::Return(version.value()),
        Function::CpuSuspend => Action::Suspend,
        Function::CpuOff => Action::CpuOff,
        Function::CpuOn => cpu_on(args),
        Function::AffinityInfo => match (args[0] & !AFFINITY, args[1]) {
            (0, level @ 0..=3) => {
                let mask = AFFINITY & !((1 << (8 * level)) - 1);
                Action::AffinityInfo {
                    affinity: args[0] & mask,
                    mask,
                }
            }
            _ => INVALID,
        },
        // 2: there is no trusted OS, or none that has to migrate.
        Function::MigrateInfoType => Action::Return(2),
        Function::SystemOff => Action::SystemOff { flags: 0 },
        Function::SystemReset => Action::SystemReset { flags: 0 },
        Function::Features => {
            let asked = u32::try_from(small[0]).unwrap_or(u32::MAX);
            Action::Return(features(version, asked, system_suspend))
        }
        Function::SystemSuspend if system_suspend => Action::SystemSuspend { args },
        Function::SystemSuspend => UNSUPPORTED,
        // 0 is a warm reset; the upper half is the vendor's.
        Function::SystemReset2 => match small[0] {
            0 | 0x8000_0000.. => Action::SystemReset { flags: FLAG_RESET2 },
            _ => INVALID,
        },
        // HIBERNATE_OFF is bit 0, and the default; the second argument must be zero.
        Function::SystemOff2 => match (small[0], args[1]) {
            (0 | 1, 0) => Action::SystemOff { flags: FLAG_OFF2 },
            _ => INVALID,
        },
    }
}

/// The state of the vCPU that CPU_ON names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// There is none.
    Missing,
    /// It runs, or is about to.
    On,
    /// It was stopped, and is started now.
    Started,
}

/// Answer to CPU_ON.
pub const fn cpu_on_answer(version: Version, target: Target) -> u64 {
    match target {
        Target::Missing => code::INVALID_PARAMETERS,
        // 0.1 has no code of its own for it.
        Target::On if version as u32 == Version::V0_1 as u32 => code::INVALID_PARAMETERS,
        Target::On => code::ALREADY_ON,
        Target::Started => code::SUCCESS,
    }
}

/// Answer to AFFINITY_INFO: how many vCPUs match, and how many of these run. ON is 0, OFF 1.
pub const fn affinity_answer(matching: usize, running: usize) -> u64 {
    match (matching, running) {
        (0, _) => code::INVALID_PARAMETERS,
        (_, 0) => 1,
        _ => 0,
    }
}
