//! Splitting large leaves (*no-hole*).

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, Page, PageRange};

use super::change::note;
use super::{Cursor, Place, behind, whole};
use crate::slot::{index, span};
use crate::spare::Spare;
use crate::{
    Decoded, ENTRIES, FlushBatch, Format, Gain, MapError, PageFlags, Platform, Remembers, Rewrite,
};

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// Makes sure that no leaf reaches over the lower edge of `page`: splits a large leaf that
    /// does, down to the largest size that has an edge there. No translation changes.
    pub fn split_at(&mut self, page: Page, batch: &mut FlushBatch<'_, P>) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (at, end) = self.bounds(PageRange::single(page))?;
        self.check_sealed(at, end)?;
        self.split_edges(at, at, batch)
    }

    /// Makes `start` and `end` edges of leaves. `end` may be the end of the cursor's range.
    pub(super) fn split_edges(
        &mut self,
        start: u64,
        end: u64,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        if start != end && (start ^ (end - 1)) < ENTRIES as u64 && self.walk(start, 1).level == 1 {
            return Ok(()); // all in one table of the lowest level
        }
        let below = self.splits_needed(start);
        let above = if end == start { 0 } else { self.splits_needed(end) };
        if below + above == 0 {
            return Ok(());
        }
        // Both edges in one leaf share some of the splits; what is too much goes back unused.
        let mut spare = Spare::allocate(self.platform(), u64::from(below + above))?;
        self.split(start, &mut spare, batch)?;
        self.split(end, &mut spare, batch)
    }

    /// How many tables it takes to make `at` an edge.
    fn splits_needed(&mut self, at: u64) -> u32 {
        // Most edges are edges of large leaves too, or lie among small ones: only a leaf can be cut.
        let place = self.walk(at, 1);
        if place.level == 1 || place.word == 0 {
            return 0;
        }
        (2..=place.level).filter(|&level| at & (span(level) - 1) != 0).count() as u32
    }

    fn split(
        &mut self,
        at: u64,
        spare: &mut Spare<'_, P>,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        loop {
            let place = self.walk(at, 1);
            if place.level == 1 || place.word == 0 || at & (span(place.level) - 1) == 0 {
                return Ok(());
            }
            let Decoded::Leaf(frame, flags) = self.format().decode(place.word, place.level) else {
                return Ok(());
            };
            let table = spare.pop()?;
            let first = at & !(span(place.level) - 1);
            let breaks = self.format().breaks_for(Rewrite::Size);
            self.split_one(at, place, table, breaks);
            self.guard.tables += 1;
            self.came(ENTRIES - 1);
            // The translations are the same, but some processors must not know both sizes.
            note(batch, first, whole(frame, place.level, flags));
            if self.format().remembers() == Remembers::Absence {
                // An entry that is a table now, to machines that tell the two apart.
                batch.way_changed();
            }
            if breaks {
                batch.flush_now();
                let link = self.table_word(table, at);
                self.slot(place.table, index(at, place.level)).store(link, Ordering::Release);
            }
            if breaks || !flags.intersects(PageFlags::ACCESS) {
                // What was absent to the machine is a table now.
                self.gained(first, first + span(place.level), Gain::Present, true);
            }
        }
    }

    /// Replaces the leaf at `place` by `table`, filled with 512 leaves of the next smaller size; or
    /// by nothing yet, if the leaf has to be absent in between.
    fn split_one(&self, at: u64, place: Place, table: Frame, breaks: bool) {
        let slot = self.slot(place.table, index(at, place.level));
        let link = if breaks { 0 } else { self.table_word(table, at) };
        let mut word = place.word;
        // Hardware may set accessed and dirty meanwhile: then the copies are made once more.
        while let Decoded::Leaf(frame, flags) = self.format().decode(word, place.level) {
            self.fill_copies(table, place.level - 1, frame, flags);
            match slot.compare_exchange(word, link, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    fn fill_copies(&self, table: Frame, level: u32, first: Frame, flags: PageFlags) {
        let (_, size) = behind(first, 0, level);
        for index in 0..ENTRIES {
            let frame = first.checked_add(index as u64 * span(level)).unwrap_or(first);
            let word = self.format().leaf(frame, size, flags);
            self.slot(table, index).store(word, Ordering::Relaxed);
        }
    }
}
