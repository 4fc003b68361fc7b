// SPDX-License-Identifier: GPL-2.0

//! What goes into list registers, and what is made of it when it comes back.

use rkvm_unit::arch::arm64::model::vgic::*;

const HW: LrConfig = LrConfig {
    count: 4,
    pri_bits: 5,
    id_bits: 0,
    seis: false,
    a3v: true,
    tds: true,
};
const PENDING: (bool, bool) = (true, false);
const ACTIVE: (bool, bool) = (false, true);
const BOTH: (bool, bool) = (true, true);
const NONE: (bool, bool) = (false, false);

/// Two vCPUs, SPIs 32 to 95 enabled, the even ones edges; both groups on, all priorities let
/// through.
struct Vm {
    d: Dist,
    p: [Private; 2],
    regs: [ListRegs; 2],
    hw: LrConfig,
}

fn vm() -> Vm {
    let affinities = [0, 1].map(Affinity::from_bits);
    let config = Config {
        nr_irqs: 96,
        revision: 3,
        its: true,
    };
    let mut d = Dist::new(config, affinities.into_iter()).ok().unwrap();
    let mut p = [0, 1].map(|i| Private::new(i, i, affinities[usize::from(i)], &HW));
    let _ = d.write(gicd::CTLR, 4, 3);
    for n in [1, 2] {
        let _ = d.write(gicd::ISENABLER + 4 * n, 4, u64::MAX);
        for half in [0, 4] {
            let _ = d.write(gicd::ICFGR + 8 * n + half, 4, 0x2222_2222);
        }
    }
    for p in &mut p {
        p.cpuif.vmcr = Vmcr(0xff << 24 | 3);
        let _ = p.write(gicr::SGI_BASE + gicd::ISENABLER, 4, u64::MAX, d.global());
        let _ = p.write(gicr::CTLR, 4, 1, d.global());
        drop(p.set_lpi_slots(LpiSlots::new(16).unwrap()));
    }
    Vm {
        d,
        p,
        regs: Default::default(),
        hw: HW,
    }
}

impl Vm {
    fn fill(&mut self, v: usize) -> Vec<(u32, (bool, bool))> {
        let global = self.d.global();
        fill(
            &mut self.p[v],
            Some(&mut self.d),
            global,
            &self.hw,
            &mut self.regs[v],
        );
        self.lrs(v)
    }
    fn lrs(&self, v: usize) -> Vec<(u32, (bool, bool))> {
        let lr = |lr: &Lr| (lr.intid(), (lr.is_pending(), lr.is_active()));
        self.regs[v].in_use().iter().map(lr).collect()
    }
    fn fold(&mut self, v: usize) -> Outcome {
        fold(&mut self.p[v], Some(&mut self.d), &mut self.regs[v]).unwrap()
    }
    /// The guest changes the state in the list register of `intid`.
    fn guest(&mut self, v: usize, intid: u32, (pending, active): (bool, bool)) {
        let lr = self.regs[v].in_use_mut().iter_mut();
        let lr = lr.filter(|lr| lr.intid() == intid).last().unwrap();
        *lr = lr.state(pending, active);
    }
    fn spi(&mut self, intid: u32, level: bool) -> Vec<u16> {
        self.d.set_spi(intid, level).unwrap().iter().collect()
    }
    fn write(&mut self, offset: u64, value: u64) -> Vec<u16> {
        self.d.write(offset, 4, value).iter().collect()
    }
    fn priority(&mut self, intid: u32, priority: u64) {
        let offset = gicd::IPRIORITYR + u64::from(intid);
        if intid < 32 {
            for p in &mut self.p {
                let g = self.d.global();
                let _ = p.write(gicr::SGI_BASE + offset, 1, priority, g);
            }
        } else {
            let _ = self.d.write(offset, 1, priority);
        }
    }
    fn sgi(&mut self, v: usize, intid: u64) -> bool {
        self.p[v].set_sgi(&decode_sgi(SgiReg::Sgi1r, intid << 24))
    }
    fn route(&mut self, intid: u32, affinity: u64) -> Vec<u16> {
        self.write(gicd::IROUTER + 8 * u64::from(intid), affinity)
    }
    fn pending_for(&self, v: usize) -> bool {
        pending_for(&self.p[v], Some(&self.d), self.d.global())
    }
    fn active(&self) -> u64 {
        self.d.read(gicd::ISACTIVER + 4, 4)
    }
    fn pending(&self) -> u64 {
        self.d.read(gicd::ISPENDR + 4, 4)
    }
}

fn ring(o: &Outcome) -> Vec<u16> {
    o.ring.iter().collect()
}

fn ended(o: &Outcome) -> Vec<u32> {
    o.ended.iter().collect()
}

/// IHI 0069, 12.4.9
#[test]
fn layout() {
    let lr = Lr::new(0x2345, 0xa8, true).state(true, true);
    assert_eq!(lr, Lr(0xd0a8_0000_0000_2345));
    assert_eq!(lr.backed(27), Lr(0xf0a8_001b_0000_2345));
    assert_eq!(lr.backed(27).pintid(), Some(27));
    let lr = Lr::new(33, 0xf8, false).state(true, false).ask_eoi();
    assert_eq!(lr, Lr(0x40f8_0200_0000_0021));
    assert!(lr.asks_eoi() && !lr.group1() && lr.pintid().is_none());
    assert_eq!((lr.priority(), lr.intid()), (0xf8, 33));

    let mut vm = vm();
    vm.priority(33, 0x50);
    let _ = vm.write(gicd::IGROUPR + 4, 2);
    vm.spi(33, true);
    vm.spi(32, true);
    vm.fill(0);
    // The edge has no end to tell of, the level has.
    assert_eq!(
        vm.regs[0].in_use(),
        [Lr(0x4000_0000_0000_0020), Lr(0x5050_0200_0000_0021)]
    );
    assert!(vm.regs[0].spis && vm.regs[0].loaded && !vm.regs[0].overflow);
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::TDIR);
    assert!(vm.regs[0].lr[2..].iter().all(|lr| *lr == Lr(0)));
}

#[test]
fn nothing_to_take() {
    let mut vm = vm();
    assert_eq!(vm.fill(0), []);
    assert!(!vm.regs[0].spis);
    let empty = vm.fold(0);
    assert!(ring(&empty).is_empty() && ended(&empty).is_empty());
    assert_eq!(vm.regs[0], ListRegs::default());
    // Again, without a fill
    let _ = vm.fold(0);
    // Disabled interrupts, groups that are off, interrupts of others
    let _ = vm.write(gicd::ICENABLER + 4, 1);
    vm.spi(32, true);
    vm.route(34, 1);
    assert_eq!(vm.spi(34, true), [1]);
    let _ = vm.write(gicd::IGROUPR + 4, 0x10);
    vm.spi(35, true);
    vm.sgi(0, 2);
    let _ = vm.write(gicd::CTLR, 1);
    assert_eq!(vm.fill(0), [(35, PENDING)]);
    assert!(vm.d.concerns(0) && vm.d.concerns(1));
    let _ = vm.fold(0);
    let _ = vm.write(gicd::CTLR, 2);
    assert_eq!(vm.fill(0), [(2, PENDING)]);
    let _ = vm.fold(0);
    let _ = vm.write(gicd::CTLR, 0);
    assert_eq!(vm.fill(0), []);
    assert!(!vm.pending_for(0));
}

#[test]
fn the_distributor_is_needed() {
    let mut vm = vm();
    vm.spi(32, true);
    vm.sgi(0, 1);
    let global = vm.d.global();
    fill(&mut vm.p[0], None, global, &HW, &mut vm.regs[0]);
    assert_eq!(vm.lrs(0), [(1, PENDING)]);
    assert!(fold(&mut vm.p[0], None, &mut vm.regs[0]).is_ok());
    assert_eq!(vm.fill(0), [(1, PENDING), (32, PENDING)]);
    let before = vm.regs[0].clone();
    assert_eq!(
        fold(&mut vm.p[0], None, &mut vm.regs[0]).err(),
        Some(NeedsDist)
    );
    assert_eq!(vm.regs[0], before);
    // Full already: nothing changes.
    vm.sgi(0, 3);
    assert_eq!(vm.fill(0), [(1, PENDING), (32, PENDING)]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0).len(), 3);
}

#[test]
fn an_edge() {
    let mut vm = vm();
    assert_eq!(vm.spi(32, true), [0]);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    assert!(vm.d.stale(gicd::ISPENDR + 4).contains(0));
    // Not taken: it stays pending.
    let _ = vm.fold(0);
    assert_eq!(vm.pending(), 1);
    assert!(vm.d.stale(gicd::ISPENDR + 4).is_empty());
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    // Taken
    vm.guest(0, 32, ACTIVE);
    assert!(ended(&vm.fold(0)).is_empty());
    assert_eq!((vm.pending(), vm.active()), (0, 1));
    assert!(vm.d.concerns(0) && !vm.pending_for(0));
    // The next edge while it is active: both.
    assert_eq!(vm.spi(32, true), [0]);
    assert_eq!(vm.fill(0), [(32, BOTH)]);
    // And one more while that is in the list register, which is one with it.
    assert_eq!(vm.spi(32, true), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, BOTH)]);
    vm.guest(0, 32, PENDING);
    assert_eq!(vm.spi(32, true), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    // Taken, then an edge: not one with it.
    vm.guest(0, 32, ACTIVE);
    assert_eq!(vm.spi(32, true), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, BOTH)]);
    vm.guest(0, 32, NONE);
    // Edges have no end to tell of.
    assert!(ended(&vm.fold(0)).is_empty());
    assert!(!vm.d.concerns(0));
    assert_eq!(vm.fill(0), []);
}

#[test]
fn a_level() {
    let mut vm = vm();
    assert_eq!(vm.spi(33, true), [0]);
    assert_eq!(vm.fill(0), [(33, PENDING)]);
    vm.guest(0, 33, ACTIVE);
    let _ = vm.fold(0);
    // Pending all the time, but only once in the list register.
    assert_eq!((vm.pending(), vm.active()), (2, 2));
    assert_eq!(vm.fill(0), [(33, ACTIVE)]);
    // Its end is an exit, so nobody needs to ring meanwhile.
    assert_eq!(vm.spi(33, false), []);
    assert_eq!(vm.spi(33, true), []);
    vm.guest(0, 33, NONE);
    let o = vm.fold(0);
    assert_eq!((ended(&o), ring(&o)), (vec![33], vec![]));
    assert_eq!(vm.fill(0), [(33, PENDING)]);
    // Taken and ended in one run, and the line falls
    vm.guest(0, 33, NONE);
    assert_eq!(vm.spi(33, false), [0]);
    assert_eq!(ended(&vm.fold(0)), [33]);
    assert_eq!(vm.fill(0), []);
    assert!(!vm.d.concerns(0));
    let _ = vm.fold(0);
    // The line falls before it is taken: withdrawn.
    vm.spi(33, true);
    vm.fill(0);
    assert_eq!(vm.spi(33, false), [0]);
    assert!(ended(&vm.fold(0)).is_empty());
    assert_eq!(vm.fill(0), []);
    let _ = vm.fold(0);
    // By ISPENDR: taken once, whatever the line.
    let _ = vm.write(gicd::ISPENDR + 4, 2);
    assert_eq!(vm.fill(0), [(33, PENDING)]);
    assert_eq!(vm.d.user_read(gicd::ISPENDR + 4), Ok(2));
    let _ = vm.fold(0);
    assert_eq!(vm.d.user_read(gicd::ISPENDR + 4), Ok(2));
    vm.fill(0);
    vm.guest(0, 33, ACTIVE);
    let _ = vm.fold(0);
    assert_eq!((vm.pending(), vm.active()), (0, 2));
    let _ = vm.write(gicd::ISPENDR + 4, 2);
    assert_eq!(vm.fill(0), [(33, ACTIVE)]);
    vm.guest(0, 33, NONE);
    assert_eq!(ended(&vm.fold(0)), [33]);
    assert_eq!(vm.fill(0), [(33, PENDING)]);
}

#[test]
fn more_than_there_is_room_for() {
    let mut vm = vm();
    for (i, intid) in (40..48).step_by(2).chain([64, 66]).enumerate() {
        vm.priority(intid, 0xa0 - 0x10 * i as u64);
        vm.spi(intid, true);
    }
    vm.priority(5, 0x78);
    vm.sgi(0, 5);
    let first = [(66, PENDING), (64, PENDING), (46, PENDING), (5, PENDING)];
    assert_eq!(vm.fill(0), first);
    assert!(vm.regs[0].overflow);
    let all_off = hcr::VGRP0DIE | hcr::VGRP1DIE;
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::TDIR | hcr::NPIE | all_off);
    for (intid, _) in first {
        vm.guest(0, intid, NONE);
    }
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(44, PENDING), (42, PENDING), (40, PENDING)]);
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::TDIR);
    // The same priority: the lower INTID.
    let _ = vm.fold(0);
    for intid in 32..48 {
        vm.priority(intid, 0x80);
        vm.spi(intid, true);
    }
    assert_eq!(
        vm.fill(0).iter().map(|i| i.0).collect::<Vec<_>>(),
        [32, 33, 34, 35]
    );
}

/// What is pending goes first, then what is active, then what the CPU interface has disabled.
#[test]
fn classes() {
    let mut vm = vm();
    vm.hw.count = 2;
    vm.p[0].cpuif.vmcr = Vmcr(0xff << 24 | Vmcr::GROUP1);
    let _ = vm.write(gicd::IGROUPR + 4, !0x10);
    vm.spi(36, true);
    let _ = vm.write(gicd::ISACTIVER + 4, 0x4);
    vm.priority(32, 0xf0);
    vm.priority(34, 0x80);
    assert_eq!(vm.fill(0), [(34, ACTIVE), (36, PENDING)]);
    let _ = vm.fold(0);
    vm.spi(32, true);
    assert_eq!(vm.fill(0), [(32, PENDING), (34, ACTIVE)]);
    // When the guest enables group 0, its turn comes.
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::TDIR | hcr::VGRP0EIE);
    let _ = vm.fold(0);
    vm.spi(38, true);
    assert_eq!(vm.fill(0), [(38, PENDING), (32, PENDING)]);
    let trap = hcr::LRENPIE | hcr::TDIR;
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::VGRP0EIE | trap);
    let _ = vm.fold(0);
    vm.spi(40, true);
    vm.fill(0);
    let some = hcr::NPIE | hcr::VGRP1DIE;
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::VGRP0EIE | trap | some);
    // Hardware that cannot trap ICC_DIR_EL1 alone
    let _ = vm.fold(0);
    vm.hw.tds = false;
    vm.fill(0);
    assert_eq!(vm.regs[0].hcr & (hcr::TDIR | hcr::TC), hcr::TC);
}

/// EOIcount: those that are active and did not fit end from the highest priority on.
#[test]
fn ends_outside_of_list_registers() {
    let mut vm = vm();
    vm.hw.count = 1;
    for (intid, priority) in [(33, 0x80), (34, 0x40), (45, 0x60), (64, 0xa0)] {
        vm.priority(intid, priority);
    }
    vm.priority(27, 0x70);
    let g = vm.d.global();
    vm.p[0].map_ppi(27, Some(30)).unwrap();
    let _ = vm.p[0].write(gicr::SGI_BASE + gicd::ISACTIVER, 4, 1 << 27, g);
    let _ = vm.write(gicd::ISACTIVER + 4, 1 << 1 | 1 << 2 | 1 << 13);
    let _ = vm.write(gicd::ISACTIVER + 8, 1);
    assert_eq!(vm.fill(0), [(34, ACTIVE)]);
    assert_eq!(vm.regs[0].hcr, hcr::EN | hcr::LRENPIE | hcr::TDIR);
    // 34 from its list register, then 45 and 27 by count
    vm.guest(0, 34, NONE);
    vm.regs[0].hcr |= 2 << 27;
    let o = vm.fold(0);
    assert_eq!(ended(&o), [45]);
    assert_eq!((o.ended_private, o.deactivate), (1 << 27, 1 << 27));
    assert_eq!(vm.active(), 1 << 1);
    // The one in the list register is not counted, whatever its priority.
    assert_eq!(vm.fill(0), [(33, ACTIVE)]);
    vm.regs[0].hcr |= 1 << 27;
    assert_eq!(ended(&vm.fold(0)), []);
    assert_eq!(vm.d.read(gicd::ISACTIVER + 8, 4), 0);
    assert_eq!(vm.active(), 1 << 1);
    // More than there are
    vm.fill(0);
    vm.regs[0].hcr |= 31 << 27;
    assert_eq!(ended(&vm.fold(0)), []);
    assert_eq!(vm.active(), 1 << 1);
}

/// EOImode 1: ICC_DIR_EL1 traps, on any vCPU.
#[test]
fn split_ends() {
    let mut vm = vm();
    assert_eq!(
        deactivate(&mut vm.p[0], Some(&mut vm.d), 33)
            .ended
            .iter()
            .count(),
        0
    );
    for p in &mut vm.p {
        p.cpuif.vmcr.0 |= Vmcr::EOI_SPLIT;
    }
    let _ = vm.write(gicd::ISACTIVER + 4, 7);
    vm.fill(1);
    assert_eq!(vm.regs[1].hcr, hcr::EN | hcr::TDIR);
    let o = deactivate(&mut vm.p[1], Some(&mut vm.d), 33);
    assert_eq!((ended(&o), vm.active()), (vec![33], 5));
    // In a list register of another vCPU: when that folds.
    vm.spi(35, true);
    vm.fill(0);
    vm.guest(0, 35, ACTIVE);
    let o = deactivate(&mut vm.p[1], Some(&mut vm.d), 35);
    assert_eq!((ended(&o), ring(&o)), (vec![], vec![0]));
    // EOIcount says nothing then.
    vm.regs[0].hcr |= 1 << 27;
    let o = vm.fold(0);
    assert_eq!((ended(&o), vm.active()), (vec![35], 5));
    // SGIs, PPIs; what is not active, and what there is not
    let g = vm.d.global();
    vm.p[0].map_ppi(30, Some(77)).unwrap();
    let _ = vm.p[0].write(gicr::SGI_BASE + gicd::ISACTIVER, 4, 1 << 30 | 1, g);
    let o = deactivate(&mut vm.p[0], None, 30);
    assert_eq!((o.ended_private, o.deactivate), (1 << 30, 1 << 30));
    let o = deactivate(&mut vm.p[0], None, 0);
    assert_eq!((o.ended_private, o.deactivate), (1, 0));
    for intid in [0, 30, 33, 200, 1023, 8192, u32::MAX] {
        let o = deactivate(&mut vm.p[0], Some(&mut vm.d), intid);
        assert_eq!((o.ended_private, ended(&o), ring(&o)), (0, vec![], vec![]));
    }
}

#[test]
fn routes_change_while_in_a_list_register() {
    let mut vm = vm();
    // Not taken: it goes to the other.
    vm.spi(32, true);
    vm.fill(0);
    assert_eq!(vm.route(32, 1), [0]);
    assert_eq!(vm.fill(1), []);
    let _ = vm.fold(1);
    assert_eq!(ring(&vm.fold(0)), [1]);
    assert_eq!(vm.fill(0), []);
    assert_eq!(vm.fill(1), [(32, PENDING)]);
    // Taken: it stays until it ends. The next edge is the other's.
    vm.guest(1, 32, ACTIVE);
    assert_eq!(vm.route(32, 0), [1]);
    assert_eq!(vm.spi(32, true), [1]);
    let _ = vm.fold(0);
    assert!(ring(&vm.fold(1)).is_empty());
    assert_eq!(vm.fill(0), []);
    assert_eq!(vm.fill(1), [(32, ACTIVE)]);
    vm.guest(1, 32, NONE);
    assert_eq!(ring(&vm.fold(1)), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    assert!(!vm.d.concerns(1));
    // To nobody, and back
    assert_eq!(vm.route(32, 9), [0]);
    assert!(ring(&vm.fold(0)).is_empty());
    assert_eq!(vm.fill(0), []);
    assert_eq!(vm.route(32, 1), [1]);
}

#[test]
fn changes_while_in_a_list_register() {
    // Disabled
    let mut vm = vm();
    vm.spi(32, true);
    vm.fill(0);
    assert_eq!(vm.write(gicd::ICENABLER + 4, 1), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), []);
    let _ = vm.fold(0);
    assert_eq!(vm.write(gicd::ISENABLER + 4, 1), [0]);
    // Cleared
    vm.fill(0);
    assert_eq!(vm.pending(), 1);
    assert_eq!(vm.write(gicd::ICPENDR + 4, 1), [0]);
    assert_eq!(vm.pending(), 0);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), []);
    let _ = vm.fold(0);
    // Cleared, and an edge after that
    vm.spi(32, true);
    vm.fill(0);
    let _ = vm.write(gicd::ICPENDR + 4, 1);
    vm.spi(32, true);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    // Activity
    assert_eq!(vm.write(gicd::ISACTIVER + 4, 1), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, BOTH)]);
    assert_eq!(vm.write(gicd::ICACTIVER + 4, 1), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.active(), 0);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    // Group, priority, trigger
    assert_eq!(vm.write(gicd::IGROUPR + 4, 0), [0]);
    assert_eq!(vm.write(gicd::IPRIORITYR + 32, 0x88), [0]);
    let _ = vm.fold(0);
    vm.fill(0);
    let lr = vm.regs[0].lr[0];
    assert_eq!((lr.group1(), lr.priority()), (false, 0x88));
    assert_eq!(vm.write(gicd::ICFGR + 8, 0), [0]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), [(32, PENDING)]);
    assert!(vm.regs[0].lr[0].asks_eoi());
    // The distributor off
    assert_eq!(vm.write(gicd::CTLR, 0), [0, 1]);
    let _ = vm.fold(0);
    assert_eq!(vm.fill(0), []);
}

#[test]
fn physical_interrupts() {
    let mut vm = vm();
    vm.p[0].map_ppi(27, Some(26)).unwrap();
    assert!(!vm.p[0].is_busy(27));
    assert_eq!(vm.p[0].set_ppi(27, true), Ok(true));
    assert!(vm.p[0].is_busy(27));
    assert_eq!(vm.fill(0), [(27, PENDING)]);
    let lr = vm.regs[0].lr[0];
    assert_eq!((lr.pintid(), lr.asks_eoi()), (Some(26), false));
    vm.guest(0, 27, ACTIVE);
    let o = vm.fold(0);
    assert_eq!((o.ended_private, o.deactivate), (0, 0));
    assert!(vm.p[0].is_active(27) && vm.p[0].is_busy(27) && !vm.p[0].is_quiet());
    assert!(!lr.is_over() && !lr.state(false, true).is_over() && lr.state(false, false).is_over());
    // Never both
    assert_eq!(vm.fill(0), [(27, ACTIVE)]);
    // There is no exit when it ends, so the vCPU has to know of the line.
    assert_eq!(vm.p[0].set_ppi(27, false), Ok(false));
    assert_eq!(vm.p[0].set_ppi(27, true), Ok(true));
    vm.guest(0, 27, NONE);
    let o = vm.fold(0);
    assert_eq!((o.ended_private, o.deactivate), (1 << 27, 0));
    assert_eq!(vm.p[0].set_ppi(27, false), Ok(false));
    assert!(!vm.p[0].is_busy(27) && vm.p[0].is_quiet());
    // The physical one follows what the guest writes, when the vCPU is back on the CPU: also what makes it less.
    let g = vm.d.global();
    let at = |r| gicr::SGI_BASE + r;
    for r in [
        gicd::ISPENDR,
        gicd::ICPENDR,
        gicd::ISACTIVER,
        gicd::ICACTIVER,
    ] {
        let e = vm.p[0].write(at(r), 4, 3 << 26, g);
        assert!(e.ring, "{r:#x}");
    }
    let _ = vm.p[0].user_write(at(gicd::ISACTIVER), 1 << 27, g).unwrap();
    // Latched behind the active one: its end has to be an exit, and is not the physical one's.
    let _ = vm.p[0].write(at(gicd::ISPENDR), 4, 1 << 27, g);
    assert_eq!(vm.fill(0), [(27, ACTIVE)]);
    let lr = vm.regs[0].lr[0];
    assert_eq!((lr.pintid(), lr.asks_eoi()), (None, true));
    vm.guest(0, 27, NONE);
    // Not the physical one's end.
    assert!(!vm.regs[0].lr[0].is_over());
    let o = vm.fold(0);
    assert_eq!((o.ended_private, o.deactivate), (1 << 27, 1 << 27));
    assert_eq!(vm.fill(0), [(27, PENDING)]);
    assert_eq!(vm.regs[0].lr[0].pintid(), Some(26));
}

#[test]
fn lpis() {
    let mut vm = vm();
    vm.hw.count = 2;
    let p = &mut vm.p[0];
    for (intid, priority, enabled) in [
        (8192, 0xa3, true),
        (8195, 0x40, false),
        (8193, 0x80, true),
        (8200, 0xc0, true),
    ] {
        assert_eq!(p.set_lpi_pending(intid, priority, enabled), Ok(enabled));
    }
    assert_eq!(vm.fill(0), [(8193, PENDING), (8192, PENDING)]);
    assert_eq!(vm.regs[0].lr[1], Lr(0x50a0_0000_0000_2000));
    assert!(!vm.regs[0].spis);
    // One is taken, of which another comes; the other is cleared, and comes again.
    vm.guest(0, 8193, ACTIVE);
    assert_eq!(vm.p[0].set_lpi_pending(8193, 0x80, true), Ok(true));
    assert_eq!(vm.p[0].take_lpi(8193), Taken::InListRegister);
    assert!(vm.p[0].clear_lpi(8192));
    let _ = vm.fold(0);
    let pending = |vm: &Vm| vm.p[0].pending_lpis().collect::<Vec<_>>();
    assert_eq!(pending(&vm), [8193, 8195, 8200]);
    // The active state is not kept: LPIs have none.
    assert_eq!(vm.fill(0), [(8193, PENDING), (8200, PENDING)]);
    vm.guest(0, 8193, NONE);
    assert!(vm.p[0].clear_lpi(8200));
    assert_eq!(vm.p[0].set_lpi_pending(8200, 0xc0, true), Ok(true));
    let _ = vm.fold(0);
    assert_eq!(pending(&vm), [8195, 8200]);
    assert!(vm.p[0].configure_lpi(8195, 0x30, true));
    assert_eq!(vm.fill(0), [(8195, PENDING), (8200, PENDING)]);
    // All disabled, while in list registers
    let g = vm.d.global();
    let e = vm.p[0].write(gicr::CTLR, 4, 0, g);
    assert_eq!((e.ring, e.lpi), (true, LpiEffect::Disabled));
    let _ = vm.p[0].write(gicr::CTLR, 4, 1, g);
    assert_eq!(vm.p[0].set_lpi_pending(8200, 0xc0, false), Ok(false));
    let _ = vm.fold(0);
    assert_eq!(pending(&vm), [8200]);
    assert_eq!(vm.fill(0), []);
    let _ = vm.fold(0);
    // Group 1
    vm.p[0].configure_lpi(8200, 0, true);
    let _ = vm.write(gicd::CTLR, 1);
    assert_eq!(vm.fill(0), []);
    let _ = vm.fold(0);
    let _ = vm.write(gicd::CTLR, 2);
    assert_eq!(vm.fill(0), [(8200, PENDING)]);
}

#[test]
fn what_ends_a_wait() {
    let mut vm = vm();
    assert!(!vm.pending_for(0));
    vm.priority(33, 0x80);
    vm.spi(33, true);
    assert!(vm.pending_for(0) && !vm.pending_for(1));
    // The mask lets lower values through.
    for (pmr, want) in [(0x80, false), (0x88, true), (0, false)] {
        vm.p[0].cpuif.vmcr = Vmcr(pmr << 24 | 3);
        assert_eq!(vm.pending_for(0), want);
    }
    // Groups of the CPU interface
    for (groups, want) in [(0, false), (1, false), (2, true)] {
        vm.p[0].cpuif.vmcr = Vmcr(0xff << 24 | groups);
        assert_eq!(vm.pending_for(0), want);
    }
    let _ = vm.write(gicd::ISACTIVER + 4, 2);
    assert!(!vm.pending_for(0));
    assert_eq!(vm.p[0].set_lpi_pending(8192, 0, true), Ok(true));
    assert!(vm.pending_for(0));
    vm.p[0].clear_lpi(8192);
    assert!(!vm.pending_for(0));
    vm.sgi(0, 0);
    assert!(vm.pending_for(0));
    assert!(pending_for(&vm.p[0], None, vm.d.global()));
}
