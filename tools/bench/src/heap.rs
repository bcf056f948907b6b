//! Kernel heaps: ours beside the single-lock crates, and two mallocs of a hosted system for scale.
//!
//! The cases: *pair*: one block of 64 bytes, allocated and freed. *batch*: 100 blocks, then freed.
//! *churn*: 10,000 live blocks of 8 to 8192 bytes; a random one is freed and replaced; sizes
//! log-uniform or uniform. *remote*: one CPU allocates, another frees. *two CPUs*: the churn on two
//! threads at once, in one heap, per operation of each. What is to be done is drawn before the
//! clock starts, and the clock stands while a thread waits. *fill*: how much of a 64 MiB arena can be
//! had as blocks, everything counted; aged: after the churn has turned it over four times.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use pagoda_heap::Heap;
use pagoda_sync::RawSpin;
use pagoda_sync::host::ThreadCpus;

use crate::arena::{Arena, Pages};
use crate::measure::{Contestant, Figure, Numbers, contest, figure, thread_time};
use crate::peers;
use crate::report::{Better, Row};

/// Our heap, with the pin that a kernel pays.
pub type Ours = Heap<Pages, ThreadCpus, RawSpin>;

const ARENA_BYTES: usize = 64 << 20;

/// Our heap over an arena.
pub fn ours(arena: Arena) -> Ours {
    Heap::new(Pages::new(arena), ThreadCpus)
}

/// Measures everything.
pub fn rows(quick: bool) -> Vec<Row> {
    let rounds = if quick { 5 } else { 41 };
    let mut rows = vec![
        Row::times("pair 64 B", &timed(rounds, &Pair(64)), Some(0.3)),
        Row::times("pair 1 KiB", &timed(rounds, &Pair(1024)), None),
        Row::times("pair 4 KiB", &timed(rounds, &Pair(4096)), None),
        Row::times("batch of 100, 64 B", &timed(rounds, &Batch), None),
        Row::times("churn, log-uniform", &timed(rounds, &Churn(Sizes::LogUniform)), Some(0.28)),
        Row::times("churn, uniform", &timed(rounds, &Churn(Sizes::Uniform)), Some(0.25)),
    ];
    rows.extend(tails(quick));
    rows.extend(two_cpus(quick));
    rows.extend(remote(quick));
    rows.extend(fills());
    rows
}

/// One kind of work, for any heap.
trait Work {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a>;
    /// Does first-fit take minutes over it?
    fn spares_the_list(&self) -> bool {
        false
    }
}

fn timed(rounds: usize, work: &impl Work) -> Vec<Figure> {
    let arena = || Arena::new(ARENA_BYTES);
    let ours = ours(arena());
    let (talc, rlsf, dlmalloc) =
        (peers::talc(arena()), peers::rlsf(arena()), peers::dlmalloc(arena()));
    let (buddy, list) = (peers::buddy(arena()), peers::list(arena()));
    let mut all = vec![
        work.contestant("ours", &ours),
        work.contestant("talc", &talc),
        work.contestant("rlsf", &rlsf),
        work.contestant("dlmalloc", &dlmalloc),
        work.contestant("buddy_system_allocator", &buddy),
    ];
    if !work.spares_the_list() {
        all.push(work.contestant("linked_list_allocator", &list));
    }
    // The hosted ones are for scale, and no peers of the gate.
    all.push(work.contestant("(glibc)", &System));
    all.push(work.contestant("(mimalloc)", &mimalloc::MiMalloc));
    contest(&mut all, rounds)
}

struct Pair(usize);

impl Work for Pair {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a> {
        let layout = Layout::from_size_align(self.0, 8).expect("a layout");
        Contestant::new(name, move || {
            const PAIRS: u64 = 50_000;
            for _ in 0..PAIRS {
                // SAFETY: freed once, with the layout it was allocated with.
                unsafe {
                    let block = std::hint::black_box(heap.alloc(layout));
                    block.write(1);
                    heap.dealloc(block, layout);
                }
            }
            PAIRS
        })
    }
}

struct Batch;

impl Work for Batch {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a> {
        let layout = Layout::new::<[u64; 8]>();
        Contestant::new(name, move || {
            let mut blocks = [std::ptr::null_mut(); 100];
            for _ in 0..300 {
                for block in &mut blocks {
                    // SAFETY: the layout is not empty.
                    *block = unsafe { heap.alloc(layout) };
                }
                for &block in &blocks {
                    // SAFETY: freed once, with the layout it was allocated with.
                    unsafe { heap.dealloc(block, layout) };
                }
            }
            30_000
        })
    }
}

/// How sizes from 8 to 8192 bytes are drawn.
#[derive(Clone, Copy)]
enum Sizes {
    LogUniform,
    Uniform,
}

impl Sizes {
    #[inline]
    fn layout(self, numbers: &mut Numbers) -> Layout {
        let size = match self {
            Self::Uniform => 8 + numbers.below(8185),
            Self::LogUniform => {
                let octave = 3 + numbers.below(10);
                (1 << octave) + numbers.below(1 << octave)
            }
        };
        Layout::from_size_align(size as usize, 8).expect("a layout")
    }
}

/// Live blocks of one heap; frees them all when dropped.
struct Live<'a, A: GlobalAlloc> {
    heap: &'a A,
    blocks: Vec<(*mut u8, Layout)>,
    /// Which block is replaced, and by how many bytes. Drawn beforehand, for it is not what is
    /// measured; gone through again and again.
    plan: Vec<(u16, u16)>,
    next: usize,
}

/// Turns of a plan: no branch predictor learns it by heart.
const PLAN: usize = 1 << 18;

impl<'a, A: GlobalAlloc> Live<'a, A> {
    fn new(heap: &'a A, count: usize, sizes: Sizes, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let blocks = (0..count)
            .map(|_| {
                let layout = sizes.layout(&mut numbers);
                // SAFETY: the layout is not empty.
                (unsafe { heap.alloc(layout) }, layout)
            })
            .collect();
        let plan = (0..PLAN)
            .map(|_| {
                let which = numbers.below(count as u64) as u16;
                (which, sizes.layout(&mut numbers).size() as u16)
            })
            .collect();
        Self { heap, blocks, plan, next: 0 }
    }

    #[inline]
    fn turn(&mut self) {
        let (index, size) = self.plan[self.next % PLAN];
        self.next += 1;
        let index = usize::from(index);
        let (block, layout) = self.blocks[index];
        // SAFETY: 8 is a power of two, and no size is near the maximum.
        let fresh = unsafe { Layout::from_size_align_unchecked(usize::from(size), 8) };
        // SAFETY: each block is freed once, with its layout.
        unsafe {
            self.heap.dealloc(block, layout);
            let block = self.heap.alloc(fresh);
            assert!(!block.is_null(), "a heap with room to spare said no");
            block.write(1);
            self.blocks[index] = (block, fresh);
        }
    }
}

impl<A: GlobalAlloc> Drop for Live<'_, A> {
    fn drop(&mut self) {
        for &(block, layout) in self.blocks.iter().filter(|block| !block.0.is_null()) {
            // SAFETY: freed once, with its layout.
            unsafe { self.heap.dealloc(block, layout) };
        }
    }
}

struct Churn(Sizes);

impl Work for Churn {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a> {
        let mut live = Live::new(heap, 10_000, self.0, 7);
        Contestant::new(name, move || {
            // Many more turns than blocks: else what is measured is how the caches forget one heap
            // while the others have their turn, which costs everybody the same.
            for _ in 0..PLAN {
                live.turn();
            }
            // An operation is an allocation or a free.
            2 * PLAN as u64
        })
    }

    fn spares_the_list(&self) -> bool {
        true
    }
}

/// p99.9 of single turns of the log-uniform churn, in cycles of the time-stamp counter.
fn tails(quick: bool) -> Vec<Row> {
    let turns = if quick { 100_000 } else { 1_000_000 };
    let arena = || Arena::new(ARENA_BYTES);
    let figures = vec![
        tail("ours", &ours(arena()), turns),
        tail("talc", &peers::talc(arena()), turns),
        tail("rlsf", &peers::rlsf(arena()), turns),
        tail("dlmalloc", &peers::dlmalloc(arena()), turns),
        tail("buddy_system_allocator", &peers::buddy(arena()), turns),
    ];
    let mut row = Row::times("churn, p99.9 of an alloc + free", &figures, Some(0.7));
    row.unit = "cycles";
    vec![row]
}

fn tail<A: GlobalAlloc>(name: &str, heap: &A, turns: usize) -> Figure {
    let mut live = Live::new(heap, 10_000, Sizes::LogUniform, 7);
    // Every heap is slow while it grows, and once.
    (0..PLAN).for_each(|_| live.turn());
    let mut samples = Vec::with_capacity(turns);
    for _ in 0..turns {
        // SAFETY: reads a counter.
        let before = unsafe { core::arch::x86_64::_rdtsc() };
        live.turn();
        // SAFETY: reads a counter.
        samples.push(unsafe { core::arch::x86_64::_rdtsc() } - before);
    }
    samples.sort_unstable();
    let worst = samples[turns - turns / 1000] as f64;
    Figure { name: name.into(), median: worst, quartiles: (worst, worst) }
}

/// The log-uniform churn on two threads in one heap: thread CPU time per operation.
fn two_cpus(quick: bool) -> Vec<Row> {
    let arena = || Arena::new(ARENA_BYTES);
    let turns = if quick { 50_000 } else { 200_000 };
    let rounds = if quick { 7 } else { 21 };
    let mut one = vec![Vec::new(); 4];
    let mut two = vec![Vec::new(); 4];
    let names = ["ours", "talc", "dlmalloc", "(mimalloc)"];
    let (ours, talc, dlmalloc) = (ours(arena()), peers::talc(arena()), peers::dlmalloc(arena()));
    for _ in 0..rounds {
        for (threads, samples) in [(1, &mut one), (2, &mut two)] {
            samples[0].push(crowd(&ours, threads, turns));
            samples[1].push(crowd(&talc, threads, turns));
            samples[2].push(crowd(&dlmalloc, threads, turns));
            samples[3].push(crowd(&mimalloc::MiMalloc, threads, turns));
        }
    }
    let figures = |samples: Vec<Vec<f64>>| -> Vec<Figure> {
        names.iter().zip(samples).map(|(name, samples)| figure(name, samples)).collect()
    };
    let (one, two) = (figures(one), figures(two));
    let slower: Vec<Figure> = one
        .iter()
        .zip(&two)
        .map(|(one, two)| {
            let factor = two.median / one.median;
            Figure { name: one.name.clone(), median: factor, quartiles: (factor, factor) }
        })
        .collect();
    let mut factor = Row::times("churn, two CPUs over one (ours: at most 1.1)", &slower, None);
    factor.unit = "x";
    vec![Row::times("churn, two CPUs, each", &two, None), factor]
}

fn crowd<A: GlobalAlloc + Sync>(heap: &A, threads: u64, turns: usize) -> f64 {
    let spent: f64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|seed| {
                scope.spawn(move || {
                    let mut live = Live::new(heap, 5_000, Sizes::LogUniform, seed + 3);
                    let before = thread_time();
                    for _ in 0..turns {
                        live.turn();
                    }
                    (thread_time() - before).as_nanos() as f64
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    spent / (threads as f64 * turns as f64 * 2.0)
}

/// One thread allocates, another frees; both threads' CPU time per block.
///
/// Twice: as blocks that nobody looks at, which is what the heaps cost; and as messages, written by
/// one and read by the other, where the cache lines travel whatever the heap does.
fn remote(quick: bool) -> Vec<Row> {
    let case = |case, messages, gate| {
        let arena = || Arena::new(ARENA_BYTES);
        let blocks = if quick { 100_000 } else { 400_000 };
        let rounds = if quick { 7 } else { 21 };
        let (ours, talc, dlmalloc) =
            (ours(arena()), peers::talc(arena()), peers::dlmalloc(arena()));
        let names = ["ours", "talc", "dlmalloc", "(glibc)", "mimalloc"];
        let mut samples = vec![Vec::new(); names.len()];
        for _ in 0..rounds {
            samples[0].push(hand_over(&ours, blocks, messages));
            samples[1].push(hand_over(&talc, blocks, messages));
            samples[2].push(hand_over(&dlmalloc, blocks, messages));
            samples[3].push(hand_over(&System, blocks, messages));
            samples[4].push(hand_over(&mimalloc::MiMalloc, blocks, messages));
        }
        let figures: Vec<Figure> =
            names.iter().zip(samples).map(|(name, samples)| figure(name, samples)).collect();
        Row::times(case, &figures, gate)
    };
    vec![
        case("remote free, 64 B", false, Some(0.5)),
        case("remote free, 64 B, written and read", true, None),
    ]
}

const SLOTS: usize = 4096;
const BATCH: usize = 512;

/// A ring of slots between two threads, by batches of 512. The clock runs while they allocate and
/// free, and stands while they wait: falling asleep and waking up is not the heap's cost, and would
/// count for most where the heap is quick.
fn hand_over<A: GlobalAlloc + Sync>(heap: &A, blocks: usize, messages: bool) -> f64 {
    let layout = Layout::new::<[u64; 8]>();
    let ring: Vec<AtomicPtr<u8>> = (0..SLOTS).map(|_| AtomicPtr::default()).collect();
    let (written, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let spent: u128 = std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let room = |batch: usize| (batch + 1) * BATCH - read.load(Ordering::Acquire) <= SLOTS;
            let put = |slot: &AtomicPtr<u8>| {
                // SAFETY: the layout is not empty; no heap here is near its end, and a message is
                // written to a block of its own.
                unsafe {
                    let block = heap.alloc(layout);
                    if messages {
                        block.write(1);
                    }
                    slot.store(block, Ordering::Relaxed);
                }
            };
            in_batches(&ring, blocks, room, put, &written)
        });
        let consumer = scope.spawn(|| {
            let there = |batch: usize| written.load(Ordering::Acquire) >= (batch + 1) * BATCH;
            let take = |slot: &AtomicPtr<u8>| {
                let block = slot.load(Ordering::Relaxed);
                // SAFETY: each block was allocated with this layout and is freed once; a message
                // was written before.
                unsafe {
                    if messages {
                        std::hint::black_box(block.read());
                    }
                    heap.dealloc(block, layout);
                }
            };
            in_batches(&ring, blocks, there, take, &read)
        });
        producer.join().expect("producer") + consumer.join().expect("consumer")
    });
    spent as f64 / (blocks / BATCH * BATCH) as f64
}

/// Does `once` for each slot in turn, a batch whenever `ready`; the nanoseconds that took.
fn in_batches(
    ring: &[AtomicPtr<u8>],
    blocks: usize,
    ready: impl Fn(usize) -> bool,
    once: impl Fn(&AtomicPtr<u8>),
    done: &AtomicUsize,
) -> u128 {
    let mut spent = 0;
    for batch in 0..blocks / BATCH {
        while !ready(batch) {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let before = thread_time();
        let from = batch * BATCH % SLOTS;
        ring[from..from + BATCH].iter().for_each(&once);
        spent += (thread_time() - before).as_nanos();
        done.store((batch + 1) * BATCH, Ordering::Release);
    }
    spent
}

/// What part of the arena can be had as blocks.
fn fills() -> Vec<Row> {
    let gates = [
        ("fill, all 64 B, %", Fill::Small, 98.9),
        ("fill, log-uniform, %", Fill::Mixed, 95.0),
        ("fill, log-uniform, aged, %", Fill::Aged, 92.5),
        ("fill, log-uniform, after another CPU churned, %", Fill::AfterAnother, 93.0),
    ];
    gates
        .into_iter()
        .map(|(case, kind, floor)| {
            let arena = || Arena::new(ARENA_BYTES);
            let ours = fill(&ours(arena()), kind);
            let peers = [
                ("talc", fill(&peers::talc(arena()), kind)),
                ("rlsf", fill(&peers::rlsf(arena()), kind)),
                ("dlmalloc", fill(&peers::dlmalloc(arena()), kind)),
                ("buddy_system_allocator", fill(&peers::buddy(arena()), kind)),
            ];
            let peers: std::collections::BTreeMap<_, _> =
                peers.into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
            let best = peers.values().copied().fold(f64::MIN, f64::max);
            Row {
                case: format!("{case} (ours: at least {floor})"),
                unit: "%",
                better: Better::More,
                ours,
                peers,
                gate: Some((floor / best * 1000.0).round() / 1000.0),
                spread: 0.0,
            }
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Small,
    Mixed,
    Aged,
    /// Another CPU has churned, and is idle without having said so: what lies in its magazines stays
    /// there. (A kernel's idle loop would call `drain`.)
    AfterAnother,
}

fn fill<A: GlobalAlloc + Sync>(heap: &A, kind: Fill) -> f64 {
    if kind != Fill::AfterAnother {
        return pour_out(heap, kind);
    }
    let (churned, filled) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut live = Live::new(heap, 5_000, Sizes::LogUniform, 9);
            (0..200_000).for_each(|_| live.turn());
            drop(live);
            churned.wait();
            // The thread lives on, so that nobody else becomes this CPU.
            filled.wait();
        });
        churned.wait();
        let part = pour_out(heap, kind);
        filled.wait();
        part
    })
}

fn pour_out<A: GlobalAlloc>(heap: &A, kind: Fill) -> f64 {
    let mut numbers = Numbers::new(11);
    let mut blocks: Vec<(*mut u8, Layout)> = Vec::new();
    let mut draw = || match kind {
        Fill::Small => Layout::new::<[u64; 8]>(),
        _ => Sizes::LogUniform.layout(&mut numbers),
    };
    let mut pour = |blocks: &mut Vec<(*mut u8, Layout)>| {
        // A first no may be for a large block only: ask on until it is no a few times.
        let mut refusals = 0;
        while refusals < 50 {
            let layout = draw();
            // SAFETY: the layout is not empty.
            let block = unsafe { heap.alloc(layout) };
            if block.is_null() {
                refusals += 1;
            } else {
                blocks.push((block, layout));
            }
        }
    };
    pour(&mut blocks);
    if kind == Fill::Aged {
        let mut which = Numbers::new(5);
        for _ in 0..40 {
            for _ in 0..blocks.len() / 10 {
                let (block, layout) = blocks.swap_remove(which.below(blocks.len() as u64) as usize);
                // SAFETY: freed once, with its layout.
                unsafe { heap.dealloc(block, layout) };
            }
            pour(&mut blocks);
        }
    }
    let bytes: usize = blocks.iter().map(|block| block.1.size()).sum();
    for (block, layout) in blocks {
        // SAFETY: freed once, with its layout.
        unsafe { heap.dealloc(block, layout) };
    }
    100.0 * bytes as f64 / ARENA_BYTES as f64
}
