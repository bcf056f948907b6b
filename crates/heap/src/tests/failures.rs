//! Every step inside the heap that can fail fails once, at each place where a long mixed life comes
//! past it; and from each place on all of them fail for a while. Whatever the caller hears: the books
//! add up, no content is lost, and at the end every page comes back.

use core::cell::Cell;
use core::ptr::NonNull;
use std::vec::Vec;

use pagoda_sync::{CpuId, Cpus, RawSpin};

use super::layout;
use super::model::Block;
use crate::testing::{Arena, Ledger};
use crate::{Cache, CacheOptions, DebugError, Heap, HeapError, Shrink, Stats};

/// CPUs that one thread plays, one at a time.
#[derive(Default)]
struct Stage(Cell<usize>);

// SAFETY: one thread; it never changes CPU while pinned.
unsafe impl Cpus for &Stage {
    fn limit(&self) -> usize {
        3
    }
    fn enter(&self) -> CpuId {
        CpuId::new(self.0.get()).unwrap()
    }
    unsafe fn leave(&self) {}
}

type StageHeap<'a> = Heap<&'a Arena, &'a Stage, RawSpin, &'a Ledger>;
type Thing = [u64; 30];
type Things<'a> = Cache<'a, Thing, &'a Arena, &'a Stage, RawSpin, &'a Ledger>;

/// Has nothing to give.
struct Poor;

impl Shrink for Poor {
    fn shrink(&self, _: usize) -> usize {
        0
    }
}

static POOR: Poor = Poor;

/// One life: what is live in it, and how often something was refused.
struct Life<'a> {
    heap: &'a StageHeap<'a>,
    arena: &'a Arena,
    stage: &'a Stage,
    live: Vec<Block>,
    seen: usize,
    refused: usize,
}

impl Life<'_> {
    /// After every step near a failure: *heap-conservation*.
    fn audit(&mut self) {
        let failed = self.heap.failing.count();
        if failed != self.seen {
            self.seen = failed;
            let stats = self.heap.check().unwrap();
            assert_eq!(stats.accounted(), stats.taken, "{stats:?}");
            assert_eq!(stats.taken, self.arena.pages_out() * 4096);
            let owned: usize = self.live.iter().map(|block| block.layout.size()).sum();
            assert!(stats.live + stats.runs >= owned, "{stats:?}");
        }
    }

    fn heard<T>(&mut self, outcome: Result<T, HeapError>) -> Option<T> {
        if let Err(error) = &outcome {
            assert!(matches!(error, HeapError::OutOfPages | HeapError::Limit), "{error}");
            assert_ne!(self.heap.failing.count(), 0, "refused, though nothing failed");
            self.refused += 1;
        }
        outcome.ok()
    }

    fn alloc(&mut self, size: usize, align: usize, zeroed: bool) {
        let layout = layout(size, align);
        let outcome = match zeroed {
            true => self.heap.kalloc_zeroed(layout),
            false => self.heap.kalloc(layout),
        };
        if let Some(ptr) = self.heard(outcome) {
            // SAFETY: live, and so large.
            let is_zero = || (0..size).step_by(97).all(|at| unsafe { ptr.add(at).read() } == 0);
            assert!(!zeroed || is_zero());
            let block = Block { ptr, layout, seed: self.live.len() as u8 };
            block.fill();
            self.live.push(block);
        }
        self.audit();
    }

    fn free(&mut self, which: usize) {
        if self.live.is_empty() {
            return;
        }
        let block = self.live.swap_remove(which % self.live.len());
        block.check(block.layout.size());
        // SAFETY: live, and forgotten. A free never fails.
        unsafe {
            match which % 2 {
                0 => self.heap.kfree(block.ptr).unwrap(),
                _ => self.heap.kfree_sized(block.ptr, block.layout).unwrap(),
            }
        }
        self.audit();
    }

    fn resize(&mut self, which: usize, size: usize) {
        let Some(old) = self.live.get(which).copied() else { return };
        // SAFETY: live, with this layout.
        let outcome = unsafe { self.heap.krealloc(old.ptr, old.layout, size) };
        if let Some(ptr) = self.heard(outcome) {
            let moved = Block { ptr, ..old };
            moved.check(size.min(old.layout.size()));
            let block = Block { layout: layout(size, old.layout.align()), ..moved };
            block.fill();
            self.live[which] = block;
        } else {
            old.check(old.layout.size());
        }
        self.audit();
    }

    fn objects(&mut self, things: &Things<'_>) {
        let mut many = [None; 40];
        if let Some(()) = self.heard(things.alloc_bulk(&mut many)) {
            // SAFETY: live.
            assert!(many.iter().flatten().all(|thing| unsafe { thing.as_ref() }[29] == 5));
            self.audit();
            self.stage.0.set(1);
            // SAFETY: live, each once.
            unsafe { things.free_bulk(many.into_iter().flatten()) }.unwrap();
        } else {
            assert_eq!((many, things.live()), ([None; 40], 0), "all or nothing");
        }
        self.audit();
        self.stage.0.set(0);
    }

    fn cache<'h>(&mut self, heap: &'h StageHeap<'h>, options: CacheOptions) -> Option<Things<'h>> {
        let cache = heap.cache_with("things", || [5; 30], options);
        self.heard(cache)
    }

    /// Everything that a heap does, once around.
    fn lead(&mut self) {
        let heap = self.heap;
        let outcome = heap.add_shrinker(3, &POOR);
        self.heard(outcome);
        for options in [
            CacheOptions::default(),
            CacheOptions { limit: Some(50), ..CacheOptions::default() },
            CacheOptions { movable: true, align: 64, ..CacheOptions::default() },
        ] {
            if let Some(things) = self.cache(heap, options) {
                self.objects(&things);
                self.objects(&things);
                let mover = |from: NonNull<Thing>, _| {
                    let _ = from;
                    false
                };
                // SAFETY: nothing is moved.
                unsafe { things.compact(mover) };
            }
            self.audit();
        }
        // Enough of one size for depots to be opened and to grow: one CPU allocates, another frees.
        for size in [40, 700, 8192] {
            let before = self.live.len();
            (0..FEW * 4).for_each(|_| self.alloc(size, 8, false));
            self.stage.0.set(2);
            while self.live.len() > before + 2 {
                self.free(before);
            }
            self.stage.0.set(0);
            (0..FEW).for_each(|_| self.alloc(size, 8, true));
        }
        for (size, align) in [(9000, 8), (20_000, 1024), (40_000, 8), (100, 4096), (3 << 20, 8)] {
            self.alloc(size, align, size % 3 == 0);
            self.alloc(size, align, true);
        }
        for size in [9500, 20_000, 50_000, 100_000, 200_000, 300, 2000, 30] {
            let last = self.live.len().saturating_sub(1);
            self.resize(last / 2, size);
            self.resize(last, size);
        }
        self.heap.set_sampling(2);
        for step in 0..FEW * 3 {
            self.alloc(step * 300, 8, step % 2 == 0);
            self.free(step * 5);
        }
        self.heap.set_sampling(0);
        self.heap.drain();
        self.heap.shrink();
        self.audit();
        (0..8).for_each(|step| self.alloc(step * 1000, 32, false));
    }

    fn end(mut self) -> usize {
        self.heap.failing.clear();
        // Memory is there again: so is the service.
        self.alloc(100, 8, false);
        self.alloc(50_000, 8, true);
        while !self.live.is_empty() {
            self.free(self.live.len() / 2);
        }
        // SAFETY: one thread.
        unsafe { self.heap.drain_stopped() };
        self.heap.shrink();
        let stats = self.heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken);
        self.refused
    }
}

/// Lives with `many` failures from each place on; how many places there were, and refusals.
fn sweep(option: &'static str, many: usize, stride: usize) -> (usize, usize) {
    let mut refused = 0;
    for nth in (1..).step_by(stride) {
        let (arena, ledger, stage) = (Arena::new(2048), Ledger::default(), Stage::default());
        arena.let_map(4000);
        let heap: StageHeap<'_> = Heap::with_report(&arena, &stage, &ledger);
        heap.failing.set(nth, many);
        if let Err(error) = heap.set_debug(option) {
            assert_eq!(error, DebugError::OutOfMemory);
        }
        let mut life = Life {
            heap: &heap,
            arena: &arena,
            stage: &stage,
            live: Vec::new(),
            seen: 0,
            refused: 0,
        };
        life.audit();
        life.lead();
        let failures = heap.failing.count();
        refused += life.end();
        assert!(ledger.is_clean());
        // The records of classes in a debug mode stay; nothing else does.
        if option.is_empty() {
            assert_eq!((heap.stats(), arena.pages_out()), (Stats::default(), 0));
        } else {
            assert!(heap.stats().live <= 80 * 512, "{:?}", heap.stats());
        }
        if failures == 0 {
            return (nth, refused);
        }
    }
    unreachable!("there are not so many places")
}

/// How often a life does the same.
const FEW: usize = if cfg!(miri) { 1 } else { 6 };

/// Under Miri a life takes minutes: one with a failure in its first step, and one without any.
const STRIDE: usize = if cfg!(miri) { 100_000 } else { 1 };

#[test]
fn after_any_one_internal_failure_nothing_is_lost() {
    let (places, refused) = sweep("", 1, STRIDE);
    assert!(cfg!(miri) || places > 300, "{places} places");
    assert!(cfg!(miri) || (1..places / 20).contains(&refused), "most are got over: {refused}");
}

#[test]
#[cfg_attr(miri, ignore)] // the same places as above, for half an hour
fn after_any_stretch_of_internal_failures_nothing_is_lost() {
    for (many, stride) in [(7, STRIDE), (usize::MAX, 4 * STRIDE)] {
        let (places, refused) = sweep("", many, stride);
        assert!(cfg!(miri) || places > 300, "{places} places");
        assert!(cfg!(miri) || refused > 200, "{refused} calls heard no");
    }
}

#[test]
fn after_any_internal_failure_in_debug_modes_nothing_is_lost() {
    for (many, stride) in [(1, STRIDE), (usize::MAX, 4 * STRIDE)] {
        let (places, refused) = sweep("FZPUQ", many, stride);
        assert!(cfg!(miri) || places > 300, "{places} places");
        assert!(cfg!(miri) || refused > 0, "no call heard no");
    }
}
