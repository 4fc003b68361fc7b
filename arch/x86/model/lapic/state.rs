// SPDX-License-Identifier: GPL-2.0

//! The state as KVM_GET_LAPIC and KVM_SET_LAPIC have it: the first KiB of the register page.
//!
//! Not in the page, so lost in a migration: errors that the guest has not latched into its ESR
//! yet. IA32_APIC_BASE and IA32_TSC_DEADLINE travel as MSRs; set the former first.

use super::regs::{dfr, esr, icr, lvt, offset, svr};
use super::{Effect, Lapic, Lvt, Now, Vectors};

/// Size of the page, bytes: KVM_APIC_REG_SIZE.
pub const PAGE_SIZE: usize = 0x400;

/// The page is that of an x2APIC with another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMismatch;

fn get(page: &[u8; PAGE_SIZE], offset: u16) -> u32 {
    match page
        .get(usize::from(offset)..)
        .and_then(|rest| rest.first_chunk::<4>())
    {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => 0,
    }
}

fn put(page: &mut [u8; PAGE_SIZE], offset: u16, value: u32) {
    if let Some(bytes) = page
        .get_mut(usize::from(offset)..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        *bytes = value.to_le_bytes();
    }
}

impl Lapic {
    /// Writes the registers to `page`. `wide_ids` is KVM_X2APIC_API_USE_32BIT_IDS: without it the
    /// id is in xAPIC format in x2APIC mode too. A timer that is due is taken first, so drain the
    /// inbox before, and see to the returned effect.
    pub fn save(&mut self, page: &mut [u8; PAGE_SIZE], wide_ids: bool, now: Now) -> Effect {
        let timer = self.timer_fired(now);
        page.fill(0);
        let plain = [
            offset::ID,
            offset::VERSION,
            offset::TPR,
            offset::PPR,
            offset::LDR,
            offset::DFR,
            offset::SVR,
            offset::ESR,
            offset::ICR,
            offset::ICR2,
            offset::TMICT,
            offset::TMCCT,
            offset::TDCR,
        ];
        let entries = Lvt::ALL.map(Lvt::offset);
        for offset in plain.into_iter().chain(entries) {
            put(page, offset, self.read(offset, || now.ns));
        }
        self.isr.save(page, offset::ISR);
        self.tmr.save(page, offset::TMR);
        self.irr.save(page, offset::IRR);
        if !self.features.cmci {
            put(page, offset::LVT_CMCI, 0);
        }
        if self.x2apic() && !wide_ids {
            put(page, offset::ID, self.config.id << 24);
        }
        Effect::Timer(timer)
    }

    /// Takes all registers from `page`, and restarts the timer with the current count in it. With
    /// `wide_ids` (see [`Self::save`]) an x2APIC's id must be its own, else it is not looked at;
    /// the logical id of an x2APIC follows from its id. The version and the processor priority are
    /// computed. The shell publishes the identity, and sees to the returned effect.
    pub fn load(
        &mut self,
        page: &[u8; PAGE_SIZE],
        wide_ids: bool,
        now: Now,
    ) -> Result<Effect, IdMismatch> {
        if self.x2apic() {
            if wide_ids && get(page, offset::ID) != self.config.id {
                return Err(IdMismatch);
            }
        } else {
            self.xapic_id = (get(page, offset::ID) >> 24) as u8;
            self.logical_id = (get(page, offset::LDR) >> 24) as u8;
        }
        self.dfr = get(page, offset::DFR) | dfr::ONES;
        let defined = svr::VECTOR | svr::ENABLE | svr::NO_FOCUS | svr::SUPPRESS_EOI;
        self.svr = get(page, offset::SVR) & defined;
        self.isr = Vectors::load(page, offset::ISR);
        self.tmr = Vectors::load(page, offset::TMR);
        self.irr = Vectors::load(page, offset::IRR);
        self.esr = get(page, offset::ESR) & esr::ALL;
        self.errors = 0;
        self.error_armed = true;
        let wide = u64::from(get(page, offset::ICR2)) << 32 | u64::from(get(page, offset::ICR));
        self.icr = wide & !icr::BUSY;
        for entry in Lvt::ALL {
            // Entries are not masked for an APIC that is software disabled: firmware's setting of
            // LINT0 is there before the guest enables anything.
            self.lvt[entry as usize] = get(page, entry.offset()) & entry.writable(true);
        }
        if !self.features.cmci {
            self.lvt[Lvt::Cmci as usize] = lvt::MASKED;
        }
        // INVARIANT: this computes the processor priority.
        self.set_tpr((get(page, offset::TPR) & 0xff) as u8);
        // INVARIANT: the timer follows its entry.
        let _ = self.follow_timer_mode();
        self.clock.restore(
            get(page, offset::TMICT),
            get(page, offset::TMCCT),
            get(page, offset::TDCR),
            now.ns,
        );
        Ok(Effect::Timer(self.timer_fired(now)))
    }
}
