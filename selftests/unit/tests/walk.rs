// SPDX-License-Identifier: GPL-2.0

//! The page walk against a naive one, written from the manuals' tables with no code in common: per
//! mode and level in plain words, over random entries, control bits and accesses.

use proptest::prelude::*;
use rkvm_unit::arch::x86::model::regs::{cr0, cr4, efer, pferr};
use rkvm_unit::arch::x86::model::walk::{
    canonical, check, pdpte_valid, probe, translate, Access, EntrySize, Fault, GuestPhys, Kind,
    Mode, Paging, Privilege, Translation,
};

/// Memory that is made as it is first read, from given entries in the order of the walk.
#[derive(Default)]
struct Script {
    entries: Vec<u64>,
    /// Places read so far: address, width, value.
    places: Vec<(u64, u64, u64)>,
    reads: usize,
    writes: usize,
    /// How many compare-exchanges fail first, as if another processor had been quicker.
    lose: usize,
    lost: usize,
    fail_read_at: Option<usize>,
    fail_write: bool,
}

impl Script {
    fn new(entries: &[u64]) -> Script {
        Script {
            entries: entries.to_vec(),
            ..Script::default()
        }
    }
}

/// The value at `gpa`, made from the script if the place is new.
fn held(places: &mut Vec<(u64, u64, u64)>, entries: &[u64], gpa: u64, width: u64) -> u64 {
    if let Some(p) = places.iter().find(|p| p.0 == gpa) {
        return p.2;
    }
    let e = entries[places.len()] & if width == 4 { 0xffff_ffff } else { u64::MAX };
    places.push((gpa, width, e));
    e
}

fn width(size: EntrySize) -> u64 {
    match size {
        EntrySize::Dword => 4,
        EntrySize::Qword => 8,
    }
}

impl GuestPhys for Script {
    type Error = &'static str;

    fn read_entry(&mut self, gpa: u64, size: EntrySize) -> Result<u64, &'static str> {
        if self.fail_read_at == Some(self.reads) {
            return Err("no slot");
        }
        self.reads += 1;
        assert_eq!(gpa % width(size), 0, "unaligned entry");
        Ok(held(&mut self.places, &self.entries, gpa, width(size)))
    }

    fn cmpxchg_entry(
        &mut self,
        gpa: u64,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<bool, &'static str> {
        if self.fail_write {
            return Err("read-only");
        }
        if self.lost < self.lose {
            self.lost += 1;
            return Ok(false);
        }
        let place = self
            .places
            .iter_mut()
            .find(|p| p.0 == gpa)
            .expect("an entry that was read");
        assert_eq!(width(size), place.1);
        assert_eq!(
            place.2 & !0x60,
            old & !0x60,
            "compares with what was checked"
        );
        if place.2 != old {
            return Ok(false);
        }
        place.2 = new;
        self.writes += 1;
        Ok(true)
    }
}

/// What the naive walk says.
#[derive(Debug, PartialEq)]
struct Expected {
    result: Result<Translation, u32>,
    /// Places read, with their values afterwards.
    places: Vec<(u64, u64, u64)>,
}

fn bit(v: u64, n: u32) -> bool {
    v >> n & 1 == 1
}

fn field(v: u64, hi: u32, lo: u32) -> u64 {
    (0..64)
        .filter(|n| (lo..=hi).contains(n) && bit(v, *n))
        .fold(0, |r, n| r | 1 << (n - lo))
}

/// Any of the bits lo..=hi is set.
fn any(v: u64, hi: u32, lo: u32) -> bool {
    (lo..=hi).any(|n| bit(v, n))
}

/// The page walk as the manuals tell it, for an access or (None) without checks of rights.
fn naive(p: &Paging, entries: &[u64], la: u64, access: Option<Access>) -> Expected {
    let mut places = Vec::new();
    let phys = u32::from(p.maxphyaddr);
    let wp = bit(p.cr0, 16);
    let (pse, pae, pge, la57) = (bit(p.cr4, 4), bit(p.cr4, 5), bit(p.cr4, 7), bit(p.cr4, 12));
    let (smep, smap, pke) = (bit(p.cr4, 20), bit(p.cr4, 21), bit(p.cr4, 22));
    let lma = bit(p.efer, 10);
    let nxe = bit(p.efer, 11) && pae;

    let done = |result, places: &Vec<_>| Expected {
        result,
        places: places.clone(),
    };
    if !bit(p.cr0, 31) {
        let t = Translation {
            gpa: la & 0xffff_ffff,
            page_shift: 32,
            writable: true,
            user: true,
            no_execute: false,
            global: false,
            dirty: true,
        };
        return done(Ok(t), &places);
    }

    let mut code = 0;
    if let Some(a) = access {
        if a.kind == Kind::Write {
            code |= pferr::W;
        }
        if a.kind == Kind::Fetch && (nxe || smep) {
            code |= pferr::I;
        }
        if a.privilege == Privilege::User {
            code |= pferr::U;
        }
    }

    // (name, low bit of the index, index bits)
    let levels: &[(&str, u32, u32)] = match (pae, lma, la57) {
        (false, _, _) => &[("PDE32", 22, 10), ("PTE32", 12, 10)],
        (true, false, _) => &[("PDPTE", 30, 2), ("PDE", 21, 9), ("PTE", 12, 9)],
        (true, true, false) => &[
            ("PML4E", 39, 9),
            ("PDPE", 30, 9),
            ("PDE", 21, 9),
            ("PTE", 12, 9),
        ],
        (true, true, true) => &[
            ("PML5E", 48, 9),
            ("PML4E", 39, 9),
            ("PDPE", 30, 9),
            ("PDE", 21, 9),
            ("PTE", 12, 9),
        ],
    };
    let la = if lma && pae { la } else { la & 0xffff_ffff };
    let mut base = match levels[0].0 {
        "PDE32" => field(p.cr3, 31, 12) << 12,
        "PDPTE" => field(p.cr3, 31, 5) << 5,
        _ => field(p.cr3, phys - 1, 12) << 12,
    };
    let (mut all_w, mut all_u, mut any_nx) = (true, true, false);
    let mut used = Vec::new();
    for (n, &(name, low, count)) in levels.iter().enumerate() {
        let bytes = if pae { 8 } else { 4 };
        let at = base + field(la, low + count - 1, low) * bytes;
        let e = match p.pdptes {
            Some(loaded) if name == "PDPTE" => loaded[field(la, 31, 30) as usize],
            _ => held(&mut places, entries, at, bytes),
        };
        if !bit(e, 0) {
            return done(Err(code), &places);
        }
        let large = match name {
            "PDE32" => pse && bit(e, 7),
            "PDE" => bit(e, 7),
            "PDPE" => p.gbpages && bit(e, 7),
            _ => false,
        };
        let last = large || name.starts_with("PTE");

        let mut reserved = false;
        match name {
            "PDE32" if large => {
                reserved |= bit(e, 21);
                for n in 13..=20 {
                    // Physical address bit n + 19.
                    reserved |= bit(e, n) && n + 19 >= phys;
                }
            }
            "PDE32" | "PTE32" => {}
            // Bits 8:5 are reserved, but not looked at in a walk.
            "PDPTE" => reserved |= any(e, 2, 1) || any(e, 63, phys),
            _ => {
                reserved |= phys < 52 && any(e, 51, phys);
                reserved |= bit(e, 63) && !bit(p.efer, 11);
                reserved |= !lma && any(e, 62, 52);
                reserved |= name == "PDE" && large && any(e, 20, 13);
                reserved |= name == "PDPE" && large && any(e, 29, 13);
                reserved |= name == "PDPE" && !p.gbpages && bit(e, 7);
                reserved |= (name == "PML4E" || name == "PML5E") && bit(e, 7);
                reserved |=
                    (name == "PML4E" || name == "PML5E") && bit(e, 8) && p.nonleaf_bit8_reserved;
            }
        }
        if reserved {
            return done(Err(code | pferr::P | pferr::RSV), &places);
        }
        if name != "PDPTE" {
            all_w &= bit(e, 1);
            all_u &= bit(e, 2);
            any_nx |= nxe && bit(e, 63);
            used.push(at);
        }
        if !last {
            base = field(e, if pae { 51 } else { 31 }, 12) << 12;
            continue;
        }

        let mut write_access = false;
        if let Some(a) = access {
            let user = a.privilege == Privilege::User;
            let write = a.kind == Kind::Write;
            let fetch = a.kind == Kind::Fetch;
            write_access = write;
            // Each rule of SDM 4.6.1 by itself.
            let mut violation = false;
            if user && !all_u {
                violation = true;
            }
            if user && write && !all_w {
                violation = true;
            }
            if !user && write && !all_w && wp {
                violation = true;
            }
            if fetch && any_nx {
                violation = true;
            }
            if !user && fetch && all_u && smep {
                violation = true;
            }
            let ac_helps = p.rflags_ac && a.privilege == Privilege::Supervisor;
            if !user && !fetch && all_u && smap && !ac_helps {
                violation = true;
            }
            // SDM 4.6.2
            let mut pk = false;
            if pke && lma && all_u && !fetch {
                let key = field(e, 62, 59) as u32;
                let ad = p.pkru >> (2 * key) & 1 == 1;
                let wd = p.pkru >> (2 * key + 1) & 1 == 1;
                pk = ad || (wd && write && (user || wp));
            }
            if violation || pk {
                let pk = if pk { pferr::PK } else { 0 };
                return done(Err(code | pferr::P | pk), &places);
            }
            for (i, at) in used.iter().enumerate() {
                let place = places.iter_mut().find(|p| p.0 == *at).unwrap();
                place.2 |= 0x20;
                if write && i == used.len() - 1 {
                    place.2 |= 0x40;
                }
            }
        }
        let size = levels[n].1;
        let frame = match name {
            "PDE32" => field(e, 31, 22) << 22 | field(e, 20, 13) << 32,
            "PTE32" => field(e, 31, 12) << 12,
            _ => field(e, 51, size) << size,
        };
        let t = Translation {
            gpa: frame + field(la, size - 1, 0),
            page_shift: size as u8,
            writable: all_w,
            user: all_u,
            no_execute: any_nx,
            global: pge && bit(e, 8),
            dirty: bit(e, 6) || write_access,
        };
        return done(Ok(t), &places);
    }
    unreachable!("the last level is a leaf")
}

/// An entry that mostly leads on: present, writable, user, address within 52 bits.
fn entry() -> impl Strategy<Value = u64> {
    let rare = |mask: u64| prop_oneof![9 => Just(0u64), 1 => Just(mask)];
    (
        any_u64(),
        rare(1),
        rare(2),
        rare(4),
        prop_oneof![1 => Just(0u64), 1 => Just(0x80)],
        prop_oneof![6 => Just(0u64), 1 => Just(1u64 << 63)],
        prop_oneof![3 => Just(0u64), 1 => any_u64()],
        prop_oneof![8 => Just(true), 1 => Just(false)],
    )
        .prop_map(|(raw, p, w, u, ps, nx, high, clean)| {
            // No offset bits of large pages, nothing above 36 bits, so that reserved bits are rare.
            let address = if clean {
                raw & 0x0000_000f_c000_0000
            } else {
                raw
            };
            let flags = (raw & 0x178) | (7 & !(p | w | u)) | ps;
            (address & 0x000f_ffff_ffff_f000)
                | flags
                | nx
                | (high & 0x7ff0_0000_0000_0000)
                | if clean { 0 } else { raw & 0x1e00 }
        })
}

fn any_u64() -> impl Strategy<Value = u64> {
    proptest::num::u64::ANY
}

fn paging() -> impl Strategy<Value = Paging> {
    (
        any_u64(),
        any_u64(),
        any_u64(),
        any_u64(),
        proptest::num::u32::ANY,
        prop_oneof![Just(36u8), Just(40), Just(48), Just(52), 32u8..=52],
        prop_oneof![1 => Just(0u8), 15 => 1u8..=255],
        prop_oneof![
            3 => Just(None),
            1 => proptest::array::uniform4(entry().prop_map(|e| Some(e & !0x1e6)))
                .prop_map(|a| Some(a.map(|e| e.unwrap()))),
        ],
    )
        .prop_map(|(c0, cr3, c4, ef, pkru, maxphyaddr, bits, pdptes)| {
            let pg = if bits == 0 { 0 } else { cr0::PG | cr0::PE };
            Paging {
                cr0: (c0 & cr0::WP) | pg,
                cr3,
                cr4: c4
                    & (cr4::PSE
                        | cr4::PAE
                        | cr4::PGE
                        | cr4::SMEP
                        | cr4::SMAP
                        | cr4::PKE
                        | cr4::LA57),
                // Long mode cannot be active without PAE.
                efer: ef
                    & if c4 & cr4::PAE == 0 {
                        efer::NXE
                    } else {
                        efer::LMA | efer::NXE
                    },
                pkru: if bits & 8 == 0 { 0 } else { pkru },
                rflags_ac: bits & 1 != 0,
                maxphyaddr,
                gbpages: bits & 2 != 0,
                nonleaf_bit8_reserved: bits & 4 != 0,
                pdptes,
            }
        })
}

/// Entries for five levels. Tidy ones have no page-size bit where the mode has no such pages.
fn case() -> impl Strategy<Value = (Paging, [u64; 5], u64, Access)> {
    (
        paging(),
        proptest::array::uniform5(entry()),
        any_u64(),
        access(),
        0u8..8,
    )
        .prop_map(|(p, mut entries, la, access, untidy)| {
            if untidy != 0 {
                let upper = match p.mode() {
                    Mode::Level5 => 2,
                    Mode::Level4 => 1,
                    _ => 0,
                };
                for e in entries.iter_mut().take(upper) {
                    *e &= !0x180;
                }
                if p.efer & efer::NXE == 0 {
                    entries = entries.map(|e| e & (u64::MAX >> 1));
                }
                if p.mode() == Mode::Pae {
                    entries = entries.map(|e| e & 0x800f_ffff_ffff_ffff);
                    if p.pdptes.is_none() {
                        entries[0] &= 0xf_ffff_ffff & !0x1e6;
                    }
                }
            }
            (p, entries, la, access)
        })
}

fn access() -> impl Strategy<Value = Access> {
    (
        prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Fetch)],
        prop_oneof![
            Just(Privilege::User),
            Just(Privilege::Supervisor),
            Just(Privilege::Implicit)
        ],
    )
        .prop_map(|(kind, privilege)| Access { kind, privilege })
}

fn code_of(
    r: Result<Translation, Fault<&'static str>>,
    la: u64,
    p: &Paging,
) -> Result<Translation, u32> {
    match r {
        Ok(t) => Ok(t),
        Err(Fault::Page { code, addr }) => {
            let wide = matches!(p.mode(), Mode::Level4 | Mode::Level5);
            assert_eq!(addr, if wide { la } else { la & 0xffff_ffff }, "CR2");
            Err(code)
        }
        Err(e) => panic!("{e:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn like_the_naive_walk(
        (p, entries, la, a) in case(),
    ) {
        let want = naive(&p, &entries, la, Some(a));
        let mut mem = Script::new(&entries);
        let got = code_of(translate(&p, &mut mem, la, a), la, &p);
        prop_assert_eq!(&got, &want.result);
        prop_assert_eq!(&mem.places, &want.places);

        // The variant without side effects decides alike, but for the dirty bit it does not set.
        let mut mem = Script::new(&entries);
        let dry = code_of(check(&p, &mut mem, la, a), la, &p);
        prop_assert_eq!(dry.map(|t| t.gpa), got.map(|t| t.gpa));
        prop_assert_eq!(mem.writes, 0);

        let want = naive(&p, &entries, la, None);
        let mut mem = Script::new(&entries);
        let got = code_of(probe(&p, &mut mem, la), la, &p);
        prop_assert_eq!(got, want.result);
        prop_assert_eq!(mem.writes, 0);
    }

    #[test]
    fn canonical_like_sign_extension(addr in any_u64(), bits in prop_oneof![Just(48u8), Just(57)]) {
        let top = field(addr, 63, u32::from(bits) - 1);
        let ones = field(u64::MAX, 63, u32::from(bits) - 1);
        prop_assert_eq!(canonical(addr, bits), top == 0 || top == ones);
        // Most random addresses are not canonical: make one that is.
        let fixed = ((addr as i64) << (64 - bits) >> (64 - bits)) as u64;
        prop_assert!(canonical(fixed, bits));
    }

    #[test]
    fn pdptes(e in entry(), phys in 32u8..=52) {
        let reserved = any(e, 2, 1) || any(e, 8, 5) || any(e, 63, u32::from(phys));
        prop_assert_eq!(pdpte_valid(e, phys), !bit(e, 0) || !reserved);
    }
}

const LONG: Paging = Paging {
    cr0: cr0::PG | cr0::PE | cr0::WP,
    cr3: 0x1000,
    cr4: cr4::PAE,
    efer: efer::LMA | efer::LME | efer::NXE,
    pkru: 0,
    rflags_ac: false,
    maxphyaddr: 48,
    gbpages: true,
    nonleaf_bit8_reserved: false,
    pdptes: None,
};
const READ: Access = Access {
    kind: Kind::Read,
    privilege: Privilege::Supervisor,
};
const WRITE: Access = Access {
    kind: Kind::Write,
    privilege: Privilege::Supervisor,
};

/// The generator is not so wild that nearly everything faults at the first level.
#[test]
fn cases_reach_all_outcomes() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let s = case();
    let mut shifts = [0u32; 64];
    let (mut not_present, mut reserved, mut rights, mut keys) = (0, 0, 0, 0);
    let n = 20_000;
    for _ in 0..n {
        let (p, entries, la, a) = s.new_tree(&mut runner).unwrap().current();
        match naive(&p, &entries, la, Some(a)).result {
            Ok(t) => shifts[usize::from(t.page_shift)] += 1,
            Err(c) if c & pferr::P == 0 => not_present += 1,
            Err(c) if c & pferr::RSV != 0 => reserved += 1,
            Err(c) if c & pferr::PK != 0 => keys += 1,
            Err(_) => rights += 1,
        }
    }
    println!(
        "of {n}: 4K {} 2M {} 4M {} 1G {} unpaged {}, not present {not_present}, reserved \
         {reserved}, rights {rights}, keys {keys}",
        shifts[12], shifts[21], shifts[22], shifts[30], shifts[32]
    );
    for (what, count) in [
        ("4K", shifts[12]),
        ("2M", shifts[21]),
        ("4M", shifts[22]),
        ("1G", shifts[30]),
        ("none", shifts[32]),
        ("not present", not_present),
        ("reserved", reserved),
        ("rights", rights),
        ("keys", keys),
    ] {
        assert!(count > n / 250, "{what}: only {count} of {n}");
    }
}

#[test]
fn lost_race_starts_over() {
    let entries = [0x2007, 0x3007, 0x4007, 0x5007];
    let mut mem = Script {
        lose: 3,
        ..Script::new(&entries)
    };
    let t = translate(&LONG, &mut mem, 0x1234, WRITE).unwrap();
    assert_eq!(t.gpa, 0x5234);
    assert_eq!(mem.lost, 3);
    assert_eq!(mem.writes, 4);
    assert_eq!(mem.places[3], (0x4008, 8, 0x5067));
}

#[test]
fn endless_race_ends() {
    let entries = [0x2007, 0x3007, 0x4007, 0x5007];
    let mut mem = Script {
        lose: usize::MAX,
        ..Script::new(&entries)
    };
    assert_eq!(translate(&LONG, &mut mem, 0x1234, WRITE), Err(Fault::Busy));
}

#[test]
fn memory_errors_say_where() {
    let entries = [0x2027, 0x3027, 0x4027, 0x5027];
    for (level, gpa) in [0x1000, 0x2000, 0x3000, 0x4008].into_iter().enumerate() {
        let mut mem = Script {
            fail_read_at: Some(level),
            ..Script::new(&entries)
        };
        assert_eq!(
            translate(&LONG, &mut mem, 0x1234, READ),
            Err(Fault::Memory {
                gpa,
                error: "no slot"
            })
        );
    }
    // Already accessed: a read writes nothing, so a read-only table does.
    let mut mem = Script {
        fail_write: true,
        ..Script::new(&entries)
    };
    assert!(translate(&LONG, &mut mem, 0x1234, READ).is_ok());
    let mut mem = Script {
        fail_write: true,
        ..Script::new(&entries)
    };
    assert_eq!(
        translate(&LONG, &mut mem, 0x1234, WRITE),
        Err(Fault::Memory {
            gpa: 0x4008,
            error: "read-only"
        })
    );
}

#[test]
fn bytes_left_in_page() {
    let entries = [0x2027, 0x3027, 0x4027, 0x5067];
    let t = translate(&LONG, &mut Script::new(&entries), 0x1ffc, READ).unwrap();
    assert_eq!(t.bytes_left(), 4);
    let entries = [0x2027, 0x3027, 0x20_00e7];
    let t = translate(&LONG, &mut Script::new(&entries), 0x1ffc, READ).unwrap();
    assert_eq!(
        (t.gpa, t.page_shift, t.bytes_left()),
        (0x20_1ffc, 21, 0x1f_e004)
    );
}

#[test]
fn exception_of_a_page_fault() {
    let f: Fault<()> = Fault::Page {
        code: 7,
        addr: 0x1000,
    };
    let e = f.exception().unwrap();
    assert_eq!((e.vector, e.error, e.payload), (14, Some(7), Some(0x1000)));
    assert_eq!(Fault::Memory { gpa: 0, error: () }.exception(), None);
}
