// SPDX-License-Identifier: GPL-2.0

//! The fields of the VMCS, by width and access.
//!
//! Intel SDM vol. 3D, appendix B. Pure. The guest's own state is not here but in [`super::mirror`].

use core::marker::PhantomData;

/// A field's width; natural width is 64 bits here.
pub(crate) trait Width: Copy {
    /// For VMWRITE.
    fn widen(self) -> u64;
    /// From VMREAD, which gives zeroes above the width.
    fn narrow(v: u64) -> Self;
}

macro_rules! width {
    ($($ty:ty, $mask:literal;)*) => { $(
        impl Width for $ty {
            #[inline]
            fn widen(self) -> u64 {
                u64::from(self)
            }
            #[inline]
            fn narrow(v: u64) -> Self {
                (v & $mask) as $ty
            }
        }
    )* };
}

width! {
    u16, 0xffff;
    u32, 0xffff_ffff;
    u64, 0xffff_ffff_ffff_ffff;
}

/// Can be written.
pub(crate) struct Rw;
/// Read-only: what an exit says.
pub(crate) struct Ro;

/// A field of width `W`.
pub(crate) struct Field<W, A> {
    encoding: u32,
    _is: PhantomData<(W, A)>,
}

impl<W, A> Field<W, A> {
    const fn new(encoding: u32) -> Self {
        Self {
            encoding,
            _is: PhantomData,
        }
    }

    /// As VMREAD and VMWRITE take it.
    #[inline]
    pub(crate) const fn encoding(&self) -> u32 {
        self.encoding
    }
}

/// The EOI-exit bitmap, the lowest vectors first.
pub(crate) const EOI_EXITS: [Field<u64, Rw>; 4] = [EOI_EXIT_0, EOI_EXIT_1, EOI_EXIT_2, EOI_EXIT_3];

macro_rules! fields {
    ($($(#[$meta:meta])* $name:ident: $w:ty, $a:ty = $n:literal;)*) => { $(
        $(#[$meta])*
        pub(crate) const $name: Field<$w, $a> = Field::new($n);
    )*
        /// All, for tests: encoding, width in bytes, read-only.
        #[cfg(test)]
        pub(crate) const ALL: &[(u32, usize, bool, &str)] = &[$(
            ($n, size_of::<$w>(), matches!(stringify!($a).as_bytes(), b"Ro"), stringify!($name)),
        )*];
    };
}

fields! {
    /// Virtual-processor identifier
    VPID: u16, Rw = 0x0000;

    /// Guest interrupt status
    INTERRUPT_STATUS: u16, Rw = 0x0810;
    /// PML index
    PML_INDEX: u16, Rw = 0x0812;

    /// Host ES selector
    HOST_ES: u16, Rw = 0x0c00;
    /// Host CS selector
    HOST_CS: u16, Rw = 0x0c02;
    /// Host SS selector
    HOST_SS: u16, Rw = 0x0c04;
    /// Host DS selector
    HOST_DS: u16, Rw = 0x0c06;
    /// Host FS selector
    HOST_FS: u16, Rw = 0x0c08;
    /// Host GS selector
    HOST_GS: u16, Rw = 0x0c0a;
    /// Host TR selector
    HOST_TR: u16, Rw = 0x0c0c;

    /// Address of MSR bitmaps
    MSR_BITMAP: u64, Rw = 0x2004;
    /// PML address
    PML_ADDRESS: u64, Rw = 0x200e;
    /// TSC offset
    TSC_OFFSET: u64, Rw = 0x2010;
    /// Virtual-APIC address
    VIRTUAL_APIC: u64, Rw = 0x2012;
    /// EPT pointer
    EPTP: u64, Rw = 0x201a;
    /// EOI-exit bitmap 0
    EOI_EXIT_0: u64, Rw = 0x201c;
    /// EOI-exit bitmap 1
    EOI_EXIT_1: u64, Rw = 0x201e;
    /// EOI-exit bitmap 2
    EOI_EXIT_2: u64, Rw = 0x2020;
    /// EOI-exit bitmap 3
    EOI_EXIT_3: u64, Rw = 0x2022;
    /// TSC multiplier
    TSC_MULTIPLIER: u64, Rw = 0x2032;
    /// Guest-physical address
    GUEST_PHYSICAL: u64, Ro = 0x2400;
    /// VMCS link pointer
    LINK_POINTER: u64, Rw = 0x2800;
    /// Host IA32_PAT
    HOST_PAT: u64, Rw = 0x2c00;
    /// Host IA32_EFER
    HOST_EFER: u64, Rw = 0x2c02;

    /// Pin-based VM-execution controls
    PIN: u32, Rw = 0x4000;
    /// Primary processor-based VM-execution controls
    PROC: u32, Rw = 0x4002;
    /// Exception bitmap
    EXCEPTIONS: u32, Rw = 0x4004;
    /// Page-fault error-code mask
    PF_MASK: u32, Rw = 0x4006;
    /// Page-fault error-code match
    PF_MATCH: u32, Rw = 0x4008;
    /// CR3-target count
    CR3_TARGETS: u32, Rw = 0x400a;
    /// Primary VM-exit controls
    EXIT: u32, Rw = 0x400c;
    /// VM-exit MSR-store count
    EXIT_STORES: u32, Rw = 0x400e;
    /// VM-exit MSR-load count
    EXIT_LOADS: u32, Rw = 0x4010;
    /// VM-entry controls
    ENTRY: u32, Rw = 0x4012;
    /// VM-entry MSR-load count
    ENTRY_LOADS: u32, Rw = 0x4014;
    /// VM-entry interruption-information field
    ENTRY_EVENT: u32, Rw = 0x4016;
    /// VM-entry exception error code
    ENTRY_ERROR: u32, Rw = 0x4018;
    /// VM-entry instruction length
    ENTRY_LENGTH: u32, Rw = 0x401a;
    /// TPR threshold
    TPR_THRESHOLD: u32, Rw = 0x401c;
    /// Secondary processor-based VM-execution controls
    PROC2: u32, Rw = 0x401e;
    /// PLE_Gap
    PLE_GAP: u32, Rw = 0x4020;
    /// PLE_Window
    PLE_WINDOW: u32, Rw = 0x4022;
    /// VM-instruction error
    INSTRUCTION_ERROR: u32, Ro = 0x4400;
    /// VM-exit interruption error code
    EXIT_ERROR: u32, Ro = 0x4406;
    /// IDT-vectoring information field
    VECTORING: u32, Ro = 0x4408;
    /// IDT-vectoring error code
    VECTORING_ERROR: u32, Ro = 0x440a;
    /// VM-exit instruction length
    EXIT_LENGTH: u32, Ro = 0x440c;
    /// VMX-preemption timer value
    TIMER: u32, Rw = 0x482e;
    /// Host IA32_SYSENTER_CS
    HOST_SYSENTER_CS: u32, Rw = 0x4c00;

    /// CR0 guest/host mask
    CR0_MASK: u64, Rw = 0x6000;
    /// CR4 guest/host mask
    CR4_MASK: u64, Rw = 0x6002;
    /// Exit qualification
    QUALIFICATION: u64, Ro = 0x6400;
    /// Host CR0
    HOST_CR0: u64, Rw = 0x6c00;
    /// Host CR3
    HOST_CR3: u64, Rw = 0x6c02;
    /// Host CR4
    HOST_CR4: u64, Rw = 0x6c04;
    /// Host FS base
    HOST_FS_BASE: u64, Rw = 0x6c06;
    /// Host GS base
    HOST_GS_BASE: u64, Rw = 0x6c08;
    /// Host TR base
    HOST_TR_BASE: u64, Rw = 0x6c0a;
    /// Host GDTR base
    HOST_GDTR_BASE: u64, Rw = 0x6c0c;
    /// Host IDTR base
    HOST_IDTR_BASE: u64, Rw = 0x6c0e;
    /// Host IA32_SYSENTER_ESP
    HOST_SYSENTER_ESP: u64, Rw = 0x6c10;
    /// Host IA32_SYSENTER_EIP
    HOST_SYSENTER_EIP: u64, Rw = 0x6c12;
    /// Host RIP
    HOST_RIP: u64, Rw = 0x6c16;
}
