//! Frames that a CPU keeps for itself, and the batches that CPUs hand to each other.
//!
//! A magazine has three parts. The *stack* holds frames that are handed out next, last in, first
//! out; the *clean* stack holds those that are known to be zeroed. The *basket* collects frames on their way back to the core. Which of the two a freed frame goes
//! to is the recycling rule (see `caches.rs`). What a stack has too much of goes to the *depot*, in
//! batches, where a CPU that runs dry finds it: so one CPU may allocate what another frees.
//!
//! *owner-only*: all of a stock but `wanted` is written by the CPU that owns it, pinned
//! (`pagoda_sync`'s *pin-exclusive*). The fields are atomics all the same, used without any
//! read-modify-write: a plain load or store each, and other CPUs may read the counts.

use lock_api::{Mutex, RawMutex};
use pagoda_sync::CachePadded;

use crate::Mobility;

use crate::shim::{AtomicU32, AtomicU64, Ordering::*};

/// Frames in a batch, and in a full basket.
pub(crate) const BATCH: usize = if cfg!(loom) { 2 } else { 64 };
/// Frames on a full stack: a burst of 256 stays on its CPU.
pub(crate) const STACK: usize = if cfg!(loom) { 4 } else { 320 };

/// A value of [`Stock::wanted`]: drain, please.
pub(crate) const ASKED: u32 = 1;
/// A value of [`Stock::wanted`]: the CPU never had any stock.
pub(crate) const UNUSED: u32 = 2;

/// What one CPU keeps for itself: frames for unmovable and for movable use, apart.
pub(crate) struct Stock {
    /// Not 0: somebody else needs the frames ([`ASKED`]), or this is the first use ([`UNUSED`]): see
    /// `honour`.
    pub(crate) wanted: AtomicU32,
    /// The CPU.
    pub(crate) place: u32,
    magazines: [Magazine; 2],
}

impl Stock {
    pub(crate) fn new(place: usize) -> Self {
        let wanted = AtomicU32::new(UNUSED);
        Self { wanted, place: place as u32, magazines: [Magazine::new(), Magazine::new()] }
    }

    #[inline]
    pub(crate) fn of(&self, mobility: Mobility) -> &Magazine {
        let [unmovable, movable] = &self.magazines;
        if mobility == Mobility::Unmovable { unmovable } else { movable }
    }

    pub(crate) fn both(&self) -> &[Magazine; 2] {
        &self.magazines
    }

    /// As [`Magazine::count`].
    pub(crate) fn count(&self) -> u64 {
        self.magazines.iter().map(Magazine::count).sum()
    }
}

/// Frames by number, of one CPU and for one use.
pub(crate) struct Magazine {
    stacked: AtomicU32,
    basketed: AtomicU32,
    cleaned: AtomicU32,
    /// Requests for zeroes that the clean stack served, and that had to be zeroed on the spot.
    pub(crate) served: AtomicU64,
    pub(crate) missed: AtomicU64,
    stack: [AtomicU64; STACK],
    basket: [AtomicU64; BATCH],
    clean: [AtomicU64; BATCH],
}

impl Magazine {
    pub(crate) fn new() -> Self {
        Self {
            stacked: AtomicU32::new(0),
            basketed: AtomicU32::new(0),
            cleaned: AtomicU32::new(0),
            served: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            clean: core::array::from_fn(|_| AtomicU64::new(0)),
            stack: core::array::from_fn(|_| AtomicU64::new(0)),
            basket: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Frames in it. Exact for the owner; for others, true at some moment just now.
    pub(crate) fn count(&self) -> u64 {
        let parts = [&self.stacked, &self.basketed, &self.cleaned];
        parts.iter().map(|part| u64::from(part.load(Relaxed))).sum()
    }

    /// Zeroed frames in it.
    pub(crate) fn clean_count(&self) -> u64 {
        u64::from(self.cleaned.load(Relaxed))
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

    /// The rest of the stack, to be filled.
    #[inline]
    pub(crate) fn stack_room(&self) -> Room<'_> {
        Room::new(&self.stacked, &self.stack)
    }

    /// The rest of the basket, to be filled.
    #[inline]
    pub(crate) fn basket_room(&self) -> Room<'_> {
        Room::new(&self.basketed, &self.basket)
    }

    #[inline]
    pub(crate) fn pop_clean(&self) -> Option<u64> {
        let left = self.cleaned.load(Relaxed).checked_sub(1)?;
        let frame = self.clean.get(left as usize)?.load(Relaxed);
        self.cleaned.store(left, Relaxed);
        Some(frame)
    }

    /// A batch of zeroed frames, when the clean stack is empty.
    pub(crate) fn load_clean(&self, batch: &[u64; BATCH]) {
        self.clean.iter().zip(batch).for_each(|(slot, &frame)| slot.store(frame, Relaxed));
        self.cleaned.store(BATCH as u32, Relaxed);
    }

    /// The uppermost batch of a full stack.
    pub(crate) fn unload(&self) -> [u64; BATCH] {
        let left = STACK - BATCH;
        let batch = core::array::from_fn(|place| self.stack[left + place].load(Relaxed));
        self.stacked.store(left as u32, Relaxed);
        batch
    }

    /// What was in the basket.
    pub(crate) fn empty_basket(&self) -> impl Iterator<Item = u64> + '_ {
        let count = self.basketed.load(Relaxed) as usize;
        self.basketed.store(0, Relaxed);
        self.basket.iter().take(count).map(|slot| slot.load(Relaxed))
    }

    /// What was on both stacks.
    pub(crate) fn empty_stacks(&self) -> impl Iterator<Item = u64> + '_ {
        core::iter::from_fn(|| self.pop().or_else(|| self.pop_clean()))
    }
}

/// Free places of a stack or basket, taken one after the other; the count follows at the end.
pub(crate) struct Room<'s> {
    count: &'s AtomicU32,
    slots: core::slice::Iter<'s, AtomicU64>,
    most: usize,
}

impl<'s> Room<'s> {
    #[inline]
    fn new(count: &'s AtomicU32, slots: &'s [AtomicU64]) -> Self {
        let filled = count.load(Relaxed) as usize;
        Self { count, slots: slots.get(filled..).unwrap_or_default().iter(), most: slots.len() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(crate) fn put(&mut self, frame: u64) {
        if let Some(slot) = self.slots.next() {
            slot.store(frame, Relaxed);
        }
    }
}

impl Drop for Room<'_> {
    #[inline]
    fn drop(&mut self) {
        self.count.store((self.most - self.slots.len()) as u32, Relaxed);
    }
}

/// Full batches, in the caller's storage.
struct Batches<'m> {
    batches: &'m mut [[u64; BATCH]],
    full: usize,
}

/// Full batches for all CPUs: the depot, and the pool of zeroed frames. Behind locks of their own,
/// which are never held together with the core's or with each other.
pub(crate) struct Shelf<'m, R> {
    batches: Mutex<R, Batches<'m>>,
    /// Frames on the shelf, and those that are on their way to it.
    count: CachePadded<AtomicU64>,
}

impl<'m, R: RawMutex> Shelf<'m, R> {
    pub(crate) fn new(batches: &'m mut [[u64; BATCH]]) -> Self {
        let batches = Mutex::new(Batches { batches, full: 0 });
        Self { batches, count: CachePadded(AtomicU64::new(0)) }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    pub(crate) fn has_room(&self) -> bool {
        let guard = self.batches.lock();
        guard.full < guard.batches.len()
    }

    /// False when the shelf is full.
    pub(crate) fn put(&self, batch: &[u64; BATCH]) -> bool {
        self.announce();
        let done = self.put_announced(batch);
        if !done {
            self.renounce();
        }
        done
    }

    /// A batch will be put here: count it from now on.
    pub(crate) fn announce(&self) {
        self.count.fetch_add(BATCH as u64, Relaxed);
    }

    /// The announced batch did not arrive.
    pub(crate) fn renounce(&self) {
        self.count.fetch_sub(BATCH as u64, Relaxed);
    }

    pub(crate) fn put_announced(&self, batch: &[u64; BATCH]) -> bool {
        let mut guard = self.batches.lock();
        let Batches { batches, full } = &mut *guard;
        let Some(slot) = batches.get_mut(*full) else { return false };
        *slot = *batch;
        *full += 1;
        true
    }

    pub(crate) fn take(&self) -> Option<[u64; BATCH]> {
        if self.count() == 0 {
            return None;
        }
        let mut guard = self.batches.lock();
        guard.full = guard.full.checked_sub(1)?;
        let batch = guard.batches.get(guard.full).copied()?;
        drop(guard);
        self.renounce();
        Some(batch)
    }
}
