//! Frames that a CPU keeps for itself, and the batches that CPUs hand to each other.
//!
//! A magazine has two parts. The *stack* holds frames that are handed out next, last in, first out.
//! The *basket* collects frames on their way back to the core. Which of the two a freed frame goes
//! to is the recycling rule (see `caches.rs`). What a stack has too much of goes to the *depot*, in
//! batches, where a CPU that runs dry finds it: so one CPU may allocate what another frees.
//!
//! *owner-only*: all of a magazine but `wanted` is written by the CPU that owns it, pinned
//! (`pagoda_sync`'s *pin-exclusive*). The fields are atomics all the same, used without any
//! read-modify-write: a plain load or store each, and other CPUs may read the counts.

use crate::shim::{AtomicU32, AtomicU64, Ordering::*};

/// Frames in a batch, and in a full basket.
pub(crate) const BATCH: usize = if cfg!(loom) { 2 } else { 64 };
/// Frames on a full stack.
pub(crate) const STACK: usize = 2 * BATCH;

/// One CPU's frames, by number.
pub(crate) struct Magazine {
    stacked: AtomicU32,
    basketed: AtomicU32,
    /// Somebody else needs the frames: see `Caches::honour`.
    pub(crate) wanted: AtomicU32,
    stack: [AtomicU64; STACK],
    basket: [AtomicU64; BATCH],
}

impl Magazine {
    pub(crate) fn new() -> Self {
        Self {
            stacked: AtomicU32::new(0),
            basketed: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            stack: core::array::from_fn(|_| AtomicU64::new(0)),
            basket: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Frames in it. Exact for the owner; for others, true at some moment just now.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.stacked.load(Relaxed)) + u64::from(self.basketed.load(Relaxed))
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<u64> {
        let left = self.stacked.load(Relaxed).checked_sub(1)?;
        let frame = self.stack.get(left as usize)?.load(Relaxed);
        self.stacked.store(left, Relaxed);
        Some(frame)
    }

    /// False when the stack is full.
    #[inline]
    pub(crate) fn push(&self, frame: u64) -> bool {
        let count = self.stacked.load(Relaxed);
        let Some(slot) = self.stack.get(count as usize) else { return false };
        slot.store(frame, Relaxed);
        self.stacked.store(count + 1, Relaxed);
        true
    }

    /// False when the basket is full.
    #[inline]
    pub(crate) fn toss(&self, frame: u64) -> bool {
        let count = self.basketed.load(Relaxed);
        let Some(slot) = self.basket.get(count as usize) else { return false };
        slot.store(frame, Relaxed);
        self.basketed.store(count + 1, Relaxed);
        true
    }

    /// The lower (longest unused) half of a full stack.
    pub(crate) fn unload(&self) -> [u64; BATCH] {
        let batch = core::array::from_fn(|place| self.stack[place].load(Relaxed));
        for place in 0..BATCH {
            self.stack[place].store(self.stack[place + BATCH].load(Relaxed), Relaxed);
        }
        self.stacked.store((STACK - BATCH) as u32, Relaxed);
        batch
    }

    /// Empties the basket into `each`.
    pub(crate) fn empty_basket(&self, mut each: impl FnMut(u64)) {
        let count = self.basketed.load(Relaxed) as usize;
        self.basket.iter().take(count).for_each(|slot| each(slot.load(Relaxed)));
        self.basketed.store(0, Relaxed);
    }

    /// Empties everything into `each`.
    pub(crate) fn empty(&self, mut each: impl FnMut(u64)) {
        self.empty_basket(&mut each);
        while let Some(frame) = self.pop() {
            each(frame);
        }
    }
}

/// Full batches, in the caller's storage. Behind a lock of its own, which is never held together
/// with the core's.
pub(crate) struct Depot<'m> {
    batches: &'m mut [[u64; BATCH]],
    full: usize,
}

impl<'m> Depot<'m> {
    pub(crate) fn new(batches: &'m mut [[u64; BATCH]]) -> Self {
        Self { batches, full: 0 }
    }

    /// False when the depot is full.
    pub(crate) fn push(&mut self, batch: &[u64; BATCH]) -> bool {
        let Some(slot) = self.batches.get_mut(self.full) else { return false };
        *slot = *batch;
        self.full += 1;
        true
    }

    pub(crate) fn pop(&mut self) -> Option<[u64; BATCH]> {
        self.full = self.full.checked_sub(1)?;
        self.batches.get(self.full).copied()
    }
}
