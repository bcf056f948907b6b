//! Two threads in one heap: both churn, or one allocates and the other frees.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::{ARENA_BYTES, Live, Sizes, ours};
use crate::arena::Arena;
use crate::measure::{Figure, figure, thread_time};
use crate::peers;
use crate::report::Row;

/// The log-uniform churn on two threads in one heap: thread CPU time per operation.
pub fn two_cpus(quick: bool) -> Vec<Row> {
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
    factor.gate = factor.best_peer().map(|best| 1.1 / best);
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
pub fn remote(quick: bool) -> Vec<Row> {
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
