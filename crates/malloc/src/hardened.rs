//! # Hardened mode: who wrote where?
//!
//! A layer above the ordinary ways: each block lies in an *inner* block, between a header and a tail.
//!
//! ```text
//! inner block: | lead | header: 16 bytes | the program's bytes | tail: 1 to 16 bytes |
//! ```
//!
//! - The *header* names who allocated it, and ends with a *mark*: size and standing, sealed with the
//!   address and a secret of the process. A pointer is a block exactly if the seal before it fits.
//! - The *tail* is a pattern, to the next multiple of 16 bytes: checked when the block is freed, and at exit.
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
//! What it costs for a small block: 17 bytes, and 15 of rounding at most; some 65 instructions to allocate
//! it (16 without this mode) and 215 to free it (18), of which half are for the block that leaves the
//! quarantine; the cache lines of header and tail, which are asked for together. For a large block: the
//! calls that map it and a page fault for each page, or two calls if a mapping of its length waits.
//!
//! The short ways find no slab and no owner (`direct` stays empty, keys never fit), so that normal
//! mode pays nothing for this. What is found is told with the block's story, then the program is
//! stopped.
//!
//! Left out: reads of freed or foreign memory (large blocks excepted, whose pages are gone); writes that
//! jump over the tail into another block's bytes; writes into the middle of a freed block of more than 512
//! bytes; a write behind a block that happens to be the pattern.
#![allow(unsafe_code)] // headers and tails around blocks

use core::ptr;
use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::arena::MEDIUM_MAX;
use crate::classes::{self, SMALL_MAX, UNIT_BYTES};
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
mod waiting;

pub use exit::{Leak, Leaks};
use large::Fence;
pub(crate) use large::Fences;
use mark::{GONE, Header, LOW, bytes_of, epitaph, header, low_of};

/// Bytes before the program's.
const HEADER: usize = 16;
/// At least so many bytes behind the program's.
const TAIL: usize = 1;
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
        if align <= HEADER {
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

    /// A small block from the head slab of its class, with header and tail; null when there is none, or
    /// when the free list is not what it should be: the long way tells.
    #[inline(always)]
    pub(crate) fn hard_alloc_short(&self, bytes: usize, pc: usize) -> *mut u8 {
        if bytes > SMALL_MAX - HEADER - TAIL {
            return ptr::null_mut();
        }
        // SAFETY: the heap is this thread's or the one that is never written; entries point to headers; a
        // header's free list is the owner's.
        unsafe {
            let heap = &*self.local.get();
            let words = (bytes + HEADER + TAIL + 15) >> 4;
            let Some(unit) = heap.sealed.get(words) else { return ptr::null_mut() };
            let unit = &*unit.get();
            let block = unit.free.get();
            if block.is_null() {
                return ptr::null_mut();
            }
            let next = self.next(block);
            let apart = next as usize ^ block as usize;
            if !next.is_null() && apart & !(UNIT_BYTES - 16) != 0 {
                return ptr::null_mut();
            }
            unit.free.set(next);
            unit.countdown.set(unit.countdown.get().wrapping_add(1));
            let at = block.cast::<u8>().wrapping_add(HEADER);
            self.dress(Some(heap), at, bytes, HEADER, pc);
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
        let lead = align.max(HEADER);
        let heap = self.heap();
        let inside = (lead + bytes + TAIL <= MEDIUM_MAX && align <= UNIT_BYTES)
            .then(|| self.inner(heap, lead + bytes + TAIL, align));
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
            let dirty = if clean { bytes % 16 } else { bytes };
            // SAFETY: the block's own bytes.
            unsafe { at.add(bytes - dirty).write_bytes(0, dirty) };
        }
        at
    }

    /// An inner block, and whether it reads as zeroes. Nothing: slabs and arenas have no
    /// room left.
    fn inner(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> Option<(*mut u8, bool)> {
        let class = classes::aligned_class_of(bytes, align.max(16));
        if let (Some(heap), Some(class), true) = (heap, class, bytes <= SMALL_MAX) {
            // SAFETY: it is this thread's.
            let at = unsafe { self.take_small(heap, class) };
            if !at.is_null() {
                return Some((at, false));
            }
        }
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

    /// Writes the header.
    #[inline]
    fn sign(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        let allocated = Site::new(pc, Self::who(heap));
        let low = low_of(bytes, lead) | Standing::Live as u64;
        let mark = self.seal(at, low) & !LOW | low;
        // SAFETY: the inner block has room before the program's bytes.
        unsafe { header(at).write(Header { allocated, mark }) };
    }

    /// Writes header and tail of a fresh block.
    #[inline]
    fn dress(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        self.sign(heap, at, bytes, lead, pc);
        // SAFETY: the inner block has room for it.
        unsafe { pattern::write_fresh_tail(at, bytes) };
    }

    /// Writes header and tail of a large block.
    fn dress_fenced(&self, heap: Option<&Heap>, fence: &Fence, bytes: usize, pc: usize) -> *mut u8 {
        self.sign(heap, fence.at, bytes, FENCED, pc);
        // SAFETY: the bytes to the page that faults are the block's.
        unsafe { pattern::fill(fence.at.add(bytes), fence.capacity - bytes) };
        fence.at
    }

    /// The mark of a live small block that is in order.
    ///
    /// The seal alone says that there is such a block: it holds the address and the secret.
    #[inline(always)]
    fn small_in_order(&self, at: *mut u8) -> Option<u64> {
        let before = (at as usize).wrapping_sub(HEADER);
        if before % 16 != 0 || !self.window.is_readable(before) {
            return None;
        }
        // SAFETY: readable, and aligned.
        let mark = unsafe { (*header(at)).mark };
        if !self.is_near(at, mark, Standing::Live) {
            return None;
        }
        // SAFETY: a live block has its tail.
        unsafe { pattern::is_tail_whole(at, bytes_of(mark)) }.then_some(mark)
    }

    /// Frees a block; stops the program if it is none. `claimed` is what the caller says of its size; the
    /// largest number is nothing.
    ///
    /// The short way is for a small block that is in order.
    #[inline]
    pub(crate) fn hard_free(&self, at: *mut u8, claimed: usize, pc: usize) {
        // The header says where the tail is: both are asked for at once.
        pattern::fetch(at.wrapping_add(64 - HEADER));
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
        let freed = self.bury(heap, at, mark, pc);
        self.quarantine(heap, at, freed, bytes_of(mark));
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
        let mark = unsafe { (*header(at)).mark };
        if self.window.is_small(at.wrapping_sub(found.lead) as usize) {
            self.retire_longer(heap, at, mark, pc);
        } else {
            let freed = self.bury(heap, at, mark, pc);
            self.quarantine_medium(heap, at, freed, found.bytes);
        }
    }

    /// Makes a freed block, full of junk, of a live one.
    #[inline(always)]
    fn bury(&self, heap: &Heap, at: *mut u8, mark: u64, pc: usize) -> Site {
        let freed = Site::new(pc, Self::who(Some(heap)));
        // SAFETY: the block is the caller's, who gives it up.
        unsafe {
            (*header(at)).mark = mark ^ Standing::Live as u64 ^ Standing::Freed as u64;
            pattern::write_junk(at, bytes_of(mark), freed.bits());
        }
        freed
    }

    /// The header of a live block and the bytes of its inner block, or the end of the program.
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
        self.must_be_live(at, Trouble::Asked).0.bytes
    }

    /// Changes a block's size: in place if its inner block is right for it, a large block by moving its
    /// pages, else by a copy.
    pub(crate) fn hard_realloc(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        if at.is_null() {
            return self.hard_alloc(bytes, 1, false, pc);
        }
        if let (Some(mark), Some(heap)) = (self.small_in_order(at), self.own_heap()) {
            return self.resize_small(heap, at, mark, bytes, pc);
        }
        let (mut found, capacity) = self.must_be_live(at, Trouble::Resized);
        self.check_tail(at, &found, capacity);
        let heap = self.heap();
        if found.is_fenced() {
            found.freed = Site::new(pc, Self::who(heap));
            if let Some(fence) = self.move_fenced(at, &found, bytes) {
                return self.dress_fenced(heap, &fence, bytes, pc);
            }
        } else {
            let room = capacity - found.lead - TAIL;
            if bytes <= room && bytes >= room / 2 {
                self.redress(heap, at, bytes, found.lead, pc);
                return at;
            }
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, found.bytes.min(bytes)) };
            self.hard_free(at, usize::MAX, pc);
        }
        new
    }

    /// The short way of [`Allocator::hard_realloc`]: a small block in order, whose mark is given.
    fn resize_small(
        &self,
        heap: &Heap,
        at: *mut u8,
        mark: u64,
        bytes: usize,
        pc: usize,
    ) -> *mut u8 {
        // SAFETY: *every-header-readable*; the block lies in a slab.
        let unit = unsafe { &*self.window.unit_of(at as usize - HEADER) };
        let room = unit.class().bytes as usize - HEADER - TAIL;
        if bytes <= room && bytes >= room / 2 {
            self.redress(Some(heap), at, bytes, HEADER, pc);
            return at;
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, bytes_of(mark).min(bytes)) };
            self.retire_longer(heap, at, mark, pc);
        }
        new
    }

    /// Writes header and tail of a block that gets another size where it is.
    fn redress(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        self.sign(heap, at, bytes, lead, pc);
        // SAFETY: inside the inner block, whose bytes are a multiple of 16.
        unsafe { pattern::fill(at.add(bytes), pattern::tail(bytes)) };
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
