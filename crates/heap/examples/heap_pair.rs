//! Times the heap briefly: pairs, churn, and how much of an arena can be filled.
//!
//! `cargo run --release -p pagoda-heap --example heap_pair`. For guidance while working on the heap; a
//! benchmark beside peers is another thing.
#![allow(unsafe_code)] // frees blocks

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::time::Instant;

use pagoda_heap::{Heap, Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};
use pagoda_sync::RawSpin;
use pagoda_sync::host::ThreadCpus;

#[allow(dead_code)]
#[path = "../src/testing.rs"]
mod testing;

type TestHeap<'a> = Heap<&'a testing::Arena, ThreadCpus, RawSpin>;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    fn log_uniform(&mut self) -> usize {
        (8.0 * 1024f64.powf(self.unit())) as usize
    }
    fn uniform(&mut self) -> usize {
        8 + (self.unit() * 8185.0) as usize
    }
}

fn of(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Nanoseconds that this thread has run, where the system says so; else wall-clock time.
fn cpu_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    static START: OnceLock<Instant> = OnceLock::new();
    let wall = || START.get_or_init(Instant::now).elapsed().as_nanos() as u64;
    stat.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(wall)
}

fn pair(name: &str, mut once: impl FnMut()) {
    const TIMES: u32 = 4_000_000;
    let best = (0..5)
        .map(|_| {
            let start = cpu_time();
            (0..TIMES).for_each(|_| once());
            (cpu_time() - start) as f64 / f64::from(TIMES)
        })
        .fold(f64::MAX, f64::min);
    println!("{name:<28} {best:6.2} ns");
}

fn churn(heap: &TestHeap<'_>, seed: u64, steps: usize, size: fn(&mut Random) -> usize) -> f64 {
    let mut random = Random(seed);
    let take = |random: &mut Random| {
        let layout = of(size(random));
        (heap.kalloc(layout).unwrap(), layout)
    };
    let mut live: Vec<_> = (0..10_000).map(|_| take(&mut random)).collect();
    // The random numbers are made beforehand: they are not what is measured.
    let plan: Vec<_> =
        (0..steps).map(|_| (random.next() as usize % 10_000, of(size(&mut random)))).collect();
    let start = cpu_time();
    for &(which, layout) in &plan {
        let slot = &mut live[which];
        // SAFETY: live, and replaced at once.
        unsafe { heap.kfree_sized(slot.0, slot.1).unwrap() };
        *slot = (heap.kalloc(layout).unwrap(), layout);
    }
    let time = (cpu_time() - start) as f64 / steps as f64;
    // SAFETY: live.
    live.into_iter().for_each(|(ptr, layout)| unsafe { heap.kfree_sized(ptr, layout).unwrap() });
    time
}

/// What single turns of the churn take, in cycles: the median, and what one in a hundred, in a thousand
/// and in ten thousand exceeds. The same turns are played in several heaps, and the quickest counts:
/// what is seen then is the heap's, and not its neighbours'.
#[cfg(target_arch = "x86_64")]
fn tail() -> [u64; 4] {
    const TURNS: usize = 300_000;
    // SAFETY: reads a counter.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let mut random = Random(3);
    let first: Vec<_> = (0..10_000).map(|_| of(random.log_uniform())).collect();
    let plan: Vec<_> =
        (0..TURNS).map(|_| (random.next() as usize % 10_000, of(random.log_uniform()))).collect();
    let mut times = vec![u64::MAX; TURNS];
    for _ in 0..9 {
        let arena = testing::Arena::new(1 << 13);
        let heap: TestHeap<'_> = Heap::new(&arena, ThreadCpus);
        let mut live: Vec<_> =
            first.iter().map(|&layout| (heap.kalloc(layout).unwrap(), layout)).collect();
        for (&(which, layout), time) in plan.iter().zip(&mut times) {
            let before = now();
            let slot = &mut live[which];
            // SAFETY: live, and replaced at once.
            unsafe { heap.kfree_sized(slot.0, slot.1).unwrap() };
            *slot = (heap.kalloc(layout).unwrap(), layout);
            *time = (now() - before).min(*time);
        }
    }
    // The heap grows in the first half.
    let times = &mut times[TURNS / 2..];
    times.sort_unstable();
    [2, 100, 1000, 10_000].map(|part| times[times.len() - times.len() / part])
}

/// Fills the arena; returns the part of it that is blocks, as asked for.
fn fill(pages: usize, aged: bool, size: fn(&mut Random) -> usize) -> f64 {
    let arena = testing::Arena::new(pages);
    let heap: TestHeap<'_> = Heap::new(&arena, ThreadCpus);
    let mut random = Random(99);
    let mut live: Vec<(NonNull<u8>, Layout)> = Vec::new();
    let until_full = |random: &mut Random, live: &mut Vec<_>| {
        while let (layout, true) = (of(size(random)), true) {
            let Ok(ptr) = heap.kalloc(layout) else { return };
            live.push((ptr, layout));
        }
    };
    until_full(&mut random, &mut live);
    for _ in 0..if aged { 20 } else { 0 } {
        for _ in 0..live.len() / 2 {
            let (ptr, layout) = live.swap_remove(random.next() as usize % live.len());
            // SAFETY: live.
            unsafe { heap.kfree_sized(ptr, layout).unwrap() };
        }
        until_full(&mut random, &mut live);
    }
    if std::env::var("VERBOSE").is_ok() {
        println!("{:?}", heap.stats());
    }
    let bytes: usize = live.iter().map(|(_, layout)| layout.size()).sum();
    100.0 * bytes as f64 / (pages * (4096 + 4)) as f64
}

fn main() {
    let arena = testing::Arena::new(1 << 16);
    let heap: TestHeap<'_> = Heap::new(&arena, ThreadCpus);
    pair("pair 64 B, sized", || {
        let layout = black_box(of(64));
        let block = black_box(heap.kalloc(layout).unwrap());
        // SAFETY: live.
        unsafe { heap.kfree_sized(block, layout).unwrap() };
    });
    pair("pair 64 B, constant layout", || {
        let block = black_box(heap.kalloc(of(64)).unwrap());
        // SAFETY: live.
        unsafe { heap.kfree_sized(block, of(64)).unwrap() };
    });
    pair("pair 64 B, without a size", || {
        let block = black_box(heap.kalloc(black_box(of(64))).unwrap());
        // SAFETY: live.
        unsafe { heap.kfree(block).unwrap() };
    });
    println!(
        "churn log-uniform            {:6.2} ns",
        churn(&heap, 7, 2_000_000, Random::log_uniform)
    );
    println!("churn uniform                {:6.2} ns", churn(&heap, 7, 2_000_000, Random::uniform));
    #[cfg(target_arch = "x86_64")]
    println!("cycles of a turn: median, p99, p99.9, p99.99  {:?}", tail());
    let two = std::thread::scope(|scope| {
        let run = |seed| {
            let heap = &heap;
            scope.spawn(move || churn(heap, seed, 2_000_000, Random::log_uniform))
        };
        let (a, b) = (run(5), run(6));
        (a.join().unwrap() + b.join().unwrap()) / 2.0
    });
    println!("churn log-uniform, two CPUs  {two:6.2} ns");
    let pages = 16 << 10;
    println!("fill log-uniform             {:6.2} %", fill(pages, false, Random::log_uniform));
    println!("fill log-uniform, aged       {:6.2} %", fill(pages, true, Random::log_uniform));
    println!("fill 64 B                    {:6.2} %", fill(pages, false, |_| 64));
}
