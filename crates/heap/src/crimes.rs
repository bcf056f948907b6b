//! The misuse corpus: one crime a test, each found in debug mode and named.
#![allow(unsafe_code)] // commits crimes

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::ToString;
use std::vec::Vec;

use crate::testing::{Arena, Ledger};
use crate::tests::{TestCpus, TestHeap, heap, layout};
use crate::{DebugError, Heap, HeapError, Misuse, MisuseKind};
use pagoda_sync::{CpuId, Cpus, RawSpin};

/// Commits a crime in a heap with these debug modes; the only report.
fn found(option: &'static str, crime: impl FnOnce(&TestHeap<'_>)) -> Misuse {
    let (arena, ledger) = (Arena::new(4096), Ledger::default());
    let heap = heap(&arena, &ledger);
    heap.set_debug(option).unwrap();
    crime(&heap);
    ledger.one()
}

fn alloc(heap: &TestHeap<'_>, size: usize) -> NonNull<u8> {
    heap.kalloc(layout(size, 8)).unwrap()
}

/// Frees by force.
fn free(heap: &TestHeap<'_>, block: NonNull<u8>) -> bool {
    // SAFETY: crimes have none; whatever is not a live block is refused.
    unsafe { heap.kfree(block) }.is_ok()
}

/// Writes where one should not.
fn poke(block: NonNull<u8>, offset: isize) {
    // SAFETY: none, but the bytes belong to the arena.
    unsafe {
        let byte = block.offset(offset);
        byte.write(byte.read() ^ 0x55);
    }
}

fn peek(block: NonNull<u8>, offset: usize) -> u8 {
    // SAFETY: none, but the byte belongs to the arena.
    unsafe { block.add(offset).read() }
}

#[test]
fn overflow_by_one() {
    for size in [1, 17, 40, 64, 100, 1000, 1024, 1500, 5000, 8192] {
        let misuse = found("FZ", |heap| {
            let block = alloc(heap, size);
            poke(block, size as isize);
            assert!(!free(heap, block));
        });
        assert_eq!((misuse.kind, misuse.size), (MisuseKind::Overflow, size));
        let harm = misuse.harm.unwrap();
        assert_eq!((harm.offset, harm.bytes, harm.expected), (size as isize, 1, 0xcc));
    }
}

#[test]
fn underflow_by_one() {
    for size in [1, 64, 1024, 5000] {
        let misuse = found("FZ", |heap| {
            let block = alloc(heap, size);
            poke(block, -1);
            assert!(!free(heap, block));
        });
        assert_eq!(misuse.kind, MisuseKind::Underflow);
        assert_eq!(misuse.harm.unwrap().offset, -1);
    }
}

#[test]
fn both_stories_are_told() {
    let misuse = found("FZPU", |heap| {
        let block = alloc(heap, 100);
        assert!(free(heap, block));
        poke(block, 9);
        let _ = alloc(heap, 100);
    });
    let text = misuse.to_string();
    let of = |what: &str| text.contains(what);
    assert!(of("heap: write after free") && of("byte 0 of the 112-byte block"), "{text}");
    assert!(of("of kmalloc-112; 1 bytes from offset 9 on, 0x3e instead of 0x6b"), "{text}");
    assert!(of("; allocated on cpu") && of(" 0x1001; freed on cpu") && text.ends_with(" 0x1002"));
}

#[test]
fn write_after_free_found_at_reuse() {
    for size in [8, 100, 3000] {
        let misuse = found("P", |heap| {
            let block = alloc(heap, size);
            assert!(free(heap, block));
            poke(block, size as isize - 1);
            assert_ne!(alloc(heap, size), block, "damaged objects are not handed out");
        });
        assert_eq!(misuse.kind, MisuseKind::UseAfterFree);
    }
}

#[test]
fn write_after_free_found_in_quarantine() {
    let misuse = found("PQ", |heap| {
        let block = alloc(heap, 50);
        assert!(free(heap, block));
        poke(block, 3);
        assert_ne!(alloc(heap, 50), block);
        heap.shrink();
    });
    assert_eq!((misuse.kind, misuse.harm.unwrap().offset), (MisuseKind::UseAfterFree, 3));
}

#[test]
fn reads_after_free_and_before_the_first_write_see_junk() {
    let (arena, ledger) = (Arena::new(4096), Ledger::default());
    let heap = heap(&arena, &ledger);
    heap.set_debug("P").unwrap();
    let block = alloc(&heap, 64);
    assert_eq!((peek(block, 0), peek(block, 63)), (0x5a, 0x5a));
    assert!(free(&heap, block));
    assert_eq!((peek(block, 0), peek(block, 62), peek(block, 63)), (0x6b, 0x6b, 0xa5));
    let zeroed = heap.kalloc_zeroed(layout(64, 8)).unwrap();
    assert!((0..64).all(|at| peek(zeroed, at) == 0));
    assert!(ledger.is_clean());
}

#[test]
fn double_free_at_once() {
    for option in ["F", "FZPUQ"] {
        let misuse = found(option, |heap| {
            let block = alloc(heap, 64);
            assert!(free(heap, block));
            assert!(!free(heap, block));
        });
        assert_eq!(misuse.kind, MisuseKind::DoubleFree);
    }
}

#[test]
fn double_free_after_other_frees() {
    let misuse = found("F", |heap| {
        let (block, other) = (alloc(heap, 64), alloc(heap, 64));
        assert!(free(heap, block) && free(heap, other));
        assert!(!free(heap, block));
    });
    assert_eq!(misuse.kind, MisuseKind::DoubleFree);
}

#[test]
fn double_free_in_a_build_without_debug_modes() {
    // Found at the latest when the magazine is emptied.
    let misuse = found("", |heap| {
        let (block, other) = (alloc(heap, 64), alloc(heap, 64));
        assert!(free(heap, block) && free(heap, other) && free(heap, block));
        heap.drain();
    });
    assert_eq!(misuse.kind, MisuseKind::DoubleFree);
}

#[test]
fn free_of_an_interior_pointer() {
    for (size, offset) in [(64, 1), (64, 8), (100, 16), (1000, 512), (5000, 1024), (5000, 64)] {
        let misuse = found("F", |heap| {
            let block = alloc(heap, size);
            // SAFETY: inside the block.
            assert!(!free(heap, unsafe { block.add(offset) }));
        });
        assert_eq!(misuse.kind, MisuseKind::Interior);
        assert_eq!(misuse.address - misuse.block, offset);
    }
}

#[test]
fn free_of_a_pointer_to_the_stack_or_a_static() {
    static SOMETHING: u64 = 5;
    let mut local = 0u64;
    for pointer in [NonNull::from(&mut local), NonNull::from(&SOMETHING)] {
        let misuse = found("F", |heap| assert!(!free(heap, pointer.cast())));
        assert_eq!(misuse.kind, MisuseKind::Foreign);
    }
}

#[test]
fn free_to_another_heap() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let other = heap(&arena, &ledger);
    let block = alloc(&other, 64);
    let misuse = found("", |heap| assert!(!free(heap, block)));
    assert_eq!((misuse.kind, misuse.address), (MisuseKind::Foreign, block.as_ptr() as usize));
}

#[test]
fn wrong_layout() {
    for (size, claimed) in [(64, 63), (64, 65), (64, 300), (100, 4000), (5000, 16), (20_000, 64)] {
        let misuse = found("F", |heap| {
            let block = alloc(heap, size);
            // SAFETY: the crime.
            assert!(unsafe { heap.kfree_sized(block, layout(claimed, 8)) }.is_err());
        });
        assert_eq!(misuse.kind, MisuseKind::WrongLayout, "{size} freed as {claimed}");
    }
}

#[test]
fn wrong_cache() {
    for option in ["", "FZPU"] {
        let misuse = found(option, |heap| {
            let (mine, yours) =
                (heap.cache("mine", || [1u8; 40]).unwrap(), heap.cache("yours", || 0u64).unwrap());
            let object = mine.alloc_raw().unwrap();
            // SAFETY: the crime.
            assert!(unsafe { yours.free_raw(object.cast()) }.is_err());
            // SAFETY: live.
            unsafe { mine.free_raw(object) }.unwrap();
        });
        assert_eq!((misuse.kind, misuse.cache), (MisuseKind::WrongCache, "mine"));
    }
}

#[test]
fn a_cache_object_to_kfree_and_a_block_to_a_cache() {
    let misuse = found("", |heap| {
        let cache = heap.cache("mine", || [1u8; 40]).unwrap();
        let object = cache.alloc().unwrap();
        assert!(!free(heap, NonNull::from(&*object).cast()));
    });
    assert_eq!((misuse.kind, misuse.cache), (MisuseKind::WrongCache, "mine"));
    let misuse = found("F", |heap| {
        let cache = heap.cache("mine", || [1u8; 40]).unwrap();
        // SAFETY: the crime.
        assert!(unsafe { cache.free_raw(alloc(heap, 40).cast()) }.is_err());
    });
    assert_eq!((misuse.kind, misuse.cache), (MisuseKind::WrongCache, "kmalloc-40"));
}

#[test]
fn overflow_of_a_cache_object() {
    let misuse = found("Z,sevens", |heap| {
        let cache = heap.cache("sevens", || [7u8; 7]).unwrap();
        let object = cache.alloc().unwrap().into_raw();
        poke(object.cast(), 7);
        // SAFETY: live; refused for the damage.
        assert!(unsafe { cache.free_raw(object) }.is_err());
        core::mem::forget(cache);
    });
    assert_eq!((misuse.kind, misuse.cache), (MisuseKind::Overflow, "sevens"));
    assert_eq!(misuse.harm.unwrap().offset, 7);
}

#[test]
fn constructor_state_lost() {
    let misuse = found("P", |heap| {
        let cache = heap.cache("sevens", || [7u8; 100]).unwrap();
        let mut object = cache.alloc().unwrap();
        object[5] = 8;
        let stale = NonNull::from(&mut *object);
        drop(object);
        assert_eq!(cache.alloc().unwrap()[5], 8, "what the owner left is what the next one gets");
        poke(stale.cast(), 50);
        let _next = cache.alloc().unwrap();
        core::mem::forget(_next);
        core::mem::forget(cache);
    });
    assert_eq!((misuse.kind, misuse.cache), (MisuseKind::UseAfterFree, "sevens"));
}

#[test]
fn a_leak_at_the_end_of_a_cache() {
    let misuse = found("U", |heap| {
        let cache = heap.cache("sevens", || [7u8; 7]).unwrap();
        let _ = cache.alloc().unwrap().into_raw();
    });
    assert_eq!((misuse.kind, misuse.cache, misuse.size), (MisuseKind::Leak, "sevens", 1));
}

#[test]
fn leaks_on_request() {
    let (arena, ledger) = (Arena::new(4096), Ledger::default());
    let heap = heap(&arena, &ledger);
    heap.set_debug("U,kmalloc-*;UQ,kmalloc-64").unwrap();
    let kept = alloc(&heap, 77);
    for size in [77, 60, 1500] {
        let block = alloc(&heap, size);
        assert!(free(&heap, block));
    }
    let mut leaks = Vec::new();
    heap.live_objects(|object| leaks.push(*object));
    assert_eq!(leaks.len(), 1);
    assert_eq!((leaks[0].address, leaks[0].size), (kept.as_ptr() as usize, 77));
    assert_eq!((leaks[0].cache, leaks[0].allocated.unwrap().frames[0]), ("kmalloc-80", 0x1001));
}

#[test]
fn records_written_over() {
    // The record behind the object, past its red zone.
    let misuse = found("FZ", |heap| {
        let block = alloc(heap, 64);
        for offset in 80..88 {
            poke(block, offset);
        }
        assert!(!free(heap, block));
    });
    assert_eq!(misuse.kind, MisuseKind::Damaged);
    // The header in front of a slab.
    let misuse = found("F", |heap| {
        let block = alloc(heap, 64);
        let slab = block.as_ptr() as usize & !0xfff;
        poke(NonNull::new(core::ptr::with_exposed_provenance_mut(slab)).unwrap(), 2);
        assert!(!free(heap, block));
    });
    assert_eq!(misuse.kind, MisuseKind::Damaged);
}

#[test]
fn resizing_what_is_not_there() {
    for option in ["", "FZPUQ"] {
        let misuse = found(option, |heap| {
            let block = alloc(heap, 64);
            assert!(free(heap, block));
            heap.drain();
            // SAFETY: the crime.
            let resized = unsafe { heap.krealloc(block, layout(64, 8), 900) };
            assert_eq!(resized, Err(HeapError::Misuse(MisuseKind::DoubleFree)));
        });
        assert_eq!(misuse.kind, MisuseKind::DoubleFree);
    }
}

#[test]
fn pages_freed_twice_or_from_their_middle() {
    let misuse = found("", |heap| {
        let run = alloc(heap, 100_000);
        // SAFETY: inside the block.
        assert!(!free(heap, unsafe { run.add(70_000) }));
        assert!(free(heap, run));
    });
    assert_eq!((misuse.kind, misuse.address - misuse.block), (MisuseKind::Interior, 70_000));
    let misuse = found("", |heap| {
        let run = alloc(heap, 100_000);
        assert!(free(heap, run));
        assert!(!free(heap, run));
    });
    assert_eq!(misuse.kind, MisuseKind::DoubleFree);
}

#[test]
fn an_option_that_means_nothing_is_refused() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    let DebugError::BadOption(bad) = heap.set_debug("FZ,kmalloc-8;X").unwrap_err() else {
        panic!()
    };
    assert_eq!(bad.0, 'X');
    assert_eq!(alloc(&heap, 8).as_ptr() as usize % 8, 0);
}

#[test]
fn a_mode_for_one_class_leaves_the_others_alone() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    heap.set_debug("FZP,kmalloc-64").unwrap();
    let (guarded, plain) = (alloc(&heap, 60), alloc(&heap, 40));
    assert_eq!(heap.usable_size(guarded), Ok(60));
    assert_eq!(heap.usable_size(plain), Ok(40));
    assert!(free(&heap, guarded) && free(&heap, plain));
    assert_eq!(alloc(&heap, 40), plain, "the fast way");
    let stats = heap.check().unwrap();
    assert_eq!(stats.accounted(), stats.taken);
    assert!(ledger.is_clean());
}

/// CPUs that assert what a kernel's do: no handler of hard interrupts pins.
struct Watched<'a>(TestCpus, &'a AtomicBool);

// SAFETY: those inside.
unsafe impl Cpus for Watched<'_> {
    fn limit(&self) -> usize {
        self.0.limit()
    }
    fn enter(&self) -> CpuId {
        assert!(!self.1.load(Relaxed), "a handler of hard interrupts allocated or freed");
        self.0.enter()
    }
    unsafe fn leave(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.leave() };
    }
}

#[test]
fn allocation_and_free_in_a_forbidden_context() {
    let (arena, ledger, handler) = (Arena::new(256), Ledger::default(), AtomicBool::new(false));
    let cpus = Watched(TestCpus::default(), &handler);
    let heap: Heap<_, _, RawSpin, _> = Heap::with_report(&arena, cpus, &ledger);
    let cache = heap.cache("things", || 1u64).unwrap();
    let sizes = [8, 1000, 5000, 20_000, 100_000];
    let blocks = sizes.map(|size| heap.kalloc(layout(size, 8)).unwrap());
    let object = cache.alloc_raw().unwrap();
    let before = heap.stats();
    handler.store(true, Relaxed);
    let caught = |crime: &dyn Fn() -> bool| {
        let payload = catch_unwind(AssertUnwindSafe(crime)).unwrap_err();
        let said = payload.downcast_ref::<&str>().unwrap();
        assert_eq!(*said, "a handler of hard interrupts allocated or freed");
    };
    for (block, size) in blocks.into_iter().zip(sizes) {
        caught(&|| heap.kalloc(layout(size, 8)).is_ok());
        caught(&|| heap.kalloc_zeroed(layout(size, 8)).is_ok());
        // SAFETY: none of them gets so far.
        unsafe {
            caught(&|| heap.kfree(block).is_ok());
            caught(&|| heap.kfree_sized(block, layout(size, 8)).is_ok());
            caught(&|| heap.krealloc(block, layout(size, 8), 3 * size).is_ok());
        }
    }
    caught(&|| cache.alloc_raw().is_ok());
    // SAFETY: as above.
    caught(&|| unsafe { cache.free_raw(object) }.is_ok());
    handler.store(false, Relaxed);
    assert_eq!(heap.stats(), before, "and nothing has happened");
    // SAFETY: live, each once.
    unsafe {
        blocks.into_iter().for_each(|block| heap.kfree(block).unwrap());
        cache.free_raw(object).unwrap();
    }
    assert!(ledger.is_clean());
}

#[test]
fn free_from_another_cpu_after_teardown() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache("short-lived", || [7u64; 4]).unwrap();
    let objects: Vec<usize> =
        (0..6).map(|_| cache.alloc_raw().unwrap().as_ptr().expose_provenance()).collect();
    let object = |at: usize| {
        let pointer = core::ptr::with_exposed_provenance_mut::<[u64; 4]>(objects[at]);
        NonNull::new(pointer).unwrap()
    };
    std::thread::scope(|scope| {
        // In time: what lies in the other CPU's magazine is no leak.
        let other = || {
            // SAFETY: live, each once.
            (0..5).for_each(|at| unsafe { cache.free_raw(object(at)) }.unwrap());
        };
        scope.spawn(other).join().unwrap();
    });
    drop(cache);
    let misuse = ledger.one();
    assert_eq!((misuse.kind, misuse.size, misuse.cache), (MisuseKind::Leak, 1, "short-lived"));
    assert_eq!(misuse.block, objects[5]);
    // Too late.
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(!free(&heap, object(5).cast()))).join().unwrap();
    });
    let misuse = ledger.one();
    assert_eq!((misuse.kind, misuse.cache), (MisuseKind::WrongCache, "short-lived"));
    // SAFETY: leaked, and nobody else's.
    assert_eq!(unsafe { object(5).read() }, [7; 4]);
    heap.check().unwrap();
}
