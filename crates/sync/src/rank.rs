//! Lock ranks: the order in which locks may be taken, checked while the system runs.
//!
//! Calls go down the tower, so ranks rise on the way down: a process lock is taken before an
//! address space's, that before a page table's, that before the heap's, that before the frame
//! allocator's. The numbers leave room in between.
#![allow(unsafe_code)] // implements the unsafe trait `lock_api::RawMutex`

use core::marker::PhantomData;

use lock_api::RawMutex;

/// Processes, scheduling, files.
pub const PROCESS: u8 = 10;
/// Regions of an address space.
pub const REGIONS: u8 = 20;
/// Objects (files, shared memory) behind regions.
pub const OBJECT: u8 = 30;
/// Page tables.
pub const PAGE_TABLE: u8 = 40;
/// The kernel's own virtual space.
pub const KVA: u8 = 50;
/// The kernel heap.
pub const HEAP: u8 = 60;
/// The frame allocator.
pub const FRAMES: u8 = 70;
/// The console: anybody may report, whatever is held.
pub const CONSOLE: u8 = 80;

/// Remembers which ranks the running context holds. Supplied by the host kernel (a word in its
/// per-CPU area) or by a test (a thread-local), as static functions so that a lock stays as small
/// as it was.
pub trait RankTracker {
    /// A lock of `rank` is about to be taken: stop loudly unless every rank held is lower.
    fn acquire(rank: u8);
    /// A lock of `rank` was taken by `try_lock`, which cannot deadlock: remember it.
    fn acquired_by_try(rank: u8);
    /// A lock of `rank` was given back.
    fn release(rank: u8);
}

/// Tracks nothing and costs nothing.
#[derive(Debug)]
pub struct Untracked;

impl RankTracker for Untracked {
    #[inline]
    fn acquire(_: u8) {}
    #[inline]
    fn acquired_by_try(_: u8) {}
    #[inline]
    fn release(_: u8) {}
}

/// The raw lock `R`, ranked `RANK`, checked by `T` (*rank-ascending* in the crate's head).
#[derive(Debug)]
pub struct Ranked<R, T, const RANK: u8>(R, PhantomData<fn() -> T>);

// SAFETY: mutual exclusion is `R`'s; the tracker only looks on.
unsafe impl<R: RawMutex, T: RankTracker, const RANK: u8> RawMutex for Ranked<R, T, RANK> {
    #[allow(clippy::declare_interior_mutable_const)] // the trait asks for exactly this
    const INIT: Self = Self(R::INIT, PhantomData);
    type GuardMarker = R::GuardMarker;

    #[inline]
    fn lock(&self) {
        T::acquire(RANK);
        self.0.lock();
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let taken = self.0.try_lock();
        if taken {
            T::acquired_by_try(RANK);
        }
        taken
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: the caller holds the lock, as this function demands too.
        unsafe { self.0.unlock() };
        T::release(RANK);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}
