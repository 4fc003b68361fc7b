// SPDX-License-Identifier: GPL-2.0

//! What the host offers, found out once when the module loads.

use super::{
    backend::{Backend, HwCaps},
    insn,
    model::{
        cpuid::{Cap, CapSet, HostCaps, Supported},
        cpuid::{Feature, Regs, Vendor},
        msr::MsrHost,
        pv,
    },
};
use kernel::{prelude::*, sync::SetOnce};

/// The host, as guests can see of it.
pub(crate) struct Host {
    /// What the vendor's extension offers.
    pub(crate) hw: HwCaps,
    /// CPUID for guests.
    pub(crate) supported: Supported,
    /// MSRs for guests.
    pub(crate) msr: MsrHost,
    /// Extended state for guests.
    pub(crate) fpu: insn::fpu::FpuCaps,
    /// Frequency of the TSC, in kHz.
    pub(crate) tsc_khz: u32,
}

/// DE_CFG: LFENCE serialises. Linux sets it on every AMD processor that it runs on.
const DE_CFG_LFENCE: u64 = 1 << 1;

static HOST: SetOnce<Host> = SetOnce::new();

/// CPUID of the host.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Regs {
    let r = insn::cpuid(leaf, subleaf);
    Regs {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

impl Host {
    /// What was found out at load.
    ///
    /// # Errors
    /// `ENODEV` before that; no descriptor exists then.
    #[inline]
    pub(crate) fn get() -> Result<&'static Host> {
        HOST.as_ref().ok_or(ENODEV)
    }

    /// Looks at the hardware, through the vendor's backend.
    ///
    /// # Errors
    /// What [`Backend::setup`] says.
    pub(crate) fn find_out<B: Backend>() -> Result {
        let hw = B::setup()?;
        let fpu = insn::fpu::FpuCaps::new();
        let vendor = Vendor::from_leaf0(&cpuid(0, 0));
        let caps = CapSet::EMPTY
            .with_if(Cap::Xsave, insn::osxsave())
            .with_if(Cap::Pku, insn::ospke())
            .with_if(Cap::Invpcid, hw.invpcid)
            .with_if(Cap::TscAux, hw.rdtscp)
            .with(Cap::LfenceSerializing)
            .with(Cap::CpuidFaulting);
        let host = HostCaps {
            vendor,
            caps,
            host_xcr0: fpu.xcr0_mask(),
            xss: 0,
            gpa_bits: if hw.stage2_levels >= 5 { 52 } else { 48 },
            pv: pv::BASE,
        };
        let supported = Supported::build(cpuid, &host);
        let msr = MsrHost {
            features: supported.features,
            pv: host.pv,
            vendor,
            de_cfg: DE_CFG_LFENCE,
            ucode_rev: insn::rdmsr(0x8b).unwrap_or(0),
            arch_capabilities: 0,
            cpuid_faulting: supported.features.has(Feature::GpOnUserCpuid),
        };
        HOST.populate(Host {
            hw,
            supported,
            msr,
            fpu,
            tsc_khz: insn::tsc_khz(),
        });
        Ok(())
    }
}
