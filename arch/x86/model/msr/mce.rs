// SPDX-License-Identifier: GPL-2.0

//! Machine-check banks: kept for user space, which injects errors (SDM vol. 3B chapter 16, APM
//! vol. 2 chapter 9).

use super::Origin;

/// Banks at most.
pub const BANKS: usize = 32;
/// MCG_CAP: MCG_CTL exists.
pub const MCG_CTL_P: u64 = 1 << 8;
/// MCG_CAP: corrected-error interrupts exist.
pub const MCG_CMCI_P: u64 = 1 << 10;
/// MCG_CAP: software error recovery.
pub const MCG_SER_P: u64 = 1 << 24;
/// What KVM_X86_GET_MCE_CAP_SUPPORTED says.
pub const SUPPORTED: u64 = MCG_CTL_P | MCG_SER_P;

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
const MC0_CTL2: u32 = 0x280;
const MC0_CTL: u32 = 0x400;
/// CTL2: interrupt enable and threshold.
const CTL2_VALID: u64 = 1 << 30 | 0x7fff;

/// MCi_STATUS: the bank holds an error.
pub const STATUS_VAL: u64 = 1 << 63;
/// MCi_STATUS: an error was lost.
pub const STATUS_OVER: u64 = 1 << 62;
/// MCi_STATUS: uncorrected.
pub const STATUS_UC: u64 = 1 << 61;
/// MCG_STATUS: a machine check is being handled.
pub const MCG_STATUS_MCIP: u64 = 1 << 2;

/// One bank: CTL, STATUS, ADDR, MISC.
type Bank = [u64; 4];

/// Machine-check registers of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mce {
    cap: u64,
    status: u64,
    ctl: u64,
    banks: [Bank; BANKS],
    ctl2: [u64; BANKS],
}

impl Default for Mce {
    /// All banks, nothing enabled: a vCPU before KVM_X86_SETUP_MCE.
    fn default() -> Self {
        Mce {
            cap: BANKS as u64,
            status: 0,
            ctl: 0,
            banks: [[0; 4]; BANKS],
            ctl2: [0; BANKS],
        }
    }
}

/// An error that user space injects: `struct kvm_x86_mce`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// MCi_STATUS
    pub status: u64,
    /// MCi_ADDR
    pub addr: u64,
    /// MCi_MISC
    pub misc: u64,
    /// MCG_STATUS
    pub mcg_status: u64,
    /// Bank number
    pub bank: u8,
}

/// What an injected error does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// Recorded, or dropped because its bank is off.
    Quiet,
    /// #MC to the guest.
    Exception,
    /// The guest shuts down: it cannot take another machine check.
    Shutdown,
}

impl Mce {
    /// How many banks there are.
    #[inline]
    fn count(&self) -> usize {
        ((self.cap & 0xff) as usize).min(BANKS)
    }

    /// KVM_X86_SETUP_MCE: sets MCG_CAP, and enables all banks. False (EINVAL) for a capability
    /// that is not [`SUPPORTED`] or a number of banks that cannot be.
    #[must_use]
    pub fn setup(&mut self, cap: u64) -> bool {
        let banks = cap & 0xff;
        if !(1..=BANKS as u64).contains(&banks) || cap & !(SUPPORTED | 0xff | 0xff_0000) != 0 {
            return false;
        }
        self.cap = cap;
        if cap & MCG_CTL_P != 0 {
            self.ctl = u64::MAX;
        }
        let n = self.count();
        for b in self.banks.iter_mut().take(n) {
            b[0] = u64::MAX;
        }
        true
    }

    /// A bank register by MSR number, if the bank exists.
    fn bank_register(&self, index: u32) -> Option<(usize, usize)> {
        let offset = index.checked_sub(MC0_CTL)? as usize;
        (offset / 4 < self.count()).then_some((offset / 4, offset % 4))
    }

    /// CTL2's bank by MSR number, if the bank exists.
    fn ctl2_bank(&self, index: u32) -> Option<usize> {
        let bank = index.checked_sub(MC0_CTL2)? as usize;
        (bank < self.count()).then_some(bank)
    }

    /// Reads a register; `None` if it does not exist.
    pub fn read(&self, index: u32, origin: Origin) -> Option<u64> {
        let host = origin == Origin::Host;
        match index {
            MCG_CAP => Some(self.cap),
            MCG_STATUS => Some(self.status),
            MCG_CTL => (host || self.cap & MCG_CTL_P != 0).then_some(self.ctl),
            MC0_CTL2..=0x29f => {
                let bank = self.ctl2_bank(index)?;
                if !host && self.cap & MCG_CMCI_P == 0 {
                    return None;
                }
                self.ctl2.get(bank).copied()
            }
            _ => {
                let (bank, reg) = self.bank_register(index)?;
                self.banks.get(bank)?.get(reg).copied()
            }
        }
    }

    /// Writes a register. `status_writable` lets a guest set MCi_STATUS (AMD's
    /// HWCR.McStatusWrEn). False if the register does not exist or does not take the value.
    #[must_use]
    pub fn write(&mut self, index: u32, value: u64, origin: Origin, status_writable: bool) -> bool {
        let host = origin == Origin::Host;
        match index {
            MCG_STATUS => {
                self.status = value;
                true
            }
            MCG_CTL => {
                let exists = self.cap & MCG_CTL_P != 0;
                if (!exists && (!host || value != 0)) || (value != 0 && value != u64::MAX) {
                    return false;
                }
                self.ctl = value;
                true
            }
            MC0_CTL2..=0x29f => {
                let exists = self.cap & MCG_CMCI_P != 0;
                if (!exists && (!host || value != 0)) || value & !CTL2_VALID != 0 {
                    return false;
                }
                match self.ctl2_bank(index).and_then(|b| self.ctl2.get_mut(b)) {
                    Some(slot) => {
                        *slot = value;
                        true
                    }
                    None => false,
                }
            }
            _ => {
                let Some((bank, reg)) = self.bank_register(index) else {
                    return false;
                };
                let ok = match reg {
                    // All or nothing; but kernels clear bit 10 (an old erratum of AMD's) or bit 0.
                    0 => value == 0 || value | (1 << 10) | 1 == u64::MAX,
                    1 => value == 0 || host || status_writable,
                    _ => true,
                };
                match self.banks.get_mut(bank).and_then(|b| b.get_mut(reg)) {
                    Some(slot) if ok => {
                        *slot = value;
                        true
                    }
                    _ => false,
                }
            }
        }
    }

    /// KVM_X86_SET_MCE. `mce_enabled` is CR4.MCE. `None` (EINVAL) if the bank does not exist or the
    /// event is no valid error.
    pub fn inject(&mut self, e: &Event, mce_enabled: bool) -> Option<Injected> {
        let n = self.count();
        let off = self.cap & MCG_CTL_P != 0 && self.ctl != u64::MAX;
        let mcip = self.status & MCG_STATUS_MCIP != 0;
        let bank = self.banks.get_mut(..n)?.get_mut(usize::from(e.bank))?;
        if e.status & STATUS_VAL == 0 {
            return None;
        }
        let uncorrected = e.status & STATUS_UC != 0;
        if uncorrected {
            if off || bank[0] != u64::MAX {
                return Some(Injected::Quiet);
            }
            if mcip || !mce_enabled {
                return Some(Injected::Shutdown);
            }
        }
        let over = if bank[1] & STATUS_VAL != 0 {
            STATUS_OVER
        } else {
            0
        };
        if uncorrected || bank[1] & STATUS_VAL == 0 || bank[1] & STATUS_UC == 0 {
            *bank = [bank[0], e.status | over, e.addr, e.misc];
        } else {
            bank[1] |= STATUS_OVER;
        }
        if !uncorrected {
            return Some(Injected::Quiet);
        }
        self.status = e.mcg_status;
        Some(Injected::Exception)
    }
}
