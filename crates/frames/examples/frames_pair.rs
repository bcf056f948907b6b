//! How long things take, roughly: `cargo run --release -p pagoda-frames --example frames_pair [GIB]`.
//! Nanoseconds, the best of many short windows. For orientation while changing the allocator; a
//! comparison with others needs them in the same run. `frames_pair turns GIB PERCENT WINDOWS
//! [table]` does nothing but random pairs, 100,000 in a window, for a profiler; `frames_pair large
//! [table]` nothing but 2 MiB blocks.
#![allow(unsafe_code)] // sets up an allocator whose frames are only numbers

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Instant;

use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::{FrameAllocator, FrameInfo, OwnedFrames, Request, Setup, backing, required};
use pagoda_sync::host::ThreadCpus;
use pagoda_sync::{CpuId, Cpus, RawSpin};
use std::cell::Cell;

struct Unmapped;

// SAFETY: never asked, since no request here wants zeroes.
unsafe impl PhysMap for Unmapped {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        unreachable!()
    }
}

type Frames<C> = FrameAllocator<'static, C, Unmapped, RawSpin>;

/// One CPU of a kernel: a pin counts up, its end counts down.
#[derive(Clone, Copy)]
struct Counted(&'static Cell<u32>);

impl Counted {
    fn new() -> Self {
        Self(Box::leak(Box::new(Cell::new(0))))
    }
}

// SAFETY: not `Sync`, so one thread only.
unsafe impl Cpus for Counted {
    fn limit(&self) -> usize {
        1
    }
    #[inline]
    fn enter(&self) -> CpuId {
        self.0.set(self.0.get() + 1);
        CpuId::BOOT
    }
    #[inline]
    unsafe fn leave(&self) {
        self.0.set(self.0.get() - 1);
    }
}

fn setup<C: Cpus>(cpus: C, frames: u64, with_table: bool) -> Frames<C> {
    let start = Frame::from_number(1 << 18);
    let ranges = [FrameRange::new(start, frames).expect("small")];
    let layout = required(&ranges, cpus.limit()).expect("one range");
    let storage = vec![MaybeUninit::<u8>::uninit(); layout.size() + layout.align()].leak();
    let skip = storage.as_ptr().align_offset(layout.align());
    let bytes = backing(&ranges).last().map_or(0, |(offset, len)| offset + len);
    let table = vec![0u128; bytes as usize / 16].leak().as_mut_ptr().cast::<FrameInfo>();
    let table = if with_table { NonNull::new(table) } else { None };
    let setup = Setup { ranges: &ranges, storage: &mut storage[skip..], table, reserve: 0 };
    // SAFETY: nobody touches the frames; the table is as long as the highest frame demands.
    unsafe { FrameAllocator::new(setup, cpus, Unmapped) }.expect("enough storage")
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) as usize * limit) >> 32
    }
}

fn take<C: Cpus>(frames: &Frames<C>, request: Request) -> OwnedFrames {
    frames.alloc(request).expect("memory")
}

/// One frame, remembered by a small number, so that the list weighs little.
fn one<C: Cpus>(frames: &Frames<C>) -> u32 {
    take(frames, Request::frame()).into_range().start().number() as u32
}

fn back<C: Cpus>(frames: &Frames<C>, frame: u32) {
    let range = FrameRange::single(Frame::from_number(frame.into()));
    // SAFETY: `one` returned it, and it was not given back since.
    let owned = unsafe { OwnedFrames::from_range(range) };
    frames.free(owned).expect("ours");
}

/// The best and the median of `windows` measurements of `each`, per call.
fn measure(windows: usize, calls: usize, mut each: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<f64> = (0..windows)
        .map(|_| {
            let begun = Instant::now();
            (0..calls).for_each(|_| each());
            begun.elapsed().as_nanos() as f64 / calls as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[0], times[windows / 2])
}

fn show(name: &str, (best, median): (f64, f64)) {
    println!("{name:34} {best:9.1} {median:9.1}");
}

fn singles(gib: u64, with_table: bool) {
    let count = gib << 18;
    let label = |what: &str| format!("{gib} GiB{} {what}", if with_table { " table" } else { "" });
    let frames = setup(Counted::new(), count, with_table);
    let total = frames.stats().total as usize;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);

    let mut all: Vec<u32> = vec![1; total]; // touched before the clock runs
    all.clear();
    let begun = Instant::now();
    all.extend((0..total).map(|_| one(&frames)));
    let fill = begun.elapsed().as_nanos() as f64 / total as f64;
    show(&label("fill"), (fill, fill));
    for place in (1..total).rev() {
        all.swap(place, random.below(place + 1));
    }
    let begun = Instant::now();
    all.drain(..).for_each(|frame| back(&frames, frame));
    let free = begun.elapsed().as_nanos() as f64 / total as f64;
    show(&label("free random"), (free, free));

    let repeat = measure(200, 1000, || back(&frames, black_box(one(&frames))));
    show(&label("repeat pair"), repeat);

    for percent in [50, 95] {
        let want = total * percent / 100;
        // Fragmented: everything taken, then freed at random.
        while let Ok(owned) = frames.alloc(Request::frame()) {
            all.push(owned.into_range().start().number() as u32);
        }
        while all.len() > want {
            let place = random.below(all.len());
            back(&frames, all.swap_remove(place));
        }
        let mut pair = || {
            let place = random.below(want);
            back(&frames, all[place]);
            all[place] = one(&frames);
        };
        show(&label(&format!("pair at {percent} % (fresh)")), measure(100, 1000, &mut pair));
        (0..4 * total).for_each(|_| pair());
        show(&label(&format!("pair at {percent} % (settled)")), measure(100, 1000, &mut pair));
    }
    for percent in [50, 80, 90] {
        let want = total * percent / 100;
        while all.len() > want {
            let place = random.below(all.len());
            back(&frames, all.swap_remove(place));
        }
        while all.len() < want {
            all.push(one(&frames));
        }
        for _ in 0..16 * total {
            let place = random.below(want);
            back(&frames, all[place]);
            all[place] = one(&frames);
        }
        frames.drain_cpu().expect("sound");
        let stats = frames.stats();
        let large = frames.available(Order::LARGE) * 512;
        let share = large as f64 * 100.0 / stats.free as f64;
        println!(
            "{:34} {share:8.1} % (cached {})",
            label(&format!("recovered at {percent} %")),
            stats.cached
        );
        if gib == 1 {
            for count in [3, 37, 1000] {
                let request =
                    Request::count(count).align(Order::for_count(count).unwrap_or_default());
                let range = measure(50, 20, || frames.free(take(&frames, request)).expect("ours"));
                show(&label(&format!("{count} frames, free at {percent} %")), range);
            }
            let large = measure(50, 20, || {
                let one = take(&frames, Request::frame());
                let large = take(&frames, Request::order(Order::LARGE));
                frames.free(large).expect("ours");
                frames.free(one).expect("ours");
            });
            show(&label(&format!("order 9 + 0, pair at {percent} %")), large);
        }
    }
    all.into_iter().for_each(|frame| back(&frames, frame));
}

fn blocks(gib: u64, order: Order, with_table: bool) {
    let frames = setup(Counted::new(), gib << 18, with_table);
    let count = (gib << 18 >> order.get()) as usize;
    let rounds = 2000 / count.min(100);
    let mut all = Vec::with_capacity(count);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        for _ in 0..count {
            all.push(take(&frames, Request::order(order)));
        }
        times.push(begun.elapsed().as_nanos() as f64 / count as f64);
        all.drain(..).for_each(|owned| frames.free(owned).expect("ours"));
    }
    times.sort_by(f64::total_cmp);
    let table = if with_table { " table" } else { "" };
    show(&format!("{gib} GiB{table} {order:?}, empty"), (times[0], times[rounds / 2]));
}

fn threads(gib: u64, count: usize) {
    let frames = setup(ThreadCpus, gib << 18, false);
    let pairs = 2_000_000;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let mut kept: Vec<_> = (0..256).map(|_| take(&frames, Request::frame())).collect();
                for _ in 0..pairs / 256 {
                    kept.drain(..).for_each(|owned| frames.free(owned).expect("ours"));
                    kept.extend((0..256).map(|_| take(&frames, Request::frame())));
                }
                kept.into_iter().for_each(|owned| frames.free(owned).expect("ours"));
                frames.drain_cpu().expect("sound");
            });
        }
    });
    let each = begun.elapsed().as_nanos() as f64 / pairs as f64;
    show(&format!("{count} threads, bursts of 256"), (each, each));
}

/// Random pairs after one turnover, as `bench frames` measures them.
fn turns(gib: usize, percent: usize, windows: usize, with_table: bool) {
    let frames = setup(Counted::new(), (gib as u64) << 18, with_table);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all: Vec<u64> = Vec::with_capacity(gib << 18);
    while let Ok(owned) = frames.alloc(Request::frame()) {
        all.push(owned.into_range().start().number());
    }
    let want = all.len() * percent / 100;
    while all.len() > want {
        let place = random.below(all.len());
        back(&frames, all.swap_remove(place) as u32);
    }
    window(&frames, &mut all, &mut random, want);
    for _ in 0..windows {
        let begun = Instant::now();
        window(&frames, &mut all, &mut random, 100_000);
        let each = begun.elapsed().as_nanos() as f64 / 100_000.0;
        show("a window of random pairs", (each, each));
    }
}

#[inline(never)]
fn window(frames: &Frames<Counted>, all: &mut [u64], random: &mut Random, count: usize) {
    for _ in 0..count {
        let place = random.below(all.len());
        back(frames, all[place] as u32);
        all[place] = one(frames).into();
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "large") {
        return blocks(1, Order::LARGE, words.len() > 1);
    }
    if let [what, rest @ ..] = &words[..] {
        if let ("turns", [gib, percent, windows, table @ ..]) = (what.as_str(), rest) {
            let number = |text: &String| text.parse().expect("a number");
            return turns(number(gib), number(percent), number(windows), !table.is_empty());
        }
    }
    let gib = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("{:34} {:>9} {:>9}", "ns", "best", "median");
    for with_table in [false, true] {
        singles(gib, with_table);
        for order in [Order::LARGE, Order::HUGE] {
            blocks(gib, order, with_table);
        }
    }
    threads(gib, 1);
    threads(gib, 2);
}
