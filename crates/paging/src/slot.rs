//! The one door from a table's frame to its entries.
#![allow(unsafe_code)] // makes references out of pointers of the `PhysMap`

use core::sync::atomic::AtomicU64;

use pagoda_addr::{Frame, Page, PhysMap};

use crate::ENTRIES;

/// Entry `index` of `table` (*entries-are-atomics*).
///
/// Invariant *tables-live*, on which this stands: the only frames that this crate passes here are
/// roots, frames fresh from `Platform::alloc_table`, and frames that an entry of such a table
/// decodes to as the next lower table; they are released only when they can be reached no more, and
/// whoever walks holds the tree's lock (or owns the tree whole). Not a word of them is accessed
/// otherwise than through this function.
#[inline]
pub(crate) fn slot<M: PhysMap>(map: &M, table: Frame, index: usize) -> &AtomicU64 {
    let entries = map.ptr(table.start()).cast::<u64>();
    // SAFETY: *tables-live*: the frame is managed memory, so the pointer is valid and aligned for
    // the whole frame, of which `index` (below 512) selects one word; all accesses are atomic.
    unsafe { AtomicU64::from_ptr(entries.add(index % ENTRIES)) }
}

/// The index of `page` in a table of `level`.
#[inline]
pub(crate) fn index(page: u64, level: u32) -> usize {
    (page >> (9 * (level - 1))) as usize % ENTRIES
}

/// Pages covered by one entry of a table of `level`.
#[inline]
pub(crate) const fn span(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

/// The part of `[start, end)` behind each entry of a table of `level` that covers some of it, in
/// order: `(index, start, end)`, in pages.
#[inline]
pub(crate) fn pieces(level: u32, start: u64, end: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let span = span(level);
    let mut at = start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at | (span - 1)) + 1).min(end);
        let piece = (index(at, level), at, next);
        at = next;
        Some(piece)
    })
}

/// The page with this number; numbers here come from ranges that were checked.
#[inline]
pub(crate) fn page(number: u64) -> Page {
    Page::new(number).unwrap_or_default()
}
