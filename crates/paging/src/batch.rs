//! The duty to flush, and then to release.
//!
//! Nouns: a *span* is a run of pages to flush; an *item* is something to release afterwards.
//! Spans that touch are merged; when there are more than [`SPANS`] the batch flushes the whole
//! space instead, which on real machines is cheaper by then. Pages of 4 KiB are kept apart from the
//! other items, as bare frames. When there are [`PAGES`] of them, or [`ITEMS`] items, the batch
//! flushes and releases early (*flush-before-release* holds at every moment).

use pagoda_addr::{Frame, Page, PageRange};

use crate::stack::StackVec;
use crate::{FlushRange, PageSize, Platform, Released, SpaceTlb};

const SPANS: usize = 16;
const ITEMS: usize = 8;
const TABLES: usize = 16;
/// One kibibyte of stack.
const PAGES: usize = 128;

/// Remembers which pages have to be flushed and what may be released afterwards.
///
/// Holds up to 128 pages of 4 KiB, 16 tables and 8 larger pages to release; when it is full, it
/// flushes and releases early. To be ended with [`finish`](Self::finish) before anybody relies on the change: before a system call returns,
/// before a lock that protects a move is dropped. Dropping a batch with something in it does the
/// work too, and panics in debug builds.
#[must_use = "a batch is a duty: call `finish`"]
pub struct FlushBatch<'a, P: Platform> {
    platform: &'a P,
    space: &'a SpaceTlb,
    spans: StackVec<PageRange, SPANS>,
    items: StackVec<Released, ITEMS>,
    /// Unlinked, and all zero.
    emptied: StackVec<Frame, TABLES>,
    pages: StackVec<Frame, PAGES>,
    everything: bool,
    tables: bool,
    global: bool,
}

impl<'a, P: Platform> FlushBatch<'a, P> {
    #[inline(always)] // in place, not moved
    pub(crate) fn new(platform: &'a P, space: &'a SpaceTlb) -> Self {
        Self {
            platform,
            space,
            spans: StackVec::new(),
            items: StackVec::new(),
            emptied: StackVec::new(),
            pages: StackVec::new(),
            everything: false,
            tables: false,
            global: false,
        }
    }

    /// Does the batch belong to this space?
    pub(crate) fn is_for(&self, space: &SpaceTlb) -> bool {
        core::ptr::eq(self.space, space)
    }

    /// Flushes, then releases. ([`flush_now`](Self::flush_now) does the same, and does not move the
    /// batch's kilobyte.)
    #[inline(always)]
    pub fn finish(mut self) {
        self.work();
    }

    /// Flushes and releases what there is so far; the batch goes on.
    pub fn flush_now(&mut self) {
        self.work();
    }

    /// Nothing to flush and nothing to release?
    pub fn is_empty(&self) -> bool {
        !self.must_flush()
            && self.items.as_slice().is_empty()
            && self.emptied.as_slice().is_empty()
            && self.pages.as_slice().is_empty()
    }

    /// Adds pages to flush. Every changed entry is added by the cursor that changes it; this is for
    /// callers that changed what hardware may remember by other means.
    #[inline]
    pub fn flush_also(&mut self, range: PageRange) {
        if self.everything || range.is_empty() {
            return;
        }
        if let Some(last) = self.spans.last_mut() {
            if let Some(merged) = merge(*last, range) {
                *last = merged;
                return;
            }
        }
        if !self.spans.push(range) {
            self.everything = true;
        }
    }

    /// Releases `item` after a flush that begins later than this call.
    #[inline]
    pub fn release_also(&mut self, item: Released) {
        if let Released::Page { frame, size: PageSize::K4 } = item {
            if self.pages_full() {
                self.work();
            }
            return self.push_page(frame);
        }
        if self.items.is_full() {
            self.work();
        }
        // There is room now: `work` empties the list.
        let _ = self.items.push(item);
    }

    /// Has one more page to be preceded by a [`flush_now`](Self::flush_now)?
    #[inline]
    pub(crate) fn pages_full(&self) -> bool {
        self.pages.is_full()
    }

    /// As `release_also` of a 4 KiB page, for callers that make room themselves because they know
    /// more pages to flush than the batch does yet.
    #[inline]
    pub(crate) fn push_page(&mut self, frame: Frame) {
        let pushed = self.pages.push(frame);
        debug_assert!(pushed, "a page that would be lost");
    }

    /// As `push_page` for all of `frames`, as far as there is room; returns how many that were.
    #[inline(never)] // needs the registers
    pub(crate) fn push_pages(&mut self, frames: impl Iterator<Item = Frame>) -> usize {
        self.pages.fill(frames)
    }

    /// The leaf behind `range` changed.
    #[inline]
    pub(crate) fn changed(&mut self, range: PageRange, global: bool) {
        self.global |= global;
        self.flush_also(range);
    }

    /// A table, empty by now, was unlinked on the way to `page`.
    pub(crate) fn unlinked(&mut self, page: Page, table: Frame) {
        if self.emptied.is_full() {
            self.work();
        }
        self.tables = true;
        self.flush_also(PageRange::single(page));
        let _ = self.emptied.push(table);
    }

    /// All that was on the way to any page is about to be unlinked, and everything to be flushed
    /// before it is released.
    pub(crate) fn flush_all(&mut self) {
        (self.everything, self.tables) = (true, true);
    }

    /// A table, empty by now, was unlinked, after [`flush_all`](Self::flush_all).
    pub(crate) fn unlinked_one(&mut self, table: Frame) {
        if self.emptied.is_full() {
            self.work();
            self.flush_all();
        }
        let _ = self.emptied.push(table);
    }

    /// An entry on the way to a page that is flushed anyway turned from a leaf into a table.
    pub(crate) fn way_changed(&mut self) {
        self.tables |= self.must_flush();
    }

    fn must_flush(&self) -> bool {
        self.everything || !self.spans.as_slice().is_empty()
    }

    fn work(&mut self) {
        if self.must_flush() {
            let generation = self.space.advance();
            let what = FlushRange {
                spans: self.spans.as_slice(),
                everything: self.everything,
                tables: self.tables,
                global: self.global,
                generation,
            };
            self.platform.flush(self.space, what);
        }
        self.spans.clear();
        (self.everything, self.tables, self.global) = (false, false, false);
        for &item in self.items.as_slice() {
            self.platform.release(item);
        }
        self.items.clear();
        for &table in self.emptied.as_slice() {
            self.platform.release_zeroed_table(table);
        }
        self.emptied.clear();
        if !self.pages.as_slice().is_empty() {
            self.platform.release_pages(self.pages.as_slice());
            self.pages.clear();
        }
    }
}

impl<P: Platform> Drop for FlushBatch<'_, P> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_empty() {
            forgotten(self);
        }
    }
}

#[cold]
fn forgotten<P: Platform>(batch: &mut FlushBatch<'_, P>) {
    // What a panic left half done is leaked rather than trusted.
    if !batch.platform.unwinding() {
        batch.work();
        debug_assert!(false, "a flush batch was dropped without `finish`");
    }
}

/// The union of two spans that touch or overlap.
#[inline]
fn merge(a: PageRange, b: PageRange) -> Option<PageRange> {
    if b.start().number() > a.end_number() || a.start().number() > b.end_number() {
        return None;
    }
    let start = a.start().min(b.start());
    PageRange::new(start, a.end_number().max(b.end_number()) - start.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(Page::from_number(start), count).unwrap()
    }

    #[test]
    fn spans_merge_when_they_touch() {
        assert_eq!(merge(range(4, 2), range(6, 1)), Some(range(4, 3)));
        assert_eq!(merge(range(4, 2), range(3, 1)), Some(range(3, 3)));
        assert_eq!(merge(range(4, 9), range(5, 1)), Some(range(4, 9)));
        assert_eq!(merge(range(4, 2), range(7, 1)), None);
        assert_eq!(merge(range(4, 2), range(2, 1)), None);
    }
}
