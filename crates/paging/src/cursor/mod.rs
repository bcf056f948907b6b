//! A locked range of a tree.
//!
//! A cursor remembers the tables on the way to the page that it last went to. The next walk starts
//! from the lowest remembered table that also covers the new page; anything that unlinks tables
//! forgets the way.

mod bulk;
mod change;
mod known;
mod place;
mod run;
mod split;
mod take;

use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, Page, PageRange};

use crate::gains::Gains;
use crate::slot::{entries, index, next_nonzero, page, pieces, slot, span};
use crate::table::Guard;
use crate::{
    Decoded, ENTRIES, Entry, FlushBatch, Format, Gain, Leaf, MAX_LEVELS, MapError, PageSize,
    PageTable, Platform, Remembers,
};

pub use run::Rewritten;
pub use take::Fate;

/// A locked range of a page table: walk once, do many things.
///
/// Methods take pages inside the range, and answer [`MapError::Range`] for others.
pub struct Cursor<'a, F: Format, P: Platform> {
    table: &'a PageTable<F, P>,
    range: PageRange,
    guard: Guard<'a, P>,
    /// The page of the last walk.
    at: u64,
    /// The tables on the way to `at`, by level less one; valid from `lowest` up to the root.
    path: [Frame; MAX_LEVELS],
    lowest: u32,
    /// *gains-are-told*; not used where nothing has to be told.
    gains: Gains,
}

/// The entry at which a walk ended.
#[derive(Clone, Copy)]
struct Place {
    level: u32,
    table: Frame,
    word: u64,
}

impl<'a, F: Format, P: Platform> Cursor<'a, F, P> {
    pub(crate) fn new(table: &'a PageTable<F, P>, range: PageRange, guard: Guard<'a, P>) -> Self {
        let path = [Frame::default(); MAX_LEVELS];
        let mut cursor = Self { table, range, guard, at: 0, path, lowest: 0, gains: Gains::NONE };
        cursor.forget_path();
        cursor
    }

    /// The locked range.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// What stands behind `page`. Outside the range: nothing.
    #[inline]
    pub fn query(&mut self, page: Page) -> Entry {
        if !self.range.contains(page) {
            return Entry::NOTHING;
        }
        let place = self.walk(page.number(), 1);
        self.entry_at(page.number(), place)
    }

    /// The first page at or after `from` that has an entry (a leaf, or a word that is not zero).
    /// O(tables present), whatever the length of the range. In the middle of a large leaf the
    /// answer is `from` itself.
    pub fn next_used(&mut self, from: Page) -> Option<(Page, Entry)> {
        let end = self.range.end_number();
        let mut at = from.number().max(self.range.start().number());
        while at < end {
            let place = self.walk(at, 1);
            if place.word != 0 {
                let entry = self.entry_at(at, place);
                if entry != Entry::NOTHING {
                    return Some((page(at), entry));
                }
            }
            at = self.next_nonzero(at, place, end);
        }
        None
    }

    /// The first page behind the entries after `place` (which covers `at`) in the same table whose
    /// word is not zero; without one, the first page behind the table. At most `end`.
    fn next_nonzero(&self, at: u64, place: Place, end: u64) -> u64 {
        let span = span(place.level);
        let first = index(at, place.level) + 1;
        let found = next_nonzero(self.entries(place.table), first, ENTRIES);
        let next = (at & !(span - 1)) + span * (1 + (found - first) as u64);
        next.min(end)
    }

    fn entry_at(&self, at: u64, place: Place) -> Entry {
        match self.format().decode(place.word, place.level) {
            Decoded::Absent(word) => Entry::Absent(word),
            Decoded::Leaf(frame, flags) => {
                let (frame, size) = behind(frame, at, place.level);
                Entry::Mapped { frame, size, flags }
            }
            // Not where a walk to level 1 ends.
            Decoded::Table(_) => Entry::NOTHING,
        }
    }

    /// Goes towards `page` down to `target`, or to an entry above that has no table below it.
    #[inline]
    fn walk(&mut self, page: u64, target: u32) -> Place {
        // The lowest remembered table that also covers `page`: the one in which the two begin to
        // differ, nine bits to a level.
        let differing = (page ^ self.at) | 1;
        let common = (63 - differing.leading_zeros()) / 9 + 1;
        let mut level = common.max(self.lowest).max(target).min(self.format().levels());
        self.at = page;
        let mut table = self.path[level as usize - 1];
        loop {
            let word = self.slot(table, index(page, level)).load(Ordering::Relaxed);
            if level > target {
                if let Some(child) = self.format().next_table(word, level) {
                    level -= 1;
                    table = child;
                    self.path[level as usize - 1] = child;
                    continue;
                }
            }
            self.lowest = level;
            return Place { level, table, word };
        }
    }

    /// Tables below the root may be gone.
    fn forget_path(&mut self) {
        let levels = self.table.format().levels();
        self.lowest = levels;
        self.path[levels as usize - 1] = self.table.root();
    }

    #[inline]
    fn format(&self) -> &'a F {
        self.table.format()
    }

    #[inline]
    fn platform(&self) -> &'a P {
        self.table.platform()
    }

    #[inline]
    fn slot(&self, table: Frame, index: usize) -> &'a AtomicU64 {
        slot(self.table.platform(), table, index)
    }

    #[inline]
    fn entries(&self, table: Frame) -> &'a [AtomicU64; ENTRIES] {
        entries(self.table.platform(), table)
    }

    /// The word for a table over `page`.
    fn table_word(&self, table: Frame, page: u64) -> u64 {
        let user = !self.format().upper_half(crate::slot::page(page));
        self.format().table(table, user)
    }

    /// *words-counted*: so many words more that are neither 0 nor tables.
    #[inline]
    fn came(&mut self, words: usize) {
        self.guard.words = self.guard.words.wrapping_add(words as u64);
    }

    /// *words-counted*: so many words less. What was never counted in makes very many.
    #[inline]
    fn went(&mut self, words: usize) {
        debug_assert!(self.guard.words >= words as u64, "words-counted");
        self.guard.words = self.guard.words.wrapping_sub(words as u64);
    }

    /// `range` in page numbers, if it lies in the cursor's.
    #[inline]
    fn bounds(&self, range: PageRange) -> Result<(u64, u64), MapError> {
        let (start, end) = (range.start().number(), range.end_number());
        if range.is_empty() {
            return Ok((start, start));
        }
        if start < self.range.start().number() || end > self.range.end_number() {
            return Err(MapError::Range);
        }
        Ok((start, end))
    }

    /// *gains-are-told*: the pages from `start` to `end` allow more than before.
    #[inline]
    fn gained(&mut self, start: u64, end: u64, gain: Gain, tables: bool) {
        if self.format().remembers() != Remembers::Nothing {
            self.gains.add(start, end, gain, tables);
        }
    }

    /// Refuses to touch leaves in the root of which others have copies (*upper-half-shared*).
    fn check_sealed(&self, start: u64, end: u64) -> Result<(), MapError> {
        let (root, level) = (self.table.root(), self.format().levels());
        if !self.guard.sealed || PageSize::of_level(level).is_none() {
            return Ok(());
        }
        let shared = |&(index, at, _): &(usize, u64, u64)| {
            let word = self.slot(root, index).load(Ordering::Relaxed);
            self.table.keeps_top(at, level)
                && matches!(self.format().decode(word, level), Decoded::Leaf(..))
        };
        let found = pieces(level, start, end).find(shared);
        found.map_or(Ok(()), |_| Err(MapError::Sealed))
    }

    fn check_batch(&self, batch: &FlushBatch<'_, P>) -> Result<(), MapError> {
        if batch.is_for(self.table.space()) { Ok(()) } else { Err(MapError::WrongBatch) }
    }

    fn check_frame(&self, page: u64, frame: Frame, size: PageSize) -> Result<(), MapError> {
        if !self.format().has_size(size) || size.level() > self.format().levels() {
            return Err(MapError::Size);
        }
        if page & (size.pages() - 1) != 0 || !frame.is_aligned(size.order()) {
            return Err(MapError::Alignment);
        }
        if !self.format().frame_fits(frame, size) {
            return Err(MapError::FrameTooHigh);
        }
        Ok(())
    }
}

impl<F: Format, P: Platform> Drop for Cursor<'_, F, P> {
    #[inline]
    fn drop(&mut self) {
        if self.format().remembers() != Remembers::Nothing {
            self.gains.tell(self.platform(), self.table.space());
        }
    }
}

/// The frame behind page `at` of a leaf of `level` that begins at `first`, and the leaf's size.
#[inline]
fn behind(first: Frame, at: u64, level: u32) -> (Frame, PageSize) {
    let size = PageSize::of_level(level).unwrap_or(PageSize::K4);
    (first.checked_add(at & (size.pages() - 1)).unwrap_or(first), size)
}

/// A whole leaf of `level`.
#[inline]
fn whole(frame: Frame, level: u32, flags: crate::PageFlags) -> Leaf {
    Leaf { frame, size: behind(frame, 0, level).1, flags }
}
