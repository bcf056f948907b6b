//! # What goes back while nobody calls?
//!
//! What is freed goes back at once beyond budgets, which grow with what a program uses and with what it
//! regretted ([`crate::regret`]): a program that went up and down by some megabytes and then waits keeps
//! them. Nobody calls, so nobody looks. For a program with threads the host may have a thread of its own
//! that does: the *helper*, which [`Allocator::tend`] makes of any thread.
//!
//! - Who starts it: whoever first sees [`MUCH`] idle in a part, in a process where a second thread has
//!   taken a heap, through [`Local::helper`]. Never in a program with one thread, nor in one that does little:
//!   the budgets that are always allowed are smaller.
//! - How it sleeps: on a word, without a time, until somebody *notes* a part of the memory in it: the pool,
//!   an arena, the announced slabs. Then it looks every [`PERIOD`] until nothing is noted any more. A program
//!   that idles is not woken again.
//! - What it does: a part from which nothing was taken for a whole period is idle, and all that it keeps goes
//!   back. That costs a program that comes back whatever it faults in again, at most once for each period.
//! - What it touches: what the parts' locks guard, and what a sweep may ([`crate::sweep`]): never a heap.
//! - What notes cost: a load and a test where a slab or a medium block goes back and much is idle. The word
//!   of a process that will have no helper reads as if all were noted.
//! - Fork: the child has none, and starts one as any process does, once it has threads again. The helper is
//!   not in the middle of anything: it works under locks that the fork takes.
//!
//! Left out: what threads keep for themselves (heads, parcels, recent blocks; a slab of which the owner
//! freed some blocks and others the rest): to look at it from outside would cost the fast paths a step.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::allocator::Allocator;
use crate::arena::{ARENAS, Ground};
use crate::classes::UNIT_BYTES;
use crate::heap::DEAD;
use crate::options::Options;
use crate::system::{Local, System};

/// A look each so many milliseconds, while something is noted.
const PERIOD: u32 = 250;
/// So many bytes that wait in a part are worth a note.
const WORTH: usize = 128 << 10;
/// So many are worth a thread.
const MUCH: usize = 640 << 10;

/// There is a helper.
const HELPER: u32 = 1 << 31;
/// There will be none.
const NEVER: u32 = u32::MAX;

/// A part of the memory: its bit in the word.
#[derive(Clone, Copy)]
pub(crate) struct Part(u32);

impl Part {
    /// Units that wait.
    pub const POOL: Self = Self(1 << ARENAS);
    /// Slabs that are wholly free, and whose owners do not fetch them.
    pub const HEAPS: Self = Self(2 << ARENAS);
    const ALL: u32 = (4 << ARENAS) - 1;

    /// What is free in an arena.
    pub const fn arena(number: usize) -> Self {
        Self(1 << (number % ARENAS))
    }
}

/// What there is to do, and what was done.
pub(crate) struct Idle {
    /// Zero: no helper yet. [`NEVER`]; or [`HELPER`] and the parts noted.
    word: AtomicU32,
    /// The process, and its threads that were given a heap.
    process: AtomicU32,
    company: AtomicU32,
    given: AtomicUsize,
}

impl Idle {
    pub const fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            process: AtomicU32::new(0),
            company: AtomicU32::new(0),
            given: AtomicUsize::new(0),
        }
    }

    /// A thread of this process got a heap.
    pub fn count_thread(&self, process: u32) {
        let known = self.process.load(Ordering::Relaxed);
        if known != 0 && known != process {
            // A fork that nobody told us of.
            self.after_fork(process, 1);
        }
        self.process.store(process, Ordering::Relaxed);
        self.company.fetch_add(1, Ordering::Relaxed);
    }

    /// In a child after fork, whose only thread has so many heaps.
    pub fn after_fork(&self, process: u32, heaps: u32) {
        self.process.store(process, Ordering::Relaxed);
        self.company.store(heaps, Ordering::Relaxed);
        if self.word.load(Ordering::Relaxed) != NEVER {
            self.word.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes that the helper gave back; nothing if there is none.
    pub fn given(&self) -> Option<usize> {
        let word = self.word.load(Ordering::Relaxed);
        (word != 0 && word != NEVER).then(|| self.given.load(Ordering::Relaxed))
    }
}

/// What was seen a period ago: for each part how often something had been taken from it.
#[derive(Default)]
pub(crate) struct Seen {
    parts: u32,
    arenas: [u32; ARENAS],
    pool: u32,
}

impl Seen {
    /// Whether nothing was taken from a part since the last look, if there was one.
    fn is_idle(&mut self, part: u32, place: fn(&mut Self, u32) -> &mut u32, takes: u32) -> bool {
        let idle = self.parts & part != 0 && *place(self, part) == takes;
        *place(self, part) = takes;
        self.parts = if idle { self.parts & !part } else { self.parts | part };
        idle
    }

    fn arena(&mut self, part: u32) -> &mut u32 {
        &mut self.arenas[part.trailing_zeros() as usize % ARENAS]
    }

    fn pool(&mut self, _: u32) -> &mut u32 {
        &mut self.pool
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Says how many bytes of a part wait.
    #[inline]
    pub(crate) fn note(&self, part: Part, bytes: usize) {
        if bytes >= WORTH && self.idle.word.load(Ordering::Relaxed) & part.0 == 0 {
            self.note_now(part, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn note_now(&self, part: Part, bytes: usize) {
        let word = &self.idle.word;
        if word.load(Ordering::Relaxed) == 0 {
            let unwanted = self.is_hardened() || self.options().has(Options::NO_HELPER);
            if bytes < MUCH || self.idle.company.load(Ordering::Relaxed) < 2 {
                return;
            }
            let first = if unwanted { NEVER } else { HELPER | Part::ALL };
            let mine = word.compare_exchange(0, first, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if mine && !unwanted && !self.local.helper() {
                word.store(NEVER, Ordering::Relaxed);
            }
        } else if word.fetch_or(part.0, Ordering::AcqRel) == HELPER {
            self.system.wake(word);
        }
    }

    /// There is no helper after all: its thread cannot do what it must.
    pub fn no_helper(&self) {
        self.idle.word.store(NEVER, Ordering::Relaxed);
    }

    /// Makes this thread the helper that [`Local::helper`] asked for. It needs no heap, and
    /// [`Local::get`] may say [`crate::Heap::none`] for ever.
    pub fn tend(&self) -> ! {
        let (word, mut seen) = (&self.idle.word, Seen::default());
        loop {
            while word.load(Ordering::Relaxed) == HELPER {
                self.system.wait(word, HELPER);
            }
            // Noted again while it is looked at, a part is looked at again.
            let noted = word.swap(HELPER, Ordering::AcqRel) & Part::ALL;
            let left = self.settle_parts(noted, &mut seen);
            if left != 0 {
                word.fetch_or(left, Ordering::AcqRel);
                self.system.pause(PERIOD);
            }
        }
    }

    /// Gives back what lies idle in these parts. Those that were in use since the last look, or that
    /// nobody had looked at.
    pub(crate) fn settle_parts(&self, parts: u32, seen: &mut Seen) -> u32 {
        let (mut given, mut left) = (0, 0);
        if parts & Part::HEAPS.0 != 0 {
            // Owners that run fetch theirs meanwhile.
            if seen.parts & Part::HEAPS.0 == 0 {
                left |= Part::HEAPS.0;
            } else {
                self.settle_heaps();
            }
            seen.parts ^= Part::HEAPS.0;
        }
        if parts & Part::POOL.0 != 0 {
            let idle = |takes| seen.is_idle(Part::POOL.0, Seen::pool, takes);
            match self.pool.settle(&self.window, &self.system, idle) {
                Some(bytes) => given += bytes,
                None => left |= Part::POOL.0,
            }
        }
        for number in (0..ARENAS).filter(|&number| parts & Part::arena(number).0 != 0) {
            let ground = Ground::enter(&self.window, &self.system, number);
            if seen.is_idle(Part::arena(number).0, Seen::arena, ground.takes()) {
                given += ground.purge(0);
            } else {
                left |= Part::arena(number).0;
            }
        }
        self.idle.given.fetch_add(given, Ordering::Relaxed);
        left
    }

    #[allow(unsafe_code)] // one look into the table of heaps
    fn settle_heaps(&self) {
        for number in 0..self.threads.count.load(Ordering::Acquire) as usize {
            // SAFETY: places below the count have been written.
            let heap = unsafe { &*self.window.heap(number) };
            if self.is_stale(heap) {
                continue;
            }
            if heap.state.load(Ordering::Relaxed) == DEAD {
                self.tidy(heap, false);
            } else {
                self.sweep(heap, 1);
            }
        }
    }
}

const _: () = assert!(WORTH / UNIT_BYTES > 0 && Part::ALL < HELPER);
