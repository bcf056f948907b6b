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

use crate::system::{Corruption, PAGE_BYTES, Stop, System};
use crate::window::{STEP, Window};

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
const EXACT: u32 = 64;
const BINS: usize = 64 + 24 * 16;
const MAPS: usize = BINS / 64;
/// This much may be free and dirty always, in granules: 256 KiB.
const BUDGET: u32 = 4096;
/// Free blocks below this are not worth a call to the system, in granules: 16 KiB.
const WORTH: u32 = 256;

/// `state` of a cell: nothing starts here.
pub const FREED: u8 = 0;
/// `state` of a cell: the program holds the block.
pub const LIVE: u8 = 1;
/// `state` of a cell: the block waits among the recents of a thread.
pub const KEPT: u8 = 2;

/// What is known about the block that starts in one KiB.
#[repr(C)]
pub struct Cell {
    /// Size in granules * 16 + which granule of the cell it starts in; 0 = none.
    block: AtomicU16,
    /// [`FREED`], [`LIVE`] or [`KEPT`]; belongs to the holder of the block.
    pub state: AtomicU8,
    before_is_free: AtomicU8,
}

/// A free block, at its start. All in granules.
#[derive(Clone, Copy)]
#[repr(C)]
struct Node {
    size: u32,
    /// How much of it may have memory behind it.
    dirty: u32,
    next: u32,
    previous: u32,
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
}

/// An arena with its lock held: the only way to touch its books.
pub struct Ground<'a, S: System> {
    arena: &'a Arena,
    system: &'a S,
    memory: *mut u8,
    cells: *const Cell,
    room: u32,
    _held: crate::lock::Held<'a, S>,
}

fn bin_of(size: u32) -> usize {
    if size <= EXACT {
        return size as usize - 1;
    }
    let octave = size.ilog2();
    let bin = 64 + (octave as usize - 6) * 16 + (size >> (octave - 4)) as usize % 16;
    bin.min(BINS - 1)
}

impl Cell {
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

    fn node(&self, granule: u32) -> Node {
        // SAFETY: only called for free blocks below the top, which hold a node at their start.
        unsafe { self.address(granule).cast::<Node>().read() }
    }

    fn set_node(&self, granule: u32, node: Node) {
        // SAFETY: as for `node`; free blocks are the arena's.
        unsafe { self.address(granule).cast::<Node>().write(node) };
    }

    fn footer(&self, end: u32) -> *mut u32 {
        self.address(end).wrapping_sub(4).cast()
    }

    /// Allocates so many granules (more than a cell's) at a multiple of `align` granules.
    pub fn take(&self, size: u32, align: u32) -> Option<Found> {
        let size = size.max(SMALLEST);
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

    /// The best free block of at least so many granules.
    fn search(&self, size: u32) -> Option<u32> {
        let first = bin_of(size);
        let mut map = first / 64;
        let mut bits = self.arena.maps.get(map)?.get() & (u64::MAX << (first % 64));
        loop {
            while bits != 0 {
                let bin = map * 64 + bits.trailing_zeros() as usize;
                if let Some(start) = self.best_of(bin, size) {
                    return Some(start);
                }
                bits &= bits - 1;
            }
            map += 1;
            bits = self.arena.maps.get(map)?.get();
        }
    }

    fn best_of(&self, bin: usize, size: u32) -> Option<u32> {
        let mut next = self.arena.bins.get(bin)?.get();
        let mut best: Option<(u32, u32)> = None;
        let mut looks = if bin < EXACT as usize { 4 } else { 32 };
        while next != 0 && looks > 0 {
            let start = next - 1;
            let node = self.node(start);
            if node.size >= size && best.is_none_or(|best| (node.size, start) < best) {
                best = Some((node.size, start));
            }
            next = node.next;
            // Beyond the limit, the first that fits will do.
            looks -= u32::from(looks > 1 || best.is_some());
        }
        best.map(|(_, start)| start)
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
        self.cell(start).before_is_free.store(0, Ordering::Relaxed);
        if start > top {
            self.insert(top, start - top, old_high.saturating_sub(top).min(start - top));
        }
        Some(Found { start, zeroed })
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

    /// Frees a block of that size, which the cell has confirmed.
    pub fn give(&self, start: u32, size: u32) {
        let cell = self.cell(start);
        cell.state.store(FREED, Ordering::Relaxed);
        cell.block.store(0, Ordering::Relaxed);
        self.arena.live.set(self.arena.live.get() - size);
        self.give_range(start, size, cell.before_is_free.load(Ordering::Relaxed) != 0);
        let free = self.dirty();
        let budget = BUDGET + self.arena.live.get() / 8;
        if free > budget {
            self.purge(budget / 2);
        }
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

    /// Granules that are free and may have memory behind them.
    fn dirty(&self) -> u32 {
        self.arena.dirty.get() + (self.arena.high.get() - self.arena.top.get())
    }

    /// Gives memory back to the system until at most `keep` granules are dirty, or nothing is worth it.
    pub fn purge(&self, keep: u32) -> usize {
        let before = self.dirty();
        let top = self.arena.top.get().next_multiple_of(PAGE_GRANULES);
        let high = self.arena.high.get().next_multiple_of(PAGE_GRANULES);
        if top < high {
            self.decommit(top, high);
            self.arena.high.set(top);
        }
        for bin in (bin_of(WORTH)..BINS).rev() {
            let mut next = self.arena.bins.get(bin).map_or(0, Own::get);
            while next != 0 && self.dirty() > keep {
                let start = next - 1;
                let mut node = self.node(start);
                next = node.next;
                if node.dirty >= PAGE_GRANULES {
                    let first = (start + 1).next_multiple_of(PAGE_GRANULES);
                    let end = start + node.size - 1;
                    self.decommit(first, end - end % PAGE_GRANULES);
                    self.arena.dirty.set(self.arena.dirty.get() - node.dirty);
                    node.dirty = 0;
                    self.set_node(start, node);
                }
            }
        }
        before.saturating_sub(self.dirty()) as usize * GRANULE
    }

    fn decommit(&self, first: u32, end: u32) {
        if let (true, Some(start)) = (first < end, NonNull::new(self.address(first))) {
            // SAFETY: pages inside a free block, between its node and its footer, or beyond the top.
            unsafe { self.system.decommit(start, (end - first) as usize * GRANULE) };
        }
    }

    /// Changes a block's size in place. False: there is no room.
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
                self.arena.high.set(self.arena.high.get().max(start + new));
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

    /// Tells the block that starts at `granule` about the one before.
    fn set_before(&self, granule: u32, free: bool) {
        if granule < self.arena.top.get() {
            self.cell(granule).before_is_free.store(u8::from(free), Ordering::Relaxed);
        }
    }

    /// Puts a free block into its bin.
    fn insert(&self, start: u32, size: u32, dirty: u32) {
        let bin = bin_of(size);
        let (Some(head), Some(map)) = (self.arena.bins.get(bin), self.arena.maps.get(bin / 64))
        else {
            return;
        };
        let next = head.get();
        self.set_node(start, Node { size, dirty, next, previous: 0 });
        // SAFETY: the last word of the free block.
        unsafe { self.footer(start + size).write(size) };
        if next != 0 {
            let mut node = self.node(next - 1);
            node.previous = start + 1;
            self.set_node(next - 1, node);
        }
        head.set(start + 1);
        map.set(map.get() | 1 << (bin % 64));
        self.arena.dirty.set(self.arena.dirty.get() + dirty);
        self.set_before(start + size, true);
    }

    /// Takes a free block out of its bin.
    fn remove(&self, start: u32) -> Node {
        let node = self.node(start);
        let top = self.arena.top.get();
        let sane = node.size != 0 && node.size <= top - start && node.dirty <= node.size;
        if !sane || node.next > top || node.previous > top {
            self.corrupt(start);
        }
        // SAFETY: the last word of the free block, which lies below the top.
        if unsafe { self.footer(start + node.size).read() } != node.size {
            self.corrupt(start);
        }
        let bin = bin_of(node.size);
        if node.next != 0 {
            let mut next = self.node(node.next - 1);
            if next.previous != start + 1 {
                self.corrupt(start);
            }
            next.previous = node.previous;
            self.set_node(node.next - 1, next);
        }
        if node.previous != 0 {
            let mut previous = self.node(node.previous - 1);
            if previous.next != start + 1 {
                self.corrupt(start);
            }
            previous.next = node.next;
            self.set_node(node.previous - 1, previous);
        } else if let (Some(head), Some(map)) =
            (self.arena.bins.get(bin), self.arena.maps.get(bin / 64))
        {
            if head.get() != start + 1 {
                self.corrupt(start);
            }
            head.set(node.next);
            if node.next == 0 {
                map.set(map.get() & !(1 << (bin % 64)));
            }
        }
        self.arena.dirty.set(self.arena.dirty.get() - node.dirty);
        node
    }

    #[cold]
    fn corrupt(&self, granule: u32) -> ! {
        self.system.stop(&Stop::Corruption(Corruption::FreeBlock, self.address(granule) as usize))
    }

    /// How the arena stands.
    pub fn stats(&self) -> ArenaStats {
        ArenaStats {
            bytes: self.arena.top.get() as usize * GRANULE,
            live: self.arena.live.get() as usize * GRANULE,
            dirty: self.dirty() as usize * GRANULE,
        }
    }

    /// Walks the arena and checks *no-gap*, *merged*, *before-is-free* and *live*. For tests.
    #[cfg(test)]
    pub fn check(&self) -> bool {
        let (mut at, mut live, mut dirty, mut after_free) = (0, 0, 0, false);
        while at < self.arena.top.get() {
            if let Some(size) = self.cell(at).block_at(at) {
                let told = self.cell(at).before_is_free.load(Ordering::Relaxed) != 0;
                if told != after_free {
                    return false;
                }
                live += size;
                at += size;
                after_free = false;
            } else {
                let node = self.node(at);
                // SAFETY: a free block's last word.
                let footer = unsafe { self.footer(at + node.size).read() };
                if after_free || node.size == 0 || footer != node.size {
                    return false;
                }
                dirty += node.dirty;
                at += node.size;
                after_free = true;
            }
        }
        let arena = self.arena;
        at == arena.top.get()
            && !after_free
            && live == arena.live.get()
            && dirty == arena.dirty.get()
    }
}
