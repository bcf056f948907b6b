//! Taking entries out, and giving back the tables that become empty.

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, Page, PageRange};

use super::change::note;
use super::{Cursor, whole};
use crate::slot::{index, next_nonzero, page, span, used_pieces};
use crate::{Decoded, ENTRIES, Entry, FlushBatch, Format, MapError, Platform, Released};

/// What becomes of the memory behind a leaf that is taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Handed to [`Platform::release`] after the flush.
    Release,
    /// Still somebody else's: only flushed.
    Keep,
}

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// Takes every entry out of `range`, and gives back the tables that become empty (through the
    /// batch: a CPU may remember the way through them). `on_each` sees every leaf (by its first
    /// page and frame, and with the history that hardware left in it) and every absent word, lowest
    /// first, and says what becomes of a leaf's memory. Splits large leaves at the ends of the
    /// range. O(tables present).
    pub fn take(
        &mut self,
        range: PageRange,
        batch: &mut FlushBatch<'_, P>,
        mut on_each: impl FnMut(Page, Entry) -> Fate,
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        self.check_sealed(start, end)?;
        self.split_edges(start, end, batch)?;
        let (root, level) = (self.table.root(), self.format().levels());
        self.take_in(root, level, start, end, batch, &mut on_each);
        self.forget_path();
        Ok(())
    }

    pub(super) fn take_in(
        &mut self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
        batch: &mut FlushBatch<'_, P>,
        on_each: &mut impl FnMut(Page, Entry) -> Fate,
    ) {
        let entries = self.entries(table);
        for (index, start, end, word) in used_pieces(entries, level, start, end) {
            let slot = &entries[index % ENTRIES];
            if let Decoded::Table(child) = self.format().decode(word, level) {
                self.take_in(child, level - 1, start, end, batch, on_each);
                if !self.table.keeps_top(start, level) && self.is_empty(child, level, start, end) {
                    slot.store(0, Ordering::Release);
                    self.guard.tables -= 1;
                    batch.unlinked(page(start), child);
                }
                continue;
            }
            self.went(1);
            // From here on the entry is nobody's but ours, with all that hardware wrote into it.
            match self.format().decode(slot.swap(0, Ordering::AcqRel), level) {
                Decoded::Leaf(frame, flags) => {
                    let leaf = whole(frame, level, flags);
                    note(batch, start, leaf);
                    if on_each(page(start), leaf.into()) == Fate::Release {
                        batch.release_also(Released::Page { frame, size: leaf.size });
                    }
                }
                Decoded::Absent(word) => {
                    on_each(page(start), Entry::Absent(word));
                }
                Decoded::Table(_) => {}
            }
        }
    }

    /// Is the table behind `[start, end)`, a piece of a table of `level`, empty, now that this piece
    /// of it is? Looks next to the piece first, where a neighbour is most likely.
    pub(super) fn is_empty(&self, child: Frame, level: u32, start: u64, end: u64) -> bool {
        if end - start == span(level) {
            // All of it was taken; only a table that has to stay could be left in it.
            return true;
        }
        let (first, last) = (index(start, level - 1), index(end - 1, level - 1) + 1);
        let entries = self.entries(child);
        // The entries at the ends of the gap may be tables with something left in them.
        let edges = [first, last - 1];
        edges.iter().all(|&edge| next_nonzero(entries, edge, edge + 1) > edge)
            && next_nonzero(entries, last, ENTRIES) == ENTRIES
            && next_nonzero(entries, 0, first) == first
    }
}
