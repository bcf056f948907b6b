//! Changing leaves that stay where they are.

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, Page, PageRange};

use super::{Cursor, Fate, whole};
use crate::slot::{index, page, pieces};
use crate::{Decoded, FlushBatch, Format, Leaf, MapError, PageFlags, Platform, Released};

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// Sets the rights and properties of every leaf in `range`; keeps history and the caller's
    /// bits ([`PageFlags::KEPT`]), and sets those of them that `flags` has. Splits large leaves at
    /// the ends of the range. What only gains rights is not flushed: a CPU that remembers less
    /// takes one more fault, which finds nothing to do.
    pub fn protect(
        &mut self,
        range: PageRange,
        flags: PageFlags,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        self.change(range, batch, |_, leaf| (leaf.flags & PageFlags::KEPT) | flags)
    }

    /// Asks `decide` for the new flags (all of them) of every leaf in `range`, lowest first. The
    /// leaf is written by an exchange that fails when hardware has set a bit meanwhile; `decide` is
    /// then asked again with the new flags. Splits as `protect` does.
    ///
    /// Clearing `ACCESSED` alone is not flushed either: a CPU that remembers the page may use it
    /// for a while without setting the bit again.
    pub fn change(
        &mut self,
        range: PageRange,
        batch: &mut FlushBatch<'_, P>,
        mut decide: impl FnMut(Page, Leaf) -> PageFlags,
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        self.split_edges(start, end, batch)?;
        let (root, level) = (self.table.root(), self.format().levels());
        self.change_in(root, level, start, end, batch, &mut decide);
        Ok(())
    }

    fn change_in(
        &self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
        batch: &mut FlushBatch<'_, P>,
        decide: &mut impl FnMut(Page, Leaf) -> PageFlags,
    ) {
        for (index, start, end) in pieces(level, start, end) {
            let slot = self.slot(table, index);
            let mut word = slot.load(Ordering::Relaxed);
            if word == 0 {
                continue;
            }
            loop {
                let (frame, flags) = match self.format().decode(word, level) {
                    Decoded::Absent(_) => break,
                    Decoded::Table(child) => {
                        self.change_in(child, level - 1, start, end, batch, decide);
                        break;
                    }
                    Decoded::Leaf(frame, flags) => (frame, flags),
                };
                let leaf = whole(frame, level, flags);
                let wanted = self.format().grants(decide(page(start), leaf));
                let new = self.format().leaf(frame, leaf.size, wanted);
                if new == word {
                    break;
                }
                match slot.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        if must_flush(flags, wanted) {
                            note(batch, start, leaf);
                        }
                        break;
                    }
                    Err(now) => word = now,
                }
            }
        }
    }

    /// Puts another frame behind a mapped page (the copy-on-write break), and returns the leaf that
    /// stood there. `page` is the first page of its leaf; the size stays.
    pub fn replace(
        &mut self,
        page: Page,
        frame: Frame,
        flags: PageFlags,
        fate: Fate,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<Leaf, MapError> {
        self.check_batch(batch)?;
        let (at, _) = self.bounds(PageRange::single(page))?;
        let place = self.walk(at, 1);
        let Decoded::Leaf(old, old_flags) = self.format().decode(place.word, place.level) else {
            return Err(MapError::NotMapped);
        };
        let leaf = whole(old, place.level, old_flags);
        let whole_range = PageRange::new(page, leaf.size.pages()).ok_or(MapError::Range)?;
        if at & (leaf.size.pages() - 1) != 0 || self.bounds(whole_range).is_err() {
            return Err(MapError::Size);
        }
        self.check_frame(at, frame, leaf.size)?;
        let word = self.format().leaf(frame, leaf.size, self.format().grants(flags));
        let slot = self.slot(place.table, index(at, place.level));
        let taken = slot.swap(word, Ordering::AcqRel);
        // What hardware added since the walk is history of the old leaf.
        let leaf = match self.format().decode(taken, place.level) {
            Decoded::Leaf(old, flags) => whole(old, place.level, flags),
            _ => leaf,
        };
        note(batch, at, leaf);
        if fate == Fate::Release {
            batch.release_also(Released::Page { frame: leaf.frame, size: leaf.size });
        }
        Ok(leaf)
    }
}

/// May a CPU that remembers `old` do what `new` forbids, or do it wrongly?
fn must_flush(old: PageFlags, new: PageFlags) -> bool {
    // A page that becomes a program's is no longer the kernel's to touch: a change both ways.
    const EITHER: PageFlags =
        PageFlags::UNCACHED.union(PageFlags::WRITE_COMBINE).union(PageFlags::USER);
    const LOST: PageFlags = PageFlags::ACCESS.union(PageFlags::GLOBAL).union(PageFlags::DIRTY);
    // Nobody remembers a parked leaf.
    old.intersects(PageFlags::ACCESS)
        && ((old - new).intersects(LOST) || (old ^ new).intersects(EITHER))
}

/// A CPU may remember `leaf`, which began at page `at` until now.
#[inline]
pub(super) fn note<P: Platform>(batch: &mut FlushBatch<'_, P>, at: u64, leaf: Leaf) {
    if !leaf.flags.intersects(PageFlags::ACCESS) {
        return;
    }
    if let Some(range) = PageRange::new(page(at), leaf.size.pages()) {
        batch.changed(range, leaf.flags.contains(PageFlags::GLOBAL));
    }
}
