//! Random calls against a naive oracle: a byte for each frame, a list of allocations.
#![allow(clippy::unwrap_used)]

use std::vec;
use std::vec::Vec;

use pagoda_addr::{FrameRange, Order, PhysAddr};
use proptest::prelude::*;

use super::rig::{Frames, Ground, Turns, frame, frames};
use crate::*;

/// Low memory with holes, the borders of two zones, the border of two gigs, and a window at 1 TiB.
const RANGES: [(u64, u64); 6] = [
    (1, 0x9e),
    (0x100, 0x700),
    (0xc80, 0x900),
    ((1 << 18) - 600, 1200),
    ((1 << 20) - 300, 900),
    (1 << 28, 1300),
];

#[derive(Clone, Debug)]
enum Call {
    Alloc {
        count: u64,
        align: u8,
        boundary: Option<u8>,
        below: Option<u64>,
        reserve: bool,
    },
    Order(u8),
    At {
        place: usize,
        count: u64,
    },
    Free(usize),
    FreePart {
        which: usize,
        from: u64,
        count: u64,
    },
    FreeWrong {
        place: usize,
        count: u64,
    },
    Split {
        which: usize,
        at: u64,
    },
    Merged(usize),
    Share(usize),
    /// Many single frames.
    Burst(usize),
    FreeBurst {
        from: usize,
        count: usize,
    },
    Cpu(usize),
    Drain,
}

fn calls() -> impl Strategy<Value = Call> {
    let count = prop_oneof![6 => 1u64..4, 3 => 1u64..70, 2 => 1u64..700, 1 => 1u64..2000];
    let limit = prop_oneof![
        Just(1u64 << 12),
        Just(1 << 20),
        0u64..0x1600,
        (1u64 << 18) - 700..(1 << 18) + 700
    ];
    let below = prop::option::weighted(0.3, limit);
    let boundary = prop::option::weighted(0.2, 0u8..12);
    prop_oneof![
        8 => (count, prop_oneof![3 => Just(0u8), 1 => 0u8..11], boundary, below, any::<bool>())
            .prop_map(|(count, align, boundary, below, reserve)| Call::Alloc {
                count, align, boundary, below, reserve
            }),
        8 => (0u8..11).prop_map(Call::Order),
        2 => (any::<prop::sample::Index>(), 1u64..600)
            .prop_map(|(place, count)| Call::At { place: place.index(7000), count }),
        10 => any::<usize>().prop_map(Call::Free),
        3 => (any::<usize>(), 0u64..600, 1u64..600)
            .prop_map(|(which, from, count)| Call::FreePart { which, from, count }),
        2 => (0usize..7000, 1u64..40).prop_map(|(place, count)| Call::FreeWrong { place, count }),
        2 => (any::<usize>(), 0u64..600).prop_map(|(which, at)| Call::Split { which, at }),
        1 => any::<usize>().prop_map(Call::Merged),
        1 => any::<usize>().prop_map(Call::Share),
        5 => (1usize..300).prop_map(Call::Burst),
        5 => (any::<usize>(), 1usize..300)
            .prop_map(|(from, count)| Call::FreeBurst { from, count }),
        5 => (0..Turns::LIMIT).prop_map(Call::Cpu),
        1 => Just(Call::Drain),
    ]
}

struct Oracle {
    /// Frame number, and whether it is free.
    frames: Vec<(u64, bool)>,
    owned: Vec<FrameRange>,
    reserve: u64,
}

impl Oracle {
    fn new(reserve: u64) -> Self {
        let numbers = RANGES.iter().flat_map(|&(start, count)| start..start + count);
        Self { frames: numbers.map(|number| (number, true)).collect(), owned: Vec::new(), reserve }
    }

    fn slot(&self, number: u64) -> Option<usize> {
        self.frames.binary_search_by_key(&number, |slot| slot.0).ok()
    }

    fn free(&self) -> u64 {
        self.frames.iter().filter(|slot| slot.1).count() as u64
    }

    fn all(&self, range: FrameRange, free: bool) -> bool {
        range.iter().all(|f| self.slot(f.number()).is_some_and(|slot| self.frames[slot].1 == free))
    }

    fn set(&mut self, range: FrameRange, free: bool) {
        assert!(
            self.all(range, !free),
            "{range:?} was not all {}",
            if free { "used" } else { "free" }
        );
        for f in range.iter() {
            let slot = self.slot(f.number()).unwrap();
            self.frames[slot].1 = free;
        }
    }

    /// Could a run start at `start`?
    fn fits(&self, count: u64, align: u8, boundary: Option<u8>, below: Option<u64>) -> bool {
        let mut run = 0;
        let mut last = None;
        self.frames.iter().any(|&(number, free)| {
            run = if !free {
                0
            } else if last == Some(number.wrapping_sub(1)) {
                run + 1
            } else {
                1
            };
            last = Some(number);
            // Every place at which the run ends with this frame.
            run >= count && {
                let start = number + 1 - count;
                start % (1 << align) == 0
                    && boundary.is_none_or(|b| start >> b == number >> b)
                    && below.is_none_or(|limit| number < limit)
            }
        })
    }

    fn took(&mut self, owned: OwnedFrames) -> FrameRange {
        let range = owned.into_range();
        self.set(range, false);
        self.owned.push(range);
        range
    }
}

/// Allocates; if that is refused, once more after every CPU has drained its stock.
fn persist<T>(
    allocator: &Frames<'_>,
    again: impl Fn() -> Result<T, AllocError>,
) -> Result<T, AllocError> {
    let first = again();
    let refused = matches!(&first, Err(error) if error.blame() == Blame::Exhaustion);
    if !refused || allocator.stats().cached == 0 {
        return first;
    }
    let here = allocator.cpus().0.get();
    for cpu in 0..Turns::LIMIT {
        // Every one was asked, and answers when it next pins.
        assert!(cpu != here || !allocator.has_stock());
        allocator.cpus().0.set(cpu);
        assert_eq!(allocator.has_stock(), allocator.is_asked());
        allocator.drain_cpu().unwrap();
    }
    allocator.cpus().0.set(here);
    assert_eq!(allocator.stats().cached, 0);
    again()
}

fn step(allocator: &Frames<'_>, oracle: &mut Oracle, call: &Call) {
    match *call {
        Call::Alloc { count, align, boundary, below, reserve } => {
            let mut request = Request::count(count).align(Order::new(align).unwrap());
            if let Some(boundary) = boundary {
                request = request.within(Order::new(boundary).unwrap());
            }
            if let Some(limit) = below {
                request = request.below(PhysAddr::new(limit << 12));
            }
            if reserve {
                request = request.class(Class::Reserve);
            }
            let single = count == 1 && align == 0 && below.is_none();
            let expected = if boundary.is_some_and(|b| count > 1 << b) {
                Err(AllocError::BadRequest)
            } else if oracle.free() < count {
                Err(AllocError::NoMemory)
            } else if !reserve && oracle.free() - count < oracle.reserve {
                Err(AllocError::Reserved)
            } else if !oracle.fits(count, align, boundary, below) {
                Err(AllocError::Fragmented)
            } else {
                Ok(())
            };
            let got = persist(allocator, || allocator.alloc(request));
            if single && got.is_ok() && expected == Err(AllocError::Reserved) {
                // Stock that was set aside before the reserve was reached.
            } else {
                assert_eq!(got.as_ref().map(|_| ()).map_err(|error| *error), expected);
            }
            if let Ok(owned) = got {
                let range = oracle.took(owned);
                assert_eq!(range.count(), count);
                assert!(range.start().is_aligned(Order::new(align).unwrap()));
                assert!(below.is_none_or(|limit| range.end_number() <= limit));
                let last = range.end_number() - 1;
                assert!(boundary.is_none_or(|b| range.start().number() >> b == last >> b));
            }
        }
        Call::Order(order) => {
            let request = Request::order(Order::new(order).unwrap()).class(Class::Reserve);
            let fits = oracle.fits(1 << order, order, None, None);
            let got = persist(allocator, || allocator.alloc(request));
            assert_eq!(got.is_ok(), fits, "{got:?}");
            if let Ok(owned) = got {
                let range = oracle.took(owned);
                assert!(range.start().is_aligned(Order::new(order).unwrap()));
            }
        }
        Call::At { place, count } => {
            let start = oracle.frames[place % oracle.frames.len()].0;
            let range = frames(start, count);
            let got = persist(allocator, || allocator.alloc_at(range, Kind(1)));
            let bad = range.iter().find(|f| oracle.slot(f.number()).is_none());
            let busy = range.iter().find(|f| !oracle.all(FrameRange::single(*f), true));
            match (bad, busy) {
                (Some(bad), _) => assert_eq!(got, Err(AllocError::NotManaged(bad))),
                (None, Some(busy)) => assert_eq!(got, Err(AllocError::Busy(busy))),
                (None, None) => assert_eq!(oracle.took(got.unwrap()), range),
            }
        }
        Call::Free(which) if !oracle.owned.is_empty() => {
            let which = which % oracle.owned.len();
            let range = oracle.owned.swap_remove(which);
            allocator.free_range(range).unwrap();
            oracle.set(range, true);
        }
        Call::FreePart { which, from, count } if !oracle.owned.is_empty() => {
            let which = which % oracle.owned.len();
            let whole = oracle.owned[which];
            let from = from % whole.count();
            let count = count.min(whole.count() - from);
            let part = frames(whole.start().number() + from, count);
            allocator.free_part(part).unwrap();
            oracle.set(part, true);
            oracle.owned.swap_remove(which);
            let rest = frames(part.end_number(), whole.end_number() - part.end_number());
            let rests = [frames(whole.start().number(), from), rest];
            oracle.owned.extend(rests.into_iter().filter(|rest| !rest.is_empty()));
        }
        Call::FreeWrong { place, count } => {
            let start = oracle.frames[place % oracle.frames.len()].0;
            free_wrong(allocator, oracle, frames(start, count));
        }
        Call::Split { which, at } if !oracle.owned.is_empty() => {
            let which = which % oracle.owned.len();
            let whole = oracle.owned[which];
            let at = at % (whole.count() + 1);
            match allocator.split(OwnedFrames::new(whole), at) {
                Err(same) => {
                    assert!(at == 0 || at == whole.count());
                    let _ = same.into_range();
                }
                Ok((low, high)) => {
                    oracle.owned[which] = low.into_range();
                    oracle.owned.push(high.into_range());
                    assert_eq!(oracle.owned[which].count(), at);
                }
            }
        }
        Call::Merged(which) if !oracle.owned.is_empty() => {
            // Adjacent allocations may be given back as one range.
            let which = which % oracle.owned.len();
            let first = oracle.owned.swap_remove(which);
            let next = oracle.owned.iter().position(|o| o.start().number() == first.end_number());
            let count = next.map_or(0, |next| oracle.owned.swap_remove(next).count());
            let range = frames(first.start().number(), first.count() + count);
            allocator.free_range(range).unwrap();
            oracle.set(range, true);
        }
        Call::Share(which) if !oracle.owned.is_empty() => {
            let range = oracle.owned[which % oracle.owned.len()];
            let start = range.start();
            assert_eq!(allocator.table().share(start), Ok(2));
            let refused = FreeError::Shared { frame: start, refs: 2 };
            assert_eq!(allocator.free_range(range), Err(refused));
            assert_eq!(allocator.table().release(start), Ok(false));
        }
        Call::Burst(count) => {
            for _ in 0..count {
                // Stock may be taken even when the core is down to the reserve.
                match allocator.alloc(Request::frame()) {
                    Ok(owned) => _ = oracle.took(owned),
                    Err(error) => return assert_eq!(error.blame(), Blame::Exhaustion),
                }
            }
        }
        Call::FreeBurst { from, count } => {
            let singles: Vec<_> = oracle.owned.iter().filter(|o| o.count() == 1).copied().collect();
            let count = count.min(singles.len());
            for place in 0..count {
                let range = singles[(from + place) % singles.len()];
                allocator.free(OwnedFrames::new(range)).unwrap();
                assert_eq!(allocator.free_range(range), Err(FreeError::DoubleFree(range.start())));
                oracle.set(range, true);
                oracle.owned.retain(|owned| *owned != range);
            }
        }
        Call::Cpu(cpu) => allocator.cpus().0.set(cpu),
        Call::Drain => allocator.drain_cpu().unwrap(),
        _ => {}
    }
}

/// A range at random: refused with the right name, unless it happens to be right.
fn free_wrong(allocator: &Frames<'_>, oracle: &mut Oracle, range: FrameRange) {
    let got = allocator.free_range(range);
    let mut next = range.start();
    let mut heads = Vec::new();
    let expected = loop {
        if next.number() == range.end_number() {
            break Ok(());
        }
        if oracle.slot(next.number()).is_none() {
            break Err(FreeError::NotManaged(next));
        }
        match oracle.owned.iter().position(|owned| owned.contains(next)) {
            None => break Err(FreeError::DoubleFree(next)),
            Some(which) => {
                let block = oracle.owned[which];
                if block.start() != next || block.end_number() > range.end_number() {
                    break Err(FreeError::PartOf { frame: next, block });
                }
                heads.push(block);
                next = frame(block.end_number());
            }
        }
    };
    assert_eq!(got, expected);
    if got.is_ok() {
        oracle.set(range, true);
        oracle.owned.retain(|owned| !heads.contains(owned));
    }
}

/// *conservation*, and agreement with the oracle.
fn check(allocator: &Frames<'_>, oracle: &Oracle) {
    let stats = allocator.stats();
    assert_eq!(stats.free + stats.cached + stats.used, stats.total);
    assert_eq!(stats.total, oracle.frames.len() as u64);
    assert_eq!(stats.free + stats.cached, oracle.free());
    let mut listed = Vec::new();
    allocator.table().for_each_allocated(|allocation| listed.push(allocation.range));
    let mut owned = oracle.owned.clone();
    owned.sort();
    assert_eq!(listed, owned);
    assert_eq!(allocator.block_counts(None).frames(), stats.free);
    let zones: u64 = Zone::ALL.iter().map(|&z| allocator.block_counts(Some(z)).frames()).sum();
    assert_eq!(zones, stats.free);
}

fn run(calls: &[Call], reserve: u64) {
    let mut ground = Ground::new(&RANGES, true);
    let allocator = ground.allocator(reserve, 0);
    let mut oracle = Oracle::new(reserve);
    for (place, call) in calls.iter().enumerate() {
        step(&allocator, &mut oracle, call);
        check(&allocator, &oracle);
        // Looks at every chunk.
        if place % 4 == 3 {
            allocator.audit();
        }
    }
    allocator.audit();
    for range in core::mem::take(&mut oracle.owned) {
        allocator.free_range(range).unwrap();
        oracle.set(range, true);
    }
    check(&allocator, &oracle);
    assert_eq!(allocator.stats().used, 0);
    for cpu in 0..Turns::LIMIT {
        allocator.cpus().0.set(cpu);
        allocator.drain_cpu().unwrap();
    }
    let _ = allocator.alloc(Request::count(1 << 20)); // refused, but empties the depot
    assert_eq!(allocator.stats().free, allocator.stats().total);
}

/// More on demand: `FRAMES_CASES=20000 cargo test --release`.
fn cases() -> u32 {
    let wanted = std::env::var("FRAMES_CASES").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(300)
}

proptest! {
    #![proptest_config(crate::line::random_cases(cases()))]
    #[test]
    fn random_calls_agree_with_the_oracle(
        calls in prop::collection::vec(calls(), 1..if cfg!(miri) { 12 } else { 150 }),
        reserve in prop_oneof![Just(0u64), 0u64..2000],
    ) {
        run(&calls, reserve);
    }
}
