//! # Where do slabs come from?
//!
//! The small window is taken from its low end, a unit at a time, lowest address first. Units that no
//! heap needs wait here, in two bitmaps: with their old contents (*dirty*), or given back to the
//! system (*clean*). More dirty ones than the budget allows are given back at once, highest first.
//!
//! Invariant *pool*: `used + dirty + clean = frontier`. All of it is guarded by the pool's lock.
#![allow(unsafe_code)] // bitmaps in the reservation

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::classes::UNIT_BYTES;
use crate::huge::{self, REGION};
use crate::lock::Lock;
use crate::regret::Regret;
use crate::system::System;
use crate::window::{STEP, Window};

/// This many dirty units may wait always: 512 KiB.
const BUDGET: u32 = 32;

/// So many more may wait in a program that goes up and down, and half of what is used: 4 MiB.
const EXTRA: u32 = 256;

/// Units of a region of [`crate::huge`]: whole words of the bitmaps.
const REGION_UNITS: u32 = (REGION / UNIT_BYTES) as u32;
const _: () = assert!(REGION_UNITS % 64 == 0 && STEP % REGION == 0);

/// The pool of units.
pub struct Pool {
    /// Rank 3 of the locks: after the sweep, before the arenas.
    pub lock: Lock,
    books: Books,
}

/// Numbers of units; guarded by the lock.
struct Books {
    frontier: Cell<u32>,
    committed: Cell<u32>,
    dirty: Cell<u32>,
    clean: Cell<u32>,
    /// The frontier when the rest of its region was last given back.
    cut: Cell<u32>,
    /// No set bit in either bitmap below this word.
    hint: Cell<u32>,
    /// How often a unit was taken.
    takes: Cell<u32>,
    regret: Regret,
}

// SAFETY: the books are only touched under the lock.
unsafe impl Sync for Pool {}

/// How many units are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Units ever used.
    pub frontier: u32,
    /// Units that wait with their old contents.
    pub dirty: u32,
    /// Units that wait without memory.
    pub clean: u32,
}

/// The two bitmaps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Map {
    Dirty,
    Clean,
}

impl Pool {
    /// Nothing taken yet.
    pub const fn new() -> Self {
        let books = Books {
            frontier: Cell::new(0),
            committed: Cell::new(0),
            dirty: Cell::new(0),
            clean: Cell::new(0),
            cut: Cell::new(0),
            hint: Cell::new(0),
            takes: Cell::new(0),
            regret: Regret::new(),
        };
        Self { lock: Lock::new(), books }
    }

    /// Takes a unit, or nothing if there is no memory or no room. `dense`: more of its kind are to be
    /// expected ([`crate::huge`]).
    pub fn take<S: System>(&self, window: &Window, system: &S, dense: bool) -> Option<u32> {
        let _held = self.lock.take(system);
        let books = &self.books;
        books.takes.set(books.takes.get().wrapping_add(1));
        for (map, count) in [(Map::Dirty, &books.dirty), (Map::Clean, &books.clean)] {
            if count.get() > 0 {
                if let Some(number) = self.lowest(window, map) {
                    if map == Map::Clean && opens_region(window, number) {
                        // SAFETY: nobody has any of its units.
                        unsafe { huge::tell(system, window.memory(number), dense) };
                    }
                    change(window, map, number, false);
                    count.set(count.get() - 1);
                    books.regret.taken(u32::from(map == Map::Clean));
                    return Some(number);
                }
            }
        }
        let number = self.advance(window, system)?;
        if dense && starts_region(window, number) {
            // SAFETY: all that lies behind the frontier; the step that was committed ends with a region.
            unsafe { huge::tell(system, window.memory(number), true) };
        }
        Some(number)
    }

    fn lowest(&self, window: &Window, map: Map) -> Option<u32> {
        let words = self.books.frontier.get().div_ceil(64);
        let mut other = None;
        for index in self.books.hint.get()..words {
            let bits = word(window, map, index);
            if other.is_none() && bits | word(window, opposite(map), index) != 0 {
                other = Some(index);
                self.books.hint.set(index);
            }
            if bits != 0 {
                return Some(index * 64 + bits.trailing_zeros());
            }
        }
        None
    }

    fn advance<S: System>(&self, window: &Window, system: &S) -> Option<u32> {
        let books = &self.books;
        let number = books.frontier.get();
        if number == books.committed.get() {
            let left = (window.units() - number as usize) * UNIT_BYTES;
            let bytes = STEP.max(number as usize / 8 * UNIT_BYTES).next_multiple_of(STEP).min(left);
            let start = NonNull::new(window.memory(number))?;
            // SAFETY: the window beyond `committed` has never been committed.
            if bytes == 0 || !unsafe { system.commit(start, bytes) } {
                return None;
            }
            books.committed.set(number + (bytes / UNIT_BYTES) as u32);
            window.set_readable(number as usize * UNIT_BYTES + bytes);
        }
        books.frontier.set(number + 1);
        books.regret.taken(1);
        Some(number)
    }

    /// Gives a unit back. Its header has no owner any more. How many are dirty now.
    pub fn give<S: System>(&self, window: &Window, system: &S, number: u32) -> u32 {
        let _held = self.lock.take(system);
        let books = &self.books;
        window_unit_is_nobodys(window, number);
        change(window, Map::Dirty, number, true);
        books.dirty.set(books.dirty.get() + 1);
        books.hint.set(books.hint.get().min(number / 64));
        let used = books.frontier.get() - books.dirty.get() - books.clean.get();
        let times = window.patience();
        let budget = times * (BUDGET + used / 16) + books.regret.extra(times * (EXTRA + used / 2));
        let dirty = books.dirty.get();
        if dirty > budget {
            self.purge(window, system, budget / 2);
            books.regret.gives(dirty - books.dirty.get());
        }
        books.dirty.get()
    }

    /// Gives all dirty units back to the system if the pool is idle, which is told how often a unit was
    /// taken. Bytes given back.
    pub fn settle<S: System>(
        &self,
        window: &Window,
        system: &S,
        is_idle: impl FnOnce(u32) -> bool,
    ) -> Option<usize> {
        let _held = self.lock.take(system);
        is_idle(self.books.takes.get()).then(|| self.purge(window, system, 0))
    }

    /// Gives dirty units back to the system until at most `keep` are left. Bytes given back.
    pub fn trim<S: System>(&self, window: &Window, system: &S, keep: u32) -> usize {
        let _held = self.lock.take(system);
        self.purge(window, system, keep)
    }

    fn purge<S: System>(&self, window: &Window, system: &S, keep: u32) -> usize {
        let books = &self.books;
        let before = books.dirty.get();
        let mut end = books.frontier.get();
        let (start, from) = (window.memory(0), window.huge_from());
        let frontier = end as usize * UNIT_BYTES;
        let beyond = huge::end_of_region(from, frontier);
        let mut lowest = beyond;
        if books.cut.replace(end) != end && frontier < beyond {
            lowest = frontier;
            // SAFETY: units that were never taken, in a region that was opened.
            unsafe { decommit(system, start, frontier..beyond) };
        }
        while books.dirty.get() > keep && end > 0 {
            let number = end - 1;
            let bits = word(window, Map::Dirty, number / 64) & (u64::MAX >> (63 - number % 64));
            if bits == 0 {
                end = number - number % 64;
                continue;
            }
            let last = number - number % 64 + 63 - bits.leading_zeros();
            let mut first = last;
            while first > 0
                && last - first + 1 < books.dirty.get() - keep
                && word(window, Map::Dirty, (first - 1) / 64) >> ((first - 1) % 64) & 1 != 0
            {
                first -= 1;
            }
            self.clean(window, first, last);
            lowest = first as usize * UNIT_BYTES;
            // SAFETY: units in the pool hold nothing that anybody needs.
            unsafe { decommit(system, start, lowest..(last as usize + 1) * UNIT_BYTES) };
            end = first;
        }
        // SAFETY: all that was ever committed is the pool's to advise about.
        unsafe { huge::forbid(system, start, from, lowest..beyond) };
        (before - books.dirty.get()) as usize * UNIT_BYTES
    }

    fn clean(&self, window: &Window, first: u32, last: u32) {
        for number in first..=last {
            change(window, Map::Dirty, number, false);
            change(window, Map::Clean, number, true);
        }
        let count = last - first + 1;
        self.books.dirty.set(self.books.dirty.get() - count);
        self.books.clean.set(self.books.clean.get() + count);
    }

    /// How many units are where.
    pub fn stats<S: System>(&self, system: &S) -> PoolStats {
        let _held = self.lock.take(system);
        let books = &self.books;
        PoolStats {
            frontier: books.frontier.get(),
            dirty: books.dirty.get(),
            clean: books.clean.get(),
        }
    }
}

/// Gives back a range, in bytes from a start.
///
/// # Safety
/// As for [`System::decommit`].
unsafe fn decommit<S: System>(system: &S, start: *mut u8, range: Range<usize>) {
    if let Some(first) = NonNull::new(start.wrapping_add(range.start)) {
        // SAFETY: the caller's promise is ours.
        unsafe { system.decommit(first, range.len()) };
    }
}

fn window_unit_is_nobodys(window: &Window, number: u32) {
    // SAFETY: every number below the frontier has a header.
    let unit = unsafe { &*window.unit(number) };
    unit.limit.store(0, Ordering::Relaxed);
    unit.owner.store(core::ptr::null_mut(), Ordering::Relaxed);
}

/// Whether a unit is the first of a region that may have a huge page.
fn starts_region(window: &Window, number: u32) -> bool {
    number % REGION_UNITS == 0 && number as usize * UNIT_BYTES >= window.huge_from()
}

/// Whether it is, and nothing stands behind the whole region.
fn opens_region(window: &Window, number: u32) -> bool {
    let words = number / 64..(number + REGION_UNITS) / 64;
    starts_region(window, number)
        && words.fold(u64::MAX, |all, index| all & word(window, Map::Clean, index)) == u64::MAX
}

fn opposite(map: Map) -> Map {
    if map == Map::Dirty { Map::Clean } else { Map::Dirty }
}

fn slot(window: &Window, map: Map, index: u32) -> *mut u64 {
    let offset = if map == Map::Dirty { 0 } else { window.units() / 64 };
    window.bitmaps().wrapping_add(offset + index as usize)
}

fn word(window: &Window, map: Map, index: u32) -> u64 {
    // SAFETY: the bitmaps have a bit for each unit, and only the holder of the lock comes here.
    unsafe { slot(window, map, index).read() }
}

fn change(window: &Window, map: Map, number: u32, set: bool) {
    let bit = 1 << (number % 64);
    let old = word(window, map, number / 64);
    let new = if set { old | bit } else { old & !bit };
    // SAFETY: as for `word`.
    unsafe { slot(window, map, number / 64).write(new) };
}
