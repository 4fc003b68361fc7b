// SPDX-License-Identifier: GPL-2.0

//! arm64: VMIDs by generations, against processors that remember every translation that they have met.

use proptest::prelude::*;
use rkvm_unit::arch::arm64::model::vmid::{Tagged, Vmids, IDLE};
use std::collections::HashMap;

#[test]
fn one_after_the_other() {
    let mut v = Vmids::new(vec![0_u64; 1], vec![Tagged::default(); 2]);
    for want in 1..64 {
        let r = v.renew(Tagged::default(), |_| panic!()).unwrap();
        assert_eq!(
            (r.vmid.id(), r.vmid.generation(), r.flush),
            (want, 1, false)
        );
    }
    // The second processor has number 7.
    let seven = Tagged::of(1 << 16 | 7);
    let r = v
        .renew(Tagged::default(), |cpu| {
            if cpu == 1 {
                seven.word()
            } else {
                IDLE
            }
        })
        .unwrap();
    assert_eq!((r.vmid.id(), r.vmid.generation(), r.flush), (1, 2, true));
    // Which its VM keeps, and nobody else gets.
    for want in (2..64).filter(|n| *n != 7) {
        let r = v.renew(Tagged::default(), |_| panic!()).unwrap();
        assert_eq!((r.vmid.id(), r.flush), (want, false));
    }
    let r = v.renew(seven, |_| panic!()).unwrap();
    assert_eq!((r.vmid.id(), r.vmid.generation(), r.flush), (7, 2, false));
    // The processor has not looked: it holds the number through the next change, too.
    let r = v.renew(Tagged::default(), |_| 0).unwrap();
    assert_eq!((r.vmid.id(), r.vmid.generation(), r.flush), (1, 3, true));
    let r = v.renew(Tagged::of(2 << 16 | 7), |_| panic!()).unwrap();
    assert_eq!((r.vmid.id(), r.vmid.generation(), r.flush), (7, 3, false));
}

#[test]
fn never_zero() {
    let mut v = Vmids::new(vec![0_u64; 4], vec![Tagged::default(); 1]);
    for _ in 0..1000 {
        let r = v.renew(Tagged::default(), |_| IDLE).unwrap();
        assert_ne!(r.vmid.id(), 0);
        assert_ne!(r.vmid.word(), IDLE);
        assert!(r.vmid.id() < 256);
    }
}

#[test]
fn no_room() {
    let mut v = Vmids::new(vec![u64::MAX; 1], vec![Tagged::default(); 64]);
    // Each processor has one, and number 0 is nobody's.
    let r = v.renew(Tagged::default(), |cpu| 1 << 16 | cpu as u64);
    assert_eq!(r, None);
}

const CPUS: usize = 4;
const VMS: usize = 100;

/// A host of 64 VMIDs, whose processors do what `vm.rs` does.
struct Host {
    vmids: Vmids<Vec<u64>, Vec<Tagged>>,
    words: [u64; CPUS],
    of_vm: [Tagged; VMS],
    loaded: [Option<usize>; CPUS],
    /// (processor, VMID): whose translations there are.
    tlb: HashMap<(usize, u16), usize>,
}

impl Host {
    fn leave(&mut self, cpu: usize) {
        if let Some(vm) = self.loaded[cpu].take() {
            // compare_exchange: unless the generation has changed since.
            if self.words[cpu] != 0 {
                assert_eq!(self.words[cpu], self.of_vm[vm].word());
                self.words[cpu] = IDLE;
            }
        }
    }

    fn enter(&mut self, cpu: usize, vm: usize) {
        self.leave(cpu);
        let fits = self.of_vm[vm].generation() == self.vmids.generation();
        if !fits || self.words[cpu] == 0 {
            let words = &mut self.words;
            let r = self
                .vmids
                .renew(self.of_vm[vm], |c| std::mem::replace(&mut words[c], 0))
                .unwrap();
            if r.flush {
                self.tlb.clear();
                // Those that run go on, and fill theirs again.
                for c in 0..CPUS {
                    if let Some(other) = self.loaded[c] {
                        self.touch(c, other);
                    }
                }
            }
            self.of_vm[vm] = r.vmid;
        }
        self.words[cpu] = self.of_vm[vm].word();
        self.loaded[cpu] = Some(vm);
        self.touch(cpu, vm);
    }

    fn touch(&mut self, cpu: usize, vm: usize) {
        let had = self.tlb.insert((cpu, self.of_vm[vm].id()), vm);
        assert!(had.is_none_or(|v| v == vm), "another VM's translations");
    }
}

proptest! {
    #[test]
    fn nobody_meets_another_ones_translations(steps in prop::collection::vec((0..CPUS, 0..VMS, any::<bool>()), 1..3000)) {
        let mut h = Host {
            vmids: Vmids::new(vec![0], vec![Tagged::default(); CPUS]),
            words: [0; CPUS],
            of_vm: [Tagged::default(); VMS],
            loaded: [None; CPUS],
            tlb: HashMap::new(),
        };
        for (cpu, vm, leave) in steps {
            if leave {
                h.leave(cpu);
            } else {
                h.enter(cpu, vm);
            }
            // A VM has one number, wherever it is loaded.
            for c in 0..CPUS {
                if let Some(vm) = h.loaded[c] {
                    h.touch(c, vm);
                }
            }
        }
    }
}
