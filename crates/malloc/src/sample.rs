//! # A heap profile by sampling: who holds the memory of a program in production?
//!
//! Hardened mode tells of every block, and costs several times what malloc does. Here a few blocks speak for
//! all, chosen by their bytes:
//!
//! - A *distance* is drawn from the exponential distribution: so many bytes are allocated by a thread until a
//!   block is chosen, [`Options::interval`] on average. A block counts with one byte more than was asked for, so
//!   that empty ones are seen too. The distribution has no memory: where a block is chosen says nothing about
//!   the next, and a block of `n` bytes is chosen with probability `p = 1 - exp(-(n + 1) / interval)`, whatever
//!   came before.
//! - A chosen block, a *sample*, has a [`Record`]: address, bytes, place. While it is live it stands for `1 / p`
//!   blocks of its size from its *place*, the call of malloc and the calls around it ([`calls`]): so many times it
//!   enters the place's sums, which is right on average. When it is freed, its record goes, and that much leaves the
//!   sums of what is live.
//! - Each resize is a free and an allocation, wherever the block comes to lie.
//!
//! A sample is never in a slab: it is a medium or large block, whose cell or header says that it is
//! one ([`crate::arena::SAMPLED`], in the place where it says `LIVE` of others). So the short ways to free
//! never fit a sample, and no way to free asks about sampling: blocks that are no samples are freed as ever, and
//! the long way, which asks the cell how the block stands, finds one more answer. To allocate, the short way
//! must count: `direct` stays empty, as in hardened mode, and the way that it leads to counts and then does what
//! the short way does. In normal mode nothing here is ever reached.
//!
//! Invariants:
//! - *marked-is-recorded*: a block's cell or header says that it is a sample exactly if there is a record of its
//!   address, but for the moment in which its owner writes the one and then the other.
//! - *sums*: a place's live sums are those of the records that name it, in whole numbers, so that nothing is
//!   left of them when all are gone.
//!
//! Lock: one, of the books; a leaf. No other lock is taken while it is held, but pages are mapped.
//! It is taken for each sample, not for each block. The books grow by mappings of their own, up to
//! [`RECORDS`] records and [`PLACES`] places; what finds no room is allocated as any block, counted as *lost*, and
//! the profile says how much that is.
//!
//! Fork: the child keeps all records, as it keeps the blocks; its numbers are other ones than its parent's
//! from its first sample on. Threads that end leave their distance to who takes over the heap, which
//! the distribution allows. A thread for which there is no heap is not sampled.
//!
//! The calls are walked by whoever can ([`Local::callers`]), before the lock is taken. That may allocate: nothing
//! is a sample meanwhile.
//!
//! Left out: calls around a caller that the host's unwinder does not know, or where there is none (the place is the
//! caller alone then); blocks of less than 1 KiB that are samples take 1 KiB, and `malloc_usable_size` says so. Not
//! together with hardened mode, which knows all and says so itself.
#![allow(unsafe_code)] // a short way of its own; the books under their lock

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::allocator::{Allocator, MIN_ALIGN, pop};
use crate::arena::MEDIUM_MAX;
use crate::classes::SMALL_MAX;
use crate::heap::Heap;
use crate::lock::Lock;
use crate::medium::Given;
use crate::options::Options;
use crate::system::{Local, System};
use crate::unit::Unit;

pub(crate) mod calls;
pub(crate) mod chance;
pub(crate) mod table;

use calls::Calls;
use chance::{Luck, Sum, worth};
use table::{Entry, Table};

/// Records that there may be; a power of two.
pub const RECORDS: usize = 1 << 20;
/// Places that there may be; a power of two.
pub const PLACES: usize = 1 << 16;

/// A sample that is live.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Record {
    at: usize,
    /// Bytes asked for.
    bytes: usize,
    /// The place's key.
    place: usize,
}

// SAFETY: three numbers.
unsafe impl Entry for Record {
    fn key(&self) -> usize {
        self.at
    }
}

/// A place that samples came from.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Place {
    pub key: usize,
    /// The first is 0 if it is not known.
    pub calls: Calls,
    /// All blocks that were allocated.
    pub all: Sum,
    /// Those of them that are live.
    pub live: Sum,
}

// SAFETY: numbers.
unsafe impl Entry for Place {
    fn key(&self) -> usize {
        self.key
    }
}

/// What is known of the samples.
struct Books {
    records: Table<Record, RECORDS>,
    places: Table<Place, PLACES>,
    lost: Sum,
}

/// The samples of an allocator.
pub(crate) struct Samples {
    /// The last of the locks.
    pub lock: Lock,
    seed: AtomicUsize,
    books: UnsafeCell<Books>,
}

// SAFETY: the books are touched under the lock alone; what they point to is theirs.
unsafe impl Sync for Samples {}
// SAFETY: as above.
unsafe impl Send for Samples {}

impl Samples {
    pub const fn new() -> Self {
        Self {
            lock: Lock::new(),
            seed: AtomicUsize::new(0),
            books: UnsafeCell::new(Books {
                records: Table::new(),
                places: Table::new(),
                lost: Sum::NOTHING,
            }),
        }
    }

    /// Gives the numbers a start that nobody can guess.
    pub fn begin(&self, seed: usize) {
        self.seed.store(seed, Ordering::Relaxed);
    }

    fn with<S: System, R>(&self, system: &S, act: impl FnOnce(&mut Books) -> R) -> R {
        let _held = self.lock.take(system);
        // SAFETY: the lock is held, and `act` cannot come back here: it knows the books alone.
        act(unsafe { &mut *self.books.get() })
    }

    /// Checks *sums*, and the marks by `is_marked`. How many records there are.
    #[cfg(test)]
    pub fn check<S: System>(
        &self,
        system: &S,
        interval: usize,
        is_marked: impl Fn(usize) -> bool,
    ) -> usize {
        self.with(system, |books| {
            let mut live = std::collections::HashMap::new();
            for record in books.records.iter() {
                assert!(is_marked(record.at), "{record:?}");
                live.entry(record.place).or_insert(Sum::NOTHING).add(worth(record.bytes, interval));
            }
            for place in books.places.iter() {
                assert_eq!(place.live, live.remove(&place.key).unwrap_or_default(), "{place:?}");
            }
            assert!(live.is_empty());
            books.records.iter().count()
        })
    }

    /// Gives the books' pages back. Nobody uses the allocator again.
    pub fn end<S: System>(&self, system: &S) {
        self.with(system, |books| {
            books.records.clear(system);
            books.places.clear(system);
        });
    }
}

impl Books {
    /// Enters a sample. False: there is no room.
    fn enter<S: System>(
        &mut self,
        system: &S,
        record: Record,
        calls: &Calls,
        sum: Sum,
        new: bool,
    ) -> bool {
        if self.places.get_mut(record.place).is_none() {
            let nothing = Sum::NOTHING;
            let place = Place { key: record.place, calls: *calls, all: nothing, live: nothing };
            if !self.places.insert(system, place) {
                return false;
            }
        }
        if !self.records.insert(system, record) {
            return false;
        }
        if let Some(place) = self.places.get_mut(record.place) {
            place.all.add(if new { sum } else { Sum::NOTHING });
            place.live.add(sum);
        }
        true
    }
}

/// What is known of all places at one moment: [`Allocator::sampled`].
pub(crate) struct Sampled {
    places: Table<Place, PLACES>,
    /// What the profile does not know.
    pub lost: Sum,
}

impl Sampled {
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.iter()
    }

    pub fn end<S: System>(mut self, system: &S) {
        self.places.clear(system);
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Whether allocations go other ways than the short one: hardened mode's, or those that count.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.options().has_any(Options::HARDENED.with(Options::SAMPLE))
    }

    /// Whether allocations are sampled. Not in hardened mode.
    #[inline]
    pub(crate) fn is_sampling(&self) -> bool {
        self.options().has(Options::SAMPLE)
    }

    /// [`Allocator::alloc`] where [`Allocator::is_watched`].
    #[cold]
    #[inline(never)]
    pub(crate) fn watched_alloc(&self, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_hardened() {
            return self.hard_alloc(bytes, 1, false, pc);
        }
        self.sampled_alloc(bytes, pc)
    }

    /// [`Allocator::alloc_zeroed`] where [`Allocator::is_watched`].
    #[cold]
    #[inline(never)]
    pub(crate) fn watched_zeroed(&self, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_hardened() {
            return self.hard_alloc(bytes, 1, true, pc);
        }
        let short = Given { at: self.sampled_short(bytes), zeroed: false };
        if !short.at.is_null() {
            return self.clear(short, bytes);
        }
        let given = match self.chosen(bytes, 1, pc) {
            Some(given) => given,
            None if bytes > SMALL_MAX => self.take_medium(self.own_heap(), bytes, 1),
            None => Given { at: self.ordinary(bytes), zeroed: false },
        };
        self.clear(given, bytes)
    }

    /// [`Allocator::alloc_aligned`] where [`Allocator::is_watched`].
    #[cold]
    #[inline(never)]
    pub(crate) fn watched_aligned(&self, bytes: usize, align: usize, pc: usize) -> Given {
        if self.is_hardened() {
            return Given { at: self.hard_alloc(bytes, align, false, pc), zeroed: false };
        }
        match self.chosen(bytes, align, pc) {
            Some(given) => given,
            None if align <= MIN_ALIGN && bytes <= SMALL_MAX => {
                Given { at: self.ordinary(bytes), zeroed: false }
            }
            None => self.plain_aligned(self.own_heap(), bytes, align),
        }
    }

    /// [`Allocator::realloc`] where [`Allocator::is_watched`].
    ///
    /// # Safety
    /// As there.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn watched_realloc(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_hardened() {
            return self.hard_realloc(at, bytes, pc);
        }
        if at.is_null() {
            return self.sampled_alloc(bytes, pc);
        }
        let old = self.unmark(at);
        // SAFETY: the caller's promise is ours.
        let new = unsafe {
            if self.is_due(bytes) {
                self.resize_sampled(at, bytes, pc)
            } else {
                self.plain_realloc(at, bytes, |bytes| self.ordinary(bytes))
            }
        };
        if let (true, Some((bytes, calls))) = (new.is_null(), old) {
            // It is as before.
            self.enter_sample(at, bytes, &calls, false);
        }
        new
    }

    /// Makes a sample of a block that gets another size, and is none.
    unsafe fn resize_sampled(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        let offset = self.window.medium_offset(at as usize);
        let large = offset.is_none() && !self.window.is_small(at as usize);
        // SAFETY: the caller's promise is ours; the two blocks of the copy are different ones.
        unsafe {
            if let (true, Some(moved)) = (large, self.resize_large(large, at, bytes)) {
                self.enter_sample(moved, bytes, &self.calls(pc), true);
                return moved;
            }
            let given = self.sample(bytes, 1, pc);
            let new = if given.at.is_null() { self.ordinary(bytes) } else { given.at };
            if !new.is_null() {
                ptr::copy_nonoverlapping(at, new, self.usable_inner(at).min(bytes));
                self.free(at);
            }
            new
        }
    }

    /// Moves the pages of a large block that stays one.
    unsafe fn resize_large(&self, large: bool, at: *mut u8, bytes: usize) -> Option<*mut u8> {
        if !large || bytes <= MEDIUM_MAX {
            return None;
        }
        // SAFETY: the caller's promise is ours.
        unsafe { self.resize_medium(at, bytes) }.map(ptr::NonNull::as_ptr)
    }

    /// A block that is counted; null when there is no memory.
    #[inline(always)]
    pub(crate) fn sampled_alloc(&self, bytes: usize, pc: usize) -> *mut u8 {
        let block = self.sampled_short(bytes);
        if block.is_null() { self.sampled_long(bytes, pc) } else { block }
    }

    /// [`Allocator::alloc_short`], counted; null, and not counted, if that is not all there is to do.
    #[inline(always)]
    fn sampled_short(&self, bytes: usize) -> *mut u8 {
        let heap = self.local.get();
        // SAFETY: as for `alloc_short`: the heap that is never written is due at once. Its `sealed` has the
        // slabs that `direct` has elsewhere.
        unsafe {
            let until = (*heap).until.get();
            if bytes <= SMALL_MAX && bytes < until {
                let sealed = (&raw const (*heap).sealed).cast::<*const Unit>();
                let block = pop(*sealed.add((bytes + 15) >> 4));
                if !block.is_null() {
                    (*heap).until.set(until - bytes - 1);
                }
                return block;
            }
        }
        ptr::null_mut()
    }

    #[cold]
    #[inline(never)]
    fn sampled_long(&self, bytes: usize, pc: usize) -> *mut u8 {
        self.chosen(bytes, 1, pc).map_or_else(|| self.ordinary(bytes), |given| given.at)
    }

    /// A sample, if it is time for one. Nothing: the block, which has been counted, is to be none.
    fn chosen(&self, bytes: usize, align: usize, pc: usize) -> Option<Given> {
        let given = if self.is_due(bytes) { self.sample(bytes, align, pc) } else { Given::NOTHING };
        // There may be room for it in a slab.
        (!given.at.is_null()).then_some(given)
    }

    /// A block that is not counted.
    fn ordinary(&self, bytes: usize) -> *mut u8 {
        let heap = self.own_heap();
        if let (Some(heap), true) = (heap, bytes > SMALL_MAX) {
            let block = self.take_kept(heap, bytes);
            if !block.is_null() {
                return block;
            }
        }
        self.take_anew(heap, bytes)
    }

    /// Counts a block. True: it is to be a sample.
    fn is_due(&self, bytes: usize) -> bool {
        let Some(heap) = self.heap() else { return false };
        let until = heap.until.get();
        if bytes < until {
            heap.until.set(until - bytes - 1);
            return false;
        }
        self.draw_distance(heap, bytes)
    }

    /// Draws the next distance. A heap that never did begins with one for the block that asks.
    #[cold]
    #[inline(never)]
    fn draw_distance(&self, heap: &Heap, bytes: usize) -> bool {
        let interval = self.options().interval();
        let fresh = heap.luck.get() == Luck::NONE;
        if fresh {
            let number = heap.number.load(Ordering::Relaxed) as usize;
            heap.luck.set(Luck::new(self.samples.seed.load(Ordering::Relaxed), number));
        }
        // A child draws other numbers than its parent.
        let process = u64::from(self.system.process());
        let mut luck = heap.luck.get();
        let mut until = luck.distance(process, interval);
        let due = !fresh || bytes >= until;
        if !due {
            until -= bytes + 1;
        } else if fresh {
            until = luck.distance(process, interval);
        }
        heap.luck.set(luck);
        heap.until.set(until);
        due
    }

    /// A block with a record, if there is room for one.
    fn sample(&self, bytes: usize, align: usize, pc: usize) -> Given {
        // What a thread keeps for its medium blocks is not for small ones.
        let heap = if bytes > SMALL_MAX { self.own_heap() } else { None };
        let given = self.take_medium(heap, bytes, align);
        if !given.at.is_null() {
            self.enter_sample(given.at, bytes, &self.calls(pc), true);
        }
        given
    }

    /// The calls that led here, from the one that returns to `pc` on.
    fn calls(&self, pc: usize) -> Calls {
        let Some(heap) = self.own_heap() else { return Calls::one(pc) };
        // What the walk allocates is not sampled.
        let until = heap.until.replace(usize::MAX);
        let calls = Calls::around(pc, |all| self.local.callers(all));
        heap.until.set(until);
        calls
    }

    /// Makes a sample of a medium or large block, if there is room in the books: one that is new, or one
    /// that was a sample before.
    fn enter_sample(&self, at: *mut u8, bytes: usize, calls: &Calls, new: bool) {
        let sum = worth(bytes, self.options().interval());
        let record = Record { at: at as usize, bytes, place: calls.key() };
        let entered = self.samples.with(&self.system, |books| {
            let entered = books.enter(&self.system, record, calls, sum, new);
            if !entered {
                books.lost.add(sum);
            }
            entered
        });
        if entered {
            self.mark_sampled(at);
        }
    }

    /// Takes the record of a sample that is no longer one. Its bytes, and the calls that it came from.
    #[cold]
    #[inline(never)]
    pub(crate) fn forget(&self, at: *mut u8) -> Option<(usize, Calls)> {
        let interval = self.options().interval();
        self.samples.with(&self.system, |books| {
            let record = books.records.remove(at as usize)?;
            let place = books.places.get_mut(record.place)?;
            place.live.subtract(worth(record.bytes, interval));
            Some((record.bytes, place.calls))
        })
    }

    /// What is known now. Nothing: nothing is sampled, or there is no memory to say it.
    pub(crate) fn sampled(&self) -> Option<Sampled> {
        if !self.is_sampling() {
            return None;
        }
        self.samples.with(&self.system, |books| {
            let places = books.places.copy(&self.system)?;
            Some(Sampled { places, lost: books.lost })
        })
    }
}
