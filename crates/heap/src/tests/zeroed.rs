//! What is known to be zero.

use core::ptr::NonNull;

use super::model::{Model, step};
use super::{config, heap, layout, rounds_of};
use crate::testing::{Arena, Ledger};
use proptest::prelude::*;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_a_source_gives_zeroed_is_zero_once(
        steps in prop::collection::vec(step(), 1..rounds_of(150)),
    ) {
        let (arena, ledger) = (Arena::new(1024), Ledger::default());
        arena.let_know(0);
        let mut model = Model::new(&arena, &ledger);
        for step in &steps {
            let _ = model.apply(step);
        }
        model.finish();
        prop_assert!(ledger.is_clean());
    }
}

/// The source lies, so that what is cleared can be told from what is believed to be zero.
#[test]
fn fresh_pages_that_came_zeroed_are_not_cleared_again_and_used_ones_are() {
    const LIE: u8 = 0x11;
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    arena.let_know(LIE);
    let heap = heap(&arena, &ledger);
    let of = layout(20_000, 8);
    let count = |block: NonNull<u8>, byte: u8| {
        // SAFETY: live, so large, and written by the source.
        let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), of.size()) };
        bytes.iter().filter(|&&found| found == byte).count()
    };
    // The links of the free block, and nothing else, had to go.
    let first = heap.kalloc_zeroed(of).unwrap();
    let second = heap.kalloc_zeroed(of).unwrap();
    for block in [first, second] {
        assert_eq!((count(block, LIE), count(block, 0)), (of.size() - 24, 24));
    }
    // SAFETY: live.
    unsafe {
        first.write_bytes(7, of.size());
        heap.kfree(first).unwrap();
        heap.kfree(second).unwrap();
    }
    let again = heap.kalloc_zeroed(of).unwrap();
    assert_eq!(count(again, 0), of.size(), "what somebody has owned is cleared");
    // Grown in place over fresh pages: nobody knows of them any more.
    // SAFETY: live, with its layout.
    unsafe {
        let grown = heap.krealloc(again, of, 30_000).unwrap();
        grown.write_bytes(7, 30_000);
        heap.kfree(grown).unwrap();
    }
    let twice = [(); 2].map(|()| heap.kalloc_zeroed(of).unwrap());
    assert_eq!(count(twice[0], 7) + count(twice[1], 7), 0);
}
