// SPDX-License-Identifier: GPL-2.0

//! Tests of VMX's pure parts.

use crate::arch::x86::{
    exit::{Event, Exit, Intercepts, Io, Stage2Access, TaskSwitch, TaskSwitchReason, Windows},
    model::regs::{cr0, cr4, efer, rflags, vector, Exception, Gpr, Seg, SegAttr, Segment},
    vmx::{
        check::{self, interruptibility, pending, Limits, State},
        controls::{self, proc2, Control, Msrs, Without, Word, TABLE},
        decode::{self, reason, Raw},
        ept::{self, Ept},
        event::{self, kind, Info, Injection},
        field,
        mirror::{Guest, Hardware, Mirror, Values, ENCODING, LDTR, TR},
    },
};
use crate::memory::stage2::{Entry, Leaf, MemoryType};
use std::{cell::RefCell, collections::HashMap};

mod fields {
    use super::*;

    /// The width that an encoding says (SDM vol. 3C table 26-21): bits 14:13.
    fn width(encoding: u32) -> usize {
        match encoding >> 13 & 3 {
            0 => 2,
            1 => 8,
            2 => 4,
            _ => 8,
        }
    }

    #[test]
    fn widths_and_access_are_as_encoded() {
        for &(encoding, bytes, read_only, name) in field::ALL {
            assert_eq!(width(encoding), bytes, "{name}");
            // Bits 11:10: 1 is read-only data.
            assert_eq!(encoding >> 10 & 3 == 1, read_only, "{name}");
            assert_eq!(encoding & 1, 0, "{name}: the high half");
        }
    }

    #[test]
    fn guest_fields_are_the_guests() {
        for (g, &encoding) in Guest::ALL.iter().zip(ENCODING) {
            let shadow = matches!(g, Guest::Cr0Shadow | Guest::Cr4Shadow);
            assert_eq!(encoding >> 10 & 3, if shadow { 0 } else { 2 }, "{g:?}");
        }
        let mut all = ENCODING.to_vec();
        all.extend(field::ALL.iter().map(|f| f.0));
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(n, all.len(), "an encoding twice");
    }
}

/// What a VMCS holds, for the mirror.
#[derive(Default)]
struct Fake {
    fields: RefCell<HashMap<u32, u64>>,
    reads: RefCell<usize>,
    writes: RefCell<usize>,
}

impl Hardware for Fake {
    fn read(&self, encoding: u32) -> u64 {
        *self.reads.borrow_mut() += 1;
        self.fields.borrow().get(&encoding).copied().unwrap_or(0)
    }
    fn write(&self, encoding: u32, v: u64) {
        *self.writes.borrow_mut() += 1;
        self.fields.borrow_mut().insert(encoding, v);
    }
}

mod mirror {
    use super::*;

    const RIP: u32 = 0x681e;
    const CR4: u32 = 0x6804;

    #[test]
    fn asks_once_and_writes_what_changed() {
        let hw = Fake::default();
        let mut m = Mirror::new();
        m.flush(&hw);
        assert_eq!(*hw.writes.borrow(), ENCODING.len());
        assert!(!m.is_dirty());

        m.set(Guest::Rip, 0x1000);
        m.set(Guest::Rip, 0x1000);
        assert!(m.is_changed(Guest::Rip));
        m.flush(&hw);
        assert_eq!(*hw.writes.borrow(), ENCODING.len() + 1);

        m.exited();
        hw.fields.borrow_mut().insert(RIP, 0x2000);
        hw.fields.borrow_mut().insert(CR4, 7);
        assert_eq!(m.get(&hw, Guest::Rip), 0x2000);
        assert_eq!(m.get(&hw, Guest::Rip), 0x2000);
        assert_eq!(*hw.reads.borrow(), 1);
        assert_eq!(m.get(&hw, Guest::Cr4), 0, "CR4 is ours");
        // To set what is not known is to write it, whatever it is.
        m.set(Guest::Rsp, 0);
        assert!(m.is_changed(Guest::Rsp));

        m.complete(&hw);
        let after = *hw.reads.borrow();
        for &g in Guest::ALL {
            m.get(&hw, g);
        }
        assert_eq!(*hw.reads.borrow(), after, "all known outside of a section");
    }

    #[test]
    fn what_was_set_is_not_read_back() {
        let hw = Fake::default();
        let mut m = Mirror::new();
        m.exited();
        m.set(Guest::Rip, 5);
        m.complete(&hw);
        assert_eq!(m.get(&hw, Guest::Rip), 5);
    }

    #[test]
    fn segments_come_back() {
        let hw = Fake::default();
        let mut m = Mirror::new();
        let mut n = 0;
        let mut next = || {
            n += 1;
            Segment {
                selector: n,
                attr: SegAttr(0xa09b),
                limit: u32::from(n) << 12 | 0xfff,
                base: u64::from(n) << 20,
            }
        };
        let all = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];
        let values = all.map(|s| {
            let v = next();
            m.set_segment(s, &v);
            v
        });
        let (tr, ldtr) = (next(), next());
        m.set_system(TR, &tr);
        m.set_system(LDTR, &ldtr);
        m.flush(&hw);
        m.exited();
        for (s, v) in all.into_iter().zip(values) {
            assert_eq!(m.segment(&hw, s), v);
            assert_eq!(m.attr(&hw, s), v.attr);
        }
        assert_eq!(m.system(&hw, TR), tr);
        assert_eq!(m.system(&hw, LDTR), ldtr);
    }

    #[test]
    fn absent_segments_cannot_be_used() {
        let hw = Fake::default();
        let mut m = Mirror::new();
        let absent = Segment {
            attr: SegAttr(0x13),
            ..Segment::default()
        };
        m.set_segment(Seg::Ds, &absent);
        assert!(m.attr(&hw, Seg::Ds).unusable());
    }
}

mod tables {
    use super::*;

    #[test]
    fn leaves_come_back() {
        for level in 0..3 {
            for bits in 0..64u32 {
                for memory in [
                    MemoryType::Normal,
                    MemoryType::WriteCombining,
                    MemoryType::Device,
                ] {
                    let has = |n: u32| bits & 1 << n != 0;
                    let l = Leaf {
                        pfn: 0x8_0000,
                        write: has(0),
                        exec: has(1),
                        host_write: has(2),
                        accessed: has(3),
                        dirty: has(4),
                        memory,
                    };
                    let e = Ept::leaf(&l, level);
                    assert!(Ept::is_present(e, level));
                    assert!(!Ept::is_table(e, level));
                    assert_eq!(Ept::decode(e, level), l);
                    assert_eq!(Ept::leaf(&Ept::decode(e, level), level), e);
                    // Writable but not readable is a misconfiguration.
                    assert_eq!(e & 1, 1);
                }
            }
        }
    }

    #[test]
    fn tables_and_pointer() {
        let e = Ept::table(0x12_3000, 3);
        assert!(Ept::is_table(e, 3) && Ept::is_present(e, 3));
        assert_eq!(Ept::table_phys(e, 3), 0x12_3000);
        // Bits 7:3 of a table's entry are reserved.
        assert_eq!(e & 0xf8, 0);
        assert_eq!(ept::pointer(0x5000, 4, true), 0x505e);
        assert_eq!(ept::pointer(0x5000, 5, false), 0x5026);
        assert!(!Ept::is_present(0, 0));
    }
}

mod capabilities {
    use super::*;

    /// Of Bochs' models, as its guests read them (the low halves as the manual has the true controls'
    /// default1 classes).
    fn bochs(proc2: u64, ept_vpid: u64, pin: u64) -> Msrs {
        Msrs {
            basic: 0x00da_0400_0000_002b | controls::basic::TRUE,
            pin: pin << 32 | 0x16,
            proc: 0xf7f9_fffe_0400_6172 & !(1 << 49),
            proc2: proc2 << 32,
            exit: 0x7fef_ffff_0003_6dfb & !(1 << (32 + 30)),
            entry: 0x0000_ffff_0000_11fb,
            misc: 0x6004_01e0,
            ept_vpid,
            cr0: [0x8000_0021, 0xffff_ffff],
            cr4: [0x2000, 0x17_67ff],
        }
    }

    fn haswell() -> Msrs {
        bochs(0x47fff, 0xf01_0633_4141, 0x7f)
    }

    fn skylake() -> Msrs {
        bochs(0x257_7fff, 0xf01_0673_4141, 0xff)
    }

    #[test]
    fn plans_for_the_models() {
        let mut lost = vec![];
        let p = controls::plan(&haswell(), |c| lost.push(c.name)).unwrap();
        assert!(p.ept_1g && p.ept_track && !p.ept_5);
        assert_eq!(p.revision, 0x2b);
        assert_eq!(p.timer_shift, 0);
        assert_eq!(lost, ["enable PML", "use TSC scaling"]);
        assert!(!p.has2(proc2::TSC_SCALING) && !p.has2(proc2::PML));
        lost.clear();

        // No A/D bits, no INVPCID.
        let arrandale = bochs(0xff, 0xf01_0611_4141, 0x7f);
        let p = controls::plan(&arrandale, |c| lost.push(c.name)).unwrap();
        assert!(!p.ept_track && !p.has2(proc2::DELIVERY));
        assert_eq!(
            lost,
            [
                "virtual-interrupt delivery",
                "PAUSE-loop exiting",
                "enable INVPCID",
                "enable PML",
                "use TSC scaling"
            ]
        );
        lost.clear();

        // Posted interrupts are there, and stay off.
        let p = controls::plan(&skylake(), |c| lost.push(c.name)).unwrap();
        assert_eq!(p.controls.pin & 1 << 7, 0);
        assert_eq!(lost, [""; 0]);
        assert!(p.has2(proc2::TSC_SCALING) && p.has2(proc2::PML));
        // Without dirty bits there is nothing to log.
        let mut m = skylake();
        m.ept_vpid &= !(1 << 21);
        assert!(!controls::plan(&m, |_| {}).unwrap().has2(proc2::PML));

        // No secondary controls to speak of.
        let penryn = bochs(0x41, 0, 0x3f);
        assert_eq!(controls::plan(&penryn, |_| {}), Err("enable EPT"));
        let missing: Vec<_> = controls::missing(&penryn).collect();
        assert_eq!(missing, ["enable EPT", "enable VPID", "unrestricted guest"]);
        assert_eq!(controls::missing(&haswell()).count(), 0);
    }

    #[test]
    fn the_preemption_timer_is_not_early() {
        let mut p = controls::plan(&haswell(), |_| {}).unwrap();
        assert!(p.has_timer());
        for shift in [0, 5, 31] {
            p.timer_shift = shift;
            for ticks in [0, 1, 31, 32, 33, 1000, 1 << 31, (1 << 32) - 3, u64::MAX] {
                let value = u64::from(p.timer_value(ticks));
                // The first count comes with the next change of the bit, the others a whole period apart.
                let (soonest, latest) = ((value - 1) << shift, value << shift);
                if value < u64::from(u32::MAX) {
                    assert!(soonest >= ticks, "{ticks} by {shift}");
                    assert!(latest - ticks <= 2 << shift, "{ticks} by {shift}");
                } else {
                    assert!(ticks >> shift >= (1 << 32) - 3, "{ticks} by {shift}");
                }
            }
        }
    }

    #[test]
    fn nothing_forbidden_is_set_and_nothing_required_clear() {
        for m in [haswell(), skylake()] {
            let p = controls::plan(&m, |_| {}).unwrap();
            let c = p.controls;
            // On demand: all there is, asked for.
            let demanded = p.proc2(&Intercepts::default(), u32::MAX);
            for (v, msr) in [
                (c.pin, m.pin),
                (c.proc, m.proc),
                (c.proc2, m.proc2),
                (demanded, m.proc2),
                (c.exit, m.exit),
                (c.entry, m.entry),
            ] {
                let (must, may) = (msr as u32, (msr >> 32) as u32);
                assert_eq!(v & must, must);
                assert_eq!(v & !may, 0);
            }
        }
    }

    #[test]
    fn each_missing_control_has_its_effect() {
        for c in TABLE {
            let mut m = skylake();
            let word = match c.word {
                Word::Pin => &mut m.pin,
                Word::Proc => &mut m.proc,
                Word::Proc2 => &mut m.proc2,
                Word::Exit => &mut m.exit,
                Word::Entry => &mut m.entry,
            };
            *word &= !(1 << (32 + c.bit) | 1 << c.bit);
            let mut lost = vec![];
            let p = controls::plan(&m, |c: &Control| lost.push(c.name));
            match c.without {
                Without::Refused | Without::OnDemand => assert_eq!(p, Err(c.name)),
                Without::Lost(_) => {
                    assert!(p.is_ok());
                    assert_eq!(lost, [c.name]);
                }
                Without::LostOnDemand(_) => {
                    assert!(!p.unwrap().has2(1 << c.bit));
                    assert_eq!(lost, [c.name]);
                }
                Without::Off => assert!(p.is_ok()),
            }
        }
    }

    #[test]
    fn what_cannot_be_off_is_refused() {
        for c in TABLE {
            if let Without::OnDemand | Without::LostOnDemand(_) | Without::Off = c.without {
                let mut m = skylake();
                let word = match c.word {
                    Word::Pin => &mut m.pin,
                    Word::Proc => &mut m.proc,
                    Word::Proc2 => &mut m.proc2,
                    Word::Exit => &mut m.exit,
                    Word::Entry => &mut m.entry,
                };
                *word |= 1 << (32 + c.bit) | 1 << c.bit;
                assert_eq!(controls::plan(&m, |_| {}), Err(c.name));
            }
        }
    }

    #[test]
    fn on_demand() {
        let p = controls::plan(&haswell(), |_| {}).unwrap();
        let none = p.proc(&Intercepts::default(), Windows::default());
        assert_eq!(none, p.controls.proc);
        let window = Windows {
            interrupt: true,
            nmi: true,
        };
        assert_eq!(
            p.proc(&Intercepts::default(), window) ^ none,
            1 << 2 | 1 << 22
        );
        let wants = |i: Intercepts| p.proc(&i, Windows::default()) ^ none;
        let d = Intercepts::default();
        assert_eq!(wants(Intercepts { hlt: true, ..d }), 1 << 7);
        assert_eq!(wants(Intercepts { mwait: true, ..d }), 1 << 10 | 1 << 29);
        assert_eq!(
            wants(Intercepts {
                debug_regs: true,
                ..d
            }),
            1 << 23
        );
        assert_eq!(
            wants(Intercepts {
                cr8_write: true,
                ..d
            }),
            1 << 19
        );
        assert_eq!(wants(Intercepts { rdtsc: true, ..d }), 1 << 12);
        assert_eq!(wants(Intercepts { rdpmc: true, ..d }), 1 << 11);
        assert_eq!(wants(Intercepts { invlpg: true, ..d }), 1 << 9);
        assert_eq!(p.proc2(&d, 0), p.controls.proc2 & !(1 << 10));
        // What the processor lacks stays off, whoever asks.
        assert_eq!(p.proc2(&d, !proc2::DELIVERY), p.proc2(&d, 0));
        assert_eq!(
            p.proc2(&d, proc2::DELIVERY) ^ p.proc2(&d, 0),
            1 << 4 | 1 << 9
        );
        let p = controls::plan(&skylake(), |_| {}).unwrap();
        assert_eq!(p.proc2(&d, proc2::TSC_SCALING) ^ p.proc2(&d, 0), 1 << 25);
        assert_eq!(p.proc2(&d, proc2::PML) ^ p.proc2(&d, 0), 1 << 17);
    }
}

mod events {
    use super::*;

    #[test]
    fn there_and_back() {
        let cases = [
            Event::Exception(Exception::ud()),
            Event::Exception(Exception::gp(0x18)),
            Event::SoftException { vector: 3, len: 1 },
            Event::SoftInterrupt {
                vector: 0x80,
                len: 2,
            },
            Event::Interrupt { vector: 0x31 },
            Event::Nmi,
        ];
        for e in cases {
            let i = event::encode(&e, true, false).unwrap();
            assert_eq!(event::undelivered(i.info, i.error, i.length), Some(e));
        }
        assert_eq!(event::undelivered(Info(0), 0, 0), None);
        // INT1 runs again.
        assert_eq!(
            event::undelivered(Info::new(kind::INT1, 1, false), 0, 1),
            None
        );
    }

    #[test]
    fn error_codes() {
        let gp = Event::Exception(Exception::gp(0x1_ffff));
        let i = event::encode(&gp, true, false).unwrap();
        assert_eq!(i.error, 0x7fff);
        // Real mode has none.
        let i = event::encode(&gp, false, false).unwrap();
        assert!(!i.info.has_error());
        // An exception that must have one gets one, and one that must not does not.
        let bare = Event::Exception(Exception::plain(vector::GP));
        assert!(event::encode(&bare, true, false).unwrap().info.has_error());
        assert!(!event::encode(&bare, true, true).unwrap().info.has_error());
        let odd = Event::Exception(Exception::with_error(vector::UD, 1));
        assert!(!event::encode(&odd, true, false).unwrap().info.has_error());
    }

    #[test]
    fn soft_events_without_length_run_again() {
        assert_eq!(
            event::encode(&Event::SoftInterrupt { vector: 8, len: 0 }, true, false),
            None
        );
    }
}

mod decoding {
    use super::*;

    fn exit(reason: u32, qualification: u64) -> Exit {
        let raw = Raw {
            reason,
            qualification,
            gpa: 0xfee0_0080,
            ..Raw::default()
        };
        decode::exit(&raw, || Some(0x1002))
    }

    #[test]
    fn ports() {
        // OUT DX, AL to 3f8h; REP INSD from 170h.
        let out = Io {
            port: 0x3f8,
            size: 1,
            input: false,
            string: false,
            rep: false,
            next_rip: Some(0x1002),
        };
        assert_eq!(exit(reason::IO, 0x3f8_0000), Exit::Io(out));
        let ins = Io {
            port: 0x170,
            size: 4,
            input: true,
            string: true,
            rep: true,
            next_rip: Some(0x1002),
        };
        assert_eq!(exit(reason::IO, 0x170_003b), Exit::Io(ins));
    }

    #[test]
    fn control_and_debug_registers() {
        let cr = |cr, write, gpr| Exit::Cr { cr, write, gpr };
        assert_eq!(exit(reason::CR, 0x300), cr(0, true, Some(Gpr::Rbx)));
        assert_eq!(exit(reason::CR, 0xf18), cr(8, false, Some(Gpr::R15)));
        assert_eq!(exit(reason::CR, 0x20), cr(0, true, None));
        assert_eq!(exit(reason::CR, 0xb_0030), cr(0, true, None));
        let dr = |dr, write, gpr| Exit::Dr { dr, write, gpr };
        assert_eq!(exit(reason::DR, 0x107), dr(7, true, Some(Gpr::Rcx)));
        assert_eq!(exit(reason::DR, 0x16), dr(6, false, Some(Gpr::Rax)));
    }

    #[test]
    fn stage_two() {
        let fault = |write, fetch, present, table_walk| Exit::Stage2Fault {
            gpa: 0xfee0_0080,
            access: Stage2Access {
                write,
                fetch,
                present,
                table_walk,
            },
        };
        let ept = |q| exit(reason::EPT_VIOLATION, q);
        assert_eq!(ept(0x181), fault(false, false, false, false));
        assert_eq!(ept(0x182), fault(true, false, false, false));
        assert_eq!(ept(0x184), fault(false, true, false, false));
        assert_eq!(ept(0x1aa), fault(true, false, true, false));
        assert_eq!(ept(0x83), fault(true, false, false, true));
        // Without a linear address it is no table walk of the guest's instruction.
        assert_eq!(ept(0x01), fault(false, false, false, false));
        assert!(matches!(
            exit(reason::EPT_MISCONFIG, 0),
            Exit::Unknown { code: 49 }
        ));
    }

    #[test]
    fn exceptions() {
        let of = |vector, error, qualification| {
            let raw = Raw {
                reason: reason::EXCEPTION,
                info: Info::new(kind::EXCEPTION, vector, error),
                error: 0x13,
                qualification,
                ..Raw::default()
            };
            decode::exit(&raw, || None)
        };
        let x = |vector, error, payload| {
            Exit::Exception(Exception {
                vector,
                error,
                payload,
            })
        };
        assert_eq!(of(vector::UD, false, 0), x(vector::UD, None, None));
        assert_eq!(
            of(vector::PF, true, 0x1234),
            x(vector::PF, Some(0x13), Some(0x1234))
        );
        // A single step; breakpoint 2.
        assert_eq!(
            of(vector::DB, false, 0x4000),
            x(vector::DB, None, Some(0xffff_4ff0))
        );
        assert_eq!(
            of(vector::DB, false, 4),
            x(vector::DB, None, Some(0xffff_0ff4))
        );
        assert_eq!(of(vector::MC, false, 0), Exit::MachineCheck);
        let nmi = Raw {
            info: Info::new(kind::NMI, 2, false),
            ..Raw::default()
        };
        assert_eq!(decode::exit(&nmi, || None), Exit::HostNmi);
    }

    #[test]
    fn task_switches() {
        let raw = Raw {
            reason: reason::TASK_SWITCH,
            qualification: 0xc000_0028,
            vectoring: Info::new(kind::EXCEPTION, vector::DF, true),
            error: 0,
            ..Raw::default()
        };
        let want = Exit::TaskSwitch(TaskSwitch {
            selector: 0x28,
            reason: TaskSwitchReason::Event,
            error: Some(0),
            resume: None,
        });
        assert_eq!(decode::exit(&raw, || None), want);
        for (k, v, reason) in [
            (kind::INTERRUPT, 0x20, TaskSwitchReason::Event),
            (kind::NMI, 2, TaskSwitchReason::Nmi),
            (kind::EXCEPTION, 3, TaskSwitchReason::Event),
            (
                kind::SOFT_EXCEPTION,
                3,
                TaskSwitchReason::Soft { vector: 3 },
            ),
            (
                kind::SOFT_INTERRUPT,
                0x80,
                TaskSwitchReason::Soft { vector: 0x80 },
            ),
            (kind::INT1, 1, TaskSwitchReason::Int1),
        ] {
            let raw = Raw {
                vectoring: Info::new(k, v, false),
                ..raw
            };
            let want = Exit::TaskSwitch(TaskSwitch {
                selector: 0x28,
                reason,
                error: None,
                resume: None,
            });
            assert_eq!(decode::exit(&raw, || None), want);
        }
        for (q, r) in [
            (0x20, TaskSwitchReason::Call),
            (0x4000_0020, TaskSwitchReason::Iret),
            (0x8000_0020, TaskSwitchReason::Jump),
        ] {
            let want = Exit::TaskSwitch(TaskSwitch {
                selector: 0x20,
                reason: r,
                error: None,
                resume: None,
            });
            assert_eq!(exit(reason::TASK_SWITCH, q), want);
        }
    }

    #[test]
    fn failures() {
        assert_eq!(
            exit(reason::FAILED | 33, 0),
            Exit::FailEntry { code: 0x8000_0021 }
        );
        assert_eq!(exit(reason::VMFAIL, 7), Exit::FailEntry { code: 7 });
        assert!(matches!(exit(reason::NO_VMX, 0), Exit::FailEntry { .. }));
        assert_eq!(exit(77, 0), Exit::Unknown { code: 77 });
    }

    #[test]
    fn instructions_ask_for_their_length() {
        for r in [
            reason::CPUID,
            reason::HLT,
            reason::IO,
            reason::RDMSR,
            reason::WRMSR,
            reason::XSETBV,
            reason::WBINVD,
            reason::VMCALL,
            reason::PAUSE,
        ] {
            assert!(decode::needs(r).length, "{r}");
            assert!(!decode::needs(r).vectoring, "{r}");
        }
        for r in [
            reason::EXCEPTION,
            reason::EPT_VIOLATION,
            reason::INTERRUPT,
            reason::INTERRUPT_WINDOW,
            reason::TIMER,
        ] {
            assert!(!decode::needs(r).length, "{r}");
        }
        for r in 0..80 {
            // Nothing is asked of an exit that says nothing.
            let _ = decode::exit(
                &Raw {
                    reason: r,
                    ..Raw::default()
                },
                || None,
            );
        }
    }
}

mod rules {
    use super::*;

    const LIMITS: Limits = Limits {
        phys_bits: 40,
        linear_bits: 48,
        cr0: [0x8000_0021, 0xffff_ffff],
        cr4: [0x2000, 0x17_67ff],
        any_error_code: false,
    };

    struct Case {
        v: Values,
        entry: u32,
        event: Injection,
    }

    impl Case {
        fn set(&mut self, g: Guest, v: u64) {
            self.v[g as usize] = v;
        }
        fn get(&self, g: Guest) -> u64 {
            self.v[g as usize]
        }
        fn or(&mut self, g: Guest, v: u64) {
            self.set(g, self.get(g) | v);
        }
        fn rule(&self) -> Option<&'static str> {
            let rule = check::broken_rule(&State {
                guest: &self.v,
                entry: self.entry,
                event: self.event,
                limits: &LIMITS,
            });
            rule.and_then(|r| r.to_str().ok())
        }
    }

    fn base() -> Case {
        let mut c = Case {
            v: [0; ENCODING.len()],
            entry: 0,
            event: Injection::default(),
        };
        c.set(Guest::Cr4, 0x2000);
        c.set(Guest::Rflags, rflags::FIXED);
        c.set(Guest::Pat, 0x0007_0406_0007_0406);
        c.set(Guest::Dr7, 0x400);
        for g in [
            Guest::EsAttr,
            Guest::SsAttr,
            Guest::DsAttr,
            Guest::FsAttr,
            Guest::GsAttr,
        ] {
            c.set(g, 0x93);
        }
        for g in [
            Guest::EsLimit,
            Guest::CsLimit,
            Guest::SsLimit,
            Guest::DsLimit,
            Guest::FsLimit,
            Guest::GsLimit,
            Guest::LdtrLimit,
            Guest::TrLimit,
            Guest::GdtrLimit,
            Guest::IdtrLimit,
        ] {
            c.set(g, 0xffff);
        }
        c.set(Guest::CsAttr, 0x9b);
        c.set(Guest::TrAttr, 0x8b);
        c.set(Guest::LdtrAttr, 0x82);
        c
    }

    /// After RESET.
    fn real() -> Case {
        let mut c = base();
        c.set(Guest::Cr0, cr0::ET | cr0::NE);
        c.set(Guest::CsSelector, 0xf000);
        c.set(Guest::CsBase, 0xffff_0000);
        c.set(Guest::Rip, 0xfff0);
        c
    }

    fn long() -> Case {
        let mut c = base();
        c.set(Guest::Cr0, cr0::PG | cr0::PE | cr0::ET | cr0::NE | cr0::WP);
        c.or(Guest::Cr4, cr4::PAE);
        c.set(Guest::Efer, efer::LME | efer::LMA | efer::NXE | efer::SCE);
        c.entry = controls::entry::LONG_MODE;
        c.set(Guest::CsAttr, 0xa09b);
        c.set(Guest::CsLimit, 0xffff_ffff);
        c.set(Guest::Rip, 0xffff_ffff_8100_0000);
        c
    }

    fn v86() -> Case {
        let mut c = base();
        c.set(Guest::Cr0, cr0::PE | cr0::ET | cr0::NE);
        c.or(Guest::Rflags, rflags::VM);
        for (sel, attr, base) in [
            (Guest::EsSelector, Guest::EsAttr, Guest::EsBase),
            (Guest::CsSelector, Guest::CsAttr, Guest::CsBase),
            (Guest::SsSelector, Guest::SsAttr, Guest::SsBase),
            (Guest::DsSelector, Guest::DsAttr, Guest::DsBase),
            (Guest::FsSelector, Guest::FsAttr, Guest::FsBase),
            (Guest::GsSelector, Guest::GsAttr, Guest::GsBase),
        ] {
            c.set(sel, 0x1234);
            c.set(attr, 0xf3);
            c.set(base, 0x12340);
        }
        c
    }

    /// PAE paging, in 32-bit mode.
    fn pae() -> Case {
        let mut c = base();
        c.set(Guest::Cr0, cr0::PG | cr0::PE | cr0::ET | cr0::NE);
        c.or(Guest::Cr4, cr4::PAE);
        c.set(Guest::Pdpte0, 0x1001);
        c
    }

    #[test]
    fn good_states_break_nothing() {
        for c in [real(), long(), v86(), pae()] {
            assert_eq!(c.rule(), None);
        }
        // The end of the lower half, where only the next fetch faults.
        let mut c = long();
        c.set(Guest::Rip, 1 << 47);
        assert_eq!(c.rule(), None);
    }

    fn inject(kind: u32, vector: u8, error: bool) -> Injection {
        Injection {
            info: Info::new(kind, vector, error),
            ..Injection::default()
        }
    }

    type Break = fn(&mut Case);

    #[test]
    #[rustfmt::skip]
    fn each_broken_rule_is_named() {
        use interruptibility::{MOV_SS, NMI, SMI, STI};
        let cases: &[(fn() -> Case, Break, &str)] = &[
            (long, |c| c.event = inject(1, 3, false), "event is illegal"),
            (long, |c| c.event = inject(kind::NMI, 3, false), "event is illegal"),
            (long, |c| c.event = inject(kind::EXCEPTION, 32, false), "event is illegal"),
            (long, |c| c.event = inject(kind::EXCEPTION, vector::GP, false), "event is illegal"),
            (real, |c| c.event = inject(kind::EXCEPTION, vector::GP, true), "event is illegal"),
            (long, |c| c.event = inject(kind::SOFT_INTERRUPT, 0x80, false), "event is illegal"),
            (real, |c| c.set(Guest::Cr0, cr0::ET), "CR0 lacks"),
            (real, |c| c.or(Guest::Cr0, 1 << 40), "CR0 has reserved"),
            (real, |c| c.or(Guest::Cr0, cr0::PG), "CR0.PG is 1 while CR0.PE"),
            (real, |c| c.set(Guest::Cr4, 0), "CR4 lacks"),
            (real, |c| c.or(Guest::Cr4, cr4::LA57), "CR4 has bits"),
            (real, |c| c.set(Guest::DebugCtl, 1 << 20), "DEBUGCTL"),
            (long, |c| c.set(Guest::Cr0, cr0::PE | cr0::NE), "while CR0.PG is 0"),
            (long, |c| c.set(Guest::Cr4, 0x2000), "while CR4.PAE is 0"),
            (pae, |c| c.or(Guest::Cr4, cr4::PCIDE), "CR4.PCIDE"),
            (long, |c| c.set(Guest::Cr3, 1 << 40), "CR3"),
            (long, |c| c.set(Guest::Dr7, 1 << 32), "DR7"),
            (long, |c| c.set(Guest::SysenterEsp, 1 << 47), "SYSENTER_ESP"),
            (long, |c| c.set(Guest::SysenterEip, 1 << 63), "SYSENTER_EIP"),
            (long, |c| c.set(Guest::Pat, 2), "PAT"),
            (long, |c| c.or(Guest::Efer, 1 << 13), "EFER has reserved"),
            (long, |c| c.set(Guest::Efer, efer::LME), "EFER.LMA is not"),
            (long, |c| c.set(Guest::Efer, efer::LMA), "EFER.LMA and LME differ"),
            (long, |c| c.set(Guest::TrSelector, 4), "TR's selector"),
            (long, |c| c.set(Guest::LdtrSelector, 4), "LDTR's selector"),
            (v86, |c| c.set(Guest::CsBase, 0), "virtual-8086"),
            (v86, |c| c.set(Guest::DsLimit, 0xfff), "virtual-8086"),
            (v86, |c| c.set(Guest::GsAttr, 0x93), "virtual-8086"),
            (long, |c| c.set(Guest::TrBase, 1 << 50), "TR's base"),
            (long, |c| c.set(Guest::GsBase, 1 << 50), "GS' base"),
            (long, |c| c.set(Guest::LdtrBase, 1 << 50), "LDTR's base"),
            (long, |c| c.set(Guest::CsBase, 1 << 32), "CS' base"),
            (long, |c| c.set(Guest::EsBase, 1 << 32), "ES' base"),
            (long, |c| c.set(Guest::CsAttr, 0xa09a), "CS is no accessed"),
            (long, |c| c.set(Guest::SsAttr, 0x9b), "of a type"),
            (long, |c| c.set(Guest::DsAttr, 0x92), "of a type"),
            (long, |c| c.set(Guest::FsAttr, 0x99), "of a type"),
            (long, |c| c.set(Guest::CsAttr, 0xa08b), "has S clear"),
            (long, |c| c.set(Guest::DsAttr, 0x83), "has S clear"),
            (long, |c| c.set(Guest::CsAttr, 0xa0fb), "CS.DPL"),
            (real, |c| { c.set(Guest::SsAttr, 0xf3); c.set(Guest::CsAttr, 0xfb); }, "SS.DPL is not 0"),
            (long, |c| c.set(Guest::CsAttr, 0xa01b), "not present"),
            (long, |c| c.set(Guest::EsAttr, 0x13), "not present"),
            (long, |c| c.or(Guest::EsAttr, 0x100), "access rights have reserved"),
            (long, |c| c.set(Guest::CsAttr, 0xe09b), "both L and D"),
            (long, |c| c.set(Guest::CsLimit, 0xffff_fffe), "limit does not go"),
            (real, |c| c.set(Guest::DsLimit, 0x10_0000), "limit does not go"),
            (long, |c| c.set(Guest::TrAttr, 0x83), "TR is no busy"),
            (real, |c| c.set(Guest::TrAttr, 0x81), "TR is no busy"),
            (long, |c| c.set(Guest::TrAttr, 0x0b), "TR is not a present"),
            (long, |c| c.or(Guest::TrAttr, 0x200), "TR's access rights"),
            (long, |c| c.set(Guest::TrLimit, 0xfff0_0000), "TR's limit"),
            (long, |c| c.set(Guest::LdtrAttr, 0x83), "LDTR is no present"),
            (long, |c| c.or(Guest::LdtrAttr, 0x400), "LDTR's access rights"),
            (long, |c| c.set(Guest::GdtrBase, 1 << 60), "GDTR's or IDTR's base"),
            (long, |c| c.set(Guest::IdtrLimit, 0x1_0000), "GDTR's or IDTR's limit"),
            (real, |c| c.set(Guest::Rip, 1 << 32), "RIP has bits"),
            (long, |c| c.set(Guest::Rip, 1 << 48), "RIP is not a linear address"),
            (long, |c| c.set(Guest::Rflags, 0), "RFLAGS has reserved"),
            (long, |c| c.or(Guest::Rflags, 1 << 22), "RFLAGS has reserved"),
            (v86, |c| c.set(Guest::Cr0, cr0::NE), "RFLAGS.VM"),
            (long, |c| c.event = inject(kind::INTERRUPT, 0x30, false), "RFLAGS.IF is 0"),
            (long, |c| c.set(Guest::Activity, 4), "activity state"),
            (long, |c| { c.set(Guest::Activity, 1); c.set(Guest::SsAttr, 0xf3); c.set(Guest::CsAttr, 0xa0fb); }, "halted at a privilege"),
            (long, |c| { c.set(Guest::Activity, 1); c.or(Guest::Rflags, rflags::IF); c.set(Guest::Interruptibility, STI); }, "halted in an interrupt shadow"),
            (long, |c| { c.set(Guest::Activity, 1); c.event = inject(kind::EXCEPTION, vector::UD, false); }, "does not end a halt"),
            (long, |c| c.set(Guest::Interruptibility, 1 << 5), "interruptibility state has"),
            (long, |c| { c.or(Guest::Rflags, rflags::IF); c.set(Guest::Interruptibility, STI | MOV_SS); }, "both hold"),
            (long, |c| c.set(Guest::Interruptibility, STI), "STI holds"),
            (long, |c| { c.or(Guest::Rflags, rflags::IF); c.set(Guest::Interruptibility, STI); c.event = inject(kind::INTERRUPT, 0x30, false); }, "in an interrupt shadow"),
            (long, |c| { c.set(Guest::Interruptibility, MOV_SS); c.event = inject(kind::NMI, 2, false); }, "shadow of MOV SS"),
            (long, |c| c.set(Guest::Interruptibility, SMI), "SMIs"),
            (long, |c| { c.set(Guest::Interruptibility, NMI); c.event = inject(kind::NMI, 2, false); }, "while NMIs are blocked"),
            (long, |c| c.set(Guest::PendingDebug, 1 << 5), "pending debug"),
            (long, |c| { c.set(Guest::Interruptibility, MOV_SS); c.or(Guest::Rflags, rflags::TF); }, "pending single step"),
            (long, |c| { c.set(Guest::Interruptibility, MOV_SS); c.set(Guest::PendingDebug, pending::STEP); }, "pending single step"),
            (pae, |c| c.set(Guest::Pdpte0, 0x1003), "PDPTE"),
        ];
        for (from, change, words) in cases {
            let mut c = from();
            change(&mut c);
            let rule = c.rule();
            assert!(rule.is_some_and(|r| r.contains(words)), "{words}: {rule:?}");
        }
    }

    #[test]
    fn events_that_may_be_injected() {
        for (kind, vector, error, length) in [
            (kind::EXCEPTION, vector::GP, true, 0),
            (kind::EXCEPTION, vector::UD, false, 0),
            (kind::NMI, 2, false, 0),
            (kind::SOFT_INTERRUPT, 0x80, false, 2),
            (kind::SOFT_EXCEPTION, 3, false, 1),
        ] {
            let mut c = long();
            c.event = Injection {
                length,
                ..inject(kind, vector, error)
            };
            assert_eq!(c.rule(), None);
        }
    }
}
