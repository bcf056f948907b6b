//! The one door from a table's frame to its entries.
#![allow(unsafe_code)] // makes references out of pointers of the `PhysMap`

use core::sync::atomic::{AtomicU64, Ordering};

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

/// All entries of `table`; as [`slot`], for loops.
#[inline]
pub(crate) fn entries<M: PhysMap>(map: &M, table: Frame) -> &[AtomicU64; ENTRIES] {
    let entries = map.ptr(table.start()).cast::<[AtomicU64; ENTRIES]>();
    // SAFETY: *tables-live*, as in `slot`: the whole frame, of which every word is only ever
    // accessed as an atomic.
    unsafe { &*entries }
}

/// The first index from `from` up to (not including) `to` whose word is not zero; else `to`.
/// Sixteen words at a time: little more than one instruction for each.
#[inline(never)]
pub(crate) fn next_nonzero(entries: &[AtomicU64; ENTRIES], from: usize, to: usize) -> usize {
    let load = |entry: &AtomicU64| entry.load(Ordering::Relaxed);
    let Some(rest) = entries.get(from..to) else { return to };
    let mut at = from;
    let mut groups = rest.chunks_exact(16);
    for group in &mut groups {
        if group.iter().fold(0, |all, entry| all | load(entry)) != 0 {
            return at + group.iter().position(|entry| load(entry) != 0).unwrap_or(0);
        }
        at += 16;
    }
    let tail = groups.remainder();
    at + tail.iter().position(|entry| load(entry) != 0).unwrap_or(tail.len())
}

/// As [`pieces`], but only those whose word is not zero, with the word.
#[inline]
pub(crate) fn used_pieces(
    entries: &[AtomicU64; ENTRIES],
    level: u32,
    start: u64,
    end: u64,
) -> UsedPieces<'_> {
    let last = if start < end { index(end - 1, level) + 1 } else { 0 };
    UsedPieces { entries, span: span(level), next: index(start, level), last, start, end }
}

/// See [`used_pieces`]. A type of its own so that loops over pages are built without calls.
pub(crate) struct UsedPieces<'a> {
    entries: &'a [AtomicU64; ENTRIES],
    span: u64,
    next: usize,
    /// One past the last index.
    last: usize,
    start: u64,
    end: u64,
}

impl Iterator for UsedPieces<'_> {
    type Item = (usize, u64, u64, u64);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.last {
            return None;
        }
        let mut word = self.entries[self.next % ENTRIES].load(Ordering::Relaxed);
        if word == 0 {
            self.next = next_nonzero(self.entries, self.next, self.last);
            if self.next >= self.last {
                return None;
            }
            word = self.entries[self.next % ENTRIES].load(Ordering::Relaxed);
        }
        let at = (self.start & !(self.span * ENTRIES as u64 - 1)) + self.next as u64 * self.span;
        self.next += 1;
        Some((self.next - 1, at.max(self.start), (at + self.span).min(self.end), word))
    }
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
