//! # Hardened mode: who wrote where?
//!
//! A layer above the ordinary ways: each block lies in an *inner* block, between a header and a tail.
//!
//! ```text
//! inner block: | lead | header: 8 or 16 bytes | the program's bytes | tail: 1 to 16 bytes |
//! ```
//!
//! - The *header* names who allocated it, and ends with a *mark*: size and standing, sealed with the
//!   address and a secret of the process. A pointer is a block exactly if the seal before it fits. Of a block
//!   in a slab the mark is the whole header, and names who allocated it by a number.
//! - The *tail* is a pattern, to 8 bytes before a multiple of 16: checked when the block is freed, and at exit.
//! - Blocks in slabs are aligned to 16 bytes because a slab's first starts 16 bytes behind the slab's
//!   start, and its header 8 bytes before it; the last 8 of each are the next one's header.
//! - A freed block says at its start who freed it, is filled with junk behind that (all of a small one, the
//!   first and the last 256 bytes of others) and waits in the *quarantine* of the thread that freed it. There
//!   wait as many blocks in slabs as have [`SMALL_BYTES`], each counted with [`TOLL`] more (156 blocks of 40
//!   bytes; some leave at a time, so that it is an eighth less at times), and up to [`MEDIUM_PLACES`]
//!   others and [`BYTES`] bytes of these; mark and junk are checked when they leave. More would find
//!   more late writes, and take the first-level cache from the program.
//! - A large block ends at a page that faults. When it is freed its pages are out of reach; the mapping waits
//!   so for a block of the same length, if the program has wanted such mappings again before.
//! - Free lists below are encoded with the secret.
//!
//! What it costs for a small block: 9 bytes, and 15 of rounding at most; some 60 instructions to allocate
//! it (16 without this mode) and 200 to free it (18), of which half are for the block that leaves the
//! quarantine; the cache lines of header and tail, which are asked for together, but are waited for: of a block
//! that the program has not touched for long this is most of it. For a large block: the
//! calls that map it and a page fault for each page, or two calls if a mapping of its length waits.
//!
//! The short ways find no slab and no owner (`direct` stays empty, keys never fit), so that normal
//! mode pays nothing for this. What is found is told with the block's story, then the program is
//! stopped.
//!
//! Of the next block on a free list the short way of allocation asks only that it is another one, aligned to
//! 16 bytes, in the same 16 KiB; the long way asks whether a block starts there. What a stray write makes of
//! a link passes the short way once in 2^54 times, or if it is made with the secret.
//!
//! Left out: reads of freed or foreign memory (large blocks excepted, whose pages are gone); writes that
//! jump over the tail into another block's bytes; writes into the middle of a freed block of more than 512
//! bytes; a write behind a block that happens to be the pattern.
#![allow(unsafe_code)] // headers and tails around blocks

use core::ptr;
use core::sync::atomic::Ordering;

use crate::allocator::{Allocator, fetch};
use crate::arena::MEDIUM_MAX;
use crate::classes::{self, Class, SMALL_MAX, UNIT_BYTES};
use crate::heap::Heap;
use crate::options::Options;
use crate::story::{Site, Story, Trouble};
use crate::system::{Local, System};

mod exit;
mod find;
mod large;
mod mark;
mod pair;
mod pattern;
mod quarantine;
mod resize;
mod sites;
mod waiting;

pub use exit::{Leak, Leaks};
use large::Fence;
pub(crate) use large::Fences;
use mark::{DEATH, GONE, Header, bytes_of, epitaph, header, is_plain, mark_of, said_of};
use quarantine::Place;
use sites::Known;
pub(crate) use sites::Sites;

/// Bytes of the mark: the header of a block in a slab.
const MARK: usize = 8;
/// Bytes of the header of any other block.
const FAR_HEADER: usize = 16;
/// Where a slab's first block starts: a multiple of 16 with room for its header.
pub(crate) const FIRST: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;
/// The "distance" of a large block from its inner block's start.
const FENCED: usize = 1;
/// Blocks in slabs that may wait in a thread's quarantine.
pub const PLACES: usize = 256;
/// What each of them counts beside its own bytes.
pub const TOLL: usize = 64;
/// Bytes of them, so counted, that may wait there: 16 KiB, a third of a first-level cache.
pub const SMALL_BYTES: usize = (PLACES - 1) * TOLL;
/// Other blocks that wait there.
pub const MEDIUM_PLACES: usize = 64;
/// Bytes of those other blocks, but for one.
pub const BYTES: usize = 128 << 10;
/// Freed bytes.
const JUNK: u8 = 0xdb;
/// Bytes behind a block.
const PATTERN: u8 = 0xc5;

/// How a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The program has it.
    Live = 1,
    /// It waits in a quarantine.
    Freed = 2,
    /// It left the quarantine; the memory may be in use for something else.
    Gone = 3,
}

/// What a header says, once its seal has been confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Bytes asked for.
    bytes: usize,
    /// Distance from the inner block's start (not of large blocks).
    lead: usize,
    allocated: Site,
    freed: Site,
    standing: Standing,
}

/// Blocks in a slab of a class, when the first starts at [`FIRST`].
pub(crate) fn blocks(class: &Class) -> u32 {
    ((UNIT_BYTES - FIRST + MARK) as u32 / class.bytes).min(class.blocks)
}

/// Bytes of a slab's block with so many for the program.
#[inline(always)]
fn inner_bytes(bytes: usize) -> usize {
    MARK + pattern::room(bytes)
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Whether the process asked for this mode. False before its first allocation.
    #[inline]
    pub(crate) fn is_hardened(&self) -> bool {
        self.options().has(Options::HARDENED)
    }

    /// The number of this thread's heap, from 1: what stories call the thread.
    #[inline]
    fn who(heap: Option<&Heap>) -> u16 {
        heap.map_or(0, |heap| heap.number.load(Ordering::Relaxed) as u16 + 1)
    }

    /// A block with its header and tail; null when there is no memory.
    pub(crate) fn hard_alloc(
        &self,
        bytes: usize,
        align: usize,
        zeroed: bool,
        pc: usize,
    ) -> *mut u8 {
        if align <= FIRST {
            let at = self.hard_alloc_short(bytes, pc);
            if !at.is_null() {
                if zeroed {
                    // SAFETY: the block's own bytes.
                    unsafe { at.write_bytes(0, bytes) };
                }
                return at;
            }
        }
        self.hard_alloc_rest(bytes, align, zeroed, pc)
    }

    /// A small block from the head slab of its class, with header and tail; null when there is none, when
    /// the place is not known, or when the free list is not what it should be: the long way tells.
    ///
    /// Checked is that the next free block is another one, in the same range of a slab's length; the long way
    /// knows exactly.
    #[inline(always)]
    pub(crate) fn hard_alloc_short(&self, bytes: usize, pc: usize) -> *mut u8 {
        if bytes >= SMALL_MAX - MARK {
            return ptr::null_mut();
        }
        // SAFETY: the heap is this thread's or the one that is never written; entries point to headers; a
        // header's free list is the owner's.
        unsafe {
            let heap = &*self.local.get();
            let Some(unit) = heap.sealed.get(inner_bytes(bytes) >> 4) else {
                return ptr::null_mut();
            };
            let unit = &*unit.get();
            let block = unit.free.get();
            if block == unit.end() {
                return ptr::null_mut();
            }
            let next = self.next(block);
            // In units of 16 bytes: at least one, less than a slab has.
            let apart = (next as usize ^ block as usize).rotate_right(4);
            if next != unit.end() && apart.wrapping_sub(1) >= UNIT_BYTES / 16 - 1 {
                return ptr::null_mut();
            }
            // Only a thread with a heap has slabs.
            let Some(named) = quarantine::behind(heap).known.named(pc) else {
                return ptr::null_mut();
            };
            // The next request finds it in the cache.
            fetch(next.cast());
            unit.free.set(next);
            unit.countdown.set(unit.countdown.get().wrapping_add(1));
            let (at, said) = (block.cast(), said_of(bytes, 0, named));
            pattern::write_fresh_tail(at, bytes);
            mark_of(at).write(self.plain_mark(at, said));
            at
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn hard_alloc_rest(
        &self,
        bytes: usize,
        align: usize,
        zeroed: bool,
        pc: usize,
    ) -> *mut u8 {
        if !align.is_power_of_two() || bytes > isize::MAX as usize / 2 || align > 1 << 40 {
            return ptr::null_mut();
        }
        let heap = self.heap();
        if let Some(at) = self.hard_alloc_small(heap, bytes, align, pc) {
            if zeroed {
                // SAFETY: the block's own bytes.
                unsafe { at.write_bytes(0, bytes) };
            }
            return at;
        }
        let lead = align.max(FAR_HEADER);
        let room = lead + pattern::room(bytes);
        let inside =
            (room <= MEDIUM_MAX && align <= UNIT_BYTES).then(|| self.inner(heap, room, align));
        let Some((inner, clean)) = inside.flatten() else {
            let Some(fence) = self.fenced(bytes, align) else { return ptr::null_mut() };
            let at = self.dress_fenced(heap, &fence, bytes, pc);
            if zeroed && !fence.zeroed {
                // SAFETY: the block's own bytes.
                unsafe { at.write_bytes(0, bytes) };
            }
            return at;
        };
        let at = inner.wrapping_add(lead);
        self.dress(heap, at, bytes, lead, pc);
        if zeroed {
            // The tail was written over the last bytes of clean memory too.
            let dirty = if clean { pattern::overlap(bytes).min(bytes) } else { bytes };
            // SAFETY: the block's own bytes.
            unsafe { at.add(bytes - dirty).write_bytes(0, dirty) };
        }
        at
    }

    /// A block in a slab. Nothing: it does not fit into one, or there is no memory.
    fn hard_alloc_small(
        &self,
        heap: Option<&Heap>,
        bytes: usize,
        align: usize,
        pc: usize,
    ) -> Option<*mut u8> {
        let (heap, align) = (heap?, align.max(FIRST));
        // The first block starts so far behind an aligned address, and the others do.
        let lead = align - FIRST;
        let class = classes::aligned_class_of(lead + inner_bytes(bytes), align)?;
        // SAFETY: it is this thread's.
        let block = unsafe { self.take_small(heap, class) };
        if block.is_null() {
            return None;
        }
        let at = block.wrapping_add(lead);
        let said = said_of(bytes, lead, self.named(Some(heap), pc));
        // SAFETY: the inner block has room for header and tail. The tail may be written over where the header
        // will be.
        unsafe {
            pattern::write_fresh_tail(at, bytes);
            mark_of(at).write(self.mark(at, said));
        }
        Some(at)
    }

    /// What marks say of a place; the thread remembers it.
    fn named(&self, heap: Option<&Heap>, pc: usize) -> u64 {
        let known = heap.map(|heap| &quarantine::behind(heap).known);
        if let Some(named) = known.and_then(|known| known.named(pc)) {
            return named;
        }
        let site = Site::new(pc, Self::who(heap));
        let named = mark::named(self.sites.number(&self.system, site));
        if let Some(known) = known {
            known.learn(pc, named);
        }
        named
    }

    /// An inner block, and whether it reads as zeroes. Nothing: arenas have no room left.
    fn inner(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> Option<(*mut u8, bool)> {
        let given = self.take_medium(heap, bytes, align.max(16));
        if given.at.is_null() {
            return None;
        }
        if self.window.medium_offset(given.at as usize).is_none() {
            // A mapping without a page that faults: nobody would find its header.
            // SAFETY: it was just taken.
            unsafe { self.free_medium(None, given.at) };
            return None;
        }
        Some((given.at, given.zeroed))
    }

    /// Writes the header of a block that lies in no slab.
    fn sign(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        let allocated = Site::new(pc, Self::who(heap));
        // SAFETY: the inner block has room before the program's bytes.
        unsafe { header(at).write(Header { allocated, mark: self.far_mark(at, bytes, lead) }) };
    }

    /// Writes header and tail of a fresh block that lies in no slab.
    fn dress(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        // SAFETY: the inner block has room for it. It may be written over where the header will be.
        unsafe { pattern::write_fresh_tail(at, bytes) };
        self.sign(heap, at, bytes, lead, pc);
    }

    /// Writes header and tail of a large block.
    fn dress_fenced(&self, heap: Option<&Heap>, fence: &Fence, bytes: usize, pc: usize) -> *mut u8 {
        self.sign(heap, fence.at, bytes, FENCED, pc);
        // SAFETY: the bytes to the page that faults are the block's.
        unsafe { pattern::fill(fence.at.add(bytes), fence.capacity - bytes) };
        fence.at
    }

    /// The mark of a live small block that is in order.
    #[inline(always)]
    fn small_in_order(&self, at: *mut u8) -> Option<u64> {
        let mark = self.small_live(at)?;
        // SAFETY: a live block has its tail.
        unsafe { pattern::is_tail_whole(at, bytes_of(mark)) }.then_some(mark)
    }

    /// The mark of a live small block of no special alignment.
    ///
    /// The seal alone says that there is such a block: it holds the address and the secret.
    #[inline(always)]
    fn small_live(&self, at: *mut u8) -> Option<u64> {
        // A slab's first bytes belong to no block.
        let before = (at as usize).wrapping_sub(FIRST);
        if before % 16 != 0 || !self.window.is_readable(before) {
            return None;
        }
        // SAFETY: readable, and aligned.
        let mark = unsafe { mark_of(at).read() };
        self.is_live_plain(at, mark).then_some(mark)
    }

    /// Frees a block; stops the program if it is none. `claimed` is what the caller says of its size; the
    /// largest number is nothing.
    ///
    /// The short way is for a small block that is in order.
    #[inline]
    pub(crate) fn hard_free(&self, at: *mut u8, claimed: usize, pc: usize) {
        // The header says where the tail is; what lies behind the start is asked for at once. And what lies
        // near on both sides: of blocks that were allocated together the neighbour is often freed next.
        for near in -2..=2 {
            fetch(at.wrapping_offset(near * LINE as isize));
        }
        let Some(mark) = self.small_in_order(at) else {
            return self.hard_free_rest(at, claimed, pc);
        };
        let (Some(heap), bytes) = (self.own_heap(), bytes_of(mark)) else {
            return self.hard_free_rest(at, claimed, pc);
        };
        if claimed != usize::MAX && claimed != bytes {
            return self.hard_free_rest(at, claimed, pc);
        }
        if pattern::is_short(bytes) {
            self.retire(heap, at, mark, pc);
        } else {
            self.retire_longer(heap, at, mark, pc);
        }
    }

    /// Makes a freed block of a live one in a slab, and lets it wait.
    #[inline(always)]
    fn retire(&self, heap: &Heap, at: *mut u8, mark: u64, pc: usize) {
        let bytes = bytes_of(mark);
        let place = self.bury(heap, at, mark, bytes, pc);
        self.quarantine(heap, place, bytes);
    }

    /// Its own function, so that the other needs few registers.
    #[inline(never)]
    fn retire_longer(&self, heap: &Heap, at: *mut u8, mark: u64, pc: usize) {
        self.retire(heap, at, mark, pc);
    }

    #[cold]
    #[inline(never)]
    fn hard_free_rest(&self, at: *mut u8, claimed: usize, pc: usize) {
        if at.is_null() {
            return;
        }
        let (found, capacity) = self.must_be_live(at, Trouble::Freed);
        if claimed != usize::MAX && claimed != found.bytes {
            self.tell(Trouble::WrongSize, at, at, &found);
        }
        self.check_tail(at, &found, capacity);
        if found.is_fenced() {
            let freed = Site::new(pc, Self::who(self.own_heap()));
            return self.unfence(at, &Found { freed, ..found });
        }
        // Without a heap of its own a thread has no quarantine: then the block stays where it is.
        let Some(heap) = self.heap() else { return };
        // SAFETY: its mark was just confirmed.
        let mark = unsafe { mark_of(at).read() };
        let place = self.bury(heap, at, mark, found.bytes, pc);
        if self.window.is_small(at as usize) {
            self.quarantine(heap, place, found.bytes);
        } else {
            self.quarantine_medium(heap, place, found.bytes);
        }
    }

    /// Makes a freed block, full of junk, of a live one.
    #[inline(always)]
    fn bury(&self, heap: &Heap, at: *mut u8, mark: u64, bytes: usize, pc: usize) -> Place {
        let freed = Site::new(pc, Self::who(Some(heap)));
        let place = Place { start: [mark ^ DEATH, freed.bits()], at };
        // SAFETY: the block is the caller's, who gives it up.
        unsafe { pattern::write_junk(at, bytes, place.start) };
        place
    }

    /// The header of a live block and the bytes that are its own, or the end of the program.
    #[inline]
    fn must_be_live(&self, at: *mut u8, what: Trouble) -> (Found, usize) {
        match self.find_live(at) {
            Some(found) => found,
            None => self.accuse(at, what),
        }
    }

    #[inline]
    fn find_live(&self, at: *mut u8) -> Option<(Found, usize)> {
        self.find(at).filter(|found| found.0.is_live())
    }

    #[inline]
    fn check_tail(&self, at: *mut u8, found: &Found, capacity: usize) {
        // SAFETY: a live block has its tail.
        if found.is_fenced() || !unsafe { pattern::is_tail_whole(at, found.bytes) } {
            self.search_tail(at, found, capacity);
        }
    }

    #[inline(never)]
    fn search_tail(&self, at: *mut u8, found: &Found, capacity: usize) {
        let bytes = found.bytes;
        let tail = if found.is_fenced() { capacity - bytes } else { pattern::tail(bytes) };
        // SAFETY: inside the inner block.
        if let Some(first) = unsafe { pattern::first_other(at.add(bytes), tail) } {
            self.tell(Trouble::Behind, at.wrapping_add(bytes + first), at, found);
        }
    }

    /// Bytes that the program asked for.
    pub(crate) fn hard_usable(&self, at: *mut u8) -> usize {
        match self.small_live(at) {
            Some(mark) => bytes_of(mark),
            None => self.must_be_live(at, Trouble::Asked).0.bytes,
        }
    }

    /// Says what happened to which block, and stops the program.
    #[cold]
    fn tell(&self, trouble: Trouble, at: *mut u8, block: *mut u8, found: &Found) -> ! {
        let story = found.story((at as isize).wrapping_sub(block as isize));
        self.stop(&crate::Stop::Trouble(trouble, at as usize, Some(story)))
    }
}

impl Found {
    fn is_live(&self) -> bool {
        self.standing == Standing::Live
    }

    fn is_freed(&self) -> bool {
        self.standing == Standing::Freed
    }

    fn is_fenced(&self) -> bool {
        self.lead == FENCED
    }

    fn story(&self, offset: isize) -> Story {
        Story { bytes: self.bytes, offset, allocated: self.allocated, freed: self.freed }
    }
}
