//! Frames that a CPU keeps for itself, and the batches that CPUs hand to each other.
//!
//! A magazine has three parts. The *stack* holds frames that are handed out next, last in, first
//! out; the *clean* stack holds those that are known to be zeroed. The *basket* collects frames on
//! their way back to the core. Which of the two a freed frame goes to is the recycling rule (see
//! `caches.rs`). What a stack has too much of goes to the *depot*, in batches, where a CPU that runs
//! dry finds it: so one CPU may allocate what another frees. Several batches go and come at once,
//! since the depot's lock costs as much as the lines of two.
//!
//! *owner-only*: all of a stock but `wanted` is written by the CPU that owns it, pinned
//! (`pagoda_sync`'s *pin-exclusive*). The fields are atomics all the same, used without any
//! read-modify-write: a plain load or store each, and other CPUs may read the counts. The frames only
//! the owner reads (or who has stopped it), so that whole batches are copied as memory is.
#![allow(unsafe_code)] // promises about who looks at the frames

use lock_api::{Mutex, RawMutex};
use pagoda_sync::CachePadded;

use crate::{Mobility, Node};

use crate::shim::{AtomicU32, AtomicU64, Ordering::*, load_all, store_all};

/// Frames in a batch, and in a full basket.
pub(crate) const BATCH: usize = if cfg!(loom) { 2 } else { 64 };
/// Frames on a full stack: a burst of 256 stays on its CPU.
pub(crate) const STACK: usize = if cfg!(loom) { 4 } else { 320 };

/// Batches that go between stack and depot at once, at most: one always stays.
const MOVED: usize = STACK / BATCH - 1;

/// A value of [`Stock::wanted`]: drain, please.
pub(crate) const ASKED: u32 = 1;
/// A value of [`Stock::wanted`]: the CPU never had any stock.
pub(crate) const UNUSED: u32 = 2;

/// What one CPU keeps for itself: frames for unmovable and for movable use, apart. What each
/// allocation and free looks at stands together.
#[repr(C)]
pub(crate) struct Stock {
    /// Not 0: somebody else needs the frames ([`ASKED`]), or this is the first use ([`UNUSED`]): see
    /// `honour`.
    pub(crate) wanted: AtomicU32,
    /// The CPU.
    pub(crate) place: u32,
    /// The node that the CPU belongs to.
    node: AtomicU32,
    magazines: [Magazine; 2],
}

impl Stock {
    pub(crate) fn new(place: usize) -> Self {
        let wanted = AtomicU32::new(UNUSED);
        let node = AtomicU32::new(0);
        Self { wanted, place: place as u32, node, magazines: [Magazine::new(), Magazine::new()] }
    }

    #[inline]
    pub(crate) fn node(&self) -> Node {
        Node(self.node.load(Relaxed) as u8)
    }

    pub(crate) fn set_node(&self, node: Node) {
        self.node.store(node.0.into(), Relaxed);
    }

    #[inline]
    pub(crate) fn of(&self, mobility: Mobility) -> &Magazine {
        &self.magazines[mobility as usize]
    }

    pub(crate) fn both(&self) -> &[Magazine; 2] {
        &self.magazines
    }

    /// As [`Magazine::count`].
    pub(crate) fn count(&self) -> u64 {
        self.magazines.iter().map(Magazine::count).sum()
    }
}

/// Where a freed frame goes: the recycling rule's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Into the basket, on its way back to the core.
    Basket = 0,
    /// On the stack, to be handed out next.
    Stack = 1,
}

/// Frames by number, of one CPU and for one use. Basket and stack lie one behind the other in one
/// array, and their tops are places in it.
#[repr(C)]
pub(crate) struct Magazine {
    /// By [`Way`]: where the next frame goes.
    tops: [AtomicU32; 2],
    cleaned: AtomicU32,
    /// Requests for zeroes that the clean stack served, and that had to be zeroed on the spot.
    pub(crate) served: AtomicU64,
    pub(crate) missed: AtomicU64,
    slots: [AtomicU64; BATCH + STACK],
    clean: [AtomicU64; BATCH],
}

impl Magazine {
    pub(crate) fn new() -> Self {
        Self {
            tops: [AtomicU32::new(0), AtomicU32::new(BATCH as u32)],
            cleaned: AtomicU32::new(0),
            served: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            slots: core::array::from_fn(|_| AtomicU64::new(0)),
            clean: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    #[inline]
    fn top(&self, way: Way) -> &AtomicU32 {
        &self.tops[way as usize]
    }

    #[inline]
    fn slots_of(&self, way: Way) -> &[AtomicU64] {
        let (basket, stack) = self.slots.split_at(BATCH);
        if way == Way::Basket { basket } else { stack }
    }

    /// Frames in it. Exact for the owner; for others, true at some moment just now.
    pub(crate) fn count(&self) -> u64 {
        let parts = self.tops.iter().chain([&self.cleaned]).map(|part| part.load(Relaxed));
        u64::from(parts.sum::<u32>()) - BATCH as u64
    }

    /// Zeroed frames in it.
    pub(crate) fn clean_count(&self) -> u64 {
        u64::from(self.cleaned.load(Relaxed))
    }

    /// The frame that is handed out next.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u64> {
        let top = self.top(Way::Stack).load(Relaxed);
        if top <= BATCH as u32 {
            return None;
        }
        Some(self.slots.get(top as usize - 1)?.load(Relaxed))
    }

    /// Takes away the frame that [`peek`](Self::peek) saw.
    #[inline]
    pub(crate) fn drop_top(&self) {
        let top = self.top(Way::Stack);
        top.store(top.load(Relaxed) - 1, Relaxed);
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<u64> {
        let frame = self.peek()?;
        self.drop_top();
        Some(frame)
    }

    /// The place that [`put`](Self::put) would fill next, if there is one.
    #[inline(always)]
    pub(crate) fn room(&self, way: Way) -> Option<u32> {
        let top = self.top(way).load(Relaxed);
        (top < (BATCH + STACK * way as usize) as u32).then_some(top)
    }

    pub(crate) fn has_room(&self, way: Way) -> bool {
        self.room(way).is_some()
    }

    /// Fills the place that [`room`](Self::room) found.
    #[inline(always)]
    pub(crate) fn put(&self, way: Way, place: u32, frame: u64) {
        if let Some(slot) = self.slots.get(place as usize) {
            slot.store(frame, Relaxed);
            self.top(way).store(place + 1, Relaxed);
        }
    }

    /// False when there is no room.
    pub(crate) fn push(&self, way: Way, frame: u64) -> bool {
        self.room(way).map(|place| self.put(way, place, frame)).is_some()
    }

    /// All free places, to be filled.
    #[inline]
    pub(crate) fn all_room(&self, way: Way) -> Room<'_> {
        let filled = self.top(way).load(Relaxed) as usize - BATCH * way as usize;
        let free = self.slots_of(way).get(filled..).unwrap_or_default();
        Room { top: self.top(way), slots: free.iter() }
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
        // SAFETY: *owner-only*.
        unsafe { store_all(&self.clean, batch) };
        self.cleaned.store(BATCH as u32, Relaxed);
    }

    /// The uppermost batch of a full stack.
    pub(crate) fn unload(&self) -> [u64; BATCH] {
        let mut batch = [0; BATCH];
        self.unload_to(core::slice::from_mut(&mut batch));
        batch
    }

    /// The uppermost batches of a full stack, as many as there is room for, the lowest of them first.
    fn unload_to(&self, batches: &mut [[u64; BATCH]]) {
        let frames = batches.as_flattened_mut();
        if let Some((_, uppermost)) = self.slots.split_at_checked(self.slots.len() - frames.len()) {
            // SAFETY: *owner-only*.
            unsafe { load_all(uppermost, frames) };
            let top = self.top(Way::Stack);
            top.store(top.load(Relaxed) - frames.len() as u32, Relaxed);
        }
    }

    /// What is in the basket.
    pub(crate) fn basket(&self) -> impl Iterator<Item = u64> + '_ {
        let count = self.top(Way::Basket).load(Relaxed) as usize;
        self.slots_of(Way::Basket).iter().take(count).map(|slot| slot.load(Relaxed))
    }

    /// What was in the basket.
    pub(crate) fn empty_basket(&self) -> impl Iterator<Item = u64> + '_ {
        let frames = self.basket();
        self.top(Way::Basket).store(0, Relaxed);
        frames
    }

    /// What was on both stacks.
    pub(crate) fn empty_stacks(&self) -> impl Iterator<Item = u64> + '_ {
        core::iter::from_fn(|| self.pop().or_else(|| self.pop_clean()))
    }
}

/// Free places of a stack or basket, taken one after the other; the count follows at the end.
pub(crate) struct Room<'s> {
    top: &'s AtomicU32,
    slots: core::slice::Iter<'s, AtomicU64>,
}

impl Room<'_> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Fills one place for each of `frames`, as far as there are any.
    #[inline]
    pub(crate) fn fill(self, frames: impl Iterator<Item = u64>) {
        let filled = self.slots.zip(frames).map(|(slot, frame)| slot.store(frame, Relaxed)).count();
        self.top.store(self.top.load(Relaxed) + filled as u32, Relaxed);
    }

    /// Fills one place for each of `frames`, for which there must be room.
    fn fill_from(self, frames: &[u64]) {
        let room = &self.slots.as_slice()[..frames.len()];
        // SAFETY: *owner-only*.
        unsafe { store_all(room, frames) };
        self.top.store(self.top.load(Relaxed) + frames.len() as u32, Relaxed);
    }
}

/// Full batches, in the caller's storage.
struct Batches<'m> {
    batches: &'m mut [[u64; BATCH]],
    full: usize,
}

/// Full batches for all CPUs: the depot, and the pool of zeroed frames. Behind locks of their own,
/// which are never held together with the core's or with each other.
///
/// Lock and count share a line: a batch that goes from CPU to CPU takes one line along with its own.
pub(crate) struct Shelf<'m, R>(CachePadded<Inside<'m, R>>);

struct Inside<'m, R> {
    batches: Mutex<R, Batches<'m>>,
    /// Frames on the shelf, and those that are on their way to it.
    count: AtomicU64,
}

impl<'m, R: RawMutex> Shelf<'m, R> {
    pub(crate) fn new(batches: &'m mut [[u64; BATCH]]) -> Self {
        let batches = Mutex::new(Batches { batches, full: 0 });
        Self(CachePadded(Inside { batches, count: AtomicU64::new(0) }))
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.0.count.load(Relaxed)
    }

    pub(crate) fn has_room(&self) -> bool {
        let guard = self.0.0.batches.lock();
        guard.full < guard.batches.len()
    }

    /// All but the lowest batch of a full stack, as far as there is room; false if there is none.
    pub(crate) fn put_from(&self, magazine: &Magazine) -> bool {
        let mut guard = self.0.0.batches.lock();
        let Batches { batches, full } = &mut *guard;
        let room = batches.get_mut(*full..).unwrap_or_default();
        let count = room.len().min(MOVED);
        self.0.0.count.fetch_add((count * BATCH) as u64, Relaxed);
        magazine.unload_to(&mut room[..count]);
        *full += count;
        count > 0
    }

    /// Some batches for an empty stack; false if there are none.
    pub(crate) fn take_to(&self, magazine: &Magazine) -> bool {
        if self.count() == 0 {
            return false;
        }
        let mut guard = self.0.0.batches.lock();
        let Batches { batches, full } = &mut *guard;
        let left = full.saturating_sub(MOVED);
        let taken = batches.get(left..*full).unwrap_or_default();
        magazine.all_room(Way::Stack).fill_from(taken.as_flattened());
        self.0.0.count.fetch_sub((taken.len() * BATCH) as u64, Relaxed);
        *full = left;
        !taken.is_empty()
    }

    /// A batch will be put here: count it from now on.
    pub(crate) fn announce(&self) {
        self.0.0.count.fetch_add(BATCH as u64, Relaxed);
    }

    /// The announced batch did not arrive.
    pub(crate) fn renounce(&self) {
        self.0.0.count.fetch_sub(BATCH as u64, Relaxed);
    }

    pub(crate) fn put_announced(&self, batch: &[u64; BATCH]) -> bool {
        let mut guard = self.0.0.batches.lock();
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
        let mut guard = self.0.0.batches.lock();
        guard.full = guard.full.checked_sub(1)?;
        let batch = guard.batches.get(guard.full).copied()?;
        self.renounce();
        Some(batch)
    }
}
