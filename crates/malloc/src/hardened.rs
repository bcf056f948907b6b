//! # Hardened mode: who wrote where?
//!
//! A layer above the ordinary ways: each block lies in an *inner* block, between a header and a tail.
//!
//! ```text
//! inner block: | lead | header: 32 bytes | the program's bytes | tail: at least 8 bytes |
//! ```
//!
//! - The *header* names who allocated it and who freed it, and ends with a *seal*: address, size and
//!   standing, mixed with a secret of the process. A pointer is a block exactly if the seal before it fits.
//! - The *tail* is a pattern to the end of the inner block (at most `TAIL_MAX` bytes): checked when the
//!   block is freed, and at exit.
//! - A freed block is filled with junk and waits in the *quarantine* of the thread that freed it, up to
//!   [`PLACES`] blocks and [`BYTES`] bytes; the junk is checked when it leaves.
//! - A large block ends at a page that faults.
//! - Free lists below are encoded with the secret.
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
use crate::classes::{self, SMALL_MAX};
use crate::heap::Heap;
use crate::options::Options;
use crate::story::{Site, Story, Trouble};
use crate::system::{Local, System};

mod exit;
mod find;
mod large;
mod pattern;
mod quarantine;

pub use exit::{Leak, Leaks};
pub(crate) use large::Fences;

/// Bytes before the program's.
pub const HEADER: usize = 32;
/// At least so many bytes behind the program's.
const TAIL: usize = 8;
/// At most so many bytes behind the program's are a pattern.
const TAIL_MAX: usize = 16;
/// Blocks that wait in a thread's quarantine.
pub const PLACES: usize = 512;
/// Bytes that wait in a thread's quarantine.
pub const BYTES: usize = 128 << 10;
/// Freed bytes.
const JUNK: u8 = 0xdb;
/// Bytes behind a block.
const PATTERN: u8 = 0xc5;
/// The junk of a freed block: so many bytes at its start, and again at its end.
const JUNK_SPAN: usize = 256;

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
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Header {
    allocated: Site,
    freed: Site,
    /// Bytes asked for * 64 + binary logarithm of the distance from the inner block's start.
    size: u64,
    /// Last, so that a write before the block breaks it; its last byte is never zero.
    seal: u64,
}

const _: () = assert!(size_of::<Header>() == HEADER);

impl Header {
    fn bytes(&self) -> usize {
        (self.size >> 6) as usize
    }

    fn lead(&self) -> usize {
        1 << (self.size & 63)
    }
}

fn header(at: *mut u8) -> *mut Header {
    at.wrapping_sub(HEADER).cast()
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Whether the process asked for this mode. False before its first allocation.
    #[inline]
    pub(crate) fn is_hardened(&self) -> bool {
        self.options().has(Options::HARDENED)
    }

    /// The number of this thread's heap, from 1: what stories call the thread.
    fn who(&self) -> u16 {
        self.own_heap().map_or(0, |heap| heap.number.load(Ordering::Relaxed) as u16 + 1)
    }

    #[inline]
    fn seal(&self, at: *mut u8, size: u64, standing: Standing) -> u64 {
        self.blank_seal(at, size) | standing as u64
    }

    #[inline]
    fn blank_seal(&self, at: *mut u8, size: u64) -> u64 {
        let mixed = (at as u64 ^ self.secret.load(Ordering::Relaxed) as u64 ^ size.rotate_left(40))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29) & !3 | 1 << 63
    }

    /// The header of a block, and how the block stands, if there is one. The memory before `at` must
    /// be readable.
    #[inline]
    fn read_header(&self, at: *mut u8) -> Option<(Header, Standing)> {
        // SAFETY: the callers have made sure that it is memory of ours.
        let found = unsafe { header(at).read() };
        let standing = match found.seal ^ self.blank_seal(at, found.size) {
            1 => Standing::Live,
            2 => Standing::Freed,
            3 => Standing::Gone,
            _ => return None,
        };
        Some((found, standing))
    }

    /// A block with its header and tail; null when there is no memory.
    pub(crate) fn hard_alloc(
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
        let (inner, capacity, clean) = if lead + bytes + TAIL > MEDIUM_MAX {
            match self.fenced(bytes, align) {
                Some((at, inner, capacity)) => {
                    self.dress(at, bytes, at as usize - inner as usize, capacity, pc);
                    return at;
                }
                None => return ptr::null_mut(),
            }
        } else {
            self.inner(heap, lead + bytes + TAIL, align)
        };
        if inner.is_null() {
            return inner;
        }
        let at = inner.wrapping_add(lead);
        self.dress(at, bytes, lead, capacity, pc);
        if zeroed && !clean {
            // SAFETY: the block's own bytes.
            unsafe { at.write_bytes(0, bytes) };
        }
        at
    }

    /// An inner block: itself, its bytes, and whether it reads as zeroes.
    fn inner(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> (*mut u8, usize, bool) {
        let class = classes::aligned_class_of(bytes, align.max(16));
        if let (Some(heap), Some(class), true) = (heap, class, bytes <= SMALL_MAX) {
            // SAFETY: it is this thread's.
            let at = unsafe { self.take_small(heap, class) };
            if !at.is_null() {
                return (at, classes::of(class).bytes as usize, false);
            }
        }
        let given = self.take_medium(heap, bytes, align.max(16));
        let capacity = if given.at.is_null() { 0 } else { self.usable_inner(given.at) };
        (given.at, capacity, given.zeroed)
    }

    /// Writes header and tail.
    fn dress(&self, at: *mut u8, bytes: usize, lead: usize, capacity: usize, pc: usize) {
        let size = (bytes as u64) << 6 | u64::from(lead.ilog2());
        let allocated = Site::new(pc, self.who());
        let seal = self.seal(at, size, Standing::Live);
        // SAFETY: the inner block has room for all of it.
        unsafe {
            header(at).write(Header { allocated, freed: Site::NOBODY, seal, size });
            pattern::fill(at.add(bytes), tail_bytes(capacity, lead, bytes), PATTERN);
        }
    }

    /// Frees a block; stops the program if it is none. `claimed` is what the caller says of its size.
    pub(crate) fn hard_free(&self, at: *mut u8, claimed: Option<usize>, pc: usize) {
        if at.is_null() {
            return;
        }
        let (mut found, capacity) = self.must_be_live(at, Trouble::Freed);
        if claimed.is_some_and(|claimed| claimed != found.bytes()) {
            self.tell(Trouble::WrongSize, at, at, &found);
        }
        self.check_tail(at, &found, capacity);
        found.freed = Site::new(pc, self.who());
        found.seal = self.seal(at, found.size, Standing::Freed);
        // SAFETY: the block is the caller's, who gives it up.
        unsafe { header(at).write(found) };
        if self.is_fenced(at) {
            return self.unfence(at);
        }
        self.quarantine(at, &found);
    }

    /// The header of a live block and the bytes of its inner block, or the end of the program.
    fn must_be_live(&self, at: *mut u8, what: Trouble) -> (Header, usize) {
        match self.find(at) {
            Some((found, Standing::Live, capacity)) => (found, capacity),
            _ => self.accuse(at, what),
        }
    }

    fn check_tail(&self, at: *mut u8, found: &Header, capacity: usize) {
        let bytes = found.bytes();
        let tail = tail_bytes(capacity, at as usize - self.inner_of(at, found) as usize, bytes);
        // SAFETY: inside the inner block.
        if let Some(first) = unsafe { pattern::first_other(at.add(bytes), tail, PATTERN) } {
            self.tell(Trouble::Behind, at.wrapping_add(bytes + first), at, found);
        }
    }

    fn inner_of(&self, at: *mut u8, found: &Header) -> *mut u8 {
        if self.is_fenced(at) { large::start(at) } else { at.wrapping_sub(found.lead()) }
    }

    /// Bytes that the program asked for.
    pub(crate) fn hard_usable(&self, at: *mut u8) -> usize {
        self.must_be_live(at, Trouble::Asked).0.bytes()
    }

    /// Changes a block's size: in place if its inner block is right for it, else by a copy.
    pub(crate) fn hard_realloc(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        if at.is_null() {
            return self.hard_alloc(bytes, 1, false, pc);
        }
        let (found, capacity) = self.must_be_live(at, Trouble::Resized);
        self.check_tail(at, &found, capacity);
        let lead = at as usize - self.inner_of(at, &found) as usize;
        let room = capacity - lead - TAIL;
        if bytes <= room && bytes >= room / 2 && !self.is_fenced(at) {
            self.dress(at, bytes, lead, capacity, pc);
            return at;
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, found.bytes().min(bytes)) };
            self.hard_free(at, None, pc);
        }
        new
    }

    /// Says what happened to which block, and stops the program.
    #[cold]
    fn tell(&self, trouble: Trouble, at: *mut u8, block: *mut u8, found: &Header) -> ! {
        let story = Story {
            bytes: found.bytes(),
            offset: (at as isize).wrapping_sub(block as isize),
            allocated: found.allocated,
            freed: found.freed,
        };
        self.stop(&crate::Stop::Trouble(trouble, at as usize, Some(story)))
    }
}

/// How many bytes behind a block carry the pattern.
fn tail_bytes(capacity: usize, lead: usize, bytes: usize) -> usize {
    capacity.saturating_sub(lead + bytes).min(TAIL_MAX)
}
