//! The whole heap, with its real paths from magazine to page source, on two CPUs.
//!
//! All locks are one here, so that one lock inside another is found, too: it would never be free.
//! What an owner does with a block is a cell of loom's for each block: two owners at once, or one who
//! does not see what the last one did, fail the test.

use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::vec::Vec;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::*};
use pagoda_sync::{CpuId, Cpus};

use crate::sync::WEAK;
use crate::testing::{Arena, Ledger};
use crate::{Cache, Heap, HeapError, Stats};

loom::lazy_static! {
    static ref LOCKED: AtomicBool = AtomicBool::new(false);
}

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

std::thread_local! {
    /// A mutant: locks that say who is inside, and nothing of what he did there.
    static BLIND: Cell<bool> = const { Cell::new(false) };
}

/// A lock that loom understands.
struct Lock;

// SAFETY: one flag for all locks; acquire and release order as usual.
unsafe impl lock_api::RawMutex for Lock {
    const INIT: Self = Self;
    type GuardMarker = lock_api::GuardNoSend;
    fn lock(&self) {
        while !self.try_lock() {
            loom::thread::yield_now();
        }
    }
    fn try_lock(&self) -> bool {
        let order = if BLIND.get() { Relaxed } else { Acquire };
        LOCKED.compare_exchange(false, true, order, Relaxed).is_ok()
    }
    unsafe fn unlock(&self) {
        LOCKED.store(false, if BLIND.get() { Relaxed } else { Release });
    }
}

/// Two threads, two CPUs.
struct Two;

// SAFETY: every thread has a number of its own.
unsafe impl Cpus for Two {
    fn limit(&self) -> usize {
        2
    }
    fn enter(&self) -> CpuId {
        CPU.with(|cpu| CpuId::new(cpu.get()).unwrap())
    }
    unsafe fn leave(&self) {}
}

type LoomHeap = Heap<&'static Arena, Two, Lock, &'static Ledger>;

/// Middle blocks: a magazine holds four, two travel at once.
const SIZE: Layout = Layout::new::<[u64; 1024]>();
/// Blocks that one interleaving may know.
const KNOWN: usize = 24;

/// A heap, and what the owners of its blocks do.
struct Rig {
    heap: LoomHeap,
    arena: &'static Arena,
    ledger: &'static Ledger,
    known: std::sync::Mutex<Vec<usize>>,
    contents: [loom::cell::UnsafeCell<usize>; KNOWN],
}

// SAFETY: the cells are loom's, which is how their misuse is found.
unsafe impl Send for Rig {}
// SAFETY: as above.
unsafe impl Sync for Rig {}

impl Rig {
    fn new() -> Arc<Self> {
        let arena: &'static Arena = Box::leak(Box::new(Arena::new(64)));
        let ledger: &'static Ledger = Box::leak(Box::default());
        let heap = Heap::with_report(arena, Two, ledger);
        let contents = core::array::from_fn(|_| loom::cell::UnsafeCell::new(0));
        Arc::new(Self { heap, arena, ledger, known: std::sync::Mutex::default(), contents })
    }

    /// What lies in a block, seen or changed by its only owner.
    fn content<T>(&self, block: usize, change: impl FnOnce(&mut usize) -> T) -> T {
        let index = {
            let mut known = self.known.lock().unwrap();
            known.iter().position(|&other| other == block).unwrap_or_else(|| {
                known.push(block);
                known.len() - 1
            })
        };
        // SAFETY: loom stops whoever is not alone.
        self.contents[index].with_mut(|content| change(unsafe { &mut *content }))
    }

    fn own(&self, block: usize) {
        self.content(block, |content| {
            assert_eq!(core::mem::replace(content, 1), 0, "a block has two owners");
        });
    }

    fn disown(&self, block: usize) {
        self.content(block, |content| *content = 0);
    }

    fn alloc(&self) -> Result<usize, HeapError> {
        let block = self.heap.kalloc(SIZE)?.as_ptr().expose_provenance();
        self.own(block);
        Ok(block)
    }

    fn free(&self, block: usize) {
        self.disown(block);
        let block = NonNull::new(with_exposed_provenance_mut(block)).unwrap();
        // SAFETY: live, and given up.
        unsafe { self.heap.kfree(block) }.unwrap();
    }

    /// When both CPUs have come to rest: nothing is lost, and every page comes back.
    fn settle(&self, live: usize) {
        let stats = self.heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken, "{stats:?}");
        assert_eq!(stats.live, live * SIZE.size(), "{stats:?}");
        // SAFETY: the other thread has ended.
        unsafe { self.heap.drain_stopped() };
        self.heap.shrink();
        if live == 0 {
            assert_eq!(self.heap.stats(), Stats::default());
            assert_eq!(self.arena.pages_out(), 0);
        }
        assert!(self.ledger.is_clean());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: leaked by `new`; the heap does not look at its source any more.
        unsafe {
            drop(Box::from_raw(core::ptr::from_ref(self.arena).cast_mut()));
            drop(Box::from_raw(core::ptr::from_ref(self.ledger).cast_mut()));
        }
    }
}

/// A thread with room for a heap on its stack.
fn spawn(body: impl FnOnce() + Send + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::Builder::new().stack_size(1 << 16).spawn(body).unwrap()
}

/// All interleavings in which no CPU is interrupted more often than so.
fn explore(interruptions: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.max_branches = 100_000;
    builder.check(move || spawn(model).join().unwrap());
}

/// Does the model fail with this orderings weakened?
fn is_noticed(weaken: impl FnOnce(bool), model: fn()) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    weaken(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| explore(2, model)));
    std::panic::set_hook(hook);
    outcome.is_err()
}

/// Runs `second` on CPU 1 while `first` runs on CPU 0.
fn both(first: impl FnOnce(), second: impl FnOnce() + Send + 'static) {
    let other = spawn(move || {
        CPU.with(|cpu| cpu.set(1));
        second();
    });
    first();
    other.join().unwrap();
}

/// One CPU frees what the other has allocated, until its magazine is full and its depot is opened,
/// while the other goes on allocating: magazine, depot, magazine.
fn remote_free() {
    let rig = Rig::new();
    let given: Vec<usize> = (0..6).map(|_| rig.alloc().unwrap()).collect();
    let there = rig.clone();
    let here = rig.clone();
    both(
        move || {
            let mine: Vec<usize> = (0..3).map(|_| here.alloc().unwrap()).collect();
            mine.into_iter().for_each(|block| here.free(block));
        },
        move || given.into_iter().for_each(|block| there.free(block)),
    );
    rig.settle(0);
}

/// Both CPUs find that the depot must be opened.
fn depot_opened_twice() {
    let rig = Rig::new();
    let mut given: Vec<usize> = (0..10).map(|_| rig.alloc().unwrap()).collect();
    let half = given.split_off(5);
    let (here, there) = (rig.clone(), rig.clone());
    both(
        move || given.into_iter().for_each(|block| here.free(block)),
        move || half.into_iter().for_each(|block| there.free(block)),
    );
    rig.settle(0);
}

/// One CPU makes its magazines while the other counts what lies in all of them.
fn counted_while_made() {
    let rig = Rig::new();
    let (here, there) = (rig.clone(), rig.clone());
    both(
        move || {
            let class = crate::classes::class_of(SIZE).unwrap();
            assert!(here.heap.cached(usize::from(class)) <= 2, "what one refill takes");
        },
        move || {
            let block = there.alloc().unwrap();
            there.free(block);
        },
    );
    rig.settle(0);
}

/// One CPU asks for everything back while the other allocates and frees.
fn shrunk_while_used() {
    let rig = Rig::new();
    let given: Vec<usize> = (0..5).map(|_| rig.alloc().unwrap()).collect();
    let (here, there) = (rig.clone(), rig.clone());
    both(
        move || {
            here.heap.shrink();
        },
        move || {
            given.into_iter().for_each(|block| there.free(block));
            let block = there.alloc().unwrap();
            there.free(block);
        },
    );
    rig.settle(0);
}

type Things = Cache<'static, [u64; 600], &'static Arena, Two, Lock, &'static Ledger>;

/// A typed cache: what it gives is constructed, and whose it is.
fn cache_used(first: fn(&Rig, &Things, &[usize]), second: fn(&Rig, &Things, &[usize])) {
    let rig = Rig::new();
    {
        // SAFETY: the heap outlives the block, and all that is made in it is dropped in it.
        let heap: &'static LoomHeap = unsafe { &*core::ptr::from_ref(&rig.heap) };
        let things: Arc<Things> = Arc::new(heap.cache("things", || [7; 600]).unwrap());
        let given: Vec<usize> = (0..6).map(|_| take(&rig, &things)).collect();
        let (here, there) = (rig.clone(), rig.clone());
        let (ours, theirs) = (things.clone(), things.clone());
        both(
            move || first(&here, &ours, &[]),
            move || {
                second(&there, &theirs, &given);
            },
        );
        let stats = things.stats();
        assert_eq!(stats.live, 0, "{stats:?}");
    }
    rig.settle(0);
}

fn take(rig: &Rig, things: &Things) -> usize {
    let object = things.alloc_raw().unwrap();
    let address = object.as_ptr().expose_provenance();
    rig.own(address);
    // SAFETY: ours.
    assert_eq!(unsafe { object.as_ref() }[599], 7, "an object lost its state");
    address
}

fn give(rig: &Rig, things: &Things, object: usize) {
    rig.disown(object);
    let object = NonNull::new(with_exposed_provenance_mut(object)).unwrap();
    // SAFETY: live, and given up.
    unsafe { things.free_raw(object) }.unwrap();
}

fn cache_remote_free() {
    cache_used(
        |rig, things, _| {
            let mine: Vec<usize> = (0..3).map(|_| take(rig, things)).collect();
            mine.into_iter().for_each(|object| give(rig, things, object));
        },
        |rig, things, given| given.iter().for_each(|&object| give(rig, things, object)),
    );
}

fn cache_counted_while_made() {
    cache_used(
        |_, things, _| {
            let stats = things.stats();
            assert!(stats.live <= 6, "{stats:?}");
        },
        |rig, things, given| given.iter().for_each(|&object| give(rig, things, object)),
    );
}

fn cache_shrunk_while_used() {
    cache_used(
        |rig, _, _| {
            rig.heap.shrink();
        },
        |rig, things, given| given.iter().for_each(|&object| give(rig, things, object)),
    );
}

#[test]
fn blocks_freed_by_another_cpu_are_nobodys_twice() {
    explore(3, remote_free);
}

#[test]
fn a_depot_that_two_cpus_open_at_once_loses_no_array() {
    explore(3, depot_opened_twice);
}

#[test]
fn magazines_are_counted_while_another_cpu_makes_them() {
    explore(3, counted_while_made);
}

#[test]
fn what_is_asked_back_comes_back_while_another_cpu_goes_on() {
    explore(1, shrunk_while_used);
}

#[test]
fn objects_of_a_cache_freed_by_another_cpu_are_nobodys_twice() {
    explore(3, cache_remote_free);
}

#[test]
fn a_caches_magazines_are_counted_while_another_cpu_makes_them() {
    explore(3, cache_counted_while_made);
}

#[test]
fn a_cache_gives_back_while_another_cpu_uses_it() {
    explore(1, cache_shrunk_while_used);
}

#[test]
fn weakened_orderings_are_noticed() {
    let publish = |on| WEAK.set((on, false));
    let observe = |on| WEAK.set((false, on));
    let blind = |on| BLIND.set(on);
    for model in [counted_while_made as fn(), cache_counted_while_made] {
        assert!(is_noticed(publish, model), "a record shown before it is whole");
        assert!(is_noticed(observe, model), "a record looked at before it is whole");
        WEAK.set((false, false));
    }
    assert!(is_noticed(blind, remote_free), "a depot's lock that orders nothing");
    assert!(is_noticed(blind, cache_remote_free), "a central lock that orders nothing");
    blind(false);
}
