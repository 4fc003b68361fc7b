// SPDX-License-Identifier: GPL-2.0

//! Slot sets, the dirty bitmap and the list of invalidations, against naive ones.

use std::ops::Range;

use proptest::prelude::*;
use rkvm_unit::{
    host::grow_vec::fail_after,
    memory::{
        bitmap::Bitmap,
        invalidate::Invalidations,
        slots::{Change, Refused, Region, Slot, Slots, LOG_DIRTY, MAX_SLOTS, READONLY},
    },
};

const PAGE: u64 = 4096;
const END_GFN: u64 = 1 << 36;

/// A refusal without its words.
fn kind(refused: Refused) -> Refused {
    match refused {
        Refused::Invalid(_) => Refused::Invalid(c""),
        other => other,
    }
}

/// What `KVM_SET_USER_MEMORY_REGION` is documented to do, over a plain list.
#[derive(Default)]
struct Naive(Vec<Slot<()>>);

impl Naive {
    fn check(&self, r: &Region) -> Result<Change, Refused> {
        let aligned = [r.guest_phys_addr, r.memory_size, r.userspace_addr]
            .iter()
            .all(|v| v % PAGE == 0);
        let end = u128::from(r.guest_phys_addr) + u128::from(r.memory_size);
        let user_end = u128::from(r.userspace_addr) + u128::from(r.memory_size);
        let old = self.0.iter().find(|s| s.id == r.slot);
        let bad = !aligned
            || end > u128::from(u64::MAX)
            || user_end > u128::from(u64::MAX)
            || r.memory_size / PAGE > 0x7fff_ffff
            || r.slot >= MAX_SLOTS
            || r.flags & !3 != 0
            || (r.memory_size == 0 && old.is_none());
        if bad {
            return Err(Refused::Invalid(c""));
        }
        if r.memory_size == 0 {
            return Ok(Change::Delete);
        }
        let moved = old.is_some_and(|o| o.base_gfn != r.guest_phys_addr / PAGE);
        if let Some(o) = old {
            if o.hva != r.userspace_addr
                || o.pages != r.memory_size / PAGE
                || (o.flags & READONLY) != (r.flags & READONLY)
            {
                return Err(Refused::Invalid(c""));
            }
            if !moved {
                return Ok(if o.flags == r.flags {
                    Change::Nothing
                } else {
                    Change::Flags
                });
            }
        }
        if end > u128::from(END_GFN * PAGE) {
            return Err(Refused::Invalid(c""));
        }
        let hit = self.0.iter().any(|s| {
            s.id != r.slot
                && u128::from(s.base_gfn * PAGE) < end
                && r.guest_phys_addr < (s.base_gfn + s.pages) * PAGE
        });
        match (hit, moved) {
            (true, _) => Err(Refused::Exists),
            (_, true) => Ok(Change::Move),
            _ => Ok(Change::Create),
        }
    }

    fn apply(&mut self, r: &Region) {
        self.0.retain(|s| s.id != r.slot);
        if r.memory_size != 0 {
            self.0.push(slot(r));
        }
    }

    fn find(&self, gfn: u64) -> Option<&Slot<()>> {
        self.0
            .iter()
            .find(|s| s.base_gfn <= gfn && gfn < s.base_gfn + s.pages)
    }
}

fn slot(r: &Region) -> Slot<()> {
    Slot {
        id: r.slot,
        flags: r.flags,
        base_gfn: r.guest_phys_addr / PAGE,
        pages: r.memory_size / PAGE,
        hva: r.userspace_addr,
        dirty: (),
    }
}

/// Regions that often collide, and now and then make no sense.
fn region() -> impl Strategy<Value = Region> {
    let odd = |usual: BoxedStrategy<u64>| {
        prop_oneof![
            30 => usual,
            1 => Just(u64::MAX - (PAGE - 1)),
            1 => Just(1),
            1 => any::<u64>(),
            1 => Just(END_GFN * PAGE - PAGE),
        ]
    };
    (
        prop_oneof![20 => 0..12u32, 1 => Just(MAX_SLOTS - 1), 1 => Just(MAX_SLOTS), 1 => Just(1 << 16)],
        prop_oneof![10 => 0..4u32, 1 => any::<u32>()],
        odd((0..64u64).prop_map(|p| p * PAGE).boxed()),
        odd((0..12u64).prop_map(|p| p * PAGE).boxed()),
        odd((0..48u64).prop_map(|p| (p + 16) * PAGE).boxed()),
    )
        .prop_map(
            |(slot, flags, guest_phys_addr, memory_size, userspace_addr)| Region {
                slot,
                flags,
                guest_phys_addr,
                memory_size,
                userspace_addr,
            },
        )
}

/// A region, or a change of one that exists (else few would be moved).
#[derive(Clone, Debug)]
enum Op {
    Set(Region),
    Again {
        nth: usize,
        flags: u32,
        by: i64,
        delete: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        region().prop_map(Op::Set),
        (any::<usize>(), 0..4u32, -4..4i64, any::<bool>()).prop_map(|(nth, flags, by, delete)| {
            Op::Again {
                nth,
                flags,
                by,
                delete,
            }
        }),
    ]
}

fn compare(slots: &Slots<()>, naive: &Naive) {
    let mut sorted = naive.0.clone();
    sorted.sort_by_key(|s| s.base_gfn);
    assert_eq!(slots.iter().cloned().collect::<Vec<_>>(), sorted);
    for id in 0..14 {
        assert_eq!(slots.by_id(id), naive.0.iter().find(|s| s.id == id));
    }
    let mut near = 0;
    for gfn in (0..80).chain([END_GFN - 1, END_GFN, u64::MAX >> 12, u64::MAX]) {
        assert_eq!(slots.find(gfn), naive.find(gfn));
        for hint in [near, 0, 3, u32::MAX] {
            near = hint;
            assert_eq!(slots.find_near(gfn, &mut near), naive.find(gfn));
        }
    }
    for start in (10..70).map(|p| p * PAGE + 5) {
        for len in [1, PAGE, 10 * PAGE] {
            check_back(slots, naive, start..start + len);
        }
    }
}

/// The guest frames that user addresses back, both ways.
fn check_back(slots: &Slots<()>, naive: &Naive, hva: Range<u64>) {
    let mut got: Vec<_> = slots
        .by_hva(hva.clone())
        .flat_map(|s| s.gfns_of(&hva))
        .collect();
    let mut want: Vec<_> = naive
        .0
        .iter()
        .flat_map(|s| s.gfns())
        .filter(|&gfn| {
            let at = naive.find(gfn).unwrap().hva_of(gfn);
            at < hva.end && hva.start < at + PAGE
        })
        .collect();
    got.sort();
    want.sort();
    assert_eq!(got, want, "{hva:x?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn slots_are_as_a_list(ops in prop::collection::vec(op(), 1..40)) {
        let mut slots = Slots::new();
        let mut naive = Naive::default();
        for op in ops {
            let region = match op {
                Op::Set(region) => region,
                Op::Again { nth, flags, by, delete } => {
                    let Some(old) = naive.0.get(nth % naive.0.len().max(1)) else { continue };
                    Region {
                        slot: old.id,
                        flags,
                        guest_phys_addr: old.base_gfn.saturating_add_signed(by) * PAGE,
                        memory_size: if delete { 0 } else { old.pages * PAGE },
                        userspace_addr: old.hva,
                    }
                }
            };
            let check = slots.check(&region, END_GFN);
            prop_assert_eq!(check.map_err(kind), naive.check(&region), "{:x?}", region);
            let Ok(change) = check else { continue };
            if matches!(change, Change::Delete | Change::Move | Change::Flags) {
                let removed = slots.remove(region.slot);
                prop_assert_eq!(removed.as_ref(), naive.0.iter().find(|s| s.id == region.slot));
            }
            if matches!(change, Change::Create | Change::Move | Change::Flags) {
                slots.insert(&slot(&region)).unwrap();
            }
            if change != Change::Nothing {
                naive.apply(&region);
            }
            // Slots that are too large to compare frame by frame are looked at, and taken out again.
            if region.memory_size > 1000 * PAGE {
                slots.remove(region.slot);
                naive.0.retain(|s| s.id != region.slot);
            }
            compare(&slots, &naive);
            compare(&slots.try_clone().unwrap(), &naive);
        }
    }

    #[test]
    fn invalidations_are_as_a_list(ops in prop::collection::vec((0..60usize, 1..10usize, any::<bool>()), 1..60)) {
        let mut this = Invalidations::new();
        let mut open: Vec<Range<usize>> = Vec::new();
        for (start, len, begin) in ops {
            if begin || open.is_empty() {
                let range = start..start + len;
                this.begin(&range);
                open.push(range);
            } else {
                let range = open.swap_remove(start % open.len());
                this.end(&range);
            }
            for at in 0..80 {
                let is = open.iter().any(|r| r.contains(&at));
                let says = this.meets(&(at..at + 1));
                // It may say so of too much once many are merged; never of too little.
                prop_assert!(says || !is, "{at} of {open:?}");
                if open.is_empty() {
                    prop_assert!(!says);
                }
            }
        }
    }

    #[test]
    fn bitmap_is_as_a_set(ops in prop::collection::vec((0..200u64, any::<u64>(), any::<bool>()), 1..100)) {
        let this = Bitmap::new(200).unwrap();
        let mut set = std::collections::BTreeSet::new();
        prop_assert_eq!(this.words(), 4);
        this.set(256);
        for (page, mask, take) in ops {
            if take {
                let word = page / 64;
                let in_word = |p: &u64| p / 64 == word && mask >> (p % 64) & 1 != 0;
                let want = set.iter().filter(|p| in_word(p)).fold(0, |w, p| w | 1u64 << (p % 64));
                prop_assert_eq!(this.peek(word as usize) & mask, want);
                prop_assert_eq!(this.take(word as usize, mask), want);
                set.retain(|p| !in_word(p));
            } else {
                this.set(page);
                set.insert(page);
            }
        }
        prop_assert_eq!(this.take(4, u64::MAX), 0);
    }
}

#[test]
fn few_invalidations_are_told_apart() {
    let mut this = Invalidations::new();
    this.begin(&(0..10));
    this.begin(&(90..100));
    assert!(!this.meets(&(10..90)));
    assert!(this.meets(&(9..20)) && this.meets(&(89..91)));
    this.end(&(0..10));
    assert!(!this.meets(&(0..90)) && this.meets(&(90..91)));
}

#[test]
fn all_slots_can_exist() {
    let mut slots = Slots::new();
    for id in 0..MAX_SLOTS {
        let region = Region {
            slot: id,
            flags: LOG_DIRTY,
            guest_phys_addr: u64::from(MAX_SLOTS - id) * PAGE,
            memory_size: PAGE,
            userspace_addr: 0x7000_0000 + u64::from(id % 100) * PAGE,
        };
        assert_eq!(slots.check(&region, END_GFN), Ok(Change::Create));
        slots.insert(&slot(&region)).unwrap();
    }
    assert_eq!(slots.find(1).unwrap().id, MAX_SLOTS - 1);
    assert_eq!(slots.by_hva(0x7000_0000..0x7000_0001).count(), 328);
}

#[test]
fn a_failed_insert_changes_nothing() {
    let region = |id: u32| Region {
        slot: id,
        flags: 0,
        guest_phys_addr: u64::from(id) * PAGE,
        memory_size: PAGE,
        userspace_addr: 0x7000_0000,
    };
    for n in 0..6 {
        let mut slots = Slots::new();
        let mut naive = Naive::default();
        fail_after(Some(n));
        for id in 0..3 {
            if slots.insert(&slot(&region(id))).is_ok() {
                naive.apply(&region(id));
            }
        }
        fail_after(None);
        compare(&slots, &naive);
        assert!(naive.0.len() < 3);
    }
}

/// Every page is marked once, neighbours by different threads, while the log is taken: each is
/// taken once, and what was written to it by then is seen.
#[test]
fn threads_lose_no_dirty_bit() {
    // With one, the machine may be small and the taker still be in time.
    race_for_dirty_bits(1);
    race_for_dirty_bits(2);
}

fn race_for_dirty_bits(setters: usize) {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    const PAGES: usize = 1 << 21;
    let bitmap = Bitmap::new(PAGES as u64).unwrap();
    let written: Vec<_> = (0..PAGES).map(|_| AtomicBool::new(false)).collect();
    let (left, at) = (AtomicUsize::new(setters), AtomicUsize::new(0));
    let mut taken = 0;
    std::thread::scope(|scope| {
        for id in 0..setters {
            let (bitmap, written, left, at) = (&bitmap, &written, &left, &at);
            scope.spawn(move || {
                for page in (id..PAGES).step_by(setters) {
                    written[page].store(true, Ordering::Relaxed);
                    bitmap.set(page as u64);
                    if page % 4096 < setters {
                        // Threads that do not go side by side do not meet.
                        at.fetch_add(1, Ordering::SeqCst);
                        while at.load(Ordering::SeqCst) < (page / 4096 + 1) * setters {
                            std::hint::spin_loop();
                        }
                    }
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        loop {
            let last = left.load(Ordering::SeqCst) == 0;
            let word = at.load(Ordering::SeqCst) / setters * 64;
            let near = word.saturating_sub(64)..(word + 1).min(bitmap.words());
            for word in if last { 0..bitmap.words() } else { near } {
                let mut bits = bitmap.take(word, u64::MAX);
                while bits != 0 {
                    let page = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    assert!(written[page].load(Ordering::Relaxed), "{page}");
                    taken += 1;
                }
            }
            if last {
                break;
            }
        }
    });
    assert_eq!(taken, PAGES);
}
