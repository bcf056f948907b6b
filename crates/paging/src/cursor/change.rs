//! Changing leaves that stay where they are.

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, Page, PageRange};

use super::{Cursor, Fate, whole};
use crate::slot::{index, page, pieces};
use crate::{
    Decoded, FlushBatch, Format, Gain, Leaf, MapError, PageFlags, Platform, Released, Rewrite,
};

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
        self.change_flags(range, batch, |old| (old & PageFlags::KEPT) | flags)
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
        self.check_sealed(start, end)?;
        self.split_edges(start, end, batch)?;
        let (root, level) = (self.table.root(), self.format().levels());
        self.change_in(root, level, start, end, batch, &mut decide);
        Ok(())
    }

    pub(super) fn change_in(
        &mut self,
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
                let breaks = self.breaks_for(flags, wanted);
                let first = if breaks { 0 } else { new };
                match slot.compare_exchange(word, first, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        if breaks || must_flush(flags, wanted) {
                            note(batch, start, leaf);
                        }
                        if breaks {
                            batch.flush_now();
                            slot.store(new, Ordering::Release);
                        }
                        self.note_gain(start, leaf, wanted);
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
        self.check_sealed(at, whole_range.end_number())?;
        let granted = self.format().grants(flags);
        let word = self.format().leaf(frame, leaf.size, granted);
        let slot = self.slot(place.table, index(at, place.level));
        let breaks = self.format().breaks_for(Rewrite::Target);
        let taken = slot.swap(if breaks { 0 } else { word }, Ordering::AcqRel);
        // What hardware added since the walk is history of the old leaf.
        let leaf = match self.format().decode(taken, place.level) {
            Decoded::Leaf(old, flags) => whole(old, place.level, flags),
            _ => leaf,
        };
        note(batch, at, leaf);
        if breaks {
            batch.flush_now();
            slot.store(word, Ordering::Release);
        }
        self.note_gain(at, leaf, granted);
        if fate == Fate::Release {
            batch.release_also(Released::Page { frame: leaf.frame, size: leaf.size });
        }
        Ok(leaf)
    }

    /// For machines that leave the history to software: an access, one of `READ`, `WRITE` and
    /// `EXEC`, faulted at `page`. Notes in the leaf there that it was used (and with `WRITE`, that
    /// it was written) if it grants the access at all; answers whether it does. The caller compares
    /// [`USER`](PageFlags::USER) with who made the access, makes its own CPU forget the page, and
    /// repeats the access. In a shared half nothing is noted in leaves of the root.
    pub fn touch(&mut self, page: Page, access: PageFlags) -> bool {
        let Ok((at, end)) = self.bounds(PageRange::single(page)) else { return false };
        let place = self.walk(at, 1);
        let slot = self.slot(place.table, index(at, place.level));
        let mut word = place.word;
        while let Decoded::Leaf(frame, flags) = self.format().decode(word, place.level) {
            if !flags.contains(access) {
                return false;
            }
            let written = access.contains(PageFlags::WRITE);
            let history =
                PageFlags::ACCESSED | if written { PageFlags::DIRTY } else { PageFlags::empty() };
            let leaf = whole(frame, place.level, flags);
            let new = self.format().leaf(frame, leaf.size, flags | history);
            if new == word || self.check_sealed(at, end).is_err() {
                return true;
            }
            match slot.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.note_gain(at & !(leaf.size.pages() - 1), leaf, flags | history);
                    return true;
                }
                Err(now) => word = now,
            }
        }
        false
    }

    /// Does this change of flags need a moment of absence?
    #[inline]
    pub(super) fn breaks_for(&self, old: PageFlags, new: PageFlags) -> bool {
        const TARGET: PageFlags =
            PageFlags::UNCACHED.union(PageFlags::WRITE_COMBINE).union(PageFlags::GLOBAL);
        self.format().breaks_for(Rewrite::Target)
            && (old ^ new).intersects(TARGET)
            && old.intersects(PageFlags::ACCESS)
    }

    /// The leaf that was `old`, from page `at`, has the flags `new` now: does it allow more?
    #[inline]
    pub(super) fn note_gain(&mut self, at: u64, old: Leaf, new: PageFlags) {
        const MORE: PageFlags =
            PageFlags::ACCESS.union(PageFlags::ACCESSED).union(PageFlags::DIRTY);
        if (new - old.flags).intersects(MORE) && new.intersects(PageFlags::ACCESS) {
            let was_absent = !old.flags.intersects(PageFlags::ACCESS);
            let gain = if was_absent { Gain::Present } else { Gain::Rights };
            self.gained(at, at + old.size.pages(), gain, false);
        }
    }
}

/// May a CPU that remembers `old` do what `new` forbids, or do it wrongly?
pub(super) fn must_flush(old: PageFlags, new: PageFlags) -> bool {
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
