//! Object caches: what comes out is constructed, and where everything is, is known.

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::{heap, layout, rounds};
use crate::testing::{Arena, Ledger};
use crate::{CacheOptions, HeapError, MisuseKind, Shrink};

#[test]
fn a_cache_keeps_its_objects_constructed() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    {
        let cache = heap.cache::<String>("names", || String::from("fresh")).unwrap();
        let mut first = cache.alloc().unwrap();
        assert_eq!(*first, "fresh");
        first.push_str(", used");
        drop(first);
        assert_eq!(*cache.alloc().unwrap(), "fresh, used");
        let many: Vec<_> = (0..300).map(|_| cache.alloc().unwrap()).collect();
        assert_eq!(cache.live(), 300);
        let mut text = String::new();
        heap.slabinfo(&mut text).unwrap();
        let line = text.lines().find(|line| line.starts_with("names ")).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some("300"));
        let raw = many.into_iter().next().unwrap().into_raw();
        // SAFETY: the raw object is given back once.
        unsafe {
            assert!(heap.kfree(raw.cast()).is_err());
            assert_eq!(ledger.kind(), MisuseKind::WrongCache);
            let other = heap.cache::<String>("others", String::new).unwrap();
            assert!(other.free_raw(raw).is_err());
            assert_eq!(ledger.kind(), MisuseKind::WrongCache);
            cache.free_raw(raw).unwrap();
            assert!(cache.free_raw(raw).is_err());
            assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        }
        heap.check().unwrap();
    }
    heap.shrink();
    assert_eq!(arena.pages_out(), 0);
}

#[test]
fn a_cache_dropped_with_live_objects_names_the_leak() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache::<[u64; 9]>("nines", || [0; 9]).unwrap();
    let object = cache.alloc_raw().unwrap();
    drop(cache);
    assert_eq!(
        ledger.one().to_string(),
        format!("heap: leaked objects: 1 objects of nines are still live, one at {object:p}")
    );
    // SAFETY: the object was leaked, not given back.
    assert_eq!(unsafe { object.read() }, [0; 9]);
    assert!(heap.check().is_ok());
}

#[test]
fn objects_larger_than_a_page_and_aligned_to_one_have_caches_too() {
    #[repr(align(4096))]
    struct Large([u8; 5000]);
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache::<Large>("large", || Large([7; 5000])).unwrap();
    let objects: Vec<_> = (0..20).map(|_| cache.alloc().unwrap()).collect();
    for object in &objects {
        assert_eq!(&raw const **object as usize % 4096, 0);
        assert!(object.0.iter().all(|&byte| byte == 7));
    }
    let stats = heap.check().unwrap();
    assert_eq!(stats.accounted(), stats.taken);
}

#[test]
fn magazines_of_a_cache_give_back_what_they_hold_when_memory_is_short() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache::<[u64; 32]>("thirty-two", || [3; 32]).unwrap();
    let mut all = Vec::new();
    while let Ok(object) = cache.alloc_raw() {
        // SAFETY: live.
        assert_eq!(unsafe { object.read() }, [3; 32]);
        all.push(object);
    }
    assert!(all.len() * 256 > 64 * 4096 / 2, "{}", all.len());
    let whole = cache.stats();
    assert_eq!((whole.live, whole.cached, whole.stride), (all.len(), 0, 256));
    // SAFETY: each is freed once.
    unsafe { cache.free_bulk(all.drain(..)) }.unwrap();
    assert_eq!(cache.live(), 0);
    assert!(cache.stats().cached > 0);
    let stats = heap.check().unwrap();
    assert_eq!(stats.accounted(), stats.taken);
    heap.drain();
    assert_eq!((cache.stats().cached, cache.stats().slabs), (0, 1));
    heap.shrink();
    assert_eq!((cache.stats().slabs, cache.stats().bytes), (0, 0));
    drop(cache);
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
    assert!(ledger.is_clean());
}

#[test]
fn each_object_is_constructed_once_and_dropped_once() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted(u64);
    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap
        .cache("counted", || {
            ALIVE.fetch_add(1, Ordering::Relaxed);
            Counted(9)
        })
        .unwrap();
    for round in 0..rounds(500) {
        let some: Vec<_> = (0..round % 40).map(|_| cache.alloc().unwrap()).collect();
        assert!(some.iter().all(|object| object.0 == 9));
        let stats = cache.stats();
        let known = stats.live + stats.cached + stats.free;
        assert_eq!(known, ALIVE.load(Ordering::Relaxed), "each object is somewhere");
    }
    drop(cache);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
    assert!(ledger.is_clean());
}

#[test]
fn a_limit_is_kept_to_the_object() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let options = CacheOptions { limit: Some(10), ..CacheOptions::default() };
    let cache = heap.cache_with("ten", || 0u32, options).unwrap();
    let mut ten = [None; 10];
    cache.alloc_bulk(&mut ten).unwrap();
    assert_eq!(cache.alloc().unwrap_err(), HeapError::Limit);
    assert!(cache.set_limit(12));
    let mut three = [None; 3];
    assert_eq!(cache.alloc_bulk(&mut three), Err(HeapError::Limit));
    assert_eq!((three, cache.live()), ([None; 3], 10), "all or nothing");
    // SAFETY: live, each once.
    unsafe { cache.free_bulk(ten.into_iter().flatten()) }.unwrap();
    assert_eq!(cache.live(), 0);
    let unlimited = heap.cache("any", || 0u32).unwrap();
    assert!(!unlimited.set_limit(3));
}

#[test]
fn objects_of_different_slabs_begin_at_different_offsets_where_there_is_room() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let heap = heap(&arena, &ledger);
    let offsets = |colour| {
        let options = CacheOptions { align: 64, colour, ..CacheOptions::default() };
        let cache = heap.cache_with("coloured", || [1u64; 64], options).unwrap();
        let all: Vec<_> = (0..200).map(|_| cache.alloc().unwrap()).collect();
        let mut offsets: Vec<_> =
            all.iter().map(|object| &raw const **object as usize % 512).collect();
        assert!(all.iter().all(|object| **object == [1; 64]));
        assert!(offsets.iter().all(|offset| offset % 64 == 0));
        let stats = heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken);
        offsets.sort_unstable();
        offsets.dedup();
        offsets.len()
    };
    assert_eq!(offsets(false), 1);
    assert!(offsets(true) > 3, "{}", offsets(true));
    assert!(ledger.is_clean());
}

#[test]
fn objects_that_can_be_moved_leave_few_slabs() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let heap = heap(&arena, &ledger);
    let options = CacheOptions { movable: true, ..CacheOptions::default() };
    let cache = heap.cache_with("movable", || Cell::new([0usize; 8]), options).unwrap();
    let mut all: Vec<_> = (0..1500).map(|_| cache.alloc_raw().unwrap()).collect();
    for (index, object) in all.iter().enumerate() {
        // SAFETY: live.
        unsafe { object.as_ref() }.set([index; 8]);
    }
    let many = cache.stats().slabs;
    let mut kept = Vec::new();
    for (index, object) in all.drain(..).enumerate() {
        match index % 10 {
            0 => kept.push(object),
            // SAFETY: live, not used again.
            _ => unsafe { cache.free_raw(object) }.unwrap(),
        }
    }
    let stubborn = kept[7];
    let mover = |from: NonNull<Cell<[usize; 8]>>, to: NonNull<Cell<[usize; 8]>>| {
        if from == stubborn {
            return false;
        }
        let known = kept.iter_mut().find(|object| **object == from).unwrap();
        // SAFETY: both are constructed; the first is ours, the second was handed to us.
        unsafe { to.as_ref().set(from.as_ref().get()) };
        *known = to;
        true
    };
    // SAFETY: the list above is all who know of the objects.
    let moved = unsafe { cache.compact(mover) };
    let few = cache.stats().slabs;
    assert!(moved > 100 && few * 4 < many, "{moved} moved, {many} slabs became {few}");
    assert_eq!(cache.live(), 150);
    for (index, object) in kept.iter().enumerate() {
        // SAFETY: live.
        assert_eq!(unsafe { object.as_ref() }.get(), [index * 10; 8]);
    }
    heap.check().unwrap();
    // SAFETY: live, each once.
    unsafe { cache.free_bulk(kept) }.unwrap();
    let plain = heap.cache("plain", || 0u8).unwrap();
    // SAFETY: the mover says no.
    assert_eq!(unsafe { plain.compact(|_, _| unreachable!()) }, 0);
    assert!(ledger.is_clean());
}

#[test]
fn caches_used_by_several_cpus_lose_nothing() {
    let (arena, ledger) = (Arena::new(2048), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache("shared", || 1u64).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut mine = Vec::new();
                for round in 0..rounds(3000) {
                    let mut object = cache.alloc().unwrap();
                    *object += 1;
                    mine.push(object);
                    if round % 3 == 0 {
                        drop(mine.swap_remove(round % mine.len()));
                    }
                    if round % 500 == 0 {
                        heap.shrink();
                    }
                }
            });
        }
    });
    assert_eq!(cache.live(), 0);
    let stats = heap.check().unwrap();
    assert_eq!(stats.accounted(), stats.taken);
    drop(cache);
    assert!(ledger.is_clean());
    // SAFETY: all other threads have ended.
    unsafe { heap.drain_stopped() };
    heap.shrink();
    assert_eq!(heap.stats(), crate::Stats::default());
}

#[test]
fn a_cache_made_while_memory_fails_is_whole_or_not_there() {
    for nth in 0..if cfg!(miri) { 3 } else { 20 } {
        let (arena, ledger) = (Arena::new(256), Ledger::default());
        let heap = heap(&arena, &ledger);
        arena.fail_at(nth);
        if let Ok(cache) = heap.cache("failing", || [5u8; 300]) {
            let some: Vec<_> = (0..50).filter_map(|_| cache.alloc().ok()).collect();
            assert!(some.iter().all(|object| **object == [5; 300]));
        }
        let stats = heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken);
        heap.shrink();
        assert_eq!(heap.stats(), crate::Stats::default());
        assert!(ledger.is_clean());
    }
}

#[test]
fn shrinkers_are_asked_by_priority_and_no_more_than_needed() {
    use std::boxed::Box;
    use std::sync::Mutex;

    type Static = super::TestHeap<'static>;
    /// Holds blocks that it gives up four at a time.
    struct Hoard(&'static Static, &'static Mutex<Vec<u8>>, u8, Mutex<Vec<usize>>);
    impl Shrink for Hoard {
        fn shrink(&self, bytes: usize) -> usize {
            assert!(bytes > 0);
            self.1.lock().unwrap().push(self.2);
            // What a shrinker allocates finds no shrinkers, and may fail.
            let _ = self.0.kalloc(layout(2 << 20, 8));
            let mut blocks = self.3.lock().unwrap();
            let left = blocks.len().saturating_sub(4);
            for block in blocks.drain(left..) {
                let block = core::ptr::with_exposed_provenance_mut(block);
                // SAFETY: live, and nobody else's.
                unsafe { self.0.kfree(NonNull::new(block).unwrap()) }.unwrap();
            }
            4 * 8192
        }
    }
    let arena: &'static Arena = Box::leak(Box::new(Arena::new(64)));
    let ledger: &'static Ledger = Box::leak(Box::default());
    let heap: &'static Static = Box::leak(Box::new(heap(arena, ledger)));
    let calls: &'static Mutex<Vec<u8>> = Box::leak(Box::default());
    let take = || heap.kalloc(layout(8192, 8)).map(|block| block.as_ptr().expose_provenance());
    let mut blocks: Vec<_> = core::iter::from_fn(|| take().ok()).collect();
    let hoards: Vec<&'static Hoard> = [20, 10]
        .into_iter()
        .map(|priority| {
            let eight = blocks.split_off(blocks.len() - 8);
            &*Box::leak(Box::new(Hoard(heap, calls, priority, Mutex::new(eight))))
        })
        .collect();
    for hoard in &hoards {
        heap.add_shrinker(hoard.2, *hoard).unwrap();
    }
    let mut more = 0;
    while take().is_ok() {
        more += 1;
    }
    assert_eq!(more, 16, "all that the two had");
    let calls = core::mem::take(&mut *calls.lock().unwrap());
    assert_eq!(calls, [10, 10, 10, 20, 10, 20, 10, 20], "the cheapest first, again and again");
    heap.remove_shrinker(hoards[0]);
    assert!(take().is_err());
    heap.check().unwrap();
    assert!(ledger.is_clean());
}
