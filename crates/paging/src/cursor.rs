//! A locked range of a tree.

use lock_api::MutexGuard;
use pagoda_addr::{Frame, Page, PageRange};

use crate::{
    AbsentWord, Entry, FlushBatch, Format, Leaf, MapError, PageFlags, PageSize, PageTable, Platform,
};

/// What becomes of the memory behind a leaf that is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Handed to [`Platform::release`](crate::Platform::release) after the flush.
    Release,
    /// Still somebody else's: only flushed.
    Keep,
}

/// A locked range of a page table: walk once, do many things.
///
/// Every method takes pages inside the range and answers [`MapError::Range`] for others.
pub struct Cursor<'a, F: Format, P: Platform> {
    table: &'a PageTable<F, P>,
    range: PageRange,
    _guard: MutexGuard<'a, P::Lock, ()>,
}

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// The locked range.
    pub fn range(&self) -> PageRange {
        let _ = self.table;
        self.range
    }

    /// What stands behind `page`. Outside the range: nothing.
    pub fn query(&mut self, _page: Page) -> Entry {
        todo!()
    }

    /// The first page at or after `from` that has an entry (a leaf, or a word that is not zero).
    /// O(tables present), whatever the length of the range. In the middle of a large leaf the
    /// answer is `from` itself.
    pub fn next_used(&mut self, _from: Page) -> Option<(Page, Entry)> {
        todo!()
    }

    /// Maps a leaf where nothing is mapped; an absent word there is overwritten. Needs no flush.
    pub fn map(
        &mut self,
        _page: Page,
        _frame: Frame,
        _size: PageSize,
        _flags: PageFlags,
    ) -> Result<(), MapError> {
        todo!()
    }

    /// Maps all of `range` to consecutive frames from `frame`, with the largest pages that fit.
    /// All or nothing.
    pub fn map_largest(
        &mut self,
        _range: PageRange,
        _frame: Frame,
        _flags: PageFlags,
    ) -> Result<(), MapError> {
        todo!()
    }

    /// Writes the caller's word into an absent entry (4 KiB). Clearing never allocates.
    pub fn mark(&mut self, _page: Page, _word: AbsentWord) -> Result<(), MapError> {
        todo!()
    }

    /// Makes every table that 4 KiB leaves in `range` need, so that `map` and `mark` of 4 KiB
    /// pages cannot fail there while the cursor lives. All or nothing. Does not split.
    pub fn prepare(&mut self, _range: PageRange) -> Result<(), MapError> {
        todo!()
    }

    /// Sets the rights and properties of every leaf in `range`; keeps history and the caller's
    /// bits ([`PageFlags::KEPT`]). Splits large leaves at the ends of the range.
    pub fn protect(
        &mut self,
        _range: PageRange,
        _flags: PageFlags,
        _batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        todo!()
    }

    /// Asks `decide` for the new flags (all of them) of every leaf in `range`. The leaf is written
    /// by an exchange that fails when hardware has set a bit meanwhile; `decide` is then asked
    /// again with the new flags. Splits as `protect` does.
    pub fn change(
        &mut self,
        _range: PageRange,
        _batch: &mut FlushBatch<'_, P>,
        _decide: impl FnMut(Page, Leaf) -> PageFlags,
    ) -> Result<(), MapError> {
        todo!()
    }

    /// Puts another frame behind a mapped page (the copy-on-write break), and returns the leaf that
    /// stood there. `page` is the first page of its leaf; the size stays.
    pub fn replace(
        &mut self,
        _page: Page,
        _frame: Frame,
        _flags: PageFlags,
        _fate: Fate,
        _batch: &mut FlushBatch<'_, P>,
    ) -> Result<Leaf, MapError> {
        todo!()
    }

    /// Takes every entry out of `range`, and gives back the tables that become empty. `on_each`
    /// sees every leaf (by its first page and frame) and every absent word, lowest first, and says
    /// what becomes of a leaf's memory. Splits large leaves at the ends of the range.
    pub fn take(
        &mut self,
        _range: PageRange,
        _batch: &mut FlushBatch<'_, P>,
        _on_each: impl FnMut(Page, Entry) -> Fate,
    ) -> Result<(), MapError> {
        todo!()
    }

    /// Makes sure that no leaf reaches over `page` from below to above: splits the large leaf that
    /// does, down to the largest size that has an edge there. No translation changes.
    pub fn split_at(
        &mut self,
        _page: Page,
        _batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        todo!()
    }
}
