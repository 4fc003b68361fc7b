// SPDX-License-Identifier: GPL-2.0

//! The guest's own page tables: from a linear address to a guest-physical one, in every paging
//! mode, with the permission checks, page-fault codes, and accessed/dirty updates of a processor.
//!
//! The walk reads guest memory through [`GuestPhys`] (static dispatch; the shell implements it over
//! the memslots). Nothing is written to guest memory unless the access is permitted, and then only
//! by compare-exchange on the value that was checked, so a concurrent change of the tables restarts
//! the walk instead of being overwritten.
//!
//! Sources: AMD APM vol. 2 (24593) chapter 5, Intel SDM vol. 3A chapter 4.

use super::regs::{cr0, cr4, efer, pferr, Exception};

mod entry;
pub use entry::{EntrySize, Mode};
use entry::{Format, ACCESSED, DIRTY, GLOBAL, NX, PRESENT, USER, WRITE};

/// Guest-physical memory, as a page walk needs it.
pub trait GuestPhys {
    /// Why memory could not be reached: no memslot, a page that cannot be had, a read-only slot.
    type Error;

    /// Reads the little-endian entry at guest-physical `gpa`, which is aligned to `size`. One
    /// single load: the guest may be writing the entry.
    fn read_entry(&mut self, gpa: u64, size: EntrySize) -> Result<u64, Self::Error>;

    /// Replaces the entry at `gpa` by `new` if it still is `old`, atomically against the guest's
    /// processors. Returns whether it was replaced.
    fn cmpxchg_entry(
        &mut self,
        gpa: u64,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
}

/// The processor state that decides how an address is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0 (PG and WP matter).
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 (PAE, PSE, LA57, SMEP, SMAP, PKE matter).
    pub cr4: u64,
    /// EFER (LMA, NXE matter).
    pub efer: u64,
    /// PKRU; looked at only with CR4.PKE.
    pub pkru: u32,
    /// RFLAGS.AC: lets explicit supervisor accesses through SMAP.
    pub rflags_ac: bool,
    /// Width of a physical address in bits, 32 to 52. Address bits above it are reserved.
    pub maxphyaddr: u8,
    /// 1 GiB pages exist (CPUID 8000_0001.EDX\[26\]).
    pub gbpages: bool,
    /// Bit 8 of PML4 and PML5 entries is reserved (AMD, APM 5.3.3), not ignored (Intel).
    pub nonleaf_bit8_reserved: bool,
    /// The four page-directory-pointer entries that PAE paging loaded with CR3 (SDM 4.4.1). `None`
    /// reads them from memory at each walk, as AMD does under nested paging (APM 15.25.10).
    pub pdptes: Option<[u64; 4]>,
}

/// What is done at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write, or the read of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL below 3, by an instruction's own operand.
    Supervisor,
    /// The processor itself at any CPL: descriptor tables, TSS, stacks of an interrupt. A supervisor
    /// access that RFLAGS.AC does not exempt from SMAP.
    Implicit,
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: Kind,
    /// On whose behalf.
    pub privilege: Privilege,
}

impl Access {
    /// An access by an instruction at privilege level `cpl`.
    #[inline]
    pub const fn at_cpl(kind: Kind, cpl: u8) -> Access {
        let privilege = if cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        };
        Access { kind, privilege }
    }

    /// An access of the processor's own to a system structure.
    #[inline]
    pub const fn implicit(kind: Kind) -> Access {
        Access {
            kind,
            privilege: Privilege::Implicit,
        }
    }
}

/// A translated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: u64,
    /// Log2 of the page's size in bytes: 12, 21, 22 or 30 (32 without paging).
    pub page_shift: u8,
    /// Every level allows writes. A supervisor with CR0.WP clear may write all the same.
    pub writable: bool,
    /// Every level allows user accesses.
    pub user: bool,
    /// Some level forbids fetches (always false with EFER.NXE clear).
    pub no_execute: bool,
    /// The page is marked global.
    pub global: bool,
    /// The leaf was marked dirty before this access or by it.
    pub dirty: bool,
}

impl Translation {
    /// How many bytes from `gpa` on stay in the same page.
    #[inline]
    pub const fn bytes_left(&self) -> u64 {
        let size = 1u64 << (self.page_shift & 63);
        size - (self.gpa & (size - 1))
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault<E> {
    /// The guest gets a page fault: error code ([`pferr`]) and linear address.
    Page {
        /// The error code.
        code: u32,
        /// What CR2 becomes.
        addr: u64,
    },
    /// A paging structure could not be read or updated at this guest-physical address.
    Memory {
        /// Where.
        gpa: u64,
        /// What [`GuestPhys`] said.
        error: E,
    },
    /// The tables kept changing under the walk; nothing was decided. The shell tries again after
    /// it has looked for signals.
    Busy,
}

impl<E> Fault<E> {
    /// The exception to inject, when the fault is the guest's own.
    pub fn exception(&self) -> Option<Exception> {
        match *self {
            Fault::Page { code, addr } => Some(Exception::pf(code, addr)),
            Fault::Memory { .. } | Fault::Busy => None,
        }
    }
}

/// How often a walk starts over because an entry changed between its check and its update. A guest
/// that changes its tables on another processor in a loop gets [`Fault::Busy`], not the host.
const RETRIES: u32 = 16;

/// True if `addr` is canonical for linear addresses of `bits` bits (48 or 57): all bits from
/// `bits - 1` up are equal.
#[inline]
pub const fn canonical(addr: u64, bits: u8) -> bool {
    let bits = if bits == 0 || bits > 64 { 64 } else { bits };
    let shift = 64 - bits as u32;
    (((addr << shift) as i64) >> shift) as u64 == addr
}

impl Paging {
    /// The paging mode in force.
    #[inline]
    pub const fn mode(&self) -> Mode {
        if self.cr0 & cr0::PG == 0 {
            Mode::None
        } else if self.cr4 & cr4::PAE == 0 {
            Mode::Legacy
        } else if self.efer & efer::LMA == 0 {
            Mode::Pae
        } else if self.cr4 & cr4::LA57 == 0 {
            Mode::Level4
        } else {
            Mode::Level5
        }
    }

    /// Width of linear addresses in force: 57 or 48 in long mode, else 32. Only in 64-bit code do
    /// addresses have to be canonical; [`translate`] takes that as checked.
    #[inline]
    pub const fn linear_bits(&self) -> u8 {
        match self.mode() {
            Mode::Level5 => 57,
            Mode::Level4 => 48,
            Mode::None | Mode::Legacy | Mode::Pae => 32,
        }
    }

    /// Page-fault error code bits that say what the access was (APM 8.4.2).
    #[inline]
    fn access_code(&self, access: Access) -> u32 {
        let nx_or_smep = self.nxe() || self.cr4 & cr4::SMEP != 0;
        let mut code = 0;
        match access.kind {
            Kind::Read => {}
            Kind::Write => code |= pferr::W,
            Kind::Fetch if nx_or_smep => code |= pferr::I,
            Kind::Fetch => {}
        }
        if access.privilege == Privilege::User {
            code |= pferr::U;
        }
        code
    }

    /// NX bits mean something: PAE entries and EFER.NXE.
    #[inline]
    const fn nxe(&self) -> bool {
        self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0
    }

    /// Checks an access against the rights that the walk collected. Returns the extra error code
    /// bits of a violation.
    #[inline]
    fn check(&self, access: Access, rights: Rights) -> Result<(), u32> {
        let user_access = access.privilege == Privilege::User;
        let mut denied = user_access && !rights.user;
        let mut key_denied = false;
        match access.kind {
            Kind::Fetch => {
                denied |= rights.nx;
                denied |= !user_access && rights.user && self.cr4 & cr4::SMEP != 0;
            }
            Kind::Read | Kind::Write => {
                let write = access.kind == Kind::Write;
                let enforced = user_access || self.cr0 & cr0::WP != 0;
                denied |= write && enforced && !rights.writable;
                if rights.user {
                    let exempt = self.rflags_ac && access.privilege == Privilege::Supervisor;
                    denied |= !user_access && self.cr4 & cr4::SMAP != 0 && !exempt;
                    if let Some(key) = rights.key {
                        let bits = self.pkru >> (u32::from(key & 15) * 2);
                        key_denied = bits & 1 != 0 || (write && enforced && bits & 2 != 0);
                    }
                }
            }
        }
        match (denied, key_denied) {
            (false, false) => Ok(()),
            (_, false) => Err(0),
            (_, true) => Err(pferr::PK),
        }
    }
}

/// What all levels together allow.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    nx: bool,
    /// The leaf's protection key, if keys are in force.
    key: Option<u8>,
}

/// A walk that ended at a leaf, with what is needed to mark the entries used.
struct Walked {
    translation: Translation,
    /// The entries passed, from the top: guest-physical address and value.
    path: [(u64, u64); 5],
    /// How many of them are used.
    len: usize,
    size: EntrySize,
}

/// Translates `la` for `access`, sets accessed bits on the way and the dirty bit for a write.
///
/// `la` is taken as canonical; outside long mode its upper half is ignored.
///
/// # Errors
/// [`Fault::Page`] when the guest's tables or their rights forbid the access, [`Fault::Memory`]
/// when a table is not in guest memory or cannot be updated.
#[inline]
pub fn translate<M: GuestPhys>(
    p: &Paging,
    mem: &mut M,
    la: u64,
    access: Access,
) -> Result<Translation, Fault<M::Error>> {
    let mode = p.mode();
    if mode == Mode::None {
        return Ok(unpaged(la));
    }
    for _ in 0..RETRIES {
        let mut walked = walk(p, mode, mem, la, Some(access))?;
        if mark(&mut walked, mem, access.kind == Kind::Write)? {
            return Ok(walked.translation);
        }
    }
    Err(Fault::Busy)
}

/// Translates `la` without any check of rights and without writing to guest memory: what
/// KVM_TRANSLATE and debuggers want.
///
/// # Errors
/// As [`translate`]; the page fault then has only the bits P and RSV.
pub fn probe<M: GuestPhys>(
    p: &Paging,
    mem: &mut M,
    la: u64,
) -> Result<Translation, Fault<M::Error>> {
    match p.mode() {
        Mode::None => Ok(unpaged(la)),
        mode => walk(p, mode, mem, la, None).map(|w| w.translation),
    }
}

/// Translates `la` for `access` with all checks of rights, but without writing to guest memory:
/// what an emulator asks before it commits to an instruction.
///
/// # Errors
/// As [`translate`].
pub fn check<M: GuestPhys>(
    p: &Paging,
    mem: &mut M,
    la: u64,
    access: Access,
) -> Result<Translation, Fault<M::Error>> {
    match p.mode() {
        Mode::None => Ok(unpaged(la)),
        mode => walk(p, mode, mem, la, Some(access)).map(|w| w.translation),
    }
}

/// The identity translation with paging off.
#[inline]
const fn unpaged(la: u64) -> Translation {
    Translation {
        gpa: la & 0xffff_ffff,
        page_shift: 32,
        writable: true,
        user: true,
        no_execute: false,
        global: false,
        dirty: true,
    }
}

/// Descends the tables. Reads only.
fn walk<M: GuestPhys>(
    p: &Paging,
    mode: Mode,
    mem: &mut M,
    la: u64,
    access: Option<Access>,
) -> Result<Walked, Fault<M::Error>> {
    let format = Format::new(p, mode);
    let addr = if format.long { la } else { la & 0xffff_ffff };
    let code = access.map_or(0, |a| p.access_code(a));
    let fault = |extra: u32| Fault::Page {
        code: code | extra,
        addr,
    };

    let mut rights = Rights {
        writable: true,
        user: true,
        nx: false,
        key: None,
    };
    let mut path = [(0u64, 0u64); 5];
    let mut len = 0usize;
    let mut table = format.root(p.cr3);
    let mut level = format.top;

    loop {
        let index = format.index(addr, level);
        let gpa = table.wrapping_add(index.wrapping_mul(format.size.bytes()));
        // PAE's four top entries: no rights, no accessed bit, possibly held in the processor.
        let pdpte = mode == Mode::Pae && level == 3;
        let entry = match p.pdptes {
            Some(loaded) if pdpte => loaded.get((index & 3) as usize).copied().unwrap_or(0),
            _ => mem
                .read_entry(gpa, format.size)
                .map_err(|error| Fault::Memory { gpa, error })?,
        };
        if entry & PRESENT == 0 {
            return Err(fault(0));
        }
        let leaf = format.is_leaf(entry, level);
        if entry & format.reserved(level, leaf) != 0 {
            return Err(fault(pferr::P | pferr::RSV));
        }
        if !pdpte {
            rights.writable &= entry & WRITE != 0;
            rights.user &= entry & USER != 0;
            rights.nx |= p.nxe() && entry & NX != 0;
            if let Some(slot) = path.get_mut(len) {
                *slot = (gpa, entry);
                len += 1;
            }
        }
        if leaf {
            if format.long && p.cr4 & cr4::PKE != 0 {
                rights.key = Some(((entry >> 59) & 15) as u8);
            }
            if let Some(access) = access {
                p.check(access, rights)
                    .map_err(|extra| fault(pferr::P | extra))?;
            }
            let shift = format.page_shift(level);
            let translation = Translation {
                gpa: format.frame(entry, level) | (addr & ((1 << (shift & 63)) - 1)),
                page_shift: shift,
                writable: rights.writable,
                user: rights.user,
                no_execute: rights.nx,
                global: entry & GLOBAL != 0 && p.cr4 & cr4::PGE != 0,
                dirty: entry & DIRTY != 0,
            };
            return Ok(Walked {
                translation,
                path,
                len,
                size: format.size,
            });
        }
        table = format.next_table(entry);
        level = level.saturating_sub(1);
    }
}

/// Sets accessed bits along the path, and dirty in the leaf for a write. False if an entry has
/// changed since it was read.
#[inline]
fn mark<M: GuestPhys>(
    walked: &mut Walked,
    mem: &mut M,
    write: bool,
) -> Result<bool, Fault<M::Error>> {
    let last = walked.len.saturating_sub(1);
    let size = walked.size;
    for (i, &(gpa, old)) in walked.path.iter().take(walked.len).enumerate() {
        let mut new = old | ACCESSED;
        if i == last && write {
            new |= DIRTY;
            walked.translation.dirty = true;
        }
        if new != old {
            let swapped = mem
                .cmpxchg_entry(gpa, size, old, new)
                .map_err(|error| Fault::Memory { gpa, error })?;
            if !swapped {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// True if the PAE page-directory-pointer entry `pdpte` may be loaded: a present one has no
/// reserved bit set (SDM 4.4.1). MOV to CR3 and its kin raise #GP(0) otherwise, where the processor
/// holds these entries.
pub const fn pdpte_valid(pdpte: u64, maxphyaddr: u8) -> bool {
    pdpte & PRESENT == 0 || pdpte & entry::pdpte_reserved(maxphyaddr) == 0
}
