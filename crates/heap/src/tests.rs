//! The heap against a model, and with failures.
#![allow(unsafe_code)] // frees blocks, also wrongly

use core::alloc::Layout;
use std::vec::Vec;

use pagoda_sync::host::ThreadCpus;
use pagoda_sync::{CpuId, Cpus, RawSpin};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::testing::{Arena, Ledger};
use crate::{Heap, HeapError};
use model::{Model, Step, step};

/// Under Miri each step costs, and it has nothing to say about the order of locks.
#[cfg(not(miri))]
type Lock =
    pagoda_sync::Ranked<RawSpin, pagoda_sync::host::ThreadRanks, { pagoda_sync::rank::HEAP }>;
#[cfg(miri)]
type Lock = RawSpin;

pub(crate) type TestHeap<'a> = Heap<&'a Arena, TestCpus, Lock, &'a Ledger>;

/// Threads as CPUs; under Miri eight at the most, for what walks over all of them takes its time.
#[derive(Default)]
pub(crate) struct TestCpus(ThreadCpus);

// SAFETY: those of `ThreadCpus`, whose numbers are the lowest free ones.
unsafe impl Cpus for TestCpus {
    fn limit(&self) -> usize {
        if cfg!(miri) { 8 } else { self.0.limit() }
    }
    fn enter(&self) -> CpuId {
        let cpu = self.0.enter();
        assert!(cpu.index() < self.limit());
        cpu
    }
    unsafe fn leave(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.leave() };
    }
}

pub(crate) fn heap<'a>(arena: &'a Arena, ledger: &'a Ledger) -> TestHeap<'a> {
    Heap::with_report(arena, TestCpus::default(), ledger)
}

pub(crate) fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

mod caches;
mod failures;
mod hardening;
mod mapped;
mod misuse;
mod model;
mod texts;
mod threads;
mod zeroed;

/// Under Miri a step takes a second, and there is no directory for what has failed.
fn config() -> ProptestConfig {
    match cfg!(miri) {
        true => ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2) },
        false => ProptestConfig::with_cases(500),
    }
}

/// So many rounds, or under Miri a few.
fn rounds(count: usize) -> usize {
    if cfg!(miri) { count / 400 + 2 } else { count }
}

/// So many steps, or under Miri a tenth.
fn rounds_of(steps: usize) -> usize {
    if cfg!(miri) { steps / 10 + 2 } else { steps }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_sequence_keeps_contents_and_conserves_bytes(
        steps in prop::collection::vec(step(), 1..rounds_of(120)),
    ) {
        let (arena, ledger) = (Arena::new(1024), Ledger::default());
        let mut model = Model::new(&arena, &ledger);
        for step in &steps {
            let _ = model.apply(step);
            model.check();
        }
        model.finish();
    }

    #[test]
    fn debug_modes_find_nothing_where_nothing_is_wrong(
        steps in prop::collection::vec(step(), 1..rounds_of(80)),
        option in prop::sample::select(&["F", "ZP", "FZPUQ", "ZQ,kmalloc-1*;U,kmalloc-2*"][..]),
    ) {
        let (arena, ledger) = (Arena::new(2048), Ledger::default());
        let mut model = Model::new(&arena, &ledger);
        model.heap.set_debug(option).unwrap();
        for step in &steps {
            let _ = model.apply(step);
            model.check();
        }
        for block in core::mem::take(&mut model.live) {
            block.check(block.layout.size());
            // SAFETY: live, and forgotten by the model.
            unsafe { model.heap.kfree_sized(block.ptr, block.layout) }.unwrap();
        }
        model.check();
        model.heap.shrink();
        model.check();
        assert!(ledger.is_clean());
        // All that is left is the records of the debug modes themselves.
        let stats = model.heap.stats();
        assert!(stats.live + stats.cached <= 80 * 512, "{stats:?}");
    }

    #[test]
    fn after_each_page_source_failure_nothing_is_lost(
        steps in prop::collection::vec(step(), 1..rounds_of(25)),
    ) {
        for nth in 0.. {
            let (arena, ledger) = (Arena::new(1024), Ledger::default());
            let mut model = Model::new(&arena, &ledger);
            arena.fail_at(nth);
            for step in &steps {
                if model.apply(step) == Err(HeapError::OutOfPages) {
                    model.check();
                }
            }
            let all_tried = arena.fuse_is_burning();
            model.check();
            model.finish();
            if all_tried {
                break;
            }
        }
    }
}

#[test]
fn an_exhausted_source_is_an_error_and_the_heap_goes_on() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let mut model = Model::new(&arena, &ledger);
    let mut served = 0;
    while model.apply(&Step::Alloc { size: 700, shift: 3, zeroed: false }).is_ok() {
        served += 1;
    }
    assert!(served * 700 > 64 * 4096 * 8 / 10, "{served}");
    model.apply(&Step::Free { which: 0, sized: true }).unwrap();
    model.apply(&Step::Alloc { size: 700, shift: 3, zeroed: true }).unwrap();
    model.check();
    model.finish();
}

#[test]
fn absurd_sizes_are_the_callers_mistake_and_zero_is_a_block() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    assert_eq!(heap.kalloc(layout(isize::MAX as usize, 1)), Err(HeapError::TooLarge));
    assert_eq!(heap.kalloc(layout(0, 1 << 40)), Err(HeapError::TooLarge));
    assert_eq!(heap.kalloc_zeroed(layout(1 << 30, 1)), Err(HeapError::OutOfPages));
    let (a, b) = (heap.kalloc(layout(0, 1)).unwrap(), heap.kalloc(layout(0, 1)).unwrap());
    assert_ne!(a, b);
    // SAFETY: live; the sizes that cannot be leave the block alone.
    unsafe {
        assert_eq!(heap.krealloc(a, layout(0, 1), usize::MAX), Err(HeapError::TooLarge));
        heap.kfree(a).unwrap();
        heap.kfree_sized(b, layout(0, 1)).unwrap();
    }
}

#[test]
fn a_long_life_in_a_small_arena_stays_whole() {
    // Small enough to be full most of the time: squeezed, refused, and filled again.
    let (arena, ledger) = (Arena::new(48), Ledger::default());
    let mut model = Model::new(&arena, &ledger);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for round in 0..rounds(6000) {
        let step = step().new_tree(&mut runner).unwrap().current();
        let _ = model.apply(&step);
        if round % 16 == 0 {
            model.check();
        }
    }
    model.finish();
}

#[test]
fn drained_magazines_hold_nothing_and_shrink_leaves_nothing() {
    let (arena, ledger) = (Arena::new(512), Ledger::default());
    let heap = heap(&arena, &ledger);
    // As many as the interpreter's smaller arena has room for.
    let count = if cfg!(miri) { 30 } else { 70 };
    for size in [8, 100, 1000, 1100, 5000, 8192] {
        let blocks: Vec<_> = (0..count).map(|_| heap.kalloc(layout(size, 8)).unwrap()).collect();
        // SAFETY: live.
        blocks.into_iter().for_each(|block| unsafe { heap.kfree(block) }.unwrap());
    }
    let stats = heap.check().unwrap();
    assert!(stats.live == 0 && stats.cached > 0);
    assert!(stats.cached <= 6 * (16 + 128) * 1024, "{stats:?}");
    heap.drain();
    let drained = heap.stats();
    assert!(drained.cached < stats.cached);
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
    assert_eq!(arena.pages_out(), 0);
}

#[test]
fn a_growing_block_of_the_pool_stays_where_it_is() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    // The first block makes the magazines, which take their place in the pool.
    let first = heap.kalloc(layout(1100, 8)).unwrap();
    // SAFETY: live.
    unsafe { heap.kfree(first) }.unwrap();
    heap.drain();
    let block = heap.kalloc(layout(9000, 8)).unwrap();
    let mut size = 9000;
    // SAFETY: live, with this layout.
    unsafe {
        for next in [20_000, 32_000, 8000, 4000, 6000, 9000, 1100] {
            assert_eq!(heap.krealloc(block, layout(size, 8), next), Ok(block));
            size = next;
            assert!(heap.usable_size(block).unwrap() >= size);
            let stats = heap.check().unwrap();
            assert_eq!(stats.accounted(), stats.taken);
        }
        heap.kfree_sized(block, layout(size, 8)).unwrap();
    }
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
}

#[test]
fn chunks_that_two_cpus_added_at_once_and_nobody_used_go_back_too() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    for _ in 0..3 {
        let base = heap.take_pages(crate::CHUNK_ORDER, false).unwrap();
        // SAFETY: fresh pages of the right size.
        unsafe { heap.state.lock().pool.add(base, false) };
    }
    assert_eq!(heap.shrink(), 48);
    assert_eq!((arena.pages_out(), heap.stats()), (0, crate::Stats::default()));
}
