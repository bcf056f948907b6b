//! Putting entries where none are. No CPU remembers an absence, or else it is told (*gains-are-told*).

use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, Page, PageRange};

use super::{Cursor, Place};
use crate::slot::{index, pieces, span};
use crate::spare::Spare;
use crate::{AbsentWord, Decoded, ENTRIES, Format, Gain, MapError, PageFlags, PageSize, Platform};

/// A leaf for a whole range: its pages from `start` stand for the frames from `frame`.
#[derive(Clone, Copy)]
struct Linear {
    start: u64,
    frame: Frame,
    flags: PageFlags,
}

impl Linear {
    fn frame_at(&self, page: u64) -> Option<Frame> {
        self.frame.checked_add(page - self.start)
    }
}

impl<'a, F: Format, P: Platform> Cursor<'a, F, P> {
    /// Maps a leaf where nothing is mapped; an absent word there is overwritten. Needs no batch.
    #[inline]
    pub fn map(
        &mut self,
        page: Page,
        frame: Frame,
        size: PageSize,
        flags: PageFlags,
    ) -> Result<(), MapError> {
        let range = PageRange::new(page, size.pages()).ok_or(MapError::Range)?;
        let (at, end) = self.bounds(range)?;
        self.check_frame(at, frame, size)?;
        let word = self.format().leaf(frame, size, self.format().grants(flags));
        let linked = self.put(at, size.level(), word)?;
        self.gained(at, end, Gain::Present, linked);
        Ok(())
    }

    /// Writes the caller's word into an absent entry (4 KiB). Clearing never allocates.
    pub fn mark(&mut self, page: Page, word: AbsentWord) -> Result<(), MapError> {
        let (at, _) = self.bounds(PageRange::single(page))?;
        let place = self.walk(at, 1);
        if word.is_nothing() && place.level > 1 {
            return if place.word == 0 { Ok(()) } else { Err(MapError::Occupied) };
        }
        if self.put(at, 1, self.format().absent(word))? {
            self.gained(at, at + 1, Gain::Present, true);
        }
        Ok(())
    }

    /// Writes `word` into an absent entry of level `target`. Were tables made?
    #[inline]
    fn put(&mut self, at: u64, target: u32, word: u64) -> Result<bool, MapError> {
        let place = self.walk(at, target);
        match self.format().decode(place.word, place.level) {
            Decoded::Absent(_) if self.seals(at, target) => Err(MapError::Sealed),
            Decoded::Absent(_) if place.level == target => {
                self.slot(place.table, index(at, target)).store(word, Ordering::Release);
                self.came(usize::from(word != 0));
                self.went(usize::from(place.word != 0));
                Ok(false)
            }
            Decoded::Absent(_) => self.put_below(at, place, target, word).map(|()| true),
            _ => Err(MapError::Occupied),
        }
    }

    /// As `put`, where tables are missing: builds them from below, and links them all by one store.
    #[cold]
    fn put_below(&mut self, at: u64, place: Place, target: u32, word: u64) -> Result<(), MapError> {
        if self.seals(at, place.level) {
            return Err(MapError::Sealed);
        }
        let missing = u64::from(place.level - target);
        let mut spare = Spare::allocate(self.platform(), missing)?;
        let mut below = word;
        for level in target..place.level {
            let table = spare.pop()?;
            self.slot(table, index(at, level)).store(below, Ordering::Relaxed);
            below = self.table_word(table, at);
        }
        self.slot(place.table, index(at, place.level)).store(below, Ordering::Release);
        self.guard.tables += missing;
        self.came(usize::from(word != 0));
        Ok(())
    }

    /// Must the absent entry of a table of `level` over `page` stay as it is?
    #[inline]
    fn seals(&self, page: u64, level: u32) -> bool {
        self.guard.sealed && self.table.keeps_top(page, level)
    }

    /// Makes every table that 4 KiB leaves in `range` need, so that `map` and `mark` of 4 KiB
    /// pages cannot run out of frames there while the cursor lives. All or nothing. Does not split.
    pub fn prepare(&mut self, range: PageRange) -> Result<(), MapError> {
        let (start, end) = self.bounds(range)?;
        let (root, level) = (self.table.root(), self.format().levels());
        let missing = self.count_missing(root, level, start, end)?;
        if missing == 0 {
            return Ok(());
        }
        let mut spare = Spare::allocate(self.platform(), missing)?;
        self.link_missing(root, level, start, end, &mut spare)?;
        self.guard.tables += missing;
        self.gained(start, end, Gain::Present, true);
        Ok(())
    }

    /// The entries of the leaf table over `page`, which is made if it is missing: built from below, and
    /// linked by one store.
    pub(super) fn leaf_table(&mut self, page: u64) -> Result<&'a [AtomicU64; ENTRIES], MapError> {
        let place = self.walk(page, 1);
        if place.level != 1 {
            self.leaf_table_below(page, place)?;
        }
        let table = self.walk(page, 1).table;
        Ok(self.entries(table))
    }

    fn leaf_table_below(&mut self, page: u64, place: Place) -> Result<(), MapError> {
        match self.format().decode(place.word, place.level) {
            Decoded::Absent(_) if self.seals(page, place.level) => return Err(MapError::Sealed),
            Decoded::Absent(_) => {}
            _ => return Err(MapError::Occupied),
        }
        let mut below = 0;
        for level in 1..place.level {
            let Ok(table) = self.platform().alloc_table() else {
                self.unmake(level, below, page);
                return Err(MapError::OutOfFrames);
            };
            if level > 1 {
                self.slot(table, index(page, level)).store(below, Ordering::Relaxed);
            }
            below = self.table_word(table, page);
        }
        self.slot(place.table, index(page, place.level)).store(below, Ordering::Release);
        self.guard.tables += u64::from(place.level - 1);
        self.gained(page, page + 1, Gain::Present, true);
        Ok(())
    }

    /// Gives back the tables below the entry `word` of a table of `level` over `page`, which was never
    /// linked.
    #[cold]
    fn unmake(&self, level: u32, word: u64, page: u64) {
        let (mut level, mut word) = (level, word);
        while level > 1 {
            let Some(table) = self.format().next_table(word, level) else { return };
            level -= 1;
            let slot = self.slot(table, index(page, level));
            word = if level > 1 { slot.swap(0, Ordering::Relaxed) } else { 0 };
            self.platform().release_zeroed_table(table);
        }
    }

    fn count_missing(
        &self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
    ) -> Result<u64, MapError> {
        let mut missing = 0;
        if level == 1 {
            return Ok(missing);
        }
        for (index, start, end) in pieces(level, start, end) {
            let word = self.slot(table, index).load(Ordering::Relaxed);
            match self.format().decode(word, level) {
                Decoded::Table(child) => {
                    missing += self.count_missing(child, level - 1, start, end)?;
                }
                Decoded::Absent(_) if self.seals(start, level) => return Err(MapError::Sealed),
                // A table of level l for every span of a table of level l that the piece touches.
                Decoded::Absent(_) => {
                    missing += (1..level)
                        .map(|l| (end - 1) / span(l + 1) - start / span(l + 1) + 1)
                        .sum::<u64>();
                }
                Decoded::Leaf(..) => {}
            }
        }
        Ok(missing)
    }

    fn link_missing(
        &self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
        spare: &mut Spare<'_, P>,
    ) -> Result<(), MapError> {
        if level == 1 {
            return Ok(());
        }
        for (index, start, end) in pieces(level, start, end) {
            let slot = self.slot(table, index);
            let word = slot.load(Ordering::Relaxed);
            let child = match self.format().decode(word, level) {
                Decoded::Table(child) => child,
                Decoded::Leaf(..) => continue,
                Decoded::Absent(_) => {
                    let child = spare.pop()?;
                    slot.store(self.table_word(child, start), Ordering::Release);
                    child
                }
            };
            self.link_missing(child, level - 1, start, end, spare)?;
        }
        Ok(())
    }

    /// Maps all of `range` to consecutive frames from `frame`, with the largest pages that fit (and
    /// smaller ones where a table stands already). All or nothing.
    pub fn map_largest(
        &mut self,
        range: PageRange,
        frame: Frame,
        flags: PageFlags,
    ) -> Result<(), MapError> {
        let (start, end) = self.bounds(range)?;
        let Some(last) = range.count().checked_sub(1) else { return Ok(()) };
        let last = frame.checked_add(last).ok_or(MapError::FrameTooHigh)?;
        if !self.format().frame_fits(last, PageSize::K4) {
            return Err(MapError::FrameTooHigh);
        }
        let linear = Linear { start, frame, flags: self.format().grants(flags) };
        let (root, level) = (self.table.root(), self.format().levels());
        let missing = self.plan(Some(root), level, start, end, &linear)?;
        let mut spare = Spare::allocate(self.platform(), missing)?;
        let filled = self.fill(root, level, start, end, &linear, &mut spare);
        self.guard.tables += missing;
        self.came(filled?);
        self.gained(start, end, Gain::Present, missing != 0);
        Ok(())
    }

    /// The leaf that covers the whole piece `[start, end)` of a table of `level`, if one can.
    fn leaf_for(&self, level: u32, start: u64, end: u64, linear: &Linear) -> Option<u64> {
        let size = PageSize::of_level(level)?;
        let frame = linear.frame_at(start)?;
        if end - start != size.pages() || self.check_frame(start, frame, size).is_err() {
            return None;
        }
        Some(self.format().leaf(frame, size, linear.flags))
    }

    /// How many tables `fill` will need below `table` (one that is still to be made: `None`).
    fn plan(
        &self,
        table: Option<Frame>,
        level: u32,
        start: u64,
        end: u64,
        linear: &Linear,
    ) -> Result<u64, MapError> {
        if level == 1 && table.is_none() {
            return Ok(0);
        }
        let mut missing = 0;
        for (index, start, end) in pieces(level, start, end) {
            let word = table.map_or(0, |table| self.slot(table, index).load(Ordering::Relaxed));
            let child = match self.format().decode(word, level) {
                Decoded::Leaf(..) => return Err(MapError::Occupied),
                Decoded::Table(child) => Some(child),
                Decoded::Absent(_) if self.seals(start, level) => return Err(MapError::Sealed),
                Decoded::Absent(_) if self.leaf_for(level, start, end, linear).is_some() => {
                    continue;
                }
                Decoded::Absent(_) => {
                    missing += 1;
                    None
                }
            };
            missing += self.plan(child, level - 1, start, end, linear)?;
        }
        Ok(missing)
    }

    /// Returns how many leaves it took.
    fn fill(
        &self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
        linear: &Linear,
        spare: &mut Spare<'_, P>,
    ) -> Result<usize, MapError> {
        let mut leaves = 0;
        for (index, start, end) in pieces(level, start, end) {
            let slot = self.slot(table, index);
            let child = match self.format().decode(slot.load(Ordering::Relaxed), level) {
                Decoded::Leaf(..) => return Err(MapError::Occupied),
                Decoded::Table(child) => child,
                Decoded::Absent(_) => {
                    if let Some(word) = self.leaf_for(level, start, end, linear) {
                        slot.store(word, Ordering::Release);
                        leaves += 1;
                        continue;
                    }
                    let child = spare.pop()?;
                    slot.store(self.table_word(child, start), Ordering::Release);
                    child
                }
            };
            leaves += self.fill(child, level - 1, start, end, linear, spare)?;
        }
        Ok(leaves)
    }
}
