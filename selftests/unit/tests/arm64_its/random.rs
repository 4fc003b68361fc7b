// SPDX-License-Identifier: GPL-2.0

//! Random commands against a simple reference.

use super::machine::*;
use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::its::*;
use std::collections::BTreeMap;

const DEVICE_IDS: [u32; 5] = [0, 1, 2, 8191, 8192];

/// What the architecture says, in maps.
#[derive(Clone, Debug, Default)]
struct Reference {
    /// Bits of the EventIDs
    devices: BTreeMap<u32, u32>,
    /// INTID and ICID
    events: BTreeMap<(u32, u32), (u32, u16)>,
    collections: BTreeMap<u16, u32>,
    /// Target, pending
    lpis: BTreeMap<u32, (Option<u32>, bool)>,
}

#[derive(Clone, Debug)]
enum Op {
    Mapd(u32, Option<u32>),
    Mapc(u16, Option<u32>),
    Mapti(u32, u32, u32, u16),
    Movi(u32, u32, u16),
    Movall(u32, u32),
    Discard(u32, u32),
    Int(u32, u32),
    Clear(u32, u32),
    Inv(u32, u32),
    Invall(u16),
    Migrate,
}

impl Reference {
    fn target(&self, at: &(u32, u32)) -> Option<(u32, u32)> {
        let (intid, icid) = *self.events.get(at)?;
        Some((intid, *self.collections.get(&icid)?))
    }
    fn drop_device(&mut self, device: u32) {
        self.devices.remove(&device);
        let lpis = &mut self.lpis;
        self.events.retain(|(d, _), (intid, _)| {
            if *d == device {
                lpis.remove(intid);
            }
            *d != device
        });
    }
    /// Whether it is a good one.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Mapd(device, bits) => {
                if device > 8191 || bits.is_some_and(|b| b > 16) {
                    return false;
                }
                self.drop_device(device);
                if let Some(bits) = bits {
                    self.devices.insert(device, bits);
                }
            }
            Op::Mapc(icid, None) => {
                self.collections.remove(&icid);
                for (intid, _) in self.events.values().filter(|(_, i)| *i == icid) {
                    self.lpis.get_mut(intid).unwrap().0 = None;
                }
            }
            Op::Mapc(icid, Some(vcpu)) => {
                if vcpu >= VCPUS || icid > 8191 {
                    return false;
                }
                if self.collections.insert(icid, vcpu) != Some(vcpu) {
                    for (intid, i) in self.events.values() {
                        if *i == icid {
                            self.lpis.get_mut(intid).unwrap().0 = Some(vcpu);
                        }
                    }
                }
            }
            Op::Mapti(device, event, intid, icid) => {
                let Some(bits) = self.devices.get(&device) else {
                    return false;
                };
                if event >> bits != 0
                    || !(8192..65536).contains(&intid)
                    || icid > 8191
                    || self.events.contains_key(&(device, event))
                    || self.lpis.contains_key(&intid)
                {
                    return false;
                }
                self.events.insert((device, event), (intid, icid));
                let target = self.collections.get(&icid).copied();
                self.lpis.insert(intid, (target, false));
            }
            Op::Movi(device, event, icid) => {
                let at = (device, event);
                let (Some((intid, _)), Some(to)) = (self.target(&at), self.collections.get(&icid))
                else {
                    return false;
                };
                self.lpis.get_mut(&intid).unwrap().0 = Some(*to);
                self.events.insert(at, (intid, icid));
            }
            Op::Movall(from, to) => {
                if from >= VCPUS || to >= VCPUS {
                    return false;
                }
                for (target, _) in self.lpis.values_mut() {
                    if *target == Some(from) {
                        *target = Some(to);
                    }
                }
            }
            Op::Discard(device, event) => {
                let Some((intid, _)) = self.events.remove(&(device, event)) else {
                    return false;
                };
                self.lpis.remove(&intid);
            }
            Op::Int(device, event) => {
                let Some((intid, vcpu)) = self.target(&(device, event)) else {
                    return false;
                };
                self.lpis.insert(intid, (Some(vcpu), true));
            }
            Op::Clear(device, event) => {
                let Some((intid, _)) = self.events.get(&(device, event)) else {
                    return false;
                };
                self.lpis.get_mut(intid).unwrap().1 = false;
            }
            Op::Inv(device, event) => return self.events.contains_key(&(device, event)),
            Op::Invall(icid) => return self.collections.contains_key(&icid),
            Op::Migrate => {}
        }
        true
    }
}

fn itt(device: u32) -> u64 {
    ITTS + u64::from(device % 16) * 0x8_0000
}

fn command(op: &Op) -> Option<Command> {
    Some(match *op {
        Op::Mapd(d, Some(bits)) => mapd(d, itt(d), bits.into()),
        Op::Mapd(d, None) => unmapd(d),
        Op::Mapc(c, Some(vcpu)) => mapc(c, vcpu),
        Op::Mapc(c, None) => unmapc(c),
        Op::Mapti(d, e, intid, c) if intid == e => mapi(d, e, c),
        Op::Mapti(d, e, intid, c) => mapti(d, e, intid, c),
        Op::Movi(d, e, c) => movi(d, e, c),
        Op::Movall(a, b) => movall(processor(a), processor(b)),
        Op::Discard(d, e) => discard(d, e),
        Op::Int(d, e) => int(d, e),
        Op::Clear(d, e) => clear(d, e),
        Op::Inv(d, e) => inv(d, e),
        Op::Invall(c) => invall(c),
        Op::Migrate => return None,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let d = || prop::sample::select(&DEVICE_IDS[..]);
    let e = || prop_oneof![8 => 0_u32..8, 1 => 8190_u32..8196, 1 => any::<u32>()];
    let c = || prop_oneof![8 => 0_u16..4, 1 => 8191_u16..8193];
    let v = || 0..=VCPUS;
    let intid = || prop_oneof![8 => 8191_u32..8204, 1 => 65534_u32..65538];
    let bits = || prop_oneof![2_u32..4, 13_u32..18];
    prop_oneof![
        3 => (d(), prop::option::weighted(0.7, bits())).prop_map(|(d, b)| Op::Mapd(d, b)),
        4 => (c(), prop::option::weighted(0.8, v())).prop_map(|(c, v)| Op::Mapc(c, v)),
        12 => (d(), e(), intid(), c()).prop_map(|(d, e, i, c)| Op::Mapti(d, e, i, c)),
        1 => (d(), 8190_u32..8196, c()).prop_map(|(d, e, c)| Op::Mapti(d, e, e, c)),
        4 => (d(), e(), c()).prop_map(|(d, e, c)| Op::Movi(d, e, c)),
        1 => (v(), v()).prop_map(|(a, b)| Op::Movall(a, b)),
        4 => (d(), e()).prop_map(|(d, e)| Op::Discard(d, e)),
        4 => (d(), e()).prop_map(|(d, e)| Op::Int(d, e)),
        2 => (d(), e()).prop_map(|(d, e)| Op::Clear(d, e)),
        1 => (d(), e()).prop_map(|(d, e)| Op::Inv(d, e)),
        1 => c().prop_map(Op::Invall),
        1 => Just(Op::Migrate),
    ]
}

fn check(m: &Machine, r: &Reference) {
    let mut events: Vec<(u32, u32)> = r.events.keys().copied().collect();
    for d in DEVICE_IDS {
        events.extend((0..17).map(|e| (d, e)));
    }
    for at in events {
        assert_eq!(m.to(at.0, at.1), r.target(&at), "{at:x?}");
    }
    let lpis = m.vcpus.lpis.iter();
    let lpis: BTreeMap<_, _> = lpis.map(|(i, s)| (*i, (s.target, s.pending))).collect();
    assert_eq!(lpis, r.lpis);
    assert_eq!(m.its.mapped_devices(), r.devices.len());
    assert_eq!(m.its.mapped_events() as usize, r.events.len());
}

/// Saves, and restores in place of what there was. The LPIs' pending state is in their tables meanwhile.
fn migrate(m: &mut Machine, r: &mut Reference) {
    for (intid, (target, pending)) in &mut r.lpis {
        match target {
            Some(vcpu) => {
                let table = m.vcpus.pending_table(*vcpu).unwrap();
                table.set(&m.ram, *intid, *pending).unwrap();
            }
            None => *pending = false,
        }
    }
    m.its.save(&m.ram).unwrap();
    m.its.restore(&m.ram, &mut m.vcpus).unwrap();
    // An LPI that is not at its collection's vCPU (MOVALL) has no record of that: it is lost by design.
    let moved: Vec<(u32, u32)> = r.events.keys().copied().collect();
    for at in moved {
        let intid = r.events[&at].0;
        let target = r.target(&at).map(|(_, vcpu)| vcpu);
        let lpi = r.lpis.get_mut(&intid).unwrap();
        if lpi.0 != target {
            if let Some(vcpu) = lpi.0 {
                let table = m.vcpus.pending_table(vcpu).unwrap();
                table.set(&m.ram, intid, false).unwrap();
            }
            *lpi = (target, false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_commands(ops in prop::collection::vec((op(), prop::option::weighted(0.2, 0_u32..4)), 1..80)) {
        let mut m = Machine::new();
        let mut r = Reference::default();
        for d in 0..2 {
            let op = Op::Mapd(d, Some(4));
            r.apply(&op);
            m.send(command(&op).unwrap());
        }
        for (op, fail) in ops {
            let Some(command) = command(&op) else {
                migrate(&mut m, &mut r);
                check(&m, &r);
                continue;
            };
            // A guest clears a table before it gives it to the ITS.
            if let Op::Mapd(d, Some(_)) = op {
                m.ram.fill(itt(d), 0x8_0000, 0);
            }
            let old = m.vcpus.refused.len();
            let at = m.queue(m.read(CWRITER), command);
            let effect = m.its.write(CWRITER, 8, at, &mut m.vcpus);
            prop_assert_eq!(effect, Effect::Process);
            // Memory lacks, and the guest's command is tried again.
            m.vcpus.fail_in = fail;
            let first = m.its.process(&m.ram, &mut m.vcpus);
            prop_assert_eq!(first.is_err(), m.its.has_work());
            m.vcpus.fail_in = None;
            m.run();
            let good = r.apply(&op);
            prop_assert_eq!(m.vcpus.refused.len() == old, good, "{:?} {:?}", op, m.vcpus.refused.last());
            check(&m, &r);
        }
    }
}

/// Random mappings, saved and restored by another ITS: the same translations.
fn roundtrip(events: Vec<(u32, u32, u16)>, targets: Vec<Option<u32>>) {
    let mut m = Machine::new();
    m.write(CTLR, 0);
    m.write(BASER0, VALID | DEVICES | 7);
    m.write(CTLR, 1);
    let mut itts = BTreeMap::new();
    for (i, (device, event, icid)) in events.iter().enumerate() {
        let next = ITTS + 0x8_0000 * itts.len() as u64;
        if itts.len() < 12 && !itts.contains_key(device) {
            itts.insert(*device, next);
            m.good(mapd(*device, next, 16));
        }
        m.send(mapti(*device, *event, 8192 + i as u32, *icid));
    }
    for (icid, target) in (0..).zip(&targets) {
        if let Some(vcpu) = target {
            m.good(mapc(icid, *vcpu));
        }
    }
    m.its.save(&m.ram).unwrap();
    let mut other = Vcpus::new();
    let mut its = Its::new();
    its.set_base(BASE, 40).unwrap();
    for register in [CBASER, CREADR, CWRITER, BASER0, BASER1] {
        let effect = its.user_write(register, m.read(register), &mut other);
        assert_eq!(effect, Ok(Effect::None));
    }
    its.restore(&m.ram, &mut other).unwrap();
    assert!(its.user_write(CTLR, 1, &mut other).is_ok());
    let mut mapped = 0;
    for (device, event, _) in &events {
        let found = its.translate(*device, *event);
        assert_eq!(found, m.its.translate(*device, *event));
        mapped += usize::from(found.is_some());
    }
    assert!(mapped > 0 || targets.iter().all(Option::is_none));
    assert_eq!(other.lpis, m.vcpus.lpis);
    assert_eq!(its.mapped_devices(), m.its.mapped_devices());
    assert_eq!(its.known_collections(), m.its.known_collections());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn save_and_restore(
        mut events in prop::collection::vec((0_u32..65536, 0_u32..65536, 0_u16..4), 1..60),
        few in prop::collection::vec((0_u32..3, 0_u32..40, 0_u16..4), 0..60),
        targets in prop::collection::vec(prop::option::weighted(0.9, 0..VCPUS), 4),
    ) {
        events.extend(few);
        if targets.iter().all(Option::is_some) {
            roundtrip(events, targets);
        } else {
            let some = events.into_iter().filter(|(_, _, c)| targets[usize::from(*c)].is_some() || c % 2 == 0);
            let some: Vec<_> = some.collect();
            if some.iter().any(|(_, _, c)| targets[usize::from(*c)].is_some()) {
                roundtrip(some, targets);
            }
        }
    }
}
