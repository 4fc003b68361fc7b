// SPDX-License-Identifier: GPL-2.0

//! File descriptors of our own: anonymous ones for VMs and vCPUs, and the device nodes.
//!
//! A type that implements [`Fd`] becomes the object behind a file; the file holds one reference
//! (`Arc`) and the module is pinned as long as any file lives.

use super::trace;
use crate::bindings as rb;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_long, c_uint, c_ulong},
    mm::virt::VmaNew,
    module::this_module,
    prelude::*,
    str::CStr,
    sync::Arc,
    types::{ForeignOwnable, Opaque},
};

/// What stands behind a file descriptor.
pub(crate) trait Fd: Send + Sync + 'static {
    /// Answers an ioctl. `cmd` is the whole request code; `arg` is the caller's, not checked.
    ///
    /// # Errors
    /// `ENOTTY` for a request that this kind of descriptor does not know; the rest as each
    /// request documents.
    fn ioctl(this: &Arc<Self>, cmd: u32, arg: usize) -> Result<isize>;

    /// Maps the object's shared pages.
    ///
    /// # Errors
    /// `ENODEV` where there is nothing to map, which is the default.
    fn mmap(_this: &Arc<Self>, _vma: &VmaNew) -> Result {
        Err(ENODEV)
    }

    /// The last file is closed.
    fn release(_this: &Arc<Self>) {}
}

/// The `file_operations` of a type, built at compile time.
struct Table<T: Fd>(PhantomData<T>);

impl<T: Fd> Table<T> {
    const OPS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<crate::LocalModule>().as_ptr(),
        release: Some(Self::release),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        mmap: Some(Self::mmap),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    };

    /// Runs `f` with the object of an open file.
    ///
    /// # Safety
    /// `file` must be an open file with these operations whose private data came from
    /// `Arc::<T>::into_foreign`.
    unsafe fn with<R>(file: *mut bindings::file, f: impl FnOnce(&Arc<T>) -> R) -> R {
        // SAFETY: By the requirement; the file keeps its reference until `release`.
        let borrowed = unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) };
        let arc: Arc<T> = borrowed.into();
        f(&arc)
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The kernel calls this on an open file only, whose private data `open` set.
        match unsafe { Self::with(file, |this| T::ioctl(this, cmd, arg)) } {
            Ok(v) => v as c_long,
            Err(e) => trace::explain(e).to_errno() as c_long,
        }
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The kernel passes a new VMA, not yet visible to anyone else.
        let vma = unsafe { VmaNew::from_raw(vma) };
        // SAFETY: As in `ioctl`.
        match unsafe { Self::with(file, |this| T::mmap(this, vma)) } {
            Ok(()) => 0,
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The kernel calls this once, when the last reference of the file goes; the private
        // data is the reference that the file owns.
        let this = unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*file).private_data) };
        T::release(&this);
        0
    }
}

/// A file of an object, not yet given to anyone.
pub(crate) struct NewFile {
    file: *mut bindings::file,
    fd: c_int,
}

impl NewFile {
    /// Makes a file of `object` and reserves a descriptor, close-on-exec, read-write.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`
    pub(crate) fn new<T: Fd>(name: &'static CStr, object: Arc<T>) -> Result<Self> {
        let flags = bindings::O_RDWR | bindings::O_CLOEXEC;
        // SAFETY: No requirement on the flags.
        let fd = unsafe { bindings::get_unused_fd_flags(flags) };
        to_result(fd)?;
        let ptr = Arc::into_foreign(object);
        // SAFETY: The name is static, the operations live as long as the module, which they pin;
        // `ptr` is what they expect as private data.
        let file = unsafe {
            rb::rkvm_anon_file(
                name.as_char_ptr(),
                core::ptr::from_ref(&Table::<T>::OPS),
                ptr,
                flags as c_int,
            )
        };
        let e = kernel::error::from_err_ptr(file);
        match e {
            Ok(file) => Ok(Self { file, fd }),
            Err(e) => {
                // SAFETY: No file took `ptr` over.
                drop(unsafe { <Arc<T> as ForeignOwnable>::from_foreign(ptr) });
                // SAFETY: `fd` was reserved above and no file is behind it.
                unsafe { bindings::put_unused_fd(fd as c_uint) };
                Err(e)
            }
        }
    }

    /// The number that the descriptor will have.
    pub(crate) fn fd(&self) -> i32 {
        self.fd
    }

    /// Gives the file to user space; the number is the descriptor.
    pub(crate) fn install(self) -> isize {
        let fd = self.fd;
        // SAFETY: `fd` is reserved, `file` is a reference that we own and hand over here.
        unsafe { bindings::fd_install(fd as c_uint, self.file) };
        core::mem::forget(self);
        fd as isize
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // SAFETY: The descriptor was never installed and the file reference is ours.
        unsafe {
            bindings::put_unused_fd(self.fd as c_uint);
            bindings::fput(self.file);
        }
    }
}

/// What opening a device node makes.
pub(crate) trait Node: Fd {
    /// A new object for an opener.
    ///
    /// # Errors
    /// `ENOMEM`
    fn open() -> Result<Arc<Self>>;
}

/// A registered device node; it disappears when this is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct DeviceNode<T: Node> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    _t: PhantomData<T>,
}

// SAFETY: Nothing but the registration is in it; deregistering is allowed on any thread.
unsafe impl<T: Node> Send for DeviceNode<T> {}
// SAFETY: There is no access through a shared reference.
unsafe impl<T: Node> Sync for DeviceNode<T> {}

impl<T: Node> DeviceNode<T> {
    const OPS: bindings::file_operations = bindings::file_operations {
        open: Some(Self::open),
        ..Table::<T>::OPS
    };

    /// # Safety
    /// For the kernel to call, as the C prototype says.
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        match T::open() {
            Ok(object) => {
                // SAFETY: The kernel hands us the new file; its private data is ours to set (it held
                // the miscdevice, which we do not use).
                unsafe { (*file).private_data = Arc::into_foreign(object) };
                0
            }
            Err(e) => e.to_errno(),
        }
    }

    /// Registers a node; `minor` is fixed, or any where `None`. Mode 0600 until udev says otherwise.
    ///
    /// # Errors
    /// `EBUSY` when the minor is taken.
    pub(crate) fn register(name: &'static CStr, minor: Option<u8>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let mut misc: bindings::miscdevice = pin_init::zeroed();
                misc.minor = minor.map_or(bindings::MISC_DYNAMIC_MINOR as c_int, c_int::from);
                misc.name = name.as_char_ptr();
                misc.fops = core::ptr::from_ref(&Self::OPS);
                misc.mode = 0o600;
                // SAFETY: `slot` is valid for a write, and pinned from here on.
                unsafe { slot.write(misc) };
                // SAFETY: The structure is initialised; name and operations are static.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
            _t: PhantomData,
        }? Error)
    }
}

#[pinned_drop]
impl<T: Node> PinnedDrop for DeviceNode<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the initialiser; a `DeviceNode` exists only after that.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}
