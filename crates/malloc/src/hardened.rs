//! # Hardened mode: who wrote where?
//!
//! A layer above the ordinary ways: each block lies in an *inner* block, between a header and a tail.
//!
//! ```text
//! inner block: | lead | header: 16 bytes | the program's bytes | tail: 8 to 15 bytes |
//! ```
//!
//! - The *header* names who allocated it, and ends with a *mark*: size and standing, sealed with the
//!   address and a secret of the process. A pointer is a block exactly if the seal before it fits.
//! - The *tail* is a pattern: checked when the block is freed, and at exit.
//! - A freed block says at its start who freed it, is filled with junk behind that (all of a small one, the
//!   first and the last 256 bytes of others) and waits in the *quarantine* of the thread that freed it, up
//!   to [`PLACES`] small blocks, [`MEDIUM_PLACES`] others and [`BYTES`] bytes of these; mark and junk are checked when it leaves.
//! - A large block ends at a page that faults.
//! - Free lists below are encoded with the secret.
//!
//! What it costs for a small block: 24 bytes, and 15 of rounding at most; some 85 instructions to allocate it
//! and 200 to free it, of which two thirds are junk that is written and compared, and the block that
//! leaves the quarantine; the cache lines of header and tail, which are asked for together. For a large
//! block: the calls that map it and make one page fault, each time.
//!
//! The short ways find no slab and no owner (`direct` stays empty, keys never fit), so that normal
//! mode pays nothing for this. What is found is told with the block's story, then the program is
//! stopped.
//!
//! Left out: reads of freed or foreign memory (large blocks excepted, whose pages are gone); writes that
//! jump over the tail into another block's bytes.
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
use crate::unit::Place;

mod exit;
mod find;
mod large;
mod pattern;
mod quarantine;

pub use exit::{Leak, Leaks};
use large::Fence;
pub(crate) use large::Fences;

/// Bytes before the program's.
const HEADER: usize = 16;
/// At least so many bytes behind the program's.
const TAIL: usize = 8;
/// The "distance" of a large block from its inner block's start.
const FENCED: usize = 1;
/// Blocks of up to 1 KiB that wait in a thread's quarantine.
pub const PLACES: usize = 512;
/// Larger blocks that wait there.
pub const MEDIUM_PLACES: usize = 64;
/// Bytes of those larger blocks, but for one.
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

/// Before the block.
///
/// `mark`, from its lowest bit: standing (2 bits), binary logarithm of the distance from the inner
/// block's start (6), bytes asked for (18; all ones: a large block, which keeps them elsewhere), seal.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    allocated: Site,
    /// Last, so that a write before the block breaks it; its last byte is never zero.
    mark: u64,
}

const _: () = assert!(size_of::<Header>() == HEADER);

const STANDING: u64 = 3;
const LOW: u64 = (1 << 26) - 1;
/// The size of a block that is larger than a header can say.
const FAR: u64 = (1 << 18) - 1;
const _: () = assert!(MEDIUM_MAX < FAR as usize);

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

fn header(at: *mut u8) -> *mut Header {
    at.wrapping_sub(HEADER).cast()
}

/// The lower bits of a live block's mark, but for its standing.
fn low_of(bytes: usize, lead: usize) -> u64 {
    (bytes as u64).min(FAR) << 8 | u64::from(lead.trailing_zeros()) << 2
}

/// Two words at the start of a freed block: who freed it, and (when it has left the quarantine) who
/// allocated it. The inner block has room for both: its tail, at least, and its bytes are a multiple of 16.
fn epitaph(at: *mut u8) -> *mut [Site; 2] {
    at.cast()
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

    /// The mark of a block, but for its standing.
    #[inline]
    fn blank(&self, at: *mut u8, low: u64) -> u64 {
        let secret = self.secret.load(Ordering::Relaxed) as u64;
        let mixed = (at as u64 ^ secret ^ low.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed & !LOW | 1 << 63 | low
    }

    /// What the header of a block says, if there is one. The memory before `at` must be readable, and of
    /// a freed block its start.
    #[inline]
    fn read_header(&self, at: *mut u8) -> Option<Found> {
        // SAFETY: the callers have made sure that it is memory of ours.
        let Header { mut allocated, mark } = unsafe { header(at).read() };
        let low = mark & LOW & !STANDING;
        let standing = match mark ^ self.blank(at, low) {
            1 => Standing::Live,
            2 => Standing::Freed,
            3 => Standing::Gone,
            _ => return None,
        };
        let mut freed = Site::NOBODY;
        if standing != Standing::Live {
            // SAFETY: as above.
            let told = unsafe { epitaph(at).read() };
            freed = told[0];
            if standing == Standing::Gone {
                allocated = told[1];
            }
        }
        let bytes = match low >> 8 {
            FAR => large::bytes(at),
            bytes => bytes as usize,
        };
        let lead = 1 << (low >> 2 & 63);
        Some(Found { bytes, lead, allocated, freed, standing })
    }

    /// A block with its header and tail; null when there is no memory.
    pub(crate) fn hard_alloc(
        &self,
        bytes: usize,
        align: usize,
        zeroed: bool,
        pc: usize,
    ) -> *mut u8 {
        if bytes > SMALL_MAX - HEADER - TAIL || align > HEADER {
            return self.hard_alloc_rest(bytes, align, zeroed, pc);
        }
        let Some(heap) = self.heap() else {
            return self.hard_alloc_rest(bytes, align, zeroed, pc);
        };
        let class = classes::class_of(bytes + HEADER + TAIL);
        let inner = self.pop_small(heap, class);
        if inner.is_null() {
            return self.hard_alloc_rest(bytes, align, zeroed, pc);
        }
        let at = inner.wrapping_add(HEADER);
        self.dress(Some(heap), at, bytes, HEADER, pc);
        if zeroed {
            // SAFETY: the block's own bytes.
            unsafe { at.write_bytes(0, bytes) };
        }
        at
    }

    /// The first free block of a class's head slab; null if there is none, or if it is not what it should
    /// be: the long way tells.
    #[inline]
    fn pop_small(&self, heap: &Heap, class: usize) -> *mut u8 {
        let number = heap.queues.get(class).map_or(0, core::cell::Cell::get);
        if number == 0 {
            return ptr::null_mut();
        }
        let unit = self.unit(number - 1);
        let block = unit.free.get();
        if unit.place() != Place::Head || block.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: a block on the free list of a slab of ours.
        let next = unsafe { self.next(block) };
        let distance = (next as usize).wrapping_sub(self.window.memory(number - 1) as usize);
        if next == block || !next.is_null() && !unit.holds(distance) {
            return ptr::null_mut();
        }
        unit.free.set(next);
        unit.countdown.set(unit.countdown.get().wrapping_add(1));
        block.cast()
    }

    #[cold]
    #[inline(never)]
    fn hard_alloc_rest(&self, bytes: usize, align: usize, zeroed: bool, pc: usize) -> *mut u8 {
        if !align.is_power_of_two() || bytes > isize::MAX as usize / 2 || align > 1 << 40 {
            return ptr::null_mut();
        }
        let lead = align.max(HEADER);
        let heap = self.heap();
        let inside = (lead + bytes + TAIL <= MEDIUM_MAX && align <= UNIT_BYTES)
            .then(|| self.inner(heap, lead + bytes + TAIL, align));
        let Some((inner, clean)) = inside.flatten() else {
            let Some(fence) = self.fenced(bytes, align) else { return ptr::null_mut() };
            return self.dress_fenced(heap, &fence, bytes, pc);
        };
        let at = inner.wrapping_add(lead);
        self.dress(heap, at, bytes, lead, pc);
        if zeroed && !clean {
            // SAFETY: the block's own bytes.
            unsafe { at.write_bytes(0, bytes) };
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
        let mark = self.blank(at, low_of(bytes, lead)) | Standing::Live as u64;
        // SAFETY: the inner block has room before the program's bytes.
        unsafe { header(at).write(Header { allocated, mark }) };
    }

    /// Writes header and tail.
    #[inline]
    fn dress(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        self.sign(heap, at, bytes, lead, pc);
        // SAFETY: the inner block has room for it.
        unsafe { pattern::write_tail(at, bytes) };
    }

    /// Writes header and tail of a large block.
    fn dress_fenced(&self, heap: Option<&Heap>, fence: &Fence, bytes: usize, pc: usize) -> *mut u8 {
        self.sign(heap, fence.at, bytes, FENCED, pc);
        // SAFETY: the bytes to the page that faults are the block's.
        unsafe { pattern::fill(fence.at.add(bytes), fence.capacity - bytes) };
        fence.at
    }

    /// Frees a block; stops the program if it is none. `claimed` is what the caller says of its size.
    ///
    /// The short way is for a small block that is in order.
    pub(crate) fn hard_free(&self, at: *mut u8, claimed: Option<usize>, pc: usize) {
        // The header says where the tail is: both are asked for at once.
        pattern::fetch(at.wrapping_add(64 - HEADER));
        let before = (at as usize).wrapping_sub(HEADER);
        if let (Some(heap), true) =
            (self.own_heap(), before % 16 == 0 && self.window.is_small(before))
        {
            // SAFETY: *every-header-readable*.
            let unit = unsafe { &*self.window.unit_of(at as usize) };
            if !unit.owner.load(Ordering::Relaxed).is_null() {
                // SAFETY: before a place in a slab lies committed memory.
                let mark = unsafe { (*header(at)).mark };
                let bytes = (mark & LOW) as usize >> 8;
                if mark == self.blank(at, low_of(bytes, HEADER)) | Standing::Live as u64
                    && claimed.is_none_or(|claimed| claimed == bytes)
                    // SAFETY: a live block has its tail.
                    && unsafe { pattern::is_tail_whole(at, bytes) }
                {
                    return self.retire(heap, at, bytes, pc);
                }
            }
        }
        self.hard_free_rest(at, claimed, pc);
    }

    #[cold]
    #[inline(never)]
    fn hard_free_rest(&self, at: *mut u8, claimed: Option<usize>, pc: usize) {
        if at.is_null() {
            return;
        }
        let (found, capacity) = self.must_be_live(at, Trouble::Freed);
        if claimed.is_some_and(|claimed| claimed != found.bytes) {
            self.tell(Trouble::WrongSize, at, at, &found);
        }
        self.check_tail(at, &found, capacity);
        if found.is_fenced() {
            let freed = Site::new(pc, Self::who(self.own_heap()));
            return self.unfence(at, &Found { freed, ..found });
        }
        // Without a heap of its own a thread has no quarantine: then the block stays where it is.
        if let Some(heap) = self.heap() {
            self.retire(heap, at, found.bytes, pc);
        }
    }

    /// Fills a block with junk and lets it wait.
    #[inline]
    fn retire(&self, heap: &Heap, at: *mut u8, bytes: usize, pc: usize) {
        let freed = Site::new(pc, Self::who(Some(heap)));
        // SAFETY: the block is the caller's, who gives it up. Its mark was just confirmed.
        let mark = unsafe {
            let mark = (*header(at)).mark ^ Standing::Live as u64 ^ Standing::Freed as u64;
            (*header(at)).mark = mark;
            pattern::write_junk(at, bytes, freed.bits());
            mark
        };
        self.quarantine(heap, at, mark, freed, bytes);
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
                self.dress(heap, at, bytes, found.lead, pc);
                return at;
            }
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, found.bytes.min(bytes)) };
            self.hard_free(at, None, pc);
        }
        new
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
