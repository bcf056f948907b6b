//! Hardened free lists.

use core::ptr::NonNull;
use std::vec::Vec;

use super::model::{Model, step};
use super::{config, heap, layout, rounds_of};
use crate::MisuseKind;
use crate::testing::{Arena, Ledger};
use proptest::prelude::*;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_hardened_heap_is_a_heap(
        secret in any::<u64>(),
        at in 0..40usize,
        steps in prop::collection::vec(step(), 1..rounds_of(80)),
    ) {
        let (arena, ledger) = (Arena::new(1024), Ledger::default());
        let mut model = Model::new(&arena, &ledger);
        for (index, step) in steps.iter().enumerate() {
            if index == at {
                model.heap.harden(secret);
            }
            let _ = model.apply(step);
            model.check();
        }
        model.finish();
        prop_assert!(ledger.is_clean());
    }
}

#[test]
fn the_order_of_a_fresh_slab_is_known_only_to_who_knows_the_secret() {
    let order = |secret: Option<u64>| {
        let (arena, ledger) = (Arena::new(64), Ledger::default());
        let heap = heap(&arena, &ledger);
        if let Some(secret) = secret {
            heap.harden(secret);
        }
        // What is a refill's is handed out from its end.
        let all: Vec<usize> =
            (0..60).map(|_| heap.kalloc(layout(64, 8)).unwrap().as_ptr() as usize).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 60);
        all.iter().map(|block| block.wrapping_sub(all[0])).collect::<Vec<_>>()
    };
    assert_eq!(order(None), order(None));
    assert_eq!(order(Some(7)), order(Some(7)));
    assert_ne!(order(Some(7)), order(Some(8)));
    // Of neighbours in time, how many are neighbours in space? Two of four in each refill.
    let steps = |order: Vec<usize>| {
        order.windows(2).filter(|two| two[0].wrapping_sub(two[1]).wrapping_add(64) <= 128).count()
    };
    assert!(steps(order(None)) > 25);
    assert!(steps(order(Some(7))) < 12);
}

#[test]
fn links_in_free_blocks_lead_nowhere_and_cannot_be_copied() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    heap.harden(0x1234_5678_9abc_def0);
    let large = layout(3000, 8);
    let blocks: Vec<_> = (0..8).map(|_| heap.kalloc(large).unwrap()).collect();
    for block in blocks.iter().step_by(2) {
        // SAFETY: live.
        unsafe { heap.kfree(*block) }.unwrap();
    }
    heap.drain();
    let words = |block: NonNull<u8>| {
        // SAFETY: the bytes are the arena's, and were written by the heap.
        (0..3).map(|at| unsafe { block.cast::<usize>().add(at).read() }).collect::<Vec<_>>()
    };
    let start = blocks.iter().map(|block| block.as_ptr() as usize).min().unwrap();
    for block in blocks.iter().step_by(2) {
        assert!(words(*block).iter().all(|word| word.abs_diff(start) > 1 << 20), "an address");
    }
    // SAFETY: there is none: the crime. What is true of one block is copied into another.
    unsafe { blocks[2].copy_from_nonoverlapping(blocks[4], 24) };
    for _ in 0..8 {
        assert_ne!(heap.kalloc(large).unwrap(), blocks[2]);
    }
    assert_eq!(ledger.kind(), MisuseKind::Damaged);
}
