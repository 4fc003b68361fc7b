// SPDX-License-Identifier: GPL-2.0

//! The table of feature bits.
//!
//! A row says where a bit is and on what terms a guest gets it. Documentation and
//! [`Supported`](super::Supported) are made from it.

use super::super::xstate::{AVX512, YMM};
use super::{Cap, Reg, Regs};

/// On what terms a guest is offered a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// If the host's processor has it: it works in a guest with nothing to do for a hypervisor.
    Host,
    /// If the host has it, and the backend or the shell provides `Cap`.
    HostWith(Cap),
    /// If the host has it, and guests get these XCR0 components.
    HostState(u64),
    /// If the host has it, or `Cap` says that it holds although the host's CPUID is silent.
    HostOr(Cap),
    /// Always: emulated here, whatever the host has.
    Emulated,
    /// If the shell provides `Cap`: emulated, whatever the host has.
    EmulatedWith(Cap),
    /// Shows state of the guest (e.g. CR4.OSXSAVE), set when CPUID is executed.
    Runtime,
    /// Never: it would need support that does not exist (yet).
    Hidden,
}

/// A row: where a feature bit is, and its terms.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// The name, as Linux's /proc/cpuinfo or the vendor's manual has it.
    pub name: &'static str,
    /// Leaf.
    pub leaf: u32,
    /// Sub-leaf, for leaves that have them, else 0.
    pub subleaf: u32,
    /// Register.
    pub reg: Reg,
    /// Bit number.
    pub bit: u8,
    /// Terms.
    pub policy: Policy,
}

impl Info {
    /// The bit as a mask.
    #[inline]
    pub const fn mask(&self) -> u32 {
        1 << (self.bit & 31)
    }

    /// The bit is set in `regs` (those of the row's leaf and sub-leaf).
    #[inline]
    pub const fn in_regs(&self, regs: &Regs) -> bool {
        regs.get(self.reg) & self.mask() != 0
    }
}

macro_rules! features {
    ($( leaf $leaf:literal . $sub:literal $reg:ident {
        $( $bit:literal $id:ident $name:literal $policy:expr; )*
    } )*) => {
        /// A feature bit of CPUID. The number is the row in [`TABLE`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Feature {
            $( $(
                #[doc = concat!("`", $name, "`: leaf ", stringify!($leaf), ".", stringify!($sub),
                    " ", stringify!($reg), " bit ", stringify!($bit))]
                $id,
            )* )*
        }

        /// Every feature known, in order of leaf, sub-leaf, register and bit.
        pub static TABLE: [Info; COUNT] = [
            $( $( Info {
                name: $name, leaf: $leaf, subleaf: $sub, reg: Reg::$reg, bit: $bit, policy: $policy,
            }, )* )*
        ];

        /// All of them, by row.
        pub static ALL: [Feature; COUNT] = [ $( $( Feature::$id, )* )* ];

        /// How many there are.
        pub const COUNT: usize = [ $( $( $bit as u8, )* )* ].len();
    };
}

use Policy::{Emulated, EmulatedWith, Hidden, Host, HostOr, HostState, HostWith, Runtime};

/// AVX needs the upper halves of YMM to be switched.
const AVX_STATE: Policy = HostState(YMM);
/// AVX-512 needs its three components too.
const AVX512_STATE: Policy = HostState(YMM | AVX512);

features! {
    leaf 1 . 0 Ecx {
        0  Sse3 "pni" Host;
        1  Pclmulqdq "pclmulqdq" Host;
        2  Dtes64 "dtes64" Hidden;
        3  Monitor "monitor" Hidden;
        5  Vmx "vmx" Hidden;
        6  Smx "smx" Hidden;
        9  Ssse3 "ssse3" Host;
        12 Fma "fma" AVX_STATE;
        13 Cx16 "cx16" Host;
        15 Pdcm "pdcm" Hidden;
        17 Pcid "pcid" Host;
        19 Sse41 "sse4_1" Host;
        20 Sse42 "sse4_2" Host;
        21 X2apic "x2apic" Emulated;
        22 Movbe "movbe" Host;
        23 Popcnt "popcnt" Host;
        24 TscDeadline "tsc_deadline_timer" Emulated;
        25 Aes "aes" Host;
        26 Xsave "xsave" HostWith(Cap::Xsave);
        27 Osxsave "osxsave" Runtime;
        28 Avx "avx" AVX_STATE;
        29 F16c "f16c" AVX_STATE;
        30 Rdrand "rdrand" Host;
        31 Hypervisor "hypervisor" Emulated;
    }
    leaf 1 . 0 Edx {
        0  Fpu "fpu" Host;
        1  Vme "vme" Host;
        2  De "de" Host;
        3  Pse "pse" Host;
        4  Tsc "tsc" Host;
        5  Msr "msr" Host;
        6  Pae "pae" Host;
        7  Mce "mce" Emulated;
        8  Cx8 "cx8" Host;
        9  Apic "apic" Emulated;
        11 Sep "sep" Host;
        12 Mtrr "mtrr" Emulated;
        13 Pge "pge" Host;
        14 Mca "mca" Emulated;
        15 Cmov "cmov" Host;
        16 Pat "pat" Host;
        17 Pse36 "pse36" Host;
        19 Clflush "clflush" Host;
        21 Ds "dts" Hidden;
        23 Mmx "mmx" Host;
        24 Fxsr "fxsr" Host;
        25 Sse "sse" Host;
        26 Sse2 "sse2" Host;
        27 Ss "ss" Host;
        28 Ht "ht" Hidden;
    }
    leaf 7 . 0 Ebx {
        0  Fsgsbase "fsgsbase" Host;
        1  TscAdjust "tsc_adjust" Emulated;
        2  Sgx "sgx" Hidden;
        3  Bmi1 "bmi1" Host;
        4  Hle "hle" Host;
        5  Avx2 "avx2" AVX_STATE;
        6  FdpExcptnOnly "fdp_excptn_only" Host;
        7  Smep "smep" Host;
        8  Bmi2 "bmi2" Host;
        9  Erms "erms" Host;
        10 Invpcid "invpcid" HostWith(Cap::Invpcid);
        11 Rtm "rtm" Host;
        13 ZeroFcsFds "zero_fcs_fds" Host;
        14 Mpx "mpx" Hidden;
        16 Avx512f "avx512f" AVX512_STATE;
        17 Avx512dq "avx512dq" AVX512_STATE;
        18 Rdseed "rdseed" Host;
        19 Adx "adx" Host;
        20 Smap "smap" Host;
        21 Avx512ifma "avx512ifma" AVX512_STATE;
        23 Clflushopt "clflushopt" Host;
        24 Clwb "clwb" Host;
        25 IntelPt "intel_pt" Hidden;
        26 Avx512pf "avx512pf" AVX512_STATE;
        27 Avx512er "avx512er" AVX512_STATE;
        28 Avx512cd "avx512cd" AVX512_STATE;
        29 ShaNi "sha_ni" Host;
        30 Avx512bw "avx512bw" AVX512_STATE;
        31 Avx512vl "avx512vl" AVX512_STATE;
    }
    leaf 7 . 0 Ecx {
        1  Avx512vbmi "avx512vbmi" AVX512_STATE;
        2  Umip "umip" Host;
        3  Pku "pku" HostWith(Cap::Pku);
        4  Ospke "ospke" Runtime;
        5  Waitpkg "waitpkg" HostWith(Cap::Waitpkg);
        6  Avx512vbmi2 "avx512_vbmi2" AVX512_STATE;
        7  Shstk "shstk" HostWith(Cap::Cet);
        8  Gfni "gfni" Host;
        9  Vaes "vaes" AVX_STATE;
        10 Vpclmulqdq "vpclmulqdq" AVX_STATE;
        11 Avx512vnni "avx512_vnni" AVX512_STATE;
        12 Avx512bitalg "avx512_bitalg" AVX512_STATE;
        14 Avx512vpopcntdq "avx512_vpopcntdq" AVX512_STATE;
        16 La57 "la57" HostWith(Cap::La57);
        22 Rdpid "rdpid" HostWith(Cap::TscAux);
        24 BusLockDetect "bus_lock_detect" Hidden;
        25 Cldemote "cldemote" Host;
        27 Movdiri "movdiri" Host;
        28 Movdir64b "movdir64b" Host;
        30 SgxLc "sgx_lc" Hidden;
    }
    leaf 7 . 0 Edx {
        2  Avx5124vnniw "avx512_4vnniw" AVX512_STATE;
        3  Avx5124fmaps "avx512_4fmaps" AVX512_STATE;
        4  Fsrm "fsrm" Host;
        8  Avx512vp2intersect "avx512_vp2intersect" AVX512_STATE;
        10 MdClear "md_clear" Host;
        14 Serialize "serialize" Host;
        16 Tsxldtrk "tsxldtrk" Host;
        20 Ibt "ibt" HostWith(Cap::Cet);
        22 AmxBf16 "amx_bf16" Hidden;
        23 Avx512fp16 "avx512_fp16" AVX512_STATE;
        24 AmxTile "amx_tile" Hidden;
        25 AmxInt8 "amx_int8" Hidden;
        26 SpecCtrl "spec_ctrl" HostWith(Cap::SpecCtrl);
        27 IntelStibp "intel_stibp" HostWith(Cap::SpecCtrl);
        28 FlushL1d "flush_l1d" HostWith(Cap::FlushCmd);
        29 ArchCapabilities "arch_capabilities" EmulatedWith(Cap::ArchCapabilities);
        31 SpecCtrlSsbd "ssbd" HostWith(Cap::SpecCtrl);
    }
    leaf 7 . 1 Eax {
        0  Sha512 "sha512" AVX_STATE;
        1  Sm3 "sm3" AVX_STATE;
        2  Sm4 "sm4" AVX_STATE;
        4  AvxVnni "avx_vnni" AVX_STATE;
        5  Avx512bf16 "avx512_bf16" AVX512_STATE;
        7  Cmpccxadd "cmpccxadd" Host;
        10 Fzrm "fzrm" Host;
        11 Fsrs "fsrs" Host;
        12 Fsrc "fsrc" Host;
        17 Fred "fred" Hidden;
        18 Lkgs "lkgs" Host;
        19 Wrmsrns "wrmsrns" Host;
        21 AmxFp16 "amx_fp16" Hidden;
        23 AvxIfma "avx_ifma" AVX_STATE;
        26 Lam "lam" Hidden;
    }
    leaf 7 . 1 Edx {
        4  AvxVnniInt8 "avx_vnni_int8" AVX_STATE;
        5  AvxNeConvert "avx_ne_convert" AVX_STATE;
        8  AmxComplex "amx_complex" Hidden;
        10 AvxVnniInt16 "avx_vnni_int16" AVX_STATE;
        14 Prefetchiti "prefetchiti" Host;
        19 Avx10 "avx10" Hidden;
    }
    leaf 7 . 2 Edx {
        0  IntelPsfd "intel_psfd" HostWith(Cap::SpecCtrl);
        1  IpredCtrl "ipred_ctrl" HostWith(Cap::SpecCtrl);
        2  RrsbaCtrl "rrsba_ctrl" HostWith(Cap::SpecCtrl);
        3  DdpdU "ddpd_u" HostWith(Cap::SpecCtrl);
        4  BhiCtrl "bhi_ctrl" HostWith(Cap::SpecCtrl);
        5  McdtNo "mcdt_no" Host;
    }
    leaf 0xd . 1 Eax {
        0  Xsaveopt "xsaveopt" HostWith(Cap::Xsave);
        1  Xsavec "xsavec" HostWith(Cap::Xsave);
        2  Xgetbv1 "xgetbv1" HostWith(Cap::Xsave);
        3  Xsaves "xsaves" HostWith(Cap::Xsaves);
        4  Xfd "xfd" Hidden;
    }
    leaf 0x8000_0001 . 0 Ecx {
        0  LahfLm "lahf_lm" Host;
        1  CmpLegacy "cmp_legacy" Host;
        2  Svm "svm" Hidden;
        3  Extapic "extapic" Hidden;
        4  Cr8Legacy "cr8_legacy" Host;
        5  Abm "abm" Host;
        6  Sse4a "sse4a" Host;
        7  Misalignsse "misalignsse" Host;
        8  Prefetchw "3dnowprefetch" Host;
        9  Osvw "osvw" Host;
        10 Ibs "ibs" Hidden;
        11 Xop "xop" AVX_STATE;
        12 Skinit "skinit" Hidden;
        13 Wdt "wdt" Hidden;
        15 Lwp "lwp" Hidden;
        16 Fma4 "fma4" AVX_STATE;
        17 Tce "tce" Hidden;
        21 Tbm "tbm" Host;
        22 Topoext "topoext" Host;
        23 PerfctrCore "perfctr_core" Hidden;
    }
    leaf 0x8000_0001 . 0 Edx {
        11 Syscall "syscall" Host;
        20 Nx "nx" Host;
        22 Mmxext "mmxext" Host;
        25 FxsrOpt "fxsr_opt" Host;
        26 Gbpages "pdpe1gb" Host;
        27 Rdtscp "rdtscp" HostWith(Cap::TscAux);
        29 Lm "lm" Host;
        30 Amd3dnowext "3dnowext" Host;
        31 Amd3dnow "3dnow" Host;
    }
    leaf 0x8000_0007 . 0 Edx {
        8  InvariantTsc "constant_tsc" Host;
    }
    leaf 0x8000_0008 . 0 Ebx {
        0  Clzero "clzero" Host;
        2  Xsaveerptr "xsaveerptr" Host;
        9  Wbnoinvd "wbnoinvd" Host;
        12 AmdIbpb "amd_ibpb" HostWith(Cap::PredCmd);
        14 AmdIbrs "amd_ibrs" HostWith(Cap::SpecCtrl);
        15 AmdStibp "amd_stibp" HostWith(Cap::SpecCtrl);
        17 AmdStibpAlwaysOn "amd_stibp_always_on" HostWith(Cap::SpecCtrl);
        19 AmdIbrsSameMode "amd_ibrs_same_mode" HostWith(Cap::SpecCtrl);
        20 EferLmsleMbz "efer_lmsle_mbz" Host;
        24 AmdSsbd "amd_ssbd" HostWith(Cap::SpecCtrl);
        25 VirtSsbd "virt_ssbd" Hidden;
        26 AmdSsbNo "amd_ssb_no" HostOr(Cap::SsbNo);
        28 AmdPsfd "amd_psfd" HostWith(Cap::SpecCtrl);
        30 AmdIbpbRet "amd_ibpb_ret" HostWith(Cap::PredCmd);
    }
    leaf 0x8000_0021 . 0 Eax {
        0  NoNestedDataBp "no_nested_data_bp" Host;
        1  WrmsrXxBaseNs "wrmsr_xx_base_ns" Host;
        2  LfenceSerializing "lfence_rdtsc" HostOr(Cap::LfenceSerializing);
        5  VerwClear "verw_clear" Host;
        6  NullSelClearsBase "null_sel_clr_base" HostOr(Cap::NullSelClearsBase);
        8  AutoIbrs "autoibrs" Host;
        9  NoSmmCtlMsr "no_smm_ctl_msr" Emulated;
        17 GpOnUserCpuid "gp_on_user_cpuid" EmulatedWith(Cap::CpuidFaulting);
        20 Prefetchi "prefetchi" Host;
        24 Eraps "eraps" Hidden;
        27 Sbpb "sbpb" HostWith(Cap::PredCmd);
        28 IbpbBrtype "ibpb_brtype" HostWith(Cap::PredCmd);
        29 SrsoNo "srso_no" Host;
        30 SrsoUserKernelNo "srso_user_kernel_no" Host;
    }
    leaf 0x8000_0021 . 0 Ecx {
        1  TsaSqNo "tsa_sq_no" Host;
        2  TsaL1No "tsa_l1_no" Host;
    }
}

impl Feature {
    /// The feature's row.
    #[inline]
    pub fn info(self) -> &'static Info {
        // The enum and the table are made by one macro: the row exists.
        TABLE.get(self as usize).unwrap_or(&TABLE[0])
    }
}

const WORDS: usize = COUNT.div_ceil(64);

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u64; WORDS]);

impl FeatureSet {
    /// No feature.
    pub const EMPTY: FeatureSet = FeatureSet([0; WORDS]);

    /// The feature is in the set.
    #[inline]
    pub const fn has(&self, f: Feature) -> bool {
        let n = f as usize;
        n < COUNT && self.0[n / 64] & (1 << (n % 64)) != 0
    }

    /// Any of them is in the set.
    #[inline]
    pub fn has_any(&self, fs: &[Feature]) -> bool {
        fs.iter().any(|&f| self.has(f))
    }

    /// Adds or removes a feature.
    #[inline]
    pub const fn set(&mut self, f: Feature, on: bool) {
        let n = f as usize;
        if n < COUNT {
            let bit = 1 << (n % 64);
            if on {
                self.0[n / 64] |= bit;
            } else {
                self.0[n / 64] &= !bit;
            }
        }
    }

    /// The features that are in both.
    pub fn and(&self, other: &FeatureSet) -> FeatureSet {
        let mut r = *self;
        for (a, b) in r.0.iter_mut().zip(other.0) {
            *a &= b;
        }
        r
    }

    /// The bits that the set has in one register of one (sub-)leaf.
    pub fn register(&self, leaf: u32, subleaf: u32, reg: Reg) -> u32 {
        ALL.iter()
            .map(|&f| (f, f.info()))
            .filter(|(f, i)| i.leaf == leaf && i.subleaf == subleaf && i.reg == reg && self.has(*f))
            .fold(0, |bits, (_, i)| bits | i.mask())
    }
}
