//! Kernel heaps: ours beside the single-lock crates, and two mallocs of a hosted system for scale.
//!
//! The cases: *pair*: one block of 64 bytes, allocated and freed. *batch*: 100 blocks, then freed.
//! *churn*: 10,000 live blocks of 8 to 8192 bytes; a random one is freed and replaced; sizes
//! log-uniform or uniform. *remote*: one CPU allocates, another frees. *two CPUs*: the churn on two
//! threads at once, in one heap, per operation of each. What is to be done is drawn before the
//! clock starts, and the clock stands while a thread waits. *fill*: how much of a 64 MiB arena can be
//! had as blocks, everything counted; aged: after the churn has turned it over four times.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;

use pagoda_heap::Heap;
use pagoda_sync::RawSpin;
use pagoda_sync::host::ThreadCpus;

use crate::arena::{Arena, Pages};
use crate::measure::{Contestant, Figure, Numbers, contest, figure};
use crate::peers;
use crate::report::Row;

mod debug;
mod fill;
mod guest;
mod threads;

/// Our heap, with the pin that a kernel pays.
pub type Ours = Heap<Pages, ThreadCpus, RawSpin>;

const ARENA_BYTES: usize = 64 << 20;

/// Our heap over an arena.
pub fn ours(arena: Arena) -> Ours {
    Heap::new(Pages::new(arena), ThreadCpus)
}

/// Measures everything, or only one part of it: pairs, churn, tails, threads, fill, debug.
pub fn rows(quick: bool, only: Option<&str>, guest: Option<&Path>) -> anyhow::Result<Vec<Row>> {
    let rounds = if quick { 5 } else { 41 };
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted("pairs") {
        rows.push(Row::times("pair 64 B", &timed(rounds, &Pair(64)), Some(0.3)));
        rows.push(Row::times("pair 1 KiB", &timed(rounds, &Pair(1024)), None));
        rows.push(Row::times("pair 4 KiB", &timed(rounds, &Pair(4096)), None));
        rows.push(Row::times("batch of 100, 64 B", &timed(rounds, &Batch), None));
    }
    if wanted("churn") {
        rows.push(churn("churn, log-uniform", rounds, Sizes::LogUniform, 0.28));
        rows.push(churn("churn, uniform", rounds, Sizes::Uniform, 0.25));
    }
    if wanted("tails") {
        rows.push(tails(quick));
    }
    if wanted("threads") {
        rows.extend(threads::two_cpus(quick));
        rows.extend(threads::remote(quick));
    }
    if wanted("fill") {
        rows.extend(fill::fills());
    }
    if wanted("debug") {
        rows.extend(debug::rows(rounds));
    }
    if let Some(counts) = guest {
        rows.extend(guest::rows(counts)?);
    }
    Ok(rows)
}

/// The churn is measured against talc, as the quickest that packs as densely; the others inform.
fn churn(case: &str, rounds: usize, sizes: Sizes, gate: f64) -> Row {
    let mut figures = timed(rounds, &Churn(sizes));
    for figure in &mut figures {
        if !matches!(figure.name.as_str(), "ours" | "talc") && !figure.name.starts_with('(') {
            figure.name = format!("({})", figure.name);
        }
    }
    Row::times(case, &figures, Some(gate))
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

    // Whether it stood alone was the compiler's whim, and changed from one contestant to the next.
    #[inline(always)]
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

/// p99.9 of single turns of the log-uniform churn, in cycles of the time-stamp counter: the median of
/// several stretches, in which all have their turn.
fn tails(quick: bool) -> Row {
    let (stretches, turns) = if quick { (7, 50_000) } else { (21, 200_000) };
    let arena = || Arena::new(ARENA_BYTES);
    let ours = ours(arena());
    let (talc, rlsf, dlmalloc) =
        (peers::talc(arena()), peers::rlsf(arena()), peers::dlmalloc(arena()));
    let buddy = peers::buddy(arena());
    let mut all = [
        ("ours", tail(&ours, turns)),
        ("talc", tail(&talc, turns)),
        ("rlsf", tail(&rlsf, turns)),
        ("dlmalloc", tail(&dlmalloc, turns)),
        ("buddy_system_allocator", tail(&buddy, turns)),
    ];
    let mut samples = vec![Vec::new(); all.len()];
    for _ in 0..stretches {
        for ((_, stretch), samples) in all.iter_mut().zip(&mut samples) {
            samples.push(stretch());
        }
    }
    let names = all.iter().map(|(name, _)| *name);
    let figures: Vec<Figure> =
        names.zip(samples).map(|(name, samples)| figure(name, samples)).collect();
    let mut row = Row::times("churn, p99.9 of an alloc + free", &figures, Some(0.7));
    row.unit = "cycles";
    row
}

/// Plays so many turns and says what one in a thousand exceeds.
fn tail<'a, A: GlobalAlloc>(heap: &'a A, turns: usize) -> Box<dyn FnMut() -> f64 + 'a> {
    let mut live = Live::new(heap, 10_000, Sizes::LogUniform, 7);
    // Every heap is slow while it grows, and once.
    (0..PLAN).for_each(|_| live.turn());
    let mut samples = Vec::with_capacity(turns);
    Box::new(move || {
        samples.clear();
        for _ in 0..turns {
            // SAFETY: reads a counter.
            let before = unsafe { core::arch::x86_64::_rdtsc() };
            live.turn();
            // SAFETY: reads a counter.
            samples.push(unsafe { core::arch::x86_64::_rdtsc() } - before);
        }
        samples.sort_unstable();
        samples[turns - turns / 1000] as f64
    })
}
