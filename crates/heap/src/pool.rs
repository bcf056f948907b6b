//! The pool: chunks of 64 KiB, cut into blocks of 64-byte granules, best fit, coalescing.
//!
//! The chunks' bitmaps (`chunk`) are the truth. A free block is also on the list of its size: exact up to 8 KiB,
//! sixteen sizes an octave above; the links lie in the free block itself, under a checksum that is
//! compared before a link is followed, so that a write after free is found and not obeyed.
//!
//! # Invariants
//! *pool-locked*: chunks and blocks are touched by the holder of the heap's lock alone.
//! *pool-coalesced*: two free blocks are never neighbours (unless one was damaged).
//! *pool-count*: `free` is the number of granules in free blocks.
//! *slab-end*: a span for a slab ends at a multiple of a KiB, and no block is smaller than a KiB;
//! so in each KiB at most one block begins, and none begins in a KiB that holds a slab's objects.
//! (This is what lets one tag for each KiB be enough.)
#![allow(unsafe_code)] // reads and writes links in raw pages

use core::cell::Cell;
use core::mem::size_of;
use core::ptr::NonNull;

use crate::chunk::{CHUNK, Chunk, GRANULE, GRANULES, HEAD, MAGIC, set};

/// The most granules in one block.
pub(crate) const MOST: usize = GRANULES - HEAD;
/// The part of all chunks that may be entirely free and stay.
const KEPT_PART: usize = 32;
/// Granules in a KiB.
const KIB: usize = 1024 / GRANULE;

/// Sizes up to this many granules have a list of their own.
const EXACT: usize = 128;
const BINS: usize = EXACT + 1 + 3 * 16;

/// What lies in a free block.
struct Link {
    next: Cell<usize>,
    prev: Cell<usize>,
    sum: Cell<usize>,
}

/// The records of the heap do not agree at this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage(pub(crate) usize);

impl Chunk {
    fn link(&self, granule: usize) -> &Link {
        let place = core::ptr::with_exposed_provenance::<Link>(self.address(granule));
        // SAFETY: a granule of the chunk; used for free blocks only, whose bytes are the pool's.
        unsafe { &*place }
    }
}

/// The pool.
pub(crate) struct Pool {
    /// The address of the first free block of each size; 0 for none.
    bins: [usize; BINS],
    map: [u64; BINS.div_ceil(64)],
    /// All chunks but the retired ones.
    pub(crate) chunks: Option<Chunk>,
    pub(crate) count: usize,
    /// Granules in free blocks.
    pub(crate) free: usize,
    /// Entirely free chunks. One is kept, and one more for each [`KEPT_PART`], so that a heap that
    /// breathes does not go to the source with each breath.
    empty: usize,
    /// Entirely free chunks on their way back to the source; linked by `next`.
    retired: Option<Chunk>,
    /// The secret that links are encoded with; 0 for none.
    key: usize,
    /// Damage that was met since somebody last asked.
    pub(crate) damage: Option<Damage>,
}

const fn bin(granules: usize) -> usize {
    if granules <= EXACT {
        return granules;
    }
    let octave = granules.ilog2() as usize;
    let within = (granules >> (octave - 4)) - 16;
    let index = EXACT + 1 + (octave - 7) * 16 + within;
    if index < BINS { index } else { BINS - 1 }
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self {
            bins: [0; BINS],
            map: [0; BINS.div_ceil(64)],
            chunks: None,
            count: 0,
            free: 0,
            empty: 0,
            retired: None,
            key: 0,
            damage: None,
        }
    }

    /// Adds fresh pages.
    ///
    /// # Safety
    /// [`CHUNK`] bytes at `base`, aligned to their size, are the pool's from now on, with exposed
    /// provenance; they are zero if `zero` says so.
    pub(crate) unsafe fn add(&mut self, base: NonNull<u8>, zero: bool) {
        // SAFETY: the caller's promise.
        let chunk = unsafe { Chunk::create(base, zero) };
        chunk.next.set(self.chunks);
        if let Some(next) = self.chunks {
            next.prev.set(Some(chunk));
        }
        self.chunks = Some(chunk);
        self.count += 1;
        self.insert(chunk, HEAD, GRANULES);
    }

    /// Takes an entirely free chunk off.
    fn remove_chunk(&mut self, chunk: Chunk) {
        match chunk.prev.get() {
            Some(prev) => prev.next.set(chunk.next.get()),
            None => self.chunks = chunk.next.get(),
        }
        if let Some(next) = chunk.next.get() {
            next.prev.set(chunk.prev.get());
        }
        self.count -= 1;
    }

    /// What a link at `address` is encoded with, and what its checksum begins with. Without a key both
    /// are known to everybody, which is enough to find damage; with one they cannot be forged by
    /// whoever writes to a free block, nor does the block say where others are.
    fn masks(&self, address: usize) -> (usize, usize) {
        (self.key ^ address.swap_bytes(), MAGIC ^ address ^ self.key.rotate_left(11))
    }

    fn seal(&self, address: usize, link: &Link, next: usize, prev: usize) {
        let (mask, seed) = self.masks(address);
        let sealed = Link {
            next: Cell::new(next ^ mask),
            prev: Cell::new(prev ^ mask),
            sum: Cell::new(next.rotate_left(17) ^ prev.rotate_left(31) ^ seed),
        };
        // Written as a whole and not cell by cell: setting a cell reads it, and fresh pages, or what
        // an owner left, need not be initialised.
        // SAFETY: a link consists of cells; *pool-locked*.
        unsafe { core::ptr::from_ref(link).cast_mut().write(sealed) };
    }

    /// The links of the free block at `address`, if nobody wrote over them.
    fn unseal(&mut self, address: usize, link: &Link) -> Option<(usize, usize)> {
        let (mask, seed) = self.masks(address);
        let (next, prev) = (link.next.get() ^ mask, link.prev.get() ^ mask);
        if link.sum.get() != next.rotate_left(17) ^ prev.rotate_left(31) ^ seed {
            self.damage = Some(Damage(address));
            return None;
        }
        Some((next, prev))
    }

    /// Encodes all links with another key.
    pub(crate) fn set_key(&mut self, key: usize) {
        let old = self.key;
        for index in 0..BINS {
            let mut address = self.bins[index];
            while let Some(link) = Self::link_at(address) {
                // What is damaged stays so, and is found again.
                let Some((next, prev)) = self.unseal(address, link) else { break };
                self.key = key;
                self.seal(address, link, next, prev);
                self.key = old;
                address = next;
            }
        }
        self.key = key;
    }

    fn link_at(address: usize) -> Option<&'static Link> {
        let link = core::ptr::with_exposed_provenance::<Link>(address);
        // SAFETY: addresses come from a bin or from links whose checksum was right: free blocks of
        // the pool's chunks (*pool-locked*), used before the lock is given up.
        (address != 0).then(|| unsafe { &*link })
    }

    /// Puts a free block on its list; its start bit is set by this, too.
    fn insert(&mut self, chunk: Chunk, from: usize, end: usize) {
        let (address, index) = (chunk.address(from), bin(end - from));
        set(&chunk.start, from, true);
        set(&chunk.free, from, true);
        let next = self.bins[index];
        self.seal(address, chunk.link(from), next, 0);
        if let Some(link) = Self::link_at(next) {
            match self.unseal(next, link) {
                Some((after, _)) => self.seal(next, link, after, address),
                // The rest of the list is given up: leaked rather than trusted.
                None => self.seal(address, chunk.link(from), 0, 0),
            }
        }
        self.bins[index] = address;
        self.map[index / 64] |= 1 << (index % 64);
        self.free += end - from;
        self.empty += usize::from(end - from == MOST);
    }

    /// Takes a free block off its list; false when its links are damaged. (Then it stays free for
    /// ever.)
    fn unlink(&mut self, chunk: Chunk, from: usize, end: usize) -> bool {
        let (address, index) = (chunk.address(from), bin(end - from));
        let Some((next, prev)) = self.unseal(address, chunk.link(from)) else {
            if self.bins[index] == address {
                self.set_head(index, 0);
            }
            return false;
        };
        if let Some(link) = Self::link_at(next) {
            if let Some((after, _)) = self.unseal(next, link) {
                self.seal(next, link, after, prev);
            }
        }
        match Self::link_at(prev) {
            None => self.set_head(index, next),
            Some(link) => {
                if let Some((_, before)) = self.unseal(prev, link) {
                    self.seal(prev, link, next, before);
                }
            }
        }
        set(&chunk.free, from, false);
        self.free -= end - from;
        self.empty -= usize::from(end - from == MOST);
        true
    }

    fn set_head(&mut self, index: usize, head: usize) {
        self.bins[index] = head;
        if head == 0 {
            self.map[index / 64] &= !(1 << (index % 64));
        }
    }

    /// The first list from `index` on that is not empty.
    fn next_bin(&self, index: usize) -> Option<usize> {
        let mut word = index / 64;
        let mut bits = *self.map.get(word)? & (u64::MAX << (index % 64));
        while bits == 0 {
            word += 1;
            bits = *self.map.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// Takes the best fitting free block of at least `granules` off its list.
    fn find(&mut self, granules: usize) -> Option<(Chunk, usize, usize)> {
        let mut index = bin(granules);
        loop {
            index = self.next_bin(index)?;
            let mut address = self.bins[index];
            while let Some(link) = Self::link_at(address) {
                // SAFETY: *pool-locked*; a free block of one of the pool's chunks.
                let Some(chunk) = (unsafe { Chunk::holding(address) }) else {
                    self.damage = Some(Damage(address & !(CHUNK - 1)));
                    break;
                };
                let from = (address % CHUNK) / GRANULE;
                let end = chunk.end_of(from);
                if end - from >= granules {
                    if self.unlink(chunk, from, end) {
                        return Some((chunk, from, end));
                    }
                    break;
                }
                address = self.unseal(address, link).map_or(0, |(next, _)| next);
            }
            index += 1;
        }
    }

    /// Cuts a taken block to `from..end`; what is left over goes back.
    fn trim(&mut self, chunk: Chunk, taken: (usize, usize), from: usize, end: usize) {
        if taken.0 < from {
            self.insert(chunk, taken.0, from);
        }
        set(&chunk.start, from, true);
        chunk.soil(end);
        if end < taken.1 {
            self.insert(chunk, end, taken.1);
        }
    }

    /// A block of `granules`, at a multiple of `align` granules.
    pub(crate) fn alloc(&mut self, granules: usize, align: usize) -> Option<(Chunk, usize)> {
        self.alloc_known(granules, align).map(|(chunk, start, _)| (chunk, start))
    }

    /// The same, and how many bytes of it may be other than zero: the first ones.
    pub(crate) fn alloc_known(
        &mut self,
        granules: usize,
        align: usize,
    ) -> Option<(Chunk, usize, usize)> {
        let (chunk, from, end) = self.find(granules + align - 1)?;
        let start = from.next_multiple_of(align);
        let soiled = match start >= usize::from(chunk.clean.get()) {
            true => size_of::<Link>(),
            false => granules * GRANULE,
        };
        self.trim(chunk, (from, end), start, start + granules);
        Some((chunk, start, soiled))
    }

    /// A span for a slab: at most `want` granules, at least `least`, ending at a KiB (*slab-end*).
    /// `used` says how many granules of so many a slab can use; the span is as long as wastes the
    /// smallest part, and begins where the slab's use of it does.
    pub(crate) fn alloc_span(
        &mut self,
        want: usize,
        least: usize,
        used: impl Fn(usize) -> usize,
    ) -> Option<(Chunk, usize, usize)> {
        // What the rounding of the end may cost is asked for on top.
        let (chunk, from, end) =
            self.find(want).or_else(|| self.find_between(least + KIB, want))?;
        let mut stop = end.min(from + want) / KIB * KIB;
        let mut best = (0, 1);
        for candidate in (from + least..=stop).filter(|granule| granule % KIB == 0) {
            let len = candidate - from;
            if used(len) * best.1 >= best.0 * len {
                (stop, best) = (candidate, (used(len), len));
            }
        }
        let start = stop - used(stop - from).clamp(KIB, stop - from);
        self.trim(chunk, (from, end), start, stop);
        Some((chunk, start, stop))
    }

    /// The largest block of at least `least` and below `want` granules.
    fn find_between(&mut self, least: usize, want: usize) -> Option<(Chunk, usize, usize)> {
        let found = (bin(least)..bin(want)).rev().find(|&index| self.bins[index] != 0)?;
        self.find(found.min(EXACT).max(least))
    }

    /// Gives the live block that begins at `from` back.
    pub(crate) fn free(&mut self, chunk: Chunk, from: usize) {
        let mut span = (from, chunk.end_of(from));
        if span.1 < GRANULES && chunk.is_free(span.1) {
            let end = chunk.end_of(span.1);
            if self.unlink(chunk, span.1, end) {
                set(&chunk.start, span.1, false);
                span.1 = end;
            }
        }
        let before = chunk.start_of(from - 1);
        if before != 0 && chunk.is_free(before) && self.unlink(chunk, before, from) {
            set(&chunk.start, from, false);
            span.0 = before;
        }
        self.insert(chunk, span.0, span.1);
        if self.empty > 1 + self.count / KEPT_PART
            && span.1 - span.0 == MOST
            && self.unlink(chunk, HEAD, GRANULES)
        {
            self.retire(chunk);
        }
    }

    /// Makes the live block that begins at `from` so large, if the block behind it lets it.
    pub(crate) fn resize(&mut self, chunk: Chunk, from: usize, granules: usize) -> bool {
        let (end, wanted) = (chunk.end_of(from), from + granules);
        if wanted < end {
            set(&chunk.start, wanted, true);
            self.free(chunk, wanted);
        } else if wanted > end {
            if end >= GRANULES || !chunk.is_free(end) {
                return false;
            }
            let stop = chunk.end_of(end);
            if stop < wanted || !self.unlink(chunk, end, stop) {
                return false;
            }
            set(&chunk.start, end, false);
            chunk.soil(wanted);
            if wanted < stop {
                self.insert(chunk, wanted, stop);
            }
        }
        true
    }

    /// Puts a chunk whose only block was taken off its list on the way back.
    fn retire(&mut self, chunk: Chunk) {
        self.remove_chunk(chunk);
        // Nobody owns a byte of it: whoever frees into it has freed twice.
        set(&chunk.free, HEAD, true);
        chunk.next.set(self.retired);
        self.retired = Some(chunk);
    }

    /// Retires every entirely free chunk: those kept in stock, and any that was added while
    /// another CPU added one, too, and that nobody has used yet.
    pub(crate) fn shrink(&mut self) {
        while let Some((chunk, ..)) = self.find(MOST) {
            self.retire(chunk);
        }
    }

    /// Is a chunk on its way back?
    pub(crate) fn has_retired(&self) -> bool {
        self.retired.is_some()
    }

    /// The next chunk for the source.
    pub(crate) fn pop_retired(&mut self) -> Option<Chunk> {
        let chunk = self.retired?;
        self.retired = chunk.next.get();
        Some(chunk)
    }

    /// *pool-count* and *pool-coalesced*, checked in full.
    pub(crate) fn check(&self) -> Result<(), Damage> {
        let (mut free, mut count) = (0, 0);
        let mut next = self.chunks;
        while let Some(chunk) = next {
            let mut after_free = false;
            for (from, end, is_free) in chunk.blocks() {
                let small = end - from < KIB && !is_free;
                if small || (is_free && after_free) {
                    return Err(Damage(chunk.address(from)));
                }
                after_free = is_free;
                free += if is_free { end - from } else { 0 };
            }
            count += 1;
            next = chunk.next.get();
        }
        if (free, count) == (self.free, self.count) { Ok(()) } else { Err(Damage(0)) }
    }
}
