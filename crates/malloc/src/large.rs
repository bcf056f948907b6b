//! # Blocks above 128 KiB
//!
//! Each is a mapping of its own, unmapped when freed, save a few that the thread keeps
//! ([`crate::recent`]). A 64-byte header stands before the block: the block starts 64 bytes into its
//! first page, or behind the page that holds the header when a larger alignment was asked for.
#![allow(unsafe_code)] // headers in front of the blocks

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::system::{Misuse, PAGE_BYTES, System};

/// Bytes before the block.
pub const HEADER: usize = 64;
/// Told apart from anything a program would have there, together with the address.
const MAGIC: u64 = 0x5061_676f_6461_4c31;
const LIVE: u64 = 1;
const KEPT: u64 = 2;
const SAMPLED: u64 = 3;

/// Stands directly before the block.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`] with the block's address and whether it is live, kept, or live and a sample.
    seal: AtomicU64,
    /// Start of the mapping.
    start: AtomicUsize,
    /// Bytes of the mapping.
    bytes: AtomicUsize,
}

/// Totals of all large blocks.
pub struct Large {
    /// Bytes mapped.
    pub bytes: AtomicUsize,
    /// Mappings.
    pub count: AtomicUsize,
}

/// A large block that its header has confirmed.
#[derive(Clone, Copy)]
pub struct Block {
    /// The block.
    pub at: *mut u8,
    /// The mapping.
    pub start: *mut u8,
    /// Bytes of the mapping.
    pub bytes: usize,
    /// Whether it is a sample ([`crate::sample`]).
    pub sampled: bool,
}

fn seal(at: *mut u8, state: u64) -> u64 {
    MAGIC ^ (at as u64) << 8 ^ state
}

fn header(at: *mut u8) -> *const Header {
    at.wrapping_sub(HEADER).cast()
}

impl Block {
    /// Bytes of the block that the caller may use.
    pub fn usable(&self) -> usize {
        self.bytes - (self.at as usize - self.start as usize)
    }

    /// Pages of the mapping, if the block starts as near to its start as can be.
    pub fn plain_pages(&self) -> Option<usize> {
        (self.at as usize - self.start as usize == HEADER).then_some(self.bytes / PAGE_BYTES)
    }

    fn write_header(&self) {
        // SAFETY: the mapping is ours and has room before the block.
        let header = unsafe { &*header(self.at) };
        header.start.store(self.start as usize, Ordering::Relaxed);
        header.bytes.store(self.bytes, Ordering::Relaxed);
        header.seal.store(seal(self.at, LIVE), Ordering::Relaxed);
    }

    /// Marks the block as kept by its thread, or as handed out.
    pub fn set_kept(&self, kept: bool) {
        self.set_state(if kept { KEPT } else { LIVE });
    }

    /// Marks a live block as a sample, or as none.
    pub fn set_sampled(&self, sampled: bool) {
        self.set_state(if sampled { SAMPLED } else { LIVE });
    }

    fn set_state(&self, state: u64) {
        // SAFETY: confirmed by `find`.
        let header = unsafe { &*header(self.at) };
        header.seal.store(seal(self.at, state), Ordering::Relaxed);
    }
}

/// What stands before a pointer that is in neither window.
///
/// # Safety
/// The pointer, when it is a multiple of 64, is readable 64 bytes before it, or wild: then the fault
/// names the caller.
pub unsafe fn find(at: *mut u8) -> Result<Block, Misuse> {
    if at as usize % HEADER != 0 || (at as usize) < PAGE_BYTES {
        return Err(Misuse::Foreign);
    }
    // SAFETY: as the caller promised.
    let header = unsafe { &*header(at) };
    let found = header.seal.load(Ordering::Relaxed);
    if found == seal(at, KEPT) {
        return Err(Misuse::DoubleFree);
    }
    let sampled = found == seal(at, SAMPLED);
    if found != seal(at, LIVE) && !sampled {
        return Err(Misuse::Foreign);
    }
    let start = header.start.load(Ordering::Relaxed);
    let bytes = header.bytes.load(Ordering::Relaxed);
    Ok(Block { at, start: at.wrapping_sub((at as usize).wrapping_sub(start)), bytes, sampled })
}

/// A kept block, given back by the thread that kept it.
///
/// # Safety
/// It was kept by `set_kept(true)`.
pub unsafe fn find_kept(at: *mut u8) -> Block {
    // SAFETY: as the caller promised.
    let header = unsafe { &*header(at) };
    let start = header.start.load(Ordering::Relaxed);
    let bytes = header.bytes.load(Ordering::Relaxed);
    let block = Block { at, start: at.wrapping_sub(at as usize - start), bytes, sampled: false };
    block.set_kept(false);
    block
}

/// Pages of the mapping of a live block that starts as near to its start as can be; nothing for others.
///
/// # Safety
/// As for [`find`].
#[inline(always)]
pub unsafe fn plain_pages(at: *mut u8) -> Option<usize> {
    if at as usize % HEADER != 0 || (at as usize) < PAGE_BYTES {
        return None;
    }
    // SAFETY: as the caller promised.
    let header = unsafe { &*header(at) };
    let plain = header.seal.load(Ordering::Relaxed) == seal(at, LIVE)
        && header.start.load(Ordering::Relaxed) == at as usize - HEADER;
    plain.then(|| header.bytes.load(Ordering::Relaxed) / PAGE_BYTES)
}

/// Marks a block as kept by its thread.
///
/// # Safety
/// It is a live block.
#[inline(always)]
pub unsafe fn put_aside(at: *mut u8) {
    // SAFETY: as the caller promised.
    unsafe { &*header(at) }.seal.store(seal(at, KEPT), Ordering::Relaxed);
}

/// Marks a kept block as handed out.
///
/// # Safety
/// It is a kept block.
#[inline(always)]
pub unsafe fn hand_out(at: *mut u8) {
    // SAFETY: as the caller promised.
    unsafe { &*header(at) }.seal.store(seal(at, LIVE), Ordering::Relaxed);
}

impl Large {
    /// Nothing mapped.
    pub const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0), count: AtomicUsize::new(0) }
    }

    /// Bytes of the mapping for a request without alignment.
    pub fn mapping_for(bytes: usize) -> Option<usize> {
        bytes.checked_add(HEADER)?.checked_next_multiple_of(PAGE_BYTES)
    }

    /// Maps a block for so many bytes; zeroed.
    pub fn map<S: System>(&self, system: &S, bytes: usize, align: usize) -> Option<Block> {
        let block = if align <= HEADER {
            let mapping = Self::mapping_for(bytes)?;
            let start = system.map(mapping)?.as_ptr();
            Block { at: start.wrapping_add(HEADER), start, bytes: mapping, sampled: false }
        } else {
            Self::map_aligned(system, bytes, align)?
        };
        block.write_header();
        self.bytes.fetch_add(block.bytes, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(block)
    }

    fn map_aligned<S: System>(system: &S, bytes: usize, align: usize) -> Option<Block> {
        let needed = bytes.checked_next_multiple_of(PAGE_BYTES)?;
        let whole = needed.checked_add(align)?.checked_add(PAGE_BYTES)?;
        let whole = whole.checked_next_multiple_of(PAGE_BYTES)?;
        let mapped = system.map(whole)?.as_ptr();
        let offset =
            (mapped as usize).wrapping_add(HEADER).next_multiple_of(align) - mapped as usize;
        let lead = (offset - HEADER) / PAGE_BYTES * PAGE_BYTES;
        let end = (offset + bytes).next_multiple_of(PAGE_BYTES);
        cut(system, mapped, lead);
        cut(system, mapped.wrapping_add(end), whole - end);
        let start = mapped.wrapping_add(lead);
        let at = mapped.wrapping_add(offset);
        Some(Block { at, start, bytes: end - lead, sampled: false })
    }

    /// Unmaps a block.
    ///
    /// # Safety
    /// Nobody uses it any more.
    pub unsafe fn unmap<S: System>(&self, system: &S, block: Block) {
        self.bytes.fetch_sub(block.bytes, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
        cut(system, block.start, block.bytes);
    }

    /// Makes a block longer or shorter, moving it if need be.
    ///
    /// # Safety
    /// Nobody uses the old address once it has moved.
    pub unsafe fn resize<S: System>(
        &self,
        system: &S,
        block: Block,
        bytes: usize,
    ) -> Option<Block> {
        let offset = block.at as usize - block.start as usize;
        let new = bytes.checked_add(offset)?.checked_next_multiple_of(PAGE_BYTES)?;
        if new == block.bytes {
            return Some(block);
        }
        // SAFETY: the mapping is the block's, whole.
        let start = unsafe { system.remap(NonNull::new(block.start)?, block.bytes, new)? }.as_ptr();
        let moved = Block { at: start.wrapping_add(offset), start, bytes: new, sampled: false };
        moved.write_header();
        self.bytes.fetch_add(new.wrapping_sub(block.bytes), Ordering::Relaxed);
        Some(moved)
    }
}

fn cut<S: System>(system: &S, start: *mut u8, bytes: usize) {
    if let (true, Some(start)) = (bytes > 0 && !ptr::eq(start, ptr::null()), NonNull::new(start)) {
        // SAFETY: part of a mapping that is ours, and that nobody uses.
        unsafe { system.unmap(start, bytes) };
    }
}
