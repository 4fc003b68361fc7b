// SPDX-License-Identifier: GPL-2.0

//! Bytes to requests: numbers at the ends of their ranges, and structures that are as the state now
//! is but for some fields.

/// Takes numbers from the input; zeros when it has ended.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&b, rest)) => {
                self.0 = rest;
                b
            }
            None => 0,
        }
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Few bytes make the numbers that limits are made of.
    pub(super) fn u64(&mut self) -> u64 {
        let how = self.u8();
        let n = u64::from(self.u8());
        match how >> 5 {
            0 => n,
            1 => n.wrapping_neg(),
            2 => 1u64.rotate_left(u32::from(how)).wrapping_add(n),
            3 => 1u64.rotate_left(n as u32).wrapping_sub(1),
            4 => (n << 12) | u64::from(how & 0x1f),
            5 => (n << 12).wrapping_sub(u64::from(how & 0x1f)),
            6 => u64::from(self.u16()) << (how & 0x1f) | n,
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.u8())),
        }
    }

    pub(super) fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    /// Below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.u16()) % n
    }
}

/// An integer of any width.
pub(super) trait Word {
    fn get(&self) -> u64;
    fn set(&mut self, v: u64);
}

/// A structure of integers.
pub(super) trait Fields {
    /// Shows each to `f`, in order.
    fn each(&mut self, f: &mut dyn FnMut(&mut dyn Word));
}

macro_rules! words {
    ($($t:ty)*) => {$(
        impl Word for $t {
            fn get(&self) -> u64 {
                *self as u64
            }
            fn set(&mut self, v: u64) {
                *self = v as $t;
            }
        }
        impl Fields for $t {
            fn each(&mut self, f: &mut dyn FnMut(&mut dyn Word)) {
                f(self);
            }
        }
    )*};
}
words!(u8 i8 u16 u32 u64);

impl<T: Fields, const N: usize> Fields for [T; N] {
    fn each(&mut self, f: &mut dyn FnMut(&mut dyn Word)) {
        for v in self {
            v.each(f);
        }
    }
}

/// Which fields a structure of the uapi has.
macro_rules! fields {
    ($($t:ident { $($field:ident)* })*) => {$(
        impl Fields for kvm_bindings::$t {
            fn each(&mut self, f: &mut dyn FnMut(&mut dyn Word)) {
                $(self.$field.each(f);)*
            }
        }
    )*};
}
fields! {
    kvm_segment { base limit selector type_ present dpl db s l g avl unusable padding }
    kvm_dtable { base limit padding }
    kvm_sregs {
        cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap
    }
    kvm_sregs2 {
        cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base flags pdptrs
    }
    kvm_debugregs { db dr6 dr7 flags reserved }
    kvm_xcr { xcr reserved value }
    kvm_xcrs { nr_xcrs flags xcrs padding }
    kvm_fpu {
        fpr fcw fsw ftwx pad1 last_opcode last_ip last_dp xmm mxcsr pad2
    }
    kvm_vcpu_events__bindgen_ty_1 { injected nr has_error_code pending error_code }
    kvm_vcpu_events__bindgen_ty_2 { injected nr soft shadow }
    kvm_vcpu_events__bindgen_ty_3 { injected pending masked pad }
    kvm_vcpu_events__bindgen_ty_4 { smm pending smm_inside_nmi latched_init }
    kvm_vcpu_events__bindgen_ty_5 { pending }
    kvm_vcpu_events {
        exception interrupt nmi sipi_vector flags smi triple_fault reserved exception_has_payload
        exception_payload
    }
    kvm_cpuid_entry2 { function index flags eax ebx ecx edx padding }
    kvm_clock_data { clock flags pad0 realtime host_tsc pad }
    kvm_enable_cap { cap flags args pad }
}

/// All words of a structure.
pub(super) fn words<T: Fields>(mut v: T) -> Vec<u64> {
    let mut out = Vec::new();
    v.each(&mut |w| out.push(w.get()));
    out
}

/// Replaces some words of a structure by what the input says: up to 15 of them, or all.
pub(super) fn patch<T: Fields>(v: &mut T, i: &mut Input<'_>) {
    let how = i.u8();
    if how == u8::MAX {
        v.each(&mut |w| w.set(i.u64()));
        return;
    }
    let mut n = 0;
    v.each(&mut |_| n += 1);
    for _ in 0..how & 0xf {
        let (at, value, mut k) = (i.below(n), i.u64(), 0);
        v.each(&mut |w| {
            if k == at {
                w.set(value);
            }
            k += 1;
        });
    }
}

/// The same for bytes, in runs.
pub(super) fn patch_bytes(bytes: &mut [u8], i: &mut Input<'_>) {
    for _ in 0..i.u8() & 0xf {
        let at = i.below(bytes.len());
        let run = i.u64().to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(at).zip(run) {
            *to = from;
        }
    }
}
