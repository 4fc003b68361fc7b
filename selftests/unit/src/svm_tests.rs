// SPDX-License-Identifier: GPL-2.0

//! The pure parts of SVM: control block, exit decoding, events, permission maps, entry rules,
//! nested-page-table format, ASIDs, intercept tables.

use crate::arch::x86::asid::{Allocator, Flush};
use crate::arch::x86::exit::*;
use crate::arch::x86::model::regs::*;
use crate::arch::x86::svm::{
    check::{broken_rule, Limits},
    decode::{self, code},
    intercepts::{self, Intercept, Own, Word},
    msrpm::{position, Iopm, Msrpm},
    npt::Npt,
    vmcb::{clean, event_type, EventInfo, IntCtl, NpControl, TlbControl, Vmcb, VmcbSeg},
};
use crate::memory::stage2::{Entry, Leaf, MemoryType};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn block() -> Box<Vmcb> {
    Box::default()
}

fn segment() -> impl Strategy<Value = Segment> {
    (
        any::<u16>(),
        any::<u16>(),
        any::<bool>(),
        any::<u32>(),
        any::<u64>(),
    )
        .prop_map(|(selector, attr, unusable, limit, base)| Segment {
            selector,
            attr: SegAttr(u32::from(attr) & 0xf0ff | u32::from(unusable) << 16),
            limit,
            base,
        })
}

mod vmcb {
    use super::*;

    #[test]
    fn bit_ranges_do_not_touch_their_neighbours() {
        let all = IntCtl(u64::MAX);
        assert_eq!(all.with_v_tpr(0).0, !0xf);
        assert_eq!(all.with_v_intr_prio(5).v_intr_prio(), 5);
        assert_eq!(all.with_v_intr_prio(0).0, !0xf_0000);
        assert_eq!(all.with_v_intr_vector(0).0, !0xff_0000_0000);
        assert_eq!(IntCtl(0).with_v_tpr(0x12).v_tpr(), 2);
        assert_eq!(IntCtl(0).with_v_intr_masking(true).0, 1 << 24);
        assert_eq!(
            IntCtl(0).with_v_irq(true).with_v_ign_tpr(true).0,
            1 << 8 | 1 << 20
        );
        assert_eq!(
            EventInfo(0).with_error(0xdead_beef).0,
            0xdead_beef_u64 << 32
        );
        assert_eq!(EventInfo(u64::MAX).error(), 0xffff_ffff);
        assert_eq!(TlbControl(0).with_command(3).0, 3);
    }

    /// Which clean bit a setter clears, for a sample of every group.
    #[test]
    fn setters_mark_what_they_change() {
        let cases: &[(fn(&mut Vmcb), u32)] = &[
            (|b| b.set_cr_intercepts(1), clean::I),
            (|b| b.set_intercepts5(1), clean::I),
            (|b| b.set_tsc_offset(1), clean::I),
            (|b| b.set_pause_filter_count(1), clean::I),
            (|b| b.set_iopm_base_pa(1), clean::IOPM),
            (|b| b.set_msrpm_base_pa(1), clean::IOPM),
            (|b| b.set_guest_asid(1), clean::ASID),
            (|b| b.set_int_ctl(IntCtl(1)), clean::TPR),
            (|b| b.set_n_cr3(1), clean::NP),
            (|b| b.set_np_control(NpControl(1)), clean::NP),
            (|b| b.set_g_pat(1), clean::NP),
            (|b| b.set_cr0(1), clean::CRX),
            (|b| b.set_cr3(1), clean::CRX),
            (|b| b.set_cr4(1), clean::CRX),
            (|b| b.set_efer(1), clean::CRX),
            (|b| b.set_dr6(1), clean::DRX),
            (|b| b.set_dr7(1), clean::DRX),
            (|b| b.set_gdtr(VmcbSeg::default()), clean::DT),
            (|b| b.set_idtr(VmcbSeg::default()), clean::DT),
            (|b| b.set_cs(VmcbSeg::default()), clean::SEG),
            (|b| b.set_ss(VmcbSeg::default()), clean::SEG),
            (|b| b.set_ds(VmcbSeg::default()), clean::SEG),
            (|b| b.set_es(VmcbSeg::default()), clean::SEG),
            (|b| b.set_cpl(1), clean::SEG),
            (|b| b.set_cr2(1), clean::CR2),
            (|b| b.set_dbgctl(1), clean::LBR),
            (|b| b.set_rip(1), 0),
            (|b| b.set_rax(1), 0),
            (|b| b.set_tlb_control(TlbControl(1)), 0),
            (|b| b.set_eventinj(EventInfo(1)), 0),
        ];
        for (n, (set, bit)) in cases.iter().enumerate() {
            let mut b = block();
            b.set_all_clean();
            set(&mut b);
            assert_eq!(b.clean(), clean::ALL & !bit, "case {n}");
        }
        let mut b = block();
        b.set_all_clean();
        b.set_all_dirty();
        assert_eq!(b.clean(), 0);
    }

    proptest! {
        #[test]
        fn segments_survive(s in segment()) {
            let got = VmcbSeg::new(&s).get();
            prop_assert_eq!((got.selector, got.limit, got.base), (s.selector, s.limit, s.base));
            // Without P, or with "unusable": P is clear and it is unusable. All else is kept.
            let usable = s.attr.present() && !s.attr.unusable();
            prop_assert_eq!(got.attr.unusable(), !usable);
            prop_assert_eq!(got.attr.present(), usable);
            let rest = 0xf07f;
            prop_assert_eq!(got.attr.0 & rest, s.attr.0 & rest);
        }
    }

    #[test]
    fn segment_bits_are_where_hardware_has_them() {
        // A flat 64-bit code segment: type Bh, S, P, L, G in the 12-bit format: A9Bh.
        let cs = Segment {
            selector: 8,
            attr: SegAttr::new(0xb, true, 0, true, false, true, false, true, false),
            limit: u32::MAX,
            base: 0,
        };
        let want = format!("{:?}", VmcbSeg::new(&cs));
        assert!(want.contains(&format!("attrib: {}", 0xa9b)), "{want}");
    }
}

mod exits {
    use super::*;

    fn exit(code: u64, info1: u64, info2: u64, assists: bool) -> Exit {
        let mut b = block();
        b.set_exitcode(code);
        b.set_exitinfo1(info1);
        b.set_exitinfo2(info2);
        decode::exit(&b, assists, EventInfo::default())
    }

    #[test]
    fn plain_codes() {
        let cases = [
            (0x60, Exit::HostInterrupt),
            (0x61, Exit::HostNmi),
            (0x62, Exit::HostInterrupt),
            (0x63, Exit::HostInterrupt),
            (0x64, Exit::InterruptWindow),
            (0x6e, Exit::Rdtsc),
            (0x6f, Exit::Rdpmc),
            (0x72, Exit::Cpuid),
            (0x73, Exit::Rsm),
            (0x74, Exit::NmiWindow),
            (0x76, Exit::Invd),
            (0x77, Exit::Pause),
            (0x78, Exit::Hlt),
            (0x7f, Exit::TripleFault),
            (0x81, Exit::Hypercall),
            (0x87, Exit::Rdtsc),
            (0x89, Exit::Wbinvd),
            (0x8a, Exit::Monitor),
            (0x8b, Exit::Mwait),
            (0x8c, Exit::Mwait),
            (0x8d, Exit::Xsetbv),
            (0x8e, Exit::Undefined),
        ];
        for (code, want) in cases {
            assert_eq!(exit(code, 0, 0, false), want, "{code:#x}");
        }
        // No guest has SVM.
        for code in [0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86] {
            assert_eq!(exit(code, 0, 0, true), Exit::Undefined, "{code:#x}");
        }
    }

    #[test]
    fn refused_and_unknown() {
        for code in [u64::MAX, 0xffff_ffff] {
            assert_eq!(exit(code, 0, 0, false), Exit::FailEntry { code });
        }
        let code = code::VMRUN_FAULT;
        assert_eq!(exit(code, 0, 0, false), Exit::FailEntry { code });
        for code in [0x66, 0x88, 0x8f, 0x401, 0x403, 0x1234_0000_0000] {
            assert_eq!(exit(code, 0, 0, false), Exit::Unknown { code });
        }
    }

    #[test]
    fn msr_and_nested_fault() {
        assert_eq!(exit(0x7c, 0, 0, false), Exit::Rdmsr);
        assert_eq!(exit(0x7c, 1, 0, false), Exit::Wrmsr);
        let fault = |info1| match exit(0x400, info1, 0xfee0_0030, false) {
            Exit::Stage2Fault {
                gpa: 0xfee0_0030,
                access,
            } => access,
            e => panic!("{e:?}"),
        };
        let none = Stage2Access {
            write: false,
            fetch: false,
            present: false,
            table_walk: false,
        };
        assert_eq!(fault(1 << 2 | 1 << 32), none);
        assert_eq!(
            fault(1 << 0),
            Stage2Access {
                present: true,
                ..none
            }
        );
        assert_eq!(
            fault(1 << 1),
            Stage2Access {
                write: true,
                ..none
            }
        );
        assert_eq!(
            fault(1 << 4),
            Stage2Access {
                fetch: true,
                ..none
            }
        );
        assert_eq!(
            fault(1 << 33),
            Stage2Access {
                table_walk: true,
                ..none
            }
        );
    }

    #[test]
    fn ports() {
        // REP INSW from 1F0h: type, string, rep, 16 bits, address size 32.
        let info = 0x1f0 << 16 | 1 << 8 | 1 << 5 | 1 << 3 | 1 << 2 | 1;
        let want = Io {
            port: 0x1f0,
            size: 2,
            input: true,
            string: true,
            rep: true,
            next_rip: Some(0x1002),
        };
        assert_eq!(exit(0x7b, info, 0x1002, false), Exit::Io(want));
        for (bit, size) in [(4, 1), (5, 2), (6, 4)] {
            let Exit::Io(io) = exit(0x7b, 0xffff << 16 | 1 << bit, 0, false) else {
                panic!()
            };
            assert_eq!(
                (io.size, io.port, io.input, io.string, io.rep),
                (size, 0xffff, false, false, false)
            );
        }
    }

    #[test]
    fn control_and_debug_registers() {
        let cr = |code, info1, assists| match exit(code, info1, 0, assists) {
            Exit::Cr { cr, write, gpr } => (cr, write, gpr),
            e => panic!("{e:?}"),
        };
        assert_eq!(cr(0x00, 1 << 63 | 11, true), (0, false, Some(Gpr::R11)));
        assert_eq!(cr(0x14, 1 << 63, true), (4, true, Some(Gpr::Rax)));
        assert_eq!(
            cr(0x18, 7, true),
            (8, true, None),
            "CLTS and the like name no register"
        );
        assert_eq!(cr(0x65, 1 << 63 | 3, true), (0, true, Some(Gpr::Rbx)));
        assert_eq!(
            cr(0x65, 1 << 63 | 3, false),
            (0, true, None),
            "without assists"
        );
        let dr = |code, assists| exit(code, 5, 0, assists);
        assert_eq!(
            dr(0x27, true),
            Exit::Dr {
                dr: 7,
                write: false,
                gpr: Some(Gpr::Rbp)
            }
        );
        assert_eq!(
            dr(0x30, false),
            Exit::Dr {
                dr: 0,
                write: true,
                gpr: None
            }
        );
        assert_eq!(
            exit(0x79, 0x1234, 0, true),
            Exit::Invlpg { addr: Some(0x1234) }
        );
        assert_eq!(exit(0x79, 0x1234, 0, false), Exit::Invlpg { addr: None });
    }

    #[test]
    fn exceptions() {
        assert_eq!(exit(0x40 + 18, 0, 0, false), Exit::MachineCheck);
        assert_eq!(
            exit(0x40 + 6, 99, 0, false),
            Exit::Exception(Exception::ud())
        );
        assert_eq!(
            exit(0x40 + 14, 7, 0xabc, false),
            Exit::Exception(Exception::pf(7, 0xabc))
        );
        assert_eq!(
            exit(0x40 + 17, 0, 0, false),
            Exit::Exception(Exception::with_error(17, 0))
        );
    }

    #[test]
    fn task_switches() {
        let task = |event, info2| {
            let mut b = block();
            b.set_exitcode(0x7d);
            b.set_exitinfo1(0x28);
            b.set_exitinfo2(info2);
            match decode::exit(&b, false, event) {
                Exit::TaskSwitch(TaskSwitch {
                    selector: 0x28,
                    reason,
                    error,
                    resume,
                }) => (reason, error, resume == Some(true)),
                e => panic!("{e:?}"),
            }
        };
        let by = |typ, vector| {
            let i = EventInfo::default().with_valid(true).with_typ(typ);
            task(i.with_vector(vector), 0).0
        };
        let none = EventInfo::default();
        assert_eq!(task(none, 0), (TaskSwitchReason::Call, None, false));
        assert_eq!(task(none, 1 << 36), (TaskSwitchReason::Iret, None, false));
        assert_eq!(task(none, 1 << 38), (TaskSwitchReason::Jump, None, false));
        assert_eq!(
            task(none.with_valid(true).with_typ(3), 1 << 48 | 1 << 44 | 0x55),
            (TaskSwitchReason::Event, Some(0x55), true)
        );
        assert_eq!(by(0, 0x20), TaskSwitchReason::Event);
        assert_eq!(by(2, 2), TaskSwitchReason::Nmi);
        assert_eq!(by(3, 1), TaskSwitchReason::Event);
        assert_eq!(by(3, 3), TaskSwitchReason::Soft { vector: 3 });
        assert_eq!(by(3, 4), TaskSwitchReason::Soft { vector: 4 });
        assert_eq!(by(4, 0x80), TaskSwitchReason::Soft { vector: 0x80 });
    }
}

mod events {
    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u8..32, any::<u32>()).prop_filter_map("no NMI", |(v, e)| {
                // Vectors 3 and 4 come back as what INT3 and INTO raise.
                (!matches!(v, 2..=4)).then(|| {
                    let error = decode::pushes_error(v).then_some(e);
                    let payload = (v == vector::PF).then_some(0x1000);
                    Event::Exception(Exception {
                        vector: v,
                        error,
                        payload,
                    })
                })
            }),
            (3u8..5, 1u8..4).prop_map(|(vector, len)| Event::SoftException {
                vector,
                len: len & 1
            }),
            any::<u8>().prop_map(|vector| Event::SoftInterrupt { vector, len: 1 }),
            any::<u8>().prop_map(|vector| Event::Interrupt { vector }),
            Just(Event::Nmi),
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(e in event()) {
            let len = match e {
                Event::SoftException { len, .. } | Event::SoftInterrupt { len, .. } => len,
                _ => 7,
            };
            let i = decode::encode(&e);
            prop_assert!(i.valid());
            prop_assert_eq!(decode::undelivered(i, len, 0x1000), Some(e));
            // And VMRUN takes it.
            let mut b = block();
            b.set_eventinj(i);
            let rule = broken_rule(&good_for(b), &LIMITS);
            prop_assert_eq!(rule, None);
        }
    }

    #[test]
    fn formats() {
        let gp = decode::encode(&Event::Exception(Exception::gp(0x18)));
        assert_eq!(gp.0, 0x18 << 32 | 1 << 31 | 1 << 11 | 3 << 8 | 13);
        assert_eq!(decode::encode(&Event::Nmi).0, 1 << 31 | 2 << 8 | 2);
        assert_eq!(
            decode::encode(&Event::Interrupt { vector: 0xef }).0,
            1 << 31 | 0xef
        );
        let soft = Event::SoftInterrupt {
            vector: 0x80,
            len: 2,
        };
        assert_eq!(decode::encode(&soft).0, 1 << 31 | 4 << 8 | 0x80);
        assert_eq!(
            decode::undelivered(EventInfo(1 << 31 | 3 << 8 | 0x45), 0, 0),
            Some(Event::Interrupt { vector: 0x45 }),
            "as TCG says it"
        );
        assert_eq!(
            decode::undelivered(EventInfo(0xff), 0, 0),
            None,
            "not valid"
        );
        assert_eq!(
            decode::undelivered(EventInfo(1 << 31 | 1 << 8), 0, 0),
            None,
            "no such type"
        );
    }
}

const LIMITS: Limits = Limits {
    phys_bits: 48,
    asids: 16,
};

/// A block that breaks no rule, with what `b` has in EVENTINJ.
fn good_for(mut b: Box<Vmcb>) -> Box<Vmcb> {
    b.set_efer(efer::SVME);
    b.set_intercepts4(1);
    b.set_guest_asid(1);
    b.set_np_control(NpControl(1));
    b.set_g_pat(0x0007_0406_0007_0406);
    b
}

mod rules {
    use super::*;

    fn long(b: &mut Vmcb) {
        b.set_efer(efer::SVME | efer::LME | efer::LMA);
        b.set_cr0(cr0::PG | cr0::PE);
        b.set_cr4(cr4::PAE);
    }

    #[test]
    fn each_is_named() {
        let cases: &[(fn(&mut Vmcb), &str)] = &[
            (|b| b.set_efer(0), "EFER.SVME"),
            (|b| b.set_cr0(cr0::NW), "CR0.NW"),
            (|b| b.set_cr0(1 << 32), "63:32"),
            (
                |b| {
                    long(b);
                    b.set_cr3(1 << 48);
                },
                "CR3",
            ),
            (|b| b.set_cr4(1 << 15), "CR4 has reserved"),
            (|b| b.set_cr4(1 << 33), "CR4 has reserved"),
            (|b| b.set_dr6(1 << 32), "DR6"),
            (|b| b.set_dr7(1 << 63), "DR7"),
            (|b| b.set_efer(efer::SVME | 1 << 9), "EFER has reserved"),
            (
                |b| {
                    long(b);
                    b.set_cr4(0);
                },
                "CR4.PAE is 0",
            ),
            (
                |b| {
                    long(b);
                    b.set_cr0(cr0::PG);
                },
                "CR0.PE is 0",
            ),
            (|b| b.set_cr0(cr0::PG), "CR0.PE is 0"),
            (
                |b| {
                    long(b);
                    let attr = SegAttr::new(0xb, true, 0, true, false, true, true, true, false);
                    b.set_cs(VmcbSeg::new(&Segment {
                        attr,
                        ..Segment::default()
                    }));
                },
                "both L and D",
            ),
            (|b| b.set_cr4(cr4::CET), "CR4.CET"),
            (|b| b.set_intercepts4(0), "VMRUN intercept"),
            (|b| b.set_msrpm_base_pa((1 << 48) - 4096), "MSR map"),
            (|b| b.set_iopm_base_pa(1), "port map"),
            (|b| b.set_iopm_base_pa(u64::MAX & !0xfff), "port map"),
            (|b| b.set_eventinj(EventInfo(1 << 31 | 1 << 8)), "event"),
            (|b| b.set_eventinj(EventInfo(1 << 31 | 3 << 8 | 2)), "event"),
            (
                |b| b.set_eventinj(EventInfo(1 << 31 | 3 << 8 | 32)),
                "event",
            ),
            (|b| b.set_guest_asid(0), "ASID is 0"),
            (|b| b.set_guest_asid(16), "ASID is too large"),
            (|b| b.set_g_pat(2), "PAT"),
            (|b| b.set_n_cr3(1 << 48), "nested page table"),
        ];
        for (n, (spoil, words)) in cases.iter().enumerate() {
            let mut b = good_for(block());
            assert_eq!(broken_rule(&b, &LIMITS), None);
            spoil(&mut b);
            let rule = broken_rule(&b, &LIMITS)
                .unwrap_or(c"none")
                .to_str()
                .unwrap();
            assert!(rule.contains(words), "case {n}: {rule}");
        }
    }

    #[test]
    fn long_mode_is_fine() {
        let mut b = good_for(block());
        long(&mut b);
        b.set_cr3((1 << 48) - 4096);
        b.set_guest_asid(15);
        b.set_eventinj(EventInfo(1 << 31 | event_type::EXCEPTION << 8 | 13));
        assert_eq!(broken_rule(&b, &LIMITS), None);
    }
}

mod maps {
    use super::*;

    fn map() -> Msrpm {
        let mut m = Msrpm::zeroed();
        m.set_all();
        m
    }

    #[test]
    fn positions_are_the_manuals() {
        assert_eq!(position(0), Some((0, 0)));
        assert_eq!(position(0x1fff), Some((0x7ff, 6)));
        assert_eq!(position(0x10), Some((4, 0)));
        assert_eq!(position(0xc000_0080), Some((0x800 + 0x20, 0)));
        assert_eq!(position(0xc001_0117), Some((0x1000 + 0x45, 6)));
        for none in [
            0x2000,
            0x4000_0000,
            0xbfff_ffff,
            0xc000_2000,
            0xc001_2000,
            u32::MAX,
        ] {
            assert_eq!(position(none), None, "{none:#x}");
        }
    }

    #[test]
    fn everything_exits_at_first() {
        let m = map();
        for msr in (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .chain(0xc001_0000..0xc001_2000)
        {
            assert_eq!(m.direct(msr), (false, false));
        }
        let mut io = Iopm::zeroed();
        io.set_all();
        assert!((0..=0xffff + 3).all(|port| io.exits(port)));
    }

    proptest! {
        #[test]
        fn as_a_plain_map(ops in prop::collection::vec(
            (prop_oneof![0u32..64, 0xc000_0080u32..0xc000_0090, 0xc001_0110u32..0xc001_0120, any::<u32>()],
             any::<bool>(), any::<bool>()), 0..60)) {
            let mut m = map();
            let mut plain = HashMap::new();
            for (msr, r, w) in ops {
                if m.set_direct(msr, r, w) {
                    plain.insert(msr, (r, w));
                }
            }
            for msr in (0..64).chain(0xc000_0080..0xc000_0090).chain(0xc001_0110..0xc001_0120) {
                prop_assert_eq!(m.direct(msr), plain.get(&msr).copied().unwrap_or_default());
            }
        }
    }
}

mod nested_pages {
    use super::*;

    fn leaf() -> impl Strategy<Value = (Leaf, u32)> {
        let memory = prop_oneof![
            Just(MemoryType::Normal),
            Just(MemoryType::WriteCombining),
            Just(MemoryType::Device)
        ];
        (0u64..1 << 40, any::<[bool; 5]>(), memory, 0u32..3).prop_map(|(pfn, f, memory, level)| {
            let [write, exec, host_write, accessed, dirty] = f;
            let pfn = pfn >> (9 * level) << (9 * level);
            (
                Leaf {
                    pfn,
                    write,
                    exec,
                    host_write,
                    memory,
                    accessed,
                    dirty,
                },
                level,
            )
        })
    }

    proptest! {
        #[test]
        fn leaves_survive((l, level) in leaf()) {
            let e = Npt::leaf(&l, level);
            prop_assert!(Npt::is_present(e, level));
            prop_assert!(!Npt::is_table(e, level));
            prop_assert_eq!(Npt::decode(e, level), l);
            prop_assert_eq!(Npt::leaf(&Npt::decode(e, level), level), e);
            // Guest accesses are user accesses.
            prop_assert!(e & 4 != 0);
        }

        #[test]
        fn tables_survive(frame in 0u64..1 << 40, level in 1u32..5) {
            let e = Npt::table(frame << 12, level);
            prop_assert!(Npt::is_present(e, level) && Npt::is_table(e, level));
            prop_assert_eq!(Npt::table_phys(e, level), frame << 12);
            prop_assert_eq!(e & 7, 7);
            prop_assert_eq!(e >> 63, 0);
        }
    }

    #[test]
    fn hardware_bits() {
        let l = Leaf {
            pfn: 0x12345,
            write: true,
            exec: false,
            host_write: false,
            memory: MemoryType::Device,
            accessed: true,
            dirty: true,
        };
        assert_eq!(Npt::leaf(&l, 0), 1 << 63 | 0x1234_5000 | 0x7f);
        assert!(!Npt::is_present(Npt::empty(0), 0));
    }
}

mod asids {
    use super::*;

    /// Whatever the order, two holders of a valid ASID of one CPU differ, and none is reused without a
    /// flush of everything in between.
    #[test]
    fn never_shared_without_a_flush() {
        let a = Allocator::new();
        a.restart(3);
        let mut in_tlb = HashSet::new();
        let mut held = Vec::new();
        for n in 0..20 {
            let (asid, flush) = a.allocate(5);
            if flush == Flush::All {
                in_tlb.clear();
            }
            assert!((1..=3).contains(&asid.value));
            assert!(in_tlb.insert(asid.value), "allocation {n}");
            assert_eq!(flush == Flush::All, n % 3 == 0, "allocation {n}");
            held.push(asid);
            let valid: Vec<_> = held
                .iter()
                .filter(|h| a.valid(h, 5))
                .map(|h| h.value)
                .collect();
            let distinct: HashSet<_> = valid.iter().collect();
            assert_eq!(valid.len(), distinct.len());
            assert!(a.valid(&asid, 5));
            assert!(!a.valid(&asid, 6), "another CPU's");
        }
    }

    #[test]
    fn restart_voids_everything() {
        let a = Allocator::new();
        a.restart(10);
        let (old, _) = a.allocate(0);
        a.restart(10);
        let (new, flush) = a.allocate(0);
        assert_eq!(flush, Flush::All);
        assert!(!a.valid(&old, 0));
        assert!(a.valid(&new, 0));
        assert!(!a.valid(&Default::default(), 0), "never allocated");
    }
}

mod tables {
    use super::*;

    fn all() -> Vec<&'static Intercept> {
        let optional = intercepts::OPTIONAL.iter().map(|(_, i)| i);
        let own = intercepts::OWN.iter().map(|(_, i)| i);
        intercepts::ALWAYS
            .iter()
            .chain(optional)
            .chain(own)
            .collect()
    }

    #[test]
    fn no_intercept_is_in_two_places() {
        let mut seen = HashSet::new();
        for i in all() {
            assert!(seen.insert((format!("{:?}", i.word), i.bit)), "{}", i.name);
            assert!(i.bit < 32 && !i.why.is_empty(), "{}", i.name);
        }
    }

    #[test]
    fn what_is_wanted_is_set_and_nothing_else() {
        let none = intercepts::words(&Intercepts::default(), &Own::default());
        for i in intercepts::ALWAYS {
            assert!(none.has(i), "{}", i.name);
        }
        let wanted = Intercepts {
            hlt: true,
            cr8_write: true,
            exceptions: 1 << 1,
            ..Default::default()
        };
        let w = intercepts::words(
            &wanted,
            &Own {
                iret: true,
                ..Own::default()
            },
        );
        let on: HashSet<_> = all()
            .into_iter()
            .filter(|i| w.has(i))
            .map(|i| i.name)
            .collect();
        let always: HashSet<_> = intercepts::ALWAYS.iter().map(|i| i.name).collect();
        let more: HashSet<_> = on.difference(&always).copied().collect();
        // #DB is exception 1, asked for.
        assert_eq!(more, HashSet::from(["HLT", "CR8_WRITE", "IRET", "#DB"]));
        assert!(!none.has(&Intercept {
            word: Word::Dr,
            bit: 7,
            name: "",
            why: ""
        }));
        let debug = Intercepts {
            debug_regs: true,
            ..Default::default()
        };
        let d = intercepts::words(&debug, &Own::default());
        for bit in (0..8).chain(16..24) {
            assert!(
                d.has(&Intercept {
                    word: Word::Dr,
                    bit,
                    name: "",
                    why: ""
                }),
                "DR {bit}"
            );
        }
    }

    #[test]
    fn storing_the_same_leaves_the_block_clean() {
        let mut b = block();
        let w = intercepts::words(&Intercepts::default(), &Own::default());
        w.store(&mut b);
        b.set_all_clean();
        w.store(&mut b);
        assert_eq!(b.clean(), clean::ALL);
        intercepts::words(
            &Intercepts {
                hlt: true,
                ..Default::default()
            },
            &Own::default(),
        )
        .store(&mut b);
        assert_eq!(b.clean(), clean::ALL & !clean::I);
        assert_eq!(b.intercepts3() >> 24 & 1, 1);
        assert_eq!(b.cr_intercepts(), 1 << 20, "CR4 writes");
        assert_eq!(b.exception_intercepts(), 1 << 17 | 1 << 18, "#AC, #MC");
    }
}
