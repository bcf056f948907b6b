//! The heap against a model, with failures, and under misuse.
#![allow(unsafe_code)] // frees blocks, also wrongly

use core::alloc::Layout;
use core::ptr::NonNull;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use pagoda_sync::RawSpin;
use pagoda_sync::host::{ThreadCpus, ThreadRanks};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::testing::{Arena, Ledger};
use crate::{Heap, HeapError, MisuseKind, PageSource};

type Lock = pagoda_sync::Ranked<RawSpin, ThreadRanks, { pagoda_sync::rank::HEAP }>;
pub(crate) type TestHeap<'a> = Heap<&'a Arena, ThreadCpus, Lock, &'a Ledger>;

pub(crate) fn heap<'a>(arena: &'a Arena, ledger: &'a Ledger) -> TestHeap<'a> {
    Heap::with_report(arena, ThreadCpus, ledger)
}

pub(crate) fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

mod caches;
mod mapped;

/// Under Miri not every byte of a block is filled and compared.
const STRIDE: usize = if cfg!(miri) { 61 } else { 1 };

/// A live block as the model knows it: every byte is derived from the seed.
#[derive(Clone, Copy)]
struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
    seed: u8,
}

impl Block {
    fn byte(&self, index: usize) -> u8 {
        self.seed.wrapping_mul(31).wrapping_add((index ^ (index >> 8)) as u8)
    }

    fn fill(&self) {
        for index in (0..self.layout.size()).step_by(STRIDE) {
            // SAFETY: the block is live and this large.
            unsafe { self.ptr.add(index).write(self.byte(index)) };
        }
    }

    fn check(&self, upto: usize) {
        for index in (0..upto).step_by(STRIDE) {
            // SAFETY: the block is live and this large.
            assert_eq!(unsafe { self.ptr.add(index).read() }, self.byte(index), "byte {index}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { size: usize, shift: u32, zeroed: bool },
    Free { which: usize, sized: bool },
    Resize { which: usize, size: usize },
    Shrink,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..=64usize,
        4 => 0..=1100usize,
        3 => 1000..=9000usize,
        1 => 9000..=70_000usize,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let shift = prop_oneof![8 => 0..=4u32, 2 => 5..=10u32, 1 => 11..=14u32];
    prop_oneof![
        5 => (size(), shift, any::<bool>())
            .prop_map(|(size, shift, zeroed)| Step::Alloc { size, shift, zeroed }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, sized)| Step::Free { which, sized }),
        2 => (any::<usize>(), size()).prop_map(|(which, size)| Step::Resize { which, size }),
        1 => Just(Step::Shrink),
    ]
}

/// The naive model: a list of live blocks.
struct Model<'a> {
    arena: &'a Arena,
    heap: TestHeap<'a>,
    live: Vec<Block>,
    seed: u8,
}

impl<'a> Model<'a> {
    fn new(arena: &'a Arena, ledger: &'a Ledger) -> Self {
        Self { arena, heap: heap(arena, ledger), live: Vec::new(), seed: 0 }
    }

    fn adopt(&mut self, ptr: NonNull<u8>, layout: Layout) {
        let (start, end) = (ptr.as_ptr() as usize, ptr.as_ptr() as usize + layout.size().max(1));
        assert_eq!(start % layout.align(), 0);
        for other in &self.live {
            let from = other.ptr.as_ptr() as usize;
            assert!(end <= from || from + other.layout.size().max(1) <= start, "blocks overlap");
        }
        self.seed = self.seed.wrapping_add(1);
        let block = Block { ptr, layout, seed: self.seed };
        block.fill();
        self.live.push(block);
    }

    fn apply(&mut self, step: &Step) -> Result<(), HeapError> {
        match *step {
            Step::Alloc { size, shift, zeroed } => {
                let layout = layout(size, 1 << shift);
                let ptr = match zeroed {
                    true => self.heap.kalloc_zeroed(layout)?,
                    false => self.heap.kalloc(layout)?,
                };
                // SAFETY: live and this large.
                let byte = |index| unsafe { ptr.add(index).read() };
                assert!(!zeroed || (0..size).step_by(STRIDE).all(|index| byte(index) == 0));
                assert!(self.heap.usable_size(ptr).unwrap() >= size);
                self.adopt(ptr, layout);
            }
            Step::Free { which, sized } if !self.live.is_empty() => {
                let block = self.live.swap_remove(which % self.live.len());
                block.check(block.layout.size());
                // SAFETY: live, and forgotten by the model.
                let freed = unsafe {
                    match sized {
                        true => self.heap.kfree_sized(block.ptr, block.layout),
                        false => self.heap.kfree(block.ptr),
                    }
                };
                freed.unwrap();
            }
            Step::Resize { which, size } if !self.live.is_empty() => {
                let which = which % self.live.len();
                let old = self.live[which];
                // SAFETY: live, with this layout.
                let ptr = unsafe { self.heap.krealloc(old.ptr, old.layout, size)? };
                self.live.swap_remove(which);
                Block { ptr, ..old }.check(size.min(old.layout.size()));
                self.adopt(ptr, layout(size, old.layout.align()));
            }
            Step::Shrink => {
                let before = self.arena.pages_out();
                let pages = self.heap.shrink();
                assert_eq!(before - pages, self.arena.pages_out());
            }
            _ => {}
        }
        Ok(())
    }

    /// heap-conservation, and nothing of the model's is lost.
    fn check(&self) {
        let stats = self.heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken, "{stats:?}");
        assert_eq!(stats.taken, self.arena.pages_out() * 4096);
        let wanted: usize = self.live.iter().map(|block| block.layout.size()).sum();
        assert!(stats.live + stats.runs >= wanted);
    }

    fn finish(mut self) {
        for block in core::mem::take(&mut self.live) {
            block.check(block.layout.size());
            // SAFETY: live, and forgotten by the model.
            unsafe { self.heap.kfree(block.ptr) }.unwrap();
        }
        self.check();
        // SAFETY: no other thread knows the heap.
        unsafe { self.heap.drain_stopped() };
        self.check();
        assert_eq!(self.heap.stats().live, 0);
        self.heap.shrink();
        assert_eq!(self.arena.pages_out(), 0, "{:?}", self.heap.stats());
    }
}

/// Under Miri a step takes a second, and there is no directory for what has failed.
fn config() -> ProptestConfig {
    match cfg!(miri) {
        true => ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2) },
        false => ProptestConfig::with_cases(500),
    }
}

/// So many rounds, or under Miri a few.
fn rounds(count: usize) -> usize {
    if cfg!(miri) { count / 50 + 1 } else { count }
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
fn misuse_is_named_and_changes_nothing() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let small = heap.kalloc(layout(100, 8)).unwrap();
    let other = heap.kalloc(layout(100, 8)).unwrap();
    let run = heap.kalloc(layout(40_000, 8)).unwrap();
    let mut local = 0u64;
    // SAFETY: the one block that is really freed is not used again; the rest is refused.
    unsafe {
        heap.kfree(small).unwrap();
        assert!(heap.kfree(small).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        assert!(heap.kfree(other.add(8)).is_err());
        let misuse = ledger.one();
        assert_eq!((misuse.kind, misuse.block), (MisuseKind::Interior, other.as_ptr() as usize));
        assert_eq!(
            misuse.to_string(),
            format!(
                "heap: free of an interior pointer: {:p} is byte 8 of the 112-byte block at {:p} \
                 of kmalloc-112",
                other.add(8),
                other
            )
        );
        assert!(heap.kfree(NonNull::from(&mut local).cast()).is_err());
        assert_eq!(ledger.kind(), MisuseKind::Foreign);
        for offset in [1, 1024, 1025, 5000, 32_767] {
            assert!(heap.kfree(run.add(offset)).is_err());
            let misuse = ledger.one();
            assert_eq!((misuse.kind, misuse.block), (MisuseKind::Interior, run.as_ptr() as usize));
        }
        assert!(heap.kfree_sized(run, layout(30_000, 8)).is_err());
        assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
        // What a magazine lets in is found when it leaves: nothing of another class comes home.
        heap.kfree_sized(heap.kalloc(layout(64, 8)).unwrap(), layout(32, 8)).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
        // The header of a chunk is nobody's block.
        let base = other.as_ptr() as usize & !0xffff;
        let header = NonNull::new(core::ptr::with_exposed_provenance_mut(base)).unwrap();
        heap.kfree(header).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::Interior);
        heap.kfree(run).unwrap();
        assert!(heap.kfree(run).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        assert!(heap.krealloc(run, layout(40_000, 8), 41_000).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        // Whoever writes over the records is found out.
        header.write_bytes(0x41, 264);
        heap.kfree(other).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::Damaged);
    }
    let _ = local;
}

#[test]
#[should_panic(expected = "heap: double free")]
fn without_a_hook_misuse_stops_loudly() {
    let arena = Arena::new(64);
    let heap: Heap<_, _, Lock> = Heap::new(&arena, ThreadCpus);
    let block = heap.kalloc(layout(8, 8)).unwrap();
    // SAFETY: not used again; the second is refused.
    unsafe {
        let _ = heap.kfree(block);
        let _ = heap.kfree(block);
    }
}

#[test]
fn slabinfo_has_linuxs_columns() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    let _block = heap.kalloc(layout(64, 8)).unwrap();
    let mut text = String::new();
    heap.slabinfo(&mut text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "slabinfo - version: 2.1");
    let line = lines.iter().find(|line| line.starts_with("kmalloc-64 ")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!((words[1], words[3], words[5]), ("1", "64", "1"));
    assert_eq!((words[6], words[7], words[11], words[12]), (":", "tunables", ":", "slabdata"));
    assert_eq!(words.len(), 16);
}

#[test]
fn two_threads_that_free_each_others_blocks_lose_nothing() {
    let (arena, ledger) = (Arena::new(4096), Ledger::default());
    let heap = heap(&arena, &ledger);
    std::thread::scope(|scope| {
        let (to_b, from_a) = std::sync::mpsc::channel::<(usize, Layout)>();
        let (to_a, from_b) = std::sync::mpsc::channel::<(usize, Layout)>();
        for (seed, to, from) in [(1u64, to_b, from_b), (2, to_a, from_a)] {
            let heap = &heap;
            scope.spawn(move || {
                let mut random = seed;
                let free = |(address, layout): (usize, Layout)| {
                    let ptr = core::ptr::with_exposed_provenance_mut(address);
                    // SAFETY: the other thread gave the block away.
                    unsafe { heap.kfree_sized(NonNull::new(ptr).unwrap(), layout) }.unwrap();
                };
                for _ in 0..rounds(5000) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let layout = layout((random >> 33) as usize % 3000, 8);
                    let block = heap.kalloc(layout).unwrap();
                    to.send((block.as_ptr().expose_provenance(), layout)).unwrap();
                    from.try_iter().for_each(free);
                }
                drop(to);
                from.iter().for_each(free);
            });
        }
    });
    let stats = heap.check().unwrap();
    assert_eq!((stats.live, stats.runs), (0, 0));
    assert_eq!(stats.accounted(), stats.taken);
    // SAFETY: all other threads have ended.
    unsafe { heap.drain_stopped() };
    heap.shrink();
    assert_eq!(arena.pages_out(), 0);
    assert!(arena.tag(0).is_none());
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
fn a_write_after_free_into_the_pool_is_found_and_not_obeyed() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    let large = layout(3000, 8);
    let blocks: Vec<_> = (0..8).map(|_| heap.kalloc(large).unwrap()).collect();
    for block in blocks.iter().step_by(2) {
        // SAFETY: live.
        unsafe { heap.kfree(*block) }.unwrap();
    }
    heap.drain();
    // SAFETY: there is none: this is the crime. The bytes are the arena's.
    unsafe { blocks[2].write_bytes(0x41, 100) };
    for _ in 0..8 {
        let block = heap.kalloc(large).unwrap();
        assert_ne!(block, blocks[2], "what was written over is never given out again");
    }
    assert_eq!(ledger.kind(), MisuseKind::Damaged);
}

#[test]
fn drained_magazines_hold_nothing_and_shrink_leaves_nothing() {
    let (arena, ledger) = (Arena::new(512), Ledger::default());
    let heap = heap(&arena, &ledger);
    for size in [8, 100, 1000, 1100, 5000, 8192] {
        let blocks: Vec<_> = (0..70).map(|_| heap.kalloc(layout(size, 8)).unwrap()).collect();
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
fn what_one_cpu_frees_another_allocates() {
    let (arena, ledger) = (Arena::new(512), Ledger::default());
    let heap = heap(&arena, &ledger);
    let size = layout(64, 8);
    for _ in 0..rounds(200) {
        let blocks: Vec<_> =
            (0..100).map(|_| heap.kalloc(size).unwrap().as_ptr().expose_provenance()).collect();
        let heap = &heap;
        let free = move || {
            for address in blocks {
                let ptr = core::ptr::with_exposed_provenance_mut(address);
                // SAFETY: live, and given away.
                unsafe { heap.kfree(NonNull::new(ptr).unwrap()) }.unwrap();
            }
        };
        std::thread::scope(|scope| scope.spawn(free).join().unwrap());
    }
    // 20,000 blocks went through: they came back through the depot, not from fresh pages.
    assert!(heap.stats().taken <= 4 * 65_536, "{:?}", heap.stats());
    let stats = heap.check().unwrap();
    assert_eq!((stats.live, stats.accounted()), (0, stats.taken));
}

#[test]
fn four_cpus_in_a_full_heap_with_a_fifth_that_shrinks_lose_nothing() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let heap = heap(&arena, &ledger);
    let refused = core::sync::atomic::AtomicUsize::new(0);
    let running = core::sync::atomic::AtomicUsize::new(4);
    std::thread::scope(|scope| {
        for seed in 1..=4u64 {
            let (heap, refused, running) = (&heap, &refused, &running);
            scope.spawn(move || {
                let mut random = seed;
                let mut next = move || {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(seed * 2 + 1);
                    (random >> 33) as usize
                };
                let mut live: Vec<Block> = Vec::new();
                for step in 0..rounds(8000) {
                    // Waves: mostly allocate, then mostly free.
                    if live.is_empty()
                        || next() % 8 < if step / rounds(1000) % 2 == 0 { 5 } else { 3 }
                    {
                        let size = next() % [64, 1000, 9000, 40_000][next() % 4];
                        let layout = layout(size, 1 << (next() % 7));
                        match heap.kalloc(layout) {
                            Ok(ptr) => {
                                let block = Block { ptr, layout, seed: next() as u8 };
                                block.fill();
                                live.push(block);
                            }
                            Err(error) => {
                                assert_eq!(error, HeapError::OutOfPages);
                                refused.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                            }
                        }
                    } else {
                        let block = live.swap_remove(next() % live.len());
                        block.check(block.layout.size());
                        // SAFETY: live, and forgotten.
                        unsafe { heap.kfree_sized(block.ptr, block.layout) }.unwrap();
                    }
                }
                for block in live {
                    block.check(block.layout.size());
                    // SAFETY: live, and forgotten.
                    unsafe { heap.kfree(block.ptr) }.unwrap();
                }
                running.fetch_sub(1, core::sync::atomic::Ordering::Release);
            });
        }
        while running.load(core::sync::atomic::Ordering::Acquire) != 0 {
            heap.shrink();
            let mut text = String::new();
            heap.slabinfo(&mut text).unwrap();
            heap.stats();
            std::thread::yield_now();
        }
    });
    assert!(refused.into_inner() > 0, "the heap was never full");
    let stats = heap.check().unwrap();
    assert_eq!((stats.live, stats.runs, stats.accounted()), (0, 0, stats.taken));
    // SAFETY: all other threads have ended.
    unsafe { heap.drain_stopped() };
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
    assert!(ledger.is_clean());
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
        unsafe { heap.state.lock().pool.add(base) };
    }
    assert_eq!(heap.shrink(), 48);
    assert_eq!((arena.pages_out(), heap.stats()), (0, crate::Stats::default()));
}
