//! What holds in every interleaving of two CPUs, tried by loom:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p pagoda-frames`.
//!
//! The allocator is the real one, with magazines of four frames and batches of two. Its two locks
//! are one here (they never nest).
#![allow(unsafe_code)] // plays a host

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::boxed::Box;
use std::vec::Vec;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use pagoda_addr::{Frame, FrameRange, PhysAddr, PhysMap};
use pagoda_sync::{CpuId, Cpus};

use crate::*;

loom::lazy_static! {
    static ref LOCKED: AtomicBool = AtomicBool::new(false);
}

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
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
        LOCKED.compare_exchange(false, true, Acquire, Relaxed).is_ok()
    }
    unsafe fn unlock(&self) {
        LOCKED.store(false, Release);
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

struct Unmapped;

// SAFETY: never asked.
unsafe impl PhysMap for Unmapped {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        unreachable!()
    }
}

type Frames = FrameAllocator<'static, Two, Unmapped, Lock>;

fn allocator(count: u64) -> Arc<Frames> {
    let ranges = [FrameRange::new(Frame::from_number(0), count).unwrap()];
    let layout = required(&ranges, 2).unwrap();
    let storage: Vec<MaybeUninit<u8>> =
        (0..layout.size() + layout.align()).map(|_| MaybeUninit::uninit()).collect();
    let storage = Box::leak(storage.into_boxed_slice());
    let skip = storage.as_ptr().align_offset(layout.align());
    let table: Vec<MaybeUninit<FrameInfo>> = (0..512).map(|_| MaybeUninit::uninit()).collect();
    let table = NonNull::new(Box::leak(table.into_boxed_slice()).as_mut_ptr().cast());
    let setup = Setup { ranges: &ranges, storage: &mut storage[skip..], table, reserve: 0 };
    // SAFETY: frames are only numbers here; the table has a chunk.
    Arc::new(unsafe { FrameAllocator::new(setup, Two, Unmapped) }.unwrap())
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Runs `second` on CPU 1 while `first` runs on CPU 0.
fn both(first: impl FnOnce(), second: impl FnOnce() + 'static) {
    let other = loom::thread::spawn(move || {
        CPU.with(|cpu| cpu.set(1));
        second();
    });
    first();
    other.join().unwrap();
}

/// Brings everything back and counts it.
fn settle(frames: &Frames, count: u64) -> Vec<Corruption> {
    let mut found = Vec::new();
    for index in 0..2 {
        CPU.with(|cpu| cpu.set(index));
        found.extend(frames.drain_cpu().err());
    }
    match frames.alloc(Request::count(count)) {
        Ok(all) => frames.free(all).unwrap(),
        Err(AllocError::Corrupt(evidence)) => found.push(evidence),
        Err(error) => panic!("{error:?} {:?}", frames.stats()),
    }
    found
}

#[test]
fn two_cpus_never_own_the_same_frame() {
    explore(|| {
        let frames = allocator(3);
        let owners: Arc<[AtomicUsize; 3]> =
            Arc::new([AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)]);
        let turn = |frames: Arc<Frames>, owners: Arc<[AtomicUsize; 3]>| {
            move || {
                if let Ok(owned) = frames.alloc(Request::frame()) {
                    let owner = &owners[owned.start().number() as usize];
                    assert_eq!(owner.swap(1, Relaxed), 0);
                    owner.store(0, Relaxed);
                    frames.free(owned).unwrap();
                }
            }
        };
        both(turn(frames.clone(), owners.clone()), turn(frames.clone(), owners.clone()));
        assert_eq!(settle(&frames, 3), []);
    });
}

#[test]
fn frames_handed_over_come_back() {
    explore(|| {
        let frames = allocator(4);
        let given = frames.alloc(Request::frame()).unwrap();
        let (here, there) = (frames.clone(), frames.clone());
        both(
            move || {
                let own = here.alloc(Request::frame()).unwrap();
                here.free(own).unwrap();
            },
            move || there.free(given).unwrap(),
        );
        assert_eq!(settle(&frames, 4), []);
    });
}

#[test]
fn stock_that_is_asked_for_is_either_kept_or_in_the_core() {
    explore(|| {
        let frames = allocator(3);
        let own = frames.alloc(Request::frame()).unwrap();
        frames.free(own).unwrap();
        let (here, there) = (frames.clone(), frames.clone());
        both(
            move || {
                if let Ok(own) = here.alloc(Request::frame()) {
                    here.free(own).unwrap();
                }
            },
            move || {
                if let Ok(all) = there.alloc(Request::count(3)) {
                    assert_eq!(there.stats().free, 0);
                    there.free(all).unwrap();
                }
            },
        );
        assert_eq!(settle(&frames, 3), []);
    });
}

#[test]
fn a_frame_freed_twice_at_once_is_noticed_and_never_counted_twice() {
    explore(|| {
        let frames = allocator(3);
        let range = frames.alloc(Request::frame()).unwrap().into_range();
        let errors = Arc::new(AtomicUsize::new(0));
        let turn = |frames: Arc<Frames>, errors: Arc<AtomicUsize>| {
            move || {
                // SAFETY: a lie, twice.
                let lie = unsafe { OwnedFrames::from_range(range) };
                if frames.free(lie).is_err() {
                    errors.fetch_add(1, Relaxed);
                }
            }
        };
        both(turn(frames.clone(), errors.clone()), turn(frames.clone(), errors.clone()));
        let found = settle(&frames, 3);
        assert_eq!(errors.load(Relaxed) + found.len(), 1, "{found:?}");
        assert_eq!(frames.stats().free + frames.stats().cached, 3);
    });
}

#[test]
fn the_last_of_two_owners_frees() {
    explore(|| {
        let frames = allocator(3);
        let frame = frames.alloc(Request::frame()).unwrap().into_range().start();
        frames.table().share(frame).unwrap();
        let last = Arc::new(AtomicUsize::new(0));
        let turn = |frames: Arc<Frames>, last: Arc<AtomicUsize>| {
            move || {
                if frames.release(frame).unwrap() {
                    last.fetch_add(1, Relaxed);
                }
            }
        };
        both(turn(frames.clone(), last.clone()), turn(frames.clone(), last.clone()));
        assert_eq!(last.load(Relaxed), 1);
        assert_eq!(settle(&frames, 3), []);
    });
}

#[test]
fn a_request_is_answered_only_when_the_frames_are_in_the_core() {
    explore(|| {
        let frames = allocator(3);
        let own = frames.alloc(Request::frame()).unwrap();
        frames.free(own).unwrap();
        let wanted = |frames: &Frames| frames.caches.stocks[0].0.wanted.load(Acquire);
        frames.caches.stocks[0].0.wanted.store(crate::magazine::ASKED, Release);
        let there = frames.clone();
        both(
            {
                let frames = frames.clone();
                move || frames.drain_cpu().unwrap()
            },
            move || {
                if wanted(&there) == 0 {
                    assert_eq!(there.stats().free, 3, "answered too early");
                }
            },
        );
        assert_eq!(settle(&frames, 3), []);
    });
}

#[test]
fn a_run_let_go_by_two_owners_at_once_is_freed_once() {
    explore(|| {
        let frames = allocator(4);
        let pages = [0, 1].map(|_| frames.alloc(Request::frame()).unwrap().into_range().start());
        frames.table().share_many(&pages).unwrap();
        let freed = Arc::new(AtomicUsize::new(0));
        let turn = |frames: Arc<Frames>, freed: Arc<AtomicUsize>| {
            move || {
                freed.fetch_add(frames.release_many(&pages).unwrap(), Relaxed);
            }
        };
        both(turn(frames.clone(), freed.clone()), turn(frames.clone(), freed.clone()));
        assert_eq!(freed.load(Relaxed), 2);
        assert_eq!(settle(&frames, 4), []);
    });
}
