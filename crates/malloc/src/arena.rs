//! # Best fit for blocks from 1 to 128 KiB
//!
//! The medium window is cut into [`ARENAS`] arenas with a lock each. An arena grows upwards from its
//! start; below its top lie allocated and free blocks without a gap, in granules of 64 bytes. Free
//! neighbours are merged at once.
//!
//! What is known about an *allocated* block stands in its cell, out of band: one cell of four bytes for
//! each KiB of the window. Allocated blocks are longer than 1 KiB, so that no cell has to speak for two.
//! A *free* block carries its size, how much of it may have memory behind it, and the links of its bin
//! at its start, and its size again at its end.
//!
//! Invariants, all under the arena's lock except a cell's `state`, which belongs to whoever holds the
//! block:
//! - *no-gap*: from the start to `top`, each block ends where the next starts;
//! - *merged*: no two free blocks touch, and none touches `top`;
//! - *before-is-free*: a cell says so exactly when the block before is free;
//! - *live*: `live + sum of free sizes = top`.
//!
//! Bins: one for each size to 4 KiB, sixteen for each octave above. Best fit is exact below 4 KiB, and
//! the best of the first few dozen candidates above.
#![allow(unsafe_code)] // free blocks carry their own books

use core::cell::Cell as Own;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use crate::huge::{self, REGION};
use crate::regret::Regret;
use crate::system::{PAGE_BYTES, System};
use crate::window::{STEP, Window};

mod bins;
mod purge;

/// How many arenas there are.
pub const ARENAS: usize = 8;
/// Bytes of a granule.
pub const GRANULE: usize = 64;
/// Bytes that a cell speaks for.
pub const CELL_BYTES: usize = 1024;
/// The largest medium request, in bytes.
pub const MEDIUM_MAX: usize = 128 << 10;
/// The smallest block in granules: more than a cell's bytes.
const SMALLEST: u32 = (CELL_BYTES / GRANULE) as u32 + 1;

const GRANULES_IN_CELL: u32 = (CELL_BYTES / GRANULE) as u32;
const PAGE_GRANULES: u32 = (PAGE_BYTES / GRANULE) as u32;
const REGION_GRANULES: u32 = (REGION / GRANULE) as u32;
const EXACT: u32 = 64;
const BINS: usize = 64 + 24 * 16;
const MAPS: usize = BINS / 64;
/// This much may be free and dirty always, in granules: 256 KiB.
const BUDGET: u32 = 4096;
/// So much more may be free and dirty in a program that goes up and down, in granules: 1 MiB.
const EXTRA: u32 = 16384;
/// Free blocks below this are not worth a call to the system, in granules: 16 KiB.
const WORTH: u32 = 256;

/// `state` of a cell: nothing starts here.
pub const FREED: u8 = 0;
/// `state` of a cell: the program holds the block.
pub const LIVE: u8 = 1;
/// `state` of a cell: the block waits among the recents of a thread, linked to others.
pub const KEPT: u8 = 2;
/// `state` of a cell: the program holds the block, which is a sample ([`crate::sample`]).
pub const SAMPLED: u8 = 3;

/// What is known about the block that starts in one KiB.
#[repr(C)]
pub struct Cell {
    /// Size in granules * 16 + which granule of the cell it starts in; 0 = none.
    block: AtomicU16,
    /// [`FREED`], [`LIVE`], [`KEPT`], [`SAMPLED`], or the tie of a thread ([`crate::recent::TIED`]); belongs to the
    /// holder of the block.
    pub state: AtomicU8,
    before_is_free: AtomicU8,
}

/// The books of an arena. All zero is an empty one.
#[repr(C)]
pub struct Arena {
    top: Own<u32>,
    /// Beyond it everything reads as zero.
    high: Own<u32>,
    committed: Own<u32>,
    live: Own<u32>,
    dirty: Own<u32>,
    /// The least that was free and dirty since it was last looked through for what may go back.
    seen: Own<u32>,
    /// How often it was looked through.
    looks: Own<u32>,
    /// How often a block was taken.
    takes: Own<u32>,
    regret: Regret,
    maps: [Own<u64>; MAPS],
    /// Granule + 1 of each bin's first block.
    bins: [Own<u32>; BINS],
}

const _: () = assert!(size_of::<Arena>() <= crate::window::ARENA_STRIDE);
const _: () = assert!(size_of::<Cell>() == 4);

/// A block found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its granule in the arena.
    pub start: u32,
    /// Whether it has never been used since the system zeroed it.
    pub zeroed: bool,
}

/// How an arena stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes from the start to the top.
    pub bytes: usize,
    /// Bytes of blocks handed out (or kept by threads).
    pub live: usize,
    /// Bytes that are free and may have memory behind them.
    pub dirty: usize,
    /// How often it was looked through for what may go back to the system.
    pub looks: usize,
}

/// An arena with its lock held: the only way to touch its books.
pub struct Ground<'a, S: System> {
    arena: &'a Arena,
    system: &'a S,
    memory: *mut u8,
    cells: *const Cell,
    room: u32,
    huge_from: usize,
    patience: u32,
    _held: crate::lock::Held<'a, S>,
}

impl Cell {
    /// Zero, or the size in granules of the block that starts at that distance from the window's start;
    /// nothing when another block starts in the cell's KiB.
    #[inline(always)]
    pub fn block_of(&self, offset: usize) -> Option<u32> {
        let block = u32::from(self.block.load(Ordering::Relaxed));
        let other = ((block as usize * GRANULE) ^ offset) % CELL_BYTES;
        (other == 0).then_some(block / GRANULES_IN_CELL)
    }

    /// The block's size in granules, if one starts at that granule of the arena.
    #[inline]
    pub fn block_at(&self, granule: u32) -> Option<u32> {
        let block = u32::from(self.block.load(Ordering::Relaxed));
        (block != 0 && block % GRANULES_IN_CELL == granule % GRANULES_IN_CELL)
            .then_some(block / GRANULES_IN_CELL)
    }
}

impl<'a, S: System> Ground<'a, S> {
    /// Takes an arena's lock.
    pub fn enter(window: &'a Window, system: &'a S, number: usize) -> Self {
        // SAFETY: arenas lie in committed memory, and all zero is a valid one.
        let arena = unsafe { &*window.arena(number) };
        let bytes = window.medium_bytes() / ARENAS;
        Self {
            arena,
            system,
            memory: window.medium().wrapping_add(number * bytes),
            cells: window.cells().wrapping_add(number * bytes / CELL_BYTES),
            room: (bytes / GRANULE) as u32,
            huge_from: window.huge_from(),
            patience: window.patience(),
            _held: window.lock(number).take(system),
        }
    }

    /// The address of a granule.
    pub fn address(&self, granule: u32) -> *mut u8 {
        self.memory.wrapping_add(granule as usize * GRANULE)
    }

    /// The cell of a granule.
    pub fn cell(&self, granule: u32) -> &Cell {
        // SAFETY: there is a cell for each KiB of the window, and all zero is a valid one.
        unsafe { &*self.cells.wrapping_add((granule / GRANULES_IN_CELL) as usize) }
    }

    /// Allocates so many granules (more than a cell's) at a multiple of `align` granules.
    pub fn take(&self, size: u32, align: u32) -> Option<Found> {
        let size = size.max(SMALLEST);
        self.arena.takes.set(self.arena.takes.get().wrapping_add(1));
        let found = match self.search(size.checked_add(align - 1)?) {
            Some(start) => self.cut(start, size, align),
            None => self.extend(size, align)?,
        };
        let cell = self.cell(found.start);
        cell.block.store(
            (size * GRANULES_IN_CELL + found.start % GRANULES_IN_CELL) as u16,
            Ordering::Relaxed,
        );
        cell.state.store(LIVE, Ordering::Relaxed);
        self.arena.live.set(self.arena.live.get() + size);
        Some(found)
    }

    /// Allocates inside a free block that is large enough.
    fn cut(&self, start: u32, size: u32, align: u32) -> Found {
        let node = self.remove(start);
        let lead = (start.next_multiple_of(align)) - start;
        let rest = node.size - lead - size;
        let at = start + lead;
        let mut dirty = node.dirty;
        self.cell(at).before_is_free.store(0, Ordering::Relaxed);
        self.set_before(start + node.size, false);
        if lead > 0 {
            self.insert(start, lead, dirty.min(lead));
            dirty -= dirty.min(lead);
        }
        self.arena.regret.taken(size - dirty.min(size));
        dirty = dirty.saturating_sub(size);
        if rest > 0 {
            self.insert(at + size, rest, dirty.min(rest));
        }
        Found { start: at, zeroed: false }
    }

    /// Allocates at the top.
    fn extend(&self, size: u32, align: u32) -> Option<Found> {
        let top = self.arena.top.get();
        let start = top.checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        self.grow_to(end)?;
        let zeroed = start >= self.arena.high.get();
        self.arena.top.set(end);
        let old_high = self.arena.high.get();
        self.arena.high.set(old_high.max(end));
        self.open_regions(old_high, end);
        self.arena.regret.taken(end.saturating_sub(old_high.max(start)));
        self.cell(start).before_is_free.store(0, Ordering::Relaxed);
        if start > top {
            self.insert(top, start - top, old_high.saturating_sub(top).min(start - top));
        }
        Some(Found { start, zeroed })
    }

    /// Says of the regions of [`crate::huge`] that begin between two granules, of which the first was beyond
    /// everything ever touched, whether they may have huge pages.
    fn open_regions(&self, from: u32, to: u32) {
        let first = from.next_multiple_of(REGION_GRANULES);
        if first < to && first as usize * GRANULE >= self.huge_from {
            // A block is smaller than a region, so that there is one at most.
            // SAFETY: it lies beyond all blocks, and what is committed ends with a region.
            unsafe {
                huge::tell(self.system, self.address(first), self.arena.live.get() >= first / 2)
            };
        }
    }

    fn grow_to(&self, end: u32) -> Option<()> {
        let committed = self.arena.committed.get();
        if end <= committed {
            return Some(());
        }
        if end > self.room {
            return None;
        }
        let step = (STEP / GRANULE) as u32;
        let wanted = (end - committed).max(committed / 8).next_multiple_of(step);
        let size = wanted.min(self.room - committed);
        let start = NonNull::new(self.address(committed))?;
        // SAFETY: the arena beyond `committed` has never been committed.
        if !unsafe { self.system.commit(start, size as usize * GRANULE) } {
            return None;
        }
        self.arena.committed.set(committed + size);
        Some(())
    }

    /// Frees a block of that size, which the cell has confirmed. Bytes that are free and dirty now.
    pub fn give(&self, start: u32, size: u32) -> usize {
        let cell = self.cell(start);
        cell.state.store(FREED, Ordering::Relaxed);
        cell.block.store(0, Ordering::Relaxed);
        self.arena.live.set(self.arena.live.get() - size);
        self.give_range(start, size, cell.before_is_free.load(Ordering::Relaxed) != 0);
        let (free, live) = (self.dirty(), self.arena.live.get());
        let most = EXTRA + live / 8;
        let budget =
            self.patience * (BUDGET + live / 8) + self.arena.regret.extra(self.patience * most);
        // What nothing was worth before is not looked through again for each block, but when there is more.
        let seen = self.arena.seen.get().min(free);
        self.arena.seen.set(seen);
        if free > budget && free - seen >= budget / 8 {
            self.purge(budget / 2);
            self.arena.looks.set(self.arena.looks.get().wrapping_add(1));
            self.arena.regret.gives(free - self.dirty());
            self.arena.seen.set(self.dirty());
        }
        self.dirty() as usize * GRANULE
    }

    /// How often a block was taken.
    pub fn takes(&self) -> u32 {
        self.arena.takes.get()
    }

    /// Makes a range free and merges it with its neighbours.
    fn give_range(&self, mut start: u32, mut size: u32, before_is_free: bool) {
        let mut dirty = size;
        let end = start + size;
        if end < self.arena.top.get() && self.cell(end).block_at(end).is_none() {
            let node = self.remove(end);
            size += node.size;
            dirty += node.dirty;
        }
        if before_is_free {
            // SAFETY: *before-is-free*: the block before ends here with its size.
            let before = unsafe { self.footer(start).read() };
            if before == 0 || before > start {
                self.corrupt(start);
            }
            start -= before;
            let node = self.remove(start);
            if node.size != before {
                self.corrupt(start);
            }
            size += before;
            dirty += node.dirty;
        }
        if start + size == self.arena.top.get() {
            self.arena.top.set(start);
        } else {
            self.insert(start, size, dirty);
        }
    }

    /// Changes a block's size in place. False: there is no room.
    #[inline(always)]
    pub fn resize(&self, start: u32, old: u32, new: u32) -> bool {
        let new = new.max(SMALLEST);
        let end = start + old;
        if new > old {
            let more = new - old;
            if end == self.arena.top.get() {
                if self.grow_to(start + new).is_none() {
                    return false;
                }
                self.arena.top.set(start + new);
                let old_high = self.arena.high.get();
                self.arena.high.set(old_high.max(start + new));
                self.open_regions(old_high, start + new);
            } else {
                if self.cell(end).block_at(end).is_some() || self.node(end).size < more {
                    return false;
                }
                let node = self.remove(end);
                self.set_before(end + node.size, false);
                let dirty = node.dirty.saturating_sub(more);
                if node.size > more {
                    self.insert(end + more, node.size - more, dirty.min(node.size - more));
                }
            }
        }
        let cell = self.cell(start);
        let block = new * GRANULES_IN_CELL + start % GRANULES_IN_CELL;
        cell.block.store(block as u16, Ordering::Relaxed);
        self.arena.live.set(self.arena.live.get() - old + new);
        if new < old {
            self.give_range(start + new, old - new, false);
        }
        true
    }

    /// How the arena stands.
    pub fn stats(&self) -> ArenaStats {
        ArenaStats {
            bytes: self.arena.top.get() as usize * GRANULE,
            live: self.arena.live.get() as usize * GRANULE,
            dirty: self.dirty() as usize * GRANULE,
            looks: self.arena.looks.get() as usize,
        }
    }
}
