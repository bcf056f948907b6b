//! Epochs: when does nobody look at it any more?
//!
//! Whoever takes an object out of a structure that others read without a lock may free it only when
//! every reader that could have found it is done. Here readers pay next to nothing: the kernel says
//! at which moments a CPU holds no reference (*quiescent*), and an object goes when every CPU has
//! had such a moment since it was taken out.
//!
//! The nouns:
//!
//! - The *epoch*: a number that rises by one when every CPU has seen it.
//! - *resting*: a CPU in user mode or idle holds no reference and is not waited for.
//! - [`Reading`]: a guard under which references are valid. References into a structure live no
//!   longer than a guard; the structure's interface says so by lifetimes.
//! - [`Deferral`]: where the links of deferred objects are kept: in the objects themselves, or in
//!   metadata that they have anyway (a frame's entry in the frame table). Nothing is allocated.
//!
//! # Rules
//!
//! 1. From user mode or idle into the kernel: [`enter`](Epochs::enter), before the first read.
//! 2. Back: [`leave`](Epochs::leave). A CPU that was never started rests.
//! 3. At a switch between two threads in the kernel, or in a long loop: [`quiesce`](Epochs::quiesce).
//! 4. First unlink, so that no new reader finds the object, then [`defer`](Epochs::defer).
//! 5. [`reclaim`](Epochs::reclaim) now and then, by the CPU that deferred, holding no lock that
//!    [`Deferral::reclaim`] takes; the timer tick and the way into idle are good places. A CPU that
//!    idles with something deferred keeps its tick, or the objects wait until it wakes.
//! 6. Interrupt handlers neither read nor defer (they do not pin).
//!
//! # Invariants
//!
//! *two-epochs*: an object deferred in epoch e is reclaimed at e + 2 at the earliest. Why that is
//! enough: let a reader's fence (in `enter`) stand before the fence of the one that unlinked, or the
//! reader would have missed the object. Whoever advances the epoch after the reader's fence sees the
//! reader, and passes at most once while it stays, from the epoch that the reader saw; whoever
//! advanced it before that fence had read an epoch that is not above e, since `defer` reads it after
//! its own fence. So while the reader stays the epoch does not exceed e + 1.
//!
//! *store-then-fence-then-read*: `enter` stores what the CPU saw before it reads any structure, and
//! these are different locations: only a sequentially consistent fence keeps their order.
//! `try_advance` and `defer` have its counterparts. Loom takes `SeqCst` accesses for weaker ones,
//! and rightly so: it is the fences that count.
//!
//! *own-bags*: the deferred objects of a CPU are reached by that CPU alone, pinned.
//!
//! Left out: waiting for a grace period (nobody needs it to block), handing the bags of a stopped
//! CPU to another one ([`drain`](Epochs::drain) empties them all at the end).
#![allow(unsafe_code)] // reaches the bags of the pinned CPU; declares an unsafe trait

use core::marker::PhantomData;

use crate::shim::{AtomicU64, Cell, Ordering, fence};
use crate::{CachePadded, Cpus, Pinned};

/// What `seen` holds while the CPU rests; epochs begin above it.
const RESTING: u64 = 0;
/// Epochs from the one in which an object was deferred to the one in which it may go.
const GRACE: u64 = 2;

/// Where deferred objects keep their links, and how they are freed.
///
/// # Safety
/// [`next`](Self::next) returns what [`set_next`](Self::set_next) was last called with for the same
/// item; nobody else uses that storage from [`Epochs::defer`] to [`reclaim`](Self::reclaim), and
/// readers of the object may still be reading everything but it.
pub unsafe trait Deferral {
    /// The name of an object: a pointer, a frame number.
    type Item: Copy;

    /// Remembers `next` in the storage of `item`.
    fn set_next(&self, item: Self::Item, next: Option<Self::Item>);
    /// What was remembered.
    fn next(&self, item: Self::Item) -> Option<Self::Item>;
    /// Frees the object: nobody has a reference to it any more. May defer others.
    fn reclaim(&self, item: Self::Item);
}

/// Objects deferred in one epoch, or some of them earlier.
#[derive(Clone, Copy, Debug)]
struct Bag<I> {
    epoch: u64,
    count: usize,
    /// The first and the last of the list; `None` when it is empty.
    ends: Option<(I, I)>,
}

impl<I> Bag<I> {
    const EMPTY: Self = Self { epoch: 0, count: 0, ends: None };
}

/// One CPU's part of [`Epochs`].
pub struct EpochCell<I> {
    /// The epoch that the CPU saw last, or `RESTING`. Written by the owner, read by all.
    seen: AtomicU64,
    /// *own-bags*, and guards alive.
    readers: Cell<u32>,
    young: Cell<Bag<I>>,
    old: Cell<Bag<I>>,
}

impl<I> EpochCell<I> {
    /// A CPU that rests.
    #[cfg(not(all(loom, test)))]
    pub const fn new() -> Self {
        Self {
            seen: AtomicU64::new(RESTING),
            readers: Cell::new(0),
            young: Cell::new(Bag::EMPTY),
            old: Cell::new(Bag::EMPTY),
        }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn new() -> Self {
        Self {
            seen: AtomicU64::new(RESTING),
            readers: Cell::new(0),
            young: Cell::new(Bag::EMPTY),
            old: Cell::new(Bag::EMPTY),
        }
    }
}

impl<I> Default for EpochCell<I> {
    fn default() -> Self {
        Self::new()
    }
}

/// Epochs over the CPUs of `C`, with one [`EpochCell`] for each in storage that the caller supplies.
pub struct Epochs<'s, C: Cpus, D: Deferral> {
    now: AtomicU64,
    cells: &'s [CachePadded<EpochCell<D::Item>>],
    deferral: D,
    _cpus: PhantomData<fn(&C)>,
}

// SAFETY: *own-bags*: everything in a cell but the atomic `seen` is reached with a guard of the CPU
// that owns it, one context at a time (the promise to `new`); items move between threads as wholes.
unsafe impl<C: Cpus, D: Deferral + Sync> Sync for Epochs<'_, C, D> where D::Item: Send {}
// SAFETY: as for `Sync`.
unsafe impl<C: Cpus, D: Deferral + Send> Send for Epochs<'_, C, D> where D::Item: Send {}

impl<'s, C: Cpus, D: Deferral> Epochs<'s, C, D> {
    /// Epochs for as many CPUs as there are `cells`, which all rest.
    ///
    /// # Safety
    /// All [`Pinned`] guards that are ever used with this value come from one and the same
    /// implementer of [`Cpus`], so that two of them are never for the same CPU at once.
    pub unsafe fn new(cells: &'s mut [CachePadded<EpochCell<D::Item>>], deferral: D) -> Self {
        Self { now: AtomicU64::new(RESTING + 1), cells, deferral, _cpus: PhantomData }
    }

    /// Where the links are.
    pub fn deferral(&self) -> &D {
        &self.deferral
    }

    /// # Panics
    /// When there are fewer cells than CPUs: a bug of the caller.
    #[inline]
    fn cell(&self, pin: &Pinned<'_, C>) -> &EpochCell<D::Item> {
        &self.cells[pin.cpu().index()].0
    }

    /// The CPU comes from user mode or idle, and may read from now on.
    #[inline]
    pub fn enter(&self, pin: &Pinned<'_, C>) {
        let cell = self.cell(pin);
        debug_assert!(
            cell.seen.load(Ordering::Relaxed) == RESTING,
            "{:?} enters the kernel's epochs, but it has not left them",
            pin.cpu()
        );
        self.see(cell);
    }

    /// The CPU goes to user mode or to idle. With a [`Reading`] guard alive, which is a mistake, it
    /// stays (and a debug build stops).
    #[inline]
    pub fn leave(&self, pin: &Pinned<'_, C>) {
        let cell = self.cell(pin);
        if self.holds_nothing(cell, pin) {
            // Everything that was read before is read.
            cell.seen.store(RESTING, Ordering::Release);
        }
    }

    /// The CPU holds no reference at this moment. Costs two loads if the epoch has not changed.
    #[inline]
    pub fn quiesce(&self, pin: &Pinned<'_, C>) {
        let cell = self.cell(pin);
        let seen = cell.seen.load(Ordering::Relaxed);
        if seen != self.now.load(Ordering::Relaxed)
            && seen != RESTING
            && self.holds_nothing(cell, pin)
        {
            self.see(cell);
        }
    }

    /// *store-then-fence-then-read*. What was read before this is read (the store releases it).
    #[inline]
    fn see(&self, cell: &EpochCell<D::Item>) {
        cell.seen.store(self.now.load(Ordering::Relaxed), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn holds_nothing(&self, cell: &EpochCell<D::Item>, pin: &Pinned<'_, C>) -> bool {
        let readers = cell.readers.get();
        debug_assert!(
            readers == 0,
            "{:?} is said to hold no reference, but {readers} reading guards are alive",
            pin.cpu()
        );
        readers == 0
    }

    /// References found under the guard stay valid as long as it lives. Nests. A CPU that rests,
    /// which is a mistake, enters (and a debug build stops).
    #[inline]
    pub fn read<'r>(&'r self, pin: &'r Pinned<'_, C>) -> Reading<'r, D::Item> {
        let cell = self.cell(pin);
        if cell.seen.load(Ordering::Relaxed) == RESTING {
            debug_assert!(false, "{:?} reads while it rests", pin.cpu());
            self.see(cell);
        }
        cell.readers.set(cell.readers.get() + 1);
        Reading { cell, _not_send: PhantomData }
    }

    /// Frees `item` ([`Deferral::reclaim`]) when nobody can have a reference to it any more.
    ///
    /// # Safety
    /// The object was unlinked by an atomic store before this call: whoever reads the structure from
    /// now on does not find it. It is deferred once, and the storage of its link is free.
    pub unsafe fn defer(&self, pin: &Pinned<'_, C>, item: D::Item) {
        // The object is unlinked before the epoch is read (*two-epochs*).
        fence(Ordering::SeqCst);
        let epoch = self.now.load(Ordering::Relaxed);
        let cell = self.cell(pin);
        let mut young = cell.young.get();
        if young.epoch != epoch {
            let old = self.join(cell.old.get(), young);
            cell.old.set(old);
            young = Bag { epoch, ..Bag::EMPTY };
        }
        self.deferral.set_next(item, young.ends.map(|(first, _)| first));
        let last = young.ends.map_or(item, |(_, last)| last);
        cell.young.set(Bag { epoch, count: young.count + 1, ends: Some((item, last)) });
    }

    /// Both lists as one that waits for the later epoch, which is `young`'s.
    fn join(&self, old: Bag<D::Item>, young: Bag<D::Item>) -> Bag<D::Item> {
        let (Some((first, last)), Some((next, end))) = (old.ends, young.ends) else {
            return if young.ends.is_some() { young } else { old };
        };
        self.deferral.set_next(last, Some(next));
        Bag { epoch: young.epoch, count: old.count + young.count, ends: Some((first, end)) }
    }

    /// Advances the epoch if every CPU that does not rest has seen it. O(CPUs).
    pub fn try_advance(&self) -> bool {
        let now = self.now.load(Ordering::Acquire);
        // Whoever is not seen here enters later, and finds what is unlinked by now unlinked.
        fence(Ordering::SeqCst);
        let behind = |cell: &CachePadded<EpochCell<_>>| {
            let seen = cell.seen.load(Ordering::Acquire);
            seen != RESTING && seen != now
        };
        !self.cells.iter().any(behind)
            && self.now.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Tries to advance, and frees what this CPU deferred and may free. Returns how many objects
    /// that were.
    pub fn reclaim(&self, pin: &Pinned<'_, C>) -> usize {
        let cell = self.cell(pin);
        if self.deferred(pin) == 0 {
            return 0;
        }
        self.try_advance();
        let now = self.now.load(Ordering::Acquire);
        self.free_if_due(&cell.old, now) + self.free_if_due(&cell.young, now)
    }

    fn free_if_due(&self, bag: &Cell<Bag<D::Item>>, now: u64) -> usize {
        if bag.get().epoch + GRACE > now {
            return 0;
        }
        self.free(bag.replace(Bag::EMPTY))
    }

    /// Frees a bag that is no cell's any more: `reclaim` may defer.
    fn free(&self, bag: Bag<D::Item>) -> usize {
        let mut next = bag.ends.map(|(first, _)| first);
        while let Some(item) = next {
            next = self.deferral.next(item);
            self.deferral.reclaim(item);
        }
        bag.count
    }

    /// How many objects of this CPU wait.
    pub fn deferred(&self, pin: &Pinned<'_, C>) -> usize {
        let cell = self.cell(pin);
        cell.old.get().count + cell.young.get().count
    }

    /// Frees everything that waits, on all CPUs: nobody else uses the value, hence nobody reads.
    /// Dropping the value instead leaks what waits.
    pub fn drain(&mut self) -> usize {
        let mut count = 0;
        for cell in self.cells {
            while cell.old.get().count + cell.young.get().count != 0 {
                count += self.free(cell.old.replace(Bag::EMPTY));
                count += self.free(cell.young.replace(Bag::EMPTY));
            }
        }
        count
    }
}

/// References that were found stay valid. Neither `Send` nor `Sync`.
#[must_use = "references are valid only while the guard lives"]
pub struct Reading<'r, I> {
    cell: &'r EpochCell<I>,
    _not_send: PhantomData<*mut ()>,
}

impl<I> Drop for Reading<'_, I> {
    #[inline]
    fn drop(&mut self) {
        self.cell.readers.set(self.cell.readers.get() - 1);
    }
}
