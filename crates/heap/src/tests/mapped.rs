//! Blocks of their own pages: very large ones, and samples.

use std::string::{String, ToString};
use std::vec::Vec;

use super::model::{Model, Step};
use super::{heap, layout};
use crate::testing::{Arena, Ledger};
use crate::{MisuseKind, PageSource};

const MIB: usize = 1 << 20;

#[test]
fn very_large_blocks_take_the_pages_that_they_need_and_no_more() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(1000);
    let mut model = Model::new(&arena, &ledger);
    let size = MIB + 5000;
    model.apply(&Step::Alloc { size, shift: 3, zeroed: true }).unwrap();
    assert_eq!(arena.pages_out() - 16, size.div_ceil(4096), "and a chunk for the record");
    model.check();
    // Grown within its last page in place, further by a copy.
    model.apply(&Step::Resize { which: 0, size: size + 1000 }).unwrap();
    model.apply(&Step::Resize { which: 0, size: 2 * MIB }).unwrap();
    model.check();
    let block = model.heap.kalloc(layout(3 * MIB / 2, 8)).unwrap();
    let (start, mut text) = (block.as_ptr() as usize, String::new());
    model.heap.vmallocinfo(&mut text).unwrap();
    assert_eq!(text.lines().count(), 2);
    let words: Vec<_> = text.lines().next().unwrap().split_whitespace().collect();
    let size = 3 * MIB / 2 + 4096;
    assert_eq!(words[0], std::format!("{start:#018x}-{:#018x}", start + size));
    assert_eq!(words[1..], [&size.to_string(), "kmalloc-mapped", "pages=384", "vmalloc"]);
    // SAFETY: what is wrong is refused.
    unsafe {
        assert!(model.heap.kfree(block.add(4096)).is_err());
        assert_eq!(ledger.kind(), MisuseKind::Interior);
        assert!(model.heap.kfree_sized(block, layout(2 * MIB + 1, 8)).is_err());
        assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
        model.heap.kfree(block).unwrap();
        assert!(model.heap.kfree(block).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
    }
    assert_eq!(model.heap.explain(start + 100).unwrap().kind, MisuseKind::UseAfterFree);
    assert!(model.heap.explain(1000).is_none());
    model.finish();
}

#[test]
fn where_no_pages_lie_in_a_row_they_are_mapped() {
    let (arena, ledger) = (Arena::new(96), Ledger::default());
    arena.let_map(1000);
    let mut model = Model::new(&arena, &ledger);
    model.apply(&Step::Alloc { size: 10, shift: 3, zeroed: false }).unwrap();
    for _ in 0..10 {
        model.apply(&Step::Alloc { size: 100_000, shift: 3, zeroed: false }).unwrap();
    }
    model.check();
    model.finish();
}

#[test]
fn an_aligned_block_that_had_to_be_mapped_is_freed_with_its_layout() {
    let (arena, ledger) = (Arena::new(16), Ledger::default());
    arena.let_map(100);
    let heap = heap(&arena, &ledger);
    // The only chunk is needed for the records: no page is left for a run.
    let first = heap.kalloc(layout(10, 8)).unwrap();
    for size in [1, 100, 4096, 5000] {
        let block = heap.kalloc(layout(size, 4096)).unwrap();
        assert!(arena.tag(block.as_ptr() as usize).is_none(), "mapped");
        // SAFETY: live; what is wrong is refused.
        unsafe {
            assert!(heap.kfree_sized(block, layout(20_000, 8)).is_err());
            assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
            heap.kfree_sized(block, layout(size, 4096)).unwrap();
        }
    }
    // SAFETY: live.
    unsafe { heap.kfree(first) }.unwrap();
    assert!(ledger.is_clean());
}

#[test]
fn a_run_grows_in_place_where_there_is_room_behind_it() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let mut model = Model::new(&arena, &ledger);
    model.apply(&Step::Alloc { size: 64 << 10, shift: 3, zeroed: false }).unwrap();
    let before = model.live[0].ptr;
    for size in [100_000, 200_000, 500_000] {
        model.apply(&Step::Resize { which: 0, size }).unwrap();
        assert_eq!(model.live[0].ptr, before);
        model.check();
    }
    model.finish();
}

#[test]
fn samples_are_blocks_like_others_and_go_when_freed() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(100_000);
    let mut model = Model::new(&arena, &ledger);
    model.heap.set_sampling(2);
    let mut samples = 0;
    for step in 0..super::rounds(3000) {
        let size = step * 37 % 9000;
        let pages = arena.pages_out();
        model
            .apply(&Step::Alloc { size, shift: (step % 5) as u32, zeroed: step % 3 == 0 })
            .unwrap();
        samples += usize::from(arena.pages_out() % 16 != pages % 16);
        if step % 4 != 0 {
            model.apply(&Step::Free { which: step * 7, sized: step % 2 == 0 }).unwrap();
        }
        if step % 50 == 0 {
            model.check();
        }
    }
    assert!(samples > super::rounds(3000) / 100, "{samples}");
    assert!(ledger.is_clean());
    model.finish();
}

#[test]
fn what_a_sample_is_remembered_by_is_overhead_and_goes_home_with_it() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(100_000);
    let heap = heap(&arena, &ledger);
    heap.set_sampling(1);
    let sample = heap.kalloc(layout(64, 8)).unwrap();
    assert_eq!((heap.stats().live, heap.stats().cached), (64, 0));
    // SAFETY: live.
    unsafe { heap.kfree_sized(sample, layout(64, 8)) }.unwrap();
    assert_eq!(heap.stats().live, 0);
    heap.drain();
    assert_eq!((heap.stats().live, heap.stats().cached), (0, 0), "{:?}", heap.stats());
    assert_eq!(heap.stats().accounted(), heap.stats().taken);
}

#[test]
fn a_sample_is_large_enough_for_whoever_may_get_it() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(100_000);
    let mut model = Model::new(&arena, &ledger);
    model.heap.set_sampling(1);
    for size in [0, 1, 8, 33, 40, 64, 200, 1024, 2050, 2176, 4096, 8192] {
        for shift in 0..=6 {
            // What a sized free gives to a magazine is asked for again, as large as it may be.
            for size in [size, size + 7] {
                model.apply(&Step::Alloc { size, shift, zeroed: false }).unwrap();
                model.apply(&Step::Free { which: 0, sized: true }).unwrap();
            }
        }
    }
    model.check();
    // What lies in magazines goes, and is counted among what goes.
    model.apply(&Step::Shrink).unwrap();
    assert!(ledger.is_clean());
    model.finish();
}

#[test]
fn what_runs_over_a_sample_is_named() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(100);
    let heap = heap(&arena, &ledger);
    heap.set_sampling(1);
    for (offset, kind) in [(64, MisuseKind::Overflow), (-1, MisuseKind::Underflow)] {
        let block = heap.kalloc(layout(64, 8)).unwrap();
        // SAFETY: the crime; the byte lies in the sample's page.
        unsafe {
            block.offset(offset).write(7);
            assert!(heap.kfree_sized(block, layout(64, 8)).is_err());
        }
        let misuse = ledger.one();
        assert_eq!((misuse.kind, misuse.cache, misuse.size), (kind, "kmalloc-64", 64));
        assert_eq!(misuse.harm.unwrap().offset, offset);
        let end = (block.as_ptr() as usize).next_multiple_of(4096);
        assert_eq!(heap.explain(end).unwrap().kind, MisuseKind::Overflow);
        assert_eq!(heap.explain(end - 4097).unwrap().kind, MisuseKind::Underflow);
    }
    let block = heap.kalloc(layout(200, 4)).unwrap();
    // SAFETY: freed once; the second time is refused.
    unsafe {
        heap.kfree(block).unwrap();
        assert!(heap.kfree(block).is_err());
    }
    assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
    assert_eq!(heap.explain(block.as_ptr() as usize).unwrap().kind, MisuseKind::UseAfterFree);
    // The byte behind a block that ends with its page lies in the guard page.
    let byte = heap.kalloc(layout(1, 1)).unwrap();
    // SAFETY: live; what is wrong is refused.
    unsafe {
        assert!(heap.kfree(byte.add(1)).is_err());
        let misuse = ledger.one();
        assert_eq!((misuse.kind, misuse.block), (MisuseKind::Interior, byte.as_ptr() as usize));
        heap.kfree(byte).unwrap();
    }
    heap.set_sampling(0);
    let plain = heap.kalloc(layout(100, 4)).unwrap();
    assert!(arena.tag(plain.as_ptr() as usize).is_some());
}
