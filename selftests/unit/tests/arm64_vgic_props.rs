// SPDX-License-Identifier: GPL-2.0

//! The virtual GICv3 with two vCPUs and a virtual CPU interface as hardware has it, against a
//! naive model: whatever comes in between, each vCPU takes what the naive one says is next.
//!
//! A vCPU leaves the guest only when its bell rings, a maintenance interrupt comes, or it
//! accesses a register: if one of these were missing, it would take something old.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::vgic::*;
use std::collections::BTreeMap;

/// The PPI with a physical interrupt behind it.
const TIMER: u32 = 27;
const ALL: [u32; 14] = [
    0, 1, 15, 20, TIMER, 32, 33, 34, 35, 63, 64, 8192, 8193, 9000,
];

const fn hw(count: u8) -> LrConfig {
    LrConfig {
        count,
        pri_bits: 5,
        id_bits: 0,
        seis: false,
        a3v: true,
        tds: true,
    }
}

/// An interrupt of the naive model.
#[derive(Clone, Default)]
struct Naive {
    edge: bool,
    line: bool,
    latch: bool,
    enabled: bool,
    group1: bool,
    priority: u8,
    route: usize,
    /// On this vCPU
    active: Option<usize>,
}

impl Naive {
    fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

/// By vCPU (0 for SPIs) and INTID.
type Key = (usize, u32);

fn key(v: usize, intid: u32) -> Key {
    (if (32..1020).contains(&intid) { 0 } else { v }, intid)
}

/// The hardware of a vCPU: list registers, running priorities, EOIcount.
#[derive(Default)]
struct Cpu {
    regs: ListRegs,
    vmcr: Vmcr,
    /// What it has taken and not ended: INTID, priority
    running: Vec<(u32, u8)>,
    eoi_count: u64,
}

impl Cpu {
    fn ack(&mut self) -> Option<u32> {
        let limit = self
            .running
            .last()
            .map_or(0xff, |r| r.1)
            .min(self.vmcr.pmr());
        let vmcr = self.vmcr;
        let lr = (self.regs.in_use_mut().iter_mut())
            .filter(|lr| lr.is_pending() && !lr.is_active() && vmcr.group(lr.group1()))
            .filter(|lr| lr.priority() < limit)
            .min_by_key(|lr| lr.priority())?;
        *lr = lr.state(false, true);
        self.running.push((lr.intid(), lr.priority()));
        Some(lr.intid())
    }
    /// Drops the priority and, with EOImode 0, deactivates. The physical interrupt, if one was
    /// deactivated.
    fn eoi(&mut self) -> Option<u16> {
        let (intid, _) = self.running.pop()?;
        if self.vmcr.eoi_split() {
            return None;
        }
        let lr = self.regs.in_use_mut().iter_mut();
        match lr.filter(|lr| lr.intid() == intid && lr.is_active()).last() {
            Some(lr) => {
                *lr = lr.state(lr.is_pending(), false);
                lr.pintid()
            }
            None => {
                self.eoi_count += u64::from(intid < 8192);
                None
            }
        }
    }
    /// ICH_MISR_EL2 is not zero.
    fn maintenance(&self) -> bool {
        let hcr = self.regs.hcr;
        let on = |bit: u64, cond: bool| hcr & bit != 0 && cond;
        let lrs = self.regs.in_use();
        let free = |lr: &Lr| !lr.is_pending() && !lr.is_active();
        lrs.iter().any(|lr| free(lr) && lr.asks_eoi())
            || on(hcr::UIE, lrs.iter().filter(|lr| !free(lr)).count() < 2)
            || on(hcr::LRENPIE, self.eoi_count != 0)
            || on(
                hcr::NPIE,
                !lrs.iter().any(|lr| lr.is_pending() && !lr.is_active()),
            )
            || on(hcr::VGRP0EIE, self.vmcr.group(false))
            || on(hcr::VGRP0DIE, !self.vmcr.group(false))
            || on(hcr::VGRP1EIE, self.vmcr.group(true))
            || on(hcr::VGRP1DIE, !self.vmcr.group(true))
    }
}

struct Vm {
    hw: LrConfig,
    d: Dist,
    p: [Private; 2],
    cpu: [Cpu; 2],
    /// The physical timer interrupt of each is active.
    physical: [bool; 2],
    n: BTreeMap<Key, Naive>,
    groups: [bool; 2],
    /// Ends that were told of, and those that the naive model had
    told: Vec<u32>,
    had: Vec<u32>,
}

impl Vm {
    fn new(count: u8, split: bool) -> Self {
        let hw = hw(count);
        let config = Config {
            nr_irqs: 96,
            revision: 3,
            its: true,
        };
        let affinities = [0, 1].map(Affinity::from_bits);
        let d = Dist::new(config, affinities.into_iter()).ok().unwrap();
        let mut p = [0, 1].map(|i| Private::new(i, i, affinities[usize::from(i)], &hw));
        for p in &mut p {
            p.map_ppi(TIMER, Some(26)).unwrap();
            drop(p.set_lpi_slots(LpiSlots::new(3).unwrap()));
            let _ = p.write(gicr::CTLR, 4, 1, d.global());
        }
        let mut n = BTreeMap::new();
        for v in 0..2 {
            for intid in ALL {
                n.entry(key(v, intid)).or_insert(Naive {
                    edge: !(16..8192).contains(&intid),
                    enabled: intid < 16,
                    group1: true,
                    ..Naive::default()
                });
            }
        }
        let split = if split { Vmcr::EOI_SPLIT } else { 0 };
        let cpu = [0, 1].map(|_| Cpu {
            vmcr: Vmcr(0xff << 24 | 3 | split),
            ..Cpu::default()
        });
        let mut vm = Self {
            hw,
            d,
            p,
            cpu,
            physical: [false; 2],
            n,
            groups: [false; 2],
            told: vec![],
            had: vec![],
        };
        vm.dist(0, gicd::CTLR, 4, 3);
        vm.groups = [true; 2];
        // Most are enabled, as most of a run is about them.
        for intid in ALL {
            for v in 0..2 {
                vm.set_bit(v, gicd::ISENABLER, intid);
                vm.n.get_mut(&key(v, intid)).unwrap().enabled = true;
            }
        }
        vm.exit(0);
        vm.exit(1);
        vm
    }

    fn fold(&mut self, v: usize) {
        self.p[v].cpuif.vmcr = self.cpu[v].vmcr;
        let cpu = &mut self.cpu[v];
        cpu.regs.hcr |= cpu.eoi_count << 27;
        cpu.eoi_count = 0;
        let o = fold(&mut self.p[v], Some(&mut self.d), &mut cpu.regs).unwrap();
        self.outcome(v, o);
    }

    fn outcome(&mut self, v: usize, o: Outcome) {
        self.told.extend(o.ended.iter());
        if o.deactivate & 1 << TIMER != 0 {
            self.physical[v] = false;
        }
        assert!(!o.ring.contains(v as u16) || self.cpu[v].regs.used == 0);
        self.ring(o.ring);
    }

    fn fill(&mut self, v: usize) {
        let concerned = self.d.concerns(v as u16);
        let quiet = !concerned && self.p[v].is_quiet() && !self.cpu[v].regs.loaded;
        let dist = concerned.then_some(&mut self.d);
        let global = Global::from_bits(dist.as_ref().map_or(0, |d| d.global().to_bits()));
        let global = if concerned { global } else { self.d.global() };
        let dist = concerned.then_some(&mut self.d);
        fill(
            &mut self.p[v],
            dist,
            global,
            &self.hw,
            &mut self.cpu[v].regs,
        );
        let regs = &self.cpu[v].regs;
        assert!(!quiet || regs.used == 0 && !regs.overflow, "quiet");
        let timer = |lr: &&Lr| lr.intid() == TIMER;
        if let Some(lr) = self.cpu[v].regs.in_use().iter().find(timer) {
            assert!(lr.pintid() == Some(26) || lr.is_active() && lr.asks_eoi());
            self.physical[v] = true;
        }
        assert!(!self.cpu[v].maintenance(), "at once, and for ever");
    }

    /// Out of the guest and back.
    fn exit(&mut self, v: usize) {
        self.fold(v);
        self.fill(v);
    }

    fn ring(&mut self, who: Vcpus) {
        for v in who.iter() {
            // One that is out anyway fills before it enters.
            if self.cpu[usize::from(v)].regs.loaded {
                self.exit(v.into());
            }
        }
    }

    /// vCPU `v` writes a register of the distributor.
    fn dist(&mut self, v: usize, offset: u64, len: u8, value: u64) {
        self.fold(v);
        let ring = self.d.write(offset, len, value);
        self.ring(ring);
        self.fill(v);
    }

    /// vCPU 0 writes a register of the redistributor of `v`.
    fn redist(&mut self, v: usize, offset: u64, len: u8, value: u64) {
        self.fold(0);
        let effect = self.p[v].write(gicr::SGI_BASE + offset, len, value, self.d.global());
        assert_eq!(effect.lpi, LpiEffect::None);
        if effect.ring {
            self.physical[v] = self.p[v].is_busy(TIMER);
        }
        if effect.ring && self.cpu[v].regs.loaded {
            self.exit(v);
        }
        self.fill(0);
    }

    fn set_bit(&mut self, v: usize, offset: u64, intid: u32) {
        let at = offset + u64::from(intid / 32 * 4);
        let value = 1 << (intid % 32);
        match intid {
            0..32 => self.redist(v, at, 4, value),
            32..1020 => self.dist(v, at, 4, value),
            _ => {}
        }
    }

    fn tell(&mut self, v: usize, news: bool) {
        if news && self.cpu[v].regs.loaded {
            self.exit(v);
        }
    }

    /// What the naive model says `v` may take, by priority.
    fn next(&self, v: usize, running: u8) -> Option<(u8, Vec<u32>)> {
        let vmcr = self.cpu[v].vmcr;
        let may = |(&(owner, intid), n): (&Key, &Naive)| {
            let here = if (32..1020).contains(&intid) {
                n.route == v
            } else {
                owner == v
            };
            let on = vmcr.group(n.group1) && self.groups[usize::from(n.group1)];
            let high = n.priority < running.min(vmcr.pmr());
            (here && on && high && n.pending() && n.enabled && n.active.is_none())
                .then_some((n.priority, intid))
        };
        let all: Vec<_> = self.n.iter().filter_map(may).collect();
        let first = all.iter().map(|a| a.0).min()?;
        let best = all.iter().filter(|a| a.0 == first).map(|a| a.1).collect();
        Some((first, best))
    }

    fn ack(&mut self, v: usize) -> bool {
        let running = self.cpu[v].running.last().map_or(0xff, |r| r.1);
        let next = self.next(v, running);
        let got = self.cpu[v].ack();
        match (&next, got) {
            (None, None) => return false,
            (Some((_, best)), Some(intid)) if best.contains(&intid) => {
                let n = self.n.get_mut(&key(v, intid)).unwrap();
                n.latch = false;
                if intid < 8192 {
                    n.active = Some(v);
                }
            }
            _ => panic!("vCPU {v} takes {got:?}, not one of {next:?}"),
        }
        self.after(v);
        true
    }

    fn after(&mut self, v: usize) {
        if self.cpu[v].maintenance() {
            self.exit(v);
        }
    }

    /// An interrupt has ended; true if it was active.
    fn over(&mut self, v: usize, intid: u32) -> bool {
        let n = self.n.get_mut(&key(v, intid)).unwrap();
        let was = n.active.take().is_some();
        if was && intid >= 32 && !n.edge {
            self.had.push(intid);
        }
        // The physical timer interrupt comes again, if its line is high.
        let line = n.line;
        if intid == TIMER && line {
            self.exit(v);
        }
        was
    }

    fn eoi(&mut self, v: usize) {
        let Some(&(intid, _)) = self.cpu[v].running.last() else {
            return;
        };
        if self.cpu[v].eoi().is_some() {
            assert!(self.physical[v]);
            self.physical[v] = false;
        }
        let over = !self.cpu[v].vmcr.eoi_split() && self.over(v, intid);
        self.after(v);
        if over {
            self.physical_is_over(v, intid);
        }
    }

    /// With the end of the virtual timer interrupt the physical one has ended, by whomever.
    fn physical_is_over(&self, v: usize, intid: u32) {
        let again = intid != TIMER || self.n[&(v, intid)].pending();
        assert!(again || !self.physical[v]);
    }

    /// EOImode 1: `v` deactivates an interrupt that is active here, or an SPI that is elsewhere.
    fn dir(&mut self, v: usize, intid: u32) {
        let runs = |(i, c): (usize, &Cpu)| {
            c.running.iter().any(|r| r.0 == intid) && (i == v || intid >= 32)
        };
        if !self.cpu[v].vmcr.eoi_split() || self.cpu.iter().enumerate().any(runs) {
            return;
        }
        assert_ne!(self.cpu[v].regs.hcr & hcr::TDIR, 0);
        self.fold(v);
        let o = deactivate(&mut self.p[v], Some(&mut self.d), intid);
        self.outcome(v, o);
        let over = self.over(v, intid);
        if !self.cpu[v].regs.loaded {
            self.fill(v);
        }
        if over {
            self.physical_is_over(v, intid);
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Ack(v) => drop(self.ack(v)),
            Op::Eoi(v) => self.eoi(v),
            Op::Exit(v) => self.exit(v),
            Op::Dir(v, intid) => self.dir(v, intid),
            Op::Wait(v) => {
                self.fold(v);
                let waits = !pending_for(&self.p[v], Some(&self.d), self.d.global());
                assert_eq!(waits, self.next(v, 0xff).is_none());
                self.fill(v);
            }
            Op::Line(v, intid, level) => {
                let n = self.n.get_mut(&key(v, intid)).unwrap();
                n.line = level;
                n.latch |= n.edge && level;
                match intid {
                    16..32 => {
                        let news = self.p[v].set_ppi(intid, level).unwrap();
                        self.tell(v, news);
                    }
                    32..1020 => {
                        let ring = self.d.set_spi(intid, level).unwrap();
                        self.ring(ring);
                    }
                    0..16 => {
                        n.line = false;
                        n.latch = true;
                        let sgi = decode_sgi(SgiReg::Sgi1r, u64::from(intid) << 24 | 1 << v);
                        assert!(sgi.is_for(self.p[v].affinity(), false));
                        let news = self.p[v].set_sgi(&sgi);
                        self.tell(v, news);
                    }
                    _ => {
                        n.latch = level;
                        let (priority, enabled) = (n.priority, n.enabled);
                        let news = if level {
                            self.p[v].set_lpi_pending(intid, priority, enabled).unwrap()
                        } else {
                            self.p[v].clear_lpi(intid)
                        };
                        self.tell(v, news);
                    }
                }
            }
            Op::Enable(v, intid, on) => {
                let n = self.n.get_mut(&key(v, intid)).unwrap();
                n.enabled = on;
                let priority = n.priority;
                self.set_bit(v, if on { gicd::ISENABLER } else { gicd::ICENABLER }, intid);
                let news = intid >= 8192 && self.p[v].configure_lpi(intid, priority, on);
                self.tell(v, news);
            }
            Op::Pend(v, intid, on) if intid < 8192 => {
                let n = self.n.get_mut(&key(v, intid)).unwrap();
                n.latch = on;
                self.set_bit(v, if on { gicd::ISPENDR } else { gicd::ICPENDR }, intid);
            }
            Op::Priority(v, intid, priority) => {
                let n = self.n.get_mut(&key(v, intid)).unwrap();
                // Of an active one, the order in which interrupts end would be another.
                if n.active.is_some() || self.cpu[v].running.iter().any(|r| r.0 == intid) {
                    return;
                }
                n.priority = priority;
                let enabled = n.enabled;
                let at = gicd::IPRIORITYR + u64::from(intid);
                match intid {
                    0..32 => self.redist(v, at, 1, priority.into()),
                    32..1020 => self.dist(v, at, 1, priority.into()),
                    _ => {
                        let news = self.p[v].configure_lpi(intid, priority, enabled);
                        self.tell(v, news);
                    }
                }
            }
            Op::Group(v, intid, group1) if intid < 8192 => {
                self.n.get_mut(&key(v, intid)).unwrap().group1 = group1;
                let at = u64::from(intid / 32 * 4) + gicd::IGROUPR;
                let bits = (self
                    .n
                    .iter()
                    .filter(|(k, n)| n.group1 && k.1 / 32 == intid / 32 && *k == &key(v, k.1)))
                .fold(0, |bits, (k, _)| bits | 1 << (k.1 % 32));
                match intid {
                    0..32 => self.redist(v, at, 4, bits),
                    _ => self.dist(v, at, 4, bits),
                }
            }
            Op::Edge(v, intid, edge) if (32..1020).contains(&intid) => {
                self.n.get_mut(&key(v, intid)).unwrap().edge = edge;
                let spis = self
                    .n
                    .iter()
                    .filter(|(k, n)| k.1 / 16 == intid / 16 && n.edge);
                let bits = spis.fold(0, |bits, (k, _)| bits | 2 << (k.1 % 16 * 2));
                self.dist(v, gicd::ICFGR + u64::from(intid / 16 * 4), 4, bits);
            }
            Op::Route(v, intid, to) if (32..1020).contains(&intid) => {
                self.n.get_mut(&key(v, intid)).unwrap().route = to;
                let len = if to == 0 { 8 } else { 4 };
                self.dist(v, gicd::IROUTER + u64::from(intid) * 8, len, to as u64);
            }
            Op::Control(v, groups) => {
                self.groups = [groups & 1 != 0, groups & 2 != 0];
                self.dist(v, gicd::CTLR, 4, groups);
            }
            Op::Vmcr(v, groups, pmr) => {
                let vmcr = &mut self.cpu[v].vmcr;
                vmcr.0 = vmcr.0 & 0xff_fffc | groups | u32::from(pmr) << 24;
                self.after(v);
            }
            _ => {}
        }
    }

    /// All registers that the guest can read say what the naive model has.
    fn compare(&mut self) {
        self.fold(0);
        self.fold(1);
        for (&(v, intid), n) in &self.n {
            if intid >= 8192 {
                let pending = self.p[v].pending_lpis().any(|p| p == intid);
                assert_eq!(pending, n.latch, "{intid}");
                continue;
            }
            let read = |offset: u64| {
                let at = offset + u64::from(intid / 32 * 4);
                let word = match intid {
                    0..32 => self.p[v].read(gicr::SGI_BASE + at, 4, self.d.global()),
                    _ => self.d.read(at, 4),
                };
                word & 1 << (intid % 32) != 0
            };
            assert_eq!(read(gicd::ISPENDR), n.pending(), "{intid} pending");
            assert_eq!(read(gicd::ISACTIVER), n.active.is_some(), "{intid} active");
            assert_eq!(read(gicd::ISENABLER), n.enabled, "{intid} enabled");
            assert_eq!(read(gicd::IGROUPR), n.group1, "{intid} group");
        }
        for v in 0..2 {
            // A vCPU that no SPI concerns is told so.
            let mine = |(k, n): (&Key, &Naive)| {
                (32..1020).contains(&k.1)
                    && (n.active == Some(v)
                        || n.active.is_none() && n.pending() && n.enabled && n.route == v)
            };
            let concerned = self.n.iter().any(mine);
            assert_eq!(self.d.concerns(v as u16), concerned);
        }
        assert_eq!(self.told, self.had);
        self.fill(0);
        self.fill(1);
    }

    /// Takes and ends all that there is; levels fall as they are taken.
    fn drain(&mut self) {
        // Twice, as the end of an interrupt here may be another's turn.
        for v in [0, 1, 0, 1] {
            loop {
                while !self.cpu[v].running.is_empty() {
                    self.eoi(v);
                }
                let active = |(k, n): (&Key, &Naive)| (n.active == Some(v)).then_some(k.1);
                for intid in self.n.iter().filter_map(active).collect::<Vec<_>>() {
                    self.dir(v, intid);
                }
                if !self.ack(v) {
                    break;
                }
                let (intid, _) = *self.cpu[v].running.last().unwrap();
                if (16..8192).contains(&intid) {
                    self.step(&Op::Line(v, intid, false));
                }
            }
        }
        assert!(self.n.values().all(|n| n.active.is_none()));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Ack(usize),
    Eoi(usize),
    Dir(usize, u32),
    Exit(usize),
    Wait(usize),
    /// A line, an SGI, an LPI or its CLEAR
    Line(usize, u32, bool),
    Enable(usize, u32, bool),
    Pend(usize, u32, bool),
    Priority(usize, u32, u8),
    Group(usize, u32, bool),
    Edge(usize, u32, bool),
    Route(usize, u32, usize),
    Control(usize, u64),
    Vmcr(usize, u32, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let v = || 0usize..2;
    let intid = || prop::sample::select(ALL.as_slice());
    let priority = || (0u8..6).prop_map(|p| p * 0x28);
    prop_oneof![
        12 => v().prop_map(Op::Ack),
        8 => v().prop_map(Op::Eoi),
        6 => (v(), intid()).prop_map(|(v, i)| Op::Dir(v, i)),
        1 => v().prop_map(Op::Exit),
        1 => v().prop_map(Op::Wait),
        16 => (v(), intid(), prop::bool::weighted(0.7)).prop_map(|(v, i, l)| Op::Line(v, i, l)),
        2 => (v(), intid(), prop::bool::weighted(0.7)).prop_map(|(v, i, l)| Op::Enable(v, i, l)),
        3 => (v(), intid(), any::<bool>()).prop_map(|(v, i, l)| Op::Pend(v, i, l)),
        4 => (v(), intid(), priority()).prop_map(|(v, i, p)| Op::Priority(v, i, p)),
        1 => (v(), intid(), any::<bool>()).prop_map(|(v, i, g)| Op::Group(v, i, g)),
        1 => (v(), intid(), any::<bool>()).prop_map(|(v, i, e)| Op::Edge(v, i, e)),
        2 => (v(), intid(), v()).prop_map(|(v, i, t)| Op::Route(v, i, t)),
        1 => (v(), prop::sample::select(&[0, 1, 2, 3, 3, 3][..])).prop_map(|(v, g)| Op::Control(v, g)),
        2 => (v(), prop::sample::select(&[0, 1, 2, 3, 3, 3][..]), prop::sample::select(&[0x50, 0xff, 0xff][..]))
            .prop_map(|(v, g, p)| Op::Vmcr(v, g, p)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_the_naive_model(
        count in prop::sample::select(&[1u8, 2, 3, 4, 16][..]),
        split: bool,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut vm = Vm::new(count, split);
        for (i, op) in ops.iter().enumerate() {
            vm.step(op);
            if i % 16 == 0 {
                vm.compare();
            }
        }
        vm.compare();
        // Nothing is lost: with all on, what is pending is taken, to the last.
        for v in 0..2 {
            vm.step(&Op::Vmcr(v, 3, 0xff));
        }
        vm.step(&Op::Control(0, 3));
        for v in 0..2 {
            for intid in ALL {
                vm.step(&Op::Enable(v, intid, true));
            }
        }
        vm.drain();
        vm.compare();
        prop_assert!(vm.n.values().all(|n| !n.pending() || n.priority >= 0xf8));
    }
}
