// SPDX-License-Identifier: GPL-2.0

//! Guest memory as x86 sees it: page walks, linear addresses, instruction fetch.

use super::{
    backend::{Backend, HwVcpu},
    model::{
        regs::{Exception, Seg},
        walk::{self, Access, EntrySize, Fault, GuestPhys, Kind, Translation},
    },
    vcpu::Vcpu,
};
use crate::memory::{GuestAccess, View};

/// Guest-physical memory for a page walk.
pub(crate) struct Phys<'a, 'v> {
    view: &'a View<'v>,
    /// Page faults of the host may be taken (outside of a guest section).
    sleep: bool,
}

impl<'a, 'v> Phys<'a, 'v> {
    /// For use outside of guest sections.
    pub(crate) fn sleeping(view: &'a View<'v>) -> Self {
        Self { view, sleep: true }
    }

    /// For use in a guest section: what is not in memory right now fails.
    pub(crate) fn quick(view: &'a View<'v>) -> Self {
        Self { view, sleep: false }
    }

    /// Reads guest-physical memory.
    #[inline]
    pub(crate) fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), GuestAccess> {
        if self.sleep {
            self.view.read(gpa, buf)
        } else {
            self.view.read_nofault(gpa, buf)
        }
    }

    /// Writes guest-physical memory.
    #[inline]
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GuestAccess> {
        if self.sleep {
            self.view.write(gpa, bytes)
        } else {
            self.view.write_nofault(gpa, bytes)
        }
    }
}

impl GuestPhys for Phys<'_, '_> {
    type Error = GuestAccess;

    #[inline]
    fn read_entry(&mut self, gpa: u64, size: EntrySize) -> Result<u64, GuestAccess> {
        match size {
            EntrySize::Dword => {
                let mut b = [0; 4];
                self.read(gpa, &mut b)?;
                Ok(u64::from(u32::from_le_bytes(b)))
            }
            EntrySize::Qword => {
                let mut b = [0; 8];
                self.read(gpa, &mut b)?;
                Ok(u64::from_le_bytes(b))
            }
        }
    }

    fn cmpxchg_entry(
        &mut self,
        gpa: u64,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<bool, GuestAccess> {
        let bytes = match size {
            EntrySize::Dword => 4,
            EntrySize::Qword => 8,
        };
        if !self.sleep {
            // Rare (code that just ran has its accessed bits set): leave it to the slow way.
            return Err(GuestAccess::Fault);
        }
        Ok(self.view.compare_exchange(gpa, bytes, old, new)? == old)
    }
}

/// Why an instruction could not be fetched, or its operand not be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Miss {
    /// The guest gets this.
    Exception(Exception),
    /// Page tables or code are not in memory: an MMIO fetch, or a slot whose backing is gone.
    Memory {
        /// Where, guest-physical.
        gpa: u64,
        /// Why.
        error: GuestAccess,
    },
    /// Try again.
    Busy,
}

impl From<Fault<GuestAccess>> for Miss {
    fn from(f: Fault<GuestAccess>) -> Self {
        match f {
            Fault::Page { code, addr } => Miss::Exception(Exception::pf(code, addr)),
            Fault::Memory { gpa, error } => Miss::Memory { gpa, error },
            Fault::Busy => Miss::Busy,
        }
    }
}

impl<B: Backend> Vcpu<B> {
    /// Translates a linear address.
    #[inline]
    pub(crate) fn translate(
        &self,
        phys: &mut Phys<'_, '_>,
        la: u64,
        access: Access,
    ) -> Result<Translation, Miss> {
        Ok(walk::translate(&self.paging(), phys, la, access)?)
    }

    /// The page-directory pointers of PAE paging, for hardware that holds them: those of user space as long
    /// as CR3 is what it was then, else from memory. Those that may not be loaded are as if not present.
    ///
    /// # Errors
    /// They are not to be read (now).
    pub(crate) fn load_pdptes(&mut self, phys: &Phys<'_, '_>) -> Result<(), GuestAccess> {
        /// CR3 under PAE paging: 32 bits, 32-byte aligned.
        const ADDRESS: u64 = 0xffff_ffe0;
        let cr3 = self.hw.cr3();
        let v = match self.pdptes {
            Some((of, v)) if of == cr3 => v,
            _ => {
                let mut bytes = [0; 32];
                phys.read(cr3 & ADDRESS, &mut bytes)?;
                let mut v = [0; 4];
                for (d, s) in v.iter_mut().zip(bytes.chunks_exact(8)) {
                    *d = s.try_into().map_or(0, u64::from_le_bytes);
                }
                v
            }
        };
        let width = self.features.maxphyaddr;
        self.hw
            .set_pdptes(&v.map(|e| match walk::pdpte_valid(e, width) {
                true => e,
                false => 0,
            }));
        Ok(())
    }

    /// The linear address of the instruction at RIP.
    #[inline]
    pub(crate) fn code_address(&self) -> u64 {
        if self.is_64bit() {
            self.hw.rip()
        } else {
            self.hw.segment(Seg::Cs).base.wrapping_add(self.hw.rip()) & 0xffff_ffff
        }
    }

    /// Fetches instruction bytes from `la` on, up to the end of the page or of `buf`; returns how
    /// many.
    #[inline]
    pub(crate) fn fetch(
        &self,
        phys: &mut Phys<'_, '_>,
        la: u64,
        buf: &mut [u8],
    ) -> Result<usize, Miss> {
        let t = self.translate(phys, la, Access::at_cpl(Kind::Fetch, self.hw.cpl()))?;
        let in_page = 0x1000 - (la & 0xfff);
        let n = usize::try_from(in_page).unwrap_or(0).min(buf.len());
        if let Some(b) = buf.get_mut(..n) {
            phys.read(t.gpa, b)
                .map_err(|error| Miss::Memory { gpa: t.gpa, error })?;
        }
        Ok(n)
    }
}
