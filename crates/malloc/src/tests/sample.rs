//! What samples say of what was allocated, and what becomes of them.

use std::sync::atomic::Ordering;
use std::thread;

use super::rig::{Rig, check_samples, must_be_empty, rig, sampled_rig};
use crate::sample::Place;
use crate::sample::calls::Calls;
use crate::sample::chance::Sum;

fn place(rig: &Rig, pc: usize) -> Place {
    let sampled = rig.sampled().expect("it samples");
    assert_eq!(sampled.lost, Sum::NOTHING);
    let calls = Calls::one(pc);
    let nothing = Place { key: calls.key(), calls, all: Sum::NOTHING, live: Sum::NOTHING };
    let found =
        sampled.places().find(|place| place.calls.frames() == [pc]).copied().unwrap_or(nothing);
    sampled.end(&rig.system);
    found
}

/// How far an estimate of that many blocks of a size may be from the truth, in blocks: five standard deviations.
fn five_sigma(blocks: usize, bytes: usize, interval: u32) -> f64 {
    let p = 1.0 - f64::exp(-((bytes + 1) as f64) / f64::from(interval));
    // And half a block: estimates are rounded.
    5.0 * (blocks as f64 * (1.0 - p) / p).sqrt() + 0.5
}

fn must_agree(sum: Sum, blocks: usize, bytes: usize, interval: u32) {
    let allowed = five_sigma(blocks, bytes, interval);
    let (found, space) = (sum.blocks() as f64, sum.bytes() as f64);
    assert!((found - blocks as f64).abs() <= allowed, "{found} of {blocks} blocks of {bytes}");
    let right = (blocks * bytes) as f64;
    // Rounding: a byte for each sample.
    let allowed = allowed * bytes as f64 + blocks as f64;
    assert!((space - right).abs() <= allowed, "{space} of {right} bytes, blocks of {bytes}");
}

const INTERVAL: u32 = 5000;
/// Bytes and number of the blocks of each place.
const MIX: &[(usize, usize)] = &[
    (0, 40_000),
    (1, 40_000),
    (40, 40_000),
    (600, 10_000),
    (3000, 3000),
    (20_000, 300),
    (200_000, 40),
];

#[test]
#[cfg_attr(miri, ignore = "many blocks")]
fn estimates_are_near_the_truth_and_what_is_freed_goes() {
    let rig = sampled_rig(INTERVAL);
    let mut held: Vec<Vec<*mut u8>> = MIX.iter().map(|_| Vec::new()).collect();
    // All places take turns, so that each block comes after others.
    for turn in 0..40_000 {
        for (pc, &(bytes, count)) in MIX.iter().enumerate() {
            if turn % (40_000 / count) == 0 && held[pc].len() < count {
                held[pc].push(rig.sampled_alloc(bytes, pc + 1));
            }
        }
    }
    assert!(check_samples(&rig) > 1000);
    for (pc, &(bytes, count)) in MIX.iter().enumerate() {
        let found = place(&rig, pc + 1);
        assert_eq!(found.all, found.live);
        must_agree(found.live, count, bytes, INTERVAL);
    }
    // Two of three go.
    for blocks in &mut held {
        let mut number = 0;
        blocks.retain(|&block| {
            number += 1;
            if number % 3 != 0 {
                unsafe { rig.free(block) };
            }
            number % 3 == 0
        });
    }
    check_samples(&rig);
    for (pc, &(bytes, count)) in MIX.iter().enumerate() {
        let found = place(&rig, pc + 1);
        must_agree(found.live, count / 3, bytes, INTERVAL);
        must_agree(found.all, count, bytes, INTERVAL);
    }
    held.into_iter().flatten().for_each(|block| unsafe { rig.free(block) });
    for (pc, &(bytes, count)) in MIX.iter().enumerate() {
        let found = place(&rig, pc + 1);
        assert_eq!(found.live, Sum::NOTHING);
        must_agree(found.all, count, bytes, INTERVAL);
    }
    must_be_empty(&rig);
}

#[test]
#[cfg_attr(miri, ignore = "many blocks")]
fn each_way_to_allocate_counts_once() {
    const BLOCKS: usize = 4000;
    for bytes in [100_usize, 2500, 150_000] {
        let blocks = if bytes > 100_000 { 100 } else { BLOCKS };
        let rig = sampled_rig(INTERVAL);
        let mut held: Vec<*mut u8> = Vec::new();
        for _ in 0..blocks {
            held.push(rig.sampled_alloc(bytes, 1));
            held.push(rig.alloc_zeroed_from(bytes, 2));
            held.push(rig.alloc_aligned_from(bytes, 64, 3));
            held.push(rig.alloc_aligned_from(bytes, 1, 4));
            // A resize is a free and an allocation, whether the block moves or not.
            let grown = unsafe { rig.realloc_from(rig.sampled_alloc(bytes / 2, 5), bytes, 6) };
            let shrunk = unsafe { rig.realloc_from(rig.sampled_alloc(bytes * 2, 7), bytes, 8) };
            let nudged = unsafe { rig.realloc_from(rig.sampled_alloc(bytes, 9), bytes - 1, 10) };
            let first = unsafe { rig.realloc_from(std::ptr::null_mut(), bytes, 11) };
            held.extend([grown, shrunk, nudged, first]);
        }
        check_samples(&rig);
        for pc in [1, 2, 3, 4, 6, 8, 10, 11] {
            let bytes = if pc == 10 { bytes - 1 } else { bytes };
            let found = place(&rig, pc);
            must_agree(found.live, blocks, bytes, INTERVAL);
            assert_eq!(found.all, found.live);
        }
        for (pc, bytes) in [(5, bytes / 2), (7, bytes * 2), (9, bytes)] {
            let found = place(&rig, pc);
            assert_eq!(found.live, Sum::NOTHING, "place {pc}");
            must_agree(found.all, blocks, bytes, INTERVAL);
        }
        held.into_iter().for_each(|block| unsafe { rig.free(block) });
        must_be_empty(&rig);
    }
}

#[test]
fn a_resize_that_fails_leaves_the_sample_as_it_was() {
    let rig = sampled_rig(1);
    for bytes in [10, 5000, 300_000] {
        let block = rig.sampled_alloc(bytes, 77);
        let before = place(&rig, 77);
        assert!(rig.is_sample(block));
        assert!(unsafe { rig.realloc_from(block, 1 << 40, 78) }.is_null());
        let after = place(&rig, 77);
        assert_eq!((after.all, after.live), (before.all, before.live));
        assert!(rig.is_sample(block) && check_samples(&rig) == 1);
        unsafe { rig.free(block) };
    }
    must_be_empty(&rig);
}

#[test]
fn samples_are_freed_by_other_threads_and_by_those_that_come_after() {
    let rig = sampled_rig(2000);
    let (each, step) = if cfg!(miri) { (50, 97) } else { (3000, 1) };
    let blocks = thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|pc| {
                let rig = &rig;
                scope.spawn(move || {
                    let blocks: Vec<usize> = (0..each)
                        .map(|n| rig.sampled_alloc(n * step % 5000, pc) as usize)
                        .collect();
                    rig.thread_ends();
                    blocks
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(check_samples(&rig) > 0);
    thread::scope(|scope| {
        for blocks in blocks {
            let rig = &rig;
            scope.spawn(move || {
                for block in blocks {
                    unsafe { rig.free(std::ptr::with_exposed_provenance_mut(block)) };
                }
                rig.thread_ends();
            });
        }
    });
    for pc in 1..=4 {
        let found = place(&rig, pc);
        assert!(found.live == Sum::NOTHING && found.all != Sum::NOTHING);
    }
    must_be_empty(&rig);
}

#[test]
fn a_child_keeps_the_records_and_draws_other_numbers() {
    let run = |child: bool| {
        let rig = sampled_rig(300);
        let (small, large) = (rig.sampled_alloc(3000, 1), rig.sampled_alloc(200_000, 2));
        let records = check_samples(&rig);
        assert!(records > 0);
        if child {
            rig.before_fork();
            rig.system.process.store(8, Ordering::Relaxed);
            rig.after_fork_in_child();
            assert_eq!(check_samples(&rig), records);
        }
        let blocks: Vec<_> = (0..500).map(|_| rig.sampled_alloc(20, 3)).collect();
        let sampled: Vec<_> = blocks.iter().map(|&block| rig.is_sample(block)).collect();
        blocks.into_iter().chain([small, large]).for_each(|block| unsafe { rig.free(block) });
        must_be_empty(&rig);
        sampled
    };
    assert_eq!(run(false), run(false));
    assert_ne!(run(false), run(true));
}

#[test]
fn what_finds_no_room_is_said_to_be_lost() {
    let rig = sampled_rig(1);
    let first = rig.sampled_alloc(10, 1);
    // The first pages of the books are there; the next that are asked for are refused.
    let blocks: Vec<_> = (0..400)
        .map(|pc| {
            rig.system.budget.store(1, Ordering::Relaxed);
            rig.sampled_alloc(10, pc + 2)
        })
        .collect();
    rig.system.budget.store(0, Ordering::Relaxed);
    let sampled = rig.sampled().expect("it samples");
    let known = sampled.places().filter(|place| place.live != Sum::NOTHING).count();
    assert!(known > 50 && known < 128, "{known}");
    assert_eq!(known as u64 + sampled.lost.blocks(), 401);
    sampled.end(&rig.system);
    assert_eq!(check_samples(&rig), known);
    blocks.into_iter().chain([first]).for_each(|block| unsafe { rig.free(block) });
    must_be_empty(&rig);
}

#[test]
fn a_sample_is_checked_as_any_block_is() {
    use crate::{Misuse, Stop};
    for bytes in [10, 5000, 300_000] {
        let rig = sampled_rig(1);
        let block = rig.sampled_alloc(bytes, 1);
        let stopped = |at: *mut u8| {
            let freed = std::panic::AssertUnwindSafe(|| unsafe { rig.free(at) });
            let why = std::panic::catch_unwind(freed).expect_err("it is told");
            *why.downcast::<Stop>().expect("a reason")
        };
        let (inside, place) = (block.wrapping_add(64), block as usize);
        if bytes < 100_000 {
            assert_eq!(stopped(inside), Stop::Misuse(Misuse::Interior, place + 64));
            unsafe { rig.free(block) };
            assert_eq!(stopped(block), Stop::Misuse(Misuse::DoubleFree, place));
        } else {
            assert_eq!(stopped(inside), Stop::Misuse(Misuse::Foreign, place + 64));
            unsafe { rig.free(block) };
        }
        must_be_empty(&rig);
    }
}

#[test]
fn nothing_is_at_hand_where_samples_are_drawn() {
    // What is at hand is taken without being counted.
    for (rig, is_sampling) in [(sampled_rig(1 << 30), true), (rig(), false)] {
        for bytes in [5000, 32 << 10, 1 << 20] {
            for _ in 0..5 {
                let block =
                    if is_sampling { rig.sampled_alloc(bytes, 1) } else { rig.alloc(bytes) };
                unsafe { rig.free(block) };
            }
            let at_hand = rig.take_at_hand(bytes);
            assert_eq!(at_hand.is_null(), is_sampling, "{bytes}");
            unsafe { rig.free(at_hand) };
        }
        must_be_empty(&rig);
    }
}
