//! Several CPUs at once.

use core::alloc::Layout;
use core::ptr::NonNull;
use std::string::String;
use std::vec::Vec;

use super::model::Block;
use super::{heap, layout, rounds};
use crate::testing::{Arena, Ledger};
use crate::{HeapError, PageSource};

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
    assert!(cfg!(miri) || refused.into_inner() > 0, "the heap was never full");
    let stats = heap.check().unwrap();
    assert_eq!((stats.live, stats.runs, stats.accounted()), (0, 0, stats.taken));
    // SAFETY: all other threads have ended.
    unsafe { heap.drain_stopped() };
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
    assert!(ledger.is_clean());
}
