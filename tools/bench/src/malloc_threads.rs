//! Programs of several threads, written for this in the manner of ones that are well known.
//!
//! *larson*, in [`crate::malloc`] (after Larson and Krishnan 1998): threads replace random blocks, end, and
//! leave their blocks to a successor. *mstress* (in the manner of mimalloc's): threads allocate small and some large blocks, keep
//! some, free others in another order, and pass some on to whoever comes, round after round; threads come
//! and go. *xmalloc* (after Lever and Boreham 2000): each block is allocated by one thread and freed by
//! another. *orphans*: threads end, one after the other, and leave half of their blocks behind, which are
//! freed when the next one has ended.
//!
//! Left out: what such programs keep resident. The contestants share this process, and each finds memory that
//! it kept from the rows before.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use crate::measure::{Numbers, thread_time};

/// Work of several threads: nanoseconds of CPU time for an operation.
pub trait Crowd {
    /// Runs the program once.
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64;

    /// The same, with the allocator's name.
    fn figure<A: GlobalAlloc + Sync>(
        &self,
        name: &'static str,
        heap: &'static A,
    ) -> (&'static str, f64) {
        (name, self.spent(heap))
    }
}

/// A block and its bytes, freed when dropped.
struct Block<A: GlobalAlloc + Sync + 'static> {
    heap: &'static A,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: the block is owned, and the allocator serves all threads.
unsafe impl<A: GlobalAlloc + Sync> Send for Block<A> {}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 8).expect("a layout")
}

impl<A: GlobalAlloc + Sync> Block<A> {
    fn new(heap: &'static A, bytes: usize) -> Self {
        // SAFETY: no size here is zero; the first and the last byte are the block's.
        unsafe {
            let at = heap.alloc(layout(bytes));
            assert!(!at.is_null());
            at.write(1);
            at.add(bytes - 1).write(1);
            Self { heap, at, bytes }
        }
    }
}

impl<A: GlobalAlloc + Sync> Drop for Block<A> {
    fn drop(&mut self) {
        // SAFETY: as it was allocated, once.
        unsafe { self.heap.dealloc(self.at, layout(self.bytes)) };
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let before = thread_time();
    let result = work();
    ((thread_time() - before).as_nanos() as f64, result)
}

/// Runs one closure on each of so many threads; the sum of what they spent.
fn threads(count: u64, work: impl Fn(u64) -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic inside")).sum()
    })
}

/// See the head of the module.
pub struct Mstress;

impl Crowd for Mstress {
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64 {
        const ROUNDS: u64 = 6;
        const THREADS: u64 = 4;
        const TURNS: u64 = 10_000;
        let passed: Vec<Mutex<Option<Block<A>>>> = (0..256).map(|_| Mutex::new(None)).collect();
        let life = |seed: u64| {
            let mut numbers = Numbers::new(seed);
            let (mut held, mut kept) = (Vec::new(), Vec::new());
            let (spent, ()) = timed(|| {
                for _ in 0..TURNS {
                    // Most are small; one of a hundred has some pages, one of a thousand many.
                    let bytes = match numbers.below(1000) {
                        0 => 64 << 10 | numbers.below(192 << 10),
                        1..10 => 1 << 10 | numbers.below(16 << 10),
                        _ => 8 + numbers.below(32) * numbers.below(16),
                    };
                    held.push(Block::new(heap, bytes as usize));
                    match numbers.below(4) {
                        0 => {
                            let index = numbers.below(held.len() as u64) as usize;
                            drop(held.swap_remove(index));
                        }
                        1 => {
                            let index = numbers.below(held.len() as u64) as usize;
                            kept.push(held.swap_remove(index));
                            if kept.len() > 2000 {
                                kept.clear();
                            }
                        }
                        2 if numbers.below(4) == 0 => {
                            let index = numbers.below(held.len() as u64) as usize;
                            let place = &passed[numbers.below(256) as usize];
                            let block = held.swap_remove(index);
                            let old = place.lock().expect("no panic").replace(block);
                            drop(old);
                        }
                        _ => {}
                    }
                    if held.len() > 4000 {
                        held.truncate(1000);
                    }
                }
                held.clear();
                kept.clear();
            });
            spent
        };
        let spent: f64 =
            (0..ROUNDS).map(|round| threads(THREADS, |n| life(round * 64 + n * 7 + 3))).sum();
        spent / (ROUNDS * THREADS * TURNS) as f64
    }
}

/// See the head of the module.
pub struct Xmalloc;

impl Crowd for Xmalloc {
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64 {
        const PAIRS: u64 = 2;
        const BATCH: usize = 120;
        const BATCHES: u64 = 700;
        let pair = |number: u64| {
            let (to, from) = sync_channel::<Vec<Block<A>>>(8);
            std::thread::scope(|scope| {
                let taker = scope
                    .spawn(|| from.into_iter().map(|batch| timed(|| drop(batch)).0).sum::<f64>());
                let mut numbers = Numbers::new(number + 5);
                let mut spent = 0.0;
                for _ in 0..BATCHES {
                    // The sizes of the original: from 16 bytes to 1 KiB and a little.
                    let mut batch = Vec::with_capacity(BATCH);
                    let (time, ()) = timed(|| {
                        batch.extend(
                            (0..BATCH)
                                .map(|_| Block::new(heap, 16 + numbers.below(66) as usize * 16)),
                        );
                    });
                    spent += time;
                    to.send(batch).expect("the taker listens");
                }
                drop(to);
                spent + taker.join().expect("the taker ends")
            })
        };
        threads(PAIRS, pair) / (PAIRS * BATCHES * BATCH as u64) as f64
    }
}

/// Generations of threads that leave blocks behind; the last blocks are freed by this thread.
pub struct Orphans;

const GENERATIONS: u64 = 60;
const BORN: u64 = 2000;

impl Crowd for Orphans {
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64 {
        let mut left: Vec<Block<A>> = Vec::new();
        let mut spent = 0.0;
        for generation in 0..GENERATIONS {
            let (time, mut born) = std::thread::spawn(move || {
                let mut numbers = Numbers::new(generation * 31 + 1);
                timed(|| {
                    let blocks =
                        (0..BORN).map(|_| Block::new(heap, 16 + numbers.below(500) as usize));
                    let mut blocks: Vec<_> = blocks.collect();
                    // Its own half goes with the thread.
                    blocks.retain(|block| block.bytes % 2 == 0);
                    blocks
                })
            })
            .join()
            .expect("no panic inside");
            // The parents' blocks are freed when the children's have come: two generations live.
            let (freed, ()) = timed(|| {
                std::mem::swap(&mut left, &mut born);
                drop(born);
            });
            spent += time + freed;
        }
        spent / (GENERATIONS * BORN) as f64
    }
}
