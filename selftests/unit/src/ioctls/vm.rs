// SPDX-License-Identifier: GPL-2.0

//! The VM's part: memory slots, dirty logs, routes, irqfds, messages, ioeventfds, coalesced zones,
//! the MSR filter, capabilities and the clock.

use super::input::{patch, Input};
use crate::{
    abi::ioctl,
    arch::x86::{
        abi,
        args::{events::Enabled, vm as args},
        model::{
            clock::{KvmClock, TscScaling},
            msi,
            msr::filter::{self, Range},
        },
    },
    bindings as rb,
    irq::{
        bus::{self, Event, Key, Space, Span, Zone},
        routing::{self, Entry, Irqfd, PinRoute, Table, Target},
    },
    memory::{
        bitmap::Bitmap,
        slots::{Change, Refused, Region, Slot, Slots, LOG_DIRTY, PAGE_SHIFT, READONLY},
    },
};

/// What is registered in one address space.
#[derive(Default)]
struct Lane {
    events: Vec<Event<u8>>,
    zones: Vec<Zone>,
}

/// A VM.
pub(super) struct Vm {
    slots: Slots<bool>,
    list: Vec<Slot<bool>>,
    end_gfn: u64,
    mmio: Lane,
    pio: Lane,
    entries: Vec<Entry>,
    starts: Vec<u16>,
    pins: Vec<PinRoute>,
    filter: (bool, Vec<Range<Vec<u8>>>),
    /// What is enabled for vCPU events.
    pub(super) enabled: Enabled,
    /// KVM_X2APIC_API_USE_32BIT_IDS
    pub(super) wide_ids: bool,
    broadcast: bool,
}

/// A slot as it would be put in.
fn slot(r: &Region) -> Slot<bool> {
    Slot {
        id: r.slot,
        flags: r.flags,
        base_gfn: r.guest_phys_addr >> PAGE_SHIFT,
        pages: r.memory_size >> PAGE_SHIFT,
        hva: r.userspace_addr,
        dirty: r.flags & LOG_DIRTY != 0,
    }
}

impl Vm {
    pub(super) fn new(i: &mut Input<'_>) -> Self {
        Self {
            slots: Slots::new(),
            list: Vec::new(),
            end_gfn: 1 << [24, 28, 36, 40].map(|n| n - (i.u8() & 1))[i.below(4)],
            mmio: Lane::default(),
            pio: Lane::default(),
            entries: Vec::new(),
            starts: vec![0],
            pins: Vec::new(),
            filter: (true, Vec::new()),
            enabled: Enabled::default(),
            wide_ids: false,
            broadcast: true,
        }
    }

    /// A request on the VM's descriptor.
    pub(super) fn ioctl(&mut self, code: u32, i: &mut Input<'_>) {
        match code {
            ioctl::SET_USER_MEMORY_REGION | ioctl::SET_USER_MEMORY_REGION2 => self.set_region(i),
            ioctl::GET_DIRTY_LOG => {
                let found = self.slots.named(i.u32()).cloned();
                if let Ok(s) = found {
                    assert!(self.list.contains(&s));
                }
            }
            ioctl::CLEAR_DIRTY_LOG => self.clear_log(i),
            ioctl::IOEVENTFD => self.ioeventfd(i),
            ioctl::REGISTER_COALESCED_MMIO => self.zone(i, true),
            ioctl::UNREGISTER_COALESCED_MMIO => self.zone(i, false),
            ioctl::SET_GSI_ROUTING => self.set_routing(i),
            ioctl::IRQFD => {
                let (flags, gsi) = (i.u32(), i.u32());
                let deassign = flags & 1 != 0;
                match Irqfd::from_flags(flags) {
                    Ok(Irqfd::Deassign) => assert!(deassign && flags < 4),
                    Ok(Irqfd::Assign { resample }) => {
                        assert!(!deassign && flags == u32::from(resample) * 2);
                    }
                    Err(_) => assert!(flags > 3),
                }
                match routing::gsi_index(gsi) {
                    Ok(at) => assert!(at < routing::MAX_ROUTES && at as u64 == u64::from(gsi)),
                    Err(_) => assert!(gsi >= 4096),
                }
            }
            ioctl::IRQ_LINE | ioctl::IRQ_LINE_STATUS => {
                let gsi = i.u32();
                let table = Table::new(&self.entries, &self.starts, &self.pins);
                let mut calls = 0;
                let status = table.deliver(gsi, |_| {
                    calls += 1;
                    Ok::<_, ()>(1)
                });
                assert_eq!(calls, self.entries.iter().filter(|e| e.gsi == gsi).count());
                assert_eq!(status, if calls == 0 { -1 } else { calls as i32 });
            }
            ioctl::SIGNAL_MSI => {
                let (lo, hi, data, flags, dev) = (i.u32(), i.u32(), i.u32(), i.u32(), i.u32());
                if let Some(m) = routing::Msi::new(lo, hi, data, flags, dev) {
                    assert!(flags < 2 && m.devid.is_some() == (flags == 1));
                    self.message(&m);
                }
            }
            ioctl::ENABLE_CAP => self.enable(i),
            abi::X86_SET_MSR_FILTER => self.set_filter(i),
            abi::SET_CLOCK => {
                let mut c = rb::kvm_clock_data::default();
                patch(&mut c, i);
                if let Ok((clock, realtime)) = args::clock(&c) {
                    assert_eq!(c.flags & !0xe, 0);
                    let now = i.u64();
                    let set = KvmClock::set(clock, now, realtime.map(|then| (then, i.u64())));
                    if realtime.is_none() {
                        assert_eq!(set.at(now), clock);
                    }
                }
            }
            abi::SET_TSC_KHZ => {
                let (host, khz) = (i.u32(), i.u64());
                let scaling = match i.u8() % 3 {
                    0 => None,
                    1 => Some((48, 16)),
                    _ => Some((32, 8)),
                };
                let scaling = scaling.map(|(fraction, integer)| TscScaling { fraction, integer });
                match args::tsc_khz(host, khz, scaling) {
                    Ok(rate) if rate.ratio.is_one() => {
                        assert!(
                            khz == 0 || khz.abs_diff(host.into()) <= u64::from(host) / 1000 + 1
                        );
                        assert_eq!(rate.khz, host);
                    }
                    Ok(rate) => {
                        assert!(scaling.is_some());
                        assert_eq!(u64::from(rate.khz), khz);
                    }
                    Err(_) => assert!(khz != 0),
                }
                let own = args::tsc_khz(host, u64::from(host), scaling).map(|r| r.khz);
                assert_eq!(own, Ok(host));
            }
            _ => {}
        }
    }

    fn set_region(&mut self, i: &mut Input<'_>) {
        let mut r = Region {
            slot: i.u32(),
            flags: i.u32(),
            guest_phys_addr: i.u64(),
            memory_size: i.u64(),
            userspace_addr: i.u64(),
        };
        let how = i.u8();
        if how & 1 != 0 {
            r.slot &= 7;
            r.flags &= LOG_DIRTY | READONLY;
            r.guest_phys_addr &= !0xfff;
            r.memory_size &= !0xfff;
            r.userspace_addr &= !0xfff;
        }
        match self.list.get(usize::from(how >> 4)) {
            Some(old) if how & 2 != 0 => {
                // Of a slot that is there already.
                r.slot = old.id;
                r.memory_size = old.pages << PAGE_SHIFT;
                r.userspace_addr = old.hva;
            }
            Some(old) if how & 4 != 0 => {
                // Around one end of it.
                let end = match how & 8 {
                    0 => old.base_gfn,
                    _ => old.gfns().end,
                };
                let pages = u64::from(i.u8() & 7) + 1;
                let gfn = (end + 4).saturating_sub(u64::from(i.u8() & 15));
                r.guest_phys_addr = gfn << PAGE_SHIFT;
                r.memory_size = pages << PAGE_SHIFT;
            }
            _ => {}
        }
        let change = match self.slots.check(&r, self.end_gfn) {
            Ok(change) => change,
            Err(refused) => {
                if let Refused::Exists = refused {
                    let new = slot(&r);
                    assert!(self.list.iter().any(|s| s.id != r.slot
                        && s.base_gfn < new.gfns().end
                        && new.base_gfn < s.gfns().end));
                }
                return;
            }
        };
        if change == Change::Nothing {
            assert!(self.list.contains(&slot(&r)));
            return;
        }
        // As `memory/region.rs` applies it.
        if change != Change::Create {
            let old = self.slots.remove(r.slot).expect("the slot is there");
            self.list.retain(|s| *s != old);
        }
        if change != Change::Delete {
            let new = slot(&r);
            assert!(new.pages > 0 && new.gfns().end <= self.end_gfn);
            self.slots.insert(&new).expect("memory");
            self.list.push(new);
        }
        self.check_slots();
    }

    fn check_slots(&self) {
        let mut sorted = self.list.clone();
        sorted.sort_by_key(|s| s.base_gfn);
        assert!(self.slots.iter().eq(sorted.iter()));
        for w in sorted.windows(2) {
            assert!(w[0].gfns().end <= w[1].base_gfn, "slots overlap: {w:x?}");
        }
        for s in &sorted {
            assert_eq!(self.slots.by_id(s.id), Some(s));
            assert_eq!(self.slots.find(s.base_gfn), Some(s));
            assert_eq!(self.slots.find(s.gfns().end - 1), Some(s));
            let hva = s.hva..s.hva + (s.pages << PAGE_SHIFT);
            assert!(self.slots.by_hva(hva.clone()).any(|o| o == s));
            assert_eq!(s.gfns_of(&hva), s.gfns());
        }
    }

    fn clear_log(&mut self, i: &mut Input<'_>) {
        let id = i.u32() & 0xf;
        let (first, pages) = (i.u64(), u64::from(i.u32()));
        let Ok(s) = self.slots.named(id) else {
            assert!(self.list.iter().all(|s| s.id != id));
            return;
        };
        if let Ok(words) = s.words_of(first, pages) {
            assert!(first + pages <= s.pages && first % 64 == 0);
            assert_eq!(words.len() as u64, pages.div_ceil(64));
            assert!(words.end as u64 <= s.pages.div_ceil(64));
            if s.pages < 1 << 20 {
                let bitmap = Bitmap::new(s.pages).expect("memory");
                assert!(words.end <= bitmap.words());
            }
        }
    }

    fn lane(&mut self, space: Space) -> &mut Lane {
        match space {
            Space::Mmio => &mut self.mmio,
            Space::Pio => &mut self.pio,
        }
    }

    fn ioeventfd(&mut self, i: &mut Input<'_>) {
        let (flags, addr, len, value) = (i.u32(), i.u64(), i.u32(), i.u64());
        let (flags, len) = match i.u8() & 1 {
            0 => (flags, len),
            _ => (flags & 7, [0, 1, 2, 4, 8][len as usize % 5]),
        };
        if flags & bus::FLAG_DEASSIGN != 0 {
            if let Some((space, key)) = Key::named(flags, addr, len, value) {
                let lane = self.lane(space);
                if let Some(at) = lane.events.iter().position(|e| e.key == key) {
                    lane.events.remove(at);
                }
            }
            return;
        }
        let Ok((space, key)) = Key::checked(flags, addr, len, value) else {
            return;
        };
        assert_eq!(
            Key::named(flags, addr, len, value),
            Some((space, key)),
            "what is assigned can be deassigned"
        );
        let lane = self.lane(space);
        // A write for exactly this event.
        let data = &value.to_ne_bytes()[..if len == 0 { 4 } else { len as usize }];
        let Some(at) = bus::place(&lane.events, &key) else {
            assert!(lane.events.iter().any(|e| e.key.addr == addr));
            return;
        };
        lane.events.insert(at, Event { key, signal: 0 });
        let order = |e: &Event<u8>| (e.key.addr, e.key.len, e.key.value.unwrap_or(0));
        assert!(lane.events.is_sorted_by_key(order));
        let span = Span::of(&lane.events, &lane.zones);
        assert!(span.covers(addr));
        // A value is compared in the length of the write.
        let fits = len == 8 || value >> (8 * len.max(1)) == 0;
        if key.value.is_none() || fits {
            assert_eq!(
                bus::find(&lane.events, addr, data).map(|e| e.key),
                Some(key)
            );
        }
    }

    fn zone(&mut self, i: &mut Input<'_>, register: bool) {
        let (addr, size, pio) = (i.u64(), i.u32(), i.u32());
        let Ok(space) = Zone::space(pio) else {
            assert!(pio > 1);
            return;
        };
        let lane = self.lane(space);
        let zone = Zone { addr, size };
        if !register {
            lane.zones.retain(|z| !z.contains(addr, u64::from(size)));
            assert!(!lane.zones.contains(&zone) || addr.checked_add(u64::from(size)).is_none());
            return;
        }
        // The fuzzer has no thousand requests: one stands for fifty.
        for _ in 0..50 {
            match zone.place(&lane.zones) {
                Some(at) => lane.zones.insert(at, zone),
                None => assert_eq!(lane.zones.len(), bus::MAX_ZONES),
            }
        }
        assert!(lane.zones.len() <= bus::MAX_ZONES);
        assert!(lane.zones.is_sorted_by_key(|z| z.addr));
        let (at, len) = (i.u64(), u64::from(i.u8() & 7) + 1);
        let naive = lane.zones.iter().any(|z| {
            let (end, last) = (
                u128::from(z.addr) + u128::from(z.size),
                u128::from(at) + u128::from(len),
            );
            z.addr <= at && last <= end && last <= u128::from(u64::MAX)
        });
        assert_eq!(bus::in_zone(&lane.zones, at, len), naive);
    }

    fn set_routing(&mut self, i: &mut Input<'_>) {
        let mut entries = Vec::new();
        for _ in 0..i.u8() & 0x1f {
            let mut words: [u32; routing::ENTRY_WORDS] = std::array::from_fn(|_| 0);
            patch(&mut words, i);
            match Entry::from_words(&words) {
                Ok(e) => entries.push(e),
                Err(_) => return,
            }
        }
        let Ok(sizes) = routing::sizes(&entries) else {
            return;
        };
        let given = entries.clone();
        let mut starts = vec![0; sizes.starts];
        let mut pins = vec![PinRoute::default(); sizes.pins];
        let built = routing::build(&mut entries, &mut starts, &mut pins);
        let shared = |a: &Entry, b: &Entry| {
            a.gsi == b.gsi
                && !matches!((a.target, b.target),
                    (Target::Pin { chip: x, .. }, Target::Pin { chip: y, .. }) if x != y)
        };
        let conflict = given
            .iter()
            .enumerate()
            .any(|(n, a)| given[..n].iter().any(|b| shared(a, b)));
        assert_eq!(built.is_err(), conflict);
        if built.is_ok() {
            assert!(given.iter().all(|e| entries.contains(e)) && given.len() == entries.len());
            (self.entries, self.starts, self.pins) = (entries, starts, pins);
            self.check_routes();
        }
    }

    /// Lookups stay within the table and find all of it.
    pub(super) fn check_routes(&self) {
        let table = Table::new(&self.entries, &self.starts, &self.pins);
        let mut found = 0;
        for gsi in (0..routing::MAX_ROUTES as u32).chain([4096, u32::MAX - 1, u32::MAX]) {
            for e in table.targets(gsi) {
                assert_eq!(e.gsi, gsi);
                found += 1;
            }
        }
        assert_eq!(found, self.entries.len());
        for e in &self.entries {
            match e.target {
                Target::Pin { chip, pin } => {
                    assert!(table.gsis_of(chip, pin).any(|gsi| gsi == e.gsi));
                }
                Target::Msi(m) => self.message(&m),
                Target::Other { .. } => {}
            }
        }
    }

    /// A message's interrupt.
    fn message(&self, m: &routing::Msi) {
        let words = msi::Msi {
            address_lo: m.address as u32,
            address_hi: (m.address >> 32) as u32,
            data: m.data,
        };
        let format = msi::Format {
            wide_ids: self.wide_ids,
            extended_dest: false,
            wide_broadcast: self.broadcast,
        };
        match words.irq(format) {
            Ok(irq) => {
                assert_eq!(u32::from(irq.vector), m.data & 0xff);
                assert!(self.wide_ids || irq.dest < 256);
            }
            Err(_) => assert!(self.wide_ids && words.address_hi & 0xff != 0),
        }
    }

    fn enable(&mut self, i: &mut Input<'_>) {
        const CAPS: [u32; 9] = [
            rb::KVM_CAP_SPLIT_IRQCHIP,
            rb::KVM_CAP_X2APIC_API,
            rb::KVM_CAP_DISABLE_QUIRKS,
            rb::KVM_CAP_DISABLE_QUIRKS2,
            rb::KVM_CAP_MSR_PLATFORM_INFO,
            rb::KVM_CAP_EXCEPTION_PAYLOAD,
            rb::KVM_CAP_X86_TRIPLE_FAULT_EVENT,
            rb::KVM_CAP_X86_USER_SPACE_MSR,
            0,
        ];
        let mut c = rb::kvm_enable_cap {
            cap: CAPS[i.below(CAPS.len())],
            ..Default::default()
        };
        patch(&mut c, i);
        use args::Enable::*;
        match args::Enable::decode(c.cap, c.flags, &c.args) {
            Ok(SplitIrqchip(pins)) => assert!(pins <= 240 && u64::from(pins) == c.args[0]),
            Ok(X2apicApi {
                wide_ids,
                no_broadcast_quirk,
            }) => {
                assert!(c.args[0] < 4);
                self.wide_ids |= wide_ids;
                self.broadcast &= !no_broadcast_quirk;
            }
            Ok(DisableQuirks(q)) => assert_eq!(q & !args::QUIRKS, 0),
            Ok(ExceptionPayload(on)) => self.enabled.payloads = on,
            Ok(TripleFaultEvent(on)) => self.enabled.triple_fault = on,
            Ok(MsrExits(r)) => assert_eq!(u64::from(r), c.args[0]),
            Ok(PlatformInfo(_)) | Err(_) => {}
        }
    }

    fn set_filter(&mut self, i: &mut Input<'_>) {
        let flags = i.u32();
        let mut ranges = Vec::new();
        for _ in 0..filter::MAX_RANGES.min(usize::from(i.u8() & 0x1f)) {
            let (range_flags, base, count) = (i.u32(), i.u32(), i.u32());
            let Ok(bytes) = filter::bitmap_bytes(range_flags, count) else {
                return;
            };
            assert!(bytes <= filter::MAX_BITMAP && (bytes == 0) == (count == 0));
            if bytes == 0 {
                continue;
            }
            let pattern = i.u8();
            let bitmap = (0..bytes)
                .map(|n| pattern.rotate_left(n as u32 & 7))
                .collect();
            ranges.push(Range {
                flags: range_flags,
                base,
                count,
                bitmap,
            });
        }
        if !filter::flags_valid(flags, ranges.len()) {
            return;
        }
        self.filter = (flags & filter::DEFAULT_DENY == 0, ranges);
        let (allow, ranges) = &self.filter;
        for r in ranges {
            // Both ends of each range, and their neighbours.
            for index in [r.base, r.base.wrapping_add(r.count - 1)] {
                for index in [index.wrapping_sub(1), index, index.wrapping_add(1)] {
                    for write in [false, true] {
                        let kind = if write { filter::WRITE } else { filter::READ };
                        let first = ranges
                            .iter()
                            .find(|r| r.flags & kind != 0 && index.wrapping_sub(r.base) < r.count);
                        let naive = match first {
                            _ if (0x800..=0x8ff).contains(&index) => true,
                            Some(r) => {
                                let n = index.wrapping_sub(r.base);
                                r.bitmap[(n / 8) as usize] >> (n % 8) & 1 != 0
                            }
                            None => *allow,
                        };
                        assert_eq!(filter::allowed(ranges, !allow, index, write), naive);
                    }
                }
            }
        }
    }
}
