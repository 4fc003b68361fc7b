// SPDX-License-Identifier: GPL-2.0

//! Memory of ours that a guest uses.

use std::ptr;

/// A mapping of this process, at `gpa` in the guest. The guest writes to it at any time, so it is only ever copied from and to.
#[derive(Debug)]
pub struct Ram {
    ptr: *mut u8,
    len: usize,
    /// Where the guest sees it.
    pub gpa: u64,
}

// SAFETY: accesses are copies through raw pointers; concurrent ones give at worst old or torn bytes, as in hardware.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Private anonymous memory.
    pub fn anon(gpa: u64, len: usize) -> Ram {
        Ram::map(
            gpa,
            len,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )
        .expect("mmap")
    }

    /// What `mmap` gives with `flags` and `fd`.
    ///
    /// # Errors
    /// Those of `mmap`.
    pub fn map(gpa: u64, len: usize, flags: i32, fd: i32) -> std::io::Result<Ram> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Ram {
            ptr: p.cast(),
            len,
            gpa,
        })
    }

    /// Anonymous memory aligned to `align`, a power of two.
    pub fn aligned(gpa: u64, len: usize, align: usize) -> Ram {
        let whole = Ram::anon(gpa, len + align);
        let start = (whole.ptr as usize + align - 1) & !(align - 1);
        let head = start - whole.ptr as usize;
        // SAFETY: both ends lie in the mapping just made, which nothing else knows of.
        unsafe {
            if head > 0 {
                libc::munmap(whole.ptr.cast(), head);
            }
            libc::munmap((start + len) as *mut _, align - head);
        }
        std::mem::forget(whole);
        Ram {
            ptr: start as *mut u8,
            len,
            gpa,
        }
    }

    /// The address in this process.
    pub fn addr(&self) -> u64 {
        self.ptr as u64
    }

    /// The address as `mmap` and its relatives take it, `off` bytes in.
    pub fn at(&self, off: usize) -> *mut libc::c_void {
        assert!(off <= self.len);
        // SAFETY: within the mapping, or one past its end.
        unsafe { self.ptr.add(off) }.cast()
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    fn place(&self, gpa: u64, len: usize) -> *mut u8 {
        let off =
            usize::try_from(gpa.checked_sub(self.gpa).expect("below the memory")).expect("fits");
        assert!(off + len <= self.len, "{gpa:#x} is past the memory");
        // SAFETY: within the mapping.
        unsafe { self.ptr.add(off) }
    }

    /// Copies bytes to the guest.
    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        let to = self.place(gpa, bytes.len());
        // SAFETY: `place` has checked the range; a slice of ours is no part of guest memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies bytes from the guest.
    pub fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        let from = self.place(gpa, len);
        let mut v = vec![0; len];
        // SAFETY: as in `put`.
        unsafe { ptr::copy_nonoverlapping(from, v.as_mut_ptr(), len) }
        v
    }

    /// One value, little endian.
    pub fn u64(&self, gpa: u64) -> u64 {
        // SAFETY: `place` has checked the range.
        unsafe { self.place(gpa, 8).cast::<u64>().read_volatile_unaligned() }
    }

    /// One value, little endian.
    pub fn u32(&self, gpa: u64) -> u32 {
        self.u64_or_less(gpa, 4) as u32
    }

    /// One byte.
    pub fn u8(&self, gpa: u64) -> u8 {
        self.u64_or_less(gpa, 1) as u8
    }

    fn u64_or_less(&self, gpa: u64, len: usize) -> u64 {
        let p = self.place(gpa, len);
        // SAFETY: `place` has checked the range.
        unsafe {
            match len {
                1 => u64::from(p.read_volatile()),
                _ => u64::from(p.cast::<u32>().read_volatile_unaligned()),
            }
        }
    }

    /// Writes one value, little endian.
    pub fn set64(&self, gpa: u64, v: u64) {
        self.put(gpa, &v.to_le_bytes());
    }

    /// Writes one value, little endian.
    pub fn set32(&self, gpa: u64, v: u32) {
        self.put(gpa, &v.to_le_bytes());
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping; a guest that uses it still finds nothing there.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

trait VolatileUnaligned {
    type T;
    unsafe fn read_volatile_unaligned(self) -> Self::T;
}

impl VolatileUnaligned for *mut u64 {
    type T = u64;
    unsafe fn read_volatile_unaligned(self) -> u64 {
        if self.is_aligned() {
            // SAFETY: the caller's promise; aligned.
            unsafe { self.read_volatile() }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.read_unaligned() }
        }
    }
}

impl VolatileUnaligned for *mut u32 {
    type T = u32;
    unsafe fn read_volatile_unaligned(self) -> u32 {
        if self.is_aligned() {
            // SAFETY: the caller's promise; aligned.
            unsafe { self.read_volatile() }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.read_unaligned() }
        }
    }
}
