// SPDX-License-Identifier: GPL-2.0

//! Message-signalled interrupts: what a write of `data` to `address` asks for.
//!
//! Sources: Intel SDM vol. 3A 12.11, AMD APM vol. 2 16.13; for ids wider than 8 bits, KVM's api.rst
//! (KVM_CAP_X2APIC_API, KVM_FEATURE_MSI_EXT_DEST_ID).

use super::lapic::{DeliveryMode, Irq, Shorthand, Source};

/// A message, as struct kvm_msi and KVM_IRQ_ROUTING_MSI have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Low half of the address
    pub address_lo: u32,
    /// High half of the address
    pub address_hi: u32,
    /// Data
    pub data: u32,
}

/// How a VM reads messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// Bits 31:8 of `address_hi` are bits 31:8 of the destination (KVM_X2APIC_API_USE_32BIT_IDS).
    pub wide_ids: bool,
    /// Bits 11:5 of `address_lo` are bits 14:8 of the destination. Off where user space moves
    /// these bits to `address_hi` itself, as QEMU does.
    pub extended_dest: bool,
    /// Destination 0xff is a broadcast to x2APICs too (unless
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).
    pub wide_broadcast: bool,
}

/// Bits 7:0 of `address_hi` are not zero, with [`Format::wide_ids`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidAddress;

impl Msi {
    /// The interrupt that the message asks for.
    ///
    /// As in KVM, the address's upper bits are not looked at (the VMM has done that), and a
    /// level-triggered message asserts: there is no de-assertion by message.
    #[inline]
    pub const fn irq(&self, format: Format) -> Result<Irq, InvalidAddress> {
        let mut dest = self.address_lo >> 12 & 0xff;
        if format.wide_ids {
            if self.address_hi & 0xff != 0 {
                return Err(InvalidAddress);
            }
            dest |= self.address_hi;
        }
        if format.extended_dest {
            dest |= (self.address_lo >> 5 & 0x7f) << 8;
        }
        Ok(Irq {
            dest,
            vector: (self.data & 0xff) as u8,
            mode: DeliveryMode::from_low3(self.data >> 8),
            logical: self.address_lo & 1 << 2 != 0,
            level: self.data & 1 << 15 != 0,
            assert: true,
            shorthand: Shorthand::None,
            redirect_hint: self.address_lo & 1 << 3 != 0,
            source: Source::Device {
                wide_broadcast: format.wide_broadcast,
            },
        })
    }
}
