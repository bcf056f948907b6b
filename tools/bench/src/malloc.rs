//! The malloc of programs: ours beside the crates and the Debian packages that people use.
//!
//! Four parts. *static*: linked into this program, in interleaved windows of thread CPU time: *pair*
//! (one block, allocated, written and freed), *live* (100,000 live blocks; a random one is freed and
//! replaced by one of a random size: with warm caches, and *after other work*, which had them before), *cross*
//! (one thread allocates, another frees: CPU time of both), and programs of several threads:
//! [`crate::malloc_threads`]. *programs*: [`crate::malloc_programs`]. *probes*: [`crate::malloc_probes`].
//! *machines*: [`crate::malloc_machines`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::cell::RefCell;
use std::hint::black_box;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::sync_channel;

use anyhow::Result;
use pagoda_malloc::Malloc;

use crate::malloc_mimalloc2::mimalloc2;
use crate::malloc_threads::{Crowd, Mstress, Orphans, Xmalloc};
use crate::measure::{Contestant, Figure, Numbers, contest, figure, thread_time};
use crate::report::Row;
use crate::{malloc_machines, malloc_probes, malloc_programs};

/// Measures everything, or one part: static, programs or probes; the part of the machines has been
/// measured.
pub fn rows(quick: bool, only: Option<&str>, machines: Option<&Path>) -> Result<Vec<Row>> {
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted("static") {
        rows.extend(statics(quick));
    }
    if wanted("probes") {
        rows.extend(malloc_probes::rows()?);
    }
    if let Some(machines) = machines {
        rows.push(malloc_machines::row(machines)?);
    }
    if wanted("programs") {
        rows.extend(malloc_programs::rows(quick)?);
    }
    Ok(rows)
}

fn statics(quick: bool) -> Vec<Row> {
    let rounds = if quick { 5 } else { 31 };
    let mut rows = Vec::new();
    for (name, bytes) in
        [("16 B", 16), ("64 B", 64), ("1 KiB", 1 << 10), ("32 KiB", 32 << 10), ("1 MiB", 1 << 20)]
    {
        let mut row = Row::times(&format!("pair {name}"), &timed(rounds, &Pair(bytes)), Some(1.0));
        if bytes <= 64 {
            // At most 0.7 of the best peer's time, or 2.7 ns.
            row.gate = row.best_peer().map(|best| (2.7 / best).max(0.7));
        }
        rows.push(row);
    }
    let rounds = if quick { 3 } else { 9 };
    rows.push(Row::times("live 100k", &timed(rounds, &Live { warm: true }), Some(1.0)));
    let after = timed(rounds, &Live { warm: false });
    rows.push(Row::times("live 100k, after other work", &after, None));
    let rounds = if quick { 3 } else { 11 };
    rows.push(Row::times("cross 64 B", &together(rounds, &Cross), Some(1.0)));
    rows.push(Row::times("larson, two threads", &together(rounds, &Larson), None));
    rows.push(Row::times("mstress, four threads", &together(rounds, &Mstress), None));
    rows.push(Row::times("xmalloc, two pairs of threads", &together(rounds, &Xmalloc), None));
    let orphans = together(rounds, &Orphans);
    rows.push(Row::times("orphans, 60 threads one after the other", &orphans, None));
    rows
}

/// rusty_alloc brings functions only.
struct Rusty;

// SAFETY: the functions keep malloc's contract, and malloc's alignment serves what is measured here.
unsafe impl GlobalAlloc for Rusty {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        rusty_alloc::alloc::malloc(layout.size())
    }
    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller's promise.
        unsafe { rusty_alloc::alloc::free_inline(block) }
    }
}

static DLMALLOC: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Does something with everybody: ours first, then the peers.
macro_rules! everybody {
    ($work:ident, $method:ident) => {{
        let mut all = vec![
            $work.$method("ours", &Malloc),
            $work.$method("glibc", &System),
            $work.$method("dlmalloc", &DLMALLOC),
            $work.$method("jemalloc", &tikv_jemallocator::Jemalloc),
            $work.$method("mimalloc 3", &mimalloc::MiMalloc),
            $work.$method("rpmalloc", &rpmalloc::RpMalloc),
            $work.$method("snmalloc", &snmalloc_rs::SnMalloc),
            $work.$method("rusty_alloc", &Rusty),
        ];
        if let Some(two) = mimalloc2() {
            all.push($work.$method("mimalloc 2", two));
        }
        all
    }};
}

/// Work of one thread.
trait Work {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a>;
}

fn timed(rounds: usize, work: &impl Work) -> Vec<Figure> {
    contest(&mut everybody!(work, contestant), rounds)
}

struct Pair(usize);

impl Work for Pair {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a> {
        let layout = Layout::from_size_align(self.0, 8).expect("a layout");
        let places = [pairs::<A, 0>, pairs::<A, 16>, pairs::<A, 32>, pairs::<A, 48>];
        let mut turns = places.into_iter().cycle();
        Contestant::new(name, move || turns.next().map_or(0, |pairs| pairs(heap, layout)))
    }
}

/// A loop of pairs that begins so many bytes after the start of a cache line. The same loop takes up to 1.4 of its
/// time elsewhere, and where a compiler puts it is nobody's merit (Mytkowicz and others, "Producing wrong data
/// without doing anything obviously wrong", 2009): so everybody's windows are spread over the places.
#[inline(never)]
fn pairs<A: GlobalAlloc, const PLACE: usize>(heap: &A, layout: Layout) -> u64 {
    const PAIRS: u64 = 50_000;
    // SAFETY: instructions that do nothing, which end at that place.
    unsafe {
        asm!(".p2align 6", ".skip {0}, 0x90", const PLACE, options(nomem, nostack, preserves_flags));
    }
    for _ in 0..PAIRS {
        // SAFETY: the size is not zero; freed once, as it was allocated.
        unsafe {
            let block = black_box(heap.alloc(black_box(layout)));
            block.write(1);
            heap.dealloc(block, layout);
        }
    }
    PAIRS
}

/// Windows of 300,000 turns. What those of the others pushed out of the caches, 50 MiB each, has come back before,
/// when it is *warm*; else it comes back in the window.
struct Live {
    warm: bool,
}

/// Blocks of one allocator, freed when dropped.
struct Blocks<'a, A: GlobalAlloc> {
    heap: &'a A,
    blocks: Vec<(*mut u8, usize)>,
}

// SAFETY: the blocks are owned, and the allocator serves all threads.
unsafe impl<A: GlobalAlloc> Send for Blocks<'_, A> {}

impl<'a, A: GlobalAlloc> Blocks<'a, A> {
    fn new(heap: &'a A, count: usize) -> Self {
        Self { heap, blocks: vec![(std::ptr::null_mut(), 0); count] }
    }

    #[inline]
    fn replace(&mut self, index: usize, bytes: usize) {
        let layout = |bytes| Layout::from_size_align(bytes, 8).expect("a layout");
        let place = &mut self.blocks[index];
        // SAFETY: each block is freed once, as it was allocated; no size is zero.
        unsafe {
            if !place.0.is_null() {
                self.heap.dealloc(place.0, layout(place.1));
            }
            *place = (self.heap.alloc(layout(bytes)), bytes);
            place.0.write(1);
        }
    }
}

impl<A: GlobalAlloc> Drop for Blocks<'_, A> {
    fn drop(&mut self) {
        for &(block, bytes) in self.blocks.iter().filter(|block| !block.0.is_null()) {
            let layout = Layout::from_size_align(bytes, 8).expect("a layout");
            // SAFETY: as it was allocated, once.
            unsafe { self.heap.dealloc(block, layout) };
        }
    }
}

impl Work for Live {
    fn contestant<'a, A: GlobalAlloc>(&self, name: &str, heap: &'a A) -> Contestant<'a> {
        let mut numbers = Numbers::new(9);
        let mut live = Blocks::new(heap, 100_000);
        let mut turns = move |count: u64| {
            for _ in 0..count {
                let bytes = 8 + numbers.below(1017) as usize;
                live.replace(numbers.below(100_000) as usize, bytes);
            }
            count
        };
        turns(400_000);
        let (turns, warm) = (Rc::new(RefCell::new(turns)), self.warm);
        let again = turns.clone();
        Contestant {
            before: Box::new(move || _ = warm.then(|| again.borrow_mut()(600_000))),
            ..Contestant::new(name, move || turns.borrow_mut()(300_000))
        }
    }
}

fn together(rounds: usize, work: &impl Crowd) -> Vec<Figure> {
    let mut samples: Vec<(&str, Vec<f64>)> = Vec::new();
    for round in 0..=rounds {
        let figures = everybody!(work, figure);
        samples.resize(figures.len(), ("", Vec::new()));
        for ((name, spent), samples) in figures.into_iter().zip(&mut samples) {
            samples.0 = name;
            if round > 0 {
                samples.1.push(spent);
            }
        }
    }
    samples.into_iter().map(|(name, samples)| figure(name, samples)).collect()
}

struct Cross;

const BATCH: usize = 256;
const BATCHES: usize = 1000;

struct Shipment([*mut u8; BATCH]);

// SAFETY: blocks that belong to whoever has the shipment.
unsafe impl Send for Shipment {}

impl Crowd for Cross {
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64 {
        let layout = Layout::new::<[u64; 8]>();
        let (to, from) = sync_channel::<Shipment>(4);
        let taker = std::thread::spawn(move || {
            let mut spent = 0.0;
            for shipment in from {
                let before = thread_time();
                for block in shipment.0 {
                    // SAFETY: allocated with this layout, and freed here only.
                    unsafe { heap.dealloc(block, layout) };
                }
                spent += (thread_time() - before).as_nanos() as f64;
            }
            spent
        });
        let mut spent = 0.0;
        for _ in 0..BATCHES {
            let before = thread_time();
            let mut shipment = Shipment([std::ptr::null_mut(); BATCH]);
            for block in &mut shipment.0 {
                // SAFETY: the layout is not empty.
                unsafe {
                    *block = heap.alloc(layout);
                    block.write(1);
                }
            }
            spent += (thread_time() - before).as_nanos() as f64;
            to.send(shipment).expect("the taker listens");
        }
        drop(to);
        (spent + taker.join().expect("the taker ends")) / (BATCH * BATCHES) as f64
    }
}

struct Larson;

impl Crowd for Larson {
    fn spent<A: GlobalAlloc + Sync>(&self, heap: &'static A) -> f64 {
        const LIVES: u64 = 8;
        const TURNS: u64 = 20_000;
        let life = |mut live: Blocks<'static, A>, seed| {
            move || {
                let before = thread_time();
                let mut numbers = Numbers::new(seed);
                for _ in 0..TURNS {
                    let index = numbers.below(live.blocks.len() as u64) as usize;
                    live.replace(index, 10 + numbers.below(490) as usize);
                }
                ((thread_time() - before).as_nanos() as f64, live)
            }
        };
        let mut spent = 0.0;
        let mut estates = [Blocks::new(heap, 1000), Blocks::new(heap, 1000)].map(Some);
        for round in 0..LIVES {
            let threads = estates.each_mut().map(|estate| {
                let blocks = estate.take().expect("left by the one before");
                let seed = round * 2 + 77 + u64::from(blocks.blocks[0].0.is_null());
                std::thread::spawn(life(blocks, seed))
            });
            for (thread, estate) in threads.into_iter().zip(&mut estates) {
                let (time, blocks) = thread.join().expect("no panic inside");
                spent += time;
                *estate = Some(blocks);
            }
        }
        spent / (2 * LIVES * TURNS) as f64
    }
}
