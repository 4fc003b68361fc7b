// SPDX-License-Identifier: GPL-2.0

//! The event arbiter (APM vol. 2 8.2.9, 8.5, 15.20; SDM vol. 3A 6.9, 6.15).

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::events::*;
use rkvm_unit::arch::x86::model::regs::{vector, Exception};

/// Vectors that wait, the last first.
struct Queue(Vec<u8>);

impl Interrupts for Queue {
    fn pending(&self) -> bool {
        !self.0.is_empty()
    }
    fn acknowledge(&mut self) -> Option<u8> {
        self.0.pop()
    }
}

const OPEN: Cpu = Cpu {
    interrupt_flag: true,
    shadow: false,
    gif: true,
};
const CLOSED: Cpu = Cpu {
    interrupt_flag: false,
    ..OPEN
};
const SHADOW: Cpu = Cpu {
    shadow: true,
    ..OPEN
};
const NO_GIF: Cpu = Cpu { gif: false, ..OPEN };

fn irq(vector: u8) -> Option<Event> {
    Some(Event::Interrupt {
        vector,
        soft: false,
    })
}

fn exception(vector: u8, error: Option<u32>, payload: Option<u64>, first: bool) -> Option<Event> {
    Some(Event::Exception {
        vector,
        error,
        payload,
        first,
    })
}

fn inject(e: &mut Events, cpu: Cpu) -> Option<Event> {
    e.next(cpu, &mut Queue(vec![])).unwrap().inject
}

#[test]
fn interrupts_need_if_no_shadow_and_gif() {
    for cpu in [CLOSED, SHADOW, NO_GIF] {
        let (mut e, mut q) = (Events::new(), Queue(vec![0x31]));
        let entry = e.next(cpu, &mut q).unwrap();
        assert_eq!(
            entry,
            Entry {
                inject: None,
                interrupt_window: true,
                nmi_window: false
            }
        );
        assert_eq!(q.0, [0x31]);
    }
    let (mut e, mut q) = (Events::new(), Queue(vec![0x31, 0x41]));
    let entry = e.next(OPEN, &mut q).unwrap();
    assert_eq!(
        entry,
        Entry {
            inject: irq(0x41),
            interrupt_window: true,
            nmi_window: false
        }
    );
    // The entry did not take place: the same again.
    assert_eq!(e.next(CLOSED, &mut q).unwrap(), entry);
    e.exited(None);
    let entry = e.next(OPEN, &mut q).unwrap();
    assert_eq!(
        entry,
        Entry {
            inject: irq(0x31),
            ..Entry::default()
        }
    );
    e.exited(None);
    assert_eq!(e.next(OPEN, &mut q), Ok(Entry::default()));
    assert_eq!(e, Events::new());
}

#[test]
fn nmis_ignore_if_and_are_masked_until_iret() {
    let mut e = Events::new();
    e.raise_nmi(1);
    for cpu in [SHADOW, NO_GIF] {
        let entry = e.next(cpu, &mut Queue(vec![0x55])).unwrap();
        assert_eq!(
            entry,
            Entry {
                inject: None,
                interrupt_window: true,
                nmi_window: true
            }
        );
    }
    // Before an interrupt.
    let entry = e.next(CLOSED, &mut Queue(vec![0x55])).unwrap();
    assert_eq!(
        entry,
        Entry {
            inject: Some(Event::Nmi),
            interrupt_window: true,
            nmi_window: false
        }
    );
    e.exited(None);
    assert!(e.nmi_masked());
    // One more is latched, not two.
    e.raise_nmi(2);
    let entry = e.next(OPEN, &mut Queue(vec![])).unwrap();
    assert_eq!(
        entry,
        Entry {
            inject: None,
            interrupt_window: false,
            nmi_window: true
        }
    );
    e.set_nmi_masked(false);
    assert_eq!(inject(&mut e, OPEN), Some(Event::Nmi));
    e.exited(None);
    e.set_nmi_masked(false);
    assert_eq!(inject(&mut e, OPEN), None);
    // When none is in service, two are kept.
    e.raise_nmi(1);
    e.raise_nmi(2);
    assert_eq!(inject(&mut e, OPEN), Some(Event::Nmi));
    e.exited(None);
    e.set_nmi_masked(false);
    assert_eq!(inject(&mut e, OPEN), Some(Event::Nmi));
    e.exited(None);
    e.set_nmi_masked(false);
    assert_eq!(inject(&mut e, OPEN), None);
}

#[test]
fn an_exception_goes_first_and_is_first_once() {
    let mut e = Events::new();
    e.raise_nmi(1);
    assert_eq!(e.raise(Exception::pf(2, 0x1000)), None);
    assert!(e.has_exception() && !e.needs_reinjection());
    let entry = e.next(NO_GIF, &mut Queue(vec![0x31])).unwrap();
    assert_eq!(entry.inject, exception(14, Some(2), Some(0x1000), true));
    assert!(entry.interrupt_window && entry.nmi_window);
    assert!(e.needs_reinjection());
    assert_eq!(inject(&mut e, OPEN), exception(14, Some(2), None, false));
    e.exited(Some(Interrupted::Exception {
        vector: 14,
        error: Some(2),
    }));
    assert_eq!(inject(&mut e, OPEN), exception(14, Some(2), None, false));
    e.exited(None);
    assert_eq!(inject(&mut e, OPEN), Some(Event::Nmi));
}

#[test]
fn interrupted_deliveries_are_resumed_whatever_the_flags() {
    for (what, want) in [
        (
            Interrupted::Interrupt {
                vector: 0x99,
                soft: false,
            },
            irq(0x99),
        ),
        (
            Interrupted::Interrupt {
                vector: 0x80,
                soft: true,
            },
            Some(Event::Interrupt {
                vector: 0x80,
                soft: true,
            }),
        ),
        (Interrupted::Nmi, Some(Event::Nmi)),
        (
            Interrupted::Exception {
                vector: 13,
                error: Some(8),
            },
            exception(13, Some(8), None, false),
        ),
    ] {
        let mut e = Events::new();
        e.exited(Some(what));
        assert!(e.needs_reinjection());
        assert!(!e.ready_for_extint(OPEN));
        for cpu in [CLOSED, SHADOW, NO_GIF, OPEN] {
            let mut q = Queue(vec![0x31]);
            let entry = e.next(cpu, &mut q).unwrap();
            assert_eq!(
                entry,
                Entry {
                    inject: want,
                    interrupt_window: true,
                    nmi_window: false
                }
            );
            assert_eq!(q.0, [0x31]);
        }
        assert_eq!(e.nmi_masked(), what == Interrupted::Nmi);
        e.exited(None);
        assert!(!e.needs_reinjection());
    }
}

#[test]
fn an_exception_during_the_delivery_of_an_interrupt_replaces_it() {
    let mut e = Events::new();
    e.exited(Some(Interrupted::Interrupt {
        vector: 0x99,
        soft: false,
    }));
    e.raise(Exception::gp(0x99 << 3 | 3));
    assert_eq!(
        inject(&mut e, OPEN),
        exception(13, Some(0x99 << 3 | 3), None, true)
    );
    e.exited(None);
    assert_eq!(inject(&mut e, OPEN), None);
}

/// APM vol. 2 table 8-3: every pair.
#[test]
fn exceptions_combine() {
    let contributory = [
        vector::DE,
        vector::TS,
        vector::NP,
        vector::SS,
        vector::GP,
        vector::CP,
    ];
    for first in (0..32).filter(|v| *v != vector::NMI) {
        for second in (0..32).filter(|v| *v != vector::NMI) {
            let mut e = Events::new();
            e.exited(Some(Interrupted::Exception {
                vector: first,
                error: None,
            }));
            let new = Exception {
                vector: second,
                error: Some(4),
                payload: Some(0x1234),
            };
            let cr2 = e.raise(new);
            let serious = contributory.contains(&second) || second == vector::PF;
            let page = second == vector::PF;
            let double = contributory.contains(&first) && contributory.contains(&second)
                || first == vector::PF && serious;
            if first == vector::DF && (serious || second == vector::DF) {
                assert_eq!(e.next(OPEN, &mut Queue(vec![])), Err(TripleFault));
                // Said once.
                assert_eq!(e.next(OPEN, &mut Queue(vec![])), Ok(Entry::default()));
                assert_eq!(cr2, page.then_some(0x1234));
            } else if double {
                assert_eq!(
                    inject(&mut e, OPEN),
                    exception(vector::DF, Some(0), None, true)
                );
                assert_eq!(cr2, page.then_some(0x1234));
            } else {
                assert_eq!(
                    inject(&mut e, OPEN),
                    exception(second, Some(4), Some(0x1234), true)
                );
                assert_eq!(cr2, None);
            }
        }
    }
}

#[test]
fn faults_traps_and_aborts() {
    let not: Vec<u8> = (0..32).filter(|v| !is_fault(*v)).collect();
    assert_eq!(not, [1, 3, 4, 8, 18]);
}

#[test]
fn external_vectors() {
    let mut e = Events::new();
    assert!(e.ready_for_extint(OPEN));
    for cpu in [CLOSED, SHADOW, NO_GIF] {
        assert!(!e.ready_for_extint(cpu));
    }
    assert_eq!(e.raise_extint(0x08), Ok(()));
    assert_eq!(e.raise_extint(0x09), Err(Busy));
    assert!(e.has_extint() && !e.ready_for_extint(OPEN));
    let mut q = Queue(vec![0xf0]);
    assert!(e.next(CLOSED, &mut q).unwrap().interrupt_window);
    assert_eq!(e.next(OPEN, &mut q).unwrap().inject, irq(0x08));
    e.exited(None);
    assert_eq!(e.next(OPEN, &mut q).unwrap().inject, irq(0xf0));
    e.exited(None);
    e.raise(Exception::ud());
    assert!(!e.ready_for_extint(OPEN));
}

#[test]
fn what_wakes_a_halted_processor() {
    let none = Queue(vec![]);
    let one = Queue(vec![0x20]);
    let mut e = Events::new();
    assert!(!e.wakes(OPEN, &none));
    assert!(e.wakes(OPEN, &one));
    assert!(!e.wakes(CLOSED, &one));
    e.raise_nmi(1);
    assert!(e.wakes(CLOSED, &none));
    e.set_nmi_masked(true);
    assert!(!e.wakes(CLOSED, &none));
    let mut e = Events::new();
    e.raise_triple_fault();
    assert!(e.wakes(CLOSED, &none));
    let mut e = Events::new();
    e.raise_extint(9).unwrap();
    assert!(e.wakes(OPEN, &none) && !e.wakes(CLOSED, &none));
}

#[test]
fn soft_interrupts() {
    let mut e = Events::new();
    e.raise_soft_interrupt(0x80);
    assert_eq!(
        inject(&mut e, CLOSED),
        Some(Event::Interrupt {
            vector: 0x80,
            soft: true
        })
    );
    assert_eq!(
        e.save(true),
        VcpuEvents {
            nmi_injected: false,
            ..VcpuEvents::default()
        }
    );
}

#[test]
fn saved_with_and_without_payload() {
    let mut e = Events::new();
    e.raise(Exception::pf(6, 0xdead_f000));
    let with = e.save(true);
    assert!(with.exception_pending && !with.exception_injected);
    assert_eq!(
        (
            with.exception_nr,
            with.exception_error,
            with.exception_payload
        ),
        (14, Some(6), Some(0xdead_f000))
    );
    // Old user space: the payload goes to CR2 first, and the exception shows as injected.
    let mut old = e.clone();
    assert_eq!(old.take_payload(), Some((14, 0xdead_f000)));
    assert_eq!(old.take_payload(), None);
    let without = old.save(false);
    assert!(without.exception_injected && !without.exception_pending);
    assert_eq!(without.exception_payload, None);
    let mut back = Events::new();
    back.load(&without).unwrap();
    assert_eq!(inject(&mut back, OPEN), exception(14, Some(6), None, false));
    back.load(&with).unwrap();
    assert_eq!(
        inject(&mut back, OPEN),
        exception(14, Some(6), Some(0xdead_f000), true)
    );
    // Software exceptions come from their instruction again.
    e.exited(Some(Interrupted::Exception {
        vector: 3,
        error: None,
    }));
    let soft = e.save(true);
    assert!(!soft.exception_injected && !soft.exception_pending);
}

#[test]
fn loading_refuses_what_is_no_exception() {
    let mut e = Events::new();
    e.raise_nmi(1);
    let before = e.clone();
    for nr in [2, 32, 255] {
        for pending in [false, true] {
            let state = VcpuEvents {
                exception_injected: !pending,
                exception_pending: pending,
                exception_nr: nr,
                ..VcpuEvents::default()
            };
            assert_eq!(e.load(&state), Err(InvalidEvents));
            assert_eq!(e, before);
        }
    }
    // Not looked at if there is none.
    assert_eq!(
        e.load(&VcpuEvents {
            exception_nr: 255,
            ..VcpuEvents::default()
        }),
        Ok(())
    );
    assert_eq!(e, Events::new());
}

fn state() -> impl Strategy<Value = VcpuEvents> {
    let exception = (
        0u8..3,
        (0u8..32).prop_filter("no NMI", |v| ![2, 3, 4].contains(v)),
        any::<Option<u32>>(),
        any::<Option<u64>>(),
    );
    (exception, any::<Option<u8>>(), any::<[bool; 4]>()).prop_map(|(x, interrupt, flags)| {
        VcpuEvents {
            exception_injected: x.0 == 1,
            exception_pending: x.0 == 2,
            exception_nr: if x.0 == 0 { 0 } else { x.1 },
            exception_error: x.2.filter(|_| x.0 != 0),
            exception_payload: x.3.filter(|_| x.0 == 2),
            interrupt_injected: interrupt.is_some(),
            interrupt_nr: interrupt.unwrap_or(0),
            interrupt_soft: false,
            nmi_injected: flags[0],
            nmi_pending: flags[1],
            nmi_masked: flags[2],
            triple_fault_pending: flags[3],
        }
    })
}

proptest! {
    #[test]
    fn saving_gives_what_was_loaded(s in state()) {
        let mut e = Events::new();
        prop_assert_eq!(e.load(&s), Ok(()));
        prop_assert_eq!(e.save(true), s);
    }

    /// Over any course of events, every interrupt and NMI is injected once, or was replaced by an
    /// exception; nothing is injected against the processor's state; and what is not injected has
    /// its window.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec((0u8..8, any::<u8>(), any::<[bool; 4]>()), 1..200)) {
        let mut e = Events::new();
        let mut q = Queue(vec![]);
        let (mut raised, mut taken, mut dropped) = (0, 0, 0);
        // In delivery, not yet known to have arrived.
        let mut flying: Option<Event> = None;
        for (op, v, flags) in steps {
            match op {
                0 | 1 => { q.0.push(v); raised += 1; }
                2 => if e.raise_extint(v).is_ok() { raised += 1 },
                3 => e.raise_nmi(1),
                4 => {
                    if matches!(flying.take(), Some(Event::Interrupt { .. })) {
                        dropped += 1;
                    }
                    // A benign one, so that no triple fault ends it all.
                    e.raise(Exception::ud());
                }
                5 => e.set_nmi_masked(false),
                _ => {
                    let cpu = Cpu { interrupt_flag: flags[0], shadow: flags[1], gif: flags[2] };
                    let masked = e.nmi_masked();
                    let was = flying.take();
                    let waiting = q.0.len() + usize::from(e.has_extint());
                    let entry = e.next(cpu, &mut q).unwrap();
                    let fresh = waiting - q.0.len() - usize::from(e.has_extint());
                    match entry.inject {
                        Some(Event::Interrupt { .. }) if fresh == 1 => {
                            prop_assert!(cpu == OPEN && was.is_none());
                        }
                        Some(Event::Nmi) if was.is_none() => prop_assert!(!masked && !flags[1] && flags[2]),
                        other => prop_assert_eq!(fresh, 0, "{:?}", other),
                    }
                    prop_assert_eq!(entry.interrupt_window, waiting > fresh);
                    if was.is_some() {
                        prop_assert_eq!(entry.inject, was);
                    }
                    match (entry.inject, flags[3]) {
                        // Cut short.
                        (Some(Event::Interrupt { vector, soft }), true) => {
                            e.exited(Some(Interrupted::Interrupt { vector, soft }));
                            flying = entry.inject;
                        }
                        (Some(Event::Nmi), true) => {
                            e.exited(Some(Interrupted::Nmi));
                            flying = entry.inject;
                        }
                        (event, _) => {
                            if matches!(event, Some(Event::Interrupt { .. })) { taken += 1; }
                            e.exited(None);
                        }
                    }
                }
            }
            let flying_irq = usize::from(matches!(flying, Some(Event::Interrupt { .. })));
            let waiting = q.0.len() + usize::from(e.has_extint());
            prop_assert_eq!(raised, taken + dropped + waiting + flying_irq);
        }
    }
}
