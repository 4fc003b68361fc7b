// SPDX-License-Identifier: GPL-2.0

//! MSRs: the table, and the decision about each access, with the cases of the kernel's own
//! selftests.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::cpuid::{Feature, FeatureSet, GuestFeatures, Vendor};
use rkvm_unit::arch::x86::model::msr::{
    find, pat_valid, Class, Ctx, Field, Gate, MsrHost, MsrState, Origin, Read, Refused, Rule,
    Service, Slot, Write, FEATURE, PAT_INIT, SAVED, TABLE, WRITE_ONLY,
};
use rkvm_unit::arch::x86::model::pv;
use std::collections::HashSet;

const ALL_FEATURES: [Feature; 17] = [
    Feature::Lm,
    Feature::Rdtscp,
    Feature::Rdpid,
    Feature::TscAdjust,
    Feature::TscDeadline,
    Feature::SpecCtrl,
    Feature::AmdIbpb,
    Feature::AmdIbrs,
    Feature::AmdStibp,
    Feature::AmdSsbd,
    Feature::Sbpb,
    Feature::Shstk,
    Feature::Ibt,
    Feature::Xsaves,
    Feature::Osvw,
    Feature::FlushL1d,
    Feature::Waitpkg,
];

fn features(fs: &[Feature]) -> FeatureSet {
    let mut s = FeatureSet::EMPTY;
    for &f in fs {
        s.set(f, true);
    }
    s
}

fn guest(vendor: Vendor, fs: &[Feature]) -> GuestFeatures {
    GuestFeatures {
        set: features(fs),
        vendor,
        maxphyaddr: 40,
        xss: 0x1800,
        pv: pv::KNOWN,
        ..GuestFeatures::default()
    }
}

fn host(vendor: Vendor, fs: &[Feature]) -> MsrHost {
    MsrHost {
        features: features(fs),
        pv: pv::KNOWN,
        vendor,
        de_cfg: 2,
        ucode_rev: 0x0a00_1137,
        arch_capabilities: 0x2b,
        cpuid_faulting: true,
    }
}

fn ctx<'a>(g: &'a GuestFeatures, h: &'a MsrHost, origin: Origin) -> Ctx<'a> {
    Ctx {
        guest: g,
        host: h,
        origin,
        enforce_pv: true,
        platform_info: true,
        mwait_by_misc_enable: false,
    }
}

/// A vCPU whose backend and shell keep what they are given.
struct Machine {
    g: GuestFeatures,
    h: MsrHost,
    s: MsrState,
    kept: Vec<(Read, u64)>,
}

impl Machine {
    fn new(vendor: Vendor, fs: &[Feature]) -> Machine {
        let h = host(vendor, &ALL_FEATURES);
        Machine {
            g: guest(vendor, fs),
            h,
            s: MsrState::new(&h, true),
            kept: Vec::new(),
        }
    }

    fn rd(&self, o: Origin, index: u32) -> Result<u64, Refused> {
        Ok(match self.s.read(index, &ctx(&self.g, &self.h, o))? {
            Read::Value(v) => v,
            Read::Backend(Field::Pat) if self.kept.is_empty() => PAT_INIT,
            r => self.kept.iter().rev().find(|k| k.0 == r).map_or(0, |k| k.1),
        })
    }

    fn wr(&mut self, o: Origin, index: u32, value: u64) -> Result<(), Refused> {
        match self.s.write(index, value, &ctx(&self.g, &self.h, o))? {
            Write::Done | Write::DoneCpuid => {}
            Write::Backend(f, v) => self.kept.push((Read::Backend(f), v)),
            Write::Shell(s, v) => self.kept.push((Read::Shell(s), v)),
        }
        Ok(())
    }
}

use Origin::{Guest, Host};

#[test]
fn table_is_sorted_without_overlap() {
    for w in TABLE.windows(2) {
        assert!(
            w[0].first + w[0].count <= w[1].first,
            "{} and {}",
            w[0].name,
            w[1].name
        );
    }
    let names: HashSet<_> = TABLE.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), TABLE.len());
    for m in TABLE {
        assert!(m.count > 0, "{}", m.name);
        assert_eq!(m.lists & !(SAVED | FEATURE | WRITE_ONLY), 0, "{}", m.name);
        if m.lists & (SAVED | FEATURE) != 0 {
            assert_eq!(m.count, 1, "{}: lists have single MSRs", m.name);
            assert_eq!(m.lists & WRITE_ONLY, 0, "{}: can be read", m.name);
        }
        // Who checks elsewhere is a model of its own.
        if m.rule == Rule::Elsewhere {
            assert!(
                matches!(m.class, Class::Shell(_) | Class::Mtrr | Class::Mce),
                "{}",
                m.name
            );
        }
        // A constant takes no value.
        if let Class::Const(_) | Class::IcCfg = m.class {
            assert!(
                matches!(m.rule, Rule::Ignored | Rule::ReadOnly | Rule::Zero),
                "{}",
                m.name
            );
        }
        if let Rule::Mask(mask) = m.rule {
            assert!(mask != 0 && mask != u64::MAX, "{}", m.name);
        }
        if let Gate::Any(fs) = m.gate {
            assert!(!fs.is_empty(), "{}", m.name);
        }
    }
    // One slot and one field, one MSR.
    let kept: Vec<_> = TABLE
        .iter()
        .filter(|m| matches!(m.class, Class::Stored(_) | Class::Backend(_)))
        .map(|m| format!("{:?}", m.class))
        .collect();
    assert_eq!(kept.iter().collect::<HashSet<_>>().len(), kept.len());
}

#[test]
fn find_every_msr() {
    for base in [0u32, 0x4b56_4000, 0xc000_0000, 0xc001_0000, 0xffff_f000] {
        for i in 0..0x2000u32 {
            let Some(index) = base.checked_add(i) else {
                break;
            };
            let linear = TABLE
                .iter()
                .find(|m| index >= m.first && index - m.first < m.count);
            assert_eq!(
                find(index).map(|m| m.first),
                linear.map(|m| m.first),
                "{index:#x}"
            );
        }
    }
}

/// Numbers as Linux's `msr-index.h`, `kvm_para.h` and `mtrr.h` have them, by name.
#[test]
fn numbers() {
    let known = [
        ("AMD64_BU_CFG2", 0xc001_102a),
        ("AMD64_DC_CFG", 0xc001_1022),
        ("AMD64_DE_CFG", 0xc001_1029),
        ("AMD64_NB_CFG", 0xc001_001f),
        ("AMD64_OSVW_ID_LENGTH", 0xc001_0140),
        ("AMD64_OSVW_STATUS", 0xc001_0141),
        ("AMD64_PATCH_LOADER", 0xc001_0020),
        ("AMD64_SYSCFG", 0xc001_0010),
        ("AMD64_TW_CFG", 0xc001_1023),
        ("CSTAR", 0xc000_0083),
        ("DRAM_ENERGY_STATUS", 0x619),
        ("EBC_FREQUENCY_ID", 0x2c),
        ("EFER", 0xc000_0080),
        ("F15H_EX_CFG", 0xc001_102c),
        ("F15H_IC_CFG", 0xc001_1021),
        ("FAM10H_MMIO_CONF_BASE", 0xc001_0058),
        ("FSB_FREQ", 0xcd),
        ("FS_BASE", 0xc000_0100),
        ("GS_BASE", 0xc000_0101),
        ("IA32_APICBASE", 0x1b),
        ("IA32_ARCH_CAPABILITIES", 0x10a),
        ("IA32_BBL_CR_CTL3", 0x11e),
        ("IA32_CR_PAT", 0x277),
        ("IA32_DEBUGCTLMSR", 0x1d9),
        ("IA32_EBL_CR_POWERON", 0x2a),
        ("IA32_FEAT_CTL", 0x3a),
        ("IA32_FLUSH_CMD", 0x10b),
        ("IA32_INT_SSP_TAB", 0x6a8),
        ("IA32_LASTBRANCHFROMIP", 0x1db),
        ("IA32_LASTBRANCHTOIP", 0x1dc),
        ("IA32_LASTINTFROMIP", 0x1dd),
        ("IA32_LASTINTTOIP", 0x1de),
        ("IA32_MCG_CAP", 0x179),
        ("IA32_MCG_CTL", 0x17b),
        ("IA32_MCG_STATUS", 0x17a),
        ("IA32_MCx", 0x400),
        ("IA32_MCx_CTL2", 0x280),
        ("IA32_MISC_ENABLE", 0x1a0),
        ("IA32_P5_MC_ADDR", 0x0),
        ("IA32_P5_MC_TYPE", 0x1),
        ("IA32_PERF_CTL", 0x199),
        ("IA32_PERF_STATUS", 0x198),
        ("IA32_PL0_SSP", 0x6a4),
        ("IA32_PL1_SSP", 0x6a5),
        ("IA32_PL2_SSP", 0x6a6),
        ("IA32_PL3_SSP", 0x6a7),
        ("IA32_PLATFORM_ID", 0x17),
        ("IA32_POWER_CTL", 0x1fc),
        ("IA32_PRED_CMD", 0x49),
        ("IA32_SPEC_CTRL", 0x48),
        ("IA32_SYSENTER_CS", 0x174),
        ("IA32_SYSENTER_EIP", 0x176),
        ("IA32_SYSENTER_ESP", 0x175),
        ("IA32_S_CET", 0x6a2),
        ("IA32_TSC", 0x10),
        ("IA32_TSC_ADJUST", 0x3b),
        ("IA32_TSC_DEADLINE", 0x6e0),
        ("IA32_UCODE_REV", 0x8b),
        ("IA32_UCODE_WRITE", 0x79),
        ("IA32_UMWAIT_CONTROL", 0xe1),
        ("IA32_U_CET", 0x6a0),
        ("IA32_XSS", 0xda0),
        ("K7_CLK_CTL", 0xc001_001b),
        ("K7_EVNTSEL", 0xc001_0000),
        ("K7_HWCR", 0xc001_0015),
        ("K7_PERFCTR", 0xc001_0004),
        ("K8_INT_PENDING_MSG", 0xc001_0055),
        ("K8_TSEG_ADDR", 0xc001_0112),
        ("K8_TSEG_MASK", 0xc001_0113),
        ("KERNEL_GS_BASE", 0xc000_0102),
        ("KVM_ASYNC_PF_ACK", 0x4b56_4d07),
        ("KVM_ASYNC_PF_EN", 0x4b56_4d02),
        ("KVM_ASYNC_PF_INT", 0x4b56_4d06),
        ("KVM_POLL_CONTROL", 0x4b56_4d05),
        ("KVM_PV_EOI_EN", 0x4b56_4d04),
        ("KVM_STEAL_TIME", 0x4b56_4d03),
        ("KVM_SYSTEM_TIME", 0x12),
        ("KVM_SYSTEM_TIME_NEW", 0x4b56_4d01),
        ("KVM_WALL_CLOCK", 0x11),
        ("KVM_WALL_CLOCK_NEW", 0x4b56_4d00),
        ("LSTAR", 0xc000_0082),
        ("MISC_FEATURES_ENABLES", 0x140),
        ("MTRRcap", 0xfe),
        ("MTRRdefType", 0x2ff),
        ("MTRRfix16K", 0x258),
        ("MTRRfix4K", 0x268),
        ("MTRRfix64K", 0x250),
        ("MTRRphys", 0x200),
        ("P6_EVNTSEL", 0x186),
        ("P6_PERFCTR", 0xc1),
        ("PKG_ENERGY_STATUS", 0x611),
        ("PLATFORM_INFO", 0xce),
        ("PP0_ENERGY_STATUS", 0x639),
        ("PP1_ENERGY_STATUS", 0x641),
        ("RAPL_POWER_UNIT", 0x606),
        ("SMI_COUNT", 0x34),
        ("STAR", 0xc000_0081),
        ("SYSCALL_MASK", 0xc000_0084),
        ("TSC_AUX", 0xc000_0103),
        ("X2APIC", 0x800),
    ];
    for (name, number) in known {
        let row = TABLE.iter().find(|m| m.name == name);
        assert_eq!(row.map(|m| m.first), Some(number), "{name}");
    }
    assert_eq!(known.len(), TABLE.len());
}

/// The table of the kernel's msrs_test: index, value written, reserved value, reset value, features.
#[test]
fn kernels_msrs_test() {
    const CANONICAL: u64 = 0x1234_5678_9000;
    const NONCANONICAL: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    const U64: u64 = 0xaaaa_5555_aaaa_5555;
    let none: &[Feature] = &[];
    let lm = &[Feature::Lm][..];
    let ss = &[Feature::Shstk][..];
    let rows: &[(u32, u64, u64, u64, &[Feature])] = &[
        (0x1a0, 0x1801, 0, 0x1800, none),
        (0x277, 0x0707_0707, 0, PAT_INIT, none),
        (0xc000_0103, 0x1234_5678, U64, 0, &[Feature::Rdtscp]),
        (0xc000_0103, 0x1234_5678, U64, 0, &[Feature::Rdpid]),
        (0x174, 0x1234, 0, 0, none),
        (0x175, CANONICAL, 0, 0, none),
        (0x176, CANONICAL, 0, 0, none),
        (0xc000_0100, CANONICAL, NONCANONICAL, 0, lm),
        (0xc000_0101, CANONICAL, NONCANONICAL, 0, lm),
        (0xc000_0102, CANONICAL, NONCANONICAL, 0, lm),
        (0xc000_0082, CANONICAL, NONCANONICAL, 0, lm),
        (0xc000_0083, CANONICAL, NONCANONICAL, 0, lm),
        (0xc000_0084, 0xffff_ffff, 0, 0, lm),
        (0x6a2, 1, 0x3c0, 0, ss),
        (0x6a2, 4, 0x3c0, 0, &[Feature::Ibt]),
        (0x6a0, 1, 0x3c0, 0, ss),
        (0x6a0, 4, 0x3c0, 0, &[Feature::Ibt]),
        (0x6a4, CANONICAL, NONCANONICAL, 0, ss),
        (0x6a5, CANONICAL, CANONICAL | 1, 0, ss),
        (0x6a6, CANONICAL, NONCANONICAL, 0, ss),
        (0x6a7, CANONICAL, CANONICAL | 1, 0, ss),
    ];
    for vendor in [Vendor::Amd, Vendor::Intel] {
        for &(index, value, reserved, reset, fs) in rows {
            let amd_cuts = vendor == Vendor::Amd && matches!(index, 0x175 | 0x176 | 0xc000_0103);
            let fix = |v: u64| if amd_cuts { v & 0xffff_ffff } else { v };
            let mut m = Machine::new(vendor, fs);
            assert_eq!(m.rd(Guest, index), Ok(reset), "{index:#x} after reset");
            assert_eq!(m.wr(Guest, index, value), Ok(()), "{index:#x} = {value:#x}");
            assert_eq!(m.rd(Guest, index), Ok(fix(value)), "{index:#x}");
            assert_eq!(m.rd(Host, index), Ok(fix(value)), "{index:#x}");
            assert_eq!(m.wr(Host, index, reset), Ok(()));
            assert_eq!(m.rd(Guest, index), Ok(reset));
            if reserved != 0 {
                let r = m.wr(Guest, index, reserved);
                if amd_cuts {
                    assert_eq!((r, m.rd(Guest, index)), (Ok(()), Ok(fix(reserved))));
                } else {
                    assert_eq!(r, Err(Refused::Invalid), "{index:#x} = {reserved:#x}");
                    assert_eq!(m.rd(Guest, index), Ok(reset), "nothing has changed");
                }
            }
            let mut without = Machine::new(vendor, &[]);
            let r = (without.rd(Guest, index), without.wr(Guest, index, value));
            if fs.is_empty() {
                assert!(r.0.is_ok() && r.1.is_ok());
            } else {
                assert_eq!(
                    r,
                    (Err(Refused::Unknown), Err(Refused::Unknown)),
                    "{index:#x}"
                );
            }
        }
    }
}

#[test]
fn lists() {
    let amd = host(Vendor::Amd, &ALL_FEATURES);
    let list: Vec<u32> = amd.index_list().collect();
    for m in TABLE.iter().filter(|m| m.lists & SAVED != 0) {
        let intel_only = m.gate == Gate::Vendor(Vendor::Intel);
        let offered = !intel_only && m.name != "IA32_ARCH_CAPABILITIES";
        assert_eq!(list.contains(&m.first), offered, "{}", m.name);
    }
    assert!([0x10, 0x174, 0x277, 0x6e0, 0xc000_0082, 0xc001_0015]
        .iter()
        .all(|i| list.contains(i)));
    // FS and GS bases and EFER are saved by KVM_GET_SREGS.
    assert!(![0x1b, 0xc000_0080, 0xc000_0100, 0xc000_0101]
        .iter()
        .any(|i| list.contains(i)));

    let bare = MsrHost {
        pv: pv::BASE,
        vendor: Vendor::Amd,
        ..MsrHost::default()
    };
    let list: Vec<u32> = bare.index_list().collect();
    for i in [
        0x48,
        0x6a0,
        0x6a4,
        0xda0,
        0xc000_0103,
        0x4b56_4d02,
        0x4b56_4d03,
        0x4b56_4d05,
    ] {
        assert!(!list.contains(&i), "{i:#x}");
    }
    for i in [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01] {
        assert!(list.contains(&i), "{i:#x}");
    }
    // Every listed MSR can be read by user space, and what was read written back, in any guest.
    for vendor in [Vendor::Amd, Vendor::Intel] {
        for fs in [&ALL_FEATURES[..], &[]] {
            let mut m = Machine::new(vendor, fs);
            let list: Vec<u32> = m.h.index_list().collect();
            for i in list {
                let v = m.rd(Host, i).unwrap_or_else(|e| panic!("{i:#x}: {e:?}"));
                assert_eq!(m.wr(Host, i, v), Ok(()), "{i:#x}");
            }
        }
    }
}

/// The kernel's feature_msrs_test.
#[test]
fn feature_msrs() {
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let mut fs = ALL_FEATURES.to_vec();
        if vendor == Vendor::Intel {
            fs.push(Feature::ArchCapabilities);
        }
        let h = host(vendor, &fs);
        let list: Vec<u32> = h.feature_list().collect();
        let want: &[u32] = match vendor {
            Vendor::Amd => &[0x8b, 0xce, 0xc001_1029],
            Vendor::Intel => &[0x8b, 0xce, 0x10a],
        };
        assert_eq!(list, want);
        for i in list {
            let supported = h.feature_msr(i).unwrap();
            let reset = match (i, vendor) {
                (0x8b, Vendor::Amd) => 0x0100_0065,
                (0x8b, Vendor::Intel) => 1 << 32,
                (0xc001_1029, _) => 0,
                _ => supported,
            };
            let mut m = Machine {
                h,
                s: MsrState::new(&h, true),
                ..Machine::new(vendor, &fs)
            };
            assert_eq!(m.rd(Host, i), Ok(reset), "{i:#x}");
            assert_eq!(m.wr(Host, i, supported), Ok(()));
            assert_eq!(m.rd(Host, i), Ok(supported));
            m.s = MsrState::new(&h, false);
            assert_eq!(m.rd(Host, i), Ok(0), "{i:#x} without the quirk");
        }
        assert_eq!(h.feature_msr(0x10), None);
        assert_eq!(h.feature_msr(0xffff), None);
    }
}

/// The kernel's hwcr_msr_test.
#[test]
fn hwcr() {
    for fs in [&[][..], &[Feature::GpOnUserCpuid]] {
        let ignored: u64 = 1 << 3 | 1 << 6 | 1 << 8;
        let mut valid: u64 = 1 << 18 | 1 << 24;
        if !fs.is_empty() {
            valid |= 1 << 35;
        }
        for bit in 0..64 {
            let v = 1u64 << bit;
            let mut m = Machine::new(Vendor::Amd, fs);
            assert_eq!(
                m.wr(Host, 0xc001_0015, v).is_ok(),
                v & (ignored | valid) != 0
            );
            assert_eq!(m.rd(Host, 0xc001_0015), Ok(v & valid), "bit {bit}");
        }
    }
}

#[test]
fn cpuid_faulting() {
    let mut m = Machine::new(Vendor::Intel, &[]);
    assert_eq!(m.wr(Guest, 0x140, 2), Err(Refused::Invalid));
    assert!((0..4).all(|cpl| !m.s.cpuid_faults(cpl)));
    assert_eq!(m.wr(Guest, 0x140, 1), Ok(()));
    assert_eq!(
        [0, 1, 3].map(|cpl| m.s.cpuid_faults(cpl)),
        [false, true, true]
    );
    m.s.init();
    assert!(!m.s.cpuid_faults(3));
    // Not without PLATFORM_INFO's bit.
    assert_eq!(m.wr(Host, 0xce, 0), Ok(()));
    assert_eq!(m.wr(Guest, 0x140, 1), Err(Refused::Invalid));
    let mut m = Machine::new(Vendor::Amd, &[Feature::GpOnUserCpuid]);
    assert_eq!(m.wr(Guest, 0xc001_0015, 1 << 35), Ok(()));
    assert_eq!(
        [0, 1, 3].map(|cpl| m.s.cpuid_faults(cpl)),
        [false, false, true]
    );
}

/// The kernel's platform_info_test.
#[test]
fn platform_info() {
    let mut m = Machine::new(Vendor::Intel, &[]);
    assert_eq!(m.rd(Host, 0xce), Ok(1 << 31));
    assert_eq!(m.wr(Host, 0xce, 1 << 31 | 0xff00), Ok(()));
    assert_eq!(m.rd(Guest, 0xce), Ok(1 << 31 | 0xff00));
    assert_eq!(m.wr(Guest, 0xce, 0), Err(Refused::Invalid));
    let off = Ctx {
        platform_info: false,
        ..ctx(&m.g, &m.h, Guest)
    };
    assert_eq!(m.s.read(0xce, &off), Err(Refused::Unknown));
    let off = Ctx {
        origin: Host,
        ..off
    };
    assert_eq!(m.s.read(0xce, &off), Ok(Read::Value(1 << 31 | 0xff00)));
}

#[test]
fn misc_enable() {
    let mut m = Machine::new(Vendor::Intel, &[]);
    for bit in [11, 12] {
        assert_eq!(m.wr(Guest, 0x1a0, 0x1800 ^ 1 << bit), Err(Refused::Invalid));
    }
    assert_eq!(m.wr(Guest, 0x1a0, 0x1800 | 1 << 7), Ok(()));
    assert_eq!(m.rd(Guest, 0x1a0), Ok(0x1800), "EMON is read-only");
    assert_eq!(m.wr(Host, 0x1a0, 1 << 7), Ok(()));
    assert_eq!(m.rd(Guest, 0x1a0), Ok(1 << 7));
    // MWAIT decides over MONITOR, if the quirk is off.
    let mut s = MsrState::new(&m.h, true);
    let c = Ctx {
        mwait_by_misc_enable: true,
        ..ctx(&m.g, &m.h, Guest)
    };
    assert_eq!(
        s.write(0x1a0, 0x1800 | 1 << 18, &c),
        Err(Refused::Invalid),
        "needs SSE3"
    );
    let g = guest(Vendor::Intel, &[Feature::Sse3]);
    let c = Ctx { guest: &g, ..c };
    assert_eq!(s.write(0x1a0, 0x1800 | 1 << 18, &c), Ok(Write::DoneCpuid));
    assert!(s.mwait_enabled());
    assert_eq!(s.write(0x1a0, 0x1801 | 1 << 18, &c), Ok(Write::Done));
    let c = Ctx {
        mwait_by_misc_enable: false,
        ..c
    };
    assert_eq!(s.write(0x1a0, 0x1800, &c), Ok(Write::Done));
}

/// The kernel's kvm_pv_test: with enforcement, none of them without its CPUID bit.
#[test]
fn paravirtual_msrs_are_enforced() {
    let mut m = Machine::new(Vendor::Amd, &[]);
    assert_eq!(m.rd(Guest, 0x4b56_4d05), Ok(1), "halt polling is on");
    m.g.pv = 0;
    let all = [0x11, 0x12].into_iter().chain(0x4b56_4d00..=0x4b56_4d07);
    for i in all.clone() {
        assert_eq!(m.rd(Guest, i), Err(Refused::Unknown), "{i:#x}");
        assert_eq!(m.wr(Guest, i, 0), Err(Refused::Unknown), "{i:#x}");
    }
    for i in all.clone() {
        let free = Ctx {
            enforce_pv: false,
            ..ctx(&m.g, &m.h, Guest)
        };
        assert!(m.s.read(i, &free).is_ok(), "{i:#x} without enforcement");
        // But not what is not provided at all.
        let none = MsrHost { pv: 0, ..m.h };
        let free = Ctx {
            host: &none,
            ..free
        };
        assert_eq!(
            m.s.read(i, &free),
            Err(Refused::Unknown),
            "{i:#x} not provided"
        );
    }
    m.g.pv = pv::KNOWN;
    for i in all {
        assert!(
            m.rd(Guest, i).is_ok() && m.wr(Guest, i, 0).is_ok(),
            "{i:#x}"
        );
    }
    for bit in 1..6 {
        assert_eq!(m.wr(Guest, 0x4b56_4d03, 1 << bit), Err(Refused::Invalid));
    }
    assert_eq!(m.wr(Guest, 0x4b56_4d03, 0x1234_5641), Ok(()));
    assert_eq!(m.wr(Guest, 0x4b56_4d05, 2), Err(Refused::Invalid));
}

#[test]
fn speculation_control() {
    let mut m = Machine::new(Vendor::Amd, &[Feature::AmdIbrs]);
    assert_eq!(m.wr(Guest, 0x48, 1), Ok(()));
    assert_eq!(m.wr(Guest, 0x48, 2), Err(Refused::Invalid));
    // User space may restore what any guest on this host could have.
    assert_eq!(m.wr(Host, 0x48, 7), Ok(()));
    assert_eq!(m.wr(Host, 0x48, 8), Err(Refused::Invalid));
    for (fs, mask) in [
        (&[Feature::SpecCtrl][..], 1u64),
        (&[Feature::IntelStibp, Feature::SpecCtrl], 3),
        (&[Feature::SpecCtrlSsbd, Feature::SpecCtrl], 5),
        (&[Feature::AmdStibp, Feature::AmdSsbd], 6),
        (&[Feature::AmdSsbd, Feature::AmdPsfd], 0x84),
        (&[Feature::SpecCtrl, Feature::IpredCtrl], 0x19),
        (&[Feature::SpecCtrl, Feature::RrsbaCtrl], 0x61),
        (&[Feature::SpecCtrl, Feature::DdpdU], 0x101),
        (&[Feature::SpecCtrl, Feature::BhiCtrl], 0x401),
    ] {
        for bit in 0..64 {
            let mut m = Machine::new(Vendor::Intel, fs);
            assert_eq!(
                m.wr(Guest, 0x48, 1 << bit).is_ok(),
                mask >> bit & 1 == 1,
                "{fs:?} {bit}"
            );
        }
    }
    let mut m = Machine::new(Vendor::Amd, &[Feature::AmdIbpb]);
    assert_eq!(m.rd(Guest, 0x49), Err(Refused::Unknown), "write-only");
    assert_eq!(m.rd(Host, 0x49), Ok(0));
    assert_eq!(m.wr(Guest, 0x49, 1), Ok(()));
    assert_eq!(m.kept, [(Read::Shell(Service::PredCmd), 1)]);
    assert_eq!(m.wr(Guest, 0x49, 0x80), Err(Refused::Invalid));
    let mut m = Machine::new(Vendor::Amd, &[Feature::Sbpb]);
    assert_eq!(
        (m.wr(Guest, 0x49, 0x80), m.wr(Guest, 0x49, 1)),
        (Ok(()), Err(Refused::Invalid))
    );
    let mut m = Machine::new(Vendor::Amd, &[]);
    assert_eq!(m.wr(Guest, 0x49, 0), Err(Refused::Unknown));
}

#[test]
fn single_rules() {
    let mut m = Machine::new(Vendor::Intel, &ALL_FEATURES);
    // FEATURE_CONTROL can be locked, once.
    assert_eq!(m.wr(Guest, 0x3a, 4), Err(Refused::Invalid));
    assert_eq!(m.wr(Guest, 0x3a, 1), Ok(()));
    assert_eq!(m.wr(Guest, 0x3a, 0), Err(Refused::Invalid));
    assert_eq!(m.wr(Host, 0x3a, 0), Ok(()));
    let mut amd = Machine::new(Vendor::Amd, &ALL_FEATURES);
    assert_eq!(amd.rd(Guest, 0x3a), Err(Refused::Unknown));
    // DE_CFG takes what the host gives.
    assert_eq!(
        (amd.wr(Guest, 0xc001_1029, 2), amd.rd(Guest, 0xc001_1029)),
        (Ok(()), Ok(2))
    );
    assert_eq!(amd.wr(Guest, 0xc001_1029, 1), Err(Refused::Invalid));
    assert_eq!(m.rd(Guest, 0xc001_1029), Err(Refused::Unknown));
    // Microcode: guests write in vain.
    assert_eq!(
        (m.wr(Guest, 0x8b, 0), m.rd(Guest, 0x8b)),
        (Ok(()), Ok(1 << 32))
    );
    assert_eq!(
        (m.wr(Guest, 0x79, 0x1234), m.rd(Guest, 0x79)),
        (Ok(()), Err(Refused::Unknown))
    );
    // XSS, by the guest's components.
    assert_eq!(m.wr(Guest, 0xda0, 0x1800), Ok(()));
    assert_eq!(m.wr(Guest, 0xda0, 0x100), Err(Refused::Invalid));
    m.g.xss = 0;
    assert_eq!(m.wr(Host, 0xda0, 0x800), Err(Refused::Invalid));
    // CET: states that exclude each other, and the legacy bitmap's address.
    assert_eq!(m.wr(Guest, 0x6a0, 0xc00), Err(Refused::Invalid));
    assert_eq!(m.wr(Guest, 0x6a0, 0x7fff_ffff_f03f), Ok(()));
    assert_eq!(m.wr(Guest, 0x6a0, 0x8000_0000_0000), Err(Refused::Invalid));
    let mut ss = Machine::new(Vendor::Intel, &[Feature::Shstk]);
    assert_eq!(
        (ss.wr(Guest, 0x6a0, 3), ss.wr(Guest, 0x6a0, 4)),
        (Ok(()), Err(Refused::Invalid))
    );
    // Canonical means the processor's width.
    assert_eq!(
        m.wr(Guest, 0xc000_0082, 0xff00_0000_0000_0000),
        Err(Refused::Invalid)
    );
    m.g.linear_bits = 57;
    assert_eq!(m.wr(Guest, 0xc000_0082, 0xff00_0000_0000_0000), Ok(()));
    // Constants.
    assert_eq!(
        (m.rd(Guest, 0xcd), m.wr(Guest, 0xcd, 3)),
        (Ok(3), Err(Refused::Unknown))
    );
    assert_eq!(m.wr(Host, 0xcd, 3), Ok(()));
    assert_eq!(
        (m.wr(Guest, 0xc001_0004, 9), m.rd(Guest, 0xc001_0004)),
        (Ok(()), Ok(0))
    );
    assert_eq!(m.wr(Guest, 0xc001_0058, 0), Ok(()));
    assert_eq!(m.wr(Guest, 0xc001_0058, 1), Err(Refused::Invalid));
    // An erratum of family 15h.
    for (family, model, v) in [
        (0x15, 2, 0x1e),
        (0x15, 0x1f, 0x1e),
        (0x15, 0x20, 0),
        (0x17, 2, 0),
    ] {
        amd.g = GuestFeatures {
            family,
            model,
            ..amd.g
        };
        assert_eq!(amd.rd(Guest, 0xc001_1021), Ok(v));
    }
    for i in [
        2,
        0xc000_0104,
        0xc001_0114,
        0xc001_0117,
        0x9e,
        0xffff_ffff,
        0xc001_0299,
    ] {
        assert_eq!(m.rd(Host, i), Err(Refused::Unknown), "{i:#x}");
        assert_eq!(m.wr(Host, i, 0), Err(Refused::Unknown), "{i:#x}");
    }
    assert_eq!(m.s.get(Slot::SmiCount), 0);
}

#[test]
fn apic_and_timer_go_to_the_shell() {
    let mut m = Machine::new(Vendor::Amd, &[]);
    let h = m.h;
    let g = m.g;
    for origin in [Guest, Host] {
        for reg in 0..=255u8 {
            let i = 0x800 + u32::from(reg);
            let c = ctx(&g, &h, origin);
            assert_eq!(m.s.read(i, &c), Ok(Read::Shell(Service::X2Apic(reg))));
            assert_eq!(
                m.s.write(i, 9, &c),
                Ok(Write::Shell(Service::X2Apic(reg), 9))
            );
        }
    }
    assert_eq!(m.wr(Guest, 0x6e0, 1), Err(Refused::Unknown));
    m.g.set.set(Feature::TscDeadline, true);
    assert_eq!(m.wr(Guest, 0x6e0, 1), Ok(()));
    assert_eq!(m.kept, [(Read::Shell(Service::TscDeadline), 1)]);
}

#[test]
fn memory_types() {
    let mut m = Machine::new(Vendor::Amd, &[]);
    assert_eq!(m.rd(Guest, 0xfe), Ok(0x508));
    assert_eq!(
        (m.wr(Guest, 0xfe, 0x508), m.wr(Host, 0xfe, 0x508)),
        (Err(Refused::Unknown), Ok(()))
    );
    for t in 0..=255u64 {
        let ok = matches!(t, 0 | 1 | 4 | 5 | 6);
        for i in [0x200, 0x20e, 0x2ff] {
            assert_eq!(m.wr(Guest, i, t).is_ok(), ok, "{i:#x} type {t}");
        }
        for byte in 0..8 {
            for i in [0x250, 0x258, 0x259, 0x268, 0x26f] {
                assert_eq!(
                    m.wr(Guest, i, t << (8 * byte)).is_ok(),
                    ok,
                    "{i:#x} type {t}"
                );
            }
            let pat = matches!(t, 0 | 1 | 4..=7);
            assert_eq!(pat_valid(t << (8 * byte)), pat);
        }
    }
    for bit in 0..64 {
        let deftype = matches!(bit, 10 | 11) || matches!(1u64 << bit, 1 | 4);
        assert_eq!(
            m.wr(Guest, 0x2ff, 1 << bit).is_ok(),
            deftype,
            "default type bit {bit}"
        );
        assert_eq!(
            m.wr(Guest, 0x203, 1 << bit).is_ok(),
            (11..40).contains(&bit),
            "mask {bit}"
        );
        let base = (12..40).contains(&bit) || bit == 0 || bit == 2;
        assert_eq!(m.wr(Guest, 0x202, 1 << bit).is_ok(), base, "base {bit}");
    }
}

#[test]
fn machine_check_status_by_hwcr() {
    // HWCR.McStatusWrEn lets an AMD guest write the status.
    let mut v = Machine::new(Vendor::Amd, &[]);
    assert_eq!(v.wr(Guest, 0x401, 1), Err(Refused::Invalid));
    assert_eq!(v.wr(Guest, 0xc001_0015, 1 << 18), Ok(()));
    assert_eq!(v.wr(Guest, 0x401, 1), Ok(()));
    assert_eq!(v.rd(Guest, 0x401), Ok(1));
}

/// An MSR of the table, or any.
fn any_msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => (0..TABLE.len(), any::<u32>()).prop_map(|(i, n)| TABLE[i].first + n % TABLE[i].count),
        1 => any::<u32>(),
    ]
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|b| 1 << b),
        Just(0),
        any::<u64>().prop_map(|v| v & 0x0707_0707_0707_0707),
        any::<u64>().prop_map(|v| (v << 16) as i64 as u64 >> 16),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn accesses_in_general(
        index in any_msr(),
        value in any_value(),
        amd in any::<bool>(),
        feature_bits in any::<u32>(),
        from_host in any::<bool>(),
    ) {
        let fs: Vec<Feature> = ALL_FEATURES
            .into_iter()
            .enumerate()
            .filter(|(n, _)| feature_bits >> n & 1 == 1)
            .map(|(_, f)| f)
            .collect();
        let vendor = if amd { Vendor::Amd } else { Vendor::Intel };
        let origin = if from_host { Host } else { Guest };
        let mut m = Machine::new(vendor, &fs);
        let before = m.rd(Host, index);
        let row = find(index);

        // What the guest may do, user space may do as well.
        let mut twin = Machine::new(vendor, &fs);
        if m.rd(Guest, index).is_ok() {
            prop_assert!(m.rd(Host, index).is_ok());
        }
        let wrote = m.wr(origin, index, value);
        if origin == Guest && wrote.is_ok() {
            prop_assert_eq!(twin.wr(Host, index, value), Ok(()));
        }
        match wrote {
            Err(_) => prop_assert_eq!(m.rd(Host, index), before, "a refused write changes nothing"),
            Ok(()) => {
                let row = row.unwrap();
                if row.lists & SAVED != 0 && !matches!(row.class, Class::Const(_)) {
                    // What is saved can be restored.
                    let v = m.rd(Host, index).unwrap();
                    prop_assert_eq!(m.wr(Host, index, v), Ok(()));
                    prop_assert_eq!(m.rd(Host, index), Ok(v));
                }
            }
        }
        if row.is_none() {
            prop_assert_eq!((before, wrote), (Err(Refused::Unknown), Err(Refused::Unknown)));
        }
    }
}
