//! Any calls to the frame allocator, from several CPUs, beside a naive list of who owns what.
//!
//! Held after each call: no frame has two owners, every answer is one that the list allows, and
//! `free + cached + used = total`. At the end everything comes back and forms one piece again.
//! Wrong frees are tried as well: with a frame table each one must be refused.
#![no_main]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::{
    Area, Class, FrameAllocator, Kind, Mobility, Node, Request, Setup, Topology, required,
};
use pagoda_sync::{CpuId, Cpus, RawSpin};

/// Frame ranges: across the 16 MiB border, with holes inside a chunk, and in another GiB.
const RANGES: [(u64, u64); 4] = [(0x10, 0x8f), (0x100, 0x1300), (0x1401, 0x3ff), (0x40000, 0x600)];
const CPUS: usize = 3;

#[derive(Arbitrary, Debug)]
enum Call {
    One { movable: bool, reserve: bool, zeroed: bool },
    Burst { movable: bool, count: u8 },
    Block { order: u8, movable: bool },
    Run { count: u16, align: u8, boundary: Option<u8>, below: Option<u16> },
    At { range: u8, skip: u16, count: u8 },
    Free { which: u16 },
    FreeMany { which: u16, count: u8 },
    FreePart { which: u16, skip: u16, count: u16 },
    FreeWrong { frame: u16, high: bool, count: u8 },
    Split { which: u16, at: u16 },
    Shatter { which: u16 },
    Near { node: u8, only: bool, count: u16 },
    ShareMany { which: u16, count: u8 },
    ReleaseMany { which: u16, count: u8 },
    Offline { range: u8, skip: u16, count: u16 },
    Online { which: u8 },
    EmptyBlock { stay: bool },
    Cpu { cpu: u8 },
    Drain,
    FillZeroed,
    Look,
}

#[derive(Arbitrary, Debug)]
struct Input {
    table: bool,
    nodes: bool,
    reserve: u8,
    calls: Vec<Call>,
}

struct Turns(Cell<usize>);

// SAFETY: one thread, which plays the CPUs in turn.
unsafe impl Cpus for Turns {
    fn limit(&self) -> usize {
        CPUS
    }
    fn enter(&self) -> CpuId {
        CpuId::new(self.0.get()).expect("a CPU")
    }
    unsafe fn leave(&self) {}
}

/// One page that stands for all: frames are only cleared one by one here.
struct OnePage(NonNull<u8>);

// SAFETY: 4 KiB of memory that nobody reads; only single frames are ever asked for zeroes.
unsafe impl PhysMap for OnePage {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        self.0.as_ptr()
    }
}

type Frames<'m> = FrameAllocator<'m, Turns, OnePage, RawSpin>;

/// Who owns what: start to count.
struct Owned {
    table: bool,
    all: BTreeMap<u64, u64>,
    /// Ranges on their way off line, and those that are.
    leaving: Vec<FrameRange>,
    away: Vec<FrameRange>,
}

impl Owned {
    fn add(&mut self, range: FrameRange) {
        let (start, end) = (range.start().number(), range.end_number());
        let inside = RANGES.iter().any(|&(first, count)| first <= start && end <= first + count);
        // Ranges that do not touch cannot be spanned.
        assert!(inside, "{range:?} is not managed");
        assert!(!self.away.iter().any(|away| away.overlaps(range)), "{range:?} is off line");
        if let Some((&other, &count)) = self.all.range(..end).next_back() {
            assert!(other + count <= start, "{range:?} overlaps {other:#x}+{count:#x}");
        }
        self.all.insert(start, range.count());
    }

    fn nth(&self, which: u16) -> Option<FrameRange> {
        let place = usize::from(which) % self.all.len().max(1);
        self.all.iter().nth(place).map(|(&start, &count)| range(start, count))
    }

    /// The first frames of so many allocations from this one on.
    fn starts(&self, which: u16, count: u8) -> Vec<Frame> {
        let place = usize::from(which) % self.all.len().max(1);
        let starts = self.all.keys().skip(place).take(count.into());
        starts.map(|&start| Frame::from_number(start)).collect()
    }

    /// Is the range made of whole allocations?
    fn whole(&self, range: FrameRange) -> bool {
        let mut next = range.start().number();
        while next < range.end_number() {
            match self.all.get(&next) {
                Some(count) => next += count,
                None => return false,
            }
        }
        next == range.end_number()
    }
}

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Frame::from_number(start), count).expect("a range")
}

fn mobility(movable: bool) -> Mobility {
    if movable { Mobility::Movable } else { Mobility::Unmovable }
}

fn alloc(frames: &Frames<'_>, owned: &mut Owned, request: Request) -> bool {
    match frames.alloc(request) {
        Ok(got) => {
            owned.add(got.into_range());
            true
        }
        Err(error) => {
            assert!(!matches!(error, pagoda_frames::AllocError::Corrupt(_)), "{error:?}");
            false
        }
    }
}

fn free(frames: &Frames<'_>, owned: &mut Owned, range: FrameRange) {
    frames.free_range(range).expect("owned frames are taken back");
    owned.all.remove(&range.start().number());
}

fn step(frames: &Frames<'_>, owned: &mut Owned, call: &Call) {
    match *call {
        Call::One { movable, reserve, zeroed } => {
            let class = if reserve { Class::Reserve } else { Class::Normal };
            let request = Request::frame().class(class).mobility(mobility(movable)).kind(Kind(1));
            let request = if zeroed { request.zeroed() } else { request };
            if !alloc(frames, owned, request) && reserve {
                assert_eq!(frames.stats().free, 0, "refused with free frames");
            }
        }
        Call::Burst { movable, count } => {
            for _ in 0..count {
                alloc(frames, owned, Request::frame().mobility(mobility(movable)));
            }
        }
        Call::Block { order, movable } => {
            let order = Order::new(order % 19).expect("an order");
            alloc(frames, owned, Request::order(order).mobility(mobility(movable)));
        }
        Call::Run { count, align, boundary, below } => {
            let order = |order: u8| Order::new(order % 19).expect("an order");
            let mut request = Request::count(u64::from(count)).align(order(align));
            if let Some(boundary) = boundary {
                request = request.within(order(boundary));
            }
            if let Some(below) = below {
                request = request.below(PhysAddr::new(u64::from(below) << 12));
            }
            let before = owned.all.clone();
            if alloc(frames, owned, request) {
                let (&start, &got) =
                    owned.all.iter().find(|(start, _)| !before.contains_key(*start)).expect("new");
                assert_eq!(got, u64::from(count));
                assert_eq!(start % order(align).count(), 0);
                assert!(below.is_none_or(|below| start + got <= u64::from(below)));
                let size = boundary.map_or(u64::MAX, |boundary| order(boundary).count());
                assert_eq!(start / size, (start + got - 1) / size);
            }
        }
        Call::At { range: which, skip, count } => {
            let (first, _) = RANGES[usize::from(which) % RANGES.len()];
            let wanted = range(first + u64::from(skip % 0x600), u64::from(count) + 1);
            if let Ok(got) = frames.alloc_at(wanted, Kind(2)) {
                assert_eq!(got.range(), wanted);
                owned.add(got.into_range());
            }
        }
        Call::Free { which } => {
            if let Some(range) = owned.nth(which) {
                free(frames, owned, range);
            }
        }
        Call::FreeMany { which, count } => {
            for step in 0..u16::from(count) {
                if let Some(range) = owned.nth(which.wrapping_add(step.wrapping_mul(7))) {
                    free(frames, owned, range);
                }
            }
        }
        Call::FreePart { which, skip, count } => {
            let Some(block) = owned.nth(which) else { return };
            let skip = u64::from(skip) % block.count();
            let count = (u64::from(count) % (block.count() - skip)) + 1;
            let (start, end) = (block.start().number(), block.end_number());
            frames.free_part(range(start + skip, count)).expect("a part of an allocation");
            owned.all.remove(&start);
            if skip > 0 {
                owned.all.insert(start, skip);
            }
            if start + skip + count < end {
                owned.all.insert(start + skip + count, end - start - skip - count);
            }
        }
        // Without a table nobody claims to notice.
        Call::FreeWrong { frame, high, count } if owned.table => {
            let start = u64::from(frame) + if high { 0x40000 - 0x100 } else { 0 };
            let range = range(start, u64::from(count));
            let right = count > 0 && owned.whole(range);
            assert_eq!(frames.free_range(range).is_ok(), right, "{range:?}");
            if right {
                owned.all.retain(|start, _| !range.contains(Frame::from_number(*start)));
            }
        }
        Call::FreeWrong { .. } => {}
        Call::Split { which, at } => {
            let Some(block) = owned.nth(which).filter(|block| block.count() > 1) else { return };
            let at = u64::from(at) % (block.count() - 1) + 1;
            // SAFETY: the list says that it is one whole allocation, and ours.
            let whole = unsafe { pagoda_frames::OwnedFrames::from_range(block) };
            let (low, high) = frames.split(whole, at).expect("two parts");
            let (low, high) = (low.into_range(), high.into_range());
            owned.all.insert(low.start().number(), low.count());
            owned.all.insert(high.start().number(), high.count());
        }
        Call::Shatter { which } => {
            if let Some(block) = owned.nth(which).filter(|_| owned.table) {
                frames.shatter(block).expect("an allocation");
                owned.all.extend(block.iter().map(|frame| (frame.number(), 1)));
            }
        }
        Call::Near { node, only, count } => {
            let node = Node(node % 2);
            let request = Request::count(u64::from(count));
            let request = if only { request.only_node(node) } else { request.node(node) };
            if let Ok(got) = frames.alloc(request) {
                let last = Frame::from_number(got.range().end_number() - 1);
                let inside = [got.start(), last].map(|frame| frames.node_of(frame) == node);
                assert!(!only || frames.nodes().count() == 1 || inside == [true; 2]);
                owned.add(got.into_range());
            }
        }
        Call::ShareMany { which, count } if owned.table => {
            let starts = owned.starts(which, count);
            frames.table().share_many(&starts).expect("frames in use");
            assert!(starts.iter().all(|&start| frames.table().refs(start) == Ok(2)));
            assert_eq!(frames.release_many(&starts), Ok(0));
        }
        Call::ShareMany { .. } => {}
        Call::ReleaseMany { which, count } if owned.table => {
            let starts = owned.starts(which, count);
            assert_eq!(frames.release_many(&starts), Ok(starts.len()));
            owned.all.retain(|start, _| !starts.contains(&Frame::from_number(*start)));
            if let Some(&first) = starts.first() {
                assert_eq!(
                    frames.release_many(&starts).map_err(|(place, _)| place),
                    Err(0),
                    "{first:?}"
                );
            }
        }
        Call::ReleaseMany { .. } => {}
        Call::Offline { range: which, skip, count } => offline(frames, owned, which, skip, count),
        Call::Online { which } => {
            let leaving = owned.leaving.len();
            let all = leaving + owned.away.len();
            if all > 0 {
                let which = usize::from(which) % all;
                let range = if which < leaving {
                    owned.leaving.swap_remove(which)
                } else {
                    owned.away.swap_remove(which - leaving)
                };
                frames.online(range).expect("a range that left");
            }
        }
        Call::EmptyBlock { stay } => {
            let free = |one: &pagoda_frames::Allocation| {
                assert_eq!(owned.all.remove(&one.range.start().number()), Some(one.range.count()));
                frames.free_range(one.range).expect("owned frames are taken back");
            };
            let mut free = free;
            let mut first = true;
            let _ = frames.empty_block(|one| {
                // Freed instead of moved; somebody may stay.
                let goes = !stay || std::mem::take(&mut first);
                if goes {
                    free(&one);
                }
                goes
            });
        }
        Call::Cpu { cpu } => frames.cpus().0.set(usize::from(cpu) % CPUS),
        Call::Drain => frames.drain_cpu().expect("an undisturbed stock"),
        Call::FillZeroed => {
            frames.fill_zeroed().expect("an undisturbed stock");
        }
        Call::Look => {
            let blocks = frames.block_counts(None);
            assert_eq!(blocks.frames(), frames.stats().free);
            frames.nearly_free_block();
        }
    }
}

fn offline(frames: &Frames<'_>, owned: &mut Owned, which: u8, skip: u16, count: u16) {
    let (first, len) = RANGES[usize::from(which) % RANGES.len()];
    let skip = u64::from(skip) % len;
    let wanted = range(first + skip, u64::from(count) % (len - skip) + 1);
    let mut named = 0;
    let left = frames.offline(wanted, |one, _| {
        assert_eq!(owned.all.get(&one.range.start().number()), Some(&one.range.count()));
        named += 1;
    });
    let Ok(left) = left else { return };
    assert!(left > 0 || named == 0);
    owned.leaving.retain(|range| *range != wanted);
    owned.away.retain(|range| *range != wanted);
    if left == 0 { owned.away.push(wanted) } else { owned.leaving.push(wanted) }
}

fn run(input: &Input) {
    let ranges = RANGES.map(|(start, count)| range(start, count));
    let layout = required(&ranges, CPUS).expect("a layout");
    let mut storage = vec![MaybeUninit::<u8>::uninit(); layout.size() + layout.align()];
    let skip = storage.as_ptr().align_offset(layout.align());
    let mut entries = vec![0u128; if input.table { 0x40800 } else { 0 }];
    let table = input.table.then(|| NonNull::new(entries.as_mut_ptr().cast()).expect("not null"));
    let mut page = vec![0u8; 4096];
    let page = NonNull::new(page.as_mut_ptr()).expect("not null");
    let reserve = u64::from(input.reserve);
    let setup = Setup { ranges: &ranges, storage: &mut storage[skip..], table, reserve };
    // SAFETY: frames are only numbers, and the table has an entry for each.
    let frames: Frames<'_> =
        unsafe { FrameAllocator::new(setup, Turns(Cell::new(0)), OnePage(page)) }.expect("new");
    let memory = [(ranges[0], Node(0)), (ranges[1], Node(1)), (ranges[3], Node(0))];
    let topology = Topology { memory: &memory, cpus: &[Node(0), Node(1)], distances: &[] };
    let mut areas = [Area::EMPTY; 8];
    let frames = match input.nodes {
        true => frames.with_topology(&topology, &mut areas).expect("two nodes"),
        false => frames,
    };
    let total: u64 = RANGES.iter().map(|(_, count)| count).sum();
    let mut owned =
        Owned { table: input.table, all: BTreeMap::new(), leaving: Vec::new(), away: Vec::new() };
    let before = frames.block_counts(None);
    for call in &input.calls {
        step(&frames, &mut owned, call);
        let stats = frames.stats();
        let whole = owned.leaving.is_empty() && owned.away.is_empty();
        assert!(stats.total == total || !whole && stats.total < total);
        assert_eq!(stats.used, owned.all.values().sum::<u64>(), "after {call:?}");
        assert_eq!(stats.free + stats.cached + stats.used, stats.total, "conservation");
    }
    for range in owned.leaving.drain(..).chain(owned.away.drain(..)) {
        frames.online(range).expect("a range that left");
    }
    for (start, count) in std::mem::take(&mut owned.all) {
        frames.free_range(range(start, count)).expect("owned frames are taken back");
    }
    for cpu in 0..CPUS {
        frames.cpus().0.set(cpu);
        frames.drain_cpu().expect("an undisturbed stock");
    }
    // What is still on the shelves comes back under pressure.
    let all = Request::order(Order::MAX).class(Class::Reserve);
    assert!(frames.alloc(all).is_err());
    assert_eq!(frames.stats().free, total);
    assert_eq!(frames.block_counts(None), before);
}

fuzz_target!(|input: Input| run(&input));
