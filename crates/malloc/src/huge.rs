//! # Where may huge pages stand?
//!
//! A first touch through a huge page costs a sixth of what 512 small ones cost, giving it back a
//! twentieth, and what uses it misses the address cache less. But it is there whole from its first byte
//! on: a heap of huge pages is as large as its holes.
//!
//! So a *region*, the 2 MiB that one huge page covers, may have one only where it will be full:
//!
//! - behind the first [`FROM`] bytes of slabs, or of an arena, which are all in use then (both are
//!   taken lowest first): so that the last region, which nobody can foretell, adds an eighth at most;
//! - where the slab that opens it is the [`SAME`]th or a later one of its class and thread, so that a crowd
//!   of threads with a page each does not open any; in an arena, where half of it is live.
//!
//! It is decided when a region is opened: when its first byte is taken and nothing stands behind any
//! of it, be it new or given back. The system is told once for each region and opening.
//!
//! What goes back goes in units and pages all the same. A region that any of it lies in may have none from
//! then on, until it is opened again: else one more touch would fill what has just been given back, all of
//! it. Where it is a part of a region, the system splits the huge page: the part counts no more for the
//! program, but becomes free only when the system wants memory. The uppermost regions go first, and mostly
//! whole, with what of the last one was never taken.
//!
//! Left out: large blocks, of which nobody knows how much will be touched.
#![allow(unsafe_code)] // advice about memory

use core::ops::Range;
use core::ptr::NonNull;

use crate::system::System;

/// Bytes of a region. Windows and arenas start at multiples of it.
pub const REGION: usize = 2 << 20;
/// No region below this distance from the start of the slabs, or of an arena, has a huge page.
pub const FROM: usize = 16 << 20;
/// The same in hardened mode, which is asked for by who has memory to spare: some 3 % less time for as much
/// more memory, over real programs.
pub const FROM_HARDENED: usize = REGION;
/// So many slabs of a class foretell more.
pub const SAME: u32 = 8;

/// Says of a region that is about to be opened whether it may have a huge page.
///
/// # Safety
/// It starts a region of memory that is committed whole and the caller's to open.
pub unsafe fn tell<S: System>(system: &S, region: *mut u8, may: bool) {
    if let Some(region) = NonNull::new(region) {
        // SAFETY: the caller's promise is ours.
        unsafe { system.may_be_huge(region, REGION, may) };
    }
}

/// Forbids huge pages in all regions of a range in which memory goes back, in bytes from the start of the slabs or
/// of an arena. They begin at `from` there.
///
/// # Safety
/// The range is committed, and the caller's.
pub unsafe fn forbid<S: System>(system: &S, start: *mut u8, from: usize, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let first = from.max(range.start - range.start % REGION);
    let end = range.end.next_multiple_of(REGION);
    if let (true, Some(regions)) = (first < end, NonNull::new(start.wrapping_add(first))) {
        // SAFETY: the caller's promise is ours; what stands in those regions stays as it is.
        unsafe { system.may_be_huge(regions, end - first, false) };
    }
}

/// Where what huge pages may stand behind ends, if taken memory ends at `end`: both from the start of the
/// slabs or of an arena, in bytes.
pub fn end_of_region(from: usize, end: usize) -> usize {
    if end > from { end.next_multiple_of(REGION) } else { end }
}
